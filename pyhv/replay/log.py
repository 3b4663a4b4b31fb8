# SPDX-License-Identifier: GPL-2.0-only
"""The file of a recording: records behind a short head, each of which makes all before it usable.

    "PYHVRECD"  u32 version  u32 0
    record      length (LEB128), so many bytes of msgpack, u32 CRC-32 of everything before

All numbers are little-endian. Records are only added, each by one write(2): whatever ends the process that
records, the file is a recording up to then. A record that is cut off at the end of a file is left out, which
`LogContent.cut` tells; everything else that is wrong with a file is one sentence in a ReplayError, for
whoever reads one believes nothing of it.
"""

import os
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO, Final

import msgpack

from pyhv.errors import ReplayError
from pyhv.frozen import frozen
from pyhv.snapshot.container import TooManyValues, unpack_bounded

MAGIC: Final = b"PYHVRECD"
VERSION: Final = 1
"""Of this format, of the commands' arguments, and of what a checkpoint consists of."""
_HEAD: Final = struct.Struct("<8sII")
_CRC: Final = struct.Struct("<I")
_LONGEST: Final = 1 << 26
"""Bytes of a record: an image that is kept in the file."""
_LARGEST: Final = 1 << 32
"""Bytes of a file."""
_MOST_VALUES: Final = 1 << 21
"""In the lists and tables of one record."""
_MOST_DIGITS: Final = 5
"""Bytes of a length."""


class LogWriter:
    """Adds records to a file, or without one keeps them."""

    def __init__(self, path: Path | None) -> None:
        """ReplayError: the file cannot be created."""
        self._path = path
        self._file: BinaryIO | None = None
        self._kept = bytearray()
        if path is not None:
            try:
                self._file = path.open("wb", buffering=0)
            except OSError as error:
                raise ReplayError(
                    f"{path}: cannot be created for the recording ({error.strerror})"
                ) from error
        head = _HEAD.pack(MAGIC, VERSION, 0)
        self._crc = zlib.crc32(head)
        self.size = 0
        """Bytes so far."""
        self._write(head)

    def add(self, record: Any) -> None:
        """One more. ReplayError: it cannot be written."""
        packed = msgpack.packb(record)
        data = _length(len(packed)) + packed
        self._crc = zlib.crc32(data, self._crc)
        self._write(data + _CRC.pack(self._crc))

    def save(self, path: Path) -> None:
        """Write what was kept to a file. ReplayError."""
        try:
            path.write_bytes(self._kept if self._path is None else self._path.read_bytes())
        except OSError as error:
            raise ReplayError(f"{path}: the recording cannot be written ({error.strerror})") from error

    def close(self) -> None:
        """No more comes."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, data: bytes) -> None:
        self.size += len(data)
        if self._file is None:
            self._kept += data
            return
        view = memoryview(data)
        try:
            while view:
                view = view[os.write(self._file.fileno(), view) :]
        except OSError as error:
            raise ReplayError(f"{self._path}: the recording cannot be written ({error.strerror})") from error


@frozen
class LogContent:
    """A file's records, taken apart but not yet understood."""

    records: list[Any]
    cut: bool
    """Whether its end is missing: it was cut off within a record."""


def read(path: Path) -> LogContent:
    """Read a recording's file. ReplayError says what is wrong with it, without naming it."""
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size > _LARGEST:
                raise ReplayError("is larger than any recording")
            data = file.read()
    except (OSError, ValueError) as error:
        raise ReplayError(f"cannot be read ({getattr(error, 'strerror', error)})") from error
    return parse(data)


def parse(data: bytes) -> LogContent:
    """Take a recording's bytes apart; ReplayError says what is wrong with them, without naming a file."""
    if data[: len(MAGIC)] != MAGIC[: len(data)]:
        raise ReplayError("is no recording of pyhv")
    if len(data) < _HEAD.size:
        raise ReplayError("is truncated: it ends within its head")
    _, version, reserved = _HEAD.unpack_from(data)
    if version != VERSION:
        kind, remedy = ("a newer", "update pyhv") if version > VERSION else ("an older", "use that one")
        raise ReplayError(
            f"was written by {kind} pyhv (format {version}, this one reads {VERSION}); {remedy}"
        )
    if reserved:
        raise ReplayError("is no recording that pyhv writes: its head is not possible")
    reader = _LogReader(data)
    records = [unpack(payload) for payload in reader.payloads()]
    if not records:
        raise ReplayError("is truncated: it ends before it says what was recorded")
    return LogContent(records, reader.cut)


class _LogReader:
    """Walks over the records of a file."""

    def __init__(self, data: bytes) -> None:
        self._data = memoryview(data)
        self._at = _HEAD.size
        self.cut = False

    def payloads(self) -> Iterator[memoryview]:
        data, crc = self._data, zlib.crc32(self._data[: self._at])
        while self._at < len(data):
            start = self._at
            length = self._read_length()
            end = self._at + (length or 0) + _CRC.size
            if length is None or end > len(data):
                self.cut = True
                return
            crc = zlib.crc32(data[start : end - _CRC.size], crc)
            if data[end - _CRC.size : end] != _CRC.pack(crc):
                raise ReplayError(f"is damaged: what is written at byte {start} has another checksum")
            yield data[self._at : end - _CRC.size]
            self._at = end

    def _read_length(self) -> int | None:
        """None: it is cut off."""
        length = 0
        for digit in range(_MOST_DIGITS):
            if self._at >= len(self._data):
                return None
            byte = self._data[self._at]
            self._at += 1
            length |= (byte & 0x7F) << 7 * digit
            if not byte & 0x80:
                if length > _LONGEST:
                    break
                return length
        raise ReplayError(f"is damaged: it has a record of an impossible length before byte {self._at}")


def _length(value: int) -> bytes:
    digits = bytearray()
    while value >= 0x80:
        digits.append(value & 0x7F | 0x80)
        value >>= 7
    digits.append(value)
    return bytes(digits)


def unpack(data: bytes | memoryview) -> Any:
    """One value of msgpack, of bounded size. ReplayError."""
    try:
        return unpack_bounded(data, _MOST_VALUES)
    except TooManyValues as many:
        raise ReplayError("has a record of more values than any") from many
    except ValueError as error:
        raise ReplayError(f"has a record that is no msgpack ({error})") from error
