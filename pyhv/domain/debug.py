# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU's debug registers, and what is under way of a single step (`traps/debug.py` makes them fire)."""

from dataclasses import dataclass, field
from typing import Annotated

from pyhv.abi.layout import u64

_RESET_DR6, _RESET_DR7 = 0xFFFF_0FF0, 0x400


@dataclass(slots=True)
class DebugState:
    """The debug hardware as one vCPU sees it."""

    registers: Annotated[list[u64], 8] = field(default_factory=lambda: [0] * 6 + [_RESET_DR6, _RESET_DR7])
    """DR0..DR7; 4 and 5 are aliases and stay 0."""
    due: u64 | None = None
    """Linear address of an instruction that the engine has stopped at because it must be a step, until it is
    done; the vCPU may be taken off the processor before."""
    unstepped: bool = False
    """The iret hypercall has set TF, and nothing has happened since: a trap comes before it is due."""
    swallow_step: bool = False
    """SYSENTER was executed with TF set: the single step that the emulator reports next is not one."""
