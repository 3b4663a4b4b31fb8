# SPDX-License-Identifier: GPL-2.0-only
"""docs/: files that pages name are there, and so is each function of the picture of one exit."""

import ast
import re
from pathlib import Path

import pytest

from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.loader.layout import plan

ROOT = Path(__file__).parents[2]
ARCHITECTURE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "SPECIFICATION.md", *sorted((ROOT / "docs").glob("*.md"))]
FILE = re.compile(r"`((?:[\w.-]+/)*[\w-]+\.(?:py|md|S|inc))`")
FOLDER = re.compile(r"`((?:\w+/)+)`")
PACKAGE = ROOT / "pyhv"
PLACES = [ROOT, PACKAGE, PACKAGE / "cpu" / "tuning", ROOT / "tests", *sorted(PACKAGE.iterdir())]
"""What names are relative to."""
GONE = {"mine.S", "data/", "fuzz/findings/"}
"""What a reader will write or find, and a folder of the store."""


def picture() -> list[tuple[str, str]]:
    """(file, function) of each step of one exit."""
    text = ARCHITECTURE.partition("## One exit")[2].partition("```")[2].partition("```")[0]
    found, file = [], ""
    for line in text.splitlines():
        if match := re.match(r"(?P<file>[a-z]+/\w+\.py)? +(?P<name>\w+)   ", line):
            file = match["file"] or file
            found.append((file, match["name"]))
    return found


STEPS = picture()


def defined(path: Path) -> set[str]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.ClassDef)}


def test_the_picture_has_its_steps() -> None:
    assert len(STEPS) >= 12
    assert STEPS[0] == ("cpu/engine.py", "syscall")
    assert {file.partition("/")[0] for file, _ in STEPS} == {"cpu", "traps", "hypercalls", "mmu"}


@pytest.mark.parametrize(("file", "name"), STEPS)
def test_each_step_is_in_its_file(file: str, name: str) -> None:
    assert name in defined(PACKAGE / file)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_that_are_named_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    for name in set(FILE.findall(text)) - GONE:
        assert any((place / name).is_file() for place in PLACES), name
    for name in set(FOLDER.findall(text)) - GONE:
        assert any((place / name).is_dir() for place in PLACES), name


def test_words_are_in_order() -> None:
    table = ARCHITECTURE.partition("\n## Words\n")[2]
    words = re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)[2:]
    assert len(words) > 15
    assert words == sorted(words, key=str.casefold)


def test_the_memory_of_a_new_guest_is_as_it_is_drawn() -> None:
    page = (ROOT / "docs" / "guests.md").read_text(encoding="utf-8")
    rows = re.findall(r"^(0x[0-9a-f]+)(?:  (\w[\w ]*?)  |      )", page, re.MULTILINE)
    layout = plan(load_image(build_builtin("hello"), "hello"), 128 << 8)
    assert [(int(va, 16), name) for va, name in rows] == [
        (0, ""),
        *((extent.va, extent.name) for extent in layout.extents()),
        (layout.stack_top, ""),
        (layout.region_end, ""),
        (layout.nr_pages << 12, ""),
    ]
