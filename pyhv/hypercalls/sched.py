# SPDX-License-Identifier: GPL-2.0-only
"""sched_op, its predecessor, and set_timer_op (public header `sched.h`)."""

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Sched
from pyhv.abi.structs import RemoteShutdown, SchedPoll, SchedShutdown, SchedWatchdog
from pyhv.errors import XenError
from pyhv.events.timers import set_timer_deadline
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.table import Commands, Status, hypercall

_commands = Commands("sched_op", Sched)
_MAX_POLL = 128
_SECOND = 1_000_000_000
_FOREVER = 1 << 62
"""Deadlines further ahead (ns) are cut to this: a host cannot sleep longer either."""


@hypercall(29, "sched_op", "command:u32 argument:ptr")
def sched_op(call: Call, command: int, argument: int) -> int:
    """Yield, block, poll, shut down, watchdog."""
    handler = _commands.handlers.get(command)
    if handler is None:
        raise XenError(Errno.ENOSYS, f"sched_op {command}")
    result: int = handler(call, argument)
    return result


@hypercall(6, "sched_op_compat", "command:u32 argument:ulong")
def sched_op_compat(call: Call, command: int, argument: int) -> int:
    """The old form: arguments by value, three commands."""
    if command == Sched.YIELD:
        return _yield(call, 0)
    if command == Sched.BLOCK:
        return _block(call, 0)
    if command == Sched.SHUTDOWN:
        return _end(call, argument & 0xFF)
    raise XenError(Errno.ENOSYS, f"sched_op_compat {command}")


@_commands.command(Sched.YIELD)
def _yield(call: Call, _argument: int) -> int:
    call.host.yield_(call.vcpu)
    call.reschedule = True
    return 0


@_commands.command(Sched.BLOCK)
def _block(call: Call, _argument: int) -> int:
    vcpu = call.vcpu
    vcpu.upcall_masked = False
    if not vcpu.upcall_pending and not vcpu.nmi_deliverable:
        call.host.block(vcpu)
        call.reschedule = True
    return 0


def _end(call: Call, reason: int) -> int:
    call.host.end_domain(call.domain, reason & 0xFF)
    call.reschedule = True
    return 0


@_commands.command(Sched.SHUTDOWN, note="a suspended domain waits for the toolstack to resume it")
def _shutdown(call: Call, argument: int) -> int:
    return _end(call, call.read(SchedShutdown, argument).reason)


@_commands.command(Sched.SHUTDOWN_CODE)
def _shutdown_code(call: Call, argument: int) -> int:
    reason = call.read(SchedShutdown, argument).reason
    if call.domain.shutdown_code is None:
        call.domain.shutdown_code = reason & 0xFF
    return 0


@_commands.command(Sched.POLL)
def _poll(call: Call, argument: int) -> int:
    request = call.read(SchedPoll, argument)
    if request.nr_ports > _MAX_POLL:
        raise XenError(Errno.EINVAL, f"poll of {request.nr_ports} ports")
    vcpu, memory = call.vcpu, call.memory
    if vcpu.event_deliverable():
        return 0
    ports: set[int] = set()
    for number in range(request.nr_ports):
        port = memory.read_u32(request.ports + 4 * number)
        if call.domain.events.is_pending(port):
            return 0
        ports.add(port)
    call.host.poll(vcpu, frozenset(ports), min(request.timeout, _FOREVER))
    call.reschedule = True
    return 0


@_commands.command(Sched.WATCHDOG)
def _watchdog(call: Call, argument: int) -> int:
    request = call.read(SchedWatchdog, argument)
    timers = call.domain.watchdogs
    deadline = max(call.host.now(), 1) + request.timeout * _SECOND
    if request.id == 0:
        for number, timer in enumerate(timers):
            if not timer.running:
                call.host.set_watchdog(call.domain, number, deadline)
                return number + 1
        raise XenError(Errno.ENOSPC, "both watchdogs are in use")
    if request.id > len(timers):
        raise XenError(Errno.EINVAL, f"no watchdog {request.id}")
    if not timers[request.id - 1].running:
        raise XenError(Errno.EINVAL, f"watchdog {request.id} is not in use")
    call.host.set_watchdog(call.domain, request.id - 1, deadline if request.timeout else 0)
    return 0


@_commands.command(Sched.REMOTE_SHUTDOWN, Status.REFUSED, "EPERM; ESRCH for an unknown domain")
def _remote_shutdown(call: Call, argument: int) -> int:
    call.existing(call.read(RemoteShutdown, argument).domain_id)
    raise XenError(Errno.EPERM, "remote_shutdown is for privileged domains")


_commands.refuse({Sched.PIN_OVERRIDE: Errno.EPERM})


@hypercall(15, "set_timer_op", "timeout:u64")
def set_timer_op(call: Call, timeout: int) -> int:
    """Arm the vCPU's one-shot timer (absolute ns), 0 cancels."""
    deadline = set_timer_deadline(timeout, call.host.now())
    call.host.set_timer(call.vcpu, deadline or 0)
    return 0
