# SPDX-License-Identifier: GPL-2.0-only
"""A disk that remembers moments: what it held then can be had again, put back, and forgotten.

Time is cut into epochs, each from a moment to the next. Before a *grain* of the disk is written for the first
time in an epoch, its bytes are copied to a temporary file: they are what it held at the epoch's moment. So
the grain's bytes at some moment are the first copy that was made at or after it, and if there is none, those
of the disk.

    moments     0          1          2          now
    grain 5     ├─ copy A ─┼──────────┼─ copy C ─┤ D        at 0: A    at 1, 2: C    now: D
    grain 6     ├──────────┼─ copy B ─┼──────────┤ E        at 0, 1: B  at 2, now: E

Putting back a moment is writing, as a guest writes, and so it can itself be undone: moments that came later
stay. A *view* is a disk of its own, with what was held at a moment and whatever its owner writes, and leaves
the image alone.

Copies are bounded. When they would take more than that, or than the host has room for, the oldest moments
give way; who asks for one of these, or has a view of it, is told so. The guest notices nothing. Nothing is
copied before the first moment is taken; as long as one is remembered, nothing is discarded.
"""

import errno
import threading
from collections import deque
from collections.abc import Iterable, Iterator
from typing import Final

from pyhv.storage.disk import Disk, DiskError, Identity
from pyhv.storage.hostfile import HostFile

GRAIN: Final = 16 << 10
"""Bytes that are copied at once."""
MOST_COPIED: Final = 8 << 30
"""Bytes of copies, if nobody says otherwise."""
_FULL: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_ZEROS: Final = -1
"""The slot of a grain that held nothing but zeros; it takes no room."""
_PIECE: Final = 1 << 20
"""Bytes that are put back at once."""


class _Copies:
    """A temporary file of grains, made when the first is kept; those that were given back are used again."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._file: HostFile | None = None
        self._free: list[int] = []
        self._count = 0

    @property
    def used(self) -> int:
        """Grains that are kept."""
        return self._count - len(self._free)

    def keep(self, data: bytes | memoryview) -> int:
        """Store a grain; its slot."""
        if self._file is None:
            self._file = HostFile.temporary(f"temporary file of {self._name}")
        slot = self._free.pop() if self._free else self._count
        try:
            self._file.write(slot * GRAIN, data)
        except BaseException:
            if slot != self._count:
                self._free.append(slot)
            raise
        self._count = max(self._count, slot + 1)
        return slot

    def change(self, slot: int, offset: int, data: bytes | memoryview) -> None:
        """Write into a grain that is kept."""
        assert self._file is not None
        self._file.write(slot * GRAIN + offset, data)

    def read(self, slot: int, offset: int, length: int) -> bytes:
        """Bytes of a grain."""
        assert self._file is not None
        return self._file.read(slot * GRAIN + offset, length).ljust(length, b"\0")

    def drop(self, slots: list[int]) -> None:
        """Give slots back, and their room to the host."""
        assert self._file is not None
        for slot in slots:
            self._file.punch(slot * GRAIN, GRAIN)
        self._free += slots

    def close(self) -> None:
        """Give all back."""
        if self._file is not None:
            self._file.close()


def _grains(offset: int, length: int) -> Iterator[tuple[int, int, int]]:
    """Grains that these bytes touch: number, where in it they begin, and how many they are."""
    while length:
        number, inner = divmod(offset, GRAIN)
        span = min(GRAIN - inner, length)
        yield number, inner, span
        offset, length = offset + span, length - span


class Remembering(Disk):
    """A disk around another one, which it closes; views of it keep that open until they are closed too."""

    def __init__(self, disk: Disk, most: int = MOST_COPIED) -> None:
        super().__init__(disk.name, disk.size, read_only=disk.read_only)
        self.disk = disk
        self.discard_granularity = disk.discard_granularity
        self.most = most
        """Bytes of copies."""
        self._lock = threading.Lock()
        self._slots = _Copies(disk.name)
        self._epochs: dict[int, dict[int, int]] = {}
        """For each moment in order: the slots of grains that were copied after it, and before the next."""
        self._moments = 0
        self._unneeded: set[int] = set()
        """Moments that are not needed but by views."""
        self._told: deque[int] = deque()
        """Moments that somebody has said not to need, and that are still to be looked at."""
        self._left: deque[int | None] = deque()
        """And users who have gone."""
        self._views: list[int] = []
        """Moments of which there are views."""
        self._users = 1
        """This disk and its views."""

    # -- moments ---------------------------------------------------------------------------------------------

    def moment(self) -> int:
        """Remember what the disk holds now; a number that is larger than those of earlier moments.

        It is what was written by writes that have returned; so that it is one moment, none is under way.
        """
        with self._uses, self._lock:
            self._tidy()
            number = self._moments
            self._moments += 1
            self._epochs[number] = {}
            return number

    def moments(self) -> list[int]:
        """Those that can be had."""
        with self._uses, self._lock:
            self._tidy()
            return [moment for moment in self._epochs if moment not in self._unneeded]

    def _known(self, moment: int) -> None:
        self._tidy()
        if moment not in self._epochs or moment in self._unneeded:
            raise self._not_remembered(moment)

    def revert(self, moment: int) -> None:
        """Let the disk hold again what it held then; all moments stay. DiskError: it may, in part."""
        with self._uses:
            with self._lock:
                self._known(moment)
                numbers = sorted(set().union(*self._since(moment)))
            for first, count in _in_pieces(numbers):
                offset = first * GRAIN
                length = min(count * GRAIN, self.size - offset)
                data = memoryview(self.read_at(moment, offset, length))
                self._copy(offset, length)
                self.disk.write(offset, data)

    def view(self, moment: int) -> "View":
        """A disk of what this one held then, which its owner may write; this one is not changed.
        DiskError."""
        with self._uses, self._lock:
            self._known(moment)
            self._users += 1
            self._views.append(moment)
        return View(self, moment)

    def forget(self, before: int) -> None:
        """Moments with a smaller number are not needed any more, but for the views that there are."""
        for moment in list(self._epochs):
            if moment < before:
                self.drop(moment)

    def drop(self, moment: int) -> None:
        """A moment is not needed any more, but for the views that there are.

        This may be called by whoever collects garbage, in the middle of anything: so it does not wait for the
        lock. Who has it tidies up later.
        """
        self._told.append(moment)
        self._settle()

    def _settle(self) -> None:
        """Do what `drop` and `leave` were told, unless somebody has the lock, who will."""
        ended = False
        while (self._told or self._left) and self._lock.acquire(blocking=False):
            try:
                self._tidy()
                ended = not self._users
            finally:
                self._lock.release()
        if ended:
            try:
                self.disk.close()
            finally:
                self._slots.close()

    def _tidy(self) -> None:
        """Let go of what nobody needs. Under the lock."""
        if not self._told and not self._left:
            return
        while self._left:
            moment = self._left.popleft()
            self._users -= 1
            if moment is not None:
                self._views.remove(moment)
        while self._told:
            self._unneeded.add(self._told.popleft())
        self._unneeded &= self._epochs.keys()
        earlier: dict[int, int] | None = None
        for number, copies in list(self._epochs.items()):
            if number not in self._unneeded or number in self._views:
                earlier = copies
                continue
            del self._epochs[number]
            self._unneeded.discard(number)
            self._hand_over(copies, earlier)
        if not self._users:
            self._epochs.clear()

    def _hand_over(self, copies: dict[int, int], earlier: dict[int, int] | None) -> None:
        """What was copied in an epoch that ends is an earlier moment's too, unless that has a copy of its
        own."""
        if earlier is None:
            self._give_back(copies.values())
            return
        self._give_back(slot for number, slot in copies.items() if number in earlier)
        for number, slot in copies.items():
            earlier.setdefault(number, slot)

    def _give_back(self, slots: Iterable[int]) -> None:
        if real := [slot for slot in slots if slot != _ZEROS]:
            self._slots.drop(real)

    @property
    def copied(self) -> int:
        """Bytes that copies take now."""
        return self._slots.used * GRAIN

    def _since(self, moment: int) -> list[dict[int, int]]:
        """The epochs from a moment on. Under the lock."""
        if moment not in self._epochs:
            raise self._not_remembered(moment)
        return [slots for number, slots in self._epochs.items() if number >= moment]

    def _not_remembered(self, moment: int) -> DiskError:
        return DiskError(
            f"{self.name}: what it held at moment {moment} is not remembered any more, or never was",
            errno.ESTALE,
        )

    # -- a disk ----------------------------------------------------------------------------------------------

    def _read(self, offset: int, length: int) -> bytes:
        return self.disk.read(offset, length)

    def _write(self, offset: int, data: memoryview) -> None:
        if self._epochs:
            self._copy(offset, len(data))
        self.disk.write(offset, data)

    def _discard(self, offset: int, length: int) -> None:
        if not self._epochs:  # else all of it would have to be copied, which may be a whole disk
            self.disk.discard(offset, length)

    def _zero(self, offset: int, length: int) -> None:
        if self._epochs:
            self._copy(offset, length)
        self.disk.zero(offset, length)

    def _extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        return self.disk.extents(offset, length)

    def _flush(self) -> None:
        self.disk.flush()

    def _identity(self) -> list[Identity]:
        return self.disk.identity()

    def _close(self) -> None:
        self.leave(None)

    def leave(self, moment: int | None) -> None:
        """One user less, perhaps a view of that moment; the last one closes everything. As `drop`."""
        self._left.append(moment)
        self._settle()

    # -- copies ----------------------------------------------------------------------------------------------

    def _copy(self, offset: int, length: int) -> None:
        """Copy grains that have not been copied since the last moment, before they are changed."""
        with self._lock:
            self._tidy()
            for number, _, _ in _grains(offset, length):
                if not self._epochs:
                    return
                last = next(reversed(self._epochs.values()))
                if number in last:
                    continue
                start = number * GRAIN
                held = self.disk.read(start, min(GRAIN, self.size - start))
                last[number] = self._kept(held) if held.count(0) != len(held) else _ZEROS

    def _kept(self, held: bytes) -> int:
        """The slot of a copy; old moments make room for it, all of them if need be."""
        while self._epochs:
            if (self._slots.used + 1) * GRAIN <= self.most:
                try:
                    return self._slots.keep(held)
                except DiskError as error:
                    if error.errno not in _FULL:
                        raise
            self._give_back(self._epochs.pop(next(iter(self._epochs))).values())
        return _ZEROS  # of an epoch that nobody has any more

    def read_at(self, moment: int, offset: int, length: int) -> bytes:
        """What was held there at a moment."""
        pieces = []
        for number, inner, span in _grains(offset, length):
            found = self._copy_of(moment, number, inner, span)
            if found is None:
                start = number * GRAIN + inner
                found = self.disk.read(start, span)
                # Meanwhile somebody may have copied the grain, to write it: then the copy counts.
                found = self._copy_of(moment, number, inner, span) or found
            pieces.append(found)
        return b"".join(pieces)

    def _copy_of(self, moment: int, number: int, inner: int, span: int) -> bytes | None:
        """Bytes of the first copy of a grain at or after a moment."""
        with self._lock:
            slot = next((slots[number] for slots in self._since(moment) if number in slots), None)
            if slot == _ZEROS:
                return bytes(span)
            return None if slot is None else self._slots.read(slot, inner, span)


class View(Disk):
    """What a disk held at a moment, and what was written here since; nothing of it is kept."""

    discard_granularity = GRAIN

    def __init__(self, of: Remembering, moment: int) -> None:
        super().__init__(f"{of.name}, a copy", of.size, read_only=of.read_only)
        self._of = of
        self._moment = moment
        self._lock = threading.Lock()
        self._slots = _Copies(self.name)
        self._own: dict[int, int] = {}

    def _read(self, offset: int, length: int) -> bytes:
        pieces = []
        for number, inner, span in _grains(offset, length):
            with self._lock:
                slot = self._own.get(number)
                found = None if slot is None else self._slots.read(slot, inner, span)
            pieces.append(self._before(number * GRAIN + inner, span) if found is None else found)
        return b"".join(pieces)

    def _before(self, offset: int, length: int) -> bytes:
        """What was held there at the moment."""
        return self._of.read_at(self._moment, offset, length)

    def _write(self, offset: int, data: memoryview) -> None:
        with self._lock:
            for number, inner, span in _grains(offset, len(data)):
                piece, data = data[:span], data[span:]
                slot = self._own.get(number)
                if slot is not None:
                    self._slots.change(slot, inner, piece)
                    continue
                start = number * GRAIN
                whole = min(GRAIN, self.size - start)
                if span != whole:
                    grain = bytearray(self._before(start, whole))
                    grain[inner : inner + span] = piece
                    piece = memoryview(grain)
                self._own[number] = self._slots.keep(piece)

    def _flush(self) -> None:
        """Nothing of it is kept."""

    def _identity(self) -> list[Identity]:
        return self._of.disk.identity()

    def _close(self) -> None:
        self._slots.close()
        self._of.leave(self._moment)


def _in_pieces(numbers: list[int]) -> Iterator[tuple[int, int]]:
    """Grains in order as runs (first, count) of at most _PIECE bytes."""
    first, count = -1, 0
    for number in numbers:
        if count and number == first + count and (count + 1) * GRAIN <= _PIECE:
            count += 1
            continue
        if count:
            yield first, count
        first, count = number, 1
    if count:
        yield first, count
