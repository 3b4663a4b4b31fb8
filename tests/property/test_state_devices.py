# SPDX-License-Identifier: GPL-2.0-only
"""The saved state of rings and timers: what was rebuilt goes on as what was saved."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.abi.xs_wire import Message
from pyhv.devices.console import ConsoleRing
from pyhv.devices.ring import ByteRing, RingBroken
from pyhv.devices.xenstore_ring import XenstoreRing
from pyhv.errors import StateError
from pyhv.events.timers import TimerQueue
from pyhv.services import Timer, TimerKey
from pyhv.state import restore
from pyhv.testing.saving import assert_restored, packed, unexplained_from
from pyhv.testing.shared_pages import BytesPage
from pyhv.xenstore.store import Store
from pyhv.xenstore.wire import Connection, encode

HOME = "/local/domain/1"


class World:
    """A guest's two pages, and who serves them."""

    def __init__(self) -> None:
        self.console_page, self.store_page = BytesPage(1), BytesPage(2)
        self.rung: list[str] = []
        self.console = ConsoleRing(self.console_page, lambda: self.rung.append("console"))
        self.store = Store()
        self.store.mkdir(HOME)
        self.store.set_permissions(HOME, ["b1"])
        self.connection = Connection(self.store, 1)
        self.ring = XenstoreRing(self.store_page, self.connection, lambda: self.rung.append("store"))

    def parts(self) -> list[Any]:
        return [self.console, self.connection, self.store, self.ring]

    def saved(self) -> list[Any]:
        return [packed(part) for part in self.parts()]

    def rebuild(self) -> "World":
        """The pages come last: who is built writes to them."""
        other = World()
        for mine, its in zip(self.parts(), other.parts(), strict=True):
            assert_restored(mine, its)
        other.console_page.bytes[:] = self.console_page.bytes
        other.store_page.bytes[:] = self.store_page.bytes
        return other

    def perform(self, step: tuple[str, int, bytes]) -> object:
        what, number, data = step
        calls: dict[str, Any] = {
            "print": lambda: ByteRing(self.console_page, 1024, 2048, 3080, 3084).write(data * (number % 40)),
            "drain": self.console.drain,
            "settle": self.console.settle,
            "type": lambda: self.console.feed(data * (number % 20)),
            "ask": lambda: ByteRing(self.store_page, 0, 1024, 2048, 2052).write(
                REQUESTS[number % len(REQUESTS)]
            ),
            "chop": lambda: self.ask(REQUESTS[0][:number]),
            "serve": self.ring.service,
            "answer": lambda: ByteRing(self.store_page, 1024, 1024, 2056, 2060).read(number),
            "change": lambda: self.store.write(f"{HOME}/a", number),
            "reconnect": lambda: self.store_page.write_u32(2068, 1),
            "nonsense": lambda: self.spoil(number),
        }
        self.rung.clear()
        answer = calls[what]()
        return answer, list(self.rung), self.console.broken, self.ring.broken, self.connection.alive

    def ask(self, request: bytes) -> int:
        return ByteRing(self.store_page, 0, 1024, 2048, 2052).write(request)

    def spoil(self, number: int) -> None:
        if number % 2:
            self.store_page.write_u32(2048, number << 20)
        else:
            self.console_page.write_u32(3080, number << 20)


REQUESTS = [
    encode(Message.WATCH, 1, 0, b"a\0token\0"),
    encode(Message.WRITE, 2, 0, b"a\0value"),
    encode(Message.READ, 3, 0, b"a\0"),
    encode(Message.DIRECTORY, 4, 0, b"/\0"),
]
OFTEN = ("print", "drain", "settle", "type", "ask", "ask", "serve", "serve", "answer", "change")
STEPS = st.lists(
    st.tuples(
        st.sampled_from(OFTEN) | st.sampled_from([*OFTEN, "chop", "reconnect", "nonsense"]),
        st.integers(0, 200),
        st.binary(min_size=1, max_size=60),
    ),
    max_size=30,
)


@given(STEPS, STEPS)
def test_rebuilt_rings_go_on_as_the_saved_ones(before: list[Any], after: list[Any]) -> None:
    world = World()
    for step in before:
        safely(world, step)
    other = world.rebuild()
    assert unexplained_from(*world.parts()) == []
    for step in after:
        assert safely(other, step) == safely(world, step)
    assert other.saved() == world.saved()
    assert other.console_page.bytes == world.console_page.bytes
    assert other.store_page.bytes == world.store_page.bytes


def safely(world: World, step: tuple[str, int, bytes]) -> object:
    """The guest's side of a ring that it has spoilt refuses too."""
    try:
        return world.perform(step)
    except RingBroken as broken:
        return str(broken)


TIMERS = st.lists(
    st.tuples(
        st.sampled_from(["arm", "arm", "arm", "cancel", "expire"]),
        st.sampled_from(Timer),
        st.integers(0, 2),
        st.integers(0, 30),
    ),
    max_size=60,
)


def tick(timers: TimerQueue[TimerKey], steps: Any) -> list[object]:
    seen: list[object] = []
    for what, kind, number, when in steps:
        key = (kind, 1, number)
        if what == "arm":
            timers.arm(key, when)
        elif what == "cancel":
            seen.append(timers.cancel(key))
        else:
            seen.append(timers.expire(when))
        seen += [timers.next_deadline(), timers.deadline(key), len(timers)]
    return seen


@given(TIMERS, TIMERS)
def test_rebuilt_timers_expire_as_the_saved_ones(before: list[Any], after: list[Any]) -> None:
    timers: TimerQueue[TimerKey] = TimerQueue(TimerKey)
    other: TimerQueue[TimerKey] = TimerQueue(TimerKey)
    tick(timers, before)
    tick(other, after)
    assert_restored(timers, other)
    assert unexplained_from(timers) == []
    assert tick(other, after) == tick(timers, after)
    assert all(type(kind) is Timer for kind, _, _ in other)


@pytest.mark.parametrize(
    ("armed", "told"),
    [
        ([[[9, 1, 0], 5]], "armed.0.0 is no Timer"),
        ([[[0, 1, 0], -5]], "armed.0 is -5"),
        ([[[0, 1, 0], 5], [[0, 1, 0], 6]], "armed.1 is the second timer of one key"),
        ([[0, 1]], "armed.0 is not a list of 3"),
        (None, "armed is not a list"),
    ],
)
def test_what_no_timers_can_have_been_is_refused(armed: Any, told: str) -> None:
    with pytest.raises(StateError) as refused:
        restore(TimerQueue(TimerKey), {"armed": armed})
    assert told in str(refused.value)


def test_what_is_owed_to_a_guest_is_not_forgotten() -> None:
    world = World()
    for step in (("print", 1, b"x"), ("drain", 0, b"")):
        world.perform(step)
    assert world.console.state()["unheard"]
    other = world.rebuild()
    assert other.perform(("settle", 0, b"")) == world.perform(("settle", 0, b""))
    assert other.rung == ["console"]
