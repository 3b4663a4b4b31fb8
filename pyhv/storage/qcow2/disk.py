# SPDX-License-Identifier: GPL-2.0-only
"""A disk in a qcow2 image, perhaps on top of a base.

*Reading* looks up where the guest's clusters lie, under a lock, and moves the bytes without one. What the
image does not have is the base's, or zeros. *Writing* a cluster that the image has and nothing else refers to
goes there, in the same way. All other writes - to a cluster that is missing, zeros, compressed, or referred
to twice - get new clusters: one at a time does that, fills them with what was there and what is written, and
then says in L2 where they are.

So as long as nobody flushes, L1, L2 and refcounts change in memory alone. `flush` writes them, in an order in
which the file is sound at any moment, whether a process or the host dies:

    1. refcounts of what was given out        then sync: data, new tables and refcounts are on the disk
    2. L2 and L1, which refer to these        then sync: this is what was promised
    3. what nothing refers to any more        is free from now on; the file hears of it with the next flush

Whoever dies between two steps leaves clusters that are counted and not used (leaks), never used ones that are
not counted. The same happens early when tables in memory become too many, and when the disk is closed.
"""

import errno
import threading
from collections.abc import Callable, Iterator
from enum import Enum, auto
from typing import Final, NamedTuple

from pyhv.storage.disk import Disk, DiskError, Identity
from pyhv.storage.hostfile import HostFile
from pyhv.storage.qcow2.compressed import Expanded, expand
from pyhv.storage.qcow2.gate import DrainGate
from pyhv.storage.qcow2.header import AUTOCLEAR_AT, Header, parse
from pyhv.storage.qcow2.refcounts import Refcounts
from pyhv.storage.qcow2.tables import (
    COMPRESSED,
    COPIED,
    ZERO,
    EntryRules,
    Reserved,
    Table,
    TableCache,
    odd_places,
    runs,
)

_LARGEST_HEAD: Final = 1 << 21
"""Bytes that a header and what belongs to it can have: the largest cluster."""
_MOST_DROPPED: Final = 4096
"""Runs of clusters that wait to be free, before the tables are written."""


class Contents(Enum):
    """Where the bytes of a part of the disk are."""

    DATA = auto()
    BASE = auto()
    ZEROS = auto()
    COMPRESSED = auto()


class ImagePart(NamedTuple):
    """A part of the disk whose bytes are in one place."""

    kind: Contents
    length: int
    place: int
    """DATA: offset in the file. COMPRESSED: the entry of L2. Else -1."""
    copied: bool = False
    """DATA that may be written in place."""


def read_header(file: HostFile) -> Header:
    """The header of an image; DiskError."""
    head = file.read(0, 4096)
    bits = int.from_bytes(head[20:24], "big")
    if 12 < bits <= 21:
        head = file.read(0, min(1 << bits, _LARGEST_HEAD))
    return parse(head, file.size, file.path)


class Qcow2Disk(Disk):
    """The disk of an image; it closes the file and the base. `base` is read alone."""

    def __init__(self, file: HostFile, header: Header, base: Disk | None) -> None:
        super().__init__(file.path, header.size, read_only=not file.may_write)
        if file.may_write and header.obstacle:
            raise DiskError(f"{file.path}: {header.obstacle}", errno.EROFS)
        self.header = header
        self.base = base
        self._file = file
        self._bits = header.cluster_bits
        self._cluster = self.discard_granularity = header.cluster_size
        self._per_table_bits = header.cluster_bits - 3
        self._rules = EntryRules(header)
        self._l1 = Table.read(file, header.l1_offset, header.l1_entries)
        self._tables = TableCache(file, header, self._check_table)
        self._expanded = Expanded()
        self._end = -(-file.size // self._cluster) * self._cluster
        self._lock = threading.Lock()
        """For the tables in memory."""
        self._changing = threading.Lock()
        """Held by the one who gives out clusters, drops them, or flushes; taken before `_lock`."""
        self._gate = DrainGate()
        self._dropped: list[tuple[int, int]] = []
        """Runs of clusters that nothing in memory refers to, and something in the file may."""
        self._dropped_tables: list[int] = []
        """Where there were L2 tables among them."""
        self._counts: Refcounts | None = None
        if file.may_write:
            self._become_writable()

    def _become_writable(self) -> None:
        header = self.header
        entries = header.refcount_table_clusters * self._cluster // 8
        table = Table.read(self._file, header.refcount_table, entries)
        for entry in odd_places(self._l1.entries, self._rules.not_in_l1, self._rules.place, self._end):
            self._check_l1(entry)
        self._counts = Refcounts(self._file, header, table)
        self._counts.reserved = Reserved(header, self._l1.entries, table.entries, self.name)
        if header.version >= 3 and header.autoclear:
            self._file.write(AUTOCLEAR_AT, bytes(8))

    # -- where things are ------------------------------------------------------------------------------------

    @property
    def _file_end(self) -> int:
        return self._end if self._counts is None else self._counts.end

    def _check_l1(self, entry: int) -> None:
        if entry & self._rules.not_in_l1 or entry & self._rules.place >= self._file_end:
            raise DiskError(f"{self.name}: is damaged: it has an entry {entry:#x} in L1, which cannot be")

    def _check_table(self, table: Table) -> None:
        if self._counts is not None and self._counts.reserved.meets(table, self._rules, self._bits):
            raise DiskError(
                f"{self.name}: is damaged: what holds a table is called a guest's; qemu-img check -r all "
                "repairs it"
            )

    def _table_of(self, index: int) -> Table | None:
        """The L2 table that entry `index` of L1 names, if there is one. Under the lock."""
        entry = self._l1.entries[index]
        if not entry:
            return None
        self._check_l1(entry)
        place = entry & self._rules.place
        return self._tables.get(place) if place else None

    def _extent(self, entry: int, length: int, inner: int) -> ImagePart:
        """What an entry of L2 says of `length` bytes that begin at `inner` in its cluster."""
        if not entry & ~COPIED:
            return ImagePart(Contents.BASE, length, -1)
        if entry & COMPRESSED:
            return ImagePart(Contents.COMPRESSED, length, entry)
        place = entry & self._rules.place
        if entry & self._rules.not_in_l2 or place >= self._file_end:
            raise DiskError(f"{self.name}: is damaged: it has an entry {entry:#x} in L2, which cannot be")
        if entry & ZERO:
            return ImagePart(Contents.ZEROS, length, -1)
        return ImagePart(Contents.DATA, length, place + inner, bool(entry & COPIED))

    def _extents_of(self, offset: int, length: int) -> list[ImagePart]:
        """Where these bytes are, neighbours joined. Under the lock."""
        found: list[ImagePart] = []
        end = offset + length
        while offset < end:
            index = offset >> self._bits + self._per_table_bits
            limit = min(end, index + 1 << self._bits + self._per_table_bits)
            table = self._table_of(index)
            if table is None:
                self._join(found, ImagePart(Contents.BASE, limit - offset, -1))
                offset = limit
                continue
            entries, mask = table.entries, (1 << self._per_table_bits) - 1
            while offset < limit:
                inner = offset & self._cluster - 1
                span = min(self._cluster - inner, limit - offset)
                self._join(found, self._extent(entries[offset >> self._bits & mask], span, inner))
                offset += span
        return found

    @staticmethod
    def _join(found: list[ImagePart], extent: ImagePart) -> None:
        if found and found[-1].kind is extent.kind and extent.kind is not Contents.COMPRESSED:
            last = found[-1]
            if extent.kind is not Contents.DATA or (
                last.place + last.length == extent.place and last.copied == extent.copied
            ):
                found[-1] = last._replace(length=last.length + extent.length)
                return
        found.append(extent)

    # -- reading ---------------------------------------------------------------------------------------------

    def _read(self, offset: int, length: int) -> bytes:
        with self._gate:
            with self._lock:
                extents = self._extents_of(offset, length)
            if len(extents) == 1:
                return self._fetch(extents[0], offset)
            pieces = []
            for extent in extents:
                pieces.append(self._fetch(extent, offset))
                offset += extent.length
            return b"".join(pieces)

    def _fetch(self, extent: ImagePart, offset: int) -> bytes:
        """The bytes of a part, which begins at `offset` of the disk."""
        match extent.kind:
            case Contents.DATA:
                return self._file.read(extent.place, extent.length).ljust(extent.length, b"\0")
            case Contents.ZEROS:
                return bytes(extent.length)
            case Contents.BASE:
                return self._from_base(offset, extent.length)
            case Contents.COMPRESSED:
                inner = offset & self._cluster - 1
                return self._expand(extent.place)[inner : inner + extent.length]

    def _from_base(self, offset: int, length: int) -> bytes:
        """The base's bytes, and zeros where it has ended."""
        if self.base is None or offset >= self.base.size:
            return bytes(length)
        return self.base.read(offset, min(length, self.base.size - offset)).ljust(length, b"\0")

    def _expand(self, entry: int) -> bytes:
        with self._lock:
            found = self._expanded.get(entry)
        if found is None:
            place, length = self._rules.compressed(entry)
            if place >= self._file_end:
                raise DiskError(f"{self.name}: is damaged: it has an entry {entry:#x} in L2, which cannot be")
            found = expand(self._file.read(place, length), self._cluster, self.header.compression, self.name)
            with self._lock:
                self._expanded.add(entry, found)
        return found

    # -- writing ---------------------------------------------------------------------------------------------

    def _write(self, offset: int, data: memoryview) -> None:
        with self._gate:
            with self._lock:
                extents = self._extents_of(offset, len(data))
            missing = self._write_in_place(extents, offset, data)
        for at, piece in missing:
            with self._changing:
                self._write_new(at, piece)

    def _write_in_place(
        self, extents: list[ImagePart], offset: int, data: memoryview
    ) -> list[tuple[int, memoryview]]:
        """Write what has its place; what is left, with where it belongs."""
        missing = []
        done = 0
        for extent in extents:
            piece = data[done : done + extent.length]
            if extent.copied:
                self._file.write(extent.place, piece)
            else:
                missing.append((offset + done, piece))
            done += extent.length
        return missing

    def _write_new(self, offset: int, data: memoryview) -> None:
        """Write where clusters were missing; meanwhile another thread may have made some of them."""
        while data:
            self._make_room()
            index = offset >> self._bits + self._per_table_bits
            limit = min(len(data), (index + 1 << self._bits + self._per_table_bits) - offset)
            with self._lock:
                extents = self._extents_of(offset, limit)
            first = extents[0]
            if first.copied:
                done = first.length
                self._file.write(first.place, data[:done])
            else:
                span = next((n for n, extent in enumerate(extents) if extent.copied), len(extents))
                done = self._write_to_new_clusters(offset, data[: sum(e.length for e in extents[:span])])
            offset += done
            data = data[done:]

    def _write_to_new_clusters(self, offset: int, data: memoryview) -> int:
        """Give these bytes, all in one L2 table's part, new clusters; how many have got some."""
        assert self._counts is not None
        table = self._own_table(offset >> self._bits + self._per_table_bits)
        first = offset >> self._bits
        wanted = (offset + len(data) - 1 >> self._bits) - first + 1
        before = self._counts.end
        start, count = self._counts.allocate(wanted)
        place = start << self._bits
        data = data[: (first + count << self._bits) - offset]
        try:
            self._fill(place, count, offset, data, fresh=place >= before and not self._file.device)
        except BaseException:
            self._counts.undo(start, count)
            raise
        mask = (1 << self._per_table_bits) - 1
        with self._lock:
            self._tables.keep(table)
            for n in range(count):
                self._replace_entry(table, first + n & mask, place + (n << self._bits) | COPIED)
        return len(data)

    def _fill(self, place: int, count: int, offset: int, data: memoryview, *, fresh: bool) -> None:
        """Write whole clusters: these bytes, and around them what the guest finds there now."""
        begin = offset & -self._cluster
        end = begin + (count << self._bits)
        head = self._around(begin, offset - begin)
        tail = self._around(offset + len(data), end - offset - len(data))
        if fresh and head is None and tail is None:  # behind the end of the file: zeros already
            if end > offset + len(data):
                self._file.extend(place + (count << self._bits))
            self._file.write(place + offset - begin, data)
        elif begin == offset and end == offset + len(data):
            self._file.write(place, data)
        else:
            before = bytes(offset - begin) if head is None else head
            after = bytes(end - offset - len(data)) if tail is None else tail
            self._file.write(place, b"".join((before, data, after)))

    def _around(self, offset: int, length: int) -> bytes | None:
        """What is on the disk there now; None: zeros. What is behind the end of the disk is."""
        inside = min(length, self.size - offset)
        if inside <= 0:
            return None
        with self._lock:
            extents = self._extents_of(offset, inside)
        if all(
            e.kind is Contents.ZEROS or (e.kind is Contents.BASE and not self._base_has(offset))
            for e in extents
        ):
            return None
        pieces = []
        for extent in extents:
            pieces.append(self._fetch(extent, offset))
            offset += extent.length
        return b"".join(pieces).ljust(length, b"\0")

    def _base_has(self, offset: int) -> bool:
        """Whether there is a base that goes on to this offset."""
        return self.base is not None and offset < self.base.size

    def _own_table(self, index: int) -> Table:
        """The L2 table of an entry of L1, made or copied if it is not this image's alone."""
        assert self._counts is not None
        with self._lock:
            table = self._table_of(index)
            if table is not None and self._l1.entries[index] & COPIED:
                return table
        start, _ = self._counts.allocate(1)
        place = start << self._bits
        made = Table.made(place, table.entries if table is not None else [0] * (1 << self._per_table_bits))
        try:
            made.write(self._file)
        except BaseException:
            self._counts.undo(start, 1)
            raise
        self._counts.reserved.add([start])
        with self._lock:
            if table is not None:
                self._drop(table.offset >> self._bits, 1)
                self._dropped_tables.append(table.offset)
            self._l1.store(index, place | COPIED)
            self._tables.add(made)
        return made

    def _replace_entry(self, table: Table, index: int, entry: int) -> None:
        """Change an entry of L2, and drop what the old one referred to. Under the lock."""
        old = table.entries[index]
        table.store(index, entry)
        if old & COMPRESSED:
            place, length = self._rules.compressed(old)
            first = place >> self._bits
            self._drop(first, (place + length - 1 >> self._bits) - first + 1)
            self._expanded.drop(old)
        elif old & self._rules.place:
            self._drop((old & self._rules.place) >> self._bits, 1)

    def _drop(self, first: int, count: int) -> None:
        if self._dropped and sum(self._dropped[-1]) == first:
            self._dropped[-1] = self._dropped[-1][0], self._dropped[-1][1] + count
        else:
            self._dropped.append((first, count))

    # -- discarding ------------------------------------------------------------------------------------------

    def _discard(self, offset: int, length: int) -> None:
        first = -(-offset >> self._bits)
        end = self.size + self._cluster - 1 if offset + length == self.size else offset + length
        self._discard_clusters(first, end >> self._bits)

    def _discard_clusters(self, first: int, end: int) -> None:
        """Make whole clusters zeros, as far as this version of the format can say so."""
        while first < end:
            index = first >> self._per_table_bits
            limit = min(end, index + 1 << self._per_table_bits)
            with self._changing:
                self._make_room()
                self._discard_in_table(index, first, limit)
            first = limit

    def _discard_in_table(self, index: int, first: int, limit: int) -> None:
        with self._lock:
            present = self._table_of(index) is not None
        if not present and not self._base_has(first << self._bits):
            return
        if not present and not self._rules.has_zeros:
            return
        table = self._own_table(index)
        mask = (1 << self._per_table_bits) - 1
        with self._lock:
            self._tables.keep(table)
            for cluster in range(first, limit):
                old = table.entries[cluster & mask]
                hides = self._base_has(cluster << self._bits)
                if (old & ZERO and not old & COMPRESSED) or (not old and not hides):
                    continue
                if not hides:
                    self._replace_entry(table, cluster & mask, 0)
                elif self._rules.has_zeros:
                    self._replace_entry(table, cluster & mask, ZERO)

    def _zero(self, offset: int, length: int) -> None:
        first, last = -(-offset >> self._bits) << self._bits, (offset + length) & -self._cluster
        if offset + length == self.size:
            last = self.size
        whole = first < last and (self._rules.has_zeros or self.base is None)
        if not whole:
            super()._zero(offset, length)
            return
        if offset < first:
            super()._zero(offset, first - offset)
        self._discard(first, last - first)
        if last < offset + length:
            super()._zero(last, offset + length - last)

    # -- flushing --------------------------------------------------------------------------------------------

    def _make_room(self) -> None:
        """Write the tables if too much is in memory alone. By who holds `_changing`."""
        assert self._counts is not None
        if self._tables.crowded or self._counts.crowded or len(self._dropped) >= _MOST_DROPPED:
            self._write_tables()

    def _flush(self) -> None:
        with self._changing:
            self._write_tables()

    def _write_tables(self) -> None:
        """The three steps; see the module. By who holds `_changing`."""
        assert self._counts is not None
        with self._lock:
            tables = self._tables.dirty()
        if not tables and not self._l1.dirty and not self._dropped:
            self._file.sync()
            return
        self._counts.write()
        self._file.sync()
        for table in tables:
            table.write(self._file)
        self._l1.write(self._file)
        self._file.sync()
        dropped, self._dropped = self._dropped, []
        if dropped:
            self._gate.drain()
            self._free(dropped)

    def _free(self, dropped: list[tuple[int, int]]) -> None:
        assert self._counts is not None
        tables, self._dropped_tables = self._dropped_tables, []
        if tables:
            self._counts.reserved.remove(offset >> self._bits for offset in tables)
            with self._lock:
                for offset in tables:
                    self._tables.drop(offset)
        for first, count in runs(sorted(dropped)):
            self._counts.release(first, count)

    # -- the rest of a disk ----------------------------------------------------------------------------------

    def _extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        for at, span, kind in self._own_parts(offset, length):
            if kind is Contents.BASE and self.base is not None and at < self.base.size:
                yield from self.base.extents(at, min(span, self.base.size - at))
            elif kind in (Contents.DATA, Contents.COMPRESSED):
                yield at, span

    def own_parts(self) -> Iterator[tuple[int, int, bool]]:
        """What this image itself has, without its base: (offset, length, whether it is more than zeros)."""
        for at, span, kind in self._own_parts(0, self.size):
            if kind is not Contents.BASE:
                yield at, span, kind is not Contents.ZEROS

    def _own_parts(self, offset: int, length: int) -> Iterator[tuple[int, int, Contents]]:
        step = 1 << self._bits + self._per_table_bits
        end = offset + length
        while offset < end:
            limit = min(end, (offset & -step) + step)
            with self._lock:
                extents = self._extents_of(offset, limit - offset)
            for extent in extents:
                yield offset, extent.length, extent.kind
                offset += extent.length

    def _identity(self) -> list[Identity]:
        own = [self._file.identity()] if self._file.kept else []
        return own + (self.base.identity() if self.base is not None else [])

    def _close(self) -> None:
        steps: list[Callable[[], None]] = [self._file.close]
        if self.base is not None:
            steps.append(self.base.close)
        try:
            if self._counts is not None:
                self._write_tables()
                self._counts.write()
                self._file.sync()
        finally:
            for step in steps:
                step()
