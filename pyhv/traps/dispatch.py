# SPDX-License-Identifier: GPL-2.0-only
"""From exit to handler: the one place where everything a guest does arrives.

    syscall in kernel mode ── hypercall table          syscall in user mode ── syscall callback
    #PF ── LDT window, merged tables, writable page tables, else the guest's own handler
    #GP ── privileged instruction, INT n, else the guest's own handler
    #UD ── forced emulation, else ...                  IN, OUT ── virtual IOPL and I/O bitmap
    and after each of them: pending events, TLB flush, and whether the vCPU must leave the processor.

A `GuestCrash` ends the domain and nothing else. Errors of a handler that are no `XenError` or `GuestCrash`
are bugs of pyhv and travel up to whoever runs the machine.
"""

from collections.abc import Callable
from typing import Final, Protocol

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Assist
from pyhv.abi.x86 import FLAG_RF, FLAG_TF, PF_I, PF_P, PF_RSVD, PF_U, PF_W, PTE_NX, PTE_RW, PTE_US, Vector
from pyhv.address import HYPERVISOR_VIRT_END, HYPERVISOR_VIRT_START, MASK32, MASK64, is_canonical
from pyhv.clock import Clock, VirtualClock
from pyhv.cpu import decode
from pyhv.cpu import vmcb as v
from pyhv.cpu.engine import Engine
from pyhv.cpu.exits import ExitKind, ExitRecord, classify
from pyhv.domain import Domain, Vcpu
from pyhv.errors import GuestCrash, XenError
from pyhv.hypercalls.context import Again, Call, Host
from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.hypercalls.table import compat_words, invoke, invoke_compat
from pyhv.mmu.frames import L1
from pyhv.mmu.memory import walk
from pyhv.mmu.paging import LDT_AREA, VCPU_AREA_SIZE, DomainArea
from pyhv.traps import gates, privileged, segments
from pyhv.traps.compat import CompatCpu
from pyhv.traps.debug import DR6_BS, Breakpoints
from pyhv.traps.guestcpu import GuestCpu
from pyhv.traps.longmode import LongModeCpu
from pyhv.traps.ports import Ports
from pyhv.traps.ptwr import emulate_store

_SELECTOR_FAULTS: Final = frozenset({Vector.TS, Vector.NP, Vector.SS, Vector.GP})
IRET: Final = 23
_VECTOR_80: Final = 0x80
_RECENT: Final = 16
_ARGUMENTS: Final = (v.RDI, v.RSI, v.RDX, v.R10, v.R8)
_COMPAT_ARGUMENTS: Final = (v.RBX, v.RCX, v.RDX, v.RSI, v.RDI, v.RBP)
_COMPAT_VECTOR: Final = 0x82
_INT_LENGTH: Final = 2


class Observer(Protocol):
    """Somebody who wants to see every exit."""

    def exit(self, record: ExitRecord) -> None:
        """Called before the exit is handled."""


class HostServices(Host, Protocol):
    """The machine, as the dispatcher uses it."""

    clock: Clock

    def crash(self, domain: Domain, cause: str) -> None:
        """The domain did something fatal."""


class Dispatcher:
    """The exit sink of one domain's engine."""

    def __init__(self, host: HostServices, domain: Domain) -> None:
        self.host = host
        self.domain = domain
        self.clock = host.clock
        self.counts = [0] * len(ExitKind)
        """Exits by kind."""
        self.hypercalls = [0] * 64
        """Hypercalls by number, those inside multicalls included."""
        self.unknown_hypercalls = 0
        self._recent: list[tuple[ExitKind, int, int]] = [(ExitKind.BUDGET, 0, 0)] * _RECENT
        self._exits = 0
        self.events_delivered = 0
        self.emulated = 0
        """Privileged instructions and page-table stores done for the guest."""
        self.observers: list[Observer] = []
        self.ports = Ports()
        self._raw = domain.ram.raw
        self._wide = domain.width == 64
        self._charge: Callable[[], bool] | None = (
            self.clock.charge_exit if isinstance(self.clock, VirtualClock) else None
        )

    def attach(self, engine: Engine) -> None:
        """Connect to the engine once it exists (it needs its sink first)."""
        self.engine = engine
        self.cpu: GuestCpu = (LongModeCpu if self._wide else CompatCpu)(self.domain, engine)
        self.breakpoints = Breakpoints(self.cpu)
        self._d, self._q = engine.vmcb.d, engine.vmcb.q
        services = ProcessorServices(self.cpu)
        self.calls = [
            Call(self.host, self.domain, vcpu, services, self.hypercalls) for vcpu in self.domain.vcpus
        ]
        self.call = self.calls[0]
        engine.instruction_length = self._instruction_length

    def load(self, vcpu: Vcpu) -> None:
        """Put a vCPU on the engine."""
        self.call = self.calls[vcpu.number]
        try:
            self.cpu.load(vcpu)
        except GuestCrash as crash:
            self._crash(crash.why)
        self.breakpoints.loaded()

    def _reload_segments(self) -> None:
        try:
            segments.reload(self.cpu)
        except GuestCrash as crash:
            self._crash(crash.why)

    def last_exits(self) -> list[tuple[ExitKind, int, int]]:
        """The latest exits as (kind, detail, RIP), newest last."""
        at = self._exits % _RECENT
        ordered = self._recent[at:] + self._recent[:at]
        return ordered[-min(self._exits, _RECENT) :] if self._exits else []

    # -- before and after ----------------------------------------------------------------------------------

    def _count(self, kind: ExitKind, detail: int) -> None:
        """Note an exit for statistics, crash reports and observers."""
        if not self._wide:
            self.cpu.note_mode()
        q = self._q
        self.counts[kind] += 1
        exits = self._exits
        self._recent[exits & _RECENT - 1] = (kind, detail, q[v.RIP])
        self._exits = exits + 1
        if not self.observers:
            return
        registers = (*q[0:16], q[v.RIP], self.engine.rflags())
        record = ExitRecord(
            self.clock.now(), self.domain.domid, self.cpu.vcpu.number, kind, detail, registers
        )
        for observer in self.observers:
            observer.exit(record)

    def finish(self) -> None:
        """The tail of every exit: events, TLB, and the way back or out."""
        cpu = self.cpu
        vcpu = cpu.vcpu
        if self.call.reschedule:
            self.engine.stop()
        else:
            raw, info = self._raw, vcpu.info
            if (raw[info] and not raw[info + 1]) or vcpu.nmi_pending:
                self._deliver_event()
        if cpu.rearrange:
            self._rearrange()
        tables = cpu.tables
        if tables.flush:
            self.engine.flush_tlb()
            tables.flushed()
        elif tables.flush_pages:
            for va in tables.flush_pages:
                self.engine.flush_page(va)
            tables.flush_pages.clear()
        if self._charge is not None and self._charge():
            self.engine.stop()

    def _deliver_event(self) -> None:
        self.events_delivered += 1
        try:
            self.cpu.deliver_event()
        except GuestCrash as crash:
            self._crash(crash.why)

    def _rearrange(self) -> None:
        """What has to be done only sometimes before the guest runs on: base pointers, breakpoints."""
        self.cpu.rearrange = False
        self.cpu.arrange()
        try:
            self.breakpoints.resume()
        except GuestCrash as crash:
            self._crash(crash.why)

    def enter(self) -> None:
        """Before a vCPU runs (on) after having been off the processor: segments, events and TLB."""
        if not self.domain.alive:  # `load` found out
            self.call.reschedule = True
            return
        vcpu = self.cpu.vcpu
        if vcpu.descriptors_changed:
            self._reload_segments()
        if vcpu.event_deliverable() or vcpu.nmi_pending:
            self._deliver_event()
        if self.cpu.rearrange:
            self.breakpoints.entering()
            self._rearrange()
        if self.domain.tables.flush or self.domain.tables.flush_pages:
            self.engine.flush_tlb()
            self.domain.tables.flushed()

    def _crash(self, cause: str) -> None:
        self.host.crash(self.domain, cause)
        self.call.reschedule = True
        self.engine.stop()

    # -- hypercalls and system calls -----------------------------------------------------------------------

    def _instruction_length(self, rip: int) -> int:
        """Length of the SYSCALL at `rip`; if its code cannot be read any more, the usual one."""
        width = 64 if self._d[v.HFLAGS] & v.HF_CS64 else 32
        return decode.length(privileged.fetch(self.cpu, rip), width) or 2

    def syscall(self, length: int) -> None:
        """SYSCALL: a hypercall from the kernel, a system call from user mode."""
        q = self._q
        if self.cpu.vcpu.in_kernel and self._wide:
            number = q[v.RAX] & MASK32
            self._count(ExitKind.HYPERCALL, number)
            try:
                self._hypercall(number, length)
            except GuestCrash as crash:
                self._crash(crash.why)
        else:
            self._count(ExitKind.SYSTEM_CALL, q[v.RAX])
            try:
                self.cpu.system_call(length)
            except GuestCrash as crash:
                self._crash(crash.why)
        self.finish()

    def _hypercall(self, number: int, length: int) -> None:
        """Perform hypercall `number` with the registers' arguments."""
        if number == IRET:
            self.hypercalls[IRET] += 1
            self.cpu.iret()
            return
        q = self._q
        q[v.R11] = self.engine.rflags()
        q[v.RIP] = q[v.RCX] = (q[v.RIP] + length) & MASK64
        entry = HYPERCALLS[number] if number < 64 else None
        if entry is None:
            self.unknown_hypercalls += 1
            q[v.RAX] = -Errno.ENOSYS & MASK64
            return
        self.hypercalls[number] += 1
        call = self.call
        call.left_context = False
        try:
            result = invoke(entry, call, (q[v.RDI], q[v.RSI], q[v.RDX], q[v.R10], q[v.R8]))
        except XenError as error:
            result = -error.errno
        except Again as again:
            self._continue_later(again, length)
            return
        if not call.left_context:
            q[v.RAX] = result & MASK64

    def _compat_hypercall(self, number: int) -> None:
        """INT 0x82 from ring 1: hypercall `number` of a 32-bit guest; RIP is past the instruction."""
        if number == IRET:
            self.hypercalls[IRET] += 1
            self.cpu.iret()
            return
        q = self._q
        entry = HYPERCALLS[number] if number < 64 else None
        if entry is None:
            self.unknown_hypercalls += 1
            q[v.RAX] = -Errno.ENOSYS & MASK32
            return
        self.hypercalls[number] += 1
        call = self.call
        call.left_context = False
        try:
            result = invoke_compat(entry, call, [q[register] for register in _COMPAT_ARGUMENTS])
        except XenError as error:
            result = -error.errno
        except Again as again:
            q[v.RIP] = (q[v.RIP] - _INT_LENGTH) & MASK32
            for register, value in zip(_COMPAT_ARGUMENTS, compat_words(entry, again.arguments), strict=False):
                q[register] = value
            self.engine.stop()
            return
        if not call.left_context:
            q[v.RAX] = result & MASK32

    def _continue_later(self, again: Again, length: int) -> None:
        """A long hypercall's turn is over: let the guest make it again with what is left of it."""
        q = self._q
        q[v.RIP] = (q[v.RIP] - length) & MASK64
        for register, value in zip(_ARGUMENTS, again.arguments, strict=False):
            q[register] = value
        self.engine.stop()

    def sysenter(self, _length: int) -> None:
        """SYSENTER: the sysenter callback or #GP."""
        self._guarded(ExitKind.SYSENTER, 0, self.cpu.system_enter)

    # -- exceptions ----------------------------------------------------------------------------------------

    def _guarded(self, kind: ExitKind, detail: int, handler: Callable[[], None]) -> None:
        self._count(kind, detail)
        try:
            handler()
        except GuestCrash as crash:
            self._crash(crash.why)
        self.finish()

    def exception(self, vector: int) -> None:
        """An exception or software interrupt."""
        kind = classify(vector, self._d[v.EXCEPTION_IS_INT] != 0)
        if vector == _COMPAT_VECTOR and not self._wide and self._d[v.HFLAGS] & v.HF_CPL == 1:
            self._count(ExitKind.HYPERCALL, self._q[v.RAX] & MASK32)
        else:
            self._count(kind, vector)
        try:
            if kind is ExitKind.GENERAL_PROTECTION:
                self._general_protection()
            elif kind is ExitKind.PAGE_FAULT:
                self._page_fault()
            elif kind is ExitKind.SOFTWARE_INTERRUPT:
                self._software_interrupt(vector)
            else:
                self._other_exception(vector)
        except GuestCrash as crash:
            self._crash(crash.why)
        self.finish()

    def _general_protection(self) -> None:
        cpu = self.cpu
        error = self._d[v.ERROR_CODE]
        if error and isinstance(cpu, CompatCpu):
            if gates.transfer(cpu, error):
                self._emulated()
        elif error:
            self._other_exception(Vector.GP)
        elif privileged.read_time(cpu) or privileged.emulate(cpu, privileged.fetch(cpu, cpu.linear_rip())):
            self._emulated()
        elif cpu.vcpu.in_kernel and cpu.is_merged:
            cpu.split_until_mode_change()  # ring 1 may be to blame (a far return): see what ring 3 says
        else:
            cpu.raise_exception(privileged.refused_as(cpu), 0)

    def _emulated(self) -> None:
        """An instruction was done for the guest: it is counted, and traps if the guest steps."""
        self.emulated += 1
        self._q[v.EFLAGS] &= ~FLAG_RF
        if self._q[v.EFLAGS] & FLAG_TF:
            self.cpu.vcpu.debug[6] |= DR6_BS
            self.cpu.raise_exception(Vector.DB)

    def _other_exception(self, vector: int) -> None:
        cpu = self.cpu
        error = self._d[v.ERROR_CODE]
        if error and vector in _SELECTOR_FAULTS and cpu.vcpu.in_kernel and cpu.is_merged:
            # A kernel in ring 1 may not load ring-3 selectors into SS; in ring 3, where it belongs, it may.
            cpu.split_until_mode_change()
            return
        if vector == Vector.NM:
            cpu.vmcb.task_switched = False
        elif vector == Vector.DB:
            hits = self.breakpoints.trap()
            if not hits:
                return
            cpu.vcpu.debug[6] |= hits
        cpu.raise_exception(vector, error & 0xFFFF)

    def _page_fault(self) -> None:
        cpu, q = self.cpu, self._q
        vcpu = cpu.vcpu
        address, error = q[v.CR + 2], self._d[v.ERROR_CODE] & (PF_P | PF_W | PF_RSVD | PF_I)
        if not self._wide:
            self._compat_page_fault(address, error)
            return
        if vcpu.in_kernel:
            if cpu.is_merged and cpu.vmcb.cpl == 3:
                cpu.vmcb.cpl = 1  # the kernel returned to itself with a ring-3 selector: put it back
                return
            if error & (PF_P | PF_W | PF_RSVD) == PF_P | PF_W and self._writable_page_table(address):
                self._emulated()
                return
        elif cpu.is_merged and not address < HYPERVISOR_VIRT_START:
            found = walk(self.domain.ram, vcpu.user_l4, address) if address >= HYPERVISOR_VIRT_END else None
            if found is not None and self._allowed(found.flags, error):
                cpu.split_until_mode_change()
                return
            if address >= HYPERVISOR_VIRT_END:
                error = error & ~PF_P | (PF_P if found is not None else 0)
        if HYPERVISOR_VIRT_START <= address < HYPERVISOR_VIRT_END and self._ldt_fault(address, error):
            return
        cpu.raise_page_fault(address, error if vcpu.in_kernel else error | PF_U)

    def _compat_page_fault(self, address: int, error: int) -> None:
        """#PF of a 32-bit guest: its ring 2 reaches what ring 1 does, but to Xen it is user mode."""
        cpu = self.cpu
        in_kernel = cpu.vcpu.in_kernel
        if (
            in_kernel
            and error & (PF_P | PF_W | PF_RSVD) == PF_P | PF_W
            and self._writable_page_table(address)
        ):
            self._emulated()
            return
        if address > MASK32 and self._ldt_fault(address, error):
            return
        cpu.raise_page_fault(address & MASK32, error if in_kernel else error | PF_U)

    @staticmethod
    def _allowed(flags: int, error: int) -> bool:
        """Whether a user access of the kind in `error` is permitted by a walk's `flags`."""
        if not flags & PTE_US or error & PF_RSVD:
            return False
        if error & PF_W and not flags & PTE_RW:
            return False
        return not (error & PF_I and flags & PTE_NX)

    def _ldt_fault(self, address: int, error: int) -> bool:
        """A descriptor access to the LDT window: bring the page in, or blame the guest's LDT."""
        vcpu = self.cpu.vcpu
        offset = address - DomainArea.address(vcpu.number) - LDT_AREA
        if not 0 <= offset < VCPU_AREA_SIZE - LDT_AREA or offset >= vcpu.ldt_entries * 8:
            return False
        if error & PF_P:
            return False  # the page is there: no descriptor access, but the guest where it may not go
        if self.cpu.ldt_page(offset >> 12) is not None:
            return True
        target = (vcpu.ldt_base + offset) & (MASK64 if self._wide else MASK32)
        if not is_canonical(target):
            self.cpu.raise_exception(Vector.GP, offset & 0xFFF8 | 4)
        else:
            self.cpu.raise_page_fault(target, error | (0 if vcpu.in_kernel else PF_U))
        return True

    def _writable_page_table(self, address: int) -> bool:
        domain = self.domain
        if Assist.WRITABLE_PAGETABLES not in domain.assists.enabled:
            return False
        found = walk(domain.ram, self.cpu.vcpu.kernel_l4, address, domain.width)
        if found is None or found.flags & PTE_RW:
            return False
        frames = self.host.frames
        mfn = found.address >> 12
        if frames.type[mfn] != L1 or not frames.type_count[mfn] or frames.owner[mfn] != domain.domid:
            return False
        width = 64 if self._d[v.HFLAGS] & v.HF_CS64 else 32
        store = decode.store(privileged.fetch(self.cpu, self.cpu.linear_rip()), width)
        if store is None:
            return False
        return emulate_store(self.cpu, domain.tables, store, address, found.address & ~7)

    def _software_interrupt(self, vector: int) -> None:
        """INT n: by the DPL in the guest's trap table; INT3 and INTO need none."""
        cpu, q = self.cpu, self._q
        flags = cpu.vcpu.traps[vector][1]
        if vector in (Vector.BP, Vector.OF):
            cpu.raise_exception(vector)
            return
        if vector == _COMPAT_VECTOR and not self._wide and cpu.vmcb.cpl == 1:
            self._compat_hypercall(q[v.RAX] & MASK32)
            return
        dpl = flags & 3
        if vector == _VECTOR_80:
            allowed = cpu.has_handler(vector)
        elif vector == _COMPAT_VECTOR and not self._wide:
            allowed = False
        else:
            allowed = dpl == 3 or (dpl >= 1 and cpu.vcpu.in_kernel)
        if allowed:
            cpu.enter_trap(vector)
        else:
            q[v.RIP] = (q[v.RIP] - _INT_LENGTH) & MASK64
            cpu.raise_exception(Vector.GP, vector << 3 | 2)

    def invalid_opcode(self) -> None:
        """#UD: Xen's prefix, or the guest's own."""
        self._guarded(ExitKind.INVALID_OPCODE, Vector.UD, self._invalid_opcode)

    def _invalid_opcode(self) -> None:
        if privileged.forced(self.cpu):
            self.emulated += 1
        elif privileged.icebp(self.cpu):
            self.cpu.raise_exception(Vector.DB)
        else:
            self.cpu.raise_exception(privileged.undefined_as(self.cpu))

    # -- instructions intercepted inside a block -------------------------------------------------------------

    def cpuid(self) -> bool:
        """CPUID without prefix: the same policy."""
        self._count(ExitKind.CPUID, self._q[v.RAX])
        if privileged.cpuid_faults(self.cpu):
            return False
        privileged.answer_cpuid(self.cpu)
        return True

    def port_read(self, port: int, size: int) -> int | None:
        """IN."""
        self._count(ExitKind.PORT_IO, port)
        if not privileged.io_permitted(self.cpu, port, size):
            return None
        if self.cpu.stepping:
            self.breakpoints.port(port, size)
        return self.ports.read(port, size, self.clock.now())

    def port_write(self, port: int, size: int, value: int) -> bool:
        """OUT."""
        self._count(ExitKind.PORT_IO, port)
        if not privileged.io_permitted(self.cpu, port, size):
            return False
        if self.cpu.stepping:
            self.breakpoints.port(port, size)
        self.ports.write(port, size, value)
        return True

    def port_fault(self) -> None:
        """A refused IN, OUT or CPUID: #GP(0) at the instruction."""
        self._guarded(ExitKind.GENERAL_PROTECTION, Vector.GP, lambda: self.cpu.raise_exception(Vector.GP, 0))


class ProcessorServices:
    """`hypercalls.context.Processor` over a `GuestCpu`."""

    def __init__(self, cpu: GuestCpu) -> None:
        self._cpu = cpu
        self.iret = cpu.iret
        self.new_baseptr = cpu.new_baseptr
        self.new_base_pointers = cpu.new_base_pointers
        self.drop_ldt = cpu.drop_ldt
        self.load_ldtr = cpu.load_ldtr

    def set_fs_base(self, base: int) -> None:
        """Set the hidden FS base."""
        self._cpu.vmcb.q[v.SEG_BASE[v.FS]] = base

    def set_gs_base(self, base: int) -> None:
        """Set the active GS base."""
        self._cpu.vmcb.q[v.SEG_BASE[v.GS]] = base

    def load_user_gs(self, selector: int) -> None:
        """Load a selector into user mode's GS: its base, and the selector itself."""
        segments.load_user_gs(self._cpu, selector | 3 if selector > 3 else selector)

    def breakpoints_changed(self) -> None:
        """Debug registers were written: look at them at the end of this exit."""
        self._cpu.rearrange = True

    def set_task_switched(self, on: bool) -> None:
        """Set or clear CR0.TS."""
        self._cpu.vmcb.task_switched = on
