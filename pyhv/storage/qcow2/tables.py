# SPDX-License-Identifier: GPL-2.0-only
"""The tables of a qcow2 image that say where a guest's clusters are, as they are in memory.

An entry of L1 or L2, from its high bit down:

    L1    63 copied | 62-56 0 | 55-9 where the L2 table is | 8-0 0
    L2    63 copied | 62 compressed: 0 | 61-56 0 | 55-9 where the cluster is | 8-1 0 | 0 zeros (version 3)
          63 0      | 62 compressed: 1 | x bits: sectors besides the first | 62-x bits: where, to the byte
                                         x = cluster bits - 8

*Copied* says that nothing else refers to it, so that it may be written in place. No place at all: the base's
bytes. *Zeros* are zeros whatever the base has; with a place, that one is kept for when it is written. Whoever
uses an entry asks `EntryRules` first whether it can be.

What was changed in memory is dirty, and is written when the disk says so: see `disk.py` for the order.
"""

import sys
from array import array
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator
from typing import Final

import numpy as np

from pyhv.storage.disk import DiskError
from pyhv.storage.hostfile import HostFile
from pyhv.storage.qcow2.header import Header

COPIED: Final = 1 << 63
COMPRESSED: Final = 1 << 62
ZERO: Final = 1
_PLACE: Final = 0x00FF_FFFF_FFFF_FE00
_SECTOR_BITS: Final = 9
_CACHED: Final = 32 << 20
"""Bytes of L2 tables in memory; with clusters of 64 KiB they say where 256 GiB are."""
_FEWEST: Final = 4
_LOOK: Final = 16
"""How often it is asked whether the cache is crowded, before that is found out."""


class EntryRules:
    """What entries an image can have."""

    def __init__(self, header: Header) -> None:
        place = _PLACE & ~(header.cluster_size - 1)
        self.place = place
        """Bits of an entry that are a place in the file."""
        self.not_in_l1 = ~(COPIED | place)
        """No bit of these is set in an entry of L1."""
        self.not_in_l2 = ~(COPIED | place | (ZERO if header.version >= 3 else 0))
        """... of L2, unless the cluster is compressed."""
        self.has_zeros = header.version >= 3
        self._count_shift = 62 - (header.cluster_bits - 8)
        self._count_mask = (1 << (header.cluster_bits - 8)) - 1

    def compressed(self, entry: int) -> tuple[int, int]:
        """Where a compressed cluster is, and how many bytes at most it has."""
        at = entry & ((1 << self._count_shift) - 1)
        sectors = (entry >> self._count_shift & self._count_mask) + 1
        return at, (sectors << _SECTOR_BITS) - (at & (1 << _SECTOR_BITS) - 1)


class Table:
    """Entries of 8 bytes, big-endian in the file and numbers here, and which of them it lacks there."""

    __slots__ = ("_high", "_low", "entries", "offset")

    def __init__(self, offset: int, entries: "array[int]") -> None:
        self.offset = offset
        """Where it is in the file."""
        self.entries = entries
        self._low = len(entries)
        self._high = 0

    @classmethod
    def read(cls, file: HostFile, offset: int, count: int) -> "Table":
        """`count` entries of a file; what is beyond its end is 0."""
        entries = array("Q", file.read(offset, count * 8).ljust(count * 8, b"\0"))
        return cls(offset, _swapped(entries))

    @classmethod
    def made(cls, offset: int, entries: Iterable[int]) -> "Table":
        """A new one, of which the file has nothing yet."""
        table = cls(offset, array("Q", entries))
        table._low, table._high = 0, len(table.entries)
        return table

    @property
    def dirty(self) -> bool:
        """Whether something of it is not in the file."""
        return self._low < self._high

    def store(self, index: int, entry: int) -> None:
        """Change an entry in memory."""
        self.entries[index] = entry
        self._low = min(self._low, index)
        self._high = max(self._high, index + 1)

    def write(self, file: HostFile) -> None:
        """Bring what was changed to the file."""
        if self.dirty:
            file.write(self.offset + self._low * 8, packed(self.entries[self._low : self._high]))
            self.written()

    def written(self) -> None:
        """All of it is in the file."""
        self._low, self._high = len(self.entries), 0


def packed(entries: "array[int]") -> bytes:
    """As they are in the file."""
    return _swapped(array("Q", entries)).tobytes()


def _swapped(entries: "array[int]") -> "array[int]":
    if sys.byteorder == "little":
        entries.byteswap()
    return entries


class TableCache:
    """L2 tables in memory by their place: those that were used last, and all that are dirty."""

    def __init__(self, file: HostFile, header: Header, check: Callable[["Table"], None]) -> None:
        self._file = file
        self._count = header.cluster_size // 8
        self._most = max(_FEWEST, _CACHED >> header.cluster_bits)
        self._tables: OrderedDict[int, Table] = OrderedDict()
        self._check = check
        self._asked = 0

    def get(self, offset: int) -> Table:
        """The table that lies there; DiskError."""
        table = self._tables.get(offset)
        if table is not None:
            self._tables.move_to_end(offset)
            return table
        table = Table.read(self._file, offset, self._count)
        self._check(table)
        self.add(table)
        return table

    def add(self, table: Table) -> None:
        """One that was made or read; it takes the place of one that was not used for long and is not
        dirty."""
        while len(self._tables) >= self._most:
            old = next((at for at, one in self._tables.items() if not one.dirty), None)
            if old is None:
                break
            del self._tables[old]
        self._tables[table.offset] = table

    def keep(self, table: Table) -> None:
        """This one is going to be changed: it is the one that all will get, should it have been forgotten
        since."""
        if self._tables.get(table.offset) is not table:
            self._tables[table.offset] = table

    def drop(self, offset: int) -> None:
        """It is no table any more."""
        self._tables.pop(offset, None)

    def dirty(self) -> list[Table]:
        """Those that have to be written, in the order of the file."""
        return sorted(
            (table for table in self._tables.values() if table.dirty), key=lambda table: table.offset
        )

    @property
    def crowded(self) -> bool:
        """Whether half of it may be dirty: time to write. Where many fit in, only now and then looked at."""
        self._asked += 1
        if self._asked % _LOOK and self._most > 4 * _LOOK:
            return False
        return 2 * sum(table.dirty for table in self._tables.values()) >= self._most


class Reserved:
    """Clusters of the file that hold tables, so that no data may ever lie there."""

    def __init__(self, header: Header, l1: "array[int]", blocks: "array[int]", name: str) -> None:
        bits = header.cluster_bits
        size = header.cluster_size
        fixed = [
            np.zeros(1, np.int64),
            np.arange(-(-header.l1_entries * 8 // size), dtype=np.int64) + (header.l1_offset >> bits),
            np.arange(header.refcount_table_clusters, dtype=np.int64) + (header.refcount_table >> bits),
            _places(l1) >> bits,
            _places(blocks) >> bits,
        ]
        total = np.concatenate(fixed)
        self._sorted = np.sort(total, kind="stable")
        self._more: set[int] = set()
        if (self._sorted[1:] == self._sorted[:-1]).any():
            raise DiskError(
                f"{name}: some of its tables lie on top of each other: qemu-img check -r all repairs it"
            )

    def add(self, clusters: Iterable[int]) -> None:
        """More of them."""
        self._more.update(clusters)

    def remove(self, clusters: Iterable[int]) -> None:
        """They hold tables no longer."""
        gone = list(clusters)
        self._more.difference_update(gone)
        self._sorted = np.setdiff1d(self._sorted, np.array(gone, np.int64), assume_unique=True)

    def overlaps(self, first: int, count: int) -> bool:
        """Whether one of these clusters holds a table."""
        low, high = np.searchsorted(self._sorted, (first, first + count))
        return bool(low != high) or any(first + n in self._more for n in range(count))

    def meets(self, table: Table, rules: EntryRules, bits: int) -> bool:
        """Whether an L2 table calls a cluster with a table in it a guest's."""
        entries = np.array(table.entries, np.uint64)
        plain = entries[(entries & np.uint64(COMPRESSED)) == 0]
        clusters = ((plain & np.uint64(rules.place)) >> np.uint64(bits)).astype(np.int64)
        clusters = clusters[clusters != 0]
        if not len(clusters):
            return False
        at = np.searchsorted(self._sorted, clusters)
        found = self._sorted[np.minimum(at, len(self._sorted) - 1)] == clusters
        return bool(found.any()) or not self._more.isdisjoint(clusters.tolist())


def _places(entries: "array[int]") -> "np.ndarray[tuple[int], np.dtype[np.int64]]":
    places = np.array(entries, np.uint64) & np.uint64(_PLACE)
    found: np.ndarray[tuple[int], np.dtype[np.int64]] = places[places != 0].astype(np.int64)
    return found


def odd_places(entries: "array[int]", never: int, place: int, end: int) -> list[int]:
    """The first of many entries that cannot be: it has bits of `never`, or lies behind the end. Or none."""
    many = np.array(entries, np.uint64)
    odd = (many & np.uint64(never & (1 << 64) - 1)) != 0
    odd |= (many & np.uint64(place)) >= np.uint64(max(end, 1))
    found: list[int] = many[odd][:1].tolist()
    return found


def runs(clusters: Iterable[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """Runs (first, count) joined where one goes on where the last has ended."""
    first, count = -1, 0
    for start, length in clusters:
        if count and start == first + count:
            count += length
            continue
        if count:
            yield first, count
        first, count = start, length
    if count:
        yield first, count
