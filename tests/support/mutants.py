# SPDX-License-Identifier: GPL-2.0-only
"""Mutants: pyhv with one of its checks taken out, interpreted or compiled.

A mutant says which module, what in it - a function, a method, or a name that the module has - and what
stands there instead, as source: the statements of a body, in which a line `...` is the original one, or an
expression. Interpreted, the one object is replaced in this process. What is compiled cannot be replaced:
there a copy of the sources is edited, that module alone is compiled again, and the guest runs on that copy,
in a process of its own.
"""

import ast
import importlib
import os
import re
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

from pyhv import lane

ROOT = Path(__file__).parents[2]
_COMPILE = Path(__file__).with_name("compile_alone.py")
_REFUSED = 4
"""Exit code of `pyhv` where the host lacks something: the mutant never ran."""

_BROKEN = re.compile(
    r"^(\w*ImportError|ModuleNotFoundError|AttributeError|NameError|TypeError)\b", re.MULTILINE
)
"""No check that is missing, but a mutant that is wrong."""


@dataclass(frozen=True)
class Mutant:
    """A check of `module` that is not made; the guest `hostile/GUEST` is to notice."""

    guest: str
    module: str
    what: str
    instead: str

    @property
    def compiled(self) -> bool:
        """Whether that module is compiled in this process' lane."""
        return lane.ACTIVE.name != lane.PLAIN and self.module in lane.HOT

    def source(self) -> str:
        """The module's source, mutated."""
        text = (ROOT / Path(*self.module.split(".")).with_suffix(".py")).read_text(encoding="utf-8")
        tree = ast.parse(text)
        lines = text.splitlines()
        function = _function(tree, self.what)
        if function is not None:
            first, last = _body(function)
            indent = " " * function.body[0].col_offset
            lines[first - 1 : last] = self._statements(lines[first - 1 : last], indent)
        elif (assigned := _assignment(tree, self.what)) is not None:
            assert assigned.value is not None
            start, end = assigned.value, assigned.value.end_lineno or assigned.value.lineno
            lines[start.lineno - 1 : end] = [lines[start.lineno - 1][: start.col_offset] + self.instead]
        else:
            lines.append(f"{self.what} = {self.instead}")  # an imported name
        return "\n".join(lines) + "\n"

    def _statements(self, original: list[str], indent: str) -> list[str]:
        """What is there instead, and behind it, never reached, what was: a .pxd may name its variables."""
        found: list[str] = []
        for line in [*self.instead.splitlines(), *([] if "..." in self.instead else ["return", "..."])]:
            found += original if line == "..." else [indent + line]
        return found

    def apply(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Have it in this process, where the module is interpreted."""
        module = importlib.import_module(self.module)
        tree = ast.parse(self.source())
        function = _function(tree, self.what)
        if function is None:
            monkeypatch.setattr(module, self.what, eval(self.instead, vars(module)))
            return
        names: dict[str, object] = {}
        exec(compile(ast.Module([function], []), f"<mutant of {self.module}>", "exec"), vars(module), names)
        owner, _, name = self.what.rpartition(".")
        monkeypatch.setattr(getattr(module, owner) if owner else module, name, names[function.name])

    def run_compiled(self, tree: Path) -> subprocess.CompletedProcess[str]:
        """Compile it in a copy of the sources, and boot the guest there."""
        _copy(tree)
        path = tree / Path(*self.module.split(".")).with_suffix(".py")
        path.write_text(self.source(), encoding="utf-8")
        done = _python(tree, lane.PLAIN, str(_COMPILE), self.module)
        assert done.returncode == 0, done.stderr
        ran = _python(
            tree, lane.NATIVE, "-m", "pyhv.cli.main", "boot", f"hostile/{self.guest}",
            "--virtual-time", "--vcpus", "2", "--timeout", "2",
        )  # fmt: skip
        assert ran.returncode != _REFUSED, ran.stderr
        assert not _BROKEN.search(ran.stderr), ran.stderr
        return ran


def _function(tree: ast.Module, what: str) -> ast.FunctionDef | None:
    """A function by name, or a method by the names of class and method."""
    owner, _, name = what.rpartition(".")
    places = [tree.body] if not owner else [
        one.body for one in tree.body if isinstance(one, ast.ClassDef) and one.name == owner
    ]  # fmt: skip
    found = [one for body in places for one in body if isinstance(one, ast.FunctionDef) and one.name == name]
    assert found or not owner, f"there is no {what}"
    return found[0] if found else None


def _assignment(tree: ast.Module, name: str) -> ast.Assign | ast.AnnAssign | None:
    for one in tree.body:
        targets = one.targets if isinstance(one, ast.Assign) else [getattr(one, "target", None)]
        if any(isinstance(target, ast.Name) and target.id == name for target in targets):
            assert isinstance(one, ast.Assign | ast.AnnAssign)
            return one
    return None


def _body(function: ast.FunctionDef) -> tuple[int, int]:
    """First and last line of what is done, which is not the docstring."""
    skipped = ast.get_docstring(function, clean=False) is not None
    return function.body[skipped].lineno, function.end_lineno or 0


def _copy(tree: Path) -> None:
    """The sources, and links to what was compiled of them."""
    for folder in ("pyhv", "native"):
        ignored = shutil.ignore_patterns("__pycache__", "*-lane")
        shutil.copytree(ROOT / folder, tree / folder, ignore=ignored)
    built = tree / "pyhv" / lane.folder_of(lane.NATIVE).name
    built.mkdir()
    for file in lane.folder_of(lane.NATIVE).iterdir():
        (built / file.name).symlink_to(file)


def _python(tree: Path, within: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"PYTHONPATH": str(tree), lane.SWITCH: within}
    return subprocess.run(
        [sys.executable, *arguments], cwd=tree, env=environment, capture_output=True, text=True, timeout=300
    )
