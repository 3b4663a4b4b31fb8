# SPDX-License-Identifier: GPL-2.0-only
"""vcpu_op: bring vCPUs up and down, their timers, runstates and shared areas (public header `vcpu.h`)."""

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall, VcpuOp
from pyhv.abi.shared import CONTEXT_LAYOUT
from pyhv.abi.structs import (
    VcpuRegisterArea,
    VcpuRegisterVcpuInfo,
    VcpuRunstateInfo,
    VcpuSetPeriodicTimer,
    VcpuSetSingleshotTimer,
)
from pyhv.address import guest_may_use
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import XenError
from pyhv.events.timers import MIN_PERIOD
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.cpustate import install_gdt
from pyhv.hypercalls.guest_context import GuestContext
from pyhv.hypercalls.signature import Ptr, u32
from pyhv.hypercalls.table import Commands, Status, hypercall
from pyhv.mmu.physical import FramePage

_commands = Commands[[Vcpu, int], int](Hypercall.VCPU_OP, VcpuOp)


@hypercall(Hypercall.VCPU_OP)
def vcpu_op(call: Call, command: u32, vcpu: u32, argument: Ptr) -> int:
    """Operate on a vCPU of the caller's domain.

    ENOENT: no such vCPU; ENOSYS: no such command; EFAULT: its structure cannot be read.
    """
    target = call.peer_vcpu(vcpu)
    return _commands[command](call, target, argument)


@_commands.command(VcpuOp.IS_UP)
def is_up(_call: Call, vcpu: Vcpu, _argument: int) -> int:
    """Return 1 if the vCPU is up, else 0. The argument is not read."""
    return int(vcpu.online)


@_commands.command(VcpuOp.UP)
def up(call: Call, vcpu: Vcpu, _argument: int) -> int:
    """Bring the vCPU up; nothing if it is.

    EINVAL: it has never been initialised.
    """
    if not vcpu.initialised:
        raise XenError(Errno.EINVAL, f"{vcpu.name} is not initialised")
    if not vcpu.online:
        call.host.start_vcpu(vcpu)
    return 0


@_commands.command(VcpuOp.DOWN)
def down(call: Call, vcpu: Vcpu, _argument: int) -> int:
    """Take the vCPU down; when the last one goes, the domain ends. The argument is not read."""
    if not any(other.online for other in call.domain.vcpus if other is not vcpu):
        call.host.halt_domain(call.domain)
        call.reschedule = True
        return 0
    if vcpu.online:
        call.host.stop_vcpu(vcpu)
        call.reschedule = call.reschedule or vcpu is call.vcpu
    return 0


@_commands.command(VcpuOp.GET_RUNSTATE_INFO, VcpuRunstateInfo)
def get_runstate_info(call: Call, vcpu: Vcpu, argument: int) -> int:
    """Store what the vCPU does, since when, and its time in each state."""
    call.write(argument, vcpu.runstate_info(call.host.now()))
    return 0


def _area(call: Call, argument: int) -> int:
    address = call.read(VcpuRegisterArea, argument).address
    if not guest_may_use(address, call.width):
        raise XenError(Errno.EFAULT, f"area at {address:#x}")
    return address


@_commands.command(VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA, VcpuRegisterArea)
def register_runstate_memory_area(call: Call, vcpu: Vcpu, argument: int) -> int:
    """Name an address at which the vCPU's runstate is kept up to date, while it is mapped.

    EFAULT: also for an address outside the guest's space.
    """
    vcpu.areas.runstate = _area(call, argument)
    vcpu.update_runstate(call.host.now())
    return 0


@_commands.command(VcpuOp.REGISTER_VCPU_TIME_MEMORY_AREA, VcpuRegisterArea)
def register_vcpu_time_memory_area(call: Call, vcpu: Vcpu, argument: int) -> int:
    """Name an address at which the vCPU's time is kept up to date, while it is mapped.

    EFAULT: also for an address outside the guest's space.
    """
    vcpu.areas.time = _area(call, argument)
    vcpu.update_time()
    return 0


@_commands.command(VcpuOp.SET_PERIODIC_TIMER, VcpuSetPeriodicTimer)
def set_periodic_timer(call: Call, vcpu: Vcpu, argument: int) -> int:
    """Raise the timer's VIRQ again and again.

    EINVAL: a period below 1 ms, or of 2**62 ns and more.
    """
    request = call.read(VcpuSetPeriodicTimer, argument)
    if request.period_ns < MIN_PERIOD:
        raise XenError(Errno.EINVAL, f"period of {request.period_ns} ns")
    if request.period_ns >= 1 << 62:
        raise XenError(Errno.EINVAL, f"period of {request.period_ns} ns")
    call.host.set_periodic(vcpu, request.period_ns)
    return 0


@_commands.command(VcpuOp.STOP_PERIODIC_TIMER)
def stop_periodic_timer(call: Call, vcpu: Vcpu, _argument: int) -> int:
    """Stop the periodic timer. The argument is not read."""
    call.host.set_periodic(vcpu, 0)
    return 0


@_commands.command(VcpuOp.SET_SINGLESHOT_TIMER, VcpuSetSingleshotTimer)
def set_singleshot_timer(call: Call, vcpu: Vcpu, argument: int) -> int:
    """Raise the timer's VIRQ once, at a system time in ns; a time that has passed means now.

    EINVAL: not the calling vCPU; EFAULT.
    """
    if vcpu is not call.vcpu:
        raise XenError(Errno.EINVAL, "one-shot timer of another vCPU")
    deadline = call.read(VcpuSetSingleshotTimer, argument).timeout_abs_ns
    call.host.set_timer(vcpu, min(max(deadline, 1), 1 << 62))
    return 0


@_commands.command(VcpuOp.STOP_SINGLESHOT_TIMER)
def stop_singleshot_timer(call: Call, vcpu: Vcpu, _argument: int) -> int:
    """Stop the one-shot timer. The argument is not read.

    EINVAL: not the calling vCPU.
    """
    if vcpu is not call.vcpu:
        raise XenError(Errno.EINVAL, "one-shot timer of another vCPU")
    call.host.set_timer(vcpu, 0)
    return 0


@_commands.command(VcpuOp.REGISTER_VCPU_INFO, VcpuRegisterVcpuInfo)
def register_vcpu_info(call: Call, vcpu: Vcpu, argument: int) -> int:
    """Move the vCPU's vcpu_info into a page of the guest's, once and for all.

    ENXIO: it crosses the page's end, or is not aligned; EBUSY: moved before; EINVAL: the frame is not the
    caller's, or cannot be written.
    """
    request = call.read(VcpuRegisterVcpuInfo, argument)
    vcpu.info.check_place(request.offset)
    mfn = call.own_frame(request.mfn)
    if not call.frames.take_writable(mfn):
        raise XenError(Errno.EINVAL, f"vcpu_info in {call.frames.describe(mfn)}")
    vcpu.info.move(FramePage(call.host.physical, mfn), request.offset)
    vcpu.update_time()
    call.host.wake(vcpu)
    return 0


@_commands.command(VcpuOp.SEND_NMI)
def send_nmi(call: Call, vcpu: Vcpu, argument: int) -> int:
    """Send the vCPU an NMI.

    EINVAL: an argument other than NULL.
    """
    if argument:
        raise XenError(Errno.EINVAL, "send_nmi takes no argument")
    vcpu.nmi.pending = True
    call.host.wake(vcpu)
    return 0


@_commands.command(VcpuOp.GET_PHYSID, status=Status.REFUSED)
def get_physid(_call: Call, _vcpu: Vcpu, _argument: int) -> int:
    """Tell the physical processor of a vCPU that is pinned to one; none is. The argument is not read.

    EINVAL.
    """
    raise XenError(Errno.EINVAL, "vCPUs are not pinned")


# -- initialise --------------------------------------------------------------------------------------------


@_commands.command(VcpuOp.INITIALISE)
def initialise(call: Call, vcpu: Vcpu, argument: int) -> int:
    """Set a vCPU's registers, tables and callbacks (`vcpu_guest_context`) before it is brought up.

    EEXIST: initialised already; EFAULT; EINVAL: an address that is not canonical, a GDT or LDT too large or
    ill placed, the upper half of DR6 or DR7, a mode without its table; then what refuses the page tables, and
    EINVAL: a frame that cannot hold descriptors.
    """
    if vcpu.initialised:
        raise XenError(Errno.EEXIST, f"{vcpu.name} is initialised already")
    layout = CONTEXT_LAYOUT[call.width]
    context = GuestContext.unpack(call.memory.read(argument, layout.size), call.width)
    context.check()
    tables = call.tables
    kernel, user = tables.take_table(context.kernel_l4, tables.top), None
    try:
        if context.user_l4:
            user = tables.take_table(context.user_l4, tables.top)
    except XenError:
        tables.drop_table(kernel)
        raise
    try:
        install_gdt(call.domain, vcpu, context.gdt_frames, context.gdt_entries)
    except XenError:
        tables.drop_table(kernel)
        if user is not None:
            tables.drop_table(user)
        raise
    context.apply(vcpu)
    vcpu.initialised = True
    return 0
