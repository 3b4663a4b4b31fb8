# SPDX-License-Identifier: GPL-2.0-only
"""What a disk is: so many bytes that are read and written by their offset, from any number of threads.

`Disk` is the interface between whoever keeps the bytes (a file, an image in layers, a server) and whoever
wants them (a block back end, a tool). It knows no guest. Its methods check what they are asked before they
pass it on to the `_read` or `_write` of a kind of disk, and see to it that nothing is under way when it is
closed: the number of a file that was closed may be another file's at once.

What was written is on the host's disk when a `flush` that began later has returned, and not before. What
fails is a `DiskError` with an errno, and nothing but that; a write that failed has changed some of its bytes
or none, and no others.
"""

import errno as errno_module
import threading
from abc import ABC, abstractmethod
from collections.abc import Iterator
from types import TracebackType
from typing import Final, NamedTuple, Self

from pyhv.errors import PyhvError

SECTOR: Final = 512
"""Bytes; sizes of disks are multiples of it."""
_ZEROS: Final = bytes(1 << 16)


class DiskError(PyhvError):
    """A disk, or its image, that cannot be used, read or written; the message names it and says why.

    `errno` is what a program on the host would be told: EIO, ENOSPC, EROFS, EINVAL ...
    """

    def __init__(self, why: str, errno: int = errno_module.EIO) -> None:
        super().__init__(why)
        self.errno = errno

    @classmethod
    def of(cls, name: str, doing: str, error: OSError) -> "DiskError":
        """For what the host has refused: `doing` continues a sentence that begins with the disk's name."""
        return cls(f"{name}: {doing} ({error.strerror or error})", error.errno or errno_module.EIO)


class Identity(NamedTuple):
    """A file that a disk consists of, as it is now; another one has other figures."""

    path: str
    size: int
    """Bytes."""
    mtime_ns: int
    """When it was changed last."""


class _Uses:
    """Counts who is inside, and lets nobody in after `end`, which waits for them."""

    __slots__ = ("_changed", "_count", "_ended", "_name")

    def __init__(self, name: str) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._count = 0
        self._ended = False
        self._name = name

    def __enter__(self) -> None:
        with self._changed:
            if self._ended:
                raise DiskError(f"{self._name}: the disk has been closed", errno_module.ENODEV)
            self._count += 1

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        with self._changed:
            self._count -= 1
            if self._ended and not self._count:
                self._changed.notify_all()

    def end(self) -> bool:
        """True for the first who asks, when all are out; false for others."""
        with self._changed:
            if self._ended:
                return False
            self._ended = True
            self._changed.wait_for(lambda: not self._count)
            return True


class Disk(ABC):
    """So many bytes; see the module. A kind of disk defines the methods with an underscore."""

    discard_granularity: int = 0
    """Bytes of which `discard` gives whole ones back to the host; 0: it changes nothing."""

    def __init__(self, name: str, size: int, *, read_only: bool) -> None:
        assert size % SECTOR == 0, size
        self.name = name
        """For messages: a path, or where a server is."""
        self.size = size
        """Bytes, a multiple of SECTOR."""
        self.read_only = read_only
        self._uses = _Uses(name)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def read(self, offset: int, length: int) -> bytes:
        """All of these bytes; DiskError."""
        self._check(offset, length)
        with self._uses:
            return self._read(offset, length) if length else b""

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """All of them; DiskError: some may have been written."""
        view = memoryview(data).cast("B")
        self._check_writable(offset, len(view))
        with self._uses:
            if view:
                self._write(offset, view)

    def write_through(self, offset: int, data: bytes | memoryview) -> None:
        """Write, and these bytes are on the host's disk when it returns (the FUA of other protocols)."""
        self.write(offset, data)
        self.flush()

    def flush(self) -> None:
        """What was written before is on the host's disk when it returns; DiskError: it may be lost."""
        with self._uses:
            if not self.read_only:
                self._flush()

    def discard(self, offset: int, length: int) -> None:
        """Nobody needs these bytes any more: each reads as zero afterwards, or as before."""
        self._check_writable(offset, length)
        with self._uses:
            if length:
                self._discard(offset, length)

    def zero(self, offset: int, length: int) -> None:
        """These bytes are zeros afterwards, and take no room on the host where that is possible."""
        self._check_writable(offset, length)
        with self._uses:
            if length:
                self._zero(offset, length)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The parts (offset, length) in order that may be other than zeros; all else is zeros."""
        self._check(offset, length)
        with self._uses:
            found = list(self._extents(offset, length)) if length else []
        yield from found

    def identity(self) -> list[Identity]:
        """All files that it consists of, the one that is written first; DiskError."""
        with self._uses:
            return self._identity()

    def close(self) -> None:
        """Flush and give everything back, when what is under way has been done; again: nothing."""
        if self._uses.end():
            self._close()

    # -- what a kind of disk does; all arguments have been checked, and lengths are not 0 --------------------

    @abstractmethod
    def _read(self, offset: int, length: int) -> bytes: ...

    @abstractmethod
    def _write(self, offset: int, data: memoryview) -> None: ...

    @abstractmethod
    def _flush(self) -> None: ...

    @abstractmethod
    def _close(self) -> None: ...

    def _discard(self, offset: int, length: int) -> None:
        """Keep the bytes as they are."""
        return

    def _zero(self, offset: int, length: int) -> None:
        zeros = memoryview(_ZEROS)
        for at in range(offset, offset + length, len(zeros)):
            self._write(at, zeros[: offset + length - at])

    def _extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield offset, length

    def _identity(self) -> list[Identity]:
        return []

    # -- checks ----------------------------------------------------------------------------------------------

    def _check(self, offset: int, length: int) -> None:
        if offset < 0 or length < 0 or offset + length > self.size:
            raise DiskError(
                f"{self.name}: {length} bytes at {offset} are not within its {self.size} bytes",
                errno_module.EINVAL,
            )

    def _check_writable(self, offset: int, length: int) -> None:
        self._check(offset, length)
        if self.read_only:
            raise DiskError(f"{self.name}: the disk is read-only", errno_module.EROFS)
