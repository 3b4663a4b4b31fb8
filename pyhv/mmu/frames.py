# SPDX-License-Identifier: GPL-2.0-only
"""The frame table: owner, type and reference counts of every frame of the machine.

This is Xen's `page_info` as a structure of arrays. A frame is used in one way at a time:

    type      a frame of this type may be                      and a reference is taken by
    NONE      anything (type count is 0)
    L1 .. L4  a validated page table                           upper entries, pins, base pointers
    SEGDESC   a page of segment descriptors                    GDT slots, faulted-in LDT pages
    WRITABLE  mapped writable                                  each writable leaf entry

The type can change only while the type count is 0. That single rule gives the invariant of a PV machine:
**no frame is at once a page table (or descriptor page) and writable by a guest.** `audit.py` checks it.

**A free frame is zero, and no engine has translations of it.** That is seen to when its last reference goes;
after that nobody can reach it until it is allocated again. So whoever is given a frame finds zeros, by
whatever way it came back. The one exception is a frame that is handed over with its contents: `change_owner`.

Each column exists twice over the same bytes: a `memoryview` for single entries (fast in Python) and a numpy
array (`*_np`) for whole tables. References are taken and dropped in `counts.py`; what makes a page table
valid is `tables.py`.
"""

from collections.abc import Callable, Mapping
from typing import ClassVar, Final, Literal

import numpy as np
import numpy.typing as npt

from pyhv.abi.domid import DOMID_INVALID, DOMID_XEN
from pyhv.abi.errno import Errno
from pyhv.address import MASK32, Mfn
from pyhv.cpu.layers import MfnArray
from pyhv.cpu.ram import Ram
from pyhv.errors import XenError
from pyhv.mmu import counts
from pyhv.state import Plain, entries, refusal, typed

NONE: Final = 0
L1: Final = 1
L2: Final = 2
L3: Final = 3
L4: Final = 4
SEGDESC: Final = 5
WRITABLE: Final = counts.WRITABLE
TYPE_NAMES: Final = {
    NONE: "none",
    L1: "L1",
    L2: "L2",
    L3: "L3",
    L4: "L4",
    SEGDESC: "segdesc",
    WRITABLE: "writable",
}

INVALID_M2P: Final = (1 << 64) - 1


def read_column(
    saved: Plain, where: str, like: npt.NDArray[np.generic], at_most: int | None = None
) -> npt.NDArray[np.uint32]:
    """A column that was saved as bytes, as long as `like`, or any length up to `at_most`. StateError."""
    raw = typed(bytes, saved, where)
    size = like.dtype.itemsize
    longest = like.size if at_most is None else at_most
    if len(raw) % size or len(raw) > longest * size or (at_most is None and len(raw) < longest * size):
        raise refusal(where, f"has {len(raw)} bytes for {longest} frames")
    return np.frombuffer(raw, dtype=like.dtype.newbyteorder("<"))


def _words(array: npt.NDArray[np.uint16] | npt.NDArray[np.uint32], code: Literal["H", "I"]) -> memoryview:
    """The array's bytes as a memoryview of 16- or 32-bit words."""
    return array.data.cast("B").cast(code)


class NoFrames(XenError):
    """The machine has no such frames left: ENOMEM for a guest, and for a builder the reason in `why`."""

    def __init__(self, why: str) -> None:
        super().__init__(Errno.ENOMEM, why)


class PfnTable:
    """The machine-to-physical table: the PFN of each frame, as 64-bit guests and as 32-bit guests see it."""

    NOT_STATE: ClassVar[Mapping[str, str]] = dict.fromkeys(
        ("_ram", "wide_np", "narrow_np", "_wide", "_narrow"), "a view of memory"
    )

    def __init__(self, ram: Ram, wide: Mfn, narrow: Mfn) -> None:
        """The tables are in the frames of `ram` from `wide` and from `narrow` on."""
        self._ram, self._wide, self._narrow = ram, wide, narrow
        words = ram.tables.reshape(-1)
        self.wide_np: npt.NDArray[np.uint64] = words[wide << 9 :][: ram.frames]
        self.narrow_np = words.view(np.uint32)[narrow << 10 :][: ram.frames]

    def __getitem__(self, mfn: int) -> int:
        return self._ram.q[(self._wide << 9) + mfn]

    def __setitem__(self, mfn: int, pfn: int) -> None:
        self._ram.store_u64((self._wide << 12) + mfn * 8, pfn)
        self._ram.store_u32((self._narrow << 12) + mfn * 4, pfn & MASK32)

    def set_many(self, mfns: MfnArray, pfns: npt.NDArray[np.uint64] | int) -> None:
        """Store the PFNs of many frames, or one for all of them."""
        self._ram.store_words(self._wide, mfns, pfns)
        narrow = pfns & MASK32 if isinstance(pfns, int) else pfns.astype(np.uint32)
        self._ram.store_words(self._narrow, mfns, narrow, np.uint32)


_COLUMNS: Final = (
    *("owner", "type", "type_count", "refs", "pinned", "allocated", "xen_heap", "exec_count", "code", "lent"),
    *("linear_in", "linear_out", "last_l2"),
)
_FLAGS: Final = ("pinned", "allocated", "xen_heap", "code", "last_l2")


class FrameTable(counts.FrameCounts):
    """State of all `ram.frames` frames; frame 0 is never given out."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **{f"{name}_np": "another view of the column" for name in _COLUMNS},
        **dict.fromkeys(("ram", "count", "m2p", "on_free", "on_death"), "the board's"),
        "free_count": "the length of the list of free frames",
    }

    def __init__(self, ram: Ram) -> None:
        count = ram.frames
        self.ram = ram
        self.owner_np = np.full(count, DOMID_INVALID, dtype=np.uint16)
        self.owner = _words(self.owner_np, "H")
        """Domain that owns the frame; DOMID_INVALID: free; DOMID_XEN: the hypervisor's own."""
        self.type_np = np.zeros(count, dtype=np.uint8)
        self.type = self.type_np.data
        self.type_count_np = np.zeros(count, dtype=np.uint32)
        self.type_count = _words(self.type_count_np, "I")
        self.refs_np = np.zeros(count, dtype=np.uint32)
        self.refs = _words(self.refs_np, "I")
        """All references, one of them for being allocated; the frame is freed when it falls to 0."""
        self.pinned_np = np.zeros(count, dtype=np.uint8)
        self.pinned = self.pinned_np.data
        self.allocated_np = np.zeros(count, dtype=np.uint8)
        self.allocated = self.allocated_np.data
        """1 while the owner still counts the frame in its reservation."""
        self.xen_heap_np = np.zeros(count, dtype=np.uint8)
        self.xen_heap = self.xen_heap_np.data
        """1 for hypervisor pages shared with their owner (shared_info, grant table): never given away."""
        self.exec_count_np = np.zeros(count, dtype=np.uint32)
        self.exec_count = _words(self.exec_count_np, "I")
        """Leaf entries that map the frame executable."""
        self.code_np = np.zeros(count, dtype=np.uint8)
        self.code = self.code_np.data
        """1 if the emulator may hold translated code of the frame."""
        self.lent_np = np.zeros(count, dtype=np.uint32)
        self.lent = _words(self.lent_np, "I")
        """Writable leaf entries in the tables of domains that do not own the frame."""
        self.linear_in_np = np.zeros(count, dtype=np.uint32)
        self.linear_in = _words(self.linear_in_np, "I")
        self.linear_out_np = np.zeros(count, dtype=np.uint32)
        self.linear_out = _words(self.linear_out_np, "I")
        """Linear (same-level) entries that point to this table, and that this table holds."""
        self.last_l2_np = np.zeros(count, dtype=np.uint8)
        self.last_l2 = self.last_l2_np.data
        """1 for an L2 that is in slot 3 of a 32-bit guest's L3, and so holds the hypervisor's entries."""
        self.look_at(
            count, self.owner, self.type, self.type_count, self.refs, self.exec_count, self.code, self.lent,
            self.pinned, self.linear_in, self.linear_out, self.last_l2,
        )  # fmt: skip
        self._free = np.arange(count - 1, -1, -1, dtype=np.uint32)
        """A stack of the free frames in its first `free_count` places; the next to be given out is on top."""
        self.free_count = count - 1
        """Frames that nobody owns."""
        self.m2p: PfnTable | None = None
        self.on_free: Callable[[Mfn, int], None] = lambda _mfn, _owner: None
        """Called with (frame, owner) when a frame is about to be free: stale translations must go."""
        self.on_death: Callable[[MfnArray], None] = lambda _mfns: None
        """Called with all frames that are about to be free because their owner is gone: the same."""

    # -- allocation --------------------------------------------------------------------------------------

    @property
    def m2p_np(self) -> npt.NDArray[np.uint64]:
        """The 64-bit machine-to-physical table for reading; empty if the machine has none."""
        return self.m2p.wide_np if self.m2p is not None else np.empty(0, dtype=np.uint64)

    def free_list(self) -> MfnArray:
        """The frames that nobody owns, in no particular order."""
        return self._free[: self.free_count].astype(np.int64)

    def allocate_many(self, owner: int, count: int) -> MfnArray:
        """Take `count` zeroed frames for `owner`; NoFrames when so many are not left."""
        if count > self.free_count:
            raise NoFrames(
                f"the machine has {self.free_count} free page frames and {count} are wanted;"
                " give it more memory or boot fewer guests"
            )
        rest = self.free_count - count
        taken = self._free[rest : self.free_count][::-1].astype(np.int64)
        self.free_count = rest
        self.owner_np[taken] = owner
        self.type_np[taken] = NONE
        self.type_count_np[taken] = 0
        self.refs_np[taken] = 1
        self.allocated_np[taken] = 1
        return taken

    def allocate(self, owner: int, count: int = 1) -> list[Mfn]:
        """`allocate_many` as a list."""
        return [Mfn(mfn) for mfn in self.allocate_many(owner, count).tolist()]

    def allocate_extent(self, owner: int, order: int) -> list[Mfn]:
        """Take 2**order contiguous, naturally aligned frames for `owner`; NoFrames if there are none."""
        if order == 0:
            return self.allocate(owner)
        size = 1 << order
        free = self.owner_np == DOMID_INVALID
        free[0] = False
        extents = free[: self.count // size * size].reshape(-1, size).all(axis=1)
        if extents.any():
            first = int(extents.argmax()) << order
            stack = self._free[: self.free_count]
            others = stack[(stack < first) | (stack >= first + size)]
            stack[: others.size] = others
            stack[others.size :] = np.arange(first + size - 1, first - 1, -1)
            return self.allocate(owner, size)
        raise NoFrames(f"the machine has no {size} contiguous free page frames")

    def allocate_xen(self, count: int = 1) -> list[Mfn]:
        """Frames of the hypervisor itself, invisible to every guest."""
        frames = self.allocate(DOMID_XEN, count)
        for mfn in frames:
            self.xen_heap[mfn] = 1
        return frames

    def allocate_shared(self, owner: int, below: int | None = None) -> Mfn:
        """A hypervisor page that `owner` may map writable but never give back (shared_info, grants).

        `below` is a bound for its frame number: what a 32-bit guest must name in 32 bits. NoFrames.
        """
        stack = self._free[: self.free_count]
        if below is not None and stack.size and stack[-1] >= below:
            at = int(stack.argmin())
            low = int(stack[at])
            stack[at:-1] = stack[at + 1 :].copy()
            stack[-1] = low
            if low >= below:
                raise NoFrames(
                    "the machine has no free page frame below 4 GiB, where a 32-bit guest needs one;"
                    " create 32-bit guests first"
                )
        (mfn,) = self.allocate(owner)
        self.xen_heap[mfn] = 1
        self.allocated[mfn] = 0
        self.type[mfn] = WRITABLE
        self.type_count[mfn] = 1
        self.refs[mfn] = 1
        return mfn

    def owned(self, number: int, owner: int) -> Mfn | None:
        """The frame of that number, if `owner` owns it: here a number from outside becomes an `Mfn`."""
        return Mfn(number) if 0 < number < self.count and self.owner[number] == owner else None

    # -- references: taken and dropped in `counts.py` -----------------------------------------------------

    def deallocate(self, mfn: Mfn) -> None:
        """The owner gives the frame back: its allocation reference goes."""
        self.allocated[mfn] = 0
        self.drop(mfn)

    def change_owner(self, mfn: Mfn, owner: int) -> None:
        """Hand a frame, to which nothing refers but its allocation, to another domain, contents and all."""
        assert self.refs[mfn] == self.allocated[mfn] == 1
        self.on_free(mfn, self.owner[mfn])
        self.owner[mfn] = owner
        self.type[mfn] = NONE
        if self.m2p is not None:
            self.m2p[mfn] = INVALID_M2P

    def free_allocated(self, domid: int) -> None:
        """A dying domain gives back its whole reservation; frames that others still map live on."""
        mine = np.flatnonzero((self.owner_np == domid) & (self.allocated_np == 1))
        self.allocated_np[mine] = 0
        self.refs_np[mine] -= 1
        last = mine[self.refs_np[mine] == 0]
        self.on_death(last)
        self.owner_np[last] = DOMID_INVALID
        self.type_np[last] = NONE
        self.ram.clear(last)
        if self.m2p is not None:
            self.m2p.set_many(last, INVALID_M2P)
        self._free[self.free_count : self.free_count + last.size] = last[::-1]
        self.free_count += last.size

    def drop_shared(self, mfn: Mfn) -> None:
        """Undo `allocate_shared` when its domain has died."""
        self.type_count[mfn] -= 1
        self.drop(mfn)

    def last_dropped(self, mfn: int) -> None:
        """A frame is free: as clean as any, and on the list."""
        assert self.type_count[mfn] == 0, f"frame {mfn:#x} freed while used as {TYPE_NAMES[self.type[mfn]]}"
        self.on_free(Mfn(mfn), self.owner[mfn])
        self.owner[mfn] = DOMID_INVALID
        self.type[mfn] = NONE
        self.pinned[mfn] = self.allocated[mfn] = self.xen_heap[mfn] = 0
        self.ram.clear_run(mfn)
        if self.m2p is not None:
            self.m2p[mfn] = INVALID_M2P
        self._free[self.free_count] = mfn
        self.free_count += 1

    # -- state -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Plain]:
        """The columns as bytes, little-endian, and the free frames in the order in which they lie."""
        columns: dict[str, Plain] = {name: self._column(name).tobytes() for name in _COLUMNS}
        return {**columns, "free": self._free[: self.free_count].tobytes()}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Have the columns that were saved; StateError.

        What no column tells by itself, such as whose table refers to whose frame, is for `audit.py` to say.
        An engine that goes on forgets what it has translated of frames that no longer count as having code.
        """
        found = entries(dict(saved), "", dict.fromkeys((*_COLUMNS, "free")))
        columns = {name: read_column(found[name], name, self._column(name)) for name in _COLUMNS}
        if not np.isin(columns["type"], list(TYPE_NAMES)).all():
            raise refusal("type", "has values that are no types")
        for name in _FLAGS:
            if (columns[name] > 1).any():
                raise refusal(name, "has values other than 0 and 1")
        free = read_column(found["free"], "free", self._free, at_most=self.count - 1)
        unowned = np.flatnonzero(columns["owner"] == DOMID_INVALID)
        if not np.array_equal(np.sort(free), unowned[1:]) or unowned[:1].tolist() != [0]:
            raise refusal("free", "does not have exactly the frames that nobody owns")
        if columns["refs"][unowned].any() or columns["type_count"][unowned].any():
            raise refusal("refs", "or type_count counts references to frames that nobody owns")
        self.on_death(np.flatnonzero((self.code_np == 1) & (columns["code"] == 0)))
        for name, column in columns.items():
            self._column(name)[:] = column
        self.free_count = free.size
        self._free[: free.size] = free

    def _column(self, name: str) -> npt.NDArray[np.generic]:
        column: npt.NDArray[np.generic] = getattr(self, f"{name}_np")
        return column

    # -- questions ---------------------------------------------------------------------------------------

    def owned_by(self, domid: int) -> MfnArray:
        """All frames of a domain, ascending."""
        return np.flatnonzero(self.owner_np == domid)

    def describe(self, mfn: int) -> str:
        """One phrase on a frame, for refusals and crash reports."""
        if not 0 < mfn < self.count:
            return f"mfn {mfn:#x} (no such frame)"
        kind = TYPE_NAMES.get(self.type[mfn], "?") if self.type_count[mfn] else "untyped"
        return (
            f"mfn {mfn:#x} (owner d{self.owner[mfn]}, {kind} x{self.type_count[mfn]},"
            f" refs {self.refs[mfn]}{', pinned' if self.pinned[mfn] else ''})"
        )
