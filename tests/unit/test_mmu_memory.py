# SPDX-License-Identifier: GPL-2.0-only
"""The door to memory: walks, the guest's pointers, and translations of code that is written over."""

import struct
from collections.abc import Callable

import pytest
from mmu_bench import LINEAR, RO, RW, RX, UPPER, BareDomain, Bench, refused

from pyhv.abi.errno import Errno
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_NX, PTE_P, PTE_RW, PTE_US
from pyhv.address import HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START, MASK64, Mfn, Va
from pyhv.errors import XenError
from pyhv.mmu.frames import L4
from pyhv.mmu.memory import walk
from pyhv.mmu.physical import FramePage

TOP = MASK64 + 1 - 0x1000
"""The last page of the address space."""


class Space:
    """A domain whose first pages are mapped: 0 and 1 writable, 2 read-only, 3 missing, 4 code."""

    def __init__(self) -> None:
        self.bench = Bench(domains=1)
        self.guest: BareDomain = self.bench.domains[0]
        self.pages = self.guest.take(5)
        flags = [RW & ~(PTE_A | PTE_D), RW, RO & ~PTE_A, RW & ~PTE_P, RX | PTE_RW]
        entries = ((n, mfn << 12 | bits) for n, (mfn, bits) in enumerate(zip(self.pages, flags, strict=True)))
        self.l1 = self.guest.table(*entries)
        l2 = self.guest.table((0, self.l1 << 12 | UPPER), (511, self.l1 << 12 | UPPER))
        l3 = self.guest.table((0, l2 << 12 | UPPER), (511, l2 << 12 | UPPER))
        self.l4 = self.guest.table((0, l3 << 12 | UPPER), (511, l3 << 12 | UPPER))
        self.guest.tables.pin(self.l4, L4)
        self.guest.use(self.l4)
        self.memory = self.guest.memory


@pytest.fixture
def space() -> Space:
    return Space()


def test_a_walk_grants_what_all_levels_grant() -> None:
    bench = Bench(domains=1)
    guest = bench.domains[0]
    page = guest.one()
    for level in range(4):
        for missing in (PTE_P, PTE_RW, PTE_US, 0):
            l4, _l3, _l2, l1 = tables = guest.chain(page << 12 | PTE_P | PTE_RW | PTE_US)
            bench.ram.writable.q[tables[level] << 9] &= ~missing
            found = walk(bench.ram, l4, 0xABC)
            if missing == PTE_P:
                assert found is None
                continue
            assert found is not None
            assert (found.address, found.entry) == (page << 12 | 0xABC, l1 << 12)
            assert found.flags == (PTE_RW | PTE_US) & ~missing
        bench.ram.writable.q[tables[level] << 9] |= PTE_NX
        found = walk(bench.ram, l4, 0)
        assert found is not None
        assert found.flags & PTE_NX


def test_reading_and_writing(space: Space) -> None:
    memory = space.memory
    memory.write(0x10, b"hello")
    assert memory.read(0x10, 5) == b"hello"
    memory.write_u64(0x20, 0x1122334455667788)
    assert (memory.read_u64(0x20), memory.read_u32(0x24)) == (0x1122334455667788, 0x11223344)
    memory.write_u32(0x20, 0x1_0000_0001)
    assert memory.read_words(0x20, 2) == (0x1122334400000001, 0)
    assert memory.read(0, 0) == b""


def test_across_pages(space: Space) -> None:
    memory, raw = space.memory, space.bench.ram.raw
    memory.write(0xFFD, b"abcdef")
    assert bytes(raw[(space.pages[0] << 12) + 0xFFD : (space.pages[0] << 12) + 0x1000]) == b"abc"
    assert bytes(raw[space.pages[1] << 12 : (space.pages[1] << 12) + 3]) == b"def"
    assert memory.read(0xFFD, 6) == b"abcdef"
    memory.write_u64(0xFFC, 0x0102030405060708)
    assert memory.read_u64(0xFFC) == 0x0102030405060708
    form = struct.Struct("<BxIQ")
    for va in range(0x1000 - form.size - 1, 0x1002):
        memory.write(va, form.pack(7, 0x11223344, va))
        assert memory.unpack(form, va) == (7, 0x11223344, va)


def test_access_sets_accessed_and_dirty(space: Space) -> None:
    space.memory.read(0, 1)
    assert space.bench.q(space.l1, 0) & (PTE_A | PTE_D) == PTE_A
    space.memory.write(0, b"x")
    assert space.bench.q(space.l1, 0) & (PTE_A | PTE_D) == PTE_A | PTE_D
    space.memory.read(0x2000, 1)
    assert space.bench.q(space.l1, 2) & (PTE_A | PTE_D) == PTE_A


@pytest.mark.parametrize(
    "va",
    [
        0x3000,  # not present
        0x20_0000,  # no L1
        1 << 39,  # no L3
        0x0000_8000_0000_0000,  # not canonical
        HYPERVISOR_VIRT_START - 1,
        HYPERVISOR_VIRT_START,  # the M2P: readable for the guest, but no place for arguments
        HYPERVISOR_VIRT_END - 8,
        HYPERVISOR_VIRT_END,  # the guest's, but not mapped
        MASK64 + 1,
        1 << 70,
    ],
)
def test_pointers_that_lead_nowhere(space: Space, va: int) -> None:
    for access in (
        lambda: space.memory.read(va, 8),
        lambda: space.memory.write(va, bytes(8)),
        lambda: space.memory.read_u64(va),
        lambda: space.memory.unpack(struct.Struct("<5Q"), va - 32),
    ):
        with refused(Errno.EFAULT):
            access()


def test_read_only_pages_are_not_written(space: Space) -> None:
    space.memory.read(0x2000, 8)  # a cached translation for reading must not serve a write
    with refused(Errno.EFAULT):
        space.memory.write(0x2000, b"x")
    with refused(Errno.EFAULT):
        space.memory.write(0x1FFC, bytes(8))
    assert space.memory.read(0x2000, 4) == bytes(4)


def test_an_upper_level_can_take_the_right_to_write() -> None:
    bench = Bench(domains=1)
    guest = bench.domains[0]
    l4, _, _, _ = guest.chain(guest.one() << 12 | RW)
    bench.ram.writable.q[l4 << 9] &= ~PTE_RW
    guest.use(l4)
    with refused(Errno.EFAULT):
        guest.memory.write(0, b"x")


def test_page_tables_are_not_written_through_linear_entries() -> None:
    """A kernel that maps its L4 into itself may read its tables through it, and the hypervisor for it."""
    bench = Bench(domains=1)
    guest = bench.domains[0]
    l4, _, _, l1 = guest.chain(guest.one() << 12 | RW)
    bench.ram.writable.q[l4 << 9 | 1] = l4 << 12 | LINEAR
    guest.use(l4)
    window = 1 << 39  # L4[1] = L4, then entries 0, 0, 0: the L1 as a page
    assert guest.memory.read_u64(window) == bench.q(l1, 0)
    with refused(Errno.EFAULT):
        guest.memory.write_u64(window, 0)
    assert bench.audit() == []


def test_the_last_page_and_beyond(space: Space) -> None:
    space.guest.tables.update_l1(space.l1 << 12 | 511 << 3, space.pages[0] << 12 | RW)
    space.memory.write_u64(TOP + 0xFF8, 7)
    assert space.memory.read_u64(TOP + 0xFF8) == 7
    for length in (9, 0x2000):
        with refused(Errno.EFAULT):
            space.memory.read(TOP + 0xFF8, length)
        with refused(Errno.EFAULT):
            space.memory.write(TOP + 0xFF8, bytes(length))


def test_translations_are_forgotten_with_the_mapping(space: Space) -> None:
    """A writable translation must not survive the page's becoming something else."""
    space.memory.write(0, b"x")
    space.guest.tables.update_l1(space.l1 << 12, space.pages[0] << 12 | RO)
    with refused(Errno.EFAULT):
        space.memory.write(0, b"y")
    space.guest.tables.update_l1(space.l1 << 12, space.pages[1] << 12 | RW)
    space.memory.write(0, b"z")
    assert space.bench.ram.raw[space.pages[1] << 12] == ord("z")
    space.guest.tables.update_upper(space.l4 << 12, L4, 0)
    with refused(Errno.EFAULT):
        space.memory.read(0, 1)


def test_another_table_is_another_space(space: Space) -> None:
    space.memory.read(0, 1)
    other = space.guest.one()
    space.guest.use(space.guest.chain(other << 12 | RW)[0])
    space.memory.write(0, b"x")
    assert space.bench.ram.raw[other << 12] == ord("x")
    assert space.bench.ram.raw[space.pages[0] << 12] == 0


def test_leaf_entries(space: Space) -> None:
    leaf = space.memory.leaf_entry
    assert leaf(Va(0x1000)) == space.l1 << 12 | 8
    assert leaf(Va(0x3000)) == space.l1 << 12 | 24  # there is a place for it, though it is not present
    assert leaf(Va(0x20_0000)) is None
    assert leaf(Va(1 << 30)) is None
    assert leaf(Va(1 << 39)) is None


# -- code that changes -------------------------------------------------------------------------------------


def test_writing_over_code_drops_its_translations(space: Space) -> None:
    dropped, code = space.bench.dropped, space.pages[4]
    physical = space.bench.physical
    writes: list[Callable[[], object]] = [
        lambda: space.memory.write(0x4000, b"\xc3"),
        lambda: physical.write((code << 12) + 5, b"\x90"),
        lambda: physical.write_u64(code << 12, 1),
        lambda: physical.write_u32(code << 12, 1),
        lambda: physical.write_slots(Mfn(code), slice(0, 2), 7),
        lambda: FramePage(physical, Mfn(code)).write_u32(4, 1),
        lambda: FramePage(physical, Mfn(code)).write_u16(4, 1),
        lambda: FramePage(physical, Mfn(code)).write_u8(4, 1),
        lambda: FramePage(physical, Mfn(code)).write_u64(8, 1),
    ]
    for write in writes:
        dropped.clear()
        write()
        assert dropped == [code]
    dropped.clear()
    space.memory.write(0, b"data")
    assert dropped == []


def test_a_frame_that_is_no_longer_executable_is_dropped_once(space: Space) -> None:
    dropped, code = space.bench.dropped, space.pages[4]
    space.guest.tables.update_l1(space.l1 << 12 | 32, code << 12 | RW)
    space.memory.write(0x4000, b"x")
    assert dropped == [code]
    space.memory.write(0x4000, b"y")
    assert dropped == [code]


def test_frame_pages(space: Space) -> None:
    page = FramePage(space.bench.physical, Mfn(space.pages[0]))
    page.write(0x100, b"ring")
    page.write_u8(0x104, 0xAB)
    page.write_u16(0x106, 0x1234)
    assert page.read(0x100, 5) == b"ring\xab"
    assert (page.read_u8(0x104), page.read_u16(0x106), page.mfn) == (0xAB, 0x1234, space.pages[0])
    page.write_u32(0xFFC, 0xDEADBEEF)
    assert page.read_u32(0xFFC) == 0xDEADBEEF
    page.write_u64(0x200, MASK64)
    assert page.read_u64(0x200) == MASK64
    assert space.memory.read(0x100, 4) == b"ring"


def test_no_table_at_all() -> None:
    bench = Bench(domains=1)
    with pytest.raises(XenError):
        bench.domains[0].memory.read(0, 1)
    assert bench.q(0, 0) & (PTE_P | PTE_US) == 0  # nothing was marked accessed in frame 0
