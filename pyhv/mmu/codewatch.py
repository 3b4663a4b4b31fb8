# SPDX-License-Identifier: GPL-2.0-only
"""Translated code stays what memory holds.

The emulator keeps translations by frame, for each engine apart, and it alone does not notice everybody who
writes. The invariant is

    **whenever a guest can execute a frame, the translations that its engine has of it are of its contents**

and this is how each writer is noticed:

    the guest, by whatever address     the frame is watched (`cpu/watch.py`) from the moment on when a leaf
                                       entry lets it be executed; it was not before, so what had been
                                       translated of it is dropped then, and so is the TLB
    the hypervisor                     writes through `memory.PhysicalMemory`, which drops translations
    another domain, which has the      is on another engine: what was translated of the frame is dropped
    frame mapped (a grant)             whenever some vCPU's turn begins (`PhysicalMemory.renew_shared`)
    nobody: the frame is given back    its translations are dropped (`PhysicalMemory.code_written`)

"Can be executed" means a present leaf entry without NX in an approved L1, whether or not the tables above
lead there and allow it, and in whatever ring: so nothing has to be done when upper entries change.

A frame stays watched for a while when it can be executed no more, because a program that is run again then
finds its translations. That slows stores to it, so runs of watched frames are laid out anew from time to
time, and before they become too many: the emulator looks through all of them. An engine that sees all stores
by itself (`Engine.watch` is None) has the same book-keeping and the same TLB flushes, so that a guest runs
alike on both.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import ClassVar, Final, Protocol

import numpy as np
import numpy.typing as npt

from pyhv.abi.layout import u32
from pyhv.address import Mfn
from pyhv.cpu.engine import Engine
from pyhv.cpu.watch import Run, StoreWatch
from pyhv.mmu.frames import FrameTable, read_column
from pyhv.mmu.physical import PhysicalMemory
from pyhv.state import Plain, entries, refusal, typed

MOST_RUNS: Final = 64
"""Runs of frames that are watched at most; laid out anew they are half as many."""
MOST_RELEASED: Final = 256
"""Frames that may cease to be executable before the runs are laid out anew."""

_Index = npt.NDArray[np.int64]


class WatchedTables(Protocol):
    """Of a domain's page tables, what is looked at and set here."""

    domid: int
    frames: FrameTable
    physical: PhysicalMemory
    flush: bool


class CodeWatch:
    """Which frames the engine of one domain watches."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("tables", "_frames"), "the domain's"),
        "known_np": "another view of `known`",
        **dict.fromkeys(("_store_watch", "_forget"), "the engine's: watches are laid out anew"),
    }

    def __init__(self, tables: WatchedTables) -> None:
        self.tables = tables
        self._frames = tables.frames
        self.known_np = np.zeros(self._frames.count, dtype=np.uint8)
        self.known = self.known_np.data
        """1 if the frame may become executable as it is: it is watched, and no other domain writes to it."""
        self.released = 0
        """Frames that have ceased to be executable since the runs were laid out."""
        self._fresh: list[int] = []
        self._runs = 0
        self._foreign: set[int] = set()
        """Frames of other domains that were made executable."""
        self._store_watch: StoreWatch | None = None
        self._forget: Callable[[int, int], None] | None = None

    def attach(self, engine: Engine) -> None:
        """Connect to the engine, before the domain has any table."""
        self._forget, self._store_watch = engine.invalidate_code, engine.watch

    def executable(self, mfns: Iterable[Mfn]) -> None:
        """Frames that are not `known` become executable. They are watched after the next `flushed`."""
        frames, domid = self._frames, self.tables.domid
        for mfn in mfns:
            self._drop(mfn)
            frames.code[mfn] = 1
            foreign = frames.owner[mfn] != domid
            if foreign:
                self._foreign.add(mfn)
            if foreign or frames.lent[mfn]:
                self.tables.physical.shared_code.add(mfn)
            else:
                self.known[mfn] = 1
            self._fresh.append(mfn)
        self.tables.flush = True

    def many_executable(self, mfns: _Index) -> None:
        """`executable` for the frames of a whole table, nearly all of which never held code."""
        frames = self._frames
        unused = (frames.code_np[mfns] == 0) & (frames.lent_np[mfns] == 0)
        unused &= frames.owner_np[mfns] == self.tables.domid
        new = mfns[unused]
        frames.code_np[new] = self.known_np[new] = 1
        self._fresh += new.tolist()
        self.executable(map(Mfn, mfns[~unused].tolist()))

    def state(self) -> dict[str, Plain]:
        """Which frames are watched, and what is to be done about others."""
        return {
            "known": self.known_np.tobytes(),
            "released": self.released,
            "fresh": list[Plain](sorted(set(self._fresh))),
            "runs": self._runs,
            "foreign": list[Plain](sorted(self._foreign)),
        }

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved, with the frame table restored before. StateError.

        The engine watches what it must; of frames that changed since, translations are dropped by who did it.
        """
        found = entries(dict(saved), "", dict.fromkeys(("known", "released", "fresh", "runs", "foreign")))
        known = read_column(found["known"], "known", self.known_np)
        fresh = typed(list[u32], found["fresh"], "fresh")
        foreign = typed(list[u32], found["foreign"], "foreign")
        if any(mfn >= self._frames.count for mfn in (*fresh, *foreign)) or (known > 1).any():
            raise refusal("known", "fresh or foreign has what is no frame, or no flag")
        self.released = typed(u32, found["released"], "released")
        self._runs = typed(u32, found["runs"], "runs")
        self.known_np[:] = known
        self._fresh, self._foreign = fresh, set(foreign)
        if self._store_watch is not None:
            executable = (self._frames.exec_count_np > 0) & (self._frames.owner_np == self.tables.domid)
            executable[foreign] = True
            self._store_watch.replace(_joined(np.flatnonzero(executable | (known == 1)), MOST_RUNS // 2))

    def _drop(self, mfn: int) -> None:
        """Drop what was translated of a frame while nobody watched the stores to it."""
        if self._frames.code[mfn] and self._store_watch is not None and self._forget is not None:
            self._forget(mfn, 1)

    def flushed(self) -> None:
        """The TLB is empty and the guest has not run since: watch what has become executable."""
        if not self._fresh:
            return
        fresh = np.array(sorted(set(self._fresh)), dtype=np.int64)
        self._fresh.clear()
        runs = _joined(fresh, fresh.size)
        self._runs += len(runs)
        if self._runs > MOST_RUNS:
            self._lay_out()
        elif self._store_watch is not None:
            for run in runs:
                self._store_watch.add(run)

    def tidy(self) -> None:
        """Before a vCPU runs: watch no longer what has not been executable for some time."""
        if self.released > MOST_RELEASED:
            self.tables.flush = True  # it has entries for stores to frames that were not watched until now
            self._lay_out()

    def _lay_out(self) -> None:
        """Watch the frames that can be executed, and those in small gaps between them."""
        frames = self._frames
        executable = np.flatnonzero((frames.exec_count_np > 0) & (frames.owner_np == self.tables.domid))
        self._foreign = {mfn for mfn in self._foreign if frames.exec_count[mfn]}
        if self._foreign:
            executable = np.union1d(executable, np.array(sorted(self._foreign), dtype=np.int64))
        runs = _joined(executable, MOST_RUNS // 2)
        watched = np.zeros_like(self.known_np)
        for first, last in runs:
            watched[first : last + 1] = 1
        for mfn in np.flatnonzero(watched & frames.code_np & (self.known_np == 0)).tolist():
            self._drop(mfn)
        watched[frames.lent_np > 0] = 0
        watched[list(self._foreign)] = 0
        self.known_np[:] = watched
        self._runs, self.released = len(runs), 0
        if self._store_watch is not None:
            self._store_watch.replace(runs)


def _joined(mfns: _Index, most: int) -> list[Run]:
    """At most so many runs that cover an ascending array, with the widest gaps between them."""
    if not mfns.size:
        return []
    gaps = np.diff(mfns)
    breaks = np.flatnonzero(gaps > 1)
    if breaks.size >= most:
        widest = np.argsort(gaps[breaks], kind="stable")[breaks.size - most + 1 :]
        breaks = np.sort(breaks[widest])
    firsts = mfns[np.concatenate(([0], breaks + 1))]
    lasts = mfns[np.concatenate((breaks, [mfns.size - 1]))]
    return list(zip(firsts.tolist(), lasts.tolist(), strict=True))
