# SPDX-License-Identifier: GPL-2.0-only
"""Runs of several programs in turn, and what each pair of neighbours says.

A *round* is one run of a workload by each contestant, one after the other: pyhv in every way that was asked
for, Xen in an emulator, perhaps the emulator alone. A ratio is always of two runs of one round, so that a
host that gets slower or faster meanwhile does not matter. This module does not know what contestants are.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Final, Protocol

from bench.load import MOST_OTHERS, busy
from bench.report import Pair, Row, rows
from bench.timeline import Span, Timeline
from pyhv.errors import EnvironmentProblem

WORKLOADS: Final[dict[str, tuple[str, ...]]] = {
    "boot": (),
    "sys": ("sys",),
    "fork": ("fork",),
    "cpu": ("sh", "awk", "md5", "sha256"),
    "console": ("console",),
    "trace": ("trace", "untrace"),
}
"""Values of `w=`, and the parts that each times. Every run times the launch as well."""
LAUNCH: Final = "launch"
MAX_DISAGREEMENT: Final = 0.02
COMPARED_FROM_S: Final = 1.0
"""Parts that are shorter say nothing about the agreement of clocks."""
TRIES: Final = 5
"""How often a run is made at most that others have disturbed."""
BUFFERED: Final = ("console",)
"""Parts whose end the guest sees before the host: what is still in a buffer is on its way."""


class Contestant(Protocol):
    """Something that can boot the kernel with a workload."""

    @property
    def label(self) -> str:
        """Its name in tables."""

    @property
    def guest_clock_is_real(self) -> bool:
        """Whether the guest's seconds are meant to be the host's."""

    def run(self, workload: str, timeout_s: float) -> Timeline:
        """Boot once with `w=workload`. Raises EnvironmentProblem."""


@dataclass(frozen=True, slots=True)
class Round:
    """One run of a workload by each contestant."""

    number: int
    workload: str
    timelines: dict[str, Timeline]
    """By label, in the order of the runs."""

    def metrics(self) -> tuple[str, ...]:
        """What was timed."""
        return (LAUNCH, *WORKLOADS[self.workload])

    def span(self, label: str, metric: str) -> Span:
        """One part of one run. EnvironmentProblem if the run lacks it."""
        timeline = self.timelines[label]
        try:
            return timeline.launch if metric == LAUNCH else timeline.span(metric)
        except KeyError as missing:
            raise EnvironmentProblem(
                f"{label} ended without having printed the lines of {missing.args[0]!r}"
            ) from missing

    def pairs(self, ours: str, theirs: str) -> Iterator[Pair]:
        """Two of the runs, part by part."""
        for metric in self.metrics():
            mine, other = self.span(ours, metric), self.span(theirs, metric)
            yield Pair(metric, mine.host_s, other.host_s, mine.user_s, other.user_s)


@dataclass
class Measurement:
    """What the rounds have given so far."""

    rounds: list[Round] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)
    others: float = 0.0
    """Processors that others kept busy, in the worst run."""

    def add(self, found: Round, real_clocks: Sequence[str]) -> None:
        """One more round; `real_clocks` are those whose guests' seconds are meant to be the host's.

        EnvironmentProblem if a run lacks a part.
        """
        for label, timeline in found.timelines.items():
            self.others = max(self.others, timeline.others)
            for metric in found.metrics():
                span = found.span(label, metric)
                if label in real_clocks and metric not in (LAUNCH, *BUFFERED):
                    self._compare_clocks(found.number, label, span)
        self.rounds.append(found)

    def rows(self, ours: str, theirs: str) -> list[Row]:
        """One contestant against another: a row for each metric."""
        return rows(pair for one in self.rounds for pair in one.pairs(ours, theirs))

    def spans(self) -> list[dict[str, Any]]:
        """Everything that was timed."""
        return [
            {
                "pair": one.number,
                "workload": one.workload,
                "subject": label,
                **asdict(one.span(label, metric)),
            }
            for one in self.rounds
            for label in one.timelines
            for metric in one.metrics()
        ]

    def busy(self) -> str:
        """A sentence if others kept the host so busy that nothing of this is to be quoted; else empty."""
        return busy(self.others)

    def _compare_clocks(self, number: int, label: str, span: Span) -> None:
        if max(span.host_s, span.guest_s) > COMPARED_FROM_S and span.disagreement() > MAX_DISAGREEMENT:
            self.warnings.append(
                f"pair {number}, {label}, {span.name}: {span.guest_s:.2f} s by the guest's clock but"
                f" {span.host_s:.2f} s by the host's, which is more than {MAX_DISAGREEMENT:.0%} apart"
            )


def measure(
    contestants: Sequence[Contestant],
    pairs: int,
    workloads: Sequence[str],
    timeout_s: float,
    progress: Callable[[str], None],
) -> Measurement:
    """Each workload once by each contestant, all workloads, and again. EnvironmentProblem if a run fails."""
    measured = Measurement()
    real = [one.label for one in contestants if one.guest_clock_is_real]
    for number in range(1, pairs + 1):
        for workload in workloads:
            ran = {one.label: _undisturbed(one, workload, timeout_s, progress) for one in contestants}
            found = Round(number, workload, ran)
            measured.add(found, real)
            progress(f"pair {number} of {pairs}, {workload}: {_brief(found)}")
    return measured


def _undisturbed(
    one: Contestant, workload: str, timeout_s: float, progress: Callable[[str], None]
) -> Timeline:
    """One run, made again if others kept the host busy meanwhile; the least disturbed one."""
    runs = [one.run(workload, timeout_s)]
    while runs[-1].others > MOST_OTHERS and len(runs) < TRIES:
        progress(f"{one.label}, {workload}: {busy(runs[-1].others)}; once more")
        runs.append(one.run(workload, timeout_s))
    return min(runs, key=lambda run: run.others)


def _brief(found: Round) -> str:
    return "; ".join(
        f"{metric} "
        + ", ".join(f"{label} {found.span(label, metric).host_s:.2f}" for label in found.timelines)
        for metric in found.metrics()
    )
