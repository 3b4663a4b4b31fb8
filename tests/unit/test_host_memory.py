# SPDX-License-Identifier: GPL-2.0-only
"""Large blocks go back to the host when they are freed, whatever was allocated behind them."""

import subprocess
import sys

SCRIPT = """
from pathlib import Path
from pyhv.cpu.host import give_back_large_blocks

def resident():
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096

assert not {asked} or give_back_large_blocks()
bytes(30 << 20)
before, kept = resident(), []
for _ in range(2):
    block = b"y" * (24 << 20)
    kept.append([bytes(1000) for _ in range(2000)])
    del block
print(resident() - before)
"""


def grown(asked: bool) -> int:
    command = [sys.executable, "-c", SCRIPT.replace("{asked}", f"{asked}")]
    return int(subprocess.run(command, capture_output=True, text=True, check=True).stdout)


def test_large_blocks_are_given_back() -> None:
    assert grown(asked=True) < 12 << 20 < grown(asked=False)
