# SPDX-License-Identifier: GPL-2.0-only
"""A guest with a user process, for tests of what happens between the two modes.

The process is given as assembly text and runs at `USER_CODE`, in a page of its own that it may also write.
Its system call 1 ends the guest: well if RDI is 0, else with the step in RDI. System call 2 does nothing. An
exception of the process is noted, and the process goes on at the address in its R15; system call 3 then gives
vector, error code, RIP and CR2 of it in RDI, RSI, RDX and R8.
"""

from typing import Final

from pyhv.testing.guest_machine import Run, run

USER_CODE: Final = 2 << 39
USER_DATA: Final = USER_CODE + 0x1000
USER_STACK_TOP: Final = USER_CODE + 0x3000

_SOURCE: Final = """
.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "paging.inc"

.set USER_CODE, 2 << 39
.set USER_DATA, USER_CODE + 0x1000
.set USER_STACK_TOP, USER_CODE + 0x3000
.set UPPER, PTE_P | PTE_RW | PTE_US | PTE_A
.set LEAF, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D
.set CALLBACKTYPE_sysenter, 5
.set UPPER_SLOT, 300
.set KERNEL_ONLY, 0xffff960000000000             # L4 slot 300: another view of the first 512 GiB
.set __HYPERVISOR_fpu_taskswitch, 5

.macro fill table, index, page, flags
    lea rdi, [rip + \\page]
    call frame_of
    mov rcx, \\flags
    or rax, rcx
    mov [rip + \\table + \\index * 8], rax
.endm

.macro protect table
    lea rdi, [rip + \\table]
    mov esi, PTE_P | PTE_A
    call remap
    must_succeed "mapping a user table read-only"
.endm

.macro link_kernel slot, entry                  # kernel L4[slot] = entry (in rsi)
    push rsi
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    mov esi, \\slot
    call entry_address
    mov rdi, rax
    pop rsi
    call set_entry
    must_succeed "linking into the kernel L4"
.endm

.text
_start:
    kernel_entry
    call traps_init
    @BEFORE@

    fill user_l3, 0, user_l2, UPPER
    fill user_l2, 0, user_l1, UPPER
    fill user_l1, 0, user_page, LEAF
    fill user_l1, 1, user_data, LEAF
    fill user_l1, 2, user_stack, LEAF
    fill user_l4, 2, user_l3, UPPER
    mov rdi, [rip + start_info]
    mov rbx, [rdi + START_INFO_pt_base]
    mov rax, [rbx]
    mov r12, rax                                # what the kernel's L4 says in slot 0
    @SHARE@
    protect user_l4
    protect user_l3
    protect user_l2
    protect user_l1
    lea rdi, [rip + user_l4]
    call va_to_mfn
    mov rbx, rax
    mov edi, MMUEXT_PIN_L4_TABLE
    mov rsi, rbx
    call mmuext
    must_succeed "pinning the user L4"
    mov edi, MMUEXT_NEW_USER_BASEPTR
    mov rsi, rbx
    call mmuext
    must_succeed "installing the user L4"
    lea rdi, [rip + user_l3]
    call frame_of
    mov rsi, rax
    or rsi, UPPER
    link_kernel 2, user
    mov rsi, r12
    link_kernel UPPER_SLOT, kernel

    set_handler 0, user_exception
    set_handler 1, user_exception
    set_handler 3, user_exception
    set_handler 6, user_exception
    set_handler 7, user_exception
    set_handler 13, user_exception
    set_handler 14, user_exception
    set_handler VECTOR_SYSCALL, system_call
    set_callback CALLBACKTYPE_syscall, VECTOR_SYSCALL
    mov edi, FLAT_RING3_SS64
    lea rsi, [rip + kernel_stack_top]
    hypercall stack_switch
    must_succeed "stack_switch"
    @KERNEL@

    push FLAT_RING3_SS64
    mov rax, USER_STACK_TOP
    push rax
    push 2                                      # events stay masked
    push FLAT_RING3_CS64
    mov rax, USER_CODE
    push rax
    push 0
    push 0
    push 0
    push 0
    hypercall iret
    fail "the iret hypercall came back"

user_exception:
    mov eax, [rdi + FRAME_cs]
    and eax, 3
    jz trap_default
    mov rax, [rdi + FRAME_vector]
    mov [rip + trapped_vector], rax
    mov rax, [rdi + FRAME_error]
    mov [rip + trapped_error], rax
    mov rax, [rip + shared_info + VCPU_INFO_cr2]
    mov [rip + trapped_cr2], rax
    mov rax, [rdi + FRAME_rip]
    mov [rip + faulting_rip], rax
    mov rax, [rdi + FRAME_cs]
    mov [rip + trapped_cs], rax
    mov rax, [rdi]                              # the process's r15
    mov [rdi + FRAME_rip], rax
    mov qword ptr [rdi + FRAME_cs], FLAT_RING3_CS64
    @EXCEPTION@
    ret

system_call:
    mov rax, [rdi + FRAME_rax]
    cmp rax, 1
    je .end
    cmp rax, 3
    je .seen
    @CALL@
    ret
.seen:                                          # 3: vector, error, rip, cr2 of the last exception
    mov rax, [rip + trapped_vector]
    mov [rdi + FRAME_rdi], rax
    mov rax, [rip + trapped_error]
    mov [rdi + FRAME_rsi], rax
    mov rax, [rip + faulting_rip]
    mov [rdi + 96], rax                         # rdx
    mov rax, [rip + trapped_cr2]
    mov [rdi + 72], rax                         # r8
    mov qword ptr [rip + trapped_vector], -1
    ret
.end:
    cmp qword ptr [rdi + FRAME_rdi], 0
    jne .badly
    @END@
    succeed
.badly:
    print "FAILURE: the process stopped at step "
    print_dec [rdi + FRAME_rdi]
    print "\\n"
    jmp poweroff

@ROUTINES@

.balign PAGE_SIZE
user_page:
@USER@
    xor edi, edi
user_exit:
    mov eax, 1
    syscall
    ud2
.balign PAGE_SIZE

.data
.balign 8
faulting_rip:    .quad 0
trapped_cs:     .quad 0
@DATA@

.bss
.balign PAGE_SIZE
user_l4:        .zero PAGE_SIZE
user_l3:        .zero PAGE_SIZE
user_l2:        .zero PAGE_SIZE
user_l1:        .zero PAGE_SIZE
user_data:      .zero PAGE_SIZE
user_stack:     .zero PAGE_SIZE
kernel_stack:   .zero 2 * PAGE_SIZE
kernel_stack_top:
"""

_SHARED: Final = "mov [rip + user_l4], rax"
"""The user's table maps the kernel too: the lower halves are equal, and one hardware table serves both."""


def source(user: str, *, merged: bool = False, **parts: str) -> str:
    """The guest's text. Parts: before, kernel, exception, call, end, routines, data."""
    filled = _SOURCE.replace("@USER@", user).replace("@SHARE@", _SHARED if merged else "")
    for name in ("before", "kernel", "exception", "call", "end", "routines", "data"):
        filled = filled.replace(f"@{name.upper()}@", parts.pop(name, ""))
    assert not parts, parts
    return filled


def process(user: str, *, merged: bool = False, vcpus: int = 1, **parts: str) -> Run:
    """Run a process; the guest must end with SUCCESS."""
    done = run(source(user, merged=merged, **parts), vcpus=vcpus)
    assert done.passed, (done.outcome, done.output, done.domain.life.cause)
    return done
