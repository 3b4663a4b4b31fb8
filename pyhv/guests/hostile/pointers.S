# SPDX-License-Identifier: GPL-2.0-only
#
# pointers - hands every hypercall that takes a pointer one that the guest itself could not follow
#
# Class: pointer arguments
# History: XSA-29, XSA-122, XSA-212
# Refused: addresses of the hypervisor, addresses that are not canonical, pages that are not mapped, structures that
#   begin in a good page and end in a bad one, and results to pages that the guest may only read: EFAULT, or where a
#   call tells how much it has done, nothing done.

.include "hostile.inc"

# One line for each call: number; the arguments, of which one is replaced by each bad pointer; what must come back.
# BAD marks that argument. A call that only reads its structure gets the pointers of `unreadable`; one that only
# writes, those and the ones of `unwritable`.
.set BAD, 0x7bad7bad7bad7bad
.set LINE, 64

.macro reads call, a, b, c, d, answer, what
    .quad __HYPERVISOR_\call, \a, \b, \c, \d, \answer, .text\@, 0
    .text
.text\@: .asciz "\what"
    .data
.endm

.macro writes call, a, b, c, d, answer, what
    .quad __HYPERVISOR_\call, \a, \b, \c, \d, \answer, .text\@, 1
    .text
.text\@: .asciz "\what"
    .data
.endm

.set __HYPERVISOR_set_timer_op, 15
.set __HYPERVISOR_event_channel_op_compat, 16
.set __HYPERVISOR_physdev_op_compat, 19
.set __HYPERVISOR_nmi_op, 28
.set __HYPERVISOR_physdev_op, 33

.macro read_only_result what, call, a, b, c
    attack "\what, its result to a read-only page", -EFAULT, \call, \a, \b, \c, 0
.endm

.macro quietly answer, what, call, a, b, c
    mov rdi, \a
    mov rsi, \b
    mov rdx, \c
    mov r10d, DOMID_SELF
    hypercall \call
    cmp rax, \answer
    must e, "\what"
.endm

.text
_start:
    hostile_entry "pointers"
    mov dword ptr [rip + ro_selves], DOMID_SELF | DOMID_SELF << 16
    mov dword ptr [rip + ro_port], DOMID_SELF
    mov dword ptr [rip + ro_port + 4], 1
    mov dword ptr [rip + ro_map], 1
    mov rax, writable_page
    mov [rip + ro_map + 8], rax
    mov [rip + ro_port + 16], rax
    mov dword ptr [rip + ro_one], 1
    readonly read_only
    lea rdi, [rip + gap]
    xor esi, esi
    call update_mapping
    must_succeed "unmapping a page"
    mov rax, [rip + start_info]
    mov rax, [rax + START_INFO_pt_base]
    mov [rip + own_l4], rax
    link l2, 0, l1, TABLE                       # the bits of NOT_CANONICAL that a walk looks at lead to a page
    link l3, 0, l2, TABLE
    link l1, 0, writable_page, READ_WRITE
    pin 1, l1
    pin 2, l2
    pin 3, l3
    mov rdi, [rip + own_l4]
    mov esi, 288
    call entry_address
    mov rbx, rax
    lea rdi, [rip + l3]
    call frame_of
    lea rsi, [rax + TABLE]
    mov rdi, rbx
    call set_entry
    must_succeed "a table in slot 288"
    mov rax, 0xffff900000000000
    mov rax, [rax]
    lea rbx, [rip + table_begin]
.next_line:
    lea r12, [rip + unreadable]
    call each_pointer
    cmp qword ptr [rbx + 56], 1
    jne .told
    lea r12, [rip + unwritable]
    call each_pointer
.told:
    inc qword ptr [rip + lines]
    print "refused: "
    mov rdi, [rbx + 48]
    call puts
    print "\n"
    add rbx, LINE
    lea rax, [rip + table_end]
    cmp rbx, rax
    jb .next_line
    print_dec [rip + lines]
    print " calls\n"

    # Structures that are read and then written, in a page that the guest may only read
    read_only_result "features", xen_version, 6, ro_zero, 0
    read_only_result "alloc_unbound", event_channel_op, 6, ro_selves, 0
    read_only_result "bind_ipi", event_channel_op, 7, ro_zero, 0
    read_only_result "bind_virq", event_channel_op, 1, ro_zero, 0
    read_only_result "status", event_channel_op, 5, ro_port, 0
    read_only_result "memory_map", memory_op, 9, ro_map, 0
    read_only_result "machphys_mfn_list", memory_op, 5, ro_map, 0
    read_only_result "setup_table", grant_table_op, 2, ro_port, 1
    read_only_result "query_size", grant_table_op, 6, ro_port, 1
    read_only_result "get_version", grant_table_op, 10, ro_port, 1
    read_only_result "set_version", grant_table_op, 8, ro_one, 1
    read_only_result "map_grant_ref", grant_table_op, 0, ro_zero, 1
    read_only_result "unmap_grant_ref", grant_table_op, 1, ro_zero, 1
    read_only_result "copy", grant_table_op, 5, ro_zero, 1
    read_only_result "swap_grant_ref", grant_table_op, 11, ro_zero, 1
    read_only_result "multicall", multicall, ro_port, 1, 0

    # Pointers inside structures
    lea rbx, [rip + unreadable]
.inside:
    mov rbp, [rbx]
    add rbx, 8
    test rbp, rbp
    jz .inside_done
    mov [rip + inner], rbp                      # ports of sched_op(poll); a runstate area; a list of MFNs
    mov dword ptr [rip + inner + 8], 4
    quietly -EFAULT, "polling ports there", sched_op, 3, inner, 0
    mov dword ptr [rip + inner_mfns], 1
    mov [rip + inner_mfns + 8], rbp
    quietly -EFAULT, "a list of the M2P's frames there", memory_op, 5, inner_mfns, 0
    mov [rip + inner_mfns + 8], rbp
    quietly -EFAULT, "a memory map there", memory_op, 9, inner_mfns, 0
    mov [rip + inner_setup + 16], rbp
    mov word ptr [rip + inner_setup + 8], 1
    mov edi, 2                                  # GNTTABOP_setup_table
    mov rsi, inner_setup
    mov edx, 1
    hypercall grant_table_op
    cmp rax, -EFAULT                            # what no address of the guest's can be is refused at once
    je .no_frames
    test rax, rax
    must z, "a grant table's frames there"
    cmp word ptr [rip + inner_setup + 8], -5    # GNTST_bad_virt_addr
    must e, "the status of a grant table's frames there"
.no_frames:
    mov [rip + inner_flush + 16], rbp
    quietly -EINVAL, "a mask of vcpus there", mmuext_op, inner_flush, 1, 0
    inc qword ptr [rip + attacks]
    jmp .inside
.inside_done:
    print "refused: pointers inside structures\n"
    mov rbx, HYPERVISOR_HOLE
    mov [rip + inner], rbx
    attack "a runstate area in the hypervisor", -EFAULT, vcpu_op, 5, 0, inner, 0
    attack "a time area in the hypervisor", -EFAULT, vcpu_op, 13, 0, inner, 0
    mov rbx, NOT_CANONICAL
    mov [rip + inner], rbx
    attack "a runstate area that is not canonical", -EFAULT, vcpu_op, 5, 0, inner, 0
    attack "an NMI handler that is not canonical", -EINVAL, nmi_op, 0, inner, 0, 0
    mov rbx, gap                                # legal: it is written when it is there
    mov [rip + inner], rbx
    attack "a runstate area that is not mapped", 0, vcpu_op, 5, 0, inner, 0
    mov rbx, read_only
    mov [rip + inner], rbx
    mov rbp, [rip + read_only + 8]
    attack "a runstate area that is read-only", 0, vcpu_op, 5, 0, inner, 0
    attack "leaving the processor with it", 0, sched_op, SCHEDOP_yield, 0, 0, 0
    equal "it was not written", [rip + read_only + 8], rbp
    mov rbx, [rip + own_l4]
    mov [rip + inner], rbx
    mov rbp, [rbx]
    attack "a runstate area in our L4", 0, vcpu_op, 5, 0, inner, 0
    attack "a time area in our L4", 0, vcpu_op, 13, 0, inner, 0
    attack "leaving the processor with it", 0, sched_op, SCHEDOP_yield, 0, 0, 0
    equal "our L4 was not written", [rbx], rbp
    mov qword ptr [rip + inner], 0
    attack "no runstate area", 0, vcpu_op, 5, 0, inner, 0
    attack "no time area", 0, vcpu_op, 13, 0, inner, 0
    hostile_end

each_pointer:                                   # r12 = list of pointers that ends with 0, rbx = line
    mov rbp, [r12]
    test rbp, rbp
    jz .done
    add r12, 8
    mov r13, BAD
    mov rdi, [rbx + 8]
    cmp rdi, r13
    cmove rdi, rbp
    mov rsi, [rbx + 16]
    cmp rsi, r13
    cmove rsi, rbp
    mov rdx, [rbx + 24]
    cmp rdx, r13
    cmove rdx, rbp
    mov r10, [rbx + 32]
    cmp r10, r13
    cmove r10, rbp
    mov rax, [rbx]
    syscall
    inc qword ptr [rip + attacks]
    cmp rax, [rbx + 40]
    je each_pointer
    print "FAILED: "
    mov rdi, [rbx + 48]
    call puts
    print " with the pointer "
    print_hex rbp
    print ": "
    mov rdi, rax
    call put_signed
    print "\n"
    jmp give_up
.done:
    ret

.data
.balign 8
lines:          .quad 0
unreadable:
    .quad 0xffff800000000000                    # the M2P: the guest could read it, a hypercall may not
    .quad 0xffff800000000ff8
    .quad 0xffff820000000000                    # the descriptor windows
    .quad 0xffff830000000000                    # the hole
    .quad 0xffff87fffffffffc                    # its end, and on into the guest's part
    .quad 0x0000800000000000                    # the first address that is not canonical
    .quad 0x00007ffffffffffc                    # into there
    .quad 0x0000900000000000
    .quad 0xffff7ffffffffff8                    # up to the hypervisor's first address
    .quad 0xffff880000000000                    # the guest's, but not mapped
    .quad 0xfffffffffffffffc                    # over the end of the address space
    .quad NOWHERE
    .quad gap
    .quad gap - 1                               # begins in a page that is there
    .quad 0
unwritable:
    .quad read_only
    .quad read_only + 8
    .quad read_only - 1                         # begins in a page that is writable
own_l4:
    .quad 0                                     # filled in: the top page table
    .quad 0

table_begin:
    reads set_trap_table, BAD, 0, 0, 0, -EFAULT, "set_trap_table"
    reads mmu_update, BAD, 1, 0, DOMID_SELF, -EFAULT, "mmu_update"
    reads mmu_update, BAD, 3, 0, DOMID_SELF, -EFAULT, "mmu_update of three"
    reads set_gdt, BAD, 512, 0, 0, -EFAULT, "set_gdt"
    reads memory_op, 0, BAD, 0, 0, 0, "increase_reservation: nothing done"
    reads memory_op, 1, BAD, 0, 0, 0, "decrease_reservation: nothing done"
    reads memory_op, 6, BAD, 0, 0, 0, "populate_physmap: nothing done"
    reads memory_op, 6 | 5 << 6, BAD, 0, 0, 5, "populate_physmap, resumed at 5: nothing more done"
    reads memory_op, 3, BAD, 0, 0, -EFAULT, "current_reservation"
    reads memory_op, 4, BAD, 0, 0, -EFAULT, "maximum_reservation"
    reads memory_op, 14, BAD, 0, 0, -EFAULT, "maximum_gpfn"
    reads memory_op, 5, BAD, 0, 0, -EFAULT, "machphys_mfn_list"
    reads memory_op, 9, BAD, 0, 0, -EFAULT, "memory_map"
    reads memory_op, 11, BAD, 0, 0, -EFAULT, "memory_exchange"
    writes memory_op, 12, BAD, 0, 0, -EFAULT, "machphys_mapping"
    reads multicall, BAD, 1, 0, 0, -EFAULT, "multicall"
    reads multicall, BAD, 0xffffffff, 0, 0, -EFAULT, "multicall of 4294967295"
    reads event_channel_op_compat, BAD, 0, 0, 0, -EFAULT, "event_channel_op_compat"
    writes xen_version, 1, BAD, 0, 0, -EFAULT, "xen_version(extraversion)"
    writes xen_version, 2, BAD, 0, 0, -EFAULT, "xen_version(compile_info)"
    writes xen_version, 3, BAD, 0, 0, -EFAULT, "xen_version(capabilities)"
    writes xen_version, 4, BAD, 0, 0, -EFAULT, "xen_version(changeset)"
    writes xen_version, 5, BAD, 0, 0, -EFAULT, "xen_version(platform_parameters)"
    reads xen_version, 6, BAD, 0, 0, -EFAULT, "xen_version(get_features)"
    writes xen_version, 8, BAD, 0, 0, -EFAULT, "xen_version(guest_handle)"
    writes xen_version, 9, BAD, 0, 0, -EFAULT, "xen_version(commandline)"
    reads console_io, 0, 64, BAD, 0, -EFAULT, "console_io(write)"
    reads physdev_op, 6, BAD, 0, 0, -EFAULT, "physdev_op(set_iopl)"
    reads physdev_op, 7, BAD, 0, 0, -EFAULT, "physdev_op(set_iobitmap)"
    reads physdev_op_compat, BAD, 0, 0, 0, -EFAULT, "physdev_op_compat"
    reads grant_table_op, 0, BAD, 1, 0, -EFAULT, "map_grant_ref"
    reads grant_table_op, 0, BAD, 100, 0, -EFAULT, "map_grant_ref of 100"
    reads grant_table_op, 1, BAD, 1, 0, -EFAULT, "unmap_grant_ref"
    reads grant_table_op, 2, BAD, 1, 0, -EFAULT, "setup_table"
    reads grant_table_op, 5, BAD, 1, 0, -EFAULT, "copy"
    reads grant_table_op, 6, BAD, 1, 0, -EFAULT, "query_size"
    reads grant_table_op, 8, BAD, 1, 0, -EFAULT, "set_version"
    reads grant_table_op, 10, BAD, 1, 0, -EFAULT, "get_version"
    reads grant_table_op, 11, BAD, 1, 0, -EFAULT, "swap_grant_ref"
    reads grant_table_op, 12, BAD, 1, 0, -EFAULT, "cache_flush"
    writes vcpu_op, 4, 0, BAD, 0, -EFAULT, "get_runstate_info"
    reads vcpu_op, 5, 0, BAD, 0, -EFAULT, "register_runstate_memory_area"
    reads vcpu_op, 13, 0, BAD, 0, -EFAULT, "register_vcpu_time_memory_area"
    reads vcpu_op, 6, 0, BAD, 0, -EFAULT, "set_periodic_timer"
    reads vcpu_op, 8, 0, BAD, 0, -EFAULT, "set_singleshot_timer"
    reads vcpu_op, 10, 0, BAD, 0, -EFAULT, "register_vcpu_info"
    reads mmuext_op, BAD, 1, 0, DOMID_SELF, -EFAULT, "mmuext_op"
    reads nmi_op, 0, BAD, 0, 0, -EFAULT, "nmi_op(register)"
    reads sched_op, 2, BAD, 0, 0, -EFAULT, "sched_op(shutdown)"
    reads sched_op, 3, BAD, 0, 0, -EFAULT, "sched_op(poll)"
    reads sched_op, 5, BAD, 0, 0, -EFAULT, "sched_op(shutdown_code)"
    reads sched_op, 6, BAD, 0, 0, -EFAULT, "sched_op(watchdog)"
    reads callback_op, 0, BAD, 0, 0, -EFAULT, "callback_op(register)"
    reads callback_op, 1, BAD, 0, 0, -EFAULT, "callback_op(unregister)"
    reads event_channel_op, 0, BAD, 0, 0, -EFAULT, "bind_interdomain"
    reads event_channel_op, 1, BAD, 0, 0, -EFAULT, "bind_virq"
    reads event_channel_op, 3, BAD, 0, 0, -EFAULT, "close"
    reads event_channel_op, 4, BAD, 0, 0, -EFAULT, "send"
    reads event_channel_op, 5, BAD, 0, 0, -EFAULT, "status"
    reads event_channel_op, 6, BAD, 0, 0, -EFAULT, "alloc_unbound"
    reads event_channel_op, 7, BAD, 0, 0, -EFAULT, "bind_ipi"
    reads event_channel_op, 9, BAD, 0, 0, -EFAULT, "unmask"
    reads event_channel_op, 10, BAD, 0, 0, -EFAULT, "reset"
table_end:
    .quad 0
inner:          .quad 0, 0, 0
inner_mfns:     .quad 0, 0, 0
inner_setup:    .quad DOMID_SELF | 1 << 32, 0, 0
inner_flush:    .quad 8, 0, 0                   # MMUEXT_TLB_FLUSH_MULTI

.bss
.balign PAGE_SIZE
before:         .zero PAGE_SIZE
gap:            .zero PAGE_SIZE
writable_page:  .zero PAGE_SIZE
l1:             .zero PAGE_SIZE
l2:             .zero PAGE_SIZE
l3:             .zero PAGE_SIZE
before_it:      .zero PAGE_SIZE
read_only:      .zero 64
ro_zero:        .zero 64
ro_selves:      .zero 64
ro_port:        .zero 64
ro_map:         .zero 64
ro_one:         .zero PAGE_SIZE - 320
