# SPDX-License-Identifier: GPL-2.0-only
"""A machine's memory without processors: RAM, frame table, M2P, and domains that own frames and page tables.

The domains are bare: what they hold besides page tables are plain lists. That is all that `mmu/` and its
audit need to know of them.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import pytest

from pyhv.abi.errno import Errno
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_NX, PTE_P, PTE_RW, PTE_US
from pyhv.address import Mfn
from pyhv.cpu.ram import Ram
from pyhv.errors import XenError
from pyhv.mmu.audit import Holdings, MappedGrant, VcpuHoldings, audit
from pyhv.mmu.frames import FrameTable
from pyhv.mmu.memory import GuestMemory
from pyhv.mmu.pae import PaePageTables
from pyhv.mmu.paging import DomainArea, L4Cache, MachineToPhysical
from pyhv.mmu.physical import FramePage, PhysicalMemory
from pyhv.mmu.tables import PageTables

RO = PTE_P | PTE_A | PTE_US | PTE_NX
RW = RO | PTE_RW | PTE_D
RX = PTE_P | PTE_A | PTE_US
UPPER = PTE_P | PTE_RW | PTE_US | PTE_A
LINEAR = PTE_P | PTE_US | PTE_A


class BareDomain:
    """A domain of memory alone."""

    def __init__(self, bench: "Bench", domid: int, vcpus: int = 1, width: int = 64) -> None:
        frames, ram = bench.frames, bench.ram
        self.bench = bench
        self.domid = domid
        self.shared_info = FramePage(bench.physical, frames.allocate_shared(domid))
        self.memory = GuestMemory(bench.physical, width)
        self.area = DomainArea(ram, frames, vcpus)
        self.width = width
        self.cache = L4Cache(ram, frames, bench.m2p, self.area)
        tables = PageTables if width == 64 else PaePageTables
        self.tables = tables(domid, frames, bench.physical, self.memory, self.cache)
        self.vcpus = [VcpuHoldings(number) for number in range(vcpus)]
        self.grant_frames: list[Mfn] = []
        self.event_pages: list[Mfn] = []
        self.grants: list[MappedGrant] = []
        """Grants of other domains that it has mapped."""

    def holdings(self) -> Holdings:
        """For the audit."""
        frames = self.bench.frames
        owned = [mfn for mfn in frames.owned_by(self.domid).tolist() if not frames.xen_heap[mfn]]
        return Holdings(
            self.domid, self.width, len(owned), self.tables, self.cache, self.area, self.vcpus,
            [self.shared_info.mfn, *self.grant_frames], self.event_pages, self.grants,
        )  # fmt: skip

    def take(self, count: int = 1) -> list[int]:
        """Frames of its own, in the M2P."""
        taken = self.bench.frames.allocate(self.domid, count)
        for pfn, mfn in enumerate(taken):
            self.bench.m2p.table[mfn] = pfn
        return list(taken)

    def one(self) -> int:
        """One frame."""
        return self.take()[0]

    def table(self, *entries: tuple[int, int]) -> int:
        """A new frame that holds (slot, entry) pairs and is no table yet."""
        mfn = self.one()
        for slot, entry in entries:
            self.bench.ram.writable.q[mfn << 9 | slot] = entry
        return mfn

    def chain(self, leaf: int, *, slot: int = 0) -> tuple[int, int, int, int]:
        """(L4, L3, L2, L1) that map one leaf entry in slot 0 of each level; none of them validated."""
        l1 = self.table((0, leaf))
        l2 = self.table((0, l1 << 12 | UPPER))
        l3 = self.table((0, l2 << 12 | UPPER))
        return self.table((slot, l3 << 12 | UPPER)), l3, l2, l1

    def pae(self, leaf: int) -> tuple[int, int, int, int]:
        """(L3, last L2, first L2, L1) of a 32-bit guest that map one leaf at address 0, none validated."""
        l1 = self.table((0, leaf))
        first = self.table((0, l1 << 12 | UPPER))
        last = self.one()
        top = self.table((0, first << 12 | PTE_P), (3, last << 12 | PTE_P))
        return top, last, first, l1

    def use(self, l4: int) -> None:
        """Make a table the kernel's of vCPU 0, as NEW_BASEPTR does."""
        self.tables.take_table(l4, self.tables.top)
        vcpu = self.vcpus[0]
        old, vcpu.kernel_l4 = vcpu.kernel_l4, Mfn(l4)
        self.memory.use(Mfn(l4))
        if old:
            self.tables.drop_table(old)

    def die(self) -> None:
        """Give everything back, in the order of the machine's undertaker."""
        frames = self.bench.frames
        for vcpu in self.vcpus:
            for l4 in (vcpu.kernel_l4, vcpu.user_l4):
                if l4:
                    self.tables.drop_table(l4)
        for pinned in np.flatnonzero((frames.owner_np == self.domid) & (frames.pinned_np == 1)).tolist():
            self.tables.unpin(pinned)
        frames.free_allocated(self.domid)
        frames.drop_shared(self.shared_info.mfn)
        self.cache.free(frames)
        self.area.free(frames)
        self.bench.domains.remove(self)


class Bench:
    """The memory of a machine of `count` frames with `domains` domains of `width` bits."""

    def __init__(self, count: int = 512, domains: int = 2, width: int = 64) -> None:
        self.ram = Ram(count)
        self.frames = FrameTable(self.ram)
        self.physical = PhysicalMemory(self.ram, self.frames)
        self.dropped: list[int] = []
        """Frames whose translated code was dropped."""
        self.physical.invalidators.append(lambda mfn, count: self.dropped.extend(range(mfn, mfn + count)))
        self.frames.on_free, self.frames.on_death = self._freed, self.physical.code_gone
        self.m2p = MachineToPhysical(self.ram, self.frames)
        self.empty = self.frames.free_count
        self.domains = [BareDomain(self, domid, width=width) for domid in range(1, domains + 1)]

    def _freed(self, mfn: int, _owner: int) -> None:
        if self.frames.code[mfn]:
            self.physical.code_written(Mfn(mfn))

    def audit(self) -> list[str]:
        """What is wrong."""
        holdings = [domain.holdings() for domain in self.domains]
        return audit(self.frames, self.ram, holdings, m2p=self.m2p)

    def counts(self) -> tuple[bytes, ...]:
        """All that the frame table counts, to compare before and after."""
        frames = self.frames
        used = frames.type_np * (frames.type_count_np > 0)
        columns = (used, frames.type_count_np, frames.refs_np, frames.exec_count_np, frames.pinned_np)
        return (
            *(column.tobytes() for column in columns),
            bytes(frames.linear_in),
            bytes(frames.linear_out),
        )

    def q(self, mfn: int, slot: int) -> int:
        """An entry of a frame."""
        return self.ram.q[mfn << 9 | slot]


@contextmanager
def refused(errno: Errno, bench: Bench | None = None) -> Iterator[None]:
    """The block must raise XenError(errno) and, if a bench is given, leave no trace in it."""
    before = bench.counts() if bench else None
    with pytest.raises(XenError) as caught:
        yield
    assert Errno(caught.value.errno) is errno, caught.value
    if bench is not None:
        assert bench.counts() == before
        assert bench.audit() == []
