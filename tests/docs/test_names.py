# SPDX-License-Identifier: GPL-2.0-only
"""Names in pyhv: constants stay what they are, a class has its name for itself, predicates have one form."""

import ast
from collections.abc import Iterator, Mapping
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


SHARED_NAMES = {
    "Machine": "`pyhv.Machine` is what a program handles, over the computer of `pyhv.machine`",
    "_Saved": "the state of a module's object as plain data, for that module alone",
}
"""Classes that several modules may have under one name, and why."""


def class_names(tree: ast.Module) -> Iterator[str]:
    """Of all classes, nested ones too."""
    return (node.name for node in ast.walk(tree) if isinstance(node, ast.ClassDef))


def repeated(modules: Mapping[str, ast.Module]) -> dict[str, list[str]]:
    """Names that more than one class has, with the modules of these."""
    homes: dict[str, list[str]] = {}
    for module, tree in modules.items():
        for name in class_names(tree):
            homes.setdefault(name, []).append(module)
    return {name: found for name, found in homes.items() if len(found) > 1}


def test_no_two_classes_have_one_name() -> None:
    found = repeated(
        {str(path.relative_to(PACKAGE)): ast.parse(path.read_text(encoding="utf-8")) for path in MODULES}
    )
    assert {name: homes for name, homes in found.items() if name not in SHARED_NAMES} == {}
    assert found.keys() == SHARED_NAMES.keys(), "an exception that is none any more"
    assert sorted(found["Machine"]) == ["api/machine.py", "machine.py"]


def test_a_repeated_class_is_seen() -> None:
    one = ast.parse("class A: ...\nclass B:\n    class C: ...\n")
    two = ast.parse("def f():\n    class A: ...\nclass C(A): ...\n")
    assert repeated({"one": one, "two": two}) == {"A": ["one", "two"], "C": ["one", "two"]}


def is_statement(name: str) -> bool:
    """Whether a name has a verb: is, has, can, may, or one in the third person (a plural passes for one)."""
    return any(
        word in ("can", "may") or (word.endswith("s") and not word.endswith(("ss", "us")))
        for word in name.split("_")
    )


def misnamed(tree: ast.Module) -> Iterator[str]:
    """Predicates that break the rule of docs/architecture.md (*Names*)."""
    for node in ast.walk(tree):
        match node:
            case ast.AnnAssign(target=ast.Name(id=name), annotation=ast.Name(id="bool")):
                if name.lstrip("_").startswith("is_"):
                    yield name
            case ast.FunctionDef(name=name, returns=ast.Name(id="bool")):
                text = ast.get_docstring(node) or ""
                if any(ast.unparse(decorator) == "property" for decorator in node.decorator_list):
                    wrong = name.lstrip("_").startswith("is_")
                else:
                    wrong = text.startswith("Whether") and not is_statement(name)
                if wrong or text.startswith("Say whether"):
                    yield name


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_predicates_have_one_form(path: Path) -> None:
    assert list(misnamed(ast.parse(path.read_text(encoding="utf-8")))) == []


def test_a_misnamed_predicate_is_seen() -> None:
    tree = ast.parse(
        '''
class Vcpu:
    blocked: bool = False
    is_idle: bool = False
    @property
    def has_output(self) -> bool: ...
    @property
    def is_loaded(self) -> bool:
        """Whether the engine holds it."""
    def holds(self, at: int) -> bool:
        """Whether `at` lies within."""
    def pending(self, port: int) -> bool:
        """Whether the port's bit is set."""
    def wake(self, now: int) -> bool:
        """True if it slept."""
def guest_may_use(va: int) -> bool:
    """Whether it is the guest's."""
def memory_is_wide(cpu: int) -> bool:
    """Whether addresses have 64 bits."""
def is_known(name: str) -> bool:
    """Say whether it is."""
def access_allowed(flags: int) -> bool:
    """Whether a walk permits it."""
def is_up(vcpu: int) -> int: ...
'''
    )
    assert list(misnamed(tree)) == ["is_known", "access_allowed", "is_idle", "is_loaded", "pending"]
