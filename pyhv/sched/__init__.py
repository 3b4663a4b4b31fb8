# SPDX-License-Identifier: GPL-2.0-only
"""Who runs next, and for how long: the scheduler interface, two schedulers, and runstate accounting.

`base` is the interface, `round_robin` the smallest scheduler that works, `credit` Xen's credit1, `runstate`
the clock that a guest reads its stolen time from. Nothing here knows a register, a page or the engine: a
scheduler sees vCPU names, calls and `now`.
"""

from typing import Final

from pyhv.sched.base import Decision, SchedParameters, Schedulable, Scheduler, VcpuName
from pyhv.sched.credit import Credit
from pyhv.sched.round_robin import RoundRobin

SCHEDULERS: Final[dict[str, type[Scheduler]]] = {"credit": Credit, "rr": RoundRobin}
"""Schedulers by the name that a configuration gives them."""

__all__ = [
    "SCHEDULERS",
    "Credit",
    "Decision",
    "RoundRobin",
    "SchedParameters",
    "Schedulable",
    "Scheduler",
    "VcpuName",
]
