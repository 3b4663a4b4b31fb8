# SPDX-License-Identifier: GPL-2.0-only
"""Hypercalls that change what the calling vCPU's processor does: traps, descriptors, stacks, callbacks,
segment bases (public headers `xen.h`, `callback.h`, `nmi.h`).
"""

from typing import Final

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import (
    CALLBACKF_MASK_EVENTS,
    Assist,
    AssistCommand,
    Callback,
    CallbackOp,
    Hypercall,
    NmiOp,
    SegmentBase,
)
from pyhv.abi.structs import (
    CallbackRegister,
    CallbackRegisterCompat,
    CallbackUnregister,
    TrapInfo,
    XennmiCallback,
)
from pyhv.abi.x86 import FIRST_RESERVED_GDT_ENTRY, FLAT_RING1_CS, Vector
from pyhv.address import Mfn, is_canonical
from pyhv.clock import STEPS_A_LOOK
from pyhv.domain.callbacks import CallbackEntry
from pyhv.domain.domain import Domain
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import XenError
from pyhv.hypercalls.context import Again, Call
from pyhv.hypercalls.signature import Ptr, u32, u64, ulong
from pyhv.hypercalls.table import hypercall
from pyhv.mmu.descriptors import fix_descriptor
from pyhv.mmu.frames import SEGDESC
from pyhv.mmu.segdesc import drop_descriptor_page, take_descriptor_page

_MASKS: Final = 4
"""Flag of a trap: entering it masks events."""


@hypercall(Hypercall.SET_TRAP_TABLE)
def set_trap_table(call: Call, traps: Ptr) -> int:
    """Fill the virtual IDT from a list of `TrapInfo` that ends at address 0; NULL clears all. Gives way.

    For each entry, EFAULT: it cannot be read; EINVAL: its address is not canonical. What comes before is set.
    """
    vcpu = call.vcpu
    if traps == 0:
        vcpu.traps.clear()
        return 0
    entries, size = 0, TrapInfo.size(call.width)
    while True:
        trap = call.read(TrapInfo, traps)
        if trap.address == 0:
            return 0
        if not is_canonical(trap.address):
            raise XenError(Errno.EINVAL, f"handler of vector {trap.vector} at {trap.address:#x}")
        set_trap(vcpu, trap)
        traps += size
        entries += 1
        if entries % STEPS_A_LOOK == 0 and call.preempted(STEPS_A_LOOK):
            raise Again(traps)


def set_trap(vcpu: Vcpu, trap: TrapInfo) -> None:
    """Enter one handler into the virtual IDT."""
    vcpu.traps.set(trap.vector, trap.address, trap.flags, fix_rpl(trap.cs, vcpu.width))


def fix_rpl(selector: int, width: int) -> int:
    """A code or stack selector as a guest kernel may have it: RPL at least 3, in a 32-bit guest 1."""
    selector &= 0xFFFF
    if width == 64:
        return selector | 3
    return selector if selector & 3 else selector | 1


def install_gdt(domain: Domain, vcpu: Vcpu, frames: tuple[int, ...], entries: int) -> None:
    """Make `frames` the vCPU's GDT of `entries` descriptors; EINVAL, and the old one stays, if one is bad."""
    taken: list[Mfn] = []
    for mfn in frames:
        if not take_descriptor_page(domain.tables, mfn, domain.width):
            for other in taken:
                drop_descriptor_page(domain.tables, other)
            raise XenError(Errno.EINVAL, f"{domain.physical.frames.describe(mfn)} cannot hold descriptors")
        taken.append(Mfn(mfn))
    drop_gdt(domain, vcpu)
    for page, mfn in enumerate(taken):
        domain.area.map(vcpu.number, page, mfn)
    vcpu.descriptors.gdt_frames, vcpu.descriptors.gdt_entries = taken, entries
    vcpu.descriptors.forget()
    domain.tables.flush = True


def drop_gdt(domain: Domain, vcpu: Vcpu) -> None:
    """Remove the vCPU's GDT: its pages read as null descriptors."""
    for page, mfn in enumerate(vcpu.descriptors.gdt_frames):
        domain.area.map(vcpu.number, page, domain.area.empty)
        drop_descriptor_page(domain.tables, mfn)
    vcpu.descriptors.gdt_frames, vcpu.descriptors.gdt_entries = [], 0
    vcpu.descriptors.forget()
    domain.tables.flush = True


@hypercall(Hypercall.SET_GDT)
def set_gdt(call: Call, frames: Ptr, entries: u32) -> int:
    """Install the guest's part of the GDT: `entries` descriptors in the frames of a list of words.

    EINVAL: more than 7168 entries; EFAULT: the list; EINVAL: a frame that cannot hold descriptors.
    """
    if entries > FIRST_RESERVED_GDT_ENTRY:
        raise XenError(Errno.EINVAL, f"GDT of {entries} entries")
    listed = call.memory.read_words(frames, (entries + 511) // 512) if entries else ()
    install_gdt(call.domain, call.vcpu, listed, entries)
    return 0


@hypercall(Hypercall.STACK_SWITCH)
def stack_switch(call: Call, ss: ulong, sp: ulong) -> int:
    """Say where the kernel stack is when user mode is left. Never fails."""
    call.vcpu.kernel_stack.ss, call.vcpu.kernel_stack.sp = fix_rpl(ss, call.width), sp
    return 0


def set_callbacks_compat(
    call: Call, event_cs: ulong, event: ulong, failsafe_cs: ulong, failsafe: ulong
) -> int:
    """`set_callbacks` of a 32-bit guest: code selectors too, and no system calls. Nothing is checked yet."""
    vcpu = call.vcpu
    vcpu.callbacks.event = CallbackEntry(event, True, fix_rpl(event_cs, 32))
    vcpu.callbacks.failsafe = CallbackEntry(failsafe, False, fix_rpl(failsafe_cs, 32))
    return 0


@hypercall(Hypercall.SET_CALLBACKS, compat=set_callbacks_compat)
def set_callbacks(call: Call, event: ulong, failsafe: ulong, syscall: ulong) -> int:
    """Set all callbacks at once, their flags cleared. Never fails.

    An address that is not canonical leaves its callback alone.
    """
    vcpu = call.vcpu
    if is_canonical(event):
        vcpu.callbacks.event = CallbackEntry(event, True)
    if is_canonical(failsafe):
        vcpu.callbacks.failsafe = CallbackEntry(failsafe)
    if is_canonical(syscall):
        vcpu.callbacks.syscall = CallbackEntry(syscall)
    return 0


@hypercall(Hypercall.FPU_TASKSWITCH)
def fpu_taskswitch(call: Call, on: u32) -> int:
    """Set or clear CR0.TS, which makes FPU instructions fault. Never fails."""
    call.processor.set_task_switched(on != 0)
    return 0


@hypercall(Hypercall.UPDATE_DESCRIPTOR)
def update_descriptor(call: Call, address: u64, descriptor: u64) -> int:
    """Write one descriptor into a page of a GDT or LDT, by its machine address.

    EINVAL: not a multiple of 8, a descriptor that is refused, a frame that is not the caller's or is a table.
    """
    frames = call.frames
    mfn = address >> 12
    fixed = fix_descriptor(descriptor, call.width)
    if address & 7 or fixed is None:
        raise XenError(Errno.EINVAL, f"descriptor {descriptor:#x} at {address:#x}")
    call.own_frame(mfn)
    if frames.type_count[mfn] and frames.type[mfn] == SEGDESC:
        call.host.physical.write_u64(address, fixed)
    else:
        call.tables.write_plain(address, fixed)
    for vcpu in call.domain.vcpus:
        vcpu.descriptors.forget()
    return 0


@hypercall(Hypercall.VM_ASSIST)
def vm_assist(call: Call, command: u32, kind: u32) -> int:
    """Enable (0) or disable (1) an assist.

    ENOSYS: another command; EINVAL: no such assist, or none of a guest of this width.
    """
    if command not in (AssistCommand.ENABLE, AssistCommand.DISABLE):
        raise XenError(Errno.ENOSYS, f"vm_assist command {command}")
    if kind not in Assist._value2member_map_ or (kind == Assist.M2P_STRICT and call.width == 32):
        raise XenError(Errno.EINVAL, f"vm_assist type {kind}")
    if command == AssistCommand.ENABLE:
        call.domain.assists.enabled.add(kind)
    else:
        call.domain.assists.enabled.discard(kind)
    if kind == Assist.PAE_EXTENDED_CR3:
        call.tables.allow_top_anywhere(command == AssistCommand.ENABLE)
    return 0


_FS, _GS_USER, _GS_KERNEL, _GS_USER_SEL = map(int, SegmentBase)
"""As plain numbers, since every switch of tasks comes here."""


@hypercall(Hypercall.SET_SEGMENT_BASE)
def set_segment_base(call: Call, which: u32, base: ulong) -> int:
    """Set the FS base (0), the GS base of user (1) or kernel mode (2), or user mode's GS selector (3).

    ENOSYS: a 32-bit guest; EINVAL: no such base, or an address that is not canonical.
    """
    if call.width == 32:
        raise XenError(Errno.ENOSYS, "set_segment_base in a 32-bit guest")
    if which == _GS_USER_SEL:
        call.processor.load_user_gs(base & 0xFFFF)
        return 0
    if which > _GS_USER_SEL or not is_canonical(base):
        raise XenError(Errno.EINVAL, f"segment base {which} at {base:#x}")
    if which == _FS:
        call.processor.set_fs_base(base)
    elif which == _GS_USER:
        call.vcpu.other_gs_base = base
    else:
        call.processor.set_gs_base(base)
    return 0


@hypercall(Hypercall.CALLBACK_OP)
def callback_op(call: Call, command: u32, argument: Ptr) -> int:
    """Register a callback (0, `CallbackRegister`), or unregister the NMI's (1, `CallbackUnregister`).

    ENOSYS: another command (EINVAL to a 32-bit guest); EFAULT; ENOSYS: no such callback; EINVAL: an address
    that is not canonical, or another callback than the NMI's to be unregistered.
    """
    if command == CallbackOp.REGISTER:
        if call.width == 64:
            wide = call.read(CallbackRegister, argument)
            return _register_callback(call.vcpu, wide.type, wide.flags, 0, wide.address)
        narrow = call.read(CallbackRegisterCompat, argument)
        selector = fix_rpl(narrow.cs, 32)
        return _register_callback(call.vcpu, narrow.type, narrow.flags, selector, narrow.eip)
    if command == CallbackOp.UNREGISTER:
        kind = call.read(CallbackUnregister, argument).type
        if not _is_known_callback(kind, call.width):
            raise XenError(Errno.ENOSYS, f"callback type {kind}")
        if kind != Callback.NMI:
            raise XenError(Errno.EINVAL, f"callback type {kind} cannot be unregistered")
        _unset_nmi(call.vcpu)
        return 0
    raise XenError(Errno.ENOSYS if call.width == 64 else Errno.EINVAL, f"callback_op {command}")


def _is_known_callback(kind: int, width: int) -> bool:
    return kind in Callback._value2member_map_ and (width == 64 or kind != Callback.SYSCALL)


def _set_nmi(vcpu: Vcpu, address: int, selector: int) -> None:
    vcpu.traps.set(Vector.NMI, address, _MASKS, selector)


def _unset_nmi(vcpu: Vcpu) -> None:
    vcpu.traps.set(Vector.NMI, 0, 0, 0)


def _register_callback(vcpu: Vcpu, kind: int, flags: int, selector: int, address: int) -> int:
    if not _is_known_callback(kind, vcpu.width):
        raise XenError(Errno.ENOSYS, f"callback type {kind}")
    if not is_canonical(address):
        raise XenError(Errno.EINVAL, f"callback at {address:#x}")
    entry = CallbackEntry(address, bool(flags & CALLBACKF_MASK_EVENTS), selector)
    if kind == Callback.EVENT:
        vcpu.callbacks.event = CallbackEntry(address, True, selector)
    elif kind == Callback.FAILSAFE:
        vcpu.callbacks.failsafe = entry
    elif kind == Callback.SYSCALL:
        vcpu.callbacks.syscall = entry
    elif kind == Callback.SYSCALL32:
        vcpu.callbacks.syscall32 = entry
    elif kind == Callback.SYSENTER:
        vcpu.callbacks.sysenter = entry
    else:
        _set_nmi(vcpu, address, selector)
    return 0


@hypercall(Hypercall.NMI_OP)
def nmi_op(call: Call, command: u32, argument: Ptr) -> int:
    """Register (0, `XennmiCallback`) or unregister (1) the NMI callback.

    ENOSYS: another command; EFAULT; EINVAL: an address that is not canonical.
    """
    if command == NmiOp.REGISTER_CALLBACK:
        address = call.read(XennmiCallback, argument).handler_address
        if not is_canonical(address):
            raise XenError(Errno.EINVAL, f"NMI callback at {address:#x}")
        _set_nmi(call.vcpu, address, FLAT_RING1_CS)
    elif command == NmiOp.UNREGISTER_CALLBACK:
        _unset_nmi(call.vcpu)
    else:
        raise XenError(Errno.ENOSYS, f"nmi_op {command}")
    return 0


@hypercall(Hypercall.IRET)
def iret(call: Call) -> int:
    """Return through the frame on the stack; inside a multicall this ends the list.

    No errors: a frame that cannot be used ends the domain, or is the failsafe callback's.
    """
    call.processor.iret()
    call.left_context = True
    return 0
