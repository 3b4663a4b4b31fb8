# SPDX-License-Identifier: GPL-2.0-only
#
# multicall - lists of hypercalls that call themselves, change themselves, and leave in the middle
#
# Class: multicall and continuations
# History: XSA-213, XSA-318
# Refused: no multicall inside a multicall; an iret ends the list, and nothing behind it is done with the page tables that
#   the iret has switched to; each entry is read once, when it is its turn; a result that has no place ends the list.

.include "hostile.inc"
.include "user.inc"

.set LONG, 1000

.macro entry op, a, b, c, d
    .quad \op, -1, \a, \b, \c, \d, 0, 0
.endm

.text
_start:
    hostile_entry "multicall"
    attack "a list", 0, multicall, recursive, 4, 0, 0
    equal "a multicall in it", [rip + recursive + 8], -EINVAL
    equal "a multicall of itself", [rip + recursive + 72], -EINVAL
    equal "hypercall 63", [rip + recursive + 136], -ENOSYS
    equal "hypercall 2^32-1", [rip + recursive + 200], -ENOSYS

    # A list that overwrites an entry which is still to come: what counts is what stands there then
    attack "a list that overwrites its second entry", 0, multicall, rewriting, 2, 0, 0
    equal "the second entry", [rip + rewriting + 72], -ENOSYS
    attack "a list that clears its own place of results", -EFAULT, multicall, closing, 2, 0, 0
    equal "its second call", [rip + second_result], 0x5a5a
    writable closing_page
    equal "was not made", [rip + closing + 72], -1

    # iret in a list, into kernel mode
    mov rbp, rsp
    push FLAT_RING3_SS64
    push rbp
    push 2
    push FLAT_RING3_CS64 & ~3
    lea rax, [rip + .came]
    push rax
    push 0
    push 0x1111                                 # rcx
    push 0x2222                                 # r11
    push 0x3333                                 # rax
    lea rdi, [rip + leaving]
    mov esi, 3
    hypercall multicall
    fail "the iret in a list came back"
.came:
    mov r12, rax
    equal "an iret in a list: rax", r12, 0x3333
    equal "the call before it", [rip + leaving + 8], -ENOSYS
    equal "the call behind it", [rip + leaving + 136], -1

    # ... and into user mode, with a page-table change behind it: done on the user's tables it would be confused
    call user_init
    lea rdi, [rip + hidden]
    call frame_of
    lea rcx, [rax + READ_WRITE]
    mov [rip + switching + 64 + 24], rcx
    lea rax, [rip + .back]
    mov [rip + user_return], rax
    mov [rip + user_kernel_rsp], rsp
    mov rbp, rsp
    push FLAT_RING3_SS64
    mov rax, user_stack_top
    push rax
    push 2
    push FLAT_RING3_CS64
    lea rax, [rip + .user]
    push rax
    push 0
    push 0
    push 0
    push 0
    lea rdi, [rip + switching]
    mov esi, 2
    hypercall multicall
    fail "the iret in a list came back"
.user:
    mov eax, 77
    syscall
.user_again:
    jmp .user_again
.back:
    equal "user mode was reached", [rip + user_rax], 77
    equal "the call behind an iret to user mode", [rip + switching + 64 + 8], -1

    # Long lists: they give way now and then, and every call is made once
    lea rdi, [rip + long_list]
    mov ecx, LONG
.fill:
    mov qword ptr [rdi], 63
    mov qword ptr [rdi + 8], -1
    add rdi, 64
    dec ecx
    jnz .fill
    attack "a list of 1000", 0, multicall, long_list, LONG, 0, 0
    equal "its last", [rip + long_list + 64 * 999 + 8], -ENOSYS
    mov qword ptr [rip + many_updates + 0], 0
    lea rdi, [rip + many_updates]               # 250 updates of a page that is no table: plain stores
    lea rbx, [rip + hidden]
    push rdi
    mov rdi, rbx
    call frame_of
    pop rdi
    mov ecx, 250
.fill_updates:
    mov [rdi], rax
    mov [rdi + 8], rcx
    add rdi, 16
    dec ecx
    jnz .fill_updates
    attack "a list in a list", 0, multicall, nested_list, 2, 0, 0
    equal "250 updates", [rip + nested_list + 8], 0
    equal "told as done", [rip + done], 250
    equal "in order", [rip + hidden], 1
    hostile_end

.data
.balign 64
recursive:
    entry __HYPERVISOR_multicall, leaving, 1, 0, 0
    entry __HYPERVISOR_multicall, recursive, 4, 0, 0
    entry 63, 0, 0, 0, 0
    entry 0xffffffff, 0, 0, 0, 0
rewriting:
    entry __HYPERVISOR_xen_version, XENVER_extraversion, rewriting + 64, 0, 0
    entry __HYPERVISOR_xen_version, XENVER_version, 0, 0, 0
leaving:
    entry 63, 0, 0, 0, 0
    entry __HYPERVISOR_iret, 0, 0, 0, 0
    entry 63, 0, 0, 0, 0
switching:
    entry __HYPERVISOR_iret, 0, 0, 0, 0
    entry __HYPERVISOR_update_va_mapping, hidden, 0, UVMF_INVLPG, 0
nested_list:
    entry __HYPERVISOR_mmu_update, many_updates, 250, done, DOMID_SELF
    entry 63, 0, 0, 0, 0
done:           .quad 0
second_result:  .quad 0x5a5a
.balign PAGE_SIZE
closing_page:
closing:
    entry __HYPERVISOR_update_va_mapping, closing_page, 0, UVMF_INVLPG, 0
    entry __HYPERVISOR_xen_version, XENVER_extraversion, second_result, 0, 0
    .balign PAGE_SIZE

.bss
.balign PAGE_SIZE
hidden:         .zero PAGE_SIZE
long_list:      .zero LONG * 64
many_updates:   .zero 4096
