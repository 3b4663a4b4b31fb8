# SPDX-License-Identifier: GPL-2.0-only
#
# rings - writes nonsense into the pages that the console and xenstore back ends read, and takes the pages away from them
#
# Class: rings shared with back ends
# History: XSA-38, XSA-155, XSA-324
# Refused: indices that claim more than a ring holds move nothing; each index is read once; a message that is none ends
#   the guest's own connection at most; a ring's page cannot become a table, and given back it stays where it is.

.include "hostile.inc"
.include "domid.inc"

.set CONSOLE_in_cons, 3072
.set CONSOLE_in_prod, 3076

.set XENSTORE_connection, 2068                  # 0: connected, 1: start afresh
.set XENSTORE_error, 2072
.set XENSTORE_ERROR_RINGIDX, 2
.set XENSTORE_ERROR_PROTO, 3

.macro console_indices cons, prod
    mov rbx, [rip + console_page]
    mov r12d, [rbx + CONSOLE_out_prod]
    mov r13d, [rbx + CONSOLE_out_cons]
    mov dword ptr [rbx + CONSOLE_out_cons], \cons
    mov dword ptr [rbx + CONSOLE_out_prod], \prod
    call ring_console
    cmp dword ptr [rbx + CONSOLE_out_cons], \cons
    must e, "the console back end believed impossible indices"
    mov [rbx + CONSOLE_out_cons], r13d
    mov [rbx + CONSOLE_out_prod], r12d
    inc qword ptr [rip + attacks]
.endm

.macro store_indices cons, prod
    mov rbx, [rip + xs_page]
    mov dword ptr [rbx + XENSTORE_req_cons], \cons
    mov dword ptr [rbx + XENSTORE_req_prod], \prod
    call xs_notify
    cmp dword ptr [rbx + XENSTORE_error], XENSTORE_ERROR_RINGIDX
    must e, "xenstore believed impossible indices"
    call reconnect
    inc qword ptr [rip + attacks]
.endm

.macro keep                                     # the answer, to be judged when the console can be written again
    mov [r14], rax
    add r14, 8
.endm

.macro not_a_ring what, page
    mov r12, \page                              # va of a ring's page
    call try_ring
    equal "\what, mapped read-only", [rip + answers], 0
    equal "\what as L1", [rip + answers + 8], -EINVAL
    equal "\what as L4", [rip + answers + 16], -EINVAL
    equal "\what as GDT", [rip + answers + 24], -EINVAL
    equal "\what, as it was", [rip + answers + 32], 0
    attack "\what, given back", 1, memory_op, XENMEM_decrease_reservation, reservation, 0, 0
    attack "\what, given back twice, which takes no second reference", 1, memory_op, XENMEM_decrease_reservation, reservation, 0, 0
    attack "\what, exchanged", -EINVAL, memory_op, 11, exchange, 0, 0
.endm

.text
_start:
    hostile_entry "rings"
    call own_domid
    console_indices 0, 0x80000000
    console_indices 0, 2049
    console_indices 1, 0
    console_indices 0x7fffffff, 0
    console_indices 0x80000000, 0x7fffffff
    console_indices 0xffffffff, 0xfffffffe
    print "refused: six pairs of console indices\n"
    mov rbx, [rip + console_page]
    mov dword ptr [rbx + CONSOLE_in_cons], 0x12345678
    call ring_console
    mov dword ptr [rbx + CONSOLE_in_cons], 0

    # A message in the ring while the indices are wild, then right again
    store_indices 0, 0x80000000
    store_indices 0, 1025
    store_indices 1, 0
    store_indices 0xffffffff, 0x7fffffff
    store_indices 0x7fffffff, 0xffffffff
    lea rdi, [rip + path_domid]
    call xs_read
    test rax, rax
    must g, "xenstore does not answer after impossible indices"
    print "refused: five pairs of xenstore indices\n"
    mov rbx, [rip + xs_page]                    # the answer's indices: there is no room, then too much
    mov dword ptr [rbx + XENSTORE_rsp_cons], 0x55555555
    call xs_notify
    cmp dword ptr [rbx + XENSTORE_error], XENSTORE_ERROR_RINGIDX
    must e, "xenstore answered over an answer"
    call reconnect
    lea rdi, [rip + path_domid]
    call xs_read
    test rax, rax
    must g, "xenstore does not answer after impossible answers"
    print "refused: impossible indices of answers\n"

    # Messages that are none, but whose length is right: an error each
    mov r12d, 0
.types:
    call xs_begin
    lea rdi, [rip + garbage]
    call xs_text
    mov edi, r12d
    call xs_call
    inc qword ptr [rip + attacks]
    inc r12d
    cmp r12d, 40
    jb .types
    call xs_begin
    mov edi, 0xffffffff
    call xs_call
    answer_is -1, "a message of type 2^32-1"
    lea rdi, [rip + path_domid]
    call xs_read
    test rax, rax
    must g, "xenstore does not answer after nonsense"
    lea rdi, [rip + path_other]
    call xs_read
    answer_is -1, "domain 0's nodes"
    lea rdi, [rip + path_other]
    mov esi, 5
    call xs_write_number
    answer_is -1, "writing domain 0's nodes"
    lea rdi, [rip + path_up]
    call xs_read
    answer_is -1, "a path with .. in it"
    lea rdi, [rip + path_tool]
    mov esi, 5
    call xs_write_number
    answer_is -1, "writing where only the tools may"
    lea rdi, [rip + path_root]
    call xs_remove
    answer_is -1, "removing the root"

    # The pages
    not_a_ring "the xenstore page", [rip + xs_page]
    lea rdi, [rip + path_domid]
    call xs_read
    test rax, rax
    must g, "xenstore does not answer from a page that was given back"
    not_a_ring "the console's page", [rip + console_page]
    print "the console still works\n"

    # And last, a message longer than any may be: the end of this connection, and of nothing else
    mov rbx, [rip + xs_page]
    call reconnect
    mov dword ptr [rbx], XS_WRITE
    mov dword ptr [rbx + 12], 0xffffffff
    mov dword ptr [rbx + XENSTORE_req_prod], 16
    call xs_notify
    mov eax, [rbx + XENSTORE_error]
    equal "the error of a message too long", rax, XENSTORE_ERROR_PROTO
    mov dword ptr [rbx + XENSTORE_connection], 0x7fffffff
    call xs_notify
    call reconnect
    mov dword ptr [rbx + XENSTORE_error], 77    # what we write there is ours to believe
    lea rdi, [rip + path_domid]
    call xs_read
    test rax, rax
    must g, "xenstore does not answer after a new connection"
    mov dword ptr [rbx], XS_WRITE               # and a message that never ends, when we do
    mov dword ptr [rbx + 12], 4096
    mov dword ptr [rbx + XENSTORE_req_prod], 1000
    call xs_notify
    print "refused: a message of 2^32-1 bytes\n"
    inc qword ptr [rip + attacks]
    hostile_end

try_ring:                                       # r12 = va of a ring's page
    lea r14, [rip + answers]
    mov rdi, r12
    mov esi, READ_ONLY
    call remap
    keep
    mov rdi, r12
    call va_to_mfn
    mov r13, rax
    mov [rip + list], rax
    mov edi, MMUEXT_PIN_L1_TABLE
    mov rsi, r13
    call mmuext
    keep
    mov edi, MMUEXT_PIN_L4_TABLE
    mov rsi, r13
    call mmuext
    keep
    mov edi, list
    mov esi, 512
    hypercall set_gdt
    keep
    mov rdi, r12
    mov esi, READ_WRITE
    call remap
    keep
    ret

reconnect:                                      # rbx = va of the xenstore page
    mov dword ptr [rbx + XENSTORE_connection], 1
    call xs_notify
    cmp dword ptr [rbx + XENSTORE_connection], 0
    must e, "xenstore does not begin afresh"
    cmp dword ptr [rbx + XENSTORE_error], 0
    must e, "xenstore still sees an error"
    ret

ring_console:                                   # tell the back end
    save_volatile
    mov edi, EVTCHNOP_send
    lea rsi, [rip + console_port]
    hypercall event_channel_op
    restore_volatile
    ret

.data
garbage:        .ascii "\\n/../..//\t%s%n 99999999999999999999"
                .byte 255, 254, 128, 0
path_other:     .asciz "/local/domain/0/name"
path_up:        .asciz "/local/domain/0/../1/name"
path_tool:      .asciz "/tool/hostile"
path_root:      .asciz "/"
.balign 8
list:           .quad 0
answers:        .zero 40
reservation:    .quad list, 1, 0, DOMID_SELF
exchange:       .quad list, 1, 0, DOMID_SELF, list, 1, 0, DOMID_SELF, 0
