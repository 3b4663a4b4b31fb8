# SPDX-License-Identifier: GPL-2.0-only
"""memory_op's questions: how much there is, where the M2P is, the memory map; and what is refused."""

import struct

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.layout import AbiStruct
from pyhv.abi.numbers import MemoryOp
from pyhv.abi.structs import (
    AcquireResource,
    AddToPhysmap,
    AddToPhysmapBatch,
    ForeignMemoryMap,
    MachphysMapping,
    MachphysMfnList,
    MemoryMap,
    MemoryReservation,
    RemoveFromPhysmap,
    VnumaTopologyInfo,
)
from pyhv.testing.guest_machine import UNMAPPED, Paused

RAM, RESERVED = 1, 2
SPACE_GRANT_TABLE, SPACE_GMFN_RANGE, SPACE_GMFN_FOREIGN = 1, 3, 4
ENTRY = struct.Struct("<QQI")
"""Of an E820 map: start, size, type."""
SELF = DOMID_SELF


def domid(guest: Paused, value: int) -> int:
    """Where a domain's number stands."""
    return guest.put(struct.pack("<H", value))


# -- how much ----------------------------------------------------------------------------------------------


def test_asking_about_memory(guest: Paused) -> None:
    assert guest.memory_op(MemoryOp.MAXIMUM_RAM_PAGE) == guest.machine.frames.count
    for this in (SELF, guest.domain.domid):
        assert guest.memory_op(MemoryOp.CURRENT_RESERVATION, domid(guest, this)) == 1024
        assert guest.memory_op(MemoryOp.MAXIMUM_RESERVATION, domid(guest, this)) == 1024
    for command in (MemoryOp.CURRENT_RESERVATION, MemoryOp.MAXIMUM_RESERVATION, MemoryOp.MAXIMUM_GPFN):
        assert guest.memory_op(command, domid(guest, 0)) == -Errno.EPERM
        assert guest.memory_op(command, domid(guest, 77)) == -Errno.ESRCH
        assert guest.memory_op(command, UNMAPPED) == -Errno.EFAULT


def test_maximum_gpfn_is_what_the_guest_says(guest: Paused) -> None:
    page, at = guest.domain.shared_info, guest.domain.layout.max_pfn
    for said, answer in ((0, 0), (1, 0), (512, 511)):
        page.write_u64(at, said)
        assert guest.memory_op(MemoryOp.MAXIMUM_GPFN, domid(guest, SELF)) == answer


# -- the machine-to-physical table -------------------------------------------------------------------------


def test_where_the_m2p_is(guest: Paused) -> None:
    found = MachphysMapping()
    assert guest.memory_op(MemoryOp.MACHPHYS_MAPPING, found) == 0
    assert (found.v_start, found.v_end) == (0xFFFF800000000000, 0xFFFF804000000000)
    assert found.max_mfn == guest.machine.frames.count - 1


@pytest.mark.parametrize("command", [MemoryOp.MACHPHYS_MFN_LIST, MemoryOp.MACHPHYS_COMPAT_MFN_LIST])
def test_the_frames_of_the_m2p(guest: Paused, command: MemoryOp) -> None:
    m2p = guest.machine.board.m2p
    request = MachphysMfnList(max_extents=9, extent_start=guest.scratch, nr_extents=99)
    assert guest.memory_op(command, request) == 0
    assert request.nr_extents == 1
    frames = m2p.frames if command is MemoryOp.MACHPHYS_MFN_LIST else m2p.compat_frames
    assert guest.words(guest.scratch, 1) == (frames[0],)
    request = MachphysMfnList(max_extents=0, extent_start=UNMAPPED, nr_extents=99)
    assert guest.memory_op(command, request) == 0
    assert request.nr_extents == 0


# -- the memory map ----------------------------------------------------------------------------------------


def test_memory_map(guest: Paused) -> None:
    request = MemoryMap(nr_entries=8, buffer=guest.scratch)
    assert guest.memory_op(MemoryOp.MEMORY_MAP, request) == 0
    assert request.nr_entries == 1
    assert guest.get(ENTRY.size) == ENTRY.pack(0, 1024 * 4096, RAM)
    nowhere = MemoryMap(nr_entries=0, buffer=UNMAPPED)
    assert guest.memory_op(MemoryOp.MEMORY_MAP, nowhere) in (0, -Errno.EFAULT)


@pytest.mark.promise("L-20")
def test_the_guests_own_memory_map(guest: Paused) -> None:
    entries = ENTRY.pack(0, 0x1000, RAM) + ENTRY.pack(0x1000, 0x2000, RESERVED)
    buffer, answer = guest.put(entries, 0x100), guest.scratch + 0x200

    def set_map(domid: int, count: int, at: int = buffer) -> int:
        return guest.memory_op(
            MemoryOp.SET_MEMORY_MAP, ForeignMemoryMap(domid=domid, nr_entries=count, buffer=at)
        )

    assert set_map(0, 2) == -Errno.EPERM
    assert set_map(77, 2) == -Errno.ESRCH
    assert set_map(SELF, 1025) == -Errno.EINVAL
    assert set_map(SELF, 2, UNMAPPED) == -Errno.EFAULT
    assert set_map(SELF, 2) == 0
    for room, stored in ((9, 2), (1, 1)):
        guest.put(bytes(60), 0x200)
        request = MemoryMap(nr_entries=room, buffer=answer)
        assert guest.memory_op(MemoryOp.MEMORY_MAP, request) == 0
        assert request.nr_entries == stored
        assert guest.get(60, 0x200) == entries[: stored * ENTRY.size].ljust(60, b"\0")
    assert set_map(SELF, 0, 0) == 0
    assert guest.memory_op(MemoryOp.MEMORY_MAP, MemoryMap(nr_entries=9, buffer=answer)) == -Errno.ENOSYS


# -- what is refused ---------------------------------------------------------------------------------------

PHYSMAP, BATCH, REMOVE = MemoryOp.ADD_TO_PHYSMAP, MemoryOp.ADD_TO_PHYSMAP_BATCH, MemoryOp.REMOVE_FROM_PHYSMAP
CLAIM, VNUMA, RESOURCE = MemoryOp.CLAIM_PAGES, MemoryOp.GET_VNUMAINFO, MemoryOp.ACQUIRE_RESOURCE


@pytest.mark.parametrize(
    ("command", "request_", "errno"),
    [
        (PHYSMAP, AddToPhysmap(domid=SELF, space=SPACE_GRANT_TABLE), Errno.EACCES),
        (PHYSMAP, AddToPhysmap(domid=0, space=SPACE_GRANT_TABLE), Errno.EACCES),
        (PHYSMAP, AddToPhysmap(domid=77, space=SPACE_GRANT_TABLE), Errno.ESRCH),
        (PHYSMAP, AddToPhysmap(domid=SELF, space=SPACE_GMFN_FOREIGN), Errno.ENOSYS),
        (BATCH, AddToPhysmapBatch(domid=SELF, space=SPACE_GRANT_TABLE), Errno.EACCES),
        (BATCH, AddToPhysmapBatch(domid=77, space=SPACE_GRANT_TABLE), Errno.ESRCH),
        (BATCH, AddToPhysmapBatch(domid=SELF, space=SPACE_GMFN_RANGE), Errno.EOPNOTSUPP),
        (REMOVE, RemoveFromPhysmap(domid=SELF), Errno.EACCES),
        (REMOVE, RemoveFromPhysmap(domid=77), Errno.ESRCH),
        (CLAIM, MemoryReservation(nr_extents=1, domid=1), Errno.EPERM),
        (CLAIM, MemoryReservation(nr_extents=1, domid=SELF), Errno.EINVAL),
        (CLAIM, MemoryReservation(nr_extents=1, domid=77), Errno.EINVAL),
        (CLAIM, MemoryReservation(nr_extents=1, domid=1, extent_start=8), Errno.EINVAL),
        (CLAIM, MemoryReservation(nr_extents=1, domid=1, extent_order=1), Errno.EINVAL),
        (CLAIM, MemoryReservation(nr_extents=1, domid=1, mem_flags=1), Errno.EINVAL),
        (VNUMA, VnumaTopologyInfo(domid=SELF), Errno.EOPNOTSUPP),
        (VNUMA, VnumaTopologyInfo(domid=SELF, pad=1), Errno.EINVAL),
        (VNUMA, VnumaTopologyInfo(domid=77), Errno.ESRCH),
        (VNUMA, VnumaTopologyInfo(domid=0), Errno.EPERM),
        (RESOURCE, AcquireResource(domid=0, type=1, nr_frames=1), Errno.EPERM),
        (RESOURCE, AcquireResource(domid=1, type=1, nr_frames=1), Errno.EPERM),
        (RESOURCE, AcquireResource(domid=SELF, type=1, nr_frames=1), Errno.ESRCH),
        (RESOURCE, AcquireResource(domid=0, type=1, nr_frames=1, pad=1), Errno.EINVAL),
        (RESOURCE, AcquireResource(domid=0, type=1, nr_frames=1, frame=0xFFFFFFFF), Errno.EINVAL),
        (RESOURCE, AcquireResource(domid=0, type=1, nr_frames=1, frame=1 << 63), Errno.EINVAL),
    ],
    ids=repr,
)
def test_memory_operations_that_are_refused(
    guest: Paused, command: MemoryOp, request_: AbiStruct, errno: Errno
) -> None:
    assert guest.memory_op(command, request_) == -errno
    assert guest.memory_op(command, UNMAPPED) == -Errno.EFAULT


@pytest.mark.parametrize(
    ("command", "request_", "start", "errno"),
    [
        (PHYSMAP, AddToPhysmap(domid=SELF, space=SPACE_GRANT_TABLE), 9, Errno.EACCES),
        (PHYSMAP, AddToPhysmap(domid=SELF, space=SPACE_GRANT_TABLE), 1 << 16, Errno.EDOM),
        (BATCH, AddToPhysmapBatch(domid=SELF, space=SPACE_GRANT_TABLE), 1 << 16, Errno.EDOM),
        (REMOVE, RemoveFromPhysmap(domid=SELF), 1, Errno.EINVAL),
        (CLAIM, MemoryReservation(nr_extents=1, domid=1), 1, Errno.EINVAL),
    ],
)
def test_refused_operations_that_go_on(
    guest: Paused, command: MemoryOp, request_: AbiStruct, start: int, errno: Errno
) -> None:
    assert guest.memory_op(command, request_, start) == -errno


@pytest.mark.parametrize(
    ("command", "result"),
    [
        (MemoryOp.MACHINE_MEMORY_MAP, -Errno.EPERM),
        (MemoryOp.SET_POD_TARGET, -Errno.EINVAL),
        (MemoryOp.GET_POD_TARGET, -Errno.EINVAL),
        (MemoryOp.GET_SHARING_FREED_PAGES, 0),
        (MemoryOp.GET_SHARING_SHARED_PAGES, 0),
        (MemoryOp.RESERVED_DEVICE_MEMORY_MAP, -Errno.ENOSYS),
        *((command, -Errno.ENOSYS) for command in (8, 20, 21, 22, 29, 63)),
    ],
)
def test_memory_operations_without_a_structure(guest: Paused, command: int, result: int) -> None:
    assert guest.memory_op(command, guest.scratch) == result


def test_what_is_never_continued(guest: Paused) -> None:
    for command in (
        MemoryOp.MAXIMUM_RAM_PAGE, MemoryOp.CURRENT_RESERVATION, MemoryOp.MAXIMUM_RESERVATION,
        MemoryOp.MAXIMUM_GPFN, MemoryOp.EXCHANGE, REMOVE, CLAIM, VNUMA,
    ):  # fmt: skip
        assert guest.memory_op(command, guest.scratch, 1) == -Errno.EINVAL
    for command in (
        MemoryOp.MACHPHYS_MFN_LIST, MemoryOp.MACHPHYS_COMPAT_MFN_LIST, MemoryOp.MACHPHYS_MAPPING,
        MemoryOp.MEMORY_MAP, MemoryOp.MACHINE_MEMORY_MAP, MemoryOp.SET_MEMORY_MAP,
        MemoryOp.GET_SHARING_FREED_PAGES,
    ):  # fmt: skip
        assert guest.memory_op(command, guest.scratch, 1) == -Errno.ENOSYS


# -- 32-bit guests: byte by byte ---------------------------------------------------------------------------


def test_the_m2p_of_32_bit_guests(narrow: Paused) -> None:
    dirty = b"\xaa" * 64
    assert narrow.memory_op(MemoryOp.MACHPHYS_MAPPING, narrow.put(dirty)) == 0
    highest = narrow.machine.frames.count - 1
    assert narrow.get(16) == struct.pack("<III", 0xF5800000, 0xFFE00000, highest) + dirty[:4]
    for command in (MemoryOp.MACHPHYS_MFN_LIST, MemoryOp.MACHPHYS_COMPAT_MFN_LIST):
        assert narrow.memory_op(command, narrow.put(struct.pack("<III", 9, narrow.scratch + 64, 0))) == 0
        assert narrow.get(4, 8) == struct.pack("<I", 1)
        assert narrow.get(4, 64) == struct.pack("<I", narrow.machine.board.m2p.compat_frames[0])


def test_the_memory_map_of_32_bit_guests(narrow: Paused) -> None:
    entries = narrow.put(ENTRY.pack(0, 0x5000, RAM), 0x100)
    request = narrow.put(struct.pack("<HxxII", SELF, 1, entries))
    assert narrow.memory_op(MemoryOp.SET_MEMORY_MAP, request) == 0
    request = narrow.put(struct.pack("<II", 4, narrow.scratch + 0x200))
    assert narrow.memory_op(MemoryOp.MEMORY_MAP, request) == 0
    assert narrow.get(4) == struct.pack("<I", 1)
    assert narrow.get(20, 0x200) == ENTRY.pack(0, 0x5000, RAM)
