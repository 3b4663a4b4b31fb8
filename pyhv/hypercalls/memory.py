# SPDX-License-Identifier: GPL-2.0-only
"""memory_op (public header `memory.h`): the questions about memory, and what a plain PV domain is refused.

The low 6 bits of the command are the operation; the rest is the extent at which a long call goes on, which
only some operations take. The calls that give and take frames are in `reservation` and `exchange`.
"""

import struct
from typing import Final

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import MEMOP_EXTENT_SHIFT, Hypercall, MemoryOp
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
from pyhv.hypercalls.signature import Ptr, ulong
from pyhv.hypercalls.table import Commands, Status, hypercall

commands = Commands[[int, int], int](Hypercall.MEMORY_OP, MemoryOp)
"""All sub-operations; `reservation` and `exchange` add theirs."""

_M2P_END, _COMPAT_M2P_END = 0xFFFF_8040_0000_0000, 0xFFE0_0000
_COMPAT_M2P_ENTRIES: Final = (_COMPAT_M2P_END - COMPAT_VIRT_START) // 4
_M2P_STEP: Final = 2 << 20
_E820: Final = struct.Struct("<QQI")
_E820_RAM: Final = 1
_E820_MOST: Final = 1024
_SPACE_GMFN_RANGE, _SPACE_GMFN_FOREIGN = 3, 4

_CONTINUED: Final = frozenset({
    MemoryOp.INCREASE_RESERVATION, MemoryOp.DECREASE_RESERVATION, MemoryOp.POPULATE_PHYSMAP,
    MemoryOp.ADD_TO_PHYSMAP, MemoryOp.ADD_TO_PHYSMAP_BATCH, MemoryOp.ACQUIRE_RESOURCE,
})  # fmt: skip
"""Operations whose command may name a first extent."""
_COMMON: Final = frozenset({
    MemoryOp.MAXIMUM_RAM_PAGE, MemoryOp.CURRENT_RESERVATION, MemoryOp.MAXIMUM_RESERVATION,
    MemoryOp.MAXIMUM_GPFN, MemoryOp.EXCHANGE, MemoryOp.REMOVE_FROM_PHYSMAP, MemoryOp.CLAIM_PAGES,
    MemoryOp.GET_VNUMAINFO,
})  # fmt: skip
"""Those that refuse one with EINVAL. To all others the command is an unknown one then."""


@hypercall(Hypercall.MEMORY_OP)
def memory_op(call: Call, command: ulong, argument: Ptr) -> int:
    """Give and take page frames, and ask about them.

    EINVAL: a first extent where there is never one; ENOSYS: no such command; EFAULT: its structure cannot be
    read, or the answer not be stored. Where a domain is named, ESRCH: there is none; EPERM: not the caller.
    """
    operation, start = command & (1 << MEMOP_EXTENT_SHIFT) - 1, command >> MEMOP_EXTENT_SHIFT
    if start and operation in _COMMON:
        raise XenError(Errno.EINVAL, f"memory_op {operation} is never continued")
    if start and operation not in _CONTINUED:
        raise XenError(Errno.ENOSYS, f"memory_op {command:#x}")
    return commands[operation](call, argument, start)


def check_domain(call: Call, domid: int) -> bool:
    """True if a domain, perhaps as DOMID_SELF, is the caller; False for another. ESRCH: there is none."""
    if domid in (DOMID_SELF, call.domain.domid):
        return True
    call.existing(domid)
    return False


def _named_self(call: Call, argument: int) -> None:
    call.own(int.from_bytes(call.memory.read(argument, 2), "little"))


# -- how much --------------------------------------------------------------------------------------------


@commands.command(MemoryOp.MAXIMUM_RAM_PAGE)
def maximum_ram_page(call: Call, _argument: int, _start: int) -> int:
    """Return one more than the highest frame number, as Xen does. The argument is not read."""
    return call.frames.count


@commands.command(MemoryOp.CURRENT_RESERVATION)
def current_reservation(call: Call, argument: int, _start: int) -> int:
    """Return how many frames the caller has. The argument points to a domid.

    ESRCH, EPERM.
    """
    _named_self(call, argument)
    return call.domain.tot_pages


@commands.command(MemoryOp.MAXIMUM_RESERVATION)
def maximum_reservation(call: Call, argument: int, _start: int) -> int:
    """Return how many frames the caller may have. The argument points to a domid.

    ESRCH, EPERM.
    """
    _named_self(call, argument)
    return call.domain.max_pages


@commands.command(MemoryOp.MAXIMUM_GPFN)
def maximum_gpfn(call: Call, argument: int, _start: int) -> int:
    """Return the highest PFN, as the guest itself says in shared_info. The argument points to a domid.

    ESRCH, EPERM.
    """
    _named_self(call, argument)
    page, at = call.domain.shared_info, call.domain.layout.max_pfn
    pages = page.read_u64(at) if call.width == 64 else page.read_u32(at)
    return max(pages, 1) - 1


# -- the machine-to-physical table -------------------------------------------------------------------------


@commands.command(MemoryOp.MACHPHYS_MAPPING, MachphysMapping)
def machphys_mapping(call: Call, argument: int, _start: int) -> int:
    """Tell where the machine-to-physical table is mapped, and the highest frame that it has an entry for."""
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


@commands.command(MemoryOp.MACHPHYS_MFN_LIST, MachphysMfnList)
def machphys_mfn_list(call: Call, argument: int, start: int) -> int:
    """List the frames of the machine-to-physical table, one for each 2 MiB of it."""
    if call.width == 32:
        return machphys_compat_mfn_list(call, argument, start)
    return _mfn_list(call, argument, call.host.m2p_frames, 8)


@commands.command(MemoryOp.MACHPHYS_COMPAT_MFN_LIST, MachphysMfnList)
def machphys_compat_mfn_list(call: Call, argument: int, _start: int) -> int:
    """List the frames of the table that 32-bit guests see, one for each 2 MiB of it."""
    return _mfn_list(call, argument, call.host.compat_m2p_frames, 4)


# -- the memory map ----------------------------------------------------------------------------------------


@commands.command(MemoryOp.MEMORY_MAP, MemoryMap)
def memory_map(call: Call, argument: int, _start: int) -> int:
    """Store the domain's E820 map: one entry of RAM, or what the domain has set.

    ENOSYS: it has set an empty one; EFAULT.
    """
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


@commands.command(MemoryOp.SET_MEMORY_MAP, ForeignMemoryMap)
def set_memory_map(call: Call, argument: int, _start: int) -> int:
    """Set the domain's E820 map, which only the domain itself looks at.

    EINVAL: more than 1024 entries; ESRCH, EPERM; EFAULT: the entries cannot be read.
    """
    request = call.read(ForeignMemoryMap, argument)
    if request.nr_entries > _E820_MOST:
        raise XenError(Errno.EINVAL, f"memory map of {request.nr_entries} entries")
    call.own(request.domid)
    call.domain.e820 = call.memory.read(request.buffer, request.nr_entries * _E820.size)
    return 0


# -- what is refused, after the checks that come first on Xen ------------------------------------------------


def _not_translated(call: Call, domid: int) -> int:
    check_domain(call, domid)
    raise XenError(Errno.EACCES, "a PV domain has no physmap to change")


@commands.command(MemoryOp.ADD_TO_PHYSMAP, AddToPhysmap, Status.REFUSED)
def add_to_physmap(call: Call, argument: int, start: int) -> int:
    """Put a frame at a PFN; a PV domain keeps that map itself.

    EDOM: a first extent above 65535; EFAULT; ENOSYS: of foreign frames; ESRCH; EACCES.
    """
    if start > 0xFFFF:
        raise XenError(Errno.EDOM, f"add_to_physmap from {start}")
    request = call.read(AddToPhysmap, argument)
    if request.space == _SPACE_GMFN_FOREIGN:
        raise XenError(Errno.ENOSYS, "foreign frames are added in batches only")
    return _not_translated(call, request.domid)


@commands.command(MemoryOp.ADD_TO_PHYSMAP_BATCH, AddToPhysmapBatch, Status.REFUSED)
def add_to_physmap_batch(call: Call, argument: int, start: int) -> int:
    """Put frames at PFNs; a PV domain keeps that map itself.

    EDOM: a first extent above 65535; EFAULT; EOPNOTSUPP: of a range; ESRCH; EACCES.
    """
    if start > 0xFFFF:
        raise XenError(Errno.EDOM, f"add_to_physmap_batch from {start}")
    request = call.read(AddToPhysmapBatch, argument)
    if request.space == _SPACE_GMFN_RANGE:
        raise XenError(Errno.EOPNOTSUPP, "ranges are not added in batches")
    return _not_translated(call, request.domid)


@commands.command(MemoryOp.REMOVE_FROM_PHYSMAP, RemoveFromPhysmap, Status.REFUSED)
def remove_from_physmap(call: Call, argument: int, _start: int) -> int:
    """Remove the frame at a PFN; a PV domain keeps that map itself.

    ESRCH; EACCES.
    """
    return _not_translated(call, call.read(RemoveFromPhysmap, argument).domid)


@commands.command(MemoryOp.CLAIM_PAGES, MemoryReservation, Status.REFUSED)
def claim_pages(call: Call, argument: int, _start: int) -> int:
    """Set frames aside for a domain that is being built.

    EINVAL: a list, an order, flags, or no such domain; EPERM.
    """
    request = call.read(MemoryReservation, argument)
    known = request.domid == 0 or call.host.domain(request.domid) is not None
    if request.extent_start or request.extent_order or request.mem_flags or not known:
        raise XenError(Errno.EINVAL, "claim_pages of an order, a list, or for no domain")
    raise XenError(Errno.EPERM, "claim_pages is the toolstack's")


@commands.command(MemoryOp.GET_VNUMAINFO, VnumaTopologyInfo, Status.REFUSED)
def get_vnumainfo(call: Call, argument: int, _start: int) -> int:
    """Tell the domain's virtual NUMA nodes, of which it has none.

    EINVAL: padding that is not 0; ESRCH, EPERM; EOPNOTSUPP.
    """
    request = call.read(VnumaTopologyInfo, argument)
    if request.pad:
        raise XenError(Errno.EINVAL, "get_vnumainfo with padding")
    call.own(request.domid)
    raise XenError(Errno.EOPNOTSUPP, "no virtual NUMA")


@commands.command(MemoryOp.ACQUIRE_RESOURCE, AcquireResource, Status.REFUSED)
def acquire_resource(call: Call, argument: int, _start: int) -> int:
    """Map what the hypervisor keeps for another domain.

    EINVAL: padding that is not 0, or frames beyond 2**32; ESRCH: no other domain of that number; EPERM.
    """
    request = call.read(AcquireResource, argument)
    if request.pad or request.frame + request.nr_frames >> 32:
        raise XenError(Errno.EINVAL, "acquire_resource beyond 2**32 frames")
    call.existing(request.domid)  # DOMID_SELF is none: the resource must be another's
    raise XenError(Errno.EPERM, "acquire_resource is for a device model")


@commands.command(MemoryOp.GET_SHARING_FREED_PAGES)
def get_sharing_freed_pages(_call: Call, _argument: int, _start: int) -> int:
    """Return how many frames sharing has saved: 0, since nothing is shared. The argument is not read."""
    return 0


@commands.command(MemoryOp.GET_SHARING_SHARED_PAGES)
def get_sharing_shared_pages(_call: Call, _argument: int, _start: int) -> int:
    """Return how many frames are shared: 0. The argument is not read."""
    return 0


commands.refuse(MemoryOp.MACHINE_MEMORY_MAP, Errno.EPERM, "Tell the host's memory map.")
commands.refuse(MemoryOp.SET_POD_TARGET, Errno.EINVAL, "Set how much of a domain is populated on demand.")
commands.refuse(MemoryOp.GET_POD_TARGET, Errno.EINVAL, "Tell how much of a domain is populated on demand.")
commands.refuse(
    MemoryOp.RESERVED_DEVICE_MEMORY_MAP, Errno.ENOSYS, "Tell the memory that devices need mapped one to one."
)
