# SPDX-License-Identifier: GPL-2.0-only
#
# grants - changes to grant tables of version 2, lends a part of a page and copies from it
#
# ping.S lends whole pages with a table of version 1. Version 2 is what a kernel uses that has more memory than 32 bits
# can count in pages, or that lends less than a page:
#   - an entry is 16 bytes: the frame has 64 bits, and a sub-page grant names an offset and a length. Such a page is
#     never mapped by the borrower, for a page table knows no parts of pages; it asks Xen to copy, and Xen looks at
#     both bounds;
#   - what Xen tells the lender ("being read", "being written") is no longer in the entry but in an array of its own,
#     the status frames, so that lender and hypervisor never write the same word;
#   - as these are pages of Xen's that we map, Xen cannot take them back while we do: changing to version 1 fails then.
#
# One domain plays both parts: it lends to itself.
#
# Steps: version 2; map the table and the statuses; lend 16 bytes in the middle of a page; copy them; ask for one more
# byte and for a mapping, which are refused; look at the status; back to version 1; SUCCESS.

.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "events.inc"
.include "paging.inc"
.include "xenstore.inc"

.set REFERENCE, GNTTAB_RESERVED_ENTRIES         # the first entry that is free: 0 to 7 belong to the tools
.set OFFSET, 0x700                              # where the part begins that we lend
.set LENGTH, 16
.set READ_WRITE, PTE_P | PTE_RW | PTE_A | PTE_D
.set COPY_length, 32                            # gnttab_copy: source 0, domid 8, offset 10; dest 16, domid 24, ...
.set COPY_status, 36

.text
_start:
    kernel_entry
    print "grants: lending a part of a page\n"
    call traps_init
    call xenstore_init
    lea rdi, [rip + path_domid]
    call xs_read
    test rax, rax
    check g, "xenstore has no node `domid` for this domain"
    call xs_value
    mov r12, rax                                # r12 = our domid

    # --- Version 2, and the two kinds of pages that come with it ------------------------------------------------
    mov esi, 2
    call set_version
    must_succeed "changing to version 2"
    mov edi, GNTTABOP_setup_table
    lea rsi, [rip + setup_table_arg]
    lea rax, [rip + frame_list]
    mov [rsi + 16], rax
    mov edx, 1
    hypercall grant_table_op
    must_succeed "grant_table_op(setup_table)"
    cmp word ptr [rip + setup_table_arg + 8], 0
    check e, "setup_table returned a bad status"
    lea rdi, [rip + grant_table]
    call map_listed
    must_succeed "mapping the grant table"
    mov edi, GNTTABOP_get_status_frames
    lea rsi, [rip + status_frames_arg]
    lea rax, [rip + frame_list]
    mov [rsi + 8], rax
    mov edx, 1
    hypercall grant_table_op
    must_succeed "grant_table_op(get_status_frames)"
    cmp word ptr [rip + status_frames_arg + 6], 0
    check e, "get_status_frames returned a bad status"
    lea rdi, [rip + statuses]
    call map_listed
    must_succeed "mapping the statuses"

    # --- Lend 16 bytes to ourselves: the flags that make the entry valid last -----------------------------------
    lea rdi, [rip + lent_page]
    call va_to_mfn
    lea rbx, [rip + grant_table + REFERENCE * GRANT_ENTRY_SIZE_V2]
    mov [rbx + 8], rax
    mov word ptr [rbx + 4], OFFSET
    mov word ptr [rbx + 6], LENGTH
    mov [rbx + 2], r12w
    mov word ptr [rbx], GTF_permit_access | GTF_sub_page

    # --- Copy them --------------------------------------------------------------------------------------------
    lea rdi, [rip + own_page]
    call va_to_mfn
    mov [rip + copy_arg + 16], rax
    mov [rip + copy_arg + 8], r12w
    mov esi, LENGTH
    call copy
    test rax, rax
    check z, "the part that was lent could not be copied"
    mov rax, [rip + lent_page + OFFSET]
    cmp rax, [rip + own_page]
    check e, "the copy is another text"
    mov rax, [rip + lent_page + OFFSET + 8]
    cmp rax, [rip + own_page + 8]
    check e, "the copy is another text"
    cmp qword ptr [rip + own_page + LENGTH], 0
    check e, "more was copied than was asked for"
    print "  copied: "
    lea rdi, [rip + own_page]
    call puts
    print "\n"

    # --- One byte more, and a mapping -------------------------------------------------------------------------
    mov esi, LENGTH + 1
    call copy
    cmp rax, GNTST_general_error
    check e, "a byte beyond the part was copied"
    lea rax, [rip + own_page]
    mov [rip + map_arg], rax
    mov [rip + map_arg + 16], r12w
    mov edi, GNTTABOP_map_grant_ref
    lea rsi, [rip + map_arg]
    mov edx, 1
    hypercall grant_table_op
    must_succeed "grant_table_op(map_grant_ref)"
    cmp word ptr [rip + map_arg + 18], GNTST_general_error
    check e, "a page was mapped of which a part was lent"
    print "  a byte more and a mapping are refused\n"

    # --- Nobody uses it now: take it back -----------------------------------------------------------------------
    cmp word ptr [rip + statuses + 2 * REFERENCE], 0
    check e, "the grant is still in use"
    cmp word ptr [rbx], GTF_permit_access | GTF_sub_page
    check e, "Xen changed the entry"
    mov word ptr [rbx], 0

    # --- Back to version 1, once the statuses are no longer mapped ----------------------------------------------
    mov esi, 1
    call set_version
    must_refuse EBUSY, "going back while the statuses are mapped"
    lea rdi, [rip + statuses]
    mov esi, READ_WRITE
    call remap
    must_succeed "mapping our own page again"
    mov esi, 1
    call set_version
    must_succeed "changing to version 1"
    succeed

# set_version(esi = version): -> rax = 0 or a negative errno; Xen writes back which version is in force
set_version:
    mov [rip + version], esi
    mov edi, GNTTABOP_set_version
    lea rsi, [rip + version]
    mov edx, 1
    hypercall grant_table_op
    ret

# map_listed(rdi = va of a page of ours): map the frame that Xen has told us in frame_list over it
map_listed:
    mov rsi, [rip + frame_list]
    shl rsi, PAGE_SHIFT
    or rsi, READ_WRITE
    jmp update_mapping

# copy(esi = length): from the grant to own_page -> rax = its status
copy:
    mov [rip + copy_arg + COPY_length], si
    mov edi, GNTTABOP_copy
    lea rsi, [rip + copy_arg]
    mov edx, 1
    hypercall grant_table_op
    must_succeed "grant_table_op(copy)"
    movsx rax, word ptr [rip + copy_arg + COPY_status]
    ret

.data
path_domid:     .asciz "domid"
.balign 8
version:        .long 0
.balign 8
setup_table_arg:                                # domid, u32 frames at 4, s16 status at 8, list at 16
    .short DOMID_SELF, 0
    .long 1
    .quad 0, 0
status_frames_arg:                              # u32 frames, domid at 4, s16 status at 6, list at 8
    .long 1
    .short DOMID_SELF, 0
    .quad 0
frame_list:     .quad 0
copy_arg:                                       # source and target, each a number, a domid and an offset; then the
    .quad REFERENCE                             # length, flags and the status
    .short 0, OFFSET, 0, 0
    .quad 0
    .short DOMID_SELF, 0, 0, 0
    .short 0, GNTCOPY_source_gref, 0, 0
map_arg:                                        # address, u32 flags, u32 reference, u16 domid, s16 status,
    .quad 0                                     # u32 handle at 20, bus address at 24
    .long GNTMAP_host_map, REFERENCE
    .quad 0, 0
.balign PAGE_SIZE
lent_page:
    .zero OFFSET
    .ascii "sixteen bytes ok"
    .zero PAGE_SIZE - OFFSET - LENGTH

.bss
.balign PAGE_SIZE
own_page:       .zero PAGE_SIZE
grant_table:    .zero PAGE_SIZE
statuses:       .zero PAGE_SIZE
