# SPDX-License-Identifier: GPL-2.0-only
"""Descriptors of a 32-bit guest, and the limits that they set."""

import struct

import pytest

from pyhv.address import MASK32
from pyhv.cpu import vmcb as v
from pyhv.testing.compat_machine import (
    CODE3,
    DATA1,
    DATA3,
    G_ABSENT_DATA,
    G_CODE1,
    G_CODE3,
    G_CONFORMING,
    G_DATA1,
    G_DATA3,
    G_READ_ONLY,
    GDT,
    KERNEL_RW,
    READ_ONLY,
    RING1_CS,
    RING1_DS,
    RING3_DS,
    Paused32,
    with_base,
    with_limit,
)
from pyhv.testing.vectors import GP, NP, PF, UD


@pytest.fixture
def guest(guest32: Paused32) -> Paused32:
    return guest32


# -- descriptors ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "kernel", "user"),
    [
        # (LAR's access rights, LSL's limit, VERR, VERW)
        (0, None, None),
        (G_CODE3 | 3, (0xC0FB00, MASK32, 1, 0), (0xC0FB00, MASK32, 1, 0)),
        (G_DATA3, (0xC0F300, MASK32, 1, 1), (0xC0F300, MASK32, 1, 1)),
        (G_DATA1, (0xC0B300, MASK32, 1, 1), None),
        (G_DATA1 | 3, None, None),
        (G_READ_ONLY | 3, (0xC0F100, MASK32, 1, 0), (0xC0F100, MASK32, 1, 0)),
        (G_CONFORMING, (0xC0BF00, MASK32, 1, 0), (0xC0BF00, MASK32, 1, 0)),
        (G_ABSENT_DATA | 3, (0xC07300, MASK32, 1, 1), (0xC07300, MASK32, 1, 1)),
        (RING1_CS, (0xC0BB00, MASK32, 1, 0), None),
        (RING3_DS, (0xC0F300, MASK32, 1, 1), (0xC0F300, MASK32, 1, 1)),
        (0xE008, None, None),
        (0xE040, None, None),
        (0x1007, None, None),
    ],
)
def test_what_descriptors_look_like(
    guest: Paused32, selector: int, kernel: tuple[int, ...] | None, user: tuple[int, ...] | None
) -> None:
    guest.gdt(*GDT)
    code = (
        f"mov ecx, {selector}; xor eax, eax; lar eax, ecx; setz dl; lsl esi, ecx; setz dh; "
        "verr cx; setz bl; verw cx; setz bh"
    )
    for run, wanted in ((guest.execute, kernel), (guest.user, user)):
        assert run(code) is None
        q = guest.q
        if wanted is None:
            assert (q[v.RDX] & 0xFFFF, q[v.RBX] & 0xFFFF) == (0, 0)
        else:
            assert q[v.RDX] & 0xFFFF == 0x101
            seen = (q[v.RAX], q[v.RSI], q[v.RBX] & 1, q[v.RBX] >> 8 & 1)
            assert seen == wanted


@pytest.mark.parametrize("register", ["ds", "es", "fs", "gs"])
@pytest.mark.parametrize(
    ("selector", "vector"),
    [
        (G_DATA3 | 3, None),
        (G_READ_ONLY | 3, None),
        (G_CODE3 | 3, None),
        (G_CONFORMING | 3, None),
        (3, None),
        (G_DATA1 | 1, GP),
        (G_ABSENT_DATA | 3, NP),
        (0x203, GP),
        (0xE008, GP),
        (0x1007, GP),
    ],
)
def test_loading_segments_in_ring_3(
    guest: Paused32, register: str, selector: int, vector: int | None
) -> None:
    guest.gdt(*GDT)
    assert guest.user(f"mov eax, {selector}; mov {register}, eax") == vector
    if vector is not None:
        assert guest.frame(error=True)["error"] == selector & 0xFFFC


@pytest.mark.parametrize(
    ("selector", "vector"),
    [
        (G_DATA1 | 1, None),
        (RING1_DS, None),
        (G_DATA1, GP),
        (G_DATA3 | 3, GP),
        (G_DATA3 | 1, GP),
        (G_CODE1 | 1, GP),
        (G_ABSENT_DATA | 1, GP),
        (0, GP),
    ],
)
def test_loading_the_stack_segment_in_ring_1(guest: Paused32, selector: int, vector: int | None) -> None:
    guest.gdt(*GDT)
    assert guest.execute(f"mov eax, {selector}; mov ss, eax") == vector
    if vector is not None:
        assert guest.frame(error=True)["error"] == selector & 0xFFFC


def test_the_ldt_comes_page_by_page(guest: Paused32) -> None:
    assert guest.remap(guest.page(2), READ_ONLY) == 0
    guest.ldt(0, DATA3)
    guest.set_ldt(guest.page(1), 1024)
    assert guest.vcpu.descriptors.ldt_mapped == {}
    assert guest.user("mov eax, 0xf; mov fs, eax; lsl ecx, eax") is None
    assert set(guest.vcpu.descriptors.ldt_mapped) == {0}
    assert guest.q[v.RCX] == MASK32
    assert guest.user("mov eax, 0x1007; mov gs, eax") == GP
    assert guest.frame(error=True)["error"] == 0x1004
    assert set(guest.vcpu.descriptors.ldt_mapped) == {0, 1}
    guest.into_kernel()
    guest.set_ldt(0, 0)
    assert guest.vcpu.descriptors.ldt_mapped == {}
    assert guest.user("mov eax, 0xf; mov fs, eax") == GP
    assert guest.frame(error=True)["error"] == 0xC


def test_the_ldt_may_be_written_until_it_is_used(guest: Paused32) -> None:
    guest.ldt(0, DATA3)
    guest.into_kernel()
    assert guest.remap(guest.page(1), KERNEL_RW) == 0
    assert guest.user("mov eax, 0xf; mov fs, eax") == PF
    frame = guest.frame(error=True)
    assert (frame["error"], guest.vcpu.info.cr2) == (4, guest.page(1) + 8)


def test_an_update_of_the_ldt_is_seen(guest: Paused32) -> None:
    guest.ldt(0, with_base(DATA3, guest.page(6)))
    code = "mov eax, 0xf; mov fs, eax; mov ecx, fs:[0]"
    assert guest.user(code) is None
    guest.into_kernel()
    guest.put(struct.pack("<I", 0x600D), 0x5000)
    value = with_base(DATA3, guest.page(5))
    address = guest.mfn(guest.page(1)) << 12 | 8
    assert guest.update_descriptor(address, value) == 0
    assert guest.user(code) is None
    assert guest.q[v.RCX] == 0x600D


def test_gs_with_a_negative_offset(guest: Paused32) -> None:
    """What thread-local storage does: addresses wrap around at 4 GiB."""
    guest.gdt(with_base(DATA3, guest.page(5) + 16))
    guest.put(struct.pack("<I", 0x600D), 0x5000)
    assert guest.user("mov eax, 11; mov gs, eax; mov ecx, gs:[0xfffffff0]") is None
    assert guest.q[v.RCX] == 0x600D


# -- limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "fits"), [(0xFFFF, True), (0xF7FF, True), (0xF7FE, False), (0xFF, False)])
@pytest.mark.parametrize("code", ["ud2", "int 0x80"])
def test_a_bounce_frame_stays_within_the_stack_segment(
    guest: Paused32, limit: int, fits: bool, code: str
) -> None:
    guest.gdt(with_base(with_limit(DATA1, limit), guest.scratch))
    guest.vcpu.kernel_stack.ss, guest.vcpu.kernel_stack.sp = 8 | 1, 0xF800
    assert (guest.user(code) is not None) is fits
    assert guest.domain.life.crashed is not fits


@pytest.mark.parametrize(("limit", "fits"), [(0xF7EB, True), (0xF7EC, False)])
def test_a_bounce_frame_in_an_expand_down_segment(guest: Paused32, limit: int, fits: bool) -> None:
    guest.gdt(with_base(with_limit(DATA1 | 4 << 40, limit), guest.scratch))
    guest.vcpu.kernel_stack.ss, guest.vcpu.kernel_stack.sp = 8 | 1, 0xF800
    assert (guest.user("ud2") == UD) is fits
    assert guest.domain.life.crashed is not fits


def test_iret_beyond_the_limit_of_a_code_segment(guest: Paused32) -> None:
    guest.gdt(with_limit(CODE3, 0xFFF))
    guest.iret(cs=8 | 3, eip=0x1000)
    assert guest.handled == GP
    assert guest.words(guest.q[v.RSP], 3) == (0, 0x1000, 8 | 3)
    guest.into_kernel()
    guest.iret(cs=8 | 3, eip=0xFFF)
    assert guest.handled is None
    assert guest.cpu.vmcb.rip == 0xFFF
