# SPDX-License-Identifier: GPL-2.0-only
"""The ramdisk as the guest gets it: what is gzip is unpacked for it, as Xen's domain builder does.

    file                                            the guest gets
    one gzip stream                                 its contents
    gzip that is damaged or followed by something   the file as it is
    anything else, such as cpio, xz or zstd         the file as it is

Of gzip the builder believes the last field, which is the size: it reserves 16 bytes more than that, or the
size of the file if that is larger, tells the guest so, and what it does not fill is zero. What follows the
first stream it would lose, so such a file is left to the guest. This module does not look inside an archive.
"""

from typing import Final, NamedTuple

from pyhv.errors import ImageError
from pyhv.loader.packed import MAX_UNPACKED, sniff

MAX_RAMDISK: Final = MAX_UNPACKED
"""Most bytes of a ramdisk, packed or not; Xen's builder has the same limit."""

_SLACK: Final = 16
_LEAST_GZIP: Final = 6
_SIZE_FIELD: Final = 4


class Ramdisk(NamedTuple):
    """What goes into the guest's memory, and in words where it comes from."""

    data: bytes
    told: str


def prepare(data: bytes, name: str, *, raw: bool = False) -> Ramdisk:
    """The ramdisk that a guest gets from the bytes `data` of the file `name`; with `raw`, just these.

    Raises ImageError for a file that is empty or too large.
    """
    if not data:
        raise ImageError(f"{name}: the ramdisk is empty; leave --ramdisk out if the kernel is to have none")
    if len(data) > MAX_RAMDISK:
        raise ImageError(f"{name}: the ramdisk is larger than {MAX_RAMDISK >> 20} MiB")
    if sniff(data) != "gzip" or len(data) < _LEAST_GZIP:
        return Ramdisk(data, "the file as it is")
    if raw:
        return Ramdisk(data, "gzip, left to the guest as asked for")
    size = int.from_bytes(data[-_SIZE_FIELD:], "little")
    if size + _SLACK > MAX_RAMDISK:
        return Ramdisk(data, "gzip of more than 1 GiB, so it is left to the guest")
    from pyhv.loader.decompress import gunzip  # with a library for each format

    room = max(size + _SLACK, len(data))
    unpacked = gunzip(data, size)
    if unpacked is None:
        return Ramdisk(data.ljust(room, b"\0"), "gzip, but not one whole stream, so it is left to the guest")
    unpacked.write(bytes(room - size))
    return Ramdisk(unpacked.getvalue(), "gzip, unpacked for the guest")
