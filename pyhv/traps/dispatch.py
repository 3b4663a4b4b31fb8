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

from collections.abc import Callable, Mapping
from typing import ClassVar, Final, Protocol

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import NR_HYPERCALLS, Hypercall
from pyhv.abi.shared import VI_UPCALL_MASK, VI_UPCALL_PENDING
from pyhv.abi.x86 import FLAG_RF, FLAG_TF, FLAT_RING3_CS64, FLAT_RING3_DS, Vector
from pyhv.address import MASK32, MASK64
from pyhv.clock import Clock, VirtualClock
from pyhv.cpu import decode
from pyhv.cpu import vmcb as v
from pyhv.cpu.exithooks import DirectSink
from pyhv.cpu.exits import ExitKind, ExitRecord, classify
from pyhv.cpu.words import new_words64, words32, words64
from pyhv.domain.domain import Domain
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import GuestCrash, XenError
from pyhv.hypercalls.context import Again, Call, Host
from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.traps import gates, privileged, segments
from pyhv.traps.compat import CompatCpu
from pyhv.traps.debug import DR6_BS, Breakpoints
from pyhv.traps.guestcpu import GuestCpu
from pyhv.traps.longmode import LongModeCpu
from pyhv.traps.pagefault import compat_page_fault, page_fault
from pyhv.traps.ports import Ports
from pyhv.traps.services import ProcessorServices

_SELECTOR_FAULTS: Final = frozenset({Vector.TS, Vector.NP, Vector.SS, Vector.GP})
IRET: Final = int(Hypercall.IRET)
_HYPERCALL: Final = int(ExitKind.HYPERCALL)
_SYSTEM_CALL: Final = int(ExitKind.SYSTEM_CALL)
_PAGE_FAULT: Final = int(ExitKind.PAGE_FAULT)
_PF, _GP = int(Vector.PF), int(Vector.GP)
"""As plain numbers, since members of an enum take long to find."""
_DEBUG: Final = 1
_VECTOR_80: Final = 0x80
_RECENT: Final = 16
"""So many of the latest exits are remembered; a power of two."""
_NOTE: Final = 3
"""Words of each: kind, detail and RIP."""
_LOOKS_AT_CLOCK: Final = 8
"""In real time every so many exits the turn's end is looked for; a power of two."""
_ARGUMENTS: Final = (v.RDI, v.RSI, v.RDX, v.R10, v.R8)
_COMPAT_ARGUMENTS: Final = (v.RBX, v.RCX, v.RDX, v.RSI, v.RDI, v.RBP)
_COMPAT_VECTOR: Final = 0x82
_INT_LENGTH: Final = 2
_CS, _SS = v.SEG_SEL[v.CS], v.SEG_SEL[v.SS]
_PENDING: Final = VI_UPCALL_PENDING
_MASK: Final = VI_UPCALL_MASK


class Observer(Protocol):
    """Somebody who wants to see every exit."""

    def exit(self, record: ExitRecord) -> None:
        """Called before the exit is handled."""


class HostServices(Host, Protocol):
    """The machine, as the dispatcher uses it."""

    clock: Clock

    def crash(self, domain: Domain, cause: str) -> None:
        """The domain did something fatal."""


class Dispatcher(DirectSink):
    """The exit sink of one domain's engine."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("host", "domain", "clock", "engine", "cpu", "ports", "breakpoints", "calls", "forms"), "rebuilt"
        ),
        **dict.fromkeys(
            (
                "_wide",
                "_mask",
                "_argument_registers",
                "_charge",
                "_overdue",
                "_page_fault",
            ),
            "follows from the domain's width and the clock's kind",
        ),
        **dict.fromkeys(("_d", "_q", "_views"), "views of the engine's registers"),
        **dict.fromkeys(("_counted", "_made", "_noted"), "views of the words they count"),
        **dict.fromkeys(
            ("counts", "hypercalls", "unknown_hypercalls", "events_delivered", "emulated"),
            "said as `Resident.counts`",
        ),
        **dict.fromkeys(("_recent", "_exits"), "for crash reports, which begin anew"),
        "call": "whose vCPU is loaded",
        "observers": "the machine's",
        "_posted": "the mailbox's, which is empty between turns",
    }

    def __init__(self, host: HostServices) -> None:
        self.host = host
        self.clock = host.clock
        self.counts = new_words64(len(ExitKind))
        """Exits by kind."""
        self.hypercalls = new_words64(NR_HYPERCALLS)
        """Hypercalls by number, those inside multicalls included."""
        self._recent = new_words64(_RECENT * _NOTE)
        self._counted, self._made = words64(self.counts), words64(self.hypercalls)
        self._noted = words64(self._recent)
        self.unknown_hypercalls = 0
        self._exits = 0
        self.events_delivered = 0
        self.emulated = 0
        """Privileged instructions and page-table stores done for the guest."""
        self.observers: list[Observer] = []
        self._charge: Callable[[], bool] | None = (
            self.clock.charge_exit if isinstance(self.clock, VirtualClock) else None
        )
        self._overdue = None if isinstance(self.clock, VirtualClock) else self.clock.work

    def attach(self, domain: Domain) -> None:
        """Serve a domain, whose engine needed this sink before it could be complete."""
        engine = domain.engine
        self.domain, self.engine = domain, engine
        self._posted = domain.mailbox.posted
        self.ports = Ports(domain.port_latches)
        self._wide = domain.width == 64
        self._mask = MASK64 if self._wide else MASK32
        self.forms = [None if entry is None else entry.form(domain.width) for entry in HYPERCALLS]
        self._argument_registers = _ARGUMENTS if self._wide else _COMPAT_ARGUMENTS
        self.cpu: GuestCpu = (LongModeCpu if self._wide else CompatCpu)(domain, engine)
        self.breakpoints = Breakpoints(self.cpu)
        self._page_fault = page_fault if self._wide else compat_page_fault
        self._d, self._q = words32(engine.vmcb.d), words64(engine.vmcb.q)
        self._views = engine.vmcb.q, engine.vmcb.d
        services = ProcessorServices(self.cpu)
        self.calls = [
            Call(self.host, domain, vcpu, services, self.hypercalls, self.forms) for vcpu in domain.vcpus
        ]
        self.call = self.calls[0]
        engine.instruction_length = self._instruction_length

    def begin_anew(self) -> None:
        """The domain was put back to another moment: of what was under way here, nothing is any more."""
        self._exits = 0
        for call in self.calls:
            call.reschedule = call.left_context = False
        self.cpu.begin_anew()

    def load(self, vcpu: Vcpu) -> None:
        """Put a vCPU on the engine."""
        self.call = self.calls[vcpu.number]
        try:
            self.cpu.load(vcpu)
        except GuestCrash as crash:
            self._crash(crash.why)
        self.breakpoints.loaded()

    def go_on(self, vcpu: Vcpu, *, deliverable: bool) -> None:
        """Before a vCPU runs on in a turn that was paused, and may have begun on another engine.

        `deliverable`: an event could have been delivered when it paused, and was not, since no exit had come.
        """
        is_elsewhere = not vcpu.context.loaded
        if is_elsewhere:
            self.call = self.calls[vcpu.number]
            self.cpu.load(vcpu)
            self.breakpoints.loaded(same_turn=True)
            self.engine.flush_tlb()
            self.domain.tables.flushed()
        if self.cpu.rearrange and (is_elsewhere or self.breakpoints.wait_for_entry):
            self.breakpoints.entering()
            self._rearrange()
        if vcpu.info.deliverable and not deliverable:  # it came from outside meanwhile
            self.enter()

    def end_turn(self) -> None:
        """The vCPU leaves the processor when its present exit is done."""
        self.call.reschedule = True

    def _reload_segments(self) -> None:
        try:
            segments.reload(self.cpu)
        except GuestCrash as crash:
            self._crash(crash.why)

    def last_exits(self) -> list[tuple[ExitKind, int, int]]:
        """The latest exits as (kind, detail, RIP), newest last."""
        newest = range(self._exits - min(self._exits, _RECENT), self._exits)
        notes = (self._recent[at : at + _NOTE] for at in (number % _RECENT * _NOTE for number in newest))
        return [(ExitKind(kind), detail, rip) for kind, detail, rip in notes]

    # -- before and after ----------------------------------------------------------------------------------

    def _count(self, kind: int, detail: int) -> None:
        """Note an exit for statistics, crash reports and observers."""
        if not self._wide:
            self.cpu.note_mode()
        q = self._q
        self._counted[kind] += 1
        exits, noted = self._exits, self._noted
        at = (exits & _RECENT - 1) * _NOTE
        noted[at], noted[at + 1], noted[at + 2] = kind, detail, q[v.RIP]
        self._exits = exits + 1
        if self._overdue is not None and not exits & _LOOKS_AT_CLOCK - 1 and self._overdue(0):
            # The ticker's thread may never get the interpreter from a guest that makes one short exit after
            # the other: whoever waits for it is woken at the end of each, and always comes too late.
            self.engine.stop()
        if not self.observers:
            return
        registers = (*self._views[0][0:16], q[v.RIP], self.engine.rflags())
        record = ExitRecord(
            self.clock.now(), self.domain.domid, self.call.vcpu.number, ExitKind(kind), detail, registers
        )
        for observer in self.observers:
            observer.exit(record)

    def finish(self) -> None:
        """The tail of every exit: what others have posted, events, TLB, and the way back or out."""
        if self._posted:
            self.domain.mailbox.drain()
        cpu = self.cpu
        vcpu = cpu.vcpu
        if self.call.reschedule:
            self.engine.stop()
        else:
            flags = vcpu.info.flags
            if (flags[_PENDING] and not flags[_MASK]) or (vcpu.nmi.pending and not vcpu.nmi.in_handler):
                self._deliver_event()
        if cpu.rearrange:
            self._rearrange()
        elif cpu.rebase:
            cpu.rebase = False
            cpu.arrange()
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
        """What has to be done only sometimes before the guest runs on: breakpoints, after base pointers."""
        self.cpu.rearrange = self.cpu.rebase = False
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
        if vcpu.descriptors.changed:
            self._reload_segments()
        if vcpu.info.deliverable or vcpu.nmi.deliverable:
            self._deliver_event()
        if self.cpu.rearrange:
            self.breakpoints.entering()
            self._rearrange()
        elif self.cpu.rebase:
            self.cpu.rebase = False
            self.cpu.arrange()
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
        """SYSCALL: a hypercall from the kernel, a system call from user mode, undefined in 32-bit code."""
        q = self._q
        if self.cpu.vcpu.in_kernel and self._wide and self._d[v.HFLAGS] & v.HF_CS64:
            number = q[v.RAX] & MASK32
            self._count(_HYPERCALL, number)
            try:
                self._hypercall(number, length)
            except GuestCrash as crash:
                self._crash(crash.why)
        else:
            self._count(_SYSTEM_CALL, q[v.RAX])
            try:
                self.cpu.system_call(length)
            except GuestCrash as crash:
                self._crash(crash.why)
        self.finish()

    def _hypercall(self, number: int, length: int) -> None:
        """A 64-bit kernel's hypercall, by a SYSCALL of `length` bytes, after which it is in flat segments."""
        q = self._q
        after = (q[v.RIP] + length) & MASK64
        if number == IRET:
            self._made[IRET] += 1
            q[v.RCX] = after
            self.cpu.iret()
            return
        q[v.R11] = self.cpu.vmcb.rflags()
        q[v.RIP] = q[v.RCX] = after
        d = self._d
        if d[_CS] != FLAT_RING3_CS64 or d[_SS] != FLAT_RING3_DS:
            self.cpu.make_flat()
        self._perform(number, length)

    def _compat_hypercall(self, number: int) -> None:
        """A 32-bit kernel's hypercall, by INT 0x82 from ring 1; RIP is past the instruction."""
        if number == IRET:
            self._made[IRET] += 1
            self.cpu.iret()
            return
        self._perform(number, _INT_LENGTH)

    def _perform(self, number: int, length: int) -> None:
        """Call the handler of a hypercall with the registers' arguments. RIP is `length` bytes too far if it
        is to be made again, with what is left of it, because the turn is over."""
        q, call = self._q, self.call
        form = self.forms[number] if number < NR_HYPERCALLS else None
        if form is None:
            self.unknown_hypercalls += 1
            q[v.RAX] = -Errno.ENOSYS & self._mask
            return
        self._made[number] += 1
        call.left_context = False
        try:
            if self._wide:
                result = form.invoke(call, q[v.RDI], q[v.RSI], q[v.RDX], q[v.R10], q[v.R8], q[v.R9])
            else:
                result = form.invoke(call, q[v.RBX], q[v.RCX], q[v.RDX], q[v.RSI], q[v.RDI], q[v.RBP])
        except XenError as error:
            result = -error.errno
        except Again as again:
            q[v.RIP] = (q[v.RIP] - length) & self._mask
            for register, value in zip(self._argument_registers, form.words(again.arguments), strict=False):
                self._views[0][register] = value
            self.engine.stop()
            return
        if not call.left_context:
            q[v.RAX] = result & self._mask

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
        if vector == _DEBUG and self.breakpoints.claim():
            return
        d = self._d
        is_software = d[v.EXCEPTION_IS_INT] != 0
        if vector == _COMPAT_VECTOR and not self._wide and d[v.HFLAGS] & v.HF_CPL == 1:
            self._count(_HYPERCALL, self._q[v.RAX] & MASK32)
        elif vector == _PF and not is_software:
            self._count(_PAGE_FAULT, vector)
        else:
            self._count(classify(vector, is_software), vector)
        try:
            if is_software:
                self._software_interrupt(vector)
            elif vector == _PF:
                if self._page_fault(self.cpu):
                    self._emulated()
            elif vector == _GP:
                self._general_protection()
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
        elif privileged.emulate(cpu, privileged.fetch(cpu, cpu.linear_rip())):
            self._emulated()
        elif cpu.vcpu.in_kernel and cpu.merged:
            cpu.split_until_mode_change()  # ring 1 may be to blame (a far return): see what ring 3 says
        else:
            cpu.raise_exception(privileged.refused_as(cpu), 0)

    def _emulated(self) -> None:
        """An instruction was done for the guest: it is counted, and traps if the guest steps."""
        self.emulated += 1
        flags = self._q[v.EFLAGS]
        if flags & FLAG_RF:
            self._q[v.EFLAGS] = flags & ~FLAG_RF
        if flags & FLAG_TF:
            self.cpu.vcpu.debug.registers[6] |= DR6_BS
            self.cpu.raise_exception(Vector.DB)

    def _other_exception(self, vector: int) -> None:
        cpu = self.cpu
        error = self._d[v.ERROR_CODE]
        if error and vector in _SELECTOR_FAULTS and cpu.vcpu.in_kernel and cpu.merged:
            # A kernel in ring 1 may not load ring-3 selectors into SS; in ring 3, where it belongs, it may.
            cpu.split_until_mode_change()
            return
        if vector == Vector.NM:
            cpu.vmcb.task_switched = False
        elif vector == Vector.DB:
            hits = self.breakpoints.trap()
            if not hits:
                return
            cpu.vcpu.debug.registers[6] |= hits
        cpu.raise_exception(vector, error & 0xFFFF)

    def _software_interrupt(self, vector: int) -> None:
        """INT n: by the DPL in the guest's trap table; INT3 and INTO need none."""
        cpu, q = self.cpu, self._q
        flags = cpu.vcpu.traps.handlers[vector][1]
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
            self._emulated()
        elif privileged.icebp(self.cpu):
            self.cpu.raise_exception(Vector.DB)
        else:
            self.cpu.raise_exception(privileged.undefined_as(self.cpu))

    # -- instructions intercepted inside a block -------------------------------------------------------------

    def _count_inside(self, kind: ExitKind, detail: int) -> None:
        """Note and charge an exit that has no tail: the block ends first, then the turn if it is over."""
        self._count(kind, detail)
        if self._charge is not None:
            self._charge()

    def cpuid(self) -> bool:
        """CPUID without prefix: the same policy."""
        self._count_inside(ExitKind.CPUID, self._q[v.RAX])
        if privileged.cpuid_faults(self.cpu):
            return False
        privileged.answer_cpuid(self.cpu)
        return True

    def clock_read(self, aux: bool) -> None:
        """RDTSC and RDTSCP, unless the guest's own CR4.TSD makes them fault."""
        self._count(ExitKind.CLOCK_READ, 0)
        self.emulated += 1
        tsc, q = self.clock.tsc(), self._q
        q[v.RAX], q[v.RDX] = tsc & MASK32, tsc >> 32 & MASK32
        if aux:
            q[v.RCX] = self.cpu.vcpu.msrs.tsc_aux

    def port_read(self, port: int, size: int) -> int | None:
        """IN."""
        self._count_inside(ExitKind.PORT_IO, port)
        if not privileged.may_use_port(self.cpu, port, size):
            return None
        if self.cpu.stepping:
            self.breakpoints.port(port, size)
        return self.ports.read(port, size, self.clock.now())

    def port_write(self, port: int, size: int, value: int) -> bool:
        """OUT."""
        self._count_inside(ExitKind.PORT_IO, port)
        if not privileged.may_use_port(self.cpu, port, size):
            return False
        if self.cpu.stepping:
            self.breakpoints.port(port, size)
        self.ports.write(port, size, value)
        return True

    def port_fault(self) -> None:
        """A refused IN, OUT or CPUID: #GP(0) at the instruction."""
        self._guarded(ExitKind.GENERAL_PROTECTION, Vector.GP, lambda: self.cpu.raise_exception(Vector.GP, 0))
