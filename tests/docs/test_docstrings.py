# SPDX-License-Identifier: GPL-2.0-only
"""What docstrings show is true: their examples run, and are what a reader would type."""

import doctest
import importlib
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pyhv"
WITH_EXAMPLES = [
    ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts)
    for path in sorted(PACKAGE.rglob("*.py"))
    if "\n>>> " in (text := path.read_text(encoding="utf-8")) or "    >>> " in text
]


def test_there_are_examples() -> None:
    assert {"pyhv.api.words", "pyhv.state", "pyhv.until"} <= set(WITH_EXAMPLES)


@pytest.mark.parametrize("module", WITH_EXAMPLES)
def test_examples(module: str) -> None:
    results = doctest.testmod(importlib.import_module(module))
    assert results.attempted
    assert not results.failed
