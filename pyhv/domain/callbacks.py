# SPDX-License-Identifier: GPL-2.0-only
"""Where a guest's kernel is entered other than by exceptions (public headers `callback.h`, `xen.h`)."""

from dataclasses import dataclass


@dataclass(slots=True)
class CallbackEntry:
    """Where a callback goes, and whether entering it masks events."""

    address: int = 0
    mask_events: bool = False
    selector: int = 0
    """The code segment of a 32-bit guest's callback."""
