# SPDX-License-Identifier: GPL-2.0-only
"""One frame that guest and hypervisor share: shared_info, a vcpu_info, a ring, a grant table, an event array.

Who keeps a protocol with the guest in such a page sees it as a `SharedPage`, by byte offset. Whose frame it
is, and who has to hear that it was written, is the business of whoever made the page (`mmu/physical.py` does
for the machine's memory).
"""

from pyhv.address import Mfn


class SharedPage:
    """One 4096-byte frame; offsets are bytes from its start, and callers stay inside it.

    Words are little-endian and aligned to their size. Each is read once and stored at once: the guest may
    change the page at any time when it runs on another processor.
    """

    mfn: Mfn
    """The machine frame."""

    def elsewhere(self, mfn: Mfn) -> "SharedPage | None":
        """Another frame of the same memory; None if there is none of that number."""
        return None

    def read(self, offset: int, length: int) -> bytes:
        """A copy of `length` bytes."""
        raise NotImplementedError

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes."""
        raise NotImplementedError

    def window(self, offset: int, length: int) -> memoryview:
        """Some bytes as they are at any time, for reading only."""
        raise NotImplementedError

    def read_u8(self, offset: int) -> int:
        """One byte."""
        return self.read(offset, 1)[0]

    def write_u8(self, offset: int, value: int) -> None:
        """Store one byte."""
        self.write(offset, bytes((value,)))

    def read_u16(self, offset: int) -> int:
        """Two bytes."""
        return int.from_bytes(self.read(offset, 2), "little")

    def write_u16(self, offset: int, value: int) -> None:
        """Store two bytes."""
        self.write(offset, value.to_bytes(2, "little"))

    def read_u32(self, offset: int) -> int:
        """Four bytes."""
        return int.from_bytes(self.read(offset, 4), "little")

    def write_u32(self, offset: int, value: int) -> None:
        """Store four bytes."""
        self.write(offset, value.to_bytes(4, "little"))

    def read_u64(self, offset: int) -> int:
        """Eight bytes."""
        return int.from_bytes(self.read(offset, 8), "little")

    def write_u64(self, offset: int, value: int) -> None:
        """Store eight bytes."""
        self.write(offset, value.to_bytes(8, "little"))
