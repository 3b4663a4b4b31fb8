# SPDX-License-Identifier: GPL-2.0-only
"""I/O ports of a domU: there are none, apart from the few that Xen pretends.

Reads give all ones, writes vanish. Xen emulates superficially the PIT (0x42, 0x43, 0x61), the RTC index and
data (0x70, 0x71) and latches the PCI configuration address (0xcf8); kernels probe these and go on.
"""

_PCI_ADDRESS = 0xCF8


class Ports:
    """Port space of one domain."""

    def __init__(self) -> None:
        self._pci_address = 0
        self._rtc_index = 0

    def read(self, port: int, size: int, now: int) -> int:
        """IN of `size` bytes; `now` in ns drives the PIT's output bit."""
        ones = (1 << size * 8) - 1
        if port == _PCI_ADDRESS and size == 4:
            return self._pci_address
        if port == 0x61 and size == 1:
            return (now // 15_000 & 1) << 5 | 0x10
        if port == 0x42 and size == 1:
            return ~(now // 838) & 0xFF
        if port == 0x70 and size == 1:
            return self._rtc_index
        return ones

    def write(self, port: int, size: int, value: int) -> None:
        """OUT of `size` bytes."""
        if port == _PCI_ADDRESS and size == 4:
            self._pci_address = value & 0x80FF_FFFC
        elif port == 0x70 and size == 1:
            self._rtc_index = value & 0x7F
