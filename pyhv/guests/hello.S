# SPDX-License-Identifier: GPL-2.0-only
#
# hello - says who it is, how much memory it has, which Xen it runs on and its command line; then powers off
#
# The smallest complete PV kernel. It teaches
#   - how a PV kernel begins: no boot sector, no real mode, no BIOS. The domain builder has loaded the ELF file, built
#     page tables and mapped everything; vcpu 0 starts at the ELF entry, in 64-bit mode, in ring 3, with paging on,
#     and rsi holds the address of start_info, which tells the rest;
#   - how a kernel calls Xen: through the hypercall page. The note HYPERCALL_PAGE below asks the builder to fill that
#     page with 128 stubs of 32 bytes. Stub number n loads n into rax and executes `syscall`. (The other kernels here
#     use the macro `hypercall`, which does the same without a page.)
#   - how a kernel prints: there is no serial port, but a page shared with the back end that holds a ring of bytes
#     (kernel.inc), and an event channel to say "look at the ring";
#   - how a domain ends: sched_op(SCHEDOP_shutdown, poweroff).
#
# Steps: banner; nr_pages from start_info; xen_version(version) and xen_version(extraversion); the features that Xen
# offers; the command line; SUCCESS.

.include "xen.inc"
.include "kernel.inc"
.xen_note HYPERCALL_PAGE hypercall_page

.text
_start:
    kernel_entry
    print "hello: a Xen PV kernel in assembly\n"
    mov rbx, [rip + start_info]

    # The builder left a text of up to 32 bytes that names the ABI: "xen-3.0-x86_64".
    print "  ABI: "
    mov rdi, rbx
    call puts
    print "\n  memory: "
    mov rdi, [rbx + START_INFO_nr_pages]
    call put_dec
    print " pages of 4 KiB = "
    shr rdi, 8
    call put_dec
    print " MiB\n"

    # xen_version(XENVER_version) -> major << 16 | minor
    mov edi, XENVER_version
    xor esi, esi
    lea rax, [rip + hypercall_page + __HYPERVISOR_xen_version * HYPERCALL_STUB]
    call rax
    must_succeed "xen_version(version)"
    mov ebp, eax
    print "  hypervisor: Xen "
    mov edi, ebp
    shr edi, 16
    call put_dec
    print "."
    movzx edi, bp
    call put_dec

    # xen_version(XENVER_extraversion, buffer): the rest of the version, 16 bytes of text
    mov edi, XENVER_extraversion
    lea rsi, [rip + extraversion]
    lea rax, [rip + hypercall_page + __HYPERVISOR_xen_version * HYPERCALL_STUB]
    call rax
    must_succeed "xen_version(extraversion)"
    lea rdi, [rip + extraversion]
    call puts

    # xen_version(XENVER_get_features, {submap_idx, submap}): a bitmap of XENFEAT_* numbers
    mov edi, XENVER_get_features
    lea rsi, [rip + feature_info]
    lea rax, [rip + hypercall_page + __HYPERVISOR_xen_version * HYPERCALL_STUB]
    call rax
    must_succeed "xen_version(get_features)"
    print "\n  features: "
    mov edi, [rip + feature_info + 4]
    call put_hex

    print "\n  command line: "
    lea rdi, [rbx + START_INFO_cmd_line]
    call puts
    print "\n"
    succeed

.text
.balign PAGE_SIZE
hypercall_page:
    .zero PAGE_SIZE

.data
.balign 8
extraversion:   .zero 17                        # Xen writes 16 bytes; the NUL behind them is ours
.balign 8
feature_info:   .long 0, 0                      # submap_idx in, submap out
