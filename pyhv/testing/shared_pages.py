# SPDX-License-Identifier: GPL-2.0-only
"""A page that guest and hypervisor share, without a machine around it."""

from collections.abc import Mapping
from typing import ClassVar

from pyhv.address import PAGE_SIZE, Mfn
from pyhv.shared_page import SharedPage


class BytesPage(SharedPage):
    """A frame as bytes; whoever reaches beyond it, or across a word's alignment, fails."""

    NOT_STATE: ClassVar[Mapping[str, str]] = dict.fromkeys(("mfn", "bytes"), "it stands for memory")

    def __init__(self, mfn: int = 0) -> None:
        self.mfn = Mfn(mfn)
        self.bytes = bytearray(PAGE_SIZE)

    def read(self, offset: int, length: int) -> bytes:
        """Bytes of the page."""
        assert 0 <= offset <= offset + length <= PAGE_SIZE
        return bytes(self.bytes[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes."""
        assert 0 <= offset <= offset + len(data) <= PAGE_SIZE
        self.bytes[offset : offset + len(data)] = data

    def window(self, offset: int, length: int) -> memoryview:
        """A view for reading."""
        assert 0 <= offset <= offset + length <= PAGE_SIZE
        return memoryview(self.bytes)[offset : offset + length].toreadonly()

    def read_u32(self, offset: int) -> int:
        """An aligned 32-bit word."""
        assert offset % 4 == 0
        return super().read_u32(offset)

    def write_u32(self, offset: int, value: int) -> None:
        """Store an aligned 32-bit word."""
        assert offset % 4 == 0
        super().write_u32(offset, value)

    def word(self, offset: int, size: int = 8) -> int:
        """A word at any offset, for a test to look at."""
        return int.from_bytes(self.bytes[offset : offset + size], "little")
