# SPDX-License-Identifier: GPL-2.0-only
"""The proof of `stores.py`: code that is overwritten through another page of its frame is new when run."""

import functools
from typing import Final

from pyhv.abi.x86 import PTE_NX
from pyhv.cpu import vmcb as v
from pyhv.cpu.native_code import templates
from pyhv.cpu.trial import LEAF, Trial

_MANY: Final = 600
"""More stores than a frame is watched for, the first time."""

_OVERWRITTEN: Final = """
    mov byte ptr [r12], 1
    call r13
    mov ebp, eax
    {store}
    call r13
    shl ebp, 8
    or ebp, eax
    ud2
"""
# The byte at R12 is the constant of the instruction `mov eax, 1` at R13.
_STORES: Final = {
    "a byte": "mov byte ptr [r12], 2",
    "a word across two pages": "sub r12, 1; mov word ptr [r12], 0x2b8",
    "a locked increment": "lock inc dword ptr [r12]",
    "a string": "lea rsi, [rbx]; mov byte ptr [rsi], 2; mov rdi, r12; movsb",
}

_HEALING: Final = "many stores"
_STORED_TO: Final = f"""
    call r13
    mov ebp, eax
    mov ecx, {_MANY}
again:
    mov [r12], ecx
    dec ecx
    jnz again
    call r13
    cmp eax, ebp
    jne wrong
    mov byte ptr [r13 + 1], 9
    call r13
    shl ebp, 8
    or ebp, eax
wrong:
    ud2
"""


@functools.cache
def _programs() -> dict[str, bytes]:
    """Code that does not mind where it is, by names; each is run several times."""
    sources = {name: _OVERWRITTEN.format(store=store) for name, store in _STORES.items()}
    sources[_HEALING] = _STORED_TO
    made = templates("stores-proof", *sources.values())
    return {name: template.link() for name, template in zip(sources, made, strict=True)}


def prove_stores(trial: Trial) -> None:
    """Self-modifying code through aliases; frames that become data heal."""
    for across in (False, True):
        code, following, first, second = (trial.take_frame() for _ in range(4))
        for flags in (LEAF, LEAF | PTE_NX):
            trial.map(first, code, flags)
            trial.map(second, following, flags)
            trial.engine.flush_tlb()
            _aliases(trial, code, first, 0xFFF if across else 0x123)
    _healing(trial)


def _aliases(trial: Trial, code: int, alias: int, offset: int) -> None:
    """Overwrite the function at `offset` of the frames from `code` on through the pages from `alias` on."""
    at = code << 12 | offset
    for name in _STORES:
        trial.ram.writable.raw[at : at + 6] = b"\xb8\x01\x00\x00\x00\xc3"  # mov eax, 1; ret
        trial.engine.invalidate_code(code)
        trial.engine.invalidate_code(code + 1)
        q = trial.engine.vmcb.q
        q[12], q[13] = (alias << 12 | offset) + 1, at
        trial.run(_programs()[name])
        trial.expect(f"code that {name} overwrites through another page is new", q[v.RBP] == 0x102)


def _healing(trial: Trial) -> None:
    """A frame that had code and is stored to often loses it, and is watched again when it has new code."""
    at = trial.take_frame() << 12
    q = trial.engine.vmcb.q
    for value in (1, 2):
        trial.ram.writable.raw[at : at + 6] = bytes([0xB8, value, 0, 0, 0, 0xC3])  # mov eax, value; ret
        trial.engine.invalidate_code(at >> 12)
        q[12], q[13] = at + 0x800, at
        trial.run(_programs()[_HEALING])
        trial.expect("code in a frame that many stores went to is new", q[v.RBP] == value << 8 | 9)
