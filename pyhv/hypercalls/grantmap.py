# SPDX-License-Identifier: GPL-2.0-only
"""grant_table_op: map and unmap grants (public header `grant_table.h`).

A mapping has two halves. The host half is a page-table entry, which holds its references to the frame as any
other entry does, and drops them if the guest overwrites it by other means. The device half holds references
alone. Both count as uses of the granter's entry until they are unmapped.
"""

from typing import Final

from pyhv.abi.grants import GrantStatus, MapFlag
from pyhv.abi.numbers import Gnttab
from pyhv.abi.structs import GnttabMapGrantRef, GnttabUnmapAndReplace, GnttabUnmapGrantRef
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_MFN_MASK, PTE_NX, PTE_P, PTE_RW, PTE_US
from pyhv.address import MASK32, PAGE_SHIFT, Va, guest_may_use
from pyhv.grants.holding import check_granted, drop, take
from pyhv.grants.maptrack import Mapping
from pyhv.grants.status import GrantError
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.grants import living, on_each, table_of
from pyhv.mmu.frames import L1

_HALVES: Final = (MapFlag.DEVICE | MapFlag.HOST).value
_READONLY, _APPLICATION = MapFlag.READONLY.value, MapFlag.APPLICATION.value
_CONTAINS_PTE: Final = MapFlag.CONTAINS_PTE.value
"""As integers: a flag's own `&` takes ten times as long."""
_KEPT_FLAGS: Final = 0x1F


def _entry_address(call: Call, host_addr: int, flags: int) -> int:
    """Machine address of the L1 entry that a host mapping uses. GENERAL_ERROR."""
    frames = call.frames
    address: int | None
    if flags & _CONTAINS_PTE:
        if host_addr & 7:
            raise GrantError(GrantStatus.GENERAL_ERROR, f"PTE address {host_addr:#x}")
        address = host_addr
    else:
        usable = guest_may_use(host_addr, call.width)
        address = call.memory.leaf_entry(Va(host_addr)) if usable else None
    if address is None or not 0 < address >> PAGE_SHIFT < frames.count:
        raise GrantError(GrantStatus.GENERAL_ERROR, f"no page table for {host_addr:#x}")
    mfn = address >> PAGE_SHIFT
    if frames.owner[mfn] != call.domain.domid or frames.type[mfn] != L1 or not frames.type_count[mfn]:
        raise GrantError(GrantStatus.GENERAL_ERROR, f"{frames.describe(mfn)} is not an L1 of the caller")
    return address


# -- map ---------------------------------------------------------------------------------------------------


@on_each(Gnttab.MAP_GRANT_REF, GnttabMapGrantRef)
def map_grant_ref(call: Call, request: GnttabMapGrantRef) -> None:
    """Map a frame that another domain has granted, for the host (a page-table entry), for devices, or both.

    Status: BAD_GNTREF: neither half; BAD_DOMAIN; NO_SPACE: all handles are in use; BAD_GNTREF: beyond the
    table; GENERAL_ERROR: not granted in this way, or too often; BAD_PAGE: not the granter's frame;
    GENERAL_ERROR: it cannot be written, or no page table has the place.
    """
    flags = request.flags
    if not flags & _HALVES:
        raise GrantError(GrantStatus.BAD_GNTREF, "neither a host nor a device mapping")
    if request.dom != 0:
        living(call, request.dom)
    call.domain.maptrack.check_space()
    grants = table_of(call, request.dom, request.ref)
    readonly = bool(flags & _READONLY)
    halves = MapFlag(flags & _HALVES)
    mfn = grants.take(request.ref, call.domain.domid, readonly, halves)
    taken = 0
    try:
        check_granted(call.frames, mfn, grants.domid)
        for half in (MapFlag.DEVICE, MapFlag.HOST):
            if half in halves:
                take(call.frames, mfn, readonly)
                taken += 1
        if MapFlag.HOST in halves:
            address = _entry_address(call, request.host_addr, flags)
            entry = mfn << PAGE_SHIFT | PTE_P | PTE_A | PTE_D | PTE_NX | (flags >> 16 & 7) << 9
            entry |= (0 if readonly else PTE_RW) | (PTE_US if flags & _APPLICATION else 0)
            call.tables.map_granted(address, call.tables.adjust_leaf(entry))
    except GrantError:
        for _ in range(taken):
            drop(call.frames, mfn, readonly)
        grants.drop(request.ref, readonly, halves)
        raise
    mapping = Mapping(grants.domid, request.ref, MapFlag(flags & _KEPT_FLAGS), mfn)
    request.handle = call.domain.maptrack.add(mapping)
    request.dev_bus_addr = mfn << PAGE_SHIFT


# -- unmap -------------------------------------------------------------------------------------------------


@on_each(Gnttab.UNMAP_GRANT_REF, GnttabUnmapGrantRef)
def unmap_grant_ref(call: Call, request: GnttabUnmapGrantRef) -> None:
    """End the halves of a mapping whose addresses are named; 0 names none.

    Status: BAD_HANDLE; BAD_DEV_ADDR: not the frame's; GENERAL_ERROR: the page table no longer has it.
    """
    mapping, halves = call.domain.maptrack.select(request.handle, request.host_addr, request.dev_bus_addr)
    if MapFlag.HOST in halves:
        _replace_entry(call, mapping, request.host_addr, 0)
    if MapFlag.DEVICE in halves:
        drop(call.frames, mapping.frame, mapping.readonly)
    _end(call, request.handle, mapping, halves)


@on_each(Gnttab.UNMAP_AND_REPLACE, GnttabUnmapAndReplace)
def unmap_and_replace(call: Call, request: GnttabUnmapAndReplace) -> None:
    """End a mapping's host half, and move the entry of `new_addr` to its place.

    Status: BAD_HANDLE; GENERAL_ERROR: there is no such entry to move, or the page table no longer has the
    mapping.
    """
    mapping, halves = call.domain.maptrack.select(request.handle, request.host_addr, 0)
    if MapFlag.HOST in halves:
        _replace_entry(call, mapping, request.host_addr, request.new_addr)
    _end(call, request.handle, mapping, halves)


def _replace_entry(call: Call, mapping: Mapping, host_addr: int, new_addr: int) -> None:
    """Put the entry of `new_addr` (0: nothing) in the place of the one at `host_addr`, which maps the grant.

    GENERAL_ERROR: it does not, or there is no such place. As on Xen, the entry of `new_addr` is lost then.
    """
    tables = call.tables
    replacement = 0
    if new_addr:
        if MapFlag.CONTAINS_PTE in mapping.flags or (call.width == 32 and new_addr > MASK32):
            raise GrantError(GrantStatus.GENERAL_ERROR, f"nothing to move from {new_addr:#x}")
        replacement = tables.empty_leaf(_entry_address(call, new_addr, 0))
    try:
        address = _entry_address(call, host_addr, mapping.flags)
        entry = call.domain.ram.q[address >> 3]
        same = (entry & PTE_MFN_MASK) >> PAGE_SHIFT == mapping.frame and entry & PTE_P
        if not same or bool(entry & PTE_RW) == mapping.readonly:
            raise GrantError(GrantStatus.GENERAL_ERROR, "the mapping is no longer there")
    except GrantError:
        if replacement & PTE_P:
            tables.drop_leaf(replacement)
        raise
    tables.replace_leaf(address, replacement)
    tables.flush = True


def _end(call: Call, handle: int, mapping: Mapping, halves: MapFlag) -> None:
    """The halves have been unmapped: tell both accounts. The granter may have died meanwhile."""
    if not halves:
        return
    granter = call.host.any_domain(mapping.granter)
    if granter is not None:
        granter.grants.drop(mapping.ref, mapping.readonly, halves)
    call.domain.maptrack.end(handle, halves)
