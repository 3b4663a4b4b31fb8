# SPDX-License-Identifier: GPL-2.0-only
#
# ping - shares a page with another domain (pong) and plays ten rounds of ping-pong over it; boot both together
#
# Domains are isolated; what they share, they share on purpose. This kernel and pong.S teach the three means:
#   - xenstore, to find each other: the tools tell each domain its peer in data/peer; ping publishes two numbers under
#     its own data/ and gives pong, and nobody else, the permission to read them;
#   - grant tables, to share memory: ping writes "domain P may map frame F" into an entry of its own grant table, a
#     page shared with Xen. The entry's number is all that pong needs to know. While pong has the page mapped Xen keeps
#     two bits set in the entry, so ping sees when it gets its page back;
#   - event channels, to ring the bell: ping allocates a port that only pong may bind to.
#
# Steps: peer; grant table; port; publish the port and then the reference; ten times: write the round's number, notify,
# wait until pong has answered with the same number; wait until pong has unmapped the page; withdraw the grant; SUCCESS.

.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "events.inc"
.include "paging.inc"
.include "xenstore.inc"
.include "pingpong.inc"

.set REFERENCE, GNTTAB_RESERVED_ENTRIES         # the first entry that is free: 0 to 7 belong to the tools

.text
_start:
    kernel_entry
    print "ping: waiting for pong\n"
    call traps_init
    call xenstore_init
    call peer_of
    mov r12, rax                                # r12 = pong's domid

    # --- The grant table: one frame of 512 entries. It is Xen's; we map it over a page of ours ------------------
    lea rax, [rip + frame_list]
    mov [rip + setup_table_arg + 16], rax
    mov edi, GNTTABOP_setup_table
    lea rsi, [rip + setup_table_arg]
    mov edx, 1
    hypercall grant_table_op
    must_succeed "grant_table_op(setup_table)"
    cmp word ptr [rip + setup_table_arg + 8], 0
    check e, "setup_table returned a bad status"
    lea rdi, [rip + grant_table]
    mov rsi, [rip + frame_list]
    shl rsi, PAGE_SHIFT
    or rsi, READ_WRITE
    call update_mapping
    must_succeed "mapping the grant table"

    # The entry: frame and domain first, the flags that make it valid last.
    lea rdi, [rip + shared_page]
    call va_to_mfn
    lea rbx, [rip + grant_table + REFERENCE * GRANT_ENTRY_SIZE]
    mov [rbx + 4], eax
    mov [rbx + 2], r12w
    mov word ptr [rbx], GTF_permit_access

    # --- The port -----------------------------------------------------------------------------------------------
    mov word ptr [rip + alloc_unbound_arg], DOMID_SELF
    mov [rip + alloc_unbound_arg + 2], r12w
    mov edi, EVTCHNOP_alloc_unbound
    lea rsi, [rip + alloc_unbound_arg]
    hypercall event_channel_op
    must_succeed "allocating a port"
    mov eax, [rip + alloc_unbound_arg + 4]
    mov [rip + port], eax

    # --- Publish. Whoever sees the reference must find the port as well: so the port first ----------------------
    lea rdi, [rip + path_port]
    mov esi, [rip + port]
    call publish
    lea rdi, [rip + path_ref]
    mov esi, REFERENCE
    call publish

    # --- Ten rounds ---------------------------------------------------------------------------------------------
    lea r14, [rip + shared_page]
    xor ebp, ebp
.round:
    inc ebp
    mov [r14 + PAGE_ping], ebp
    notify port                                 # before pong has bound the port this is lost: pong looks by itself
    lea rdi, [r14 + PAGE_pong]
    mov esi, ebp
    mov edx, [rip + port]
    call await_number
    print "  ping "
    print_dec rbp
    print ", answered\n"
    cmp ebp, ROUNDS
    jb .round

    # --- Get the page back: while pong maps it, Xen keeps `reading` and `writing` set ---------------------------
    mov r13d, PATIENCE
.in_use:
    test word ptr [rbx], GTF_reading | GTF_writing
    jz .unused
    mov edi, POLL_INTERVAL
    call sleep
    dec r13d
    check nz, "pong did not unmap the page within 10 seconds"
    jmp .in_use
.unused:
    mov eax, GTF_permit_access                  # withdraw, but only if pong has not mapped it again right now
    xor ecx, ecx
    lock cmpxchg [rbx], cx
    check e, "the grant was used again"
    lea rdi, [rip + path_ref]
    call xs_remove
    lea rdi, [rip + path_port]
    call xs_remove
    mov edi, EVTCHNOP_close
    lea rsi, [rip + port]
    hypercall event_channel_op
    must_succeed "closing the port"
    print "  "
    print_dec rbp
    print " rounds\n"
    succeed

# publish(rdi = path, esi = number): write it and let pong read it
publish:
    push rdi
    call xs_write_number
    test rax, rax
    check ns, "xenstore refused a write under data/"
    pop rdi
    mov esi, [rip + own_domid]
    mov edx, [rip + peer_domid]
    call xs_share
    test rax, rax
    check ns, "xenstore refused new permissions"
    ret

.data
.balign 8
setup_table_arg:                                # domid, u32 frames at 4, s16 status at 8, list at 16
    .short DOMID_SELF, 0
    .long 1
    .quad 0, 0
frame_list:     .quad 0
alloc_unbound_arg: .short 0, 0                  # our domid, who may bind
    .long 0                                     # port (out)
port:           .long 0

.bss
.balign PAGE_SIZE
shared_page:    .zero PAGE_SIZE
grant_table:    .zero PAGE_SIZE
