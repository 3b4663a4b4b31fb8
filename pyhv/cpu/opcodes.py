# SPDX-License-Identifier: GPL-2.0-only
"""Encodings that the processor of a guest refuses with #UD although the emulator would execute them, and
memory operands that must be aligned although the emulator does not look, or of which it reads too much.

The emulator decodes for a processor of its own, which is neither ours nor any other: it runs VEX-coded
instructions as the SSE instructions that they resemble, XBEGIN as a MOV, ignores LOCK where that is not
allowed, and knows AMD's SSE4A. What is right is told by the opcode maps (Intel SDM volume 2, appendix A, the
instruction pages' columns "NP", "66", "F3", "F2", and "LOCK" in chapter 3) for the CPUID that a guest is
shown (`cpuid.py`). `REFUSALS`, `LOCKABLE`, `ALIGNED` and `SHORT` say it in those words; `table` puts it into
one word for each map, prefix and opcode; `examine` reads that word as a processor reads an instruction. The
native code that does the same while the emulator translates (`tuning/refusals.py`) uses the same table.

What the emulator refuses by itself may be in the tables or not, it makes no difference.
"""

import functools
from enum import Enum
from typing import Final, NamedTuple

import numpy as np

MAX_LENGTH: Final = 15
"""Longest instruction; a longer one is #GP(0), which the emulator knows."""
MAPS: Final = ("", "0F", "0F38", "0F3A")
"""Opcode maps, in the order of the table: one-byte, two-byte, and the two three-byte ones."""
PREFIXES: Final = ("", "66", "F3", "F2")
"""Mandatory prefixes, in the order of the table. F3 and F2 count more than 66."""
_ANY: Final = " ".join(("NP", *PREFIXES[1:]))
_ALL: Final = "01234567"


class Verdict(Enum):
    """What `examine` says of an instruction; the last three, of its memory operand."""

    RUNS = 0
    MUST_BE_ALIGNED = 1
    """#GP(0) at any other address than a multiple of 16."""
    READS_8 = 2
    READS_4 = 3
    REFUSED = 4


class Refusal(NamedTuple):
    """Encodings that are #UD: `opcodes` of one map, with one of `prefixes` (NP is none of the three).

    `memory` and `register` are the values of ModRM's reg field for which the form with a memory operand,
    and that with a register, is refused. `width` is 64 or 32 if only that kind of code refuses it.
    """

    why: str
    opcodes: str
    prefixes: str = _ANY
    memory: str = ""
    register: str = ""
    width: int = 0


_SSE: Final = "0F 10-17 28-2F 50-7F C2 C4-C6 D0-FE"
_SSE_F3: Final = "0F 10-12 16 2A 2C 2D 51-53 58-5F 6F 70 7E 7F C2 D6 E6"
_SSE_F2: Final = "0F 10-12 2A 2C 2D 51 58-5A 5C-5F 70 7C 7D C2 D0 D6 E6 F0"
_CRC32: Final = "0F38 F0 F1"

REFUSALS: Final = (
    Refusal("VEX: there is no AVX, BMI or FMA", "C4 C5", memory=_ALL, register=_ALL, width=64),
    Refusal("VEX: there is no AVX, BMI or FMA", "C4 C5", register=_ALL, width=32),
    Refusal("group 1A is POP alone; XOP is AMD's", "8F", memory="1234567", register="1234567"),
    Refusal("XABORT, XBEGIN: there is no RTM", "C6 C7", register="7"),
    Refusal("VMX, MONITOR, MWAIT, SMAP, XSAVE, SVM, PKU: none of them", "0F 01", register="01235"),
    Refusal("SYSRET is Intel's, for 64-bit code alone", "0F 07", memory=_ALL, register=_ALL, width=32),
    Refusal("there is no CR1, CR5, CR6, CR7", "0F 20 22", memory="1567", register="1567"),
    Refusal("MOVLPD and MOVHPD move to and from memory", "0F 12 16", "66", register=_ALL),
    Refusal("MOVNTSS, MOVNTSD: SSE4A is AMD's", "0F 2B", "F3 F2", memory=_ALL, register=_ALL),
    Refusal("MOVMSKPS and MOVMSKPD read a register", "0F 50", memory=_ALL),
    Refusal("shifts by a constant have a register operand", "0F 71-73", memory=_ALL),
    Refusal("EXTRQ, INSERTQ: SSE4A is AMD's", "0F 78 79", memory=_ALL, register=_ALL),
    Refusal("FXSAVE, FXRSTOR, LDMXCSR, STMXCSR and fences have no prefix", "0F AE", "66 F3 F2",
            memory="0123", register="567"),
    Refusal("MOVNTI has no prefix", "0F C3", "66 F3 F2", memory=_ALL, register=_ALL),
    Refusal("MOVQ2DQ and MOVDQ2Q have no memory operand", "0F D6", "F3 F2", memory=_ALL),
)  # fmt: skip
"""Beside these, SSE opcodes without a form for F3 or F2 are refused with it, whatever a 66 before it might
make of them: see `table`."""

LOCKABLE: Final = {
    "00 01 08 09 10 11 18 19 20 21 28 29 30 31": _ALL,  # ADD OR ADC SBB AND SUB XOR
    "80-83": "0123456",  # the same by a constant, but not CMP
    "86 87": _ALL,  # XCHG
    "F6 F7": "23",  # NOT NEG
    "FE FF": "01",  # INC DEC
    "0F AB B3 BB": _ALL,  # BTS BTR BTC
    "0F BA": "567",  # the same by a constant
    "0F B0 B1 C0 C1": _ALL,  # CMPXCHG XADD
    "0F C7": "1",  # CMPXCHG8B CMPXCHG16B
}
"""What LOCK may precede, if the operand is in memory, by ModRM's reg field; all else is #UD."""

ALIGNED: Final = (
    ("NP", "0F 14 15 28 29 2B 51-59 5B-5F C2 C6"),
    ("66", "0F 14 15 28 29 2B-2D 51 54-6D 6F 70 74-76 7C 7D 7F C2 C6 D0-D5 D8-EF F1-F6 F8-FE"),
    ("F3", "0F 12 16 5B 70"),
    ("F2", "0F 70 7C 7D D0 E6"),
    ("66", "0F38 00-0B 10 14 15 17 1C-1E 28-2B 37-41 DB-DF"),
    ("66", "0F3A 08 09 0C-0F 40-42 44 DF"),
)
"""SSE instructions whose memory operand of 16 bytes must be aligned, else #GP(0). (FXSAVE, FXRSTOR and
CMPXCHG16B must as well; there the emulator looks by itself.)"""

SHORT: Final = (
    (8, "NP", "0F 2C 2D 5A"),  # CVTTPS2PI CVTPS2PI CVTPS2PD
    (8, "F3", "0F E6"),  # CVTDQ2PD
    (8, "66", "0F3A 0B"),  # ROUNDSD
    (4, "66", "0F3A 0A"),  # ROUNDSS
    (4, "NP", "0F 60-62"),  # PUNPCKLBW PUNPCKLWD PUNPCKLDQ of MMX registers
)
"""Memory operands of so many bytes, of which the emulator reads 16 (8 for MMX registers): those behind the
operand may be on a page that is not there."""

REFUSED_BITS: Final = 0xFFFF
"""Bit n of a word: the memory form with reg field n is refused; bit 8 + n: the register form."""
LOCKABLE_SHIFT: Final = 16
"""Bit 16 + n: LOCK may precede the memory form with reg field n."""
OPERAND_SHIFT: Final = 24
"""Above it, the `Verdict` on the memory form of an instruction that runs."""


def listed(text: str) -> tuple[int, list[int]]:
    """`0F 10-12 16` as (map, opcodes)."""
    words = text.split()
    number = MAPS.index(words[0]) if words[0] in MAPS else 0
    found: list[int] = []
    for word in words[number > 0 :]:
        first, _, last = word.partition("-")
        found += range(int(first, 16), int(last or first, 16) + 1)
    return number, found


def _regs(digits: str) -> int:
    return sum(1 << int(digit) for digit in digits)


@functools.cache
def table(width: int) -> np.ndarray[tuple[int, int, int], np.dtype[np.uint32]]:
    """The word of each encoding in 64- or 32-bit code: `table(width)[map, prefix, opcode]`."""
    words = np.zeros((len(MAPS), len(PREFIXES), 256), np.uint32)
    everything = np.uint32(REFUSED_BITS)
    for name, allowed in (("F3", _SSE_F3), ("F2", _SSE_F2)):
        prefix = PREFIXES.index(name)
        words[1, prefix, listed(_SSE)[1]] = everything
        words[1, prefix, listed(allowed)[1]] = 0
        words[2:, prefix] = everything
        words[2, prefix, listed(_CRC32)[1]] = 0 if name == "F2" else everything
    for refusal in REFUSALS:
        if refusal.width in (0, width):
            number, opcodes = listed(refusal.opcodes)
            for name in refusal.prefixes.split():
                prefix = PREFIXES.index(name.removeprefix("NP"))
                words[number, prefix, opcodes] |= np.uint32(
                    _regs(refusal.memory) | _regs(refusal.register) << 8
                )
    for text, digits in LOCKABLE.items():
        number, opcodes = listed(text)
        words[number, :, opcodes] |= np.uint32(_regs(digits) << LOCKABLE_SHIFT)
    for name, text in ALIGNED:
        number, opcodes = listed(text)
        verdict = np.uint32(Verdict.MUST_BE_ALIGNED.value << OPERAND_SHIFT)
        words[number, PREFIXES.index(name.removeprefix("NP")), opcodes] |= verdict
    for size, name, text in SHORT:
        number, opcodes = listed(text)
        verdict = np.uint32((Verdict.READS_8 if size == 8 else Verdict.READS_4).value << OPERAND_SHIFT)
        words[number, PREFIXES.index(name.removeprefix("NP")), opcodes] |= verdict
    words.flags.writeable = False
    return words


class Prefix(Enum):
    """What a byte before the opcode is; the value is the bit that the native decoder keeps of it."""

    NONE = 0
    """No prefix: the opcode begins here."""
    DATA = 1
    REPZ = 2
    REPNZ = 4
    LOCK = 8
    OTHER = 16
    """Segment and address size, and REX in 64-bit code: they change no verdict."""


_PREFIX_BYTES: Final = {
    0x66: Prefix.DATA, 0xF3: Prefix.REPZ, 0xF2: Prefix.REPNZ, 0xF0: Prefix.LOCK, 0x67: Prefix.OTHER,
    **dict.fromkeys((0x26, 0x2E, 0x36, 0x3E, 0x64, 0x65), Prefix.OTHER),
}  # fmt: skip
_REX: Final = dict.fromkeys(range(0x40, 0x50), Prefix.OTHER)


@functools.cache
def prefix_kinds(width: int) -> bytes:
    """The value of `Prefix` for each byte."""
    known = _PREFIX_BYTES | _REX if width == 64 else _PREFIX_BYTES
    return bytes(known.get(byte, Prefix.NONE).value for byte in range(256))


def examine(code: bytes, width: int = 64) -> Verdict:
    """The verdict on the first instruction of `code`, which needs not be longer than what decides it.

    An instruction that `code` breaks off, or that is too long, RUNS: it is for the emulator to fault.
    """
    return judge(code, width)[0]


def judge(code: bytes, width: int) -> tuple[Verdict, int]:
    """`examine`, and how many bytes had to be looked at."""
    seen, at, kinds = 0, 0, prefix_kinds(width)
    code = code[:MAX_LENGTH]
    while at < len(code) and kinds[code[at]]:
        seen |= kinds[code[at]]
        at += 1
    number = 0
    if code[at : at + 1] == b"\x0f":
        at += 1
        if code[at : at + 1] in (b"\x38", b"\x3a"):
            number = 2 if code[at] == 0x38 else 3
            at += 1
        else:
            number = 1
    if at >= len(code):
        return Verdict.RUNS, at
    prefix = 2 if seen & Prefix.REPZ.value else 3 if seen & Prefix.REPNZ.value else seen & Prefix.DATA.value
    word = int(table(width)[number, prefix, code[at]])
    locked = bool(seen & Prefix.LOCK.value)
    at += 1
    if word & REFUSED_BITS == REFUSED_BITS or (locked and not word >> LOCKABLE_SHIFT & 0xFF):
        return Verdict.REFUSED, at
    if (not word and not locked) or at >= len(code):
        return Verdict.RUNS, at
    modrm = code[at]
    at += 1
    reg, is_register = modrm >> 3 & 7, modrm >= 0xC0
    if word >> reg + 8 * is_register & 1 or (
        locked and (is_register or not word >> LOCKABLE_SHIFT + reg & 1)
    ):
        return Verdict.REFUSED, at
    return (Verdict.RUNS if is_register else Verdict(word >> OPERAND_SHIFT)), at
