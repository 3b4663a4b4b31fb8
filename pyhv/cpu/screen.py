# SPDX-License-Identifier: GPL-2.0-only
"""#UD for what our processor does not know, on engines that are not tuned (`tuning/refusals.py` has the tuned
ones): each block is looked at once, when it has been translated and before it is executed.

A block with an instruction that is refused is dropped and translated again, and this time the translator
reads an undefined instruction there:

    in memory         90  F0  89  C0  75  05     NOP; LOCK MOV: three bytes decide that it is refused; JNZ
    the translator    90  3E  3E  F1             NOP; two prefixes that mean nothing, and an opcode that the
                                                 emulator refuses: #UD at the first of them

These bytes are in the guest's memory between the start of the engine and the end of the translation, which
is the first thing that it does; no instruction is executed meanwhile. The translation is the one that a tuned
engine makes, so that everything else is as it is there: what ends the block and when, what a store to any of
the bytes drops, single steps, breakpoints, and what the block costs in virtual time.

The hook is public API (UC_HOOK_EDGE_GENERATED). It is not called for the very first block of an engine, so
that one is executed when the engine is made.
"""

import ctypes
import functools
import mmap
import re
from collections.abc import Callable, Iterable
from typing import Final

import numpy as np

from pyhv.address import PAGE_MASK, PAGE_SIZE
from pyhv.cpu import binding
from pyhv.cpu import vmcb as v
from pyhv.cpu.lengths import length
from pyhv.cpu.opcodes import (
    LOCKABLE_SHIFT,
    MAX_LENGTH,
    REFUSED_BITS,
    Verdict,
    judge,
    prefix_kinds,
    table,
)  # fmt: skip
from pyhv.cpu.ram import Ram

_FILLER, _UNDEFINED = 0x3E, 0xF1
_IRET: Final = b"\xcf"
_FIRST_BLOCK: Final = b"\xeb\x00\xf4"
_ESCAPES: Final = (b"", rb"\x0f", rb"\x0f\x38", rb"\x0f\x3a")


def first_refused(code: bytes, size: int, width: int) -> tuple[int, int] | None:
    """(offset, bytes that decide) of the first instruction that is refused, of those that begin in the first
    `size` bytes of `code`, one behind the other."""
    suspects, at = suspicion(width), 0
    while (suspect := suspects.search(code, at)) is not None:
        where = suspect.start()
        while (behind := at + length(code, width, at)) <= where:
            at = behind
        if at >= size:
            return None
        verdict, looked_at = judge(code[at : at + MAX_LENGTH], width)
        if verdict is Verdict.REFUSED:
            return at, looked_at
        at = behind
    return None


def is_iret(code: bytes, width: int) -> bool:
    """Whether the first instruction of `code` is IRET."""
    kinds, at, end = prefix_kinds(width), 0, min(len(code), MAX_LENGTH)
    while at < end and kinds[code[at]]:
        at += 1
    return code[at : at + 1] == _IRET


@functools.cache
def suspicion(width: int) -> re.Pattern[bytes]:
    """What code contains, somewhere, if one of its instructions is refused; it may have none for all that.

    Nearly all code is acquitted so, without looking for the beginnings of instructions.
    """
    words = table(width)
    prefix_bytes = [byte for byte, kind in enumerate(prefix_kinds(width)) if kind]
    prefixes = _class(prefix_bytes) + b"{0,%d}" % (MAX_LENGTH - 2)
    plain: dict[tuple[int, frozenset[int]], list[int]] = {}
    prefixed: dict[tuple[int, frozenset[int]], list[int]] = {}
    lockable: dict[tuple[int, frozenset[int]], list[int]] = {}
    for number, opcode in np.argwhere(words.any(axis=1)).tolist():
        column = words[number, :, opcode].tolist()
        always, *others = (_refused(word & REFUSED_BITS) for word in column)
        more = frozenset[int]().union(*others) - always
        locked = _lockable(column[0] >> LOCKABLE_SHIFT & 0xFF)
        for group, bytes_ in ((plain, always), (prefixed, more), (lockable, locked)):
            if bytes_:
                group.setdefault((number, bytes_), []).append(opcode)
    return re.compile(
        b"|".join([
            _alternatives(plain),
            _class([0x66, 0xF2, 0xF3]) + prefixes + b"(?:" + _alternatives(prefixed) + b")",
            rb"\xf0" + prefixes + b"(?!" + _class(prefix_bytes) + b"|" + _alternatives(lockable) + b")",
        ]),
        re.DOTALL,
    )  # fmt: skip


@functools.cache
def _refused(bits: int) -> frozenset[int]:
    """The ModRM bytes with which an encoding is refused, by the low bits of its word."""
    return frozenset(modrm for modrm in range(256) if bits >> (modrm >> 3 & 7) + 8 * (modrm >= 0xC0) & 1)


@functools.cache
def _lockable(bits: int) -> frozenset[int]:
    """The ModRM bytes with which LOCK may precede an encoding, by those bits of its word."""
    return frozenset(modrm for modrm in range(0xC0) if bits >> (modrm >> 3 & 7) & 1)


def _alternatives(groups: dict[tuple[int, frozenset[int]], list[int]]) -> bytes:
    """Opcodes of each group with one of its ModRM bytes."""
    return b"|".join(
        _ESCAPES[number] + _class(opcodes) + (b"" if len(modrms) == 256 else _class(modrms))
        for (number, modrms), opcodes in groups.items()
    )


def _class(values: Iterable[int]) -> bytes:
    """A regular expression's class of bytes, by its runs: that is faster to compile."""
    runs: list[list[int]] = []
    for value in sorted(values):
        if runs and runs[-1][1] == value - 1:
            runs[-1][1] = value
        else:
            runs.append([value, value])
    return b"[" + b"".join(rb"\x%02x-\x%02x" % (first, last) for first, last in runs) + b"]"


class Screen:
    """Who looks at one engine's blocks.

    `page_of` gives the machine address of the page that holds a linear one, as the processor has it,
    `flags` its mode (HF_ bits), `forget` drops the translations of a range of machine addresses.
    """

    def __init__(
        self,
        handle: int,
        ram: Ram,
        *,
        page_of: Callable[[int], int | None],
        flags: Callable[[], int],
        forget: Callable[[int, int], None],
    ) -> None:
        self._handle, self._raw = handle, ram.writable.raw
        self._page_of, self._flags, self._forget = page_of, flags, forget
        self.stops: set[int] = set()
        """Linear addresses of instructions before which the engine shall stop; while there are any, it does
        so before each IRET as well."""
        self._found: list[int] = []
        """Machine addresses of the bytes to be replaced, of the block that was translated last."""
        self._replaced: list[tuple[int, int]] = []
        """Machine addresses, and what is to be there again as soon as the block is translated."""

    def translated(self, start: int, size: int) -> None:
        """A block has been translated, from a linear address on, and is about to be executed."""
        if self._replaced:
            self._restore()
        else:
            self._look_at(start, size)

    @property
    def rejects(self) -> bool:
        """Whether the block that was translated last is not executed, but will be translated once more."""
        return bool(self._found)

    def stands_for_another(self, address: int) -> bool:
        """Whether an undefined instruction was translated for the one at an address, as that is a stop."""
        return (
            bool(self.stops)
            and not self._is_step()
            and (address in self.stops or is_iret(self._code(address, MAX_LENGTH), self._width()))
        )

    def gave_up(self, start: int) -> bool:
        """The emulator could not translate a block to its end: whether that is because of a refused
        instruction, for which it has no translation, or of which it reads more than decides."""
        if not self._replaced:
            self._look_at(start, PAGE_SIZE)
        return bool(self._found)

    def _look_at(self, start: int, size: int) -> None:
        code, width = self._code(start, size + MAX_LENGTH), self._width()
        found = first_refused(code, size, width)
        if self.stops and not self._is_step():
            stop = self._first_stop(start, code, size if found is None else found[0] + 1, width)
            found = found if stop is None else (stop, 1)
        if found is not None:
            offset, count = found
            addresses = (self._machine_address(start + offset + n) for n in range(count))
            self._found = [address for address in addresses if address is not None]
            binding.uc_emu_stop(self._handle)  # the block is not executed: the engine looks in between

    def _first_stop(self, start: int, code: bytes, size: int, width: int) -> int | None:
        """Where the first instruction begins that is a stop, in the first `size` bytes of a block's code."""
        size = min(size, len(code))
        if _IRET not in code and not any(start <= address < start + size for address in self.stops):
            return None
        at = 0
        while at < size:
            if start + at in self.stops or (
                _IRET[0] in code[at : at + MAX_LENGTH] and is_iret(code[at:], width)
            ):
                return at
            at += length(code, width, at)
        return None

    def _width(self) -> int:
        return 64 if self._flags() & v.HF_CS64 else 32

    def _is_step(self) -> bool:
        """Whether one instruction is executed at a time; then none is a stop."""
        return bool(self._flags() & v.HF_TF)

    def _machine_address(self, va: int) -> int | None:
        page = self._page_of(va)
        return None if page is None else page | va & PAGE_MASK

    def _code(self, start: int, size: int) -> bytes:
        """Bytes at a linear address, as many as there are in its page and the next."""
        code = b""
        for _ in range(2):
            at = self._machine_address(start + len(code))
            if at is None or len(code) == size:
                break
            code += bytes(self._raw[at : min(at + size - len(code), (at | PAGE_MASK) + 1)])
        return code

    def again(self) -> bool:
        """The engine has come back: whether it is to translate a block once more, for which all is ready."""
        if self._replaced:  # it came back before it has translated anything
            self._restore()
        found, self._found = self._found, []
        for number, address in enumerate(found, 1):
            self._replaced.append((address, self._raw[address]))
            self._raw[address] = _UNDEFINED if number == len(found) else _FILLER
            self._forget(address, address + 1)
        return bool(found)

    def _restore(self) -> None:
        for address, byte in self._replaced:
            self._raw[address] = byte
        self._replaced.clear()


def execute_one_block(handle: int) -> None:
    """Let a new engine, without RAM and page tables, execute a jump to a HLT."""
    page = mmap.mmap(-1, mmap.PAGESIZE)
    page.write(_FIRST_BLOCK)
    address = ctypes.addressof(ctypes.c_char.from_buffer(page))
    binding.check(binding.uc_mem_map_ptr(handle, 0, mmap.PAGESIZE, 7, address), "mapping memory")
    binding.check(binding.uc_emu_start(handle, 0, 0, 0, 0), "executing its first block")
    binding.check(binding.uc_mem_unmap(handle, 0, mmap.PAGESIZE), "unmapping memory")
