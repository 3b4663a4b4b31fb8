# SPDX-License-Identifier: GPL-2.0-only
"""An engine's breakpoints: where it stops by itself, and why.

Two things are told apart. An address that is *known* ends a block of translated code, and arriving there is
an exit, for whichever vCPU and address space; making one known drops all translations, so addresses stay
known after they have served, until many have arrived there for nothing. Ranges of data are *watched* for the
vCPU that runs, and that changes at no cost. Others are *observed*, for whoever runs the machine.

There are two such units: `TunedDebugUnit`, for engines whose paths `tuning/watching.py` has changed, and that
of `debughooks.py` for others. This module knows addresses. Whose they are, and whether an exit is the guest's
#DB, is `traps/debug.py`'s affair.
"""

import ctypes
import itertools
from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Mapping
from typing import Annotated, ClassVar, Final, NamedTuple

from pyhv.abi.layout import u64
from pyhv.address import PAGE_SHIFT
from pyhv.cpu import binding
from pyhv.cpu.changed import TunedBlock
from pyhv.cpu.tuning import layout
from pyhv.state import Plain, entries, typed

MET_WATCH, MET_BREAKPOINT, MET_IRET, MET_OBSERVED = 1, 2, 3, 4
"""Causes of an exit: access to a watched range, known address, IRET; or access to a range that whoever runs
the machine observes, and no watched one. The instruction is yet to be done."""
RANGES: Final = 4
"""Of each kind: that are watched for the guest, and that are observed."""
LOG_ENTRIES: Final = 120
"""Accesses that can be written down."""
MOST_KNOWN: Final = 16
"""Addresses that stay known although no vCPU has a breakpoint there."""
PATIENCE: Final = 16
"""Arrivals for nothing, after which an address is forgotten."""
_FOR_PROCESSOR: Final = 0x20
"""`BP_CPU`: RF suppresses the breakpoint."""
_NATURAL: Final = (1, 2, 4, 8)
_NOTHING: Final = (~0 & (1 << 64) - 1, 0, 0)


class Range(NamedTuple):
    """Bytes that are watched: addresses, the last one included."""

    first: int
    last: int
    writes_only: bool


class DataAccess(NamedTuple):
    """A load or store at a linear address. A load that is not aligned may be told as larger than it was."""

    address: int
    size: int
    write: bool


def of_one_operand(told: list[DataAccess]) -> list[DataAccess]:
    """Accesses of an instruction that loads and stores the same bytes, without what is larger than those.

    A load that is not aligned is told as the two aligned ones that hold it, a store byte by byte.
    """
    kept = list(told)
    stored = {one.address for one in told if one.write}
    for first, second in itertools.pairwise([one for one in told if not one.write]):
        start, end = first.address, second.address + second.size
        if second.address == start + first.size and any(start <= address < end for address in stored):
            kept = [one for one in kept if one not in (first, second)]
    return kept


class DebugUnit(ABC):
    """The debug hardware of one engine."""

    tells_linear: bool
    """Whether ranges and accesses are linear addresses, else machine addresses: an access that crosses into
    another page is then one that goes on behind the first."""

    def __init__(self) -> None:
        self._known: dict[int, int] = {}
        self.observed: tuple[Range, ...] = ()
        """Ranges, at most `RANGES`, that whoever runs the machine wants to be told of, from the next `watch`
        on."""

    # -- addresses ---------------------------------------------------------------------------------------

    @property
    def known(self) -> Collection[int]:
        """The addresses at which the engine stops."""
        return self._known.keys()

    def arrived_for_nothing(self, address: int) -> bool:
        """Somebody came to a known address who has no breakpoint there: whether to forget it."""
        if address in self._known:
            self._known[address] += 1
        return self._known.get(address, 0) == PATIENCE

    def is_settled(self, needed: Collection[int], *, data: bool) -> bool:
        """Whether the engine can meet breakpoints at these addresses, and (`data`) of data."""
        return all(address in self._known for address in needed)

    def settle(self, needed: Collection[int], *, data: bool) -> None:
        """Make it so, and forget some of what is not needed. Not while the engine runs."""
        known = self._known
        spare = [address for address in known if address not in needed]
        crowded = len(spare) > MOST_KNOWN
        for address in spare:
            if crowded or known[address] >= PATIENCE:
                del known[address]
                self._forget(address)
        for address in needed:
            if address not in known:
                known[address] = 0
                self._learn(address)

    def state(self) -> dict[str, Plain]:
        """The known addresses: arriving at one is an exit, also where no breakpoint is any more."""
        return {"known": [[address, arrivals] for address, arrivals in self._known.items()]}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Know these addresses and no others. StateError. Not while the engine runs."""
        known = entries(dict(saved), "", {"known": None})["known"]
        wanted = typed(dict[u64, Annotated[int, range(PATIENCE + 1)]], known, "known")
        self.close()
        self.settle(wanted, data=False)
        self._known.update(wanted)

    def close(self) -> None:
        """Forget all addresses: the engine is about to be freed."""
        for address in self._known:
            self._forget(address)
        self._known.clear()

    @abstractmethod
    def _learn(self, address: int) -> None:
        """Let blocks end at an address."""

    @abstractmethod
    def _forget(self, address: int) -> None:
        """... and no more."""

    # -- data and IRET -----------------------------------------------------------------------------------

    @property
    @abstractmethod
    def watching(self) -> bool:
        """Whether any range is watched."""

    @abstractmethod
    def watch(self, ranges: tuple[Range, ...], *, iret: bool, record: bool) -> None:
        """Watch these ranges and no others, and IRET or not.

        `record`: what is met is no exit but written down, for `accesses` after one instruction.
        """

    @abstractmethod
    def accesses(self) -> list[DataAccess]:
        """What was written down since `watch`, of whatever may concern a range."""

    @abstractmethod
    def cause(self) -> int:
        """Why the engine raised #DB by itself: a MET_ number, once; 0: it was none of ours."""

    @property
    @abstractmethod
    def next_cause(self) -> int:
        """What `cause` would return, which may be asked again and again."""


class TunedDebugUnit(DebugUnit):
    """The debug hardware of one tuned engine; `flush_page` is the engine's own."""

    tells_linear = True
    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("_block", "_processor", "_flush_page", "_insert", "_remove"), "the engine's"),
        **dict.fromkeys(("_ranges", "observed"), "set anew before each instruction that may meet one"),
    }

    def __init__(self, block: TunedBlock, processor: int, flush_page: Callable[[int], None]) -> None:
        super().__init__()
        self._block = block
        self._processor = processor
        self._flush_page = flush_page
        assert binding.cpu_breakpoint_insert is not None  # or the engine would not be tuned
        assert binding.cpu_breakpoint_remove is not None
        self._insert, self._remove = binding.cpu_breakpoint_insert, binding.cpu_breakpoint_remove
        self._ranges: tuple[Range | None, ...] = (None,) * (2 * RANGES)

    def _learn(self, address: int) -> None:
        self._insert(self._processor, address, _FOR_PROCESSOR, None)

    def _forget(self, address: int) -> None:
        self._remove(self._processor, address, _FOR_PROCESSOR)

    @property
    def watching(self) -> bool:
        return any(self._ranges)

    def watch(self, ranges: tuple[Range, ...], *, iret: bool, record: bool) -> None:
        block = self._block
        wanted = *_padded(ranges), *_padded(self.observed)
        if wanted != self._ranges:
            for number, place in enumerate(wanted):
                first, last, kind = _NOTHING
                if place is not None:
                    first, last, writes_only = place
                    kind = layout.MEMORY_WRITE if writes_only else layout.MEMORY_READ | layout.MEMORY_WRITE
                block[f"debug_first_{number}"] = first
                block[f"debug_last_{number}"] = last
                block[f"debug_kind_{number}"] = kind
            block["debug_watching"] = any(wanted)
            self._ranges = wanted
            for place in wanted:
                if place is not None:
                    self._flush_page(place.first)
                    if place.last >> PAGE_SHIFT != place.first >> PAGE_SHIFT:
                        self._flush_page(place.last)
        log = block["debug_log_at"]
        ctypes.c_uint64.from_address(log).value = 0
        block["debug_log"] = log if record else 0
        block["debug_iret"] = iret and not record
        block["debug_cause"] = 0

    def accesses(self) -> list[DataAccess]:
        log = self._block["debug_log_at"]
        words = (ctypes.c_uint64 * (1 + 3 * LOG_ENTRIES)).from_address(log)
        told = [
            DataAccess(words[at], words[at + 1], words[at + 2] == layout.MEMORY_WRITE)
            for at in range(1, 1 + 3 * words[0], 3)
        ]
        return [one for one in told if one.size in _NATURAL]

    def cause(self) -> int:
        found = self._block["debug_cause"]
        if found:
            self._block["debug_cause"] = 0
        return found

    @property
    def next_cause(self) -> int:
        return self._block["debug_cause"]


def _padded(ranges: tuple[Range, ...]) -> tuple[Range | None, ...]:
    return ranges + (None,) * (RANGES - len(ranges))
