# SPDX-License-Identifier: GPL-2.0-only
"""The store as plain data: the records that its state consists of, and trees that share nodes.

The shared tree, each open transaction's own and the one that it began with have most of their nodes in
common. They are said together: one list of all nodes, children before parents, and each tree as the number of
its root. So what was shared is shared again, and nothing here recurses, however deep a tree is.

    nodes   0: a=1    1: /a -> 0 (root)    2: b=2    3: /a -> 0, /b -> 2 (root)
    shared tree: 3    a transaction that began before b was written: 1
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from pyhv.abi.layout import u16, u32
from pyhv.state import Tally, refusal
from pyhv.xenstore.limits import DOM0, PATH_MAX, StoreError, canonical, is_component
from pyhv.xenstore.permissions import Permissions
from pyhv.xenstore.tree import Node, Tree, walk

_LONGEST: Final = PATH_MAX + len("/local/domain/65535/")
"""No absolute path is longer."""


class SavedNode(NamedTuple):
    """A node; its children are numbers of earlier nodes, in the order of their creation."""

    value: bytes
    permissions: str
    generation: Tally
    children: list[tuple[str, u32]]


class SavedChange(NamedTuple):
    """A change inside a transaction; `kind` is the class's name."""

    kind: str
    path: str
    value: bytes
    permissions: str


class SavedTransaction(NamedTuple):
    """An open transaction: the roots of its own tree, and of the one that it began with."""

    number: u32
    tree: u32
    start: u32
    failed: bool
    seen: list[tuple[str, Tally | None]]
    changes: list[SavedChange]


class SavedWatch(NamedTuple):
    """A watch; `order` is its place among all watches of the store."""

    path: str
    token: bytes
    relative: bool
    order: Tally


class SavedClient(NamedTuple):
    """What one connection holds."""

    domid: u16
    last_id: u32
    watches: list[SavedWatch]
    transactions: list[SavedTransaction]


@dataclass(slots=True)
class SavedStore:
    """Everything; the first client is the hypervisor's own."""

    nodes: list[SavedNode]
    tree: u32
    generation: Tally
    introduced: list[u16]
    specials: dict[str, str]
    watches_registered: Tally
    watches_made: Tally
    work: Tally
    clients: list[SavedClient]


class Numbering:
    """Numbers the nodes of some trees, for saying them."""

    def __init__(self) -> None:
        self._numbers: dict[int, int] = {}
        self._nodes: list[Node] = []

    def of(self, root: Node) -> int:
        """The number of a tree's root, after all of the tree has numbers."""
        numbers = self._numbers
        pending = [root]
        while pending:
            node = pending[-1]
            missing = [child for child in node.children.values() if id(child) not in numbers]
            if missing:
                pending.extend(reversed(missing))
                continue
            pending.pop()
            if id(node) not in numbers:
                numbers[id(node)] = len(self._nodes)
                self._nodes.append(node)
        return numbers[id(root)]

    def nodes(self) -> list[SavedNode]:
        """All nodes that have numbers, by number."""
        return [
            SavedNode(
                node.value,
                str(node.permissions),
                node.generation,
                [(name, self._numbers[id(child)]) for name, child in node.children.items()],
            )
            for node in self._nodes
        ]


class Nodes:
    """The nodes that were saved, rebuilt; StateError where they cannot be a store's."""

    def __init__(self, saved: list[SavedNode], generation: int) -> None:
        self._nodes: list[Node] = []
        self._sizes: list[int] = []
        """Of each node, how many it and those below it are."""
        self._lengths: list[int] = []
        """Of each node, how long the longest path below it is."""
        self._owned: dict[int, Counter[int]] = {}
        """Of those below which no node is twice, how many nodes each domain owns."""
        known: dict[str, Permissions] = {}
        for number, each in enumerate(saved):
            where = f"nodes.{number}"
            if each.generation > generation:
                raise refusal(where, f"is of generation {each.generation}, but the store's is {generation}")
            children = dict(self._children(each, where))
            if len(children) != len(each.children):
                raise refusal(where, "has two children of one name")
            size = 1 + sum(self._sizes[child] for child in children.values())
            length = max(
                (len(name) + 1 + self._lengths[child] for name, child in children.items()), default=0
            )
            if size > len(saved) or length > _LONGEST:
                raise refusal(where, "has more below it than a tree can have")
            self._sizes.append(size)
            self._lengths.append(length)
            below = {name: self._nodes[child] for name, child in children.items()}
            if each.permissions not in known:
                known[each.permissions] = read_permissions(each.permissions, where)
            self._nodes.append(Node(each.value, known[each.permissions], each.generation, below))

    def _children(self, node: SavedNode, where: str) -> Iterator[tuple[str, int]]:
        for name, child in node.children:
            if not is_component(name):
                raise refusal(where, f"has a child of the name {name[:32]!r}")
            if child >= len(self._nodes):
                raise refusal(where, f"has node {child} below it, which does not come before it")
            yield name, child

    def tree(self, number: int, where: str) -> Tree:
        """A tree by its root's number; no node is in two places of it."""
        if number >= len(self._nodes):
            raise refusal(where, f"is node {number}, of {len(self._nodes)}")
        root = self._nodes[number]
        if number not in self._owned:
            distinct = {id(node): node.permissions.owner for _, node in walk(root, "/")}
            if len(distinct) != self._sizes[number]:
                raise refusal(where, f"has a node twice in the tree below node {number}")
            self._owned[number] = Counter(distinct.values())
        return Tree(root, self._owned[number].copy())


def read_permissions(text: str, where: str) -> Permissions:
    """A permission list such as `n0,r5`; StateError."""
    try:
        return Permissions.parse(text.split(","))
    except StoreError as error:
        raise refusal(where, f"is no list of permissions: {error.why}") from None


def check_path(path: str, where: str) -> None:
    """StateError unless `path` is canonical and absolute."""
    try:
        legal = canonical(path, DOM0) == path
    except StoreError:
        legal = False
    if not legal:
        raise refusal(where, f"is {path[:64]!r}, which is no absolute path")
