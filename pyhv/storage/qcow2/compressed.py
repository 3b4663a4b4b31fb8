# SPDX-License-Identifier: GPL-2.0-only
"""Compressed clusters of a qcow2 image: read, and never written.

Each is one stream, raw deflate with a window of 4 KiB or zstd, that makes exactly one cluster. Streams come
from anybody: no more than a cluster is ever made of one.
"""

from collections import OrderedDict
from typing import Final

from pyhv.storage.disk import DiskError
from pyhv.storage.qcow2.header import ZSTD

_WINDOW: Final = -12
"""Of zlib: raw, 2^12 bytes."""
_LARGEST_WINDOW: Final = 8 << 20
_KEPT: Final = 8
"""Clusters that are remembered: a guest reads them in pieces."""


def expand(packed: bytes, size: int, kind: int, name: str) -> bytes:
    """The cluster of `size` bytes; `packed` may have bytes behind the stream. DiskError."""
    import zlib  # few images need these

    import zstandard

    try:
        if kind == ZSTD:
            with zstandard.ZstdDecompressor(max_window_size=_LARGEST_WINDOW).stream_reader(packed) as stream:
                found = stream.read(size)
        else:
            found = zlib.decompressobj(_WINDOW).decompress(packed, size)
    except (zlib.error, zstandard.ZstdError) as error:
        raise DiskError(f"{name}: has a compressed cluster that is damaged ({error})") from error
    if len(found) != size:
        raise DiskError(
            f"{name}: has a compressed cluster that is damaged: {len(found)} bytes come out of it"
        )
    return found


class Expanded:
    """The clusters that were expanded last, by their entry in L2. Its caller holds a lock."""

    def __init__(self) -> None:
        self._kept: OrderedDict[int, bytes] = OrderedDict()

    def get(self, entry: int) -> bytes | None:
        """The cluster, if it is remembered."""
        return self._kept.get(entry)

    def add(self, entry: int, cluster: bytes) -> None:
        """Remember it; the one that came first is forgotten."""
        if len(self._kept) >= _KEPT:
            self._kept.popitem(last=False)
        self._kept[entry] = cluster

    def drop(self, entry: int) -> None:
        """It is not there any more."""
        self._kept.pop(entry, None)
