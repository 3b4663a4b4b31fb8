# SPDX-License-Identifier: GPL-2.0-only
"""x87 arithmetic by the host's own unit: results, the status word and #MF are those of a processor.

The library computes the x87 unit in software, some of it (remainders, logarithms, sines) in double precision
only, and sets no exception flag but ZE, and that one too often (Intel SDM vol. 1, chapter 8). Here each
helper is the instruction itself on the host, under the guest's control word with all exceptions masked, on
operands taken from the guest's registers; the status word that comes out of it joins the guest's.

What comes up unmasked sets ES, and the next instruction that waits raises #MF; as on a processor an operation
that is invalid, divides by zero or meets a denormal then leaves its destination alone.
"""

from collections.abc import Iterator
from typing import Final

from pyhv.cpu.trial import Trial
from pyhv.cpu.tuning import layout
from pyhv.cpu.tuning.form import Patch
from pyhv.cpu.tuning.helpers import helper_stub, host_has

_MF = 16
_FCW: Final = 0x37F
_C1, _CONDITION, _C2 = 0x200, 0x4700, 0x400
_SUMMARY: Final = 0x8080
"""ES and B: an unmasked exception is pending."""

# x87_begin: RDI is the state; leaves the addresses of ST0 and ST1 in R9 and R10, changes RAX and RCX.
# x87_news: ZF is clear if AX, the host's status word, has a flag that the guest has not; changes RDX. It may
# be an old one of the host's, whose removal takes longer than the instruction: then it is removed, R8 says
# so, and the instruction is done again.
# x87_end: AX is the host's status word, CX the condition bits that count; changes RAX, RCX, RDX. ZF is clear
# if the destination stays as it is.
_SHARED: Final = f"""
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
_LOAD_ST0: Final = "fld tbyte ptr [r9]"
_LOAD_TWO: Final = "fld tbyte ptr [r10]\nfld tbyte ptr [r9]"
_LOAD_FT0: Final = f"fld tbyte ptr [rdi + {layout.FT0}]\nfld tbyte ptr [r9]"
_ADDRESS_STN: Final = f"""
    mov ecx, [rdi + {layout.FPSTT}]
    add ecx, esi
    and ecx, 7
    shl ecx, 4
    lea r11, [rdi + rcx + {layout.FPREGS}]
"""
_LOAD_STN: Final = f"{_ADDRESS_STN}\nfld tbyte ptr [r9]\nfld tbyte ptr [r11]"


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


def _computed(
    name: str, load: str, operation: str, into: str, *, condition: int = _C1, two: bool = True
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


def _compared(name: str, operation: str, store: str = "") -> str:
    return f"""
    call x87_begin
x87_{name}:
    {_LOAD_FT0}
    {operation}
    lahf
    movzx eax, ah
    mov r11d, eax
    fnstsw ax
    call x87_news
    jnz x87_{name}_again
    mov ecx, {_C1 if store else _CONDITION}
    call x87_end
    fstp st(0)
    fstp st(0)
    {store}
    ret
{_again(name, 2)}
"""


def _stored(name: str, operation: str, result: str) -> str:
    """ST0 as a number in RAX: FST, FIST, FISTTP."""
    return f"""
    call x87_begin
x87_{name}:
    {_LOAD_ST0}
    {operation} [rsp - 24]
    fnstsw ax
    call x87_news
    jnz x87_{name}_again
    mov ecx, {_C1}
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


def _pushed(name: str, operation: str, *, may_refuse: bool) -> str:
    """Two results, the second one on top; `may_refuse`: with C2 there is none, ST0 is out of range."""
    refused = f"test ah, {_C2 >> 8}\njnz x87_{name}_drop" if may_refuse else ""
    return f"""
    call x87_begin
x87_{name}:
    {_LOAD_ST0}
    {operation}
    fnstsw ax
    call x87_news
    jnz x87_{name}_again
    mov r11d, eax
    mov ecx, {_C1 | (_C2 if may_refuse else 0)}
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


def _popped(name: str, operation: str) -> str:
    """The result replaces ST1, and ST0 is popped."""
    return f"""
    call x87_begin
x87_{name}:
    {_LOAD_TWO}
    {operation}
    fnstsw ax
    call x87_news
    jnz x87_{name}_again
    mov ecx, {_C1}
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


def _loaded(name: str, size: str, register: str, push: bool) -> str:
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
    mov ecx, {_C1}
    call x87_end
    jnz x87_{name}_stays
    {keep}
    ret
x87_{name}_stays:
    fstp st(0)
    ret
{_again(name, 1)}
"""


_EXAMINED: Final = f"""
    call x87_begin
    fnclex
    {_LOAD_ST0}
    mov ecx, [rdi + {layout.FPSTT}]
    cmp byte ptr [rdi + rcx + {layout.FPTAGS}], 0
    je x87_in_use
    ffree st(0)
x87_in_use:
    fxam
    fnstsw ax
    ffree st(0)
    fincstp
    mov ecx, {_CONDITION}
    call x87_end
    ret
"""

# u64 address in RSI; the address of the caller tells which instruction a fault belongs to
_PACKED_DECIMAL: Final = f"""
    call x87_begin
    fnclex
    push rbx
    push rbp
    sub rsp, 24
    mov rbx, rdi
    mov rbp, rsi
    {_LOAD_ST0}
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
    mov ecx, {_C1}
    call x87_end
    ret
"""

_CONTROL: Final = f"""
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

_EMMS: Final = f"""
    mov dword ptr [rdi + {layout.FPSTT}], 0
    movabs rax, {{real.helper_emms}}
    jmp rax
"""


def _waiting(name: str) -> str:
    """A helper that computes nothing, as it is; but a pending exception comes first."""
    return f"""
    test byte ptr [rdi + {layout.FPUS}], 0x80
    jnz x87_wait
    movabs rax, {{real.helper_{name}}}
    jmp rax
"""


def _arithmetic() -> Iterator[tuple[str, str]]:
    for name in ("fadd", "fmul", "fsub", "fsubr", "fdiv", "fdivr"):
        operation = f"{name} st(0), st(1)"
        yield f"{name}_ST0_FT0", _computed(f"{name}_0", _LOAD_FT0, operation, "r9")
        yield f"{name}_STN_ST0", _computed(f"{name}_n", _LOAD_STN, operation, "r11")
    for name in ("fsqrt", "frndint", "f2xm1"):
        yield name, _computed(name, _LOAD_ST0, name, "r9", two=False)
    for name in ("fsin", "fcos"):
        yield name, _computed(name, _LOAD_ST0, name, "r9", condition=_C1 | _C2, two=False)
    yield "fscale", _computed("fscale", _LOAD_TWO, "fscale", "r9")
    for name in ("fprem", "fprem1"):
        yield name, _computed(name, _LOAD_TWO, name, "r9", condition=_CONDITION)
    for name in ("fsincos", "fptan"):
        yield name, _pushed(name, name, may_refuse=True)
    yield "fxtract", _pushed("fxtract", "fxtract", may_refuse=False)
    for name in ("fyl2x", "fyl2xp1", "fpatan"):
        yield name, _popped(name, name)
    for name in ("fldl2t", "fldl2e", "fldpi", "fldlg2", "fldln2"):
        yield f"{name}_ST0", _computed(name, "", name, "r9", condition=0, two=False)


def _moves() -> Iterator[tuple[str, str]]:
    yield "fcom_ST0_FT0", _compared("fcom", "fcom st(1)")
    yield "fucom_ST0_FT0", _compared("fucom", "fucom st(1)")
    flags = f"and r11d, 0x45\nmov [rdi + {layout.CC_SRC}], r11"
    yield "fcomi_ST0_FT0", _compared("fcomi", "fcomi st(0), st(1)", flags)
    yield "fucomi_ST0_FT0", _compared("fucomi", "fucomi st(0), st(1)", flags)
    for letter, size, register in (("s", "dword", "esi"), ("l", "qword", "rsi")):
        yield f"fld{letter}_FT0", _loaded(f"fld{letter}_f", size, register, push=False)
        yield f"fld{letter}_ST0", _loaded(f"fld{letter}_0", size, register, push=True)
    yield "fsts_ST0", _stored("fsts", "fstp dword ptr", "mov eax,")
    yield "fstl_ST0", _stored("fstl", "fstp qword ptr", "mov rax,")
    for truncated, operation in (("", "fistp"), ("t", "fisttp")):
        if truncated and not host_has("pni"):
            continue
        yield (
            f"fist{truncated}_ST0",
            _stored(f"{operation}_w", f"{operation} word ptr", "movsx eax, word ptr"),
        )
        yield f"fist{truncated}l_ST0", _stored(f"{operation}_l", f"{operation} dword ptr", "mov eax,")
        yield f"fist{truncated}ll_ST0", _stored(f"{operation}_q", f"{operation} qword ptr", "mov rax,")
    yield "fbst_ST0", _PACKED_DECIMAL
    yield "fxam_ST0", _EXAMINED
    for name in (
        "fpush", "fxchg_ST0_STN", "fldt_ST0", "fstt_ST0", "fildl_ST0", "fildll_ST0", "fildl_FT0", "fbld_ST0",
        "fmov_STN_ST0", "fchs_ST0", "fabs_ST0", "fdecstp", "fincstp",
    ):  # fmt: skip
        yield name, _waiting(name)
    yield "fldcw", _CONTROL
    yield "emms", _EMMS


def routines() -> dict[str, str]:
    """The code of all helpers that this host can compute, by name."""
    return {f"helper_{name}": code for name, code in (*_arithmetic(), *_moves())}


def _proof(trial: Trial) -> None:
    """0/0 is invalid and no division by zero; FCOMI of its result too, which is unordered."""
    # fninit; fldz; fldz; fdivp; fnstsw ax; mov edx, eax; fnclex; fld st(0); fcomip; setp cl; fnstsw ax; ud2
    code = bytes.fromhex("dbe3 d9ee d9ee def9 dfe0 89c2 dbe2 d9c0 dff1 0f9ac1 dfe0 0f0b")
    trial.run(code)
    q = trial.engine.vmcb.q
    trial.expect("0/0 is invalid", q[2] & 0x3F == 1)
    trial.expect("FCOMI of a NaN is invalid and unordered", q[0] & 0x3F == 1 and q[1] & 0xFF == 1)


X87 = Patch(
    name="x87",
    promise="x87 arithmetic is the host's own: results, the status word and unmasked exceptions",
    stubs=(helper_stub(routines(), _SHARED, "helper_flds_FT0", "helper_emms"),),
    proof=_proof,
)
