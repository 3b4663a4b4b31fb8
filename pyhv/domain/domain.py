# SPDX-License-Identifier: GPL-2.0-only
"""A domain: everything that one guest owns."""

from dataclasses import dataclass, field

from pyhv.abi.hypercall_page import hypercall_page
from pyhv.abi.layout import u8, u32
from pyhv.abi.shared import SHARED_LAYOUT, SharedLayout
from pyhv.address import Mfn
from pyhv.clock import Clock
from pyhv.cpu.engine import Engine
from pyhv.cpu.ram import Ram
from pyhv.domain.config import DomainConfig
from pyhv.domain.lifecycle import Life, Lifecycle
from pyhv.domain.mailbox import Mailbox
from pyhv.domain.ports import PortLatches
from pyhv.domain.vcpu import Vcpu
from pyhv.events.channels import EventChannels
from pyhv.grants.maptrack import Maptrack
from pyhv.grants.table import GrantTable
from pyhv.mmu.memory import GuestMemory
from pyhv.mmu.paging import DomainArea, L4Cache
from pyhv.mmu.physical import FramePage, PhysicalMemory
from pyhv.mmu.tables import PageTables
from pyhv.state import given


@dataclass(slots=True)
class Assists:
    """Which vm_assist types are on."""

    enabled: set[int] = field(default_factory=set)

    def __contains__(self, kind: int) -> bool:
        return kind in self.enabled


@dataclass(slots=True, eq=False)
class Domain:
    """One guest: memory, page tables, ports, grants, vCPUs, and its life. It is complete when it is made.

    It is made of parts, each with its own page, that say their own state; so do the vCPUs, apart from it.
    """

    memory: GuestMemory
    tables: PageTables
    area: DomainArea
    cache: L4Cache
    events: EventChannels
    grants: GrantTable
    maptrack: Maptrack
    max_pages: u32
    """How many frames it may have."""
    domid: int = given("its builder")
    width: int = given("its builder")
    """Bits of the guest's registers and structures: 64, or 32 for a PAE kernel."""
    config: DomainConfig = given("its builder")
    clock: Clock = given("the machine's")
    physical: PhysicalMemory = given("the machine's")
    ram: Ram = given("the machine's")
    engine: Engine = given("what it holds of the guest, the contexts of vCPUs and its debug unit say")
    shared_info: FramePage = given("its builder; what is in it is memory")
    vcpus: list[Vcpu] = given("each says its own state")
    mailbox: Mailbox = given("its builder; empty whenever the machine does not run")
    """What others want done to it."""
    tot_pages: u32 = 0
    """How many it has, besides those that the hypervisor shares with it."""
    e820: bytes | None = None
    """The memory map that the guest has set for itself; None: all its memory from 0 on."""
    assists: Assists = field(default_factory=Assists)
    port_latches: PortLatches = field(default_factory=PortLatches)
    life: Life = field(default_factory=Life)
    """Whether it runs, and how it ended."""
    suspender: u8 | None = None
    """The number of the vCPU whose call suspended the domain, and waits for its result."""

    @property
    def name(self) -> str:
        """As its owner calls it."""
        return self.config.name

    @property
    def layout(self) -> SharedLayout:
        """Where the fields of the pages shared with it are that depend on its width."""
        return SHARED_LAYOUT[self.width]

    @property
    def loaded(self) -> Vcpu | None:
        """The vCPU whose registers the engine holds."""
        return next((vcpu for vcpu in self.vcpus if vcpu.context.loaded), None)

    @property
    def alive(self) -> bool:
        """Neither shut down nor crashed."""
        return self.life.going_on

    @property
    def suspended(self) -> bool:
        """Shut down to be resumed: nothing of it runs, and nothing of it is lost."""
        return self.life.stage is Lifecycle.SUSPENDED

    def drop_code(self, mfn: int, count: int) -> None:
        """Its engine forgets what it has translated of `count` frames from `mfn` on."""
        self.mailbox.do(self.engine.invalidate_code, mfn, count)

    def flush_tlb(self) -> None:
        """It does not run on before its TLB has forgotten all translations of addresses."""
        self.tables.flush = True

    def fill_hypercall_page(self, pfn: int) -> bool:
        """Write the hypercall stubs into the guest's page `pfn`; False if it is not writable."""
        frames = self.physical.frames
        mfn = self.frame_of(pfn)
        if mfn is None or not frames.take_writable(mfn):
            return False
        self.physical.write(mfn << 12, hypercall_page(self.width))
        frames.drop_writable(mfn)
        return True

    def frame_of(self, pfn: int) -> Mfn | None:
        """The own frame that the M2P says is `pfn`."""
        frames = self.physical.frames
        own = frames.owned_by(self.domid)
        found = own[frames.m2p_np[own] == pfn]
        return Mfn(int(found[0])) if found.size else None

    def set_wallclock(self, utc_ns: int) -> None:
        """Write the UTC time of machine time 0 into shared_info."""
        page, layout = self.shared_info, self.layout
        version = (page.read_u32(layout.wc_version) | 1) & 0xFFFFFFFF
        seconds, rest = divmod(utc_ns, 1_000_000_000)
        page.write_u32(layout.wc_version, version)
        page.write_u32(layout.wc_sec, seconds & 0xFFFFFFFF)
        page.write_u32(layout.wc_sec_hi, seconds >> 32)
        page.write_u32(layout.wc_nsec, rest)
        page.write_u32(layout.wc_version, (version + 1) & 0xFFFFFFFF)

    def renew_time(self, running: Vcpu | None) -> None:
        """Tell the guest anew what time it is, after its clock was restored; `running` goes on with its turn.

        In real time the host's counters are elsewhere than when the state was saved: with what the guest has
        in memory, it would see system time jump by as much. Counted time is what it was.
        """
        if self.clock.counted:
            return
        self.set_wallclock(self.clock.wall_ns())
        for vcpu in self.vcpus:
            vcpu.areas.written = -1  # its next turn begins with the time
            if vcpu is running:
                vcpu.update_time()
