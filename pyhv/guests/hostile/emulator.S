# SPDX-License-Identifier: GPL-2.0-only
#
# emulator - feeds the hypervisor's instruction emulation: stores to page tables, privileged instructions, odd encodings
#
# Class: instruction emulation
# History: XSA-63, XSA-123, XSA-195, XSA-200, XSA-333
# Refused: a store to a page table is done for the guest only if its whole new entry is valid, aligned and of at most eight
#   bytes; everything else is the fault it was, with nothing written. Privileged instructions do what a virtual processor
#   allows, however they are prefixed and wherever their bytes lie.

.include "hostile.inc"

.set __HYPERVISOR_vm_assist, 21
.set __HYPERVISOR_physdev_op, 33
.set MSR_EFER, 0xc0000080
.set MSR_STAR, 0xc0000081

.macro store_fails what, instruction            # r12 = va of an entry of the live L1, r13 = its value
    faults_with "\what", TRAP_page_fault, PFEC_P | PFEC_W, "\instruction"
    equal "which wrote nothing", [r12], r13
.endm

.macro wrmsr_fails what, msr, low, high
    mov ecx, \msr
    mov eax, \low
    mov edx, \high
    faults "\what", TRAP_gp_fault, "wrmsr"
.endm

.text
_start:
    hostile_entry "emulator"
    lea rdi, [rip + window]
    mov esi, 1
    call find_table
    lea rcx, [rip + window]
    shr rcx, PAGE_SHIFT
    and ecx, 511
    lea r12, [rax + rcx * 8]                    # r12 = the entry of `window`
    mov rbp, rax                                # rbp = its table
    mov r13, [r12]
    store_fails "a store to an L1 before the assist is on", "mov qword ptr [r12], 0"
    attack "vm_assist command 2", -ENOSYS, vm_assist, 2, 2, 0, 0
    attack "an assist that is none", -EINVAL, vm_assist, 0, 99, 0, 0
    attack "an assist of 2^32-1", -EINVAL, vm_assist, 0, 0xffffffff, 0, 0
    attack "writable page tables", 0, vm_assist, 0, 2, 0, 0

    # Good ones, so that the others are known to fail for their own reason
    mov rax, r13
    mov [r12], rax
    equal "a store of the same entry", [r12], r13
    mov qword ptr [r12], 0
    faults "the page is gone with its entry", TRAP_page_fault, "mov rax, [rip + window]"
    mov [r12], rax
    xchg [r12], r13
    mov r13, [r12]
    mov rax, [rip + window]

    lea rdi, [rip + table]                      # a table of ours, pinned: nothing may map it writable
    call frame_of
    mov r14, rax
    pin 1, table
    lea rbx, [r14 + READ_WRITE]
    store_fails "a writable mapping of a table", "mov [r12], rbx"
    store_fails "the same by XCHG", "xchg [r12], rbx"
    store_fails "the same by XADD", "call xadd_to_table"
    store_fails "the same by XOR", "call xor_to_table"
    store_fails "the same by CMPXCHG", "call cmpxchg_table"
    store_fails "the same by CMPXCHG8B", "call cmpxchg8b_table"
    mov rbx, rbp
    push rdi
    mov rdi, rbp
    call frame_of
    pop rdi
    lea rbx, [rax + READ_WRITE]
    store_fails "a writable mapping of the table itself", "mov [r12], rbx"
    mov rbx, 0x1000 | READ_WRITE
    store_fails "a mapping of a frame of the hypervisor", "mov [r12], rbx"
    lea rbx, [r13 + PTE_PCD]
    store_fails "cache attributes", "mov [r12], rbx"
    store_fails "cache attributes by a byte", "or byte ptr [r12], 0x98"
    store_fails "cache attributes by a bit", "bts qword ptr [r12], 4"
    store_fails "a byte of the frame's number", "mov byte ptr [r12 + 5], 0x7f"
    store_fails "a word of the frame's number", "mov word ptr [r12 + 4], 0x7f"
    store_fails "a store across two entries", "mov qword ptr [r12 + 4], rax"
    store_fails "a misaligned word", "mov word ptr [r12 + 1], ax"
    store_fails "a misaligned double word", "mov dword ptr [r12 + 2], eax"
    store_fails "a store of sixteen bytes", ".byte 0x41, 0x0f, 0x11, 0x04, 0x24"
    faults "an exchange of sixteen bytes", TRAP_page_fault, "call cmpxchg16b_table"
    equal "which wrote nothing", [r12], r13
    store_fails "an instruction that the assist does not know", "shl qword ptr [r12], 1"
    store_fails "another", "rol byte ptr [r12], 1"
    store_fails "a store of an x87 number", "fistp qword ptr [r12]"
    store_fails "a writable mapping of a table, by a store with twelve prefixes", "call prefixed_store"
    mov rdi, [rip + start_info]                 # upper tables are never written that way
    mov rdi, [rdi + START_INFO_pt_base]
    mov r15, rdi
    mov rbx, [r15]
    faults_with "a store to our L4", TRAP_page_fault, PFEC_P | PFEC_W, "mov [r15], rbx"
    faults_with "a store of nothing to our L4", TRAP_page_fault, PFEC_P | PFEC_W, "mov qword ptr [r15 + 8 * 300], 0"

    # Instructions whose bytes lie across two pages, the second of which is not mapped or not executable
    mov word ptr [rip + code_end - 2], 0x300f   # WRMSR as the last bytes: it is #GP, not a page fault
    mov ecx, MSR_EFER
    xor eax, eax
    xor edx, edx
    lea r15, [rip + code_end - 2]
    faults "WRMSR in the last two bytes of a page", TRAP_gp_fault, "call r15"
    mov byte ptr [rip + code_end - 1], 0x0f     # the first half of something
    lea rdi, [rip + code_end]
    xor esi, esi
    call update_mapping
    must_succeed "unmapping a page"
    lea r15, [rip + code_end - 1]
    faults "half an instruction before nothing", TRAP_page_fault, "call r15"
    lea r15, [rip + code_end - 5]               # the forced-emulation prefix alone
    mov dword ptr [r15], 0x65780b0f
    mov byte ptr [r15 + 4], 0x6e
    faults "the emulation prefix before nothing", TRAP_page_fault, "call r15"
    lea r15, [rip + code_end - 4]
    mov dword ptr [r15], 0x65780b0f
    faults "half the emulation prefix", TRAP_invalid_op, "call r15"
    lea r15, [rip + code_end - 16]
    mov dword ptr [r15], 0x65780b0f
    mov byte ptr [r15 + 4], 0x6e
    mov word ptr [r15 + 5], 0x300f              # WRMSR, forced: no
    faults "the emulation prefix on WRMSR", TRAP_invalid_op, "call r15"

    # Privileged instructions with what a guest may not have
    wrmsr_fails "EFER without long mode", MSR_EFER, 0, 0
    wrmsr_fails "STAR", MSR_STAR, 0, 0
    wrmsr_fails "LSTAR", 0xc0000082, 0x100000, 0
    wrmsr_fails "CSTAR", 0xc0000083, 0x100000, 0
    wrmsr_fails "FMASK", 0xc0000084, 0, 0
    wrmsr_fails "SYSENTER_EIP", 0x176, 0x100000, 0
    wrmsr_fails "the APIC's base", 0x1b, 0xfee00900, 0
    wrmsr_fails "the APIC's registers", 0x80b, 0, 0
    wrmsr_fails "DEBUGCTL", 0x1d9, 2, 0
    wrmsr_fails "an MSR that does not exist", 0xdeadbeef, 0, 0
    wrmsr_fails "TSC_AUX with 33 bits", 0xc0000103, 0, 1
    wrmsr_fails "the hypercall page in a frame that is not ours", 0x40000000, 0, 0x7fff
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    shr edi, PAGE_SHIFT
    shl edi, PAGE_SHIFT
    wrmsr_fails "the hypercall page in our L4", 0x40000000, edi, 0
    mov ecx, 0xc0000082
    faults "reading LSTAR", TRAP_gp_fault, "rdmsr"
    mov rax, 0x12345
    faults "CR3 with low bits", TRAP_gp_fault, "mov cr3, rax"
    mov rax, -1
    faults "CR3 of 2^64-1", TRAP_gp_fault, "mov cr3, rax"
    mov rax, r14
    faults "CR3 of an L1", TRAP_gp_fault, "mov cr3, rax"
    mov rax, 0x80010031                         # as it is, but for WP's neighbours
    faults "CR0 without WP", TRAP_gp_fault, "mov cr0, rax"
    mov rax, 0x7fff0033
    faults "CR0 without paging", TRAP_gp_fault, "mov cr0, rax"
    faults "CR8", TRAP_gp_fault, "mov rax, cr8"
    faults "LIDT", TRAP_gp_fault, "lidt [rip + window]"
    faults "fourteen prefixes and HLT", TRAP_gp_fault, "call prefixed_hlt"
    faults "fifteen prefixes", TRAP_gp_fault, "call too_long"
    faults "LOCK where it may not be", TRAP_invalid_op, "call bad_lock"

    # Ports
    attack "IOPL 4", -EINVAL, physdev_op, 6, four, 0, 0
    attack "IOPL 2^32-1", -EINVAL, physdev_op, 6, all_ones, 0, 0
    attack "an I/O bitmap of 65537 ports", -EINVAL, physdev_op, 7, big_bitmap, 0, 0
    attack "an I/O bitmap in the hypervisor's space", -EINVAL, physdev_op, 7, wild_bitmap, 0, 0
    mov edx, 0xcf8
    faults "IN by such a bitmap", TRAP_gp_fault, "in eax, dx"
    mov edx, 0xffff
    faults "IN of four bytes at the last port", TRAP_gp_fault, "in eax, dx"
    attack "IOPL 3", 0, physdev_op, 6, three, 0, 0
    mov edx, 0xcfc
    mov eax, 0
    in eax, dx
    equal "PCI configuration by port", rax, 0xffffffff
    mov edx, 0x64
    mov eax, 0xfe
    out dx, al                                  # a keyboard controller's reset
    mov edx, 0xcf9
    mov eax, 6
    out dx, al                                  # a chipset's reset
    mov edx, 0x604
    mov ax, 0x2000
    out dx, ax                                  # an emulator's power switch
    print "refused: resets by ports\n"
    faults "string output of the hypervisor's memory", TRAP_page_fault, "call string_output"
    hostile_end

xadd_to_table:                                  # r13 + rcx = rbx
    mov rcx, rbx
    sub rcx, r13
    xadd [r12], rcx
    ud2
xor_to_table:                                   # r13 ^ rcx = rbx
    mov rcx, rbx
    xor rcx, r13
    xor [r12], rcx
    ud2
cmpxchg_table:
    mov rax, r13
    lock cmpxchg [r12], rbx
    ud2
cmpxchg8b_table:
    mov eax, r13d
    mov rdx, r13
    shr rdx, 32
    mov rcx, rbx
    shr rcx, 32
    push rbx
    lock cmpxchg8b [r12]
    pop rbx
    ud2
cmpxchg16b_table:
    mov r15, r12
    and r15, ~15
    mov rax, [r15]
    mov rdx, [r15 + 8]
    mov rcx, rdx
    mov rbx, rax
    lock cmpxchg16b [r15]
    ud2
prefixed_store:
    mov rsi, r12
    lea rax, [r14 + READ_WRITE]
    .byte 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x3e, 0x48, 0x89, 0x06   # mov [rsi], rax
    ud2
prefixed_hlt:
    .byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0xf4
    ud2
too_long:
    .byte 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x66, 0x0f, 0xa2
    ud2
bad_lock:
    .byte 0xf0, 0x89, 0xd8                      # lock mov eax, ebx
    ud2
string_output:
    mov rsi, HYPERVISOR_HOLE                    # would print the hypervisor's memory
    mov edx, 0xe9
    mov ecx, 16
    rep outsb
    ud2

.data
.balign 8
four:           .long 4
all_ones:       .long -1
three:          .long 3
.balign 8
big_bitmap:     .quad window, 65537
wild_bitmap:    .quad HYPERVISOR_HOLE, 65536

.bss
.balign PAGE_SIZE
window:         .zero PAGE_SIZE
table:          .zero PAGE_SIZE
code:           .zero PAGE_SIZE
code_end:       .zero PAGE_SIZE
