# SPDX-License-Identifier: GPL-2.0-only
"""Typed addresses: the four kinds of number a PV hypervisor must never mix up.

A *machine* address names a byte of the machine's RAM; its frame number is an MFN. A *pseudo-physical*
frame number (PFN) is what a guest believes its memory to be: dense from 0. A *virtual* address is what
guest code computes and what page tables translate. The types are `int` at run time and cost nothing;
`mypy` keeps them apart. This module knows no ABI structure and holds no state.
"""

from typing import Final, NewType

Va = NewType("Va", int)
"""Guest virtual address, 0 .. 2**64-1 (canonical or not)."""
Pfn = NewType("Pfn", int)
"""Guest pseudo-physical frame number."""
Mfn = NewType("Mfn", int)
"""Machine frame number."""
MachineAddress = NewType("MachineAddress", int)
"""Byte address in the machine's RAM."""

PAGE_SHIFT: Final = 12
PAGE_SIZE: Final = 1 << PAGE_SHIFT
PAGE_MASK: Final = PAGE_SIZE - 1
ENTRIES: Final = 512
"""Entries of one 64-bit (or PAE) page table."""
MASK64: Final = (1 << 64) - 1
MASK32: Final = (1 << 32) - 1

HYPERVISOR_VIRT_START: Final = 0xFFFF_8000_0000_0000
"""First address of the hypervisor's hole in a 64-bit guest's address space (L4 slot 256)."""
HYPERVISOR_VIRT_END: Final = 0xFFFF_8800_0000_0000
"""First address above the hole (L4 slot 272)."""

COMPAT_VIRT_START: Final = 0xF580_0000
"""First address of the hypervisor's part of a 32-bit guest's address space; it reaches to 4 GiB."""


def is_canonical(va: int) -> bool:
    """Whether bits 63..47 of a 64-bit virtual address are all equal."""
    return va < 0x0000_8000_0000_0000 or 0xFFFF_8000_0000_0000 <= va <= MASK64


def guest_may_use(va: int, width: int = 64) -> bool:
    """Xen's "address ok": for a 64-bit guest canonical and outside the hypervisor's hole, for a 32-bit guest
    below the hypervisor's part."""
    if width == 32:
        return va < COMPAT_VIRT_START
    return va < 0x0000_8000_0000_0000 or HYPERVISOR_VIRT_END <= va <= MASK64


def cr3_to_mfn(cr3: int, width: int = 64) -> int:
    """The frame that a guest's CR3 names: its high bits are folded into the low ones."""
    if width == 64:
        return cr3 >> 12 | (cr3 & 0xFFF) << 52
    return cr3 >> 12 & 0xF_FFFF | (cr3 & 0xFFF) << 20


def mfn_to_cr3(mfn: int, width: int = 64) -> int:
    """What a guest reads in CR3 for a table in frame `mfn`."""
    if width == 64:
        return mfn << 12 & MASK64 | mfn >> 52
    return mfn << 12 & MASK32 | mfn >> 20


def pages_of(size: int) -> int:
    """Pages needed to hold `size` bytes."""
    return (size + PAGE_MASK) >> PAGE_SHIFT
