# SPDX-License-Identifier: GPL-2.0-only
"""The block protocol between a guest's disk driver and its back end (public header `io/blkif.h`).

All sectors on the ring are of 512 bytes, whatever the disk's own are. An entry of the ring is as large as the
largest request; a response takes the place of a request.
"""

import enum
from typing import Annotated, Final

from pyhv.abi.layout import AbiStruct, s16, u8, u16, u64

SECTOR_SIZE: Final = 512
MAX_SEGMENTS: Final = 11
"""Segments in a request (BLKIF_MAX_SEGMENTS_PER_REQUEST)."""
MAX_INDIRECT_PAGES: Final = 8
"""References to pages of segments in an indirect request."""
SECTORS_PER_PAGE: Final = 8
SEGMENT_SIZE: Final = 8
"""Of one segment: reference u32, first sector u8, last sector u8, two bytes of padding."""
SEGMENTS_PER_PAGE: Final = 512
MAX_RING_ORDER: Final = 4
"""The largest ring has two to the power of this many pages."""

_segments = Annotated[bytes, "88s", "88s", 4, 4]
_references = Annotated[bytes, "32s", "32s", 4, 4]


class Operation(enum.IntEnum):
    """BLKIF_OP_*."""

    READ = 0
    WRITE = 1
    WRITE_BARRIER = 2
    FLUSH_DISKCACHE = 3
    DISCARD = 5
    INDIRECT = 6


class BlkifStatus(enum.IntEnum):
    """BLKIF_RSP_*."""

    OKAY = 0
    ERROR = -1
    EOPNOTSUPP = -2


class DiskFlag(enum.IntFlag):
    """Of the back end's node `info` (VDISK_*)."""

    CDROM = 1
    REMOVABLE = 2
    READONLY = 4


class BlkifRequest(AbiStruct):
    """`blkif_request`, as `READ`, `WRITE`, `WRITE_BARRIER` and `FLUSH_DISKCACHE` have it."""

    operation: u8
    nr_segments: u8
    handle: u16
    id: u64
    sector_number: u64
    segments: _segments


class BlkifDiscard(AbiStruct):
    """`blkif_request_discard`."""

    operation: u8
    flag: u8
    handle: u16
    id: u64
    sector_number: u64
    nr_sectors: u64


class BlkifIndirect(AbiStruct):
    """`blkif_request_indirect`: the segments are in pages that `references` name."""

    operation: u8
    indirect_op: u8
    nr_segments: u16
    id: u64
    sector_number: u64
    handle: u16
    references: _references


class BlkifResponse(AbiStruct):
    """`blkif_response`."""

    id: u64
    operation: u8
    status: s16
