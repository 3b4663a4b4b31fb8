# SPDX-License-Identifier: GPL-2.0-only
#
# descriptors - looks for a way to ring 0 through the descriptor tables: gates, system segments, pages changed later
#
# Class: descriptors and gates
# History: XSA-110, XSA-298
# Refused: no TSS, LDT, interrupt or trap gate in any descriptor page; a call gate loses its DPL, and leads nowhere but to
#   the guest's own segments; code and data are ring 3's; a page of descriptors cannot be written until it is none.

.include "hostile.inc"

.set CODE64, 0x00af9b000000ffff                 # DPL 0
.set DATA, 0x00cf93000000ffff                   # DPL 0
.set CALL_GATE, 0x0000ec0000080000              # to selector 8
.set SELECTOR_LDT, 7                            # entry 0, LDT, RPL 3

.macro descriptor what, answer, value           # into a plain page, and into a page that is a GDT
    lea rdi, [rip + plain]
    call frame_of
    lea rbx, [rax + 64]
    mov rbp, \value
    attack "\what, in a plain page", \answer, update_descriptor, rbx, rbp, 0, 0
    lea rdi, [rip + gdt]
    call frame_of
    lea rbx, [rax + 64]
    attack "\what, in a GDT", \answer, update_descriptor, rbx, rbp, 0, 0
.endm

.macro page_with what, value                    # as part of a page that becomes a GDT
    mov rax, \value
    mov [rip + fresh + 64], rax
    readonly fresh
    lea rdi, [rip + fresh]
    call va_to_mfn
    mov [rip + list], rax
    attack "\what, in a page that becomes a GDT", -EINVAL, set_gdt, list, 512, 0, 0
    writable fresh
.endm

.macro set_ldt what, answer, base, entries
    mov rax, \base
    mov [rip + ldt_request + 8], rax
    mov qword ptr [rip + ldt_request + 16], \entries
    attack "\what", \answer, mmuext_op, ldt_request, 1, 0, DOMID_SELF
.endm

.text
_start:
    hostile_entry "descriptors"
    readonly gdt
    lea rdi, [rip + gdt]
    call va_to_mfn
    mov [rip + list], rax
    attack "a GDT", 0, set_gdt, list, 512, 0, 0

    # Every system type, present
    mov r12d, 1
.types:
    cmp r12d, 12                                # a call gate is judged by where it leads
    je .next_type
    mov r13, r12
    shl r13, 40
    mov rax, 0x0000800000000000
    or r13, rax
    descriptor "a system descriptor", -EINVAL, r13
    page_with "a system descriptor", r13
    mov rax, 0x0000600000000000                 # DPL 3
    or r13, rax
    descriptor "a system descriptor of ring 3", -EINVAL, r13
.next_type:
    inc r12d
    cmp r12d, 16
    jb .types
    mov qword ptr [rip + fresh + 64], 0
    descriptor "a call gate to Xen's code", -EINVAL, CALL_GATE & ~0xffff0000 | 0xe008 << 16
    descriptor "a call gate to Xen's code, RPL 3", -EINVAL, CALL_GATE & ~0xffff0000 | 0xe00b << 16
    descriptor "a call gate to Xen's data", -EINVAL, CALL_GATE & ~0xffff0000 | 0xe010 << 16
    descriptor "a call gate to Xen's TSS", -EINVAL, CALL_GATE & ~0xffff0000 | 0xe040 << 16
    descriptor "a call gate to the last entry of the GDT", -EINVAL, CALL_GATE & ~0xffff0000 | 0xfff8 << 16
    descriptor "a call gate that copies words", -EINVAL, CALL_GATE | 1 << 32
    descriptor "a call gate with reserved bits", -EINVAL, CALL_GATE | 0xe0 << 32

    # What is let in is made harmless
    descriptor "a code segment of ring 0", 0, CODE64
    mov rax, [rip + gdt + 64]
    shr rax, 45
    and eax, 3
    equal "which has DPL 3", rax, 3
    descriptor "a conforming code segment of ring 0", 0, CODE64 | 1 << 42
    mov rax, [rip + gdt + 64]
    shr rax, 45
    and eax, 3
    equal "which has DPL 3 too", rax, 3
    descriptor "a call gate to a segment of ours", 0, CALL_GATE
    mov rax, [rip + gdt + 64]
    shr rax, 45
    and eax, 3
    equal "which has DPL 0, and no use", rax, 0
    lea rbx, [rip + far_pointer]
    faults_with "calling through it", TRAP_gp_fault, 64, ".byte 0xff, 0x1b"
    faults_with "jumping through it", TRAP_gp_fault, 64, ".byte 0xff, 0x2b"
    descriptor "a data segment of ring 0", 0, DATA
    lea rbx, [rip + far_pointer]
    faults_with "jumping into data", TRAP_gp_fault, 64, ".byte 0xff, 0x2b"
    descriptor "nothing present, all bits set", 0, 0xffff7fffffffffff
    lea rbx, [rip + far_pointer]
    faults_with "jumping to what is not present", 11, 64, ".byte 0xff, 0x2b"
    mov word ptr [rip + far_pointer + 4], 0xe008
    faults "jumping to Xen's code", TRAP_gp_fault, ".byte 0xff, 0x2b"
    mov word ptr [rip + far_pointer + 4], 0xe043
    faults "jumping to Xen's TSS", TRAP_gp_fault, ".byte 0xff, 0x2b"
    mov word ptr [rip + far_pointer + 4], 0
    faults_with "jumping to the null selector", TRAP_gp_fault, 0, ".byte 0xff, 0x2b"
    mov word ptr [rip + far_pointer + 4], 0xfffb
    faults "jumping beyond the GDT", TRAP_gp_fault, ".byte 0xff, 0x2b"

    # Places
    lea rdi, [rip + gdt]
    call frame_of
    lea rbx, [rax + 68]
    attack "a descriptor across two entries", -EINVAL, update_descriptor, rbx, 0, 0, 0
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    call frame_of
    lea rbx, [rax + 8]
    attack "a descriptor in our L4", -EINVAL, update_descriptor, rbx, 0, 0, 0
    attack "a descriptor in frame 0", -EINVAL, update_descriptor, 8, 0, 0, 0
    attack "a descriptor in a frame of the hypervisor", -EINVAL, update_descriptor, 0x1008, 0, 0, 0
    attack "a descriptor at 2^63", -EINVAL, update_descriptor, 0x8000000000000000, 0, 0, 0
    mov qword ptr [rip + list], 0
    attack "a GDT in frame 0", -EINVAL, set_gdt, list, 512, 0, 0
    mov qword ptr [rip + list], 1
    attack "a GDT in the hypervisor's frame", -EINVAL, set_gdt, list, 512, 0, 0
    mov rax, 1 << 52
    mov [rip + list], rax
    attack "a GDT beyond the machine", -EINVAL, set_gdt, list, 512, 0, 0
    mov rax, [rip + start_info]
    mov rax, [rax + START_INFO_shared_info]
    shr rax, PAGE_SHIFT
    mov [rip + list], rax
    attack "shared_info as GDT", -EINVAL, set_gdt, list, 512, 0, 0
    try_map "the GDT writable", -EBUSY, gdt, READ_WRITE
    faults_with "writing the GDT", TRAP_page_fault, PFEC_P | PFEC_W, "mov qword ptr [rip + gdt], 0"
    mov rbx, 0xffff820000000000
    faults "writing the GDT where the processor reads it", TRAP_page_fault, "mov [rbx + 64], rax"

    # The LDT: approved page by page when it is used, and then held
    mov rax, DATA | 3 << 45
    mov [rip + ldt], rax
    mov rax, 0x00008e0000081000                 # an interrupt gate
    mov [rip + bad_ldt + 8], rax
    mov rax, DATA | 3 << 45
    mov [rip + bad_ldt], rax
    set_ldt "an LDT in the hypervisor's space", -EINVAL, HYPERVISOR_HOLE, 1
    set_ldt "an LDT at an address that is not canonical", -EINVAL, NOT_CANONICAL, 1
    set_ldt "an LDT in the middle of a page", -EINVAL, ldt + 8, 1
    set_ldt "an LDT of 8193 entries", -EINVAL, ldt, 8193
    set_ldt "an LDT that we can write", 0, ldt, 512
    mov ebx, SELECTOR_LDT
    faults "loading from it", TRAP_page_fault, "mov ds, ebx"
    readonly ldt
    set_ldt "no LDT", 0, 0, 0
    faults_with "loading from none", TRAP_gp_fault, 4, "mov ds, ebx"
    set_ldt "a read-only LDT", 0, ldt, 512
    mov ds, ebx                                 # now it is used, and so approved
    xor eax, eax
    mov ds, eax
    try_map "the LDT writable while it is used", -EBUSY, ldt, READ_WRITE
    try_pin "the LDT as table", -EINVAL, 1, ldt
    lea rdi, [rip + ldt]                        # the address leads elsewhere now; the page is held all the same
    xor esi, esi
    call update_mapping
    answer_is 0, "unmapping the LDT"
    lea rdi, [rip + ldt]
    call frame_of
    lea rbp, [rax + READ_WRITE]
    attack "mapping its page writable elsewhere", -EBUSY, update_va_mapping, window, rbp, UVMF_INVLPG, 0
    mov r15, 0xffff820000010000
    faults "writing the LDT where the processor reads it", TRAP_page_fault, "mov [r15], r15"
    lea rdi, [rip + ldt]
    call va_to_mfn
    mov [rip + list], rax
    attack "giving it back", 1, memory_op, XENMEM_decrease_reservation, reservation, 0, 0
    mov ds, ebx                                 # still the approved page
    xor eax, eax
    mov ds, eax
    set_ldt "no LDT again", 0, 0, 0
    faults_with "loading from none", TRAP_gp_fault, 4, "mov ds, ebx"
    readonly bad_ldt
    set_ldt "an LDT with a gate in it", 0, bad_ldt, 512
    faults "loading a good entry from it", TRAP_page_fault, "mov ds, ebx"
    mov ebp, 8 * 8 * 512 + 7
    faults "loading from beyond it", TRAP_gp_fault, "mov ds, ebp"
    set_ldt "an LDT in our code", 0, 0x100000, 512
    faults "loading from code, which is writable", TRAP_page_fault, "mov ds, ebx"
    hostile_end

.data
.balign 8
list:           .quad 0, 0
far_pointer:    .long 0, 0x43                   # offset, selector: entry 8 of the GDT, RPL 3
ldt_request:    .quad 13, 0, 0
reservation:    .quad list, 1, 0, DOMID_SELF

.bss
.balign PAGE_SIZE
gdt:            .zero PAGE_SIZE
plain:          .zero PAGE_SIZE
fresh:          .zero PAGE_SIZE
ldt:            .zero PAGE_SIZE
bad_ldt:        .zero PAGE_SIZE
window:         .zero PAGE_SIZE
