# SPDX-License-Identifier: GPL-2.0-only
"""A processor of the machine: the turn that is running on it or is paused, and how turns begin and end.

    begin ──► the guest's code ──► end      the vCPU has used its slice, or has left by itself
                  ▲      │
               go_on ◄───┴──► paused        interrupted, or at its limit; to the guest, nothing has happened

For somebody who looks on, the turn that is paused goes on by one instruction (`step`), or halts at a block of
code that has an address in it, or before an access to data; the guest and its time notice nothing of either.
A turn that is paused in the middle of a block has had that block counted: `counted_to` says where it ends.

It has the clock's lease while a turn is open: the clock stops the engine that runs here, and no other. While
code runs, what others want done to the domain waits in its mailbox (`domain/mailbox.py`) for the next exit.
"""

import functools
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar, Final

from pyhv.abi.numbers import VcpuState, Virq
from pyhv.abi.x86 import FLAG_RF
from pyhv.address import PAGE_SIZE
from pyhv.board import Board
from pyhv.clock import BYTES_PER_NS
from pyhv.cpu import vmcb as v
from pyhv.cpu.lookout import CodeBlock
from pyhv.devices.toolstack import ToolstackDomain
from pyhv.domain.lifecycle import Lifecycle
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import GuestCrash
from pyhv.resident import Resident
from pyhv.sched.base import Scheduler

_TIME_REFRESH_NS: Final = 100_000_000
_LONGEST_BLOCK: Final = 2 * PAGE_SIZE
_LONGEST_TURN_NS: Final = 30_000_000


@dataclass(slots=True)
class Turn:
    """A vCPU's stay on the processor, from `start` to `deadline` (ns) at the latest."""

    resident: Resident
    vcpu: Vcpu
    start: int
    deadline: int
    deliverable: bool = False
    """Whether an event could be delivered when it paused."""
    counted_to: int | None = None
    """It is paused in the middle of a block of code, which has been counted, and ends at this linear
    address."""

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
        **dict.fromkeys(("_interrupted", "_reached", "met", "_observed"), "of the run that comes next"),
        "latest": "of the turn that comes next",
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
        self.latest: tuple[int, int] | None = None
        """Whose turn has begun last, if that is known."""
        self.executing = False
        """Whether guest code runs, or a handler in one of its exits."""
        self.engine_ns = 0
        """Host ns spent inside engines, handlers included."""
        self._interrupted = False
        """An exit of the turn has asked for it to pause."""
        self._reached = 0
        """Where a turn has last paused for its limit: the next block of code lasts longer."""

        self.met: CodeBlock | None = None
        """The turn has halted at the start of this block, which has an address that somebody looks out
        for."""
        self._observed = False
        """An instruction has met data that is observed."""

    def put_back(self, turn: Turn | None) -> None:
        """Have that turn, paused, or none, whatever was here. Its vCPU is loaded when it goes on."""
        self.turn, self.running = turn, None if turn is None else turn.vcpu
        self.latest = None if turn is None else turn.vcpu.id

    @property
    def ticks(self) -> int:
        """`Clock.ticks`, to the very instruction: what is left of a block that has been counted is yet to
        come."""
        turn, ticks = self.turn, self.clock.ticks()
        if turn is None or turn.counted_to is None:
            return ticks
        rest = turn.counted_to - turn.resident.dispatcher.cpu.linear_rip()
        return ticks - rest if 0 < rest <= _LONGEST_BLOCK else ticks

    def has_reached(self, when: int) -> bool:
        """Whether it has run up to a time (ns): not to the very nanosecond, for code comes in blocks."""
        return self.clock.now() >= when or (self.turn is not None and self._reached >= when)

    def interrupt(self) -> None:
        """In an exit: come back from the turn that is running when the exit is done, and leave it paused."""
        self._interrupted = True
        if self.turn is not None:  # else it is about to begin
            self.clock.interrupt()
            self.turn.resident.domain.engine.come_back()

    def observed(self) -> None:
        """In an exit that is none: data that is observed was met, so the turn is to halt."""
        self._observed = True
        self.clock.interrupt()
        self._open_turn.resident.domain.engine.come_back()

    def begin(
        self, resident: Resident, vcpu: Vcpu, slice_ns: int, limit: int | None, *, paused: bool = False
    ) -> None:
        """Let a vCPU run until its slice or the next deadline ends, or it leaves by itself.

        At `limit` (ns), if there is one, it pauses; `paused`: before its first instruction.
        """
        domain = resident.domain
        domain.mailbox.enter(domain.engine.stop)
        try:
            self._begin(resident, vcpu, slice_ns, limit)
            if paused:
                self._hold()
            else:
                self._run(limit)
        finally:
            domain.mailbox.leave()

    def go_on(self, limit: int | None) -> None:
        """Take up the turn that is paused, as `begin`."""
        turn = self._open_turn
        while turn.counted_to is not None and not self.close_block():
            self.step()
            if self.turn is not turn:
                return
        with self._resumed(turn, limit):
            self._run(limit)

    @contextmanager
    def _resumed(self, turn: Turn, limit: int | None = None) -> Iterator[None]:
        """The turn that was paused is open to the engine again."""
        domain = turn.resident.domain
        domain.mailbox.enter(domain.engine.stop)
        self._interrupted, self.met = False, None
        try:
            self.clock.resume(domain.engine, turn.deadline, limit)
            turn.resident.dispatcher.go_on(turn.vcpu, deliverable=turn.deliverable)
            yield
        finally:
            domain.mailbox.leave()

    def _begin(self, resident: Resident, vcpu: Vcpu, slice_ns: int, limit: int | None) -> None:
        """Put a vCPU here, and on its engine."""
        domain, dispatcher = resident.domain, resident.dispatcher
        self._interrupted = False
        self.turns += 1
        self.latest = vcpu.id
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
        if self._has_halted(turn):
            return
        if turn.has_left or not self.clock.pause(turn.resident.domain.engine):
            self.end()
            return
        self._has_paused(turn)
        pause_at = self.clock.pause_at
        earlier = pause_at is not None and limit is not None and pause_at < limit * BYTES_PER_NS
        if limit is not None and not self._interrupted and not earlier:
            self._reached = limit

    def _hold(self) -> None:
        """Leave the turn paused where it is, if it is not over."""
        turn = self._open_turn
        if turn.has_left:
            self.end()
        else:
            self.clock.hold()
            self._has_paused(turn)

    def _has_paused(self, turn: Turn) -> None:
        turn.deliverable = turn.vcpu.info.deliverable
        self.dom0.turn_paused(turn.vcpu.domid)

    # -- for somebody who looks on -----------------------------------------------------------------------

    def _has_halted(self, turn: Turn) -> bool:
        """Whether the engine has come back for somebody who looks on: then the turn is paused."""
        lookout, observed = turn.resident.domain.engine.lookout, self._observed
        block, self._observed = lookout.take_met(), False
        if turn.has_left or not (observed or (block is not None and not self._interrupted)):
            return False
        if observed:
            self.clock.halt(None)
            begun = lookout.latest
            inside = begun.start <= turn.resident.dispatcher.cpu.linear_rip() < begun.end
            turn.counted_to = begun.end if inside else None
        elif block is not None:
            if not self.clock.halt(block.size):
                return False
            self.met = block
        self._has_paused(turn)
        return True

    def step(self) -> bool:
        """Let the vCPU of the paused turn execute one instruction.

        Afterwards the turn is paused, or over. False: the instruction is not done. Either the turn was over
        before, or it had to be begun anew, as after a page fault that the hypervisor has seen to.
        """
        turn = self._open_turn
        cpu = turn.resident.dispatcher.cpu
        with self._resumed(turn):
            lookout, at = cpu.engine.lookout, cpu.linear_rip()
            looking, lookout.looking = lookout.looking, False
            cpu.engine.asked_to_stop = False
            done = self._step(turn)
            lookout.looking = looking
            observed, self._observed = self._observed, False
            if self.turn is not turn:
                return done
            now_at = cpu.linear_rip()
            if not observed and not (done and at < now_at and now_at < (turn.counted_to or 0)):
                turn.counted_to = None
            if cpu.engine.asked_to_stop:
                self.end()
            else:
                self._hold()
            return done or at != now_at

    def _step(self, turn: Turn) -> bool:
        """Execute the instruction; True if it was seen to be done."""
        cpu, breakpoints = turn.resident.dispatcher.cpu, turn.resident.dispatcher.breakpoints
        run = functools.partial(self._execute, turn)
        if turn.counted_to is None:
            size = self.clock.measure(run)
            if size is None:
                return False
            turn.counted_to = cpu.linear_rip() + size
            if self.clock.count(size):
                self.end()
                return False
        at, restarts = cpu.linear_rip(), cpu.vmcb.q[v.EFLAGS] & FLAG_RF
        breakpoints.begin_step()
        size = self.clock.measure(run)
        if size is None:
            return breakpoints.end_step()
        is_last = self.clock.counted and at + size >= turn.counted_to
        if is_last:
            breakpoints.step_unaided()  # so that the block ends as it would
        completed = self.clock.step(run, size)
        if not is_last and completed:
            cpu.vmcb.q[v.EFLAGS] |= restarts  # the emulator clears RF where a block ends, and not before
        return breakpoints.end_step(done=is_last and completed and not self._observed)

    def close_block(self) -> bool:
        """Have the turn that is paused no more in the middle of a counted block; False if that cannot be.

        The rest of the block is taken back from what was counted, so that it will be counted when it runs.
        That cannot be if it would not end where the block has ended, or if the turn is over behind it.
        """
        turn = self.turn
        if turn is None or turn.counted_to is None:
            return True
        cpu = turn.resident.dispatcher.cpu
        with self._resumed(turn):
            lookout = cpu.engine.lookout
            looking, lookout.looking = lookout.looking, False
            size = self.clock.measure(functools.partial(self._execute, turn))
            lookout.looking = looking
            fits = size is not None and cpu.linear_rip() + size == turn.counted_to
            if size is not None and fits and not self.clock.count(0):
                self.clock.count(-size)
                turn.counted_to = None
            self._hold()
        return turn.counted_to is None

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
        self.turn = self.running = None
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
