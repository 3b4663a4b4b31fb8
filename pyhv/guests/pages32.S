# SPDX-License-Identifier: GPL-2.0-only
#
# pages32 - builds page tables of all three levels of a 32-bit PAE kernel, runs on them, tries what Xen must refuse
#
# `pages` tells the story of frame types; here is what PAE changes:
#   - the top table is an L3 of 4 entries of 1 GiB. Slot 3 must be present, and its L2, which carries Xen's entries in
#     slots 428 to 511, may have no other use. So a process needs an L3 and an L2 of its own;
#   - kernel and user share the top table: pages of the kernel just have no U bit. Xen does not change the entries of
#     L1 and L2 tables; those of an L3 gain U and RW;
#   - an entry has two halves, and a 32-bit processor writes one at a time. With writable page tables (vm_assist) Xen
#     emulates each store into an L1; when the half-written entry makes no sense it becomes not-present.
#
# Steps: the life of an L1; the L2 and what it may not say; the L3 of the builder; a new L3; stores into page tables;
# a multicall; SUCCESS.

.width 32
.include "xen.inc"
.include "kernel32.inc"
.include "traps32.inc"
.include "paging32.inc"

.set WINDOW_SLOT, 511                           # the last slot of the first L2: 2 MiB below 1 GiB, unused so far
.set WINDOW, 511 << 21
.set READ_ONLY, PTE_P | PTE_A
.set READ_WRITE, PTE_P | PTE_RW | PTE_A | PTE_D
.set UPPER, PTE_P | PTE_RW | PTE_US | PTE_A     # what an entry of an L2 usually says
.set NX_HIGH, 1 << 31                           # of an entry's high half
.set NO_SUCH_FRAME_HIGH, 0x7ff                  # 8 TiB and more
.set FIRST_XEN_SLOT, 428                        # of the L2 in L3 slot 3
.set TOP_GIB, 3 << 30
.set VMASST_CMD_enable, 0
.set VMASST_CMD_disable, 1
.set VMASST_TYPE_writable_pagetables, 2
.set MMU_PT_UPDATE_PRESERVE_AD, 2
.set MULTICALL_SIZE, 32                         # u32 op, result, six arguments

.macro entry_at table, index                    # eax = va of an entry
    mov eax, \table + \index * 8
.endm

.macro pin level, table
    mov eax, \table
    call va_to_mfn
    mov edx, eax
    mov eax, MMUEXT_PIN_L1_TABLE + \level - 1
    call mmuext
.endm

.macro unpin table
    mov eax, \table
    call va_to_mfn
    mov edx, eax
    mov eax, MMUEXT_UNPIN_TABLE
    call mmuext
.endm

.macro map page, flags                          # one of our own pages again, with other flags
    mov eax, \page
    mov edx, \flags
    call remap
.endm

.macro entry_for page, flags                    # ecx:edx = entry
    mov eax, \page
    mov edx, \flags
    call entry_of
.endm

.macro entry_for_null                           # ecx:edx = an entry that is not present
    xor edx, edx
    xor ecx, ecx
.endm

.text
_start:
    kernel_entry
    print "pages32: page tables of a 32-bit PAE kernel\n"
    call traps_init
    mov eax, [start_info]
    mov eax, [eax + START_INFO_pt_base]
    mov [top], eax
    mov eax, WINDOW
    mov edx, 2
    call find_table
    mov [first_l2], eax
    lea ebp, [eax + WINDOW_SLOT * 8]            # ebp = va of the L2's entry for the window
    cmp dword ptr [ebp], 0
    check e, "the L2 slot for the window is in use"
    mov eax, TOP_GIB
    mov edx, 2
    call find_table
    mov [last_l2], eax

    # --- The life of an L1 --------------------------------------------------------------------------------------
    entry_for data_page, READ_WRITE
    mov [table], edx                            # still an ordinary page
    mov [table + 4], ecx
    pin 1, table
    must_refuse EINVAL, "pinning a page that is mapped writable"
    map table, READ_ONLY
    must_succeed "mapping the table read-only"
    pin 1, table
    must_succeed "pinning the table"
    pin 1, table
    must_refuse EINVAL, "pinning a table twice"
    pin 2, table
    must_refuse EINVAL, "pinning an L1 as an L2"
    pin 4, table
    must_return 0, "pinning an L4, which PAE does not have"
    unpin data_page
    must_refuse EINVAL, "unpinning a page that is not pinned"
    map table, READ_WRITE
    must_refuse EBUSY, "mapping a page table writable"
    entry_for table, UPPER
    mov eax, ebp
    call set_entry
    must_succeed "linking the table into the L2"
    mov dword ptr [data_page], 0x600d
    cmp dword ptr [WINDOW], 0x600d
    check e, "the new mapping shows another page"
    mov dword ptr [WINDOW + 4], 0xcafe
    cmp dword ptr [data_page + 4], 0xcafe
    check e, "a store through the new mapping went elsewhere"
    entry_for data_page, READ_WRITE
    cmp [table], edx
    check e, "Xen changed the low half of an L1 entry"
    cmp [table + 4], ecx
    check e, "Xen changed the high half of an L1 entry"
    entry_for table, UPPER
    mov eax, [ebp]
    and eax, ~PTE_D
    cmp eax, edx
    check e, "Xen changed an L2 entry"
    trap_begin .stored
    mov dword ptr [table], 0
.stored:
    trap_check TRAP_page_fault, "storing into a page table"
    trap_error PFEC_P | PFEC_W, "storing into a page table"

    # --- What an L1 entry may not say ---------------------------------------------------------------------------
    call find_foreign_frame
    mov esi, eax
    cmp esi, -1
    je .no_foreign_frame
    mov ecx, esi
    mov edx, esi
    shr ecx, 20
    shl edx, PAGE_SHIFT
    or edx, READ_WRITE
    entry_at table, 1
    call set_entry
    cmp eax, -EPERM
    je .foreign_refused
    cmp eax, -EBUSY
    check e, "mapping a frame that is not ours"
.foreign_refused:
    print "refused: mapping a frame that is not ours\n"
    mov eax, MMUEXT_PIN_L1_TABLE
    mov edx, esi
    call mmuext
    must_refuse EINVAL, "pinning a frame that is not ours"
.no_foreign_frame:
    mov ecx, NO_SUCH_FRAME_HIGH
    mov edx, READ_WRITE
    entry_at table, 1
    call set_entry
    must_refuse EPERM, "mapping a frame that does not exist"
    mov ecx, 0xfffff
    mov edx, -PAGE_SIZE | READ_WRITE
    entry_at table, 1
    call set_entry
    must_refuse EINVAL, "mapping the invalid frame number"
    entry_for data_page, READ_WRITE | PTE_PCD
    entry_at table, 1
    call set_entry
    must_refuse EINVAL, "an uncached mapping"
    cmp dword ptr [table + 8], 0
    check e, "a refused entry was written all the same"
    mov eax, HYPERVISOR_HOLE
    entry_for_null
    call update_mapping
    must_refuse EINVAL, "update_va_mapping of Xen's memory"
    mov eax, MACH2PHYS_VIRT_START
    entry_for_null
    call update_mapping
    must_refuse EINVAL, "update_va_mapping of the M2P"
    entry_for data_page, READ_ONLY
    or ecx, NX_HIGH
    entry_at table, 1
    call set_entry
    must_succeed "an entry with NX"
    test dword ptr [table + 12], NX_HIGH
    check nz, "NX does not read back"
    trap_begin .executed
    mov eax, WINDOW + PAGE_SIZE
    jmp eax
.executed:
    trap_check TRAP_page_fault, "executing a page with NX"
    mov eax, [table + 8]                        # A, which the processor set in between, survives
    test eax, PTE_A
    check nz, "A does not read back"
    entry_for data_page, PTE_P
    or edx, PTE_US
    entry_at table, 1
    call set_entry_preserving
    must_succeed "an update that preserves A and D"
    mov eax, [table + 8]
    and eax, PTE_A | PTE_US
    cmp eax, PTE_A | PTE_US
    check e, "PRESERVE_AD lost A"
    print "  an L1 pinned, linked and used\n"

    # --- What an L2 entry may not say ---------------------------------------------------------------------------
    entry_for data_page, UPPER
    mov eax, ebp
    call set_entry
    must_refuse EINVAL, "linking a writable page as a page table"
    entry_for data_page, UPPER | PTE_PSE
    mov eax, ebp
    call set_entry
    must_refuse EINVAL, "a large page"
    mov eax, [first_l2]
    mov edx, UPPER
    call entry_of
    lea eax, [ebp - 8]
    call set_entry
    must_refuse EINVAL, "an L2 that maps itself writable"
    mov eax, [first_l2]
    mov edx, READ_ONLY
    call entry_of
    lea eax, [ebp - 8]
    call set_entry
    must_succeed "an L2 that maps itself read-only"
    mov eax, [ebp]                              # the window of 2 MiB below shows the L1 tables, and the L2 last but one
    cmp [WINDOW - 2 * PAGE_SIZE + WINDOW_SLOT * 8], eax
    check e, "the L2 does not appear in itself"
    lea eax, [ebp - 8]
    entry_for_null
    call set_entry
    must_succeed "taking the L2 out of itself"
    mov eax, [last_l2]
    add eax, FIRST_XEN_SLOT * 8
    entry_for_null
    call set_entry
    must_refuse EPERM, "changing Xen's first L2 slot"
    mov eax, [last_l2]
    add eax, 511 * 8
    entry_for_null
    call set_entry
    must_refuse EPERM, "changing Xen's last L2 slot"
    entry_for table, UPPER
    mov eax, [last_l2]
    add eax, FIRST_XEN_SLOT * 8 - 8
    call set_entry
    must_succeed "our last L2 slot below Xen's"
    cmp dword ptr [MACH2PHYS_VIRT_START - (2 << 20)], 0x600d
    check e, "the last 2 MiB below Xen show another page"
    mov eax, [last_l2]
    add eax, FIRST_XEN_SLOT * 8 - 8
    entry_for_null
    call set_entry
    must_succeed "emptying our last L2 slot"
    print "  L2 slots\n"

    # --- The L3 we were given -----------------------------------------------------------------------------------
    mov ebx, [top]
    mov eax, [ebx]
    and eax, PTE_P | PTE_RW | PTE_US
    cmp eax, PTE_P | PTE_RW | PTE_US
    check e, "an L3 entry does not have U and RW"
    mov edx, [ebx + 3 * 8]
    mov ecx, [ebx + 3 * 8 + 4]
    lea eax, [ebx + 3 * 8]
    call set_entry
    must_refuse EINVAL, "writing L3 slot 3, even with what it holds"
    lea eax, [ebx + 3 * 8]
    entry_for_null
    call set_entry
    must_refuse EINVAL, "emptying L3 slot 3"
    lea eax, [ebx + 4 * 8]
    entry_for_null
    call set_entry
    must_refuse EINVAL, "an L3 slot behind the fourth"
    mov edx, [ebx + 3 * 8]
    mov ecx, [ebx + 3 * 8 + 4]
    lea eax, [ebx + 8]
    call set_entry
    must_refuse EINVAL, "the L2 with Xen's entries in two slots"
    mov eax, ebx
    mov edx, PTE_P
    call entry_of
    lea eax, [ebx + 8]
    call set_entry
    must_refuse EINVAL, "an L3 that maps itself"
    entry_for table, PTE_P
    lea eax, [ebx + 8]
    call set_entry
    must_refuse EINVAL, "an L1 in the L3"
    mov esi, [ebx + 8]
    mov edi, [ebx + 12]
    mov edx, esi
    mov ecx, edi
    or edx, PTE_PCD
    lea eax, [ebx + 8]
    call set_entry
    must_refuse EINVAL, "an uncached L3 entry"
    mov edx, esi
    mov ecx, edi
    or ecx, NX_HIGH
    lea eax, [ebx + 8]
    call set_entry
    must_refuse EINVAL, "an L3 entry with NX"
    lea eax, [ebx + 8]
    entry_for_null
    call set_entry
    must_succeed "emptying L3 slot 1"
    mov edx, esi
    and edx, ~(PTE_RW | PTE_US)
    mov ecx, edi
    lea eax, [ebx + 8]
    call set_entry
    must_succeed "filling L3 slot 1"
    mov eax, [ebx + 8]
    and eax, PTE_RW | PTE_US
    cmp eax, PTE_RW | PTE_US
    check e, "a new L3 entry did not gain U and RW"
    print "  L3 slots\n"

    # --- A new L3, and an L2 for its slot 3 ---------------------------------------------------------------------
    mov esi, ebx
    mov edi, new_l3
    mov ecx, 3 * 2
.copy:
    mov eax, [esi]
    mov [edi], eax
    add esi, 4
    add edi, 4
    dec ecx
    jnz .copy
    mov dword ptr [new_l3 + 4 * 8], 0xdead001   # what is behind slot 3 does not matter
    map new_l3, READ_ONLY
    must_succeed "mapping the new L3 read-only"
    pin 3, new_l3
    must_refuse EINVAL, "an L3 without slot 3"
    map new_l3, READ_WRITE
    must_succeed "mapping the new L3 writable"
    mov edx, [ebx + 3 * 8]
    mov ecx, [ebx + 3 * 8 + 4]
    mov [new_l3 + 3 * 8], edx
    mov [new_l3 + 3 * 8 + 4], ecx
    map new_l3, READ_ONLY
    must_succeed "mapping the new L3 read-only"
    pin 3, new_l3
    must_refuse EINVAL, "an L3 that shares slot 3"
    map new_l3, READ_WRITE
    must_succeed "mapping the new L3 writable again"
    entry_for new_l2, PTE_P
    mov [new_l3 + 3 * 8], edx
    mov [new_l3 + 3 * 8 + 4], ecx
    pin 3, new_l3
    must_refuse EINVAL, "pinning an L3 that is mapped writable"
    map new_l3, READ_ONLY
    must_succeed "mapping the new L3 read-only"
    pin 3, new_l3
    must_refuse EINVAL, "an L3 whose L2 is mapped writable"
    map new_l2, READ_ONLY
    must_succeed "mapping the new L2 read-only"
    pin 3, new_l3
    must_succeed "pinning the new L3"
    mov eax, [new_l3 + 3 * 8]
    and eax, PTE_RW | PTE_US
    cmp eax, PTE_RW | PTE_US
    check e, "pinning did not add U and RW to the L3's entries"
    cmp dword ptr [new_l3 + 4 * 8], 0
    check e, "pinning did not clear what is behind slot 3"
    test dword ptr [new_l2 + FIRST_XEN_SLOT * 8], PTE_P
    check nz, "pinning did not put Xen's entries into slot 3's L2"
    entry_at new_l2, FIRST_XEN_SLOT
    entry_for_null
    call set_entry
    must_refuse EPERM, "changing Xen's slots in the new L2"

    mov eax, table
    call va_to_mfn
    mov edx, eax
    mov eax, MMUEXT_NEW_BASEPTR
    call mmuext
    must_refuse EINVAL, "an L1 as top table"
    mov eax, new_l3
    call va_to_mfn
    mov edi, eax
    mov edx, eax
    mov eax, MMUEXT_NEW_USER_BASEPTR
    call mmuext
    must_refuse EINVAL, "a user table, which 32-bit kernels do not have"
    mov eax, MMUEXT_NEW_BASEPTR
    mov edx, edi
    call mmuext
    must_succeed "running on the new L3"
    mov eax, edi
    shl eax, 12
    mov edx, edi
    shr edx, 20
    or eax, edx
    mov ecx, cr3
    cmp eax, ecx
    check e, "cr3 does not show the new L3"
    cmp dword ptr [WINDOW], 0x600d
    check e, "the new L3 shows another page"
    mov eax, [start_info]
    mov eax, [eax + START_INFO_console_mfn]
    cmp dword ptr [eax * 4 + MACH2PHYS_VIRT_START], -1
    check ne, "the M2P is not there under the new L3"
    unpin new_l3
    must_succeed "unpinning the L3 that we run on"
    map new_l3, READ_WRITE
    must_refuse EBUSY, "mapping the L3 that we run on writable"
    # Something that only the new one has: the table in its top GiB
    entry_for table, UPPER
    mov eax, new_l2
    call set_entry
    must_succeed "linking the table into the new top L2"
    cmp dword ptr [TOP_GIB], 0x600d
    check e, "the new top GiB shows another page"
    mov eax, [top]
    call va_to_mfn
    mov edx, eax
    mov eax, MMUEXT_NEW_BASEPTR
    call mmuext
    must_succeed "going back to the old L3"
    trap_begin .old_top
    mov eax, [TOP_GIB]
.old_top:
    trap_check TRAP_page_fault, "the new L3's page under the old one"
    map new_l3, READ_WRITE
    must_succeed "mapping the former L3 writable"
    map new_l2, READ_WRITE
    must_succeed "mapping its former L2 writable"
    print "  a new L3 used and taken apart\n"

    # --- Stores into an L1, emulated ----------------------------------------------------------------------------
    mov ebx, VMASST_CMD_enable
    mov ecx, VMASST_TYPE_writable_pagetables
    hypercall vm_assist
    must_return 0, "vm_assist(writable_pagetables)"
    entry_for data_page, READ_WRITE
    mov [table + 2 * 8 + 4], ecx                # high half first: nothing is present yet
    mov [table + 2 * 8], edx
    cmp dword ptr [WINDOW + 2 * PAGE_SIZE], 0x600d
    check e, "an entry made by two stores does not work"
    entry_for data_page, READ_ONLY
    mov ebx, edx
    mov eax, [table + 3 * 8]
    mov edx, [table + 3 * 8 + 4]
    lock cmpxchg8b [table + 3 * 8]              # ecx:ebx, if edx:eax is there
    check e, "cmpxchg8b on a page table did not store"
    cmp dword ptr [WINDOW + 3 * PAGE_SIZE], 0x600d
    check e, "an entry made by cmpxchg8b does not work"
    lock cmpxchg8b [table + 3 * 8]              # edx:eax is not there any more
    check ne, "cmpxchg8b on a page table stored what it should not"
    cmp eax, ebx
    check e, "cmpxchg8b did not load what it found"
    mov dword ptr [table + 3 * 8], 0
    mov eax, [table + 3 * 8]
    test eax, eax
    check z, "a store of 0 into a page table had no effect"
    mov dword ptr [table + 2 * 8 + 4], NO_SUCH_FRAME_HIGH
    mov eax, [table + 2 * 8]                    # an upper half that makes no sense: accepted, and P taken away
    test eax, PTE_P
    check z, "an invalid upper half left the entry present"
    cmp dword ptr [table + 2 * 8 + 4], NO_SUCH_FRAME_HIGH
    check e, "an invalid upper half was not stored"
    trap_begin .bad_low
    mov dword ptr [table + 2 * 8], READ_WRITE   # a lower half that makes no sense: the store faults
.bad_low:
    trap_check TRAP_page_fault, "an invalid lower half"
    trap_error PFEC_P | PFEC_W, "an invalid lower half"
    mov eax, [table + 2 * 8]
    test eax, PTE_P
    check z, "an invalid lower half was stored"
    trap_begin .l2_store
    mov [ebp], eax
.l2_store:
    trap_check TRAP_page_fault, "a store into an L2"
    mov ebx, VMASST_CMD_disable
    mov ecx, VMASST_TYPE_writable_pagetables
    hypercall vm_assist
    must_return 0, "vm_assist(disable)"
    trap_begin .no_assist
    mov dword ptr [table + 2 * 8], 0
.no_assist:
    trap_check TRAP_page_fault, "a store without the assist"
    print "  writable page tables\n"

    # --- Two entries by one multicall ---------------------------------------------------------------------------
    entry_for data_page, READ_WRITE
    mov dword ptr [calls], __HYPERVISOR_update_va_mapping
    mov dword ptr [calls + 8], WINDOW + 4 * PAGE_SIZE
    mov [calls + 12], edx
    mov [calls + 16], ecx
    mov dword ptr [calls + 20], UVMF_INVLPG
    mov dword ptr [calls + 4], 99
    mov dword ptr [calls + MULTICALL_SIZE], __HYPERVISOR_update_va_mapping
    mov dword ptr [calls + MULTICALL_SIZE + 8], HYPERVISOR_HOLE
    mov dword ptr [calls + MULTICALL_SIZE + 4], 99
    mov ebx, calls
    mov ecx, 2
    hypercall multicall
    must_return 0, "multicall"
    cmp dword ptr [calls + 4], 0
    check e, "the multicall's first entry failed"
    cmp dword ptr [calls + MULTICALL_SIZE + 4], -EINVAL
    check e, "the multicall's second entry was not refused"
    cmp dword ptr [WINDOW + 4 * PAGE_SIZE], 0x600d
    check e, "the multicall's mapping does not work"

    # --- The way back -------------------------------------------------------------------------------------------
    mov eax, ebp
    entry_for_null
    call set_entry
    must_succeed "unlinking the table"
    trap_begin .unmapped
    mov dword ptr [WINDOW], 0
.unmapped:
    trap_check TRAP_page_fault, "using a mapping that is gone"
    trap_error PFEC_W, "using a mapping that is gone"
    map table, READ_WRITE
    must_refuse EBUSY, "mapping a pinned table writable"
    unpin table
    must_succeed "unpinning the table"
    map table, READ_WRITE
    must_succeed "mapping the former table writable"
    mov dword ptr [table], 0
    cmp dword ptr [table], 0
    check e, "a store into the former table had no effect"
    print "  unlinked, unpinned, an ordinary page again\n"
    succeed

# set_entry_preserving: set_entry with MMU_PT_UPDATE_PRESERVE_AD
set_entry_preserving:
    or eax, MMU_PT_UPDATE_PRESERVE_AD           # set_entry keeps the low bits of the address
    jmp set_entry

.data
.balign 8
calls:          .zero 2 * MULTICALL_SIZE
top:            .long 0                         # va of the L3 that the builder made
first_l2:       .long 0                         # of its L2 for slot 0
last_l2:        .long 0                         # and for slot 3

.bss
.balign PAGE_SIZE
table:          .zero PAGE_SIZE
data_page:      .zero PAGE_SIZE
new_l2:         .zero PAGE_SIZE
new_l3:         .zero PAGE_SIZE
