# SPDX-License-Identifier: GPL-2.0-only
"""Other functions for those that translated code calls.

What the emulator does not translate into instructions of the host it calls a *helper* for: the translation
is then one operation whose arguments are the helper's own and, behind them, its address. `helper_stub` lets
the library make that operation, as it knows what the helper may change, and then puts another address there.
So a replacement has a helper's arguments (RDI is always the processor's state) and gives its results;
translated code enters it by a call, so that the address on the stack tells the library which instruction
it was (`raise_exception_ra`). Nothing is looked at when it runs: it is reached from tuned engines alone.
"""

import functools
from collections.abc import Mapping
from typing import Final

from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.form import OF_TCG, Stub, find_block

# void tcg_gen_callN(TCGContext *s, void *func, TCGTemp *ret, int nargs, TCGTemp **args)
_REPLACE: Final = """
    movabs rax, {{real.{lowest}}}
    cmp rsi, rax
    jb next
    movabs rax, {{real.{highest}}}
    cmp rsi, rax
    ja next
    {find_block}
    lea r11, [rip + replacements]
search:
    cmp rsi, [r11]
    je found
    add r11, 16
    cmp qword ptr [r11], 0
    jne search
    jmp next
found:
    push rbx
    push r12
    push r13
    mov rbx, rdi
    mov r12, [r11 + 8]
    xor r13d, r13d
    test rdx, rdx
    setne r13b
    add r13d, ecx
    movabs rax, {{next}}
    call rax
    mov rax, [rbx + {tail}]
    mov [rax + r13 * 8 + {arguments}], r12
    pop r13
    pop r12
    pop rbx
    ret
replacements:
{table}
    .quad 0
"""


def helper_stub(routines: Mapping[str, str], shared: str, lowest: str, highest: str) -> Stub:
    """A stub that puts `routines` in the place of the helpers that they are named for.

    `shared` is code that they call. All the names lie between those of the helpers `lowest` and `highest`
    in the library: helpers beyond are not looked for.
    """
    source = _REPLACE.format(
        lowest=lowest,
        highest=highest,
        find_block=find_block(OF_TCG),
        tail=layout.TCG_LAST_OP,
        arguments=layout.OP_ARGUMENTS - layout.OP_LINK,
        table="\n".join(f"    .quad {{real.{name}}}, of_{name}" for name in routines),
    )
    code = "".join(f"of_{name}:\n{routine}\n" for name, routine in routines.items())
    return Stub("tcg_gen_callN", f"{source}{shared}\n{code}")


@functools.cache
def _features() -> frozenset[str]:
    try:
        with open("/proc/cpuinfo", encoding="ascii", errors="replace") as cpuinfo:
            for line in cpuinfo:
                if line.startswith("flags"):
                    return frozenset(line.split(":", 1)[1].split())
    except OSError:
        pass
    return frozenset()


def host_has(feature: str) -> bool:
    """Whether the host's processor has a feature, by Linux' name for it: "pni" is SSE3."""
    return feature in _features()
