# SPDX-License-Identifier: GPL-2.0-only
#
# exits - does each kind of exit many times over, between two lines on the console; then powers off
#
#   BEGIN name                   printed, then the work is done
#   END count name               so many exits of that kind were made in between
#
# The one who measures looks at the clock when a line arrives; the guest itself does not. What is counted as one exit
# is said at each routine: some kinds cannot come alone (a page fault comes with the iret hypercall that ends it).

.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "events.inc"
.include "paging.inc"

.set ROUNDS, 20000
.set MULTICALL_ENTRIES, 32
.set MULTICALL_ENTRY_SIZE, 64                   # op, result, six arguments
.set MMUEXT_TLB_FLUSH_LOCAL, 6
.set VGCF_in_syscall, 0x100
.set UNMAPPED, 511 << 21                        # 2 MiB below 1 GiB: the builder mapped nothing there

.set TREE_L1S, 8                                # of the tree that is pinned, below one L2, one L3 and one L4

.set USER_SLOT, 2                               # of the L4
.set USER_CODE, 2 << 39
.set USER_DATA, USER_CODE + 0x1000
.set USER_STACK_TOP, USER_CODE + 0x3000
.set SYS_EXIT, 1                                # anything else does nothing

.set READ_ONLY, PTE_P | PTE_A
.set READ_WRITE, PTE_P | PTE_RW | PTE_A | PTE_D
.set CODE_PAGE, PTE_P | PTE_US | PTE_A
.set DATA_PAGE, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D | PTE_NX
.set UPPER, PTE_P | PTE_RW | PTE_US | PTE_A

.macro measure name, routine, rounds, each      # call routine `rounds` times; each call makes `each` exits
    .data
.name\@: .asciz "\name"
    .text
    lea rdi, [rip + .name\@]
    lea rsi, [rip + \routine]
    mov edx, \rounds
    mov ecx, \each
    call measure_routine
.endm

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

.macro pin_l4 table
    mov edi, MMUEXT_PIN_L4_TABLE
    lea rsi, [rip + \table]
    call pin_frame
    must_succeed "pinning a user L4"
.endm

.macro use_user_l4 table
    mov edi, MMUEXT_NEW_USER_BASEPTR
    lea rsi, [rip + \table]
    call pin_frame
    must_succeed "installing a user L4"
.endm

.text
_start:
    kernel_entry
    print "exits: what each kind of exit costs\n"
    call traps_init
    call events_init
    set_handler TRAP_page_fault, skip_fault
    call bind_timer                             # stops the periodic tick

    measure "nothing", nothing, ROUNDS, 1
    measure "hypercall (xen_version)", version, ROUNDS, 1
    call fill_multicall
    measure "multicall, one entry", multicall, ROUNDS / 20, MULTICALL_ENTRIES

    lea rdi, [rip + data_page]
    mov esi, 1
    call find_table
    mov rdi, rax
    lea rsi, [rip + data_page]
    shr rsi, PAGE_SHIFT
    and esi, 511
    call entry_address
    mov [rip + data_entry], rax
    lea rdi, [rip + data_page]
    call frame_of
    or rax, READ_WRITE
    mov [rip + data_value], rax
    measure "mmu_update, one L1 entry", one_update, ROUNDS, 1
    measure "update_va_mapping with INVLPG", one_mapping, ROUNDS, 1
    measure "TLB flush (mmuext_op)", flush, ROUNDS, 1

    call build_tree
    measure "pin and unpin an L4, 11 tables", pin_and_unpin, ROUNDS / 40, 1

    measure "RDTSC", read_counter, ROUNDS, 1
    measure "CPUID with the forced-emulation prefix", identify, ROUNDS, 1
    measure "page fault and iret", fault, ROUNDS, 1

    mov dword ptr [rip + bind_ipi_arg], 0       # vcpu 0
    mov edi, EVTCHNOP_bind_ipi
    lea rsi, [rip + bind_ipi_arg]
    hypercall event_channel_op
    must_succeed "binding an IPI"
    mov eax, [rip + bind_ipi_arg + 4]
    mov [rip + send_arg], eax
    bind_port rax, event
    measure "event to itself, masked", send_masked, ROUNDS, 1
    unmask_events
    measure "event to itself, with upcall and iret", send_event, ROUNDS, 1
    mask_events
    cmp dword ptr [rip + events_seen], ROUNDS
    check e, "not every event made an upcall"
    cmp dword ptr [rip + faults_seen], ROUNDS
    check e, "not every page fault arrived"

    call build_process
    use_user_l4 like_kernel_l4
    measure "system call and iret, equal page tables", run_process, 1, ROUNDS
    use_user_l4 own_l4
    measure "system call and iret, two page tables", run_process, 1, ROUNDS
    succeed

# measure_routine(rdi = name, rsi = routine, edx = rounds, ecx = exits in a round). rbx, rbp are ours to the routine.
measure_routine:
    push rbx
    push rbp
    push r12
    push r13
    mov rbx, rsi
    mov ebp, edx
    mov r12, rdi
    mov eax, edx
    imul eax, ecx
    mov r13, rax
    print "BEGIN "
    call puts
    print "\n"
    call line_arrives
.again:
    call rbx
    dec ebp
    jnz .again
    print "END "
    print_dec r13
    print " "
    mov rdi, r12
    call puts
    print "\n"
    call line_arrives
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret

# What was printed leaves the hypervisor when a turn ends: end it.
line_arrives:
    mov edi, SCHEDOP_yield
    xor esi, esi
    hypercall sched_op
    must_succeed "yielding"
    ret

# --- One round of each kind -------------------------------------------------------------------------------------------
nothing:
    ret

version:
    mov edi, XENVER_version
    xor esi, esi
    hypercall xen_version
    ret

# One hypercall with MULTICALL_ENTRIES calls of xen_version in it; each entry counts.
multicall:
    lea rdi, [rip + multicall_list]
    mov esi, MULTICALL_ENTRIES
    hypercall multicall
    ret

# data_page becomes read-only, writable, read-only ...
one_update:
    xor qword ptr [rip + data_value], PTE_RW
    mov rdi, [rip + data_entry]
    mov rsi, [rip + data_value]
    jmp set_entry

one_mapping:
    xor qword ptr [rip + data_value], PTE_RW
    lea rdi, [rip + data_page]
    mov rsi, [rip + data_value]
    jmp update_mapping

flush:
    mov edi, MMUEXT_TLB_FLUSH_LOCAL
    xor esi, esi
    jmp mmuext

# A tree of tables that all become page tables, and no page tables again.
pin_and_unpin:
    pin_l4 tree_l4
    mov edi, MMUEXT_UNPIN_TABLE
    lea rsi, [rip + tree_l4]
    call pin_frame
    must_succeed "unpinning the tree"
    ret

read_counter:
    rdtsc
    ret

identify:
    push rbx
    xor eax, eax
    .byte 0x0f, 0x0b, 0x78, 0x65, 0x6e          # ud2; "xen": the next instruction is for Xen
    cpuid
    pop rbx
    ret

# The fault, its way through trap_common, and the iret hypercall back.
fault:
    mov ecx, UNMAPPED
    mov eax, [rcx]
after_fault:
    ret

skip_fault:                                     # rdi = frame
    inc dword ptr [rip + faults_seen]
    lea rax, [rip + after_fault]
    mov [rdi + FRAME_rip], rax
    ret

# The port becomes pending, and what was set is cleared again, or the next send would find it pending already.
send_masked:
    mov edi, EVTCHNOP_send
    lea rsi, [rip + send_arg]
    hypercall event_channel_op
    xor eax, eax
    mov byte ptr [rip + shared_info + VCPU_INFO_upcall_pending], al
    mov [rip + shared_info + VCPU_INFO_pending_sel], rax
    mov [rip + shared_info + SHARED_INFO_evtchn_pending], rax
    ret

# The hypercall returns into the upcall, which goes through trap_common, and ends with the iret hypercall.
send_event:
    mov edi, EVTCHNOP_send
    lea rsi, [rip + send_arg]
    hypercall event_channel_op
    ret

event:
    inc dword ptr [rip + events_seen]
    ret

# --- System calls -----------------------------------------------------------------------------------------------------
# Into the process, which makes ROUNDS system calls and then SYS_EXIT, which comes back here.
run_process:
    push rbx
    push rbp
    mov dword ptr [rip + user_data], ROUNDS
    mov [rip + kernel_rsp], rsp
    push FLAT_RING3_SS64
    mov rax, USER_STACK_TOP
    push rax
    push 2                                      # rflags
    push FLAT_RING3_CS64
    mov rax, USER_CODE
    push rax
    push 0                                      # flags
    push 0                                      # rcx
    push 0                                      # r11
    push 0                                      # rax
    hypercall iret
    fail "the iret hypercall came back"

# The callback finds rcx, r11, rip, cs, rflags, rsp, ss on the stack and makes the frame of the iret hypercall of it.
process_call:
    cmp eax, SYS_EXIT
    je .exit
    pop rcx
    pop r11
    push VGCF_in_syscall
    push rcx
    push r11
    push rax
    hypercall iret
    ud2
.exit:
    mov rsp, [rip + kernel_rsp]
    pop rbp
    pop rbx
    ret

# Two L4s for one process: `own_l4` holds the process alone, `like_kernel_l4` has the lower half of the kernel's.
build_process:
    fill own_l4, USER_SLOT, user_l3, UPPER
    fill user_l3, 0, user_l2, UPPER
    fill user_l2, 0, user_l1, UPPER
    fill user_l1, 0, user_page, CODE_PAGE
    fill user_l1, 1, user_data, DATA_PAGE
    fill user_l1, 2, user_stack, DATA_PAGE
    protect user_l3
    protect user_l2
    protect user_l1
    protect own_l4
    pin_l4 own_l4

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
    mov rsi, [rip + start_info]
    mov rsi, [rsi + START_INFO_pt_base]
    lea rdi, [rip + like_kernel_l4]
    mov ecx, 256
    rep movsq
    protect like_kernel_l4
    pin_l4 like_kernel_l4

    mov word ptr [rip + callback_arg], CALLBACKTYPE_syscall
    mov word ptr [rip + callback_arg + 2], CALLBACKF_mask_events
    lea rax, [rip + process_call]
    mov [rip + callback_arg + 8], rax
    mov edi, CALLBACKOP_register
    lea rsi, [rip + callback_arg]
    hypercall callback_op
    must_succeed "callback_op(register)"
    mov edi, FLAT_RING3_SS64
    lea rsi, [rip + process_stack_top]
    hypercall stack_switch
    must_succeed "stack_switch"
    ret

# Each entry of each L1 maps data_page: 4,096 mappings to be checked and counted.
build_tree:
    push rbx
    lea rdi, [rip + data_page]
    call frame_of
    mov rcx, DATA_PAGE
    or rax, rcx
    lea rdi, [rip + tree_l1s]
    mov ecx, TREE_L1S * 512
    rep stosq
    xor ebx, ebx
.link:
    call tree_l1
    call frame_of
    or rax, UPPER
    lea rcx, [rip + tree_l2]
    mov [rcx + rbx * 8], rax
    call tree_l1
    mov esi, READ_ONLY
    call remap
    must_succeed "mapping an L1 read-only"
    inc ebx
    cmp ebx, TREE_L1S
    jb .link
    fill tree_l3, 0, tree_l2, UPPER
    fill tree_l4, 0, tree_l3, UPPER
    protect tree_l2
    protect tree_l3
    protect tree_l4
    pop rbx
    ret

# rdi = va of the L1 with the number ebx
tree_l1:
    mov edi, ebx
    shl edi, PAGE_SHIFT
    lea rax, [rip + tree_l1s]
    add rdi, rax
    ret

# pin_frame(edi = MMUEXT_*, rsi = va of the table)
pin_frame:
    push rbx
    mov ebx, edi
    mov rdi, rsi
    call va_to_mfn
    mov rsi, rax
    mov edi, ebx
    pop rbx
    jmp mmuext

fill_multicall:
    lea rdi, [rip + multicall_list]
    mov ecx, MULTICALL_ENTRIES
.next:
    mov qword ptr [rdi], __HYPERVISOR_xen_version
    mov qword ptr [rdi + 16], XENVER_version
    add rdi, MULTICALL_ENTRY_SIZE
    dec ecx
    jnz .next
    ret

# The process: position-independent, as it runs at USER_CODE.
.balign PAGE_SIZE
user_page:
    mov rax, USER_DATA
    mov ebx, [rax]
.next:
    xor eax, eax
    syscall
    dec ebx
    jnz .next
    mov eax, SYS_EXIT
    syscall
    ud2
.balign PAGE_SIZE

.data
.balign 8
data_entry:     .quad 0                         # machine address of the L1 entry that maps data_page
data_value:     .quad 0                         # what it says
kernel_rsp:     .quad 0
bind_ipi_arg:   .long 0, 0                      # vcpu, port (out)
send_arg:       .long 0
events_seen:    .long 0
faults_seen:    .long 0

.bss
.balign PAGE_SIZE
data_page:      .zero PAGE_SIZE
own_l4:         .zero PAGE_SIZE
like_kernel_l4: .zero PAGE_SIZE
user_l3:        .zero PAGE_SIZE
user_l2:        .zero PAGE_SIZE
user_l1:        .zero PAGE_SIZE
user_data:      .zero PAGE_SIZE
user_stack:     .zero PAGE_SIZE
tree_l4:        .zero PAGE_SIZE
tree_l3:        .zero PAGE_SIZE
tree_l2:        .zero PAGE_SIZE
tree_l1s:       .zero TREE_L1S * PAGE_SIZE
multicall_list: .zero 32 * 64
.balign PAGE_SIZE
process_stack:  .zero PAGE_SIZE
process_stack_top:
