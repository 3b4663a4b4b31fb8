# SPDX-License-Identifier: GPL-2.0-only
"""The native code behind `x87.py`: forms of x87 instructions, executed on the host for a guest.

Each form begins with `x87_begin` and ends with `x87_end`. A form's `name` makes its labels unique. Operands
are 80 bits wide when they come, so that loading them raises nothing (Intel SDM vol. 1, 8.5).
"""

from typing import Final

from pyhv.cpu.tuning import layout

_MF: Final = 16
_FCW: Final = 0x37F
C1, CONDITION, C2 = 0x200, 0x4700, 0x400
_SUMMARY: Final = 0x8080
"""ES and B: an unmasked exception is pending."""

# x87_begin: RDI is the state; leaves the addresses of ST0 and ST1 in R9 and R10, changes RAX and RCX.
# x87_news: ZF is clear if AX, the host's status word, has a flag that the guest has not; changes RDX. It may
# be an old one of the host's, whose removal takes longer than the instruction: then it is removed, R8 says
# so, and the instruction is done again.
# x87_end: AX is the host's status word, CX the condition bits that count; changes RAX, RCX, RDX. ZF is clear
# if the destination stays as it is.
SHARED: Final = f"""
x87_default: .quad {_FCW}
x87_begin:
    test byte ptr [rdi + {layout.FPUS}], 0x80
    jnz x87_pending
    xor r8d, r8d
    movzx eax, word ptr [rdi + {layout.FPUC}]
    or eax, 0x3f
    cmp eax, {_FCW}
    je x87_modes
    mov [rsp - 8], eax
    fldcw word ptr [rsp - 8]
x87_modes:
    mov eax, [rdi + {layout.FPSTT}]
    mov ecx, eax
    shl eax, 4
    lea r9, [rdi + rax + {layout.FPREGS}]
    inc ecx
    and ecx, 7
    shl ecx, 4
    lea r10, [rdi + rcx + {layout.FPREGS}]
    ret
x87_pending:
    add rsp, 8
x87_wait:
    mov rdx, [rsp]
    mov esi, {_MF}
    movabs rax, {{real.raise_exception_ra}}
    jmp rax
x87_news:
    xor edx, edx
    test r8d, r8d
    jnz x87_no_news
    movzx edx, word ptr [rdi + {layout.FPUS}]
    not edx
    and edx, eax
x87_no_news:
    test edx, 0x3f
    ret
x87_end:
    movzx edx, word ptr [rdi + {layout.FPUC}]
    or edx, 0x3f
    cmp edx, {_FCW}
    je x87_default_modes
    fldcw word ptr [rip + x87_default]
x87_default_modes:
    movzx edx, word ptr [rdi + {layout.FPUS}]
    not ecx
    and edx, ecx
    not ecx
    or ecx, 0x3f
    and ecx, eax
    or edx, ecx
    movzx ecx, word ptr [rdi + {layout.FPUC}]
    not ecx
    and ecx, 0x3f
    test edx, ecx
    jz x87_calm
    or edx, {_SUMMARY}
x87_calm:
    mov [rdi + {layout.FPUS}], dx
    and ecx, eax
    and ecx, 7
    ret
"""
LOAD_ST0: Final = "fld tbyte ptr [r9]"
LOAD_TWO: Final = "fld tbyte ptr [r10]\nfld tbyte ptr [r9]"
LOAD_FT0: Final = f"fld tbyte ptr [rdi + {layout.FT0}]\nfld tbyte ptr [r9]"
_ADDRESS_STN: Final = f"""
    mov ecx, [rdi + {layout.FPSTT}]
    add ecx, esi
    and ecx, 7
    shl ecx, 4
    lea r11, [rdi + rcx + {layout.FPREGS}]
"""
LOAD_STN: Final = f"{_ADDRESS_STN}\nfld tbyte ptr [r9]\nfld tbyte ptr [r11]"


def _again(name: str, values: int, only_if: str = "") -> str:
    """Take the values off the host's stack and start anew; one less unless `only_if` says ZF."""
    drop = "fstp st(0)\n" * values
    if only_if:
        drop = f"fstp st(0)\n{only_if}\njnz x87_{name}_clear\nfstp st(0)\n"
    return f"""
x87_{name}_again:
    {drop}
x87_{name}_clear:
    inc r8d
    fnclex
    jmp x87_{name}
"""


def computed(
    name: str, load: str, operation: str, into: str, *, condition: int = C1, two: bool = True
) -> str:
    """A result in the host's ST0; `two`: below it lies another value."""
    drop = "fstp st(0)" if two else ""
    return f"""
    call x87_begin
x87_{name}:
    {load}
    {operation}
    fnstsw ax
    call x87_news
    jnz x87_{name}_again
    mov ecx, {condition}
    call x87_end
    jnz x87_{name}_stays
    fstp tbyte ptr [{into}]
    {drop}
    ret
x87_{name}_stays:
    fstp st(0)
    {drop}
    ret
{_again(name, 2 if two else 1)}
"""


def compared(name: str, operation: str, store: str = "") -> str:
    """ST0 compared with another operand: the status word tells, or with `store` RFLAGS, which are in R11."""
    return f"""
    call x87_begin
x87_{name}:
    {LOAD_FT0}
    {operation}
    lahf
    movzx eax, ah
    mov r11d, eax
    fnstsw ax
    call x87_news
    jnz x87_{name}_again
    mov ecx, {C1 if store else CONDITION}
    call x87_end
    fstp st(0)
    fstp st(0)
    {store}
    ret
{_again(name, 2)}
"""


def stored(name: str, operation: str, result: str) -> str:
    """ST0 as a number in RAX: FST, FIST, FISTTP."""
    return f"""
    call x87_begin
x87_{name}:
    {LOAD_ST0}
    {operation} [rsp - 24]
    fnstsw ax
    call x87_news
    jnz x87_{name}_again
    mov ecx, {C1}
    call x87_end
    {result} [rsp - 24]
    ret
{_again(name, 0)}
"""


_NEW_TOP: Final = f"""
    mov ecx, [rdi + {layout.FPSTT}]
    dec ecx
    and ecx, 7
    mov [rdi + {layout.FPSTT}], ecx
    mov byte ptr [rdi + rcx + {layout.FPTAGS}], 0
    shl ecx, 4
    fstp tbyte ptr [rdi + rcx + {layout.FPREGS}]
"""


def pushed(name: str, operation: str, *, may_refuse: bool) -> str:
    """Two results, the second one on top; `may_refuse`: with C2 there is none, ST0 is out of range."""
    refused = f"test ah, {C2 >> 8}\njnz x87_{name}_drop" if may_refuse else ""
    return f"""
    call x87_begin
x87_{name}:
    {LOAD_ST0}
    {operation}
    fnstsw ax
    call x87_news
    jnz x87_{name}_again
    mov r11d, eax
    mov ecx, {C1 | (C2 if may_refuse else 0)}
    call x87_end
    jnz x87_{name}_stays
    mov eax, r11d
    {refused}
    {_NEW_TOP}
    fstp tbyte ptr [r9]
    ret
x87_{name}_stays:
    mov eax, r11d
    {refused}
    fstp st(0)
x87_{name}_drop:
    fstp st(0)
    ret
{_again(name, 2, "test ah, 4" if may_refuse else "")}
"""


def popped(name: str, operation: str) -> str:
    """The result replaces ST1, and ST0 is popped."""
    return f"""
    call x87_begin
x87_{name}:
    {LOAD_TWO}
    {operation}
    fnstsw ax
    call x87_news
    jnz x87_{name}_again
    mov ecx, {C1}
    call x87_end
    jnz x87_{name}_stays
    fstp tbyte ptr [r10]
    mov ecx, [rdi + {layout.FPSTT}]
    mov byte ptr [rdi + rcx + {layout.FPTAGS}], 1
    inc ecx
    and ecx, 7
    mov [rdi + {layout.FPSTT}], ecx
    ret
x87_{name}_stays:
    fstp st(0)
    ret
{_again(name, 1)}
"""


def loaded(name: str, size: str, register: str, push: bool) -> str:
    """FLD of a number in RSI, or such an operand of another instruction."""
    keep = _NEW_TOP if push else f"fstp tbyte ptr [rdi + {layout.FT0}]"
    return f"""
    call x87_begin
x87_{name}:
    mov [rsp - 24], {register}
    fld {size} ptr [rsp - 24]
    fnstsw ax
    call x87_news
    jnz x87_{name}_again
    mov ecx, {C1}
    call x87_end
    jnz x87_{name}_stays
    {keep}
    ret
x87_{name}_stays:
    fstp st(0)
    ret
{_again(name, 1)}
"""


EXAMINED: Final = f"""
    call x87_begin
    fnclex
    {LOAD_ST0}
    mov ecx, [rdi + {layout.FPSTT}]
    cmp byte ptr [rdi + rcx + {layout.FPTAGS}], 0
    je x87_in_use
    ffree st(0)
x87_in_use:
    fxam
    fnstsw ax
    ffree st(0)
    fincstp
    mov ecx, {CONDITION}
    call x87_end
    ret
"""

# u64 address in RSI; the address of the caller tells which instruction a fault belongs to
PACKED_DECIMAL: Final = f"""
    call x87_begin
    fnclex
    push rbx
    push rbp
    sub rsp, 24
    mov rbx, rdi
    mov rbp, rsi
    {LOAD_ST0}
    fbstp tbyte ptr [rsp]
    fnstsw ax
    mov [rsp + 16], eax
    fldcw word ptr [rip + x87_default]
    mov rdx, [rsp]
    mov rcx, [rsp + 40]
    movabs rax, {{real.cpu_stq_data_ra}}
    call rax
    mov rdi, rbx
    lea rsi, [rbp + 8]
    movzx edx, word ptr [rsp + 8]
    mov rcx, [rsp + 40]
    movabs rax, {{real.cpu_stw_data_ra}}
    call rax
    mov rdi, rbx
    mov eax, [rsp + 16]
    add rsp, 24
    pop rbp
    pop rbx
    mov ecx, {C1}
    call x87_end
    ret
"""

CONTROL: Final = f"""
    test byte ptr [rdi + {layout.FPUS}], 0x80
    jnz x87_wait
    push rdi
    movabs rax, {{real.helper_fldcw}}
    call rax
    pop rdi
    movzx eax, word ptr [rdi + {layout.FPUC}]
    not eax
    movzx ecx, word ptr [rdi + {layout.FPUS}]
    and eax, ecx
    and ecx, {~_SUMMARY & 0xFFFF}
    and eax, 0x3f
    jz x87_nothing_pending
    or ecx, {_SUMMARY}
x87_nothing_pending:
    mov [rdi + {layout.FPUS}], cx
    ret
"""

EMMS: Final = f"""
    mov dword ptr [rdi + {layout.FPSTT}], 0
    movabs rax, {{real.helper_emms}}
    jmp rax
"""


def waiting(name: str) -> str:
    """A helper that computes nothing, as it is; but a pending exception comes first."""
    return f"""
    test byte ptr [rdi + {layout.FPUS}], 0x80
    jnz x87_wait
    movabs rax, {{real.helper_{name}}}
    jmp rax
"""
