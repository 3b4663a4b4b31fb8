# SPDX-License-Identifier: GPL-2.0-only
"""Code for the host's processor: from pyhv's assembly, by way of templates that are kept in the cache.

Addresses are others in each process. So a source names them, and is assembled once for all processes:

    source      movabs rax, {cpu_exit}; jmp rax
    template    48 b8 .. .. .. .. .. .. .. .. ff e0     eight bytes at 2 are `cpu_exit`
    code        48 b8 60 1f a0 f7 ff 7f 00 00 ff e0     linked, in this process

Assembling, and loading the assembler, takes longer than all that is done with the code until a guest runs.
A template is of its source, of this module and of the installed assembler (`pyhv/cache.py`). When it is made,
it must give, linked for other addresses, the bytes that assembling gives for these.
"""

import functools
import importlib.util
import itertools
import os
import struct
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final, NamedTuple

from pyhv.cache import cache_directory, digest, recall, remember
from pyhv.errors import EngineError, EnvironmentProblem

X86_64, AARCH64 = "x86_64", "aarch64"
_HOLES: Final = (0x5EED_0000_F00D_D1CE, 0x6A09_0000_E667_F3BC)
"""What stands for the first name of a source, in two ways; the bits that are zero count the names."""
_COUNTS_FROM: Final = 32
_BASES: Final = (0x3C6E_F372_0000_0000, 0x510E_527F_0000_0000)
"""Addresses for which a template is assembled; a label's is found by its upper half."""
_MOST_CODE: Final = 1 << 24
_WORD: Final = struct.Struct("<Q")
_COUNTS: Final = struct.Struct("<III")


class Template(NamedTuple):
    """Code with holes: (offset, number of the name) for each, and offsets of addresses within the code."""

    code: bytes
    names: tuple[str, ...]
    holes: tuple[tuple[int, int], ...]
    labels: tuple[int, ...]

    def link(self, at: int = 0, values: Mapping[str, int] | None = None) -> bytes:
        """The code for the address `at`, with a value for each name."""
        linked = bytearray(self.code)
        for offset, number in self.holes:
            _WORD.pack_into(linked, offset, (values or {})[self.names[number]])
        for offset in self.labels:
            _WORD.pack_into(linked, offset, at + _WORD.unpack_from(self.code, offset)[0])
        return bytes(linked)


class _Names(dict[str, object]):
    """For `str.format_map`: constants as they are given, and for any other name what stands for it."""

    def __init__(self, constants: Mapping[str, object], first: int) -> None:
        super().__init__(constants)
        self._first = first
        self.found: list[str] = []

    def __missing__(self, name: str) -> "object":
        return _Family(self, name) if name == "real" else self.stand_in(name)

    def stand_in(self, name: str) -> str:
        if name not in self.found:
            self.found.append(name)
        return f"{self._first | self.found.index(name) << _COUNTS_FROM:#x}"


class _Family:
    """`{real.tb_flush}` is the name "real.tb_flush"."""

    def __init__(self, names: _Names, family: str) -> None:
        self._names, self._family = names, family

    def __getattr__(self, name: str) -> str:
        return self._names.stand_in(f"{self._family}.{name}")


def templates(
    called: str, *sources: str, constants: Mapping[str, object] | None = None, host: str = X86_64
) -> list[Template]:
    """A template of each source, in which `{name}` is a number of 64 bits: of an immediate or of `.quad`.

    `constants` are no names; they may be of any size, and have attributes. `called` is the file's name in the
    cache. EngineError: the assembler does not work. Its own errors are bugs of pyhv.
    """
    filled = [_fill(source, constants or {}, _HOLES[0]) for source in sources]
    made_of = digest(*_makers(), host.encode(), *(text.encode() for text, _ in filled))
    try:
        path = cache_directory() / "native" / called
    except EnvironmentProblem:
        path = None
    kept = None if path is None else recall(path, made_of)
    if kept is not None:
        return list(_unpack(kept, [names for _, names in filled]))
    made = [_assemble(source, constants or {}, host) for source in sources]
    if path is not None:
        remember(path, made_of, b"".join(map(_pack, made)))
    return made


@functools.cache
def code(called: str, source: str, host: str = X86_64) -> bytes:
    """Code that names no address and is the same wherever it stands."""
    (template,) = templates(called, source, host=host)
    return template.link()


def _fill(source: str, constants: Mapping[str, object], first: int) -> tuple[str, tuple[str, ...]]:
    names = _Names(constants, first)
    return source.format_map(names), tuple(names.found)


@functools.cache
def _makers() -> tuple[bytes, bytes]:
    """What makes templates: this module, and the assembler that is installed."""
    found = importlib.util.find_spec("keystone")
    origin = "" if found is None else found.origin or ""
    changed = os.stat(origin).st_mtime_ns if origin else 0
    return Path(__file__).read_bytes(), f"{origin} {changed}".encode()


def _assemble(source: str, constants: Mapping[str, object], host: str) -> Template:
    made = [
        _template(*_fill(source, constants, first), first, base, host)
        for first, base in zip(_HOLES, _BASES, strict=True)
    ]
    for first, base, template, other in zip(_HOLES, _BASES, made, reversed(made), strict=True):
        values = {name: first | number << _COUNTS_FROM for number, name in enumerate(other.names)}
        if other.link(base, values) != template.link(base, values):
            raise EngineError("Keystone encodes an instruction otherwise at another address.")
    return made[0]


def _template(text: str, names: tuple[str, ...], first: int, base: int, host: str) -> Template:
    import keystone

    from pyhv.cpu.assembling import new_assembler

    architecture = {
        X86_64: (keystone.KS_ARCH_X86, keystone.KS_MODE_64),
        AARCH64: (keystone.KS_ARCH_ARM64, keystone.KS_MODE_LITTLE_ENDIAN),
    }[host]
    encoding, _ = new_assembler(*architecture).asm(text, base, as_bytes=True)
    code, holes = bytearray(encoding), []
    for number in range(len(names)):
        stand_in = _WORD.pack(first | number << _COUNTS_FROM)
        offsets = list(_find(code, stand_in))
        if not offsets:
            raise ValueError(f"{names[number]} is no number of 64 bits where it stands")
        holes += [(offset, number) for offset in offsets]
    labels = [at - 4 for at in _find(code, struct.pack("<I", base >> 32)) if at >= 4]
    for offset in labels:
        _WORD.pack_into(code, offset, _WORD.unpack_from(code, offset)[0] - base)
    for offset, _ in holes:
        _WORD.pack_into(code, offset, 0)
    return Template(bytes(code), names, tuple(holes), tuple(labels))


def _find(code: bytes | bytearray, what: bytes) -> Iterator[int]:
    at = code.find(what)
    while at >= 0:
        yield at
        at = code.find(what, at + 1)


def _pack(template: Template) -> bytes:
    counts = _COUNTS.pack(len(template.code), len(template.holes), len(template.labels))
    numbers = [*itertools.chain.from_iterable(template.holes), *template.labels]
    return counts + struct.pack(f"<{len(numbers)}I", *numbers) + template.code


def _unpack(kept: bytes, names: Sequence[tuple[str, ...]]) -> Iterator[Template]:
    at = 0
    for mine in names:
        size, holes, labels = _COUNTS.unpack_from(kept, at)
        at += _COUNTS.size
        numbers = struct.unpack_from(f"<{2 * holes + labels}I", kept, at)
        at += 4 * len(numbers)
        pairs = zip(numbers[: 2 * holes : 2], numbers[1 : 2 * holes : 2], strict=True)
        yield Template(kept[at : at + size], mine, tuple(pairs), numbers[2 * holes :])
        at += size
