# SPDX-License-Identifier: GPL-2.0-only
"""In which format a file is packed, by the magic number it begins with: of those that Linux kernels come in.

It stands apart from `decompress.py`, which is imported when there is something to unpack.
"""

import struct
from typing import Final

MAX_UNPACKED: Final = 1 << 30
"""Most bytes that one file, or the payload of a bzImage, may unpack to; Xen's builder has the same limit."""
LZ4_MAGIC: Final = 0x184C2102
MAGIC_SIZE: Final = 8
"""Bytes that are enough to know any format."""

_MAGICS: Final = {
    b"\x1f\x8b": "gzip",
    b"\xfd7zXZ\0": "xz",
    b"\x5d\0": "lzma",
    b"BZh": "bzip2",
    struct.pack("<I", LZ4_MAGIC): "lz4",
    b"\x28\xb5\x2f\xfd": "zstd",
    b"\x89LZO": "lzo",
}


def sniff(payload: bytes) -> str | None:
    """The name of the format that `payload` begins in."""
    if payload[1:4] == b"\x2a\x4d\x18" and payload[0] >> 4 == 5:  # a frame of zstd that is to be skipped
        return "zstd"
    return next((format_ for magic, format_ in _MAGICS.items() if payload.startswith(magic)), None)
