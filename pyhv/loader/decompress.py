# SPDX-License-Identifier: GPL-2.0-only
"""Unpacking what a stranger has packed: every format that Linux kernels come in but one, within limits.

Each format is known by its own magic number (`packed.py`); several streams may follow one another, as packers
make them that work in parallel. A decompressor is fed and read in bounded steps and stopped at MAX_UNPACKED,
so that a small file cannot fill the host's memory: unpacking takes at most that and what a format needs to
look back. This module does not look at what it unpacks.
"""

import bz2
import io
import lzma
import struct
import zlib
from collections.abc import Callable, Iterator
from typing import Final, Protocol

import lz4.block
import zstandard

from pyhv.errors import ImageError
from pyhv.loader.packed import LZ4_MAGIC, MAGIC_SIZE, MAX_UNPACKED, sniff

MAX_STREAMS: Final = 1 << 16
"""Most streams that may follow one another; parallel packers make some thousands of a gigabyte."""

_STEP: Final = 1 << 20
_FEED: Final = 1 << 16
_ZSTD_FEED: Final = 4096  # one byte of zstd can announce 32 KiB; this bounds what one call returns
_LZ4_BLOCK: Final = 8 << 20  # the legacy frame format's block size
_LZMA_MEMORY: Final = 512 << 20  # Linux uses dictionaries of up to 128 MiB
_ZSTD_WINDOW: Final = 1 << 31  # what `zstd --long=31` asks for; it is touched as far as something is unpacked
_SIZE_FIELD: Final = 4  # what Linux appends to a payload; a further stream is longer


class _Truncated(Exception):
    """A stream ends before its end mark."""


class _TooMany(Exception):
    """More streams than `MAX_STREAMS`."""


class _Decoder(Protocol):
    """What unpacks one stream, as those of `bz2` and `lzma` do."""

    @property
    def eof(self) -> bool: ...

    @property
    def needs_input(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def expand(compression: str, payload: bytes, name: str) -> bytes:
    """Unpack all streams of `payload`, in the format that `sniff` has named; what follows them is ignored.

    ImageError, in which `name` is the file's, if it is damaged, ends too early, is too much, or is LZO.
    """
    if compression == "lzo":
        raise ImageError(
            f"{name}: it is compressed with LZO, the one format of Linux kernels that pyhv does not unpack; "
            "give the vmlinux inside it (scripts/extract-vmlinux of the kernel's source unpacks it)"
        )
    unpacked = io.BytesIO()  # gives its contents away without a copy
    try:
        for piece in _DECODERS[compression](payload):
            if unpacked.tell() + len(piece) > MAX_UNPACKED:
                raise ImageError(
                    f"{name}: its {compression} stream unpacks to more than {MAX_UNPACKED} bytes"
                )
            unpacked.write(piece)
    except _Truncated:
        raise ImageError(f"{name}: its {compression} stream ends too early; the file is truncated") from None
    except _TooMany:
        raise ImageError(f"{name}: consists of more than {MAX_STREAMS} {compression} streams") from None
    except (
        zlib.error,
        lzma.LZMAError,
        lz4.block.LZ4BlockError,
        zstandard.ZstdError,
        OSError,  # bz2's word for damaged data
        ValueError,  # bz2's for other
    ) as cause:
        raise ImageError(f"{name}: its {compression} stream is damaged ({cause})") from cause
    return unpacked.getvalue()


def gunzip(data: bytes, size: int) -> io.BytesIO | None:
    """The contents of a file that is one gzip stream of `size` bytes and nothing else; else None."""
    decoder, at, unpacked = _Gunzip(), 0, io.BytesIO()
    try:
        while not decoder.eof and unpacked.tell() <= size:
            given = data[at : at + _FEED] if decoder.needs_input else b""
            if decoder.needs_input and not given:
                return None
            at += len(given)
            unpacked.write(decoder.decompress(given, _STEP))
    except zlib.error:
        return None
    alone = decoder.eof and at == len(data) and not decoder.unused_data
    return unpacked if alone and unpacked.tell() == size else None


def _streams(
    new: Callable[[], _Decoder], compression: str, payload: bytes, feed: int = _FEED
) -> Iterator[bytes]:
    """Unpack one stream after the other, in pieces; `new` makes a decoder for one."""
    at = 0
    for _ in range(MAX_STREAMS):
        decoder = new()
        while not decoder.eof:
            given = payload[at : at + feed] if decoder.needs_input else b""
            if decoder.needs_input and not given:
                raise _Truncated
            at += len(given)
            yield decoder.decompress(given, _STEP)
        at -= len(decoder.unused_data)
        # Another stream, or what Linux appends, which may begin like one?
        follows = payload[at : at + MAGIC_SIZE]
        if len(follows) <= _SIZE_FIELD or sniff(follows) != compression:
            return
    raise _TooMany


class _Gunzip:
    """zlib's decoder with the interface of the others."""

    def __init__(self) -> None:
        self._decoder = zlib.decompressobj(wbits=31)
        self.needs_input = True

    @property
    def eof(self) -> bool:
        return self._decoder.eof

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        piece = self._decoder.decompress(self._decoder.unconsumed_tail + data, max_length)
        # What did not fit waits inside the decoder, even where all input has been taken.
        self.needs_input = len(piece) < max_length and not self._decoder.unconsumed_tail
        return piece


class _Unzstd:
    """zstd's, which knows no limit of what one call returns: it is fed little at a time."""

    needs_input = True

    def __init__(self) -> None:
        self._decoder = zstandard.ZstdDecompressor(max_window_size=_ZSTD_WINDOW).decompressobj()

    @property
    def eof(self) -> bool:
        return bool(self._decoder.eof)

    @property
    def unused_data(self) -> bytes:
        return self._decoder.unused_data

    def decompress(self, data: bytes, _max_length: int) -> bytes:
        return self._decoder.decompress(data)


def _gzip(payload: bytes) -> Iterator[bytes]:
    return _streams(_Gunzip, "gzip", payload)


def _xz(payload: bytes) -> Iterator[bytes]:
    return _streams(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, _LZMA_MEMORY), "xz", payload)


def _lzma_alone(payload: bytes) -> Iterator[bytes]:
    # The format has no mark of its own that could tell a second stream from what else may follow.
    return _streams(lambda: lzma.LZMADecompressor(lzma.FORMAT_ALONE, _LZMA_MEMORY), "", payload)


def _bzip2(payload: bytes) -> Iterator[bytes]:
    return _streams(bz2.BZ2Decompressor, "bzip2", payload)


def _zstd(payload: bytes) -> Iterator[bytes]:
    return _streams(_Unzstd, "zstd", payload, _ZSTD_FEED)


def _lz4(payload: bytes) -> Iterator[bytes]:
    """Linux' LZ4: the legacy frame, blocks of (u32 size, data) until the end or the appended size."""
    at = 4
    while at + 4 < len(payload):
        (size,) = struct.unpack_from("<I", payload, at)
        at += 4
        if size == LZ4_MAGIC:  # another frame
            continue
        if at + size > len(payload) or size == 0:
            raise _Truncated
        yield lz4.block.decompress(payload[at : at + size], uncompressed_size=_LZ4_BLOCK)
        at += size


_DECODERS: Final[dict[str, Callable[[bytes], Iterator[bytes]]]] = {
    "gzip": _gzip,
    "xz": _xz,
    "lzma": _lzma_alone,
    "bzip2": _bzip2,
    "lz4": _lz4,
    "zstd": _zstd,
}
