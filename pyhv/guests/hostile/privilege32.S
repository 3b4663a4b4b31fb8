# SPDX-License-Identifier: GPL-2.0-only
#
# privilege32 - looks for a way out of rings 1 to 3: descriptors, selectors of the hypervisor, returns, virtual-8086 mode
#
# Class: rings of 32-bit guests
# History: XSA-8, XSA-110, XSA-298
# Refused: no descriptor for 64-bit code, no gate, TSS or LDT of the hypervisor's, none whose DPL is 0; its selectors are
#   loaded by no instruction and no return; ring 2 and ring 3 make no hypercalls; no return changes IOPL or VM, or leads
#   to ring 0; what is refused leaves the guest where it was.

.width 32
.include "hostile32.inc"

.set GDT_CODE2, 0x08                            # of `gdt`
.set GDT_DATA2, 0x10
.set GDT_CODE0, 0x18
.set GDT_CONFORMING0, 0x20
.set GDT_FAR_STACK, 0x28
.set GDT_DATA0, 0x30
.set USER_RX, PTE_P | PTE_US | PTE_A
.set USER_RW, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D
.set IOPL, 0x3000
.set VM, 0x20000
.set NT, 0x4000
.set BY_INT, 2                                  # in the error code: the index is a vector
.set PHYSDEVOP_set_iopl, 6

.macro descriptor what, low, high               # into our GDT, and then into the page before it is one
    attack "\what", -EINVAL, update_descriptor, [gdt_machine], [gdt_machine_high], \low, \high
    mov dword ptr [bad_gdt + 64], \low
    mov dword ptr [bad_gdt + 68], \high
    readonly bad_gdt
    attack "\what, in a page that is to be a GDT", -EINVAL, set_gdt, bad_frame, 512, 0, 0
    writable bad_gdt
.endm

.macro far_jump what, selector
    mov word ptr [far + 4], \selector
    faults_with "\what", TRAP_gp_fault, \selector & 0xfffc, "ljmp [far]"
    faults_with "\what, called", TRAP_gp_fault, \selector & 0xfffc, "lcall [far]"
.endm

.macro returns what, error, cs, ss, eflags      # by the hypercall and by the instruction
    mov dword ptr [return_cs], \cs
    mov dword ptr [return_ss], \ss
    mov dword ptr [return_eflags], \eflags
    faults_with "\what, by iret", TRAP_gp_fault, \error, "jmp return_iret"
    faults_with "\what, by the hypercall", TRAP_gp_fault, \error, "jmp return_hypercall"
.endm

.macro in_ring3 what, vector, error, where
    mov edi, \where
    faults_with "\what", \vector, \error, "jmp to_ring3"
    mov eax, [trapped_cs]
    and eax, 3
    cmp eax, 3
    must e, "\what: the ring of the frame"
.endm

.macro in_ring2 what, vector, error, where
    mov edi, \where
    faults_with "\what", \vector, \error, "jmp to_ring2"
    mov eax, [trapped_cs]
    and eax, 3
    cmp eax, 2
    must e, "\what: the ring of the frame"
.endm

.macro load_all selector
    mov ecx, \selector
    faults_with "\selector in DS", TRAP_gp_fault, \selector, "mov ds, cx"
    mov ecx, \selector
    faults_with "\selector in ES", TRAP_gp_fault, \selector, "mov es, cx"
    mov ecx, \selector
    faults_with "\selector in FS", TRAP_gp_fault, \selector, "mov fs, cx"
    mov ecx, \selector
    faults_with "\selector in GS", TRAP_gp_fault, \selector, "mov gs, cx"
    mov ecx, \selector
    faults_with "\selector in SS", TRAP_gp_fault, \selector, "mov ss, cx"
.endm

.macro from_vm86 what                           # whatever the exception is: it comes from ring 3, and VM is not shown
    mov edi, user_vm86
    trap_begin .after\@
    jmp to_ring3
.after\@:
    mov edi, [trapped_cs]
    and edi, 3
    equal "\what: the ring of the frame", edi, 3
    mov edi, [trapped_eflags]
    and edi, VM | IOPL
    equal "\what: VM and IOPL", edi, 0
    pushfd
    pop edi
    and edi, VM | IOPL
    equal "\what: VM and IOPL in the handler", edi, 0
.endm

.text
_start:
    hostile_entry "privilege32"
    call prepare

    # Descriptors
    descriptor "64-bit code of ring 0", 0x0000ffff, 0x00af9b00
    descriptor "64-bit code of ring 1", 0x0000ffff, 0x00afbb00
    descriptor "64-bit code of ring 3", 0x0000ffff, 0x00affb00
    descriptor "64-bit conforming code", 0x0000ffff, 0x00af9f00
    descriptor "64-bit data", 0x0000ffff, 0x00aff300
    descriptor "a TSS", 0x00000067, 0x00008900
    descriptor "a TSS of ring 3", 0x00000067, 0x0000e900
    descriptor "a TSS that is busy", 0x00000067, 0x00008b00
    descriptor "a 16-bit TSS", 0x0000002b, 0x00008100
    descriptor "an LDT", 0x0000ffff, 0x00008200
    descriptor "a task gate", 0xe0400000, 0x0000e500
    descriptor "an interrupt gate", 0xe0190000, 0x0000ee00
    descriptor "a trap gate", 0xe0190000, 0x0000ef00
    descriptor "a 16-bit call gate", 0xe0190000, 0x0000e400
    descriptor "a 16-bit interrupt gate", 0xe0190000, 0x0000e600
    descriptor "a call gate into the hypervisor's code", 0xe0080000, 0x0000ec00
    descriptor "a call gate there with RPL 3", 0xe00b0000, 0x0000ec00
    descriptor "a call gate to its data", 0xe0100000, 0x0000ec00
    descriptor "a call gate to its TSS", 0xe0400000, 0x0000ec00
    descriptor "a call gate to the end of the GDT", 0xfff80000, 0x0000ec00
    descriptor "a call gate of 32 parameters", 0xe0190000, 0x0000ec20
    descriptor "a call gate whose last reserved bit is set", 0xe0190000, 0x0000ec80
    attack "a descriptor in the hypervisor's part of the GDT", -EINVAL, update_descriptor, 1 << PAGE_SHIFT, 0, 0xffff, 0x00cffb00
    attack "a GDT that reaches into that part", -EINVAL, set_gdt, bad_frame, 7169, 0, 0
    attack "a GDT of 2^32-1 entries", -EINVAL, set_gdt, bad_frame, -1, 0, 0

    # Ring 0's DPL becomes ring 1's
    mov eax, GDT_CODE0
    lar eax, eax
    must z, "our code segment is not visible"
    and eax, 0x6000
    equal "DPL of code that said 0", eax, 0x2000
    mov eax, GDT_CONFORMING0
    lar eax, eax
    and eax, 0x6000
    equal "DPL of conforming code that said 0", eax, 0x2000
    mov eax, GDT_DATA0
    lar eax, eax
    and eax, 0x6000
    equal "DPL of data that said 0", eax, 0x2000

    # The hypervisor's selectors
    far_jump "its 64-bit code", XEN_RING0_CS64
    far_jump "its 64-bit code with RPL 1", XEN_RING0_CS64 | 1
    far_jump "its 64-bit code with RPL 3", XEN_RING0_CS64 | 3
    far_jump "its data as code", XEN_RING0_DS
    far_jump "its empty descriptor", 0xe038
    far_jump "its TSS", 0xe040
    far_jump "the upper half of its TSS", 0xe048
    far_jump "its LDT", 0xe050
    far_jump "its processor's number", 0xe060
    far_jump "the last descriptor", 0xfff8
    far_jump "ring 3's code", FLAT_RING3_CS
    far_jump "no segment", 0
    far_jump "ring 2's code", GDT_CODE2 | 2
    load_all XEN_RING0_DS
    load_all XEN_RING0_CS64
    load_all 0xe040
    load_all 0xe050
    load_all 0xe060
    faults_with "lldt", TRAP_gp_fault, 0, "lldt ax"
    faults_with "ltr", TRAP_gp_fault, 0, "ltr ax"
    faults_with "lgdt", TRAP_gp_fault, 0, "lgdt [pseudo]"
    faults_with "lidt", TRAP_gp_fault, 0, "lidt [pseudo]"
    faults_with "sysexit", TRAP_gp_fault, 0, "sysexit"
    faults_with "hlt", TRAP_gp_fault, 0, "hlt"

    # Returns
    returns "a return to the hypervisor's code with RPL 3", XEN_RING0_CS64, XEN_RING0_CS64 | 3, FLAT_RING3_DS, 2
    returns "a return to the hypervisor's code with RPL 1", XEN_RING0_CS64, XEN_RING0_CS64 | 1, FLAT_RING1_DS, 2
    returns "a return to ring 3's code with RPL 1", FLAT_RING3_CS & ~3, FLAT_RING3_CS & ~3 | 1, FLAT_RING1_DS, 2
    returns "a return to ring 1's code with RPL 3", FLAT_RING1_CS & ~3, FLAT_RING1_CS | 3, FLAT_RING3_DS, 2
    returns "a return to ring 3 with the hypervisor's stack", XEN_RING0_DS, FLAT_RING3_CS, XEN_RING0_DS | 3, 2
    returns "a return to ring 3 with ring 1's stack", FLAT_RING1_DS & ~3, FLAT_RING3_CS, FLAT_RING1_DS, 2
    returns "a return to ring 3 without a stack", 0, FLAT_RING3_CS, 3, 2
    returns "a return to data", FLAT_RING3_DS & ~3, FLAT_RING3_DS, FLAT_RING3_DS, 2
    returns "a return to the last descriptor", 0xfff8, 0xfffb, FLAT_RING3_DS, 2
    mov dword ptr [return_cs], XEN_RING0_CS64
    faults_with "iret to ring 0", TRAP_gp_fault, XEN_RING0_CS64, "jmp return_iret"
    mov dword ptr [return_cs], FLAT_RING1_CS | 1 << 16      # the frame is shown as it is, with its event mask
    mov dword ptr [return_eflags], VM | 2
    faults_with "the iret hypercall to virtual-8086 mode", TRAP_gp_fault, 0, "jmp return_hypercall"
    mov eax, cs
    equal "which leaves us in ring 1", eax, FLAT_RING1_CS
    pushfd
    pop eax
    test eax, VM
    must z, "VM is set"

    # Flags
    push 2 | IOPL | VM | EFLAGS_IF
    popfd
    pushfd
    pop edi
    and edi, IOPL | VM
    equal "popf with IOPL and VM", edi, 0
    push 2 | IOPL | EFLAGS_IF
    push FLAT_RING1_CS
    mov eax, .iret_done
    push eax
    iretd
.iret_done:
    pushfd
    pop edi
    and edi, IOPL | VM
    equal "iret with IOPL", edi, 0
    push 2 | IOPL
    push FLAT_RING1_CS
    mov eax, .hypercall_done
    push eax
    iret_hypercall
.hypercall_done:
    pushfd
    pop edi
    and edi, IOPL
    equal "the iret hypercall with IOPL", edi, 0
    faults_with "a port then", TRAP_gp_fault, 0, "in al, dx"
    faults_with "cli then", TRAP_gp_fault, 0, "cli"
    push 2 | NT
    popfd
    faults_with "iret with NT", TRAP_gp_fault, 0, "iretd"
    push 2
    popfd
    mov dword ptr [iopl], 4
    attack "IOPL 4", -EINVAL, physdev_op, PHYSDEVOP_set_iopl, iopl, 0, 0
    mov dword ptr [iopl], 3
    attack "IOPL 3", 0, physdev_op, PHYSDEVOP_set_iopl, iopl, 0, 0
    pushfd
    pop edi
    and edi, IOPL
    equal "of which the processor knows nothing", edi, 0
    in_ring3 "cli in ring 3, which may do it now: it does nothing", TRAP_invalid_op, -1, user_cli
    mov dword ptr [iopl], 0
    attack "IOPL 0", 0, physdev_op, PHYSDEVOP_set_iopl, iopl, 0, 0

    # Ring 3
    in_ring3 "a hypercall of ring 3", TRAP_gp_fault, 0x82 << 3 | BY_INT, user_hypercall
    in_ring3 "an exception by INT 14 in ring 3", TRAP_gp_fault, 14 << 3 | BY_INT, user_int14
    in_ring3 "INT 255 in ring 3", TRAP_gp_fault, 255 << 3 | BY_INT, user_int255
    in_ring3 "cli in ring 3", TRAP_gp_fault, 0, user_cli
    in_ring3 "reading cr3 in ring 3", TRAP_gp_fault, 0, user_cr3
    in_ring3 "writing dr7 in ring 3", TRAP_gp_fault, 0, user_dr7
    in_ring3 "rdmsr in ring 3", TRAP_gp_fault, 0, user_rdmsr
    in_ring3 "reading a page of the kernel", TRAP_page_fault, PFEC_P | PFEC_U, user_read
    in_ring3 "writing a page of the kernel", TRAP_page_fault, PFEC_P | PFEC_W | PFEC_U, user_write
    in_ring3 "writing the M2P", TRAP_page_fault, PFEC_P | PFEC_W | PFEC_U, user_m2p
    in_ring3 "reading the hypervisor", TRAP_page_fault, PFEC_U, user_hole
    in_ring3 "a jump into ring 1", TRAP_gp_fault, FLAT_RING1_CS & ~3, user_jump
    in_ring3 "a jump into ring 0", TRAP_gp_fault, XEN_RING0_CS64, user_jump0
    in_ring3 "ring 1's data segment", TRAP_gp_fault, FLAT_RING1_DS & ~3, user_segment
    mov dword ptr [vm86_frame + 4], FLAT_RING1_CS      # a real processor ignores VM here, and refuses these returns
    from_vm86 "a process that returns to virtual-8086 mode, with the kernel's selectors"
    mov dword ptr [vm86_frame + 4], XEN_RING0_CS64
    from_vm86 "with the hypervisor's"
    mov dword ptr [vm86_frame + 4], 0x1001
    from_vm86 "with others"
    in_ring3 "syscall, which this processor has not in 32 bits", TRAP_invalid_op, -1, user_syscall
    mov edi, user_sysenter
    faults_with "sysenter without a callback", TRAP_gp_fault, 0, "jmp to_ring3"

    # Ring 2: more than user mode to the processor, nothing more to Xen
    in_ring2 "a hypercall of ring 2", TRAP_gp_fault, 0x82 << 3 | BY_INT, ring2_hypercall
    in_ring2 "cr3 in ring 2", TRAP_gp_fault, 0, ring2_cr3
    in_ring2 "rdmsr in ring 2", TRAP_gp_fault, 0, ring2_rdmsr
    in_ring2 "writing the M2P in ring 2", TRAP_page_fault, PFEC_P | PFEC_W | PFEC_U, ring2_m2p
    in_ring2 "reading the hypervisor in ring 2", TRAP_page_fault, PFEC_U, ring2_hole
    in_ring2 "a page table written in ring 2", TRAP_page_fault, PFEC_P | PFEC_W | PFEC_U, ring2_table
    in_ring2 "a jump into ring 1 from ring 2", TRAP_gp_fault, FLAT_RING1_CS & ~3, ring2_jump

    # A kernel stack whose segment's base makes the address wrap
    attack "a stack in a segment that wraps", 0, stack_switch, GDT_FAR_STACK | 1, kernel_stack_top + 0x1000, 0, 0
    mov dword ptr [trap_table + 5 * 8 + 4], entry_wrapped
    attack "a handler for it", 0, set_trap_table, trap_table, 0, 0, 0
    mov dword ptr [wrapped_at], 0
    mov [trap_esp], esp
    mov dword ptr [trap_resume], .wrapped
    mov edi, user_ud2
    jmp to_ring3
.wrapped:
    mov eax, [wrapped_at]
    sub eax, kernel_stack_top + 0x1000 - 20
    equal "the frame was below the stack's top", eax, 0
    equal "at the address that it wraps to", [kernel_stack_top - 20], user_ud2
    mov dword ptr [trap_table + 5 * 8 + 4], entry_6
    attack "the old handler", 0, set_trap_table, trap_table, 0, 0, 0
    attack "the old stack", 0, stack_switch, FLAT_RING1_DS, kernel_stack_top, 0, 0
    in_ring3 "all is as it was", TRAP_invalid_op, -1, user_ud2
    hostile_end

entry_wrapped:                                  # SS has a base; the other segments have not
    mov eax, cs:[trap_esp]
    mov edx, FLAT_RING1_DS
    mov ds, edx
    mov es, edx
    mov ecx, esp
    mov ss, dx
    mov esp, eax
    mov [wrapped_at], ecx
    xor eax, eax
    xchg eax, [trap_resume]
    jmp eax

return_iret:
    push [return_ss]
    mov eax, user_stack_top
    push eax
    push [return_eflags]
    push [return_cs]
    mov eax, user_ud2
    push eax
    iretd

return_hypercall:
    push [return_ss]
    mov eax, user_stack_top
    push eax
    push [return_eflags]
    push [return_cs]
    mov eax, user_ud2
    push eax
    iret_hypercall

to_ring3:                                       # edi = eip
    push FLAT_RING3_DS
    mov eax, user_stack_top
    push eax
    push 2                                      # events stay masked: we have no callback
    push FLAT_RING3_CS
    push edi
    iret_hypercall

to_ring2:                                       # edi = eip
    push GDT_DATA2 | 2
    mov eax, ring2_stack_top
    push eax
    push 2
    push GDT_CODE2 | 2
    push edi
    iret_hypercall

prepare:
    mov eax, user_page
    mov edx, USER_RX
    call remap
    must_succeed "mapping the user's code"
    mov eax, user_stack
    mov edx, USER_RW
    call remap
    must_succeed "mapping the user's stack"
    mov eax, vm86_frame
    mov edx, USER_RW
    call remap
    must_succeed "mapping a page for the user"
    mov dword ptr [vm86_frame], 0x10
    mov dword ptr [vm86_frame + 8], VM | IOPL | 2
    mov dword ptr [vm86_frame + 12], 0x100
    mov ebx, FLAT_RING1_DS
    mov ecx, kernel_stack_top
    hypercall stack_switch
    must_succeed "stack_switch"
    readonly gdt
    mov eax, gdt
    call frame_of
    lea eax, [edx + 64]
    mov [gdt_machine], eax
    mov [gdt_machine_high], ecx
    mov eax, gdt
    call va_to_mfn
    mov [gdt_frame], eax
    mov eax, bad_gdt
    call va_to_mfn
    mov [bad_frame], eax
    mov ebx, gdt_frame
    mov ecx, 512
    hypercall set_gdt
    must_succeed "set_gdt"
    mov eax, [start_info]
    mov eax, [eax + START_INFO_pt_base]
    mov [ring2_target], eax
    ret

ring2_hypercall:
    mov eax, __HYPERVISOR_xen_version
    xor ebx, ebx
    int 0x82
    ud2
ring2_cr3:
    mov eax, cr3
    ud2
ring2_rdmsr:
    mov ecx, 0xc0000080
    rdmsr
    ud2
ring2_m2p:
    mov dword ptr ss:[MACH2PHYS_VIRT_START], 7
    ud2
ring2_hole:
    mov eax, ss:[HYPERVISOR_HOLE]
    ud2
ring2_table:
    mov eax, ss:[ring2_target]
    mov dword ptr ss:[eax], 0
    ud2
ring2_jump:
    mov word ptr ss:[far + 4], FLAT_RING1_CS
    ljmp ss:[far]
    ud2

.balign PAGE_SIZE
user_page:
user_ud2:
    ud2
user_hypercall:
    mov eax, __HYPERVISOR_xen_version
    xor ebx, ebx
    int 0x82
    ud2
user_int14:
    int 14
    ud2
user_int255:
    int 255
    ud2
user_cli:
    cli
    ud2
user_cr3:
    mov eax, cr3
    ud2
user_dr7:
    mov dr7, eax
    ud2
user_rdmsr:
    mov ecx, 0xc0000080
    rdmsr
    ud2
user_read:
    mov eax, ss:[gdt]
    ud2
user_write:
    mov dword ptr ss:[kernel_stack], 7
    ud2
user_m2p:
    mov dword ptr ss:[MACH2PHYS_VIRT_START], 7
    ud2
user_hole:
    mov eax, ss:[HYPERVISOR_HOLE]
    ud2
user_jump:
    .byte 0xea                                  # ljmp FLAT_RING1_CS:0
    .long 0
    .short FLAT_RING1_CS
    ud2
user_jump0:
    .byte 0xea
    .long 0
    .short XEN_RING0_CS64 | 3
    ud2
user_segment:
    mov eax, FLAT_RING1_DS
    mov fs, ax
    ud2
user_vm86:                                      # the frame that leads there has nine words
    mov ecx, 9
.next:
    push ss:[vm86_frame + ecx * 4 - 4]
    dec ecx
    jnz .next
    iretd
user_syscall:
    .byte 0x0f, 0x05
    ud2
user_sysenter:
    sysenter
    ud2
.balign PAGE_SIZE

.data
.balign PAGE_SIZE
gdt:
    .quad 0
    .quad 0x00cfdb000000ffff                    # code, ring 2, flat
    .quad 0x00cfd3000000ffff                    # data, ring 2, flat
    .quad 0x00cf9b000000ffff                    # code, ring 0, flat
    .quad 0x00cf9f000000ffff                    # conforming code, ring 0, flat
    .quad 0xffcfb3fff000ffff                    # data, ring 1, base 0xfffff000
    .quad 0x00cf93000000ffff                    # data, ring 0, flat
.balign PAGE_SIZE
bad_gdt:        .zero PAGE_SIZE
gdt_frame:      .long 0
bad_frame:      .long 0
gdt_machine:    .long 0                         # of a descriptor in the GDT in force
gdt_machine_high: .long 0
far:            .long 0
                .short 0
.balign 4
return_cs:      .long 0
return_ss:      .long 0
return_eflags:  .long 2
pseudo:         .long 0, 0
iopl:           .long 0
wrapped_at:     .long 0
ring2_target:   .long 0

.bss
.balign PAGE_SIZE
user_stack:     .zero PAGE_SIZE
user_stack_top:
vm86_frame:     .zero PAGE_SIZE                 # eip, cs, eflags, esp, ss, es, ds, fs, gs
kernel_stack:   .zero PAGE_SIZE
kernel_stack_top:
ring2_stack:    .zero PAGE_SIZE
ring2_stack_top:
