# SPDX-License-Identifier: GPL-2.0-only
#
# linear-tables - links tables of one level to each other and to themselves, to write through the loop
#
# Class: recursive and linear page tables
# History: XSA-182, XSA-240, XSA-309
# Refused: an entry that points to a table of its own level may only be read-only, and such links form no chain: a table
#   that is linked to has no such link itself. RW cannot be switched on later. A link keeps its target a table.

.include "hostile.inc"

.set SLOT, 300                                  # of the L4: free, and ours

.text
_start:
    hostile_entry "linear-tables"
    # --- tables that nobody walks -----------------------------------------------------------------------------
    pin 1, l1
    readonly l2a
    link l2a, 0, l1, TABLE
    pin 2, l2a
    pin 2, l2b
    pin 2, l2c
    try_link "a writable link of an L2 to itself", -EINVAL, l2a, 1, l2a, TABLE
    try_link "a read-only link of an L2 to itself", 0, l2a, 1, l2a, READ_ONLY
    try_link "making that link writable", -EINVAL, l2a, 1, l2a, TABLE
    try_link "another slot, writable", -EINVAL, l2a, 2, l2a, TABLE
    try_link "a writable link to another L2", -EINVAL, l2b, 1, l2a, TABLE
    try_link "a read-only link to another L2", 0, l2b, 1, l2a, READ_ONLY
    try_link "making that link writable too", -EINVAL, l2b, 1, l2a, TABLE
    try_link "a chain of links", -EINVAL, l2c, 1, l2b, READ_ONLY
    try_link "a ring of links", -EINVAL, l2a, 2, l2b, READ_ONLY
    try_link "an L2 as L1 of an L2 that it links to", -EINVAL, l2c, 2, l2b, TABLE
    readonly l3a
    try_link "an L3 that points to an L1", 0, l3a, 0, l1, TABLE
    try_pin "pinning that L3", -EINVAL, 3, l3a
    try_link "an L3 with a writable loop, unpinned", 0, l3a, 0, l3a, TABLE
    try_pin "pinning that L3 with its loop", -EINVAL, 3, l3a
    try_link "an L3 with a read-only loop, unpinned", 0, l3a, 0, l3a, READ_ONLY
    try_pin "pinning that L3 with its read-only loop", 0, 3, l3a
    try_link "making the loop of the pinned L3 writable", -EINVAL, l3a, 0, l3a, TABLE
    try_link "an L1 entry of a table to itself, writable", -EBUSY, l1, 0, l1, READ_WRITE
    try_link "an L1 entry of a table to itself, read-only", 0, l1, 0, l1, READ_ONLY
    try_link "making that L1 entry writable", -EBUSY, l1, 0, l1, READ_WRITE

    # --- a link keeps its target what it is -------------------------------------------------------------------
    try_unpin "unpinning an L2 that is linked to", 0, l2a
    try_map "writing an L2 that is only linked to", -EBUSY, l2a, READ_WRITE
    try_pin "pinning it as an L1", -EINVAL, 1, l2a
    try_raw "removing the link", 0, l2b, 1, 0
    try_map "writing what is no table any more", 0, l2a, READ_WRITE
    mov qword ptr [rip + l2a], 0
    mov qword ptr [rip + l2a + 8], 0
    try_unpin "unpinning the L3 with its loop", 0, l3a
    try_map "writing it, too", 0, l3a, READ_WRITE
    unpin l2b
    unpin l2c
    writable l2b
    writable l2c
    link l1, 0, l1, 0
    unpin l1
    writable l1

    # --- loops in the tables that the processor walks ---------------------------------------------------------
    mov rbx, [rip + start_info]
    mov rbx, [rbx + START_INFO_pt_base]         # rbx = va of our L4
    mov rdi, rbx
    call frame_of
    mov r12, rax                                # r12 = its machine address
    lea rdi, [r12 + SLOT * 8]
    lea rsi, [r12 + TABLE]
    call set_entry
    answer_is -EINVAL, "our L4 in itself, writable"
    lea rdi, [r12 + SLOT * 8]
    lea rsi, [r12 + READ_ONLY]
    call set_entry
    answer_is 0, "our L4 in itself, read-only"
    mov r13, 0xffff000000000000 | SLOT << 39 | SLOT << 30 | SLOT << 21 | SLOT << 12
    equal "reading the L4 through its loop", [r13], [rbx]
    faults_with "writing the L4 through its loop", TRAP_page_fault, PFEC_P | PFEC_W, "mov qword ptr [r13 + 8], 0"
    attack "having Xen write the L4 through its loop", -EFAULT, xen_version, XENVER_extraversion, r13, 0, 0
    attack "update_va_mapping inside the loop", -EINVAL, update_va_mapping, r13, 0, UVMF_NONE, 0
    attack "the loop as LDT", 0, mmuext_op, loop_ldt, 1, 0, DOMID_SELF
    faults "a selector from a table in an LDT", TRAP_page_fault, "lar eax, [rip + first_ldt]"
    attack "no LDT again", 0, mmuext_op, no_ldt, 1, 0, DOMID_SELF
    lea rdi, [r12 + SLOT * 8]
    lea rsi, [r12 + TABLE]
    call set_entry
    answer_is -EINVAL, "making the loop writable"
    lea rdi, [r12 + SLOT * 8]
    xor esi, esi
    call set_entry
    answer_is 0, "removing the loop"
    faults_with "the loop is gone from the TLB too", TRAP_page_fault, 0, "mov rax, [r13]"

    lea rdi, [rip + l1]                         # the same with the L2 that maps us
    mov esi, 2
    call find_table
    mov rbx, rax
    mov rdi, rbx
    call frame_of
    mov r12, rax
    lea rdi, [r12 + 511 * 8]
    lea rsi, [r12 + TABLE]
    call set_entry
    answer_is -EINVAL, "our L2 in itself, writable"
    lea rdi, [r12 + 511 * 8]
    lea rsi, [r12 + READ_ONLY]
    call set_entry
    answer_is 0, "our L2 in itself, read-only"
    mov r13, 511 << 21                          # the first L1, seen through the loop
    mov rax, [r13]
    faults_with "writing an L1 through the L2", TRAP_page_fault, PFEC_P | PFEC_W, "mov [r13], rax"
    faults_with "exchanging in an L1 through the L2", TRAP_page_fault, PFEC_P | PFEC_W, "lock xchg [r13], rax"
    lea r13, [r13 + 511 * 4096]                 # the L2 itself
    faults_with "writing the L2 through itself", TRAP_page_fault, PFEC_P | PFEC_W, "mov [r13], rax"
    attack "having Xen write the L2 through itself", -EFAULT, memory_op, XENMEM_machphys_mapping, r13, 0, 0
    lea rdi, [r12 + 511 * 8]
    xor esi, esi
    call set_entry
    answer_is 0, "removing that loop"
    hostile_end

.data
.balign 8
loop_ldt:       .quad 13, 0xffff000000000000 | SLOT << 39 | SLOT << 30 | SLOT << 21 | SLOT << 12, 512
no_ldt:         .quad 13, 0, 0
first_ldt:      .short 7

.bss
.balign PAGE_SIZE
l1:             .zero PAGE_SIZE
l2a:            .zero PAGE_SIZE
l2b:            .zero PAGE_SIZE
l2c:            .zero PAGE_SIZE
l3a:            .zero PAGE_SIZE
