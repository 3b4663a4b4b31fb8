# SPDX-License-Identifier: GPL-2.0-only
"""Functions as observers of a machine: they are told exits, or hypercalls with their guest and arguments."""

from collections.abc import Callable
from typing import Final

from pyhv.abi.numbers import Hypercall
from pyhv.api.guest import Guest
from pyhv.cpu import vmcb as v
from pyhv.cpu.exits import ExitKind, ExitRecord
from pyhv.frozen import frozen

_NUMBERS: Final = frozenset(Hypercall)
_ARGUMENTS: Final = {
    64: (v.RDI, v.RSI, v.RDX, v.R10, v.R8),
    32: (v.RBX, v.RCX, v.RDX, v.RSI, v.RDI),
}


@frozen
class HypercallMade:
    """A hypercall that a guest is making: five argument registers, whatever it uses of them."""

    guest: Guest
    vcpu: int
    time: int
    """Machine time in ns."""
    name: str
    arguments: tuple[int, ...]


class ExitListener:
    """Tells every exit."""

    def __init__(self, listener: Callable[[ExitRecord], None]) -> None:
        self.exit = listener


class HypercallListener:
    """Tells hypercalls; `find_guest` knows who has a domid now."""

    def __init__(
        self, listener: Callable[[HypercallMade], None], find_guest: Callable[[int], Guest | None]
    ) -> None:
        self._listener = listener
        self._find_guest = find_guest

    def exit(self, record: ExitRecord) -> None:
        """`Observer`."""
        guest = self._find_guest(record.domid) if record.kind is ExitKind.HYPERCALL else None
        if guest is None:
            return
        name = Hypercall(record.detail).name.lower() if record.detail in _NUMBERS else str(record.detail)
        words = tuple(record.registers[register] for register in _ARGUMENTS[guest.width])
        self._listener(HypercallMade(guest, record.vcpu, record.time, name, words))
