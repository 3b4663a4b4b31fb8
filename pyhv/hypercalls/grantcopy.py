# SPDX-License-Identifier: GPL-2.0-only
"""grant_table_op: copy between granted pages, and give whole pages away (public header `grant_table.h`)."""

from collections.abc import Callable

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.grants import CopyFlag, GrantStatus
from pyhv.abi.numbers import Gnttab
from pyhv.abi.structs import GnttabCopy, GnttabTransfer
from pyhv.address import MASK32, MASK64, PAGE_SHIFT, PAGE_SIZE
from pyhv.frozen import frozen
from pyhv.grants.holding import check_granted, drop, take
from pyhv.grants.status import GrantError
from pyhv.grants.table import GrantTable
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.grants import living, on_each, table_of

_SOURCE_GREF, _DEST_GREF = CopyFlag.SOURCE_GREF.value, CopyFlag.DEST_GREF.value


@frozen
class _Side:
    """One side of a copy, held: bytes `start` .. `end` of a frame may be touched."""

    mfn: int
    start: int
    end: int
    let_go: Callable[[], None]


@on_each(Gnttab.COPY, GnttabCopy)
def copy(call: Call, request: GnttabCopy) -> None:
    """Copy bytes from one page to another, either granted by a domain or one of the caller's own.

    Status, the source's first: PERMISSION_DENIED: an own frame of another domain; BAD_DOMAIN; then BAD_PAGE:
    not the owner's frame; BAD_GNTREF: beyond the table; GENERAL_ERROR: not granted in this way, or it cannot
    be written; BAD_COPY_ARG: beyond a page; GENERAL_ERROR: beyond the part that is granted.
    """
    # Both sides are claimed before the bounds are looked at: that is the order of Xen's refusals.
    by_source, by_dest = bool(request.flags & _SOURCE_GREF), bool(request.flags & _DEST_GREF)
    for domid, granted in ((request.source_domid, by_source), (request.dest_domid, by_dest)):
        _check_side(call, domid, granted)
    source = _claim(call, request.source, request.source_domid, by_source, readonly=True)
    try:
        dest = _claim(call, request.dest, request.dest_domid, by_dest, readonly=False)
        try:
            _copy_bytes(call, request, source, dest)
        finally:
            dest.let_go()
    finally:
        source.let_go()


def _copy_bytes(call: Call, request: GnttabCopy, source: _Side, dest: _Side) -> None:
    ends = (request.source_offset + request.length, request.dest_offset + request.length)
    if max(ends) > PAGE_SIZE:
        raise GrantError(GrantStatus.BAD_COPY_ARG, "copy beyond a page")
    for offset, end, side in ((request.source_offset, ends[0], source), (request.dest_offset, ends[1], dest)):
        if offset < side.start or end > side.end:
            raise GrantError(GrantStatus.GENERAL_ERROR, f"copy of bytes {offset:#x}..{end:#x} of a sub-page")
    physical = call.host.physical
    data = physical.read((source.mfn << PAGE_SHIFT) + request.source_offset, request.length)
    physical.write((dest.mfn << PAGE_SHIFT) + request.dest_offset, data)


def _check_side(call: Call, domid: int, granted: bool) -> None:
    """A frame by its number must be the caller's, as DOMID_SELF. PERMISSION_DENIED, BAD_DOMAIN."""
    if not granted and domid != DOMID_SELF:
        raise GrantError(GrantStatus.PERMISSION_DENIED, f"frame of domain {domid} without a grant")
    if domid not in (0, DOMID_SELF):
        living(call, domid)


def _claim(call: Call, name: int, domid: int, granted: bool, *, readonly: bool) -> _Side:
    """Hold the frame of one side of a copy."""
    if not granted:
        mfn = check_granted(call.frames, name, call.domain.domid)
        take(call.frames, mfn, readonly)
        return _Side(mfn, 0, PAGE_SIZE, lambda: drop(call.frames, mfn, readonly))
    ref = name & MASK32
    table = call.domain.grants if domid == DOMID_SELF else table_of(call, domid, ref)

    def lookup(domid: int) -> GrantTable | None:
        found = call.host.domain(domid)
        return None if found is None else found.grants

    grant = table.take_copy(ref, call.domain.domid, readonly, lookup)
    try:
        check_granted(call.frames, grant.frame, grant.owner)
        take(call.frames, grant.frame, readonly)
    except GrantError:
        grant.drop()
        raise

    def let_go() -> None:
        drop(call.frames, grant.frame, readonly)
        grant.drop()

    return _Side(grant.frame, grant.start, grant.start + grant.length, let_go)


# -- transfer ----------------------------------------------------------------------------------------------


@on_each(Gnttab.TRANSFER, GnttabTransfer)
def transfer(call: Call, request: GnttabTransfer) -> None:
    """Take a frame from the caller and give it, with its contents, to a domain that waits for it.

    Status: BAD_PAGE: not the caller's, or something refers to it. From here on the caller does not get it
    back, and if the receiver does not want it, it is freed, as on Xen. GENERAL_ERROR: domain 0; BAD_DOMAIN;
    GENERAL_ERROR: the receiver has all the frames that it may have, or its entry does not wait for this one.
    """
    frames, giver = call.frames, call.domain
    mfn = frames.owned(request.mfn, giver.domid)
    if mfn is None or frames.xen_heap[mfn] or not frames.allocated[mfn] or frames.refs[mfn] != 1:
        raise GrantError(GrantStatus.BAD_PAGE, f"transfer of {frames.describe(request.mfn)}")
    call.tables.flush = True
    try:
        if request.domid == 0:
            raise GrantError(GrantStatus.GENERAL_ERROR, "domain 0 accepts no transfer")
        receiver = living(call, request.domid)
        if receiver.tot_pages - (receiver is giver) >= receiver.max_pages:
            raise GrantError(GrantStatus.GENERAL_ERROR, f"{receiver.name} has all the pages it may have")
        receiver.grants.accept_transfer(request.ref, giver.domid)
    except GrantError:
        frames.deallocate(mfn)
        raise
    frames.change_owner(mfn, receiver.domid)
    receiver.tot_pages += 1
    pfn = receiver.grants.complete_transfer(request.ref, mfn)
    assert frames.m2p is not None
    frames.m2p[mfn] = pfn & MASK64
