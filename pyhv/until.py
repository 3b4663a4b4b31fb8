# SPDX-License-Identifier: GPL-2.0-only
"""When a run of the machine is over: stop policies, which may be combined.

>>> either = AllEnded() | Seconds(5)

The machine asks its policy between two turns. One that must take effect within a turn interrupts it
(`Machine.interrupt`): the turn goes on as if nothing had been when the machine is run again.
"""

import enum
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

from pyhv.cpu.exits import ExitRecord
from pyhv.domain.domain import Domain
from pyhv.outside import Position
from pyhv.resident import Residents
from pyhv.traps.dispatch import Observer


class Outcome(enum.Enum):
    """Why `Machine.run` came back."""

    ENDED = "all domains have ended"
    DEADLOCK = "every vCPU is blocked and nothing is due"
    TIMEOUT = "the time budget is spent"
    STOPPED = "asked to stop"


class Runnable(Protocol):
    """The machine, as far as a policy looks at it."""

    @property
    def residents(self) -> Residents:
        """All domains."""

    @property
    def position(self) -> Position:
        """This moment of the run."""

    def now(self) -> int:
        """Machine time in ns."""

    def has_reached(self, when: int) -> bool:
        """Whether it has run up to a time (ns), which may lie within what comes next."""

    def observe(self, observer: Observer) -> None:
        """Show every exit of every domain to `observer`."""

    def unobserve(self, observer: Observer) -> None:
        """No longer show exits to `observer`."""

    def interrupt(self) -> None:
        """Come back from the turn that is running."""

    def stop_at(self, domain: Domain, addresses: Collection[int], arrived: Callable[[int], None]) -> None:
        """Call `arrived` before a vCPU of a domain executes an instruction at one of these addresses."""


class Until:
    """A stop policy; this one never stops. One object serves one run at a time."""

    def begin(self, machine: Runnable) -> None:
        """A run begins."""

    def end(self, machine: Runnable) -> None:
        """The run that began is over."""

    def limit(self) -> int | None:
        """Machine time (ns) at which a turn is to pause; None: never."""
        return None

    def outcome(self, _machine: Runnable) -> Outcome | None:
        """Between two turns: why the run is over; None if it is not."""
        return None

    def __or__(self, other: "Until") -> "Until":
        """Whichever comes first; this one's outcome if both have come."""
        return _Either(self, other)


class _Either(Until):
    def __init__(self, first: Until, second: Until) -> None:
        self._both = first, second

    def begin(self, machine: Runnable) -> None:
        for policy in self._both:
            policy.begin(machine)

    def end(self, machine: Runnable) -> None:
        for policy in self._both:
            policy.end(machine)

    def limit(self) -> int | None:
        limits = [limit for policy in self._both if (limit := policy.limit()) is not None]
        return min(limits, default=None)

    def outcome(self, machine: Runnable) -> Outcome | None:
        first, second = self._both
        return first.outcome(machine) or second.outcome(machine)


class AllEnded(Until):
    """Until every domain has ended or is suspended; at once if there is none."""

    def outcome(self, machine: Runnable) -> Outcome | None:
        alive = any(resident.domain.alive for resident in machine.residents)
        return None if alive else Outcome.ENDED


class Forever(Until):
    """Until nothing can happen any more by itself."""


class Nanoseconds(Until):
    """Until so much machine time has passed since the run began."""

    def __init__(self, ns: int) -> None:
        self._ns = ns
        self._limit = 0

    def begin(self, machine: Runnable) -> None:
        self._limit = machine.now() + self._ns

    def limit(self) -> int | None:
        return self._limit

    def outcome(self, machine: Runnable) -> Outcome | None:
        return Outcome.TIMEOUT if machine.has_reached(self._limit) else None


class Seconds(Nanoseconds):
    """Until so many seconds of machine time have passed since the run began."""

    def __init__(self, seconds: float) -> None:
        super().__init__(round(seconds * 1e9))


class Exits(Until):
    """Until the domains have made so many exits; the last one is handled, and its block done to its end."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._left = count
        self._machine: Runnable | None = None

    def begin(self, machine: Runnable) -> None:
        self._left, self._machine = self._count, machine
        machine.observe(self)

    def end(self, machine: Runnable) -> None:
        machine.unobserve(self)
        self._machine = None

    def exit(self, _record: ExitRecord) -> None:
        """`Observer`: one more."""
        self._left -= 1
        if self._left <= 0 and self._machine is not None:
            self._machine.interrupt()

    def outcome(self, machine: Runnable) -> Outcome | None:
        return Outcome.STOPPED if self._left <= 0 else None


class When(Until):
    """Until `predicate()` is true, asked between two turns."""

    def __init__(self, predicate: Callable[[], bool]) -> None:
        self._predicate = predicate

    def outcome(self, machine: Runnable) -> Outcome | None:
        return Outcome.STOPPED if self._predicate() else None


class Reaches(Until):
    """Until some vCPU is about to execute an instruction at one of the addresses of its domain, by domid.

    An address at which a vCPU stands already counts when it comes there again.
    """

    def __init__(self, addresses: Mapping[int, Collection[int]]) -> None:
        self._addresses = addresses
        self.reached: tuple[int, int] | None = None
        """Domid and linear address at which the run has stopped."""

    def begin(self, machine: Runnable) -> None:
        """`Until.begin`."""
        self.reached = None
        for resident in machine.residents:
            domid = resident.domain.domid

            def arrived(address: int, domid: int = domid) -> None:
                self.reached = domid, address
                machine.interrupt()

            machine.stop_at(resident.domain, self._addresses.get(domid, ()), arrived)

    def end(self, machine: Runnable) -> None:
        """`Until.end`."""
        for resident in machine.residents:
            machine.stop_at(resident.domain, (), lambda _address: None)

    def outcome(self, _machine: Runnable) -> Outcome | None:
        """`Until.outcome`."""
        return None if self.reached is None else Outcome.STOPPED
