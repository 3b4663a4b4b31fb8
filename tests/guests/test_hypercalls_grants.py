# SPDX-License-Identifier: GPL-2.0-only
"""grant_table_op: the table itself, its size, version and housekeeping."""

import struct

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.grants import GrantStatus
from pyhv.abi.layout import AbiStruct
from pyhv.abi.numbers import Gnttab, Hypercall
from pyhv.abi.structs import (
    GnttabCacheFlush,
    GnttabCopy,
    GnttabGetStatusFrames,
    GnttabGetVersion,
    GnttabMapGrantRef,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSwapGrantRef,
    GnttabTransfer,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
)
from pyhv.clock import STEPS_A_LOOK
from pyhv.hypercalls.context import Again
from pyhv.testing.granting import ACCEPT, DEVICE, PERMIT, READ_WRITE, Trio, entry, map_ref, op, set_version
from pyhv.testing.guest_machine import UNMAPPED, Paused


def test_version_and_status_frames(trio: Trio) -> None:
    guest = trio.a
    ask = GnttabGetStatusFrames(nr_frames=0, dom=DOMID_SELF, frame_list=guest.scratch + 256)
    assert op(guest, ask).status == 0
    ask.nr_frames = 1
    assert op(guest, ask).status == GrantStatus.GENERAL_ERROR, "version 1 has none"
    assert set_version(guest, 2) == (0, 2)
    assert set_version(guest, 3) == (-Errno.EINVAL, 2)
    assert op(guest, GnttabGetVersion(dom=DOMID_SELF)).version == 2
    assert op(guest, ask).status == 0
    (mfn,) = struct.unpack("<Q", guest.get(8, 256))
    assert mfn == guest.domain.grants.status_frames[0]
    setup = GnttabSetupTable(dom=DOMID_SELF, nr_frames=9, frame_list=guest.scratch + 256)
    assert op(guest, setup).status == 0
    assert struct.unpack("<9Q", guest.get(72, 256)) == tuple(guest.domain.grants.frames)
    assert len(guest.domain.grants.status_frames) == 2
    size = op(guest, GnttabQuerySize(dom=1))
    assert (size.nr_frames, size.max_nr_frames, size.status) == (9, 64, 0)
    for dom, status in (
        (0, GrantStatus.PERMISSION_DENIED),
        (2, GrantStatus.PERMISSION_DENIED),
        (77, GrantStatus.BAD_DOMAIN),
    ):
        assert op(guest, GnttabQuerySize(dom=dom)).status == status
        assert op(guest, GnttabSetupTable(dom=dom, nr_frames=1)).status == status
        ask.dom = dom
        assert op(guest, ask).status == status
    setup.nr_frames = 65
    assert op(guest, setup).status == GrantStatus.GENERAL_ERROR
    setup.nr_frames, setup.frame_list = 1, UNMAPPED
    assert op(guest, setup).status == GrantStatus.BAD_VIRT_ADDR
    setup.frame_list = 0xFFFF800000000000
    assert guest.grant_table_op(setup) == -Errno.EFAULT


def test_a_status_frame_is_mapped_like_a_grant_frame_and_holds_the_version(trio: Trio) -> None:
    guest = trio.a
    set_version(guest, 2)
    mfn = guest.domain.grants.status_frames[0]
    window = guest.page(3)
    old = guest.mfn(window)
    assert guest.update_va_mapping(window, mfn << 12 | READ_WRITE, 2) == 0
    assert trio.machine.audit() == []
    assert set_version(guest, 1) == (-Errno.EBUSY, 2)
    assert trio.b.update_va_mapping(window, mfn << 12 | READ_WRITE, 2) == -Errno.EBUSY
    assert guest.update_va_mapping(window, old << 12 | READ_WRITE, 0) == 0
    guest.domain.tables.flushed()
    guest.domain.tables.stale = True
    assert set_version(guest, 1) == (0, 1)
    assert guest.domain.tables.flush, "a stale translation would reach a frame that is not ours any more"
    assert trio.machine.frames.owner[mfn] != 1
    listed = guest.put(mfn.to_bytes(8, "little"), 512)
    assert guest.update_va_mapping(window, mfn << 12 | READ_WRITE, 2) == -Errno.EBUSY
    assert listed


def test_frames_of_a_table_are_not_given_away(trio: Trio) -> None:
    guest = trio.a
    set_version(guest, 2)
    set_version(trio.b, 2)
    entry(trio.b, 8, ACCEPT, 1, 0x10)
    for mfn in guest.domain.grants.shared_frames:
        assert op(guest, GnttabTransfer(mfn=mfn, domid=2, ref=8)).status == GrantStatus.BAD_PAGE


def test_counts_and_commands(trio: Trio) -> None:
    guest = trio.a
    at = guest.put(bytes(64))
    for command in range(13):
        assert guest.call(Hypercall.GRANT_TABLE_OP, command, at, 1 << 31) == -Errno.EINVAL
        assert guest.call(Hypercall.GRANT_TABLE_OP, command | 1 << 12, at, 1) == -Errno.EINVAL
        if command != Gnttab.DUMP_TABLE:
            assert guest.call(Hypercall.GRANT_TABLE_OP, command, UNMAPPED, 1) == -Errno.EFAULT
            assert guest.call(Hypercall.GRANT_TABLE_OP, command, 0xFFFF800000000000, 0) == -Errno.EFAULT
    for command in (0, 1, 4, 5, 7, 11, 12):
        assert guest.call(Hypercall.GRANT_TABLE_OP, command, at, 0) == 0
    for command in (Gnttab.SETUP_TABLE, Gnttab.QUERY_SIZE, Gnttab.GET_STATUS_FRAMES):
        for count in (0, 2):
            assert guest.call(Hypercall.GRANT_TABLE_OP, command, at, count) == -Errno.EINVAL
    for command in (Gnttab.DUMP_TABLE, 13, 0xFFF):
        assert guest.call(Hypercall.GRANT_TABLE_OP, command, at, 1) == -Errno.ENOSYS


LISTED: dict[Gnttab, type[AbiStruct]] = {
    Gnttab.MAP_GRANT_REF: GnttabMapGrantRef, Gnttab.UNMAP_GRANT_REF: GnttabUnmapGrantRef,
    Gnttab.UNMAP_AND_REPLACE: GnttabUnmapAndReplace, Gnttab.TRANSFER: GnttabTransfer, Gnttab.COPY: GnttabCopy,
    Gnttab.SWAP_GRANT_REF: GnttabSwapGrantRef, Gnttab.CACHE_FLUSH: GnttabCacheFlush,
}  # fmt: skip


@pytest.mark.promise("T-5")
@pytest.mark.parametrize("command", LISTED)
def test_long_lists_give_way(trio: Trio, command: Gnttab, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, size = trio.a, LISTED[command].size()
    count = 3 * STEPS_A_LOOK + 5
    at = guest.put(bytes(size * count))
    monkeypatch.setattr(guest.dispatcher.call, "preempted", lambda _steps: True)
    rounds = 0
    while True:
        try:
            assert guest.call(Hypercall.GRANT_TABLE_OP, command, at, count) == 0
            break
        except Again as again:
            rounds += 1
            number, rest, left = again.arguments
            assert (number, rest) == (command, at + size * (count - left))
            at, count = rest, left
    assert rounds == 3


def test_domain_0_exists_and_has_granted_nothing(guest: Paused) -> None:
    assert map_ref(guest, dom=0).status == GrantStatus.GENERAL_ERROR
    assert map_ref(guest, dom=77).status == GrantStatus.BAD_DOMAIN
    assert op(guest, GnttabQuerySize(dom=0)).status == GrantStatus.PERMISSION_DENIED


# -- housekeeping --------------------------------------------------------------------------------------------


def test_swap(trio: Trio) -> None:
    a, b = trio.a, trio.b
    set_version(a, 2)
    mfns = [a.mfn(a.page(2)), a.mfn(a.page(3))]
    entry(a, 8, PERMIT, 2, mfns[0])
    entry(a, 9, PERMIT, 3, mfns[1])
    assert op(a, GnttabSwapGrantRef(ref_a=8, ref_b=9)).status == 0
    assert map_ref(b, ref=8).status == GrantStatus.GENERAL_ERROR
    assert map_ref(b, ref=9).dev_bus_addr == mfns[0] << 12
    assert op(a, GnttabSwapGrantRef(ref_a=8, ref_b=9)).status == GrantStatus.EAGAIN
    assert op(a, GnttabSwapGrantRef(ref_a=8, ref_b=256)).status == GrantStatus.BAD_GNTREF


def flush(guest: Paused, address: int, *, offset: int = 0, length: int = 64, what: int = 1) -> int:
    return guest.grant_table_op(GnttabCacheFlush(address=address, offset=offset, length=length, op=what))


def test_cache_flush(trio: Trio) -> None:
    a, b = trio.a, trio.b
    own, other = b.mfn(b.page(2)) << 12, a.mfn(a.page(2)) << 12
    assert [flush(b, own, what=what) for what in (0, 1, 2, 3)] == [0, 0, -Errno.EOPNOTSUPP, 0]
    for bad in ({"offset": 4096}, {"offset": 4090}, {"length": 4097}, {"what": 4}, {"what": 1 << 31}):
        assert flush(b, own, **bad) == -Errno.EINVAL
    assert flush(b, 1 << 60) == -Errno.EINVAL
    assert flush(b, 0) == -Errno.EINVAL
    assert flush(b, trio.machine.board.zero_frame << 12) == -Errno.EPERM
    assert flush(b, other) == -Errno.EINVAL
    entry(a, 8, PERMIT, 2, other >> 12)
    done = map_ref(b, flags=DEVICE)
    assert flush(b, other) == 0
    undo = GnttabUnmapGrantRef(dev_bus_addr=other, handle=done.handle)
    assert op(b, undo).status == 0
    assert flush(b, other) == -Errno.EINVAL
