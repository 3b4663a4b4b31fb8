# SPDX-License-Identifier: GPL-2.0-only
"""A process and its kernel, whole guests: the same must happen whether they share one hardware page table
("merged", the kernel in ring 1) or not.
"""

import pytest

from pyhv.cpu.exits import ExitKind
from pyhv.testing.guest_machine import run
from pyhv.testing.user_guest import process, source

BOTH = pytest.mark.parametrize("merged", [False, True], ids=["split", "merged"])

EXPECT = """
.macro expect vector, error                     # system call 3: what was the last exception?
    mov eax, 3
    syscall
    inc ebp
    cmp rdi, \\vector
    jne wrong
    inc ebp
    cmp rsi, \\error
    jne wrong
.endm
"""
WRONG = """
    jmp right
wrong:
    mov edi, ebp
    jmp user_exit
right:
"""


def attempts(*cases: tuple[str, int, int]) -> str:
    text = "    mov ebp, 0\n"
    for number, (code, vector, error) in enumerate(cases):
        text += (
            f"    lea r15, [rip + next{number}]\n    {code}\nnext{number}:\n    expect {vector}, {error}\n"
        )
    return text + WRONG


@BOTH
def test_merging_is_what_the_tables_allow(merged: bool) -> None:
    done = process("    mov eax, 2\n    syscall\n", merged=merged)
    assert done.domain.vcpus[0].paging.merged is merged


@BOTH
def test_exceptions_of_a_process(merged: bool) -> None:
    cases = attempts(
        ("cli", 13, 0),
        ("hlt", 13, 0),
        ("ud2", 6, 0),
        ("int 0x21", 13, 0x21 << 3 | 2),
        ("mov rax, 0x7fff00000000\n    mov rax, [rax]", 14, 4),
        ("mov rax, 0x7fff00000000\n    mov [rax], rax", 14, 6),
        ("mov rax, 0x7fff00000000\n    jmp rax", 14, 0x14),
        ("mov rax, 0x800000000000\n    mov rax, [rax]", 13, 0),
        ("mov eax, 0xe00b\n    mov ds, eax", 13, 0xE008),
        ("mov eax, 0x10\n    mov ss, eax", 13, 0x10),
        ("in al, 0x80", 13, 0),
        ("xor ecx, ecx\n    div ecx", 0, 0),
    )
    process(cases, merged=merged, routines=EXPECT)


@pytest.mark.promise("I-5")
@BOTH
def test_what_only_the_kernel_maps_does_not_exist_for_the_process(merged: bool) -> None:
    """The kernel's upper half is a missing page for it, never one that is there but forbidden."""
    cases = attempts(
        ("mov rax, 0xffff960000100000\n    mov rax, [rax]", 14, 4),
        ("mov rax, 0xffff960000100000\n    mov [rax], rax", 14, 6),
        ("mov rax, 0xffff960000100000\n    jmp rax", 14, 0x14),
        ("mov rax, 0xffff880000000000\n    mov rax, [rax]", 14, 4),
        ("mov rax, 0xffff820000000000\n    mov [rax], rax", 14, 7),
        ("mov rax, 0xffff82000000e008\n    mov rax, [rax]", 14, 5),
    )
    read_first = "    mov rax, 0xffff960000100000\n    mov rax, [rax]\n"
    process(cases, merged=merged, routines=EXPECT, kernel=read_first)


@BOTH
def test_the_kernel_reaches_its_own_upper_half_but_not_the_hypervisors(merged: bool) -> None:
    def tried(code: str, name: str) -> str:
        return f"""
    trap_begin .{name}
    {code}
.{name}:
    trap_check TRAP_page_fault, "{name}"
"""

    body = "    mov rax, KERNEL_ONLY\n    mov rcx, [rax + 0x100000]\n    mov [rax + 0x100000], rcx\n"
    for number, address in enumerate((0xFFFF820000000000, 0xFFFF82000000E008, 0xFFFF820000010000)):
        body += tried(f"mov rax, {address:#x}\n    mov [rax], rax", f"write{number}")
    body += tried("mov rax, 0xffff800000000000\n    mov [rax], rax", "m2p")
    body += tried("mov rax, 0xffff830000000000\n    mov rax, [rax]", "hole")
    process("    mov eax, 2\n    syscall\n", merged=merged, call=body, routines="")


@BOTH
def test_system_calls_keep_registers_and_flags(merged: bool) -> None:
    process(
        """
    mov ebp, 1
    mov rbx, 0x1111
    mov r12, 0x2222
    mov rdi, 0x3333
    std
    stc
    mov eax, 2
    syscall
back:
    jnc wrong
    inc ebp
    pushfq
    pop rdx
    test edx, 0x400
    jz wrong
    cld
    inc ebp
    cmp rbx, 0x1111
    jne wrong
    cmp r12, 0x2222
    jne wrong
    cmp rdi, 0x3333
    jne wrong
    inc ebp
    lea rdx, [rip + back]
    cmp rcx, rdx
    jne wrong
"""
        + WRONG,
        merged=merged,
    )


@BOTH
def test_gs_bases_are_exchanged(merged: bool) -> None:
    """The process's GS base is its own, the kernel finds its own again."""
    kernel = """
    mov edi, 1                                  # SEGBASE_GS_USER
    mov rsi, USER_DATA
    hypercall set_segment_base
    must_succeed "set_segment_base"
    mov edi, 2                                  # SEGBASE_GS_KERNEL
    lea rsi, [rip + kernel_word]
    hypercall set_segment_base
    must_succeed "set_segment_base"
"""
    call = """
    xor ecx, ecx
    mov rax, gs:[rcx]
    cmp rax, 0x77
    check e, "the kernel's GS base"
"""
    user = """
    mov ebp, 1
    xor esi, esi
    mov rax, gs:[rsi]
    test rax, rax
    jnz wrong
    mov qword ptr gs:[rsi + 8], 5
    mov eax, 2
    syscall
    mov ebp, 2
    mov rax, USER_DATA
    cmp qword ptr [rax + 8], 5
    jne wrong
    cmp qword ptr gs:[rsi + 8], 5
    jne wrong
"""
    process(user + WRONG, merged=merged, kernel=kernel, call=call, data="kernel_word: .quad 0x77\n")


@BOTH
def test_code_that_changes_cannot_move_the_kernels_entry(merged: bool) -> None:
    """A process puts prefixes before a SYSCALL that had none; the kernel is entered where it always is."""
    user = """
    mov eax, 2
    call target
    lea rdi, [rip + target]
    mov rax, 0x6666666666666666
    mov [rdi], rax
    mov dword ptr [rdi + 8], 0x050f6666
    mov byte ptr [rdi + 12], 0xc3
    mov eax, 2
    call target
    jmp done
target:
    syscall
    ret
    .zero 16
done:
"""
    process(user, merged=merged)


@pytest.mark.promise("I-5")
@BOTH
def test_a_process_cannot_make_hypercalls(merged: bool) -> None:
    done = process("    mov eax, 29\n    mov edi, 2\n    syscall\n", merged=merged)
    assert done.dispatcher.counts[ExitKind.SYSTEM_CALL] == 2


@BOTH
def test_a_refused_port_and_a_system_call(merged: bool) -> None:
    """IN and SYSCALL in one block: the fault comes, the system call does not."""
    done = process(
        "    lea r15, [rip + next]\n    mov eax, 2\n    in al, 0x80\n    syscall\nnext:\n", merged=merged
    )
    assert done.dispatcher.counts[ExitKind.SYSTEM_CALL] == 1


KERNEL_RETURN = """
    push FLAT_RING3_SS64
    lea rax, [rsp + 8]
    push rax
    pushfq
    push FLAT_RING3_CS64
    lea rax, [rip + .there]
    push rax
    iretq
.there:
    mov rax, KERNEL_ONLY
    mov rcx, [rax + 0x100000]
"""


@BOTH
def test_a_kernel_may_return_to_itself_with_a_native_iret(merged: bool) -> None:
    """Its selectors say ring 3; afterwards it still reaches its own half and can make hypercalls."""
    again = "    mov eax, 17\n    xor edi, edi\n    syscall\n"
    process("    mov eax, 2\n    syscall\n", merged=merged, call=KERNEL_RETURN + again)


FAR_RETURN = """
    push rdi
    mov rdx, rsp
    sub rsp, 64
    mov qword ptr [rsp + 16], {above}
    mov qword ptr [rsp + 24], {above2}
    mov qword ptr [rsp + 8], FLAT_RING3_CS64
    lea rax, [rip + .there]
    mov [rsp], rax
    mov rcx, rsp
    .byte 0x48, 0xcb                            # lretq
.there:
    lea rax, [rcx + 16]
    cmp rax, rsp
    check e, "a far return within the kernel changed the stack"
    mov rsp, rdx
    pop rdi
"""


OUTER = pytest.mark.xfail(strict=True, reason="in ring 1 it is a return to an outer ring")


@pytest.mark.parametrize(
    ("merged", "above", "above2"),
    [
        (False, 0, 0),
        (True, 0, 0),
        (True, 0x10, 0x10),
        pytest.param(True, 0x1000, 0xE02B, marks=OUTER),
    ],
)
def test_a_far_return_within_the_kernel(merged: bool, above: int, above2: int) -> None:
    """Between segments of one ring nothing but RIP and CS is taken from the stack, whatever lies above."""
    process(
        "    mov eax, 2\n    syscall\n", merged=merged, call=FAR_RETURN.format(above=above, above2=above2)
    )


@BOTH
def test_null_stack_segment_of_a_kernel(merged: bool) -> None:
    """In ring 3 a null SS is a fault; the kernel's ring is 3, whatever the processor is told."""
    call = """
    xor eax, eax
    trap_begin .next
    mov ss, eax
.next:
    trap_check TRAP_gp_fault, "a null stack segment"
"""
    if merged:
        pytest.xfail("in ring 1 a null SS may be loaded")
    process("    mov eax, 2\n    syscall\n", merged=merged, call=call)


@BOTH
def test_task_switched_follows_the_vcpu_into_user_mode(merged: bool) -> None:
    call = """
    push rdi
    mov edi, 1
    hypercall fpu_taskswitch
    pop rdi
"""
    user = """
    mov ebp, 0
    mov eax, 2
    syscall
    lea r15, [rip + .next]
    fld1
.next:
    expect 7, 0
    fld1
"""
    process(user + WRONG, merged=merged, call=call, routines=EXPECT)


@BOTH
def test_single_stepping_a_process(merged: bool) -> None:
    user = """
    mov ebp, 0
    lea r15, [rip + .next]
    pushfq
    or qword ptr [rsp], 0x100
    popfq
    nop
    nop
.next:
    expect 1, 0
"""
    exception = "    and qword ptr [rdi + FRAME_rflags], -0x101\n"
    process(user + WRONG, merged=merged, exception=exception, routines=EXPECT)


LDT = """
.balign PAGE_SIZE
ldt:
    .quad 0
    .quad 0x00cff3000000ffff                    # 1: data, 4 GiB
    .quad 0x00cff3000000ffff                    # 2
    .zero 4096 - 24
ldt_op: .long 13, 0
    .quad ldt, 512
"""
SET_LDT = """
    lea rdi, [rip + ldt]
    mov esi, PTE_P | PTE_A
    call remap
    must_succeed "an LDT page is read-only"
    lea rdi, [rip + ldt_op]
    mov esi, 1
    xor edx, edx
    mov r10d, DOMID_SELF
    hypercall mmuext_op
    must_succeed "SET_LDT"
"""


@BOTH
def test_segments_of_the_ldt(merged: bool) -> None:
    """Pages of the LDT come in on first use; beyond its end is a protection fault with the selector."""
    user = attempts(
        ("mov eax, 0x0f\n    mov ds, eax\n    ud2", 6, 0),
        ("mov eax, 0x17\n    mov es, eax\n    mov ax, es\n    cmp ax, 0x17\n    jne next1\n    ud2", 6, 0),
        ("mov eax, 0x1007\n    mov ds, eax", 13, 0x1004),
        ("mov eax, 0x1f0f\n    mov ds, eax", 13, 0x1F0C),
    )
    process(user, merged=merged, kernel=SET_LDT, data=LDT, routines=EXPECT)


@BOTH
def test_the_ldt_window_is_not_the_guests(merged: bool) -> None:
    """Touching the hypervisor's view of the LDT is an ordinary page fault, also once it is mapped."""
    user = attempts(
        ("mov eax, 0x0f\n    mov ds, eax\n    ud2", 6, 0),
        ("mov rax, 0xffff820000010008\n    mov rax, [rax]", 14, 5),
    )
    done = run(source(user, merged=merged, kernel=SET_LDT, data=LDT, routines=EXPECT), timeout_ns=50_000_000)
    assert done.passed, (done.outcome, done.output, done.domain.life.cause)
