# SPDX-License-Identifier: GPL-2.0-only
"""Micro-benchmarks: what an exit costs, what computing costs, what starting costs.

    exits    `guests/exits.S` makes each kind of exit thousands of times between two lines of its console; the
             host's clock is read when a line arrives
    compute  `guests/work.S` as a PV guest and on the bare engine with the same clock, in turn
    hello    the command `pyhv boot hello`, from its start to its end

Machines are built in this process, as the command line would build them.
"""

import statistics
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.bare import Bare, instructions_per_round, load_work
from bench.guest import run_in_project
from bench.report import Cost, Pair, Start
from bench.timeline import Timeline, watch
from pyhv.domain.config import DomainConfig
from pyhv.errors import EnvironmentProblem
from pyhv.guests.build import build
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage
from pyhv.machine import Machine, MachineConfig
from pyhv.until import Outcome

EXITS = Path(__file__).parent / "guests" / "exits.S"
GUEST_PAGES = 4096
TIMEOUT_NS = 300_000_000_000


class Stopwatch:
    """A console that times what a guest does between `BEGIN name` and `END count name`."""

    def __init__(self) -> None:
        self.microseconds: dict[str, float] = {}
        """Of one operation, by name."""
        self.thread_us: dict[str, float] = {}
        """The same of the time that this thread computed."""
        self.lines: list[str] = []
        self._partial = b""
        self._began = self._computed = 0

    def output(self, data: bytes) -> None:
        """Bytes that the guest wrote."""
        now, computed = time.perf_counter_ns(), time.thread_time_ns()
        *lines, self._partial = (self._partial + data).split(b"\n")
        for raw in lines:
            line = raw.decode(errors="replace")
            self.lines.append(line)
            if line.startswith("BEGIN "):
                self._began, self._computed = time.perf_counter_ns(), time.thread_time_ns()
            elif line.startswith("END "):
                _, count, name = line.split(" ", 2)
                self.microseconds[name] = (now - self._began) / 1000 / int(count)
                self.thread_us[name] = (computed - self._computed) / 1000 / int(count)


def run_guest(image: KernelImage, *, virtual_time: bool) -> Stopwatch:
    """Run a benchmark's guest to its end. Raises EnvironmentProblem if it does not print SUCCESS."""
    watch = Stopwatch()
    machine = Machine(MachineConfig(memory_pages=GUEST_PAGES, virtual_time=virtual_time))
    try:
        machine.create(image, DomainConfig(name=image.name, memory_pages=GUEST_PAGES), console=watch)
        outcome = machine.run(timeout_ns=TIMEOUT_NS)
    finally:
        machine.close()
    if outcome is not Outcome.ENDED or "SUCCESS" not in watch.lines:
        tail = "\n".join(watch.lines[-5:])
        raise EnvironmentProblem(f"the guest {image.name} did not finish; its last lines were:\n{tail}")
    return watch


def exit_costs(runs: int, progress: Callable[[str], None]) -> list[Cost]:
    """Medians over `runs` of each kind of exit."""
    image = load_image(build(EXITS), "exits")
    seen: dict[bool, list[Stopwatch]] = {False: [], True: []}
    for number in range(runs):
        for virtual_time in (False, True):
            progress(f"exits, run {number + 1} of {runs}, {'virtual' if virtual_time else 'real'} time")
            seen[virtual_time].append(run_guest(image, virtual_time=virtual_time))

    def median(name: str, virtual_time: bool) -> float:
        return statistics.median(watch.microseconds[name] for watch in seen[virtual_time])

    names = list(seen[False][0].microseconds)
    return [Cost(name, median(name, False), median(name, True), runs) for name in names]


@dataclass(frozen=True, slots=True)
class Compute:
    """Pairs of PV guest and bare engine, one list for each clock; how many instructions one run executes."""

    instructions: float
    real: list[Pair]
    virtual: list[Pair]

    def mips(self, seconds: float) -> float:
        """Million instructions per second."""
        return self.instructions / seconds / 1e6


def compute(runs: int, progress: Callable[[str], None]) -> Compute:
    """The same code in a PV guest and on the bare engine, in turn, by either clock."""
    image = load_work()
    pairs: dict[bool, list[Pair]] = {False: [], True: []}
    rounds = 0
    for number in range(runs):
        for virtual_time in (False, True):
            clock = "virtual" if virtual_time else "real"
            progress(f"compute, pair {number + 1} of {runs}, {clock} time")
            guest = run_guest(image, virtual_time=virtual_time)
            bare = Bare(image, count_blocks=virtual_time)
            try:
                rounds = bare.rounds()
                alone = bare.run()
            finally:
                bare.close()
            _same_result(guest, alone.result)
            pairs[virtual_time].append(
                Pair(
                    f"compute, {clock} time",
                    guest.microseconds["work"] / 1e6,
                    alone.seconds,
                    guest.thread_us["work"] / 1e6,
                    alone.thread_s,
                )
            )
    return Compute(instructions_per_round(image) * rounds, pairs[False], pairs[True])


def _same_result(guest: Stopwatch, expected: int) -> None:
    found = [line.removeprefix("result ") for line in guest.lines if line.startswith("result ")]
    if found != [f"{expected:#x}"]:
        raise EnvironmentProblem(
            f"work.S computed {found} as a guest but {expected:#x} on the bare engine: this is a bug of pyhv"
        )


def hello(runs: int, progress: Callable[[str], None]) -> Start:
    """`pyhv boot hello`: medians; the first (cold) run is left out."""
    found = []
    for number in range(runs + 1):
        progress(f"hello, run {number} of {runs}" if number else "hello, first run")
        found.append(run_in_project(["boot", "hello"], timeout_s=60))
    return _start("pyhv boot hello", found[1:])


def python_start(runs: int) -> Start:
    """This Python that starts and does nothing: the part of `hello` that is not pyhv's."""
    found = [watch([sys.executable, "-c", ""], Path.cwd(), 60) for _ in range(runs)]
    return _start("Python's own start", found)


def _start(name: str, found: Sequence[Timeline]) -> Start:
    return Start(
        name,
        statistics.median(one.total_s for one in found),
        statistics.median(one.total_user_s for one in found),
    )
