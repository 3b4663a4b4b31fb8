# SPDX-License-Identifier: GPL-2.0-only
"""Reading a kernel file: `load_image`, from a path or bytes to a checked `KernelImage`.

The format is the ELF gABI's; structures and their names come from pyelftools. Only its header structures
are used: every offset, size and count is checked here before anything is read through it, because an image
is input from a stranger. Where the format leaves open what an odd file means, it means what libelf, Xen's
reader, makes of it; a file that lacks bytes of which its headers speak is refused, where libelf goes on with
zeros. Which rules make an image bootable is `accept.py`'s, compression is `bzimage.py`'s.
"""

import io
import itertools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.structs import ELFStructs

from pyhv.address import PAGE_SHIFT, pages_of
from pyhv.errors import ImageError
from pyhv.loader import notes
from pyhv.loader.accept import objections
from pyhv.loader.bsdsyms import BsdSymbols
from pyhv.loader.bzimage import Unpacked, unpack
from pyhv.loader.image import KernelImage, LoadSegment, SymbolTable
from pyhv.loader.notes import NoteSource, XenNotes
from pyhv.loader.packed import MAX_UNPACKED

MAX_FILE: Final = MAX_UNPACKED
"""Largest kernel file in bytes."""
MAX_PROGRAM_HEADERS: Final = 256
MAX_SECTION_HEADERS: Final = 8192
MAX_COPIES: Final = 2
"""How many times over, in sum, segments may fill the memory that they span."""

_EHDR_SIZE: Final = {32: 52, 64: 64}
_PHDR_SIZE: Final = {32: 32, 64: 56}
_SHDR_SIZE: Final = {32: 40, 64: 64}
_PF_RWX: Final = 7


def load_image(
    source: str | os.PathLike[str] | bytes,
    name: str | None = None,
    *,
    bootable: bool = True,
    unpacker: Callable[[bytes, str], Unpacked] = unpack,
) -> KernelImage:
    """Read a kernel: an ELF file, a bzImage, or a compressed ELF file.

    `source` is a path or the file's bytes; `name` is what messages call it (default: the path). With
    `bootable` (the default) an image that cannot run as a PV domain is refused too; `bootable=False` is for
    looking at it. `unpacker` may remember what it has unpacked before. Raises ImageError for anything that
    is not a well-formed x86 kernel image.
    """
    if isinstance(source, bytes):
        data, called = source, name or "kernel image"
    else:
        data, called = _read(Path(source), name or os.fspath(source)), name or os.fspath(source)
    unpacked = unpacker(data, called)
    image = _Elf(unpacked.elf, called).image(unpacked.kind, len(data))
    if bootable and (reasons := objections(image)):
        raise ImageError(f"{called}: {reasons[0]}")
    return image


def _read(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(MAX_FILE + 1)
    except OSError as cause:
        raise ImageError(f"{name}: cannot be read ({cause.strerror or cause})") from cause
    except ValueError as cause:  # a NUL in the path
        raise ImageError(f"{name!r}: is not a file name ({cause})") from cause
    if len(data) > MAX_FILE:
        raise ImageError(f"{name}: is larger than {MAX_FILE >> 20} MiB, so it is not a kernel")
    return data


class _Elf:
    """One ELF file: its three kinds of header, bounds checked."""

    def __init__(self, data: bytes, name: str) -> None:
        self.data = data
        self.name = name
        ident = data[:16]
        if len(ident) < 16 or ident[4] not in (1, 2) or ident[5] not in (1, 2):
            raise ImageError(f"{name}: its ELF identification is damaged or truncated")
        if ident[5] != 1:
            raise ImageError(f"{name}: is a big-endian ELF file, so it is not an x86 kernel")
        self.elf_class = 64 if ident[4] == 2 else 32
        self._structs = ELFStructs(little_endian=True, elfclass=self.elf_class)
        self._structs.create_basic_structs()
        size = _EHDR_SIZE[self.elf_class]
        self._require(0, size, "the ELF header")
        self.ehdr = self._parse(self._structs.Elf_Ehdr, 0, size, "the ELF header")
        self.machine = str(self.ehdr["e_machine"])
        if self.machine not in ("EM_X86_64", "EM_386"):
            raise ImageError(
                f"{name}: is a {self.elf_class}-bit ELF file for machine {self.machine}, not an x86 kernel"
            )
        self._structs.create_advanced_structs(self.ehdr["e_type"], self.machine)
        self.phdrs = self._table("ph", self._structs.Elf_Phdr, _PHDR_SIZE, MAX_PROGRAM_HEADERS)
        self.shdrs = self._table("sh", self._structs.Elf_Shdr, _SHDR_SIZE, MAX_SECTION_HEADERS)

    def image(self, kind: str, file_size: int) -> KernelImage:
        """Everything the file says, as a KernelImage."""
        found = self._notes()
        return KernelImage(
            name=self.name,
            kind=kind,
            elf_class=self.elf_class,
            machine=self.machine,
            segments=self._segments(),
            e_entry=int(self.ehdr["e_entry"]),
            notes=found,
            symbol_table=self._symbol_table(),
            bsd_symbols=self._bsd_symbols() if found.bsd_symtab else None,
            file_size=file_size,
            unpacked_size=len(self.data),
        )

    def _require(self, at: int, size: int, what: str) -> None:
        if at + size > len(self.data):
            raise ImageError(
                f"{self.name}: {what} ends at byte {at + size} of the image, which has {len(self.data)}; "
                "the file is truncated or damaged"
            )

    def _parse(self, struct: Any, at: int, size: int, what: str) -> Any:
        """A structure of `size` bytes; what lies behind the end of the file reads as zeros."""
        raw = self.data[at : at + size].ljust(size, b"\0")
        try:
            return struct_parse(struct, io.BytesIO(raw))
        except ELFError as cause:
            raise ImageError(f"{self.name}: {what} is damaged ({cause})") from cause

    def _table(self, kind: str, struct: Any, sizes: dict[int, int], limit: int) -> list[Any]:
        """The program headers ("ph") or section headers ("sh"), one every e_[ps]hentsize bytes."""
        what = {"ph": "program", "sh": "section"}[kind]
        at, count = int(self.ehdr[f"e_{kind}off"]), int(self.ehdr[f"e_{kind}num"])
        stride, size = int(self.ehdr[f"e_{kind}entsize"]), sizes[self.elf_class]
        if count > limit:
            raise ImageError(f"{self.name}: has {count} {what} headers, more than any kernel; it is damaged")
        self._require(at, count * stride, f"the table of {what} headers")
        return [self._parse(struct, at + i * stride, size, f"{what} header {i}") for i in range(count)]

    def _slice(self, at: int, size: int, what: str) -> bytes:
        self._require(at, size, what)
        return self.data[at : at + size]

    def _segments(self) -> tuple[LoadSegment, ...]:
        segments = []
        for number, phdr in enumerate(self.phdrs):
            memsz, flags = int(phdr["p_memsz"]), int(phdr["p_flags"])
            if phdr["p_type"] != "PT_LOAD" or not flags & _PF_RWX:
                continue
            what = f"segment {number}"
            paddr, filesz = int(phdr["p_paddr"]), int(phdr["p_filesz"])
            if filesz > memsz:
                raise ImageError(f"{self.name}: {what} is larger in the file than in memory; it is damaged")
            if paddr + memsz > 1 << self.elf_class:
                raise ImageError(
                    f"{self.name}: {what} takes {memsz} bytes at {paddr:#x}, beyond the end of all "
                    "addresses; it is damaged"
                )
            data = self._slice(int(phdr["p_offset"]), filesz, what)
            segments.append(LoadSegment(paddr, int(phdr["p_vaddr"]), filesz, memsz, data, flags))
        if not segments:
            raise ImageError(f"{self.name}: has no loadable segment, so it is not a kernel image")
        span = max(s.paddr + s.memsz for s in segments) - min(s.paddr for s in segments)
        if sum(segment.memsz for segment in segments) > MAX_COPIES * (pages_of(span) << PAGE_SHIFT):
            raise ImageError(
                f"{self.name}: its segments lie on top of each other, in sum more than {MAX_COPIES} times "
                "the memory that they span; it is damaged"
            )
        return tuple(segments)

    def _notes(self) -> XenNotes:
        """The notes from the first place that has any of Xen's: segments, sections, then `__xen_guest`."""
        places = {
            NoteSource.PT_NOTE: [
                self._area(int(phdr["p_offset"]), int(phdr["p_filesz"]), "a note segment")
                for phdr in self.phdrs
                if phdr["p_type"] == "PT_NOTE" and phdr["p_offset"]
            ],
            NoteSource.SHT_NOTE: [
                self._area(int(shdr["sh_offset"]), int(shdr["sh_size"]), "a note section")
                for shdr in self.shdrs[1:]
                if shdr["sh_type"] == "SHT_NOTE"
            ],
        }
        left = notes.MAX_NOTES
        for source, areas in places.items():
            everybodys = itertools.chain.from_iterable(notes.records(self.data, *area) for area in areas)
            read = list(itertools.islice(everybodys, left))
            left -= len(read)
            if mine := [record for record in read if record is not None]:
                return notes.from_records(mine, source)
        text = self._guest_string()
        return XenNotes() if text is None else notes.from_guest_string(text)

    def _area(self, at: int, size: int, what: str) -> tuple[int, int]:
        self._require(at, size, what)
        return at, size

    def _guest_string(self) -> bytes | None:
        """What begins in the section named `__xen_guest`, up to its NUL."""
        index = int(self.ehdr["e_shstrndx"])
        if index >= len(self.shdrs):
            return None
        names = int(self.shdrs[index]["sh_offset"])
        wanted = b"__xen_guest\0"
        for shdr in self.shdrs[1:]:
            at = names + int(shdr["sh_name"])
            if self.data[at : at + len(wanted)] == wanted:
                start = int(shdr["sh_offset"])
                return self.data[start : start + notes.MAX_GUEST_STRING].partition(b"\0")[0]
        return None

    def _symbol_sections(self) -> tuple[int, int] | None:
        """The numbers of the first symbol table and of its string table; None if there are not both."""
        for number, shdr in list(enumerate(self.shdrs))[1:]:
            if shdr["sh_type"] == "SHT_SYMTAB":
                link = int(shdr["sh_link"])
                if 0 < link < len(self.shdrs) and self.shdrs[link]["sh_type"] == "SHT_STRTAB":
                    return number, link
                return None
        return None

    def _symbol_table(self) -> SymbolTable | None:
        """The symbols; None if there are none, or if they are not all there, as nobody depends on them."""
        found = self._symbol_sections()
        if found is None:
            return None
        shdrs = [self.shdrs[number] for number in found]
        if any(int(shdr["sh_offset"]) + int(shdr["sh_size"]) > len(self.data) for shdr in shdrs):
            return None
        entries, strings = (self._contents(number) for number in found)
        return SymbolTable(entries, strings, self.elf_class)

    def _bsd_symbols(self) -> BsdSymbols | None:
        """The same for the kernel, which has asked for them."""
        found = self._symbol_sections()
        if found is None:
            return None
        headers = (self._raw_header(number) for number in found)
        tables = (self._contents(number) for number in found)
        return BsdSymbols(self.elf_class, self.data[: _EHDR_SIZE[self.elf_class]], *headers, *tables)

    def _raw_header(self, number: int) -> bytes:
        at = int(self.ehdr["e_shoff"]) + number * int(self.ehdr["e_shentsize"])
        return self.data[at : at + _SHDR_SIZE[self.elf_class]]

    def _contents(self, number: int) -> bytes:
        shdr = self.shdrs[number]
        return self._slice(int(shdr["sh_offset"]), int(shdr["sh_size"]), f"section {number}, with symbols,")
