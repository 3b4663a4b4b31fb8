# SPDX-License-Identifier: GPL-2.0-only
"""A writer for initramfs archives: the "newc" cpio format, as Linux' initramfs buffer format defines it.

The same calls give the same bytes: no time, no user, no inode of the host enters the archive. It knows
nothing of what the files are for.

    "070701" and 13 fields of 8 hexadecimal digits:
    ino mode uid gid nlink mtime filesize devmajor devminor rdevmajor rdevminor namesize check
    then the name with its NUL, padded to 4, then the data, padded to 4
"""

import stat
from typing import Final

from pyhv.errors import ConfigError

MAX_SIZE: Final = (1 << 32) - 1
"""Largest file in bytes: sizes have 8 hexadecimal digits."""
_MAX_NAME: Final = 4095
_TRAILER: Final = "TRAILER!!!"


class CpioWriter:
    """Collects entries in the order of the calls; `finish` returns the archive.

    Names are absolute or relative to the root, without `..`. Missing parent directories are made (mode
    0755), because Linux unpacks nothing into a directory that it has not seen. A name given twice, a file
    that is too large, or an impossible name is a ConfigError. Owner and group are always root.
    """

    def __init__(self) -> None:
        self._parts: list[bytes] = []
        self._modes: dict[str, int] = {}

    def directory(self, path: str, mode: int = 0o755) -> None:
        """Add a directory; repeating one with the same mode does nothing."""
        name = _checked(path)
        if self._modes.get(name) != stat.S_IFDIR | mode:
            self._add(name, stat.S_IFDIR | mode)

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """Add a regular file."""
        self._add(_checked(path), stat.S_IFREG | mode, data)

    def symlink(self, path: str, target: str) -> None:
        """Add a symbolic link to `target`, which is stored as it is."""
        if not target or "\0" in target:
            raise ConfigError(f"initramfs: {path!r} cannot be a link to {target!r}")
        self._add(_checked(path), stat.S_IFLNK | 0o777, _encoded(target))

    def node(self, path: str, kind: str, major: int, minor: int, mode: int = 0o600) -> None:
        """Add a device node; `kind` is "c" (character) or "b" (block)."""
        kinds = {"c": stat.S_IFCHR, "b": stat.S_IFBLK}
        if kind not in kinds or not (0 <= major < 1 << 12 and 0 <= minor < 1 << 20):
            raise ConfigError(f"initramfs: {path!r} cannot be device {kind!r} {major}:{minor}")
        self._add(_checked(path), kinds[kind] | mode, device=(major, minor))

    def finish(self) -> bytes:
        """The whole archive so far, with its trailer, padded to 512 bytes."""
        trailer = _entry(_TRAILER, 0, 0, 1)
        archive = b"".join((*self._parts, trailer))
        return archive + bytes(-len(archive) % 512)

    def _add(self, name: str, mode: int, data: bytes = b"", device: tuple[int, int] = (0, 0)) -> None:
        if mode & ~0o177777:
            raise ConfigError(f"initramfs: {name!r} cannot have mode {mode:#o}")
        if name in self._modes:
            raise ConfigError(f"initramfs: {name!r} is given twice")
        if len(data) > MAX_SIZE:
            raise ConfigError(f"initramfs: {name!r} has {len(data)} bytes, more than {MAX_SIZE}")
        parent = name.rpartition("/")[0]
        if parent and parent not in self._modes:
            self.directory(parent)
        if parent and not stat.S_ISDIR(self._modes[parent]):
            raise ConfigError(f"initramfs: {name!r} lies below {parent!r}, which is not a directory")
        self._modes[name] = mode
        links = 2 if stat.S_ISDIR(mode) else 1
        self._parts.append(_entry(name, len(self._modes), mode, links, data, device))


def _checked(path: str) -> str:
    name = path.strip("/")
    parts = name.split("/")
    if "\0" in name or len(_encoded(name)) > _MAX_NAME or any(part in ("", ".", "..") for part in parts):
        raise ConfigError(f"initramfs: {path!r} is not a usable file name")
    if name == _TRAILER:
        raise ConfigError(f"initramfs: {path!r} would end the archive")
    return name


def _encoded(text: str) -> bytes:
    try:
        return text.encode("utf-8", "surrogateescape")  # as Python reads names that are not UTF-8
    except UnicodeEncodeError:
        raise ConfigError(f"initramfs: {text!r} is not a usable file name") from None


def _entry(
    name: str, ino: int, mode: int, links: int, data: bytes = b"", device: tuple[int, int] = (0, 0)
) -> bytes:
    raw = _encoded(name) + b"\0"
    fields = (ino, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(raw), 0)
    head = b"070701" + b"".join(b"%08X" % value for value in fields) + raw
    return head + bytes(-len(head) % 4) + data + bytes(-len(data) % 4)
