# SPDX-License-Identifier: GPL-2.0-only
"""The saved state of grants: a table and handles that were rebuilt go on as those that were saved."""

import copy
from collections import Counter
from typing import Any, cast

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.abi.grants import MapFlag
from pyhv.address import Mfn
from pyhv.errors import StateError, XenError
from pyhv.grants.maptrack import Mapping, Maptrack
from pyhv.grants.status import GrantError
from pyhv.grants.table import GrantTable, SharedPages
from pyhv.state import Plain, restore
from pyhv.testing.saving import assert_restored, packed, unexplained_from

HOST, DEVICE = MapFlag.HOST, MapFlag.DEVICE


class Frame:
    def __init__(self, mfn: int, memory: bytearray) -> None:
        self.mfn, self.memory = Mfn(mfn), memory

    def read(self, offset: int, length: int) -> bytes:
        return bytes(self.memory[offset : offset + length])

    def write(self, offset: int, data: bytes) -> None:
        self.memory[offset : offset + len(data)] = data

    def read_u16(self, offset: int) -> int:
        return int.from_bytes(self.read(offset, 2), "little")

    def write_u16(self, offset: int, value: int) -> None:
        self.write(offset, value.to_bytes(2, "little"))

    def read_u32(self, offset: int) -> int:
        return int.from_bytes(self.read(offset, 4), "little")

    def write_u32(self, offset: int, value: int) -> None:
        self.write(offset, value.to_bytes(4, "little"))

    def read_u64(self, offset: int) -> int:
        return int.from_bytes(self.read(offset, 8), "little")

    def write_u64(self, offset: int, value: int) -> None:
        self.write(offset, value.to_bytes(8, "little"))


class Lender:
    """Domain 1: memory that its table's frames come from, and the table."""

    def __init__(self) -> None:
        self.memory: dict[int, bytearray] = {}
        self.in_guest: set[int] = set()
        self.table = GrantTable(1, cast(SharedPages, self), max_frames=4)

    def allocate(self) -> Frame | None:
        mfn = next(mfn for mfn in range(0x100, 0x200) if mfn not in self.memory)
        self.memory[mfn] = bytearray(4096)
        return Frame(mfn, self.memory[mfn])

    def is_mapped(self, mfn: Mfn) -> bool:
        return mfn in self.in_guest

    def drop(self, mfn: Mfn) -> None:
        del self.memory[mfn]

    def page(self, mfn: Mfn) -> Frame | None:
        return Frame(mfn, self.memory[mfn]) if mfn in self.memory else None

    def rebuild(self) -> "Lender":
        other = Lender()
        other.memory, other.in_guest = copy.deepcopy(self.memory), set(self.in_guest)
        assert_restored(self.table, other.table)
        return other

    def perform(self, step: tuple[Any, ...]) -> object:
        what, ref, domid, readonly, halves, number = step
        table = self.table
        try:
            if what == "entry":
                return self.write(ref, number & 0x107 | 1, domid, number)
            if what == "copy":
                grant = table.take_copy(ref, domid, readonly, lambda domid: None)
                grant.drop()
                return grant.start, grant.length, grant.frame
            calls: dict[str, Any] = {
                "take": lambda: table.take(ref, domid, readonly, halves),
                "drop": lambda: table.drop(ref, readonly, halves),
                "grow": lambda: table.setup(number % 6),
                "version": lambda: table.set_version(number % 3),
                "swap": lambda: table.swap(ref, number % 12),
                "accept": lambda: table.accept_transfer(ref, domid),
                "map": lambda: self.in_guest.symmetric_difference_update([0x100 + number % 8]),
                "destroy": lambda: [self.drop(mfn) for mfn in table.destroy()] if number == 0 else None,
            }
            return calls[what]()
        except (GrantError, XenError, ValueError) as error:
            return str(error)

    def write(self, ref: int, flags: int, domid: int, number: int) -> None:
        """What a guest would."""
        size = 8 * self.table.version
        for mfn in self.table.frames[:1]:
            raw = (flags | domid << 16).to_bytes(4, "little") + number.to_bytes(4, "little")
            self.memory[mfn][ref * size : ref * size + size] = (raw + raw)[:size]


STEPS = st.lists(
    st.tuples(
        st.sampled_from(
            ["entry", "entry", "take", "take", "copy", "drop", "grow", "version", "swap", "accept"],
        )
        | st.sampled_from(["map", "destroy"]),
        st.integers(7, 11),
        st.sampled_from([2, 2, 3]),
        st.booleans(),
        st.sampled_from([HOST, DEVICE, HOST | DEVICE]),
        st.integers(0, 0x1FF),
    ),
    max_size=40,
)


@settings(deadline=None)
@given(STEPS, STEPS)
def test_a_rebuilt_table_goes_on_as_the_saved_one(before: list[Any], after: list[Any]) -> None:
    lender = Lender()
    for step in before:
        lender.perform(step)
    other = lender.rebuild()
    assert unexplained_from(lender.table) == []
    for step in after:
        assert other.perform(step) == lender.perform(step)
    assert packed(other.table) == packed(lender.table)
    assert other.memory == lender.memory


def a_loan() -> Lender:
    lender = Lender()
    lender.write(8, 1, 2, 0x777)
    lender.table.take(8, 2, False, HOST)
    return lender


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("max_frames",), 5, "version or max_frames is not possible"),
        (("version",), 3, "version or max_frames is not possible"),
        (("version",), 2, "frames and status do not go together"),
        (("frames",), [0x100] * 5, "frames and status do not go together"),
        (("frames",), [0x1FF], "frames has a frame that is not shared"),
        (("frames",), [-1], "frames has a frame that is not shared"),
        (("frames",), [0x100, 0x100], "frames has a frame twice"),
        (("loans", 0, 1, "writers"), [[2, 0], [1, 0]], "loans.8 is in use never"),
        (("loans", 0, 1, "writers"), [[2, 129], [1, 0]], "loans.8 is in use never, or too often"),
        (("loans", 0, 1, "readers"), [[2, -1], [1, 1]], "loans.8 is in use never, or too often"),
        (("loans", 0, 1, "readers"), [[4, 1]], "loans.8 does not count both halves"),
    ],
)
def test_what_no_table_can_have_been_is_refused(path: tuple[Any, ...], value: Any, told: str) -> None:
    saved: Any = packed(a_loan().table)
    at = saved
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(StateError) as refused:
        restore(Lender().table, saved)
    assert told in str(refused.value)


# -- handles -----------------------------------------------------------------------------------------------

HANDLES = st.lists(
    st.tuples(st.integers(0, 8), st.sampled_from([HOST, DEVICE, HOST | DEVICE]), st.integers(1, 4)),
    max_size=40,
)


def borrow(track: Maptrack, steps: list[tuple[int, MapFlag, int]]) -> list[object]:
    answers: list[object] = []
    for handle, halves, frame in steps:
        try:
            answers.append(track.end(handle, halves))
        except GrantError:
            flags = MapFlag(halves | 0x80 | (MapFlag.READONLY if frame == 2 else 0))
            answers.append(track.add(Mapping(1, frame, flags, Mfn(frame))))
        answers += [track.borrows(frame), len(track)]
    return answers


@given(HANDLES, HANDLES)
def test_rebuilt_handles_go_on_as_the_saved_ones(before: list[Any], after: list[Any]) -> None:
    track, other = Maptrack(), Maptrack()
    borrow(track, before)
    assert_restored(track, other)
    assert unexplained_from(track, other) == []
    assert Counter(dict(other.all())) == Counter(dict(track.all()))
    assert borrow(other, after) == borrow(track, after)
    assert packed(other) == packed(track)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"unused": 0}, "unused does not go"),
        ({"unused": 300}, "unused does not go"),
        ({"mappings": [[0, {"granter": 1, "ref": 8, "flags": 4, "frame": 7}]]}, "mappings.0 has no half"),
        ({"mappings": [[0, {"granter": 1, "ref": 8, "flags": 2, "frame": ""}]]}, "mappings.0.1.frame is not"),
    ],
)
def test_what_no_handles_can_have_been_is_refused(change: dict[str, Plain], told: str) -> None:
    track = Maptrack(max_frames=1)
    track.add(Mapping(1, 8, HOST, Mfn(7)))
    with pytest.raises(StateError) as refused:
        restore(Maptrack(max_frames=1), {**track.state(), **change})
    assert told in str(refused.value)
