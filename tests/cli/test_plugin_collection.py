# SPDX-License-Identifier: GPL-2.0-only
"""Kernels as items of pytest: which files are collected, how they are booted, what their verdicts mean."""

from pathlib import Path

import pytest
from plugin_sessions import run

from pyhv.guests.build import build

pytest_plugins = ["pytester"]


def write(path: Path, *body: str) -> Path:
    """The source of a kernel that does these things and powers itself off."""
    lines = [
        '.include "xen.inc"\n.include "kernel.inc"\n.text\n_start:\nkernel_entry', *body, "jmp poweroff",
    ]  # fmt: skip
    path.parent.mkdir(exist_ok=True)
    path.write_text("\n".join(lines) + "\n")
    return path


def test_each_verdict(pytester: pytest.Pytester) -> None:
    root = pytester.path
    write(root / "good.S", "succeed")
    write(root / "xtf-good.S", r'print "--- Xen Test Framework ---\nTest result: SUCCESS\n"')
    write(root / "failing.S", 'fail "two and two are five"')
    write(root / "xtf-failing.S", r'print "SUCCESS\nTest result: FAILURE\n"')
    write(root / "skipping.S", r'print "SKIP: no such hardware\n"')
    write(root / "silent.S")
    write(root / "crashing.S", r'print "SUCCESS\n"', "mov rax, [0x123456789a0]")
    done = run(pytester, *sorted(path.name for path in root.glob("*.S")), "-rs")
    done.assert_outcomes(passed=2, failed=4, skipped=1)
    done.stdout.fnmatch_lines_random(
        [
            "crashing did not power itself off: crash (exception PF *",
            "failing reported a failure: two and two are five",
            "silent powered off and reported nothing",
            "xtf-failing reported a failure: Test result: FAILURE",
            "SKIPPED * no such hardware",
            "*- pyhv: failing -*",
            "  FAILURE: two and two are five",
            "pytest failing.S::boot",
            "Domain 1 (crashing) crashed at *",
        ]
    )


def test_a_regular_expression(pytester: pytest.Pytester) -> None:
    """It has passed when that is printed, whatever it does then."""
    write(pytester.path / "one.S", r'print "init: all done, 7 of 7\n"', "spin: jmp spin")
    assert run(pytester, "one.S", r"--pyhv-verdict=all done, (\d) of \1$").ret == 0
    done = run(pytester, "one.S", "--pyhv-verdict=all done, 8", "--pyhv-timeout=0.5")
    done.assert_outcomes(failed=1)
    done.stdout.fnmatch_lines(
        [
            "one: still busy after 0.5 s on the wall (--pyhv-timeout)",
            "pytest one.S::boot * '--pyhv-verdict=all done, 8'",
        ]
    )
    assert run(pytester, "one.S", "--pyhv-verdict=(").ret == 1


def test_which_files(pytester: pytest.Pytester) -> None:
    """Those that are named and look like kernels, and those that match; for each the last line that fits."""
    root = pytester.path
    write(root / "guests" / "one.S", "succeed")
    write(root / "guests" / "two.S", "succeed")
    (root / "guests" / "image").write_bytes(build(root / "guests" / "one.S"))
    (root / "guests" / "notes.txt").write_text("no kernel")
    assert run(pytester).ret == pytest.ExitCode.NO_TESTS_COLLECTED
    assert run(pytester, "guests/notes.txt").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    run(pytester, "guests/one.S", "guests/image").assert_outcomes(passed=2)
    run(pytester, "--pyhv-collect=guests/*.S").assert_outcomes(passed=2)
    run(pytester, "--pyhv-collect=t*.S", "--pyhv-collect=image", "guests").assert_outcomes(passed=2)


def test_words_in_the_ini(pytester: pytest.Pytester) -> None:
    root = pytester.path
    write(
        root / "two.S",
        "mov edi, VCPUOP_is_up", "mov esi, 1", "xor edx, edx", "hypercall vcpu_op", "must_succeed vcpu_op",
        r'print "the second one is there\n"',
    )  # fmt: skip
    pytester.makeini("[pytest]\npyhv_collect =\n  *.S\n  t*.S  vcpus=2 memory=8M 'verdict=second one is'\n")
    run(pytester, "-v").assert_outcomes(passed=1)
    for wrong in ("*.S cores=2", "*.S vcpus=two", "*.S memory", "*.S virtual_time=maybe", "*.S 'open"):
        pytester.makeini(f"[pytest]\npyhv_collect = {wrong}\n")
        done = run(pytester)
        assert done.ret == pytest.ExitCode.USAGE_ERROR
        assert "pyhv_collect: " in done.stderr.str()


def test_a_file_that_cannot_be_booted(pytester: pytest.Pytester) -> None:
    (pytester.path / "torn.img").write_bytes(b"\x7fELF" + bytes(60))
    write(pytester.path / "slip.S", "mov eax, nonsense")
    done = run(pytester, "torn.img", "slip.S")
    done.assert_outcomes(failed=2)
    assert "Traceback" not in done.stdout.str()
    done.stdout.fnmatch_lines_random(
        ["*torn.img*", "slip.S:6: a name that is defined nowhere: `mov eax, nonsense`"]
    )


def test_they_stream(pytester: pytest.Pytester) -> None:
    write(pytester.path / "good.S", "succeed")
    run(pytester, "good.S", "-s").stdout.fnmatch_lines(["*good| SUCCESS"])
