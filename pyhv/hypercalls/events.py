# SPDX-License-Identifier: GPL-2.0-only
"""event_channel_op and its predecessor (public header `event_channel.h`); the state is in `events/`."""

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Evtchn, Hypercall, PortState
from pyhv.abi.shared import FIFO_LINK_BITS
from pyhv.abi.structs import (
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindIpi,
    EvtchnBindPirq,
    EvtchnBindVcpu,
    EvtchnBindVirq,
    EvtchnClose,
    EvtchnExpandArray,
    EvtchnInitControl,
    EvtchnOp,
    EvtchnReset,
    EvtchnSend,
    EvtchnSetPriority,
    EvtchnStatus,
    EvtchnUnmask,
)
from pyhv.errors import XenError
from pyhv.hypercalls.context import Again, Call
from pyhv.hypercalls.signature import Ptr, u32
from pyhv.hypercalls.table import Commands, Status, hypercall
from pyhv.mmu.physical import FramePage

_commands = Commands[[int], None](Hypercall.EVENT_CHANNEL_OP, Evtchn)


@hypercall(Hypercall.EVENT_CHANNEL_OP)
def event_channel_op(call: Call, command: u32, argument: Ptr) -> int:
    """Bind, close and signal event channels.

    ENOSYS: no such command; EFAULT: its structure cannot be read, or what was found out not be stored.
    """
    _commands[command](call, argument)
    return 0


@hypercall(Hypercall.EVENT_CHANNEL_OP_COMPAT)
def event_channel_op_compat(call: Call, operation: Ptr) -> int:
    """The old form of `event_channel_op`: command and arguments in one structure (`EvtchnOp`).

    EFAULT; ENOSYS: a command that is younger than this form.
    """
    command = call.read(EvtchnOp, operation).cmd
    if command > Evtchn.UNMASK:
        raise XenError(Errno.ENOSYS, f"event_channel_op_compat {command}")
    return event_channel_op(call, command, operation + EvtchnOp.layout(call.width).offsets["u"])


@_commands.command(Evtchn.ALLOC_UNBOUND, EvtchnAllocUnbound)
def alloc_unbound(call: Call, argument: int) -> None:
    """Open a port of domain `dom`, the caller, which `remote_dom` may bind; whether that exists is not asked.

    ESRCH: no domain `dom`; EPERM: not the caller; ENOSPC: no port is free.
    """
    request = call.read(EvtchnAllocUnbound, argument)
    request.port = call.domain.events.alloc_unbound(request.dom, request.remote_dom)
    call.write(argument, request)


@_commands.command(Evtchn.BIND_INTERDOMAIN, EvtchnBindInterdomain)
def bind_interdomain(call: Call, argument: int) -> None:
    """Connect a new port to one that another domain has offered to the caller. It begins pending.

    ESRCH: no such domain; ENOSPC: no port is free; EINVAL: the remote port is not offered to the caller.
    """
    request = call.read(EvtchnBindInterdomain, argument)
    request.local_port = call.domain.events.bind_interdomain(request.remote_dom, request.remote_port)
    call.write(argument, request)


@_commands.command(Evtchn.BIND_VIRQ, EvtchnBindVirq)
def bind_virq(call: Call, argument: int) -> None:
    """Open a port on which the hypervisor raises a virtual interrupt.

    EINVAL: no such VIRQ, or one that is the domain's on another vCPU than 0; ENOENT: no such vCPU; EBUSY: a
    VIRQ of the privileged domain; EEXIST: bound already; ENOSPC: no port is free.
    """
    request = call.read(EvtchnBindVirq, argument)
    request.port = call.domain.events.bind_virq(request.virq, request.vcpu)
    call.write(argument, request)


@_commands.command(Evtchn.BIND_IPI, EvtchnBindIpi)
def bind_ipi(call: Call, argument: int) -> None:
    """Open a port by which the domain's vCPUs notify one of them.

    ENOENT: no such vCPU; ENOSPC: no port is free.
    """
    request = call.read(EvtchnBindIpi, argument)
    request.port = call.domain.events.bind_ipi(request.vcpu)
    call.write(argument, request)


@_commands.command(Evtchn.BIND_PIRQ, EvtchnBindPirq, Status.REFUSED)
def bind_pirq(call: Call, argument: int) -> None:
    """Open a port for a physical interrupt, of which a domain without devices has none.

    EINVAL: no such interrupt; EPERM.
    """
    call.domain.events.bind_pirq(call.read(EvtchnBindPirq, argument).pirq)


@_commands.command(Evtchn.CLOSE, EvtchnClose)
def close(call: Call, argument: int) -> None:
    """Free a port. One that was connected to it is unbound again, and offered to the caller.

    EINVAL: no such port, or free.
    """
    call.domain.events.close(call.read(EvtchnClose, argument).port)


@_commands.command(Evtchn.SEND, EvtchnSend)
def send(call: Call, argument: int) -> None:
    """Notify whoever is at the other end of a port; nobody is if it is unbound.

    EINVAL: no such port, or free, or one that only the hypervisor raises.
    """
    call.domain.events.send(call.memory.read_u32(argument))  # the structure is the port


@_commands.command(Evtchn.STATUS, EvtchnStatus)
def status(call: Call, argument: int) -> None:
    """Tell what a port of domain `dom`, the caller, is bound to.

    ESRCH: no domain `dom`; EPERM: not the caller; EINVAL: no such port.
    """
    request = call.read(EvtchnStatus, argument)
    found = call.domain.events.status(request.dom, request.port)
    request.status, request.vcpu = found.state, found.vcpu
    if found.state is PortState.INTERDOMAIN:
        request.u0, request.u1 = found.remote_dom or 0, found.remote_port or 0
    elif found.state is PortState.UNBOUND:
        request.u0 = found.remote_dom or 0
    elif found.state is PortState.VIRQ:
        request.u0 = found.virq or 0
    call.write(argument, request)


@_commands.command(Evtchn.BIND_VCPU, EvtchnBindVcpu)
def bind_vcpu(call: Call, argument: int) -> None:
    """Choose the vCPU that a port's events go to, from the next one on.

    ENOENT: no such vCPU; EINVAL: no such port, or free, or one that is a vCPU's own.
    """
    request = call.read(EvtchnBindVcpu, argument)
    call.domain.events.bind_vcpu(request.port, request.vcpu)


@_commands.command(Evtchn.UNMASK, EvtchnUnmask)
def unmask(call: Call, argument: int) -> None:
    """Clear a port's mask and deliver what it has held back; nothing if the port is free.

    EINVAL: no such port.
    """
    call.domain.events.unmask(call.read(EvtchnUnmask, argument).port)


@_commands.command(Evtchn.RESET, EvtchnReset)
def reset(call: Call, argument: int) -> None:
    """Close all ports of domain `dom`, the caller, and return to 2-level delivery. Gives way in between.

    ESRCH: no domain `dom`; EPERM: not the caller.
    """
    if not call.domain.events.reset(call.read(EvtchnReset, argument).dom, call.preempted):
        raise Again  # what is closed is closed: the same call goes on with the rest


@_commands.command(Evtchn.RESET_CONT, EvtchnReset, Status.REFUSED)
def reset_cont(call: Call, argument: int) -> None:
    """By this Xen continues a reset of its own; here `reset` itself is made again.

    ESRCH: no domain `dom`; EPERM: not the caller; EBUSY: no reset is in progress.
    """
    call.own(call.read(EvtchnReset, argument).dom)
    raise XenError(Errno.EBUSY, "no reset is in progress")


def _take_page(call: Call, number: int) -> FramePage:
    """A page of the guest's for pending events, with a writable reference; EINVAL."""
    mfn = call.own_frame(number)
    if not call.frames.take_writable(mfn):
        raise XenError(Errno.EINVAL, f"{call.frames.describe(mfn)} cannot be written")
    return FramePage(call.host.physical, mfn)


@_commands.command(Evtchn.INIT_CONTROL, EvtchnInitControl)
def init_control(call: Call, argument: int) -> None:
    """Give a vCPU its FIFO control block; the first switches the domain to FIFO delivery.

    ENOENT: no such vCPU; EINVAL: a block cannot lie at this offset, the vCPU has one, the frame is not the
    caller's or cannot be written.
    """
    request = call.read(EvtchnInitControl, argument)
    events = call.domain.events
    events.check_control(request.vcpu, request.offset)
    events.init_control(request.vcpu, _take_page(call, request.control_gfn), request.offset)
    request.link_bits = FIFO_LINK_BITS
    call.write(argument, request)


@_commands.command(Evtchn.EXPAND_ARRAY, EvtchnExpandArray)
def expand_array(call: Call, argument: int) -> None:
    """Add a page to the FIFO event array.

    EOPNOTSUPP: 2-level delivery; ENOSPC: the array is complete; EINVAL: the frame is not the caller's or
    cannot be written.
    """
    request = call.read(EvtchnExpandArray, argument)
    events = call.domain.events
    events.check_expansion()
    events.expand_array(_take_page(call, request.array_gfn))


@_commands.command(Evtchn.SET_PRIORITY, EvtchnSetPriority)
def set_priority(call: Call, argument: int) -> None:
    """Choose the queue of a port's next events: 0, the most urgent, to 15.

    EINVAL: no such port; ENOSYS: 2-level delivery has no queues; EACCES: the port is free; EINVAL: no such
    priority.
    """
    request = call.read(EvtchnSetPriority, argument)
    call.domain.events.set_priority(request.port, request.priority)
