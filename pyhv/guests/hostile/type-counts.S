# SPDX-License-Identifier: GPL-2.0-only
#
# type-counts - piles up references to one frame, to make its counters overflow and its type be forgotten
#
# Class: overflow of type and reference counts
# History: XSA-58, XSA-113, XSA-242
# Refused: counts are wide enough for all tables that a guest can build; a frame is free for another use when the last
#   reference is gone and not one earlier, and gone means all of them.

.include "hostile.inc"

.set TABLES, 200                                # L1 tables of 512 entries each: 102400 references

.text
_start:
    hostile_entry "type-counts"
    # 102400 writable mappings of one page, by tables that are prepared and then pinned
    lea rdi, [rip + target]
    call frame_of
    lea rbx, [rax + READ_WRITE]
    lea rdi, [rip + tables]
    mov rax, rbx
    mov ecx, TABLES * 512
    rep stosq
    xor ebp, ebp
.pin_all:
    call table_of
    mov esi, READ_ONLY
    call remap
    must_succeed "mapping a table read-only"
    call table_of
    call va_to_mfn
    mov rsi, rax
    mov edi, MMUEXT_PIN_L1_TABLE
    call mmuext
    must_succeed "pinning a table of 512 mappings"
    inc ebp
    cmp ebp, TABLES
    jb .pin_all
    readonly target
    try_pin "a page with 102400 writable mappings, as table", -EINVAL, 1, target
    lea rdi, [rip + target]
    call va_to_mfn
    mov [rip + gdt_list], rax
    attack "... as GDT", -EINVAL, set_gdt, gdt_list, 512, 0, 0

    # Every table 512 times in every slot of an L2, that L2 512 times in an L3, and that in an L4
    lea rdi, [rip + tables]
    call frame_of
    lea rax, [rax + TABLE]
    lea rdi, [rip + l2]
    mov ecx, 512
    rep stosq
    pin 2, l2
    lea rdi, [rip + l2]
    call frame_of
    lea rax, [rax + TABLE]
    lea rdi, [rip + l3]
    mov ecx, 512
    rep stosq
    pin 3, l3
    lea rdi, [rip + l3]
    call frame_of
    lea rax, [rax + TABLE]
    lea rdi, [rip + l4]
    mov ecx, 256
    rep stosq
    pin 4, l4
    try_map "an L2 that is 512 times in an L3, writable", -EBUSY, l2, READ_WRITE
    unpin l2
    unpin l3
    try_map "an L2 unpinned, but 512 times in an L3", -EBUSY, l2, READ_WRITE
    try_map "an L3 unpinned, but 256 times in an L4", -EBUSY, l3, READ_WRITE
    try_raw "one of them gone", 0, l4, 0, 0
    try_map "still 255 times", -EBUSY, l3, READ_WRITE

    # A thousand times pinned and unpinned, switched to and from: nothing adds up
    mov ebp, 1000
.again:
    lea rdi, [rip + l4]
    call va_to_mfn
    mov rsi, rax
    mov edi, MMUEXT_NEW_USER_BASEPTR
    call mmuext
    must_succeed "a user base pointer"
    xor esi, esi
    mov edi, MMUEXT_NEW_USER_BASEPTR
    call mmuext
    must_succeed "none"
    dec ebp
    jnz .again
    mov ebp, 1000
.loop_links:
    link l2, 511, tables, TABLE
    dec ebp
    jnz .loop_links
    mov ebp, 1000
.refusals:                                      # a refused pin must leave no count behind
    lea rdi, [rip + tables]
    call va_to_mfn
    mov rsi, rax
    mov edi, MMUEXT_PIN_L2_TABLE
    call mmuext
    cmp rax, -EINVAL
    must e, "pinning an L1 as L2 was not refused"
    dec ebp
    jnz .refusals
    unpin l4
    try_map "the L4 and all below it gone", 0, l3, READ_WRITE
    try_map "the L2 as well", 0, l2, READ_WRITE

    # Take the mappings away: all but one, then that
    mov ebp, 1
.unpin_all:
    call table_of
    call va_to_mfn
    mov rsi, rax
    mov edi, MMUEXT_UNPIN_TABLE
    call mmuext
    must_succeed "unpinning a table"
    inc ebp
    cmp ebp, TABLES
    jb .unpin_all
    try_pin "the page with 512 mappings left, as table", -EINVAL, 1, target
    mov ebp, 1
.clear:
    lea rdi, [rip + tables]
    mov esi, ebp
    call entry_address
    mov rdi, rax
    xor esi, esi
    call set_entry
    must_succeed "removing a mapping"
    inc ebp
    cmp ebp, 512
    jb .clear
    try_pin "the page with one mapping left, as table", -EINVAL, 1, target
    try_raw "the last one gone", 0, tables, 0, 0
    try_pin "now it can be a table", 0, 1, target
    try_map "and is not writable", -EBUSY, target, READ_WRITE
    hostile_end

table_of:                                       # rdi = va of table number ebp
    mov edi, ebp
    shl rdi, PAGE_SHIFT
    lea rax, [rip + tables]
    add rdi, rax
    ret

.data
.balign 8
gdt_list:       .quad 0

.bss
.balign PAGE_SIZE
target:         .zero PAGE_SIZE
l2:             .zero PAGE_SIZE
l3:             .zero PAGE_SIZE
l4:             .zero PAGE_SIZE
tables:         .zero TABLES * PAGE_SIZE
