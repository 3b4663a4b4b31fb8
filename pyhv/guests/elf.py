# SPDX-License-Identifier: GPL-2.0-only
"""Writing a 64- or 32-bit ELF executable with Xen notes and a symbol table (ELF gABI, psABIs, `elfnote.h`).

The image has this shape; the headers come first and the parts a boot loader ignores last:

    ELF header | program headers | .note.Xen | .text | .data | .symtab | .strtab | .shstrtab | section headers
                                    PT_NOTE    PT_LOAD PT_LOAD (memory continues with .bss)

This module arranges bytes that others have made: it neither assembles nor judges whether Xen would boot it.
"""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from pyhv.address import PAGE_MASK
from pyhv.frozen import frozen


@frozen
class _Class:
    """What the two ELF classes do not share: structures and the numbers that name them."""

    number: int
    machine: int
    ehdr: struct.Struct
    phdr: struct.Struct
    phdr_order: tuple[int, ...]
    """Where type, flags, offset, vaddr, paddr, filesz, memsz and align go."""
    shdr: struct.Struct
    sym: struct.Struct
    sym_order: tuple[int, ...]
    """Where name, info, other, shndx, value and size go."""


_CLASSES: Final = {
    64: _Class(
        number=2,
        machine=62,  # EM_X86_64
        ehdr=struct.Struct("<4s5B7xHHIQQQIHHHHHH"),
        phdr=struct.Struct("<IIQQQQQQ"),
        phdr_order=(0, 1, 2, 3, 4, 5, 6, 7),
        shdr=struct.Struct("<IIQQQQIIQQ"),
        sym=struct.Struct("<IBBHQQ"),
        sym_order=(0, 1, 2, 3, 4, 5),
    ),
    32: _Class(
        number=1,
        machine=3,  # EM_386
        ehdr=struct.Struct("<4s5B7xHHIIIIIHHHHHH"),
        phdr=struct.Struct("<8I"),
        phdr_order=(0, 6, 1, 2, 3, 4, 5, 7),
        shdr=struct.Struct("<10I"),
        sym=struct.Struct("<IIIBBH"),
        sym_order=(0, 3, 4, 5, 1, 2),
    ),
}

_ET_EXEC: Final = 2
_PT_LOAD, _PT_NOTE = 1, 4
_PF_X, _PF_W, _PF_R = 1, 2, 4
_SHT_PROGBITS, _SHT_SYMTAB, _SHT_STRTAB, _SHT_NOTE, _SHT_NOBITS = 1, 2, 3, 7, 8
_SHF_WRITE, _SHF_ALLOC, _SHF_EXECINSTR = 1, 2, 4
_STB_LOCAL, _STB_GLOBAL = 0, 1

STT_NOTYPE, STT_OBJECT, STT_FUNC = 0, 1, 2
"""Symbol types: a place inside a routine, data, a routine."""


@frozen
class ElfSymbol:
    """One label: its virtual address, the bytes up to the next label (0 = unknown), section by name."""

    name: str
    address: int
    size: int
    type: int
    section: str
    local: bool


@frozen
class ElfLayout:
    """The image's memory: three neighbouring ranges, each beginning on a page; physical = virtual."""

    text_at: int
    text: bytes
    data_at: int
    data: bytes
    bss_at: int
    bss_size: int
    entry: int


@dataclass
class _Header:
    """One section header in the making; `link` and `info` as the gABI's table says for the type."""

    name: str
    type: int
    flags: int = 0
    address: int = 0
    offset: int = 0
    size: int = 0
    link: int = 0
    info: int = 0
    align: int = 1
    entry_size: int = 0


def note_record(kind: int, desc: bytes) -> bytes:
    """One ELF note named "Xen"; `desc` is padded to a multiple of four."""
    name = b"Xen\0"
    return struct.pack("<III", len(name), len(desc), kind) + name + desc + bytes(-len(desc) % 4)


def write_elf(layout: ElfLayout, notes: bytes, symbols: Sequence[ElfSymbol], *, width: int = 64) -> bytes:
    """Build the file for a `width`-bit kernel. `notes` are concatenated note records; `symbols` come in any
    order.
    """
    kind = _CLASSES[width]
    image = bytearray(kind.ehdr.size + 3 * kind.phdr.size)

    def append(data: bytes, congruent_to: int, align: int) -> int:
        """Add bytes at an offset equal to `congruent_to` modulo `align`; return the offset."""
        image.extend(bytes((congruent_to - len(image)) % align))
        offset = len(image)
        image.extend(data)
        return offset

    page = PAGE_MASK + 1
    notes_at = append(notes, 0, 4)
    text_offset = append(layout.text, layout.text_at, page)
    data_offset = append(layout.data, layout.data_at, page)

    headers = [
        _Header("", 0, align=0),
        _Header(".text", _SHT_PROGBITS, _SHF_ALLOC | _SHF_EXECINSTR, layout.text_at, text_offset, align=page),
        _Header(".data", _SHT_PROGBITS, _SHF_ALLOC | _SHF_WRITE, layout.data_at, data_offset, align=page),
        _Header(".bss", _SHT_NOBITS, _SHF_ALLOC | _SHF_WRITE, layout.bss_at, len(image), align=page),
        _Header(".note.Xen", _SHT_NOTE, offset=notes_at, size=len(notes), align=4),
    ]
    headers[1].size, headers[2].size, headers[3].size = len(layout.text), len(layout.data), layout.bss_size
    table, strings, locals_count = _symbol_table(kind, symbols, [header.name for header in headers])
    strtab_index = len(headers) + 1
    headers.append(
        _Header(
            ".symtab",
            _SHT_SYMTAB,
            offset=append(table, 0, 8),
            size=len(table),
            link=strtab_index,
            info=locals_count,
            align=8,
            entry_size=kind.sym.size,
        )
    )
    headers.append(_Header(".strtab", _SHT_STRTAB, offset=append(strings, 0, 1), size=len(strings)))
    names, name_offsets = _string_table([*(header.name for header in headers), ".shstrtab"])
    headers.append(_Header(".shstrtab", _SHT_STRTAB, offset=append(names, 0, 1), size=len(names)))

    packed = b"".join(
        kind.shdr.pack(
            name_offsets[header.name],
            header.type,
            header.flags,
            header.address,
            header.offset,
            header.size,
            header.link,
            header.info,
            header.align,
            header.entry_size,
        )
        for header in headers
    )
    headers_at = append(packed, 0, 8)

    data_memory = layout.bss_at + layout.bss_size - layout.data_at
    text_size, data_size = len(layout.text), len(layout.data)
    programs = [
        (_PT_LOAD, _PF_R | _PF_X, text_offset, layout.text_at, text_size, text_size, page),
        (_PT_LOAD, _PF_R | _PF_W, data_offset, layout.data_at, data_size, data_memory, page),
        (_PT_NOTE, _PF_R, notes_at, 0, len(notes), len(notes), 4),
    ]
    identification = (b"\x7fELF", kind.number, 1, 1, 0, 0)  # class, little endian, version 1, System V ABI
    kind.ehdr.pack_into(
        image,
        0,
        *identification,
        _ET_EXEC,
        kind.machine,
        1,
        layout.entry,
        kind.ehdr.size,
        headers_at,
        0,
        kind.ehdr.size,
        kind.phdr.size,
        len(programs),
        kind.shdr.size,
        len(headers),
        len(headers) - 1,
    )
    for index, (segment, flags, offset, address, filesz, memsz, align) in enumerate(programs):
        place = kind.ehdr.size + index * kind.phdr.size
        # p_paddr = p_vaddr: with VIRT_BASE 0 a kernel's addresses are its pseudo-physical ones.
        values = (segment, flags, offset, address, address, filesz, memsz, align)
        kind.phdr.pack_into(image, place, *_in_order(values, kind.phdr_order))
    return bytes(image)


def _in_order(values: Sequence[int], places: Sequence[int]) -> list[int]:
    """Put `values[i]` at `places[i]`."""
    ordered = [0] * len(values)
    for value, place in zip(values, places, strict=True):
        ordered[place] = value
    return ordered


def _symbol_table(
    kind: _Class, symbols: Sequence[ElfSymbol], sections: Sequence[str]
) -> tuple[bytes, bytes, int]:
    """Return (.symtab, .strtab, index of the first global symbol)."""
    # The gABI wants local symbols before global ones; by address within each, for people.
    ordered = sorted(symbols, key=lambda symbol: (not symbol.local, symbol.address, symbol.name))
    strings, offsets = _string_table([symbol.name for symbol in ordered])
    table = bytearray(kind.sym.size)
    for symbol in ordered:
        binding = _STB_LOCAL if symbol.local else _STB_GLOBAL
        values = (
            offsets[symbol.name],
            binding << 4 | symbol.type,
            0,
            sections.index(symbol.section),
            symbol.address,
            symbol.size,
        )
        table += kind.sym.pack(*_in_order(values, kind.sym_order))
    return bytes(table), strings, 1 + sum(symbol.local for symbol in ordered)


def _string_table(names: Sequence[str]) -> tuple[bytes, dict[str, int]]:
    """NUL-separated names behind a leading NUL, and the offset of each."""
    table, offsets = bytearray(1), {"": 0}
    for name in names:
        if name not in offsets:
            offsets[name] = len(table)
            table += name.encode() + b"\0"
    return bytes(table), offsets
