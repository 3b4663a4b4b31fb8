# SPDX-License-Identifier: GPL-2.0-only
"""Whatever comes in, whenever: a replay is the recorded run, exit for exit, on either engine."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from listening_guest import listener

import pyhv
from pyhv.observe.digest import Digest

WAYS = st.one_of(
    st.tuples(st.just("seconds"), st.integers(0, 900_000).map(lambda ns: ns / 1e9)),
    st.tuples(st.just("exits"), st.integers(1, 60)),
    st.tuples(st.just("steps"), st.integers(1, 4)),
    st.tuples(st.just("inside"), st.integers(1, 40)),
)
"""How far the machine runs before something comes in; `inside`: it comes in while an exit is observed."""
DOINGS = st.one_of(
    st.tuples(st.just("type"), st.binary(min_size=1, max_size=3).map(lambda data: data.replace(b"q", b"r"))),
    st.tuples(st.sampled_from(["pause", "unpause", "destroy", "boot", "reach", "check"]), st.just(b"")),
    st.tuples(st.just("pass"), st.integers(0, 2_000_000)),
    st.tuples(st.just("poke"), st.binary(min_size=8, max_size=8)),
    st.tuples(st.just("store"), st.binary(max_size=4)),
    st.tuples(st.just("weigh"), st.integers(1, 600)),
)
Step = tuple[tuple[str, float], tuple[str, bytes | int]]
PROGRAMS = st.lists(st.tuples(WAYS, DOINGS), min_size=1, max_size=8)
INSIDE = ("type", "pause", "destroy", "weigh")
"""What may be asked for while an exit is observed."""


class Player:
    """Does to a machine what a program says; what is refused is refused."""

    def __init__(self, machine: pyhv.Machine) -> None:
        self.machine = machine
        self.guests = [machine.boot(listener(), memory="4M", name="first")]
        self.consoles = [self.guests[0].console]

    def go(self, way: tuple[str, float | int], act: Callable[[], None], inside: bool) -> None:
        how, much = way
        machine = self.machine
        if how == "inside" and inside:
            left = int(much)

            def count(_record: object) -> None:
                nonlocal left
                left -= 1
                if left == 0:
                    act()

            cancel = machine.on("exit", count)
            machine.run(seconds=0.002)
            cancel()
            return
        if how == "seconds":
            machine.run(seconds=much)
        elif how in ("exits", "inside"):
            machine.run(exits=int(much), seconds=0.01)
        else:
            for _ in range(int(much)):
                machine.step()
        act()

    def do(self, doing: tuple[str, bytes | int]) -> None:
        what, much = doing
        machine, guest = self.machine, self.guests[-1]
        try:
            if what == "type":
                assert isinstance(much, bytes)
                guest.offer(much)
            elif what in ("pause", "unpause"):
                getattr(guest, what)()
            elif what == "destroy":
                resident = machine.resident(guest)
                if resident is not None:
                    machine.hypervisor.destroy(resident.domain)
            elif what == "boot":
                self.guests.append(machine.boot(listener(), memory="4M"))
                self.consoles.append(self.guests[-1].console)
            elif what == "reach":
                if guest.end is None:
                    machine.run("again", seconds=0.001)
            elif what == "check":
                assert machine.recording is not None
                machine.recording.check()
            elif what == "pass":
                machine.hypervisor.pass_time(machine.hypervisor.now() + int(much))
            elif what == "poke":
                assert isinstance(much, bytes)
                if guest.end is None and guest.symbols:
                    at = guest.symbols["mixed"]
                    guest.memory[at : at + 8] = much
            elif what == "store":
                assert isinstance(much, bytes)
                machine.hypervisor.write_store("/test", much)
            elif guest.end is None:
                resident = machine.resident(guest)
                assert resident is not None
                machine.hypervisor.adjust(resident.domain, weight=int(much))
        except pyhv.PyhvError:
            pass


def texts(guests: list[pyhv.Guest]) -> list[str]:
    return [guest.console.text for guest in guests]


@pytest.mark.promise("T-15")
@given(PROGRAMS)
@example(
    [
        (("inside", 14), ("type", b"\x00")),
        (("inside", 26), ("reach", b"")),
        (("steps", 1), ("type", b"\x7f")),
        (("exits", 37), ("pass", 0)),
        (("exits", 16), ("unpause", b"")),
    ]
)
@settings(max_examples=25)
def test_a_replay_is_the_recorded_run(program: list[Step]) -> None:
    with TemporaryDirectory() as folder:
        path = Path(folder) / "run.rec"
        digest = Digest()
        with pyhv.Machine(memory="24M", virtual_time=True, record=path) as machine:
            machine.on("exit", digest.exit)
            player = Player(machine)
            for way, doing in program:
                player.go(way, partial(player.do, doing), doing[0] in INSIDE)
            machine.run(seconds=0.003)
            for guest in machine.guests:
                guest.offer(b"q")
            machine.run(seconds=0.01)
            told, end = texts(player.guests), machine.position
        for tuned in (True, False):
            again, guests = Digest(), []
            with pyhv.Replay(path, verify=True, tuned=tuned) as replay:
                guests += replay.machine.guests
                replay.on_guest = guests.append
                replay.machine.on("exit", again.exit)
                assert replay.run() is None
                assert replay.finish is not None
                assert replay.compared > 1
                assert replay.machine.position == end
                assert replay.machine.audit() == []
            assert again.summary() == digest.summary()
            assert texts(guests) == told
