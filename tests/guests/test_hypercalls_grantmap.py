# SPDX-License-Identifier: GPL-2.0-only
"""grant_table_op: mapping and unmapping grants, and who dies first."""

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.grants import EntryFlag, GrantStatus
from pyhv.abi.structs import (
    GnttabMapGrantRef,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
)
from pyhv.testing.granting import (
    CONTAINS_PTE,
    DEVICE,
    HOST,
    IN_USE,
    PERMIT,
    READONLY,
    Trio,
    entry,
    flags_of,
    map_ref,
    op,
    set_version,
    status_of,
)
from pyhv.testing.guest_machine import UNMAPPED, Paused


@pytest.mark.parametrize("version", [1, 2])
def test_map_and_unmap(trio: Trio, version: int) -> None:
    a, b = trio.a, trio.b
    set_version(a, version)
    mfn = a.mfn(a.page(2))
    entry(a, 8, PERMIT, 2, mfn)

    def seen() -> int:
        return flags_of(a, 8) & IN_USE if version == 1 else status_of(a, 8)

    done = map_ref(b)
    assert (done.status, done.dev_bus_addr, seen()) == (0, mfn << 12, IN_USE)
    assert set_version(a, 3 - version) == (-Errno.EBUSY, version)
    assert b.mfn(b.page(6)) == mfn
    assert trio.machine.audit() == []
    second = map_ref(b, flags=HOST | READONLY, page=7)
    assert second.status == 0
    for number in (done, second):
        where = b.page(6 if number is done else 7)
        undo = GnttabUnmapGrantRef(host_addr=where, handle=number.handle)
        assert op(b, undo).status == 0
        assert seen() == (EntryFlag.READING if number is done else 0)
    assert op(b, undo).status == GrantStatus.BAD_HANDLE
    assert set_version(a, 3 - version) == (0, 3 - version)


@pytest.mark.promise("I-7")
def test_mappings_that_are_refused(trio: Trio) -> None:
    a, b = trio.a, trio.b
    set_version(a, 2)
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    assert map_ref(b, dom=DOMID_SELF).status == GrantStatus.BAD_DOMAIN, "a granter is named by its number"
    assert map_ref(b, dom=77).status == GrantStatus.BAD_DOMAIN
    assert map_ref(b, dom=0).status == GrantStatus.GENERAL_ERROR
    assert map_ref(b, dom=0, ref=512).status == GrantStatus.BAD_GNTREF
    assert map_ref(b, ref=256).status == GrantStatus.BAD_GNTREF
    assert map_ref(b, flags=0).status == GrantStatus.BAD_GNTREF
    assert map_ref(trio.c).status == GrantStatus.GENERAL_ERROR
    entry(a, 9, PERMIT, 2, 1 << 40)
    assert map_ref(b, ref=9).status == GrantStatus.BAD_PAGE
    entry(a, 9, PERMIT, 2, a.vcpu.paging.kernel_l4)
    assert map_ref(b, ref=9).status == GrantStatus.GENERAL_ERROR
    assert map_ref(b, ref=9, flags=HOST | READONLY).status == 0, "anybody may read a page table"
    for host_addr in (0xFFFF800000000000, 0x0001_0000_0000_0000 | b.page(6), 1 << 63, UNMAPPED):
        request = GnttabMapGrantRef(host_addr=host_addr, flags=HOST, ref=8, dom=1)
        assert op(b, request).status == GrantStatus.GENERAL_ERROR
    assert status_of(a, 8) == 0
    assert len(b.domain.maptrack) == 1


def test_an_unmap_names_the_place(trio: Trio) -> None:
    a, b = trio.a, trio.b
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    done = map_ref(b)
    wrong = GnttabUnmapGrantRef(host_addr=b.page(7), handle=done.handle)
    assert op(b, wrong).status == GrantStatus.GENERAL_ERROR
    wrong.host_addr = 0
    assert op(b, wrong).status == 0, "nothing was asked for"
    wrong.host_addr = b.page(6)
    assert op(b, wrong).status == 0
    assert flags_of(a, 8) == PERMIT


def replace(guest: Paused, handle: int, host_addr: int, new_addr: int) -> int:
    request = GnttabUnmapAndReplace(host_addr=host_addr, new_addr=new_addr, handle=handle)
    return int(op(guest, request).status)


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
    assert replace(b, done.handle, b.page(6), b.page(5)) == GrantStatus.BAD_HANDLE


def test_replacing_that_fails_loses_the_replacement(trio: Trio) -> None:
    a, b = trio.a, trio.b
    frames, q = trio.machine.frames, trio.machine.ram.q
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    done = map_ref(b)
    old = b.mfn(b.page(5))
    refs = frames.refs[old]
    assert replace(b, done.handle, b.page(6), UNMAPPED) == GrantStatus.GENERAL_ERROR
    assert replace(b, done.handle, b.page(7), b.page(5)) == GrantStatus.GENERAL_ERROR, (
        "that is not where the grant is mapped"
    )
    assert q[b.entry(b.page(5)) >> 3] == 0
    assert frames.refs[old] == refs - 1
    assert trio.machine.audit() == []
    assert replace(b, done.handle, b.page(6), b.page(5)) == 0, "nothing takes its place"
    assert q[b.entry(b.page(6)) >> 3] == 0
    by_entry = GnttabMapGrantRef(host_addr=b.entry(b.page(6)), flags=HOST | CONTAINS_PTE, ref=8, dom=1)
    done = op(b, by_entry)
    assert done.status == 0
    assert replace(b, done.handle, b.entry(b.page(6)), b.page(4)) == GrantStatus.GENERAL_ERROR
    assert q[b.entry(b.page(4)) >> 3] != 0
    assert replace(b, done.handle, b.entry(b.page(6)), 0) == 0


def test_replacing_a_mapping_by_itself(trio: Trio) -> None:
    a, b = trio.a, trio.b
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    done = map_ref(b)
    assert replace(b, done.handle, b.page(6), b.page(6)) == GrantStatus.GENERAL_ERROR
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
    assert op(b, undo).status == 0
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
            assert op(b, undo).status == 0


@pytest.mark.promise("L-5")
def test_handles_run_out(trio: Trio) -> None:
    a, b = trio.a, trio.b
    entry(a, 8, PERMIT, 2, a.mfn(a.page(2)))
    b.domain.maptrack.limit = 2
    assert [map_ref(b, flags=DEVICE).status for _ in range(3)] == [0, 0, GrantStatus.NO_SPACE]
    assert map_ref(b, ref=600, flags=DEVICE).status == GrantStatus.NO_SPACE, (
        "before the reference is looked at"
    )
