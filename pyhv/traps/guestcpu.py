# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU on its engine: what guests of both widths have in common.

A vCPU is loaded and saved whole; exceptions and events enter its kernel through a *bounce frame*; segment
registers are filled from its GDT and LDT, whose pages are approved and mapped on first use. How a frame
looks, how kernel and user mode are told apart and which page tables go with them depends on the guest's
width: `longmode.py` for 64 bits, `compat.py` for 32. This module moves state; `dispatch.py` decides when.
"""

from collections.abc import Mapping
from typing import ClassVar, Final

from pyhv.abi.x86 import (
    COMPAT_RING3_CS,
    COMPAT_RING3_DS,
    CR4_TSD,
    ERROR_CODE_VECTORS,
    FLAG_IOPL,
    FLAG_RF,
    FLAG_TF,
    FLAG_VM,
    FLAT_RING3_CS64,
    FLAT_RING3_DS,
    GDT_GUEST_BYTES,
    RESERVED_DESCRIPTORS,
    RESERVED_DESCRIPTORS_COMPAT,
    Vector,
)
from pyhv.address import PAGE_SIZE, Mfn
from pyhv.cpu import vmcb as v
from pyhv.cpu.engine import Engine
from pyhv.cpu.registers import Registers
from pyhv.cpu.words import words32, words64
from pyhv.domain.callbacks import CallbackEntry
from pyhv.domain.domain import Domain
from pyhv.domain.vcpu import Vcpu
from pyhv.errors import GuestCrash, XenError
from pyhv.mmu import descriptors
from pyhv.mmu.descriptors import Segment
from pyhv.mmu.paging import LDT_AREA, DomainArea
from pyhv.mmu.segdesc import drop_descriptor_page, take_descriptor_page

IRET_FLAGS: Final = 0x3D4DD5
"""RFLAGS bits that an iret frame may set: CF PF AF ZF SF TF DF OF NT RF AC VIF VIP ID."""
_TRAPS: Final = frozenset({Vector.DB, Vector.NMI, Vector.BP, Vector.OF})
"""Exceptions that are reported after the instruction, and #DB, whose faults leave RF alone too."""
_GDT_LIMIT: Final = 0xEFFF
"""What SGDT shows: the guest's 14 pages and Xen's own one."""
CODE64_FLAGS: Final = RESERVED_DESCRIPTORS[0xE030] >> 32 & 0xFFFF00
DATA_FLAGS: Final = RESERVED_DESCRIPTORS[0xE028] >> 32 & 0xFFFF00
FLAT_LIMIT: Final = 0xFFFF_FFFF
_TSS_SELECTOR, _LDT_SELECTOR = 0xE040, 0xE050


class GuestCpu:
    """The current vCPU of one domain, as its engine runs it."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("domain", "engine", "tables", "memory"), "rebuilt"),
        **dict.fromkeys(("vmcb", "_q", "_d", "_code"), "views of the engine's registers and of memory"),
        **dict.fromkeys(("kernel_ring", "reserved_descriptors"), "follows from the domain's width"),
        "vcpu": "the one whose registers are loaded",
        **dict.fromkeys(
            ("rebase", "rearrange", "stepping", "has_breakpoints"),
            "worked out when a vCPU is put on the engine",
        ),
    }

    def __init__(self, domain: Domain, engine: Engine) -> None:
        self.domain = domain
        self.engine = engine
        self.vmcb = engine.vmcb
        self._q, self._d = words64(engine.vmcb.q), words32(engine.vmcb.d)
        self.kernel_ring = 3 if domain.width == 64 else 1
        self.reserved_descriptors = (
            RESERVED_DESCRIPTORS if domain.width == 64 else RESERVED_DESCRIPTORS_COMPAT
        )
        """Xen's part of the GDT by selector without RPL."""
        self.tables = domain.tables
        self.memory = domain.memory
        self.vcpu = domain.vcpus[0]
        self.rebase = False
        """A base pointer has changed: CR3 is set before the guest runs on."""
        self.rearrange = False
        """A breakpoint has changed, or one is near: see to it, after CR3, before the guest runs on."""
        self.stepping = False
        """The instruction in execution is a step of `debug.py`: every exit ends with `rearrange` set."""
        self.has_breakpoints = False
        """The vCPU has enabled breakpoints, so that RF counts."""

    # -- what depends on the guest's width ---------------------------------------------------------------

    def note_mode(self) -> None:
        """An exit has come: find out which mode the guest is in, where the processor decides that."""
        raise NotImplementedError

    def arrange(self) -> None:
        """Set CR3, and what else depends on base pointers and mode."""
        raise NotImplementedError

    @property
    def merged(self) -> bool:
        """Whether kernel and user share one hardware table although their rings are one to the guest."""
        raise NotImplementedError

    def split_until_mode_change(self) -> None:
        """Leave the merged arrangement for now."""
        raise NotImplementedError

    def linear_rip(self) -> int:
        """Linear address of the instruction."""
        raise NotImplementedError

    def has_handler(self, vector: int) -> bool:
        """Whether the guest's trap table has an entry for `vector`."""
        raise NotImplementedError

    def enter_trap(self, vector: int, error: int | None = None, rflags: int | None = None) -> None:
        """Enter the guest's handler of `vector`; `rflags` are those for the frame, if not the guest's own."""
        raise NotImplementedError

    def enter_callback(self, callback: CallbackEntry) -> None:
        """Enter one of the guest's callbacks with an ordinary frame."""
        raise NotImplementedError

    def enter_failsafe(self, selectors: tuple[int, ...]) -> None:
        """Enter the failsafe callback with the selectors that DS, ES, FS and GS had."""
        raise NotImplementedError

    def make_flat(self) -> None:
        """The hypercall that begins will end with SYSRET, which loads CS and SS with Xen's flat segments."""
        raise NotImplementedError

    def system_call(self, length: int) -> None:
        """SYSCALL, of `length` bytes, executed in user mode."""
        raise NotImplementedError

    def system_enter(self) -> None:
        """SYSENTER."""
        raise NotImplementedError

    def iret(self) -> None:
        """The iret hypercall: load the frame on the stack and go where it says."""
        raise NotImplementedError

    def load_return_segments(self, cs: int, ss: int) -> None:
        """Load CS and SS as a return to the guest does; an exception at the target if one cannot be."""
        raise NotImplementedError

    def begin_anew(self) -> None:
        """The domain was put back to another moment, and none of its vCPUs is on the engine."""
        self.rebase = self.rearrange = self.stepping = self.has_breakpoints = False

    # -- loading -----------------------------------------------------------------------------------------

    def load(self, vcpu: Vcpu) -> None:
        """Put a vCPU on the engine, taking the other one off."""
        if vcpu.context.loaded:
            return
        if vcpu.context.load():
            self.engine.set_tsc_aux(vcpu.msrs.tsc_aux)
            self.engine.trap_user_time(bool(vcpu.cr4 & CR4_TSD))
        self.vcpu = vcpu
        self.memory.use(vcpu.paging.kernel_l4)
        base = DomainArea.address(vcpu.number)
        self.vmcb.set_system_table(v.GDT_OFFSET, base, _GDT_LIMIT)
        self.vmcb.d[v.TR_OFFSET // 4] = _TSS_SELECTOR
        self.load_ldtr()
        self.tables.flush = True
        self.arrange()
        if vcpu.initial is not None:
            self._load_first_segments(vcpu.initial)
            vcpu.initial = None

    def _load_first_segments(self, wanted: Registers) -> None:
        """Load the selectors with which a vCPU starts; data segments that cannot be loaded stay null."""
        vmcb, kernel = self.vmcb, self.kernel_ring
        ring = 3 if not self.vcpu.in_kernel else kernel
        for segment in (v.ES, v.DS, v.FS, v.GS):
            selector = wanted.segments[segment].selector
            value = self.descriptor(selector) if selector & ~3 else None
            if value is not None and descriptors.is_loadable_data(value, max(selector & 3, ring)):
                base, limit, flags = descriptors.decode(value | 1 << 40)
                vmcb.set_segment(segment, selector, base, limit, flags)
        if wanted.cs.selector & ~3:
            self.load_return_segments(wanted.cs.selector, wanted.ss.selector)

    def leave_vm86(self, rflags: int) -> int:
        """Make a process of what is in virtual-8086 mode; RFLAGS as they should have been.

        A processor in long mode has no such mode and ignores VM; the emulator's IRET enters it, in every
        ring, and takes IOPL along. The selectors there are the guest's free choice: unchanged, they could
        make its kernel believe that it was interrupted itself.
        """
        wide = self.domain.width == 64
        selectors = (FLAT_RING3_CS64, FLAT_RING3_DS) if wide else (COMPAT_RING3_CS, COMPAT_RING3_DS)
        for segment, selector in zip((v.CS, v.SS), selectors, strict=True):
            self._d[v.SEG_SEL[segment]] = selector
        for segment in (v.ES, v.DS, v.FS, v.GS):
            self.vmcb.set_segment(segment, 0, 0, 0, 0)
        return rflags & ~(FLAG_VM | FLAG_IOPL)

    def load_ldtr(self) -> None:
        """Point the hardware LDTR at the vCPU's LDT window; pages come in on first use."""
        vcpu = self.vcpu
        base = DomainArea.address(vcpu.number) + LDT_AREA
        limit = vcpu.descriptors.ldt_entries * 8 - 1 if vcpu.descriptors.ldt_entries else 0
        selector = _LDT_SELECTOR if vcpu.descriptors.ldt_entries else 0
        self.vmcb.set_system_table(v.LDT_OFFSET, base, limit, selector, 0x8200)

    # -- page tables -------------------------------------------------------------------------------------

    def new_base_pointers(self) -> None:
        """A base pointer changed: merge anew at the end of this exit."""
        self.vcpu.paging.merge_known = -1
        self.memory.use(self.vcpu.paging.kernel_l4)
        self.rebase = True

    def new_baseptr(self, mfn: int) -> None:
        """MMUEXT_NEW_BASEPTR and MOV CR3: another kernel L4, and always a flush."""
        vcpu, tables = self.vcpu, self.tables
        tables.flush = True
        if mfn == vcpu.paging.kernel_l4:
            return
        tables.take_table(mfn, tables.top)
        self.drop_ldt()
        old, vcpu.paging.kernel_l4 = vcpu.paging.kernel_l4, Mfn(mfn)
        self.new_base_pointers()
        if old:
            tables.drop_table(old)

    # -- into the kernel ---------------------------------------------------------------------------------

    def raise_exception(self, vector: int, error: int = 0, *, restart: bool = True) -> None:
        """Deliver an exception to the guest's handler; RIP is at the faulting instruction.

        A fault's frame has RF set, so that breakpoints do not stop the instruction again that is to be
        restarted; `restart` is false where none has begun.
        """
        rflags = self.engine.rflags()
        if restart and vector not in _TRAPS:
            rflags |= FLAG_RF
        self.enter_trap(vector, error if vector in ERROR_CODE_VECTORS else None, rflags)

    def flags_of_sysenter(self) -> int:
        """RFLAGS that SYSENTER leaves to the hypervisor.

        TF is among them; the hypervisor's entry takes it away before it can trap. The emulator traps all the
        same, once, behind the instruction, when the guest's kernel has been entered: that trap is nobody's.
        """
        rflags = self.engine.rflags()
        self.vcpu.debug.swallow_step = bool(rflags & FLAG_TF)
        return rflags

    @staticmethod
    def unhandled(vector: int, error: int | None) -> GuestCrash:
        """The end of a guest that has no handler for an exception."""
        name = Vector(vector).name if vector in Vector._value2member_map_ else vector
        return GuestCrash(f"exception {name} (error code {error or 0:#x}) without a handler")

    def raise_page_fault(self, address: int, error: int) -> None:
        """Deliver #PF: the address goes to vcpu_info.cr2, where the guest looks for it."""
        self.vcpu.info.cr2 = address
        self.vmcb.q[v.CR + 2] = address
        self.raise_exception(Vector.PF, error)

    def deliver_event(self) -> None:
        """Enter the handlers of what is due: an NMI, which an event's frame may then lie upon, and events."""
        vcpu = self.vcpu
        if vcpu.nmi.deliverable:
            vcpu.nmi.pending = False
            if self.has_handler(Vector.NMI):
                vcpu.nmi.in_handler = True
                self.enter_trap(Vector.NMI)
        if vcpu.info.deliverable:
            self.enter_callback(vcpu.callbacks.event)

    # -- segments ----------------------------------------------------------------------------------------

    def compatibility_mode(self, hflags: int, code: Segment) -> int:
        """hflags for a 32- or 16-bit code segment."""
        hflags &= ~(v.HF_CS64 | v.HF_CS32 | v.HF_SS32)
        if code.flags & descriptors.DEFAULT_BIG >> 32:
            hflags |= v.HF_CS32
        vmcb = self.vmcb
        if vmcb.d[v.SEG_FLAGS[v.SS]] & descriptors.DEFAULT_BIG >> 32:
            hflags |= v.HF_SS32
        bases = vmcb.q[v.SEG_BASE[v.DS]] | vmcb.q[v.SEG_BASE[v.ES]] | vmcb.q[v.SEG_BASE[v.SS]]
        if bases or not hflags & v.HF_CS32:
            hflags |= v.HF_ADDSEG
        return hflags

    def descriptor(self, selector: int) -> int | None:
        """The 8 bytes that a selector names in the vCPU's GDT or LDT, None beyond their limits."""
        vcpu = self.vcpu
        offset = selector & 0xFFF8
        if selector & 4:
            if offset >= vcpu.descriptors.ldt_entries * 8:
                return None
            mfn = self.ldt_page(offset >> 12)
            return None if mfn is None else self.domain.ram.q[mfn << 9 | offset >> 3 & 511]
        if offset >= GDT_GUEST_BYTES:
            return self.reserved_descriptors.get(offset)
        if offset >> 12 >= len(vcpu.descriptors.gdt_frames):
            return 0
        return self.domain.ram.q[vcpu.descriptors.gdt_frames[offset >> 12] << 9 | offset >> 3 & 511]

    def segment(self, selector: int, *, code: bool, ring: int = 3) -> Segment | None:
        """The hidden part for loading a selector into CS (`code`) or SS of `ring`, None if it may not be."""
        key = selector | code << 16 | ring << 17
        known = self.vcpu.descriptors.segments
        if key in known:
            return known[key]
        value = self.descriptor(selector) if selector & ~3 else None
        found = None
        if value is not None:
            allowed = descriptors.is_loadable_code if code else descriptors.is_loadable_stack
            if allowed(value, ring):
                found = descriptors.decode(value | 1 << 40)
        if value is not None:  # an LDT page that is missing now may come later
            known[key] = found
        return found

    def ldt_page(self, page: int) -> Mfn | None:
        """The frame behind a page of the guest's LDT, approved and mapped on first use."""
        vcpu = self.vcpu
        known = vcpu.descriptors.ldt_mapped.get(page)
        if known is not None:
            return known
        if page * 512 >= vcpu.descriptors.ldt_entries:
            return None
        try:
            mfn = Mfn(self.memory.for_read(vcpu.descriptors.ldt_base + page * PAGE_SIZE) >> 12)
        except XenError:
            return None
        if not take_descriptor_page(self.tables, mfn, self.domain.width):
            return None
        vcpu.descriptors.ldt_mapped[page] = mfn
        self.domain.area.map(vcpu.number, 16 + page, mfn)
        self.tables.flush = True
        return mfn

    def drop_ldt(self) -> None:
        """Forget the LDT pages that were faulted in."""
        vcpu = self.vcpu
        if not vcpu.descriptors.ldt_mapped:
            return
        for page, mfn in vcpu.descriptors.ldt_mapped.items():
            self.domain.area.map(vcpu.number, 16 + page, None)
            drop_descriptor_page(self.tables, mfn)
        self.tables.flush = True
        vcpu.descriptors.ldt_mapped.clear()
        vcpu.descriptors.forget()
