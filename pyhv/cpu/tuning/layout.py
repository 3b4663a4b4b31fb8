# SPDX-License-Identifier: GPL-2.0-only
"""Where the one build of the library that we know keeps things, read from its machine code.

The names are the structures' and fields' own. What can be recognized by its value in a running engine is
checked there (`block.py`); the rest stands under the proofs of the patches.
"""

from typing import Final

BUILD_ID: Final = "44285d3e80527122e9e361928189385906ec813e"
"""GNU build-id of Unicorn 2.1.4's x86-64 wheel for Linux on PyPI."""

SUFFIX: Final = "_x86_64"
"""What the library's functions for this processor end with."""

UC_MEMORY_MAPPING: Final = 0x120
"""`uc_struct.memory_mapping`: the function that finds the region of a physical address."""
UC_CPU: Final = 0x1B8
"""`uc_struct.cpu`."""
UC_TCG: Final = 0x300
"""`uc_struct.tcg_ctx`."""

CPU_ENV: Final = 0x128
"""`CPUState.env_ptr`: the processor's registers, our VMCB."""
CPU_UC: Final = 0x81A8
"""`CPUState.uc`."""
CPU_CLASS: Final = 0x81B0
"""`CPUState.cc`: what kind of processor it is; each processor has its own copy."""
CLASS_UNALIGNED_ACCESS: Final = 0x18
"""`CPUClass.do_unaligned_access`."""

# The TLB lies right before the registers: for each of the MMU's modes (kernel, user, kernel under SMAP) the
# size of the main table in bytes less one entry, and its address; before that, each mode's victim table.
MMU_MODES: Final = 3
ENV_TLB: Final = -0x40
TLB_STRIDE: Final = 16
ENV_VICTIMS: Final = -0x840
VICTIM_ENTRIES: Final = 8
VICTIMS_STRIDE: Final = 0x2B8
ENV_UC: Final = 0x1B58
"""`CPUX86State.uc`."""
ENV_ICOUNT: Final = -0x10
"""`icount_decr`: negative when somebody has asked the processor to come back."""

# One entry of a TLB: addresses with flags in their low bits, all ones if the access is not allowed.
ENTRY_BITS: Final = 6
ENTRY_WRITE: Final = 8
ENTRY_PADDR: Final = 24
NOT_DIRTY: Final = 0x400
"""The flag by which a store takes the slow path, to look for translations of what it overwrites."""
PAGE_WRITE: Final = 2
"""In the argument `prot` of `tlb_set_page_with_attrs`."""

TB_PAGES: Final = (0x48, 0x50)
"""`TranslationBlock.page_addr`: the one or two frames from which the block was translated, or -1."""

TCG_OPS: Final = 0x38
"""`TCGContext.nb_ops`."""
TCG_ENV: Final = 0x98F0
"""`TCGContext.cpu_env`: the temporary that holds the address of the registers, as an offset."""
TCG_UC: Final = 0x9970
"""`TCGContext.uc`."""
TCG_PC_START: Final = 0xA650
"""`TCGContext.pc_start`: linear address of the instruction that is being translated."""
OP_SET_LABEL: Final = 1
OP_LD_I32: Final = 0x0D
OP_MOVI_I64: Final = 0x40
OP_LD_I64: Final = 0x49
OP_ST_I64: Final = 0x4D
OP_SUB_I64: Final = 0x4F
OP_EXTEND: Final = 0x64
"""extu_i32_i64."""
TYPE_I64: Final = 1
COND_LT, COND_GE = 2, 3
LABEL_PRESENT: Final = 1
"""`TCGLabel.present`, in the label's first bytes."""
TB_EXIT_REQUESTED: Final = 3
"""The exit of a block that was not begun, because somebody has asked for a stop."""

TCG_LAST_OP: Final = 0x7390
"""`TCGContext.ops`, the end of the list: the address of the last operation's link."""

OP_LINK: Final = 8
"""`TCGOp.link`."""

OP_ARGUMENTS: Final = 24
"""`TCGOp.args`, 64-bit words: results, arguments and, for a call, the function."""

FPSTT: Final = 0x25C
"""`CPUX86State.fpstt`, u32: the x87 register that is ST0."""

FPUS: Final = 0x260
"""`fpus`, u16: the x87 status word, without the top of stack."""

FPUC: Final = 0x262
"""`fpuc`, u16: the x87 control word."""

FPTAGS: Final = 0x264
"""`fptags`, a byte for each x87 register: 1 if it is empty."""

FPREGS: Final = 0x270
"""`fpregs`, 16 bytes each, of which ten count."""

FT0: Final = 0x310
"""`ft0`, ten bytes: the second operand of a x87 instruction."""

MXCSR: Final = 0x330
"""`mxcsr`, u32."""

CC_SRC: Final = 152
"""`cc_src`: the condition bits of EFLAGS, if that is where they are."""

REGS: Final = 0
"""`regs`: RAX, RCX, RDX ..., u64 each."""

XMM_REGS: Final = 0x338
"""`xmm_regs`: XMM0 and the others, 64 bytes each."""

MO_32: Final = 2
"""A `MemOp`: 4 bytes, the rest zero."""
MO_ALIGN_16: Final = 0x40
"""In a `MemOp`: the address must be a multiple of 16."""

ENV_OF_CPU: Final = 0x8A50
"""The processor's registers, as an offset from `CPUState`."""
MEMORY_READ, MEMORY_WRITE = 1, 2
"""`BP_MEM_READ`, `BP_MEM_WRITE`: kinds of accesses that a watchpoint is for."""
