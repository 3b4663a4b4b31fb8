# SPDX-License-Identifier: GPL-2.0-only
"""What a guest may do with I/O ports, and what stays in the few that answer (`traps/ports.py`)."""

from dataclasses import dataclass
from typing import Annotated

from pyhv.abi.layout import u8, u32, u64
from pyhv.domain.fields import PortFields


@dataclass(slots=True)
class PortAccess(PortFields):
    """A vCPU's permission to execute IN and OUT."""

    iopl: Annotated[int, range(4)] = 0
    """The virtual IOPL."""
    bitmap: u64 = 0
    """Guest address of its I/O bitmap."""
    bitmap_ports: Annotated[int, range(0x1_0001)] = 0
    """Ports that the bitmap covers."""


@dataclass(slots=True)
class PortLatches:
    """What a domain's writes have left in ports that Xen pretends."""

    pci_address: u32 = 0
    rtc_index: u8 = 0
