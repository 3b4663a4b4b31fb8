# SPDX-License-Identifier: GPL-2.0-only
"""sched_op and the one-shot timer: leaving the processor for a time, or for good."""

import struct

import pytest

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Sched, Shutdown
from pyhv.abi.structs import (
    EvtchnBindIpi,
    EvtchnSend,
    RemoteShutdown,
    SchedPoll,
    SchedShutdown,
    SchedWatchdog,
)
from pyhv.testing.guest_machine import HEADER, SECOND, START, UNMAPPED, Paused, run
from pyhv.until import Outcome


def poll(guest: Paused, ports: list[int], count: int | None = None, at: int = 0) -> int:
    """SCHEDOP_poll, of ports that stand in the scratch pages if they do not stand at `at`."""
    array = at or guest.put(struct.pack(f"<{len(ports)}I", *ports), 0x800)
    return guest.sched_op(Sched.POLL, SchedPoll(ports=array, nr_ports=len(ports) if count is None else count))


def new_port(guest: Paused) -> int:
    """A port of the domain, bound to itself (an IPI)."""
    bound = EvtchnBindIpi(vcpu=0)
    assert guest.event_channel_op(bound) == 0
    return bound.port


# -- poll and block ----------------------------------------------------------------------------------------


def test_poll_returns_at_once_when_there_is_something(guest: Paused) -> None:
    port = new_port(guest)
    assert guest.event_channel_op(EvtchnSend(port=port)) == 0
    assert poll(guest, [port]) == 0
    assert not guest.vcpu.blocked
    guest.vcpu.info.upcall_masked = False
    assert poll(guest, [1]) == 0
    assert not guest.vcpu.blocked, "an unmasked upcall"


def test_poll_sleeps_without_touching_the_mask(guest: Paused) -> None:
    port = new_port(guest)
    guest.vcpu.info.upcall_masked = True
    assert poll(guest, [port]) == 0
    assert guest.vcpu.blocked
    assert guest.dispatcher.call.reschedule
    assert guest.vcpu.info.upcall_masked
    assert guest.vcpu.polling == frozenset({port})


@pytest.mark.promise("L-20")
def test_polls_that_are_refused(guest: Paused) -> None:
    assert poll(guest, [1], count=129) == -Errno.EINVAL
    assert poll(guest, [1], at=UNMAPPED) == -Errno.EFAULT
    for port in (0, 1 << 20, 0xFFFFFFFF):
        assert poll(guest, [port]) == -Errno.EINVAL
    assert guest.sched_op(Sched.POLL, UNMAPPED) == -Errno.EFAULT
    assert not guest.vcpu.blocked


SLEEPER = """
    mov edi, SCHEDOP_poll
    lea rsi, [rip + request]
    hypercall sched_op
    check e, "never"
.data
.balign 8
request: .quad 0, 0, {timeout}
.text
"""


@pytest.mark.parametrize("timeout", [1, 5_000_000])
def test_a_poll_ends_at_its_time(timeout: int) -> None:
    done = run(HEADER + START + SLEEPER.format(timeout=timeout).replace('check e, "never"', "succeed"))
    assert done.passed


@pytest.mark.parametrize("timeout", [0, 1 << 62, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("virtual", [True, False])
def test_a_poll_without_a_near_end_sleeps_until_the_machine_gives_up(timeout: int, virtual: bool) -> None:
    done = run(
        HEADER + START + SLEEPER.format(timeout=timeout), timeout_ns=SECOND // 50, virtual_time=virtual
    )
    assert done.outcome in (Outcome.TIMEOUT, Outcome.DEADLOCK)


def test_block(guest: Paused) -> None:
    guest.vcpu.info.upcall_masked = True
    guest.vcpu.info.mark_pending()
    assert guest.sched_op(Sched.BLOCK) == 0
    assert not guest.vcpu.info.upcall_masked
    assert not guest.vcpu.blocked, "the upcall is taken on the way out"
    guest.vcpu.info.page.write_u8(guest.vcpu.info.offset, 0)
    assert guest.sched_op(Sched.BLOCK) == 0
    assert guest.vcpu.blocked


# -- the end -----------------------------------------------------------------------------------------------


def test_the_old_form_takes_its_arguments_by_value(guest: Paused) -> None:
    assert guest.sched_op_compat(Sched.YIELD, 0) == 0
    assert guest.sched_op_compat(Sched.BLOCK, 0) == 0
    assert guest.vcpu.blocked
    assert guest.sched_op_compat(Sched.POLL, 0) == -Errno.ENOSYS
    assert guest.sched_op_compat(Sched.SHUTDOWN, 0xFFFF880000000164) == 0
    assert guest.domain.life.reason == 0x64


def test_other_scheduling_operations(guest: Paused) -> None:
    assert guest.sched_op(Sched.YIELD) == 0
    assert guest.sched_op(Sched.SHUTDOWN_CODE, SchedShutdown(reason=Shutdown.REBOOT)) == 0
    assert guest.domain.life.announced == Shutdown.REBOOT
    assert guest.domain.alive
    assert guest.sched_op(Sched.REMOTE_SHUTDOWN, RemoteShutdown(domain_id=0)) == -Errno.EPERM
    assert guest.sched_op(Sched.REMOTE_SHUTDOWN, RemoteShutdown(domain_id=77)) == -Errno.ESRCH
    assert guest.sched_op(Sched.PIN_OVERRIDE, guest.scratch) == -Errno.EPERM
    assert guest.sched_op(8, guest.scratch) == -Errno.ENOSYS
    assert guest.sched_op(Sched.SHUTDOWN, UNMAPPED) == -Errno.EFAULT
    assert guest.domain.alive


# -- watchdogs and the timer -------------------------------------------------------------------------------


def watchdog(guest: Paused, number: int, timeout: int) -> int:
    """SCHEDOP_watchdog."""
    return guest.sched_op(Sched.WATCHDOG, SchedWatchdog(id=number, timeout=timeout))


@pytest.mark.promise("L-15")
def test_watchdogs(guest: Paused) -> None:
    assert watchdog(guest, 1, 5) == -Errno.EINVAL, "not in use"
    assert watchdog(guest, 0, 5) == 1
    assert watchdog(guest, 0, 0xFFFFFFFF) == 2
    assert watchdog(guest, 0, 5) == -Errno.ENOSPC
    assert watchdog(guest, 3, 5) == -Errno.EINVAL
    assert watchdog(guest, 0xFFFFFFFF, 5) == -Errno.EINVAL
    assert watchdog(guest, 1, 9) == 0
    assert watchdog(guest, 1, 0) == 0
    assert watchdog(guest, 0, 5) == 1


def test_a_watchdog_bites() -> None:
    body = """
    mov edi, 6
    lea rsi, [rip + request]
    hypercall sched_op
    mov edi, SCHEDOP_block
    hypercall sched_op
    fail "woken up"
.data
request: .long 0, 1
.text
"""
    done = run(HEADER + START + body)
    assert done.outcome is Outcome.ENDED
    assert done.domain.life.reason == Shutdown.WATCHDOG


@pytest.mark.parametrize("deadline", [1, 1 << 63, (1 << 64) - 1, 1 << 62, 1 << 51])
def test_timers_never_fail(guest: Paused, deadline: int) -> None:
    assert guest.set_timer_op(deadline) == 0
    assert guest.set_timer_op(0) == 0
