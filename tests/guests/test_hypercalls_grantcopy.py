# SPDX-License-Identifier: GPL-2.0-only
"""grant_table_op: copies between granted pages, and pages given away."""

import struct

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.grants import EntryFlag, GrantStatus
from pyhv.abi.numbers import Gnttab, Hypercall
from pyhv.abi.structs import (
    GnttabCopy,
    GnttabMapGrantRef,
    GnttabTransfer,
)
from pyhv.testing.granting import (
    ACCEPT,
    DEST_GREF,
    DEVICE,
    GTF_READONLY,
    HOST,
    PERMIT,
    READ_WRITE,
    READONLY,
    SOURCE_GREF,
    SUB_PAGE,
    TRANSITIVE,
    Trio,
    balloon,
    entry,
    flags_of,
    free_page,
    map_ref,
    op,
    set_version,
    status_of,
)
from pyhv.testing.guest_machine import Paused


def test_grant_copy_within_the_domain(guest: Paused) -> None:
    """The layout of gnttab_copy: two structures with their own padding, then length and flags."""
    guest.put(b"copied bytes", 0x3010)
    source, target = guest.mfn(guest.page(3)), guest.mfn(guest.page(4))
    request = struct.pack(
        "<QHHxxxxQHHxxxxHHhxx", source, DOMID_SELF, 0x10, target, DOMID_SELF, 0x20, 12, 0, 99
    )
    assert len(request) == 40
    assert guest.call(Hypercall.GRANT_TABLE_OP, Gnttab.COPY, guest.put(request), 1) == 0
    assert struct.unpack("<h", guest.get(2, 36)) == (GrantStatus.OKAY,)
    assert guest.get(12, 0x4020) == b"copied bytes"
    assert guest.get(4, 0x402C) == bytes(4)
    too_long = GnttabCopy(
        source=source, source_domid=DOMID_SELF, source_offset=0xFF8, dest=target, dest_domid=DOMID_SELF,
        length=12,
    )  # fmt: skip
    assert op(guest, too_long).status == GrantStatus.BAD_COPY_ARG


def test_a_part_of_a_page_is_copied(trio: Trio) -> None:
    a, b = trio.a, trio.b
    set_version(a, 2)
    a.put(b"0123456789abcdef", 0x2100)
    entry(a, 8, PERMIT | SUB_PAGE, 2, a.mfn(a.page(2)), (0x104, 8))
    mine = b.mfn(b.page(4))
    fields = {
        "source": 8, "source_domid": 1, "source_offset": 0x104, "dest": mine, "dest_domid": DOMID_SELF,
        "dest_offset": 0x20, "length": 8, "flags": SOURCE_GREF,
    }  # fmt: skip
    assert trio.copy(b, **fields) == 0
    assert b.get(10, 0x4020) == b"456789ab\0\0"
    assert trio.copy(b, **fields | {"length": 9}) == GrantStatus.GENERAL_ERROR
    assert trio.copy(b, **fields | {"source_offset": 0x103, "length": 4}) == GrantStatus.GENERAL_ERROR
    assert trio.copy(b, **fields | {"source_offset": 0xFFC}) == GrantStatus.BAD_COPY_ARG
    assert status_of(a, 8) == 0
    request = GnttabMapGrantRef(host_addr=b.page(6), flags=HOST | READONLY, ref=8, dom=1)
    assert op(b, request).status == GrantStatus.GENERAL_ERROR
    back = {
        "source": mine, "source_domid": DOMID_SELF, "source_offset": 0x20, "dest": 8, "dest_domid": 1,
        "dest_offset": 0x108, "length": 4, "flags": DEST_GREF,
    }  # fmt: skip
    assert trio.copy(b, **back) == 0
    assert a.get(16, 0x2100) == b"012345674567cdef"
    assert trio.copy(b, **back | {"dest_offset": 0x109}) == GrantStatus.GENERAL_ERROR


def test_a_grant_that_is_passed_on_is_copied(trio: Trio) -> None:
    """c lends to a, a passes on to b; and back to c itself."""
    a, b, c = trio.a, trio.b, trio.c
    for guest in (a, c):
        set_version(guest, 2)
    c.put(b"from the third", 0x2000)
    entry(c, 20, PERMIT, 1, c.mfn(c.page(2)))
    entry(a, 8, TRANSITIVE, 2, 20, (3, 0))
    entry(a, 9, TRANSITIVE, 3, 20, (3, 0))
    for guest, ref in ((b, 8), (c, 9)):
        target = guest.mfn(guest.page(4))
        fields = {
            "source": ref, "source_domid": 1, "dest": target, "dest_domid": DOMID_SELF, "length": 14,
            "flags": SOURCE_GREF,
        }  # fmt: skip
        assert trio.copy(guest, **fields) == 0
        assert guest.get(14, 0x4000) == b"from the third"
    both = {
        "source": 8,
        "source_domid": 1,
        "dest": 8,
        "dest_domid": 1,
        "dest_offset": 100,
        "length": 14,
        "flags": SOURCE_GREF | DEST_GREF,
    }
    assert trio.copy(b, **both) == 0
    assert c.get(14, 0x2064) == b"from the third"
    assert (status_of(a, 8), status_of(c, 20)) == (0, 0)
    request = GnttabMapGrantRef(host_addr=b.page(6), flags=HOST, ref=8, dom=1)
    assert op(b, request).status == GrantStatus.GENERAL_ERROR
    entry(c, 20, PERMIT, 1, a.mfn(a.page(2)))
    assert trio.copy(b, **both) == GrantStatus.BAD_PAGE, "not c's own frame"
    trio.kill(c)
    assert trio.copy(b, **both) == GrantStatus.GENERAL_ERROR
    trio.kill(a)
    assert trio.copy(b, **both) == GrantStatus.BAD_DOMAIN


def test_copies_that_are_refused(trio: Trio) -> None:
    a, b = trio.a, trio.b
    mine, other = b.mfn(b.page(4)), a.mfn(a.page(2))
    entry(a, 8, PERMIT | GTF_READONLY, 2, other)

    def copy(**fields: int) -> GrantStatus:
        base = {"source": mine, "source_domid": DOMID_SELF, "dest": mine, "dest_domid": DOMID_SELF}
        return GrantStatus(trio.copy(b, **({"length": 8} | base | fields)))

    def copy_from(domid: int, ref: int) -> GrantStatus:
        return copy(source=ref, source_domid=domid, flags=SOURCE_GREF)

    assert copy(source_domid=2) is GrantStatus.PERMISSION_DENIED, "a frame by number only as DOMID_SELF"
    assert copy(dest_domid=0) is GrantStatus.PERMISSION_DENIED
    assert copy_from(77, mine) is GrantStatus.BAD_DOMAIN
    assert copy_from(0, 8) is GrantStatus.GENERAL_ERROR
    assert copy_from(0, 512) is GrantStatus.BAD_GNTREF
    assert copy(source=other) is GrantStatus.BAD_PAGE
    assert copy(source=1 << 60) is GrantStatus.BAD_PAGE
    assert copy(source=other, length=0xFFFF) is GrantStatus.BAD_PAGE, "frames before bounds"
    assert copy(length=0xFFFF) is GrantStatus.BAD_COPY_ARG
    assert copy_from(1, 8) is GrantStatus.OKAY
    assert copy(dest=8, dest_domid=1, flags=DEST_GREF) is GrantStatus.GENERAL_ERROR
    assert copy_from(1, 600) is GrantStatus.BAD_GNTREF
    assert copy(dest=b.vcpu.paging.kernel_l4) is GrantStatus.GENERAL_ERROR, "a page table is not written"
    assert flags_of(a, 8) == PERMIT | GTF_READONLY


# -- transfer ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", [1, 2])
def test_a_page_moves_to_another_domain(trio: Trio, version: int) -> None:
    a, b, frames = trio.a, trio.b, trio.machine.frames
    set_version(b, version)
    a.put(b"a present", 0x3000)
    mfn = free_page(a, 3)
    balloon(b)
    entry(b, 8, ACCEPT, 1, 0x123)
    before = a.domain.tot_pages, b.domain.tot_pages
    assert op(a, GnttabTransfer(mfn=mfn, domid=2, ref=8)).status == 0
    assert (a.domain.tot_pages, b.domain.tot_pages) == (before[0] - 1, before[1] + 1)
    assert (frames.owner[mfn], frames.allocated[mfn], frames.refs[mfn]) == (2, 1, 1)
    assert frames.m2p is not None
    assert frames.m2p[mfn] == 0x123
    assert flags_of(b, 8) == ACCEPT | EntryFlag.TRANSFER_COMMITTED | EntryFlag.TRANSFER_COMPLETED
    table = b.domain.grants.frames[0]
    assert trio.machine.ram.d[(table << 12) + 8 * 8 * version + 4 * version >> 2] == mfn
    assert b.update_va_mapping(b.page(7), mfn << 12 | READ_WRITE, 2) == 0
    assert b.get(9, 0x7000) == b"a present"
    assert a.update_va_mapping(a.page(3), mfn << 12 | READ_WRITE, 2) == -Errno.EBUSY
    assert op(a, GnttabTransfer(mfn=mfn, domid=2, ref=8)).status == GrantStatus.BAD_PAGE


def test_pages_that_do_not_move(trio: Trio) -> None:
    a, b, frames = trio.a, trio.b, trio.machine.frames
    balloon(b)
    entry(b, 8, ACCEPT, 1, 0x123)
    entry(a, 9, PERMIT, 2, a.mfn(a.page(3)))
    mapped = a.mfn(a.page(3))
    for mfn in (
        mapped, a.vcpu.paging.kernel_l4, b.mfn(b.page(3)), 0, 1 << 40, frames.count,
        trio.machine.board.zero_frame, a.domain.shared_info.mfn,
    ):  # fmt: skip
        assert op(a, GnttabTransfer(mfn=mfn, domid=2, ref=8)).status == GrantStatus.BAD_PAGE
    assert map_ref(b, ref=9, flags=DEVICE | READONLY).status == 0
    assert a.unmap(a.page(3)) == 0
    assert op(a, GnttabTransfer(mfn=mapped, domid=2, ref=8)).status == GrantStatus.BAD_PAGE, "b borrows it"
    assert flags_of(b, 8) == ACCEPT


@pytest.mark.parametrize(
    ("domid", "ref", "status"),
    [
        (77, 8, GrantStatus.BAD_DOMAIN),
        (DOMID_SELF, 8, GrantStatus.BAD_DOMAIN),
        *(
            (domid, ref, GrantStatus.GENERAL_ERROR)
            for domid, ref in ((0, 8), (2, 9), (2, 1 << 31), (3, 8), (1, 8))
        ),
    ],
)
def test_a_page_that_nobody_wants_is_lost(trio: Trio, domid: int, ref: int, status: int) -> None:
    """As on Xen: it has been taken from the giver before the receiver is looked at."""
    a, b, frames = trio.a, trio.b, trio.machine.frames
    balloon(b)
    entry(b, 8, ACCEPT, 1, 0x123)
    entry(b, 9, ACCEPT, 3, 0x123)
    entry(trio.c, 8, ACCEPT, 1, 0x123)  # c has no room
    mfn, before = free_page(a, 3), a.domain.tot_pages
    free = frames.free_count
    assert op(a, GnttabTransfer(mfn=mfn, domid=domid, ref=ref)).status == status
    assert a.domain.tot_pages == before - 1
    assert frames.free_count == free + 1
    assert not trio.machine.ram.tables[mfn].any()
    assert flags_of(b, 8) == ACCEPT


def test_a_transfer_to_oneself(trio: Trio) -> None:
    a = trio.a
    entry(a, 8, ACCEPT, 1, 0x55)
    mfn, before = free_page(a, 3), a.domain.tot_pages
    assert op(a, GnttabTransfer(mfn=mfn, domid=1, ref=8)).status == 0
    assert (a.domain.tot_pages, trio.machine.frames.owner[mfn]) == (before, 1)
