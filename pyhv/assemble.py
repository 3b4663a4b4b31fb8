# SPDX-License-Identifier: GPL-2.0-only
"""Building domains and taking them apart: the domain builder, and the undertaker.

Building is a pipeline: plan the layout, allocate frames, write the image, approve its page tables exactly as
if the guest had asked, connect console and store, set the first registers. Taking apart drops every
reference that the domain holds, in the order in which they depend on each other; what remains afterwards are
only frames that another domain still has mapped through a grant.
"""

import uuid
from collections.abc import Collection
from typing import TYPE_CHECKING, Protocol

import numpy as np
import numpy.typing as npt

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.numbers import Assist
from pyhv.abi.shared import FIFO_PORTS, SI_VCPU_INFO, VCPU_INFO_SIZE, VI_UPCALL_MASK
from pyhv.address import PAGE_SIZE, MachineAddress, Mfn, Pfn
from pyhv.cpu.engine import Engine
from pyhv.devices.console import ConsoleRing
from pyhv.devices.xenstore_ring import XenstoreRing
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.errors import ConfigError, XenError
from pyhv.events.channels import EventChannels
from pyhv.grants.maptrack import Maptrack
from pyhv.grants.table import GrantTable
from pyhv.loader.builder import FRAMES_BELOW_4G, BootState, build, check_cmdline, lower_l3
from pyhv.loader.image import KernelImage
from pyhv.loader.layout import plan
from pyhv.mmu import stepwise
from pyhv.mmu.memory import FramePage, PhysicalMemory
from pyhv.mmu.pae import PaePageTables
from pyhv.mmu.paging import DomainArea, L4Cache
from pyhv.mmu.segdesc import drop_descriptor_page
from pyhv.mmu.tables import PageTables
from pyhv.traps.dispatch import Dispatcher
from pyhv.traps.startup import boot_registers, first_state
from pyhv.xenstore.domu import DomU, remove_domu, write_domu
from pyhv.xenstore.wire import Connection

if TYPE_CHECKING:
    from pyhv.machine import Machine

STORE_PORT, CONSOLE_PORT = 1, 2
MOST_PRINTED = 4096
"""Bytes of console output from which on they do not wait for the end of the guest's turn."""
_STORE_NS = 1000
"""What a request to the store, or an event that it causes, costs its domain in virtual time."""
_GDT_GUEST_PAGES = 14
RESERVED_PAGE = 14
"""Page of the GDT window that holds Xen's descriptors."""


class ConsoleSink(Protocol):
    """Where a domain's console output goes."""

    def output(self, data: bytes) -> None:
        """Bytes that the guest wrote."""


class BuilderPages:
    """The builder's access to a new domain's memory, by PFN."""

    def __init__(self, physical: PhysicalMemory, p2m: npt.NDArray[np.uint64]) -> None:
        self.p2m = p2m
        self._ram = physical.ram.raw
        self._contiguous = bool((np.diff(p2m) == 1).all())

    def write(self, pfn: Pfn, offset: int, data: bytes) -> None:
        """Store bytes from an offset in a page on, across pages."""
        if self._contiguous:
            at = (int(self.p2m[pfn]) << 12) + offset
            self._ram[at : at + len(data)] = data
            return
        view = memoryview(data)
        page = pfn + (offset >> 12)
        offset &= 0xFFF
        while view:
            step = min(len(view), PAGE_SIZE - offset)
            at = (int(self.p2m[page]) << 12) + offset
            self._ram[at : at + step] = view[:step]
            view, page, offset = view[step:], page + 1, 0


class GrantPages:
    """Frames for a domain's grant table: shared with it, and given back when it goes to version 1."""

    def __init__(self, physical: PhysicalMemory, domain: Domain) -> None:
        self._physical = physical
        self._domain = domain

    def allocate(self) -> FramePage | None:
        """A zeroed frame; None when memory is short."""
        try:
            mfn = self._physical.frames.allocate_shared(self._domain.domid)
        except ConfigError:
            return None
        return FramePage(self._physical, mfn)

    def mapped(self, mfn: Mfn) -> bool:
        """Say whether somebody besides the hypervisor refers to the frame."""
        return self._physical.frames.refs[mfn] != 1

    def drop(self, mfn: Mfn) -> None:
        """Give back a frame that is not mapped."""
        self._physical.frames.drop_shared(mfn)


class Wiring:
    """The back ends of one domain: its console and its connection to the store."""

    def __init__(self, machine: "Machine", domain: Domain, sink: ConsoleSink) -> None:
        self._machine = machine
        self.sink = sink
        self.domain = domain
        self.console: ConsoleRing
        self.store: XenstoreRing
        self.connection: Connection
        self._printed = bytearray()
        """Console output of this turn that has not gone to the sink yet."""
        self.rings: list[Mfn] = []
        """Frames that the back ends write: they hold a writable reference, as a mapping would."""

    def connect(self, console: FramePage, store: FramePage) -> None:
        """Attach to the rings and to the guest's two ports."""
        for page in (console, store):
            if not self._machine.frames.take_writable(page.mfn):
                raise ConfigError(f"{self.domain.name}: the image wants its rings' pages for something else.")
            self.rings.append(page.mfn)
        dom0 = self._machine.dom0
        domid = self.domain.domid
        ports: dict[str, int] = {}
        self.console = ConsoleRing(console, lambda: dom0.send(ports["console"]))
        self.connection = Connection(self._machine.store, domid)
        self.store = XenstoreRing(store, self.connection, lambda: dom0.send(ports["store"]))
        ports["console"] = dom0.bind_callback(domid, CONSOLE_PORT, self.console_event)
        self._console_port = ports["console"]
        ports["store"] = dom0.bind_callback(domid, STORE_PORT, self.store_event)

    def console_event(self) -> None:
        """The guest rang: take what it wrote. It goes on when the turn ends, or much has come together."""
        data = self.console.drain()
        if data:
            self._printed += data
            if len(self._printed) >= MOST_PRINTED:
                self.flush()

    def flush(self) -> None:
        """Pass on what the guest has printed."""
        if self._printed:
            data = bytes(self._printed)
            self._printed.clear()
            self.sink.output(data)

    def settle(self, polled: Collection[int] | None = None) -> None:
        """The guest has stopped running: what it printed goes on, and it hears that it has been read.

        Not if it polls some ports and the console's is not among them: it does not wait for us, and would be
        woken for nothing.
        """
        self.flush()
        if polled is None or self._machine.dom0.status(DOMID_SELF, self._console_port).remote_port in polled:
            self.console.settle()

    def store_event(self) -> None:
        """The guest rang: serve its requests, and let it pay for them and for the events that they cause."""
        store = self._machine.store
        before = store.work
        self.store.service()
        self._machine.clock.work((store.work - before) * _STORE_NS)


def build_domain(
    machine: "Machine",
    image: KernelImage,
    config: DomainConfig,
    ramdisk: bytes,
    cmdline: bytes,
    sink: ConsoleSink,
) -> tuple[Domain, Dispatcher, Wiring]:
    """Create a paused domain from an image. ConfigError if it cannot be, and then nothing is left of it."""
    layout = plan(image, config.memory_pages, len(ramdisk) if ramdisk else None)
    check_cmdline(cmdline)
    frames, physical = machine.frames, machine.physical
    domid = machine.next_domid()
    if not 1 <= config.vcpus <= 32:
        raise ConfigError(f"{config.name}: {config.vcpus} vCPUs; a domain can have 1 to 32.")
    if not CONSOLE_PORT <= config.max_event_channels < FIFO_PORTS:
        raise ConfigError(
            f"{config.name}: {config.max_event_channels} event channels; a domain can have {CONSOLE_PORT} to"
            f" {FIFO_PORTS - 1}."
        )
    if config.memory_pages > frames.free_count:
        raise ConfigError(
            f"{config.name}: {config.memory_pages >> 8} MiB do not fit into what the machine has left"
            f" ({frames.free_count >> 8} MiB)."
        )
    shared_info = frames.allocate_shared(domid, below=FRAMES_BELOW_4G if image.width == 32 else None)
    config.uuid = str(uuid.UUID(int=machine.seed << 32 | domid))
    domain = Domain(domid, config, physical, machine.clock, shared_info, image.width)
    domain.zero_frame = machine.zero_frame
    domain.area = DomainArea(physical.ram, frames, config.vcpus)
    domain.cache = L4Cache(physical.ram, frames, machine.m2p, domain.area)
    tables = PageTables if image.width == 64 else PaePageTables
    domain.tables = tables(domid, frames, physical, domain.memory, domain.cache)
    p2m = frames.allocate_many(domid, config.memory_pages).astype(np.uint64)
    if not lower_l3(p2m, image, layout):
        _release_frames(machine, domain)
        raise ConfigError(
            f"{config.name}: a 32-bit kernel that wants its top page table below 4 GiB, where the machine has"
            " no frame left; create this guest first."
        )
    if image.width == 32 and image.l3_anywhere:
        domain.assists.enabled.add(Assist.PAE_EXTENDED_CR3)
    domain.tot_pages = config.memory_pages
    assert frames.m2p is not None
    frames.m2p.set_many(p2m.astype(np.int64), np.arange(config.memory_pages, dtype=np.uint64))
    for vcpu in range(32):
        domain.shared_info.write_u8(SI_VCPU_INFO + VCPU_INFO_SIZE * vcpu + VI_UPCALL_MASK, 1)
    _connect_events(machine, domain)
    boot = build(
        BuilderPages(physical, p2m),
        image,
        layout,
        shared_info=MachineAddress(shared_info << 12),
        store_evtchn=STORE_PORT,
        console_evtchn=CONSOLE_PORT,
        ramdisk=ramdisk,
        cmdline=cmdline,
    )
    console = FramePage(physical, int(p2m[boot.console_pfn]))
    store = FramePage(physical, int(p2m[boot.xenstore_pfn]))
    domain.grants.setup(1)
    domain.grants.reserve(0, 0, Mfn(console.mfn))
    domain.grants.reserve(1, 0, Mfn(store.mfn))
    wiring = Wiring(machine, domain, sink)
    machine.domains[domid] = domain
    _introduce(machine, domain, console, store)
    wiring.connect(console, store)
    dispatcher = _power_on(machine, domain)
    try:
        domain.tables.pin(boot.top, domain.tables.top)
    except XenError as refusal:
        _abandon(machine, domain, wiring)
        raise ConfigError(f"{config.name}: the image's page tables are refused: {refusal.why}.") from refusal
    _first_vcpu(machine, domain, boot)
    domain.tables.take_work()  # the builder's tables are no work that the guest has to pay for
    return domain, dispatcher, wiring


def _abandon(machine: "Machine", domain: Domain, wiring: Wiring) -> None:
    """Undo a domain that never ran."""
    del machine.domains[domain.domid]
    domain.events.destroy()
    remove_domu(machine.store, domain.domid)
    _release_memory(machine, domain, wiring)
    domain.engine.close()


def _connect_events(machine: "Machine", domain: Domain) -> None:
    """Event channels, the two toolstack ports, and an empty grant table."""
    domid = domain.domid
    domain.events = EventChannels(
        domid,
        domain.config.vcpus,
        lookup=machine.channels,
        pending=domain.bits,
        wake=lambda number: machine.wake(domain.vcpus[number]),
        port_became_pending=lambda port: machine.port_pending(domain, port),
        max_port=domain.config.max_event_channels,
        width=domain.width,
        drop_page=lambda page: machine.frames.drop_writable(page.mfn),
    )
    domain.grants = GrantTable(domid, GrantPages(machine.physical, domain))
    domain.maptrack = Maptrack()
    for port in (STORE_PORT, CONSOLE_PORT):
        assert domain.events.alloc_unbound(DOMID_SELF, 0) == port


def _introduce(machine: "Machine", domain: Domain, console: FramePage, store: FramePage) -> None:
    """Write the domain's nodes and tell the store of it."""
    write_domu(
        machine.store,
        DomU(
            domid=domain.domid, name=domain.name, uuid=domain.config.uuid,
            memory_kib=domain.config.memory_pages * 4, vcpus=domain.config.vcpus, store_ring_ref=store.mfn,
            store_port=STORE_PORT, console_ring_ref=console.mfn, console_port=CONSOLE_PORT,
        ),
    )  # fmt: skip
    machine.store.introduce(domain.domid)


def _power_on(machine: "Machine", domain: Domain) -> Dispatcher:
    """Give the domain its engine, and each vCPU its descriptor windows."""
    dispatcher = Dispatcher(machine, domain)
    engine = Engine(
        machine.physical.ram, machine.sink_for(dispatcher), count_blocks=machine.counts_blocks,
        hole=machine.zero_frame << 12, trap_time=machine.clock.traps_tsc, tuning=machine.tuning,
    )  # fmt: skip
    domain.engine = engine
    domain.tables.code.attach(engine)
    machine.physical.invalidators.append(engine.invalidate_code)
    machine.physical.executors.append(domain.tables)
    dispatcher.attach(engine)
    for vcpu in domain.vcpus:
        area = domain.area
        for page in range(_GDT_GUEST_PAGES):
            area.map(vcpu.number, page, machine.zero_frame)
        area.map(vcpu.number, RESERVED_PAGE, machine.xen_gdt[domain.width])
        area.map(vcpu.number, RESERVED_PAGE + 1, machine.zero_frame)
    domain.pristine = bytes(engine.vmcb.raw)
    return dispatcher


def _first_vcpu(machine: "Machine", domain: Domain, boot: BootState) -> None:
    """Load vCPU 0's first registers, its base pointer, and the clocks."""
    first = domain.vcpus[0]
    domain.tables.take_table(boot.top, domain.tables.top)
    first.kernel_l4 = boot.top
    registers = boot_registers(boot.entry, boot.start_info, boot.stack_top, domain.width)
    first.kernel_ss, first.kernel_sp = registers["ss"], boot.stack_top
    first.initial_registers = registers
    first.initialised = True
    if isinstance(domain.tables, PaePageTables):
        domain.tables.l3_anywhere = Assist.PAE_EXTENDED_CR3 in domain.assists
    domain.set_wallclock(machine.clock.wall_ns())
    prepare_vcpu(domain, 0)
    first.update_time()


def prepare_vcpu(domain: Domain, number: int) -> None:
    """Make the initial registers of a vCPU its saved state."""
    vcpu = domain.vcpus[number]
    vcpu.registers = first_state(domain.pristine, vcpu.initial_registers, domain.width)


def take_apart(machine: "Machine", domain: Domain, dispatcher: Dispatcher) -> None:
    """Drop everything that a domain that has ended still holds."""
    frames = machine.frames
    domain.dying = True
    domain.events.destroy()
    _end_mappings(machine, domain)
    remove_domu(machine.store, domain.domid)
    cpu = dispatcher.cpu
    for vcpu in domain.vcpus:
        cpu.vcpu = vcpu
        cpu.drop_ldt()
        for mfn in vcpu.gdt_frames:
            drop_descriptor_page(domain.tables, mfn)
        vcpu.gdt_frames = []
        for table in (vcpu.kernel_l4, vcpu.user_l4):
            if table:
                domain.tables.drop_table(table)
        vcpu.kernel_l4 = vcpu.user_l4 = Mfn(0)
        if vcpu.info_moved:
            frames.drop_writable(vcpu.info_page.mfn)
    stepwise.drop_ahead(domain.tables)
    stepwise.settle(domain.tables)
    for pinned in np.flatnonzero((frames.owner_np == domain.domid) & (frames.pinned_np == 1)).tolist():
        domain.tables.unpin(pinned)
    _release_memory(machine, domain, machine.wirings[domain.domid])


def _release_memory(machine: "Machine", domain: Domain, wiring: Wiring) -> None:
    """Give back all frames of a domain whose page tables are gone."""
    frames = machine.frames
    for mfn in wiring.rings:
        frames.drop_writable(mfn)
    machine.physical.invalidators.remove(domain.engine.invalidate_code)
    machine.physical.executors.remove(domain.tables)
    for mfn in domain.grants.destroy():
        frames.drop_shared(mfn)
    _release_frames(machine, domain)


def _release_frames(machine: "Machine", domain: Domain) -> None:
    """Give back the domain's memory, its shared_info, and what the hypervisor keeps for its tables."""
    frames = machine.frames
    frames.free_allocated(domain.domid)
    frames.drop_shared(domain.shared_info.mfn)
    domain.cache.free(frames)
    domain.area.free(frames)


def _end_mappings(machine: "Machine", domain: Domain) -> None:
    """Undo the accounting of grants that the domain had mapped; its page tables drop the frames."""
    for handle, mapping in list(domain.maptrack.all()):
        granter = machine.any_domain(mapping.granter)
        halves = mapping.halves
        if mapping.device:
            if mapping.readonly:
                machine.frames.drop(mapping.frame)
            else:
                machine.frames.drop_writable(mapping.frame)
        if granter is not None:
            granter.grants.drop(mapping.ref, mapping.readonly, halves)
        domain.maptrack.end(handle, halves)
