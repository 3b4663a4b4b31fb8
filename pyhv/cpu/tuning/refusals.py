# SPDX-License-Identifier: GPL-2.0-only
"""#UD for what our processor does not know; SSE operands that are aligned and as long as they should be.

The emulator fetches an instruction byte by byte when it translates it, and never again. So a stub in the
fetch looks ahead, once per instruction that is translated, and finds the verdict of `opcodes.examine` in the
same table. For a refused instruction it gives the translator other bytes to read:

    in memory         F0  89  C0        LOCK MOV: three bytes decide that it is refused
    the translator    3E  3E  F1        two prefixes that mean nothing, and an opcode that the emulator
                                        refuses: #UD at the first of them

As many bytes as were looked at are replaced, so that a store to any of them drops the translation. They are
read by the emulator's own fetch, one after the other and only as far as needed, and so a page fault is the
one that the instruction gets anyway.

Where 16 bytes must be aligned, the stub leaves a note, and the first half of the access is translated as one
that must be aligned to 16 bytes. The test costs nothing: the comparison that finds the TLB's entry does it.
What the emulator does when it fails is up to the processor's class, which has no such function for x86; ours
raises #GP(0). In the same way an operand of 4 or 8 bytes, of which the emulator reads 16, is made shorter:
the rest, on which no result depends, is zero.
"""

import ctypes
import functools
from typing import Final

import numpy as np

from pyhv.cpu import opcodes
from pyhv.cpu import vmcb as v
from pyhv.cpu.opcodes import Prefix, Verdict
from pyhv.cpu.trial import DATA, Trial
from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.form import OF_ENV, OF_TCG, Facts, Patch, Pointer, Stub, Word, find_block

_FILLER, _UNDEFINED = 0x3E, 0xF1
_NO_UPPER_HALF: Final = max(verdict.value for verdict in Verdict) + 1
"""The note after the lower half of an operand that has no upper one."""
_KINDS: Final = 256
_MAPS: Final = len(opcodes.MAPS) * len(opcodes.PREFIXES) * 256 * 4
_SIZE: Final = _KINDS + _MAPS
"""Bytes for code of one width: the kinds of prefixes, then the words of the table."""
_HFLAGS: Final = v.HFLAGS * 4
_GP: Final = 13


@functools.cache
def _tables() -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    """Both widths, 64-bit code first."""
    parts = (opcodes.prefix_kinds(width) + opcodes.table(width).tobytes() for width in (64, 32))
    return np.frombuffer(b"".join(parts), np.uint8)


# u32 cpu_ldub_code(CPUX86State *env, u64 address): one byte of code, in AL
#
# rbx  env                  r12  where the last byte was fetched        [rsp]  where the instruction begins
# rbp  block                r13  map, then the table's word
# r15  tables of the width  r14  bits of `Prefix`; above them the instruction's first byte
_FETCH: Final = f"""
    {find_block(OF_ENV)}
    mov r10, [rdi + {layout.ENV_UC}]
    mov r10, [r10 + {layout.UC_TCG}]
    cmp rsi, [r10 + {layout.TCG_PC_START}]
    je begin
    cmp rsi, [rax + {{word.refused_end}}]
    ja next
    mov eax, {_FILLER}
    mov ecx, {_UNDEFINED}
    cmove eax, ecx
    ret
begin:
    push rbx
    push rbp
    push r12
    push r13
    push r14
    push r15
    push rsi
    mov rbx, rdi
    mov rbp, rax
    mov r12, rsi
    mov r15, [rbp + {{word.opcode_tables}}]
    test dword ptr [rbx + {_HFLAGS}], {v.HF_CS64}
    jnz wide
    add r15, {_SIZE}
wide:
    mov qword ptr [rbp + {{word.refused_end}}], 0
    mov qword ptr [rbp + {{word.operand}}], 0
    movabs rax, {{next}}
    call rax
    movzx eax, al
    mov r14d, eax
    shl r14d, 8
prefixes:
    movzx ecx, byte ptr [r15 + rax]
    or r14d, ecx
    test ecx, ecx
    jz opcode
    call another
    jmp prefixes
opcode:
    xor r13d, r13d
    cmp eax, 0x0f
    jne decide
    call another
    mov r13d, 2
    cmp eax, 0x38
    je third
    mov r13d, 3
    cmp eax, 0x3a
    je third
    mov r13d, 1
    jmp decide
third:
    call another
decide:
    mov ecx, {opcodes.PREFIXES.index("F3")}
    test r14d, {Prefix.REPZ.value}
    jnz chosen
    mov ecx, {opcodes.PREFIXES.index("F2")}
    test r14d, {Prefix.REPNZ.value}
    jnz chosen
    mov ecx, r14d
    and ecx, {Prefix.DATA.value}
chosen:
    lea ecx, [rcx + r13 * {len(opcodes.PREFIXES)}]
    shl ecx, 8
    or ecx, eax
    mov r13d, [r15 + rcx * 4 + {_KINDS}]
    test r14d, {Prefix.LOCK.value}
    jnz locked
    test r13d, {0xFFFF_FFFF & ~(0xFF << opcodes.LOCKABLE_SHIFT)}
    jz runs
    jmp form
locked:
    test r13d, {0xFF << opcodes.LOCKABLE_SHIFT}
    jz refused
form:
    cmp r13w, -1
    je refused
    call another
    mov ecx, eax
    shr ecx, 3
    and ecx, 7
    cmp eax, 0xc0
    jae of_register
    bt r13d, ecx
    jc refused
    test r14d, {Prefix.LOCK.value}
    jz operand
    add ecx, {opcodes.LOCKABLE_SHIFT}
    bt r13d, ecx
    jnc refused
operand:
    shr r13d, {opcodes.OPERAND_SHIFT}
    mov [rbp + {{word.operand}}], r13
    jmp runs
of_register:
    test r14d, {Prefix.LOCK.value}
    jnz refused
    add ecx, 8
    bt r13d, ecx
    jc refused
runs:
    mov eax, r14d
    shr eax, 8
    jmp leave
refused:
    mov [rbp + {{word.refused_end}}], r12
    mov eax, {_FILLER}
    mov ecx, {_UNDEFINED}
    cmp r12, [rsp]
    cmove eax, ecx
leave:
    pop rsi
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbp
    pop rbx
    ret
another:
    inc r12
    mov rsi, r12
    mov rdi, rbx
    mov rax, r12
    sub rax, [rsp + 8]
    cmp rax, {opcodes.MAX_LENGTH}
    jae too_long
    sub rsp, 8
    movabs rax, {{next}}
    call rax
    add rsp, 8
    movzx eax, al
    ret
too_long:
    add rsp, 8
    jmp runs
"""

# void tcg_gen_qemu_ld_i64, tcg_gen_qemu_st_i64(TCGContext *, value, address, mmu index, MemOp)
#
# The first access of an instruction with a note is its operand, or the lower half of it; the next, the upper.
_STORE: Final = f"""
    {find_block(OF_TCG)}
    cmp qword ptr [rax + {{word.operand}}], {Verdict.MUST_BE_ALIGNED.value}
    jne next
    mov qword ptr [rax + {{word.operand}}], 0
    or r8d, {layout.MO_ALIGN_16}
"""
_LOAD: Final = f"""
    {find_block(OF_TCG)}
    mov r10, [rax + {{word.operand}}]
    test r10, r10
    jz next
    mov qword ptr [rax + {{word.operand}}], 0
    cmp r10, {Verdict.MUST_BE_ALIGNED.value}
    je aligned
    cmp r10, {_NO_UPPER_HALF}
    je zero
    mov qword ptr [rax + {{word.operand}}], {_NO_UPPER_HALF}
    cmp r10, {Verdict.READS_4.value}
    jne next
    mov r8d, {layout.MO_32}
    jmp next
aligned:
    or r8d, {layout.MO_ALIGN_16}
    jmp next
zero:
    lea rdx, [rdi + rsi]
    mov esi, {layout.OP_MOVI_I64}
    xor ecx, ecx
    movabs rax, {{real.tcg_gen_op2}}
    jmp rax
"""

# void do_unaligned_access(CPUState *, address, access type, mmu index, return address)
_MISALIGNED: Final = f"""
    mov rdi, [rdi + {layout.CPU_ENV}]
    mov esi, {_GP}
    xor edx, edx
    mov rcx, r8
    movabs rax, {{real.raise_exception_err_ra}}
    jmp rax
"""


def _unaligned_access(facts: Facts) -> int:
    """Where the engine's processor class keeps the function; null in the library."""
    processor_class = ctypes.c_uint64.from_address(facts.processor + layout.CPU_CLASS).value
    return processor_class + layout.CLASS_UNALIGNED_ACCESS


def _proof(trial: Trial) -> None:
    """One of each kind, in the midst of a block, and the nearest things that must run."""
    for code, what in (
        (b"\xc5\xf8\x58\xc0", "a VEX prefix"),
        (b"\xf0\x89\xc0", "LOCK MOV"),
        (b"\xf0\x01\xc0", "LOCK with a register as destination"),
        (b"\xc7\xf8\x00\x00\x00\x00", "XBEGIN"),
        (b"\x66\x0f\x79\xc0", "EXTRQ"),
        (b"\x66\xf3\x0f\x28\xc0", "an SSE opcode with a prefix that it has no form for"),
    ):
        at, event = trial.run(b"\x90" + code + b"\x0f\x0b")
        trial.expect(f"{what} is refused", event == ("invalid opcode", at + 1, 0))
    # movups [rbx + 1]; lock add [rbx], eax; movaps [rbx]; addps xmm0, xmm1; ud2
    code = b"\x0f\x10\x43\x01\xf0\x01\x03\x0f\x28\x03\x0f\x58\xc1\x0f\x0b"
    at, event = trial.run(code)
    trial.expect("what is allowed still runs", event == ("invalid opcode", at + 13, 0))
    for code, what in ((b"\x0f\x29\x43\x08", "MOVAPS to"), (b"\x66\x0f\xfe\x43\x01", "PADDD of")):
        at, event = trial.run(code)
        trial.expect(f"{what} an odd address is refused", event == ("exception", at, _GP << 16))
    _prove_short_operands(trial)


def _prove_short_operands(trial: Trial) -> None:
    """CVTDQ2PD of the last 8 bytes of a page before one that is not there: two numbers, no page fault."""
    page = trial.take_frame()
    trial.map(trial.take_frame(), 0, 0)
    trial.engine.flush_tlb()
    trial.ram.writable.q[(page << 9) + 511] = 2 << 32 | 1
    address = ((page + 1 << 12) - 8).to_bytes(4, "little")
    # cvtdq2pd xmm0, [address]; movups [rbx], xmm0; ud2
    at, event = trial.run(b"\xf3\x0f\xe6\x04\x25" + address + b"\x0f\x11\x03\x0f\x0b")
    trial.expect("an operand of 8 bytes is read as one", event == ("invalid opcode", at + 12, 0))
    numbers = trial.ram.q[DATA << 9], trial.ram.q[DATA << 9 | 1]
    trial.expect("a shorter operand gives the same result", numbers == (0x3FF << 52, 0x400 << 52))


REFUSALS: Final = Patch(
    name="refused instructions",
    promise="what the processor does not have is #UD; SSE operands are as aligned and long as they should be",
    stubs=(
        Stub("cpu_ldub_code", _FETCH),
        Stub("tcg_gen_qemu_ld_i64", _LOAD),
        Stub("tcg_gen_qemu_st_i64", _STORE),
    ),
    proof=_proof,
    words=(
        Word("opcode_tables", lambda _facts: _tables().ctypes.data),
        Word("refused_end"),
        Word("operand"),
    ),
    pointers=(Pointer("do_unaligned_access", _unaligned_access, _MISALIGNED),),
)
