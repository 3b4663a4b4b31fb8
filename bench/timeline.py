# SPDX-License-Identifier: GPL-2.0-only
"""When a guest printed its marks: a program is run and the lines "PYHV-..." of its output get host times.

The lines are those of the initramfs (`pyhv.images.initramfs`); each ends with the guest's own /proc/uptime.
So there are two clocks for each event, and `Timeline.spans` has a duration by either. Whether the program is
pyhv or an emulator with Xen in it makes no difference here.
"""

import os
import re
import selectors
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bench.load import Moment, user_seconds
from pyhv.errors import EnvironmentProblem

MARK = re.compile(rb"PYHV-(INIT-OK|BEGIN|END|POWEROFF)(?: ([a-z][a-z0-9]*))? (\d+\.\d\d)\b")
TAIL_BYTES = 1500
"""How much of a failed run's output is shown."""
UPTIME_STEP_S = 0.01
"""/proc/uptime counts hundredths."""


@dataclass(frozen=True, slots=True)
class Mark:
    """One line: which, of what, by the guest's uptime, and by the host's clock since the program's start."""

    kind: str
    name: str
    guest_s: float
    host_s: float
    user_s: float = 0.0
    """What the program has computed in user mode by then."""


@dataclass(frozen=True, slots=True)
class Span:
    """How long a part took: seconds by the guest's and the host's clock, and of the program's user mode."""

    name: str
    guest_s: float
    host_s: float
    user_s: float = 0.0

    def disagreement(self) -> float:
        """Difference of the two clocks relative to the host's; what uptime's step explains is taken off."""
        return max(abs(self.guest_s - self.host_s) - UPTIME_STEP_S, 0.0) / self.host_s


@dataclass(slots=True)
class Timeline:
    """The marks of one run, in order."""

    marks: list[Mark] = field(default_factory=list)
    total_s: float = 0.0
    """Host seconds from the program's start to its end."""
    others: float = 0.0
    """Processors that other programs kept busy meanwhile."""
    total_user_s: float = 0.0
    """What the program, and the children that it waited for, computed in user mode in all."""

    @property
    def launch(self) -> Span:
        """From the program's start to init's first line. Raises KeyError if there was none."""
        for mark in self.marks:
            if mark.kind == "INIT-OK":
                return Span("launch", mark.guest_s, mark.host_s, mark.user_s)
        raise KeyError("PYHV-INIT-OK")

    def span(self, name: str) -> Span:
        """The part between BEGIN and END of `name`. Raises KeyError if it is not complete."""
        begin: Mark | None = None
        for mark in self.marks:
            if mark.name != name:
                continue
            if mark.kind == "BEGIN":
                begin = mark
            elif mark.kind == "END" and begin is not None:
                return Span(
                    name, mark.guest_s - begin.guest_s, mark.host_s - begin.host_s, mark.user_s - begin.user_s
                )
        raise KeyError(name)


class LineReader:
    """Bytes to marks; what arrives in pieces has the time of the piece that ends the line."""

    def __init__(self) -> None:
        self.marks: list[Mark] = []
        self._partial = b""

    def take(self, data: bytes, host_s: float, user_s: float = 0.0) -> None:
        """Bytes that arrived at `host_s`, when the program had computed for `user_s`."""
        *lines, self._partial = (self._partial + data).split(b"\n")
        for line in lines:
            found = MARK.search(line)
            if found is not None:
                kind, name, uptime = (part.decode() for part in found.groups(b""))
                self.marks.append(Mark(kind, name, float(uptime), host_s, user_s))


def watch(
    command: Sequence[str], directory: Path, timeout_s: float, environment: Mapping[str, str] | None = None
) -> Timeline:
    """Run `command` in `directory` to its end and note its marks; `environment` is added to this process's.

    Raises EnvironmentProblem with the end of its output if it fails or takes longer than `timeout_s`.
    """
    reader, output = LineReader(), bytearray()
    with tempfile.TemporaryFile() as errors:
        before = Moment.now()
        began = before.wall
        process = subprocess.Popen(
            command, cwd=directory, env=os.environ | (environment or {}),
            stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=errors,
        )  # fmt: skip
        assert process.stdout is not None
        try:
            in_time = _follow(process, reader, output, began, timeout_s)
            if in_time:
                process.wait(timeout=max(began + timeout_s - time.perf_counter(), 1.0))
        except subprocess.TimeoutExpired:
            in_time = False
        finally:
            if process.poll() is None:
                process.kill()
                process.wait()
            process.stdout.close()
        after = Moment.now()
        errors.seek(0)
        said = errors.read()
    if not in_time or process.returncode:
        end = f"did not end in {timeout_s:.0f} s" if not in_time else f"ended with code {process.returncode}"
        tail = (bytes(output) + said)[-TAIL_BYTES:].decode(errors="replace").strip()
        raise EnvironmentProblem(f"'{Path(command[0]).name}' {end}; its last output was:\n{tail}")
    return Timeline(
        reader.marks,
        after.wall - before.wall,
        before.others(after),
        after.children_user - before.children_user,
    )


def _follow(
    process: subprocess.Popen[bytes], reader: LineReader, output: bytearray, began: float, timeout_s: float
) -> bool:
    """Read until end of file; False if it is too late before that."""
    assert process.stdout is not None
    fd = process.stdout.fileno()
    with selectors.DefaultSelector() as selector:
        selector.register(fd, selectors.EVENT_READ)
        while True:
            left = began + timeout_s - time.perf_counter()
            if left <= 0 or not selector.select(left):
                return False
            data = os.read(fd, 1 << 16)
            if not data:
                return True
            reader.take(data, time.perf_counter() - began, user_seconds(process.pid))
            output += data
            del output[:-TAIL_BYTES]
