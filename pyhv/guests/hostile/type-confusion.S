# SPDX-License-Identifier: GPL-2.0-only
#
# type-confusion - wants one frame to be two things at once: a table and writable, two levels, a table and a GDT
#
# Class: type confusion
# History: XSA-287, XSA-310, XSA-401
# Refused: a frame has one type while anything needs it as that type; every other use of it meanwhile gets an error, and
#   the frame keeps its type however often it is tried.

.include "hostile.inc"

.macro not_a_table what, page                   # by every way to make a table of it
    try_pin "\what as L1", -EINVAL, 1, \page
    try_pin "\what as L2", -EINVAL, 2, \page
    try_pin "\what as L3", -EINVAL, 3, \page
    try_pin "\what as L4", -EINVAL, 4, \page
    try_link "\what as L1 of an L2", -EINVAL, l2, 9, \page, TABLE
    try_link "\what as L2 of an L3", -EINVAL, l3, 9, \page, TABLE
    try_link "\what as L3 of an L4", -EINVAL, l4, 9, \page, TABLE
    lea rdi, [rip + \page]
    call va_to_mfn
    mov rsi, rax
    mov edi, MMUEXT_NEW_BASEPTR
    call mmuext
    answer_is -EINVAL, "\what as base pointer"
    lea rdi, [rip + \page]
    call va_to_mfn
    mov rsi, rax
    mov edi, MMUEXT_NEW_USER_BASEPTR
    call mmuext
    answer_is -EINVAL, "\what as user base pointer"
.endm

.macro not_a_gdt what, page
    lea rdi, [rip + \page]
    call va_to_mfn
    mov [rip + gdt_list], rax
    attack "\what as GDT", -EINVAL, set_gdt, gdt_list, 512, 0, 0
.endm

.macro not_writable what, page
    try_map "\what, mapped writable", -EBUSY, \page, READ_WRITE
    lea rdi, [rip + \page]
    call frame_of
    lea rbp, [rax + READ_WRITE]
    attack "\what, mapped writable elsewhere", -EBUSY, update_va_mapping, window, rbp, UVMF_INVLPG, 0
    try_link "\what, writable in another L1", -EBUSY, l1, 9, \page, READ_WRITE
    lea rdi, [rip + \page]
    call va_to_mfn
    mov rsi, rax
    mov edi, 16                                 # MMUEXT_CLEAR_PAGE
    call mmuext
    answer_is -EINVAL, "\what, cleared"
    lea rdi, [rip + \page]
    call va_to_mfn
    mov [rip + info_arg], rax
    attack "\what, as vcpu_info", -EINVAL, vcpu_op, 10, 0, info_arg, 0
.endm

.text
_start:
    hostile_entry "type-confusion"
    pin 1, l1
    pin 2, l2
    pin 3, l3
    pin 4, l4

    not_a_table "a writable page", plain
    not_a_gdt "a writable page", plain
    readonly plain
    pin 1, plain
    not_writable "an L1", plain
    not_a_gdt "an L1", plain
    try_pin "an L1 pinned twice", -EINVAL, 1, plain
    try_pin "an L1 as L2", -EINVAL, 2, plain
    try_pin "an L1 as L4", -EINVAL, 4, plain
    try_link "an L1 in an L3", -EINVAL, l3, 9, plain, TABLE
    try_link "an L1 in an L4", -EINVAL, l4, 9, plain, TABLE
    unpin plain
    pin 4, plain
    not_writable "an L4", plain
    not_a_gdt "an L4", plain
    try_link "an L4 in an L2", -EINVAL, l2, 9, plain, TABLE
    try_link "an L4 in an L3", -EINVAL, l3, 9, plain, TABLE
    unpin plain

    # A descriptor page: everything in it zero, so acceptable as any table
    lea rdi, [rip + plain]
    call va_to_mfn
    mov [rip + gdt_list], rax
    attack "an empty page as GDT", 0, set_gdt, gdt_list, 512, 0, 0
    not_a_table "the GDT", plain
    not_writable "the GDT", plain
    try_raw "the GDT, by mmu_update", -EINVAL, plain, 1, 0
    lea rdi, [rip + plain]
    call frame_of
    mov rbx, rax
    attack "the GDT, by update_descriptor, a gate", -EINVAL, update_descriptor, rbx, 0x00008e0000081000, 0, 0
    attack "no GDT again", 0, set_gdt, 0, 0, 0, 0
    try_map "a page that was a GDT, writable", 0, plain, READ_WRITE

    # Twice in the same list: as two pages of one GDT it has two references, and a bad third loses both
    readonly plain
    lea rdi, [rip + plain]
    call va_to_mfn
    mov [rip + gdt_list], rax
    mov [rip + gdt_list + 8], rax
    lea rdi, [rip + l1]
    call va_to_mfn
    mov [rip + gdt_list + 16], rax
    attack "a GDT whose third page is an L1", -EINVAL, set_gdt, gdt_list, 1536, 0, 0
    try_map "its first two are writable again", 0, plain, READ_WRITE
    readonly plain
    attack "the same page twice in a GDT", 0, set_gdt, gdt_list, 1024, 0, 0
    not_writable "that page", plain
    attack "half of that GDT", 0, set_gdt, gdt_list, 512, 0, 0
    not_writable "the other half", plain
    attack "no GDT again", 0, set_gdt, 0, 0, 0, 0
    try_map "now it is writable", 0, plain, READ_WRITE

    # A table that writes itself or its relatives once it is live
    link other, 0, other, READ_WRITE
    readonly other
    try_pin "an L1 that maps itself writable", -EBUSY, 1, other
    link other, 0, l2, READ_WRITE
    try_pin "an L1 that maps an L2 writable", -EBUSY, 1, other
    link other, 0, plain, READ_WRITE
    link other, 1, plain, TABLE
    link other, 2, l3, READ_ONLY
    try_pin "an L1 that maps an L3 read-only", 0, 1, other
    try_pin "what that L1 maps writable, as table", -EINVAL, 1, plain
    try_link "replacing a mapping by its own table, writable", -EBUSY, other, 0, other, READ_WRITE
    try_raw "one of two writable mappings gone", 0, other, 0, 0
    readonly plain
    try_pin "the page with the other one left", -EINVAL, 1, plain
    try_raw "the last writable mapping gone", 0, other, 1, 0
    try_pin "now it can be a table", 0, 1, plain
    try_link "and then not be mapped writable", -EBUSY, other, 1, plain, READ_WRITE

    # The start of day: our own live tables
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    call va_to_mfn
    mov r12, rax
    mov edi, MMUEXT_PIN_L3_TABLE
    mov rsi, r12
    call mmuext
    answer_is -EINVAL, "our live L4 as L3"
    mov edi, MMUEXT_PIN_L4_TABLE
    mov rsi, r12
    call mmuext
    answer_is -EINVAL, "our live L4 pinned again"
    lea rdi, [rip + _start]
    mov esi, 1
    call find_table
    mov rdi, rax
    call va_to_mfn
    mov rsi, rax
    mov edi, MMUEXT_UNPIN_TABLE
    call mmuext
    answer_is -EINVAL, "unpinning a live L1 that is not pinned"
    hostile_end

.data
.balign 8
gdt_list:       .zero 128
info_arg:       .quad 0, 0                      # frame, u32 offset

.bss
.balign PAGE_SIZE
l1:             .zero PAGE_SIZE
l2:             .zero PAGE_SIZE
l3:             .zero PAGE_SIZE
l4:             .zero PAGE_SIZE
plain:          .zero PAGE_SIZE
other:          .zero PAGE_SIZE
window:         .zero PAGE_SIZE
