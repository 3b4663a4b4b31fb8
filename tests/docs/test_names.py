# SPDX-License-Identifier: GPL-2.0-only
"""Names in pyhv: constants stay what they are."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "pyhv"
MODULES = sorted(PACKAGE.rglob("*.py"))


def changeable(tree: ast.Module) -> Iterator[str]:
    """Module-level constants that a type checker would let somebody set anew.

    Several at once (`ES, CS = range(2)`) cannot be annotated; a type's name, `A = TypeVar("A")`, is none.
    """
    for node in tree.body:
        match node:
            case ast.Assign(targets=[ast.Name(id=name)], value=value) if name.isupper():
                if not (isinstance(value, ast.Call) and ast.unparse(value.func) in ("TypeVar", "ParamSpec")):
                    yield name
            case ast.AnnAssign(target=ast.Name(id=name), annotation=annotation) if name.isupper():
                if not ast.unparse(annotation).startswith(("Final", "TypeAlias")):
                    yield name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_constants_are_final(path: Path) -> None:
    assert list(changeable(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_a_changeable_constant_is_seen() -> None:
    tree = ast.parse(
        "A = 1\nB: int = 2\nC: Final = 3\nD: Final[int] = 4\nE, F = 5, 6\nT = TypeVar('T')\nx = 7\n"
    )
    assert list(changeable(tree)) == ["A", "B"]
