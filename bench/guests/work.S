# SPDX-License-Identifier: GPL-2.0-only
#
# work - computes, and does nothing else; as a PV kernel, and as bare code on a processor without a hypervisor
#
# `work` is the same code in both cases: loads, stores, multiplications, calls and branches that depend on data, over a
# table that fits a host's cache. As a kernel it runs between two lines, BEGIN and END; bare it starts at `bare_start`
# with paging on, and the processor is stopped at `bare_end`.
# Afterwards the sum in `result` is the same for the same number of rounds.

.include "xen.inc"
.include "kernel.inc"
.include "paging.inc"

.set WORDS, 4096
.set DATA_PAGE, PTE_P | PTE_RW | PTE_A | PTE_D | PTE_NX

.text
_start:
    kernel_entry
    mov edi, VCPUOP_stop_periodic_timer
    xor esi, esi
    xor edx, edx
    hypercall vcpu_op
    must_succeed "stopping the periodic timer"

    # Data and stack are not executable in any kernel that cares; the builder's mapping is not so particular.
    lea rbx, [rip + __data_start]
.page:
    mov rdi, rbx
    mov rsi, DATA_PAGE
    call remap
    must_succeed "mapping data without execution"
    add rbx, PAGE_SIZE
    lea rax, [rip + _end]
    cmp rbx, rax
    jb .page

    print "BEGIN work\n"
    call line_arrives
    call work
    print "END 1 work\n"
    call line_arrives
    print "result "
    print_hex [rip + result]
    print "\n"
    succeed

# What was printed leaves the hypervisor when a turn ends: end it.
line_arrives:
    mov edi, SCHEDOP_yield
    xor esi, esi
    hypercall sched_op
    must_succeed "yielding"
    ret

bare_start:
    lea rsp, [rip + boot_stack_top]
    call work
bare_end:
    jmp bare_end

# work(): `rounds` times over the table.
work:
    mov r8, [rip + rounds]
    mov rax, 0x9e3779b97f4a7c15
.round:
    lea rdi, [rip + table]
    mov ecx, WORDS
.next:
    mov rdx, [rdi]
    imul rax, rax, 31
    add rax, rdx
    rol rax, 7
    mov [rdi], rax
    test al, 1
    jz .even
    call mix
.even:
    add rdi, 8
    dec ecx
    jnz .next
    dec r8
    jnz .round
    mov [rip + result], rax
    ret

mix:
    xor rax, rcx
    add rax, r8
    ret

.data
.balign 8
rounds:         .quad 16000
result:         .quad 0

.bss
.balign PAGE_SIZE
table:          .zero WORDS * 8
