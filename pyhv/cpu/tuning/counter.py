# SPDX-License-Identifier: GPL-2.0-only
"""The byte budget of virtual time, counted in the block itself.

The block hook is native code already (`clockwork.py`), but a call of it costs more than what it does:
subtract the block's size from a cell and stop if that is negative. Here the translator emits load, subtract,
store and branch; the hook is called only when the budget is spent, with a size of 0, and stops the engine.

Each temporary of the translator lives until a branch. So the hook's arguments are made anew behind it, and as
in `stops.py` the number of operations must not differ from that of the call alone.
"""

from typing import Final

from pyhv.cpu.trial import DATA, Trial
from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.form import OF_TCG, Patch, Stub, Word, find_block

_MORE_OPERATIONS: Final = 11

# void tcg_gen_callN(tcg, function, result, number of arguments, {engine, address, size, cell})
_CALL: Final = f"""
    {find_block(OF_TCG)}
    cmp rsi, [rax + {{word.counter_hook}}]
    jne next
    push rbp
    push rbx
    push r12
    push r13
    push r14
    push r15
    sub rsp, 72
    mov rbx, rdi
    mov rbp, rax
    mov r12, rsi
    mov r13, r8

    call new_temporary
    mov r14, rax
    call new_temporary
    mov r15, rax
    mov esi, {layout.OP_EXTEND}
    mov rdx, r15
    mov rcx, [r13 + 16]
    movabs rax, {{real.tcg_gen_op2}}
    call operation
    mov esi, {layout.OP_LD_I64}
    mov rdx, r14
    mov rcx, [r13 + 24]
    xor r8d, r8d
    movabs rax, {{real.tcg_gen_op3}}
    call operation
    mov esi, {layout.OP_SUB_I64}
    mov rdx, r14
    mov rcx, r14
    mov r8, r15
    movabs rax, {{real.tcg_gen_op3}}
    call operation
    mov esi, {layout.OP_ST_I64}
    mov rdx, r14
    mov rcx, [r13 + 24]
    xor r8d, r8d
    movabs rax, {{real.tcg_gen_op3}}
    call operation

    movabs rax, {{real.gen_new_label}}
    call operation
    mov r13, rax
    mov esi, {layout.COND_GE}
    mov rdx, r14
    sub rdx, rbx
    xor ecx, ecx
    mov r8, r13
    movabs rax, {{real.tcg_gen_brcondi_i64}}
    call operation

    mov rsi, [rbx + {layout.TCG_UC}]
    movabs rax, {{real.tcg_const_i64}}
    call operation
    add rax, rbx
    mov [rsp], rax
    xor esi, esi
    movabs rax, {{real.tcg_const_i64}}
    call operation
    add rax, rbx
    mov [rsp + 8], rax
    xor esi, esi
    movabs rax, {{real.tcg_const_i32}}
    call operation
    add rax, rbx
    mov [rsp + 16], rax
    mov rsi, [rbp + {{word.counter_cell}}]
    movabs rax, {{real.tcg_const_i64}}
    call operation
    add rax, rbx
    mov [rsp + 24], rax
    mov rsi, r12
    xor edx, edx
    mov ecx, 4
    mov r8, rsp
    movabs rax, {{next}}
    call operation
    or byte ptr [r13], {layout.LABEL_PRESENT}
    mov esi, {layout.OP_SET_LABEL}
    mov rdx, r13
    movabs rax, {{real.tcg_gen_op1}}
    call operation

    mov [rsp + 32], r14
    mov [rsp + 40], r15
    mov r12, rsp
    lea r13, [rsp + 48]
each:
    mov rsi, [r12]
    movabs rax, {{real.tcg_temp_free_internal}}
    call operation
    add r12, 8
    cmp r12, r13
    jne each
    sub dword ptr [rbx + {layout.TCG_OPS}], {_MORE_OPERATIONS}
    add rsp, 72
    pop r15
    pop r14
    pop r13
    pop r12
    pop rbx
    pop rbp
    ret
new_temporary:
    mov esi, {layout.TYPE_I64}
    xor edx, edx
    movabs rax, {{real.tcg_temp_new_internal}}
operation:
    mov rdi, rbx
    jmp rax
"""


def _proof(trial: Trial) -> None:
    """Whatever the budget, it stops where the hook stops, and the same is left of it."""
    with Trial(screened=False) as plain:
        expected = _stopped_at(plain)
    found = _stopped_at(trial)
    trial.expect("a budget is spent as the block hook spends it", found == expected)
    trial.expect("the proof's budgets stop at each of its blocks", {rip for rip, _, _ in found} == {0, 4, 6})


def _stopped_at(trial: Trial) -> list[tuple[int, int, int]]:
    """Run a loop of three blocks with several budgets: where it stopped, what is left, rounds."""
    # 1: inc dword [rbx]; jmp 2f; 2: jmp 3f; 3: nop; nop; jmp 1b
    code = b"\xff\x03\xeb\x00\xeb\x00\x90\x90\xeb\xf6"
    at = trial.take_frame() << 12
    trial.ram.writable.raw[at : at + len(code)] = code
    seen = []
    for budget in (0, 3, 4, 5, 6, 9, 10, 100, 101, 102, 103, 104, 105, 106):
        trial.ram.writable.q[DATA << 9] = 0
        trial.enter(at)
        trial.go(budget)
        seen.append((trial.engine.vmcb.rip - at, trial.budget[0], trial.ram.q[DATA << 9]))
    return seen


COUNTER: Final = Patch(
    name="counted blocks",
    promise="virtual time is counted in the blocks themselves, without a call",
    stubs=(Stub("tcg_gen_callN", _CALL),),
    words=(
        Word("counter_hook", lambda facts: facts.counter[0]),
        Word("counter_cell", lambda facts: facts.counter[1]),
    ),
    proof=_proof,
)
