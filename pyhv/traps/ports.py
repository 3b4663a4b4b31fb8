# SPDX-License-Identifier: GPL-2.0-only
"""I/O ports of a domU: there are none, apart from the few that Xen pretends.

Reads give all ones, writes vanish. Xen emulates superficially the PIT (0x42, 0x43, 0x61), the RTC index
(0x70; its data, 0x71, is all ones) and latches the PCI configuration address (0xcf8, in accesses of 4 bytes);
kernels probe these and go on. An access of several bytes is one to each port, except for that latch.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

from pyhv.domain.ports import PortLatches

_PCI_ADDRESS: Final = 0xCF8
_NS_PER_REFRESH: Final = 15_000
_NS_PER_TICK: Final = 838


class Ports:
    """Port space of one domain, whose writes stay in `latches`."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {"_latches": "the domain's"}

    def __init__(self, latches: PortLatches) -> None:
        self._latches = latches

    def read(self, port: int, size: int, now: int) -> int:
        """IN of `size` bytes; `now` in ns drives the PIT's output bit."""
        if port == _PCI_ADDRESS and size == 4:
            return self._latches.pci_address
        return sum(self._byte(port + at, now) << 8 * at for at in range(size))

    def _byte(self, port: int, now: int) -> int:
        if port == 0x61:
            return (now // _NS_PER_REFRESH & 1) << 5 | 0x10
        if port == 0x42:
            return ~(now // _NS_PER_TICK) & 0xFF
        if port == 0x70:
            return self._latches.rtc_index
        return 0xFF

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of `size` bytes."""
        if port == _PCI_ADDRESS and size == 4:
            self._latches.pci_address = value & 0xFFFF_FFFF
        elif port <= 0x70 < port + size:
            self._latches.rtc_index = value >> 8 * (0x70 - port) & 0xFF
