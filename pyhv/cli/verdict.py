# SPDX-License-Identifier: GPL-2.0-only
"""How a guest says whether it succeeded, and how that and the way it ended become one exit code.

A guest has only its console to report on. Two conventions are read from it:

    pyhv's own guests     a line "SUCCESS", "FAILURE: why" or "SKIP: why"; silence is success
    Xen Test Framework    the last line "Test result: SUCCESS", "SKIP", "FAILURE" or "ERROR"

The console is a stream of any length from somebody who may not mean well, so only the beginning of the line
that is being written is kept. This module knows nothing of machines and domains.
"""

import enum
import re
from collections.abc import Callable, Iterable
from typing import Final, Protocol

from pyhv.cli.messages import printable
from pyhv.errors import ExitCode

MAX_LINE: Final = 1024
"""Bytes of a line that are looked at; what a reporting line says lies well within."""


class Report(enum.Enum):
    """What the guest's output said."""

    NOTHING = "reported nothing"
    SUCCESS = "reported success"
    SKIP = "skipped its test"
    FAILURE = "reported a failure"


_CODES: Final = {
    Report.NOTHING: ExitCode.OK,
    Report.SUCCESS: ExitCode.OK,
    Report.SKIP: ExitCode.SKIP,
    Report.FAILURE: ExitCode.FAILURE,
}

SEVERITY: Final = (
    ExitCode.OK,
    ExitCode.SKIP,
    ExitCode.ENDED,
    ExitCode.TIMEOUT,
    ExitCode.DEADLOCK,
    ExitCode.FAILURE,
    ExitCode.CRASH,
)
"""From harmless to grave: the order in which several guests' codes compete.

A crash outweighs a reported failure, as it was not even able to report; a failure outweighs a deadlock or a
timeout, because it says more about the cause.
"""


OTHER_ENDS: Final = {
    "reboot": "asked for a reboot, which ended its run",
    "suspend": "has suspended itself, and nobody is there to resume it",
    "soft_reset": "asked for a soft reset, which ended its run",
    "destroyed": "was destroyed",
}
"""What is said of guests that ended neither by powering off nor by crashing, by `pyhv.Guest.end`'s reason."""


def worst(codes: Iterable[ExitCode]) -> ExitCode:
    """The gravest of `codes`, which must be codes that a guest can cause; OK if there are none."""
    return max(codes, key=SEVERITY.index, default=ExitCode.OK)


class Convention(Protocol):
    """A way to report: reads line after line."""

    @property
    def report(self) -> Report:
        """What has been reported so far."""

    @property
    def reason(self) -> str:
        """In the guest's words."""

    def line(self, text: bytes) -> None:
        """One line, without its ending, cut to `MAX_LINE` bytes."""

    def code(self) -> ExitCode:
        """The verdict on a guest that powered off."""


class Plain:
    """Nobody asked for a verdict: a guest that powers off has succeeded."""

    report = Report.NOTHING
    reason = ""

    def line(self, text: bytes) -> None:
        """Ignored."""

    def code(self) -> ExitCode:
        """OK."""
        return ExitCode.OK


class Builtin:
    """pyhv's own guests. The first failure decides; a skip counts if no failure follows, a success alone."""

    _PATTERN = re.compile(rb"(SUCCESS|FAILURE|SKIP)\b:?[ \t]*(.*)")

    def __init__(self) -> None:
        self.report = Report.NOTHING
        self.reason = ""

    def line(self, text: bytes) -> None:
        """Look for a report at the beginning of the line."""
        found = self._PATTERN.match(text)
        if found is None or self.report is Report.FAILURE:
            return
        report = Report[found[1].decode("ascii")]
        if report is not Report.SUCCESS or self.report is Report.NOTHING:
            self.report, self.reason = report, readable(found[2])

    def code(self) -> ExitCode:
        """By the report; none means success."""
        return _CODES[self.report]


class Xtf:
    """The Xen Test Framework. A test that powers off without a result has failed: it tested nothing."""

    _PATTERN = re.compile(rb"Test result: (SUCCESS|SKIP|FAILURE|ERROR)\b")

    def __init__(self) -> None:
        self.report = Report.NOTHING
        self.reason = "there was no line 'Test result: ...'"

    def line(self, text: bytes) -> None:
        """Look for a result; a later one replaces an earlier one."""
        found = self._PATTERN.search(text)
        if found is not None:
            word = found[1].decode("ascii")
            self.report = Report.FAILURE if word == "ERROR" else Report[word]
            self.reason = readable(found[0])

    def code(self) -> ExitCode:
        """By the last result."""
        return ExitCode.FAILURE if self.report is Report.NOTHING else _CODES[self.report]


CONVENTIONS: Final[dict[str, Callable[[], Convention]]] = {"": Plain, "pyhv": Builtin, "xtf": Xtf}
"""Ways to judge a guest, by name."""


class Watcher:
    """Cuts a console's bytes into lines for a `Convention`, in bounded memory."""

    def __init__(self, convention: Convention) -> None:
        self.convention = convention
        self._line = bytearray()

    def output(self, data: bytes) -> None:
        """More bytes from the console."""
        *complete, rest = data.split(b"\n")
        for part in complete:
            self._extend(part)
            self.finish()
        self._extend(rest)

    def finish(self) -> None:
        """The line is complete, or the guest has ended in the middle of it."""
        if self._line:
            self.convention.line(bytes(self._line).rstrip(b"\r"))
            self._line.clear()

    def _extend(self, part: bytes) -> None:
        self._line += part[: MAX_LINE - len(self._line)]


def readable(text: bytes) -> str:
    """Guest bytes as text that cannot steer a terminal."""
    return printable(text.decode("utf-8", "replace"))
