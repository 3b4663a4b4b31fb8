# SPDX-License-Identifier: GPL-2.0-only
"""sched_op, its predecessor, and set_timer_op (public header `sched.h`)."""

from typing import Final

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall, Sched
from pyhv.abi.structs import RemoteShutdown, SchedPoll, SchedShutdown, SchedWatchdog
from pyhv.errors import XenError
from pyhv.events.timers import set_timer_deadline
from pyhv.hypercalls.context import WATCHDOGS, Call
from pyhv.hypercalls.signature import Ptr, u32, u64, ulong
from pyhv.hypercalls.table import Commands, Status, hypercall

_commands = Commands[[int], int](Hypercall.SCHED_OP, Sched)
_MAX_POLL: Final = 128
_SECOND: Final = 1_000_000_000
_FOREVER: Final = 1 << 62
"""Deadlines further ahead (ns) are cut to this: a host cannot sleep longer either."""


@hypercall(Hypercall.SCHED_OP)
def sched_op(call: Call, command: u32, argument: Ptr) -> int:
    """Leave the processor: for others, for a time, or for good.

    ENOSYS: no such command; EFAULT: its structure cannot be read.
    """
    return _commands[command](call, argument)


@hypercall(Hypercall.SCHED_OP_COMPAT)
def sched_op_compat(call: Call, command: u32, argument: ulong) -> int:
    """The old form of `sched_op`, for yield, block and shutdown; that one's reason comes by value.

    ENOSYS: any other command.
    """
    if command == Sched.YIELD:
        return yield_(call, 0)
    if command == Sched.BLOCK:
        return block(call, 0)
    if command == Sched.SHUTDOWN:
        return _end(call, argument & 0xFF)
    raise XenError(Errno.ENOSYS, f"sched_op_compat {command}")


@_commands.command(Sched.YIELD)
def yield_(call: Call, _argument: int) -> int:
    """Let other vCPUs run. The argument is not read."""
    call.host.yield_(call.vcpu)
    call.reschedule = True
    return 0


@_commands.command(Sched.BLOCK)
def block(call: Call, _argument: int) -> int:
    """Unmask events and, if none waits, leave the processor until one comes. The argument is not read."""
    vcpu = call.vcpu
    vcpu.info.upcall_masked = False
    if not vcpu.info.upcall_pending and not vcpu.nmi.deliverable:
        call.host.block(vcpu)
        call.reschedule = True
    return 0


def _end(call: Call, reason: int) -> int:
    call.host.end_domain(call.domain, reason & 0xFF)
    call.reschedule = True
    return 0


@_commands.command(Sched.SHUTDOWN, SchedShutdown)
def shutdown(call: Call, argument: int) -> int:
    """End the domain, for a SHUTDOWN reason; one that suspends waits for the toolstack to resume it."""
    return _end(call, call.read(SchedShutdown, argument).reason)


@_commands.command(Sched.SHUTDOWN_CODE, SchedShutdown)
def shutdown_code(call: Call, argument: int) -> int:
    """Say for which reason the domain will have ended, however it ends; only the first word counts."""
    reason = call.read(SchedShutdown, argument).reason
    if call.domain.life.announced is None:
        call.domain.life.announced = reason & 0xFF
    return 0


@_commands.command(Sched.POLL, SchedPoll)
def poll(call: Call, argument: int) -> int:
    """Leave the processor until one of some ports is pending, any event can be taken, or a time has come.

    EINVAL: more than 128 ports; then for each port, EFAULT, and EINVAL: no such port, or free.
    """
    request = call.read(SchedPoll, argument)
    if request.nr_ports > _MAX_POLL:
        raise XenError(Errno.EINVAL, f"poll of {request.nr_ports} ports")
    vcpu, memory = call.vcpu, call.memory
    if vcpu.info.deliverable:
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


@_commands.command(Sched.WATCHDOG, SchedWatchdog)
def watchdog(call: Call, argument: int) -> int:
    """Start (`id` 0), set anew or stop (`timeout` 0) one of the domain's two watchdogs; returns its `id`.

    ENOSPC: both are in use; EINVAL: no such watchdog, or not in use.
    """
    request = call.read(SchedWatchdog, argument)
    domain, host = call.domain, call.host
    deadline = max(host.now(), 1) + request.timeout * _SECOND
    if request.id == 0:
        for number in range(WATCHDOGS):
            if not host.watchdog_runs(domain, number):
                host.set_watchdog(domain, number, deadline)
                return number + 1
        raise XenError(Errno.ENOSPC, "both watchdogs are in use")
    if request.id > WATCHDOGS:
        raise XenError(Errno.EINVAL, f"no watchdog {request.id}")
    if not host.watchdog_runs(domain, request.id - 1):
        raise XenError(Errno.EINVAL, f"watchdog {request.id} is not in use")
    host.set_watchdog(domain, request.id - 1, deadline if request.timeout else 0)
    return 0


@_commands.command(Sched.REMOTE_SHUTDOWN, RemoteShutdown, Status.REFUSED)
def remote_shutdown(call: Call, argument: int) -> int:
    """End another domain.

    ESRCH: no such domain; EPERM.
    """
    call.existing(call.read(RemoteShutdown, argument).domain_id)
    raise XenError(Errno.EPERM, "remote_shutdown is for privileged domains")


_commands.refuse(Sched.PIN_OVERRIDE, Errno.EPERM, "Bind the vCPU to a physical processor for a while.")


@hypercall(Hypercall.SET_TIMER_OP)
def set_timer_op(call: Call, timeout: u64) -> int:
    """Arm the vCPU's one-shot timer at a system time in ns; 0 disarms it. Never fails."""
    deadline = set_timer_deadline(timeout, call.host.now())
    call.host.set_timer(call.vcpu, deadline or 0)
    return 0
