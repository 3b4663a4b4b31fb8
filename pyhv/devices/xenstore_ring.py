# SPDX-License-Identifier: GPL-2.0-only
"""The store's end of a guest's xenstore page.

Layout, from the public header io/xs_wire.h (bytes):

    0     req[1024]    guest -> store
    1024  rsp[1024]    store -> guest
    2048  req_cons, req_prod, rsp_cons, rsp_prod    u32 each
    2064  server_features  u32    bit 0 reconnection, bit 1 the error field
    2068  connection       u32    0 connected, 1 the guest asks to start afresh
    2072  error            u32    why the store has stopped listening

This module moves bytes between the page and a `Connection`; what they mean is known there.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from pyhv.abi.xs_wire import LinkError
from pyhv.devices.ring import ByteRing, RingBroken
from pyhv.shared_page import SharedPage
from pyhv.state import Plain, entries, typed
from pyhv.xenstore.wire import Connection

RING_SIZE: Final = 1024
_REQ_DATA: Final = 0
_RSP_DATA: Final = 1024
_REQ_CONS: Final = 2048
_REQ_PROD: Final = 2052
_RSP_CONS: Final = 2056
_RSP_PROD: Final = 2060
_SERVER_FEATURES: Final = 2064
_CONNECTION: Final = 2068
_ERROR: Final = 2072

FEATURE_RECONNECTION: Final = 1
FEATURE_ERROR: Final = 2
_CONNECTED: Final = 0
_RECONNECT: Final = 1


class XenstoreRing:
    """One guest's xenstore page, joined to its connection. `notify` rings the guest's store port.

    Watch events that others cause are put into the ring as they happen; requests are executed in
    `service` only, which the machine calls when the guest rings, and after anything that may have made
    room.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "connection": "says its own",
        **dict.fromkeys(("_page", "_notify", "_requests", "_replies"), "of the back end's"),
    }

    def __init__(self, page: SharedPage, connection: Connection, notify: Callable[[], None]) -> None:
        self.connection = connection
        self.broken = ""
        """Empty, or one sentence on why the ring is dead."""
        self._page = page
        self._notify = notify
        self._requests = ByteRing(page, _REQ_DATA, RING_SIZE, _REQ_CONS, _REQ_PROD)
        self._replies = ByteRing(page, _RSP_DATA, RING_SIZE, _RSP_CONS, _RSP_PROD)
        page.write_u32(_SERVER_FEATURES, FEATURE_RECONNECTION | FEATURE_ERROR)
        page.write_u32(_ERROR, LinkError.NONE)
        page.write_u32(_CONNECTION, _CONNECTED)
        connection.on_output = self._flush

    def state(self) -> dict[str, Plain]:
        """Whether it is dead; bytes and indices are in the page."""
        return {"broken": self.broken}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved. StateError."""
        self.broken = typed(str, entries(dict(saved), "", {"broken": None})["broken"], "broken")

    def service(self) -> bool:
        """Move and execute all that can be now; returns whether anything happened.

        The guest is notified once if so.
        """
        if self._page.read_u32(_CONNECTION) == _RECONNECT:
            self._reconnect()
            return True
        if not self.connection.alive:
            return False
        moved = False
        try:
            # No more than what waits now: a guest on another CPU that keeps producing must not keep the
            # store here for ever.
            budget = self._requests.used()
            while True:
                pushed = self._push()
                data = self._requests.read(min(budget, self.connection.room))
                budget -= len(data)
                executed = self._execute(data)
                if not (pushed or data or executed):
                    break
                moved = True
        except RingBroken as broken:
            self.broken = str(broken)
            self.connection.fail(LinkError.RING_INDEX)
        if self.connection.error is not LinkError.NONE:
            self.broken = self.broken or "a message was longer than 4096 bytes"
            self._page.write_u32(_ERROR, self.connection.error)
            moved = True
        if moved:
            self._notify()
        return moved

    def _push(self) -> bool:
        """Output into the ring."""
        # The ring has this room, unless the guest moves its index back meanwhile; what is lost then is
        # the guest's.
        return self._replies.write(self.connection.take(self._replies.free())) > 0

    def _execute(self, data: bytes) -> bool:
        """Give the connection `data`, perhaps nothing, and say whether it has executed a request."""
        waiting = self.connection.has_output
        self.connection.feed(data)
        return self.connection.has_output and not waiting

    def _flush(self) -> None:
        """Put watch events into the ring between two calls of `service`."""
        if not self.connection.alive:
            return
        try:
            moved = self._push()
        except RingBroken:
            return  # `service` will find it and say so
        if moved:
            self._notify()

    def _reconnect(self) -> None:
        """Start afresh: the guest promises not to touch the ring until `connection` is 0 again."""
        self.connection.reset()
        self._requests.clear()
        self._replies.clear()
        self.broken = ""
        self._page.write_u32(_ERROR, self.connection.error)
        self._page.write_u32(_CONNECTION, _CONNECTED)
        self._notify()
