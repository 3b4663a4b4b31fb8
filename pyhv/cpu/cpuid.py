# SPDX-License-Identifier: GPL-2.0-only
"""The CPUID policy: what a guest is told about its processor (Intel SDM volume 2, "CPUID"; Xen leaves:
public header `arch-x86/cpuid.h`).

Nothing is passed through from the emulator or the host, so a guest sees the same processor everywhere. It is
an Intel part, because the emulator decodes far calls Intel's way, and an in-order one without speculation,
which is true of an emulator and spares guests their mitigations. Offered is what x86-64-v2 userlands need;
hidden is what a PV guest may not use (APIC, MTRR, PSE, PGE, MCE, SMEP, SMAP, XSAVE) and whatever would make
a run unrepeatable (RDRAND, RDSEED). Enhanced REP MOVSB is hidden since it is the slow way on an emulator.
"""

from typing import Final, NamedTuple

from pyhv.cpu.tsc import TscRate


class Cpuid(NamedTuple):
    """The four registers of an answer."""

    eax: int
    ebx: int
    ecx: int
    edx: int


ZERO: Final = Cpuid(0, 0, 0, 0)
XEN_LEAF: Final = 0x4000_0000
XEN_VERSION: Final = (4, 17)
HYPERCALL_PAGE_MSR: Final = 0x4000_0000


def _bits(*numbers: int) -> int:
    return sum(1 << n for n in numbers)


def _text(text: bytes) -> list[int]:
    return [int.from_bytes(text[at : at + 4], "little") for at in range(0, len(text), 4)]


_SIGNATURE: Final = 0x0003_0661
"""Family 6, model 0x36, stepping 1: an in-order Atom."""
FEATURES: Final[dict[tuple[int, str], dict[str, int]]] = {
    (1, "edx"): {
        "FPU": 0, "DE": 2, "TSC": 4, "MSR": 5, "PAE": 6, "CX8": 8, "SEP": 11, "CMOV": 15, "PAT": 16,
        "CLFSH": 19, "MMX": 23, "FXSR": 24, "SSE": 25, "SSE2": 26,
    },
    (1, "ecx"): {
        "SSE3": 0, "PCLMULQDQ": 1, "SSSE3": 9, "CX16": 13, "SSE4.1": 19, "SSE4.2": 20, "POPCNT": 23,
        "AES": 25, "HYPERVISOR": 31,
    },
    (0x8000_0001, "ecx"): {"LAHF": 0},
    (0x8000_0001, "edx"): {"SYSCALL": 11, "NX": 20, "RDTSCP": 27, "LM": 29},
    (0x8000_0007, "edx"): {"TSC_INVARIANT": 8},
}  # fmt: skip
"""Every feature bit that is set, by leaf and register; all others are clear."""


def _features(leaf: int, register: str) -> int:
    return _bits(*FEATURES[leaf, register].values())


_BRAND: Final = _text(b"pyhv emulated processor".ljust(48, b"\0"))

_vendor = _text(b"GenuineIntel")
_BASIC: Final = {
    0: Cpuid(7, _vendor[0], _vendor[2], _vendor[1]),
    1: Cpuid(_SIGNATURE, 0x0001_0800, _features(1, "ecx"), _features(1, "edx")),
    0x8000_0000: Cpuid(0x8000_0008, 0, 0, 0),
    0x8000_0001: Cpuid(0, 0, _features(0x8000_0001, "ecx"), _features(0x8000_0001, "edx")),
    0x8000_0002: Cpuid(*_BRAND[0:4]),
    0x8000_0003: Cpuid(*_BRAND[4:8]),
    0x8000_0004: Cpuid(*_BRAND[8:12]),
    0x8000_0007: Cpuid(0, 0, 0, _features(0x8000_0007, "edx")),
    0x8000_0008: Cpuid(0x3028, 0, 0, 0),
}


def cpuid(leaf: int, subleaf: int, vcpu: int, tsc: TscRate, width: int = 64) -> Cpuid:
    """Answer CPUID for a vCPU of a PV guest with such a TSC; unknown leaves are all zero.

    A 32-bit guest has neither long mode nor, on Intel's processors, SYSCALL.
    """
    if leaf == 0x8000_0001 and width == 32:
        found = _BASIC[leaf]
        return found._replace(edx=found.edx & ~_bits(11, 29))
    if leaf == 1:
        found = _BASIC[1]
        return found._replace(ebx=found.ebx | vcpu << 24)
    if XEN_LEAF <= leaf <= XEN_LEAF + 5:
        return _xen_leaf(leaf - XEN_LEAF, subleaf, tsc)
    return _BASIC.get(leaf, ZERO)


def _xen_leaf(number: int, subleaf: int, tsc: TscRate) -> Cpuid:
    if number == 0:
        return Cpuid(XEN_LEAF + 5, 0x566E_6558, 0x6558_4D4D, 0x4D4D_566E)  # "XenVMMXenVMM"
    if number == 1:
        return Cpuid(XEN_VERSION[0] << 16 | XEN_VERSION[1], 0, 0, 0)
    if number == 2:
        return Cpuid(1, HYPERCALL_PAGE_MSR, 1, 0)
    if number == 3:
        if subleaf == 0:
            return Cpuid(_bits(0, 1, 2), 0, tsc.hz // 1000, 0)
        if subleaf == 1:
            return Cpuid(0, 0, tsc.mul, tsc.shift & 0xFFFF_FFFF)
        if subleaf == 2:
            return Cpuid(tsc.hz // 1000, 0, 0, 0)
    if number == 5:
        return Cpuid(0, 40, 0, 0)
    return ZERO
