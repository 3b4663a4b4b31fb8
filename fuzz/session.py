# SPDX-License-Identifier: GPL-2.0-only
"""One fuzzing process: feeds a target with what atheris (libFuzzer) makes, keeps findings, counts.

A finding does not end the session: it is made small, saved, and counted by its signature; the target starts
afresh. A crash of the interpreter does end it, so the inputs since the last fresh state are in a file at all
times. The numbers are in a file too, because libFuzzer never returns.
"""

import atexit
import json
import os
import sys
import time
from collections import Counter
from pathlib import Path

from fuzz.findings import minimise, save, signature
from fuzz.target import Target, watched

TIRED = 64
"""Exit code of a process that wants to be replaced: atheris's tracing grows without bound."""
_REPORT_EVERY = 5.0
_MOST_MEMORY = 1 << 30


def _resident() -> int:
    """Bytes of memory that this process uses."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


class Session:
    """Runs inputs on a target and reports to a file."""

    def __init__(self, target: Target, findings: Path, status: Path, history: Path) -> None:
        self.target = target
        self.findings = findings
        self.status = status
        self.executions = 0
        self.found: Counter[str] = Counter()
        self.saved: dict[str, str] = {}
        self._since: list[bytes] = []
        self._history = history.open("wb", buffering=0)
        self._began = self._reported = time.monotonic()

    def one(self, data: bytes) -> None:
        """Run an input."""
        target = self.target
        if target.started:
            self._since.clear()
            self._history.seek(0)
            self._history.truncate()
        self._history.write(data)
        self.executions += 1
        try:
            self._since.append(target.run(data))
        except Exception as error:
            self._keep(error, data)
        now = time.monotonic()
        if now - self._reported > _REPORT_EVERY:
            self._reported = now
            self.report()
            if _resident() > _MOST_MEMORY:
                os._exit(TIRED)

    def _keep(self, error: Exception, data: bytes) -> None:
        what = signature(error)
        self.found[what] += 1
        whole = b"".join(self._since) + data
        self.target.abandon()
        self._since.clear()
        if what in self.saved:
            return
        small = minimise(self.target, whole, what)
        self.target.abandon()
        self.saved[what] = str(save(self.findings, small, what))
        print(f"finding: {error}\n  python -m fuzz {self.target.name} {self.saved[what]}", file=sys.stderr)
        self.report()

    def report(self) -> None:
        """Write the numbers down."""
        self.status.write_text(json.dumps({
            "seconds": time.monotonic() - self._began,
            "executions": self.executions,
            "calls": self.target.calls,
            "found": dict(self.found),
            "saved": self.saved,
        }))  # fmt: skip


def fuzz(session: Session, arguments: list[str]) -> None:
    """Hand over to libFuzzer, which ends the process."""
    import atheris

    atexit.register(session.report)
    with watched():
        atheris.Setup([sys.argv[0], *arguments], session.one, internal_libfuzzer=True)
        atheris.Fuzz()
