# SPDX-License-Identifier: GPL-2.0-only
"""Runstate accounting: where each vCPU's time went. A guest calls the RUNNABLE part *stolen* time.

The states and the record are `struct vcpu_runstate_info` of the public header `vcpu.h`. This module knows no
guest memory: who writes the record into a registered area, and when, is the hypercall layer's business.
"""

from dataclasses import dataclass, field
from typing import Annotated

from pyhv.abi.numbers import VcpuState
from pyhv.frozen import frozen
from pyhv.state import Nanoseconds


@frozen
class RunstateRecord:
    """`vcpu_runstate_info`: the state, the system time it was entered, and ns spent in each state."""

    state: VcpuState
    state_entry_time: int
    time: tuple[int, int, int, int]


@dataclass(slots=True)
class Runstate:
    """The accumulated times of one vCPU. All times are ns of system time; `now` must not decrease."""

    state: VcpuState
    state_entry_time: Nanoseconds
    times: Annotated[list[Nanoseconds], 4] = field(default_factory=lambda: [0, 0, 0, 0])

    def change(self, state: VcpuState, now: int) -> None:
        """Close the account of the present state and enter `state`; entering the same state is allowed."""
        self.times[self.state] += max(0, now - self.state_entry_time)
        self.state = state
        self.state_entry_time = now

    def recorded(self) -> RunstateRecord:
        """The record as of the last change.

        This is what a registered area holds: the guest itself adds the time since `state_entry_time`.
        """
        running, runnable, blocked, offline = self.times
        return RunstateRecord(self.state, self.state_entry_time, (running, runnable, blocked, offline))

    def snapshot(self, now: int) -> RunstateRecord:
        """VCPUOP_get_runstate_info: the record, with the present state's time counted up to `now`."""
        times = list(self.times)
        times[self.state] += max(0, now - self.state_entry_time)
        return RunstateRecord(self.state, self.state_entry_time, (times[0], times[1], times[2], times[3]))
