# SPDX-License-Identifier: GPL-2.0-only
"""The table of kernels: a program is talked to, and what came of it becomes a row."""

import re
from pathlib import Path

import pytest

from bench import compatibility, selftests
from bench.compatibility import Result, Step, Subject
from pyhv.errors import EnvironmentProblem
from pyhv.images.progress import Progress

PROJECT = Path(__file__).resolve().parents[2]
STEPS = (
    Step("kernel", r"Linux version (\S+)"),
    Step("shell", r"# ", "hello\r"),
    Step("answer", r"got (\w+)"),
)


class Silent:
    def step(self, text: str) -> None: ...
    def transferred(self, done: int, total: int) -> None: ...


def guest(script: str, monkeypatch: pytest.MonkeyPatch, timeout: float = 20) -> Result:
    monkeypatch.setattr(compatibility, "command_prefix", lambda: ["sh", "-c", script])
    return compatibility.run(Subject("it", ("x",), lambda _: "package 1", STEPS), Silent(), timeout)


def test_all_the_way(monkeypatch: pytest.MonkeyPatch) -> None:
    result = guest("echo Linux version 6.1; printf '# '; read -r a; echo got $a", monkeypatch)
    assert result.is_complete
    assert (result.reached, result.proof, result.exit_code) == ("power-off", "hello", 0)
    assert result.ready_s is not None
    assert result.total_s is not None
    assert result.ready_s <= result.total_s


def test_it_ends_early(monkeypatch: pytest.MonkeyPatch) -> None:
    result = guest(
        "echo Linux version 6.1; echo '[ 1.0] WARNING: odd'; echo 'pyhv: x crashed'; exit 6", monkeypatch
    )
    assert not result.is_complete
    assert (result.reached, result.proof, result.exit_code) == ("kernel", "6.1", 6)
    assert (result.complaint, result.said) == ("WARNING: odd", "x crashed")


def test_it_hangs(monkeypatch: pytest.MonkeyPatch) -> None:
    result = guest("echo Linux version 6.1; echo the last line; sleep 60", monkeypatch, timeout=1)
    assert (result.reached, result.exit_code) == ("kernel", None)
    assert result.said == "no more progress after: the last line"


def test_it_cannot_be_fetched() -> None:
    def fetch(_progress: Progress) -> str:
        raise EnvironmentProblem("Failed to fetch http://mirror/pool/x.deb 404 [IP: 1.2.3.4 80]; check it")

    result = compatibility.run(Subject("it", ("x",), fetch, STEPS), Silent(), 1)
    assert (result.reached, result.said) == ("not fetched", "Failed to fetch 404")
    page = compatibility.document([result], "Measured.")
    assert "| it | - | 64 | not fetched | - | - | - | - | [1](#remarks) |" in page
    assert "1. Failed to fetch 404." in page


def test_equal_remarks_are_one() -> None:
    subject = Subject("it", ("x",), lambda _: "p", STEPS, remark="Known.")
    results = [
        Result(subject, "p", "kernel", said="it broke"),
        Result(subject, "p", "kernel", said="it broke"),
    ]
    page = compatibility.document(results, "Measured.")
    assert page.count("It broke. Known.") == 1
    assert page.count("[1](#remarks)") == 2


@pytest.mark.promise("C-6")
def test_the_page_lists_every_kernel() -> None:
    page = (PROJECT / "docs/compatibility.md").read_text(encoding="utf-8").partition(selftests.TITLE)[0]
    rows = re.findall(r"^\| ([^|]+) \|", page, re.MULTILINE)[2:]
    assert rows == [subject.name for subject in compatibility.subjects()]
