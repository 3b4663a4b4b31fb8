# SPDX-License-Identifier: GPL-2.0-only
"""Blocks of code as they are translated: who is told of them, and how translations are forgotten.

The emulator translates a block when it is about to execute it for the first time, never ahead. So whoever is
told of each translation knows which blocks were begun, and that costs nothing when they are executed again.
To be exact:

- A block was begun, from its first instruction on, and its later instructions were executed as well: unless
  one before them raised an exception, and the guest did not come back to what follows; or the turn was over
  just then, and the guest was never run again.
- What ends a block is a jump, a call, a return, an instruction with effects on the processor's mode, the
  emulator's own limits, or the end of the page after the one in which it begins; so blocks may overlap.
- Translations belong to a machine address, a linear one and a mode of the processor. Code that several
  processes have at one place is told of once. What was dropped (the guest has overwritten it, or the room for
  translations was used up) is told of again.
"""

import ctypes
from collections.abc import Callable

from pyhv.cpu import binding
from pyhv.cpu.screen import Screen

BlockListener = Callable[[int, int], None]
"""Is told of a block: its linear address and its bytes. It must not change the run."""


def tell_of_blocks(
    screen: Screen | None, listener: BlockListener | None, fail: Callable[[BaseException], None]
) -> object:
    """The callback for HOOK_BLOCK_TRANSLATED: `screen` looks at each block, `listener` is told of those that
    are then executed. `fail` gets what either has raised."""

    def translated(
        _engine: int, block: "ctypes._Pointer[binding.TranslatedBlock]", _before: int, _data: int | None
    ) -> None:
        made = block.contents
        try:
            if screen is not None:
                screen.translated(made.pc, made.size)
            if listener is not None and not (screen is not None and screen.rejects):
                listener(made.pc, made.size)
        except BaseException as error:
            fail(error)

    return binding.CB_TRANSLATED(translated)


def invalidator() -> Callable[[int, int, int], None]:
    """How to forget translations of an engine: by the range of machine addresses where the library exports
    that (about 1 us), else by dropping all of them."""
    if binding.tb_invalidate_phys_range is not None:
        return binding.tb_invalidate_phys_range
    return lambda handle, _start, _end: binding.check(
        binding.uc_ctl(ctypes.c_void_p(handle), ctypes.c_uint(binding.CTL_FLUSH_TB)), "dropping translations"
    )
