# SPDX-License-Identifier: GPL-2.0-only
"""`vcpu_guest_context`: the state in which VCPUOP_initialise starts a vCPU (public headers `vcpu.h`,
`arch-x86/xen.h`), decoded for either width and checked as Xen checks it.

The FXSAVE image at its beginning counts if a flag says so; otherwise the FPU is as FNINIT leaves it.
"""

import struct

from pyhv.abi import shared
from pyhv.abi.errno import Errno
from pyhv.abi.shared import CONTEXT_LAYOUT
from pyhv.abi.structs import TrapInfo
from pyhv.abi.x86 import FIRST_RESERVED_GDT_ENTRY, FLAG_VM
from pyhv.address import MASK32, PAGE_MASK, cr3_to_mfn, guest_may_use, is_canonical
from pyhv.domain.callbacks import CallbackEntry
from pyhv.domain.vcpu import NO_TRAP, Vcpu
from pyhv.errors import XenError
from pyhv.hypercalls.cpustate import fix_rpl, set_trap
from pyhv.hypercalls.debugreg import set_debugreg

_GDT_FRAMES = 16
_FXSAVE_SIZE = 512
_SELECTORS = frozenset({"cs", "ss", "ds", "es", "fs", "gs"})
_NOT_LOADED = frozenset({"error_code", "entry_vector", "saved_upcall_mask"})


class GuestContext:
    """A context of a guest of `width` bits, from its bytes."""

    def __init__(self, raw: bytes, width: int) -> None:
        self.width = width
        layout = CONTEXT_LAYOUT[width]
        size = layout.word

        def word(offset: int | None) -> int:
            return 0 if offset is None else int.from_bytes(raw[offset : offset + size], "little")

        self.flags = word(layout.flags) & MASK32
        self.fpu = raw[:_FXSAVE_SIZE] if self.flags & shared.VGCF_I387_VALID else b""
        names = shared.USER_REGS if width == 64 else shared.USER_REGS_32
        self.registers = {
            _wide_name(name): int.from_bytes(raw[at : at + (2 if name in _SELECTORS else size)], "little")
            for name, at in ((name, layout.user_regs + offset) for name, offset in names.items())
            if name not in _NOT_LOADED
        }
        self.registers["cs"] = fix_rpl(self.registers["cs"], width)
        self.registers["ss"] = fix_rpl(self.registers["ss"], width)
        self.registers["fs_base"] = word(layout.fs_base)
        self.registers["gs_base"] = word(layout.gs_base_kernel)
        self.gs_base_user = word(layout.gs_base_user)
        trap = struct.Struct(f"{layout.trap_size}s").iter_unpack(
            raw[layout.trap_ctxt : layout.trap_ctxt + 256 * layout.trap_size]
        )
        self.traps = [TrapInfo.unpack(entry, width) for (entry,) in trap]
        self.ldt_base, self.ldt_entries = word(layout.ldt_base), word(layout.ldt_ents)
        self.gdt_entries = word(layout.gdt_ents)
        count = min((self.gdt_entries + 511) // 512, _GDT_FRAMES)
        self.gdt_frames = tuple(word(layout.gdt_frames + size * index) for index in range(count))
        self.kernel_ss, self.kernel_sp = word(layout.kernel_ss), word(layout.kernel_sp)
        self.user_l4 = cr3_to_mfn(word(layout.ctrlreg + size), width) if width == 64 else 0
        self.kernel_l4 = cr3_to_mfn(word(layout.ctrlreg + 3 * size), width)
        self.debug = [word(layout.debugreg + size * number) for number in range(8)]
        self.event = CallbackEntry(
            word(layout.event_callback), True, fix_rpl(word(layout.event_callback_cs), width)
        )
        self.failsafe = CallbackEntry(
            word(layout.failsafe_callback),
            bool(self.flags & shared.VGCF_FAILSAFE_DISABLES_EVENTS),
            fix_rpl(word(layout.failsafe_callback_cs), width),
        )
        self.syscall = CallbackEntry(
            word(layout.syscall_callback), bool(self.flags & shared.VGCF_SYSCALL_DISABLES_EVENTS)
        )

    def check(self) -> None:
        """Raise EINVAL for a context that Xen does not accept."""
        addresses = [self.event.address, self.failsafe.address, self.syscall.address, self.gs_base_user]
        addresses += [self.registers[name] for name in ("rip", "rsp", "fs_base", "gs_base")]
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
            if self.registers["rflags"] & FLAG_VM:
                raise XenError(Errno.EINVAL, "a vCPU cannot start in virtual-8086 mode")
        elif not self.flags & shared.VGCF_IN_KERNEL and not self.user_l4:
            raise XenError(Errno.EINVAL, "a vCPU cannot start in user mode without a user page table")

    def apply(self, vcpu: Vcpu) -> None:
        """Set everything of the vCPU that is not a register or a page table."""
        in_kernel = self.registers["cs"] & 3 == 1 if self.width == 32 else self.flags & shared.VGCF_IN_KERNEL
        vcpu.in_kernel = bool(in_kernel)
        vcpu.forget_segments()
        vcpu.iopl = self.registers["rflags"] >> 12 & 3
        vcpu.traps = [NO_TRAP] * 256
        vcpu.trap_selectors = [0] * 256
        for vector, trap in enumerate(self.traps):
            if trap.address or (self.width == 32 and trap.cs):
                trap.vector = vector
                set_trap(vcpu, trap)
        vcpu.event_callback, vcpu.failsafe_callback = self.event, self.failsafe
        vcpu.syscall_callback = self.syscall
        vcpu.kernel_ss, vcpu.kernel_sp = fix_rpl(self.kernel_ss, self.width), self.kernel_sp
        vcpu.ldt_base, vcpu.ldt_entries = self.ldt_base, self.ldt_entries
        vcpu.other_gs_base = self.gs_base_user
        if not vcpu.in_kernel:
            vcpu.other_gs_base, self.registers["gs_base"] = self.registers["gs_base"], self.gs_base_user
        for number in (0, 1, 2, 3, 6, 7):
            try:
                set_debugreg(vcpu, number, self.debug[number])
            except XenError:
                continue  # Xen clears what it does not accept


def _wide_name(name: str) -> str:
    """The 64-bit name of a 32-bit register."""
    return "r" + name[1:] if name[0] == "e" and name != "es" else name
