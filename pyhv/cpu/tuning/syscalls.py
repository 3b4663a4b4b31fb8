# SPDX-License-Identifier: GPL-2.0-only
"""SYSCALL goes straight to whoever answers it, and tells its length.

The library calls a helper that walks the list of all hooks. Before it calls ours it works out, from the
translated block, which state the processor was in: a search in a tree and one through the block, although
the translator has had RIP and the flags stored right before. And it does not say how long the instruction
was, which whoever answers must know and would have to read from the guest's memory, through its tables.

Here the helper is one call, of what the word `syscall_entry` names:

    void entry(data, length)        `data` is the word `syscall_data`; RIP is at the instruction, and is
                                    where the guest goes on when the call returns
"""

from typing import Final

from pyhv.cpu.trial import Trial
from pyhv.cpu.tuning.form import OF_ENV, Patch, Word, find_block
from pyhv.cpu.tuning.helpers import helper_stub

# void helper_syscall(CPUX86State *env, int length)
_SYSCALL: Final = f"""
    {find_block(OF_ENV, otherwise="plain_syscall")}
    mov r11, [rax + {{word.syscall_entry}}]
    test r11, r11
    jz plain_syscall
    mov rdi, [rax + {{word.syscall_data}}]
    mov esi, esi
    jmp r11
plain_syscall:
    movabs rax, {{real.helper_syscall}}
    jmp rax
"""


def _proof(trial: Trial) -> None:
    """A SYSCALL in the middle of code is answered once, at its address, with all its prefixes counted."""
    # mov eax, 7; data16 data16 syscall; ud2
    at, event = trial.run(bytes.fromhex("b807000000 66660f05 0f0b"))
    trial.expect("SYSCALL is told with its address and length", event == ("syscall", at + 5, 4))
    trial.expect("SYSCALL is answered once", len(trial.sink.events) == 1)
    block = trial.engine.block
    trial.expect("SYSCALL is answered directly", block is not None and block["syscall_entry"] != 0)
    trial.sink.flags_in_syscall = 0x202
    # syscall; mov eax, 9; syscall; ud2
    at, event = trial.run(bytes.fromhex("0f05 b809000000 0f05 0f0b"))
    trial.expect("the guest goes on behind SYSCALL", event == ("invalid opcode", at + 9, 0))


SYSCALLS: Final = Patch(
    name="system calls",
    promise="SYSCALL is answered directly, with its length",
    stubs=(helper_stub({"helper_syscall": _SYSCALL}, "", "helper_syscall", "helper_syscall"),),
    proof=_proof,
    words=(Word("syscall_entry"), Word("syscall_data")),
)
