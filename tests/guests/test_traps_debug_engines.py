# SPDX-License-Identifier: GPL-2.0-only
"""Breakpoints that an engine meets by itself: as one that takes steps alone meets them; and the cost."""

import random
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from test_traps_debug import ACCESS, BS, CODE, EXECUTE, FREE, IDLE, WRITE, arm, disarm

from pyhv.cpu import debugunit, decode
from pyhv.cpu import vmcb as v
from pyhv.cpu.assembler import assemble
from pyhv.cpu.exits import ExitKind
from pyhv.cpu.tuning.gate import tuning
from pyhv.testing import guest_machine
from pyhv.testing.compat_machine import CODE3, paused32, with_base
from pyhv.testing.guest_machine import Paused, paused
from pyhv.testing.vectors import DB, RF, TF

DATA = FREE + 64
CF_ZF = 0x41
"""The other condition bits are undefined behind BTS."""
pytestmark = pytest.mark.skipif(not tuning().active, reason="the engine cannot be tuned here")


@contextmanager
def guest_of(how: str) -> Iterator[Paused]:
    """A paused guest with handlers, that meets breakpoints as a tuned engine, by hooks, or by steps."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(guest_machine, "TUNED", how == "tuned")
        if how == "steps":
            patch.setattr("pyhv.cpu.engine.native_hook", lambda: None)
        with paused() as made:
            made.handlers()
            yield made


@pytest.fixture(params=["tuned", "hooks"])
def guest(request: pytest.FixtureRequest) -> Iterator[Paused]:
    with guest_of(request.param) as made:
        yield made


def exits(guest: Paused) -> int:
    """Exceptions so far, steps among them."""
    return guest.dispatcher.counts[ExitKind.EXCEPTION]


# -- the same as step by step ------------------------------------------------------------------------------

INSTRUCTIONS = (
    "mov [rdx + {at}], rax", "mov [rdx + {at}], ecx", "mov byte ptr [rdx + {at}], 7", "mov rax, [rdx + {at}]",
    "movzx esi, word ptr [rdx + {at}]", "inc dword ptr [rdx + {at}]", "lock xadd [rdx + {at}], rcx",
    "push rax; pop rcx", "push qword ptr [rdx + {at}]; pop rsi", "xchg rsp, rbx; push rax; xchg rsp, rbx",
    "movups [rdx + {at}], xmm0", "movups xmm0, [rdx + {at}]", "lea rdi, [rdx + {at}]; stosd",
    "lea rdi, [rdx + {at}]; mov ecx, 5; rep stosb", "lea rsi, [rdx + {at}]; lea rdi, [rdx + 8]; movsq",
    "lea rsi, [rdx + {at}]; lea rdi, [rdx + 9]; mov ecx, 3; rep movsw", "nop", "cmp rax, [rdx + {at}]",
    "test ecx, 1; jz {label}; inc rax; {label}:", "mov rax, cr0",
    "call {label}; {label}: pop rsi", "pushfq; or qword ptr [rsp], 0x100; popfq",
    "pushfq; and qword ptr [rsp], -0x101; popfq", "mov ecx, 3; {label}: dec ecx; jnz {label}",
    "bts dword ptr [rdx + {at}], ecx", "cmpxchg [rdx + {at}], rsi", "fld1; fstp qword ptr [rdx + {at}]",
)  # fmt: skip
"""RDX is the middle of the data, RBX a second stack in it."""


def program(chance: random.Random) -> tuple[list[str], list[tuple[int, int, int, int]]]:
    """Random code, and breakpoints as (number, place, kind, length); places of code count instructions."""
    code = []
    for number in range(chance.randrange(6, 16)):
        line = chance.choice(INSTRUCTIONS).format(at=chance.randrange(-9, 17), label=f"l{number}")
        code += [one.strip() for one in line.split(";")]
    breakpoints = []
    for number in range(4):
        kind = chance.choice((EXECUTE, EXECUTE, WRITE, ACCESS))
        length = 1 if kind == EXECUTE else chance.choice((1, 2, 4, 8))
        place = chance.randrange(len(code)) if kind == EXECUTE else chance.randrange(-8, 16)
        breakpoints.append((number, place, kind, length))
    return code, breakpoints


def starts(raw: bytes, address: int) -> list[int]:
    """The address of each instruction."""
    found, at = [], 0
    while at < len(raw):
        found.append(address + at)
        at += decode.length(raw[at : at + 15], 64) or len(raw)
    return found


def story(
    guest: Paused, code: list[str], breakpoints: list[tuple[int, int, int, int]]
) -> list[tuple[int, ...]]:
    """Each #DB with the guest's registers at it, and the end."""
    address = guest.scratch + CODE
    raw = assemble("\n".join(code), address)
    places = starts(raw, address)
    guest.put(bytes(range(256)), FREE)
    disarm(guest)
    guest.vcpu.debug.registers[6] = IDLE
    for number, place, kind, length in breakpoints:
        at = places[place % len(places)] if kind == EXECUTE else guest.scratch + DATA + place
        arm(guest, number, at, kind, length)
    q = guest.q
    q[0:16] = memoryview(bytes(128)).cast("Q")
    end = guest.load(raw)
    q[v.RAX], q[v.RDX], q[v.RBX] = 0x1122334455667788, guest.scratch + DATA, guest.scratch + DATA + 24
    q[v.RIP], q[v.RSP] = address, guest.stack
    guest.cpu.vmcb.set_rflags(0x202)
    told: list[tuple[int, ...]] = []
    while guest.go(end) == DB and len(told) < 60:
        frame = guest.frame()
        status, guest.vcpu.debug.registers[6] = guest.vcpu.debug.registers[6] ^ IDLE, IDLE
        told.append(
            (frame["rip"] - address, status, frame["rflags"] & (TF | RF | CF_ZF), frame["rsp"], *q[2:8])
        )
        told.append((frame["rcx"], q[v.RAX]))
        q[v.RIP], q[v.RSP], q[v.RCX], q[v.R11] = (frame[name] for name in ("rip", "rsp", "rcx", "r11"))
        more = RF if status & ~BS and not status & BS else 0
        guest.cpu.vmcb.set_rflags(frame["rflags"] | more | 0x200)
        guest.cpu.rearrange = True
    assert guest.domain.alive
    told.append((guest.handled or 0, q[v.RIP] - address, *q[0:9]))
    told.append(tuple(guest.get(256, FREE)))
    return told


@pytest.mark.promise("C-17")
@pytest.mark.parametrize("how", ["tuned", "hooks"])
def test_random_programs_meet_what_they_meet_step_by_step(how: str) -> None:
    stories: dict[str, list[list[tuple[int, ...]]]] = {how: [], "steps": []}
    for engine, told in stories.items():
        with guest_of(engine) as guest:
            for seed in range(40):
                told.append(story(guest, *program(random.Random(seed))))
    for seed, (by_itself, by_steps) in enumerate(zip(stories[how], stories["steps"], strict=True)):
        assert by_itself == by_steps, (seed, program(random.Random(seed)))
    assert sum(len(told) > 4 for told in stories[how]) > 20


# -- what it costs -----------------------------------------------------------------------------------------


@pytest.mark.promise("C-17")
def test_where_no_breakpoint_is_met_nothing_is_a_step(guest: Paused) -> None:
    """The watched page itself is used, and code beside the breakpoint runs."""
    place = guest.scratch + FREE
    arm(guest, 0, place, ACCESS, 4)
    arm(guest, 1, guest.scratch, EXECUTE)
    before = exits(guest)
    code = f"mov rdx, {place}; mov ecx, 1000; again: inc qword ptr [rdx + 8]; dec ecx; jnz again"
    assert guest.execute(code) is None
    assert guest.domain.memory.read_u64(place + 8) == 1000
    assert exits(guest) - before < 4


@pytest.mark.promise("C-17")
def test_each_meeting_costs_two_exits(guest: Paused) -> None:
    place = guest.scratch + FREE
    arm(guest, 0, place, ACCESS, 4)
    before = exits(guest)
    assert guest.execute(f"mov rdx, {place}; mov eax, [rdx + 4]; mov eax, [rdx]; nop") == DB
    assert exits(guest) - before == 2


def test_an_address_that_nobody_waits_at_is_forgotten(guest: Paused) -> None:
    """It stays known after its breakpoint has gone, until it has been passed in vain too often."""
    code = "mov ecx, 500; again: inc eax; dec ecx; jnz again"
    arm(guest, 0, guest.scratch + CODE + 5, EXECUTE)
    assert guest.execute(code) == DB
    disarm(guest)
    unit = guest.domain.engine.debug_unit
    assert unit is not None
    assert guest.scratch + CODE + 5 in unit.known
    before = exits(guest)
    guest.q[v.RAX] = 0
    assert guest.execute(code) is None
    assert guest.q[v.RAX] == 500
    assert exits(guest) - before <= 2 * debugunit.PATIENCE + 2
    assert not unit.known


def test_many_addresses_one_after_the_other(guest: Paused) -> None:
    unit = guest.domain.engine.debug_unit
    assert unit is not None
    for place in range(60):
        arm(guest, 0, guest.scratch + CODE + place, EXECUTE)
        assert guest.execute("nop; " * 60 + "nop") == DB
        assert guest.frame()["rip"] == guest.scratch + CODE + place
        assert len(unit.known) <= debugunit.MOST_KNOWN + 2


def test_the_guest_goes_on_at_a_known_address_after_a_restart(guest: Paused) -> None:
    """A vCPU without breakpoints that is taken off the processor in the step past a known address."""
    guest.slice_ns = 20
    arm(guest, 0, guest.scratch + CODE + 5, EXECUTE)
    assert guest.execute("mov eax, 1; inc eax; inc eax; nop") == DB
    disarm(guest)
    assert guest.execute("mov eax, 1; inc eax; inc eax; nop") is None
    assert guest.q[v.RAX] == 3
    assert guest.vcpu.debug.registers[6] & BS == 0


# -- where the emulator would not be exact by itself -------------------------------------------------------


def test_rf_that_iret_sets_is_for_one_instruction(guest: Paused) -> None:
    """The guest's own IRET leads to a breakpoint with RF set; the one behind it is met."""
    code = """mov r9, rsp; mov eax, ss; push rax; push r9; pushfq; or qword ptr [rsp], 0x10000; mov eax, cs
        push rax; lea rax, [rip + there]; push rax; iretq; there: nop; inc eax; nop"""
    raw = assemble(code.replace(";", "\n"), guest.scratch + CODE)
    there = guest.scratch + CODE + len(raw) - 4
    arm(guest, 0, there, EXECUTE)
    arm(guest, 1, there + 1, EXECUTE)
    assert guest.execute(raw) == DB
    assert guest.frame()["rip"] == there + 1
    assert guest.vcpu.debug.registers[6] ^ IDLE == 2


def test_breakpoints_are_linear_addresses() -> None:
    """A process whose code segment has a base, in a loop through its breakpoint; and where it has gone."""
    base = 0x3000
    with paused32() as guest:
        guest.handlers()
        guest.gdt(with_base(CODE3, base))
        code = assemble("mov ecx, 100\nagain:\ninc eax\ndec ecx\njnz again", 0, width=32)
        end = guest.code + len(code) - base
        assert guest.set_debugreg(0, guest.code + 5) == 0
        for control, handled in ((0x401, DB), (0x400, None)):
            assert guest.set_debugreg(7, control) == 0
            guest.cpu.rearrange = True
            assert guest.user(code, end, cs=8 | 3, eip=guest.code - base) == handled
            if handled == DB:
                assert guest.frame()["eip"] == guest.code + 5 - base
