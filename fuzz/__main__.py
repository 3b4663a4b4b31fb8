# SPDX-License-Identifier: GPL-2.0-only
"""`python -m fuzz TARGET [FILE ...]`: fuzz a target, or replay inputs.

Fuzzing runs `--jobs` processes of this module, each with libFuzzer inside, and adds up what they report. The
exit code is 1 if anything was found.
"""

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path

from fuzz.names import TARGETS, make
from fuzz.session import TIRED, Session, fuzz

ROOT = Path(__file__).parent
CORPUS, FINDINGS = ROOT / "corpus", ROOT / "findings"
_COVERAGE = re.compile(rb"cov: (\d+) ft: (\d+) corp: (\d+)")


def main() -> int:
    """Parse the command line and do it."""
    parser = argparse.ArgumentParser(prog="python -m fuzz", description="Fuzz pyhv.")
    parser.add_argument("target", choices=TARGETS)
    parser.add_argument("files", nargs="*", type=Path, help="inputs to replay instead of fuzzing")
    parser.add_argument("--time", type=int, default=60, metavar="S", help="seconds to fuzz (60)")
    parser.add_argument("--runs", type=int, default=-1, metavar="N", help="stop after N executions")
    parser.add_argument("--corpus", type=Path, help="directory that grows (default: none is kept)")
    parser.add_argument("--findings", type=Path, default=FINDINGS, help="where findings are saved")
    parser.add_argument("--jobs", type=int, default=1, metavar="N", help="processes (1)")
    parser.add_argument("--seed", type=int, default=0, help="libFuzzer's seed (0: by the clock)")
    parser.add_argument(
        "--merge", type=Path, metavar="DIR", help="copy what --corpus adds to coverage to DIR"
    )
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.findings = options.findings.resolve()
    if options.files:
        return replay(options.target, options.files)
    if options.child:
        child(options)
        return 0
    return parent(options)


def replay(name: str, files: list[Path]) -> int:
    """Replay inputs and show what they do."""
    from fuzz.target import watched

    failed = 0
    with watched():
        for path in files:
            target = make(name)
            try:
                target.replay(path.read_bytes())
            except Exception:
                failed += 1
                traceback.print_exc()
                print(f"{path}: fails after {target.calls} {target.unit}")
                target.abandon()
            else:
                print(f"{path}: nothing wrong, {target.calls} {target.unit}")
    return 1 if failed else 0


def child(options: argparse.Namespace) -> None:
    """A fuzzing process: import pyhv instrumented, then run."""
    import atheris

    with atheris.instrument_imports(include=["pyhv"]):
        target = make(options.target)
        from pyhv import lane
    print(f"pyhv: {lane.describe()}", file=sys.stderr)
    if lane.mixed():
        raise SystemExit(f"not of that lane, since atheris came first: {', '.join(lane.mixed())}")

    arguments = [
        f"-max_total_time={options.time}", f"-runs={options.runs}", "-timeout=200", "-rss_limit_mb=2500",
        f"-max_len={target.max_length}", "-len_control=20", f"-artifact_prefix={options.child}/",
    ]  # fmt: skip
    if options.seed:
        arguments.append(f"-seed={options.seed}")
    directories = [str(path) for path in (options.corpus, CORPUS / options.target) if path and path.is_dir()]
    if options.merge:
        arguments.append("-merge=1")
        directories = [str(options.merge), str(options.corpus)]
    session = Session(
        target, options.findings / options.target, options.child / "status", options.child / "history"
    )
    fuzz(session, [*arguments, *directories])


class Job:
    """One process after another, until the time is over: each may ask to be replaced."""

    def __init__(self, options: argparse.Namespace, number: int, scratch: Path) -> None:
        self.options = options
        self.number = number
        self.scratch = scratch
        self.places: list[Path] = []
        self.ends = time.monotonic() + options.time
        self.code = 0
        self._start()

    def _start(self) -> None:
        options = self.options
        place = self.scratch / f"{self.number}.{len(self.places)}"
        place.mkdir()
        left = max(int(self.ends - time.monotonic()), 1)
        command = [
            sys.executable, "-m", "fuzz", options.target, "--child", str(place), "--time", str(left),
            "--runs", str(options.runs), "--findings", str(options.findings), "--corpus", str(options.corpus),
        ]  # fmt: skip
        if options.merge:
            command += ["--merge", str(options.merge)]
        if options.seed:
            command += ["--seed", str(options.seed + self.number + 1000 * len(self.places))]
        environment = os.environ | {"PYTHONPATH": str(ROOT.parent)}
        with (place / "log").open("wb") as log:
            self.process = subprocess.Popen(command, stderr=log, stdout=log, env=environment)
        self.places.append(place)

    def wait(self) -> None:
        """Wait for the end."""
        while True:
            self.code = self.process.wait()
            if self.code != TIRED or time.monotonic() > self.ends:
                return
            self._start()


def parent(options: argparse.Namespace) -> int:
    """Start the processes, wait, add up."""
    with tempfile.TemporaryDirectory(prefix="pyhv-fuzz-") as scratch:
        options.corpus = options.corpus or Path(scratch) / "corpus"
        for directory in (options.corpus, options.merge):
            if directory:
                directory.mkdir(parents=True, exist_ok=True)
        jobs = [Job(options, number, Path(scratch)) for number in range(options.jobs)]
        for job in jobs:
            job.wait()
        return summary(options, jobs)


def summary(options: argparse.Namespace, jobs: list[Job]) -> int:
    """Print what the processes did; 1 if anything was found."""
    executions, calls, first, last = 0, 0, 0, 0
    seconds = 0.0
    found: dict[str, str] = {}
    for place in (place for job in jobs for place in job.places):
        coverage = _COVERAGE.findall((place / "log").read_bytes())
        if coverage:
            first = first or int(coverage[0][1])
            last = max(last, int(coverage[-1][1]))
        if (place / "status").exists():
            status = json.loads((place / "status").read_text())
            seconds += status["seconds"] / len(jobs)
            executions += status["executions"]
            calls += status["calls"]
            found |= status["saved"]
    for job in jobs:
        if job.code not in (0, TIRED):
            found[f"the process ended with {job.code}"] = _crashed(options, job.places[-1])
            log = (job.places[-1] / "log").read_bytes()
            sys.stderr.write(log[-3000:].decode(errors="replace"))
    unit = make(options.target).unit
    rate = calls / seconds if seconds else 0
    print(
        f"{options.target}: {executions} executions, {calls} {unit}, {rate:.0f} {unit}/s,"
        f" features {first} -> {last}, {len(found)} findings"
    )
    for what, path in found.items():
        print(f"  {what}\n    python -m fuzz {options.target} {path}")
    return 1 if found else 0


def _crashed(options: argparse.Namespace, place: Path) -> str:
    """Keep the history of a process that died."""
    from fuzz.findings import save

    history = place / "history"
    if not history.exists():
        return "(it did not start)"
    return str(save(options.findings / options.target, history.read_bytes(), "process-died"))


if __name__ == "__main__":
    sys.exit(main())
