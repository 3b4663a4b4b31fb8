# SPDX-License-Identifier: GPL-2.0-only
"""The form of a change to the emulator: what a patch declares (the package tells how to write one)."""

from collections.abc import Callable
from typing import Final

from pyhv.cpu.ram import Ram
from pyhv.cpu.trial import Trial
from pyhv.cpu.tuning import layout
from pyhv.frozen import frozen


@frozen
class Facts:
    """What an initial value of a word may depend on."""

    ram: Ram
    processor: int
    """Address of the engine's `CPUState`."""
    region: int
    """Address of the library's description of RAM as a memory region."""
    find_region: int
    """Address of the library's function that the engine's own one replaces."""
    magic: int
    counter: tuple[int, int]
    """Addresses of the native block hook and of its budget, 0 if it has none."""
    allocate: Callable[[int], int]
    """Zeroed memory of so many bytes for as long as the engine lives; its address."""


@frozen
class Word:
    """A 64-bit word in each tuned engine's block; `initial` gives its value when the engine is made."""

    name: str
    initial: Callable[[Facts], int] = lambda _facts: 0


@frozen
class Stub:
    """Native code behind one slot."""

    slot: str
    source: str


@frozen
class Pointer:
    """A function pointer in each tuned engine's data, null in the library, and our code for it."""

    name: str
    place: Callable[[Facts], int]
    """Address of the pointer in one engine."""
    source: str
    """As a stub's, but nothing stands behind it: it must not arrive at its end."""


@frozen
class Patch:
    """One change: all of its stubs are installed, or nothing is."""

    name: str
    promise: str
    """One sentence: what is now true of a tuned engine."""
    stubs: tuple[Stub, ...]
    proof: Callable[[Trial], None]
    """Raises `BrokenPromise`. Others come after it on the same engine: what it changes there, besides the
    processor's state and frames of its own (`Trial.take_frame`), it puts back."""
    words: tuple[Word, ...] = ()
    pointers: tuple[Pointer, ...] = ()


OF_CPU: Final = f"rdi + {layout.CPU_UC}"
"""Where the engine's handle is when RDI is the first argument of a function on `CPUState`."""
OF_ENV: Final = f"rdi + {layout.ENV_UC}"
"""... on `CPUX86State`."""
OF_TCG: Final = f"rdi + {layout.TCG_UC}"
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


_REGISTERS: Final = frozenset(
    {"rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp"} | {f"r{number}" for number in range(8, 16)}
)
