# SPDX-License-Identifier: GPL-2.0-only
"""Messages of 9P2000.L as bytes: size[4] type[1] tag[2], and fields, all little-endian.

As in Plan 9's intro(5), and for the L variant in Linux' `include/net/9p/9p.h` and diod's protocol.md.
"""

import enum
import errno
import struct
from typing import Any, Final

HEADER: Final = struct.Struct("<IBH")
LEAST_MESSAGE: Final = 4096
MOST_MESSAGE: Final = 512 << 10
"""Bytes of a message that both may send."""
MAX_NAME: Final = 255


class Ask(enum.IntEnum):
    """Requests; the answer to each is one more, or LERROR + 1."""

    LERROR = 6
    STATFS = 8
    LOPEN = 12
    LCREATE = 14
    SYMLINK = 16
    MKNOD = 18
    RENAME = 20
    READLINK = 22
    GETATTR = 24
    SETATTR = 26
    XATTRWALK = 30
    XATTRCREATE = 32
    READDIR = 40
    FSYNC = 50
    LOCK = 52
    GETLOCK = 54
    LINK = 70
    MKDIR = 72
    RENAMEAT = 74
    UNLINKAT = 76
    VERSION = 100
    AUTH = 102
    ATTACH = 104
    FLUSH = 108
    WALK = 110
    READ = 116
    WRITE = 118
    CLUNK = 120
    REMOVE = 122


class Denied(Exception):
    """A request is answered with an error of Linux'."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class RequestFields:
    """A request's fields, taken one after the other. Denied: EINVAL, it is too short, or a text is none."""

    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    def take(self, form: str) -> tuple[Any, ...]:
        """Numbers."""
        size = struct.calcsize(form := f"<{form}")
        if self._at + size > len(self._data):
            raise Denied(errno.EINVAL)
        found = struct.unpack_from(form, self._data, self._at)
        self._at += size
        return found

    def number(self, form: str = "I") -> int:
        """One of them."""
        return int(self.take(form)[0])

    def data(self, length: int) -> bytes:
        """Bytes."""
        if self._at + length > len(self._data):
            raise Denied(errno.EINVAL)
        self._at += length
        return self._data[self._at - length : self._at]

    def text(self) -> bytes:
        """A text without NUL."""
        found = self.data(self.number("H"))
        if b"\0" in found:
            raise Denied(errno.EINVAL)
        return found

    def name(self) -> bytes:
        """The name of one file in a directory: no path, and neither "." nor ".."."""
        found = self.text()
        if found in (b"", b".", b"..") or b"/" in found:
            raise Denied(errno.EINVAL)
        if len(found) > MAX_NAME:
            raise Denied(errno.ENAMETOOLONG)
        return found


def text(data: bytes) -> bytes:
    """A text as a field."""
    return struct.pack("<H", len(data)) + data


def message(kind: int, tag: int, body: bytes = b"") -> bytes:
    """A whole message."""
    return HEADER.pack(HEADER.size + len(body), kind, tag) + body
