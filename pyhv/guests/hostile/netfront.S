# SPDX-License-Identifier: GPL-2.0-only
#
# netfront - asks the network back end to send what is not there, and writes rings that cannot be
#
# Class: rings and grants of a network device
# History: XSA-39, XSA-155, XSA-216, XSA-423, XSA-424, XSA-432
# Refused: a packet whose pages are not lent, or that makes no sense, is answered with an error; indices, chains and
#   offsets that cannot be end the connection, whereupon the guest may connect again; what others lend is not reached.

.include "hostile.inc"
.include "events.inc"
.include "xenstore.inc"
.include "netfront.inc"

.set MORE_DATA, 4
.set EXTRA_INFO, 8
.set CSUM_BLANK, 1
.set EXTRA_GSO, 0x00640001                      # u8 type, u8 flags, u16 size: 100 bytes each; u8 kind
.set EXTRA_GSO_MORE, 0x00640101
.set STATUS_ERROR, -1
.set STATUS_OKAY, 0
.set NOT_LENT, 300                              # a reference whose entry nobody has written
.set BEYOND, 0x7fffffff                         # one that the table does not have

.macro slot reference, offset, flags, size      # into the next slot of `tx`, not yet told
    mov edi, \reference
    mov esi, \offset
    mov edx, \flags
    mov ecx, \size
    call put_slot
.endm

.macro extra first, second, third               # an extra slot, of three words
    mov edi, \first
    mov r8d, \second
    mov r9d, \third
    call put_extra
.endm

.macro told_wrong what, answers                 # the last of so many slots is answered with an error
    mov edi, \answers
    call told
    answer_is STATUS_ERROR, "\what"
    mov edi, STATE_CONNECTED
    call net_await
.endm

.macro ends_it what                             # the other side no longer wants to hear of us; then, again
    print "  \what\n"
    call net_notify
    mov edi, STATE_CLOSING
    call net_await
    call net_again
    call net_join
    inc qword ptr [rip + attacks]
.endm

.text
_start:
    hostile_entry "netfront"
    call xenstore_init
    call net_find
    call net_join

    # --- Packets that make no sense by themselves ---------------------------------------------------------------------
    slot NET_REF_OUT, 0, 0, 0
    told_wrong "a packet of no bytes", 1
    slot NET_REF_OUT, 0, 0, 13
    told_wrong "a packet shorter than its header", 1
    slot NOT_LENT, 0, 0, 60
    told_wrong "a page that is not lent", 1
    slot BEYOND, 0, 0, 60
    told_wrong "a reference beyond the table", 1
    slot -1, 0, 0, 60
    told_wrong "the last reference that a number can name", 1
    slot NET_REF_OUT, 0, MORE_DATA, 100
    slot NOT_LENT, 0, 0, 40
    told_wrong "a fragment that is not lent", 2
    slot NET_REF_OUT, 0, CSUM_BLANK | EXTRA_INFO, 60
    extra EXTRA_GSO, 1, 0
    told_wrong "noise that is to be cut", 2

    # Pages that are lent and not ours to lend, or in use as something else
    lea rdx, [rip + net_grants + NOT_LENT * GRANT_ENTRY_SIZE]
    mov dword ptr [rdx + 4], 1
    mov dword ptr [rdx], GTF_permit_access
    slot NOT_LENT, 0, 0, 60
    told_wrong "a frame of Xen's", 1
    mov rax, [rip + start_info]
    mov rdi, [rax + START_INFO_pt_base]
    call va_to_mfn
    lea rdx, [rip + net_grants + NOT_LENT * GRANT_ENTRY_SIZE]
    mov [rdx + 4], eax
    mov dword ptr [rip + net_rx_victim], NOT_LENT
    call offer_victim                           # what comes is to be written into our own page table
    mov dword ptr [rdx], 0

    # --- Rings that cannot be -----------------------------------------------------------------------------------------
    mov eax, [rip + net_tx_prod]
    add eax, NET_SLOTS + 1
    mov [rip + net_tx + RING_req_prod], eax
    ends_it "257 requests in a ring of 256"
    mov dword ptr [rip + net_tx + RING_req_prod], -1    # none has been made since the beginning
    ends_it "a producer that goes back"
    mov dword ptr [rip + net_rx + RING_req_prod], 0x80000000
    slot NET_REF_OUT, 0, 0, 60
    ends_it "two thousand million offers"
    slot NET_REF_OUT, 4090, 0, 60
    ends_it "bytes beyond the page"
    slot NET_REF_OUT, 65535, 0, 65535
    ends_it "an offset beyond the page"
    slot NET_REF_OUT, 0, MORE_DATA, 60
    ends_it "a packet that goes on where nothing is"
    slot NET_REF_OUT, 0, EXTRA_INFO, 60
    ends_it "an extra slot that is not there"
    slot NET_REF_OUT, 0, MORE_DATA, 60
    slot NET_REF_OUT, 0, 0, 61
    ends_it "fragments of more than the packet"
    slot NET_REF_OUT, 0, EXTRA_INFO, 60
    extra 0x0009, 0, 0
    ends_it "an extra slot of no type"
    slot NET_REF_OUT, 0, EXTRA_INFO, 60
    extra 0x00000001, 1, 0
    ends_it "segments of no bytes"
    slot NET_REF_OUT, 0, MORE_DATA, 60
    mov ebx, 100
.chain:
    slot NET_REF_OUT, 0, MORE_DATA, 0
    dec ebx
    jnz .chain
    slot NET_REF_OUT, 0, 0, 0
    ends_it "a packet of a hundred fragments"
    slot NET_REF_OUT, 0, EXTRA_INFO, 60
    mov ebx, 100
.extras:
    extra EXTRA_GSO_MORE, 1, 0
    dec ebx
    jnz .extras
    extra EXTRA_GSO, 1, 0
    ends_it "a hundred extra slots"

    # --- After all that it still works --------------------------------------------------------------------------------
    slot NET_REF_OUT, 0, 0, 60
    mov edi, 1
    call told
    answer_is STATUS_OKAY, "a packet that is one"
    call net_close
    hostile_end

put_slot:                                       # edi = reference, esi = offset, edx = flags, ecx = size
    mov r8d, edx
    shl r8d, 16
    or r8d, esi
    mov r9d, ecx
    shl r9d, 16                                 # id 0
put_extra:                                      # edi, r8d, r9d = the slot's three words
    mov eax, [rip + net_tx_prod]
    mov edx, eax
    and edx, NET_SLOTS - 1
    imul edx, edx, NET_TX_SLOT
    lea rcx, [rip + net_tx + RING_entries]
    add rcx, rdx
    mov [rcx], edi
    mov [rcx + 4], r8d
    mov [rcx + 8], r9d
    inc eax
    mov [rip + net_tx_prod], eax
    mov [rip + net_tx + RING_req_prod], eax
    ret

told:                                           # edi = slots: -> rax = the status of the first of them
    push rbx
    mov ebx, [rip + net_tx_prod]
    sub ebx, edi
    call net_notify
    mov eax, [rip + net_tx_prod]
    cmp eax, [rip + net_tx + RING_rsp_prod]
    must e, "not all slots were answered"
    and ebx, NET_SLOTS - 1
    imul ebx, ebx, NET_TX_SLOT
    lea rcx, [rip + net_tx + RING_entries]
    movsx rax, word ptr [rcx + rbx + 2]
    pop rbx
    ret

offer_victim:                                   # nobody sends us anything: what matters is that offering it is harmless
    mov eax, [rip + net_rx_prod]
    mov ecx, eax
    and ecx, NET_SLOTS - 1
    lea r8, [rip + net_rx + RING_entries]
    mov r9d, [rip + net_rx_victim]
    mov dword ptr [r8 + rcx * NET_RX_SLOT], 0
    mov [r8 + rcx * NET_RX_SLOT + 4], r9d
    inc eax
    mov [rip + net_rx_prod], eax
    mov [rip + net_rx + RING_req_prod], eax
    jmp net_notify

.data
.balign 4
net_rx_victim:  .long 0
