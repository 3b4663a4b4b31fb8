# SPDX-License-Identifier: GPL-2.0-only
"""The store's semantics: what others see of a change, and when: watches, transactions."""

from collections.abc import Callable

import pytest
from store_clients import HOME, connect, refused, two_homes

from pyhv.xenstore.store import Accessor, Store


@pytest.fixture
def store() -> Store:
    return two_homes()


# ---- watches


def test_a_watch_fires_at_once_and_for_all_below(store: Store) -> None:
    guest, heard = connect(store)
    guest.watch("a", b"t")
    guest.watch(f"{HOME}/a", b"u")
    assert heard == [("a", b"t"), (f"{HOME}/a", b"u")]
    del heard[:]
    store.write(f"{HOME}/a/b/c", "1")
    store.write(f"{HOME}/ab", "1")
    assert heard == [("a/b/c", b"t"), (f"{HOME}/a/b/c", b"u")]
    with refused("EEXIST"):
        guest.watch(f"{HOME}/a", b"t")
    guest.unwatch(f"{HOME}/a", b"t")
    with refused("ENOENT"):
        guest.unwatch("a", b"t")
    del heard[:]
    store.remove(f"{HOME}/a")
    assert heard == [(f"{HOME}/a", b"u")]


def test_watches_inside_a_removed_subtree_hear_of_their_own_node(store: Store) -> None:
    store.write("/t/a/b")
    store.write("/t/a/c/d")
    heard: list[str] = []
    for path in ("/t", "/t/a/b", "/t/a/c/d", "/t/a/missing"):
        store.watch(path, heard.append)
    del heard[:]
    store.remove("/t/a")
    assert heard == ["/t/a", "/t/a/b", "/t/a/c/d"]


@pytest.mark.promise("I-8")
def test_an_unreadable_node_is_not_told_of(store: Store) -> None:
    guest, heard = connect(store)
    guest.watch("/", b"t")
    guest.watch("/private/x", b"u")
    del heard[:]
    store.write("/private/x", "s")
    store.write("/private/x", "s2")
    store.remove("/private")
    assert heard == []


def test_losing_and_gaining_access_is_told(store: Store) -> None:
    store.write("/p/x")
    guest, heard = connect(store)
    guest.watch("/p", b"t")
    del heard[:]
    store.set_permissions("/p/x", ["n0", "r1"])
    store.set_permissions("/p/x", ["n0"])
    store.set_permissions("/p/x", ["n0", "r2"])
    assert heard == [("/p/x", b"t")] * 2


def test_a_callback_sees_the_change_and_may_change_in_turn(store: Store) -> None:
    heard: list[tuple[str, bool]] = []

    def answer(path: str) -> None:
        heard.append((path, store.exists("/q/reply")))
        if store.exists("/q/ask") and not store.exists("/q/reply"):
            store.write("/q/reply", "1")

    handle = store.watch("/q", answer)
    store.write("/q/ask", "1")
    assert heard == [("/q", False), ("/q/ask", False), ("/q/reply", True)]
    handle.cancel()
    handle.cancel()
    store.write("/q/ask", "2")
    assert len(heard) == 3


def test_a_cancelled_watch_hears_nothing_that_was_already_queued(store: Store) -> None:
    heard: list[str] = []
    first = store.watch("/q", lambda path: second.cancel() if path == "/q/x" else None)
    second = store.watch("/q", heard.append)
    store.write("/q/x")
    assert heard == ["/q"]
    first.cancel()


# ---- transactions


def test_a_transaction_is_seen_by_itself_only_until_its_end(store: Store) -> None:
    heard: list[str] = []
    store.watch("/t", heard.append)
    with store.transaction() as t:
        t.write("/t/a", "1")
        t.write("/t/a", "2")
        t.write("/t/b", "1")
        t.remove("/t/b")
        assert t.ls("/t") == ["a"]
        assert not store.exists("/t")
        assert heard == ["/t"]
    assert store.read("/t/a") == b"2"
    assert heard == ["/t", "/t/a"]


def test_what_a_removed_node_was_made_for_and_left_behind_is_told(store: Store) -> None:
    heard: list[str] = []
    store.watch("/t", heard.append)
    with store.transaction() as t:
        t.write("/t/a/b/c")
        t.remove("/t/a/b")
    assert heard == ["/t", "/t/a"]


def test_an_exception_drops_the_transaction(store: Store) -> None:
    def interrupted() -> None:
        with store.transaction() as t:
            t.write("/t")
            raise KeyError

    with pytest.raises(KeyError):
        interrupted()
    assert not store.exists("/t")


@pytest.mark.parametrize(
    ("inside", "outside", "conflict"),
    [
        (lambda t: t.read("/s/a"), lambda s: s.write("/s/a", "new"), True),
        (lambda t: t.write("/s/a", "x"), lambda s: s.write("/s/a", "new"), True),
        (lambda t: t.exists("/s/none"), lambda s: s.write("/s/none"), True),
        (lambda t: t.ls("/s"), lambda s: s.write("/s/fresh"), True),
        (lambda t: t.ls("/s"), lambda s: s.write("/s/a/deeper"), False),
        (lambda t: t.write("/s/n1"), lambda s: s.write("/s/n2"), True),
        (lambda t: t.write("/s/a/n1"), lambda s: s.write("/s/b/n2"), False),
        (lambda t: t.write("/s/a/n1"), lambda s: s.remove("/s/a"), True),
        (lambda t: t.remove("/s/a"), lambda s: s.write("/s/b", "x"), False),
        (lambda t: t.remove("/s/a"), lambda s: s.write("/s/fresh"), True),
        (lambda t: t.read("/s/a"), lambda s: s.set_permissions("/s/a", ["r0"]), True),
        (lambda t: t.read("/s/a"), lambda s: (s.remove("/s/a"), s.write("/s/a", "1")), True),
        (lambda t: t.read("/s/a"), lambda s: None, False),
    ],
)
def test_conflicts(
    store: Store, inside: Callable[[Accessor], object], outside: Callable[[Store], object], conflict: bool
) -> None:
    store.write("/s/a", "1")
    store.write("/s/b", "1")
    transaction = store.transaction()
    t = transaction.__enter__()
    inside(t)
    outside(store)
    before = store.dump()
    if conflict:
        with refused("EAGAIN"):
            transaction.__exit__(None, None, None)
        assert store.dump() == before
    else:
        transaction.__exit__(None, None, None)


def test_transaction_numbers(store: Store) -> None:
    guest, _ = connect(store)
    other, _ = connect(store, 2)
    tx = guest.start()
    assert tx != 0
    with refused("EBUSY"):
        guest.start(tx)
    for number in (tx + 1, 2**32 - 1):
        with refused("ENOENT"):
            guest.read("a", number)
        with refused("ENOENT"):
            guest.end(number, commit=True)
    with refused("ENOENT"):
        other.end(tx, commit=False)
    guest.end(tx, commit=True)
    with refused("ENOENT"):
        guest.end(tx, commit=True)
    assert guest.start() != tx
