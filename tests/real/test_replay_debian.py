# SPDX-License-Identifier: GPL-2.0-only
"""A person's session with Debian's Linux, recorded and had again: in both lanes, on either engine."""

import os
import random
import sys
import time
from pathlib import Path

import pexpect
import pytest
from lanes import pyhv as command
from lanes import require_native

import pyhv
from pyhv.lane import NATIVE, PLAIN, SWITCH

pytestmark = [pytest.mark.debian, pytest.mark.promise("T-15")]

PROMPT = "/ # "
COMMANDS = (
    "uname -a", "ls -l /proc/self", "i=0; while [ $i -lt 500 ]; do i=$((i+1)); done; echo done",
    "cat /proc/interrupts", "sleep 1; date",
)  # fmt: skip
MOST_BYTES = 200_000
"""Of a minute's recording."""


def session(path: Path, digest: Path | None, *options: str, lane: str = NATIVE) -> str:
    """Boot, type with a person's pauses, and leave by power-off; what was printed."""
    arguments = ["boot", "debian", "--append", "quiet", *options, "--record", str(path)]
    if digest is not None:
        arguments += ["--digest", str(digest)]
    chance = random.Random(7)
    person = pexpect.spawn(
        sys.executable, ["-m", "pyhv.cli.main", *arguments], timeout=100, echo=False, encoding="utf-8",
        env={**os.environ, SWITCH: lane},
    )  # fmt: skip
    printed: str = ""
    person.expect(PROMPT)
    for line in [*COMMANDS, "exit"]:
        printed += f"{person.before}{person.after}"
        for key in line + "\r":
            person.send(key)
            time.sleep(chance.random() * 0.05)
        person.expect(PROMPT if line != "exit" else pexpect.EOF)
    person.wait()
    assert person.exitstatus == 0
    printed += str(person.before)
    return printed.replace("\r", "")


def test_a_session_is_had_again(tmp_path: Path) -> None:
    require_native()
    path, digest = tmp_path / "run.rec", tmp_path / "digest"
    printed = session(path, digest, "--virtual-time", lane=NATIVE)
    assert path.stat().st_size < MOST_BYTES
    for lane, options in ((NATIVE, ["--no-engine-tuning"]), (PLAIN, [])):
        again = tmp_path / f"again-{lane}"
        said = command("replay", str(path), "--verify", "--digest", str(again), *options, within=lane)
        assert said.returncode == 0, said.stderr
        assert "checkpoints are the same" in said.stderr
        assert again.read_bytes() == digest.read_bytes()
        assert said.stdout.replace("\r", "") in printed, "but for what pyhv itself has said at the terminal"


@pytest.mark.promise("T-18")
def test_a_session_in_real_time_is_had_again(tmp_path: Path) -> None:
    require_native()
    path = tmp_path / "run.rec"
    printed = session(path, None)
    assert path.stat().st_size < MOST_BYTES
    for lane, options in ((NATIVE, []), (PLAIN, ["--no-engine-tuning"])):
        said = command("replay", str(path), "--verify", *options, within=lane)
        assert said.returncode == 0, said.stderr
        assert said.stdout.replace("\r", "") in printed


def test_a_session_cut_off_is_had_again_up_to_there(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    session(path, None, "--virtual-time")
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 3 // 4])
    said = command("replay", str(path), "--verify")
    assert said.returncode == 130
    assert "the recording ends here" in said.stderr


@pytest.mark.promise("T-17")
def test_a_boot_goes_back() -> None:
    """A step back takes less than a second anywhere in a boot, and the boot goes on as it did."""
    with pyhv.Machine(memory="256M", virtual_time=True, history=True) as machine:
        linux = machine.boot("debian", memory="128M", append="quiet")
        took = []
        for moment in (0.4, 0.9, 1.5):
            machine.run(seconds=moment - machine.time)
            for _ in range(3):
                began = time.process_time()
                before = machine.position
                assert machine.step_back() < before
                took.append(time.process_time() - began)
        linux.expect(PROMPT)
        assert sorted(took)[len(took) // 2] < 1
        there = machine.position
        stack = linux.registers.rsp
        found = linux.who_wrote(stack)
        assert found is not None
        assert found.position <= there == machine.position
        assert linux.run("echo it goes on").output == "it goes on\n"
