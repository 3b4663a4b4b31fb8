# SPDX-License-Identifier: GPL-2.0-only
#
# hello32 - the smallest 32-bit PAE kernel: checks what it was given at the start, says who it is; then powers off
#
# What is different from `hello`, which is to be read first:
#   - the kernel starts in 32-bit protected mode, in ring 1: Xen is in ring 0 and processes will be in ring 3, so here
#     segments and page tables' U bits protect the kernel, as on bare hardware. All segments are flat; the selectors
#     0xe019 (code) and 0xe021 (data) lie in Xen's part of the GDT;
#   - Xen is entered by `int 0x82` instead of `syscall`, through the hypercall page (kernel32.inc);
#   - the structures are the same with 4-byte words; xen.inc has both offsets. Page-table entries still have 8 bytes
#     (PAE), so a machine address may lie above 4 GiB: cr3 holds a frame number turned around to fit.
#
# Steps: registers and selectors at the entry; start_info; p2m and M2P; the console is where they say;
# xen_version(version, extraversion, get_features); SUCCESS.

.width 32
.include "xen.inc"
.include "kernel32.inc"

.set SIF_PRIVILEGED, 1
.set SIF_INITDOMAIN, 2

.text
_start:
    mov [entry_esp], esp                        # before anything is touched
    mov [entry_ebp], ebp
    pushfd
    pop dword ptr [entry_flags]
    or eax, ebx
    or eax, ecx
    or eax, edx
    or eax, edi
    mov [entry_others], eax
    kernel_entry
    print "hello32: a 32-bit Xen PV kernel in assembly\n"

    # --- Registers and selectors --------------------------------------------------------------------------------
    mov eax, [entry_others]
    or eax, [entry_ebp]
    check z, "a general register was not 0 at the entry"
    mov eax, [entry_flags]
    and eax, 0x3202                             # IOPL, IF, bit 1
    cmp eax, 0x202
    check e, "eflags at the entry are not IF set, IOPL 0"
    mov eax, cs
    cmp ax, FLAT_RING1_CS
    check e, "cs is not FLAT_RING1_CS"
    mov eax, ss
    cmp ax, FLAT_RING1_DS
    check e, "ss is not FLAT_RING1_DS"
    mov eax, ds
    cmp ax, FLAT_RING1_DS
    check e, "ds is not FLAT_RING1_DS"
    mov eax, es
    cmp ax, FLAT_RING1_DS
    check e, "es is not FLAT_RING1_DS"
    mov eax, fs
    cmp ax, FLAT_RING1_DS
    check e, "fs is not FLAT_RING1_DS"
    mov eax, gs
    cmp ax, FLAT_RING1_DS
    check e, "gs is not FLAT_RING1_DS"

    # --- start_info ---------------------------------------------------------------------------------------------
    mov ebp, [start_info]
    mov esi, ebp
    mov edi, abi_name
    mov ecx, 17                                 # with its NUL
    repe cmpsb
    check e, "start_info.magic is not xen-3.0-x86_32p"
    print "  ABI: "
    mov eax, ebp
    call puts
    print "\n  memory: "
    mov eax, [ebp + START_INFO_nr_pages]
    call put_dec
    print " pages of 4 KiB = "
    shr eax, 8
    call put_dec
    print " MiB\n"
    test dword ptr [ebp + START_INFO_flags], SIF_PRIVILEGED | SIF_INITDOMAIN
    check z, "start_info.flags claim privileges"

    # The boot stack is the one page behind the page tables, and esp was at its end.
    mov eax, [ebp + START_INFO_nr_pt_frames]
    shl eax, PAGE_SHIFT
    add eax, [ebp + START_INFO_pt_base]
    add eax, PAGE_SIZE
    cmp eax, [entry_esp]
    check e, "esp was not at the end of the page behind the page tables"
    test dword ptr [ebp + START_INFO_pt_base], PAGE_SIZE - 1
    check z, "pt_base is not the address of a page"

    # --- Frames -------------------------------------------------------------------------------------------------
    mov esi, [ebp + START_INFO_mfn_list]
    xor ecx, ecx
.compare:
    mov eax, [esi + ecx * 4]
    cmp [eax * 4 + MACH2PHYS_VIRT_START], ecx
    check e, "the M2P does not agree with the p2m"
    inc ecx
    cmp ecx, [ebp + START_INFO_nr_pages]
    jb .compare
    print "  M2P and p2m agree on "
    print_dec ecx
    print " pages\n"
    mov eax, [ebp + START_INFO_console_mfn]
    call mfn_to_va
    call va_to_mfn
    cmp eax, [ebp + START_INFO_console_mfn]
    check e, "the console page does not translate back"
    mov eax, [ebp + START_INFO_shared_info]
    test eax, PAGE_SIZE - 1
    check z, "shared_info is not the machine address of a page"

    # cr3: what the kernel sees is its L3's frame, bits 20 and up of it below, the rest above
    mov eax, [ebp + START_INFO_pt_base]
    call va_to_mfn
    mov edx, eax
    shl eax, 12
    shr edx, 20
    or eax, edx
    mov edx, cr3                                # traps, and Xen emulates it
    cmp eax, edx
    check e, "cr3 does not name the page table of start_info"

    # --- Hypercalls ---------------------------------------------------------------------------------------------
    mov ebx, XENVER_version
    xor ecx, ecx
    hypercall xen_version
    must_succeed "xen_version(version)"
    mov ebp, eax
    print "  hypervisor: Xen "
    shr eax, 16
    call put_dec
    print "."
    movzx eax, bp
    call put_dec
    mov ebx, XENVER_extraversion
    mov ecx, extraversion
    hypercall xen_version
    must_succeed "xen_version(extraversion)"
    mov eax, extraversion
    call puts
    mov ebx, XENVER_get_features
    mov ecx, feature_info
    hypercall xen_version
    must_succeed "xen_version(get_features)"
    print "\n  features: "
    print_hex [feature_info + 4]

    # The instruction itself, as a kernel without a hypercall page does it; the stub's registers survive.
    mov eax, __HYPERVISOR_xen_version
    mov ebx, XENVER_version
    xor ecx, ecx
    int 0x82
    cmp eax, ebp
    check e, "int 0x82 does not say what the hypercall page says"
    mov eax, 63                                 # nobody's number
    int 0x82
    cmp eax, -ENOSYS
    check e, "an unknown hypercall is not refused with ENOSYS"
    mov ebx, XENVER_get_features
    mov ecx, HYPERVISOR_HOLE
    hypercall xen_version
    cmp eax, -EFAULT
    check e, "a pointer into Xen is not refused with EFAULT"

    print "\n  command line: "
    mov eax, [start_info]
    add eax, START_INFO_cmd_line
    call puts
    print "\n"
    succeed

.data
.balign 8
abi_name:       .asciz "xen-3.0-x86_32p"
entry_esp:      .long 0
entry_ebp:      .long 0
entry_flags:    .long 0
entry_others:   .long 0
extraversion:   .zero 17                        # Xen writes 16 bytes; the NUL behind them is ours
.balign 8
feature_info:   .long 0, 0                      # submap_idx in, submap out
