# SPDX-License-Identifier: GPL-2.0-only
"""Direct paging: a guest writes its own page tables, the hypervisor approves every entry.

Rules and error codes are those of Xen 4.17 for a 64-bit PV guest (`xen/include/public/xen.h`, section
"MMU update requests", and the behaviour of `mmu_update`). An entry is approved by *taking references* on
what it points to; a table is promoted by approving all its present entries, and demoted, when its last type
reference goes, by dropping them again:

    entry in      with      takes on its target
    L1            RW        a writable reference          refused while the target is a table
    L1            no RW     a general reference           any type may be looked at
    L2, L3, L4              a reference of type L1, L2, L3
    L2, L3, L4    no RW     a linear reference: the target is a table of the same level

What the guest reads back differs a little from what it wrote: 64-bit PV kernels share ring 3 with their
users, so every present entry gets US, and a leaf given without US is marked with bit 52.

This module changes frames and tables. Which mapping the processor uses is `paging.py`; flushing is asked
for (`flush`) and done by whoever runs the vCPU.
"""

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final

import numpy as np
import numpy.typing as npt

from pyhv.abi.errno import Errno
from pyhv.abi.layout import u32, u64
from pyhv.abi.x86 import (
    PTE_A,
    PTE_AVAIL,
    PTE_D,
    PTE_G,
    PTE_GUEST_KERNEL,
    PTE_MFN_MASK,
    PTE_NX,
    PTE_P,
    PTE_PCD,
    PTE_PSE,
    PTE_PWT,
    PTE_RW,
    PTE_SOFT_HIGH,
    PTE_US,
)
from pyhv.address import Mfn
from pyhv.cpu.words import COMPILED, octets, present_in, words64
from pyhv.errors import XenError
from pyhv.mmu.budget import UNBOUNDED, Budget, TooMuch, Within
from pyhv.mmu.codewatch import CodeWatch
from pyhv.mmu.frames import L1, L2, L4, NONE, TYPE_NAMES, WRITABLE, FrameTable
from pyhv.mmu.manyleaves import L1_FORBIDDEN, approve_leaves, drop_leaves
from pyhv.mmu.memory import GuestMemory
from pyhv.mmu.paging import L4Cache
from pyhv.mmu.physical import PhysicalMemory
from pyhv.state import Plain, Tally, entries, refusal, restore, say, typed

UPPER_FORBIDDEN: Final = PTE_PWT | PTE_PCD | PTE_PSE | PTE_G
HARMLESS: Final = PTE_NX | PTE_AVAIL | PTE_SOFT_HIGH | PTE_G | PTE_D | PTE_A | PTE_US
"""Bits that may change without a new approval, the frame being the same."""
MFN_ALL_ONES: Final = PTE_MFN_MASK >> 12
XEN_SLOTS: Final = range(256, 272)
FIRST_GUEST_SLOT_ABOVE: Final = 272
MOST_FLUSH_PAGES: Final = 32
"""Single pages flushed in one exit; also what keeps a guest's list of them from growing without bound."""

FEW: Final = 48
"""Entries of an L1 up to which an interpreted loop is faster than numpy (measured)."""

_u64 = np.uint64


class PageTables:
    """The page tables of one 64-bit domain; `pae.py` has those of 32-bit ones.

    `flush` asks for a TLB flush before the guest runs on, `flush_pages` for that of single pages; `stale`
    says that some mapping was narrowed without a full flush, so that a frame must not change its use before
    the next.
    """

    top: int = L4
    """Level of the table that a base pointer names."""

    STATE: ClassVar[Mapping[str, Any]] = {
        "borrowed": u32,
        "flush": bool,
        "flush_pages": list[u64],
        "stale": bool,
        "updates": Tally,
        "_work": u32,
        "ahead": list[u32],
        "ahead_of": u32,
        "ahead_level": Annotated[int, range(L4 + 1)],
        "doomed": list[u32],
    }
    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("domid", "frames", "physical", "memory", "cache", "ram"), "given"),
        "budget": "other than unbounded within a hypercall only",
        **dict.fromkeys(("_q", "_known"), "views of RAM and of what is watched"),
    }

    def __init__(
        self, domid: int, frames: FrameTable, physical: PhysicalMemory, memory: GuestMemory, cache: L4Cache
    ) -> None:
        self.domid = domid
        self.frames = frames
        self.physical = physical
        self.memory = memory
        self.cache = cache
        self.ram = physical.ram
        self._q = words64(self.ram.q)
        self.code = CodeWatch(self)
        self._known = octets(self.code.known)
        self.borrowed = 0
        """Leaf entries that map frames of other domains."""
        self.flush = False
        self.flush_pages: list[int] = []
        self.stale = False
        self.updates = 0
        """Entries changed since the domain was created, for the statistics."""
        self._work = 0
        self.budget = UNBOUNDED
        """Of the request that is being done; set with `within` alone."""
        self.ahead: list[int] = []
        """Tables approved ahead of the one that is to refer to them, `ahead_of`: one reference each."""
        self.ahead_of, self.ahead_level = 0, 0
        self.doomed: list[int] = []
        """Tables that nothing refers to any more but this list, one reference each."""

    def state(self) -> dict[str, Plain]:
        """What is held, and what the TLB has to hear of; what tables say is in memory."""
        fields = {name: say(kind, getattr(self, name)) for name, kind in self.STATE.items()}
        return {**fields, "code": self.code.state()}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved; whoever restores the engine flushes its TLB. StateError."""
        found = entries(dict(saved), "", {**self.STATE, "code": None})
        values = {name: typed(kind, found[name], name) for name, kind in self.STATE.items()}
        for mfn in (*values["ahead"], *values["doomed"], values["ahead_of"]):
            if mfn >= self.frames.count or (mfn and self.frames.owner[mfn] != self.domid):
                raise refusal(
                    "ahead", f"or doomed has {self.frames.describe(mfn)}, which is not the domain's"
                )
        if len(values["flush_pages"]) > MOST_FLUSH_PAGES:
            raise refusal("flush_pages", "has too many")
        for name, value in values.items():
            setattr(self, name, value)
        restore(self.code, found["code"], "code")

    def held_tables(self) -> list[int]:
        """Tables that are held by a reference for a large tree in the making or in dissolution."""
        return self.ahead + self.doomed

    def may_go_ahead(self, _level: int, _slot: int) -> bool:
        """Whether the table in a slot may be approved before the one that it is in."""
        return True

    def within(self, budget: Budget) -> Within:
        """Do what a block does within `budget`."""
        return Within(self, budget)

    def take_work(self) -> int:
        """How many whole tables were approved or dropped since the last time this was asked."""
        work, self._work = self._work, 0
        return work

    def flush_page(self, va: int) -> None:
        """Ask for the flush of one page; of so many that a full flush is cheaper, ask for that."""
        if len(self.flush_pages) < MOST_FLUSH_PAGES:
            self.flush_pages.append(va)
        else:
            self.flush = True

    def flushed(self) -> None:
        """The TLB has just been flushed."""
        self.flush = self.stale = False
        self.flush_pages.clear()
        self.code.flushed()

    def lent(self, mfn: int) -> None:
        """Another domain can write to the frame: it is not enough to watch our own stores."""
        self.code.known[mfn] = 0

    # -- what a 32-bit guest's tables do otherwise -------------------------------------------------------

    def forbidden(self, _level: int) -> int:
        """Bits that no present entry of an upper table may have."""
        return UPPER_FORBIDDEN

    def adjust_upper(self, level: int) -> int:
        """Bits that approval adds to a present entry of an upper table."""
        return PTE_US | PTE_A if level == L4 else PTE_US

    def check_slot(self, _table: int, level: int, slot: int) -> None:
        """Refuse changes to slots that are the hypervisor's."""
        if level == L4 and slot in XEN_SLOTS:
            raise XenError(Errno.EINVAL, f"L4 slot {slot} belongs to the hypervisor")

    def prepare(self, mfn: int, level: int) -> None:
        """A frame is about to become a table: clear what no guest owns of it."""
        if level == L4:
            self.physical.write_slots(mfn, slice(XEN_SLOTS.start, XEN_SLOTS.stop), 0)

    def guest_slots(self, mfn: int, _level: int) -> list[int]:
        """The slots of an upper table that hold present entries of the guest."""
        return present_in(self._q, mfn << 9)

    # -- leaf entries ------------------------------------------------------------------------------------

    def adjust_leaf(self, entry: int) -> int:
        """What a present leaf looks like after approval."""
        if not entry & PTE_US:
            entry |= PTE_US | PTE_GUEST_KERNEL
        return entry if entry & PTE_GUEST_KERNEL else entry | PTE_G

    def check_leaf(self, entry: int) -> int:
        """The frame of a present leaf that can be approved, or the refusal: EINVAL, EPERM, EBUSY."""
        if entry & L1_FORBIDDEN:
            raise XenError(Errno.EINVAL, f"leaf entry {entry:#x} sets cache attributes")
        mfn = (entry & PTE_MFN_MASK) >> 12
        frames = self.frames
        if not 0 < mfn < frames.count:
            if mfn == MFN_ALL_ONES:
                raise XenError(Errno.EINVAL, "leaf entry with an invalid frame number")
            raise XenError(Errno.EPERM, f"leaf entry points to mfn {mfn:#x}, which is not RAM")
        if frames.owner[mfn] != self.domid:
            raise XenError(Errno.EBUSY, f"leaf entry points to {frames.describe(mfn)}, not the guest's own")
        if entry & PTE_RW and not frames.may_be_writable(mfn):
            raise XenError(Errno.EBUSY, f"writable mapping of {frames.describe(mfn)}")
        return mfn

    def _take_leaf(self, entry: int, mfn: int) -> None:
        """Take what a present leaf needs that was checked, of its frame (Xen: get_page_from_l1e)."""
        frames = self.frames
        if entry & PTE_RW:
            frames.type[mfn] = WRITABLE
            frames.type_count[mfn] += 1
        frames.refs[mfn] += 1
        if not entry & PTE_NX:
            self._take_execute(mfn)

    def _take_execute(self, mfn: int) -> None:
        """Count one more leaf that lets a frame be executed."""
        frames = self.frames
        frames.exec_count[mfn] += 1
        if not self._known[mfn]:
            self.code.executable((Mfn(mfn),))
        frames.code[mfn] = 1

    def _drop_execute(self, mfn: int) -> None:
        """Count one less."""
        left = self.frames.exec_count[mfn] - 1
        self.frames.exec_count[mfn] = left
        if not left:
            self.code.released += 1

    def _release_leaf(self, entry: int) -> int:
        """Drop what a present leaf held (Xen: put_page_from_l1e), but for a reference to its frame, which
        is returned. The entry was approved: its frame exists."""
        mfn = (entry & PTE_MFN_MASK) >> 12
        frames = self.frames
        self.stale = True
        if frames.owner[mfn] != self.domid:
            self.flush = True  # a granted frame: its owner may free or retype it and cannot see our `stale`
            self.borrowed -= 1
            if entry & PTE_RW:
                frames.lent[mfn] -= 1
        if not entry & PTE_NX:
            self._drop_execute(mfn)
        if entry & PTE_RW:
            frames.type_count[mfn] -= 1
        return mfn

    def drop_leaf(self, entry: int) -> None:
        """Drop all that a present leaf held."""
        self.frames.drop(self._release_leaf(entry))

    def update_l1(self, address: int, new: int, preserve_ad: bool = False) -> None:
        """Replace the L1 entry at a machine address inside a frame of type L1."""
        q = self._q
        at = address >> 3
        old = q[at]
        if new & PTE_P:
            new = self.adjust_leaf(new)
            if old & PTE_P and not (old ^ new) & ~HARMLESS:
                if (old ^ new) & PTE_NX:
                    if new & PTE_NX:
                        self._drop_execute((new & PTE_MFN_MASK) >> 12)
                    else:
                        self._take_execute((new & PTE_MFN_MASK) >> 12)
                if old & ~new & (PTE_A | PTE_D | PTE_US) or ~old & new & PTE_NX:
                    self.stale = True
                if old & ~new & (PTE_A | PTE_D) and not preserve_ad:
                    # When the processor sets them again must not depend on what its TLB still holds: that is
                    # another thing in each run, and nothing in one that goes on from a snapshot.
                    self.flush = True
                old = 0
            else:
                self._take_leaf(new, self.check_leaf(new))
            if preserve_ad:
                new |= q[at] & (PTE_A | PTE_D)
        self._store_leaf(at, new)
        if old & PTE_P:
            self.drop_leaf(old)

    def _store_leaf(self, at: int, new: int) -> None:
        """Give the L1 entry with word index `at` a new value."""
        self.physical.write_u64(at << 3, new)
        self.updates += 1
        if at in self.memory.leaves:
            self.memory.forget()

    def map_granted(self, address: int, new: int) -> None:
        """Put an entry for a granted frame into an L1: the caller holds the references that it stands for.

        It is not executable; the guest can make it so.
        """
        mfn = (new & PTE_MFN_MASK) >> 12
        if self.frames.owner[mfn] != self.domid:
            self.borrowed += 1
            if new & PTE_RW:
                self.physical.lend(Mfn(mfn))
        self.replace_leaf(address, new)

    def replace_leaf(self, address: int, new: int) -> None:
        """Put `new` into an L1 entry without approval: it is what `empty_leaf` found elsewhere, or absent."""
        old = self.ram.q[address >> 3]
        self._store_leaf(address >> 3, new)
        if old & PTE_P:
            self.drop_leaf(old)

    def empty_leaf(self, address: int) -> int:
        """Empty an L1 entry and return what it was; the references it stands for are the caller's now."""
        at = address >> 3
        entry = self.ram.q[at]
        self._store_leaf(at, 0)
        self.stale = self.flush = True
        return entry

    # -- upper entries -----------------------------------------------------------------------------------

    def take_upper(self, table: int, level: int, slot: int, entry: int) -> None:
        """Take what a present entry of an L2, L3 or L4 table needs."""
        if entry & self.forbidden(level):
            raise XenError(Errno.EINVAL, f"L{level} entry {entry:#x} has bits that no guest may set")
        mfn = (entry & PTE_MFN_MASK) >> 12
        frames = self.frames
        if not 0 < mfn < frames.count or frames.owner[mfn] != self.domid:
            raise XenError(Errno.EINVAL, f"L{level} entry points to {frames.describe(mfn)}")
        if mfn == table or (frames.type_count[mfn] and frames.type[mfn] == level):
            self.take_linear(table, level, mfn, entry)
        else:
            self.take_table(mfn, level - 1)

    def take_linear(self, table: int, level: int, mfn: int, entry: int) -> None:
        """Approve a same-level entry: read-only, and never a chain of them."""
        frames = self.frames
        if entry & PTE_RW:
            raise XenError(Errno.EINVAL, f"writable linear L{level} entry")
        if mfn == table:
            return
        if frames.linear_out[mfn] or frames.linear_in[table]:
            raise XenError(Errno.EINVAL, f"linear L{level} entry to a table with linear entries")
        frames.linear_out[table] += 1
        frames.linear_in[mfn] += 1
        frames.type_count[mfn] += 1
        frames.refs[mfn] += 1

    def _drop_upper(self, table: int, level: int, entry: int) -> None:
        """Drop what a present upper entry held."""
        mfn = (entry & PTE_MFN_MASK) >> 12
        frames = self.frames
        if mfn == table:
            return
        if frames.type[mfn] == level:
            frames.linear_out[table] -= 1
            frames.linear_in[mfn] -= 1
        elif frames.type_count[mfn] == 1 and self.budget.in_steps:
            self.doomed.append(mfn)
            return
        self.drop_table(mfn)

    def update_upper(self, address: int, level: int, new: int, preserve_ad: bool = False) -> None:
        """Replace an entry of an L2, L3 or L4 table."""
        table, slot = address >> 12, address >> 3 & 511
        self.check_slot(table, level, slot)
        q = self._q
        at = address >> 3
        old = q[at]
        if new & PTE_P:
            if new & self.forbidden(level):
                raise XenError(Errno.EINVAL, f"L{level} entry {new:#x} has bits that no guest may set")
            new |= self.adjust_upper(level)
            if old & PTE_P and not (old ^ new) & ~HARMLESS:
                old = 0
            else:
                self.take_upper(table, level, slot, new)
            if preserve_ad:
                new |= q[at] & (PTE_A | PTE_D)
        self.physical.write_u64(address, new)
        self.updates += 1
        self.memory.forget()
        if level == L4:
            self.cache.entry_changed(table, slot, new)
        self.flush = True
        if old & PTE_P:
            self._drop_upper(table, level, old)

    # -- whole tables ------------------------------------------------------------------------------------

    def take_table(self, number: int, level: int) -> int:
        """Take a reference of type `level` on a frame of the domain, promoting it if it is the first.

        Xen: get_page_and_type. EINVAL: the frame cannot be such a table, or an entry of it is refused.
        """
        frames = self.frames
        if not 0 < number < frames.count or frames.owner[number] != self.domid:
            raise XenError(
                Errno.EINVAL, f"{frames.describe(number)} cannot be an L{level}: not the guest's own"
            )
        if frames.type_count[number] == 0:
            self._promote(number, level)
        elif frames.type[number] != level:
            raise XenError(Errno.EINVAL, f"{frames.describe(number)} cannot be an L{level}")
        else:
            frames.type_count[number] += 1
        frames.refs[number] += 1
        return number

    def drop_table(self, mfn: int) -> None:
        """Drop a table reference (Xen: put_page_and_type); the last type reference demotes the frame."""
        frames = self.frames
        left = frames.type_count[mfn] - 1
        frames.type_count[mfn] = left
        if left == 0:
            self.demote(mfn, frames.type[mfn])
        frames.drop(mfn)

    def _promote(self, mfn: int, level: int) -> None:
        frames = self.frames
        if self.stale:
            self.flush = True
        frames.type[mfn] = level
        frames.type_count[mfn] = 1
        self._work += 1
        self.memory.forget()
        try:
            if self._work > self.budget.approve:
                raise TooMuch
            if level == L1:
                self._validate_l1(mfn)
            else:
                self._validate_upper(mfn, level)
        except XenError as refusal:
            frames.type[mfn] = NONE
            frames.type_count[mfn] = 0
            if isinstance(refusal, TooMuch):
                refusal.root = (mfn, level)
            raise

    def demote(self, mfn: int, level: int) -> None:
        """The last type reference has gone: drop what the table's entries held."""
        self._work += 1
        self.memory.forget()
        self.flush = True
        if level == L1:
            self._invalidate_l1(mfn)
        elif level in TYPE_NAMES and L2 <= level <= L4:
            if level == self.top:
                self.cache.drop(mfn)
            base = mfn << 9
            for slot in self.guest_slots(mfn, level):
                self._drop_upper(mfn, level, self._q[base | slot])
        self.frames.type[mfn] = NONE

    def _validate_upper(self, mfn: int, level: int) -> None:
        self.prepare(mfn, level)
        base, extra = mfn << 9, self.adjust_upper(level)
        taken: list[int] = []
        try:
            for slot in self.guest_slots(mfn, level):
                entry = self._q[base | slot] | extra
                self.take_upper(mfn, level, slot, entry)
                taken.append(entry)
                self.physical.write_u64(mfn << 12 | slot << 3, entry)
        except XenError:
            for entry in taken:
                self._drop_upper(mfn, level, entry)
            raise

    def _validate_l1(self, mfn: int) -> None:
        """Approve a whole L1: all of its entries or none. The first bad one gives the errno."""
        q, base = self._q, mfn << 9
        slots = present_in(q, base)
        if not COMPILED and len(slots) > FEW:
            approve_leaves(self, mfn, np.array(slots))
            return
        for slot in slots:
            self.check_leaf(q[base | slot])
        for slot in slots:
            at = base | slot
            entry = q[at]
            # Nothing that the check looks at has changed for the worse: entries only make frames writable.
            self._take_leaf(entry, (entry & PTE_MFN_MASK) >> 12)
            adjusted = self.adjust_leaf(entry)
            if adjusted != entry:
                self.physical.write_u64(at << 3, adjusted)

    def _invalidate_l1(self, mfn: int) -> None:
        """Drop what all entries of an L1 held; what becomes free does so in the order of frame numbers."""
        frames, q, base = self.frames, self._q, mfn << 9
        slots = present_in(q, base)
        if not COMPILED and len(slots) > FEW:
            drop_leaves(self, mfn, np.array(slots))
            return
        last: list[int] = []
        for slot in slots:
            target = self._release_leaf(q[base | slot])
            if frames.refs[target] == 1:
                last.append(target)
            else:
                frames.refs[target] -= 1
        for target in sorted(last):
            frames.drop(target)

    def adjust_leaves(self, entries: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
        """`adjust_leaf` for many."""
        supervisor = (entries & _u64(PTE_US)) == 0
        entries = np.where(supervisor, entries | _u64(PTE_US | PTE_GUEST_KERNEL), entries)
        user = (entries & _u64(PTE_GUEST_KERNEL)) == 0
        return np.where(user, entries | _u64(PTE_G), entries)

    # -- pinning -----------------------------------------------------------------------------------------

    def pin(self, number: int, level: int) -> None:
        """Keep a frame a table of `level` until it is unpinned."""
        mfn = self.take_table(number, level)
        if self.frames.pinned[mfn]:
            self.drop_table(mfn)
            raise XenError(Errno.EINVAL, f"{self.frames.describe(mfn)} is pinned already")
        self.frames.pinned[mfn] = 1

    def unpin(self, number: int) -> None:
        """Undo `pin`."""
        frames = self.frames
        if not 0 < number < frames.count or frames.owner[number] != self.domid or not frames.pinned[number]:
            raise XenError(Errno.EINVAL, f"{frames.describe(number)} is not pinned")
        frames.pinned[number] = 0
        self.drop_table(number)

    def allow_top_anywhere(self, allowed: bool) -> None:
        """vm_assist `pae_extended_cr3`, which means nothing to a guest whose tables lie anywhere."""

    def write_plain(self, address: int, value: int) -> None:
        """Store into an own frame that is no table (an untyped frame being prepared as one)."""
        frames = self.frames
        mfn = address >> 12
        if not frames.take_writable(mfn):
            raise XenError(Errno.EINVAL, f"store into {frames.describe(mfn)}")
        self.physical.write_u64(address, value)
        frames.drop_writable(mfn)
