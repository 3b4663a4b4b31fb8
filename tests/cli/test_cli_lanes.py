# SPDX-License-Identifier: GPL-2.0-only
"""The lanes from the command line: which one it is, what is refused, and that a run is the same in each."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from lanes import pyhv, require, require_native

from pyhv.cli.doctor import PLAIN_WIDTH
from pyhv.lane import CHECKED, NATIVE, PLAIN, SWITCH

GUESTS = (
    "hello", "ticker", "pages", "usermode", "hello32", "pages32", "usermode32", "traps32", "debug", "fifo",
    "linux32", "opcodes", "intruder",
)  # fmt: skip
EXITS = 2000
"""What they make together, at least."""


def row(output: str) -> str:
    (line,) = (line for line in output.splitlines() if line.startswith("  native lane  "))
    assert len(line) <= PLAIN_WIDTH
    return " ".join(line.split())


def test_doctor_says_that_it_is_switched_off() -> None:
    said = pyhv("doctor", within=PLAIN)
    assert said.returncode == 0
    why = "exits are handled by interpreted Python; PYHV_LANE=plain is set"
    assert row(said.stdout) == f"native lane no {why}"


def test_doctor_says_that_it_is_active() -> None:
    require_native()
    said = pyhv("doctor", within=NATIVE)
    assert said.returncode == 0
    assert row(said.stdout) == "native lane yes exits are handled by compiled code: the native lane"


def test_a_lane_that_does_not_exist_is_refused_in_one_sentence() -> None:
    said = pyhv("boot", "hello", within="fast")
    assert said.returncode == 4
    assert said.stdout == ""
    assert said.stderr == "pyhv: PYHV_LANE is 'fast', but there are only the lanes plain, native, checked.\n"
    said = pyhv("doctor", within="fast")
    assert said.returncode == 4
    assert row(said.stdout).startswith("native lane FAILED PYHV_LANE is 'fast'")


def digest(path: Path, lane: str, *arguments: str) -> bytes:
    said = pyhv("boot", *arguments, "--virtual-time", "--seed", "1", "--digest", str(path), within=lane)
    assert said.returncode == 0, said.stderr
    return path.read_bytes()


@pytest.mark.promise("P-6")
@pytest.mark.parametrize("options", [(), ("--scheduler", "rr")], ids=["credit", "rr"])
def test_a_run_is_the_same_in_both_lanes(tmp_path: Path, options: tuple[str, ...]) -> None:
    """Every exit, with all registers, at the same nanosecond."""
    require_native()
    native = digest(tmp_path / "native", NATIVE, *GUESTS, *options)
    assert int(native.split()[1]) > EXITS
    assert native == digest(tmp_path / "plain", PLAIN, *GUESTS, *options)


BEYOND = {
    "a word": "physical.write_u64(ram.size, 1)",
    "half a word": "physical.write_u32(ram.size + 4, 1)",
    "a negative index": "page.write_u8(2**64 - 1 - page.base, 1)",
}
"""Stores that no caller makes, since each has checked his address before."""


@pytest.mark.parametrize("store", BEYOND.values(), ids=BEYOND)
def test_the_checked_lane_ends_with_a_message_where_memory_does(store: str) -> None:
    require(CHECKED)
    program = f"""
from pyhv.testing.guest_machine import paused
with paused() as guest:
    physical = guest.machine.physical
    ram, page = physical.ram, guest.vcpu.info.page
    print(physical.read(0, 8) and "begun", flush=True)
    {store}
    print("stored", flush=True)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {SWITCH: CHECKED}, capture_output=True, text=True
    )
    assert done.returncode == -signal.SIGABRT
    assert done.stdout == "begun\n"
    assert "pyhv: the checked lane: index " in done.stderr
    assert "an index into memory is beyond its end" in done.stderr
