# SPDX-License-Identifier: GPL-2.0-only
#
# intruder - tries to break out of its domain in about a hundred ways and checks that each one is refused
#
# Isolation is the hypervisor's first promise. This kernel does what a hostile one would do, one attempt after the
# other; each prints `refused: <what>`, and the first that succeeds (or is refused in another way than Xen's interface
# says) prints `FAILURE: <what>`. It teaches where the walls are:
#   1 memory       Xen's part of the address space, page tables, frames of other owners
#   2 privilege    the kernel runs in ring 3: selectors, iret, privileged instructions, model-specific registers
#   3 descriptors  the GDT may not hold anything that leads to ring 0
#   4 pointers     arguments that point where the kernel itself may not go: Xen must not go there on its behalf
#   5 numbers      ports, references, vcpus, domains and counts out of range
#   6 authority    calls that only the control domain may make
#
# A refusal is either an exception (trap_begin, trap_check) or a negative result (must_refuse).

.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "paging.inc"

.set READ_WRITE, PTE_P | PTE_RW | PTE_A | PTE_D
.set READ_ONLY, PTE_P | PTE_A
.set NOWHERE, 0x3fe00000                        # an address below 1 GiB that nothing maps
.set NOT_CANONICAL, 0x0000900000000000
.set NO_DOMAIN, 0x6fff
.set MANY, 0x7fffffff
.set SWEEP, 1000                                # foreign frames to try

.set MSR_EFER, 0xc0000080
.set MSR_STAR, 0xc0000081
.set MSR_LSTAR, 0xc0000082                      # where SYSCALL goes: whoever writes it owns the machine

.macro try_instruction instruction              # must raise #GP
    trap_begin .after\@
    \instruction
.after\@:
    trap_check TRAP_gp_fault, "\instruction"
.endm

.macro try_selector selector, what              # loading ds must raise #GP
    trap_begin .after\@
    mov eax, \selector
    mov ds, ax
.after\@:
    trap_check TRAP_gp_fault, "\what"
.endm

.macro must_be_negative what                    # any error will do
    .data
.what\@: .asciz "\what"
    .text
    lea rdi, [rip + .what\@]
    mov rsi, rax
    call expect_negative
.endm

.macro status_negative field, what              # the call itself succeeds, the operation's status tells
    must_succeed "\what"
    movsx rax, word ptr [rip + \field]
    must_be_negative "\what"
.endm

.include "intruder.inc"

.text
_start:
    kernel_entry
    print "intruder: trying every door\n"
    call traps_init
    call memory
    call privilege
    call descriptors
    call pointers
    call numbers
    call authority
    succeed

# === 1 Memory =================================================================================================
memory:
    # Xen's own addresses, directly
    trap_begin .read_hole
    mov rax, HYPERVISOR_HOLE
    mov rax, [rax]
.read_hole:
    trap_check TRAP_page_fault, "reading Xen's memory"
    trap_begin .write_hole
    mov rax, HYPERVISOR_HOLE
    mov [rax], rax
.write_hole:
    trap_check TRAP_page_fault, "writing Xen's memory"
    trap_begin .jump_hole
    mov rax, HYPERVISOR_HOLE
    jmp rax
.jump_hole:
    trap_check TRAP_page_fault, "jumping into Xen's memory"
    trap_begin .write_m2p
    mov rax, MACH2PHYS_VIRT_START
    mov qword ptr [rax], 0
.write_m2p:
    trap_check TRAP_page_fault, "writing the M2P table"

    # Our own page tables, directly: they are mapped, but read-only
    lea rdi, [rip + victim]
    mov esi, 1
    call find_table
    mov rbx, rax
    trap_begin .write_l1
    mov qword ptr [rbx], 0
.write_l1:
    trap_check TRAP_page_fault, "writing our own L1"
    cmp qword ptr [rip + trapped_error], PFEC_P | PFEC_W
    check e, "the fault was not a write to a present page"
    mov rbx, [rip + start_info]
    mov rbx, [rbx + START_INFO_pt_base]
    trap_begin .write_l4
    mov qword ptr [rbx + 8], 0
.write_l4:
    trap_check TRAP_page_fault, "writing our own L4"

    # ... or through the back door: make them writable, or have Xen write them
    mov rdi, rbx
    mov esi, READ_WRITE
    call remap
    must_refuse EBUSY, "mapping our L4 writable"
    mov rdi, rbx
    call va_to_mfn
    mov edi, 16                                 # MMUEXT_CLEAR_PAGE
    mov rsi, rax
    call mmuext
    must_refuse EINVAL, "clearing our L4 with clear_page"
    mov rdi, rbx
    call frame_of
    mov rdi, rax
    xor esi, esi
    hypercall update_descriptor
    must_refuse EINVAL, "writing our L4 with update_descriptor"
    mov rdi, rbx
    mov esi, 261                                # one of Xen's L4 slots
    call entry_address
    mov rdi, rax
    mov esi, READ_WRITE
    call set_entry
    must_refuse EINVAL, "changing one of Xen's L4 slots"
    lea rdi, [rip + victim]                     # an ordinary page as top table: it is writable, and empty
    call va_to_mfn
    mov edi, MMUEXT_NEW_BASEPTR
    mov rsi, rax
    call mmuext
    must_refuse EINVAL, "a writable page as kernel page table"
    lea rdi, [rip + victim]
    call va_to_mfn
    mov edi, MMUEXT_NEW_USER_BASEPTR
    mov rsi, rax
    call mmuext
    must_refuse EINVAL, "a writable page as user page table"
    mov rdi, HYPERVISOR_HOLE
    xor esi, esi
    call update_mapping
    must_refuse EINVAL, "unmapping one of Xen's addresses"
    mov rdi, MACH2PHYS_VIRT_START
    xor esi, esi
    call update_mapping
    must_refuse EINVAL, "unmapping the M2P table"

    # Frames of somebody else: every one that we can name, writable and read-only
    call find_grant_frame
    call max_mfn
    mov r12, rax
    xor ebx, ebx                                # rbx = frame
    xor ebp, ebp                                # rbp = how many were refused
.sweep:
    mov rdi, rbx
    call is_ours
    test eax, eax
    jnz .next_frame
    mov rsi, rbx
    shl rsi, PAGE_SHIFT
    or rsi, READ_WRITE
    lea rdi, [rip + victim]
    call update_mapping
    test rax, rax
    check s, "a foreign frame was mapped writable"
    mov rsi, rbx
    shl rsi, PAGE_SHIFT
    or rsi, READ_ONLY
    lea rdi, [rip + victim]
    call update_mapping
    test rax, rax
    check s, "a foreign frame was mapped read-only"
    inc ebp
    cmp ebp, SWEEP
    jae .swept
.next_frame:
    inc rbx
    cmp rbx, r12
    jbe .sweep
.swept:
    print "refused: mapping "
    print_dec rbp
    print " frames of others\n"
    call find_foreign_frame
    mov rbx, rax
    cmp rbx, -1
    je .alone
    mov edi, MMUEXT_PIN_L4_TABLE
    mov rsi, rbx
    call mmuext
    must_refuse EINVAL, "pinning a frame of others as L4"
    mov edi, MMUEXT_NEW_BASEPTR
    mov rsi, rbx
    call mmuext
    must_be_negative "a frame of others as kernel page table"
    mov rdi, rbx
    shl rdi, PAGE_SHIFT
    xor esi, esi
    call set_entry
    must_be_negative "writing a frame of others with mmu_update"
    mov rdi, rbx
    shl rdi, PAGE_SHIFT
    xor esi, esi
    hypercall update_descriptor
    must_refuse EINVAL, "writing a frame of others with update_descriptor"
    mov rdi, rbx
    shl rdi, PAGE_SHIFT
    or rdi, 1                                   # MMU_MACHPHYS_UPDATE
    xor esi, esi
    call set_entry
    must_refuse EINVAL, "changing the M2P entry of a frame of others"
    mov [rip + frame_list], rbx
    call one_frame_reservation
    mov edi, XENMEM_decrease_reservation        # returns how many it freed
    lea rsi, [rip + reservation]
    hypercall memory_op
    must_refuse 0, "giving away a frame of others"
.alone:
    ret

# === 2 Privilege ==============================================================================================
privilege:
    # The iret hypercall with a flat code selector of RPL 0: Xen raises the RPL. We also ask for IOPL 3.
    mov rbp, rsp
    push FLAT_RING3_SS64
    push rbp
    push 0x3002                                 # IOPL 3, events masked
    push FLAT_RING3_CS64 & ~3
    lea rax, [rip + .in_ring_3]
    push rax
    push 0
    push 0
    push 0
    push 0
    hypercall iret
.in_ring_3:
    mov eax, cs
    and eax, 3
    cmp eax, 3
    check e, "the iret hypercall let us out of ring 3"
    pushfq
    pop rax
    test eax, 0x3000
    check z, "the iret hypercall gave us IOPL 3"
    print "refused: a lower ring and IOPL 3 from the iret hypercall\n"

    # With Xen's own selectors it must fault, at the target
    trap_begin .iret_cs
    push FLAT_RING3_SS64
    push rsp
    push 2
    push XEN_RING0_CS64
    lea rax, [rip + .iret_cs]
    push rax
    push 0
    push 0
    push 0
    push 0
    hypercall iret
.iret_cs:
    trap_check TRAP_gp_fault, "iret hypercall to Xen's code segment"
    trap_begin .iret_ss
    push XEN_RING0_DS
    push rsp
    push 2
    push FLAT_RING3_CS64 & ~3
    lea rax, [rip + .iret_ss]
    push rax
    push 0
    push 0
    push 0
    push 0
    hypercall iret
.iret_ss:
    trap_check TRAP_gp_fault, "iret hypercall with Xen's stack segment"

    # The processor's own IRETQ and RETF
    trap_begin .iretq_rpl0
    mov rbp, rsp
    push FLAT_RING3_SS64 & ~3
    push rbp
    push 2
    push FLAT_RING3_CS64 & ~3
    lea rax, [rip + .iretq_rpl0]
    push rax
    iretq
.iretq_rpl0:
    trap_check TRAP_gp_fault, "iretq to ring 0"
    trap_begin .iretq_xen
    mov rbp, rsp
    push XEN_RING0_DS
    push rbp
    push 2
    push XEN_RING0_CS64
    lea rax, [rip + .iretq_xen]
    push rax
    iretq
.iretq_xen:
    trap_check TRAP_gp_fault, "iretq to Xen's code segment"
    trap_begin .retf_xen
    push XEN_RING0_CS64
    lea rax, [rip + .retf_xen]
    push rax
    retfq
.retf_xen:
    trap_check TRAP_gp_fault, "retf to Xen's code segment"
    try_selector XEN_RING0_DS, "loading Xen's data segment"
    trap_begin .load_ss
    mov eax, XEN_RING0_DS
    mov ss, ax
.load_ss:
    trap_check TRAP_gp_fault, "loading Xen's data segment into ss"

    # INT n through a gate that we did not open
    trap_begin .int_30
    int 0x30
.int_30:
    trap_check TRAP_gp_fault, "int 0x30"
    cmp qword ptr [rip + trapped_error], 0x30 << 3 | 2
    check e, "the error code does not name the gate"

    # Privileged instructions. Some are Xen's to emulate, but not with these operands
    try_instruction cli
    try_instruction sti
    try_instruction hlt
    try_instruction invd
    try_instruction swapgs
    try_instruction sysret
    try_instruction lgdt [rip + descriptor_table]
    try_instruction lidt [rip + descriptor_table]
    xor eax, eax
    try_instruction lldt ax
    try_instruction ltr ax
    try_instruction lmsw ax
    try_instruction invlpg [rip + victim]
    xor eax, eax
    try_instruction "mov cr0, rax"
    lea rdi, [rip + victim]                     # Xen emulates this one, but a writable page is no page table
    call frame_of
    try_instruction "mov cr3, rax"
    try_instruction "mov cr8, rax"
    try_instruction "in al, 0x80"
    try_instruction "out 0x80, al"
    mov edx, 0xcf8
    try_instruction "out dx, eax"

    # Model-specific registers
    mov ecx, MSR_LSTAR
    try_instruction rdmsr
    lea rax, [rip + privilege]
    xor edx, edx
    mov ecx, MSR_LSTAR
    try_instruction wrmsr
    mov ecx, MSR_STAR
    try_instruction wrmsr
    mov ecx, MSR_EFER
    xor eax, eax
    try_instruction wrmsr
    mov ecx, 0x1b                               # APIC_BASE
    try_instruction wrmsr

    # Debug registers: breakpoints inside Xen, or on Xen's use of them
    xor edi, edi
    mov rsi, HYPERVISOR_HOLE
    hypercall set_debugreg
    must_refuse EPERM, "a breakpoint in Xen's memory"
    mov edi, 7
    mov esi, 1 << 13                            # DR7.GD: fault on each access to a debug register
    hypercall set_debugreg
    must_refuse EPERM, "DR7.GD"
    ret

# === 3 Descriptors ============================================================================================
descriptors:
    lea rdi, [rip + gdt_page]
    call frame_of
    mov rbx, rax                                # rbx = machine address of our would-be GDT
    mov rdi, rbx
    mov rsi, 0x0000890000000067                 # a present TSS
    hypercall update_descriptor
    must_refuse EINVAL, "a TSS descriptor"
    mov rdi, rbx
    mov rsi, 0x00008e0000081000                 # a 64-bit interrupt gate
    hypercall update_descriptor
    must_refuse EINVAL, "an interrupt gate"
    mov rdi, rbx
    mov rsi, 0x0000ec00e0081000                 # a call gate to selector 0xe008
    hypercall update_descriptor
    must_refuse EINVAL, "a call gate into Xen's code segment"
    lea rdi, [rbx + 4]
    xor esi, esi
    hypercall update_descriptor
    must_refuse EINVAL, "a descriptor across two entries"

    # A ring-0 code segment is not refused: Xen raises its DPL to 3 on the way
    lea rdi, [rbx + 8]
    mov rsi, 0x00af9b000000ffff
    hypercall update_descriptor
    must_succeed "update_descriptor of a code segment"
    mov rax, [rip + gdt_page + 8]
    shr rax, 45
    and eax, 3
    cmp eax, 3
    check e, "a descriptor of ring 0 got into our memory"
    print "refused: DPL 0 for a code segment (it became 3)\n"

    # A whole GDT: not while it is writable, and not with a gate in it
    shr rbx, PAGE_SHIFT
    mov [rip + frame_list], rbx
    lea rdi, [rip + frame_list]
    mov esi, 16
    hypercall set_gdt
    must_refuse EINVAL, "a GDT that we can write"
    mov rax, 0x00008e0000081000
    mov [rip + gdt_page + 16], rax
    lea rdi, [rip + gdt_page]
    mov esi, READ_ONLY
    call remap
    must_succeed "mapping the GDT read-only"
    lea rdi, [rip + frame_list]
    mov esi, 16
    hypercall set_gdt
    must_refuse EINVAL, "a GDT with an interrupt gate"
    lea rdi, [rip + frame_list]
    mov esi, 7169
    hypercall set_gdt
    must_refuse EINVAL, "a GDT that reaches into Xen's entries"
    mov dword ptr [rip + mmuext_list + MMUEXT_OP_cmd], 13   # MMUEXT_SET_LDT
    mov rax, HYPERVISOR_HOLE
    mov [rip + mmuext_list + MMUEXT_OP_arg1], rax
    mov dword ptr [rip + mmuext_list + 16], 1
    lea rdi, [rip + mmuext_list]
    mov esi, 1
    xor edx, edx
    mov r10d, DOMID_SELF
    hypercall mmuext_op
    must_refuse EINVAL, "an LDT in Xen's memory"
    ret

# === Helpers ==================================================================================================
expect_negative:                                # rdi = what was tried, rsi = the result
    test rsi, rsi
    js .refused
    print "FAILURE: "
    call puts
    print ": succeeded\n"
    jmp poweroff
.refused:
    print "refused: "
    call puts
    print "\n"
    ret

one_frame_reservation:                          # `reservation` = the one frame in frame_list
    lea rax, [rip + frame_list]
    mov [rip + reservation], rax
    mov qword ptr [rip + reservation + 8], 1
    mov qword ptr [rip + reservation + 16], 0
    mov word ptr [rip + reservation + 24], DOMID_SELF
    ret

.data
.balign 8
descriptor_table:                               # for LGDT and LIDT: u16 limit, u64 base
    .short 0xffff
    .quad 0
.balign 8
frame_list:     .quad 0
reservation:    .quad 0, 0, 0, 0                # list, u64 how many, u32 order, u32 flags, u16 domid

.bss
.balign PAGE_SIZE
victim:         .zero PAGE_SIZE
gdt_page:       .zero PAGE_SIZE
