# SPDX-License-Identifier: GPL-2.0-only
"""The lists of mmu_update and mmuext_op: done one structure after the other, in several turns if need be.

A long list gives way between two structures, one with large trees of page tables in it also between two
tables (`mmu/stepwise.py`). The guest then makes the call again for the rest: bit 31 of the count says that
`*done` already holds a number, and the count is of what is left, which may be nothing but tables to drop.
"""

from collections.abc import Callable
from typing import Final

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.address import MASK64
from pyhv.errors import XenError
from pyhv.hypercalls.context import Again, Call
from pyhv.mmu import stepwise
from pyhv.mmu.budget import IN_STEPS, ONE_STEP, TooMuch

_CONTINUED: Final = 1 << 31
"""In a count: this is the rest of a list whose beginning is done."""


def check_domains(call: Call, foreigndom: int) -> None:
    """Check the domains that a request names: only the caller's own."""
    if foreigndom == DOMID_SELF:
        return
    owner = foreigndom >> 16
    if owner:
        call.own(owner - 1)
    call.own(foreigndom & 0xFFFF)


def tell_done(call: Call, done: int, completed: int) -> None:
    """Store how many structures are done, if the caller wants to know. EFAULT."""
    if done:
        call.memory.write_u32(done, completed)


def perform_each(
    call: Call, arguments: tuple[int, int, int, int], size: int, perform: Callable[[Call, int], None]
) -> int:
    """Perform each structure of a list; (list, count, done*, domain) are the hypercall's arguments.

    `perform` is given the address of one. The first refusal ends the list. The budget is `ONE_STEP`
    meanwhile: few tables are approved at once, and a table that is dropped leaves those below it to `settle`.
    """
    at, count, done, foreigndom = arguments
    before = 0
    continued = bool(count & _CONTINUED)
    if continued:
        count &= ~_CONTINUED
        before = call.memory.read_u32(done) if done else 0
    completed, tables = 0, call.tables
    budget, tables.budget = tables.budget, ONE_STEP
    try:
        in_time = not tables.doomed or stepwise.settle(tables, call.gives_way_to_tables)
        if in_time and continued:
            in_time = stepwise.go_on(tables, call.gives_way_to_tables)
        while in_time and completed < count:
            in_time = _perform(call, at + size * completed, perform)
            if in_time:
                completed += 1
                in_time = not tables.doomed or stepwise.settle(tables, call.gives_way_to_tables)
                in_time = in_time and not call.gives_way(completed, count)
        if not in_time:
            tell_done(call, done, before + completed)
            raise Again(at + size * completed, count - completed | _CONTINUED, done, foreigndom)
    except XenError:
        stepwise.drop_ahead(tables)
        stepwise.settle_some(tables)
        tell_done(call, done, before + completed)
        raise
    finally:
        tables.budget = budget
    if done:
        tell_done(call, done, before + completed)
    return 0


def _perform(call: Call, at: int, perform: Callable[[Call, int], None]) -> bool:
    """Perform one structure; False if it wants a large tree approved, which has to go on in another turn.

    It is tried with few tables at once; if those are not enough (`TooMuch`), the tables below are approved
    ahead, one by one, and then it is tried again.
    """
    if at > MASK64:
        raise XenError(Errno.EFAULT, "the list goes on beyond the end of the address space")
    tables, frames = call.tables, call.frames
    tables.take_work()
    try:
        perform(call, at)
        if tables.ahead_of and frames.type_count[tables.ahead_of]:
            stepwise.drop_ahead(tables)  # so little was left that it went at once
        return True
    except TooMuch as big:
        root = big.root
    if not stepwise.approve(tables, *root, call.gives_way_to_tables):
        return False
    try:
        with tables.within(IN_STEPS):
            perform(call, at)  # nothing is left below but what will be refused
    finally:
        stepwise.drop_ahead(tables)
    return True
