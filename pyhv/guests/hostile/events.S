# SPDX-License-Identifier: GPL-2.0-only
#
# events - wants event channels of others: binds what was not offered, rings where it may not, names ports that are none
#
# Class: event channels
# History: XSA-221, XSA-317, XSA-342, XSA-343
# Refused: a port is bound only by the domain it was offered to and only once; only its owner sends, closes or moves it;
#   port 0, free ports and those beyond the limit are no ports; nobody acts for another domain.

.include "hostile.inc"
.include "domid.inc"

.macro two what, answer, command, first, second         # a structure of two u32
    mov dword ptr [rip + words], \first
    mov dword ptr [rip + words + 4], \second
    attack "\what", \answer, event_channel_op, \command, words, 0, 0
.endm

.macro port_of register                         # what bind_interdomain, alloc_unbound, bind_virq and bind_ipi returned
    mov \register, [rip + words + 8]
.endm

.set EVTCHNOP_bind_pirq, 2
.set EVTCHNOP_bind_vcpu, 8
.set EVTCHNOP_reset, 10
.set EVTCHNOP_init_control, 11
.set LAST, 4096

.text
_start:
    hostile_entry "events"
    call own_domid
    mov [rip + me], eax

    # Offers
    two "a port of domain 0 for us", -EPERM, EVTCHNOP_alloc_unbound, DOMID_SELF << 16, 0
    two "a port of domain 0 for nobody", -EPERM, EVTCHNOP_alloc_unbound, NO_DOMAIN << 16, 0
    two "a port of nobody for us", -ESRCH, EVTCHNOP_alloc_unbound, NO_DOMAIN | DOMID_SELF << 16, 0
    two "a port of DOMID_XEN", -ESRCH, EVTCHNOP_alloc_unbound, 0x7ff2 | DOMID_SELF << 16, 0
    two "a port for domain 0", 0, EVTCHNOP_alloc_unbound, DOMID_SELF, 0
    mov r12d, [rip + words + 4]                 # r12 = offered to domain 0
    two "a port for ourselves", 0, EVTCHNOP_alloc_unbound, DOMID_SELF | DOMID_SELF << 16, 0
    mov r13d, [rip + words + 4]                 # r13 = offered to us

    # Binding
    two "binding what is offered to domain 0", -EINVAL, EVTCHNOP_bind_interdomain, DOMID_SELF, r12d
    two "binding port 0", -EINVAL, EVTCHNOP_bind_interdomain, DOMID_SELF, 0
    two "binding port 4096", -EINVAL, EVTCHNOP_bind_interdomain, DOMID_SELF, LAST
    two "binding port 2^32-1", -EINVAL, EVTCHNOP_bind_interdomain, DOMID_SELF, -1
    two "binding a free port", -EINVAL, EVTCHNOP_bind_interdomain, DOMID_SELF, 900
    two "binding our own console port again", -EINVAL, EVTCHNOP_bind_interdomain, DOMID_SELF, 2
    two "binding to a domain that does not exist", -ESRCH, EVTCHNOP_bind_interdomain, NO_DOMAIN, 1
    two "binding to DOMID_IDLE", -ESRCH, EVTCHNOP_bind_interdomain, 0x7fff, 1
    mov ebp, 0
.dom0_ports:
    mov dword ptr [rip + words], 0
    mov [rip + words + 4], ebp
    mov edi, EVTCHNOP_bind_interdomain
    lea rsi, [rip + words]
    hypercall event_channel_op
    cmp rax, -EINVAL
    must e, "a port of domain 0 was bound"
    inc ebp
    cmp ebp, 128
    jb .dom0_ports
    print "refused: 128 ports of domain 0\n"
    mov ebp, 1                                  # a neighbour, if there is one: nothing there is offered to us
.neighbours:
    cmp ebp, [rip + me]
    je .next_neighbour
    mov r14d, 1
.neighbours_port:
    mov [rip + words], ebp
    mov [rip + words + 4], r14d
    mov edi, EVTCHNOP_bind_interdomain
    lea rsi, [rip + words]
    hypercall event_channel_op
    test rax, rax
    must s, "a port of a neighbour was bound"
    mov [rip + words], bp
    mov word ptr [rip + words + 2], DOMID_SELF
    mov edi, EVTCHNOP_alloc_unbound
    lea rsi, [rip + words]
    hypercall event_channel_op
    test rax, rax
    must s, "a port of a neighbour was made"
    mov [rip + words], bp
    mov [rip + words + 4], r14d
    mov edi, EVTCHNOP_status
    lea rsi, [rip + words]
    hypercall event_channel_op
    test rax, rax
    must s, "the status of a neighbour's port was told"
    inc r14d
    cmp r14d, 16
    jb .neighbours_port
    mov [rip + words], ebp
    mov edi, EVTCHNOP_reset
    lea rsi, [rip + words]
    hypercall event_channel_op
    test rax, rax
    must s, "a neighbour's ports were closed"
.next_neighbour:
    inc ebp
    cmp ebp, 8
    jb .neighbours
    print "refused: the ports of neighbours\n"
    two "binding our own offer", 0, EVTCHNOP_bind_interdomain, DOMID_SELF, r13d
    port_of r14d                                # r14 = bound to r13
    two "binding it a second time", -EINVAL, EVTCHNOP_bind_interdomain, DOMID_SELF, r13d
    two "binding the bound end", -EINVAL, EVTCHNOP_bind_interdomain, DOMID_SELF, r14d

    # Sending, closing, unmasking
    two "sending to port 0", -EINVAL, EVTCHNOP_send, 0, 0
    two "sending to a free port", -EINVAL, EVTCHNOP_send, 900, 0
    two "sending to port 1024", -EINVAL, EVTCHNOP_send, 1024, 0
    two "sending to port 2^31", -EINVAL, EVTCHNOP_send, 0x80000000, 0
    two "sending to nobody", 0, EVTCHNOP_send, r12d, 0
    two "closing port 0", -EINVAL, EVTCHNOP_close, 0, 0
    two "closing a free port", -EINVAL, EVTCHNOP_close, 900, 0
    two "closing port 2^32-1", -EINVAL, EVTCHNOP_close, -1, 0
    two "unmasking port 4096", -EINVAL, EVTCHNOP_unmask, LAST, 0
    two "unmasking port 2^32-1", -EINVAL, EVTCHNOP_unmask, -1, 0
    two "closing one end", 0, EVTCHNOP_close, r13d, 0
    two "closing it twice", -EINVAL, EVTCHNOP_close, r13d, 0
    two "sending to the end that is left", 0, EVTCHNOP_send, r14d, 0
    two "closing the other end", 0, EVTCHNOP_close, r14d, 0

    # VIRQs, IPIs, PIRQs, vcpus
    two "VIRQ 24", -EINVAL, EVTCHNOP_bind_virq, 24, 0
    two "VIRQ 2^32-1", -EINVAL, EVTCHNOP_bind_virq, -1, 0
    two "the timer of vcpu 2^32-1", -ENOENT, EVTCHNOP_bind_virq, VIRQ_TIMER, -1
    two "the timer of vcpu 32", -ENOENT, EVTCHNOP_bind_virq, VIRQ_TIMER, 32
    two "domain 0's VIRQ for dying domains", -EBUSY, EVTCHNOP_bind_virq, 3, 0
    two "domain 0's VIRQ through another vcpu", -EINVAL, EVTCHNOP_bind_virq, 3, 1
    two "our timer", 0, EVTCHNOP_bind_virq, VIRQ_TIMER, 0
    port_of r13d
    two "our timer twice", -EEXIST, EVTCHNOP_bind_virq, VIRQ_TIMER, 0
    two "raising our timer ourselves", -EINVAL, EVTCHNOP_send, r13d, 0
    two "moving our timer to another vcpu", -EINVAL, EVTCHNOP_bind_vcpu, r13d, 0
    two "moving a port to vcpu 64", -ENOENT, EVTCHNOP_bind_vcpu, r12d, 64
    two "moving port 0", -EINVAL, EVTCHNOP_bind_vcpu, 0, 0
    two "moving port 2^32-1", -EINVAL, EVTCHNOP_bind_vcpu, -1, 0
    two "an IPI to vcpu 64", -ENOENT, EVTCHNOP_bind_ipi, 64, 0
    two "an IPI to vcpu 2^32-1", -ENOENT, EVTCHNOP_bind_ipi, -1, 0
    two "the first physical interrupt", -EPERM, EVTCHNOP_bind_pirq, 0, 0
    two "the 256th", -EPERM, EVTCHNOP_bind_pirq, 255, 0
    two "a physical interrupt that cannot be", -EINVAL, EVTCHNOP_bind_pirq, 0x10000, 0

    # For others
    two "the status of domain 0's port 1", -EPERM, EVTCHNOP_status, 0, 1
    two "the status of nobody's port", -ESRCH, EVTCHNOP_status, NO_DOMAIN, 1
    two "the status of our port 4096", -EINVAL, EVTCHNOP_status, DOMID_SELF, LAST
    two "closing all ports of domain 0", -EPERM, EVTCHNOP_reset, 0, 0
    two "closing all ports of nobody", -ESRCH, EVTCHNOP_reset, NO_DOMAIN, 0
    mov dword ptr [rip + words + 12], 99
    two "a FIFO control block for vcpu 99", -ENOENT, EVTCHNOP_init_control, 0, 0
    attack "command 99", -ENOSYS, event_channel_op, 99, words, 0, 0
    attack "command 2^32-1", -ENOSYS, event_channel_op, -1, words, 0, 0

    # What lies in shared memory is only ours: all bits set, selectors that point nowhere
    lea rdi, [rip + shared_info + SHARED_INFO_evtchn_pending]
    mov rax, -1
    mov ecx, 64
    rep stosq
    lea rdi, [rip + shared_info + SHARED_INFO_evtchn_mask]
    xor eax, eax
    mov ecx, 64
    rep stosq
    mov rax, -1
    mov [rip + shared_info + VCPU_INFO_pending_sel], rax
    two "sending with every bit set", 0, EVTCHNOP_send, r12d, 0
    two "unmasking with every bit set", 0, EVTCHNOP_unmask, r12d, 0
    mov rax, words
    mov [rip + poll_request], rax
    mov dword ptr [rip + poll_request + 8], 1
    mov [rip + words], r12d
    attack "polling with every bit set", 0, sched_op, SCHEDOP_poll, poll_request, 0, 0
    lea rdi, [rip + shared_info + SHARED_INFO_evtchn_pending]
    xor eax, eax
    mov ecx, 64
    rep stosq
    hostile_end

.data
.balign 8
me:             .quad 0
words:          .quad 0, 0, 0
.long 0
.balign 8
poll_request:   .quad 0, 0, 0
