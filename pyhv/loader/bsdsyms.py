# SPDX-License-Identifier: GPL-2.0-only
"""The symbol table that a BSD kernel finds behind its image, if a BSD_SYMTAB note asked for it.

It mimics an ELF file of three sections. What is where is libelf's decision (`elf_load_bsdsyms` of Xen 4.17),
odd as it is: the headers of both classes have the room of the 64-bit ones, but in 32 bits not all of it is
counted as part of the image (`room`).

      0  u32, the number of bytes that follow, up to the end of the string table
      4  the kernel's ELF header; e_shoff is 64, e_shnum 3, and it has no program headers
     68  three section headers: none, the symbol table, its string table
    260  symbol table, string table, each aligned for the class; sh_offset counts from the ELF header

This module reads no file and knows no memory.
"""

import struct
from typing import Final, NamedTuple

from pyhv.frozen import frozen

_EHDR: Final = 64
_HEADERS: Final = 4 * _EHDR
"""The ELF header and three section headers, as large as those of the 64-bit class."""
_SIZE_FIELD: Final = 4
_E_VERSION, _EV_CURRENT = 20, 1


class _ElfClass(NamedTuple):
    """What differs between the ELF classes: alignment, sizes, offsets of fields, `struct` formats."""

    alignment: int
    ehdr_size: int
    e_phoff: int
    e_shoff: int
    e_ehsize: int
    address: str
    shdr_size: int
    sh_offset: int
    sh_link: int


_FORMS: Final = {
    32: _ElfClass(4, 52, 28, 32, 40, "<I", 40, 16, 24),
    64: _ElfClass(8, 64, 32, 40, 52, "<Q", 64, 24, 40),
}


@frozen
class BsdSymbols:
    """What it is made of, as it stands in the file: both headers, both tables."""

    elf_class: int
    elf_header: bytes
    symtab_header: bytes
    strtab_header: bytes
    symtab: bytes
    strtab: bytes

    @property
    def _form(self) -> _ElfClass:
        return _FORMS[self.elf_class]

    @property
    def alignment(self) -> int:
        """What the ELF class rounds addresses up to: 8 bytes, or 4 in 32 bits."""
        return self._form.alignment

    @property
    def room(self) -> int:
        """Bytes that libelf counts as part of the image for it; in 32 bits that is less than it takes."""
        room = 2 * _SIZE_FIELD + _EHDR + 3 * self._form.shdr_size
        for table in (self.symtab, self.strtab):
            room = _up(room, self.alignment) + len(table)
        return _up(room, self.alignment)

    def content(self, at: int) -> bytes:
        """All of it, if it begins at the virtual address `at`."""
        header = at + _SIZE_FIELD
        symtab = _up(header + _HEADERS, self.alignment) - header
        strtab = _up(header + symtab + len(self.symtab), self.alignment) - header
        raw = bytearray(strtab + len(self.strtab))
        headers = (
            self._header(),
            bytes(self._form.shdr_size),
            self._section(self.symtab_header, symtab, link=2),
            self._section(self.strtab_header, strtab),
        )
        raw[:_HEADERS] = b"".join(headers).ljust(_HEADERS, b"\0")
        raw[symtab : symtab + len(self.symtab)] = self.symtab
        raw[strtab:] = self.strtab
        return struct.pack("<I", len(raw)) + raw

    def _header(self) -> bytes:
        form = self._form
        header = bytearray(self.elf_header[: form.ehdr_size].ljust(_EHDR, b"\0"))
        struct.pack_into("<I", header, _E_VERSION, _EV_CURRENT)
        struct.pack_into(form.address, header, form.e_phoff, 0)
        struct.pack_into(form.address, header, form.e_shoff, _EHDR)
        struct.pack_into("<HHHHHH", header, form.e_ehsize, form.ehdr_size, 0, 0, form.shdr_size, 3, 0)
        return bytes(header)

    def _section(self, header: bytes, offset: int, link: int | None = None) -> bytes:
        form = self._form
        section = bytearray(header[: form.shdr_size].ljust(form.shdr_size, b"\0"))
        struct.pack_into(form.address, section, form.sh_offset, offset)
        if link is not None:
            struct.pack_into("<I", section, form.sh_link, link)
        return bytes(section)


def _up(value: int, alignment: int) -> int:
    return value + -value % alignment
