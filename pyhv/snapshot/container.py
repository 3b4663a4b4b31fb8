# SPDX-License-Identifier: GPL-2.0-only
"""The file of a snapshot: sections behind a short head, and a digest over everything.

    "PYHVSNAP"  u32 version  u32 0
    section     4 letters, u64 length, so many bytes
      HEAD      msgpack: which pyhv wrote it, when, what is in it; small, to be shown without reading on
      STAT      msgpack, compressed with zstd: the state of all objects as plain data
      PAGE ...  blocks of memory (pages.py)
      TABL      which frame has which page
    END\\0       u64 32, BLAKE2b of everything before this section

All numbers are little-endian. A file is written under another name and renamed when it is complete, so that
there is never half a snapshot. Whoever reads one believes nothing: it may be truncated, changed, of another
program, of a newer pyhv, or made to do harm; each is one sentence in a SnapshotError.
"""

import contextlib
import hashlib
import os
import struct
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgpack
import zstandard

from pyhv.errors import SnapshotError
from pyhv.frozen import frozen
from pyhv.snapshot.compression import expand
from pyhv.snapshot.pages import PageWriter

MAGIC: Final = b"PYHVSNAP"
VERSION: Final = 3
"""Of this format and of what STAT holds. A reader takes its own version only."""
_HEAD: Final = struct.Struct("<8sII")
_SECTION: Final = struct.Struct("<4sQ")
_DIGEST_SIZE: Final = 32
_LONGEST_HEAD: Final = 1 << 20
_LONGEST_STATE: Final = 1 << 30
"""Bytes of STAT, decompressed."""
_MOST_VALUES: Final = 1 << 24
"""In lists and tables: one takes up to 72 bytes of the host's memory, and a single byte of a file. A guest
that has all the event channels of FIFO delivery accounts for a million."""


@frozen
class Content:
    """What a snapshot's file says, taken apart but not yet understood."""

    head: dict[str, Any]
    state: Any
    table: bytes
    blocks: tuple[bytes, ...]


class _Hashing:
    """A file being written, and the digest of what was."""

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._hash = hashlib.blake2b(digest_size=_DIGEST_SIZE)

    def write(self, data: bytes) -> None:
        self._hash.update(data)
        self._file.write(data)

    def section(self, name: bytes, data: bytes) -> None:
        self.write(_SECTION.pack(name, len(data)))
        self.write(data)

    def finish(self) -> None:
        digest = self._hash.digest()
        self._file.write(_SECTION.pack(b"END\0", len(digest)) + digest)


def write(path: Path, head: dict[str, Any], state: Any, pages: PageWriter) -> None:
    """Write a snapshot's file, or leave what was there. SnapshotError: the host cannot."""
    try:
        with _replacing(path) as file:
            out = _Hashing(file)
            out.write(_HEAD.pack(MAGIC, VERSION, 0))
            out.section(b"HEAD", msgpack.packb(head))
            out.section(b"STAT", zstandard.ZstdCompressor().compress(msgpack.packb(state)))
            for block in pages.blocks():
                out.section(b"PAGE", block)
            out.section(b"TABL", pages.table())
            out.finish()
    except OSError as error:
        raise SnapshotError(f"{path}: the snapshot cannot be written ({error.strerror})") from error


@contextlib.contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A file beside `path` that takes its place, complete and on the disk, when all has gone well."""
    with tempfile.NamedTemporaryFile(dir=path.parent, prefix=f".{path.name}-", delete=False) as file:
        try:
            yield file  # type: ignore[misc]
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o666 & ~_umask())
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


def _umask() -> int:
    mask = os.umask(0o077)
    os.umask(mask)
    return mask


def read(path: Path) -> Content:
    """Read a snapshot's file. SnapshotError names it and says what is wrong with it."""
    try:
        return parse(path.read_bytes())
    except OSError as error:
        raise SnapshotError(f"{path}: cannot be read ({error.strerror})") from error
    except SnapshotError as error:
        raise SnapshotError(f"{path}: {error}") from None


def is_snapshot(path: Path) -> bool:
    """Whether a file begins like one; false if it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(len(MAGIC)) == MAGIC
    except (OSError, ValueError):
        return False


def parse(data: bytes) -> Content:
    """Take a snapshot's bytes apart; SnapshotError says what is wrong with them, without naming a file."""
    _check_magic(data)
    sections = list(_sections(memoryview(data)[_HEAD.size :]))
    if not sections or sections[-1][0] != b"END\0":
        raise SnapshotError("is truncated: its end is missing; it was not written to the end, or not copied")
    end = len(data) - _SECTION.size - len(sections[-1][1])
    if hashlib.blake2b(memoryview(data)[:end], digest_size=_DIGEST_SIZE).digest() != sections[-1][1]:
        raise SnapshotError("is damaged: its digest differs from what was written")
    names = [name for name, _ in sections]
    if names != [b"HEAD", b"STAT", *[b"PAGE"] * (len(names) - 4), b"TABL", b"END\0"]:
        raise SnapshotError("is no snapshot that pyhv writes: its sections are not in their order")
    return Content(
        head=_head(*sections[0]),
        state=_unpack(expand(sections[1][1], "a state", at_most=_LONGEST_STATE)),
        table=bytes(sections[-2][1]),
        blocks=tuple(bytes(payload) for _, payload in sections[2:-2]),
    )


def _check_magic(data: bytes) -> int:
    if len(data) < _HEAD.size or not data.startswith(MAGIC):
        raise SnapshotError("is no snapshot of pyhv")
    _, version, reserved = _HEAD.unpack_from(data)
    if version > VERSION:
        raise SnapshotError(
            f"was written by a newer pyhv (format {version}, this one reads {VERSION}); update pyhv"
        )
    if version < VERSION:
        raise SnapshotError(
            f"was written by an older pyhv (format {version}, this one reads {VERSION}); use that one"
        )
    if reserved:
        raise SnapshotError("is no snapshot that pyhv writes: its head is not possible")
    return int(version)


def _sections(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    """Names and payloads up to the end of `data`."""
    at = 0
    while at < len(data):
        if len(data) - at < _SECTION.size:
            raise SnapshotError("is truncated: it ends within the head of a section")
        name, length = _SECTION.unpack_from(data, at)
        at += _SECTION.size
        if length > len(data) - at:
            raise SnapshotError("is truncated: it ends within a section")
        yield name, data[at : at + length]
        at += length


def _head(name: bytes, payload: memoryview) -> dict[str, Any]:
    if name != b"HEAD" or len(payload) > _LONGEST_HEAD:
        raise SnapshotError("is no snapshot that pyhv writes: it does not begin with its head")
    head = _unpack(bytes(payload))
    if not isinstance(head, dict):
        raise SnapshotError("has a head that is no table")
    return head


def _unpack(data: bytes) -> Any:
    try:
        return unpack_bounded(data, _MOST_VALUES)
    except TooManyValues as many:
        raise SnapshotError("has more values in its state than any machine") from many
    except ValueError as error:
        raise SnapshotError(f"has a part that is no msgpack ({error})") from error


class TooManyValues(Exception):
    """What was packed has more values than it may."""


def unpack_bounded(data: bytes | memoryview, most: int) -> Any:
    """One value of msgpack, of `most` values in all. TooManyValues; ValueError: it is no msgpack."""
    left = most

    def counted(values: list[Any]) -> list[Any]:
        nonlocal left
        left -= len(values) + 1
        if left < 0:
            raise TooManyValues
        return values

    try:
        return msgpack.unpackb(
            data,
            max_array_len=most,
            max_map_len=most,
            list_hook=counted,
            object_pairs_hook=lambda pairs: dict(counted(pairs)),
        )
    except (TypeError, msgpack.exceptions.UnpackException) as error:
        raise ValueError(str(error)) from error
