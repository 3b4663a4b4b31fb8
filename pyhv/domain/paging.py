# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU's base pointers, and how kernel and user mode share hardware tables (`mmu/paging.py`)."""

from dataclasses import dataclass

from pyhv.address import Mfn
from pyhv.domain.fields import PagingFields
from pyhv.state import cache


@dataclass(slots=True)
class PagingMode(PagingFields):
    """The tables that the vCPU runs on: each frame that is not 0 holds a reference as a top-level table."""

    kernel_l4: Mfn = Mfn(0)
    """The L3 of a 32-bit guest."""
    user_l4: Mfn = Mfn(0)
    """0: a 64-bit guest has not set one, a 32-bit one has none."""
    force_split: bool = False
    """Run on the guest's real tables in ring 3 until the next change of mode."""
    merged: bool = cache("whether one hardware table serves both modes, as of `merge_known`", default=False)
    merge_known: int = cache("the generation of tables that `merged` was worked out for", default=-1)
