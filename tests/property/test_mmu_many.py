# SPDX-License-Identifier: GPL-2.0-only
"""An L1 is approved and dropped entry by entry, or with numpy: the outcome is the same to the last count."""

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from lanes import plain_lane
from mmu_bench import Bench

from pyhv.abi.x86 import PTE_A, PTE_GUEST_KERNEL, PTE_NX, PTE_P, PTE_PCD, PTE_RW, PTE_US
from pyhv.address import Mfn
from pyhv.errors import XenError
from pyhv.mmu import tables as tables_module

BITS = (PTE_A, PTE_RW, PTE_US, PTE_NX, PTE_GUEST_KERNEL)
FRAMES = 12
"""Of the domain: two tables, one of them approved, and pages."""


def bits(draw: st.DrawFn) -> int:
    """Of a present entry."""
    return sum(bit for bit in BITS if draw(st.booleans())) | PTE_P


@st.composite
def tables(draw: st.DrawFn) -> list[tuple[int, int, int]]:
    """(slot, number of a frame, bits) of present entries; now and then one that must be refused."""
    slots = draw(st.lists(st.integers(0, 511), unique=True, max_size=40))
    targets = st.integers(2, FRAMES - 1 + (draw(st.integers(0, 9)) == 0))
    bad = st.integers(0, 200).map(lambda chance: 0 if chance else PTE_PCD)
    return [(slot, draw(targets), bits(draw) | draw(bad)) for slot in slots]


def outcome(content: list[tuple[int, int, int]], gone: set[int]) -> list[object]:
    """What the machine is after an L1 was pinned, some frames given back meanwhile, and it was unpinned."""
    bench = Bench()
    domain, frames = bench.domains[0], bench.frames
    own = [*domain.take(FRAMES), bench.domains[1].one()]
    domain.tables.pin(own[2], 1)
    domain.tables.flushed()
    table = own[0]
    for slot, number, flags in content:
        bench.ram.writable.q[table << 9 | slot] = own[number] << 12 | flags
    seen: list[object] = []

    def look() -> None:
        mmu = domain.tables
        seen.append((bench.counts(), mmu.state(), mmu.take_work(), frames.free_list().tolist()))
        seen.append((bench.ram.raw.tobytes(), frames.code_np.tobytes(), frames.lent_np.tobytes()))
        seen.append((bytes(bench.ram.dirty), bench.dropped[:]))
        assert bench.audit() == []

    try:
        domain.tables.pin(table, 1)
    except XenError as refusal:
        seen.append((refusal.errno, str(refusal)))
        look()
        return seen
    look()
    for number in sorted(gone):
        frames.deallocate(Mfn(own[number]))
    seen.append(bench.counts())
    domain.tables.unpin(table)
    look()
    return seen


@plain_lane("a compiled table is always looped over")
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=60)
@given(tables(), st.sets(st.integers(3, FRAMES - 1), max_size=3))
def test_both_ways_are_the_same(
    monkeypatch: pytest.MonkeyPatch, content: list[tuple[int, int, int]], gone: set[int]
) -> None:
    monkeypatch.setattr(tables_module, "FEW", 512)
    each = outcome(content, gone)
    monkeypatch.setattr(tables_module, "FEW", 0)
    assert outcome(content, gone) == each
