# SPDX-License-Identifier: GPL-2.0-only
"""Deadlines in order: one queue for all of a machine's timers, and the ABI's rules for two of them.

What a guest may ask for is specified in the public headers `xen.h` (set_timer_op) and `vcpu.h` (single-shot
and periodic timers). All times are absolute nanoseconds of system time. The queue knows neither a clock nor
what a timer is for: its owner asks for the next deadline and acts on the keys that have expired.
"""

import heapq
from collections.abc import Hashable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Final, Generic, TypeVar

from pyhv.abi.layout import u64
from pyhv.state import Nanoseconds, Plain, entries, items, refusal, say, typed

K = TypeVar("K", bound=Hashable)

FAR_FUTURE: Final = 1 << 50
"""A set_timer_op deadline further ahead than this (ns, 13 days) is taken for a guest's mistake."""
MISTAKE_DELAY: Final = 100_000_000
"""What such a deadline is replaced by, from now: the guest gets to look at its clock again (ns)."""
MIN_PERIOD: Final = 1_000_000
"""Shortest period that VCPUOP_set_periodic_timer accepts (ns)."""
DEFAULT_PERIOD: Final = 10_000_000
"""Period of the VIRQ_TIMER that every vCPU of a PV domain starts with (ns)."""


class TimerQueue(Generic[K]):
    """Timers by key, at most one per key. Equal deadlines expire in the order in which they were armed.

    `key_type` is that of the keys, as a field of saved state would have it.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "_key_type": "given",
        "_heap": "follows from what is armed",
        "_sequence": "what is armed is numbered anew, in its order",
    }

    def __init__(self, key_type: Any) -> None:
        self._key_type = key_type
        self._heap: list[tuple[int, int, K]] = []
        self._armed: dict[K, tuple[int, int]] = {}
        self._sequence = 0

    def __len__(self) -> int:
        return len(self._armed)

    def arm(self, key: K, deadline: int) -> None:
        """Set the key's timer, replacing the one it has. A deadline in the past expires at once."""
        self._sequence += 1
        self._armed[key] = (deadline, self._sequence)
        heapq.heappush(self._heap, (deadline, self._sequence, key))
        # Replaced and cancelled timers stay in the heap until they surface. A guest can re-arm for ever
        # without one surfacing, so sweep when they are the majority.
        if len(self._heap) > 2 * len(self._armed) + 16:
            self._heap = [(when, sequence, k) for k, (when, sequence) in self._armed.items()]
            heapq.heapify(self._heap)

    def cancel(self, key: K) -> bool:
        """Drop the key's timer; False if it had none."""
        return self._armed.pop(key, None) is not None

    def deadline(self, key: K) -> int | None:
        """When the key's timer expires; None if it has none."""
        armed = self._armed.get(key)
        return None if armed is None else armed[0]

    def next_deadline(self) -> int | None:
        """The earliest deadline of all; None without timers."""
        while self._heap:
            deadline, sequence, key = self._heap[0]
            if self._armed.get(key) == (deadline, sequence):
                return deadline
            heapq.heappop(self._heap)
        return None

    def __iter__(self) -> Iterator[K]:
        return iter(self._armed)

    def state(self) -> dict[str, Plain]:
        """Keys and deadlines, in the order in which they were armed."""
        armed = sorted((sequence, deadline, key) for key, (deadline, sequence) in self._armed.items())
        return {"armed": [[say(self._key_type, key), deadline] for _, deadline, key in armed]}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Have the timers that were saved, and no others. StateError."""
        found = entries(dict(saved), "", {"armed": None})["armed"]
        armed: dict[K, int] = {}
        for number, item in enumerate(items(found, "armed")):
            where = f"armed.{number}"
            said, deadline = items(item, where, 2)
            key: K = typed(self._key_type, said, where)
            if key in armed:
                raise refusal(where, "is the second timer of one key")
            armed[key] = typed(u64, deadline, where)
        self._heap.clear()
        self._armed.clear()
        self._sequence = 0
        for key, deadline in armed.items():
            self.arm(key, deadline)

    def expire(self, now: int) -> list[K]:
        """Remove the timers whose deadline is `now` or earlier; their keys, earliest deadline first."""
        expired: list[K] = []
        while (deadline := self.next_deadline()) is not None and deadline <= now:
            key = heapq.heappop(self._heap)[2]
            del self._armed[key]
            expired.append(key)
        return expired


def set_timer_deadline(timeout: int, now: int) -> int | None:
    """The deadline that set_timer_op's 64-bit argument stands for; None cancels the timer.

    0 cancels. A negative or absurdly distant one is a guest that computed nonsense: it fires soon, so that a
    lost timer does not hang the guest. A past one is returned as it is.
    """
    if timeout == 0:
        return None
    if not 0 < timeout < 1 << 63 or timeout - now >= FAR_FUTURE:
        return now + MISTAKE_DELAY
    return timeout


@dataclass(slots=True)
class PeriodicTimer:
    """A vCPU's periodic VIRQ_TIMER: it ticks only while its vCPU runs, and owes at most one tick.

    The owner calls `tick` when the vCPU starts to run and at each deadline while it runs.
    """

    last: Nanoseconds
    """When it ticked last, or was made (ns)."""
    period: Nanoseconds = DEFAULT_PERIOD
    """In ns; 0: stopped."""

    def set(self, period: int) -> None:
        """Change the period, in ns; 0 stops. The caller has refused one below `MIN_PERIOD`."""
        self.period = period

    def tick(self, now: int) -> bool:
        """Count a tick as sent now, for the owner to send it; False if none is due."""
        if self.period == 0 or now < self.last + self.period:
            return False
        self.last = now
        return True

    def next_deadline(self) -> int | None:
        """When the next tick is due; None when stopped."""
        return self.last + self.period if self.period else None
