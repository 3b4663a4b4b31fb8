# SPDX-License-Identifier: GPL-2.0-only
"""Many entries of an L1 at once with numpy: for the interpreter, which is slow at loops.

What is done to each entry, and why, is said in `tables.py`: `check_leaf` and `_take_leaf` when a table is
approved, `drop_leaf` when it is none any more. The outcome is the same to the last count, whichever way it
goes; `tests/property/test_mmu_many.py` compares them. Compiled tables always loop.
"""

from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from pyhv.abi.x86 import PTE_MFN_MASK, PTE_NX, PTE_PAT, PTE_PCD, PTE_PWT, PTE_RW
from pyhv.address import Mfn
from pyhv.cpu.ram import Ram
from pyhv.mmu.codewatch import CodeWatch
from pyhv.mmu.frames import WRITABLE, FrameTable
from pyhv.mmu.physical import PhysicalMemory

L1_FORBIDDEN: Final = PTE_PWT | PTE_PCD | PTE_PAT
"""Bits that no present leaf may have."""

_u64 = np.uint64
_Entries = npt.NDArray[np.uint64]
_Slots = npt.NDArray[np.int64]


class LeafRules(Protocol):
    """Page tables, as they are used here."""

    domid: int
    frames: FrameTable
    physical: PhysicalMemory
    ram: Ram
    code: CodeWatch
    borrowed: int
    stale: bool

    def check_leaf(self, entry: int) -> int:
        """Refuse an entry that cannot be approved."""

    def adjust_leaves(self, entries: _Entries) -> _Entries:
        """What present leaves look like after approval."""


def _targets(entries: _Entries) -> npt.NDArray[np.int64]:
    return ((entries & _u64(PTE_MFN_MASK)) >> _u64(12)).astype(np.int64)


def approve_leaves(tables: LeafRules, mfn: int, slots: _Slots) -> None:
    """Approve the entries of an L1 in these slots, one at least, or none: the first bad one is refused."""
    frames = tables.frames
    entries = tables.ram.tables[mfn][slots]
    targets = _targets(entries)
    writable = (entries & _u64(PTE_RW)) != 0
    fine = bool(targets.max() < frames.count) and not (entries & _u64(L1_FORBIDDEN)).any()
    if fine:
        free_to_write = (frames.type_count_np[targets] == 0) | (frames.type_np[targets] == WRITABLE)
        fine = bool(((frames.owner_np[targets] == tables.domid) & (free_to_write | ~writable)).all())
    if not fine:
        for entry in entries.tolist():
            tables.check_leaf(entry)
        raise AssertionError("a table was refused without a cause")
    to_write = targets[writable]
    frames.type_np[to_write] = WRITABLE
    np.add.at(frames.type_count_np, to_write, 1)
    np.add.at(frames.refs_np, targets, 1)
    executable = targets[(entries & _u64(PTE_NX)) == 0]
    if executable.size:
        np.add.at(frames.exec_count_np, executable, 1)
        unknown = executable[tables.code.known_np[executable] == 0]
        if unknown.size:
            tables.code.many_executable(unknown)
        frames.code_np[executable] = 1
    adjusted = tables.adjust_leaves(entries)
    if (adjusted != entries).any():
        tables.physical.write_slots(Mfn(mfn), slots, adjusted)


def drop_leaves(tables: LeafRules, mfn: int, slots: _Slots) -> None:
    """Drop what the entries of an L1 in these slots held."""
    frames = tables.frames
    entries = tables.ram.tables[mfn][slots]
    tables.stale = True
    targets = _targets(entries)
    writable = (entries & _u64(PTE_RW)) != 0
    np.subtract.at(frames.type_count_np, targets[writable], 1)
    executable = targets[(entries & _u64(PTE_NX)) == 0]
    if executable.size:
        np.subtract.at(frames.exec_count_np, executable, 1)
        tables.code.released += len(set(executable[frames.exec_count_np[executable] == 0].tolist()))
    if tables.borrowed:
        foreign = frames.owner_np[targets] != tables.domid
        tables.borrowed -= int(np.count_nonzero(foreign))
        np.subtract.at(frames.lent_np, targets[foreign & writable], 1)
    again, counts = np.unique(targets, return_counts=True)
    left = frames.refs_np[again] - counts.astype(np.uint32)
    frames.refs_np[again] = np.maximum(left, 1)
    for dead in again[left == 0].tolist():
        frames.drop(dead)
