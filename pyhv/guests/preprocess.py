# SPDX-License-Identifier: GPL-2.0-only
"""Kernel sources to plain statements: includes, constants, macros, sections and Xen notes.

The input is the dialect described in `docs/guests.md`: Intel-syntax instructions plus the directives below.
Everything textual is done here, so that each remaining statement still knows the file and line it came from.
This module does not know what an instruction is (`pyhv.cpu.assembler` does) nor what an ELF file looks like.

    # comment                        .include "xen.inc"             .set PAGE_SIZE, 1 << 12
    name:      a label               .macro print text ... .endm    .text  .data  .bss
    .name:     a local label         print "hello"                  .xen_note LOADER "generic"
    .ascii "bytes"  .asciz "with a NUL"        .byte .short .long .quad .zero .balign: data
    .width 32: a 32-bit kernel                 .set NAME, 8, 4: a value for 64 bits and one for 32

A local label belongs to the ordinary label above it: `.again` after `puts:` is `puts.again` to everybody
else. In a macro `\\name` is an argument, also inside strings, and `\\@` a number that differs at each use; an
argument that holds a comma is given in quotes, which are taken off.
"""

import ast
import enum
import operator
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from pyhv.cpu.assembler import label_of
from pyhv.errors import ImageError
from pyhv.frozen import frozen
from pyhv.loader.notes import Elfnote

MAX_DEPTH: Final = 32
"""How deep includes and macros may nest."""


class Section(enum.Enum):
    """Where a statement's bytes go; the value is the ELF section's name."""

    TEXT = ".text"
    DATA = ".data"
    BSS = ".bss"


@frozen
class Statement:
    """One line for the assembler, with its place in the sources ("hello.S:12").

    `path` and `line` say the place once more: of what a macro stands for, where the macro is used.
    """

    section: Section
    text: str
    origin: str
    path: Path | None = None
    line: int = 0


@frozen
class Note:
    """One `.xen_note`: a string, a number or the name of a label."""

    kind: Elfnote
    value: str | int
    textual: bool
    origin: str


@frozen
class Label:
    """A label under its full name; `local` if it was written with a leading dot."""

    name: str
    section: Section
    local: bool


@dataclass
class Program:
    """What a source and its includes say, in order."""

    statements: list[Statement] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)
    labels: list[Label] = field(default_factory=list)
    width: int = 64
    """Of the processor's mode, in bits."""


@frozen
class _Macro:
    name: str
    parameters: tuple[str, ...]
    body: tuple[tuple[str, str], ...]
    """Pairs (text, origin)."""


_STRING: Final = re.compile(r"\"(?:\\.|[^\"\\])*\"|'(?:\\.|[^'\\])'")
_NAME: Final = re.compile(r"(?<![\w.])[A-Za-z_]\w*(?!\w)")
_LOCAL: Final = re.compile(r"(?<![\w.])\.([A-Za-z_]\w*)")
_IDENTIFIER: Final = re.compile(r"[A-Za-z_]\w*")
_PARAMETER: Final = re.compile(r"\\(@|[A-Za-z_]\w*)")
_ESCAPES: Final = {"n": "\n", "t": "\t", "r": "\r", "0": "\0", "\\": "\\", '"': '"', "'": "'"}
_KNOWN_ESCAPES: Final = " ".join(f"\\{letter}" for letter in _ESCAPES)
_OPERATORS: Final[dict[type[ast.AST], Callable[[int, int], int]]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.LShift: operator.lshift,
    ast.RShift: operator.rshift,
    ast.BitOr: operator.or_,
    ast.BitAnd: operator.and_,
    ast.BitXor: operator.xor,
}


def preprocess(source: Path, include_path: Sequence[Path]) -> Program:
    """Read `source` and all it includes.

    An include is looked for beside the including file, then in each directory of `include_path`. Raises
    `ImageError` with file and line for anything malformed.
    """
    reader = _Reader(include_path)
    reader.read_file(source, f"{source}", 0)
    return reader.program


def parse_string(text: str, origin: str) -> bytes:
    """Value of a quoted string literal, in UTF-8 and without a NUL. Raises `ImageError`."""
    if len(text) < 2 or text[0] != '"' or not _STRING.fullmatch(text):
        raise ImageError(f'{origin}: a string in "double quotes" is wanted, not `{text}`')

    def escaped(match: re.Match[str]) -> str:
        if match[1] not in _ESCAPES:
            raise ImageError(f"{origin}: unknown escape {match[0]}; a string may hold {_KNOWN_ESCAPES}")
        return _ESCAPES[match[1]]

    return re.sub(r"\\(.)", escaped, text[1:-1]).encode()


class _Reader:
    """The state of one run: constants, macros, the current section and the current ordinary label."""

    def __init__(self, include_path: Sequence[Path]) -> None:
        self.program = Program()
        self._include_path = include_path
        self._constants: dict[str, int] = {}
        self._macros: dict[str, _Macro] = {}
        self._section = Section.TEXT
        self._scope = ""
        self._expansions = 0
        self._defined: dict[str, str] = {}
        self._at: tuple[Path | None, int] = (None, 0)
        """The file and the line that was read last; a macro's body was read before."""

    def read_file(self, path: Path, wanted_at: str, depth: int) -> None:
        """Process one file. Origins carry its name without the directory."""
        try:
            text = path.read_text(encoding="utf-8")
        except OSError as error:
            raise ImageError(f"{wanted_at}: cannot read {path}: {error.strerror}") from error
        except UnicodeDecodeError as error:
            raise ImageError(f"{path}: not UTF-8 text at byte {error.start}") from error

        def lines() -> Iterator[tuple[str, str]]:
            for number, line in enumerate(text.split("\n"), 1):
                self._at = path, number
                yield line, f"{path.name}:{number}"

        self._read_lines(lines(), path.parent, depth)

    def _read_lines(self, lines: Iterator[tuple[str, str]], directory: Path, depth: int) -> None:
        for raw, origin in lines:
            line = _strip_comment(raw).strip()
            first, _, rest = line.partition(" ")
            if first == ".macro":
                self._define_macro(rest.strip(), origin, lines)
            elif first == ".include":
                self._include(rest.strip(), origin, directory, depth)
            elif line:
                self._line(line, origin, directory, depth)

    def _line(self, line: str, origin: str, directory: Path, depth: int) -> None:
        """One line that is no include and no macro definition: labels, a statement, or both."""
        label, statement = label_of(line)
        while label is not None:
            self._define_label(label, origin)
            label, statement = label_of(statement)
        first, _, rest = statement.strip().partition(" ")
        rest = rest.strip()
        if first in self._macros:
            self._expand(self._macros[first], rest, origin, directory, depth)
        elif first in {section.value for section in Section}:
            self._section = Section(first)
        elif first == ".set":
            self._set(rest, origin)
        elif first == ".width":
            self._width(rest, origin)
        elif first == ".xen_note":
            self._note(rest, origin)
        elif first in (".ascii", ".asciz"):
            value = parse_string(rest, origin) + (b"\0" if first == ".asciz" else b"")
            if value:
                self._emit(".byte " + ", ".join(str(byte) for byte in value), origin)
        elif first == ".balign" and self._section is not Section.TEXT:
            # The assembler sees one section and would fill with instructions.
            self._emit(self._substitute(f".balign {rest}, 0"), origin)
        elif first:
            self._emit(_fold(self._substitute(statement.strip())), origin)

    def _emit(self, text: str, origin: str) -> None:
        self.program.statements.append(Statement(self._section, text, origin, *self._at))

    def _define_label(self, label: str, origin: str) -> None:
        local = label.startswith(".")
        if local and not self._scope:
            raise ImageError(f"{origin}: local label {label} comes before any ordinary label")
        name = self._scope + label if local else label
        if name in self._defined:
            raise ImageError(f"{origin}: label {name} exists already, from {self._defined[name]}")
        if name in self._constants:
            raise ImageError(f"{origin}: {name} is the name of a constant already")
        if not local and self._section is Section.TEXT:
            # Data may be defined in the middle of a routine (strings of `print`), which goes on after it.
            self._scope = label
        self._defined[name] = origin
        self.program.labels.append(Label(name, self._section, local))
        self._emit(f"{name}:", origin)

    def _include(self, argument: str, origin: str, directory: Path, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise ImageError(f"{origin}: includes nest deeper than {MAX_DEPTH}; does a file include itself?")
        name = parse_string(argument, origin).decode()
        for candidate in (directory, *self._include_path):
            if (candidate / name).is_file():
                self.read_file(candidate / name, origin, depth + 1)
                return
        raise ImageError(f"{origin}: no file {name} beside the source or among pyhv's own includes")

    def _width(self, argument: str, origin: str) -> None:
        if argument not in ("32", "64"):
            raise ImageError(f"{origin}: write `.width 32` or `.width 64`")
        if self.program.statements or self._constants:
            raise ImageError(f"{origin}: .width comes too late; it goes before all code, data and constants")
        self.program.width = int(argument)

    def _set(self, argument: str, origin: str) -> None:
        name, *expressions = _split_arguments(argument) or [""]
        if not 1 <= len(expressions) <= 2 or not _IDENTIFIER.fullmatch(name):
            raise ImageError(f"{origin}: write `.set NAME, value` or `.set NAME, 64-bit value, 32-bit value`")
        expression = expressions[-1 if self.program.width == 32 else 0]
        value = _evaluate(self._substitute(expression), origin)
        if self._constants.get(name, value) != value:
            raise ImageError(f"{origin}: constant {name} is {self._constants[name]:#x} already")
        self._constants[name] = value

    def _note(self, argument: str, origin: str) -> None:
        name, _, value = argument.partition(" ")
        value = value.strip()
        if name not in Elfnote.__members__ or not value:
            raise ImageError(f"{origin}: write `.xen_note NAME value` with a name from Xen's elfnote.h")
        kind = Elfnote[name]
        if value.startswith('"'):
            note = Note(kind, parse_string(value, origin).decode(), True, origin)
        elif value in self._constants or not _IDENTIFIER.fullmatch(value):
            note = Note(kind, _evaluate(self._substitute(value), origin), False, origin)
        else:
            note = Note(kind, value, False, origin)
        self.program.notes.append(note)

    def _define_macro(self, header: str, origin: str, lines: Iterator[tuple[str, str]]) -> None:
        name, _, rest = header.partition(" ")
        parameters = tuple(part.strip() for part in rest.split(",")) if rest.strip() else ()
        if not all(_IDENTIFIER.fullmatch(word) for word in (name, *parameters)):
            raise ImageError(f"{origin}: write `.macro name parameter, parameter`")
        if name in self._macros:
            raise ImageError(f"{origin}: macro {name} exists already")
        body: list[tuple[str, str]] = []
        for raw, place in lines:
            line = _strip_comment(raw).strip()
            if line == ".endm":
                self._macros[name] = _Macro(name, parameters, tuple(body))
                return
            if line:
                body.append((line, place))
        raise ImageError(f"{origin}: macro {name} has no .endm")

    def _expand(self, macro: _Macro, arguments: str, origin: str, directory: Path, depth: int) -> None:
        if depth >= MAX_DEPTH:
            raise ImageError(f"{origin}: macros nest deeper than {MAX_DEPTH}; does {macro.name} use itself?")
        given = _split_arguments(arguments)
        if len(given) != len(macro.parameters):
            wanted = ", ".join(macro.parameters) or "nothing"
            raise ImageError(f"{origin}: macro {macro.name} takes {wanted}; it was given `{arguments}`")
        values = {
            parameter: _unquoted(argument)
            for parameter, argument in zip(macro.parameters, given, strict=True)
        } | {"@": str(self._expansions)}
        self._expansions += 1

        def lines() -> Iterator[tuple[str, str]]:
            for text, place in macro.body:

                def in_code(match: re.Match[str], place: str = place) -> str:
                    if match[1] not in values:
                        raise ImageError(f"{place}: macro {macro.name} has no parameter {match[0]}")
                    return values[match[1]]

                def in_string(match: re.Match[str]) -> str:
                    return values.get(match[1], match[0])  # what is no parameter is an escape

                changed = _apart(
                    text,
                    lambda code: _PARAMETER.sub(in_code, code),
                    lambda quoted: _PARAMETER.sub(in_string, quoted),
                )
                # The user's line is the one to look at; the macro's own is told as well.
                yield changed, f"{origin} ({place})"

        self._read_lines(lines(), directory, depth + 1)

    def _substitute(self, text: str) -> str:
        """Replace constants by their values and local labels by their full names."""

        def constant(match: re.Match[str]) -> str:
            value = self._constants.get(match[0])
            if value is None:
                return match[0]
            return f"{value:#x}" if value >= 0 else f"({value})"

        def local(match: re.Match[str]) -> str:
            return f"{self._scope}.{match[1]}"

        first, space, rest = text.partition(" ")
        replaced = _apart(rest, lambda code: _LOCAL.sub(local, _NAME.sub(constant, code)), str)
        if not space:
            return _NAME.sub(constant, text)
        # A lone expression (`.set`) has no mnemonic to protect; a mnemonic is never a constant's name.
        return _NAME.sub(constant, first) + space + replaced


def _fold(statement: str) -> str:
    """Replace operands that are constant expressions by their values: Keystone only knows some operators."""
    first, space, rest = statement.partition(" ")
    if not space:
        return statement
    operands = []
    for operand in _split_arguments(rest):
        try:
            value = _evaluate(operand, "")
        except ImageError:
            operands.append(operand)
        else:
            operands.append(f"{value:#x}" if value >= 0 else str(value))
    return f"{first} {', '.join(operands)}"


def _apart(text: str, in_code: Callable[[str], str], in_string: Callable[[str], str]) -> str:
    """Apply one change to the parts of `text` that are not quoted and another to those that are."""
    parts: list[str] = []
    at = 0
    for quoted in _STRING.finditer(text):
        parts += [in_code(text[at : quoted.start()]), in_string(quoted[0])]
        at = quoted.end()
    return "".join([*parts, in_code(text[at:])])


def _unquoted(argument: str) -> str:
    """A macro argument without the quotes around it; escapes in it stay as they are."""
    return argument[1:-1] if argument.startswith('"') and _STRING.fullmatch(argument) else argument


def _strip_comment(line: str) -> str:
    at = 0
    while (sharp := line.find("#", at)) >= 0:
        quoted = next((q for q in _STRING.finditer(line) if q.start() < sharp < q.end()), None)
        if quoted is None:
            return line[:sharp]
        at = quoted.end()
    return line


def _split_arguments(text: str) -> list[str]:
    """Split at the commas that are outside strings and brackets."""
    if not text.strip():
        return []
    masked = _STRING.sub(lambda quoted: "s" * len(quoted[0]), text)
    parts, start, depth = [], 0, 0
    for at, char in enumerate(masked):
        if char in "([":
            depth += 1
        elif char in ")]":
            depth -= 1
        elif char == "," and depth == 0:
            parts.append(text[start:at].strip())
            start = at + 1
    return [*parts, text[start:].strip()]


def _evaluate(text: str, origin: str) -> int:
    """Value of a constant expression: integers, + - * / << >> & | ^ ~ and parentheses."""

    def value(node: ast.AST) -> int:
        if isinstance(node, ast.Constant) and type(node.value) is int:
            return node.value
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
            return -value(node.operand)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Invert):
            return ~value(node.operand)
        if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
            left, right = value(node.left), value(node.right)
            if isinstance(node.op, ast.LShift) and not 0 <= right < 64:
                raise ValueError
            return _OPERATORS[type(node.op)](left, right)
        raise ValueError

    try:
        result = value(ast.parse(text.replace("/", "//"), mode="eval").body)
    except (ValueError, SyntaxError, ZeroDivisionError, RecursionError) as error:
        raise ImageError(f"{origin}: `{text}` is no constant number") from error
    if not -(1 << 63) <= result < 1 << 64:
        raise ImageError(f"{origin}: `{text}` does not fit in 64 bits")
    return result
