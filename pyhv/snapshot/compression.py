# SPDX-License-Identifier: GPL-2.0-only
"""Decompressing what anybody may have written: no more than is expected, whatever it says of itself."""

import zstandard

from pyhv.errors import SnapshotError


def expand(data: bytes | memoryview, what: str, *, at_least: int = 0, at_most: int) -> bytes:
    """The contents of one zstd frame, of a size within bounds. SnapshotError: it is not that."""
    try:
        told = zstandard.frame_content_size(data)  # believed by the decompressor, so it is looked at first
        if not at_least <= told <= at_most:
            raise SnapshotError(f"has {what} of the wrong size, or of a size that is not possible")
        raw = zstandard.ZstdDecompressor().decompress(data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise SnapshotError(f"has {what} that cannot be decompressed ({error})") from error
    if len(raw) != told:
        raise SnapshotError(f"has {what} of the wrong size: not the one that it says")
    return raw
