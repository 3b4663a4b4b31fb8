# SPDX-License-Identifier: GPL-2.0-only
"""The table of Linux' own tests: bench/selftests.toml, and what docs/compatibility.md shows of it.

    python -m bench.selftests docs/compatibility.md        writes the section anew (make docs)

What pyhv gives is measured: tests/real/test_selftests.py runs every test and compares. What hardware gives is
reasoned, test by test, from the test's source, the kernel's and Xen's; the reason is the row's remark.
"""

import re
import sys
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

TABLE = Path(__file__).with_name("selftests.toml")
RESULTS = {0: "pass", 2: "pass", 4: "skip"}
"""Of an exit status, as tools/testing/selftests/kselftest.h has them (2: what fails was expected to)."""

FAILED = re.compile(r"^(not ok (?!.*# (SKIP|XFAIL))|.*\[(FAIL|FAILED|BAD)\])", re.MULTILINE)
"""A line that tells of a failure, in the forms that the tests have for it."""


@dataclass(frozen=True)
class Selftest:
    """A row. `name` is below tools/testing/selftests, without the .c; `bits` what it is built for.

    `pyhv` and `hardware` are "pass", "skip", "fail" or "varies"; `why` explains what is not "pass".
    """

    name: str
    bits: tuple[int, ...]
    pyhv: str
    hardware: str
    why: str
    arguments: str
    seconds: int
    """Of the guest's time, after which it counts as failed."""
    virtual: bool
    """Run in virtual time, where sleeping costs nothing and no load of the host delays anything."""
    plain: str
    """What it gives with the plain engine; "" if it is not run there."""
    one_cpu: bool
    """Kept on the first CPU."""
    may_fail: str
    """A regular expression for the lines of failure that come or do not come as the kernel's threads are
    switched; "" if there is nothing that varies."""

    @property
    def directory(self) -> str:
        """Where its source is, below tools/testing/selftests."""
        return self.name.rpartition("/")[0]

    @property
    def group(self) -> str:
        """The part of the selftests it belongs to."""
        return self.name.partition("/")[0]

    def result(self, status: int, output: str) -> str:
        """The word for how it ended. "varies" if all passed but, perhaps, what may fail."""
        if not self.may_fail:
            return result(status, output)
        rest, count = re.subn(self.may_fail, "", output, flags=re.MULTILINE)
        return "varies" if result(0 if count and status == 1 else status, rest) == "pass" else "fail"


def table(path: Path = TABLE) -> list[Selftest]:
    """All rows, in the order of the file."""
    return [_row(row) for row in tomllib.loads(path.read_text(encoding="utf-8"))["tests"]]


def _row(row: dict[str, Any]) -> Selftest:
    is_x86 = row["name"].startswith("x86/")
    return Selftest(
        name=row["name"],
        bits=tuple(row.get("bits", (64, 32))),
        pyhv=row.get("pyhv", "pass"),
        hardware=row.get("hardware", "pass"),
        why=row.get("why", ""),
        arguments=row.get("arguments", ""),
        seconds=row.get("seconds", 60),
        virtual=row.get("virtual", not is_x86),
        plain=row.get("plain", row.get("pyhv", "pass") if is_x86 else ""),
        one_cpu=row.get("one_cpu", False),
        may_fail=row.get("may_fail", ""),
    )


def result(status: int, output: str) -> str:
    """A row's word for how a test ended. Some end with status 0 although a part of them has failed."""
    return "fail" if FAILED.search(output) else RESULTS.get(status, "fail")


LEFT_OUT = """
Left out are tests that

- need huge pages, which a PV guest does not have, or gigabytes: the hugetlb and transparent huge page tests
  of `vm`, `mremap_test`;
- need a module or a library that is not there: `gup_test`, `hmm-tests`, `ksm_tests`, `migration`,
  `memfd_secret`, `mlock-random-test`;
- spin for seconds and hold that against the clock of a host that may have others to serve: `posix_timers`;
- compute for minutes, or are made of other tests: `change_skew`, `clocksource-switch`, `leapcrash`,
  `set-2038`, `skew_consistency`; or judge NTP's arithmetic at ticks that an idle guest does not have:
  `freq-step`;
- do not end in a PV guest: `step_after_suspend_test` suspends a guest that has no alarm to wake it.
"""

TITLE = "\n## Linux' own tests\n"
INTRODUCTION = """
Linux tests itself with the programs in `tools/testing/selftests`. Those of x86, and those of timers, memory,
futexes, ptrace, breakpoints and the vDSO that need no device, are built from Debian's linux-source-6.1 as
static programs and run in Debian's 6.1 kernel with two vCPUs. *pyhv* is what they gave; *plain* is what
those of x86 gave with `--no-engine-tuning`. `tests/real/test_selftests.py` runs them in CI and fails if one
gives anything else, for better or worse. *Hardware* is what the same kernel gives as a PV guest of genuine
Xen 4.17: not measured, but reasoned from the test's source, the kernel's and Xen's.
"""


def section(rows: list[Selftest]) -> str:
    """The section of docs/compatibility.md, from its title on."""
    lines = [
        TITLE + INTRODUCTION,
        "| test | bits | pyhv | plain | hardware | remarks |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    for row in rows:
        name = f"`{row.name}{' ' + row.arguments if row.arguments else ''}`"
        bits = ", ".join(str(bits) for bits in row.bits)
        lines.append(f"| {name} | {bits} | {row.pyhv} | {row.plain or '-'} | {row.hardware} | {row.why} |")
    passed = sum(row.pyhv == "pass" for row in rows)
    same = sum(row.pyhv == row.hardware for row in rows)
    lines += ["", f"{passed} of {len(rows)} pass; {same} give what hardware gives.", LEFT_OUT]
    return "\n".join(lines)


def with_section(page: str) -> str:
    """The page with the section as the table has it now, in place of the one that it has."""
    return page.partition(TITLE)[0] + section(table())


if __name__ == "__main__":
    document = Path(sys.argv[1])
    document.write_text(with_section(document.read_text(encoding="utf-8")), encoding="utf-8")
