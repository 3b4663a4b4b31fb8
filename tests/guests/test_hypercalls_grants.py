# SPDX-License-Identifier: GPL-2.0-only
"""grant_table_op between paused guests: version 2, copies, replacing, transfer, and who dies first."""

import struct
from collections.abc import Iterator

import pytest
from guest_machine import Paused
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Gnttab, Hypercall, Memory
from pyhv.abi.structs import (
    GnttabCacheFlush,
    GnttabCopy,
    GnttabGetStatusFrames,
    GnttabGetVersion,
    GnttabMapGrantRef,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSetVersion,
    GnttabSwapGrantRef,
    GnttabTransfer,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
)
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_P, PTE_RW
from pyhv.clock import STEPS_A_LOOK
from pyhv.hypercalls.context import Again
from pyhv.machine import Machine, MachineConfig

PAGES = 1024
READ_WRITE = PTE_P | PTE_RW | PTE_A | PTE_D
UNMAPPED = 0x7FFF00000000
HOST, DEVICE, READONLY, CONTAINS_PTE = 2, 1, 4, 16
SOURCE_GREF, DEST_GREF = 1, 2
PERMIT, ACCEPT, TRANSITIVE, SUB_PAGE = 1, 2, 3, 256


def op(guest: Paused, command: int, request, at: int = 0):
    """One operation; the structure as it comes back."""
    address = guest.put(request.pack(), at)
    assert guest.call(Hypercall.GRANT_TABLE_OP, command, address, 1) == 0
    return type(request).unpack(guest.get(request.size(), at))


def set_version(guest: Paused, version: int) -> tuple[int, int]:
    address = guest.put(GnttabSetVersion(version=version).pack())
    result = guest.call(Hypercall.GRANT_TABLE_OP, Gnttab.SET_VERSION, address, 1)
    return result, GnttabSetVersion.unpack(guest.get(4)).version


def entry(guest: Paused, ref: int, flags: int, domid: int, frame: int, low: tuple[int, int] = (0, 0)) -> None:
    """Write an entry, as the guest would into its mapped table."""
    table = guest.domain.grants
    size = 8 * table.version
    raw = (
        struct.pack("<HHI", flags, domid, frame)
        if table.version == 1
        else struct.pack("<HHHHQ", flags, domid, *low, frame)
    )
    mfn = table.frames[ref * size // 4096]
    at = (mfn << 12) + ref * size % 4096
    guest.machine.ram.raw[at : at + size] = raw


def flags_of(guest: Paused, ref: int) -> int:
    table = guest.domain.grants
    at = (table.frames[0] << 12) + ref * 8 * table.version
    return int.from_bytes(guest.machine.ram.raw[at : at + 2], "little")


def status_of(guest: Paused, ref: int) -> int:
    at = (guest.domain.grants.status_frames[0] << 12) + 2 * ref
    return int.from_bytes(guest.machine.ram.raw[at : at + 2], "little")


class Trio:
    """Three guests; the first two usually have tables of version 2."""

    def __init__(self) -> None:
        self.machine = Machine(MachineConfig(3 * PAGES + 256, virtual_time=True))
        self.free = self.machine.frames.free_count
        self.a, self.b, self.c = (Paused(self.machine) for _ in range(3))

    def kill(self, guest: Paused) -> None:
        guest.domain.shut_down(0)
        self.machine.run(stop=lambda: True)

    def copy(self, guest: Paused, **fields: int) -> int:
        return int(op(guest, Gnttab.COPY, GnttabCopy(**fields)).status)


@pytest.fixture
def trio() -> Iterator[Trio]:
    made = Trio()
    yield made
    assert made.machine.audit() == []
    for guest in (made.a, made.b, made.c):
        if guest.domain.alive:
            made.kill(guest)
        assert made.machine.audit() == []
    assert made.machine.frames.free_count == made.free
    made.machine.close()


# -- the table itself --------------------------------------------------------------------------------------


def test_version_and_status_frames(trio: Trio) -> None:
    guest = trio.a
    ask = GnttabGetStatusFrames(nr_frames=0, dom=DOMID_SELF, frame_list=guest.scratch + 256)
    assert op(guest, Gnttab.GET_STATUS_FRAMES, ask).status == 0
    ask.nr_frames = 1
    assert op(guest, Gnttab.GET_STATUS_FRAMES, ask).status == -1, "version 1 has none"
    assert set_version(guest, 2) == (0, 2)
    assert set_version(guest, 3) == (-Errno.EINVAL, 2)
    assert op(guest, Gnttab.GET_VERSION, GnttabGetVersion(dom=DOMID_SELF)).version == 2
    assert op(guest, Gnttab.GET_STATUS_FRAMES, ask).status == 0
    (mfn,) = struct.unpack("<Q", guest.get(8, 256))
    assert mfn == guest.domain.grants.status_frames[0]
    setup = GnttabSetupTable(dom=DOMID_SELF, nr_frames=9, frame_list=guest.scratch + 256)
    assert op(guest, Gnttab.SETUP_TABLE, setup).status == 0
    assert struct.unpack("<9Q", guest.get(72, 256)) == tuple(guest.domain.grants.frames)
    assert len(guest.domain.grants.status_frames) == 2
    size = op(guest, Gnttab.QUERY_SIZE, GnttabQuerySize(dom=1))
    assert (size.nr_frames, size.max_nr_frames, size.status) == (9, 64, 0)
    for dom, status in ((0, -8), (2, -8), (77, -2)):
        assert op(guest, Gnttab.QUERY_SIZE, GnttabQuerySize(dom=dom)).status == status
        assert op(guest, Gnttab.SETUP_TABLE, GnttabSetupTable(dom=dom, nr_frames=1)).status == status
        ask.dom = dom
        assert op(guest, Gnttab.GET_STATUS_FRAMES, ask).status == status
    setup.nr_frames = 65
    assert op(guest, Gnttab.SETUP_TABLE, setup).status == -1
    setup.nr_frames, setup.frame_list = 1, UNMAPPED
    assert op(guest, Gnttab.SETUP_TABLE, setup).status == -5
    setup.frame_list = 0xFFFF800000000000
    request = guest.put(setup.pack())
    assert guest.call(Hypercall.GRANT_TABLE_OP, Gnttab.SETUP_TABLE, request, 1) == -Errno.EFAULT


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
        assert op(guest, Gnttab.TRANSFER, GnttabTransfer(mfn=mfn, domid=2, ref=8)).status == -9


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


SIZES = {
    Gnttab.MAP_GRANT_REF: GnttabMapGrantRef, Gnttab.UNMAP_GRANT_REF: GnttabUnmapGrantRef,
    Gnttab.UNMAP_AND_REPLACE: GnttabUnmapAndReplace, Gnttab.TRANSFER: GnttabTransfer, Gnttab.COPY: GnttabCopy,
    Gnttab.SWAP_GRANT_REF: GnttabSwapGrantRef, Gnttab.CACHE_FLUSH: GnttabCacheFlush,
}  # fmt: skip


@pytest.mark.parametrize("command", SIZES)
def test_long_lists_give_way(trio: Trio, command: int, monkeypatch: pytest.MonkeyPatch) -> None:
    guest, size = trio.a, SIZES[command].size()
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


# -- copies ------------------------------------------------------------------------------------------------


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
    assert trio.copy(b, **fields | {"length": 9}) == -1
    assert trio.copy(b, **fields | {"source_offset": 0x103, "length": 4}) == -1
    assert trio.copy(b, **fields | {"source_offset": 0xFFC}) == -10
    assert status_of(a, 8) == 0
    request = GnttabMapGrantRef(host_addr=b.page(6), flags=HOST | READONLY, ref=8, dom=1)
    assert op(b, Gnttab.MAP_GRANT_REF, request).status == -1
    back = {
        "source": mine, "source_domid": DOMID_SELF, "source_offset": 0x20, "dest": 8, "dest_domid": 1,
        "dest_offset": 0x108, "length": 4, "flags": DEST_GREF,
    }  # fmt: skip
    assert trio.copy(b, **back) == 0
    assert a.get(16, 0x2100) == b"012345674567cdef"
    assert trio.copy(b, **back | {"dest_offset": 0x109}) == -1


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
        "flags": 3,
    }
    assert trio.copy(b, **both) == 0
    assert c.get(14, 0x2064) == b"from the third"
    assert (status_of(a, 8), status_of(c, 20)) == (0, 0)
    request = GnttabMapGrantRef(host_addr=b.page(6), flags=HOST, ref=8, dom=1)
    assert op(b, Gnttab.MAP_GRANT_REF, request).status == -1
    entry(c, 20, PERMIT, 1, a.mfn(a.page(2)))
    assert trio.copy(b, **both) == -9, "not c's own frame"
    trio.kill(c)
    assert trio.copy(b, **both) == -1
    trio.kill(a)
    assert trio.copy(b, **both) == -2


def test_copies_that_are_refused(trio: Trio) -> None:
    a, b = trio.a, trio.b
    mine, other = b.mfn(b.page(4)), a.mfn(a.page(2))
    entry(a, 8, PERMIT | 4, 2, other)
    base = {"source": mine, "source_domid": DOMID_SELF, "dest": mine, "dest_domid": DOMID_SELF, "length": 8}
    assert trio.copy(b, **base | {"source_domid": 2}) == -8, "a frame by number only as DOMID_SELF"
    assert trio.copy(b, **base | {"dest_domid": 0}) == -8
    assert trio.copy(b, **base | {"source_domid": 77, "flags": 1}) == -2
    assert trio.copy(b, **base | {"source_domid": 0, "source": 8, "flags": 1}) == -1
    assert trio.copy(b, **base | {"source_domid": 0, "source": 512, "flags": 1}) == -3
    assert trio.copy(b, **base | {"source": other}) == -9
    assert trio.copy(b, **base | {"source": 1 << 60}) == -9
    assert trio.copy(b, **base | {"source": other, "length": 0xFFFF}) == -9, "frames before bounds"
    assert trio.copy(b, **base | {"length": 0xFFFF}) == -10
    assert trio.copy(b, **base | {"source": 8, "source_domid": 1, "flags": 1}) == 0
    assert trio.copy(b, **base | {"dest": 8, "dest_domid": 1, "flags": 2}) == -1
    assert trio.copy(b, **base | {"source": 600, "source_domid": 1, "flags": 1}) == -3
    assert trio.copy(b, **base | {"dest": b.vcpu.kernel_l4}) == -1, "a page table is not written"
    assert flags_of(a, 8) == PERMIT | 4


# -- mapping -----------------------------------------------------------------------------------------------


def map_ref(guest: Paused, ref: int = 8, flags: int = HOST, page: int = 6, dom: int = 1) -> GnttabMapGrantRef:
    request = GnttabMapGrantRef(host_addr=guest.page(page), flags=flags, ref=ref, dom=dom)
    return op(guest, Gnttab.MAP_GRANT_REF, request)


@pytest.mark.parametrize("version", [1, 2])
def test_map_and_unmap(trio: Trio, version: int) -> None:
    a, b = trio.a, trio.b
    set_version(a, version)
    mfn = a.mfn(a.page(2))
    entry(a, 8, PERMIT, 2, mfn)
    seen = (lambda: flags_of(a, 8) & 24) if version == 1 else (lambda: status_of(a, 8))
    done = map_ref(b)
    assert (done.status, done.dev_bus_addr, seen()) == (0, mfn << 12, 24)
    assert set_version(a, 3 - version) == (-Errno.EBUSY, version)
    assert b.mfn(b.page(6)) == mfn
    assert trio.machine.audit() == []
    second = map_ref(b, flags=HOST | READONLY, page=7)
    assert second.status == 0
    for number in (done, second):
        where = b.page(6 if number is done else 7)
        undo = GnttabUnmapGrantRef(host_addr=where, handle=number.handle)
        assert op(b, Gnttab.UNMAP_GRANT_REF, undo).status == 0
        assert seen() == (8 if number is done else 0)
    assert op(b, Gnttab.UNMAP_GRANT_REF, undo).status == -4
    assert set_version(a, 3 - version) == (0, 3 - version)


def test_mappings_that_are_refused(trio: Trio) -> None:
    a, b = trio.a, trio.b
    set_version(a, 2)
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    assert map_ref(b, dom=DOMID_SELF).status == -2, "a granter is named by its number"
    assert map_ref(b, dom=77).status == -2
    assert map_ref(b, dom=0).status == -1
    assert map_ref(b, dom=0, ref=512).status == -3
    assert map_ref(b, ref=256).status == -3
    assert map_ref(b, flags=0).status == -3
    assert map_ref(trio.c).status == -1
    entry(a, 9, PERMIT, 2, 1 << 40)
    assert map_ref(b, ref=9).status == -9
    entry(a, 9, PERMIT, 2, a.vcpu.kernel_l4)
    assert map_ref(b, ref=9).status == -1
    assert map_ref(b, ref=9, flags=HOST | READONLY).status == 0, "anybody may read a page table"
    for host_addr in (0xFFFF800000000000, 0x0001_0000_0000_0000 | b.page(6), 1 << 63, UNMAPPED):
        request = GnttabMapGrantRef(host_addr=host_addr, flags=HOST, ref=8, dom=1)
        assert op(b, Gnttab.MAP_GRANT_REF, request).status == -1
    assert status_of(a, 8) == 0
    assert len(b.domain.maptrack) == 1


def test_an_unmap_names_the_place(trio: Trio) -> None:
    a, b = trio.a, trio.b
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    done = map_ref(b)
    wrong = GnttabUnmapGrantRef(host_addr=b.page(7), handle=done.handle)
    assert op(b, Gnttab.UNMAP_GRANT_REF, wrong).status == -1
    wrong.host_addr = 0
    assert op(b, Gnttab.UNMAP_GRANT_REF, wrong).status == 0, "nothing was asked for"
    wrong.host_addr = b.page(6)
    assert op(b, Gnttab.UNMAP_GRANT_REF, wrong).status == 0
    assert flags_of(a, 8) == PERMIT


def replace(guest: Paused, handle: int, host_addr: int, new_addr: int) -> int:
    request = GnttabUnmapAndReplace(host_addr=host_addr, new_addr=new_addr, handle=handle)
    return int(op(guest, Gnttab.UNMAP_AND_REPLACE, request).status)


def test_a_mapping_is_replaced_by_the_page_that_was_there(trio: Trio) -> None:
    a, b = trio.a, trio.b
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    done = map_ref(b)
    b.put(b"the old page", 0x5000)
    old, ram = b.mfn(b.page(5)), trio.machine.ram
    moved = ram.q[b.entry(b.page(5)) >> 3]
    refs = trio.machine.frames.refs[old]
    b.domain.tables.flushed()
    assert replace(b, done.handle, b.page(6), b.page(5)) == 0
    assert b.domain.tables.flush
    assert ram.q[b.entry(b.page(6)) >> 3] == moved
    assert ram.q[b.entry(b.page(5)) >> 3] == 0
    assert trio.machine.frames.refs[old] == refs
    assert b.get(12, 0x6000) == b"the old page"
    assert flags_of(a, 8) == PERMIT
    assert replace(b, done.handle, b.page(6), b.page(5)) == -4


def test_replacing_that_fails_loses_the_replacement(trio: Trio) -> None:
    a, b = trio.a, trio.b
    frames, q = trio.machine.frames, trio.machine.ram.q
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    done = map_ref(b)
    old = b.mfn(b.page(5))
    refs = frames.refs[old]
    assert replace(b, done.handle, b.page(6), UNMAPPED) == -1
    assert replace(b, done.handle, b.page(7), b.page(5)) == -1, "that is not where the grant is mapped"
    assert q[b.entry(b.page(5)) >> 3] == 0
    assert frames.refs[old] == refs - 1
    assert trio.machine.audit() == []
    assert replace(b, done.handle, b.page(6), b.page(5)) == 0, "nothing takes its place"
    assert q[b.entry(b.page(6)) >> 3] == 0
    by_entry = GnttabMapGrantRef(host_addr=b.entry(b.page(6)), flags=HOST | CONTAINS_PTE, ref=8, dom=1)
    done = op(b, Gnttab.MAP_GRANT_REF, by_entry)
    assert done.status == 0
    assert replace(b, done.handle, b.entry(b.page(6)), b.page(4)) == -1
    assert q[b.entry(b.page(4)) >> 3] != 0
    assert replace(b, done.handle, b.entry(b.page(6)), 0) == 0


def test_replacing_a_mapping_by_itself(trio: Trio) -> None:
    a, b = trio.a, trio.b
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    done = map_ref(b)
    assert replace(b, done.handle, b.page(6), b.page(6)) == -1
    assert trio.machine.audit() == []
    assert trio.machine.frames.type_count[a.mfn(a.page(2))] == 1, "b's entry is gone"


def test_two_mappings_are_exchanged(trio: Trio) -> None:
    """A granted entry may itself be the replacement."""
    a, b = trio.a, trio.b
    for ref, page in ((8, 2), (9, 3)):
        entry(a, ref, PERMIT, 2, a.mfn(a.page(page)))
    first, second = map_ref(b, 8, page=6), map_ref(b, 9, page=7)
    assert replace(b, first.handle, b.page(6), b.page(7)) == 0
    assert b.mfn(b.page(6)) == a.mfn(a.page(3))
    assert trio.machine.audit() == []
    undo = GnttabUnmapGrantRef(host_addr=b.page(6), handle=second.handle)
    assert op(b, Gnttab.UNMAP_GRANT_REF, undo).status == 0
    assert (flags_of(a, 8), flags_of(a, 9)) == (PERMIT, PERMIT)


@pytest.mark.parametrize("flags", [HOST, HOST | DEVICE, HOST | DEVICE | READONLY])
@pytest.mark.parametrize("first", ["granter", "mapper"])
def test_death_with_version_2(trio: Trio, first: str, flags: int) -> None:
    a, b = trio.a, trio.b
    set_version(a, 2)
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    done = map_ref(b, flags=flags)
    assert done.status == 0
    for guest in (a, b) if first == "granter" else (b, a):
        trio.kill(guest)
        assert trio.machine.audit() == []
        if guest is b and a.domain.alive:
            assert status_of(a, 8) == 0
        if guest is a and b.domain.alive:
            undo = GnttabUnmapGrantRef(host_addr=b.page(6), handle=done.handle)
            assert op(b, Gnttab.UNMAP_GRANT_REF, undo).status == 0


def test_handles_run_out(trio: Trio) -> None:
    a, b = trio.a, trio.b
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    b.domain.maptrack.limit = 2
    assert [map_ref(b, flags=DEVICE).status for _ in range(3)] == [0, 0, -13]
    assert map_ref(b, ref=600, flags=DEVICE).status == -13, "before the reference is looked at"


# -- transfer ----------------------------------------------------------------------------------------------


def free_page(guest: Paused, page: int) -> int:
    """A frame of the guest that nothing maps."""
    mfn = guest.mfn(guest.page(page))
    assert guest.update_va_mapping(guest.page(page), 0, 2) == 0
    return mfn


def balloon(guest: Paused) -> None:
    """Make room for one page."""
    listed = guest.put(free_page(guest, 7).to_bytes(8, "little"), 512)
    request = guest.put(struct.pack("<QQIIHxxxxxx", listed, 1, 0, 0, DOMID_SELF))
    assert guest.memory_op(Memory.DECREASE_RESERVATION, request) == 1


@pytest.mark.parametrize("version", [1, 2])
def test_a_page_moves_to_another_domain(trio: Trio, version: int) -> None:
    a, b, frames = trio.a, trio.b, trio.machine.frames
    set_version(b, version)
    a.put(b"a present", 0x3000)
    mfn = free_page(a, 3)
    balloon(b)
    entry(b, 8, ACCEPT, 1, 0x123)
    before = a.domain.tot_pages, b.domain.tot_pages
    assert op(a, Gnttab.TRANSFER, GnttabTransfer(mfn=mfn, domid=2, ref=8)).status == 0
    assert (a.domain.tot_pages, b.domain.tot_pages) == (before[0] - 1, before[1] + 1)
    assert (frames.owner[mfn], frames.allocated[mfn], frames.refs[mfn]) == (2, 1, 1)
    assert frames.m2p is not None
    assert frames.m2p[mfn] == 0x123
    assert flags_of(b, 8) == ACCEPT | 4 | 8
    table = b.domain.grants.frames[0]
    assert trio.machine.ram.d[(table << 12) + 8 * 8 * version + 4 * version >> 2] == mfn
    assert b.update_va_mapping(b.page(7), mfn << 12 | READ_WRITE, 2) == 0
    assert b.get(9, 0x7000) == b"a present"
    assert a.update_va_mapping(a.page(3), mfn << 12 | READ_WRITE, 2) == -Errno.EBUSY
    assert op(a, Gnttab.TRANSFER, GnttabTransfer(mfn=mfn, domid=2, ref=8)).status == -9


def test_pages_that_do_not_move(trio: Trio) -> None:
    a, b, frames = trio.a, trio.b, trio.machine.frames
    balloon(b)
    entry(b, 8, ACCEPT, 1, 0x123)
    entry(a, 9, PERMIT, 2, a.mfn(a.page(3)))
    mapped = a.mfn(a.page(3))
    for mfn in (
        mapped, a.vcpu.kernel_l4, b.mfn(b.page(3)), 0, 1 << 40, frames.count, trio.machine.board.zero_frame,
        a.domain.shared_info.mfn,
    ):  # fmt: skip
        assert op(a, Gnttab.TRANSFER, GnttabTransfer(mfn=mfn, domid=2, ref=8)).status == -9
    assert map_ref(b, ref=9, flags=DEVICE | READONLY).status == 0
    assert a.update_va_mapping(a.page(3), 0, 2) == 0
    assert op(a, Gnttab.TRANSFER, GnttabTransfer(mfn=mapped, domid=2, ref=8)).status == -9, "b borrows it"
    assert flags_of(b, 8) == ACCEPT


@pytest.mark.parametrize(
    ("domid", "ref", "status"),
    [(77, 8, -2), (DOMID_SELF, 8, -2), (0, 8, -1), (2, 9, -1), (2, 1 << 31, -1), (3, 8, -1), (1, 8, -1)],
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
    assert op(a, Gnttab.TRANSFER, GnttabTransfer(mfn=mfn, domid=domid, ref=ref)).status == status
    assert a.domain.tot_pages == before - 1
    assert frames.free_count == free + 1
    assert not trio.machine.ram.tables[mfn].any()
    assert flags_of(b, 8) == ACCEPT


def test_a_transfer_to_oneself(trio: Trio) -> None:
    a = trio.a
    entry(a, 8, ACCEPT, 1, 0x55)
    mfn, before = free_page(a, 3), a.domain.tot_pages
    assert op(a, Gnttab.TRANSFER, GnttabTransfer(mfn=mfn, domid=1, ref=8)).status == 0
    assert (a.domain.tot_pages, trio.machine.frames.owner[mfn]) == (before, 1)


# -- housekeeping ------------------------------------------------------------------------------------------


def test_swap(trio: Trio) -> None:
    a, b = trio.a, trio.b
    set_version(a, 2)
    mfns = [a.mfn(a.page(2)), a.mfn(a.page(3))]
    entry(a, 8, PERMIT, 2, mfns[0])
    entry(a, 9, PERMIT, 3, mfns[1])
    assert op(a, Gnttab.SWAP_GRANT_REF, GnttabSwapGrantRef(ref_a=8, ref_b=9)).status == 0
    assert map_ref(b, ref=8).status == -1
    assert map_ref(b, ref=9).dev_bus_addr == mfns[0] << 12
    assert op(a, Gnttab.SWAP_GRANT_REF, GnttabSwapGrantRef(ref_a=8, ref_b=9)).status == -12
    assert op(a, Gnttab.SWAP_GRANT_REF, GnttabSwapGrantRef(ref_a=8, ref_b=256)).status == -3


def flush(guest: Paused, address: int, *, offset: int = 0, length: int = 64, what: int = 1) -> int:
    request = guest.put(GnttabCacheFlush(address=address, offset=offset, length=length, op=what).pack())
    return guest.call(Hypercall.GRANT_TABLE_OP, Gnttab.CACHE_FLUSH, request, 1)


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
    assert op(b, Gnttab.UNMAP_GRANT_REF, undo).status == 0
    assert flush(b, other) == -Errno.EINVAL


# -- the layouts of 32-bit guests --------------------------------------------------------------------------


@pytest.fixture
def narrow(trio: Trio, monkeypatch: pytest.MonkeyPatch) -> Trio:
    """All three guests pass structures as a 32-bit guest does."""
    for guest in (trio.a, trio.b, trio.c):
        monkeypatch.setattr(guest.dispatcher.call, "width", 32)
        monkeypatch.setattr(guest.dispatcher.call, "word", 4)
    return trio


def op32(guest: Paused, command: int, request):
    """One operation in the 32-bit layout."""
    address = guest.put(request.pack(32))
    assert guest.call(Hypercall.GRANT_TABLE_OP, command, address, 1) == 0
    return type(request).unpack(guest.get(request.size(32)), 32)


def test_frame_lists_of_32_bit_guests(narrow: Trio) -> None:
    guest = narrow.a
    assert set_version(guest, 2) == (0, 2)
    setup = GnttabSetupTable(dom=DOMID_SELF, nr_frames=3, frame_list=guest.scratch + 256)
    assert op32(guest, Gnttab.SETUP_TABLE, setup).status == 0
    assert struct.unpack("<3I", guest.get(12, 256)) == tuple(guest.domain.grants.frames)
    ask = GnttabGetStatusFrames(dom=DOMID_SELF, nr_frames=1, frame_list=guest.scratch + 256)
    assert op32(guest, Gnttab.GET_STATUS_FRAMES, ask).status == 0
    assert struct.unpack("<Q", guest.get(8, 256)) == tuple(guest.domain.grants.status_frames)
    setup.frame_list = 0xF5800000
    assert (
        guest.call(Hypercall.GRANT_TABLE_OP, Gnttab.SETUP_TABLE, guest.put(setup.pack(32)), 1)
        == -Errno.EFAULT
    )


def test_copy_and_transfer_of_32_bit_guests(narrow: Trio) -> None:
    a, b = narrow.a, narrow.b
    set_version(a, 2)
    a.put(b"0123456789", 0x2000)
    entry(a, 8, PERMIT | SUB_PAGE, 2, a.mfn(a.page(2)), (0, 10))
    request = GnttabCopy(
        source=8, source_domid=1, dest=b.mfn(b.page(4)), dest_domid=DOMID_SELF, length=10, flags=SOURCE_GREF
    )
    assert op32(b, Gnttab.COPY, request).status == 0
    assert b.get(10, 0x4000) == b"0123456789"
    mfn = free_page(b, 5)
    listed = a.put(free_page(a, 7).to_bytes(4, "little"), 512)
    assert (
        a.memory_op(Memory.DECREASE_RESERVATION, a.put(struct.pack("<IIIIHxx", listed, 1, 0, 0, DOMID_SELF)))
        == 1
    )
    entry(a, 9, ACCEPT, 2, 0x77)
    assert op32(b, Gnttab.TRANSFER, GnttabTransfer(mfn=mfn, domid=1, ref=9)).status == 0
    assert narrow.machine.frames.owner[mfn] == 1


def test_addresses_of_32_bit_guests(narrow: Trio) -> None:
    a, b = narrow.a, narrow.b
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    for host_addr in (0xF5800000, 1 << 32, 1 << 32 | b.page(6)):
        request = GnttabMapGrantRef(host_addr=host_addr, flags=HOST, ref=8, dom=1)
        assert op32(b, Gnttab.MAP_GRANT_REF, request).status == -1
    done = op32(b, Gnttab.MAP_GRANT_REF, GnttabMapGrantRef(host_addr=b.page(6), flags=HOST, ref=8, dom=1))
    assert done.status == 0
    request = GnttabUnmapAndReplace(host_addr=b.page(6), new_addr=1 << 32 | b.page(5), handle=done.handle)
    assert op32(b, Gnttab.UNMAP_AND_REPLACE, request).status == -1
    request.new_addr = b.page(5)
    assert op32(b, Gnttab.UNMAP_AND_REPLACE, request).status == 0


# -- anything, in any order --------------------------------------------------------------------------------

REFS = st.sampled_from([3, 8, 8, 9, 9, 10, 255, 256])
FLAGS = (PERMIT, PERMIT, PERMIT, PERMIT | 4, PERMIT | SUB_PAGE, ACCEPT, ACCEPT, TRANSITIVE, 0, 0xFFE7)
WHAT = (
    "entry", "entry", "entry", "version", "map", "map", "map", "unmap", "replace", "copy", "transfer", "swap",
    "share", "free", "own",
)  # fmt: skip
STEP = st.tuples(
    st.sampled_from(WHAT), st.integers(0, 2), st.integers(0, 2), REFS, REFS, st.integers(1, 7),
    st.integers(0, 31), st.integers(0, 0x1FF),
)  # fmt: skip


def step(trio: Trio, what: str, *numbers: int) -> None:
    """One operation of one guest, sensible or not."""
    who, other, ref, second, page, small, flags = numbers
    guests = (trio.a, trio.b, trio.c)
    guest, peer = guests[who], guests[other]
    frames = trio.machine.frames
    named = trio.machine.ram.q[guest.entry(guest.page(page)) >> 3] >> 12 & 0xFFFFF
    if what == "entry" and ref * 8 * guest.domain.grants.version < 4096:
        flags = FLAGS[flags % len(FLAGS)]
        passes_on = flags & 3 == TRANSITIVE
        low = (guests[small % 3].domain.domid, 0) if passes_on else (small * 64, 512)
        entry(guest, ref, flags, peer.domain.domid, second if passes_on else named, low)
    elif what == "version":
        set_version(guest, 2 if small else 1)
    elif what == "map":
        where = guest.entry(guest.page(page)) if small & CONTAINS_PTE else guest.page(page)
        request = GnttabMapGrantRef(host_addr=where, flags=small, ref=ref, dom=peer.domain.domid)
        op(guest, Gnttab.MAP_GRANT_REF, request, 0x8000)
    elif what == "unmap":
        bus = named << 12 if flags & 1 else 0
        request = GnttabUnmapGrantRef(host_addr=guest.page(page), dev_bus_addr=bus, handle=small % 3)
        op(guest, Gnttab.UNMAP_GRANT_REF, request, 0x8000)
    elif what == "replace":
        request = GnttabUnmapAndReplace(
            host_addr=guest.page(page), new_addr=guest.page(1 + small % 7), handle=flags % 3
        )
        op(guest, Gnttab.UNMAP_AND_REPLACE, request, 0x8000)
    elif what == "copy":
        request = GnttabCopy(
            source=ref if small & 1 else named, source_domid=peer.domain.domid if small & 1 else DOMID_SELF,
            dest=second if small & 2 else named, dest_domid=peer.domain.domid if small & 2 else DOMID_SELF,
            source_offset=flags, dest_offset=flags, length=flags, flags=small & 3,
        )  # fmt: skip
        op(guest, Gnttab.COPY, request, 0x8000)
    elif what == "transfer":
        mine = frames.owned_by(guest.domain.domid).tolist()
        spare = [mfn for mfn in mine if frames.refs[mfn] == frames.allocated[mfn] == 1]
        mfn = spare[0] if spare else named
        peer.domain.max_pages = 2 * PAGES
        op(guest, Gnttab.TRANSFER, GnttabTransfer(mfn=mfn, domid=peer.domain.domid, ref=ref), 0x8000)
    elif what == "swap":
        op(guest, Gnttab.SWAP_GRANT_REF, GnttabSwapGrantRef(ref_a=ref, ref_b=second), 0x8000)
    elif what == "share":
        shared = peer.domain.grants.shared_frames
        value = shared[small % len(shared)] << 12 | READ_WRITE
        guest.update_va_mapping(guest.page(page), value, 2)
    elif what == "free":
        guest.update_va_mapping(guest.page(page), 0, 2)
    elif what == "own":
        mine = frames.owned_by(guest.domain.domid)
        value = int(mine[(flags * 32 + small) % mine.size]) << 12 | READ_WRITE
        guest.update_va_mapping(guest.page(page), value, 2)


@settings(max_examples=12)
@given(st.lists(STEP, min_size=20, max_size=150), st.permutations([0, 1, 2]))
def test_whatever_guests_do_memory_is_sound_and_death_gives_all_back(
    steps: list[tuple[str, int, int, int, int, int, int, int]], order: list[int]
) -> None:
    trio = Trio()
    try:
        for number, (what, *numbers) in enumerate(steps):
            step(trio, what, *numbers)
            if number % 10 == 0:
                assert trio.machine.audit() == []
        for who in order:
            trio.kill((trio.a, trio.b, trio.c)[who])
            assert trio.machine.audit() == []
        assert trio.machine.frames.free_count == trio.free
    finally:
        trio.machine.close()
