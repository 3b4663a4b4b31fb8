# SPDX-License-Identifier: GPL-2.0-only
"""Entries of page tables: mmu_update, update_va_mapping (public header `xen.h`).

Decoding and order of checks are here; the rules of approval are `mmu/tables.py`.
"""

from typing import Final

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import UVMF_FLUSH_MASK, UVMF_INVLPG, Hypercall, Mmu
from pyhv.abi.structs import MmuUpdate
from pyhv.address import PAGE_MASK, PAGE_SIZE, Va, guest_may_use
from pyhv.errors import XenError
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.mmulists import check_domains, perform_each, tell_done
from pyhv.hypercalls.signature import Ptr, u32, u64, ulong
from pyhv.hypercalls.table import hypercall
from pyhv.mmu.frames import L1, L4, SEGDESC, WRITABLE

_REQUEST: Final = MmuUpdate.layout64.packer


@hypercall(Hypercall.MMU_UPDATE)
def mmu_update(call: Call, requests: Ptr, count: u32, done: Ptr, foreigndom: u32) -> int:
    """Change page-table entries by machine address, or the M2P: a list of `MmuUpdate`. Gives way.

    ESRCH: no domain `foreigndom`; EPERM: not the caller; then for each entry EFAULT: it cannot be read;
    ENOSYS: no such command in its low bits; EINVAL: the frame is not the caller's, or holds descriptors, or
    what the entry shall say is refused. The first refusal ends the list. `*done` is how many were done, in
    any case but that of the domain.
    """
    check_domains(call, foreigndom)
    if count == 1 and requests & PAGE_MASK <= PAGE_SIZE - _REQUEST.size and _only_one(call, requests, done):
        return 0

    def perform(raw: bytes) -> None:
        _update(call, *_REQUEST.unpack(raw))

    return perform_each(call, (requests, count, done, foreigndom), _REQUEST.size, perform)


def _only_one(call: Call, requests: int, done: int) -> bool:
    """A list of one entry within a page, by far the most common one: `perform_each` without its loop.

    False, and nothing is done: it is of an upper table, whose approval may take more than one turn.
    """
    try:
        address, value = _REQUEST.unpack_from(call.domain.ram.raw, call.memory.for_read(requests))
        mfn = address >> 12
        if mfn < call.frames.count and L1 < call.frames.type[mfn] <= L4:
            return False
        _update(call, address, value)
    except XenError:
        tell_done(call, done, 0)
        raise
    tell_done(call, done, 1)
    return True


def _update(call: Call, pointer: int, value: int) -> None:
    command = pointer & 7
    frames = call.frames
    mfn = pointer >> 12
    if command == Mmu.MACHPHYS_UPDATE:
        call.own_frame(mfn)
        assert frames.m2p is not None
        frames.m2p[mfn] = value
        return
    if command > Mmu.PT_UPDATE_NO_TRANSLATE:
        raise XenError(Errno.ENOSYS, f"mmu_update command {command}")
    address = pointer & ~7
    if not 0 < mfn < frames.count or frames.owner[mfn] != call.domain.domid:
        raise XenError(Errno.EINVAL, f"mmu_update of {frames.describe(mfn)}")
    preserve = command == Mmu.PT_UPDATE_PRESERVE_AD
    kind = frames.type[mfn] if frames.type_count[mfn] else WRITABLE
    if kind == L1:
        call.tables.update_l1(address, value, preserve)
    elif L1 < kind <= L4:
        call.tables.update_upper(address, kind, value, preserve)
    elif kind == SEGDESC:
        raise XenError(Errno.EINVAL, f"mmu_update of {frames.describe(mfn)}")
    else:
        call.tables.write_plain(address, value)


@hypercall(Hypercall.UPDATE_VA_MAPPING)
def update_va_mapping(call: Call, va: ulong, pte: u64, flags: ulong) -> int:
    """Change the leaf entry that maps a virtual address, and flush as the low bits of `flags` say (UVMF).

    EINVAL: an address outside the guest's space, or that no L1 maps, or what the entry shall say is refused;
    then, the entry changed, EINVAL: no such flush; EFAULT: the mask of vCPUs cannot be read.
    """
    if not guest_may_use(va, call.width):
        raise XenError(Errno.EINVAL, f"update_va_mapping of {va:#x}")
    address = call.memory.leaf_entry(Va(va))
    frames = call.frames
    if address is None or frames.type[address >> 12] != L1 or not frames.type_count[address >> 12]:
        raise XenError(Errno.EINVAL, f"no L1 table maps {va:#x}")
    call.tables.update_l1(address, pte)
    kind = flags & UVMF_FLUSH_MASK
    if kind == UVMF_FLUSH_MASK:
        raise XenError(Errno.EINVAL, "update_va_mapping flush type 3")
    if kind:
        mask = flags & ~UVMF_FLUSH_MASK & ~4
        if mask:
            call.read_word(mask)
        if kind == UVMF_INVLPG:
            call.tables.flush_page(va)
        else:
            call.tables.flush = True
    return 0


@hypercall(Hypercall.UPDATE_VA_MAPPING_OTHERDOMAIN)
def update_va_mapping_otherdomain(call: Call, va: ulong, pte: u64, flags: ulong, domid: u32) -> int:
    """As update_va_mapping, for frames of another domain, which no domU may name: of the caller itself only.

    ESRCH: no such domain; EPERM: not the caller; then as update_va_mapping.
    """
    call.own(domid & 0xFFFF)
    return update_va_mapping(call, va, pte, flags)
