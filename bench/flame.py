# SPDX-License-Identifier: GPL-2.0-only
"""Flame graphs of a boot and of the fork workload: where the time goes (docs/performance.md).

    py-spy      samples Python's, Cython's and the emulator's frames together, and can be told to by a command
    stacks.py   gives frames names
    pyinferno   draws

pyhv runs in virtual time: a sample stops the process for a moment, and in real time the guest would see that
and have more to do. Both tools come with `pip install -e .[profile]`.
"""

import html
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from bench.guest import Pyhv, command_prefix
from bench.stacks import LAYERS, Region, folded, layer
from pyhv.errors import EnvironmentProblem

SAMPLES_PER_S: Final = 100
"""With many more, the profiler stops pyhv for most of the time."""
TRANSLATIONS_FROM: Final = 1 << 20
"""The emulator's translations are in one mapping of many MiB; other code without a file is smaller."""
TIMEOUT_S: Final = 300
TAIL_BYTES: Final = 1500
PROMPT: Final = b"/ # "
TYPED: Final = {
    "fork": "i=0; while [ $i -lt 600 ]; do /bin/true; i=$((i + 1)); done; poweroff -f\n",
    "sys": "dd if=/dev/zero of=/dev/null bs=1 count=200000; poweroff -f\n",
}
"""What a shell is told: what workloads of `bench peer` do, twice as often or as often, without their boot."""
_LOOK_S: Final = 0.2
_RECT: Final = re.compile(r'(<title>([^<]*) \([\d,]+ samples[^<]*</title><rect [^>]*?fill=")rgb\([^)]*\)"')
MISSING: Final = "'pip install -e .[profile]' in the project's environment"


def record(guest: Pyhv, workload: str) -> Counter[tuple[str, ...]]:
    """Run pyhv under the profiler; the stacks, readable. EnvironmentProblem.

    A boot is profiled as a whole; of the other workloads of `TYPED`, only what a shell is told to do.
    """
    with tempfile.TemporaryDirectory(prefix="pyhv-bench-") as name:
        raw, said = Path(name) / "raw", Path(name) / "said"
        profiler = [
            str(Path(sys.executable).with_name("py-spy")), "record", "--native", "--format", "raw",
            "--rate", str(SAMPLES_PER_S), "--output", str(raw),
        ]  # fmt: skip
        if not Path(profiler[0]).is_file():
            raise EnvironmentProblem(f"py-spy is not installed: {MISSING}")
        if workload in TYPED:
            with _at_prompt([*command_prefix(), *guest.arguments("")]) as program:
                regions = _profiled([*profiler, "--pid", str(program.pid)], said, program, TYPED[workload])
        else:
            regions = _profiled([*profiler, "--", *command_prefix(), *guest.arguments(workload)], said)
        if not raw.is_file():
            last = said.read_text(encoding="utf-8", errors="replace")[-TAIL_BYTES:].strip()
            raise EnvironmentProblem(f"py-spy recorded nothing; its last output was:\n{last}")
        return folded(raw.read_text(encoding="utf-8").splitlines(), regions)


@contextmanager
def _at_prompt(command: list[str]) -> Iterator[subprocess.Popen[bytes]]:
    """A guest that waits at its shell's prompt. EnvironmentProblem if it ends before."""
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    ) as program:
        assert program.stdout is not None
        try:
            seen = b""
            while PROMPT not in seen:  # what follows may be the shell's question for the cursor
                piece = os.read(program.stdout.fileno(), 1 << 16)
                if not piece:
                    raise EnvironmentProblem("the guest ended before its shell had a prompt")
                seen = (seen + piece)[-TAIL_BYTES:]
            yield program
        finally:
            program.kill()


def _profiled(
    command: list[str], said: Path, program: subprocess.Popen[bytes] | None = None, typed: str = ""
) -> list[Region]:
    """Have the profiler run to its end; where the profiled process has code without a file.

    What is typed, the program is told as soon as the profiler has begun.
    """
    regions: list[Region] = []
    with said.open("wb") as errors:
        profiler = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors)
        ends = time.monotonic() + TIMEOUT_S
        try:
            while profiler.poll() is None:
                if time.monotonic() > ends:
                    raise EnvironmentProblem(f"the profiled run did not end in {TIMEOUT_S} s")
                time.sleep(_LOOK_S)
                for pid in [program.pid] if program is not None else _children(profiler.pid):
                    regions = executable(pid) or regions
                if program is not None and typed and b"Sampling process" in said.read_bytes():
                    assert program.stdin is not None
                    program.stdin.write(typed.encode())
                    program.stdin.flush()
                    typed = ""
        finally:
            if profiler.poll() is None:
                profiler.kill()
                profiler.wait()
    return regions


def _children(pid: int) -> list[int]:
    try:
        lists = [(task / "children").read_text() for task in Path(f"/proc/{pid}/task").iterdir()]
    except OSError:
        return []
    return [int(word) for text in lists for word in text.split()]


def executable(pid: int) -> list[Region]:
    """Mappings of a process that can be executed and are no file's; none if it has ended."""
    try:
        lines = Path(f"/proc/{pid}/maps").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
    found = []
    for line in lines:
        span, rights, _, _, _, *path = line.split(maxsplit=5)
        if "x" in rights and (not path or path[0].startswith("/dev/zero")):
            first, end = (int(word, 16) for word in span.split("-"))
            found.append(Region(first, end, end - first >= TRANSLATIONS_FROM))
    return found


def draw(stacks: Counter[tuple[str, ...]], title: str) -> str:
    """The flame graph, an SVG with a colour for each layer. EnvironmentProblem."""
    try:
        from pyinferno import flamegraph_from_lines  # type: ignore[attr-defined,import-not-found,unused-ignore]
    except ImportError as missing:
        raise EnvironmentProblem(f"pyinferno is not installed: {MISSING}") from missing
    lines = sorted(f"{';'.join(frames)} {count}" for frames, count in stacks.items())
    return coloured(flamegraph_from_lines(lines, title))


def coloured(svg: str) -> str:
    """Each frame in its layer's colour."""
    return _RECT.sub(lambda found: f'{found[1]}{LAYERS[layer(html.unescape(found[2]))]}"', svg)
