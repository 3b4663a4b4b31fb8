# SPDX-License-Identifier: GPL-2.0-only
"""What the processor really walks: copies of the guests' L4s, the descriptor windows; and a domain's end."""

import pytest
from mmu_bench import LINEAR, RW, UPPER, BareDomain, Bench

from pyhv.abi.x86 import PTE_NX, PTE_P, PTE_RW, PTE_US
from pyhv.address import Mfn
from pyhv.mmu.frames import L2, L3, L4
from pyhv.mmu.paging import DOMAIN_SLOT, M2P_SLOT, MERGED, SPLIT_KERNEL, SPLIT_USER


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def guest(bench: Bench) -> BareDomain:
    return bench.domains[0]


def test_the_processors_copies(bench: Bench, guest: BareDomain) -> None:
    l4, l3, _, _ = guest.chain(guest.one() << 12 | RW)
    bench.ram.writable.q[l4 << 9 | 300] = l3 << 12 | UPPER
    guest.use(l4)
    rows = {
        variant: bench.ram.tables[guest.cache.hardware_l4(l4, variant)]
        for variant in (SPLIT_USER, SPLIT_KERNEL, MERGED)
    }
    assert bench.audit() == []
    entry = bench.q(l4, 0)
    for variant, row in rows.items():
        assert int(row[0]) == entry
        assert int(row[300]) == (entry & ~PTE_US if variant == MERGED else entry)
        assert int(row[DOMAIN_SLOT]) == guest.area.entry
        assert not guest.area.entry & PTE_US
    assert int(rows[SPLIT_USER][M2P_SLOT]) == 0
    assert int(rows[SPLIT_KERNEL][M2P_SLOT]) & PTE_US
    assert int(rows[MERGED][M2P_SLOT]) & (PTE_US | PTE_P | PTE_RW) == PTE_P
    for slot in (1, 511):
        guest.tables.update_upper(l4 << 12 | slot << 3, L4, l3 << 12 | UPPER)
        assert bench.audit() == []
    guest.tables.update_upper(l4 << 12 | 300 << 3, L4, 0)
    assert bench.audit() == []
    assert not any(int(row[300]) for row in rows.values())


def test_a_copy_goes_with_its_table(bench: Bench, guest: BareDomain) -> None:
    l4 = guest.chain(0)[0]
    guest.tables.pin(l4, L4)
    guest.cache.hardware_l4(l4, MERGED)
    guest.tables.unpin(l4)
    assert list(guest.cache.copies()) == []
    assert bench.audit() == []


@pytest.mark.promise("L-21")
def test_there_are_never_more_copies_than_frames_for_them(bench: Bench, guest: BareDomain) -> None:
    l4s = [guest.table() for _ in range(40)]
    for l4 in l4s:
        guest.tables.pin(l4, L4)
        copy = guest.cache.hardware_l4(l4, SPLIT_KERNEL)
        assert copy == guest.cache.hardware_l4(l4, SPLIT_KERNEL)
    kept = [l4 for l4, _, _ in guest.cache.copies()]
    assert kept == l4s[-32:]  # the oldest went first
    assert bench.audit() == []


def test_merging_needs_two_l4s_with_the_same_lower_half(bench: Bench, guest: BareDomain) -> None:
    kernel, l3, _, _ = guest.chain(0)
    user = guest.table((0, l3 << 12 | UPPER), (300, l3 << 12 | UPPER))
    for l4 in (kernel, user):
        guest.tables.pin(l4, L4)
    allowed = guest.cache.may_merge
    assert allowed(kernel, user)
    assert not allowed(kernel, kernel)
    assert not allowed(kernel, 0)
    generation = guest.cache.generation
    guest.tables.update_upper(user << 12 | 8, L4, l3 << 12 | UPPER)
    assert guest.cache.generation > generation
    assert not allowed(kernel, user)


@pytest.mark.promise("I-4")
def test_descriptor_windows_are_read_only(bench: Bench, guest: BareDomain) -> None:
    mfn = guest.one()
    guest.area.map(0, 3, mfn)
    assert guest.area.mapped(0, 3) == mfn
    assert guest.area.leaf(0, 3) & (PTE_RW | PTE_US | PTE_NX) == PTE_NX
    guest.area.map(0, 3, None)
    assert guest.area.mapped(0, 3) is None


def test_death_gives_everything_back(bench: Bench, guest: BareDomain) -> None:
    fresh = Bench()
    free = fresh.empty
    for domain in list(fresh.domains):
        l4, l3, l2, _ = domain.chain(domain.one() << 12 | RW)
        domain.tables.pin(l4, L4)
        domain.use(l4)
        domain.cache.hardware_l4(l4, MERGED)
        domain.tables.update_upper(l4 << 12 | 8, L4, l4 << 12 | LINEAR)
        domain.tables.pin(l2, L2)
        domain.tables.update_upper(l3 << 12 | 8, L3, l2 << 12 | UPPER)
        fresh.frames.deallocate(Mfn(l2))
        domain.die()
        assert fresh.audit() == []
    assert fresh.frames.free_count == free
