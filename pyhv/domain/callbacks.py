# SPDX-License-Identifier: GPL-2.0-only
"""Where a guest's kernel is entered: its trap table, its callbacks, its stack (public headers `xen.h`,
`callback.h`).
"""

from dataclasses import dataclass, field
from typing import Annotated, Final

from pyhv.abi.layout import u8, u16, u64
from pyhv.domain.fields import CallbackFields, CallbacksFields, StackFields

VECTORS: Final = 256
NO_TRAP: Final = (0, 0)


@dataclass(slots=True)
class TrapTable:
    """The virtual IDT."""

    handlers: Annotated[list[tuple[u64, u8]], VECTORS] = field(default_factory=lambda: [NO_TRAP] * VECTORS)
    """Per vector: (address, flags: bits 1..0 DPL, bit 2 masks events)."""
    selectors: Annotated[list[u16], VECTORS] = field(default_factory=lambda: [0] * VECTORS)
    """Per vector: the handler's code segment, in a 32-bit guest."""

    def set(self, vector: int, address: int, flags: int, selector: int) -> None:
        """Enter one handler."""
        self.handlers[vector], self.selectors[vector] = (address, flags), selector

    def clear(self) -> None:
        """Remove all handlers."""
        self.handlers, self.selectors = [NO_TRAP] * VECTORS, [0] * VECTORS


@dataclass(slots=True)
class CallbackEntry(CallbackFields):
    """Where a callback goes, and whether entering it masks events."""

    address: u64 = 0
    mask_events: bool = False
    selector: u16 = 0
    """The code segment of a 32-bit guest's callback."""


@dataclass(slots=True)
class Callbacks(CallbacksFields):
    """What the guest has registered with set_callbacks and callback_op; the NMI's is in the trap table."""

    event: CallbackEntry = field(default_factory=lambda: CallbackEntry(mask_events=True))
    failsafe: CallbackEntry = field(default_factory=CallbackEntry)
    syscall: CallbackEntry = field(default_factory=CallbackEntry)
    syscall32: CallbackEntry = field(default_factory=CallbackEntry)
    sysenter: CallbackEntry = field(default_factory=CallbackEntry)


@dataclass(slots=True)
class KernelStack(StackFields):
    """Where the kernel's stack is when user mode is left."""

    ss: u16 = 0
    sp: u64 = 0
