# SPDX-License-Identifier: GPL-2.0-only
"""`--save`: when a machine is written to a file instead of running on, and what is said of it."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

import pyhv
from pyhv.cli.messages import say
from pyhv.errors import EnvironmentProblem
from pyhv.frozen import frozen
from pyhv.until import Nanoseconds, Until, When


@frozen
class SaveOptions:
    """When the machine is saved. Neither `when` nor `after_ns`: when the run ends before its guests do."""

    path: Path
    when: "re.Pattern[bytes] | None" = None
    """What some guest prints."""
    after_ns: int | None = None


def check_directory(path: Path) -> None:
    """Say before anything runs that the machine could not be saved. EnvironmentProblem."""
    if path.is_dir():
        raise EnvironmentProblem(f"{path}: is a directory, so the machine cannot be saved there")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise EnvironmentProblem(f"{path}: {path.parent} is no directory in which you may write")


class Sought:
    """A console that notes whether a pattern was printed. Its end is kept, for what comes in pieces."""

    KEPT = 4096

    def __init__(self, pattern: "re.Pattern[bytes]") -> None:
        self._pattern = pattern
        self._end = bytearray()
        self.found = False

    def output(self, data: bytes) -> None:
        """More bytes from the console."""
        if not self.found:
            self._end += data
            self.found = self._pattern.search(self._end) is not None
            del self._end[: -self.KEPT]


class Saver:
    """Writes the machine to a file when the time for that has come."""

    def __init__(self, options: SaveOptions, machine: pyhv.Machine, sought: Sequence[Sought]) -> None:
        self._options = options
        self._machine = machine
        self._sought = sought
        self._at = None if options.after_ns is None else machine.hypervisor.now() + options.after_ns

    def until(self) -> Until:
        """Stops the run when it is time to save."""
        until: Until = When(lambda: any(one.found for one in self._sought))
        if self._options.after_ns is not None:
            until |= Nanoseconds(self._options.after_ns)
        return until

    def save(self, *, going_on: bool) -> bool:
        """Save the machine if it is time and some guest is `going_on`. False if not, which is said.

        SnapshotError.
        """
        options, path = self._options, self._options.path
        if not going_on:
            say(f"{path}: nothing was saved, since all guests have ended")
            return False
        asked = options.when is not None or options.after_ns is not None
        if asked and not self._is_time():
            say(f"{path}: nothing was saved, since the time for that had not come")
            return False
        self._machine.snapshot().save(path)
        names = ", ".join(guest.name for guest in self._machine.guests)
        say(f"{names} saved at {self._machine.time:.3f} s; to go on: pyhv restore {path}")
        return True

    def _is_time(self) -> bool:
        reached = self._at is not None and self._machine.hypervisor.has_reached(self._at)
        return reached or any(one.found for one in self._sought)
