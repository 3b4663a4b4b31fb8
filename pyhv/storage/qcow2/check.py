# SPDX-License-Identifier: GPL-2.0-only
"""Counts every reference to every cluster of a qcow2 image anew, and compares.

A cluster that is referred to more often than it is counted is an error: it may be given out while it is in
use. One that is counted more often is a leak: it is lost to the image, and no harm. Nothing is changed;
`qemu-img check -r` repairs.
"""

import errno
from array import array
from typing import Final

import numpy as np

from pyhv.frozen import frozen
from pyhv.storage.disk import DiskError
from pyhv.storage.hostfile import HostFile
from pyhv.storage.qcow2.header import Header
from pyhv.storage.qcow2.refcounts import unpack
from pyhv.storage.qcow2.tables import COMPRESSED, COPIED, EntryRules, Table

_MOST_CLUSTERS: Final = 1 << 28
"""Of a file that is checked: 1 GiB of memory for their counts."""
_MOST_TOLD: Final = 20
"""Errors that are told one by one."""


@frozen
class Counted:
    """What a check has found."""

    errors: int
    leaks: int
    """Clusters."""
    data: int
    """Clusters of the guest's, compressed ones among them."""
    told: tuple[str, ...]
    """The first errors, a sentence each."""


class _Check:
    def __init__(self, file: HostFile, header: Header) -> None:
        self._file = file
        self._header = header
        self._bits = header.cluster_bits
        self._rules = EntryRules(header)
        count = -(-file.size // header.cluster_size)
        if count > _MOST_CLUSTERS:
            raise DiskError(f"{file.path}: is too large to be checked here; use qemu-img check", errno.EFBIG)
        self._references = np.zeros(count, np.uint32)
        self._errors = 0
        self._told: list[str] = []
        self._data = 0

    def run(self) -> Counted:
        """Count and compare."""
        header = self._header
        self._refer(0, 1, "its header")
        l1 = Table.read(self._file, header.l1_offset, header.l1_entries)
        self._refer(header.l1_offset >> self._bits, -(-header.l1_entries * 8 >> self._bits), "L1")
        copied = []
        for index, entry in enumerate(l1.entries):
            if entry:
                copied += self._l2(index, entry)
        self._refer(header.refcount_table >> self._bits, header.refcount_table_clusters, "its refcount table")
        counts = self._counts()
        missing = self._references > counts
        for cluster in np.flatnonzero(missing)[:_MOST_TOLD].tolist():
            self._error(
                f"cluster {cluster} is used {self._references[cluster]} times and counted {counts[cluster]} "
                "times"
            )
        self._errors += max(int(missing.sum()) - _MOST_TOLD, 0)
        for cluster, flagged, where in copied:
            if flagged != (counts[cluster] == 1):
                self._error(
                    f"{where} says that cluster {cluster} is {'' if flagged else 'not '}its own, against its "
                    "count"
                )
        leaks = int((counts > self._references).sum())
        return Counted(self._errors, leaks, self._data, tuple(self._told))

    def _error(self, sentence: str) -> None:
        self._errors += 1
        if len(self._told) < _MOST_TOLD:
            self._told.append(sentence)

    def _refer(self, first: int, count: int, what: str) -> bool:
        """One more reference to each of these; false and an error: they are not within the file."""
        if first + count > len(self._references):
            self._error(f"{what} names cluster {first + count - 1}, and the file has {len(self._references)}")
            return False
        self._references[first : first + count] += np.uint32(1)
        return True

    def _l2(self, index: int, entry: int) -> list[tuple[int, bool, str]]:
        """What an entry of L1 leads to; plain clusters with whether they are called this image's own."""
        where = f"entry {index} of L1"
        if entry & self._rules.not_in_l1:
            self._error(f"{where} is {entry:#x}, which cannot be")
            return []
        offset = entry & self._rules.place
        if not offset or not self._refer(offset >> self._bits, 1, where):
            return []
        found = [(offset >> self._bits, bool(entry & COPIED), where)]
        table = Table.read(self._file, offset, self._header.cluster_size // 8)
        for at, inner in enumerate(table.entries):
            if inner:
                found += self._cluster(inner, f"entry {at} of the L2 table at {offset:#x}")
        return found

    def _cluster(self, entry: int, where: str) -> list[tuple[int, bool, str]]:
        if entry & COMPRESSED:
            place, length = self._rules.compressed(entry)
            first, last = place >> self._bits, min(place + length, max(self._file.size, 1)) - 1 >> self._bits
            self._data += self._refer(first, max(last - first + 1, 1), where)
            if entry & COPIED:
                self._error(f"{where} calls a compressed cluster its own")
            return []
        if entry & self._rules.not_in_l2:
            self._error(f"{where} is {entry:#x}, which cannot be")
            return []
        cluster = (entry & self._rules.place) >> self._bits
        if not cluster or not self._refer(cluster, 1, where):
            return []
        self._data += 1
        return [(cluster, bool(entry & COPIED), where)]

    def _counts(self) -> "np.ndarray[tuple[int], np.dtype[np.uint64]]":
        """What the refcounts say, of all clusters of the file; refers to their blocks."""
        header = self._header
        size = header.cluster_size
        per_block = size * 8 >> header.refcount_order
        counts = np.zeros(len(self._references), np.uint64)
        table: array[int] = Table.read(
            self._file, header.refcount_table, header.refcount_table_clusters * size // 8
        ).entries
        for number, offset in enumerate(table):
            if not offset:
                continue
            if offset % size:
                self._error(f"refcount block {number} is at {offset:#x}, which cannot be")
                continue
            if not self._refer(offset >> self._bits, 1, f"entry {number} of the refcount table"):
                continue
            part = counts[number * per_block : (number + 1) * per_block]
            if len(part):
                raw = self._file.read(offset, size).ljust(size, b"\0")
                part[:] = unpack(raw, header.refcount_order)[: len(part)]
        return counts


def check(file: HostFile, header: Header) -> Counted:
    """Check an open image without internal snapshots; DiskError: it cannot be."""
    if header.snapshots:
        raise DiskError(
            f"{file.path}: has internal snapshots, which pyhv does not check: use qemu-img check",
            errno.ENOTSUP,
        )
    return _Check(file, header).run()
