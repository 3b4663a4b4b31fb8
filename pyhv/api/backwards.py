# SPDX-License-Identifier: GPL-2.0-only
"""A debugger that goes backwards, on a machine with a history: to the instruction before, to the breakpoint
before.

The machine does not run backwards. It goes through its run again, with the debugger's breakpoints, from a
moment that is kept to the present one; the last stop on that way is the first one in the other direction.

    kept      stop    stop           stop     present
     *─────────┼───────┼──────────────┼──────────┤        back to the third
     *─────────┼───────┼──────────────┤                   once more: back to the second

Data count where the instruction begins that touches them: going backwards, its effect is undone then.
"""

from typing import Final

from pyhv.api.history import History, Search
from pyhv.clock import BYTES_PER_NS
from pyhv.debugger import Debugger, Reason, Stop, VcpuId
from pyhv.errors import ReplayError
from pyhv.machine import Machine
from pyhv.outside import Position, Where
from pyhv.pcpu import Pcpu
from pyhv.until import Outcome, Runnable

_NEAR: Final = 2048
"""Ticks before a moment, from which on instructions are gone through singly."""
_FARTHER: Final = 16
"""How many times as many, if an exit takes longer than that."""


class HistoryWalker:
    """Takes a machine back for its debugger."""

    def __init__(self, machine: Machine, debugger: Debugger, history: History) -> None:
        self._machine, self._debugger, self._history = machine, debugger, history

    def run_back(self) -> Stop | None:
        """Be at the last stop before this moment, or (None) where the history begins. ReplayError."""
        searches: list[_Stops] = []

        def ask(now: Position) -> Search:
            searches.append(_Stops(self._machine, self._debugger, now))
            return searches[-1]

        found = self._history.search(ask)
        self._debugger.stop = None
        if found is None:
            self._history.to_first_guest()
            return None
        return searches[-1].stop

    def step_back(self, vcpu: VcpuId) -> Stop | None:
        """Be where a vCPU was about to execute its last instruction before this moment. ReplayError.

        None: it has executed none since the history began, which is where the machine is then.
        """
        self._debugger.stop = None
        found = _Steps(self._machine, self._history).before(vcpu)
        if found is None:
            self._history.to_first_guest()
            return None
        self._history.go_to(found)
        return Stop(Reason.STEP, vcpu)


def step_back(machine: Machine, history: History) -> Position:
    """Be where the vCPU whose turn was the last one was about to execute its last instruction.
    ReplayError."""
    now, vcpu = machine.position, machine.pcpu.latest
    found = None if vcpu is None else _Steps(machine, history).before(vcpu)
    if found is None:
        raise ReplayError(f"no instruction is remembered of what was before {now}")
    history.go_to(found)
    return machine.position


class _Steps:
    """Finds where instructions began."""

    def __init__(self, machine: Machine, history: History) -> None:
        self._machine, self._history = machine, history

    def before(self, vcpu: VcpuId) -> Position | None:
        """Where a vCPU's last instruction before this moment began; None: it has executed none."""
        now, pcpu = self._machine.position, self._machine.pcpu
        number, end = now.turns, now
        if pcpu.latest != vcpu:
            number, end = self._earlier_turn(vcpu, now.turns)
        elif now.over:
            end = self._history.end_of_turn(number)
        while number >= 0:
            found = self._last_instruction(number, end)
            if found is not None:
                return found
            number, end = self._earlier_turn(vcpu, number)
        return None

    def _earlier_turn(self, vcpu: VcpuId, number: int) -> tuple[int, Position]:
        """A vCPU's last turn before the one of a number, and where it was over; -1: it had none."""
        here = self._machine.position
        found = self._history.search(lambda _now: _TurnsOf(self._machine.pcpu, vcpu, number))
        return (-1, here) if found is None else (found.turns, found)

    def _last_instruction(self, number: int, end: Position) -> Position | None:
        """Where the last instruction began that was executed in a turn before `end`; None: there was none."""
        history, distance = self._history, _NEAR
        while True:
            target = Position(number, False, max(end.ticks - distance, 0), 0, Where.RESTING)
            here = history.near(max(target, history.beginning))
            turn = self._machine.pcpu.turn
            if turn is not None and here.turns == number:
                begins = here.ticks <= turn.start * BYTES_PER_NS
                found = self._walk(end)
                if found is not None or begins:
                    return found
            if here <= history.beginning:
                return None
            distance *= _FARTHER

    def _walk(self, end: Position) -> Position | None:
        """Execute instructions up to `end`, or to the end of the turn; where the last one began."""
        machine, found = self._machine, None
        turn = machine.pcpu.turn
        while machine.pcpu.turn is turn and (here := machine.position) < end:
            if machine.pcpu.step():
                found = here
        return found


class _Stops(Search):
    """The debugger's stops before a moment."""

    def __init__(self, machine: Machine, debugger: Debugger, end: Position) -> None:
        self._machine, self._debugger, self._end = machine, debugger, end
        self.stop: Stop | None = None

    def begin(self, _machine: Runnable) -> None:
        """`Until.begin`."""
        self._machine.put_debugger(self._debugger)
        self._debugger.go()

    def end(self, _machine: Runnable) -> None:
        """`Until.end`."""
        self._machine.put_debugger(None)

    def outcome(self, machine: Runnable) -> Outcome | None:
        """`Until.outcome`."""
        debugger, stop = self._debugger, self._debugger.stop
        if stop is None:
            return None
        if stop.reason in (Reason.BREAKPOINT, Reason.DATA):
            here = machine.position if stop.reason is Reason.BREAKPOINT else debugger.began
            if here is not None and here < self._end:
                self.last, self.stop = here, stop
        debugger.go(passing=[stop.vcpu])
        return None


class _TurnsOf(Search):
    """Where turns of a vCPU were over, up to the turn before one of a number."""

    def __init__(self, pcpu: Pcpu, vcpu: VcpuId, before: int) -> None:
        self._pcpu, self._vcpu, self._before = pcpu, vcpu, before

    def outcome(self, machine: Runnable) -> Outcome | None:
        """`Until.outcome`."""
        here = machine.position
        is_newer = self.last is None or here.turns > self.last.turns
        if here.over and here.turns < self._before and is_newer and self._pcpu.latest == self._vcpu:
            self.last = here
        return None
