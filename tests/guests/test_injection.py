# SPDX-License-Identifier: GPL-2.0-only
"""Faults on purpose: each strikes what it is meant for and nothing else, and leaves nothing behind."""

from collections.abc import Callable

import pytest

import pyhv
from pyhv.abi.numbers import Hypercall
from pyhv.errors import ConfigError
from pyhv.testing.injection import Attempt, Injector
from pyhv.testing.under_test import GuestUnderTest, MachineUnderTest
from pyhv.until import Outcome

START = """
.include "xen.inc"
.include "kernel.inc"
.include "paging.inc"
.text
_start:
    kernel_entry
"""

VERSIONS = (
    START
    + """
    mov ebx, 4
.next:
    mov edi, XENVER_version
    xor esi, esi
    hypercall xen_version
    mov rdi, rax
    call put_signed
    print " "
    dec ebx
    jnz .next
    mov edi, 7                                      # XENVER_pagesize
    xor esi, esi
    hypercall xen_version
    mov rdi, rax
    call put_signed
    print "\\n"
    succeed
"""
)

VERSIONS32 = """
.width 32
.include "xen.inc"
.include "kernel32.inc"
.text
_start:
    kernel_entry
    mov ebp, 3
.next:
    mov ebx, XENVER_version
    xor ecx, ecx
    hypercall xen_version
    call put_signed
    print " "
    dec ebp
    jnz .next
    succeed
"""

CALLED_TOGETHER = (
    START
    + """
    lea rdi, [rip + calls]
    mov esi, 3
    hypercall multicall
    must_succeed "multicall"
    lea rbx, [rip + calls]
    mov ebp, 3
.next:
    mov rdi, [rbx + 8]
    call put_signed
    print " "
    add rbx, 64
    dec ebp
    jnz .next
    succeed
.data
.balign 8
calls:
    .quad 17, 77, 0, 0, 0, 0, 0, 0                  # xen_version: XENVER_version
    .quad 17, 77, 0, 0, 0, 0, 0, 0
    .quad 17, 77, 7, 0, 0, 0, 0, 0                  # XENVER_pagesize
"""
)

LISTS = (
    START
    + """
    lea rdi, [rip + operations]
    mov esi, 2
    lea rdx, [rip + done]
    mov r10d, 0x7ff0
    hypercall mmuext_op
    mov rdi, rax
    call put_signed
    print " "
    mov edi, [rip + done]
    call put_dec
    print "\\n"
    succeed
.data
.balign 8
operations:
    .long 6, 0                                      # MMUEXT_TLB_FLUSH_LOCAL
    .quad 0, 0
    .long 6, 0
    .quad 0, 0
done: .long 99
"""
)

VERSION = 0x40011
ENOMEM = 12

Ran = Callable[[], str]


@pytest.fixture
def printed(pyhv_machine: MachineUnderTest) -> Ran:
    """Run the machine to its end; what the guest has printed."""

    def run() -> str:
        assert pyhv_machine.run() is Outcome.ENDED
        return pyhv_machine.had[0].console.text

    return run


@pytest.mark.guest(VERSIONS)
class TestHypercalls:
    def test_the_nth_of_a_hypercall(
        self, guests: list[GuestUnderTest], inject: Injector, printed: Ran
    ) -> None:
        fault = inject.hypercall("xen_version", errno="ENOMEM", nth=(2, 5))
        assert printed().startswith(f"{VERSION} -12 {VERSION} {VERSION} -12\nSUCCESS")
        assert (fault.seen, fault.struck) == (5, 2)
        assert str(fault) == "xen_version fails with ENOMEM: no. 2, no. 5 of 5, 2 of them struck"

    def test_one_command_alone(self, guests: list[GuestUnderTest], inject: Injector, printed: Ran) -> None:
        fault = inject.hypercall("xen_version", "pagesize", errno="EPERM")
        assert printed().startswith(f"{VERSION} {VERSION} {VERSION} {VERSION} -1\n")
        assert (fault.seen, fault.struck) == (1, 1)

    def test_by_a_predicate(self, guests: list[GuestUnderTest], inject: Injector, printed: Ran) -> None:
        asked: list[Attempt] = []

        def when(attempt: Attempt) -> bool:
            asked.append(attempt)
            return len(asked) > 3

        inject.hypercall("xen_version", errno="ENOSYS", when=when, nth=1)
        assert printed().startswith(f"{VERSION} {VERSION} {VERSION} -38 4096\n")
        assert asked[0] == Attempt("xen_version", (0, 0))

    def test_several_at_one_place_and_their_ends(
        self, guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
    ) -> None:
        forms = pyhv_machine.hypervisor.residents[1].dispatcher.forms
        original = forms[Hypercall.XEN_VERSION]
        first = inject.hypercall("xen_version", errno="ENOMEM", nth=1)
        second = inject.hypercall("xen_version", errno="EPERM", nth=1)
        guests[0].expect(r"-12? ")
        first.end()
        first.end()
        guests[0].expect(r"-12? ")
        assert (first.struck, second.struck) == (1, 1)
        second.end()
        assert forms[Hypercall.XEN_VERSION] is original
        assert guests[0].wait().reason == "poweroff"

    def test_a_predicate_that_raises_ends_the_run_and_not_the_machine(
        self, guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
    ) -> None:
        fault = inject.hypercall("xen_version", errno="ENOMEM", when=lambda _attempt: bool(1 // 0))
        with pytest.raises(ZeroDivisionError):
            pyhv_machine.run()
        fault.end()
        assert pyhv_machine.audit() == []
        assert guests[0].wait().reason == "poweroff"

    def test_what_makes_no_sense(self, guests: list[GuestUnderTest], inject: Injector) -> None:
        mistakes: tuple[Callable[[], object], ...] = (
            lambda: inject.hypercall("no_such", errno="ENOMEM"),
            lambda: inject.hypercall("iret", errno="ENOMEM"),
            lambda: inject.hypercall("xen_version", "no_such", errno="ENOMEM"),
            lambda: inject.hypercall("mmu_update", "no_such", errno="ENOMEM"),
            lambda: inject.hypercall("xen_version", errno="EWHAT"),
            lambda: inject.hypercall("xen_version", errno="ENOMEM", nth=0),
            lambda: inject.hypercall("xen_version", errno="ENOMEM", nth=()),
            lambda: inject.grant_map(status="no_such"),
            lambda: inject.event(virq="timer"),
            lambda: inject.event(drop=True, delay=1),
            lambda: inject.event(delay=-1),
            lambda: inject.event(virq="no_such", drop=True),
            lambda: inject.store("EWHAT"),
            lambda: inject.store("EAGAIN", "no_such"),
            lambda: inject.console(seconds=-1),
        )
        for mistake in mistakes:
            with pytest.raises(ConfigError):
                mistake()
        guests[0].wait()
        with pytest.raises(ConfigError, match="has ended"):
            inject.hypercall("xen_version", errno="ENOMEM")


@pytest.mark.guest(VERSIONS32)
def test_of_a_32_bit_guest(guests: list[GuestUnderTest], inject: Injector, printed: Ran) -> None:
    inject.hypercall("xen_version", errno="ENOMEM", nth=2)
    assert printed().startswith(f"{VERSION} -12 {VERSION} SUCCESS")


@pytest.mark.guest(CALLED_TOGETHER)
def test_inside_a_multicall(guests: list[GuestUnderTest], inject: Injector, printed: Ran) -> None:
    inject.hypercall("xen_version", errno="ENOMEM", nth=2)
    assert printed().startswith(f"{VERSION} -12 4096 SUCCESS")


@pytest.mark.guest(LISTS)
@pytest.mark.parametrize("command", [None, "tlb_flush_local"])
def test_a_list_of_which_nothing_is_done(
    guests: list[GuestUnderTest], inject: Injector, printed: Ran, command: str | None
) -> None:
    fault = inject.hypercall("mmuext_op", command, errno="EINVAL", nth=1)
    assert printed().startswith("-22 0\n")
    assert fault.struck == 1


@pytest.mark.guest(LISTS)
def test_a_list_without_the_command(guests: list[GuestUnderTest], inject: Injector, printed: Ran) -> None:
    fault = inject.hypercall("mmuext_op", "clear_page", errno="EINVAL")
    assert printed().startswith("0 2\n")
    assert fault.seen == 0


@pytest.mark.guest("hello")
@pytest.mark.guest(VERSIONS)
def test_of_one_guest_and_not_of_another(
    guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
) -> None:
    fault = inject.hypercall("xen_version", errno="ENOMEM", guest=guests[1])
    pyhv_machine.run()
    assert "SUCCESS" in guests[0].console.text
    assert "-12 -12 -12 -12 -12" in guests[1].console.text
    assert fault.struck == 5


@pytest.mark.guest("ping")
@pytest.mark.guest("pong")
class TestPeers:
    def test_a_grant_is_not_mapped(
        self, guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
    ) -> None:
        fault = inject.grant_map(status="NO_SPACE", nth=1, guest=guests[1])
        pyhv_machine.run()
        assert "FAILURE" in guests[1].console.text
        assert fault.struck == 1
        assert pyhv_machine.audit() == []

    def test_a_later_grant_is_not_meant(
        self, guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
    ) -> None:
        fault = inject.grant_map(nth=100, guest=guests[1])
        pyhv_machine.run()
        assert all("SUCCESS" in guest.console.text for guest in guests)
        assert (fault.seen, fault.struck) == (1, 0)

    def test_the_store_refuses(
        self, guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
    ) -> None:
        fault = inject.store("EAGAIN", "read", path="domid")
        pyhv_machine.run()
        assert "FAILURE: xenstore has no node `domid` for this domain" in guests[0].console.text
        assert (fault.seen, fault.struck) == (1, 1)

    def test_other_requests_are_answered(
        self, guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
    ) -> None:
        faults = [
            inject.store("EAGAIN", "write", path="domid"),
            inject.store("EAGAIN", "read", path="nothing/*"),
            inject.store("EAGAIN", when=lambda request: request.operation == "mkdir"),
        ]
        pyhv_machine.run()
        assert all("SUCCESS" in guest.console.text for guest in guests)
        assert [fault.struck for fault in faults] == [0, 0, 0]

    def test_an_event_between_them_is_lost(
        self, guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
    ) -> None:
        fault = inject.event(drop=True, when=lambda status: status.remote_dom == guests[0].domid,
                             guest=guests[1])  # fmt: skip
        pyhv_machine.run()
        assert "the peer did not answer within 10 seconds" in guests[0].console.text + guests[1].console.text
        assert fault.struck >= 1


def times(text: str) -> list[int]:
    """When the ticks came, in ms."""
    return [round(int(line.split()[-2]) / 1000) for line in text.splitlines() if line.startswith("  tick ")]


@pytest.mark.guest("ticker")
class TestTimers:
    def test_one_comes_late(self, guests: list[GuestUnderTest], inject: Injector, printed: Ran) -> None:
        fault = inject.timer(late=0.025, nth=2)
        assert times(printed()) == [10, 45, 55, 65, 75]
        assert (fault.seen, fault.struck) == (5, 1)

    def test_all_come_late(self, guests: list[GuestUnderTest], inject: Injector, printed: Ran) -> None:
        inject.event(virq="timer", delay=0.005)
        assert times(printed()) == [15, 30, 45, 60, 75]

    def test_one_is_lost(
        self, guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
    ) -> None:
        fault = inject.event(virq="timer", drop=True, nth=3)
        assert pyhv_machine.run() is Outcome.DEADLOCK
        assert times(guests[0].console.text) == [10, 20]
        assert fault.struck == 1

    def test_an_event_under_way_goes_into_snapshots(
        self, guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest, tmp_path: object
    ) -> None:
        inject.timer(late=0.025, nth=2)
        pyhv_machine.run(seconds=0.030)
        snapshot = pyhv_machine.snapshot()
        pyhv_machine.run()
        assert times(guests[0].console.text) == [10, 45, 55, 65, 75]
        with pyhv.Machine.of(snapshot) as other:
            guest = other.guests[0]
            other.run()
            assert times(guest.console.text) == [10, 45, 55, 65, 75]

    def test_nothing_is_left_behind(
        self, guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
    ) -> None:
        fault = inject.timer(late=0.025)
        events = pyhv_machine.hypervisor.residents[1].domain.events
        guests[0].expect("tick 1")
        assert "_set_pending" in vars(events)
        fault.end()
        assert "_set_pending" not in vars(events)
        pyhv_machine.run()
        assert times(guests[0].console.text) == [35, 45, 55, 65, 75]


@pytest.mark.guest("ticker")
class TestConsole:
    def test_nobody_reads_it_for_a_while(
        self, guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
    ) -> None:
        inject.console(seconds=0.001)
        pyhv_machine.run(seconds=0.0009)
        assert guests[0].console.text == ""
        guests[0].expect("ticker")
        assert 0.001 <= pyhv_machine.time < 0.0012
        pyhv_machine.run()
        assert times(guests[0].console.text) == [10, 20, 30, 40, 50]

    def test_nobody_reads_it_until_it_ends(
        self, guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
    ) -> None:
        fault = inject.console()
        pyhv_machine.run(seconds=0.0009)
        assert guests[0].console.text == ""
        fault.end()
        guests[0].expect("ticker")
        assert pyhv_machine.time < 0.001

    def test_the_words_of_one_that_ends_meanwhile_are_lost(
        self, guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
    ) -> None:
        inject.console()
        pyhv_machine.run(seconds=0.0005)
        guests[0].destroy()
        assert guests[0].console.text == ""


FLOOD = (
    START
    + """
    mov ebx, 400
.next:
    print "0123456789\\n"
    dec ebx
    jnz .next
    succeed
"""
)


@pytest.mark.guest(FLOOD)
def test_a_guest_waits_for_a_console_that_stalls(
    guests: list[GuestUnderTest], inject: Injector, pyhv_machine: MachineUnderTest
) -> None:
    inject.console(seconds=0.001)
    guests[0].wait()
    assert pyhv_machine.time >= 0.001
    assert guests[0].console.text.count("0123456789\n") == 400


@pytest.mark.guest("ticker")
def test_the_same_faults_make_the_same_run(
    pyhv_machine: MachineUnderTest, inject: Injector, guests: list[GuestUnderTest]
) -> None:
    before = pyhv_machine.snapshot()
    runs = []
    for _ in range(2):
        faults = [inject.timer(late=0.003, nth=(1, 3)), inject.hypercall("sched_op", errno="EAGAIN", nth=4)]
        pyhv_machine.run()
        runs.append((guests[0].console.text, pyhv_machine.time, [(one.seen, one.struck) for one in faults]))
        for fault in faults:
            fault.end()
        pyhv_machine.revert(before)
    assert runs[0] == runs[1]
