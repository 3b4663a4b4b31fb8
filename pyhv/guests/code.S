# SPDX-License-Identifier: GPL-2.0-only
#
# code - writes code in every way there is and runs it: what runs is what memory holds, at once
#
# An x86 processor needs no flush of an instruction cache. Compilers at run time, a kernel that patches itself, a page
# that is used again for another program: all of them count on it. It teaches
#   - one frame, two mappings: one to write, which cannot be executed, and one to execute, which cannot be written;
#   - one mapping that is now the one and now the other, by its NX bit;
#   - an address that shows another frame;
#   - a frame that the hypervisor writes.
#
# Steps: each of these, many times, with other code every time; SUCCESS.

.include "xen.inc"
.include "kernel.inc"
.include "paging.inc"

.set TO_WRITE, PTE_P | PTE_RW | PTE_A | PTE_D   # with NO_EXECUTE
.set TO_EXECUTE, PTE_P | PTE_A
.set ROUNDS, 40
.set FUNCTION, 0xc300000000b8                   # mov eax, NUMBER; ret

.macro write_function where, number             # at the address in register `where`; spoils rax and rcx
    mov rax, FUNCTION
    mov ecx, \number
    shl rcx, 8
    or rax, rcx
    mov [\where], rax
.endm

.text
_start:
    kernel_entry
    print "code: written and run\n"
    mov r15, PTE_NX
    lea r12, [rip + place]
    lea r13, [rip + window]
    mov rdi, r12
    call frame_of
    mov r14, rax                                # r14 = the frame of `place`, in two places from now on

    # --- Two mappings: written at `window`, executed at `place` ------------------------------------------------
    mov rdi, r13
    mov rsi, r14
    or rsi, TO_WRITE
    or rsi, r15
    call update_mapping
    must_succeed "mapping the frame a second time"
    mov rdi, r12
    mov esi, TO_EXECUTE
    call remap
    must_succeed "mapping it to be executed"
    mov ebx, ROUNDS
.twice:
    write_function r13, ebx
    call r12
    cmp eax, ebx
    check e, "code that was written through another mapping is old"
    dec ebx
    jnz .twice
    print "  through a second mapping\n"

    # --- One mapping, NX set and cleared in place --------------------------------------------------------------
    mov rdi, r13
    xor esi, esi
    call update_mapping
    must_succeed "removing the second mapping"
    mov ebx, ROUNDS
.in_place:
    mov rdi, r12
    mov rsi, TO_WRITE
    or rsi, r15
    call remap
    must_succeed "mapping it to be written"
    write_function r12, ebx
    mov rdi, r12
    mov rsi, TO_WRITE
    call remap
    must_succeed "clearing NX"
    call r12
    cmp eax, ebx
    check e, "code that was written before NX was cleared is old"
    dec ebx
    jnz .in_place
    print "  by NX in place\n"

    # --- An address that shows `place` and `other` in turn -----------------------------------------------------
    lea rbp, [rip + other]
    mov ebx, ROUNDS
.shown:
    mov rdi, rbp
    call frame_of
    test ebx, 1
    cmovnz rax, r14
    mov rdi, r13
    mov rsi, rax
    or rsi, TO_EXECUTE
    call update_mapping
    must_succeed "showing another frame"
    mov rdx, rbp
    test ebx, 1
    cmovnz rdx, r12
    write_function rdx, ebx
    call r13
    cmp eax, ebx
    check e, "code of the frame that was there before"
    dec ebx
    jnz .shown
    print "  at an address that shows another frame\n"

    # --- The hypervisor writes: a grant copy from `other` to `place`, which is executable ----------------------
    shr r14, PAGE_SHIFT
    mov [rip + copy + 16], r14
    mov rdi, rbp
    call frame_of
    shr rax, PAGE_SHIFT
    mov [rip + copy], rax
    mov ebx, ROUNDS
.copied:
    write_function rbp, ebx
    mov edi, GNTTABOP_copy
    lea rsi, [rip + copy]
    mov edx, 1
    hypercall grant_table_op
    must_succeed "a grant copy to ourselves"
    cmp word ptr [rip + copy + 36], 0
    check e, "the copy has a bad status"
    call r12
    cmp eax, ebx
    check e, "code that the hypervisor has overwritten is old"
    dec ebx
    jnz .copied
    print "  by the hypervisor\n"
    succeed

.data
.balign 8
copy:                                           # source and destination: frame, domid, offset; length, flags, status
    .quad 0
    .short DOMID_SELF, 0
    .long 0
    .quad 0
    .short DOMID_SELF, 0
    .long 0
    .short 8, 0, 0, 0

.bss
.balign PAGE_SIZE
place:          .zero PAGE_SIZE
other:          .zero PAGE_SIZE
window:         .zero PAGE_SIZE
