# SPDX-License-Identifier: GPL-2.0-only
"""Real time that is counted: for whoever wants a run in real time again, exactly.

The machine's time is that of executed code, as `VirtualClock` counts it, and now and then it is pulled to
the host's: that comes in from outside (`Machine.pass_time`), and so a recording has it with its moment. Code
is run in pieces of about the same length by the host's clock; where a piece ends is no matter, since guests
do not notice that a turn is paused. When nobody can run, the host's time passes. So all that depends on the
host is by how much time was pulled, and when; a replay has it from the recording, and needs no clock.

Where guests count faster than the host's clock goes, time is not pulled, and they are ahead of it.
"""

import time
from collections.abc import Mapping
from typing import ClassVar, Final

from pyhv.clock import BYTES_PER_NS, VirtualClock
from pyhv.state import Plain

PIECE_NS: Final = 8_000_000
"""Of the host's time: how long code runs before what came in is looked at."""
LAG_NS: Final = 4_000_000
"""Of the host's time: by so much guests that run may be behind it."""
_LEAST_TICKS: Final = 200_000
_MOST_TICKS: Final = 30_000_000 * BYTES_PER_NS
"""Of a piece."""


class PacedClock(VirtualClock):
    """Counted time that keeps pace with the host's."""

    deterministic = False
    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **VirtualClock.NOT_STATE,
        **dict.fromkeys(("_began", "_per_ns", "_piece"), "the host's time"),
    }

    def __init__(self) -> None:
        super().__init__(time.time_ns())
        self._began = time.monotonic_ns()
        self._per_ns = 0.5
        """Ticks that code has lately made in a nanosecond of the host's time."""
        self._piece = (0, 0)

    def host_now(self) -> int:
        """The machine time (ns) that it should be by the host's clock."""
        return time.monotonic_ns() - self._began

    def go_with_host(self) -> None:
        """From now on, whatever was before."""
        self._began = time.monotonic_ns() - self.now()

    def piece(self) -> int:
        """A piece begins: machine time (ns) at which it is to pause."""
        self._piece = time.monotonic_ns(), self.ticks()
        ticks = min(max(int(self._per_ns * PIECE_NS), _LEAST_TICKS), _MOST_TICKS)
        return self.now() + ticks // BYTES_PER_NS + 1

    def piece_is_over(self) -> None:
        """It has paused, or its turn has ended: learn from how long it took."""
        began, before = self._piece
        spent, made = time.monotonic_ns() - began, self.ticks() - before
        if made > _LEAST_TICKS // 4 or spent > PIECE_NS:
            self._per_ns = min(max(made / max(spent, 1), 0.001), 2 * self._per_ns)

    def sleep_until(self, when: int) -> None:
        """Nobody can run: let the host's time pass."""
        delay = when - self.host_now()
        if delay > 0:
            time.sleep(delay / 1e9)

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """`Clock.restore`."""
        super().restore(saved)
        self.go_with_host()
