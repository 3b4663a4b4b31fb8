# SPDX-License-Identifier: GPL-2.0-only
"""The back end of a split driver: how it and its guest's driver find each other through the store.

Protocol: public header `io/xenbus.h`; the nodes' names are those of Xen's toolstack.

    /local/domain/N/device/KIND/HANDLE       the front end's: the guest owns it
    /local/domain/0/backend/KIND/N/HANDLE    ours: the guest may read it

Each end says its state in `state` below its node, and watches the other's:

    ours                          the guest's
    InitWait    features          Initialising
                                  Initialised or Connected    ring, port, protocol
    Connected   what it is like   Connected
    Closing     no ring any more  Closing
    Closed                        Closed, and Initialising again if another kernel takes over

A guest that closes may connect again, with another ring, another protocol, another kernel: PV-GRUB hands its
disks to Linux in that way. What the guest writes is its word: a key that makes no sense, a grant that is
none, a ring whose indices cannot be are told in the store and end in `Closing`, and the device waits for a
guest that does better. All that a device has borrowed goes back when it disconnects, for whatever reason.
"""

from abc import abstractmethod
from collections.abc import Collection, Mapping
from typing import ClassVar, Final

from pyhv.abi.layout import u32
from pyhv.abi.xenbus import XenbusState
from pyhv.devices.backend import Backend, Link
from pyhv.devices.borrowing import Borrowed
from pyhv.devices.ring import RingBroken
from pyhv.errors import XenError
from pyhv.grants.status import GrantError
from pyhv.state import Plain, entries, refusal, typed
from pyhv.xenstore.limits import DOM0, StoreError, domain_path
from pyhv.xenstore.store import Accessor, Value, WatchHandle

MOST_QUEUES: Final = 4
_MOST_PAGES: Final = 16
"""Of one ring."""
_REFS: Final = range(1 << 32)
_PORTS: Final = range(1, 1 << 32)


class DeviceRefused(Exception):
    """The front end asks for what cannot be: one sentence."""


class XenbusBackend(Backend):
    """One device of one guest. `plug` shows it to the guest; the guest's driver connects, or not."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **Backend.NOT_STATE,
        **dict.fromkeys(("front", "back"), "follows from its name"),
        "_watch": "the store's",
        "trouble": "said in the store",
    }

    def __init__(self, link: Link, domid: int, handle: int) -> None:
        super().__init__(link, domid, handle)
        self.front = f"{domain_path(domid)}/device/{self.kind}/{handle}"
        self.back = f"{domain_path(DOM0)}/backend/{self.kind}/{domid}/{handle}"
        self.state_told = XenbusState.UNKNOWN
        """Our state, as the store has it."""
        self.trouble = ""
        """Why the device has disconnected by itself; empty: it has not since it last connected."""
        self.ports: list[int] = []
        """Domain 0's ports that its rings have."""
        self._borrowed: list[int] = []
        """Handles of what it has mapped."""
        self._watch: WatchHandle | None = None

    # -- for the subclass --------------------------------------------------------------------------------

    @abstractmethod
    def features(self) -> dict[str, Value]:
        """Nodes of ours that are there before the front end connects."""

    @abstractmethod
    def front_nodes(self) -> dict[str, Value]:
        """Nodes of the front end's that the toolstack writes for it."""

    @abstractmethod
    def connect(self) -> dict[str, Value]:
        """Take what the front end offers: `front_int`, `borrow`, `bind`. Returns nodes that tell it more.

        DeviceRefused, and what these raise: then `disconnect` is called.
        """

    @abstractmethod
    def disconnect(self) -> None:
        """Forget rings and requests: they are about to be given back."""

    @abstractmethod
    def serve(self) -> None:
        """Look at the rings. RingBroken: they make no sense."""

    # -- what the front end has written ------------------------------------------------------------------

    def front_int(self, key: str, allowed: range, default: int | None = None) -> int:
        """A number that the front end has written. DeviceRefused."""
        try:
            value = self.link.store.read_int(f"{self.front}/{key}")
        except StoreError as error:
            if error.name == "ENOENT" and default is not None:
                return default
            raise DeviceRefused(f"{key}: {error.why}") from error
        if value not in allowed:
            raise DeviceRefused(f"{key} is {value}, not one of {allowed.start}..{allowed.stop - 1}")
        return value

    def front_text(self, key: str, default: str) -> str:
        """A text that the front end has written, or what it means if it has not. DeviceRefused."""
        try:
            return self.link.store.read_text(f"{self.front}/{key}")
        except StoreError as error:
            if error.name == "ENOENT":
                return default
            raise DeviceRefused(f"{key}: {error.why}") from error

    def front_ref(self, key: str) -> int:
        """A grant reference that the front end has written. DeviceRefused."""
        return self.front_int(key, _REFS)

    def front_port(self, key: str, default: int | None = None) -> int:
        """A port that the front end has written. DeviceRefused."""
        return self.front_int(key, _PORTS, default)

    def front_queues(self) -> list[str]:
        """What the keys of each queue begin with; of a single one: with nothing. DeviceRefused."""
        count = self.front_int("multi-queue-num-queues", range(1, MOST_QUEUES + 1), 1)
        return [""] if count == 1 else [f"queue-{number}/" for number in range(count)]

    def borrow(self, refs: list[int]) -> tuple[list[int], Borrowed]:
        """Map the pages of a ring; returns their handles, and the pages as one. GrantError."""
        assert len(refs) <= _MOST_PAGES
        borrower, domid = self.link.borrower, self.name.domid
        handles = []
        for ref in refs:
            handles.append(borrower.map(domid, ref, readonly=False))
            self._borrowed.append(handles[-1])
        return handles, self.borrowed(handles)

    def borrowed(self, handles: list[int]) -> Borrowed:
        """The pages behind handles, as one."""
        return Borrowed([self.link.borrower.page(handle) for handle in handles])

    def bind(self, remote_port: int) -> int:
        """Connect to a port that the guest offers; returns ours. XenError."""
        port = self.link.channels.bind_device(self.name, remote_port)
        self.ports.append(port)
        return port

    # -- the toolstack -----------------------------------------------------------------------------------

    def plug(self) -> None:
        """Show the device to the guest. StoreError."""
        domid, store = self.name.domid, self.link.store
        with store.transaction() as t:
            for path in (self.front, self.back):
                t.mkdir(path)
                t.remove(path)  # what an earlier device of this name has left
                t.mkdir(path)
            t.set_permissions(self.front, [f"n{domid}", f"r{DOM0}"])
            t.set_permissions(self.back, [f"n{DOM0}", f"r{domid}"])
            state = int(XenbusState.INITIALISING)
            ours = {"frontend": self.front, "frontend-id": domid, "online": 1, **self.features()}
            theirs = {"backend": self.back, "backend-id": DOM0, **self.front_nodes(), "state": state}
            _write_all(t, self.back, {**ours, "state": int(XenbusState.INIT_WAIT)})
            _write_all(t, self.front, theirs)
        self.state_told = XenbusState.INIT_WAIT
        self._watch = store.watch(f"{self.front}/state", self._front_has_changed, self._watch_name)

    def unplug(self) -> None:
        """Ask the guest to let the device go; when its driver has closed, it is gone (`gone`)."""
        self.link.store.write(f"{self.back}/online", 0)
        if self.state_told in (XenbusState.INIT_WAIT, XenbusState.CLOSED):
            self._become(XenbusState.CLOSED)
        else:
            self._become(XenbusState.CLOSING)

    @property
    def gone(self) -> bool:
        """Whether it was unplugged, and the guest has let it go."""
        return self.state_told is XenbusState.CLOSED and not self._online

    @property
    def _online(self) -> bool:
        try:
            return self.link.store.read_int(f"{self.back}/online") != 0
        except StoreError:
            return False

    @property
    def _watch_name(self) -> str:
        return f"{self.kind}-{self.name.domid}-{self.name.handle}"

    def listen_again(self) -> None:
        """Hear of the front end, as it did when it was saved."""
        self._watch = self.link.store.attach(f"{self.front}/state", self._front_has_changed, self._watch_name)

    def forget_nodes(self) -> None:
        """The device is gone and its guest lives: so are its nodes."""
        with self.link.store.transaction() as t:
            t.remove(self.front)
            t.remove(self.back)

    # -- the handshake -----------------------------------------------------------------------------------

    def _front_has_changed(self, _path: str) -> None:
        ours, theirs = self.state_told, self._front_state()
        if theirs is XenbusState.INITIALISING:
            if ours is XenbusState.CLOSED and self._online:
                self._become(XenbusState.INIT_WAIT)
        elif theirs in (XenbusState.INITIALISED, XenbusState.CONNECTED):
            if ours is XenbusState.INIT_WAIT:
                self._connect()
        elif theirs is XenbusState.CLOSING:
            self._end()
            self._become(XenbusState.CLOSING)
        elif theirs in (XenbusState.CLOSED, XenbusState.UNKNOWN):
            self._end()
            self._become(XenbusState.CLOSED)

    def _front_state(self) -> XenbusState:
        try:
            return XenbusState(self.link.store.read_int(f"{self.front}/state"))
        except (StoreError, ValueError):
            return XenbusState.UNKNOWN

    def _connect(self) -> None:
        try:
            more = self.connect()
        except (DeviceRefused, GrantError, XenError, RingBroken) as refusal:
            self.fail(f"it cannot connect: {_why(refusal)}")
            return
        self.trouble = ""
        _write_all(self.link.store, self.back, more)
        self._become(XenbusState.CONNECTED)
        self.event()

    def fail(self, why: str) -> None:
        """Disconnect, and say in the store why."""
        self._end()
        self.trouble = why
        text = f"{self.kind} {self.name.handle} of domain {self.name.domid}: {why}"
        self.link.store.write(self.back.replace("/backend/", "/error/backend/", 1) + "/error", text)
        self._become(XenbusState.CLOSING)

    def _become(self, new: XenbusState) -> None:
        if new is XenbusState.CLOSED:
            self.link.closed.add(self.name)
        if self.state_told is not new:
            self.state_told = new
            self.link.store.write(f"{self.back}/state", int(new))

    def _end(self) -> None:
        """Give back what it has of the guest's."""
        self.disconnect()
        for port in self.ports:
            self.link.channels.close(port)
        self.ports.clear()
        for handle in self._borrowed:
            self.link.borrower.unmap(handle)
        self._borrowed.clear()

    # -- as a device -------------------------------------------------------------------------------------

    def event(self) -> None:
        """`Backend.event`."""
        if self.state_told is not XenbusState.CONNECTED:
            return
        try:
            self.serve()
        except RingBroken as broken:
            self.fail(str(broken))

    def all_ports(self) -> list[int]:
        """`Backend.all_ports`."""
        return list(self.ports)

    def all_borrowed(self) -> list[int]:
        """`Backend.all_borrowed`."""
        return list(self._borrowed)

    def detach(self) -> None:
        """`Backend.detach`."""
        self._listen_no_more()
        self._end()

    def _listen_no_more(self) -> None:
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    def let_go(self) -> None:
        """`Backend.let_go`."""
        super().let_go()
        self._listen_no_more()
        self.disconnect()
        self.ports.clear()
        self._borrowed.clear()

    def state(self) -> dict[str, Plain]:
        """What was told, and what it has borrowed."""
        return {
            "told": int(self.state_told),
            "ports": list[Plain](self.ports),
            "borrowed": list[Plain](self._borrowed),
        }

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved. StateError."""
        found = entries(dict(saved), "", dict.fromkeys(("told", "ports", "borrowed")))
        self.state_told = typed(XenbusState, found["told"], "told")
        self.ports = typed(list[u32], found["ports"], "ports")
        self._borrowed = typed(list[u32], found["borrowed"], "borrowed")
        for handle in self._borrowed:
            self._check_borrowed(handle)

    def _check_borrowed(self, handle: int) -> None:
        """StateError: nothing of the guest's, that may be written, has this handle."""
        try:
            mapping = self.link.borrower.maptrack.get(handle)
        except GrantError as error:
            raise refusal("borrowed", f"has a handle that is none: {error.why}") from error
        if mapping.granter != self.name.domid or mapping.readonly:
            raise refusal("borrowed", "has something that is not lent to be written, or another guest's")

    def check_rings(self, ports: list[int], handles: list[list[int]], pages: Collection[int]) -> None:
        """StateError: the rings that were saved do not have these ports and pages, all that the device has.

        `pages`: how many a ring may have.
        """
        if ports != self.ports or [one for ring in handles for one in ring] != self._borrowed:
            raise refusal("queues", "do not have the ports and pages that the device has")
        if any(len(ring) not in pages for ring in handles):
            raise refusal("queues", "have a ring of so many pages as none has")


def _write_all(store: Accessor, below: str, nodes: Mapping[str, Value]) -> None:
    for name, value in nodes.items():
        store.write(f"{below}/{name}", value)


def _why(refusal: Exception) -> str:
    return str(getattr(refusal, "why", "")) or str(refusal)
