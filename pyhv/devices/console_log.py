# SPDX-License-Identifier: GPL-2.0-only
"""What a guest has printed and who reads it: a bounded log between the console's ring and its sink.

The ring fills the log while the guest runs; the sink gets what is in it between two turns, in pieces, and may
refuse a piece for now. While it does, the log fills; when it is full, the ring is no longer consumed and the
guest waits, as it does for a slow terminal. Nobody else does.
"""

from collections.abc import Mapping
from typing import ClassVar, Final, Protocol

from pyhv.state import Plain, entries, typed

LIMIT: Final = 1 << 20
"""Bytes that wait for the sink at most; the store tells the guest so (`console/limit`)."""
PIECE: Final = 1 << 16
"""Bytes that the sink is offered at a time."""


class ConsoleSink(Protocol):
    """Where a domain's console output goes."""

    def output(self, data: bytes) -> bool | None:
        """Bytes that the guest wrote. False: none of them were taken; they are offered again later."""


class ConsoleLog:
    """Bytes in order, from the ring to the sink."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "sink": "whoever restores it brings one",
        "limit": "another one than LIMIT is a test's affair",
    }

    def __init__(self, sink: ConsoleSink) -> None:
        self.sink = sink
        self._waiting = bytearray()
        self.limit = LIMIT
        """Bytes that may wait."""
        self.written = 0
        """Bytes printed since the beginning."""

    @property
    def room(self) -> int:
        """Bytes that can be added."""
        return max(self.limit - len(self._waiting), 0)

    def __len__(self) -> int:
        """Bytes that wait for the sink."""
        return len(self._waiting)

    def add(self, data: bytes) -> None:
        """The guest has printed more; at most `room`."""
        assert len(data) <= self.room
        self._waiting += data
        self.written += len(data)

    def drain(self) -> None:
        """Give the sink what it takes."""
        while self._waiting:
            piece = bytes(self._waiting[:PIECE])
            if self.sink.output(piece) is False:
                return
            del self._waiting[: len(piece)]

    def state(self) -> dict[str, Plain]:
        """What waits, and how much there was."""
        return {"waiting": bytes(self._waiting), "written": self.written}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved. StateError."""
        found = entries(dict(saved), "", {"waiting": None, "written": None})
        waiting, written = typed(bytes, found["waiting"], "waiting"), typed(int, found["written"], "written")
        self._waiting, self.written = bytearray(waiting[:LIMIT]), written
