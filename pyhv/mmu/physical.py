# SPDX-License-Identifier: GPL-2.0-only
"""The one door through which the hypervisor writes frames that a guest can see.

Whoever stores there has two duties, and here they are done:

    the frame is *dirty*     written by the hypervisor since somebody last asked (`Ram.take_dirty`)
    the frame holds *code*   perhaps, and the emulator sees the guest's own stores but not ours: translations
                             of it are dropped (`codewatch.py`)

`PhysicalMemory` stores by machine address, `FramePage` by offset in one frame that is shared with a guest,
and `memory.GuestMemory` by a guest's virtual address, on top of it. Which frames may be written, and by whom,
is for the caller to know. What the hypervisor keeps for itself, and no guest can write or execute, `Ram`
stores: hardware L4s, the M2P, descriptor windows.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Protocol

import numpy as np
import numpy.typing as npt

from pyhv.address import PAGE_MASK, Mfn
from pyhv.cpu.layers import MfnArray, runs
from pyhv.cpu.ram import Ram
from pyhv.cpu.words import fetch, octets, store, words32, words64
from pyhv.mmu.frames import FrameTable
from pyhv.shared_page import SharedPage
from pyhv.state import Plain, entries, refusal, typed


class Executor(Protocol):
    """What `PhysicalMemory` knows of the page tables of a domain."""

    stale: bool
    """The engine's TLB may allow more than the tables do."""

    def lent(self, mfn: int) -> None:
        """Another domain can write to the frame from now on."""


class PhysicalMemory:
    """Machine memory by machine address. Callers answer for the address: it is in RAM and theirs to write."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("ram", "frames", "invalidators", "executors"), "given"),
        **dict.fromkeys(("_raw", "_size", "_octets", "_q", "_d", "_tables"), "views of RAM"),
        **dict.fromkeys(("_dirty", "_code"), "views of what is known of its frames"),
    }

    def __init__(self, ram: Ram, frames: FrameTable) -> None:
        self.ram = ram
        self.frames = frames
        views = ram.writable
        self._raw, self._tables, self._size = views.raw, views.tables, len(views.raw)
        self._octets, self._q, self._d = octets(views.raw), words64(views.q), words32(views.d)
        self._dirty, self._code = octets(ram.dirty), octets(frames.code)
        self.invalidators: list[Callable[[int, int], None]] = []
        """One per engine: forget the translated code of so many frames from a frame on."""
        self.executors: list[Executor] = []
        """One per engine: the page tables that it walks."""
        self.shared_code: set[Mfn] = set()
        """Frames that one domain can execute while another one can write to them (`codewatch.py`)."""

    def state(self) -> dict[str, Plain]:
        """The frames that one domain can execute and another one write."""
        return {"shared_code": list[Plain](sorted(self.shared_code))}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Have the frames that were saved. StateError."""
        shared = entries(dict(saved), "", {"shared_code": None})["shared_code"]
        mfns = set(typed(list[Mfn], shared, "shared_code"))
        if any(mfn >= self.frames.count for mfn in mfns):
            raise refusal("shared_code", "has frames that do not exist")
        self.shared_code = mfns

    def code_written(self, mfn: Mfn) -> None:
        """Drop translations of a frame that the hypervisor has just written.

        More may be made of it while a leaf or, after it, the TLB lets it be executed.
        """
        for invalidate in self.invalidators:
            invalidate(mfn, 1)
        if self.frames.exec_count[mfn] == 0 and not any(executor.stale for executor in self.executors):
            self.frames.code[mfn] = 0

    def code_gone(self, mfns: MfnArray) -> None:
        """Drop translations of frames, ascending, that nobody maps, nor will by his TLB when he runs on."""
        for first, count in runs(mfns[self.frames.code_np[mfns] == 1]):
            for invalidate in self.invalidators:
                invalidate(first, count)
        self.frames.code_np[mfns] = 0

    def lend(self, mfn: Mfn) -> None:
        """A domain that does not own the frame gets a writable mapping of it."""
        self.frames.lent[mfn] += 1
        for executor in self.executors:
            executor.lent(mfn)
        if self.frames.exec_count[mfn]:
            self.shared_code.add(mfn)

    def renew_shared(self) -> None:
        """A vCPU's turn begins: drop what was translated of frames that others may have written since."""
        for mfn in list(self.shared_code):
            self.code_written(mfn)
            if self.frames.exec_count[mfn] == 0:
                self.shared_code.discard(mfn)

    # -- stores ------------------------------------------------------------------------------------------

    def write(self, address: int, data: bytes) -> None:
        """Write within one frame."""
        store(self._octets, self._size, address, data)
        mfn = address >> 12
        self._dirty[mfn] = 1
        if self._code[mfn]:
            self.code_written(Mfn(mfn))

    def write_u64(self, address: int, value: int) -> None:
        """Write an aligned 64-bit word."""
        self._q[address >> 3] = value
        mfn = address >> 12
        self._dirty[mfn] = 1
        if self._code[mfn]:
            self.code_written(Mfn(mfn))

    def write_u32(self, address: int, value: int) -> None:
        """Write an aligned 32-bit word."""
        self._d[address >> 2] = value
        mfn = address >> 12
        self._dirty[mfn] = 1
        if self._code[mfn]:
            self.code_written(Mfn(mfn))

    def write_slots(
        self, mfn: int, slots: slice | npt.NDArray[np.int64], entries: npt.NDArray[np.uint64] | int
    ) -> None:
        """Write several of the 512 words of a frame, or one value to all of them."""
        self._tables[mfn][slots] = entries
        self._dirty[mfn] = 1
        if self._code[mfn]:
            self.code_written(Mfn(mfn))

    def write_new(self, address: int, data: bytes | memoryview) -> None:
        """Write from an address on, across frames, none of which was mapped by anybody yet."""
        self._raw[address : address + len(data)] = data
        self.ram.dirty_np[address >> 12 : (address + len(data) + PAGE_MASK) >> 12] = 1

    def read(self, address: int, length: int) -> bytes:
        """Read bytes within RAM."""
        return fetch(self._octets, self._size, address, length)


class FramePage(SharedPage):
    """A frame of the machine's memory that guest and hypervisor share, by byte offset."""

    __slots__ = ("_code", "_d", "_dirty", "_octets", "_physical", "_q", "base", "mfn")

    NOT_STATE: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("_code", "_d", "_dirty", "_octets", "_physical", "_q", "base", "mfn"),
        "whoever holds a page says its frame",
    )

    def __init__(self, physical: PhysicalMemory, mfn: Mfn) -> None:
        self._physical = physical
        views = physical.ram.writable
        self._octets, self._q, self._d = octets(views.raw), words64(views.q), words32(views.d)
        self._dirty, self._code = octets(physical.ram.dirty), octets(physical.frames.code)
        self.mfn = mfn
        self.base = mfn << 12

    def elsewhere(self, mfn: Mfn) -> "FramePage | None":
        """Another frame of the machine; None if there is none of that number."""
        return FramePage(self._physical, mfn) if 0 < mfn < self._physical.frames.count else None

    def window(self, offset: int, length: int) -> memoryview:
        """Some bytes as they are at any time, for reading only."""
        return self._physical.ram.raw[self.base + offset : self.base + offset + length]

    def read(self, offset: int, length: int) -> bytes:
        """A copy of `length` bytes."""
        return self._physical.read(self.base + offset, length)

    def write(self, offset: int, data: bytes) -> None:
        """Store bytes."""
        self._physical.write(self.base + offset, data)

    def read_u8(self, offset: int) -> int:
        """One byte."""
        return self._octets[self.base + offset]

    def write_u8(self, offset: int, value: int) -> None:
        """Store one byte."""
        self._octets[self.base + offset] = value
        self._dirty[self.mfn] = 1
        if self._code[self.mfn]:
            self._physical.code_written(self.mfn)

    def read_u32(self, offset: int) -> int:
        """One aligned 32-bit word."""
        return self._d[(self.base + offset) >> 2]

    def write_u32(self, offset: int, value: int) -> None:
        """Store one aligned 32-bit word."""
        self._physical.write_u32(self.base + offset, value)

    def read_u64(self, offset: int) -> int:
        """One aligned 64-bit word."""
        return self._q[(self.base + offset) >> 3]

    def write_u64(self, offset: int, value: int) -> None:
        """Store one aligned 64-bit word."""
        self._physical.write_u64(self.base + offset, value)
