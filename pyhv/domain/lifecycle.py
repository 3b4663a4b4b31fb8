# SPDX-License-Identifier: GPL-2.0-only
"""Where a domain is between its making and its end, and how it ended.

    PAUSED ◄──pause── RUNNING ──suspends itself──► SUSPENDED
      │  └──unpause────►│ ▲ └──────resume────────────┘ │
      │                 │                              │     destroyed, or it shut down, crashed,
      └────────────────►└──────────► DYING ◄───────────┘     was ended by its watchdog
                                       │
                                     DEAD                    nothing of it is left on the machine

A paused domain is kept from running by somebody else, a suspended one by itself: it waits for the toolstack.
(Whoever is paused in the midst of the call that suspends it is suspended, and no longer paused.)
A dying one still owns all it had, until the machine takes it apart between two turns.
"""

import enum
from dataclasses import dataclass
from typing import Final

from pyhv.abi.numbers import Shutdown


class Lifecycle(enum.Enum):
    """The stages of a domain's life."""

    PAUSED = "paused"
    RUNNING = "running"
    SUSPENDED = "suspended"
    DYING = "dying"
    DEAD = "dead"


_NEXT: Final = {
    Lifecycle.PAUSED: frozenset({Lifecycle.RUNNING, Lifecycle.SUSPENDED, Lifecycle.DYING}),
    Lifecycle.RUNNING: frozenset({Lifecycle.PAUSED, Lifecycle.SUSPENDED, Lifecycle.DYING}),
    Lifecycle.SUSPENDED: frozenset({Lifecycle.RUNNING, Lifecycle.DYING}),
    Lifecycle.DYING: frozenset({Lifecycle.DEAD}),
    Lifecycle.DEAD: frozenset[Lifecycle](),
}


class IllegalTransition(RuntimeError):
    """A stage that cannot follow: a bug of whoever asked for it, never a guest's doing."""


@dataclass(slots=True)
class Life:
    """One domain's stage, and how it has shut down if it has."""

    stage: Lifecycle = Lifecycle.PAUSED
    reason: int | None = None
    """Why it shut down (`abi.numbers.Shutdown`, or whatever else the guest said); None: it did not."""
    announced: int | None = None
    """What the guest wants its shutdown to be recorded as, whatever it will say then."""
    cause: str | None = None
    """What it died of, for people; None if it ended as it wanted."""
    halted: bool = False
    """It never shut down: its last vCPU went down, which Xen takes for a power-off."""

    def become(self, stage: Lifecycle) -> None:
        """Enter a stage. IllegalTransition if it cannot follow the present one."""
        if stage not in _NEXT[self.stage]:
            raise IllegalTransition(f"a domain that is {self.stage.value} cannot become {stage.value}")
        self.stage = stage

    @property
    def going_on(self) -> bool:
        """It has not shut down: it runs, or will when it is no longer paused."""
        return self.stage is Lifecycle.RUNNING or self.stage is Lifecycle.PAUSED

    @property
    def crashed(self) -> bool:
        """Whether it ended as a crash, by its own verdict or the hypervisor's."""
        return self.reason == Shutdown.CRASH

    def shut_down(self, reason: int, cause: str | None = None) -> None:
        """It ends, or suspends itself. Without effect on one that has done so: the first reason stays."""
        if self.going_on:
            self.become(Lifecycle.SUSPENDED if reason == Shutdown.SUSPEND else Lifecycle.DYING)
            self.reason, self.cause = reason, cause

    def destroy(self) -> None:
        """The toolstack ends it, whatever it does; without effect on one that has ended."""
        if self.going_on or self.stage is Lifecycle.SUSPENDED:
            self.become(Lifecycle.DYING)
            self.reason, self.cause = None, "it was destroyed"

    def resume(self) -> None:
        """A suspended domain runs again, as if it had never shut down."""
        self.become(Lifecycle.RUNNING)
        self.reason = self.announced = self.cause = None
