# SPDX-License-Identifier: GPL-2.0-only
"""Version 2 of grant tables: statuses apart, parts of pages, grants passed on, and the way there and back."""

from collections import Counter
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_grants_table import Lender

from pyhv.abi.errno import Errno
from pyhv.abi.grants import GrantStatus, MapFlag
from pyhv.address import Mfn
from pyhv.errors import XenError
from pyhv.grants.status import GrantError
from pyhv.grants.table import MAX_PINS, GrantTable
from pyhv.testing.shared_pages import BytesPage

PERMIT, ACCEPT, TRANSITIVE, READONLY, READING, WRITING, SUB_PAGE = 1, 2, 3, 4, 8, 16, 256
PER_FRAME = 256


class Lender2(Lender):
    """A domain whose table is of version 2, and the guest's view of it."""

    def __init__(self, domid: int = 1, max_frames: int = 64, memory: int = 1000) -> None:
        super().__init__(max_frames, memory)
        self.table.domid = domid
        self.table.set_version(2)

    def page(self, mfn: int) -> BytesPage:
        return next(page for page in self.pages if page.mfn == mfn)

    def put(self, ref: int, flags: int, domid: int, low: bytes, frame: int) -> None:
        page, at = self.page(self.table.frames[ref // PER_FRAME]), ref % PER_FRAME * 16
        page.write(at + 4, low)
        page.write_u64(at + 8, frame)
        page.write_u16(at + 2, domid)
        page.write_u16(at, flags)

    def full(self, ref: int, flags: int = PERMIT, domid: int = 2, frame: int = 0x777) -> None:
        self.put(ref, flags, domid, bytes(4), frame)

    def part(self, ref: int, start: int, length: int, flags: int = PERMIT) -> None:
        low = start.to_bytes(2, "little") + length.to_bytes(2, "little")
        self.put(ref, flags | SUB_PAGE, 2, low, 0x777)

    def pass_on(self, ref: int, domid: int, inner: int, *, to: int = 2, flags: int = TRANSITIVE) -> None:
        self.put(ref, flags, to, domid.to_bytes(2, "little") + bytes(2), inner)

    def status(self, ref: int) -> int:
        return self.page(self.table.status_frames[ref // 2048]).read_u16(ref % 2048 * 2)

    def flags(self, ref: int) -> int:
        return self.page(self.table.frames[ref // PER_FRAME]).read_u16(ref % PER_FRAME * 16)


@pytest.fixture
def lender() -> Lender2:
    return Lender2()


class Either(Lender):
    """A domain that changes the version of its table."""

    def in_use(self, ref: int) -> int:
        if self.table.version == 1:
            return self.flags(ref) & (READING | WRITING)
        status = next(page for page in self.pages if page.mfn == self.table.status_frames[0])
        return status.read_u16(ref * 2)


def refused(call: Callable[..., object], *arguments: object) -> GrantStatus:
    with pytest.raises(GrantError) as refusal:
        call(*arguments)
    return refusal.value.status


def errno_of(call: Callable[..., object], *arguments: object) -> int:
    with pytest.raises(XenError) as refusal:
        call(*arguments)
    return refusal.value.errno


# -- versions ----------------------------------------------------------------------------------------------


def test_versions_that_there_are() -> None:
    table = Lender().table
    for version in (0, 3, 1 << 31):
        assert errno_of(table.set_version, version) == Errno.EINVAL
    table.set_version(1)
    assert (table.version, table.entries, table.status_frames) == (1, 512, [])
    table.set_version(2)
    assert (table.version, table.entries, len(table.status_frames)) == (2, 256, 1)
    table.set_version(2)
    assert len(table.status_frames) == 1


def test_the_reserved_entries_go_there_and_back() -> None:
    lender = Lender()
    table = lender.table
    table.reserve(1, 0, Mfn(0xABC))
    lender.grant(7, PERMIT | READONLY | 0xE0, 5, 0xFFFF_FFFF)
    lender.grant(6, ACCEPT, 5, 0x10)
    lender.grant(8, PERMIT, 5, 0x20)
    table.take(1, 0, readonly=False)
    before = bytes(lender.pages[0].bytes[:48]) + bytes(8) + bytes(lender.pages[0].bytes[56:64])
    table.set_version(2)
    page = lender.pages[0]
    assert page.read(16, 16) == bytes.fromhex("0100 0000 00000000 bc0a000000000000"), "its bits are elsewhere"
    status = next(frame for frame in lender.pages if frame.mfn == table.status_frames[0])
    assert status.read_u16(2) == READING | WRITING
    assert page.read_u16(7 * 16) == PERMIT | READONLY | 0xE0
    assert page.read_u64(7 * 16 + 8) == 0xFFFF_FFFF
    assert not any(page.bytes[128:]), "all others are gone"
    table.set_version(1)
    assert bytes(page.bytes[:64]) == before, "only what permits access comes back"
    assert not any(page.bytes[64:])
    assert lender.flags(1) == PERMIT | READING | WRITING
    table.drop(1, readonly=False)
    assert lender.flags(1) == PERMIT


def test_entries_in_use_hold_the_version() -> None:
    lender = Lender()
    lender.grant(8, PERMIT)
    lender.table.take(8, 2, readonly=True)
    assert errno_of(lender.table.set_version, 2) == Errno.EBUSY
    assert lender.table.version == 1
    assert lender.flags(8) == PERMIT | READING
    lender.table.drop(8, readonly=True)
    lender.table.set_version(2)


def test_a_mapped_status_frame_holds_the_version(lender: Lender2) -> None:
    """Its frame would be freed while the guest can still write it (XSA-255)."""
    table = lender.table
    table.setup(9)
    first, second = table.status_frames
    lender.full(3)
    lender.in_guest = {second}
    assert errno_of(table.set_version, 1) == Errno.EBUSY
    assert (table.version, table.status_frames, lender.released) == (2, [first, second], [])
    assert lender.flags(3) == PERMIT
    lender.in_guest = set()
    table.set_version(1)
    assert (table.version, table.status_frames, lender.released) == (1, [], [first, second])


def test_what_version_1_cannot_say(lender: Lender2) -> None:
    lender.full(7, frame=1 << 32)
    assert errno_of(lender.table.set_version, 1) == Errno.ERANGE
    lender.pass_on(7, 3, 9)
    assert errno_of(lender.table.set_version, 1) == Errno.ERANGE
    lender.full(7, flags=ACCEPT, frame=1 << 32)
    lender.table.set_version(1)
    assert Lender.flags(lender, 7) == 0


def test_no_memory_for_statuses() -> None:
    lender = Lender(memory=1)
    assert errno_of(lender.table.set_version, 2) == Errno.ENOMEM
    assert (lender.table.version, lender.table.status_frames) == (1, [])


@pytest.mark.parametrize(("frames", "statuses"), [(1, 1), (8, 1), (9, 2), (64, 8)])
def test_statuses_grow_with_the_table(frames: int, statuses: int) -> None:
    grown, switched = Lender2(), Lender()
    assert len(grown.table.setup(frames)) == frames
    switched.table.setup(frames)
    switched.table.set_version(2)
    for table in (grown.table, switched.table):
        assert (table.entries, len(table.status_frames)) == (PER_FRAME * frames, statuses)
        assert len(set(table.shared_frames)) == frames + statuses
        assert table.status_setup(statuses) == table.status_frames
        assert refused(table.status_setup, statuses + 1) == GrantStatus.GENERAL_ERROR
    last = PER_FRAME * frames - 1
    grown.full(last)
    grown.table.take(last, 2, readonly=False)
    assert grown.status(last) == READING | WRITING


def test_growing_that_fails_leaves_nothing_behind() -> None:
    lender = Lender2(memory=5)
    assert refused(lender.table.setup, 64) == GrantStatus.GENERAL_ERROR
    assert lender.table.entries == PER_FRAME
    assert len(lender.pages) == len(lender.table.shared_frames)


# -- use ---------------------------------------------------------------------------------------------------


def test_use_marks_the_status_and_not_the_entry(lender: Lender2) -> None:
    table = lender.table
    lender.full(8, frame=0x1_0000_0777)
    assert table.take(8, 2, readonly=True) == 0x1_0000_0777
    assert (lender.flags(8), lender.status(8)) == (PERMIT, READING)
    table.take(8, 2, readonly=False)
    assert lender.status(8) == READING | WRITING
    table.drop(8, readonly=False)
    assert lender.status(8) == READING
    table.drop(8, readonly=True)
    assert (lender.flags(8), lender.status(8)) == (PERMIT, 0)


def no_tables(_domid: int) -> None:
    return None


def test_a_part_of_a_page_can_be_copied_and_not_mapped(lender: Lender2) -> None:
    table = lender.table
    lender.part(8, 0x100, 0x40)
    assert refused(table.take, 8, 2, True) == GrantStatus.GENERAL_ERROR
    assert lender.status(8) == 0
    grant = table.take_copy(8, 2, False, no_tables)
    assert (grant.owner, grant.frame, grant.start, grant.length) == (1, 0x777, 0x100, 0x40)
    lender.full(8)
    assert refused(table.take, 8, 2, True) == GrantStatus.GENERAL_ERROR, "what it is was settled before"
    grant.drop()
    assert lender.status(8) == 0
    assert table.take(8, 2, True) == 0x777


def test_version_1_does_not_know_parts() -> None:
    lender = Lender()
    lender.grant(8, PERMIT | SUB_PAGE)
    assert refused(lender.table.take, 8, 2, True) == GrantStatus.GENERAL_ERROR
    grant = lender.table.take_copy(8, 2, True, no_tables)
    assert (grant.start, grant.length) == (0, 4096)
    grant.drop()
    lender.grant(8, TRANSITIVE)
    assert refused(lender.table.take_copy, 8, 2, True, no_tables) == GrantStatus.GENERAL_ERROR


@pytest.mark.parametrize("readonly", [True, False])
def test_what_is_passed_on(readonly: bool) -> None:
    owner, between = Lender2(3), Lender2(1)
    tables = {3: owner.table, 1: between.table}
    owner.put(20, PERMIT | SUB_PAGE, 1, (8).to_bytes(2, "little") + (16).to_bytes(2, "little"), 0x999)
    between.pass_on(8, 3, 20)
    assert refused(between.table.take, 8, 2, readonly) == GrantStatus.GENERAL_ERROR, "never mapped"
    grant = between.table.take_copy(8, 2, readonly, tables.get)
    assert (grant.owner, grant.frame, grant.start, grant.length) == (3, 0x999, 8, 16)
    bits = READING if readonly else READING | WRITING
    assert (between.status(8), owner.status(20)) == (bits, bits)
    grant.drop()
    assert (between.status(8), owner.status(20)) == (0, 0)
    assert not list(owner.table.active_mappings())


def test_passing_on_ends_after_one_step() -> None:
    first, second, third = Lender2(1), Lender2(3), Lender2(4)
    tables = {1: first.table, 3: second.table, 4: third.table}
    third.full(9, domid=3)
    second.pass_on(9, 4, 9, to=1)
    first.pass_on(8, 3, 9)  # leads to an entry that is passed on itself
    first.pass_on(10, 1, 10)  # to itself
    first.pass_on(11, 3, 11)
    second.pass_on(11, 1, 11, to=1)  # and back: a loop
    first.pass_on(12, 77, 1)  # nowhere
    first.pass_on(13, 3, 1 << 31)  # beyond the table
    first.pass_on(14, 3, 30, flags=TRANSITIVE | READONLY)
    second.full(30, domid=1)
    first.pass_on(15, 3, 31)
    second.full(31, domid=2)  # granted to us, not to who passes it on
    for ref in (8, 10, 11, 12, 15):
        assert refused(first.table.take_copy, ref, 2, True, tables.get) == GrantStatus.GENERAL_ERROR, ref
    assert refused(first.table.take_copy, 13, 2, True, tables.get) == GrantStatus.BAD_GNTREF
    assert refused(first.table.take_copy, 14, 2, False, tables.get) == GrantStatus.GENERAL_ERROR
    assert refused(first.table.take_copy, 8, 3, True, tables.get) == GrantStatus.GENERAL_ERROR
    first.table.take_copy(14, 2, True, tables.get).drop()
    for lender in (first, second, third):
        assert not list(lender.table.active_mappings())
        assert not any(lender.page(lender.table.status_frames[0]).bytes)


def test_swapping_takes_the_statuses_along(lender: Lender2) -> None:
    lender.full(8, frame=0x111)
    lender.part(9, 1, 2)
    lender.table.swap(8, 9)
    assert lender.flags(8) == PERMIT | SUB_PAGE
    assert lender.table.take(9, 2, True) == 0x111
    assert refused(lender.table.swap, 8, 9) == GrantStatus.EAGAIN
    lender.table.swap(9, 9)
    assert refused(lender.table.swap, 8, 256) == GrantStatus.BAD_GNTREF


@pytest.mark.parametrize("version", [1, 2])
def test_transfer(version: int) -> None:
    lender = Lender()
    lender.table.set_version(version)
    size = 8 * version
    page, at = lender.pages[0], 8 * size

    def entry(flags: int, domid: int = 2) -> None:
        page.write_u16(at + 2, domid)
        (page.write_u32 if version == 1 else page.write_u64)(at + 4 * version, 0x55)
        page.write_u16(at, flags)

    for flags, domid in [(PERMIT, 2), (ACCEPT | 4, 2), (ACCEPT | 8, 2), (ACCEPT, 3), (0, 2)]:
        entry(flags, domid)
        assert refused(lender.table.accept_transfer, 8, 2) == GrantStatus.GENERAL_ERROR
        assert page.read_u16(at) == flags
    assert refused(lender.table.accept_transfer, 1 << 31, 2) == GrantStatus.GENERAL_ERROR
    entry(ACCEPT)
    lender.table.accept_transfer(8, 2)
    assert page.read_u16(at) == ACCEPT | 4
    assert lender.table.complete_transfer(8, Mfn(0x777)) == 0x55
    assert page.read_u16(at) == ACCEPT | 4 | 8
    assert page.read_u32(at + 4 * version) == 0x777
    assert refused(lender.table.accept_transfer, 8, 2) == GrantStatus.GENERAL_ERROR, "only once"


def test_death_gives_back_everything(lender: Lender2) -> None:
    table: GrantTable = lender.table
    table.setup(10)
    lender.full(2000)
    table.take(2000, 2, readonly=False)
    mine = table.shared_frames
    assert len(mine) == 12
    assert sorted(table.destroy()) == sorted(mine)
    assert (table.entries, table.shared_frames) == (0, [])
    table.drop(2000, readonly=False)
    assert not list(table.active_mappings())


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["map", "copy", "end", "version", "entry"]),
        st.integers(0, 11), st.booleans(), st.integers(0, 0x1FF), st.integers(1, 2),
    ),
    max_size=40,
)  # fmt: skip


@given(STEPS)
def test_the_bits_say_what_is_in_use(steps: list[tuple[str, int, bool, int, int]]) -> None:
    """Whatever the guest writes and whenever it changes the version, statuses follow the accounts."""
    lender = Either()
    table, held = lender.table, []
    for what, ref, readonly, flags, version in steps:
        try:
            if what == "map":
                table.take(ref, 2, readonly, MapFlag.HOST)
                held.append((ref, readonly))
            elif what == "copy":
                table.take_copy(ref, 2, readonly, no_tables).drop()
            elif what == "end" and held:
                table.drop(*held.pop())
            elif what == "version":
                table.set_version(version)
            elif ref not in {each for each, _ in held}:
                raw = (flags & ~(READING | WRITING)).to_bytes(2, "little") + b"\x02\x00"
                lender.pages[0].write(ref * 8 * table.version, raw.ljust(8 * table.version, b"\0"))
        except (GrantError, XenError):
            pass
        uses = Counter(held)
        assert all(count <= MAX_PINS for count in uses.values())
        for each in range(12):
            expected = (READING if uses[each, True] or uses[each, False] else 0) | (
                WRITING if uses[each, False] else 0
            )
            assert lender.in_use(each) == expected
        assert {each for each, _ in table.active_mappings()} == {each for each, _ in held}
