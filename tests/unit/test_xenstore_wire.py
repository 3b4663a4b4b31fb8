# SPDX-License-Identifier: GPL-2.0-only
"""The protocol: bytes in, bytes out; and whatever comes in, no exception."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.abi.xs_wire import LinkError, Message
from pyhv.xenstore.limits import Quota
from pyhv.xenstore.store import Store
from pyhv.xenstore.wire import HEADER, MESSAGE_MAX, Connection, encode

HOME = "/local/domain/1"


def home_store(quota: Quota | None = None) -> Store:
    store = Store(quota)
    store.mkdir(HOME)
    store.set_permissions(HOME, ["b1"])
    return store


@pytest.fixture
def store() -> Store:
    return home_store()


@pytest.fixture
def guest(store: Store) -> Connection:
    return Connection(store, 1)


def decode(data: bytes) -> list[tuple[int, int, int, bytes]]:
    found = []
    while data:
        kind, req, tx, length = HEADER.unpack_from(data)
        assert length <= 4096
        assert len(data) >= 16 + length
        found.append((kind, req, tx, data[16 : 16 + length]))
        data = data[16 + length :]
    return found


def ask(connection: Connection, kind: int, payload: bytes, tx: int = 0) -> bytes | str:
    """One request; its reply's payload, or the error's name. Events before or after are dropped."""
    assert connection.feed(encode(kind, 77, tx, payload)) == 16 + len(payload)
    replies = [m for m in decode(connection.take(1 << 20)) if m[0] != Message.WATCH_EVENT]
    ((got, req, got_tx, answer),) = replies
    assert (req, got_tx) == (77, tx)
    if got == Message.ERROR:
        assert answer.endswith(b"\0")
        return answer[:-1].decode()
    assert got == kind
    return answer


def test_every_type_of_message(store: Store, guest: Connection) -> None:
    assert ask(guest, Message.MKDIR, b"dir\0") == b"OK\0"
    assert ask(guest, Message.WRITE, b"dir/a\0x\0y") == b"OK\0"
    assert ask(guest, Message.WRITE, b"dir/b\0") == b"OK\0"
    assert ask(guest, Message.READ, b"dir/a\0") == b"x\0y"
    assert ask(guest, Message.READ, b"dir/b\0") == b""
    assert ask(guest, Message.DIRECTORY, b"dir\0") == b"a\0b\0"
    assert ask(guest, Message.DIRECTORY, b"dir/a\0") == b""
    assert ask(guest, Message.GET_PERMS, b"dir\0") == b"b1\0"
    assert ask(guest, Message.SET_PERMS, b"dir\0n1\0r5\0") == b"OK\0"
    assert ask(guest, Message.GET_PERMS, b"dir\0") == b"n1\0r5\0"
    assert ask(guest, Message.WATCH, b"dir\0tok\0") == b"OK\0"
    assert ask(guest, Message.UNWATCH, b"dir\0tok\0") == b"OK\0"
    assert ask(guest, Message.UNWATCH, b"dir\0tok\0") == "ENOENT"
    assert ask(guest, Message.RESET_WATCHES, b"\0") == b"OK\0"
    assert ask(guest, Message.RM, b"dir\0") == b"OK\0"
    assert ask(guest, Message.RM, b"dir\0") == b"OK\0"
    assert ask(guest, Message.READ, b"dir\0") == "ENOENT"
    assert ask(guest, Message.GET_DOMAIN_PATH, b"12\0") == b"/local/domain/12\0"
    assert ask(guest, Message.IS_DOMAIN_INTRODUCED, b"0\0") == b"T\0"
    assert ask(guest, Message.IS_DOMAIN_INTRODUCED, b"1\0") == b"F\0"
    store.introduce(1)
    assert ask(guest, Message.IS_DOMAIN_INTRODUCED, b"1\0") == b"T\0"


def test_transactions(store: Store, guest: Connection) -> None:
    answer = ask(guest, Message.TRANSACTION_START, b"\0")
    tx = int(answer[:-1])
    assert ask(guest, Message.WRITE, b"a\0x", tx) == b"OK\0"
    assert ask(guest, Message.READ, b"a\0") == "ENOENT"
    assert ask(guest, Message.READ, b"a\0", tx) == b"x"
    assert ask(guest, Message.TRANSACTION_START, b"\0", tx) == "EBUSY"
    assert ask(guest, Message.TRANSACTION_END, b"X\0", tx) == "EINVAL"
    assert ask(guest, Message.TRANSACTION_END, b"T\0", tx) == b"OK\0"
    assert ask(guest, Message.TRANSACTION_END, b"T\0", tx) == "ENOENT"
    assert ask(guest, Message.TRANSACTION_END, b"F\0", 0) == "ENOENT"
    assert ask(guest, Message.READ, b"a\0") == b"x"
    assert ask(guest, Message.READ, b"a\0", 0xFFFF_FFFF) == "ENOENT"
    tx = int(ask(guest, Message.TRANSACTION_START, b"\0")[:-1])
    assert ask(guest, Message.READ, b"a\0", tx) == b"x"
    store.write(f"{HOME}/a", "other")
    assert ask(guest, Message.TRANSACTION_END, b"T\0", tx) == "EAGAIN"


@pytest.mark.promise("I-8")
@pytest.mark.parametrize("kind", [0, 8, 9, 18, 19])
def test_what_only_the_toolstack_may(store: Store, guest: Connection, kind: int) -> None:
    assert ask(guest, kind, b"1\0") == "EACCES"
    assert ask(Connection(store, 0), kind, b"1\0") == "ENOSYS"


@pytest.mark.parametrize("kind", [15, 16, 20, 23, 24, 25, 26, 27, 0xFFFF, 0xFFFF_FFFF])
def test_unknown_types(guest: Connection, kind: int) -> None:
    assert ask(guest, kind, b"a\0") == "ENOSYS"


@pytest.mark.parametrize(
    ("kind", "payload"),
    [
        (Message.READ, b""),
        (Message.READ, b"a"),
        (Message.READ, b"\0"),
        (Message.READ, b"a\0b\0"),
        (Message.READ, b"a\0b"),
        (Message.READ, b"\xff\0"),
        (Message.WRITE, b"a"),
        (Message.WRITE, b""),
        (Message.WATCH, b"a\0"),
        (Message.WATCH, b"a\0b"),
        (Message.WATCH, b"a\0b\0c\0"),
        (Message.WATCH, b"@\xc3\0b\0"),
        (Message.UNWATCH, b"/a/\0b\0"),
        (Message.SET_PERMS, b"a\0"),
        (Message.SET_PERMS, b"a\0q1\0"),
        (Message.SET_PERMS, b"a\0\0"),
        (Message.TRANSACTION_END, b""),
        (Message.GET_DOMAIN_PATH, b"-1\0"),
        (Message.GET_DOMAIN_PATH, b"99999\0"),
        (Message.GET_DOMAIN_PATH, b"1" * 4000 + b"\0"),
        (Message.GET_DOMAIN_PATH, b"\xb2\0"),
        (Message.IS_DOMAIN_INTRODUCED, b"x\0"),
        (Message.DIRECTORY_PART, b"a\0"),
        (Message.DIRECTORY_PART, b"a\0x\0"),
    ],
)
def test_malformed_payloads(guest: Connection, kind: int, payload: bytes) -> None:
    assert ask(guest, kind, payload) == "EINVAL"


def test_a_long_directory_comes_in_parts(store: Store, guest: Connection) -> None:
    names = [f"{n:03}" + "x" * 30 for n in range(200)]
    for name in names:
        store.write(f"{HOME}/{name}")
    assert ask(guest, Message.DIRECTORY, HOME.encode() + b"\0") == "E2BIG"
    listing, generations = b"", set[bytes]()
    while not listing.endswith(b"\0\0"):
        answer = ask(guest, Message.DIRECTORY_PART, HOME.encode() + b"\0%d\0" % len(listing))
        assert isinstance(answer, bytes)
        generation, _, part = answer.partition(b"\0")
        generations.add(generation)
        listing += part
    assert listing[:-2].decode().split("\0") == names
    assert len(generations) == 1
    store.write(f"{HOME}/more")
    answer = ask(guest, Message.DIRECTORY_PART, HOME.encode() + b"\x00999999\0")
    assert isinstance(answer, bytes)
    generation, _, rest = answer.partition(b"\0")
    assert rest == b"\0"
    assert generation not in generations


def test_a_reply_too_long_is_e2big(store: Store, guest: Connection) -> None:
    store.write(f"{HOME}/big", b"x" * 4096)
    assert ask(guest, Message.READ, b"big\0") == b"x" * 4096
    store.write(f"{HOME}/big", b"x" * 4097)
    assert ask(guest, Message.READ, b"big\0") == "E2BIG"


def test_the_reply_to_watch_precedes_its_event(guest: Connection) -> None:
    guest.on_output = lambda: pytest.fail("called while a request is executed")
    guest.feed(encode(Message.WATCH, 5, 0, b"a\0t\0"))
    assert decode(guest.take(999)) == [
        (Message.WATCH, 5, 0, b"OK\0"),
        (Message.WATCH_EVENT, 0, 0, b"a\0t\0"),
    ]


def test_messages_arrive_in_pieces_and_leave_in_pieces(guest: Connection) -> None:
    out = b""
    for byte in encode(Message.WRITE, 1, 0, b"a\0x") + encode(Message.READ, 2, 0, b"a\0"):
        assert guest.feed(bytes([byte])) == 1
        out += guest.take(1)
    guest.feed(b"")
    while guest.has_output:
        out += guest.take(1)
        guest.feed(b"")
    assert decode(out) == [(Message.WRITE, 1, 0, b"OK\0"), (Message.READ, 2, 0, b"x")]


@pytest.mark.promise("L-10")
def test_the_longest_message_is_legal_and_one_more_byte_is_fatal(store: Store, guest: Connection) -> None:
    guest.feed(encode(Message.WATCH, 1, 0, b"a\0t\0"))
    guest.take(999)
    assert ask(guest, Message.WRITE, b"a\0" + b"x" * 4094) == "ENOSPC"
    assert guest.alive
    guest.feed(HEADER.pack(Message.WRITE, 1, 0, 4097))
    assert guest.error is LinkError.PROTOCOL
    assert not guest.alive
    assert guest.feed(encode(Message.READ, 1, 0, b"a\0")) == 0
    store.write(f"{HOME}/a", "nobody hears")
    assert not guest.has_output


@pytest.mark.promise("L-11")
def test_requests_wait_while_output_does(guest: Connection) -> None:
    flood = encode(Message.READ, 1, 0, b"a\0") * 1000
    accepted = guest.feed(flood)
    assert accepted <= MESSAGE_MAX + 18
    assert guest.feed(flood) == 0
    answers = decode(guest.take(1 << 20))
    assert len(answers) == 1
    while guest.feed(b"") == 0 and guest.has_output:
        answers += decode(guest.take(1 << 20))
    assert len(answers) == accepted // 18


@pytest.mark.promise("L-11")
def test_events_wait_up_to_a_limit_and_equal_ones_are_one() -> None:
    store = home_store(Quota(event_bytes=1000))
    guest = Connection(store, 1)
    guest.feed(encode(Message.WATCH, 1, 0, b"a\0t\0"))
    guest.take(999)
    for _ in range(100):
        store.write(f"{HOME}/a/same", "x")
    assert decode(guest.take(9999)) == [(Message.WATCH_EVENT, 0, 0, b"a/same\0t\0")]
    for n in range(1000):
        store.write(f"{HOME}/a/{n}", "x")
    assert guest.events_dropped > 900
    assert 900 < len(guest.take(1 << 20)) <= 1000
    store.write(f"{HOME}/a/later", "x")
    assert decode(guest.take(9999)) == [(Message.WATCH_EVENT, 0, 0, b"a/later\0t\0")]


def test_an_event_too_long_for_a_message_is_dropped(store: Store, guest: Connection) -> None:
    path = HOME + "/" + "d" * 1800
    guest.feed(encode(Message.WATCH, 1, 0, HOME.encode() + b"\0" + b"t" * 3000 + b"\0"))
    guest.take(1 << 20)
    store.write(path, "x")
    assert guest.events_dropped == 1
    assert not guest.has_output


def test_a_released_domain_is_cut_off_for_good(store: Store, guest: Connection) -> None:
    store.introduce(1)
    guest.feed(encode(Message.WATCH, 1, 0, b"@releaseDomain\0t\0"))
    guest.take(999)
    store.release(1)
    assert not guest.alive
    assert guest.feed(b"x") == 0
    guest.reset()
    assert not guest.alive


MESSAGES = st.builds(
    encode,
    st.one_of(st.integers(0, 30), st.integers(0, 2**32 - 1)),
    st.integers(0, 2**32 - 1),
    st.one_of(st.integers(0, 3), st.integers(0, 2**32 - 1)),
    st.one_of(
        st.binary(max_size=40),
        st.lists(
            st.sampled_from(
                [
                    b"a",
                    b"a/b",
                    b"/",
                    HOME.encode(),
                    b"@releaseDomain",
                    b"T",
                    b"F",
                    b"1",
                    b"0",
                    b"n1",
                    b"b2",
                    b"",
                ]
            ),
            max_size=4,
        ).map(lambda strings: b"".join(string + b"\0" for string in strings)),
    ),
)


@pytest.mark.promise("I-12")
@given(st.lists(st.one_of(st.binary(max_size=60), MESSAGES, MESSAGES), max_size=30))
def test_random_bytes_never_raise_and_every_answer_is_well_formed(pieces: list[bytes]) -> None:
    store = home_store()
    guests = [Connection(store, 1), Connection(store, 2), Connection(store, 0)]
    for n, piece in enumerate(pieces):
        guest = guests[n % 3]
        guest.feed(piece)
        for message in decode(guest.take(1 << 20)):
            assert message[0] != Message.ERROR or message[3].endswith(b"\0")
    nodes = store.dump().splitlines()
    assert sum(store.owned_nodes(domid) for domid in range(0x8000)) == len(nodes)
