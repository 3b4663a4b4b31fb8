# SPDX-License-Identifier: GPL-2.0-only
"""Watches: who wants to hear of changes where.

A watch on a path hears of that path and of everything below it. When a subtree goes, watches on the nodes
inside it hear too, each of its own node. A watch on a special name (`@introduceDomain`, `@releaseDomain`)
hears when domains come and go. Nobody hears of a node that they could not have learnt of by looking: one
must be able to read the node, or its parent, before or after the change. Semantics: docs/misc/xenstore.txt.
This module decides who hears what; it delivers nothing.
"""

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from pyhv.frozen import frozen
from pyhv.state import given, refusal
from pyhv.xenstore.limits import StoreError, canonical, domain_path, lineage, parent_of, special
from pyhv.xenstore.permissions import Access
from pyhv.xenstore.saved import SavedWatch, check_path
from pyhv.xenstore.transactions import NodeEffect
from pyhv.xenstore.tree import Node, find, walk

Deliver = Callable[[str, bytes], None]
"""Takes the path, as its watcher names it, and the watch's token."""


@dataclass(eq=False, slots=True)
class Watch:
    """One registered watch."""

    domid: int
    path: str
    """Canonical path, or special name."""
    token: bytes
    relative: bool
    """Paths in its events are relative to the domain's home."""
    deliver: Deliver = given("whoever connects its client")
    order: int = 0
    active: bool = field(default=True)
    """False once removed: events still queued for it are void."""

    @classmethod
    def of(cls, domid: int, path: str, token: bytes, deliver: Deliver) -> "Watch":
        """The watch on `path` as the domain wrote it. Raises `StoreError` EINVAL for a bad path."""
        if path.startswith("@"):
            return cls(domid, special(path), token, False, deliver)
        return cls(domid, canonical(path, domid), token, not path.startswith("/"), deliver)

    @classmethod
    def saved(cls, domid: int, saved: SavedWatch, deliver: Deliver, where: str) -> "Watch":
        """The watch that was saved; StateError."""
        if not saved.path.startswith("@"):
            check_path(saved.path, where)
        elif saved.relative or saved.path != special(saved.path):
            raise refusal(where, f"watches {saved.path[:32]!r}")
        if saved.relative and not saved.path.startswith(f"{domain_path(domid)}/"):
            raise refusal(where, f"watches {saved.path[:64]!r}, which is not in the domain's home")
        return cls(domid, saved.path, saved.token, saved.relative, deliver, saved.order)

    def name_of(self, path: str) -> str:
        """What the watcher is told instead of the canonical `path`."""
        return path[len(domain_path(self.domid)) + 1 :] if self.relative else path


@frozen
class Event:
    """What `watch` is to be told."""

    watch: Watch
    path: str

    def deliver(self) -> None:
        """Tell it, unless the watch has been removed since."""
        if self.watch.active:
            self.watch.deliver(self.watch.name_of(self.path), self.watch.token)


class WatchTable:
    """All watches of all clients, found by path."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "_by_path": "the clients say their watches",
        "registered": "said by the store",
    }

    def __init__(self) -> None:
        self._by_path: dict[str, list[Watch]] = {}
        self.registered = 0
        """How many ever were: a watch's place in the order."""

    def add(self, watch: Watch) -> None:
        """Register a watch."""
        self.registered += 1
        watch.order = self.registered
        self._by_path.setdefault(watch.path, []).append(watch)

    def remove(self, watch: Watch) -> None:
        """Forget a watch. Raises `StoreError` ENOENT if it is not registered."""
        there = self._by_path.get(watch.path, [])
        if watch not in there:
            raise StoreError("ENOENT", f"no watch on {watch.path}")
        watch.active = False
        there.remove(watch)
        if not there:
            del self._by_path[watch.path]

    def put_back(self, watches: list[Watch], registered: int) -> None:
        """Have these watches, which were saved, and no others. StateError."""
        orders = {watch.order for watch in watches}
        if len(orders) != len(watches) or not all(0 < order <= registered for order in orders):
            raise refusal("watches_registered", "does not go with the order of the watches")
        for there in self._by_path.values():
            for watch in there:
                watch.active = False
        self.registered = registered
        self._by_path = {}
        for watch in sorted(watches, key=_by_order):
            self._by_path.setdefault(watch.path, []).append(watch)

    def events(self, effects: Iterable[NodeEffect], before: Node, after: Node) -> list[Event]:
        """What a change that made the root `before` into the root `after` tells, in a fixed order."""
        return [event for effect in effects for event in self._of(effect, before, after)]

    def special_events(self, name: str, may_hear: Callable[[int], bool]) -> list[Event]:
        """What the special event `name` tells; `may_hear` takes a domain."""
        return [Event(watch, name) for watch in self._by_path.get(name, []) if may_hear(watch.domid)]

    def _of(self, effect: NodeEffect, before: Node, after: Node) -> Iterator[Event]:
        concerned = [watch for path in lineage(effect.path) for watch in self._by_path.get(path, ())]
        for watch in sorted(concerned, key=_by_order):
            if _is_visible(watch.domid, effect.path, before, after):
                yield Event(watch, effect.path)
        if effect.removed is None or not self._by_path:
            return
        below = walk(effect.removed, effect.path)
        next(below)  # the top has been told of above
        for path, _ in below:
            for watch in self._by_path.get(path, ()):
                if _is_visible(watch.domid, path, before, after):
                    yield Event(watch, path)


def _by_order(watch: Watch) -> int:
    return watch.order


def _is_visible(domid: int, path: str, *roots: Node) -> bool:
    """Whether `domid` can tell, in one of the trees, that there is a node at `path`."""
    for root in roots:
        if (node := find(root, path)) is None:
            continue
        if Access.READ in node.permissions.of(domid):
            return True
        parent = find(root, parent_of(path))
        if parent is not None and Access.READ in parent.permissions.of(domid):
            return True
    return False
