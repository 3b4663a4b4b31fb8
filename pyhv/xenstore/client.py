# SPDX-License-Identifier: GPL-2.0-only
"""The store as one client sees it: every operation, with the permissions and quotas of its domain.

This is where "may it?" is asked. A missing node is only admitted (ENOENT) to those whom the nearest node
above would let in; all others hear EACCES. Error names are xenstored's; semantics are those of
docs/misc/xenstore.txt. Messages and rings are unknown here: `wire.py` speaks for guests, `store.py` for
the hypervisor's own parts.
"""

import sys
from collections.abc import Mapping
from typing import ClassVar, Final

from pyhv.state import refusal
from pyhv.xenstore.database import Database
from pyhv.xenstore.limits import DOM0, StoreError, canonical, components, lineage, parent_of
from pyhv.xenstore.permissions import Access, Permissions
from pyhv.xenstore.saved import Nodes, Numbering, SavedClient, SavedWatch
from pyhv.xenstore.transactions import Change, Create, Remove, SetPermissions, SetValue, Transaction
from pyhv.xenstore.tree import Node, Tree, spine
from pyhv.xenstore.watches import Deliver, Event, Watch

NO_TRANSACTION: Final = 0
_IDS: Final = 1 << 32


class Client:
    """One connection's authority and belongings: a domain, its watches and its transactions.

    Operations take paths as their client wrote them and a transaction's number, 0 for none; they raise
    `StoreError`: EINVAL for a bad path, EACCES, ENOENT for a missing node or transaction, ENOSPC for a
    quota, and what each says besides.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "domid": "whoever connects it says so; the store finds a client's state by it",
        "closed": "the store says only those that are open",
        "_database": "whoever connects it",
        "_deliver": "whoever connects it",
        "_watches": "see `say`",
        "_transactions": "see `say`",
        "_last_id": "see `say`",
    }

    def __init__(self, database: Database, domid: int, deliver: Deliver) -> None:
        self.domid = domid
        self.closed = False
        self._database = database
        self._deliver = deliver
        self._watches: dict[tuple[str, bytes], Watch] = {}
        self._transactions: dict[int, Transaction] = {}
        self._last_id = 0

    # ---- nodes

    def read(self, path: str, tx: int = NO_TRANSACTION) -> bytes:
        """A node's value."""
        return self._readable(path, tx).value

    def directory(self, path: str, tx: int = NO_TRANSACTION) -> list[str]:
        """The names of a node's children, in order of creation."""
        return list(self._readable(path, tx).children)

    def generation(self, path: str, tx: int = NO_TRANSACTION) -> int:
        """A number that differs whenever a node's list of children does."""
        return self._readable(path, tx).generation

    def permissions(self, path: str, tx: int = NO_TRANSACTION) -> Permissions:
        """A node's permission list."""
        if self.domid == DOM0 and path in self._database.specials:
            return self._database.specials[path]
        return self._readable(path, tx).permissions

    def write(self, path: str, value: bytes, tx: int = NO_TRANSACTION) -> None:
        """Give a node a value; make the node, and those above it, if they are missing."""
        absolute, node = self._reach(path, tx, Access.WRITE)
        if node is None:
            self._create(absolute, value, tx)
            return
        self._check_entry(node.record_bytes - len(node.value) + len(value), tx)
        self._change(SetValue(absolute, value), tx)

    def mkdir(self, path: str, tx: int = NO_TRANSACTION) -> None:
        """Make an empty node, and those above it; nothing happens to a node that is there."""
        absolute, node = self._reach(path, tx, Access.WRITE)
        if node is None:
            self._create(absolute, b"", tx)

    def remove(self, path: str, tx: int = NO_TRANSACTION) -> None:
        """Remove a node and all below it. A missing one is no error if its parent is there."""
        absolute, node = self._reach(path, tx, Access.WRITE)
        if node is not None:
            self._change(Remove(absolute), tx)
        elif self._tree(tx).find(parent_of(absolute)) is None:
            raise StoreError("ENOENT", absolute)

    def set_permissions(self, path: str, permissions: Permissions, tx: int = NO_TRANSACTION) -> None:
        """Replace a node's permission list; only its owner may. EPERM to give a node away."""
        if len(permissions.entries) > self._database.quota.permissions:
            raise StoreError("ENOSPC", f"{len(permissions.entries)} permissions")
        if path.startswith("@"):
            self._set_special(path, permissions)
            return
        absolute, node = self._reach(path, tx, Access.WRITE | Access.OWNER)
        if node is None:
            raise StoreError("ENOENT", absolute)
        if self.domid != DOM0 and permissions.owner != node.permissions.owner:
            raise StoreError("EPERM", f"domain {self.domid} cannot give {absolute} away")
        grown = Node(permissions=permissions).record_bytes - Node(permissions=node.permissions).record_bytes
        self._check_entry(node.record_bytes + grown, tx)
        self._change(SetPermissions(absolute, permissions), tx)

    # ---- watches

    def watch(self, path: str, token: bytes) -> None:
        """Watch a path, relative or absolute, or a special name; it fires once at once.

        EEXIST if the client watches it with this token already; E2BIG for the quota.
        """
        database = self._database
        watch = Watch.of(self.domid, path, token, self._deliver)
        if (watch.path, token) in self._watches:
            raise StoreError("EEXIST", f"{watch.path} is watched with this token already")
        if self.domid != DOM0 and database.watches_held[self.domid] > database.quota.watches:
            raise StoreError("E2BIG", f"domain {self.domid} has more than {database.quota.watches} watches")
        database.watches.add(watch)
        self._watches[watch.path, token] = watch
        database.watches_held[self.domid] += 1
        database.tell([Event(watch, watch.path)])

    def unwatch(self, path: str, token: bytes) -> None:
        """Remove a watch. ENOENT if there is none."""
        absolute = path if path.startswith("@") else canonical(path, self.domid)
        watch = self._watches.pop((absolute, token), None)
        if watch is None:
            raise StoreError("ENOENT", f"no watch on {absolute[:64]} with this token")
        self._database.watches.remove(watch)
        self._database.watches_held[self.domid] -= 1

    # ---- transactions

    def start(self, tx: int = NO_TRANSACTION) -> int:
        """Open a transaction and return its number, never 0. EBUSY inside another transaction."""
        self._tree(tx)
        if tx != NO_TRANSACTION:
            raise StoreError("EBUSY", "transactions do not nest")
        database = self._database
        if self.domid != DOM0 and database.transactions_held[self.domid] > database.quota.transactions:
            most = database.quota.transactions
            raise StoreError("ENOSPC", f"domain {self.domid} has more than {most} transactions")
        number = self._last_id
        while number == NO_TRANSACTION or number in self._transactions or number == self._last_id:
            number = (number + 1) % _IDS
        self._last_id = number
        nodes_max = sys.maxsize if self.domid == DOM0 else database.quota.transaction_nodes
        self._transactions[number] = Transaction(database.tree, nodes_max)
        database.transactions_held[self.domid] += 1
        return number

    def end(self, tx: int, commit: bool) -> None:
        """Close a transaction: `commit` its changes (EAGAIN on conflict), or drop them.

        ENOMEM, as xenstored has it, for a transaction of which a quota has stopped a part.
        """
        transaction = self._transactions.pop(tx, None)
        if transaction is None:
            raise StoreError("ENOENT", f"no transaction {tx}")
        self._database.transactions_held[self.domid] -= 1
        if commit:
            if transaction.failed:
                raise StoreError("ENOMEM", f"a part of transaction {tx} was refused")
            self._database.commit(transaction)

    # ---- life

    def reset(self) -> None:
        """Drop all watches and all open transactions."""
        for path, token in list(self._watches):
            self.unwatch(path, token)
        for tx in list(self._transactions):
            self.end(tx, commit=False)

    def close(self) -> None:
        """Drop everything, for good."""
        self.reset()
        self.closed = True

    # ---- state

    def say(self, nodes: Numbering) -> SavedClient:
        """What it holds."""
        return SavedClient(
            self.domid,
            self._last_id,
            [SavedWatch(each.path, each.token, each.relative, each.order) for each in self._watches.values()],
            [transaction.say(number, nodes) for number, transaction in self._transactions.items()],
        )

    def take_over(self, saved: SavedClient, nodes: Nodes, where: str) -> list[Watch]:
        """Hold what was saved instead of what it holds; its watches, to be put into the table. StateError."""
        quota = self._database.quota
        unlimited = self.domid == DOM0
        # A quota is compared before the new one is counted.
        if not unlimited and len(saved.watches) > quota.watches + 1:
            raise refusal(where, f"has {len(saved.watches)} watches")
        if not unlimited and len(saved.transactions) > quota.transactions + 1:
            raise refusal(where, f"has {len(saved.transactions)} transactions")
        nodes_max = sys.maxsize if unlimited else quota.transaction_nodes
        transactions = {
            each.number: Transaction.of(each, nodes, nodes_max, f"{where}.transactions.{number}")
            for number, each in enumerate(saved.transactions)
        }
        watches = [Watch.saved(self.domid, each, self._deliver, where) for each in saved.watches]
        by_key = {(watch.path, watch.token): watch for watch in watches}
        if NO_TRANSACTION in transactions or len(transactions) != len(saved.transactions):
            raise refusal(where, "has transactions whose numbers cannot be")
        if len(by_key) != len(watches):
            raise refusal(where, "has two watches that are alike")
        self._watches, self._transactions, self._last_id = by_key, transactions, saved.last_id
        self._database.watches_held[self.domid] += len(watches)
        self._database.transactions_held[self.domid] += len(transactions)
        return watches

    # ---- how

    def _tree(self, tx: int) -> Tree:
        if tx == NO_TRANSACTION:
            return self._database.tree
        if tx not in self._transactions:
            raise StoreError("ENOENT", f"no transaction {tx}")
        return self._transactions[tx].tree

    def _reach(self, path: str, tx: int, need: Access) -> tuple[str, Node | None]:
        """Find a node that the client may use so; None if it is missing and the client may know that."""
        absolute = canonical(path, self.domid)
        found = spine(self._tree(tx).root, absolute)
        if tx != NO_TRANSACTION:  # a missing node, all above it, and the first one that is there
            for one in lineage(absolute)[len(found) - 1 :]:
                self._transactions[tx].look(one)
        node = found[-1]
        may = node.permissions.of(self.domid)
        if len(found) == len(components(absolute)) + 1:
            if need & ~may:
                raise StoreError("EACCES", f"domain {self.domid} may not use {absolute} ({node.permissions})")
            return absolute, node
        if not need & may:
            raise StoreError("EACCES", f"domain {self.domid} may not know of {absolute}")
        return absolute, None

    def _readable(self, path: str, tx: int) -> Node:
        absolute, node = self._reach(path, tx, Access.READ)
        if node is None:
            raise StoreError("ENOENT", absolute)
        return node

    def _create(self, absolute: str, value: bytes, tx: int) -> None:
        tree = self._tree(tx)
        names = components(absolute)
        above = spine(tree.root, absolute)
        missing = len(names) - (len(above) - 1)
        quota = self._database.quota
        change = Create(absolute, value, above[-1].permissions.inherited_by(self.domid))
        if self.domid != DOM0 and tree.owned[self.domid] + missing > quota.nodes:
            raise StoreError("ENOSPC", f"domain {self.domid} owns {tree.owned[self.domid]} nodes")
        # The parent's record grows by a name; the new ones hold at most one name and the value.
        self._check_entry(above[-1].record_bytes + len(names[len(above) - 1]) + 1, tx)
        fresh = Node(permissions=change.permissions).record_bytes
        self._check_entry(fresh + max([len(value), *(len(name) + 1 for name in names[len(above) :])]), tx)
        self._change(change, tx)

    def _check_entry(self, record_bytes: int, tx: int) -> None:
        if self.domid != DOM0 and record_bytes >= self._database.quota.entry_bytes:
            if tx != NO_TRANSACTION:
                self._transactions[tx].failed = True
            raise StoreError("ENOSPC", f"a node's record would have {record_bytes} bytes")

    def _change(self, change: Change, tx: int) -> None:
        if tx == NO_TRANSACTION:
            self._database.perform(change)
        else:
            self._transactions[tx].change(change, self._database.next_generation())

    def _set_special(self, name: str, permissions: Permissions) -> None:
        if self.domid != DOM0:
            raise StoreError("EACCES", f"domain {self.domid} may not choose who hears {name[:32]}")
        if name not in self._database.specials:
            raise StoreError("EINVAL", f"there is no special event {name[:32]!r}")
        self._database.specials[name] = permissions
