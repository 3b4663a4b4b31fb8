# SPDX-License-Identifier: GPL-2.0-only
"""What the toolstack decides about a domain before it exists."""

from dataclasses import dataclass, field

from pyhv.abi.layout import u32
from pyhv.events.channels import DEFAULT_MAX_PORT
from pyhv.net.spec import NetSpec
from pyhv.storage.spec import DiskSpec


@dataclass(frozen=True, slots=True)
class DomainConfig:
    """What the toolstack decides about a domain."""

    name: str
    memory_pages: u32
    vcpus: u32 = 1
    weight: u32 = 256
    """Its share of the processors at first, relative to the others'."""
    cap: u32 = 0
    """Its ceiling at first, in percent of one processor; 0: none."""
    uuid: str = ""
    """As people write it; empty: one that follows from the machine's seed and the domain's number."""
    max_event_channels: int = DEFAULT_MAX_PORT
    """Highest port."""
    disks: list[DiskSpec] = field(default_factory=list)
    """Each with the name that it has for the guest."""
    nets: list[NetSpec] = field(default_factory=list)
    """In their order."""
