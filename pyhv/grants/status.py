# SPDX-License-Identifier: GPL-2.0-only
"""What a grant operation answers: the GNTST codes of the public header `grant_table.h`."""

import enum


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


class GrantError(Exception):
    """One grant operation's refusal: `status` goes to the guest, `why` to the trace."""

    def __init__(self, status: GrantStatus, why: str = "") -> None:
        super().__init__(status, why)
        self.status = status
        self.why = why

    def __str__(self) -> str:
        return f"{self.status.name}: {self.why}"
