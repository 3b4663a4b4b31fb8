# SPDX-License-Identifier: GPL-2.0-only
"""Real time that is counted: it goes with the host's, and the run can be had again all the same."""

import time
from functools import partial
from pathlib import Path

import pytest
from listening_guest import listener

import pyhv
from pyhv.cli import loop
from pyhv.clock import VirtualClock
from pyhv.observe.digest import Digest
from pyhv.paced import LAG_NS, PIECE_NS, PacedClock
from pyhv.replay import log
from pyhv.replay.entries import Taken, understood
from pyhv.testing.guest_machine import HEADER, START, image_of
from pyhv.until import Outcome, Seconds

SPIN = HEADER + START + "    jmp .\n"


def passed(moment: float) -> bool:
    return time.monotonic() > moment


def digested(machine: pyhv.Machine) -> Digest:
    digest = Digest()
    machine.on("exit", digest.exit)
    return digest


def pulls(path: Path) -> list[Taken]:
    """What a recording says of the clock being pulled towards the host's."""
    entries = understood(log.read(path)).entries
    return [one for one in entries if isinstance(one, Taken) and one.verb == "pass_time"]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.rec"


@pytest.mark.promise("T-18")
@pytest.mark.parametrize("tuned", [True, False], ids=["tuned", "plain"])
def test_a_run_in_real_time_is_had_again(path: Path, tuned: bool) -> None:
    """What is typed comes when the host's clock says so, and that differs each time."""
    with pyhv.Machine(memory="16M", tuned=tuned, record=path) as machine:
        digest = digested(machine)
        guest, spinner = machine.boot(listener(), memory="4M"), machine.boot(image_of(SPIN), memory="4M")
        for number in range(60):
            machine.run(partial(passed, time.monotonic() + 0.03))
            guest.offer(b"abc"[number % 3 : number % 3 + 1])
            if number > 1 and any(not pull.moment.position.over for pull in pulls(path)):
                break
        spinner.destroy()
        guest.send("q")
        assert machine.run() is Outcome.ENDED
        position, text = machine.position, guest.console.text
    found = pulls(path)
    assert len(found) > 3
    assert any(not one.moment.position.over for one in found), "also in the middle of a turn"
    for other in (True, False):
        with pyhv.Replay(path, verify=True, tuned=other) as replay:
            assert type(replay.machine.hypervisor.clock) is VirtualClock
            again, guests = digested(replay.machine), replay.machine.guests
            assert replay.run() is None
            assert again.summary() == digest.summary()
            assert guests[0].console.text == text
            assert replay.machine.position == position


def test_it_keeps_pace(path: Path) -> None:
    with pyhv.Machine(memory="16M", record=path) as machine:
        clock = machine.hypervisor.clock
        assert isinstance(clock, PacedClock)
        machine.boot(image_of(SPIN), memory="4M")
        began = time.monotonic()
        assert machine.run(seconds=0.2) is Outcome.TIMEOUT
        spent = time.monotonic() - began
        assert abs(clock.host_now() - clock.now()) < 20 * (LAG_NS + PIECE_NS)
        assert 0.05 < spent < 2
        assert abs(clock.wall_ns() + clock.now() - time.time_ns()) < 10**9, "the date is today's"


def test_when_nobody_runs_the_hosts_time_passes(path: Path) -> None:
    with pyhv.Machine(memory="32M", record=path) as machine:
        ticker = machine.boot("ticker", memory="16M")
        began = time.monotonic()
        assert ticker.wait().reason == "poweroff"
        assert time.monotonic() - began > 0.045, "it waits five times for 10 ms"
    with pyhv.Replay(path, verify=True) as replay:
        began = time.monotonic()
        replay.run()
        assert replay.finish is not None


def test_the_command_lines_loop_keeps_pace_too(path: Path) -> None:
    with pyhv.Machine(memory="32M", record=path) as machine:
        clock = machine.hypervisor.clock
        assert isinstance(clock, PacedClock)
        machine.boot("ticker", memory="16M")
        assert loop.run(machine, Seconds(0.02), []) is Outcome.TIMEOUT
        assert clock.now() - clock.host_now() < 20 * (LAG_NS + PIECE_NS), "it has not run ahead"
    with pyhv.Replay(path, verify=True) as replay:
        assert replay.run() is None


def test_it_goes_back_in_real_time() -> None:
    with pyhv.Machine(memory="16M", history=True) as machine:
        guest = machine.boot(listener(), memory="4M")
        machine.run(seconds=0.01)
        guest.send("a")
        machine.run(r"0x\w+\n", seconds=5)
        moments = [machine.step_back() for _ in range(5)]
        assert moments == sorted(moments, reverse=True)
        machine.run(seconds=0.05)
        assert guest.console.text.count("\n") == 1
        guest.send("b")
        machine.run(seconds=0.05)
        assert guest.console.text.count("\n") == 2
        assert machine.hypervisor.paced is not None
        assert abs(machine.hypervisor.paced.host_now() - machine.hypervisor.now()) < 10**9


def test_time_that_is_the_hosts_cannot_be_recorded(path: Path) -> None:
    with (
        pyhv.Machine(memory="16M") as machine,
        pytest.raises(pyhv.ReplayError, match="have it made for that"),
    ):
        machine.record(path)
    assert not path.exists()
