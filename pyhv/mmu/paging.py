# SPDX-License-Identifier: GPL-2.0-only
"""Which top-level table the processor really uses: hardware L4s.

The guest's own L4 is validated and never changed behind its back, but the processor walks a copy of its 512
entries, which adds what belongs to the hypervisor:

    slot 0..255     the guest's entries
    slot 256        M2P, read-only                      (only where Xen gives it: kernel base pointers)
    slot 260        the domain's own area: GDT and LDT of each vCPU, supervisor only
    slot 272..511   the guest's entries

Of a 32-bit guest only slot 0 (its L3) and slot 260 exist: compatibility mode reaches no further. Its M2P is
in its own tables, in the L2 of the last gigabyte, where the hypervisor owns the slots from 428 on.

There are two arrangements. In the *split* one, as on real hardware, kernel and user both run in ring 3 on
two L4s, and every switch between them costs a TLB flush. In the *merged* one the kernel runs with CPL 1 on
its own L4, whose upper half (and M2P) is supervisor-only at the top level; if the guest's user L4 has the
same lower half, the user runs with CPL 3 on that very table, and no flush is needed. `may_merge` says
when. The rest of the hypervisor sees no difference.

Copies are cached for a bounded number of L4s and follow every approved change.
"""

from collections import OrderedDict
from collections.abc import Iterator, Mapping
from typing import Annotated, ClassVar, Final

import numpy as np

from pyhv.abi.domid import DOMID_XEN
from pyhv.abi.layout import u32, u64
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_NX, PTE_P, PTE_RW, PTE_US
from pyhv.address import ENTRIES, PAGE_MASK, PAGE_SHIFT, Mfn
from pyhv.cpu.ram import Ram
from pyhv.mmu.frames import INVALID_M2P, FrameTable, PfnTable
from pyhv.state import Plain, entries, refusal, typed

SPLIT_USER: Final = 0
SPLIT_KERNEL: Final = 1
MERGED: Final = 2
COMPAT: Final = 3
"""The copy over the L3 of a 32-bit guest."""

M2P_SLOT: Final = 256
DOMAIN_SLOT: Final = 260
DOMAIN_AREA: Final = 0xFFFF_8200_0000_0000
VCPU_AREA_SIZE: Final = 0x20000
"""Per vCPU: 16 pages of GDT, then 16 pages of LDT."""
LDT_AREA: Final = 0x10000
CACHE_FRAMES: Final = 32
_MOST_MERGES: Final = 4096

COMPAT_FIRST_SLOT: Final = 428
"""First slot of the hypervisor in the L2 that a 32-bit guest's L3 has in slot 3 (address 0xf5800000)."""

_ALL_RIGHTS: Final = PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D
_SUPERVISOR_RW: Final = PTE_P | PTE_RW | PTE_A | PTE_D
_HIGH: Final = slice(272, 512)
_LOW: Final = slice(0, 256)
_US: Final = np.uint64(PTE_US)
_Variant = Annotated[int, range(SPLIT_USER, COMPAT + 1)]


def read_xen_frames(saved: Plain, where: str, frames: FrameTable, count: int) -> list[Mfn]:
    """So many frames of the hypervisor's own, each once; StateError."""
    mfns = typed(list[Mfn], saved, where)
    if len(mfns) != count or len(set(mfns)) != count:
        raise refusal(where, f"does not have {count} frames, each once")
    if not all(0 < mfn < frames.count and frames.owner[mfn] == DOMID_XEN for mfn in mfns):
        raise refusal(where, "has frames that are not the hypervisor's")
    return mfns


class MachineToPhysical:
    """The M2P: the PFN of every frame of the machine, and the tables that map it read-only to guests.

    It exists twice: with 64-bit entries in L4 slot 256, and with 32-bit entries for the L2 of a 32-bit
    guest's last gigabyte, whose slots from `COMPAT_FIRST_SLOT` on are `compat_entries`.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("table", "compat_entries"), "follows from the frames"),
        "supervisor_entry": "follows from `user_entry`",
    }

    def __init__(self, ram: Ram, frames: FrameTable) -> None:
        self.frames, l1s = self._place(ram, frames, 8)
        self.compat_frames, compat_l1s = self._place(ram, frames, 4)
        frames.m2p = self.table = PfnTable(ram, self.frames[0], self.compat_frames[0])
        upper = PTE_P | PTE_US | PTE_A
        self.compat_entries = np.zeros(ENTRIES - COMPAT_FIRST_SLOT, dtype=np.uint64)
        for index, mfn in enumerate(compat_l1s):
            self.compat_entries[index] = mfn << 12 | upper
        (l2,) = frames.allocate_xen()
        for index, l1 in enumerate(l1s):
            ram.store_u64(l2 << 12 | index << 3, l1 << 12 | upper)
        (l3,) = frames.allocate_xen()
        ram.store_u64(l3 << 12, l2 << 12 | upper)
        self.user_entry = l3 << 12 | upper
        self.supervisor_entry = self.user_entry & ~PTE_US

    def state(self) -> dict[str, Plain]:
        """Where it is; what it says is in memory."""
        return {
            "frames": list[Plain](self.frames),
            "compat_frames": list[Plain](self.compat_frames),
            "user_entry": self.user_entry,
        }

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """StateError unless it was where it is: a board of the same size puts it there."""
        if dict(saved) != self.state():
            raise refusal("", "has the machine-to-physical table elsewhere: the machine is of another size")

    @staticmethod
    def _place(ram: Ram, frames: FrameTable, size: int) -> tuple[list[Mfn], list[Mfn]]:
        """Contiguous frames for entries of `size` bytes, all invalid, and the L1 tables that map them."""
        pages = (frames.count * size + PAGE_MASK) >> PAGE_SHIFT
        table = frames.allocate_xen(pages)
        assert table[-1] == table[0] + pages - 1
        for page in table:
            ram.store_row(page, INVALID_M2P)
        l1s = frames.allocate_xen((pages + ENTRIES - 1) // ENTRIES)
        for index, mfn in enumerate(table):
            entry = mfn << 12 | PTE_P | PTE_US | PTE_A | PTE_NX
            ram.store_u64(l1s[index >> 9] << 12 | (index & 511) << 3, entry)
        return table, l1s


class DomainArea:
    """The domain's slice of hypervisor address space: GDT and LDT windows of its vCPUs."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("ram", "_frames", "empty"), "the board's"),
        **dict.fromkeys(("_l1s", "entry"), "follows from the tables"),
    }

    def __init__(
        self, ram: Ram, frames: FrameTable, vcpus: int, empty: Mfn = Mfn(0), *, allocate: bool = True
    ) -> None:
        """Without `allocate` it has no tables before those that were saved are restored."""
        self.ram = ram
        self._frames = frames
        self.empty = empty
        """The frame that stands in for GDT pages that the guest did not supply; 0: nothing does."""
        count = 2 + (vcpus + 15) // 16
        self.tables = frames.allocate_xen(count) if allocate else [Mfn(0)] * count
        l3, l2, *self._l1s = self.tables
        self.entry = l3 << 12 | _SUPERVISOR_RW
        if allocate:
            self._fill(l3, l2)

    def _fill(self, l3: Mfn, l2: Mfn) -> None:
        ram = self.ram
        upper = _SUPERVISOR_RW
        ram.store_u64(l3 << 12, l2 << 12 | upper)
        for index, l1 in enumerate(self._l1s):
            ram.store_u64(l2 << 12 | index << 3, l1 << 12 | upper)

    @staticmethod
    def address(vcpu: int) -> int:
        """Linear address of a vCPU's GDT; its LDT is `LDT_AREA` above."""
        return DOMAIN_AREA + vcpu * VCPU_AREA_SIZE

    def map(self, vcpu: int, page: int, mfn: int | None) -> None:
        """Map page 0..31 of a vCPU's window to a frame, or unmap it. The caller flushes.

        Read-only: in the merged arrangement the guest's kernel has supervisor rights. The processor has no
        need to write descriptors either, since approved ones have their accessed bit set.
        """
        index = vcpu * 32 + page
        entry = 0 if mfn is None else mfn << 12 | PTE_P | PTE_A | PTE_NX
        self.ram.store_u64(self._l1s[index >> 9] << 12 | (index & 511) << 3, entry)

    def leaf(self, vcpu: int, page: int) -> int:
        """The leaf entry of a page of the window."""
        index = vcpu * 32 + page
        return self.ram.q[self._l1s[index >> 9] << 9 | index & 511]

    def mapped(self, vcpu: int, page: int) -> int | None:
        """Frame mapped at a page of the window, None if none is."""
        entry = self.leaf(vcpu, page)
        return (entry & 0x000F_FFFF_FFFF_F000) >> 12 if entry & PTE_P else None

    def state(self) -> dict[str, Plain]:
        """Its tables by frame."""
        return {"tables": list[Plain](self.tables)}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Use the tables that were saved, which memory has; StateError."""
        tables = entries(dict(saved), "", {"tables": None})["tables"]
        self.tables = read_xen_frames(tables, "tables", self._frames, len(self.tables))
        self._l1s = self.tables[2:]
        self.entry = self.tables[0] << 12 | _SUPERVISOR_RW

    def free(self, frames: FrameTable) -> None:
        """Free the area's own tables."""
        for mfn in self.tables:
            frames.drop(mfn)


class L4Cache:
    """Hardware L4s of one domain."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("ram", "_frames", "m2p"), "the board's"),
        "area": "the domain's",
        "_mergeable": "follows from the tables",
    }

    def __init__(
        self,
        ram: Ram,
        frames: FrameTable,
        m2p: MachineToPhysical,
        area: DomainArea,
        *,
        allocate: bool = True,
    ) -> None:
        """Without `allocate` it has no frames before those that were saved are restored."""
        self.ram = ram
        self._frames = frames
        self.m2p = m2p
        self.area = area
        self._free = frames.allocate_xen(CACHE_FRAMES) if allocate else []
        self._copies: OrderedDict[tuple[int, int], Mfn] = OrderedDict()
        self._mergeable: dict[tuple[int, int], bool] = {}
        self.generation = 0
        """Grows with every change of an L4 entry: `may_merge` must be asked again."""

    def hardware_l4(self, l4: int, variant: int) -> Mfn:
        """The frame to load into CR3 for the guest table `l4`."""
        key = (l4, variant)
        copy = self._copies.get(key)
        if copy is None:
            if self._free:
                copy = self._free.pop()
            else:
                _, copy = self._copies.popitem(last=False)
            self._copies[key] = copy
            self._fill(l4, variant, copy)
        else:
            self._copies.move_to_end(key)
        return copy

    def _fill(self, l4: int, variant: int, copy: int) -> None:
        if variant == COMPAT:
            row = np.zeros(ENTRIES, dtype=np.uint64)
            row[0] = l4 << 12 | _ALL_RIGHTS
        else:
            row = self.ram.tables[l4].copy()
            row[256:272] = 0
        row[DOMAIN_SLOT] = self.area.entry
        if variant == MERGED:
            row[_HIGH] &= ~_US
            row[M2P_SLOT] = self.m2p.supervisor_entry
        elif variant == SPLIT_KERNEL:
            row[M2P_SLOT] = self.m2p.user_entry
        self.ram.store_row(copy, row)

    def entry_changed(self, l4: int, slot: int, entry: int) -> None:
        """An approved change of a guest L4: let the copies follow."""
        self._forget_merges()
        for variant in (SPLIT_USER, SPLIT_KERNEL, MERGED):
            copy = self._copies.get((l4, variant))
            if copy is not None:
                high = variant == MERGED and slot >= 272
                self.ram.store_u64(copy << 12 | slot << 3, entry & ~PTE_US if high else entry)

    def drop(self, l4: int) -> None:
        """The guest table is no longer an L4."""
        self._forget_merges()
        for variant in (SPLIT_USER, SPLIT_KERNEL, MERGED, COMPAT):
            copy = self._copies.pop((l4, variant), None)
            if copy is not None:
                self._free.append(copy)

    def frames(self) -> list[Mfn]:
        """Every frame that it has, used or not."""
        return [*self._free, *self._copies.values()]

    def copies(self) -> Iterator[tuple[Mfn, int, Mfn]]:
        """Every copy that is kept: (guest L4, variant, frame of the copy)."""
        for (l4, variant), copy in self._copies.items():
            yield Mfn(l4), variant, copy

    def may_merge(self, kernel: int, user: int) -> bool:
        """Whether the user may run on the kernel's table: another L4 with an equal lower half."""
        if user in (0, kernel):
            return False
        known = self._mergeable.get((kernel, user))
        if known is None:
            tables = self.ram.tables
            known = bool(np.array_equal(tables[kernel][_LOW], tables[user][_LOW]))
            if len(self._mergeable) >= _MOST_MERGES:
                self._mergeable.clear()  # a guest may pair each of its L4s with each
            self._mergeable[kernel, user] = known
        return known

    def _forget_merges(self) -> None:
        self.generation += 1
        self._mergeable.clear()

    def state(self) -> dict[str, Plain]:
        """Free frames in their order, and whose copies are where, the least recently used first."""
        return {
            "free": list[Plain](self._free),
            "copies": [[l4, variant, copy] for (l4, variant), copy in self._copies.items()],
            "generation": self.generation,
        }

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Have the copies that were saved, which memory has; StateError."""
        found = entries(dict(saved), "", {"free": None, "copies": None, "generation": None})
        listed = typed(list[tuple[u32, _Variant, Mfn]], found["copies"], "copies")
        copies = OrderedDict(((l4, variant), copy) for l4, variant, copy in listed)
        free = typed(list[Mfn], found["free"], "free")
        if len(copies) != len(listed) or any(l4 >= self._frames.count for l4, _ in copies):
            raise refusal("copies", "has a table that does not exist, or one twice")
        read_xen_frames([*free, *copies.values()], "copies", self._frames, CACHE_FRAMES)
        self.generation = typed(u64, found["generation"], "generation")
        self._free, self._copies = free, copies
        self._mergeable.clear()

    def free(self, frames: FrameTable) -> None:
        """Free all copies."""
        for mfn in self.frames():
            frames.drop(mfn)
        self._free.clear()
        self._copies.clear()
