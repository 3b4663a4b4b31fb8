# SPDX-License-Identifier: GPL-2.0-only
"""vcpu_op: bring vCPUs up and down, their timers, runstates and shared areas (public header `vcpu.h`)."""

import struct
from collections.abc import Callable

from pyhv.abi import shared
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Shutdown, VcpuOp
from pyhv.abi.structs import (
    VcpuRegisterVcpuInfo,
    VcpuRunstateInfo,
    VcpuSetPeriodicTimer,
    VcpuSetSingleshotTimer,
)
from pyhv.abi.x86 import FIRST_RESERVED_GDT_ENTRY
from pyhv.address import MASK32, MASK64, PAGE_MASK, Mfn, guest_may_use, is_canonical
from pyhv.domain import NO_TRAP, CallbackEntry, Vcpu
from pyhv.errors import XenError
from pyhv.events.timers import MIN_PERIOD
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.cpustate import install_gdt
from pyhv.hypercalls.debugreg import set_debugreg
from pyhv.hypercalls.table import Commands, Status, hypercall
from pyhv.mmu.frames import L4
from pyhv.mmu.memory import FramePage

_commands = Commands("vcpu_op", VcpuOp)


@hypercall(24, "vcpu_op", "command:u32 vcpu:u32 argument:ptr")
def vcpu_op(call: Call, command: int, number: int, argument: int) -> int:
    """Operate on a vCPU of the caller's domain."""
    vcpu = call.peer_vcpu(number)
    handler = _commands.handlers.get(command)
    if handler is None:
        raise XenError(Errno.ENOSYS, f"vcpu_op {command}")
    result: int = handler(call, vcpu, argument)
    return result


@_commands.command(VcpuOp.IS_UP)
def _is_up(_call: Call, vcpu: Vcpu, _argument: int) -> int:
    return int(vcpu.online)


@_commands.command(VcpuOp.UP)
def _up(call: Call, vcpu: Vcpu, _argument: int) -> int:
    if not vcpu.initialised:
        raise XenError(Errno.EINVAL, f"{vcpu.name} is not initialised")
    if not vcpu.online:
        call.host.start_vcpu(vcpu)
    return 0


@_commands.command(VcpuOp.DOWN)
def _down(call: Call, vcpu: Vcpu, _argument: int) -> int:
    if not any(other.online for other in call.domain.vcpus if other is not vcpu):
        call.host.end_domain(call.domain, Shutdown.POWEROFF)
        call.reschedule = True
        return 0
    if vcpu.online:
        call.host.stop_vcpu(vcpu)
        call.reschedule = call.reschedule or vcpu is call.vcpu
    return 0


def runstate_record(vcpu: Vcpu, now: int) -> bytes:
    """The vCPU's runstate as `vcpu_runstate_info`."""
    record = vcpu.runstate.snapshot(now)
    running, runnable, blocked, offline = record.time
    return VcpuRunstateInfo(
        state=int(record.state), state_entry_time=record.state_entry_time,
        time0=running, time1=runnable, time2=blocked, time3=offline,
    ).pack(vcpu.domain.width)  # fmt: skip


@_commands.command(VcpuOp.GET_RUNSTATE_INFO)
def _get_runstate(call: Call, vcpu: Vcpu, argument: int) -> int:
    call.memory.write(argument, runstate_record(vcpu, call.host.now()))
    return 0


def _area(call: Call, argument: int) -> int:
    address = call.memory.read_u64(argument)
    if not guest_may_use(address):
        raise XenError(Errno.EFAULT, f"area at {address:#x}")
    return address


@_commands.command(VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA)
def _register_runstate(call: Call, vcpu: Vcpu, argument: int) -> int:
    vcpu.runstate_area = _area(call, argument)
    if vcpu is call.vcpu and vcpu.runstate_area:
        write_area(
            call, lambda: call.memory.write(vcpu.runstate_area, runstate_record(vcpu, call.host.now()))
        )
    return 0


@_commands.command(VcpuOp.REGISTER_VCPU_TIME_MEMORY_AREA)
def _register_time(call: Call, vcpu: Vcpu, argument: int) -> int:
    vcpu.time_area = _area(call, argument)
    if vcpu is call.vcpu and vcpu.time_area:
        write_area(call, lambda: vcpu.update_time())
    return 0


def write_area(_call: Call, write: Callable[[], None]) -> None:
    """Write a registered area; one that is not mapped now is written another time."""
    try:
        write()
    except XenError:
        return


@_commands.command(VcpuOp.SET_PERIODIC_TIMER)
def _set_periodic(call: Call, vcpu: Vcpu, argument: int) -> int:
    request = call.read(VcpuSetPeriodicTimer, argument)
    if request.period_ns < MIN_PERIOD:
        raise XenError(Errno.EINVAL, f"period of {request.period_ns} ns")
    if request.period_ns >= 1 << 62:
        raise XenError(Errno.EINVAL, f"period of {request.period_ns} ns")
    call.host.set_periodic(vcpu, request.period_ns)
    return 0


@_commands.command(VcpuOp.STOP_PERIODIC_TIMER)
def _stop_periodic(call: Call, vcpu: Vcpu, _argument: int) -> int:
    call.host.set_periodic(vcpu, 0)
    return 0


@_commands.command(VcpuOp.SET_SINGLESHOT_TIMER)
def _set_singleshot(call: Call, vcpu: Vcpu, argument: int) -> int:
    if vcpu is not call.vcpu:
        raise XenError(Errno.EINVAL, "one-shot timer of another vCPU")
    deadline = call.read(VcpuSetSingleshotTimer, argument).timeout_abs_ns
    call.host.set_timer(vcpu, min(max(deadline, 1), 1 << 62))
    return 0


@_commands.command(VcpuOp.STOP_SINGLESHOT_TIMER)
def _stop_singleshot(call: Call, vcpu: Vcpu, _argument: int) -> int:
    if vcpu is not call.vcpu:
        raise XenError(Errno.EINVAL, "one-shot timer of another vCPU")
    call.host.set_timer(vcpu, 0)
    return 0


@_commands.command(VcpuOp.REGISTER_VCPU_INFO)
def _register_info(call: Call, vcpu: Vcpu, argument: int) -> int:
    request = call.read(VcpuRegisterVcpuInfo, argument)
    bits = call.domain.bits
    if request.offset > PAGE_MASK + 1 - shared.VCPU_INFO_SIZE:
        raise XenError(Errno.ENXIO, f"vcpu_info at offset {request.offset:#x}")
    if request.offset & 7:
        raise XenError(Errno.EINVAL, f"vcpu_info at offset {request.offset:#x}")
    bits.check_relocation(vcpu.number, request.offset)
    mfn = call.own_frame(request.mfn)
    if not call.frames.get_writable(mfn):
        raise XenError(Errno.EINVAL, f"vcpu_info in {call.frames.describe(mfn)}")
    page = FramePage(call.host.physical, mfn)
    bits.relocate(vcpu.number, page, request.offset)
    vcpu.use_info(page, request.offset)
    write_area(call, lambda: vcpu.update_time())
    return 0


@_commands.command(VcpuOp.SEND_NMI)
def _send_nmi(_call: Call, vcpu: Vcpu, _argument: int) -> int:
    vcpu.nmi_pending = True
    return 0


@_commands.command(VcpuOp.GET_PHYSID, Status.REFUSED, "vCPUs are not pinned: EINVAL")
def _get_physid(_call: Call, _vcpu: Vcpu, _argument: int) -> int:
    raise XenError(Errno.EINVAL, "vCPUs are not pinned")


# -- initialise --------------------------------------------------------------------------------------------


@_commands.command(VcpuOp.INITIALISE, Status.PARTIAL, "the FPU image and DS, ES, FS, GS are not loaded")
def _initialise(call: Call, vcpu: Vcpu, argument: int) -> int:
    if vcpu.initialised:
        raise XenError(Errno.EEXIST, f"{vcpu.name} is initialised already")
    raw = call.memory.read(argument, shared.GC_SIZE)
    context = GuestContext(raw)
    context.check()
    tables = call.tables
    kernel, user = context.kernel_l4, context.user_l4
    tables.get_table(kernel, L4)
    try:
        if user:
            tables.get_table(user, L4)
    except XenError:
        tables.put_table(kernel)
        raise
    try:
        install_gdt(call.processor, call.domain, vcpu, context.gdt_frames, context.gdt_entries)
    except XenError:
        tables.put_table(kernel)
        if user:
            tables.put_table(user)
        raise
    context.apply(vcpu)
    vcpu.kernel_l4, vcpu.user_l4 = Mfn(kernel), Mfn(user)
    vcpu.initial_registers = context.registers
    vcpu.initialised = True
    return 0


class GuestContext:
    """`vcpu_guest_context`, decoded and checked as Xen checks it for a 64-bit guest."""

    def __init__(self, raw: bytes) -> None:
        def word(offset: int) -> int:
            value: int = struct.unpack_from("<Q", raw, offset)[0]
            return value

        self.flags = word(shared.GC_FLAGS) & MASK32
        base = shared.GC_USER_REGS
        self.registers = {
            name: word(base + offset) & (0xFFFF if name in ("cs", "ss", "ds", "es", "fs", "gs") else MASK64)
            for name, offset in shared.USER_REGS.items()
            if name not in ("error_code", "entry_vector", "saved_upcall_mask", "gs")
        }
        self.registers["gs"] = struct.unpack_from("<H", raw, base + shared.USER_REGS["gs"])[0]
        self.registers["fs_base"] = word(shared.GC_FS_BASE)
        self.registers["gs_base"] = word(shared.GC_GS_BASE_KERNEL)
        self.traps = [
            struct.unpack_from("<BBHIQ", raw, shared.GC_TRAP_CTXT + 16 * vector) for vector in range(256)
        ]
        self.ldt_base, self.ldt_entries = word(shared.GC_LDT_BASE), word(shared.GC_LDT_ENTS)
        self.gdt_entries = word(shared.GC_GDT_ENTS)
        count = min((self.gdt_entries + 511) // 512, 16)
        self.gdt_frames = struct.unpack_from(f"<{count}Q", raw, shared.GC_GDT_FRAMES)
        self.kernel_ss, self.kernel_sp = word(shared.GC_KERNEL_SS), word(shared.GC_KERNEL_SP)
        self.user_l4 = _cr3_to_mfn(word(shared.GC_CTRLREG + 8))
        self.kernel_l4 = _cr3_to_mfn(word(shared.GC_CTRLREG + 24))
        self.debug = [word(shared.GC_DEBUGREG + 8 * number) for number in range(8)]
        self.event = word(shared.GC_EVENT_CALLBACK)
        self.failsafe = word(shared.GC_FAILSAFE_CALLBACK)
        self.syscall = word(shared.GC_SYSCALL_CALLBACK)
        self.gs_base_user = word(shared.GC_GS_BASE_USER)

    def check(self) -> None:
        """Raise EINVAL for a context that Xen does not accept."""
        addresses = [self.event, self.failsafe, self.syscall, self.gs_base_user, self.ldt_base]
        addresses += [self.registers[name] for name in ("rip", "rsp", "fs_base", "gs_base")]
        addresses += [trap[4] for trap in self.traps]
        if not all(is_canonical(address) for address in addresses):
            raise XenError(Errno.EINVAL, "non-canonical address in a vCPU context")
        if self.gdt_entries > FIRST_RESERVED_GDT_ENTRY:
            raise XenError(Errno.EINVAL, f"GDT of {self.gdt_entries} entries")
        if self.ldt_entries > 8192 or (
            self.ldt_entries and (self.ldt_base & PAGE_MASK or not guest_may_use(self.ldt_base))
        ):
            raise XenError(Errno.EINVAL, f"LDT of {self.ldt_entries} entries at {self.ldt_base:#x}")
        if self.debug[6] > MASK32 or self.debug[7] > MASK32:
            raise XenError(Errno.EINVAL, "upper half of DR6 or DR7")
        if not self.flags & shared.VGCF_IN_KERNEL and not self.user_l4:
            raise XenError(Errno.EINVAL, "a vCPU cannot start in user mode without a user page table")

    def apply(self, vcpu: Vcpu) -> None:
        """Set everything of the vCPU that is not a register or a page table."""
        vcpu.in_kernel = bool(self.flags & shared.VGCF_IN_KERNEL)
        vcpu.forget_segments()
        vcpu.iopl = self.registers["rflags"] >> 12 & 3
        vcpu.traps = [NO_TRAP] * 256
        for vector, (_vector, flags, _cs, _pad, address) in enumerate(self.traps):
            if address:
                vcpu.traps[vector] = (address, flags)
        vcpu.event_callback = CallbackEntry(self.event, True)
        vcpu.failsafe_callback = CallbackEntry(
            self.failsafe, bool(self.flags & shared.VGCF_FAILSAFE_DISABLES_EVENTS)
        )
        vcpu.syscall_callback = CallbackEntry(
            self.syscall, bool(self.flags & shared.VGCF_SYSCALL_DISABLES_EVENTS)
        )
        vcpu.kernel_ss, vcpu.kernel_sp = self.kernel_ss & 0xFFFF | 3, self.kernel_sp
        vcpu.ldt_base, vcpu.ldt_entries = self.ldt_base, self.ldt_entries
        vcpu.other_gs_base = self.gs_base_user
        if not vcpu.in_kernel:
            vcpu.other_gs_base, self.registers["gs_base"] = self.registers["gs_base"], self.gs_base_user
        for number in (0, 1, 2, 3, 6, 7):
            try:
                set_debugreg(vcpu, number, self.debug[number])
            except XenError:
                continue  # Xen clears what it does not accept


def _cr3_to_mfn(cr3: int) -> int:
    return cr3 >> 12 & (1 << 40) - 1 | (cr3 & 0xFFF) << 40
