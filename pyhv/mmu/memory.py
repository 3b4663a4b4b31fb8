# SPDX-License-Identifier: GPL-2.0-only
"""A guest's memory by virtual address, as a hypercall's pointers name it.

`GuestMemory` walks the guest's current kernel tables, respects their RW bits, keeps to the guest's part of
the address space, sets accessed and dirty bits, and fails with EFAULT.

    va  47..39  38..30  29..21  20..12  11..0        guests have no superpages, so every
         L4  ->  L3  ->  L2  ->  L1  -> byte         walk has exactly four steps

The tables of a 32-bit guest begin with an L3 of four entries; the rest is the same. Whatever is stored goes
through `physical.py`.
"""

import struct
from collections.abc import Mapping
from typing import Any, ClassVar, Final

from pyhv.abi.errno import Errno
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_MFN_MASK, PTE_NX, PTE_P, PTE_RW, PTE_US
from pyhv.address import (
    COMPAT_VIRT_START,
    HYPERVISOR_VIRT_END,
    MASK64,
    PAGE_MASK,
    PAGE_SIZE,
    MachineAddress,
    Mfn,
)
from pyhv.cpu.ram import Ram
from pyhv.cpu.words import nine_at, nine_in, octets, two_at, two_in, word32_at, word64_at, words64
from pyhv.errors import XenError
from pyhv.mmu.physical import PhysicalMemory
from pyhv.state import Plain, entries, refusal, typed

LOWER_HALF_END: Final = 0x0000_8000_0000_0000
_MOST_LEAVES: Final = 1 << 14
_L3_OF_COMPAT: Final = PTE_P | PTE_RW | PTE_US
"""What an L4 entry over the L3 of a 32-bit guest would be: all rights."""


class Translation:
    """Result of a walk: `address` is the machine address; `flags` the bits granted by all four levels."""

    __slots__ = ("address", "entry", "flags")

    def __init__(self, address: int, flags: int, entry: int) -> None:
        self.address = address
        self.flags = flags
        self.entry = entry
        """Machine address of the leaf entry."""


def walk(ram: Ram, top: int, va: int, width: int = 64) -> Translation | None:
    """Walk the tables under the frame `top`, the L4 (L3 if `width` is 32); None where some level is absent.

    `flags` has RW and US if every level grants them, and NX if any level forbids execution. Nothing is
    changed. The tables must be validated ones: their frame numbers are trusted.
    """
    q = ram.q
    entry = q[top << 9 | va >> 39 & 511] if width == 64 else top << 12 | _L3_OF_COMPAT
    if not entry & PTE_P:
        return None
    granted, denied = entry, entry
    for shift in (30, 21):
        entry = q[(entry & PTE_MFN_MASK) >> 3 | va >> shift & 511]
        if not entry & PTE_P:
            return None
        granted &= entry
        denied |= entry
    at = (entry & PTE_MFN_MASK) >> 3 | va >> 12 & 511
    entry = q[at]
    if not entry & PTE_P:
        return None
    flags = granted & entry & (PTE_RW | PTE_US) | (denied | entry) & PTE_NX
    return Translation(entry & PTE_MFN_MASK | va & PAGE_MASK, flags, at << 3)


class GuestMemory:
    """One vCPU's view of memory through its kernel tables.

    `l4` is the current kernel base pointer (of a 32-bit guest, an L3). Translations are cached, for each of
    them apart, until `forget`, which the page-table code calls when an entry of `leaves` or any upper entry
    changes, or a table is no longer one; that is stricter than hardware, whose TLB may stay stale.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("physical", "ram", "width", "_hole_start", "_hole_last"), "given"),
        **dict.fromkeys(("_readable", "_writable", "_views", "leaves"), "a cache of translations"),
        **dict.fromkeys(("_raw", "_q"), "views of RAM"),
        "_copy": "lives within a read",
    }

    def __init__(self, physical: PhysicalMemory, width: int = 64) -> None:
        self.physical = physical
        self.ram = physical.ram
        self._raw, self._q = octets(physical.ram.raw), words64(physical.ram.q)
        self._copy = b""
        self.width = width
        self._hole_start = LOWER_HALF_END if width == 64 else COMPAT_VIRT_START
        self._hole_last = HYPERVISOR_VIRT_END - 1 if width == 64 else MASK64
        self.l4 = Mfn(0)
        self._readable: dict[int, int] = {}
        self._writable: dict[int, int] = {}
        self._views = {self.l4: (self._readable, self._writable)}
        self.leaves: set[int] = set()
        """Leaf entries (as word indices of RAM) that cached translations came from."""

    def state(self) -> dict[str, Plain]:
        """The kernel table in use."""
        return {"l4": self.l4}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Use the table that was saved. StateError."""
        l4 = typed(Mfn, entries(dict(saved), "", {"l4": None})["l4"], "l4")
        if not 0 <= l4 < self.physical.frames.count:
            raise refusal("l4", f"is frame {l4}, which does not exist")
        self.leaves.clear()
        self._views.clear()
        self.use(l4)

    def forget(self) -> None:
        """Drop cached translations."""
        if self.leaves:
            self.leaves.clear()
            self._views.clear()
            self.use(self.l4)

    def use(self, l4: Mfn) -> None:
        """Switch to another kernel table."""
        self.l4 = l4
        view = self._views.get(l4)
        if view is None:
            view = self._views[l4] = ({}, {})
        self._readable, self._writable = view

    def _top(self, va: int) -> tuple[int, int]:
        """Word index and value of the entry at which the walk for `va` begins."""
        if self.width == 64:
            at = self.l4 << 9 | va >> 39 & 511
            return at, self._q[at]
        return 0, self.l4 << 12 | _L3_OF_COMPAT

    def _miss(self, va: int, write: bool) -> int:
        if self._hole_start <= va <= self._hole_last:
            raise XenError(Errno.EFAULT, f"pointer {va:#x} is outside the guest's address space")
        q = self._q
        at, entry = self._top(va)
        granted = entry
        for shift in (30, 21, 12):
            if not entry & PTE_P:
                break
            at = (entry & PTE_MFN_MASK) >> 3 | va >> shift & 511
            entry = q[at]
            granted &= entry
        if not entry & PTE_P:
            raise XenError(Errno.EFAULT, f"pointer {va:#x} is not mapped")
        if write and not granted & PTE_RW:
            raise XenError(Errno.EFAULT, f"pointer {va:#x} is mapped read-only")
        base = entry & PTE_MFN_MASK
        touched = entry | (PTE_A | PTE_D if write else PTE_A)
        if touched != entry:
            self.physical.write_u64(at << 3, touched)
        if len(self.leaves) >= _MOST_LEAVES:
            self.forget()
        self.leaves.add(at)
        (self._writable if write else self._readable)[va >> 12] = base
        return base

    # A pointer of a guest's has 64 bits, and what follows it may be beyond: those who take any number compare
    # it first, since a machine word would not hold it; those whose name begins with `word` know that it fits.

    def for_read(self, va: int) -> int:
        """Machine address of a readable byte."""
        if va > MASK64:
            raise _beyond(va)
        return self.word_for_read(va)

    def word_for_read(self, va: int) -> int:
        """The same, of a 64-bit number."""
        base = self._readable.get(va >> 12)
        if base is None:
            base = self._miss(va, write=False)
        return base | va & PAGE_MASK

    def for_write(self, va: int) -> int:
        """Machine address of a writable byte."""
        if va > MASK64:
            raise _beyond(va)
        base = self._writable.get(va >> 12)
        if base is None:
            base = self._miss(va, write=True)
        return base | va & PAGE_MASK

    def read(self, va: int, length: int) -> bytes:
        """Copy from the guest; EFAULT if any byte is out of reach."""
        offset = va & PAGE_MASK
        if offset + length <= PAGE_SIZE:
            at = self.for_read(va)
            return bytes(self.ram.raw[at : at + length])
        pieces = []
        while length:
            step = min(length, PAGE_SIZE - (va & PAGE_MASK))
            at = self.for_read(va)
            pieces.append(self.ram.raw[at : at + step])
            va, length = va + step, length - step
        return b"".join(pieces)

    def write(self, va: int, data: bytes) -> None:
        """Copy to the guest; on EFAULT an earlier page may have been written, as on Xen."""
        if va > MASK64:
            raise _beyond(va)
        self.word_write(va, data)

    def word_write(self, va: int, data: bytes) -> None:
        """The same, to a 64-bit number."""
        offset = va & PAGE_MASK
        if offset + len(data) <= PAGE_SIZE:
            base = self._writable.get(va >> 12)
            if base is None:
                base = self._miss(va, write=True)
            self.physical.write(base | offset, data)
            return
        self._write_pages(va, memoryview(data))

    def _write_pages(self, va: int, view: memoryview) -> None:
        while view:
            step = min(len(view), PAGE_SIZE - (va & PAGE_MASK))
            self.physical.write(self.for_write(va), bytes(view[:step]))
            va, view = va + step, view[step:]

    def unpack(self, form: struct.Struct, va: int) -> tuple[Any, ...]:
        """Read what `form` describes, without a copy of it where it lies in one page; EFAULT as `read`."""
        if va & PAGE_MASK <= PAGE_SIZE - form.size:
            return form.unpack_from(self.ram.raw, self.for_read(va))
        return form.unpack(self.read(va, form.size))

    def words9(self, va: int) -> Any:
        """Nine 64-bit words, to be indexed until this is called again; EFAULT as `read`."""
        if va & PAGE_MASK <= PAGE_SIZE - 72:
            return nine_at(self._raw, self.word_for_read(va))
        self._copy = self.read(va, 72)
        return nine_in(self._copy)

    def words2(self, va: int) -> Any:
        """Two 64-bit words, to be indexed until this is called again; EFAULT as `read`."""
        if va & PAGE_MASK <= PAGE_SIZE - 16:
            return two_at(self._raw, self.word_for_read(va))
        self._copy = self.read(va, 16)
        return two_in(self._copy)

    def read_u64(self, va: int) -> int:
        """Read a 64-bit word at any alignment."""
        if va & PAGE_MASK > PAGE_SIZE - 8:
            return int.from_bytes(self.read(va, 8), "little")
        return word64_at(self._raw, self.for_read(va))

    def read_u32(self, va: int) -> int:
        """Read a 32-bit word."""
        if va & PAGE_MASK > PAGE_SIZE - 4:
            return int.from_bytes(self.read(va, 4), "little")
        return word32_at(self._raw, self.for_read(va))

    def write_u64(self, va: int, value: int) -> None:
        """Write a 64-bit word."""
        self.write(va, struct.pack("<Q", value & MASK64))

    def write_u32(self, va: int, value: int) -> None:
        """Write a 32-bit word."""
        self.write(va, struct.pack("<I", value & 0xFFFF_FFFF))

    def read_words(self, va: int, count: int) -> tuple[int, ...]:
        """Read `count` words of the guest's width."""
        code = "Q" if self.width == 64 else "I"
        return struct.unpack(f"<{count}{code}", self.read(va, self.width // 8 * count))

    def leaf_entry(self, va: int) -> MachineAddress | None:
        """Machine address of the L1 entry that maps `va`, present or not; None without an L1 table."""
        q = self._q
        entry = self._top(va)[1]
        for shift in (30, 21):
            if not entry & PTE_P:
                return None
            entry = q[(entry & PTE_MFN_MASK) >> 3 | va >> shift & 511]
        if not entry & PTE_P:
            return None
        return MachineAddress(entry & PTE_MFN_MASK | (va >> 12 & 511) << 3)


def _beyond(va: int) -> XenError:
    return XenError(Errno.EFAULT, f"pointer {va:#x} is outside the guest's address space")
