# SPDX-License-Identifier: GPL-2.0-only
"""Page walks straight from RAM.

A walk of the guest's page tables loads up to four entries by their physical address (Intel SDM vol. 3, 4.5).
The library looks each up through regions, caches and locks of a machine with devices; ours has RAM from 0 and
nothing else, so that a load inside RAM is one instruction.
"""

from typing import Final

from pyhv.cpu import vmcb as v
from pyhv.cpu.trial import FRAMES, L2, LEAF, UPPER, Trial
from pyhv.cpu.tuning.form import OF_CPU, Patch, Stub, find_block

# u64 x86_ldq_phys(CPUState *cpu, u64 address)
_LOAD: Final = f"""
    {find_block(OF_CPU)}
    mov rdx, [rax + {{word.ram_size}}]
    sub rdx, rsi
    jb next
    cmp rdx, 8
    jb next
    mov rax, [rax + {{word.ram_address}}]
    mov rax, [rax + rsi]
    ret
"""


def _proof(trial: Trial) -> None:
    """A walk through RAM's last entry finds the page; one that leads behind RAM finds none."""
    table, page = FRAMES - 1, trial.take_frame()
    trial.ram.writable.q[page << 9] = 0x1234
    trial.ram.writable.q[table << 9 | 511] = page << 12 | LEAF
    trial.ram.writable.q[L2 << 9 | 1] = table << 12 | UPPER
    load = b"\x48\x8b\x04\x25" + (1 << 21 | 511 << 12).to_bytes(4, "little") + b"\x0f\x0b"
    trial.run(load)  # mov rax, [address]; ud2
    trial.expect("a page walk reads RAM's last entry", trial.engine.vmcb.q[v.RAX] == 0x1234)
    trial.ram.writable.q[L2 << 9 | 1] = FRAMES << 12 | UPPER
    trial.engine.flush_tlb()
    at, event = trial.run(load)
    trial.expect("a page walk behind RAM finds nothing", event == ("exception", at, 14 << 16 | 4))
    trial.ram.writable.q[L2 << 9 | 1] = 0


WALKS: Final = Patch(
    name="page walks",
    promise="a walk of page tables loads its entries straight from RAM",
    stubs=(Stub("x86_ldq_phys", _LOAD),),
    proof=_proof,
)
