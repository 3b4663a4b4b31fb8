# SPDX-License-Identifier: GPL-2.0-only
"""The store's saved state: a store rebuilt from it answers as the saved one, whatever comes then."""

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.abi.xs_wire import LinkError, Message
from pyhv.errors import StateError
from pyhv.state import restore, state
from pyhv.testing.saving import assert_restored, packed, unexplained_from
from pyhv.xenstore.limits import Quota, StoreError
from pyhv.xenstore.store import Store
from pyhv.xenstore.wire import Connection, encode

GUESTS = (3, 1)
QUOTA = Quota(nodes=12, entry_bytes=64, watches=2, transactions=2, transaction_nodes=8, event_bytes=120)


class World:
    """A store with two guests and a watch of the hypervisor's own."""

    def __init__(self, guests: tuple[int, ...] = GUESTS) -> None:
        self.store = Store(QUOTA)
        self.heard: list[str] = []
        self.store.attach("/local/domain", self.heard.append, "toolstack")
        for domid in guests:
            self.store.mkdir(f"/local/domain/{domid}")
            self.store.set_permissions(f"/local/domain/{domid}", [f"b{domid}"])
        self.guests = {domid: Connection(self.store, domid) for domid in guests}

    def perform(self, operation: tuple[Any, ...]) -> object:
        """What one step answers."""
        what, domid, *rest = operation
        guest = self.guests[domid]
        if what == "feed":
            return guest.feed(*rest)
        if what == "take":
            return guest.take(*rest)
        if what == "fail":
            return guest.fail(LinkError.PROTOCOL)
        if what == "reset":
            return guest.reset()
        self.heard.clear()
        answer = self.as_dom0(what, domid, *rest)
        return answer, list(self.heard)

    def as_dom0(self, what: str, domid: int, *rest: Any) -> object:
        calls: dict[str, Callable[..., object]] = {
            "write": self.store.write,
            "permit": self.store.set_permissions,
            "introduce": lambda: self.store.introduce(domid),
            "release": lambda: self.store.release(domid),
        }
        try:
            return calls[what](*rest)
        except StoreError as error:
            return error.name

    def saved(self) -> list[Any]:
        return [packed(self.store), *(packed(self.guests[domid]) for domid in GUESTS)]

    def rebuild(self) -> "World":
        """In the other order, as another process might; a released domain's guest is closed first."""
        other = World(GUESTS[::-1])
        for domid in GUESTS:
            assert_restored(self.guests[domid], other.guests[domid])
        assert_restored(self.store, other.store)
        return other


PATHS = st.sampled_from(["a", "a/b", "a/b/c", "b", "/local/domain/3/a", "/tool", "@releaseDomain"])
PERMISSIONS = st.sampled_from([["n0", "b3"], ["b3"], ["r0", "w1"], ["n1", "r3"]])
VALUES = st.sampled_from(["v", "v", "too long for this quota " * 3])
TX = st.sampled_from([0, 0, 1, 2, 3])


def message(kind: Message, *parts: str, tx: int = 0) -> bytes:
    return encode(kind, 5, tx, b"".join(part.encode() + b"\0" for part in parts))


MESSAGES = st.one_of(
    st.builds(lambda path, v, tx: message(Message.WRITE, path, v, tx=tx), PATHS, VALUES, TX),
    st.builds(lambda path, tx: message(Message.MKDIR, path, tx=tx), PATHS, TX),
    st.builds(lambda path, tx: message(Message.RM, path, tx=tx), PATHS, TX),
    st.builds(lambda path, tx: message(Message.READ, path, tx=tx), PATHS, TX),
    st.builds(lambda path, tx: message(Message.DIRECTORY_PART, path, "0", tx=tx), PATHS, TX),
    st.builds(lambda path, who, tx: message(Message.SET_PERMS, path, *who, tx=tx), PATHS, PERMISSIONS, TX),
    st.builds(lambda path, token: message(Message.WATCH, path, token), PATHS, st.sampled_from("tu")),
    st.builds(lambda path: message(Message.UNWATCH, path, "t"), PATHS),
    st.just(message(Message.TRANSACTION_START, "")),
    st.builds(lambda tx, how: message(Message.TRANSACTION_END, how, tx=tx), TX, st.sampled_from("TF")),
)
DOMIDS = st.sampled_from(GUESTS)
OPERATIONS = st.one_of(
    st.tuples(st.just("feed"), DOMIDS, MESSAGES),
    st.tuples(st.just("feed"), DOMIDS, MESSAGES),
    st.tuples(st.just("feed"), DOMIDS, st.tuples(MESSAGES, st.integers(1, 20)).map(lambda m: m[0][: m[1]])),
    st.tuples(st.just("take"), DOMIDS, st.sampled_from([1, 20, 10_000, 10_000])),
    st.tuples(st.just("write"), DOMIDS, st.sampled_from(["/local/domain/3/a/x", "/local/domain/1/b"])),
    st.tuples(st.just("permit"), DOMIDS, st.sampled_from(["@releaseDomain", "/tool"]), PERMISSIONS),
    st.tuples(st.sampled_from(["introduce", "release", "fail", "reset"]), DOMIDS),
)


@settings(max_examples=100, deadline=None)
@given(st.lists(OPERATIONS, max_size=40), st.lists(OPERATIONS, max_size=25), st.booleans())
def test_a_rebuilt_store_goes_on_as_the_saved_one(before: list[Any], after: list[Any], watched: bool) -> None:
    world = World()
    if watched:
        world.store.watch("/local/domain", world.heard.append, "toolstack2")
    for operation in before:
        world.perform(operation)
    other = world.rebuild()
    if watched:
        other.store.attach("/local/domain", other.heard.append, "toolstack2")
    assert unexplained_from(world.store, *world.guests.values()) == []
    for operation in after:
        assert other.perform(operation) == world.perform(operation)
    assert other.store.dump() == world.store.dump()
    assert other.saved() == world.saved()
    assert {d: other.store.owned_nodes(d) for d in range(4)} == {
        d: world.store.owned_nodes(d) for d in range(4)
    }


@given(st.lists(OPERATIONS, max_size=30), st.lists(OPERATIONS, max_size=30))
@settings(max_examples=50, deadline=None)
def test_a_store_is_put_back_in_place(before: list[Any], after: list[Any]) -> None:
    def living(operations: list[Any]) -> list[Any]:
        return [operation for operation in operations if operation[0] != "release"]

    world = World()
    for operation in living(before):
        world.perform(operation)
    then = world.saved()
    answers = [world.perform(operation) for operation in living(after)]
    for thing, saved in zip([world.store, *(world.guests[d] for d in GUESTS)], then, strict=True):
        restore(thing, saved)
    assert world.saved() == then
    assert [world.perform(operation) for operation in living(after)] == answers


def test_trees_share_their_nodes_again_and_conflicts_are_found() -> None:
    world = World()
    store = world.store
    for number in range(200):
        store.write(f"/local/domain/1/a/{number}", "x")
    for _ in range(2):
        world.guests[1].feed(message(Message.TRANSACTION_START, ""))
        world.guests[1].take(100)
    store.write("/tool/new", "y")
    saved: Any = packed(store)
    assert len(saved["nodes"]) < 200 + 20
    other = world.rebuild()
    for one in (world, other):
        guest = one.guests[1]
        guest.feed(message(Message.READ, "/tool", tx=1))
        guest.take(100)
        one.store.write("/local/domain/1/a/7", "z")
        guest.feed(message(Message.WRITE, "a/7", "mine", tx=2))
        guest.take(100)
        guest.feed(message(Message.TRANSACTION_END, "T", tx=2))
        assert guest.take(100).endswith(b"EAGAIN\0")


def test_a_deep_tree_needs_no_recursion() -> None:
    world = World()
    path = "/" + "a/" * 1000 + "b"
    world.store.write(path, "deep")
    assert world.rebuild().store.read(path) == b"deep"


def test_a_cancelled_watch_of_the_hypervisors_stays_cancelled_after_it_was_put_back() -> None:
    world = World()
    saved = packed(world.store)
    handle = world.store.watch("/tool", world.heard.append)
    restore(world.store, saved)
    world.heard.clear()
    world.store.write("/tool/x")
    handle.cancel()
    assert world.heard == []
    with pytest.raises(StoreError, match="EEXIST"):
        world.store.watch("/tool", world.heard.append, "toolstack")


def busy_world() -> World:
    world = World()
    for part in (
        message(Message.WATCH, "a", "t"),
        message(Message.TRANSACTION_START, ""),
        message(Message.WRITE, "a/b", "v", tx=1),
    ):
        world.guests[1].feed(part)
        world.guests[1].take(1000)
    return world


CLIENT = 2
"""Of guest 1, which `World` connects after guest 3."""


def changed(saved: Any, path: tuple[str | int, ...], value: object) -> Any:
    at = saved
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    return saved


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("nodes", 0, 3), [["a", 0]], "nodes.0 has node 0 below it"),
        (("nodes", 1, 3), [["a/b", 0]], "nodes.1 has a child of the name"),
        (("nodes", 1, 3), [["a", 0], ["a", 0]], "nodes.1 has two children of one name"),
        (("nodes", 0, 2), 10**6, "nodes.0 is of generation 1000000"),
        (("nodes", 0, 1), "x0", "nodes.0 is no list of permissions"),
        (("tree",), 10**6, "tree is node 1000000, of"),
        (("generation",), 2**64 - 1, "generation is 18446744073709551615"),
        (("specials",), [["@introduceDomain", "n0"]], "specials does not have"),
        (("clients",), [], "clients does not begin"),
        (("clients", CLIENT, 0), 7, "clients.2 is of domain 7, which is not connected"),
        (("clients", CLIENT, 2, 0, 0), "//", "clients.2 is '//'"),
        (("clients", CLIENT, 2, 0, 0), "/tool", "not in the domain's home"),
        (("clients", CLIENT, 2, 0, 3), 9, "watches_registered"),
        (("clients", CLIENT, 2), [["/a", b"", False, n] for n in range(99)], "clients.2 has 99 watches"),
        (("clients", CLIENT, 3, 0, 0), 0, "clients.2 has transactions whose numbers"),
        (("clients", CLIENT, 3, 0, 2), 10**6, "clients.2.transactions.0 is node"),
        (("clients", CLIENT, 3, 0, 5, 0, 0), "Explode", "clients.2.transactions.0 has a change of the kind"),
        (
            ("clients", CLIENT, 3, 0, 5, 0, 1),
            "a",
            "clients.2.transactions.0 is 'a', which is no absolute path",
        ),
        (
            ("clients", CLIENT, 3, 0, 4),
            [[f"/{n}", 1] for n in range(99)],
            "is larger than a transaction may be",
        ),
    ],
)
def test_what_no_store_can_have_been_is_refused(path: tuple[Any, ...], value: Any, told: str) -> None:
    saved = changed(packed(busy_world().store), path, value)
    with pytest.raises(StateError) as refused:
        restore(World().store, saved)
    assert told in str(refused.value)


def test_nodes_that_unfold_without_end_are_refused() -> None:
    """Each node has the one before it twice below it: forty of them would be a tree of 2**40."""
    world = World()
    saved: Any = packed(world.store)
    saved["nodes"] = [[b"", "n0", 0, [["a", n - 1], ["b", n - 1]] if n else []] for n in range(40)]
    saved["tree"] = 39
    with pytest.raises(StateError, match=r"nodes\.5 has more below it"):
        restore(world.store, saved)
    saved["nodes"] = [[b"", "n0", 0, [["a" * 200, n - 1]] if n else []] for n in range(40)]
    with pytest.raises(StateError, match="more below it"):
        restore(world.store, saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("input", b"x" * 5000),
        ("events", [b"x" * 60, b"y" * 61]),
        ("events", [b"x", b"x"]),
        ("error", 9),
    ],
)
def test_what_no_connection_can_have_been_is_refused(field: str, value: Any) -> None:
    guest = World().guests[1]
    with pytest.raises(StateError, match=field):
        restore(guest, {**state(guest), field: value})


def test_a_tree_that_has_a_node_twice_is_refused() -> None:
    world = World()
    saved: Any = packed(world.store)
    top = saved["tree"]
    saved["nodes"][top][3].append(["again", saved["nodes"][top][3][0][1]])
    saved["nodes"] += [[b"", "n0", 0, []]] * 50
    with pytest.raises(StateError, match="has a node twice in the tree below node"):
        restore(world.store, saved)


def test_a_count_of_watches_costs_nothing() -> None:
    world = World()
    restore(world.store, {**state(world.store), "watches_registered": 2**61})
    assert state(world.store)["watches_registered"] == 2**61


def test_a_transaction_that_has_failed_stays_failed() -> None:
    world = busy_world()
    world.guests[1].feed(message(Message.WRITE, "a/c", "x" * 200, tx=1))
    world.guests[1].take(1000)
    other = world.rebuild()
    for one in (world, other):
        one.guests[1].feed(message(Message.TRANSACTION_END, "T", tx=1))
        assert one.guests[1].take(1000).endswith(b"ENOMEM\0")


def test_events_that_wait_count_against_the_quota() -> None:
    world = busy_world()
    for number in range(4):
        world.store.write(f"/local/domain/1/a/{number}")
    assert world.guests[1].events_dropped == 0
    other = world.rebuild()
    for one in (world, other):
        for number in range(4, 9):
            one.store.write(f"/local/domain/1/a/{number}")
    assert other.guests[1].events_dropped == world.guests[1].events_dropped > 0
    assert other.guests[1].take(1000) == world.guests[1].take(1000)
