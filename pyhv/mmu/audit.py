# SPDX-License-Identifier: GPL-2.0-only
"""The proof of isolation: count everything anew and compare.

`audit` walks every page table of the machine and derives from scratch what the frame table keeps step by
step: who refers to each frame, and as what. Where both agree for every frame, the rules of `frames.py` and
`tables.py` held all the time, and with them the invariant of a PV machine:

    no frame is at once a page table (or descriptor page) and writable by a guest,
    and no guest table maps a frame that its owner may not see.

    derived from                            counts as
    present L4, L3, L2 entries              a table reference one level down (read-only: linear, same level)
    present L1 entries                      a writable or a general reference, and an executable mapping,
                                            watched by the engine that may execute the frame
    pins, base pointers of vCPUs            a table reference
    GDT frames, faulted-in LDT pages        a descriptor-page reference
    vcpu_info pages, back ends' rings       a writable reference
    FIFO control blocks, event arrays       a writable reference
    shared_info, grant table frames         a writable reference, held by the hypervisor
    device halves of grant mappings         a writable or a general reference
    being allocated                         a general reference

Besides, it checks what only the hypervisor may write: its copies of the guests' L4s, the M2P's tables, the
windows on descriptor pages, and the list of free frames. Nothing is changed. A finding is one sentence; it
always means a bug of pyhv, never a guest's.
"""

from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Final

import numpy as np
import numpy.typing as npt

from pyhv.abi.domid import DOMID_INVALID, DOMID_XEN
from pyhv.abi.x86 import (
    PTE_A,
    PTE_D,
    PTE_GUEST_KERNEL,
    PTE_MFN_MASK,
    PTE_NX,
    PTE_P,
    PTE_RW,
    PTE_SOFT_HIGH,
    PTE_US,
)
from pyhv.address import Mfn
from pyhv.cpu.ram import Ram
from pyhv.mmu.frames import (
    INVALID_M2P,
    L1,
    L2,
    L3,
    L4,
    NONE,
    SEGDESC,
    TYPE_NAMES,
    WRITABLE,
    FrameTable,
)
from pyhv.mmu.manyleaves import L1_FORBIDDEN
from pyhv.mmu.paging import (
    COMPAT,
    COMPAT_FIRST_SLOT,
    DOMAIN_SLOT,
    M2P_SLOT,
    MERGED,
    SPLIT_KERNEL,
    DomainArea,
    L4Cache,
    MachineToPhysical,
)
from pyhv.mmu.tables import FIRST_GUEST_SLOT_ABOVE, UPPER_FORBIDDEN, XEN_SLOTS, PageTables

_MOST: Final = 8
"""Findings of one kind that are told one by one."""
_CHUNK: Final = 2048
"""Tables looked at at a time, to bound the audit's own memory."""
_LDT_FIRST_PAGE: Final = 16

_Index = npt.NDArray[np.int64]
_u64 = np.uint64


@dataclass(slots=True)
class VcpuHoldings:
    """What a vCPU holds."""

    number: int
    kernel_l4: Mfn = Mfn(0)
    user_l4: Mfn = Mfn(0)
    gdt_frames: list[Mfn] = field(default_factory=list)
    ldt_mapped: dict[int, Mfn] = field(default_factory=dict)
    """By page of the LDT."""
    info: Mfn | None = None
    """The guest's frame that its vcpu_info is in, if it has chosen one."""


@dataclass(slots=True)
class MappedGrant:
    """A grant that a domain has mapped."""

    frame: Mfn
    readonly: bool
    device: bool = False
    """Its device half is mapped, which no page table shows."""


@dataclass(slots=True)
class Holdings:
    """What a domain that has not been taken apart holds of the machine's memory, besides its page tables."""

    domid: int
    width: int
    tot_pages: int
    """How many frames it says it has, besides those that the hypervisor shares with it."""
    tables: PageTables
    cache: L4Cache
    area: DomainArea
    vcpus: list[VcpuHoldings]
    shared: list[Mfn]
    """The hypervisor's frames that are shared with it: shared_info, its grant table."""
    event_pages: list[Mfn]
    """The guest's frames that its pending events are in, each as often as it is referred to."""
    grants: list[MappedGrant]


def audit(
    frames: FrameTable,
    ram: Ram,
    domains: Iterable[Holdings],
    *,
    m2p: MachineToPhysical | None = None,
    rings: Iterable[int] = (),
    loans: Iterable[MappedGrant] = (),
) -> list[str]:
    """Everything that is wrong with the memory of a machine; empty if it is sound.

    `domains` are those that have not been taken apart; frames of others must be explained by grants that
    these have mapped. `rings` are frames to which a back end of the hypervisor holds a writable reference,
    one mention each; `loans` is what they have mapped through grants. Call it while no engine runs.
    """
    return _Audit(frames, ram, list(domains), m2p, rings, loans).findings


class _Audit:
    def __init__(
        self,
        frames: FrameTable,
        ram: Ram,
        domains: list[Holdings],
        m2p: MachineToPhysical | None,
        rings: Iterable[int],
        loans: Iterable[MappedGrant],
    ) -> None:
        self.frames = frames
        self.ram = ram
        self.domains = {domain.domid: domain for domain in domains}
        self.findings: list[str] = []
        shape = frames.count
        self.as_type = {kind: np.zeros(shape, dtype=np.int64) for kind in (1, 2, 3, 4, SEGDESC, WRITABLE)}
        """References of each type that were found, by frame."""
        self.general = np.zeros(shape, dtype=np.int64)
        self.executable = np.zeros(shape, dtype=np.int64)
        self.lent = np.zeros(shape, dtype=np.int64)
        self.linear_in = np.zeros(shape, dtype=np.int64)
        self.linear_out = np.zeros(shape, dtype=np.int64)
        self.typed = np.where(frames.type_count_np > 0, frames.type_np, NONE)
        narrow = [domain.domid for domain in domains if domain.width == 32]
        self.narrow = np.isin(frames.owner_np, np.array(narrow, dtype=np.uint16))
        """Frames of 32-bit guests."""
        for level in (4, 3, 2):
            self._walk_upper(level)
        self._walk_leaves()
        for domain in self.domains.values():
            self._holdings(domain)
        for mfn in rings:
            self._hold(mfn, WRITABLE, "a back end's ring")
        self._device_mappings(loans, "domain 0")
        self._pins()
        self._compare()
        self._free_frames()
        if m2p is not None:
            self._own_frames(m2p)
            self._machine_to_physical(m2p)
            for domain in self.domains.values():
                self._hardware_l4s(domain, m2p)
            self._last_l2s(m2p)
        for domain in self.domains.values():
            self._windows(domain)

    # -- telling -----------------------------------------------------------------------------------------

    def _tell(self, bad: _Index, sentence: str) -> None:
        """One finding per frame in `bad`; `sentence` has a place {} for its description."""
        for mfn in bad[:_MOST].tolist():
            self.findings.append(sentence.format(self.frames.describe(mfn)))
        if bad.size > _MOST:
            self.findings.append(f"... and {bad.size - _MOST} more frames of the same kind")

    # -- page tables -------------------------------------------------------------------------------------

    def _entries(self, level: int) -> Iterator[tuple[_Index, _Index, npt.NDArray[np.uint64]]]:
        """(table, slot, entry) of all present guest entries of a level, some tables at a time."""
        tables = np.flatnonzero(self.typed == level)
        for first in range(0, tables.size, _CHUNK):
            some = tables[first : first + _CHUNK]
            rows = self.ram.tables[some]
            if level == L4:
                used = rows[:, XEN_SLOTS.start : XEN_SLOTS.stop].any(axis=1)
                self._tell(some[used], "{} has entries in the hypervisor's slots")
                rows[:, XEN_SLOTS.start : XEN_SLOTS.stop] = 0
            if level == L2:
                rows[np.flatnonzero(self.frames.last_l2_np[some]), COMPAT_FIRST_SLOT:] = 0
            row, slot = np.nonzero(rows & _u64(PTE_P))
            yield some[row], slot, rows[row, slot]

    def _targets(self, tables: _Index, entries: npt.NDArray[np.uint64], level: int) -> tuple[_Index, _Index]:
        """Frame numbers of the entries, and which entries (by index) have one that exists."""
        targets = ((entries & _u64(PTE_MFN_MASK)) >> _u64(12)).astype(np.int64)
        exists = (targets > 0) & (targets < self.frames.count)
        self._tell(tables[~exists], f"an L{level} entry of {{}} points outside memory")
        kept = np.flatnonzero(exists)
        return targets[kept], kept

    def _count(self, into: npt.NDArray[np.int64], targets: _Index) -> None:
        into += np.bincount(targets, minlength=self.frames.count)

    def _walk_upper(self, level: int) -> None:
        owner = self.frames.owner_np
        for tables, _, entries in self._entries(level):
            targets, kept = self._targets(tables, entries, level)
            tables, entries = tables[kept], entries[kept]
            narrow = self.narrow[tables]
            forbidden = (entries & _u64(UPPER_FORBIDDEN)) != 0
            if level == L3:
                forbidden |= narrow & ((entries & _u64(PTE_NX | PTE_SOFT_HIGH)) != 0)
            self._tell(tables[forbidden], f"an L{level} entry of {{}} has bits that no guest may set")
            wide_bits = PTE_US | PTE_A if level == L4 else PTE_US
            narrow_bits = PTE_US | PTE_RW if level == L3 else 0
            required = np.where(narrow, _u64(narrow_bits), _u64(wide_bits))
            self._tell(tables[entries & required != required], f"an L{level} entry of {{}} was not adjusted")
            foreign = owner[targets] != owner[tables]
            self._tell(tables[foreign], f"an L{level} entry of {{}} points to another owner's frame")
            itself = targets == tables
            linear = itself | (self.typed[targets] == level)
            writable = linear & ((entries & _u64(PTE_RW)) != 0)
            self._tell(tables[writable], f"{{}} has a writable linear L{level} entry")
            other = linear & ~itself
            self._count(self.as_type[level], targets[other])
            self._count(self.linear_in, targets[other])
            self._count(self.linear_out, tables[other])
            self._count(self.as_type[level - 1], targets[~linear])

    def _walk_leaves(self) -> None:
        frames = self.frames
        foreign: list[tuple[_Index, _Index, npt.NDArray[np.bool_]]] = []
        for tables, _, entries in self._entries(L1):
            targets, kept = self._targets(tables, entries, L1)
            tables, entries = tables[kept], entries[kept]
            self._tell(
                tables[(entries & _u64(L1_FORBIDDEN)) != 0], "a leaf entry of {} sets cache attributes"
            )
            raw = ((entries & _u64(PTE_US)) == 0) & ~self.narrow[tables]
            self._tell(tables[raw], "a leaf entry of {} was not adjusted")
            writable = (entries & _u64(PTE_RW)) != 0
            mistyped = writable & (self.typed[targets] != WRITABLE)
            self._tell(targets[mistyped], "{} is mapped writable by a guest")
            self._count(self.as_type[WRITABLE], targets[writable])
            self._count(self.general, targets[~writable])
            executable = (entries & _u64(PTE_NX)) == 0
            self._count(self.executable, targets[executable])
            self._watched(tables[executable], targets[executable])
            others = np.flatnonzero(frames.owner_np[targets] != frames.owner_np[tables])
            if others.size:
                foreign.append((tables[others], targets[others], writable[others]))
                self._count(self.lent, targets[others][writable[others]])
        if foreign:
            self._foreign_leaves(foreign)

    def _watched(self, tables: _Index, targets: _Index) -> None:
        """Of what a domain can execute, its engine sees the stores, or its translations are renewed."""
        owners = self.frames.owner_np[tables]
        for domid in np.unique(owners).tolist():
            if domid in self.domains:
                own = self.domains[domid].tables
                unknown = np.unique(targets[(owners == domid) & (own.code.known_np[targets] == 0)])
                shared = np.array(sorted(own.physical.shared_code), dtype=np.int64)
                self._tell(np.setdiff1d(unknown, shared), f"d{domid} can execute {{}}, which nobody watches")

    def _foreign_leaves(self, found: list[tuple[_Index, _Index, npt.NDArray[np.bool_]]]) -> None:
        """Leaves that map another owner's frame: at most as many as the domain has mapped grants of it."""
        seen: dict[tuple[int, int, bool], int] = {}
        for tables, targets, writable in found:
            for table, target, write in zip(
                tables.tolist(), targets.tolist(), writable.tolist(), strict=True
            ):
                key = (self.frames.owner[table], target, write)
                seen[key] = seen.get(key, 0) + 1
        granted: dict[tuple[int, int, bool], int] = {}
        for domain in self.domains.values():
            for mapping in domain.grants:
                key = (domain.domid, mapping.frame, not mapping.readonly)
                granted[key] = granted.get(key, 0) + 1
        for (domid, mfn, write), count in seen.items():
            if count > granted.get((domid, mfn, write), 0):
                self.findings.append(
                    f"d{domid} maps {self.frames.describe(mfn)} {count} times"
                    f" {'writable' if write else 'read-only'} without as many grants"
                )

    # -- what is held outside page tables ----------------------------------------------------------------

    def _hold(self, mfn: int, kind: int, what: str) -> None:
        if 0 < mfn < self.frames.count:
            (self.general if kind == NONE else self.as_type[kind])[mfn] += 1
        else:
            self.findings.append(f"{what} is {self.frames.describe(mfn)}")

    def _holdings(self, domain: Holdings) -> None:
        name = f"d{domain.domid}"
        owned = int(((self.frames.owner_np == domain.domid) & (self.frames.xen_heap_np == 0)).sum())
        if domain.tot_pages != owned:
            self.findings.append(f"{name} has {owned} frames and counts {domain.tot_pages}")
        for vcpu in domain.vcpus:
            for table in (vcpu.kernel_l4, vcpu.user_l4):
                if table:
                    self._hold(table, L4 if domain.width == 64 else L3, f"a base pointer of {name}")
            for mfn in vcpu.gdt_frames:
                self._hold(mfn, SEGDESC, f"a GDT frame of {name}")
            for mfn in vcpu.ldt_mapped.values():
                self._hold(mfn, SEGDESC, f"an LDT page of {name}")
            if vcpu.info is not None:
                self._hold(vcpu.info, WRITABLE, f"a vcpu_info page of {name}")
        for held in domain.tables.held_tables():
            self._hold(held, self.frames.type[held], f"a table that {name} holds")
        for mfn in domain.event_pages:
            self._hold(mfn, WRITABLE, f"an event channel page of {name}")
        for mfn in domain.shared:
            self._hold(mfn, WRITABLE, f"a shared page of {name}")
            if not self.frames.xen_heap[mfn] or self.frames.owner[mfn] != domain.domid:
                self.findings.append(f"{self.frames.describe(mfn)} should be a shared page of {name}")
        self._device_mappings(domain.grants, name)

    def _device_mappings(self, grants: Iterable[MappedGrant], name: str) -> None:
        for mapping in grants:
            if mapping.device:
                self._hold(
                    mapping.frame, NONE if mapping.readonly else WRITABLE, f"a device mapping of {name}"
                )

    def _pins(self) -> None:
        """Each pin is a reference of the type that the frame has."""
        frames = self.frames
        pinned = np.flatnonzero(frames.pinned_np)
        kinds = self.typed[pinned]
        for level in range(L1, L4 + 1):
            self.as_type[level][pinned[kinds == level]] += 1
        self._tell(pinned[(kinds < L1) | (kinds > L4)], "{} is pinned but no page table")

    # -- the comparison ----------------------------------------------------------------------------------

    def _compare(self) -> None:
        frames = self.frames
        everything = self.general + frames.allocated_np
        for kind, found in self.as_type.items():
            everything += found
            expected = np.where(self.typed == kind, frames.type_count_np, 0)
            for mfn in np.flatnonzero(found != expected)[:_MOST].tolist():
                self.findings.append(
                    f"{frames.describe(mfn)} has {found[mfn]} references as {TYPE_NAMES[kind]}"
                )
        for mfn in np.flatnonzero(everything != frames.refs_np)[:_MOST].tolist():
            self.findings.append(f"{frames.describe(mfn)} has {everything[mfn]} references in all")
        for mfn in np.flatnonzero(self.executable != frames.exec_count_np)[:_MOST].tolist():
            self.findings.append(
                f"{frames.describe(mfn)} has {self.executable[mfn]} executable mappings,"
                f" {frames.exec_count[mfn]} are counted"
            )
        self._tell(np.flatnonzero(self.lent != frames.lent_np), "what is lent of {} is miscounted")
        for recorded, found, word in (
            (frames.linear_in, self.linear_in, "into"),
            (frames.linear_out, self.linear_out, "out of"),
        ):
            differ = np.flatnonzero(np.asarray(recorded) != found)
            self._tell(differ, f"the linear entries {word} {{}} are miscounted")
        untracked = np.flatnonzero((frames.exec_count_np > 0) & (frames.code_np == 0))
        self._tell(untracked, "{} is mapped executable, but its translations would not be dropped")
        owned = frames.owner_np
        tables = (self.typed >= L1) & (self.typed <= SEGDESC)
        known = np.isin(owned, np.array(list(self.domains), dtype=np.uint16))
        self._tell(np.flatnonzero(tables & ~known), "{} is a table of no living domain")
        stray = (frames.allocated_np == 1) & ~known & (owned != DOMID_XEN)
        self._tell(np.flatnonzero(stray), "{} is allocated to a domain that is gone")

    def _free_frames(self) -> None:
        frames = self.frames
        free = frames.free_list()
        listed = np.zeros(frames.count, dtype=np.int64)
        self._count(listed, free)
        unowned = frames.owner_np == DOMID_INVALID
        unowned[0] = False
        self._tell(np.flatnonzero(listed > 1), "{} is free more than once")
        self._tell(np.flatnonzero((listed == 0) & unowned), "{} has no owner but is not free")
        self._tell(np.flatnonzero((listed > 0) & ~unowned), "{} is free but has an owner")
        used = (frames.refs_np > 0) | (frames.pinned_np > 0) | (frames.xen_heap_np > 0)
        self._tell(np.flatnonzero((listed > 0) & used), "{} is free but in use")
        coded = (listed > 0) & (frames.code_np > 0)
        self._tell(np.flatnonzero(coded), "{} is free but may have translated code")
        if frames.m2p_np.size:
            nobodys = unowned | (frames.owner_np == DOMID_XEN)
            self._tell(
                np.flatnonzero(nobodys & (frames.m2p_np != INVALID_M2P)), "{} is no guest's but in the M2P"
            )

    # -- the hypervisor's own tables ---------------------------------------------------------------------

    def _machine_to_physical(self, m2p: MachineToPhysical) -> None:
        """The M2P is mapped read-only, all of it and nothing else."""
        mapped: list[int] = []
        compat = [int(e) for e in m2p.compat_entries if int(e) & PTE_P]
        narrow = [e for l1 in compat for e in self._present(l1)]
        if any(e & PTE_RW for e in (*compat, *narrow)):
            self.findings.append("the 32-bit M2P is mapped writable")
        if [self._follow(e) for e in narrow] != list(m2p.compat_frames):
            self.findings.append("the 32-bit M2P's tables map other frames than the M2P's")
        for entry in (m2p.user_entry, m2p.supervisor_entry):
            l2s = self._present(entry)
            l1s = [e for l2 in l2s for e in self._present(l2)]
            leaves = [e for l1 in l1s for e in self._present(l1)]
            if any(e & PTE_RW for e in (entry, *l2s, *l1s, *leaves)):
                self.findings.append("the M2P is mapped writable")
            mapped = [self._follow(e) for e in leaves]
            if mapped != list(m2p.frames):
                self.findings.append("the M2P's tables map other frames than the M2P's")

    @staticmethod
    def _follow(entry: int) -> int:
        return (entry & PTE_MFN_MASK) >> 12

    def _present(self, entry: int) -> list[int]:
        """The present entries of the table that an entry of the hypervisor's own tables leads to."""
        mfn = self._follow(entry)
        if not 0 < mfn < self.frames.count or self.frames.owner[mfn] != DOMID_XEN:
            self.findings.append(f"a table of the hypervisor's leads to {self.frames.describe(mfn)}")
            return []
        return [each for each in self.ram.tables[mfn].tolist() if each & PTE_P]

    def _own_frames(self, m2p: MachineToPhysical) -> None:
        """What the hypervisor keeps for itself is its own, and serves one purpose."""
        used = [*m2p.frames, *m2p.compat_frames]
        for domain in self.domains.values():
            used += [*domain.area.tables, *domain.cache.frames()]
        twice = {mfn for mfn, count in Counter(used).items() if count > 1}
        for mfn in sorted(twice | {mfn for mfn in used if self.frames.owner[mfn] != DOMID_XEN}):
            self.findings.append(
                f"{self.frames.describe(mfn)} is not the hypervisor's, or serves it for two purposes"
            )

    def _hardware_l4s(self, domain: Holdings, m2p: MachineToPhysical) -> None:
        """Each copy is the guest's L4 plus the hypervisor's slots, and nothing but that."""
        frames, tables = self.frames, self.ram.tables
        touched = _u64(~(PTE_A | PTE_D) & (1 << 64) - 1)
        for l4, variant, copy in domain.cache.copies():
            name = f"the copy of {frames.describe(l4)}"
            top = L3 if variant == COMPAT else L4
            if self.typed[l4] != top or frames.owner[l4] != domain.domid:
                self.findings.append(f"{name} is kept, but the table is no L{top} of d{domain.domid}")
                continue
            if frames.owner[copy] != DOMID_XEN:
                self.findings.append(f"{name} is in {frames.describe(copy)}")
            if variant == COMPAT:
                expected = np.zeros(512, dtype=np.uint64)
                expected[0] = l4 << 12 | PTE_P | PTE_RW | PTE_US
            else:
                expected = tables[l4].copy()
                expected[XEN_SLOTS.start : XEN_SLOTS.stop] = 0
            expected[DOMAIN_SLOT] = domain.area.entry
            if variant == MERGED:
                expected[FIRST_GUEST_SLOT_ABOVE:] &= ~_u64(PTE_US)
                expected[M2P_SLOT] = m2p.supervisor_entry
            elif variant == SPLIT_KERNEL:
                expected[M2P_SLOT] = m2p.user_entry
            for slot in np.flatnonzero((tables[copy] ^ expected) & touched).tolist():
                self.findings.append(f"slot {slot} of {name} is {int(tables[copy][slot]):#x}")

    def _last_l2s(self, m2p: MachineToPhysical) -> None:
        """The L2 in slot 3 of a 32-bit guest's L3, and no other, holds the hypervisor's entries."""
        frames, tables = self.frames, self.ram.tables
        touched = _u64(~(PTE_A | PTE_D) & (1 << 64) - 1)
        l3s = np.flatnonzero((self.typed == L3) & self.narrow)
        wanted = np.zeros(frames.count, dtype=bool)
        last = ((tables[l3s, 3] & _u64(PTE_MFN_MASK)) >> _u64(12)).astype(np.int64)
        wanted[last[last < frames.count]] = True
        marked = frames.last_l2_np == 1
        self._tell(np.flatnonzero(wanted & ~marked), "{} is in slot 3 of an L3 without being prepared for it")
        self._tell(np.flatnonzero(marked & (self.typed != L2)), "{} is marked as a last L2 but is none")
        for mfn in np.flatnonzero(marked & (self.typed == L2)).tolist():
            if ((tables[mfn][COMPAT_FIRST_SLOT:] ^ m2p.compat_entries) & touched).any():
                self.findings.append(f"the hypervisor's slots of {frames.describe(mfn)} have been changed")

    def _windows(self, domain: Holdings) -> None:
        """GDT and LDT windows show what the vCPU has installed, never writable and never to user mode."""
        if domain.area.entry & PTE_US:
            self.findings.append(f"user mode of d{domain.domid} can reach the descriptor windows")
        l2s = self._present(domain.area.entry)
        l1s = [e for l2 in l2s for e in self._present(l2)]
        if [self._follow(e) for e in (domain.area.entry, *l2s, *l1s)] != domain.area.tables:
            self.findings.append(f"the descriptor windows of d{domain.domid} lead elsewhere")
        for vcpu in domain.vcpus:
            name = f"d{domain.domid}v{vcpu.number}"
            for page in range(2 * _LDT_FIRST_PAGE):
                entry = domain.area.leaf(vcpu.number, page)
                if entry & (PTE_RW | PTE_US | PTE_GUEST_KERNEL):
                    self.findings.append(f"descriptor page {page} of {name} is mapped as {entry:#x}")
                mfn = self._follow(entry) if entry & PTE_P else None
                if page < len(vcpu.gdt_frames):
                    wanted: int | None = vcpu.gdt_frames[page]
                elif page >= _LDT_FIRST_PAGE:
                    wanted = vcpu.ldt_mapped.get(page - _LDT_FIRST_PAGE)
                elif mfn is not None and mfn < self.frames.count and self.frames.owner[mfn] == DOMID_XEN:
                    continue
                else:
                    wanted = None
                if mfn != wanted:
                    self.findings.append(f"descriptor page {page} of {name} shows frame {mfn}, not {wanted}")
