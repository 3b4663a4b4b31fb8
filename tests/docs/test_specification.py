# SPDX-License-Identifier: GPL-2.0-only
"""SPECIFICATION.md is true in what can be looked up: tests hold its promises, its numbers are the code's.

A promise is a row of a table: `| I-1 | the promise |`. Tests that hold it are marked with its id. A number is
`pyhv.module.NAME = 17`, or for the default of a dataclass or a member of an enumeration
`pyhv.module.Class.field = 17`, or for the default of a parameter `pyhv.module.Class(argument) = 17`.
"""

import ast
import dataclasses
import importlib
import inspect
import re
from pathlib import Path

import pytest

from docgen import promises

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "SPECIFICATION.md").read_text(encoding="utf-8")
NUMBER = re.compile(r"`(?P<path>pyhv(?:\.\w+)+)(?:\((?P<argument>\w+)\))? = (?P<value>[0-9_]+)`")
PROMISES = promises.promises(TEXT)
TESTS = promises.tests()
NUMBERS = [match.groups() for match in NUMBER.finditer(TEXT)]


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
    assert len(PROMISES) > 80
    assert len(NUMBERS) > 30
    lines = [line for line in TEXT.splitlines() if re.match(r"\| [A-Z]+-\d", line)]
    assert len(lines) == len(PROMISES), "each line that begins like a promise is one"


@pytest.mark.parametrize("promise", PROMISES)
def test_each_is_held_by_a_test(promise: str) -> None:
    assert TESTS.get(promise), "a promise that no test holds is a wish"


def test_each_test_holds_a_promise_that_was_made() -> None:
    assert TESTS.keys() - PROMISES.keys() == set()


def test_the_list_of_tests_is_up_to_date() -> None:
    assert (ROOT / "docs" / "promises.md").read_text(encoding="utf-8") == promises.document(), (
        "run: make docs"
    )


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
    source = """
@pytest.mark.promise("I-1", "I-2")
@pytest.mark.debian
def test_one(): ...
class TestTwo:
    @pytest.mark.promise("I-3")
    def test_inner(self): ...
TestThree = pytest.mark.promise("I-4")(Model.TestCase)
"""
    assert dict(promises.marked(ast.parse(source).body, "f")) == {
        "f::test_one": ["I-1", "I-2"],
        "f::TestTwo::test_inner": ["I-3"],
        "f::TestThree": ["I-4"],
    }
    with pytest.raises(ValueError, match="by its id"):
        list(promises.marked(ast.parse("@pytest.mark.promise(X)\ndef test(): ...").body, "f"))
    with pytest.raises(ValueError, match="two promises"):
        promises.promises("| I-1 | a |\n| I-1 | b |\n")
    assert constant("pyhv.address.PAGE_SIZE", None) == 4096
    with pytest.raises(AttributeError):
        constant("pyhv.address.NO_SUCH_NUMBER", None)
