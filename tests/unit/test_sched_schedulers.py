# SPDX-License-Identifier: GPL-2.0-only
"""What holds for every scheduler, and what credit and round robin promise beyond it."""

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.errors import ConfigError
from pyhv.sched import SCHEDULERS, Credit, RoundRobin, Scheduler
from pyhv.sched.base import MILLISECOND, SchedParameters
from pyhv.sched.credit import Priority

MS = MILLISECOND
SECOND = 1000 * MS


@dataclass(frozen=True)
class Vcpu:
    id: tuple[int, int]
    weight: int = 256
    cap: int = 0

    @property
    def domid(self) -> int:
        return self.id[0]


def simulate(
    scheduler: Scheduler,
    duration: int,
    start: int = 0,
    before: Callable[[int], None] = lambda now: None,
    longest: int = 1 << 62,
) -> Counter[tuple[int, int]]:
    """Run CPU hogs for `duration` ns on one pCPU; `before(now)` runs ahead of every decision."""
    used: Counter[tuple[int, int]] = Counter()
    now = start
    while now < start + duration:
        before(now)
        decision = scheduler.pick(now)
        if decision.vcpu is None:
            event = scheduler.next_event(now)
            now = start + duration if event is None else event
            continue
        assert decision.slice_ns > 0
        ran = min(decision.slice_ns, longest)
        now += ran
        used[decision.vcpu.id] += ran
        scheduler.charge(decision.vcpu, ran, now)
    return used


def add(scheduler: Scheduler, vcpu: Vcpu) -> None:
    """Add a vCPU, and its domain with the parameters of the first one."""
    with contextlib.suppress(ValueError):
        scheduler.add_domain(vcpu.domid, SchedParameters(vcpu.weight, vcpu.cap))
    scheduler.add(vcpu)


def hogs(scheduler: Scheduler, *vcpus: Vcpu) -> None:
    for vcpu in vcpus:
        add(scheduler, vcpu)
        scheduler.wake(vcpu, 0)


@pytest.fixture(params=sorted(SCHEDULERS))
def scheduler(request: pytest.FixtureRequest) -> Scheduler:
    return SCHEDULERS[request.param]()


def test_nothing_to_run(scheduler: Scheduler) -> None:
    vcpu = Vcpu((1, 0))
    add(scheduler, vcpu)
    assert scheduler.pick(0).vcpu is None
    assert scheduler.pick(0).slice_ns == 0
    assert scheduler.next_event(0) is None


def test_wake_run_sleep_remove(scheduler: Scheduler) -> None:
    vcpu = Vcpu((1, 0))
    add(scheduler, vcpu)
    assert scheduler.wake(vcpu, 5) is True
    assert scheduler.wake(vcpu, 5) is False
    assert scheduler.pick(5).vcpu is vcpu
    scheduler.charge(vcpu, 100, 105)
    scheduler.sleep(vcpu, 105)
    scheduler.sleep(vcpu, 105)
    assert scheduler.pick(105).vcpu is None
    scheduler.wake(vcpu, 200)
    scheduler.remove(vcpu)
    assert scheduler.pick(200).vcpu is None
    with pytest.raises(KeyError):
        scheduler.wake(vcpu, 200)
    add(scheduler, vcpu)


def test_the_same_vcpu_twice(scheduler: Scheduler) -> None:
    add(scheduler, Vcpu((1, 0)))
    with pytest.raises(ValueError, match="already"):
        add(scheduler, Vcpu((1, 0)))


@pytest.mark.parametrize(("weight", "cap"), [(0, 0), (65536, 0), (256, -1), (256, 101)])
def test_parameters_out_of_range(scheduler: Scheduler, weight: int, cap: int) -> None:
    with pytest.raises(ConfigError):
        add(scheduler, Vcpu((1, 0), weight, cap))
    add(scheduler, Vcpu((1, 0)))
    with pytest.raises(ConfigError):
        scheduler.adjust(1, SchedParameters(weight, cap))
    assert scheduler.parameters(1) == (256, 0)
    scheduler.adjust(1, SchedParameters(65535, 100))
    assert scheduler.parameters(1) == (65535, 100)
    with pytest.raises(KeyError):
        scheduler.adjust(2, SchedParameters(256, 0))


def test_equal_hogs_share_equally(scheduler: Scheduler) -> None:
    hogs(scheduler, *(Vcpu((domid, 0)) for domid in range(1, 5)))
    used = simulate(scheduler, 10 * SECOND)
    for domid in range(1, 5):
        assert used[domid, 0] == pytest.approx(2.5 * SECOND, rel=0.03)


def test_yield_lets_the_other_go_first(scheduler: Scheduler) -> None:
    a, b = Vcpu((1, 0)), Vcpu((2, 0))
    hogs(scheduler, a, b)
    first = scheduler.pick(0).vcpu
    assert first is not None
    scheduler.charge(first, 1000, 1000)
    scheduler.yield_(first, 1000)
    second = scheduler.pick(1000).vcpu
    assert second is not None
    assert second is not first
    scheduler.charge(second, 1000, 2000)
    scheduler.yield_(second, 2000)
    assert scheduler.pick(2000).vcpu is first


def test_a_yield_before_the_first_run_is_harmless(scheduler: Scheduler) -> None:
    vcpu = Vcpu((1, 0))
    hogs(scheduler, vcpu)
    scheduler.yield_(vcpu, 0)
    decision = scheduler.pick(0)
    assert decision.vcpu is vcpu
    assert decision.slice_ns > 0


def test_one_engine_per_domain_on_two_pcpus(scheduler: Scheduler) -> None:
    a0, a1, b0 = Vcpu((1, 0)), Vcpu((1, 1)), Vcpu((2, 0))
    hogs(scheduler, a0, a1, b0)
    picked = {scheduler.pick(0, 0).vcpu, scheduler.pick(0, 1).vcpu}
    assert {vcpu.domid for vcpu in picked if vcpu} == {1, 2}


def test_same_calls_same_decisions() -> None:
    def trace() -> list[object]:
        scheduler = Credit()
        a, b = Vcpu((1, 0), 100), Vcpu((2, 0), 300, 40)
        hogs(scheduler, a, b)
        seen: list[object] = []
        simulate(scheduler, SECOND, before=lambda now: seen.append((now, scheduler.credit_of(a))))
        return seen

    assert trace() == trace()


def test_round_robin_slices() -> None:
    scheduler = RoundRobin(10 * MS)
    a, b = Vcpu((1, 0)), Vcpu((2, 0))
    hogs(scheduler, a, b)
    assert (scheduler.pick(0).vcpu, scheduler.pick(0).slice_ns) == (a, 10 * MS)
    scheduler.charge(a, 4 * MS, 4 * MS)
    decision = scheduler.pick(4 * MS)
    assert (decision.vcpu, decision.slice_ns) == (a, 6 * MS)
    scheduler.charge(a, 6 * MS, 10 * MS)
    decision = scheduler.pick(10 * MS)
    assert (decision.vcpu, decision.slice_ns) == (b, 10 * MS)
    scheduler.sleep(a, 10 * MS)
    assert scheduler.wake(a, 10 * MS) is False


@pytest.mark.promise("T-7")
@pytest.mark.parametrize(("light", "heavy"), [(256, 512), (100, 900), (256, 1024)])
def test_credit_shares_by_weight(light: int, heavy: int) -> None:
    scheduler = Credit()
    hogs(scheduler, Vcpu((1, 0), light), Vcpu((2, 0), heavy))
    used = simulate(scheduler, 30 * SECOND)
    assert used[2, 0] / used[1, 0] == pytest.approx(heavy / light, rel=0.04)
    assert used.total() == 30 * SECOND


def test_credit_shares_by_weight_while_others_do_io() -> None:
    scheduler = Credit()
    io = Vcpu((3, 0))
    hogs(scheduler, Vcpu((1, 0), 256), Vcpu((2, 0), 512))
    add(scheduler, io)

    used: Counter[tuple[int, int]] = Counter()
    now, wake_at = 0, 0
    while now < 30 * SECOND:
        if now >= wake_at:
            scheduler.wake(io, now)
            wake_at = now + 7 * MS
        decision = scheduler.pick(now)
        assert decision.vcpu is not None
        ran = 100_000 if decision.vcpu is io else min(decision.slice_ns, max(1, wake_at - now))
        now += ran
        used[decision.vcpu.id] += ran
        scheduler.charge(decision.vcpu, ran, now)
        if decision.vcpu is io:
            scheduler.sleep(io, now)
    assert used[2, 0] / used[1, 0] == pytest.approx(2, rel=0.06)


def test_credit_adjusts_on_the_fly() -> None:
    scheduler = Credit()
    hogs(scheduler, Vcpu((1, 0)), Vcpu((2, 0)))
    simulate(scheduler, SECOND)
    scheduler.adjust(2, SchedParameters(1024, 0))
    used = simulate(scheduler, 30 * SECOND, start=SECOND)
    assert used[2, 0] / used[1, 0] == pytest.approx(4, rel=0.05)


@pytest.mark.promise("T-9")
@pytest.mark.parametrize("cap", [1, 10, 30, 50, 99])
def test_credit_respects_a_cap_on_an_idle_machine(cap: int) -> None:
    scheduler = Credit()
    hogs(scheduler, Vcpu((1, 0), cap=cap))
    used = simulate(scheduler, 60 * SECOND)
    assert used[1, 0] == pytest.approx(60 * SECOND * cap / 100, rel=0.03, abs=60 * MS)


@pytest.mark.promise("T-9")
def test_credit_caps_a_domain_of_several_vcpus() -> None:
    scheduler = Credit()
    hogs(scheduler, Vcpu((1, 0), cap=40), Vcpu((1, 1)), Vcpu((1, 2)), Vcpu((2, 0), 64))
    used = simulate(scheduler, 60 * SECOND)
    assert used[1, 0] + used[1, 1] + used[1, 2] == pytest.approx(24 * SECOND, rel=0.04)
    assert used.total() == 60 * SECOND


def test_what_a_cap_leaves_goes_by_weight() -> None:
    scheduler = Credit()
    hogs(scheduler, Vcpu((1, 0), 1024, cap=10), Vcpu((2, 0), 256), Vcpu((3, 0), 512))
    used = simulate(scheduler, 60 * SECOND, longest=7 * MS)
    assert used[1, 0] == pytest.approx(6 * SECOND, rel=0.05)
    assert used[3, 0] / used[2, 0] == pytest.approx(2, rel=0.05)


def test_lifting_a_cap_unparks() -> None:
    scheduler = Credit()
    vcpu = Vcpu((1, 0), cap=1)
    hogs(scheduler, vcpu)
    simulate(scheduler, 10 * 30 * MS + 1)
    now = 400 * MS
    assert scheduler.credit_of(vcpu)[2]
    assert scheduler.pick(now).vcpu is None
    assert scheduler.next_event(now) == 420 * MS
    scheduler.sleep(vcpu, now)
    assert scheduler.next_event(now) is None
    assert scheduler.wake(vcpu, now) is False
    scheduler.adjust(1, SchedParameters(256, 0))
    assert scheduler.pick(now).vcpu is vcpu


@pytest.mark.promise("T-6")
def test_credit_boosts_the_woken_within_the_rate_limit() -> None:
    scheduler = Credit()
    hog, io = Vcpu((1, 0)), Vcpu((2, 0))
    hogs(scheduler, hog)
    add(scheduler, io)
    simulate(scheduler, SECOND)
    now = 1000 * MS
    assert scheduler.pick(now).vcpu is hog
    scheduler.charge(hog, 200_000, now := now + 200_000)
    assert scheduler.wake(io, now) is True
    assert scheduler.credit_of(io)[1] == Priority.BOOST
    decision = scheduler.pick(now)
    assert (decision.vcpu, decision.slice_ns) == (hog, 800_000), "the rate limit protects the hog for 1 ms"
    scheduler.charge(hog, 800_000, now := now + 800_000)
    assert scheduler.pick(now).vcpu is io
    scheduler.charge(io, 50_000, now := now + 50_000)
    scheduler.sleep(io, now)
    assert scheduler.pick(now).vcpu is hog


def test_a_boost_ends_at_the_tick() -> None:
    scheduler = Credit()
    vcpu = Vcpu((1, 0))
    hogs(scheduler, vcpu)
    assert scheduler.credit_of(vcpu)[1] == Priority.BOOST
    scheduler.pick(0)
    scheduler.charge(vcpu, 9 * MS, 9 * MS)
    assert scheduler.credit_of(vcpu)[1] == Priority.BOOST
    scheduler.charge(vcpu, 1 * MS, 10 * MS)
    assert scheduler.credit_of(vcpu)[1] == Priority.UNDER


@pytest.mark.promise("T-7")
def test_dodging_the_ticks_earns_no_free_time() -> None:
    """A guest that runs 9 ms of every 10 and sleeps through the tick still gets only its share."""
    scheduler = Credit(ratelimit=0)
    thief, hog = Vcpu((1, 0)), Vcpu((2, 0))
    hogs(scheduler, hog)
    add(scheduler, thief)
    used: Counter[tuple[int, int]] = Counter()
    now = 0
    while now < 20 * SECOND:
        phase = now % (10 * MS)
        if phase >= 9_500_000:
            scheduler.sleep(thief, now)
            limit = 10 * MS + 500_000 - phase
        elif phase >= 500_000:
            scheduler.wake(thief, now)
            limit = 9_500_000 - phase
        else:
            limit = 500_000 - phase
        decision = scheduler.pick(now)
        assert decision.vcpu is not None
        ran = min(limit, decision.slice_ns)
        now += ran
        used[decision.vcpu.id] += ran
        scheduler.charge(decision.vcpu, ran, now)
    assert used[thief.id] < 0.55 * used.total()


def test_credit_stays_bounded_over_a_long_sleep() -> None:
    scheduler = Credit()
    hog, sleeper = Vcpu((1, 0)), Vcpu((2, 0))
    hogs(scheduler, hog, sleeper)
    simulate(scheduler, SECOND)
    scheduler.sleep(sleeper, SECOND)
    simulate(scheduler, 3600 * SECOND, start=SECOND)
    assert abs(scheduler.credit_of(sleeper)[0]) <= scheduler.timeslice
    assert abs(scheduler.credit_of(hog)[0]) <= scheduler.timeslice


@pytest.mark.promise("T-6")
def test_bad_periods_are_refused() -> None:
    with pytest.raises(ValueError, match="positive"):
        Credit(timeslice=0)
    with pytest.raises(ValueError, match="slice"):
        RoundRobin(0)


STEPS = st.lists(
    st.tuples(
        st.sampled_from(["wake", "sleep", "yield", "run", "run", "run", "remove", "add", "adjust"]),
        st.integers(0, 5),
        st.integers(0, 40 * MS),
    ),
    max_size=120,
)


@given(steps=STEPS, name=st.sampled_from(sorted(SCHEDULERS)))
@settings(deadline=None)
def test_never_picks_a_sleeper_and_never_idles_with_work(
    steps: list[tuple[str, int, int]], name: str
) -> None:
    scheduler = SCHEDULERS[name]()
    vcpus = [Vcpu((i // 2, i % 2), 64 + 100 * (i // 2), 60 if i // 2 == 2 else 0) for i in range(6)]
    known, awake = set(range(6)), set(range(4))
    for i in known:
        add(scheduler, vcpus[i])
    for i in awake:
        scheduler.wake(vcpus[i], 0)
    now = 0
    for what, i, amount in steps:
        vcpu = vcpus[i]
        if what == "add" and i not in known:
            add(scheduler, vcpu)
            known.add(i)
        elif what == "run":
            decision = scheduler.pick(now)
            if decision.vcpu is None:
                assert name == "credit" or not awake
                assert all(scheduler.parameters(vcpus[j].domid)[1] for j in awake), "only a cap may idle it"
                if awake:
                    event = scheduler.next_event(now)
                    assert event is not None
                    assert event > now
                now += amount
            else:
                assert decision.slice_ns > 0
                assert decision.vcpu.id in {vcpus[j].id for j in awake}
                ran = min(amount, decision.slice_ns)
                now += ran
                scheduler.charge(decision.vcpu, ran, now)
        elif i in known:
            if what == "wake":
                scheduler.wake(vcpu, now)
                awake.add(i)
            elif what == "sleep":
                scheduler.sleep(vcpu, now)
                awake.discard(i)
            elif what == "yield":
                scheduler.yield_(vcpu, now)
            elif what == "adjust":
                scheduler.adjust(vcpu.domid, SchedParameters(1 + amount % 65535, amount % 101))
            elif what == "remove":
                scheduler.remove(vcpu)
                known.discard(i)
                awake.discard(i)


@pytest.mark.promise("T-7")
@given(
    weights=st.lists(st.integers(64, 1024), min_size=1, max_size=5),
    name=st.sampled_from(sorted(SCHEDULERS)),
    longest=st.integers(MS // 2, 40 * MS),
)
@settings(deadline=None, max_examples=30)
def test_no_hog_starves(weights: list[int], name: str, longest: int) -> None:
    scheduler = SCHEDULERS[name]()
    hogs(scheduler, *(Vcpu((i, 0), weight) for i, weight in enumerate(weights)))
    simulate(scheduler, SECOND, longest=longest)
    used = simulate(scheduler, 6 * SECOND, start=2 * SECOND, longest=longest)
    for i, weight in enumerate(weights):
        fair = 6 * SECOND * (weight / sum(weights) if name == "credit" else 1 / len(weights))
        assert used[i, 0] > 0.4 * fair  # credit pauses who has a full slice in hand, however heavy
