# SPDX-License-Identifier: GPL-2.0-only
"""A file or block device of the host that holds a disk, or an image of one.

Reads and writes are whole or a `DiskError`; they have an offset of their own (pread, pwrite) and may be made
from several threads. What is read beyond the file's end is missing, and what it means that it is missing is
for the caller to know.
"""

import errno
import os
import stat
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, Final

from pyhv.storage.disk import DiskError, Identity
from pyhv.storage.locks import lock

_KEEP_SIZE: Final = 1
_PUNCH_HOLE: Final = 2
"""Of fallocate(2)."""
_NO_HOLES: Final = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL, errno.EPERM)
LARGEST: Final = (1 << 63) - 512
"""Bytes of a file that offsets of the host can name."""


class HostFile:
    """An open file. `kept` is false for one that nobody needs after this process: it is not synced."""

    def __init__(self, descriptor: int, path: str, *, writable: bool, kept: bool = True) -> None:
        self.descriptor = descriptor
        self.path = path
        self.may_write = writable
        self.kept = kept
        self.size = _size(descriptor, path)
        """Bytes, when it was opened."""
        self.device = stat.S_ISBLK(os.fstat(descriptor).st_mode)
        self._holes = True
        self._lost: DiskError | None = None

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, writable: bool) -> "HostFile":
        """Open a file or block device, locked; DiskError says in one sentence why not."""
        name = os.fspath(path)
        descriptor = _open(name, writable=writable)
        try:
            lock(descriptor, name, writing=writable)
            return cls(descriptor, name, writable=writable)
        except BaseException:
            os.close(descriptor)
            raise

    @classmethod
    def create(cls, path: str | os.PathLike[str]) -> "HostFile":
        """A new empty file, locked by its writer; DiskError, also where there is one already."""
        name = os.fspath(path)
        try:
            descriptor = os.open(name, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
        except FileExistsError as error:
            raise DiskError(f"{name}: there is such a file already, and it is kept", errno.EEXIST) from error
        except (OSError, ValueError) as error:
            raise _refused(name, error, writable=True) from error
        try:
            lock(descriptor, name, writing=True)
            return cls(descriptor, name, writable=True)
        except BaseException:
            os.close(descriptor)
            os.unlink(name)
            raise

    @classmethod
    def temporary(cls, name: str) -> "HostFile":
        """An empty file without a name, in the directory for such; it is gone when it is closed."""
        import tempfile  # seldom needed, and not light

        try:
            with tempfile.TemporaryFile(prefix="pyhv-disk-") as file:
                descriptor = os.dup(file.fileno())
        except OSError as error:
            raise DiskError.of(
                name, f"no temporary file can be made in {tempfile.gettempdir()}", error
            ) from error
        os.set_inheritable(descriptor, False)
        return cls(descriptor, name, writable=True, kept=False)

    def close(self) -> None:
        """Give the descriptor and its locks back."""
        os.close(self.descriptor)

    def read(self, offset: int, length: int) -> bytes:
        """These bytes, without those beyond the end of the file."""
        try:
            found = os.pread(self.descriptor, length, offset)
            if len(found) == length or not found:
                return found
            pieces = [found]
            have = len(found)
            while have < length and (found := os.pread(self.descriptor, length - have, offset + have)):
                pieces.append(found)
                have += len(found)
            return b"".join(pieces)
        except OSError as error:
            raise DiskError.of(self.path, f"{length} bytes at {offset} cannot be read", error) from error

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """All of these bytes."""
        written = 0
        try:
            while written < len(data):
                written += os.pwrite(self.descriptor, data[written:] if written else data, offset + written)
        except OSError as error:
            raise DiskError.of(
                self.path, f"{len(data)} bytes at {offset} cannot be written", error
            ) from error

    def extend(self, size: int) -> None:
        """Make it longer, by zeros; never shorter."""
        try:
            if os.lseek(self.descriptor, 0, os.SEEK_END) >= size:
                return
            os.ftruncate(self.descriptor, size)
        except OSError as error:
            raise DiskError.of(self.path, f"cannot grow to {size} bytes", error) from error

    def sync(self) -> None:
        """All that was written is on the disk; DiskError: some of it may be lost, and stays so.

        After a failure the host tells it once and forgets what it could not write: a later success says
        nothing about that.
        """
        if not self.kept:
            return
        if self._lost is not None:
            raise self._lost
        try:
            os.fdatasync(self.descriptor)
        except OSError as error:
            self._lost = DiskError.of(self.path, "what was written could not be brought to the disk", error)
            raise self._lost from error

    def punch(self, offset: int, length: int) -> bool:
        """Turn bytes into a hole that reads as zeros; false, and nothing done: this file cannot have one."""
        if not self._holes:
            return False
        failed: int = _fallocate()(self.descriptor, _PUNCH_HOLE | _KEEP_SIZE, offset, length)
        if not failed:
            return True
        import ctypes

        number = ctypes.get_errno()
        if number in _NO_HOLES:
            self._holes = False
            return False
        error = OSError(number, os.strerror(number))
        raise DiskError.of(self.path, f"{length} bytes at {offset} cannot be discarded", error)

    def extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        """The parts (offset, length) of these bytes that are no holes."""
        at, end = offset, offset + length
        while at < end:
            try:
                start = os.lseek(self.descriptor, at, os.SEEK_DATA)
                stop = os.lseek(self.descriptor, start, os.SEEK_HOLE)
            except OSError as error:
                if error.errno == errno.ENXIO:  # nothing but a hole from here on
                    return
                if error.errno != errno.EINVAL:
                    raise DiskError.of(self.path, "cannot be read", error) from error
                start, stop = at, end  # a device: it has no holes
            if start >= end:
                return
            yield start, min(stop, end) - start
            at = stop

    def identity(self) -> Identity:
        """As it is now."""
        about = os.fstat(self.descriptor)
        return Identity(os.path.abspath(self.path), about.st_size or self.size, about.st_mtime_ns)

    def key(self) -> tuple[int, int]:
        """The same for two files only if they are one."""
        about = os.fstat(self.descriptor)
        return about.st_dev, about.st_ino


def sync_directory(path: str) -> None:
    """A name that was made in the directory of `path` is on the disk; DiskError."""
    directory = os.path.dirname(os.path.abspath(path))
    try:
        descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
    except OSError as error:
        raise DiskError.of(path, "its directory cannot be brought to the disk", error) from error


def _open(name: str, *, writable: bool) -> int:
    # A device that is mounted is not opened with O_EXCL; and nobody waits for the other end of a pipe.
    flags = (os.O_RDWR | os.O_EXCL) if writable else os.O_RDONLY
    try:
        descriptor = os.open(name, flags | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except (OSError, ValueError) as error:
        raise _refused(name, error, writable=writable) from error
    kind = os.fstat(descriptor).st_mode
    if stat.S_ISREG(kind) or stat.S_ISBLK(kind):
        os.set_blocking(descriptor, True)
        return descriptor
    os.close(descriptor)
    what = "a directory" if stat.S_ISDIR(kind) else "neither a file nor a block device"
    raise DiskError(f"{name}: is {what}, so that it cannot be a disk", errno.EINVAL)


def _refused(name: str, error: OSError | ValueError, *, writable: bool) -> DiskError:
    number = error.errno if isinstance(error, OSError) and error.errno else errno.EINVAL
    where, instead = os.path.dirname(name) or ".", "give it as read-only (ro), or with an overlay"
    why = {
        errno.ENOENT: "there is no such file" if os.path.isdir(where) else "its directory is missing",
        errno.EACCES: f"you may not write it; {instead}" if writable else "you may not read it",
        errno.EROFS: f"is on a file system that cannot be written; {instead}",
        errno.EBUSY: "is in use: mounted, or written by another guest or program",
        errno.EISDIR: "is a directory, so that it cannot be a disk",
        errno.ENXIO: "is neither a file nor a block device, so that it cannot be a disk",
        errno.ELOOP: "is a symbolic link that leads to itself",
    }.get(number)  # fmt: skip
    return DiskError(f"{name}: {why or f'cannot be opened ({error})'}", number)


def _size(descriptor: int, path: str) -> int:
    try:
        size = os.lseek(descriptor, 0, os.SEEK_END)
    except OSError as error:
        raise DiskError.of(path, "its size cannot be found", error) from error
    if size > LARGEST:
        raise DiskError(f"{path}: is too large, {size} bytes", errno.EFBIG)
    return size


@cache
def _fallocate() -> Any:
    """The function of the C library, which Python does not offer whole."""
    import ctypes

    function = ctypes.CDLL(None, use_errno=True).fallocate
    function.argtypes = [ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64]
    function.restype = ctypes.c_int
    return function


def absolute(path: str, beside: str) -> str:
    """The file that is named `path` in one that lies at `beside`."""
    return str(Path(beside).absolute().parent / path)
