# SPDX-License-Identifier: GPL-2.0-only
"""What recording costs: `pyhv boot` with and without `--record`, in turn, by both clocks."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.contest import Measurement
from bench.contest import measure as run_in_turn
from bench.guest import CLOCKS, Pyhv
from bench.report import Row
from pyhv.cli.messages import PlainProgress
from pyhv.images import debian

MEMORY_MIB: Final = 256
WORKLOADS: Final = ("boot", "sys", "fork")
"""What makes inputs, checkpoints and turns; what only computes has none of them."""
TIMEOUT_S: Final = 300.0


@dataclass(frozen=True)
class Found:
    """A measurement: by clock, the labels of the run that was recorded and of the one that was not."""

    measured: Measurement
    labels: dict[str, tuple[str, str]]

    def by_clock(self) -> list[tuple[str, list[Row]]]:
        """Recorded against not recorded."""
        return [(clock, self.measured.rows(*labels)) for clock, labels in self.labels.items()]


def measure(pairs: int, progress: Callable[[str], None]) -> Found:
    """Each workload by both clocks, recorded and not, `pairs` times. EnvironmentProblem."""
    files = debian.ensure(PlainProgress())
    with tempfile.TemporaryDirectory(prefix="pyhv-bench-") as scratch:
        contestants, labels = [], {}
        for clock in CLOCKS:
            both = [
                Pyhv(files.vmlinuz, files.initramfs, MEMORY_MIB, clock=clock, recording=path)
                for path in (Path(scratch) / "run.pyhv", None)
            ]
            contestants += both
            labels[clock] = (both[0].label, both[1].label)
        return Found(run_in_turn(contestants, pairs, WORKLOADS, TIMEOUT_S, progress), labels)
