# SPDX-License-Identifier: GPL-2.0-only
"""A domain's grant table: which of its frames it lends to whom, and which loans are being used.

The guest writes entries (`entries`) whenever it likes, so an entry is believed once: from the first use to
the last, the frame and the borrower are those of the hypervisor's own record. The two bits "in use" that the
guest sees only tell it whether it may take the page back.

Entries of version 2 may lend a part of a page, or pass on what another domain has lent (a transitive
grant); both can only be copied, never mapped. A transitive grant leads to one further table and no further,
so neither a chain nor a loop of them costs anything.

This module knows no page tables and no frame's owner: whether the frame named is the granter's, the caller
checks after `take`, and drops it if it is not.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import ClassVar, Final, Protocol

from pyhv.abi.errno import Errno
from pyhv.abi.grants import RESERVED_ENTRIES, EntryFlag, GrantStatus, MapFlag
from pyhv.abi.layout import u8, u16, u32
from pyhv.address import MASK32, PAGE_SIZE, Mfn
from pyhv.errors import XenError
from pyhv.frozen import frozen
from pyhv.grants.entries import IN_USE, STATUS_SIZE, Entries, EntriesV1, EntriesV2, GrantEntry
from pyhv.grants.status import GrantError
from pyhv.shared_page import SharedPage
from pyhv.state import Plain, construct, refusal, state

MAX_FRAMES: Final = 64
"""Default limit of a table's size, in frames."""
MAX_PINS: Final = 128
"""Most uses of one kind of one entry at a time."""


HALVES: Final = MapFlag.DEVICE | MapFlag.HOST
# Members of a flag are objects: what is done with them takes longer than all the rest of a look at an entry.
_PERMIT_ACCESS: Final = int(EntryFlag.PERMIT_ACCESS)
_READONLY: Final = int(EntryFlag.READONLY)
_SUB_PAGE: Final = int(EntryFlag.SUB_PAGE)


class SharedPages(Protocol):
    """Where a table's frames come from: the hypervisor's own, which the guest may map."""

    def allocate(self) -> SharedPage | None:
        """A zeroed frame; None when memory is short."""

    def is_mapped(self, mfn: Mfn) -> bool:
        """Whether the guest has the frame mapped."""

    def drop(self, mfn: Mfn) -> None:
        """Give back a frame that is not mapped."""

    def page(self, mfn: Mfn) -> SharedPage | None:
        """A frame that `allocate` has given out before; None if there is no such frame."""


@dataclass(slots=True)
class Loan:
    """One entry in use: what was lent to whom when the first use began, and how often it is used.

    `entry` is what the guest had written. `readers` and `writers` count the uses by half, (host, device).
    """

    domid: u16
    entry: GrantEntry
    partial: bool = False
    """It lends less than a page, or another domain's: it may be copied but not mapped."""
    readers: dict[MapFlag, int] = field(default_factory=lambda: {MapFlag.HOST: 0, MapFlag.DEVICE: 0})
    writers: dict[MapFlag, int] = field(default_factory=lambda: {MapFlag.HOST: 0, MapFlag.DEVICE: 0})

    @property
    def frame(self) -> Mfn:
        """The frame that is lent, or said to be."""
        return Mfn(self.entry.frame)

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


@dataclass(slots=True)
class _Saved:
    """The state of a table."""

    max_frames: u32
    version: u8
    frames: list[Mfn]
    status: list[Mfn]
    loans: dict[u32, Loan]


@frozen
class CopyGrant:
    """What a copy may touch: bytes `start` .. `start + length` of `frame`, which `owner` must own."""

    owner: int
    frame: Mfn
    start: int
    length: int
    readonly: bool
    held: tuple[tuple["GrantTable", int], ...]
    """The entries in use for it."""

    def drop(self) -> None:
        """The copy is done."""
        for table, ref in self.held:
            table.drop(ref, self.readonly)


class GrantTable:
    """The grant table of domain `domid`.

    One frame is allocated at once, so that the toolstack can fill the reserved entries.
    """

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "domid": "the domain's builder",
        "_pages": "the domain's builder",
        "_entries": "follows from the version and the frames",
    }

    def __init__(
        self, domid: int, pages: SharedPages, max_frames: int = MAX_FRAMES, *, allocate: bool = True
    ) -> None:
        """Without `allocate` it has no frame before those that were saved are restored."""
        self.domid = domid
        self.max_frames = max_frames
        self._pages = pages
        self._frames: list[SharedPage] = []
        self._status: list[SharedPage] = []
        self._entries: Entries = EntriesV1(self._frames)
        self._loans: dict[int, Loan] = {}
        if allocate and max_frames > 0:
            self._grow(1)

    # ---- size and version

    @property
    def version(self) -> int:
        """The version in force: 1, or 2."""
        return self._entries.version

    @property
    def frames(self) -> list[Mfn]:
        """The machine frames of the entries, in order."""
        return [frame.mfn for frame in self._frames]

    @property
    def status_frames(self) -> list[Mfn]:
        """The machine frames of the statuses, in order; none in version 1."""
        return [frame.mfn for frame in self._status]

    @property
    def shared_frames(self) -> list[Mfn]:
        """Every frame that the table shares with its guest."""
        return self.frames + self.status_frames

    @property
    def entries(self) -> int:
        """Number of references that exist."""
        return len(self._frames) * PAGE_SIZE // self._entries.size

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

    def status_setup(self, nr_frames: int) -> list[Mfn]:
        """GNTTABOP_get_status_frames: the first `nr_frames` of them. GENERAL_ERROR: there are not so many."""
        if not 0 <= nr_frames <= len(self._status):
            raise GrantError(
                GrantStatus.GENERAL_ERROR,
                f"{nr_frames} status frames asked for, there are {len(self._status)}",
            )
        return self.status_frames[:nr_frames]

    def query(self) -> tuple[int, int]:
        """GNTTABOP_query_size: (frames now, frames at most)."""
        return len(self._frames), self.max_frames

    def set_version(self, version: int) -> None:
        """GNTTABOP_set_version: the reserved entries are kept, all others are cleared. Raises XenError.

        EINVAL: neither 1 nor 2. EBUSY: an entry that is not reserved is in use, or the status frames, which
        version 1 does without, are mapped. ERANGE: a reserved entry says what version 1 cannot. ENOMEM.
        """
        if version not in (1, 2):
            raise XenError(Errno.EINVAL, f"there is no grant table version {version}")
        if version == self.version:
            return
        for ref in self._loans:
            if ref >= RESERVED_ENTRIES:
                raise XenError(Errno.EBUSY, f"grant {ref} is in use")
        kept = []
        for ref in range(min(RESERVED_ENTRIES, self.entries)):
            kept.append((self._entries.read(ref), self._entries.in_use(ref)))
        if version == 2:
            try:
                self._extend(self._status, _status_frames(len(self._frames)))
            except GrantError as error:
                raise XenError(Errno.ENOMEM, "no memory for the status frames") from error
            kept = [(replace(entry, flags=entry.flags & ~int(IN_USE)), bits) for entry, bits in kept]
        else:
            kept = [_narrowed(ref, entry, bits) for ref, (entry, bits) in enumerate(kept)]
            self._drop_status()
        for frame in self._frames:
            frame.write(0, bytes(PAGE_SIZE))
        self._entries = self._of_version(version)
        for ref, (entry, bits) in enumerate(kept):
            self._entries.write(ref, entry, bits)

    def _of_version(self, version: int) -> Entries:
        return EntriesV2(self._frames, self._status) if version == 2 else EntriesV1(self._frames)

    def _drop_status(self) -> None:
        """Give back the status frames. EBUSY: the guest has one mapped (it would keep a page of ours)."""
        for mfn in self.status_frames:
            if self._pages.is_mapped(mfn):
                raise XenError(Errno.EBUSY, f"status frame {mfn:#x} is mapped")
        for mfn in self.status_frames:
            self._pages.drop(mfn)
        self._status.clear()

    def reserve(self, ref: int, domid: int, frame: Mfn) -> None:
        """Grant `frame` to `domid` before the guest runs: the console and xenstore entries. BAD_GNTREF."""
        self._check_ref(ref)
        self._entries.write(ref, GrantEntry(EntryFlag.PERMIT_ACCESS, domid, frame))

    def swap(self, ref_a: int, ref_b: int) -> None:
        """GNTTABOP_swap_grant_ref: exchange two entries. BAD_GNTREF; EAGAIN: one of them is in use."""
        for ref in (ref_a, ref_b):
            self._check_ref(ref)
        if ref_a == ref_b:
            return
        for ref in (ref_a, ref_b):
            if ref in self._loans:
                raise GrantError(GrantStatus.EAGAIN, f"grant {ref} is in use")
        self._entries.swap(ref_a, ref_b)

    # ---- use

    def take(self, ref: int, by_domid: int, readonly: bool, halves: MapFlag = MapFlag.HOST) -> Mfn:
        """Begin to map entry `ref` by domain `by_domid`, and return the frame.

        `halves` says which halves of a mapping are meant. BAD_GNTREF: the reference is beyond the table, or
        no half is named. GENERAL_ERROR: the entry does not lend a whole page of its domain, is for another
        domain, is read-only, or is used too often.
        """
        if not halves & HALVES:
            raise GrantError(GrantStatus.BAD_GNTREF, "neither a host nor a device mapping was asked for")
        return self._begin(ref, by_domid, readonly, halves, copying=False).frame

    def lent(self, ref: int, by_domid: int, *, readonly: bool) -> Mfn:
        """The frame that `take` would return, for a use that is over before the guest sees its entry again.

        So nothing is counted, and nothing marked in the entry. Refusals as those of `take`.
        """
        if ref in self._loans:
            mfn = self.take(ref, by_domid, readonly, MapFlag.DEVICE)
            self.drop(ref, readonly, MapFlag.DEVICE)
            return mfn
        self._check_ref(ref)
        entry = self._entries.read(ref)
        self._check_offer(ref, entry, by_domid, copying=False)
        if not readonly and entry.flags & _READONLY:
            raise GrantError(GrantStatus.GENERAL_ERROR, f"grant {ref} is read-only")
        return Mfn(entry.frame)

    def take_copy(
        self,
        ref: int,
        by_domid: int,
        readonly: bool,
        lookup: Callable[[int], "GrantTable | None"] | None,
    ) -> CopyGrant:
        """Begin to copy from or to entry `ref`; the caller ends it with `CopyGrant.drop`.

        `lookup` finds the table that a transitive entry passes on; None forbids transitive entries, which is
        how their depth is bounded. Refusals as those of `take`, of either table.
        """
        loan = self._begin(ref, by_domid, readonly, MapFlag.HOST, copying=True)
        entry = loan.entry
        if entry.via is None:
            return CopyGrant(self.domid, loan.frame, entry.start, entry.length, readonly, held=((self, ref),))
        try:
            domid, passed_on = entry.via
            further = lookup(domid) if lookup is not None and domid != self.domid else None
            if further is None:
                raise GrantError(GrantStatus.GENERAL_ERROR, f"transitive grant {ref} of domain {domid}'s")
            inner = further.take_copy(passed_on, self.domid, readonly, None)
        except GrantError:
            self.drop(ref, readonly)
            raise
        return CopyGrant(
            inner.owner, inner.frame, inner.start, inner.length, readonly, held=(*inner.held, (self, ref))
        )

    def _begin(self, ref: int, by_domid: int, readonly: bool, halves: MapFlag, *, copying: bool) -> Loan:
        """Count one more use of an entry; the first use, and the first for writing, read it."""
        self._check_ref(ref)
        loan = self._loans.get(ref)
        if loan is not None:
            if loan.domid != by_domid or (loan.partial and not copying):
                raise GrantError(GrantStatus.GENERAL_ERROR, f"grant {ref} is in use by domain {loan.domid}")
            counts = loan.readers if readonly else loan.writers
            if any(counts[half] >= MAX_PINS for half in _each(halves)):
                raise GrantError(GrantStatus.GENERAL_ERROR, f"grant {ref} is in use {MAX_PINS} times already")
        if loan is None or (not readonly and not loan.write_pins):
            entry = self._entries.read(ref)
            if loan is None:
                self._check_offer(ref, entry, by_domid, copying)
            if not readonly and entry.flags & _READONLY:
                raise GrantError(GrantStatus.GENERAL_ERROR, f"grant {ref} is read-only")
            bits = EntryFlag.READING if readonly else EntryFlag.READING | EntryFlag.WRITING
            self._entries.mark(ref, bits)
            if loan is None:
                partial = self.version > 1 and (
                    entry.via is not None or bool(entry.flags & EntryFlag.SUB_PAGE)
                )
                loan = self._loans[ref] = Loan(by_domid, entry, partial)
        counts = loan.readers if readonly else loan.writers
        for half in _each(halves):
            counts[half] += 1
        return loan

    def drop(self, ref: int, readonly: bool, halves: MapFlag = MapFlag.HOST) -> None:
        """End a use begun by `take` with the same `readonly`; `halves` may be ended one by one.

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
            self._entries.clear(ref, clear)

    def loan(self, ref: int) -> Loan | None:
        """The account of an entry in use; None if it is not."""
        return self._loans.get(ref)

    def active_mappings(self) -> Iterator[tuple[int, Loan]]:
        """Every entry in use, (ref, loan), by ascending reference; releasing meanwhile is allowed."""
        yield from sorted(self._loans.items())

    # ---- transfer

    def accept_transfer(self, ref: int, by_domid: int) -> None:
        """GNTTABOP_transfer: commit entry `ref` to take a frame from `by_domid`.

        GENERAL_ERROR: there is no such entry, or it does not wait for a frame of that domain.
        """
        if ref < self.entries:
            entry = self._entries.read(ref)
            if entry.flags == EntryFlag.ACCEPT_TRANSFER and entry.domid == by_domid:
                self._entries.set_flags(ref, EntryFlag.TRANSFER_COMMITTED)
                return
        raise GrantError(
            GrantStatus.GENERAL_ERROR, f"grant {ref} of domain {self.domid} does not accept a transfer"
        )

    def complete_transfer(self, ref: int, frame: Mfn) -> int:
        """Name the frame in an entry that has accepted it; returns the PFN that the guest had named there."""
        pfn = self._entries.exchange_frame(ref, frame)
        self._entries.set_flags(ref, EntryFlag.TRANSFER_COMPLETED)
        return pfn

    def destroy(self) -> list[Mfn]:
        """The domain dies: give back the table's frames. Loans live on until their users `drop` them."""
        frames = self.shared_frames
        self._frames.clear()
        self._status.clear()
        self.max_frames = 0
        return frames

    # ---- state

    def state(self) -> dict[str, Plain]:
        """Its frames by number, and the loans; the entries are in the frames."""
        return state(_Saved(self.max_frames, self.version, self.frames, self.status_frames, self._loans))

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved; who counts references to frames is restored apart, and before."""
        found = construct(_Saved, dict(saved))
        if found.version not in (1, 2) or found.max_frames > self.max_frames:
            raise refusal("version or max_frames", "is not possible")
        statuses = _status_frames(len(found.frames)) if found.version == 2 else 0
        if len(found.frames) > found.max_frames or len(found.status) != statuses:
            raise refusal("frames", "and status do not go together")
        for ref, loan in found.loans.items():
            uses = [*loan.readers.values(), *loan.writers.values()]
            if not loan.readers.keys() == loan.writers.keys() == {MapFlag.HOST, MapFlag.DEVICE}:
                raise refusal(f"loans.{ref}", "does not count both halves")
            if not loan.pins or not all(0 <= count <= MAX_PINS for count in uses):
                raise refusal(f"loans.{ref}", "is in use never, or too often")
        frames, status = self._found(found.frames, "frames"), self._found(found.status, "status")
        self._frames[:], self._status[:] = frames, status
        if len({*found.frames, *found.status}) != len(frames) + len(status):
            raise refusal("frames", "has a frame twice")
        self._entries = (
            EntriesV2(self._frames, self._status) if found.version == 2 else EntriesV1(self._frames)
        )
        self.max_frames, self._loans = found.max_frames, found.loans

    def _found(self, mfns: list[Mfn], where: str) -> list[SharedPage]:
        pages = [self._pages.page(mfn) for mfn in mfns]
        if None in pages:
            raise refusal(where, "has a frame that is not shared with the domain")
        return [page for page in pages if page is not None]

    # ---- inside

    def _check_ref(self, ref: int) -> None:
        if not 0 <= ref < self.entries:
            raise GrantError(
                GrantStatus.BAD_GNTREF, f"domain {self.domid} has grants 0..{self.entries - 1}, not {ref}"
            )

    def _check_offer(self, ref: int, entry: GrantEntry, by_domid: int, copying: bool) -> None:
        """An entry's first use: it must permit access to this domain, and for a mapping to a whole page."""
        fine = entry.kind == _PERMIT_ACCESS
        if copying:
            fine |= entry.via is not None
        else:
            fine &= not entry.flags & _SUB_PAGE
        if not fine or entry.domid != by_domid:
            raise GrantError(
                GrantStatus.GENERAL_ERROR,
                f"grant {ref} has flags {entry.flags:#x} for domain {entry.domid}: it is not lent to domain"
                f" {by_domid}",
            )

    def _grow(self, nr_frames: int) -> None:
        if self.version == 2:
            self._extend(self._status, _status_frames(nr_frames))
        self._extend(self._frames, nr_frames)

    def _extend(self, frames: list[SharedPage], count: int) -> None:
        """Lengthen a list of frames to `count`, or leave it as it is. GENERAL_ERROR: no memory."""
        more: list[SharedPage] = []
        while len(frames) + len(more) < count:
            frame = self._pages.allocate()
            if frame is None:
                for taken in more:
                    self._pages.drop(taken.mfn)
                raise GrantError(GrantStatus.GENERAL_ERROR, "no memory for a grant frame")
            more.append(frame)
        frames += more


def _status_frames(nr_frames: int) -> int:
    """Status frames for so many frames of entries, in version 2."""
    return -(-nr_frames * PAGE_SIZE // EntriesV2.size * STATUS_SIZE // PAGE_SIZE)


def _narrowed(ref: int, entry: GrantEntry, bits: int) -> tuple[GrantEntry, int]:
    """A reserved entry of version 2 as version 1 can say it, and its "in use" bits; only what permits access
    is kept. ERANGE."""
    permits = entry.kind == EntryFlag.PERMIT_ACCESS
    if entry.kind == EntryFlag.TRANSITIVE or (permits and entry.frame > MASK32):
        raise XenError(Errno.ERANGE, f"version 1 cannot express grant {ref}")
    return (entry, bits) if permits else (GrantEntry(0, 0, 0), 0)


def _each(halves: MapFlag) -> list[MapFlag]:
    """The halves named in a set of map flags."""
    return [half for half in (MapFlag.HOST, MapFlag.DEVICE) if half & halves]
