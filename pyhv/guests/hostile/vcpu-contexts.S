# SPDX-License-Identifier: GPL-2.0-only
#
# vcpu-contexts - brings up a second vcpu with contexts that would give it another ring, other tables, other stacks
#
# Class: vcpu contexts and registered areas
# History: XSA-296, XSA-327
# Refused: base pointers, descriptor tables, callbacks and bases of a context are judged as those of a running vcpu, and a
#   refused context leaves nothing behind; selectors and flags are made ring 3's; a vcpu_info page stays a writable page
#   for ever, and no area is written through where the guest could not write.

.include "hostile.inc"

.set CONTEXT_SIZE, 5168
.set C_flags, 512
.set C_rip, 648
.set C_cs, 656
.set C_rflags, 664
.set C_rsp, 672
.set C_ss, 680
.set C_traps, 720
.set C_ldt_base, 4816
.set C_ldt_ents, 4824
.set C_gdt_frames, 4832
.set C_gdt_ents, 4960
.set C_kernel_ss, 4968
.set C_kernel_sp, 4976
.set C_user_table, 4992
.set C_kernel_table, 5008
.set C_dr7, 5104
.set C_event, 5112
.set C_failsafe, 5120
.set C_syscall, 5128
.set C_fs_base, 5144
.set C_gs_base_kernel, 5152
.set C_gs_base_user, 5160
.set VGCF_in_kernel, 4
.set VCPUOP_initialise, 0
.set VCPUOP_down, 2
.set VCPUOP_is_up, 3
.set VCPUOP_register_vcpu_info, 10

.macro context what, field, value               # a good context but for one field
    call good_context
    mov rax, \value
    mov [rip + context_page + \field], rax
    attack "\what", -EINVAL, vcpu_op, VCPUOP_initialise, 1, context_page, 0
.endm

.macro vcpu_info what, answer, frame, offset
    mov rax, \frame
    mov [rip + info_arg], rax
    mov dword ptr [rip + info_arg + 8], \offset
    attack "\what", \answer, vcpu_op, VCPUOP_register_vcpu_info, 0, info_arg, 0
.endm

.text
_start:
    hostile_entry "vcpu-contexts"
    readonly table
    call good_context
    attack "vcpu 2^32-1", -ENOENT, vcpu_op, VCPUOP_initialise, 0xffffffff, context_page, 0
    attack "vcpu 64", -ENOENT, vcpu_op, VCPUOP_initialise, 64, context_page, 0
    attack "vcpu 0, which runs", -EEXIST, vcpu_op, VCPUOP_initialise, 0, context_page, 0
    attack "the timer of vcpu 64", -ENOENT, vcpu_op, VCPUOP_stop_periodic_timer, 64, 0, 0
    attack "command 99", -ENOSYS, vcpu_op, 99, 0, 0, 0
    mov edi, VCPUOP_is_up
    mov esi, 1
    xor edx, edx
    hypercall vcpu_op
    cmp rax, -ENOENT
    je .alone                                   # one vcpu is all we have
    attack "a vcpu that has no context", -EINVAL, vcpu_op, VCPUOP_up, 1, 0, 0

    context "rip that is not canonical", C_rip, NOT_CANONICAL
    context "an event callback that is not canonical", C_event, LOWER_HALF_END
    context "a failsafe callback that is not canonical", C_failsafe, NOT_CANONICAL
    context "a syscall callback that is not canonical", C_syscall, 0xffff7fffffffffff
    context "a handler that is not canonical", C_traps + 8, NOT_CANONICAL
    context "the last handler not canonical", C_traps + 255 * 16 + 8, NOT_CANONICAL
    context "an FS base that is not canonical", C_fs_base, NOT_CANONICAL
    context "a GS base that is not canonical", C_gs_base_kernel, NOT_CANONICAL
    context "a user GS base that is not canonical", C_gs_base_user, NOT_CANONICAL
    context "no page table", C_kernel_table, 0
    context "frame 1, the hypervisor's, as page table", C_kernel_table, 1 << 12
    context "a page table beyond the machine", C_kernel_table, 1 << 50
    context "page table 2^64-1", C_kernel_table, -1
    lea rdi, [rip + plain]
    call frame_of
    mov rbx, rax
    context "a writable page as page table", C_kernel_table, rbx
    context "a writable page as user page table", C_user_table, rbx
    mov rcx, rbx
    shr rcx, PAGE_SHIFT
    mov rbx, rcx
    call good_context
    mov qword ptr [rip + context_page + C_gdt_ents], 512
    mov [rip + context_page + C_gdt_frames], rbx
    attack "a writable page as GDT", -EINVAL, vcpu_op, VCPUOP_initialise, 1, context_page, 0
    call good_context
    lea rdi, [rip + table]
    call va_to_mfn
    mov [rip + context_page + C_gdt_frames], rax
    mov [rip + context_page + C_gdt_frames + 8], rbx
    mov qword ptr [rip + context_page + C_gdt_ents], 1024
    attack "a GDT whose second page is writable", -EINVAL, vcpu_op, VCPUOP_initialise, 1, context_page, 0
    context "a GDT of 7169 entries", C_gdt_ents, 7169
    context "a GDT of 2^64-1 entries", C_gdt_ents, -1
    context "an LDT of 8193 entries", C_ldt_ents, 8193
    context "user mode without a user table", C_flags, 0
    call good_context
    mov qword ptr [rip + context_page + C_ldt_ents], 512
    mov rax, HYPERVISOR_HOLE
    mov [rip + context_page + C_ldt_base], rax
    attack "an LDT in the hypervisor's space", -EINVAL, vcpu_op, VCPUOP_initialise, 1, context_page, 0
    try_map "none of that has kept a page", 0, table, READ_WRITE
    try_map "nor another", 0, plain, READ_WRITE
    attack "the vcpu still has no context", -EINVAL, vcpu_op, VCPUOP_up, 1, 0, 0
    attack "a context in the hypervisor's space", -EFAULT, vcpu_op, VCPUOP_initialise, 1, HYPERVISOR_HOLE, 0
    attack "a context that ends in no page", -EFAULT, vcpu_op, VCPUOP_initialise, 1, NOWHERE - 8, 0

    # A context that is let in: all that could be more than ring 3 is taken from it
    call good_context
    mov rax, 0xfffffffffffffcff
    mov [rip + context_page + C_rflags], rax
    mov word ptr [rip + context_page + C_cs], XEN_RING0_CS64
    mov word ptr [rip + context_page + C_ss], XEN_RING0_DS
    mov word ptr [rip + context_page + C_kernel_ss], XEN_RING0_DS
    lea rax, [rip + second_fault]
    mov [rip + context_page + C_traps + 13 * 16 + 8], rax
    attack "a context of ring 0 with all flags", 0, vcpu_op, VCPUOP_initialise, 1, context_page, 0
    attack "a second one", -EEXIST, vcpu_op, VCPUOP_initialise, 1, context_page, 0
    attack "its one-shot timer, from here", -EINVAL, vcpu_op, VCPUOP_set_singleshot_timer, 1, info_arg, 0
    attack "starting it", 0, vcpu_op, VCPUOP_up, 1, 0, 0
    mov ebx, 10000
.wait:
    cmp byte ptr [rip + second_done], 1
    je .ran
    mov edi, SCHEDOP_yield
    xor esi, esi
    hypercall sched_op
    dec ebx
    jnz .wait
    fail "the second vcpu did not run"
.ran:
    equal "the error code of starting in ring 0's code", [rip + second_error], XEN_RING0_CS64
    movzx eax, word ptr [rip + second_cs]
    and eax, 3
    equal "its ring", rax, 3
    movzx eax, word ptr [rip + second_ss]
    and eax, 3
    equal "its stack's ring", rax, 3
    mov rax, [rip + second_flags]
    and eax, 0x23000
    equal "its VM flag and IOPL", rax, 0
    mov rax, [rip + second_first_flags]
    and eax, 0x23000
    equal "the VM flag and IOPL of its first frame", rax, 0
    mov ebx, 1000                               # up and down, again and again
.up_down:
    mov edi, VCPUOP_down
    mov esi, 1
    xor edx, edx
    hypercall vcpu_op
    must_succeed "taking the second vcpu down"
    mov edi, VCPUOP_up
    mov esi, 1
    xor edx, edx
    hypercall vcpu_op
    must_succeed "bringing it up"
    dec ebx
    jnz .up_down

.alone:
    # vcpu_info: a page that the hypervisor writes
    lea rdi, [rip + info_page]
    call va_to_mfn
    mov rbx, rax
    vcpu_info "vcpu_info over the end of its page", -ENXIO, rbx, 4040
    vcpu_info "vcpu_info at offset 2^32-8", -ENXIO, rbx, 0xfffffff8
    vcpu_info "vcpu_info at offset 4", -ENXIO, rbx, 4
    vcpu_info "vcpu_info in frame 0", -EINVAL, 0, 0
    vcpu_info "vcpu_info in the hypervisor's frame", -EINVAL, 1, 0
    vcpu_info "vcpu_info beyond the machine", -EINVAL, 1 << 52, 0
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    call va_to_mfn
    vcpu_info "vcpu_info in our L4", -EINVAL, rax, 0
    vcpu_info "vcpu_info in a page", 0, rbx, 64
    mov dword ptr [rip + info_arg + 8], 128
    mov edi, VCPUOP_register_vcpu_info
    xor esi, esi
    mov edx, info_arg
    hypercall vcpu_op
    negative "vcpu_info in another place"
    readonly info_page
    try_pin "that page as table", -EINVAL, 1, info_page
    mov [rip + list], rbx
    attack "that page as GDT", -EINVAL, set_gdt, list, 512, 0, 0
    attack "giving it back", 1, memory_op, XENMEM_decrease_reservation, reservation, 0, 0
    lea rdi, [rip + info_page]
    xor esi, esi
    call update_mapping
    must_succeed "unmapping it"
    attack "leaving the processor, so that it is written", 0, sched_op, SCHEDOP_yield, 0, 0, 0
    try_pin "that page as table still", -EINVAL, 1, info_page
    hostile_end

good_context:                                   # all registers but rax, rcx, rdi survive
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
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    call frame_of
    mov [rip + context_page + C_kernel_table], rax
    ret

second_fault:                                   # its first selectors cannot be loaded: a general protection fault
    mov rax, [rsp + 16]                         # rcx, r11, error code, rip, cs, rflags
    mov [rip + second_error], rax
    mov rax, [rsp + 40]
    mov [rip + second_first_flags], rax
    lea rsp, [rip + second_stack_top]
second:                                         # the second vcpu
    pushfq
    pop rax
    mov [rip + second_flags], rax
    push 2
    popfq
    cld
    mov ax, cs
    mov [rip + second_cs], ax
    mov ax, ss
    mov [rip + second_ss], ax
    mov byte ptr [rip + second_done], 1
.idle:
    mov edi, SCHEDOP_yield
    xor esi, esi
    hypercall sched_op
    jmp .idle

.data
.balign 8
info_arg:       .quad 0, 0
list:           .quad 0
reservation:    .quad list, 1, 0, DOMID_SELF
second_flags:   .quad 0
second_error:   .quad 0
second_first_flags: .quad 0
second_cs:      .short 0
second_ss:      .short 0
second_done:    .byte 0

.bss
.balign PAGE_SIZE
context_page:   .zero 2 * PAGE_SIZE
plain:          .zero PAGE_SIZE
table:          .zero PAGE_SIZE
info_page:      .zero PAGE_SIZE
second_stack:   .zero PAGE_SIZE
second_stack_top:
