# SPDX-License-Identifier: GPL-2.0-only
#
# ticker - sets a timer five times, sleeps until each event and checks that time went on; then powers off
#
# A kernel without events can only poll. This one teaches
#   - event channels: VIRQ_TIMER is bound to a port; an event on it sets bits in shared_info, and Xen calls the kernel
#     back ("upcall") if it is not masked (events.inc draws how the bits hang together);
#   - time: system_time() reads the clock from the record that Xen keeps in vcpu_info, with no hypercall;
#   - sleeping without losing a wake-up: test the condition with events masked, then let SCHEDOP_block unmask and sleep
#     in one step. With "unmask; test; block" the event could come between the test and the sleep, which would then
#     never end;
#   - upcalls are not nested: Xen sets upcall_mask when it calls, the iret hypercall restores it.
#
# Steps: trap table, shared_info, upcall; stop the 100 Hz tick that every PV vcpu starts with and bind the timer; five
# times: set a one-shot timer 10 ms ahead, block, check; SUCCESS.
# Checked: no tick came early; five ticks took at least 50 ms; each upcall began masked, and interrupted unmasked code.

.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "events.inc"

.set TICKS, 5
.set PERIOD, 10 * 1000 * 1000                           # ns

.text
_start:
    kernel_entry
    print "ticker: a timer event every 10 ms\n"
    call traps_init
    call events_init
    call bind_timer
    mov ebp, eax
    bind_port rbp, tick
    print "  VIRQ_TIMER is port "
    print_dec rbp
    print "\n"

    call system_time
    mov r12, rax                                        # r12 = when we started
    mov r13, rax                                        # r13 = the next deadline
    xor ebx, ebx                                        # rbx = ticks waited for
.next:
    inc rbx
    add r13, PERIOD
    mov rdi, r13
    call set_timer
.sleep:
    mask_events
    cmp [rip + ticks], rbx
    jae .awake
    mov edi, SCHEDOP_block                              # unmasks, sleeps, and on its way out makes the upcall
    xor esi, esi
    hypercall sched_op
    must_succeed "sched_op(block)"
    jmp .sleep
.awake:
    unmask_events
    cmp [rip + ticks], rbx
    check e, "more ticks than timers"
    mov r14, [rip + tick_time]
    cmp r14, r13
    check ae, "a tick came before its time"

    print "  tick "
    print_dec rbx
    print " after "
    mov rax, r14
    sub rax, r12
    xor edx, edx
    mov ecx, 1000
    div rcx
    print_dec rax
    print " us\n"
    # Printing takes time; the next deadline is counted from now.
    call system_time
    cmp rax, r14
    check ae, "time went backwards"
    mov r13, rax
    cmp rbx, TICKS
    jb .next

    sub rax, r12
    cmp rax, TICKS * PERIOD
    check ae, "five ticks took less than 50 ms"
    cmp dword ptr [rip + unmasked_upcalls], 0
    check e, "an upcall began with events unmasked"
    cmp dword ptr [rip + masked_code], 0
    check e, "an upcall interrupted code that had masked events"
    succeed

# tick(rdi = frame, esi = port): the routine of the timer's port.
tick:
    cmp byte ptr [rip + shared_info + VCPU_INFO_upcall_mask], 1
    je .masked
    inc dword ptr [rip + unmasked_upcalls]
.masked:
    cmp byte ptr [rdi + FRAME_saved_mask], 0            # the mask at the moment of the interruption
    je .allowed
    inc dword ptr [rip + masked_code]
.allowed:
    call system_time
    mov [rip + tick_time], rax
    inc qword ptr [rip + ticks]
    ret

.data
.balign 8
ticks:          .quad 0
tick_time:      .quad 0                                 # system time of the last tick
unmasked_upcalls: .long 0
masked_code:    .long 0
