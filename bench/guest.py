# SPDX-License-Identifier: GPL-2.0-only
"""pyhv as the one that is measured: `pyhv boot` as a program of its own, started for each run."""

import sys
from dataclasses import dataclass
from pathlib import Path

from bench.timeline import Timeline, watch

_PROJECT = Path(__file__).resolve().parent.parent


def command_prefix() -> list[str]:
    """The `pyhv` of this Python environment; the module itself if the package is not installed in it."""
    script = Path(sys.executable).parent / "pyhv"
    if script.is_file():
        return [str(script)]
    return [sys.executable, "-m", "pyhv.cli.main"]


def run_in_project(arguments: list[str], timeout_s: float) -> Timeline:
    """`pyhv` with `arguments`, in the project's directory."""
    return watch([*command_prefix(), *arguments], _PROJECT, timeout_s)


@dataclass(frozen=True, slots=True)
class Pyhv:
    """pyhv with the kernel and the initramfs that its peer has too."""

    kernel: Path
    initramfs: Path
    memory_mib: int
    virtual_time: bool
    label: str = "pyhv"

    @property
    def guest_clock_is_real(self) -> bool:
        """Whether the guest's seconds are meant to be the host's."""
        return not self.virtual_time

    def run(self, workload: str, timeout_s: float) -> Timeline:
        """Boot once with `w=workload`. Raises EnvironmentProblem."""
        return run_in_project(
            [
                "boot", str(self.kernel),
                "--ramdisk", str(self.initramfs),
                "--memory", str(self.memory_mib),
                "--append", f"console=hvc0 w={workload}",
                "--virtual-time" if self.virtual_time else "--real-time",
            ],
            timeout_s,
        )  # fmt: skip
