# SPDX-License-Identifier: GPL-2.0-only
"""The emulator's library as it lies in this process: its build-id, its functions, its import slots.

A shared library calls functions through a table of pointers, one *slot* for each imported name, also for
most of its own exported functions. The slots of the wheel that pyhv is built on are writable data, so what
stands behind a name can be changed without touching a page of code. This module reads the ELF image in
memory (System V ABI, chapters 4 and 5) and finds slots and symbols; what is put into a slot is the affair
of `guard.py` and of `tuning/`. It never raises for a library of another form: it finds nothing there.
"""

import ctypes
import struct
from collections.abc import Iterator, Mapping
from typing import Final

import numpy as np
import numpy.typing as npt

from pyhv.cpu import binding
from pyhv.cpu.once import once
from pyhv.frozen import frozen

_PT_DYNAMIC, _PT_NOTE, _PF_X = 2, 4, 1
_PT_LOAD: Final = 1
_DT_PLTRELSZ, _DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_JMPREL = 2, 5, 6, 10, 23
_NT_GNU_BUILD_ID: Final = 3
_PROGRAM_HEADER: Final = struct.Struct("<IIQQQQQ")
_RELOCATION: Final = np.dtype([("at", "<u8"), ("kind", "<u4"), ("symbol", "<u4"), ("addend", "<i8")])
_SYMBOL_WORDS: Final = 6
"""A symbol is 24 bytes; the first of its six words is where its name is."""


class _DlInfo(ctypes.Structure):
    _fields_ = [  # the form that ctypes asks for
        ("dli_fname", ctypes.c_char_p),
        ("dli_fbase", ctypes.c_void_p),
        ("dli_sname", ctypes.c_char_p),
        ("dli_saddr", ctypes.c_void_p),
    ]


@frozen
class Library:
    """One loaded library.

    `slots` maps the name of each imported function to the address of its slot, where that may be written.
    `code` is the range of addresses of its machine code.
    """

    base: int
    build_id: str
    slots: Mapping[str, int]
    code: range

    def slot(self, name: str) -> ctypes.c_uint64 | None:
        """The library's pointer to an imported function, None if there is none that may be written."""
        address = self.slots.get(name)
        return None if address is None else ctypes.c_uint64.from_address(address)

    def is_untouched(self, name: str) -> bool:
        """Whether a slot leads where the loader lets it lead: to the function, or (not resolved yet) back
        into the library's own code."""
        slot = self.slot(name)
        return slot is not None and (slot.value in self.code or slot.value == binding.symbol_address(name))


_NOTHING: Final = Library(0, "", {}, range(0))


def _read_library() -> Library:
    info = _DlInfo()
    if not ctypes.CDLL(None).dladdr(ctypes.cast(binding.uc_open, ctypes.c_void_p), ctypes.byref(info)):
        return _NOTHING
    base: int = info.dli_fbase or 0
    header = ctypes.string_at(base, 64)
    if header[:6] != b"\x7fELF\x02\x01":
        return _NOTHING
    tables: dict[int, int] = {}
    build_id, code = "", range(0)
    first, size, count = struct.unpack_from("<Q14xHH", header, 32)
    for number in range(count):
        kind, flags, _, vaddr, _, _, length = _PROGRAM_HEADER.unpack(
            ctypes.string_at(base + first + size * number, _PROGRAM_HEADER.size)
        )
        if kind == _PT_DYNAMIC:
            tables = dict(struct.iter_unpack("<QQ", ctypes.string_at(base + vaddr, length)))
        elif kind == _PT_NOTE and not build_id:
            build_id = _build_id(ctypes.string_at(base + vaddr, length))
        elif kind == _PT_LOAD and flags & _PF_X:
            code = range(base + vaddr, base + vaddr + length)
    return Library(base, build_id, _slots(base, tables), code)


def _build_id(notes: bytes) -> str:
    """The GNU build-id among the notes, in hexadecimal; empty if there is none."""
    at = 0
    while at + 12 <= len(notes):
        name_size, size, kind = struct.unpack_from("<III", notes, at)
        value = at + 12 + (name_size + 3 & ~3)
        if kind == _NT_GNU_BUILD_ID and notes[at + 12 : at + 12 + name_size] == b"GNU\0":
            return notes[value : value + size].hex()
        at = value + (size + 3 & ~3)
    return ""


class _Slots(Mapping[str, int]):
    """Addresses of all writable slots by name, looked for when asked for: a few are wanted of thousands."""

    def __init__(self, strings: bytes, names: npt.NDArray[np.uint32], places: npt.NDArray[np.uint64]) -> None:
        self._strings, self._names, self._places = strings, names, places

    def __getitem__(self, name: str) -> int:
        wanted = name.encode() + b"\0"
        at = self._strings.find(wanted)
        while at >= 0:  # it may also be the end of a longer name
            found = np.flatnonzero(self._names == at)
            if found.size:
                return int(self._places[found[-1]])
            at = self._strings.find(wanted, at + 1)
        raise KeyError(name)

    def __iter__(self) -> Iterator[str]:
        strings = self._strings
        return iter({strings[at : strings.index(b"\0", at)].decode(): 0 for at in self._names.tolist()})

    def __len__(self) -> int:
        return sum(1 for _ in self)


def _slots(base: int, tables: dict[int, int]) -> Mapping[str, int]:
    if not all(tag in tables for tag in (_DT_STRTAB, _DT_SYMTAB, _DT_STRSZ, _DT_JMPREL, _DT_PLTRELSZ)):
        return {}
    # Addresses, which not every loader has relocated.
    where = {
        tag: tables[tag] if tables[tag] >= base else base + tables[tag]
        for tag in (_DT_STRTAB, _DT_SYMTAB, _DT_JMPREL)
    }
    relocations = np.frombuffer(ctypes.string_at(where[_DT_JMPREL], tables[_DT_PLTRELSZ]), _RELOCATION)
    if not len(relocations):
        return {}
    last = int(relocations["symbol"].max())
    symbols = np.frombuffer(ctypes.string_at(where[_DT_SYMTAB], (last + 1) * 4 * _SYMBOL_WORDS), np.uint32)
    at = relocations["at"] + np.uint64(base)
    writable = np.zeros(len(at), bool)
    for start, end in _writable_ranges(int(at.min()), int(at.max())):
        writable |= (at >= start) & (at < end)
    names = symbols[relocations["symbol"][writable] * _SYMBOL_WORDS]
    return _Slots(ctypes.string_at(where[_DT_STRTAB], tables[_DT_STRSZ]), names, at[writable])


def _writable_ranges(first: int, last: int) -> list[tuple[int, int]]:
    """Addresses of this process that may be written, as far as they have to do with these two or between."""
    ranges = []
    with open("/proc/self/maps", encoding="ascii", errors="replace") as maps:
        for line in maps:
            span, flags, *_ = line.split(maxsplit=2)
            if "w" in flags:
                start, end = (int(bound, 16) for bound in span.split("-"))
                if start <= last and first < end:
                    ranges.append((start, end))
    return ranges


@once
def library() -> Library:
    """The emulator's library, read at the first call."""
    return _read_library()
