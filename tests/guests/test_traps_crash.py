# SPDX-License-Identifier: GPL-2.0-only
"""What ends a domain: each fatal cause gives a report and an orderly end of the machine, and nothing else."""

import pytest

from pyhv.cpu.exits import ExitKind
from pyhv.testing.guest_machine import HEADER, START, TRAPS, Run, run
from pyhv.until import Outcome


def crashes(body: str, *, traps: bool = False) -> Run:
    """Run a kernel that must crash, without ever getting to its end."""
    done = run(HEADER + START + (TRAPS if traps else "") + body + "\n    succeed\n")
    assert done.outcome is Outcome.ENDED
    assert done.domain.life.crashed
    assert not done.domain.alive
    assert "SUCCESS" not in done.output
    assert done.report is not None
    assert done.report.cause == done.domain.life.cause
    return done


def cause(done: Run) -> str:
    assert done.report is not None
    return done.report.cause


@pytest.mark.promise("I-13")
@pytest.mark.parametrize(
    ("code", "vector"),
    [
        ("ud2", "UD"),
        ("hlt", "GP"),
        ("xor ecx, ecx\n    div ecx", "DE"),
        ("mov rax, 0x7fff00000000\n    mov rax, [rax]", "PF"),
        ("int3", "BP"),
        ("int 0x20", "GP"),
        ("int 0x80", "GP"),
        ("sysenter", "no handler"),
    ],
)
def test_an_exception_without_a_handler(code: str, vector: str) -> None:
    assert vector in cause(crashes(f"    {code}\n"))


@pytest.mark.promise("E-4")
def test_the_report_shows_the_vcpu() -> None:
    done = crashes("    mov rbx, 0x1234\n    push rbx\n    ud2\n")
    report = done.report
    assert report is not None
    assert report.registers.rbx == 0x1234
    assert report.code.startswith(b"\x0f\x0b")
    assert report.stack[0] == 0x1234
    assert report.kernel_mode
    assert report.vcpu == 0
    assert report.registers.cs.selector == 0xE033
    assert report.last_exits[-1][0] is ExitKind.INVALID_OPCODE
    assert report.last_exits[-1][2] == report.registers.rip


@pytest.mark.parametrize(
    ("stack", "words"),
    [
        ("0x7fff00000000", "no kernel stack"),
        ("0x800000000000", "no kernel stack"),
        ("0xffff800000000100", "hypervisor's area"),
        ("0xffff880000000000", "hypervisor's area"),
        ("0xffff800000000000", "no kernel stack"),
        ("0", "hypervisor's area"),
    ],
)
def test_an_exception_without_a_stack(stack: str, words: str) -> None:
    assert words in cause(crashes(f"    mov rsp, {stack}\n    ud2\n", traps=True))


def test_a_read_only_stack() -> None:
    body = """
    lea rdi, [rip + page]
    mov esi, PTE_P | PTE_A
    call remap
    must_succeed "remap"
    lea rsp, [rip + page + 0x800]
    ud2
.bss
.balign PAGE_SIZE
page: .zero PAGE_SIZE
.text
"""
    assert "no kernel stack" in cause(crashes(body, traps=True))


def test_a_handler_that_is_nowhere_ends_when_the_stack_does() -> None:
    """Each page fault at the handler's address gives the next; no exception is ever a double fault."""
    body = """
    lea rdi, [rip + table]
    hypercall set_trap_table
    ud2
.data
.balign 8
table:
    .byte 6, 0
    .short FLAT_RING3_CS64
    .long 0
    .quad 0x7fff00000000
    .byte 14, 0
    .short FLAT_RING3_CS64
    .long 0
    .quad 0x7fff00001000
    .quad 0, 0
.text
"""
    done = crashes(body)
    assert "no kernel stack" in cause(done) or "hypervisor's area" in cause(done)
    assert done.dispatcher.counts[ExitKind.PAGE_FAULT] > 10


def test_an_event_without_a_callback() -> None:
    body = """
    mov rsi, [rip + start_info]
    mov byte ptr [rip + shared_info + 1], 0
    mov byte ptr [rip + shared_info], 1
    mov edi, XENVER_version
    xor esi, esi
    hypercall xen_version
"""
    assert "no handler" in cause(crashes(body, traps=True))


IRET = """
    push {ss}
    push rsp
    push 0x202
    push {cs}
    lea rax, [rip + there]
    push rax
    push 0
    push 0
    push 0
    push 0
    hypercall iret
there:
"""


def test_iret_to_user_mode_without_a_user_table() -> None:
    done = crashes(IRET.format(cs="0xe033", ss="0xe02b"), traps=True)
    assert "user page table" in cause(done)


def test_iret_with_an_unreadable_frame() -> None:
    done = crashes("    mov rsp, 0x7fff00000000\n    hypercall iret\n", traps=True)
    assert "unreadable" in cause(done)


def test_iret_in_a_multicall_can_crash_too() -> None:
    body = """
    mov rsp, 0x7fff00000000
    lea rdi, [rip + calls]
    mov esi, 1
    hypercall multicall
.data
.balign 8
calls: .quad 23, 0, 0, 0, 0, 0, 0, 0
.text
"""
    assert "unreadable" in cause(crashes(body, traps=True))


def test_a_bad_selector_without_a_handler() -> None:
    assert "GP" in cause(crashes(IRET.format(cs="0xe008", ss="0xe02b")))


def test_the_guests_own_verdict() -> None:
    body = """
    mov edi, SCHEDOP_shutdown
    lea rsi, [rip + reason]
    hypercall sched_op
.data
reason: .long 3
.text
"""
    assert "guest reported a crash" in cause(crashes(body))


@pytest.mark.parametrize("reason", [0, 1, 4, 5, 56, 100, 255])
def test_other_reasons_are_no_crash(reason: int) -> None:
    body = f"""
    mov edi, SCHEDOP_shutdown
    lea rsi, [rip + reason]
    hypercall sched_op
.data
reason: .long {reason}
.text
"""
    done = run(HEADER + START + body)
    assert done.outcome is Outcome.ENDED
    assert done.domain.life.reason == reason
    assert not done.domain.life.crashed
    assert done.report is None


@pytest.mark.promise("I-10")
def test_a_crash_leaves_nothing_behind() -> None:
    """The frames of the dead domain are free again, those of its page tables included."""
    done = crashes("    ud2\n", traps=False)
    frames = done.domain.physical.frames
    assert not (frames.owner_np == done.domain.domid).any()
