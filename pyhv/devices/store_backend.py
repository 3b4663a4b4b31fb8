# SPDX-License-Identifier: GPL-2.0-only
"""A guest's connection to the store as a device: its ring (`xenstore_ring.py`) and its connection."""

from collections.abc import Callable, Mapping
from typing import ClassVar, Final, Self

from pyhv.devices.backend import Backend, Link
from pyhv.devices.console_log import ConsoleSink
from pyhv.devices.xenstore_ring import XenstoreRing
from pyhv.events.channels import DeviceName
from pyhv.mmu.physical import FramePage
from pyhv.state import Plain, entries, restore
from pyhv.xenstore.wire import Connection

_STORE_NS: Final = 1000
"""What a request to the store, or an event that it causes, costs its domain in virtual time."""


class StoreBackend(Backend):
    """A guest's connection to the store."""

    kind: ClassVar[str] = "store"

    def __init__(self, link: Link, domid: int) -> None:
        super().__init__(link, domid)
        self.connection = Connection(link.store, domid)
        self.ring: XenstoreRing

    @classmethod
    def made_again(
        cls, link: Link, name: DeviceName, _sink_for: Callable[[int], ConsoleSink], _saved: Plain
    ) -> Self:
        """`Backend.made_again`."""
        return cls(link, name.domid)

    def use(self, page: FramePage) -> None:
        """`Backend.use`."""
        self.ring = XenstoreRing(page, self.connection, self.notify)

    def let_go(self) -> None:
        """`Backend.let_go`."""
        super().let_go()
        self.connection.close()

    def event(self) -> None:
        """Serve the guest's requests, and let it pay for them and for the events that they cause."""
        store = self.link.store
        before = store.work
        self.ring.service()
        self.link.clock.work((store.work - before) * _STORE_NS)

    def state(self) -> dict[str, Plain]:
        """The ring's troubles, and what of requests and answers is half here."""
        return {"ring": self.ring.state(), "connection": self.connection.state()}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved. StateError."""
        found = entries(dict(saved), "", {"ring": None, "connection": None})
        restore(self.ring, found["ring"], "ring")
        restore(self.connection, found["connection"], "connection")
