# SPDX-License-Identifier: GPL-2.0-only
"""Flags and statuses of grants (public header `grant_table.h`). The operations are in `numbers.py`, their
structures in `structs.py`.
"""

import enum
from typing import Final

RESERVED_ENTRIES: Final = 8
"""References that the toolstack may fill before the guest starts: 0 console, 1 xenstore."""


class GrantStatus(enum.IntEnum):
    """GNTST codes: the `status` field of each grant operation."""

    OKAY = 0
    GENERAL_ERROR = -1
    BAD_DOMAIN = -2
    BAD_GNTREF = -3
    BAD_HANDLE = -4
    BAD_VIRT_ADDR = -5
    BAD_DEV_ADDR = -6
    NO_DEVICE_SPACE = -7
    PERMISSION_DENIED = -8
    BAD_PAGE = -9
    BAD_COPY_ARG = -10
    ADDRESS_TOO_BIG = -11
    EAGAIN = -12
    NO_SPACE = -13


class EntryFlag(enum.IntFlag):
    """Bits of an entry's flags (GTF)."""

    PERMIT_ACCESS = 1
    ACCEPT_TRANSFER = 2
    TRANSITIVE = 3
    TYPE_MASK = 3
    READONLY = 4
    READING = 8
    WRITING = 16
    SUB_PAGE = 256
    TRANSFER_COMMITTED = 4
    TRANSFER_COMPLETED = 8


class MapFlag(enum.IntFlag):
    """Flags of a mapping (GNTMAP). DEVICE and HOST are its two halves, each pinned on its own."""

    DEVICE = 1
    HOST = 2
    READONLY = 4
    APPLICATION = 8
    CONTAINS_PTE = 16


class CopyFlag(enum.IntFlag):
    """Flags of `gnttab_copy` (GNTCOPY): which side is a grant reference; the other is an own frame."""

    SOURCE_GREF = 1
    DEST_GREF = 2


class CacheFlag(enum.IntFlag):
    """Operations of `gnttab_cache_flush` (GNTTAB_CACHE)."""

    CLEAN = 1
    INVALIDATE = 2
