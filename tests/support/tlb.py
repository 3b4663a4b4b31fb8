# SPDX-License-Identifier: GPL-2.0-only
"""A tuned engine's TLB and block, read from outside: the invariant of `pyhv/cpu/tuning/stores.py`."""

import ctypes
from collections.abc import Iterator
from dataclasses import dataclass

from bare_engine import Bare

from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.stores import COUNT

_FLAGS = 0xFFF
_NONE = (1 << 64) - 1


def _word(address: int) -> int:
    return ctypes.c_uint64.from_address(address).value


@dataclass(frozen=True)
class Entry:
    """One entry of the TLB, of the mode's main table or of its victims."""

    mode: int
    victim: bool
    read: int
    write: int
    code: int
    paddr: int

    @property
    def frame(self) -> int:
        return self.paddr >> 12

    @property
    def stores_unseen(self) -> bool:
        """Whether a store goes straight to memory."""
        return self.write != _NONE and not self.write & _FLAGS


def entries(bare: Bare) -> Iterator[Entry]:
    """All entries that are in use."""
    env = ctypes.addressof(ctypes.c_char.from_buffer(bare.vmcb.raw))
    for mode in range(layout.MMU_MODES):
        fast = env + layout.ENV_TLB + layout.TLB_STRIDE * mode
        size = (_word(fast) >> layout.ENTRY_BITS) + 1
        victims = env + layout.ENV_VICTIMS + layout.VICTIMS_STRIDE * mode
        for start, count, victim in ((_word(fast + 8), size, False), (victims, layout.VICTIM_ENTRIES, True)):
            for at in range(start, start + (count << layout.ENTRY_BITS), 1 << layout.ENTRY_BITS):
                read, write, code, paddr = (_word(at + 8 * n) for n in range(4))
                if not read == write == code == _NONE:
                    yield Entry(mode, victim, read, write, code, paddr)


def word(bare: Bare, frame: int) -> int:
    """The frame's word: its count of slow stores left, and above it its level."""
    assert bare.engine.block is not None
    return ctypes.c_uint32.from_address(bare.engine.block["watched"] + 4 * frame).value


def is_watched(bare: Bare, frame: int) -> bool:
    """Whether stores to a frame are watched."""
    return word(bare, frame) & COUNT != 0


def check(bare: Bare) -> None:
    """No store to a watched frame can pass unseen."""
    for entry in entries(bare):
        assert not (entry.stores_unseen and is_watched(bare, entry.frame)), entry


def is_fast(bare: Bare, page: int) -> bool:
    """Whether some entry lets stores to this page pass straight."""
    return any(entry.write == page << 12 for entry in entries(bare))
