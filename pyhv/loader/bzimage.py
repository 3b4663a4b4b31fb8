# SPDX-License-Identifier: GPL-2.0-only
"""From a file on disk to the ELF image inside it: bzImage payloads and compressed files.

The bzImage setup header is specified by Linux' x86 boot protocol (2.08 and later tell where the payload
lies); each compression format by its own magic number. Files are hostile: a decompressor is fed and read
in bounded steps and stopped at `MAX_UNPACKED`. This module does not look inside the ELF.

    0x1f1 setup_sects u8 | 0x1fe 0xaa55 | 0x202 "HdrS" | 0x206 version u16
    0x248 payload_offset u32 (from the end of the setup sectors) | 0x24c payload_length u32

Linux appends the unpacked size (4 bytes) to most payloads, so bytes after a stream's end are ignored.
"""

import bz2
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import lz4.block
import zstandard

from pyhv.errors import ImageError

MAX_UNPACKED = 1 << 30
"""Largest image, in bytes, that a file may unpack to."""
ELF_MAGIC = b"\x7fELF"

_STEP = 1 << 20
_LZOP_MAGIC = b"\x89LZO"
_ZSTD_FEED = 4096  # one byte of zstd can announce 32 KiB; this bounds what one call returns
_LZ4_MAGIC = 0x184C2102
_LZ4_BLOCK = 8 << 20  # the legacy frame format's block size
_LZMA_MEMORY = 512 << 20  # Linux uses dictionaries of up to 128 MiB


class Unpacked(NamedTuple):
    """An ELF image and how the file held it, such as "ELF", "ELF (gzip)" or "bzImage (xz)"."""

    elf: bytes
    kind: str


class _Truncated(Exception):
    """A stream ends before its end mark."""


class _Stepwise(Protocol):
    """What `bz2` and `lzma` decompressors have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    def decompress(self, data: bytes, max_length: int = -1) -> bytes: ...


def unpack(data: bytes, name: str) -> Unpacked:
    """Return the ELF image in `data`; ImageError if there is none or it cannot be unpacked."""
    if data.startswith(ELF_MAGIC):
        return Unpacked(data, "ELF")
    if data[0x1FE:0x200] == b"\x55\xaa" and data[0x202:0x206] == b"HdrS":
        container, payload = "bzImage", _payload(data, name)
    else:
        container, payload = "ELF", data
    if payload.startswith(ELF_MAGIC):
        return Unpacked(payload, f"{container} (uncompressed)")
    compression = _sniff(payload)
    if payload.startswith(_LZOP_MAGIC):
        raise ImageError(
            f"{name}: it is compressed with LZO, the one format of Linux kernels that pyhv does not unpack; "
            "give the vmlinux inside it (scripts/extract-vmlinux of the kernel's source unpacks it)"
        )
    if compression is None:
        if container == "bzImage":
            raise ImageError(
                f"{name}: the bzImage's payload begins with {payload[:4].hex(' ')}, no known compression"
            )
        found = f"begins with {data[:4].hex(' ')}" if data else "is empty"
        raise ImageError(
            f"{name}: it {found}, so it is neither an ELF file, a bzImage nor a compressed ELF file; "
            "give a kernel such as vmlinuz or vmlinux"
        )
    elf = _expand(compression, payload, name)
    if not elf.startswith(ELF_MAGIC):
        raise ImageError(f"{name}: what its {compression} stream unpacks to is not an ELF file")
    return Unpacked(elf, f"{container} ({compression})")


def _payload(data: bytes, name: str) -> bytes:
    if len(data) < 0x250:
        raise ImageError(f"{name}: the bzImage ends within its setup header; the file is truncated")
    (version,) = struct.unpack_from("<H", data, 0x206)
    if version < 0x208:
        raise ImageError(
            f"{name}: a bzImage of boot protocol {version >> 8}.{version & 0xFF:02}, too old to tell where "
            "its kernel lies (2.08 is needed); give the vmlinux"
        )
    setup_sects = data[0x1F1] or 4
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (setup_sects + 1) * 512 + offset
    if length == 0:
        raise ImageError(f"{name}: the bzImage has an empty payload")
    if start + length > len(data):
        raise ImageError(
            f"{name}: the bzImage's payload ends at byte {start + length}, the file at byte {len(data)}; "
            "the file is truncated"
        )
    return data[start : start + length]


def _expand(compression: str, payload: bytes, name: str) -> bytes:
    pieces: list[bytes] = []
    size = 0
    try:
        for piece in _DECODERS[compression](payload):
            size += len(piece)
            if size > MAX_UNPACKED:
                raise ImageError(
                    f"{name}: its {compression} stream unpacks to more than {MAX_UNPACKED} bytes"
                )
            pieces.append(piece)
    except _Truncated:
        raise ImageError(f"{name}: its {compression} stream ends too early; the file is truncated") from None
    except (
        zlib.error,
        lzma.LZMAError,
        lz4.block.LZ4BlockError,
        zstandard.ZstdError,
        OSError,  # bz2's word for damaged data
        ValueError,  # bz2's for other
    ) as cause:
        raise ImageError(f"{name}: its {compression} stream is damaged ({cause})") from cause
    return b"".join(pieces)


def _gzip(payload: bytes) -> Iterator[bytes]:
    decoder = zlib.decompressobj(wbits=31)
    rest = payload
    while not decoder.eof:
        piece = decoder.decompress(rest, _STEP)
        rest = decoder.unconsumed_tail
        if not piece and not rest and not decoder.eof:
            raise _Truncated
        yield piece


def _stepwise(decoder: _Stepwise, payload: bytes) -> Iterator[bytes]:
    piece = decoder.decompress(payload, _STEP)
    yield piece
    while not decoder.eof:
        if decoder.needs_input:
            raise _Truncated
        yield decoder.decompress(b"", _STEP)


def _xz(payload: bytes) -> Iterator[bytes]:
    return _stepwise(lzma.LZMADecompressor(lzma.FORMAT_XZ, _LZMA_MEMORY), payload)


def _lzma_alone(payload: bytes) -> Iterator[bytes]:
    return _stepwise(lzma.LZMADecompressor(lzma.FORMAT_ALONE, _LZMA_MEMORY), payload)


def _bzip2(payload: bytes) -> Iterator[bytes]:
    return _stepwise(bz2.BZ2Decompressor(), payload)


def _lz4(payload: bytes) -> Iterator[bytes]:
    """Linux' LZ4: the legacy frame, blocks of (u32 size, data) until the end or the appended size."""
    at = 4
    while at + 4 < len(payload):
        (size,) = struct.unpack_from("<I", payload, at)
        at += 4
        if size == _LZ4_MAGIC:  # another frame
            continue
        if at + size > len(payload) or size == 0:
            raise _Truncated
        yield lz4.block.decompress(payload[at : at + size], uncompressed_size=_LZ4_BLOCK)
        at += size


def _zstd(payload: bytes) -> Iterator[bytes]:
    decoder = zstandard.ZstdDecompressor(max_window_size=1 << 27).decompressobj()
    for at in range(0, len(payload), _ZSTD_FEED):
        yield decoder.decompress(payload[at : at + _ZSTD_FEED])
        if decoder.eof:
            return
    raise _Truncated


_DECODERS: dict[str, Callable[[bytes], Iterator[bytes]]] = {
    "gzip": _gzip,
    "xz": _xz,
    "lzma": _lzma_alone,
    "bzip2": _bzip2,
    "lz4": _lz4,
    "zstd": _zstd,
}

_MAGICS = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x5d\0\0": "lzma",
    b"BZh": "bzip2",
    struct.pack("<I", _LZ4_MAGIC): "lz4",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def _sniff(payload: bytes) -> str | None:
    return next((format_ for magic, format_ in _MAGICS.items() if payload.startswith(magic)), None)
