# SPDX-License-Identifier: GPL-2.0-only
"""A gate for what may be under way at once, and for who has to wait until none of it is.

Whoever has looked up where a cluster lies goes through the gate until its bytes were moved. A cluster that
nothing refers to any more is given to somebody else only after `drain`: until then a reader may still be on
its way to it.
"""

import threading
from types import TracebackType


class DrainGate:
    """Any number are inside at once; `drain` waits for them, and new ones wait for it."""

    __slots__ = ("_changed", "_draining", "_inside")

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._inside = 0
        self._draining = False

    def __enter__(self) -> None:
        with self._changed:
            while self._draining:
                self._changed.wait()
            self._inside += 1

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._inside -= 1
            if not self._inside and self._draining:
                self._changed.notify_all()

    def drain(self) -> None:
        """Return when all who were inside are out. One at a time may call it, and nobody who is inside."""
        with self._changed:
            self._draining = True
            while self._inside:
                self._changed.wait()
            self._draining = False
            self._changed.notify_all()
