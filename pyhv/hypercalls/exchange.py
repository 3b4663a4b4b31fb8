# SPDX-License-Identifier: GPL-2.0-only
"""memory_op: exchange frames for others, contiguous ones say (public header `memory.h`).

The exchange goes chunk by chunk, as many frames as the larger of both extent sizes: a chunk is done wholly or
not at all. How far it came stands in the request itself, where a long one goes on.
"""

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import MemoryOp
from pyhv.abi.structs import MemoryExchange
from pyhv.address import MASK64, Mfn, guest_may_use
from pyhv.clock import STEPS_A_LOOK
from pyhv.errors import XenError
from pyhv.hypercalls.context import Again, Call
from pyhv.hypercalls.memory import commands
from pyhv.hypercalls.reservation import MAX_ORDER, frame_limit, give_back, may_place, take_extent


@commands.command(MemoryOp.EXCHANGE, MemoryExchange)
def exchange(call: Call, argument: int, _start: int) -> int:
    """Give frames for as many others, of another extent size or at lower addresses. Gives way.

    EPERM: extents above order 9; EINVAL: the two sides do not match; EFAULT: a list outside the guest's
    space; EINVAL: one node insisted on; ESRCH, EPERM: not the caller; then for each chunk EINVAL: a frame
    that is not the caller's, or in use, or named twice; EFAULT; ENOMEM. `nr_exchanged` says what is done.
    """
    request = call.read(MemoryExchange, argument)
    _check(call, request)
    if request.nr_exchanged == request.in_nr_extents:
        return 0
    _check_lists(call, request)
    if not may_place(request.out_mem_flags):
        raise XenError(Errno.EINVAL, "memory_exchange for memory of one node")
    if request.in_domid != DOMID_SELF:
        call.own(request.in_domid)
    return _Exchange(call, request, argument).run()


def _check(call: Call, request: MemoryExchange) -> None:
    """EPERM: extents too large; EINVAL: the two sides do not match."""
    orders = request.in_extent_order, request.out_extent_order
    given, wanted = request.in_nr_extents, request.out_nr_extents
    if max(orders) > MAX_ORDER and (call.width == 64 or max(orders) < 32):
        raise XenError(Errno.EPERM, "memory_exchange of large extents")
    most = (1 << call.width) - 1
    if max(orders) > MAX_ORDER or request.nr_exchanged > given or request.in_domid != request.out_domid:
        raise XenError(Errno.EINVAL, "memory_exchange beyond its list, or between domains")
    if given > most >> orders[0] or wanted > most >> orders[1] or given << orders[0] != wanted << orders[1]:
        raise XenError(Errno.EINVAL, "memory_exchange of unequal amounts")


def _check_lists(call: Call, request: MemoryExchange) -> None:
    """The elements still to be touched must be in the guest's space (XSA-212). EFAULT.

    Of a 64-bit guest's list only the beginning is looked at: before a list that begins below the hypervisor
    gets there, it meets addresses that are not canonical.
    """
    grow = request.out_extent_order - request.in_extent_order
    first_out = request.nr_exchanged >> grow if grow > 0 else request.nr_exchanged << -grow
    for base, first, count in (
        (request.in_extent_start, request.nr_exchanged, request.in_nr_extents),
        (request.out_extent_start, first_out, request.out_nr_extents),
    ):
        begin = base + call.word * first & MASK64
        if call.width == 64:
            usable = count - first < MASK64 // 8 and guest_may_use(begin)
        else:
            usable = guest_may_use(base + 4 * max(count, 1) - 1, 32)
        if not usable:
            raise XenError(Errno.EFAULT, "memory_exchange list outside the guest's space")


class _Exchange:
    """One call under way."""

    def __init__(self, call: Call, request: MemoryExchange, argument: int) -> None:
        self._call = call
        self._request = request
        self._argument = argument
        self._limit = frame_limit(request.out_mem_flags)
        order = max(request.in_extent_order, request.out_extent_order)
        self._in_step = 1 << order - request.in_extent_order
        self._out_step = 1 << order - request.out_extent_order
        self._chunk = 1 << order

    def run(self) -> int:
        """Exchange chunk by chunk; what is done stands in the request, also if a chunk fails."""
        call, request = self._call, self._request
        if call.width == 32 and request.nr_exchanged % self._in_step:
            raise XenError(Errno.EINVAL, "memory_exchange resumed inside a chunk")
        steps = 0
        number = request.nr_exchanged // self._in_step
        try:
            while number < request.in_nr_extents // self._in_step:
                if steps >= STEPS_A_LOOK:
                    if call.preempted(steps):
                        raise Again(MemoryOp.EXCHANGE, self._argument)
                    steps = 0
                self._one(number)
                number += 1
                steps += self._chunk
            call.preempted(steps)
        finally:
            request.nr_exchanged = number * self._in_step
            call.write(self._argument, request)
        return 0

    def _given(self, number: int) -> list[int]:
        """The frames of a chunk: the caller's, unmapped, each named once. EINVAL, EFAULT."""
        call, request, frames = self._call, self._request, self._call.frames
        first = request.in_extent_start + call.word * number * self._in_step
        given = [
            call.read_word(first + call.word * n) + index
            for n in range(self._in_step)
            for index in range(1 << request.in_extent_order)
        ]
        for mfn in given:
            call.own_frame(mfn)
            if not frames.allocated[mfn] or frames.refs[mfn] != 1:
                raise XenError(Errno.EINVAL, f"memory_exchange of {frames.describe(mfn)}, which is in use")
        if len(set(given)) != len(given):
            raise XenError(Errno.EINVAL, "memory_exchange of a frame for itself")
        return given

    def _one(self, number: int) -> None:
        """Exchange a chunk. EINVAL, EFAULT, ENOMEM; nothing has changed then."""
        call, request = self._call, self._request
        given = self._given(number)
        first = request.out_extent_start + call.word * number * self._out_step
        places = [first + call.word * n for n in range(self._out_step)]
        pfns = [call.read_word(place) for place in places]
        for place in places:
            call.memory.for_write(place)
            call.memory.for_write(place + call.word - 1)
        extents: list[list[Mfn]] = []
        for _ in places:
            extent = take_extent(call, request.out_extent_order, self._limit, exchanging=True)
            if extent is None:
                for taken in (frame for extent in extents for frame in extent):
                    give_back(call, taken)
                raise XenError(Errno.ENOMEM, "no frames for memory_exchange")
            extents.append(extent)
        for mfn in given:
            give_back(call, mfn)
        m2p = call.frames.m2p
        assert m2p is not None
        for place, pfn, extent in zip(places, pfns, extents, strict=True):
            for index, mfn in enumerate(extent):
                m2p[mfn] = pfn + index & MASK64
            call.write_word(place, extent[0])
