# SPDX-License-Identifier: GPL-2.0-only
"""Kernels as tests: `pytest guests/*.img`, or files that match `--pyhv-collect` or the ini's `pyhv_collect`.

    [pytest]
    pyhv_collect =
        guests/*.img
        guests/smp-*.img    vcpus=2 memory=32M
        xtf/test-pv64-*     verdict=xtf

Each file is one test: it boots, runs to its end and judges itself (`judging.py`). A file is booted as the
last line says whose pattern fits it. A file that is named on the command line needs no pattern if it looks
like a kernel, or like the assembly source of one.
"""

import re
import shlex
from dataclasses import field
from pathlib import Path
from typing import Any, Final

import pytest

from pyhv.frozen import frozen
from pyhv.testing.fixtures import options, told, used
from pyhv.testing.marker import GuestSpec, Wanted
from pyhv.testing.recording import RECORDINGS

COLLECT, VERDICT = "pyhv_collect", "pyhv_verdict"
_WORDS: Final = {
    "memory": ".*", "vcpus": "[0-9]{1,4}", "append": ".*", "ramdisk": ".*", "verdict": ".*",
    "virtual_time": "yes|no",
}  # fmt: skip
"""What can stand behind a pattern, and what its value looks like."""
_ELF: Final = b"\x7fELF"
_BZIMAGE: Final = b"HdrS"
_BZIMAGE_AT: Final = 0x202


@frozen
class Rule:
    """Which files are kernels, and how they are booted."""

    pattern: str
    words: dict[str, str | int] = field(default_factory=dict)

    def fits(self, path: Path, root: Path) -> bool:
        """Whether a file is meant: its path from the root of the tests, or its end."""
        return path.is_relative_to(root) and path.relative_to(root).match(self.pattern)


RULES: Final = pytest.StashKey[list[Rule]]()


def add(parser: pytest.Parser) -> None:
    """Have pytest know the options."""
    group = parser.getgroup("pyhv")
    group.addoption(
        "--pyhv-collect", dest=COLLECT, metavar="GLOB", action="append", default=[], help="files that are "
        "kernels: each is a test (ini: pyhv_collect, lines of a GLOB and of words like vcpus=2)",
    )  # fmt: skip
    group.addoption(
        "--pyhv-verdict", dest=VERDICT, metavar="HOW", help="how kernels say whether they have passed: pyhv, "
        "xtf, auto (either), or a regular expression of their console (ini: pyhv_verdict)",
    )  # fmt: skip
    parser.addini(COLLECT, "files that are kernels: GLOB [word=value ...] in each line", type="linelist")
    parser.addini(VERDICT, "how kernels say whether they have passed", default="auto")


def pytest_configure(config: pytest.Config) -> None:
    """Pytest's hook."""
    rules = [_rule(line) for line in config.getini(COLLECT)]
    config.stash[RULES] = [*rules, *(Rule(pattern) for pattern in config.getoption(COLLECT))]


def _rule(line: str) -> Rule:
    try:
        pattern, *pairs = shlex.split(line)
    except ValueError as error:
        raise pytest.UsageError(f"pyhv_collect: {line!r} cannot be read ({error})") from None
    words: dict[str, str | int] = {}
    for pair in pairs:
        name, _, value = pair.partition("=")
        if not re.fullmatch(_WORDS.get(name, ""), value) or not value:
            raise pytest.UsageError(f"pyhv_collect: {pair!r} is none of {', '.join(_WORDS)} with a value")
        words[name] = int(value) if name == "vcpus" else value
    return Rule(pattern, words)


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> "KernelFile | None":
    """Pytest's hook: a file that is a kernel."""
    fitting = [rule for rule in parent.config.stash[RULES] if rule.fits(file_path, parent.config.rootpath)]
    if not fitting and not (parent.session.isinitpath(file_path) and looks_like_a_kernel(file_path)):
        return None
    return KernelFile.from_parent(parent, path=file_path, words=fitting[-1].words if fitting else {})


def looks_like_a_kernel(path: Path) -> bool:
    """Whether a file is one, or the source of one, by its name and its first bytes."""
    if path.suffix in (".S", ".img"):
        return True
    try:
        with path.open("rb") as file:
            head = file.read(_BZIMAGE_AT + len(_BZIMAGE))
    except OSError:
        return False
    return head.startswith(_ELF) or head[_BZIMAGE_AT:] == _BZIMAGE


class KernelFile(pytest.File):
    """A file with one test."""

    def __init__(self, *, words: dict[str, str | int], **rest: Any) -> None:
        super().__init__(**rest)
        self._words = words

    def collect(self) -> "list[KernelItem]":
        """The test."""
        return [KernelItem.from_parent(self, name="boot", words=self._words)]


class KernelItem(pytest.Item):
    """A kernel that boots and judges itself."""

    def __init__(self, *, words: dict[str, str | int], **rest: Any) -> None:
        super().__init__(**rest)
        self._words = words

    def runtest(self) -> None:
        """Boot it, and read its verdict."""
        from pyhv.testing import judging, machines

        words: dict[str, Any] = dict(self._words)
        verdict = words.pop("verdict", self.config.getini(VERDICT))
        verdict = self.config.getoption(VERDICT) or verdict
        virtual = words.pop("virtual_time", "yes") == "yes"
        guest = GuestSpec(str(self.path), self.path.parent, **words)
        wanted = Wanted((guest,), (("virtual_time", virtual),))
        with told():
            recordings = self.config.stash[RECORDINGS]
            machine = machines.fresh(wanted, record=recordings.file_for(self), **options(self.config))
            self.addfinalizer(machine.close)
            used(self).append(machine)
            recordings.begin(self, machine)
            machines.boot(machine, wanted)
            judging.judge(machine, verdict)
            recordings.end(machine, failed=False)

    def repr_failure(self, excinfo: "pytest.ExceptionInfo[BaseException]", style: Any = None) -> Any:
        """A verdict is a sentence; what else is raised is told as pytest does."""
        from pyhv.testing.judging import KernelFailed

        if isinstance(excinfo.value, KernelFailed):
            return str(excinfo.value)
        return super().repr_failure(excinfo)

    def reportinfo(self) -> tuple[Path, None, str]:
        """Where it is."""
        return self.path, None, f"kernel {self.path.name}"
