# SPDX-License-Identifier: GPL-2.0-only
"""`--record` and `pyhv replay`: the same output, messages and exit code again, in processes of their own."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from lanes import pyhv as command
from lanes import require_native
from listening_guest import listener

from pyhv.lane import NATIVE, PLAIN
from pyhv.testing.guest_machine import HEADER, START, image_of

FAILS = HEADER + START + '    fail "it was meant to"\n'
HANGS = HEADER + START + "    jmp .\n"


@pytest.fixture
def kernel(tmp_path: Path) -> Path:
    path = tmp_path / "listener.img"
    path.write_bytes(listener())
    return path


def of_two_runs(path: Path, *arguments: str) -> tuple[subprocess.CompletedProcess[str], ...]:
    ran = command("boot", *arguments, "--virtual-time", "--record", str(path))
    assert ran.stderr.endswith(f"pyhv: recorded: pyhv replay {path}\n"), ran.stderr
    return ran, command("replay", str(path), "--verify")


@pytest.mark.promise("T-15")
@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["hello"], 0),
        (["ping", "pong", "ticker", "--seed", "7", "--scheduler", "rr"], 0),
        (["hello", "hello32", "--count", "2", "--weight", "100", "--append", "some words"], 0),
        (["intruder", "--timeout", "0.00002"], 124),
    ],
)
def test_it_prints_and_returns_the_same(tmp_path: Path, arguments: list[str], code: int) -> None:
    ran, again = of_two_runs(tmp_path / "run.rec", *arguments)
    assert (ran.returncode, again.returncode) == (code, code)
    assert again.stdout == ran.stdout
    said = ran.stderr.splitlines()[:-1]
    assert [line for line in again.stderr.splitlines() if "checkpoint" not in line] == said
    assert re.search(r"^pyhv: [1-9]\d* checkpoints are the same$", again.stderr, re.MULTILINE)


def test_verdicts_and_ends_are_those_of_the_recorded_run(tmp_path: Path) -> None:
    fails, hangs = tmp_path / "fails", tmp_path / "hangs"
    fails.write_bytes(image_of(FAILS))
    hangs.write_bytes(image_of(HANGS))
    for number, (arguments, code) in enumerate(
        [([str(fails), "--verdict", "xtf"], 5), ([str(hangs), "--timeout", "0.01"], 124)]
    ):
        ran, again = of_two_runs(tmp_path / f"{number}.rec", *arguments)
        assert (ran.returncode, again.returncode) == (code, code)
        assert (again.stdout, again.stderr.splitlines()[1:]) == (ran.stdout, ran.stderr.splitlines()[:-1])


@pytest.mark.promise("T-15", "T-1")
@pytest.mark.parametrize("lane", [NATIVE, PLAIN])
def test_what_was_typed_comes_in_again(tmp_path: Path, kernel: Path, lane: str) -> None:
    """At the same moments, in the other lane too, whatever PYTHONHASHSEED is."""
    if lane == NATIVE:
        require_native()
    path = tmp_path / "run.rec"
    arguments = ["boot", str(kernel), "--memory", "8", "--virtual-time", "--record", str(path)]
    typing = pexpect.spawn(
        sys.executable, ["-m", "pyhv.cli.main", *arguments, "--digest", str(tmp_path / "a")], timeout=30,
        env={**os.environ, "PYTHONHASHSEED": "1"},
    )  # fmt: skip
    typing.expect("leaves")
    printed = b""
    for key in b"typed":
        typing.send(bytes([key]))
        typing.expect(rb"0x[0-9a-f]{8,16}\r\n")
        printed += typing.after
    typing.send("q")
    typing.expect(pexpect.EOF)
    typing.wait()
    assert typing.exitstatus == 0
    said = command(
        "replay", str(path), "--verify", "--digest", str(tmp_path / "b"), within=lane,
        environment={"PYTHONHASHSEED": "2"},
    )  # fmt: skip
    assert said.returncode == 0, said.stderr
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert said.stdout.encode().startswith(printed.replace(b"\r\n", b"\n"))


def test_it_stops_where_it_is_told(tmp_path: Path) -> None:
    path = tmp_path / "run.rec"
    assert command("boot", "ticker", "--virtual-time", "--record", str(path)).returncode == 0
    said = command("replay", str(path), "--to", "0.025s")
    assert said.returncode == 0
    assert "tick 2" in said.stdout
    assert "tick 3" not in said.stdout
    assert said.stderr == "pyhv: stopped at 0.025000000 s, exit 28\n"
    said = command("replay", str(path), "--to", "30")
    assert re.fullmatch(r"pyhv: stopped at 0\.\d{9} s, exit 30\n", said.stderr)
    said = command("replay", str(path), "--to", "soon")
    assert said.returncode == 2
    assert "neither an exit's number (100000) nor a time (2.5s)" in said.stderr


@pytest.mark.promise("T-16")
def test_what_is_wrong_is_one_sentence(tmp_path: Path, kernel: Path) -> None:
    path = tmp_path / "run.rec"
    assert (
        command("boot", str(kernel), "--virtual-time", "--timeout", "0.01", "--record", str(path)).returncode
        == 124
    )
    whole = path.read_bytes()

    def told(code: int, *arguments: str) -> str:
        said = command("replay", str(path), *arguments)
        assert said.returncode == code, said.stderr
        assert said.stderr.count("\n") == 1
        assert "Traceback" not in said.stderr
        return said.stderr

    path.write_bytes(whole[: len(whole) // 2])
    assert "the recording ends here, at 0.0" in told(130)
    path.write_bytes(whole[:5])
    assert f"{path}: is truncated" in told(4)
    path.write_bytes(whole[:40] + b"\x55" + whole[41:])
    assert f"{path}: is damaged" in told(4)
    path.write_bytes(whole)
    kernel.write_bytes(image_of(HANGS))
    assert "the kernel of listener" in told(4)
    assert "has changed since it was recorded" in told(4)
    path.unlink()
    assert "No such file" in told(4)
    said = command("boot", "hello", "--virtual-time", "--record", str(tmp_path / "no" / "where"))
    assert said.returncode == 4
    assert "cannot be created for the recording" in said.stderr


def test_a_restored_machine_is_recorded_too(tmp_path: Path) -> None:
    moment, path = tmp_path / "ticker.snap", tmp_path / "run.rec"
    assert command(
        "boot", "ticker", "--virtual-time", "--save", str(moment), "--save-when", "tick 2"
    ).returncode == 0  # fmt: skip
    ran = command("restore", str(moment), "--record", str(path))
    again = command("replay", str(path), "--verify")
    assert (again.returncode, again.stdout) == (ran.returncode, ran.stdout) == (0, ran.stdout)
    assert "tick 5" in again.stdout
    said = command("restore", str(moment), "--record", str(path), "--count", "2")
    assert said.returncode == 2
