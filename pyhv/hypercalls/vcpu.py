# SPDX-License-Identifier: GPL-2.0-only
"""vcpu_op: bring vCPUs up and down, their timers, runstates and shared areas (public header `vcpu.h`)."""

from contextlib import suppress

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import VcpuOp
from pyhv.abi.shared import CONTEXT_LAYOUT
from pyhv.abi.structs import (
    VcpuRegisterArea,
    VcpuRegisterVcpuInfo,
    VcpuRunstateInfo,
    VcpuSetPeriodicTimer,
    VcpuSetSingleshotTimer,
)
from pyhv.address import Mfn, guest_may_use
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import XenError
from pyhv.events.timers import MIN_PERIOD
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.cpustate import install_gdt
from pyhv.hypercalls.guest_context import GuestContext
from pyhv.hypercalls.table import Commands, Status, hypercall
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
        call.host.halt_domain(call.domain)
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
    ).pack(vcpu.width)  # fmt: skip


@_commands.command(VcpuOp.GET_RUNSTATE_INFO)
def _get_runstate(call: Call, vcpu: Vcpu, argument: int) -> int:
    call.memory.write(argument, runstate_record(vcpu, call.host.now()))
    return 0


def _area(call: Call, argument: int) -> int:
    address = call.read(VcpuRegisterArea, argument).address
    if not guest_may_use(address, call.width):
        raise XenError(Errno.EFAULT, f"area at {address:#x}")
    return address


@_commands.command(VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA)
def _register_runstate(call: Call, vcpu: Vcpu, argument: int) -> int:
    vcpu.runstate_area = _area(call, argument)
    write_runstate(vcpu, call.host.now())
    return 0


def write_runstate(vcpu: Vcpu, now: int) -> None:
    """Write the vCPU's runstate to its area; one that is not mapped now is written another time."""
    if vcpu.runstate_area:
        with suppress(XenError):
            vcpu.memory.write(vcpu.runstate_area, runstate_record(vcpu, now))


@_commands.command(VcpuOp.REGISTER_VCPU_TIME_MEMORY_AREA)
def _register_time(call: Call, vcpu: Vcpu, argument: int) -> int:
    vcpu.time_area = _area(call, argument)
    vcpu.update_time()
    return 0


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
    bits.check_relocation(vcpu.number, request.offset)
    mfn = call.own_frame(request.mfn)
    if not call.frames.take_writable(mfn):
        raise XenError(Errno.EINVAL, f"vcpu_info in {call.frames.describe(mfn)}")
    page = FramePage(call.host.physical, mfn)
    bits.relocate(vcpu.number, page, request.offset)
    vcpu.use_info(page, request.offset)
    vcpu.update_time()
    call.host.wake(vcpu)
    return 0


@_commands.command(VcpuOp.SEND_NMI)
def _send_nmi(call: Call, vcpu: Vcpu, argument: int) -> int:
    if argument:
        raise XenError(Errno.EINVAL, "send_nmi takes no argument")
    vcpu.nmi_pending = True
    call.host.wake(vcpu)
    return 0


@_commands.command(VcpuOp.GET_PHYSID, Status.REFUSED, "vCPUs are not pinned: EINVAL")
def _get_physid(_call: Call, _vcpu: Vcpu, _argument: int) -> int:
    raise XenError(Errno.EINVAL, "vCPUs are not pinned")


# -- initialise --------------------------------------------------------------------------------------------


@_commands.command(VcpuOp.INITIALISE)
def _initialise(call: Call, vcpu: Vcpu, argument: int) -> int:
    if vcpu.initialised:
        raise XenError(Errno.EEXIST, f"{vcpu.name} is initialised already")
    layout = CONTEXT_LAYOUT[call.width]
    context = GuestContext(call.memory.read(argument, layout.size), call.width)
    context.check()
    tables = call.tables
    kernel, user = context.kernel_l4, context.user_l4
    tables.take_table(kernel, tables.top)
    try:
        if user:
            tables.take_table(user, tables.top)
    except XenError:
        tables.drop_table(kernel)
        raise
    try:
        install_gdt(call.domain, vcpu, context.gdt_frames, context.gdt_entries)
    except XenError:
        tables.drop_table(kernel)
        if user:
            tables.drop_table(user)
        raise
    context.apply(vcpu)
    vcpu.kernel_l4, vcpu.user_l4 = Mfn(kernel), Mfn(user)
    vcpu.initial_registers, vcpu.initial_fpu = context.registers, context.fpu
    vcpu.initialised = True
    return 0
