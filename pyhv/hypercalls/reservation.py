# SPDX-License-Identifier: GPL-2.0-only
"""memory_op: the calls by which a domain's memory grows and shrinks (public header `memory.h`).

They return how many extents were done, never an error: whatever is wrong with a request, the answer is the
number of extents that were done before it. A long one gives way between two extents; the command then names
the extent at which it goes on.
"""

from collections.abc import Iterator
from typing import Final

from pyhv.abi.numbers import MEMOP_EXTENT_SHIFT, MemoryOp
from pyhv.abi.structs import MemoryReservation
from pyhv.address import MASK32, MASK64, PAGE_SHIFT, Mfn, guest_may_use
from pyhv.clock import STEPS_A_LOOK
from pyhv.errors import XenError
from pyhv.hypercalls.context import Again, Call
from pyhv.hypercalls.memory import check_domain, commands
from pyhv.mmu.frames import INVALID_M2P, NoFrames

MAX_ORDER: Final = 9
"""Largest extent of a plain domain: 2 MiB."""
_MOST_EXTENTS: Final = MASK32 >> MEMOP_EXTENT_SHIFT
"""More could not be named when the call goes on."""
_ADDRESS_BITS: Final = 0xFF
_NODE_SHIFT, _NODE_MASK, _NO_NODE = 8, 0xFF, 0xFF
_POPULATE_ON_DEMAND, _EXACT_NODE, _VNODE = 1 << 16, 1 << 17, 1 << 18
"""Flags of a reservation (XENMEMF)."""


def may_place(mem_flags: int) -> bool:
    """Whether a plain domain may ask for memory in this way: it may hint at a node, but not insist."""
    node = (mem_flags >> _NODE_SHIFT) - 1 & _NODE_MASK
    return node == _NO_NODE or not mem_flags & _EXACT_NODE


def frame_limit(mem_flags: int) -> int | None:
    """First frame number that is too high for the address width asked for; None if there is no such limit."""
    bits = mem_flags & _ADDRESS_BITS
    if bits == 0 or bits >= 64 + PAGE_SHIFT:
        return None
    return 1 << max(bits - PAGE_SHIFT, 0)


def take_extent(call: Call, order: int, limit: int | None, *, exchanging: bool = False) -> list[Mfn] | None:
    """Allocate 2**order contiguous frames below `limit` for the caller; None if there are none for it.

    An exchange takes before it gives, so for a moment it may have more than its reservation.
    """
    domain = call.domain
    if not exchanging and domain.tot_pages + (1 << order) > domain.max_pages:
        return None
    try:
        extent = call.frames.allocate_extent(domain.domid, order)
    except NoFrames:
        return None
    domain.tot_pages += 1 << order
    if limit is not None and extent[-1] >= limit:
        for mfn in extent:
            give_back(call, mfn)
        return None
    return extent


def give_back(call: Call, number: int) -> bool:
    """Take a frame out of the caller's reservation; False if it is not the caller's.

    A frame to which something still refers lives on until nothing does.
    """
    frames = call.frames
    mfn = frames.owned(number, call.domain.domid)
    if mfn is None or frames.xen_heap[mfn]:
        return False
    assert frames.m2p is not None
    frames.m2p[mfn] = INVALID_M2P
    if frames.allocated[mfn]:
        frames.deallocate(mfn)  # `tot_pages` falls when the last reference is gone
    return True


def _checked(call: Call, argument: int, start: int) -> MemoryReservation | None:
    """Read and check a request; None where the call must return `start`."""
    try:
        request = call.read(MemoryReservation, argument)
        mine = check_domain(call, request.domid)
    except XenError:
        return None
    too_much = request.extent_order > MAX_ORDER or request.nr_extents > _MOST_EXTENTS
    if too_much or start >= request.nr_extents or not mine:
        return None
    return request if request.mem_flags & _VNODE or may_place(request.mem_flags) else None


def _extents(
    call: Call, operation: MemoryOp, argument: int, start: int, request: MemoryReservation
) -> Iterator[int]:
    """The numbers of the extents to do; gives way between two when the turn is over."""
    steps = 0
    for number in range(start, request.nr_extents):
        if steps >= STEPS_A_LOOK:
            if call.preempted(steps):
                raise Again(operation | number << MEMOP_EXTENT_SHIFT, argument)
            steps = 0
        steps += 1 << request.extent_order
        yield number
    call.preempted(steps)


def _populate(call: Call, operation: MemoryOp, argument: int, start: int) -> int:
    request = _checked(call, argument, start)
    if request is None:
        return start
    physmap = operation is MemoryOp.POPULATE_PHYSMAP
    if physmap and request.mem_flags & _POPULATE_ON_DEMAND:
        return start
    memory, m2p, word = call.memory, call.frames.m2p, call.word
    assert m2p is not None
    limit = frame_limit(request.mem_flags)
    for number in _extents(call, operation, argument, start, request):
        slot = request.extent_start + word * number
        try:
            pfn = call.read_word(slot) if physmap else 0
            if physmap or request.extent_start:
                memory.for_write(slot)
                memory.for_write(slot + word - 1)
        except XenError:
            return number
        extent = take_extent(call, request.extent_order, limit)
        if extent is None:
            return number
        if physmap:
            for index, mfn in enumerate(extent):
                m2p[mfn] = pfn + index & MASK64
        if physmap or request.extent_start:
            call.write_word(slot, extent[0])
    return request.nr_extents


@commands.command(MemoryOp.INCREASE_RESERVATION, MemoryReservation)
def increase_reservation(call: Call, argument: int, start: int) -> int:
    """Take extents of frames, and store the first frame of each if there is a list. Returns how many.

    No errors: at the first that cannot be done the call ends. Gives way.
    """
    return _populate(call, MemoryOp.INCREASE_RESERVATION, argument, start)


@commands.command(MemoryOp.POPULATE_PHYSMAP, MemoryReservation)
def populate_physmap(call: Call, argument: int, start: int) -> int:
    """Take extents of frames for the PFNs of a list, and store the first frame of each. Returns how many.

    No errors: at the first that cannot be done the call ends. Gives way.
    """
    return _populate(call, MemoryOp.POPULATE_PHYSMAP, argument, start)


@commands.command(MemoryOp.DECREASE_RESERVATION, MemoryReservation)
def decrease_reservation(call: Call, argument: int, start: int) -> int:
    """Give back the extents of a list; what is still referred to lives until nothing does. Returns how many.

    No errors: at the first that cannot be done the call ends. Gives way.
    """
    request = _checked(call, argument, start)
    if request is None or not guest_may_use(request.extent_start, call.width):
        return start
    for number in _extents(call, MemoryOp.DECREASE_RESERVATION, argument, start, request):
        try:
            first = call.read_word(request.extent_start + call.word * number)
        except XenError:
            return number
        if not all(give_back(call, first + index) for index in range(1 << request.extent_order)):
            return number
    return request.nr_extents
