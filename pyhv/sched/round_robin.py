# SPDX-License-Identifier: GPL-2.0-only
"""Round robin: every runnable vCPU in turn, each for one slice. The smallest scheduler that is fair to hogs.

The textbook algorithm, with no public specification to follow. It knows weights and caps only to report
them: both are accepted and have no effect, and a woken vCPU waits for its turn like everybody else, which
is what makes it worth comparing with `credit`.
"""

from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from pyhv.sched.base import (
    IDLE,
    MILLISECOND,
    Decision,
    SchedParameters,
    Schedulable,
    Scheduler,
    VcpuName,
    check_parameters,
)
from pyhv.sched.saved import read_accounts, read_parameters, read_places, say_accounts, say_places
from pyhv.state import Plain, entries, given


@dataclass(slots=True, eq=False)
class _Turn:
    """One vCPU's place in the queue."""

    vcpu: Schedulable = given("whoever adds it")
    awake: bool = False
    used_ns: int = 0
    """Of the present slice."""


class RoundRobin(Scheduler):
    """A queue. `slice_ns` is how long its head may run before it goes to the tail."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {"slice_ns": "configured"}

    def __init__(self, slice_ns: int = 10 * MILLISECOND) -> None:
        if slice_ns <= 0:
            raise ValueError("a slice must last at least one nanosecond")
        self.slice_ns = slice_ns
        self._accounts: dict[VcpuName, _Turn] = {}
        self._queue: deque[_Turn] = deque()
        self._running: dict[int, _Turn] = {}
        self._domains: dict[int, SchedParameters] = {}

    def check(self, parameters: SchedParameters) -> None:
        """ConfigError: out of range."""
        check_parameters(*parameters)

    def add_domain(self, domid: int, parameters: SchedParameters) -> None:
        """Take a domain in."""
        if domid in self._domains:
            raise ValueError(f"domain {domid} is scheduled already")
        self.check(parameters)
        self._domains[domid] = parameters

    def remove_domain(self, domid: int) -> None:
        """Forget a domain."""
        del self._domains[domid]
        for turn in [turn for turn in self._accounts.values() if turn.vcpu.domid == domid]:
            self.remove(turn.vcpu)

    def add(self, vcpu: Schedulable) -> None:
        """Take a new vCPU in, asleep."""
        if vcpu.id in self._accounts:
            raise ValueError(f"vCPU {vcpu.id} is scheduled already")
        if vcpu.domid not in self._domains:
            raise KeyError(vcpu.domid)
        self._accounts[vcpu.id] = _Turn(vcpu)

    def remove(self, vcpu: Schedulable) -> None:
        """Forget a vCPU."""
        self._leave(self._accounts.pop(vcpu.id))

    def wake(self, vcpu: Schedulable, now: int) -> bool:
        """Put a sleeping vCPU at the tail; it preempts nobody: True only for an idle pCPU."""
        turn = self._accounts[vcpu.id]
        if turn.awake:
            return False
        turn.awake = True
        self._queue.append(turn)
        return not self._running

    def sleep(self, vcpu: Schedulable, now: int) -> None:
        """Take a vCPU out of the queue; what was left of its slice is lost."""
        turn = self._accounts[vcpu.id]
        self._leave(turn)
        turn.awake = False
        turn.used_ns = 0

    def yield_(self, vcpu: Schedulable, now: int) -> None:
        """Count the vCPU's slice as used up."""
        self._accounts[vcpu.id].used_ns = self.slice_ns

    def charge(self, vcpu: Schedulable, ns_run: int, now: int) -> None:
        """Subtract from the present slice."""
        self._accounts[vcpu.id].used_ns += ns_run

    def pick(self, now: int, pcpu: int = 0) -> Decision:
        """Go on with the present vCPU while its slice lasts, else take the head of the queue."""
        current = self._running.pop(pcpu, None)
        if current is not None:
            if current.used_ns < self.slice_ns:
                self._queue.appendleft(current)
            else:
                current.used_ns = 0
                self._queue.append(current)
        busy = {turn.vcpu.domid for turn in self._running.values()}
        for turn in self._queue:
            if turn.vcpu.domid not in busy:
                self._queue.remove(turn)
                self._running[pcpu] = turn
                # A slice that a yield marked as used while its owner was not running starts afresh.
                turn.used_ns %= self.slice_ns
                return Decision(turn.vcpu, self.slice_ns - turn.used_ns)
        return IDLE

    def adjust(self, domid: int, parameters: SchedParameters) -> None:
        """Remember the parameters; they have no effect here."""
        if domid not in self._domains:
            raise KeyError(domid)
        self.check(parameters)
        self._domains[domid] = parameters

    def parameters(self, domid: int) -> SchedParameters:
        """What was last set for a domain."""
        return self._domains[domid]

    def next_event(self, now: int) -> int | None:
        """None: time alone makes no vCPU runnable here."""
        return None

    def state(self) -> dict[str, Plain]:
        """Accounts, parameters and the queue."""
        return {
            "domains": [[domid, list(parameters)] for domid, parameters in self._domains.items()],
            "accounts": say_accounts(self._accounts),
            **say_places(self._queue, self._running),
        }

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Go on from there with the same vCPUs. StateError."""
        found = entries(dict(saved), "", self.state())
        domains = read_parameters(found["domains"], self._domains.keys())
        accounts = read_accounts(found["accounts"], self._accounts)
        queue, self._running = read_places(
            found, accounts, {name for name, each in accounts.items() if each.awake}
        )
        self._queue, self._accounts, self._domains = deque(queue), accounts, domains

    def _leave(self, turn: _Turn) -> None:
        """Take an turn off the queue or off its pCPU."""
        if turn in self._queue:
            self._queue.remove(turn)
        for pcpu, running in list(self._running.items()):
            if running is turn:
                del self._running[pcpu]
