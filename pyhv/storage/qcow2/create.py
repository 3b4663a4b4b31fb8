# SPDX-License-Identifier: GPL-2.0-only
"""A new qcow2 image: empty, of version 3, perhaps on top of a base.

    header | refcount table | refcount blocks | L1 table

The refcount table is as long as it will ever have to be; the blocks are those that count what is there. The
header is written last, so that half an image is none.
"""

import errno
from typing import Final

import numpy as np

from pyhv.storage.disk import SECTOR, DiskError
from pyhv.storage.hostfile import HostFile
from pyhv.storage.qcow2.header import LONGEST_NAME, MOST_L1, MOST_REFCOUNT_TABLE, Header, l1_needed, pack
from pyhv.storage.qcow2.refcounts import pack as pack_counts

CLUSTER_BITS: Final = 16
REFCOUNT_ORDER: Final = 4


def create(
    file: HostFile,
    size: int,
    *,
    base: str | None = None,
    base_format: str | None = None,
    cluster_bits: int = CLUSTER_BITS,
    refcount_order: int = REFCOUNT_ORDER,
) -> Header:
    """Make an empty file an image of a disk of `size` bytes; DiskError. It is on the disk when this
    returns."""
    if size <= 0 or size % SECTOR:
        raise DiskError(
            f"{file.path}: a disk of {size} bytes cannot be: it has whole sectors of {SECTOR}", errno.EINVAL
        )
    if base is not None and len(base.encode("utf-8", "surrogateescape")) > LONGEST_NAME:
        raise DiskError(
            f"{file.path}: the name of its base is longer than {LONGEST_NAME} bytes", errno.ENAMETOOLONG
        )
    cluster = 1 << cluster_bits
    per_block = cluster * 8 >> refcount_order
    l1_entries = l1_needed(size, cluster_bits)
    if l1_entries * 8 > MOST_L1:
        raise DiskError(
            f"{file.path}: a disk of {size} bytes needs larger clusters than 2^{cluster_bits}", errno.EFBIG
        )
    l1 = -(-l1_entries * 8 // cluster)
    most = 1 + l1 + (size >> cluster_bits) + 1 + l1_entries
    blocks_in_all = -(-most // (per_block - 1)) + 2
    table = min(
        -(-(blocks_in_all + blocks_in_all // per_block) * 8 // cluster), MOST_REFCOUNT_TABLE >> cluster_bits
    )
    blocks = 1
    while blocks * per_block < 1 + table + blocks + l1:
        blocks += 1
    header = Header(
        version=3, cluster_bits=cluster_bits, size=size, l1_entries=l1_entries,
        l1_offset=1 + table + blocks << cluster_bits, refcount_table=cluster, refcount_table_clusters=table,
        refcount_order=refcount_order, backing=base, backing_format=base_format,
    )  # fmt: skip
    used = 1 + table + blocks + l1
    counts = np.zeros(blocks * per_block, np.uint64)
    counts[:used] = 1
    first_block = 1 + table << cluster_bits
    file.extend(used << cluster_bits)
    file.write(first_block, pack_counts(counts, refcount_order))
    file.write(
        cluster, b"".join((first_block + (n << cluster_bits)).to_bytes(8, "big") for n in range(blocks))
    )
    file.sync()
    file.write(0, pack(header))
    file.sync()
    file.size = used << cluster_bits
    return header
