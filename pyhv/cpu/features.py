# SPDX-License-Identifier: GPL-2.0-only
"""Which features CPUID shows a PV guest, and why not the others (Intel SDM volume 2, "CPUID"; which of them
Xen 4.17 gives to PV domains by default: public header `arch-x86/cpufeatureset.h`).

The rule is: what Xen gives, minus what this processor does not have. So every feature that Xen's policy knows
is either in `SHOWN` or, with its reason, in `HIDDEN`; `cpuid.py` answers from the former, and `docs/cpu.md`
prints both.
"""

from typing import Final, NamedTuple


class FeatureWord(NamedTuple):
    """Thirty-two features: a register of the answer to a leaf and subleaf."""

    leaf: int
    subleaf: int
    register: str


class Withheld(NamedTuple):
    """Features that are not shown, by bit, and why."""

    bits: dict[str, int]
    why: str


def _bits(text: str) -> dict[str, int]:
    words = text.split()
    return {name: int(bit) for name, bit in zip(words[::2], words[1::2], strict=True)}


_XEN: Final = "Xen hides them from PV guests"
_OPTIONAL: Final = "Xen gives them only to domains that ask for them"
_MODEL: Final = "the emulated model is older"
_AMD: Final = "AMD's"
_ORDER: Final = "the processor does not speculate"
_CHANCE: Final = "a run with them could not be repeated"
_XSAVE: Final = "there is no AVX, whose registers would need saving"

LEAF_1_EDX: Final = FeatureWord(1, 0, "edx")
LEAF_1_ECX: Final = FeatureWord(1, 0, "ecx")
EXTENDED_ECX: Final = FeatureWord(0x8000_0001, 0, "ecx")
EXTENDED_EDX: Final = FeatureWord(0x8000_0001, 0, "edx")

SHOWN: Final[dict[FeatureWord, dict[str, int]]] = {
    LEAF_1_EDX: _bits(
        "FPU 0 DE 2 TSC 4 MSR 5 PAE 6 MCE 7 CX8 8 APIC 9 SEP 11 MCA 14 CMOV 15 PAT 16 CLFLUSH 19 MMX 23"
        " FXSR 24 SSE 25 SSE2 26"
    ),
    LEAF_1_ECX: _bits(
        "SSE3 0 PCLMULQDQ 1 SSSE3 9 CX16 13 SSE4_1 19 SSE4_2 20 POPCNT 23 AESNI 25 HYPERVISOR 31"
    ),
    EXTENDED_ECX: _bits("LAHF_LM 0"),
    EXTENDED_EDX: _bits("SYSCALL 11 NX 20 RDTSCP 27 LM 29"),
}
"""Every feature bit that is set; all others are clear."""

ONLY_64_BIT: Final = frozenset({"CX16", "LAHF_LM", "SYSCALL", "LM"})
"""Features that a 32-bit guest does not have: long mode, what depends on it, and on an Intel part SYSCALL."""

HIDDEN: Final[dict[FeatureWord, tuple[Withheld, ...]]] = {
    LEAF_1_EDX: (
        Withheld(_bits("VME 1 PSE 3 MTRR 12 PGE 13 PSE36 17 DS 21 TM1 29 PBE 31"), _XEN),
        Withheld(_bits("ACPI 22"), "there is no thermal control to program"),
        Withheld(_bits("SS 27"), "there are no caches to snoop"),
        Withheld(_bits("HTT 28"), "a package has one thread"),
    ),
    LEAF_1_ECX: (
        Withheld(
            _bits(
                "DTES64 2 MONITOR 3 DSCPL 4 VMX 5 SMX 6 EIST 7 TM2 8 XTPR 14 PDCM 15 PCID 17 DCA 18 X2APIC 21"
                " TSC_DEADLINE 24"
            ),
            _XEN,
        ),
        Withheld(_bits("FMA 12 MOVBE 22 AVX 28 F16C 29"), _MODEL),
        Withheld(_bits("XSAVE 26 OSXSAVE 27"), _XSAVE),
        Withheld(_bits("RDRAND 30"), _CHANCE),
    ),
    FeatureWord(7, 0, "ebx"): (
        Withheld(
            _bits("TSC_ADJUST 1 SGX 2 SMEP 7 INVPCID 10 PQM 12 MPX 14 PQE 15 SMAP 20 PROC_TRACE 25"), _XEN
        ),
        Withheld(_bits("HLE 4"), _OPTIONAL),
        Withheld(_bits("FDP_EXCP_ONLY 6 NO_FPU_SEL 13"), "the FPU keeps its pointers"),
        Withheld(_bits("FSGSBASE 0"), "the emulator's WRFSBASE takes addresses that are not canonical"),
        Withheld(_bits("ERMS 9"), "REP MOVSB is the slow way on an emulator"),
        Withheld(_bits("RDSEED 18"), _CHANCE),
        Withheld(
            _bits(
                "BMI1 3 AVX2 5 BMI2 8 RTM 11 AVX512F 16 AVX512DQ 17 ADX 19 AVX512_IFMA 21 CLFLUSHOPT 23"
                " CLWB 24 AVX512PF 26 AVX512ER 27 AVX512CD 28 SHA 29 AVX512BW 30 AVX512VL 31"
            ),
            _MODEL,
        ),
    ),
    FeatureWord(7, 0, "ecx"): (
        Withheld(_bits("UMIP 2 PKU 3 OSPKE 4 CET_SS 7 ENQCMD 29"), _XEN),
        Withheld(_bits("MOVDIRI 27 MOVDIR64B 28"), _OPTIONAL),
        Withheld(
            _bits(
                "PREFETCHWT1 0 AVX512_VBMI 1 AVX512_VBMI2 6 GFNI 8 VAES 9 VPCLMULQDQ 10 AVX512_VNNI 11"
                " AVX512_BITALG 12 AVX512_VPOPCNTDQ 14 RDPID 22 CLDEMOTE 25"
            ),
            _MODEL,
        ),
    ),
    FeatureWord(7, 0, "edx"): (
        Withheld(
            _bits("SRBDS_CTRL 9 TSX_FORCE_ABORT 13 HYBRID 15 CET_IBT 20 L1D_FLUSH 28 CORE_CAPS 30"), _XEN
        ),
        Withheld(_bits("AVX512_VP2INTERSECT 8 TSXLDTRK 16"), _OPTIONAL),
        Withheld(
            _bits("MD_CLEAR 10 RTM_ALWAYS_ABORT 11 IBRSB 26 STIBP 27 ARCH_CAPS 29 SSBD 31"), _ORDER
        ),
        Withheld(
            _bits("AVX512_4VNNIW 2 AVX512_4FMAPS 3 FSRM 4 SERIALIZE 14 AVX512_FP16 23"), _MODEL
        ),
    ),
    FeatureWord(7, 1, "eax"): (
        Withheld(_bits("AVX_VNNI 4 AVX512_BF16 5 FZRM 10 FSRS 11 FSRCS 12"), _MODEL),
    ),
    FeatureWord(7, 2, "edx"): (
        Withheld(_bits("IPRED_CTRL 1 RRSBA_CTRL 2 BHI_CTRL 4"), _XEN),
        Withheld(_bits("INTEL_PSFD 0 MCDT_NO 5"), _ORDER),
    ),
    FeatureWord(0xD, 1, "eax"): (
        Withheld(_bits("XSAVES 3"), _XEN),
        Withheld(_bits("XSAVEOPT 0 XSAVEC 1 XGETBV1 2"), _XSAVE),
    ),
    EXTENDED_ECX: (
        Withheld(
            _bits(
                "SVM 2 EXTAPIC 3 CR8_LEGACY 4 OSVW 9 IBS 10 SKINIT 12 WDT 13 LWP 15 NODEID_MSR 19 TOPOEXT 22"
                " MONITORX 29"
            ),
            _XEN,
        ),
        Withheld(_bits("CMP_LEGACY 1"), "a package has one thread"),
        Withheld(_bits("ABM 5 3DNOWPREFETCH 8"), _MODEL),
        Withheld(_bits("SSE4A 6 MISALIGNSSE 7 XOP 11 FMA4 16 TBM 21 DBEXT 26"), _AMD),
    ),
    EXTENDED_EDX: (
        Withheld(_bits("PAGE1GB 26"), _XEN),
        Withheld(_bits("MMXEXT 22 FFXSR 25 3DNOWEXT 30 3DNOW 31"), _AMD),
    ),
    FeatureWord(0x8000_0007, 0, "edx"): (
        Withheld(_bits("HW_PSTATE 7 CPB 9 EFRO 10"), _XEN),
        Withheld(_bits("ITSC 8"), "Xen gives it only to domains that cannot migrate"),
    ),
    FeatureWord(0x8000_0008, 0, "ebx"): (
        Withheld(
            _bits(
                "WBNOINVD 9 IBRS 14 AMD_STIBP 15 IBRS_ALWAYS 16 STIBP_ALWAYS 17 IBRS_FAST 18"
                " IBRS_SAME_MODE 19 NO_LMSL 20 AMD_PPIN 23 AMD_SSBD 24 VIRT_SSBD 25 PSFD 28"
            ),
            _XEN,
        ),
        Withheld(
            _bits("CLZERO 0 RSTR_FP_ERR_PTRS 2 IBPB 12 SSB_NO 26 BTC_NO 29 IBPB_RET 30"), _AMD
        ),
    ),
}  # fmt: skip
"""Every other feature that Xen's policy knows, by word, but for words beyond the highest leaf."""


def mask(word: FeatureWord, width: int = 64) -> int:
    """The bits of a word as a guest of `width` bits sees them."""
    return sum(
        1 << bit for name, bit in SHOWN.get(word, {}).items() if width == 64 or name not in ONLY_64_BIT
    )
