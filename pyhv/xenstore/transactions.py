# SPDX-License-Identifier: GPL-2.0-only
"""Changes, and transactions: changes that happen all at once or not at all.

A transaction works on a fork of the tree as it was at its start. It writes down which nodes it looked at
and which changes it made. At its end, if any of those nodes has changed meanwhile in the shared tree, it
fails with EAGAIN and leaves no mark; otherwise its changes are replayed on the shared tree, where - since
nothing they depend on has moved - they do what they did on the fork. Semantics: docs/misc/xenstore.txt,
"Transactions". This module knows no domains and no permissions.
"""

from collections.abc import Mapping
from typing import ClassVar, Self

from pyhv.frozen import frozen
from pyhv.state import refusal
from pyhv.xenstore.limits import StoreError, lineage, parent_of
from pyhv.xenstore.permissions import Permissions
from pyhv.xenstore.saved import Nodes, Numbering, SavedChange, SavedTransaction, check_path, read_permissions
from pyhv.xenstore.tree import Node, Tree, find, spine


@frozen
class Create:
    """Make a node, and what is missing above it."""

    path: str
    value: bytes
    permissions: Permissions

    def apply(self, tree: Tree, generation: int) -> None:
        """Do it on `tree`."""
        tree.create(self.path, self.value, self.permissions, generation)


@frozen
class SetValue:
    """Replace a node's value."""

    path: str
    value: bytes

    def apply(self, tree: Tree, generation: int) -> None:
        """Do it on `tree`."""
        tree.set_value(self.path, self.value, generation)


@frozen
class SetPermissions:
    """Replace a node's permission list."""

    path: str
    permissions: Permissions

    def apply(self, tree: Tree, generation: int) -> None:
        """Do it on `tree`."""
        tree.set_permissions(self.path, self.permissions, generation)


@frozen
class Remove:
    """Remove a node and all below it."""

    path: str

    def apply(self, tree: Tree, generation: int) -> None:
        """Do it on `tree`."""
        tree.remove(self.path, generation)


Change = Create | SetValue | SetPermissions | Remove
"""A primitive change to a tree, already permitted and checked."""


@frozen(by_identity=True)
class NodeEffect:
    """What watchers hear of: something happened at `path`; `removed` is what was there if it is gone."""

    path: str
    removed: Node | None = None


def apply(change: Change, tree: Tree, generation: int) -> NodeEffect:
    """Do `change` on `tree` and say what watchers are to hear. Raises what the tree raises."""
    removed = tree.find(change.path) if isinstance(change, Remove) else None
    change.apply(tree, generation)
    return NodeEffect(change.path, removed)


class Transaction:
    """One open transaction. `tree` is the world as its owner sees it."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "tree": "it shares nodes with the store's: `say` numbers them",
        "_start": "the same",
        "changes": "see `say`",
        "failed": "see `say`",
        "_seen": "see `say`",
        "_nodes_max": "the quota of its client",
    }

    def __init__(self, shared: Tree, nodes_max: int) -> None:
        self.tree = shared.fork()
        self.changes: list[Change] = []
        self.failed = False
        """A part of it was refused for a quota: it can only be dropped."""
        self._start = shared.root
        self._seen: dict[str, int | None] = {}
        self._nodes_max = nodes_max

    def say(self, number: int, nodes: Numbering) -> SavedTransaction:
        """Its state."""
        return SavedTransaction(
            number,
            nodes.of(self.tree.root),
            nodes.of(self._start),
            self.failed,
            list(self._seen.items()),
            [_say_change(change) for change in self.changes],
        )

    @classmethod
    def of(cls, saved: SavedTransaction, nodes: Nodes, nodes_max: int, where: str) -> Self:
        """The transaction that was saved; StateError."""
        transaction = cls(nodes.tree(saved.start, where), nodes_max)
        transaction.tree = nodes.tree(saved.tree, where)
        transaction.changes = [_read_change(change, where) for change in saved.changes]
        transaction.failed = saved.failed
        transaction._seen = dict(saved.seen)
        for path in transaction._seen:
            check_path(path, where)
        if max(len(saved.seen), len(saved.changes)) > nodes_max:
            raise refusal(where, "is larger than a transaction may be")
        return transaction

    def look(self, path: str) -> None:
        """Note that the transaction's outcome depends on the node at `path`, be it there or not.

        Raises `StoreError` ENOSPC once it depends on more nodes than a transaction may.
        """
        if path in self._seen:
            return
        if len(self._seen) >= self._nodes_max:
            self.failed = True
            raise StoreError("ENOSPC", "the transaction touches too many nodes")
        self._seen[path] = _generation(self._start, path)

    def change(self, change: Change, generation: int) -> None:
        """Do `change` in this transaction only; `generation` is a fresh number.

        Raises `StoreError` ENOSPC as `look` does, and for as many changes as nodes: a transaction that
        writes in circles must not grow without bound.
        """
        self.look(change.path)
        if isinstance(change, Create):
            # Every ancestor that is made implicitly matters, and the one whose list of children grows.
            existing = len(spine(self.tree.root, change.path))
            for path in lineage(change.path)[existing - 1 :]:
                self.look(path)
        elif isinstance(change, Remove):
            self.look(parent_of(change.path))
        again = isinstance(change, SetValue) and self.changes and _sets_value(self.changes[-1], change.path)
        if not again and len(self.changes) >= self._nodes_max:
            self.failed = True
            raise StoreError("ENOSPC", "the transaction makes too many changes")
        apply(change, self.tree, generation)
        if again:
            self.changes.pop()
        self.changes.append(change)

    def conflicts(self, shared: Tree) -> bool:
        """Whether a node that the transaction depends on has changed since its start."""
        if shared.root is self._start:
            return False
        return any(_generation(shared.root, path) != seen for path, seen in self._seen.items())


def _say_change(change: Change) -> SavedChange:
    value = change.value if isinstance(change, Create | SetValue) else b""
    permissions = str(change.permissions) if isinstance(change, Create | SetPermissions) else ""
    return SavedChange(type(change).__name__, change.path, value, permissions)


def _read_change(saved: SavedChange, where: str) -> Change:
    check_path(saved.path, where)
    match saved.kind:
        case "Create":
            return Create(saved.path, saved.value, read_permissions(saved.permissions, where))
        case "SetValue":
            return SetValue(saved.path, saved.value)
        case "SetPermissions":
            return SetPermissions(saved.path, read_permissions(saved.permissions, where))
        case "Remove":
            return Remove(saved.path)
    raise refusal(where, f"has a change of the kind {saved.kind[:32]!r}")


def _generation(root: Node, path: str) -> int | None:
    node = find(root, path)
    return None if node is None else node.generation


def _sets_value(change: Change, path: str) -> bool:
    return isinstance(change, SetValue) and change.path == path
