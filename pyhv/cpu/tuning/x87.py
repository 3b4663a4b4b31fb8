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
from pyhv.cpu.tuning import x87_code as forms
from pyhv.cpu.tuning.form import Patch
from pyhv.cpu.tuning.helpers import helper_stub, host_has


def _arithmetic() -> Iterator[tuple[str, str]]:
    for name in ("fadd", "fmul", "fsub", "fsubr", "fdiv", "fdivr"):
        operation = f"{name} st(0), st(1)"
        yield f"{name}_ST0_FT0", forms.computed(f"{name}_0", forms.LOAD_FT0, operation, "r9")
        yield f"{name}_STN_ST0", forms.computed(f"{name}_n", forms.LOAD_STN, operation, "r11")
    for name in ("fsqrt", "frndint", "f2xm1"):
        yield name, forms.computed(name, forms.LOAD_ST0, name, "r9", two=False)
    for name in ("fsin", "fcos"):
        yield name, forms.computed(name, forms.LOAD_ST0, name, "r9", condition=forms.C1 | forms.C2, two=False)
    yield "fscale", forms.computed("fscale", forms.LOAD_TWO, "fscale", "r9")
    for name in ("fprem", "fprem1"):
        yield name, forms.computed(name, forms.LOAD_TWO, name, "r9", condition=forms.CONDITION)
    for name in ("fsincos", "fptan"):
        yield name, forms.pushed(name, name, may_refuse=True)
    yield "fxtract", forms.pushed("fxtract", "fxtract", may_refuse=False)
    for name in ("fyl2x", "fyl2xp1", "fpatan"):
        yield name, forms.popped(name, name)
    for name in ("fldl2t", "fldl2e", "fldpi", "fldlg2", "fldln2"):
        yield f"{name}_ST0", forms.computed(name, "", name, "r9", condition=0, two=False)


def _moves() -> Iterator[tuple[str, str]]:
    yield "fcom_ST0_FT0", forms.compared("fcom", "fcom st(1)")
    yield "fucom_ST0_FT0", forms.compared("fucom", "fucom st(1)")
    flags = f"and r11d, 0x45\nmov [rdi + {layout.CC_SRC}], r11"
    yield "fcomi_ST0_FT0", forms.compared("fcomi", "fcomi st(0), st(1)", flags)
    yield "fucomi_ST0_FT0", forms.compared("fucomi", "fucomi st(0), st(1)", flags)
    for letter, size, register in (("s", "dword", "esi"), ("l", "qword", "rsi")):
        yield f"fld{letter}_FT0", forms.loaded(f"fld{letter}_f", size, register, push=False)
        yield f"fld{letter}_ST0", forms.loaded(f"fld{letter}_0", size, register, push=True)
    yield "fsts_ST0", forms.stored("fsts", "fstp dword ptr", "mov eax,")
    yield "fstl_ST0", forms.stored("fstl", "fstp qword ptr", "mov rax,")
    for truncated, operation in (("", "fistp"), ("t", "fisttp")):
        if truncated and not host_has("pni"):
            continue
        yield (
            f"fist{truncated}_ST0",
            forms.stored(f"{operation}_w", f"{operation} word ptr", "movsx eax, word ptr"),
        )
        yield f"fist{truncated}l_ST0", forms.stored(f"{operation}_l", f"{operation} dword ptr", "mov eax,")
        yield f"fist{truncated}ll_ST0", forms.stored(f"{operation}_q", f"{operation} qword ptr", "mov rax,")
    yield "fbst_ST0", forms.PACKED_DECIMAL
    yield "fxam_ST0", forms.EXAMINED
    for name in (
        "fpush", "fxchg_ST0_STN", "fldt_ST0", "fstt_ST0", "fildl_ST0", "fildll_ST0", "fildl_FT0", "fbld_ST0",
        "fmov_STN_ST0", "fchs_ST0", "fabs_ST0", "fdecstp", "fincstp",
    ):  # fmt: skip
        yield name, forms.waiting(name)
    yield "fldcw", forms.CONTROL
    yield "emms", forms.EMMS


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


X87: Final = Patch(
    name="x87",
    promise="x87 arithmetic is the host's own: results, the status word and unmasked exceptions",
    stubs=(helper_stub(routines(), forms.SHARED, "helper_flds_FT0", "helper_emms"),),
    proof=_proof,
)
