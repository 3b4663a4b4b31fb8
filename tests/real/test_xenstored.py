# SPDX-License-Identifier: GPL-2.0-only
"""The store against genuine xenstored 4.17: the same requests of the same domain get the same answers, at the
edges of what a domain may have and write above all.
"""

import struct
from collections.abc import Callable, Iterator

import pytest
from xenstored import DOMID, HOME, Xenstored, xenstored

from pyhv.abi.xs_wire import Message
from pyhv.xenstore.store import Store
from pyhv.xenstore.wire import HEADER, Connection

pytestmark = pytest.mark.debian

Request = Callable[..., tuple[Message, bytes]]


class Ours:
    """Our store, seen as `Xenstored` shows the genuine one."""

    def __init__(self) -> None:
        store = Store()
        store.mkdir(HOME)
        store.set_permissions(HOME, [f"n{DOMID}"])
        store.introduce(DOMID)
        self._connection = Connection(store, DOMID)

    def request(self, kind: Message, payload: bytes, tx: int = 0) -> tuple[Message, bytes]:
        while self._connection.has_output:  # events of earlier requests: nothing is read while they wait
            self._connection.take(HEADER.size)
        message = HEADER.pack(kind, 1, tx, len(payload)) + payload
        while message:
            message = message[self._connection.feed(message) :]
        found, answer = Message.WATCH_EVENT, b""
        while found == Message.WATCH_EVENT:
            found, _, _, length = struct.unpack("<4I", self._connection.take(HEADER.size))
            answer = self._connection.take(length)
        return Message(found), answer


@pytest.fixture(scope="module")
def genuine() -> Iterator[Xenstored]:
    with xenstored() as daemon:
        yield daemon


@pytest.fixture(scope="module")
def ours() -> Ours:
    return Ours()


def begin(request: Request) -> int:
    kind, answer = request(Message.TRANSACTION_START, b"\0")
    assert kind is Message.TRANSACTION_START
    return int(answer.rstrip(b"\0"))


def until_refused(make: Callable[[int], tuple[Message, bytes]], most: int = 2000) -> tuple[int, bytes]:
    """How many were made before one was refused, and how it was."""
    for number in range(most):
        kind, answer = make(number)
        if kind is Message.ERROR:
            return number, answer
    return most, b""


def watches(request: Request) -> object:
    found = until_refused(lambda n: request(Message.WATCH, b"data\0%d\0" % n))
    again = request(Message.WATCH, b"data\0000\0")
    request(Message.UNWATCH, b"data\0000\0")
    freed = request(Message.WATCH, b"data\0more\0"), request(Message.WATCH, b"data\0most\0")
    request(Message.RESET_WATCHES, b"\0")
    return found, again, freed


def transactions(request: Request) -> object:
    made: list[int] = []

    def start(_number: int) -> tuple[Message, bytes]:
        kind, answer = request(Message.TRANSACTION_START, b"\0")
        if kind is not Message.ERROR:
            made.append(int(answer.rstrip(b"\0")))
        return kind, answer

    found = until_refused(start)
    ends = [
        request(Message.TRANSACTION_END, b"FT"[n % 2 : n % 2 + 1] + b"\0", tx) for n, tx in enumerate(made)
    ]
    return found, ends


def values(request: Request) -> object:
    sizes = (0, 1, 2014, 2015, 2016, 2017, 2048, 4000)
    return [request(Message.WRITE, b"data/v\0" + b"x" * size) for size in sizes]


def children(request: Request) -> object:
    """A node's record holds its children's names."""
    request(Message.MKDIR, b"data/c\0")
    return until_refused(lambda n: request(Message.MKDIR, b"data/c/%0300d\0" % n), 10)


def permissions(request: Request) -> object:
    request(Message.MKDIR, b"data/p\0")
    lists = [b"".join([b"n%d\0" % DOMID, *(b"r%d\0" % n for n in range(10, 10 + more))]) for more in range(8)]
    set_ones = [request(Message.SET_PERMS, b"data/p\0" + one) for one in lists]
    return set_ones, request(Message.GET_PERMS, b"data/p\0")


def paths(request: Request) -> object:
    starts = (b"data/", f"{HOME}/data/".encode(), b"/open/", b"/local/domain/77/", b"/local/domain/77a")
    lengths = (100, 2047, 2048, 2049, 2063, 2064, 2065, 2066, 3071, 3072, 3073)
    read = [request(Message.READ, start.ljust(n, b"a") + b"\0") for start in starts for n in lengths]
    events = [request(Message.WATCH, b"@".ljust(n, b"a") + b"\0t\0") for n in (2048, 2049)]
    request(Message.RESET_WATCHES, b"\0")
    # Not an empty payload: xenstored then answers with whatever errno was left of the request before.
    odd = (b"\0", b"a//b\0", b"a/\0", b"/a/\0", b"a b\0", b"a.b\0", b"a\0b\0", b"a", b"@x\0", b"-_@/x\0")
    return read, events, [request(Message.READ, one) for one in odd]


def nodes_looked_for(request: Request) -> object:
    tx = begin(request)
    kinds = set()

    def read(number: int) -> tuple[Message, bytes]:
        kind, answer = request(Message.READ, b"data/q%d\0" % number, tx)
        kinds.add(answer)
        return (Message.READ, answer) if answer == b"ENOENT\0" else (kind, answer)

    return until_refused(read), sorted(kinds), request(Message.TRANSACTION_END, b"T\0", tx)


def nodes_written(request: Request) -> object:
    """A node that is written again and again is one."""
    tx = begin(request)
    wrote = until_refused(lambda n: request(Message.WRITE, b"data/w\0%d" % n, tx), 1500)
    return wrote, request(Message.TRANSACTION_END, b"T\0", tx), request(Message.READ, b"data/w\0")


def too_large_in_a_transaction(request: Request) -> object:
    tx = begin(request)
    wrote = request(Message.WRITE, b"data/big\0" + b"x" * 2048, tx)
    ended = request(Message.TRANSACTION_END, b"T\0", tx)
    tx = begin(request)
    request(Message.WRITE, b"data/big\0" + b"x" * 2048, tx)
    return wrote, ended, request(Message.TRANSACTION_END, b"F\0", tx), request(Message.READ, b"data/big\0")


EDGES = (
    values, children, permissions, paths, watches, transactions, nodes_looked_for, nodes_written,
    too_large_in_a_transaction,
)  # fmt: skip


@pytest.mark.promise("L-10")
@pytest.mark.parametrize("edge", EDGES, ids=lambda edge: edge.__name__)
def test_the_edges_are_xenstoreds(genuine: Xenstored, ours: Ours, edge: Callable[[Request], object]) -> None:
    assert edge(ours.request) == edge(genuine.request)
