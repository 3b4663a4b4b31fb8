# SPDX-License-Identifier: GPL-2.0-only
"""How much of a guest's page tables one request may approve or drop before others get their turn.

`PageTables.within` sets the budget of what is being done; `stepwise.py` does what is beyond it.
"""

from typing import Final, Protocol

from pyhv.abi.errno import Errno
from pyhv.errors import XenError
from pyhv.frozen import frozen

NO_LIMIT: Final = 1 << 62
MOST_AT_ONCE: Final = 64
"""Tables that are approved in one step where large trees are approved in several."""


@frozen
class Budget:
    """How much one request may do to whole tables at once."""

    approve: int = NO_LIMIT
    """Tables that may be approved; one more is `TooMuch`."""
    in_steps: bool = False
    """What is below a dropped table is left in `PageTables.doomed` (`stepwise.py`), not dropped at once."""


UNBOUNDED: Final = Budget()
IN_STEPS: Final = Budget(in_steps=True)
ONE_STEP: Final = Budget(approve=MOST_AT_ONCE, in_steps=True)


class HasBudget(Protocol):
    """Page tables, as `Within` sees them."""

    budget: Budget


class Within:
    """Page tables do what a block does within `budget`; whatever ends it, they have the one before then."""

    __slots__ = ("_before", "_budget", "_tables")

    def __init__(self, tables: HasBudget, budget: Budget) -> None:
        self._tables = tables
        self._budget = budget

    def __enter__(self) -> None:
        self._before, self._tables.budget = self._tables.budget, self._budget

    def __exit__(self, *_raised: object) -> None:
        self._tables.budget = self._before


class TooMuch(XenError):
    """More tables would have to be approved than may be at once; `root` is the (frame, level) asked for."""

    def __init__(self) -> None:
        super().__init__(Errno.EAGAIN, "a large tree of page tables")
        self.root = (0, 0)
