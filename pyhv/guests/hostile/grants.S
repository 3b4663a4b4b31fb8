# SPDX-License-Identifier: GPL-2.0-only
#
# grants - borrows what was not lent, gives back twice, keeps what it gave back, lends what it does not own
#
# Class: grant tables
# History: XSA-18, XSA-224, XSA-227, XSA-234
# Refused: a grant is used as its entry says and by whom it names; the entry is believed at the first use, the handle from
#   then on; a half that is not mapped is not unmapped; the frame stays what it is until the last use has ended; nobody
#   lends a frame that is not his, nor a page table for writing.

.include "hostile.inc"
.include "domid.inc"
.include "grants.inc"

.macro offer ref, flags, domid, frame           # fill an entry: frame and domain first, flags last
    mov rax, \frame
    mov [rip + table + \ref * 8 + 4], eax
    mov rax, \domid
    mov [rip + table + \ref * 8 + 2], ax
    mov word ptr [rip + table + \ref * 8], \flags
.endm

.macro map_negative what                        # entry REF, for writing
    mov rax, window
    mov [rip + map_arg], rax
    mov dword ptr [rip + map_arg + 8], GNTMAP_host_map
    mov dword ptr [rip + map_arg + 12], REF
    mov [rip + map_arg + 16], r12w
    attack "\what: the call itself", 0, grant_table_op, GNTTABOP_map_grant_ref, map_arg, 1, 0
    movsx rax, word ptr [rip + map_arg + 18]
    negative "\what"
.endm

.macro copy_negative what, source, dest         # between two frames by number
    mov rax, \source
    mov [rip + copy_arg], rax
    mov rax, \dest
    mov [rip + copy_arg + 16], rax
    mov word ptr [rip + copy_arg + 8], DOMID_SELF
    mov word ptr [rip + copy_arg + 24], DOMID_SELF
    mov word ptr [rip + copy_arg + 32], 16
    mov word ptr [rip + copy_arg + 34], 0
    attack "\what: the call itself", 0, grant_table_op, GNTTABOP_copy, copy_arg, 1, 0
    movsx rax, word ptr [rip + copy_arg + 36]
    negative "\what"
.endm

.text
_start:
    hostile_entry "grants"
    call own_domid
    mov r12, rax                                # r12 = our domid: we lend to ourselves
    lea rax, [rip + frame_list]
    mov [rip + setup_arg + 16], rax
    attack "our grant table", 0, grant_table_op, GNTTABOP_setup_table, setup_arg, 1, 0
    mov rsi, [rip + frame_list]
    shl rsi, PAGE_SHIFT
    or rsi, READ_WRITE
    lea rdi, [rip + table]
    call update_mapping
    must_succeed "mapping the grant table"
    lea rdi, [rip + page]
    call va_to_mfn
    mov r13, rax                                # r13 = the frame that we lend
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    call va_to_mfn
    mov [rip + l4_frame], rax

    # What was not lent
    map "an empty entry", GNTST_general_error, REF, r12, GNTMAP_host_map, window
    map "a reference beyond the table", GNTST_bad_gntref, 512, r12, GNTMAP_host_map, window
    map "reference 2^31", GNTST_bad_gntref, 0x80000000, r12, GNTMAP_host_map, window
    map "reference 2^32-1", GNTST_bad_gntref, 0xffffffff, r12, GNTMAP_host_map, window
    map "a grant of nobody", GNTST_bad_domain, REF, NO_DOMAIN, GNTMAP_host_map, window
    map "a grant of DOMID_XEN", GNTST_bad_domain, REF, 0x7ff2, GNTMAP_host_map, window
    map "a grant of domain 0", GNTST_general_error, REF, 0, GNTMAP_host_map, window
    map "the console's grant, which is domain 0's to use", GNTST_general_error, 0, r12, GNTMAP_host_map, window
    offer REF, GTF_permit_access, 0, r13
    map "what is lent to domain 0", GNTST_general_error, REF, r12, GNTMAP_host_map, window
    offer REF, GTF_accept_transfer, r12, r13
    map "a transfer as a grant", GNTST_general_error, REF, r12, GNTMAP_host_map, window
    offer REF, 3, r12, r13                      # GTF_transitive
    map "a transitive grant, which version 1 has not", GNTST_general_error, REF, r12, GNTMAP_host_map, window
    offer REF, GTF_permit_access | GTF_sub_page, r12, r13
    map "part of a page", GNTST_general_error, REF, r12, GNTMAP_host_map, window
    offer REF, GTF_permit_access | GTF_readonly, r12, r13
    map "a read-only grant for writing", GNTST_general_error, REF, r12, GNTMAP_host_map, window
    offer REF, GTF_permit_access, r12, r13
    map "neither half", GNTST_bad_gntref, REF, r12, 0, window
    map "only flags", GNTST_bad_gntref, REF, r12, GNTMAP_readonly, window

    # Frames that are not ours to lend
    offer REF, GTF_permit_access, r12, 1
    map_negative "a frame of the hypervisor"
    offer REF, GTF_permit_access, r12, 0
    map_negative "frame 0"
    offer REF, GTF_permit_access, r12, 0xffffffff
    map_negative "frame 2^32-1"
    call find_foreign_frame
    mov r14, rax
    offer REF, GTF_permit_access, r12, r14
    map_negative "the first frame that is not ours"
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    mov rbp, rdi
    call va_to_mfn
    offer REF, GTF_permit_access, r12, rax
    map_negative "our L4, for writing"
    mov rdi, rbp
    call va_to_mfn
    offer REF, GTF_permit_access, r12, rax
    map "our L4, for reading", 0, REF, r12, GNTMAP_host_map | GNTMAP_readonly, window
    faults_with "writing it there", TRAP_page_fault, PFEC_P | PFEC_W, "mov qword ptr [rip + window], 0"
    unmap "giving it back", 0, [rip + map_arg + 20], window, 0
    faults "using it after that", TRAP_page_fault, "mov rax, [rip + window]"

    # Places where it may not appear
    offer REF, GTF_permit_access, r12, r13
    map "in the hypervisor's space", GNTST_general_error, REF, r12, GNTMAP_host_map, HYPERVISOR_HOLE
    map "in the M2P", GNTST_general_error, REF, r12, GNTMAP_host_map, MACH2PHYS_VIRT_START
    map "where no table is", GNTST_general_error, REF, r12, GNTMAP_host_map, 0xffff880000000000
    link l3, 0, l2, TABLE                       # the same bits as NOT_CANONICAL lead here
    link l2, 0, l1, TABLE
    pin 1, l1
    pin 2, l2
    pin 3, l3
    mov rdi, rbp
    mov esi, 288
    call entry_address
    mov rbx, rax
    lea rdi, [rip + l3]
    call frame_of
    lea rsi, [rax + TABLE]
    mov rdi, rbx
    call set_entry
    must_succeed "a table in slot 288"
    map "at an address that is not canonical", GNTST_general_error, REF, r12, GNTMAP_host_map, NOT_CANONICAL
    mov rdi, rbp
    call frame_of
    lea rbx, [rax + 300 * 8]
    map "as entry of our L4", GNTST_general_error, REF, r12, GNTMAP_host_map | GNTMAP_contains_pte, rbx
    lea rdi, [rip + page]
    call frame_of
    mov rbx, rax
    map "as entry of a page that is no table", GNTST_general_error, REF, r12, GNTMAP_host_map | GNTMAP_contains_pte, rbx
    mov rbx, r14
    shl rbx, PAGE_SHIFT
    map "as entry of a table of others", GNTST_general_error, REF, r12, GNTMAP_host_map | GNTMAP_contains_pte, rbx
    map "as entry in frame 0", GNTST_general_error, REF, r12, GNTMAP_host_map | GNTMAP_contains_pte, 0
    map "as entry beyond the machine", GNTST_general_error, REF, r12, GNTMAP_host_map | GNTMAP_contains_pte, 0xffffffffffffff8
    lea rdi, [rip + l1]
    call frame_of
    lea rbx, [rax + 4]
    map "as half an entry", GNTST_general_error, REF, r12, GNTMAP_host_map | GNTMAP_contains_pte, rbx

    # Nothing of that has kept a use: the entry is not marked
    movzx eax, word ptr [rip + table + REF * 8]
    equal "the entry afterwards", rax, GTF_permit_access

    # Handles
    map "a grant", 0, REF, r12, GNTMAP_host_map, window
    mov ebx, [rip + map_arg + 20]
    mov qword ptr [rip + window], 0x1234
    equal "is the page", [rip + page], 0x1234
    offer REF, 0, 0, 1                          # the entry is withdrawn and changed while it is used
    map "the entry, withdrawn", 0, REF, r12, GNTMAP_host_map, window_2
    mov r15d, [rip + map_arg + 20]
    equal "as it was at the first use", [rip + window_2], 0x1234
    unmap "handle 2^32-1", GNTST_bad_handle, -1, window, 0
    unmap "a handle that we do not have", GNTST_bad_handle, 77, window, 0
    unmap "the first handle", 0, ebx, window, 0
    unmap "the first handle again", GNTST_bad_handle, ebx, window, 0
    faults "using it after that", TRAP_page_fault, "mov qword ptr [rip + window], 7"
    mov qword ptr [rip + window_2], 0           # the other is still there
    readonly page
    try_pin "the page as table while it is lent for writing", -EINVAL, 1, page
    unmap "the second handle", 0, r15d, window_2, 0
    faults "using that after it", TRAP_page_fault, "mov qword ptr [rip + window_2], 7"
    try_pin "the page as table now", 0, 1, page
    offer REF, GTF_permit_access, r12, r13
    map "a page table, for writing", GNTST_general_error, REF, r12, GNTMAP_host_map, window
    map "a page table, for a device to write", GNTST_general_error, REF, r12, GNTMAP_device_map, window
    try_unpin "the page again", 0, page
    try_map "as it was", 0, page, READ_WRITE

    # Halves
    map "for a device only", 0, REF, r12, GNTMAP_device_map, 0
    mov ebx, [rip + map_arg + 20]
    readonly page
    try_pin "a page that a device writes, as table", -EINVAL, 1, page
    unmap "its host half, which is not mapped", 0, ebx, window, 0
    try_pin "the page still", -EINVAL, 1, page
    mov rbp, r13
    shl rbp, PAGE_SHIFT
    lea r14, [rbp + 4096]
    unmap "its device half at a wrong address", GNTST_bad_dev_addr, ebx, 0, r14
    try_pin "the page still", -EINVAL, 1, page
    unmap "its device half", 0, ebx, 0, rbp
    unmap "its device half again", GNTST_bad_handle, ebx, 0, rbp
    try_pin "the page now", 0, 1, page
    try_unpin "and back", 0, page
    map "for the processor only", 0, REF, r12, GNTMAP_host_map, window
    mov ebx, [rip + map_arg + 20]
    unmap "its device half, which is not mapped", 0, ebx, 0, rbp
    try_pin "the page still", -EINVAL, 1, page
    unmap "both halves, of which it has one", 0, ebx, window, rbp
    try_pin "the page now", 0, 1, page
    try_unpin "and back", 0, page
    map "for both", 0, REF, r12, GNTMAP_host_map | GNTMAP_device_map, window
    mov ebx, [rip + map_arg + 20]
    unmap "its host half", 0, ebx, window, 0
    unmap "its host half twice", 0, ebx, window, 0
    try_pin "the page with its device half left", -EINVAL, 1, page
    unmap "its device half", 0, ebx, window, rbp
    try_pin "the page now", 0, 1, page
    try_unpin "and back", 0, page
    movzx eax, word ptr [rip + table + REF * 8]
    equal "the entry afterwards", rax, GTF_permit_access

    # The mapping replaced behind the handle's back
    map "a grant", 0, REF, r12, GNTMAP_host_map, window
    mov ebx, [rip + map_arg + 20]
    lea rdi, [rip + window]
    xor esi, esi
    call update_mapping
    answer_is 0, "removing its entry ourselves"
    unmap "the handle then", GNTST_general_error, ebx, window, 0
    lea rdi, [rip + other]
    call frame_of
    lea rsi, [rax + READ_WRITE]
    lea rdi, [rip + window]
    call update_mapping
    answer_is 0, "another page there"
    unmap "the handle, with another page there", GNTST_general_error, ebx, window, 0
    mov qword ptr [rip + window], 0x77
    equal "which stays", [rip + other], 0x77
    lea rsi, [rbp + READ_ONLY]
    lea rdi, [rip + window]
    call update_mapping
    answer_is 0, "the page itself, but read-only"
    unmap "the handle of a writable mapping", GNTST_general_error, ebx, window, 0
    lea rsi, [rbp + READ_WRITE]
    lea rdi, [rip + window]
    writable page
    lea rsi, [rbp + READ_WRITE]
    lea rdi, [rip + window]
    call update_mapping
    answer_is 0, "the page itself, as it was"
    unmap "the handle", 0, ebx, window, 0
    faults "using it after that", TRAP_page_fault, "mov qword ptr [rip + window], 7"
    map "by its entry", 0, REF, r12, GNTMAP_host_map, window
    mov ebx, [rip + map_arg + 20]
    map "over another mapping of it", 0, REF, r12, GNTMAP_host_map, window
    mov r15d, [rip + map_arg + 20]
    unmap "one", 0, ebx, window, 0
    unmap "the other, which has no entry left", GNTST_general_error, r15d, window, 0

    # Copies
    offer REF_1, GTF_permit_access | GTF_readonly, r12, r13
    offer REF_2, GTF_permit_access, 0, r13
    copy "beyond the end of the source", GNTST_bad_copy_arg, REF_1, r12, 4000, r13, DOMID_SELF, 0, 97, 1
    copy "beyond the end of the destination", GNTST_bad_copy_arg, REF_1, r12, 0, r13, DOMID_SELF, 4095, 2, 1
    copy "65535 bytes", GNTST_bad_copy_arg, REF_1, r12, 0, r13, DOMID_SELF, 0, 65535, 1
    copy "from offset 65535", GNTST_bad_copy_arg, REF_1, r12, 65535, r13, DOMID_SELF, 0, 1, 1
    copy "into a read-only grant", GNTST_general_error, r13, DOMID_SELF, 0, REF_1, r12, 0, 16, 2
    copy "from what is lent to domain 0", GNTST_general_error, REF_2, r12, 0, r13, DOMID_SELF, 0, 16, 1
    copy "from reference 2^32-1", GNTST_bad_gntref, 0xffffffff, r12, 0, r13, DOMID_SELF, 0, 16, 1
    copy "from domain 0's frame", GNTST_permission_denied, 1, 0, 0, r13, DOMID_SELF, 0, 16, 0
    copy "from our frame, but under our number", GNTST_permission_denied, r13, r12, 0, r13, DOMID_SELF, 0, 16, 0
    copy "into domain 0's frame", GNTST_permission_denied, r13, DOMID_SELF, 0, 1, 0, 0, 16, 0
    mov r14, [rip + start_info]
    mov rdi, [r14 + START_INFO_pt_base]
    call va_to_mfn
    mov r14, rax
    copy "into our L4", GNTST_general_error, r13, DOMID_SELF, 0, r14, DOMID_SELF, 0, 16, 0
    offer REF_3, GTF_permit_access, r12, r14
    copy "into our L4 by a grant", GNTST_general_error, r13, DOMID_SELF, 0, REF_3, r12, 0, 16, 2
    copy "from our L4", 0, r14, DOMID_SELF, 0, r13, DOMID_SELF, 0, 16, 0
    call find_foreign_frame
    mov r14, rax
    copy_negative "from a frame that is not ours", r14, r13
    copy_negative "into a frame that is not ours", r13, r14
    copy_negative "from frame 2^64-1", -1, r13
    copy_negative "into frame 2^52", r13, 1 << 52

    # Other people's tables
    mov dword ptr [rip + setup_arg], 0
    attack "domain 0's grant table", 0, grant_table_op, GNTTABOP_setup_table, setup_arg, 1, 0
    movsx rax, word ptr [rip + setup_arg + 8]
    answer_is GNTST_permission_denied, "its status"
    mov dword ptr [rip + swap_arg], 512
    attack "swapping what is beyond the table", 0, grant_table_op, 11, swap_arg, 1, 0
    movsx rax, word ptr [rip + swap_arg + 8]
    answer_is GNTST_bad_gntref, "its status"
    mov dword ptr [rip + swap_arg], REF
    mov dword ptr [rip + swap_arg + 4], REF_1
    attack "swapping an entry in use", 0, grant_table_op, 11, swap_arg, 1, 0
    movsx rax, word ptr [rip + swap_arg + 8]
    answer_is GNTST_eagain, "its status"
    attack "command 99", -ENOSYS, grant_table_op, 99, swap_arg, 1, 0
    transfer "giving away a frame that is mapped", GNTST_bad_page, r13, r12, REF_1
    transfer "giving away our L4", GNTST_bad_page, [rip + l4_frame], r12, REF_1
    transfer "giving away a frame that is not ours", GNTST_bad_page, r14, r12, REF_1
    transfer "giving away the hypervisor's frame", GNTST_bad_page, 1, r12, REF_1
    transfer "giving away frame 2^64-1", GNTST_bad_page, -1, r12, REF_1
    transfer "giving away our grant table", GNTST_bad_page, [rip + frame_list], r12, REF_1
    lea rdi, [rip + gift]
    call va_to_mfn
    mov rbx, rax
    lea rdi, [rip + gift]
    xor esi, esi
    call update_mapping
    must_succeed "unmapping a page"
    transfer "giving it where none is awaited", GNTST_general_error, rbx, r12, REF
    transfer "and again: it is gone", GNTST_bad_page, rbx, r12, REF
    lea rdi, [rip + gift]
    mov rsi, rbx
    shl rsi, PAGE_SHIFT
    or rsi, READ_WRITE
    call update_mapping
    answer_is -EBUSY, "mapping it"

    # Die with mappings of both kinds
    map "a last mapping, of both halves", 0, REF_1, r12, 7, window_2
    hostile_end

.data
.balign 8
setup_arg:      .long DOMID_SELF, 1
                .quad 0, 0
swap_arg:       .quad 0, 0
l4_frame:       .quad 0
frame_list:     .quad 0

.bss
.balign PAGE_SIZE
table:          .zero PAGE_SIZE
page:           .zero PAGE_SIZE
other:          .zero PAGE_SIZE
window:         .zero PAGE_SIZE
window_2:       .zero PAGE_SIZE
gift:           .zero PAGE_SIZE
l1:             .zero PAGE_SIZE
l2:             .zero PAGE_SIZE
l3:             .zero PAGE_SIZE
