# SPDX-License-Identifier: GPL-2.0-only
"""Linux' own tests in Debian's guest give what bench/selftests.toml says; docs/compatibility.md shows it.

A difference either way fails: what got worse is to be mended, what got better to be written into the table.
"""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from linux_guest import Guests, Setup, Width
from linux_selftests import DIRECTORIES, build

from bench import selftests
from bench.selftests import Selftest

PROJECT = Path(__file__).resolve().parents[2]
TABLE = selftests.table()
SETUPS = {
    Setup(vcpus=2, memory=512): [row for row in TABLE if not row.virtual],
    Setup(vcpus=2, memory=512, virtual=True): [row for row in TABLE if row.virtual],
    Setup(vcpus=2, memory=512, tuned=False): [row for row in TABLE if row.plain],
}


@pytest.mark.promise("C-15")
def test_the_page_shows_the_table() -> None:
    page = (PROJECT / "docs" / "compatibility.md").read_text(encoding="utf-8")
    assert selftests.with_section(page) == page, "run: make docs"


def test_rows_are_complete() -> None:
    assert len({(row.name, row.arguments, row.bits) for row in TABLE}) == len(TABLE)
    for row in TABLE:
        assert row.group in DIRECTORIES, row
        assert {row.pyhv, row.hardware, row.plain or "pass"} <= {"pass", "skip", "fail", "varies"}, row
        assert (row.pyhv == "varies") == bool(row.may_fail), row
        assert row.bits in ((64, 32), (64,), (32,)), row
        if {row.pyhv, row.hardware, row.plain or "pass"} != {"pass"}:
            assert len(row.why) > 20, f"{row.name}: the table does not say why"


def test_a_page_without_the_section_gets_it() -> None:
    page = selftests.with_section("# Title\n\ntext\n")
    assert page.startswith("# Title\n\ntext\n\n## Linux' own tests\n")
    assert selftests.with_section(page) == page


@pytest.mark.parametrize(
    ("status", "output", "word"),
    [
        (0, "TAP version 13\nok 1 it\n# Totals: pass:1 fail:0", "pass"),
        (0, "ok 1 it\nnot ok 2 it", "fail"),
        (0, "ok 1 it\nnot ok 2 it # SKIP no device", "pass"),
        (0, "[OK]\tit\n[FAIL]\tit", "fail"),
        (1, "no word", "fail"),
        (137, "killed", "fail"),
        (2, "expected to fail", "pass"),
        (4, "no device", "skip"),
    ],
)
def test_results(status: int, output: str, word: str) -> None:
    assert selftests.result(status, output) == word


@pytest.mark.parametrize(
    ("status", "output", "word"),
    [
        (0, "[OK]\tit", "varies"),
        (1, "[OK]\tit\n[FAIL]\tGS 3\n[FAIL]\tGS 1", "varies"),
        (1, "[FAIL]\tGS 3\n[FAIL]\tFS 3", "fail"),
        (1, "[OK]\tit", "fail"),
        (137, "[FAIL]\tGS 3\nkilled", "fail"),
    ],
)
def test_results_that_vary(status: int, output: str, word: str) -> None:
    row = replace(TABLE[0], may_fail=r"^\[FAIL\]\tGS \d$")
    assert row.result(status, output) == word


def widths(row: Selftest) -> list[Width]:
    return [width for width in Width if int(str(width)) in row.bits]


def cases() -> list[object]:
    return [
        pytest.param(
            setup,
            row,
            width,
            id=f"{setup}-{row.name}{'-' + row.arguments if row.arguments else ''}-{width}",
            marks=pytest.mark.xdist_group(f"selftests-{setup}"),
        )
        for setup, rows in SETUPS.items()
        for row in rows
        for width in widths(row)
    ]


def programs_of(setup: Setup) -> dict[str, Path]:
    return {f"{row.name}_{width}": build(row, width) for row in SETUPS[setup] for width in widths(row)}


@pytest.fixture(scope="module")
def guests(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Guests]:
    with Guests(programs_of, tmp_path_factory.mktemp("guests")) as guests:
        yield guests


@pytest.mark.promise("C-15")
@pytest.mark.debian
@pytest.mark.programs
@pytest.mark.parametrize(("setup", "row", "width"), cases())
def test_a_selftest(guests: Guests, setup: Setup, row: Selftest, width: Width) -> None:
    stem = row.name.rpartition("/")[2]
    command = f"{'taskset 1 ' if row.one_cpu else ''}./{stem}_{width} {row.arguments}"
    ran = guests.of(setup).run(f"cd /programs/{row.directory} && {command}", row.seconds)
    expected = row.pyhv if setup.tuned else row.plain
    assert row.result(ran.status, ran.output) == expected, f"status {ran.status}\n{ran.output}"
