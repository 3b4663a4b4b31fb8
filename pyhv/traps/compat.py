# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU of a 32-bit guest on its engine: ring 1 and ring 3 in compatibility mode.

The kernel of a 32-bit PV guest has a privilege level of its own, so that mode and page tables need no help:
kernel mode *is* ring 1, one set of tables serves both rings, and the guest may change between them natively.
What the hypervisor builds is the bounce frame of 4-byte words

    low   [error code]  eip  cs | mask << 16  eflags  [esp  ss]   high

with esp and ss only if the kernel was not interrupted itself, on kernel_ss:kernel_sp then and on the current
stack otherwise; and the way back is the iret hypercall (23), or a native IRET, with the frame

    low   eax  eip  cs  eflags  [esp  ss]                         high

(public header `arch-x86/xen-x86_32.h`). Segments matter here: the handler's code segment is the guest's
choice, stacks may have a base and a limit, and a return to an outer ring empties segment registers that are
too privileged for it, as the processor does it. What the guest itself accesses beyond a segment's limit, or
by a null selector, the engine does not notice.
"""

import struct
from typing import Final

from pyhv.abi.numbers import Assist
from pyhv.abi.shared import VI_UPCALL_MASK
from pyhv.abi.x86 import (
    COMPAT_RING3_DS,
    FLAG_IF,
    FLAG_IOPL,
    FLAG_NT,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    Vector,
)
from pyhv.address import MASK32
from pyhv.cpu import vmcb as v
from pyhv.cpu.vmcb import RAX, RIP, RSP
from pyhv.domain.callbacks import CallbackEntry
from pyhv.errors import GuestCrash, XenError
from pyhv.mmu import descriptors
from pyhv.mmu.descriptors import Segment
from pyhv.mmu.paging import COMPAT
from pyhv.traps.guestcpu import IRET_FLAGS, GuestCpu

_IOPL: Final = int(Assist.ARCHITECTURAL_IOPL)
_DROPPED_ON_ENTRY: Final = FLAG_VM | FLAG_RF | FLAG_NT | FLAG_TF
_DATA_SEGMENTS: Final = (v.ES, v.DS, v.FS, v.GS)
_WORD: Final = 4
_VM86_FRAME_WORDS: Final = 10


class CompatCpu(GuestCpu):
    """The current vCPU of one 32-bit domain, as its engine runs it."""

    # -- mode and tables -----------------------------------------------------------------------------------

    def note_mode(self) -> None:
        """An exit: the processor says which mode the guest is in."""
        self.vcpu.in_kernel = self._d[v.HFLAGS] & v.HF_CPL == 1

    def arrange(self) -> None:
        """Point CR3 at the hardware L4 over the kernel's L3."""
        cr3 = self.domain.cache.hardware_l4(self.vcpu.paging.kernel_l4, COMPAT) << 12
        if self._q[v.CR + 3] != cr3:
            self._q[v.CR + 3] = cr3
            self.tables.flush = True

    @property
    def merged(self) -> bool:
        """Kernel and user have rings of their own: nothing is merged."""
        return False

    def split_until_mode_change(self) -> None:
        """There is but one arrangement."""

    def linear_rip(self) -> int:
        """Linear address of the instruction."""
        return (self._q[v.SEG_BASE[v.CS]] + self._q[RIP]) & MASK32

    # -- into the kernel -----------------------------------------------------------------------------------

    def has_handler(self, vector: int) -> bool:
        """A handler has a code segment, whatever its address."""
        return self.vcpu.traps.selectors[vector] & ~3 != 0

    def enter_trap(self, vector: int, error: int | None = None, rflags: int | None = None) -> None:
        """Enter the guest's handler of `vector`; `rflags` are those for the frame, if not the guest's own."""
        address, flags = self.vcpu.traps.handlers[vector]
        if not self.has_handler(vector):
            raise self.unhandled(vector, error)
        self._enter(self.vcpu.traps.selectors[vector], address, bool(flags & 4), error, rflags=rflags)

    def enter_callback(self, callback: CallbackEntry) -> None:
        """Enter one of the guest's callbacks with an ordinary frame."""
        self._enter(callback.selector, callback.address, callback.mask_events)

    def enter_failsafe(self, selectors: tuple[int, ...]) -> None:
        """Enter the failsafe callback with the selectors that DS, ES, FS and GS had."""
        callback = self.vcpu.callbacks.failsafe
        self._enter(callback.selector, callback.address, callback.mask_events, extra=selectors)

    def make_flat(self) -> None:
        """A hypercall of a 32-bit guest ends with IRET, which brings back its own segments."""

    def system_call(self, length: int) -> None:
        """SYSCALL exists in compatibility mode on AMD's processors only; this one is Intel's."""
        self.raise_exception(Vector.UD)

    def system_enter(self) -> None:
        """SYSENTER: where the user was is lost, as on hardware."""
        callback = self.vcpu.callbacks.sysenter
        origin, eflags = (0, 3, 0, COMPAT_RING3_DS), self.flags_of_sysenter()
        if callback.selector & ~3:
            self._enter(
                callback.selector, callback.address, callback.mask_events, origin=origin, rflags=eflags
            )
        else:
            address, flags = self.vcpu.traps.handlers[Vector.GP]
            selector = self.vcpu.traps.selectors[Vector.GP]
            self._enter(selector, address, bool(flags & 4), 0, origin=origin, rflags=eflags)

    def _enter(
        self,
        selector: int,
        address: int,
        masks: bool,
        error: int | None = None,
        *,
        origin: tuple[int, int, int, int] | None = None,
        extra: tuple[int, ...] = (),
        rflags: int | None = None,
    ) -> None:
        """Push a bounce frame and go to `selector:address`; `masks` masks events.

        `origin` replaces (eip, cs, esp, ss) in the frame; `extra` words go below it. Crashes the domain
        when there is no handler, no stack, or one of their segments cannot be loaded.
        """
        vcpu, q, d = self.vcpu, self._q, self._d
        if selector & ~3 == 0:
            raise GuestCrash("an event or exception has no handler")
        if rflags is None:
            rflags = self.engine.rflags()
        if rflags & FLAG_VM:
            rflags = self.leave_vm86(rflags)
        masked = vcpu.info.record[VI_UPCALL_MASK]
        ring = d[v.HFLAGS] & v.HF_CPL
        eip, cs = q[RIP] & MASK32, d[v.SEG_SEL[v.CS]] & 0xFFFF
        esp, ss = q[RSP] & MASK32, d[v.SEG_SEL[v.SS]] & 0xFFFF
        if origin is not None:
            eip, cs, esp, ss = origin
            ring = cs & 3
        saved = rflags & ~(FLAG_IF | FLAG_IOPL) & MASK32
        if not masked:
            saved |= FLAG_IF
        if vcpu.ports.iopl and _IOPL in self.domain.assists.enabled:
            saved |= vcpu.ports.iopl << 12
        words = [*extra, eip, cs | masked << 16, saved]
        if error is not None:
            words.insert(0, error)
        if ring > 1:
            words += [esp, ss]
            stack, stack_selector = vcpu.kernel_stack.sp & MASK32, vcpu.kernel_stack.ss
            segment = self.segment(stack_selector, code=False, ring=stack_selector & 3)
            if segment is None:
                raise GuestCrash(f"the kernel's stack segment {stack_selector:#x} cannot be loaded")
        else:
            stack, stack_selector = q[RSP] & MASK32, ss
            segment = Segment(q[v.SEG_BASE[v.SS]], d[v.SEG_LIMIT[v.SS]], d[v.SEG_FLAGS[v.SS]])
        code = self.segment(selector, code=True, ring=selector & 3)
        if code is None or selector & 3 != stack_selector & 3:
            raise GuestCrash(f"a handler's code segment {selector:#x} cannot be loaded")
        stack = (stack - _WORD * len(words)) & MASK32
        if not segment.holds(stack, _WORD * len(words)):
            raise GuestCrash(f"a bounce frame at {stack:#x} would be outside of its stack segment")
        self._push(segment.base, stack, words)
        if masks:
            vcpu.info.upcall_masked = True
        q[RSP], q[RIP] = stack, address & MASK32
        self.vmcb.set_rflags(rflags & ~_DROPPED_ON_ENTRY)
        self._load_code_and_stack(selector, code, stack_selector, segment)
        vcpu.in_kernel = selector & 3 == 1
        vcpu.debug.unstepped = False

    def _push(self, base: int, stack: int, words: list[int]) -> None:
        try:
            self.memory.write((base + stack) & MASK32, struct.pack(f"<{len(words)}I", *words))
        except XenError as refusal:
            raise GuestCrash(f"no kernel stack for a bounce frame: {refusal.why}") from refusal

    def _load_code_and_stack(self, cs: int, code: Segment, ss: int, stack: Segment) -> None:
        """Load CS and SS, and with them the privilege level."""
        vmcb, d = self.vmcb, self._d
        vmcb.set_segment(v.CS, cs, code.base, code.limit, code.flags)
        vmcb.set_segment(v.SS, ss, stack.base, stack.limit, stack.flags)
        hflags = d[v.HFLAGS] & (v.HF_TS | v.HF_TF | v.HF_RF) | v.HF_BASE64 | cs & 3
        d[v.HFLAGS] = self.compatibility_mode(hflags, code)

    def far_jump(
        self, selector: int, code: Segment, eip: int, stack: tuple[int, Segment] | None = None
    ) -> None:
        """Continue at `selector:eip`, on the stack segment `stack` (selector, hidden part) if it changes."""
        q, d = self._q, self._d
        if stack is None:
            segment = Segment(q[v.SEG_BASE[v.SS]], d[v.SEG_LIMIT[v.SS]], d[v.SEG_FLAGS[v.SS]])
            stack = d[v.SEG_SEL[v.SS]] & 0xFFFF, segment
        self._load_code_and_stack(selector, code, *stack)
        q[RIP] = eip
        self.vcpu.in_kernel = selector & 3 == 1

    # -- out of the kernel ---------------------------------------------------------------------------------

    def iret(self) -> None:
        """The iret hypercall: load the frame at ESP, whatever the base of SS, and go where it says."""
        vcpu, q = self.vcpu, self._q
        esp = q[RSP] & MASK32
        eax, eip, cs, eflags = self._pop(esp, 4)
        cs &= 0xFFFF
        if _IOPL in self.domain.assists.enabled:
            vcpu.ports.iopl = eflags >> 12 & 3
        q[RAX] = eax
        vcpu.nmi.in_handler = False
        if eflags & FLAG_VM:
            self._refuse_vm86(esp, eflags)
            return
        if cs & 3 == 0:
            raise GuestCrash(f"iret to ring 0: cs {cs:#x}")
        if cs & 3 == 1:
            esp, ss = (esp + 16) & MASK32, self._d[v.SEG_SEL[v.SS]] & 0xFFFF
        else:
            esp, ss = self._pop(esp + 16, 2)
            ss &= 0xFFFF
        vcpu.info.upcall_masked = not eflags & FLAG_IF
        live = eflags & IRET_FLAGS | 0x202
        if not self.has_breakpoints:
            live &= ~FLAG_RF
        q[RIP], q[RSP] = eip, esp
        self.vmcb.set_rflags(live)
        self.load_return_segments(cs, ss)

    def _pop(self, esp: int, count: int) -> tuple[int, ...]:
        try:
            return struct.unpack(f"<{count}I", self.memory.read(esp & MASK32, _WORD * count))
        except XenError as refusal:
            raise GuestCrash(f"iret hypercall with an unreadable frame: {refusal.why}") from refusal

    def load_return_segments(self, cs: int, ss: int) -> None:
        """Load CS and SS for their ring; what cannot be loaded is a fault at the target. GuestCrash."""
        ring = cs & 3
        code = self.segment(cs, code=True, ring=ring)
        stack = self.segment(ss, code=False, ring=ring) if ss & 3 == ring else None
        flat_code, flat_data = self._flat(0xE018, 0xE020) if ring == 1 else self._flat(0xE028, 0xE030)
        self._load_code_and_stack(cs, code or flat_code, ss, stack or flat_data)
        self.vcpu.in_kernel = ring == 1
        self._empty_inner_segments(ring)
        if code is not None and stack is not None:
            if self._q[RIP] > code.limit:
                self.raise_exception(Vector.GP, 0, restart=False)
            return
        if ring == 1 and stack is None:
            raise GuestCrash(f"the kernel's stack segment {ss:#x} cannot be loaded")
        if code is None:
            absent, selector = self._is_absent(cs, code=True), cs
            vector = Vector.NP if absent else Vector.GP
        else:
            absent, selector = ss & 3 == ring and self._is_absent(ss, code=False), ss
            vector = Vector.SS if absent else Vector.GP
        self.raise_exception(vector, selector & ~3, restart=False)

    def _is_absent(self, selector: int, *, code: bool) -> bool:
        """Whether nothing is wrong with a descriptor but that it is not present."""
        value = self.descriptor(selector) if selector & ~3 else None
        if value is None or value & descriptors.PRESENT:
            return False
        allowed = descriptors.is_loadable_code if code else descriptors.is_loadable_stack
        return allowed(value | descriptors.PRESENT, selector & 3)

    def _flat(self, code: int, data: int) -> tuple[Segment, Segment]:
        return (
            descriptors.decode(self.reserved_descriptors[code]),
            descriptors.decode(self.reserved_descriptors[data]),
        )

    def _empty_inner_segments(self, ring: int) -> None:
        """A return outwards leaves no segment register with more privilege than the ring."""
        d = self._d
        for segment in _DATA_SEGMENTS:
            flags = d[v.SEG_FLAGS[segment]]
            conforming = flags & descriptors.CODE >> 32 and flags & descriptors.CONFORMING >> 32
            if not d[v.SEG_SEL[segment]] & 0xFFFC:
                d[v.SEG_SEL[segment]] = 0  # 1 to 3 name no segment either
            elif not conforming and flags >> 13 & 3 < ring:
                self.vmcb.set_segment(segment, 0, 0, 0, 0)

    def _refuse_vm86(self, esp: int, eflags: int) -> None:
        """There is no virtual-8086 mode: the kernel gets #GP(0), with the frame left as it is below it."""
        vcpu, q = self.vcpu, self._q
        kernel_sp = vcpu.kernel_stack.sp & MASK32
        stack = self.segment(vcpu.kernel_stack.ss, code=False, ring=1)
        code = self.segment(vcpu.traps.selectors[Vector.GP], code=True, ring=1)
        if stack is None or code is None:
            raise GuestCrash("iret to virtual-8086 mode without a handler for #GP")
        frame = list(self._pop(esp, _VM86_FRAME_WORDS))
        frame[0] = 0  # where EAX was is the error code
        target = (kernel_sp - _WORD * _VM86_FRAME_WORDS) & MASK32
        self._push(0, target, frame)
        address, flags = vcpu.traps.handlers[Vector.GP]
        masked = flags & 4 or not eflags & FLAG_IF
        vcpu.info.upcall_masked = bool(masked)
        q[RSP], q[RIP] = target, address & MASK32
        self.vmcb.set_rflags(eflags & IRET_FLAGS & ~(FLAG_TF | FLAG_NT | FLAG_RF) | 0x202)
        self._load_code_and_stack(vcpu.traps.selectors[Vector.GP], code, vcpu.kernel_stack.ss, stack)
        vcpu.in_kernel = True
