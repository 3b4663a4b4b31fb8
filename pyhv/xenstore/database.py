# SPDX-License-Identifier: GPL-2.0-only
"""The state that all clients of the store share, and the few ways to change it.

Every change to the shared tree goes through `perform` or `commit`, so that generations, quotas and watches
are dealt with in one place. Events are queued while a change is made and told afterwards, first come first
told: whoever hears of a change sees the tree after it, and a listener may change the store in turn. Nothing
here is random or timed: the same operations in the same order give the same store. Not thread-safe: its
user holds the hypervisor lock.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from typing import ClassVar, Final

from pyhv.xenstore.limits import DOM0, Quota, StoreError, domain_path, lineage
from pyhv.xenstore.permissions import PRIVATE_TO_DOM0, Access, Permissions
from pyhv.xenstore.transactions import Change, Create, NodeEffect, Remove, SetPermissions, Transaction, apply
from pyhv.xenstore.tree import Tree, find, spine, walk
from pyhv.xenstore.watches import Event, WatchTable

INTRODUCE: Final = "@introduceDomain"
RELEASE: Final = "@releaseDomain"


class Database:
    """The tree, the watches, the domains that are introduced, and the queue of events."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "quota": "the store's maker",
        "tree": "said by the store, with the trees of transactions",
        "watches": "said by the clients",
        "watches_held": "follows from the clients",
        "transactions_held": "follows from the clients",
        "introduced": "said by the store",
        "specials": "said by the store",
        "generation": "said by the store",
        "_events": "empty unless something is being told",
        "_telling": "false then",
    }

    def __init__(self, quota: Quota) -> None:
        self.quota = quota
        self.tree = Tree()
        self.watches = WatchTable()
        self.introduced: set[int] = set()
        self.specials: dict[str, Permissions] = {INTRODUCE: PRIVATE_TO_DOM0, RELEASE: PRIVATE_TO_DOM0}
        """Who may hear of the special events."""
        self.watches_held: Counter[int] = Counter()
        self.transactions_held: Counter[int] = Counter()
        self.generation = 0
        """The number of the last change."""
        self._events: deque[Event] = deque()
        self._telling = False

    def next_generation(self) -> int:
        """A number larger than that of any change before."""
        self.generation += 1
        return self.generation

    @property
    def at_rest(self) -> bool:
        """Whether nobody is being told anything, so that the store can be saved."""
        return not self._telling and not self._events

    def perform(self, *changes: Change) -> None:
        """Make changes, already checked, to the shared tree, and then tell the watchers."""
        before = self.tree.root
        effects = [apply(change, self.tree, self.next_generation()) for change in changes]
        self.tell(self.watches.events(effects, before, self.tree.root))

    def commit(self, transaction: Transaction) -> None:
        """Make all changes of a transaction, or none.

        Raises `StoreError` EAGAIN on a conflict, ENOSPC if a domain would then own too many nodes.
        """
        if transaction.conflicts(self.tree):
            raise StoreError("EAGAIN", "a node that the transaction depends on has changed")
        before = self.tree.root
        outcome = self.tree.fork()
        effects: dict[str, NodeEffect] = {}
        for change in transaction.changes:
            effect = apply(change, outcome, self.next_generation())
            known = effects.get(effect.path)
            if known is None or known.removed is None:  # one event a path, whatever became of it
                effects[effect.path] = effect
        # What was made and removed again is no news, but what was made above it and stayed is.
        told = {above for path in effects if outcome.find(path) for above in lineage(path)}
        for path in list(effects):
            left = lineage(path)[len(spine(outcome.root, path)) - 1]
            if left not in told and find(before, left) is None:
                effects[left] = NodeEffect(left)
                told.update(lineage(left))
        for domid, nodes in outcome.owned.items():
            if domid != DOM0 and nodes > max(self.quota.nodes, self.tree.owned[domid]):
                raise StoreError("ENOSPC", f"domain {domid} would own {nodes} nodes")
        self.tree.adopt(outcome)
        self.tell(self.watches.events(effects.values(), before, outcome.root))

    def announce(self, name: str) -> None:
        """Tell the watchers of a special event."""
        permissions = self.specials[name]
        self.tell(self.watches.special_events(name, lambda domid: Access.READ in permissions.of(domid)))

    def tell(self, events: Iterable[Event]) -> None:
        """Queue events, and deliver all that is queued unless that is already going on further up."""
        self._events.extend(events)
        if self._telling:
            return
        self._telling = True
        try:
            while self._events:
                self._events.popleft().deliver()
        finally:
            self._telling = False

    def erase_domain(self, domid: int) -> None:
        """Remove a domain's home and every other node it owns, and strike it from all permission lists.

        Its number may be given to another domain, which must not inherit anything.
        """
        home = domain_path(domid)
        doomed: list[Change] = []
        skip = ""
        for path, node in walk(self.tree.root, "/"):
            if skip and path.startswith(skip):
                continue
            if path == home or (path != "/" and node.permissions.owner == domid):
                doomed.append(Remove(path))
                skip = f"{path}/"
            elif node.permissions.owner == domid:
                doomed.append(SetPermissions(path, PRIVATE_TO_DOM0))
            elif (left := node.permissions.without(domid)) is not node.permissions:
                doomed.append(SetPermissions(path, left))
        for name, permissions in self.specials.items():
            owned = permissions.owner == domid
            self.specials[name] = PRIVATE_TO_DOM0 if owned else permissions.without(domid)
        # All at once: a listener that tidies up in turn must find nothing half done.
        self.perform(*doomed)

    def make_directory(self, path: str) -> None:
        """Make an empty node of dom0's, if it is missing."""
        if self.tree.find(path) is None:
            self.perform(Create(path, b"", PRIVATE_TO_DOM0))
