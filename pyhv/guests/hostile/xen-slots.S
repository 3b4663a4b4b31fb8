# SPDX-License-Identifier: GPL-2.0-only
#
# xen-slots - reaches for the sixteen slots of the top page table that are the hypervisor's
#
# Class: abuse of the hypervisor's L4 slots
# History: XSA-185, XSA-248
# Refused: no update of slots 256 to 271, in no table and by no call; what a table brings along there when it becomes an
#   L4 is wiped; addresses there are the hypervisor's, whatever the table says.

.include "hostile.inc"

.macro try_slot what, answer, table, index, value
    lea rdi, [\table + \index * 8]
    mov rsi, \value
    call set_entry
    answer_is \answer, "\what"
.endm

.text
_start:
    hostile_entry "xen-slots"
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    mov [rip + top], rdi
    call frame_of
    mov rbx, rax                                # rbx = machine address of our L4
    lea rdi, [rip + l3]
    call frame_of
    mov r12, rax                                # r12 = machine address of a page that would be an L3
    pin 3, l3

    lea r13, [r12 + TABLE]
    mov ebp, 256
.every:                                         # each of the sixteen: clear, a table, a read-only table, itself
    try_slot "clearing one of the sixteen slots", -EINVAL, rbx, rbp, 0
    try_slot "a table of ours in one of them", -EINVAL, rbx, rbp, r13
    lea r14, [rbx + READ_ONLY]
    try_slot "a read-only loop in one of them", -EINVAL, rbx, rbp, r14
    lea rdi, [rbx + rbp * 8 + 2]                # MMU_PT_UPDATE_PRESERVE_AD
    mov rsi, r13
    call set_entry
    answer_is -EINVAL, "the same, preserving accessed and dirty"
    inc ebp
    cmp ebp, 272
    jb .every
    try_slot "a table in the slot below", 0, rbx, 255, r13
    try_slot "and none there again", 0, rbx, 255, 0
    try_slot "a table in the slot above", 0, rbx, 272, r13
    try_slot "and none there again", 0, rbx, 272, 0

    # A page that is prepared with entries there, then pinned: they are gone.
    mov [rip + l4 + 256 * 8], r13
    mov [rip + l4 + 260 * 8], r13
    mov [rip + l4 + 271 * 8], r13
    mov rax, -1                                 # not even valid
    mov [rip + l4 + 262 * 8], rax
    readonly l4
    try_pin "pinning an L4 that fills the sixteen slots", 0, 4, l4
    lea rdi, [rip + l4]
    call frame_of
    mov r14, rax
    try_slot "changing such a slot of a table not in use", -EINVAL, r14, 256, r13
    equal "what was in slot 260", [rip + l4 + 260 * 8], 0
    equal "what was in slot 262", [rip + l4 + 262 * 8], 0
    equal "what was in slot 271", [rip + l4 + 271 * 8], 0
    lea rdi, [rip + l3]
    call va_to_mfn
    mov rsi, rax
    mov edi, MMUEXT_UNPIN_TABLE
    call mmuext
    answer_is 0, "unpinning the table that stood there"
    try_map "which nothing refers to any more", 0, l3, READ_WRITE

    # Run on that table: our own lower half, nothing of ours in the sixteen
    mov rsi, [rip + top]
    xor ebp, ebp
.copy:
    mov r15, [rsi + rbp * 8]
    push rsi
    lea rdi, [r14 + rbp * 8]
    mov rsi, r15
    call set_entry
    must_succeed "copying the lower half"
    pop rsi
    inc ebp
    cmp ebp, 4
    jb .copy
    mov rsi, r14
    shr rsi, PAGE_SHIFT
    mov edi, MMUEXT_NEW_BASEPTR
    call mmuext
    answer_is 0, "running on that table"
    mov r15, 0xffff820000000000                 # slot 260
    faults "reading through slot 260", TRAP_page_fault, "mov rax, [r15]"
    faults "writing through slot 260", TRAP_page_fault, "mov [r15], rax"
    mov r15, 0xffff878000000000                 # slot 271
    faults "reading through slot 271", TRAP_page_fault, "mov rax, [r15]"
    mov r15, MACH2PHYS_VIRT_START
    mov rax, [r15 + 8]                          # the M2P is there on every kernel table
    faults "writing the M2P", TRAP_page_fault, "mov [r15 + 8], rax"
    faults "executing the M2P", TRAP_page_fault, "jmp r15"
    mov r15, HYPERVISOR_HOLE
    faults "executing in the hole", TRAP_page_fault, "call r15"
    faults "an exchange in the hole", TRAP_page_fault, "lock cmpxchg16b [r15]"
    attack "update_va_mapping of the first address", -EINVAL, update_va_mapping, MACH2PHYS_VIRT_START, 0, UVMF_INVLPG, 0
    attack "update_va_mapping of the last page", -EINVAL, update_va_mapping, 0xffff87fffffff000, 0, UVMF_INVLPG, 0
    attack "update_va_mapping of slot 260", -EINVAL, update_va_mapping, 0xffff820000000000, r13, UVMF_INVLPG, 0
    attack "update_va_mapping_otherdomain there", -EINVAL, update_va_mapping_otherdomain, HYPERVISOR_HOLE, r13, 0, DOMID_SELF
    attack "update_va_mapping above, where no table is", -EINVAL, update_va_mapping, 0xffff880000000000, r13, 0, 0

    # The frames that back the M2P are named to us; they are not ours.
    mov dword ptr [rip + m2p_request], 1
    lea rax, [rip + m2p_frame]
    mov [rip + m2p_request + 8], rax
    attack "asking for the M2P's frames", 0, memory_op, 5, m2p_request, 0, 0
    mov rbp, [rip + m2p_frame]
    shl rbp, PAGE_SHIFT
    lea r15, [rbp + READ_WRITE]
    attack "mapping a frame of the M2P writable", -EBUSY, update_va_mapping, victim, r15, UVMF_INVLPG, 0
    lea r15, [rbp + TABLE]
    try_slot "a frame of the M2P as table", -EINVAL, r14, 300, r15
    lea rdi, [rbp + 8]
    xor esi, esi
    call set_entry
    answer_is -EINVAL, "mmu_update of a frame of the M2P"
    hostile_end

.data
.balign 8
top:            .quad 0
m2p_request:    .quad 0, 0, 0                   # u32 max_extents, list, u32 nr_extents
m2p_frame:      .quad 0

.bss
.balign PAGE_SIZE
l3:             .zero PAGE_SIZE
l4:             .zero PAGE_SIZE
victim:         .zero PAGE_SIZE
