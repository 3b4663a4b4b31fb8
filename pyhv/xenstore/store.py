# SPDX-License-Identifier: GPL-2.0-only
"""The store, for those who live in the hypervisor: toolstack and device back ends, as domain 0.

    store = Store()
    store.write("/local/domain/1/memory/target", 65536)
    store.watch("/local/domain/1/device", lambda path: ...)
    with store.transaction() as t:
        t.write("/a/state", 1)
        t.remove("/b")

What a guest wrote is a guest's word: `read_int` and `read_text` give a value or a `StoreError`, never
another exception. Guests connect through `wire.Connection`. Rings and machines are unknown here.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import ClassVar

from pyhv.state import Plain, construct, refusal, state
from pyhv.xenstore.client import NO_TRANSACTION, Client
from pyhv.xenstore.database import INTRODUCE, RELEASE, Database
from pyhv.xenstore.limits import DOM0, DOMID_MAX, Quota, StoreError, domain_path
from pyhv.xenstore.permissions import Permissions
from pyhv.xenstore.saved import Nodes, Numbering, SavedClient, SavedStore, read_permissions
from pyhv.xenstore.tree import walk
from pyhv.xenstore.watches import Deliver, Watch

Value = str | bytes | int
"""What may be written: text as UTF-8, a number in decimal."""


class Accessor:
    """Reading and writing as domain 0, directly or inside one transaction.

    All raise `StoreError`; paths are absolute, or relative to `/local/domain/0`.
    """

    def __init__(self, client: Client, tx: int) -> None:
        self._client = client
        self._tx = tx

    def read(self, path: str) -> bytes:
        """A node's value; ENOENT."""
        return self._client.read(path, self._tx)

    def read_text(self, path: str) -> str:
        """A node's value as text; bytes that are not UTF-8 become U+FFFD."""
        return self.read(path).decode("utf-8", "replace")

    def read_int(self, path: str) -> int:
        """A node's value as a decimal number of at most 20 digits; EINVAL if it is not one."""
        value = self.read(path)
        digits = value.removeprefix(b"-")
        if not digits.isdigit() or len(digits) > 20:
            raise StoreError("EINVAL", f"{path} holds {value[:32]!r}, not a number")
        return int(value)

    def exists(self, path: str) -> bool:
        """Whether there is a node at `path`."""
        try:
            self.read(path)
        except StoreError as error:
            if error.name == "ENOENT":
                return False
            raise
        return True

    def write(self, path: str, value: Value = b"") -> None:
        """Give a node a value, making it and what is missing above it."""
        if isinstance(value, int):
            value = str(value)
        self._client.write(path, value.encode() if isinstance(value, str) else value, self._tx)

    def mkdir(self, path: str) -> None:
        """Make an empty node unless it is there."""
        self._client.mkdir(path, self._tx)

    def remove(self, path: str) -> None:
        """Remove a node and all below it; ENOENT only if its parent is missing too."""
        self._client.remove(path, self._tx)

    def ls(self, path: str) -> list[str]:
        """Names of a node's children, in order of creation; ENOENT."""
        return self._client.directory(path, self._tx)

    def permissions(self, path: str) -> list[str]:
        """A node's permission list, such as `["n0", "r1"]`; or a special event's."""
        return [str(entry) for entry in self._client.permissions(path, self._tx).entries]

    def set_permissions(self, path: str, entries: Iterable[str]) -> None:
        """Replace a node's permission list, or that of `@introduceDomain` or `@releaseDomain`."""
        self._client.set_permissions(path, Permissions.parse(entries), self._tx)


class WatchHandle:
    """A watch of the hypervisor's own; `cancel` ends it."""

    def __init__(self, cancel: Callable[[], None]) -> None:
        self._cancel: Callable[[], None] | None = cancel

    def cancel(self) -> None:
        """Hear no more; harmless when repeated."""
        if self._cancel is not None:
            self._cancel()
            self._cancel = None


class Store(Accessor):
    """One machine's store.

    Its state is that of all its clients too, since their transactions share nodes with its tree. Before it is
    restored, clients are connected, and who hears of the hypervisor's own watches is attached.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "_client": "the first of the clients that are said",
        "_tx": "none",
        "_database": "said here, by its parts",
        "_callbacks": "attached by name",
    }

    def __init__(self, quota: Quota | None = None) -> None:
        self._database = Database(Quota() if quota is None else quota)
        super().__init__(Client(self._database, DOM0, self._heard), NO_TRANSACTION)
        self._clients: list[Client] = []
        self._callbacks: dict[bytes, Callable[[str], None]] = {}
        self._watches_made = 0
        self.work = 0
        """Requests executed and events queued for guests; who serves a ring charges its guest for them."""
        for path in ("/tool/xenstored", domain_path(DOM0), "/vm"):
            self._database.make_directory(path)

    @property
    def quota(self) -> Quota:
        """The limits of every unprivileged domain."""
        return self._database.quota

    @contextmanager
    def transaction(self) -> Iterator[Accessor]:
        """Do all that the block does, or nothing.

        Leaving the block commits, and raises `StoreError` EAGAIN if somebody interfered; an exception in
        the block drops everything.
        """
        tx = self._client.start()
        committed = False
        try:
            yield Accessor(self._client, tx)
            committed = True
        finally:
            self._client.end(tx, commit=committed)

    def watch(self, path: str, callback: Callable[[str], None], name: str = "") -> WatchHandle:
        """Call `callback(path)` once now and after each change at or below `path`.

        Callbacks run after the change is complete, in order; they may use the store, and must not
        raise. `name` says in saved state who hears: without one it is a number. EEXIST if it is taken.
        """
        self._watches_made += 1
        name = name or str(self._watches_made)
        if name.encode() in self._callbacks:
            raise StoreError("EEXIST", f"there is a watch by the name of {name}")
        handle = self.attach(path, callback, name)
        try:
            self._client.watch(path, name.encode())
        except StoreError:
            handle.cancel()
            raise
        return handle

    def attach(self, path: str, callback: Callable[[str], None], name: str) -> WatchHandle:
        """Hear from now on what a watch tells that `watch` has set under this name, before it was saved."""
        token = name.encode()
        self._callbacks[token] = callback

        def cancel() -> None:
            with suppress(StoreError):  # the store was put back to when there was no such watch
                self._client.unwatch(path, token)
            self._callbacks.pop(token, None)

        return WatchHandle(cancel)

    def connect(self, domid: int, deliver: Deliver) -> Client:
        """The store as domain `domid` sees it; `deliver` hears its watches. Ends with `release(domid)`."""
        client = Client(self._database, domid, deliver)
        self._clients.append(client)
        return client

    def disconnect(self, client: Client) -> None:
        """End a connection with all it holds; harmless when repeated."""
        client.close()
        self._clients = [other for other in self._clients if other is not client]

    def introduce(self, domid: int) -> None:
        """A domain is up: fires `@introduceDomain`. EEXIST if it is introduced already, EINVAL."""
        if not 0 < domid <= DOMID_MAX:
            raise StoreError("EINVAL", f"there is no domain {domid}")
        if domid in self._database.introduced:
            raise StoreError("EEXIST", f"domain {domid} is introduced already")
        self._database.introduced.add(domid)
        self._database.announce(INTRODUCE)

    def is_introduced(self, domid: int) -> bool:
        """Whether a domain is known; domain 0 always is."""
        return domid == DOM0 or domid in self._database.introduced

    def release(self, domid: int) -> None:
        """A domain is gone: whatever it owned here goes, then `@releaseDomain` fires.

        Its connections close with their watches and transactions; `/local/domain/<domid>` and every other
        node it owns disappear (watchers hear); no permission list names it any more. EINVAL for domain 0.
        """
        if not 0 < domid <= DOMID_MAX:
            raise StoreError("EINVAL", f"domain {domid} cannot be released")
        for client in [client for client in self._clients if client.domid == domid]:
            self.disconnect(client)
        self._database.introduced.discard(domid)
        self._database.erase_domain(domid)
        self._database.announce(RELEASE)

    def owned_nodes(self, domid: int) -> int:
        """How many nodes a domain owns."""
        return self._database.tree.owned[domid]

    def dump(self) -> str:
        """The whole tree as text: `path = value (permissions)`, one node a line, parents first."""
        lines = []
        for path, node in walk(self._database.tree.root, "/"):
            value = node.value.decode("utf-8", "backslashreplace")
            lines.append(f"{path} = {value!r} ({node.permissions})")
        return "\n".join(lines)

    def state(self) -> dict[str, Plain]:
        """Everything, while nobody is being told anything."""
        database = self._database
        assert database.at_rest
        nodes = Numbering()
        tree = nodes.of(database.tree.root)
        clients = [client.say(nodes) for client in (self._client, *self._clients)]
        return state(
            SavedStore(
                nodes=nodes.nodes(),
                tree=tree,
                generation=database.generation,
                introduced=sorted(database.introduced),
                specials={name: str(permissions) for name, permissions in database.specials.items()},
                watches_registered=database.watches.registered,
                watches_made=self._watches_made,
                work=self.work,
                clients=clients,
            )
        )

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved. Clients are found by their domains; one that was not saved holds nothing."""
        found = construct(SavedStore, dict(saved))
        database = self._database
        if found.specials.keys() != database.specials.keys():
            raise refusal("specials", "does not have the special events")
        nodes = Nodes(found.nodes, found.generation)
        tree = nodes.tree(found.tree, "tree")
        specials = {name: read_permissions(text, f"specials.{name}") for name, text in found.specials.items()}
        clients = self._matching(found.clients)
        database.watches_held.clear()
        database.transactions_held.clear()
        others = [client for client in self._clients if not any(client is matched for matched in clients)]
        nothing = SavedClient(DOM0, 0, [], [])
        held = [nothing] * len(others)
        watches: list[Watch] = []
        for number, (client, each) in enumerate(
            zip([*clients, *others], [*found.clients, *held], strict=True)
        ):
            watches += client.take_over(each, nodes, f"clients.{number}")
        database.watches.put_back(watches, found.watches_registered)
        self._clients = [*clients[1:], *others]
        database.tree, database.specials = tree, specials
        database.generation, database.introduced = found.generation, set(found.introduced)
        self.work, self._watches_made = found.work, found.watches_made

    def _matching(self, saved: list[SavedClient]) -> list[Client]:
        """The clients that are to hold what was saved, in that order."""
        if not saved or saved[0].domid != DOM0:
            raise refusal("clients", "does not begin with the hypervisor's own")
        connected: dict[int, deque[Client]] = {}
        for client in self._clients:
            connected.setdefault(client.domid, deque()).append(client)
        clients = [self._client]
        for number, each in enumerate(saved[1:], 1):
            if not connected.get(each.domid):
                raise refusal(f"clients.{number}", f"is of domain {each.domid}, which is not connected")
            clients.append(connected[each.domid].popleft())
        return clients

    def _heard(self, path: str, token: bytes) -> None:
        callback = self._callbacks.get(token)
        if callback is not None:
            callback(path)
