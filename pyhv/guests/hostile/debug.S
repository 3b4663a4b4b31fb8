# SPDX-License-Identifier: GPL-2.0-only
#
# debug - breakpoints where the hypervisor is, bits of DR7 that are its own, traps without end
#
# Class: debug registers and debug exceptions
# History: XSA-156, XSA-204, XSA-260
# Refused: no breakpoint at an address of the hypervisor's, none for ports, no general detect; a trap that a guest makes for
#   itself comes to its own handler, one at a time, also around hypercalls and loads of SS; any number of them is the
#   guest's own time.

.include "hostile.inc"

.set __HYPERVISOR_get_debugreg, 9
.set TF, 0x100
.set RF, 0x10000
.set DR7_GD, 0x2000
.set WATCH_0, 1 | 0xd0000                       # DR7: DR0 enabled, stores, 4 bytes
.set WATCH_ACCESS_0, 1 | 0xf0000                # loads and stores
.set STOP_0, 1                                  # execution

.macro breakpoint what, answer, register, value
    attack "\what", \answer, set_debugreg, \register, \value, 0, 0
.endm

.macro traps what, count                        # how many debug exceptions have come since the last time
    mov rdi, [rip + seen]
    mov qword ptr [rip + seen], 0
    equal "\what", rdi, \count
.endm

.text
_start:
    hostile_entry "debug"
    set_handler 1, on_debug

    # Addresses
    mov ebx, 3
.each:
    mov edi, ebx
    mov rsi, HYPERVISOR_HOLE
    hypercall set_debugreg
    cmp rax, -EPERM
    must e, "a breakpoint in the hypervisor"
    mov edi, ebx
    mov rsi, MACH2PHYS_VIRT_START
    hypercall set_debugreg
    cmp rax, -EPERM
    must e, "a breakpoint in the M2P"
    mov edi, ebx
    mov rsi, 0xffff87ffffffffff
    hypercall set_debugreg
    cmp rax, -EPERM
    must e, "a breakpoint on the hypervisor's last byte"
    mov edi, ebx
    mov rsi, NOT_CANONICAL
    hypercall set_debugreg
    cmp rax, -EPERM
    must e, "a breakpoint that is not canonical"
    dec ebx
    jns .each
    print "refused: breakpoints in the hypervisor's space\n"
    mov rcx, HYPERVISOR_HOLE
    faults_with "the same by an instruction", TRAP_gp_fault, 0, "mov dr0, rcx"
    mov rcx, LOWER_HALF_END
    faults_with "not canonical, by an instruction", TRAP_gp_fault, 0, "mov dr3, rcx"

    # Control and status
    breakpoint "register 8", -ENODEV, 8, 0
    breakpoint "register 2^32-1", -ENODEV, 0xffffffff, 0
    attack "reading register 8", -ENODEV, get_debugreg, 8, 0, 0, 0
    attack "reading register 2^31", -ENODEV, get_debugreg, 0x80000000, 0, 0, 0
    breakpoint "general detect", -EPERM, 7, DR7_GD
    breakpoint "general detect among others", -EPERM, 7, 0xffffffff
    breakpoint "a breakpoint for ports", -EPERM, 7, 0x20000 | 1
    breakpoint "DR7 above 32 bits", -EINVAL, 7, 1 << 32
    breakpoint "DR6 above 32 bits", -EINVAL, 6, 1 << 32
    breakpoint "DR6, all bits", 0, 6, 0xffffffff
    attack "DR7 after all these", 0x400, get_debugreg, 7, 0, 0, 0
    mov ecx, DR7_GD
    faults_with "general detect by an instruction", TRAP_gp_fault, 0, "mov dr7, rcx"
    mov rcx, 1 << 32
    faults_with "DR7 above 32 bits by an instruction", TRAP_gp_fault, 0, "mov dr7, rcx"
    traps "no debug exception yet", 0

    # Single steps around what the hypervisor does for us
    mov r12d, 40
.step:
    pushfq
    or qword ptr [rsp], TF
    popfq
    xor edi, edi
    mov eax, __HYPERVISOR_xen_version
    syscall
    mov ecx, 0
    mov rdx, cr0
    pushfq
    and qword ptr [rsp], ~TF
    popfq
    dec r12d
    jnz .step
    cmp qword ptr [rip + seen], 200
    must a, "single steps did not come"
    mov qword ptr [rip + seen], 0
    pushfq
    pop rdi
    and edi, TF
    equal "TF after that", rdi, 0

    # A watched selector, loaded into SS before a hypercall
    lea rsi, [rip + selector]
    breakpoint "watching a word", 0, 0, rsi
    breakpoint "loads and stores", 0, 7, WATCH_ACCESS_0
    mov r12d, 100
.ss:
    xor edi, edi
    mov ss, [rip + selector]
    mov eax, __HYPERVISOR_xen_version
    syscall
    test eax, eax
    must g, "a hypercall behind a load of SS"
    dec r12d
    jnz .ss
    mov qword ptr [rip + seen], 0
    breakpoint "no more", 0, 7, 0

    # A breakpoint at a hypercall, one at a store to a page table, one that the hypervisor writes
    lea rsi, [rip + .stop]
    breakpoint "stopping at a hypercall", 0, 0, rsi
    breakpoint "execution", 0, 7, STOP_0
    mov ebx, 50
.stops:
    xor edi, edi
    mov eax, __HYPERVISOR_xen_version
.stop:
    syscall
    test eax, eax
    must g, "a hypercall with a breakpoint"
    dec ebx
    jnz .stops
    breakpoint "not any more", 0, 7, 0
    traps "it came each time, once", 50
    lea rsi, [rip + answer]
    breakpoint "watching what a hypercall writes", 0, 0, rsi
    breakpoint "stores", 0, 7, WATCH_0
    attack "that hypercall", 0, xen_version, 1, answer, 0, 0
    mov qword ptr [rip + seen], 0
    mov dword ptr [rip + answer], 1
    breakpoint "no more of that", 0, 7, 0
    traps "our own store is told", 1

    # All kinds of DR7 and addresses
    mov ebx, 0x12345
    mov r12d, 100
.random:
    imul ebx, ebx, 1664525
    add ebx, 1013904223
    mov edi, ebx
    shr edi, 29
    mov esi, ebx
    hypercall set_debugreg
    mov edi, 7
    mov esi, ebx
    and esi, ~0xff                              # nothing enabled
    hypercall set_debugreg
    mov ecx, 4
.touch:
    mov rax, [rip + answer]
    dec ecx
    jnz .touch
    dec r12d
    jnz .random
    breakpoint "at last none", 0, 7, 0
    mov qword ptr [rip + seen], 0
    mov ebx, 300
.icebp:
    .byte 0xf1
    dec ebx
    jnz .icebp
    traps "ICEBP, 300 times", 300
    hostile_end

on_debug:                                       # (rdi = frame)
    inc qword ptr [rip + seen]
    or qword ptr [rdi + FRAME_rflags], RF
    ret

.data
.balign 16
seen:           .quad 0
selector:       .quad FLAT_RING3_SS64
answer:         .zero 16
