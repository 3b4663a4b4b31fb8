# SPDX-License-Identifier: GPL-2.0-only
"""One emulated processor: runs guest code until something happens and hands that to its `ExitSink`.

The engine owns a Unicorn instance over the machine's RAM. It walks the guest's own page tables, keeps
privilege levels, and comes back at every exception, hypercall and intercepted instruction *inside* a
callback; most exits are handled there and the guest goes on without leaving `run`. No memory hook is
installed, unless a guest has set data breakpoints (it would slow every load and store sevenfold); what a
guest may reach is decided by page tables that `mmu/` has validated.

State is read and written through `vmcb` (see `vmcb.py`). An exception raised by the sink stops the engine
and is raised again by `run`, because C code cannot carry it.

This module knows registers and callbacks. It knows no hypercall, no domain and no time.
"""

import ctypes
import functools
from collections.abc import Callable
from typing import Final, Protocol

from pyhv.abi.x86 import PTE_MFN_MASK, PTE_P
from pyhv.address import MASK32, MASK64, PAGE_MASK, PAGE_SHIFT
from pyhv.cpu import binding, fpu
from pyhv.cpu import vmcb as v
from pyhv.cpu.changed import EngineTuning, TunedBlock
from pyhv.cpu.clockwork import BlockBudget, PythonBlockBudget, make_budget
from pyhv.cpu.debughooks import HookedDebugUnit, native_hook
from pyhv.cpu.debugunit import DebugUnit, TunedDebugUnit
from pyhv.cpu.exithooks import ExitHooks, direct_syscall, for_exceptions, for_syscall
from pyhv.cpu.guard import guard
from pyhv.cpu.lookout import Lookout
from pyhv.cpu.probe import find_live_state, find_no_exit_request, processor_address
from pyhv.cpu.ram import Ram
from pyhv.cpu.screen import Screen, execute_one_block
from pyhv.cpu.stops import Seat, posted_stops
from pyhv.cpu.translated import BlockListener, invalidator, tell_of_blocks
from pyhv.cpu.vmcb import Vmcb
from pyhv.cpu.watch import StoreWatch
from pyhv.errors import GuestCrash

_NOWHERE: Final = 0xDEAD_0000_0000_0000
_UC_PROT_ALL: Final = 7
_MOST_CODE_PAGES: Final = 4096
_TRANSLATIONS: Final = 28 << 20
"""Bytes for translated code. When they are used up, all of it is dropped and what runs is translated anew.
Without a bound (the library's own is a GiB) a Linux that has booted keeps 44 MiB and needs few of them."""
_LONGEST_PREFIX: Final = 13
_CR4_TSD: Final = 4
_EFLAGS: Final = ctypes.c_int(binding.REG_EFLAGS)
_DEBUG, _PAGE_FAULT = 1, 14
_TLB_FLUSH: Final = ctypes.c_uint(binding.CTL_TLB_FLUSH)
_fast_reg_read, _fast_ctl = binding.fast_reg_read, binding.fast_ctl
_fast_flush_page = binding.fast_tlb_flush_page


def can_stop_at_any_time() -> bool:
    """Whether this library's engines may be stopped from another thread at any moment, exactly."""
    return find_no_exit_request() is not None and posted_stops() is not None


class ExitSink(Protocol):
    """Who handles exits. RIP in the VMCB is at the instruction for faults, past it for INT n."""

    def exception(self, vector: int) -> None:
        """An exception or software interrupt; error code, CR2 and kind are in the VMCB."""

    def invalid_opcode(self) -> None:
        """#UD, which includes Xen's forced-emulation prefix."""

    def syscall(self, length: int) -> None:
        """SYSCALL of `length` bytes; RIP still at it. The sink sets RIP to where the guest goes on."""

    def sysenter(self, length: int) -> None:
        """SYSENTER; as `syscall`."""

    def cpuid(self) -> bool:
        """CPUID executed natively: the sink writes RAX..RDX, RIP moves on by itself; False to refuse it."""

    def clock_read(self, aux: bool) -> None:
        """RDTSC or (`aux`) RDTSCP that exits: the sink writes RAX, RDX and, for RDTSCP, RCX; RIP moves on."""

    def port_read(self, port: int, size: int) -> int | None:
        """IN: the value, or None if the guest may not (it gets #GP through `port_fault`)."""

    def port_write(self, port: int, size: int, value: int) -> bool:
        """OUT: False if the guest may not."""

    def port_fault(self) -> None:
        """A refused IN, OUT or CPUID: RIP and registers are as before the instruction."""


class Engine:
    """One processor over `ram`, delivering exits to `sink`.

    `count_blocks` installs the byte budget (virtual time); without it the engine runs until stopped from
    outside. `trap_time` makes RDTSC an exit: `ExitSink.clock_read`, or, where stops cannot be posted, #GP(0)
    at every level but ring 0. `hole` is an empty page table (machine address) used to make the processor
    harmless while a refused port access drains. With `tuning` the emulator's hot paths are pyhv's
    (`tuning/`), where they can be. Not `screened`: nobody looks for refused instructions, as there are none.
    `on_block` is told of each block of code that is begun for the first time (`translated.py`).
    """

    def __init__(
        self,
        ram: Ram,
        sink: ExitSink,
        *,
        count_blocks: bool,
        hole: int,
        trap_time: bool = True,
        native: bool = True,
        tuning: EngineTuning | None = None,
        screened: bool = True,
        on_block: BlockListener | None = None,
    ) -> None:
        self.sink = sink
        self.holder: object = None
        """Whose registers are in the state block (`context.py`); None: nobody's."""
        self.asked_to_stop = False
        """Whether `stop` was called since somebody cleared this."""
        self._hole = hole
        self._answers_time = trap_time and posted_stops() is not None
        """Whether RDTSC is hooked: half as dear as a fault, but lost to a stop that it sees (`stops.py`)."""
        self._traps_time = trap_time and not self._answers_time
        self._failure: BaseException | None = None
        self._screen: Screen | None = None
        """Who looks for refused instructions in what is translated; None if the engine does so itself."""
        self._flags_cell = ctypes.c_uint64()
        self._flags_pointer = ctypes.byref(self._flags_cell)
        self._drained: bytes | None = None
        self.instruction_length: Callable[[int], int] = lambda _rip: 2
        """Length of the SYSCALL or SYSENTER at an address that the tables do not map any more."""
        self._memory_hook: int | None = None
        self._memory_callback: object = None
        self._code_pages: dict[int, int] = {}
        """Machine addresses of pages that SYSCALL was executed in, by page number; forgotten with the TLB."""
        handle = ctypes.c_void_p()
        binding.check(
            binding.uc_open(binding.ARCH_X86, binding.MODE_64, ctypes.byref(handle)), "creating an engine"
        )
        self.handle: int = handle.value or 0
        self._handle = handle
        # The model nearest to the CPUID policy: RDTSCP, but no RDRAND, which would make runs differ.
        self._control(binding.CTL_CPU_MODEL, ctypes.c_int(binding.CPU_SANDY_BRIDGE))
        self._control(binding.CTL_TCG_BUFFER_SIZE, ctypes.c_uint32(_TRANSLATIONS))
        self._control(binding.CTL_TLB_TYPE, ctypes.c_int(binding.TLB_CPU))
        self._control(binding.CTL_USE_EXITS, ctypes.c_int(1))
        if tuning is None or not tuning.active or on_block is not None:
            execute_one_block(self.handle)
        self._set_up_long_mode()
        binding.check(
            binding.uc_mem_map_ptr(self.handle, 0, ram.size, _UC_PROT_ALL, ram.address), "mapping RAM"
        )
        self._ram = ram
        self.vmcb = Vmcb(find_live_state(self.handle))
        self.vmcb.compute_flags_with(self._lazy_flags, binding.REG_READ_ADDRESS, self.handle)
        self._state = ctypes.addressof(ctypes.c_char.from_buffer(self.vmcb.raw))
        guard()
        self._processor = ctypes.c_void_p(processor_address(self.handle))
        self._seat = self._enter_seat()
        looks_once = self._suppress_exit_requests()
        self.async_stop_safe = looks_once and self._seat is not None
        self.budget: BlockBudget | PythonBlockBudget | None = None
        self._install_hooks(count_blocks, native)
        self._invalidate = invalidator()
        self.block: TunedBlock | None = None
        """What the changed paths of this engine know of it; None if it is as the library made it."""
        if tuning is not None and looks_once:
            counter = (0, 0) if self.budget is None else self.budget.addresses
            self.block = tuning.attach(self.handle, ram, counter)
        if self.block is not None and "syscall_entry" in self.block:
            self.block["syscall_entry"], self.block["syscall_data"], entered = direct_syscall(
                self._exit_hooks
            )
            self._callbacks.append(entered)
        self.debug_unit: DebugUnit | None = None
        if self.block is None and screened:
            self._screen = self._new_screen()
            self.debug_unit = self._hooked_debug_unit(self._screen)
        if self._screen is not None or on_block is not None:
            told = tell_of_blocks(self._screen, on_block, self._fail)
            self._hook(binding.HOOK_BLOCK_TRANSLATED, told)
        drop_all = functools.partial(self._control, binding.CTL_FLUSH_TB)
        self.lookout = Lookout(self.budget, self.block, self._install_block_hook, drop_all)
        self.watch: StoreWatch | None = StoreWatch(self._handle) if self.block is None else None
        """The frames to which stores are compared with translations; None where all stores are, anyway."""
        self._translated: memoryview | None = None
        """A word for each frame: if it is zero, there are no translations of it (`tuning/stores.py`)."""
        if self.block is not None:
            self._translated = self.block.array("watched", ram.frames)
            self.debug_unit = TunedDebugUnit(self.block, self._processor.value or 0, self.flush_page)
        self.pristine = bytes(self.vmcb.raw)
        """The state block before any guest ran."""

    # -- set-up ------------------------------------------------------------------------------------------

    def _control(self, code: int, *arguments: object) -> None:
        binding.check(binding.uc_ctl(self._handle, ctypes.c_uint(code), *arguments), "configuring the engine")

    def _write_register(self, register: int, value: int) -> None:
        cell = ctypes.c_uint64(value)
        binding.check(binding.uc_reg_write(self.handle, register, ctypes.byref(cell)), "setting a register")

    def _set_up_long_mode(self) -> None:
        """Paging with NX and write protection, SSE, RDTSC trapping; CR3 comes with the first vCPU.

        CR4.SMAP and SMEP stay clear: IRET and far returns pop with supervisor rights.
        """
        efer = binding.MsrAccess(0xC000_0080, 0xD01)
        binding.check(binding.uc_reg_write(self.handle, binding.REG_MSR, ctypes.byref(efer)), "setting EFER")
        self._write_register(binding.REG_CR4, 0x20 | 0x200 | 0x400 | (_CR4_TSD if self._traps_time else 0))
        self._write_register(binding.REG_CR3, self._hole)
        self._write_register(binding.REG_CR0, 0x8005_0033)
        fpu.reset(self.handle)

    def _suppress_exit_requests(self) -> bool:
        """Remove the stop check after each load and store, if this library is the one we know."""
        offset = find_no_exit_request()
        if offset is None:
            return False
        ctypes.c_bool.from_address(self.handle + offset).value = True
        return True

    def _enter_seat(self) -> Seat | None:
        """Choose how stops are asked for: posted where that can be (`stops.py`), else straight away."""
        stops = posted_stops()
        if stops is None:
            self.stop_entry = binding.EMU_STOP_ADDRESS, self.handle
            self.come_back: Callable[[], None] = functools.partial(binding.uc_emu_stop, self.handle)
            return None
        seat, self.come_back = stops.enter(self.handle, self._processor.value or 0, self._state)
        self.stop_entry = stops.post_address, ctypes.addressof(seat)
        return seat

    def _install_hooks(self, count_blocks: bool, native: bool) -> None:  # noqa: C901 - a closure for each hook
        sink, vmcb = self.sink, self.vmcb
        q, d = vmcb.q, vmcb.d
        self._exit_hooks = hooks = ExitHooks(self, vmcb, sink)

        def invalid(_engine: int, _data: int | None) -> bool:
            d[v.OLD_EXCEPTION] = v.MINUS_ONE
            try:
                if self._drained is not None:
                    self._end_port_fault()
                elif self._has_met_stop():
                    sink.exception(_DEBUG)
                elif not self.blames_refused(self._has_aborted()):
                    sink.invalid_opcode()
            except BaseException as error:
                self._fail(error)
            return True

        on_clock_read = sink.clock_read

        def sysenter(_engine: int, _data: int | None) -> None:
            length = self.syscall_length()
            try:
                if self._drained is not None:
                    self._end_port_fault()
                else:
                    sink.sysenter(length)
            except BaseException as error:
                self._fail(error)
            q[v.RIP] = (q[v.RIP] - length) & MASK64

        def cpuid(_engine: int, _data: int | None) -> int:
            try:
                if self._drained is None and not sink.cpuid():
                    self._begin_port_fault()
            except BaseException as error:
                self._fail(error)
            return 1

        def rdtsc(_engine: int, _data: int | None) -> int:
            try:
                if self._drained is None:
                    on_clock_read(False)
            except BaseException as error:
                self._fail(error)
            return 1

        def rdtscp(_engine: int, _data: int | None) -> int:
            try:
                if self._drained is None:
                    on_clock_read(True)
            except BaseException as error:
                self._fail(error)
            return 1

        def port_in(_engine: int, port: int, size: int, _data: int | None) -> int:
            try:
                if self._drained is None:
                    value = sink.port_read(port, size)
                    if value is not None:
                        return value
                    self._begin_port_fault()
            except BaseException as error:
                self._fail(error)
            return 0

        def port_out(_engine: int, port: int, size: int, value: int, _data: int | None) -> None:
            try:
                if self._drained is None and not sink.port_write(port, size, value):
                    self._begin_port_fault()
            except BaseException as error:
                self._fail(error)

        self._callbacks: list[object] = []
        entry, data = for_exceptions(hooks)
        self._hook(binding.HOOK_INTR, entry, data=data)
        self._hook(binding.HOOK_INSN_INVALID, binding.CB_INVALID(invalid))
        entry, data = for_syscall(hooks)
        self._hook(binding.HOOK_INSN, entry, binding.INS_SYSCALL, data)
        self._hook(binding.HOOK_INSN, binding.CB_INSN(sysenter), binding.INS_SYSENTER)
        self._hook(binding.HOOK_INSN, binding.CB_CPUID(cpuid), binding.INS_CPUID)
        self._hook(binding.HOOK_INSN, binding.CB_IN(port_in), binding.INS_IN)
        self._hook(binding.HOOK_INSN, binding.CB_OUT(port_out), binding.INS_OUT)
        if self._answers_time:
            self._hook(binding.HOOK_INSN, binding.CB_CPUID(rdtsc), binding.INS_RDTSC)
            self._hook(binding.HOOK_INSN, binding.CB_CPUID(rdtscp), binding.INS_RDTSCP)
        if count_blocks:
            self.budget = make_budget(native=native)
            self._hook(binding.HOOK_BLOCK, self.budget.hook, data=self.budget.data)

    def _install_block_hook(self, budget: BlockBudget | PythonBlockBudget) -> Callable[[], None]:
        number = self._hook(binding.HOOK_BLOCK, budget.hook, data=budget.data)
        return lambda: binding.check(binding.uc_hook_del(self.handle, number), "removing a hook")

    def _hook(
        self, kind: int, callback: object, instruction: int = 0, data: ctypes.c_void_p | None = None
    ) -> int:
        self._callbacks.append(callback)
        number = ctypes.c_size_t()
        binding.check(
            binding.uc_hook_add(
                self._handle, ctypes.byref(number), ctypes.c_int(kind), callback,
                data or ctypes.c_void_p(0), ctypes.c_uint64(1), ctypes.c_uint64(0), ctypes.c_int(instruction),
            ),
            "installing a hook",
        )  # fmt: skip
        return number.value

    def _new_screen(self) -> Screen:
        return Screen(
            self.handle, self._ram,
            page_of=self._code_page,
            flags=lambda: self.vmcb.d[v.HFLAGS],
            forget=functools.partial(self._invalidate, self.handle),
        )  # fmt: skip

    def _hooked_debug_unit(self, screen: Screen) -> HookedDebugUnit | None:
        def install(function: int, argument: int) -> Callable[[], None]:
            number = self._hook(
                binding.HOOK_MEMORY, ctypes.c_void_p(function), data=ctypes.c_void_p(argument)
            )
            return lambda: binding.check(binding.uc_hook_del(self.handle, number), "removing a hook")

        code = native_hook()
        if code is None:
            return None
        return HookedDebugUnit(
            code, screen, self._state, install, lambda: self._control(binding.CTL_FLUSH_TB)
        )

    def _has_aborted(self) -> bool:
        """Whether the emulator would have ended the process since this was asked last (`guard.py`)."""
        if self._seat is None or not self._seat.aborts:
            return False
        self._seat.aborts = 0
        return True

    def blames_refused(self, translating: int) -> bool:
        """Whether an exception is none, because it came up in `translating` what is refused anyway."""
        if self._screen is None or not translating:
            return False
        return self._screen.gave_up(self._linear_rip())

    def _linear_rip(self) -> int:
        rip = self.vmcb.q[v.RIP]
        if not self.vmcb.d[v.HFLAGS] & v.HF_CS64:
            rip = rip + self.vmcb.q[v.SEG_BASE[v.CS]] & MASK32
        return rip

    def _has_met_stop(self) -> bool:
        """Whether an undefined instruction is none, but stands for one before which the engine shall stop."""
        unit = self.debug_unit
        return isinstance(unit, HookedDebugUnit) and unit.has_stopped(self._linear_rip())

    # -- running -----------------------------------------------------------------------------------------

    def run(self) -> None:
        """Execute from the VMCB's RIP until `stop`, or until the budget is spent.

        Raises whatever the sink raised, and GuestCrash if the emulator cannot go on with this guest.
        """
        screen = self._screen
        code = binding.uc_emu_start(self.handle, self.vmcb.q[v.RIP], _NOWHERE, 0, 0)
        while screen is not None and screen.again():
            code = binding.uc_emu_start(self.handle, self.vmcb.q[v.RIP], _NOWHERE, 0, 0)
        failure = self._failure
        if failure is not None:
            self._failure = None
            raise failure
        if self._drained is not None:
            self._end_port_fault()
        if code:
            raise GuestCrash(f"the processor shut down: {binding.uc_strerror(code).decode()}")

    def stop(self) -> None:
        """Leave `run` at the next block start; callable from a sink, from another thread if
        `async_stop_safe`."""
        self.asked_to_stop = True
        self.come_back()

    def syscall_length(self) -> int:
        """Length of the SYSCALL or SYSENTER at RIP: 2, and its prefixes.

        It must be exact, whatever else was at this address before: the emulator adds the true length to
        RIP, so an error here would move the address at which a process enters its kernel.
        """
        q = self.vmcb.q
        rip = q[v.RIP]
        if not self.vmcb.d[v.HFLAGS] & v.HF_CS64:
            rip = rip + q[v.SEG_BASE[v.CS]] & MASK32
        page = self._code_pages.get(rip >> PAGE_SHIFT)
        if page is not None and self._ram.raw[page | rip & PAGE_MASK] == 0x0F:
            return 2
        for prefixes in range(_LONGEST_PREFIX + 1):
            page = self._code_page(rip + prefixes)
            if page is None:
                break
            if self._ram.raw[page | rip + prefixes & PAGE_MASK] == 0x0F:
                return prefixes + 2
        return self.instruction_length(rip)

    def _code_page(self, va: int) -> int | None:
        """Machine address of the page that holds `va`, as the processor's own tables have it."""
        number = va >> PAGE_SHIFT
        page = self._code_pages.get(number)
        if page is not None:
            return page
        ram = self._ram.q
        entry = self.vmcb.q[v.CR + 3]
        for shift in (39, 30, 21, 12):
            entry = ram[(entry & PTE_MFN_MASK) >> 3 | va >> shift & 511]
            if not entry & PTE_P:
                return None
        if len(self._code_pages) >= _MOST_CODE_PAGES:
            self._code_pages.clear()
        page = self._code_pages[number] = entry & PTE_MFN_MASK
        return page

    def ended_port_fault(self) -> None:
        """What was left of a block with a refused port access has come to a SYSCALL: it ends here."""
        self._end_port_fault()

    def fail(self, error: BaseException) -> None:
        """Stop, and have `run` raise what a sink has raised, because C code cannot carry it."""
        self._fail(error)

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            self._failure = error
        self.come_back()

    def _begin_port_fault(self) -> None:
        """Refuse IN, OUT or CPUID although the rest of its block will still run.

        The emulator offers no way out of the middle of a block. So the state is put aside and the page
        tables are taken away: what is left of the block can neither read nor write memory, its exits reach
        no sink (a SYSCALL must not become a hypercall that is then undone by half), and whatever it did to
        registers is undone by `_end_port_fault`.
        """
        self._drained = bytes(self.vmcb.raw)
        self._exit_hooks.draining = True
        self.vmcb.q[v.CR + 3] = self._hole
        self.flush_tlb()
        self.stop()

    def _end_port_fault(self) -> None:
        assert self._drained is not None
        self.vmcb.raw[:] = self._drained
        self._drained = None
        self._exit_hooks.draining = False
        self.flush_tlb()
        self.sink.port_fault()

    # -- processor state beyond the VMCB -------------------------------------------------------------------

    def rflags(self) -> int:
        """RFLAGS with the lazily kept bits computed; valid until the VMCB's flags are written."""
        return self.vmcb.rflags()

    def _lazy_flags(self) -> int:
        _fast_reg_read(self._handle, _EFLAGS, self._flags_pointer)
        return self._flags_cell.value

    def trap_user_time(self, on: bool) -> None:
        """The guest's own CR4.TSD: RDTSC is #GP(0) at every level, and so for the sink to look at."""
        if not self._traps_time:
            cr4 = self.vmcb.q[v.CR + 4]
            self.vmcb.q[v.CR + 4] = cr4 | _CR4_TSD if on else cr4 & ~_CR4_TSD

    def set_tsc_aux(self, value: int) -> None:
        """What RDTSCP returns in RCX where it does not trap."""
        aux = binding.MsrAccess(0xC000_0103, value)
        binding.check(
            binding.uc_reg_write(self.handle, binding.REG_MSR, ctypes.byref(aux)), "setting TSC_AUX"
        )

    def flush_tlb(self) -> None:
        """Forget all cached translations of virtual addresses."""
        _fast_ctl(self._handle, _TLB_FLUSH)
        self._code_pages.clear()

    def flush_page(self, va: int) -> None:
        """Forget the cached translation of one virtual page."""
        if _fast_flush_page is None:
            self.flush_tlb()
        else:
            _fast_flush_page(self._processor, ctypes.c_uint64(va))
            self._code_pages.pop(va >> PAGE_SHIFT, None)

    @property
    def tuned(self) -> bool:
        """Whether this engine runs on pyhv's own hot paths."""
        return self.block is not None

    @property
    def watches_memory(self) -> bool:
        """Whether `watch_memory` is on."""
        return self._memory_hook is not None

    def watch_memory(self, report: Callable[[int, int, bool], None] | None) -> None:
        """Report every load and store as (machine address, bytes, is a store), or none any more.

        Not while the engine runs. Only code translated from now on reports, so all translations are dropped.
        """
        if self._memory_hook is not None:
            binding.check(binding.uc_hook_del(self.handle, self._memory_hook), "removing a hook")
            self._callbacks.remove(self._memory_callback)
            self._memory_hook = None
        if report is not None:
            write = binding.MEM_WRITE

            def accessed(
                _engine: int, kind: int, address: int, size: int, _value: int, _data: int | None
            ) -> None:
                try:
                    report(address, size, kind == write)
                except BaseException as error:
                    self._fail(error)

            self._memory_callback = binding.CB_MEMORY(accessed)
            self._memory_hook = self._hook(binding.HOOK_MEMORY, self._memory_callback)
        self._control(binding.CTL_FLUSH_TB)

    def invalidate_code(self, mfn: int, count: int = 1) -> None:
        """Forget translated code of `count` frames from `mfn` on, because the hypervisor changed them."""
        words = self._translated
        if words is not None and count == 1 and not words[mfn]:
            return  # data in a page that may be executed, such as a ring: 0.1 us, where the call takes 1 us
        self._invalidate(self.handle, mfn << PAGE_SHIFT, (mfn + count) << PAGE_SHIFT)

    def close(self) -> None:
        """Free the engine; the VMCB must not be touched afterwards."""
        if self.handle:
            self._translated = None
            self.vmcb.q.release()
            self.vmcb.d.release()
            if self.debug_unit is not None:
                self.debug_unit.close()
            if self.block is not None:
                self.block.detach()
            if self._seat is not None:
                posted = posted_stops()
                assert posted is not None
                posted.leave(self._seat)
            binding.uc_close(self.handle)
            self.handle = 0
