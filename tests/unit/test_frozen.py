# SPDX-License-Identifier: GPL-2.0-only
"""Frozen classes: made, compared, hashed and shown as data classes are."""

import dataclasses

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.frozen import frozen


@frozen
class _Range:
    """Two numbers and a note."""

    first: int
    last: int = 7
    note: str = dataclasses.field(default="", compare=False, repr=False)


@frozen(by_identity=True)
class _Alone:
    """Equal to itself only."""

    first: int


@frozen(kw_only=True, slots=False)
class _Other:
    first: int

    def __repr__(self) -> str:
        return "other"


@dataclasses.dataclass(frozen=True, slots=True)
class _Reference:
    first: int
    last: int = 7
    note: str = dataclasses.field(default="", compare=False, repr=False)


_RANGES = st.tuples(st.integers(0, 3), st.integers(0, 3), st.text(max_size=1))


@given(_RANGES, _RANGES)
def test_they_compare_and_hash_by_their_fields_as_data_classes_do(
    one: tuple[int, int, str], other: tuple[int, int, str]
) -> None:
    ours, theirs = (_Range(*one), _Range(*other)), (_Reference(*one), _Reference(*other))
    assert (ours[0] == ours[1]) is (theirs[0] == theirs[1])
    assert hash(ours[0]) == hash(theirs[0])
    assert repr(ours[0]) == repr(theirs[0]).replace("_Reference", "_Range")
    assert dataclasses.replace(ours[0], last=9) == _Range(one[0], 9)
    assert ours[0] != object()


def test_there_are_slots_and_defaults() -> None:
    assert _Range(1) == _Range(1, 7)
    with pytest.raises(AttributeError):
        object.__setattr__(_Range(1), "more", 1)
    with pytest.raises(TypeError):
        _Range()  # type: ignore[call-arg]


def test_identity_and_what_a_class_has_itself() -> None:
    assert _Alone(1) != _Alone(1)
    assert repr(_Other(first=1)) == "other"
    assert _Other(first=1) == _Other(first=1)
    assert vars(_Other(first=1)) == {"first": 1}
