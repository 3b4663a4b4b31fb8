# SPDX-License-Identifier: GPL-2.0-only
"""grant_table_op (public header `grant_table.h`): the table itself - its size, version and housekeeping.

Each operation has a status of its own (GNTST); the call fails as a whole only for unreadable arguments, and
in the operations that take no list. What uses other domains' tables is in `grantmap` and `grantcopy`; the
accounts are in `grants/`.
"""

from collections.abc import Callable
from typing import TypeVar

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.layout import AbiStruct
from pyhv.abi.numbers import Gnttab
from pyhv.abi.structs import (
    GnttabCacheFlush,
    GnttabGetStatusFrames,
    GnttabGetVersion,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSetVersion,
    GnttabSwapGrantRef,
)
from pyhv.address import PAGE_SHIFT, PAGE_SIZE, guest_may_use
from pyhv.domain.domain import Domain
from pyhv.errors import XenError
from pyhv.grants.status import GrantError, GrantStatus
from pyhv.grants.table import GrantTable
from pyhv.hypercalls.context import Again, Call
from pyhv.hypercalls.table import Commands, hypercall

_R = TypeVar("_R", bound=AbiStruct)
commands = Commands("grant_table_op", Gnttab)
"""All sub-operations; `grantmap` and `grantcopy` add theirs."""

_COMMAND_BITS = 12
"""The command's upper bits are Xen's own, for continuing a long cache flush."""
_COUNT_LIMIT = 1 << 31
_TOOLSTACK_ENTRIES = 512
"""Domain 0 has a table of one frame, and has granted nothing."""
_CACHE_CLEAN, _CACHE_INVALIDATE = 1, 2


@hypercall(20, "grant_table_op", "command:u32 argument:ptr count:u32")
def grant_table_op(call: Call, command: int, argument: int, count: int) -> int:
    """Set up the grant table; map, unmap, copy and transfer grants."""
    if count >= _COUNT_LIMIT or command >> _COMMAND_BITS:
        raise XenError(Errno.EINVAL, f"grant_table_op {command:#x}, count {count:#x}")
    handler = commands.handlers.get(command)
    if handler is None:
        raise XenError(Errno.ENOSYS, f"grant_table_op {command}")
    if not guest_may_use(argument, call.width):
        raise XenError(Errno.EFAULT, f"grant_table_op at {argument:#x}")
    try:
        result: int = handler(call, argument, count)
    except Again as again:
        rest, left = again.arguments
        raise Again(command, rest, left) from again
    return result


def perform_each(kind: type[_R], perform: Callable[[Call, _R], None]) -> Callable[[Call, int, int], int]:
    """The handler that runs an operation over an array of `count` structures, each with a `status`."""

    def run(call: Call, argument: int, count: int) -> int:
        size = kind.size(call.width)
        for number in range(count):
            at = argument + size * number
            request = call.read(kind, at)
            try:
                perform(call, request)
                status = GrantStatus.OKAY
            except GrantError as error:
                status = error.status
            request.__dict__["status"] = int(status)
            call.write(at, request)
            look(call, number, count, at + size)
        return 0

    return run


def look(call: Call, number: int, count: int, rest: int) -> None:
    """After element `number` of `count`: give way if the turn is over. `rest` is where the next one is."""
    if call.gives_way(number + 1, count):
        raise Again(rest, count - number - 1)


def _single(kind: type[_R], perform: Callable[[Call, _R], None]) -> Callable[[Call, int, int], int]:
    """As `perform_each`, for an operation whose count must be 1."""
    run = perform_each(kind, perform)

    def once(call: Call, argument: int, count: int) -> int:
        if count != 1:
            raise XenError(Errno.EINVAL, "grant_table_op takes one structure here")
        return run(call, argument, count)

    return once


# -- whose table -------------------------------------------------------------------------------------------


def table_of(call: Call, domid: int, ref: int) -> GrantTable:
    """The table in which domain `domid` may have granted `ref`. BAD_DOMAIN; what domain 0 says."""
    if domid == 0:
        known = ref < _TOOLSTACK_ENTRIES
        raise GrantError(
            GrantStatus.GENERAL_ERROR if known else GrantStatus.BAD_GNTREF, "domain 0 has granted nothing"
        )
    return living(call, domid).grants


def living(call: Call, domid: int) -> Domain:
    """A domain by its number (DOMID_SELF is none). BAD_DOMAIN."""
    found = call.host.domain(domid)
    if found is None:
        raise GrantError(GrantStatus.BAD_DOMAIN, f"no domain {domid}")
    return found


def _own(call: Call, domid: int) -> GrantTable:
    """The caller's table, by its number or as DOMID_SELF. BAD_DOMAIN, PERMISSION_DENIED."""
    if domid not in (DOMID_SELF, call.domain.domid):
        if domid != 0:
            living(call, domid)
        raise GrantError(GrantStatus.PERMISSION_DENIED, f"table of domain {domid}")
    return call.domain.grants


# -- size and version --------------------------------------------------------------------------------------


def _check_list(call: Call, address: int) -> None:
    if not guest_may_use(address, call.width):
        raise XenError(Errno.EFAULT, f"frame list at {address:#x}")


def _setup(call: Call, request: GnttabSetupTable) -> None:
    _check_list(call, request.frame_list)
    frames = _own(call, request.dom).setup(request.nr_frames)
    try:
        for index, mfn in enumerate(frames):
            call.write_word(request.frame_list + call.word * index, mfn)
    except XenError as error:
        raise GrantError(GrantStatus.BAD_VIRT_ADDR, "frame list") from error


commands.command(Gnttab.SETUP_TABLE)(_single(GnttabSetupTable, _setup))


def _status_frames(call: Call, request: GnttabGetStatusFrames) -> None:
    """The list has 64-bit elements for guests of either width."""
    _check_list(call, request.frame_list)
    frames = _own(call, request.dom).status_setup(request.nr_frames)
    try:
        for index, mfn in enumerate(frames):
            call.memory.write_u64(request.frame_list + 8 * index, mfn)
    except XenError as error:
        raise GrantError(GrantStatus.BAD_VIRT_ADDR, "frame list") from error


commands.command(Gnttab.GET_STATUS_FRAMES)(_single(GnttabGetStatusFrames, _status_frames))


def _query(call: Call, request: GnttabQuerySize) -> None:
    request.nr_frames, request.max_nr_frames = _own(call, request.dom).query()


commands.command(Gnttab.QUERY_SIZE)(_single(GnttabQuerySize, _query))


@commands.command(Gnttab.SET_VERSION, note="the version in force is told also where it stays")
def _set_version(call: Call, argument: int, _count: int) -> int:
    request = call.read(GnttabSetVersion, argument)
    grants = call.domain.grants
    try:
        grants.set_version(request.version)
    finally:
        request.version = grants.version
        call.write(argument, request)
    return 0


@commands.command(Gnttab.GET_VERSION)
def _get_version(call: Call, argument: int, _count: int) -> int:
    request = call.read(GnttabGetVersion, argument)
    call.own(request.dom)
    request.version = call.domain.grants.version
    call.write(argument, request)
    return 0


# -- housekeeping ------------------------------------------------------------------------------------------


def _swap(call: Call, request: GnttabSwapGrantRef) -> None:
    call.domain.grants.swap(request.ref_a, request.ref_b)


commands.command(Gnttab.SWAP_GRANT_REF)(perform_each(GnttabSwapGrantRef, _swap))


@commands.command(Gnttab.CACHE_FLUSH, note="checked; there is no cache to flush")
def _cache_flush(call: Call, argument: int, count: int) -> int:
    size = GnttabCacheFlush.size(call.width)
    for number in range(count):
        at = argument + size * number
        _flush_one(call, call.read(GnttabCacheFlush, at))
        look(call, number, count, at + size)
    return 0


def _flush_one(call: Call, request: GnttabCacheFlush) -> None:
    """EINVAL: beyond a page, or a frame that the caller does not have; EPERM: it is no domain's at all;
    EOPNOTSUPP: to invalidate only."""
    frames = call.frames
    beyond = request.offset >= PAGE_SIZE or request.offset + request.length > PAGE_SIZE
    if beyond or request.op & ~(_CACHE_CLEAN | _CACHE_INVALIDATE):
        raise XenError(Errno.EINVAL, "cache flush beyond a page")
    if request.length == 0 or request.op == 0:
        return
    mfn = request.address >> PAGE_SHIFT
    if not 0 < mfn < frames.count:
        raise XenError(Errno.EINVAL, f"cache flush of {frames.describe(mfn)}")
    owner = frames.owner[mfn]
    if owner != call.domain.domid and not call.domain.maptrack.borrows(mfn):
        errno = Errno.EPERM if call.host.any_domain(owner) is None else Errno.EINVAL
        raise XenError(errno, f"cache flush of {frames.describe(mfn)}, which is not mapped")
    if request.op == _CACHE_INVALIDATE:
        raise XenError(Errno.EOPNOTSUPP, "x86 does not invalidate without writing back")


commands.refuse({Gnttab.DUMP_TABLE: Errno.ENOSYS})
