# SPDX-License-Identifier: GPL-2.0-only
"""Runstate accounting: every nanosecond is in exactly one state."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.abi.numbers import VcpuState
from pyhv.sched.runstate import Runstate


def test_times_by_state() -> None:
    runstate = Runstate(VcpuState.OFFLINE, 100)
    runstate.change(VcpuState.RUNNABLE, 150)
    runstate.change(VcpuState.RUNNING, 170)
    runstate.change(VcpuState.BLOCKED, 270)
    record = runstate.snapshot(300)
    assert record.state is VcpuState.BLOCKED
    assert record.state_entry_time == 270
    assert record.time == (100, 20, 30, 50)


def test_the_registered_area_leaves_the_present_state_to_the_guest() -> None:
    runstate = Runstate(VcpuState.RUNNING, 0)
    runstate.change(VcpuState.RUNNABLE, 10)
    assert runstate.recorded().time == (10, 0, 0, 0)
    assert runstate.snapshot(25).time == (10, 15, 0, 0)
    assert runstate.recorded().time == (10, 0, 0, 0), "a snapshot changes nothing"


@pytest.mark.promise("T-10")
@given(st.lists(st.tuples(st.sampled_from(VcpuState), st.integers(0, 10**12))))
def test_the_times_add_up_to_the_age(changes: list[tuple[VcpuState, int]]) -> None:
    runstate, now = Runstate(VcpuState.RUNNING, 7), 7
    for state, elapsed in changes:
        now += elapsed
        runstate.change(state, now)
    assert sum(runstate.snapshot(now + 5).time) == now + 5 - 7
