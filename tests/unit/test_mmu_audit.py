# SPDX-License-Identifier: GPL-2.0-only
"""The audit finds every kind of corruption; and random guests, however hostile, never give it one to find."""

import copy
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)
from mmu_bench import LINEAR, RO, RW, RX, UPPER, Bench

from pyhv.abi.x86 import PTE_D, PTE_MFN_MASK, PTE_NX, PTE_P, PTE_PCD, PTE_PSE, PTE_RW, PTE_US
from pyhv.address import Mfn
from pyhv.errors import XenError
from pyhv.mmu.audit import MappedGrant
from pyhv.mmu.frames import L1, L2, L3, L4, SEGDESC, WRITABLE
from pyhv.mmu.manyleaves import L1_FORBIDDEN
from pyhv.mmu.paging import MERGED, SPLIT_KERNEL
from pyhv.mmu.tables import UPPER_FORBIDDEN

# -- corruption --------------------------------------------------------------------------------------------


class Sound:
    """Two domains with everything that the audit looks at; nothing wrong yet."""

    def __init__(self) -> None:
        self.bench = bench = Bench()
        self.guest, self.other = bench.domains
        guest = self.guest
        self.page, self.code, self.theirs = guest.one(), guest.one(), self.other.one()
        self.l4, self.l3, self.l2, self.l1 = guest.chain(self.page << 12 | RW)
        guest.tables.pin(self.l4, L4)
        guest.use(self.l4)
        guest.tables.update_l1(self.l1 << 12 | 8, self.code << 12 | RX)
        guest.tables.update_upper(self.l4 << 12 | 300 << 3, L4, self.l3 << 12 | UPPER)
        guest.tables.update_upper(self.l4 << 12 | 8, L4, self.l4 << 12 | LINEAR)
        bench.frames.take_writable(Mfn(self.theirs))
        guest.tables.map_granted(self.l1 << 12 | 16, self.theirs << 12 | RW)
        guest.grants.append(MappedGrant(Mfn(self.theirs), False))
        bench.frames.take_writable(Mfn(self.theirs))
        guest.grants.append(MappedGrant(Mfn(self.theirs), False, device=True))
        self.copy = guest.cache.hardware_l4(self.l4, MERGED)
        guest.cache.hardware_l4(self.l4, SPLIT_KERNEL)
        self.gdt, self.ldt = guest.one(), guest.one()
        vcpu = guest.vcpus[0]
        for mfn in (self.gdt, self.ldt):
            bench.frames.type[mfn], bench.frames.type_count[mfn] = SEGDESC, 1
            bench.frames.take(Mfn(mfn))
        vcpu.gdt_frames.append(Mfn(self.gdt))
        vcpu.ldt_mapped[2] = Mfn(self.ldt)
        guest.area.map(0, 0, self.gdt)
        guest.area.map(0, 18, self.ldt)
        info = guest.one()
        bench.frames.take_writable(Mfn(info))
        vcpu.info = Mfn(info)
        guest.grant_frames.append(bench.frames.allocate_shared(guest.domid))
        self.events = guest.one()
        for _ in range(2):
            bench.frames.take_writable(Mfn(self.events))
            guest.event_pages.append(Mfn(self.events))

    @property
    def free(self) -> int:
        """A frame that nobody owns."""
        return int(self.bench.frames.free_list()[0])

    def free_again(self) -> None:
        """Put a free frame on the stack of free frames once more."""
        frames = self.bench.frames
        frames._free[frames.free_count] = self.free
        frames.free_count += 1

    def lose(self) -> None:
        """Forget that a frame is free."""
        self.bench.frames.free_count -= 1

    def entry(self, mfn: int, slot: int, change: int) -> None:
        """Flip bits of an entry behind everybody's back."""
        self.bench.ram.writable.q[mfn << 9 | slot] ^= change


def test_a_sound_machine() -> None:
    assert Sound().bench.audit() == []


def _bump(column: str) -> Callable[[Sound], None]:
    def damage(sound: Sound) -> None:
        getattr(sound.bench.frames, column)[sound.page] += 1

    return damage


DAMAGE: dict[str, tuple[Callable[[Sound], object], str]] = {
    "a reference too many": (_bump("refs"), "references in all"),
    "a type reference too many": (_bump("type_count"), "references as writable"),
    "an executable mapping too many": (_bump("exec_count"), "executable mappings"),
    "a linear entry out of nowhere": (_bump("linear_in"), "linear entries into"),
    "a linear entry to nowhere": (_bump("linear_out"), "linear entries out of"),
    "a pin of no table": (lambda s: s.bench.frames.pinned.__setitem__(s.page, 1), "no page table"),
    "an L1 mapped writable": (lambda s: s.entry(s.l1, 5, s.l1 << 12 | RW), "is mapped writable by a guest"),
    "a GDT mapped writable": (lambda s: s.entry(s.l1, 5, s.gdt << 12 | RW), "is mapped writable by a guest"),
    "another's frame mapped": (
        lambda s: s.entry(s.l1, 5, s.other.one() << 12 | RO),
        "without as many grants",
    ),
    "a grant mapped once more": (lambda s: s.entry(s.l1, 5, s.theirs << 12 | RO), "without as many grants"),
    "the M2P mapped by a guest": (
        lambda s: s.entry(s.l1, 5, s.bench.m2p.frames[0] << 12 | RO),
        "without as many grants",
    ),
    "a leaf beyond RAM": (lambda s: s.entry(s.l1, 5, PTE_MFN_MASK | RO), "outside memory"),
    "a leaf of frame 0": (lambda s: s.entry(s.l1, 5, RO), "outside memory"),
    "an uncached leaf": (lambda s: s.entry(s.l1, 0, PTE_PCD), "sets cache attributes"),
    "a supervisor leaf": (lambda s: s.entry(s.l1, 0, PTE_US), "was not adjusted"),
    "a large page": (lambda s: s.entry(s.l2, 0, PTE_PSE), "bits that no guest may set"),
    "a writable linear entry": (lambda s: s.entry(s.l4, 1, PTE_RW), "writable linear L4 entry"),
    "another's table linked": (
        lambda s: s.entry(s.l2, 5, s.other.table() << 12 | UPPER),
        "points to another owner's frame",
    ),
    "a guest entry in a hypervisor slot": (lambda s: s.entry(s.l4, 258, 1), "hypervisor's slots"),
    "a copy that lags behind": (lambda s: s.entry(s.copy, 0, PTE_P), "slot 0 of the copy"),
    "a merged copy open to users": (lambda s: s.entry(s.copy, 300, PTE_US), "slot 300 of the copy"),
    "the M2P open to users when merged": (lambda s: s.entry(s.copy, 256, PTE_US), "slot 256 of the copy"),
    "something in a hypervisor slot": (lambda s: s.entry(s.copy, 261, 1), "slot 261 of the copy"),
    "a copy of a table that is none": (
        lambda s: s.guest.cache._copies.__setitem__((s.page, MERGED), s.copy),
        "is no L4 of d1",
    ),
    "a writable descriptor window": (
        lambda s: s.entry(s.guest.area._l1s[0], 0, PTE_RW),
        "descriptor page 0",
    ),
    "windows that lead elsewhere": (
        lambda s: s.entry(s.guest.area.tables[0], 0, 1 << 12),
        "lead elsewhere",
    ),
    "windows that lead beyond RAM": (
        lambda s: s.entry(s.guest.area.tables[0], 0, 1 << 50),
        "a table of the hypervisor's leads to",
    ),
    "windows of two domains in one table": (
        lambda s: s.guest.area.tables.__setitem__(2, s.other.area.tables[2]),
        "serves it for two purposes",
    ),
    "a copy in a guest's frame": (
        lambda s: s.guest.cache._free.__setitem__(0, Mfn(s.page)),
        "is not the hypervisor's, or serves it for two purposes",
    ),
    "a descriptor page beyond RAM": (lambda s: s.entry(s.guest.area._l1s[0], 5, 1 << 50 | 1), "page 5 of"),
    "a wrong frame in the window": (lambda s: s.guest.area.map(0, 0, s.page), "shows frame"),
    "an LDT page that is gone": (lambda s: s.guest.area.map(0, 18, None), "descriptor page 18"),
    "an LDT page too many": (lambda s: s.guest.area.map(0, 19, s.page), "descriptor page 19"),
    "a free frame with an owner": (
        lambda s: s.bench.frames.owner.__setitem__(s.free, 1),
        "is free but has an owner",
    ),
    "a frame freed twice": (
        lambda s: s.free_again(),
        "free more than once",
    ),
    "a lost frame": (lambda s: s.lose(), "has no owner but is not free"),
    "a free frame in the M2P": (
        lambda s: s.bench.m2p.table.__setitem__(s.free, 5),
        "no guest's but in the M2P",
    ),
    "a free frame with translations": (
        lambda s: s.bench.frames.code.__setitem__(s.free, 1),
        "is free but may have translated code",
    ),
    "a writable M2P": (lambda s: s.entry(s.bench.m2p.user_entry >> 12, 0, PTE_RW), "M2P is mapped writable"),
    "code that is not tracked": (
        lambda s: s.bench.frames.code.__setitem__(s.code, 0),
        "translations would not be dropped",
    ),
    "a shared page that could be given away": (
        lambda s: s.bench.frames.xen_heap.__setitem__(s.guest.shared_info.mfn, 0),
        "should be a shared page",
    ),
    "a domain that was forgotten": (lambda s: s.bench.domains.remove(s.guest), "domain that is gone"),
}


@pytest.mark.promise("I-3")
@pytest.mark.parametrize("name", list(DAMAGE))
def test_the_audit_finds(name: str) -> None:
    damage, finding = DAMAGE[name]
    sound = Sound()
    damage(sound)
    findings = sound.bench.audit()
    assert any(finding in line for line in findings), findings


def test_many_findings_are_summed_up() -> None:
    sound = Sound()
    for slot in range(100, 150):
        sound.entry(sound.l1, slot, RO)
    assert sum("outside memory" in line for line in sound.bench.audit()) == 8


# -- hostile guests ----------------------------------------------------------------------------------------

SLOTS = (0, 1, 256, 511)
LEVELS = (L1, L2, L3, L4)
LEAF_FLAGS = (RO, RW, RX, RX | PTE_RW, RW & ~PTE_US, RW | PTE_PCD, RW & ~PTE_P, RW & ~PTE_D)
UPPER_FLAGS = (UPPER, LINEAR, UPPER | PTE_NX, UPPER | PTE_PSE, UPPER & ~PTE_P, PTE_P)
WRITE, LOOK = "writable", "read-only"

Held = tuple[int, int | str]
"""(frame, what it is held as: a level, WRITE or LOOK)."""


class Refused(Exception):
    """The model says no."""


class Model:
    """The rules of direct paging, slowly: who holds which frame as what, one dictionary entry each."""

    def __init__(self, bench: Bench, domid: int) -> None:
        self.bench = bench
        self.domid = domid
        self.holds: dict[Held, int] = {}
        self.taken: dict[int, dict[int, Held]] = {}
        """What each table's entries hold, by table and slot."""
        self.pins: dict[int, int] = {}
        self.base: int = 0

    def kind(self, mfn: int) -> int | str | None:
        """What a frame is now."""
        for what in LEVELS:
            if self.holds.get((mfn, what)):
                return what
        if self.holds.get((mfn, WRITE)):
            return WRITE
        return None

    def own(self, mfn: int) -> bool:
        frames = self.bench.frames
        return 0 < mfn < frames.count and frames.owner[mfn] == self.domid

    def hold(self, mfn: int, what: int | str) -> Held:
        if not self.own(mfn):
            raise Refused
        now = self.kind(mfn)
        if what != LOOK and now not in (None, what):
            raise Refused
        self.holds[mfn, what] = self.holds.get((mfn, what), 0) + 1
        if now is None and what in LEVELS:
            self.taken[mfn] = {}
            for slot in range(512):
                entry = self.bench.q(mfn, slot)
                if entry & PTE_P and not (what == L4 and 256 <= slot < 272):
                    self.take(mfn, int(what), slot, entry)
        return mfn, what

    def drop(self, held: Held) -> None:
        self.holds[held] -= 1
        if not self.holds[held] and held[1] in LEVELS:
            for other in self.taken.pop(held[0]).values():
                if other[0]:
                    self.drop(other)

    def linear(self, table: int, level: int) -> bool:
        """Whether a table has linear entries to others."""
        return any(held[1] == level for held in self.taken.get(table, {}).values() if held[0])

    def aimed_at(self, table: int, level: int) -> bool:
        """Whether others have linear entries to a table."""
        return any(
            (table, level) in held.values() and self.kind(t) == level for t, held in self.taken.items()
        )

    def take(self, table: int, level: int, slot: int, entry: int) -> None:
        """Approve one present entry."""
        mfn = (entry & PTE_MFN_MASK) >> 12
        if level == L1:
            if entry & L1_FORBIDDEN:
                raise Refused
            self.taken[table][slot] = self.hold(mfn, WRITE if entry & PTE_RW else LOOK)
            return
        if entry & UPPER_FORBIDDEN or not self.own(mfn):
            raise Refused
        if mfn == table:
            if entry & PTE_RW:
                raise Refused
            self.taken[table][slot] = (0, 0)
        elif self.kind(mfn) == level:
            if entry & PTE_RW or self.linear(mfn, level) or self.aimed_at(table, level):
                raise Refused
            self.taken[table][slot] = self.hold(mfn, level)
        else:
            self.taken[table][slot] = self.hold(mfn, level - 1)

    def update(self, table: int, slot: int, entry: int) -> None:
        level = self.kind(table)
        if level not in LEVELS:
            if level not in (None, WRITE) or not self.own(table):
                raise Refused
            return
        if level == L4 and 256 <= slot < 272:
            raise Refused
        old = self.taken[table].pop(slot, None)
        same = self.bench.q(table, slot) ^ entry
        if entry & PTE_P:
            if entry & (L1_FORBIDDEN if level == L1 else UPPER_FORBIDDEN):
                raise Refused
            if old is not None and not same & (PTE_MFN_MASK | PTE_RW | PTE_P):
                self.taken[table][slot] = old
                return
            if old is not None:
                self.taken[table][-1] = old  # both are held for a moment
            self.take(table, int(level), slot, entry)
            self.taken[table].pop(-1, None)
        if old is not None and old[0]:
            self.drop(old)


class HostileGuest(RuleBasedStateMachine):
    """One guest does what it likes beside a quiet one that lends it frames."""

    @initialize()
    def boot(self) -> None:
        self.bench = Bench(256)
        self.guest, self.other = self.bench.domains
        self.frames = self.guest.take(9)
        """Two meant as L4s, two as L3s, two as L2s, two as L1s, and a page; but who knows."""
        self.model = Model(self.bench, self.guest.domid)
        self.lent = self.other.take(2)
        self.strange = [0, 255, 256, PTE_MFN_MASK >> 12, self.bench.m2p.frames[0], self.other.one()]
        self.loans: list[tuple[int, int, bool]] = []
        """(frame, slot of `window`, writable) of granted frames that we have mapped."""
        self.window = self.guest.one()
        self.guest.tables.pin(self.window, L1)
        l4, l4b, l3, l3b, l2, l2b, l1, l1b, page = self.frames
        for table, slot, child, flags in (
            (l4, 0, l3, UPPER), (l3, 0, l2, UPPER), (l2, 0, l1, UPPER), (l1, 0, page, RW), (l1, 1, page, RX),
            (l1, 511, page, RW), (l4b, 0, l4, LINEAR), (l3b, 0, l2, UPPER), (l3b, 1, l2b, UPPER),
            (l2b, 0, l2, LINEAR), (l2b, 1, l1b, UPPER), (l2b, 511, page, UPPER), (l1b, 0, l2, RO),
        ):  # fmt: skip
            self.update(table, slot, child << 12 | flags)
        for level, mfn in ((L4, l4), (L4, l4b), (L3, l3b), (L1, l1b)):
            self.do_pin(mfn, level)

    def attempt(self, act: Callable[[], object], model: Callable[[Model], object]) -> None:
        """Do it, and expect what the model says; a refusal leaves no trace."""
        trial = copy.copy(self.model)
        trial.holds = dict(self.model.holds)
        trial.taken = {table: dict(held) for table, held in self.model.taken.items()}
        trial.pins = dict(self.model.pins)
        before = self.bench.counts()
        try:
            model(trial)
            expected = True
        except Refused:
            expected = False
        try:
            act()
            accepted = True
        except XenError:
            accepted = False
        assert accepted == expected, f"accepted: {accepted}, by the model: {expected}"
        if accepted:
            self.model = trial
        else:
            assert self.bench.counts() == before

    frame = st.integers(0, 8)
    slot = st.sampled_from(SLOTS)
    any_frame = st.one_of(frame, frame, frame, st.integers(-6, -1))

    def entry(self, target: int, flags: int) -> int:
        mfn = self.frames[target] if target >= 0 else self.strange[-1 - target]
        return mfn << 12 | flags

    def update(self, mfn: int, slot: int, entry: int) -> None:
        self.attempt(lambda: self.write(mfn, slot, entry), lambda model: model.update(mfn, slot, entry))

    def write(self, mfn: int, slot: int, entry: int) -> None:
        """As mmu_update does it."""
        frames, tables = self.bench.frames, self.guest.tables
        address = mfn << 12 | slot << 3
        kind = frames.type[mfn] if frames.type_count[mfn] else WRITABLE
        if kind == L1:
            tables.update_l1(address, entry)
        elif kind in LEVELS:
            tables.update_upper(address, kind, entry)
        else:
            tables.write_plain(address, entry)

    @rule(at=frame, slot=slot, to=any_frame, flags=st.sampled_from(LEAF_FLAGS))
    def write_leaf(self, at: int, slot: int, to: int, flags: int) -> None:
        self.update(self.frames[at], slot, self.entry(to, flags))

    @rule(at=frame, slot=slot, to=any_frame, flags=st.sampled_from(UPPER_FLAGS))
    def write_link(self, at: int, slot: int, to: int, flags: int) -> None:
        self.update(self.frames[at], slot, self.entry(to, flags))

    @rule(at=frame, slot=slot)
    def clear(self, at: int, slot: int) -> None:
        self.update(self.frames[at], slot, 0)

    @rule(at=any_frame, level=st.sampled_from(LEVELS))
    def pin(self, at: int, level: int) -> None:
        self.do_pin(self.entry(at, 0) >> 12, level)

    @rule(at=st.integers(0, 7))
    def pin_as_meant(self, at: int) -> None:
        self.do_pin(self.frames[at], L4 - at // 2)

    @rule(
        at=st.integers(0, 7), slot=slot, flags=st.sampled_from((UPPER, UPPER, LINEAR)), second=st.booleans()
    )
    def link_as_meant(self, at: int, slot: int, flags: int, second: bool) -> None:
        """An entry that points to a table (or page) of the level below, or, read-only, of the same level."""
        if at >= 6:
            self.update(self.frames[at], slot, self.frames[8] << 12 | RW)
        else:
            below = at // 2 * 2 + (0 if flags == LINEAR else 2) + second
            self.update(self.frames[at], slot, self.frames[below] << 12 | flags)

    def do_pin(self, mfn: int, level: int) -> None:
        def model(model: Model) -> None:
            model.hold(mfn, level)
            if mfn in model.pins:
                raise Refused
            model.pins[mfn] = level

        def act() -> None:
            self.guest.tables.pin(mfn, level)
            if level == L4:
                for variant in (SPLIT_KERNEL, MERGED):
                    self.guest.cache.hardware_l4(mfn, variant)

        self.attempt(act, model)

    @rule(at=any_frame)
    def unpin(self, at: int) -> None:
        mfn = self.entry(at, 0) >> 12

        def model(model: Model) -> None:
            if mfn not in model.pins:
                raise Refused
            model.drop((mfn, model.pins.pop(mfn)))

        self.attempt(lambda: self.guest.tables.unpin(mfn), model)

    @rule(at=frame, variant=st.integers(0, 2))
    def switch(self, at: int, variant: int) -> None:
        mfn = self.frames[at]

        def act() -> None:
            self.guest.use(mfn)
            self.guest.cache.hardware_l4(mfn, variant)

        def model(model: Model) -> None:
            model.hold(mfn, L4)
            old, model.base = model.base, mfn
            if old:
                model.drop((old, L4))

        self.attempt(act, model)

    @rule(which=st.integers(0, 1), slot=st.integers(0, 3), write=st.booleans())
    def map_grant(self, which: int, slot: int, write: bool) -> None:
        mfn, frames = self.lent[which], self.bench.frames
        if any(loan[1] == slot for loan in self.loans):
            return
        if write:
            assert frames.take_writable(Mfn(mfn))
        else:
            frames.take(Mfn(mfn))
        self.guest.tables.map_granted(self.window << 12 | slot << 3, mfn << 12 | (RW if write else RO))
        self.loans.append((mfn, slot, write))
        self.guest.grants.append(MappedGrant(Mfn(mfn), not write))

    @precondition(lambda self: self.loans)
    @rule(flags=st.sampled_from(LEAF_FLAGS))
    def abuse_grant(self, flags: int) -> None:
        """A granted leaf may get other harmless bits, but neither more rights nor another place."""
        mfn, slot, write = self.loans[0]
        tables = self.guest.tables
        with pytest.raises(XenError):
            tables.update_l1(self.window << 12 | 100 << 3, mfn << 12 | RO)
        if not write:
            with pytest.raises(XenError):
                tables.update_l1(self.window << 12 | slot << 3, mfn << 12 | RW)
        with pytest.raises(XenError):
            tables.pin(mfn, L1)
        same = flags & ~PTE_RW | (PTE_RW if write else 0)
        if same & PTE_P and not same & L1_FORBIDDEN:
            tables.update_l1(self.window << 12 | slot << 3, mfn << 12 | same)

    @precondition(lambda self: self.loans)
    @rule(properly=st.booleans())
    def unmap_grant(self, properly: bool) -> None:
        _, slot, _ = self.loans.pop(0)
        self.guest.tables.flushed()
        if properly:
            self.guest.tables.replace_leaf(self.window << 12 | slot << 3, 0)
        else:
            self.guest.tables.update_l1(self.window << 12 | slot << 3, 0)
        assert self.guest.tables.flush  # the lender cannot see our TLB
        self.guest.grants.pop(0)

    @rule(which=st.integers(0, 1))
    def lender_takes_its_frame_back(self, which: int) -> None:
        """Given back while we map it, the frame lives on; then the lender lends another one."""
        mfn = self.lent[which]
        self.bench.frames.deallocate(Mfn(mfn))
        mapped = any(loan[0] == mfn for loan in self.loans)
        assert (self.bench.frames.owner[mfn] == self.other.domid) == mapped
        self.lent[which] = self.other.one()

    @rule(at=frame)
    def give_back(self, at: int) -> None:
        """A frame is replaced in our list; the old one lives as long as something uses it."""
        mfn = self.frames[at]
        if self.bench.frames.allocated[mfn]:
            self.bench.frames.deallocate(Mfn(mfn))
            held = any(count for (frame, _), count in self.model.holds.items() if frame == mfn)
            assert (self.bench.frames.owner[mfn] == self.guest.domid) == held
            if self.bench.frames.free_count > 8:
                self.frames[at] = self.guest.one()

    @invariant()
    def sound(self) -> None:
        if not hasattr(self, "bench"):
            return
        assert self.bench.audit() == []
        frames = self.bench.frames
        for mfn in self.frames:
            if frames.type_count[mfn]:
                kind = self.model.kind(mfn)
                assert (WRITABLE if kind == WRITE else kind) == frames.type[mfn]
                assert frames.type_count[mfn] == self.model.holds[mfn, kind or 0]

    def teardown(self) -> None:
        """Both die: nothing is left of them, and their frames hold nothing of theirs."""
        if not hasattr(self, "bench"):
            return
        frames = self.bench.frames
        self.guest.die()
        assert not frames.owned_by(self.guest.domid).size
        assert self.bench.audit() == []
        self.other.die()
        assert frames.free_count == self.bench.empty
        assert not self.bench.ram.tables[frames.free_list()].any()


TestHostileGuest = HostileGuest.TestCase
TestHostileGuest.settings = settings(
    max_examples=80,
    stateful_step_count=50,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
)
