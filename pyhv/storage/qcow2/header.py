# SPDX-License-Identifier: GPL-2.0-only
"""The header of a qcow2 image, and what of it pyhv takes.

    offset  size                                     offset  size
         0  4  magic, "QFI" and 0xfb                     48  8  where the refcount table is
         4  4  version, 2 or 3                           56  4  how many clusters it has
         8  8  where the base's name is, or 0            60  4  how many internal snapshots
        16  4  how long that is                          64  8  where the table of these is
        20  4  bits of an offset within a cluster            version 3 only:
        24  8  size of the disk, in bytes                72  8  features: incompatible
        32  4  encryption: 0, 1 AES, 2 LUKS              80  8  ... compatible
        36  4  how many entries L1 has                   88  8  ... to be cleared by who does not know them
        40  8  where L1 is                               96  4  refcounts have 1 << this many bits
                                                        100  4  length of this header
                                                        104  1  compression: 0 zlib, 1 zstd; if it is so long

Behind it are extensions - u32 type, u32 length, so many bytes, padded to 8 - up to one of type 0, and then
mostly the base's name. All of it lies in the first cluster. A file may come from anybody: each number is
compared with what the file has and with a limit, and a feature that is not known is a refusal.
"""

import errno
import struct
from typing import Final

from pyhv.frozen import frozen
from pyhv.storage.disk import SECTOR, DiskError

MAGIC: Final = b"QFI\xfb"
_V2: Final = struct.Struct(">4sIQIIQIIQQIIQ")
_V3: Final = struct.Struct(">QQQII")
_EXTENSION: Final = struct.Struct(">II")
_END: Final = 0
_BACKING_FORMAT: Final = 0xE2792ACA
_FEATURE_NAMES: Final = 0x6803F857
_BITMAPS: Final = 0x23852875
V2_LENGTH: Final = _V2.size
V3_LENGTH: Final = _V2.size + _V3.size

DIRTY: Final = 1 << 0
"""Refcounts may be wrong: it was written with lazy refcounts and not closed."""
CORRUPT: Final = 1 << 1
_COMPRESSION: Final = 1 << 3
_TAKEN: Final = DIRTY | CORRUPT | _COMPRESSION
_REFUSED: Final = {2: "an external data file", 4: "extended L2 entries (subclusters)"}
"""Incompatible features that have a name and are not taken."""

_MIN_CLUSTER_BITS: Final = 9
_MAX_CLUSTER_BITS: Final = 21
_MAX_REFCOUNT_ORDER: Final = 6
MOST_L1: Final = 32 << 20
"""Bytes of an L1 table; so QEMU has it."""
MOST_REFCOUNT_TABLE: Final = 8 << 20
"""Bytes of a refcount table."""
LONGEST_NAME: Final = 1023
"""Bytes of a base's name."""
_MOST_SNAPSHOTS: Final = 65536
ZLIB: Final = 0
ZSTD: Final = 1


@frozen
class Header:
    """What an image says of itself, checked."""

    version: int
    cluster_bits: int
    size: int
    """Bytes of the disk, a multiple of SECTOR."""
    l1_entries: int
    l1_offset: int
    refcount_table: int
    """Where it is."""
    refcount_table_clusters: int
    refcount_order: int = 4
    backing: str | None = None
    """The base's name, as it is written there."""
    backing_format: str | None = None
    snapshots: int = 0
    snapshots_offset: int = 0
    incompatible: int = 0
    compatible: int = 0
    autoclear: int = 0
    bitmaps: bool = False
    """It has bitmaps of what was changed, for backups."""
    compression: int = ZLIB
    length: int = V3_LENGTH

    @property
    def cluster_size(self) -> int:
        """Bytes."""
        return 1 << self.cluster_bits

    @property
    def refcount_bits(self) -> int:
        """Of each number in a refcount block."""
        return 1 << self.refcount_order

    @property
    def obstacle(self) -> str | None:
        """Why it can be read but not written; None: it can."""
        if self.incompatible & CORRUPT:
            return "is marked as damaged: qemu-img check -r all repairs it"
        if self.incompatible & DIRTY:
            return "was not closed by who wrote it last: qemu-img check -r all repairs it"
        if self.snapshots:
            return (
                f"has {self.snapshots} internal snapshots, which pyhv does not keep: delete them with "
                "qemu-img snapshot -d, or give the guest an overlay"
            )
        if self.bitmaps:
            return (
                "has persistent bitmaps, which pyhv does not keep: remove them with qemu-img bitmap, or give "
                "the guest "
                "an overlay"
            )
        return None


def l1_needed(size: int, cluster_bits: int) -> int:
    """Entries of the L1 table of a disk of so many bytes."""
    return -(-size >> (2 * cluster_bits - 3))


def parse(head: bytes, file_size: int, name: str) -> Header:
    """The header of an image that begins with `head`, its first cluster or all of it; DiskError."""
    try:
        return _parse(head, file_size)
    except _Wrong as wrong:
        raise DiskError(f"{name}: {wrong}", errno.EINVAL) from None


class _Wrong(Exception):
    """What is wrong with a header, continuing a sentence that begins with the image's name."""


def _parse(head: bytes, file_size: int) -> Header:
    if len(head) < V2_LENGTH:
        raise _Wrong(f"is truncated: it has {len(head)} bytes, less than the header of a qcow2 image")
    (magic, version, backing_at, backing_length, bits, size, encryption, l1_entries, l1_offset, table,
     table_clusters, snapshots, snapshots_offset) = _V2.unpack_from(head)  # fmt: skip
    if magic != MAGIC:
        raise _Wrong("is no qcow2 image")
    if version not in (2, 3):
        raise _Wrong(f"is of version {version} of qcow2, and pyhv reads 2 and 3")
    if not _MIN_CLUSTER_BITS <= bits <= _MAX_CLUSTER_BITS:
        raise _Wrong(
            f"has clusters of 2^{bits} bytes, which is not within 2^{_MIN_CLUSTER_BITS} .. "
            f"2^{_MAX_CLUSTER_BITS}"
        )
    if encryption:
        raise _Wrong("is encrypted, which pyhv does not read: decrypt it with qemu-img convert")
    incompatible, compatible, autoclear, order, length, compression = _features(head, version)
    first = head[: 1 << bits]
    if length > len(first):
        raise _Wrong(f"has a header of {length} bytes, which its first cluster does not hold")
    extensions = _extensions(first, length, backing_at if backing_length else 0)
    _check_features(incompatible, extensions.get(_FEATURE_NAMES, b""))
    header = Header(
        version=version, cluster_bits=bits, size=size, l1_entries=l1_entries, l1_offset=l1_offset,
        refcount_table=table, refcount_table_clusters=table_clusters, refcount_order=order,
        backing=_backing(first, backing_at, backing_length, length),
        backing_format=_text(extensions[_BACKING_FORMAT]) if _BACKING_FORMAT in extensions else None,
        snapshots=snapshots, snapshots_offset=snapshots_offset, incompatible=incompatible,
        compatible=compatible, autoclear=autoclear, bitmaps=_BITMAPS in extensions,
        compression=compression, length=length,
    )  # fmt: skip
    _check_numbers(header, file_size)
    return header


def _features(head: bytes, version: int) -> tuple[int, int, int, int, int, int]:
    """Features (incompatible, compatible, autoclear), refcount order, length of the header, compression."""
    if version == 2:
        return 0, 0, 0, 4, V2_LENGTH, ZLIB
    if len(head) < V3_LENGTH:
        raise _Wrong(f"is truncated: it has {len(head)} bytes, less than the header of a qcow2 image")
    incompatible, compatible, autoclear, order, length = _V3.unpack_from(head, V2_LENGTH)
    if order > _MAX_REFCOUNT_ORDER:
        raise _Wrong(f"has refcounts of 2^{order} bits, and 2^{_MAX_REFCOUNT_ORDER} is the most")
    if length < V3_LENGTH or length % 8:
        raise _Wrong(f"has a header of {length} bytes, which cannot be")
    compression = ZLIB
    if length > V3_LENGTH and len(head) > V3_LENGTH:
        compression = head[V3_LENGTH]
    if bool(incompatible & _COMPRESSION) != (compression != ZLIB):
        raise _Wrong(f"has a compression of type {compression}, and its features say otherwise")
    if compression not in (ZLIB, ZSTD):
        raise _Wrong(f"has a compression of type {compression}, and pyhv knows 0 (zlib) and 1 (zstd)")
    return incompatible, compatible, autoclear, order, length, compression


def _extensions(first: bytes, at: int, end: int) -> dict[int, bytes]:
    """The header's extensions, up to the base's name or the end of the first cluster."""
    end = end or len(first)
    found: dict[int, bytes] = {}
    while at + _EXTENSION.size <= min(end, len(first)):
        kind, length = _EXTENSION.unpack_from(first, at)
        at += _EXTENSION.size
        if kind == _END:
            break
        if length > end - at:
            raise _Wrong(
                f"has an extension {kind:#010x} of {length} bytes in its header, which is beyond its end"
            )
        found.setdefault(kind, first[at : at + length])
        at += -(-length // 8) * 8
    return found


def _check_features(incompatible: int, names: bytes) -> None:
    unknown = incompatible & ~_TAKEN
    if not unknown:
        return
    bit = (unknown & -unknown).bit_length() - 1
    said = {
        names[at + 1]: names[at + 2 : at + 48].rstrip(b"\0")
        for at in range(0, len(names) - 47, 48)
        if names[at] == 0
    }
    name = _REFUSED.get(bit) or (_text(said[bit]) if bit in said else "")
    if bit in _REFUSED:
        raise _Wrong(f"has {name}, which pyhv does not read: convert it with qemu-img convert")
    raise _Wrong(f"has the feature {name or f'number {bit}'}, which pyhv does not know")


def _backing(first: bytes, at: int, length: int, header: int) -> str | None:
    if not at or not length:
        return None
    if length > LONGEST_NAME or at < header or at + length > len(first):
        raise _Wrong(f"has the name of its base at {at}, of {length} bytes, which cannot be")
    name = first[at : at + length]
    if b"\0" in name:
        raise _Wrong("has a base whose name has a byte 0 in it")
    return name.decode("utf-8", "surrogateescape")


def _text(raw: bytes) -> str:
    """As it may be shown: nothing that a terminal would take for a command."""
    return "".join(c if c.isprintable() else "?" for c in raw[:64].decode("utf-8", "replace"))


def _check_numbers(header: Header, file_size: int) -> None:
    cluster = header.cluster_size
    if header.size % SECTOR or not header.size:
        raise _Wrong(f"has a disk of {header.size} bytes, which is no number of sectors")
    if header.size >= 1 << 63:
        raise _Wrong(f"has a disk of {header.size} bytes, which is too large")
    if header.l1_entries * 8 > MOST_L1:
        raise _Wrong(f"has an L1 table of {header.l1_entries} entries, and {MOST_L1 // 8} are the most")
    if header.l1_entries < l1_needed(header.size, header.cluster_bits):
        raise _Wrong(f"has an L1 table of {header.l1_entries} entries, too few for its {header.size} bytes")
    if not header.refcount_table_clusters:
        raise _Wrong("has no refcount table")
    if header.refcount_table_clusters << header.cluster_bits > MOST_REFCOUNT_TABLE:
        raise _Wrong(f"has a refcount table of {header.refcount_table_clusters} clusters, which is too large")
    if header.snapshots > _MOST_SNAPSHOTS:
        raise _Wrong(f"has {header.snapshots} internal snapshots, and {_MOST_SNAPSHOTS} are the most")
    end = -(-file_size // cluster) * cluster
    for what, at, length in (
        ("L1 table", header.l1_offset, header.l1_entries * 8),
        ("refcount table", header.refcount_table, header.refcount_table_clusters * cluster),
    ):
        if at % cluster or not at or at + length > end:
            raise _Wrong(f"has its {what} at {at}, {length} bytes, which is not within its {file_size} bytes")


def pack(header: Header) -> bytes:
    """The first bytes of a new image of version 3, up to where its first cluster holds only zeros."""
    name = (header.backing or "").encode("utf-8", "surrogateescape")
    extensions = b""
    if header.backing_format is not None:
        form = header.backing_format.encode()
        extensions += _EXTENSION.pack(_BACKING_FORMAT, len(form)) + form + bytes(-len(form) % 8)
    extensions += _EXTENSION.pack(_END, 0)
    at = V3_LENGTH + len(extensions) if name else 0
    base = _V2.pack(
        MAGIC, 3, at, len(name), header.cluster_bits, header.size, 0, header.l1_entries, header.l1_offset,
        header.refcount_table, header.refcount_table_clusters, 0, 0,
    )  # fmt: skip
    rest = _V3.pack(0, 0, 0, header.refcount_order, V3_LENGTH)
    return base + rest + extensions + name


def place_of_refcount_table(offset: int, clusters: int) -> tuple[int, bytes]:
    """Where in the header the place of the refcount table is, and what is written there; one store."""
    return 48, struct.pack(">QI", offset, clusters)


AUTOCLEAR_AT: Final = 88
"""Where the features are that a writer who does not know them clears."""
