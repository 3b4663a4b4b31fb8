# SPDX-License-Identifier: GPL-2.0-only
"""grant_table_op (public header `grant_table.h`): version 1 tables; accounting is `grants/`.

Each operation has a status of its own (GNTST); the call fails as a whole only for unreadable arguments.
"""

from collections.abc import Callable
from typing import TypeVar

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.layout import AbiStruct
from pyhv.abi.numbers import (
    GRANT_MAP_APPLICATION,
    GRANT_MAP_CONTAINS_PTE,
    GRANT_MAP_DEVICE,
    GRANT_MAP_HOST,
    GRANT_MAP_READONLY,
    Gnttab,
)
from pyhv.abi.structs import (
    GnttabCacheFlush,
    GnttabCopy,
    GnttabGetVersion,
    GnttabMapGrantRef,
    GnttabQuerySize,
    GnttabSetupTable,
    GnttabSetVersion,
    GnttabSwapGrantRef,
    GnttabUnmapGrantRef,
)
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_MFN_MASK, PTE_NX, PTE_P, PTE_RW, PTE_US
from pyhv.address import PAGE_SIZE, Va, guest_may_use
from pyhv.domain import Domain
from pyhv.errors import XenError
from pyhv.grants.maptrack import Mapping
from pyhv.grants.table import GrantError, GrantStatus, MapFlag
from pyhv.hypercalls.context import STEPS_A_LOOK, Again, Call
from pyhv.hypercalls.table import Commands, Status, hypercall
from pyhv.mmu.frames import L1

_R = TypeVar("_R", bound=AbiStruct)
_commands = Commands("grant_table_op", Gnttab)
_HALVES = GRANT_MAP_DEVICE | GRANT_MAP_HOST
_SOURCE_GREF, _DEST_GREF = 1, 2
_COUNT_LIMIT = 1 << 31


@hypercall(
    20, "grant_table_op", "command:u32 argument:ptr count:u32", Status.PARTIAL, "version 1 tables only"
)
def grant_table_op(call: Call, command: int, argument: int, count: int) -> int:
    """Set up the grant table, map, unmap and copy grants."""
    if count >= _COUNT_LIMIT:
        raise XenError(Errno.EINVAL, f"grant_table_op count {count:#x}")
    handler = _commands.handlers.get(command)
    if handler is None:
        raise XenError(Errno.ENOSYS, f"grant_table_op {command}")
    try:
        result: int = handler(call, argument, count)
    except Again as again:
        _, rest, left = again.arguments
        raise Again(command, rest, left) from again
    return result


def _each(kind: type[_R], perform: Callable[[Call, _R], None]) -> Callable[[Call, int, int], int]:
    """Run an operation over an array of `count` structures, each with a `status`."""

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
            left = count - number - 1
            if left and left % STEPS_A_LOOK == 0 and call.preempted(STEPS_A_LOOK):
                raise Again(0, at + size, left)
        return 0

    return run


def _single(argument_count: int) -> None:
    if argument_count != 1:
        raise XenError(Errno.EINVAL, "grant_table_op takes one structure here")


def _domain(call: Call, domid: int) -> Domain:
    """Whose grants are meant. Domain 0, the toolstack's, exists and has granted nothing."""
    if domid == DOMID_SELF:
        return call.domain
    if domid == 0:
        raise GrantError(GrantStatus.GENERAL_ERROR, "domain 0 has granted nothing")
    found = call.host.domain(domid)
    if found is None:
        raise GrantError(GrantStatus.BAD_DOMAIN, f"no domain {domid}")
    return found


def _only_self(call: Call, domid: int) -> Domain:
    if domid == 0 or _domain(call, domid) is not call.domain:
        raise GrantError(GrantStatus.PERMISSION_DENIED, f"table of domain {domid}")
    return call.domain


def _setup(call: Call, request: GnttabSetupTable) -> None:
    table = _only_self(call, request.dom).grants
    frames = table.setup(request.nr_frames)
    try:
        for index, mfn in enumerate(frames[: request.nr_frames]):
            call.write_word(request.frame_list + call.word * index, mfn)
    except XenError as error:
        raise GrantError(GrantStatus.BAD_VIRT_ADDR, "frame list") from error


@_commands.command(Gnttab.SETUP_TABLE)
def _setup_table(call: Call, argument: int, count: int) -> int:
    _single(count)
    return _each(GnttabSetupTable, _setup)(call, argument, count)


def _query(call: Call, request: GnttabQuerySize) -> None:
    request.nr_frames, request.max_nr_frames = _only_self(call, request.dom).grants.query()


@_commands.command(Gnttab.QUERY_SIZE)
def _query_size(call: Call, argument: int, count: int) -> int:
    _single(count)
    return _each(GnttabQuerySize, _query)(call, argument, count)


@_commands.command(Gnttab.SET_VERSION, Status.PARTIAL, "version 2 is disabled: ENOSYS")
def _set_version(call: Call, argument: int, count: int) -> int:
    _single(count)
    request = call.read(GnttabSetVersion, argument)
    request.version = call.domain.grants.set_version(request.version)
    call.write(argument, request)
    return 0


@_commands.command(Gnttab.GET_VERSION)
def _get_version(call: Call, argument: int, count: int) -> int:
    _single(count)
    request = call.read(GnttabGetVersion, argument)
    call.own(request.dom)
    request.version = call.domain.grants.version
    call.write(argument, request)
    return 0


# -- map and unmap -----------------------------------------------------------------------------------------


def _entry_address(call: Call, host_addr: int, flags: int) -> int:
    """Machine address of the L1 entry that a host mapping uses."""
    frames = call.frames
    if flags & GRANT_MAP_CONTAINS_PTE:
        address: int | None = host_addr
        if host_addr & 7:
            raise GrantError(GrantStatus.GENERAL_ERROR, f"PTE address {host_addr:#x}")
    else:
        address = call.memory.leaf_entry(Va(host_addr)) if guest_may_use(host_addr) else None
    if address is None or not 0 < address >> 12 < frames.count:
        raise GrantError(GrantStatus.GENERAL_ERROR, f"no page table for {host_addr:#x}")
    mfn = address >> 12
    if frames.owner[mfn] != call.domain.domid or frames.type[mfn] != L1 or not frames.type_count[mfn]:
        raise GrantError(GrantStatus.GENERAL_ERROR, f"{frames.describe(mfn)} is not an L1 of the caller")
    return address


def _map(call: Call, request: GnttabMapGrantRef) -> None:
    flags = request.flags
    if not flags & _HALVES:
        raise GrantError(GrantStatus.BAD_GNTREF, "neither a host nor a device mapping")
    granter = _domain(call, request.dom)
    call.domain.maptrack.check_space()
    readonly = bool(flags & GRANT_MAP_READONLY)
    halves = MapFlag(flags & _HALVES)
    mfn = granter.grants.acquire(request.ref, call.domain.domid, readonly, halves)
    frames = call.frames
    taken = 0
    try:
        if not 0 < mfn < frames.count or frames.owner[mfn] != granter.domid:
            raise GrantError(GrantStatus.BAD_PAGE, f"granted {frames.describe(mfn)}")
        for half in (GRANT_MAP_DEVICE, GRANT_MAP_HOST):
            if flags & half:
                _take(call, mfn, readonly)
                taken += 1
        if flags & GRANT_MAP_HOST:
            address = _entry_address(call, request.host_addr, flags)
            entry = mfn << 12 | PTE_P | PTE_A | PTE_D | PTE_NX | (flags >> 16 & 7) << 9
            entry |= (0 if readonly else PTE_RW) | (PTE_US if flags & GRANT_MAP_APPLICATION else 0)
            call.tables.replace_leaf(address, call.tables.adjust_leaf(entry))
    except GrantError:
        for _ in range(taken):
            _drop(call, mfn, readonly)
        granter.grants.release(request.ref, readonly, halves)
        raise
    mapping = Mapping(granter.domid, request.ref, MapFlag(flags & 0x1F), request.host_addr, mfn)
    request.handle = call.domain.maptrack.add(mapping)
    request.dev_bus_addr = mfn << 12


def _take(call: Call, mfn: int, readonly: bool) -> None:
    frames = call.frames
    if readonly:
        frames.refs[mfn] += 1
    elif not frames.get_writable(mfn):
        raise GrantError(GrantStatus.GENERAL_ERROR, f"writable grant of {frames.describe(mfn)}")


def _drop(call: Call, mfn: int, readonly: bool) -> None:
    if readonly:
        call.frames.put(mfn)
    else:
        call.frames.put_writable(mfn)


@_commands.command(Gnttab.MAP_GRANT_REF)
def _map_grant_ref(call: Call, argument: int, count: int) -> int:
    return _each(GnttabMapGrantRef, _map)(call, argument, count)


def _unmap(call: Call, request: GnttabUnmapGrantRef) -> None:
    track = call.domain.maptrack
    mapping, halves = track.select(request.handle, request.host_addr, request.dev_bus_addr)
    granter = call.host.any_domain(mapping.granter)
    if MapFlag.HOST in halves:
        address = _entry_address(call, mapping.host_addr, mapping.flags)
        entry = call.domain.ram.q[address >> 3]
        same = (entry & PTE_MFN_MASK) >> 12 == mapping.frame and entry & PTE_P
        if not same or bool(entry & PTE_RW) == mapping.readonly:
            raise GrantError(GrantStatus.GENERAL_ERROR, "the mapping is no longer there")
        call.tables.replace_leaf(address, 0)
        call.tables.flush = True
    if MapFlag.DEVICE in halves:
        _drop(call, mapping.frame, mapping.readonly)
    if halves:
        if granter is not None:
            granter.grants.release(mapping.ref, mapping.readonly, halves)
        track.end(request.handle, halves)


@_commands.command(Gnttab.UNMAP_GRANT_REF)
def _unmap_grant_ref(call: Call, argument: int, count: int) -> int:
    return _each(GnttabUnmapGrantRef, _unmap)(call, argument, count)


# -- copy --------------------------------------------------------------------------------------------------


def _copy(call: Call, request: GnttabCopy) -> None:
    length = request.length
    if request.source_offset + length > PAGE_SIZE or request.dest_offset + length > PAGE_SIZE:
        raise GrantError(GrantStatus.BAD_COPY_ARG, "copy beyond a page")
    source, end_source = _copy_side(
        call, request.source, request.source_domid, bool(request.flags & _SOURCE_GREF), readonly=True
    )
    try:
        dest, end_dest = _copy_side(
            call, request.dest, request.dest_domid, bool(request.flags & _DEST_GREF), readonly=False
        )
        try:
            data = call.host.physical.read((source << 12) + request.source_offset, length)
            call.host.physical.write((dest << 12) + request.dest_offset, data)
        finally:
            end_dest()
    finally:
        end_source()


def _copy_side(
    call: Call, name: int, domid: int, granted: bool, *, readonly: bool
) -> tuple[int, Callable[[], None]]:
    """The frame of one side of a copy, held, and how to let go of it."""
    frames = call.frames
    if not granted and domid != DOMID_SELF:
        raise GrantError(GrantStatus.PERMISSION_DENIED, f"frame of domain {domid} without a grant")
    domain = _domain(call, domid)
    if granted:
        ref = name & 0xFFFF_FFFF
        mfn: int = domain.grants.acquire(ref, call.domain.domid, readonly)
    else:
        ref, mfn = 0, name

    def release_grant() -> None:
        if granted:
            domain.grants.release(ref, readonly)

    if not 0 < mfn < frames.count or frames.owner[mfn] != domain.domid:
        release_grant()
        raise GrantError(GrantStatus.BAD_PAGE, f"copy of {frames.describe(mfn)}")
    try:
        _take(call, mfn, readonly)
    except GrantError:
        release_grant()
        raise

    def let_go() -> None:
        _drop(call, mfn, readonly)
        release_grant()

    return mfn, let_go


@_commands.command(Gnttab.COPY)
def _copy_command(call: Call, argument: int, count: int) -> int:
    return _each(GnttabCopy, _copy)(call, argument, count)


def _swap(call: Call, request: GnttabSwapGrantRef) -> None:
    call.domain.grants.swap(request.ref_a, request.ref_b)


@_commands.command(Gnttab.SWAP_GRANT_REF)
def _swap_grant_ref(call: Call, argument: int, count: int) -> int:
    return _each(GnttabSwapGrantRef, _swap)(call, argument, count)


@_commands.command(Gnttab.CACHE_FLUSH)
def _cache_flush(call: Call, argument: int, count: int) -> int:
    size = GnttabCacheFlush.size(call.width)
    for number in range(count):
        request = call.read(GnttabCacheFlush, argument + size * number)
        if request.offset >= PAGE_SIZE or request.length > PAGE_SIZE - request.offset or request.op > 7:
            raise XenError(Errno.EINVAL, "cache flush beyond a page")
        if request.length == 0 or request.op == 0:
            continue
        mfn = request.address >> 12
        if not 0 < mfn < call.frames.count or call.frames.owner[mfn] != call.domain.domid:
            raise XenError(Errno.EPERM, f"cache flush of {call.frames.describe(mfn)}")
    return 0


_commands.refuse({
    Gnttab.TRANSFER: Errno.EOPNOTSUPP,
    Gnttab.DUMP_TABLE: Errno.ENOSYS,
    Gnttab.UNMAP_AND_REPLACE: Errno.ENOSYS,
    Gnttab.GET_STATUS_FRAMES: Errno.ENOSYS,
})  # fmt: skip
