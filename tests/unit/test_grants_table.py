# SPDX-License-Identifier: GPL-2.0-only
"""Grant tables: what a lender's entries allow, and the accounts of what is in use."""

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.abi.grants import GrantStatus, MapFlag
from pyhv.address import Mfn
from pyhv.grants.status import GrantError
from pyhv.grants.table import MAX_PINS, GrantTable
from pyhv.testing.shared_pages import BytesPage

HOST, DEVICE = MapFlag.HOST, MapFlag.DEVICE


class Lender:
    """A domain 1 with its table, and the guest's view of the entries."""

    def __init__(self, max_frames: int = 64, memory: int = 1000) -> None:
        self.pages: list[BytesPage] = []
        self.memory = memory
        self.in_guest: set[int] = set()
        self.released: list[int] = []
        self.table = GrantTable(1, self, max_frames)

    def allocate(self) -> BytesPage | None:
        if len(self.pages) >= self.memory:
            return None
        self.pages.append(BytesPage(0x100 + len(self.pages)))
        return self.pages[-1]

    def page(self, mfn: Mfn) -> BytesPage | None:
        return next((page for page in self.pages if page.mfn == mfn), None)

    def is_mapped(self, mfn: int) -> bool:
        return mfn in self.in_guest

    def drop(self, mfn: int) -> None:
        self.released.append(mfn)
        self.pages = [page for page in self.pages if page.mfn != mfn]

    def grant(self, ref: int, flags: int, domid: int = 2, frame: int = 0x777) -> None:
        page, at = self.pages[ref // 512], ref % 512 * 8
        page.write_u16(at + 2, domid)
        page.write_u32(at + 4, frame)
        page.write_u16(at, flags)

    def flags(self, ref: int) -> int:
        return self.pages[ref // 512].read_u16(ref % 512 * 8)


@pytest.fixture
def lender() -> Lender:
    return Lender()


def refused(
    lender: Lender, ref: int, by: int = 2, readonly: bool = False, halves: MapFlag = HOST
) -> GrantStatus:
    with pytest.raises(GrantError) as refusal:
        lender.table.take(ref, by, readonly, halves)
    return refusal.value.status


@pytest.mark.promise("L-3")
def test_size(lender: Lender) -> None:
    table = lender.table
    assert table.query() == (1, 64)
    assert table.setup(3) == [0x100, 0x101, 0x102]
    assert table.setup(1) == [0x100], "a table never shrinks"
    assert table.setup(0) == []
    assert table.query() == (3, 64)
    assert len(table.setup(64)) == 64
    assert table.entries == 32768
    for bad in (65, -1, 1 << 32):
        with pytest.raises(GrantError) as refusal:
            table.setup(bad)
        assert refusal.value.status == GrantStatus.GENERAL_ERROR
    assert len(lender.pages) == 64


@pytest.mark.promise("L-3")
def test_no_memory() -> None:
    lender = Lender(memory=2)
    with pytest.raises(GrantError) as refusal:
        lender.table.setup(3)
    assert refusal.value.status == -1
    assert len(lender.table.setup(2)) == 2


def test_reserved_entries(lender: Lender) -> None:
    lender.table.reserve(1, 0, Mfn(0xABC))
    assert bytes(lender.pages[0].bytes[8:16]) == bytes.fromhex("0100 0000 bc0a0000")
    assert lender.table.take(1, 0, readonly=False) == 0xABC


def test_use_marks_the_entry(lender: Lender) -> None:
    lender.grant(8, 1)
    assert lender.table.take(8, 2, readonly=True) == 0x777
    assert lender.flags(8) == 1 | 8
    assert lender.table.take(8, 2, readonly=False) == 0x777
    assert lender.flags(8) == 1 | 8 | 16
    lender.table.drop(8, readonly=False)
    assert lender.flags(8) == 1 | 8
    lender.table.drop(8, readonly=True)
    assert lender.flags(8) == 1
    assert lender.table.loan(8) is None


def test_the_guests_other_flags_survive(lender: Lender) -> None:
    lender.grant(8, 0xFE00 | 0xE0 | 1)
    lender.table.take(8, 2, readonly=False)
    assert lender.flags(8) == 0xFE00 | 0xE0 | 1 | 8 | 16
    lender.table.drop(8, readonly=False)
    assert lender.flags(8) == 0xFE00 | 0xE0 | 1


def test_halves_are_counted_apart(lender: Lender) -> None:
    lender.grant(8, 1)
    lender.table.take(8, 2, False, HOST | DEVICE)
    lender.table.drop(8, False, HOST)
    assert lender.flags(8) == 25
    with pytest.raises(ValueError, match="not in use that way"):
        lender.table.drop(8, False, HOST)
    with pytest.raises(ValueError, match="not in use that way"):
        lender.table.drop(8, True, DEVICE)
    lender.table.drop(8, False, DEVICE)
    assert lender.flags(8) == 1


def test_refusals_in_order(lender: Lender) -> None:
    lender.grant(9, 1 | 4)
    lender.grant(10, 2)
    lender.grant(11, 3)
    lender.grant(12, 1 | 256)
    assert refused(lender, 512, halves=MapFlag.READONLY) == GrantStatus.BAD_GNTREF
    assert refused(lender, 512) == GrantStatus.BAD_GNTREF
    assert refused(lender, (1 << 32) - 1) == GrantStatus.BAD_GNTREF
    assert refused(lender, -1) == GrantStatus.BAD_GNTREF
    assert refused(lender, 8) == GrantStatus.GENERAL_ERROR, "an empty entry within the table"
    for ref in (10, 11, 12):
        assert refused(lender, ref, readonly=True) == GrantStatus.GENERAL_ERROR
    assert refused(lender, 9, by=3, readonly=True) == GrantStatus.GENERAL_ERROR
    assert refused(lender, 9) == GrantStatus.GENERAL_ERROR, "read-only"
    assert lender.flags(9) == 5
    assert list(lender.table.active_mappings()) == []
    lender.table.take(9, 2, readonly=True)
    assert refused(lender, 9) == GrantStatus.GENERAL_ERROR
    assert lender.flags(9) == 5 | 8


def test_an_entry_in_use_is_not_believed_again(lender: Lender) -> None:
    lender.grant(8, 1)
    lender.table.take(8, 2, readonly=True)
    lender.grant(8, 1 | 8, domid=3, frame=0x999)
    assert lender.table.take(8, 2, readonly=True) == 0x777
    assert refused(lender, 8, by=3, readonly=True) == GrantStatus.GENERAL_ERROR
    lender.grant(8, 1 | 4 | 8)
    assert refused(lender, 8, readonly=False) == GrantStatus.GENERAL_ERROR, "made read-only meanwhile"
    lender.grant(8, 0)
    assert lender.table.take(8, 2, readonly=True) == 0x777
    for _ in range(3):
        lender.table.drop(8, readonly=True)
    lender.grant(8, 1, domid=3, frame=0x999)
    assert lender.table.take(8, 3, readonly=True) == 0x999


def test_a_writer_is_not_stopped_by_a_late_readonly_bit(lender: Lender) -> None:
    lender.grant(8, 1)
    lender.table.take(8, 2, readonly=False)
    lender.grant(8, 1 | 4)
    assert lender.table.take(8, 2, readonly=False) == 0x777


@pytest.mark.promise("L-4")
def test_the_number_of_uses_is_limited(lender: Lender) -> None:
    lender.grant(8, 1)
    for _ in range(MAX_PINS):
        lender.table.take(8, 2, readonly=True)
    assert refused(lender, 8, readonly=True) == GrantStatus.GENERAL_ERROR
    assert refused(lender, 8, readonly=True, halves=HOST | DEVICE) == GrantStatus.GENERAL_ERROR
    loan = lender.table.loan(8)
    assert loan is not None
    assert (loan.read_pins, loan.pins) == (MAX_PINS, MAX_PINS), "a refusal counts nothing"
    lender.table.take(8, 2, readonly=True, halves=DEVICE)


def test_swap(lender: Lender) -> None:
    lender.grant(8, 1, frame=0xA)
    lender.grant(9, 5, domid=3, frame=0xB)
    lender.table.swap(8, 9)
    assert lender.table.take(8, 3, readonly=True) == 0xB
    assert lender.table.take(9, 2, readonly=False) == 0xA
    for pair, status in [((8, 10), GrantStatus.EAGAIN), ((10, 9), GrantStatus.EAGAIN), ((8, 512), -3)]:
        with pytest.raises(GrantError) as refusal:
            lender.table.swap(*pair)
        assert refusal.value.status == status


def test_death_with_loans_outstanding(lender: Lender) -> None:
    lender.grant(8, 1)
    lender.table.take(8, 2, readonly=False)
    assert lender.table.destroy() == [0x100]
    assert lender.table.frames == []
    assert refused(lender, 8) == GrantStatus.BAD_GNTREF
    with pytest.raises(GrantError):
        lender.table.setup(1)
    assert [ref for ref, _ in lender.table.active_mappings()] == [8]
    lender.table.drop(8, readonly=False)
    assert list(lender.table.active_mappings()) == []


USE = st.tuples(
    st.sampled_from(["take", "take", "drop", "regrant"]),
    st.integers(7, 11),
    st.integers(1, 3),
    st.booleans(),
    st.sampled_from([MapFlag(0), HOST, DEVICE, HOST | DEVICE]),
)


@given(st.lists(USE, max_size=80))
@settings(deadline=None)
def test_the_bits_in_the_entry_say_what_is_pinned(steps: list[tuple[str, int, int, bool, MapFlag]]) -> None:
    lender = Lender()
    for ref in range(8, 11):
        lender.grant(ref, 1 | (4 if ref == 10 else 0))
    uses: Counter[tuple[int, bool, MapFlag]] = Counter()
    for what, ref, domid, readonly, halves in steps:
        chosen = [half for half in (HOST, DEVICE) if half & halves]
        if what == "take":
            try:
                lender.table.take(ref, domid, readonly, halves)
            except GrantError:
                pass
            else:
                assert domid == 2
                uses.update((ref, readonly, half) for half in chosen)
        elif what == "drop":
            if chosen and all(uses[ref, readonly, half] for half in chosen):
                lender.table.drop(ref, readonly, halves)
                uses.subtract((ref, readonly, half) for half in chosen)
            elif chosen:
                with pytest.raises(ValueError, match="not in use"):
                    lender.table.drop(ref, readonly, halves)
        elif 8 <= ref <= 10 and lender.table.loan(ref) is None:
            lender.grant(ref, 1 | (4 if readonly else 0))
        for entry in range(7, 12):
            reads = sum(uses[entry, True, half] for half in (HOST, DEVICE))
            writes = sum(uses[entry, False, half] for half in (HOST, DEVICE))
            assert bool(lender.flags(entry) & 8) == (reads + writes > 0)
            assert bool(lender.flags(entry) & 16) == (writes > 0)
            loan = lender.table.loan(entry)
            assert (loan.read_pins, loan.write_pins) == (reads, writes) if loan else not reads + writes


@pytest.mark.promise("I-7")
@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 0xFFFF), st.integers(0, 3), st.booleans()), max_size=60)
)
def test_no_guest_write_breaks_the_account(steps: list[tuple[bool, int, int, bool]]) -> None:
    lender, mine = Lender(), Counter[bool]()
    for write, flags, domid, readonly in steps:
        if write:
            lender.grant(8, flags, domid, flags)
            continue
        try:
            lender.table.take(8, 2, readonly)
        except GrantError:
            pass
        else:
            mine[readonly] += 1
    for readonly, times in mine.items():
        for _ in range(times):
            lender.table.drop(8, readonly)
    assert lender.table.loan(8) is None
    assert not mine or not lender.flags(8) & 8
