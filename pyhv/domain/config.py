# SPDX-License-Identifier: GPL-2.0-only
"""What the toolstack decides about a domain before it exists."""

from dataclasses import dataclass

from pyhv.events.channels import DEFAULT_MAX_PORT


@dataclass(slots=True)
class DomainConfig:
    """What the toolstack decides about a domain."""

    name: str
    memory_pages: int
    vcpus: int = 1
    weight: int = 256
    cap: int = 0
    uuid: str = "00000000-0000-0000-0000-000000000000"
    max_event_channels: int = DEFAULT_MAX_PORT
    """Highest port."""
