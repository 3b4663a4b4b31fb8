# SPDX-License-Identifier: GPL-2.0-only
#
# pong - maps the page that another domain (ping) grants and answers its ten rounds; boot both together
#
# The other half of ping.S: that one offers, this one takes. It teaches
#   - waiting for another domain in xenstore: the node is missing first, then unreadable for a moment, then there;
#   - map_grant_ref: Xen puts the foreign frame into the page-table entry that maps an address of ours, after it has
#     looked into ping's grant table. An ordinary page-table update with that frame would be refused;
#   - bind_interdomain: both ports become the two ends of one channel, and ours is pending at once, so that nothing
#     that ping did before gets lost;
#   - unmap_grant_ref: the entry is gone afterwards, and touching the address faults.
#
# Steps: peer; read data/ping-ref and data/ping-port of the peer; map; bind; ten times: wait for the round's number,
# answer with the same, notify; unmap, check that the page is gone; SUCCESS.

.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "events.inc"
.include "paging.inc"
.include "xenstore.inc"
.include "pingpong.inc"

.text
_start:
    kernel_entry
    print "pong: waiting for ping\n"
    call traps_init
    call xenstore_init
    call peer_of
    mov r12, rax                                # r12 = ping's domid
    lea rdi, [rip + path_ref]
    mov rsi, r12
    call xs_wait_peer
    test rax, rax
    check ns, "ping did not publish a grant reference within 10 seconds"
    mov [rip + map_arg + 12], eax
    lea rdi, [rip + path_port]
    mov rsi, r12
    call xs_wait_peer
    test rax, rax
    check ns, "ping did not publish a port"
    mov [rip + bind_arg + 4], eax

    # --- Map the page over one of ours ---------------------------------------------------------------------------
    lea rbx, [rip + window]                     # rbx = where the shared page appears
    mov [rip + map_arg], rbx
    mov dword ptr [rip + map_arg + 8], GNTMAP_host_map
    mov [rip + map_arg + 16], r12w
    mov edi, GNTTABOP_map_grant_ref
    lea rsi, [rip + map_arg]
    mov edx, 1
    hypercall grant_table_op
    must_succeed "grant_table_op(map_grant_ref)"
    cmp word ptr [rip + map_arg + 18], 0
    check e, "the grant could not be mapped"
    print "  mapped grant "
    mov edi, [rip + map_arg + 12]
    call put_dec
    print "\n"

    # --- Bind the channel ----------------------------------------------------------------------------------------
    mov [rip + bind_arg], r12w
    mov edi, EVTCHNOP_bind_interdomain
    lea rsi, [rip + bind_arg]
    hypercall event_channel_op
    must_succeed "binding the event channel"
    mov eax, [rip + bind_arg + 8]
    mov [rip + port], eax

    # --- Ten rounds ----------------------------------------------------------------------------------------------
    xor ebp, ebp
.round:
    inc ebp
    lea rdi, [rbx + PAGE_ping]
    mov esi, ebp
    mov edx, [rip + port]
    call await_number
    print "  pong "
    print_dec rbp
    print "\n"
    mov [rbx + PAGE_pong], ebp
    notify port
    cmp ebp, ROUNDS
    jb .round

    # --- Give the page back --------------------------------------------------------------------------------------
    mov [rip + unmap_arg], rbx
    mov eax, [rip + map_arg + 20]
    mov [rip + unmap_arg + 16], eax             # the handle that mapping gave us
    mov edi, GNTTABOP_unmap_grant_ref
    lea rsi, [rip + unmap_arg]
    mov edx, 1
    hypercall grant_table_op
    must_succeed "grant_table_op(unmap_grant_ref)"
    cmp word ptr [rip + unmap_arg + 20], 0
    check e, "the grant could not be unmapped"
    trap_begin .gone
    mov eax, [rbx]
.gone:
    trap_check TRAP_page_fault, "reading ping's page after it was unmapped"
    lea rdi, [rip + window]                     # our own page is still ours: map it again
    mov esi, READ_WRITE
    call remap
    must_succeed "mapping our own page again"
    mov edi, EVTCHNOP_close
    lea rsi, [rip + port]
    hypercall event_channel_op
    must_succeed "closing the port"
    print "  "
    print_dec rbp
    print " rounds\n"
    succeed

.data
.balign 8
map_arg:                                        # address, u32 flags, u32 reference, u16 domid, s16 status,
    .quad 0, 0, 0, 0                            # u32 handle at 20, bus address at 24
unmap_arg:                                      # address, bus address, u32 handle, s16 status at 20
    .quad 0, 0, 0
bind_arg:       .long 0, 0, 0                   # u16 remote domid, remote port, local port (out)
port:           .long 0

.bss
.balign PAGE_SIZE
window:         .zero PAGE_SIZE
