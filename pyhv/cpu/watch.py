# SPDX-License-Identifier: GPL-2.0-only
"""Frames to which every store is held against the translations made of them.

The emulator keeps translated code by physical page. A store through an executable mapping drops what it
overwrites; after the first store through a mapping that cannot be executed, the page's TLB entry is marked
as harmless and further ones go straight to memory, whatever was translated of the frame meanwhile. It spares
an entry that mark where a hook for memory *errors* covers the frame's machine address: a hook of a kind that
never fires, as all RAM is mapped with all rights, and that slows nothing but the stores to those frames.
(A hook for loads or stores themselves would send all of them down the slow path.)

`StoreWatch` keeps such hooks, one for each run of frames. Entries that the TLB has when a run is added are
not changed: whoever adds one flushes it. Which frames are to be watched is decided in `mmu/codewatch.py`.
"""

import ctypes
from typing import Final

from pyhv.address import PAGE_SHIFT
from pyhv.cpu import binding

Run = tuple[int, int]
"""A run of frames: the first and the last."""


def _never(*_arguments: object) -> bool:
    """The callback of the hooks: no fetch from RAM lacks the right to execute."""
    raise AssertionError("the emulator refused to fetch from RAM, which is mapped with all rights")


_CALLBACK: Final = binding.CB_FETCH(_never)


class StoreWatch:
    """The watched frames of one engine."""

    def __init__(self, handle: ctypes.c_void_p) -> None:
        self._engine = handle
        self._hooks: list[int] = []

    def add(self, run: Run) -> None:
        """Watch one more run of frames."""
        number = ctypes.c_size_t()
        binding.check(
            binding.uc_hook_add(
                self._engine, ctypes.byref(number), ctypes.c_int(binding.HOOK_FETCH_PROT), _CALLBACK,
                ctypes.c_void_p(0), ctypes.c_uint64(run[0] << PAGE_SHIFT),
                ctypes.c_uint64((run[1] + 1 << PAGE_SHIFT) - 1), ctypes.c_int(0),
            ),
            "watching stores",
        )  # fmt: skip
        self._hooks.append(number.value)

    def replace(self, runs: list[Run]) -> None:
        """Watch these runs and no others."""
        for number in self._hooks:
            binding.check(binding.uc_hook_del(self._engine, number), "watching stores no longer")
        self._hooks.clear()
        for run in runs:
            self.add(run)
