# SPDX-License-Identifier: GPL-2.0-only
"""Building domains: from an image and a configuration to a domain that waits to run.

A pipeline: plan the layout, allocate frames, write the image, give the domain its engine, connect console
and store, approve its page tables exactly as if the guest had asked, set the first registers. What `loader/`
knows of images is used here; who runs the domain is not known.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import ClassVar, Final

import numpy as np
import numpy.typing as npt

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.numbers import Assist
from pyhv.abi.shared import FIFO_PORTS, SI_VCPU_INFO, VCPU_INFO_SIZE, VI_UPCALL_MASK
from pyhv.address import PAGE_SIZE, MachineAddress, Mfn, Pfn
from pyhv.board import Board
from pyhv.cpu.engine import Engine, ExitSink
from pyhv.cpu.translated import BlockListener
from pyhv.devices.blkback import BlockBackend
from pyhv.devices.console_backend import ConsoleBackend
from pyhv.devices.console_log import ConsoleSink
from pyhv.devices.store_backend import StoreBackend
from pyhv.devices.toolstack import CONSOLE_PORT, STORE_PORT, ToolstackDomain
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.domain.mailbox import Mailbox
from pyhv.domain.vcpu import Vcpu, new_vcpu
from pyhv.errors import ConfigError, XenError
from pyhv.events.channels import EventChannels
from pyhv.events.delivery import TwoLevel
from pyhv.grants.maptrack import Maptrack
from pyhv.grants.status import GrantError
from pyhv.grants.table import GrantTable
from pyhv.loader.builder import FRAMES_BELOW_4G, BootState, build, check_cmdline, lower_l3
from pyhv.loader.image import KernelImage
from pyhv.loader.layout import Layout, plan
from pyhv.mmu.frames import NoFrames
from pyhv.mmu.memory import GuestMemory
from pyhv.mmu.pae import PaePageTables
from pyhv.mmu.paging import DomainArea, L4Cache
from pyhv.mmu.physical import FramePage, PhysicalMemory
from pyhv.mmu.tables import PageTables
from pyhv.resident import Resident, Residents
from pyhv.sched.base import SchedParameters, Scheduler
from pyhv.services import Services
from pyhv.traps.dispatch import Dispatcher
from pyhv.traps.startup import boot_registers, prepare_vcpu
from pyhv.undertaker import disconnect, drop_tables
from pyhv.xenstore.domu import DomU, remove_domu, write_domu

MAX_VCPUS: Final = 32
"""Of a domain: so many have a vcpu_info in shared_info."""
_GDT_GUEST_PAGES: Final = 14
RESERVED_PAGE: Final = 14
"""Page of the GDT window that holds Xen's descriptors."""

BlockNoter = Callable[[int, int, int, bool], None]
"""Is told of a block of code: domid, linear address, bytes, whether it is executed in user mode."""


class BuilderPages:
    """The builder's access to a new domain's memory, by PFN."""

    def __init__(self, physical: PhysicalMemory, p2m: npt.NDArray[np.uint64]) -> None:
        self.p2m = p2m
        self._physical = physical
        self._contiguous = bool((np.diff(p2m) == 1).all())

    def write(self, pfn: Pfn, offset: int, data: bytes) -> None:
        """Store bytes from an offset in a page on, across pages."""
        if self._contiguous:
            at = (int(self.p2m[pfn]) << 12) + offset
            self._physical.write_new(at, data)
            return
        view = memoryview(data)
        page = pfn + (offset >> 12)
        offset &= 0xFFF
        while view:
            step = min(len(view), PAGE_SIZE - offset)
            at = (int(self.p2m[page]) << 12) + offset
            self._physical.write_new(at, view[:step])
            view, page, offset = view[step:], page + 1, 0


class GrantPages:
    """Frames for a domain's grant table: shared with it, and given back when it goes to version 1."""

    NOT_STATE: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("_physical", "_domid", "_shared_info"), "the domain's builder"
    )

    def __init__(self, physical: PhysicalMemory, domid: int, shared_info: FramePage) -> None:
        self._physical = physical
        self._domid = domid
        self._shared_info = shared_info

    def allocate(self) -> FramePage | None:
        """A zeroed frame; None when memory is short."""
        try:
            mfn = self._physical.frames.allocate_shared(self._domid)
        except NoFrames:
            return None
        return FramePage(self._physical, mfn)

    def is_mapped(self, mfn: Mfn) -> bool:
        """Whether somebody besides the hypervisor refers to the frame."""
        return self._physical.frames.refs[mfn] != 1

    def drop(self, mfn: Mfn) -> None:
        """Give back a frame that is not mapped."""
        self._physical.frames.drop_shared(mfn)

    def page(self, mfn: Mfn) -> FramePage | None:
        """A frame that `allocate` has given out before; None if there is no such frame."""
        page, frames = self._shared_info.elsewhere(mfn), self._physical.frames
        return page if page and frames.owner[mfn] == self._domid and frames.xen_heap[mfn] else None


def check(config: DomainConfig, scheduler: Scheduler) -> None:
    """Raise ConfigError if no machine with such a scheduler can have such a domain."""
    if not 1 <= config.vcpus <= MAX_VCPUS:
        raise ConfigError(f"{config.name}: {config.vcpus} vCPUs; a domain can have 1 to {MAX_VCPUS}.")
    if not CONSOLE_PORT <= config.max_event_channels < FIFO_PORTS:
        raise ConfigError(
            f"{config.name}: {config.max_event_channels} event channels;"
            f" a domain can have {CONSOLE_PORT} to {FIFO_PORTS - 1}."
        )
    try:
        scheduler.check(SchedParameters(config.weight, config.cap))
    except ConfigError as refusal:
        raise ConfigError(f"{config.name}: {refusal}.") from refusal
    if config.uuid:
        try:
            uuid.UUID(config.uuid)
        except ValueError:
            raise ConfigError(f"{config.name}: {config.uuid!r} is not a UUID.") from None


def identifier(seed: int, domid: int) -> str:
    """The UUID of the domain `domid` of a machine whose chance comes from `seed`."""
    if seed >= 1 << 96:
        size = seed.bit_length() + 7 >> 3
        seed = int.from_bytes(hashlib.sha256(seed.to_bytes(size, "little")).digest()[:12], "little")
    return str(uuid.UUID(int=seed << 32 | domid))


@contextmanager
def _no_frames_is_for_people(name: str) -> Iterator[None]:
    """Memory that is not there refuses a configuration here, not a hypercall."""
    try:
        yield
    except NoFrames as refusal:
        raise ConfigError(f"{name}: {refusal.why}.") from refusal


class DomainBuilder:
    """One machine's builder. `sink_for` wraps what an engine shows its exits; `seed` makes identifiers."""

    NOT_STATE: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("_board", "_services", "_residents", "_dom0", "_sink_for", "_seed", "on_block"), "the machine's"
    )

    def __init__(
        self,
        board: Board,
        services: Services,
        residents: Residents,
        dom0: ToolstackDomain,
        *,
        sink_for: Callable[[Dispatcher], ExitSink],
        seed: int,
    ) -> None:
        self._board = board
        self._services = services
        self._residents = residents
        self._dom0 = dom0
        self._sink_for = sink_for
        self._seed = seed
        self.on_block: BlockNoter | None = None
        """Who is told of the code that domains execute which are built from now on."""

    def build(
        self, image: KernelImage, config: DomainConfig, ramdisk: bytes, cmdline: bytes, sink: ConsoleSink
    ) -> Resident:
        """Make a domain, and take it in among the residents, and its vCPUs into the scheduler, asleep.

        ConfigError, ImageError if it cannot be. Whatever is raised, nothing is left of it then: each step
        says how it is undone before the next one is made.
        """
        frames = self._board.frames
        check(config, self._services.scheduler)
        layout = plan(image, config.memory_pages, len(ramdisk) if ramdisk else None)
        check_cmdline(cmdline)
        if config.memory_pages > frames.free_count:
            raise ConfigError(
                f"{config.name}: {config.memory_pages >> 8} MiB do not fit into what the machine has left"
                f" ({frames.free_count >> 8} MiB)."
            )
        domid = self._residents.next_domid()
        config = replace(config, uuid=self.uuid_for(config, domid))
        with _no_frames_is_for_people(config.name), ExitStack() as undo:
            resident = self._allocate(domid, image, config, undo)
            domain = resident.domain
            p2m = self._memory(domain, image, layout, undo)
            for port in (STORE_PORT, CONSOLE_PORT):
                offered = domain.events.alloc_unbound(DOMID_SELF, 0)
                assert offered == port
            boot = build(
                BuilderPages(self._board.physical, p2m),
                image,
                layout,
                shared_info=MachineAddress(domain.shared_info.base),
                store_evtchn=STORE_PORT,
                console_evtchn=CONSOLE_PORT,
                ramdisk=ramdisk,
                cmdline=cmdline,
            )
            console = FramePage(self._board.physical, Mfn(int(p2m[boot.console_pfn])))
            store = FramePage(self._board.physical, Mfn(int(p2m[boot.xenstore_pfn])))
            domain.grants.reserve(0, 0, Mfn(console.mfn))
            domain.grants.reserve(1, 0, Mfn(store.mfn))
            self._introduce(domain, console, store, undo)
            undo.callback(self._dom0.detach, domid)
            self._dom0.attach(ConsoleBackend(self._dom0.link, domid, sink), console, CONSOLE_PORT)
            self._dom0.attach(StoreBackend(self._dom0.link, domid), store, STORE_PORT)
            for spec in config.disks:
                self._dom0.plug(BlockBackend(self._dom0.link, domid, spec))
            for net in config.nets:
                self._dom0.plug_net(domid, net)
            undo.callback(drop_tables, frames, resident)
            self._first_vcpu(domain, boot)
            self._schedule(domain, undo)
            undo.pop_all()
        return resident

    def rebuild(self, domid: int, width: int, config: DomainConfig, shared_info: Mfn) -> Resident:
        """A domain that has an engine and nothing else: memory, and what was saved of it, are yet to come.

        It is taken in among the residents, and holds no frame. ConfigError: no domain is such a one.
        """
        check(config, self._services.scheduler)
        with ExitStack() as undo:
            resident = self._resident(domid, width, config, shared_info, undo, allocate=False)
            self._schedule(resident.domain, undo)
            undo.pop_all()
        return resident

    def let_go(self, resident: Resident) -> None:
        """The machine is put back to when a domain was not there: what it holds is no longer its affair."""
        domain = resident.domain
        self._services.scheduler.remove_domain(domain.domid)
        self._residents.remove(resident)
        disconnect(self._board.physical, domain)
        domain.engine.close()

    def uuid_for(self, config: DomainConfig, domid: int) -> str:
        """The UUID that a domain with this configuration has. ConfigError: another one has it."""
        if not config.uuid:
            return identifier(self._seed, domid)
        chosen = str(uuid.UUID(config.uuid))
        for resident in self._residents:
            if resident.domain.config.uuid == chosen and resident.domain.domid != domid:
                raise ConfigError(f"{config.name}: {resident.domain.name} has the UUID {chosen}.")
        return chosen

    def _allocate(self, domid: int, image: KernelImage, config: DomainConfig, undo: ExitStack) -> Resident:
        """The domain with the frames that Xen keeps for it."""
        board, frames = self._board, self._board.frames
        shared_info = frames.allocate_shared(domid, below=FRAMES_BELOW_4G if image.width == 32 else None)
        undo.callback(frames.drop_shared, shared_info)
        resident = self._resident(domid, image.width, config, shared_info, undo, allocate=True)
        domain = resident.domain
        for number in range(config.vcpus):
            for page in range(_GDT_GUEST_PAGES):
                domain.area.map(number, page, board.zero_frame)
            domain.area.map(number, RESERVED_PAGE, board.xen_gdt[image.width])
            domain.area.map(number, RESERVED_PAGE + 1, board.zero_frame)
        if image.width == 32 and image.l3_anywhere:
            domain.assists.enabled.add(Assist.PAE_EXTENDED_CR3)
        for vcpu in range(MAX_VCPUS):
            domain.shared_info.write_u8(SI_VCPU_INFO + VCPU_INFO_SIZE * vcpu + VI_UPCALL_MASK, 1)
        return resident

    def _resident(
        self, domid: int, width: int, config: DomainConfig, mfn: Mfn, undo: ExitStack, *, allocate: bool
    ) -> Resident:
        """A domain, complete but for its memory; others can find it. `mfn` is its shared_info.

        If it is to `allocate`, it has frames for what the hypervisor keeps of it.
        """
        board, frames, physical = self._board, self._board.frames, self._board.physical
        dispatcher = Dispatcher(self._services)
        engine = Engine(
            physical.ram, self._sink_for(dispatcher), count_blocks=board.counts_blocks,
            hole=board.zero_frame << 12, trap_time=board.clock.traps_tsc, tuning=board.tuning,
            on_block=self._block_listener(domid, dispatcher),
        )  # fmt: skip
        undo.callback(engine.close)
        memory, shared_info, mailbox = GuestMemory(physical, width), FramePage(physical, mfn), Mailbox()
        area = DomainArea(physical.ram, frames, config.vcpus, board.zero_frame, allocate=allocate)
        if allocate:
            undo.callback(area.free, frames)
        cache = L4Cache(physical.ram, frames, board.m2p, area, allocate=allocate)
        if allocate:
            undo.callback(cache.free, frames)
        vcpus = [
            new_vcpu(domid, number, config, memory, shared_info, board.clock, engine)
            for number in range(config.vcpus)
        ]
        domain = Domain(
            domid=domid, width=width, config=config, clock=board.clock, physical=physical, ram=physical.ram,
            engine=engine, shared_info=shared_info, vcpus=vcpus, mailbox=mailbox, memory=memory, area=area,
            cache=cache,
            tables=(PageTables if width == 64 else PaePageTables)(domid, frames, physical, memory, cache),
            events=self._events(domid, width, config, vcpus, shared_info, mailbox),
            grants=self._grants(domid, config, shared_info, undo, allocate=allocate),
            maptrack=Maptrack(),
            max_pages=config.memory_pages,
        )  # fmt: skip
        undo.callback(domain.events.destroy)
        dispatcher.attach(domain)
        resident = Resident(domain, dispatcher)
        self._connect(resident, undo)
        return resident

    def _block_listener(self, domid: int, dispatcher: Dispatcher) -> BlockListener | None:
        note = self.on_block
        if note is None:
            return None

        def told(start: int, size: int) -> None:
            cpu = dispatcher.cpu  # CompatCpu learns only at the next exit which ring IRET went to
            kernel = cpu.vcpu.in_kernel if cpu.domain.width == 64 else cpu.engine.vmcb.cpl != 3
            note(domid, start, size, not kernel)

        return told

    def _events(
        self,
        domid: int,
        width: int,
        config: DomainConfig,
        vcpus: list[Vcpu],
        shared_info: FramePage,
        mailbox: Mailbox,
    ) -> EventChannels:
        """Event channels, none of them open."""
        return EventChannels(
            domid,
            config.vcpus,
            lookup=self._residents.channels,
            pending=TwoLevel(shared_info, [vcpu.info for vcpu in vcpus], width),
            wake=lambda number: self._services.wake(vcpus[number]),
            port_became_pending=lambda port: self._services.port_pending(vcpus, port),
            max_port=config.max_event_channels,
            width=width,
            drop_page=lambda page: self._board.frames.drop_writable(page.mfn),
            find_page=shared_info.elsewhere,
            post=mailbox.do,
        )

    def _grants(
        self, domid: int, config: DomainConfig, shared_info: FramePage, undo: ExitStack, *, allocate: bool
    ) -> GrantTable:
        """A grant table; if it is to `allocate`, with a frame, in which domain 0 may map the two rings."""
        frames = self._board.frames
        try:
            grants = GrantTable(
                domid, GrantPages(self._board.physical, domid, shared_info), allocate=allocate
            )
        except GrantError as refusal:
            raise ConfigError(f"{config.name}: {refusal.why}.") from refusal
        if allocate:
            undo.callback(lambda: [frames.drop_shared(mfn) for mfn in grants.destroy()])
        return grants

    def _connect(self, resident: Resident, undo: ExitStack) -> None:
        """Memory tells the domain what changes under it, and others can find it."""
        physical, domain = self._board.physical, resident.domain
        domain.tables.code.attach(domain.engine)
        physical.invalidators.append(domain.drop_code)
        physical.executors.append(domain.tables)
        undo.callback(disconnect, physical, domain)
        self._residents.add(resident)
        undo.callback(self._residents.remove, resident)

    def _schedule(self, domain: Domain, undo: ExitStack) -> None:
        """Make the domain and its vCPUs, asleep, known to the scheduler."""
        scheduler, config = self._services.scheduler, domain.config
        scheduler.add_domain(domain.domid, SchedParameters(config.weight, config.cap))
        undo.callback(scheduler.remove_domain, domain.domid)
        for vcpu in domain.vcpus:
            scheduler.add(vcpu)

    def _memory(
        self, domain: Domain, image: KernelImage, layout: Layout, undo: ExitStack
    ) -> npt.NDArray[np.uint64]:
        """The domain's own frames, by PFN."""
        frames, pages = self._board.frames, domain.config.memory_pages
        p2m = frames.allocate_many(domain.domid, pages).astype(np.uint64)
        undo.callback(frames.free_allocated, domain.domid)
        domain.tot_pages = pages
        if not lower_l3(p2m, image, layout):
            raise ConfigError(
                f"{domain.name}: a 32-bit kernel that wants its top page table below 4 GiB,"
                " where the machine has no frame left; create this guest first."
            )
        self._board.m2p.table.set_many(p2m.astype(np.int64), np.arange(pages, dtype=np.uint64))
        return p2m

    def _introduce(self, domain: Domain, console: FramePage, store: FramePage, undo: ExitStack) -> None:
        """Write the domain's nodes and tell the store of it."""
        undo.callback(remove_domu, self._dom0.store, domain.domid)
        write_domu(
            self._dom0.store,
            DomU(
                domid=domain.domid, name=domain.name, uuid=domain.config.uuid,
                memory_kib=domain.config.memory_pages * 4, vcpus=domain.config.vcpus,
                store_ring_ref=store.mfn, store_port=STORE_PORT,
                console_ring_ref=console.mfn, console_port=CONSOLE_PORT,
            ),
        )  # fmt: skip
        self._dom0.store.introduce(domain.domid)

    def _first_vcpu(self, domain: Domain, boot: BootState) -> None:
        """Have the page tables approved; vCPU 0's first registers, its base pointer, and the clocks."""
        try:
            domain.tables.pin(boot.top, domain.tables.top)
        except XenError as refusal:
            raise ConfigError(
                f"{domain.name}: the image's page tables are refused: {refusal.why}."
            ) from refusal
        first = domain.vcpus[0]
        domain.tables.take_table(boot.top, domain.tables.top)
        first.paging.kernel_l4 = boot.top
        registers = boot_registers(boot.entry, boot.start_info, boot.stack_top, domain.width)
        first.kernel_stack.ss, first.kernel_stack.sp = registers.ss.selector, boot.stack_top
        first.initial = registers
        first.initialised = True
        domain.tables.allow_top_anywhere(Assist.PAE_EXTENDED_CR3 in domain.assists)
        domain.set_wallclock(self._board.clock.wall_ns())
        prepare_vcpu(first)
        first.update_time()
        domain.tables.take_work()  # the builder's tables are no work that the guest has to pay for
