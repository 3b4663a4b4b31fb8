# SPDX-License-Identifier: GPL-2.0-only
"""What an exit costs, as a ratio to plain Python in the same process: a look at whether something got slower.

A host's speed drifts and others use it, but both numbers of a ratio suffer alike if they are taken one
after the other, and of processor time instead of the clock's. The unit is a `step`: a round of a loop with a
call, an attribute, a dictionary and some arithmetic, which is what handlers are made of. It is compared with
the ratios that `quick.json` has, by lane; these were recorded by `python -m bench quick --record`.
"""

import json
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.micro import EXITS, run_guest
from pyhv.guests.build import build
from pyhv.lane import LANES
from pyhv.loader.elf import load_image

RECORDED: Final = Path(__file__).parent / "quick.json"
STEPS: Final = 100_000
WORSE: Final = 1.25
"""What is worth a look."""
TOO_SMALL_US: Final = 0.2
"""Costs below that are the guest's own instructions."""


class _Thing:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 0

    def add(self, number: int) -> int:
        self.value = (self.value + number) & 0xFFFF
        return self.value


def step_us() -> float:
    """Microseconds of processor time that a step takes now."""
    thing, known = _Thing(), dict.fromkeys(range(64), 1)
    began = time.thread_time_ns()
    for number in range(STEPS):
        if known[number & 63]:
            thing.add(number)
    return (time.thread_time_ns() - began) / 1000 / STEPS


@dataclass(frozen=True, slots=True)
class Quick:
    """A kind of exit: microseconds of processor time, and steps; medians."""

    name: str
    us: float
    steps: float


def measure(runs: int, progress: Callable[[str], None]) -> list[Quick]:
    """Each kind of exit in real time, between two looks at what a step takes."""
    image = load_image(build(EXITS), "exits")
    costs: dict[str, list[tuple[float, float]]] = {}
    for number in range(runs):
        progress(f"exits, run {number + 1} of {runs}")
        before = step_us()
        watch = run_guest(image, virtual_time=False)
        unit = (before + step_us()) / 2
        for name, us in watch.thread_us.items():
            costs.setdefault(name, []).append((us, us / unit))
    return [
        Quick(name, statistics.median(us for us, _ in found), statistics.median(steps for _, steps in found))
        for name, found in costs.items()
        if statistics.median(us for us, _ in found) >= TOO_SMALL_US
    ]


def recorded(lane: str) -> dict[str, float]:
    """Steps by kind of exit, as they were when somebody recorded them in that lane; empty if nobody has."""
    if not RECORDED.is_file():
        return {}
    known: dict[str, dict[str, float]] = json.loads(RECORDED.read_text(encoding="utf-8"))
    return known.get(lane, {})


def record(lane: str, found: list[Quick]) -> None:
    """Have these compared with from now on."""
    known = json.loads(RECORDED.read_text(encoding="utf-8")) if RECORDED.is_file() else {}
    known[lane] = {one.name: round(one.steps, 1) for one in found}
    RECORDED.write_text(json.dumps(known, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def all_recorded() -> dict[str, dict[str, float]]:
    """Steps by kind of exit, by lane."""
    return {lane: recorded(lane) for lane in LANES if recorded(lane)}


def verdict(now: float, before: float | None) -> str:
    """How a ratio compares with the recorded one, in a word or two."""
    if not before:
        return "not recorded"
    change = now / before
    return f"{change:.2f}" + (" slower" if change > WORSE else " faster" if change < 1 / WORSE else "")
