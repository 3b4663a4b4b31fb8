# SPDX-License-Identifier: GPL-2.0-only
#
# grants32 - grants pages to itself from a 32-bit kernel, maps and copies them, and tries what Xen must refuse
#
# `ping` and `pong` show what grants are for. One domain is enough to see how the calls work: it may grant to itself.
#   - the structures that hold pointers are shorter (setup_table 16 bytes, copy 24); the others are the same, with
#     addresses of 8 bytes, of which a virtual one fills the lower 4;
#   - a mapped grant is a page-table entry that only the unmap call may take away, with NX and without the U bit;
#   - while it is mapped Xen keeps `reading` and `writing` set in the entry.
#
# Steps: own domid; grant table; map, read-only map, map by the entry's machine address; copy; refusals; SUCCESS.

.width 32
.include "xen.inc"
.include "kernel32.inc"
.include "traps32.inc"
.include "paging32.inc"

.set REFERENCE, GNTTAB_RESERVED_ENTRIES         # the first entry that is free: 0 to 7 belong to the tools
.set READ_WRITE, PTE_P | PTE_RW | PTE_A | PTE_D
.set NX_HIGH, 1 << 31                           # of an entry's high half
.set GNTTABOP_query_size, 6
.set GNTTABOP_get_version, 10
.set GNTMAP_readonly, 4
.set GNTMAP_contains_pte, 16
.set GNTCOPY_source_gref, 1
.set GNTCOPY_dest_gref, 2
.set GTF_readonly, 4
.set GNTST_okay, 0
.set GNTST_bad_domain, -2
.set GNTST_bad_gntref, -3
.set GNTST_bad_handle, -4
.set GNTST_bad_copy_arg, -10
.set MMUEXT_CLEAR_PAGE, 16
.set NOBODY, 0x7000                             # a domid that no domain has

# struct gnttab_map_grant_ref
.set MAP_host_addr, 0                           # u64
.set MAP_flags, 8
.set MAP_ref, 12
.set MAP_dom, 16                                # u16
.set MAP_status, 18                             # s16
.set MAP_handle, 20
# struct gnttab_unmap_grant_ref
.set UNMAP_host_addr, 0                         # u64
.set UNMAP_handle, 16
.set UNMAP_status, 20                           # s16
# struct gnttab_copy
.set COPY_source, 0                             # u32 reference or frame, u16 domid, u16 offset
.set COPY_dest, 8
.set COPY_len, 16                               # u16
.set COPY_flags, 18                             # u16
.set COPY_status, 20                            # s16

.macro grant_op operation, argument             # one of them
    mov ebx, GNTTABOP_\operation
    mov ecx, \argument
    mov edx, 1
    hypercall grant_table_op
    must_return 0, "grant_table_op(\operation)"
.endm

.macro map_with flags, reference, domain        # at `window`, or where map_arg says
    mov dword ptr [map_arg + MAP_flags], \flags
    mov dword ptr [map_arg + MAP_ref], \reference
    mov ax, \domain
    mov [map_arg + MAP_dom], ax
    grant_op map_grant_ref, map_arg
.endm

.macro status_is argument, status, what
    cmp word ptr [\argument], \status & 0xffff
    check e, "\what: wrong status"
.endm

.macro refused_with argument, status, what
    status_is \argument, \status, "\what"
    print "refused: \what\n"
.endm

.macro unmap what                               # what map_arg has mapped
    mov eax, [map_arg + MAP_host_addr]
    mov [unmap_arg + UNMAP_host_addr], eax
    mov eax, [map_arg + MAP_host_addr + 4]
    mov [unmap_arg + UNMAP_host_addr + 4], eax
    mov eax, [map_arg + MAP_handle]
    mov [unmap_arg + UNMAP_handle], eax
    grant_op unmap_grant_ref, unmap_arg
    status_is unmap_arg + UNMAP_status, GNTST_okay, "\what"
.endm

.text
_start:
    kernel_entry
    print "grants32: granting to ourselves\n"
    call traps_init

    # --- Who are we? A port that is offered to ourselves tells ---------------------------------------------------
    mov ebx, EVTCHNOP_alloc_unbound
    mov ecx, unbound_arg
    hypercall event_channel_op
    must_return 0, "allocating a port"
    mov eax, [unbound_arg + 4]
    mov [status_arg + 4], eax
    mov ebx, EVTCHNOP_status
    mov ecx, status_arg
    hypercall event_channel_op
    must_return 0, "a port's status"
    movzx eax, word ptr [status_arg + 16]
    mov [own_domid], eax
    print "  domain "
    print_dec [own_domid]
    print "\n"

    # --- The grant table ----------------------------------------------------------------------------------------
    grant_op setup_table, setup_arg
    status_is setup_arg + 8, GNTST_okay, "setup_table"
    mov edx, [frame_list]
    mov ecx, edx
    shl edx, PAGE_SHIFT
    shr ecx, 32 - PAGE_SHIFT
    or edx, READ_WRITE
    mov eax, grant_table
    call update_mapping
    must_succeed "mapping the grant table"
    mov eax, [start_info]
    mov eax, [eax + START_INFO_console_mfn]
    cmp [grant_table + 4], eax
    check e, "entry 0 does not grant the console's page"
    grant_op query_size, size_arg
    cmp dword ptr [size_arg + 4], 1
    check ae, "query_size: no frame"
    grant_op get_version, version_arg
    cmp dword ptr [version_arg + 4], 1
    check e, "the table does not begin with version 1"

    mov eax, shared_page
    call va_to_mfn
    mov [shared_frame], eax
    mov [grant_table + REFERENCE * GRANT_ENTRY_SIZE + 4], eax
    mov ax, [own_domid]
    mov [grant_table + REFERENCE * GRANT_ENTRY_SIZE + 2], ax
    mov word ptr [grant_table + REFERENCE * GRANT_ENTRY_SIZE], GTF_permit_access
    mov dword ptr [shared_page], 0x600d

    # --- Map it a second time -----------------------------------------------------------------------------------
    mov eax, window
    mov edx, 1
    call find_table
    mov ecx, window
    shr ecx, PAGE_SHIFT
    and ecx, 511
    lea ebp, [eax + ecx * 8]                    # ebp = va of the entry that maps `window`
    map_with GNTMAP_host_map, REFERENCE, [own_domid]
    status_is map_arg + MAP_status, GNTST_okay, "mapping"
    cmp dword ptr [window], 0x600d
    check e, "the mapped grant shows another page"
    mov dword ptr [window + 4], 0xcafe
    cmp dword ptr [shared_page + 4], 0xcafe
    check e, "a store through the mapped grant went elsewhere"
    mov ax, [grant_table + REFERENCE * GRANT_ENTRY_SIZE]
    and ax, GTF_reading | GTF_writing
    cmp ax, GTF_reading | GTF_writing
    check e, "a mapped grant is not marked as being read and written"
    mov eax, [ebp]
    mov edx, eax
    and eax, PTE_P | PTE_RW | PTE_US
    cmp eax, PTE_P | PTE_RW
    check e, "the grant's page-table entry has other flags"
    test dword ptr [ebp + 4], NX_HIGH
    check nz, "the grant's page-table entry has no NX"
    shr edx, PAGE_SHIFT
    mov eax, [shared_frame]
    and eax, 0xfffff
    cmp eax, edx
    check e, "the grant's page-table entry shows another frame"
    mov dword ptr [unmap_arg + UNMAP_handle], 0x12345
    mov dword ptr [unmap_arg + UNMAP_host_addr], window
    grant_op unmap_grant_ref, unmap_arg
    refused_with unmap_arg + UNMAP_status, GNTST_bad_handle, "unmapping with a handle that we do not have"
    unmap "unmapping"
    test dword ptr [ebp], PTE_P
    check z, "the unmapped grant left its page-table entry"
    test word ptr [grant_table + REFERENCE * GRANT_ENTRY_SIZE], GTF_reading | GTF_writing
    check z, "an unmapped grant is still marked"
    trap_begin .unmapped
    mov eax, [window]
.unmapped:
    trap_check TRAP_page_fault, "reading an unmapped grant"

    # --- Read-only ----------------------------------------------------------------------------------------------
    map_with GNTMAP_host_map | GNTMAP_readonly, REFERENCE, [own_domid]
    status_is map_arg + MAP_status, GNTST_okay, "mapping read-only"
    cmp dword ptr [window], 0x600d
    check e, "the read-only grant shows another page"
    trap_begin .read_only
    mov dword ptr [window], 0
.read_only:
    trap_check TRAP_page_fault, "writing a grant that is mapped read-only"
    trap_error PFEC_P | PFEC_W, "writing a grant that is mapped read-only"
    mov ax, [grant_table + REFERENCE * GRANT_ENTRY_SIZE]
    and ax, GTF_reading | GTF_writing
    cmp ax, GTF_reading
    check e, "a grant that is mapped read-only is not marked so"
    unmap "unmapping what was read-only"
    mov word ptr [grant_table + REFERENCE * GRANT_ENTRY_SIZE], GTF_permit_access | GTF_readonly
    map_with GNTMAP_host_map, REFERENCE, [own_domid]
    refused_with map_arg + MAP_status, GNTST_general_error, "mapping a read-only grant writable"
    mov word ptr [grant_table + REFERENCE * GRANT_ENTRY_SIZE], GTF_permit_access

    # --- By the entry's machine address, which may lie above 4 GiB ----------------------------------------------
    mov eax, ebp
    call frame_of
    mov eax, ebp
    and eax, PAGE_SIZE - 1
    or edx, eax
    mov [map_arg + MAP_host_addr], edx
    mov [map_arg + MAP_host_addr + 4], ecx
    map_with GNTMAP_host_map | GNTMAP_contains_pte, REFERENCE, [own_domid]
    status_is map_arg + MAP_status, GNTST_okay, "mapping by machine address"
    cmp dword ptr [window], 0x600d
    check e, "a grant mapped by machine address shows another page"
    unmap "unmapping by machine address"
    test dword ptr [ebp], PTE_P
    check z, "a grant unmapped by machine address left its page-table entry"
    mov dword ptr [map_arg + MAP_host_addr], window
    mov dword ptr [map_arg + MAP_host_addr + 4], 0

    # --- What must fail -----------------------------------------------------------------------------------------
    map_with GNTMAP_host_map, REFERENCE + 1, [own_domid]
    refused_with map_arg + MAP_status, GNTST_general_error, "mapping an entry that grants nothing"
    map_with GNTMAP_host_map, 0x7fffffff, [own_domid]
    refused_with map_arg + MAP_status, GNTST_bad_gntref, "mapping an entry beyond the table"
    map_with GNTMAP_host_map, REFERENCE, NOBODY
    refused_with map_arg + MAP_status, GNTST_bad_domain, "mapping a grant of nobody"
    map_with 0, REFERENCE, [own_domid]
    refused_with map_arg + MAP_status, GNTST_bad_gntref, "mapping nowhere"
    mov dword ptr [map_arg + MAP_host_addr], HYPERVISOR_HOLE
    map_with GNTMAP_host_map, REFERENCE, [own_domid]
    cmp word ptr [map_arg + MAP_status], GNTST_okay
    check l, "a grant was mapped into Xen's memory"
    print "refused: mapping into Xen's memory\n"
    mov dword ptr [map_arg + MAP_host_addr], window
    mov dword ptr [map_arg + MAP_host_addr + 4], 1
    map_with GNTMAP_host_map, REFERENCE, [own_domid]
    cmp word ptr [map_arg + MAP_status], GNTST_okay
    check l, "a grant was mapped above 4 GiB"
    print "refused: mapping above 4 GiB\n"
    mov ebx, GNTTABOP_map_grant_ref
    mov ecx, HYPERVISOR_HOLE
    mov edx, 1
    hypercall grant_table_op
    must_refuse EFAULT, "arguments in Xen's memory"
    mov word ptr [grant_table + REFERENCE * GRANT_ENTRY_SIZE + 2], NOBODY
    mov dword ptr [map_arg + MAP_host_addr + 4], 0
    map_with GNTMAP_host_map, REFERENCE, [own_domid]
    refused_with map_arg + MAP_status, GNTST_general_error, "mapping what is granted to another"
    mov ax, [own_domid]
    mov [grant_table + REFERENCE * GRANT_ENTRY_SIZE + 2], ax

    # --- Copy: from the grant into a page of ours, and from there into the grant --------------------------------
    mov dword ptr [copy_arg + COPY_source], REFERENCE
    mov ax, [own_domid]
    mov [copy_arg + COPY_source + 4], ax
    mov word ptr [copy_arg + COPY_source + 6], 4
    mov eax, copy_page
    call va_to_mfn
    mov [copy_arg + COPY_dest], eax
    mov word ptr [copy_arg + COPY_dest + 4], DOMID_SELF
    mov word ptr [copy_arg + COPY_dest + 6], 100
    mov word ptr [copy_arg + COPY_len], 4
    mov word ptr [copy_arg + COPY_flags], GNTCOPY_source_gref
    mov dword ptr [copy_page + 104], 0x5e471e1
    grant_op copy, copy_arg
    status_is copy_arg + COPY_status, GNTST_okay, "copying from a grant"
    cmp dword ptr [copy_page + 100], 0xcafe
    check e, "the copy is not what the page says"
    cmp dword ptr [copy_page + 104], 0x5e471e1
    check e, "the copy is longer than asked for"
    mov eax, [copy_arg + COPY_dest]
    mov [copy_arg + COPY_source], eax
    mov word ptr [copy_arg + COPY_source + 4], DOMID_SELF
    mov word ptr [copy_arg + COPY_source + 6], 104
    mov dword ptr [copy_arg + COPY_dest], REFERENCE
    mov ax, [own_domid]
    mov [copy_arg + COPY_dest + 4], ax
    mov word ptr [copy_arg + COPY_dest + 6], PAGE_SIZE - 4
    mov word ptr [copy_arg + COPY_flags], GNTCOPY_dest_gref
    grant_op copy, copy_arg
    status_is copy_arg + COPY_status, GNTST_okay, "copying into a grant"
    cmp dword ptr [shared_page + PAGE_SIZE - 4], 0x5e471e1
    check e, "the grant does not show what was copied into it"
    mov word ptr [copy_arg + COPY_len], 5
    grant_op copy, copy_arg
    refused_with copy_arg + COPY_status, GNTST_bad_copy_arg, "copying over the end of a page"
    mov word ptr [copy_arg + COPY_len], 4
    mov word ptr [grant_table + REFERENCE * GRANT_ENTRY_SIZE], GTF_permit_access | GTF_readonly
    grant_op copy, copy_arg
    refused_with copy_arg + COPY_status, GNTST_general_error, "copying into a read-only grant"

    # --- The pages are ours alone again: one may become a page table --------------------------------------------
    mov word ptr [grant_table + REFERENCE * GRANT_ENTRY_SIZE], 0
    mov eax, shared_page
    mov edx, PTE_P | PTE_A
    call remap
    must_succeed "mapping the shared page read-only"
    mov edx, [shared_frame]                     # an L1 of zeros; we may not write it any more, so let Xen do it
    mov eax, MMUEXT_CLEAR_PAGE
    call mmuext
    must_succeed "clearing the shared page"
    mov edx, [shared_frame]
    mov eax, MMUEXT_PIN_L1_TABLE
    call mmuext
    must_succeed "pinning the page that was shared"
    mov edx, [shared_frame]
    mov eax, MMUEXT_UNPIN_TABLE
    call mmuext
    must_succeed "unpinning it"
    print "  mapped, copied, withdrawn\n"
    succeed

.data
.balign 8
own_domid:      .long 0
shared_frame:   .long 0
frame_list:     .long 0
setup_arg:      .long DOMID_SELF, 1, 0, frame_list      # u16 domid, frames, s16 status, list
size_arg:       .long DOMID_SELF, 0, 0, 0       # u16 domid, frames, most frames, s16 status
version_arg:    .long DOMID_SELF, 0             # u16 domid, version
unbound_arg:    .short DOMID_SELF, DOMID_SELF
                .long 0                         # port (out)
status_arg:     .long DOMID_SELF, 0, 0, 0, 0, 0
.balign 8
map_arg:        .long window, 0, 0, 0, 0, 0, 0, 0
unmap_arg:      .long 0, 0, 0, 0, 0, 0
copy_arg:       .long 0, 0, 0, 0, 0, 0

.bss
.balign PAGE_SIZE
grant_table:    .zero PAGE_SIZE
shared_page:    .zero PAGE_SIZE
window:         .zero PAGE_SIZE
copy_page:      .zero PAGE_SIZE
