# SPDX-License-Identifier: GPL-2.0-only
"""The store's semantics: nodes, permissions, quotas, watches, transactions, a domain's life."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import pytest

from pyhv.errors import ConfigError
from pyhv.xenstore.client import Client
from pyhv.xenstore.domu import DomU, remove_domu, request_shutdown, shutdown_pending, write_domu
from pyhv.xenstore.limits import Quota, StoreError, canonical
from pyhv.xenstore.permissions import PRIVATE_TO_DOM0, Access, Permissions
from pyhv.xenstore.store import Accessor, Store
from pyhv.xenstore.transactions import Create, SetValue, Transaction
from pyhv.xenstore.tree import Tree

HOME = "/local/domain/1"


def connect(store: Store, domid: int = 1) -> tuple[Client, list[tuple[str, bytes]]]:
    heard: list[tuple[str, bytes]] = []
    return store.connect(domid, lambda path, token: heard.append((path, token))), heard


@pytest.fixture
def store() -> Store:
    store = Store()
    for domid in (1, 2):
        store.mkdir(f"/local/domain/{domid}")
        store.set_permissions(f"/local/domain/{domid}", ["n0", f"b{domid}"])
    return store


def refused(name: str) -> AbstractContextManager[pytest.ExceptionInfo[StoreError]]:
    return pytest.raises(StoreError, match=f"^{name}")


# ---- paths


@pytest.mark.parametrize(
    "path", ["/", "/a", "/a-b/C_d/e@f/0", "rel", "/" + "x" * 2047, "y" * 2048, "a@x", "/local/domain/9/z"]
)
def test_good_paths(path: str) -> None:
    assert canonical(path, 1) == (path if path.startswith("/") else f"{HOME}/{path}")


@pytest.mark.parametrize(
    "path",
    [
        "",
        "/a/",
        "a/",
        "//",
        "/a//b",
        "a//b",
        "/a b",
        "/a.b",
        "/ä",
        "/a\n",
        "/a\0",
        "/" + "x" * 2048,
        "y" * 2049,
        "@x",
    ],
)
def test_bad_paths(path: str) -> None:
    with refused("EINVAL"):
        canonical(path, 1)


# ---- nodes


def test_write_makes_parents_and_children_keep_their_order(store: Store) -> None:
    store.write("/z/b/c", "deep")
    store.write("/z/a")
    store.write("/z/b", b"\0\xff")
    assert store.ls("/z") == ["b", "a"]
    assert store.ls("/z/b") == ["c"]
    assert store.read("/z") == b""
    assert store.read("/z/b") == b"\0\xff"
    assert store.read_text("/z/b/c") == "deep"


def test_mkdir_keeps_what_is_there(store: Store) -> None:
    store.write("/a", 5)
    store.mkdir("/a")
    assert store.read_int("/a") == 5


def test_rm(store: Store) -> None:
    store.write("/a/b/c")
    store.remove("/a/b")
    assert store.ls("/a") == []
    assert not store.exists("/a/b/c")
    store.remove("/a/b")
    with refused("ENOENT"):
        store.remove("/a/b/c")
    with refused("EINVAL"):
        store.remove("/")


@pytest.mark.parametrize("value", ["", "x", "1x", " 1", "--1", "9" * 21, "²"])
def test_what_is_no_number_is_refused(store: Store, value: str) -> None:
    store.write("/n", value)
    with refused("EINVAL"):
        store.read_int("/n")


def test_a_very_deep_chain_is_no_problem(store: Store) -> None:
    path = "/d" * 1024  # the longest path that is legal
    store.write(path, "bottom")
    assert store.read(path) == b"bottom"
    with store.transaction() as t:
        t.remove("/d")
    assert store.owned_nodes(0) == len(store.dump().splitlines())


# ---- permissions


def test_permission_lists() -> None:
    permissions = Permissions.parse(["r3", "w4", "b5", "n6"])
    assert [permissions.of(domid) for domid in (4, 5, 6, 7)] == [
        Access.WRITE,
        Access.READ | Access.WRITE,
        Access.NONE,
        Access.READ,
    ]
    assert permissions.of(0) == permissions.of(3) == Access.READ | Access.WRITE | Access.OWNER
    assert str(permissions) == "r3,w4,b5,n6"


@pytest.mark.parametrize("text", ["", "r", "5", "x5", "r-1", "r5 ", "R5", "r99999", "rw5", "r٣"])
def test_bad_permissions(text: str) -> None:
    with refused("EINVAL"):
        Permissions.parse([text])


def test_what_a_guest_makes_is_its_own_and_inherits_the_list(store: Store) -> None:
    store.set_permissions(HOME, ["n0", "b1", "r2"])
    guest, _ = connect(store)
    guest.write("a/b", b"x")
    assert store.permissions(f"{HOME}/a/b") == ["n1", "b1", "r2"]
    store.write(f"{HOME}/a/c")
    assert store.permissions(f"{HOME}/a/c") == ["n1", "b1", "r2"]
    assert store.owned_nodes(1) == 3


@pytest.mark.promise("I-8")
def test_a_stranger_is_told_nothing(store: Store) -> None:
    store.write(f"{HOME}/secret", "s")
    other, _ = connect(store, 2)
    for path in (f"{HOME}/secret", f"{HOME}/missing", "/", "/nowhere/at/all"):
        with refused("EACCES"):
            other.read(path)
        with refused("EACCES"):
            other.write(path, b"")
        with refused("EACCES"):
            other.remove(path)


@pytest.mark.promise("I-8")
def test_read_only_is_read_only(store: Store) -> None:
    store.write(f"{HOME}/ro", "1")
    store.set_permissions(f"{HOME}/ro", ["n0", "r1"])
    guest, _ = connect(store)
    assert guest.read("ro") == b"1"
    with refused("EACCES"):
        guest.write("ro", b"2")
    with refused("EACCES"):
        guest.write("ro/below", b"2")
    with refused("EACCES"):
        guest.set_permissions("ro", Permissions.parse(["b1"]))
    with refused("ENOENT"):
        guest.read("ro/below")


def test_only_the_owner_changes_permissions_and_cannot_give_away(store: Store) -> None:
    guest, _ = connect(store)
    guest.write("a", b"")
    guest.set_permissions("a", Permissions.parse(["n1", "r2"]))
    with refused("EPERM"):
        guest.set_permissions("a", Permissions.parse(["n2"]))
    with refused("ENOSPC"):
        guest.set_permissions("a", Permissions.parse(["n1"] * 6))
    store.set_permissions(f"{HOME}/a", ["n2"])
    assert (store.owned_nodes(1), store.owned_nodes(2)) == (0, 1)


# ---- quotas


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


# ---- a domain's life


def test_introduce_and_release(store: Store) -> None:
    heard: list[str] = []
    store.watch("@introduceDomain", heard.append)
    store.watch("@releaseDomain", heard.append)
    guest, guest_heard = connect(store)
    guest.watch("@releaseDomain", b"t")
    other, other_heard = connect(store, 2)
    other.watch("@releaseDomain", b"t")
    store.set_permissions("@releaseDomain", ["n0", "r2"])
    del heard[:], guest_heard[:], other_heard[:]
    store.introduce(1)
    with refused("EEXIST"):
        store.introduce(1)
    assert store.is_introduced(1)
    store.write("/shared")
    store.set_permissions("/shared", ["n0", "b1", "r2"])
    guest.write("/shared/guests", b"")
    guest.start()
    store.release(1)
    assert guest.closed
    assert heard == ["@introduceDomain", "@releaseDomain"]
    assert guest_heard == []
    assert other_heard == [("@releaseDomain", b"t")]
    assert not store.exists(HOME)
    assert store.ls("/shared") == []
    assert store.permissions("/shared") == ["n0", "r2"]
    assert store.owned_nodes(1) == 0
    assert not store.is_introduced(1)
    again, _ = connect(store)
    for n in range(128):
        again.watch("a", str(n).encode())
    for domid in (0, -1, 0x7FF0):
        with refused("EINVAL"):
            store.release(domid)
        with refused("EINVAL"):
            store.introduce(domid)


def test_a_callback_may_tidy_up_while_a_domain_is_released(store: Store) -> None:
    store.write(f"{HOME}/device/vbd/1")
    store.watch(f"{HOME}/device", lambda path: store.remove("/elsewhere"))
    store.write("/elsewhere/node")
    store.set_permissions("/elsewhere/node", ["n1"])
    store.release(1)
    assert not store.exists("/elsewhere")


def domu(**changes: Any) -> DomU:
    facts: dict[str, Any] = {
        "domid": 1,
        "name": "guest",
        "uuid": "00000000-0000-0000-0000-000000000001",
        "memory_kib": 65536,
        "vcpus": 2,
        "store_ring_ref": 100,
        "store_port": 1,
        "console_ring_ref": 101,
        "console_port": 2,
    }
    return DomU(**{**facts, **changes})


def test_a_domu_finds_what_it_expects(store: Store) -> None:
    write_domu(store, domu())
    guest, _ = connect(store)
    expected = {
        "name": b"guest",
        "domid": b"1",
        "vm": b"/vm/00000000-0000-0000-0000-000000000001",
        "memory/target": b"65536",
        "cpu/1/availability": b"online",
        "store/port": b"1",
        "console/ring-ref": b"101",
        "control/shutdown": b"",
    }
    assert {path: guest.read(path) for path in expected} == expected
    assert guest.read("/vm/00000000-0000-0000-0000-000000000001/image/ostype") == b"linux"
    guest.write("control/feature-poweroff", b"1")
    guest.write("data/anything", b"1")
    for path in ("name", "memory/target", "new", "device/vbd", "control/new"):
        with refused("EACCES"):
            guest.write(path, b"x")


def test_a_shutdown_is_asked_for_and_acknowledged(store: Store) -> None:
    write_domu(store, domu())
    guest, heard = connect(store)
    guest.watch("control/shutdown", b"t")
    request_shutdown(store, 1, "poweroff")
    assert heard == [("control/shutdown", b"t")] * 2
    assert guest.read("control/shutdown") == b"poweroff"
    assert shutdown_pending(store, 1) == "poweroff"
    guest.write("control/shutdown", b"")
    assert shutdown_pending(store, 1) == ""
    with pytest.raises(ConfigError, match="poweroff"):
        request_shutdown(store, 1, "explode")
    with refused("ENOENT"):
        request_shutdown(store, 3, "poweroff")


@pytest.mark.promise("I-10")
def test_nothing_is_left_of_a_removed_domu(store: Store) -> None:
    store.release(1)
    store.mkdir("/local/domain/0/backend/vbd")
    before = store.dump()
    write_domu(store, domu())
    store.introduce(1)
    store.write("/local/domain/0/backend/vbd/1/768/state", 4)
    remove_domu(store, 1)
    assert store.dump() == before


def test_the_same_operations_give_the_same_store() -> None:
    def run() -> str:
        store = Store()
        write_domu(store, domu())
        client, heard = connect(store)
        client.watch("data", b"t")
        for n in range(20):
            client.write(f"data/{n % 7}", str(n).encode())
        return store.dump() + repr(heard)

    assert run() == run()
