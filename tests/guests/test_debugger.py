# SPDX-License-Identifier: GPL-2.0-only
"""A debugger's stops: exact, seen by no guest, and no change of a run in virtual time."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

import pyhv
from pyhv.debugger import Debugger, Reason, Stop
from pyhv.guests.build import build
from pyhv.observe.digest import Digest
from pyhv.traps.debug import Observed

MOST: int = 1000
"""Stops that a test makes at most."""


@contextmanager
def booted(name: str | bytes, *, tuned: bool, virtual: bool = True, vcpus: int = 1) -> Iterator[pyhv.Guest]:
    with pyhv.Machine(memory="64M", virtual_time=virtual, tuned=tuned) as machine:
        yield machine.boot(name, vcpus=vcpus, memory="16M")


def machine_of(guest: pyhv.Guest) -> pyhv.Machine:
    machine = guest._host
    assert isinstance(machine, pyhv.Machine)
    return machine


def history(guest: pyhv.Guest) -> Digest:
    digest = Digest()
    machine_of(guest).on("exit", digest.exit)
    return digest


def debug(guest: pyhv.Guest) -> Debugger:
    debugger = machine_of(guest).hypervisor.debug()
    debugger.debugged.add(guest.domid)
    return debugger


def run(guest: pyhv.Guest, debugger: Debugger) -> Stop | None:
    """Run to the next stop; None: the guest has ended."""
    machine_of(guest).run(seconds=20)
    assert guest.end is not None or debugger.stop is not None, "it has neither stopped nor ended"
    return None if debugger.stop is None or debugger.stop.reason is Reason.END else debugger.stop


def undisturbed(name: str | bytes, *, tuned: bool, vcpus: int = 1) -> tuple[str, str]:
    with booted(name, tuned=tuned, vcpus=vcpus) as guest:
        digest = history(guest)
        machine_of(guest).run(seconds=20)
        return digest.summary(), guest.console.text


def visited(
    name: str | bytes, addresses: Iterable[int] | None, *, tuned: bool, steps: int = 0, vcpus: int = 1
) -> tuple[str, str, int]:
    """Stop at addresses (None: at all symbols), take steps from each; what has come of the run, and stops."""
    with booted(name, tuned=tuned, vcpus=vcpus) as guest:
        digest, debugger = history(guest), debug(guest)
        wanted = sorted(guest.symbols.values())[::3][:250] if addresses is None else list(addresses)
        debugger.set_breakpoints(guest.domid, wanted)
        stops = 0
        while stops < MOST and (stop := run(guest, debugger)) is not None:
            assert stop.reason is Reason.BREAKPOINT
            assert debugger.linear_rip(stop.vcpu) in wanted
            stops += 1
            for _ in range(steps):
                debugger.go(stepping={stop.vcpu: range(0)})
                if run(guest, debugger) is None:
                    break
            else:
                debugger.go(passing=[stop.vcpu])
        if guest.end is None:
            debugger.set_breakpoints(guest.domid, ())
            debugger.go()
            run(guest, debugger)
        return digest.summary(), guest.console.text, stops


@pytest.mark.promise("T-19")
@pytest.mark.parametrize("tuned", [True, False], ids=["tuned", "plain"])
@pytest.mark.parametrize("steps", [0, 3])
@pytest.mark.parametrize("name", ["hello", "ticker", "usermode", "traps32", "events32"])
def test_a_run_that_is_looked_at_is_the_same_run(name: str, steps: int, tuned: bool) -> None:
    digest, text, stops = visited(name, None, tuned=tuned, steps=steps)
    assert (digest, text) == undisturbed(name, tuned=tuned)
    assert stops > 100
    assert "SUCCESS" in text


def test_several_vcpus() -> None:
    digest, text, stops = visited("smp32", None, tuned=True, steps=1, vcpus=2)
    assert (digest, text) == undisturbed("smp32", tuned=True, vcpus=2)
    assert stops > 100
    assert "SUCCESS" in text


WRITER = """
.include "xen.inc"
.include "kernel.inc"
.text
_start:
    kernel_entry
    mov ecx, 3
again:
    mov rax, [cell]
loaded:
    inc rax
store:
    mov [cell], rax
stored:
    mov rbx, [other]
    push rcx
    pop rcx
    dec ecx
    jnz again
    add dword ptr [cell + 4], 1
added:
    succeed
.data
.balign 8
cell:   .quad 0
other:  .quad 0
"""


def built(text: str, folder: Path) -> bytes:
    source = folder / "source.S"
    source.write_text(text)
    return build(source)


@pytest.fixture
def writer(tmp_path: Path) -> bytes:
    return built(WRITER, tmp_path)


@pytest.mark.parametrize("tuned", [True, False], ids=["tuned", "plain"])
@pytest.mark.parametrize(
    ("reads", "writes", "expected"),
    [
        (False, True, ["stored"] * 3 + ["added"]),
        (True, False, ["loaded"] * 3 + ["added"]),
        (True, True, ["loaded", "stored"] * 3 + ["added"]),
    ],
)
def test_data(writer: bytes, reads: bool, writes: bool, expected: list[str], tuned: bool) -> None:
    """A stop comes behind the instruction that has touched the data, and nothing else of the run changes."""
    with booted(writer, tuned=tuned) as guest:
        digest, debugger = history(guest), debug(guest)
        after = {guest.symbols[label]: label for label in ("loaded", "stored", "added")}
        wanted = Observed(guest.symbols["cell"], 8, reads, writes)
        debugger.set_data(guest.domid, [wanted])
        seen = []
        while (stop := run(guest, debugger)) is not None:
            assert (stop.reason, stop.data) == (Reason.DATA, wanted)
            seen.append(after[debugger.linear_rip(stop.vcpu)])
            debugger.go()
        assert seen == expected
        assert (digest.summary(), guest.console.text) == undisturbed(writer, tuned=tuned)


def test_real_time() -> None:
    with booted("hello", tuned=True, virtual=False) as guest:
        debugger = debug(guest)
        debugger.set_breakpoints(guest.domid, [guest.symbols["putc"]])
        stop = run(guest, debugger)
        assert stop is not None
        assert debugger.linear_rip(stop.vcpu) == guest.symbols["putc"]
        debugger.go(stepping={stop.vcpu: range(0)})
        stop = run(guest, debugger)
        assert stop is not None
        assert stop.reason is Reason.STEP
        assert debugger.linear_rip(stop.vcpu) > guest.symbols["putc"]
        debugger.set_breakpoints(guest.domid, [])
        debugger.go()
        assert run(guest, debugger) is None
        assert guest.console.text.endswith("SUCCESS\n")


CRASHER = """
.include "xen.inc"
.include "kernel.inc"
.text
_start:
    kernel_entry
    mov rbx, 0x1234
fatal:
    ud2
"""


def test_a_crash_is_seen_before_the_guest_is_gone(tmp_path: Path) -> None:
    with booted(built(CRASHER, tmp_path), tuned=True) as guest:
        debugger = debug(guest)
        stop = run(guest, debugger)
        assert stop is not None
        assert stop.reason is Reason.CRASH
        assert (guest.registers.rip, guest.registers.rbx) == (guest.symbols["fatal"], 0x1234)
        debugger.go()
        assert run(guest, debugger) is None
        assert guest.end is not None
        assert guest.end.reason == "crash"


def test_one_debugger_at_a_time_and_nothing_stays_of_it() -> None:
    with booted("hello", tuned=True) as guest:
        hypervisor = machine_of(guest).hypervisor
        debug(guest).set_breakpoints(guest.domid, [guest.symbols["putc"]])
        with pytest.raises(pyhv.PyhvError, match="a debugger already"):
            hypervisor.debug()
        assert machine_of(guest).run(seconds=20).name == "STOPPED"
        hypervisor.end_debugging()
        assert machine_of(guest).run(seconds=20).name == "ENDED"
        assert guest.console.text.endswith("SUCCESS\n")
