# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU's descriptor tables, GDT and LDT, and what has been decoded of them."""

from dataclasses import dataclass, field
from typing import Annotated, Final

from pyhv.abi.layout import u64
from pyhv.address import Mfn
from pyhv.mmu.descriptors import Segment
from pyhv.state import cache

_MOST_ENTRIES: Final = 8192


@dataclass(slots=True)
class Descriptors:
    """The frames here are approved as descriptor pages, and each holds a reference."""

    gdt_frames: list[Mfn] = field(default_factory=list)
    gdt_entries: Annotated[int, range(_MOST_ENTRIES + 1)] = 0
    ldt_base: u64 = 0
    ldt_entries: Annotated[int, range(_MOST_ENTRIES + 1)] = 0
    ldt_mapped: dict[int, Mfn] = field(default_factory=dict)
    """Pages of the LDT that have been used, by number: they are approved and mapped on first use."""
    changed: bool = False
    """Segment registers may hold what can no longer be loaded (`traps/segments.py`)."""
    segments: dict[int, Segment | None] = cache("decoded descriptors by selector", default_factory=dict)
    return_segments: dict[int, tuple[Segment | None, Segment | None]] = cache(
        "pairs CS << 16 | SS that iret frames have named, decoded", default_factory=dict
    )

    def forget(self) -> None:
        """Descriptors may have changed."""
        self.segments.clear()
        self.return_segments.clear()
        self.changed = True
