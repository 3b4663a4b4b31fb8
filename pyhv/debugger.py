# SPDX-License-Identifier: GPL-2.0-only
"""A debugger's side of the machine: its guests run until a vCPU comes to an address, touches data, or has
done one instruction, and then stand still. They notice nothing of it, and in virtual time the run is the one
that it would have been, exit for exit.

    turn ──► is somebody to step, or in a block with a breakpoint?   one instruction (`Pcpu.step`)
             else                                                    the turn goes on at full speed until the
                                                                     engine halts, or the turn is over

While there is a `stop` to be looked at, no turn goes on. Who looks, and what he says to whom, is not known
here (`gdb/` is one who does). Nor is it any business of a guest's own breakpoints, which are
`traps/debug.py`'s.

A vCPU that is *held* does not run although it could. That does change the run, as a debugger's user can want
it to.
"""

import enum
from collections.abc import Callable, Collection, Mapping
from typing import ClassVar, Final, NamedTuple

from pyhv.abi.numbers import Shutdown
from pyhv.address import MASK32
from pyhv.clock import Clock
from pyhv.cpu.engine import Engine
from pyhv.cpu.lookout import CodeBlock
from pyhv.domain.lifecycle import Lifecycle
from pyhv.domain.vcpu import Vcpu
from pyhv.outside import Position
from pyhv.pcpu import Pcpu, Turn
from pyhv.resident import Ended, Resident, Residents
from pyhv.sched.base import Decision, Scheduler
from pyhv.traps.debug import Observed

VcpuId = tuple[int, int]
"""(domid, number), as `Vcpu.id`."""
_LONG: Final = 1 << 21
"""The L bit in a code segment's attributes."""
_MOST_AT_ONCE: Final = 1000
"""Instructions, before whoever runs the machine may look at other things."""


class Reason(enum.Enum):
    """Why the guests stand still."""

    BREAKPOINT = "a vCPU is about to execute the instruction at an address"
    DATA = "a vCPU has touched data"
    STEP = "a vCPU has done what it was to do"
    CRASH = "a guest has crashed, and has not been taken apart yet"
    END = "a guest has ended"


class Stop(NamedTuple):
    """`vcpu` is who has come to it; after an END there is none any more."""

    reason: Reason
    vcpu: VcpuId
    data: Observed | None = None
    ended: Ended | None = None


class Debugger:
    """One machine's, from when it is given to `Machine.debugger` until `close`."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("_pcpu", "_scheduler", "_residents", "_clock", "_position"), "the machine's"),
        **dict.fromkeys(
            (
                "stop",
                "debugged",
                "_breakpoints",
                "_data",
                "_armed",
                "_stepping",
                "_passing",
                "_held",
                "_asleep",
            ),
            "whoever debugs",
        ),
        **dict.fromkeys(("_block", "_kept", "began"), "the same"),
    }

    def __init__(
        self,
        pcpu: Pcpu,
        scheduler: Scheduler,
        residents: Residents,
        clock: Clock,
        position: Callable[[], Position],
    ) -> None:
        self._position = position
        self._pcpu, self._scheduler, self._residents, self._clock = pcpu, scheduler, residents, clock
        self.stop: Stop | None = None
        """Why nobody runs; `go` clears it."""
        self.began: Position | None = None
        """Where the instruction began that was stepped through last."""
        self.debugged: set[int] = set()
        """Domains whose crash and end are a stop."""
        self._breakpoints: dict[int, frozenset[int]] = {}
        self._data: dict[int, tuple[Observed, ...]] = {}
        self._armed: dict[int, Engine] = {}
        """The engines, by domid, that look out for what is wanted."""
        self._stepping: dict[VcpuId, range] = {}
        """Who is to stop after an instruction, once it is outside of these addresses."""
        self._passing: dict[VcpuId, int] = {}
        """Who stands at a breakpoint and is to go on."""
        self._held: frozenset[VcpuId] = frozenset()
        self._asleep: set[VcpuId] = set()
        """Those of them that the scheduler does not know of for now."""
        self._block: CodeBlock | None = None
        """The block with a breakpoint in it, through which the turn that is open goes step by step."""
        self._kept: set[int] = set()
        """Domains that have crashed, which was told."""

    # -- what is wanted ----------------------------------------------------------------------------------

    def set_breakpoints(self, domid: int, addresses: Collection[int]) -> None:
        """Stop before any vCPU of a domain executes an instruction at one of these linear addresses."""
        self._breakpoints[domid] = frozenset(addresses)
        self._armed.pop(domid, None)

    def set_data(self, domid: int, data: Collection[Observed]) -> None:
        """Stop when a vCPU of a domain has touched some of this data; `debugunit.RANGES` at most."""
        self._data[domid] = tuple(data)
        self._armed.pop(domid, None)

    def can_observe(self, domid: int) -> bool:
        """Whether `set_data` can be served."""
        resident = self._residents.get(domid)
        return resident is not None and resident.dispatcher.breakpoints.can_observe

    def go(
        self,
        stepping: Mapping[VcpuId, range] | None = None,
        held: Collection[VcpuId] = (),
        passing: Collection[VcpuId] = (),
    ) -> None:
        """Let the guests run, from the next turn on.

        Who is `stepping` stops after an instruction that leaves its addresses (`range(0)`: any). Who stands
        at a breakpoint stops there at once, unless it is among `passing`, or steps.
        """
        self.stop, self._block = None, None
        self._stepping = dict(stepping or {})
        self._passing = {
            vcpu: self.linear_rip(vcpu)
            for vcpu in {*passing, *self._stepping}
            if self._vcpu(vcpu) is not None
        }
        self._held = frozenset(held)
        self._wake(self._asleep - self._held)

    def disarm(self) -> None:
        """Have no engine look out, until the next turn that this debugger decides on."""
        for resident in self._residents:
            resident.domain.engine.lookout.close()
            if self._data.get(resident.domain.domid):
                resident.dispatcher.breakpoints.observe((), self._pcpu.observed)
        self._armed.clear()
        self._block = None

    def close(self) -> None:
        """Let go of the guests."""
        self.go()
        for resident in self._residents:
            resident.domain.engine.lookout.close()
            if self._data.get(resident.domain.domid):
                resident.dispatcher.breakpoints.observe((), self._pcpu.observed)
        self._breakpoints.clear()
        self._data.clear()

    # -- who and where -----------------------------------------------------------------------------------

    def _vcpu(self, vcpu: VcpuId) -> Vcpu | None:
        resident = self._residents.get(vcpu[0])
        if resident is None or vcpu[1] >= len(resident.domain.vcpus):
            return None
        found = resident.domain.vcpus[vcpu[1]]
        return None if found.context.empty else found

    def linear_rip(self, vcpu: VcpuId) -> int:
        """Linear address of the instruction that a vCPU executes next."""
        found = self._vcpu(vcpu)
        assert found is not None, "a vCPU without registers"
        if found.context.loaded:
            return self._residents[vcpu[0]].dispatcher.cpu.linear_rip()
        registers = found.context.registers
        if registers.cs.attributes & _LONG:
            return registers.rip
        return registers.rip + registers.cs.base & MASK32

    def _wake(self, vcpus: Collection[VcpuId]) -> None:
        """Tell the scheduler of vCPUs that were held."""
        for one in sorted(vcpus):
            self._asleep.discard(one)
            vcpu = self._vcpu(one)
            if vcpu is None or vcpu.blocked or not vcpu.online or self._pcpu.running is vcpu:
                continue
            if self._residents[one[0]].domain.life.stage is Lifecycle.RUNNING:
                self._scheduler.wake(vcpu, self._clock.now())

    # -- running -----------------------------------------------------------------------------------------

    def turn(self, limit: int | None) -> bool:
        """In place of a turn, or of the rest of one: as much of it as comes before a stop.

        False: nobody can run. While there is a stop nothing happens.
        """
        pcpu = self._pcpu
        if self.stop is None and pcpu.turn is None:
            decision = self._pick()
            if decision.vcpu is None:
                return False
            resident = self._residents[decision.vcpu.id[0]]
            self._arm(resident)
            vcpu = resident.domain.vcpus[decision.vcpu.id[1]]
            pcpu.begin(resident, vcpu, decision.slice_ns, limit, paused=True)
        for _ in range(_MOST_AT_ONCE):
            turn = pcpu.turn
            if turn is None or self.stop is not None:
                break
            self._arm(turn.resident)
            if turn.vcpu.id in self._held:
                pcpu.end()
            elif self._has_to_step(turn):
                self._step(turn)
            else:
                pcpu.go_on(limit)
                self._block = pcpu.met
                self._look_at_data(turn)
                if self._block is None:
                    break
        return True

    def _pick(self) -> Decision:
        """The scheduler's choice among those that are not held."""
        while True:
            now = self._clock.now()
            decision = self._scheduler.pick(now)
            if decision.vcpu is None or decision.vcpu.id not in self._held:
                return decision
            self._scheduler.sleep(decision.vcpu, now)
            self._asleep.add(decision.vcpu.id)

    def _arm(self, resident: Resident) -> None:
        """Have the domain's engine look out for what is wanted. It may be another one than before."""
        domain = resident.domain
        if self._armed.get(domain.domid) is domain.engine:
            return
        breakpoints, data = self._breakpoints.get(domain.domid), self._data.get(domain.domid)
        if breakpoints or data:
            domain.engine.lookout.look_for(breakpoints or ())
        else:
            domain.engine.lookout.close()
        if data is not None:
            resident.dispatcher.load(resident.dispatcher.cpu.vcpu)
            resident.dispatcher.breakpoints.observe(data, self._pcpu.observed)
        self._armed[domain.domid] = domain.engine

    def _has_to_step(self, turn: Turn) -> bool:
        """Whether the turn is to go on by one instruction."""
        vcpu = turn.vcpu.id
        if vcpu in self._stepping or vcpu in self._passing or turn.resident.dispatcher.breakpoints.access_due:
            return True
        if self._block is not None:
            if self._block.start <= self.linear_rip(vcpu) < self._block.end:
                return True
            self._block = None
        return turn.counted_to is not None and not self._pcpu.close_block()

    def _step(self, turn: Turn) -> None:
        vcpu = turn.vcpu.id
        at = self.linear_rip(vcpu)
        passes = self._passing.get(vcpu) == at
        if not passes:
            self._passing.pop(vcpu, None)
            if at in self._breakpoints.get(vcpu[0], ()):
                self.stop = Stop(Reason.BREAKPOINT, vcpu)
                return
        self.began = self._position()
        if self._pcpu.step():
            self._passing.pop(vcpu, None)
            self._look_at_data(turn)
            if self.stop is None and vcpu in self._stepping and self._has_left(vcpu):
                self.stop = Stop(Reason.STEP, vcpu)

    def _has_left(self, vcpu: VcpuId) -> bool:
        """Whether it has come to an address where its steps end, or can take no more."""
        found = self._vcpu(vcpu)
        return found is None or self.linear_rip(vcpu) not in self._stepping[vcpu]

    def _look_at_data(self, turn: Turn) -> None:
        for seen in turn.resident.dispatcher.breakpoints.take_seen():
            if self.stop is None:
                self.stop = Stop(Reason.DATA, turn.vcpu.id, seen)

    # -- the end of guests -------------------------------------------------------------------------------

    def keeps(self, resident: Resident) -> bool:
        """Whether a domain that is dying shall be kept for now, since it has crashed and that is to be
        told."""
        domid = resident.domain.domid
        if domid not in self.debugged or resident.domain.life.reason != Shutdown.CRASH:
            return False
        if domid not in self._kept and self.stop is None:
            self._kept.add(domid)
            self.stop = Stop(Reason.CRASH, (domid, resident.dispatcher.call.vcpu.number))
        return self.stop is not None

    def has_ended(self, resident: Resident) -> None:
        """A domain has been taken apart."""
        domid = resident.domain.domid
        if domid in self.debugged:
            self.debugged.discard(domid)
            self.stop = Stop(Reason.END, (domid, 0), ended=resident.ended())
        for table in (self._breakpoints, self._data, self._armed):
            table.pop(domid, None)
        self._asleep = {vcpu for vcpu in self._asleep if vcpu[0] != domid}
