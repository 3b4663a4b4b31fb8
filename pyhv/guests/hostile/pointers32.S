# SPDX-License-Identifier: GPL-2.0-only
#
# pointers32 - hands hypercalls 32-bit pointers that wrap or reach the hypervisor, and 64-bit values in wild halves
#
# Class: pointers and pairs of words of 32-bit guests
# History: XSA-29, XSA-31, XSA-122
# Refused: a list or structure ends below the hypervisor's part, and never goes on at address 0; pointers inside structures
#   are judged as those in registers; both halves of a 64-bit value count; what a structure of a 64-bit guest would
#   have at a place means nothing.

.width 32
.include "hostile32.inc"

.set BAD, 0x0bad0bad                            # in the table: the pointer is put here
.set LINE, 32
.set __HYPERVISOR_event_channel_op_compat, 16
.set __HYPERVISOR_physdev_op_compat, 19
.set __HYPERVISOR_nmi_op, 28

.macro reads call, a, b, c, d, answer, what
    .long __HYPERVISOR_\call, \a, \b, \c, \d, \answer, .text\@, 0
    .text
.text\@: .asciz "\what"
    .data
.endm

.macro writes call, a, b, c, d, answer, what
    .long __HYPERVISOR_\call, \a, \b, \c, \d, \answer, .text\@, 1
    .text
.text\@: .asciz "\what"
    .data
.endm

.macro quietly answer, what, call, a, b, c
    mov ebx, \a
    mov ecx, \b
    mov edx, \c
    mov esi, DOMID_SELF
    hypercall \call
    cmp eax, \answer
    must e, "\what"
.endm

.macro exchange what, answer, in_count, in_order, out_count, out_order, done
    mov dword ptr [inner_exchange + 4], \in_count
    mov dword ptr [inner_exchange + 8], \in_order
    mov dword ptr [inner_exchange + 24], \out_count
    mov dword ptr [inner_exchange + 28], \out_order
    mov dword ptr [inner_exchange + 40], \done
    attack "\what", \answer, memory_op, 11, inner_exchange, 0, 0
.endm

.text
_start:
    hostile_entry "pointers32"
    readonly read_only
    mov eax, gap
    xor edx, edx
    xor ecx, ecx
    call update_mapping
    must_succeed "unmapping a page"
    mov eax, [start_info]
    mov eax, [eax + START_INFO_pt_base]
    mov [own_l3], eax
    mov ebp, table_begin
.next_line:
    mov edi, unreadable
    call each_pointer
    cmp dword ptr [ebp + 28], 1
    jne .told
    mov edi, unwritable
    call each_pointer
.told:
    inc dword ptr [lines]
    print "refused: "
    mov eax, [ebp + 24]
    call puts
    print "\n"
    add ebp, LINE
    cmp ebp, table_end
    jb .next_line
    print_dec [lines]
    print " calls\n"

    # Pointers inside structures
    mov edi, unreadable
.inside:
    mov ebp, [edi]
    add edi, 4
    test ebp, ebp
    jz .inside_done
    mov [inner], ebp
    mov dword ptr [inner + 4], 4
    quietly -EFAULT, "polling ports there", sched_op, 3, inner, 0
    mov dword ptr [inner_mfns], 1
    mov [inner_mfns + 4], ebp
    quietly -EFAULT, "a list of the M2P's frames there", memory_op, 5, inner_mfns, 0
    mov dword ptr [inner_mfns], 1
    mov [inner_mfns + 4], ebp
    quietly -EFAULT, "a memory map there", memory_op, 9, inner_mfns, 0
    mov [inner_exchange], ebp
    quietly -EFAULT, "a list to exchange there", memory_op, 11, inner_exchange, 0
    mov dword ptr [inner_exchange], page
    mov [inner_exchange + 20], ebp
    mov dword ptr [inner_exchange + 40], 0
    mov [reservation], ebp
    quietly 0, "frames to give back there", memory_op, XENMEM_decrease_reservation, reservation, 0
    quietly 0, "pfns to populate there", memory_op, XENMEM_populate_physmap, reservation, 0
    mov [inner_flush + 8], ebp
    quietly -EINVAL, "a mask of vcpus there", mmuext_op, inner_flush, 1, 0
    inc dword ptr [attacks]
    jmp .inside
.inside_done:
    print "refused: pointers inside structures\n"
    mov dword ptr [inner], HYPERVISOR_HOLE
    mov dword ptr [inner + 4], 0
    attack "a runstate area in the hypervisor", -EFAULT, vcpu_op, 5, 0, inner, 0
    attack "a time area in the hypervisor", -EFAULT, vcpu_op, 13, 0, inner, 0
    mov dword ptr [inner], gap
    attack "a runstate area that is not mapped", 0, vcpu_op, 5, 0, inner, 0
    mov dword ptr [inner], read_only
    mov edi, [read_only + 8]
    attack "a runstate area that is read-only", 0, vcpu_op, 5, 0, inner, 0
    attack "leaving the processor with it", 0, sched_op, SCHEDOP_yield, 0, 0, 0
    equal "it was not written", [read_only + 8], edi
    mov eax, [own_l3]
    mov [inner], eax
    mov edi, [eax]
    attack "a runstate area in our L3", 0, vcpu_op, 5, 0, inner, 0
    attack "a time area in our L3", 0, vcpu_op, 13, 0, inner, 0
    attack "leaving the processor with it", 0, sched_op, SCHEDOP_yield, 0, 0, 0
    mov eax, [own_l3]
    equal "our L3 was not written", [eax], edi
    mov dword ptr [inner], 0xf5800000 - 8       # begins in our part
    attack "a runstate area that ends in the M2P", 0, vcpu_op, 5, 0, inner, 0
    attack "leaving the processor with it", 0, sched_op, SCHEDOP_yield, 0, 0, 0
    mov dword ptr [inner], 0
    attack "no runstate area", 0, vcpu_op, 5, 0, inner, 0
    attack "no time area", 0, vcpu_op, 13, 0, inner, 0

    # Counts: what a 32-bit guest can name, and what overflows when it is multiplied
    attack "2^31-1 requests at the end of our part", -EFAULT, mmu_update, 0xf5800000 - 16, MANY, 0, DOMID_SELF
    attack "2^32-1 multicalls at the end of our part", -EFAULT, multicall, 0xf5800000 - 32, -1, 0, 0
    attack "2^31-1 grants", -EFAULT, grant_table_op, GNTTABOP_map_grant_ref, HYPERVISOR_HOLE, MANY, 0
    attack "2^31 grants", -EINVAL, grant_table_op, GNTTABOP_map_grant_ref, page, 0x80000000, 0
    mov dword ptr [reservation], page
    mov dword ptr [reservation + 4], -1
    attack "decrease of 2^32-1 extents", 0, memory_op, XENMEM_decrease_reservation, reservation, 0, 0
    mov dword ptr [reservation + 4], 1
    mov dword ptr [reservation + 8], 32
    attack "populate of order 32", 0, memory_op, XENMEM_populate_physmap, reservation, 0, 0
    mov dword ptr [reservation + 8], 20
    attack "populate of order 20", 0, memory_op, XENMEM_populate_physmap, reservation, 0, 0
    mov dword ptr [reservation + 8], 0
    attack "decrease, resumed at 2^26-1", 0x3ffffff, memory_op, 0xffffffc0 | XENMEM_decrease_reservation, reservation, 0, 0
    mov dword ptr [page], -1
    attack "giving back frame 2^32-1", 0, memory_op, XENMEM_decrease_reservation, reservation, 0, 0
    mov dword ptr [inner_exchange], page
    mov dword ptr [inner_exchange + 20], page
    exchange "exchange of 2^32-1", -EFAULT, -1, 0, -1, 0, 0
    exchange "exchange of amounts that are equal modulo 2^32", -EINVAL, 0x80000000, 1, 0x10000000, 4, 0
    exchange "exchange of 2^32 frames", -EINVAL, 1 << 23, 9, 1 << 23, 9, 0
    exchange "exchange that has done more than there is", -EINVAL, 1, 0, 1, 0, 2
    exchange "exchange that begins inside an extent", -EINVAL, 4, 0, 2, 1, 1

    # 64-bit values in two words
    mov eax, page
    call va_to_mfn
    mov edx, eax
    shl eax, PAGE_SHIFT
    shr edx, 32 - PAGE_SHIFT
    mov [machine], eax
    mov [machine + 4], edx
    mov ebp, eax
    or ebp, READ_WRITE
    attack "mapping with bit 51 of the address set", -EPERM, update_va_mapping, page, ebp, 0x80000, UVMF_INVLPG
    attack "mapping all ones", -EINVAL, update_va_mapping, page, -1, -1, UVMF_INVLPG
    mov edi, NO_DOMAIN
    attack "mapping in another domain", -ESRCH, update_va_mapping_otherdomain, page, ebp, 0, UVMF_INVLPG
    attack "a descriptor above 4 GiB", -EINVAL, update_descriptor, [machine], 1, 0, 0
    attack "a descriptor at 2^64-8", -EINVAL, update_descriptor, -8, -1, 0, 0
    attack "a descriptor 2^52 further", -EINVAL, update_descriptor, [machine], 0x100000, 0, 0
    mov edi, [machine]
    mov [request], edi
    mov dword ptr [request + 4], 0x100000
    attack "an entry 2^52 further", -EINVAL, mmu_update, request, 1, 0, DOMID_SELF
    mov dword ptr [request + 4], -1
    attack "an entry at the end of 2^64", -EINVAL, mmu_update, request, 1, 0, DOMID_SELF
    mov eax, [machine + 4]
    mov [request + 4], eax
    add dword ptr [request], 4
    attack "half an entry: a command that is none", -ENOSYS, mmu_update, request, 1, 0, DOMID_SELF
    attack "a timer at 2^64-1", 0, set_timer_op, -1, -1, 0, 0
    attack "a timer at 2^63", 0, set_timer_op, 0, 0x80000000, 0, 0
    attack "a timer at 2^32", 0, set_timer_op, 0, 1, 0, 0
    attack "no timer", 0, set_timer_op, 0, 0, 0, 0
    mov dword ptr [inner], -1
    mov dword ptr [inner + 4], -1
    attack "a tick of 2^64-1 ns", -EINVAL, vcpu_op, VCPUOP_set_periodic_timer, 0, inner, 0
    attack "a timer at the end of time", 0, vcpu_op, VCPUOP_set_singleshot_timer, 0, inner, 0
    attack "vcpu_info in frame 2^64-1", -EINVAL, vcpu_op, 10, 0, vcpu_info, 0
    mov dword ptr [vcpu_info], 0
    mov dword ptr [vcpu_info + 4], 1
    attack "vcpu_info in frame 2^32", -EINVAL, vcpu_op, 10, 0, vcpu_info, 0
    attack "segment bases, which are for 64 bits", -ENOSYS, set_segment_base, 0, 0, 0, 0

    # A 64-bit kernel's structures: here the words behind are not looked at
    mov dword ptr [inner], NO_DOMAIN
    mov dword ptr [inner + 4], -1
    attack "maximum_reservation of nobody", -ESRCH, memory_op, 4, inner, 0, 0
    mov dword ptr [inner], DOMID_SELF
    mov edi, [start_info]
    attack "maximum_reservation of ourselves, whatever lies behind", [edi + START_INFO_nr_pages], memory_op, 4, inner, 0, 0
    hostile_end

each_pointer:                                   # edi = list of pointers that ends with 0, ebp = line
    cmp dword ptr [edi], 0
    je .done
    mov eax, BAD
    mov ebx, [ebp + 4]
    cmp ebx, eax
    cmove ebx, [edi]
    mov ecx, [ebp + 8]
    cmp ecx, eax
    cmove ecx, [edi]
    mov edx, [ebp + 12]
    cmp edx, eax
    cmove edx, [edi]
    mov esi, [ebp + 16]
    cmp esi, eax
    cmove esi, [edi]
    mov eax, [ebp]
    int 0x82
    inc dword ptr [attacks]
    add edi, 4
    cmp eax, [ebp + 20]
    je each_pointer
    print "FAILED: "
    push eax
    mov eax, [ebp + 24]
    call puts
    print " with the pointer "
    print_hex [edi - 4]
    print ": "
    pop eax
    call put_signed
    print "\n"
    jmp give_up
.done:
    ret

.data
.balign 8
lines:          .long 0
unreadable:
    .long 0xffe00000                            # the first address behind the M2P
    .long 0xfff00000
    .long 0xfffff000
    .long 0xfffffff8
    .long 0xfffffffc                            # over the end of 4 GiB
    .long 0xffffffff
    .long 0xf57ff000                            # ours, but not mapped
    .long NOWHERE
    .long gap
    .long gap - 1                               # begins in a page that is there
    .long 0
unwritable:
    .long 0xf5800000                            # the M2P
    .long 0xf5900004
    .long 0xffdffff8                            # its end
    .long read_only
    .long read_only - 1                         # begins in a page that is writable
own_l3:
    .long 0                                     # filled in: the top page table
    .long 0

table_begin:
    reads set_trap_table, BAD, 0, 0, 0, -EFAULT, "set_trap_table"
    reads mmu_update, BAD, 1, 0, DOMID_SELF, -EFAULT, "mmu_update"
    reads mmu_update, BAD, 3, 0, DOMID_SELF, -EFAULT, "mmu_update of three"
    reads set_gdt, BAD, 512, 0, 0, -EFAULT, "set_gdt"
    reads memory_op, 0, BAD, 0, 0, 0, "increase_reservation: nothing done"
    reads memory_op, 1, BAD, 0, 0, 0, "decrease_reservation: nothing done"
    reads memory_op, 6, BAD, 0, 0, 0, "populate_physmap: nothing done"
    reads memory_op, 3, BAD, 0, 0, -EFAULT, "current_reservation"
    reads memory_op, 4, BAD, 0, 0, -EFAULT, "maximum_reservation"
    reads memory_op, 14, BAD, 0, 0, -EFAULT, "maximum_gpfn"
    reads memory_op, 5, BAD, 0, 0, -EFAULT, "machphys_mfn_list"
    reads memory_op, 9, BAD, 0, 0, -EFAULT, "memory_map"
    reads memory_op, 11, BAD, 0, 0, -EFAULT, "memory_exchange"
    writes memory_op, 12, BAD, 0, 0, -EFAULT, "machphys_mapping"
    reads multicall, BAD, 1, 0, 0, -EFAULT, "multicall"
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
    reads grant_table_op, 4, BAD, 1, 0, -EFAULT, "transfer"
    reads grant_table_op, 5, BAD, 1, 0, -EFAULT, "copy"
    reads grant_table_op, 6, BAD, 1, 0, -EFAULT, "query_size"
    reads grant_table_op, 8, BAD, 1, 0, -EFAULT, "set_version"
    reads grant_table_op, 9, BAD, 1, 0, -EFAULT, "get_status_frames"
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
    reads mmuext_op, BAD, 100, 0, DOMID_SELF, -EFAULT, "mmuext_op of 100"
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
    reads event_channel_op, 11, BAD, 0, 0, -EFAULT, "init_control"
table_end:
    .long 0
.balign 8
inner:          .long 0, 0, 0, 0
inner_mfns:     .long 0, 0, 0
inner_flush:    .long 8, 0, 0                   # MMUEXT_TLB_FLUSH_MULTI
reservation:    .long 0, 1, 0, 0, DOMID_SELF    # list, how many, order, flags, u16 domid
inner_exchange: .long 0, 1, 0, 0, DOMID_SELF    # in, as a reservation
                .long page, 1, 0, 0, DOMID_SELF # out
                .long 0                         # how many are done
.balign 8
machine:        .quad 0
request:        .quad 0, 0
vcpu_info:      .quad -1
                .long 0, 0

.bss
.balign PAGE_SIZE
before:         .zero PAGE_SIZE
gap:            .zero PAGE_SIZE
page:           .zero PAGE_SIZE
before_it:      .zero PAGE_SIZE
read_only:      .zero PAGE_SIZE
