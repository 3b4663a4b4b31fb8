# SPDX-License-Identifier: GPL-2.0-only
"""A server of 9P2000.L for one client and one directory: a request's bytes in, an answer's bytes out.

The client's numbers for files ("fids") are names of paths (`tree.py`); only those that it has opened cost the
host a descriptor, and of these there are MAX_OPEN at most. Each request is answered at once, so that there is
never one to be flushed. Nothing that a client sends is an exception to whoever calls.
"""

import errno
import os
import stat
import struct
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from pyhv.shares.tree import TOP, Path, SharedTree
from pyhv.shares.wire import (
    HEADER,
    LEAST_MESSAGE,
    MOST_MESSAGE,
    Ask,
    Denied,
    RequestFields,
    message,
    text,
)  # fmt: skip

MAX_FIDS: Final = 1 << 16
MAX_OPEN: Final = 512
MAX_WALK: Final = 16
_VERSION: Final = b"9P2000.L"
_MAGIC: Final = 0x01021997
_REMOVE_DIRECTORY: Final = 0x200
_UNLOCKED: Final = 2
_WORD: Final = (1 << 64) - 1
_KNOWN: Final = 0x7FF
"""What of a file's attributes is known: all but when it was made."""
_IO_HEADER: Final = HEADER.size + 4
_FLAGS: Final = {
    0o100: os.O_CREAT, 0o200: os.O_EXCL, 0o1000: os.O_TRUNC, 0o2000: os.O_APPEND, 0o10000: os.O_DSYNC,
    0o200000: os.O_DIRECTORY, 0o4010000: os.O_SYNC,
}  # fmt: skip
"""Linux' flags for opening, as x86 numbers them, which is how 9P2000.L does."""
_CHANGES: Final = frozenset(
    {
        Ask.LCREATE, Ask.SYMLINK, Ask.MKNOD, Ask.RENAME, Ask.SETATTR, Ask.LINK, Ask.MKDIR,
        Ask.RENAMEAT, Ask.UNLINKAT, Ask.WRITE, Ask.REMOVE,
    }
)  # fmt: skip
_MODE, _USER, _GROUP, _SIZE, _ATIME, _MTIME, _CTIME, _ATIME_SET, _MTIME_SET = (1 << bit for bit in range(9))


@dataclass(slots=True)
class _Fid:
    path: Path
    descriptor: int | None = None
    listing: list[tuple[bytes, int]] | None = None
    """Of a directory that is being read: names and types, as they were when its reading began."""


class Server:
    """The files of `tree`, which it closes. `messages` bound what both sides send (bytes)."""

    def __init__(self, tree: SharedTree, *, read_only: bool = False) -> None:
        self._tree = tree
        self._read_only = read_only
        self._fids: dict[int, _Fid] = {}
        self._open = 0
        self.messages = LEAST_MESSAGE
        self._handlers: dict[int, Callable[[RequestFields], bytes]] = {
            Ask.STATFS: self._statfs, Ask.LOPEN: self._lopen, Ask.LCREATE: self._lcreate,
            Ask.SYMLINK: self._symlink, Ask.RENAME: self._rename, Ask.READLINK: self._readlink,
            Ask.GETATTR: self._getattr, Ask.SETATTR: self._setattr, Ask.READDIR: self._readdir,
            Ask.FSYNC: self._fsync, Ask.LOCK: self._lock, Ask.GETLOCK: self._getlock,
            Ask.LINK: self._link, Ask.MKDIR: self._mkdir, Ask.RENAMEAT: self._renameat,
            Ask.UNLINKAT: self._unlinkat, Ask.VERSION: self._version, Ask.ATTACH: self._attach,
            Ask.FLUSH: self._flush, Ask.WALK: self._walk, Ask.READ: self._read, Ask.WRITE: self._write,
            Ask.CLUNK: self._clunk, Ask.REMOVE: self._remove,
        }  # fmt: skip

    def answer(self, request: bytes) -> bytes:
        """The whole answer to a whole request of at least a header's length."""
        _size, kind, tag = HEADER.unpack_from(request)
        try:
            if self._read_only and kind in _CHANGES:
                raise Denied(errno.EROFS)
            handler = self._handlers.get(kind)
            if handler is None:
                raise Denied(errno.EOPNOTSUPP)
            return message(kind + 1, tag, handler(RequestFields(request[HEADER.size :])))
        except Denied as refusal:
            number = refusal.number
        except OSError as error:
            number = error.errno or errno.EIO
        except (OverflowError, ValueError):  # a number that the host's calls do not take
            number = errno.EINVAL
        return message(Ask.LERROR + 1, tag, struct.pack("<I", number))

    def close(self) -> None:
        """Give everything back."""
        self._forget_all()
        self._tree.close()

    # -- the client's numbers -------------------------------------------------------------------------------

    def _forget_all(self) -> None:
        for fid in self._fids.values():
            self._shut(fid)
        self._fids.clear()

    def _shut(self, fid: _Fid) -> None:
        if fid.descriptor is not None:
            os.close(fid.descriptor)
            fid.descriptor = None
            self._open -= 1

    def _fid(self, fields: RequestFields) -> _Fid:
        found = self._fids.get(fields.number())
        if found is None:
            raise Denied(errno.EBADF)
        return found

    def _opened(self, fields: RequestFields) -> tuple[_Fid, int]:
        fid = self._fid(fields)
        if fid.descriptor is None:
            raise Denied(errno.EBADF)
        return fid, fid.descriptor

    def _name(self, number: int, path: Path) -> None:
        """A new fid."""
        if number in self._fids:
            raise Denied(errno.EINVAL)
        if len(self._fids) >= MAX_FIDS:
            raise Denied(errno.ENFILE)
        self._fids[number] = _Fid(path)

    def _qid(self, found: os.stat_result) -> bytes:
        return struct.pack("<BIQ", *self._tree.qid(found))

    # -- a session ------------------------------------------------------------------------------------------

    def _version(self, fields: RequestFields) -> bytes:
        most, version = fields.number(), fields.text()
        self._forget_all()
        if most < LEAST_MESSAGE:
            raise Denied(errno.EMSGSIZE)
        self.messages = min(most, MOST_MESSAGE)
        return struct.pack("<I", self.messages) + text(_VERSION if version == _VERSION else b"unknown")

    def _attach(self, fields: RequestFields) -> bytes:
        number = fields.number()
        self._name(number, TOP)
        return self._qid(self._tree.status(TOP))

    def _flush(self, _fields: RequestFields) -> bytes:
        return b""

    def _walk(self, fields: RequestFields) -> bytes:
        fid, number, count = self._fid(fields), fields.number(), fields.number("H")
        if count > MAX_WALK:
            raise Denied(errno.EINVAL)
        path, qids = fid.path, b""
        for step in range(count):
            name = fields.text()
            if b"/" in name or name in (b"", b"."):
                raise Denied(errno.EINVAL)
            ahead = path[:-1] if name == b".." else (*path, name)
            try:
                qids += self._qid(self._tree.status(ahead))
            except OSError:
                if step == 0:
                    raise
                return struct.pack("<H", step) + qids  # as far as it goes; no fid is made
            path = ahead
        if self._fids.get(number) is fid:
            if fid.descriptor is not None:
                raise Denied(errno.EBUSY)
            fid.path = path
        else:
            self._name(number, path)
        return struct.pack("<H", count) + qids

    def _clunk(self, fields: RequestFields) -> bytes:
        number = fields.number()
        fid = self._fids.pop(number, None)
        if fid is None:
            raise Denied(errno.EBADF)
        self._shut(fid)
        return b""

    # -- open files -----------------------------------------------------------------------------------------

    def _flags(self, wanted: int) -> int:
        """A client's flags as the host's; those that are only for its own kernel are left out."""
        access = wanted & 3
        if access == 3:
            raise Denied(errno.EINVAL)
        flags = access
        for theirs, ours in _FLAGS.items():
            if wanted & theirs == theirs:
                flags |= ours
        if self._read_only and (access or flags & (os.O_TRUNC | os.O_CREAT)):
            raise Denied(errno.EROFS)
        return flags

    def _lopen(self, fields: RequestFields) -> bytes:
        fid, flags = self._fid(fields), self._flags(fields.number())
        return self._take(fid, fid.path, flags & ~(os.O_CREAT | os.O_EXCL), None)

    def _lcreate(self, fields: RequestFields) -> bytes:
        fid, name, flags, mode = (
            self._fid(fields),
            fields.name(),
            self._flags(fields.number()),
            fields.number(),
        )
        return self._take(fid, (*fid.path, name), flags, mode)

    def _take(self, fid: _Fid, path: Path, flags: int, mode: int | None) -> bytes:
        """Open a file for a fid, which is that file's then."""
        if fid.descriptor is not None:
            raise Denied(errno.EBUSY)
        if self._open >= MAX_OPEN:
            raise Denied(errno.EMFILE)
        descriptor = self._tree.open(path, flags, mode)
        fid.descriptor, fid.path = descriptor, path
        self._open += 1
        return self._qid(os.fstat(descriptor)) + struct.pack("<I", 0)

    def _read(self, fields: RequestFields) -> bytes:
        _, descriptor = self._opened(fields)
        offset, count = fields.take("QI")
        data = os.pread(descriptor, min(count, self.messages - _IO_HEADER), offset)
        return struct.pack("<I", len(data)) + data

    def _write(self, fields: RequestFields) -> bytes:
        _, descriptor = self._opened(fields)
        offset, count = fields.take("QI")
        return struct.pack("<I", os.pwrite(descriptor, fields.data(count), offset))

    def _fsync(self, fields: RequestFields) -> bytes:
        _, descriptor = self._opened(fields)
        os.fsync(descriptor)
        return b""

    def _readdir(self, fields: RequestFields) -> bytes:
        fid, descriptor = self._opened(fields)
        offset, count = fields.take("QI")
        room = min(count, self.messages - _IO_HEADER)
        if fid.listing is None or offset == 0:
            with os.scandir(descriptor) as entries:
                found = sorted((os.fsencode(entry.name), _kind(entry)) for entry in entries)
            fid.listing = [(b".", stat.S_IFDIR >> 12), (b"..", stat.S_IFDIR >> 12), *found]
        answer = b""
        for index in range(offset, len(fid.listing)):
            name, kind = fid.listing[index]
            path = fid.path[:-1] if name == b".." else fid.path if name == b"." else (*fid.path, name)
            try:
                qid = self._qid(self._tree.status(path))
            except OSError:
                continue  # it has gone
            entry = qid + struct.pack("<QB", index + 1, kind) + text(name)
            if len(answer) + len(entry) > room:
                break
            answer += entry
        return struct.pack("<I", len(answer)) + answer

    def _lock(self, fields: RequestFields) -> bytes:
        """Always: its only client has settled among its own processes who has a lock."""
        self._opened(fields)
        return b"\0"

    def _getlock(self, fields: RequestFields) -> bytes:
        self._opened(fields)
        _, start, length, process = fields.take("BQQI")
        return struct.pack("<BQQI", _UNLOCKED, start, length, process) + text(fields.text())

    # -- what is known of files -----------------------------------------------------------------------------

    def _statfs(self, fields: RequestFields) -> bytes:
        self._fid(fields)
        room = self._tree.room()
        return struct.pack(
            "<IIQQQQQQI", _MAGIC, room.f_bsize, room.f_blocks, room.f_bfree, room.f_bavail, room.f_files,
            room.f_ffree, 0, room.f_namemax,
        )  # fmt: skip

    def _getattr(self, fields: RequestFields) -> bytes:
        fid, wanted = self._fid(fields), fields.number("Q")
        found = os.fstat(fid.descriptor) if fid.descriptor is not None else self._tree.status(fid.path)
        times: list[int] = []
        for at in (found.st_atime_ns, found.st_mtime_ns, found.st_ctime_ns):
            seconds, rest = divmod(at, 10**9)
            times += [seconds & _WORD, rest]  # before 1970 they are negative
        return struct.pack("<Q", wanted & _KNOWN) + self._qid(found) + struct.pack(
            "<III15Q", found.st_mode, found.st_uid, found.st_gid, found.st_nlink, 0, found.st_size,
            found.st_blksize, found.st_blocks, *times, 0, 0, 0, 0,
        )  # fmt: skip

    def _setattr(self, fields: RequestFields) -> bytes:
        fid = self._fid(fields)
        valid, mode, user, group, size, *times = fields.take("IIIIQQQQQ")
        if valid & _MODE:
            self._tree.change_mode(fid.path, mode)
        if valid & (_USER | _GROUP):
            self._tree.change_owner(fid.path, user if valid & _USER else -1, group if valid & _GROUP else -1)
        if valid & _SIZE:
            self._cut(fid, size)
        if valid & (_ATIME | _MTIME):
            self._set_times(fid, valid, times)
        return b""

    def _cut(self, fid: _Fid, size: int) -> None:
        if fid.descriptor is not None:
            try:
                os.ftruncate(fid.descriptor, size)
            except OSError as error:
                if error.errno != errno.EINVAL:  # opened for reading
                    raise
            else:
                return
        descriptor = self._tree.open(fid.path, os.O_WRONLY)
        try:
            os.ftruncate(descriptor, size)
        finally:
            os.close(descriptor)

    def _set_times(self, fid: _Fid, valid: int, times: list[int]) -> None:
        found = self._tree.status(fid.path)
        now = time.time_ns()
        chosen = []
        for bit, given, seconds, part, old in (
            (_ATIME, _ATIME_SET, times[0], times[1], found.st_atime_ns),
            (_MTIME, _MTIME_SET, times[2], times[3], found.st_mtime_ns),
        ):
            new = seconds * 10**9 + part if valid & given else now
            chosen.append(new if valid & bit else old)
        self._tree.change_times(fid.path, chosen[0], chosen[1])

    def _readlink(self, fields: RequestFields) -> bytes:
        fid = self._fid(fields)
        if not fid.path:
            raise Denied(errno.EINVAL)
        return text(self._tree.link_target(fid.path))

    # -- names ----------------------------------------------------------------------------------------------

    def _made(self, path: Path) -> bytes:
        return self._qid(self._tree.status(path))

    def _mkdir(self, fields: RequestFields) -> bytes:
        path = (*self._fid(fields).path, fields.name())
        self._tree.make_directory(path, fields.number())
        return self._made(path)

    def _symlink(self, fields: RequestFields) -> bytes:
        path = (*self._fid(fields).path, fields.name())
        self._tree.make_link(path, fields.text())
        return self._made(path)

    def _link(self, fields: RequestFields) -> bytes:
        directory, fid = self._fid(fields), self._fid(fields)
        self._tree.make_name((*directory.path, fields.name()), _below(fid.path))
        return b""

    def _rename(self, fields: RequestFields) -> bytes:
        fid, directory = self._fid(fields), self._fid(fields)
        self._move(_below(fid.path), (*directory.path, fields.name()))
        return b""

    def _renameat(self, fields: RequestFields) -> bytes:
        old = (*self._fid(fields).path, fields.name())
        new = (*self._fid(fields).path, fields.name())
        self._move(old, new)
        return b""

    def _move(self, old: Path, new: Path) -> None:
        """Rename, and let all fids that go that way go the new way."""
        self._tree.rename(old, new)
        for fid in self._fids.values():
            if fid.path[: len(old)] == old:
                fid.path = new + fid.path[len(old) :]

    def _unlinkat(self, fields: RequestFields) -> bytes:
        path = (*self._fid(fields).path, fields.name())
        self._tree.remove(path, directory=bool(fields.number() & _REMOVE_DIRECTORY))
        return b""

    def _remove(self, fields: RequestFields) -> bytes:
        """Whatever comes of it, the fid is gone."""
        number = fields.number()
        fid = self._fids.pop(number, None)
        if fid is None:
            raise Denied(errno.EBADF)
        self._shut(fid)
        path = _below(fid.path)
        self._tree.remove(path, directory=stat.S_ISDIR(self._tree.status(path).st_mode))
        return b""


def _below(path: Path) -> Path:
    """A path that is not the top itself. Denied."""
    if not path:
        raise Denied(errno.EBUSY)
    return path


def _kind(entry: "os.DirEntry[str]") -> int:
    """A file's type as a directory's entry says it (DT_REG and so on)."""
    if entry.is_symlink():
        return stat.S_IFLNK >> 12
    return (stat.S_IFDIR if entry.is_dir(follow_symlinks=False) else stat.S_IFREG) >> 12
