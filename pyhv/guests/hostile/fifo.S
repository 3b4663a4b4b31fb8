# SPDX-License-Identifier: GPL-2.0-only
#
# fifo - lies in the event words and control blocks of FIFO event channels, and takes their pages away
#
# Class: FIFO event channels
# History: XSA-107, XSA-188, XSA-338, XSA-358
# Refused: no queue is followed, so a loop costs nothing; a word that says LINKED keeps its port from being opened, and no
#   more; pages of words and control blocks are the guest's own, stay writable pages while they are used, and live as
#   long; a refused call leaves the old delivery in force.

.include "hostile.inc"

.macro control what, answer, frame, offset, vcpu
    mov rax, \frame
    mov [rip + control_arg], rax
    mov dword ptr [rip + control_arg + 8], \offset
    mov dword ptr [rip + control_arg + 12], \vcpu
    mov edi, EVTCHNOP_init_control
    lea rsi, [rip + control_arg]
    hypercall event_channel_op
    answer_is \answer, "\what"
.endm

.macro expand what, answer, frame
    mov rax, \frame
    mov [rip + expand_arg], rax
    attack "\what", \answer, event_channel_op, EVTCHNOP_expand_array, expand_arg, 0, 0
.endm

.macro priority what, answer, port, value
    mov eax, \port
    mov [rip + priority_arg], eax
    mov dword ptr [rip + priority_arg + 4], \value
    attack "\what", \answer, event_channel_op, EVTCHNOP_set_priority, priority_arg, 0, 0
.endm

.macro frame_in register, page
    lea rdi, [rip + \page]
    call va_to_mfn
    mov \register, rax
.endm

.macro new_ipi name                             # -> a port of vcpu 0
    mov dword ptr [rip + ipi_arg], 0
    mov edi, EVTCHNOP_bind_ipi
    lea rsi, [rip + ipi_arg]
    hypercall event_channel_op
    must_succeed "binding an IPI"
    mov eax, [rip + ipi_arg + 4]
    mov [rip + \name], eax
.endm

.macro quietly what, command, argument
    mov edi, \command
    lea rsi, [rip + \argument]
    hypercall event_channel_op
    test rax, rax
    must z, "\what"
.endm

.macro send_all
    quietly "sending one port", EVTCHNOP_send, port_a
    quietly "sending another", EVTCHNOP_send, port_b
    quietly "unmasking it", EVTCHNOP_unmask, port_a
.endm

.text
_start:
    hostile_entry "fifo"
    frame_in r12, control_page
    frame_in r13, words
    frame_in r14, alias
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    call va_to_mfn
    mov r15, rax
    call find_foreign_frame
    mov rbp, rax
    new_ipi port_a
    new_ipi port_b

    # Before
    expand "an array without a control block", -EOPNOTSUPP, r13
    priority "a priority in two-level delivery", -ENOSYS, [rip + port_a], 1
    control "the hypervisor's frame", -EINVAL, 1, 0, 0
    control "frame 0", -EINVAL, 0, 0, 0
    control "frame 2^52", -EINVAL, 1 << 52, 0, 0
    control "frame 2^64-2", -EINVAL, -2, 0, 0
    control "a frame that is not ours", -EINVAL, rbp, 0, 0
    control "our L4", -EINVAL, r15, 0, 0
    control "over the end of its page", -EINVAL, r12, 4032, 0
    control "at offset 4", -EINVAL, r12, 4, 0
    control "at offset 2^32-8", -EINVAL, r12, 0xfffffff8, 0
    control "of vcpu 64", -ENOENT, r12, 0, 64
    control "of vcpu 2^32-1", -ENOENT, r12, 0, 0xffffffff
    expand "an array after all these", -EOPNOTSUPP, r13
    try_map "the page is still ours alone", 0, control_page, READ_ONLY
    try_pin "as a table", 0, 1, control_page
    control "the page as control block meanwhile", -EINVAL, r12, 0, 0
    try_unpin "and back", 0, control_page
    try_map "as it was", 0, control_page, READ_WRITE

    # The switch
    control "a control block at the end of its page", 0, r12, 4024, 0
    control "a second one", -EINVAL, r12, 0, 0
    try_map "its page, read-only", 0, control_page, READ_ONLY
    try_pin "as L1", -EINVAL, 1, control_page
    try_pin "as L4", -EINVAL, 4, control_page
    mov [rip + list], r12
    attack "as GDT", -EINVAL, set_gdt, list, 512, 0, 0
    try_map "writable again", 0, control_page, READ_WRITE
    send_all
    expand "our L4 as words", -EINVAL, r15
    expand "the hypervisor's frame as words", -EINVAL, 1
    expand "a frame that is not ours as words", -EINVAL, rbp
    expand "frame 2^64-1 as words", -EINVAL, -1
    expand "a page of words", 0, r13
    try_map "it, read-only", 0, words, READ_ONLY
    try_pin "as L1", -EINVAL, 1, words
    attack "its words, which we cannot write now, are the hypervisor's to write", 0, event_channel_op, EVTCHNOP_send, port_a, 0, 0
    mov eax, [rip + port_a]
    lea rdx, [rip + words]
    mov eax, [rdx + rax * 4]
    test eax, EVENT_PENDING
    must nz, "the event did not arrive"
    try_map "writable again", 0, words, READ_WRITE
    mov ebx, 127                                # the same frame again and again, the control block's among them
.expand:
    mov rax, r14
    test ebx, 1
    cmovz rax, r12
    mov [rip + expand_arg], rax
    quietly "more words", EVTCHNOP_expand_array, expand_arg
    dec ebx
    jnz .expand
    expand "a page more than there are ports", -ENOSPC, r14

    priority "priority 16", -EINVAL, [rip + port_a], 16
    priority "priority 2^32-1", -EINVAL, [rip + port_a], 0xffffffff
    priority "of port 0", -EINVAL, 0, 1
    priority "of a port that is free", -EACCES, 900, 1
    priority "of port 2^17", -EINVAL, 0x20000, 1
    priority "the most urgent", 0, [rip + port_a], 0

    # Words that lie: loops, heads that are none, bits that are the hypervisor's
    lea r12, [rip + lies]
.lie:
    mov r13d, [r12]
    lea rdi, [rip + words]
    mov eax, r13d
    mov ecx, EVENT_WORDS
    rep stosd
    mov eax, [rip + port_a]                     # a port that is linked to itself
    lea rdx, [rip + words]
    and r13d, ~EVENT_LINK
    or r13d, eax
    mov [rdx + rax * 4], r13d
    mov r13d, [r12]
    lea rdi, [rip + control_page + 4024]
    mov eax, r13d
    mov ecx, 18
    rep stosd
    mov ebx, 50
.again:
    send_all
    mov eax, [rip + port_a]
    mov [rip + priority_arg], eax
    mov eax, ebx
    and eax, 15
    mov [rip + priority_arg + 4], eax
    quietly "a priority", EVTCHNOP_set_priority, priority_arg
    mov eax, [rip + port_b]                     # taken off by us while it is a tail, or put back
    lea rdx, [rip + words]
    mov ecx, ebx
    imul ecx, 0x9e3779b1
    xor [rdx + rax * 4], ecx
    dec ebx
    jnz .again
    inc qword ptr [rip + attacks]
    add r12, 4
    lea rax, [rip + lies_end]
    cmp r12, rax
    jb .lie
    print "refused: words and control blocks that lie\n"

    # All words LINKED: no port is free
    mov eax, -1
    call fill
    attack "a port when all are busy", -ENOSPC, event_channel_op, EVTCHNOP_bind_ipi, ipi_arg, 0, 0
    attack "closing one", 0, event_channel_op, EVTCHNOP_close, port_b, 0, 0
    attack "a port when even that is busy", -ENOSPC, event_channel_op, EVTCHNOP_bind_ipi, ipi_arg, 0, 0
    attack "closing it again", -EINVAL, event_channel_op, EVTCHNOP_close, port_b, 0, 0
    attack "sending it", -EINVAL, event_channel_op, EVTCHNOP_send, port_b, 0, 0
    attack "unmasking it", 0, event_channel_op, EVTCHNOP_unmask, port_b, 0, 0
    xor eax, eax
    call fill
    new_ipi port_b
    send_all

    # The page of words given away, and its mapping taken away: its events are still in it
    frame_in r13, words
    mov [rip + list], r13
    attack "giving back the words", 1, memory_op, XENMEM_decrease_reservation, reservation, 0, 0
    attack "giving them back twice, which takes no second reference", 1, memory_op, XENMEM_decrease_reservation, reservation, 0, 0
    lea rdi, [rip + words]
    xor esi, esi
    call update_mapping
    must_succeed "unmapping them"
    mov ebx, 100
.given:
    send_all
    dec ebx
    jnz .given
    lea rdi, [rip + words]
    mov rsi, r13
    shl rsi, PAGE_SHIFT
    or rsi, READ_WRITE
    call update_mapping
    answer_is 0, "mapping them again: they live as long as they are used"
    mov eax, [rip + port_b]
    lea rdx, [rip + words]
    mov eax, [rdx + rax * 4]
    test eax, EVENT_PENDING
    must nz, "the event went elsewhere"
    try_pin "as L1", -EINVAL, 1, words
    lea rdi, [rip + words]
    xor esi, esi
    call update_mapping
    must_succeed "unmapping them"
    hostile_end

fill:                                           # all words and the control block := eax
    lea rdi, [rip + words]
    mov ecx, EVENT_WORDS
    rep stosd
    lea rdi, [rip + alias]
    mov ecx, EVENT_WORDS
    rep stosd
    lea rdi, [rip + control_page]
    mov ecx, EVENT_WORDS
    rep stosd
    ret

.data
.balign 8
control_arg:    .quad 0, 0, 0                   # frame, u32 offset, u32 vcpu, u8 bits of a port's number
expand_arg:     .quad 0
priority_arg:   .long 0, 0
ipi_arg:        .long 0, 0
port_a:         .long 0
port_b:         .long 0
lies:
    .long EVENT_LINKED
    .long EVENT_LINKED | 1
    .long EVENT_LINKED | EVENT_BUSY | EVENT_LINK
    .long EVENT_BUSY | 5
    .long EVENT_PENDING | EVENT_LINKED
    .long EVENT_PENDING | 3
    .long 0xffffffff
    .long 0x55555555
    .long 0x0fffffff
    .long 0
lies_end:
.balign 8
list:           .quad 0
reservation:    .quad list, 1, 0, DOMID_SELF

.bss
.balign PAGE_SIZE
control_page:   .zero PAGE_SIZE
words:          .zero PAGE_SIZE
alias:          .zero PAGE_SIZE
