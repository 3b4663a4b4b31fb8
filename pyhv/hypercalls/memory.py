# SPDX-License-Identifier: GPL-2.0-only
"""memory_op: give and take page frames, and ask about them (public header `memory.h`).

The reservation calls return how many extents were done, never an error; the others return errors as usual.
Long calls are done in one go: nothing here is ever continued.
"""

import struct

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import MEMOP_EXTENT_SHIFT, Memory
from pyhv.abi.structs import (
    MachphysMapping,
    MachphysMfnList,
    MemoryExchange,
    MemoryMap,
    MemoryReservation,
)
from pyhv.address import HYPERVISOR_VIRT_START, MASK64, Mfn, guest_may_use
from pyhv.errors import ConfigError, XenError
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.table import Commands, hypercall

_commands = Commands("memory_op", Memory)
_MAX_ORDER = 9
_ORDER_LIMIT = 20
"""Extents beyond this order exist for nobody; a larger one makes a call senseless rather than refused."""
_EXACT_NODE = 1 << 17
_M2P_END = 0xFFFF_8040_0000_0000
_E820 = struct.Struct("<QQI")
_E820_RAM = 1


@hypercall(12, "memory_op", "command:ulong argument:ptr")
def memory_op(call: Call, command: int, argument: int) -> int:
    """The low 6 bits of the command are the operation, the rest the first extent."""
    handler = _commands.handlers.get(command & (1 << MEMOP_EXTENT_SHIFT) - 1)
    if handler is None:
        raise XenError(Errno.ENOSYS, f"memory_op {command}")
    result: int = handler(call, argument, command >> MEMOP_EXTENT_SHIFT)
    return result


def _reservation(call: Call, argument: int, start: int) -> MemoryReservation | None:
    """Read and check the request of a reservation call; None where it must return `start`."""
    try:
        request = call.read(MemoryReservation, argument)
    except XenError:
        return None
    if request.extent_order > _MAX_ORDER or request.domid not in (DOMID_SELF, call.domain.domid):
        return None
    if request.nr_extents > MASK64 >> MEMOP_EXTENT_SHIFT or start >= request.nr_extents:
        return None
    if request.mem_flags & _EXACT_NODE:
        return None
    return request


def _take_extent(call: Call, order: int, *, exchanging: bool = False) -> list[Mfn] | None:
    """Allocate 2**order contiguous frames for the caller, None if it may not have them.

    An exchange takes before it gives, so for a moment it may have more than its reservation.
    """
    domain = call.domain
    if not exchanging and domain.tot_pages + (1 << order) > domain.max_pages:
        return None
    try:
        extent = call.frames.allocate_extent(domain.domid, order)
    except ConfigError:
        return None
    domain.tot_pages += 1 << order
    return extent


def _populate(call: Call, argument: int, start: int, *, physmap: bool) -> int:
    request = _reservation(call, argument, start)
    if request is None:
        return start
    memory, frames = call.memory, call.frames
    assert frames.m2p is not None
    done = start
    while done < request.nr_extents:
        slot = request.extent_start + call.word * done & MASK64
        try:
            pfn = call.read_word(slot) if physmap else 0
            if request.extent_start:
                memory.for_write(slot)
                memory.for_write(slot + call.word - 1 & MASK64)
        except XenError:
            break
        extent = _take_extent(call, request.extent_order)
        if extent is None:
            break
        if physmap:
            for index, mfn in enumerate(extent):
                frames.m2p[mfn] = pfn + index & MASK64
        if request.extent_start:
            call.write_word(slot, extent[0])
        done += 1
    return done


@_commands.command(Memory.INCREASE_RESERVATION)
def _increase(call: Call, argument: int, start: int) -> int:
    return _populate(call, argument, start, physmap=False)


@_commands.command(Memory.POPULATE_PHYSMAP)
def _populate_physmap(call: Call, argument: int, start: int) -> int:
    return _populate(call, argument, start, physmap=True)


@_commands.command(Memory.DECREASE_RESERVATION)
def _decrease(call: Call, argument: int, start: int) -> int:
    request = _reservation(call, argument, start)
    if request is None:
        return start
    done = start
    while done < request.nr_extents:
        try:
            first = call.read_word(request.extent_start + call.word * done & MASK64)
        except XenError:
            break
        if not all(_give_back(call, first + index) for index in range(1 << request.extent_order)):
            break
        done += 1
    return done


def _give_back(call: Call, mfn: int) -> bool:
    frames, domain = call.frames, call.domain
    if not 0 < mfn < frames.count or frames.owner[mfn] != domain.domid or not frames.allocated[mfn]:
        return False
    assert frames.m2p is not None
    frames.m2p[mfn] = MASK64
    frames.deallocate(mfn)  # `tot_pages` falls when the last reference is gone
    return True


@_commands.command(Memory.MAXIMUM_RAM_PAGE)
def _maximum_ram_page(call: Call, _argument: int, _start: int) -> int:
    return call.frames.count - 1


def _named_self(call: Call, argument: int) -> None:
    call.own(int.from_bytes(call.memory.read(argument, 2), "little"))


@_commands.command(Memory.CURRENT_RESERVATION)
def _current_reservation(call: Call, argument: int, _start: int) -> int:
    _named_self(call, argument)
    return call.domain.tot_pages


@_commands.command(Memory.MAXIMUM_RESERVATION)
def _maximum_reservation(call: Call, argument: int, _start: int) -> int:
    _named_self(call, argument)
    return call.domain.max_pages


@_commands.command(Memory.MAXIMUM_GPFN)
def _maximum_gpfn(call: Call, argument: int, _start: int) -> int:
    _named_self(call, argument)
    page, at = call.domain.shared_info, call.domain.layout.max_pfn
    return (page.read_u64(at) if call.width == 64 else page.read_u32(at)) - 1


@_commands.command(Memory.MACHPHYS_MAPPING)
def _machphys_mapping(call: Call, argument: int, _start: int) -> int:
    answer = MachphysMapping(v_start=HYPERVISOR_VIRT_START, v_end=_M2P_END, max_mfn=call.frames.count - 1)
    call.write(argument, answer)
    return 0


@_commands.command(Memory.MACHPHYS_MFN_LIST)
def _machphys_mfn_list(call: Call, argument: int, _start: int) -> int:
    request = call.read(MachphysMfnList, argument)
    steps = min(request.max_extents, (call.frames.count * 8 + (2 << 20) - 1) >> 21)
    first = call.host.m2p_frames[0]
    for step in range(steps):
        call.write_word(request.extent_start + call.word * step, first + 512 * step)
    request.nr_extents = steps
    call.write(argument, request)
    return 0


@_commands.command(Memory.MEMORY_MAP)
def _memory_map(call: Call, argument: int, _start: int) -> int:
    request = call.read(MemoryMap, argument)
    entries = _E820.pack(0, call.domain.max_pages << 12, _E820_RAM)
    count = min(request.nr_entries, 1)
    call.memory.write(request.buffer, entries[: count * _E820.size])
    request.nr_entries = count
    call.write(argument, request)
    return 0


@_commands.command(Memory.EXCHANGE)
def _exchange(call: Call, argument: int, _start: int) -> int:
    request = call.read(MemoryExchange, argument)
    given, wanted = request.in_nr_extents, request.out_nr_extents
    if request.nr_exchanged > given or max(given, wanted) > MASK64 >> _MAX_ORDER + 1:
        raise XenError(Errno.EINVAL, "memory_exchange beyond its lists")
    if max(request.in_extent_order, request.out_extent_order) > _ORDER_LIMIT:
        raise XenError(Errno.EINVAL, "memory_exchange of impossible extents")
    if given << request.in_extent_order != wanted << request.out_extent_order:
        raise XenError(Errno.EINVAL, "memory_exchange of unequal amounts")
    if request.in_domid != request.out_domid or request.in_domid not in (DOMID_SELF, call.domain.domid):
        raise XenError(Errno.EINVAL, "memory_exchange between domains")
    if max(request.in_extent_order, request.out_extent_order) > _MAX_ORDER:
        raise XenError(Errno.EPERM, "memory_exchange of large extents")
    if request.nr_exchanged == given:
        return 0
    ratio = given // wanted if given >= wanted else 1
    for base, first, count in (
        (request.in_extent_start, request.nr_exchanged, given),
        (request.out_extent_start, request.nr_exchanged // ratio, wanted),
    ):
        low, high = base + call.word * first, base + call.word * count - 1
        if not (guest_may_use(low) and guest_may_use(high)) or high < low:
            raise XenError(Errno.EFAULT, "memory_exchange list outside the guest's space")
    return _do_exchange(call, request, argument)


def _do_exchange(call: Call, request: MemoryExchange, argument: int) -> int:
    """Exchange chunk by chunk: as many frames as the larger of both extent sizes."""
    memory, frames = call.memory, call.frames
    in_order, out_order = request.in_extent_order, request.out_extent_order
    chunk = 1 << max(in_order, out_order)
    in_step, out_step = chunk >> in_order, chunk >> out_order
    at = request.nr_exchanged
    if at % in_step:
        raise XenError(Errno.EINVAL, "memory_exchange resumed inside a chunk")
    assert frames.m2p is not None
    while at < request.in_nr_extents:
        given = [
            call.read_word(request.in_extent_start + call.word * (at + n)) + index
            for n in range(in_step)
            for index in range(1 << in_order)
        ]
        for mfn in given:
            call.own_frame(mfn)
            if not frames.allocated[mfn] or frames.refs[mfn] != 1 or given.count(mfn) != 1:
                raise XenError(Errno.EINVAL, f"memory_exchange of {frames.describe(mfn)}, which is in use")
        first_out = at // in_step * out_step
        places = [request.out_extent_start + call.word * (first_out + n) for n in range(out_step)]
        pfns = [call.read_word(place) for place in places]
        for place in places:
            memory.for_write(place)
            memory.for_write(place + call.word - 1 & MASK64)
        extents: list[list[Mfn]] = []
        for _ in places:
            extent = _take_extent(call, out_order, exchanging=True)
            if extent is None:
                for mfn in (mfn for taken in extents for mfn in taken):
                    _give_back(call, mfn)
                raise XenError(Errno.ENOMEM, "no frames for memory_exchange")
            extents.append(extent)
        for mfn in given:
            _give_back(call, mfn)
        for place, pfn, extent in zip(places, pfns, extents, strict=True):
            for index, mfn in enumerate(extent):
                frames.m2p[mfn] = pfn + index & MASK64
            call.write_word(place, extent[0])
        at += in_step
        request.nr_exchanged = at
        call.write(argument, request)
    return 0


_commands.refuse({
    Memory.ADD_TO_PHYSMAP: Errno.EACCES,
    Memory.REMOVE_FROM_PHYSMAP: Errno.EACCES,
    Memory.ADD_TO_PHYSMAP_BATCH: Errno.EACCES,
    Memory.MACHINE_MEMORY_MAP: Errno.EPERM,
    Memory.SET_MEMORY_MAP: Errno.EPERM,
    Memory.SET_POD_TARGET: Errno.EINVAL,
    Memory.GET_POD_TARGET: Errno.EINVAL,
    Memory.CLAIM_PAGES: Errno.EPERM,
    Memory.MACHPHYS_COMPAT_MFN_LIST: Errno.EINVAL,
    Memory.GET_VNUMAINFO: Errno.EOPNOTSUPP,
    Memory.RESERVED_DEVICE_MEMORY_MAP: Errno.ENOSYS,
    Memory.ACQUIRE_RESOURCE: Errno.EPERM,
})  # fmt: skip
