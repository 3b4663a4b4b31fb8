# SPDX-License-Identifier: GPL-2.0-only
"""Looking out for addresses: an engine stops at the start of each block of code that has one of them in it.

The block is not divided at the address, as a debugger's breakpoint would do it, and nothing is written into
it: the hook that counts blocks in virtual time compares each with the addresses (`clockwork.py`). So a guest
cannot see it, and virtual time, which counts blocks, is what it would have been. From the block's start on,
whoever looks out takes single steps (`pyhv/pcpu.py`).

An engine without a clock of blocks gets the hook for as long as somebody looks out; on a tuned one, which
counts without a call (`tuning/counter.py`), the call takes that place meanwhile. Either way it is a call for
each block: code runs a quarter slower. Where there is no native code for it, Python is called, and that is a
hundred times slower.
"""

from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from pyhv.cpu.changed import TunedBlock
from pyhv.cpu.clockwork import MOST_ADDRESSES, BlockBudget, PythonBlockBudget, make_budget

_UNBOUNDED: Final = 1 << 62
_NO_ADDRESS: Final = (1 << 64) - 1, 0


class CodeBlock(NamedTuple):
    """A block of code, by linear addresses."""

    start: int
    size: int

    @property
    def end(self) -> int:
        """The address behind it."""
        return self.start + self.size


class Lookout:
    """One engine's. `budget` is what counts its blocks, if they are counted; `block` the engine's if tuned.

    `install` installs a hook for blocks and says how to remove it; `drop_all` drops all translations.
    """

    def __init__(
        self,
        budget: BlockBudget | PythonBlockBudget | None,
        block: TunedBlock | None,
        install: Callable[[BlockBudget | PythonBlockBudget], Callable[[], None]],
        drop_all: Callable[[], None],
    ) -> None:
        self._counting, self._block = budget, block
        self._install, self._drop_all = install, drop_all
        self._hook: BlockBudget | PythonBlockBudget | None = None
        self._remove: Callable[[], None] = lambda: None

    @property
    def looking(self) -> bool:
        """Whether blocks are looked at."""
        return self._hook is not None and bool(self._hook.cell.looking)

    @looking.setter
    def looking(self, on: bool) -> None:
        """Look, or close the eyes for a moment; not before `look_for`."""
        if self._hook is not None:
            self._hook.cell.looking = on

    def look_for(self, addresses: Collection[int]) -> None:
        """Stop at blocks that have one of these linear addresses; with none, blocks are only written down.

        Not while the engine runs. ValueError: more than `MOST_ADDRESSES`.
        """
        if len(addresses) > MOST_ADDRESSES:
            raise ValueError(f"an engine looks out for {MOST_ADDRESSES} addresses at most")
        if self._hook is None:
            self._hook = self._begin()
            self._drop_all()
        cell = self._hook.cell
        for number, address in enumerate(addresses):
            cell.addresses[number] = address
        cell.count = len(addresses)
        cell.low, cell.high = (min(addresses), max(addresses)) if addresses else _NO_ADDRESS
        cell.looking, cell.met = True, False

    def _begin(self) -> BlockBudget | PythonBlockBudget:
        if self._counting is not None and self._counting.looks_out:
            if self._block is not None:
                hook, self._block["counter_hook"] = self._block["counter_hook"], 0
                block = self._block
                self._remove = lambda: block.__setitem__("counter_hook", hook)
            return self._counting
        own = make_budget()
        if not own.looks_out:
            own = PythonBlockBudget()
        own.left[0] = _UNBOUNDED
        self._remove = self._install(own)
        return own

    def close(self) -> None:
        """Look no more. Not while the engine runs."""
        if self._hook is not None:
            self._hook.cell.looking = False
            self._hook = None
            self._remove()
            self._remove = lambda: None
            self._drop_all()

    @property
    def latest(self) -> CodeBlock:
        """The block that was begun last while blocks were looked at."""
        assert self._hook is not None, "nobody has looked"
        return CodeBlock(self._hook.cell.start, self._hook.cell.size)

    def take_met(self) -> CodeBlock | None:
        """The block with one of the addresses at whose start the engine has stopped; None: it has not."""
        if self._hook is None or not self._hook.cell.met:
            return None
        self._hook.cell.met = False
        return self.latest
