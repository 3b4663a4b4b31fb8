# SPDX-License-Identifier: GPL-2.0-only
"""A guest's console as a person or a test uses it: what it printed, what it is waited for, what is typed.

A guest prints for as long as it lives, so only the end is kept; `position` counts every byte since the
beginning, and what was expected is not looked for again. Whoever wants all of it, or somewhere else, brings a
sink.
"""

import re
from typing import Final

from pyhv.devices.console_log import ConsoleSink
from pyhv.frozen import frozen
from pyhv.state import Tally

KEPT: Final = 1 << 20
"""Bytes of a console's end that are kept if nothing else is said."""


@frozen
class ConsoleNotes:
    """A console as plain data."""

    kept: bytes
    dropped: Tally
    seen: Tally


@frozen
class Found:
    """What was expected: the text before it, the match itself, and its groups."""

    before: str
    text: str
    groups: tuple[str | None, ...]


def _decoded(data: bytes | bytearray) -> str:
    return data.decode("utf-8", "replace").replace("\r\n", "\n")


class Console:
    """What a guest has printed. Its `text` may be cut at the beginning."""

    def __init__(self) -> None:
        self.keep = KEPT
        """Bytes of its end that are kept at least, and twice as many at most. Of what is not kept nothing is
        found by `expect` or `run`."""
        self.sink: ConsoleSink | None = None
        """Who gets all that is printed from now on, between two turns, before it is kept here. A sink that
        returns False has taken nothing, and is offered the same again: meanwhile the guest waits when its log
        is full, and nobody else does. It is not part of snapshots, and stays when a machine is put back."""
        self._kept = bytearray()
        self._dropped = 0
        self._seen = 0
        """Position up to which `expect` has consumed."""

    def output(self, data: bytes) -> bool | None:
        """The guest has printed more; False: its sink takes nothing now."""
        if self.sink is not None and self.sink.output(data) is False:
            return False
        self._kept += data
        if len(self._kept) > 2 * self.keep:
            surplus = len(self._kept) - self.keep
            del self._kept[:surplus]
            self._dropped += surplus
        return None

    @property
    def position(self) -> int:
        """Bytes printed since the beginning."""
        return self._dropped + len(self._kept)

    @property
    def data(self) -> bytes:
        """What was printed, as bytes."""
        return bytes(self._kept)

    @property
    def text(self) -> str:
        """What was printed, with lines that end in newlines alone."""
        return _decoded(self._kept)

    def tail(self, lines: int = 12) -> list[str]:
        """The last lines that are not empty."""
        return [line for line in self.text.split("\n") if line.strip()][-lines:]

    def find(self, pattern: "re.Pattern[bytes]") -> "Found | None":
        """The first match in what was printed since the last one that was found; it is consumed."""
        start = max(self._seen - self._dropped, 0)
        match = pattern.search(self._kept, start)
        if match is None:
            return None
        self._seen = self._dropped + match.end()
        groups = (None if group is None else _decoded(group) for group in match.groups())
        return Found(_decoded(self._kept[start : match.start()]), _decoded(match[0]), tuple(groups))

    def matches(self, pattern: "re.Pattern[bytes]", position: int) -> bool:
        """Whether a pattern is found in what was printed after `position`; nothing is consumed."""
        return pattern.search(self._kept, max(position - self._dropped, 0)) is not None

    def notes(self) -> ConsoleNotes:
        """What is kept, for a snapshot."""
        return ConsoleNotes(bytes(self._kept), self._dropped, self._seen)

    def put_back(self, notes: ConsoleNotes) -> None:
        """Have printed what was noted, and nothing after it."""
        self._kept[:] = notes.kept
        self._dropped, self._seen = notes.dropped, notes.seen
