# SPDX-License-Identifier: GPL-2.0-only
#
# smp32 - starts a second vcpu from a 32-bit kernel and plays ten rounds of IPIs with it; boot it with two vcpus
#
# A second processor of a PV kernel does not begin in real mode: VCPUOP_initialise gives it every register at once, from a
# structure of 2800 bytes (struct vcpu_guest_context), and VCPUOP_up lets it run. This kernel checks
#   - what the structure says is what the vcpu begins with: registers, selectors, stack, flags, page table, trap table
#     and callbacks of its own;
#   - vcpu_info is per vcpu: the second one's lies 64 bytes behind the first one's, with its own mask and cr2;
#   - IPIs: a port bound to a vcpu makes its upcall there;
#   - what Xen refuses: up before initialise, initialise twice, virtual-8086 mode, a page table that is none;
#   - the record of run states, of 44 bytes in a 32-bit kernel.
#
# Steps: refusals; initialise and up; ten IPIs there and back; the second vcpu goes down; SUCCESS.

.width 32
.include "xen.inc"
.include "kernel32.inc"
.include "traps32.inc"
.include "events32.inc"
.include "paging32.inc"

.set VCPUOP_initialise, 0
.set VCPUOP_down, 2
.set VCPUOP_is_up, 3
.set VCPUOP_get_runstate_info, 4
.set RUNSTATE_running, 0
.set RUNSTATE_offline, 3
.set RUNSTATE_SIZE, 44
.set ENTRIES_OF_TRAP_TABLE, 15
.set EEXIST, 17
.set VM, 1 << 17
.set ROUNDS, 10
.set VGCF_in_kernel, 4

# struct vcpu_guest_context of 32-bit kernels
.set CONTEXT_flags, 512
.set CONTEXT_user_regs, 516
.set CONTEXT_ebx, CONTEXT_user_regs + 0
.set CONTEXT_ecx, CONTEXT_user_regs + 4
.set CONTEXT_edx, CONTEXT_user_regs + 8
.set CONTEXT_esi, CONTEXT_user_regs + 12
.set CONTEXT_edi, CONTEXT_user_regs + 16
.set CONTEXT_ebp, CONTEXT_user_regs + 20
.set CONTEXT_eax, CONTEXT_user_regs + 24
.set CONTEXT_eip, CONTEXT_user_regs + 32
.set CONTEXT_cs, CONTEXT_user_regs + 36
.set CONTEXT_eflags, CONTEXT_user_regs + 40
.set CONTEXT_esp, CONTEXT_user_regs + 44
.set CONTEXT_ss, CONTEXT_user_regs + 48
.set CONTEXT_es, CONTEXT_user_regs + 52
.set CONTEXT_ds, CONTEXT_user_regs + 56
.set CONTEXT_fs, CONTEXT_user_regs + 60
.set CONTEXT_gs, CONTEXT_user_regs + 64
.set CONTEXT_trap_ctxt, 584
.set CONTEXT_kernel_ss, 2708
.set CONTEXT_kernel_sp, 2712
.set CONTEXT_cr3, 2716 + 3 * 4
.set CONTEXT_event_callback_cs, 2780
.set CONTEXT_event_callback_eip, 2784
.set CONTEXT_failsafe_callback_cs, 2788
.set CONTEXT_failsafe_callback_eip, 2792
.set CONTEXT_SIZE, 2800
.set SECOND_INFO, 64                            # of shared_info: vcpu 1's vcpu_info

.macro vcpu_call operation, argument            # on vcpu 1
    mov ebx, VCPUOP_\operation
    mov ecx, 1
    mov edx, \argument
    hypercall vcpu_op
.endm

.macro second_check condition, what             # vcpu 1 leaves the printing to vcpu 0
    j\condition .fine\@
    .data
.what\@: .asciz "\what"
    .text
    mov dword ptr [second_failed], .what\@
    jmp second_gives_up
.fine\@:
.endm

.text
_start:
    kernel_entry
    print "smp32: a second vcpu for a 32-bit kernel\n"
    call traps_init
    call events_init
    mov ebx, VCPUOP_stop_periodic_timer
    xor ecx, ecx
    xor edx, edx
    hypercall vcpu_op
    must_succeed "stopping the periodic timer"
    vcpu_call is_up, 0
    cmp eax, -ENOENT
    check ne, "there is no second vcpu: boot with two"
    must_return 0, "is_up before anything"
    vcpu_call up, 0
    must_return -EINVAL, "up before initialise"

    # --- The context --------------------------------------------------------------------------------------------
    mov dword ptr [context + CONTEXT_flags], VGCF_in_kernel
    mov dword ptr [context + CONTEXT_eax], 0xa
    mov dword ptr [context + CONTEXT_ebx], 0xb
    mov dword ptr [context + CONTEXT_ecx], 0xc
    mov dword ptr [context + CONTEXT_edx], 0xd
    mov dword ptr [context + CONTEXT_esi], 0x51
    mov dword ptr [context + CONTEXT_edi], 0xd1
    mov dword ptr [context + CONTEXT_ebp], 0xb9
    mov dword ptr [context + CONTEXT_eip], second_start
    mov word ptr [context + CONTEXT_cs], FLAT_RING1_CS & ~3     # Xen raises the RPL
    mov dword ptr [context + CONTEXT_eflags], EFLAGS_IF | 3
    mov dword ptr [context + CONTEXT_esp], second_stack_end
    mov dword ptr [context + CONTEXT_ss], FLAT_RING1_DS & ~3
    mov dword ptr [context + CONTEXT_es], FLAT_RING1_DS
    mov dword ptr [context + CONTEXT_ds], FLAT_RING1_DS
    mov dword ptr [context + CONTEXT_fs], FLAT_RING3_DS
    mov dword ptr [context + CONTEXT_gs], 0
    mov dword ptr [context + CONTEXT_kernel_ss], FLAT_RING1_DS
    mov dword ptr [context + CONTEXT_kernel_sp], second_stack_end
    mov dword ptr [context + CONTEXT_event_callback_cs], FLAT_RING1_CS
    mov dword ptr [context + CONTEXT_event_callback_eip], second_upcall
    mov dword ptr [context + CONTEXT_failsafe_callback_cs], FLAT_RING1_CS
    mov dword ptr [context + CONTEXT_failsafe_callback_eip], second_failsafe
    mov word ptr [context + CONTEXT_trap_ctxt + TRAP_invalid_op * 8], TRAP_invalid_op
    mov word ptr [context + CONTEXT_trap_ctxt + TRAP_invalid_op * 8 + 2], FLAT_RING1_CS
    mov dword ptr [context + CONTEXT_trap_ctxt + TRAP_invalid_op * 8 + 4], second_invalid_op
    mov word ptr [context + CONTEXT_trap_ctxt + TRAP_page_fault * 8], TRAP_page_fault | TRAP_MASK_EVENTS << 8
    mov word ptr [context + CONTEXT_trap_ctxt + TRAP_page_fault * 8 + 2], FLAT_RING1_CS
    mov dword ptr [context + CONTEXT_trap_ctxt + TRAP_page_fault * 8 + 4], second_page_fault
    mov eax, context
    call cr3_of
    mov [context + CONTEXT_cr3], eax
    vcpu_call initialise, context
    must_refuse EINVAL, "a page that is no L3 as the second vcpu's cr3"
    mov eax, [start_info]
    mov eax, [eax + START_INFO_pt_base]
    call cr3_of
    mov [context + CONTEXT_cr3], eax
    mov [first_cr3], eax
    or dword ptr [context + CONTEXT_eflags], VM
    vcpu_call initialise, context
    must_refuse EINVAL, "virtual-8086 mode for the second vcpu"
    and dword ptr [context + CONTEXT_eflags], ~VM
    vcpu_call initialise, HYPERVISOR_HOLE
    must_refuse EFAULT, "a context in Xen's memory"
    vcpu_call initialise, context
    must_return 0, "initialise"
    vcpu_call initialise, context
    must_refuse EEXIST, "initialising twice"
    mov dword ptr [runstate + RUNSTATE_SIZE], 0x5e471e1
    vcpu_call get_runstate_info, runstate
    must_return 0, "get_runstate_info"
    cmp dword ptr [runstate], RUNSTATE_offline
    check e, "the second vcpu is not offline yet"
    cmp dword ptr [runstate + RUNSTATE_SIZE], 0x5e471e1
    check e, "the run state record is longer than 44 bytes"

    # --- Two ports: one whose upcalls come to us, one for the other ---------------------------------------------
    mov dword ptr [bind_ipi_arg], 0
    event_op bind_ipi, bind_ipi_arg
    must_return 0, "binding an IPI for vcpu 0"
    mov eax, [bind_ipi_arg + 4]
    mov [first_port], eax
    bind_port eax, first_event
    mov dword ptr [bind_ipi_arg], 1
    event_op bind_ipi, bind_ipi_arg
    must_return 0, "binding an IPI for vcpu 1"
    mov eax, [bind_ipi_arg + 4]
    mov [second_port], eax
    bts [ports_elsewhere], eax
    mov dword ptr [bind_ipi_arg], 99
    event_op bind_ipi, bind_ipi_arg
    must_return -ENOENT, "binding an IPI for vcpu 99"
    vcpu_call up, 0
    must_return 0, "up"
    vcpu_call is_up, 0
    must_return 1, "is_up"

    # --- Ten rounds: it begins, each of us answers --------------------------------------------------------------
.wait:
    mask_events
    cmp dword ptr [second_failed], 0
    je .well
    print "FAILURE: vcpu 1: "
    mov eax, [second_failed]
    call puts
    print "\n"
    jmp poweroff
.well:
    cmp dword ptr [second_done], 1
    je .done
    mov ebx, SCHEDOP_block
    xor ecx, ecx
    hypercall sched_op
    must_return 0, "sched_op(block)"
    jmp .wait
.done:
    unmask_events
    cmp dword ptr [first_events], ROUNDS
    check ae, "vcpu 0 did not get ten IPIs"
    cmp dword ptr [second_events], ROUNDS
    check e, "vcpu 1 did not get ten IPIs"
    print "  registers, traps, "
    print_dec [second_events]
    print " IPIs there and back\n"
.going:
    vcpu_call is_up, 0
    test eax, eax
    jz .gone
    mov ebx, SCHEDOP_yield
    xor ecx, ecx
    hypercall sched_op
    jmp .going
.gone:
    vcpu_call get_runstate_info, runstate
    must_return 0, "get_runstate_info"
    cmp dword ptr [runstate], RUNSTATE_offline
    check e, "a vcpu that is down is not offline"
    mov eax, [runstate + 12]                    # ns it was running
    or eax, [runstate + 16]
    check nz, "the second vcpu's record shows no time running"
    mov ebx, VCPUOP_get_runstate_info
    xor ecx, ecx
    mov edx, runstate
    hypercall vcpu_op
    must_return 0, "get_runstate_info of ourselves"
    cmp dword ptr [runstate], RUNSTATE_running
    check e, "we are not running"
    print "  the second vcpu is down\n"
    succeed

# first_event(eax = frame, edx = port): an IPI for vcpu 0: answer, unless it only says that the game is over
first_event:
    push ebx
    inc dword ptr [first_events]
    cmp dword ptr [second_done], 1
    je .over
    event_op send, second_port
.over:
    pop ebx
    ret

cr3_of:                                         # eax = va of a page -> eax = as in cr3
    call va_to_mfn
    mov edx, eax
    shl eax, 12
    shr edx, 20
    or eax, edx
    ret

# --- The second vcpu --------------------------------------------------------------------------------------------
second_start:
    second_check c, "the flags are not those of the context"
    cmp eax, 0xa
    second_check e, "eax is not that of the context"
    cmp ebx, 0xb
    second_check e, "ebx is not that of the context"
    cmp ecx, 0xc
    second_check e, "ecx is not that of the context"
    cmp edx, 0xd
    second_check e, "edx is not that of the context"
    cmp esi, 0x51
    second_check e, "esi is not that of the context"
    cmp edi, 0xd1
    second_check e, "edi is not that of the context"
    cmp ebp, 0xb9
    second_check e, "ebp is not that of the context"
    cmp esp, second_stack_end
    second_check e, "esp is not that of the context"
    mov eax, cs
    cmp eax, FLAT_RING1_CS
    second_check e, "cs is not that of the context, with RPL 1"
    mov eax, ss
    cmp eax, FLAT_RING1_DS
    second_check e, "ss is not that of the context, with RPL 1"
    mov eax, fs
    cmp eax, FLAT_RING3_DS
    second_check e, "fs is not that of the context"
    mov eax, gs
    test eax, eax
    second_check z, "gs is not that of the context"
    mov eax, cr3
    cmp eax, [first_cr3]
    second_check e, "cr3 is not that of the context"
    cmp byte ptr [shared_info + SECOND_INFO + VCPU_INFO_upcall_mask], 1
    second_check e, "a vcpu does not begin with events masked"

    ud2                                         # the handler skips it
    cmp dword ptr [second_traps], 1
    second_check e, "ud2 did not come to the context's handler"
    xor ecx, ecx
    mov [shared_info + VCPU_INFO_cr2], ecx
    mov eax, HYPERVISOR_HOLE
    mov [eax], ecx                              # 2 bytes: 89 08
    cmp dword ptr [second_traps], 2
    second_check e, "a page fault did not come to the context's handler"
    cmp dword ptr [shared_info + SECOND_INFO + VCPU_INFO_cr2], HYPERVISOR_HOLE
    second_check e, "cr2 is not in this vcpu's vcpu_info"
    cmp dword ptr [shared_info + VCPU_INFO_cr2], 0
    second_check e, "cr2 went to the other vcpu's vcpu_info"

    mov ebx, VCPUOP_stop_periodic_timer
    mov ecx, 1
    xor edx, edx
    hypercall vcpu_op
    test eax, eax
    second_check z, "stopping this vcpu's periodic timer"
    xor esi, esi
.round:
    event_op send, first_port
    test eax, eax
    second_check z, "sending an IPI to vcpu 0"
    inc esi
.sleep:
    mov byte ptr [shared_info + SECOND_INFO + VCPU_INFO_upcall_mask], 1
    cmp [second_events], esi
    jae .awake
    mov ebx, SCHEDOP_block
    xor ecx, ecx
    hypercall sched_op
    jmp .sleep
.awake:
    cmp esi, ROUNDS
    jb .round
    mov dword ptr [second_done], 1
second_gives_up:
    event_op send, first_port                   # vcpu 0 sleeps until then
    vcpu_call down, 0
    ud2                                         # does not come back

second_invalid_op:                              # eip, cs, eflags
    inc dword ptr [second_traps]
    add dword ptr [esp], 2
    mov word ptr [esp + 6], 0                   # the saved mask is no part of cs
    iretd

second_page_fault:                              # error code, eip, cs, eflags
    inc dword ptr [second_traps]
    add esp, 4
    add dword ptr [esp], 2
    iret_hypercall

second_upcall:
    pushad
    mov byte ptr [shared_info + SECOND_INFO + VCPU_INFO_upcall_pending], 0
    xor eax, eax
    xchg eax, [shared_info + SECOND_INFO + VCPU_INFO_pending_sel]
    mov ecx, [second_port]
    lock btr dword ptr [shared_info + SHARED_INFO_evtchn_pending], ecx
    jnc .other
    inc dword ptr [second_events]
.other:
    popad
    iret_hypercall

second_failsafe:
    ud2

.data
.balign 8
bind_ipi_arg:   .long 0, 0                      # vcpu, port (out)
first_port:     .long 0
second_port:    .long 0
first_events:   .long 0
second_events:  .long 0
second_traps:   .long 0
second_done:    .long 0
second_failed:  .long 0                         # va of why
first_cr3:      .long 0
.balign 8
runstate:       .zero RUNSTATE_SIZE + 4

.bss
.balign PAGE_SIZE
context:        .zero PAGE_SIZE
second_stack:   .zero PAGE_SIZE
second_stack_end:
