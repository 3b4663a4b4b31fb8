# SPDX-License-Identifier: GPL-2.0-only
"""The tree of nodes: persistent, so that a snapshot costs nothing.

A node is immutable. Changing one makes new nodes for it and for the nodes above it, up to a new root; all
else is shared with the tree as it was. Whoever keeps the old root keeps the old tree: that is all a
transaction's isolation needs. Semantics: docs/misc/xenstore.txt. The tree asks nobody's permission, knows
no quota (it only counts who owns how many nodes), and fires no watches.

            root g=7                 a node's generation g is the number of the last change to its value,
           /        \\                its permissions or its list of children - not to what lies deeper;
        local      tool g=2          conflicts between transactions are found by comparing generations
"""

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import field, replace
from typing import ClassVar, Final

from pyhv.frozen import frozen
from pyhv.xenstore.limits import DOM0, StoreError, components, joined
from pyhv.xenstore.permissions import PRIVATE_TO_DOM0, Permissions

_RECORD_HEADER: Final = 24
_RECORD_PERMISSION: Final = 8


@frozen(by_identity=True)
class Node:
    """One node. Compared by identity: chains may be too deep for a recursive comparison."""

    value: bytes = b""
    permissions: Permissions = PRIVATE_TO_DOM0
    generation: int = 0
    children: Mapping[str, "Node"] = field(default_factory=dict)
    """In order of creation; never changed in place."""

    @property
    def record_bytes(self) -> int:
        """The size that the entry quota measures: header, permissions, value, children's names."""
        return (
            _RECORD_HEADER
            + _RECORD_PERMISSION * len(self.permissions.entries)
            + len(self.value)
            + sum(len(name) + 1 for name in self.children)
        )


def spine(root: Node, path: str) -> list[Node]:
    """The nodes that exist on the way to `path`, from the root down.

    The node itself is the last one if and only if there is one more node than the path has components.
    """
    found = [root]
    for name in components(path):
        below = found[-1].children.get(name)
        if below is None:
            break
        found.append(below)
    return found


def find(root: Node, path: str) -> Node | None:
    """The node at a canonical path, or None."""
    found = spine(root, path)
    return found[-1] if len(found) == len(components(path)) + 1 else None


def walk(top: Node, path: str) -> Iterator[tuple[str, Node]]:
    """Every node at and below `top`, which lies at `path`: parents first, siblings in their order."""
    pending = [(path, top)]
    while pending:
        here, node = pending.pop()
        yield here, node
        pending.extend((joined(here, name), child) for name, child in reversed(list(node.children.items())))


class Tree:
    """A root, and how many nodes each domain owns. All paths are canonical."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "root": "the store says the nodes of all its trees together, as they share them",
        "owned": "follows from the root",
    }

    def __init__(self, root: Node | None = None, owned: Counter[int] | None = None) -> None:
        self.root = Node() if root is None else root
        self.owned: Counter[int] = Counter({DOM0: 1}) if owned is None else owned

    def fork(self) -> "Tree":
        """A tree that starts equal to this one and goes its own way."""
        return Tree(self.root, self.owned.copy())

    def adopt(self, other: "Tree") -> None:
        """Become what `other` is."""
        self.root, self.owned = other.root, other.owned

    def find(self, path: str) -> Node | None:
        """The node at `path`, or None."""
        return find(self.root, path)

    def create(self, path: str, value: bytes, permissions: Permissions, generation: int) -> None:
        """Make the node at `path`, and those missing above it, which stay empty.

        All get `permissions`. Raises `StoreError` EEXIST if the node is there.
        """
        names = components(path)
        above = spine(self.root, path)
        missing = names[len(above) - 1 :]
        if not missing:
            raise StoreError("EEXIST", path)
        node = Node(value, permissions, generation)
        for name in reversed(missing[1:]):
            node = Node(b"", permissions, generation, {name: node})
        parent = above[-1]
        grown = replace(parent, children={**parent.children, missing[0]: node}, generation=generation)
        self._graft(above[:-1], names, grown)
        self.owned[permissions.owner] += len(missing)

    def set_value(self, path: str, value: bytes, generation: int) -> None:
        """Give the node at `path` a value. Raises `StoreError` ENOENT."""
        above, node = self._existing(path)
        self._graft(above, components(path), replace(node, value=value, generation=generation))

    def set_permissions(self, path: str, permissions: Permissions, generation: int) -> None:
        """Give the node at `path` a permission list, and perhaps an owner. Raises `StoreError` ENOENT."""
        above, node = self._existing(path)
        self._graft(above, components(path), replace(node, permissions=permissions, generation=generation))
        self.owned[node.permissions.owner] -= 1
        self.owned[permissions.owner] += 1

    def remove(self, path: str, generation: int) -> None:
        """Remove the node at `path` and all below it. Raises `StoreError` ENOENT, or EINVAL for the root."""
        if path == "/":
            raise StoreError("EINVAL", "the root cannot be removed")
        above, node = self._existing(path)
        names = components(path)
        left = {name: child for name, child in above[-1].children.items() if name != names[-1]}
        self._graft(above[:-1], names, replace(above[-1], children=left, generation=generation))
        for _, gone in walk(node, path):
            self.owned[gone.permissions.owner] -= 1

    def _existing(self, path: str) -> tuple[list[Node], Node]:
        found = spine(self.root, path)
        if len(found) != len(components(path)) + 1:
            raise StoreError("ENOENT", path)
        return found[:-1], found[-1]

    def _graft(self, above: list[Node], names: list[str], node: Node) -> None:
        """Put `node` below the old nodes `above`, replacing each of them; `names` leads to it."""
        for parent, name in zip(reversed(above), reversed(names[: len(above)]), strict=True):
            # Keeps the name's place in the order; the parent's generation is not this change's business.
            # Not `replace`, which takes four times as long: a domain's start grafts some hundred times.
            node = Node(parent.value, parent.permissions, parent.generation, {**parent.children, name: node})
        self.root = node
