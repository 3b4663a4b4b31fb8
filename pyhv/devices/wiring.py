# SPDX-License-Identifier: GPL-2.0-only
"""The back ends of one domain, joined to its rings and its two toolstack ports."""

from collections.abc import Collection
from typing import Final, Protocol

from pyhv.abi.domid import DOMID_SELF
from pyhv.address import Mfn
from pyhv.clock import Clock
from pyhv.devices.console import ConsoleRing
from pyhv.devices.xenstore_ring import XenstoreRing
from pyhv.domain.domain import Domain
from pyhv.errors import ConfigError
from pyhv.events.channels import EventChannels
from pyhv.mmu.frames import FrameTable
from pyhv.mmu.physical import FramePage
from pyhv.xenstore.store import Store
from pyhv.xenstore.wire import Connection

STORE_PORT, CONSOLE_PORT = 1, 2
MOST_PRINTED: Final = 4096
"""Bytes of console output from which on they do not wait for the end of the guest's turn."""
_STORE_NS: Final = 1000
"""What a request to the store, or an event that it causes, costs its domain in virtual time."""


class ConsoleSink(Protocol):
    """Where a domain's console output goes."""

    def output(self, data: bytes) -> None:
        """Bytes that the guest wrote."""


class Wiring:
    """The back ends of one domain: its console and its connection to the store."""

    def __init__(
        self,
        domain: Domain,
        sink: ConsoleSink,
        frames: FrameTable,
        dom0: EventChannels,
        store: Store,
        clock: Clock,
    ) -> None:
        self.sink = sink
        self.domain = domain
        self._frames, self._dom0, self._store, self._clock = frames, dom0, store, clock
        self.console: ConsoleRing
        self.store: XenstoreRing
        self.connection: Connection
        self._printed = bytearray()
        """Console output of this turn that has not gone to the sink yet."""
        self._ports: dict[str, int] = {}
        self.rings: list[Mfn] = []
        """Frames that the back ends write: they hold a writable reference, as a mapping would."""

    def connect(self, console: FramePage, store: FramePage) -> None:
        """Attach to the rings and to the guest's two ports."""
        for page in (console, store):
            if not self._frames.take_writable(page.mfn):
                raise ConfigError(f"{self.domain.name}: the image wants its rings' pages for something else.")
            self.rings.append(page.mfn)
        dom0 = self._dom0
        domid = self.domain.domid
        ports = self._ports
        self.console = ConsoleRing(console, lambda: dom0.send(ports["console"]))
        self.connection = Connection(self._store, domid)
        self.store = XenstoreRing(store, self.connection, lambda: dom0.send(ports["store"]))
        ports["console"] = dom0.bind_callback(domid, CONSOLE_PORT, self.console_event)
        self._console_port = ports["console"]
        ports["store"] = dom0.bind_callback(domid, STORE_PORT, self.store_event)

    def detach(self) -> None:
        """The domain is gone: close the ports, give up the rings."""
        for port in self._ports.values():
            self._dom0.close(port)
        for mfn in self.rings:
            self._frames.drop_writable(mfn)

    def console_event(self) -> None:
        """The guest rang: take what it wrote. It goes on when the turn ends, or much has come together."""
        data = self.console.drain()
        if data:
            self._printed += data
            if len(self._printed) >= MOST_PRINTED:
                self.flush()

    def flush(self) -> None:
        """Pass on what the guest has printed."""
        if self._printed:
            data = bytes(self._printed)
            self._printed.clear()
            self.sink.output(data)

    def settle(self, polled: Collection[int] | None = None) -> None:
        """The guest has stopped running: what it printed goes on, and it hears that it has been read.

        Not if it polls some ports and the console's is not among them: it does not wait for us, and would be
        woken for nothing.
        """
        self.flush()
        if polled is None or self._dom0.status(DOMID_SELF, self._console_port).remote_port in polled:
            self.console.settle()

    def store_event(self) -> None:
        """The guest rang: serve its requests, and let it pay for them and for the events that they cause."""
        before = self._store.work
        self.store.service()
        self._clock.work((self._store.work - before) * _STORE_NS)
