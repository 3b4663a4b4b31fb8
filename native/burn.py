# SPDX-License-Identifier: GPL-2.0-only
"""Constants written into a module's functions as numbers: to Cython a module's globals are objects.

Only what functions do is changed, and no line moves, so that tracebacks are right. Left alone are:

- names that the function binds itself, be it as an argument or in a comprehension;
- members of an enum where they are stored, handed on or raised and not computed or compared with: who gets
  them asks for their names;
- operands of `is`, which asks for the object, and patterns of `match`, f-strings, decorators and defaults;
- expressions that are not numbers, or numbers that no machine word holds: `MASK64 + 1` is left to Python
  whole, since of two words it would be 0;
- expressions of more than one line.
"""

import ast
from typing import Final

from native.constants import Constants, LeftToPython, Member, NotConstant, Scope, Value, bound
from native.problem import BuildProblem

WORDS: Final = "pyhv.cpu.words"
"""The module whose functions compiled modules have from `words.pxd` instead."""
_LEAST, _MOST = -(1 << 63), (1 << 64) - 1
_INT_LEAST, _INT_MOST, _LONG_MOST = -(1 << 31), (1 << 31) - 1, (1 << 63) - 1


class _Uses(ast.NodeVisitor):
    """Finds the expressions in functions that are constants."""

    def __init__(self, scope: Scope) -> None:
        self._scope = Scope(self._global, scope.attribute)
        self._outer = scope
        self._locals: list[set[str]] = []
        self.found: list[tuple[ast.expr, int]] = []
        self._is_number = False

    def _global(self, name: str) -> Value:
        if any(name in names for names in self._locals):
            raise NotConstant
        return self._outer.name(name)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        self._locals.append(_bound_within(node))
        for statement in node.body:
            self.visit(statement)
        self._locals.pop()

    def visit_AsyncFunctionDef(self, node: ast.AsyncFunctionDef) -> None:
        raise BuildProblem(f"line {node.lineno}: {node.name} is asynchronous, and nothing here is")

    def visit_Compare(self, node: ast.Compare) -> None:
        if not any(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops):
            self._numbers(node.left, *node.comparators)

    def visit_BinOp(self, node: ast.BinOp) -> None:
        self._numbers(node.left, node.right)

    def visit_UnaryOp(self, node: ast.UnaryOp) -> None:
        self._numbers(node.operand)

    def visit_Subscript(self, node: ast.Subscript) -> None:
        self.visit(node.value)
        self._numbers(node.slice)

    def _numbers(self, *nodes: ast.expr) -> None:
        """Visit what is certainly used as a number."""
        for node in nodes:
            self._is_number = True
            self.visit(node)

    def visit_match_case(self, node: ast.match_case) -> None:
        for part in (node.guard, *node.body):
            if part is not None:
                self.visit(part)

    def visit_JoinedStr(self, node: ast.JoinedStr) -> None:
        """Where its expressions stand differs between versions of Python."""

    def visit_AnnAssign(self, node: ast.AnnAssign) -> None:
        if node.value is not None:
            self.visit(node.value)

    def visit(self, node: ast.AST) -> None:
        is_number, self._is_number = self._is_number, False
        if self._locals and isinstance(node, ast.expr) and not isinstance(node, ast.Constant):
            try:
                value = self._scope.value(node)
            except LeftToPython:
                return
            except NotConstant:
                pass
            else:
                if isinstance(value, Member) and not is_number:
                    return
                if isinstance(value, int):
                    if _LEAST <= value <= _MOST and node.lineno == node.end_lineno:
                        self.found.append((node, value))
                    return
        super().visit(node)


def _bound_within(function: ast.FunctionDef) -> set[str]:
    """Names that a function binds, or something within it: more than its own ones, never fewer."""
    names = set[str]()
    for node in ast.walk(function):
        if isinstance(node, ast.arg):
            names.add(node.arg)
        elif node is not function:
            names.update(bound(node))
    return names


def literal(value: int) -> str:
    """A number as C is to have it: an int, else a signed word, else an unsigned one."""
    if _INT_LEAST <= value <= _INT_MOST:
        return f"({value})" if value < 0 else str(value)
    kind = "longlong" if value <= _LONG_MOST else "ulonglong"
    return f"cython.cast(cython.{kind}, {value:#x})"


def burnt(source: str, module: str, constants: Constants) -> str:
    """The text of a module with its constants in place. BuildProblem."""
    tree = ast.parse(source)
    uses = _Uses(constants.scope(module))
    uses.visit(tree)
    lines = [line.encode() for line in source.split("\n")]
    if not lines[0].startswith(b"#"):
        raise BuildProblem(
            f"{module} does not begin with a comment, in whose place `import cython` would stand"
        )
    for node, value in sorted(uses.found, key=lambda use: (use[0].lineno, -use[0].col_offset)):
        line = lines[node.lineno - 1]
        number = literal(value).encode()
        lines[node.lineno - 1] = line[: node.col_offset] + number + line[node.end_col_offset :]
    for statement in tree.body:
        if isinstance(statement, ast.ImportFrom) and statement.module == WORDS:
            first, last = statement.lineno - 1, statement.end_lineno or statement.lineno
            lines[first:last] = [b"pass", *[b""] * (last - first - 1)]
    lines[0] = b"import cython"
    return "\n".join(line.decode() for line in lines)
