# SPDX-License-Identifier: GPL-2.0-only
"""The store's semantics: what a domain may own and hold, in transactions too."""

from collections.abc import Callable

import pytest
from store_clients import HOME, connect, refused, two_homes

from pyhv.xenstore.limits import Quota, StoreError
from pyhv.xenstore.permissions import PRIVATE_TO_DOM0, Permissions
from pyhv.xenstore.store import Store
from pyhv.xenstore.transactions import Create, SetValue, Transaction
from pyhv.xenstore.tree import Tree


@pytest.fixture
def store() -> Store:
    return two_homes()


@pytest.mark.promise("L-6")
def test_the_node_quota_counts_what_is_owned(store: Store) -> None:
    guest, _ = connect(store)
    for n in range(999):
        guest.write(f"n{n % 50}/{n}" if n >= 50 else f"n{n}", b"")
    assert store.owned_nodes(1) == 999
    with refused("ENOSPC"):
        guest.write("x/y", b"")
    guest.write("x", b"")
    with refused("ENOSPC"):
        guest.mkdir("y")
    guest.remove("x")
    guest.mkdir("y")
    store.write(f"{HOME}/by-dom0")


@pytest.mark.promise("L-6")
def test_transactions_do_not_evade_the_node_quota() -> None:
    store = Store(Quota(nodes=3))
    store.mkdir(HOME)
    store.set_permissions(HOME, ["b1"])
    guest, _ = connect(store)
    first, second = guest.start(), guest.start()
    store.write(f"{HOME}/a")
    store.write(f"{HOME}/b")
    store.set_permissions(f"{HOME}/a", ["n0", "b1"])
    store.set_permissions(f"{HOME}/b", ["n0", "b1"])
    guest.end(first, commit=False)
    guest.end(second, commit=False)
    first, second = guest.start(), guest.start()
    guest.write("a/1", b"", first)
    guest.write("a/2", b"", first)
    with refused("ENOSPC"):
        guest.write("a/3", b"", first)
    guest.write("b/1", b"", second)
    guest.write("b/2", b"", second)
    guest.end(first, commit=True)
    with refused("ENOSPC"):
        guest.end(second, commit=True)
    assert store.owned_nodes(1) == 3
    assert store.ls(f"{HOME}/b") == []


@pytest.mark.promise("L-7")
def test_the_entry_quota_counts_the_whole_record(store: Store) -> None:
    guest, _ = connect(store)
    fixed = 24 + 2 * 8
    guest.write("a", b"x" * (2047 - fixed))
    with refused("ENOSPC"):
        guest.write("a", b"x" * (2048 - fixed))
    with refused("ENOSPC"):
        guest.write("b", b"x" * (2048 - fixed))
    with refused("ENOSPC"):
        guest.mkdir("a/b")
    assert store.ls(HOME) == ["a"]
    store.write("/big", b"x" * 100_000)


@pytest.mark.promise("L-8")
def test_the_watch_and_transaction_quotas_are_the_domains(store: Store) -> None:
    guest, _ = connect(store)
    twin, _ = connect(store)
    for n in range(129):  # xenstored compares before it counts the new one
        (guest, twin)[n % 2].watch("a", str(n).encode())
    with refused("E2BIG"):
        guest.watch("a", b"more")
    guest.unwatch("a", b"0")
    guest.watch("a", b"more")
    for n in range(11):
        (guest, twin)[n % 2].start()
    with refused("ENOSPC"):
        guest.start()
    guest.close()
    twin.start()
    other, _ = connect(store, 2)
    other.watch("a", b"")


@pytest.mark.promise("L-10")
@pytest.mark.parametrize(
    ("start", "most"),
    [
        ("", 2048),
        ("/open/", 2048),
        (f"{HOME}/", 2064),
        ("/local/domain/77/", 2065),
        ("/local/domain/77a", 2048),
    ],
)
def test_the_longest_path(store: Store, start: str, most: int) -> None:
    """2048 bytes, and in a domain's home that many behind the name of the home."""
    guest, _ = connect(store)
    with pytest.raises(StoreError) as longest:
        guest.read(start.ljust(most, "x"))
    assert longest.value.name in ("ENOENT", "EACCES")
    with refused("EINVAL"):
        guest.read(start.ljust(most + 1, "x"))


def test_permissions_count_for_the_entry_quota(store: Store) -> None:
    guest, _ = connect(store)
    guest.write("a", b"x" * (2047 - 24 - 2 * 8))
    guest.set_permissions("a", Permissions.parse(["n1", "r2"]))
    with refused("ENOSPC"):
        guest.set_permissions("a", Permissions.parse(["n1", "r2", "r3"]))


def test_a_transaction_that_met_a_quota_can_only_be_dropped() -> None:
    """As on xenstored, which then answers ENOMEM to its commit; each missing node that is looked for counts,
    and so does the node that is found above it."""
    store = Store(Quota(transaction_nodes=30))
    store.mkdir(HOME)
    store.set_permissions(HOME, ["n1"])
    guest, _ = connect(store)
    touches: list[Callable[[int, int], object]] = [
        lambda n, tx: guest.mkdir(f"m{n}", tx),
        lambda n, tx: guest.remove(f"m{n}", tx),
    ]
    for touch in touches:
        tx = guest.start()
        for n in range(29):
            touch(n, tx)
        with refused("ENOSPC"):
            touch(29, tx)
        with refused("ENOMEM"):
            guest.end(tx, commit=True)
    assert store.ls(HOME) == []
    tx = guest.start()
    with refused("ENOSPC"):
        guest.write("big", b"x" * 2048, tx)
    with refused("ENOMEM"):
        guest.end(tx, commit=True)
    tx = guest.start()
    with refused("ENOSPC"):
        guest.write("big", b"x" * 2048, tx)
    guest.end(tx, commit=False)


@pytest.mark.promise("L-9")
def test_a_transaction_that_writes_in_circles_is_stopped(store: Store) -> None:
    guest, _ = connect(store)
    tx = guest.start()
    for n in range(5000):
        guest.write("a", str(n).encode(), tx)  # rewriting one node costs nothing
    with refused("ENOSPC"):
        for n in range(5000):
            guest.write("ab"[n % 2], b"", tx)
    tx = guest.start()
    with refused("ENOSPC"):
        for n in range(5000):
            try:
                guest.read(f"missing{n}", tx)
            except StoreError as error:
                if error.name != "ENOENT":
                    raise


@pytest.mark.promise("L-9")
def test_rewriting_one_node_in_a_transaction_keeps_the_last_value_only() -> None:
    transaction = Transaction(Tree(), nodes_max=3)
    transaction.change(Create("/a", b"", PRIVATE_TO_DOM0), 1)
    for n in range(10):
        transaction.change(SetValue("/a", b"%d" % n), 2 + n)
    assert transaction.changes == [Create("/a", b"", PRIVATE_TO_DOM0), SetValue("/a", b"9")]
