# SPDX-License-Identifier: GPL-2.0-only
"""Why the processor came back: the kinds of exit, and how an exception is told from an interrupt.

`classify` is a pure function of what the hardware reports; it needs no processor and no guest.
"""

import enum
from typing import Final, NamedTuple


class ExitKind(enum.IntEnum):
    """What ended a stretch of guest code."""

    HYPERCALL = 0
    SYSTEM_CALL = 1
    PAGE_FAULT = 2
    GENERAL_PROTECTION = 3
    DEVICE_NOT_AVAILABLE = 4
    EXCEPTION = 5
    SOFTWARE_INTERRUPT = 6
    INVALID_OPCODE = 7
    SYSENTER = 8
    CPUID = 9
    PORT_IO = 10
    BUDGET = 11
    CLOCK_READ = 12


class ExitRecord(NamedTuple):
    """One exit, as observers see it.

    `detail` is the hypercall number, the vector, or the port; `time` is system time in ns; `registers` are
    RAX..R15 in the processor's order, then RIP and RFLAGS.
    """

    time: int
    domid: int
    vcpu: int
    kind: ExitKind
    detail: int
    registers: tuple[int, ...]


_BY_VECTOR: Final = {
    7: ExitKind.DEVICE_NOT_AVAILABLE,
    13: ExitKind.GENERAL_PROTECTION,
    14: ExitKind.PAGE_FAULT,
}


def classify(vector: int, software: bool) -> ExitKind:
    """The kind of an exit through the interrupt hook."""
    if software:
        return ExitKind.SOFTWARE_INTERRUPT
    return _BY_VECTOR.get(vector, ExitKind.EXCEPTION)
