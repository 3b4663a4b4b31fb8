# SPDX-License-Identifier: GPL-2.0-only
"""mmuext_op (public header `xen.h`): pins, base pointers, translations to forget, the LDT, whole pages.

Decoding and order of checks are here; the rules of approval are `mmu/tables.py`.
"""

from typing import Final

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall, Mmuext
from pyhv.abi.structs import MmuextOp
from pyhv.address import PAGE_MASK, PAGE_SIZE, Mfn, guest_may_use
from pyhv.errors import XenError
from pyhv.hypercalls.context import Call
from pyhv.hypercalls.mmulists import check_domains, perform_each
from pyhv.hypercalls.signature import Ptr, u32
from pyhv.hypercalls.table import Commands, hypercall
from pyhv.mmu.frames import L4

_commands = Commands[[int, int], None](Hypercall.MMUEXT_OP, Mmuext)
_LAYOUTS: Final = {width: MmuextOp.layout(width) for width in (32, 64)}


@hypercall(Hypercall.MMUEXT_OP)
def mmuext_op(call: Call, operations: Ptr, count: u32, done: Ptr, foreigndom: u32) -> int:
    """Pin and unpin tables, switch base pointers, flush, set the LDT, clear and copy pages. Gives way.

    The list is of `MmuextOp`: a command and its `arg1` and `arg2`. ESRCH: no domain `foreigndom`; EPERM: not
    the caller; then for each entry EFAULT: it cannot be read; ENOSYS: no such command; what that refuses. The
    first refusal ends the list. `*done` is how many were done, in any case but that of the domain.
    """
    check_domains(call, foreigndom)
    size = _LAYOUTS[call.width].size
    return perform_each(call, (operations, count, done, foreigndom), size, _perform)


def _perform(call: Call, at: int) -> None:
    """Perform the operation at an address of the guest's."""
    command, arg1, arg2 = call.memory.unpack(_LAYOUTS[call.width].packer, at)
    _commands[command](call, arg1, arg2)


def _pin(call: Call, mfn: int, level: int) -> None:
    if level <= call.tables.top:
        call.tables.pin(mfn, level)


@_commands.command(Mmuext.PIN_L1_TABLE)
def pin_l1_table(call: Call, arg1: int, _arg2: int) -> None:
    """Approve frame `arg1` as an L1, and keep it one until it is unpinned.

    EINVAL: not the caller's, pinned already, in use as something else, or an entry is refused.
    """
    _pin(call, arg1, 1)


@_commands.command(Mmuext.PIN_L2_TABLE)
def pin_l2_table(call: Call, arg1: int, _arg2: int) -> None:
    """Approve frame `arg1` as an L2, with all below, and keep it one until it is unpinned. As for an L1."""
    _pin(call, arg1, 2)


@_commands.command(Mmuext.PIN_L3_TABLE)
def pin_l3_table(call: Call, arg1: int, _arg2: int) -> None:
    """Approve frame `arg1` as an L3, with all below, and keep it one until it is unpinned. As for an L1."""
    _pin(call, arg1, 3)


@_commands.command(Mmuext.PIN_L4_TABLE)
def pin_l4_table(call: Call, arg1: int, _arg2: int) -> None:
    """Approve frame `arg1` as an L4, with all below, and keep it one until it is unpinned. As for an L1.

    A 32-bit guest has no L4s, and hears no complaint.
    """
    _pin(call, arg1, 4)


@_commands.command(Mmuext.UNPIN_TABLE)
def unpin_table(call: Call, arg1: int, _arg2: int) -> None:
    """Give up the pin of frame `arg1`; without another use it is a table no longer.

    EINVAL: not the caller's, or not pinned.
    """
    call.tables.unpin(arg1)


@_commands.command(Mmuext.NEW_BASEPTR)
def new_baseptr(call: Call, arg1: int, _arg2: int) -> None:
    """Make frame `arg1` the top table of the vCPU's kernel mode.

    EINVAL: it cannot be one.
    """
    call.processor.new_baseptr(arg1)


@_commands.command(Mmuext.NEW_USER_BASEPTR)
def new_user_baseptr(call: Call, arg1: int, _arg2: int) -> None:
    """Make frame `arg1` the L4 of the vCPU's user mode; 0 takes it away.

    EINVAL: a 32-bit guest, which has one table for both modes, or a frame that cannot be an L4.
    """
    vcpu, mfn = call.vcpu, arg1
    if call.width == 32:
        raise XenError(Errno.EINVAL, "NEW_USER_BASEPTR in a 32-bit guest, which has one table for both modes")
    if mfn == vcpu.paging.user_l4:
        return
    if mfn:
        call.tables.take_table(mfn, L4)
    old, vcpu.paging.user_l4 = vcpu.paging.user_l4, Mfn(mfn)
    call.processor.new_base_pointers()
    if old:
        call.tables.drop_table(old)


def _check_mask(call: Call, arg2: int) -> None:
    """A mask of vCPUs only has to be there: all vCPUs of a domain share one engine, and so one TLB."""
    try:
        call.read_word(arg2)
    except XenError as error:
        raise XenError(Errno.EINVAL, "unreadable vCPU mask") from error


@_commands.command(Mmuext.TLB_FLUSH_LOCAL)
def tlb_flush_local(call: Call, _arg1: int, _arg2: int) -> None:
    """Forget all translations of this vCPU."""
    call.tables.flush = True


@_commands.command(Mmuext.TLB_FLUSH_MULTI)
def tlb_flush_multi(call: Call, _arg1: int, arg2: int) -> None:
    """Forget all translations of the vCPUs in the mask at `arg2`.

    EINVAL: it cannot be read.
    """
    _check_mask(call, arg2)
    call.tables.flush = True


@_commands.command(Mmuext.TLB_FLUSH_ALL)
def tlb_flush_all(call: Call, _arg1: int, _arg2: int) -> None:
    """Forget all translations of all vCPUs."""
    call.tables.flush = True


@_commands.command(Mmuext.INVLPG_LOCAL)
def invlpg_local(call: Call, arg1: int, _arg2: int) -> None:
    """Forget this vCPU's translation of address `arg1`."""
    call.tables.flush_page(arg1)


@_commands.command(Mmuext.INVLPG_MULTI)
def invlpg_multi(call: Call, arg1: int, arg2: int) -> None:
    """Forget the translation of address `arg1` by the vCPUs in the mask at `arg2`.

    EINVAL: it cannot be read.
    """
    _check_mask(call, arg2)
    call.tables.flush_page(arg1)


@_commands.command(Mmuext.INVLPG_ALL)
def invlpg_all(call: Call, arg1: int, _arg2: int) -> None:
    """Forget all vCPUs' translations of address `arg1`."""
    call.tables.flush_page(arg1)


@_commands.command(Mmuext.SET_LDT)
def set_ldt(call: Call, arg1: int, arg2: int) -> None:
    """Set the vCPU's LDT: `arg2` entries at address `arg1`, read when they are used.

    EINVAL: more than 8192, or an address that is no page of the guest's space.
    """
    vcpu, base, entries = call.vcpu, arg1, arg2 & 0xFFFF_FFFF
    if entries > 8192 or (entries and (base & PAGE_MASK or not guest_may_use(base, call.width))):
        raise XenError(Errno.EINVAL, f"LDT of {entries} entries at {base:#x}")
    if (base, entries) == (vcpu.descriptors.ldt_base, vcpu.descriptors.ldt_entries):
        return
    call.processor.drop_ldt()
    vcpu.descriptors.ldt_base, vcpu.descriptors.ldt_entries = base, entries
    call.processor.load_ldtr()


def _writable_page(call: Call, number: int) -> Mfn:
    mfn = call.own_frame(number)
    if not call.frames.take_writable(mfn):
        raise XenError(Errno.EINVAL, f"{call.frames.describe(mfn)} cannot be written")
    return mfn


@_commands.command(Mmuext.CLEAR_PAGE)
def clear_page(call: Call, arg1: int, _arg2: int) -> None:
    """Fill frame `arg1` with zeros.

    EINVAL: not the caller's, or it cannot be written.
    """
    mfn = _writable_page(call, arg1)
    call.host.physical.write(mfn << 12, bytes(PAGE_SIZE))
    call.frames.drop_writable(mfn)


@_commands.command(Mmuext.COPY_PAGE)
def copy_page(call: Call, arg1: int, arg2: int) -> None:
    """Copy frame `arg2` to frame `arg1`.

    EINVAL: the source is not the caller's; the target is not, or cannot be written.
    """
    source = call.own_frame(arg2)
    target = _writable_page(call, arg1)
    call.host.physical.write(target << 12, call.host.physical.read(source << 12, PAGE_SIZE))
    call.frames.drop_writable(target)


_commands.refuse(Mmuext.FLUSH_CACHE, Errno.EACCES, "Write this vCPU's caches back: for one with devices.")
_commands.refuse(
    Mmuext.FLUSH_CACHE_GLOBAL, Errno.EACCES, "Write all vCPUs' caches back: for a domain with devices."
)
_commands.refuse(Mmuext.MARK_SUPER, Errno.EOPNOTSUPP, "Mark frames for large pages, which are not offered.")
_commands.refuse(Mmuext.UNMARK_SUPER, Errno.EOPNOTSUPP, "Take such a mark back.")
