# SPDX-License-Identifier: GPL-2.0-only
"""A disk that a server on this host offers by NBD over a UNIX socket: qemu-nbd, nbdkit, or any other.

    nbd+unix:///EXPORT?socket=PATH

The source of the protocol is `doc/proto.md` of the NBD project. Numbers are big-endian. The server begins:

    S  "NBDMAGIC" "IHAVEOPT" u16 flags
    C  u32 flags
    C  "IHAVEOPT" u32 option u32 length data
    S  u64 magic u32 option u32 kind u32 length data            again, up to an ACK or an error; then requests
    C  u32 magic u16 flags u16 command u64 cookie u64 offset u32 length data of a write
    S  u32 magic u32 error u64 cookie data of a read

A request has a cookie, and its answer the same: any number of threads have theirs under way, and one thread
takes the answers in. When the server is gone, or says what it must not say, everybody who waits gets a
`DiskError`, and so does whoever comes later. Whatever it says is compared with what was asked: it is a
program of somebody else.
"""

import contextlib
import errno
import os
import socket
import struct
import threading
import urllib.parse
from typing import Final

from pyhv.errors import ConfigError
from pyhv.frozen import frozen
from pyhv.storage.disk import SECTOR, Disk, DiskError

_HELLO: Final = struct.Struct(">8s8sH")
_OPTION: Final = struct.Struct(">8sII")
_OPTION_REPLY: Final = struct.Struct(">QIII")
_REQUEST: Final = struct.Struct(">IHHQQI")
_REPLY: Final = struct.Struct(">IIQ")
_EXPORT: Final = struct.Struct(">HQH")
_BLOCK_SIZES: Final = struct.Struct(">HIII")
_OPTION_MAGIC: Final = b"IHAVEOPT"
_OPTION_REPLY_MAGIC: Final = 0x3E889045565A9
_REQUEST_MAGIC: Final = 0x25609513
_REPLY_MAGIC: Final = 0x67446698
_FIXED_NEWSTYLE: Final = 1
_NO_ZEROES: Final = 2
_GO: Final = 7
_ACK: Final = 1
_INFO: Final = 3
_INFO_EXPORT: Final = 0
_INFO_BLOCK_SIZE: Final = 3
_ERROR: Final = 1 << 31
_REFUSALS: Final = {
    1: "it does not know NBD_OPT_GO", 2: "its policy forbids it",
    5: "it wants TLS, which pyhv does not speak", 6: "it has no such export",
    7: "it is shutting down", 8: "it wants block sizes to be asked for",
}  # fmt: skip
"""Error replies to an option, without the top bit."""
_READ: Final = 0
_WRITE: Final = 1
_DISCONNECT: Final = 2
_FLUSH: Final = 3
_TRIM: Final = 4
_ZEROES: Final = 6
_FUA: Final = 1 << 0
"""Of a request's flags."""
_HAS_FLAGS: Final = 1 << 0
_READ_ONLY: Final = 1 << 1
_CAN_FLUSH: Final = 1 << 2
_CAN_FUA: Final = 1 << 3
_CAN_TRIM: Final = 1 << 5
_CAN_ZEROES: Final = 1 << 6
_LONGEST_REPLY: Final = 1 << 16
"""Bytes of an answer to an option."""
_MOST_REPLIES: Final = 64
_LONGEST_REQUEST: Final = 32 << 20
"""Bytes, unless the server bears less."""
_PATIENCE: Final = 15.0
"""Seconds for a server to begin."""
_KNOWN_ERRORS: Final = (
    errno.EPERM, errno.EIO, errno.ENOMEM, errno.EINVAL, errno.ENOSPC, errno.EOVERFLOW, errno.ENOTSUP,
    errno.ESHUTDOWN,
)  # fmt: skip


@frozen
class Address:
    """Where a server is, and what is wanted from it."""

    socket: str
    export: str


def parse_uri(uri: str) -> Address:
    """Take `nbd+unix:///EXPORT?socket=PATH` apart; ConfigError.

    >>> parse_uri("nbd+unix:///my%20disk?socket=/run/nbd.sock")
    Address(socket='/run/nbd.sock', export='my disk')
    """
    example = "write nbd+unix:///EXPORT?socket=PATH"
    try:
        parts = urllib.parse.urlsplit(uri)
        query = urllib.parse.parse_qs(parts.query, keep_blank_values=True, strict_parsing=bool(parts.query))
    except ValueError as error:
        raise ConfigError(f"{uri!r} is no address of an NBD server ({error}): {example}") from error
    sockets = query.pop("socket", [])
    if parts.scheme != "nbd+unix" or parts.netloc or parts.fragment or query or len(sockets) != 1:
        raise ConfigError(f"{uri!r} is no address of an NBD server on this host: {example}")
    if not sockets[0] or "\0" in sockets[0]:
        raise ConfigError(f"{uri!r} names no socket: {example}")
    export = urllib.parse.unquote(parts.path.removeprefix("/"))
    if len(export.encode("utf-8", "replace")) > 4096:
        raise ConfigError(f"{uri!r}: the name of an export has at most 4096 bytes")
    return Address(sockets[0], export)


class _Gone(Exception):
    """The server has gone, or speaks another language; the message says what happened."""


class _Connection:
    """A stream to a server: exactly so many bytes at a time."""

    def __init__(self, stream: socket.socket) -> None:
        self.stream = stream

    def receive(self, length: int) -> bytes:
        """All of them; _Gone."""
        found = bytearray(length)
        view = memoryview(found)
        try:
            while view:
                count = self.stream.recv_into(view)
                if not count:
                    raise _Gone("the server has closed the connection")
                view = view[count:]
        except TimeoutError as error:
            raise _Gone(f"the server says nothing for {_PATIENCE:g} s") from error
        except OSError as error:
            raise _Gone(error.strerror or str(error)) from error
        return bytes(found)

    def send(self, *parts: bytes | memoryview) -> None:
        """All of it; _Gone."""
        try:
            for part in parts:
                if part:  # sending nothing to somebody who has gone is an error too
                    self.stream.sendall(part)
        except TimeoutError as error:
            raise _Gone(f"the server takes nothing for {_PATIENCE:g} s") from error
        except OSError as error:
            raise _Gone(error.strerror or str(error)) from error


@frozen
class _Export:
    """What a server says of its disk."""

    size: int
    flags: int
    smallest: int = 1
    longest: int = _LONGEST_REQUEST


class _Pending:
    """A request that is under way."""

    __slots__ = ("data", "done", "error", "length")

    def __init__(self, length: int) -> None:
        self.length = length
        """Bytes that a read is to bring; else 0."""
        self.done = threading.Event()
        self.data = b""
        self.error = 0


class NbdDisk(Disk):
    """A disk of a server. Its requests are as long as the server bears; longer ones are made of several."""

    def __init__(self, address: Address, *, read_only: bool) -> None:
        name = f"{address.export or 'the disk'} at {address.socket}"
        connection, export = _connect(address, name)
        try:
            size = export.size // SECTOR * SECTOR
            if not size:
                raise DiskError(
                    f"{name}: the server's disk has {export.size} bytes; a disk has at least one sector"
                )
            if size >= 1 << 63:
                raise DiskError(f"{name}: the server's disk is too large, {size} bytes", errno.EFBIG)
            if not read_only and export.flags & _READ_ONLY:
                raise DiskError(
                    f"{name}: the server does not let it be written; give it as read-only (ro)", errno.EROFS
                )
            if export.smallest > SECTOR:
                raise DiskError(
                    f"{name}: the server wants requests of at least {export.smallest} bytes, and a guest may "
                    "make them of "
                    f"{SECTOR}",
                    errno.ENOTSUP,
                )
        except BaseException:
            connection.stream.close()
            raise
        super().__init__(name, size, read_only=read_only)
        self.discard_granularity = SECTOR if export.flags & _CAN_TRIM else 0
        self._flags = export.flags
        self._longest = max(export.longest // SECTOR * SECTOR, SECTOR)
        self._connection = connection
        self._sending = threading.Lock()
        self._lock = threading.Lock()
        self._pending: dict[int, _Pending] = {}
        self._cookie = 0
        self._gone: str | None = None
        self._receiver = threading.Thread(target=self._receive, name=f"nbd {address.socket}", daemon=True)
        self._receiver.start()

    # -- requests --------------------------------------------------------------------------------------------

    def _read(self, offset: int, length: int) -> bytes:
        pieces = [self._request(_READ, at, span) for at, span in self._pieces(offset, length)]
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def _write(self, offset: int, data: memoryview) -> None:
        self._write_with(offset, data, 0)

    def write_through(self, offset: int, data: bytes | memoryview) -> None:
        """Write, and these bytes are on the server's disk when it returns."""
        if not self._flags & _CAN_FUA:
            super().write_through(offset, data)
            return
        view = memoryview(data).cast("B")
        self._check_writable(offset, len(view))
        with self._uses:
            self._write_with(offset, view, _FUA)

    def _write_with(self, offset: int, data: memoryview, flags: int) -> None:
        for at, span in self._pieces(offset, len(data)):
            self._request(_WRITE, at, span, data[at - offset : at - offset + span], flags)

    def _flush(self) -> None:
        if self._flags & _CAN_FLUSH:
            self._request(_FLUSH, 0, 0)

    def _discard(self, offset: int, length: int) -> None:
        if self._flags & _CAN_TRIM:
            for at, span in self._pieces(offset, length):
                self._request(_TRIM, at, span)

    def _zero(self, offset: int, length: int) -> None:
        if not self._flags & _CAN_ZEROES:
            super()._zero(offset, length)
            return
        for at, span in self._pieces(offset, length):
            self._request(_ZEROES, at, span)

    def _pieces(self, offset: int, length: int) -> list[tuple[int, int]]:
        end = offset + length
        return [(at, min(self._longest, end - at)) for at in range(offset, end, self._longest)]

    def _request(
        self, command: int, offset: int, length: int, data: bytes | memoryview = b"", flags: int = 0
    ) -> bytes:
        """Ask for one thing and wait for the answer; DiskError."""
        pending = _Pending(length if command == _READ else 0)
        with self._lock:
            if self._gone is not None:
                raise self._lost()
            self._cookie += 1
            cookie = self._cookie
            self._pending[cookie] = pending
        try:
            with self._sending:
                self._connection.send(
                    _REQUEST.pack(_REQUEST_MAGIC, flags, command, cookie, offset, length), data
                )
        except _Gone as gone:
            self._end(str(gone))
        pending.done.wait()
        if pending.error:
            number = pending.error if pending.error in _KNOWN_ERRORS else errno.EIO
            raise DiskError(f"{self.name}: the server answers {os.strerror(number)!r}", number)
        if self._gone is not None and cookie in self._pending:
            raise self._lost()
        return pending.data

    def _lost(self) -> DiskError:
        return DiskError(f"{self.name}: the server is lost: {self._gone}", errno.EIO)

    # -- answers ---------------------------------------------------------------------------------------------

    def _receive(self) -> None:
        """Take answers in until the server goes; the thread's whole life."""
        try:
            while True:
                self._answer()
        except _Gone as gone:
            self._end(str(gone))

    def _answer(self) -> None:
        magic, error, cookie = _REPLY.unpack(self._connection.receive(_REPLY.size))
        if magic != _REPLY_MAGIC:
            raise _Gone(f"it has sent {magic:#x} instead of an answer")
        with self._lock:
            pending = self._pending.get(cookie)
        if pending is None:
            raise _Gone(f"it has answered {cookie}, which nobody has asked")
        if not error and pending.length:
            pending.data = self._connection.receive(pending.length)
        pending.error = error
        with self._lock:
            self._pending.pop(cookie, None)
        pending.done.set()

    def _end(self, why: str) -> None:
        """Nobody answers any more: all who wait are told. They stay in the list, which is how they see it."""
        with self._lock:
            if self._gone is None:
                self._gone = why
            waiting = list(self._pending.values())
        with contextlib.suppress(OSError):
            self._connection.stream.shutdown(socket.SHUT_RDWR)
        for pending in waiting:
            pending.done.set()

    def _close(self) -> None:
        try:
            if not self.read_only and self._gone is None:
                self._flush()
        finally:
            with contextlib.suppress(_Gone), self._sending:
                self._connection.send(_REQUEST.pack(_REQUEST_MAGIC, 0, _DISCONNECT, 0, 0, 0))
            self._end("the disk has been closed")
            self._receiver.join()
            self._connection.stream.close()


# -- the beginning -------------------------------------------------------------------------------------------


def _connect(address: Address, name: str) -> tuple[_Connection, _Export]:
    """A connection to an export that is ready for requests; DiskError."""
    stream = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    stream.settimeout(_PATIENCE)
    try:
        try:
            stream.connect(address.socket)
        except (OSError, ValueError) as error:
            why = (error.strerror if isinstance(error, OSError) else None) or str(error)
            number = error.errno if isinstance(error, OSError) and error.errno else errno.EIO
            raise DiskError(f"{address.socket}: no NBD server answers there ({why})", number) from error
        connection = _Connection(stream)
        try:
            export = _negotiate(connection, address.export)
        except _Gone as gone:
            raise DiskError(f"{name}: the NBD server cannot be used: {gone}") from gone
        stream.settimeout(None)
        return connection, export
    except BaseException:
        stream.close()
        raise


def _negotiate(connection: _Connection, export: str) -> _Export:
    magic, second, flags = _HELLO.unpack(connection.receive(_HELLO.size))
    if magic != b"NBDMAGIC" or second != _OPTION_MAGIC or not flags & _FIXED_NEWSTYLE:
        raise _Gone("it does not speak NBD, or only an old form of it")
    connection.send(struct.pack(">I", flags & (_FIXED_NEWSTYLE | _NO_ZEROES)))
    name = export.encode("utf-8", "surrogateescape")
    asked = struct.pack(">I", len(name)) + name + struct.pack(">HH", 1, _INFO_BLOCK_SIZE)
    connection.send(_OPTION.pack(_OPTION_MAGIC, _GO, len(asked)), asked)
    found: tuple[int, int] | None = None
    sizes = (1, _LONGEST_REQUEST)
    for _ in range(_MOST_REPLIES):
        kind, data = _option_reply(connection)
        if kind == _ACK:
            if found is None or not found[1] & _HAS_FLAGS:
                raise _Gone("it does not say what its disk is")
            return _Export(found[0], found[1], *sizes)
        if kind & _ERROR:
            said = data[:200].decode("utf-8", "replace")
            why = _REFUSALS.get(kind & ~_ERROR, f"it answers with error {kind & ~_ERROR}")
            raise _Gone(why + (f" ({said})" if said.isprintable() and said else ""))
        if kind == _INFO and data[:2] == struct.pack(">H", _INFO_EXPORT) and len(data) == _EXPORT.size:
            _, size, export_flags = _EXPORT.unpack(data)
            found = size, export_flags
        elif (
            kind == _INFO
            and data[:2] == struct.pack(">H", _INFO_BLOCK_SIZE)
            and len(data) == _BLOCK_SIZES.size
        ):
            _, smallest, _, longest = _BLOCK_SIZES.unpack(data)
            sizes = smallest, min(longest, _LONGEST_REQUEST)
    raise _Gone("it does not come to an end with what it says of its disk")


def _option_reply(connection: _Connection) -> tuple[int, bytes]:
    magic, option, kind, length = _OPTION_REPLY.unpack(connection.receive(_OPTION_REPLY.size))
    if magic != _OPTION_REPLY_MAGIC or option != _GO or length > _LONGEST_REPLY:
        raise _Gone("it answers an option as no NBD server does")
    return kind, connection.receive(length)
