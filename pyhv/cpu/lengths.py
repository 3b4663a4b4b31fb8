# SPDX-License-Identifier: GPL-2.0-only
"""How long an instruction is (Intel SDM volume 2, chapter 2 and appendix A): where those of a block begin.

    prefixes  opcode (in one of four maps)  ModRM  SIB  displacement  immediate

Asked of instructions that run. What is said of an undefined one does not matter, since it ends its block, nor
what of a branch with an operand-size prefix, for the same reason.
"""

import functools
from typing import Final

from pyhv.cpu.opcodes import MAPS, Prefix, listed, prefix_kinds

_NO_MODRM: Final = (
    "04-07 0C-0F 14-17 1C-1F 24-27 2C-2F 34-37 3C-61 64-68 6A 6C-7F 90-BF C2 C3 C8-CF D4-D7 E0-FD",
    "0F 05-09 0B 0E 30-37 77 80-8F A0-A2 A8-AA C8-CF",
)
"""Opcodes without ModRM byte."""
_EXCEPT: Final = "F6 F7"
_ONE: Final = (
    "04 0C 14 1C 24 2C 34 3C 6A 6B 70-7F 80 82 83 A8 B0-B7 C0 C1 C6 CD D4 D5 E0-E7 EB",
    "0F 0F 70-73 A4 AC BA C2 C4-C6",
    "0F3A 00-FF",
)
"""An immediate of one byte follows."""
_TWO: Final = ("C2 CA",)
_THREE: Final = ("C8",)
_OPERAND: Final = ("05 0D 15 1D 25 2D 35 3D 68 69 81 A9 C7 E8 E9", "0F 80-8F")
"""An immediate of the operand's size, but no more than 4 bytes."""
_WHOLE: Final = ("B8-BF",)
"""... or of all of it."""
_ADDRESS: Final = ("A0-A3",)
_FAR: Final = ("9A EA",)
_GROUP_3: Final = {0xF6: 0x01, 0xF7: 0x08}
"""TEST, the first two forms of the group, has an immediate: of which kind."""

_MODRM: Final = 0x80
_SIZE_OF_OPERAND, _ALL_OF_OPERAND, _SIZE_OF_ADDRESS, _FAR_POINTER = 0x08, 0x10, 0x20, 0x40
_REGISTER_MOVES: Final = range(0x20, 0x24)
"""0F opcodes: MOV of control and debug registers, to which ModRM always names a register."""


@functools.cache
def _forms() -> tuple[bytes, ...]:
    """For each map and opcode: whether there is a ModRM byte, and the immediate's kind or bytes."""
    forms = [bytearray(b"\x80" * 256) for _ in MAPS]
    for text in _NO_MODRM:
        number, found = listed(text)
        for opcode in found:
            forms[number][opcode] = 0
    for opcode in listed(_EXCEPT)[1]:
        forms[0][opcode] = _MODRM
    for kind, texts in (
        (1, _ONE), (2, _TWO), (3, _THREE), (_SIZE_OF_OPERAND, _OPERAND), (_ALL_OF_OPERAND, _WHOLE),
        (_SIZE_OF_ADDRESS, _ADDRESS), (_FAR_POINTER, _FAR),
    ):  # fmt: skip
        for text in texts:
            number, found = listed(text)
            for opcode in found:
                forms[number][opcode] |= kind
    return tuple(bytes(one) for one in forms)


def length(code: bytes, width: int, start: int = 0) -> int:
    """Length of the instruction at `start`, in 64- or 32-bit code; if `code` breaks it off, not less than is
    left, and never 0."""
    kinds, forms = prefix_kinds(width), _forms()
    end = len(code)
    at, data, short, wide = start, False, False, False
    while at < end and (kind := kinds[byte := code[at]]):
        wide = byte & 0xF8 == 0x48 and kind == Prefix.OTHER.value  # REX.W, if it is the last
        data = data or byte == 0x66
        short = short or byte == 0x67
        at += 1
    if at + 1 >= end:
        return max(end - start, 1) + (at >= end)
    opcode, number = code[at], 0
    at += 1
    if opcode == 0x0F:
        opcode, number = code[at], 1
        at += 1
        if opcode in (0x38, 0x3A) and at < end:
            opcode, number = code[at], 2 if opcode == 0x38 else 3
            at += 1
    form = forms[number][opcode]
    if form & _MODRM and at < end:
        modrm = code[at]
        if number == 0 and opcode in _GROUP_3 and modrm & 0x30 == 0:
            form |= _GROUP_3[opcode]
        at += 1
        if modrm < 0xC0 and not (number == 1 and opcode in _REGISTER_MOVES):
            at += _memory(modrm, code[at] if at < end else 0, words=short and width == 32)
    if not form & ~_MODRM:
        return at - start
    operand = 2 if data and not wide else 4
    if form & _ALL_OF_OPERAND:
        at += 8 if wide else operand
    elif form & _SIZE_OF_OPERAND:
        at += operand
    elif form & _SIZE_OF_ADDRESS:
        at += width // 8 >> short
    elif form & _FAR_POINTER:
        at += operand + 2
    else:
        at += form & 3
    return at - start


def _memory(modrm: int, sib: int, *, words: bool) -> int:
    """Bytes of SIB and displacement behind ModRM of a memory operand; `words`: addresses have 16 bits."""
    mod, rm = modrm >> 6, modrm & 7
    if words:
        return 2 if mod == 2 or (mod == 0 and rm == 6) else mod
    if mod:
        return (rm == 4) + (1 if mod == 1 else 4)
    if rm == 4:
        return 5 if sib & 7 == 5 else 1
    return 4 if rm == 5 else 0
