# SPDX-License-Identifier: GPL-2.0-only
"""x86 architecture as a PV hypervisor sees it: page-table bits, flags, vectors, MSRs, selectors
(Intel SDM volume 3; the flat selectors are Xen's, public header `arch-x86/xen-x86_64.h`).
"""

import enum
from typing import Final

# Page-table entry bits
PTE_P, PTE_RW, PTE_US, PTE_PWT, PTE_PCD = 1 << 0, 1 << 1, 1 << 2, 1 << 3, 1 << 4
PTE_A, PTE_D, PTE_PSE, PTE_G = 1 << 5, 1 << 6, 1 << 7, 1 << 8
PTE_PAT: Final = 1 << 7
"""Bit 7 of a leaf entry; in upper levels the same bit is PSE."""
PTE_AVAIL: Final = 7 << 9
PTE_GUEST_KERNEL: Final = 1 << 52
"""Software bit with which Xen marks a 64-bit leaf that the guest gave without US."""
PTE_NX: Final = 1 << 63
PTE_MFN_MASK: Final = 0x000F_FFFF_FFFF_F000
PTE_SOFT_HIGH: Final = 0x7FF0_0000_0000_0000

# RFLAGS
FLAG_CF, FLAG_PF, FLAG_AF, FLAG_ZF, FLAG_SF, FLAG_TF = 1, 4, 16, 64, 128, 256
FLAG_IF, FLAG_DF, FLAG_OF, FLAG_IOPL, FLAG_NT = 512, 1024, 2048, 0x3000, 0x4000
FLAG_RF, FLAG_VM, FLAG_AC, FLAG_VIF, FLAG_VIP, FLAG_ID = 1 << 16, 1 << 17, 1 << 18, 1 << 19, 1 << 20, 1 << 21
FLAGS_FIXED: Final = 2

# Control registers
CR0_PE, CR0_MP, CR0_EM, CR0_TS, CR0_ET, CR0_NE, CR0_WP, CR0_AM, CR0_PG = (
    1, 2, 4, 8, 16, 32, 1 << 16, 1 << 18, 1 << 31,
)  # fmt: skip
GUEST_CR0: Final = 0x8005_0033
"""CR0 as every PV guest reads it, TS apart."""
CR4_TSD, CR4_DE, CR4_PAE, CR4_MCE, CR4_OSFXSR, CR4_OSXMMEXCPT = 4, 8, 32, 64, 512, 1024
CR4_FSGSBASE, CR4_OSXSAVE = 1 << 16, 1 << 18


class Vector(enum.IntEnum):
    """Exception vectors."""

    DE = 0
    DB = 1
    NMI = 2
    BP = 3
    OF = 4
    BR = 5
    UD = 6
    NM = 7
    DF = 8
    TS = 10
    NP = 11
    SS = 12
    GP = 13
    PF = 14
    MF = 16
    AC = 17
    MC = 18
    XM = 19
    CP = 21


ERROR_CODE_VECTORS: Final = frozenset({8, 10, 11, 12, 13, 14, 17, 21})
"""Vectors that push an error code."""

PF_P, PF_W, PF_U, PF_RSVD, PF_I = 1, 2, 4, 8, 16
"""Page-fault error-code bits: protection, write, user, reserved bit, instruction fetch."""


class Msr(enum.IntEnum):
    """Model-specific registers named by the ABI."""

    TSC = 0x10
    PLATFORM_ID = 0x17
    APIC_BASE = 0x1B
    PATCHLEVEL = 0x8B
    PLATFORM_INFO = 0xCE
    MISC_FEATURES_ENABLES = 0x140
    PERF_STATUS = 0x198
    PERF_CTL = 0x199
    MISC_ENABLE = 0x1A0
    PAT = 0x277
    PERF_CAPABILITIES = 0x345
    XEN_HYPERCALL_PAGE = 0x4000_0000
    EFER = 0xC000_0080
    FS_BASE = 0xC000_0100
    GS_BASE = 0xC000_0101
    KERNEL_GS_BASE = 0xC000_0102
    TSC_AUX = 0xC000_0103


PAT_VALUE: Final = 0x0000_0501_0007_0406
EFER_VALUE: Final = 0xD01
"""SCE, LME, LMA, NX: what a 64-bit PV guest reads."""
EFER_LONG_MODE: Final = 0x501
"""SCE, LME, LMA: what a 32-bit PV guest does not see on a processor of Intel's."""

FLAT_RING3_CS32: Final = 0xE023
FLAT_RING3_CS64: Final = 0xE033
FLAT_RING3_DS: Final = 0xE02B
FLAT_RING1_CS: Final = 0xE019
FLAT_RING1_DS: Final = 0xE021
COMPAT_RING3_CS: Final = 0xE02B
COMPAT_RING3_DS: Final = 0xE033
"""A 32-bit guest's flat selectors."""
FIRST_RESERVED_GDT_ENTRY: Final = 7168
GDT_GUEST_BYTES: Final = FIRST_RESERVED_GDT_ENTRY * 8
"""Bytes of the virtual GDT that belong to the guest: 0xe000, 14 pages."""

RESERVED_DESCRIPTORS: Final = {
    0xE008: 0x00AF_9B00_0000_FFFF,
    0xE010: 0x00CF_9300_0000_FFFF,
    0xE020: 0x00CF_FB00_0000_FFFF,
    0xE028: 0x00CF_F300_0000_FFFF,
    0xE030: 0x00AF_FB00_0000_FFFF,
    0xE060: 0x0000_9100_0000_0000,
}
"""Xen's part of a 64-bit guest's GDT, by selector without RPL."""
RESERVED_DESCRIPTORS_COMPAT: Final = {
    0xE008: 0x00AF_9B00_0000_FFFF,
    0xE010: 0x00CF_9300_0000_FFFF,
    0xE018: 0x00CF_BB00_0000_FFFF,
    0xE020: 0x00CF_B300_0000_FFFF,
    0xE028: 0x00CF_FB00_0000_FFFF,
    0xE030: 0x00CF_F300_0000_FFFF,
    0xE060: 0x0000_9100_0000_0000,
}
"""The same for a 32-bit guest: flat segments for ring 1 and ring 3."""
