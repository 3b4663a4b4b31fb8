# SPDX-License-Identifier: GPL-2.0-only
"""Who wrote: the run is gone through again, the latest part first, with a debugger that sees stores.

The debugger changes nothing of the run (`pyhv.debugger`), so that what it sees is what was. It sees the
stores of guests' instructions to an address that is linear; what the hypervisor stores for a guest, into
rings and shared pages or in place of an instruction, it does not see.
"""

import bisect
from collections.abc import Sequence
from typing import Final, NamedTuple

from pyhv.debugger import Debugger, Reason
from pyhv.loader.image import Symbol
from pyhv.machine import Machine
from pyhv.outside import Position
from pyhv.traps.debug import Observed
from pyhv.until import Outcome, Runnable, Until

_FARTHEST: Final = 1 << 20
"""Bytes behind a symbol without a size that may still belong to it."""


class Written(NamedTuple):
    """The last store to some bytes: by which instruction (linear address), of which vCPU, and when.

    `position` is the moment at which the instruction was done, or that at which its block of code was over.
    """

    rip: int
    vcpu: int
    position: Position
    symbol: str | None
    """Its function, and how far in it; None: the image names none."""


class SeesStores(Until):
    """Never stops; keeps the last store to `length` bytes at `va` of a domain, before `end`."""

    def __init__(self, machine: Machine, domid: int, va: int, length: int, end: Position) -> None:
        self._machine = machine
        self._domid = domid
        self._wanted = Observed(va, length, reads=False, writes=True)
        self._end = end
        self._debugger: Debugger | None = None
        self.last: Written | None = None

    def begin(self, machine: Runnable) -> None:
        """`Until.begin`."""
        self._debugger = self._machine.debug()
        self._debugger.set_data(self._domid, [self._wanted])

    def end(self, machine: Runnable) -> None:
        """`Until.end`."""
        self.outcome(machine)
        self._machine.end_debugging()

    def outcome(self, machine: Runnable) -> Outcome | None:
        """`Until.outcome`."""
        debugger = self._debugger
        if debugger is None or debugger.stop is None:
            return None
        stop = debugger.stop
        resident = self._machine.residents.get(self._domid)
        if stop.reason is Reason.DATA and resident is not None and machine.position <= self._end:
            rip = resident.dispatcher.breakpoints.began
            self.last = Written(rip, stop.vcpu[1], machine.position, None)
        debugger.go()
        return None


def name_of(symbols: Sequence[Symbol], va: int) -> str | None:
    """The symbol that an address belongs to, with how far in it that is; None if there is none."""
    at = bisect.bisect_right(symbols, va, key=lambda symbol: symbol.va) - 1
    if at < 0:
        return None
    symbol = symbols[at]
    offset = va - symbol.va
    if offset >= (symbol.size or _FARTHEST):
        return None
    return f"{symbol.name}+{offset:#x}" if offset else symbol.name
