# SPDX-License-Identifier: GPL-2.0-only
#
# edges - goes to the ends of the address space: returns, calls and callbacks to addresses that are not canonical
#
# Class: non-canonical addresses and segment bases
# History: XSA-7, XSA-9, XSA-136, XSA-193, XSA-215
# Refused: a return or a system call that ends at an address which is not canonical is the guest's fault, in the guest's
#   context; callbacks, handlers and segment bases there are refused when they are registered; user mode has no way into
#   the hypervisor's space by any segment base.

.include "hostile.inc"
.include "user.inc"

.set LAST_SLOT, 255
.set EDGE, 0x00007ffffffff000                   # the last page of the lower half
.set __HYPERVISOR_set_callbacks, 4
.set __HYPERVISOR_nmi_op, 28
.set MSR_FS_BASE, 0xc0000100
.set MSR_GS_BASE, 0xc0000101
.set MSR_KERNEL_GS_BASE, 0xc0000102

.macro return_to what, vector, address          # by the iret hypercall, into kernel and user mode; by IRETQ and RET
    mov r15, \address
    faults "\what, iret into the kernel", \vector, "call iret_to_kernel"
    faults "\what, iret into user mode", \vector, "call go_to_user"
    faults "\what, RET", \vector, "call ret_to"
    faults "\what, JMP", \vector, "jmp r15"
.endm

.macro callback what, answer, type, address
    mov word ptr [rip + callback_request], \type
    mov rax, \address
    mov [rip + callback_request + 8], rax
    attack "\what", \answer, callback_op, CALLBACKOP_register, callback_request, 0, 0
.endm

.macro handler what, answer, address
    mov rax, \address
    mov [rip + trap_request + 8], rax
    attack "\what", \answer, set_trap_table, trap_request, 0, 0, 0
.endm

.text
_start:
    hostile_entry "edges"
    # The last page of the lower half, with a SYSCALL as its last two bytes
    mov byte ptr [rip + edge + 4094], 0x0f
    mov byte ptr [rip + edge + 4095], 0x05
    mov byte ptr [rip + edge + 4093], 0x90
    link l1, 511, edge, READ_WRITE
    pin 1, l1
    link l2, 511, l1, TABLE
    pin 2, l2
    link l3, 511, l2, TABLE
    pin 3, l3
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    mov esi, LAST_SLOT
    call entry_address
    mov rbx, rax
    lea rdi, [rip + l3]
    call frame_of
    lea rsi, [rax + TABLE]
    mov rdi, rbx
    call set_entry
    must_succeed "a table in slot 255"
    call user_init

    mov r15, EDGE + 4094
    mov r14d, __HYPERVISOR_xen_version
    xor edi, edi
    xor esi, esi
    faults "a hypercall at the edge", TRAP_gp_fault, "call hypercall_there"
    faults "a hypercall that fails at the edge", TRAP_gp_fault, "call bad_hypercall_there"
    lea r15, [r15 - 1]
    faults "a byte before it", TRAP_gp_fault, "call hypercall_there"
    mov r15, EDGE + 4094
    mov [rip + user_rax], r15
    run_user r15                                # comes back by the system call; returning from it is the next line
    equal "a system call at the edge", [rip + user_rax], 0
    mov r15, LOWER_HALF_END
    faults "returning from it", TRAP_gp_fault, "call go_to_user"

    return_to "the first address that is not canonical", TRAP_gp_fault, LOWER_HALF_END
    return_to "the last one", TRAP_gp_fault, 0xffff7fffffffffff
    return_to "one between", TRAP_gp_fault, NOT_CANONICAL
    return_to "one with only bit 63", TRAP_gp_fault, 0x8000000000000000
    return_to "the M2P", TRAP_page_fault, MACH2PHYS_VIRT_START
    return_to "the hole", TRAP_page_fault, HYPERVISOR_HOLE
    return_to "the hole's last byte", TRAP_page_fault, 0xffff87ffffffffff
    return_to "the last byte of all", TRAP_page_fault, 0xffffffffffffffff

    # Flags that an iret may not set: all of them but TF and IF
    mov rbp, rsp
    push FLAT_RING3_SS64
    push rbp
    mov rax, 0xfffffffffffffcff
    push rax
    push FLAT_RING3_CS64 & ~3
    lea rax, [rip + .flags]
    push rax
    push 0
    push 0
    push 0
    push 0
    hypercall iret
.flags:
    pushfq
    pop r12
    push 2
    popfq
    cld
    mov byte ptr [rip + shared_info + VCPU_INFO_upcall_mask], 1
    mov eax, r12d
    and eax, 0x23000                            # VM and IOPL
    equal "VM and IOPL after an iret with all flags", rax, 0
    mov rax, r12
    shr rax, 22
    equal "reserved flags after it", rax, 0
    mov eax, cs
    and eax, 3
    equal "the ring after it", rax, 3
    push 0x3202
    popfq
    pushfq
    pop rax
    and eax, 0x3000
    equal "IOPL after POPF", rax, 0

    # Registering
    callback "an event callback that is not canonical", -EINVAL, 0, NOT_CANONICAL
    callback "a failsafe callback that is not canonical", -EINVAL, 1, LOWER_HALF_END
    callback "a syscall callback that is not canonical", -EINVAL, 2, 0xffff7fffffffffff
    callback "an NMI callback that is not canonical", -EINVAL, 4, NOT_CANONICAL
    callback "a sysenter callback that is not canonical", -EINVAL, 5, NOT_CANONICAL
    callback "a syscall32 callback that is not canonical", -EINVAL, 7, NOT_CANONICAL
    callback "a callback of type 99", -ENOSYS, 99, _start
    callback "a callback of type 65535", -ENOSYS, 65535, _start
    attack "callback command 99", -ENOSYS, callback_op, 99, callback_request, 0, 0
    handler "a handler that is not canonical", -EINVAL, LOWER_HALF_END
    handler "a handler with only bit 63", -EINVAL, 0x8000000000000000
    attack "bases that are not canonical: FS", -EINVAL, set_segment_base, 0, NOT_CANONICAL, 0, 0
    attack "... GS of user mode", -EINVAL, set_segment_base, 1, NOT_CANONICAL, 0, 0
    attack "... GS of the kernel", -EINVAL, set_segment_base, 2, LOWER_HALF_END, 0, 0
    attack "segment base 4", -EINVAL, set_segment_base, 4, 0, 0, 0
    attack "segment base 2^32-1", -EINVAL, set_segment_base, 0xffffffff, 0, 0, 0
    mov ecx, MSR_FS_BASE
    faults "the MSR of the FS base", TRAP_gp_fault, "call write_wild_msr"
    mov ecx, MSR_GS_BASE
    faults "the MSR of the GS base", TRAP_gp_fault, "call write_wild_msr"
    mov ecx, MSR_KERNEL_GS_BASE
    faults "the MSR of the other GS base", TRAP_gp_fault, "call write_wild_msr"

    # Bases in the hypervisor's space are numbers like others; what they lead to is protected
    attack "the kernel's GS base in the hole", 0, set_segment_base, 2, HYPERVISOR_HOLE, 0, 0
    faults "reading there", TRAP_page_fault, "mov rax, gs:[0]"
    faults "writing there", TRAP_page_fault, "mov gs:[0], rax"
    attack "the kernel's GS base in the M2P", 0, set_segment_base, 2, MACH2PHYS_VIRT_START, 0, 0
    faults "writing there", TRAP_page_fault, "mov gs:[8], rax"
    attack "the user's GS base in the M2P", 0, set_segment_base, 1, MACH2PHYS_VIRT_START, 0, 0
    user_faults "user mode reads the M2P by GS", TRAP_page_fault, user_reads_gs
    attack "the user's GS base in the descriptor windows", 0, set_segment_base, 1, 0xffff820000000000, 0, 0
    user_faults "user mode reads the GDT by GS", TRAP_page_fault, user_reads_gs
    attack "the user's GS base just below the M2P", 0, set_segment_base, 1, EDGE, 0, 0
    user_faults "user mode runs over the edge by GS", TRAP_gp_fault, user_reads_gs_far
    attack "the FS base in the hole", 0, set_segment_base, 0, HYPERVISOR_HOLE, 0, 0
    user_faults "user mode writes there", TRAP_page_fault, user_writes_fs
    user_faults "user mode reads the M2P", TRAP_page_fault, user_reads_m2p
    user_faults "user mode reads another hole of the hypervisor", TRAP_page_fault, user_reads_hole
    attack "no base again", 0, set_segment_base, 0, 0, 0, 0
    hostile_end

hypercall_there:                                # r15 = where, r14 = number
    mov eax, r14d
    xor edi, edi
    jmp r15
bad_hypercall_there:
    mov eax, 63
    jmp r15
ret_to:
    push r15
    ret
iret_to_kernel:
    push FLAT_RING3_SS64
    push rsp
    push 2
    push FLAT_RING3_CS64 & ~3
    push r15
    push 0
    push 0
    push 0
    push 0
    hypercall iret
    ud2
write_wild_msr:
    xor eax, eax
    mov edx, 0x9000
    wrmsr
    ret
user_reads_gs:
    mov rax, gs:[8]
    ud2
user_reads_gs_far:
    mov rax, gs:[4096]
    ud2
user_writes_fs:
    mov fs:[8], rax
    ud2
user_reads_m2p:
    mov rax, MACH2PHYS_VIRT_START
    mov rax, [rax + 8]
    ud2
user_reads_hole:
    mov rax, HYPERVISOR_HOLE
    mov rax, [rax]
    ud2

.data
.balign 8
callback_request: .quad 0, 0
trap_request:   .byte 3, 0
                .short FLAT_RING3_CS64
                .long 0
                .quad 0
                .quad 0, 0

.bss
.balign PAGE_SIZE
l1:             .zero PAGE_SIZE
l2:             .zero PAGE_SIZE
l3:             .zero PAGE_SIZE
edge:           .zero PAGE_SIZE
