# SPDX-License-Identifier: GPL-2.0-only
"""memory_op (public header `memory.h`): the questions about memory, and what a plain PV domain is refused.

The low 6 bits of the command are the operation; the rest is the extent at which a long call goes on, which
only some operations take. The calls that give and take frames are in `reservation` and `exchange`.
"""

import struct

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import MEMOP_EXTENT_SHIFT, Memory
from pyhv.abi.structs import (
    AcquireResource,
    AddToPhysmap,
    AddToPhysmapBatch,
    ForeignMemoryMap,
    MachphysMapping,
    MachphysMfnList,
    MemoryMap,
    MemoryReservation,
    RemoveFromPhysmap,
    VnumaTopologyInfo,
)
from pyhv.address import COMPAT_VIRT_START, HYPERVISOR_VIRT_START, Mfn
from pyhv.errors import XenError
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.table import Commands, Status, hypercall

commands = Commands("memory_op", Memory)
"""All sub-operations; `reservation` and `exchange` add theirs."""

_M2P_END, _COMPAT_M2P_END = 0xFFFF_8040_0000_0000, 0xFFE0_0000
_COMPAT_M2P_ENTRIES = (_COMPAT_M2P_END - COMPAT_VIRT_START) // 4
_M2P_STEP = 2 << 20
_E820 = struct.Struct("<QQI")
_E820_RAM = 1
_E820_MOST = 1024
_SPACE_GMFN_RANGE, _SPACE_GMFN_FOREIGN = 3, 4

_CONTINUED = frozenset({
    Memory.INCREASE_RESERVATION, Memory.DECREASE_RESERVATION, Memory.POPULATE_PHYSMAP, Memory.ADD_TO_PHYSMAP,
    Memory.ADD_TO_PHYSMAP_BATCH, Memory.ACQUIRE_RESOURCE,
})  # fmt: skip
"""Operations whose command may name a first extent."""
_COMMON = frozenset({
    Memory.MAXIMUM_RAM_PAGE, Memory.CURRENT_RESERVATION, Memory.MAXIMUM_RESERVATION, Memory.MAXIMUM_GPFN,
    Memory.EXCHANGE, Memory.REMOVE_FROM_PHYSMAP, Memory.CLAIM_PAGES, Memory.GET_VNUMAINFO,
})  # fmt: skip
"""Those that refuse one with EINVAL. To all others the command is an unknown one then."""


@hypercall(12, "memory_op", "command:ulong argument:ptr")
def memory_op(call: Call, command: int, argument: int) -> int:
    """Give and take page frames, and ask about them."""
    operation, start = command & (1 << MEMOP_EXTENT_SHIFT) - 1, command >> MEMOP_EXTENT_SHIFT
    handler = commands.handlers.get(operation)
    if start and operation in _COMMON:
        raise XenError(Errno.EINVAL, f"memory_op {operation} is never continued")
    if handler is None or (start and operation not in _CONTINUED):
        raise XenError(Errno.ENOSYS, f"memory_op {command:#x}")
    result: int = handler(call, argument, start)
    return result


def existing(call: Call, domid: int) -> bool:
    """Say whether a domain, perhaps as DOMID_SELF, is the caller. ESRCH: it is none."""
    if domid in (DOMID_SELF, call.domain.domid):
        return True
    call.existing(domid)
    return False


def _named_self(call: Call, argument: int) -> None:
    call.own(int.from_bytes(call.memory.read(argument, 2), "little"))


# -- how much --------------------------------------------------------------------------------------------


@commands.command(Memory.MAXIMUM_RAM_PAGE)
def _maximum_ram_page(call: Call, _argument: int, _start: int) -> int:
    """One more than the highest frame number, as on Xen."""
    return call.frames.count


@commands.command(Memory.CURRENT_RESERVATION)
def _current_reservation(call: Call, argument: int, _start: int) -> int:
    _named_self(call, argument)
    return call.domain.tot_pages


@commands.command(Memory.MAXIMUM_RESERVATION)
def _maximum_reservation(call: Call, argument: int, _start: int) -> int:
    _named_self(call, argument)
    return call.domain.max_pages


@commands.command(Memory.MAXIMUM_GPFN, note="what the guest says itself, in shared_info")
def _maximum_gpfn(call: Call, argument: int, _start: int) -> int:
    _named_self(call, argument)
    page, at = call.domain.shared_info, call.domain.layout.max_pfn
    pages = page.read_u64(at) if call.width == 64 else page.read_u32(at)
    return max(pages, 1) - 1


# -- the machine-to-physical table -------------------------------------------------------------------------


@commands.command(Memory.MACHPHYS_MAPPING)
def _machphys_mapping(call: Call, argument: int, _start: int) -> int:
    highest = call.frames.count - 1
    if call.width == 64:
        answer = MachphysMapping(v_start=HYPERVISOR_VIRT_START, v_end=_M2P_END, max_mfn=highest)
    else:
        most = min(highest, _COMPAT_M2P_ENTRIES - 1)
        answer = MachphysMapping(v_start=COMPAT_VIRT_START, v_end=_COMPAT_M2P_END, max_mfn=most)
    call.write(argument, answer)
    return 0


def _mfn_list(call: Call, argument: int, frames: list[Mfn], entry_size: int) -> int:
    request = call.read(MachphysMfnList, argument)
    steps = min(request.max_extents, -(-call.frames.count * entry_size // _M2P_STEP))
    for step in range(steps):
        call.write_word(request.extent_start + call.word * step, frames[0] + (_M2P_STEP >> 12) * step)
    request.nr_extents = steps
    call.write(argument, request)
    return 0


@commands.command(Memory.MACHPHYS_MFN_LIST)
def _machphys_mfn_list(call: Call, argument: int, start: int) -> int:
    if call.width == 32:
        return _machphys_compat_mfn_list(call, argument, start)
    return _mfn_list(call, argument, call.host.m2p_frames, 8)


@commands.command(Memory.MACHPHYS_COMPAT_MFN_LIST)
def _machphys_compat_mfn_list(call: Call, argument: int, _start: int) -> int:
    return _mfn_list(call, argument, call.host.compat_m2p_frames, 4)


# -- the memory map ----------------------------------------------------------------------------------------


@commands.command(Memory.MEMORY_MAP)
def _memory_map(call: Call, argument: int, _start: int) -> int:
    domain = call.domain
    entries = _E820.pack(0, domain.max_pages << 12, _E820_RAM) if domain.e820 is None else domain.e820
    if not entries:
        raise XenError(Errno.ENOSYS, "the memory map is empty")
    request = call.read(MemoryMap, argument)
    count = min(request.nr_entries, len(entries) // _E820.size)
    call.memory.write(request.buffer, entries[: count * _E820.size])
    request.nr_entries = count
    call.write(argument, request)
    return 0


@commands.command(Memory.SET_MEMORY_MAP, note="its own, which only it looks at")
def _set_memory_map(call: Call, argument: int, _start: int) -> int:
    request = call.read(ForeignMemoryMap, argument)
    if request.nr_entries > _E820_MOST:
        raise XenError(Errno.EINVAL, f"memory map of {request.nr_entries} entries")
    call.own(request.domid)
    call.domain.e820 = call.memory.read(request.buffer, request.nr_entries * _E820.size)
    return 0


# -- what is refused, after the checks that come first on Xen ------------------------------------------------


def _not_translated(call: Call, domid: int) -> int:
    existing(call, domid)
    raise XenError(Errno.EACCES, "a PV domain has no physmap to change")


@commands.command(Memory.ADD_TO_PHYSMAP, Status.REFUSED, "EACCES")
def _add_to_physmap(call: Call, argument: int, start: int) -> int:
    if start > 0xFFFF:
        raise XenError(Errno.EDOM, f"add_to_physmap from {start}")
    request = call.read(AddToPhysmap, argument)
    if request.space == _SPACE_GMFN_FOREIGN:
        raise XenError(Errno.ENOSYS, "foreign frames are added in batches only")
    return _not_translated(call, request.domid)


@commands.command(Memory.ADD_TO_PHYSMAP_BATCH, Status.REFUSED, "EACCES")
def _add_to_physmap_batch(call: Call, argument: int, start: int) -> int:
    if start > 0xFFFF:
        raise XenError(Errno.EDOM, f"add_to_physmap_batch from {start}")
    request = call.read(AddToPhysmapBatch, argument)
    if request.space == _SPACE_GMFN_RANGE:
        raise XenError(Errno.EOPNOTSUPP, "ranges are not added in batches")
    return _not_translated(call, request.domid)


@commands.command(Memory.REMOVE_FROM_PHYSMAP, Status.REFUSED, "EACCES")
def _remove_from_physmap(call: Call, argument: int, _start: int) -> int:
    return _not_translated(call, call.read(RemoveFromPhysmap, argument).domid)


@commands.command(Memory.CLAIM_PAGES, Status.REFUSED, "EPERM")
def _claim_pages(call: Call, argument: int, _start: int) -> int:
    request = call.read(MemoryReservation, argument)
    known = request.domid == 0 or call.host.domain(request.domid) is not None
    if request.extent_start or request.extent_order or request.mem_flags or not known:
        raise XenError(Errno.EINVAL, "claim_pages of an order, a list, or for no domain")
    raise XenError(Errno.EPERM, "claim_pages is the toolstack's")


@commands.command(Memory.GET_VNUMAINFO, Status.REFUSED, "EOPNOTSUPP: no virtual NUMA")
def _get_vnumainfo(call: Call, argument: int, _start: int) -> int:
    request = call.read(VnumaTopologyInfo, argument)
    if request.pad:
        raise XenError(Errno.EINVAL, "get_vnumainfo with padding")
    call.own(request.domid)
    raise XenError(Errno.EOPNOTSUPP, "no virtual NUMA")


@commands.command(Memory.ACQUIRE_RESOURCE, Status.REFUSED, "EPERM")
def _acquire_resource(call: Call, argument: int, _start: int) -> int:
    request = call.read(AcquireResource, argument)
    if request.pad or request.frame + request.nr_frames >> 32:
        raise XenError(Errno.EINVAL, "acquire_resource beyond 2**32 frames")
    call.existing(request.domid)  # DOMID_SELF is none: the resource must be another's
    raise XenError(Errno.EPERM, "acquire_resource is for a device model")


@commands.command(Memory.GET_SHARING_FREED_PAGES, note="nothing is shared: 0")
def _sharing_freed(_call: Call, _argument: int, _start: int) -> int:
    return 0


@commands.command(Memory.GET_SHARING_SHARED_PAGES, note="nothing is shared: 0")
def _sharing_shared(_call: Call, _argument: int, _start: int) -> int:
    return 0


commands.refuse({
    Memory.MACHINE_MEMORY_MAP: Errno.EPERM,
    Memory.SET_POD_TARGET: Errno.EINVAL,
    Memory.GET_POD_TARGET: Errno.EINVAL,
    Memory.RESERVED_DEVICE_MEMORY_MAP: Errno.ENOSYS,
})  # fmt: skip
