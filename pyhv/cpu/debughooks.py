# SPDX-License-Identifier: GPL-2.0-only
"""Breakpoints of an engine that is not tuned: hooks see what a tuned engine sees by itself.

An address is known to the `Screen`, which lets an undefined opcode be translated in its place; so is IRET,
while any address is known. Arriving there is #UD, and the engine asks here whether it is one of those.

Data are watched by a hook for loads and stores, which all of the domain's go through for as long as somebody
watches: that makes them some times slower, where steps make them a hundred times slower. It is native code
and knows machine addresses; what may concern a range raises #DB in the midst of the block, as a page fault
would, with the instruction yet to be done. Where that native code cannot be, on other hosts and other builds,
there is no such unit, and `traps/debug.py` takes steps.
"""

import ctypes
import functools
import mmap
import platform
from collections.abc import Callable, Collection, Mapping
from typing import ClassVar, Final

from pyhv.abi.x86 import Vector
from pyhv.cpu import binding
from pyhv.cpu.debugunit import (
    LOG_ENTRIES,
    MET_BREAKPOINT,
    MET_IRET,
    MET_OBSERVED,
    MET_WATCH,
    RANGES,
    DataAccess,
    DebugUnit,
    Range,
)
from pyhv.cpu.native_code import code
from pyhv.cpu.screen import Screen

_UNNEEDED: Final = 64
"""The engine is started so often with data that nobody watches before the hook is removed: a debugger's guest
takes turns with others, and each change drops all translations."""


MOST_RANGES: Final = 4 * RANGES
"""There are two kinds, and a range at the start of a page is also met from the page before."""


class _Cell(ctypes.Structure):
    """What the native code knows of one engine: the state block and the function that leaves a translation,
    why it has left, where to write accesses down (0: leave), and the ranges: first and last address, whether
    only writes count, and the cause that they are."""

    _fields_ = (
        ("state", ctypes.c_uint64),
        ("leave", ctypes.c_uint64),
        ("cause", ctypes.c_uint64),
        ("log", ctypes.c_uint64),
        ("count", ctypes.c_uint64),
        ("ranges", ctypes.c_uint64 * (4 * MOST_RANGES)),
    )


# void hook(engine, esi: kind, rdx: machine address, ecx: bytes, value, r9: cell)
_HOOK: Final = f"""
    mov ecx, ecx
    lea r10, [rdx + rcx - 1]
    mov r11, [r9 + {_Cell.count.offset}]
    lea r8, [r9 + {_Cell.ranges.offset}]
look:
    test r11, r11
    jz done
    cmp rdx, [r8 + 8]
    ja next
    cmp r10, [r8]
    jb next
    cmp qword ptr [r8 + 16], 0
    je met
    cmp esi, {binding.MEM_WRITE}
    je met
next:
    add r8, 32
    dec r11
    jmp look
met:
    mov r11, [r8 + 24]
    mov r8, [r9 + {_Cell.log.offset}]
    test r8, r8
    jz leave
    mov rax, [r8]
    cmp rax, {LOG_ENTRIES}
    jae done
    inc qword ptr [r8]
    lea rax, [rax + rax * 2]
    lea r8, [r8 + rax * 8 + 8]
    mov [r8], rdx
    mov [r8 + 8], rcx
    mov eax, esi
    mov [r8 + 16], rax
done:
    ret
leave:
    mov [r9 + {_Cell.cause.offset}], r11
    mov rdi, [r9 + {_Cell.state.offset}]
    mov rax, [r9 + {_Cell.leave.offset}]
    mov esi, {Vector.DB.value}
    xor edx, edx
    jmp rax
"""


@functools.cache
def native_hook() -> mmap.mmap | None:
    """The page with the native code, once per process; None if it cannot be."""
    if platform.machine() != "x86_64" or binding.raise_exception_address is None:
        return None
    try:
        page = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
    except OSError:  # a host that refuses writable and executable memory
        return None
    page.write(code("debug-hook", _HOOK))
    return page


class HookedDebugUnit(DebugUnit):
    """The debug hardware of one engine by its `screen` and a hook.

    `state` is the address of its state block; `install` installs a hook for loads and stores, given a native
    function and its argument, and says how to remove it; `drop_all` drops all translations.
    """

    tells_linear = False
    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("_screen", "_install", "_remove", "_drop_all", "_code"), "the engine's"),
        **dict.fromkeys(
            ("_cell", "_log", "observed"), "set anew before each instruction that may meet a breakpoint"
        ),
        "_unneeded": "decides when a hook goes that no exit comes from",
    }

    def __init__(
        self,
        code: mmap.mmap,
        screen: Screen,
        state: int,
        install: Callable[[int, int], Callable[[], None]],
        drop_all: Callable[[], None],
    ) -> None:
        super().__init__()
        self._screen, self._install, self._drop_all = screen, install, drop_all
        self._code = ctypes.addressof(ctypes.c_char.from_buffer(code))
        self._log = (ctypes.c_uint64 * (1 + 3 * LOG_ENTRIES))()
        self._cell = _Cell(state, binding.raise_exception_address or 0)
        self._remove: Callable[[], None] | None = None
        self._unneeded = 0

    def is_settled(self, needed: Collection[int], *, data: bool) -> bool:
        return super().is_settled(needed, data=data) and (not data or self._remove is not None)

    def settle(self, needed: Collection[int], *, data: bool) -> None:
        before = set(self._screen.stops)
        super().settle(needed, data=data)
        self._unneeded = 0 if data else self._unneeded + 1
        hooked = self._remove is not None
        if data and self._remove is None:
            self._remove = self._install(self._code, ctypes.addressof(self._cell))
        elif self._remove is not None and self._unneeded > _UNNEEDED:
            self._remove()
            self._remove = None
        if self._screen.stops != before or hooked != (self._remove is not None):
            self._drop_all()

    def _learn(self, address: int) -> None:
        self._screen.stops.add(address)

    def _forget(self, address: int) -> None:
        self._screen.stops.discard(address)

    def has_stopped(self, address: int) -> bool:
        """The engine has come to an undefined instruction: whether that stands for another."""
        stopped = self._screen.stands_for_another(address)
        if stopped:
            self._cell.cause = MET_BREAKPOINT if address in self.known else MET_IRET
        return stopped

    @property
    def watching(self) -> bool:
        return self._remove is not None

    def watch(self, ranges: tuple[Range, ...], *, iret: bool, record: bool) -> None:
        cell = self._cell
        causes = [(MET_WATCH, one) for one in ranges] + [(MET_OBSERVED, one) for one in self.observed]
        cell.count = len(causes)
        for number, (cause, (first, last, writes_only)) in enumerate(causes):
            cell.ranges[4 * number : 4 * number + 4] = first, last, writes_only, cause
        self._log[0] = 0
        cell.log = ctypes.addressof(self._log) if record else 0
        cell.cause = 0

    def accesses(self) -> list[DataAccess]:
        words = self._log
        return [
            DataAccess(words[at], words[at + 1], words[at + 2] == binding.MEM_WRITE)
            for at in range(1, 1 + 3 * words[0], 3)
        ]

    def cause(self) -> int:
        found, self._cell.cause = self._cell.cause, 0
        return int(found)

    @property
    def next_cause(self) -> int:
        return int(self._cell.cause)
