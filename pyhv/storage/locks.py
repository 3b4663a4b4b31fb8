# SPDX-License-Identifier: GPL-2.0-only
"""Advisory locks on images: who writes one has it alone, and who reads one has it unchanged.

QEMU and its tools have a protocol for this, and pyhv keeps to it, so that a running QEMU, `qemu-img` and pyhv
respect each other. There are a few things that one can do with a file. Who does one holds a lock on that
thing's byte from 100 on; who cannot bear that others do it holds one on its byte from 200 on. All are
*shared* locks and never collide: after taking its own, each looks whether others hold one on the opposite
byte.

    byte           100 + n           200 + n
    n = 0          reads             wants nobody to read         (nobody does)
        1          writes            wants nobody to write
        3          changes its size  wants nobody to change its size

    reader holds   100               201 203       and finds nobody on 101 103, nor on 200
    writer holds   100 101 103       201 203       and finds nobody on 101 103, nor on 200 201 203

The locks belong to the open file (`F_OFD_SETLK`), so that two disks of one process exclude each other as
well, and they go when it is closed or its process dies, however it dies.
"""

import errno
import fcntl
import struct
import time
from typing import Final

from pyhv.storage.disk import DiskError

_FLOCK: Final = struct.Struct("@hhqqi4x")
"""The kernel's `struct flock` where numbers of files have 64 bits: type, whence, start, length, pid."""
_DOES: Final = 100
_BARS: Final = 200
_READ: Final = 0
_WRITE: Final = 1
_RESIZE: Final = 3
_CHANGES: Final = (_WRITE, _RESIZE)
_NO_LOCKS: Final = (errno.ENOLCK, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOSYS)
_ATTEMPTS: Final = 4
"""Two who begin at once may see each other and both step back: then each tries again, not at the same
time."""


def lock(descriptor: int, path: str, *, writing: bool) -> None:
    """Lock an open image as its reader or its writer; DiskError: another one is in the way.

    A file system without locks is read all the same, and not written.
    """
    for attempt in range(_ATTEMPTS):
        try:
            _hold(descriptor, writing=writing)
            hindrance = _hindrance(descriptor, writing=writing)
        except OSError as error:
            if error.errno not in _NO_LOCKS:
                raise DiskError.of(path, "cannot be locked", error) from error
            if not writing:
                return
            raise DiskError(
                f"{path}: its file system has no locks ({error.strerror}), so that two guests could write it "
                "at "
                "once: move it to a local file system",
                error.errno,
            ) from error
        if hindrance is None:
            return
        unlock(descriptor)
        if attempt + 1 < _ATTEMPTS:
            time.sleep((attempt + 1) * (0.002 + time.monotonic_ns() % 8 / 1000))
    raise DiskError(f"{path}: {hindrance}", errno.EBUSY)


def unlock(descriptor: int) -> None:
    """Give up all locks of an open image."""
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, 0, _DOES, 2 * _BARS, 0))


def _hold(descriptor: int, *, writing: bool) -> None:
    for does in (_READ, *_CHANGES) if writing else (_READ,):
        _share(descriptor, _DOES + does)
    for barred in _CHANGES:
        _share(descriptor, _BARS + barred)


def _share(descriptor: int, byte: int) -> None:
    fcntl.fcntl(descriptor, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_RDLCK, 0, byte, 1, 0))


def _hindrance(descriptor: int, *, writing: bool) -> str | None:
    """What another one does that we cannot bear, or the other way round."""
    if any(_held_by_others(descriptor, _DOES + does) for does in _CHANGES):
        if writing:
            return "is being written by another guest or program; end that one, or give each guest an overlay"
        return "is being written by another guest or program, and would change while it is read; end that one"
    if _held_by_others(descriptor, _BARS + _READ):
        return "is used by another program that bears no reader; end that one"
    if writing and any(_held_by_others(descriptor, _BARS + barred) for barred in _CHANGES):
        return (
            "is in use by others who read it, perhaps as the base of an overlay, and would change under "
            "them; "
            "give this guest an overlay of its own, or end the others"
        )
    return None


def _held_by_others(descriptor: int, byte: int) -> bool:
    """Whether an open file other than this one has a lock there."""
    found = fcntl.fcntl(descriptor, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, 0, byte, 1, 0))
    return bool(_FLOCK.unpack(found)[0] != fcntl.F_UNLCK)
