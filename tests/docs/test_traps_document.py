# SPDX-License-Identifier: GPL-2.0-only
"""The page on the guests' processor, and the tables that it is generated from."""

import itertools
from pathlib import Path

import pytest

from docgen.cpu import document
from pyhv.abi.x86 import Msr
from pyhv.cpu.cpuid import cpuid
from pyhv.cpu.features import HIDDEN, SHOWN, FeatureWord
from pyhv.cpu.tsc import rate
from pyhv.traps.msr import TABLE

PAGE = Path(__file__).parents[2] / "docs" / "cpu.md"


@pytest.mark.promise("C-4")
def test_the_page_is_up_to_date() -> None:
    assert PAGE.read_text(encoding="utf-8") == document(), "run: python -m docgen.cpu > docs/cpu.md"


def test_msrs_are_in_order_and_listed_once() -> None:
    bounds = [(row.first, row.last) for row in TABLE]
    assert all(first <= last for first, last in bounds)
    assert all(before[1] < after[0] for before, after in itertools.pairwise(bounds))
    listed = {number for first, last in bounds for number in range(first, last + 1)}
    assert {int(number) for number in Msr} <= listed


@pytest.mark.promise("C-4")
def test_what_refuses_says_so() -> None:
    for row in TABLE:
        assert (row.read is None) == (row.reads == "#GP"), row.name
        assert row.write is not None or row.writes == "#GP", row.name


XEN = {
    FeatureWord(1, 0, "edx"): """
        FPU 0 A VME 1 S DE 2 A PSE 3 S TSC 4 A MSR 5 A PAE 6 A MCE 7 A CX8 8 A APIC 9 A SEP 11 A
        MTRR 12 S PGE 13 S MCA 14 A CMOV 15 A PAT 16 A PSE36 17 S CLFLUSH 19 A DS 21 - ACPI 22 A
        MMX 23 A FXSR 24 A SSE 25 A SSE2 26 A SS 27 A HTT 28 A TM1 29 - PBE 31 -""",
    FeatureWord(1, 0, "ecx"): """
        SSE3 0 A PCLMULQDQ 1 A DTES64 2 - MONITOR 3 - DSCPL 4 - VMX 5 h SMX 6 - EIST 7 - TM2 8 -
        SSSE3 9 A FMA 12 A CX16 13 A XTPR 14 - PDCM 15 - PCID 17 H DCA 18 - SSE4_1 19 A SSE4_2 20 A
        X2APIC 21 S MOVBE 22 A POPCNT 23 A TSC_DEADLINE 24 S AESNI 25 A XSAVE 26 A OSXSAVE 27 - AVX 28 A
        F16C 29 A RDRAND 30 A HYPERVISOR 31 A""",
    FeatureWord(7, 0, "ebx"): """
        FSGSBASE 0 A TSC_ADJUST 1 S SGX 2 - BMI1 3 A HLE 4 a AVX2 5 A FDP_EXCP_ONLY 6 - SMEP 7 S
        BMI2 8 A ERMS 9 A INVPCID 10 H RTM 11 A PQM 12 - NO_FPU_SEL 13 - MPX 14 s PQE 15 - AVX512F 16 A
        AVX512DQ 17 A RDSEED 18 A ADX 19 A SMAP 20 S AVX512_IFMA 21 A CLFLUSHOPT 23 A CLWB 24 A
        PROC_TRACE 25 - AVX512PF 26 A AVX512ER 27 A AVX512CD 28 A SHA 29 A AVX512BW 30 A AVX512VL 31 A""",
    FeatureWord(7, 0, "ecx"): """
        PREFETCHWT1 0 A AVX512_VBMI 1 A UMIP 2 S PKU 3 H OSPKE 4 - AVX512_VBMI2 6 A CET_SS 7 - GFNI 8 A
        VAES 9 A VPCLMULQDQ 10 A AVX512_VNNI 11 A AVX512_BITALG 12 A AVX512_VPOPCNTDQ 14 A RDPID 22 A
        CLDEMOTE 25 A MOVDIRI 27 a MOVDIR64B 28 a ENQCMD 29 -""",
    FeatureWord(7, 0, "edx"): """
        AVX512_4VNNIW 2 A AVX512_4FMAPS 3 A FSRM 4 A AVX512_VP2INTERSECT 8 a SRBDS_CTRL 9 -
        MD_CLEAR 10 A RTM_ALWAYS_ABORT 11 - TSX_FORCE_ABORT 13 - SERIALIZE 14 A HYBRID 15 -
        TSXLDTRK 16 a CET_IBT 20 - AVX512_FP16 23 A IBRSB 26 A STIBP 27 A L1D_FLUSH 28 S ARCH_CAPS 29 A
        CORE_CAPS 30 - SSBD 31 A""",
    FeatureWord(7, 1, "eax"): "AVX_VNNI 4 A AVX512_BF16 5 A FZRM 10 A FSRS 11 A FSRCS 12 A",
    FeatureWord(7, 2, "edx"): "INTEL_PSFD 0 A IPRED_CTRL 1 S RRSBA_CTRL 2 S BHI_CTRL 4 S MCDT_NO 5 A",
    FeatureWord(0xD, 1, "eax"): "XSAVEOPT 0 A XSAVEC 1 A XGETBV1 2 A XSAVES 3 S",
    FeatureWord(0x80000001, 0, "ecx"): """
        LAHF_LM 0 A CMP_LEGACY 1 A SVM 2 h EXTAPIC 3 - CR8_LEGACY 4 S ABM 5 A SSE4A 6 A MISALIGNSSE 7 A
        3DNOWPREFETCH 8 A OSVW 9 - IBS 10 - XOP 11 A SKINIT 12 - WDT 13 - LWP 15 - FMA4 16 A
        NODEID_MSR 19 - TBM 21 A TOPOEXT 22 - DBEXT 26 A MONITORX 29 -""",
    FeatureWord(0x80000001, 0, "edx"): """
        SYSCALL 11 A NX 20 A MMXEXT 22 A FFXSR 25 A PAGE1GB 26 H RDTSCP 27 A LM 29 A 3DNOWEXT 30 A
        3DNOW 31 A""",
    FeatureWord(0x80000007, 0, "edx"): "HW_PSTATE 7 - ITSC 8 a CPB 9 - EFRO 10 -",
    FeatureWord(0x80000008, 0, "ebx"): """
        CLZERO 0 A RSTR_FP_ERR_PTRS 2 A WBNOINVD 9 - IBPB 12 A IBRS 14 S AMD_STIBP 15 S IBRS_ALWAYS 16 S
        STIBP_ALWAYS 17 S IBRS_FAST 18 S IBRS_SAME_MODE 19 S NO_LMSL 20 S AMD_PPIN 23 - AMD_SSBD 24 S
        VIRT_SSBD 25 - SSB_NO 26 A PSFD 28 S BTC_NO 29 A IBPB_RET 30 A""",
}
"""The features of Xen 4.17's policy: name, bit, and A if PV guests get it by default, a if they may ask for
it; S and H are for HVM guests, lower case if they have to ask, - is for nobody."""
GIVEN, ASKED_FOR = {"A"}, {"a"}
FOLLOW_OTHERS = {"OSXSAVE", "FDP_EXCP_ONLY", "NO_FPU_SEL", "RTM_ALWAYS_ABORT"}


@pytest.mark.promise("C-4")
def test_every_feature_of_xens_policy_is_shown_or_has_a_reason() -> None:
    for word, text in XEN.items():
        words = text.split()
        policy = {
            name: (int(bit), who) for name, bit, who in zip(words[::3], words[1::3], words[2::3], strict=True)
        }
        shown = SHOWN.get(word, {})
        hidden = {name: (bit, row.why) for row in HIDDEN[word] for name, bit in row.bits.items()}
        assert not shown.keys() & hidden.keys()
        assert {name: bit for name, (bit, _) in policy.items()} == shown | {
            n: bit for n, (bit, _) in hidden.items()
        }
        for name, (_, who) in policy.items():
            if name in shown:
                assert who in GIVEN, f"Xen does not give {name} to PV guests"
            elif who in GIVEN:
                assert "Xen" not in hidden[name][1], f"it is not Xen that hides {name}"
            elif name not in (
                "OSXSAVE",
                "FDP_EXCP_ONLY",
                "NO_FPU_SEL",
                "RTM_ALWAYS_ABORT",
            ):  # they follow others
                assert "Xen" in hidden[name][1], f"Xen hides {name}"
                assert ("ask" in hidden[name][1] or "migrate" in hidden[name][1]) is (who in ASKED_FOR)
    assert set(XEN) == set(SHOWN) | set(HIDDEN)


def test_a_32_bit_guest_has_no_long_mode() -> None:
    tsc = rate(1_000_000_000)
    wide, narrow = (cpuid(0x80000001, 0, tsc, width) for width in (64, 32))
    assert wide.edx & ~narrow.edx == 1 << 11 | 1 << 29
    assert wide.ecx & ~narrow.ecx == 1
    assert cpuid(1, 0, tsc).ecx & ~cpuid(1, 0, tsc, 32).ecx == 1 << 13
    assert cpuid(0x80000008, 0, tsc, 32).eax == 0x2028


def test_the_time_leaf_says_who_makes_the_tsc() -> None:
    tsc = rate(1_000_000_000)
    assert cpuid(0x40000003, 0, tsc, emulated_tsc=True).eax == 7
    assert cpuid(0x40000003, 0, tsc, emulated_tsc=False).eax == 6
