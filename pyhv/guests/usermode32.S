# SPDX-License-Identifier: GPL-2.0-only
#
# usermode32 - runs a process in ring 3 of a 32-bit kernel: system calls, demand paging, preemption; then powers off
#
# `usermode` does the same in 64 bits, where kernel and processes share ring 3 and need two page tables. Here
#   - one page table serves both: the processor tells ring 1 from ring 3, and the kernel's pages simply have no U bit;
#   - a system call is `int 0x80`. The process calls the kernel, not Xen: Xen passes it on at once, whatever the trap
#     table says about DPL. `int 0x82` from ring 3 is no hypercall but #GP;
#   - every way into the kernel begins at the stack of the last stack_switch, with esp and ss of the process in the frame;
#   - the kernel may use the process's memory, as its pages are mapped in the one table. So a system call has to check the
#     addresses it is given.
#
#       USER_CODE    r-x  user_page                     in the second GiB, by an L1 of its own
#       USER_DATA    rw-  user_data
#       USER_STACK   rw-  user_stack
#       USER_HEAP    nothing, until it is touched
#
# Steps: build and link the L1; run the process below, which does one thing after the other and exits with the number of
# the step that went wrong, or 0; compare what the kernel saw; SUCCESS.

.width 32
.include "xen.inc"
.include "kernel32.inc"
.include "traps32.inc"
.include "events32.inc"
.include "paging32.inc"

.set USER_BASE, 1 << 30
.set USER_CODE, USER_BASE
.set USER_DATA, USER_BASE + 0x1000
.set USER_STACK, USER_BASE + 0x2000
.set USER_STACK_TOP, USER_BASE + 0x3000
.set USER_HEAP_INDEX, 16                        # of the L1
.set USER_HEAP, USER_BASE + 0x10000

.set SYS_EXIT, 1                                # (code)
.set SYS_WRITE, 2                               # (string, length)
.set PREEMPTIONS, 3
.set SLICE, 2 * 1000 * 1000                     # ns

.set CODE_PAGE, PTE_P | PTE_US | PTE_A
.set DATA_PAGE, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D
.set NX_HIGH, 1 << 31
.set UPPER, PTE_P | PTE_RW | PTE_US | PTE_A
.set READ_ONLY, PTE_P | PTE_A

.macro fill index, page, flags, high            # user_l1[index] = page | flags, with plain stores
    mov eax, \page
    mov edx, \flags
    call entry_of
    or ecx, \high
    mov [user_l1 + \index * 8], edx
    mov [user_l1 + \index * 8 + 4], ecx
.endm

.macro step                                     # of the process
    inc ebp
.endm

.text
_start:
    kernel_entry
    print "usermode32: a process\n"
    call traps_init
    call events_init
    set_handler TRAP_page_fault, page_fault
    set_handler TRAP_gp_fault, protection_fault
    set_handler VECTOR_SYSCALL, system_call
    mov ebx, system_call_table
    hypercall set_trap_table
    must_return 0, "set_trap_table for int 0x80"

    # --- The process's L1: fill it, map it read-only, link it into the second GiB's L2 ---------------------------
    fill 0, user_page, CODE_PAGE, 0
    fill 1, user_data, DATA_PAGE, NX_HIGH
    fill 2, user_stack, DATA_PAGE, NX_HIGH
    mov eax, user_l1
    mov edx, READ_ONLY
    call remap
    must_succeed "mapping the user's L1 read-only"
    mov eax, USER_BASE
    mov edx, 2
    call find_table
    mov esi, eax
    mov eax, user_l1
    mov edx, UPPER
    call entry_of
    mov eax, esi                                # slot 0
    call set_entry
    must_succeed "linking the user's L1"

    # --- Where to come back: kernel stack A, and a timer --------------------------------------------------------
    mov eax, stack_a_top
    call use_stack
    call bind_timer
    bind_port eax, preempt
    call wind_up

    # --- Go -----------------------------------------------------------------------------------------------------
    mov eax, FLAT_RING3_DS
    mov ds, eax
    mov es, eax
    push eax
    push USER_STACK_TOP
    push EFLAGS_IF | 2                          # IF set: events are not masked in user mode
    push FLAT_RING3_CS
    push USER_CODE
    xor eax, eax
    iret_hypercall

# use_stack(eax = stack top): the next entry from ring 3 shall begin there.
use_stack:
    push ebx
    mov [kernel_stack], eax
    mov ecx, eax
    mov ebx, FLAT_RING1_DS
    hypercall stack_switch
    must_succeed "stack_switch"
    pop ebx
    ret

wind_up:                                        # one timer event, a slice from now
    call system_time
    add eax, SLICE
    adc edx, 0
    jmp set_timer

# came_from_user(eax = frame): check that the frame lies at the very top of the registered stack and shows ring 3.
came_from_user:
    lea edx, [eax + FRAME_SIZE]
    cmp edx, [kernel_stack]
    check e, "Xen did not use the registered kernel stack"
    cmp word ptr [eax + FRAME_cs], FLAT_RING3_CS
    check e, "an entry from ring 3 shows another cs"
    cmp word ptr [eax + FRAME_ss], FLAT_RING3_DS
    check e, "an entry from ring 3 shows another ss"
    ret

# system_call(eax = frame): number in eax, arguments in ebx and ecx, result in eax
system_call:
    push ebx
    push esi
    push edi
    mov ebx, eax
    call came_from_user
    mov eax, [ebx + FRAME_eax]
    cmp eax, SYS_EXIT
    je process_exit
    cmp eax, SYS_WRITE
    je .write
    mov dword ptr [ebx + FRAME_eax], -ENOSYS
    inc dword ptr [unknown_calls]
    jmp .done
.write:
    # A process could name the kernel's memory and have it printed. So only its own part of the address space will do.
    mov esi, [ebx + FRAME_ebx]
    mov edi, [ebx + FRAME_ecx]
    cmp esi, USER_BASE
    jb .bad_address
    mov eax, USER_HEAP
    sub eax, esi
    jbe .bad_address
    cmp edi, eax
    ja .bad_address
    mov dword ptr [ebx + FRAME_eax], 0
.next:
    test edi, edi
    jz .done
    mov al, [esi]
    call putc
    inc esi
    dec edi
    jmp .next
.bad_address:
    mov dword ptr [ebx + FRAME_eax], -EFAULT
    inc dword ptr [bad_addresses]
.done:
    pop edi
    pop esi
    pop ebx
    ret

# page_fault(eax = frame): a fault on the heap is served; any other of the process goes on at the address in its edi
# with eax = -EFAULT, as if it had a signal handler.
page_fault:
    test dword ptr [eax + FRAME_cs], 2
    jz trap_default                             # a fault of the kernel
    push ebx
    mov ebx, eax
    call came_from_user
    mov edx, [shared_info + VCPU_INFO_cr2]
    mov eax, edx
    and eax, -PAGE_SIZE
    cmp eax, USER_HEAP
    je .heap
    mov ecx, [faults]
    cmp ecx, 3
    check b, "too many page faults"
    mov [fault_log + ecx * 8], edx              # remember address and error code
    mov eax, [ebx + FRAME_error]
    mov [fault_log + ecx * 8 + 4], eax
    inc dword ptr [faults]
    call resume_at_edi
    pop ebx
    ret
.heap:
    cmp dword ptr [ebx + FRAME_error], PFEC_W | PFEC_U
    check e, "the heap fault is not a user's write to a missing page"
    mov eax, heap_page
    mov edx, DATA_PAGE
    call entry_of
    or ecx, NX_HIGH
    mov eax, user_l1 + USER_HEAP_INDEX * 8
    call set_entry                              # from missing to present: no flush needed
    must_succeed "mapping the heap page"
    inc dword ptr [heap_faults]
    pop ebx
    ret

# protection_fault(eax = frame)
protection_fault:
    test dword ptr [eax + FRAME_cs], 2
    jz trap_default
    push ebx
    mov ebx, eax
    call came_from_user
    mov ecx, [protection_faults]
    cmp ecx, 2
    check b, "too many protection faults"
    mov eax, [ebx + FRAME_error]
    mov [protection_log + ecx * 4], eax
    inc dword ptr [protection_faults]
    call resume_at_edi
    pop ebx
    ret

resume_at_edi:                                  # ebx = frame
    mov eax, [ebx + FRAME_edi]
    mov [ebx + FRAME_eip], eax
    mov dword ptr [ebx + FRAME_eax], -EFAULT
    ret

# preempt(eax = frame, edx = port): the timer's event. Use the other kernel stack from now on; wind the timer up again.
preempt:
    lea edx, [eax + FRAME_SIZE]
    cmp edx, [served_stack]                     # the next slice has ended before this upcall has: the same frame,
    je .again                                   # and the stacks have been switched already
    mov [served_stack], edx
    call came_from_user
.again:
    inc dword ptr [preemptions]
    mov eax, [preemptions]
    mov [user_data], eax                        # the process waits for this
    mov eax, stack_b_top
    cmp eax, [kernel_stack]
    jne .switch
    mov eax, stack_a_top
.switch:
    call use_stack
    jmp wind_up

# process_exit: reached from system_call, ebx = frame. Compare what we saw with what the process did.
process_exit:
    cmp dword ptr [ebx + FRAME_ebx], 0
    je .well
    print "FAILURE: the process stopped at step "
    print_dec [ebx + FRAME_ebx]
    print "\n"
    jmp poweroff
.well:
    print "  process exited\n"
    cmp dword ptr [unknown_calls], 1
    check e, "an unknown system call was not one"
    cmp dword ptr [bad_addresses], 1
    check e, "the process had the kernel print its memory"
    cmp dword ptr [heap_faults], 1
    check e, "the heap did not fault exactly once"
    cmp dword ptr [faults], 3
    check e, "expected three refused accesses"
    cmp dword ptr [fault_log], kernel_secret
    check e, "the first refused access is not the one to kernel memory"
    cmp dword ptr [fault_log + 4], PFEC_P | PFEC_U
    check e, "reading kernel memory: not a user's read of a present page"
    cmp dword ptr [fault_log + 12], PFEC_U | PFEC_W | PFEC_P
    check e, "writing the code page: not a user's write to a present page"
    cmp dword ptr [fault_log + 20], PFEC_U | PFEC_P | 16
    check e, "running on the stack: not a user's fetch from a present page"
    cmp dword ptr [protection_faults], 2
    check e, "expected two protection faults"
    cmp dword ptr [protection_log], 0
    check e, "the error code of cli is not 0"
    cmp dword ptr [protection_log + 4], 0x82 << 3 | 2
    check e, "the error code of int 0x82 does not name its vector"
    cmp dword ptr [preemptions], PREEMPTIONS
    check ae, "fewer than three preemptions"
    print "  1 heap fault, 3 refused accesses, 2 protection faults, "
    print_dec [preemptions]
    print " preemptions\n"
    succeed

# --- The process. It runs at USER_CODE and not where it is linked: jumps are relative, addresses are computed -----
.balign PAGE_SIZE
user_page:
    mov ebp, 1                                  # ebp = number of the step
    mov eax, SYS_WRITE
    mov ebx, user_text - user_page + USER_CODE
    mov ecx, 34
    int 0x80
    test eax, eax
    jnz .wrong

    step                                        # 2: no such system call
    mov eax, 99
    int 0x80
    cmp eax, -ENOSYS
    jne .wrong

    step                                        # 3: have the kernel print kernel memory
    mov eax, SYS_WRITE
    mov ebx, kernel_secret
    mov ecx, 4
    int 0x80
    cmp eax, -EFAULT
    jne .wrong

    step                                        # 4: the heap appears when it is used
    mov dword ptr [USER_HEAP + 8], 0x1234
    cmp dword ptr [USER_HEAP + 8], 0x1234
    jne .wrong
    cmp dword ptr [USER_HEAP], 0
    jne .wrong

    step                                        # 5: read kernel memory
    mov edi, .after_read - user_page + USER_CODE
    mov eax, [kernel_secret]
.after_read:
    cmp eax, -EFAULT
    jne .wrong

    step                                        # 6: write to our own code
    mov edi, .after_write - user_page + USER_CODE
    mov byte ptr [USER_CODE], 0
.after_write:
    cmp eax, -EFAULT
    jne .wrong

    step                                        # 7: run what is on the stack
    mov edi, .after_jump - user_page + USER_CODE
    xor eax, eax
    mov ecx, USER_STACK
    jmp ecx
.after_jump:
    cmp eax, -EFAULT
    jne .wrong

    step                                        # 8: a privileged instruction
    mov edi, .after_cli - user_page + USER_CODE
    xor eax, eax
    cli
.after_cli:
    cmp eax, -EFAULT
    jne .wrong

    step                                        # 9: power the machine off
    mov edi, .after_hypercall - user_page + USER_CODE
    mov eax, __HYPERVISOR_sched_op
    mov ebx, SCHEDOP_shutdown
    mov ecx, USER_DATA
    int 0x82
.after_hypercall:
    cmp eax, -EFAULT
    jne .wrong

    step                                        # 10: do nothing until the kernel has preempted us often enough
.spin:
    cmp dword ptr [USER_DATA], PREEMPTIONS
    jb .spin
    push ebp                                    # the stack works too
    pop ecx
    cmp ecx, ebp
    jne .wrong
    xor ebp, ebp
.wrong:
    mov eax, SYS_EXIT
    mov ebx, ebp
    int 0x80
    ud2
user_text:
    .ascii "  hello from the process, ring 3!\n"
.balign PAGE_SIZE

.data
.balign 8
system_call_table:
    trap_entry 0x80, TRAP_MASK_EVENTS, VECTOR_SYSCALL
    .long 0, 0
kernel_secret:  .long 0x5ec2e7
served_stack:   .long 0                         # top of the stack that the latest upcall came on
kernel_stack:   .long 0                         # top of the stack that is registered with Xen
fault_log:      .long 0, 0, 0, 0, 0, 0          # (address, error code) of three page faults
protection_log: .long 0, 0                      # error codes of two protection faults
faults:         .long 0
heap_faults:    .long 0
protection_faults: .long 0
unknown_calls:  .long 0
bad_addresses:  .long 0
preemptions:    .long 0

.bss
.balign PAGE_SIZE
user_l1:        .zero PAGE_SIZE
user_data:      .zero PAGE_SIZE
user_stack:     .zero PAGE_SIZE
heap_page:      .zero PAGE_SIZE
stack_a:        .zero PAGE_SIZE
stack_a_top:
stack_b:        .zero PAGE_SIZE
stack_b_top:
