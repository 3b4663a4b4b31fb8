# SPDX-License-Identifier: GPL-2.0-only
#
# foreign - names frames of other domains and of the hypervisor in every call that takes a frame number
#
# Class: foreign frames
# History: XSA-109, XSA-113
# Refused: every frame is checked for its owner, by each call and for each use; the special domains IO, XEN and COW own
#   nothing that a plain domain may have; what the M2P says of a frame only its owner may change.

.include "hostile.inc"

.set SWEEP, 1000

.macro must_fail what                           # quietly: any error
    sar rax, 63
    cmp rax, -1
    must e, "\what"
    inc qword ptr [rip + attacks]
.endm

.macro as_domain what, domid                    # what names itself with a wrong owner
    mov r10d, \domid
    mov edi, map_request
    mov esi, 1
    xor edx, edx
    hypercall mmu_update
    negative "mmu_update for \what"
    mov r10d, \domid
    mov edi, pin_request
    mov esi, 1
    xor edx, edx
    hypercall mmuext_op
    negative "mmuext_op for \what"
    mov edi, window
    mov rsi, [rip + map_request + 8]
    xor edx, edx
    mov r10d, \domid
    hypercall update_va_mapping_otherdomain
    negative "update_va_mapping_otherdomain for \what"
    mov word ptr [rip + reservation + 24], \domid
    attack "decrease_reservation for \what", 0, memory_op, XENMEM_decrease_reservation, reservation, 0, 0
    mov word ptr [rip + reservation + 24], \domid
    mov edi, 3                                  # XENMEM_current_reservation
    mov esi, reservation + 24
    hypercall memory_op
    negative "current_reservation of \what"
.endm

.text
_start:
    hostile_entry "foreign"
    lea rdi, [rip + window]
    mov esi, 1
    call find_table
    mov rdi, rax
    mov esi, window
    shr esi, PAGE_SHIFT
    and esi, 511
    call entry_address
    mov [rip + map_request], rax                # r13 = the entry of `window`
    mov r13, rax
    pin 2, l2
    lea rdi, [rip + l2]
    call frame_of
    mov r14, rax                                # r14 = machine address of an L2
    call find_grant_frame
    call max_mfn
    mov r12, rax
    xor ebx, ebx                                # rbx = frame
    xor ebp, ebp
.sweep:
    mov rdi, rbx
    call is_ours
    test eax, eax
    jnz .next
    inc ebp
    call one_frame
    cmp ebp, SWEEP
    jae .swept
.next:
    inc rbx
    cmp rbx, r12
    jbe .sweep
.swept:
    print "refused: "
    print_dec rbp
    print " frames in 13 ways\n"

    # Beyond the machine
    lea rbx, [r12 + 1]
    call one_frame
    mov ebx, -1
    call one_frame
    mov rbx, 0xffffffffff                       # the largest that an entry can hold
    call one_frame
    mov rbx, 1 << 40
    call one_frame
    mov rbx, 1 << 51
    call one_frame
    print "refused: frames beyond the machine\n"

    # A frame of ours, but in the name of somebody else
    lea rdi, [rip + own]
    call va_to_mfn
    mov [rip + pin_request + 8], rax
    mov [rip + list], rax
    shl rax, PAGE_SHIFT
    or rax, READ_WRITE
    mov [rip + map_request + 8], rax
    as_domain "domain 0", 0
    as_domain "nobody", NO_DOMAIN
    as_domain "DOMID_XEN", 0x7ff2
    as_domain "DOMID_COW", 0x7ff3
    as_domain "DOMID_INVALID", 0x7ff4
    as_domain "DOMID_IDLE", 0x7fff
    mov word ptr [rip + reservation + 24], DOMID_SELF
    hostile_end

one_frame:                                      # rbx = frame: thirteen ways
    mov rsi, rbx
    shl rsi, PAGE_SHIFT
    or rsi, READ_WRITE
    mov rdi, r13
    call set_entry
    must_fail "a foreign frame was mapped writable"
    mov rsi, rbx
    shl rsi, PAGE_SHIFT
    or rsi, READ_ONLY
    lea rdi, [rip + window]
    call update_mapping
    must_fail "a foreign frame was mapped read-only"
    mov rsi, rbx
    shl rsi, PAGE_SHIFT
    or rsi, TABLE
    lea rdi, [r14 + 8]
    call set_entry
    must_fail "a foreign frame became an L1"
    mov edi, MMUEXT_PIN_L1_TABLE
    mov rsi, rbx
    call mmuext
    must_fail "a foreign frame was pinned"
    mov edi, MMUEXT_UNPIN_TABLE
    mov rsi, rbx
    call mmuext
    must_fail "a foreign frame was unpinned"
    mov edi, MMUEXT_NEW_USER_BASEPTR
    mov rsi, rbx
    test rbx, rbx
    jz .no_base                                 # 0 means: no user table
    call mmuext
    must_fail "a foreign frame became a base pointer"
.no_base:
    mov edi, 16                                 # MMUEXT_CLEAR_PAGE
    mov rsi, rbx
    call mmuext
    must_fail "a foreign frame was cleared"
    mov rdi, rbx
    shl rdi, PAGE_SHIFT
    jz .no_m2p
    or rdi, 1                                   # MMU_MACHPHYS_UPDATE
    mov esi, 5
    call set_entry
    must_fail "the M2P entry of a foreign frame was changed"
.no_m2p:
    mov rdi, rbx
    shl rdi, PAGE_SHIFT
    xor esi, esi
    hypercall update_descriptor
    must_fail "a descriptor was written to a foreign frame"
    mov [rip + list], rbx
    mov edi, XENMEM_decrease_reservation
    lea rsi, [rip + reservation]
    hypercall memory_op
    dec rax
    must_fail "a foreign frame was given away"
    mov [rip + copy_request + 8], rbx
    lea rdi, [rip + own]
    call va_to_mfn
    mov [rip + copy_request + 8], rax
    mov [rip + copy_request + 16], rbx
    lea rdi, [rip + copy_request]
    mov esi, 1
    xor edx, edx
    mov r10d, DOMID_SELF
    hypercall mmuext_op
    must_fail "a foreign frame was read by copy_page"
    lea rdi, [rip + list]
    mov esi, 1
    hypercall set_gdt
    must_fail "a foreign frame became a GDT"
    mov [rip + info_arg], rbx
    mov edi, 10
    xor esi, esi
    lea rdx, [rip + info_arg]
    hypercall vcpu_op
    must_fail "a foreign frame became our vcpu_info"
    ret

.data
.balign 8
map_request:    .quad 0, 0
pin_request:    .quad MMUEXT_PIN_L1_TABLE, 0, 0
copy_request:   .quad 17, 0, 0                  # MMUEXT_COPY_PAGE: to, from
list:           .quad 0
reservation:    .quad list, 1, 0, DOMID_SELF
info_arg:       .quad 0, 0

.bss
.balign PAGE_SIZE
window:         .zero PAGE_SIZE
own:            .zero PAGE_SIZE
l2:             .zero PAGE_SIZE
