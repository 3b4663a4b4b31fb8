# SPDX-License-Identifier: GPL-2.0-only
"""Which code guests have executed: blocks by linear address, kernel and user mode apart, for each domain.

Blocks are noted when they are translated (`pyhv/cpu/translated.py` says what that means exactly): the run is
the same with and without, and costs more only while new code is met.
"""

from bisect import bisect_right
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Final

from pyhv.machine import Machine

MOST_BLOCKS: Final = 1 << 20
"""How many are kept of each mode of a domain: some 200 MiB. Linux has 60 000, but a guest may have code at
ever new addresses."""
Block = tuple[int, int]
"""Linear addresses: its first byte, and the one behind its last."""


@dataclass
class Reached:
    """What one domain has executed. A block counts once, however often it was executed."""

    kernel: set[Block] = field(default_factory=set)
    user: set[Block] = field(default_factory=set)
    """Blocks of user mode; if a 64-bit guest runs code in both modes at one address, from the same frame and
    with tables that cannot be merged, it is where it was met first."""
    full: bool = False
    """Whether it has executed more than is kept."""


class Blocks:
    """What the domains have executed that a machine has built since `watch`."""

    def __init__(self) -> None:
        self.domains: dict[int, Reached] = {}

    def watch(self, machine: Machine) -> None:
        """Look at domains that are built from now on."""
        machine.builder.on_block = self._note

    def of(self, domid: int) -> Reached:
        """What a domain has executed so far."""
        return self.domains.setdefault(domid, Reached())

    def _note(self, domid: int, start: int, size: int, user: bool) -> None:
        reached = self.of(domid)
        blocks = reached.user if user else reached.kernel
        if len(blocks) < MOST_BLOCKS:
            blocks.add((start, start + size))
        else:
            reached.full = True


class AddressSet:
    """Addresses in blocks that may overlap."""

    def __init__(self, blocks: Iterable[Block]) -> None:
        self.ranges: list[Block] = []
        """The same addresses, in order, with gaps between."""
        for start, end in sorted(blocks):
            if self.ranges and start <= self.ranges[-1][1]:
                self.ranges[-1] = self.ranges[-1][0], max(end, self.ranges[-1][1])
            else:
                self.ranges.append((start, end))
        self._starts = [start for start, _ in self.ranges]

    def covers(self, address: int) -> bool:
        """Whether an address is among them."""
        number = bisect_right(self._starts, address)
        return number > 0 and address < self.ranges[number - 1][1]

    def within(self, start: int, end: int) -> int:
        """How many of the addresses from `start` up to `end` are among them."""
        first = max(bisect_right(self._starts, start) - 1, 0)
        total = 0
        for low, high in self.ranges[first:]:
            if low >= end:
                break
            total += max(min(high, end) - max(low, start), 0)
        return total
