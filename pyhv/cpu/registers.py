# SPDX-License-Identifier: GPL-2.0-only
"""A vCPU's registers with the field's names: independent of any engine, and read from and written to one.

An engine's own form is its state block (`vmcb.py`), which no other build of the emulator understands. What
that block holds beyond registers follows from them:

    lazy flags           `rflags` is whole
    hflags               mode and privilege, from the segments' attributes, `cpl`, `task_switched`, `mov_ss`
    rounding modes       FCW and MXCSR, which are loaded through the emulator's interface
    CR0, CR4, EFER       every engine is set up alike; CR0.TS is `task_switched`
    CR3, GDTR, LDTR, TR  the hypervisor's: whoever puts the vCPU on its engine sets them
    CR4.TSD, TSC_AUX     kept by the vCPU, where the guest reads them; set likewise
    exception state      none is on its way between two instructions

So a vCPU that was read from one engine and written to another runs on bit for bit. The debug registers of the
emulator are idle; a guest's are in its vCPU, as its control registers are.
"""

from dataclasses import dataclass, field
from typing import Annotated, Final

from pyhv.abi.layout import u16, u32, u64
from pyhv.cpu import fpu
from pyhv.cpu import vmcb as v
from pyhv.cpu.engine import Engine
from pyhv.cpu.fpu import Fxsave

_LONG: Final = 1 << 21
_BIG: Final = 1 << 22
"""L and D/B in a descriptor's high dword: 64-bit code; 32-bit code or stack."""
SEGMENTS: Final = ("es", "cs", "ss", "ds", "fs", "gs")
"""In the processor's order, that of `vmcb.ES` ... `vmcb.GS`."""


def wide_name(name: str) -> str:
    """The 64-bit name of a register that has a 32-bit one, such as EAX; other names stay."""
    return "r" + name[1:] if name[0] == "e" and name != "es" else name


@dataclass(slots=True)
class SegmentRegister:
    """A segment register with its hidden part: `attributes` is the high dword of the descriptor, or 0."""

    selector: u16 = 0
    base: u64 = 0
    limit: u32 = 0
    attributes: u32 = 0


@dataclass(slots=True)
class Registers:
    """The registers of a vCPU between two instructions."""

    rax: u64 = 0
    rcx: u64 = 0
    rdx: u64 = 0
    rbx: u64 = 0
    rsp: u64 = 0
    rbp: u64 = 0
    rsi: u64 = 0
    rdi: u64 = 0
    r8: u64 = 0
    r9: u64 = 0
    r10: u64 = 0
    r11: u64 = 0
    r12: u64 = 0
    r13: u64 = 0
    r14: u64 = 0
    r15: u64 = 0
    rip: u64 = 0
    rflags: u64 = 2
    es: SegmentRegister = field(default_factory=SegmentRegister)
    cs: SegmentRegister = field(default_factory=SegmentRegister)
    ss: SegmentRegister = field(default_factory=SegmentRegister)
    ds: SegmentRegister = field(default_factory=SegmentRegister)
    fs: SegmentRegister = field(default_factory=SegmentRegister)
    gs: SegmentRegister = field(default_factory=SegmentRegister)
    cpl: Annotated[int, range(4)] = 3
    """Privilege level at which the emulator runs it, 0..3: that of a 64-bit guest's kernel may be 1
    (`mmu/paging.py`)."""
    task_switched: bool = False
    """CR0.TS."""
    mov_ss: bool = False
    """The instruction before was MOV SS or POP SS, which holds single steps and breakpoints back."""
    cr2: u64 = 0
    """Address of the last page fault. The guest's own CR2 is in its vcpu_info."""
    fpu: Fxsave = field(default_factory=Fxsave)

    def general(self) -> tuple[int, ...]:
        """RAX, RCX ... R15 in the processor's order."""
        return tuple(getattr(self, name) for name in v.GENERAL_NAMES)

    @property
    def segments(self) -> tuple[SegmentRegister, ...]:
        """ES, CS, SS, DS, FS, GS."""
        return self.es, self.cs, self.ss, self.ds, self.fs, self.gs


def read(engine: Engine) -> Registers:
    """The registers that an engine holds. Nothing there is changed."""
    vmcb = engine.vmcb
    q, d = vmcb.q, vmcb.d
    es, cs, ss, ds, fs, gs = (
        SegmentRegister(vmcb.selector(n), q[v.SEG_BASE[n]], d[v.SEG_LIMIT[n]], d[v.SEG_FLAGS[n]])
        for n in range(len(SEGMENTS))
    )
    found = Registers(
        rip=q[v.RIP], rflags=engine.rflags(), es=es, cs=cs, ss=ss, ds=ds, fs=fs, gs=gs, cpl=vmcb.cpl,
        task_switched=vmcb.task_switched, mov_ss=bool(d[v.HFLAGS] & v.HF_INHIBIT), cr2=vmcb.cr2,
        fpu=fpu.save(engine.handle),
    )  # fmt: skip
    for name, value in zip(v.GENERAL_NAMES, q[0:16], strict=True):
        setattr(found, name, value)
    return found


def write(engine: Engine, registers: Registers) -> None:
    """Make these the registers that an engine holds; whatever else is in its state is as in a new one."""
    vmcb = engine.vmcb
    q = vmcb.q
    vmcb.raw[:] = engine.pristine
    for index, value in enumerate(registers.general()):
        q[index] = value
    vmcb.rip = registers.rip
    vmcb.set_rflags(registers.rflags)
    for n, segment in enumerate(registers.segments):
        vmcb.set_segment(n, segment.selector, segment.base, segment.limit, segment.attributes)
    vmcb.d[v.HFLAGS] = _hflags(registers)
    vmcb.task_switched = registers.task_switched
    q[v.CR + 2] = registers.cr2
    fpu.load(engine.handle, registers.fpu)


def _hflags(registers: Registers) -> int:
    """The emulator's summary of mode and privilege."""
    hflags = v.HF_PE | v.HF_LMA | v.HF_MP | v.HF_OSFXSR | registers.cpl & v.HF_CPL
    if registers.mov_ss:
        hflags |= v.HF_INHIBIT
    if registers.cs.attributes & _LONG:
        return hflags | v.HF_CS64 | v.HF_CS32 | v.HF_SS32
    if registers.cs.attributes & _BIG:
        hflags |= v.HF_CS32
    if registers.ss.attributes & _BIG:
        hflags |= v.HF_SS32
    if registers.ds.base | registers.es.base | registers.ss.base or not hflags & v.HF_CS32:
        hflags |= v.HF_ADDSEG
    return hflags
