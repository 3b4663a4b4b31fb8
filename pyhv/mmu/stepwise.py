# SPDX-License-Identifier: GPL-2.0-only
"""Large trees of page tables, approved and dropped in steps.

Approving a table approves all that it leads to, and dropping its last reference drops all of that again: with
a guest's whole memory made into tables that is seconds of work in one entry of one hypercall. So whoever has
to give way in between (`hypercalls/mmulists.py`) does its work within a `Budget`, and then

    approving     stops at more than `MOST_AT_ONCE` tables with `TooMuch`, all undone. `approve` then takes
                  the tables below one by one, deepest first, and holds them (`ahead`); in later turns `go_on`
                  continues, until the top is asked for again, which now is one step
    dropping      leaves the tables below in `doomed`, each still approved and held by one reference, until
                  `settle` has dropped them one by one

What is held counts as a table reference in the audit. A guest that never comes back for the rest has its own
frames typed for longer; they go with the domain. This module decides no approval: that is `tables.py`.
"""

from collections.abc import Callable

import numpy as np

from pyhv.abi.x86 import PTE_MFN_MASK
from pyhv.errors import XenError
from pyhv.mmu.budget import IN_STEPS, MOST_AT_ONCE
from pyhv.mmu.frames import L1
from pyhv.mmu.tables import PageTables

Pause = Callable[[], bool]
"""Asked after each step: whether to stop for now."""


def approve(tables: PageTables, mfn: int, level: int, pause: Pause) -> bool:
    """Approve what is below the table-to-be `mfn`, until `pause` says stop: False, to be called again."""
    if tables.ahead_of != mfn:
        drop_ahead(tables)
        tables.ahead_of, tables.ahead_level = mfn, level
    with tables.within(IN_STEPS):  # each of them alone is one step
        return _approve_below(tables, mfn, level, pause)


def go_on(tables: PageTables, pause: Pause) -> bool:
    """Go on with what `approve` has begun; False if `pause` said stop again.

    To ask for the top first would approve `MOST_AT_ONCE` tables in vain each time, and take the whole turn.
    """
    top = tables.ahead_of
    return not top or tables.frames.type_count[top] > 0 or approve(tables, top, tables.ahead_level, pause)


def _approve_below(tables: PageTables, mfn: int, level: int, pause: Pause) -> bool:
    frames, row = tables.frames, tables.ram.tables[mfn]
    slots = np.array(tables.guest_slots(mfn, level), dtype=np.int64)
    children = ((row[slots] & np.uint64(PTE_MFN_MASK)) >> np.uint64(12)).tolist()
    for slot, child in zip(slots.tolist(), children, strict=True):
        if not 0 < child < frames.count or frames.owner[child] != tables.domid:
            return True  # the table itself will be refused for this entry
        if child == mfn or frames.type_count[child]:
            continue
        if level - 1 > L1 and not _approve_below(tables, child, level - 1, pause):
            return False
        if not tables.may_go_ahead(level, slot):
            continue
        try:
            held = tables.take_table(child, level - 1)
        except XenError:
            return True
        tables.ahead.append(held)
        if pause():
            return False
    return True


def drop_ahead(tables: PageTables) -> None:
    """Let go of what was approved ahead: the top has been approved, or never will be."""
    frames = tables.frames
    for mfn in tables.ahead:
        if frames.type_count[mfn] == 1:
            tables.doomed.append(mfn)
        else:
            tables.drop_table(mfn)
    tables.ahead.clear()
    tables.ahead_of = 0


def settle(tables: PageTables, pause: Pause | None = None) -> bool:
    """Drop what is doomed, all of it or until `pause` says stop: False then."""
    while tables.doomed:
        tables.drop_table(tables.doomed.pop())
        if pause is not None and tables.doomed and pause():
            return False
    return True


def settle_some(tables: PageTables) -> None:
    """Drop as many of the doomed as may go at once; after a refusal the rest waits for the next call."""
    for _ in range(MOST_AT_ONCE):
        if not tables.doomed:
            break
        tables.drop_table(tables.doomed.pop())
