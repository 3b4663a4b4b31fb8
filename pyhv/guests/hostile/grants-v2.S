# SPDX-License-Identifier: GPL-2.0-only
#
# grants-v2 - grants parts of pages that are none, grants in circles, and changes the table's version under its users
#
# Class: grant tables of version 2
# History: XSA-226, XSA-230, XSA-255, XSA-379, XSA-382
# Refused: a part of a page ends inside it and nothing beyond is copied; a transitive grant leads to one other domain's and
#   no further; neither can be mapped; the version stays while entries or status frames are used; what the guest writes
#   into status frames changes nothing but what it reads there, and when they are gone they are gone from its tables.

.include "hostile.inc"
.include "domid.inc"
.include "grants.inc"

.set GTF_transitive, 3

.macro offer ref, flags, domid, frame           # a whole page
    mov rax, \frame
    mov [rip + table + \ref * 16 + 8], rax
    mov dword ptr [rip + table + \ref * 16 + 4], 0
    mov rax, \domid
    mov [rip + table + \ref * 16 + 2], ax
    mov word ptr [rip + table + \ref * 16], \flags
.endm

.macro offer_part ref, start, length            # of the page r13
    mov [rip + table + \ref * 16 + 8], r13
    mov word ptr [rip + table + \ref * 16 + 4], \start
    mov word ptr [rip + table + \ref * 16 + 6], \length
    mov [rip + table + \ref * 16 + 2], r12w
    mov word ptr [rip + table + \ref * 16], GTF_permit_access | GTF_sub_page
.endm

.macro offer_via ref, domid, other              # what `domid` has lent us as `other`
    mov rax, \domid
    mov [rip + table + \ref * 16 + 4], ax
    mov word ptr [rip + table + \ref * 16 + 6], 0
    mov dword ptr [rip + table + \ref * 16 + 8], \other
    mov dword ptr [rip + table + \ref * 16 + 12], 0
    mov [rip + table + \ref * 16 + 2], r12w
    mov word ptr [rip + table + \ref * 16], GTF_transitive
.endm

.macro part what, answer, start, length, offset, bytes  # read and write through a part of a page
    offer_part REF, \start, \length
    copy "\what, read", \answer, REF, r12, \offset, r14, DOMID_SELF, 0, \bytes, 1
    copy "\what, written", \answer, r14, DOMID_SELF, 0, REF, r12, \offset, \bytes, 2
.endm

.macro via what, domid, ref                     # a transitive grant that leads nowhere
    offer_via REF, \domid, \ref
    call copy_from_it
    negative "\what"
.endm

.macro version what, answer, number
    mov dword ptr [rip + version_arg], \number
    attack "\what", \answer, grant_table_op, GNTTABOP_set_version, version_arg, 1, 0
.endm

.text
_start:
    hostile_entry "grants-v2"
    call own_domid
    mov r12, rax                                # r12 = our domid
    lea rdi, [rip + page]
    call va_to_mfn
    mov r13, rax                                # r13 = the page that we lend
    lea rdi, [rip + other]
    call va_to_mfn
    mov r14, rax                                # r14 = a page to copy from and to
    version "version 0", -EINVAL, 0
    version "version 3", -EINVAL, 3
    version "version 2^32-1", -EINVAL, 0xffffffff
    attack "status frames in version 1", 0, grant_table_op, GNTTABOP_get_status_frames, status_arg, 1, 0
    movsx rax, word ptr [rip + status_arg + 6]
    negative "its status"
    version "version 2", 0, 2
    call map_table
    call map_status

    # Parts of a page
    mov rdi, 0x1122334455667788
    mov [rip + page], rdi
    mov [rip + page + 4088], rdi
    part "the whole part", 0, 0, 16, 0, 16
    part "a part at the end", 0, 4080, 16, 4080, 16
    part "a byte before", GNTST_general_error, 16, 16, 15, 1
    part "a byte behind", GNTST_general_error, 16, 16, 32, 1
    part "from inside over its end", GNTST_general_error, 16, 16, 31, 2
    part "over both ends", GNTST_general_error, 16, 16, 0, 64
    part "a part of no bytes", GNTST_general_error, 16, 0, 16, 1
    part "over the end of the page", GNTST_bad_copy_arg, 4080, 0xffff, 4088, 16
    part "a part at 32767, where there is no page", GNTST_general_error, 0x7fff, 0xffff, 0, 16
    part "a part at 65535, whose end wraps", GNTST_general_error, 0xffff, 0xffff, 0, 16
    map "a part, to be mapped", GNTST_general_error, REF, r12, GNTMAP_host_map, window
    map "a part, to be read", GNTST_general_error, REF, r12, GNTMAP_host_map | GNTMAP_readonly, window
    map "a part, by a device", GNTST_general_error, REF, r12, GNTMAP_device_map, 0

    # Grants in circles
    offer_via REF, r12, REF
    map "a transitive grant, to be mapped", GNTST_general_error, REF, r12, GNTMAP_host_map, window
    via "a grant that leads to itself", r12, REF
    offer_via REF_1, r12, REF
    via "a circle of two", r12, REF_1
    offer REF_1, GTF_permit_access, r12, r13
    via "a grant that leads to our own", r12, REF_1
    via "reference 2^32-1 of our own", r12, 0xffffffff
    via "domain 0's", 0, REF
    via "domain 0's console", 0, 0
    via "nobody's", NO_DOMAIN, REF
    via "DOMID_SELF's", DOMID_SELF, REF_1
    via "the hypervisor's", 0x7ff2, REF
    via "domain 1's reference 2^31", 1, 0x80000000
    mov ebx, 0
.neighbours:                                    # whoever there is: nobody has lent us anything
    cmp rbx, r12
    je .next_neighbour
    offer_via REF, rbx, 0
    call copy_from_it
    sar rax, 63
    cmp rax, -1
    must e, "a neighbour's console was copied"
    offer_via REF, rbx, GNTTAB_RESERVED_ENTRIES
    call copy_from_it
    sar rax, 63
    cmp rax, -1
    must e, "what a neighbour has lent to others was copied"
.next_neighbour:
    inc ebx
    cmp ebx, 32
    jb .neighbours
    print "refused: what neighbours have not lent us\n"
    inc qword ptr [rip + attacks]

    # Frames that are not ours, in 64 bits
    offer REF, GTF_permit_access, r12, 1
    call copy_from_it
    negative "the hypervisor's frame"
    mov rdi, 1 << 52
    add rdi, r13
    offer REF, GTF_permit_access, r12, rdi
    call copy_from_it
    negative "our frame plus 2^52"
    mov rdi, 1 << 32
    add rdi, r13
    offer REF, GTF_permit_access, r12, rdi
    call copy_from_it
    negative "our frame plus 2^32"
    offer REF, GTF_permit_access, r12, -1
    call copy_from_it
    negative "frame 2^64-1"
    offer REF, GTF_permit_access, r12, [rip + status_frame]
    map "our status frame as table", 0, REF, r12, GNTMAP_host_map | GNTMAP_readonly, window
    unmap "and back", 0, [rip + map_arg + 20], window, 0

    # Status: the hypervisor's to write, but we can, too
    offer REF, GTF_permit_access, r12, r13
    mov word ptr [rip + status + REF * 2], 0xffff
    map "an entry whose status is all ones", 0, REF, r12, GNTMAP_host_map, window
    mov ebx, [rip + map_arg + 20]
    mov word ptr [rip + status + REF * 2], 0    # "nobody uses it"
    offer REF, 0, 0, 0
    readonly page
    try_pin "the page as table: it is lent, whatever the status says", -EINVAL, 1, page
    version "version 1 meanwhile", -EBUSY, 1
    offer_via REF, r12, REF_1
    mov qword ptr [rip + window], 0x76
    equal "the mapping is what it was", [rip + page], 0x76
    mov dword ptr [rip + swap_arg], REF
    mov dword ptr [rip + swap_arg + 4], REF_1
    attack "swapping it away", 0, grant_table_op, 11, swap_arg, 1, 0
    movsx rax, word ptr [rip + swap_arg + 8]
    answer_is GNTST_eagain, "its status"
    unmap "its end", 0, ebx, window, 0
    try_pin "the page is a table now", 0, 1, page
    offer REF, GTF_permit_access, r12, r13
    map "which nobody borrows for writing", GNTST_general_error, REF, r12, GNTMAP_host_map, window
    offer_part REF, 0, 64
    copy "nor a part of it", GNTST_general_error, r14, DOMID_SELF, 0, REF, r12, 0, 16, 2
    try_unpin "the page again", 0, page
    try_map "as it was", 0, page, READ_WRITE
    mov rax, [rip + status_frame]
    mov [rip + list], rax
    attack "a status frame as GDT", -EINVAL, set_gdt, list, 512, 0, 0
    mov edi, MMUEXT_PIN_L1_TABLE
    mov rsi, [rip + status_frame]
    call mmuext
    answer_is -EINVAL, "a status frame as L1"
    mov dword ptr [rip + status_arg], 0xffffffff
    attack "2^32-1 status frames", 0, grant_table_op, GNTTABOP_get_status_frames, status_arg, 1, 0
    movsx rax, word ptr [rip + status_arg + 6]
    negative "their status"
    mov dword ptr [rip + status_arg], 1
    attack "status frames twice", -EINVAL, grant_table_op, GNTTABOP_get_status_frames, status_arg, 2, 0

    # The version under its users
    version "version 1, a status frame being mapped", -EBUSY, 1
    lea rdi, [rip + status]
    xor esi, esi
    call update_mapping
    must_succeed "unmapping the status frame"
    offer 7, GTF_permit_access, r12, r13        # a reserved entry keeps its users
    map "a reserved entry", 0, 7, r12, GNTMAP_host_map, window
    mov ebx, [rip + map_arg + 20]
    version "version 1 meanwhile", 0, 1
    movzx eax, word ptr [rip + table + 7 * 8]
    equal "it is used in version 1, too", rax, GTF_permit_access | GTF_reading | GTF_writing
    mov rsi, [rip + status_frame]
    shl rsi, PAGE_SHIFT
    or rsi, READ_WRITE
    lea rdi, [rip + status]
    call update_mapping
    negative "the former status frame, mapped"
    readonly page
    try_pin "its page as table", -EINVAL, 1, page
    version "version 2 again", 0, 2
    try_pin "its page as table still", -EINVAL, 1, page
    unmap "its end", 0, ebx, window, 0
    try_pin "its page as table now", 0, 1, page
    try_unpin "and back", 0, page
    try_map "as it was", 0, page, READ_WRITE
    mov ebx, 100
.flip:
    mov dword ptr [rip + version_arg], 1
    call set_version
    mov dword ptr [rip + version_arg], 2
    call set_version
    dec ebx
    jnz .flip
    call map_status
    offer REF, GTF_permit_access, r12, r13
    map "a last mapping", 0, REF, r12, 7, window
    hostile_end

copy_from_it:                                   # 16 bytes from REF to r14 -> rax = status
    mov qword ptr [rip + copy_arg], REF
    mov [rip + copy_arg + 8], r12w
    mov word ptr [rip + copy_arg + 10], 0
    mov [rip + copy_arg + 16], r14
    mov word ptr [rip + copy_arg + 24], DOMID_SELF
    mov word ptr [rip + copy_arg + 26], 0
    mov word ptr [rip + copy_arg + 32], 16
    mov word ptr [rip + copy_arg + 34], 1
    mov edi, GNTTABOP_copy
    lea rsi, [rip + copy_arg]
    mov edx, 1
    hypercall grant_table_op
    must_succeed "copying"
    movsx rax, word ptr [rip + copy_arg + 36]
    ret

set_version:
    mov edi, GNTTABOP_set_version
    lea rsi, [rip + version_arg]
    mov edx, 1
    hypercall grant_table_op
    must_succeed "set_version"
    ret

map_table:
    lea rax, [rip + table_frame]
    mov [rip + setup_arg + 16], rax
    mov edi, GNTTABOP_setup_table
    lea rsi, [rip + setup_arg]
    mov edx, 1
    hypercall grant_table_op
    must_succeed "setup_table"
    mov rsi, [rip + table_frame]
    shl rsi, PAGE_SHIFT
    or rsi, READ_WRITE
    lea rdi, [rip + table]
    call update_mapping
    must_succeed "mapping the grant table"
    ret

map_status:
    lea rax, [rip + status_frame]
    mov [rip + status_arg + 8], rax
    mov edi, GNTTABOP_get_status_frames
    lea rsi, [rip + status_arg]
    mov edx, 1
    hypercall grant_table_op
    must_succeed "get_status_frames"
    mov rsi, [rip + status_frame]
    shl rsi, PAGE_SHIFT
    or rsi, READ_WRITE
    lea rdi, [rip + status]
    call update_mapping
    must_succeed "mapping the status frame"
    ret

.data
.balign 8
version_arg:    .quad 0
setup_arg:      .long DOMID_SELF, 1
                .quad 0, 0
status_arg:     .long 1, DOMID_SELF             # how many, u16 domid, s16 status; list
                .quad 0
swap_arg:       .quad 0, 0
table_frame:    .quad 0
status_frame:   .quad 0
list:           .quad 0

.bss
.balign PAGE_SIZE
table:          .zero PAGE_SIZE
status:         .zero PAGE_SIZE
page:           .zero PAGE_SIZE
other:          .zero PAGE_SIZE
window:         .zero PAGE_SIZE
