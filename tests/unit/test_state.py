# SPDX-License-Identifier: GPL-2.0-only
"""State as plain data: what is said is what is restored, and nothing else is believed."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar, NamedTuple

import pytest
from hypothesis import given as gives
from hypothesis import strategies as st

from pyhv.abi.layout import s32, u8, u64
from pyhv.address import Mfn
from pyhv.errors import StateError
from pyhv.state import Plain, Role, cache, construct, given, refusal, restore, roles, state, unexplained


class Colour(enum.IntEnum):
    RED = 1
    GREEN = 2


class Pair(NamedTuple):
    left: int
    right: str


@dataclass(frozen=True)
class Fixed:
    number: int = 0


@dataclass(slots=True)
class Part:
    byte: u8 = 0
    words: list[u64] = field(default_factory=list)


class Odd:
    """No dataclass: it says its own state."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {"_owner": "given"}

    def __init__(self) -> None:
        self._owner = object()
        self._count = 0

    def state(self) -> dict[str, Plain]:
        return {"count": self._count}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        found = saved.get("count")
        if not isinstance(found, int):
            raise refusal("count", "is no number")
        self._count = found


@dataclass(slots=True)
class Whole:
    owner: object = given("who made it")
    part: Part = field(default_factory=Part)
    odd: Odd = field(default_factory=Odd)
    fixed: Fixed = field(default_factory=Fixed)
    colour: Colour = Colour.RED
    frame: Mfn = Mfn(0)
    delta: s32 = 0
    dial: Annotated[int, range(-5, 6)] = 0
    three: Annotated[list[u8], 3] = field(default_factory=lambda: [1, 2, 3])
    on: bool = False
    name: str = ""
    image: bytearray = field(default_factory=bytearray)
    maybe: int | None = None
    digest: Annotated[bytes, 4] = bytes(4)
    ports: frozenset[int] | None = None
    pairs: list[Pair] = field(default_factory=list)
    both: tuple[int, bytes] = (0, b"")
    known: dict[tuple[int, int], Fixed] = field(default_factory=dict)
    seen: dict[int, int] = cache("follows from the others", default_factory=dict)


WHOLES = st.builds(
    Whole,
    owner=st.none(),
    part=st.builds(Part, byte=st.integers(0, 255), words=st.lists(st.integers(0, 2**64 - 1))),
    fixed=st.builds(Fixed, st.integers()),
    colour=st.sampled_from(Colour),
    frame=st.integers(0, 2**40),
    delta=st.integers(-(2**31), 2**31 - 1),
    dial=st.integers(-5, 5),
    three=st.lists(st.integers(0, 255), min_size=3, max_size=3),
    on=st.booleans(),
    name=st.text(),
    image=st.binary().map(bytearray),
    maybe=st.none() | st.integers(),
    digest=st.binary(min_size=4, max_size=4),
    ports=st.none() | st.frozensets(st.integers()),
    pairs=st.lists(st.builds(Pair, st.integers(), st.text())),
    both=st.tuples(st.integers(), st.binary()),
    known=st.dictionaries(st.tuples(st.integers(), st.integers()), st.builds(Fixed, st.integers())),
)


def assert_plain(value: Any) -> None:
    """Whatever a container of any kind can hold."""
    if type(value) is list:
        for item in value:
            assert_plain(item)
    elif type(value) is dict:
        for key, item in value.items():
            assert type(key) is str
            assert_plain(item)
    else:
        assert value is None or type(value) in (bool, int, str, bytes)


def without_odd(thing: Whole) -> dict[str, Any]:
    return {name: getattr(thing, name) for name in Whole.__slots__ if name not in ("odd", "owner")}


@gives(WHOLES, WHOLES)
def test_what_is_said_is_what_is_restored(thing: Whole, other: Whole) -> None:
    thing.odd._count = 7
    said = state(thing)
    assert_plain(said)
    assert "seen" not in said
    assert "owner" not in said
    part, odd = other.part, other.odd
    other.seen[1] = 1
    restore(other, said)
    assert without_odd(other) == without_odd(thing)
    assert other.odd._count == 7
    assert (other.part, other.odd) == (part, odd)
    assert other.part is part
    assert other.odd is odd
    assert other.seen == {}


@gives(WHOLES)
def test_nothing_is_shared_with_what_was_said(thing: Whole) -> None:
    said = state(thing)
    before = repr(said)
    thing.part.words.append(1)
    thing.image.append(1)
    thing.pairs.append(Pair(1, ""))
    assert repr(said) == before
    restore(thing, said)
    thing.part.words.append(1)
    assert repr(said) == before


def test_a_new_object_from_what_was_said() -> None:
    assert construct(Part, {"byte": 3, "words": [1, 2]}) == Part(3, [1, 2])


@pytest.mark.parametrize(
    ("name", "value", "told"),
    [
        ("frame", "1", "frame is not of the type int"),
        ("on", 1, "on is not of the type bool"),
        ("maybe", True, "maybe is not of the type int"),
        ("delta", 2**31, "delta is 2147483648, which is not in"),
        ("dial", 6, "dial is 6, which is not in -5..5"),
        ("dial", "", "dial is not of the type int"),
        ("three", [1, 2], "three is not a list of 3"),
        ("three", [1, 2, 256], "three.2 is 256"),
        ("colour", 3, "colour is no Colour"),
        ("part", {"byte": 256, "words": []}, "part.byte is 256"),
        ("part", {"byte": 1, "words": [0, -1]}, "part.words.1 is -1"),
        ("part", {"byte": 1}, "part should not have, or lacks, 'words'"),
        ("part", None, "part is not a table of names"),
        ("part", {1: 1}, "part is not a table of names"),
        ("odd", {"count": ""}, "odd.count is no number"),
        ("ports", {}, "ports is not a list"),
        ("digest", b"123", "digest is not 4 bytes"),
        ("digest", "1234", "digest is not 4 bytes"),
        ("pairs", [[1]], "pairs.0 is not a list of 2"),
        ("known", [[[1, 2], {"number": b""}]], "known.0.1.number is not of the type int"),
    ],
)
def test_what_cannot_be_is_refused(name: str, value: Any, told: str) -> None:
    said: dict[str, Any] = state(Whole(None))
    with pytest.raises(StateError) as refused:
        restore(Whole(None), said | {name: value})
    assert told in str(refused.value)


@pytest.mark.promise("S-6")
def test_every_attribute_is_explained() -> None:
    assert unexplained(Whole(None)) == []
    assert unexplained(Odd()) == []
    assert roles(Whole)["seen"] == (Role.CACHE, "follows from the others")
    assert roles(Whole)["owner"].role is Role.GIVEN
    odd = Odd()
    odd.forgotten = 1  # type: ignore[attr-defined]
    assert unexplained(odd) == ["forgotten"]


def test_what_says_nothing_is_noticed() -> None:
    @dataclass
    class Holder:
        held: object = None

    with pytest.raises(TypeError):
        state(Holder())
    with pytest.raises(TypeError):
        state(object())
