# SPDX-License-Identifier: GPL-2.0-only
"""pyhv as the one that is measured: `pyhv boot` as a program of its own, started for each run."""

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from bench.timeline import Timeline, watch
from pyhv import lane as lanes

_PROJECT = Path(__file__).resolve().parent.parent


def command_prefix() -> list[str]:
    """The `pyhv` of this Python environment; the module itself if the package is not installed in it."""
    script = Path(sys.executable).parent / "pyhv"
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-m", "pyhv.cli.main"]


def run_in_project(arguments: list[str], timeout_s: float, lane: str = "") -> Timeline:
    """`pyhv` with `arguments`, in the project's directory, in that lane or in the one that it chooses."""
    environment = {lanes.SWITCH: lane} if lane else {}
    return watch([*command_prefix(), *arguments], _PROJECT, timeout_s, environment)


LANES: Final = {
    f"{lane}+{engine}": (lane, engine == "tuned")
    for engine in ("tuned", "untuned")
    for lane in (lanes.NATIVE, lanes.PLAIN)
}
"""Ways to run pyhv: compiled or interpreted (docs/native.md), on a tuned engine or on one as it came."""


REAL, VIRTUAL = CLOCKS = ("real", "virtual")


@dataclass(frozen=True, slots=True)
class Pyhv:
    """pyhv with the kernel and the initramfs that its peer has too."""

    kernel: Path
    initramfs: Path
    memory_mib: int
    lane: str = "native+tuned"
    """Of `LANES`."""
    clock: str = REAL
    """Of `CLOCKS`."""
    recording: Path | None = None
    """A file in which the run is recorded."""

    @property
    def label(self) -> str:
        """Tells it from the others of a contest."""
        return f"pyhv {self.lane}, {self.clock} time" + (", recorded" if self.recording else "")

    @property
    def guest_clock_is_real(self) -> bool:
        """Whether the guest's seconds are meant to be the host's."""
        return self.clock == REAL

    def arguments(self, workload: str) -> list[str]:
        """Behind `pyhv`: to boot once with `w=workload`, or to a shell if that is empty."""
        return [
            "boot", str(self.kernel),
            "--ramdisk", str(self.initramfs),
            "--memory", str(self.memory_mib),
            "--append", "console=hvc0" + (f" w={workload}" if workload else ""),
            f"--{self.clock}-time",
            *([] if LANES[self.lane][1] else ["--no-engine-tuning"]),
            *(["--record", str(self.recording)] if self.recording else []),
        ]  # fmt: skip

    def run(self, workload: str, timeout_s: float) -> Timeline:
        """Boot once with `w=workload`. Raises EnvironmentProblem."""
        return run_in_project(self.arguments(workload), timeout_s, LANES[self.lane][0])
