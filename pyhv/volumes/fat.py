# SPDX-License-Identifier: GPL-2.0-only
"""Files of FAT12, FAT16 and FAT32, with long names, for reading. As in Microsoft's FAT specification.

Nothing is believed: clusters lie within the file system, and no chain is followed for longer than the bytes
that were asked for.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from pyhv.errors import VolumeError
from pyhv.volumes.window import Fields, Window

MAX_DIRECTORY: Final = 2 << 20
"""Bytes of a directory that is read: 65536 entries."""

_DIRECTORY, _VOLUME, _LONG = 0x10, 0x08, 0x0F
_LAST_PART: Final = 0x40


class BootSector:
    """What the boot sector says; `is_fat` has looked at it."""

    def __init__(self, part: Window) -> None:
        told = Fields(part.peek(0, 512))
        self.sector = told.u16(11)
        self.cluster_size = self.sector * told.u8(13)
        reserved, fats, self.root_entries = told.u16(14), told.u8(16), told.u16(17)
        sectors = told.u16(19) or told.u32(32)
        per_fat = told.u16(22) or told.u32(36)
        self.size = sectors * self.sector
        self.fat_at = reserved * self.sector
        self.fat_size = per_fat * self.sector
        self.root_at = self.fat_at + fats * self.fat_size
        self.data_at = self.root_at + -(-self.root_entries * 32 // (self.sector or 1)) * self.sector
        self.clusters = max(0, self.size - self.data_at) // (self.cluster_size or 1)
        self.bits = 12 if self.clusters < 4085 else 16 if self.clusters < 65525 else 32
        if not told.u16(22):
            self.bits = 32
        self.root_cluster = told.u32(44)
        extended = 64 if self.bits == 32 else 36
        signed = told.u8(extended + 2) == 0x29
        number = told.u32(extended + 3) if signed else 0
        self.serial = f"{number >> 16:04X}-{number & 0xFFFF:04X}" if signed else ""
        label = told.text(extended + 7, 11, "cp437") if signed else ""
        self.label = "" if label == "NO NAME" else label

    @property
    def kind(self) -> str:
        """Its name."""
        return f"vfat (FAT{self.bits})"


def is_fat(part: Window) -> bool:
    """Whether there is a boot sector that describes a FAT file system."""
    raw = part.peek(0, 512)
    told = Fields(raw)
    per_cluster, sector = told.u8(13), told.u16(11)
    return (
        raw[510:512] == b"\x55\xaa"
        and raw[0] in (0xEB, 0xE9)
        and sector in (512, 1024, 2048, 4096)
        and per_cluster != 0
        and per_cluster & (per_cluster - 1) == 0
        and told.u16(14) != 0
        and told.u8(16) in (1, 2)
        and told.u8(21) >= 0xF0
        and bool(told.u16(19) or told.u32(32))
        and bool(told.u16(22) or told.u32(36))
        and BootSector(part).clusters > 0
    )


class _Entry(NamedTuple):
    name: str
    short: str
    directory: bool
    cluster: int
    size: int


class Fat:
    """The files (`filesystem.Files`)."""

    def __init__(self, part: Window) -> None:
        self._part = part
        self._told = BootSector(part)

    def read_file(self, path: str, most: int) -> bytes:
        """A regular file."""
        entry = self._find(path)
        if entry is None or entry.directory:
            raise self._damage(f"{path} is no regular file")
        if entry.size > most:
            raise self._damage(f"{path} is {entry.size} bytes long, and at most {most} are read")
        data = self._chain(entry.cluster, entry.size, path) if entry.size else b""
        if len(data) < entry.size:
            raise self._damage(f"{path}: it ends before its size is reached")
        return data[: entry.size]

    def names(self, path: str) -> list[str]:
        """What is in a directory."""
        return sorted(entry.name for entry in self._list(path) if entry.name not in (".", ".."))

    def _damage(self, what: str) -> VolumeError:
        return VolumeError(f"{self._part.name}: {what}")

    def _find(self, path: str) -> _Entry | None:
        """The entry that a path leads to; None is the root directory, which has none."""
        here: _Entry | None = None
        for name in (part for part in path.split("/") if part not in ("", ".")):
            wanted = name.casefold()
            for entry in self._entries(here, path):
                if wanted in (entry.name.casefold(), entry.short.casefold()):
                    here = entry
                    break
            else:
                raise self._damage(f"there is no {path}")
        return here

    def _list(self, path: str) -> Iterator[_Entry]:
        return self._entries(self._find(path), path)

    def _entries(self, directory: _Entry | None, path: str) -> Iterator[_Entry]:
        told = self._told
        if directory is not None and not directory.directory:
            raise self._damage(f"{path}: there is a file where a directory should be")
        # ".." of a directory in the root has cluster 0, and means the root
        cluster = 0 if directory is None else directory.cluster
        if cluster or told.bits == 32:
            data = self._chain(cluster or told.root_cluster, MAX_DIRECTORY, path)
        else:
            data = self._part.read(told.root_at, told.root_entries * 32)
        long: list[str] = []
        for at in range(0, len(data) - 31, 32):
            raw = Fields(data[at : at + 32])
            first, attributes = raw.u8(0), raw.u8(11)
            if first == 0:
                return
            if first == 0xE5:
                long = []
            elif attributes & 0x3F == _LONG:
                if first & _LAST_PART:
                    long = []
                text = raw.data[1:11] + raw.data[14:26] + raw.data[28:32]
                long.insert(0, text.decode("utf-16-le", "replace").split("\0", 1)[0].rstrip("\uffff"))
                long = long[:20]
            else:
                if not attributes & _VOLUME:
                    short = _short_name(raw)
                    cluster = raw.u16(26) | (raw.u16(20) << 16 if told.bits == 32 else 0)
                    named = "".join(long) or short
                    yield _Entry(named, short, bool(attributes & _DIRECTORY), cluster, raw.u32(28))
                long = []

    def _chain(self, cluster: int, most: int, path: str) -> bytes:
        """The clusters of a chain until it ends, or `most` bytes are there."""
        told, data = self._told, bytearray()
        left = min(told.clusters, -(-most // told.cluster_size))
        while left and 2 <= cluster < told.clusters + 2:
            at = told.data_at + (cluster - 2) * told.cluster_size
            data += self._part.read(at, told.cluster_size)
            left -= 1
            cluster = self._next(cluster)
        if not data:
            raise self._damage(f"{path}: its first cluster {cluster} does not exist")
        return bytes(data)

    def _next(self, cluster: int) -> int:
        """What the table says of a cluster: its successor, or a number that is none."""
        told = self._told
        at, length = cluster * told.bits // 8, 4 if told.bits == 32 else 2
        if at + length > told.fat_size:
            raise self._damage("its table is too short for its clusters")
        raw = int.from_bytes(self._part.read(told.fat_at + at, length), "little")
        if told.bits == 12:
            return raw >> (4 if cluster & 1 else 0) & 0xFFF
        return raw & 0x0FFFFFFF if told.bits == 32 else raw


def _short_name(raw: Fields) -> str:
    base, extension = (raw.data[:8].decode("cp437").rstrip(), raw.data[8:11].decode("cp437").rstrip())
    case = raw.u8(12)
    base = base.lower() if case & 8 else base
    extension = extension.lower() if case & 16 else extension
    return f"{base}.{extension}" if extension else base
