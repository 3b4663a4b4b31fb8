# SPDX-License-Identifier: GPL-2.0-only
"""The saved state of memory: frames and page tables that were rebuilt go on as those that were saved."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmu_bench import LINEAR, RO, RW, RX, UPPER, BareDomain, Bench

from pyhv.abi.x86 import PTE_P, PTE_US
from pyhv.address import Mfn
from pyhv.cpu.ram import Ram
from pyhv.errors import ConfigError, StateError, XenError
from pyhv.mmu.frames import L1, L4
from pyhv.mmu.paging import CACHE_FRAMES, MERGED, SPLIT_KERNEL, SPLIT_USER
from pyhv.mmu.stepwise import approve, settle_some
from pyhv.state import Plain, restore, state
from pyhv.testing.saving import assert_restored, packed, unexplained_from

PLAY = 14
"""Frames of each domain that it plays with."""


class World:
    """Two domains on a bench; both have the same frames to play with on each bench."""

    def __init__(self, width: int) -> None:
        self.width = width
        self.bench = Bench(400, width=width)
        self.play = {domain.domid: domain.take(PLAY) for domain in self.bench.domains}

    def parts(self) -> list[Any]:
        bench = self.bench
        parts: list[Any] = [bench.frames, bench.physical, bench.m2p]
        for domain in bench.domains:
            parts += [domain.memory, domain.tables, domain.area, domain.cache]
        return parts

    def saved(self) -> list[Any]:
        return [packed(part) for part in self.parts()]

    def rebuild(self) -> "World":
        other = World(self.width)
        other.take_over(self.saved(), self)
        return other

    def take_over(self, saved: list[Any], world: "World", ram: bytes | None = None) -> None:
        """Be that world at that moment; what the bench keeps itself is copied."""
        self.bench.ram.writable.raw[:] = bytes(world.bench.ram.raw) if ram is None else ram
        self.play = {domid: list(mfns) for domid, mfns in world.play.items()}
        for part, each in zip(self.parts(), saved, strict=True):
            restore(part, each)
        for mine, its in zip(self.bench.domains, world.bench.domains, strict=True):
            for vcpu, old in zip(mine.vcpus, its.vcpus, strict=True):
                vcpu.kernel_l4 = old.kernel_l4

    def perform(self, step: tuple[Any, ...]) -> object:
        domid, what, a, b, c = step
        domain = self.bench.domains[domid]
        frames, tables, play = self.bench.frames, domain.tables, self.play[domain.domid]
        table, target, slot = play[a % len(play)], play[b % len(play)], (0, 1, 3, 255, 300, 511)[c % 6]
        leaf, upper = (RO, RW, RX, RX | RO)[c % 4], (UPPER, LINEAR, PTE_P, PTE_P | PTE_US)[c % 4]
        address = table << 12 | slot << 3
        calls: dict[str, Any] = {
            "raw": lambda: self.raw(domain, table, slot, target << 12 | (leaf if c % 2 else upper)),
            "pin": lambda: tables.pin(table, 1 + c % 4),
            "unpin": lambda: tables.unpin(table),
            "leaf": lambda: (
                tables.update_l1(address, target << 12 | leaf) if self.level(table) == L1 else None
            ),
            "clear": lambda: self.clear(domain, address),
            "upper": lambda: self.upper(domain, table, slot, target << 12 | upper),
            "use": lambda: domain.use(table) if frames.pinned[table] else None,
            "hardware": lambda: self.hardware(domain, table, c),
            "merge": lambda: domain.cache.may_merge(table, target) if self.level(table) == L4 else None,
            "give": lambda: self.give_back(domain, play, a),
            "take": lambda: play.extend(domain.take(1 + c % 3)),
            "extent": lambda: frames.allocate_extent(99, c % 3),
            "shared": lambda: frames.allocate_shared(99),
            "flush": tables.flushed,
            "read": lambda: domain.memory.read(slot << 12, 8) if domain.memory.l4 else None,
            "map": lambda: domain.area.map(0, c % 32, target if b % 3 else None),
            "approve": lambda: self.approve(domain, table, c),
            "settle": lambda: settle_some(tables),
            "lend": lambda: self.lend(domid, play, a, c),
            "tidy": lambda: (tables.code.tidy(), self.bench.physical.renew_shared()),
        }
        self.bench.dropped.clear()
        try:
            answer = calls[what]()
        except (XenError, ConfigError) as error:
            answer = str(error)
        return answer, tables.take_work(), list(self.bench.dropped)

    def level(self, mfn: int) -> int:
        frames = self.bench.frames
        return frames.type[mfn] if frames.type_count[mfn] else 0

    def raw(self, domain: BareDomain, table: int, slot: int, entry: int) -> None:
        domain.tables.write_plain(table << 12 | slot << 3, entry)

    def clear(self, domain: BareDomain, address: int) -> None:
        level = self.level(address >> 12)
        if level == L1:
            domain.tables.update_l1(address, 0)
        elif 1 < level <= L4:
            domain.tables.update_upper(address, level, 0)

    def upper(self, domain: BareDomain, table: int, slot: int, entry: int) -> None:
        level = self.level(table)
        if 1 < level <= L4:
            domain.tables.update_upper(table << 12 | slot << 3, level, entry)

    def hardware(self, domain: BareDomain, table: int, c: int) -> object:
        if self.level(table) == L4:
            return domain.cache.hardware_l4(table, (SPLIT_USER, SPLIT_KERNEL, MERGED)[c % 3])
        return None

    def give_back(self, domain: BareDomain, play: list[int], a: int) -> None:
        mfn = play[a % len(play)]
        if len(play) > 6 and self.bench.frames.allocated[mfn] and not self.bench.frames.pinned[mfn]:
            play.remove(mfn)
            self.bench.frames.deallocate(Mfn(mfn))

    def approve(self, domain: BareDomain, table: int, c: int) -> object:
        if self.level(table) or self.bench.frames.owner[table] != domain.domid:
            return None
        return approve(domain.tables, Mfn(table), domain.tables.top, lambda: c % 2 == 0)

    def lend(self, domid: int, play: list[int], a: int, c: int) -> None:
        """The other domain maps a frame, as a grant does."""
        other = self.bench.domains[1 - domid]
        table = next((mfn for mfn in self.play[other.domid] if self.level(mfn) == L1), None)
        mfn = play[a % len(play)]
        frames = self.bench.frames
        if table is None or frames.owner[mfn] != self.bench.domains[domid].domid:
            return
        if c % 2:
            frames.take(Mfn(mfn))
        elif not frames.take_writable(Mfn(mfn)):
            return
        try:
            other.tables.map_granted(table << 12 | 7 << 3, mfn << 12 | (RO if c % 2 else RW))
        finally:
            (frames.drop if c % 2 else frames.drop_writable)(Mfn(mfn))


WHAT = (
    *("raw", "raw", "raw", "pin", "pin", "unpin", "leaf", "leaf", "clear", "upper", "upper", "use"),
    *("hardware", "hardware", "merge", "give", "take", "extent", "shared", "flush", "read", "map", "approve"),
    *("settle", "tidy"),
)
STEPS = st.lists(
    st.tuples(
        st.integers(0, 1), st.sampled_from(WHAT), st.integers(0, 40), st.integers(0, 40), st.integers(0, 23)
    ),
    max_size=60,
)


@settings(deadline=None, max_examples=40)
@given(st.sampled_from([64, 64, 32]), STEPS, STEPS)
def test_rebuilt_memory_goes_on_as_what_was_saved(width: int, before: list[Any], after: list[Any]) -> None:
    world = World(width)
    seed(world)
    for step in before:
        world.perform(step)
    other = world.rebuild()
    assert other.saved() == world.saved()
    assert other.bench.audit() == world.bench.audit()
    for step in after:
        assert other.perform(step) == world.perform(step)
    assert other.saved() == world.saved()
    assert other.bench.ram.raw == world.bench.ram.raw


def seed(world: World) -> None:
    """A tree of tables for each domain, so that chance has something to build on."""
    for domain in world.bench.domains:
        leaf = domain.one() << 12 | RX
        top = domain.chain(leaf)[0] if world.width == 64 else domain.pae(leaf)[0]
        domain.tables.pin(top, domain.tables.top)
        domain.use(top)


def test_every_attribute_is_explained() -> None:
    world = World(64)
    seed(world)
    assert unexplained_from(*world.parts(), beyond=(Ram,)) == []


def test_memory_is_put_back_in_place_and_what_was_translated_meanwhile_is_dropped() -> None:
    world = World(64)
    seed(world)
    then, ram = world.saved(), bytes(world.bench.ram.raw)
    domain = world.bench.domains[0]
    l1 = next(mfn for mfn in range(400) if world.level(mfn) == L1)
    mfn = domain.one()
    domain.tables.update_l1(l1 << 12 | 9 << 3, mfn << 12 | RX)
    domain.take(20)
    assert world.bench.frames.code[mfn]
    world.bench.dropped.clear()
    world.take_over(then, world, ram)
    assert world.saved() == then
    assert world.bench.dropped == [mfn]
    assert world.bench.audit() == []


class Watch:
    """An engine that is told which frames to watch."""

    def __init__(self) -> None:
        self.runs: list[tuple[int, int]] = []

    def add(self, run: tuple[int, int]) -> None:
        self.runs.append(run)

    def replace(self, runs: list[tuple[int, int]]) -> None:
        self.runs = list(runs)


def test_an_engine_watches_what_can_be_executed_and_what_counts_as_watched() -> None:
    world = World(64)
    seed(world)
    domain = world.bench.domains[0]
    domain.tables.flushed()
    other = World(64)
    watch: Any = Watch()
    other.bench.domains[0].tables.code._store_watch = watch
    other.take_over(world.saved(), world)
    code = other.bench.domains[0].tables.code
    watched = {mfn for first, last in watch.runs for mfn in range(first, last + 1)}
    assert set(np.flatnonzero(code.known_np).tolist()) <= watched
    assert watched


COUNT = 400


def with_word(column: bytes, at: int, value: int, size: int) -> bytes:
    return column[: at * size] + value.to_bytes(size, "little") + column[(at + 1) * size :]


@pytest.mark.parametrize(
    ("column", "change", "told"),
    [
        ("owner", lambda old: old[:-2], "owner has 798 bytes for 400 frames"),
        ("owner", lambda old: with_word(old, 0, 1, 2), "free does not have exactly"),
        ("type", lambda old: with_word(old, 9, 6, 1), "type has values that are no types"),
        ("pinned", lambda old: with_word(old, 9, 2, 1), "pinned has values other than 0 and 1"),
        ("refs", lambda old: with_word(old, 399, 1, 4), "refs or type_count counts references"),
        ("free", lambda old: old[4:], "free does not have exactly"),
        ("free", lambda old: with_word(old, 0, 0, 4), "free does not have exactly"),
        ("free", lambda old: with_word(old, 0, 400, 4), "free does not have exactly"),
        ("free", lambda old: old[4:8] + old[4:], "free does not have exactly"),
        ("free", lambda old: old * 2, "free has"),
        ("free", lambda old: old + b"x", "free has"),
        ("code", list, "code is not of the type bytes"),
    ],
)
def test_what_no_frame_table_can_have_been_is_refused(
    column: str, change: Callable[..., Any], told: str
) -> None:
    world = World(64)
    saved: Any = packed(world.bench.frames)
    saved[column] = change(saved[column])
    before = packed(world.bench.frames)
    with pytest.raises(StateError) as refused:
        restore(world.bench.frames, saved)
    assert told in str(refused.value)
    assert packed(world.bench.frames) == before, "nothing has changed"


@pytest.mark.parametrize(
    ("part", "change", "told"),
    [
        ("physical", {"shared_code": [400]}, "shared_code has frames that do not exist"),
        ("m2p", {"user_entry": 0}, "has the machine-to-physical table elsewhere"),
        ("memory", {"l4": 400}, "l4 is frame 400"),
        ("area", {"tables": [1, 1, 1]}, "tables does not have 3 frames"),
        ("area", {"tables": [399, 398, 397]}, "tables has frames that are not the hypervisor's"),
        ("cache", {"free": []}, "copies does not have 32 frames"),
        ("cache", {"copies": [[400, 0, 1]]}, "copies has a table that does not exist"),
        ("cache", {"copies": [[1, 4, 1]]}, "copies.0.1 is 4"),
        ("tables", {"ahead": [400]}, "ahead or doomed has mfn 0x190"),
        ("tables", {"doomed": [1]}, "ahead or doomed has mfn 0x1"),
        ("tables", {"flush_pages": [0] * 33}, "flush_pages has too many"),
        ("tables", {"code": None}, "code is not a table of names"),
        ("code", {"known": b""}, "known has 0 bytes for 400 frames"),
        ("code", {"known": b"\2" * 400}, "known fresh or foreign"),
        ("code", {"fresh": [400]}, "known fresh or foreign"),
    ],
)
def test_what_no_memory_can_have_been_is_refused(part: str, change: dict[str, Plain], told: str) -> None:
    bench = World(64).bench
    domain = bench.domains[0]
    things: dict[str, Any] = {
        "physical": bench.physical,
        "m2p": bench.m2p,
        "memory": domain.memory,
        "area": domain.area,
        "cache": domain.cache,
        "tables": domain.tables,
        "code": domain.tables.code,
    }
    with pytest.raises(StateError) as refused:
        restore(things[part], {**state(things[part]), **change})
    assert told in str(refused.value)


def test_the_least_recently_used_copy_stays_it() -> None:
    world = World(64)
    domain = world.bench.domains[0]
    tops = []
    for _ in range(CACHE_FRAMES + 3):
        top = domain.one()
        domain.tables.pin(top, L4)
        tops.append(top)
        domain.cache.hardware_l4(top, SPLIT_USER)
    domain.cache.hardware_l4(tops[4], SPLIT_USER)
    other = world.rebuild()
    assert_restored(domain.cache, other.bench.domains[0].cache)
    kept = [l4 for l4, _, _ in other.bench.domains[0].cache.copies()]
    assert kept == [Mfn(mfn) for mfn in (tops[3], *tops[5:], tops[4])]
