# SPDX-License-Identifier: GPL-2.0-only
"""What a Linux costs that has nothing to do.

memory     resident memory of one more guest of 128 MiB at its prompt, beyond the frames it touched: what the
           engine has translated and its tables, the hypervisor's columns, Python's objects
sleep      `sleep 1000` in virtual time: 8,000 ticks of the guest's timer
"""

import re
import statistics
import time
from pathlib import Path

import pyhv
from bench.report import Figure

GUESTS = 4
SLEEP_S = 1000


def _resident_kib(first: int, size: int) -> tuple[int, int]:
    """KiB of this process' resident memory, inside a range of addresses and outside."""
    inside = outside = 0
    within = False
    for line in Path("/proc/self/smaps").read_text(encoding="ascii", errors="replace").splitlines():
        if (span := re.match(r"([0-9a-f]+)-([0-9a-f]+) ", line)) is not None:
            within = first <= int(span[1], 16) and int(span[2], 16) <= first + size
        elif line.startswith("Rss:"):
            kib = int(line.split()[1])
            inside, outside = (inside + kib, outside) if within else (inside, outside + kib)
    return inside, outside


def memory() -> list[Figure]:
    """Of each guest but the first, which also pays for what all share; their median."""
    more: list[float] = []
    touched: list[float] = []
    with pyhv.Machine(memory=f"{GUESTS * 128 + 64}M", virtual_time=True) as machine:
        ram = machine.hypervisor.ram
        before = _resident_kib(ram.address, ram.size)
        for number in range(GUESTS):
            machine.boot("debian", memory="128M", name=f"idle-{number}").expect(r"/ # ")
            now = _resident_kib(ram.address, ram.size)
            touched.append((now[0] - before[0]) / 1024)
            more.append((now[1] - before[1]) / 1024)
            before = now
    return [
        Figure("one more idle Linux: its own memory", statistics.median(touched[1:]), "MiB"),
        Figure("one more idle Linux: beyond that", statistics.median(more[1:]), "MiB", 40),
    ]


def sleep() -> list[Figure]:
    """Processor time of `sleep 1000`."""
    with pyhv.Machine(memory="160M", virtual_time=True) as machine:
        guest = machine.boot("debian", memory="128M")
        guest.expect(r"/ # ")
        began = time.process_time()
        guest.run(f"sleep {SLEEP_S}", timeout=2 * SLEEP_S)
        spent = time.process_time() - began
    return [Figure(f"sleep {SLEEP_S} in virtual time", spent, "s", 5)]
