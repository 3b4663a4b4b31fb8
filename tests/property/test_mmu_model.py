# SPDX-License-Identifier: GPL-2.0-only
"""The frame table against a model that remembers nothing: after every hypercall of two hostile guests, owner,
type and counts of all frames are derived anew from the guests' roots and the raw bytes of their tables.

The roots - what is pinned, allocated, lent, in a GDT, a base pointer - are the model's own record of what was
accepted. Leaf updates, pins of L1 tables, descriptor pages and reservations are also predicted, errno and
all, from that state and the rules of the ABI. `PYHV_DEEP=1` runs it for minutes instead of seconds.
(`test_mmu_audit.py` has the same idea one layer below, with the rules of upper tables in its model.)
"""

import os
import struct
from collections import Counter

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Gnttab, Hypercall, MemoryOp, Mmuext
from pyhv.abi.structs import GnttabMapGrantRef, GnttabUnmapGrantRef, MemoryReservation, MmuextOp, MmuUpdate
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_MFN_MASK, PTE_NX, PTE_P, PTE_PCD, PTE_RW, PTE_US
from pyhv.machine import Machine, MachineConfig
from pyhv.mmu.frames import L1, L4, SEGDESC, WRITABLE
from pyhv.testing.guest_machine import PAGES, Paused

DEEP = bool(os.environ.get("PYHV_DEEP"))
READ, WRITE = PTE_P | PTE_A | PTE_NX, PTE_P | PTE_RW | PTE_A | PTE_D | PTE_NX
LEAVES = (READ, WRITE, READ & ~PTE_NX, WRITE | PTE_US, WRITE | PTE_PCD, 0, PTE_RW)
UPPERS = (PTE_P | PTE_RW | PTE_US | PTE_A, PTE_P | PTE_US | PTE_A, PTE_P | PTE_RW | PTE_PCD)
HARMLESS = PTE_NX | 0x7FF << 52 | 7 << 9 | 0x100 | PTE_D | PTE_A | PTE_US
FIRST, COUNT = 4, 10
"""Scratch pages that the model plays with; those below hold arguments."""
REF = 8


class Side:
    """One guest, and the roots of what it holds."""

    def __init__(self, machine: Machine) -> None:
        self.guest = guest = Paused(machine, pages=PAGES)
        self.domid = guest.domain.domid
        self.play = [guest.mfn(guest.page(n)) for n in range(FIRST, FIRST + COUNT)]
        frames = machine.frames
        self.allocated = {int(m) for m in frames.owned_by(self.domid) if frames.allocated[m]}
        self.pinned: dict[int, int] = {int(guest.vcpu.paging.kernel_l4): L4}
        self.gdt: list[int] = []
        self.devices: list[tuple[int, bool]] = []
        """(frame, writable) of device halves of mapped grants."""
        self.handles: dict[int, tuple[int, int, bool, bool]] = {}
        """(address, frame, writable, device) by handle."""

    def roots(self) -> list[tuple[int, int]]:
        """(frame, type or 0) of every reference from outside page tables."""
        domain = self.guest.domain
        vcpu = domain.vcpus[0]
        found = [(mfn, L4) for mfn in (int(vcpu.paging.kernel_l4), int(vcpu.paging.user_l4)) if mfn]
        found += self.pinned.items()
        found += [(mfn, 0) for mfn in self.allocated]
        found += [(mfn, SEGDESC) for mfn in self.gdt]
        found += [(mfn, WRITABLE if writable else 0) for mfn, writable in self.devices]
        shared = [domain.shared_info.mfn, *domain.grants.frames]
        return found + [(mfn, WRITABLE) for mfn in (*shared, *self.guest.machine.dom0.frames(self.domid))]


class Recount:
    """Types and counts from roots and raw tables."""

    def __init__(self, machine: Machine, sides: list[Side]) -> None:
        self.kind: dict[int, int] = {}
        self.count: Counter[int] = Counter()
        self.refs: Counter[int] = Counter()
        self.tables = machine.ram.tables
        self.types = machine.frames.type
        for side in sides:
            for mfn, kind in side.roots():
                self.hold(mfn, kind)

    def hold(self, mfn: int, kind: int) -> None:
        """One reference."""
        self.refs[mfn] += 1
        if not kind:
            return
        self.count[mfn] += 1
        if self.count[mfn] > 1:
            assert self.kind[mfn] == kind, f"{mfn:#x} is of type {self.kind[mfn]} and of type {kind}"
            return
        self.kind[mfn] = kind
        if L1 <= kind <= L4:
            row = self.tables[mfn]
            for slot in np.flatnonzero(row & np.uint64(PTE_P)).tolist():
                self.follow(mfn, kind, int(row[slot]))

    def follow(self, table: int, level: int, entry: int) -> None:
        """What a present entry holds."""
        target = (entry & PTE_MFN_MASK) >> 12
        if level == L1:
            self.hold(target, WRITABLE if entry & PTE_RW else 0)
        elif target != table:
            # A read-only entry may be linear. Whether it is depends on what its target was when it was made:
            # the one thing that the raw tables do not tell.
            linear = not entry & PTE_RW and self.types[target] == level
            self.hold(target, level if linear else level - 1)


class TwoGuests(RuleBasedStateMachine):
    """Two guests do what they like."""

    @initialize()
    def boot(self) -> None:
        self.machine = Machine(MachineConfig(2 * PAGES + 64, virtual_time=True))
        self.free = self.machine.frames.free_count
        self.sides = [Side(self.machine), Side(self.machine)]
        self.now = Recount(self.machine, self.sides)

    which = st.integers(0, 1)
    page = st.integers(0, COUNT - 1)

    def target(self, side: Side, how: int) -> int:
        """A frame: mostly a play frame, else a strange one."""
        if how < COUNT:
            return side.play[how]
        other = self.sides[1 - self.sides.index(side)]
        strange = [
            other.play[how % COUNT], self.machine.board.m2p.frames[0], 0, self.machine.frames.count,
            PTE_MFN_MASK >> 12, side.guest.domain.shared_info.mfn, int(side.guest.vcpu.paging.kernel_l4),
        ]  # fmt: skip
        return strange[how % len(strange)]

    some = st.integers(0, 3 * COUNT // 2)

    def frame_kind(self, mfn: int) -> int:
        return self.now.kind[mfn] if self.now.count[mfn] else 0

    def leaf_errno(self, side: Side, old: int, new: int) -> int:
        """What the rules say to an L1 entry."""
        if not new & PTE_P:
            return 0
        if new & (0x18 | 0x80):
            return Errno.EINVAL
        if old & PTE_P and not (old ^ new) & ~HARMLESS:
            return 0
        mfn = (new & PTE_MFN_MASK) >> 12
        if mfn == PTE_MFN_MASK >> 12:
            return Errno.EINVAL
        frames = self.machine.frames
        if not 0 < mfn < frames.count:
            return Errno.EPERM
        if frames.owner[mfn] != side.domid:
            return Errno.EBUSY
        return Errno.EBUSY if new & PTE_RW and self.frame_kind(mfn) not in (0, WRITABLE) else 0

    @rule(which=which, at=page, to=some, flags=st.sampled_from(LEAVES))
    def update_va_mapping(self, which: int, at: int, to: int, flags: int) -> None:
        side = self.sides[which]
        va = side.guest.page(FIRST + at)
        new = self.target(side, to) << 12 & PTE_MFN_MASK | flags
        old = self.machine.ram.q[side.guest.entry(va) >> 3]
        assert side.guest.update_va_mapping(va, new, 2) == -self.leaf_errno(side, old, new)

    def write(self, side: Side, table: int, slot: int, value: int) -> int:
        request = MmuUpdate(ptr=table << 12 | slot << 3, val=value)
        return side.guest.mmu_update_list(side.guest.put(request.pack()), 1, 0, DOMID_SELF)

    @rule(
        which=which,
        at=page,
        slot=st.sampled_from((0, 1, 511)),
        to=some,
        flags=st.sampled_from(LEAVES + UPPERS),
    )
    def mmu_update(self, which: int, at: int, slot: int, to: int, flags: int) -> None:
        side = self.sides[which]
        table, new = side.play[at], self.target(side, to) << 12 & PTE_MFN_MASK | flags
        old = self.machine.ram.q[table << 9 | slot]
        kind, mine = self.frame_kind(table), self.machine.frames.owner[table] == side.domid
        result = self.write(side, table, slot, new)
        if not mine or kind == SEGDESC:
            assert result == -Errno.EINVAL
        elif kind in (0, WRITABLE):
            assert result == 0
        elif kind == L1:
            assert result == -self.leaf_errno(side, old, new)

    @rule(which=which, at=page)
    def protect(self, which: int, at: int) -> None:
        """Map a play page read-only, as one does before it becomes a table."""
        side = self.sides[which]
        side.guest.update_va_mapping(side.guest.page(FIRST + at), side.play[at] << 12 | READ, 2)

    def mmuext(self, side: Side, command: int, first: int) -> int:
        at = side.guest.put(MmuextOp(cmd=command, arg1=first, arg2=0).pack())
        return side.guest.mmuext_op_list(at, 1, 0, DOMID_SELF)

    @rule(which=which, at=some, level=st.integers(1, 4))
    def pin(self, which: int, at: int, level: int) -> None:
        side, frames = self.sides[which], self.machine.frames
        mfn = self.target(side, at)
        mine = 0 < mfn < frames.count and frames.owner[mfn] == side.domid
        kind = self.frame_kind(mfn)
        entries = [int(entry) for entry in self.machine.ram.tables[mfn]] if mine else []
        result = self.mmuext(side, level - 1, mfn)
        if not mine or kind not in (0, level) or mfn in side.pinned:
            assert result == -Errno.EINVAL
        elif level == L1 and not kind:
            errors = [self.leaf_errno(side, 0, entry) for entry in entries]
            assert result == -next((error for error in errors if error), 0)
        if result == 0:
            side.pinned[mfn] = level

    @rule(which=which, at=some)
    def unpin(self, which: int, at: int) -> None:
        side = self.sides[which]
        mfn = self.target(side, at)
        if side.pinned.get(mfn) == L4 and mfn == side.guest.vcpu.paging.kernel_l4:
            return  # its base pointer keeps it; but later rules want to pin it again
        result = self.mmuext(side, Mmuext.UNPIN_TABLE, mfn)
        assert result == (0 if mfn in side.pinned else -Errno.EINVAL)
        side.pinned.pop(mfn, None)

    @rule(which=which, at=some, user=st.booleans())
    def base_pointer(self, which: int, at: int, user: bool) -> None:
        side = self.sides[which]
        mfn = self.target(side, at)
        if not user and mfn != side.guest.vcpu.paging.kernel_l4:
            return  # the kernel needs its tables; the user's L4 takes the same way
        self.mmuext(side, Mmuext.NEW_USER_BASEPTR if user else Mmuext.NEW_BASEPTR, mfn)

    @rule(which=which, at=page)
    def copy_of_the_kernels_table(self, which: int, at: int) -> None:
        """A play page becomes a second L4, pinned."""
        side = self.sides[which]
        if self.frame_kind(side.play[at]) not in (0, WRITABLE):
            return
        source = self.machine.ram.tables[side.guest.vcpu.paging.kernel_l4]
        for slot in np.flatnonzero(source).tolist():
            self.write(side, side.play[at], slot, int(source[slot]))
        self.protect(which, at)
        self.now = Recount(self.machine, self.sides)
        self.pin(which, at, L4)

    @rule(which=which, frames=st.lists(some, max_size=3))
    def set_gdt(self, which: int, frames: list[int]) -> None:
        side, table = self.sides[which], self.machine.frames
        listed = [self.target(side, number) for number in frames]
        at = side.guest.put(struct.pack(f"<{len(listed)}Q", *listed))
        result = side.guest.set_gdt(at, 512 * len(listed))
        bad = any(
            not 0 < mfn < table.count or table.owner[mfn] != side.domid or table.xen_heap[mfn]
            or self.frame_kind(mfn) not in (0, SEGDESC)
            for mfn in listed
        )  # fmt: skip
        assert result in ((-Errno.EINVAL,) if bad else (0, -Errno.EINVAL))  # a page may hold no descriptors
        if result == 0:
            side.gdt = listed

    @rule(which=which, at=page)
    def decrease(self, which: int, at: int) -> None:
        side = self.sides[which]
        mfn = side.play[at]
        mine = self.machine.frames.owner[mfn] == side.domid  # given back once, it may be mapped still
        request = MemoryReservation(
            extent_start=side.guest.put(struct.pack("<Q", mfn), 64), nr_extents=1, domid=DOMID_SELF
        )
        result = side.guest.memory_op(MemoryOp.DECREASE_RESERVATION, side.guest.put(request.pack()))
        assert result == int(mine)
        side.allocated.discard(mfn)

    @rule(which=which, at=page)
    def increase(self, which: int, at: int) -> None:
        """Take a frame if there is room, and play with it."""
        side = self.sides[which]
        owned = int((self.machine.frames.owner_np == side.domid).sum()) - len(
            [side.guest.domain.shared_info.mfn, *side.guest.domain.grants.frames]
        )
        place = side.guest.put(bytes(8), 64)
        request = MemoryReservation(extent_start=place, nr_extents=1, domid=DOMID_SELF)
        result = side.guest.memory_op(MemoryOp.INCREASE_RESERVATION, side.guest.put(request.pack()))
        assert result == int(owned < side.guest.domain.max_pages)
        if result:
            mfn = struct.unpack("<Q", side.guest.get(8, 64))[0]
            side.allocated.add(mfn)
            side.play[at] = mfn

    @rule(which=which, lent=some, at=page, flags=st.sampled_from((2, 6, 1, 3, 7, 5)))
    def borrow(self, which: int, lent: int, at: int, flags: int) -> None:
        """The other side writes a grant entry; this one maps it over a play page."""
        side, lender = self.sides[which], self.sides[1 - which]
        mfn = self.target(lender, lent)
        used = lender.guest.domain.grants.loan(REF)
        if used is None:
            entry = struct.pack("<HHI", 1, side.domid, mfn & 0xFFFF_FFFF)
            base = (lender.guest.domain.grants.frames[0] << 12) + 8 * REF
            self.machine.ram.writable.raw[base : base + 8] = entry
        else:
            mfn = used.frame
        va = side.guest.page(FIRST + at)
        request = GnttabMapGrantRef(host_addr=va, flags=flags, ref=REF, dom=lender.domid)
        assert (
            side.guest.call(Hypercall.GRANT_TABLE_OP, Gnttab.MAP_GRANT_REF, side.guest.put(request.pack()), 1)
            == 0
        )
        done = GnttabMapGrantRef.unpack(side.guest.get(GnttabMapGrantRef.size()))
        owner = self.machine.frames.owner[mfn] if 0 < mfn < self.machine.frames.count else 0
        writable = not flags & 4
        if owner != lender.domid or (writable and self.frame_kind(mfn) not in (0, WRITABLE)):
            assert done.status < 0
        if done.status == 0:
            side.handles[done.handle] = (va if flags & 2 else 0, mfn, writable, bool(flags & 1))
            if flags & 1:
                side.devices.append((mfn, writable))

    @rule(which=which, number=st.integers(0, 3))
    def give_back(self, which: int, number: int) -> None:
        """Unmap both halves of a borrowed frame, if its place still maps it."""
        side = self.sides[which]
        if not side.handles:
            return
        handle = sorted(side.handles)[number % len(side.handles)]
        va, mfn, writable, device = side.handles[handle]
        request = GnttabUnmapGrantRef(host_addr=va, dev_bus_addr=mfn << 12 if device else 0, handle=handle)
        assert (
            side.guest.call(
                Hypercall.GRANT_TABLE_OP, Gnttab.UNMAP_GRANT_REF, side.guest.put(request.pack()), 1
            )
            == 0
        )
        if GnttabUnmapGrantRef.unpack(side.guest.get(GnttabUnmapGrantRef.size())).status == 0:
            del side.handles[handle]
            if device:
                side.devices.remove((mfn, writable))

    @invariant()
    def counted_anew(self) -> None:
        """All frames are as the raw tables say."""
        frames = self.machine.frames
        now = self.now = Recount(self.machine, self.sides)
        for side in self.sides:
            for mfn in frames.owned_by(side.domid).tolist():
                kind = frames.type[mfn] if frames.type_count[mfn] else 0
                found = (now.kind[mfn] if now.count[mfn] else 0, now.count[mfn], now.refs[mfn])
                assert (kind, frames.type_count[mfn], frames.refs[mfn]) == found, frames.describe(mfn)
        held = {mfn for mfn, count in now.refs.items() if count}
        assert all(frames.owner[mfn] in (1, 2) for mfn in held)
        assert self.machine.audit() == []

    def teardown(self) -> None:
        """Both die; nothing is left."""
        if not hasattr(self, "machine"):
            return
        for side in self.sides:
            side.guest.domain.life.shut_down(0)
        self.machine.settle()
        assert self.machine.audit() == []
        assert self.machine.frames.free_count == self.free
        self.machine.close()


TestTwoGuests = pytest.mark.promise("I-1")(TwoGuests.TestCase)
TestTwoGuests.settings = settings(
    max_examples=400 if DEEP else 12,
    stateful_step_count=100 if DEEP else 30,
    deadline=None,
    suppress_health_check=list(HealthCheck),
)
