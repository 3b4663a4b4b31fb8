# SPDX-License-Identifier: GPL-2.0-only
"""A file or a block device whose bytes are the disk's bytes.

A file that does not end with a whole sector gets one: what is missing reads as zeros, and the file grows when
that is written. Holes read as zeros; what is discarded becomes one, where the host's file system can.
"""

import errno
from collections.abc import Iterator
from typing import Final

from pyhv.storage.disk import SECTOR, Disk, DiskError, Identity
from pyhv.storage.formats import HEAD, RAW, detect
from pyhv.storage.hostfile import HostFile

_PAGE: Final = 4096


class RawDisk(Disk):
    """The bytes of a file, which it closes; `guessed`: nobody has said that its format is raw."""

    discard_granularity = _PAGE

    def __init__(self, file: HostFile, *, guessed: bool = False) -> None:
        if not file.size:
            raise DiskError(f"{file.path}: is empty; a disk has at least one sector", errno.EINVAL)
        super().__init__(file.path, -(-file.size // SECTOR) * SECTOR, read_only=not file.may_write)
        self.file = file
        self._guessed = guessed
        self._end = file.size
        """Bytes that the file has had: who finds it shorter finds it damaged."""

    def _read(self, offset: int, length: int) -> bytes:
        found = self.file.read(offset, length)
        if len(found) == length:
            return found
        if offset + len(found) < self._end:
            raise DiskError(
                f"{self.name}: has become shorter while it was in use: {self._end} bytes are gone"
            )
        return found.ljust(length, b"\0")

    def _write(self, offset: int, data: memoryview) -> None:
        if self._guessed and offset < HEAD:
            self._refuse_another_format(offset, data)
        self.file.write(offset, data)

    def _refuse_another_format(self, offset: int, data: memoryview) -> None:
        """Nobody makes of it, from within, what the next one takes for an image of another format."""
        head = bytearray(self.file.read(0, HEAD).ljust(HEAD, b"\0"))
        head[offset : offset + len(data)] = data[: HEAD - offset]
        if (found := detect(bytes(head))) != RAW:
            raise DiskError(
                f"{self.name}: its guest may not make it begin like an image in the format {found}, since "
                "nobody has "
                "said that it is raw; say format=raw",
                errno.EPERM,
            )

    def _flush(self) -> None:
        self.file.sync()

    def _discard(self, offset: int, length: int) -> None:
        start, stop = -(-offset // _PAGE) * _PAGE, (offset + length) // _PAGE * _PAGE
        if start < stop:
            self.file.punch(start, stop - start)

    def _zero(self, offset: int, length: int) -> None:
        if self._guessed and offset < HEAD:
            self._refuse_another_format(offset, memoryview(bytes(min(length, HEAD))))
        if not self.file.punch(offset, length):
            super()._zero(offset, length)
        elif offset + length > self._end:  # a hole beyond the end does not make the file longer
            self._write(offset + length - SECTOR, memoryview(bytes(SECTOR)))

    def _extents(self, offset: int, length: int) -> Iterator[tuple[int, int]]:
        yield from self.file.extents(offset, length)

    def _identity(self) -> list[Identity]:
        return [self.file.identity()]

    def _close(self) -> None:
        try:
            if not self.read_only:
                self.file.sync()
        finally:
            self.file.close()
