# SPDX-License-Identifier: GPL-2.0-only
"""Measurements as numbers, tables and JSON.

A host's speed drifts by tens of percent within minutes. So no time is reported without its rival's from the
same minute: the figure that counts is the median of the ratios of pairs, and the times beside it are there
to give an idea. This module does not know how anything was measured.
"""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click
from rich.console import Console
from rich.table import Table

OUTPUT_FILE = click.Path(dir_okay=False, writable=True, path_type=Path)
"""The type of an option that names a file to write."""
BUSY_LOAD = 0.5
"""Runnable processes of others above which times are not to be trusted."""


@dataclass(frozen=True, slots=True)
class Pair:
    """One measure taken of both, one after the other; seconds of the host's clock, and of user mode."""

    metric: str
    ours: float
    theirs: float
    ours_user: float = 0.0
    theirs_user: float = 0.0

    @property
    def ratio(self) -> float:
        """Ours relative to theirs: below 1 is faster."""
        return self.ours / self.theirs

    @property
    def user_ratio(self) -> float:
        """The same of the time in user mode; 0 if theirs was too short to be counted."""
        return self.ours_user / self.theirs_user if self.theirs_user else 0.0


@dataclass(frozen=True, slots=True)
class Row:
    """What the pairs of one metric say."""

    metric: str
    pairs: int
    ours: float
    theirs: float
    ratio: float
    lowest: float
    highest: float
    ours_user: float = 0.0
    theirs_user: float = 0.0
    user_ratio: float = 0.0


@dataclass(frozen=True, slots=True)
class Figure:
    """One figure: what was measured, how much it was, in which unit, and what it must not exceed."""

    name: str
    value: float
    unit: str
    most: float | None = None


@dataclass(frozen=True, slots=True)
class Start:
    """A command from its start to its exit: seconds of the host's clock, and those computed in user mode."""

    name: str
    seconds: float
    user_s: float


@dataclass(frozen=True, slots=True)
class Cost:
    """Microseconds of one operation in real and in virtual time: medians over `runs`."""

    name: str
    real_us: float
    virtual_us: float
    runs: int


def rows(pairs: Iterable[Pair]) -> list[Row]:
    """One row for each metric, in order of appearance."""
    found: dict[str, list[Pair]] = {}
    for pair in pairs:
        found.setdefault(pair.metric, []).append(pair)
    return [
        Row(
            metric,
            len(own),
            statistics.median(pair.ours for pair in own),
            statistics.median(pair.theirs for pair in own),
            statistics.median(pair.ratio for pair in own),
            min(pair.ratio for pair in own),
            max(pair.ratio for pair in own),
            statistics.median(pair.ours_user for pair in own),
            statistics.median(pair.theirs_user for pair in own),
            statistics.median(pair.user_ratio for pair in own),
        )
        for metric, own in found.items()
    ]


def ratio_table(ours: str, theirs: str, found: Sequence[Row]) -> Table:
    """The rows as a table; the ratio's column is the result."""
    table = Table()
    table.add_column("workload")
    for heading in (
        "pairs",
        f"{ours} s",
        f"{theirs} s",
        f"{ours} / {theirs}",
        "lowest .. highest",
        "by user time",
    ):
        table.add_column(heading, justify="right")
    for row in found:
        table.add_row(
            row.metric,
            str(row.pairs),
            f"{row.ours:.3f}",
            f"{row.theirs:.3f}",
            f"{row.ratio:.2f}",
            f"{row.lowest:.2f} .. {row.highest:.2f}",
            f"{row.user_ratio:.2f}" if row.user_ratio else "-",
        )
    return table


def cost_table(costs: Sequence[Cost]) -> Table:
    """What each kind of exit costs."""
    table = Table()
    table.add_column("kind")
    for heading in ("real time", "virtual time"):
        table.add_column(f"{heading}, us", justify="right")
    for cost in costs:
        table.add_row(cost.name, f"{cost.real_us:.2f}", f"{cost.virtual_us:.2f}")
    return table


def load_warning() -> str | None:
    """A sentence if others keep this host busy."""
    load = os.getloadavg()[0]
    if load <= BUSY_LOAD:
        return None
    return f"the load average is {load:.1f}: other programs are running, so even ratios are only indicative"


def host() -> dict[str, Any]:
    """What was measured on: for the JSON file."""
    return {
        "processor": _processor(),
        "cpus": os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "load_average": os.getloadavg()[0],
        "revision": _revision(),
    }


def conditions(lane: str = "") -> str:
    """One sentence for a page: when, where and with what it was measured, and in which lane if it is one."""
    today = datetime.now(UTC).date().isoformat()
    which = f", {lane} lane," if lane else ""
    return f"Measured on {today} with revision {_revision() or 'unknown'}{which} on {_processor()}."


def _processor() -> str:
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as lines:
            for line in lines:
                name, _, value = line.partition(":")
                if name.strip() in ("model name", "Model"):
                    return value.strip()
    except OSError:  # not Linux
        return platform.processor()
    return platform.machine()


def _revision() -> str | None:
    """The commit that is measured, if this is a checkout and git is there."""
    try:
        done = subprocess.run(
            ["git", "describe", "--always", "--dirty"],
            cwd=Path(__file__).parent, capture_output=True, text=True, check=False,
        )  # fmt: skip
    except OSError:
        return None
    return done.stdout.strip() or None


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write `content`, in which dataclasses may occur."""
    path.write_text(json.dumps(content, indent=2, default=asdict) + "\n", encoding="utf-8")


def say(text: str) -> None:
    """One sentence for whoever waits, on standard error."""
    click.echo(f"bench: {text}", err=True)


def console() -> Console:
    """Where tables go: standard output, never narrower than they are."""
    found = Console()
    return found if found.is_terminal else Console(width=120)
