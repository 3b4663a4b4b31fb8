# SPDX-License-Identifier: GPL-2.0-only
"""What gdb is told of a guest's processor: its registers, by name, size and place (GDB manual, appendix G).

The features and the names of their registers are gdb's (G.5, i386 and amd64); the order in which registers
are described is that of the packets that carry all of them. Two features are pyhv's own: what only the
hypervisor knows of a vCPU cannot be written.
"""

from collections.abc import Callable
from typing import Final, NamedTuple

from pyhv.cpu.registers import Registers
from pyhv.traps.guestcpu import IRET_FLAGS

_SEGMENTS: Final = ("cs", "ss", "ds", "es", "fs", "gs")
_EMPTY: Final = 3
_ST_SIZE: Final = 10


class TargetRegister(NamedTuple):
    """One register: how gdb is told of it, how it is read, and how it is written (None: it cannot be)."""

    name: str
    bits: int
    kind: str
    read: Callable[[Registers], int]
    write: Callable[[Registers, int], None] | None


def _plain(name: str, bits: int, kind: str = "", attribute: str = "") -> TargetRegister:
    field, mask = attribute or name, (1 << bits) - 1

    def write(registers: Registers, value: int) -> None:
        setattr(registers, field, value)

    return TargetRegister(
        name, bits, kind or f"int{bits}", lambda registers: getattr(registers, field) & mask, write
    )


def _selector(name: str) -> TargetRegister:
    return TargetRegister(name, 32, "int32", lambda registers: getattr(registers, name).selector, None)


def _base(segment: str) -> TargetRegister:
    def write(registers: Registers, value: int) -> None:
        getattr(registers, segment).base = value

    return TargetRegister(
        f"{segment}_base", 64, "int64", lambda registers: getattr(registers, segment).base, write
    )


def _stack(number: int) -> TargetRegister:
    def write(registers: Registers, value: int) -> None:
        registers.fpu.st[number] = value.to_bytes(_ST_SIZE, "little")

    return TargetRegister(
        f"st{number}", 80, "i387_ext", lambda found: int.from_bytes(found.fpu.st[number], "little"), write
    )


def _vector(number: int) -> TargetRegister:
    def write(registers: Registers, value: int) -> None:
        registers.fpu.xmm[number] = value.to_bytes(16, "little")

    return TargetRegister(
        f"xmm{number}", 128, "vec128", lambda found: int.from_bytes(found.fpu.xmm[number], "little"), write
    )


def _fpu(name: str, field: str, bits: int = 32) -> TargetRegister:
    widest = {"fcw": 16, "fsw": 16, "fop": 11, "fcs": 16, "fds": 16}.get(field, 32)

    def write(registers: Registers, value: int) -> None:
        setattr(registers.fpu, field, value & (1 << widest) - 1)

    return TargetRegister(name, bits, "int", lambda found: getattr(found.fpu, field) & (1 << bits) - 1, write)


def full_tags(registers: Registers) -> int:
    """The x87 tag word of two bits a register, of which the processor keeps but "empty" (Intel SDM vol. 1,
    8.1.7)."""
    fpu = registers.fpu
    top, word = fpu.fsw >> 11 & 7, 0
    for physical in range(8):
        tag = _EMPTY
        if fpu.ftw >> physical & 1:
            value = int.from_bytes(fpu.st[(physical - top) & 7], "little")
            exponent, significand = value >> 64 & 0x7FFF, value & (1 << 64) - 1
            if exponent == 0x7FFF or ((exponent or significand) and not significand >> 63):
                tag = 2
            else:
                tag = 0 if significand else 1
        word |= tag << 2 * physical
    return word


def _set_tags(registers: Registers, word: int) -> None:
    registers.fpu.ftw = sum(1 << n for n in range(8) if word >> 2 * n & 3 != _EMPTY)


def _set_mxcsr(registers: Registers, value: int) -> None:
    registers.fpu.mxcsr = value & 0xFFFF


_FLAGS: Final = {
    "CF": 0, "PF": 2, "AF": 4, "ZF": 6, "SF": 7, "TF": 8, "IF": 9, "DF": 10, "OF": 11, "NT": 14, "RF": 16,
    "VM": 17, "AC": 18, "VIF": 19, "VIP": 20, "ID": 21,
}  # fmt: skip


def _set_rflags(registers: Registers, value: int) -> None:
    registers.rflags = registers.rflags & ~IRET_FLAGS | value & IRET_FLAGS


_EFLAGS: Final = TargetRegister(
    "eflags", 32, "i386_eflags", lambda found: found.rflags & 0xFFFF_FFFF, _set_rflags
)
_X87: Final = (
    *(_stack(number) for number in range(8)),
    _fpu("fctrl", "fcw"),
    _fpu("fstat", "fsw"),
    TargetRegister("ftag", 32, "int", full_tags, _set_tags),
    _fpu("fiseg", "fcs"),
    _fpu("fioff", "fip"),
    _fpu("foseg", "fds"),
    _fpu("fooff", "fdp"),
    _fpu("fop", "fop"),
)
_MXCSR: Final = TargetRegister("mxcsr", 32, "i386_mxcsr", lambda found: found.fpu.mxcsr, _set_mxcsr)


class Target:
    """The processor of guests of one width."""

    def __init__(self, architecture: str, features: dict[str, tuple[TargetRegister, ...]]) -> None:
        self.features = features
        self.registers = [register for registers in features.values() for register in registers]
        """By number."""
        self.xml = _describe(architecture, features).encode()


def _describe(architecture: str, features: dict[str, tuple[TargetRegister, ...]]) -> str:
    lines = ['<?xml version="1.0"?>', '<!DOCTYPE target SYSTEM "gdb-target.dtd">', '<target version="1.0">']
    lines.append(f"<architecture>{architecture}</architecture>")
    for feature, registers in features.items():
        lines.append(f'<feature name="{feature}">')
        lines += _TYPES.get(feature.rsplit(".", 1)[-1], [])
        lines += [f'<reg name="{one.name}" bitsize="{one.bits}" type="{one.kind}"/>' for one in registers]
        lines.append("</feature>")
    return "\n".join([*lines, "</target>", ""])


_TYPES: Final = {
    "core": [
        '<flags id="i386_eflags" size="4">',
        *(f'<field name="{name}" start="{bit}" end="{bit}"/>' for name, bit in _FLAGS.items()),
        "</flags>",
    ],
    "sse": [
        '<vector id="v4f" type="ieee_single" count="4"/>',
        '<vector id="v2d" type="ieee_double" count="2"/>',
        '<vector id="v16i8" type="int8" count="16"/>',
        '<vector id="v8i16" type="int16" count="8"/>',
        '<vector id="v4i32" type="int32" count="4"/>',
        '<vector id="v2i64" type="int64" count="2"/>',
        '<union id="vec128">',
        *(
            f'<field name="{name}" type="{kind}"/>'
            for name, kind in (
                ("v4_float", "v4f"),
                ("v2_double", "v2d"),
                ("v16_int8", "v16i8"),
                ("v8_int16", "v8i16"),
                ("v4_int32", "v4i32"),
                ("v2_int64", "v2i64"),
                ("uint128", "uint128"),
            )
        ),
        "</union>",
        '<flags id="i386_mxcsr" size="4">',
        *(
            f'<field name="{name}" start="{bit}" end="{bit}"/>'
            for bit, name in enumerate(
                ["IE", "DE", "ZE", "OE", "UE", "PE", "DAZ", "IM", "DM", "ZM", "OM", "UM", "PM"]
            )
        ),
        '<field name="FZ" start="15" end="15"/>',
        "</flags>",
    ],
}
_WIDE: Final = ("rax", "rbx", "rcx", "rdx", "rsi", "rdi", "rbp", "rsp", *(f"r{n}" for n in range(8, 16)))
_NARROW: Final = ("eax", "ecx", "edx", "ebx", "esp", "ebp", "esi", "edi")
_POINTERS: Final = {"rip": "code_ptr", "rsp": "data_ptr", "rbp": "data_ptr"}

TARGETS: Final = {
    64: Target(
        "i386:x86-64",
        {
            "org.gnu.gdb.i386.core": (
                *(_plain(name, 64, _POINTERS.get(name, "")) for name in (*_WIDE, "rip")),
                _EFLAGS,
                *(_selector(name) for name in _SEGMENTS),
                *_X87,
            ),
            "org.gnu.gdb.i386.sse": (*(_vector(number) for number in range(16)), _MXCSR),
            "org.gnu.gdb.i386.segments": (_base("fs"), _base("gs")),
        },
    ),
    32: Target(
        "i386",
        {
            "org.gnu.gdb.i386.core": (
                *(
                    _plain(name, 32, _POINTERS.get("r" + name[1:], ""), "r" + name[1:])
                    for name in (*_NARROW, "eip")
                ),
                _EFLAGS,
                *(_selector(name) for name in _SEGMENTS),
                *_X87,
            ),
            "org.gnu.gdb.i386.sse": (*(_vector(number) for number in range(8)), _MXCSR),
            "org.pyhv.segments": (_base("fs"), _base("gs")),
        },
    ),
}
"""By the width of a guest's registers."""
