# SPDX-License-Identifier: GPL-2.0-only
"""Page-table hypercalls: mmu_update, update_va_mapping, mmuext_op (public header `xen.h`).

Decoding and order of checks are here; the rules of approval are `mmu/tables.py`.
"""

from collections.abc import Callable

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import UVMF_FLUSH_MASK, UVMF_INVLPG, Hypercall, Mmu, Mmuext
from pyhv.abi.structs import MmuextOp, MmuUpdate
from pyhv.address import PAGE_MASK, PAGE_SIZE, Mfn, Va, guest_may_use
from pyhv.errors import XenError
from pyhv.hypercalls.context import Again, Call
from pyhv.hypercalls.signature import Ptr, u32, u64, ulong
from pyhv.hypercalls.table import Commands, hypercall
from pyhv.mmu import stepwise
from pyhv.mmu.frames import L1, L4, SEGDESC, WRITABLE
from pyhv.mmu.tables import MOST_AT_ONCE, NO_LIMIT, TooMuch

_REQUEST = MmuUpdate.layout64.packer
_CONTINUED = 1 << 31
"""In a count: this is the rest of a list whose beginning is done."""


def _foreign(call: Call, foreigndom: int) -> None:
    """Check the domains that a request names: only the caller's own."""
    if foreigndom == DOMID_SELF:
        return
    owner = foreigndom >> 16
    if owner:
        call.own(owner - 1)
    call.own(foreigndom & 0xFFFF)


def _finish(call: Call, done: int, completed: int) -> None:
    if done:
        call.memory.write_u32(done, completed)


@hypercall(Hypercall.MMU_UPDATE)
def mmu_update(call: Call, requests: Ptr, count: u32, done: Ptr, foreigndom: u32) -> int:
    """Change page-table entries by machine address, or the M2P: a list of `MmuUpdate`. Gives way.

    ESRCH: no domain `foreigndom`; EPERM: not the caller; then for each entry EFAULT: it cannot be read;
    ENOSYS: no such command in its low bits; EINVAL: the frame is not the caller's, or holds descriptors, or
    what the entry shall say is refused. The first refusal ends the list. `*done` is how many were done, in
    any case but that of the domain.
    """
    _foreign(call, foreigndom)
    if count == 1 and requests & PAGE_MASK <= PAGE_SIZE - _REQUEST.size and _only_one(call, requests, done):
        return 0

    def perform(raw: bytes) -> None:
        _update(call, *_REQUEST.unpack(raw))

    return _each(call, (requests, count, done, foreigndom), _REQUEST.size, perform)


def _only_one(call: Call, requests: int, done: int) -> bool:
    """A list of one entry within a page, by far the most common one: `_each` without its loop.

    False, and nothing is done: it is of an upper table, whose approval may take more than one turn.
    """
    try:
        address, value = _REQUEST.unpack_from(call.domain.ram.raw, call.memory.for_read(requests))
        mfn = address >> 12
        if mfn < call.frames.count and L1 < call.frames.type[mfn] <= L4:
            return False
        _update(call, address, value)
    except XenError:
        _finish(call, done, 0)
        raise
    _finish(call, done, 1)
    return True


def _each(
    call: Call, arguments: tuple[int, int, int, int], size: int, perform: Callable[[bytes], None]
) -> int:
    """Perform each structure of a list; (list, count, done*, domain) are the hypercall's arguments.

    The first refusal ends the list. A long list, or one with large trees of page tables in it, is continued
    in another turn: bit 31 of the count then says that `*done` already holds a number, and the count is of
    what is left, which may be nothing but tables to drop.
    """
    at, count, done, foreigndom = arguments
    before = 0
    continued = bool(count & _CONTINUED)
    if continued:
        count &= ~_CONTINUED
        before = call.memory.read_u32(done) if done else 0
    completed, tables = 0, call.tables
    tables.in_steps = True
    try:
        way = stepwise.settle(tables, call.gives_way_to_tables)
        if way and continued:
            way = stepwise.go_on(tables, call.gives_way_to_tables)
        while way and completed < count:
            way = _approved(call, call.memory.read(at + size * completed, size), perform)
            if way:
                completed += 1
                way = stepwise.settle(tables, call.gives_way_to_tables)
                way = way and not call.gives_way(completed, count)
        if not way:
            _finish(call, done, before + completed)
            raise Again(at + size * completed, count - completed | _CONTINUED, done, foreigndom)
    except XenError:
        stepwise.drop_ahead(tables)
        stepwise.settle_some(tables)
        _finish(call, done, before + completed)
        raise
    finally:
        tables.in_steps = False
    _finish(call, done, before + completed)
    return 0


def _approved(call: Call, raw: bytes, perform: Callable[[bytes], None]) -> bool:
    """Perform one structure; False if it wants a large tree approved, which has to go on in another turn."""
    tables = call.tables
    tables.take_work()
    tables.limit = MOST_AT_ONCE
    try:
        perform(raw)
        if tables.ahead_of and call.frames.type_count[tables.ahead_of]:
            stepwise.drop_ahead(tables)  # so little was left that it went at once
        return True
    except TooMuch as big:
        root = big.root
    finally:
        tables.limit = NO_LIMIT
    if not stepwise.approve(tables, *root, call.gives_way_to_tables):
        return False
    try:
        perform(raw)  # nothing is left below but what will be refused
    finally:
        stepwise.drop_ahead(tables)
    return True


def _update(call: Call, pointer: int, value: int) -> None:
    command = pointer & 7
    frames = call.frames
    mfn = pointer >> 12
    if command == Mmu.MACHPHYS_UPDATE:
        call.own_frame(mfn)
        assert frames.m2p is not None
        frames.m2p[mfn] = value
        return
    if command > Mmu.PT_UPDATE_NO_TRANSLATE:
        raise XenError(Errno.ENOSYS, f"mmu_update command {command}")
    address = pointer & ~7
    if not 0 < mfn < frames.count or frames.owner[mfn] != call.domain.domid:
        raise XenError(Errno.EINVAL, f"mmu_update of {frames.describe(mfn)}")
    preserve = command == Mmu.PT_UPDATE_PRESERVE_AD
    kind = frames.type[mfn] if frames.type_count[mfn] else WRITABLE
    if kind == L1:
        call.tables.update_l1(address, value, preserve)
    elif L1 < kind <= L4:
        call.tables.update_upper(address, kind, value, preserve)
    elif kind == SEGDESC:
        raise XenError(Errno.EINVAL, f"mmu_update of {frames.describe(mfn)}")
    else:
        call.tables.write_plain(address, value)


@hypercall(Hypercall.UPDATE_VA_MAPPING)
def update_va_mapping(call: Call, va: ulong, pte: u64, flags: ulong) -> int:
    """Change the leaf entry that maps a virtual address, and flush as the low bits of `flags` say (UVMF).

    EINVAL: an address outside the guest's space, or that no L1 maps, or what the entry shall say is refused;
    then, the entry changed, EINVAL: no such flush; EFAULT: the mask of vCPUs cannot be read.
    """
    if not guest_may_use(va, call.width):
        raise XenError(Errno.EINVAL, f"update_va_mapping of {va:#x}")
    address = call.memory.leaf_entry(Va(va))
    frames = call.frames
    if address is None or frames.type[address >> 12] != L1 or not frames.type_count[address >> 12]:
        raise XenError(Errno.EINVAL, f"no L1 table maps {va:#x}")
    call.tables.update_l1(address, pte)
    kind = flags & UVMF_FLUSH_MASK
    if kind == UVMF_FLUSH_MASK:
        raise XenError(Errno.EINVAL, "update_va_mapping flush type 3")
    if kind:
        mask = flags & ~UVMF_FLUSH_MASK & ~4
        if mask:
            call.read_word(mask)
        if kind == UVMF_INVLPG:
            call.tables.flush_page(va)
        else:
            call.tables.flush = True
    return 0


@hypercall(Hypercall.UPDATE_VA_MAPPING_OTHERDOMAIN)
def update_va_mapping_otherdomain(call: Call, va: ulong, pte: u64, flags: ulong, domid: u32) -> int:
    """As update_va_mapping, for frames of another domain, which no domU may name: of the caller itself only.

    ESRCH: no such domain; EPERM: not the caller; then as update_va_mapping.
    """
    call.own(domid & 0xFFFF)
    return update_va_mapping(call, va, pte, flags)


_commands = Commands[[MmuextOp], None](Hypercall.MMUEXT_OP, Mmuext)


@hypercall(Hypercall.MMUEXT_OP)
def mmuext_op(call: Call, operations: Ptr, count: u32, done: Ptr, foreigndom: u32) -> int:
    """Pin and unpin tables, switch base pointers, flush, set the LDT, clear and copy pages. Gives way.

    The list is of `MmuextOp`: a command and its `arg1` and `arg2`. ESRCH: no domain `foreigndom`; EPERM: not
    the caller; then for each entry EFAULT: it cannot be read; ENOSYS: no such command; what that refuses. The
    first refusal ends the list. `*done` is how many were done, in any case but that of the domain.
    """
    _foreign(call, foreigndom)

    def perform(raw: bytes) -> None:
        operation = MmuextOp.unpack(raw, call.width)
        _commands[operation.cmd](call, operation)

    return _each(call, (operations, count, done, foreigndom), MmuextOp.size(call.width), perform)


def _pin(call: Call, mfn: int, level: int) -> None:
    if level <= call.tables.top:
        call.tables.pin(mfn, level)


@_commands.command(Mmuext.PIN_L1_TABLE)
def pin_l1_table(call: Call, operation: MmuextOp) -> None:
    """Approve frame `arg1` as an L1, and keep it one until it is unpinned.

    EINVAL: not the caller's, pinned already, in use as something else, or an entry is refused.
    """
    _pin(call, operation.arg1, 1)


@_commands.command(Mmuext.PIN_L2_TABLE)
def pin_l2_table(call: Call, operation: MmuextOp) -> None:
    """Approve frame `arg1` as an L2, with all below, and keep it one until it is unpinned. As for an L1."""
    _pin(call, operation.arg1, 2)


@_commands.command(Mmuext.PIN_L3_TABLE)
def pin_l3_table(call: Call, operation: MmuextOp) -> None:
    """Approve frame `arg1` as an L3, with all below, and keep it one until it is unpinned. As for an L1."""
    _pin(call, operation.arg1, 3)


@_commands.command(Mmuext.PIN_L4_TABLE)
def pin_l4_table(call: Call, operation: MmuextOp) -> None:
    """Approve frame `arg1` as an L4, with all below, and keep it one until it is unpinned. As for an L1.

    A 32-bit guest has no L4s, and hears no complaint.
    """
    _pin(call, operation.arg1, 4)


@_commands.command(Mmuext.UNPIN_TABLE)
def unpin_table(call: Call, operation: MmuextOp) -> None:
    """Give up the pin of frame `arg1`; without another use it is a table no longer.

    EINVAL: not the caller's, or not pinned.
    """
    call.tables.unpin(operation.arg1)


@_commands.command(Mmuext.NEW_BASEPTR)
def new_baseptr(call: Call, operation: MmuextOp) -> None:
    """Make frame `arg1` the top table of the vCPU's kernel mode.

    EINVAL: it cannot be one.
    """
    call.processor.new_baseptr(operation.arg1)


@_commands.command(Mmuext.NEW_USER_BASEPTR)
def new_user_baseptr(call: Call, operation: MmuextOp) -> None:
    """Make frame `arg1` the L4 of the vCPU's user mode; 0 takes it away.

    EINVAL: a 32-bit guest, which has one table for both modes, or a frame that cannot be an L4.
    """
    vcpu, mfn = call.vcpu, operation.arg1
    if call.width == 32:
        raise XenError(Errno.EINVAL, "NEW_USER_BASEPTR in a 32-bit guest, which has one table for both modes")
    if mfn == vcpu.user_l4:
        return
    if mfn:
        call.tables.take_table(mfn, L4)
    old, vcpu.user_l4 = vcpu.user_l4, Mfn(mfn)
    call.processor.new_base_pointers()
    if old:
        call.tables.drop_table(old)


def _check_mask(call: Call, operation: MmuextOp) -> None:
    """A mask of vCPUs only has to be there: all vCPUs of a domain share one engine, and so one TLB."""
    try:
        call.read_word(operation.arg2)
    except XenError as error:
        raise XenError(Errno.EINVAL, "unreadable vCPU mask") from error


@_commands.command(Mmuext.TLB_FLUSH_LOCAL)
def tlb_flush_local(call: Call, _operation: MmuextOp) -> None:
    """Forget all translations of this vCPU."""
    call.tables.flush = True


@_commands.command(Mmuext.TLB_FLUSH_MULTI)
def tlb_flush_multi(call: Call, operation: MmuextOp) -> None:
    """Forget all translations of the vCPUs in the mask at `arg2`.

    EINVAL: it cannot be read.
    """
    _check_mask(call, operation)
    call.tables.flush = True


@_commands.command(Mmuext.TLB_FLUSH_ALL)
def tlb_flush_all(call: Call, _operation: MmuextOp) -> None:
    """Forget all translations of all vCPUs."""
    call.tables.flush = True


@_commands.command(Mmuext.INVLPG_LOCAL)
def invlpg_local(call: Call, operation: MmuextOp) -> None:
    """Forget this vCPU's translation of address `arg1`."""
    call.tables.flush_page(operation.arg1)


@_commands.command(Mmuext.INVLPG_MULTI)
def invlpg_multi(call: Call, operation: MmuextOp) -> None:
    """Forget the translation of address `arg1` by the vCPUs in the mask at `arg2`.

    EINVAL: it cannot be read.
    """
    _check_mask(call, operation)
    call.tables.flush_page(operation.arg1)


@_commands.command(Mmuext.INVLPG_ALL)
def invlpg_all(call: Call, operation: MmuextOp) -> None:
    """Forget all vCPUs' translations of address `arg1`."""
    call.tables.flush_page(operation.arg1)


@_commands.command(Mmuext.SET_LDT)
def set_ldt(call: Call, operation: MmuextOp) -> None:
    """Set the vCPU's LDT: `arg2` entries at address `arg1`, read when they are used.

    EINVAL: more than 8192, or an address that is no page of the guest's space.
    """
    vcpu, base, entries = call.vcpu, operation.arg1, operation.arg2 & 0xFFFF_FFFF
    if entries > 8192 or (entries and (base & PAGE_MASK or not guest_may_use(base, call.width))):
        raise XenError(Errno.EINVAL, f"LDT of {entries} entries at {base:#x}")
    if (base, entries) == (vcpu.ldt_base, vcpu.ldt_entries):
        return
    call.processor.drop_ldt()
    vcpu.ldt_base, vcpu.ldt_entries = base, entries
    call.processor.load_ldtr()


def _writable_page(call: Call, mfn: int) -> None:
    call.own_frame(mfn)
    if not call.frames.take_writable(mfn):
        raise XenError(Errno.EINVAL, f"{call.frames.describe(mfn)} cannot be written")


@_commands.command(Mmuext.CLEAR_PAGE)
def clear_page(call: Call, operation: MmuextOp) -> None:
    """Fill frame `arg1` with zeros.

    EINVAL: not the caller's, or it cannot be written.
    """
    _writable_page(call, operation.arg1)
    call.host.physical.write(operation.arg1 << 12, bytes(PAGE_SIZE))
    call.frames.drop_writable(operation.arg1)


@_commands.command(Mmuext.COPY_PAGE)
def copy_page(call: Call, operation: MmuextOp) -> None:
    """Copy frame `arg2` to frame `arg1`.

    EINVAL: the source is not the caller's; the target is not, or cannot be written.
    """
    source = call.own_frame(operation.arg2)
    _writable_page(call, operation.arg1)
    call.host.physical.write(operation.arg1 << 12, call.host.physical.read(source << 12, PAGE_SIZE))
    call.frames.drop_writable(operation.arg1)


_commands.refuse(Mmuext.FLUSH_CACHE, Errno.EACCES, "Write this vCPU's caches back: for one with devices.")
_commands.refuse(
    Mmuext.FLUSH_CACHE_GLOBAL, Errno.EACCES, "Write all vCPUs' caches back: for a domain with devices."
)
_commands.refuse(Mmuext.MARK_SUPER, Errno.EOPNOTSUPP, "Mark frames for large pages, which are not offered.")
_commands.refuse(Mmuext.UNMARK_SUPER, Errno.EOPNOTSUPP, "Take such a mark back.")
