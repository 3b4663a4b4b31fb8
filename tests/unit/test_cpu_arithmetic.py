# SPDX-License-Identifier: GPL-2.0-only
"""What guests compute is what the host's processor computes: results, MXCSR, x87 status word and RFLAGS."""

import ctypes
import mmap
import platform
import struct
from collections.abc import Callable, Iterator

import arithmetic_table as table
import numpy as np
import pytest
from arithmetic_table import CASE, OUTCOME, Row
from bare_engine import DATA, L1, USER, Bare, at

from pyhv.abi.x86 import PTE_NX
from pyhv.cpu import vmcb as v
from pyhv.cpu.assembling import new_assembler
from pyhv.cpu.ram import Ram
from pyhv.cpu.tuning.gate import tuning
from pyhv.cpu.tuning.helpers import host_has

pytestmark = pytest.mark.skipif(
    platform.machine() != "x86_64" or not host_has("sse4_2") or not host_has("aes"),
    reason="the host's own unit is the oracle",
)
CASES_AT, FRAMES = 64, 512
CHUNK = 2800
"""Cases at a time: they and their outcomes fit into the frames."""
MF, XM, GP = 16, 19, 13


class Native:
    """The host's processor."""

    def __init__(self) -> None:
        self._code = mmap.mmap(-1, mmap.PAGESIZE, prot=mmap.PROT_READ | mmap.PROT_WRITE | mmap.PROT_EXEC)
        self._memory = mmap.mmap(-1, CHUNK * (CASE + OUTCOME) + mmap.PAGESIZE)
        self._at = ctypes.addressof(ctypes.c_char.from_buffer(self._memory))
        self._call = ctypes.CFUNCTYPE(None, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)(
            ctypes.addressof(ctypes.c_char.from_buffer(self._code))
        )

    def __call__(self, code: bytes, cases: bytes, count: int) -> bytes:
        self._code[: len(code) + 1] = code + b"\xc3"
        outcomes = len(cases) + mmap.PAGESIZE - 1 & -mmap.PAGESIZE
        self._memory[: len(cases)] = cases
        self._call(self._at, self._at + outcomes, count)
        return self._memory[outcomes : outcomes + count * OUTCOME]

    def set_mxcsr(self, value: int) -> None:
        """Set this thread's MXCSR."""
        self(b"\x0f\xae\x17", struct.pack("<Q", value), 0)  # ldmxcsr [rdi]

    def mxcsr(self) -> int:
        """This thread's MXCSR."""
        self(b"\x0f\xae\x1f", bytes(8), 0)  # stmxcsr [rdi]
        return int.from_bytes(self._memory[:4], "little")


class Emulated:
    """A guest."""

    def __init__(self, *, tuned: bool) -> None:
        self.bare = bare = Bare(ram=Ram(FRAMES), tuned=tuned)
        for frame in range(CASES_AT, FRAMES):
            bare.ram.writable.q[L1 << 9 | frame] = at(frame) | USER | PTE_NX

    def __call__(self, code: bytes, cases: bytes, count: int) -> bytes:
        bare = self.bare
        outcomes = at(CASES_AT) + (len(cases) + 4095 & ~4095)
        bare.ram.writable.raw[at(CASES_AT) : at(CASES_AT) + len(cases)] = cases
        bare.q[v.RDI], bare.q[v.RSI], bare.q[v.RDX] = at(CASES_AT), outcomes, count
        assert bare.run(code + b"\x0f\x05").kind == "syscall"
        return bytes(bare.ram.raw[outcomes : outcomes + count * OUTCOME])


def fields(outcomes: bytes, count: int) -> dict[str, np.ndarray]:
    """What counts of outcomes; x87 registers that are empty are blank."""
    raw = np.frombuffer(outcomes, np.uint8).reshape(count, OUTCOME)
    words = raw.view(np.uint16)
    top = (words[:, 1] >> 11).astype(np.uint8)
    registers = raw[:, 32:160].reshape(count, 8, 16)[:, :, :10].copy()
    for number in range(8):
        registers[(raw[:, 4] >> (top + number & 7) & 1) == 0, number] = 0
    return {
        "status": words[:, 1], "tags": raw[:, 4], "mxcsr": raw[:, 24:28], "st": registers,
        "xmm": raw[:, 160:208], "flags": words[:, 232] & 0x8D5, "rax": raw[:, 472:480],
        "memory": raw[:, 480:496], "rcx": raw[:, 496:504],
    }  # fmt: skip


Machine = Callable[[bytes, bytes, int], bytes]


def differences(
    rows: Iterator[Row], first: Machine, second: Machine, names: set[str] | None = None
) -> list[str]:
    """Where two machines differ in the fields `names`, in words."""
    assembler = new_assembler()
    found = []
    for row in rows:
        code = bytes(assembler.asm(table.driver(row.code))[0])
        for start in range(0, len(row.cases), CHUNK):
            chunk = row.cases[start : start + CHUNK]
            count, cases = len(chunk), b"".join(chunk)
            expected, got = (fields(run(code, cases, count), count) for run in (first, second))
            for name, value in expected.items():
                wrong = (value != got[name]).reshape(count, -1).any(axis=1)
                if wrong.any() and (names is None or name in names):
                    at_first = int(wrong.argmax())
                    found.append(
                        f"{row.code}: {name} of {int(wrong.sum())} of {count}, first {chunk[at_first].hex()}:"
                        f" {value[at_first]} and not {got[name][at_first]}"
                    )
    return found


@pytest.fixture(scope="module")
def tuned() -> Iterator[Emulated]:
    if not tuning().active:
        pytest.skip(tuning().why_not)
    made = Emulated(tuned=True)
    yield made
    made.bare.close()


@pytest.fixture(scope="module")
def plain() -> Iterator[Emulated]:
    made = Emulated(tuned=False)
    yield made
    made.bare.close()


@pytest.mark.parametrize("rows", [table.sse_rows, table.x87_rows, table.integer_rows])
def test_a_guest_computes_what_the_host_computes(tuned: Emulated, rows: Callable[[], Iterator[Row]]) -> None:
    assert differences(rows(), Native(), tuned) == []


def usual(one: bytes) -> bool:
    """Whether a case has modes that programs use, and at most one NaN, in its scalar of either size."""
    mxcsr, *_, a, b = struct.unpack_from("<I12xQ8xQ", one)
    single = sum(n & 0x7FFFFFFF > 0x7F800000 for n in (a & 0xFFFFFFFF, b & 0xFFFFFFFF))
    double = sum(n & (1 << 63) - 1 > 0x7FF << 52 for n in (a, b))
    return mxcsr in table.ROUNDINGS and single < 2 and double < 2


def test_a_plain_engine_computes_the_same_but_for_flags(plain: Emulated) -> None:
    """Without tuning: results of SSE's scalars. What else differs is listed in docs/differences.md."""
    rows = [
        Row(row.code, [one for one in row.cases if usual(one)])
        for row in table.sse_rows()
        if row.code.split()[0].endswith(("ss", "sd", "si"))
    ]
    assert differences(iter(rows), Native(), plain, {"xmm", "flags", "rax", "rcx", "memory"}) == []


@pytest.fixture(params=["tuned", "plain"])
def either(request: pytest.FixtureRequest) -> Emulated:
    found = request.getfixturevalue(request.param)
    assert isinstance(found, Emulated)
    return found


def run(emulated: Emulated, source: str, data: bytes) -> tuple[int, bytes]:
    """Run code on the data page: the vector of the exception that ends it, -1 for the SYSCALL behind it."""
    bare = emulated.bare
    bare.ram.writable.raw[at(DATA) : at(DATA) + len(data)] = data
    code, _ = new_assembler().asm(source)
    end = bare.run(bytes(code) + b"\x0f\x05")
    return end.vector, bytes(bare.ram.raw[at(DATA) : at(DATA) + len(data)])


ONE, ZERO, TINY, HUGE, SIGNALLING = 0x3F800000, 0, 1, 0x7F7FFFFF, 0x7F800001


@pytest.mark.parametrize(
    ("operation", "first", "second", "bit"),
    [
        ("addss", SIGNALLING, ONE, 0), ("addss", TINY, ONE, 1), ("divss", ONE, ZERO, 2),
        ("mulss", HUGE, HUGE, 3), ("mulss", 0x00800001, 0x3F000000, 4), ("divss", ONE, 0x40400000, 5),
        ("cmpltss", SIGNALLING, ONE, 0), ("sqrtss", ONE, 0xBF800000, 0), ("roundss", ONE, 0x3F000000, 5),
    ],
)  # fmt: skip
def test_an_unmasked_exception_of_sse_is_a_fault(
    tuned: Emulated, operation: str, first: int, second: int, bit: int
) -> None:
    """#XM at the instruction, the destination as it was, the flag in MXCSR."""
    immediate = ", 0" if operation == "roundss" else ""
    code = f"ldmxcsr [rbx + 8]; movss xmm0, [rbx]; movss xmm1, [rbx + 4]; {operation} xmm0, xmm1{immediate}"
    for mxcsr, vector in ((0x1F80, -1), (0x1F80 & ~(0x80 << bit), XM)):
        assert run(tuned, code, struct.pack("<III", first, second, mxcsr))[0] == vector
        end, data = run(tuned, "movss [rbx], xmm0; stmxcsr [rbx + 8]", bytes(12))
        assert end == -1
        assert struct.unpack("<I", data[8:])[0] & 1 << bit
        if vector == XM:
            assert struct.unpack("<I", data[:4]) == (first,)


def test_an_unmasked_exception_of_x87_comes_with_the_next_instruction(tuned: Emulated) -> None:
    """#MF; the status word tells why, and what would have been the result is not there."""
    code = "fninit; fldcw [rbx]; fldz; fld1; fdiv st(0), st(1); fstp dword ptr [rbx + 4]"
    assert run(tuned, code, struct.pack("<HxxI", 0x37B, 7)) == (MF, struct.pack("<HxxI", 0x37B, 7))
    end, data = run(tuned, "fnstsw [rbx]; fnclex; fstp dword ptr [rbx + 4]; fninit", bytes(8))
    status, value = struct.unpack("<HxxI", data)
    assert end == -1
    assert status & 0x80BF == 0x8084
    assert value == ONE


def test_unmasking_what_has_come_up_already(tuned: Emulated) -> None:
    for following in (
        "fld1",
        "fxch st(1)",
        "fld tbyte ptr [rbx]",
        "fchs",
        "fstp st(1)",
        "fild dword ptr [rbx]",
        "fwait",
    ):
        code = f"fninit; fldz; fld1; fdiv st(0), st(1); fldcw [rbx]; {following}"
        assert run(tuned, code, struct.pack("<H", 0x37B))[0] == MF, following
    assert run(tuned, "fninit", b"")[0] == -1


def test_reserved_bits_of_mxcsr_are_a_fault(tuned: Emulated) -> None:
    code = "ldmxcsr [rbx]; stmxcsr [rbx + 4]"
    assert run(tuned, code, struct.pack("<II", 0x11F80, 0))[0] == GP
    assert run(tuned, code, struct.pack("<II", 0xFFFF, 0)) == (-1, struct.pack("<II", 0xFFFF, 0xFFFF))
    code = "ldmxcsr [rbx]; fxsave [rbx + 64]; or dword ptr [rbx + 88], 0x10000; fld1; fxrstor [rbx + 64]"
    assert run(tuned, code, struct.pack("<I", 0x1F81) + bytes(64 + 512 - 4))[0] == GP
    end, data = run(tuned, "stmxcsr [rbx]; fstp dword ptr [rbx + 4]; fninit", bytes(8))
    assert (end, struct.unpack("<II", data)) == (-1, (0x1F81, ONE))


def test_flags_are_loaded_and_cleared(either: Emulated) -> None:
    """LDMXCSR and FXRSTOR set the flags that they say, none of an earlier instruction's."""
    divide = "divss xmm0, xmm1"
    code = f"""ldmxcsr [rbx]; movss xmm0, [rbx + 4]; xorps xmm1, xmm1; {divide}; ldmxcsr [rbx]
        stmxcsr [rbx + 8]; fxsave [rbx + 64]; {divide}; fxrstor [rbx + 64]; stmxcsr [rbx + 12]
        fxsave [rbx + 64]"""
    for mxcsr in (0x1F80, 0x1F81, 0x1FBF):
        end, data = run(either, code, struct.pack("<IIII", mxcsr, ONE, 0, 0) + bytes(64 + 512 - 16))
        assert end == -1
        assert struct.unpack_from("<II", data, 8) == (mxcsr, mxcsr)
        assert struct.unpack_from("<I", data, 64 + 24) == (mxcsr,)


def test_flags_of_the_hosts_own_arithmetic_are_not_the_guests(tuned: Emulated) -> None:
    """The host's MXCSR and status word have all flags set when the guest comes."""
    dirty = (
        "push 0x1fbf; ldmxcsr [rsp]; pop rax; fninit; fldz; fld1; fdiv st(0), st(1); fstp st(0); fstp st(0)"
    )
    code, _ = new_assembler().asm(dirty)
    for mxcsr in (0x1F80, 0x1FA0):
        Native()(bytes(code), b"", 0)
        guest = "fninit; fld1; fld1; faddp; fnstsw [rbx + 4]; ldmxcsr [rbx]; addss xmm2, xmm2; stmxcsr [rbx]"
        end, data = run(tuned, f"xorps xmm2, xmm2; {guest}", struct.pack("<II", mxcsr, 0))
        assert (end, struct.unpack("<IH", data[:6])) == (-1, (mxcsr, 0x3800))
        Native()(b"\xdb\xe3", b"", 0)


def test_the_hosts_modes_are_its_own(tuned: Emulated) -> None:
    """A library of the host's has set flush-to-zero: that stays, and the guest does not notice."""
    native = Native()
    code = "ldmxcsr [rbx + 8]; movss xmm0, [rbx]; mulss xmm0, [rbx + 4]; movss [rbx], xmm0"
    native.set_mxcsr(0x9FC0)
    try:
        for _ in range(2):
            tiny = struct.pack("<III", 0x00800001, 0x3F000000, 0x1FA0)
            assert run(tuned, code, tiny)[1][:4] == struct.pack("<I", 0x00400000)
        assert native.mxcsr() & 0xFFC0 == 0x9FC0
    finally:
        native.set_mxcsr(0x1F80)
