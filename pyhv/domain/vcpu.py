# SPDX-License-Identifier: GPL-2.0-only
"""A virtual processor: its registers, and what Xen keeps of it beyond them.

It is made of parts, each with its own page: where its traps and callbacks lead (`callbacks.py`), which page
tables and descriptors it uses (`paging.py`, `descriptors.py`), its debug registers (`debug.py`), its ports
(`ports.py`), its `vcpu_info` (`events/vcpu_info.py`), its runstate and its timer. All of it is state
(`state.py`) but for what says otherwise.
"""

from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Final

from pyhv.abi.layout import u32, u64
from pyhv.abi.numbers import VcpuState
from pyhv.abi.structs import VcpuRunstateInfo
from pyhv.clock import Clock
from pyhv.cpu.context import Context
from pyhv.cpu.engine import Engine
from pyhv.cpu.registers import Registers
from pyhv.domain.callbacks import Callbacks, KernelStack, TrapTable
from pyhv.domain.config import DomainConfig
from pyhv.domain.debug import DebugState
from pyhv.domain.descriptors import Descriptors
from pyhv.domain.fields import NmiFields, VcpuFields
from pyhv.domain.paging import PagingMode
from pyhv.domain.ports import PortAccess
from pyhv.errors import XenError
from pyhv.events.timers import PeriodicTimer
from pyhv.events.vcpu_info import VcpuInfo
from pyhv.mmu.memory import GuestMemory
from pyhv.mmu.physical import FramePage
from pyhv.sched.runstate import Runstate
from pyhv.state import given

_RESET_CR4: Final = 0x660


@dataclass(slots=True)
class Nmi(NmiFields):
    """The one virtual NMI that a vCPU can have pending."""

    pending: bool = False
    in_handler: bool = False
    """One has been delivered and no iret hypercall made since: the next one waits."""

    @property
    def deliverable(self) -> bool:
        """It is pending, and the handler of none is running."""
        return self.pending and not self.in_handler


@dataclass(slots=True)
class Msrs:
    """Model-specific registers that hold what the guest writes (`traps/msr.py`)."""

    tsc_aux: u32 = 0
    cpuid_faulting: bool = False
    """CPUID of user mode is #GP."""
    mcg_status: u64 = 0
    mci_ctl2: Annotated[list[u64], 2] = field(default_factory=lambda: [0, 0])
    """Of the virtual machine check architecture, as `mcg_status`."""


@dataclass(slots=True)
class Areas:
    """Guest addresses at which it wants to find its runstate and its time, 0: nowhere."""

    runstate: u64 = 0
    time: u64 = 0
    written: Annotated[int, range(-1, 1 << 62)] = -1
    """When the time was last told, here and in vcpu_info (ns); -1: never."""


@dataclass(slots=True, eq=False)
class Vcpu(VcpuFields):
    """One virtual processor."""

    info: VcpuInfo = field()  # `= field()`, because the base has a descriptor of that name
    runstate: Runstate
    periodic: PeriodicTimer
    context: Context
    """Its registers."""
    domid: int = given("its domain's")
    number: int = given("its place in the domain")
    config: DomainConfig = given("its domain's")
    memory: GuestMemory = given("its domain's")
    clock: Clock = given("the machine's")
    initialised: bool = False
    online: bool = False
    in_kernel: bool = True
    """The guest's mode, kernel or user; the hardware CPL is another matter (`mmu/paging.py`)."""
    other_gs_base: u64 = 0
    """GS base of the mode that is not running."""
    cr4: u64 = _RESET_CR4
    paging: PagingMode = field(default_factory=PagingMode)
    traps: TrapTable = field(default_factory=TrapTable)
    callbacks: Callbacks = field(default_factory=Callbacks)
    kernel_stack: KernelStack = field(default_factory=KernelStack)
    ports: PortAccess = field(default_factory=PortAccess)
    debug: DebugState = field(default_factory=DebugState)
    descriptors: Descriptors = field(default_factory=Descriptors)
    msrs: Msrs = field(default_factory=Msrs)
    areas: Areas = field(default_factory=Areas)
    nmi: Nmi = field(default_factory=Nmi)
    blocked: bool = False
    polling: frozenset[int] | None = None
    initial: Registers | None = None
    """What VCPUOP_initialise or the builder wants the registers to be, until the first run: only then are
    the selectors loaded from the guest's descriptors."""

    @property
    def id(self) -> tuple[int, int]:
        """(domid, vcpu_id): how schedulers name it."""
        return self.domid, self.number

    @property
    def width(self) -> int:
        """Bits of the guest's registers and structures."""
        return self.memory.width

    @property
    def name(self) -> str:
        """d1v0 and the like."""
        return f"d{self.domid}v{self.number}"

    def update_time(self) -> None:
        """Refresh the vCPU's pvclock record, and the copy that it may have asked for."""
        clock, rate = self.clock, self.clock.tsc_rate
        tsc, now, stable = clock.time_record()
        self.areas.written = now
        record = self.info.write_time(tsc, now, rate.mul, rate.shift, stable=stable)
        if self.areas.time:
            with suppress(XenError):  # an area that is not mapped now is written another time
                self.memory.write(self.areas.time, record)

    def runstate_info(self, now: int) -> VcpuRunstateInfo:
        """What the vCPU does, since when, and how long it has done what, at system time `now` (ns)."""
        record = self.runstate.snapshot(now)
        running, runnable, blocked, offline = record.time
        return VcpuRunstateInfo(
            state=record.state, state_entry_time=record.state_entry_time,
            time0=running, time1=runnable, time2=blocked, time3=offline,
        )  # fmt: skip

    def update_runstate(self, now: int) -> None:
        """Write the runstate to where the guest may want it; not mapped now, it is written another time."""
        if self.areas.runstate:
            with suppress(XenError):
                self.memory.write(self.areas.runstate, self.runstate_info(now).pack(self.width))


def new_vcpu(
    domid: int,
    number: int,
    config: DomainConfig,
    memory: GuestMemory,
    shared_info: FramePage,
    clock: Clock,
    engine: Engine,
) -> Vcpu:
    """A vCPU that is down, and whose `vcpu_info` is in its slot of shared_info."""
    now = clock.now()
    return Vcpu(
        VcpuInfo(shared_info, number, memory.width),
        Runstate(VcpuState.OFFLINE, now),
        PeriodicTimer(now),
        Context(engine),
        domid=domid,
        number=number,
        config=config,
        memory=memory,
        clock=clock,
    )
