# SPDX-License-Identifier: GPL-2.0-only
#
# usermode - runs a user process: system calls, page faults on demand, preemption by a timer; then powers off
#
# On 64-bit Xen both the kernel and its processes run in ring 3; only their page tables differ. This kernel teaches
#   - two top tables: the kernel base pointer, set at boot, and the user base pointer, set with NEW_USER_BASEPTR.
#     Entering user mode switches from the first to the second, every way back into the kernel switches again. What
#     the user table does not map does not exist for the process, and that is all that protects the kernel;
#   - the iret hypercall, which enters user mode (cs & 3 = 3 in its frame), and the three ways back: an exception, a
#     system call (SYSCALL enters at the registered callback, it is no hypercall from user mode), an event;
#   - stack_switch: on the way back Xen takes the stack pointer that was registered last;
#   - demand paging: the page fault on the heap maps a page, and the instruction runs again;
#   - the U bit in a page fault's error code, which Xen computes, as the processor would always report ring 3.
#
#   user address space, all below L4 slot 2         kernel address space
#       USER_CODE    r-x  user_page                     everything, where the builder put it,
#       USER_DATA    rw-  user_data                     and the user's in L4 slot 2 as well,
#       USER_STACK   rw-  user_stack                    so that the kernel can read its strings
#       USER_HEAP    nothing, until it is touched
#
# Steps: build, pin and install the user table; run the process below, which does one thing after the other and exits
# with the number of the step that went wrong, or 0; compare what the kernel saw; SUCCESS.

.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "events.inc"
.include "paging.inc"

.set USER_SLOT, 2                               # of the L4
.set USER_BASE, 2 << 39
.set USER_CODE, USER_BASE
.set USER_DATA, USER_BASE + 0x1000
.set USER_STACK, USER_BASE + 0x2000
.set USER_STACK_TOP, USER_BASE + 0x3000
.set USER_HEAP_INDEX, 16                        # of the L1
.set USER_HEAP, USER_BASE + 0x10000
.set USER_END, USER_BASE + 0x11000

.set SYS_EXIT, 1                                # (code)
.set SYS_WRITE, 2                               # (string, length)
.set PREEMPTIONS, 3
.set SLICE, 2 * 1000 * 1000                     # ns

.set CODE_PAGE, PTE_P | PTE_US | PTE_A
.set DATA_PAGE, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D | PTE_NX
.set UPPER, PTE_P | PTE_RW | PTE_US | PTE_A
.set READ_ONLY, PTE_P | PTE_A

.macro fill table, index, page, flags           # table[index] = page | flags, with a plain store
    lea rdi, [rip + \page]
    call frame_of
    mov rcx, \flags
    or rax, rcx
    mov [rip + \table + \index * 8], rax
.endm

.macro protect table                            # map one of our pages read-only
    lea rdi, [rip + \table]
    mov esi, READ_ONLY
    call remap
    must_succeed "mapping a user table read-only"
.endm

.text
_start:
    kernel_entry
    print "usermode: a process\n"
    call traps_init
    call events_init
    set_handler TRAP_page_fault, page_fault
    set_handler TRAP_gp_fault, protection_fault
    set_handler VECTOR_SYSCALL, system_call
    set_callback CALLBACKTYPE_syscall, VECTOR_SYSCALL

    # --- The user table: fill four pages, map them read-only, pin the top one -----------------------------------
    fill user_l4, USER_SLOT, user_l3, UPPER
    fill user_l3, 0, user_l2, UPPER
    fill user_l2, 0, user_l1, UPPER
    fill user_l1, 0, user_page, CODE_PAGE
    fill user_l1, 1, user_data, DATA_PAGE
    fill user_l1, 2, user_stack, DATA_PAGE
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

    # The kernel wants to see the process's memory at the same addresses: one more reference to its L3.
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    mov esi, USER_SLOT
    call entry_address
    mov rbx, rax
    lea rdi, [rip + user_l3]
    call frame_of
    mov rsi, rax
    or rsi, UPPER
    mov rdi, rbx
    call set_entry
    must_succeed "linking the user L3 into the kernel L4"

    # --- Where to come back: kernel stack A, and a timer --------------------------------------------------------
    lea rdi, [rip + stack_a_top]
    call use_stack
    call bind_timer
    mov eax, eax
    bind_port rax, preempt
    call system_time
    lea rdi, [rax + SLICE]
    call set_timer

    # --- Go -----------------------------------------------------------------------------------------------------
    push FLAT_RING3_SS64
    mov rax, USER_STACK_TOP
    push rax
    push EFLAGS_IF | 2                          # IF set: events are not masked in user mode
    push FLAT_RING3_CS64                        # cs & 3 = 3: user mode
    mov rax, USER_CODE
    push rax
    push 0                                      # flags
    push 0                                      # rcx
    push 0                                      # r11
    push 0                                      # rax
    hypercall iret
    fail "the iret hypercall came back"

# use_stack(rdi = stack top): the next entry from user mode shall begin there.
use_stack:
    mov [rip + kernel_stack], rdi
    mov rsi, rdi
    mov edi, FLAT_RING3_SS64
    hypercall stack_switch
    must_succeed "stack_switch"
    ret

# came_from_user(rdi = frame): check that the frame lies at the very top of the registered stack and shows user mode.
came_from_user:
    lea rax, [rdi + FRAME_SIZE]
    cmp rax, [rip + kernel_stack]
    check e, "Xen did not use the registered kernel stack"
    mov eax, [rdi + FRAME_cs]
    and eax, 3
    cmp eax, 3
    check e, "an entry from user mode does not show ring 3"
    ret

# system_call(rdi = frame): number in rax, arguments in rdi and rsi, result in rax
system_call:
    push rbx
    mov rbx, rdi
    call came_from_user
    mov rax, [rbx + FRAME_rax]
    cmp rax, SYS_EXIT
    je process_exit
    cmp rax, SYS_WRITE
    je .write
    mov qword ptr [rbx + FRAME_rax], -ENOSYS
    inc dword ptr [rip + unknown_calls]
    pop rbx
    ret
.write:
    # A process could name the kernel's memory and have it printed. So only its own part of the address space will do.
    mov rsi, [rbx + FRAME_rdi]
    mov rdx, [rbx + FRAME_rsi]
    mov rax, USER_BASE
    cmp rsi, rax
    jb .bad_address
    mov rax, USER_HEAP
    cmp rsi, rax
    jae .bad_address
    sub rax, rsi
    cmp rdx, rax
    ja .bad_address
    mov qword ptr [rbx + FRAME_rax], 0
.next:
    test rdx, rdx
    jz .done
    movzx edi, byte ptr [rsi]
    call putc
    inc rsi
    dec rdx
    jmp .next
.bad_address:
    mov qword ptr [rbx + FRAME_rax], -EFAULT
    inc dword ptr [rip + bad_addresses]
.done:
    pop rbx
    ret

# page_fault(rdi = frame): a fault on the heap is served; any other of the process goes on at the address in its r15
# with rax = -EFAULT, as if it had a signal handler.
page_fault:
    mov eax, [rdi + FRAME_cs]
    and eax, 3
    jz trap_default                             # a fault of the kernel
    push rbx
    push rbp
    mov rbx, rdi
    call came_from_user
    mov rbp, [rip + shared_info + VCPU_INFO_cr2]
    mov rax, rbp
    and rax, -PAGE_SIZE
    mov rcx, USER_HEAP
    cmp rax, rcx
    je .heap
    mov ecx, [rip + faults]
    cmp ecx, 2
    check b, "too many page faults"
    lea rdx, [rip + fault_log]
    shl ecx, 4
    mov [rdx + rcx], rbp                        # remember address and error code
    mov rax, [rbx + FRAME_error]
    mov [rdx + rcx + 8], rax
    inc dword ptr [rip + faults]
    call resume_at_r15
    pop rbp
    pop rbx
    ret
.heap:
    cmp qword ptr [rbx + FRAME_error], PFEC_W | PFEC_U
    check e, "the heap fault is not a user's write to a missing page"
    lea rdi, [rip + user_l1]
    mov esi, USER_HEAP_INDEX
    call entry_address
    mov rbp, rax
    lea rdi, [rip + heap_page]
    call frame_of
    mov rsi, DATA_PAGE
    or rsi, rax
    mov rdi, rbp
    call set_entry                              # from missing to present: no flush needed
    must_succeed "mapping the heap page"
    inc dword ptr [rip + heap_faults]
    pop rbp
    pop rbx
    ret

# protection_fault(rdi = frame)
protection_fault:
    mov eax, [rdi + FRAME_cs]
    and eax, 3
    jz trap_default
    push rbx
    mov rbx, rdi
    call came_from_user
    inc dword ptr [rip + protection_faults]
    call resume_at_r15
    pop rbx
    ret

resume_at_r15:                                  # rbx = frame
    mov rax, [rbx + FRAME_r15]
    mov [rbx + FRAME_rip], rax
    mov qword ptr [rbx + FRAME_rax], -EFAULT
    ret

# preempt(rdi = frame, esi = port): the timer's event. Use the other kernel stack from now on; wind the timer up again.
preempt:
    lea rax, [rdi + FRAME_SIZE]
    cmp rax, [rip + served_stack]               # the next slice has ended before this upcall has: the same frame,
    je .again                                   # and the stacks have been switched already
    mov [rip + served_stack], rax
    call came_from_user
.again:
    inc dword ptr [rip + preemptions]
    mov eax, [rip + preemptions]
    mov [rip + user_data], eax                  # the process waits for this
    lea rdi, [rip + stack_b_top]
    cmp rdi, [rip + kernel_stack]
    jne .switch
    lea rdi, [rip + stack_a_top]
.switch:
    call use_stack
    call system_time
    lea rdi, [rax + SLICE]
    call set_timer
    ret

# process_exit: reached from system_call, rbx = frame. Compare what we saw with what the process did.
process_exit:
    cmp qword ptr [rbx + FRAME_rdi], 0
    je .well
    print "FAILURE: the process stopped at step "
    print_dec [rbx + FRAME_rdi]
    print "\n"
    jmp poweroff
.well:
    print "  process exited\n"
    cmp dword ptr [rip + unknown_calls], 1
    check e, "SYSCALL from user mode was not a system call"
    cmp dword ptr [rip + bad_addresses], 1
    check e, "the process had the kernel print its memory"
    cmp dword ptr [rip + heap_faults], 1
    check e, "the heap did not fault exactly once"
    cmp dword ptr [rip + faults], 2
    check e, "expected two refused accesses"
    lea rax, [rip + kernel_secret]
    cmp [rip + fault_log], rax
    check e, "the first refused access is not the one to kernel memory"
    cmp qword ptr [rip + fault_log + 8], PFEC_U
    check e, "reading kernel memory: not a user's read of a missing page"
    cmp qword ptr [rip + fault_log + 24], PFEC_U | PFEC_W | PFEC_P
    check e, "writing the code page: not a user's write to a present page"
    cmp dword ptr [rip + protection_faults], 1
    check e, "CLI from user mode did not fault"
    cmp dword ptr [rip + preemptions], PREEMPTIONS
    check ae, "fewer than three preemptions"
    print "  1 heap fault, 2 refused accesses, 1 protection fault, "
    mov edi, [rip + preemptions]
    call put_dec
    print " preemptions\n"
    succeed

# --- The process: position-independent, as it runs at USER_CODE and not where it is linked ------------------------
.balign PAGE_SIZE
user_page:
    mov ebp, 1                                  # rbp = number of the step
    mov eax, SYS_WRITE
    lea rdi, [rip + user_text]
    mov esi, 34
    syscall
    test rax, rax
    jnz .wrong

    inc ebp                                     # 2: a hypercall's number is nothing special here
    mov eax, __HYPERVISOR_sched_op
    mov edi, SCHEDOP_shutdown
    mov rsi, USER_DATA
    syscall
    cmp rax, -ENOSYS
    jne .wrong

    inc ebp                                     # 3: have the kernel print kernel memory
    mov eax, SYS_WRITE
    mov rdi, kernel_secret
    mov esi, 8
    syscall
    cmp rax, -EFAULT
    jne .wrong

    inc ebp                                     # 4: the heap appears when it is used
    mov rbx, USER_HEAP
    mov qword ptr [rbx + 8], 0x1234
    cmp qword ptr [rbx + 8], 0x1234
    jne .wrong
    cmp qword ptr [rbx], 0
    jne .wrong

    inc ebp                                     # 5: read kernel memory
    lea r15, [rip + .after_read]
    mov rcx, kernel_secret
    mov rax, [rcx]
.after_read:
    cmp rax, -EFAULT
    jne .wrong

    inc ebp                                     # 6: write to our own code
    lea r15, [rip + .after_write]
    xor eax, eax
    mov byte ptr [rip + user_text], 0
.after_write:
    cmp rax, -EFAULT
    jne .wrong

    inc ebp                                     # 7: a privileged instruction
    lea r15, [rip + .after_cli]
    xor eax, eax
    cli
.after_cli:
    cmp rax, -EFAULT
    jne .wrong

    inc ebp                                     # 8: do nothing until the kernel has preempted us often enough
    mov rbx, USER_DATA
.spin:
    cmp dword ptr [rbx], PREEMPTIONS
    jb .spin
    push rbp                                    # the stack works too
    pop rcx
    cmp rcx, rbp
    jne .wrong
    xor ebp, ebp
.wrong:
    mov eax, SYS_EXIT
    mov edi, ebp
    syscall
    ud2
user_text:
    .ascii "  hello from the process, ring 3!\n"
.balign PAGE_SIZE

.data
.balign 8
kernel_secret:  .quad 0x5ec2e7
served_stack:   .quad 0                         # top of the stack that the latest upcall came on
kernel_stack:   .quad 0                         # top of the stack that is registered with Xen
fault_log:      .quad 0, 0, 0, 0                # (address, error code) of two page faults
faults:         .long 0
heap_faults:    .long 0
protection_faults: .long 0
unknown_calls:  .long 0
bad_addresses:  .long 0
preemptions:    .long 0

.bss
.balign PAGE_SIZE
user_l4:        .zero PAGE_SIZE
user_l3:        .zero PAGE_SIZE
user_l2:        .zero PAGE_SIZE
user_l1:        .zero PAGE_SIZE
user_data:      .zero PAGE_SIZE
user_stack:     .zero PAGE_SIZE
heap_page:      .zero PAGE_SIZE
stack_a:        .zero PAGE_SIZE
stack_a_top:
stack_b:        .zero PAGE_SIZE
stack_b_top:
