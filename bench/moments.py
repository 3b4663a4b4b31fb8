# SPDX-License-Identifier: GPL-2.0-only
"""What snapshots cost on a Linux guest of 128 MiB at its prompt, and what lives of domains leave behind.

snapshot, revert, fork    in this process, memory shared; 1,000 dirtied pages lie between
forks                     100 machines of one guest: time, and memory by /proc/self/smaps_rollup
save, restore             to a file, and from `pyhv restore` as a process to the shell's answer
lives                     2,000 guests made and ended one after the other: resident memory
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pyhv
from bench.report import Figure
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image

PAGES = 1000
FORKS = 100
LIVES = 2000


def _ms(action: Callable[[], object]) -> float:
    began = time.perf_counter()
    action()
    return (time.perf_counter() - began) * 1e3


def _kept_mib(field: str) -> float:
    text = Path("/proc/self/smaps_rollup").read_text(encoding="ascii")
    return next(int(line.split()[1]) / 1024 for line in text.splitlines() if line.startswith(f"{field}:"))


def linux(runs: int) -> list[Figure]:
    """The figures of a Linux guest; medians of `runs`."""
    found = []
    with pyhv.Machine(memory="160M", virtual_time=True) as machine:
        guest = machine.boot("debian", memory="128M")
        guest.expect(r"/ # ")
        found.append(Figure("first snapshot", _ms(machine.snapshot), "ms", 20))
        taken, reverted, forked = [], [], []
        for _ in range(runs):
            assert guest.run(f"dd if=/dev/zero of=/tmp/x bs=4096 count={PAGES} 2>/dev/null")
            taken.append(_ms(machine.snapshot))
            moment = machine.snapshot()
            assert guest.run(f"dd if=/dev/zero of=/tmp/y bs=4096 count={PAGES} 2>/dev/null")
            reverted.append(_ms(partial(machine.revert, moment)))
            forks: list[pyhv.Machine] = []
            forked.append(_ms(lambda: forks.append(machine.fork())))  # noqa: B023 - called at once
            forks[0].close()
        found.append(Figure(f"snapshot after {PAGES:,} dirtied pages", statistics.median(taken), "ms", 20))
        found.append(Figure(f"revert after {PAGES:,} dirtied pages", statistics.median(reverted), "ms", 20))
        found.append(Figure("fork, with its engine", statistics.median(forked), "ms", 50))
        found += _many_forks(machine)
        found += _file(machine.snapshot(), runs)
    return found


def _many_forks(machine: pyhv.Machine) -> list[Figure]:
    forks: list[pyhv.Machine] = []
    spent = _ms(lambda: forks.extend(machine.fork() for _ in range(FORKS)))
    for fork in forks:
        fork.run(seconds=0.01)
    kept = _kept_mib("Pss")
    for fork in forks:
        fork.close()
    return [
        Figure(f"{FORKS} forks", spent / 1e3, "s"),
        Figure(f"memory of {FORKS} forks and their parent", kept, "MiB", 1536),
    ]


def _file(snapshot: pyhv.Snapshot, runs: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "debian.snap"
        saved = _ms(lambda: snapshot.save(path))
        loaded = statistics.median(_ms(lambda: pyhv.load(path).close()) for _ in range(runs))
        command = [str(Path(sys.executable).with_name("pyhv")), "restore", str(path)]
        process = _ms(
            lambda: subprocess.run(command, input=b"poweroff -f\n", capture_output=True, check=True)
        )
        size = path.stat().st_size / (1 << 20)
    return [
        Figure("save", saved, "ms"),
        Figure("its file", size, "MiB"),
        Figure("load", loaded, "ms", 500),
        Figure("pyhv restore, to the guest's end", process, "ms"),
    ]


def lives() -> list[Figure]:
    """Resident memory after 100 guests that came and went, and after 2,000."""
    image = load_image(build_builtin("hello"), "hello")
    kept = {}
    with pyhv.Machine(memory="16M", virtual_time=True) as machine:
        began = time.perf_counter()
        for number in range(1, LIVES + 1):
            assert machine.boot(image, memory="4M").wait().reason == "poweroff"
            if number in (100, LIVES):
                kept[number] = _kept_mib("Rss")
        spent = time.perf_counter() - began
    return [
        Figure(f"{LIVES:,} guests, each", spent / LIVES * 1e3, "ms"),
        Figure("resident memory after 100", kept[100], "MiB"),
        Figure(f"resident memory after {LIVES:,}", kept[LIVES], "MiB", kept[100] * 1.1),
    ]
