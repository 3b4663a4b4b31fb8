# SPDX-License-Identifier: GPL-2.0-only
"""Instructions, operands and modes: what is executed by the host and by the emulator and must come out equal.

A *case* is 96 bytes that the code of `driver` loads from: MXCSR, the x87 control word, two 16-byte operands,
two 80-bit ones, and RFLAGS. An *outcome* is 512 bytes: a FXSAVE image with RFLAGS, RAX, RCX and 16 bytes of
memory in the place that FXSAVE leaves to software.
"""

import itertools
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

CASE, OUTCOME = 96, 512
ALL_FLAGS, NO_FLAGS = 0xAD7 & ~0x100 | 0x202, 0x202

F32 = (
    0, 1 << 31, 0x3F800000, 0xBF800000, 0x40490FDB, 1, 0x807FFFFF, 0x00800000, 0x7F7FFFFF, 0xFF7FFFFF,
    0x7F800000, 0xFF800000, 0x7FC00000, 0xFFC12345, 0x7F812345, 0x4EFFFFFF, 0x4F000000, 0xCF000000,
    0x3EAAAAAB, 0x1F800000, 0x5E800001, 0x3FC00000,
)  # fmt: skip
"""Zeros, ones, denormals, tiny, huge, infinities, quiet and signalling NaNs, the limits of integers."""
F64 = (
    0, 1 << 63, 0x3FF0 << 48, 0xBFF0 << 48, 0x400921FB54442D18, 1, 0x800FFFFFFFFFFFFF, 0x0010 << 48,
    0x7FEFFFFFFFFFFFFF, 0xFFEFFFFFFFFFFFFF, 0x7FF0 << 48, 0xFFF0 << 48, 0x7FF8 << 48, 0xFFF8000012345678,
    0x7FF0000012345678, 0x41DFFFFFFFC00000, 0x41E0 << 48, 0xC1E0000000200000, 0x43E0 << 48,
    0x3FD5555555555555, 0x1FF0 << 48, 0x36A0000000000001, 0x47EFFFFFEFFFFFFF, 0x3FF8 << 48,
)  # fmt: skip
_ONE = 1 << 63
_F80 = (
    (0, 0), (0x8000, 0), (0x3FFF, _ONE), (0xBFFF, _ONE), (0x4000, 0xC90FDAA22168C235), (0, 1), (0x8000, 1),
    (0, _ONE - 1), (1, _ONE), (0x7FFE, 2**64 - 1), (0xFFFE, 2**64 - 1), (0x7FFF, _ONE), (0xFFFF, _ONE),
    (0x7FFF, 3 << 62), (0xFFFF, 3 << 62 | 0x1234), (0x7FFF, _ONE | 0x1234), (0x401E, _ONE), (0xC01E, _ONE),
    (0x401D, 0xFFFFFFFE00000000), (0x403E, _ONE), (0xC03E, _ONE), (0x400D, 0xFFFE << 48), (0x400E, _ONE),
    (0x3FFD, 0xAAAAAAAAAAAAAAAB), (0x407E, 2**64 - 1), (0x43FE, 2**64 - 1), (0x3F6A, _ONE | 1),
    (0x3C00, _ONE | 0x7FF), (0x403D, 0xDB4DA5F4C8A1D200),
    (0, _ONE), (0x3FFF, _ONE >> 1), (0x7FFF, 0), (0x7FFF, 1),
)  # fmt: skip
F80 = tuple(struct.pack("<QH", mantissa, exponent) for exponent, mantissa in _F80)
"""The same in 80 bits, and at last the encodings that only a 8087 made."""
INTEGERS = (
    0, 1, -1, 2, 7, 100, 32767, -32768, 32768, 65535, -65536, 2**31 - 1, -(2**31), 2**31, 2**53 + 1,
    2**62 + 3, 2**63 - 1, -(2**63),
)  # fmt: skip
ROUNDINGS = tuple(0x1F80 | mode << 13 for mode in range(4))
DENORMALS_ARE_ZERO, FLUSH = 0x1FC0, 0x9F80
MXCSRS = (*ROUNDINGS, DENORMALS_ARE_ZERO, FLUSH, 0xDFC0)
CONTROLS = (0x37F, 0x77F, 0xB7F, 0xF7F, 0x27F, 0x07F, 0x67F)
"""x87 control words: four roundings, double and single precision."""
UNIT = F80[2]


@dataclass(frozen=True)
class Row:
    """One instruction (or a few) with its cases."""

    code: str
    cases: list[bytes]


def case(
    first: bytes = b"", second: bytes = b"", *, st0: bytes = UNIT, st1: bytes = UNIT, mxcsr: int = 0x1F80,
    control: int = 0x37F, flags: int = ALL_FLAGS,
) -> bytes:  # fmt: skip
    """The 96 bytes of a case."""
    return struct.pack("<IH10x16s16s10s6x10s6xQ8x", mxcsr, control, first, second, st0, st1, flags)


def driver(code: str) -> str:
    """Assembly that executes `code` once for each of RDX cases at RDI, with outcomes at RSI."""
    return f"""
    push rbx; push rbp; push r12; push r13; push r14; push r15
    mov r12, rdi
    mov r13, rsi
    mov r14, rdx
next_case:
    fninit
    pxor xmm2, xmm2
    fld tbyte ptr [r12 + 64]
    fld tbyte ptr [r12 + 48]
    fldcw word ptr [r12 + 4]
    movdqu xmm0, [r12 + 16]
    movdqu xmm1, [r12 + 32]
    mov rax, [r12 + 16]
    mov rcx, [r12 + 32]
    lea rbx, [r12 + 32]
    lea rbp, [r13 + 480]
    mov qword ptr [rbp], -0x5a5a5a5b
    mov qword ptr [rbp + 8], -0x5a5a5a5b
    ldmxcsr [r12]
    push qword ptr [r12 + 80]
    popfq
    {code}
    pushfq
    pop r15
    fxsave64 [r13]
    mov [r13 + 464], r15
    mov [r13 + 472], rax
    mov [r13 + 496], rcx
    add r12, {CASE}
    add r13, {OUTCOME}
    dec r14
    jnz next_case
    fninit
    push 0x1f80
    ldmxcsr [rsp]
    pop rax
    push 0x202
    popfq
    pop r15; pop r14; pop r13; pop r12; pop rbp; pop rbx
    """


def _f32(packed: bool) -> list[tuple[bytes, bytes]]:
    count = len(F32)
    return [
        (
            struct.pack("<4I", a, F32[(i + 3) % count], 0x3F800000, F32[(j + 5) % count]),
            struct.pack("<4I", b, F32[(j + 7) % count], 0x40000000, F32[(i + 11) % count]),
        )
        if packed
        else (struct.pack("<4I", a, 1, 2, 3), struct.pack("<4I", b, 4, 0x7F800001, 6))
        for (i, a), (j, b) in itertools.product(enumerate(F32), enumerate(F32))
    ]


def _f64(packed: bool) -> list[tuple[bytes, bytes]]:
    count = len(F64)
    return [
        (
            struct.pack("<2Q", a, F64[(j + 7) % count] if packed else 0x1122),
            struct.pack("<2Q", b, F64[(i + 5) % count] if packed else 0x7FF0000000000001),
        )
        for (i, a), (j, b) in itertools.product(enumerate(F64), enumerate(F64))
    ]


_PAIRS = {"ss": _f32(False), "ps": _f32(True), "sd": _f64(False), "pd": _f64(True)}


def _sse(code: str, form: str, mxcsrs: Sequence[int] = MXCSRS) -> Row:
    return Row(code, [case(a, b, mxcsr=mxcsr) for mxcsr in mxcsrs for a, b in _PAIRS[form]])


def _one(code: str, form: str, mxcsrs: Sequence[int] = MXCSRS) -> Row:
    """An instruction with one source, the second operand."""
    sources = {b for _, b in _PAIRS[form]}
    return Row(code, [case(b, b, mxcsr=mxcsr) for mxcsr in mxcsrs for b in sorted(sources)])


def sse_rows() -> Iterator[Row]:
    """SSE to SSE4.1 arithmetic, without the approximations, which differ between processors."""
    few = (0x1F80, DENORMALS_ARE_ZERO)
    for form in _PAIRS:
        for name in ("add", "sub", "mul", "div"):
            yield _sse(f"{name}{form} xmm0, xmm1", form)
        for name in ("min", "max"):
            yield _sse(f"{name}{form} xmm0, xmm1", form, few)
        yield _one(f"sqrt{form} xmm0, xmm1", form)
        for predicate in range(8):
            yield _sse(f"cmp{form} xmm0, xmm1, {predicate}", form, few)
        for mode in range(16):
            yield _one(f"round{form} xmm0, xmm1, {mode}", form, MXCSRS if mode & 4 else few)
    for form in ("ss", "sd"):
        for name in ("comi", "ucomi"):
            yield _sse(f"{name}{form} xmm0, xmm1", form, few)
    for form in ("ps", "pd"):
        for name in ("hadd", "hsub", "addsub"):
            yield _sse(f"{name}{form} xmm0, xmm1", form, MXCSRS[2:6])
        for mask in (0xFF, 0x71, 0x3A):
            yield _sse(f"dp{form} xmm0, xmm1, {mask}", form, MXCSRS[:2])
    yield from conversion_rows()


def conversion_rows() -> Iterator[Row]:
    """Conversions between SSE's formats and integers, in XMM, MMX and general registers."""
    for name in ("ss2sd", "ps2pd", "sd2ss", "pd2ps", "ps2dq", "tps2dq", "pd2dq", "tpd2dq"):
        yield _one(f"cvt{name} xmm0, xmm1", name.lstrip("t")[:2])
    for name in ("dq2ps", "dq2pd"):
        yield _one(f"cvt{name} xmm0, xmm1", "ps")
    for name in ("ps2pi", "tps2pi", "pd2pi", "tpd2pi"):
        yield _one(f"cvt{name} mm0, xmm1\nmovq [rbp], mm0\nemms", name.lstrip("t")[:2])
    for name in ("pi2ps", "pi2pd"):
        yield _one(f"movq mm1, [rbx]\ncvt{name} xmm0, mm1\nemms", "ps")
    for form, truncated, register in itertools.product(("ss", "sd"), ("", "t"), ("eax", "rax")):
        yield _one(f"cvt{truncated}{form}2si {register}, xmm1", form)
    for form, register in itertools.product(("ss", "sd"), ("ecx", "rcx")):
        yield _one(f"cvtsi2{form} xmm0, {register}", "sd")


def _x87(code: str, controls: Sequence[int] = CONTROLS, *, unary: bool = False) -> Row:
    seconds = (UNIT,) if unary else F80
    return Row(
        code,
        [case(st0=a, st1=b, control=c) for c in controls for a, b in itertools.product(F80, seconds)],
    )


def _x87_memory(code: str, operands: Sequence[bytes], registers: Sequence[bytes] = F80) -> Row:
    return Row(code, [case(second=m, st0=a) for a, m in itertools.product(registers, operands)])


def _quiet(operands: Sequence[int], infinity: int) -> list[int]:
    """Without NaNs and denormals, of which the emulator makes wider numbers before it looks at them."""
    smallest = infinity & -infinity
    return [n for n in operands if n == 0 or smallest <= n & (infinity | smallest - 1) <= infinity]


def x87_rows() -> Iterator[Row]:
    """x87 arithmetic, comparisons and conversions; everything but stack faults."""
    nearest = CONTROLS[:1]
    words = [struct.pack("<q", n) for n in INTEGERS]
    singles = [struct.pack("<I", n) for n in _quiet(F32, 0x7F800000)]
    doubles = [struct.pack("<Q", n) for n in _quiet(F64, 0x7FF << 52)]
    for name in ("fadd", "fsub", "fsubr", "fmul", "fdiv", "fdivr"):
        yield _x87(f"{name} st(0), st(1)")
        yield _x87(f"{name} st(1), st(0)", nearest)
        yield _x87(f"{name}p st(1), st(0)", nearest)
        yield _x87_memory(f"{name} dword ptr [rbx]", singles)
        yield _x87_memory(f"{name} qword ptr [rbx]", doubles)
        yield _x87_memory(f"fi{name[1:]} word ptr [rbx]", words)
        yield _x87_memory(f"fi{name[1:]} dword ptr [rbx]", words)
    for name in ("fsqrt", "fabs", "fchs", "frndint", "fxtract", "fxam", "ftst"):
        yield _x87(name, unary=True)
    for name in ("fscale", "fprem", "fprem1", "fyl2x", "fyl2xp1", "fpatan"):
        yield _x87(name, nearest)
    for name in ("f2xm1", "fsin", "fcos", "fsincos", "fptan"):
        yield _x87(name, nearest, unary=True)
    for name in ("fcom", "fcomp", "fucom", "fucomp"):
        yield _x87(f"{name} st(1)", nearest)
    for name in ("fcomi", "fcompi", "fucomi", "fucompi"):
        yield _x87(f"{name} st(0), st(1)", nearest)
    for name in ("fcompp", "fucompp"):
        yield _x87(name, nearest)
    for condition in ("b", "e", "be", "u", "nb", "ne", "nbe", "nu"):
        yield _x87(f"fcmov{condition} st(0), st(1)", nearest)
    yield from _x87_transfers(words)


def _x87_transfers(words: list[bytes]) -> Iterator[Row]:
    for name, sizes in (
        ("fist", ("word", "dword")), ("fistp", ("word", "dword", "qword")),
        ("fisttp", ("word", "dword", "qword")), ("fst", ("dword", "qword")),
        ("fstp", ("dword", "qword", "tbyte")), ("fbstp", ("tbyte",)),
    ):  # fmt: skip
        for size in sizes:
            yield _x87(f"{name} {size} ptr [rbp]", unary=True)
    yield _x87_memory("fld dword ptr [rbx]", [struct.pack("<I", n) for n in F32], F80[:1])
    yield _x87_memory("fld qword ptr [rbx]", [struct.pack("<Q", n) for n in F64], F80[:1])
    for size in ("word", "dword", "qword"):
        yield _x87_memory(f"fild {size} ptr [rbx]", words, F80[:1])
    for name in ("fld1", "fldl2t", "fldl2e", "fldpi", "fldlg2", "fldln2", "fldz"):
        yield Row(name, [case(control=control) for control in CONTROLS])
    divide = "fdiv st(0), st(1)"
    for then in (
        "fnstsw ax",
        "fnclex; fnstsw ax",
        "fnstenv [rbp - 32]; movzx eax, word ptr [rbp - 28]",
        "emms",
    ):
        yield _x87(f"{divide}; {then}", CONTROLS[:1])


_VECTORS = (
    b"abcdefghijklmnop", b"abc\0defghijklmno", bytes(16), b"\xff" * 16, b"\x80" * 16, b"\x7f" * 16,
    b"mnopmnopabcabcab", b"ab\0bababababababa", b"\x00\x80" * 8, b"\xff\x7f" * 8, bytes(range(16)),
    bytes(range(250, 266 - 10)) * 2 + b"\x10\x20\x30\x40", b"aaaaaaaaaaaaaaab", b"ab" + bytes(14),
)  # fmt: skip
_INTEGER = """
    aesenc aesenclast aesdec aesdeclast aesimc pshufb phaddw phaddd phaddsw phsubw phsubd phsubsw
    pmaddubsw pmulhrsw psignb psignw psignd pabsb pabsw pabsd pmuldq pmulld pminsb pmaxsb pminuw pmaxuw
    pminud pmaxud pminsd pmaxsd packusdw packsswb packssdw packuswb pcmpeqq pcmpgtq phminposuw ptest
    pmovsxbw pmovsxbd pmovsxbq pmovsxwd pmovsxwq pmovsxdq pmovzxbw pmovzxbd pmovzxbq pmovzxwd pmovzxwq
    pmovzxdq paddsb paddsw paddusb paddusw psubsb psubsw psubusb psubusw pmullw pmulhw pmulhuw pmuludq
    pmaddwd pavgb pavgw psadbw psllw pslld psllq psrlw psrld psrlq psraw psrad punpckhbw punpcklwd
    pcmpgtb pcmpgtw pcmpgtd
"""


def integer_rows() -> Iterator[Row]:
    """SSE's integers, strings, AES, CLMUL, CRC32 and POPCNT."""
    cases = [case(a, b) for a, b in itertools.product(_VECTORS, _VECTORS)]
    for name in _INTEGER.split():
        yield Row(f"{name} xmm0, xmm1", cases)
    for byte in (0, 1, 0x10, 0x11, 0x5A):
        for name in ("pclmulqdq", "aeskeygenassist", "palignr", "mpsadbw", "pblendw", "insertps"):
            yield Row(f"{name} xmm0, xmm1, {byte}", cases)
    for byte in range(128):
        yield Row(f"pcmpistri xmm0, xmm1, {byte}\npcmpistrm xmm0, xmm1, {byte}", cases)
        lengths = "movsx eax, al\nmovsx rdx, cl"
        yield Row(
            f"{lengths}\npcmpestri xmm0, xmm1, {byte}\nmov eax, ecx\npcmpestrm xmm0, xmm1, {byte}", cases
        )
    for operands in ("eax, cl", "eax, cx", "eax, ecx", "rax, cl", "rax, rcx"):
        yield Row(f"crc32 {operands}", cases)
    for operands in ("ax, cx", "eax, ecx", "rax, rcx"):
        yield Row(f"popcnt {operands}", cases)
