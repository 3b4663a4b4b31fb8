# SPDX-License-Identifier: GPL-2.0-only
"""docs/python.md is true: each of its examples runs by itself."""

import re
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[2] / "docs" / "python.md"
BLOCK = re.compile(
    r"^## (?P<title>[^\n]+)$|^```python(?P<kind>[^\n]*)\n(?P<code>.*?)^```", re.MULTILINE | re.DOTALL
)


def examples() -> list[tuple[str, str, str]]:
    """(title above it, kind, code) of each."""
    found, title = [], ""
    for match in BLOCK.finditer(PAGE.read_text(encoding="utf-8")):
        title = match["title"] or title
        if match["code"]:
            found.append((title, match["kind"].strip(), match["code"]))
    return found


EXAMPLES = examples()


def run(code: str) -> None:
    exec(compile(code, str(PAGE), "exec"), {})


@pytest.mark.parametrize("code", [pytest.param(code, id=title) for title, kind, code in EXAMPLES if not kind])
def test_an_example(code: str) -> None:
    run(code)


@pytest.mark.debian
@pytest.mark.parametrize("code", [pytest.param(code, id=title) for title, kind, code in EXAMPLES if kind])
def test_an_example_with_debian(code: str) -> None:
    run(code)


def test_there_are_examples() -> None:
    assert len(EXAMPLES) >= 6
    assert {kind for _, kind, _ in EXAMPLES} == {"", "debian"}


def test_every_name_is_explained() -> None:
    """What `import pyhv` offers is on the page."""
    import pyhv

    text = PAGE.read_text(encoding="utf-8")
    missing = {name for name in pyhv.__all__ if not re.search(rf"\bpyhv\.{name}\b|`{name}`", text)}
    assert missing <= {"__version__", "Guest", "Snapshot"}, "types of what others return"
