# SPDX-License-Identifier: GPL-2.0-only
"""From a file on disk to the ELF image inside it: a bzImage's payload, a compressed file, or both.

The bzImage setup header is specified by Linux' x86 boot protocol (2.08 and later tell where the payload
lies). This module does not look inside the ELF, and leaves compression to `decompress.py`.

    0x1f1 setup_sects u8 | 0x202 "HdrS" | 0x206 version u16
    0x248 payload_offset u32 (from the end of the setup sectors) | 0x24c payload_length u32

Linux appends the unpacked size (4 bytes) to most payloads; it is not needed.
"""

import struct
from typing import Final, NamedTuple

from pyhv.errors import ImageError
from pyhv.loader.packed import sniff

ELF_MAGIC: Final = b"\x7fELF"


class Unpacked(NamedTuple):
    """An ELF image and how the file held it, such as "ELF", "ELF (gzip)" or "bzImage (xz) in gzip"."""

    elf: bytes
    kind: str


def unpack(data: bytes, name: str) -> Unpacked:
    """Return the ELF image in `data`; ImageError if there is none or it cannot be unpacked."""
    if data.startswith(ELF_MAGIC):
        return Unpacked(data, "ELF")
    if _is_bzimage(data):
        return _unpack_payload(data, name)
    compression = sniff(data)
    if compression is None:
        found = f"begins with {data[:4].hex(' ')}" if data else "is empty"
        raise ImageError(
            f"{name}: it {found}, so it is neither an ELF file, a bzImage nor one of them compressed; "
            "give a kernel such as vmlinuz or vmlinux"
        )
    inside = _expand(compression, data, name)
    if _is_bzimage(inside):
        elf, kind = _unpack_payload(inside, name)
        return Unpacked(elf, f"{kind} in {compression}")
    return _checked(inside, "ELF", compression, name)


def _expand(compression: str, payload: bytes, name: str) -> bytes:
    from pyhv.loader.decompress import expand  # with a library for each format

    return expand(compression, payload, name)


def _is_bzimage(data: bytes) -> bool:
    return data[0x202:0x206] == b"HdrS" and not data.startswith(ELF_MAGIC)


def _unpack_payload(data: bytes, name: str) -> Unpacked:
    payload = _payload(data, name)
    if payload.startswith(ELF_MAGIC):
        return Unpacked(payload, "bzImage (uncompressed)")
    compression = sniff(payload)
    if compression is None:
        raise ImageError(
            f"{name}: the bzImage's payload begins with {payload[:4].hex(' ')}, no known compression"
        )
    return _checked(_expand(compression, payload, name), "bzImage", compression, name)


def _checked(inside: bytes, container: str, compression: str, name: str) -> Unpacked:
    if not inside.startswith(ELF_MAGIC):
        raise ImageError(f"{name}: what its {compression} stream unpacks to is not an ELF file")
    return Unpacked(inside, f"{container} ({compression})")


def _payload(data: bytes, name: str) -> bytes:
    if len(data) < 0x250:
        raise ImageError(f"{name}: the bzImage ends within its setup header; the file is truncated")
    (version,) = struct.unpack_from("<H", data, 0x206)
    if version < 0x208:
        raise ImageError(
            f"{name}: a bzImage of boot protocol {version >> 8}.{version & 0xFF:02}, too old to tell where "
            "its kernel lies (2.08 is needed); give the vmlinux"
        )
    offset, length = struct.unpack_from("<II", data, 0x248)
    start = (data[0x1F1] + 1) * 512 + offset
    if length == 0:
        raise ImageError(f"{name}: the bzImage has an empty payload")
    if start + length > len(data):
        raise ImageError(
            f"{name}: the bzImage's payload ends at byte {start + length}, the file at byte {len(data)}; "
            "the file is truncated"
        )
    return data[start : start + length]
