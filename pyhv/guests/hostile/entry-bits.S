# SPDX-License-Identifier: GPL-2.0-only
#
# entry-bits - puts bits into page-table entries that a guest may not set: superpages, cache attributes, wild frames
#
# Class: PSE, reserved bits and cache attributes
# History: XSA-148, XSA-167, XSA-402
# Refused: superpages and global bits above the leaf, cache attributes everywhere, frames beyond the machine. Asked for
#   directly, by writing a table before it becomes one, and by adding the bit to an entry that was approved without.

.include "hostile.inc"

.set PTE_G, 0x100
.set PTE_GUEST_PAT, 0x080
.set BEYOND, 0x000ffffffffff000                 # the largest frame number
.set FAR, 1 << 40                               # a frame number that no machine here has

.macro three_ways what, level, bits             # as an update, as an addition, inside a new table
    try_link "\what, in a new L\level entry", -EINVAL, l\level, 1, below\level, TABLE | \bits
    try_link "\what, added to an L\level entry", -EINVAL, l\level, 0, below\level, TABLE | \bits
    link fresh, 5, below\level, TABLE | \bits
    readonly fresh
    try_pin "\what, in a page that becomes an L\level", -EINVAL, \level, fresh
    writable fresh
    mov qword ptr [rip + fresh + 40], 0
.endm

.text
_start:
    hostile_entry "entry-bits"
    mov qword ptr [rip + l1], 0
    pin 1, l1
    link l1, 0, below1, READ_WRITE
    pin 1, below2
    pin 2, l2
    link l2, 0, below2, TABLE
    pin 2, below3
    pin 3, l3
    link l3, 0, below3, TABLE
    pin 3, below4
    pin 4, l4
    link l4, 0, below4, TABLE

    three_ways "PSE", 2, PTE_PSE
    three_ways "PSE", 3, PTE_PSE
    three_ways "PSE", 4, PTE_PSE
    three_ways "G", 2, PTE_G
    three_ways "G", 3, PTE_G
    three_ways "G", 4, PTE_G
    three_ways "PCD", 1, PTE_PCD
    three_ways "PCD", 2, PTE_PCD
    three_ways "PCD", 3, PTE_PCD
    three_ways "PCD", 4, PTE_PCD
    three_ways "PWT", 1, PTE_PWT
    three_ways "PWT", 2, PTE_PWT
    three_ways "PWT", 3, PTE_PWT
    three_ways "PWT", 4, PTE_PWT
    three_ways "PAT", 1, PTE_GUEST_PAT
    three_ways "all attributes", 1, PTE_GUEST_PAT | PTE_PCD | PTE_PWT
    three_ways "NX and PSE", 2, PTE_NX | PTE_PSE
    three_ways "NX and PCD", 1, PTE_NX | PTE_PCD

    try_raw "a frame beyond the machine in an L1", -EPERM, l1, 3, FAR | READ_WRITE
    try_raw "the largest frame but one in an L1", -EPERM, l1, 3, BEYOND - 4096 | READ_ONLY
    try_raw "the largest frame in an L1", -EINVAL, l1, 3, BEYOND | READ_ONLY
    try_raw "frame 0 in an L1", -EPERM, l1, 3, READ_ONLY
    try_raw "a frame beyond the machine in an L2", -EINVAL, l2, 3, FAR | TABLE
    try_raw "the largest frame in an L3", -EINVAL, l3, 3, BEYOND | TABLE
    try_raw "frame 0 in an L4", -EINVAL, l4, 3, TABLE
    mov rax, FAR | READ_WRITE
    mov [rip + fresh + 40], rax
    readonly fresh
    try_pin "a frame beyond the machine in a page that becomes an L1", -EPERM, 1, fresh
    try_pin "... an L2", -EINVAL, 2, fresh
    try_pin "... an L4", -EINVAL, 4, fresh
    writable fresh
    mov qword ptr [rip + fresh + 40], 0

    # Not present: anything may stand there, and means nothing.
    mov rbp, BEYOND | PTE_PSE | PTE_PCD | PTE_RW
    try_raw "all of it, but not present, in an L1", 0, l1, 3, rbp
    try_raw "all of it, but not present, in an L2", 0, l2, 3, rbp
    try_raw "... and then PRESENT alone added", -EINVAL, l2, 3, BEYOND | PTE_PSE | PTE_PCD | PTE_RW | PTE_P
    # A kernel page must not be the user's, nor a user's the kernel's: what we read back is what Xen approved.
    try_link "a leaf without US", 0, l1, 4, below1, PTE_P | PTE_RW
    mov rax, [rip + l1 + 4 * 8]
    and eax, PTE_US
    equal "gets US, being used in ring 3", rax, PTE_US
    mov rdi, 0
    try_link "reserved bits of the hypervisor in a leaf", 0, l1, 4, below1, READ_WRITE | 7 << 52
    try_link "software bits in a leaf", 0, l1, 4, below1, READ_WRITE | 7 << 9
    attack "update_va_mapping with PCD", -EINVAL, update_va_mapping, fresh, READ_WRITE | PTE_PCD | 4096, 0, 0
    lea rdi, [rip + fresh]
    mov rsi, READ_WRITE | PTE_PWT
    call remap
    answer_is -EINVAL, "update_va_mapping of a page with PWT added"
    mov qword ptr [rip + fresh], 1              # still mapped as before
    mov qword ptr [rip + fresh], 0
    mov rdi, [rip + link_entry]

    # Nothing of that has kept a reference: all can be taken apart.
    unpin l4
    unpin l3
    unpin l2
    unpin l1
    unpin below2
    unpin below3
    unpin below4
    try_map "the L4 is ours to write again", 0, l4, READ_WRITE
    try_map "the L3 too", 0, l3, READ_WRITE
    try_map "the L2 too", 0, l2, READ_WRITE
    try_map "the L1 too", 0, l1, READ_WRITE
    try_map "and what was below", 0, below4, READ_WRITE
    pin 1, below1
    hostile_end

.bss
.balign PAGE_SIZE
l1:             .zero PAGE_SIZE
l2:             .zero PAGE_SIZE
l3:             .zero PAGE_SIZE
l4:             .zero PAGE_SIZE
below1:         .zero PAGE_SIZE
below2:         .zero PAGE_SIZE
below3:         .zero PAGE_SIZE
below4:         .zero PAGE_SIZE
fresh:          .zero PAGE_SIZE
