# SPDX-License-Identifier: GPL-2.0-only
"""`vcpu_guest_context`: a vCPU's whole state as the ABI has it (public headers `vcpu.h`, `arch-x86/xen.h`).

VCPUOP_initialise starts a vCPU in such a state, checked as Xen checks it; toolstacks, dumps and debuggers
read a vCPU's state in this form. The FXSAVE area at its beginning counts if a flag says so; otherwise the FPU
is as FNINIT leaves it.
"""

import struct
from dataclasses import dataclass, field, replace
from typing import Final

from pyhv.abi import shared
from pyhv.abi.errno import Errno
from pyhv.abi.shared import CONTEXT_LAYOUT
from pyhv.abi.structs import TrapInfo
from pyhv.abi.x86 import CR0_TS, FIRST_RESERVED_GDT_ENTRY, FLAG_IOPL, FLAG_VM, GUEST_CR0
from pyhv.address import MASK32, PAGE_MASK, Mfn, cr3_to_mfn, guest_may_use, is_canonical, mfn_to_cr3
from pyhv.cpu.fpu import IMAGE_SIZE, Fxsave
from pyhv.cpu.registers import SEGMENTS, Registers, SegmentRegister, wide_name
from pyhv.domain.callbacks import CallbackEntry
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import XenError
from pyhv.hypercalls.cpustate import fix_rpl, set_trap

_MOST_GDT_FRAMES: Final = 16
_VECTORS: Final = 256
_CONTROL, _DEBUG = 8, 8
_NOT_REGISTERS: Final = frozenset({"error_code", "entry_vector", "saved_upcall_mask"})


def _no_traps() -> list[TrapInfo]:
    return [TrapInfo(vector=vector, flags=0, cs=0, address=0) for vector in range(_VECTORS)]


@dataclass(slots=True)
class GuestContext:
    """The state of a vCPU of a guest of `width` bits.

    The hidden parts of segment registers are not in it, but for the bases of FS and GS, which in `registers`
    are those of kernel mode. Page tables are named by their frames.
    """

    width: int
    flags: int = 0
    registers: Registers = field(default_factory=Registers)
    upcall_masked: bool = False
    traps: list[TrapInfo] = field(default_factory=_no_traps)
    ldt_base: int = 0
    ldt_entries: int = 0
    gdt_frames: tuple[int, ...] = ()
    gdt_entries: int = 0
    kernel_ss: int = 0
    kernel_sp: int = 0
    cr0: int = 0
    kernel_l4: int = 0
    user_l4: int = 0
    cr4: int = 0
    debug: list[int] = field(default_factory=lambda: [0] * _DEBUG)
    event: CallbackEntry = field(default_factory=CallbackEntry)
    failsafe: CallbackEntry = field(default_factory=CallbackEntry)
    syscall: CallbackEntry = field(default_factory=CallbackEntry)
    vm_assist: int = 0
    gs_base_user: int = 0

    # -- the ABI's form ----------------------------------------------------------------------------------

    @classmethod
    def unpack(cls, raw: bytes, width: int) -> "GuestContext":
        """From the bytes of the structure."""
        layout = CONTEXT_LAYOUT[width]
        size = layout.word

        def word(offset: int | None, bytes_: int = size) -> int:
            return 0 if offset is None else int.from_bytes(raw[offset : offset + bytes_], "little")

        flags = word(layout.flags, 4)
        registers = Registers()
        if flags & shared.VGCF_I387_VALID:
            registers.fpu = Fxsave.unpack(raw[:IMAGE_SIZE])
        for name, offset in _register_offsets(width).items():
            at = layout.user_regs + offset
            if name in SEGMENTS:
                setattr(registers, name, SegmentRegister(word(at, 2)))
            else:
                setattr(registers, wide_name(name), word(at))
        registers.fs.base, registers.gs.base = word(layout.fs_base), word(layout.gs_base_kernel)
        traps = struct.Struct(f"{layout.trap_size}s").iter_unpack(
            raw[layout.trap_ctxt : layout.trap_ctxt + _VECTORS * layout.trap_size]
        )
        control = [word(layout.ctrlreg + size * number) for number in range(_CONTROL)]
        entries = word(layout.gdt_ents)
        pages = min((entries + 511) // 512, _MOST_GDT_FRAMES)
        return cls(
            width=width,
            flags=flags,
            registers=registers,
            upcall_masked=bool(word(layout.user_regs + _user_regs(width)["saved_upcall_mask"], 1)),
            traps=[TrapInfo.unpack(entry, width) for (entry,) in traps],
            ldt_base=word(layout.ldt_base),
            ldt_entries=word(layout.ldt_ents),
            gdt_frames=tuple(word(layout.gdt_frames + size * number) for number in range(pages)),
            gdt_entries=entries,
            kernel_ss=word(layout.kernel_ss),
            kernel_sp=word(layout.kernel_sp),
            cr0=control[0],
            kernel_l4=cr3_to_mfn(control[3], width),
            user_l4=cr3_to_mfn(control[1], width) if width == 64 else 0,
            cr4=control[4],
            debug=[word(layout.debugreg + size * number) for number in range(_DEBUG)],
            event=CallbackEntry(word(layout.event_callback), True, word(layout.event_callback_cs) & 0xFFFF),
            failsafe=CallbackEntry(
                word(layout.failsafe_callback),
                bool(flags & shared.VGCF_FAILSAFE_DISABLES_EVENTS),
                word(layout.failsafe_callback_cs) & 0xFFFF,
            ),
            syscall=CallbackEntry(
                word(layout.syscall_callback), bool(flags & shared.VGCF_SYSCALL_DISABLES_EVENTS)
            ),
            vm_assist=word(layout.vm_assist),
            gs_base_user=word(layout.gs_base_user),
        )

    def pack(self) -> bytes:
        """As the bytes of the structure."""
        layout = CONTEXT_LAYOUT[self.width]
        size = layout.word
        raw = bytearray(layout.size)

        def put(offset: int | None, value: int, bytes_: int = size) -> None:
            if offset is not None:
                raw[offset : offset + bytes_] = value.to_bytes(bytes_, "little")

        registers = self.registers
        if self.flags & shared.VGCF_I387_VALID:
            raw[:IMAGE_SIZE] = registers.fpu.pack()
        put(layout.flags, self.flags, 4)
        for name, offset in _register_offsets(self.width).items():
            at = layout.user_regs + offset
            if name in SEGMENTS:
                put(at, getattr(registers, name).selector, 2)
            else:
                put(at, getattr(registers, wide_name(name)))
        put(layout.user_regs + _user_regs(self.width)["saved_upcall_mask"], self.upcall_masked, 1)
        put(layout.fs_base, registers.fs.base)
        put(layout.gs_base_kernel, registers.gs.base)
        put(layout.gs_base_user, self.gs_base_user)
        traps = b"".join(trap.pack(self.width) for trap in self.traps)
        raw[layout.trap_ctxt : layout.trap_ctxt + len(traps)] = traps
        put(layout.ldt_base, self.ldt_base)
        put(layout.ldt_ents, self.ldt_entries)
        put(layout.gdt_ents, self.gdt_entries)
        for number, mfn in enumerate(self.gdt_frames):
            put(layout.gdt_frames + size * number, mfn)
        put(layout.kernel_ss, self.kernel_ss)
        put(layout.kernel_sp, self.kernel_sp)
        user_cr3 = mfn_to_cr3(self.user_l4, self.width) if self.user_l4 else 0
        control = (self.cr0, user_cr3, 0, mfn_to_cr3(self.kernel_l4, self.width), self.cr4)
        for number, value in enumerate(control):
            put(layout.ctrlreg + size * number, value)
        for number, value in enumerate(self.debug):
            put(layout.debugreg + size * number, value)
        put(layout.event_callback, self.event.address)
        put(layout.event_callback_cs, self.event.selector)
        put(layout.failsafe_callback, self.failsafe.address)
        put(layout.failsafe_callback_cs, self.failsafe.selector)
        put(layout.syscall_callback, self.syscall.address)
        put(layout.vm_assist, self.vm_assist)
        return bytes(raw)

    # -- a vCPU's ----------------------------------------------------------------------------------------

    @classmethod
    def of(cls, vcpu: Vcpu, vm_assist: int = 0) -> "GuestContext":
        """A vCPU's state, as XEN_DOMCTL_getvcpucontext tells it; `vm_assist` is its domain's, in bits."""
        registers = vcpu.context.registers
        registers.rflags |= vcpu.ports.iopl << 12
        own, other = registers.gs.base, vcpu.other_gs_base
        registers.gs.base, user = (own, other) if vcpu.in_kernel or vcpu.width == 32 else (other, own)
        flags = shared.VGCF_I387_VALID
        for condition, flag in (
            (vcpu.in_kernel, shared.VGCF_IN_KERNEL),
            (vcpu.callbacks.failsafe.mask_events, shared.VGCF_FAILSAFE_DISABLES_EVENTS),
            (vcpu.callbacks.syscall.mask_events, shared.VGCF_SYSCALL_DISABLES_EVENTS),
            (vcpu.online, shared.VGCF_ONLINE),
        ):
            flags |= flag if condition else 0
        return cls(
            width=vcpu.width,
            flags=flags,
            registers=registers,
            upcall_masked=vcpu.info.upcall_masked,
            traps=[
                TrapInfo(vector=vector, flags=kind, cs=vcpu.traps.selectors[vector], address=address)
                for vector, (address, kind) in enumerate(vcpu.traps.handlers)
            ],
            ldt_base=vcpu.descriptors.ldt_base,
            ldt_entries=vcpu.descriptors.ldt_entries,
            gdt_frames=tuple(vcpu.descriptors.gdt_frames),
            gdt_entries=vcpu.descriptors.gdt_entries,
            kernel_ss=vcpu.kernel_stack.ss,
            kernel_sp=vcpu.kernel_stack.sp,
            cr0=GUEST_CR0 | (CR0_TS if registers.task_switched else 0),
            kernel_l4=vcpu.paging.kernel_l4,
            user_l4=vcpu.paging.user_l4,
            cr4=vcpu.cr4,
            debug=list(vcpu.debug.registers),
            event=vcpu.callbacks.event,
            failsafe=vcpu.callbacks.failsafe,
            syscall=vcpu.callbacks.syscall,
            vm_assist=vm_assist,
            gs_base_user=user,
        )

    def check(self) -> None:
        """Raise EINVAL for a context that Xen does not accept."""
        registers = self.registers
        addresses = [self.event.address, self.failsafe.address, self.syscall.address, self.gs_base_user]
        addresses += [registers.rip, registers.rsp, registers.fs.base, registers.gs.base]
        addresses += [self.ldt_base, *(trap.address for trap in self.traps)]
        if not all(is_canonical(address) for address in addresses):
            raise XenError(Errno.EINVAL, "non-canonical address in a vCPU context")
        if self.gdt_entries > FIRST_RESERVED_GDT_ENTRY:
            raise XenError(Errno.EINVAL, f"GDT of {self.gdt_entries} entries")
        misplaced = self.ldt_base & PAGE_MASK or not guest_may_use(self.ldt_base, self.width)
        if self.ldt_entries > 8192 or (self.ldt_entries and misplaced):
            raise XenError(Errno.EINVAL, f"LDT of {self.ldt_entries} entries at {self.ldt_base:#x}")
        if self.debug[6] > MASK32 or self.debug[7] > MASK32:
            raise XenError(Errno.EINVAL, "upper half of DR6 or DR7")
        if self.width == 32:
            if registers.rflags & FLAG_VM:
                raise XenError(Errno.EINVAL, "a vCPU cannot start in virtual-8086 mode")
        elif not self.flags & shared.VGCF_IN_KERNEL and not self.user_l4:
            raise XenError(Errno.EINVAL, "a vCPU cannot start in user mode without a user page table")

    def apply(self, vcpu: Vcpu) -> None:
        """Set everything of the vCPU but its GDT, with selectors as a guest may have them. The caller holds
        references to the page tables."""
        width, registers = self.width, self.registers
        for segment in (registers.cs, registers.ss):
            segment.selector = fix_rpl(segment.selector, width)
        in_kernel = registers.cs.selector & 3 == 1 if width == 32 else self.flags & shared.VGCF_IN_KERNEL
        vcpu.in_kernel = bool(in_kernel)
        vcpu.paging.kernel_l4, vcpu.paging.user_l4 = Mfn(self.kernel_l4), Mfn(self.user_l4)
        vcpu.descriptors.forget()
        vcpu.ports.iopl = (registers.rflags & FLAG_IOPL) >> 12
        vcpu.traps.clear()
        for vector, trap in enumerate(self.traps):
            if trap.address or (width == 32 and trap.cs):
                trap.vector = vector
                set_trap(vcpu, trap)
        vcpu.callbacks.event, vcpu.callbacks.failsafe = (
            replace(callback, selector=fix_rpl(callback.selector, width))
            for callback in (self.event, self.failsafe)
        )
        vcpu.callbacks.syscall = self.syscall
        vcpu.kernel_stack.ss, vcpu.kernel_stack.sp = fix_rpl(self.kernel_ss, width), self.kernel_sp
        vcpu.descriptors.ldt_base, vcpu.descriptors.ldt_entries = self.ldt_base, self.ldt_entries
        vcpu.other_gs_base = self.gs_base_user
        if not vcpu.in_kernel:
            vcpu.other_gs_base, registers.gs.base = registers.gs.base, self.gs_base_user
        for number in (0, 1, 2, 3, 6, 7):
            try:
                vcpu.debug.write(number, self.debug[number], vcpu.cr4)
            except XenError:
                continue  # Xen clears what it does not accept
        vcpu.initial = registers


def _user_regs(width: int) -> dict[str, int]:
    return shared.USER_REGS if width == 64 else shared.USER_REGS_32


def _register_offsets(width: int) -> dict[str, int]:
    """Offsets of `cpu_user_regs` of what is a register."""
    return {name: offset for name, offset in _user_regs(width).items() if name not in _NOT_REGISTERS}
