# SPDX-License-Identifier: GPL-2.0-only
#
# traps32 - takes every kind of exception in ring 1 and ring 3 of a 32-bit kernel and checks each frame; then powers off
#
# A 32-bit PV kernel is closer to bare hardware than a 64-bit one: ring 1 and ring 3 are different rings for the
# processor too, segments work, and frames look as the processor's own. This kernel checks
#   - the frames (traps32.inc draws them): where they lie, error code, eip before or after the instruction, selectors,
#     eflags.IF and the saved event mask, esp and ss from ring 3 only;
#   - who may `int n`: the DPL in the trap table, not in an IDT. `int 0x80` goes straight to the kernel;
#   - both ways back: the iret hypercall, which sets the event mask, and the processor's iret, which does not;
#   - what Xen does for the kernel when an instruction is not allowed in ring 1: cli, sti, in, out, mov cr, clts,
#     rdmsr, cpuid behind the forced-emulation prefix; and what it leaves to the kernel as #GP;
#   - segments: a GDT of our own whose pages are not ours to write any more, the LDT, descriptors for ring 0, a call
#     gate, which Xen disarms and then emulates.
#
# Steps: as the headlines below; SUCCESS.

.width 32
.include "xen.inc"
.include "kernel32.inc"
.include "traps32.inc"
.include "paging32.inc"

.set VECTOR_ANYBODY, 35                         # of trap_handlers; these are int 0x20 to 0x22
.set VECTOR_KERNEL, 36
.set VECTOR_NOBODY, 37
.set READ_ONLY, PTE_P | PTE_A
.set USER_RX, PTE_P | PTE_US | PTE_A
.set USER_RW, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D
.set NX_HIGH, 1 << 31                           # of an entry's high half
.set UNMAPPED, 0x3ff000                         # the end of the builder's mapping, which we unmap
.set TF, 0x100
.set OF, 0x800
.set CR0_TS, 8
.set CR0_AS_SEEN, 0x80050033
.set PHYSDEVOP_set_iopl, 6
.set MMUEXT_SET_LDT, 13
.set MSR_EFER, 0xc0000080
.set MSR_FS_BASE, 0xc0000100
.set GDT_CODE1, 0x08                            # of `gdt`
.set GDT_DATA1, 0x10
.set GDT_DATA3, 0x18
.set GDT_TLS, 0x20
.set GDT_ABSENT, 0x28
.set GDT_DPL0, 0x30
.set GDT_GATE, 0x38
.set EFER_LONG, 0x500                           # LME and LMA

# Frames. `taken` is for exceptions of ring 1 in a straight line: eip must be at label `where`, and the frame where the
# processor pushes it, 3 words (or 4) below esp.
.macro taken vector, where, what
    .data
.what\@: .asciz "\what"
    .text
    mov eax, .what\@
    mov edx, \vector
    mov ecx, \where
    call expect_kernel_frame
.endm

.macro taken_error vector, error, where, what
    taken \vector, \where, "\what"
    trap_error \error, "\what"
.endm

.macro from_user vector, where, what            # ring 3, at the label `where` of user_page
    .data
.what\@: .asciz "\what"
    .text
    mov eax, .what\@
    mov edx, \vector
    mov ecx, \where
    call expect_user_frame
.endm

.macro from_user_error vector, error, where, what
    from_user \vector, \where, "\what"
    trap_error \error, "\what"
.endm

.macro enter_user where                         # by the iret hypercall, events unmasked
    mov eax, \where
    call go_to_user
.endm

.macro gp_at where, what                        # #GP(0): the instruction at `where` is not emulated
    taken_error TRAP_gp_fault, 0, \where, "\what"
.endm

.text
    entry_plain VECTOR_ANYBODY
    entry_plain VECTOR_KERNEL
    entry_plain VECTOR_NOBODY

_start:
    kernel_entry
    print "traps32: exceptions of a 32-bit kernel\n"
    call traps_init
    call prepare

    # --- Exceptions in ring 1 ------------------------------------------------------------------------------------
    trap_begin .divided
    xor ecx, ecx
.divide:
    div ecx
.divided:
    taken 0, .divide, "dividing by 0"

    trap_begin .stepped
    pushfd
    or dword ptr [esp], TF
    popfd
    nop                                         # runs, then the trap comes
.after_step:
    nop
.stepped:
    taken 1, .after_step, "a single step"
    test dword ptr [trapped_eflags], TF
    check nz, "the single step's frame does not show TF"
    pushfd
    pop eax
    test eax, TF
    check z, "the handler was entered with TF"

    trap_begin .broke
    int3
.after_int3:
    nop
.broke:
    taken 3, .after_int3, "int3"

    trap_begin .overflowed
    mov al, 0x7f
    add al, 1
    into
.after_into:
    nop
.overflowed:
    taken 4, .after_into, "into"
    test dword ptr [trapped_eflags], OF
    check nz, "the frame of into does not show OF"

    trap_begin .bounded
    mov eax, 5
.bound:
    bound eax, [bounds]
.bounded:
    taken 5, .bound, "bound"

    trap_begin .undefined
.undefine:
    ud2
.undefined:
    taken TRAP_invalid_op, .undefine, "ud2"

    mov ebx, 1
    hypercall fpu_taskswitch
    must_return 0, "fpu_taskswitch(1)"
    mov eax, cr0
    test eax, CR0_TS
    check nz, "cr0 does not show TS"
    trap_begin .no_fpu
.use_fpu:
    fninit
.no_fpu:
    taken 7, .use_fpu, "the FPU with TS set"
    fninit                                      # Xen cleared TS before it told us
    mov eax, cr0
    test eax, CR0_TS
    check z, "TS is still set after the exception"

    trap_begin .selected
    mov eax, 0x1234                             # beyond our GDT, which is empty
.select:
    mov fs, eax
.selected:
    taken_error TRAP_gp_fault, 0x1234, .select, "a selector of an empty descriptor"

    # --- Page faults in ring 1: no U bit -------------------------------------------------------------------------
    trap_begin .read_fault
    mov ebx, UNMAPPED
.read:
    mov eax, [ebx + 8]
.read_fault:
    taken_error TRAP_page_fault, 0, .read, "reading a missing page"
    cmp dword ptr [trapped_cr2], UNMAPPED + 8
    check e, "vcpu_info.cr2 is not the address of the fault"
    mov eax, cr2
    cmp eax, UNMAPPED + 8
    check e, "mov from cr2 does not show the address of the fault"
    trap_begin .write_fault
.write:
    mov [ebx + 12], eax
.write_fault:
    taken_error TRAP_page_fault, PFEC_W, .write, "writing a missing page"
    trap_begin .protect_fault
    mov ebx, data_page
.protect:
    mov dword ptr [ebx], 1
.protect_fault:
    taken_error TRAP_page_fault, PFEC_P | PFEC_W, .protect, "writing a read-only page"
    trap_begin .fetch_fault
    jmp ebx
.fetch_fault:
    taken_error TRAP_page_fault, 0x11, data_page, "executing a page with NX"
    trap_begin .xen_fault
    mov ebx, HYPERVISOR_HOLE
.touch_xen:
    mov eax, [ebx]
.xen_fault:
    taken TRAP_page_fault, .touch_xen, "reading Xen's memory"
    trap_begin .m2p_fault
    mov ebx, MACH2PHYS_VIRT_START
    mov eax, [ebx]                              # allowed
.touch_m2p:
    mov [ebx], eax
.m2p_fault:
    taken_error TRAP_page_fault, PFEC_P | PFEC_W, .touch_m2p, "writing the M2P"

    # --- int n in ring 1 -----------------------------------------------------------------------------------------
    trap_begin .syscall_unset
.early_syscall:
    int 0x80
.syscall_unset:
    taken_error TRAP_gp_fault, 0x402, .early_syscall, "int 0x80 before it has a handler"
    mov ebx, soft_table
    hypercall set_trap_table
    must_return 0, "set_trap_table, more entries"
    trap_begin .int20
    int 0x20
.after_int20:
    nop
.int20:
    taken VECTOR_ANYBODY, .after_int20, "int 0x20, DPL 3"
    trap_begin .int21
    int 0x21
.after_int21:
    nop
.int21:
    taken VECTOR_KERNEL, .after_int21, "int 0x21, DPL 1"
    trap_begin .int22
.do_int22:
    int 0x22
.int22:
    taken_error TRAP_gp_fault, 0x22 << 3 | 2, .do_int22, "int 0x22, DPL 0"
    trap_begin .int40
.do_int40:
    int 0x40
.int40:
    taken_error TRAP_gp_fault, 0x40 << 3 | 2, .do_int40, "int 0x40, no handler"
    trap_begin .int80
    int 0x80
.after_int80:
    nop
.int80:
    taken VECTOR_SYSCALL, .after_int80, "int 0x80, DPL 0"
    trap_begin .int14
.do_int14:
    int 14
.int14:
    taken_error TRAP_gp_fault, 14 << 3 | 2, .do_int14, "int 14, DPL 0"

    # --- The event mask: saved in the frame, set only if the table says so ---------------------------------------
    set_handler VECTOR_EVENT, ignore_event
    set_callback CALLBACKTYPE_event, VECTOR_EVENT
    set_callback CALLBACKTYPE_failsafe, VECTOR_FAILSAFE
    mov ebx, VCPUOP_stop_periodic_timer
    xor ecx, ecx
    xor edx, edx
    hypercall vcpu_op
    must_succeed "stopping the periodic timer"
    trap_begin .leaves_mask
    mov byte ptr [shared_info + VCPU_INFO_upcall_mask], 0
    int 0x20
.after_leaving:
    nop
.leaves_mask:
    taken VECTOR_ANYBODY, .after_leaving, "int 0x20 unmasked"
    mov eax, 0x00000200
    call expect_mask
    cmp byte ptr [trapped_mask], 0
    check e, "an entry without the mask flag masked events"
    trap_begin .sets_mask
    int 0x21
.after_setting:
    nop
.sets_mask:
    taken VECTOR_KERNEL, .after_setting, "int 0x21 unmasked"
    mov eax, 0x00000200
    call expect_mask
    cmp byte ptr [trapped_mask], 1
    check e, "an entry with the mask flag did not mask events"
    trap_begin .was_masked
    mov byte ptr [shared_info + VCPU_INFO_upcall_mask], 1
    int 0x21
.after_masked:
    nop
.was_masked:
    taken VECTOR_KERNEL, .after_masked, "int 0x21 masked"
    mov eax, 0x00010000
    call expect_mask

    # --- Ways back to ring 1 -------------------------------------------------------------------------------------
    mov ebx, esp
    pushfd
    or dword ptr [esp], EFLAGS_IF | 0x3001      # IF, IOPL 3, CF
    push FLAT_RING1_CS
    mov eax, .iret_unmasked
    push eax
    mov eax, 0x1234
    iret_hypercall
.iret_unmasked:
    cmp eax, 0x1234
    check e, "the iret hypercall did not load eax"
    cmp esp, ebx
    check e, "the iret hypercall to ring 1 left another esp"
    cmp byte ptr [shared_info + VCPU_INFO_upcall_mask], 0
    check e, "the iret hypercall did not unmask events"
    pushfd
    pop eax
    test eax, 0x3000
    check z, "the iret hypercall let IOPL pass"
    mov eax, cs
    cmp ax, FLAT_RING1_CS
    check e, "the iret hypercall changed cs"
    push 3                                      # CF; IF is clear
    push FLAT_RING1_CS | 0x10000                # a saved mask in the slot of cs means nothing here
    mov eax, .iret_masked
    push eax
    iret_hypercall
.iret_masked:
    check c, "the iret hypercall did not load the flags"
    cmp byte ptr [shared_info + VCPU_INFO_upcall_mask], 1
    check e, "the iret hypercall did not mask events"
    push EFLAGS_IF | 2
    push FLAT_RING1_CS
    mov eax, .iret_native
    push eax
    iretd
.iret_native:
    check nc, "iret did not load the flags"
    cmp esp, ebx
    check e, "iret left another esp"
    cmp byte ptr [shared_info + VCPU_INFO_upcall_mask], 1
    check e, "the processor's iret unmasked events"
    print "  ring 1: frames, int n, the event mask, iret\n"

    # --- Ring 3 --------------------------------------------------------------------------------------------------
    trap_begin .u_undefined
    enter_user user_undefined
.u_undefined:
    from_user TRAP_invalid_op, user_undefined, "ud2 in ring 3"
    trap_begin .u_int20
    enter_user user_int20
.u_int20:
    from_user VECTOR_ANYBODY, user_after_int20, "int 0x20, DPL 3, in ring 3"
    trap_begin .u_int21
    enter_user user_int21
.u_int21:
    from_user_error TRAP_gp_fault, 0x21 << 3 | 2, user_int21, "int 0x21, DPL 1, in ring 3"
    trap_begin .u_int80
    enter_user user_int80
.u_int80:
    from_user VECTOR_SYSCALL, user_after_int80, "int 0x80, DPL 0, in ring 3"
    trap_begin .u_int82
    enter_user user_int82
.u_int82:
    from_user_error TRAP_gp_fault, 0x82 << 3 | 2, user_int82, "a hypercall from ring 3"
    trap_begin .u_int3
    enter_user user_int3
.u_int3:
    from_user 3, user_after_int3, "int3 in ring 3"
    trap_begin .u_cli
    enter_user user_cli
.u_cli:
    from_user_error TRAP_gp_fault, 0, user_cli, "cli in ring 3"
    trap_begin .u_hlt
    enter_user user_hlt
.u_hlt:
    from_user_error TRAP_gp_fault, 0, user_hlt, "hlt in ring 3"
    trap_begin .u_cr0
    enter_user user_cr0
.u_cr0:
    from_user_error TRAP_gp_fault, 0, user_cr0, "mov cr0 in ring 3"
    trap_begin .u_in
    enter_user user_in
.u_in:
    from_user_error TRAP_gp_fault, 0, user_in, "in in ring 3"
    trap_begin .u_read
    enter_user user_read
.u_read:
    from_user_error TRAP_page_fault, PFEC_P | PFEC_U, user_read, "reading a kernel page in ring 3"
    cmp dword ptr [trapped_cr2], kernel_word
    check e, "cr2 is not the address that ring 3 read"
    trap_begin .u_write
    enter_user user_write
.u_write:
    from_user_error TRAP_page_fault, PFEC_P | PFEC_W | PFEC_U, user_write, "writing a kernel page in ring 3"
    cmp dword ptr [kernel_word], 0x5ec2e7
    check e, "ring 3 wrote a kernel page"
    trap_begin .u_missing
    enter_user user_missing
.u_missing:
    from_user_error TRAP_page_fault, PFEC_U, user_missing, "reading a missing page in ring 3"
    trap_begin .u_divide
    enter_user user_divide
.u_divide:
    from_user 0, user_divide, "dividing by 0 in ring 3"

    # Going to an outer ring takes the inner ring's data segments away
    trap_begin .u_null_ds
    mov eax, user_segments
    call go_to_user_with_our_segments
.u_null_ds:
    from_user TRAP_invalid_op, user_null_ds, "the kernel's ds in ring 3"

    # The same way by the processor's iret
    trap_begin .u_native
    mov eax, FLAT_RING3_DS
    mov ds, eax
    push eax
    mov eax, user_stack_end
    push eax
    push 2
    push FLAT_RING3_CS
    mov eax, user_int20
    push eax
    iretd
.u_native:
    from_user VECTOR_ANYBODY, user_after_int20, "ring 3 by iret"
    trap_begin .u_native_ds
    push FLAT_RING3_DS
    mov eax, user_stack_end
    push eax
    push 2
    push FLAT_RING3_CS
    mov eax, user_segments
    push eax
    iretd
.u_native_ds:
    from_user TRAP_invalid_op, user_null_ds, "the kernel's ds in ring 3 by iret"
    # A second kernel stack, registered with RPL 0, which Xen raises
    mov ebx, FLAT_RING1_DS & ~3
    mov ecx, other_stack_end
    hypercall stack_switch
    must_return 0, "stack_switch"
    mov dword ptr [kernel_sp], other_stack_end
    trap_begin .u_stack
    enter_user user_int80
.u_stack:
    from_user VECTOR_SYSCALL, user_after_int80, "int 0x80 with another kernel stack"
    print "  ring 3: frames, int n, protected pages, kernel stacks\n"

    # --- Instructions that Xen emulates for the kernel, and those that it does not -------------------------------
    trap_begin .cli_fault
.cli:
    cli
.cli_fault:
    gp_at .cli, "cli with IOPL 0"
    trap_begin .sti_fault
.sti:
    sti
.sti_fault:
    gp_at .sti, "sti with IOPL 0"
    trap_begin .in_fault
.in:
    in al, 0x80
.in_fault:
    gp_at .in, "in with IOPL 0"
    trap_begin .out_fault
.out:
    out 0x80, al
.out_fault:
    gp_at .out, "out with IOPL 0"

    mov eax, 4
    call set_iopl
    must_return -EINVAL, "set_iopl(4)"
    mov eax, 1
    call set_iopl
    must_return 0, "set_iopl(1)"
    mov byte ptr [shared_info + VCPU_INFO_upcall_mask], 0
    cli                                         # allowed now, and does nothing
    cmp byte ptr [shared_info + VCPU_INFO_upcall_mask], 0
    check e, "cli changed the event mask"
    mov byte ptr [shared_info + VCPU_INFO_upcall_mask], 1
    sti
    cmp byte ptr [shared_info + VCPU_INFO_upcall_mask], 1
    check e, "sti changed the event mask"
    pushfd
    pop eax
    and eax, 0x3200
    cmp eax, EFLAGS_IF
    check e, "pushfd does not show IF set and IOPL 0"
    xor eax, eax
    in al, 0x80
    cmp eax, 0xff
    check e, "a port that is not ours does not read as ones"
    out 0x80, al
    trap_begin .u_in_1
    enter_user user_in
.u_in_1:
    from_user_error TRAP_gp_fault, 0, user_in, "in in ring 3 with IOPL 1"
    mov eax, 3
    call set_iopl
    must_return 0, "set_iopl(3)"
    trap_begin .u_in_3
    enter_user user_in
.u_in_3:
    from_user TRAP_invalid_op, user_after_in, "in in ring 3 with IOPL 3"
    xor eax, eax
    call set_iopl
    must_return 0, "set_iopl(0)"

    mov eax, cr0
    cmp eax, CR0_AS_SEEN
    check e, "cr0 is not what a PV kernel sees"
    mov cr0, eax
    or eax, CR0_TS
    mov cr0, eax
    mov eax, cr0
    cmp eax, CR0_AS_SEEN | CR0_TS
    check e, "mov cr0 did not set TS"
    clts
    mov eax, cr0
    cmp eax, CR0_AS_SEEN
    check e, "clts did not clear TS"
    trap_begin .cr0_fault
    mov eax, CR0_AS_SEEN & 0x7fffffff           # paging off?
.cr0:
    mov cr0, eax
.cr0_fault:
    gp_at .cr0, "turning paging off"
    mov eax, 0x12345678
    mov cr2, eax
    cmp [shared_info + VCPU_INFO_cr2], eax
    check e, "mov cr2 did not reach vcpu_info"
    mov ecx, cr2
    cmp ecx, eax
    check e, "cr2 does not read back"
    mov eax, cr3
    mov cr3, eax
    mov ecx, cr3
    cmp ecx, eax
    check e, "cr3 does not read back"
    trap_begin .cr3_fault
    mov eax, data_page                          # a page, but no L3
    call cr3_of
.cr3:
    mov cr3, eax
.cr3_fault:
    gp_at .cr3, "a page that is no table in cr3"
    mov eax, cr4
    and eax, 0x620
    cmp eax, 0x620                              # PAE, OSFXSR, OSXMMEXCPT
    check e, "cr4 does not show what a PV kernel relies on"
    mov eax, cr4
    mov ecx, eax
    mov cr4, eax
    mov eax, cr4
    cmp eax, ecx
    check e, "cr4 does not read back"

    mov ecx, MSR_EFER
    rdmsr
    test eax, EFER_LONG
    check z, "EFER tells a 32-bit kernel of long mode"
    trap_begin .fs_base_fault
    mov ecx, MSR_FS_BASE
.fs_base:
    rdmsr
.fs_base_fault:
    gp_at .fs_base, "reading FS_BASE in a 32-bit kernel"
    trap_begin .msr_fault
    mov ecx, 0xdeadbeef
.msr:
    wrmsr
.msr_fault:
    gp_at .msr, "writing an MSR that does not exist"
    wbinvd
    xor eax, eax
    rdtsc
    mov eax, 0x40000000
    xor ecx, ecx
    .byte 0x0f, 0x0b, 0x78, 0x65, 0x6e          # ud2 "xen": the forced-emulation prefix
    cpuid
    cmp ebx, 0x566e6558                         # "XenV"
    check e, "cpuid with the prefix does not say XenVMMXenVMM"
    cmp ecx, 0x65584d4d                         # "MMXe"
    check e, "cpuid with the prefix does not say XenVMMXenVMM"
    cmp edx, 0x4d4d566e                         # "nVMM"
    check e, "cpuid with the prefix does not say XenVMMXenVMM"
    trap_begin .fep_fault
.fep:
    .byte 0x0f, 0x0b, 0x78, 0x65, 0x6e
    nop
.fep_fault:
    taken TRAP_invalid_op, .fep, "the prefix before another instruction"

    trap_begin .hlt_fault
.hlt:
    hlt
.hlt_fault:
    gp_at .hlt, "hlt"
    trap_begin .invlpg_fault
.invlpg:
    invlpg [ebx]
.invlpg_fault:
    gp_at .invlpg, "invlpg"
    trap_begin .lidt_fault
    mov eax, zeros
.lidt:
    lidt [eax]
.lidt_fault:
    gp_at .lidt, "lidt"
    trap_begin .lgdt_fault
    mov eax, zeros
.lgdt:
    lgdt [eax]
.lgdt_fault:
    gp_at .lgdt, "lgdt"
    trap_begin .lldt_fault
    xor eax, eax
.lldt:
    lldt ax
.lldt_fault:
    gp_at .lldt, "lldt"
    trap_begin .lmsw_fault
    mov eax, 0x33
.lmsw:
    lmsw ax
.lmsw_fault:
    gp_at .lmsw, "lmsw"
    print "  emulated: cli, sti, in, out, mov cr, clts, rdmsr, wbinvd, cpuid\n"

    # --- Segments ------------------------------------------------------------------------------------------------
    mov eax, zeros
    .byte 0x0f, 0x01, 0x00                      # sgdt [eax]
    cmp word ptr [zeros], 0xefff
    check e, "the GDT's limit is not that of Xen's last descriptor"
    call use_own_gdt

    mov eax, GDT_DATA1 | 1
    mov fs, eax
    mov ecx, fs:[kernel_word]
    cmp ecx, 0x5ec2e7
    check e, "our own data segment is not flat"
    mov eax, GDT_TLS | 1
    mov gs, eax
    mov ecx, gs:[0]
    cmp ecx, 0x5ec2e7
    check e, "our own data segment has another base"
    mov eax, GDT_TLS                            # RPL 0 is as good as 1
    mov gs, eax
    mov eax, GDT_DATA3 | 3
    mov gs, eax
    lar eax, eax
    check z, "the descriptor for ring 3 is not visible"
    and eax, 0x6000
    cmp eax, 0x6000
    check e, "the descriptor for ring 3 has another DPL"
    mov eax, GDT_DPL0                           # DPL 0 in the table becomes 1 when Xen takes the page
    lar eax, eax
    check z, "a descriptor that said DPL 0 is not visible"
    and eax, 0x6000
    cmp eax, 0x2000
    check e, "a descriptor that said DPL 0 did not become one for ring 1"
    cmp dword ptr [gdt + GDT_DPL0 + 4], 0x00cfb300
    check e, "the table does not show the raised DPL"
    ljmp [own_code_far]
.in_own_code:
    mov eax, cs
    cmp eax, GDT_CODE1 | 1
    check e, "the far jump did not load our own code segment"
    trap_begin .own_code_trap
.own_code_ud2:
    ud2
.own_code_trap:
    taken TRAP_invalid_op, .own_code_ud2, "ud2 in our own code segment"
    cmp word ptr [trapped_cs], GDT_CODE1 | 1
    check e, "the frame does not show our own code segment"
    ljmp [flat_code_far]
.in_flat_code:

    # A call gate: its DPL is 0 in the table and where the guest wanted it in the RPL of the selector
    cmp word ptr [gdt + GDT_GATE + 2], GDT_CODE1 | 3
    check e, "the gate's selector does not tell its DPL"
    cmp word ptr [gdt + GDT_GATE + 4], 0x8c01
    check e, "the gate is not disarmed"
    trap_begin .u_gate
    enter_user user_gate
.u_gate:
    from_user TRAP_invalid_op, user_after_gate, "a call through a gate"
    cmp dword ptr [gate_parameter], 0x77
    check e, "the gate did not take the parameter along"
    trap_begin .u_gate_jump
    enter_user user_gate_jump
.u_gate_jump:
    from_user_error TRAP_gp_fault, GDT_CODE1, user_gate_jump, "a jump inwards through a gate"

    trap_begin .absent_fault
    mov eax, GDT_ABSENT | 1
.absent:
    mov fs, eax
.absent_fault:
    taken_error 11, GDT_ABSENT, .absent, "a segment that is not present"
    trap_begin .stack_fault
    mov eax, GDT_ABSENT | 1
.stack:
    mov ss, ax
.stack_fault:
    taken_error 12, GDT_ABSENT, .stack, "a stack segment that is not present"
    trap_begin .rpl_fault
    mov eax, FLAT_RING3_DS
.rpl:
    mov ss, ax
.rpl_fault:
    taken_error TRAP_gp_fault, FLAT_RING3_DS & ~3, .rpl, "a stack segment of ring 3 in ring 1"
    trap_begin .ring0_fault
    mov eax, XEN_RING0_DS
.ring0:
    mov fs, eax
.ring0_fault:
    taken_error TRAP_gp_fault, XEN_RING0_DS, .ring0, "Xen's data segment in ring 1"
    trap_begin .code_fault
    mov eax, FLAT_RING1_CS
.code:
    mov ss, ax
.code_fault:
    taken_error TRAP_gp_fault, FLAT_RING1_CS & ~3, .code, "a code segment as stack"
    trap_begin .far_fault
.far:
    ljmp [xen_code_far]
.far_fault:
    taken_error TRAP_gp_fault, XEN_RING0_CS64, .far, "a jump into Xen's code segment"
    trap_begin .far3_fault
.far3:
    ljmp [user_code_far]
.far3_fault:
    taken_error TRAP_gp_fault, FLAT_RING3_CS & ~3, .far3, "a jump into ring 3"
    trap_begin .u_ring1
    enter_user user_ring1
.u_ring1:
    from_user_error TRAP_gp_fault, FLAT_RING1_DS & ~3, user_load, "a kernel segment in ring 3"

    # update_descriptor: machine address and descriptor in halves
    mov eax, gdt
    call frame_of
    lea ebx, [edx + GDT_TLS]
    mov edx, [tls_other]
    mov esi, [tls_other + 4]
    hypercall update_descriptor
    must_return 0, "update_descriptor"
    mov eax, GDT_TLS | 1
    mov gs, eax
    mov ecx, gs:[0]
    cmp ecx, 0x07e5
    check e, "update_descriptor did not change the base"
    mov eax, gdt
    call frame_of
    lea ebx, [edx + GDT_TLS]
    xor edx, edx
    mov esi, 0x008b00 | 3 << 13                 # a TSS
    hypercall update_descriptor
    must_refuse EINVAL, "a TSS in our GDT"
    mov eax, gdt
    call frame_of
    lea ebx, [edx + GDT_TLS + 4]
    xor edx, edx
    xor esi, esi
    hypercall update_descriptor
    must_refuse EINVAL, "update_descriptor between two descriptors"
    mov eax, gdt
    call frame_of
    lea ebx, [edx + GDT_TLS]
    mov edx, 0x0000ffff
    mov esi, 0x00afbb00                         # L: 64-bit code
    hypercall update_descriptor
    must_refuse EINVAL, "a 64-bit code segment in our GDT"
    mov eax, gdt
    mov edx, USER_RW & ~PTE_US
    call remap
    must_refuse EBUSY, "mapping the GDT writable"
    mov ebx, gdt_frames
    mov ecx, 7169
    hypercall set_gdt
    must_refuse EINVAL, "a GDT that reaches into Xen's part"

    # The LDT: pages are looked at when they are first used
    mov eax, ldt
    mov edx, 8
    call set_ldt
    must_return 0, "MMUEXT_SET_LDT"
    trap_begin .ldt_writable
    mov eax, 8 | 4 | 1
.ldt_load:
    mov gs, eax
.ldt_writable:
    taken_error TRAP_page_fault, 0, .ldt_load, "a selector of an LDT that is writable"
    cmp dword ptr [trapped_cr2], ldt + 8
    check e, "cr2 does not tell the descriptor's address"
    mov eax, ldt
    mov edx, READ_ONLY
    call remap
    must_succeed "mapping the LDT read-only"
    mov eax, 8 | 4 | 1
    mov gs, eax
    mov ecx, gs:[0]
    cmp ecx, 0x5ec2e7
    check e, "the LDT's segment has another base"
    trap_begin .ldt_limit
    mov eax, 8 * 8 | 4 | 1
.ldt_beyond:
    mov gs, eax
.ldt_limit:
    taken_error TRAP_gp_fault, 8 * 8 | 4, .ldt_beyond, "a selector beyond the LDT"
    mov eax, ldt + 8
    mov edx, 8
    call set_ldt
    must_refuse EINVAL, "an LDT that does not begin on a page"
    xor eax, eax
    mov gs, eax
    xor edx, edx
    call set_ldt
    must_return 0, "removing the LDT"
    mov eax, ldt
    mov edx, USER_RW & ~PTE_US
    call remap
    must_succeed "mapping the former LDT writable"
    mov eax, FLAT_RING1_DS
    mov fs, eax
    mov gs, eax
    xor ebx, ebx
    xor ecx, ecx
    hypercall set_gdt
    must_return 0, "removing the GDT"
    mov eax, gdt
    mov edx, USER_RW & ~PTE_US
    call remap
    must_succeed "mapping the former GDT writable"
    print "  segments: GDT, LDT, update_descriptor\n"
    succeed

# --- Routines ---------------------------------------------------------------------------------------------------

# prepare(): user pages for ring 3, a page with NX, a page that is not there, the kernel stack for entries from ring 3
prepare:
    mov eax, user_page
    mov edx, USER_RX
    call remap
    must_succeed "mapping the user's code"
    mov eax, user_stack
    mov edx, USER_RW
    call remap
    must_succeed "mapping the user's stack"
    mov eax, data_page
    mov edx, READ_ONLY
    call entry_of
    or ecx, NX_HIGH
    mov eax, data_page
    call update_mapping
    must_succeed "mapping a page with NX"
    mov eax, UNMAPPED
    xor edx, edx
    xor ecx, ecx
    call update_mapping
    must_succeed "unmapping a page"
    push ebx
    mov ebx, FLAT_RING1_DS
    mov ecx, kernel_stack_end
    hypercall stack_switch
    must_return 0, "stack_switch"
    pop ebx
    mov dword ptr [kernel_sp], kernel_stack_end
    ret

# expect_kernel_frame(eax = what, edx = vector, ecx = eip)
expect_kernel_frame:
    push ebx
    mov ebx, eax
    call expect_trap_quietly
    cmp ecx, [trapped_eip]
    jne wrong_frame
    mov eax, [trapped_cs]
    and eax, 3
    cmp eax, 1
    jne wrong_frame
    mov eax, [trap_esp]
    sub eax, 3 * 4                              # the frame lies right below what was on the stack
    cmp eax, [trapped_at]
    jne wrong_frame
    call expect_flags
    pop ebx
    ret

# expect_user_frame, with the same arguments: from ring 3, at the top of the registered stack
expect_user_frame:
    push ebx
    mov ebx, eax
    call expect_trap_quietly
    cmp ecx, [trapped_eip]
    jne wrong_frame
    cmp word ptr [trapped_cs], FLAT_RING3_CS
    jne wrong_frame
    cmp word ptr [trapped_ss], FLAT_RING3_DS
    jne wrong_frame
    cmp dword ptr [trapped_esp], user_stack_end
    jne wrong_frame
    mov eax, [kernel_sp]
    sub eax, 5 * 4
    cmp eax, [trapped_at]
    jne wrong_frame
    call expect_flags
    mov eax, cs
    cmp ax, FLAT_RING1_CS
    jne wrong_frame
    mov eax, ss
    cmp ax, FLAT_RING1_DS
    jne wrong_frame
    pop ebx
    ret

# expect_flags(ebx = what): eflags.IF is the opposite of the saved mask, IOPL is 0, bit 1 is set
expect_flags:
    mov eax, [trapped_cs]
    shr eax, 16
    and eax, 0xff
    xor eax, 1
    shl eax, 9
    or eax, 2
    mov edx, [trapped_eflags]
    and edx, 0x3202
    cmp eax, edx
    jne wrong_frame
    ret

wrong_frame:                                    # ebx = what
    print "FAILURE: "
    mov eax, ebx
    call puts
    print ": wrong frame: eip "
    print_hex [trapped_eip]
    print " cs "
    print_hex [trapped_cs]
    print " eflags "
    print_hex [trapped_eflags]
    print " esp "
    print_hex [trapped_esp]
    print " ss "
    print_hex [trapped_ss]
    print " at "
    print_hex [trapped_at]
    print "\n"
    jmp poweroff

# expect_mask(eax = wanted bits: 0x10000 of the slot of cs, 0x200 of eflags)
expect_mask:
    mov edx, [trapped_cs]
    and edx, 0xffff0000
    mov ecx, [trapped_eflags]
    and ecx, EFLAGS_IF
    or edx, ecx
    cmp eax, edx
    check e, "the frame shows another event mask"
    ret

# go_to_user(eax = eip): does not return; an exception will end it.
go_to_user:
    mov edx, FLAT_RING3_DS
    mov ds, edx
    mov es, edx
go_to_user_with_our_segments:
    push FLAT_RING3_DS
    mov edx, user_stack_end
    push edx
    push EFLAGS_IF | 2
    push FLAT_RING3_CS
    push eax
    mov ecx, kernel_word
    mov edx, UNMAPPED
    iret_hypercall

ignore_event:
    mov byte ptr [shared_info + VCPU_INFO_upcall_pending], 0
    ret

# set_iopl(eax = level) -> eax
set_iopl:
    push ebx
    mov [iopl_arg], eax
    mov ebx, PHYSDEVOP_set_iopl
    mov ecx, iopl_arg
    hypercall physdev_op
    pop ebx
    ret

# set_ldt(eax = va, edx = entries) -> eax
set_ldt:
    mov [mmuext_list + 8], edx
    mov edx, eax
    mov eax, MMUEXT_SET_LDT
    jmp mmuext

# cr3_of(eax = va of a page) -> eax = what would name it in cr3
cr3_of:
    call va_to_mfn
    mov edx, eax
    shl eax, 12
    shr edx, 20
    or eax, edx
    ret

# use_own_gdt(): bases into the descriptors, page read-only, set_gdt
use_own_gdt:
    push ebx
    mov eax, kernel_word
    mov edx, gdt + GDT_TLS
    call set_base
    mov eax, kernel_word
    mov edx, ldt + 8
    call set_base
    mov eax, other_word
    mov edx, tls_other
    call set_base
    mov eax, gate_target
    mov [gdt + GDT_GATE], ax
    shr eax, 16
    mov [gdt + GDT_GATE + 6], ax
    mov eax, gdt
    call va_to_mfn
    mov [gdt_frames], eax
    mov ebx, gdt_frames
    mov ecx, 512
    hypercall set_gdt
    must_refuse EINVAL, "a GDT whose page is mapped writable"
    mov eax, gdt
    mov edx, READ_ONLY
    call remap
    must_succeed "mapping the GDT read-only"
    mov ebx, gdt_frames
    mov ecx, 512
    hypercall set_gdt
    must_return 0, "set_gdt"
    pop ebx
    ret

# set_base(eax = base, edx = va of a descriptor)
set_base:
    mov [edx + 2], ax
    shr eax, 16
    mov [edx + 4], al
    mov [edx + 7], ah
    ret

# Behind the call gate: ring 1 on the registered stack, with eip, cs, one parameter, esp, ss of ring 3
gate_target:
    mov eax, cs
    cmp eax, GDT_CODE1 | 1
    check e, "the gate leads to another code segment"
    mov eax, [kernel_sp]
    sub eax, 5 * 4
    cmp eax, esp
    check e, "the gate leads to another stack"
    mov eax, [esp + 8]
    mov [gate_parameter], eax
    retf 4

# --- What runs in ring 3: ecx = address of a kernel word, edx = of a missing page ---------------------------------
.balign PAGE_SIZE
user_page:
user_undefined:
    ud2
user_int20:
    int 0x20
user_after_int20:
    ud2
user_int21:
    int 0x21
    ud2
user_int80:
    int 0x80
user_after_int80:
    ud2
user_int82:
    int 0x82
    ud2
user_int3:
    int3
user_after_int3:
    ud2
user_cli:
    cli
    ud2
user_hlt:
    hlt
    ud2
user_cr0:
    mov eax, cr0
    ud2
user_in:
    in al, 0x80
user_after_in:
    ud2
user_read:
    mov eax, [ecx]
    ud2
user_write:
    mov dword ptr [ecx], 0
    ud2
user_missing:
    mov eax, [edx]
    ud2
user_divide:
    div byte ptr [user_zero]
    ud2
user_ring1:
    mov eax, FLAT_RING1_DS
user_load:
    mov gs, eax
    ud2
user_gate:
    push 0x77
    .byte 0x9a, 0, 0, 0, 0, GDT_GATE | 3, 0     # lcall
user_after_gate:
    ud2
user_gate_jump:
    .byte 0xea, 0, 0, 0, 0, GDT_GATE | 3, 0     # ljmp
    ud2
user_segments:
    mov eax, ds
    test eax, eax
    jnz user_int3                               # the kernel's is still there
user_null_ds:
    ud2
user_zero:
    .byte 0
.balign PAGE_SIZE

.data
.balign PAGE_SIZE
gdt:                                            # bases of 0 where one is filled in
    .quad 0
    .quad 0x00cfbb000000ffff                    # 0x08: code, ring 1, flat
    .quad 0x00cfb3000000ffff                    # 0x10: data, ring 1, flat
    .quad 0x00cff3000000ffff                    # 0x18: data, ring 3, flat
    .quad 0x0040b3000000ffff                    # 0x20: data, ring 1, 64 KiB somewhere
    .quad 0x00cf33000000ffff                    # 0x28: data, not present
    .quad 0x00cf93000000ffff                    # 0x30: data, ring 0
    .quad 0x0000ec0100080000                    # 0x38: call gate for ring 3 with a parameter; the offset is filled in
.balign PAGE_SIZE
ldt:
    .quad 0
    .quad 0x0040b3000000ffff                    # data, ring 1, 64 KiB somewhere
.balign PAGE_SIZE
tls_other:      .quad 0x0040b3000000ffff
own_code_far:   .long _start.in_own_code
                .short 9
flat_code_far:  .long _start.in_flat_code
                .short FLAT_RING1_CS
xen_code_far:   .long 0
                .short XEN_RING0_CS64
user_code_far:  .long 0
                .short FLAT_RING3_CS
.balign 8
soft_table:
    trap_entry 0x20, 3, VECTOR_ANYBODY
    trap_entry 0x21, 1 | TRAP_MASK_EVENTS, VECTOR_KERNEL
    trap_entry 0x22, 0, VECTOR_NOBODY
    trap_entry 0x80, TRAP_MASK_EVENTS, VECTOR_SYSCALL
    .long 0, 0
gdt_frames:     .long 0
iopl_arg:       .long 0
gate_parameter: .long 0
bounds:         .long 0, 4                      # for bound: 5 is outside
kernel_word:    .long 0x5ec2e7
other_word:     .long 0x07e5
kernel_sp:      .long 0                         # what we registered with stack_switch
zeros:          .long 0, 0, 0

.bss
.balign PAGE_SIZE
data_page:      .zero PAGE_SIZE
user_stack:     .zero PAGE_SIZE
user_stack_end:
kernel_stack:   .zero PAGE_SIZE
kernel_stack_end:
other_stack:    .zero PAGE_SIZE
other_stack_end:
