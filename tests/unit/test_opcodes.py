# SPDX-License-Identifier: GPL-2.0-only
"""Which encodings the processor refuses: the tables by themselves, and what engines make of them."""

import itertools
from collections.abc import Iterator

import pytest
from bare_engine import ABSENT, CODE, CODE_2, DATA, L1, Bare, Exit, at
from hypothesis import given
from hypothesis import strategies as st

from pyhv.abi.x86 import FLAT_RING3_CS64, FLAT_RING3_DS, PTE_RW, Vector
from pyhv.cpu import fpu
from pyhv.cpu import vmcb as v
from pyhv.cpu.features import SHOWN
from pyhv.cpu.opcodes import Verdict, examine
from pyhv.cpu.tuning.gate import unsuitable

REFUSED = [
    ("VADDPS", "c5f858c0"),
    ("VZEROUPPER", "c5f877"),
    ("ANDN", "c4e278f2c0"),
    ("VFMADD213PS", "c4e271a8c2"),
    ("XBEGIN", "c7f800000000"),
    ("XABORT", "c6f800"),
    ("XTEST", "0f01d6"),
    ("EXTRQ", "660f79c0"),
    ("EXTRQ by constants", "660f78c00000"),
    ("INSERTQ", "f20f79c0"),
    ("INSERTQ by constants", "f20f78c00000"),
    ("MOVNTSS", "f30f2b03"),
    ("MOVNTSD", "f20f2b03"),
    ("XOP, group 1A", "8fc8"),
    ("LOCK MOV", "f089c0"),
    ("LOCK ADD to a register", "f001c0"),
    ("LOCK ADD of memory", "f00303"),
    ("LOCK CMP", "f03903"),
    ("LOCK CMP with a constant", "f0833b01"),
    ("LOCK NOP", "f090"),
    ("LOCK FLD1", "f0d9e8"),
    ("LOCK BTS of a register", "f00fabc3"),
    ("LOCK BT of memory by a constant", "f00fba2301"),
    ("LOCK XCHG of registers", "f087c8"),
    ("LOCK NEG of a register", "f0f7d8"),
    ("LOCK CLI", "f0fa"),
    ("LOCK ADDPS", "f00f5803"),
    ("66 LOCK MOV", "66f089c0"),
    ("FS LOCK MOV", "64f089c0"),
    ("MOVLPD of registers", "660f12c1"),
    ("MOVHPD of registers", "660f16c1"),
    ("MOVMSKPS of memory", "0f5003"),
    ("PSRLW of memory by a constant", "0f711301"),
    ("FXSAVE with 66", "660fae03"),
    ("LDMXCSR with F3", "f30fae13"),
    ("LFENCE with F2", "f20faee8"),
    ("MOVNTI with 66", "660fc303"),
    ("MOVQ2DQ of memory", "f30fd603"),
    ("MOVAPS with 66 F3", "66f30f28c1"),
    ("PSHUFB with 66 F2", "66f20f3800c1"),
    ("ROUNDPS with F3 66", "f3660f3a08c101"),
    ("MOV from CR1", "0f20c8"),
    ("MOV to CR5", "0f22e8"),
    ("XSETBV", "0f01d1"),
    ("XGETBV", "0f01d0"),
    ("VMCALL", "0f01c1"),
    ("VMMCALL", "0f01d9"),
    ("MONITOR", "0f01c8"),
    ("CLAC", "0f01ca"),
    ("RDPKRU", "0f01ee"),
]
RUNS = [
    ("NOP", "90"),
    ("PAUSE", "f390"),
    ("ENDBR64", "f30f1efa"),
    ("MOV", "89c0"),
    ("MOV by a constant", "c7c001000000"),
    ("LOCK ADD", "f00103"),
    ("LOCK ADD of a constant", "f0830301"),
    ("66 LOCK ADD", "66f00103"),
    ("LOCK 66 ADD", "f0660103"),
    ("LOCK INC", "f0ff03"),
    ("LOCK NOT", "f0f713"),
    ("LOCK XCHG", "f08703"),
    ("LOCK BTS", "f00fab03"),
    ("LOCK BTC by a constant", "f00fba3b01"),
    ("LOCK CMPXCHG", "f00fb103"),
    ("LOCK XADD", "f00fc103"),
    ("LOCK CMPXCHG8B", "f00fc70b"),
    ("XACQUIRE LOCK ADD", "f2f00103"),
    ("REPZ RET", "f3c3"),
    ("MOVUPS", "0f1003"),
    ("MOVLPD", "660f1203"),
    ("MOVHLPS", "0f12c1"),
    ("MOVMSKPS", "0f50c1"),
    ("PSRLW by a constant", "0f71d101"),
    ("MOVQ2DQ", "f30fd6c1"),
    ("LDDQU", "f20ff003"),
    ("CRC32", "f20f38f1c1"),
    ("CRC32 of a word", "66f20f38f1c1"),
    ("POPCNT of a word", "66f30fb8c1"),
    ("PCMPISTRI", "660f3a630300"),
    ("LFENCE", "0faee8"),
    ("SMSW", "0f01e0"),
    ("POP", "8fc0"),
]
ALIGNED = [
    ("MOVAPS", "0f28"),
    ("MOVAPS to memory", "0f29"),
    ("MOVNTPS", "0f2b"),
    ("ADDPS", "0f58"),
    ("SQRTPD", "660f51"),
    ("CVTPD2DQ", "f20fe6"),
    ("MOVDQA", "660f6f"),
    ("MOVDQA to memory", "660f7f"),
    ("MOVNTDQ", "660fe7"),
    ("PADDD", "660ffe"),
    ("PSHUFLW", "f20f70"),
    ("MOVSLDUP", "f30f12"),
    ("PSHUFB", "660f3800"),
    ("MOVNTDQA", "660f382a"),
    ("AESENC", "660f38dc"),
    ("PALIGNR", "660f3a0f"),
]


SHORT = [
    ("CVTPS2PI", "0f2d03", 8),
    ("CVTTPS2PI", "0f2c03", 8),
    ("CVTPS2PD", "0f5a03", 8),
    ("CVTDQ2PD", "f30fe603", 8),
    ("ROUNDSD", "660f3a0b0301", 8),
    ("ROUNDSS", "660f3a0a0302", 4),
    ("PUNPCKLBW", "0f6003", 4),
    ("PUNPCKLWD", "0f6103", 4),
    ("PUNPCKLDQ", "0f6203", 4),
    ("CVTSI2SD", "f20f2a03", 4),
    ("CVTSS2SD", "f30f5a03", 4),
    ("MOVDDUP", "f20f1203", 8),
    ("PMOVZXBQ", "660f383203", 2),
    ("MOVUPS", "0f1003", 16),
]


def _named(rows: list[tuple[str, str]]) -> pytest.MarkDecorator:
    return pytest.mark.parametrize("code", [code for _, code in rows], ids=[name for name, _ in rows])


# -- the tables -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [64, 32])
@_named(REFUSED)
def test_refused(code: str, width: int) -> None:
    assert examine(bytes.fromhex(code), width) is Verdict.REFUSED


@pytest.mark.parametrize("width", [64, 32])
@_named(RUNS)
def test_runs(code: str, width: int) -> None:
    assert examine(bytes.fromhex(code), width) is Verdict.RUNS


@pytest.mark.parametrize("width", [64, 32])
@_named(ALIGNED)
def test_only_memory_can_be_aligned(code: str, width: int) -> None:
    assert examine(bytes.fromhex(code) + b"\x03\0", width) is Verdict.MUST_BE_ALIGNED
    if code != "660f382a":
        assert examine(bytes.fromhex(code) + b"\xc1\0", width) is not Verdict.MUST_BE_ALIGNED


def test_what_width_decides() -> None:
    les, rex_lock, sysret = b"\xc4\x03", b"\x41\xf0\x89\xc0", b"\x0f\x07"
    assert [examine(les, width) for width in (64, 32)] == [Verdict.REFUSED, Verdict.RUNS]
    assert [examine(sysret, width) for width in (64, 32)] == [Verdict.RUNS, Verdict.REFUSED]
    assert [examine(rex_lock, width) for width in (64, 32)] == [Verdict.REFUSED, Verdict.RUNS], "INC ECX"


@given(st.binary(max_size=20), st.sampled_from([64, 32]))
def test_a_verdict_needs_no_more_bytes_than_it_says(code: bytes, width: int) -> None:
    """No bytes make it fail, and once a verdict is not RUNS, nothing behind it can change it."""
    verdicts = [examine(code[:length], width) for length in range(len(code) + 1)]
    first = next((found for found in verdicts if found is not Verdict.RUNS), Verdict.RUNS)
    assert verdicts[-1] is first
    assert examine(b"\x66" * 15 + code, width) is Verdict.RUNS, "too long is the emulator's affair"


# -- engines -------------------------------------------------------------------------------------------------


class Runner(Bare):
    """One instruction at a time, of either width, in a page that is #UD behind it and cannot be written."""

    def __init__(self, *, tuned: bool) -> None:
        super().__init__(count_blocks=True, tuned=tuned)
        self.ram.writable.q[L1 << 9 | CODE] &= ~PTE_RW
        self.ram.writable.raw[at(CODE) : at(CODE_2)] = b"\x0f\x0b" * 2048

    def one(
        self, code: bytes, width: int = 64, operand: int = at(DATA, 0x800), stack: int | None = None
    ) -> Exit | None:
        """The exit that one instruction leads to: RIP from its start. None if it goes on too long.

        All registers hold the operand's address, RSP if it is given that.
        """
        self.ram.writable.raw[at(CODE) : at(CODE, 32)] = (code + b"\x0f\x0b" * 16)[:32]
        self.ram.writable.raw[at(DATA) : at(DATA + 1)] = bytes(4096)
        self.engine.invalidate_code(CODE)
        self.q[0:16] = memoryview(operand.to_bytes(8, "little") * 16).cast("Q")
        self.q[v.RIP] = at(CODE)
        if stack is not None:
            self.q[v.RSP] = stack
        self.width(width)
        self.vmcb.set_rflags(0x202)
        fpu.reset(self.engine.handle)
        self.sink.exits.clear()
        assert self.engine.budget is not None
        self.engine.budget.left[0] = 10_000
        self.engine.run()
        if not self.sink.exits:
            return None
        last = self.sink.exits[-1]
        return Exit(last.kind, last.rip - at(CODE), last.vector, last.error)

    def width(self, width: int) -> None:
        """Ring 3, 64-bit code or 32-bit code."""
        wide = width == 64
        self.vmcb.d[v.HFLAGS] = v.HF_BASE64 | 3 if wide else v.HF_BASE64 & ~v.HF_CS64 | 3
        self.vmcb.set_segment(
            v.CS, FLAT_RING3_CS64 if wide else 0x23, 0, 0xFFFF_FFFF, 0x00AF_FB00 if wide else 0x00CF_FB00
        )
        for segment in (v.SS, v.DS, v.ES):
            self.vmcb.set_segment(segment, FLAT_RING3_DS, 0, 0xFFFF_FFFF, 0x00CF_F300)


UNDEFINED = Exit("invalid", 0)


@pytest.fixture(scope="module")
def tuned() -> Iterator[Runner]:
    if unsuitable():
        pytest.skip(unsuitable())
    runner = Runner(tuned=True)
    yield runner
    runner.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[Runner]:
    runner = Runner(tuned=False)
    yield runner
    runner.close()


@pytest.fixture(params=["tuned", "plain"])
def engine(request: pytest.FixtureRequest) -> Runner:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Runner)
    return found


@pytest.mark.promise("C-12")
@pytest.mark.parametrize("width", [64, 32])
@_named(REFUSED)
def test_an_engine_refuses(engine: Runner, code: str, width: int) -> None:
    raw = bytes.fromhex(code)
    for prefix in range(3):  # at the start of a block, and behind other instructions
        found = engine.one(b"\x90" * prefix + raw, width)
        assert found == Exit("invalid", prefix)
        assert engine.ram.raw[at(CODE, prefix) : at(CODE, prefix + len(raw))] == raw


@pytest.mark.parametrize("width", [64, 32])
@_named([row for row in RUNS if row[0] not in ("REPZ RET", "LOCK BTS")])
def test_an_engine_runs(engine: Runner, code: str, width: int) -> None:
    raw = bytes.fromhex(code)
    assert engine.one(raw, width) == Exit("invalid", len(raw))


@pytest.mark.promise("C-12")
@pytest.mark.parametrize("width", [64, 32])
@_named(ALIGNED)
def test_a_tuned_engine_demands_alignment(tuned: Runner, code: str, width: int) -> None:
    raw = bytes.fromhex(code) + b"\x03" + (b"\x01" if code.endswith(("70", "3a0f")) else b"")
    assert tuned.one(raw, width) == Exit("invalid", len(raw))
    for offset in (1, 4, 8, 15):
        found = tuned.one(b"\x90" + raw, width, at(DATA, 0x800 + offset))
        assert found == Exit("exception", 1, Vector.GP)
    missing = tuned.one(raw, width, at(ABSENT))
    assert missing is not None
    assert missing.vector == Vector.PF
    assert tuned.one(raw, width, at(ABSENT, 8)) == Exit("exception", 0, Vector.GP), "not #PF: #GP comes first"
    assert tuned.one(b"\x0f\x10\x03", width, at(DATA, 0x801)) == Exit("invalid", 3), "MOVUPS need not be"


@pytest.mark.parametrize("width", [64, 32])
@pytest.mark.parametrize(("code", "size"), [row[1:] for row in SHORT], ids=[row[0] for row in SHORT])
def test_an_operand_is_as_long_as_it_is(tuned: Runner, code: str, size: int, width: int) -> None:
    """At the end of a page before one that is not there it is read, and gives what it gives elsewhere."""
    results = []
    # pxor xmm0, xmm0; pxor mm0, mm0; the instruction; movups [esp - 0x80], xmm0; movq [esp - 0x88], mm0
    raw = b"\x66\x0f\xef\xc0\x0f\xef\xc0" + bytes.fromhex(code)
    raw += b"\x0f\x11\x44\x24\x80\x0f\x7f\x84\x24\x78\xff\xff\xff"
    for operand in (at(ABSENT) - size, at(CODE_2, 0x400)):
        tuned.ram.writable.raw[operand : operand + size] = bytes(range(0x41, 0x41 + size))
        found = tuned.one(raw, width, operand, at(DATA, 0xF00))
        assert found == Exit("invalid", len(raw))
        results.append(bytes(tuned.ram.raw[at(DATA, 0xE78) : at(DATA, 0xE90)]))
    assert results[0] == results[1] != bytes(24)
    fault = tuned.one(bytes.fromhex(code), width, at(ABSENT) - size + 1)
    assert (fault and fault.vector) == Vector.PF


@pytest.mark.promise("C-12")
@pytest.mark.parametrize("width", [64, 32])
def test_native_code_and_tables_agree(tuned: Runner, plain: Runner, width: int) -> None:
    """Each opcode of each map with each prefix: refused where `examine` says so, else as without tuning."""
    tail = b"\x90\x90\x90\x90\x90\x90"
    seed = width
    for escape, opcode in itertools.product((b"", b"\x0f", b"\x0f\x38", b"\x0f\x3a"), range(256)):
        if not escape and opcode in _NOT_ALONE:
            continue
        for prefix in (b"", b"\x66", b"\xf3", b"\xf2", b"\xf0", b"\x66\xf3", b"\x3e\xf2"):
            seed = seed * 1103515245 + 12345 & 0x7FFF_FFFF
            modrm = seed >> 16 & 0x38 | 1 | (0xC0 if seed >> 23 & 1 else 0)
            code = prefix + escape + bytes([opcode, modrm]) + tail
            refused = examine(code, width) is Verdict.REFUSED
            assert tuned.one(code, width) == (UNDEFINED if refused else plain.one(code, width)), code.hex()


_NOT_ALONE = frozenset(
    bytes.fromhex("0f 26 2e 36 3e 64 65 66 67 f0 f2 f3 40 41 42 43 44 45 46 47 48 49 4a 4b 4c 4d 4e 4f")
    + bytes.fromhex("70 71 72 73 74 75 76 77 78 79 7a 7b 7c 7d 7e 7f e0 e1 e2 e3 e8 e9 eb ea 9a")
    + bytes.fromhex("c2 c3 c8 ca cb cc cd ce cf 9b")
)
"""Prefixes, and what leads elsewhere or (WAIT) depends on what was before."""


def test_changing_any_byte_of_a_refused_instruction_is_seen(engine: Runner) -> None:
    """LOCK ADD to a register becomes LOCK ADD to memory by its last byte."""
    refused, lock_add = b"\xf0\x01\xc3", b"\xf0\x01\x03"
    engine.width(64)
    # mov byte ptr [rip + 0x1000 - 7 + 2], 0x03: the byte two behind the next page's start
    patch = b"\xc6\x05\xfb\x0f\x00\x00\x03"
    base = at(CODE_2)
    engine.ram.writable.raw[base : base + 5] = refused + b"\x0f\x0b"
    jump = b"\xe9" + (0x1000 - len(patch) - 5).to_bytes(4, "little")
    for _ in range(2):
        engine.ram.writable.raw[base + 2] = 0xC3
        engine.engine.invalidate_code(CODE_2)
        engine.sink.exits.clear()
        engine.q[v.RIP] = base
        engine.width(64)
        engine.engine.run()
        assert engine.sink.exits[-1] == Exit("invalid", base)
        found = engine.one(patch + jump)
        assert found == Exit("invalid", 0x1000 + len(lock_add))


def test_a_page_fault_comes_before_a_refusal_that_needs_the_missing_byte(engine: Runner) -> None:
    """And a refusal that is decided does not look at the next page."""
    end = at(DATA)
    for code, expected in (
        (b"\xf0\x01", Exit("exception", end - 2, Vector.PF, 0x15)),
        (b"\xf0", Exit("exception", end - 1, Vector.PF, 0x15)),
        (b"\xc7", Exit("exception", end - 1, Vector.PF, 0x15)),
        (b"\x66\x0f\x79", Exit("invalid", end - 3)),
        (b"\xf0\x01\xc0", Exit("invalid", end - 3)),
        (b"\xf0\x89", Exit("invalid", end - 2)),
        (b"\xf0\x90", Exit("invalid", end - 2)),
        (b"\xc5", Exit("invalid", end - 1)),
    ):
        engine.ram.writable.raw[end - 16 : end] = b"\x90" * (16 - len(code)) + code
        engine.engine.invalidate_code(CODE_2)
        engine.sink.exits.clear()
        engine.width(64)
        engine.q[v.RIP] = end - len(code)
        engine.engine.run()
        assert engine.sink.exits[-1] == expected, code.hex()


def test_a_refused_instruction_may_be_entered_in_its_middle(engine: Runner) -> None:
    """F0 89 C0 is refused; entered behind its prefix it is a MOV."""
    assert engine.one(b"\xf0\x89\xc0") == UNDEFINED
    assert engine.one(b"\xeb\x01\xf0\x89\xc0") == Exit("invalid", 5)
    assert engine.one(b"\xeb\x00\xf0\x89\xc0") == Exit("invalid", 2)


def test_too_long_an_instruction_is_a_general_protection_fault(engine: Runner) -> None:
    assert engine.one(b"\x66" * 15 + b"\x90") == Exit("exception", 0, Vector.GP)
    assert engine.one(b"\x66" * 14 + b"\x90") == Exit("invalid", 15)
    assert engine.one(b"\xf0" * 14 + b"\x01\xc0") == Exit("exception", 0, Vector.GP)
    assert engine.one(b"\xf0" * 13 + b"\x89\xc0") == UNDEFINED


def test_plain_engines_beside_tuned_ones_stay_as_they_are(tuned: Runner, plain: Runner) -> None:
    assert tuned.one(b"\x0f\x28\x03", operand=at(DATA, 0x801)) == Exit("exception", 0, Vector.GP)
    assert plain.one(b"\x0f\x28\x03", operand=at(DATA, 0x801)) == Exit("invalid", 3)


@pytest.mark.promise("C-12")
def test_no_feature_that_is_refused_is_offered() -> None:
    """The tables are made for the CPUID policy: whoever offers more must take it out of them."""
    offered = {name for bits in SHOWN.values() for name in bits}
    refused = {"AVX", "FMA", "BMI1", "RTM", "MONITOR", "VMX", "SMAP", "XSAVE", "SVM", "PKU", "SSE4A"}
    assert not offered & refused
