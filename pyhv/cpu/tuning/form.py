# SPDX-License-Identifier: GPL-2.0-only
"""The form of a change to the emulator: what a patch declares (the package tells how to write one)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from pyhv.cpu.tuning import layout

if TYPE_CHECKING:
    from pyhv.cpu.trial import Trial
    from pyhv.cpu.tuning.block import Facts


@dataclass(frozen=True)
class Word:
    """A 64-bit word in each tuned engine's block; `initial` gives its value when the engine is made."""

    name: str
    initial: Callable[[Facts], int] = lambda _facts: 0


@dataclass(frozen=True)
class Stub:
    """Native code behind one slot."""

    slot: str
    source: str


@dataclass(frozen=True)
class Pointer:
    """A function pointer in each tuned engine's data, null in the library, and our code for it."""

    name: str
    place: Callable[[Facts], int]
    """Address of the pointer in one engine."""
    source: str
    """As a stub's, but nothing stands behind it: it must not arrive at its end."""


@dataclass(frozen=True)
class Patch:
    """One change: all of its stubs are installed, or nothing is."""

    name: str
    promise: str
    """One sentence: what is now true of a tuned engine."""
    stubs: tuple[Stub, ...]
    proof: Callable[[Trial], None]
    """Raises `BrokenPromise`. It may change whatever it likes in the throwaway engine."""
    words: tuple[Word, ...] = ()
    pointers: tuple[Pointer, ...] = ()


OF_CPU = f"rdi + {layout.CPU_UC}"
"""Where the engine's handle is when RDI is the first argument of a function on `CPUState`."""
OF_ENV = f"rdi + {layout.ENV_UC}"
"""... on `CPUX86State`."""
OF_TCG = f"rdi + {layout.TCG_UC}"
"""... on `TCGContext`."""


def find_block(uc: str, otherwise: str = "next", into: str = "rax", scratch: str = "r10") -> str:
    """Code that loads the address of an engine's block, or jumps to `otherwise` if the engine has none.

    `uc` is the memory operand, or the register, that holds the engine's handle. Changes `into` and `scratch`
    alone. For an engine without a block this reads eight bytes before a function of the library: harmless.
    """
    load = f"mov {into}, {uc if uc in _REGISTERS else f'[{uc}]'}"
    return f"""
    {load}
    mov {into}, [{into} + {layout.UC_MEMORY_MAPPING}]
    movabs {scratch}, {{magic}}
    cmp [{into} + {{word.magic}}], {scratch}
    jne {otherwise}
"""


_REGISTERS = frozenset(
    {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"} | {f"r{number}" for number in range(8, 16)}
)
