# SPDX-License-Identifier: GPL-2.0-only
"""What a .pxd declares must be in its .py: a method that was renamed would else be Python's own, and slow.

Cython itself finds less: not an attribute that nobody sets, and not a local that no function has. A .pxd is
read line by line, and a line that is not understood is refused.
"""

import ast
import re
from collections.abc import Iterator
from typing import Final

from native.problem import BuildProblem

_CLASS: Final = re.compile(r"cdef class (\w+)")
_LOCALS: Final = re.compile(r" +@cython\.locals\((.*)\)$")
_METHOD: Final = re.compile(r" +(?:cdef|cpdef) (?:[^=(]*[ *])?(\w+)\(")
_ATTRIBUTES: Final = re.compile(r" +cdef (?:public |readonly )?[\w.]+ (\**\w+(?:, \**\w+)*)$")


def check(source: str, declared: str, name: str) -> None:
    """Compare a module with its .pxd, whose path is `name`. BuildProblem: the first thing that is missing."""
    classes = {node.name: node for node in ast.parse(source).body if isinstance(node, ast.ClassDef)}
    within: _Class | None = None
    for line in _whole_lines(declared):
        if begun := _CLASS.match(line):
            if begun[1] not in classes:
                raise BuildProblem(f"{name} declares a class {begun[1]}, which its module does not have")
            within = _Class(classes[begun[1]], name)
        elif not line.startswith(" "):
            within = None  # functions of C, which no module has
        elif within is not None and line.strip() != "pass":
            within.check(line)


def _whole_lines(text: str) -> Iterator[str]:
    """Lines that say something, those in brackets joined, and without comments."""
    held = ""
    for line in text.splitlines():
        said = line.split("#", maxsplit=1)[0].rstrip()
        held = f"{held} {said.strip()}" if held else said
        if held and held.count("(") == held.count(")"):
            yield held
            held = ""


class _Class:
    """A class, and what has been declared for the method in the next line."""

    def __init__(self, node: ast.ClassDef, name: str) -> None:
        self._node = node
        self._name = name
        self._methods = {line.name: line for line in node.body if isinstance(line, ast.FunctionDef)}
        self._attributes = _attributes(node)
        self._locals: list[str] = []

    def check(self, line: str) -> None:
        """One line of the class' declaration."""
        if found := _LOCALS.match(line):
            self._locals = re.findall(r"(\w+)=", found[1])
        elif found := _METHOD.match(line):
            self._check_method(found[1])
        elif found := _ATTRIBUTES.match(line):
            for attribute in found[1].replace("*", "").split(", "):
                if attribute not in self._attributes:
                    self._refuse(attribute)
        else:
            raise BuildProblem(f"{self._name} has a line that is not understood: {line.strip()}")

    def _check_method(self, name: str) -> None:
        method = self._methods.get(name)
        if method is None:
            self._refuse(name)
            return
        has = {node.id for node in ast.walk(method) if isinstance(node, ast.Name)}
        has |= {node.arg for node in ast.walk(method) if isinstance(node, ast.arg)}
        for local in self._locals:
            if local not in has:
                self._refuse(f"{name}, with a local {local}")
        self._locals = []

    def _refuse(self, what: str) -> None:
        raise BuildProblem(f"{self._name} declares {self._node.name}.{what}, which its module does not have")


def _attributes(node: ast.ClassDef) -> set[str]:
    """What methods store in `self`, what the class annotates, and its __slots__."""
    found = set[str]()
    for part in ast.walk(node):
        match part:
            case ast.Attribute(value=ast.Name(id="self"), attr=name, ctx=ast.Store()):
                found.add(name)
            case ast.AnnAssign(target=ast.Name(id=name)):
                found.add(name)
            case ast.Assign(targets=[ast.Name(id="__slots__")], value=value):
                found |= set(ast.literal_eval(value))
    return found
