# SPDX-License-Identifier: GPL-2.0-only
"""Which file system is on a part of a disk, by its superblock; and files of those that can be read.

ext2, ext3, ext4 and FAT are read (`ext4.py`, `fat.py`): they hold what boots. Others are only recognized.
"""

from dataclasses import field
from typing import Final, Protocol

from pyhv.errors import VolumeError
from pyhv.frozen import frozen
from pyhv.volumes import ext4, fat
from pyhv.volumes.window import Fields, Window, uuid_text


class Files(Protocol):
    """A file system that can be read. Paths begin with "/"; links lead where they do within it."""

    def read_file(self, path: str, most: int) -> bytes:
        """A regular file. VolumeError: there is none, it is larger than `most` bytes, or it is damaged."""

    def names(self, path: str) -> list[str]:
        """What is in a directory, sorted. VolumeError: it is none, or it is damaged."""


@frozen
class FileSystem:
    """What its superblock says. `block` and `size` in bytes; 0: it does not say."""

    kind: str
    label: str = ""
    uuid: str = ""
    size: int = 0
    block: int = 0
    features: tuple[str, ...] = ()
    remarks: tuple[str, ...] = field(default=())
    mountable: bool = True
    """It is a file system; and not swap, or a part of something larger."""


def recognize(part: Window) -> FileSystem | None:
    """The file system there; None: none that is known. Never raises for what is on the disk."""
    for look in (_ext, _fat, _xfs, _btrfs, _iso9660, _swap, _squashfs, _lvm, _luks):
        found = look(part)
        if found is not None:
            return found
    return None


def open_files(part: Window) -> Files:
    """A file system's files. VolumeError: it is none that can be read, or its superblock is damaged."""
    if ext4.is_ext(part):
        return ext4.Ext(part)
    if fat.is_fat(part):
        return fat.Fat(part)
    raise VolumeError(f"{part.name}: it is neither ext2, ext3, ext4 nor FAT, so its files cannot be read")


def _ext(part: Window) -> FileSystem | None:
    if not ext4.is_ext(part):
        return None
    told = ext4.Superblock(part)
    remarks = []
    if told.size > part.size:
        remarks.append(f"says that it is {told.size} bytes long, of which {part.size} are there")
    if told.needs_recovery:
        remarks.append("was not unmounted; its journal has to be replayed")
    elif not told.clean:
        remarks.append("was not unmounted, or has errors")
    try:
        ext4.Ext(part)
    except VolumeError as cause:
        remarks.append(f"cannot be read: {cause}")
    return FileSystem(
        told.kind, told.label, told.uuid, told.size, told.block_size, told.features, tuple(remarks)
    )


def _fat(part: Window) -> FileSystem | None:
    if not fat.is_fat(part):
        return None
    told = fat.BootSector(part)
    return FileSystem(told.kind, told.label, told.serial, told.size, told.cluster_size)


def _xfs(part: Window) -> FileSystem | None:
    told = Fields(part.peek(0, 512))
    if not told.data.startswith(b"XFSB"):
        return None
    block = int.from_bytes(told.data[4:8], "big")
    size = block * int.from_bytes(told.data[8:16], "big")
    return FileSystem("xfs", told.text(108, 12), uuid_text(told.data[32:48]), size, block)


def _btrfs(part: Window) -> FileSystem | None:
    told = Fields(part.peek(0x10000, 0x400))
    if told.data[0x40:0x48] != b"_BHRfS_M":
        return None
    return FileSystem(
        "btrfs", told.text(0x12B, 256), uuid_text(told.data[0x20:0x30]), told.u64(0x70), told.u32(0x90)
    )


def _iso9660(part: Window) -> FileSystem | None:
    told = Fields(part.peek(0x8000, 2048))
    if told.data[1:6] != b"CD001":
        return None
    block = told.u16(128)
    return FileSystem("iso9660", told.text(40, 32), "", told.u32(80) * block, block)


_SWAP_PAGES: Final = (4096, 8192, 16384, 65536)


def _swap(part: Window) -> FileSystem | None:
    for page in _SWAP_PAGES:
        if part.peek(page - 10, 10) == b"SWAPSPACE2":
            told = Fields(part.peek(1024, 512))
            size = (told.u32(4) + 1) * page
            return FileSystem(
                "swap", told.text(28, 16), uuid_text(told.data[12:28]), size, page, mountable=False
            )
    return None


def _squashfs(part: Window) -> FileSystem | None:
    told = Fields(part.peek(0, 96))
    return FileSystem("squashfs", "", "", told.u64(40), told.u32(12)) if told.data[:4] == b"hsqs" else None


def _lvm(part: Window) -> FileSystem | None:
    for sector in range(4):
        told = part.peek(sector * 512, 512)
        if told.startswith(b"LABELONE") and told[24:32] == b"LVM2 001":
            return FileSystem("LVM2 physical volume", mountable=False)
    return None


def _luks(part: Window) -> FileSystem | None:
    told = Fields(part.peek(0, 512))
    if not told.data.startswith(b"LUKS\xba\xbe"):
        return None
    return FileSystem("LUKS (encrypted)", "", told.text(168, 40), mountable=False)
