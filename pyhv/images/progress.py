# SPDX-License-Identifier: GPL-2.0-only
"""Who is told how far a download is. It is no part of `archive.py`, which is imported only to fetch."""

from typing import Protocol


class Progress(Protocol):
    """Somebody who wants to know how far it is."""

    def step(self, text: str) -> None:
        """A new stage has begun."""

    def transferred(self, done: int, total: int) -> None:
        """Bytes downloaded so far, of `total` (0: unknown)."""


class SilentProgress:
    """Nobody wants to know."""

    def step(self, text: str) -> None:
        """Said to nobody."""

    def transferred(self, done: int, total: int) -> None:
        """Said to nobody."""
