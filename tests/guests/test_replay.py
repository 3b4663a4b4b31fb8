# SPDX-License-Identifier: GPL-2.0-only
"""Recording and replaying: what comes in, what is refused, and what is said of a run that is another."""

import inspect
from collections.abc import Callable
from pathlib import Path

import pytest
from listening_guest import listener

import pyhv
from pyhv.guests.build import build_builtin
from pyhv.machine import Machine as Hypervisor
from pyhv.observe.digest import Digest
from pyhv.replay import commands, log
from pyhv.replay.entries import Checkpoint, Taken, understood
from pyhv.until import Outcome


def digested(machine: pyhv.Machine) -> Digest:
    digest = Digest()
    machine.on("exit", digest.exit)
    return digest


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.rec"


def replayed(path: Path, *, tuned: bool = True) -> tuple[str, list[str]]:
    """The digest of a whole replay that was verified, and what its guests have printed."""
    with pyhv.Replay(path, verify=True, tuned=tuned) as replay:
        guests = list(replay.machine.guests)
        replay.on_guest = guests.append
        digest = digested(replay.machine)
        assert replay.run() is None
        assert replay.compared > 0
        return digest.summary(), [guest.console.text for guest in guests]


def recorded(path: Path, act: Callable[[pyhv.Machine], None]) -> tuple[str, list[str]]:
    """The digest of a run that is recorded, and what its guests have printed."""
    guests: list[pyhv.Guest] = []
    with pyhv.Machine(memory="48M", virtual_time=True, record=path) as machine:
        digest = digested(machine)
        boot = machine.boot
        machine.boot = lambda *words, **options: (guests.append(boot(*words, **options)), guests[-1])[1]  # type: ignore[method-assign]
        act(machine)
    return digest.summary(), [guest.console.text for guest in guests]


def test_every_verb_can_be_recorded() -> None:
    marked = {
        name: inspect.signature(method)
        for name, method in inspect.getmembers(Hypervisor, inspect.isfunction)
        if "entered" in method.__code__.co_name
    }
    assert set(marked) == set(commands.VERBS)
    for verb, forms in commands._VERBS.items():
        said = set(marked[verb].parameters) - {"self", *commands._DROPPED}
        assert set(forms) == said, verb


def twice_with_a_break(machine: pyhv.Machine) -> None:
    guest = machine.boot(listener(), memory="4M")
    machine.run(seconds=0.001)
    guest.offer(b"abc")
    assert machine.run(exits=5) is Outcome.STOPPED
    assert machine.position.over is False, "in the middle of a turn"
    guest.offer(b"def")
    machine.run(seconds=0.0001)
    if machine.recording is not None:
        machine.recording.check()
    guest.send("q")
    machine.run()


def boots_another_when_one_ends(machine: pyhv.Machine) -> None:
    left = 2

    def again(_guest: pyhv.Guest, _end: object) -> None:
        nonlocal left
        left -= 1
        if left >= 0:
            machine.boot(listener(), memory="4M", name=f"heir-{left}").offer(b"x")

    machine.on("end", again)
    machine.boot("hello", memory="4M")
    machine.boot("ticker", memory="4M")
    machine.run(seconds=0.1)


def stops_at_a_symbol(machine: pyhv.Machine) -> None:
    machine.boot(listener(), memory="4M")
    for _ in range(5):
        machine.run("mix", seconds=0.01)
    machine.run(seconds=0.002)


def has_refusals(machine: pyhv.Machine) -> None:
    with pytest.raises(pyhv.PyhvError):
        machine.boot(listener(), memory="400M")
    guest = machine.boot(listener(), memory="4M")
    with pytest.raises(pyhv.PyhvError):
        guest.unpause()
    with pytest.raises(pyhv.PyhvError):
        machine.hypervisor.write_store("no path", b"")
    machine.run(seconds=0.001)
    guest.destroy()
    machine.boot(listener(), memory="4M")
    machine.run(seconds=0.001)


def couples(machine: pyhv.Machine) -> None:
    ping, pong = machine.boot("ping", memory="8M"), machine.boot("pong", memory="8M")
    other = machine.boot("ticker", memory="8M")
    machine.introduce_peers((ping, pong))
    machine.hypervisor.write_store("/tool/said", b"by domain 0")
    machine.run(seconds=0.005)
    other.shutdown()
    other.pause()
    machine.run(seconds=0.01)
    machine.hypervisor.pass_time(40_000_000)
    other.unpause()
    other.change_uuid("00000000-1111-2222-3333-444444444444")
    machine.run()


def is_asked_in_an_exit(machine: pyhv.Machine) -> None:
    guest = machine.boot(listener(), memory="4M")
    count = 0

    def now_and_then(_record: object) -> None:
        nonlocal count
        count += 1
        if count in (9, 10, 20, 31):
            guest.offer(b"in")
        if count == 40:
            guest.pause()

    machine.on("exit", now_and_then)
    machine.run(seconds=0.004)
    guest.unpause()
    machine.run(seconds=0.004)


def jumps(machine: pyhv.Machine) -> None:
    """The loop of whoever makes it himself."""
    guest = machine.boot("ticker", memory="4M")
    for number in range(30):
        if number == 7:
            guest.offer(b"while nobody runs")
            machine.hypervisor.advance_to(machine.hypervisor.now() + 3_000_000)
        if not machine.step():
            due = machine.hypervisor.next_deadline()
            if due is None:
                return
            machine.hypervisor.advance_to(due + (1_000_000 if number == 20 else 0))


PROGRAMS = [
    twice_with_a_break, boots_another_when_one_ends, stops_at_a_symbol, has_refusals, couples,
    is_asked_in_an_exit, jumps,
]  # fmt: skip


@pytest.mark.promise("T-15")
@pytest.mark.parametrize("tuned", [True, False], ids=["tuned", "plain"])
@pytest.mark.parametrize("program", PROGRAMS, ids=lambda program: program.__name__)
def test_it_is_the_same_run(path: Path, program: Callable[[pyhv.Machine], None], tuned: bool) -> None:
    run = recorded(path, program)
    assert replayed(path, tuned=tuned) == run


def test_recording_changes_nothing(path: Path) -> None:
    with pyhv.Machine(memory="48M", virtual_time=True) as machine:
        digest = digested(machine)
        twice_with_a_break(machine)
    assert recorded(path, twice_with_a_break)[0] == digest.summary()


def test_a_replay_stops_where_it_is_told(path: Path) -> None:
    recorded(path, twice_with_a_break)
    with pyhv.Replay(path) as replay:
        assert replay.run(to=0.0011) is Outcome.TIMEOUT
        assert 0.00109 < replay.machine.time <= 0.0011, "up to the block of code that lasts longer"
        exits = replay.machine.position.exits + 2
        assert replay.run(to_exit=exits) is Outcome.STOPPED
        assert replay.machine.position.exits == exits
        assert replay.finish is None
        assert replay.run() is None
        assert replay.finish is not None


def test_it_goes_on_from_where_guests_were(path: Path) -> None:
    """A recording that begins later begins with a snapshot."""
    with pyhv.Machine(memory="16M", virtual_time=True) as machine:
        guest = machine.boot(listener(), memory="4M")
        machine.run(seconds=0.002)
        machine.run(lambda: machine.position.over)
        machine.record(path)
        digest = digested(machine)
        guest.send("abcq")
        machine.run()
        text = guest.console.text
    assert replayed(path) == (digest.summary(), [text])
    beside = path.with_name("run.rec.snap")
    whole = beside.read_bytes()
    beside.write_bytes(whole[:-1] + b"?")
    with pytest.raises(
        pyhv.ReplayError, match=r"run\.rec: begins with the snapshot .*, which has changed since"
    ):
        pyhv.Replay(path)
    beside.unlink()
    with pytest.raises(pyhv.ReplayError, match="cannot be read"):
        pyhv.Replay(path)


def test_a_recording_is_kept_in_memory_until_it_is_wanted(path: Path) -> None:
    with pyhv.Machine(memory="16M", virtual_time=True) as machine:
        recording = machine.record()
        with pytest.raises(pyhv.ReplayError, match="already"):
            machine.record(path)
        guest = machine.boot(listener(), memory="4M")
        guest.send("aq")
        machine.run()
        recording.close()
        recording.save(path)
    assert replayed(path)[1] == [guest.console.text]


def test_it_ends_when_the_machine_is_put_back(path: Path) -> None:
    with pyhv.Machine(memory="16M", virtual_time=True) as machine:
        machine.boot(listener(), memory="4M")
        moment = machine.snapshot()
        recording = machine.record(path)
        machine.run(seconds=0.001)
        machine.revert(moment)
        assert not recording.active
        machine.record(path)
        machine.run(seconds=0.001)
    assert replayed(path)


def test_a_recording_without_an_end_is_replayed_as_far_as_it_goes(path: Path) -> None:
    recorded(path, couples)
    data = path.read_bytes()
    for end in (len(data) - 1, len(data) * 2 // 3, len(data) // 2):
        path.write_bytes(data[:end])
        with pyhv.Replay(path, verify=True) as replay:
            assert replay.recording.cut
            assert replay.run() is None
            assert replay.finish is None
            assert replay.machine.audit() == []


# -- what is said of a run that is another ----------------------------------------------------------------


def test_what_differs_first_is_named(path: Path) -> None:
    recorded(path, twice_with_a_break)
    with pyhv.Replay(path, verify=True) as replay:
        replay.run(to=0.0008)
        (guest,) = replay.machine.guests
        at = guest.symbols["mixed"]
        replay.machine.hypervisor.physical.write(guest.memory.machine_address(at), b"another!")
        guest.vcpus[0]._vcpu.runstate.times[0] += 1
        with pytest.raises(pyhv.Diverged) as diverged:
            replay.run()
    said = str(diverged.value)
    assert said.startswith(f"{path}: the run differs at checkpoint 2, at 0.0")
    assert "domains.0.vcpus.0.runstate.times is [" in said
    assert "and in the recording is [" in said
    assert diverged.value.exit_code == 10


def test_memory_is_compared_slice_by_slice(path: Path) -> None:
    def check_often(machine: pyhv.Machine) -> None:
        machine.boot(listener(), memory="4M")
        for _ in range(70):
            machine.run(seconds=0.0002)
            machine.recording.check()  # type: ignore[union-attr]

    recorded(path, check_often)
    with pyhv.Replay(path, verify=True) as replay:
        (guest,) = replay.machine.guests
        unused = guest.memory.machine_address(guest.registers.rsp & ~0xFFF)
        replay.machine.hypervisor.physical.write(unused, b"x")
        with pytest.raises(pyhv.Diverged, match=r"memory \(slice \d+\) has the digest"):
            replay.run()


def test_a_run_that_does_not_come_by(path: Path) -> None:
    recorded(path, twice_with_a_break)
    with pyhv.Replay(path) as replay:
        replay.run(to=0.0005)
        replay.machine.guests[0].offer(b"something else")
        with pytest.raises(pyhv.Diverged, match=r"has come to|is answered|nothing will ever happen"):
            replay.run()


@pytest.mark.promise("T-16")
def test_an_image_that_has_changed_or_is_missing(tmp_path: Path, path: Path) -> None:
    kernel, ramdisk = tmp_path / "kernel", tmp_path / "ramdisk"
    kernel.write_bytes(build_builtin("hello"))
    ramdisk.write_bytes(b"some ramdisk")
    with pyhv.Machine(memory="16M", virtual_time=True, record=path) as machine:
        machine.boot(kernel, memory="8M", ramdisk=ramdisk)
        machine.run()
    assert "SUCCESS" in replayed(path)[1][0]
    ramdisk.write_bytes(b"another ramdisk")
    with pytest.raises(pyhv.ReplayError, match=r"the ramdisk of kernel \(.*/ramdisk\) has changed since"):
        pyhv.Replay(path)
    kernel.write_bytes(build_builtin("ticker"))
    with pytest.raises(pyhv.ReplayError, match=r"the kernel of kernel \(.*/kernel\) has changed since"):
        pyhv.Replay(path)
    kernel.unlink()
    with pytest.raises(pyhv.ReplayError, match=r"cannot be had: .*/kernel: cannot be read \(No such file"):
        pyhv.Replay(path)


def test_large_images_that_came_as_bytes_are_given_again(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhv.api.recording.MOST_KEPT", 100)
    with pyhv.Machine(memory="16M", virtual_time=True, record=path) as machine:
        machine.boot(listener(), memory="4M").send("q")
        machine.run()
    with pytest.raises(pyhv.ReplayError, match="give it as images=") as missing:
        pyhv.Replay(path)
    key = str(missing.value).split("images={'")[1].split("'")[0]
    with pyhv.Replay(path, images={key: listener()}) as replay:
        assert replay.run() is None
    with pytest.raises(pyhv.ReplayError, match="has changed"):
        pyhv.Replay(path, images={key: build_builtin("hello")})


def test_what_cannot_be_recorded_is_refused(path: Path) -> None:
    with pyhv.Machine(memory="16M", virtual_time=True, record=path) as machine:
        guest = machine.boot("hello", memory="8M")
        machine.on("console_io", lambda guest, _text: guest.pause())
        if guest.end is None:
            with (
                pytest.raises(pyhv.PyhvError, match="cannot be recorded there"),
                machine.hypervisor.door.closed("it"),
            ):
                guest.pause()
        machine.run(seconds=0.00001)
        if not machine.position.over:
            with pytest.raises(pyhv.ReplayError, match="already"):
                machine.record()


def test_what_comes_in_is_written_at_once(path: Path) -> None:
    with pyhv.Machine(memory="16M", virtual_time=True, record=path) as machine:
        guest = machine.boot(listener(), memory="4M")
        machine.run(seconds=0.001)
        guest.offer(b"now")
        assert machine.recording is not None
        assert machine.recording.size == path.stat().st_size
        entries = understood(log.read(path)).entries
        last = entries[-1]
        assert isinstance(last, Taken)
        assert (last.verb, last.arguments) == ("input", [1, b"now"])
        assert any(isinstance(entry, Checkpoint) for entry in entries)
