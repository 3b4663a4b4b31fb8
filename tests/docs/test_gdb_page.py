# SPDX-License-Identifier: GPL-2.0-only
"""The sessions of docs/gdb.md and of the README are what gdb prints, and the page's Python runs."""

import re
from pathlib import Path

import pytest
from gdb import debugged

import pyhv

ROOT = Path(__file__).parents[2]
SESSION = re.compile(r"^```gdb (?P<guest>\w+)\n(?P<text>.*?)^```", re.MULTILINE | re.DOTALL)


def sessions(page: Path) -> list[tuple[str, str]]:
    return [(found["guest"], found["text"]) for found in SESSION.finditer(page.read_text(encoding="utf-8"))]


def lines(text: str) -> list[str]:
    return [line.rstrip() for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("name", ["docs/gdb.md", "README.md"])
def test_a_session_was_really_printed(name: str) -> None:
    found = sessions(ROOT / name)
    assert found
    for kernel, text in found:
        commands = re.findall(r"^\(gdb\) (.*)$", text, re.MULTILINE)
        with pyhv.Machine(memory="64M", virtual_time=True, history=True) as machine:
            told = debugged(machine.boot(kernel), machine, *commands)
        expected = re.sub(r"^\(gdb\) .*\n", "", text, flags=re.MULTILINE)
        first, *rest = lines(told)
        assert first.endswith("in _start ()")
        if rest[-1].endswith("detached]"):  # it ends with its commands
            rest.pop()
        assert rest == lines(expected)


def test_the_python(capsys: pytest.CaptureFixture[str]) -> None:
    (code,) = re.findall(
        r"^```python\n(.*?)^```", (ROOT / "docs/gdb.md").read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL
    )
    exec(compile(code.replace("stub.serve(", "stub.address or stub.serve("), "docs/gdb.md", "exec"), {})
    assert "target remote 127.0.0.1:" in capsys.readouterr().out
