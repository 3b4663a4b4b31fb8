# SPDX-License-Identifier: GPL-2.0-only
#
# fifo - receives events through FIFO queues, urgent ones first, on one vcpu or on two (boot it with --vcpus 2)
#
# The 2-level scheme of events.inc forgets in which order events came, and knows no urgency. This kernel teaches the
# other scheme, FIFO event channels:
#   - the event array: one word a port, in pages that the kernel gives to Xen. A word says PENDING, MASKED, LINKED, and
#     which port is the next of the queue;
#   - the control block, one for each vcpu: 16 queues, one a priority (0 is the most urgent), each with a head, and a
#     bit that says whether it is ready;
#   - who does what: Xen puts a port behind the tail of its queue, we take ports off at the head. A port is on one
#     queue at most. If it has LINKED, Xen leaves it where it is, whatever we say about its priority or vcpu meanwhile;
#   - a second vcpu: VCPUOP_initialise gives it registers and a page table, VCPUOP_up starts it.
#
# Steps: switch to FIFO; three ports with three priorities, sent in the wrong order, arrive in the right one; three
# ports with the same priority arrive as they were sent; a masked port stays back until it is unmasked; if there is a
# second vcpu, ten rounds of IPIs between the two; SUCCESS.

.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"

.set ROUNDS, 10
.set CONTROL_BLOCK_SIZE, 128                    # 72 bytes, rounded up
.set DEFAULT_PRIORITY, 7
.set SECOND_SLOT, 64                            # vcpu_info of vcpu 1 in shared_info

# struct vcpu_guest_context
.set CONTEXT_flags, 512                         # u64
.set CONTEXT_rip, 520 + 128
.set CONTEXT_cs, 520 + 136
.set CONTEXT_rflags, 520 + 144
.set CONTEXT_rsp, 520 + 152
.set CONTEXT_ss, 520 + 160
.set CONTEXT_kernel_ss, 4968
.set CONTEXT_kernel_sp, 4976
.set CONTEXT_cr3, 4984 + 24
.set VGCF_in_kernel, 4

.macro new_ipi name, vcpu                       # bind an IPI of that vcpu; its port goes to the label
    mov dword ptr [rip + ipi_arg], \vcpu
    mov edi, EVTCHNOP_bind_ipi
    lea rsi, [rip + ipi_arg]
    hypercall event_channel_op
    must_succeed "binding an IPI"
    mov edi, [rip + ipi_arg + 4]
    mov [rip + \name], edi
    call unmask
.endm

.macro send name
    mov edi, EVTCHNOP_send
    lea rsi, [rip + \name]
    hypercall event_channel_op
    must_succeed "sending an event"
.endm

.macro priority name, value
    mov eax, [rip + \name]
    mov [rip + priority_arg], eax
    mov dword ptr [rip + priority_arg + 4], \value
    mov edi, EVTCHNOP_set_priority
    lea rsi, [rip + priority_arg]
    hypercall event_channel_op
    must_succeed "setting a priority"
.endm

.macro arrives name, what                       # the next port off vcpu 0's queues is this one
    xor edi, edi
    call take
    cmp eax, [rip + \name]
    check e, "\what"
.endm

.macro control_block vcpu
    mov edi, \vcpu
    call give_control_block
.endm

.text
_start:
    kernel_entry
    print "fifo: events in queues\n"
    call traps_init

    # --- Before: no priorities, and no array to expand ----------------------------------------------------------
    mov edi, EVTCHNOP_expand_array
    lea rsi, [rip + expand_arg]
    hypercall event_channel_op
    cmp rax, -95                                # EOPNOTSUPP
    check e, "an event array was taken before the control block"

    # --- Switch: a control block makes it. The words of a new page are ours to prepare: all masked -----------------
    control_block 0
    cmp byte ptr [rip + control_arg + 16], 17
    check e, "a port's number does not have 17 bits"
    lea rdi, [rip + event_array]
    mov eax, EVENT_MASKED
    mov ecx, EVENT_WORDS
    rep stosd
    lea rdi, [rip + event_array]
    call va_to_mfn
    mov [rip + expand_arg], rax
    mov edi, EVTCHNOP_expand_array
    lea rsi, [rip + expand_arg]
    hypercall event_channel_op
    must_succeed "giving a page of event words"

    # --- Priorities ---------------------------------------------------------------------------------------------
    new_ipi port_a, 0
    new_ipi port_b, 0
    new_ipi port_c, 0
    priority port_a, 15
    priority port_c, 0
    send port_a
    send port_b
    send port_c
    cmp byte ptr [rip + shared_info + VCPU_INFO_upcall_pending], 1
    check e, "queues became ready without an upcall"
    mov eax, [rip + control_blocks]
    cmp eax, 1 << 15 | 1 << DEFAULT_PRIORITY | 1
    check e, "not the three queues are ready"
    arrives port_c, "priority 0 does not come first"
    arrives port_b, "priority 7 does not come second"
    arrives port_a, "priority 15 does not come last"
    call nothing_left
    print "  by priority\n"

    # --- Order --------------------------------------------------------------------------------------------------
    priority port_a, DEFAULT_PRIORITY
    priority port_c, DEFAULT_PRIORITY
    send port_b
    send port_c
    send port_b                                 # pending already: it keeps its place
    send port_a
    arrives port_b, "the first does not come first"
    arrives port_c, "the second does not come second"
    arrives port_a, "the third does not come third"
    call nothing_left
    print "  in the order of arrival\n"

    # --- Masks --------------------------------------------------------------------------------------------------
    mov eax, [rip + port_a]
    lea rcx, [rip + event_array]
    lock bts dword ptr [rcx + rax * 4], 30
    send port_a
    send port_b
    arrives port_b, "an event that is not masked is missing"
    call nothing_left
    mov edi, [rip + port_a]
    call unmask
    arrives port_a, "an event was lost while it was masked"
    call nothing_left
    print "  when unmasked\n"

    # --- The second vcpu ----------------------------------------------------------------------------------------
    mov edi, VCPUOP_is_up
    mov esi, 1
    xor edx, edx
    hypercall vcpu_op
    cmp rax, -ENOENT
    jne .second_vcpu
    print "  one vcpu\n"
    succeed
.second_vcpu:
    control_block 1
    new_ipi port_ping, 1
    new_ipi port_pong, 0
    call start_second
    xor ebx, ebx
.round:
    inc ebx
    mov [rip + ping], ebx
    send port_ping
.wait:
    lea rdi, [rip + port_pong]
    call await
    arrives port_pong, "the answer is not on vcpu 0's queue"
    cmp [rip + pong], ebx
    check e, "the other vcpu answered something else"
    cmp ebx, ROUNDS
    jb .round
    call nothing_left
    print "  from vcpu to vcpu, "
    print_dec rbx
    print " rounds\n"
    succeed

# The other vcpu: it never takes upcalls, but polls its port, and takes what is on its own queues.
second:
    lea rdi, [rip + port_ping]
    call await
    mov edi, 1
    call take
    cmp eax, [rip + port_ping]
    check e, "what comes to vcpu 1 is not its own"
    mov eax, [rip + ping]
    mov [rip + pong], eax
    send port_pong
    jmp second

# take(edi = vcpu): -> eax = its most urgent event, handled: taken off the queue, no longer pending. 0 = none.
take:
    mov eax, edi
    shl eax, 7                                  # * CONTROL_BLOCK_SIZE
    lea r8, [rip + queues]                      # ours: what of the control block we have seen
    add r8, rax
    lea r9, [rip + control_blocks]
    add r9, rax
    lea r10, [rip + event_array]
    cmp edi, 0
    jne .look
    mov byte ptr [rip + shared_info + VCPU_INFO_upcall_pending], 0      # before looking
.look:
    xor eax, eax
    xchg [r9 + CONTROL_BLOCK_ready], eax
    or [r8 + CONTROL_BLOCK_ready], eax
    bsf ecx, [r8 + CONTROL_BLOCK_ready]
    jz .nothing
    mov edx, [r8 + rcx * 4 + CONTROL_BLOCK_head]        # where we are in this queue, if in the middle of it
    test edx, edx
    jnz .first
    mov edx, [r9 + rcx * 4 + CONTROL_BLOCK_head]
.first:
    mov eax, [r10 + rdx * 4]
.unlink:
    mov edi, eax
    and edi, EVENT_PENDING | EVENT_MASKED | EVENT_BUSY
    lock cmpxchg [r10 + rdx * 4], edi
    jne .unlink                                 # Xen has just linked another port behind it: eax has the new word
    and eax, EVENT_LINK
    mov [r8 + rcx * 4 + CONTROL_BLOCK_head], eax
    jnz .taken
    btr dword ptr [r8 + CONTROL_BLOCK_ready], ecx       # it was the last; Xen will begin a new queue
.taken:
    test edi, EVENT_MASKED
    jnz .look
    lock btr dword ptr [r10 + rdx * 4], 31
    jnc .look
    mov eax, edx
    ret
.nothing:
    xor eax, eax
    ret

nothing_left:
    xor edi, edi
    call take
    test eax, eax
    check z, "an event came twice"
    ret

# unmask(edi = port)
unmask:
    mov [rip + unmask_arg], edi
    mov edi, EVTCHNOP_unmask
    lea rsi, [rip + unmask_arg]
    hypercall event_channel_op
    must_succeed "unmasking"
    ret

# await(rdi = where the port is): sleep until it is pending
await:
    sub rsp, 24
    mov [rsp], rdi
    mov qword ptr [rsp + 8], 1
    mov qword ptr [rsp + 16], 0                 # for as long as it takes
    mov edi, SCHEDOP_poll
    mov rsi, rsp
    hypercall sched_op
    must_succeed "waiting for an event"
    add rsp, 24
    ret

# give_control_block(edi = vcpu)
give_control_block:
    mov [rip + control_arg + 12], edi
    shl edi, 7
    mov [rip + control_arg + 8], edi            # offset in the page
    lea rdi, [rip + control_blocks]
    call va_to_mfn
    mov [rip + control_arg], rax
    mov edi, EVTCHNOP_init_control
    lea rsi, [rip + control_arg]
    hypercall event_channel_op
    must_succeed "giving a control block"
    ret

# start_second(): vcpu 1 begins at `second`, with our page table and a stack of its own
start_second:
    lea rdi, [rip + context]
    lea rax, [rip + second]
    mov [rdi + CONTEXT_rip], rax
    lea rax, [rip + second_stack_top]
    mov [rdi + CONTEXT_rsp], rax
    mov [rdi + CONTEXT_kernel_sp], rax
    mov qword ptr [rdi + CONTEXT_flags], VGCF_in_kernel
    mov qword ptr [rdi + CONTEXT_cs], FLAT_RING3_CS64
    mov qword ptr [rdi + CONTEXT_ss], FLAT_RING3_SS64
    mov qword ptr [rdi + CONTEXT_kernel_ss], FLAT_RING3_SS64
    mov qword ptr [rdi + CONTEXT_rflags], EFLAGS_IF
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    call va_to_mfn
    shl rax, PAGE_SHIFT
    mov [rip + context + CONTEXT_cr3], rax
    mov byte ptr [rip + shared_info + SECOND_SLOT + VCPU_INFO_upcall_mask], 1
    mov edi, VCPUOP_initialise
    mov esi, 1
    lea rdx, [rip + context]
    hypercall vcpu_op
    must_succeed "initialising vcpu 1"
    mov edi, VCPUOP_up
    mov esi, 1
    xor edx, edx
    hypercall vcpu_op
    must_succeed "starting vcpu 1"
    ret

.data
.balign 8
control_arg:    .quad 0, 0, 0                   # frame, u32 offset and vcpu, u8 bits of a link (out)
expand_arg:     .quad 0                         # frame
ipi_arg:        .long 0, 0                      # vcpu, port (out)
priority_arg:   .long 0, 0                      # port, priority
unmask_arg:     .long 0
port_a:         .long 0
port_b:         .long 0
port_c:         .long 0
port_ping:      .long 0
port_pong:      .long 0
ping:           .long 0
pong:           .long 0

.bss
.balign PAGE_SIZE
event_array:    .zero PAGE_SIZE
control_blocks: .zero PAGE_SIZE                 # Xen's and ours: 128 bytes a vcpu
queues:         .zero PAGE_SIZE                 # ours alone, in the same form
context:        .zero 2 * PAGE_SIZE
second_stack:   .zero PAGE_SIZE
second_stack_top: .zero PAGE_SIZE
