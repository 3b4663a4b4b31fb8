# SPDX-License-Identifier: GPL-2.0-only
"""A guest of a run: what is kept of its consoles, and what is said of its end.

The guest itself is `pyhv.Guest`; what its end means for the exit code is decided here and in `verdict.py`.
"""

import sys
from dataclasses import dataclass
from typing import Final

import click

import pyhv
from pyhv.cli import consoles
from pyhv.cli.messages import say
from pyhv.cli.verdict import OTHER_ENDS, Report, Watcher, readable, worst
from pyhv.errors import ExitCode

TAIL_LINES: Final = 12
"""Console lines that go into a crash report."""


class LastWords:
    """What a guest writes to the hypervisor's own console (console_io): its end is remembered, and with
    `shown`, all of it goes to standard error, line by line.

    A kernel that dies before it has a console of its own says why there, if anywhere.
    """

    def __init__(self, name: str, *, shown: bool) -> None:
        self._name = name
        self._shown: consoles.Prefixed | None = None
        if shown:
            target = consoles.Stream(sys.stderr.buffer, "standard error")
            self._shown = consoles.Prefixed(target, f"{name} (console_io)")
        self._tail = consoles.Tail()

    def output(self, text: bytes) -> None:
        """More text."""
        self._tail.output(text)
        if self._shown is not None:
            self._shown.output(text)

    def tell(self) -> None:
        """Say the last of them, unless all have been shown."""
        lines = self._tail.lines(TAIL_LINES)
        if lines and self._shown is None:
            say(f"last lines of {self._name} on the hypervisor's console:")
            for line in lines:
                click.echo(f"  {readable(line)}", err=True)


@dataclass(slots=True)
class BootedGuest:
    """A guest and its end of the console. `unseen`: what it prints goes nowhere."""

    guest: pyhv.Guest
    watcher: Watcher
    tail: consoles.Tail
    prefixed: consoles.Prefixed | None
    last_words: LastWords
    unseen: bool

    @property
    def goes_on(self) -> bool:
        """It has neither ended nor suspended itself."""
        return self.guest.end is None and not self.guest.suspended

    def finish(self) -> None:
        """The guest will print no more."""
        if self.prefixed is not None:
            self.prefixed.finish()
        self.watcher.finish()

    def judge(self, *, verbose: bool) -> ExitCode:
        """Say how it has ended. Only one that powered off can have succeeded."""
        guest, convention = self.guest, self.watcher.convention
        reason = "suspend" if guest.end is None else guest.end.reason
        if reason in ("crash", "watchdog", "halt"):
            self._tell_crash()
            return ExitCode.CRASH
        code = ExitCode.OK
        if reason == "poweroff":
            if verbose:
                say(f"{guest.name} powered off")
        elif reason in OTHER_ENDS:
            say(f"{guest.name} {OTHER_ENDS[reason]}")
            code = ExitCode.ENDED
        else:
            say(f"{guest.name} ended itself: reason {reason}, which is none of Xen's")
            code = ExitCode.FAILURE
        verdict = convention.code()
        if verdict is not ExitCode.OK:
            reason_text = f": {convention.reason}" if convention.reason else ""
            say(f"{guest.name} {convention.report.value}{reason_text}")
        code = worst([code, verdict])
        if code is not ExitCode.OK:
            self.last_words.tell()
        return code

    def unfinished(self) -> ExitCode:
        """It has not ended, but may have reported a failure already."""
        self.last_words.tell()
        convention = self.watcher.convention
        if convention.report is not Report.FAILURE:
            return ExitCode.OK
        say(f"{self.guest.name} {convention.report.value}: {convention.reason}")
        return ExitCode.FAILURE

    def _tell_crash(self) -> None:
        guest, tail = self.guest, self.tail.lines(TAIL_LINES)
        report = guest.crash_report(tail)
        if report is None:
            cause = (guest.end and guest.end.cause) or "it said so itself"
            say(f"{guest.name} crashed: {cause}")
            for line in tail if self.unseen else []:
                click.echo(f"  {readable(line)}", err=True)
        else:
            say(report.rstrip("\n"))
        self.last_words.tell()
