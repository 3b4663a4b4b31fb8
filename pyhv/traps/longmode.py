# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU of a 64-bit guest on its engine: kernel and user mode in one ring, bounce frames, iret.

A 64-bit PV guest has two modes, kernel and user, which the hardware does not know: the hypervisor switches
between them. Into the kernel the way is always a *bounce frame* on the kernel's stack (Xen's traps, event
upcalls and system calls all look alike):

    low   rcx  r11  [error code]  rip  cs | mask << 32  rflags  rsp  ss   high

and back to user mode (or elsewhere in the kernel) the iret hypercall, whose frame is

    low   rax  r11  rcx  flags  rip  cs  rflags  rsp  ss                  high

(public header `arch-x86/xen-x86_64.h`, `struct iret_context`). With each switch go the page tables
(`mmu/paging.py`), the GS base and the stack. This module moves state; `dispatch.py` decides when.
"""

import struct
from typing import Final

from pyhv.abi.numbers import Assist
from pyhv.abi.shared import VGCF_IN_SYSCALL, VI_UPCALL_MASK, VI_UPCALL_PENDING
from pyhv.abi.x86 import (
    FLAG_AC,
    FLAG_DF,
    FLAG_IF,
    FLAG_IOPL,
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    FLAT_RING3_CS32,
    FLAT_RING3_CS64,
    FLAT_RING3_DS,
    Vector,
)
from pyhv.address import MASK32, MASK64, is_canonical
from pyhv.cpu import vmcb as v
from pyhv.cpu.vmcb import R11, RAX, RCX, RIP, RSP
from pyhv.cpu.words import packed7, packed8
from pyhv.domain.callbacks import CallbackEntry
from pyhv.errors import GuestCrash, XenError
from pyhv.mmu import descriptors
from pyhv.mmu.paging import MERGED, SPLIT_KERNEL, SPLIT_USER
from pyhv.traps.guestcpu import CODE64_FLAGS, DATA_FLAGS, FLAT_LIMIT, IRET_FLAGS, GuestCpu

_IOPL: Final = int(Assist.ARCHITECTURAL_IOPL)
_DROPPED_ON_ENTRY: Final = FLAG_AC | FLAG_VM | FLAG_RF | FLAG_NT | FLAG_TF
_CS_SEL, _SS_SEL = v.SEG_SEL[v.CS], v.SEG_SEL[v.SS]
_DS_SEL, _ES_SEL, _FS_SEL, _GS_SEL = (v.SEG_SEL[segment] for segment in (v.DS, v.ES, v.FS, v.GS))
_CS_FLAGS, _SS_FLAGS = v.SEG_FLAGS[v.CS], v.SEG_FLAGS[v.SS]
_CS_BASE, _SS_BASE = v.SEG_BASE[v.CS], v.SEG_BASE[v.SS]
_CS_LIMIT, _SS_LIMIT = v.SEG_LIMIT[v.CS], v.SEG_LIMIT[v.SS]
_GS_BASE: Final = v.SEG_BASE[v.GS]
_HOLE_START, _HOLE_END = 0xFFFF_8000_0000_0000, 0xFFFF_8800_0000_0040

_SYSCALL_LENGTH: Final = 2

_MOST_PAIRS: Final = 1024
"""(CS, SS) pairs that are remembered decoded."""


class LongModeCpu(GuestCpu):
    """The current vCPU of one 64-bit domain, as its engine runs it."""

    def note_mode(self) -> None:
        """The hypervisor switches the mode itself, so it knows."""

    # -- page tables -------------------------------------------------------------------------------------

    def arrange(self) -> None:
        """Choose the arrangement for the vCPU's mode and set CR3 and CPL accordingly."""
        vcpu, q, d = self.vcpu, self._q, self._d
        paging = vcpu.paging
        cache = self.tables.cache
        if paging.merge_known != cache.generation:
            paging.merge_known = cache.generation
            paging.merged = cache.may_merge(paging.kernel_l4, paging.user_l4)
        if paging.merged and not paging.force_split:
            cr3 = cache.hardware_l4(paging.kernel_l4, MERGED) << 12
            cpl = 1 if vcpu.in_kernel else 3
        elif vcpu.in_kernel:
            cr3 = cache.hardware_l4(paging.kernel_l4, SPLIT_KERNEL) << 12
            cpl = 3
        else:
            cr3 = cache.hardware_l4(paging.user_l4, SPLIT_USER) << 12
            cpl = 3
        if q[v.CR + 3] != cr3:
            q[v.CR + 3] = cr3
            self.tables.flush = True
        d[v.HFLAGS] = d[v.HFLAGS] & ~3 & v.MINUS_ONE | cpl

    @property
    def merged(self) -> bool:
        """Whether kernel and user share one hardware table right now."""
        return self.vcpu.paging.merged and not self.vcpu.paging.force_split

    def split_until_mode_change(self) -> None:
        """Use the guest's real tables in ring 3, as hardware would, until the mode changes."""
        self.vcpu.paging.force_split = True
        self.arrange()

    def _change_mode(self, to_kernel: bool) -> None:
        vcpu, q = self.vcpu, self._q
        paging = vcpu.paging
        vcpu.in_kernel = to_kernel
        q[_GS_BASE], vcpu.other_gs_base = vcpu.other_gs_base, q[_GS_BASE]
        if paging.merged and not paging.force_split and paging.merge_known == self.tables.cache.generation:
            return  # same table; the caller sets CPL with the rest of hflags
        paging.force_split = False
        self.arrange()

    def _hardware_cpl(self) -> int:
        paging = self.vcpu.paging
        return 1 if self.vcpu.in_kernel and paging.merged and not paging.force_split else 3

    def linear_rip(self) -> int:
        """Linear address of the instruction; 64-bit code has no segment base, 32-bit processes may."""
        rip = self._q[RIP]
        if self._d[v.HFLAGS] & v.HF_CS64:
            return rip
        return (rip + self._q[_CS_BASE]) & MASK32

    # -- into the kernel ---------------------------------------------------------------------------------

    def bounce(
        self,
        address: int,
        masks: bool,
        error: int | None = None,
        flat: bool = False,
        frame: tuple[int, int, int, int] | None = None,
        extra: tuple[int, ...] = (),
        rflags: int | None = None,
    ) -> None:
        """Enter the guest kernel at `address` with a bounce frame; `masks` masks events.

        `flat` puts the flat selectors into the frame whatever the real ones are (system calls). `frame`
        replaces (rip, cs, rsp, ss) in it altogether (SYSENTER). `extra` words go between R11 and RIP.
        `rflags` are the guest's if known. Crashes the domain when there is no handler or no stack.
        """
        vcpu, q, d = self.vcpu, self._q, self._d
        if address == 0:
            raise GuestCrash("an event or exception has no handler")
        flags = self.vmcb.rflags() if rflags is None else rflags
        if flags & FLAG_VM:
            flags = self.leave_vm86(flags)
        info = vcpu.info
        masked = info.flags[VI_UPCALL_MASK]
        if vcpu.in_kernel:
            cs, stack = d[_CS_SEL] & 0xFFFC, q[RSP]
        else:
            cs, stack = d[_CS_SEL] & 0xFFFF, vcpu.kernel_stack.sp
        if flat:
            rip, cs, rsp, ss = q[RIP], FLAT_RING3_CS64, q[RSP], FLAT_RING3_DS
        elif frame is None:
            rip, rsp, ss = q[RIP], q[RSP], d[_SS_SEL] & 0xFFFF
        else:
            rip, cs, rsp, ss = frame
        saved_flags = flags & ~(FLAG_IF | FLAG_IOPL)
        if masked:
            cs |= masked << 32  # the byte as the guest wrote it
        else:
            saved_flags |= FLAG_IF
        if vcpu.ports.iopl and _IOPL in self.domain.assists.enabled:
            saved_flags |= vcpu.ports.iopl << 12
        if not vcpu.in_kernel:
            self._change_mode(to_kernel=True)
        size = (56 if error is None else 64) + 8 * len(extra)
        stack &= ~15
        if stack < size or _HOLE_START < stack < _HOLE_END + size:
            where = stack - size & MASK64
            raise GuestCrash(f"a bounce frame at {where:#x} would be in the hypervisor's area")
        stack -= size
        if extra:
            words = [q[RCX], q[R11], *extra, rip, cs, saved_flags, rsp, ss]
            if error is not None:
                words.insert(2, error)
            pushed = struct.pack(f"<{len(words)}Q", *words)
        elif error is None:
            pushed = packed7(q[RCX], q[R11], rip, cs, saved_flags, rsp, ss)
        else:
            pushed = packed8(q[RCX], q[R11], error, rip, cs, saved_flags, rsp, ss)
        try:
            self.memory.word_write(stack, pushed)
        except XenError as refusal:
            raise GuestCrash(f"no kernel stack for a bounce frame: {refusal.why}") from refusal
        if masks:
            info.mask_upcalls(True)
        flags &= ~(_DROPPED_ON_ENTRY | FLAG_DF) if flat else ~_DROPPED_ON_ENTRY
        q[RSP] = stack
        q[RIP] = q[RCX] = address
        q[R11] = flags
        self.vmcb.set_rflags(flags)
        if d[v.HFLAGS] & v.HF_CS64:
            d[_CS_SEL], d[_CS_FLAGS] = FLAT_RING3_CS64, CODE64_FLAGS
            d[_SS_SEL], d[_SS_FLAGS] = FLAT_RING3_DS, DATA_FLAGS
        else:
            self.vmcb.set_segment(v.CS, FLAT_RING3_CS64, 0, FLAT_LIMIT, CODE64_FLAGS)
            self.vmcb.set_segment(v.SS, FLAT_RING3_DS, 0, FLAT_LIMIT, DATA_FLAGS)
        d[v.HFLAGS] = d[v.HFLAGS] & v.HF_TS | v.HF_BASE64 | self._hardware_cpl()
        vcpu.debug.unstepped = False

    def has_handler(self, vector: int) -> bool:
        """Whether the guest's trap table has an entry for `vector`."""
        return self.vcpu.traps.handlers[vector][0] != 0

    def enter_trap(self, vector: int, error: int | None = None, rflags: int | None = None) -> None:
        """Enter the guest's handler of `vector`; `rflags` are those for the frame, if not the guest's own."""
        address, flags = self.vcpu.traps.handlers[vector]
        if address == 0:
            raise self.unhandled(vector, error)
        self.bounce(address, bool(flags & 4), error, False, None, (), rflags)

    def enter_failsafe(self, selectors: tuple[int, ...]) -> None:
        """Enter the failsafe callback with the selectors that DS, ES, FS and GS had."""
        callback = self.vcpu.callbacks.failsafe
        self.bounce(callback.address, callback.mask_events, None, False, None, selectors)

    def enter_callback(self, callback: CallbackEntry) -> None:
        """Enter one of the guest's callbacks with an ordinary frame."""
        self.bounce(callback.address, callback.mask_events)

    def system_call(self, length: int) -> None:
        """SYSCALL executed in user mode: enter the syscall callback."""
        if not self._d[v.HFLAGS] & v.HF_CS64:  # on Intel's processors the instruction itself is undefined
            self.raise_exception(Vector.UD)
            return
        callback, q = self.vcpu.callbacks.syscall, self._q
        q[RIP] = q[RCX] = (q[RIP] + length) & MASK64
        q[R11] = rflags = self.vmcb.rflags()
        if callback.address:
            self.bounce(callback.address, callback.mask_events, None, True, None, (), rflags)
        else:
            q[RIP] = (q[RIP] - _SYSCALL_LENGTH) & MASK64
            self.make_flat()
            self.raise_exception(Vector.UD, restart=False)

    def system_enter(self) -> None:
        """SYSENTER: the user's RIP and RSP are lost, as on hardware."""
        callback = self.vcpu.callbacks.sysenter
        frame = (0, 3, 0, FLAT_RING3_DS)
        rflags = self.flags_of_sysenter()
        if callback.address:
            self.bounce(callback.address, callback.mask_events, None, False, frame, (), rflags)
        else:
            address, flags = self.vcpu.traps.handlers[Vector.GP]
            self.bounce(address, bool(flags & 4), 0, False, frame, (), rflags)

    # -- out of the kernel -------------------------------------------------------------------------------

    def iret(self) -> None:
        """The iret hypercall: load the frame at RSP and go where it says."""
        vcpu, q = self.vcpu, self._q
        stack = q[RSP]
        try:
            words = self.memory.words9(stack)
        except XenError as refusal:
            raise GuestCrash(f"iret hypercall with an unreadable frame: {refusal.why}") from refusal
        rax, r11, rcx = words[0], words[1], words[2]
        flags, rip, cs, rflags, rsp, ss = words[3], words[4], words[5], words[6], words[7], words[8]
        if cs & 3 == 3:
            if not vcpu.paging.user_l4:
                raise GuestCrash("iret to user mode without a user page table")
            self._change_mode(to_kernel=False)
        if _IOPL in self.domain.assists.enabled:
            vcpu.ports.iopl = rflags >> 12 & 3
        live = rflags & IRET_FLAGS | 0x202
        vcpu.info.mask_upcalls(not rflags & FLAG_IF)
        vcpu.nmi.in_handler = False
        q[RSP], q[RAX] = rsp, rax
        cs, ss = (cs | 3) & 0xFFFF, (ss | 3) & 0xFFFF
        if flags & VGCF_IN_SYSCALL and (not rip >> 47 or is_canonical(rip)):
            self._sysret(rip, live, cs, ss)
            return
        q[RIP] = rip
        q[RCX], q[R11] = (rip, live) if flags & VGCF_IN_SYSCALL else (rcx, r11)
        if not self.has_breakpoints:
            live &= ~FLAG_RF  # it would only make the emulator translate the code once more
        if live & FLAG_TF:
            vcpu.debug.unstepped = True
        self.vmcb.set_rflags(live)
        d = self._d
        if d[_DS_SEL] | d[_ES_SEL] | d[_FS_SEL] | d[_GS_SEL]:
            self._clear_null_selectors()
        fault = self._load_return_segments(cs, ss)
        if fault is None and rip >> 47 and not is_canonical(rip):
            fault = 0
        if fault is not None:
            self.raise_exception(self._return_fault(fault, cs), fault, restart=False)

    def _clear_null_selectors(self) -> None:
        """What IRET to an outer ring does to selectors 1 to 3, which name no segment: they become 0."""
        for selector in (_DS_SEL, _ES_SEL, _FS_SEL, _GS_SEL):
            if not self._d[selector] & 0xFFFC:
                self._d[selector] = 0

    def make_flat(self) -> None:
        """Load CS and SS as SYSRET does: with Xen's flat segments, whatever they were."""
        q, d = self._q, self._d
        d[_SS_SEL], d[_SS_LIMIT], d[_SS_FLAGS] = FLAT_RING3_DS, FLAT_LIMIT, DATA_FLAGS
        d[_CS_SEL], d[_CS_LIMIT], d[_CS_FLAGS] = FLAT_RING3_CS64, FLAT_LIMIT, CODE64_FLAGS
        q[_CS_BASE] = q[_SS_BASE] = 0
        d[v.HFLAGS] = d[v.HFLAGS] & v.HF_TS | v.HF_BASE64 | self._hardware_cpl()

    def _sysret(self, rip: int, rflags: int, cs: int, ss: int) -> None:
        """The iret hypercall of a system call, which ends with SYSRET.

        That loads flat segments, leaves RIP and RFLAGS in RCX and R11, and cannot set RF. Events that are
        due come before it: their frame still has the selectors that were asked for, and the RCX and R11 with
        which the hypercall was entered.
        """
        vcpu, q, d = self.vcpu, self._q, self._d
        if cs == FLAT_RING3_CS32:
            self._load_return_segments(FLAT_RING3_CS32, FLAT_RING3_DS)
        else:
            self.make_flat()
        due, nmi = vcpu.info.flags, vcpu.nmi
        if (due[VI_UPCALL_PENDING] and not due[VI_UPCALL_MASK]) or (nmi.pending and not nmi.in_handler):
            d[_CS_SEL], d[_SS_SEL] = cs, ss
            q[R11] = self.vmcb.rflags()
        else:
            q[RCX], q[R11] = rip, rflags
        q[RIP] = rip & MASK32 if cs == FLAT_RING3_CS32 else rip
        self.vmcb.set_rflags(rflags & ~FLAG_RF)

    def load_return_segments(self, cs: int, ss: int) -> None:
        """Load CS and SS as a return to the guest does; #GP at the target if one cannot be."""
        fault = self._load_return_segments(cs | 3, ss | 3)
        if fault is not None:
            self.raise_exception(Vector.GP, fault)

    def _return_fault(self, selector: int, cs: int) -> Vector:
        """The exception for a selector that iret could not load: a good segment may just be absent."""
        value = self.descriptor(selector) if selector else None
        if value is None or value & descriptors.PRESENT:
            return Vector.GP
        value |= descriptors.PRESENT
        if selector == cs & ~3:
            return Vector.NP if descriptors.is_loadable_code(value, 3) else Vector.GP
        return Vector.SS if descriptors.is_loadable_stack(value, 3) else Vector.GP

    def _load_return_segments(self, cs: int, ss: int) -> int | None:
        """Load CS and SS for ring 3; the selector (error code) of the one that cannot be, or None."""
        known, both = self.vcpu.descriptors.return_segments, cs << 16 | ss
        pair = known.get(both)
        if pair is None:
            pair = (self.segment(cs, code=True), self.segment(ss, code=False))
            if None not in pair:
                if len(known) >= _MOST_PAIRS:
                    known.clear()  # a full GDT and LDT have tens of millions of pairs
                known[both] = pair
        code, stack = pair
        q, d, vmcb = self._q, self._d, self.vmcb
        hflags = d[v.HFLAGS] & v.HF_TS | v.HF_BASE64 | self._hardware_cpl()
        if code is None or stack is None:
            vmcb.set_segment(v.SS, ss, 0, FLAT_LIMIT, DATA_FLAGS)
            if code is None:
                vmcb.set_segment(v.CS, cs, 0, FLAT_LIMIT, CODE64_FLAGS)
                d[v.HFLAGS] = hflags
                return cs & ~3
        else:
            d[_SS_SEL] = ss
            q[_SS_BASE], d[_SS_LIMIT], d[_SS_FLAGS] = stack
        d[_CS_SEL] = cs
        q[_CS_BASE], d[_CS_LIMIT], d[_CS_FLAGS] = code
        if not code.flags & descriptors.LONG >> 32:
            hflags = self.compatibility_mode(hflags, code)
        d[v.HFLAGS] = hflags
        return ss & ~3 if stack is None else None
