# SPDX-License-Identifier: GPL-2.0-only
"""The memory of a snapshot as blocks for a file: equal pages once, zero pages not at all, compressed.

    table     frame numbers (u32) and, for each, the number of its page (u32)
    block 0   pages 0 .. 255, one behind the other, compressed with zstd
    block 1   pages 256 .. 511
    ...

A page number says which block and where in it. What a hostile file could say is checked: frames ascend and
lie within memory, page numbers exist, and each block has exactly as many bytes as its pages need.
"""

import hashlib
import os
from collections.abc import Iterable, Iterator
from typing import Final

import numpy as np
import zstandard

from pyhv.address import PAGE_SHIFT, PAGE_SIZE
from pyhv.cpu.layers import Image, Layer, MfnArray, runs
from pyhv.errors import SnapshotError
from pyhv.snapshot.compression import expand

PAGES_PER_BLOCK: Final = 256
_LEVEL: Final = 3
_AT_A_TIME: Final = 4096
"""Frames that are read or written together."""
_ZEROS: Final = bytes(PAGE_SIZE)


class PageWriter:
    """Takes the pages of an image; `blocks` gives what to write, then `table` says which frame has which."""

    def __init__(self, image: Image) -> None:
        self._image = image
        self._frames: list[int] = []
        self._pages: list[int] = []
        self._numbers: dict[bytes, int] = {}

    def blocks(self) -> Iterator[bytes]:
        """Compressed blocks of pages that differ, in the order of their numbers."""
        compressor = zstandard.ZstdCompressor(level=_LEVEL)
        waiting: list[memoryview] = []
        for mfn, page in self._contents():
            key = hashlib.blake2b(page, digest_size=16).digest()
            number = self._numbers.get(key)
            if number is None:
                number = self._numbers[key] = len(self._numbers)
                waiting.append(page)
            self._frames.append(mfn)
            self._pages.append(number)
            if len(waiting) == PAGES_PER_BLOCK:
                yield compressor.compress(b"".join(waiting))
                waiting.clear()
        if waiting:
            yield compressor.compress(b"".join(waiting))

    def _contents(self) -> Iterator[tuple[int, memoryview]]:
        for first, count in runs(self._image.existing()):
            for start in range(first, first + count, _AT_A_TIME):
                length = min(_AT_A_TIME, first + count - start)
                data = memoryview(b"".join(self._image.read(start, length)))
                for number in range(length):
                    page = data[number << PAGE_SHIFT : number + 1 << PAGE_SHIFT]
                    if page != _ZEROS:
                        yield start + number, page

    def table(self) -> bytes:
        """Frames and their page numbers; complete when `blocks` is."""
        columns = np.array([self._frames, self._pages], dtype="<u4")
        return zstandard.ZstdCompressor(level=_LEVEL).compress(columns.tobytes())

    @property
    def differing(self) -> int:
        """How many pages were written."""
        return len(self._numbers)


def read_pages(frames: int, table: bytes, blocks: Iterable[bytes]) -> Image:
    """The image of `frames` frames that `PageWriter` wrote. SnapshotError: it cannot be one."""
    owners, pages = _read_table(frames, table)
    if owners.size > _host_pages():
        raise SnapshotError(f"has {owners.size >> 8} MiB of memory, more than this host")
    differing = int(pages.max()) + 1 if pages.size else 0
    order = np.argsort(pages, kind="stable")
    sorted_pages = pages[order]
    layer = Layer(frames)
    words = layer.words()
    first = 0
    for block in blocks:
        count = min(PAGES_PER_BLOCK, differing - first)
        if count <= 0:
            raise SnapshotError("has more blocks of memory than its table speaks of")
        size = count << PAGE_SHIFT
        rows = np.frombuffer(expand(block, "memory", at_least=size, at_most=size), dtype=np.uint64).reshape(
            count, 512
        )
        start, end = np.searchsorted(sorted_pages, (first, first + count))
        for at in range(start, end, _AT_A_TIME):  # any number of frames may have one page
            mine = order[at : min(at + _AT_A_TIME, end)]
            words[owners[mine]] = rows[pages[mine] - first]
        first += count
    if first != differing:
        raise SnapshotError("has fewer blocks of memory than its table speaks of")
    return Image((layer,), np.zeros(frames, dtype=np.int32))


def _host_pages() -> int:
    """How many pages of memory the host has in all."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") >> PAGE_SHIFT


def _read_table(frames: int, table: bytes) -> tuple[MfnArray, MfnArray]:
    """Frames, and the page number of each."""
    raw = expand(table, "a table of memory", at_most=frames * 8)
    if len(raw) % 8:
        raise SnapshotError("has a table of memory whose length is not possible")
    owners, pages = np.frombuffer(raw, dtype="<u4").reshape(2, -1).astype(np.int64)
    if owners.size and (int(owners.max()) >= frames or (np.diff(owners) <= 0).any()):
        raise SnapshotError("has a table of memory whose frames do not ascend, or lie beyond memory")
    # A page's number first appears when all lower ones have: no page is unused.
    if pages.size and (pages > np.concatenate(([-1], np.maximum.accumulate(pages)[:-1])) + 1).any():
        raise SnapshotError("has a table of memory that leaves out pages")
    return owners, pages
