# SPDX-License-Identifier: GPL-2.0-only
"""SSE arithmetic by the host's own unit: results, MXCSR's flags and #XM are those of a processor.

The library computes SSE in software as if all exceptions were masked, keeps the flags where neither STMXCSR
nor FXSAVE look, knows no denormal operands and forgets flush-to-zero (Intel SDM vol. 1, chapter 11.5). Here
each helper is the instruction itself, on the host, under the guest's MXCSR with all exceptions masked:

    fast    the guest has the default modes and PE is set already: no flag but PE came up, none is to be told
    slow    load MXCSR, flags clear; the instruction; read the flags; put the host's modes back

What comes up joins the guest's flags, unless the guest has unmasked it: then it is #XM, before anything is
stored. The fast way leaves PE set in the host's MXCSR; other flags, which the host's code may have left
there, and other modes lead to the slow way too, which cannot be wrong.
"""

from collections.abc import Iterator
from typing import Final

from pyhv.cpu.trial import DATA, Trial
from pyhv.cpu.tuning import layout, strings
from pyhv.cpu.tuning.form import Patch
from pyhv.cpu.tuning.helpers import helper_stub, host_has

_GP, _XM = 13, 19
_DEFAULT: Final = 0x1F80
_MXCSR_AT: Final = 24
"""Where FXSAVE's image has MXCSR."""
_MODES: Final = 0xFFC0
"""MXCSR without flags and without the bits that nobody may set."""

_LANES: Final = ", ".join(
    hex(sum(0xFFFF_FFFF << 32 * lane for lane in (0, 1) if mask >> 2 * half + lane & 1))
    for mask in range(16)
    for half in (0, 1)
)
"""For each mask of four lanes 16 bytes that are ones in these."""

# sse_begin changes RAX and leaves the host's MXCSR in R11; sse_end changes RAX, RCX and R10. Where IE, DE or
# ZE is unmasked, the instruction ends before it knows the other flags.
_SHARED: Final = f"""
sse_begin:
    stmxcsr [rsp - 8]
    mov r11d, [rsp - 8]
    mov eax, [rdi + {layout.MXCSR}]
    and eax, {_MODES}
    or eax, {_DEFAULT}
    mov [rsp - 8], eax
    ldmxcsr [rsp - 8]
    ret
sse_end:
    mov r10d, 0x3f
sse_end_masked:
    stmxcsr [rsp - 8]
    and r10d, [rsp - 8]
    and r11d, {_MODES}
    mov [rsp - 8], r11d
    ldmxcsr [rsp - 8]
    mov ecx, [rdi + {layout.MXCSR}]
    mov eax, ecx
    shr eax, 7
    not eax
    and eax, r10d
    test eax, 0x3f
    jnz sse_raise
    or ecx, r10d
    mov [rdi + {layout.MXCSR}], ecx
    ret
sse_raise:
    test eax, 7
    jz sse_raise_now
    and r10d, 7
sse_raise_now:
    or ecx, r10d
    mov [rdi + {layout.MXCSR}], ecx
    mov rdx, [rsp + 8]
    add rsp, 8
    mov esi, {_XM}
    movabs rax, {{real.raise_exception_ra}}
    jmp rax
sse_lanes:
    .quad {_LANES}
sse_halves:
    .quad 0, 0, -1, 0, 0, -1, -1, -1
"""

# u32 value in RSI
_LDMXCSR: Final = f"""
    test esi, 0xffff0000
    jnz ldmxcsr_reserved
    movabs rax, {{real.helper_ldmxcsr}}
    jmp rax
ldmxcsr_reserved:
    mov rdx, [rsp]
    mov esi, {_GP}
    movabs rax, {{real.raise_exception_ra}}
    jmp rax
"""

# u64 address in RSI. What the memory holds is looked at before a register changes.
_FXRSTOR: Final = f"""
    test sil, 15
    jnz fxrstor
    push rdi
    push rsi
    sub rsp, 8
    add rsi, {_MXCSR_AT}
    mov rdx, [rsp + 24]
    movabs rax, {{real.cpu_ldl_data_ra}}
    call rax
    add rsp, 8
    pop rsi
    pop rdi
    test eax, 0xffff0000
    jnz ldmxcsr_reserved
fxrstor:
    movabs rax, {{real.helper_fxrstor}}
    jmp rax
"""

_BOTH: Final = "movups xmm0, [rsi]\nmovups xmm1, [rdx]"
_KEEP: Final = "movups [rsi], xmm0"
_FORMS: Final = ("ps", "pd", "ss", "sd")
_PREDICATES: Final = ("eq", "lt", "le", "unord", "neq", "nlt", "nle", "ord")


def _routine(name: str, load: str, operation: str, store: str) -> str:
    """`load` and `operation` leave RDI, RSI and RDX alone; `store` may find its value in R8 and XMM0."""
    return f"""
    {load}
    mov eax, [rdi + {layout.MXCSR}]
    and eax, {_MODES | 0x20}
    cmp eax, {_DEFAULT | 0x20}
    jne slow_{name}
    {operation}
    stmxcsr [rsp - 8]
    mov eax, [rsp - 8]
    and eax, {0xFFFF & ~0x20}
    cmp eax, {_DEFAULT}
    jne again_{name}
    {store}
    ret
again_{name}:
    {load}
slow_{name}:
    call sse_begin
    {operation}
    call sse_end
    {store}
    ret
"""


def _two_operands() -> Iterator[tuple[str, str]]:
    """Helpers with (state, destination, source)."""
    for form in _FORMS:
        for operation in ("add", "sub", "mul", "div", "min", "max", "sqrt"):
            yield f"{operation}{form}", f"{operation}{form} xmm0, xmm1"
        for number, predicate in enumerate(_PREDICATES):
            yield f"cmp{predicate}{form}", f"cmp{form} xmm0, xmm1, {number}"
    for name in (
        "cvtps2pd", "cvtpd2ps", "cvtss2sd", "cvtsd2ss", "cvtdq2ps", "cvtdq2pd",
        "cvtps2dq", "cvtpd2dq", "cvttps2dq", "cvttpd2dq",
    ):  # fmt: skip
        yield name, f"{name} xmm0, xmm1"
    if host_has("pni"):
        for name in ("haddps", "haddpd", "hsubps", "hsubpd", "addsubps", "addsubpd"):
            yield name, f"{name} xmm0, xmm1"


def _conversions() -> Iterator[tuple[str, str, str, str]]:
    """Conversions from and to general and MMX registers: (name, load, operation, store)."""
    for form in ("ss", "sd"):
        for t in ("", "t"):
            for kind, register in (("si", "r8d"), ("sq", "r8")):
                load = "movups xmm0, [rsi]"
                yield f"cvt{t}{form}2{kind}", load, f"cvt{t}{form}2si {register}, xmm0", "mov rax, r8"
        for kind, register in (("si", "edx"), ("sq", "rdx")):
            yield f"cvt{kind}2{form}", "movups xmm0, [rsi]", f"cvtsi2{form} xmm0, {register}", _KEEP
    yield "cvtpi2ps", "movq xmm0, [rdx]", "cvtdq2ps xmm0, xmm0", "movlps [rsi], xmm0"
    yield "cvtpi2pd", "movq xmm0, [rdx]", "cvtdq2pd xmm0, xmm0", _KEEP
    for t in ("", "t"):
        yield f"cvt{t}ps2pi", "movq xmm0, [rdx]", f"cvt{t}ps2dq xmm0, xmm0", "movlps [rsi], xmm0"
        yield f"cvt{t}pd2pi", "movups xmm0, [rdx]", f"cvt{t}pd2dq xmm0, xmm0", "movlps [rsi], xmm0"


def _comparisons() -> Iterator[tuple[str, str]]:
    for form in ("ss", "sd"):
        for name in (f"comi{form}", f"ucomi{form}"):
            yield name, f"{name} xmm0, xmm1\nlahf\nmovzx eax, ah\nand eax, 0x45\nmov r8d, eax"


def _rounding(form: str) -> str:
    """ROUNDxx; the immediate byte is in ECX."""
    return f"""
    {_BOTH}
    mov r10d, ecx
    and r10d, 8
    shl r10d, 2
    xor r10d, 0x3f
    stmxcsr [rsp - 8]
    mov r11d, [rsp - 8]
    mov eax, [rdi + {layout.MXCSR}]
    and eax, {_MODES}
    or eax, {_DEFAULT}
    test ecx, 4
    jnz round{form}_by_mxcsr
    and eax, {~0x6000 & 0xFFFF}
    and ecx, 3
    shl ecx, 13
    or eax, ecx
round{form}_by_mxcsr:
    mov [rsp - 8], eax
    ldmxcsr [rsp - 8]
    round{form} xmm0, xmm1, 4
    call sse_end_masked
    {_KEEP}
    ret
"""


def _dot_product(table: str, most: int, operation: str) -> str:
    """DPPS, DPPD; the immediate byte is in ECX. Lanes that do not take part are zero times zero."""
    return f"""
    {_BOTH}
    mov r8d, ecx
    lea r9, [rip + {table}]
    shr ecx, 4
    and ecx, {most}
    shl ecx, 4
    movups xmm2, [r9 + rcx]
    andps xmm0, xmm2
    andps xmm1, xmm2
    call sse_begin
    {operation}
    call sse_end
    and r8d, {most}
    shl r8d, 4
    movups xmm2, [r9 + r8]
    andps xmm0, xmm2
    {_KEEP}
    ret
"""


def routines() -> dict[str, str]:
    """The code of all helpers that this host can compute, by name."""
    found = {"helper_fxrstor": _FXRSTOR, "helper_ldmxcsr": _LDMXCSR}
    for name, operation in _two_operands():
        found[f"helper_{name}"] = _routine(name, _BOTH, operation, _KEEP)
    for name, load, operation, store in _conversions():
        found[f"helper_{name}"] = _routine(name, load, operation, store)
    for name, operation in _comparisons():
        found[f"helper_{name}"] = _routine(name, _BOTH, operation, f"mov [rdi + {layout.CC_SRC}], r8")
    if host_has("sse4_1"):
        for form in _FORMS:
            found[f"helper_round{form}_xmm"] = _rounding(form)
        sums = "mulps xmm0, xmm1\nhaddps xmm0, xmm0\nhaddps xmm0, xmm0"
        found["helper_dpps_xmm"] = _dot_product("sse_lanes", 15, sums)
        found["helper_dppd_xmm"] = _dot_product("sse_halves", 3, "mulpd xmm0, xmm1\nhaddpd xmm0, xmm0")
    if host_has("sse4_2"):
        found |= strings.routines()
    return found


def _proof(trial: Trial) -> None:
    """1/0 sets ZE and nothing else; unmasked it is #XM, with the destination as it was."""
    raw, data = trial.ram.writable.raw, DATA << 12
    # The code: xorps xmm1, xmm1; movss xmm0, [rbx]; ldmxcsr [rbx + 4]; divss xmm0, xmm1;
    # then movss [rbx], xmm0; stmxcsr [rbx + 4]; ud2
    code = bytes.fromhex("0f57c9 f30f1003 0fae5304 f30f5ec1 f30f1103 0fae5b04 0f0b")
    one, infinity = 0x3F80_0000, 0x7F80_0000
    for mxcsr, result, told in ((0x1F80, infinity, 0x1F84), (0x1D80, one, 0x1D80)):
        raw[data : data + 8] = one.to_bytes(4, "little") + mxcsr.to_bytes(4, "little")
        at, event = trial.run(code)
        expected = ("exception", at + 11, _XM << 16) if mxcsr == 0x1D80 else ("invalid opcode", at + 23, 0)
        trial.expect("SSE tells a division by zero", event == expected)
        found = (
            int.from_bytes(raw[data : data + 4], "little"),
            int.from_bytes(raw[data + 4 : data + 8], "little"),
        )
        trial.expect("MXCSR has the flags of SSE", found == (result, told))


SSE: Final = Patch(
    name="SSE",
    promise="SSE arithmetic is the host's own: results, MXCSR's flags and unmasked exceptions",
    stubs=(helper_stub(routines(), _SHARED, "helper_fxrstor", "helper_pcmpistrm_xmm"),),
    proof=_proof,
)
