# SPDX-License-Identifier: GPL-2.0-only
#
# stale-tlb - writes through a translation that the processor may still remember after the page has become something else
#
# Class: stale translations
# History: XSA-241, XSA-286, XSA-292
# Refused: before a frame becomes a table or leaves the domain, what any TLB remembers of it is gone, asked for or not; a
#   store through the old address faults or reaches the frame that is mapped there now.

.include "hostile.inc"

.macro touch page                               # let the TLB learn a writable translation
    mov qword ptr [rip + \page], 0x55
    mov qword ptr [rip + \page], 0
.endm

.macro drop_writable page, flags, flush         # narrow the mapping, with the flush that the guest chooses
    lea rdi, [rip + \page]
    call frame_of
    mov rsi, rax
    or rsi, \flags
    lea rdi, [rip + \page]
    mov edx, \flush
    hypercall update_va_mapping
    must_succeed "narrowing the mapping of \page"
.endm

.text
_start:
    hostile_entry "stale-tlb"
    # Writable -> table, without asking for a flush
    touch pa
    drop_writable pa, READ_ONLY, UVMF_NONE
    try_pin "an L1 whose page was just writable", 0, 1, pa
    faults "writing it through the old translation", TRAP_page_fault, "mov qword ptr [rip + pa], 7"
    touch pb
    drop_writable pb, 0, UVMF_NONE
    try_pin "an L4 whose page was just mapped", 0, 4, pb
    faults "writing it through the old translation", TRAP_page_fault, "mov qword ptr [rip + pb], 7"
    touch pc                                     # the same by mmu_update, in one list with the pin
    lea rdi, [rip + pc]
    mov esi, 1
    call find_table
    mov rdi, rax
    lea rsi, [rip + pc]
    shr rsi, PAGE_SHIFT
    and esi, 511
    call entry_address
    mov [rip + calls_update], rax
    lea rdi, [rip + pc]
    call frame_of
    lea rcx, [rax + READ_ONLY]
    mov [rip + calls_update + 8], rcx
    shr rax, PAGE_SHIFT
    mov [rip + calls_pin + MMUEXT_OP_arg1], rax
    attack "narrowing and pinning in one multicall", 0, multicall, calls, 2, 0, 0
    equal "its first call", [rip + calls + 8], 0
    equal "its second call", [rip + calls + 64 + 8], 0
    faults "writing that table through the old translation", TRAP_page_fault, "mov qword ptr [rip + pc], 7"
    touch pd
    drop_writable pd, READ_ONLY, UVMF_NONE
    lea rdi, [rip + pd]
    call va_to_mfn
    mov [rip + list], rax
    attack "a GDT whose page was just writable", 0, set_gdt, list, 512, 0, 0
    faults "writing the GDT through the old translation", TRAP_page_fault, "mov qword ptr [rip + pd], 7"
    attack "no GDT again", 0, set_gdt, 0, 0, 0, 0

    # Given back: the frame may be anybody's at once
    touch pe
    lea rdi, [rip + pe]
    call va_to_mfn
    mov [rip + list], rax
    mov r12, rax
    drop_writable pe, 0, UVMF_NONE
    call give_back
    answer_is 1, "giving back a frame"
    faults "writing a frame that was given back", TRAP_page_fault, "mov qword ptr [rip + pe], 7"
    mov rbp, r12
    shl rbp, PAGE_SHIFT
    or rbp, READ_WRITE
    attack "mapping it again", -EBUSY, update_va_mapping, pe, rbp, UVMF_NONE, 0
    call give_back
    answer_is 0, "giving it back again"
    touch pf                                     # given back while it is still mapped: it stays ours until then
    lea rdi, [rip + pf]
    call va_to_mfn
    mov [rip + list], rax
    call give_back
    answer_is 1, "giving back a frame that is mapped"
    mov qword ptr [rip + pf], 0x1234
    equal "it is still what we wrote", [rip + pf], 0x1234
    call give_back
    answer_is 1, "giving it back twice, which takes no second reference"
    equal "it is still what we wrote then", [rip + pf], 0x1234
    try_pin "pinning it meanwhile", -EINVAL, 1, pf
    drop_writable pf, 0, UVMF_NONE
    faults "writing it after its last mapping has gone", TRAP_page_fault, "mov qword ptr [rip + pf], 7"

    # Tables: unlink a whole subtree, and use what it mapped
    lea rdi, [rip + pg]
    call frame_of
    lea rbx, [rax + READ_WRITE]
    mov [rip + l1], rbx
    pin 1, l1
    readonly l2
    link l2, 0, l1, TABLE
    pin 2, l2
    lea rdi, [rip + pg]
    mov esi, 3
    call find_table
    mov rdi, rax
    mov esi, 100                                # the 101st GiB
    call entry_address
    mov r12, rax                                # r12 = the L3 entry
    lea rdi, [rip + l2]
    call frame_of
    mov rdi, r12
    lea rsi, [rax + TABLE]
    call set_entry
    must_succeed "hanging the L2 in"
    mov r13, 100 << 30
    mov qword ptr [r13], 0x77
    equal "the new mapping", [rip + pg], 0x77
    mov rdi, r12
    xor esi, esi
    call set_entry
    answer_is 0, "unlinking an L2"
    faults "writing where it led", TRAP_page_fault, "mov qword ptr [r13], 7"
    lea rdi, [rip + l2]
    call frame_of
    mov rdi, r12
    lea rsi, [rax + TABLE]
    call set_entry
    must_succeed "hanging it in again"
    mov qword ptr [r13], 0x78
    unpin l2
    unpin l1
    mov rdi, r12
    xor esi, esi
    call set_entry
    answer_is 0, "unlinking an L2 that dies with that"
    try_map "its page as an ordinary one", 0, l2, READ_WRITE
    try_map "its L1 as an ordinary page", 0, l1, READ_WRITE
    mov rax, -1                                 # had the processor kept the path, it would walk this
    mov [rip + l2], rax
    mov [rip + l1], rax
    faults "writing through the former tables", TRAP_page_fault, "mov qword ptr [r13], 7"
    mov qword ptr [rip + l1], 0
    mov qword ptr [rip + l2], 0

    # Execute: code in a page that becomes data, and data that becomes code
    mov byte ptr [rip + ph], 0xc3                # ret
    lea rbx, [rip + ph]
    call rbx
    lea rdi, [rip + ph]
    call frame_of
    mov rcx, READ_WRITE | PTE_NX
    lea rsi, [rax + rcx]
    lea rdi, [rip + ph]
    call update_mapping
    answer_is 0, "taking the right to execute away"
    faults "executing all the same", TRAP_page_fault, "call rbx"
    mov rdi, 0
    writable ph
    call rbx
    mov byte ptr [rip + ph], 0xf4                # hlt: privileged
    faults "code that was changed under its translation", TRAP_gp_fault, "call rbx"

    # Flushing what cannot be mapped changes nothing
    attack "INVLPG of addresses that are not canonical, or not ours", 0, mmuext_op, wild_flushes, 6, 0, DOMID_SELF

    # The base pointer itself, unpinned while it is used
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    mov rbx, rdi
    call va_to_mfn
    mov rsi, rax
    mov edi, MMUEXT_UNPIN_TABLE
    call mmuext
    answer_is 0, "unpinning the L4 that we run on"
    mov rdi, rbx
    mov esi, READ_WRITE
    call remap
    answer_is -EBUSY, "mapping it writable then"
    mov qword ptr [rip + list], 0
    mov rdi, rbx
    call va_to_mfn
    mov [rip + list], rax
    mov r12, rax
    call give_back
    answer_is 1, "giving back the L4 that we run on"
    mov edi, MMUEXT_PIN_L4_TABLE
    mov rsi, r12
    call mmuext
    answer_is 0, "it stays a table as long as we run on it"
    hostile_end

give_back:                                      # decrease_reservation of the frame in `list`
    lea rax, [rip + list]
    mov [rip + reservation], rax
    mov edi, XENMEM_decrease_reservation
    lea rsi, [rip + reservation]
    hypercall memory_op
    ret

.data
.balign 8
list:           .quad 0
reservation:    .quad 0, 1, 0, DOMID_SELF       # list, how many, order and flags, domid
calls:          .quad __HYPERVISOR_mmu_update, -1, calls_update, 1, 0, DOMID_SELF, 0, 0
                .quad __HYPERVISOR_mmuext_op, -1, calls_pin, 1, 0, DOMID_SELF, 0, 0
calls_update:   .quad 0, 0
wild_flushes:   .quad 7, NOT_CANONICAL, 0, 7, -1, 0, 7, HYPERVISOR_HOLE, 0, 7, MACH2PHYS_VIRT_START, 0
                .quad 11, LOWER_HALF_END, 0, 11, 0x8000000000000000, 0
calls_pin:      .quad MMUEXT_PIN_L1_TABLE, 0, 0

.bss
.balign PAGE_SIZE
pa:             .zero PAGE_SIZE
pb:             .zero PAGE_SIZE
pc:             .zero PAGE_SIZE
pd:             .zero PAGE_SIZE
pe:             .zero PAGE_SIZE
pf:             .zero PAGE_SIZE
pg:             .zero PAGE_SIZE
ph:             .zero PAGE_SIZE
l1:             .zero PAGE_SIZE
l2:             .zero PAGE_SIZE
