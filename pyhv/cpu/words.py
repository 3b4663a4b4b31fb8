# SPDX-License-Identifier: GPL-2.0-only
"""Views of memory as modules index them that may be compiled: interpreted a memoryview, compiled a pointer.

`q = words64(view)` and then `q[3]` is the third word in either case: here a view is its own words, compiled
modules have the functions of `words.pxd` instead. A pointer is not checked against its end: whoever holds
one indexes it with a number that he has checked, or that is a constant. What is viewed has to outlive the
pointer, as RAM, frame columns and an engine's state block outlive who looks at them.
"""

import struct
from collections.abc import Callable
from typing import Final

import numpy as np

TABLE_ENTRIES: Final = 512
_PRESENT: Final = np.uint64(1)
COMPILED: Final = False
"""True in a compiled module: a loop over the entries of a table is better there than numpy."""


def new_words64(count: int) -> memoryview:
    """So many 64-bit words of their own, all 0; for counters, that compiled code counts without objects."""
    return memoryview(bytearray(8 * count)).cast("Q")


def words64(view: memoryview) -> memoryview:
    """64-bit words of a view of 64-bit words."""
    return view


def words32(view: memoryview) -> memoryview:
    """32-bit words of a view of 32-bit words."""
    return view


def words16(view: memoryview) -> memoryview:
    """16-bit words of a view of 16-bit words."""
    return view


def octets(view: memoryview) -> memoryview:
    """The bytes of a view of bytes."""
    return view


def fetch(octets: memoryview, _size: int, at: int, length: int) -> bytes:
    """A copy of bytes, all of which are among those of the view, whose size it is told; IndexError."""
    data = bytes(octets[at : at + length])
    if len(data) != length:
        raise IndexError(at)
    return data


def store(octets: memoryview, size: int, at: int, data: bytes) -> None:
    """Store bytes among those of the view, whose size it is told; IndexError."""
    end = at + len(data)
    if end > size:
        raise IndexError(at)
    octets[at:end] = data


def word32_at(octets: memoryview, at: int) -> int:
    """The 32-bit word at an offset of any alignment."""
    value: int = _U32(octets, at)[0]
    return value


def word64_at(octets: memoryview, at: int) -> int:
    """The 64-bit word."""
    value: int = _U64(octets, at)[0]
    return value


def flags_reader(lazy: Callable[[], int], _function: int, _handle: int) -> Callable[[], int]:
    """How `lazy_flags` gets at flags: by `lazy`; compiled, by the C function (engine, register, pointer)."""
    return lazy


def lazy_flags(reader: Callable[[], int]) -> int:
    """RFLAGS, worked out by the emulator."""
    return reader()


def syscall_entry(_hooks: object) -> int:
    """Address of a C function that is entered for SYSCALL directly; 0, as here, if there is none."""
    return 0


def syscall_hook(_hooks: object) -> int:
    """The same for the emulator's list of hooks."""
    return 0


def exception_entry(_hooks: object) -> int:
    """The same for exceptions."""
    return 0


def present_in(q: memoryview, first: int) -> list[int]:
    """Which of the 512 entries of a page table from word `first` on are present."""
    words = np.frombuffer(q[first : first + TABLE_ENTRIES], np.uint64)
    slots: list[int] = np.flatnonzero(words & _PRESENT).tolist()
    return slots


packed7: Final = struct.Struct("<7Q").pack
packed8: Final = struct.Struct("<8Q").pack
"""Seven or eight 64-bit words as bytes."""
_U32: Final = struct.Struct("<I").unpack_from
_U64: Final = struct.Struct("<Q").unpack_from
nine_at: Final = struct.Struct("<9Q").unpack_from
nine_in: Final = struct.Struct("<9Q").unpack
"""Nine 64-bit words, to be indexed: those at an offset of a view, those that bytes are."""
two_at: Final = struct.Struct("<2Q").unpack_from
two_in: Final = struct.Struct("<2Q").unpack
"""Two words likewise."""
