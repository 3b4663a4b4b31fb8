# SPDX-License-Identifier: GPL-2.0-only
"""Offsets of the pages that hypervisor and guest share, 64-bit layout (public headers `xen.h`,
`arch-x86/xen.h`, `vcpu.h`). Bytes unless said otherwise.
"""

MAX_LEGACY_VCPUS = 32
"""Slots of `vcpu_info` in `shared_info`."""

# shared_info
SI_VCPU_INFO = 0
VCPU_INFO_SIZE = 64
SI_EVTCHN_PENDING = 2048
SI_EVTCHN_MASK = 2560
SI_WC_VERSION = 3072
SI_WC_SEC = 3076
SI_WC_NSEC = 3080
SI_WC_SEC_HI = 3084
SI_MAX_PFN = 3088

# vcpu_info
VI_UPCALL_PENDING = 0
VI_UPCALL_MASK = 1
VI_PENDING_SEL = 8
VI_CR2 = 16
VI_CR2_32 = 8
VI_TIME = 32

# vcpu_time_info, from its start
TI_SIZE = 32

# vcpu_guest_context (VCPUOP_initialise)
GC_SIZE = 5168
GC_FPU = 0
GC_FLAGS = 512
GC_USER_REGS = 520
GC_TRAP_CTXT = 720
GC_LDT_BASE = 4816
GC_LDT_ENTS = 4824
GC_GDT_FRAMES = 4832
GC_GDT_ENTS = 4960
GC_KERNEL_SS = 4968
GC_KERNEL_SP = 4976
GC_CTRLREG = 4984
GC_DEBUGREG = 5048
GC_EVENT_CALLBACK = 5112
GC_FAILSAFE_CALLBACK = 5120
GC_SYSCALL_CALLBACK = 5128
GC_VM_ASSIST = 5136
GC_FS_BASE = 5144
GC_GS_BASE_KERNEL = 5152
GC_GS_BASE_USER = 5160

VGCF_I387_VALID = 1
VGCF_IN_KERNEL = 4
VGCF_FAILSAFE_DISABLES_EVENTS = 8
VGCF_SYSCALL_DISABLES_EVENTS = 16
VGCF_ONLINE = 32
VGCF_IN_SYSCALL = 0x100
"""Flag of the iret frame: RCX and R11 hold what SYSRET would have put there."""

# cpu_user_regs: offsets by register name
USER_REGS = {
    "r15": 0, "r14": 8, "r13": 16, "r12": 24, "rbp": 32, "rbx": 40, "r11": 48, "r10": 56, "r9": 64,
    "r8": 72, "rax": 80, "rcx": 88, "rdx": 96, "rsi": 104, "rdi": 112, "error_code": 120,
    "entry_vector": 124, "rip": 128, "cs": 136, "saved_upcall_mask": 140, "rflags": 144, "rsp": 152,
    "ss": 160, "es": 168, "ds": 176, "fs": 184, "gs": 192,
}  # fmt: skip
