# SPDX-License-Identifier: GPL-2.0-only
"""The answers to CPUID: what a guest is told about its processor (Intel SDM volume 2, "CPUID"; Xen leaves:
public header `arch-x86/cpuid.h`).

Nothing is passed through from the emulator or the host, so a guest sees the same processor everywhere. It is
an Intel part, because the emulator decodes far calls Intel's way, and an in-order one without speculation,
which is true of an emulator and spares guests their mitigations. Which features it has is in `features.py`.
There is no topology: Xen's PV guests find APIC id 0 on every vCPU, and no leaf about caches or threads.
"""

from typing import Final, NamedTuple

from pyhv.cpu.features import EXTENDED_ECX, EXTENDED_EDX, LEAF_1_ECX, LEAF_1_EDX, mask
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


def _text(text: bytes) -> list[int]:
    return [int.from_bytes(text[at : at + 4], "little") for at in range(0, len(text), 4)]


_SIGNATURE: Final = 0x0003_0661
"""Family 6, model 0x36, stepping 1: an in-order Atom."""
_CLFLUSH_AND_THREADS: Final = 0x0001_0800
"""Leaf 1 EBX: CLFLUSH works on 64 bytes, a package has one thread, the APIC id is 0."""
_PHYSICAL_BITS: Final = 40
"""Width of machine addresses."""
_LINEAR_BITS: Final = {64: 48, 32: 32}
_TSC_EMULATED, _TSC_RELIABLE, _HAS_RDTSCP = 1, 2, 4

_BRAND: Final = _text(b"pyhv emulated processor".ljust(48, b"\0"))

_vendor = _text(b"GenuineIntel")


def _basic(width: int) -> dict[int, Cpuid]:
    return {
        0: Cpuid(7, _vendor[0], _vendor[2], _vendor[1]),
        1: Cpuid(_SIGNATURE, _CLFLUSH_AND_THREADS, mask(LEAF_1_ECX, width), mask(LEAF_1_EDX, width)),
        0x8000_0000: Cpuid(0x8000_0008, 0, 0, 0),
        0x8000_0001: Cpuid(0, 0, mask(EXTENDED_ECX, width), mask(EXTENDED_EDX, width)),
        0x8000_0002: Cpuid(*_BRAND[0:4]),
        0x8000_0003: Cpuid(*_BRAND[4:8]),
        0x8000_0004: Cpuid(*_BRAND[8:12]),
        0x8000_0008: Cpuid(_LINEAR_BITS[width] << 8 | _PHYSICAL_BITS, 0, 0, 0),
    }


_BASIC: Final = {width: _basic(width) for width in (64, 32)}


def cpuid(leaf: int, subleaf: int, tsc: TscRate, width: int = 64, *, emulated_tsc: bool = True) -> Cpuid:
    """Answer CPUID for a guest of `width` bits with such a TSC; unknown leaves are all zero.

    `emulated_tsc` says whether the hypervisor makes the TSC, or the guest reads the host's.
    """
    if XEN_LEAF <= leaf <= XEN_LEAF + 5:
        return _xen_leaf(leaf - XEN_LEAF, subleaf, tsc, emulated_tsc)
    return _BASIC[width].get(leaf, ZERO)


def _xen_leaf(number: int, subleaf: int, tsc: TscRate, emulated_tsc: bool) -> Cpuid:
    if number == 0:
        return Cpuid(XEN_LEAF + 5, 0x566E_6558, 0x6558_4D4D, 0x4D4D_566E)  # "XenVMMXenVMM"
    if number == 1:
        return Cpuid(XEN_VERSION[0] << 16 | XEN_VERSION[1], 0, 0, 0)
    if number == 2:
        return Cpuid(1, HYPERCALL_PAGE_MSR, 1, 0)
    if number == 3:
        if subleaf == 0:
            flags = _TSC_RELIABLE | _HAS_RDTSCP | (_TSC_EMULATED if emulated_tsc else 0)
            return Cpuid(flags, 0, tsc.hz // 1000, 0)
        if subleaf == 1:
            return Cpuid(0, 0, tsc.mul, tsc.shift & 0xFFFF_FFFF)
        if subleaf == 2:
            return Cpuid(tsc.hz // 1000, 0, 0, 0)
    if number == 5 and subleaf == 0:
        return Cpuid(0, _PHYSICAL_BITS, 0, 0)
    return ZERO
