# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that judge themselves: boot one, let it run to its end, and read its verdict off its console.

    pyhv      a line SUCCESS, FAILURE: why, or SKIP: why
    xtf       the Xen Test Framework's last line, Test result: SUCCESS, SKIP, FAILURE or ERROR
    auto      either of them
    (else)    a regular expression: the kernel has passed when a line of its console matches

A kernel that reports nothing has tested nothing, and fails. With a regular expression the run is over when it
matches; otherwise the kernel must power itself off.
"""

import re
from collections.abc import Callable
from typing import Final

import pytest

from pyhv.api.guest import End
from pyhv.api.words import expression
from pyhv.cli.consoles import Tee
from pyhv.cli.verdict import Builtin, Convention, Report, Watcher, Xtf, readable
from pyhv.errors import ExitCode
from pyhv.testing.under_test import MachineUnderTest
from pyhv.until import Outcome

AUTO: Final = "auto"


class KernelFailed(Exception):
    """A kernel's verdict on itself, or what came in its way; one sentence."""


class Either:
    """A test of the Xen Test Framework, if there is any result of its kind, else as of pyhv's own guests."""

    def __init__(self) -> None:
        self._xtf, self._own = Xtf(), Builtin()

    @property
    def _chosen(self) -> Convention:
        return self._own if self._xtf.report is Report.NOTHING else self._xtf

    @property
    def report(self) -> Report:
        """The verdict's."""
        return self._chosen.report

    @property
    def reason(self) -> str:
        """The verdict's."""
        return self._chosen.reason

    def line(self, text: bytes) -> None:
        """`Convention.line`."""
        self._xtf.line(text)
        self._own.line(text)

    def code(self) -> ExitCode:
        """`Convention.code`."""
        return self._chosen.code()


class Matches:
    """Success is a line in which a pattern is found."""

    def __init__(self, pattern: "re.Pattern[bytes]") -> None:
        self._pattern = pattern
        self.report = Report.NOTHING
        self.reason = f"no line matches {readable(pattern.pattern)!r}"

    def line(self, text: bytes) -> None:
        """`Convention.line`."""
        if self._pattern.search(text):
            self.report, self.reason = Report.SUCCESS, readable(text)

    def code(self) -> ExitCode:
        """`Convention.code`."""
        return ExitCode.OK if self.report is Report.SUCCESS else ExitCode.FAILURE


def convention(verdict: str) -> Convention:
    """How a kernel is to be judged. ConfigError: not by such a regular expression."""
    known: dict[str, Callable[[], Convention]] = {AUTO: Either, "pyhv": Builtin, "xtf": Xtf}
    return known[verdict]() if verdict in known else Matches(expression(verdict))


def judge(machine: MachineUnderTest, verdict: str) -> None:
    """Run the machine's one guest to its end, and judge it: KernelFailed, or pytest's own way of skipping."""
    judged, (guest,) = convention(verdict), machine.had
    watcher = Watcher(judged)
    guest.console.sink = Tee(guest.console.sink, watcher) if guest.console.sink is not None else watcher
    matched = isinstance(judged, Matches)

    def over() -> bool:
        return guest.end is not None or (matched and judged.report is Report.SUCCESS)

    outcome = machine.run(over)
    watcher.finish()
    if matched and judged.report is Report.SUCCESS:
        return
    if judged.report is Report.FAILURE:
        raise KernelFailed(f"{guest.name} reported a failure" + _because(judged))
    if guest.end is None:
        raise KernelFailed(f"{guest.name} has not ended: {_why(outcome)}")
    if guest.end.reason != "poweroff":
        raise KernelFailed(f"{guest.name} did not power itself off: {_how(guest.end)}")
    if judged.report is Report.SKIP:
        pytest.skip(judged.reason or "the kernel says so")
    if judged.report is Report.NOTHING:
        raise KernelFailed(f"{guest.name} powered off and reported nothing" + _because(judged))


def _because(judged: Convention) -> str:
    return f": {judged.reason}" if judged.reason else ""


def _why(outcome: Outcome) -> str:
    return "it has suspended itself" if outcome is Outcome.ENDED else outcome.value


def _how(end: End) -> str:
    return end.reason + (f" ({end.cause})" if end.cause else "")
