# SPDX-License-Identifier: GPL-2.0-only
"""A domain's grant table: which of its frames it lends to whom, and which loans are being used.

The layout (version 1) and the status codes are those of the public header `grant_table.h`:

    entry, 8 bytes, in frames shared with the guest    flags bits
    +0  flags  u16                                     1..0  type: 0 invalid, 1 permit access, 2 transfer
    +2  domid  u16  who may use it                     2     read-only
    +4  frame  u32  what is lent (PV: an MFN)          3, 4  hypervisor's: in use to read, to write

The guest writes entries whenever it likes, so an entry is believed once: from the first use to the last,
the frame and the borrower are those of the hypervisor's own record. The two bits in the shared entry only
tell the guest whether it may take the page back. This module knows no page tables and no frame's owner:
whether the frame named is the granter's, the caller checks after `acquire`, and calls `release` if it is
not.
"""

import enum
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Protocol

from pyhv.abi.errno import Errno
from pyhv.address import PAGE_SIZE, Mfn
from pyhv.errors import XenError

ENTRY_SIZE = 8
ENTRIES_PER_FRAME = PAGE_SIZE // ENTRY_SIZE
MAX_FRAMES = 64
"""Default limit of a table's size, in frames."""
RESERVED_CONSOLE = 0
RESERVED_XENSTORE = 1
"""References that the toolstack fills before the guest starts."""
MAX_PINS = 128
"""Most uses of one kind of one entry at a time."""


class GrantStatus(enum.IntEnum):
    """GNTST codes: the `status` field of each grant operation."""

    OKAY = 0
    GENERAL_ERROR = -1
    BAD_DOMAIN = -2
    BAD_GNTREF = -3
    BAD_HANDLE = -4
    BAD_VIRT_ADDR = -5
    BAD_DEV_ADDR = -6
    NO_DEVICE_SPACE = -7
    PERMISSION_DENIED = -8
    BAD_PAGE = -9
    BAD_COPY_ARG = -10
    ADDRESS_TOO_BIG = -11
    EAGAIN = -12
    NO_SPACE = -13


class GrantError(Exception):
    """One grant operation's refusal: `status` goes to the guest, `why` to the trace."""

    def __init__(self, status: GrantStatus, why: str = "") -> None:
        super().__init__(status, why)
        self.status = status
        self.why = why

    def __str__(self) -> str:
        return f"{self.status.name}: {self.why}"


class EntryFlag(enum.IntFlag):
    """Bits of an entry's flags (GTF)."""

    PERMIT_ACCESS = 1
    ACCEPT_TRANSFER = 2
    TYPE_MASK = 3
    READONLY = 4
    READING = 8
    WRITING = 16
    SUB_PAGE = 256


class MapFlag(enum.IntFlag):
    """Flags of a mapping (GNTMAP). DEVICE and HOST are its two halves, each pinned on its own."""

    DEVICE = 1
    HOST = 2
    READONLY = 4
    APPLICATION = 8
    CONTAINS_PTE = 16


HALVES = MapFlag.DEVICE | MapFlag.HOST


class GuestFrame(Protocol):
    """One frame of the table: its number, and its bytes at offsets 0..4095, little-endian."""

    @property
    def mfn(self) -> Mfn:
        """The machine frame."""

    def read_u16(self, offset: int) -> int:
        """Read two bytes."""

    def write_u16(self, offset: int, value: int) -> None:
        """Write two bytes."""

    def read_u32(self, offset: int) -> int:
        """Read four bytes."""

    def write_u32(self, offset: int, value: int) -> None:
        """Write four bytes."""


@dataclass(slots=True)
class Loan:
    """One entry in use: what was lent to whom when the first use began, and how often it is used.

    `readers` and `writers` count the uses by half, (host, device).
    """

    domid: int
    frame: Mfn
    readers: dict[MapFlag, int] = field(default_factory=lambda: {MapFlag.HOST: 0, MapFlag.DEVICE: 0})
    writers: dict[MapFlag, int] = field(default_factory=lambda: {MapFlag.HOST: 0, MapFlag.DEVICE: 0})

    @property
    def read_pins(self) -> int:
        """Read-only uses, both halves together."""
        return sum(self.readers.values())

    @property
    def write_pins(self) -> int:
        """Writable uses, both halves together."""
        return sum(self.writers.values())

    @property
    def pins(self) -> int:
        """All uses; a loan without any is over."""
        return self.read_pins + self.write_pins


class GrantTable:
    """The grant table of domain `domid`.

    `allocate` gives a zeroed frame, owned by the hypervisor and mappable by the guest, or None when memory is
    short. One frame is allocated at once, so that the toolstack can fill the reserved entries.
    """

    def __init__(
        self, domid: int, allocate: Callable[[], GuestFrame | None], max_frames: int = MAX_FRAMES
    ) -> None:
        self.domid = domid
        self.max_frames = max_frames
        self.version = 1
        self._allocate = allocate
        self._frames: list[GuestFrame] = []
        self._loans: dict[int, Loan] = {}
        if max_frames > 0:
            self._grow(1)

    # ---- size and version

    @property
    def frames(self) -> list[Mfn]:
        """The machine frames of the table, in order."""
        return [frame.mfn for frame in self._frames]

    @property
    def entries(self) -> int:
        """Number of references that exist."""
        return len(self._frames) * ENTRIES_PER_FRAME

    def setup(self, nr_frames: int) -> list[Mfn]:
        """GNTTABOP_setup_table: grow to at least `nr_frames`, and name the first `nr_frames` of them.

        GENERAL_ERROR: more than the limit, or no memory for them.
        """
        if not 0 <= nr_frames <= self.max_frames:
            raise GrantError(
                GrantStatus.GENERAL_ERROR,
                f"{nr_frames} grant frames asked for, {self.max_frames} is the limit",
            )
        self._grow(nr_frames)
        return self.frames[:nr_frames]

    def query(self) -> tuple[int, int]:
        """GNTTABOP_query_size: (frames now, frames at most)."""
        return len(self._frames), self.max_frames

    def set_version(self, version: int) -> int:
        """GNTTABOP_set_version: the version now in force. Raises XenError.

        EINVAL: neither 1 nor 2. ENOSYS: version 2, which is not offered.
        """
        if version not in (1, 2):
            raise XenError(Errno.EINVAL, f"there is no grant table version {version}")
        if version == 2:
            raise XenError(Errno.ENOSYS, "grant table version 2 is not offered")
        return self.version

    def reserve(self, ref: int, domid: int, frame: Mfn) -> None:
        """Grant `frame` to `domid` before the guest runs: the console and xenstore entries. BAD_GNTREF."""
        shared, at = self._entry(ref)
        shared.write_u16(at + 2, domid)
        shared.write_u32(at + 4, frame)
        shared.write_u16(at, EntryFlag.PERMIT_ACCESS)

    def swap(self, ref_a: int, ref_b: int) -> None:
        """GNTTABOP_swap_grant_ref: exchange two entries. BAD_GNTREF; EAGAIN: one of them is in use."""
        (frame_a, at_a), (frame_b, at_b) = self._entry(ref_a), self._entry(ref_b)
        for ref in (ref_a, ref_b):
            if ref in self._loans:
                raise GrantError(GrantStatus.EAGAIN, f"grant {ref} is in use")
        for offset in (0, 4):
            a, b = frame_a.read_u32(at_a + offset), frame_b.read_u32(at_b + offset)
            frame_a.write_u32(at_a + offset, b)
            frame_b.write_u32(at_b + offset, a)

    # ---- use

    def acquire(self, ref: int, by_domid: int, readonly: bool, halves: MapFlag = MapFlag.HOST) -> Mfn:
        """Begin a use of entry `ref` by domain `by_domid`, and return the frame.

        `halves` says which halves of a mapping are meant; a copy takes the HOST half for as long as it lasts.
        BAD_GNTREF: the reference is beyond the table, or no half is named. GENERAL_ERROR: the entry does not
        permit access, is another domain's, is read-only, or is used too often.
        """
        if not halves & HALVES:
            raise GrantError(GrantStatus.BAD_GNTREF, "neither a host nor a device mapping was asked for")
        shared, at = self._entry(ref)
        loan = self._loans.get(ref)
        if loan is not None:
            if loan.domid != by_domid:
                raise GrantError(GrantStatus.GENERAL_ERROR, f"grant {ref} is in use by domain {loan.domid}")
            counts = loan.readers if readonly else loan.writers
            if any(counts[half] >= MAX_PINS for half in _each(halves)):
                raise GrantError(GrantStatus.GENERAL_ERROR, f"grant {ref} is in use {MAX_PINS} times already")
        if loan is None or (not readonly and not loan.write_pins):
            flags = shared.read_u16(at)
            if loan is None:
                self._check_offer(ref, flags, shared.read_u16(at + 2), by_domid)
            if not readonly and flags & EntryFlag.READONLY:
                raise GrantError(GrantStatus.GENERAL_ERROR, f"grant {ref} is read-only")
            flags |= EntryFlag.READING if readonly else EntryFlag.READING | EntryFlag.WRITING
            shared.write_u16(at, flags)
        if loan is None:
            loan = self._loans[ref] = Loan(by_domid, Mfn(shared.read_u32(at + 4)))
        counts = loan.readers if readonly else loan.writers
        for half in _each(halves):
            counts[half] += 1
        return loan.frame

    def release(self, ref: int, readonly: bool, halves: MapFlag = MapFlag.HOST) -> None:
        """End a use begun by `acquire` with the same `readonly`; `halves` may be ended one by one.

        The last writable use clears the entry's "writing" bit, the last of all its "reading" bit. Ending a
        use that was not begun is a bug of the caller, never a guest's: ValueError, and nothing changes.
        """
        loan = self._loans.get(ref)
        counts = {} if loan is None else loan.readers if readonly else loan.writers
        if loan is None or not all(counts[half] for half in _each(halves)):
            raise ValueError(f"grant {ref} of domain {self.domid} is not in use that way")
        for half in _each(halves):
            counts[half] -= 1
        clear = EntryFlag(0)
        if not readonly and not loan.write_pins:
            clear |= EntryFlag.WRITING
        if not loan.pins:
            clear |= EntryFlag.READING
            del self._loans[ref]
        if clear and ref < self.entries:
            shared, at = self._entry(ref)
            shared.write_u16(at, shared.read_u16(at) & ~int(clear))

    def loan(self, ref: int) -> Loan | None:
        """The account of an entry in use; None if it is not."""
        return self._loans.get(ref)

    def active_mappings(self) -> Iterator[tuple[int, Loan]]:
        """Every entry in use, (ref, loan), by ascending reference; releasing meanwhile is allowed."""
        yield from sorted(self._loans.items())

    def destroy(self) -> list[Mfn]:
        """The domain dies: give back the table's frames. Loans live on until their users `release` them."""
        frames = self.frames
        self._frames.clear()
        self.max_frames = 0
        return frames

    # ---- inside

    def _entry(self, ref: int) -> tuple[GuestFrame, int]:
        """The frame that holds an entry, and the entry's offset in it. BAD_GNTREF."""
        if not 0 <= ref < self.entries:
            raise GrantError(
                GrantStatus.BAD_GNTREF, f"domain {self.domid} has grants 0..{self.entries - 1}, not {ref}"
            )
        return self._frames[ref // ENTRIES_PER_FRAME], ref % ENTRIES_PER_FRAME * ENTRY_SIZE

    def _check_offer(self, ref: int, flags: int, domid: int, by_domid: int) -> None:
        """An entry's first use: it must permit access to whole pages, to this domain."""
        if flags & (EntryFlag.TYPE_MASK | EntryFlag.SUB_PAGE) != EntryFlag.PERMIT_ACCESS or domid != by_domid:
            raise GrantError(
                GrantStatus.GENERAL_ERROR,
                f"grant {ref} has flags {flags:#x} for domain {domid}: it is not lent to domain {by_domid}",
            )

    def _grow(self, nr_frames: int) -> None:
        while len(self._frames) < nr_frames:
            frame = self._allocate()
            if frame is None:
                raise GrantError(GrantStatus.GENERAL_ERROR, "no memory for a grant frame")
            self._frames.append(frame)


def _each(halves: MapFlag) -> list[MapFlag]:
    """The halves named in a set of map flags."""
    return [half for half in (MapFlag.HOST, MapFlag.DEVICE) if half & halves]
