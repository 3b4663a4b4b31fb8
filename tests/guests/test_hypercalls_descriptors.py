# SPDX-License-Identifier: GPL-2.0-only
"""Descriptors: the GDT and LDT of a guest, what may stand in them, and the selectors that lead there."""

import struct
from collections.abc import Iterator

import pytest

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import (
    Mmuext,
    SegmentBase,
)
from pyhv.cpu import vmcb as v
from pyhv.mmu.frames import SEGDESC, WRITABLE
from pyhv.testing.guest_machine import UNMAPPED, Paused, paused
from pyhv.testing.vectors import GP, PF

HOLE = 0xFFFF800000000000


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused() as made:
        made.handlers()
        yield made


DATA = 0x00CFF3000000FFFF


def data_at(base: int, access: int = 0xF3) -> int:
    return 0x00C0_0000_0000_FFFF | access << 40 | (base & 0xFFFFFF) << 16 | (base >> 24) << 56


def with_gdt(guest: Paused, *descriptors: int) -> None:
    """Install a GDT of one page; descriptor n has selector 8 * (n + 1) + 3."""
    guest.put(struct.pack(f"<{len(descriptors) + 1}Q", 0, *descriptors).ljust(4096, b"\0"), 0x4000)
    assert guest.remap(guest.page(4), 0x21) == 0
    frames = guest.put(struct.pack("<Q", guest.mfn(guest.page(4))))
    assert guest.set_gdt(frames, 512) == 0


def test_the_users_gs_selector(guest: Paused) -> None:
    with_gdt(guest, data_at(0x12345000), 0, data_at(0x5000, 0xFB))
    guest.q[v.SEG_BASE[v.GS]] = 0x777
    assert guest.set_segment_base(SegmentBase.GS_USER_SEL, 8) == 0
    assert guest.vcpu.other_gs_base == 0x12345000
    assert guest.cpu.vmcb.selector(v.GS) == 0x0B
    assert guest.q[v.SEG_BASE[v.GS]] == 0x777, "the active base stays"
    for null in (0, 3, 0x10, 0x1000, 0xE00B, 0x7FFC):
        guest.vcpu.other_gs_base = 1
        assert guest.set_segment_base(SegmentBase.GS_USER_SEL, null) == 0
        assert guest.vcpu.other_gs_base == 0


def test_set_gdt_takes_descriptor_pages(guest: Paused) -> None:
    with_gdt(guest, DATA)
    frames, mfn = guest.machine.frames, guest.mfn(guest.page(4))
    assert (frames.type[mfn], frames.type_count[mfn]) == (SEGDESC, 1)
    assert guest.execute("mov eax, 0x0b; mov ds, eax; mov ax, ds") is None
    assert guest.execute("mov eax, 0x13; mov ds, eax; mov eax, 0x2a1b; mov ds, eax") == GP
    assert guest.remap(guest.page(4), 0x23) == -Errno.EBUSY, "it cannot be mapped writable"
    assert guest.set_gdt(0, 0) == 0
    assert frames.type_count[mfn] == 0
    assert guest.remap(guest.page(4), 0x23) == 0


def test_selectors_of_a_kernel(guest: Paused) -> None:
    """Code and stack through the guest's own GDT, loaded by a native IRET and by the hypercall."""
    with_gdt(guest, 0x00AFFB000000FFFF, DATA)
    code = f"""
        mov rax, {guest.stack}; push 0x13; push rax; push 0x202; push 0x0b
        lea rax, [rip + over]; push rax; iretq; over: mov ax, cs; mov cx, ss"""
    assert guest.execute(code) is None
    assert (guest.q[v.RAX] & 0xFFFF, guest.q[v.RCX] & 0xFFFF) == (0x0B, 0x13)
    end = guest.load("mov ax, cs; mov cx, ss")
    guest.iret(cs=0x08, ss=0x10)
    assert guest.go(end) is None
    assert (guest.q[v.RAX] & 0xFFFF, guest.q[v.RCX] & 0xFFFF) == (0x0B, 0x13)


def test_gdts_that_are_refused_leave_the_old_one(guest: Paused) -> None:
    with_gdt(guest, DATA)
    mine = guest.vcpu.descriptors.gdt_frames
    writable = guest.mfn(guest.page(5))
    foreign = guest.machine.board.zero_frame
    gate = 0x0000_8E00_0008_0000
    guest.put(struct.pack("<2Q", 0, gate).ljust(4096, b"\0"), 0x6000)
    assert guest.remap(guest.page(6), 0x21) == 0
    bad = (
        writable,
        foreign,
        0,
        1 << 40,
        0xFFFFFFFFFFFFFFFF,
        guest.vcpu.paging.kernel_l4,
        guest.mfn(guest.page(6)),
    )
    for mfn in bad:
        assert guest.set_gdt(guest.put(struct.pack("<Q", mfn)), 512) == -Errno.EINVAL, hex(mfn)
        assert guest.vcpu.descriptors.gdt_frames == mine
    good = guest.mfn(guest.page(4))
    assert guest.set_gdt(guest.put(struct.pack("<2Q", good, writable)), 1024) == -Errno.EINVAL
    assert guest.machine.frames.type_count[good] == 1, "what the failed call took is given back"
    assert guest.set_gdt(UNMAPPED, 1) == -Errno.EFAULT
    assert guest.set_gdt(guest.scratch, 7169) == -Errno.EINVAL
    assert guest.set_gdt(guest.scratch, 0xFFFFFFFF) == -Errno.EINVAL


def test_descriptors_are_fixed_when_their_page_is_taken(guest: Paused) -> None:
    """DPL is raised to 3 in whatever is present; what is not present is left alone."""
    with_gdt(guest, 0x00CF93000000FFFF, 0x00CF13000000FFFF, 0)
    one, two = guest.words(guest.page(4) + 8, 2)
    assert one >> 45 & 3 == 3
    assert two == 0x00CF13000000FFFF


@pytest.mark.parametrize(
    ("descriptor", "stored"),
    [
        (0, 0),
        (0x1234567800005678, 0x1234567800005678),
        (DATA, DATA),
        (0x00AF9B000000FFFF, 0x00AFFB000000FFFF),
        (0x00CF92000000FFFF, None),
        (0x0000_8C00_E033_1234, 0x0000_8C00_E033_1234),
        (0x0000_EC00_0010_1234, 0x0000_8C00_0013_1234),
    ],
)
def test_update_descriptor(guest: Paused, descriptor: int, stored: int | None) -> None:
    """A call gate is disarmed to DPL 0, its own DPL in the selector's RPL; an accessed bit may be added."""
    with_gdt(guest, DATA)
    address = guest.mfn(guest.page(4)) << 12 | 16
    assert guest.update_descriptor(address, descriptor) == 0
    (found,) = guest.words(guest.page(4) + 16, 1)
    if stored is None:
        assert found & ~(1 << 40) == 0x00CFF2000000FFFF
    elif descriptor >> 44 & 1:
        assert found | 1 << 40 == stored | 1 << 40
    elif descriptor >> 40 & 0xF != 0xC:
        assert found == stored
    else:
        assert (found >> 45 & 3, found & 0xFFFF, found >> 40 & 0x9F) == (0, 0x1234, 0x8C)


@pytest.mark.parametrize(
    "descriptor",
    [
        0x0000_8900_0000_FFFF,  # TSS
        0x0000_8200_0000_FFFF,  # LDT
        0x0000_8E00_0008_0000,  # interrupt gate
        0x0000_8F00_0008_0000,  # trap gate
        0x0000_8500_0008_0000,  # task gate
        0x0000_8400_0008_0000,  # 16-bit call gate
        0x0000_8C00_E008_0000,  # call gate to the hypervisor's code
        0x0000_8C01_0010_0000,  # call gate with reserved bits
    ],
    ids=hex,
)
def test_descriptors_that_no_guest_may_have(guest: Paused, descriptor: int) -> None:
    with_gdt(guest, DATA)
    assert guest.update_descriptor(guest.mfn(guest.page(4)) << 12 | 16, descriptor) == -Errno.EINVAL
    assert guest.words(guest.page(4) + 16, 1) == (0,)


def test_where_descriptors_may_be_written(guest: Paused) -> None:
    with_gdt(guest, DATA)
    frames = guest.machine.frames
    assert guest.update_descriptor(guest.mfn(guest.page(5)) << 12, DATA) == 0, "a writable page"
    assert frames.type[guest.mfn(guest.page(5))] == WRITABLE
    assert guest.update_descriptor(guest.mfn(guest.page(4)) << 12 | 4, DATA) == -Errno.EINVAL, "not aligned"
    assert guest.update_descriptor(guest.vcpu.paging.kernel_l4 << 12, DATA) == -Errno.EINVAL
    assert guest.update_descriptor(guest.machine.board.zero_frame << 12, DATA) == -Errno.EINVAL
    assert guest.update_descriptor(guest.machine.board.xen_gdt[64] << 12, DATA) == -Errno.EINVAL
    assert guest.update_descriptor(1 << 60, DATA) == -Errno.EINVAL


def test_a_changed_descriptor_is_used_at_once(guest: Paused) -> None:
    with_gdt(guest, data_at(0x1000))
    guest.set_segment_base(SegmentBase.GS_USER_SEL, 8)
    assert guest.vcpu.other_gs_base == 0x1000
    assert guest.update_descriptor(guest.mfn(guest.page(4)) << 12 | 8, data_at(0x2000)) == 0
    guest.set_segment_base(SegmentBase.GS_USER_SEL, 8)
    assert guest.vcpu.other_gs_base == 0x2000


def test_compatibility_code_with_a_base(guest: Paused) -> None:
    """EIP is relative to the base, also for the instructions that the hypervisor looks at."""
    base = guest.scratch
    code = 0x00C0FB0000000000 | 0xFFFF | (base & 0xFFFFFF) << 16 | 0xF << 48
    with_gdt(guest, code, DATA)
    guest.allow_user_mode()
    guest.load(b"\x66" * 9 + b"\x0f\x05")
    guest.iret(cs=0x0B, ss=0x13, rip=0x8000)
    assert guest.go() == 6
    assert guest.frame()["rip"] == 0x8000
    guest.load(b"\x0f\x05", 0)
    guest.load(b"\x66" * 9 + b"\x0f\x34")
    guest.iret(cs=0x0B, ss=0x13, rip=0x8000)
    assert guest.go() == GP


def set_ldt(guest: Paused, base: int, entries: int) -> int:
    return guest.mmuext(Mmuext.SET_LDT, base, entries)


def test_ldt_pages_come_in_on_first_use(guest: Paused) -> None:
    guest.put(struct.pack("<3Q", 0, DATA, data_at(0x3000)), 0x5000)
    assert guest.remap(guest.page(5), 0x21) == 0
    assert set_ldt(guest, guest.page(5), 512) == 0
    frames, mfn = guest.machine.frames, guest.mfn(guest.page(5))
    assert frames.type_count[mfn] == 0
    assert guest.execute("mov eax, 0x0f; mov ds, eax") is None
    assert (frames.type[mfn], frames.type_count[mfn]) == (SEGDESC, 1)
    assert guest.execute("mov eax, 0x17; mov fs, eax; mov rax, fs:[rbx]") in (None, PF)
    assert guest.q[v.SEG_BASE[v.FS]] == 0x3000
    assert guest.execute("mov eax, 0x1007; mov ds, eax") == GP
    assert guest.frame(error=True)["error"] == 0x1004
    assert set_ldt(guest, 0, 0) == 0
    assert frames.type_count[mfn] == 0
    assert guest.execute("mov eax, 0x0f; mov ds, eax") == GP


def test_an_ldt_page_that_is_missing_is_a_page_fault_at_its_own_address(guest: Paused) -> None:
    assert set_ldt(guest, UNMAPPED, 8192) == 0, "nothing is looked at yet"
    assert guest.execute("mov eax, 0x100f; mov ds, eax") == PF
    assert guest.vcpu.info.cr2 == UNMAPPED + 0x1008
    assert guest.frame(error=True)["error"] & 4 == 0


def test_a_writable_page_cannot_be_an_ldt(guest: Paused) -> None:
    assert set_ldt(guest, guest.page(5), 512) == 0
    assert guest.execute("mov eax, 0x0f; mov ds, eax") == PF
    assert guest.vcpu.info.cr2 == guest.page(5) + 8


def test_an_ldt_page_that_comes_later(guest: Paused) -> None:
    """Returning through a selector whose LDT page is missing fails; once it is there, it works."""
    guest.put(struct.pack("<2Q", 0, 0x00AFFB000000FFFF), 0x5000)
    entry = guest.mfn(guest.page(5)) << 12
    assert guest.unmap(guest.page(5)) == 0
    assert set_ldt(guest, guest.page(5), 512) == 0
    guest.load("nop")
    guest.iret(cs=0x0C, rsp=guest.stack)
    assert guest.handled in (GP, PF)
    assert guest.update_va_mapping(guest.page(5), entry | 0x21, 2) == 0
    guest.load("nop")
    guest.iret(cs=0x0C)
    assert guest.handled is None


@pytest.mark.parametrize(
    ("base", "entries"),
    [(1, 1), (0x800000000000, 1), (HOLE, 1), (0xFFFF87FFFFFFF000, 1), (0, 8193), (0, 0xFFFFFFFF)],
)
def test_ldts_that_are_refused(guest: Paused, base: int, entries: int) -> None:
    assert set_ldt(guest, base, entries) == -Errno.EINVAL
