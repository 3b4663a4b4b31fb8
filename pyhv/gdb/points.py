# SPDX-License-Identifier: GPL-2.0-only
"""gdb's breakpoints and watchpoints: what it has set for which guest (GDB manual, E.2 `Z`).

    Z0, Z1   breakpoints, which gdb takes for software's and hardware's; here they are one
    Z2       a write to data            Z3   a read            Z4   either

None of them is seen by the guest, and its own breakpoints are another matter: nothing is written into its
code, its debug registers stay as they are.
"""

from typing import Final

from pyhv.address import PAGE_SIZE
from pyhv.cpu.clockwork import MOST_ADDRESSES
from pyhv.cpu.debugunit import RANGES
from pyhv.debugger import Debugger
from pyhv.gdb.guests import RequestRefused
from pyhv.traps.debug import Observed

_SOFTWARE, _HARDWARE, _WRITE, _READ, _ACCESS = range(5)
_WORDS: Final = {_WRITE: "watch", _READ: "rwatch", _ACCESS: "awatch"}


class Points:
    """Those of one session."""

    def __init__(self, debugger: Debugger) -> None:
        self._debugger = debugger
        self._code: dict[int, set[tuple[int, int]]] = {}
        """Kinds and addresses, by domid."""
        self._data: dict[int, dict[tuple[int, int, int], Observed]] = {}
        """By domid, and by kind, address and size."""

    def insert(self, domid: int, kind: int, address: int, size: int) -> None:
        """Set one; that it is set already does not matter. RequestRefused."""
        if kind in (_SOFTWARE, _HARDWARE):
            code = self._code.setdefault(domid, set())
            if len({at for _, at in code} | {address}) > MOST_ADDRESSES:
                raise RequestRefused(f"there can be {MOST_ADDRESSES} breakpoints")
            code.add((kind, address))
            self._set_code(domid)
            return
        if not self._debugger.can_observe(domid):
            raise RequestRefused(
                "accesses to data cannot be observed on this host: set can-use-hw-watchpoints 0"
            )
        if not 0 < size <= PAGE_SIZE:
            raise RequestRefused(f"1 to {PAGE_SIZE} bytes can be watched")
        data = self._data.setdefault(domid, {})
        if len(data) >= RANGES and (kind, address, size) not in data:
            raise RequestRefused(f"there can be {RANGES} watchpoints")
        data[kind, address, size] = Observed(address, size, reads=kind != _WRITE, writes=kind != _READ)
        self._debugger.set_data(domid, data.values())

    def remove(self, domid: int, kind: int, address: int, size: int) -> None:
        """Remove one, which need not be there."""
        if kind in (_SOFTWARE, _HARDWARE):
            self._code.setdefault(domid, set()).discard((kind, address))
            self._set_code(domid)
        elif self._data.get(domid, {}).pop((kind, address, size), None) is not None:
            self._debugger.set_data(domid, self._data[domid].values())

    def _set_code(self, domid: int) -> None:
        self._debugger.set_breakpoints(domid, {address for _, address in self._code.get(domid, ())})

    def kind_at(self, domid: int, address: int) -> str:
        """What gdb calls a breakpoint there: swbreak or hwbreak."""
        hardware = (_HARDWARE, address) in self._code.get(domid, ())
        return "hwbreak" if hardware and (_SOFTWARE, address) not in self._code[domid] else "swbreak"

    def tell_data(self, domid: int, seen: Observed) -> str:
        """Of data that was touched, what a stop reply has to say."""
        kind = next(kind for (kind, _, _), one in self._data[domid].items() if one == seen)
        return f"{_WORDS[kind]}:{seen.start:x};"

    def forget(self, domid: int) -> None:
        """Remove all that are set for a guest."""
        if self._code.pop(domid, None):
            self._debugger.set_breakpoints(domid, ())
        if self._data.pop(domid, None):
            self._debugger.set_data(domid, ())
