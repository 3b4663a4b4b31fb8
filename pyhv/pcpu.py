# SPDX-License-Identifier: GPL-2.0-only
"""A processor of the machine: the turn that is running on it or is paused, and how turns begin and end.

    begin ──► the guest's code ──► end      the vCPU has used its slice, or has left by itself
                  ▲      │
               go_on ◄───┴──► paused        interrupted, or at its limit; to the guest, nothing has happened

It has the clock's lease while a turn is open: the clock stops the engine that runs here, and no other. While
code runs, what others want done to the domain waits in its mailbox (`domain/mailbox.py`) for the next exit.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from pyhv.abi.numbers import VcpuState, Virq
from pyhv.board import Board
from pyhv.clock import BYTES_PER_NS
from pyhv.devices.toolstack import ToolstackDomain
from pyhv.domain.lifecycle import Lifecycle
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import GuestCrash
from pyhv.resident import Resident
from pyhv.sched.base import Scheduler

_TIME_REFRESH_NS: Final = 100_000_000
_LONGEST_TURN_NS: Final = 30_000_000


@dataclass(slots=True)
class Turn:
    """A vCPU's stay on the processor, from `start` to `deadline` (ns) at the latest."""

    resident: Resident
    vcpu: Vcpu
    start: int
    deadline: int

    @property
    def has_left(self) -> bool:
        """Whether the vCPU has left the processor by itself, whatever time it had."""
        return self.resident.dispatcher.call.reschedule or not self.resident.domain.alive


class Pcpu:
    """One processor; `next_timer` says when the next timer of a guest fires (ns; None: never)."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("clock", "physical", "scheduler", "dom0", "_next_timer"), "the machine's"),
        **dict.fromkeys(("turn", "running"), "said by `snapshot/whole.py`"),
        "engine_ns": "the host's time",
        **dict.fromkeys(("_interrupted", "_reached"), "of the run that comes next"),
        "turns": "counted for whoever wants to come back to a moment",
        "executing": "false while it can be said",
    }

    def __init__(
        self, board: Board, scheduler: Scheduler, dom0: ToolstackDomain, next_timer: Callable[[], int | None]
    ) -> None:
        self.clock, self.physical = board.clock, board.physical
        self.scheduler = scheduler
        self.dom0 = dom0
        self._next_timer = next_timer
        self.turn: Turn | None = None
        """The turn that is running, or is paused."""
        self.running: Vcpu | None = None
        """The vCPU whose turn that is; set before all of the turn is known, by what loads the vCPU."""
        self.turns = 0
        """How many have begun here."""
        self.executing = False
        """Whether guest code runs, or a handler in one of its exits."""
        self.engine_ns = 0
        """Host ns spent inside engines, handlers included."""
        self._interrupted = False
        """An exit of the turn has asked for it to pause."""
        self._reached = 0
        """Where a turn has last paused for its limit: the next block of code lasts longer."""

    def put_back(self, turn: Turn | None) -> None:
        """Have that turn, paused, or none, whatever was here. Its vCPU is loaded when it goes on."""
        self.turn, self.running = turn, None if turn is None else turn.vcpu

    def has_reached(self, when: int) -> bool:
        """Whether it has run up to a time (ns): not to the very nanosecond, for code comes in blocks."""
        return self.clock.now() >= when or (self.turn is not None and self._reached >= when)

    def interrupt(self) -> None:
        """In an exit: come back from the turn that is running when the exit is done, and leave it paused."""
        self._interrupted = True
        if self.turn is not None:  # else it is about to begin
            self.clock.interrupt()
            self.turn.resident.domain.engine.stop()

    def begin(self, resident: Resident, vcpu: Vcpu, slice_ns: int, limit: int | None) -> None:
        """Let a vCPU run until its slice or the next deadline ends, or it leaves by itself.

        At `limit` (ns), if there is one, it pauses.
        """
        domain = resident.domain
        domain.mailbox.enter(domain.engine.stop)
        try:
            self._begin(resident, vcpu, slice_ns, limit)
            self._run(limit)
        finally:
            domain.mailbox.leave()

    def go_on(self, limit: int | None) -> None:
        """Take up the turn that is paused, as `begin`."""
        turn = self._open_turn
        domain = turn.resident.domain
        domain.mailbox.enter(domain.engine.stop)
        self._interrupted = False
        try:
            self.clock.resume(domain.engine, turn.deadline, limit)
            turn.resident.dispatcher.go_on(turn.vcpu)
            self._run(limit)
        finally:
            domain.mailbox.leave()

    def _begin(self, resident: Resident, vcpu: Vcpu, slice_ns: int, limit: int | None) -> None:
        """Put a vCPU here, and on its engine."""
        domain, dispatcher = resident.domain, resident.dispatcher
        self._interrupted = False
        self.turns += 1
        start = self.clock.now()
        domain.tables.code.tidy()
        if self.physical.shared_code:
            self.physical.renew_shared()
        dispatcher.load(vcpu)
        self.running = vcpu
        vcpu.runstate.change(VcpuState.RUNNING, start)
        if vcpu.periodic.tick(start):
            domain.events.raise_virq(Virq.TIMER, vcpu.number)
        if start - vcpu.areas.written >= _TIME_REFRESH_NS or vcpu.areas.written < 0:
            _write_areas(vcpu, start)
        deadline = start + min(slice_ns, _LONGEST_TURN_NS)
        for due in (self._next_timer(), self.dom0.next_deadline(), vcpu.periodic.next_deadline()):
            if due is not None:
                deadline = min(deadline, due)
        dispatcher.call.reschedule = False
        dispatcher.enter()
        deadline = max(deadline, start + 1)
        self.clock.begin(domain.engine, deadline, limit)
        self.turn = Turn(resident, vcpu, start, deadline)
        if self._interrupted:
            self.interrupt()

    def _run(self, limit: int | None) -> None:
        """Run the turn until it ends, or has to pause."""
        turn = self._open_turn
        self._execute(turn)
        if turn.has_left or not self.clock.pause(turn.resident.domain.engine):
            self.end()
            return
        self.dom0.turn_paused(turn.vcpu.domid)
        pause_at = self.clock.pause_at
        earlier = pause_at is not None and limit is not None and pause_at < limit * BYTES_PER_NS
        if limit is not None and not self._interrupted and not earlier:
            self._reached = limit

    @property
    def _open_turn(self) -> Turn:
        assert self.turn is not None, "no turn has begun"
        return self.turn

    def _execute(self, turn: Turn) -> None:
        """Run the guest's code. Whatever a handler raises that is no guest's doing ends the turn too."""
        domain, dispatcher = turn.resident.domain, turn.resident.dispatcher
        if dispatcher.call.reschedule:
            return
        began = time.perf_counter_ns()
        self.executing = True
        try:
            domain.engine.run()
        except GuestCrash as fatal:
            dispatcher.host.crash(domain, fatal.why)
        except BaseException:
            self.end()
            raise
        finally:
            self.executing = False
            self.engine_ns += time.perf_counter_ns() - began

    def end(self) -> None:
        """Take the vCPU away: it has used so much time, and is runnable still, or waits."""
        turn = self._open_turn
        vcpu = turn.vcpu
        self.clock.end()
        end = self.clock.now()
        self.put_back(None)
        if vcpu.areas.runstate:
            _write_areas(vcpu, end)
        self.scheduler.charge(vcpu, end - turn.start, end)
        runs_on = turn.resident.domain.life.stage is Lifecycle.RUNNING
        if vcpu.online:
            ready = VcpuState.RUNNABLE if runs_on else VcpuState.OFFLINE
            vcpu.runstate.change(VcpuState.BLOCKED if vcpu.blocked else ready, end)
        if vcpu.blocked or not vcpu.online or not runs_on:
            self.scheduler.sleep(vcpu, end)
        self.dom0.turn_ended(vcpu.domid, vcpu.polling)


def _write_areas(vcpu: Vcpu, now: int) -> None:
    """Refresh what the guest reads of its time and runstate."""
    vcpu.update_time()
    vcpu.update_runstate(now)
