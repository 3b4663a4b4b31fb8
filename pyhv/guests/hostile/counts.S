# SPDX-License-Identifier: GPL-2.0-only
#
# counts - gives counts, orders and extents whose product, sum or shift does not fit
#
# Class: integer wraps in counts and extents
# History: XSA-20, XSA-31, XSA-212
# Refused: a count that cannot be meant is an error or leaves nothing done; a list is never followed beyond its first
#   refusal; bit 31 of a count resumes a list, it does not lengthen it; one call gives away no more than is owned.

.include "hostile.inc"

.set XENMEM_exchange, 11
.set XENMEM_increase_reservation, 0
.set __HYPERVISOR_set_timer_op, 15

.macro reserve what, answer, command, list, count, order
    mov rax, \list
    mov [rip + reservation], rax
    mov rax, \count
    mov [rip + reservation + 8], rax
    mov dword ptr [rip + reservation + 16], \order
    attack "\what", \answer, memory_op, \command, reservation, 0, 0
.endm

.macro exchange what, answer, in_count, in_order, out_count, out_order, done
    mov rax, \in_count
    mov [rip + exchange_arg + 8], rax
    mov dword ptr [rip + exchange_arg + 16], \in_order
    mov rax, \out_count
    mov [rip + exchange_arg + 40], rax
    mov dword ptr [rip + exchange_arg + 48], \out_order
    mov rax, \done
    mov [rip + exchange_arg + 64], rax
    attack "\what", \answer, memory_op, XENMEM_exchange, exchange_arg, 0, 0
.endm

.macro exchange_at what, answer, in_list, out_list, done
    mov rax, \in_list
    mov [rip + exchange_arg], rax
    mov rax, \out_list
    mov [rip + exchange_arg + 32], rax
    exchange "\what", \answer, 16, 0, 16, 0, \done
    mov rax, frame_list
    mov [rip + exchange_arg], rax
    mov rax, out_list
    mov [rip + exchange_arg + 32], rax
.endm

.text
_start:
    hostile_entry "counts"
    lea rdi, [rip + page]
    call va_to_mfn
    mov [rip + frame_list], rax
    mov r12, rax

    # memory_op: reservations return how many extents were done
    reserve "decrease of 2^64-1 extents", 0, XENMEM_decrease_reservation, frame_list, -1, 0
    reserve "decrease of 2^58 extents", 0, XENMEM_decrease_reservation, frame_list, 1 << 58, 0
    reserve "decrease with order 64", 0, XENMEM_decrease_reservation, frame_list, 1, 64
    reserve "decrease with order 2^32-1", 0, XENMEM_decrease_reservation, frame_list, 1, 0xffffffff
    reserve "decrease of nothing", 0, XENMEM_decrease_reservation, frame_list, 0, 0
    reserve "increase of 2^64-1 extents", 0, XENMEM_increase_reservation, 0, -1, 0
    reserve "increase of a frame beyond our reservation", 0, XENMEM_increase_reservation, 0, 1, 0
    reserve "increase of 2^57 extents of order 9", 0, XENMEM_increase_reservation, 0, 1 << 57, 9
    reserve "populate 2^52 extents of order 9", 0, XENMEM_populate_physmap, frame_list, 1 << 52, 9
    reserve "populate with order 32", 0, XENMEM_populate_physmap, frame_list, 1, 32
    reserve "populate with order 33, which 32 bits do not hold", 0, XENMEM_populate_physmap, frame_list, 1, 33
    reserve "populate from a list that wraps", 0, XENMEM_populate_physmap, 0xfffffffffffffff8, 2, 0
    reserve "populate from a list in the hypervisor", 0, XENMEM_populate_physmap, HYPERVISOR_HOLE, 2, 0
    reserve "decrease from a list in the hypervisor", 0, XENMEM_decrease_reservation, HYPERVISOR_HOLE, 2, 0
    reserve "decrease, resumed beyond its end", 1000, 1 | 1000 << 6, frame_list, 1, 0
    reserve "populate, resumed at 2^58-1", 0x3ffffffffffffff, 6 | 0xffffffffffffffc0, frame_list, 1, 0
    mov word ptr [rip + reservation + 24], 0
    reserve "giving away domain 0's frame", 0, XENMEM_decrease_reservation, frame_list, 1, 0
    mov word ptr [rip + reservation + 24], NO_DOMAIN
    reserve "giving away the frame of nobody", 0, XENMEM_decrease_reservation, frame_list, 1, 0
    mov word ptr [rip + reservation + 24], DOMID_SELF
    mov qword ptr [rip + frame_list], -1
    reserve "giving away frame 2^64-1", 0, XENMEM_decrease_reservation, frame_list, 1, 0
    mov qword ptr [rip + frame_list], 0
    reserve "giving away frame 0", 0, XENMEM_decrease_reservation, frame_list, 1, 0
    mov rax, 1 << 52
    add rax, r12
    mov [rip + frame_list], rax
    reserve "giving away our frame plus 2^52", 0, XENMEM_decrease_reservation, frame_list, 1, 0
    mov rax, [rip + start_info]
    mov rax, [rax + START_INFO_shared_info]
    shr rax, PAGE_SHIFT
    mov [rip + frame_list], rax
    reserve "giving away shared_info", 0, XENMEM_decrease_reservation, frame_list, 1, 0
    mov [rip + frame_list], r12

    # memory_op(exchange): in and out lists, of which one was once not checked (XSA-212)
    mov rax, frame_list
    mov [rip + exchange_arg], rax
    mov rax, out_list
    mov [rip + exchange_arg + 32], rax
    exchange "exchange of unequal amounts", -EINVAL, 2, 0, 1, 0, 0
    exchange "exchange whose amounts are equal modulo 2^64", -EINVAL, 1 << 63, 1, 1 << 60, 4, 0
    exchange "exchange of 2^64-1 extents", -EFAULT, -1, 0, -1, 0, 0
    exchange "exchange of 2^54 extents of order 9", -EINVAL, 1 << 54, 9, 1 << 54, 9, 0
    exchange "exchange of order 64", -EPERM, 1, 64, 1, 64, 0
    exchange "exchange of order 31", -EPERM, 1, 31, 1, 31, 0
    exchange "exchange that has done more than there is", -EINVAL, 1, 0, 1, 0, 2
    exchange "exchange that has done 2^64-1", -EINVAL, 1, 0, 1, 0, -1
    exchange "exchange of a frame that is in use", -EINVAL, 1, 0, 1, 0, 0
    exchange_at "exchange, out list in the hypervisor", -EFAULT, frame_list, HYPERVISOR_HOLE, 0
    exchange_at "exchange, in list in the hypervisor", -EFAULT, HYPERVISOR_HOLE, out_list, 0
    exchange_at "exchange, out list reaching there when resumed", -EFAULT, frame_list, 0xffff7fffffffffc8, 8
    exchange_at "exchange of a frame in use, out list over the end", -EINVAL, frame_list, 0xffffffffffffffc8, 0
    exchange_at "exchange, out list not canonical", -EFAULT, frame_list, NOT_CANONICAL, 0
    exchange_at "exchange of a frame in use, out list up to the end of the lower half", -EINVAL, frame_list, LOWER_HALF_END - 64, 0
    mov word ptr [rip + exchange_arg + 24], 0
    exchange "exchange with domain 0's frames", -EINVAL, 1, 0, 1, 0, 0
    mov word ptr [rip + exchange_arg + 24], DOMID_SELF
    mov word ptr [rip + exchange_arg + 56], 0
    exchange "exchange for domain 0", -EINVAL, 1, 0, 1, 0, 0
    mov word ptr [rip + exchange_arg + 56], DOMID_SELF

    # Lists of page-table requests: two good ones (stores into a page of ours), then one for frame 0
    shl r12, PAGE_SHIFT
    mov [rip + requests], r12
    mov [rip + requests + 16], r12
    mov dword ptr [rip + done], 0x11111111
    attack "mmu_update of nothing", 0, mmu_update, 0, 0, 0, DOMID_SELF
    attack "mmu_update of 2^31-1 requests", -EINVAL, mmu_update, requests, MANY, done, DOMID_SELF
    equal "only the good ones were done", [rip + done], 2
    mov dword ptr [rip + done], 0xfffffffe
    attack "resumed at 2^32-2", -EINVAL, mmu_update, requests, CONTINUED | MANY, done, DOMID_SELF
    equal "the count wraps, nothing else", [rip + done], 0
    mov dword ptr [rip + done], 100
    attack "resumed with none left", 0, mmu_update, requests, CONTINUED, done, DOMID_SELF
    equal "which keeps the count", [rip + done], 100
    attack "mmuext_op of 2^31-1 operations", -EINVAL, mmuext_op, operations, MANY, done, DOMID_SELF
    equal "only the good ones were done", [rip + done], 2
    attack "mmuext_op, resumed", -EINVAL, mmuext_op, operations, CONTINUED | MANY, done, DOMID_SELF
    equal "which adds to the count", [rip + done], 4
    lea rdi, [rip + gap]
    xor esi, esi
    call update_mapping
    must_succeed "unmapping a page"
    mov qword ptr [rip + gap - 64], 63          # no such hypercall
    attack "multicall of nothing", 0, multicall, 0, 0, 0, 0
    attack "multicall of 2^32-1, behind one good call the end of memory", -EFAULT, multicall, gap - 64, 0xffffffff, 0, 0
    equal "the good one was made", [rip + gap - 56], -ENOSYS
    lea rbx, [rip + spare]                      # 16 frames that nothing maps, and a list for 8 answers
    lea rbp, [rip + frame_list]
.unmap:
    mov rdi, rbx
    call va_to_mfn
    mov [rbp], rax
    mov rdi, rbx
    xor esi, esi
    call update_mapping
    must_succeed "unmapping a page"
    add rbx, PAGE_SIZE
    add rbp, 8
    lea rax, [rip + frame_list + 128]
    cmp rbp, rax
    jne .unmap
    exchange_at "exchange, out list that ends in no page", -EFAULT, frame_list, gap - 64, 0
    equal "exactly those with a place were exchanged", [rip + exchange_arg + 64], 8
    mov qword ptr [rip + frame_list + 64], 1
    exchange_at "resumed with the hypervisor's frame", -EINVAL, frame_list, out_list, 8
    equal "nothing more was exchanged", [rip + exchange_arg + 64], 8
    mov rax, [rip + frame_list + 72]
    mov [rip + frame_list + 64], rax
    exchange_at "resumed with one frame twice", -EINVAL, frame_list, out_list, 8
    equal "the first time it counts", [rip + exchange_arg + 64], 9

    # 32-bit arguments in 64-bit registers
    attack "2^32 requests, which are none", 0, mmu_update, requests, 1 << 32, 0, DOMID_SELF
    attack "2^32 operations, which are none", 0, mmuext_op, operations, 1 << 32, 0, DOMID_SELF
    attack "2^32 grants, which are none", 0, grant_table_op, GNTTABOP_map_grant_ref, big_page, 1 << 32, 0
    attack "2^32 calls, which are none", 0, multicall, HYPERVISOR_HOLE, 1 << 32, 0, 0
    attack "2^63 plus yield, which is yield", 0, sched_op, 0x8000000000000000, 0, 0, 0
    attack "register 2^32", 0, set_debugreg, 1 << 32, 0, 0, 0
    attack "vcpu 2^32, which is 0", -ENOSYS, vcpu_op, 99, 1 << 32, 0, 0

    # Grants
    attack "2^31 grants to map", -EINVAL, grant_table_op, GNTTABOP_map_grant_ref, big_page, 0x80000000, 0
    attack "2^32-1 grants to map", -EINVAL, grant_table_op, GNTTABOP_map_grant_ref, big_page, 0xffffffff, 0
    attack "2^31 grants to copy", -EINVAL, grant_table_op, GNTTABOP_copy, big_page, 0x80000000, 0
    attack "no grants to map, from the hypervisor's space", -EFAULT, grant_table_op, GNTTABOP_map_grant_ref, HYPERVISOR_HOLE, 0, 0
    attack "no grants to map", 0, grant_table_op, GNTTABOP_map_grant_ref, NOWHERE, 0, 0
    attack "no table", -EINVAL, grant_table_op, GNTTABOP_setup_table, setup_arg, 0, 0
    attack "2^31-1 tables", -EINVAL, grant_table_op, GNTTABOP_setup_table, setup_arg, MANY, 0
    attack "a table of 2^32-1 frames", 0, grant_table_op, GNTTABOP_setup_table, setup_arg, 1, 0
    movsx rax, word ptr [rip + setup_arg + 8]
    answer_is -1, "its status"
    mov dword ptr [rip + setup_arg + 4], 65
    attack "a table of one frame more than the limit", 0, grant_table_op, GNTTABOP_setup_table, setup_arg, 1, 0
    movsx rax, word ptr [rip + setup_arg + 8]
    answer_is -1, "its status"

    # Descriptors, ports to poll, traps, console
    attack "a GDT of 7169 entries", -EINVAL, set_gdt, frame_list, 7169, 0, 0
    attack "a GDT of 2^32-1 entries", -EINVAL, set_gdt, frame_list, 0xffffffff, 0, 0
    attack "a GDT of 2^32 entries, which are none", 0, set_gdt, frame_list, 0x100000000, 0, 0
    attack "an LDT of 8193 entries", -EINVAL, mmuext_op, big_ldt, 1, 0, DOMID_SELF
    mov qword ptr [rip + big_ldt + 16], -1
    attack "an LDT of 2^32-1 entries", -EINVAL, mmuext_op, big_ldt, 1, 0, DOMID_SELF
    mov rax, words
    mov [rip + poll_arg], rax
    mov dword ptr [rip + poll_arg + 8], 0xffffffff
    attack "polling 2^32-1 ports", -EINVAL, sched_op, SCHEDOP_poll, poll_arg, 0, 0
    mov dword ptr [rip + poll_arg + 8], 129
    attack "polling 129 ports", -EINVAL, sched_op, SCHEDOP_poll, poll_arg, 0, 0
    mov dword ptr [rip + poll_arg + 8], 1
    mov dword ptr [rip + words], 0x80000000
    attack "polling port 2^31", -EINVAL, sched_op, SCHEDOP_poll, poll_arg, 0, 0
    mov dword ptr [rip + words], 4096
    attack "polling port 4096", -EINVAL, sched_op, SCHEDOP_poll, poll_arg, 0, 0
    mov dword ptr [rip + words], 3              # id
    mov dword ptr [rip + words + 4], 6          # seconds
    attack "a third watchdog that cannot be", -EINVAL, sched_op, 6, words, 0, 0
    mov rax, 0xffffffff00000000
    mov [rip + words], rax
    attack "a watchdog in 136 years", 1, sched_op, 6, words, 0, 0
    mov qword ptr [rip + words], 1
    attack "and none again", 0, sched_op, 6, words, 0, 0
    mov qword ptr [rip + words], -1
    attack "a timer at the end of time", 0, vcpu_op, VCPUOP_set_singleshot_timer, 0, words, 0
    attack "the old timer at the end of time", 0, set_timer_op, -1, 0, 0, 0
    attack "and at 2^63", 0, set_timer_op, 0x8000000000000000, 0, 0, 0
    attack "and none again", 0, set_timer_op, 0, 0, 0, 0
    attack "printing 2^32-1 bytes of which few are there", -EFAULT, console_io, 0, 0xffffffff, gap - 64, 0
    attack "a tick of 2^64-1 ns", -EINVAL, vcpu_op, VCPUOP_set_periodic_timer, 0, words, 0
    mov rax, 1 << 62
    mov [rip + words], rax
    attack "a tick of 2^62 ns", -EINVAL, vcpu_op, VCPUOP_set_periodic_timer, 0, words, 0
    hostile_end

.data
.balign 8
frame_list:     .zero 128
out_list:       .zero 128
reservation:    .quad 0, 0, 0, DOMID_SELF       # list, how many, u32 order, u32 flags, u16 domid
exchange_arg:   .quad 0, 0, 0, DOMID_SELF       # in: as a reservation
                .quad 0, 0, 0, DOMID_SELF       # out
                .quad 0                         # how many are done
requests:       .quad 0, 0, 0, 0, 0, 0          # (machine address, entry)
operations:     .quad 6, 0, 0                   # MMUEXT_TLB_FLUSH_LOCAL
                .quad 6, 0, 0
                .quad MMUEXT_UNPIN_TABLE, 0, 0  # frame 0
done:           .quad 0
setup_arg:      .long DOMID_SELF, -1
                .quad 0, big_page
big_ldt:        .quad 13, big_page, 8193
poll_arg:       .quad 0, 0, 0
words:          .quad 0, 0

.bss
.balign PAGE_SIZE
page:           .zero PAGE_SIZE
big_page:       .zero PAGE_SIZE
gap:            .zero PAGE_SIZE
spare:          .zero 16 * PAGE_SIZE
