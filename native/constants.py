# SPDX-License-Identifier: GPL-2.0-only
"""Which names of a module are constants, and what they are: found by reading sources, and not by importing.

A name is a constant if its module binds it once, at its top level, to an expression of numbers and other
constants, of whatever module they come from: by `NAME = ...`, by an import, or as a member of an `IntEnum`.
A name that is bound twice, or that a function declares `global`, is none, and neither is what takes a
function to work out.
"""

import ast
import operator
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Final

MOST_SHIFT: Final = 1024
"""`1 << 10**9` is no constant of a processor."""


class NotConstant(Exception):
    """An expression that is known only when the program runs."""


class LeftToPython(NotConstant):
    """An expression of constants that Python itself must answer: an error, or a number beyond all reason."""


@dataclass(frozen=True)
class Module:
    """A module, as `from pyhv.cpu import vmcb` binds it."""

    name: str


class Member(int):
    """A member of an `IntEnum`: as a number, that is what it is; else an object of its own."""


@dataclass(frozen=True)
class Members:
    """The members of an `IntEnum`."""

    numbers: dict[str, int]


Value = int | str | range | Module | Members | tuple["Value", ...] | dict["Value", "Value"]

_BINARY: Final[dict[type[ast.operator], Callable[[int, int], int]]] = {
    ast.BitOr: operator.or_, ast.BitAnd: operator.and_, ast.BitXor: operator.xor,
    ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv, ast.Mod: operator.mod,
    ast.LShift: operator.lshift, ast.RShift: operator.rshift,
}  # fmt: skip
_UNARY: Final[dict[type[ast.unaryop], Callable[[int], int]]] = {
    ast.Invert: operator.invert, ast.USub: operator.neg, ast.UAdd: operator.pos,
}  # fmt: skip


@dataclass(frozen=True)
class Scope:
    """What the names of an expression are, and the attributes of what they name. Both raise NotConstant."""

    name: Callable[[str], Value]
    attribute: Callable[[Value, str], Value]

    def value(self, node: ast.expr) -> Value:
        """What an expression is. NotConstant."""
        match node:
            case ast.Constant(value=int() | str() as value) if not isinstance(value, bool):
                return value
            case ast.Name(id=name, ctx=ast.Load()):
                return self.name(name)
            case ast.Attribute(value=held, attr=name, ctx=ast.Load()):
                return self.attribute(self.value(held), name)
            case ast.BinOp(left=left, op=kind, right=right) if type(kind) in _BINARY:
                return _combined(type(kind), self.number(left), self.number(right))
            case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _UNARY:
                return _UNARY[type(sign)](self.number(operand))
            case ast.Tuple(elts=elements, ctx=ast.Load()):
                return tuple(self.value(element) for element in elements)
            case ast.Dict(keys=keys, values=values):
                pairs = zip(keys, values, strict=True)
                return {self.number(key): self.value(value) for key, value in pairs if key is not None}
            case ast.Subscript(value=held, slice=index, ctx=ast.Load()):
                return _item(self.value(held), self.number(index))
            case ast.GeneratorExp(elt=element, generators=[ast.comprehension() as steps]):
                return self._series(element, steps)
            case ast.Call(func=ast.Name(id=function), args=arguments, keywords=[]):
                return self._called(function, arguments)
        raise NotConstant

    def number(self, node: ast.expr) -> int:
        """What an expression is, if it is a number. NotConstant."""
        value = self.value(node)
        if not isinstance(value, int):
            raise NotConstant
        return value

    def _called(self, function: str, arguments: list[ast.expr]) -> Value:
        """`int(number)`, `tuple(series)`, `range(end)` and `range(first, end)`."""
        match function, [self.value(argument) for argument in arguments]:
            case "int", [int(value)]:
                return int(value)
            case "tuple", [tuple(values)]:
                return values
            case "range", [int(end)]:
                return range(end)
            case "range", [int(first), int(end)]:
                return range(first, end)
        raise NotConstant

    def _series(self, element: ast.expr, steps: ast.comprehension) -> Value:
        """`element for name in range or tuple`, as a tuple."""
        over = self.value(steps.iter)
        if not isinstance(steps.target, ast.Name) or steps.ifs or not isinstance(over, range | tuple):
            raise NotConstant
        name = steps.target.id
        return tuple(self._with(name, step).value(element) for step in over)

    def _with(self, name: str, value: Value) -> "Scope":
        return Scope(lambda asked: value if asked == name else self.name(asked), self.attribute)


def _combined(kind: type[ast.operator], left: int, right: int) -> int:
    if kind in (ast.LShift, ast.RShift) and not 0 <= right <= MOST_SHIFT:
        raise LeftToPython
    if kind in (ast.FloorDiv, ast.Mod) and right == 0:
        raise LeftToPython
    return _BINARY[kind](left, right)


def _item(held: Value, index: int) -> Value:
    if isinstance(held, tuple) and -len(held) <= index < len(held):
        return held[index]
    if isinstance(held, dict) and index in held:
        return held[index]
    raise NotConstant


def bound(node: ast.AST) -> Iterator[str]:
    """Names that a statement binds in the scope that it stands in, some of them twice."""
    match node:
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name
            return
        case ast.Lambda() | ast.ListComp() | ast.SetComp() | ast.DictComp() | ast.GeneratorExp():
            return
        case ast.Import(names=aliases) | ast.ImportFrom(names=aliases):
            yield from (alias.asname or alias.name.split(".")[0] for alias in aliases)
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()):
            yield name
        case ast.ExceptHandler(name=str(name)) | ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)):
            yield name
    for child in ast.iter_child_nodes(node):
        yield from bound(child)


class Constants:
    """The constants of every module of a source tree."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._bindings: dict[str, dict[str, ast.stmt]] = {}
        self._known: dict[tuple[str, str], Value | None] = {}
        self.used: set[Path] = set()
        """The files in which constants were found."""

    def file_of(self, module: str) -> Path | None:
        """A module's file, None if the tree has no such module."""
        path = self._root.joinpath(*module.split("."))
        files = path.with_suffix(".py"), path / "__init__.py"
        return next((file for file in files if file.is_file()), None)

    def scope(self, module: str) -> Scope:
        """A module's own names."""
        return Scope(lambda name: self.named(module, name), self.attribute)

    def named(self, module: str, name: str) -> Value:
        """The constant that a module has under a name. NotConstant."""
        key = module, name
        if key not in self._known:
            self._known[key] = None  # a name that needs itself is no constant
            with suppress(NotConstant):
                self._known[key] = self._find(module, name)
        found = self._known[key]
        file = self.file_of(module)
        if found is None or file is None:
            raise NotConstant
        self.used.add(file)
        return found

    def attribute(self, held: Value, name: str) -> Value:
        """A module's constant, or a member of an enumeration. NotConstant."""
        if isinstance(held, Module):
            return self.named(held.name, name)
        if isinstance(held, Members) and name in held.numbers:
            return Member(held.numbers[name])
        raise NotConstant

    def _find(self, module: str, name: str) -> Value:
        scope, statement = self.scope(module), self._statements(module).get(name)
        match statement:
            case ast.ImportFrom(module=str(source), names=aliases, level=0):
                original = next(alias.name for alias in aliases if name == (alias.asname or alias.name))
                if self.file_of(f"{source}.{original}"):
                    return Module(f"{source}.{original}")
                return self.named(source, original)
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=value):
                values = scope.value(value)
                names = [target.id if isinstance(target, ast.Name) else "" for target in targets]
                if isinstance(values, tuple | range) and len(values) == len(names):
                    return values[names.index(name)]
            case ast.Assign(value=value) | ast.AnnAssign(value=ast.expr() as value):
                return scope.value(value)
            case ast.ClassDef(bases=[ast.Attribute(value=ast.Name(id="enum"), attr="IntEnum")]):
                return self._members(statement, scope)
        raise NotConstant

    @staticmethod
    def _members(statement: ast.ClassDef, outer: Scope) -> Members:
        numbers: dict[str, int] = {}
        inner = Scope(lambda name: numbers[name] if name in numbers else outer.name(name), outer.attribute)
        for line in statement.body:
            match line:
                case ast.Assign(targets=[ast.Name(id=name)], value=value):
                    try:
                        numbers[name] = inner.number(value)
                    except NotConstant:
                        numbers.pop(name, None)
        return Members(numbers)

    def _statements(self, module: str) -> dict[str, ast.stmt]:
        """The statements that bind names, those names that are bound once and at the module's top level."""
        found = self._bindings.get(module)
        if found is None:
            file = self.file_of(module)
            tree = ast.parse(file.read_text(encoding="utf-8")) if file else ast.Module([], [])
            times = Counter(bound(tree))
            for node in ast.walk(tree):
                if isinstance(node, ast.Global):
                    times.update(node.names * 2)
            found = {name: line for line in tree.body for name in bound(line) if times[name] == 1}
            self._bindings[module] = found
        return found
