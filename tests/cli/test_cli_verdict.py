# SPDX-License-Identifier: GPL-2.0-only
"""How a guest's output becomes an exit code."""

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.cli.verdict import MAX_LINE, Builtin, Convention, Plain, Report, Watcher, Xtf, readable, worst
from pyhv.errors import ExitCode


def judge(convention: Convention, *pieces: bytes) -> ExitCode:
    watcher = Watcher(convention)
    for piece in pieces:
        watcher.output(piece)
    watcher.finish()
    return convention.code()


@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"hello\nSUCCESS\n", ExitCode.OK),
        (b"", ExitCode.OK),
        (b"x\nFAILURE: it broke\n", ExitCode.FAILURE),
        (b"FAILURE: no newline", ExitCode.FAILURE),
        (b"SKIP: not here\r\n", ExitCode.SKIP),
        (b"SKIP\nFAILURE: both\n", ExitCode.FAILURE),
        (b"FAILURE: first\nSKIP\n", ExitCode.FAILURE),
        (b"the word FAILURE: inside a line\n", ExitCode.OK),
        (b"FAILURES are not reports\n", ExitCode.OK),
    ],
)
def test_builtin_guests(text: bytes, code: ExitCode) -> None:
    assert judge(Builtin(), text) is code


def test_the_first_failure_gives_the_reason() -> None:
    convention = Builtin()
    judge(convention, b"FAILURE: one\r\nFAILURE: two\n")
    assert convention.reason == "one"


@pytest.mark.promise("E-1")
@pytest.mark.parametrize(
    ("text", "code"),
    [
        (b"--- Xen Test Framework ---\nTest result: SUCCESS\n", ExitCode.OK),
        (b"Test result: SKIP\n", ExitCode.SKIP),
        (b"Test result: FAILURE\n", ExitCode.FAILURE),
        (b"Test result: ERROR\n", ExitCode.FAILURE),
        (b"Test result: FAILURE\nTest result: SUCCESS\n", ExitCode.OK),
        (b"Test result: SUCCESS\nTest result: ERROR", ExitCode.FAILURE),
        (b"Test result: SUCCESSFUL\n", ExitCode.FAILURE),
        (b"nothing of the kind\n", ExitCode.FAILURE),
    ],
)
def test_xtf(text: bytes, code: ExitCode) -> None:
    assert judge(Xtf(), text) is code


def test_without_a_convention_every_output_is_fine() -> None:
    assert judge(Plain(), b"FAILURE: x\nTest result: ERROR\n") is ExitCode.OK


@given(st.lists(st.binary(max_size=40), max_size=10), st.integers(0, 60))
def test_how_the_bytes_are_cut_does_not_matter(pieces: list[bytes], at: int) -> None:
    text = b"\n".join([*pieces, b"FAILURE: x", *pieces])
    whole, split = Builtin(), Builtin()
    judge(whole, text)
    judge(split, text[:at], text[at:])
    assert (whole.report, whole.reason) == (split.report, split.reason)
    assert whole.report is Report.FAILURE


@pytest.mark.promise("L-12")
def test_an_endless_line_is_not_kept() -> None:
    watcher = Watcher(Xtf())
    for _ in range(100):
        watcher.output(b"x" * 1000)
    assert len(watcher._line) == MAX_LINE
    watcher.output(b"\nTest result: SUCCESS\n")
    assert watcher.convention.code() is ExitCode.OK


def test_a_line_is_reported_once_even_if_its_end_comes_later() -> None:
    seen: list[bytes] = []

    class Recorder(Plain):
        def line(self, text: bytes) -> None:
            seen.append(text)

    judge(Recorder(), b"a", b"b\nc", b"\n", b"\n\nd")
    assert seen == [b"ab", b"c", b"d"]


@pytest.mark.promise("E-2")
def test_the_order_of_severity() -> None:
    order = [
        ExitCode.OK, ExitCode.SKIP, ExitCode.ENDED, ExitCode.TIMEOUT, ExitCode.DEADLOCK,
        ExitCode.FAILURE, ExitCode.CRASH,
    ]  # fmt: skip
    for (i, a), (j, b) in itertools.product(enumerate(order), repeat=2):
        assert worst([a, b]) is order[max(i, j)]
    assert worst([]) is ExitCode.OK


@pytest.mark.promise("I-16")
def test_readable_defuses_control_characters() -> None:
    assert readable(b"a\x1b[2Jb\xff\n") == "a\\x1b[2Jb\ufffd\\x0a"
