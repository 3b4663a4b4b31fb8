# SPDX-License-Identifier: GPL-2.0-only
"""A directory of the host that nothing leads out of.

A file is named by the names on the way to it from the top. Each use goes that way anew, one directory after
the other, and never through a symbolic link: it does not matter what a link says, nor what anybody renames or
replaces meanwhile, and a guest that holds ten thousand files costs the host no descriptor. Links are the
guest's to follow, by names that begin at the top again.

What is no regular file, directory or link can be seen and removed, and neither opened nor made. Nobody's
set-user-id and set-group-id bits are set.
"""

import contextlib
import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path as HostPath
from typing import Final

from pyhv.errors import ConfigError
from pyhv.shares.wire import Denied

Path = tuple[bytes, ...]
"""Names from the top."""
TOP: Final[Path] = ()
MAX_DEPTH: Final = 256
PERMISSIONS: Final = 0o1777
_WAY: Final = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_ALWAYS: Final = os.O_NOFOLLOW | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY


class SharedTree:
    """The directory. ConfigError: there is none. Its methods raise OSError or Denied."""

    def __init__(self, directory: HostPath) -> None:
        try:
            self._top = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except (OSError, ValueError) as cause:
            reason = cause.strerror if isinstance(cause, OSError) else str(cause)
            raise ConfigError(f"{directory}: the directory cannot be shared ({reason})") from cause
        self._device = os.fstat(self._top).st_dev

    def close(self) -> None:
        """Give it up."""
        os.close(self._top)

    @contextlib.contextmanager
    def directory(self, path: Path) -> Iterator[int]:
        """A descriptor of a directory, for what is in it."""
        if len(path) > MAX_DEPTH:
            raise Denied(errno.ELOOP)
        here = self._top
        try:
            for name in path:
                following = os.open(name, _WAY, dir_fd=here)
                if here != self._top:
                    os.close(here)
                here = following
            yield here
        finally:
            if here != self._top:
                os.close(here)

    def status(self, path: Path) -> os.stat_result:
        """What is there; a link itself."""
        if not path:
            return os.fstat(self._top)
        with self.directory(path[:-1]) as parent:
            return os.stat(path[-1], dir_fd=parent, follow_symlinks=False)

    def qid(self, found: os.stat_result) -> tuple[int, int, int]:
        """9P's (type, version, number) of a file: the same for the same file, another for each other."""
        kind = 0x80 if stat.S_ISDIR(found.st_mode) else 0x02 if stat.S_ISLNK(found.st_mode) else 0
        elsewhere = (found.st_dev - self._device) & 0xFFFF
        return kind, found.st_mtime_ns & 0xFFFFFFFF, (found.st_ino ^ elsewhere << 48) & 0xFFFFFFFFFFFFFFFF

    def open(self, path: Path, flags: int, mode: int | None = None) -> int:
        """A descriptor of a regular file or a directory; with a `mode` the file is made."""
        if not path:
            return os.open(b".", flags | _ALWAYS, dir_fd=self._top)
        with self.directory(path[:-1]) as parent:
            if mode is None:
                _openable(os.stat(path[-1], dir_fd=parent, follow_symlinks=False))
                descriptor = os.open(path[-1], flags | _ALWAYS, dir_fd=parent)
            else:
                flags |= os.O_CREAT | _ALWAYS
                descriptor = os.open(path[-1], flags, mode & PERMISSIONS, dir_fd=parent)
        try:
            _openable(os.fstat(descriptor))  # it may have become something else meanwhile
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def link_target(self, path: Path) -> bytes:
        """What a symbolic link says."""
        with self.directory(path[:-1]) as parent:
            return os.readlink(path[-1], dir_fd=parent)

    def make_directory(self, path: Path, mode: int) -> None:
        """A new one."""
        with self.directory(path[:-1]) as parent:
            os.mkdir(path[-1], mode & PERMISSIONS, dir_fd=parent)

    def make_link(self, path: Path, target: bytes) -> None:
        """A symbolic link, wherever it leads: nobody here follows it."""
        with self.directory(path[:-1]) as parent:
            os.symlink(target, path[-1], dir_fd=parent)

    def make_name(self, path: Path, of: Path) -> None:
        """One more name of a file."""
        with self.directory(path[:-1]) as parent, self.directory(of[:-1]) as other:
            os.link(of[-1], path[-1], src_dir_fd=other, dst_dir_fd=parent, follow_symlinks=False)

    def rename(self, old: Path, new: Path) -> None:
        """Move it there; what was there is replaced."""
        with self.directory(old[:-1]) as source, self.directory(new[:-1]) as target:
            os.rename(old[-1], new[-1], src_dir_fd=source, dst_dir_fd=target)

    def remove(self, path: Path, *, directory: bool) -> None:
        """Take a name away."""
        with self.directory(path[:-1]) as parent:
            (os.rmdir if directory else os.unlink)(path[-1], dir_fd=parent)

    def change_mode(self, path: Path, mode: int) -> None:
        """Permissions; a link has none."""
        with self._seen(path) as descriptor:
            if stat.S_ISLNK(os.fstat(descriptor).st_mode):
                raise Denied(errno.EOPNOTSUPP)
            os.chmod(f"/proc/self/fd/{descriptor}", mode & PERMISSIONS)

    def change_owner(self, path: Path, user: int, group: int) -> None:
        """-1 leaves one as it is."""
        if not path:
            os.fchown(self._top, user, group)
            return
        with self.directory(path[:-1]) as parent:
            os.chown(path[-1], user, group, dir_fd=parent, follow_symlinks=False)

    def change_times(self, path: Path, access_ns: int, modified_ns: int) -> None:
        """In nanoseconds since 1970."""
        if not path:
            os.utime(self._top, ns=(access_ns, modified_ns))
            return
        with self.directory(path[:-1]) as parent:
            os.utime(path[-1], ns=(access_ns, modified_ns), dir_fd=parent, follow_symlinks=False)

    def room(self) -> os.statvfs_result:
        """Of the host's file system."""
        return os.fstatvfs(self._top)

    @contextlib.contextmanager
    def _seen(self, path: Path) -> Iterator[int]:
        """A descriptor that only says which file it is."""
        with self.directory(path[:-1]) as parent:
            name = path[-1] if path else b"."
            descriptor = os.open(name, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=parent)
        try:
            yield descriptor
        finally:
            os.close(descriptor)


def _openable(found: os.stat_result) -> None:
    if not stat.S_ISREG(found.st_mode) and not stat.S_ISDIR(found.st_mode):
        raise Denied(errno.ELOOP if stat.S_ISLNK(found.st_mode) else errno.ENXIO)
