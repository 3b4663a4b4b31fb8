# SPDX-License-Identifier: GPL-2.0-only
"""Timers: order, replacement, and the ABI's treatment of odd deadlines."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.events.timers import PeriodicTimer, TimerQueue, set_timer_deadline


def test_expiry_in_order_of_deadline_then_arming() -> None:
    timers: TimerQueue[str] = TimerQueue(str)
    timers.arm("late", 30)
    timers.arm("b", 10)
    timers.arm("a", 10)
    assert timers.next_deadline() == 10
    assert timers.expire(9) == []
    assert timers.expire(10) == ["b", "a"]
    assert timers.expire(29) == []
    assert timers.expire(1000) == ["late"]
    assert timers.next_deadline() is None


def test_arming_again_replaces() -> None:
    timers: TimerQueue[int] = TimerQueue(int)
    timers.arm(1, 10)
    timers.arm(1, 50)
    assert len(timers) == 1
    assert timers.deadline(1) == 50
    assert timers.expire(20) == []
    timers.arm(1, 30)
    assert timers.expire(30) == [1]
    assert timers.expire(60) == []


def test_cancel() -> None:
    timers: TimerQueue[int] = TimerQueue(int)
    timers.arm(1, 10)
    assert timers.cancel(1)
    assert not timers.cancel(1)
    assert timers.next_deadline() is None
    assert timers.deadline(1) is None


@pytest.mark.promise("L-15")
def test_endless_rearming_takes_no_memory() -> None:
    timers: TimerQueue[int] = TimerQueue(int)
    for i in range(10_000):
        timers.arm(0, 1_000_000 + i)
        timers.arm(1, 5)
    assert len(timers._heap) < 50
    assert timers.expire(5) == [1]
    assert timers.next_deadline() == 1_009_999


@given(
    st.lists(
        st.tuples(st.sampled_from(["arm", "cancel", "expire"]), st.integers(0, 8), st.integers(0, 100)),
        max_size=200,
    )
)
def test_like_a_plain_dictionary(steps: list[tuple[str, int, int]]) -> None:
    timers: TimerQueue[int] = TimerQueue(int)
    model: dict[int, tuple[int, int]] = {}
    for sequence, (what, key, when) in enumerate(steps):
        if what == "arm":
            timers.arm(key, when)
            model[key] = (when, sequence)
        elif what == "cancel":
            assert timers.cancel(key) == (model.pop(key, None) is not None)
        else:
            expected = sorted((due, key) for key, due in model.items() if due[0] <= when)
            assert timers.expire(when) == [key for _, key in expected]
            for _, gone in expected:
                del model[gone]
        assert timers.next_deadline() == min((due[0] for due in model.values()), default=None)


@pytest.mark.parametrize(
    ("timeout", "deadline"),
    [
        (0, None),
        (1, 1),
        (5_000_000, 5_000_000),
        ((1 << 63) - 1, 101_000_000),
        (-1, 101_000_000),
        ((1 << 64) - 1, 101_000_000),
        (1_000_000 + (1 << 50), 101_000_000),
        (999_999 + (1 << 50), 999_999 + (1 << 50)),
    ],
)
def test_set_timer_op(timeout: int, deadline: int | None) -> None:
    assert set_timer_deadline(timeout, 1_000_000) == deadline


def test_the_periodic_timer_owes_one_tick_at_most() -> None:
    timer = PeriodicTimer(0)
    assert not timer.tick(9_999_999)
    assert timer.tick(10_000_000)
    assert not timer.tick(10_000_001)
    assert timer.tick(95_000_000)
    assert not timer.tick(95_000_001)
    assert timer.next_deadline() == 105_000_000
    timer.set(0)
    assert timer.next_deadline() is None
    assert not timer.tick(1 << 60)
