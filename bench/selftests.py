# SPDX-License-Identifier: GPL-2.0-only
"""The table of Linux' own tests: bench/selftests.toml, and what docs/compatibility.md shows of it.

What pyhv gives is measured: tests/test_selftests.py runs every test and compares. What hardware gives is
reasoned, test by test, from the test's source, the kernel's and Xen's; the reason is the row's remark.
"""

import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("selftests.toml")
RESULTS = {0: "pass", 2: "pass", 4: "skip"}
"""Of an exit status, as tools/testing/selftests/kselftest.h has them (2: what fails was expected to)."""


@dataclass(frozen=True)
class Selftest:
    """A row. `name` is below tools/testing/selftests, without the .c; `bits` what it is built for.

    `pyhv` and `hardware` are "pass", "skip" or "fail"; `why` explains what is not "pass" or differs.
    """

    name: str
    bits: tuple[int, ...]
    pyhv: str
    hardware: str
    why: str
    arguments: str
    seconds: int
    """Of the guest's time, after which it counts as failed."""

    @property
    def directory(self) -> str:
        """Where its source is, below tools/testing/selftests."""
        return self.name.rpartition("/")[0]

    @property
    def group(self) -> str:
        """The part of the selftests it belongs to."""
        return self.name.partition("/")[0]


def table(path: Path = TABLE) -> list[Selftest]:
    """All rows, in the order of the file."""
    return [_row(row) for row in tomllib.loads(path.read_text(encoding="utf-8"))["tests"]]


def _row(row: dict[str, Any]) -> Selftest:
    return Selftest(
        name=row["name"],
        bits=tuple(row.get("bits", (64, 32))),
        pyhv=row.get("pyhv", "pass"),
        hardware=row.get("hardware", "pass"),
        why=row.get("why", ""),
        arguments=row.get("arguments", ""),
        seconds=row.get("seconds", 60),
    )


def result(status: int) -> str:
    """A row's word for an exit status."""
    return RESULTS.get(status, "fail")


HEADER = """
## Linux' own tests

Linux tests itself with the programs in `tools/testing/selftests`. Those of x86, and those of timers, memory, futexes,
ptrace, breakpoints and the vDSO that need no device, are built from Debian's linux-source-6.1, static, and run by CI
in Debian's 6.1 kernel with two vCPUs: all with the engine tuned, those of x86 also with the plain engine. The column
*pyhv* is what `tests/test_selftests.py` found; a run that gives anything else fails, for better or worse. *Hardware* is
what the same kernel would give as a PV guest of Xen 4.17 on a processor with the same features; it is reasoned from the
test's source and the kernel's, not measured.
"""


def section(rows: list[Selftest]) -> str:
    """The section of docs/compatibility.md."""
    lines = [HEADER, "| test | bits | pyhv | hardware | remarks |", "| --- | --- | --- | --- | --- |"]
    for row in rows:
        name = f"`{row.name}{' ' + row.arguments if row.arguments else ''}`"
        bits = ", ".join(str(bits) for bits in row.bits)
        lines.append(f"| {name} | {bits} | {row.pyhv} | {row.hardware} | {row.why} |")
    passed = sum(row.pyhv == "pass" for row in rows)
    same = sum(row.pyhv == row.hardware for row in rows)
    lines += ["", f"{passed} of {len(rows)} pass; {same} give what hardware gives."]
    return "\n".join(lines) + "\n"
