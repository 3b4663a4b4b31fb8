# SPDX-License-Identifier: GPL-2.0-only
"""The virtual machine control block: the processor's whole state, laid over the emulator's own memory.

Unicorn's context functions copy one flat block, QEMU's `CPUX86State`. The engine finds that block in the
running processor and this class gives its fields names, so reading or writing a register is one memory
access. The offsets are those of Unicorn 2.1.4; `probe.py` proves them at start-up and refuses to run on
any other layout.

      0  general registers, 16 x u64        184  ES CS SS DS FS GS, 24 bytes each:
    128  rip, eflags, lazy flags                 selector u32, pad, base u64, limit u32, flags u32
    172  df (+1 or -1), hflags u32          424  control registers, 5400 debug registers

Flags are lazy: `eflags` lacks the six condition bits and DF unless `cc_op` says they are there. `set_rflags`
writes the full value; `Engine.rflags()` reads it. This module knows the layout, not what a guest is.
"""

from collections.abc import Callable
from typing import Final

from pyhv.cpu.words import flags_reader, lazy_flags, words32, words64

SIZE: Final = 5568
"""Bytes of the block."""

# 64-bit word indices (offset / 8)
RAX, RCX, RDX, RBX, RSP, RBP, RSI, RDI = range(8)
R8, R9, R10, R11, R12, R13, R14, R15 = range(8, 16)
GENERAL_NAMES: Final = (
    "rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi",
    "r8", "r9", "r10", "r11", "r12", "r13", "r14", "r15",
)  # fmt: skip
"""Names of words 0..15."""
RIP: Final = 16
EFLAGS: Final = 17
CC_DST: Final = 18
CC_SRC: Final = 19
CC_SRC2: Final = 20
CR: Final = 53
"""CR0; CRn is CR + n."""
DR: Final = 675
"""DR0; DRn is DR + n."""

# 32-bit word indices (offset / 4)
CC_OP: Final = 42
DF: Final = 43
HFLAGS: Final = 44
ERROR_CODE: Final = 1346
EXCEPTION_IS_INT: Final = 1347
OLD_EXCEPTION: Final = 1374

ES, CS, SS, DS, FS, GS = range(6)
SEGMENT_OFFSET: Final = 184
SEGMENT_SIZE: Final = 24
LDT_OFFSET: Final = 328
TR_OFFSET: Final = 352
GDT_OFFSET: Final = 376
IDT_OFFSET: Final = 400

SEG_SEL: Final = tuple((SEGMENT_OFFSET + SEGMENT_SIZE * n) // 4 for n in range(6))
"""u32 indices of the selectors."""
SEG_BASE: Final = tuple((SEGMENT_OFFSET + SEGMENT_SIZE * n + 8) // 8 for n in range(6))
"""u64 indices of the hidden bases."""
SEG_LIMIT: Final = tuple((SEGMENT_OFFSET + SEGMENT_SIZE * n + 16) // 4 for n in range(6))
SEG_FLAGS: Final = tuple((SEGMENT_OFFSET + SEGMENT_SIZE * n + 20) // 4 for n in range(6))

# hflags bits
HF_CPL: Final = 3
HF_CS32, HF_SS32, HF_ADDSEG, HF_PE, HF_TF = 1 << 4, 1 << 5, 1 << 6, 1 << 7, 1 << 8
HF_MP, HF_EM, HF_TS, HF_IOPL = 1 << 9, 1 << 10, 1 << 11, 3 << 12
HF_LMA, HF_CS64, HF_RF, HF_VM, HF_AC = 1 << 14, 1 << 15, 1 << 16, 1 << 17, 1 << 18
HF_OSFXSR: Final = 1 << 22
HF_INHIBIT: Final = 1 << 3
"""The instruction is the one behind MOV SS or POP SS."""
HF_BASE64: Final = HF_PE | HF_LMA | HF_CS64 | HF_CS32 | HF_SS32 | HF_MP | HF_OSFXSR
"""hflags of 64-bit code with paging and SSE on, CPL 0, TS clear."""

CC_OP_EFLAGS: Final = 1
CONDITION_BITS: Final = 0x8D5
MINUS_ONE: Final = 0xFFFF_FFFF


class Vmcb:
    """Named access to one processor state block of `SIZE` bytes.

    `q` and `d` are the same bytes as 64-bit and 32-bit words, for the hot paths; indices are this module's
    constants.
    """

    __slots__ = ("_d", "_lazy", "_q", "d", "q", "raw")

    def __init__(self, block: memoryview) -> None:
        self.raw = block
        self.q = block.cast("Q")
        self.d = block.cast("I")
        self._q, self._d = words64(self.q), words32(self.d)
        self._lazy = flags_reader(_unknown, 0, 0)

    def compute_flags_with(self, lazy: Callable[[], int], function: int, handle: int) -> None:
        """How flags are had that the emulator has not worked out: by `lazy`, or, which is the same, by the
        library's `uc_reg_read` at the address `function` of the engine `handle`."""
        self._lazy = flags_reader(lazy, function, handle)

    def rflags(self) -> int:
        """RFLAGS with the lazily kept bits computed; valid until they are written."""
        q, d = self._q, self._d
        if d[CC_OP] == CC_OP_EFLAGS:
            direction = 0x400 if d[DF] == MINUS_ONE else 0
            return q[EFLAGS] & ~0xCD5 | q[CC_SRC] & CONDITION_BITS | direction
        return lazy_flags(self._lazy)

    @property
    def rip(self) -> int:
        """Instruction pointer."""
        return self.q[RIP]

    @rip.setter
    def rip(self, value: int) -> None:
        self.q[RIP] = value

    @property
    def rsp(self) -> int:
        """Stack pointer."""
        return self.q[RSP]

    @rsp.setter
    def rsp(self, value: int) -> None:
        self.q[RSP] = value

    @property
    def cpl(self) -> int:
        """Hardware privilege level, 0..3."""
        return self.d[HFLAGS] & HF_CPL

    @cpl.setter
    def cpl(self, value: int) -> None:
        self.d[HFLAGS] = self.d[HFLAGS] & ~HF_CPL | value

    @property
    def cr2(self) -> int:
        """Faulting address of the last page fault."""
        return self.q[CR + 2]

    @property
    def error_code(self) -> int:
        """Error code of the last exception, unsigned."""
        return self.d[ERROR_CODE]

    @property
    def software_interrupt(self) -> bool:
        """Whether the last exception came from INT n, INT3 or INTO."""
        return bool(self.d[EXCEPTION_IS_INT])

    @property
    def task_switched(self) -> bool:
        """The flag that makes FPU instructions raise #NM (CR0.TS)."""
        return bool(self.d[HFLAGS] & HF_TS)

    @task_switched.setter
    def task_switched(self, on: bool) -> None:
        if on:
            self.d[HFLAGS] |= HF_TS
            self.q[CR] |= 8
        else:
            self.d[HFLAGS] &= ~HF_TS & MINUS_ONE
            self.q[CR] &= ~8 & 0xFFFF_FFFF

    def set_rflags(self, value: int) -> None:
        """Write RFLAGS whole: condition bits and DF go where the emulator keeps them.

        TF and RF act from here; in `hflags` they would outlive the guest's own POPF. TF there is for those
        who step a guest without its knowledge.
        """
        q, d = self._q, self._d
        q[EFLAGS] = value
        q[CC_SRC] = value & CONDITION_BITS
        d[CC_OP] = CC_OP_EFLAGS
        d[DF] = MINUS_ONE if value & 0x400 else 1

    def selector(self, segment: int) -> int:
        """Visible selector of a segment register (ES..GS)."""
        return self.d[SEG_SEL[segment]] & 0xFFFF

    def set_segment(self, segment: int, selector: int, base: int, limit: int, flags: int) -> None:
        """Load a segment register with its hidden part; `flags` is the descriptor's high dword."""
        self.d[SEG_SEL[segment]] = selector
        self.q[SEG_BASE[segment]] = base
        self.d[SEG_LIMIT[segment]] = limit
        self.d[SEG_FLAGS[segment]] = flags

    def set_system_table(self, offset: int, base: int, limit: int, selector: int = 0, flags: int = 0) -> None:
        """Load GDTR, LDTR or TR (`GDT_OFFSET` ...): base, limit in bytes, selector and descriptor flags."""
        self.d[offset // 4] = selector
        self.q[(offset + 8) // 8] = base
        self.d[(offset + 16) // 4] = limit
        self.d[(offset + 20) // 4] = flags


def _unknown() -> int:
    raise AssertionError("no engine has said how lazy flags are computed")
