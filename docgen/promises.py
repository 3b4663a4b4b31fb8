# SPDX-License-Identifier: GPL-2.0-only
"""`docs/promises.md`, written from the tests' markers: `python -m docgen.promises > docs/promises.md`.

A test that holds a promise of SPECIFICATION.md says so: `@pytest.mark.promise("I-1", "L-3")`. The markers are
read from the sources; nothing is imported or run.
"""

import ast
import re
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[1]
SPECIFICATION = ROOT / "SPECIFICATION.md"
_ROW = re.compile(r"^\| (?P<id>[A-Z]+-\d+) \| (?P<promise>[^|]+) \|$", re.MULTILINE)
_MARKER = "pytest.mark.promise"
_INTRODUCTION = """\
# Promises and their tests

Which tests hold each promise of [SPECIFICATION.md](../SPECIFICATION.md): they carry its id,
`@pytest.mark.promise("I-3")`. `pytest -m promise` runs them all.

*This page is generated:* `python -m docgen.promises > docs/promises.md`.

"""


def promises(text: str) -> dict[str, str]:
    """The promises of a specification, by id, in their order. ValueError: an id comes twice."""
    found: dict[str, str] = {}
    for row in _ROW.finditer(text):
        if row["id"] in found:
            raise ValueError(f"there are two promises {row['id']}")
        found[row["id"]] = row["promise"]
    return found


def tests() -> dict[str, list[str]]:
    """The tests that hold each promise, as pytest names them. ValueError: a marker that cannot be read."""
    found: defaultdict[str, list[str]] = defaultdict(list)
    for path in sorted((ROOT / "tests").glob("*/test_*.py")):
        name = path.relative_to(ROOT).as_posix()
        for test, ids in marked(ast.parse(path.read_text(encoding="utf-8")).body, name):
            for promise in ids:
                found[promise].append(test)
    return dict(found)


def marked(body: list[ast.stmt], name: str) -> Iterator[tuple[str, list[str]]]:
    """Names of marked tests, and which promises each says that it holds."""
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            for decorator in node.decorator_list:
                yield from _marker(decorator, f"{name}::{node.name}")
            if isinstance(node, ast.ClassDef):
                yield from marked(node.body, f"{name}::{node.name}")
        elif isinstance(node, ast.Assign) and isinstance(node.value, ast.Call):
            for target in node.targets:  # TestModel = pytest.mark.promise("I-1")(Model.TestCase)
                if isinstance(target, ast.Name):
                    yield from _marker(node.value.func, f"{name}::{target.id}")


def _marker(node: ast.expr, name: str) -> Iterator[tuple[str, list[str]]]:
    if isinstance(node, ast.Call) and ast.unparse(node.func) == _MARKER:
        ids = [argument.value for argument in node.args if isinstance(argument, ast.Constant)]
        if len(ids) != len(node.args) or not ids or node.keywords:
            raise ValueError(f"{name}: a promise is named by its id, as text")
        yield name, [str(promise) for promise in ids]


def document() -> str:
    """The page."""
    holding = tests()
    parts = [_INTRODUCTION]
    for promise, sentence in promises(SPECIFICATION.read_text(encoding="utf-8")).items():
        parts.append(f"## {promise}\n\n{sentence}\n\n")
        parts.extend(f"- `{name}`\n" for name in holding.get(promise, ()))
        parts.append("\n")
    return "".join(parts).rstrip("\n") + "\n"


if __name__ == "__main__":
    print(document(), end="")
