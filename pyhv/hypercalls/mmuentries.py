# SPDX-License-Identifier: GPL-2.0-only
"""mmu_update and update_va_mapping once they are decoded: which frame an entry is in decides what is done.

Nearly all are for one entry of an L1; that way is short and may be compiled. What an entry may say is
`mmu/tables.py`'s business, and how a list gives way that of `mmulists.py`.
"""

from typing import Final

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import UVMF_FLUSH_MASK, UVMF_INVLPG, Mmu
from pyhv.address import PAGE_MASK, PAGE_SIZE
from pyhv.errors import XenError
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.mmulists import perform_each, tell_done
from pyhv.mmu.frames import L1, L4, SEGDESC, WRITABLE

_REQUEST_SIZE: Final = 16
"""Bytes of an `MmuUpdate`: where, and what."""


def update_entries(call: Call, requests: int, count: int, done: int, foreigndom: int) -> int:
    """Perform a list of `MmuUpdate`."""
    if count == 1 and requests & PAGE_MASK <= PAGE_SIZE - _REQUEST_SIZE and _only_one(call, requests, done):
        return 0
    return perform_each(call, (requests, count, done, foreigndom), _REQUEST_SIZE, _update)


def _only_one(call: Call, requests: int, done: int) -> bool:
    """A list of one entry within a page, by far the most common one: `perform_each` without its loop.

    False, and nothing is done: it is of an upper table, whose approval may take more than one turn.
    """
    frames, memory = call.frames, call.memory
    try:
        words = memory.words2(requests)
        address, value = words[0], words[1]
        mfn = address >> 12
        if mfn < frames.count and L1 < frames.type[mfn] <= L4:
            return False
        update_entry(call, address, value)
    except XenError:
        tell_done(call, done, 0)
        raise
    if done:
        tell_done(call, done, 1)
    return True


def _update(call: Call, at: int) -> None:
    """Perform the `MmuUpdate` at an address of the guest's."""
    memory = call.memory
    words = memory.words2(at)
    update_entry(call, words[0], words[1])


def update_entry(call: Call, pointer: int, value: int) -> None:
    """Change one entry; the low bits of its machine address are the command."""
    command = pointer & 7
    frames, tables = call.frames, call.tables
    mfn = pointer >> 12
    if command == Mmu.MACHPHYS_UPDATE:
        call.own_frame(mfn)
        assert frames.m2p is not None
        frames.m2p[mfn] = value
        return
    if command > Mmu.PT_UPDATE_NO_TRANSLATE:
        raise XenError(Errno.ENOSYS, f"mmu_update command {command}")
    address = pointer & ~7
    if not 0 < mfn < frames.count or frames.owner[mfn] != tables.domid:
        raise XenError(Errno.EINVAL, f"mmu_update of {frames.describe(mfn)}")
    preserve = command == Mmu.PT_UPDATE_PRESERVE_AD
    kind = frames.type[mfn] if frames.type_count[mfn] else WRITABLE
    if kind == L1:
        tables.update_l1(address, value, preserve)
    elif L1 < kind <= L4:
        tables.update_upper(address, kind, value, preserve)
    elif kind == SEGDESC:
        raise XenError(Errno.EINVAL, f"mmu_update of {frames.describe(mfn)}")
    else:
        tables.write_plain(address, value)


def update_mapping(call: Call, va: int, pte: int, flags: int) -> int:
    """Change the leaf entry that maps an address of the guest's space, and flush as `flags` say (UVMF)."""
    frames, tables, memory = call.frames, call.tables, call.memory
    found = memory.leaf_entry(va)
    address = 0 if found is None else found  # frame 0 is never a table
    mfn = address >> 12
    if frames.type[mfn] != L1 or not frames.type_count[mfn]:
        raise XenError(Errno.EINVAL, f"no L1 table maps {va:#x}")
    tables.update_l1(address, pte)
    kind = flags & UVMF_FLUSH_MASK
    if kind == UVMF_FLUSH_MASK:
        raise XenError(Errno.EINVAL, "update_va_mapping flush type 3")
    if kind:
        mask = flags & ~UVMF_FLUSH_MASK & ~4
        if mask:
            call.read_word(mask)
        if kind == UVMF_INVLPG:
            tables.flush_page(va)
        else:
            tables.flush = True
    return 0
