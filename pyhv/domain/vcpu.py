# SPDX-License-Identifier: GPL-2.0-only
"""A virtual processor: what Xen keeps of it beyond its registers.

That is where its traps and callbacks lead, which stack and which page tables it enters the kernel on, its
timers and its runstate.
"""

from contextlib import suppress

from pyhv.abi.numbers import VcpuState
from pyhv.address import Mfn
from pyhv.clock import Clock
from pyhv.cpu.context import Context
from pyhv.cpu.registers import Registers
from pyhv.domain.callbacks import CallbackEntry
from pyhv.domain.config import DomainConfig
from pyhv.errors import XenError
from pyhv.events.timers import PeriodicTimer
from pyhv.events.vcpu_info import VcpuInfo
from pyhv.mmu.descriptors import Segment
from pyhv.mmu.memory import GuestMemory
from pyhv.sched.runstate import Runstate
from pyhv.shared_page import SharedPage

NO_TRAP = (0, 0)


class Vcpu:
    """One virtual processor."""

    def __init__(
        self,
        domid: int,
        number: int,
        config: DomainConfig,
        memory: GuestMemory,
        shared_info: SharedPage,
        clock: Clock,
    ) -> None:
        self.domid = domid
        self.number = number
        self.id = (domid, number)
        self.width = memory.width
        """Bits of the guest's registers and structures."""
        self.config = config
        self.memory = memory
        self.clock = clock
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
        self.info = VcpuInfo(shared_info, number, self.width)
        self.runstate = Runstate(VcpuState.OFFLINE, clock.now())
        self.runstate_area = 0
        self.time_area = 0
        self.periodic = PeriodicTimer(clock.now())
        self.blocked = False
        self.polling: frozenset[int] | None = None
        self.nmi_pending = False
        self.in_nmi = False
        """An NMI has been delivered and no iret hypercall made since: the next one waits."""
        self.mcg_status = 0
        self.mci_ctl2 = [0, 0]
        """Registers of the virtual machine check architecture that hold what the guest writes."""
        self.context: Context
        """Its registers; from the moment on that the domain has an engine."""
        self.initial: Registers | None = None
        """What VCPUOP_initialise or the builder wants the registers to be, until the first run: only then are
        the selectors loaded from the guest's descriptors."""
        self.time_stamp = -1

    def forget_segments(self) -> None:
        """Descriptors may have changed."""
        self.segments.clear()
        self.return_segments.clear()
        self.descriptors_changed = True

    @property
    def weight(self) -> int:
        """The domain's scheduling weight."""
        return self.config.weight

    @property
    def cap(self) -> int:
        """The domain's cap in percent of one processor."""
        return self.config.cap

    @property
    def name(self) -> str:
        """d1v0 and the like."""
        return f"d{self.domid}v{self.number}"

    @property
    def nmi_deliverable(self) -> bool:
        """An NMI is pending, and the handler of none is running."""
        return self.nmi_pending and not self.in_nmi

    def update_time(self) -> None:
        """Refresh the vCPU's pvclock record, and the copy that it may have asked for."""
        clock, rate = self.clock, self.clock.tsc_rate
        tsc, now, stable = clock.time_record()
        self.time_stamp = now
        record = self.info.write_time(tsc, now, rate.mul, rate.shift, stable=stable)
        if self.time_area:
            with suppress(XenError):  # an area that is not mapped now is written another time
                self.memory.write(self.time_area, record)
