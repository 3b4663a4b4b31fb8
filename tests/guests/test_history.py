# SPDX-License-Identifier: GPL-2.0-only
"""Going back: each earlier moment is what it was, and from there the run is the same again, or another."""

import random
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest
from listening_guest import listener

import pyhv
from pyhv.api import history
from pyhv.observe.digest import Digest
from pyhv.outside import Position

State = tuple[tuple[object, bytes], str]


def state(machine: pyhv.Machine) -> State:
    """What of a moment differs from all others."""
    (guest,) = machine.guests
    at = guest.symbols["mixed"]
    return (guest.registers, guest.memory[at : at + 24]), guest.console.text


def typing(machine: pyhv.Machine) -> pyhv.Guest:
    guest = machine.boot(listener(), memory="4M")
    for key in "abc":
        machine.run(seconds=0.001)
        guest.send(key)
    machine.run(seconds=0.001)
    return guest


@pytest.fixture(scope="module")
def moments() -> dict[Position, State]:
    """Every moment of the run at which an exit is over."""
    found = {}
    with pyhv.Machine(memory="16M", virtual_time=True) as machine:
        guest = machine.boot(listener(), memory="4M")
        for key in ("a", "b", "c", ""):
            end = machine.time + 0.001
            while machine.time < end and not machine.hypervisor.has_reached(round(end * 1e9)):
                exits = machine.position.exits
                machine.run(exits=1, seconds=end - machine.time)
                if machine.position.exits > exits:
                    found[machine.position] = state(machine)
            guest.send(key)
    return found


@pytest.fixture(params=[True, False], ids=["often", "seldom"])
def machine(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[pyhv.Machine]:
    """One that keeps a moment whenever it can, or hardly any."""
    monkeypatch.setattr(history, "_LEAST_NS", 0 if request.param else 10**15)
    monkeypatch.setattr(history, "_MOST_NS", 0 if request.param else 10**15)
    with pyhv.Machine(memory="16M", virtual_time=True, history=True) as made:
        yield made


@pytest.mark.promise("T-17")
def test_each_step_back_is_to_a_moment_that_was(
    machine: pyhv.Machine, moments: dict[Position, State]
) -> None:
    guest = typing(machine)
    earlier = [position for position in moments if position < machine.position]
    for wanted in reversed(earlier[-40:]):
        assert machine.step_back() == machine.position == wanted
        assert state(machine) == moments[wanted]
        assert machine.guests == [guest]
    assert machine.audit() == []


@pytest.mark.promise("T-17")
def test_the_run_goes_on_as_it_did(machine: pyhv.Machine) -> None:
    whole = Digest()
    machine.on("exit", whole.exit)
    typing(machine)
    end, last = machine.position, state(machine)
    chance = random.Random(3)
    for _ in range(6):
        for _ in range(chance.randrange(1, 5)):
            machine.step_back(chance.choice(["exit", "exit", "turn"]))
        if chance.random() < 0.5:
            machine.run(exits=3)
        machine.run_back(Position(*end)) if machine.position == end else None
        machine.run(seconds=end.seconds - machine.time)
        assert state(machine) == last
        assert machine.position.exits == end.exits
    assert whole.count > end.exits, "what is run again by the user is seen again"


@pytest.mark.promise("T-17")
def test_listeners_and_sinks_do_not_hear_again(machine: pyhv.Machine) -> None:
    seen: list[object] = []
    printed = bytearray()
    guest = typing(machine)
    guest.console.sink = sink = type("Sink", (), {"output": lambda _self, data: printed.extend(data)})()
    machine.on("exit", lambda record: seen.append(record))  # noqa: PLW0108
    before = guest.console.text
    machine.run(seconds=0.0005)
    count, told = len(seen), bytes(printed)
    for _ in range(10):
        machine.step_back()
    assert (len(seen), bytes(printed)) == (count, told)
    assert guest.console.sink is sink
    assert before.startswith(guest.console.text) or guest.console.text.startswith(before)


def test_another_input_makes_another_run(machine: pyhv.Machine) -> None:
    guest = typing(machine)
    first = guest.console.text
    machine.run_back(lambda: guest.console.text.count("\n") == 1)
    guest.send("x")
    machine.run(seconds=0.003)
    assert guest.console.text.count("\n") == 3, "what was typed later has not been"
    assert guest.console.text.splitlines()[:2] == first.splitlines()[:2]
    assert guest.console.text != first
    second, end = guest.console.text, machine.position
    machine.step_back()
    machine.run(seconds=end.seconds - machine.time)
    assert guest.console.text == second


def test_back_to_what_was_so(machine: pyhv.Machine, moments: dict[Position, State]) -> None:
    guest = typing(machine)
    at = guest.symbols["events"]
    found = machine.run_back(lambda: guest.memory.u64(at) == 1)
    wanted = [
        position for position, (registers, _) in moments.items() if registers[1][16:24] == b"\1" + bytes(7)
    ]
    assert found == wanted[-1] == machine.position
    here = machine.position
    with pytest.raises(pyhv.ReplayError, match="at no moment since"):
        machine.run_back(lambda: guest.memory.u64(at) == 77)
    assert machine.position == here
    assert state(machine) == moments[here]


def test_back_to_before_there_was_a_guest(machine: pyhv.Machine) -> None:
    guest = typing(machine)
    text, end = guest.console.text, machine.position
    assert machine.history is not None
    assert machine.run_back(machine.history.beginning) == machine.history.beginning
    assert machine.guests == []
    assert guest.end is not None
    assert guest.end.reason == "undone"
    with pytest.raises(pyhv.ReplayError, match="nothing is remembered"):
        machine.step_back()
    machine.run(seconds=end.seconds)
    assert (machine.guests, guest.console.text) == ([guest], text)


def test_back_to_before_a_guest_ended(machine: pyhv.Machine) -> None:
    guest = typing(machine)
    guest.send("q")
    guest.wait()
    while guest.end is not None:
        machine.step_back()
    assert machine.guests == [guest]
    assert guest.wait().reason == "poweroff"


def test_what_cannot_be(machine: pyhv.Machine) -> None:
    typing(machine)
    with pytest.raises(pyhv.ReplayError, match="is no moment between"):
        machine.run_back(machine.position._replace(turns=10**6))
    inside: list[type[Exception]] = []

    def back(_record: object) -> None:
        try:
            machine.step_back()
        except pyhv.PyhvError as error:
            inside.append(type(error))

    cancel = machine.on("exit", back)
    machine.run(exits=1)
    cancel()
    assert inside == [pyhv.ReplayError]
    with (
        pyhv.Machine(memory="16M", virtual_time=True) as other,
        pytest.raises(pyhv.PyhvError, match="history"),
    ):
        other.step_back()
    with pyhv.Machine(memory="16M") as other, pytest.raises(pyhv.PyhvError, match="time is counted"):
        other.keep_history()


def test_moments_are_kept_within_bounds(monkeypatch: pytest.MonkeyPatch) -> None:
    """The older, the fewer; and it is still possible to go back to any."""
    monkeypatch.setattr(history, "_LEAST_NS", 0)
    monkeypatch.setattr(history, "_MOST_NS", 0)
    monkeypatch.setattr(history, "MOST_KEPT", 10)
    with pyhv.Machine(memory="16M", virtual_time=True, history=True) as machine:
        typing(machine)
        assert machine.history is not None
        ticks = [position.ticks for position in machine.history.kept]
        assert len(ticks) == 10
        assert ticks == sorted(ticks)
        gaps = [later - earlier for earlier, later in pairwise(ticks)]
        assert max(gaps[:4]) > max(gaps[-4:])
        machine.run_back(lambda: machine.position.exits == 30)
        assert machine.position.exits == 30
    monkeypatch.setattr(history, "MOST_KEPT", 1000)
    with pyhv.Machine(memory="16M", virtual_time=True) as machine:
        kept = machine.keep_history(megabytes=1)
        typing(machine)
        assert len(kept.kept) == 3 or kept._bytes() <= 1 << 20


def test_a_recording_ends_where_the_machine_goes_back(machine: pyhv.Machine, tmp_path: Path) -> None:
    recording = machine.record(tmp_path / "run.rec")
    typing(machine)
    machine.step_back()
    assert not recording.active
    with pyhv.Replay(tmp_path / "run.rec", verify=True) as replay:
        assert replay.run() is None


@pytest.mark.promise("T-17")
@pytest.mark.parametrize("tuned", [True, False], ids=["tuned", "plain"])
def test_who_wrote(tuned: bool) -> None:
    """The instruction behind a symbol of the guest, at the moment at which the bytes became what they are."""
    with pyhv.Machine(memory="16M", virtual_time=True, history=True, tuned=tuned) as machine:
        guest = typing(machine)
        here, was = machine.position, state(machine)
        for name, writer in (("events", "typed"), ("ticks", "tick"), ("mixed", "mix")):
            at = guest.symbols[name]
            value = guest.memory.u64(at)
            found = guest.who_wrote(at)
            assert found is not None, name
            assert (found.vcpu, found.symbol and found.symbol.split("+")[0]) == (0, writer)
            assert guest.symbols[writer] <= found.rip < guest.symbols[writer] + 64
            assert found.position < here
            assert (machine.position, state(machine)) == (here, was), "the machine is where it was"
            machine.run_back(lambda at=at, value=value: guest.memory.u64(at) != value)  # type: ignore[misc]
            assert machine.position < found.position
            machine.run(seconds=here.seconds - machine.time)
        assert guest.who_wrote(guest.symbols["_start"]) is None
        at = guest.symbols["events"]
        guest.memory[at : at + 8] = bytes(8)
        assert guest.who_wrote(at) is not None, "what comes in from outside is no guest's store"
