# SPDX-License-Identifier: GPL-2.0-only
"""Domains and their virtual processors: the state, and the few rules that keep it consistent.

A `Domain` is everything that one guest owns; when it dies, all of that goes with it. A `Vcpu` is what Xen
keeps of a virtual processor beyond its registers: where its traps and callbacks lead, which stack and which
page tables it enters the kernel on, its timers and its runstate. Registers live in the engine's VMCB while
the vCPU is loaded and in `Vcpu.registers` otherwise.

Nothing here decides anything about an exit; that is `traps/` and `hypercalls/`.
"""

import struct
from contextlib import suppress
from dataclasses import dataclass, field

from pyhv.abi.hypercall_page import hypercall_page
from pyhv.abi.numbers import Shutdown
from pyhv.abi.shared import (
    SHARED_LAYOUT,
    SI_VCPU_INFO,
    VCPU_INFO_SIZE,
    VI_TIME,
    VI_UPCALL_MASK,
    VI_UPCALL_PENDING,
)
from pyhv.address import Mfn
from pyhv.clock import Clock
from pyhv.cpu.engine import Engine
from pyhv.errors import XenError
from pyhv.events.channels import DEFAULT_MAX_PORT, EventChannels
from pyhv.events.delivery import TwoLevel
from pyhv.events.timers import PeriodicTimer
from pyhv.grants.maptrack import Maptrack
from pyhv.grants.table import GrantTable
from pyhv.mmu.descriptors import Segment
from pyhv.mmu.memory import FramePage, GuestMemory, PhysicalMemory
from pyhv.mmu.paging import DomainArea, L4Cache
from pyhv.mmu.tables import PageTables
from pyhv.sched.runstate import Runstate, State

NO_TRAP = (0, 0)
_TIME_INFO = struct.Struct("<IIQQIbBxx")


@dataclass(slots=True)
class CallbackEntry:
    """Where a callback goes, and whether entering it masks events."""

    address: int = 0
    mask_events: bool = False
    selector: int = 0
    """The code segment of a 32-bit guest's callback."""


class Vcpu:
    """One virtual processor."""

    def __init__(self, domain: "Domain", number: int) -> None:
        self.domain = domain
        self.number = number
        self.id = (domain.domid, number)
        self.domid = domain.domid
        self.initialised = False
        self.online = False
        self.in_kernel = True
        """The guest's mode, kernel or user; the hardware CPL is another matter (`mmu/paging.py`)."""
        self.force_split = False
        """Run on the guest's real tables in ring 3 until the next change of mode."""
        self.kernel_l4 = Mfn(0)
        self.user_l4 = Mfn(0)
        self.merged = False
        self.merge_known = -1
        self.traps: list[tuple[int, int]] = [NO_TRAP] * 256
        """Per vector: (handler address, flags: bits 1..0 DPL, bit 2 masks events)."""
        self.trap_selectors = [0] * 256
        """Per vector: the handler's code segment, in a 32-bit guest."""
        self.event_callback = CallbackEntry(mask_events=True)
        self.failsafe_callback = CallbackEntry()
        self.syscall_callback = CallbackEntry()
        self.syscall32_callback = CallbackEntry()
        self.sysenter_callback = CallbackEntry()
        self.kernel_ss = 0
        self.kernel_sp = 0
        self.other_gs_base = 0
        """GS base of the mode that is not running."""
        self.iopl = 0
        self.io_bitmap = 0
        self.io_bitmap_ports = 0
        self.cr4 = 0x660
        self.debug = [0, 0, 0, 0, 0, 0, 0xFFFF0FF0, 0x400]
        self.gdt_frames: list[Mfn] = []
        self.gdt_entries = 0
        self.ldt_base = 0
        self.ldt_entries = 0
        self.ldt_mapped: dict[int, Mfn] = {}
        self.segments: dict[int, Segment | None] = {}
        """Decoded descriptors by selector; emptied when GDT or LDT may have changed."""
        self.return_segments: dict[tuple[int, int], tuple[Segment | None, Segment | None]] = {}
        """(CS, SS) pairs that iret frames have named, decoded; emptied with `segments`."""
        self.descriptors_changed = False
        """Segment registers may hold what can no longer be loaded (`traps/segments.py`)."""
        self.tsc_aux = 0
        self.cpuid_faulting = False
        """CPUID of user mode is #GP."""
        self.info_page = domain.shared_info
        self.info_offset = SI_VCPU_INFO + VCPU_INFO_SIZE * (number if number < 32 else 0)
        self.info = self.info_page.base + self.info_offset
        """Machine address of the live vcpu_info."""
        self.info_moved = False
        layout, ram = domain.layout, domain.ram
        self._cr2_offset = layout.cr2
        self._cr2_words, self._cr2_shift = (ram.q, 3) if layout.width == 64 else (ram.d, 2)
        self._cr2_mask = (1 << layout.width) - 1
        self.runstate = Runstate(State.OFFLINE, domain.now())
        self.runstate_area = 0
        self.time_area = 0
        self.periodic = PeriodicTimer(domain.now())
        self.blocked = False
        self.polling: frozenset[int] | None = None
        self.nmi_pending = False
        self.in_nmi = False
        """An NMI has been delivered and no iret hypercall made since: the next one waits."""
        self.mcg_status = 0
        self.mci_ctl2 = [0, 0]
        """Registers of the virtual machine check architecture that hold what the guest writes."""
        self.initial_registers: dict[str, int] = {}
        """What VCPUOP_initialise (or the builder) wants the registers to be at the first run."""
        self.initial_fpu = b""
        """A FXSAVE image to start with; empty: the FPU is as FNINIT leaves it."""
        self.registers: bytes | None = None
        """Saved VMCB while not loaded in the engine."""
        self.time_stamp = -1

    def forget_segments(self) -> None:
        """Descriptors may have changed."""
        self.segments.clear()
        self.return_segments.clear()
        self.descriptors_changed = True

    @property
    def weight(self) -> int:
        """The domain's scheduling weight."""
        return self.domain.weight

    @property
    def cap(self) -> int:
        """The domain's cap in percent of one processor."""
        return self.domain.cap

    @property
    def name(self) -> str:
        """d1v0 and the like."""
        return f"d{self.domid}v{self.number}"

    # -- vcpu_info -----------------------------------------------------------------------------------------

    @property
    def upcall_masked(self) -> bool:
        """The guest's interrupt flag, inverted."""
        return self.domain.ram.raw[self.info + VI_UPCALL_MASK] != 0

    @upcall_masked.setter
    def upcall_masked(self, masked: bool) -> None:
        self.domain.ram.raw[self.info + VI_UPCALL_MASK] = masked

    @property
    def upcall_pending(self) -> bool:
        """Whether some event waits for this vCPU."""
        return self.domain.ram.raw[self.info + VI_UPCALL_PENDING] != 0

    @upcall_pending.setter
    def upcall_pending(self, pending: bool) -> None:
        self.domain.ram.raw[self.info + VI_UPCALL_PENDING] = pending

    def event_deliverable(self) -> bool:
        """An event is pending and not masked."""
        raw, info = self.domain.ram.raw, self.info
        return raw[info] != 0 and raw[info + 1] == 0

    @property
    def nmi_deliverable(self) -> bool:
        """An NMI is pending, and the handler of none is running."""
        return self.nmi_pending and not self.in_nmi

    @property
    def cr2(self) -> int:
        """The virtual CR2."""
        return self._cr2_words[self.info + self._cr2_offset >> self._cr2_shift]

    @cr2.setter
    def cr2(self, value: int) -> None:
        self._cr2_words[self.info + self._cr2_offset >> self._cr2_shift] = value & self._cr2_mask

    def use_info(self, page: FramePage, offset: int) -> None:
        """From now on vcpu_info lives at `offset` of `page`, where `TwoLevel.relocate` has copied it."""
        self.info_page, self.info_offset = page, offset
        self.info = page.base + offset
        self.info_moved = True

    def update_time(self) -> None:
        """Refresh the vCPU's pvclock record; its version is odd while that happens."""
        clock, ram = self.domain.clock, self.domain.ram
        tsc, now, stable = clock.time_record()
        self.time_stamp = now
        at = self.info + VI_TIME
        version = ram.d[at >> 2] | 1
        rate = clock.tsc_rate
        ram.raw[at : at + 32] = _TIME_INFO.pack(
            version & 0xFFFF_FFFF, 0, tsc, now, rate.mul, rate.shift, int(stable)
        )
        ram.d[at >> 2] = (version + 1) & 0xFFFF_FFFF
        if self.time_area:
            with suppress(XenError):  # an area that is not mapped now is written another time
                self.domain.memory.write(self.time_area, bytes(ram.raw[at : at + 32]))


@dataclass(slots=True)
class DomainConfig:
    """What the toolstack decides about a domain."""

    name: str
    memory_pages: int
    vcpus: int = 1
    weight: int = 256
    cap: int = 0
    uuid: str = "00000000-0000-0000-0000-000000000000"
    max_event_channels: int = DEFAULT_MAX_PORT
    """Highest port."""


@dataclass(slots=True)
class Watchdog:
    """One of the two domain watchdog timers: deadline in ns."""

    deadline: int = 0
    running: bool = False


@dataclass(slots=True)
class Assists:
    """Which vm_assist types are on."""

    enabled: set[int] = field(default_factory=set)

    def __contains__(self, kind: int) -> bool:
        return kind in self.enabled


class Domain:
    """One guest: memory, page tables, ports, grants, vCPUs, and why it ended.

    The machine builds it in stages; a handler that gets a `Domain` sees all attributes set.
    """

    def __init__(
        self,
        domid: int,
        config: DomainConfig,
        physical: PhysicalMemory,
        clock: Clock,
        shared_info: Mfn,
        width: int = 64,
    ) -> None:
        self.domid = domid
        self.width = width
        """Bits of the guest's registers and structures: 64, or 32 for a PAE kernel."""
        self.layout = SHARED_LAYOUT[width]
        """Where the fields of the pages shared with it are that depend on its width."""
        self.config = config
        self.name = config.name
        self.weight = config.weight
        self.cap = config.cap
        self.physical = physical
        self.ram = physical.ram
        self.clock = clock
        self.now = clock.now
        self.memory = GuestMemory(physical, width)
        self.shared_info = FramePage(physical, shared_info)
        self.assists = Assists()
        self.watchdogs = [Watchdog(), Watchdog()]
        self.max_pages = config.memory_pages
        self.e820: bytes | None = None
        """The memory map that the guest has set for itself; None: all its memory from 0 on."""
        self.tot_pages = 0
        self.shutdown_reason: int | None = None
        self.shutdown_code: int | None = None
        """What the guest wants its shutdown to be recorded as, whatever it will say then."""
        self.suspender: Vcpu | None = None
        """The vCPU whose call suspended the domain, and waits for its result."""
        self.crash_cause: str | None = None
        self.halted = False
        """It never shut down: its last vCPU went down, which Xen takes for a power-off."""
        self.dying = False
        self.vcpus = [Vcpu(self, n) for n in range(config.vcpus)]
        self.bits = TwoLevel(self.shared_info, config.vcpus, width)
        # Set by the machine while it builds the domain:
        self.tables: PageTables
        self.cache: L4Cache
        self.area: DomainArea
        self.engine: Engine
        self.events: EventChannels
        self.grants: GrantTable
        self.maptrack: Maptrack
        self.zero_frame: Mfn
        """Stands in for descriptor pages that the guest did not supply."""
        self.pristine: bytes
        """The engine's state block before any guest ran on it."""
        self.loaded: Vcpu | None = None
        """Whose registers the engine holds."""

    @property
    def alive(self) -> bool:
        """Neither shut down nor crashed."""
        return self.shutdown_reason is None

    @property
    def suspended(self) -> bool:
        """Shut down to be resumed: nothing of it runs, and nothing of it is lost."""
        return self.shutdown_reason == Shutdown.SUSPEND

    def shut_down(self, reason: int, cause: str | None = None) -> None:
        """Record why the domain ended; the first reason stays."""
        if self.shutdown_reason is None:
            self.shutdown_reason = reason
            self.crash_cause = cause

    def fill_hypercall_page(self, pfn: int) -> bool:
        """Write the hypercall stubs into the guest's page `pfn`; False if it is not writable."""
        frames = self.physical.frames
        mfn = self.frame_of(pfn)
        if mfn is None or not frames.get_writable(mfn):
            return False
        self.physical.write(mfn << 12, hypercall_page(self.width))
        frames.put_writable(mfn)
        return True

    def frame_of(self, pfn: int) -> Mfn | None:
        """The own frame that the M2P says is `pfn`."""
        frames = self.physical.frames
        own = frames.owned_by(self.domid)
        found = own[frames.m2p_np[own] == pfn]
        return Mfn(int(found[0])) if found.size else None

    @property
    def crashed(self) -> bool:
        """Whether it ended as a crash (its own or the hypervisor's verdict)."""
        return self.shutdown_reason == Shutdown.CRASH

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
