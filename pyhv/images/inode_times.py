# SPDX-License-Identifier: GPL-2.0-only
"""Times of an ext4 image that was made of a directory: without them, the same files give the same bytes.

`mke2fs -d` copies a file's times. The time of its last change (ctime) is when it was unpacked for mke2fs,
which nobody can set; the time of its last access is no better. Here both become the time of its last
modification, and an inode's checksum is computed anew: CRC-32C over the file system's UUID, the inode's
number, its generation and its bytes, as in Linux' documentation (filesystems/ext4).
"""

from pathlib import Path
from typing import Any, Final

import numpy as np
import numpy.typing as npt

from pyhv.errors import EnvironmentProblem
from pyhv.images.disks import opened
from pyhv.volumes.ext4 import Ext, Superblock

_ATIME, _CTIME, _MTIME, _GENERATION = 0x08, 0x0C, 0x10, 0x64
_EXTRA_SIZE, _CTIME_EXTRA, _MTIME_EXTRA, _ATIME_EXTRA, _CRTIME, _CRTIME_EXTRA = (
    0x80, 0x84, 0x88, 0x8C, 0x90, 0x94,
)  # fmt: skip
_CHECKSUM_LOW, _CHECKSUM_HIGH = 0x7C, 0x82
_POLYNOMIAL: Final = 0x82F63B78
_ALL: Final = 0xFFFFFFFF
_Rows = npt.NDArray[np.uint8]
_Words = npt.NDArray[Any]


def settle_times(path: Path, born: int) -> None:
    """Set them in a file system image that nobody uses; `born` is when all its files were made.

    Seconds since 1970. EnvironmentProblem: the image cannot be written; VolumeError: it is not ext4.
    """
    with opened(path) as part:
        told, files = Superblock(part), Ext(part)
        tables = [files.inode_table(group) for group in range(told.inodes // told.inodes_per_group)]
    seed = _crc(
        np.array([_ALL], np.uint32), np.frombuffer(bytes.fromhex(told.uuid.replace("-", "")), np.uint8)
    )
    size = told.inodes_per_group * told.inode_size
    try:
        with path.open("r+b") as file:
            for group, at in enumerate(tables):
                file.seek(at)
                rows = np.frombuffer(bytearray(file.read(size)), np.uint8).reshape(-1, told.inode_size)
                used = np.flatnonzero(rows[:, 0:2].any(axis=1))
                if used.size:
                    first = group * told.inodes_per_group + 1
                    rows[used] = _settled(rows[used], used + first, int(seed[0]), born)
                    file.seek(at)
                    file.write(rows.tobytes())
    except OSError as cause:
        raise EnvironmentProblem(f"{path}: cannot be written ({cause.strerror})") from cause


def _settled(rows: _Rows, numbers: npt.NDArray[np.intp], seed: int, born: int) -> _Rows:
    """Inodes, a row for each, with their times and checksums; `numbers` are theirs."""
    time, nothing = _bytes_of(np.array([born], np.uint32)), np.zeros(4, np.uint8)
    rows[:, _ATIME : _ATIME + 4] = rows[:, _CTIME : _CTIME + 4] = rows[:, _MTIME : _MTIME + 4]
    for field, value in (
        (_CTIME_EXTRA, nothing), (_MTIME_EXTRA, nothing), (_ATIME_EXTRA, nothing), (_CRTIME, time),
        (_CRTIME_EXTRA, nothing),
    ):  # fmt: skip
        rows[:, field : field + 4] = value
    rows[:, _CHECKSUM_LOW : _CHECKSUM_LOW + 2] = rows[:, _CHECKSUM_HIGH : _CHECKSUM_HIGH + 2] = 0
    state = np.full(len(rows), seed, np.uint32)
    state = _crc(state, _bytes_of(numbers.astype(np.uint32)))
    state = _crc(state, rows[:, _GENERATION : _GENERATION + 4])
    checksum = _bytes_of(_crc(state, rows))
    rows[:, _CHECKSUM_LOW : _CHECKSUM_LOW + 2] = checksum[:, :2]
    rows[:, _CHECKSUM_HIGH : _CHECKSUM_HIGH + 2] = checksum[:, 2:]
    return rows


def _bytes_of(words: _Words) -> _Rows:
    """Each word as a row of four bytes, the lowest first."""
    return words.astype("<u4").view(np.uint8).reshape(-1, 4)


def _table() -> _Words:
    values = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        values = (values >> np.uint32(1)) ^ (values & np.uint32(1)) * np.uint32(_POLYNOMIAL)
    return values


_TABLE: Final = _table()


def _crc(states: _Words, data: npt.NDArray[Any]) -> _Words:
    """CRC-32C of many messages of one length at once: a state and a row of `data` for each."""
    found: _Words = states
    for column in np.atleast_2d(data).T:
        found = _TABLE[(found ^ column) & 0xFF] ^ (found >> 8)
    return found
