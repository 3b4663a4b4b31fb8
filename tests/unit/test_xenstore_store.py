# SPDX-License-Identifier: GPL-2.0-only
"""The store's semantics: nodes, permissions, a domain's life."""

from typing import Any

import pytest
from store_clients import HOME, connect, refused, two_homes

from pyhv.errors import ConfigError
from pyhv.xenstore.domu import DomU, remove_domu, request_shutdown, shutdown_pending, write_domu
from pyhv.xenstore.limits import canonical
from pyhv.xenstore.permissions import Access, Permissions
from pyhv.xenstore.store import Store


@pytest.fixture
def store() -> Store:
    return two_homes()


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
