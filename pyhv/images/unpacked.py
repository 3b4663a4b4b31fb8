# SPDX-License-Identifier: GPL-2.0-only
"""Kernels that were unpacked before: unpacking a distribution's kernel takes longer than booting a small one.

What a compressed image unpacks to is kept in the cache directory under the hash of the compressed file, the
last few of them. The cache is a convenience: where it cannot be read or written, the image is unpacked.
"""

import hashlib
import os
from pathlib import Path
from typing import Final

from pyhv.cache import cache_directory, store_whole
from pyhv.errors import EnvironmentProblem
from pyhv.loader.bzimage import ELF_MAGIC, Unpacked, unpack

WORTH_KEEPING: Final = 1 << 20
"""Compressed images below this size (bytes) unpack in no time."""
KEPT: Final = 4
"""Unpacked kernels that stay in the cache."""
_FORMAT: Final = b"pyhv unpacked 1"


def unpack_once(data: bytes, name: str) -> Unpacked:
    """As `pyhv.loader.bzimage.unpack`, remembering the answer. ImageError."""
    if data.startswith(ELF_MAGIC) or len(data) < WORTH_KEEPING:
        return unpack(data, name)
    try:
        directory = cache_directory() / "unpacked"
    except EnvironmentProblem:
        return unpack(data, name)
    path = directory / hashlib.blake2b(data, digest_size=16).hexdigest()
    known = _recall(path)
    if known is not None:
        return known
    fresh = unpack(data, name)
    _remember(path, fresh)
    return fresh


def _recall(path: Path) -> Unpacked | None:
    """What an earlier run has kept, if it is whole."""
    try:
        kept = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    heading, _, rest = kept[:256].partition(b"\n")
    kind, _, rest = rest.partition(b"\n")
    size, newline, _ = rest.partition(b"\n")
    elf = kept[len(heading) + len(kind) + len(size) + 3 :]
    whole = heading == _FORMAT and newline and size.isdigit() and len(elf) == int(size)
    return Unpacked(elf, kind.decode("ascii", "replace")) if whole and elf.startswith(ELF_MAGIC) else None


def _remember(path: Path, fresh: Unpacked) -> None:
    """Keep an unpacked kernel, and let the oldest go."""
    heading = b"%s\n%s\n%d\n" % (_FORMAT, fresh.kind.encode("ascii"), len(fresh.elf))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store_whole(path, heading + fresh.elf)
        others = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime, reverse=True)
        for old in others[KEPT:]:
            old.unlink(missing_ok=True)
    except OSError:
        return  # a full or read-only disk: unpack again next time
