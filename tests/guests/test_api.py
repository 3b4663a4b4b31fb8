# SPDX-License-Identifier: GPL-2.0-only
"""`import pyhv` as a person uses it, on small guests."""

import gc
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import pyhv
from pyhv.api.listening import HypercallMade
from pyhv.cpu.exits import ExitRecord
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage
from pyhv.observe.digest import Digest
from pyhv.until import Outcome, Reaches


@pytest.fixture
def machine() -> Iterator[pyhv.Machine]:
    with pyhv.Machine(memory="64M", virtual_time=True) as made:
        yield made


def test_a_guest_from_its_name_to_its_end(machine: pyhv.Machine) -> None:
    guest = machine.boot("hello")
    assert (guest.name, guest.domid, guest.state) == ("hello", 1, "r-----")
    assert machine.domains == {"hello": guest}
    found = guest.expect(r"memory: (\d+) pages")
    assert found.groups == ("4096",)
    assert "ABI: xen-3.0-x86_64" in found.before
    end = guest.wait()
    assert (end.reason, end.cause) == ("poweroff", None)
    assert guest.end is end
    assert guest.state == "---s--"
    assert "SUCCESS" in guest.console.text
    assert machine.domains == {}
    assert machine.audit() == []
    assert repr(guest) == "<Guest hello (domain 1) ---s-->"


def test_every_way_to_name_an_image(machine: pyhv.Machine, tmp_path: Path) -> None:
    path = tmp_path / "mine.img"
    path.write_bytes(build_builtin("hello"))
    images: list[str | Path | bytes | KernelImage] = [
        path,
        str(path),
        path.read_bytes(),
        load_image(path, "mine"),
        "hello",
    ]
    guests = [machine.boot(image, memory="4M") for image in images]
    assert [guest.name for guest in guests] == ["mine", "mine-2", "guest", "mine-3", "hello"]
    assert machine.run() is Outcome.ENDED
    assert all(guest.wait().reason == "poweroff" for guest in guests)


def test_what_was_not_printed_is_an_error_with_the_consoles_end(machine: pyhv.Machine) -> None:
    guest = machine.boot("hello")
    with pytest.raises(pyhv.GuestFailed, match=r"(?s)hello has not printed 'never': it has ended .*SUCCESS"):
        guest.expect("never")
    with pytest.raises(pyhv.PyhvError, match="is no regular expression"):
        guest.expect("(")


def test_verbs_and_letters(machine: pyhv.Machine) -> None:
    guest = machine.create("ticker")
    assert guest.state == "--p---"
    assert machine.run(seconds=1) is Outcome.DEADLOCK
    guest.unpause()
    machine.run(until="tick")
    assert "tick" in guest.console.text
    guest.pause()
    assert "p" in guest.state
    guest.destroy()
    assert guest.end is not None
    assert guest.end.reason == "destroyed"
    with pytest.raises(pyhv.PyhvError, match="has ended, so it cannot be told to pause"):
        guest.pause()
    with pytest.raises(pyhv.GuestFailed, match="nothing left to look at"):
        _ = guest.memory


def test_a_look_inside(machine: pyhv.Machine) -> None:
    guest = machine.boot("hello")
    machine.run(exits=5)
    registers, memory = guest.registers, guest.memory
    assert memory[registers.rip] == memory[registers.rip : registers.rip + 1][0]
    start = guest.symbols["_start"]
    image = load_image(build_builtin("hello")).segments[0]
    assert memory[start : start + 16] == image.data[start - image.vaddr : start - image.vaddr + 16]
    memory[start : start + 4] = b"pyhv"
    assert memory.text(start, 4) == "pyhv"
    with pytest.raises(
        pyhv.NotMapped, match=r"hello: 0x123456789000 is not mapped: entry 36 of its L4 table"
    ):
        memory.u64(0x1234_5678_9000)
    with pytest.raises(LookupError, match=r"L[12] table"):
        memory.read(start, 1 << 24)
    assert sum(guest.hypercalls.values()) == 5
    assert [processor.number for processor in guest.vcpus] == [0]


def test_a_32_bit_guest_inside(machine: pyhv.Machine) -> None:
    guest = machine.boot("hello32")
    machine.run(exits=3)
    assert guest.memory.read(guest.registers.rip, 2)
    with pytest.raises(pyhv.NotMapped, match=r"L[23] table"):
        guest.memory.u32(0x9000_0000)


def test_events(machine: pyhv.Machine) -> None:
    calls: list[HypercallMade] = []
    exits: list[ExitRecord] = []
    ends: list[tuple[str, str]] = []
    stop = machine.on("hypercall", calls.append)
    machine.on("exit", exits.append)
    machine.on("end", lambda guest, end: ends.append((guest.name, end.reason)))
    machine.boot("hello").wait()
    assert ends == [("hello", "poweroff")]
    assert {call.name for call in calls} >= {"sched_op", "event_channel_op"}
    assert all(call.guest.name == "hello" and len(call.arguments) == 5 for call in calls)
    assert len(exits) >= len(calls)
    stop()
    before = len(calls)
    machine.boot("hello").wait()
    assert len(calls) == before
    with pytest.raises(pyhv.PyhvError, match="no event 'noise'"):
        machine.on("noise", print)  # type: ignore[call-overload]


def test_listening_goes_on_when_a_machine_is_put_back(machine: pyhv.Machine) -> None:
    guest, calls = machine.boot("ticker"), list[HypercallMade]()
    machine.on("hypercall", calls.append)
    guest.expect("tick 2")
    before, heard = machine.snapshot(), len(calls)
    guest.wait()
    rest = calls[heard:]
    machine.revert(before)
    guest.wait()
    assert calls[heard + len(rest) :] == rest


def pieces(machine: pyhv.Machine) -> int:
    """Run a machine to its end with many interruptions, and count them."""
    number = 0
    while (
        machine.run(**({"exits": 1 + number % 3} if number % 2 else {"seconds": 3e-6})) is not Outcome.ENDED
    ):
        number += 1
        if number % 50 == 0:
            machine.run(seconds=0.5)
    return number


@pytest.mark.promise("T-14")
@pytest.mark.parametrize("names", [("ticker", "usermode"), ("smp32", "debug"), ("ping", "pong", "code")])
def test_running_in_pieces_is_running(names: tuple[str, ...]) -> None:
    def history(run: Callable[[pyhv.Machine], object]) -> tuple[str, str]:
        with pyhv.Machine(memory="64M", virtual_time=True) as machine:
            digest = Digest()
            machine.hypervisor.observe(digest)
            guests = [machine.boot(name, memory="4M", vcpus=2) for name in names]
            machine.introduce_peers()
            run(machine)
            return digest.summary(), "".join(guest.console.text for guest in guests)

    whole = history(pyhv.Machine.run)
    assert "SUCCESS" in whole[1]
    assert history(lambda machine: print(pieces(machine))) == whole


def test_what_is_not_possible(machine: pyhv.Machine) -> None:
    with pytest.raises(pyhv.PyhvError, match="no amount of memory"):
        machine.boot("hello", memory="much")
    with pytest.raises(pyhv.PyhvError, match="no such file"):
        machine.boot("nobody")
    with pytest.raises(pyhv.PyhvError):
        machine.boot(b"no kernel")
    assert machine.domains == {}


def test_only_what_is_named_is_there() -> None:
    assert all(getattr(pyhv, name) for name in pyhv.__all__)
    with pytest.raises(AttributeError, match="no attribute 'Nothing'"):
        _ = pyhv.Nothing


# -- moments -----------------------------------------------------------------------------------------------


@pytest.mark.promise("S-3")
def test_back_to_a_moment_and_forth(machine: pyhv.Machine) -> None:
    guest = machine.boot("ticker", memory="4M")
    guest.expect("tick 2")
    before, registers, text = machine.snapshot(), guest.registers, guest.console.text
    late = machine.boot("hello", memory="4M")
    assert guest.wait().reason == "poweroff"
    first = guest.console.text
    machine.revert(before)
    assert (guest.end, guest.registers, guest.console.text) == (None, registers, text)
    assert machine.domains == {"ticker": guest}
    assert late.end is not None
    guest.expect("tick 3")
    guest.wait()
    assert guest.console.text == first
    assert machine.audit() == []


def test_a_guest_that_nobody_holds_comes_back_with_its_console(machine: pyhv.Machine) -> None:
    machine.boot("ticker", memory="4M").expect("tick 2")
    before = machine.snapshot()
    machine.run()
    gc.collect()
    assert not machine.domains
    machine.revert(before)
    guest = machine.domains["ticker"]
    guest.expect("tick 3")
    guest.wait()
    assert guest.console.text.endswith("SUCCESS\n")


@pytest.mark.promise("S-2")
def test_forks_go_their_own_ways(machine: pyhv.Machine) -> None:
    guest = machine.boot("ticker", memory="4M")
    guest.expect("tick 1")
    with machine.fork() as one, machine.fork() as other:
        mine, its = one.domains["ticker"], other.domains["ticker"]
        assert (mine.uuid, mine.console.text, mine.symbols) == (guest.uuid, guest.console.text, guest.symbols)
        mine.memory[guest.symbols["_start"] : guest.symbols["_start"] + 4] = b"mine"
        assert its.memory.read(guest.symbols["_start"], 4) != b"mine"
        its.destroy()
        assert other.domains == {}
        assert mine.wait().reason == guest.wait().reason == "poweroff"
        assert mine.console.text == guest.console.text
        assert one.audit() == other.audit() == []


def test_a_file_is_a_machine(machine: pyhv.Machine, tmp_path: Path) -> None:
    path = tmp_path / "two.snap"
    machine.boot("ping", memory="4M")
    machine.boot("pong", memory="4M")
    machine.introduce_peers()
    machine.run(exits=30)
    machine.snapshot().save(path)
    machine.run()
    with pyhv.load(path) as again:
        assert list(again.domains) == ["ping", "pong"]
        ping = again.domains["ping"]
        assert again.run() is Outcome.ENDED
        assert "SUCCESS" in ping.console.text
        assert again.time == machine.time


def test_what_is_no_snapshot(machine: pyhv.Machine, tmp_path: Path) -> None:
    path = tmp_path / "x"
    with pytest.raises(pyhv.PyhvError, match=rf"^{path}: cannot be read"):
        pyhv.load(path)
    path.write_bytes(b"junk")
    with pytest.raises(pyhv.PyhvError, match=rf"^{path}: is no snapshot of pyhv"):
        pyhv.load(path)
    machine.boot("hello")
    snapshot = machine.snapshot()
    hollow = pyhv.Snapshot(snapshot.image, snapshot.state, {}, snapshot.about)
    with pytest.raises(pyhv.PyhvError, match="notes should not have, or lacks"):
        machine.revert(hollow)
    hollow.save(path)
    with pytest.raises(pyhv.PyhvError, match=rf"^{path}: .*notes"):
        pyhv.load(path)


@pytest.mark.parametrize("tuned", [True, False])
@pytest.mark.parametrize(("name", "symbol", "times"), [("ticker", "put_dec", 9), ("hello32", "putc", 30)])
def test_to_a_symbol_again_and_again(name: str, symbol: str, times: int, tuned: bool) -> None:
    with pyhv.Machine(memory="64M", virtual_time=True, tuned=tuned) as machine:
        guest = machine.boot(name, memory="4M")
        other = machine.boot("usermode", memory="4M")
        for _ in range(times):
            here = Reaches({guest.domid: [guest.symbols[symbol]]})  # the other one has that symbol too
            assert machine.run(until=here) is Outcome.STOPPED
            assert here.reached == (guest.domid, guest.symbols[symbol])
            assert guest.registers.rip == guest.symbols[symbol]
        assert guest.end is None
        machine.run(exits=3)
        end = guest.wait()
        assert end.reason == other.wait().reason == "poweroff"
        assert "SUCCESS" in guest.console.text
        assert machine.audit() == []


def test_a_symbol_that_is_never_reached(machine: pyhv.Machine) -> None:
    guest = machine.boot("hello", memory="4M")
    assert machine.run(until="finish_failure") is Outcome.ENDED
    assert "SUCCESS" in guest.console.text


def test_a_symbol_counts_each_time_it_is_executed(machine: pyhv.Machine) -> None:
    """As many lines as stops at what prints one."""
    guest = machine.boot("hello", memory="4M")
    stops = 0
    while machine.run(until="puts") is Outcome.STOPPED:
        stops += 1
    assert stops > 5
    with pyhv.Machine(memory="64M", virtual_time=True) as again:
        unobserved = again.boot("hello", memory="4M")
        again.run()
        assert unobserved.console.text == guest.console.text
