# SPDX-License-Identifier: GPL-2.0-only
#
# pae32 - wants more of a PAE top table than four gigabytes, and the hypervisor's part of the last L2
#
# Class: top tables of 32-bit guests
# History: XSA-185, XSA-240
# Refused: slot 3 of an L3 keeps its L2, which has no other use, no second place and no pin; its slots 428 to 511 change by
#   no call and are gone when it is no table any more; an L3 has four entries, no bits above its addresses, no links to
#   itself; what the M2P shows cannot be written by any mapping.

.width 32
.include "hostile32.inc"

.set NEW_GIB, 2 << 30                           # L3 slot 2, which the builder leaves to us

.text
_start:
    hostile_entry "pae32"
    mov eax, [start_info]
    mov eax, [eax + START_INFO_pt_base]
    mov [top], eax
    mov eax, 3 << 30
    mov edx, 2
    call find_table
    mov [last_l2], eax
    mov eax, NEW_GIB
    mov edx, 2
    call find_table
    mov [third_l2], eax
    mov eax, 0
    mov edx, 1
    call find_table
    mov [first_l1], eax

    # The L3 that we run on
    mov ebx, [top]
    mov edi, [ebx + 24]
    mov ebp, [ebx + 28]
    try_raw "slot 3, with what it holds", -EINVAL, [top], 3, edi, ebp
    try_raw "emptying slot 3", -EINVAL, [top], 3, 0, 0
    try_link "slot 4", -EINVAL, [top], 4, l2, PTE_P
    try_link "slot 511", -EINVAL, [top], 511, l2, PTE_P
    try_raw "emptying slot 4", -EINVAL, [top], 4, 0, 0
    try_raw "slot 3's L2 in slot 2", -EINVAL, [top], 2, edi, ebp
    try_link "the L3 in itself, writable", -EINVAL, [top], 2, [top], PTE_P | PTE_RW | PTE_US
    try_link "the L3 in itself", -EINVAL, [top], 2, [top], PTE_P
    try_link "a writable page as L2", -EINVAL, [top], 2, plain, PTE_P
    try_link "an L1 as L2", -EINVAL, [top], 2, [first_l1], PTE_P
    mov edx, PTE_P
    call spare_l2
    try_raw "an L2 with NX", -EINVAL, [top], 2, [entry], [entry_high_nx]
    try_raw "an L2 with bit 52", -EINVAL, [top], 2, [entry], [entry_high_52]
    try_raw "an L2 with bit 62", -EINVAL, [top], 2, [entry], [entry_high_62]
    mov edx, PTE_P | PTE_PSE
    call spare_l2
    try_raw "a page of 1 GiB", -EINVAL, [top], 2, [entry], [entry_high]
    mov edx, PTE_P | PTE_PWT
    call spare_l2
    try_raw "an L2 written through", -EINVAL, [top], 2, [entry], [entry_high]
    mov edx, PTE_P | PTE_PCD
    call spare_l2
    try_raw "an uncached L2", -EINVAL, [top], 2, [entry], [entry_high]
    mov edx, PTE_P | 0x100
    call spare_l2
    try_raw "a global L2", -EINVAL, [top], 2, [entry], [entry_high]
    try_raw "an L2 beyond the machine", -EINVAL, [top], 2, PTE_P, 0xfffff
    try_raw "an L2 in the hypervisor's frame", -EINVAL, [top], 2, 1 << PAGE_SHIFT | PTE_P, 0

    # The last L2 under our feet
    try_raw "the hypervisor's first slot", -EPERM, [last_l2], FIRST_XEN_SLOT, 0, 0
    try_raw "its last slot", -EPERM, [last_l2], 511, 0, 0
    try_link "a table of ours there", -EPERM, [last_l2], 500, l1, TABLE
    mov eax, [last_l2]
    mov edi, [eax + FIRST_XEN_SLOT * 8]
    mov ebp, [eax + FIRST_XEN_SLOT * 8 + 4]
    try_raw "its first slot, with what it holds", -EPERM, [last_l2], FIRST_XEN_SLOT, edi, ebp
    try_raw "the M2P's table in a slot of ours", -EINVAL, [last_l2], 0, edi, ebp
    or edi, PTE_RW
    try_raw "the M2P's table, writable", -EINVAL, [third_l2], 0, edi, ebp
    try_pin "a pin on the last L2", -EINVAL, 2, [last_l2]
    try_pin "the last L2 as L1", -EINVAL, 1, [last_l2]
    try_map "the last L2, writable", -EBUSY, [last_l2], READ_WRITE
    try_link "the last L2 in itself, writable", -EINVAL, [last_l2], 1, [last_l2], PTE_P | PTE_RW | PTE_US
    try_link "the last L2 in another, writable", -EINVAL, [third_l2], 1, [last_l2], PTE_P | PTE_RW | PTE_US
    try_link "the last L2 in another, read-only", 0, [third_l2], 1, [last_l2], PTE_P | PTE_US
    faults_with "writing the hypervisor's slots there", TRAP_page_fault, PFEC_P | PFEC_W, "mov dword ptr [NEW_GIB + (1 << 21) + FIRST_XEN_SLOT * PAGE_SIZE], 7"
    mov edi, NEW_GIB + (1 << 21) + FIRST_XEN_SLOT * PAGE_SIZE
    attack "an entry of the hypervisor's by update_va_mapping", -EINVAL, update_va_mapping, edi, 0, 0, UVMF_INVLPG
    try_raw "without that link again", 0, [third_l2], 1, 0, 0
    attack "update_va_mapping of the M2P", -EINVAL, update_va_mapping, MACH2PHYS_VIRT_START, 0, 0, UVMF_INVLPG
    attack "update_va_mapping of the last page", -EINVAL, update_va_mapping, 0xfffff000, 0, 0, UVMF_INVLPG
    faults_with "writing the M2P", TRAP_page_fault, PFEC_P | PFEC_W, "mov dword ptr [MACH2PHYS_VIRT_START], 7"
    faults "reading above the M2P", TRAP_page_fault, "mov eax, [HYPERVISOR_HOLE]"
    faults "reading the last word of 4 GiB", TRAP_page_fault, "mov eax, [0xfffffffc]"
    faults "reading over the end of 4 GiB", TRAP_page_fault, "mov eax, [0xfffffffd]"
    faults "executing the M2P", TRAP_page_fault, "call [m2p_code]"

    # The frames of the M2P
    mov dword ptr [m2p_request], 4
    mov dword ptr [m2p_request + 4], m2p_list
    attack "where the M2P is", 0, memory_op, 5, m2p_request, 0, 0
    mov edi, [m2p_list]
    mov ebp, edi
    shr ebp, 32 - PAGE_SHIFT
    shl edi, PAGE_SHIFT
    or edi, READ_WRITE
    mov eax, plain
    call set_foreign
    negative "mapping the M2P writable"
    mov eax, edi
    and edi, ~PTE_RW
    mov eax, plain
    call set_foreign
    negative "mapping the M2P again"
    mov eax, MMUEXT_PIN_L1_TABLE
    mov edx, [m2p_list]
    call mmuext
    answer_is -EINVAL, "the M2P as L1"
    mov eax, plain                              # M2P entries: of our own frames only
    call va_to_mfn
    mov edi, eax
    mov [m2p_update], eax
    mov edx, eax
    shl eax, PAGE_SHIFT
    shr edx, 32 - PAGE_SHIFT
    or eax, 1                                   # MMU_MACHPHYS_UPDATE
    mov [m2p_update], eax
    mov [m2p_update + 4], edx
    mov dword ptr [m2p_update + 8], 0x12345
    mov dword ptr [m2p_update + 12], -1
    attack "an M2P entry of ours, more than 32 bits", 0, mmu_update, m2p_update, 1, 0, DOMID_SELF
    equal "of which 32 are taken", [edi * 4 + MACH2PHYS_VIRT_START], 0x12345
    mov eax, plain
    shr eax, PAGE_SHIFT
    mov [m2p_update + 8], eax
    mov dword ptr [m2p_update + 12], 0
    attack "as it was", 0, mmu_update, m2p_update, 1, 0, DOMID_SELF
    mov dword ptr [m2p_update], 1 << PAGE_SHIFT | 1
    mov dword ptr [m2p_update + 4], 0
    attack "the M2P entry of a frame that is not ours", -EINVAL, mmu_update, m2p_update, 1, 0, DOMID_SELF
    mov dword ptr [m2p_update + 4], 0x7fffffff
    attack "the M2P entry of a frame beyond the machine", -EINVAL, mmu_update, m2p_update, 1, 0, DOMID_SELF

    # A new L3, entry by entry
    mov ebx, [top]
    mov esi, ebx
    mov edi, l3
    mov ecx, 6
.copy:
    mov eax, [esi]
    mov [edi], eax
    add esi, 4
    add edi, 4
    dec ecx
    jnz .copy
    mov dword ptr [l3 + 16], 0
    try_map "a new L3, read-only", 0, l3, READ_ONLY
    try_pin "without slot 3", -EINVAL, 3, l3
    call last_of_top
    try_pin "with our present last L2", -EINVAL, 3, l3
    mov edi, l3 + 24
    mov eax, l2
    call fill_writable
    readonly l2
    pin 2, l2
    readonly l3
    try_pin "with an L2 that is pinned", -EINVAL, 3, l3
    unpin l2
    mov edi, l3 + 16
    mov eax, l2
    call fill_writable
    readonly l3
    try_pin "with an L2 in slots 2 and 3", -EINVAL, 3, l3
    writable l3
    mov dword ptr [l3 + 16], 0
    or dword ptr [l3 + 28], NX_HIGH
    readonly l3
    try_pin "with NX in slot 3", -EINVAL, 3, l3
    writable l3
    and dword ptr [l3 + 28], ~NX_HIGH
    or dword ptr [l3 + 24], PTE_PCD
    readonly l3
    try_pin "with an uncached slot 3", -EINVAL, 3, l3
    writable l3
    and dword ptr [l3 + 24], ~PTE_PCD
    mov eax, l2                                 # entries for slots that will be the hypervisor's
    mov edx, READ_WRITE
    writable l2
    mov dword ptr [l2 + FIRST_XEN_SLOT * 8], 1 << PAGE_SHIFT | TABLE
    mov dword ptr [l2 + FIRST_XEN_SLOT * 8 + 4], 0
    mov dword ptr [l2 + 511 * 8], 1 << PAGE_SHIFT | TABLE | PTE_PSE
    readonly l3
    try_pin "with a last L2 that is writable", -EINVAL, 3, l3
    readonly l2
    try_pin "with wild entries in the hypervisor's slots", 0, 3, l3
    mov edi, [l2 + FIRST_XEN_SLOT * 8]
    mov eax, [last_l2]
    equal "they are the hypervisor's now", edi, [eax + FIRST_XEN_SLOT * 8]
    equal "all of them", [l2 + 511 * 8], [eax + 511 * 8]
    try_pin "the L3 twice", -EINVAL, 3, l3
    try_pin "its last L2 as well", -EINVAL, 2, l2
    try_link "its last L2 in slot 2", -EINVAL, l3, 2, l2, PTE_P
    try_link "its last L2 in slot 2 of the other", -EINVAL, [top], 2, l2, PTE_P
    try_link "the other's last L2 in slot 2", -EINVAL, l3, 2, [last_l2], PTE_P
    try_link "the other L3 as L2", -EINVAL, l3, 2, [top], PTE_P
    try_raw "the hypervisor's slot in it", -EPERM, l2, 450, 0, 0
    pin 1, l1
    try_link "a table in the last slot before", 0, l2, FIRST_XEN_SLOT - 1, l1, TABLE
    try_map "the last L2, writable", -EBUSY, l2, READ_WRITE
    try_map "the L3, writable", -EBUSY, l3, READ_WRITE
    try_pin "the L3 as L2", -EINVAL, 2, l3
    try_pin "the L3 as L1", -EINVAL, 1, l3
    try_unpin "the last L2, which is not pinned", -EINVAL, l2

    # Running on it and taking it apart: nothing of the hypervisor's remains in the page
    mov eax, l3
    call run_on
    answer_is 0, "running on it"
    try_unpin "unpinning it meanwhile", 0, l3
    try_map "it is in use", -EBUSY, l3, READ_WRITE
    try_map "and so is its last L2", -EBUSY, l2, READ_WRITE
    faults_with "the M2P under it", TRAP_page_fault, PFEC_P | PFEC_W, "mov dword ptr [MACH2PHYS_VIRT_START + 4], 7"
    mov eax, [top]
    call run_on
    answer_is 0, "back to the first"
    try_map "its L3 is free", 0, l3, READ_WRITE
    try_map "its last L2 is free", 0, l2, READ_WRITE
    equal "no slot of the hypervisor's is left in it", [l2 + FIRST_XEN_SLOT * 8], 0
    equal "nor the last one", [l2 + 511 * 8], 0
    test dword ptr [l2 + (FIRST_XEN_SLOT - 1) * 8], PTE_P
    must nz, "our own entry has gone"
    try_map "the L1 that it had, still pinned", -EBUSY, l1, READ_WRITE
    unpin l1
    writable l1
    readonly l2
    try_pin "as an ordinary L2, its table writable", -EINVAL, 2, l2
    writable l2
    mov dword ptr [l2 + (FIRST_XEN_SLOT - 1) * 8], 0
    readonly l2
    try_pin "as an ordinary L2", 0, 2, l2
    readonly l1_other
    try_link "whose slot 428 is ours", 0, l2, FIRST_XEN_SLOT, l1_other, TABLE
    try_raw "and empty again", 0, l2, FIRST_XEN_SLOT, 0, 0
    unpin l2

    # Base pointers
    mov eax, l1
    call run_on
    answer_is -EINVAL, "running on a writable page"
    mov eax, [first_l1]
    call run_on
    answer_is -EINVAL, "running on an L1"
    mov eax, [last_l2]
    call run_on
    answer_is -EINVAL, "running on the last L2"
    mov eax, MMUEXT_NEW_BASEPTR
    mov edx, 1
    call mmuext
    answer_is -EINVAL, "running on the hypervisor's frame"
    mov eax, MMUEXT_NEW_BASEPTR
    mov edx, -1
    call mmuext
    answer_is -EINVAL, "running on frame 2^32-1"
    mov eax, MMUEXT_NEW_USER_BASEPTR
    xor edx, edx
    call mmuext
    negative "a user table, which a 32-bit guest has not"
    mov eax, MMUEXT_PIN_L4_TABLE
    mov edx, 1
    call mmuext
    answer_is 0, "the hypervisor's frame as L4: ignored"
    mov ecx, 0xfff00001
    faults_with "cr3 := a frame that is none", TRAP_gp_fault, 0, "mov cr3, ecx"
    hostile_end

# spare_l2(edx = flags): [entry] and its high halves, for a page that could be an L2
spare_l2:
    push edx
    readonly l2
    pop edx
    mov eax, l2
    call entry_of
    mov [entry], edx
    mov [entry_high], ecx
    mov eax, ecx
    or eax, 1 << 31
    mov [entry_high_nx], eax
    mov eax, ecx
    or eax, 1 << 30
    mov [entry_high_62], eax
    or ecx, 1 << 20
    mov [entry_high_52], ecx
    ret

# last_of_top(): slot 3 of the new L3 is that of the present one
last_of_top:
    writable l3
    mov eax, [top]
    mov edx, [eax + 24]
    mov [l3 + 24], edx
    mov edx, [eax + 28]
    mov [l3 + 28], edx
    readonly l3
    ret

# fill_writable(eax = page, edi = va of an entry of l3): make it point to the page. l3 is left writable
fill_writable:
    push eax
    writable l3
    pop eax
    mov edx, PTE_P
    call entry_of
    mov [edi], edx
    mov [edi + 4], ecx
    ret

# run_on(eax = va of an L3) -> eax
run_on:
    call va_to_mfn
    mov edx, eax
    mov eax, MMUEXT_NEW_BASEPTR
    jmp mmuext

# set_foreign(eax = va, ebp:edi = entry) -> eax
set_foreign:
    mov edx, edi
    mov ecx, ebp
    jmp update_mapping

.data
.balign 8
top:            .long 0
last_l2:        .long 0
third_l2:       .long 0
first_l1:       .long 0
entry:          .long 0
entry_high:     .long 0
entry_high_nx:  .long 0
entry_high_52:  .long 0
entry_high_62:  .long 0
m2p_code:       .long MACH2PHYS_VIRT_START
m2p_request:    .long 0, 0, 0
m2p_list:       .zero 16
.balign 8
m2p_update:     .quad 0, 0

.bss
.balign PAGE_SIZE
plain:          .zero PAGE_SIZE
l1:             .zero PAGE_SIZE
l1_other:       .zero PAGE_SIZE
l2:             .zero PAGE_SIZE
l3:             .zero PAGE_SIZE
