# SPDX-License-Identifier: GPL-2.0-only
"""The scheduler interface: what a scheduler is told, and what it answers.

A scheduler is a pure state machine. Everything it knows came in through a call, all its time came in as
`now` (nanoseconds of system time, never decreasing), and it has no other source of change: the same calls
give the same decisions. It knows no registers, no engine and no clock.

The life of a vCPU as a scheduler sees it, with the calls that move it:

                add            wake               pick
    (unknown) ──────► asleep ────────► runnable ────────► running ──► charge, charge, ... pick
        ▲               ▲                 │  ▲               │
        └── remove ─────┴───── sleep ─────┘  └── (next pick) ┴── yield_

The machine's loop is five lines of it:

    decision = scheduler.pick(now)
    if decision.vcpu is None: let time pass until a timer, or `scheduler.next_event(now)`
    run decision.vcpu for at most decision.slice_ns, or until it blocks or somebody must preempt it
    scheduler.charge(decision.vcpu, what it used, now)
    if it blocked: scheduler.sleep(decision.vcpu, now)

Writing a scheduler: subclass `Scheduler`, implement its methods, add it to `pyhv.sched.SCHEDULERS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Final, NamedTuple, Protocol

from pyhv.errors import ConfigError
from pyhv.frozen import frozen
from pyhv.state import Plain

VcpuName = tuple[int, int]
"""(domid, vcpu_id): how schedulers, traces and people name a vCPU."""

WEIGHT_MIN, WEIGHT_MAX, WEIGHT_DEFAULT = 1, 65535, 256
"""A domain's share relative to the others', as in Xen's toolstack."""

MILLISECOND: Final = 1_000_000
"""In nanoseconds, the unit of all times here."""


class Schedulable(Protocol):
    """What a scheduler asks of a vCPU: a name."""

    @property
    def id(self) -> VcpuName:
        """(domid, vcpu_id); unique on the machine."""

    @property
    def domid(self) -> int:
        """The domain it belongs to; equals `id[0]`."""


class SchedParameters(NamedTuple):
    """How much of the processors a domain may have; its scheduler alone keeps it."""

    weight: int = WEIGHT_DEFAULT
    """The domain's share relative to the others', 1..65535."""
    cap: int = 0
    """The domain's ceiling in percent of one pCPU; 0 is none."""


@frozen
class Decision:
    """The answer of `pick`: run `vcpu` for at most `slice_ns` nanoseconds.

    `vcpu` is None when nothing may run; `slice_ns` is then 0 and `next_event` says when to ask again.
    """

    vcpu: Schedulable | None
    slice_ns: int


IDLE: Final = Decision(None, 0)
"""Nothing may run now."""


class Scheduler(ABC):
    """Decides which vCPU each pCPU runs.

    `now` never decreases from call to call. A vCPU that was never added, or was removed, is a caller's bug
    and raises KeyError. Two vCPUs of one domain never run at once (a domain has one engine): with several
    pCPUs, `pick` passes over a vCPU whose domain runs on another pCPU.
    """

    @abstractmethod
    def check(self, parameters: SchedParameters) -> None:
        """Raise ConfigError if no domain here can have these."""

    @abstractmethod
    def add_domain(self, domid: int, parameters: SchedParameters) -> None:
        """Take in a domain, without vCPUs. Raises ValueError if it is known already, else as `check`."""

    @abstractmethod
    def remove_domain(self, domid: int) -> None:
        """Forget a domain and its vCPUs, whatever they were doing. Raises KeyError."""

    @abstractmethod
    def add(self, vcpu: Schedulable) -> None:
        """Take in a vCPU of a domain, asleep. Raises ValueError if its id is known already."""

    @abstractmethod
    def remove(self, vcpu: Schedulable) -> None:
        """Forget a vCPU, whatever it was doing."""

    @abstractmethod
    def wake(self, vcpu: Schedulable, now: int) -> bool:
        """Make a sleeping vCPU runnable (no effect on one that is awake).

        Returns True if it should run before what a pCPU runs at present: the machine then ends that run,
        charges it and picks again.
        """

    @abstractmethod
    def sleep(self, vcpu: Schedulable, now: int) -> None:
        """The vCPU blocked, polls, went down or was paused: do not pick it before it is woken."""

    @abstractmethod
    def yield_(self, vcpu: Schedulable, now: int) -> None:
        """A running vCPU gives the rest of its slice to somebody else, once."""

    @abstractmethod
    def charge(self, vcpu: Schedulable, ns_run: int, now: int) -> None:
        """The vCPU has just used `ns_run` nanoseconds of a pCPU, ending at `now`."""

    @abstractmethod
    def pick(self, now: int, pcpu: int = 0) -> Decision:
        """Choose what `pcpu` runs from `now` on; what it ran before goes back among the runnable."""

    @abstractmethod
    def adjust(self, domid: int, parameters: SchedParameters) -> None:
        """Change a domain's parameters. Raises ConfigError (out of range) or KeyError (domid)."""

    @abstractmethod
    def next_event(self, now: int) -> int | None:
        """When the answer of `pick` may change by time alone (absolute ns, > `now`); None: it will not.

        A machine with nothing to run may sleep until then. None with nothing runnable means that only a
        wake-up can bring work.
        """

    @abstractmethod
    def parameters(self, domid: int) -> SchedParameters:
        """What is in force for a domain. Raises KeyError for an unknown domid."""

    @abstractmethod
    def state(self) -> dict[str, Plain]:
        """All that it knows, as plain data, vCPUs by name."""

    @abstractmethod
    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Go on from what `state` said; exactly those vCPUs have been added before. StateError."""


def check_parameters(weight: int, cap: int, pcpus: int = 1) -> None:
    """Raise ConfigError with the range that was left."""
    if not WEIGHT_MIN <= weight <= WEIGHT_MAX:
        raise ConfigError(
            f"a scheduling weight of {weight} is out of range: use {WEIGHT_MIN} to {WEIGHT_MAX}"
        )
    if not 0 <= cap <= 100 * pcpus:
        raise ConfigError(f"a scheduling cap of {cap} % is out of range: use 0 (no cap) to {100 * pcpus}")
