# SPDX-License-Identifier: GPL-2.0-only
"""Instruction decoding for the few places that need it: privileged instructions, stores to page tables,
crash reports. The only importer of Capstone.

`privileged` recognizes by hand the dozen encodings that a PV kernel traps on, since the common ones occur
tens of thousands of times in a boot; `store` asks Capstone and remembers its answers by the bytes.
"""

import enum
import functools
import threading
from collections.abc import Sequence
from typing import Any, Final, NamedTuple

from pyhv.address import MASK64
from pyhv.cpu.opcodes import MAX_LENGTH
from pyhv.cpu.vmcb import RIP, SEG_BASE

_own: Final = threading.local()


def _decoder(width: int) -> Any:
    """This thread's own decoder of code of a width: they cannot be shared.

    Capstone is imported with the first of them: it brings its tables for all architectures, which takes
    20 ms, and many a guest runs without an instruction that has to be decoded.
    """
    if not hasattr(_own, "decoders"):
        import capstone

        modes = {64: capstone.CS_MODE_64, 32: capstone.CS_MODE_32, 16: capstone.CS_MODE_16}
        _own.decoders = {bits: capstone.Cs(capstone.CS_ARCH_X86, mode) for bits, mode in modes.items()}
        for decoder in _own.decoders.values():
            decoder.detail = True
    return _own.decoders[width]


class Op(enum.Enum):
    """Privileged operations that the hypervisor emulates for a PV kernel."""

    CLI = enum.auto()
    STI = enum.auto()
    CLTS = enum.auto()
    WBINVD = enum.auto()
    RDTSC = enum.auto()
    RDTSCP = enum.auto()
    RDMSR = enum.auto()
    WRMSR = enum.auto()
    CPUID = enum.auto()
    READ_CR = enum.auto()
    WRITE_CR = enum.auto()
    READ_DR = enum.auto()
    WRITE_DR = enum.auto()


class Privileged(NamedTuple):
    """A decoded privileged instruction: `number` is the CR or DR, `register` the general register."""

    op: Op
    length: int
    number: int = 0
    register: int = 0


_ONE_BYTE: Final = {0xFA: Op.CLI, 0xFB: Op.STI}
_TWO_BYTE: Final = {
    0x06: Op.CLTS, 0x09: Op.WBINVD, 0x31: Op.RDTSC, 0x32: Op.RDMSR, 0x30: Op.WRMSR, 0xA2: Op.CPUID,
}  # fmt: skip
_MOVES: Final = {0x20: Op.READ_CR, 0x22: Op.WRITE_CR, 0x21: Op.READ_DR, 0x23: Op.WRITE_DR}
_PREFIXES: Final = frozenset({0x66, 0x67, 0x2E, 0x36, 0x3E, 0x26, 0x64, 0x65, 0xF2, 0xF3})


def prefixed(code: bytes, opcode: int) -> int:
    """Length of a one-byte instruction with its prefixes, 0 if `code` is another one. REX is one here."""
    at = 0
    while at < min(len(code), MAX_LENGTH) - 1 and (code[at] in _PREFIXES or code[at] & 0xF0 == 0x40):
        at += 1
    return at + 1 if code[at : at + 1] == bytes([opcode]) else 0


def is_two_byte(code: bytes, second: int) -> bool:
    """Whether `code` begins with the instruction 0F `second`, prefixes apart."""
    at = 0
    while at < len(code) and (code[at] in _PREFIXES or code[at] & 0xF0 == 0x40):
        at += 1
    return code[at : at + 2] == bytes([0x0F, second])


@functools.lru_cache(maxsize=4096)
def privileged(code: bytes) -> Privileged | None:
    """Decode 64-bit `code` (up to 15 bytes) as one of `Op`; None for anything else."""
    at, rex = 0, 0
    while at < len(code) and code[at] in _PREFIXES:
        at += 1
    if at < len(code) and code[at] & 0xF0 == 0x40:
        rex = code[at]
        at += 1
    rest = code[at:MAX_LENGTH]
    if not rest:
        return None
    if rest[0] in _ONE_BYTE:
        return Privileged(_ONE_BYTE[rest[0]], at + 1)
    if rest[0] != 0x0F or len(rest) < 2:
        return None
    if rest[1] in _TWO_BYTE:
        return Privileged(_TWO_BYTE[rest[1]], at + 2)
    if len(rest) < 3:
        return None
    if rest[1] == 0x01:
        return Privileged(Op.RDTSCP, at + 3) if rest[2] == 0xF9 else None
    if rest[1] in _MOVES:
        number = rest[2] >> 3 & 7 | (rex & 4) << 1
        register = rest[2] & 7 | (rex & 1) << 3
        return Privileged(_MOVES[rest[1]], at + 3, number, register)
    return None


class MemoryOperand(NamedTuple):
    """A memory operand: registers by VMCB index (None: absent), RIP-relative already resolved."""

    base: int | None
    scaled: int | None
    scale: int
    displacement: int
    segment: int | None
    rip_relative: bool


class StoreInstruction(NamedTuple):
    """An instruction that writes memory: what it does, to where, from what."""

    name: str
    length: int
    size: int
    memory: MemoryOperand
    register: int | None
    high_byte: bool
    immediate: int


_GENERAL: Final[dict[str | None, int]] = {
    name: number
    for number, names in enumerate(
        [
            "rax eax ax al",
            "rcx ecx cx cl",
            "rdx edx dx dl",
            "rbx ebx bx bl",
            "rsp esp sp spl",
            "rbp ebp bp bpl",
            "rsi esi si sil",
            "rdi edi di dil",
            *(f"r{n} r{n}d r{n}w r{n}b" for n in range(8, 16)),
        ]
    )
    for name in names.split()
}
"""Capstone's names of the general registers, with the number of each; no name is no register."""
_HIGH: Final = {"ah": 0, "ch": 1, "dh": 2, "bh": 3}
_SEGMENTS: Final[dict[str | None, int]] = {"fs": 4, "gs": 5}
_SEGMENTS_32: Final = _SEGMENTS | {"es": 0, "cs": 1, "ss": 2, "ds": 3}
_ON_STACK: Final = frozenset({4, 5})
"""ESP and EBP: as a base they imply SS."""
_REGISTER, _IMMEDIATE, _MEMORY = 1, 2, 3
"""Capstone's kinds of operands."""

STORES: Final = frozenset(
    [
        "mov",
        "movabs",
        "movnti",
        "xchg",
        "cmpxchg",
        "cmpxchg8b",
        "xadd",
        "and",
        "or",
        "xor",
        "add",
        "sub",
        "inc",
        "dec",
        "not",
        "neg",
        "bts",
        "btr",
        "btc",
    ]
)


@functools.lru_cache(maxsize=4096)
def store(code: bytes, width: int = 64) -> StoreInstruction | None:
    """Decode `code` as an instruction of `STORES` whose destination is memory; None for anything else."""
    found = next(_decoder(width).disasm(code, 0, 1), None)
    if found is None or found.mnemonic.removeprefix("lock ") not in STORES or not found.operands:
        return None
    operands = list(found.operands)
    name = found.mnemonic.removeprefix("lock ")
    if name in ("xchg", "xadd") and operands[0].type == _REGISTER:
        operands.reverse()
    target = operands[0]
    if target.type != _MEMORY or target.size not in (1, 2, 4, 8):
        return None
    register, high, immediate = None, False, 0
    if len(operands) > 1:
        source = operands[1]
        if source.type == _IMMEDIATE:
            immediate = source.imm
        elif (name_of_source := found.reg_name(source.reg)) in _HIGH:
            register, high = _HIGH[name_of_source], True
        elif name_of_source in _GENERAL:
            register = _GENERAL[name_of_source]
        else:
            return None
    return StoreInstruction(
        name, found.size, target.size, _operand(found, target.mem, width), register, high, immediate
    )


def _operand(found: Any, memory: Any, width: int = 64) -> MemoryOperand:
    """A memory operand of what Capstone has `found`; only 32-bit code has bases in DS, ES and SS."""
    base, scaled, name = (found.reg_name(number) for number in (memory.base, memory.index, memory.segment))
    segment = _SEGMENTS.get(name)
    if width == 32:
        implied = 2 if _GENERAL.get(base) in _ON_STACK else 3
        segment = _SEGMENTS_32.get(name, implied)
    return MemoryOperand(
        base=_GENERAL.get(base),
        scaled=_GENERAL.get(scaled),
        scale=memory.scale,
        displacement=memory.disp,
        segment=segment,
        rip_relative=base == "rip",
    )


def linear_address(memory: MemoryOperand, length: int, q: Sequence[int], mask: int) -> int:
    """Where an operand of an instruction of `length` bytes is, by the 64-bit words `q` of a VMCB.

    `mask` is that of the address size; segment bases come on top of it.
    """
    address = memory.displacement
    if memory.rip_relative:
        address += q[RIP] + length
    if memory.base is not None:
        address += q[memory.base]
    if memory.scaled is not None:
        address += q[memory.scaled] * memory.scale
    address &= mask
    if memory.segment is not None:
        address += q[SEG_BASE[memory.segment]]
    return address & MASK64


class Accesses(NamedTuple):
    """Which memory an instruction names: (operand, bytes) pairs, and whether it uses the stack besides."""

    length: int
    operands: tuple[tuple[MemoryOperand, int], ...]
    address_mask: int
    stack: bool
    repeated: bool


_SPRAWLING: Final = frozenset(
    [
        *["fxsave", "fxsave64", "fxrstor", "fxrstor64", "fnsave", "frstor", "fnstenv", "fldenv", "xlatb"],
        *["bt", "bts", "btr", "btc", "maskmovdqu", "maskmovq", "bound", "lgdt", "lidt", "sgdt", "sidt"],
        *["enter", "leave", "iret", "iretd", "iretq", "retf", "retfq", "lcall", "ljmp"],
    ]
)
"""Instructions that reach memory which their operands do not tell, or not exactly."""
_BY_RSP: Final = frozenset(
    [
        *["push", "pop", "pushfq", "popfq", "pushfd", "popfd", "pushf", "popf", "call", "ret"],
        *["enter", "iret", "iretd", "iretq", "retf", "retfq", "lcall"],
    ]
)
"""Instructions that push or pop."""
_STRING: Final = frozenset(["movs", "cmps", "stos", "lods", "scas", "ins", "outs"])
_STACK_BASES: Final = frozenset({4, 5})  # RSP, RBP


@functools.lru_cache(maxsize=4096)
def accesses(code: bytes, bits: int = 64) -> Accesses | None:
    """What memory the first instruction of `code` names; None if that cannot be told from its operands."""
    found = next(_decoder(bits).disasm(code, 0, 1), None)
    if found is None:
        return None
    words = found.mnemonic.split()
    name = words[-1]
    memory = [operand for operand in found.operands if operand.type == _MEMORY]
    if name in _SPRAWLING or (name == "pop" and memory):
        return None
    if name in ("lea", "nop", "prefetchnta", "prefetcht0", "prefetcht1", "prefetcht2", "invlpg"):
        memory = []
    operands = tuple((_operand(found, operand.mem, bits), operand.size) for operand in memory)
    return Accesses(
        length=found.size,
        operands=operands,
        address_mask=(1 << 8 * found.addr_size) - 1,
        stack=name in _BY_RSP,
        repeated=words[0].startswith("rep") and name.rstrip("bwdq") in _STRING,
    )


@functools.lru_cache(maxsize=256)
def stack_references(code: bytes) -> tuple[int, tuple[MemoryOperand, ...]] | None:
    """Length of a 64-bit instruction, and its references through the stack segment: #SS, not #GP, is what
    hardware raises where one of them is not canonical. None if it is no instruction."""
    found = next(_decoder(64).disasm(code, 0, 1), None)
    if found is None:
        return None
    name = found.mnemonic.split()[-1]
    memory = [_operand(found, operand.mem) for operand in found.operands if operand.type == _MEMORY]
    references = [one for one in memory if one.base in _STACK_BASES and one.segment is None]
    if name in _BY_RSP:
        references.append(MemoryOperand(4, None, 0, 0, None, False))
    elif name == "leave":
        references.append(MemoryOperand(5, None, 0, 0, None, False))
    return found.size, tuple(references)


class FarTransfer(NamedTuple):
    """A far CALL or JMP: its selector, or the place of the far pointer that holds it behind the offset."""

    length: int
    jump: bool
    selector: int
    pointer: MemoryOperand | None
    address_mask: int
    offset_size: int


_FAR_DIRECT: Final = {0x9A: False, 0xEA: True}
_FAR_INDIRECT: Final = {3: False, 5: True}


@functools.lru_cache(maxsize=256)
def far_transfer(code: bytes, width: int = 32) -> FarTransfer | None:
    """Decode 32- or 16-bit `code` as a far CALL or JMP; None for anything else."""
    found = next(_decoder(width).disasm(code, 0, 1), None)
    if found is None:
        return None
    mask = (1 << 8 * found.addr_size) - 1
    offset_size = 4 if (width == 32) != (0x66 in found.prefix) else 2
    opcode, operands = found.opcode[0], list(found.operands)
    if opcode in _FAR_DIRECT:
        selector = operands[0].imm & 0xFFFF
        return FarTransfer(found.size, _FAR_DIRECT[opcode], selector, None, mask, offset_size)
    form = found.modrm >> 3 & 7
    if opcode != 0xFF or form not in _FAR_INDIRECT or operands[0].type != _MEMORY:
        return None
    pointer = _operand(found, operands[0].mem, 32)
    return FarTransfer(found.size, _FAR_INDIRECT[form], 0, pointer, mask, offset_size)


def length(code: bytes, width: int = 64) -> int:
    """Length of the first instruction, 0 if it is none."""
    found = next(_decoder(width).disasm(code, 0, 1), None)
    return found.size if found else 0


def whole(code: bytes, width: int = 64) -> int:
    """How many of the bytes are instructions that do not go on behind the last one."""
    return sum(size for _, size, _, _ in _decoder(width).disasm_lite(code, 0))


def disassemble(code: bytes, address: int, count: int = 1, width: int = 64) -> list[tuple[int, str]]:
    """(address, text) of up to `count` instructions, for people."""
    return [
        (insn.address, f"{insn.mnemonic} {insn.op_str}".strip())
        for insn in _decoder(width).disasm(code, address, count)
    ]
