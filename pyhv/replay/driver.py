# SPDX-License-Identifier: GPL-2.0-only
"""Brings a machine to the moments of a run that it is to go through again, and lets in there what came in.

    the moment lies in a later turn          run to the end of this one, let time pass, run the next
    it lies between two turns                run to the end of this one, let time pass up to it
    it lies in a turn that is paused         run up to that block of code (`VirtualClock.pause_at`), and in
                                             it by single instructions
    it is that of an exit                    look at the exits of that turn
    somebody is told of a domain's end       be told there (`Player.ended`)

A machine that does not come by such a moment is not going through that run: Diverged.
"""

from collections.abc import Callable
from typing import Final

from pyhv.clock import BYTES_PER_NS, VirtualClock
from pyhv.cpu.exits import ExitRecord
from pyhv.errors import Diverged
from pyhv.machine import Machine
from pyhv.outside import Position, Where
from pyhv.replay.entries import Moment

_NEVER: Final = 1 << 62


class Driver:
    """Drives one machine, whose time is counted."""

    def __init__(self, machine: Machine) -> None:
        assert isinstance(machine.clock, VirtualClock), "only counted time comes again"
        self.machine = machine
        self._clock = machine.clock
        self.near = False
        """A moment is reached at the start of the last block of code in its turn that does not begin
        later."""
        self._stuck = False
        """The turn is paused there."""
        self.drifts = False
        """Data are observed, which can move time by some nanoseconds: past a moment counts as at it."""

    @property
    def stopped(self) -> bool:
        """Whether a debugger keeps everybody from running."""
        debugger = self.machine.debugger
        return debugger is not None and debugger.stop is not None

    def has_reached(self, moment: Moment) -> bool:
        """Whether the machine is at a moment, so that `perform` may be called; at an exit's: in its turn.

        One at which somebody is told of a domain's end comes while what is due is done, and is never reached.
        Diverged: the machine has gone past.
        """
        here, target = self.machine.position, moment.position
        if target.where is Where.INSIDE:
            place = (here.turns, here.over)
            before = (target.turns, False) if here.turns == target.turns else (target.turns - 1, True)
            if here.turns > target.turns or place == (target.turns, True):
                raise Diverged(self._past(target))
            return place == before
        if here[:2] == target[:2] and here.ticks == target.ticks:
            return target.where is Where.RESTING
        if self.near and (self._stuck or here[:3] > target[:3]):
            return True
        if self.drifts and here[:3] > target[:3]:
            return True
        if here[:3] > target[:3]:
            raise Diverged(self._past(target))
        return False

    def advance(self, moment: Moment | None, limit: int | None = None) -> bool:
        """One turn, or idle time, towards a moment that is not reached; not beyond `limit` (ns).

        False: nothing will ever happen again.
        """
        machine, clock = self.machine, self._clock
        target = None if moment is None else moment.position
        if target is not None and target.where is not Where.INSIDE and not target.over:
            here = machine.position
            if here.turns + here.over >= target.turns:
                clock.pause_at = target.ticks
        before = machine.position
        try:
            if machine.step(limit):
                if clock.pause_at is not None and machine.position == before:
                    self._within_a_block(limit)
                return True
        finally:
            clock.pause_at = None
        due = machine.next_deadline()
        ends = [when for when in (due, limit) if when is not None]
        if target is not None and target.over and machine.position.turns == target.turns:
            ends.append(-(-target.ticks // BYTES_PER_NS))  # or past it, if idle time does not lead there
        if not ends:
            return False
        machine.advance_to(min(ends))
        return True

    def _within_a_block(self, limit: int | None) -> None:
        """The turn is paused at the start of the block of code that the moment lies in."""
        machine = self.machine
        if self.stopped:
            return
        if limit is not None and machine.has_reached(limit):
            return
        if self.near:
            self._stuck = True
        else:
            machine.pcpu.step()

    def perform(self, moment: Moment, act: Callable[[], None]) -> bool:
        """Do at a reached moment what was done then. Diverged: it does not come.

        False: a debugger has stopped the machine on the way to the exit whose moment that is.
        """
        if moment.position.where is Where.INSIDE:
            return self._inside(moment, act)
        if moment.settled and not self.machine.door.settled:
            self.machine.settle()
        act()
        return True

    def _inside(self, moment: Moment, act: Callable[[], None]) -> bool:
        """Run the turn, and act at its exit."""
        target = moment.position
        waiting = _AtExit(self.machine, target, act)
        self.machine.observe(waiting)
        try:
            while not waiting.done and not self.stopped:
                here = self.machine.position
                if here.turns > target.turns or here[:2] == (target.turns, True):
                    raise Diverged(self._past(target))
                if not self.advance(moment):
                    raise Diverged(self._past(target))
        finally:
            self.machine.unobserve(waiting)
        return waiting.done

    def _past(self, target: Position) -> str:
        here = self.machine.position
        return (
            f"the run has come to {here} in turn {here.turns}, and something came in at {target}"
            f" in turn {target.turns}, which it has not come by"
        )


class _AtExit:
    """An observer that acts at one exit."""

    def __init__(self, machine: Machine, target: Position, act: Callable[[], None]) -> None:
        self._machine = machine
        self._target = target
        self._act = act
        self.done = False

    def exit(self, _record: ExitRecord) -> None:
        """`Observer`: is it this one?"""
        here = self._machine.position
        if not self.done and here.turns == self._target.turns and here.exits == self._target.exits:
            self.done = True
            self._act()
            self._machine.interrupt()
