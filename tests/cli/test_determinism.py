# SPDX-License-Identifier: GPL-2.0-only
"""What a run in virtual time depends on is its images, configuration, seed and input, and nothing else."""

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from lanes import require

from pyhv.lane import NATIVE, PLAIN, SWITCH

pytestmark = pytest.mark.promise("T-1")

ROOT = Path(__file__).parents[2]
GUESTS = ("hello", "ticker", "pages", "usermode", "hello32", "usermode32", "ping", "pong")
NEWER = ("3.14", "3.13", "3.12")
OTHER = "PYHV_OTHER_PYTHON"
"""Environment variable: an interpreter of another version, with pyhv's dependencies."""


@dataclass(frozen=True)
class Difference:
    """What is other than it was when the run was recorded."""

    environment: dict[str, str] = field(default_factory=dict)
    options: tuple[str, ...] = ()
    elsewhere: bool = False
    python: str = sys.executable


def replay(path: Path, difference: Difference, digest: Path) -> tuple[bytes, str]:
    """Digest and output of a replay in a process of its own."""
    inherited = {name: value for name, value in os.environ.items() if name != SWITCH}
    said = subprocess.run(
        [difference.python, "-m", "pyhv.cli.main", "replay", str(path), "--verify", "--digest", str(digest),
         *difference.options],
        env={**inherited, "PYTHONPATH": str(ROOT), **difference.environment},
        cwd="/" if difference.elsewhere else ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    return digest.read_bytes(), said.stdout


@pytest.fixture(scope="module")
def recorded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, tuple[bytes, str]]:
    """A recording, and what it was like in the very process that recorded."""
    folder = tmp_path_factory.mktemp("recorded")
    path, digest = folder / "run.rec", folder / "digest"
    said = subprocess.run(
        [sys.executable, "-m", "pyhv.cli.main", "boot", *GUESTS, "--virtual-time", "--seed", "5",
         "--record", str(path), "--digest", str(digest)],
        env={**os.environ, "PYTHONHASHSEED": "0"}, cwd=ROOT, capture_output=True, text=True, timeout=200,
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    return path, (digest.read_bytes(), said.stdout)


DIFFERENCES = {
    "hashes": Difference({"PYTHONHASHSEED": "1"}),
    "random hashes": Difference({"PYTHONHASHSEED": "random"}),
    "environment": Difference(
        {"TZ": "Asia/Tokyo", "LC_ALL": "C", "HOME": "/proc/none", "USER": "nobody", "COLUMNS": "40"}
    ),
    "directory": Difference(elsewhere=True),
    "engine": Difference(options=("--no-engine-tuning",)),
    "optimized": Difference({"PYTHONOPTIMIZE": "1"}),
    "measured": Difference(options=("--stats",)),
    "plain lane": Difference({SWITCH: PLAIN}),
}


@pytest.mark.parametrize("what", DIFFERENCES)
def test_it_does_not_depend_on(recorded: tuple[Path, tuple[bytes, str]], tmp_path: Path, what: str) -> None:
    path, run = recorded
    assert replay(path, DIFFERENCES[what], tmp_path / "digest") == run


def test_it_does_not_depend_on_the_native_lane(
    recorded: tuple[Path, tuple[bytes, str]], tmp_path: Path
) -> None:
    require(NATIVE)
    path, run = recorded
    assert replay(path, Difference({SWITCH: NATIVE}), tmp_path / "digest") == run


@contextmanager
def load() -> Iterator[None]:
    """Keep every processor of the host busy."""
    burning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(2 * (os.cpu_count() or 1))
    ]
    try:
        yield
    finally:
        for one in burning:
            one.kill()
            one.wait()


def test_it_does_not_depend_on_the_hosts_load(
    recorded: tuple[Path, tuple[bytes, str]], tmp_path: Path
) -> None:
    path, run = recorded
    with load():
        assert replay(path, Difference(), tmp_path / "digest") == run


@functools.cache
def other_python() -> str | None:
    """An interpreter of another version that has pyhv's dependencies."""
    named = os.environ.get(OTHER)
    found = [shutil.which(f"python{version}") for version in NEWER]
    for python in [named] if named else found:
        if python is not None and python != sys.executable:
            needed = "unicorn, capstone, keystone, numpy, elftools, lz4, zstandard, msgpack, click, rich"
            said = subprocess.run(
                [python, "-c", f"import sys, {needed}; print(sys.version_info[:2])"],
                capture_output=True,
                text=True,
            )
            if said.returncode == 0 and said.stdout.strip() != str(sys.version_info[:2]):
                return python
    return None


def test_it_does_not_depend_on_the_version_of_python(
    recorded: tuple[Path, tuple[bytes, str]], tmp_path: Path
) -> None:
    python = other_python()
    if python is None and "CI" in os.environ:
        pytest.fail(f"{OTHER} names no Python of another version with pyhv's dependencies")
    if python is None:
        pytest.skip(f"no Python of another version has pyhv's dependencies; {OTHER} may name one")
    path, run = recorded
    assert replay(path, Difference({SWITCH: PLAIN}, python=python), tmp_path / "digest") == run
