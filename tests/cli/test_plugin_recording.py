# SPDX-License-Identifier: GPL-2.0-only
"""Recordings of tests: which are kept, that they are the run, what is said where a test does otherwise."""

import re
import shlex
from pathlib import Path

import pytest
from click.testing import CliRunner
from plugin_sessions import run

from pyhv.cli.main import main

pytest_plugins = ["pytester"]

TESTS = """
import os
import pytest

ECHO = '''
.include "xen.inc"
.include "kernel.inc"
.include "traps.inc"
.include "events.inc"
.text
_start:
    kernel_entry
    call traps_init
    call events_init
    print "ready\\\\n"
.look:
    mov rbx, [rip + console_page]
    mov eax, [rbx + 3072]                               # in_cons
    cmp eax, [rbx + 3076]                               # in_prod
    je .wait
    and eax, 1023
    movzx edi, byte ptr [rbx + rax]
    inc dword ptr [rbx + 3072]
    cmp edi, '.'
    je .over
    call putc
    call console_flush
    jmp .look
.wait:
    mov edi, SCHEDOP_poll
    lea rsi, [rip + request]
    hypercall sched_op
    mov ecx, [rip + console_port]
    btr qword ptr [rip + shared_info + SHARED_INFO_evtchn_pending], rcx
    jmp .look
.over:
    print "\\\\n"
    succeed
.data
.balign 8
request:
    .quad console_port
    .quad 1
    .quad 0
'''

def typing(guest):
    guest.send(os.environ.get("TYPED", "some words"))
    guest.expect("words")
    guest.send(" more.")

@pytest.mark.guest(ECHO, ready="ready")
def test_fresh(guest):
    typing(guest)
    assert guest.wait().reason == "crash"

@pytest.mark.guest(ECHO, ready="ready")
class TestBooted:
    def test_first(self, booted_guest):
        typing(booted_guest)
        assert booted_guest.wait().reason == "poweroff"

    def test_second(self, booted_guest):
        typing(booted_guest)
        assert booted_guest.wait().reason == "crash"

@pytest.mark.guest("ticker")
def test_faults(guest, inject):
    inject.timer(late=0.005)
    guest.expect("tick 9")

@pytest.mark.guest("ticker")
@pytest.mark.pyhv_machine(virtual_time=False)
def test_real(guest):
    assert guest.wait().reason == "crash"
"""
FILE = "test_them.py"


@pytest.fixture
def tests(pytester: pytest.Pytester) -> pytest.Pytester:
    (pytester.path / FILE).write_text(TESTS)
    return pytester


def kept(pytester: pytest.Pytester, folder: str = "pyhv-recordings") -> list[str]:
    return sorted(path.name for path in (pytester.path / folder).glob("*"))


def commands(done: pytest.RunResult) -> list[list[str]]:
    """Those that the reports name for having the run again."""
    lines = re.findall(r"^((?:pytest|pyhv replay) .*?)(?:  \(.*)?$", done.stdout.str(), re.MULTILINE)
    return [shlex.split(line) for line in lines]


def test_nothing_is_recorded_unless_asked_for(tests: pytest.Pytester) -> None:
    run(tests).assert_outcomes(passed=1, failed=4)
    assert kept(tests) == []


def test_failures_are_kept_and_are_the_run(tests: pytest.Pytester) -> None:
    done = run(tests, "--pyhv-record", "--pyhv-seed=3")
    done.assert_outcomes(passed=1, failed=4)
    names = kept(tests)
    assert [re.sub(r"-\w+\.(rec|snap)$", r".\1", name) for name in names] == [
        "booted.snap", "test_them.py-TestBooted-test_second.rec", "test_them.py-test_faults.rec",
        "test_them.py-test_fresh.rec", "test_them.py-test_real.rec",
    ]  # fmt: skip
    again = commands(done)
    assert len(again) == 7, "a test with faults only pytest can have again"
    for command, *arguments in again:
        if command == "pyhv":
            replayed = CliRunner().invoke(main, [*arguments, "--verify"])
            assert replayed.exit_code == 0, replayed.output
            assert "checkpoints are the same" in replayed.output
        elif any("--pyhv-replay" in argument for argument in arguments):
            repeated = run(tests, *arguments)
            repeated.assert_outcomes(failed=1)
            repeated.stdout.fnmatch_lines(
                ["*= pyhv: replay =*", "the same run: * inputs, each at its moment"]
            )
    assert kept(tests) == names, "a replay is not recorded"


def test_all_are_kept(tests: pytest.Pytester) -> None:
    tests.makeini("[pytest]\npyhv_record = all\npyhv_record_dir = here/and there\n")
    run(tests, "-k", "Booted").assert_outcomes(passed=1, failed=1)
    assert sum(name.endswith(".rec") for name in kept(tests, "here/and there")) == 2


def test_without_failures_nothing_is_left(tests: pytest.Pytester) -> None:
    run(tests, "-k", "first", "--pyhv-record=failures").assert_outcomes(passed=1)
    assert kept(tests) == []


def test_a_run_that_is_another_one(tests: pytest.Pytester, monkeypatch: pytest.MonkeyPatch) -> None:
    run(tests, "-k", "second", "--pyhv-record")
    (recording,) = (tests.path / "pyhv-recordings").glob("*.rec")
    monkeypatch.setenv("TYPED", "other words")
    done = run(tests, f"--pyhv-replay={recording}")
    done.assert_outcomes(failed=1, deselected=4)
    done.stdout.fnmatch_lines(
        [
            "*Diverged: the run differs: input *other words* at 0.*, and in the recording input *some words*",
            "not the same run: input *",
        ]
    )


@pytest.mark.parametrize("content", [None, b"", b"nonsense"])
def test_no_recording(tests: pytest.Pytester, content: bytes | None) -> None:
    if content is not None:
        (tests.path / "x.rec").write_bytes(content)
    done = run(tests, "--pyhv-replay=x.rec")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert re.search(r"--pyhv-replay: .*x\.rec", done.stderr.str())


def test_a_recording_that_is_of_no_test_or_of_another(tests: pytest.Pytester, tmp_path: Path) -> None:
    booted = CliRunner().invoke(
        main,
        ["boot", "hello", "--virtual-time", "--record", str(tests.path / "boot.rec"), "--console", "none"],
    )
    assert booted.exit_code == 0, booted.output
    done = run(tests, "--pyhv-replay=boot.rec")
    assert "is no recording of a test; try pyhv replay" in done.stderr.str()
    run(tests, "-k", "second", "--pyhv-record")
    (recording,) = (tests.path / "pyhv-recordings").glob("*.rec")
    done = run(tests, f"--pyhv-replay={recording}", f"{FILE}::test_fresh")
    assert done.ret == pytest.ExitCode.USAGE_ERROR
    assert "which was not collected" in done.stderr.str()


def test_kernels_that_judge_themselves(pytester: pytest.Pytester) -> None:
    (pytester.path / "bad.S").write_text(
        '.include "xen.inc"\n.include "kernel.inc"\n.text\n_start:\nkernel_entry\nfail "it is so"\n'
    )
    done = run(pytester, "bad.S", "--pyhv-record")
    done.assert_outcomes(failed=1)
    (first, second) = commands(done)
    run(pytester, *first[1:]).stdout.fnmatch_lines(["the same run: 1 inputs, each at its moment"])
    replayed = CliRunner().invoke(main, second[1:])
    assert "FAILURE: it is so" in replayed.output
