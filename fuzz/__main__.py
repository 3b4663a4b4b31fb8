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
import traceback
from pathlib import Path

from fuzz.names import TARGETS, make

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
    parser.add_argument("--merge", type=Path, metavar="DIR", help="copy what --corpus adds to coverage to DIR")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
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
    from fuzz.session import Session, fuzz

    arguments = [
        f"-max_total_time={options.time}", f"-runs={options.runs}", "-timeout=100000", "-rss_limit_mb=3000",
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


def parent(options: argparse.Namespace) -> int:
    """Start the processes, wait, add up."""
    for directory in (options.corpus, options.merge):
        if directory:
            directory.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="pyhv-fuzz-") as scratch:
        places = [Path(scratch) / str(number) for number in range(options.jobs)]
        running = []
        for number, place in enumerate(places):
            place.mkdir()
            arguments = [*sys.argv[1:], "--child", str(place)]
            if options.seed:
                arguments += ["--seed", str(options.seed + number)]
            environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT.parent), *sys.path])}
            log = (place / "log").open("wb")
            command = [sys.executable, "-m", "fuzz", *arguments]
            running.append(subprocess.Popen(command, stderr=log, stdout=log, env=environment))
        try:
            codes = [process.wait() for process in running]
        except KeyboardInterrupt:
            codes = [process.wait() for process in running]
        return summary(options, places, codes)


def summary(options: argparse.Namespace, places: list[Path], codes: list[int]) -> int:
    """Print what the processes did; 1 if anything was found."""
    seconds, executions, calls, first, last = 0.0, 0, 0, 0, 0
    found: dict[str, str] = {}
    for place, code in zip(places, codes, strict=True):
        log = (place / "log").read_bytes()
        coverage = _COVERAGE.findall(log)
        if coverage:
            first, last = max(first, int(coverage[0][1])), max(last, int(coverage[-1][1]))
        if (place / "status").exists():
            status = json.loads((place / "status").read_text())
            seconds = max(seconds, status["seconds"])
            executions += status["executions"]
            calls += status["calls"]
            found |= status["saved"]
        if code not in (0, 1) or not coverage:
            found[f"the process ended with {code}"] = _crashed(options, place)
            sys.stderr.write(log[-3000:].decode(errors="replace"))
    target = make(options.target) if executions else None
    unit = target.unit if target else "steps"
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
