# SPDX-License-Identifier: GPL-2.0-only
"""Constants of a module, of whatever module they come from, written into its functions as numbers.

What a constant is, is found without importing anything: of a module's top level, those statements are
executed that assign what can be computed from other constants, and those that define an `enum`.
"""

import ast
import builtins
import enum
from pathlib import Path
from types import SimpleNamespace
from typing import Any

_Names = dict[str, Any]


class Constants:
    """The constants of every module under a folder."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._known: dict[str, _Names] = {}

    def of(self, module: str) -> _Names:
        """Constants by name, those that are imported included."""
        found = self._known.get(module)
        if found is None:
            found = self._known[module] = {"__name__": module}
            path = self._root.joinpath(*module.split("."))
            file = path.with_suffix(".py") if path.with_suffix(".py").is_file() else path / "__init__.py"
            for statement in ast.parse(file.read_text(encoding="utf-8")).body:
                self._execute(statement, found)
        return found

    def _execute(self, statement: ast.stmt, names: _Names) -> None:
        match statement:
            case ast.ImportFrom(module=str(module), names=aliases) if module.split(".")[0] == "pyhv":
                for alias in aliases:
                    self._import(module, alias.name, alias.asname or alias.name, names)
            case ast.Assign() | ast.AnnAssign(value=ast.expr()):
                if isinstance(statement, ast.AnnAssign):
                    statement = ast.Assign([statement.target], statement.value, lineno=0)  # type: ignore[list-item]
                self._try(statement, names)
            case ast.ClassDef(bases=[ast.Attribute(value=ast.Name("enum"))]):
                self._try(statement, names)

    def _import(self, module: str, name: str, known_as: str, names: _Names) -> None:
        inner = f"{module}.{name}"
        path = self._root.joinpath(*inner.split("."))
        if path.with_suffix(".py").is_file():
            names[known_as] = SimpleNamespace(**self.of(inner))
        else:
            found = self.of(module)
            if name in found:
                names[known_as] = found[name]

    @staticmethod
    def _try(statement: ast.stmt, names: _Names) -> None:
        program = ast.Module([ast.fix_missing_locations(statement)], [])
        scope = {"__builtins__": builtins, "enum": enum, **names}
        try:
            exec(compile(program, "<constants>", "exec"), scope)
        except Exception:  # it needs what is no constant
            return
        names.update({name: value for name, value in scope.items() if name not in ("__builtins__", "enum")})


class _Uses(ast.NodeVisitor):
    def __init__(self, names: _Names) -> None:
        self.names = names
        self.found: list[tuple[ast.expr, int]] = []
        self._locals: list[set[str]] = []

    def visit_FunctionDef(self, node: ast.FunctionDef) -> None:
        bound = {argument.arg for argument in ast.walk(node.args) if isinstance(argument, ast.arg)}
        bound |= {
            name.id
            for name in ast.walk(node)
            if isinstance(name, ast.Name) and isinstance(name.ctx, ast.Store)
        }
        self._locals.append(bound)
        for statement in node.body:
            self.visit(statement)
        self._locals.pop()

    def _value(self, node: ast.expr) -> Any:
        """The constant that an expression is, None if it is none."""
        match node:
            case ast.Constant(value=int(value)):
                return value
            case ast.Name(id=name, ctx=ast.Load()):
                return None if any(name in bound for bound in self._locals) else self.names.get(name)
            case ast.Attribute(value=inner, attr=name, ctx=ast.Load()):
                return getattr(self._value(inner), name, None)
            case ast.Subscript(value=inner, slice=index, ctx=ast.Load()):
                held, at = self._value(inner), self._value(index)
                return held[at] if isinstance(held, tuple) and isinstance(at, int) else None
            case ast.BinOp(left=left, right=right) | ast.BoolOp(values=[left, right]):
                return None if not isinstance(node, ast.BinOp) else self._computed(node, left, right)
            case ast.UnaryOp(operand=operand, op=ast.Invert()):
                value = self._value(operand)
                return ~value if type(value) is int else None
        return None

    def _computed(self, node: ast.BinOp, left: ast.expr, right: ast.expr) -> int | None:
        values = [self._value(left), self._value(right)]
        if not all(isinstance(value, int) for value in values):
            return None
        a, b = (int(value) for value in values)
        match node.op:
            case ast.BitOr():
                return a | b
            case ast.BitAnd():
                return a & b
            case ast.Add():
                return a + b
            case ast.Sub():
                return a - b
            case ast.LShift():
                return a << b
            case ast.RShift():
                return a >> b
        return None

    def visit_Compare(self, node: ast.Compare) -> None:
        """`kind is ExitKind.CPUID` asks for the object."""
        if not any(isinstance(operator, ast.Is | ast.IsNot) for operator in node.ops):
            self.generic_visit(node)

    def visit(self, node: ast.AST) -> None:
        if self._locals and isinstance(node, ast.expr) and not isinstance(node, ast.Constant):
            value = self._value(node)
            if type(value) is int or isinstance(value, enum.IntEnum):
                # What does not fit is left to Python whole: MASK64 + 1 of two words would be 0.
                if -(1 << 63) <= value < 1 << 64 and node.end_lineno == node.lineno:
                    self.found.append((node, int(value)))
                return
        super().visit(node)


def literal(value: int) -> str:
    """An integer as C is to have it."""
    if -(1 << 31) <= value < 1 << 31:
        return f"({value})" if value < 0 else str(value)
    return f"cython.cast(cython.ulonglong, {value & (1 << 64) - 1:#x})"


def burnt(source: str, module: str, constants: Constants) -> str:
    """The text of a module with its constants in place; lines stay where they are."""
    uses = _Uses(constants.of(module))
    uses.visit(ast.parse(source))
    lines = [line.encode() for line in source.split("\n")]
    for node, value in sorted(uses.found, key=lambda use: (use[0].lineno, -use[0].col_offset)):
        line = lines[node.lineno - 1]
        lines[node.lineno - 1] = (
            line[: node.col_offset] + literal(value).encode() + line[node.end_col_offset :]
        )
    for number, line in enumerate(lines):
        if line.startswith(b"from pyhv.cpu.words import "):
            lines[number] = b"pass"  # compiled modules have those of the .pxd
    assert lines[0].startswith(b"#")
    lines[0] = b"import cython"
    return "\n".join(line.decode() for line in lines)
