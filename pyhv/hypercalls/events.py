# SPDX-License-Identifier: GPL-2.0-only
"""event_channel_op and its predecessor (public header `event_channel.h`); the state is in `events/`."""

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Evtchn
from pyhv.abi.shared import FIFO_LINK_BITS
from pyhv.abi.structs import (
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindIpi,
    EvtchnBindPirq,
    EvtchnBindVcpu,
    EvtchnBindVirq,
    EvtchnExpandArray,
    EvtchnInitControl,
    EvtchnOp,
    EvtchnPort,
    EvtchnReset,
    EvtchnSetPriority,
    EvtchnStatus,
)
from pyhv.errors import XenError
from pyhv.events.channels import PortState
from pyhv.hypercalls.context import Again, Call
from pyhv.hypercalls.table import Commands, Status, hypercall
from pyhv.mmu.memory import FramePage

_commands = Commands("event_channel_op", Evtchn)


@hypercall(32, "event_channel_op", "command:u32 argument:ptr")
def event_channel_op(call: Call, command: int, argument: int) -> int:
    """Bind, close and signal event channels."""
    handler = _commands.handlers.get(command)
    if handler is None:
        raise XenError(Errno.ENOSYS, f"event_channel_op {command}")
    handler(call, argument)
    return 0


@hypercall(16, "event_channel_op_compat", "operation:ptr")
def event_channel_op_compat(call: Call, operation: int) -> int:
    """The old form: command and arguments in one structure. Commands younger than it are ENOSYS."""
    command = call.read(EvtchnOp, operation).cmd
    if command > Evtchn.UNMASK:
        raise XenError(Errno.ENOSYS, f"event_channel_op_compat {command}")
    return event_channel_op(call, command, operation + EvtchnOp.layout(call.width).offsets["u"])


@_commands.command(Evtchn.ALLOC_UNBOUND)
def _alloc_unbound(call: Call, argument: int) -> None:
    request = call.read(EvtchnAllocUnbound, argument)
    request.port = call.domain.events.alloc_unbound(request.dom, request.remote_dom)
    call.write(argument, request)


@_commands.command(Evtchn.BIND_INTERDOMAIN)
def _bind_interdomain(call: Call, argument: int) -> None:
    request = call.read(EvtchnBindInterdomain, argument)
    request.local_port = call.domain.events.bind_interdomain(request.remote_dom, request.remote_port)
    call.write(argument, request)


@_commands.command(Evtchn.BIND_VIRQ)
def _bind_virq(call: Call, argument: int) -> None:
    request = call.read(EvtchnBindVirq, argument)
    request.port = call.domain.events.bind_virq(request.virq, request.vcpu)
    call.write(argument, request)


@_commands.command(Evtchn.BIND_IPI)
def _bind_ipi(call: Call, argument: int) -> None:
    request = call.read(EvtchnBindIpi, argument)
    request.port = call.domain.events.bind_ipi(request.vcpu)
    call.write(argument, request)


@_commands.command(Evtchn.BIND_PIRQ, Status.REFUSED, "a domU owns no interrupts")
def _bind_pirq(call: Call, argument: int) -> None:
    call.domain.events.bind_pirq(call.read(EvtchnBindPirq, argument).pirq)


@_commands.command(Evtchn.CLOSE)
def _close(call: Call, argument: int) -> None:
    call.domain.events.close(call.read(EvtchnPort, argument).port)


@_commands.command(Evtchn.SEND)
def _send(call: Call, argument: int) -> None:
    (port,) = call.fields(EvtchnPort, argument)
    call.domain.events.send(port)


@_commands.command(Evtchn.STATUS)
def _status(call: Call, argument: int) -> None:
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


@_commands.command(Evtchn.BIND_VCPU)
def _bind_vcpu(call: Call, argument: int) -> None:
    request = call.read(EvtchnBindVcpu, argument)
    call.domain.events.bind_vcpu(request.port, request.vcpu)


@_commands.command(Evtchn.UNMASK)
def _unmask(call: Call, argument: int) -> None:
    call.domain.events.unmask(call.read(EvtchnPort, argument).port)


@_commands.command(Evtchn.RESET)
def _reset(call: Call, argument: int) -> None:
    if not call.domain.events.reset(call.read(EvtchnReset, argument).dom, call.preempted):
        raise Again  # what is closed is closed: the same call goes on with the rest


@_commands.command(Evtchn.RESET_CONT, Status.REFUSED, "Xen's own continuation of reset: EBUSY")
def _reset_cont(call: Call, argument: int) -> None:
    call.own(call.read(EvtchnReset, argument).dom)
    raise XenError(Errno.EBUSY, "no reset is in progress")


def _take_page(call: Call, mfn: int) -> FramePage:
    """A page of the guest's for pending events, with a writable reference; EINVAL."""
    if not call.frames.take_writable(call.own_frame(mfn)):
        raise XenError(Errno.EINVAL, f"{call.frames.describe(mfn)} cannot be written")
    return FramePage(call.host.physical, mfn)


@_commands.command(Evtchn.INIT_CONTROL)
def _init_control(call: Call, argument: int) -> None:
    request = call.read(EvtchnInitControl, argument)
    events = call.domain.events
    events.check_control(request.vcpu, request.offset)
    events.init_control(request.vcpu, _take_page(call, request.control_gfn), request.offset)
    request.link_bits = FIFO_LINK_BITS
    call.write(argument, request)


@_commands.command(Evtchn.EXPAND_ARRAY)
def _expand_array(call: Call, argument: int) -> None:
    request = call.read(EvtchnExpandArray, argument)
    events = call.domain.events
    events.check_expansion()
    events.expand_array(_take_page(call, request.array_gfn))


@_commands.command(Evtchn.SET_PRIORITY, note="2-level has none: ENOSYS")
def _set_priority(call: Call, argument: int) -> None:
    request = call.read(EvtchnSetPriority, argument)
    call.domain.events.set_priority(request.port, request.priority)
