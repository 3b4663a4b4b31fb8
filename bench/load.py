# SPDX-License-Identifier: GPL-2.0-only
"""How much of the host's processors a program took, and how much others took meanwhile.

A load average tells of the last minute and counts the measured program itself. Here the processors' busy time
(/proc/stat) is set against what the program and this process used: what is left, others used.
"""

import os
import resource
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOST_OTHERS: Final = 0.1
"""Processors that others may keep busy during a run that is quoted."""
_TICKS: Final = os.sysconf("SC_CLK_TCK")
_IDLE: Final = (3, 4)
"""Columns of /proc/stat: idle, and waiting for a disk."""
_GUEST: Final = 8
"""Columns from here on are counted in earlier ones too."""


def user_seconds(pid: int) -> float:
    """Seconds that a process has computed in user mode, with all its threads; 0 if it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return 0.0
    return int(fields.rpartition(")")[2].split()[11]) / _TICKS


def busy_seconds() -> float:
    """Seconds that all processors together have been busy since the host started, stolen ones included."""
    line = Path("/proc/stat").read_text(encoding="utf-8").partition("\n")[0]
    numbers = [int(word) for word in line.split()[1:]][:_GUEST]
    return sum(number for column, number in enumerate(numbers) if column not in _IDLE) / _TICKS


def own_seconds() -> float:
    """Seconds that this process and those of its children that have ended have computed."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used)


@dataclass(frozen=True, slots=True)
class Moment:
    """The clocks at one time."""

    wall: float
    busy: float
    own: float
    children_user: float = 0.0
    """Of `own`, what children have computed in user mode."""

    @classmethod
    def now(cls) -> "Moment":
        """As they are."""
        children = resource.getrusage(resource.RUSAGE_CHILDREN).ru_utime
        return cls(time.perf_counter(), busy_seconds(), own_seconds(), children)

    def others(self, until: "Moment") -> float:
        """Processors that others kept busy from this moment until another one, on average."""
        left = (until.busy - self.busy) - (until.own - self.own)
        return max(left, 0.0) / max(until.wall - self.wall, 1e-9)


def busy(others: float) -> str:
    """A sentence if others kept the host so busy that nothing of this is to be quoted; else empty."""
    if others <= MOST_OTHERS:
        return ""
    return (
        f"other programs kept {others:.2f} processors busy during a run, and"
        f" {MOST_OTHERS:.2f} is the most for figures that are to be quoted"
    )
