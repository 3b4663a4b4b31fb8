# SPDX-License-Identifier: GPL-2.0-only
"""Byte rings in a page that a guest shares: the arithmetic, and the distrust.

Both legacy rings - console (public header io/console.h) and xenstore (io/xs_wire.h) - carry bytes in a
power-of-two buffer between two free-running 32-bit indices, one written by each side:

        cons                prod
         |                   |         used = prod - cons  (mod 2**32), never above size
    .....#####################.....    a byte's place is its index & (size - 1)

The guest can write anything anywhere in the page at any time, our own index included. So each operation
reads each index once, checks, and works with what it read. The page itself is reached through
`SharedPage` alone: who owns the frame, and who must hear that it was written, is the machine's business.
"""

from collections.abc import Mapping
from typing import ClassVar

from pyhv.address import MASK32
from pyhv.shared_page import SharedPage


class RingBroken(Exception):
    """The indices claim more bytes than the ring holds: the guest, or its bug, has been at them."""


class ByteRing:
    """One direction of a ring, seen by whichever side uses it: `read` consumes, `write` produces."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "_page": "given; indices and bytes are in it",
        **dict.fromkeys(("size", "_data", "_cons", "_prod"), "of the protocol"),
    }

    def __init__(self, page: SharedPage, data: int, size: int, cons: int, prod: int) -> None:
        """`data`, `cons` and `prod` are offsets in the page; `size` is a power of two."""
        if size <= 0 or size & (size - 1):
            raise ValueError(f"a ring of {size} bytes: the size must be a power of two")
        self.size = size
        self._page = page
        self._data = data
        self._cons = cons
        self._prod = prod

    def used(self) -> int:
        """Bytes that wait to be consumed. Raises `RingBroken`."""
        page = self._page
        return self._used(page.read_u32(self._cons), page.read_u32(self._prod))

    def free(self) -> int:
        """Bytes that may be produced. Raises `RingBroken`."""
        return self.size - self.used()

    def read(self, limit: int | None = None) -> bytes:
        """Consume all bytes, or at most `limit`. Raises `RingBroken`."""
        page = self._page
        cons = page.read_u32(self._cons)
        count = self._used(cons, page.read_u32(self._prod))
        if limit is not None and limit < count:
            count = max(limit, 0)
        if count == 0:
            return b""
        start = cons & (self.size - 1)
        first = min(count, self.size - start)
        data = page.read(self._data + start, first)
        if first < count:
            data += page.read(self._data, count - first)
        # Only now may the producer overwrite what has been copied.
        page.write_u32(self._cons, (cons + count) & MASK32)
        return data

    def write(self, data: bytes) -> int:
        """Produce as many bytes of `data` as fit; returns how many. Raises `RingBroken`."""
        page = self._page
        prod = page.read_u32(self._prod)
        count = min(len(data), self.size - self._used(page.read_u32(self._cons), prod))
        if count == 0:
            return 0
        start = prod & (self.size - 1)
        first = min(count, self.size - start)
        page.write(self._data + start, data[:first])
        if first < count:
            page.write(self._data, data[first:count])
        # The bytes come before the index that publishes them.
        page.write_u32(self._prod, (prod + count) & MASK32)
        return count

    def clear(self) -> None:
        """Set both indices to 0."""
        self._page.write_u32(self._cons, 0)
        self._page.write_u32(self._prod, 0)

    def _used(self, cons: int, prod: int) -> int:
        used = (prod - cons) & MASK32
        if used > self.size:
            raise RingBroken(f"producer {prod:#x}, consumer {cons:#x}, but the ring has {self.size} bytes")
        return used
