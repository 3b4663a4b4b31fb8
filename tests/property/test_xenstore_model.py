# SPDX-License-Identifier: GPL-2.0-only
"""The store against a model that anybody can check: a dict from path to (value, owner), copied whole.

A transaction of the model is a copy of the dict. Its end is compared with the store's: where the store
commits, the changes made in the transaction, replayed on the model, must give the store's tree; where the
store answers EAGAIN, somebody must have changed the tree in between, and nothing may have happened.
"""

from collections.abc import Callable

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, precondition, rule

from pyhv.state import restore, state
from pyhv.xenstore.client import Client
from pyhv.xenstore.limits import StoreError, lineage, parent_of
from pyhv.xenstore.store import Store

HOME = "/local/domain/1"
PATHS = st.lists(st.sampled_from("abc"), min_size=1, max_size=3).map(lambda names: "/".join([HOME, *names]))
VALUES = st.binary(max_size=4)
Model = dict[str, tuple[bytes, int]]


def model_write(model: Model, path: str, value: bytes | None, domid: int) -> None:
    """`value` None is mkdir."""
    for above in lineage(path)[:-1]:
        if above not in model:
            model[above] = (b"", model[parent_of(above)][1] if domid == 0 else domid)
    if path in model:
        if value is not None:
            model[path] = (value, model[path][1])
    else:
        model[path] = (value or b"", model[parent_of(path)][1] if domid == 0 else domid)


def model_remove(model: Model, path: str) -> str:
    if path not in model:
        return "" if parent_of(path) in model else "ENOENT"
    for other in list(model):
        if other == path or other.startswith(f"{path}/"):
            del model[other]
    return ""


def model_children(model: Model, path: str) -> set[str]:
    return {other.rpartition("/")[2] for other in model if other != "/" and parent_of(other) == path}


class Open:
    """A transaction of the model: its own copy, and what to replay."""

    def __init__(self, tx: int, domid: int, model: Model) -> None:
        self.tx, self.domid, self.start = tx, domid, dict(model)
        self.now = dict(model)
        self.replay: list[tuple[str, str, bytes | None]] = []
        self.others_wrote = False
        self.watched: set[str] = set()


class StoreMachine(RuleBasedStateMachine):
    transactions = Bundle("transactions")

    def __init__(self) -> None:
        super().__init__()
        self.store = Store()
        self.store.mkdir(HOME)
        self.store.set_permissions(HOME, ["b1"])
        self.heard: list[str] = []
        self.clients = {
            0: self.store.connect(0, lambda path, token: None),
            1: self.store.connect(1, lambda path, token: None),
        }
        self.store.watch(HOME, self.heard.append, "model")
        self.model: Model = {
            path: (b"", 1 if path == HOME else 0)
            for path in (
                "/",
                "/tool",
                "/tool/xenstored",
                "/local",
                "/local/domain",
                "/local/domain/0",
                "/vm",
                HOME,
            )
        }
        self.open: list[Open] = []
        self.heard.clear()

    def answer(self, operation: Callable[..., object], *arguments: object) -> str:
        try:
            operation(*arguments)
        except StoreError as error:
            return error.name
        return ""

    def outside_change(self) -> None:
        for transaction in self.open:
            transaction.others_wrote = True

    @rule(domid=st.sampled_from([0, 1]), path=PATHS, value=st.none() | VALUES)
    def write(self, domid: int, path: str, value: bytes | None) -> None:
        client = self.clients[domid]
        self.heard.clear()
        changes = value is not None or path not in self.model
        if value is None:
            client.mkdir(path)
        else:
            client.write(path, value)
        assert self.heard == ([path] if changes else [])
        model_write(self.model, path, value, domid)
        self.outside_change()

    @rule(domid=st.sampled_from([0, 1]), path=PATHS)
    def remove(self, domid: int, path: str) -> None:
        self.heard.clear()
        there = path in self.model
        assert self.answer(self.clients[domid].remove, path) == model_remove(self.model, path)
        assert self.heard == ([path] if there else [])
        self.outside_change()

    @rule(path=PATHS)
    def read(self, path: str) -> None:
        self.compare_read(self.clients[1], path, 0, self.model)

    def compare_read(self, client: Client, path: str, tx: int, model: Model) -> None:
        if path in model:
            assert client.read(path, tx) == model[path][0]
            assert set(client.directory(path, tx)) == model_children(model, path)
            assert client.permissions(path, tx).owner == model[path][1]
        else:
            assert self.answer(client.read, path, tx) == "ENOENT"

    @precondition(lambda self: len(self.open) < 6)
    @rule(target=transactions, domid=st.sampled_from([0, 1]))
    def begin(self, domid: int) -> Open:
        transaction = Open(self.clients[domid].start(), domid, self.model)
        self.open.append(transaction)
        return transaction

    @rule(t=transactions, path=PATHS, value=st.none() | VALUES)
    def write_inside(self, t: Open, path: str, value: bytes | None) -> None:
        client = self.clients[t.domid]
        if value is None:
            client.mkdir(path, t.tx)
        else:
            client.write(path, value, t.tx)
        model_write(t.now, path, value, t.domid)
        t.replay.append(("write", path, value))

    @rule(t=transactions, path=PATHS)
    def remove_inside(self, t: Open, path: str) -> None:
        assert self.answer(self.clients[t.domid].remove, path, t.tx) == model_remove(t.now, path)
        t.replay.append(("remove", path, None))

    @rule(t=transactions, path=PATHS)
    def read_inside(self, t: Open, path: str) -> None:
        self.compare_read(self.clients[t.domid], path, t.tx, t.now)
        t.watched.add(path)

    @rule(t=consumes(transactions), commit=st.booleans())
    def end(self, t: Open, commit: bool) -> None:
        self.open.remove(t)
        self.heard.clear()
        answer = self.answer(self.clients[t.domid].end, t.tx, commit)
        if not commit or answer:
            assert answer in ("EAGAIN", "") if commit else answer == ""
            assert t.others_wrote or not answer
            assert self.heard == []
            return
        # Whatever it looked at is still what it saw: else it had to be refused.
        for path in t.watched:
            assert self.model.get(path) == t.start.get(path)
            assert model_children(self.model, path) == model_children(t.start, path)
        before = dict(self.model)
        for operation, path, value in t.replay:
            if operation == "write":
                model_write(self.model, path, value, t.domid)
            else:
                model_remove(self.model, path)
        assert len(self.heard) == len(set(self.heard))
        for path in {path for path in {*before, *self.model} if before.get(path) != self.model.get(path)}:
            # Told of itself, with the subtree it went with, or by the node it was made for.
            assert any(
                f"{one}/".startswith(f"{other}/")
                for heard in self.heard
                for one, other in ((path, heard), (heard, path))
            )
        if t.replay:
            for other in self.open:
                other.others_wrote = True

    @rule()
    def go_on_with_a_rebuilt_store(self) -> None:
        store, saved = Store(), state(self.store)
        self.clients = {domid: store.connect(domid, lambda path, token: None) for domid in self.clients}
        store.attach(HOME, self.heard.append, "model")
        restore(store, saved)
        assert state(store) == saved
        self.store = store

    @invariant()
    def the_trees_are_equal(self) -> None:
        assert {line.split(" = ")[0] for line in self.store.dump().splitlines()} == set(self.model)
        for path, (value, owner) in self.model.items():
            assert self.store.read(path) == value
            assert int(self.store.permissions(path)[0][1:]) == owner

    @invariant()
    def owners_are_counted(self) -> None:
        for domid in (0, 1):
            assert self.store.owned_nodes(domid) == sum(owner == domid for _, owner in self.model.values())


StoreMachine.TestCase.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
TestStore = StoreMachine.TestCase
