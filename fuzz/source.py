# SPDX-License-Identifier: GPL-2.0-only
"""An input as a stream of choices. Past its end everything is 0, so every byte string is an input, and inputs
padded to what they used can be joined to one that does the same.
"""

from collections.abc import Sequence
from typing import TypeVar

_T = TypeVar("_T")


class Source:
    """Reads choices from `data`; `at` is the next byte, and may lie beyond the end."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._length = len(data)
        self.at = 0

    @property
    def more(self) -> bool:
        """Whether there is input left."""
        return self.at < self._length

    def u8(self) -> int:
        """One byte."""
        at = self.at
        self.at = at + 1
        return self._data[at] if at < self._length else 0

    def number(self, size: int) -> int:
        """A little-endian number of `size` bytes."""
        at = self.at
        self.at = at + size
        return int.from_bytes(self._data[at : at + size], "little")

    def below(self, bound: int) -> int:
        """A number in 0 .. bound-1, `bound` at most 256."""
        return self.u8() % bound

    def pick(self, choices: Sequence[_T]) -> _T:
        """One of up to 256 choices."""
        return choices[self.u8() % len(choices)]

    def chance(self, in_256: int) -> bool:
        """True for `in_256` of 256 byte values, and never past the end."""
        return self.u8() > 255 - in_256

    def raw(self, length: int) -> bytes:
        """Exactly `length` bytes."""
        at = self.at
        self.at = at + length
        return self._data[at : at + length].ljust(length, b"\0")

    def used(self) -> bytes:
        """What has been read, zeros for what was read past the end."""
        return self._data[: self.at].ljust(self.at, b"\0")
