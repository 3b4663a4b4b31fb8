# SPDX-License-Identifier: GPL-2.0-only
"""Where an image came from, so that it can be found again, and by what it is known to be the same.

What is found again is not believed to be what it was: its fingerprint tells.
"""

import enum
import hashlib
from dataclasses import fields
from typing import Any, Final

from pyhv.frozen import frozen
from pyhv.loader.image import KernelImage

_SIZE: Final = 16


@frozen
class Origin:
    """A kernel and its ramdisk in the words with which a person named them; paths are absolute."""

    image: str = ""
    """A name or a path; empty: it came as bytes."""
    flavour: str = ""
    suite: str | None = None
    ramdisk: str | None = None
    """A path; empty: it came as bytes; None: the one that belongs to the image, or none."""
    raw_ramdisk: bool = False
    """It was not to be unpacked."""
    drivers: bool = False
    """Drivers for its devices are behind the ramdisk."""


NOWHERE: Final = Origin()
"""Of what came as bytes, or as an object."""


def fingerprint(image: KernelImage) -> bytes:
    """16 bytes that differ if anything differs that a guest could notice of its image."""
    digest = hashlib.sha256()
    said = [image.elf_class, image.machine, image.e_entry, _plain(image.notes)]
    digest.update(repr(said).encode())
    for segment in image.segments:
        digest.update(repr((segment[:4], len(segment.data), segment.flags)).encode())
        digest.update(segment.data)
    if image.bsd_symbols is not None:
        digest.update(image.bsd_symtab)
    return digest.digest()[:_SIZE]


def fingerprint_of(data: bytes) -> bytes:
    """The same for a ramdisk."""
    return hashlib.sha256(data).digest()[:_SIZE]


def _plain(value: Any) -> Any:
    """What has the same representation under every Python: enumerations have not."""
    if isinstance(value, enum.Enum):
        return value.value
    if isinstance(value, tuple):
        return [_plain(item) for item in value]
    if hasattr(value, "__dataclass_fields__"):
        return [(field.name, _plain(getattr(value, field.name))) for field in fields(value)]
    return value
