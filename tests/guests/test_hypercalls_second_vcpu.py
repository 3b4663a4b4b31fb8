# SPDX-License-Identifier: GPL-2.0-only
"""Second vCPUs that run: turns, memory, code and events that two of them share."""

import pytest

from pyhv.testing.guest_machine import HEADER, START, passes, run
from pyhv.until import Outcome

SECOND_VCPU = """
    lea rdi, [rip + context + 520 + 128]        # rip
    lea rax, [rip + second]
    mov [rdi], rax
    lea rax, [rip + second_stack_top]
    mov [rip + context + 520 + 152], rax        # rsp
    mov [rip + context + 4976], rax             # kernel_sp
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    call va_to_mfn
    shl rax, 12
    mov [rip + context + 4984 + 24], rax        # cr3
    mov qword ptr [rip + context + 512], 4      # in kernel
    mov qword ptr [rip + context + 520 + 136], 0xe033
    mov qword ptr [rip + context + 520 + 160], 0xe02b
    mov qword ptr [rip + context + 520 + 144], 0x202
    mov edi, 0
    mov esi, 1
    lea rdx, [rip + context]
    hypercall vcpu_op
    must_succeed "VCPUOP_initialise"
    mov edi, VCPUOP_up
    mov esi, 1
    xor edx, edx
    hypercall vcpu_op
    must_succeed "VCPUOP_up"
"""
SECOND_DATA = """
.bss
.balign PAGE_SIZE
context: .zero 2 * PAGE_SIZE
second_stack: .zero PAGE_SIZE
second_stack_top:
.data
.balign 8
shared_word: .quad 0
.text
"""


def test_two_vcpus_take_turns_and_see_each_others_memory() -> None:
    passes(
        SECOND_VCPU
        + """
.wait:
    mov edi, SCHEDOP_yield
    xor esi, esi
    hypercall sched_op
    cmp qword ptr [rip + shared_word], 1000
    jb .wait
    succeed
second:
    mov ecx, 1000
.more:
    lock inc qword ptr [rip + shared_word]
    dec ecx
    jnz .more
    mov edi, 2                                  # VCPUOP_down
    mov esi, 1
    hypercall vcpu_op
    fail "it is still running"
"""
        + SECOND_DATA,
        vcpus=2,
    )


@pytest.mark.promise("T-3")
@pytest.mark.parametrize("rounds", [30_000])
def test_preemption_between_two_vcpus_repeats_nothing(rounds: int) -> None:
    """Both count as fast as they can, until both have counted enough."""
    passes(
        SECOND_VCPU
        + f"""
    mov ebx, {rounds}
.more:
    lock inc qword ptr [rip + shared_word]
    pushfq
    pop rax
    dec ebx
    jnz .more
    mov qword ptr [rip + first_done], 1
.wait:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    cmp qword ptr [rip + second_done], 1
    jne .wait
    cmp qword ptr [rip + shared_word], {2 * rounds}
    check e, "the count is wrong"
    succeed
second:
    mov ebx, {rounds}
.more:
    lock inc qword ptr [rip + shared_word]
    pushfq
    pop rax
    dec ebx
    jnz .more
    mov qword ptr [rip + second_done], 1
.idle:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    jmp .idle
"""
        + SECOND_DATA
        + ".data\nfirst_done: .quad 0\nsecond_done: .quad 0\n.text\n",
        vcpus=2,
    )


def test_code_written_by_one_vcpu_is_seen_by_the_other() -> None:
    passes(
        SECOND_VCPU
        + """
.wait:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    cmp qword ptr [rip + shared_word], 1
    jne .wait
    mov byte ptr [rip + patched + 1], 7
    mov qword ptr [rip + shared_word], 2
.again:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    cmp qword ptr [rip + shared_word], 9
    jne .again
    succeed
second:
    call patched
    cmp eax, 1
    check e, "the first value"
    mov qword ptr [rip + shared_word], 1
.see:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    cmp qword ptr [rip + shared_word], 2
    jne .see
    call patched
    cmp eax, 7
    check e, "the patched value"
    mov qword ptr [rip + shared_word], 9
.idle:
    mov edi, SCHEDOP_block
    hypercall sched_op
    jmp .idle
patched:
    mov eax, 1
    ret
"""
        + SECOND_DATA,
        vcpus=2,
    )


def test_an_ipi_wakes_a_blocked_vcpu() -> None:
    passes(
        SECOND_VCPU
        + """
    mov edi, SCHEDOP_yield
    hypercall sched_op
    mov dword ptr [rip + ipi], 1
    mov edi, EVTCHNOP_bind_ipi
    lea rsi, [rip + ipi]
    hypercall event_channel_op
    must_succeed "bind_ipi"
    mov edi, EVTCHNOP_send
    lea rsi, [rip + ipi + 4]
    hypercall event_channel_op
    must_succeed "send"
.wait:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    cmp qword ptr [rip + shared_word], 1
    jne .wait
    succeed
second:
    mov edi, 0
    lea rsi, [rip + callback]
    hypercall callback_op
    must_succeed "callback"
    mov edi, SCHEDOP_block
    hypercall sched_op
    fail "the callback comes first"
upcall:
    mov qword ptr [rip + shared_word], 1
.idle:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    jmp .idle
.data
.balign 8
ipi: .long 0, 0
callback:
    .short 0, 0
    .long 0
    .quad upcall
.text
"""
        + SECOND_DATA,
        vcpus=2,
    )


def test_the_last_vcpu_that_goes_down_ends_the_domain() -> None:
    body = """
    mov edi, 2
    xor esi, esi
    xor edx, edx
    hypercall vcpu_op
    fail "still up"
"""
    done = run(HEADER + START + body)
    assert done.outcome is Outcome.ENDED
    assert done.domain.life.reason == 0
    assert "FAILURE" not in done.output
