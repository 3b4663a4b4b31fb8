# SPDX-License-Identifier: GPL-2.0-only
"""The entries of a grant table as guest and hypervisor share them, in both versions (`grant_table.h`).

    version 1, 8 bytes             version 2, 16 bytes            flags bits
    +0  flags  u16                 +0  flags  u16                 1..0  type: 0 invalid, 1 permit access,
    +2  domid  u16 who may use it  +2  domid  u16                       2 accept transfer, 3 transitive
    +4  frame  u32 (PV: an MFN)    +4  page_off u16 } sub-page    2     read-only (access),
                                   +6  length   u16 }                   committed (transfer)
                                   +8  frame  u64                 3, 4  in use to read, to write
                                   transitive:                    3     completed (transfer)
                                   +4  domid u16, +8 gref u32     8     sub-page (version 2)

The bits "in use" are the hypervisor's. In version 1 they are in the entry's own flags; in version 2 in frames
of their own, the status frames, one u16 an entry: so the guest need not share a word with the hypervisor.

This module reads and writes entries; what they permit is for `table` to say.
"""

from collections.abc import Mapping, Sequence
from typing import ClassVar, Final, Protocol

from pyhv.abi.grants import EntryFlag
from pyhv.address import MASK32, PAGE_SIZE
from pyhv.frozen import frozen
from pyhv.shared_page import SharedPage

STATUS_SIZE: Final = 2
"""Bytes of an entry's status in version 2."""
_START_MASK: Final = 0x7FFF
"""Xen keeps 15 bits of a sub-page's offset."""


IN_USE: Final = EntryFlag.READING | EntryFlag.WRITING
_TYPE_MASK: Final = int(EntryFlag.TYPE_MASK)


@frozen
class GrantEntry:
    """What an entry said when it was read; in version 1 its flags have the "in use" bits too.

    `start` and `length` bound a sub-page; `via` is (domain, reference) of a transitive entry.
    """

    flags: int
    domid: int
    frame: int
    start: int = 0
    length: int = PAGE_SIZE
    via: tuple[int, int] | None = None

    @property
    def kind(self) -> int:
        """The type: EntryFlag.PERMIT_ACCESS and so on."""
        return self.flags & _TYPE_MASK


class Entries(Protocol):
    """The entries of one version; references are in range, the caller has looked."""

    version: int
    size: int

    def read(self, ref: int) -> GrantEntry:
        """Read an entry, once."""

    def write(self, ref: int, entry: GrantEntry, in_use: int = 0) -> None:
        """Write an entry that permits access to a page, its flags last."""

    def in_use(self, ref: int) -> int:
        """The hypervisor's two bits."""

    def mark(self, ref: int, bits: int) -> None:
        """Set some of them."""

    def clear(self, ref: int, bits: int) -> None:
        """Clear some of them."""

    def set_flags(self, ref: int, bits: int) -> None:
        """Set bits of the entry's own flags: the steps of a transfer."""

    def exchange_frame(self, ref: int, frame: int) -> int:
        """Store a frame number and return the one that was there."""

    def swap(self, a: int, b: int) -> None:
        """Exchange two entries, with all that belongs to them."""


class _Array:
    """Fixed-size elements that never straddle a frame, in a list of frames that may grow."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "_frames": "the table's",
        "_size": "fixed",
        "_per_frame": "fixed",
    }

    def __init__(self, frames: Sequence[SharedPage], size: int) -> None:
        self._frames = frames
        self._size = size
        self._per_frame = PAGE_SIZE // size

    def at(self, index: int) -> tuple[SharedPage, int]:
        """An element's frame and its offset there."""
        return self._frames[index // self._per_frame], index % self._per_frame * self._size

    def swap(self, a: int, b: int) -> None:
        """Exchange two elements."""
        (frame_a, at_a), (frame_b, at_b) = self.at(a), self.at(b)
        raw_a, raw_b = frame_a.read(at_a, self._size), frame_b.read(at_b, self._size)
        frame_a.write(at_a, raw_b)
        frame_b.write(at_b, raw_a)


class EntriesV1:
    """Version 1."""

    version = 1
    size = 8

    NOT_STATE: ClassVar[Mapping[str, str]] = {"_array": "the table's frames"}

    def __init__(self, frames: Sequence[SharedPage]) -> None:
        self._array = _Array(frames, self.size)

    def read(self, ref: int) -> GrantEntry:
        """Read an entry, once."""
        frame, at = self._array.at(ref)
        combined = frame.read_u32(at)
        return GrantEntry(combined & 0xFFFF, combined >> 16, frame.read_u32(at + 4))

    def write(self, ref: int, entry: GrantEntry, in_use: int = 0) -> None:
        """Write an entry that permits access to a page, its flags last."""
        frame, at = self._array.at(ref)
        frame.write_u16(at + 2, entry.domid)
        frame.write_u32(at + 4, entry.frame & MASK32)
        frame.write_u16(at, entry.flags | in_use)

    def in_use(self, ref: int) -> int:
        """The hypervisor's two bits."""
        frame, at = self._array.at(ref)
        return frame.read_u16(at) & IN_USE

    def mark(self, ref: int, bits: int) -> None:
        """Set some of them."""
        frame, at = self._array.at(ref)
        frame.write_u16(at, frame.read_u16(at) | bits)

    set_flags = mark

    def clear(self, ref: int, bits: int) -> None:
        """Clear some of them."""
        frame, at = self._array.at(ref)
        frame.write_u16(at, frame.read_u16(at) & ~int(bits))

    def exchange_frame(self, ref: int, frame: int) -> int:
        """Store a frame number and return the one that was there."""
        page, at = self._array.at(ref)
        old = page.read_u32(at + 4)
        page.write_u32(at + 4, frame)
        return old

    def swap(self, a: int, b: int) -> None:
        """Exchange two entries."""
        self._array.swap(a, b)


class EntriesV2:
    """Version 2: entries, and their statuses in frames of their own."""

    version = 2
    size = 16

    NOT_STATE: ClassVar[Mapping[str, str]] = {"_array": "the table's frames", "_status": "the table's frames"}

    def __init__(self, frames: Sequence[SharedPage], status: Sequence[SharedPage]) -> None:
        self._array = _Array(frames, self.size)
        self._status = _Array(status, STATUS_SIZE)

    def read(self, ref: int) -> GrantEntry:
        """Read an entry, once."""
        frame, at = self._array.at(ref)
        combined = frame.read_u32(at)
        flags, domid = combined & 0xFFFF, combined >> 16
        if flags & EntryFlag.TYPE_MASK == EntryFlag.TRANSITIVE:
            return GrantEntry(flags, domid, 0, via=(frame.read_u16(at + 4), frame.read_u32(at + 8)))
        mfn = frame.read_u64(at + 8)
        if flags & EntryFlag.SUB_PAGE:
            return GrantEntry(flags, domid, mfn, frame.read_u16(at + 4) & _START_MASK, frame.read_u16(at + 6))
        return GrantEntry(flags, domid, mfn)

    def write(self, ref: int, entry: GrantEntry, in_use: int = 0) -> None:
        """Write an entry that permits access to a page, its flags last."""
        frame, at = self._array.at(ref)
        frame.write_u32(at + 4, 0)
        frame.write_u64(at + 8, entry.frame)
        frame.write_u16(at + 2, entry.domid)
        status, where = self._status.at(ref)
        status.write_u16(where, in_use)
        frame.write_u16(at, entry.flags)

    def in_use(self, ref: int) -> int:
        """The hypervisor's two bits."""
        status, at = self._status.at(ref)
        return status.read_u16(at) & IN_USE

    def mark(self, ref: int, bits: int) -> None:
        """Set some of them."""
        status, at = self._status.at(ref)
        status.write_u16(at, status.read_u16(at) | bits)

    def clear(self, ref: int, bits: int) -> None:
        """Clear some of them."""
        status, at = self._status.at(ref)
        status.write_u16(at, status.read_u16(at) & ~int(bits))

    def set_flags(self, ref: int, bits: int) -> None:
        """Set bits of the entry's own flags: the steps of a transfer."""
        frame, at = self._array.at(ref)
        frame.write_u16(at, frame.read_u16(at) | bits)

    def exchange_frame(self, ref: int, frame: int) -> int:
        """Store a frame number and return the one that was there."""
        page, at = self._array.at(ref)
        old = page.read_u64(at + 8)
        page.write_u64(at + 8, frame)
        return old

    def swap(self, a: int, b: int) -> None:
        """Exchange two entries and their statuses."""
        self._array.swap(a, b)
        self._status.swap(a, b)
