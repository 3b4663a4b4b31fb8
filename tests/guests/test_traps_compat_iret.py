# SPDX-License-Identifier: GPL-2.0-only
"""Out of the kernel of a 32-bit guest: the iret hypercall, and into virtual-8086 mode."""

import struct

import pytest

from pyhv.abi.numbers import Assist, Hypercall
from pyhv.cpu import vmcb as v
from pyhv.testing.compat_machine import (
    CODE1,
    DATA1,
    EVENT,
    G_ABSENT_CODE,
    G_ABSENT_DATA,
    G_CODE1,
    G_CODE3,
    G_CONFORMING,
    G_DATA1,
    G_DATA3,
    G_READ_ONLY,
    GDT,
    RING1_CS,
    RING1_DS,
    RING3_CS,
    RING3_DS,
    Paused32,
)
from pyhv.testing.vectors import DB, GP, IF, NP, RF, SS, TF, UD


@pytest.fixture
def guest(guest32: Paused32) -> Paused32:
    return guest32


# -- the iret hypercall --------------------------------------------------------------------------------------


def test_iret_to_ring_3(guest: Paused32) -> None:
    assert guest.iret(eax=0x1234, eflags=0x3202 | 1) == 0x1234
    vmcb = guest.cpu.vmcb
    assert (vmcb.rip, vmcb.rsp) == (guest.code, guest.user_stack)
    assert (vmcb.cpl, vmcb.selector(v.CS), vmcb.selector(v.SS)) == (3, RING3_CS, RING3_DS)
    assert guest.rflags & 0x3201 == 0x201
    assert not guest.vcpu.info.upcall_masked
    assert not guest.vcpu.in_kernel


def test_iret_within_the_kernel_keeps_the_stack_segment(guest: Paused32) -> None:
    """esp and ss are not in the frame; what lies there is not looked at."""
    guest.iret(cs=RING1_CS, eflags=2, esp=0x1111, ss=0x2222)
    vmcb = guest.cpu.vmcb
    assert vmcb.rsp == guest.scratch + 0xC000 + 16
    assert (vmcb.cpl, vmcb.selector(v.CS), vmcb.selector(v.SS)) == (1, RING1_CS, RING1_DS)
    assert guest.vcpu.info.upcall_masked
    assert guest.vcpu.in_kernel


def test_iret_ignores_the_upper_halves_of_selectors(guest: Paused32) -> None:
    guest.iret(cs=RING3_CS | 0x5A5A0000, ss=RING3_DS | 0xA5A50000)
    assert guest.cpu.vmcb.selector(v.CS) == RING3_CS
    assert guest.cpu.vmcb.selector(v.SS) == RING3_DS


def test_iret_with_tf_traps_after_an_instruction(guest: Paused32) -> None:
    assert guest.user("nop; nop", eflags=0x302) == DB
    assert guest.frame()["eip"] == guest.code + 1
    assert guest.frame()["eflags"] & TF


def test_iret_sets_the_iopl_only_with_the_assist(guest: Paused32) -> None:
    guest.iret(eflags=0x3202)
    assert guest.vcpu.ports.iopl == 0
    guest.into_kernel()
    guest.domain.assists.enabled.add(Assist.ARCHITECTURAL_IOPL)
    guest.iret(eflags=0x2202)
    assert guest.vcpu.ports.iopl == 2


def test_iret_delivers_what_is_pending(guest: Paused32) -> None:
    guest.vcpu.info.mark_pending()
    guest.iret()
    assert guest.handled == EVENT
    frame = guest.frame()
    assert (frame["eip"], frame["cs"], frame["esp"]) == (guest.code, RING3_CS, guest.user_stack)
    assert guest.vcpu.info.upcall_masked


def test_iret_reads_its_frame_at_esp_whatever_the_base_of_ss(guest: Paused32) -> None:
    guest.cpu.vmcb.q[v.SEG_BASE[v.SS]] = 0x1000
    guest.iret()
    assert guest.cpu.vmcb.rip == guest.code


@pytest.mark.parametrize("selector", [0, 0x10, 0xE018, 0xE008])
def test_iret_to_ring_0_is_fatal(guest: Paused32, selector: int) -> None:
    guest.iret(cs=selector)
    assert guest.domain.life.crashed
    assert "ring 0" in str(guest.domain.life.cause)


@pytest.mark.parametrize("esp", [0xF57F0000, 0xF5800000, 0xFFFFFFFC])
def test_iret_with_an_unreadable_frame_is_fatal(guest: Paused32, esp: int) -> None:
    guest.q[v.RSP] = esp
    guest.hypercall(Hypercall.IRET)
    assert guest.domain.life.crashed


@pytest.mark.parametrize(
    ("cs", "ss", "vector", "error"),
    [
        (G_CODE3 | 3, G_DATA3 | 3, None, 0),
        (G_CONFORMING | 3, G_DATA3 | 3, None, 0),
        (3, G_DATA3 | 3, GP, 0),
        (G_CODE3 | 3, 3, GP, 0),
        (G_CODE3 | 3, 0, GP, 0),
        (G_CODE3 | 3, G_DATA3 | 1, GP, G_DATA3),
        (G_DATA3 | 3, G_DATA3 | 3, GP, G_DATA3),
        (G_CODE3 | 3, G_CODE3 | 3, GP, G_CODE3),
        (G_CODE3 | 3, G_READ_ONLY | 3, GP, G_READ_ONLY),
        (G_CODE1 | 3, G_DATA3 | 3, GP, G_CODE1),
        (G_CODE3 | 3, G_DATA1 | 3, GP, G_DATA1),
        (G_ABSENT_CODE | 3, G_DATA3 | 3, NP, G_ABSENT_CODE),
        (G_CODE3 | 3, G_ABSENT_DATA | 3, SS, G_ABSENT_DATA),
        (G_CODE3 | 3, G_ABSENT_DATA | 1, GP, G_ABSENT_DATA),
        (0x203, G_DATA3 | 3, GP, 0x200),
        (G_CODE3 | 3, 0x1007, GP, 0x1004),
        (0xE00B, G_DATA3 | 3, GP, 0xE008),
        (G_CODE3 | 2, G_DATA3 | 2, GP, G_CODE3),
    ],
)
def test_iret_to_selectors_that_cannot_be_loaded(
    guest: Paused32, cs: int, ss: int, vector: int | None, error: int
) -> None:
    """It faults as if at the target: the frame shows the target's registers."""
    guest.gdt(*GDT)
    guest.iret(cs=cs, ss=ss)
    assert guest.handled == vector
    if vector is not None:
        words = guest.words(guest.q[v.RSP], 6)
        assert words == (error, guest.code, cs, 0x202, guest.user_stack, ss)


def test_iret_within_the_kernel_to_a_bad_code_segment(guest: Paused32) -> None:
    guest.iret(cs=0x201)
    assert guest.handled == GP
    assert guest.words(guest.q[v.RSP], 3) == (0x200, guest.code, 0x201)


def test_iret_within_the_kernel_on_a_lost_stack_segment_is_fatal(guest: Paused32) -> None:
    guest.gdt(*GDT)
    assert guest.execute(f"mov eax, {G_DATA1 | 1}; mov ss, eax") is None
    address = guest.mfn(guest.page(0)) << 12 | G_DATA1
    assert guest.update_descriptor(address, 0) == 0
    guest.iret(cs=RING1_CS)
    assert guest.domain.life.crashed


def test_ring_2_is_neither_kernel_nor_user(guest: Paused32) -> None:
    guest.gdt(CODE1 & ~(3 << 45) | 2 << 45, DATA1 & ~(3 << 45) | 2 << 45)
    assert guest.user("ud2", cs=8 | 2, ss=16 | 2) == UD
    assert guest.words(guest.q[v.RSP], 5)[1:] == (8 | 2, 0x202 | RF, guest.user_stack, 16 | 2)


@pytest.mark.parametrize("to_user", [True, False])
def test_a_return_outwards_empties_inner_segments(guest: Paused32, to_user: bool) -> None:
    guest.gdt(*GDT)
    es, fs = G_DATA3 | 3, G_CONFORMING | 1
    code = f"mov eax, {es}; mov es, eax; mov eax, {fs}; mov fs, eax; xor eax, eax; mov gs, eax"
    assert guest.execute(code) is None
    guest.iret(cs=RING3_CS if to_user else RING1_CS)
    selectors = [guest.cpu.vmcb.selector(segment) for segment in (v.DS, v.ES, v.FS, v.GS)]
    assert selectors == [0 if to_user else RING1_DS, G_DATA3 | 3, G_CONFORMING | 1, 0]


@pytest.mark.parametrize("to_user", [True, False])
def test_a_return_clears_null_selectors(guest: Paused32, to_user: bool) -> None:
    assert guest.execute("mov eax, 3; mov es, eax; mov eax, 1; mov gs, eax") is None
    guest.iret(cs=RING3_CS if to_user else RING1_CS)
    assert [guest.cpu.vmcb.selector(segment) for segment in (v.ES, v.GS)] == [0, 0]


def test_native_iret_empties_them_too(guest: Paused32) -> None:
    frame = f"push {RING3_DS}; push {guest.user_stack}; push 0x202; push {RING3_CS}"
    assert guest.execute(f"{frame}; mov eax, there; push eax; iretd; there: ud2") == UD
    assert guest.frame()["cs"] & 0xFFFF == RING3_CS
    assert guest.cpu.vmcb.selector(v.DS) == 0


# -- virtual-8086 mode ---------------------------------------------------------------------------------------


def vm86(guest: Paused32, eflags: int) -> tuple[int, ...]:
    """An iret frame for virtual-8086 mode, of ten words."""
    frame = (7, 0x1234, 0xF000, 0x20000 | eflags, 0xFFF0, 0x2000, 0x11, 0x22, 0x33, 0x44)
    guest.q[v.RSP] = guest.put(struct.pack("<10I", *frame), 0xC000)
    assert guest.hypercall(Hypercall.IRET) == 7
    return frame


@pytest.mark.parametrize("eflags", [0x3202, 0x7102, 0x10003])
@pytest.mark.parametrize("masks", [0, 4])
def test_virtual_8086_mode_is_a_protection_fault(guest: Paused32, eflags: int, masks: int) -> None:
    """The kernel finds the frame that it gave, moved to its stack, with the error code in place of eax."""
    guest.handlers(flags=masks)
    guest.vcpu.info.upcall_masked = not eflags & IF
    frame = vm86(guest, eflags)
    assert guest.handled == GP
    assert guest.q[v.RSP] == guest.kernel_stack - 40
    assert guest.words(guest.q[v.RSP], 10) == (0, *frame[1:])
    assert guest.rflags & 0x37000 == 0
    assert guest.rflags & (TF | IF) == IF
    assert guest.vcpu.info.upcall_masked is (masks == 4 or not eflags & IF)
    assert guest.cpu.vmcb.selector(v.SS) == guest.vcpu.kernel_stack.ss
    assert guest.vcpu.in_kernel


def test_virtual_8086_mode_over_overlapping_frames(guest: Paused32) -> None:
    guest.vcpu.kernel_stack.sp = guest.scratch + 0xC000 + 48
    frame = vm86(guest, IF)
    assert guest.words(guest.scratch + 0xC008, 10) == (0, *frame[1:])


@pytest.mark.parametrize("ruined", ["handler", "stack segment", "stack"])
def test_virtual_8086_mode_without_a_way_to_say_so_is_fatal(guest: Paused32, ruined: str) -> None:
    if ruined == "handler":
        guest.vcpu.traps.selectors[GP] = 0
    elif ruined == "stack segment":
        guest.vcpu.kernel_stack.ss = RING3_DS
    else:
        guest.vcpu.kernel_stack.sp = 0xF57FFFFF
    vm86(guest, IF)
    assert guest.domain.life.crashed
