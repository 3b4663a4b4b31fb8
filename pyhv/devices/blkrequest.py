# SPDX-License-Identifier: GPL-2.0-only
"""Requests to a disk as a guest puts them into its ring, taken apart and checked (public header
`io/blkif.h`).

    sector number ──►┌────┬────┬────┬────┐  one piece of the disk ...
                     └─┬──┴──┬─┴──┬─┴──┬─┘
    segments           ▼     ▼    ▼    ▼    ... in parts of pages that the guest lends: first..last sector of
    each

A request is a copy: what the guest writes into the ring meanwhile does not matter. Whether its grants are
any, only their use will tell.
"""

from typing import Final, NamedTuple, Protocol

from pyhv.abi.blkif import (
    MAX_INDIRECT_PAGES,
    MAX_SEGMENTS,
    SECTOR_SIZE,
    SECTORS_PER_PAGE,
    SEGMENT_SIZE,
    SEGMENTS_PER_PAGE,
    BlkifDiscard,
    BlkifIndirect,
    BlkifRequest,
    Operation,
)
from pyhv.abi.layout import u8, u32

MAX_INDIRECT_SEGMENTS: Final = 256
"""Segments of an indirect request, as the back end's features say."""
_DATA: Final = frozenset({Operation.READ, Operation.WRITE, Operation.WRITE_BARRIER})
_WRITES: Final = frozenset({Operation.WRITE, Operation.WRITE_BARRIER, Operation.DISCARD})
_KNOWN: Final = frozenset(Operation)


class DiskSegment(NamedTuple):
    """A part of a page that the guest lends."""

    ref: u32
    first: u8
    last: u8
    """Sectors of the page, 0 to 7."""

    @property
    def offset(self) -> int:
        """Bytes from the page's start."""
        return self.first * SECTOR_SIZE

    @property
    def size(self) -> int:
        """Bytes."""
        return (self.last - self.first + 1) * SECTOR_SIZE


class DiskRequest(NamedTuple):
    """A request that makes sense. `operation` is never INDIRECT: it is what that stands for."""

    id: int
    operation: Operation
    offset: int
    length: int
    """Bytes of the disk."""
    segments: list[DiskSegment]


class Unsupported(Exception):
    """An operation that there is not (EOPNOTSUPP)."""


class BadRequest(Exception):
    """A request that cannot be (ERROR): one sentence."""


class Reader(Protocol):
    """Reads what a guest lends."""

    def __call__(self, ref: int, offset: int, length: int) -> bytes:
        """Bytes of a page. GrantError."""


def header(raw: bytes, width: int) -> tuple[int, int]:
    """(id, operation) of a request as its response names them, whatever is wrong with it.

    An indirect one is answered as what it stands for.
    """
    found = BlkifRequest.unpack(raw, width)
    if found.operation == Operation.INDIRECT:
        return found.id, BlkifIndirect.unpack(raw[: BlkifIndirect.size(width)], width).indirect_op
    return found.id, found.operation


def parse(raw: bytes, width: int, size: int, *, readonly: bool, read: Reader) -> DiskRequest:
    """A request to a disk of `size` bytes by a guest that lays it out in `width` bits.

    Unsupported, BadRequest; GrantError: a page of segments cannot be read.
    """
    found = BlkifRequest.unpack(raw, width)
    operation, sector, count = found.operation, found.sector_number, found.nr_segments
    if operation not in _KNOWN:
        raise Unsupported
    if operation == Operation.DISCARD:
        return _discard(BlkifDiscard.unpack(raw[: BlkifDiscard.size(width)], width), size, readonly=readonly)
    packed = found.segments
    if operation == Operation.INDIRECT:
        operation, sector, count, packed = _indirect(raw, width, read)
    elif count > MAX_SEGMENTS:
        raise BadRequest(f"it has {count} segments, of {MAX_SEGMENTS} at most")
    if operation == Operation.FLUSH_DISKCACHE and not count:
        return DiskRequest(found.id, Operation.FLUSH_DISKCACHE, 0, 0, [])
    if operation not in _DATA or (not count and operation != Operation.WRITE_BARRIER):
        raise BadRequest(f"operation {operation} has {count} segments")
    segments = _segments(packed, count)
    length = sum(segment.size for segment in segments)
    offset = _place(sector, length, size)
    _check_writable(operation, readonly=readonly)
    return DiskRequest(found.id, Operation(operation), offset, length, segments)


def _indirect(raw: bytes, width: int, read: Reader) -> tuple[int, int, int, bytes]:
    """(operation, sector, number of segments, the segments) of an indirect request."""
    found = BlkifIndirect.unpack(raw[: BlkifIndirect.size(width)], width)
    count = found.nr_segments
    if found.indirect_op not in (Operation.READ, Operation.WRITE):
        raise BadRequest(f"an indirect request for operation {found.indirect_op}")
    if not 0 < count <= MAX_INDIRECT_SEGMENTS:
        raise BadRequest(f"an indirect request has {count} segments, of {MAX_INDIRECT_SEGMENTS} at most")
    pages = -(-count // SEGMENTS_PER_PAGE)
    assert pages <= MAX_INDIRECT_PAGES
    packed = b""
    for page in range(pages):
        here = min(count - page * SEGMENTS_PER_PAGE, SEGMENTS_PER_PAGE)
        ref = int.from_bytes(found.references[4 * page : 4 * page + 4], "little")
        packed += read(ref, 0, here * SEGMENT_SIZE)
    return found.indirect_op, found.sector_number, count, packed


def _segments(packed: bytes, count: int) -> list[DiskSegment]:
    segments = []
    for at in range(0, count * SEGMENT_SIZE, SEGMENT_SIZE):
        segment = DiskSegment(int.from_bytes(packed[at : at + 4], "little"), packed[at + 4], packed[at + 5])
        if not segment.first <= segment.last < SECTORS_PER_PAGE:
            raise BadRequest(f"a segment has the sectors {segment.first}..{segment.last} of a page")
        segments.append(segment)
    return segments


def _discard(found: BlkifDiscard, size: int, *, readonly: bool) -> DiskRequest:
    length = found.nr_sectors * SECTOR_SIZE
    offset = _place(found.sector_number, length, size)
    _check_writable(Operation.DISCARD, readonly=readonly)
    return DiskRequest(found.id, Operation.DISCARD, offset, length, [])


def _place(sector: int, length: int, size: int) -> int:
    offset = sector * SECTOR_SIZE
    if offset + length > size:
        raise BadRequest(f"bytes {offset:#x}..{offset + length:#x} of a disk of {size:#x}")
    return offset


def _check_writable(operation: int, *, readonly: bool) -> None:
    if readonly and operation in _WRITES:
        raise BadRequest("the disk is write-protected")
