# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv boot --gdb`: the command line that it prints starts a gdb, which decides what the guests do."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pexpect
import pytest
from gdb import require_gdb

PYHV = [str(Path(sys.executable).with_name("pyhv"))]
_SECONDS = 60


def session(options: list[str], commands: list[str]) -> tuple[int, str, str, str]:
    """Boot with --gdb and run the command that is printed; pyhv's exit code and output, and gdb's output."""
    require_gdb()
    boot = subprocess.Popen(
        [*PYHV, "boot", *options], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert boot.stderr is not None
    try:
        line = boot.stderr.readline()
        found = re.fullmatch(r"pyhv: waiting for gdb: (gdb .*)\n", line)
        assert found is not None, line
        words = shlex.split(found[1])
        extra = [word for command in commands for word in ("-ex", command)]
        gdb = subprocess.run(
            [words[0], "-nx", "-batch", *words[1:], *extra],
            capture_output=True, text=True, timeout=_SECONDS, stdin=subprocess.DEVNULL,
            env={**os.environ, "LC_ALL": "C"},
        )  # fmt: skip
        output, errors = boot.communicate(timeout=_SECONDS)
    finally:
        boot.kill()
        boot.wait()
    return boot.returncode, output, errors, gdb.stdout + gdb.stderr


def test_the_guest_waits_at_its_first_instruction() -> None:
    code, output, errors, told = session(["hello", "--gdb"], ["x/i $pc", "continue"])
    assert re.search(r"=> 0x[0-9a-f]+ <_start>:\s+cld", told)
    assert "exited normally" in told
    assert (code, errors) == (0, "")
    assert output.endswith("SUCCESS\n")


@pytest.mark.parametrize("time", ["--virtual-time", "--real-time"])
def test_backwards(time: str, tmp_path: Path) -> None:
    code, output, _, told = session(
        ["ticker", time, f"--gdb=unix:{tmp_path}/socket"],
        ["break *put_dec", "continue", "continue", "print $rdi", "reverse-continue", "print $rdi",
         "reverse-stepi", "stepi", "print $rdi", "delete", "continue"],
    )  # fmt: skip
    values = re.findall(r"^\$\d = (\d+)$", told, re.MULTILINE)
    assert len(values) == 3, told
    assert values[1] == values[2] != values[0]
    assert "exited normally" in told
    assert code == 0
    assert output.endswith("SUCCESS\n")


def test_a_detached_guest_runs_on() -> None:
    code, output, _, told = session(["hello", "hello32", "--gdb"], ["detach"])
    assert "detached" in told
    assert code == 0
    assert output.count("SUCCESS") == 2


def test_a_killed_guest_is_gone() -> None:
    code, output, errors, _ = session(["hello", "--gdb"], ["kill"])
    assert (code, output) == (9, "")
    assert "destroyed" in errors


def test_several_guests_are_inferiors() -> None:
    code, output, _, told = session(
        ["hello", "hello32", "--gdb"],
        ["monitor guests", "detach"],
    )
    assert "1  hello, 1 vCPUs\n2  hello32, 1 vCPUs\n" in told
    assert (code, output.count("SUCCESS")) == (0, 2)


def test_without_gdb_ctrl_bracket_leaves() -> None:
    child = pexpect.spawn(PYHV[0], [*PYHV[1:], "boot", "hello", "--gdb"], timeout=_SECONDS, encoding="utf-8")
    child.expect("waiting for gdb")
    child.expect("leaves")
    child.send("\x1d")
    child.expect(pexpect.EOF)
    child.close()
    assert child.exitstatus == 130


@pytest.mark.parametrize(
    ("options", "why"),
    [
        (["hello", "--gdb=nonsense"], "is no address for gdb"),
        (["--gdb", "hello"], "is no address for gdb"),
        (["hello", "--gdb=unix:/proc/none/socket"], "gdb cannot be served at unix:/proc/none/socket"),
        (["hello", "--gdb=192.0.2.1:1"], "gdb cannot be served at 192.0.2.1:1"),
    ],
)
def test_what_cannot_be_is_one_sentence(options: list[str], why: str) -> None:
    done = subprocess.run([*PYHV, "boot", *options], capture_output=True, text=True, timeout=_SECONDS)
    assert done.returncode == 4
    assert why in done.stderr
    assert "Traceback" not in done.stderr
