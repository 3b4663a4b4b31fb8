# SPDX-License-Identifier: GPL-2.0-only
"""References that whoever uses a grant holds to its frame, so that the frame stays what it is meanwhile.

What is granted is a number that a guest has written: the frame must exist, and be the granter's own. For
writing it must be an ordinary page, and not become a page table or a descriptor page as long as it is held.
"""

from pyhv.abi.grants import GrantStatus
from pyhv.address import Mfn
from pyhv.grants.status import GrantError
from pyhv.mmu.frames import FrameTable


def check_granted(frames: FrameTable, number: int, owner: int) -> Mfn:
    """The granted frame of that number, which must be the granter's own. BAD_PAGE."""
    mfn = frames.owned(number, owner)
    if mfn is None:
        raise GrantError(GrantStatus.BAD_PAGE, f"granted {frames.describe(number)}")
    return mfn


def not_writable(frames: FrameTable, mfn: Mfn) -> GrantError:
    """The refusal of a grant that is to be written. GENERAL_ERROR: it is a page table, say."""
    return GrantError(GrantStatus.GENERAL_ERROR, f"writable grant of {frames.describe(mfn)}")


def take(frames: FrameTable, mfn: Mfn, readonly: bool) -> None:
    """Take a general reference, and a writable one if asked. GENERAL_ERROR: it cannot be written."""
    if readonly:
        frames.take(mfn)
    elif not frames.take_writable(mfn):
        raise not_writable(frames, mfn)


def drop(frames: FrameTable, mfn: Mfn, readonly: bool) -> None:
    """Drop what `take` took."""
    if readonly:
        frames.drop(mfn)
    else:
        frames.drop_writable(mfn)
