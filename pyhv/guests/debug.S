# SPDX-License-Identifier: GPL-2.0-only
#
# debug - breakpoints: stops at instructions, watches memory, single-steps, in kernel and user mode; then powers off
#
# A PV kernel has the processor's four breakpoint registers, virtually: MOV to DR0-DR3 and DR7 traps to Xen, which
# checks that no address is its own. This kernel teaches
#   - DR7: for breakpoint n an enable bit at 2n (or 2n + 1), its kind and length in four bits at 16 + 4n:
#         kind    0 execute   1 write   3 read or write           length  0: 1   1: 2   3: 4   2: 8 bytes
#   - an instruction breakpoint is a fault: the exception comes first, and would come again; a handler that wants to
#     go on sets RF in the flags it returns with. A data breakpoint is a trap: the store has happened;
#   - DR6 says which breakpoint it was (bits 0 to 3) or that it was a single step (bit 14), and is never cleared
#     by anybody but the kernel;
#   - single steps: with TF set each instruction traps, a repeated string instruction after each repetition;
#   - INT3 and ICEBP, the one-byte ways into a debugger: vector 3, and vector 1 with no bit in DR6.
#
# Steps: expect(status, address) below notes every debug exception; each part sets a trap, steps into it, and checks
# how many there were, where, and why. The last part does the same to a user process that shares our page table.

.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "paging.inc"

.set EXECUTE, 0
.set WRITE, 1
.set ACCESS, 3
.set LENGTH_1, 0
.set LENGTH_2, 1 << 2
.set LENGTH_4, 3 << 2
.set LENGTH_8, 2 << 2
.set DR6_IDLE, 0xffff0ff0
.set DR6_STEP, 1 << 14
.set FLAG_TF, 1 << 8
.set FLAG_RF, 1 << 16

.macro arm number, place, kind                  # breakpoint `number` at `place`, and no other
    lea rax, [rip + \place]
    mov dr\number, rax
    mov eax, 1 << (\number * 2) | (\kind) << (16 + \number * 4)
    mov dr7, rax
.endm

.macro disarm
    xor eax, eax
    mov dr7, rax
.endm

.macro stepping                                 # from behind the next instruction on, every one traps
    pushfq
    or qword ptr [rsp], FLAG_TF
    popfq
.endm

.macro expect count, status, place, what        # since the last time; `place` is where the last one was
    cmp qword ptr [rip + seen], \count
    check e, "\what: how often"
    cmp qword ptr [rip + seen_status], \status
    check e, "\what: DR6"
    lea rax, [rip + \place]
    cmp [rip + seen_rip], rax
    check e, "\what: where"
    call forget
    print "\what\n"
.endm

.macro expect_nothing what
    cmp qword ptr [rip + seen], 0
    check e, "\what"
    print "\what\n"
.endm

.text
_start:
    kernel_entry
    call traps_init
    set_handler 1, on_debug
    set_handler 3, on_breakpoint

    # --- instructions ---
    arm 0, stop_here, EXECUTE
    xor ebx, ebx
    inc ebx
stop_here:
    inc ebx
    cmp ebx, 2
    check e, "the instruction was executed once"
    expect 1, 1, stop_here, "instruction breakpoint"
    mov rax, dr7
    cmp rax, 0x401
    check e, "DR7 reads what was written"
    disarm

    # --- stores and loads ---
    arm 1, cell, WRITE | LENGTH_4
    mov rax, [rip + cell]
    mov [rip + cell + 4], eax
    expect_nothing "a load, and a store beside it, do not trap"
    mov dword ptr [rip + cell], 77
after_store:
    cmp dword ptr [rip + cell], 77
    check e, "the store has happened"
    expect 1, 2, after_store, "write watchpoint"
    mov byte ptr [rip + cell + 3], 1
after_byte:
    expect 1, 2, after_byte, "write watchpoint, its last byte"

    arm 3, cell, ACCESS | LENGTH_8
    mov al, [rip + cell + 7]
after_load:
    expect 1, 8, after_load, "access watchpoint, a load"
    lock inc qword ptr [rip + cell]
after_inc:
    expect 1, 8, after_inc, "access watchpoint, a locked increment"

    arm 2, cell + 2, WRITE | LENGTH_2
    lea rdi, [rip + cell]
    mov ecx, 8
    xor eax, eax
string:
    rep stosb
    test ecx, ecx
    check e, "the string instruction was finished"
    expect 2, 4, string, "write watchpoint within a repeated instruction"

    push rbx
    arm 0, cell, WRITE | LENGTH_8
    mov rbx, rsp
    lea rsp, [rip + cell + 8]
    mov qword ptr [rip + keep_stack], 1
    push rax
after_push:
    expect 1, 1, after_push, "write watchpoint, a push"
    pop rbx
    disarm

    # --- single steps ---
    stepping
    nop
    nop
    pushfq
    and qword ptr [rsp], ~FLAG_TF
    popfq
after_steps:
    expect 5, DR6_STEP, after_steps, "single steps"

    # --- one-byte instructions ---
    int3
after_int3:
    cmp qword ptr [rip + breakpoints], 1
    check e, "INT3"
    lea rax, [rip + after_int3]
    cmp [rip + breakpoint_rip], rax
    check e, "INT3: where"
    .byte 0xf1
after_icebp:
    expect 1, 0, after_icebp, "ICEBP"

    # --- Xen's own memory ---
    mov rax, MACH2PHYS_VIRT_START
    trap_begin .refused
    mov dr0, rax
.refused:
    trap_check TRAP_gp_fault, "a breakpoint in the hypervisor's memory"

    # --- user mode ---
    set_handler VECTOR_SYSCALL, system_call
    set_callback CALLBACKTYPE_syscall, VECTOR_SYSCALL
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    call va_to_mfn
    mov rsi, rax
    mov edi, MMUEXT_NEW_USER_BASEPTR
    call mmuext
    must_succeed "one page table for both modes"
    mov edi, FLAT_RING3_SS64
    lea rsi, [rip + kernel_stack_top]
    hypercall stack_switch
    must_succeed "stack_switch"
    lea rax, [rip + user_stop]
    mov dr0, rax
    lea rax, [rip + cell]
    mov dr1, rax
    mov eax, 5 | (WRITE | LENGTH_8) << 20
    mov dr7, rax
    push FLAT_RING3_SS64
    lea rax, [rip + user_stack_top]
    push rax
    push 2
    push FLAT_RING3_CS64
    lea rax, [rip + user]
    push rax
    push 0
    push 0
    push 0
    push 0
    hypercall iret
    fail "the iret hypercall came back"

user:
    mov eax, 1
user_stop:
    nop
    lea rax, [rip + user_stop]
    syscall
    mov [rip + cell], rax
user_stored:
    mov eax, 2
    syscall
    stepping
    mov eax, 3
user_stepped:
    nop
    pushfq
    and qword ptr [rsp], ~FLAG_TF
    popfq
user_done:
    mov eax, 4
    syscall

system_call:                                    # (rdi = frame): the process has passed a place
    inc dword ptr [rip + passed]
    cmp dword ptr [rip + passed], 2
    ja .third
    je .second
    expect 1, 1, user_stop, "instruction breakpoint in user mode"
    jmp .user
.second:
    expect 1, 2, user_stored, "write watchpoint in user mode"
    jmp .user
.third:
    expect 5, DR6_STEP, user_done, "single steps in user mode"
    disarm
    succeed
.user:
    cmp qword ptr [rip + seen_cs], 3
    check e, "it was the process that was stopped"
    ret

# on_debug(rdi = frame): note it, and go on
on_debug:
    inc qword ptr [rip + seen]
    mov rax, [rdi + FRAME_rip]
    mov [rip + seen_rip], rax
    mov rax, [rdi + FRAME_cs]
    and eax, 3
    mov [rip + seen_cs], rax
    mov rax, dr6
    mov ecx, DR6_IDLE
    xor rax, rcx
    mov [rip + seen_status], rax
    mov eax, DR6_IDLE
    mov dr6, rax
    or qword ptr [rdi + FRAME_rflags], FLAG_RF
    cmp qword ptr [rip + keep_stack], 0
    je .end
    mov qword ptr [rip + keep_stack], 0         # the code above gave its stack away for one push
    mov [rdi + FRAME_rsp], rbx
.end:
    ret

on_breakpoint:
    inc qword ptr [rip + breakpoints]
    mov rax, [rdi + FRAME_rip]
    mov [rip + breakpoint_rip], rax
    ret

forget:
    mov qword ptr [rip + seen], 0
    ret

.data
.balign 16
gap:            .zero 256                       # the frame of the push's exception is built here
cell:           .quad 0
                .quad 0
seen:           .quad 0
seen_rip:       .quad 0
seen_cs:        .quad 0
seen_status:    .quad 0
breakpoints:    .quad 0
breakpoint_rip: .quad 0
keep_stack:     .quad 0
passed:         .long 0

.bss
.balign PAGE_SIZE
kernel_stack:   .zero PAGE_SIZE
kernel_stack_top:
user_stack:     .zero PAGE_SIZE
user_stack_top:
