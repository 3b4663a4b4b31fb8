# SPDX-License-Identifier: GPL-2.0-only
"""Segment descriptors: what is let into a descriptor page, what is changed in it, and how it loads."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.abi.x86 import RESERVED_DESCRIPTORS
from pyhv.mmu.descriptors import (
    ACCESSED,
    CODE,
    DPL,
    PRESENT,
    S,
    approve_page,
    decode,
    fix_descriptor,
    is_loadable_code,
    is_loadable_stack,
)

CODE64 = 0x00AF_FB00_0000_FFFF
CODE32 = 0x00CF_FB00_0000_FFFF
DATA = 0x00CF_F300_0000_FFFF
CALL_GATE = 0x0000_8C00_0000_0000


def gate(selector: int, *, low: int = 0, dpl: int = 3) -> int:
    """A present call gate."""
    return CALL_GATE | dpl << 45 | selector << 16 | low << 32


words = st.integers(0, (1 << 64) - 1)


@pytest.mark.promise("I-4")
@given(words)
def test_nothing_present_gets_in_with_privilege(value: int) -> None:
    """Whatever a guest writes: no segment below ring 3, no system descriptor but a disarmed gate."""
    fixed = fix_descriptor(value)
    if not value & PRESENT:
        assert fixed == value
        return
    if fixed is None:
        assert not value & S
        return
    assert fixed & PRESENT
    if fixed & S:
        assert fixed & DPL == DPL
        assert fixed & ACCESSED  # the processor never has to write into a descriptor page
        assert (fixed ^ value) & ~(DPL | ACCESSED) == 0
    else:
        kind = fixed >> 40 & 0xF
        assert kind in (0, 0xC)
        assert kind == 0 or fixed & DPL == 0
    assert fix_descriptor(fixed) is not None


@pytest.mark.promise("I-4")
@pytest.mark.parametrize("kind", [1, 2, 3, 4, 5, 6, 7, 9, 10, 11, 13, 14, 15])
def test_system_descriptors_are_refused(kind: int) -> None:
    assert fix_descriptor(PRESENT | kind << 40) is None
    assert fix_descriptor(kind << 40) == kind << 40  # not present


def test_the_upper_half_of_a_gate_is_accepted() -> None:
    assert fix_descriptor(PRESENT | 0x1234) == PRESENT | DPL | 0x1234


def test_call_gates() -> None:
    for selector in (0, 3, 0x8, 0xDFF8, 0xE020, 0xE033, 0x4, 0xFFFC):
        fixed = fix_descriptor(gate(selector))
        assert fixed is not None
        assert fixed & DPL == 0
        assert fixed >> 16 & 3 == 3  # the gate's own DPL is kept in the selector
    for private in (0xE000, 0xE008, 0xE010, 0xE038, 0xE040, 0xE050, 0xFFF8):
        assert fix_descriptor(gate(private)) is None
    for reserved in (1, 0x1F, 0xE0):
        assert fix_descriptor(gate(8, low=reserved)) is None


def test_hypervisor_descriptors_need_no_accessed_bit() -> None:
    assert all(value & ACCESSED for value in RESERVED_DESCRIPTORS.values())


def page(**slots: int) -> np.ndarray:
    """A descriptor page: s0=..., s511=..."""
    row = np.zeros(512, dtype=np.uint64)
    for slot, value in slots.items():
        row[int(slot[1:])] = value
    return row


def test_a_page_is_approved_as_a_whole() -> None:
    row = page(s0=0, s1=CODE64 & ~DPL & ~ACCESSED, s2=DATA & ~DPL, s511=0x1234)
    before = row.copy()
    assert approve_page(row) == [(1, CODE64), (2, DATA)]
    assert (row == before).all()


def test_a_bad_descriptor_spoils_the_page() -> None:
    assert approve_page(page(s1=CODE64 & ~DPL, s511=PRESENT | 9 << 40)) is None


def test_a_page_without_descriptors_is_approved() -> None:
    assert approve_page(page(s7=0x1234)) == []


def test_base_and_limit() -> None:
    segment = decode(0xAB_CF_FB_CDEF01_2345)
    assert (segment.base, segment.limit) == (0xABCDEF01, 0xF2345FFF)
    assert decode(0x00_40_F3_000000_00FF).limit == 0xFF
    assert decode(CODE64).flags == 0x00AFFB00


@pytest.mark.parametrize(
    ("value", "code", "stack"),
    [
        (CODE64, True, False),
        (CODE32, True, False),
        (DATA, False, True),
        (CODE64 & ~PRESENT, False, False),
        (DATA & ~PRESENT, False, False),
        (DATA & ~(1 << 41), False, False),  # read-only data
        (DATA & ~DPL, False, False),
        (CODE64 & ~DPL, False, False),
        (CODE64 & ~DPL | 1 << 42, True, False),  # conforming: an inner segment is all right
        (CODE64 | 1 << 54, False, False),  # L and D
        (CODE64 & ~S, False, False),
        (DATA | CODE, True, False),
        (0, False, False),
    ],
)
def test_what_ring_3_may_load(value: int, code: bool, stack: bool) -> None:
    assert is_loadable_code(value, 3) is code
    assert is_loadable_stack(value, 3) is stack
