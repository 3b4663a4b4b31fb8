# SPDX-License-Identifier: GPL-2.0-only
#
# exhaustion - takes of everything as much as there is: ports, grants, handles, watches, transactions, flushes, tables
#
# Class: exhaustion of quotas
# History: XSA-45, XSA-252, XSA-326, XSA-385
# Refused: everything that a guest can make more of has a limit of its own, told by an error; reaching one changes nothing
#   for others; what was taken can be given back and taken again.

.include "hostile.inc"
.include "domid.inc"

.set XS_DIRECTORY, 1
.set XS_WATCH, 4
.set XS_TRANSACTION_START, 6
.set XS_RESET_WATCHES, 21
.set MAX_PORTS, 1023
.set MAX_GRANT_FRAMES, 64
.set REF, GNTTAB_RESERVED_ENTRIES

.text
_start:
    hostile_entry "exhaustion"
    call own_domid
    mov [rip + me], rax

    # Event channels
    mov r14d, 3                                 # three times, to see that all come back
.ports_again:
    xor r13d, r13d
.ports:
    mov dword ptr [rip + words], DOMID_SELF
    mov edi, EVTCHNOP_alloc_unbound
    lea rsi, [rip + words]
    hypercall event_channel_op
    test rax, rax
    js .ports_full
    inc r13d
    cmp r13d, 10000
    jb .ports
.ports_full:
    answer_is -ENOSPC, "one port too many"
    attack "an IPI then", -ENOSPC, event_channel_op, EVTCHNOP_bind_ipi, zeros, 0, 0
    mov ebx, 1
.close:
    cmp ebx, [rip + console_port]
    je .next_port
    cmp ebx, [rip + xs_port]
    je .next_port
    mov [rip + words], ebx
    mov edi, EVTCHNOP_close
    lea rsi, [rip + words]
    hypercall event_channel_op
.next_port:
    inc ebx
    cmp ebx, 1024
    jb .close
    dec r14d
    jnz .ports_again
    equal "as many ports as there are, less ours", r13, MAX_PORTS - 2

    # Grant frames, then handles
    mov ebx, 1
.grant_frames:
    mov [rip + setup_arg + 4], ebx
    lea rax, [rip + frame_list]
    mov [rip + setup_arg + 16], rax
    mov edi, GNTTABOP_setup_table
    lea rsi, [rip + setup_arg]
    mov edx, 1
    hypercall grant_table_op
    must_succeed "setup_table"
    cmp word ptr [rip + setup_arg + 8], 0
    jne .grant_frames_full
    inc ebx
    cmp ebx, 10000
    jb .grant_frames
.grant_frames_full:
    dec ebx
    equal "as many grant frames as there may be", rbx, MAX_GRANT_FRAMES
    mov rsi, [rip + frame_list]
    shl rsi, PAGE_SHIFT
    or rsi, READ_WRITE
    lea rdi, [rip + table]
    call update_mapping
    must_succeed "mapping the grant table"
    lea rdi, [rip + page]
    call va_to_mfn
    mov [rip + table + REF * 8 + 4], eax
    mov rax, [rip + me]
    mov [rip + table + REF * 8 + 2], ax
    mov word ptr [rip + table + REF * 8], GTF_permit_access
    xor ebx, ebx
.pins:
    mov dword ptr [rip + map_arg + 8], 1        # GNTMAP_device_map
    mov dword ptr [rip + map_arg + 12], REF
    mov rax, [rip + me]
    mov [rip + map_arg + 16], ax
    mov edi, GNTTABOP_map_grant_ref
    lea rsi, [rip + map_arg]
    mov edx, 1
    hypercall grant_table_op
    must_succeed "map_grant_ref"
    cmp word ptr [rip + map_arg + 18], 0
    jne .pins_full
    inc ebx
    cmp ebx, 100000
    jb .pins
.pins_full:
    movsx rax, word ptr [rip + map_arg + 18]
    answer_is GNTST_general_error, "one use of a grant too many"
    equal "as many as there may be", rbx, 128

    # Xenstore
    xor ebx, ebx
.watches:
    call xs_begin
    lea rdi, [rip + path_data]
    call xs_text
    mov rdi, rbx
    call xs_number
    call xs_nul
    lea rdi, [rip + path_token]
    call xs_text
    call xs_nul
    mov edi, XS_WATCH
    call xs_call
    test rax, rax
    js .watches_full
    inc ebx
    cmp ebx, 10000
    jb .watches
.watches_full:
    answer_is -1, "one watch too many"
    equal "as many as there may be", rbx, 129   # xenstored compares with 128 before it counts the new one
    xor ebx, ebx
.transactions:
    call xs_begin
    call xs_nul
    mov edi, XS_TRANSACTION_START
    call xs_call
    test rax, rax
    js .transactions_full
    inc ebx
    cmp ebx, 10000
    jb .transactions
.transactions_full:
    answer_is -1, "one transaction too many"
    equal "as many as there may be", rbx, 11
    xor ebx, ebx
.nodes:
    call xs_begin
    lea rdi, [rip + path_data]
    call xs_text
    mov rdi, rbx
    shr rdi, 6
    call xs_number
    lea rdi, [rip + slash]
    call xs_text
    mov rdi, rbx
    call xs_number
    call xs_nul
    mov edi, XS_WRITE
    call xs_call
    test rax, rax
    js .nodes_full
    inc ebx
    cmp ebx, 5000
    jb .nodes
.nodes_full:
    answer_is -1, "one node too many"
    lea rdi, [rip + path_domid]
    call xs_read
    test rax, rax
    must g, "xenstore does not answer any more"

    # Memory: no more than the reservation, however it is asked for
    attack "a page more than we may have", 0, memory_op, XENMEM_populate_physmap, reservation, 0, 0

    # Flushes, tables, base pointers
    mov ebx, 5000
.flushes:
    mov dword ptr [rip + mmuext_list], 6        # MMUEXT_TLB_FLUSH_LOCAL
    lea rdi, [rip + mmuext_list]
    mov esi, 1
    xor edx, edx
    mov r10d, DOMID_SELF
    hypercall mmuext_op
    must_succeed "a flush"
    dec ebx
    jnz .flushes
    lea rdi, [rip + flush_list]
    mov ecx, 1000
    mov eax, NOWHERE
.fill:
    mov qword ptr [rdi], 7                      # MMUEXT_INVLPG_LOCAL
    mov [rdi + 8], rax
    add rdi, 24
    add rax, 4096
    dec ecx
    jnz .fill
    attack "a thousand pages flushed at once", 0, mmuext_op, flush_list, 1000, 0, DOMID_SELF
    xor ebp, ebp                                # 100 top tables, each used
.tables:
    call l4_of
    mov rsi, [rip + start_info]
    mov rsi, [rsi + START_INFO_pt_base]
    mov rax, [rsi]
    mov [rdi], rax
    call l4_of
    mov esi, READ_ONLY
    call remap
    must_succeed "mapping an L4 read-only"
    call l4_of
    call va_to_mfn
    mov rbx, rax
    mov edi, MMUEXT_PIN_L4_TABLE
    mov rsi, rbx
    call mmuext
    must_succeed "pinning an L4"
    mov edi, MMUEXT_NEW_BASEPTR
    mov rsi, rbx
    call mmuext
    must_succeed "running on it"
    inc ebp
    cmp ebp, 100
    jb .tables
    print "allowed: running on 100 tables\n"
    mov ebx, 2000                               # and switched between
.switch:
    mov eax, ebx
    xor edx, edx
    mov ecx, 100
    div ecx
    mov ebp, edx
    call l4_of
    call va_to_mfn
    mov rsi, rax
    mov edi, MMUEXT_NEW_BASEPTR
    call mmuext
    must_succeed "running on one of them"
    dec ebx
    jnz .switch
    hostile_end

l4_of:                                          # rdi = va of top table number ebp
    mov edi, ebp
    shl rdi, PAGE_SHIFT
    lea rax, [rip + l4s]
    add rdi, rax
    ret

.data
path_data:      .asciz "data/"
path_token:     .asciz "token"
slash:          .asciz "/"
.balign 8
me:             .quad 0
words:          .quad 0, 0
zeros:          .quad 0, 0
setup_arg:      .long DOMID_SELF, 1
                .quad 0, 0
map_arg:        .quad 0, 0, 0, 0
reservation:    .quad one_pfn, 1, 0, DOMID_SELF
one_pfn:        .quad 5000

.bss
.balign PAGE_SIZE
table:          .zero PAGE_SIZE
page:           .zero PAGE_SIZE
frame_list:     .zero PAGE_SIZE
flush_list:     .zero 24000
.balign PAGE_SIZE
l4s:            .zero 100 * PAGE_SIZE
