# SPDX-License-Identifier: GPL-2.0-only
"""Partition tables: MBR with extended partitions, and GPT as in the UEFI specification, chapter 5.

Numbers are those of Linux: primary partitions 1 to 4, logical ones from 5 on; a GPT's entries from 1 on.
"""

import zlib
from dataclasses import field
from itertools import pairwise
from typing import Final

from pyhv.errors import VolumeError
from pyhv.frozen import frozen
from pyhv.volumes.window import SECTOR, Fields, Window, guid_text

MAX_LOGICAL: Final = 128
"""Logical partitions that are looked at."""
MAX_ENTRIES: Final = 1024
"""Entries of a GPT; 128 is what everybody makes."""
MAX_ENTRY: Final = 4096
"""Bytes of one."""

_SIGNATURE: Final = b"\x55\xaa"
_GPT_MAGIC: Final = b"EFI PART"
_PROTECTIVE: Final = 0xEE
_EXTENDED: Final = (0x05, 0x0F, 0x85)
_MBR_TYPES: Final = {
    0x01: "FAT12", 0x04: "FAT16", 0x06: "FAT16", 0x07: "NTFS or exFAT", 0x0B: "FAT32", 0x0C: "FAT32",
    0x0E: "FAT16", 0x0F: "extended", 0x05: "extended", 0x82: "Linux swap", 0x83: "Linux", 0x85: "extended",
    0x8E: "Linux LVM", 0xA5: "FreeBSD", 0xA6: "OpenBSD", 0xA9: "NetBSD", 0xEE: "protective",
    0xEF: "EFI system", 0xFD: "Linux RAID",
}  # fmt: skip
_GPT_TYPES: Final = {
    "0fc63daf-8483-4772-8e79-3d69d8477de4": "Linux",
    "0657fd6d-a4ab-43c4-84e5-0933c84b4f4f": "Linux swap",
    "bc13c2ff-59e6-4262-a352-b275fd6f7172": "Linux /boot",
    "4f68bce3-e8cd-4db1-96e7-fbcaf984b709": "Linux root (x86-64)",
    "e6d6d379-f507-44c2-a23c-238f2a3df928": "Linux LVM",
    "a19d880f-05fc-4d3b-a006-743f0f84911e": "Linux RAID",
    "c12a7328-f81f-11d2-ba4b-00a0c93ec93b": "EFI system",
    "21686148-6449-6e6f-744e-656564454649": "BIOS boot",
    "ebd0a0a2-b9e5-4433-87c0-68b6b72699c7": "Microsoft basic data",
}


@frozen
class Partition:
    """One partition; `start` and `size` in bytes, as the table says them."""

    number: int
    start: int
    size: int
    kind: str
    name: str = ""
    """A GPT has names."""
    uuid: str = ""
    bootable: bool = False
    container: bool = False
    """It is an extended partition, which holds others."""


@frozen
class PartitionTable:
    """`kind` is "MBR" or "GPT"; `remarks` say what is not as it should be."""

    kind: str
    partitions: tuple[Partition, ...] = ()
    remarks: tuple[str, ...] = field(default=())


def read_table(disk: Window) -> PartitionTable | None:
    """The partition table; None: there is none. VolumeError: there is one, and nothing of it can be read.

    A file system on the whole disk has to be looked for first: the boot sector of one may look like a table.
    """
    first = disk.peek(0, SECTOR)
    entries = [Fields(first[at : at + 16]) for at in range(446, 510, 16)]
    if first[510:512] != _SIGNATURE or any(entry.u8(0) & 0x7F for entry in entries):
        return None
    if any(entry.u8(4) == _PROTECTIVE for entry in entries):
        return _read_gpt(disk)
    return _read_mbr(disk, entries)


def _read_mbr(disk: Window, entries: list[Fields]) -> PartitionTable | None:
    serial = Fields(disk.peek(440, 4)).u32(0)
    found: list[Partition] = []
    remarks: list[str] = []
    extended: int | None = None
    for number, entry in enumerate(entries, 1):
        partition = _mbr_partition(entry, number, 0, serial)
        if partition is None:
            continue
        found.append(partition)
        if partition.container and extended is None:
            extended = partition.start
    if extended is not None:
        logical, remark = _logical(disk, extended, serial)
        found += logical
        remarks += remark
    return _checked(disk, "MBR", found, remarks) if found else None


def _mbr_partition(entry: Fields, number: int, base: int, serial: int) -> Partition | None:
    kind, start, size = entry.u8(4), base + entry.u32(8) * SECTOR, entry.u32(12) * SECTOR
    if kind == 0 or size == 0:
        return None
    return Partition(
        number, start, size, _MBR_TYPES.get(kind, f"type {kind:#04x}"),
        uuid=f"{serial:08x}-{number:02x}" if serial else "",
        bootable=entry.u8(0) == 0x80, container=kind in _EXTENDED,
    )  # fmt: skip


def _logical(disk: Window, extended: int, serial: int) -> tuple[list[Partition], list[str]]:
    """The chain of tables in an extended partition: each has one partition and where the next table is."""
    found: list[Partition] = []
    at, seen = extended, set[int]()
    while at not in seen:
        if len(seen) == MAX_LOGICAL:
            return found, [f"more than {MAX_LOGICAL} logical partitions; the others are not shown"]
        seen.add(at)
        table = disk.peek(at, SECTOR)
        if table[510:512] != _SIGNATURE:
            return found, [f"the chain of logical partitions is broken at {at:#x}"]
        here, following = Fields(table[446:462]), Fields(table[462:478])
        partition = _mbr_partition(here, 5 + len(found), at, serial)
        if partition is not None:
            found.append(partition)
        if following.u8(4) not in _EXTENDED:
            return found, []
        at = extended + following.u32(8) * SECTOR
    return found, [f"the chain of logical partitions comes back to {at:#x}"]


def _read_gpt(disk: Window) -> PartitionTable:
    last = disk.size // SECTOR - 1
    remarks = []
    for which, lba in (("primary", 1), ("backup", last)):
        try:
            partitions = _gpt_at(disk, lba)
        except VolumeError as cause:
            remarks.append(f"the {which} table is not valid: {cause}")
        else:
            return _checked(disk, "GPT", partitions, remarks)
    raise VolumeError(f"{disk.name}: it has a GPT, but {' and '.join(remarks)}")


def _gpt_at(disk: Window, lba: int) -> list[Partition]:
    """The entries of the table whose header is there. VolumeError."""
    raw = disk.peek(lba * SECTOR, SECTOR) if lba > 0 else bytes(SECTOR)
    header = Fields(raw)
    size = header.u32(12)
    if not raw.startswith(_GPT_MAGIC) or not 92 <= size <= SECTOR:
        raise VolumeError(f"there is no header in sector {lba}")
    if zlib.crc32(raw[:16] + bytes(4) + raw[20:size]) != header.u32(16):
        raise VolumeError("its checksum is wrong")
    entries_at, count, width = header.u64(72), header.u32(80), header.u32(84)
    if header.u64(24) != lba or not 128 <= width <= MAX_ENTRY or count > MAX_ENTRIES:
        raise VolumeError(f"it says that it has {count} entries of {width} bytes")
    if entries_at * SECTOR + count * width > disk.size:
        raise VolumeError("its entries lie behind the end")
    table = disk.read(entries_at * SECTOR, count * width)
    if zlib.crc32(table) != header.u32(88):
        raise VolumeError("its entries' checksum is wrong")
    found = []
    for number in range(count):
        entry = Fields(table[number * width : (number + 1) * width])
        if not any(entry.data[:16]):
            continue
        first, final = entry.u64(32), entry.u64(40)
        if final < first:
            raise VolumeError(f"partition {number + 1} ends before it begins")
        kind = guid_text(entry.data[:16])
        name = entry.data[56:128].decode("utf-16-le", "replace").split("\0", 1)[0]
        found.append(
            Partition(
                number + 1, first * SECTOR, (final - first + 1) * SECTOR,
                _GPT_TYPES.get(kind, f"type {kind}"), name, guid_text(entry.data[16:32]),
                bootable=bool(entry.u64(48) & 4),
            )
        )  # fmt: skip
    return found


def _checked(disk: Window, kind: str, found: list[Partition], remarks: list[str]) -> PartitionTable:
    """The table with remarks on partitions that cannot be right."""
    apart = sorted((one for one in found if not one.container), key=lambda one: one.start)
    for one in apart:
        if one.start + one.size > disk.size:
            remarks.append(f"partition {one.number} reaches behind the end of the disk")
    for one, other in pairwise(apart):
        if one.start + one.size > other.start:
            remarks.append(f"partitions {one.number} and {other.number} overlap")
    return PartitionTable(kind, tuple(found), tuple(remarks))
