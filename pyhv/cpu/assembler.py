# SPDX-License-Identifier: GPL-2.0-only
"""x86 assembly text to machine code, 64- and 32-bit: the one door to Keystone.

Syntax: Intel's, as LLVM's assembler reads it (Intel SDM vol. 2 for the instructions). Keystone gives an
error number without a place, accepts a few lines that it then encodes wrongly, and has directives that
print to standard error or kill the process; this module finds the line, refuses what is known to be
misread, and lets only the safe directives through. It knows nothing of Xen, sections or ELF: source in,
bytes out.
"""

import re
from collections.abc import Sequence
from typing import Final

import keystone

from pyhv.cpu.assembling import new_assembler
from pyhv.errors import ImageError

DIRECTIVES: Final = frozenset({".byte", ".short", ".long", ".quad", ".zero", ".balign"})
"""What `assemble` passes on. Keystone 0.9.2 crashes on `.text`, rejects `.org` and mangles `.section`."""

MAX_BYTES: Final = 64 << 20
"""Most that one directive may reserve; a slip in a `.zero` should not take the host's memory."""

_SIZED: Final = frozenset({".zero", ".balign"})

_MISREAD: Final = {
    # Keystone picks the 16-bit operand size for these, which no kernel means.
    64: {"iret": "iretq", "pushf": "pushfq", "popf": "popfq"},
    32: {"iret": "iretd", "pushf": "pushfd", "popf": "popfd"},
}
_MODES: Final = {64: keystone.KS_MODE_64, 32: keystone.KS_MODE_32}
_SHORT_PUSH: Final = frozenset({"cs", "ds", "es", "ss"})

_LABEL: Final = re.compile(r"\s*([A-Za-z_.][\w.]*)\s*:\s*(.*)", re.DOTALL)
_CHARACTER: Final = re.compile(r"'(\\[nt0\\']|[^'\\])'")
_ESCAPED: Final = {"\\n": "\n", "\\t": "\t", "\\0": "\0", "\\\\": "\\", "\\'": "'"}
_NUMBER: Final = re.compile(r"(?<![\w.])\d\w*")
_DECIMAL: Final = re.compile(r"0|[1-9]\d*")
_HEXADECIMAL: Final = re.compile(r"0[xX][0-9a-fA-F]+")
_MNEMONIC: Final = re.compile(r"\.?[A-Za-z][A-Za-z0-9]*")
_PREFIXES: Final = frozenset({"lock", "rep", "repe", "repz", "repne", "repnz"})
_TOKEN: Final = re.compile(r"\s*([A-Za-z_.\d][\w.]*|<<|>>|[-+*/&|^~(),:\[\]])")
_NAME: Final = re.compile(r"[A-Za-z_.]")
_SIZES: Final = frozenset({"byte", "word", "dword", "qword"})
_SEGMENTS: Final = frozenset({"cs", "ds", "es", "fs", "gs", "ss"})
_BINARY: Final = frozenset({"+", "-", "*", "/", "&", "|", "^", "<<", ">>"})
_UNARY: Final = frozenset({"+", "-", "~"})
_CLOSING: Final = {"(": ")", "[": "]"}
_MAX_NESTING: Final = 20


def label_of(line: str) -> tuple[str | None, str]:
    """Split `name: rest` into (name, rest); (None, line) if the line defines no label."""
    match = _LABEL.fullmatch(line)
    return (match[1], match[2]) if match else (None, line)


def assemble(source: str, address: int, origins: Sequence[str] | None = None, *, width: int = 64) -> bytes:
    """Assemble `source` for a processor in `width`-bit mode as if its first byte were at virtual `address`.

    One statement a line, labels as `name:`; no comments. `origins[i]` says where line i came from
    ("hello.S:12"); without it lines are counted from 1. Raises `ImageError` naming the origin, the cause
    and the statement of the first line that cannot be assembled.
    """
    lines = source.split("\n")
    places = list(origins) if origins is not None else [f"line {n}" for n in range(1, len(lines) + 1)]
    if len(places) != len(lines):
        raise ValueError(f"{len(lines)} source lines with {len(places)} origins")
    safe = []
    for line, place in zip(lines, places, strict=True):
        without_characters = _CHARACTER.sub(_code_of, line)
        cause = _refusal(without_characters, width)
        if cause is not None:
            raise ImageError(f"{place}: {cause}: `{line.strip()}`")
        safe.append(_NUMBER.sub(_in_hexadecimal, without_characters))
    code, failure = _keystone("\n".join(safe), address, width)
    if failure is None:
        return code
    culprit, failure = _first_bad_line(safe, address, width)
    raise ImageError(f"{places[culprit]}: {_explain(failure)}: `{lines[culprit].strip()}`")


def _code_of(character: re.Match[str]) -> str:
    """Rewrite 'A' as its number."""
    return f"{ord(_ESCAPED.get(character[1], character[1])):#x}"


def _in_hexadecimal(number: re.Match[str]) -> str:
    """Rewrite a decimal number: the radix of such numbers is uninitialised memory in Keystone 0.9.2."""
    return f"{int(number[0]):#x}" if _DECIMAL.fullmatch(number[0]) else number[0]


def _refusal(line: str, width: int) -> str | None:
    """Why a line must not reach Keystone, or None."""
    statement = label_of(line)[1].strip()
    first, _, operands = statement.partition(" ")
    while first.lower() in _PREFIXES:
        first, _, operands = operands.strip().partition(" ")
    if not statement:
        return None
    mnemonic = first.lower()
    if not _MNEMONIC.fullmatch(first):
        return "not an instruction"
    if mnemonic.startswith(".") and mnemonic not in DIRECTIVES:
        return f"unknown directive {mnemonic}"
    if mnemonic in _MISREAD[width]:
        return f"{mnemonic} would assemble to its 16-bit form, write {_MISREAD[width][mnemonic]}"
    if width == 32 and mnemonic in ("push", "pop") and operands.strip().lower() in _SHORT_PUSH:
        return f"{mnemonic} of a segment register would move 2 bytes; go by a general register"
    for number in _NUMBER.findall(operands):
        if not (_DECIMAL.fullmatch(number) or _HEXADECIMAL.fullmatch(number)):
            return f"{number} is no number; write it in decimal or as 0x..."
    if mnemonic in _SIZED:
        return _refusal_of_size(mnemonic, operands)
    return _Operands(operands, mnemonic.startswith(".")).refusal() if operands.strip() else None


class _Operands:
    """A reader of `operand, operand...` that only says whether Keystone will read them as they look.

    Keystone loops for ever over some malformed expressions and swallows the next line after others. The
    grammar of what is let through:

        operand    = [size "ptr"] [segment ":"] expression
        expression = {"+" | "-" | "~"} primary {operator expression}
        primary    = word | "(" expression ")" | "[" expression "]"

    In an instruction it takes `5 + label` for the memory there, and loses a `- label` inside brackets.
    """

    def __init__(self, text: str, of_directive: bool) -> None:
        self._of_directive = of_directive
        self._tokens: list[str] = []
        at = 0
        text = text.rstrip()
        while at < len(text):
            match = _TOKEN.match(text, at)
            self._tokens.append(match[1] if match else "?")
            at = match.end() if match else len(text)

    def refusal(self) -> str | None:
        """Why the operands are malformed, or None. Consumes them."""
        try:
            self._operand()
            while self._tokens:
                self._expect(",")
                self._operand()
        except ValueError as error:
            return str(error)
        return None

    def _next(self) -> str:
        return self._tokens[0].lower() if self._tokens else ""

    def _expect(self, token: str) -> None:
        if self._next() != token:
            raise ValueError(f"`{token}` is missing" if token in _CLOSING.values() else "malformed operand")
        self._tokens.pop(0)

    def _operand(self) -> None:
        if self._next() in _SIZES:
            self._tokens.pop(0)
            if self._next() != "ptr":
                raise ValueError("a size goes with ptr, as in `qword ptr [rax]`")
            self._tokens.pop(0)
        if self._next() in _SEGMENTS and self._tokens[1:2] == [":"]:
            del self._tokens[:2]
        if not self._of_directive and not self._is_name() and self._next() != "[":
            rest = self._tokens[: self._tokens.index(",")] if "," in self._tokens else self._tokens
            if "[" not in rest and any(_NAME.match(token) for token in rest):
                raise ValueError("an operand with a label must begin with it")
        self._expression(bracketed=False, depth=0)

    def _is_name(self) -> bool:
        return _NAME.match(self._next()) is not None

    def _expression(self, bracketed: bool, depth: int) -> None:
        if depth > _MAX_NESTING:
            raise ValueError(f"parentheses nest deeper than {_MAX_NESTING}")
        while True:
            while self._next() in _UNARY:
                self._tokens.pop(0)
            token = self._next()
            if token in _CLOSING:
                self._tokens.pop(0)
                self._expression(bracketed or token == "[", depth + 1)
                self._expect(_CLOSING[token])
            elif not token or not (token[0].isalnum() or token[0] in "_."):
                raise ValueError("malformed operand")
            elif token == "rip" and not bracketed:
                raise ValueError("rip can only be used inside [ ]")
            else:
                self._tokens.pop(0)
            if self._next() not in _BINARY:
                return
            if self._tokens.pop(0) == "-" and bracketed and not self._of_directive and self._is_name():
                raise ValueError("a label cannot be subtracted inside [ ]")


def _refusal_of_size(directive: str, operands: str) -> str | None:
    """Check `.zero size` and `.balign size, fill`: plain numbers, and no more than any kernel has."""
    size, _, fill = operands.partition(",")
    numbers = [number.strip() for number in (size, fill or "0")]
    if not all(_DECIMAL.fullmatch(number) or _HEXADECIMAL.fullmatch(number) for number in numbers):
        return f"{directive} takes plain numbers"
    return f"more than {MAX_BYTES >> 20} MiB" if int(numbers[0], 0) > MAX_BYTES else None


def _keystone(source: str, address: int, width: int) -> tuple[bytes, keystone.KsError | None]:
    """Run Keystone once: (code, None) or (b"", its error)."""
    if not source.strip():
        return b"", None
    engine = new_assembler(keystone.KS_ARCH_X86, _MODES[width])
    try:
        encoding, _count = engine.asm(source, address, as_bytes=True)
    except keystone.KsError as error:
        return b"", error
    return bytes(encoding or b""), None


def _first_bad_line(lines: Sequence[str], address: int, width: int) -> tuple[int, keystone.KsError | None]:
    """Find the first line at fault in a source that fails as a whole.

    A prefix of the source is wrong exactly when it contains a wrong line, provided that labels defined
    further down exist: they are appended as empty labels. So a binary search finds the line.
    """
    labels = [label_of(line)[0] for line in lines]

    def failure_of(count: int) -> keystone.KsError | None:
        defined = set(labels[:count])
        later = dict.fromkeys(label for label in labels[count:] if label and label not in defined)
        prefix = [*lines[:count], *(f"{label}:" for label in later)]
        return _keystone("\n".join(prefix), address, width)[1]

    good, bad = 0, len(lines)
    while bad - good > 1:
        middle = (good + bad) // 2
        if failure_of(middle) is None:
            good = middle
        else:
            bad = middle
    return bad - 1, failure_of(bad)


def _explain(error: keystone.KsError | None) -> str:
    """Put Keystone's error number into words about the source."""
    known = {
        keystone.KS_ERR_ASM_MNEMONICFAIL: "no such instruction",
        keystone.KS_ERR_ASM_INVALIDOPERAND: "no such operands for this instruction",
        keystone.KS_ERR_ASM_SYMBOL_MISSING: "a name that is defined nowhere",
        keystone.KS_ERR_ASM_SYMBOL_REDEFINED: "a label that already exists",
        keystone.KS_ERR_ASM_DIRECTIVE_VALUE_RANGE: "a value too large for its size",
        keystone.KS_ERR_ASM_MISSINGFEATURE: "no such instruction in this mode",
        keystone.KS_ERR_ASM_FIXUP_INVALID: "this instruction cannot hold a label's address",
    }
    if error is None:
        return "cannot be assembled"
    return known.get(error.errno, str(error))
