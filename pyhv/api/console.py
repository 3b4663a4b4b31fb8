# SPDX-License-Identifier: GPL-2.0-only
"""A guest's console as a person or a test uses it: what it printed, what it is waited for, what is typed.

A guest prints for as long as it lives, so only the end is kept; `position` counts every byte since the
beginning, and what was expected is not looked for again.
"""

import re
from dataclasses import dataclass
from typing import Final

from pyhv.state import Tally

KEPT: Final = 1 << 20
"""Bytes of a console's end that are kept."""


@dataclass(frozen=True, slots=True)
class ConsoleNotes:
    """A console as plain data."""

    kept: bytes
    dropped: Tally
    seen: Tally


@dataclass(frozen=True)
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
        self._kept = bytearray()
        self._dropped = 0
        self._seen = 0
        """Position up to which `expect` has consumed."""

    def output(self, data: bytes) -> None:
        """The guest has printed more."""
        self._kept += data
        if len(self._kept) > 2 * KEPT:
            surplus = len(self._kept) - KEPT
            del self._kept[:surplus]
            self._dropped += surplus

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
