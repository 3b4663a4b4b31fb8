# SPDX-License-Identifier: GPL-2.0-only
"""SPECIFICATION.md is true in what can be looked up: its promises name tests, its numbers are the code's.

A promise is a row of a table: `| I-1 | the promise | tests |`. A test is `tests/unit/test_x.py::name`, or
`tests/unit/test_x.py::Class::name`, or a whole file. A number is `pyhv.module.NAME = 17`, or for the default
of a dataclass or a member of an enumeration `pyhv.module.Class.field = 17`, or for the default of a parameter
`pyhv.module.Class(argument) = 17`.
"""

import ast
import dataclasses
import importlib
import inspect
import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SPECIFICATION.md").read_text(encoding="utf-8")
ROW = re.compile(r"^\| (?P<id>[A-Z]+-\d+) \| (?P<promise>[^|]+) \| (?P<tests>[^|]*) \|$", re.MULTILINE)
TEST = re.compile(r"`(?P<file>tests/\w+/test_\w+\.py)(?P<names>(?:::\w+)*)`")
NUMBER = re.compile(r"`(?P<path>pyhv(?:\.\w+)+)(?:\((?P<argument>\w+)\))? = (?P<value>[0-9_]+)`")
ROWS = [match.groupdict() for match in ROW.finditer(TEXT)]
TESTS = sorted({(row["id"], *test.groups()) for row in ROWS for test in TEST.finditer(row["tests"])})
NUMBERS = [match.groups() for match in NUMBER.finditer(TEXT)]


@cache
def names(file: Path) -> frozenset[str]:
    """The tests of a file, as `::function`, `::Class` or `::Class::function`."""
    found = set()
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.add(f"::{node.name}")
        elif isinstance(node, ast.ClassDef):
            found.add(f"::{node.name}")
            found |= {
                f"::{node.name}::{inner.name}" for inner in node.body if isinstance(inner, ast.FunctionDef)
            }
        elif isinstance(node, ast.Assign):  # TestModel = Model.TestCase
            found |= {f"::{target.id}" for target in node.targets if isinstance(target, ast.Name)}
    return frozenset(name for name in found if name.rpartition("::")[2].lower().startswith("test"))


def constant(path: str, argument: str | None) -> object:
    """What the code says where a number of the specification points to."""
    module, _, name = path.rpartition(".")
    try:
        owner: object = importlib.import_module(module)
    except ModuleNotFoundError:
        above, _, inner = module.rpartition(".")
        owner = getattr(importlib.import_module(above), inner)
    if dataclasses.is_dataclass(owner):
        return {field.name: field.default for field in dataclasses.fields(owner)}[name]
    value = getattr(owner, name)
    return value if argument is None else inspect.signature(value).parameters[argument].default


def test_there_are_promises() -> None:
    assert len(ROWS) > 50
    assert len(NUMBERS) > 30
    assert len({row["id"] for row in ROWS}) == len(ROWS), "each has a number of its own"
    lines = [line for line in TEXT.splitlines() if re.match(r"\| [A-Z]+-\d", line)]
    assert len(lines) == len(ROWS), "each line that begins like a promise is one"


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["id"])
def test_each_names_a_test(row: dict[str, str]) -> None:
    rest = TEST.sub("", row["tests"])
    assert TEST.search(row["tests"]), "a promise that no test holds is a wish"
    assert not rest.replace(",", "").strip(), f"this is no test: {rest}"


@pytest.mark.parametrize(("promise", "file", "name"), TESTS)
def test_the_tests_exist(promise: str, file: str, name: str) -> None:
    assert (ROOT / file).is_file(), promise
    assert not name or name in names(ROOT / file), promise


@pytest.mark.parametrize(("path", "argument", "value"), NUMBERS)
def test_the_numbers_are_the_codes(path: str, argument: str | None, value: str) -> None:
    assert constant(path, argument) == int(value)


def test_all_that_looks_like_a_number_is_checked() -> None:
    quoted = re.findall(r"`pyhv\.[^`]* = [^`]*`", TEXT.partition("## Isolation")[2])
    assert len(quoted) == len(NUMBERS), [text for text in quoted if not NUMBER.fullmatch(text)]


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)|`(docs/[\w.]+)`", TEXT):
        assert (ROOT / (target[0] or target[1])).exists(), target


def test_the_check_itself() -> None:
    here = Path(__file__)
    assert "::test_the_check_itself" in names(here)
    assert "::constant" not in names(here)
    assert constant("pyhv.address.PAGE_SIZE", None) == 4096
    with pytest.raises(AttributeError):
        constant("pyhv.address.NO_SUCH_NUMBER", None)
