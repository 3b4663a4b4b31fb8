# SPDX-License-Identifier: GPL-2.0-only
"""A domain that suspends itself, and is resumed."""

import pytest

from pyhv.abi.numbers import Shutdown
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.errors import ConfigError
from pyhv.loader.elf import load_image
from pyhv.machine import Machine
from pyhv.testing.guest_machine import HEADER, PAGES, START, Sink, image_of, machine
from pyhv.until import Outcome

SUSPEND = """
    mov edi, SCHEDOP_shutdown
    lea rsi, [rip + reason]
    hypercall sched_op
"""
DATA = """
.data
.balign 8
reason: .long 2, 0
ports: .long 0
.balign 8
poll: .quad 0, 1, 0
"""


def create(made: Machine, body: str) -> tuple[Domain, Sink]:
    sink = Sink()
    image = load_image(image_of(HEADER + START + body + DATA), "guest")
    return made.create(image, DomainConfig("guest", PAGES), console=sink), sink


@pytest.mark.parametrize("cancelled", [True, False])
def test_a_suspended_domain_goes_on_where_it_was(cancelled: bool) -> None:
    body = f"""
    print "before\\n"
{SUSPEND}
    cmp rax, {int(cancelled)}
    check e, "the result of the suspension"
    succeed
"""
    with machine(pages=2 * PAGES) as made:
        domain, sink = create(made, body)
        with pytest.raises(ConfigError, match="running, so it cannot be resumed"):
            made.resume(domain, cancelled=True)
        assert made.run() is Outcome.ENDED
        assert domain.suspended
        assert not domain.alive
        assert sink.data == b"before\n", "all that it has said has arrived"
        assert made.audit() == []
        assert made.run() is Outcome.ENDED, "nothing happens to it"
        made.resume(domain, cancelled=cancelled)
        assert made.run() is Outcome.ENDED
        assert domain.life.reason == Shutdown.POWEROFF
        assert b"SUCCESS" in sink.data
        assert made.audit() == []


def test_events_for_a_suspended_domain_wait() -> None:
    body = (
        """
    mov eax, [rip + ports]
    lea rax, [rip + ports]
    mov [rip + poll], rax
    mov rdi, [rip + start_info]
    mov eax, [rdi + START_INFO_console_evtchn]
    mov [rip + ports], eax
"""
        + SUSPEND
        + """
    mov edi, SCHEDOP_poll
    lea rsi, [rip + poll]
    hypercall sched_op
    succeed
"""
    )
    with machine(pages=2 * PAGES) as made:
        domain, sink = create(made, body)
        made.run()
        assert domain.suspended
        assert made.residents.channels(domain.domid) is domain.events
        assert made.input(domain, b"x") == 1, "it waits for it"
        made.dom0.channels.send(domain.events.status(domain.domid, 2).remote_port)
        assert made.run() is Outcome.ENDED
        assert domain.suspended, "it does not wake"
        made.resume(domain, cancelled=True)
        assert made.run() is Outcome.ENDED
        assert b"SUCCESS" in sink.data


def test_others_run_while_one_is_suspended() -> None:
    with machine(pages=2 * PAGES) as made:
        domain, _ = create(made, SUSPEND + "    succeed\n")
        _, other = create(made, '    print "alone\\n"\n    succeed\n')
        assert made.run() is Outcome.ENDED
        assert domain.suspended
        assert b"SUCCESS" in other.data
        assert made.audit() == []


def test_an_announced_code_is_what_a_shutdown_is_recorded_as() -> None:
    body = """
    mov edi, 5
    lea rsi, [rip + reason]
    hypercall sched_op
    must_succeed "shutdown_code"
    mov dword ptr [rip + reason + 4], 9
    mov edi, 5
    lea rsi, [rip + reason + 4]
    hypercall sched_op
    must_succeed "shutdown_code, which does nothing the second time"
    succeed
"""
    with machine(pages=2 * PAGES) as made:
        domain, _ = create(made, body)
        assert made.run() is Outcome.ENDED
        assert domain.life.reason == Shutdown.SUSPEND
