# SPDX-License-Identifier: GPL-2.0-only
"""grant_table_op of 32-bit guests."""

import struct

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.grants import GrantStatus
from pyhv.abi.numbers import MemoryOp
from pyhv.abi.structs import (
    GnttabCopy,
    GnttabGetStatusFrames,
    GnttabMapGrantRef,
    GnttabSetupTable,
    GnttabTransfer,
    GnttabUnmapAndReplace,
)
from pyhv.testing.granting import (
    ACCEPT,
    HOST,
    PERMIT,
    SOURCE_GREF,
    SUB_PAGE,
    Trio,
    entry,
    free_page,
    op,
    set_version,
)


@pytest.fixture
def narrow(trio: Trio, monkeypatch: pytest.MonkeyPatch) -> Trio:
    """All three guests pass structures as a 32-bit guest does."""
    for guest in (trio.a, trio.b, trio.c):
        monkeypatch.setattr(guest.dispatcher.call, "width", 32)
        monkeypatch.setattr(guest.dispatcher.call, "word", 4)
    return trio


def test_frame_lists_of_32_bit_guests(narrow: Trio) -> None:
    guest = narrow.a
    assert set_version(guest, 2) == (0, 2)
    setup = GnttabSetupTable(dom=DOMID_SELF, nr_frames=3, frame_list=guest.scratch + 256)
    assert op(guest, setup).status == 0
    assert struct.unpack("<3I", guest.get(12, 256)) == tuple(guest.domain.grants.frames)
    ask = GnttabGetStatusFrames(dom=DOMID_SELF, nr_frames=1, frame_list=guest.scratch + 256)
    assert op(guest, ask).status == 0
    assert struct.unpack("<Q", guest.get(8, 256)) == tuple(guest.domain.grants.status_frames)
    setup.frame_list = 0xF5800000
    assert guest.grant_table_op(setup) == -Errno.EFAULT


def test_copy_and_transfer_of_32_bit_guests(narrow: Trio) -> None:
    a, b = narrow.a, narrow.b
    set_version(a, 2)
    a.put(b"0123456789", 0x2000)
    entry(a, 8, PERMIT | SUB_PAGE, 2, a.mfn(a.page(2)), (0, 10))
    request = GnttabCopy(
        source=8, source_domid=1, dest=b.mfn(b.page(4)), dest_domid=DOMID_SELF, length=10, flags=SOURCE_GREF
    )
    assert op(b, request).status == 0
    assert b.get(10, 0x4000) == b"0123456789"
    mfn = free_page(b, 5)
    listed = a.put(free_page(a, 7).to_bytes(4, "little"), 512)
    assert (
        a.memory_op(
            MemoryOp.DECREASE_RESERVATION, a.put(struct.pack("<IIIIHxx", listed, 1, 0, 0, DOMID_SELF))
        )
        == 1
    )
    entry(a, 9, ACCEPT, 2, 0x77)
    assert op(b, GnttabTransfer(mfn=mfn, domid=1, ref=9)).status == 0
    assert narrow.machine.frames.owner[mfn] == 1


def test_addresses_of_32_bit_guests(narrow: Trio) -> None:
    a, b = narrow.a, narrow.b
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    for host_addr in (0xF5800000, 1 << 32, 1 << 32 | b.page(6)):
        request = GnttabMapGrantRef(host_addr=host_addr, flags=HOST, ref=8, dom=1)
        assert op(b, request).status == GrantStatus.GENERAL_ERROR
    done = op(b, GnttabMapGrantRef(host_addr=b.page(6), flags=HOST, ref=8, dom=1))
    assert done.status == 0
    undo = GnttabUnmapAndReplace(host_addr=b.page(6), new_addr=1 << 32 | b.page(5), handle=done.handle)
    assert op(b, undo).status == GrantStatus.GENERAL_ERROR
    undo.new_addr = b.page(5)
    assert op(b, undo).status == 0
