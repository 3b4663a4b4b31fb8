# SPDX-License-Identifier: GPL-2.0-only
#
# linux32 - goes the way of a 32-bit Linux: features, areas, its own page tables and GDT, two processes with TLS
#
# The last Linux that runs as a 32-bit PV guest is 5.8. What such a kernel does from its first instruction until two
# processes take turns is done here, in its order and in its manner:
#   - it asks for features and assists, the extended cr3 among them, and sets its IOPL;
#   - it registers a runstate area and a time area. A pointer has 32 bits; the rest of the union is what the stack held;
#   - it makes page tables of its own and gives up the builder's;
#   - it installs a GDT with Linux' selectors, and callbacks, system calls by `int 0x80` and by SYSENTER among them;
#   - it switches between processes with one multicall: kernel stack, three TLS descriptors, FPU. Each process finds
#     its own word behind gs, and gets the FPU when it first uses it, by #NM;
#   - it is refused virtual-8086 mode, and told so by a protection fault whose frame is the one that it gave.
#
# Steps: as the headlines below; SUCCESS.

.width 32
.include "xen.inc"
.include "kernel32.inc"
.include "traps32.inc"
.include "paging32.inc"

.set XENFEAT_pae_pgdir_above_4gb, 4
.set VMASST_CMD_enable, 0
.set VMASST_TYPE_4gb_segments, 0
.set VMASST_TYPE_pae_extended_cr3, 3
.set PHYSDEVOP_set_iopl, 6
.set VCPUOP_register_runstate_memory_area, 5
.set VCPUOP_register_vcpu_time_memory_area, 13
.set RUNSTATE_running, 0
.set RUNSTATE_entry_time, 4                     # u64: since when
.set RUNSTATE_time, 12                          # u64 for each of four states, ns
.set RUNSTATE_AREA_SIZE, 44
.set CALLBACKTYPE_sysenter, 5
.set TRAP_no_device, 7
.set EFLAGS_VM, 0x20000
.set CR0_TS, 8
.set MULTICALL_ENTRY_SIZE, 32                   # u32 number, s32 result, six arguments

.set KERNEL_CS, 12 * 8 | 1                      # Linux' selectors
.set KERNEL_DS, 13 * 8 | 1
.set USER_CS, 14 * 8 | 3
.set USER_DS, 15 * 8 | 3
.set TLS_ENTRY, 6                               # to 8
.set TLS, TLS_ENTRY * 8 | 3
.set GDT_ENTRIES, 32

.set USER_BASE, 1 << 30
.set USER_CODE, USER_BASE
.set USER_STACKS, USER_BASE + 0x1000            # a page for each process
.set USER_TLS, USER_BASE + 0x3000               # a word for each process
.set CODE_PAGE, PTE_P | PTE_US | PTE_A
.set DATA_PAGE, PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D
.set READ_ONLY, PTE_P | PTE_A
.set READ_WRITE, PTE_P | PTE_RW | PTE_A | PTE_D
.set UPPER, PTE_P | PTE_RW | PTE_US | PTE_A
.set NX_HIGH, 1 << 31

.set SYS_EXIT, 1                                # (result)
.set SYS_YIELD, 2                               # () -> who is asking
.set ROUNDS, 20
.set TLS_WORD, 0x7150                           # + number of the process
.set TLS_LOW_0, (USER_TLS & 0xffff) << 16 | 0xffff
.set TLS_LOW_1, (USER_TLS + 4 & 0xffff) << 16 | 0xffff
.set TLS_HIGH, USER_TLS & 0xff000000 | 0x00cff200       # 4 GiB, data, DPL 3

.macro fill index, page, flags, high            # user_l1[index] = page | flags, with plain stores
    mov eax, \page
    mov edx, \flags
    call entry_of
    or ecx, \high
    mov [user_l1 + \index * 8], edx
    mov [user_l1 + \index * 8 + 4], ecx
.endm

.macro map page, flags                          # the page's own mapping
    mov eax, \page
    mov edx, \flags
    call remap
    must_succeed "remapping \page"
.endm

.macro call_number index, number                # of the multicall
    mov dword ptr [switch_calls + \index * MULTICALL_ENTRY_SIZE], __HYPERVISOR_\number
.endm

.macro call_argument index, argument, value
    mov dword ptr [switch_calls + \index * MULTICALL_ENTRY_SIZE + 8 + \argument * 4], \value
.endm

.text
_start:
    kernel_entry
    print "linux32: the way of a 32-bit Linux\n"
    call traps_init
    call features
    call areas
    call own_page_tables
    call own_segments
    call processes
    jmp start_first

# --- Features and assists ---------------------------------------------------------------------------------------
features:
    mov ebx, XENVER_get_features
    mov ecx, feature_query
    hypercall xen_version
    must_return 0, "xen_version(get_features)"
    test dword ptr [feature_query + 4], 1 << XENFEAT_pae_pgdir_above_4gb
    check nz, "Xen does not know the extended cr3"
    mov ebx, VMASST_CMD_enable
    mov ecx, VMASST_TYPE_4gb_segments
    hypercall vm_assist
    must_return 0, "vm_assist(4gb_segments)"
    mov ebx, VMASST_CMD_enable
    mov ecx, VMASST_TYPE_pae_extended_cr3
    hypercall vm_assist
    must_return 0, "vm_assist(pae_extended_cr3)"
    mov ebx, PHYSDEVOP_set_iopl
    mov ecx, iopl_arg
    hypercall physdev_op
    must_return 0, "physdev_op(set_iopl)"
    ret

# --- Areas that Xen writes: on the stack lies a union of a pointer and a 64-bit word ------------------------------
areas:
    mov eax, runstate
    mov edx, VCPUOP_register_runstate_memory_area
    call register_area
    must_return 0, "register_runstate_memory_area"
    cmp dword ptr [runstate], RUNSTATE_running
    check e, "the runstate area does not show us running"
    mov eax, [runstate + RUNSTATE_time + RUNSTATE_running * 8]
    or eax, [runstate + RUNSTATE_time + RUNSTATE_running * 8 + 4]
    check nz, "the runstate area shows no time"
    cmp dword ptr [runstate + RUNSTATE_AREA_SIZE], 0x5e471e1
    check e, "the runstate area is larger than a 32-bit guest's"
    mov eax, time_area
    mov edx, VCPUOP_register_vcpu_time_memory_area
    call register_area
    must_return 0, "register_vcpu_time_memory_area"
    cmp dword ptr [time_area + VCPU_TIME_tsc_to_system_mul - VCPU_TIME_version], 0
    check ne, "the time area is empty"
    test dword ptr [time_area], 1
    check z, "the time area's version is odd"
    ret

register_area:                                  # eax = address, edx = command -> eax = result
    push ebx
    push 0xdeadbeef                             # the upper half of the union, which a 32-bit kernel need not set
    push eax
    mov ebx, edx
    xor ecx, ecx
    mov edx, esp
    hypercall vcpu_op
    add esp, 8
    pop ebx
    ret

# --- Page tables: an L3 of our own, whose first three L2s are the builder's; slot 3's L2 holds Xen's entries, so it
# is copied without them ------------------------------------------------------------------------------------------
own_page_tables:
    push ebx
    push esi
    push edi
    mov eax, [start_info]
    mov ebx, [eax + START_INFO_pt_base]
    xor esi, esi
.copy:
    mov eax, [ebx + esi * 4]
    mov [own_l3 + esi * 4], eax
    inc esi
    cmp esi, 3 * 2
    jb .copy
    mov eax, own_l2
    mov edx, PTE_P
    call entry_of
    mov [own_l3 + 3 * 8], edx
    mov [own_l3 + 3 * 8 + 4], ecx
    map own_l2, READ_ONLY
    map own_l3, READ_ONLY
    mov eax, own_l3
    call va_to_mfn
    mov edi, eax
    mov edx, eax
    mov eax, MMUEXT_PIN_L3_TABLE
    call mmuext
    must_succeed "pinning the own L3"
    mov eax, edi                                # cr3 holds the frame number turned around: bits 20 and up at the bottom
    rol eax, PAGE_SHIFT
    trap_begin .no_cr3
    mov cr3, eax                                # traps, and Xen emulates it
    mov dword ptr [trap_resume], 0
    mov edx, cr3
    cmp eax, edx
    check e, "cr3 does not show the own L3"
    mov eax, ebx
    call va_to_mfn
    mov edx, eax
    mov eax, MMUEXT_UNPIN_TABLE
    call mmuext
    must_succeed "unpinning the builder's L3"
    mov eax, ebx
    mov edx, READ_WRITE
    call remap
    must_succeed "the builder's L3 as memory"
    mov dword ptr [ebx], 0x600d
    print "  on page tables of its own\n"
    pop edi
    pop esi
    pop ebx
    ret
.no_cr3:
    fail "mov cr3 was refused"

# --- Segments, and the ways in: a GDT with Linux' selectors, read-only from now on ----------------------------------
own_segments:
    map gdt, READ_ONLY
    mov eax, gdt
    call va_to_mfn
    mov [gdt_frames], eax
    mov ebx, gdt_frames
    mov ecx, GDT_ENTRIES
    hypercall set_gdt
    must_return 0, "set_gdt"
    mov eax, KERNEL_DS
    mov ds, eax
    mov es, eax
    mov ss, eax
    ljmp [own_code_far]
.in_own_code:
    xor eax, eax
    mov gs, eax
    mov ebx, trap_table_linux
    hypercall set_trap_table
    must_return 0, "set_trap_table"
    mov ebx, CALLBACKOP_register
    mov ecx, sysenter_callback
    hypercall callback_op
    must_return 0, "callback_op(register sysenter)"
    set_callback CALLBACKTYPE_event, VECTOR_EVENT
    set_callback CALLBACKTYPE_failsafe, VECTOR_FAILSAFE
    set_handler VECTOR_EVENT, ignore_event
    set_handler VECTOR_SYSCALL, system_call
    set_handler TRAP_no_device, no_device
    set_handler TRAP_gp_fault, protection_fault
    print "  on segments of its own\n"
    ret

ignore_event:
    mov byte ptr [shared_info + VCPU_INFO_upcall_pending], 0
    ret

# SYSENTER tells neither where it came from nor its stack: by agreement the process left esp in ebp, and it goes on
# at one place. With that put in, the frame is that of `int 0x80`.
entry_sysenter:
    cmp dword ptr [esp], 0
    jne .known
    mov dword ptr [esp], sysenter_return - user_page + USER_CODE
    mov dword ptr [esp + 4], USER_CS
    mov [esp + 12], ebp
    mov dword ptr [esp + 16], USER_DS
    push 0
    push VECTOR_SYSCALL
    inc dword ptr [sysenters]
    jmp trap_common
.known:
    fail "Xen knew where SYSENTER came from"

# --- Processes: one page of code for both, a page of stack each, and a kernel stack each ----------------------------
processes:
    push ebx
    fill 0, user_page, CODE_PAGE, 0
    fill 1, user_stack_0, DATA_PAGE, NX_HIGH
    fill 2, user_stack_1, DATA_PAGE, NX_HIGH
    fill 3, user_tls, DATA_PAGE, NX_HIGH
    mov dword ptr [user_tls], TLS_WORD
    mov dword ptr [user_tls + 4], TLS_WORD + 1
    map user_l1, READ_ONLY
    mov eax, USER_BASE
    mov edx, 2
    call find_own_l2
    mov ebx, eax
    mov eax, user_l1
    mov edx, UPPER
    call entry_of
    mov eax, ebx
    call set_entry
    must_succeed "linking the user's L1"
    xor ebx, ebx                                # a first frame for each, as if it had been interrupted at its start
.next:
    mov edx, ebx
    shl edx, PAGE_SHIFT
    lea eax, [edx + kernel_stack_0 + PAGE_SIZE - FRAME_SIZE]
    mov [frames + ebx * 4], eax
    add edx, USER_STACKS + PAGE_SIZE
    mov dword ptr [eax + FRAME_es], USER_DS
    mov dword ptr [eax + FRAME_ds], USER_DS
    mov [eax + FRAME_ebx], ebx                  # its number
    mov dword ptr [eax + FRAME_eip], USER_CODE
    mov dword ptr [eax + FRAME_cs], USER_CS
    mov dword ptr [eax + FRAME_eflags], EFLAGS_IF | 2
    mov [eax + FRAME_esp], edx
    mov dword ptr [eax + FRAME_ss], USER_DS
    inc ebx
    cmp ebx, 2
    jb .next
    pop ebx
    ret

find_own_l2:                                    # as find_table, which begins at the builder's L3: that is memory now
    push ebx
    mov ebx, own_l3
    shr eax, 30
    mov edx, [ebx + eax * 8 + 4]
    mov eax, [ebx + eax * 8]
    shrd eax, edx, PAGE_SHIFT
    mov eax, [eax * 4 + MACH2PHYS_VIRT_START]
    shl eax, PAGE_SHIFT
    pop ebx
    ret

# system_call(eax = frame): number in eax
system_call:
    mov ebx, eax
    mov edx, [current]
    shl edx, PAGE_SHIFT
    lea ecx, [edx + kernel_stack_0 + PAGE_SIZE - FRAME_SIZE]
    cmp ebx, ecx
    check e, "a system call is not on the kernel stack of its process"
    cmp word ptr [ebx + FRAME_cs], USER_CS
    check e, "a system call shows another cs"
    cmp dword ptr [ebx + FRAME_eax], SYS_YIELD
    jne process_exit
    mov eax, [current]
    mov [ebx + FRAME_eax], eax                  # the answer
    mov [frames + eax * 4], ebx
    cmp dword ptr [exited], 0
    jne switch_to                               # there is nobody else
    xor eax, 1
    jmp switch_to

process_exit:
    mov eax, [ebx + FRAME_ebx]
    test eax, eax
    jz .well
    print "FAILURE: a process stopped at step "
    print_dec eax
    print "\n"
    jmp poweroff
.well:
    inc dword ptr [exited]
    cmp dword ptr [exited], 2
    je virtual_8086_mode
    mov eax, [current]
    xor eax, 1
    jmp switch_to

start_first:
    xor eax, eax

# switch_to(eax = number): what Linux does between two processes, in one multicall; then on in the new one's frame
switch_to:
    mov [current], eax
    mov ebp, eax
    mov edx, eax
    shl edx, PAGE_SHIFT
    lea edx, [edx + kernel_stack_0 + PAGE_SIZE]
    call_number 0, stack_switch
    call_argument 0, 0, KERNEL_DS
    call_argument 0, 1, edx
    mov eax, gdt + TLS_ENTRY * 8
    call va_to_mfn
    mov edx, eax
    mov ecx, eax
    shl edx, PAGE_SHIFT
    shr ecx, 32 - PAGE_SHIFT
    or edx, TLS_ENTRY * 8                       # gdt is at the beginning of its page
    mov eax, [tls_low + ebp * 4]
    mov ebx, [tls_high + ebp * 4]
    call_number 1, update_descriptor            # two 64-bit arguments: four words
    call_argument 1, 0, edx
    call_argument 1, 1, ecx
    call_argument 1, 2, eax
    call_argument 1, 3, ebx
    add edx, 8
    call_number 2, update_descriptor            # two more entries, which these processes leave empty
    call_argument 2, 0, edx
    call_argument 2, 1, ecx
    add edx, 8
    call_number 3, update_descriptor
    call_argument 3, 0, edx
    call_argument 3, 1, ecx
    call_number 4, fpu_taskswitch
    call_argument 4, 0, 1
    mov ebx, switch_calls
    mov ecx, 5
    hypercall multicall
    must_return 0, "multicall"
    mov esi, switch_calls
    mov ecx, 5
.result:
    cmp dword ptr [esi + 4], 0
    check e, "a call of the multicall failed"
    add esi, MULTICALL_ENTRY_SIZE
    dec ecx
    jnz .result
    inc dword ptr [switches]
    mov eax, TLS
    mov gs, eax
    mov eax, [frames + ebp * 4]
    mov esp, eax
    jmp trap_return

# no_device(eax = frame): the first floating point since the switch
no_device:
    mov eax, cr0
    test eax, CR0_TS
    check z, "Xen did not clear TS before #NM"
    inc dword ptr [first_uses]
    xor ebx, ebx
    hypercall fpu_taskswitch
    must_return 0, "fpu_taskswitch(0)"
    ret

# --- Virtual-8086 mode: asked for by the iret hypercall, with a frame of ten words -------------------------------
virtual_8086_mode:
    print "  "
    print_dec [switches]
    print " switches, "
    print_dec [sysenters]
    print " system calls by SYSENTER, FPU given "
    print_dec [first_uses]
    print " times\n"
    cmp dword ptr [switches], 4 * ROUNDS + 2    # two system calls in each round, the first start, an exit
    check e, "another number of switches"
    cmp dword ptr [sysenters], 2 * ROUNDS
    check e, "another number of system calls by SYSENTER"
    cmp dword ptr [first_uses], 2 * ROUNDS
    check e, "the FPU was not taken away at each switch, or more often"
    mov esp, boot_stack_top
    push 0x44                                   # gs, fs, ds, es
    push 0x33
    push 0x22
    push 0x11
    push 0x2000                                 # ss, esp
    push 0x1ff0
    push EFLAGS_VM | EFLAGS_IF | 2
    push 0x3000                                 # cs, eip
    push 0x1234
    xor eax, eax
    iret_hypercall

protection_fault:                               # eax = frame, on the kernel stack
    test dword ptr [eax + FRAME_eflags], EFLAGS_VM
    jz trap_default
    cmp dword ptr [eax + FRAME_error], 0
    check e, "the refusal of virtual-8086 mode has an error code"
    cmp dword ptr [eax + FRAME_eip], 0x1234
    check e, "the refusal of virtual-8086 mode shows another eip"
    cmp dword ptr [eax + FRAME_esp], 0x1ff0
    check e, "the refusal of virtual-8086 mode shows another esp"
    cmp dword ptr [eax + FRAME_ss], 0x2000
    check e, "the refusal of virtual-8086 mode shows another ss"
    print "refused: virtual-8086 mode\n"
    succeed

# --- The process. It runs at USER_CODE and not where it is linked: jumps are relative, addresses are computed. ebx is
# its number, esi counts rounds, edi is the number of the step ------------------------------------------------------
.balign PAGE_SIZE
user_page:
    mov esi, ROUNDS
.round:
    mov edi, 1                                  # the word behind gs
    lea eax, [ebx + TLS_WORD]
    cmp gs:[0], eax
    jne .wrong
    inc edi                                     # 2: a system call by int 0x80; the other process runs meanwhile
    mov eax, SYS_YIELD
    int 0x80
    cmp eax, ebx
    jne .wrong
    inc edi                                     # 3: behind gs is still our own word
    lea eax, [ebx + TLS_WORD]
    cmp gs:[0], eax
    jne .wrong
    inc edi                                     # 4: the FPU is there when it is used
    push esi
    fninit
    fild dword ptr [esp]
    fistp dword ptr [esp]
    pop eax
    cmp eax, esi
    jne .wrong
    inc edi                                     # 5: a system call by SYSENTER, as the vDSO makes it
    mov eax, SYS_YIELD
    call system_call_page
    cmp eax, ebx
    jne .wrong
    dec esi
    jnz .round
    xor edi, edi
.wrong:
    mov ebx, edi
    mov eax, SYS_EXIT
    int 0x80
    ud2

system_call_page:
    push ecx
    push edx
    push ebp
    mov ebp, esp
    sysenter
    ud2                                         # SYSENTER does not come back here
sysenter_return:
    pop ebp
    pop edx
    pop ecx
    ret
.balign PAGE_SIZE

.data
.balign 8
feature_query:  .long 0, 0                      # submap 0
iopl_arg:       .long 1
runstate:       .zero RUNSTATE_AREA_SIZE
                .long 0x5e471e1
.balign 8
time_area:      .zero 32
gdt_frames:     .long 0
own_code_far:   .long own_segments.in_own_code
                .short KERNEL_CS
.balign 4
sysenter_callback:                              # u16 type, u16 flags, cs, eip
    .short CALLBACKTYPE_sysenter, CALLBACKF_mask_events
    .long KERNEL_CS, entry_sysenter
.balign 8
trap_table_linux:
    trap_entry 7, TRAP_MASK_EVENTS, 7
    trap_entry 13, TRAP_MASK_EVENTS, 13
    trap_entry 14, TRAP_MASK_EVENTS, 14
    trap_entry 0x80, TRAP_DPL_USER | TRAP_MASK_EVENTS, VECTOR_SYSCALL
    .long 0, 0
tls_low:        .long TLS_LOW_0, TLS_LOW_1      # a descriptor for each process, in halves
tls_high:       .long TLS_HIGH, TLS_HIGH
current:        .long 0
frames:         .long 0, 0
switches:       .long 0
sysenters:      .long 0
first_uses:     .long 0
exited:         .long 0

.balign PAGE_SIZE
gdt:                                            # it has a page for itself: Xen takes care of what is in it
    .zero 12 * 8
    .quad 0x00cfba000000ffff                    # KERNEL_CS: ring 1
    .quad 0x00cfb2000000ffff                    # KERNEL_DS
    .quad 0x00cffa000000ffff                    # USER_CS: ring 3
    .quad 0x00cff2000000ffff                    # USER_DS
.balign PAGE_SIZE
switch_calls:   .zero 5 * MULTICALL_ENTRY_SIZE

.bss
.balign PAGE_SIZE
own_l3:         .zero PAGE_SIZE
own_l2:         .zero PAGE_SIZE
user_l1:        .zero PAGE_SIZE
user_stack_0:   .zero PAGE_SIZE
user_stack_1:   .zero PAGE_SIZE
user_tls:       .zero PAGE_SIZE
kernel_stack_0: .zero PAGE_SIZE
kernel_stack_1: .zero PAGE_SIZE
