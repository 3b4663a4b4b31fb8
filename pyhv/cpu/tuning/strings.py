# SPDX-License-Identifier: GPL-2.0-only
"""The string instructions of SSE4.2 by the host's own unit (Intel SDM vol. 2: PCMPESTRI and its kind).

The library's "equal ordered" finds no string that ends behind the 16 bytes: it would be missed by a search
that goes on from a partial match. The immediate byte is a number here, so there is a small function for each.
"""

from typing import Final

from pyhv.cpu.tuning import layout

_PCMPESTRM, _PCMPESTRI, _PCMPISTRM, _PCMPISTRI = range(0x60, 0x64)
_CONDITIONS: Final = 0x8D5
_WIDE: Final = 0x100
"""In the helpers' argument: REX.W, the lengths are 64 bits wide."""


def _functions(opcode: int) -> str:
    """`opcode xmm0, xmm1, n; ret; nop`, eight bytes each."""
    code = (bytes((0x66, 0x0F, 0x3A, opcode, 0xC1, n, 0xC3, 0x90)) for n in range(128))
    return ", ".join(hex(int.from_bytes(function, "little")) for function in code)


def _routine(name: str, opcode: int, *, lengths: bool, index: bool) -> str:
    """Arguments as in `sse.py`; the immediate byte is in ECX, lengths are in the guest's RAX and RDX."""
    clip = ""
    if lengths:
        clip = "".join(
            f"""
    mov {register}, [rdi + {8 * number}]
    test ecx, {_WIDE}
    jnz {name}_wide_{number}
    movsxd {register}, {register[0].replace("r", "e")}{register[1:]}
{name}_wide_{number}:
    mov r8, {register}
    neg r8
    cmovs r8, {register}
    cmp r8, r9
    cmova r8, r9
    mov {register}, r8
"""
            for number, register in ((0, "rax"), (2, "rdx"))
        )
    store = f"mov [rdi + {layout.REGS + 8}], rcx" if index else f"movups [rdi + {layout.XMM_REGS}], xmm0"
    return f"""
    movups xmm0, [rsi]
    movups xmm1, [rdx]
    mov r9d, 16
    {clip}
    and ecx, 0x7f
    lea r11, [rip + {name}_functions]
    lea r11, [r11 + rcx * 8]
    call r11
    pushfq
    pop rax
    and eax, {_CONDITIONS}
    mov [rdi + {layout.CC_SRC}], rax
    {store}
    ret
{name}_functions:
    .quad {_functions(opcode)}
"""


def routines() -> dict[str, str]:
    """The code of the helpers, by name; the host needs SSE4.2."""
    return {
        f"helper_{name}_xmm": _routine(name, opcode, lengths="est" in name, index=name.endswith("i"))
        for name, opcode in (
            ("pcmpestrm", _PCMPESTRM),
            ("pcmpestri", _PCMPESTRI),
            ("pcmpistrm", _PCMPISTRM),
            ("pcmpistri", _PCMPISTRI),
        )
    }
