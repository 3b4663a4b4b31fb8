# SPDX-License-Identifier: GPL-2.0-only
"""grant_table_op (public header `grant_table.h`): the table itself - its size, version and housekeeping.

Each operation has a status of its own (GNTST); the call fails as a whole only for unreadable arguments, and
in the operations that take no list. What uses other domains' tables is in `grantmap` and `grantcopy`; the
accounts are in `grants/`.
"""

from collections.abc import Callable
from functools import update_wrapper
from typing import Final, TypeVar

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.grants import CacheFlag, GrantStatus
from pyhv.abi.numbers import Gnttab, Hypercall
from pyhv.abi.structs import (
    GnttabCacheFlush,
    GnttabCopy,
    GnttabGetStatusFrames,
    GnttabGetVersion,
    GnttabMapGrantRef,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSetVersion,
    GnttabSwapGrantRef,
    GnttabTransfer,
    GnttabUnmapAndReplace,
    GnttabUnmapGrantRef,
)
from pyhv.address import PAGE_SHIFT, PAGE_SIZE, guest_may_use
from pyhv.domain.domain import Domain
from pyhv.errors import XenError
from pyhv.grants.status import GrantError
from pyhv.grants.table import GrantTable
from pyhv.hypercalls.context import Again, Call
from pyhv.hypercalls.signature import Ptr, u32
from pyhv.hypercalls.table import Commands, hypercall

_R = TypeVar(
    "_R", GnttabSetupTable, GnttabGetStatusFrames, GnttabQuerySize, GnttabSwapGrantRef, GnttabMapGrantRef,
    GnttabUnmapGrantRef, GnttabUnmapAndReplace, GnttabCopy, GnttabTransfer,
)  # fmt: skip
"""The structures that hold a `status`."""
_Handler = Callable[[Call, int, int], int]
commands = Commands[[int, int], int](Hypercall.GRANT_TABLE_OP, Gnttab)
"""All sub-operations; `grantmap` and `grantcopy` add theirs."""

_COMMAND_BITS: Final = 12
"""The command's upper bits are Xen's own, for continuing a long cache flush."""
_COUNT_LIMIT: Final = 1 << 31
_CACHE_OPERATIONS: Final = (CacheFlag.CLEAN | CacheFlag.INVALIDATE).value
_TOOLSTACK_ENTRIES: Final = 512
"""Domain 0 has a table of one frame, and has granted nothing."""


@hypercall(Hypercall.GRANT_TABLE_OP)
def grant_table_op(call: Call, command: u32, argument: Ptr, count: u32) -> int:
    """Set up the grant table; map, unmap, copy and transfer grants: a list of `count` structures. Gives way.

    EINVAL: 2**31 structures or more, or bits above the command's; ENOSYS: no such command; EFAULT: a list
    outside the guest's space; then for each structure EFAULT: it cannot be read or its result not stored.
    What else is wrong, its `status` says (GNTST), and the list goes on.
    """
    if count >= _COUNT_LIMIT or command >> _COMMAND_BITS:
        raise XenError(Errno.EINVAL, f"grant_table_op {command:#x}, count {count:#x}")
    handler = commands[command]
    if not guest_may_use(argument, call.width):
        raise XenError(Errno.EFAULT, f"grant_table_op at {argument:#x}")
    try:
        return handler(call, argument, count)
    except Again as again:
        rest, left = again.arguments
        raise Again(command, rest, left) from again


def on_each(
    number: Gnttab, kind: type[_R], *, alone: bool = False
) -> Callable[[Callable[[Call, _R], None]], _Handler]:
    """Enter an operation on one structure, which has a `status`, as the handler of a list of them.

    Of one that is `alone` the count must be 1: EINVAL.
    """

    def enter(perform: Callable[[Call, _R], None]) -> _Handler:
        def run(call: Call, argument: int, count: int) -> int:
            if alone and count != 1:
                raise XenError(Errno.EINVAL, f"{number.name.lower()} of {count} structures")
            size = kind.size(call.width)
            for index in range(count):
                at = argument + size * index
                request = call.read(kind, at)
                try:
                    perform(call, request)
                    request.status = GrantStatus.OKAY
                except GrantError as error:
                    request.status = error.status
                call.write(at, request)
                give_way(call, index, count, at + size)
            return 0

        return commands.command(number, kind)(update_wrapper(run, perform))

    return enter


def give_way(call: Call, number: int, count: int, rest: int) -> None:
    """After element `number` of `count`: give way if the turn is over. `rest` is where the next one is."""
    if call.gives_way(number + 1, count):
        raise Again(rest, count - number - 1)


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


@on_each(Gnttab.SETUP_TABLE, GnttabSetupTable, alone=True)
def setup_table(call: Call, request: GnttabSetupTable) -> None:
    """Let the table of domain `dom`, the caller, grow, and list its first frames, to be mapped.

    EINVAL: a count other than 1; EFAULT: a list outside the guest's space. Status: BAD_DOMAIN,
    PERMISSION_DENIED: another domain; GENERAL_ERROR: more frames than the limit; BAD_VIRT_ADDR: the list.
    """
    _check_list(call, request.frame_list)
    frames = _own(call, request.dom).setup(request.nr_frames)
    try:
        for index, mfn in enumerate(frames):
            call.write_word(request.frame_list + call.word * index, mfn)
    except XenError as error:
        raise GrantError(GrantStatus.BAD_VIRT_ADDR, "frame list") from error


@on_each(Gnttab.GET_STATUS_FRAMES, GnttabGetStatusFrames, alone=True)
def get_status_frames(call: Call, request: GnttabGetStatusFrames) -> None:
    """List the frames of a table's statuses (version 2), with 64-bit elements for guests of either width.

    EINVAL: a count other than 1; EFAULT: a list outside the guest's space. Status: BAD_DOMAIN,
    PERMISSION_DENIED: another domain; GENERAL_ERROR: there are not so many; BAD_VIRT_ADDR: the list.
    """
    _check_list(call, request.frame_list)
    frames = _own(call, request.dom).status_setup(request.nr_frames)
    try:
        for index, mfn in enumerate(frames):
            call.memory.write_u64(request.frame_list + 8 * index, mfn)
    except XenError as error:
        raise GrantError(GrantStatus.BAD_VIRT_ADDR, "frame list") from error


@on_each(Gnttab.QUERY_SIZE, GnttabQuerySize, alone=True)
def query_size(call: Call, request: GnttabQuerySize) -> None:
    """Tell how many frames the table has, and may have.

    EINVAL: a count other than 1. Status: BAD_DOMAIN, PERMISSION_DENIED: another domain.
    """
    request.nr_frames, request.max_nr_frames = _own(call, request.dom).query()


@commands.command(Gnttab.SET_VERSION, GnttabSetVersion)
def set_version(call: Call, argument: int, _count: int) -> int:
    """Choose the version of the table's entries, which clears all but the reserved ones.

    EINVAL: neither 1 nor 2; EBUSY: an entry is in use; ERANGE: a reserved one says what version 1 cannot;
    EBUSY: a status frame is mapped; ENOMEM. The version in force is told in any case.
    """
    request = call.read(GnttabSetVersion, argument)
    grants = call.domain.grants
    try:
        grants.set_version(request.version)
    finally:
        request.version = grants.version
        call.write(argument, request)
    return 0


@commands.command(Gnttab.GET_VERSION, GnttabGetVersion)
def get_version(call: Call, argument: int, _count: int) -> int:
    """Tell the version of the table of domain `dom`, the caller.

    ESRCH: no such domain; EPERM: not the caller.
    """
    request = call.read(GnttabGetVersion, argument)
    call.own(request.dom)
    request.version = call.domain.grants.version
    call.write(argument, request)
    return 0


# -- housekeeping ------------------------------------------------------------------------------------------


@on_each(Gnttab.SWAP_GRANT_REF, GnttabSwapGrantRef)
def swap_grant_ref(call: Call, request: GnttabSwapGrantRef) -> None:
    """Exchange two entries of the caller's.

    Status: BAD_GNTREF: beyond the table; EAGAIN: one is in use.
    """
    call.domain.grants.swap(request.ref_a, request.ref_b)


@commands.command(Gnttab.CACHE_FLUSH, GnttabCacheFlush)
def cache_flush(call: Call, argument: int, count: int) -> int:
    """Flush parts of pages, own or mapped, from the caches, of which there are none.

    EINVAL: beyond a page, no such operation, no such frame, or one that is neither the caller's nor mapped by
    it; EPERM: one that is no domain's; EOPNOTSUPP: to invalidate without writing back.
    """
    size = GnttabCacheFlush.size(call.width)
    for number in range(count):
        at = argument + size * number
        _flush_one(call, call.read(GnttabCacheFlush, at))
        give_way(call, number, count, at + size)
    return 0


def _flush_one(call: Call, request: GnttabCacheFlush) -> None:
    """EINVAL: beyond a page, or a frame that the caller does not have; EPERM: it is no domain's at all;
    EOPNOTSUPP: to invalidate only."""
    frames = call.frames
    beyond = request.offset >= PAGE_SIZE or request.offset + request.length > PAGE_SIZE
    if beyond or request.op & ~_CACHE_OPERATIONS:
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
    if request.op == CacheFlag.INVALIDATE:
        raise XenError(Errno.EOPNOTSUPP, "x86 does not invalidate without writing back")


commands.refuse(Gnttab.DUMP_TABLE, Errno.ENOSYS, "Print a table on the hypervisor's console.")
