# SPDX-License-Identifier: GPL-2.0-only
"""Translated code stays what memory holds: against a model of an emulator that overlooks all it may."""

import random
from collections.abc import Callable
from itertools import pairwise
from typing import cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmu_bench import RO, RW, RX, BareDomain, Bench

from pyhv.abi.x86 import PTE_MFN_MASK, PTE_NX, PTE_P, PTE_RW
from pyhv.address import Mfn
from pyhv.cpu.engine import Engine
from pyhv.cpu.watch import Run
from pyhv.mmu import codewatch
from pyhv.mmu.audit import MappedGrant
from pyhv.mmu.frames import L1

RWX = RW & ~PTE_NX


class ForgetfulEngine:
    """The emulator at its worst, one number for the contents of a frame.

    Translations are made when a frame is executed and kept until somebody drops them. A store drops them if
    the frame is watched and the TLB has no entry for stores to it that was made while it was not. What was
    executed once can be executed until the TLB is flushed.
    """

    def __init__(self) -> None:
        self.watch: ForgetfulEngine | None = self
        self.runs: list[Run] = []
        self.harmless: set[int] = set()
        self.fetched: set[int] = set()
        self.translated: dict[int, int] = {}
        self.most_runs = 0

    def add(self, run: Run) -> None:
        self.runs.append(run)
        self.most_runs = max(self.most_runs, len(self.runs))

    def replace(self, runs: list[Run]) -> None:
        self.runs = list(runs)

    def invalidate_code(self, first: int, count: int) -> None:
        for mfn in range(first, first + count):
            self.translated.pop(mfn, None)

    def flush_tlb(self) -> None:
        self.harmless.clear()
        self.fetched.clear()

    def store(self, mfn: int) -> None:
        if not any(first <= mfn <= last for first, last in self.runs):
            self.harmless.add(mfn)
        elif mfn not in self.harmless:
            self.invalidate_code(mfn, 1)


class Guest:
    """A domain, its engine, an L1 that is always there and one that comes and goes."""

    def __init__(self, bench: Bench, domain: BareDomain) -> None:
        self.bench, self.domain, self.tables = bench, domain, domain.tables
        self.engine = ForgetfulEngine()
        self.tables.code.attach(cast(Engine, self.engine))
        bench.physical.invalidators.append(self.engine.invalidate_code)
        bench.physical.executors.append(self.tables)
        self.l1, self.other_l1 = domain.table(), domain.table()
        self.tables.pin(self.l1, L1)

    def maps(self, mfn: int, rights: int, absent: int = 0) -> bool:
        """Whether a leaf of an approved L1 maps a frame with these rights, and without `absent`."""
        for l1 in (self.l1, self.other_l1):
            if self.bench.frames.type_count[l1]:
                for slot in range(2 * FRAMES):
                    entry = self.bench.q(l1, slot)
                    if entry >> 12 & PTE_MFN_MASK >> 12 == mfn and entry & (rights | absent) == rights:
                        return True
        return False


class World:
    """The frames of one guest, which both map, write and execute."""

    def __init__(self, chance: random.Random) -> None:
        self.chance = chance
        self.bench = Bench(160)
        self.owner, self.borrower = self.guests = [Guest(self.bench, d) for d in self.bench.domains]
        self.frames = [self.owner.domain.one() for _ in range(2 * FRAMES)][::2]
        self.contents = dict.fromkeys(range(self.bench.frames.count), 0)
        self.running = self.owner
        self.repeats = 0
        """How often a translation that was there was executed again."""

    def step(self) -> None:
        """One act of a guest or of the hypervisor, and one return to the guest."""
        at = self.chance.choice((0, self.chance.randrange(FRAMES)))
        guest = self.chance.choices(self.guests, (4, 1))[0]
        if guest is not self.running:
            self.turn(guest, at)
        acts: list[Callable[[Guest, int], object]] = [
            self.map,
            self.change_execute,
            self.unmap,
            *[self.store] * 4,
            *[self.execute] * 6,
        ]
        acts += [self.hypervisor_writes, self.whole_table, self.turn]
        if guest is self.owner:
            acts += [self.map, self.exchange]
        self.chance.choice(acts)(guest, at)
        self.enter(guest)

    def turn(self, guest: Guest, _at: int) -> None:
        """A guest's turn begins, as in `Machine`."""
        self.running = guest
        guest.tables.code.tidy()
        self.bench.physical.renew_shared()
        self.enter(guest)

    @staticmethod
    def enter(guest: Guest) -> None:
        """What every way back into a guest does."""
        if guest.tables.flush:
            guest.engine.flush_tlb()
            guest.tables.flushed()

    def slot(self, at: int) -> int:
        return 2 * at + self.chance.randrange(2)

    def map(self, guest: Guest, at: int) -> None:
        """One leaf of the frame; the borrower maps it as a grant."""
        mfn, frames = self.frames[at], self.bench.frames
        l1 = self.chance.choice((guest.l1, guest.other_l1)) if frames.type_count[guest.other_l1] else guest.l1
        address = l1 << 12 | self.slot(at) << 3
        flags = self.chance.choice((RO, RW, RW, RX, RX, RWX))
        if guest is self.owner:
            guest.tables.update_l1(address, mfn << 12 | flags)
            return
        if flags & PTE_RW:
            frames.take_writable(Mfn(mfn))
        else:
            frames.take(Mfn(mfn))
        guest.tables.map_granted(address, mfn << 12 | flags | PTE_NX)
        guest.domain.grants.append(MappedGrant(Mfn(mfn), not flags & PTE_RW))

    def unmap(self, guest: Guest, at: int) -> None:
        guest.tables.update_l1(guest.l1 << 12 | self.slot(at) << 3, 0)

    def change_execute(self, guest: Guest, at: int) -> None:
        """The other value of NX, in place."""
        slot = self.slot(at)
        entry = self.bench.q(guest.l1, slot)
        if entry & PTE_P:
            guest.tables.update_l1(guest.l1 << 12 | slot << 3, entry ^ PTE_NX)

    def whole_table(self, guest: Guest, _at: int) -> None:
        """A table is approved, with a leaf of each frame if they are the guest's, or dropped."""
        l1 = guest.other_l1
        if self.bench.frames.type_count[l1]:
            guest.tables.unpin(l1)
            return
        self.bench.ram.writable.tables[l1] = 0
        for slot, mfn in enumerate(self.frames if guest is self.owner else ()):
            flags = self.chance.choice((0, RO, RW, RX, RWX))
            self.bench.ram.writable.q[l1 << 9 | 2 * slot] = mfn << 12 | flags if flags else 0
        guest.tables.pin(l1, L1)

    def store(self, guest: Guest, at: int) -> None:
        mfn = self.frames[at]
        if guest.maps(mfn, PTE_P | PTE_RW):
            guest.engine.store(mfn)
            self.contents[mfn] += 1

    def execute(self, guest: Guest, at: int) -> None:
        mfn = self.frames[at]
        if guest.maps(mfn, PTE_P, PTE_NX):
            self.repeats += mfn in guest.engine.translated
            translated = guest.engine.translated.setdefault(mfn, self.contents[mfn])
            assert translated == self.contents[mfn], f"stale code of frame {at}"
            guest.engine.fetched.add(mfn)
        elif mfn in guest.engine.fetched:  # the guest forgot to flush: no promise, but a translation
            guest.engine.translated.setdefault(mfn, self.contents[mfn])

    def hypervisor_writes(self, _guest: Guest, at: int) -> None:
        mfn = self.frames[at]
        self.contents[mfn] += 1
        self.bench.physical.write(mfn << 12, b"x")

    def exchange(self, guest: Guest, at: int) -> None:
        """A frame that nothing refers to is given away; the other guest gets another in its place."""
        mfn, frames = self.frames[at], self.bench.frames
        if frames.refs[mfn] == 1:
            guest.tables.flush |= guest.tables.stale  # as `Machine` does when a frame changes hands
            self.bench.physical.code_gone(np.array([mfn]))
            frames.deallocate(Mfn(mfn))
            self.contents[mfn] += 1
            self.frames[at] = guest.domain.one()


FRAMES, SEEDS = 3, 20


@pytest.mark.promise("C-14")
@pytest.mark.parametrize(("runs", "released"), [(64, 256), (2, 0), (4, 1), (4, 0)])
def test_no_stale_code_runs(runs: int, released: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(codewatch, "MOST_RUNS", runs)
    monkeypatch.setattr(codewatch, "MOST_RELEASED", released)
    repeats = 0
    for seed in range(SEEDS):
        world = World(random.Random(seed))
        for _ in range(800):
            world.step()
        assert world.bench.audit() == []
        assert all(guest.engine.most_runs <= runs + FRAMES for guest in world.guests)
        repeats += world.repeats
    assert repeats > 150


# -- what chance rarely finds ------------------------------------------------------------------------------


class Page:
    """One frame of the owner with two leaves in a guest's L1: for stores and for execution."""

    def __init__(self, world: World, at: int, guest: Guest | None = None) -> None:
        self.world, self.guest, self.at, self.mfn = world, guest or world.owner, at, world.frames[at]
        self.addresses = {RW: self.guest.l1 << 12 | at << 4, RX: self.guest.l1 << 12 | at << 4 | 8}

    def map(self, flags: int) -> None:
        self.guest.tables.update_l1(self.addresses[flags], self.mfn << 12 | flags)
        self.world.enter(self.guest)

    def borrow(self, flags: int) -> None:
        frames = self.world.bench.frames
        if flags & PTE_RW:
            frames.take_writable(Mfn(self.mfn))
        else:
            frames.take(Mfn(self.mfn))
        self.guest.tables.map_granted(self.addresses[flags], self.mfn << 12 | flags | PTE_NX)
        if not flags & PTE_NX:
            self.guest.tables.update_l1(self.addresses[flags], self.mfn << 12 | flags)
        self.world.enter(self.guest)

    def unmap(self, flags: int, *, flush: bool = True) -> None:
        self.guest.tables.update_l1(self.addresses[flags], 0)
        self.guest.tables.flush |= flush
        self.world.enter(self.guest)

    def store(self) -> None:
        self.world.store(self.guest, self.at)

    def execute(self) -> None:
        self.world.execute(self.guest, self.at)


@pytest.fixture
def world() -> World:
    return World(random.Random(0))


def lay_out(world: World, guest: Guest) -> None:
    """A turn at which the runs are laid out anew."""
    guest.tables.code.released = codewatch.MOST_RELEASED + 1
    world.turn(guest, 0)


@pytest.fixture
def one_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """All frames that are executable are laid out in one run, gaps and all."""
    monkeypatch.setattr(codewatch, "MOST_RUNS", 2)


@pytest.mark.usefixtures("one_run")
def test_a_frame_in_a_gap_comes_with_nothing_from_before(world: World) -> None:
    first, middle, last = (Page(world, at) for at in range(3))
    middle.map(RX)
    middle.execute()
    middle.unmap(RX)
    lay_out(world, world.owner)
    middle.map(RW)
    middle.store()
    first.map(RX)
    last.map(RX)
    lay_out(world, world.owner)
    middle.map(RX)
    middle.execute()
    middle.store()
    middle.execute()


@pytest.mark.parametrize("again", [False, True], ids=["kept", "mapped again"])
def test_a_borrowed_frame_is_laid_out_with_the_guests_own(world: World, again: bool) -> None:
    lent, own = Page(world, 0), Page(world, 0, world.borrower)
    lent.map(RW)
    own.borrow(RW)
    own.borrow(RX)
    own.execute()
    lay_out(world, world.borrower)
    if again:
        own.guest.tables.update_l1(own.addresses[RX], own.mfn << 12 | RX | PTE_NX)
        world.turn(world.owner, 0)
        world.turn(world.borrower, 0)
        own.guest.tables.update_l1(own.addresses[RX], own.mfn << 12 | RX)
    own.store()
    own.execute()
    world.turn(world.owner, 0)
    lent.store()
    world.turn(world.borrower, 0)
    own.execute()


def test_code_that_a_stale_tlb_entry_lets_run_is_dropped_as_well(world: World) -> None:
    page = Page(world, 0)
    page.map(RX)
    page.execute()
    page.unmap(RX, flush=False)
    world.hypervisor_writes(page.guest, page.at)
    page.execute()
    page.guest.tables.flush = True
    world.enter(page.guest)
    world.hypervisor_writes(page.guest, page.at)
    page.map(RX)
    page.execute()


def test_runs_are_joined_across_the_narrowest_gaps() -> None:
    mfns = np.array([1, 2, 3, 10, 12, 13, 30, 32])
    assert codewatch._joined(mfns, 8) == [(1, 3), (10, 10), (12, 13), (30, 30), (32, 32)]
    assert codewatch._joined(mfns, 3) == [(1, 3), (10, 13), (30, 32)]
    assert codewatch._joined(mfns, 2) == [(1, 13), (30, 32)]
    assert codewatch._joined(mfns, 1) == [(1, 32)]
    assert codewatch._joined(mfns[:0], 1) == []


@given(st.sets(st.integers(1, 500)), st.integers(1, 20))
def test_runs_cover_everything_and_are_few(mfns: set[int], most: int) -> None:
    runs = codewatch._joined(np.array(sorted(mfns), dtype=np.int64), most)
    assert len(runs) <= most
    assert all(any(first <= mfn <= last for first, last in runs) for mfn in mfns)
    assert all({first, last} <= mfns for first, last in runs)
    assert all(before[1] + 1 < after[0] for before, after in pairwise(runs))
