# SPDX-License-Identifier: GPL-2.0-only
"""How often each cluster of a qcow2 image is referred to: who is free is given out, who is dropped becomes
free.

    refcount table   one entry of 8 bytes for each block: where it is, or 0: all that it would count is free
    refcount block   a cluster of numbers of 1 to 64 bits, those of less than a byte from its low bit on;
                     number n of block b counts cluster b * (numbers in a block) + n

A new block lies in the first cluster that it counts itself. When the table is full, a larger one is made in
the clusters behind all that it counts, and the header is changed to name it.

Numbers are changed in memory and written by `write`, which the disk calls before anything refers to what was
given out. So a process that dies leaves clusters that are counted and not used, and never the other way
round.
"""

import errno
from collections import OrderedDict
from typing import Any, Final

import numpy as np

from pyhv.storage.disk import SECTOR, DiskError
from pyhv.storage.hostfile import LARGEST, HostFile
from pyhv.storage.qcow2.header import MOST_REFCOUNT_TABLE, Header, place_of_refcount_table
from pyhv.storage.qcow2.tables import Reserved, Table, odd_places, packed

_CACHED: Final = 16 << 20
"""Bytes of refcount blocks in memory."""
_FEWEST: Final = 4
_Counts = np.ndarray[tuple[int], np.dtype[Any]]


class RefcountBlock:
    """A refcount block in memory, and which of its numbers the file lacks."""

    __slots__ = ("counts", "high", "low", "offset")

    def __init__(self, offset: int, counts: _Counts) -> None:
        self.offset = offset
        self.counts = counts
        self.low, self.high = len(counts), 0

    @property
    def dirty(self) -> bool:
        """Whether something of it is not in the file."""
        return self.low < self.high

    def set(self, first: int, count: int, value: int) -> None:
        """Change numbers in memory."""
        self.counts[first : first + count] = value
        self.changed(first, count)

    def changed(self, first: int, count: int) -> None:
        """These numbers have been changed."""
        self.low = min(self.low, first)
        self.high = max(self.high, first + count)


def unpack(raw: bytes, order: int) -> _Counts:
    """The numbers of 1 << order bits in a block or a part of one."""
    if order >= 3:
        return np.frombuffer(raw, f">u{1 << order - 3}").astype(f"u{1 << order - 3}")
    bits = np.unpackbits(np.frombuffer(raw, np.uint8), bitorder="little").reshape(-1, 1 << order)
    weights = np.left_shift(np.uint8(1), np.arange(1 << order, dtype=np.uint8))
    found: _Counts = (bits * weights).sum(axis=1, dtype=np.uint8)
    return found


def pack(counts: _Counts, order: int) -> bytes:
    """As they are in the file; of a number that begins and ends with a byte."""
    if order >= 3:
        return counts.astype(f">u{1 << order - 3}").tobytes()
    places = np.arange(1 << order, dtype=np.uint8)
    bits = (counts.astype(np.uint8)[:, None] >> places) & 1
    return np.packbits(bits.reshape(-1), bitorder="little").tobytes()


class Refcounts:
    """Gives out clusters of an image and takes them back. Its caller holds the image's lock."""

    def __init__(self, file: HostFile, header: Header, table: Table) -> None:
        self._file = file
        self._bits = header.cluster_bits
        self._size = header.cluster_size
        self._order = header.refcount_order
        self._per_block = self._size * 8 >> self._order
        self._most = max(_FEWEST, _CACHED >> header.cluster_bits)
        self._table = table
        self._table_clusters = header.refcount_table_clusters
        self._blocks: OrderedDict[int, RefcountBlock] = OrderedDict()
        self._unlinked: dict[int, int] = {}
        """Blocks that the table in the file does not name yet: their place by their number."""
        self._next = 0
        """All clusters before it are in use."""
        self.end = -(-file.size // self._size) * self._size
        """Bytes of the file, up to the end of its last cluster; all after it has never been written."""
        self.reserved: Reserved
        self._check_table()

    def _check_table(self) -> None:
        size = self._size
        for entry in odd_places(self._table.entries, size - 1, -size & (1 << 64) - 1, self.end):
            raise DiskError(f"{self._file.path}: has a refcount block at {entry:#x}, which cannot be")

    @property
    def crowded(self) -> bool:
        """Whether half of the blocks in memory are dirty: time to write."""
        return 2 * sum(block.dirty for block in self._blocks.values()) >= self._most

    # -- giving out and taking back --------------------------------------------------------------------------

    def allocate(self, most: int) -> tuple[int, int]:
        """A run of free clusters, counted from now on: the first, and how many, at most `most`. DiskError.

        Free once more is what `release` was told, and what `undo` was.
        """
        while True:
            number, first = divmod(self._next, self._per_block)
            block = self._block(number)
            free = block.counts[first:] == 0
            skip = int(free.argmax())
            if first + skip >= self._per_block or not free[skip]:
                self._next = (number + 1) * self._per_block
                continue
            run = free[skip : skip + most]
            count = len(run) if run.all() else int(run.argmin())
            start = number * self._per_block + first + skip
            if self.reserved.overlaps(start, count):
                raise DiskError(
                    f"{self._file.path}: is damaged: what its refcounts call free holds a table; qemu-img "
                    "check -r all "
                    "repairs it"
                )
            if (start + count) * self._size > LARGEST:
                raise DiskError(f"{self._file.path}: is full: no file can be larger", errno.EFBIG)
            block.set(first + skip, count, 1)
            self._next = start + count
            self.end = max(self.end, (start + count) * self._size)
            return start, count

    def release(self, first: int, count: int) -> None:
        """One reference less to each of these clusters."""
        for number, index, span in self._spans(first, count):
            if number >= len(self._table.entries) or not self._table.entries[number]:
                continue  # counted as free already: the image was damaged before
            block = self._block(number)
            part = block.counts[index : index + span]
            part[part != 0] -= 1
            block.changed(index, span)
        self._next = min(self._next, first)

    def undo(self, first: int, count: int) -> None:
        """Clusters that were given out are not used after all; nothing in the file refers to them."""
        self.release(first, count)

    def _spans(self, first: int, count: int) -> list[tuple[int, int, int]]:
        found = []
        while count:
            number, index = divmod(first, self._per_block)
            span = min(count, self._per_block - index)
            found.append((number, index, span))
            first, count = first + span, count - span
        return found

    # -- the file --------------------------------------------------------------------------------------------

    def write(self) -> None:
        """Bring all numbers to the file; they are on the disk with its next sync, and so is what leads to
        them."""
        for block in self._blocks.values():
            self._write_block(block)
        if not self._unlinked:
            return
        self._file.sync()  # the blocks, before the table names them
        for number, offset in sorted(self._unlinked.items()):
            self._file.write(self._table.offset + number * 8, offset.to_bytes(8, "big"))
        self._unlinked.clear()

    def _write_block(self, block: RefcountBlock) -> None:
        if not block.dirty:
            return
        numbers = max(SECTOR * 8 >> self._order, 1)  # whole sectors
        low, high = block.low // numbers * numbers, -(-block.high // numbers) * numbers
        self._file.write(block.offset + (low << self._order >> 3), pack(block.counts[low:high], self._order))
        block.low, block.high = len(block.counts), 0

    def _block(self, number: int) -> RefcountBlock:
        """A block in memory; a new one if the image has none."""
        if number >= len(self._table.entries):
            self._grow(number)
        block = self._blocks.get(number)
        if block is not None:
            self._blocks.move_to_end(number)
            return block
        offset = self._table.entries[number]
        if not offset:
            return self._make_block(number)
        raw = self._file.read(offset, self._size).ljust(self._size, b"\0")
        return self._keep(number, RefcountBlock(offset, unpack(raw, self._order)))

    def _keep(self, number: int, block: RefcountBlock) -> RefcountBlock:
        while len(self._blocks) >= self._most:
            old = next((at for at, one in self._blocks.items() if not one.dirty), None)
            if old is None:
                break
            del self._blocks[old]
        self._blocks[number] = block
        return block

    def _make_block(self, number: int) -> RefcountBlock:
        first = number * self._per_block
        if self.reserved.overlaps(first, 1):
            raise DiskError(
                f"{self._file.path}: is damaged: its refcounts are missing; qemu-img check -r all repairs it"
            )
        block = self._empty_block(first)
        block.set(0, 1, 1)
        self._file.write(block.offset, pack(block.counts, self._order))
        self.end = max(self.end, block.offset + self._size)
        self.reserved.add([first])
        self._table.entries[number] = block.offset
        self._unlinked[number] = block.offset
        return self._keep(number, block)

    def _empty_block(self, cluster: int) -> RefcountBlock:
        kind = f"u{max(1 << self._order >> 3, 1)}"
        return RefcountBlock(cluster * self._size, np.zeros(self._per_block, kind))

    def _grow(self, number: int) -> None:
        """Make a larger table, behind all that the present one counts, with the blocks that count it."""
        old = len(self._table.entries)
        base = old * self._per_block
        clusters, blocks = 0, 0
        while clusters * self._size < 8 * max(old + blocks, number + 1, old * 3 // 2):
            clusters = -(-8 * max(old + blocks, number + 1, old * 3 // 2) // self._size)
            blocks = -(-(clusters + blocks) // self._per_block)
        if clusters * self._size > MOST_REFCOUNT_TABLE or (base + blocks + clusters) * self._size > LARGEST:
            raise DiskError(f"{self._file.path}: is full: its refcount table cannot be larger", errno.EFBIG)
        self.write()
        table = Table((base + blocks) * self._size, self._table.entries[:])
        table.entries.extend([0] * (clusters * self._size // 8 - old))
        used = blocks + clusters
        for at in range(blocks):
            block = self._empty_block(base + at)
            block.set(0, min(self._per_block, max(used - at * self._per_block, 0)), 1)
            self._file.write(block.offset, pack(block.counts, self._order))
            block.low, block.high = len(block.counts), 0
            table.entries[old + at] = block.offset
            self._keep(old + at, block)
        self._file.write(table.offset, packed(table.entries))
        self._file.sync()
        self._file.write(*place_of_refcount_table(table.offset, clusters))
        self._file.sync()
        self.end = max(self.end, (base + used) * self._size)
        before, self._table = self._table, table
        freed = range(before.offset >> self._bits, (before.offset >> self._bits) + self._table_clusters)
        self._table_clusters = clusters
        self.reserved.add(range(base, base + used))
        self.reserved.remove(freed)
        self.release(freed.start, len(freed))  # the header on the disk names the new one already
