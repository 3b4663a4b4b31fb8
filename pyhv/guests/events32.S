# SPDX-License-Identifier: GPL-2.0-only
#
# events32 - event channels of a 32-bit kernel: upcalls from ring 1 and ring 3, timers, IPIs, loopback, poll, block
#
# `ticker` teaches what an event is. This kernel goes through what is different with 32 bits, and through more kinds:
#   - shared_info: 32 words of 32 ports; a port of the second word shows in bit 1 of pending_sel;
#   - the upcall's frame: 3 words on the current stack from ring 1, 5 on the registered one from ring 3;
#   - what becomes of an event when its port is masked, when the vcpu is masked, and when it polls;
#   - 64-bit numbers in hypercalls: set_timer_op takes two registers, structures have the u64 at a multiple of 4.
#
# Steps: as the headlines below; SUCCESS.

.width 32
.include "xen.inc"
.include "kernel32.inc"
.include "traps32.inc"
.include "events32.inc"
.include "paging32.inc"

.set __HYPERVISOR_set_timer_op, 15
.set MILLISECOND, 1000 * 1000
.set TICKS, 3
.set PERIOD, 5 * MILLISECOND
.set FIRST_INVALID_PORT, 1024
.set EVTCHNSTAT_closed, 0
.set EVTCHNSTAT_unbound, 1
.set EVTCHNSTAT_interdomain, 2
.set EVTCHNSTAT_virq, 4
.set EVTCHNSTAT_ipi, 5
.set USER_RX, PTE_P | PTE_US | PTE_A
.set USER_RW, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D

.macro expect_calls port, count, what           # the port's routine ran that often
    mov eax, [\port]
    cmp dword ptr [calls + eax * 4], \count
    check e, "\what"
.endm

.macro status_is port, status, what
    mov eax, [\port]
    mov [status_arg + 4], eax
    event_op status, status_arg
    must_return 0, "status of \what"
    cmp dword ptr [status_arg + 8], \status
    check e, "the status of \what is another"
.endm

.text
_start:
    kernel_entry
    print "events32: event channels of a 32-bit kernel\n"
    call traps_init
    call events_init

    # --- Timer, block -------------------------------------------------------------------------------------------
    call bind_timer
    mov [timer_port], eax
    bind_port eax, count
    status_is timer_port, EVTCHNSTAT_virq, "the timer's port"
    call system_time
    mov esi, eax                                # edi:esi = when we started
    mov edi, edx
    xor ebp, ebp
.tick:
    call system_time
    add eax, PERIOD
    adc edx, 0
    mov [deadline], eax
    mov [deadline + 4], edx
    call set_timer
    inc ebp
.sleep:
    mask_events
    mov ecx, [timer_port]
    cmp [calls + ecx * 4], ebp
    jae .awake
    mov ebx, SCHEDOP_block                      # unmasks, sleeps, and on its way out makes the upcall
    xor ecx, ecx
    hypercall sched_op
    must_succeed "sched_op(block)"
    jmp .sleep
.awake:
    check e, "more ticks than timers"
    unmask_events
    call system_time
    cmp edx, [deadline + 4]
    jne .later
    cmp eax, [deadline]
.later:
    check ae, "a tick came before its time"
    cmp ebp, TICKS
    jb .tick
    sub eax, esi
    sbb edx, edi
    check z, "three ticks took more than 4 seconds"
    cmp eax, TICKS * PERIOD
    check ae, "three ticks took less than 15 ms"
    mask_events
    call system_time                            # the older call: the time in two registers
    mov ebx, eax
    mov ecx, edx
    add ebx, MILLISECOND
    adc ecx, 0
    hypercall set_timer_op
    must_return 0, "set_timer_op"
.sleep_again:
    mov ebx, SCHEDOP_block
    xor ecx, ecx
    hypercall sched_op
    mask_events
    mov ecx, [timer_port]
    cmp dword ptr [calls + ecx * 4], TICKS + 1
    jb .sleep_again
    check e, "set_timer_op made more than one event"
    cmp dword ptr [wrong_frames], 0
    check e, "an upcall's frame was not as it should be"
    print "  timer: "
    print_dec TICKS
    print " ticks, set_timer_op, block\n"

    # --- An IPI to ourselves, while events are masked -----------------------------------------------------------
    event_op bind_ipi, ipi_arg
    must_return 0, "binding an IPI"
    mov eax, [ipi_arg + 4]
    mov [port], eax
    bind_port eax, count
    mov dword ptr [calls + eax * 4], 0
    status_is port, EVTCHNSTAT_ipi, "the IPI's port"
    event_op send, port
    must_return 0, "sending an IPI"
    expect_calls port, 0, "an upcall came although events are masked"
    cmp byte ptr [shared_info + VCPU_INFO_upcall_pending], 1
    check e, "upcall_pending is not set"
    test dword ptr [shared_info + VCPU_INFO_pending_sel], 1
    check nz, "pending_sel does not show the first word"
    mov eax, [port]
    bt [shared_info + SHARED_INFO_evtchn_pending], eax
    check c, "evtchn_pending does not show the port"
    event_op send, port                         # twice pending is still pending
    must_return 0, "sending an IPI again"
    unmask_events
    expect_calls port, 1, "unmasking did not make exactly one upcall"
    event_op send, port
    must_return 0, "sending an IPI unmasked"
    expect_calls port, 2, "an event for ourselves did not come on the way out of the hypercall"

    # A masked port: pending, but nobody is told, until the port is unmasked
    mov eax, [port]
    lock bts dword ptr [shared_info + SHARED_INFO_evtchn_mask], eax
    event_op send, port
    must_return 0, "sending to a masked port"
    expect_calls port, 2, "a masked port made an upcall"
    mov eax, [port]
    bt [shared_info + SHARED_INFO_evtchn_pending], eax
    check c, "an event on a masked port was lost"
    event_op unmask, port
    must_return 0, "unmasking a port"
    expect_calls port, 3, "unmasking the port made no upcall"
    mov eax, [port]
    bt [shared_info + SHARED_INFO_evtchn_mask], eax
    check nc, "the port is still masked"

    # --- A port of the second word ------------------------------------------------------------------------------
    mov esi, 40
.allocate:
    event_op bind_ipi, ipi_arg
    must_return 0, "binding another IPI"
    mov eax, [ipi_arg + 4]
    mov [high_port], eax
    dec esi
    jnz .allocate
    cmp eax, 32
    check ae, "40 ports fit into 32"
    cmp eax, PORTS
    check b, "ports are not given from the lowest"
    bind_port eax, count
    mov dword ptr [calls + eax * 4], 0
    mask_events
    event_op send, high_port
    must_return 0, "sending to a high port"
    test dword ptr [shared_info + VCPU_INFO_pending_sel], 2
    check nz, "pending_sel does not show the second word"
    mov ecx, [high_port]
    sub ecx, 32
    mov eax, [shared_info + SHARED_INFO_evtchn_pending + 4]
    bt eax, ecx
    check c, "the second word of evtchn_pending does not show the port"
    unmask_events
    expect_calls high_port, 1, "a port of the second word made no upcall"
    event_op close, high_port
    must_return 0, "closing a port"
    status_is high_port, EVTCHNSTAT_closed, "a closed port"
    event_op close, high_port
    must_return -EINVAL, "closing a port twice"
    event_op send, high_port
    must_return -EINVAL, "sending to a closed port"
    mov dword ptr [high_port], FIRST_INVALID_PORT
    event_op unmask, high_port
    must_return -EINVAL, "a port beyond the last"
    event_op send, high_port
    must_return -EINVAL, "sending beyond the last port"
    print "  IPIs: masked and unmasked, masked ports, the second word\n"

    # --- Both ends of a channel ---------------------------------------------------------------------------------
    event_op alloc_unbound, unbound_arg
    must_return 0, "allocating a port"
    mov eax, [unbound_arg + 4]
    mov [far_port], eax
    mov [interdomain_arg + 4], eax
    bind_port eax, count
    mov dword ptr [calls + eax * 4], 0
    status_is far_port, EVTCHNSTAT_unbound, "an unbound port"
    event_op send, far_port
    must_return 0, "sending to nobody"
    mask_events
    event_op bind_interdomain, interdomain_arg
    must_return 0, "binding to our own port"
    mov eax, [interdomain_arg + 8]
    mov [near_port], eax
    bind_port eax, count
    mov dword ptr [calls + eax * 4], 0
    status_is near_port, EVTCHNSTAT_interdomain, "a bound port"
    mov eax, [far_port]
    cmp [status_arg + 20], eax
    check e, "the status does not tell the other end"
    unmask_events
    expect_calls near_port, 1, "a new channel is not pending at its near end"
    event_op send, near_port
    must_return 0, "sending to the far end"
    expect_calls far_port, 1, "the far end did not get the event"
    expect_calls near_port, 1, "the near end got the event too"
    event_op send, far_port
    must_return 0, "sending to the near end"
    expect_calls near_port, 2, "the near end did not get the event"
    event_op bind_interdomain, interdomain_arg
    must_return -EINVAL, "binding to a port that is bound"
    event_op close, near_port
    must_return 0, "closing the near end"
    status_is far_port, EVTCHNSTAT_unbound, "the far end of a closed channel"

    # --- Poll: events stay masked, the port says when to go on --------------------------------------------------
    mask_events
    mov dword ptr [poll_arg], port
    mov dword ptr [poll_arg + 4], 1
    event_op send, port
    must_return 0, "sending before polling"
    mov ebx, SCHEDOP_poll
    mov ecx, poll_arg
    hypercall sched_op
    must_return 0, "polling a pending port"
    expect_calls port, 3, "poll made an upcall although events are masked"
    unmask_events
    expect_calls port, 4, "the polled event made no upcall afterwards"
    mask_events
    call system_time
    add eax, MILLISECOND
    adc edx, 0
    mov [poll_arg + 8], eax                     # u64, at 8 in both widths' kernels of 4-byte pointers
    mov [poll_arg + 12], edx
    mov esi, eax
    mov edi, edx
    mov ebx, SCHEDOP_poll
    mov ecx, poll_arg
    hypercall sched_op
    must_return 0, "polling until a time"
    call system_time
    cmp edx, edi
    jne .polled
    cmp eax, esi
.polled:
    check ae, "poll came back before its time"
    mov dword ptr [poll_arg + 4], 129
    mov ebx, SCHEDOP_poll
    mov ecx, poll_arg
    hypercall sched_op
    must_return -EINVAL, "polling 129 ports"
    mov dword ptr [poll_arg + 4], 1
    mov dword ptr [poll_arg], high_port
    mov ebx, SCHEDOP_poll
    mov ecx, poll_arg
    hypercall sched_op
    must_return -EINVAL, "polling a port that does not exist"
    print "  both ends of a channel, poll\n"

    # --- An upcall from ring 3 ----------------------------------------------------------------------------------
    mov eax, user_page
    mov edx, USER_RX
    call remap
    must_succeed "mapping the user's code"
    mov eax, user_stack
    mov edx, USER_RW
    call remap
    must_succeed "mapping the user's stack"
    mov ebx, FLAT_RING1_DS
    mov ecx, kernel_stack_end
    hypercall stack_switch
    must_return 0, "stack_switch"
    mov eax, [timer_port]
    bind_port eax, from_user
    call system_time
    add eax, MILLISECOND
    adc edx, 0
    call set_timer
    push FLAT_RING3_DS
    mov eax, user_stack_end
    push eax
    push EFLAGS_IF | 2
    push FLAT_RING3_CS
    mov eax, user_page
    push eax
    mov eax, FLAT_RING3_DS
    mov ds, eax
    mov es, eax
    iret_hypercall

# from_user(eax = frame, edx = port): the timer's routine while ring 3 runs. It does not go back there.
from_user:
    lea ecx, [eax + FRAME_SIZE]
    cmp ecx, kernel_stack_end
    check e, "the upcall from ring 3 did not use the registered stack"
    cmp word ptr [eax + FRAME_cs], FLAT_RING3_CS
    check e, "the upcall's frame does not show the user's cs"
    cmp word ptr [eax + FRAME_ss], FLAT_RING3_DS
    check e, "the upcall's frame does not show the user's ss"
    cmp dword ptr [eax + FRAME_esp], user_stack_end
    check e, "the upcall's frame does not show the user's esp"
    cmp dword ptr [eax + FRAME_eip], user_page
    check e, "the upcall's frame does not show the user's eip"
    cmp byte ptr [eax + FRAME_saved_mask], 0
    check e, "ring 3 ran with events masked"
    test dword ptr [eax + FRAME_eflags], EFLAGS_IF
    check nz, "the upcall's frame does not show IF"
    cmp byte ptr [shared_info + VCPU_INFO_upcall_mask], 1
    check e, "the upcall from ring 3 began unmasked"
    cmp dword ptr [wrong_frames], 0
    check e, "an upcall's frame was not as it should be"
    print "  an upcall from ring 3\n"
    succeed

# count(eax = frame, edx = port): the routine of all other ports. The frame must be that of unmasked code in ring 1.
count:
    inc dword ptr [calls + edx * 4]
    cmp word ptr [eax + FRAME_cs], FLAT_RING1_CS
    jne .wrong
    cmp byte ptr [eax + FRAME_saved_mask], 0
    jne .wrong
    test dword ptr [eax + FRAME_eflags], EFLAGS_IF
    jz .wrong
    cmp byte ptr [shared_info + VCPU_INFO_upcall_mask], 1
    jne .wrong
    ret
.wrong:
    inc dword ptr [wrong_frames]
    ret

.balign PAGE_SIZE
user_page:
    jmp user_page                               # until the timer comes
.balign PAGE_SIZE

.data
.balign 8
deadline:       .quad 0
poll_arg:       .long 0, 0                      # ports, count
                .quad 0                         # until when; 0 = for ever
status_arg:     .long DOMID_SELF, 0, 0, 0, 0, 0 # u16 domid, port, status, vcpu, and what depends on the status
unbound_arg:    .short DOMID_SELF, DOMID_SELF   # whose, for whom
                .long 0                         # port (out)
interdomain_arg: .long DOMID_SELF, 0, 0         # remote domain, remote port, local port (out)
ipi_arg:        .long 0, 0                      # vcpu, port (out)
timer_port:     .long 0
port:           .long 0
high_port:      .long 0
far_port:       .long 0
near_port:      .long 0
wrong_frames:   .long 0
calls:          .zero PORTS * 4                 # upcalls for each port

.bss
.balign PAGE_SIZE
user_stack:     .zero PAGE_SIZE
user_stack_end:
kernel_stack:   .zero PAGE_SIZE
kernel_stack_end:
