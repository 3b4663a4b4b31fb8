# SPDX-License-Identifier: GPL-2.0-only
"""Entries of page tables: mmu_update, update_va_mapping (public header `xen.h`).

What is done, in its order, is `mmuentries.py`; the rules of approval are `mmu/tables.py`.
"""

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall
from pyhv.address import guest_may_use
from pyhv.errors import XenError
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.mmuentries import update_entries, update_mapping
from pyhv.hypercalls.mmulists import check_domains
from pyhv.hypercalls.signature import Ptr, u32, u64, ulong
from pyhv.hypercalls.table import hypercall


@hypercall(Hypercall.MMU_UPDATE)
def mmu_update(call: Call, requests: Ptr, count: u32, done: Ptr, foreigndom: u32) -> int:
    """Change page-table entries by machine address, or the M2P: a list of `MmuUpdate`. Gives way.

    ESRCH: no domain `foreigndom`; EPERM: not the caller; then for each entry EFAULT: it cannot be read;
    ENOSYS: no such command in its low bits; EINVAL: the frame is not the caller's, or holds descriptors, or
    what the entry shall say is refused. The first refusal ends the list. `*done` is how many were done, in
    any case but that of the domain.
    """
    check_domains(call, foreigndom)
    return update_entries(call, requests, count, done, foreigndom)


@hypercall(Hypercall.UPDATE_VA_MAPPING)
def update_va_mapping(call: Call, va: ulong, pte: u64, flags: ulong) -> int:
    """Change the leaf entry that maps a virtual address, and flush as the low bits of `flags` say (UVMF).

    EINVAL: an address outside the guest's space, or that no L1 maps, or what the entry shall say is refused;
    then, the entry changed, EINVAL: no such flush; EFAULT: the mask of vCPUs cannot be read.
    """
    if not guest_may_use(va, call.width):
        raise XenError(Errno.EINVAL, f"update_va_mapping of {va:#x}")
    return update_mapping(call, va, pte, flags)


@hypercall(Hypercall.UPDATE_VA_MAPPING_OTHERDOMAIN)
def update_va_mapping_otherdomain(call: Call, va: ulong, pte: u64, flags: ulong, domid: u32) -> int:
    """As update_va_mapping, for frames of another domain, which no domU may name: of the caller itself only.

    ESRCH: no such domain; EPERM: not the caller; then as update_va_mapping.
    """
    call.own(domid & 0xFFFF)
    return update_va_mapping(call, va, pte, flags)
