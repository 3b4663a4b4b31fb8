# SPDX-License-Identifier: GPL-2.0-only
"""event_channel_op and its predecessor (public header `event_channel.h`); the state is in `events/`."""

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Evtchn
from pyhv.abi.structs import (
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindIpi,
    EvtchnBindPirq,
    EvtchnBindVcpu,
    EvtchnBindVirq,
    EvtchnInitControl,
    EvtchnPort,
    EvtchnReset,
    EvtchnSetPriority,
    EvtchnStatus,
)
from pyhv.errors import XenError
from pyhv.events.channels import PortState
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.table import Commands, Status, hypercall

_commands = Commands("event_channel_op", Evtchn)


@hypercall(
    32, "event_channel_op", "command:u32 argument:ptr", Status.PARTIAL, "2-level only; FIFO is refused"
)
def event_channel_op(call: Call, command: int, argument: int) -> int:
    """Bind, close and signal event channels."""
    handler = _commands.handlers.get(command)
    if handler is None:
        raise XenError(Errno.ENOSYS, f"event_channel_op {command}")
    handler(call, argument)
    return 0


@hypercall(16, "event_channel_op_compat", "operation:ptr")
def event_channel_op_compat(call: Call, operation: int) -> int:
    """The old form: command and arguments in one structure."""
    return event_channel_op(call, call.memory.read_u32(operation), operation + 4)


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
    call.domain.events.send(call.memory.read_u32(argument))


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
    call.domain.events.unmask(call.memory.read_u32(argument))


@_commands.command(Evtchn.RESET)
def _reset(call: Call, argument: int) -> None:
    call.domain.events.reset(call.read(EvtchnReset, argument).dom)


@_commands.command(
    Evtchn.INIT_CONTROL, Status.REFUSED, "EINVAL for a bad frame, else ENOSYS: guests use 2-level"
)
def _init_control(call: Call, argument: int) -> None:
    request = call.read(EvtchnInitControl, argument)
    frames, mfn = call.frames, request.control_gfn
    usable = 0 < mfn < frames.count and frames.owner[mfn] == call.domain.domid
    call.domain.events.init_control(request.vcpu, request.offset, usable)


@_commands.command(Evtchn.EXPAND_ARRAY, Status.REFUSED, "not in FIFO mode: EOPNOTSUPP")
def _expand_array(call: Call, _argument: int) -> None:
    call.domain.events.expand_array()


@_commands.command(Evtchn.SET_PRIORITY, Status.REFUSED, "not in FIFO mode: ENOSYS")
def _set_priority(call: Call, argument: int) -> None:
    request = call.read(EvtchnSetPriority, argument)
    call.domain.events.set_priority(request.port, request.priority)
