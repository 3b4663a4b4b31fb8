# SPDX-License-Identifier: GPL-2.0-only
"""The console back end's end of the console page.

Layout, from the public header io/console.h (bytes):

    0     in[1024]     what is typed: back end -> guest
    1024  out[2048]    what is printed: guest -> back end
    3072  in_cons, in_prod, out_cons, out_prod    u32 each
    3088  connection   u8: 0 connected, 1 disconnected

Some guests wait until every byte has been taken, others drop what does not fit: whoever owns the event
channel should `drain` on each notification. To be notified in turn is what few guests need, those that found
no room and wait, while that interrupt costs every guest more than the line it has printed. So it comes at
once only if the ring was half full, and else when the guest has stopped running, waiting perhaps (`settle`).
Terminals, logs and line endings are not known here.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Final

from pyhv.abi.shared import CONSOLE_CONNECTION
from pyhv.devices.ring import ByteRing, RingBroken
from pyhv.shared_page import SharedPage
from pyhv.state import Plain, entries, typed

IN_SIZE: Final = 1024
OUT_SIZE: Final = 2048
PRESSING: Final = OUT_SIZE // 2
"""Bytes of output from which on the guest hears at once that they have been taken."""
_IN_DATA: Final = 0
_OUT_DATA: Final = 1024
_IN_CONS: Final = 3072
_IN_PROD: Final = 3076
_OUT_CONS: Final = 3080
_OUT_PROD: Final = 3084
_CONNECTED: Final = b"\0"


class ConsoleRing:
    """One guest's console page. `notify` rings the guest's console port.

    Indices that make no sense are not ours to repair: nothing moves, and `broken` says why, until the
    guest makes sense again.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = dict.fromkeys(("_notify", "_in", "_out"), "of the back end's")

    def __init__(self, page: SharedPage, notify: Callable[[], None]) -> None:
        self.broken = ""
        """Empty, or one sentence on what was wrong at the last operation."""
        self._notify = notify
        self._unheard = False
        """Something was taken, and the guest has not been notified since."""
        self._in = ByteRing(page, _IN_DATA, IN_SIZE, _IN_CONS, _IN_PROD)
        self._out = ByteRing(page, _OUT_DATA, OUT_SIZE, _OUT_CONS, _OUT_PROD)
        page.write(CONSOLE_CONNECTION, _CONNECTED)

    def state(self) -> dict[str, Plain]:
        """What it owes the guest; bytes and indices are in the page."""
        return {"broken": self.broken, "unheard": self._unheard}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved. StateError."""
        found = entries(dict(saved), "", {"broken": None, "unheard": None})
        broken, unheard = typed(str, found["broken"], "broken"), typed(bool, found["unheard"], "unheard")
        self.broken, self._unheard = broken, unheard

    def drain(self, limit: int | None = None) -> bytes:
        """Take what the guest has printed, at most `limit` bytes.

        If it may wait for room it hears so now, else by `settle`.
        """
        try:
            data = self._out.read(limit)
        except RingBroken as broken:
            self.broken = f"console output ring: {broken}"
            return b""
        self.broken = ""
        if data:
            self._unheard = True
            if len(data) >= PRESSING:
                self.settle()
        return data

    def settle(self) -> None:
        """Notify the guest of what has been taken since it last was."""
        if self._unheard:
            self._unheard = False
            self._notify()

    def feed(self, data: bytes) -> int:
        """Give the guest input; returns how many bytes found room. Offer the rest again later."""
        try:
            accepted = self._in.write(data)
        except RingBroken as broken:
            self.broken = f"console input ring: {broken}"
            return 0
        self.broken = ""
        if accepted:
            self._unheard = False
            self._notify()
        return accepted
