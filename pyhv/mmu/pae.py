# SPDX-License-Identifier: GPL-2.0-only
"""Direct paging for a 32-bit PAE guest: what differs from the 64-bit rules of `tables.py`.

The top table is an L3 of four entries, one for each gigabyte. The hypervisor lives in the last one:

    L3   0        1        2        3
         |        |        |        `-> the *last L2*: slots 0..427 the guest's, 428..511 the hypervisor's
         0..1 GiB 1..2 GiB 2..3 GiB     (0xf5800000 and above: the machine-to-physical table, read-only)

so slot 3 must be there, its L2 can be in no other slot of any L3, and the guest can change neither slot 3 of
a validated L3 nor the hypervisor's slots of that L2. Kernel and user differ in privilege level (1 and 3),
so that entries keep the US bit that the guest gave them. (Public header `arch-x86/xen-x86_32.h`.)
"""

from collections.abc import Mapping
from typing import Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from pyhv.abi.errno import Errno
from pyhv.abi.x86 import PTE_MFN_MASK, PTE_P, PTE_RW, PTE_US
from pyhv.errors import XenError
from pyhv.mmu.frames import L2, L3, FrameTable
from pyhv.mmu.memory import GuestMemory
from pyhv.mmu.paging import COMPAT_FIRST_SLOT, L4Cache
from pyhv.mmu.physical import PhysicalMemory
from pyhv.mmu.tables import UPPER_FORBIDDEN, PageTables

LAST_SLOT: Final = 3
"""Slot of the L3 whose gigabyte holds the hypervisor's part."""
L3_ENTRIES: Final = 4
_HIGH_BITS: Final = 0xFFF0_0000_0000_0000
_BELOW_4_GIB: Final = 1 << 20


class PaePageTables(PageTables):
    """The page tables of one 32-bit domain."""

    top = L3
    STATE: ClassVar[Mapping[str, Any]] = {**PageTables.STATE, "l3_anywhere": bool}

    def __init__(
        self, domid: int, frames: FrameTable, physical: PhysicalMemory, memory: GuestMemory, cache: L4Cache
    ) -> None:
        super().__init__(domid, frames, physical, memory, cache)
        self.l3_anywhere = True
        """Whether an L3 may lie above 4 GiB: for the builder, and with vm_assist `pae_extended_cr3`."""

    def allow_top_anywhere(self, allowed: bool) -> None:
        """Whether an L3 may lie above 4 GiB."""
        self.l3_anywhere = allowed

    def forbidden(self, level: int) -> int:
        """An L3 entry has no execute-disable bit and nothing else above the address either."""
        return UPPER_FORBIDDEN | _HIGH_BITS if level == L3 else UPPER_FORBIDDEN

    def adjust_upper(self, level: int) -> int:
        """The processor walks L3 entries as those of a four-level table, so they get all rights."""
        return PTE_US | PTE_RW if level == L3 else 0

    def adjust_leaf(self, entry: int) -> int:
        """Leaves stay as the guest wrote them."""
        return entry

    def adjust_leaves(self, entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """Leaves stay as the guest wrote them."""
        return entries

    def check_slot(self, table: int, level: int, slot: int) -> None:
        """Slot 3 of a validated L3 stays, and so do the hypervisor's slots of the last L2."""
        if level == L3 and slot >= LAST_SLOT:
            raise XenError(Errno.EINVAL, f"slot {slot} of a validated L3 cannot be changed")
        if level == L2 and slot >= COMPAT_FIRST_SLOT and self.frames.last_l2[table]:
            raise XenError(Errno.EPERM, f"L2 slot {slot} belongs to the hypervisor")

    def prepare(self, mfn: int, level: int) -> None:
        """Clear an L3 beyond its four entries."""
        if level == L3:
            if mfn >= _BELOW_4_GIB and not self.l3_anywhere:
                raise XenError(Errno.ERANGE, f"L3 at mfn {mfn:#x}, above 4 GiB, without pae_extended_cr3")
            self.physical.write_slots(mfn, slice(L3_ENTRIES, None), 0)
            if not self.ram.q[mfn << 9 | LAST_SLOT] & PTE_P:
                raise XenError(Errno.EINVAL, "the L3 has no entry in slot 3, where the hypervisor lives")

    def may_go_ahead(self, level: int, slot: int) -> bool:
        """The last L2 is one only as that: its L3 has to be approved first."""
        return not (level == L3 and slot == LAST_SLOT)

    def guest_slots(self, mfn: int, level: int) -> list[int]:
        """Present entries, without the hypervisor's."""
        slots = PageTables.guest_slots(self, mfn, level)
        if level == L2 and self.frames.last_l2[mfn]:
            return [slot for slot in slots if slot < COMPAT_FIRST_SLOT]
        return slots

    def take_upper(self, table: int, level: int, slot: int, entry: int) -> None:
        """As for 64-bit guests, but for the last L2."""
        if level == L3 and slot == LAST_SLOT:
            self._take_last_l2(entry)
        else:
            PageTables.take_upper(self, table, level, slot, entry)

    def _take_last_l2(self, entry: int) -> None:
        """Approve the entry of slot 3: an L2 that nothing else refers to."""
        if entry & self.forbidden(L3):
            raise XenError(Errno.EINVAL, f"L3 entry {entry:#x} has bits that no guest may set")
        mfn = (entry & PTE_MFN_MASK) >> 12
        frames = self.frames
        if not 0 < mfn < frames.count or frames.owner[mfn] != self.domid or frames.type_count[mfn]:
            raise XenError(
                Errno.EINVAL, f"slot 3 of an L3 wants an L2 of its own, not {frames.describe(mfn)}"
            )
        frames.last_l2[mfn] = 1
        try:
            PageTables.take_table(self, mfn, L2)
        except XenError:
            frames.last_l2[mfn] = 0
            raise
        self.physical.write_slots(mfn, slice(COMPAT_FIRST_SLOT, None), self.cache.m2p.compat_entries)

    def take_table(self, number: int, level: int) -> int:
        """As for 64-bit guests; an L3 has no linear entries, and the last L2 has its one place."""
        frames = self.frames
        if 0 < number < frames.count and frames.last_l2[number] and level == L2:
            raise XenError(Errno.EINVAL, f"{frames.describe(number)} is the last L2 of some L3 already")
        return PageTables.take_table(self, number, level)

    def take_linear(self, table: int, level: int, mfn: int, entry: int) -> None:
        """As for 64-bit guests; an L3 has none."""
        if level == L3:
            raise XenError(Errno.EINVAL, "an L3 of a 32-bit guest has no linear entries")
        PageTables.take_linear(self, table, level, mfn, entry)

    def demote(self, mfn: int, level: int) -> None:
        """As for 64-bit guests; the last L2 loses the hypervisor's entries."""
        PageTables.demote(self, mfn, level)
        if level == L2 and self.frames.last_l2[mfn]:
            self.frames.last_l2[mfn] = 0
            self.physical.write_slots(mfn, slice(COMPAT_FIRST_SLOT, None), 0)
