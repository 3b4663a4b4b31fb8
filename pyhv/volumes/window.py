# SPDX-License-Identifier: GPL-2.0-only
"""A part of a disk, read within its bounds: all that the readers of this package see."""

import struct
from typing import Any, Final, Protocol

from pyhv.errors import VolumeError

SECTOR: Final = 512


class Readable(Protocol):
    """What can be read by offset; a disk is."""

    @property
    def size(self) -> int:
        """In bytes."""

    def read(self, offset: int, length: int) -> bytes:
        """All of the bytes, within the size; or a PyhvError."""


class Window:
    """`size` bytes of something readable, from `start` on. `name` is what messages call it."""

    def __init__(self, whole: Readable, name: str, start: int = 0, size: int | None = None) -> None:
        self._whole = whole
        self._start = start
        self.name = name
        self.size = max(0, min(whole.size - start, whole.size if size is None else size))
        """Bytes that are there: a partition may say that it is larger than its disk."""

    def read(self, offset: int, length: int) -> bytes:
        """All of the bytes. VolumeError: they are not all there."""
        if offset < 0 or length < 0 or offset + length > self.size:
            raise VolumeError(
                f"{self.name}: what is on it refers to {length} bytes at {offset:#x}, behind its end at"
                f" {self.size:#x}"
            )
        return self._whole.read(self._start + offset, length) if length else b""

    def peek(self, offset: int, length: int) -> bytes:
        """As `read`, with zeros for what lies behind the end."""
        there = max(0, min(length, self.size - offset))
        return (self.read(offset, there) if there else b"").ljust(length, b"\0")

    def part(self, name: str, start: int, size: int) -> "Window":
        """A window within this one, cut off at its end."""
        return Window(self, name, start, size)


class Fields:
    """Little-endian numbers and texts by offset in a structure on the disk."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def u8(self, at: int) -> int:
        """One byte."""
        return self.data[at]

    def u16(self, at: int) -> int:
        """Two bytes."""
        return self._number("<H", at)

    def u32(self, at: int) -> int:
        """Four bytes."""
        return self._number("<I", at)

    def u64(self, at: int) -> int:
        """Eight bytes."""
        return self._number("<Q", at)

    def text(self, at: int, length: int, encoding: str = "utf-8") -> str:
        """A text up to its first NUL or its length, with blanks at the end taken off."""
        raw = self.data[at : at + length].split(b"\0", 1)[0]
        return raw.decode(encoding, "replace").rstrip(" ")

    def _number(self, form: str, at: int) -> int:
        value: tuple[Any, ...] = struct.unpack_from(form, self.data, at)
        return int(value[0])


def uuid_text(raw: bytes) -> str:
    """A UUID that is stored in the order in which it is written."""
    digits = raw.hex()
    return "-".join((digits[:8], digits[8:12], digits[12:16], digits[16:20], digits[20:]))


def guid_text(raw: bytes) -> str:
    """A UUID in Microsoft's order, as GPT stores it: the first three groups are little-endian numbers."""
    first, second, third = struct.unpack("<IHH", raw[:8])
    return f"{first:08x}-{second:04x}-{third:04x}-{raw[8:10].hex()}-{raw[10:16].hex()}"
