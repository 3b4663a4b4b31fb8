# SPDX-License-Identifier: GPL-2.0-only
"""Three paused guests that grant each other pages: for tests of grant_table_op."""

import struct
from typing import Final, TypeVar

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.grants import CopyFlag, EntryFlag, MapFlag
from pyhv.abi.layout import AbiStruct
from pyhv.abi.numbers import MemoryOp
from pyhv.abi.structs import GnttabCopy, GnttabMapGrantRef, GnttabSetVersion, MemoryReservation
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_P, PTE_RW
from pyhv.machine import Machine, MachineConfig
from pyhv.testing.guest_machine import Paused

PAGES: Final = 1024
READ_WRITE: Final = PTE_P | PTE_RW | PTE_A | PTE_D
HOST, DEVICE, READONLY, CONTAINS_PTE = (
    MapFlag.HOST,
    MapFlag.DEVICE,
    MapFlag.READONLY,
    MapFlag.CONTAINS_PTE,
)
SOURCE_GREF, DEST_GREF = CopyFlag.SOURCE_GREF, CopyFlag.DEST_GREF
PERMIT, ACCEPT, TRANSITIVE, SUB_PAGE = (
    EntryFlag.PERMIT_ACCESS.value,
    EntryFlag.ACCEPT_TRANSFER.value,
    EntryFlag.TRANSITIVE.value,
    EntryFlag.SUB_PAGE.value,
)
GTF_READONLY, IN_USE = EntryFlag.READONLY.value, (EntryFlag.READING | EntryFlag.WRITING).value

_R = TypeVar("_R", bound=AbiStruct)


def op(guest: Paused, request: _R) -> _R:
    """One operation; its structure, with the results in it."""
    assert guest.grant_table_op(request) == 0
    return request


def set_version(guest: Paused, version: int) -> tuple[int, int]:
    """GNTTABOP_set_version; the result, and the version that is told to be in force."""
    request = GnttabSetVersion(version=version)
    return guest.grant_table_op(request), request.version


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
    guest.machine.physical.write(at, raw)


def flags_of(guest: Paused, ref: int) -> int:
    """The flags of an entry, as the guest would read them."""
    table = guest.domain.grants
    at = (table.frames[0] << 12) + ref * 8 * table.version
    return int.from_bytes(guest.machine.ram.raw[at : at + 2], "little")


def status_of(guest: Paused, ref: int) -> int:
    """The status word of an entry of version 2."""
    at = (guest.domain.grants.status_frames[0] << 12) + 2 * ref
    return int.from_bytes(guest.machine.ram.raw[at : at + 2], "little")


class Trio:
    """Three guests; the first two usually have tables of version 2."""

    def __init__(self) -> None:
        self.machine = Machine(MachineConfig(3 * PAGES + 256, virtual_time=True))
        self.free = self.machine.frames.free_count
        self.a, self.b, self.c = (Paused(self.machine) for _ in range(3))

    def kill(self, guest: Paused) -> None:
        """End a guest, and see that all of it goes."""
        guest.domain.life.shut_down(0)
        self.machine.settle()

    def copy(self, guest: Paused, **fields: int) -> int:
        """GNTTABOP_copy of one piece; its status."""
        return op(guest, GnttabCopy(**fields)).status


def map_ref(guest: Paused, ref: int = 8, flags: int = HOST, page: int = 6, dom: int = 1) -> GnttabMapGrantRef:
    """Map a grant over a scratch page."""
    request = GnttabMapGrantRef(host_addr=guest.page(page), flags=flags, ref=ref, dom=dom)
    return op(guest, request)


def free_page(guest: Paused, page: int) -> int:
    """A frame of the guest that nothing maps."""
    mfn = guest.mfn(guest.page(page))
    assert guest.unmap(guest.page(page)) == 0
    return mfn


def balloon(guest: Paused) -> None:
    """Make room for one page."""
    word = "Q" if guest.width == 64 else "I"
    listed = guest.put(struct.pack(f"<{word}", free_page(guest, 7)), 512)
    request = MemoryReservation(extent_start=listed, nr_extents=1, domid=DOMID_SELF)
    assert guest.memory_op(MemoryOp.DECREASE_RESERVATION, request) == 1
