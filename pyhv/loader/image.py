# SPDX-License-Identifier: GPL-2.0-only
"""A kernel image in memory: its segments, its notes, and the numbers that follow from them.

Names are those of the ELF gABI and of Xen's public header `elfnote.h`. Pure data: this module neither reads
files nor judges whether an image can boot.

How the three kinds of address of a loaded byte hang together:

    pfn * 4096 = p_paddr - PADDR_OFFSET          where it lies in the domain's memory
    va         = pfn * 4096 + VIRT_BASE          where the kernel will find it
"""

import struct
from collections.abc import Iterator
from dataclasses import field
from functools import cached_property
from typing import Any, Final, NamedTuple

from pyhv.address import PAGE_MASK, Va
from pyhv.frozen import frozen
from pyhv.loader.bsdsyms import BsdSymbols
from pyhv.loader.notes import Pae, XenNotes

MAX_SYMBOL_NAME: Final = 512
"""Longest symbol name, in bytes, that is kept."""

MAX_SYMBOLS: Final = 256 << 20
"""Largest symbol or string table, in bytes, whose names are read."""

_STT_NAMED: Final = frozenset(
    {0, 1, 2}
)  # NOTYPE, OBJECT, FUNC: sections and files have no address of their own


class LoadSegment(NamedTuple):
    """One PT_LOAD program header with its bytes; `data` is `filesz` long, the rest of `memsz` is zero."""

    paddr: int
    vaddr: int
    filesz: int
    memsz: int
    data: bytes
    flags: int
    """PF_X 1, PF_W 2, PF_R 4."""


class Symbol(NamedTuple):
    """One named address of the image; `size` in bytes, 0 if unknown."""

    va: int
    size: int
    name: str


@frozen
class SymbolTable:
    """The bytes of `.symtab` and of the string table it links to."""

    entries: bytes
    strings: bytes
    elf_class: int

    def symbols(self) -> tuple[Symbol, ...]:
        """All named, defined functions, objects and untyped labels, by address; none of a gigantic table."""
        if max(len(self.entries), len(self.strings)) > MAX_SYMBOLS:
            return ()
        found = []
        if self.elf_class == 64:
            raw = ((n, i, x, v, s) for n, i, _, x, v, s in _walk("<IBBHQQ", self.entries))
        else:
            raw = ((n, i, x, v, s) for n, v, s, i, _, x in _walk("<IIIBBH", self.entries))
        for name_at, info, section, value, size in raw:
            if section == 0 or info & 15 not in _STT_NAMED:
                continue
            # An unterminated string table must not make every name as long as the table.
            name = self.strings[name_at : name_at + MAX_SYMBOL_NAME].split(b"\0", 1)[0]
            text = name.decode("utf-8", "replace")
            if text and not text.isprintable():  # a stranger's control characters must not reach a terminal
                text = text.encode("unicode_escape").decode("ascii")
            if text:
                found.append(Symbol(value, size, text))
        return tuple(sorted(found))


@frozen(slots=False)
class KernelImage:
    """A parsed kernel. `kind` is "ELF", "bzImage (xz)" and so on; sizes in bytes."""

    name: str
    kind: str
    elf_class: int
    """32 or 64."""
    machine: str
    """EM_X86_64 or EM_386."""
    segments: tuple[LoadSegment, ...]
    e_entry: int
    notes: XenNotes
    symbol_table: SymbolTable | None = field(default=None, repr=False)
    bsd_symbols: BsdSymbols | None = field(default=None, repr=False)
    """What a kernel finds behind its image that has asked for BSD_SYMTAB and has a symbol table."""
    file_size: int = 0
    unpacked_size: int = 0

    @property
    def width(self) -> int:
        """Bits of the guest's registers and structures: 64, or 32 for a PAE kernel. The machine decides."""
        return 64 if self.machine == "EM_X86_64" else 32

    @property
    def l3_anywhere(self) -> bool:
        """Whether the boot page tables may be topped by a frame above 4 GiB.

        A 32-bit kernel must have said that it knows the extended format of CR3.
        """
        return self.width == 64 or self.notes.pae is Pae.EXTENDED_CR3

    @property
    def entry(self) -> Va:
        """Where the boot vCPU starts: the ENTRY note, else the ELF header's entry point."""
        return Va(self.e_entry if self.notes.entry is None else self.notes.entry)

    @property
    def virt_base(self) -> Va:
        """The virtual address of pfn 0."""
        return Va(self.notes.virt_base or 0)

    @property
    def paddr_offset(self) -> int:
        """The p_paddr of pfn 0's first byte."""
        return self.notes.paddr_offset or 0

    @cached_property
    def kstart(self) -> Va:
        """First virtual address of the image."""
        return Va(min(s.paddr for s in self.segments) - self.paddr_offset + self.virt_base)

    @cached_property
    def kend(self) -> Va:
        """First virtual address behind the image, with what libelf reserves for a BSD symbol table."""
        symbols = self.bsd_symbols
        return self._end if symbols is None else Va(self.symtab_start + symbols.room)

    @property
    def symtab_start(self) -> Va:
        """Where the BSD symbol table begins: behind the last segment, aligned for the ELF class."""
        return Va(self._end + -self._paddr_end % (8 if self.elf_class == 64 else 4))

    @cached_property
    def bsd_symtab(self) -> bytes:
        """The BSD symbol table, to be put at `symtab_start`; empty without one."""
        return b"" if self.bsd_symbols is None else self.bsd_symbols.content(self.symtab_start)

    @property
    def memory_end(self) -> Va:
        """First virtual address behind everything that is loaded."""
        return Va(max(self.kend, self.symtab_start + len(self.bsd_symtab)) if self.bsd_symtab else self.kend)

    @property
    def _paddr_end(self) -> int:
        return max(s.paddr + s.memsz for s in self.segments)

    @property
    def _end(self) -> Va:
        return Va(self._paddr_end - self.paddr_offset + self.virt_base)

    @property
    def hypercall_page(self) -> Va | None:
        """An address in the page to fill with hypercall stubs, or None if the kernel brings its own."""
        return None if self.notes.hypercall_page is None else Va(self.notes.hypercall_page)

    @property
    def init_p2m(self) -> Va | None:
        """Where the kernel wants its p2m list mapped; None if it did not ask or asked in vain.

        Honoured only for 64-bit kernels, page aligned and below VIRT_BASE.
        """
        va = self.notes.init_p2m
        if va is None or self.width != 64 or va & PAGE_MASK or va >= self.virt_base:
            return None
        return Va(va)

    @property
    def mod_start_pfn(self) -> bool:
        """Whether the ramdisk is handed over by pfn, unmapped."""
        return bool(self.notes.mod_start_pfn)

    @property
    def guest_class(self) -> str:
        """Xen's name for the ABI, which start_info's magic repeats."""
        return "xen-3.0-x86_64" if self.width == 64 else "xen-3.0-x86_32p"

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """The image's symbols sorted by address; empty if it was stripped."""
        return self.symbol_table.symbols() if self.symbol_table else ()


def _walk(form: str, raw: bytes) -> Iterator[tuple[Any, ...]]:
    size = struct.calcsize(form)
    return struct.iter_unpack(form, raw[: len(raw) // size * size])
