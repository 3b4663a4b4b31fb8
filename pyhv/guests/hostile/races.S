# SPDX-License-Identifier: GPL-2.0-only
#
# races - changes what is being checked: another vcpu keeps writing to a page that becomes a table, a GDT, nobody's
#
# Class: writable mappings between check and use
# History: XSA-155, XSA-299, XSA-401
# Refused: from the moment a frame is approved no vcpu can write it any more, whatever its TLB remembers; what a hypercall
#   has read once it does not read again. Needs two vcpus to be worth its name (--vcpus 2).

.include "hostile.inc"

.set CONTEXT_SIZE, 5168
.set C_flags, 512
.set C_rip, 648
.set C_cs, 656
.set C_rflags, 664
.set C_rsp, 672
.set C_ss, 680
.set C_page_fault, 720 + 14 * 16
.set C_kernel_table, 5008
.set VGCF_in_kernel, 4
.set ROUNDS, 50


.text
_start:
    hostile_entry "races"
    lea rdi, [rip + context_page]
    xor eax, eax
    mov ecx, CONTEXT_SIZE / 8
    rep stosq
    mov dword ptr [rip + context_page + C_flags], VGCF_in_kernel
    lea rax, [rip + second]
    mov [rip + context_page + C_rip], rax
    lea rax, [rip + second_stack_top]
    mov [rip + context_page + C_rsp], rax
    mov word ptr [rip + context_page + C_cs], FLAT_RING3_CS64
    mov word ptr [rip + context_page + C_ss], FLAT_RING3_SS64
    mov qword ptr [rip + context_page + C_rflags], 2
    mov byte ptr [rip + context_page + C_page_fault], 14
    mov byte ptr [rip + context_page + C_page_fault + 1], TRAP_MASK_EVENTS
    lea rax, [rip + second_faults]
    mov [rip + context_page + C_page_fault + 8], rax
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    call frame_of
    mov [rip + context_page + C_kernel_table], rax
    xor edi, edi                                # VCPUOP_initialise
    mov esi, 1
    mov edx, context_page
    hypercall vcpu_op
    cmp rax, -ENOENT
    jne .two
    print "one vcpu: nobody to race with\n"
    jmp .alone
.two:
    must_succeed "initialising the second vcpu"
    mov edi, VCPUOP_up
    mov esi, 1
    xor edx, edx
    hypercall vcpu_op
    must_succeed "starting it"

    mov r12d, ROUNDS
.round:
    call wait_for_it
    mov rax, [rip + target]
    cmp rax, [rip + pattern]
    must e, "the other vcpu does not write"

    # A table: narrow without a flush, pin, and see whether it writes
    call narrow
    mov qword ptr [rip + quiet], 1              # from now on a store is a break-in
    call stop_writing
    call clear_target
    call start_writing
    lea rdi, [rip + target]
    call va_to_mfn
    mov rsi, rax
    mov edi, MMUEXT_PIN_L1_TABLE
    call mmuext
    must_succeed "pinning the target"
    call wait_for_it
    mov rax, [rip + target]
    cmp rax, 0
    must e, "another vcpu wrote a page table"
    cmp qword ptr [rip + hypercall_wrote], 0
    must e, "a hypercall of another vcpu wrote a page table"
    inc qword ptr [rip + attacks]
    lea rdi, [rip + target]
    call va_to_mfn
    mov rsi, rax
    mov edi, MMUEXT_UNPIN_TABLE
    call mmuext
    must_succeed "unpinning the target"

    # A GDT
    lea rdi, [rip + target]
    call va_to_mfn
    mov [rip + list], rax
    mov edi, list
    mov esi, 512
    hypercall set_gdt
    must_succeed "the target as GDT"
    call wait_for_it
    cmp qword ptr [rip + target], 0
    must e, "another vcpu wrote a GDT"
    inc qword ptr [rip + attacks]
    xor edi, edi
    xor esi, esi
    hypercall set_gdt
    must_succeed "no GDT"
    mov qword ptr [rip + quiet], 0
    mov qword ptr [rip + hypercall_wrote], 0
    writable target
    dec r12d
    jnz .round
    print "refused: fifty races for a table and for a GDT\n"

    # Nobody's: unmapped without a flush and given back
    lea rdi, [rip + target]
    call va_to_mfn
    mov [rip + list], rax
    lea rdi, [rip + target]
    xor esi, esi
    mov edx, UVMF_NONE
    hypercall update_va_mapping
    must_succeed "unmapping the target"
    attack "giving back what another vcpu writes", 1, memory_op, XENMEM_decrease_reservation, reservation, 0, 0
    mov qword ptr [rip + faulted], 0
    call wait_for_it
    cmp qword ptr [rip + faulted], 0
    must ne, "another vcpu wrote a frame that was given back"
    mov edi, 2                                  # VCPUOP_down
    mov esi, 1
    xor edx, edx
    hypercall vcpu_op
    must_succeed "stopping it"

.alone:
    # One vcpu is enough where a list changes what its later entries read
    attack "a list that moves the ground under its pointers", 0, multicall, moving, 3, 0, 0
    equal "its second call, whose pointer has gone", [rip + moving + 72], -EFAULT
    equal "its third call", [rip + moving + 136], -EFAULT
    writable ground
    lea rdi, [rip + ground]                     # requests that turn their own page read-only, then into a table
    mov esi, 1
    call find_table
    mov rdi, rax
    lea rsi, [rip + ground]
    shr rsi, PAGE_SHIFT
    and esi, 511
    call entry_address
    mov rbx, rax                                # rbx = the entry that maps `ground`
    lea rdi, [rip + ground]
    call frame_of
    mov rbp, rax
    mov [rip + ground], rbx                     # 1: ground read-only
    lea rax, [rbp + READ_ONLY]
    mov [rip + ground + 8], rax
    mov [rip + ground + 16], rbx                # 2: ground nowhere
    mov qword ptr [rip + ground + 24], 0
    mov [rip + ground + 32], rbx                # 3: cannot be read any more
    lea rax, [rbp + READ_WRITE]
    mov [rip + ground + 40], rax
    attack "requests that unmap their own page", -EFAULT, mmu_update, ground, 3, done, DOMID_SELF
    mov eax, [rip + done]
    equal "two of them were done", rax, 2
    mov edi, 6                                  # MMUEXT_TLB_FLUSH_LOCAL: mmu_update leaves that to us
    call mmuext
    faults "the page is gone", TRAP_page_fault, "mov rax, [rip + ground]"
    writable ground
    mov [rip + ground], rbx                     # the number of what was done, into the page that the list unmaps
    mov qword ptr [rip + ground + 8], 0
    lea rdi, [rip + ground]
    mov esi, 1
    lea rdx, [rip + ground + 128]
    mov r10d, DOMID_SELF
    hypercall mmu_update
    mov edi, 6
    call mmuext
    faults "a list that unmaps the place of its own count", TRAP_page_fault, "mov rax, [rip + ground]"
    writable ground
    equal "which was not written", [rip + ground + 128], 0
    hostile_end

narrow:
    lea rdi, [rip + target]
    call frame_of
    lea rsi, [rax + READ_ONLY]
    lea rdi, [rip + target]
    mov edx, UVMF_NONE
    hypercall update_va_mapping
    must_succeed "narrowing the target"
    ret

stop_writing:                                   # let the other vcpu spin without storing
    mov qword ptr [rip + pause], 1
    jmp wait_for_it
start_writing:
    mov qword ptr [rip + pause], 0
    ret
clear_target:                                   # through the hypervisor: we cannot write it either
    lea rdi, [rip + target]
    call va_to_mfn
    mov rsi, rax
    mov edi, 16                                 # MMUEXT_CLEAR_PAGE
    call mmuext
    must_succeed "clearing the target"
    ret

wait_for_it:                                    # until the other vcpu has gone round three times
    push rbx
    push rbp
    mov rbx, [rip + rounds]
    add rbx, 3
    mov ebp, 100000
.again:
    mov edi, SCHEDOP_yield
    xor esi, esi
    hypercall sched_op
    cmp [rip + rounds], rbx
    jae .done
    dec ebp
    jnz .again
    fail "the other vcpu does not run"
.done:
    pop rbp
    pop rbx
    ret

second:                                         # the other vcpu: store, and have Xen store, without end
    mov rbx, [rip + pattern]
second_again:
    inc qword ptr [rip + rounds]
    cmp qword ptr [rip + pause], 1
    je second_yields
    lea rcx, [rip + target]
    mov [rcx], rbx
second_goes_on:
    mov r12, [rip + quiet]                      # as it was before the call
    mov edi, XENVER_capabilities
    lea rsi, [rip + target + 1024]
    hypercall xen_version
    test rax, rax
    js second_yields
    cmp r12, 1
    jne second_yields
    inc qword ptr [rip + hypercall_wrote]
second_yields:
    mov edi, SCHEDOP_yield
    xor esi, esi
    hypercall sched_op
    jmp second_again

second_faults:                                  # the store faulted: go on behind it
    inc qword ptr [rip + faulted]
    add rsp, 24                                 # rcx, r11, error code
    lea rax, [rip + second_goes_on]
    mov [rsp], rax
    push 0                                      # flags, rcx, r11, rax
    push 0
    push 0
    push 0
    hypercall iret
    ud2

.data
.balign 8
pattern:        .quad 0x4141414141414140        # not present, should it ever be an entry
rounds:         .quad 0
pause:          .quad 0
quiet:          .quad 0
faulted:        .quad 0
hypercall_wrote: .quad 0
done:           .quad 0
list:           .quad 0
reservation:    .quad list, 1, 0, DOMID_SELF
moving:
    .quad __HYPERVISOR_update_va_mapping, -1, ground, 0, UVMF_NONE, 0, 0, 0
    .quad __HYPERVISOR_xen_version, -1, XENVER_extraversion, ground, 0, 0, 0, 0
    .quad __HYPERVISOR_mmu_update, -1, ground, 1, 0, DOMID_SELF, 0, 0

.bss
.balign PAGE_SIZE
context_page:   .zero 2 * PAGE_SIZE
target:         .zero PAGE_SIZE
ground:         .zero PAGE_SIZE
second_stack:   .zero PAGE_SIZE
second_stack_top:
