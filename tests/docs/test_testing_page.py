# SPDX-License-Identifier: GPL-2.0-only
"""docs/testing.md is true: its files are run by its commands, which print what the page says."""

import doctest
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest
from plugin_sessions import run

from pyhv.guests.build import build_builtin
from pyhv.testing import collection, coverage, options, recording

pytest_plugins = ["pytester"]
PAGE = Path(__file__).parents[2] / "docs" / "testing.md"
BLOCK = re.compile(r"^```(?P<kind>[^\n]*)\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
TEXT = PAGE.read_text(encoding="utf-8")


@dataclass(frozen=True)
class Step:
    """A file to write, or a command with what it prints."""

    kind: str
    name: str
    text: str


def steps(text: str = TEXT) -> list[Step]:
    found = []
    for match in BLOCK.finditer(text):
        kind, _, name = match["kind"].partition(" ")
        if name.startswith("debian "):
            kind, name = "debian", name.removeprefix("debian ")
        found.append(Step(kind, name, match["text"]))
    return found


def prepare(root: Path) -> None:
    """What the page takes for granted: two kernels of one's own."""
    (root / "kernels").mkdir()
    for name in ("hello", "pages"):
        (root / "kernels" / f"{name}.img").write_bytes(build_builtin(name))


def check(pytester: pytest.Pytester, text: str) -> None:
    """Run the commands of a block, and compare."""
    for part in re.split(r"^(?=\$ )", text, flags=re.MULTILINE)[1:]:
        _check(pytester, part)


def _check(pytester: pytest.Pytester, text: str) -> None:
    line, _, wanted = text.partition("\n")
    program, *arguments = shlex.split(line.removeprefix("$ "))
    assert program == "pytest"
    printed = run(pytester, *arguments).stdout.str()
    printed = re.sub(
        r"=+ warnings summary =+\n.*?(?======|\d+ (passed|failed))", "", printed, flags=re.DOTALL
    )
    printed = re.sub(r", \d+ warnings?", "", printed)  # this process has imported pyhv already
    flags = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    example = doctest.Example(line, wanted)
    checker = doctest.OutputChecker()
    assert checker.check_output(wanted, printed, flags), checker.output_difference(example, printed, flags)


def test_the_page_from_its_beginning(pytester: pytest.Pytester) -> None:
    prepare(pytester.path)
    for step in steps():
        if step.kind in ("python", "ini"):
            (pytester.path / step.name).write_text(step.text)
        elif step.kind == "console":
            check(pytester, step.text)
    rest = run(pytester, "-q", "--deselect", "test_slow.py")
    rest.assert_outcomes(passed=9, deselected=1)


def test_the_tour_of_the_readme(pytester: pytest.Pytester) -> None:
    found = steps((PAGE.parents[1] / "README.md").read_text(encoding="utf-8"))
    shown = [step for step in found if step.kind == "console" and step.text.startswith("$ pytest")]
    assert len(shown) == 1
    for step in found:
        if step.kind == "python" and step.name:
            (pytester.path / step.name).write_text(step.text)
    check(pytester, shown[0].text)


@pytest.mark.debian
def test_what_needs_debian(pytester: pytest.Pytester) -> None:
    for step in steps():
        if step.kind == "debian":
            (pytester.path / step.name).write_text(step.text)
    run(pytester).assert_outcomes(passed=2)


def test_workflow_and_script_do_the_same(pytester: pytest.Pytester) -> None:
    """And what they do is right, but for the installation."""
    by_name = {step.name: step.text for step in steps()}
    script = by_name["ci.sh"]
    commands = re.findall(r"^ +- run: (.*)$", by_name[".github/workflows/kernel.yml"], re.MULTILINE)
    assert len(commands) == 2
    assert script.splitlines()[-2:] == commands
    assert subprocess.run(["sh", "-n"], input=script, text=True).returncode == 0
    (pytester.path / "test_kernel.py").write_text(by_name["test_kernel.py"])
    command = shlex.split(commands[-1].replace("-n auto", "-n 1"))
    done = subprocess.run([sys.executable, *command[1:]], cwd=pytester.path, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout
    assert (pytester.path / "report.xml").exists()


def test_every_option_is_on_the_page() -> None:
    parser = pytest.Parser(_ispytest=True)
    for part in (options, collection, recording, coverage):
        part.add(parser)
    names = {name for group in parser._groups for option in group.options for name in option.names()}
    missing = {name for name in names | set(parser._inidict) if name not in TEXT}
    assert not missing
