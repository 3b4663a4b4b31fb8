# SPDX-License-Identifier: GPL-2.0-only
#
# pages - builds a page table out of one of its pages, uses it and takes it apart; tries what Xen must refuse
#
# This is the heart of paravirtualization: the kernel edits the page tables that the processor uses, and Xen checks
# each edit. It teaches
#   - pfn and mfn: the p2m list and the M2P table translate between what the kernel calls its pages and where they are;
#   - frame types: a frame that is mapped writable cannot become a page table, and a page table cannot be mapped
#     writable. So the order is: fill the page, map it read-only, pin it (Xen validates all 512 entries), link it;
#   - the way back in reverse order: unlink, unpin, map writable again. That works only if Xen counted right;
#   - what an entry may not say: a frame of another owner, cache attributes, large pages, Xen's own slots.
#
# Steps: compare the p2m with the M2P; the life of an L1 table, with the refusals where they belong; SUCCESS.

.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "paging.inc"

.set WINDOW_SLOT, 511                           # the last slot of the first L2: 2 MiB below 1 GiB, unused so far
.set WINDOW, 511 << 21
.set READ_ONLY, PTE_P | PTE_A
.set READ_WRITE, PTE_P | PTE_RW | PTE_A | PTE_D
.set UPPER, PTE_P | PTE_RW | PTE_US | PTE_A     # what an entry above L1 usually says
.set NO_SUCH_FRAME, 0x7fffffff << 12            # 8 TiB

.text
_start:
    kernel_entry
    print "pages: the life of a page table\n"
    call traps_init

    # --- Every page of ours: M2P[p2m[pfn]] = pfn ---------------------------------------------------------------
    mov rbx, [rip + start_info]
    mov rsi, [rbx + START_INFO_mfn_list]
    mov rdi, MACH2PHYS_VIRT_START
    xor ecx, ecx
.compare:
    mov rax, [rsi + rcx * 8]
    cmp [rdi + rax * 8], rcx
    check e, "the M2P does not agree with the p2m"
    inc rcx
    cmp rcx, [rbx + START_INFO_nr_pages]
    jb .compare
    print "  M2P and p2m agree on "
    print_dec rcx
    print " pages\n"

    # --- Where are we? r12 = machine address of `table`, r13 = of `data_page`, r14 = of the L2's free slot -----
    lea rdi, [rip + table]
    call frame_of
    mov r12, rax
    lea rdi, [rip + data_page]
    call frame_of
    mov r13, rax
    mov edi, WINDOW
    mov esi, 2
    call find_table
    mov rbp, rax                                # rbp = va of the L2
    cmp qword ptr [rbp + WINDOW_SLOT * 8], 0
    check e, "the L2 slot for the window is in use"
    mov rdi, rbp
    mov esi, WINDOW_SLOT
    call entry_address
    mov r14, rax
    call find_foreign_frame
    mov r15, rax                                # r15 = a frame of somebody else's
    shl r15, PAGE_SHIFT

    # --- Fill the page: still an ordinary page, so plain stores do ---------------------------------------------
    mov rax, r13
    or rax, READ_WRITE
    mov [rip + table], rax                      # entry 0 maps data_page; the other 511 are not present

    # --- Pin it: not while it is mapped writable ---------------------------------------------------------------
    mov edi, MMUEXT_PIN_L1_TABLE
    mov rsi, r12
    shr rsi, PAGE_SHIFT
    call mmuext
    must_refuse EINVAL, "pinning a page that is mapped writable"

    lea rdi, [rip + table]
    mov esi, READ_ONLY
    call remap
    must_succeed "mapping the table read-only"
    mov edi, MMUEXT_PIN_L1_TABLE
    mov rsi, r12
    shr rsi, PAGE_SHIFT
    call mmuext
    must_succeed "pinning the table"
    print "  pinned as L1\n"

    # --- Link it into the L2, and look through the new mapping -------------------------------------------------
    mov rdi, r14
    mov rsi, r12
    or rsi, UPPER
    call set_entry
    must_succeed "linking the table into the L2"
    mov dword ptr [rip + data_page], 0x600d
    mov ebx, WINDOW
    cmp dword ptr [rbx], 0x600d
    check e, "the new mapping shows another page"
    mov dword ptr [rbx + 4], 0xcafe
    cmp dword ptr [rip + data_page + 4], 0xcafe
    check e, "a store through the new mapping went elsewhere"
    print "  linked and used\n"

    # --- The table belongs to Xen now --------------------------------------------------------------------------
    lea rdi, [rip + table]
    mov esi, READ_WRITE
    call remap
    must_refuse EBUSY, "mapping a page table writable"

    trap_begin .stored
    mov qword ptr [rip + table], 0
.stored:
    trap_check TRAP_page_fault, "storing into a page table"
    cmp qword ptr [rip + trapped_error], PFEC_P | PFEC_W
    check e, "the fault was not a kernel write to a present page"
    lea rax, [rip + table]
    cmp rax, [rip + trapped_cr2]
    check e, "cr2 does not hold the faulting address"

    mov edi, MMUEXT_PIN_L1_TABLE
    mov rsi, r12
    shr rsi, PAGE_SHIFT
    call mmuext
    must_refuse EINVAL, "pinning a table twice"
    mov edi, MMUEXT_PIN_L2_TABLE
    mov rsi, r12
    shr rsi, PAGE_SHIFT
    call mmuext
    must_refuse EINVAL, "pinning an L1 as an L2"
    mov edi, MMUEXT_UNPIN_TABLE
    mov rsi, r13
    shr rsi, PAGE_SHIFT
    call mmuext
    must_refuse EINVAL, "unpinning a page that is not pinned"

    # --- What an L1 entry may not say. The second entry of our table is the victim -----------------------------
    cmp r15, -PAGE_SIZE
    je .no_foreign_frame                        # the machine is all ours
    lea rdi, [r12 + 8]
    mov rsi, r15
    or rsi, READ_WRITE
    call set_entry
    must_refuse_either EPERM, EBUSY, "mapping a frame that is not ours"
    lea rdi, [r12 + 8]
    mov rsi, r15
    or rsi, READ_ONLY
    call set_entry
    must_refuse_either EPERM, EBUSY, "mapping a frame that is not ours read-only"
    mov edi, MMUEXT_PIN_L1_TABLE
    mov rsi, r15
    shr rsi, PAGE_SHIFT
    call mmuext
    must_refuse EINVAL, "pinning a frame that is not ours"
.no_foreign_frame:
    lea rdi, [r12 + 8]
    mov rsi, NO_SUCH_FRAME
    or rsi, READ_WRITE
    call set_entry
    must_refuse EPERM, "mapping a frame that does not exist"
    lea rdi, [r12 + 8]
    mov rsi, PTE_FRAME
    or rsi, READ_WRITE
    call set_entry
    must_refuse EINVAL, "mapping the invalid frame number"
    lea rdi, [r12 + 8]
    mov rsi, r13
    or rsi, READ_WRITE | PTE_PCD
    call set_entry
    must_refuse EINVAL, "an uncached mapping"
    lea rdi, [r12 + 8]
    mov rsi, r13
    or rsi, READ_WRITE | PTE_PWT
    call set_entry
    must_refuse EINVAL, "a write-through mapping"
    cmp qword ptr [rip + table + 8], 0
    check e, "a refused entry was written all the same"

    # --- What an L2 or L4 entry may not say --------------------------------------------------------------------
    mov rdi, r14
    mov rsi, r13
    or rsi, UPPER
    call set_entry
    must_refuse EINVAL, "linking a writable page as a page table"
    mov rdi, r14
    mov rsi, r13
    or rsi, UPPER | PTE_PSE
    call set_entry
    must_refuse EINVAL, "a large page"
    mov rdi, rbp
    call frame_of
    mov rsi, rax
    or rsi, UPPER
    mov rdi, r14
    call set_entry
    must_refuse EINVAL, "an L2 that maps itself writable"
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    mov esi, 256                                # slots 256 to 271 of every L4 are Xen's
    call entry_address
    mov rdi, rax
    xor esi, esi
    call set_entry
    must_refuse EINVAL, "changing one of Xen's L4 slots"
    mov ebx, WINDOW
    cmp dword ptr [rbx], 0x600d
    check e, "a refused change harmed the mapping"

    # --- The way back ------------------------------------------------------------------------------------------
    mov rdi, r14
    xor esi, esi
    call set_entry
    must_succeed "unlinking the table"
    trap_begin .unmapped
    mov dword ptr [rbx], 0
.unmapped:
    trap_check TRAP_page_fault, "using a mapping that is gone"
    cmp qword ptr [rip + trapped_error], PFEC_W
    check e, "the fault was not a kernel write to a missing page"
    lea rdi, [rip + table]
    mov esi, READ_WRITE
    call remap
    must_refuse EBUSY, "mapping a pinned table writable"
    mov edi, MMUEXT_UNPIN_TABLE
    mov rsi, r12
    shr rsi, PAGE_SHIFT
    call mmuext
    must_succeed "unpinning the table"
    lea rdi, [rip + table]
    mov esi, READ_WRITE
    call remap
    must_succeed "mapping the former table writable"
    mov qword ptr [rip + table], 0
    cmp qword ptr [rip + table], 0
    check e, "a store into the former table had no effect"
    print "  unlinked, unpinned, an ordinary page again\n"
    succeed

.bss
.balign PAGE_SIZE
table:          .zero PAGE_SIZE
data_page:      .zero PAGE_SIZE
