# SPDX-License-Identifier: GPL-2.0-only
"""The saved state of schedulers: one that was rebuilt decides as the one that was saved."""

import contextlib
from dataclasses import dataclass
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.abi.numbers import VcpuState
from pyhv.errors import StateError
from pyhv.events.timers import PeriodicTimer
from pyhv.sched import SCHEDULERS, Scheduler
from pyhv.sched.base import MILLISECOND, SchedParameters
from pyhv.sched.runstate import Runstate
from pyhv.state import restore, state
from pyhv.testing.saving import assert_restored, packed, unexplained_from

NAMES = sorted(SCHEDULERS)


@dataclass(frozen=True)
class Vcpu:
    id: tuple[int, int]
    weight: int = 256
    cap: int = 0

    @property
    def domid(self) -> int:
        return self.id[0]


VCPUS = [Vcpu((n // 2, n % 2), 64 + 100 * (n // 2), 60 if n // 2 == 2 else 0) for n in range(6)]


class World:
    """A scheduler, who is in it, and what time it is."""

    def __init__(self, name: str, known: set[int], now: int = 0) -> None:
        self.name, self.known, self.now = name, set(known), now
        self.scheduler: Scheduler = SCHEDULERS[name]()
        for number in sorted(known):
            self.add(VCPUS[number])

    def add(self, vcpu: Vcpu) -> None:
        with contextlib.suppress(ValueError):
            self.scheduler.add_domain(vcpu.domid, SchedParameters(vcpu.weight, vcpu.cap))
        self.scheduler.add(vcpu)

    def rebuild(self) -> "World":
        other = World(self.name, self.known, self.now)
        assert_restored(self.scheduler, other.scheduler)
        return other

    def perform(self, step: tuple[str, int, int]) -> object:
        what, number, amount = step
        scheduler, vcpu, now = self.scheduler, VCPUS[number], self.now
        if what == "run":
            decision = scheduler.pick(now)
            ran = min(amount, decision.slice_ns) if decision.vcpu else amount
            self.now += ran
            if decision.vcpu:
                scheduler.charge(decision.vcpu, ran, self.now)
            return decision, scheduler.next_event(self.now)
        if number not in self.known:
            self.known.add(number)
            return self.add(vcpu)
        if what == "remove":
            self.known.discard(number)
            if number ^ 1 not in self.known:
                return scheduler.remove_domain(vcpu.domid)
            return scheduler.remove(vcpu)
        if what == "adjust":
            return scheduler.adjust(vcpu.domid, SchedParameters(1 + amount % 65535, amount % 101))
        calls = {"wake": scheduler.wake, "sleep": scheduler.sleep, "yield": scheduler.yield_}
        return calls[what](vcpu, now)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["wake", "wake", "sleep", "yield", "run", "run", "run", "remove", "adjust"]),
        st.integers(0, 5),
        st.integers(0, 40 * MILLISECOND),
    ),
    max_size=80,
)


@settings(deadline=None)
@given(st.sampled_from(NAMES), STEPS, STEPS)
def test_a_rebuilt_scheduler_decides_as_the_saved_one(name: str, before: list[Any], after: list[Any]) -> None:
    world = World(name, set(range(6)))
    for step in [("wake", 0, 0), ("wake", 3, 0), ("wake", 5, 0), ("run", 0, 29 * MILLISECOND), *before]:
        world.perform(step)
    other = world.rebuild()
    assert unexplained_from(other.scheduler) == []
    for step in after:
        assert other.perform(step) == world.perform(step)
    assert packed(other.scheduler) == packed(world.scheduler)


def busy(name: str) -> World:
    world = World(name, {0, 1, 2})
    for number in (0, 1, 2):
        world.perform(("wake", number, 0))
    world.perform(("run", 0, MILLISECOND))
    return world


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("queue",), [], "queue and running are not those"),
        (("queue",), [[0, 1], [0, 1], [1, 0]], "queue and running are not those"),
        (("queue", 0), [0, 0], "queue and running are not those"),
        (("running",), [[0, [9, 9]]], "queue and running are not those"),
        (("accounts", 0, 0), [9, 9], "accounts.0 is of vCPU (9, 9)"),
        (("accounts", 1, 0), [0, 0], "accounts.1 is of vCPU (0, 0), which is not there, or was"),
        (("accounts",), [], "accounts has 0 vCPUs; there are 3"),
        (("accounts", 2, 1, "awake"), 1, "accounts.2.awake is not of the type bool"),
        (("domains",), [[0, [256, 0]]], "domains are [0]; there are [0, 1]"),
        (("domains", 0, 1), [0, 0], "domains has one, 0, that cannot be"),
    ],
)
def test_what_no_scheduler_can_have_been_is_refused(
    name: str, path: tuple[Any, ...], value: Any, told: str
) -> None:
    saved: Any = packed(busy(name).scheduler)
    at = saved
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = value
    with pytest.raises(StateError) as refused:
        restore(World(name, {0, 1, 2}).scheduler, saved)
    assert told in str(refused.value)


def test_runstates_and_periodic_timers() -> None:
    runstate = Runstate(VcpuState.RUNNABLE, 5, [1, 2, 3, 4])
    assert_restored(runstate, Runstate(VcpuState.OFFLINE, 0))
    with pytest.raises(StateError, match="times is not a list of 4"):
        restore(runstate, {**state(runstate), "times": [1]})
    assert_restored(PeriodicTimer(7, 1_000_000), PeriodicTimer(0))
    with pytest.raises(StateError, match="period"):
        restore(PeriodicTimer(0), {"last": 0, "period": -1})


def test_what_the_accounting_has_come_to_survives() -> None:
    world = busy("credit")
    for _ in range(8):
        world.perform(("run", 0, 20 * MILLISECOND))
    saved: Any = packed(world.scheduler)
    assert saved["balance"] != 0
    assert saved["next_accounting"] > 100 * MILLISECOND
    world.rebuild()
