# SPDX-License-Identifier: GPL-2.0-only
"""The refusal of a grant operation."""

from pyhv.abi.grants import GrantStatus


class GrantError(Exception):
    """One grant operation's refusal: `status` goes to the guest, `why` to the trace."""

    def __init__(self, status: GrantStatus, why: str = "") -> None:
        super().__init__(status, why)
        self.status = status
        self.why = why

    def __str__(self) -> str:
        return f"{self.status.name}: {self.why}"
