# SPDX-License-Identifier: GPL-2.0-only
"""The look for a stop at the start of each block: a load and a branch in the block itself.

The library calls a function there, once for each block that executes. It looks at one word, `icount_decr`; if
that is negative it leaves the block through the processor loop's own long jump. Here the block is translated
as its ancestor does it: load the word, branch if it is negative to the block's last exit, "requested", which
the library still emits, though nothing leads there.

The number of operations that a block has so far must be what it would be without the change: the translator
ends a block when it has too many, and virtual time counts blocks. A call is one operation; load, constant
and branch are three.
"""

from typing import Final

from pyhv.cpu.trial import DATA, Trial
from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.form import OF_TCG, Patch, Stub, Word, find_block

_MORE_OPERATIONS: Final = 2
_LONG: Final = 700
"""Instructions, in the proof; more than one block takes."""
_FITS: Final = 7
"""So many operations more do not make the proof's first block end earlier; one more does."""

# void tcg_gen_callN(tcg, function, result, number of arguments, arguments)
_CALL: Final = f"""
    movabs rax, {{real.helper_check_exit_request}}
    cmp rsi, rax
    jne next
    {find_block(OF_TCG)}
    push rbx
    push r12
    push r13
    mov rbx, rdi
    mov r13, rax
    movabs rax, {{real.gen_new_label}}
    call rax
    mov [r13 + {{word.exit_label}}], rax
    mov r13, rax
    mov rdi, rbx
    xor esi, esi
    xor edx, edx
    movabs rax, {{real.tcg_temp_new_internal}}
    call rax
    mov r12, rax
    mov rdi, rbx
    mov esi, {layout.OP_LD_I32}
    mov rdx, r12
    mov rcx, [rbx + {layout.TCG_ENV}]
    add rcx, rbx
    mov r8, {layout.ENV_ICOUNT}
    movabs rax, {{real.tcg_gen_op3}}
    call rax
    mov rdi, rbx
    mov esi, {layout.COND_LT}
    mov rdx, r12
    sub rdx, rbx
    xor ecx, ecx
    mov r8, r13
    movabs rax, {{real.tcg_gen_brcondi_i32}}
    call rax
    sub dword ptr [rbx + {layout.TCG_OPS}], {_MORE_OPERATIONS}
    mov rdi, rbx
    mov rsi, r12
    pop r13
    pop r12
    pop rbx
    movabs rax, {{real.tcg_temp_free_internal}}
    jmp rax
"""

# void tcg_gen_exit_tb(tcg, block, index)
_EXIT: Final = f"""
    cmp edx, {layout.TB_EXIT_REQUESTED}
    jne next
    {find_block(OF_TCG)}
    mov rax, [rax + {{word.exit_label}}]
    or byte ptr [rax], {layout.LABEL_PRESENT}
    push rdi
    push rsi
    push rdx
    mov rdx, rax
    mov esi, {layout.OP_SET_LABEL}
    movabs rax, {{real.tcg_gen_op1}}
    call rax
    pop rdx
    pop rsi
    pop rdi
"""


def _proof(trial: Trial) -> None:
    """A stop is felt exactly where a block starts, and blocks end where they end without the change."""
    with Trial(screened=False) as plain:
        expected = [_stopped_at(plain, one_operation) for one_operation in (_FITS, _FITS + 1)]
    found = [_stopped_at(trial, one_operation) for one_operation in (_FITS, _FITS + 1)]
    trial.expect("a stop is felt at the start of a block", all(at == count > 0 for at, count in found))
    trial.expect("the two blocks of the proof end differently", expected[0] != expected[1])
    trial.expect("blocks end where the emulator itself ends them", found == expected)


def _stopped_at(trial: Trial, one_operation: int) -> tuple[int, int]:
    """Run code that is too long for a block: instructions up to where it stopped, and executed ones."""
    add = b"\xf0\x48\x83\x03\x01"  # lock add qword [rbx], 1: ten operations
    code = b"\x90" * one_operation + add * _LONG
    at = trial.take_frame() << 12
    trial.ram.writable.raw[at : at + len(code)] = code
    trial.ram.writable.q[DATA << 9] = 0
    trial.enter(at)
    trial.go(len(add) * _LONG * 3 // 4)
    return (trial.engine.vmcb.rip - at - one_operation) // len(add), trial.ram.q[DATA << 9]


STOPS: Final = Patch(
    name="stop checks",
    promise="a block looks for a stop by a load and a branch of its own",
    stubs=(Stub("tcg_gen_callN", _CALL), Stub("tcg_gen_exit_tb", _EXIT)),
    words=(Word("exit_label"),),
    proof=_proof,
)
