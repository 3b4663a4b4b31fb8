# SPDX-License-Identifier: GPL-2.0-only
"""Offsets of the pages that hypervisor and guest share (public headers `xen.h`, `arch-x86/xen.h`, `vcpu.h`,
`event_channel.h`, `io/console.h`). Bytes unless said otherwise.

What is the same for every guest is a constant. What depends on the size of the guest's `unsigned long` is a
field of `SharedLayout` (shared_info, vcpu_info) or `ContextLayout` (vcpu_guest_context), of which there is
one for 64 and one for 32 bits. The `GC_*` constants are the 64-bit context's.
"""

from typing import Final

from pyhv.frozen import frozen

MAX_LEGACY_VCPUS: Final = 32
"""Slots of `vcpu_info` in `shared_info`."""

# shared_info
SI_VCPU_INFO: Final = 0
VCPU_INFO_SIZE: Final = 64
SI_EVTCHN_PENDING: Final = 2048

# vcpu_info
VI_UPCALL_PENDING: Final = 0
VI_UPCALL_MASK: Final = 1
VI_TIME: Final = 32

# vcpu_time_info, from its start
TI_SIZE: Final = 32

# the console page (`io/console.h`)
CONSOLE_CONNECTION: Final = 3088
"""u8: somebody listens (0) or not yet (1)."""

# the FIFO control block and event words
FIFO_CONTROL_BLOCK_SIZE: Final = 72
FIFO_READY: Final = 0
"""u32: one bit a priority."""
FIFO_HEAD: Final = 8
"""u32 for each of the 16 priorities: the first port of the queue."""
FIFO_WORDS_PER_PAGE: Final = 1024
"""Event words (u32, one a port) in a page of the event array."""
FIFO_PENDING, FIFO_MASKED, FIFO_LINKED, FIFO_BUSY = 1 << 31, 1 << 30, 1 << 29, 1 << 28
"""Bits of an event word; the low `FIFO_LINK_BITS` are LINK, the next port of the queue."""
FIFO_LINK_BITS: Final = 17
FIFO_PORTS: Final = 1 << FIFO_LINK_BITS
FIFO_QUEUES: Final = 16
"""Priorities, 0 the most urgent; each vCPU has a queue for each."""


@frozen
class SharedLayout:
    """What of `shared_info` and `vcpu_info` depends on the guest's width."""

    width: int
    """Bits of an `unsigned long`; the 2-level event arrays have `width` words of `width` bits."""
    evtchn_mask: int
    wc_version: int
    """u32, the three that follow too; odd while the wallclock is being written."""
    wc_sec: int
    wc_nsec: int
    wc_sec_hi: int
    max_pfn: int
    """`unsigned long`, as the rest of the architecture's part, which only tools read."""
    nmi_reason: int
    pending_sel: int
    """In `vcpu_info`, `unsigned long`."""
    cr2: int
    """In `vcpu_info`, `unsigned long`."""


SHARED_LAYOUT: Final = {
    64: SharedLayout(
        width=64, evtchn_mask=2560, wc_version=3072, wc_sec=3076, wc_nsec=3080, wc_sec_hi=3084,
        max_pfn=3088, nmi_reason=3104, pending_sel=8, cr2=16,
    ),
    32: SharedLayout(
        width=32, evtchn_mask=2176, wc_version=2304, wc_sec=2308, wc_nsec=2312, wc_sec_hi=2340,
        max_pfn=2316, nmi_reason=2324, pending_sel=4, cr2=8,
    ),
}  # fmt: skip
"""By the guest's width."""

# vcpu_guest_context of VCPUOP_initialise, 64-bit
GC_SIZE: Final = 5168
GC_FPU: Final = 0
GC_FLAGS: Final = 512
GC_USER_REGS: Final = 520
GC_TRAP_CTXT: Final = 720
GC_LDT_BASE: Final = 4816
GC_LDT_ENTS: Final = 4824
GC_GDT_FRAMES: Final = 4832
GC_GDT_ENTS: Final = 4960
GC_KERNEL_SS: Final = 4968
GC_KERNEL_SP: Final = 4976
GC_CTRLREG: Final = 4984
GC_DEBUGREG: Final = 5048
GC_EVENT_CALLBACK: Final = 5112
GC_FAILSAFE_CALLBACK: Final = 5120
GC_SYSCALL_CALLBACK: Final = 5128
GC_VM_ASSIST: Final = 5136
GC_FS_BASE: Final = 5144
GC_GS_BASE_KERNEL: Final = 5152
GC_GS_BASE_USER: Final = 5160


@frozen
class ContextLayout:
    """Offsets of `vcpu_guest_context`. A field that only one width has is None in the other."""

    size: int
    word: int
    """Bytes of its addresses, counts and register slots."""
    flags: int
    """u32."""
    user_regs: int
    trap_ctxt: int
    trap_size: int
    """Bytes of each of its 256 `trap_info`."""
    ldt_base: int
    ldt_ents: int
    gdt_frames: int
    gdt_ents: int
    kernel_ss: int
    kernel_sp: int
    ctrlreg: int
    debugreg: int
    event_callback_cs: int | None
    event_callback: int
    failsafe_callback_cs: int | None
    failsafe_callback: int
    syscall_callback: int | None
    vm_assist: int
    fs_base: int | None
    gs_base_kernel: int | None
    gs_base_user: int | None


CONTEXT_LAYOUT: Final = {
    64: ContextLayout(
        size=GC_SIZE, word=8, flags=GC_FLAGS, user_regs=GC_USER_REGS, trap_ctxt=GC_TRAP_CTXT, trap_size=16,
        ldt_base=GC_LDT_BASE, ldt_ents=GC_LDT_ENTS, gdt_frames=GC_GDT_FRAMES, gdt_ents=GC_GDT_ENTS,
        kernel_ss=GC_KERNEL_SS, kernel_sp=GC_KERNEL_SP, ctrlreg=GC_CTRLREG, debugreg=GC_DEBUGREG,
        event_callback_cs=None, event_callback=GC_EVENT_CALLBACK, failsafe_callback_cs=None,
        failsafe_callback=GC_FAILSAFE_CALLBACK, syscall_callback=GC_SYSCALL_CALLBACK,
        vm_assist=GC_VM_ASSIST, fs_base=GC_FS_BASE, gs_base_kernel=GC_GS_BASE_KERNEL,
        gs_base_user=GC_GS_BASE_USER,
    ),
    32: ContextLayout(
        size=2800, word=4, flags=512, user_regs=516, trap_ctxt=584, trap_size=8, ldt_base=2632,
        ldt_ents=2636, gdt_frames=2640, gdt_ents=2704, kernel_ss=2708, kernel_sp=2712, ctrlreg=2716,
        debugreg=2748, event_callback_cs=2780, event_callback=2784, failsafe_callback_cs=2788,
        failsafe_callback=2792, syscall_callback=None, vm_assist=2796, fs_base=None, gs_base_kernel=None,
        gs_base_user=None,
    ),
}  # fmt: skip
"""By the guest's width."""

VGCF_I387_VALID: Final = 1
VGCF_IN_KERNEL: Final = 4
VGCF_FAILSAFE_DISABLES_EVENTS: Final = 8
VGCF_SYSCALL_DISABLES_EVENTS: Final = 16
VGCF_ONLINE: Final = 32
VGCF_IN_SYSCALL: Final = 0x100
"""Flag of the iret frame: RCX and R11 hold what SYSRET would have put there."""

# cpu_user_regs: offsets by register name
USER_REGS: Final = {
    "r15": 0, "r14": 8, "r13": 16, "r12": 24, "rbp": 32, "rbx": 40, "r11": 48, "r10": 56, "r9": 64,
    "r8": 72, "rax": 80, "rcx": 88, "rdx": 96, "rsi": 104, "rdi": 112, "error_code": 120,
    "entry_vector": 124, "rip": 128, "cs": 136, "saved_upcall_mask": 140, "rflags": 144, "rsp": 152,
    "ss": 160, "es": 168, "ds": 176, "fs": 184, "gs": 192,
}  # fmt: skip

USER_REGS_32: Final = {
    "ebx": 0, "ecx": 4, "edx": 8, "esi": 12, "edi": 16, "ebp": 20, "eax": 24, "error_code": 28,
    "entry_vector": 30, "eip": 32, "cs": 36, "saved_upcall_mask": 38, "eflags": 40, "esp": 44, "ss": 48,
    "es": 52, "ds": 56, "fs": 60, "gs": 64,
}  # fmt: skip
