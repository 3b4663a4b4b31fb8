# SPDX-License-Identifier: GPL-2.0-only
"""The byte rings, the console page and the xenstore page, with a byte array for a guest's frame."""

from collections import deque
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.abi.xs_wire import Message
from pyhv.devices.console import ConsoleRing
from pyhv.devices.ring import ByteRing, RingBroken
from pyhv.devices.xenstore_ring import XenstoreRing
from pyhv.testing.shared_pages import BytesPage
from pyhv.xenstore.store import Store
from pyhv.xenstore.wire import HEADER, Connection, encode


class Bell:
    def __init__(self) -> None:
        self.rung = 0

    def __call__(self) -> None:
        self.rung += 1


# ---- ByteRing


def small_ring(start: int) -> tuple[BytesPage, ByteRing]:
    page = BytesPage()
    page.write_u32(64, start)
    page.write_u32(68, start)
    return page, ByteRing(page, 0, 16, 64, 68)


@given(
    st.integers(0, 2**32 - 1),
    st.lists(st.one_of(st.binary(max_size=20), st.integers(0, 20))),
)
def test_a_ring_is_a_queue_of_bytes(start: int, operations: list[Any]) -> None:
    _, ring = small_ring(start)
    model: deque[int] = deque()
    for operation in operations:
        if isinstance(operation, bytes):
            count = ring.write(operation)
            assert count == min(len(operation), 16 - len(model))
            model.extend(operation[:count])
        else:
            expected = bytes(model.popleft() for _ in range(min(operation, len(model))))
            assert ring.read(operation) == expected
        assert ring.used() == len(model)
        assert ring.free() == 16 - len(model)
    assert ring.read() == bytes(model)


def test_indices_wrap_at_32_bits() -> None:
    page, ring = small_ring(0xFFFF_FFFE)
    assert ring.write(b"abcdef") == 6
    assert page.read_u32(68) == 4
    assert ring.read() == b"abcdef"
    assert page.read_u32(64) == 4


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1))
def test_any_indices_are_either_sound_or_refused(cons: int, prod: int) -> None:
    page = BytesPage()
    ring = ByteRing(page, 0, 16, 64, 68)
    page.write_u32(64, cons)
    page.write_u32(68, prod)
    if (prod - cons) % 2**32 <= 16:
        assert len(ring.read()) == (prod - cons) % 2**32
        return
    before = bytes(page.bytes)
    for operation in (ring.read, ring.used, ring.free, lambda: ring.write(b"x")):
        with pytest.raises(RingBroken):
            operation()
    assert page.bytes == before


def test_the_size_must_be_a_power_of_two() -> None:
    with pytest.raises(ValueError, match="power of two"):
        ByteRing(BytesPage(), 0, 24, 64, 68)


# ---- console


def test_console_output_is_drained_and_acknowledged() -> None:
    page, bell = BytesPage(), Bell()
    page.bytes[3088] = 1
    console = ConsoleRing(page, bell)
    assert page.bytes[3088] == 0
    page.write(1024, b"hello\r\n")
    page.write_u32(3084, 7)
    assert console.drain() == b"hello\r\n"
    assert page.read_u32(3080) == 7
    assert bell.rung == 0, "the guest has room enough and is running"
    console.settle()
    assert bell.rung == 1
    assert console.drain() == b""
    console.settle()
    assert bell.rung == 1


@pytest.mark.parametrize(("printed", "at_once"), [(1, 0), (1023, 0), (1024, 1), (2048, 1)])
def test_a_guest_that_may_wait_for_room_is_notified_at_once(printed: int, at_once: int) -> None:
    page, bell = BytesPage(), Bell()
    console = ConsoleRing(page, bell)
    page.write_u32(3084, printed)
    assert len(console.drain()) == printed
    assert bell.rung == at_once
    console.settle()
    assert bell.rung == 1


def test_one_notification_serves_both_directions() -> None:
    page, bell = BytesPage(), Bell()
    console = ConsoleRing(page, bell)
    page.write_u32(3084, 10)
    console.drain()
    assert console.feed(b"x") == 1
    console.settle()
    assert bell.rung == 1


def test_console_input_waits_for_room() -> None:
    page, bell = BytesPage(), Bell()
    console = ConsoleRing(page, bell)
    assert console.feed(b"x" * 1000) == 1000
    assert console.feed(b"y" * 100) == 24
    assert console.feed(b"z") == 0
    assert bell.rung == 2
    assert page.read_u32(3076) == 1024
    assert page.read(998, 4) == b"xxyy"
    page.write_u32(3072, 1000)
    assert console.feed(b"z") == 1
    assert page.read(0, 1) == b"z"


@pytest.mark.promise("L-12")
def test_console_with_nonsense_indices_moves_nothing() -> None:
    page, bell = BytesPage(), Bell()
    console = ConsoleRing(page, bell)
    page.write_u32(3084, 2049)
    page.write_u32(3072, 1)
    assert console.drain() == b""
    assert "output" in console.broken
    assert console.feed(b"x") == 0
    assert "input" in console.broken
    assert bell.rung == 0
    page.write_u32(3084, 2)
    assert console.drain() == b"\0\0"
    assert console.broken == ""


# ---- xenstore


class Guest:
    """A guest's side of its xenstore page, as careful or careless as a test wants it."""

    def __init__(self, store: Store, domid: int = 1) -> None:
        self.page, self.bell = BytesPage(), Bell()
        self.connection = Connection(store, domid)
        self.ring = XenstoreRing(self.page, self.connection, self.bell)
        self.out = ByteRing(self.page, 0, 1024, 2048, 2052)
        self.back = ByteRing(self.page, 1024, 1024, 2056, 2060)
        self.received = b""

    def send(self, *messages: bytes) -> None:
        data = b"".join(messages)
        while data:
            data = data[self.out.write(data) :]
            self.ring.service()
            self.received += self.back.read()
        while self.ring.service():
            self.received += self.back.read()
        self.received += self.back.read()

    def messages(self) -> list[tuple[int, int, int, bytes]]:
        found = []
        while self.received:
            kind, req, tx, length = HEADER.unpack_from(self.received)
            found.append((kind, req, tx, self.received[16 : 16 + length]))
            self.received = self.received[16 + length :]
        return found


def home_store() -> Store:
    store = Store()
    store.mkdir("/local/domain/1")
    store.set_permissions("/local/domain/1", ["b1"])
    return store


def test_a_request_through_the_ring() -> None:
    guest = Guest(home_store())
    assert guest.page.read_u32(2064) == 3
    guest.send(encode(Message.WRITE, 7, 0, b"a\0value"), encode(Message.READ, 8, 0, b"a\0"))
    assert guest.messages() == [(Message.WRITE, 7, 0, b"OK\0"), (Message.READ, 8, 0, b"value")]
    assert guest.bell.rung
    assert not guest.ring.service()


def test_messages_larger_than_the_ring_pass() -> None:
    store = home_store()
    store.write("/local/domain/1/big", b"v" * 4000)
    guest = Guest(store)
    guest.send(encode(Message.READ, 1, 0, b"big\0"))
    assert guest.messages() == [(Message.READ, 1, 0, b"v" * 4000)]
    guest.send(encode(Message.WRITE, 2, 0, b"mine\0" + b"w" * 1900))
    assert guest.messages() == [(Message.WRITE, 2, 0, b"OK\0")]
    assert store.read("/local/domain/1/mine") == b"w" * 1900


def test_events_caused_by_others_arrive_unasked() -> None:
    store = home_store()
    guest = Guest(store)
    guest.send(encode(Message.WATCH, 1, 0, b"a\0tok\0"))
    assert [m[0] for m in guest.messages()] == [Message.WATCH, Message.WATCH_EVENT]
    rung = guest.bell.rung
    store.write("/local/domain/1/a/b", "x")
    assert guest.bell.rung == rung + 1
    guest.received += guest.back.read()
    assert guest.messages() == [(Message.WATCH_EVENT, 0, 0, b"a/b\0tok\0")]


@pytest.mark.promise("L-11")
def test_a_guest_that_never_reads_stops_the_store_from_listening() -> None:
    store = home_store()
    store.write("/local/domain/1/big", b"v" * 1000)
    guest = Guest(store)
    request = encode(Message.READ, 1, 0, b"big\0")
    accepted = 0
    for _ in range(1000):
        accepted += guest.out.write(request)
        guest.ring.service()
    assert accepted < 8192
    assert len(guest.connection.take(10**9)) < 2048  # at most the rest of one reply


def test_a_guest_that_keeps_producing_does_not_keep_the_store() -> None:
    class Racing(BytesPage):
        """Its guest, on another CPU, sends a request and reads its reply whenever the store looks away."""

        def __init__(self) -> None:
            super().__init__()
            self.sent = 0

        def write_u32(self, offset: int, value: int) -> None:
            super().write_u32(offset, value)
            if offset == 2048 and self.sent < 500:  # req_cons: there is room again
                self.sent += 1
                ByteRing(self, 0, 1024, 2048, 2052).write(encode(Message.READ, 1, 0, b"a\0"))
                super().write_u32(2056, self.read_u32(2060))

    page = Racing()
    ring = XenstoreRing(page, Connection(home_store(), 1), Bell())
    ByteRing(page, 0, 1024, 2048, 2052).write(encode(Message.READ, 1, 0, b"a\0"))
    assert ring.service()
    assert page.sent == 1


@pytest.mark.parametrize("offset", [2048, 2052, 2056, 2060])
def test_nonsense_indices_kill_the_ring_and_say_so(offset: int) -> None:
    guest = Guest(home_store())
    guest.page.write_u32(offset, 0x8000_0000)
    assert guest.ring.service()
    assert guest.page.read_u32(2072) == 2
    assert not guest.connection.alive
    assert guest.ring.broken
    assert not guest.ring.service()


@pytest.mark.promise("L-10")
def test_an_overlong_message_kills_the_ring_until_the_guest_reconnects() -> None:
    guest = Guest(home_store())
    guest.out.write(HEADER.pack(Message.READ, 1, 0, 4097))
    guest.ring.service()
    assert guest.page.read_u32(2072) == 3
    guest.out.write(encode(Message.READ, 1, 0, b"a\0"))
    assert not guest.ring.service()
    guest.page.write_u32(2068, 1)
    assert guest.ring.service()
    assert [guest.page.read_u32(o) for o in (2048, 2052, 2056, 2060, 2068, 2072)] == [0] * 6
    guest.send(encode(Message.MKDIR, 1, 0, b"a\0"))
    assert guest.messages() == [(Message.MKDIR, 1, 0, b"OK\0")]


@pytest.mark.promise("I-12")
@given(st.lists(st.tuples(st.integers(0, 2079), st.binary(max_size=64)), max_size=12))
def test_whatever_is_in_the_page_nothing_is_raised(pokes: list[tuple[int, bytes]]) -> None:
    store = home_store()
    guest = Guest(store)
    for offset, data in pokes:
        guest.page.write(offset, data)
        guest.ring.service()
        store.write("/local/domain/1/x", "y")


@given(st.data())
def test_replies_survive_any_chopping(data: st.DataObject) -> None:
    guest = Guest(home_store())
    stream = b"".join(encode(Message.WRITE, n, 0, b"k%d\0" % n + b"v" * n) for n in range(20))
    while stream:
        size = data.draw(st.integers(1, 300))
        guest.send(stream[:size])
        stream = stream[size:]
    assert guest.messages() == [(Message.WRITE, n, 0, b"OK\0") for n in range(20)]
