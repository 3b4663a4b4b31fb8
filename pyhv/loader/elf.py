# SPDX-License-Identifier: GPL-2.0-only
"""Reading a kernel file: `load_image`, from a path or bytes to a checked `KernelImage`.

The format is the ELF gABI's; structures and their names come from pyelftools. Only its header structures
are used: every offset, size and count is checked here before anything is read through it, because an image
is input from a stranger. Which rules make an image bootable is `accept.py`'s, compression is `bzimage.py`'s.
"""

import io
import itertools
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from elftools.common.exceptions import ELFError
from elftools.common.utils import struct_parse
from elftools.elf.structs import ELFStructs

from pyhv.errors import ImageError
from pyhv.loader import notes
from pyhv.loader.accept import objections
from pyhv.loader.bzimage import MAX_UNPACKED, Unpacked, unpack
from pyhv.loader.image import KernelImage, Segment, SymbolTable
from pyhv.loader.notes import NoteSource, XenNotes

MAX_FILE = MAX_UNPACKED
"""Largest kernel file in bytes."""
MAX_EXTENT = 4 << 30
"""Largest p_memsz in bytes."""
MAX_PROGRAM_HEADERS = 256
MAX_SECTION_HEADERS = 8192
MAX_SYMTAB = 256 << 20
"""Largest symbol or string table in bytes that is read; a larger one counts as absent."""

_EHDR_SIZE = {32: 52, 64: 64}
_PHDR_SIZE = {32: 32, 64: 56}
_SHDR_SIZE = {32: 40, 64: 64}
_PF_RWX = 7


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
        self._stream = io.BytesIO(data)
        ident = data[:16]
        if len(ident) < 16 or ident[4] not in (1, 2) or ident[5] not in (1, 2):
            raise ImageError(f"{name}: its ELF identification is damaged or truncated")
        if ident[5] != 1:
            raise ImageError(f"{name}: is a big-endian ELF file, so it is not an x86 kernel")
        self.elf_class = 64 if ident[4] == 2 else 32
        self._structs = ELFStructs(little_endian=True, elfclass=self.elf_class)
        self._structs.create_basic_structs()
        self.ehdr = self._parse(self._structs.Elf_Ehdr, 0, _EHDR_SIZE[self.elf_class], "the ELF header")
        self.machine = str(self.ehdr["e_machine"])
        if (self.elf_class, self.machine) not in ((64, "EM_X86_64"), (32, "EM_386")):
            raise ImageError(
                f"{name}: is a {self.elf_class}-bit ELF file for machine {self.machine}, not an x86 kernel"
            )
        self._structs.create_advanced_structs(self.ehdr["e_type"], self.machine)
        self.phdrs = self._table("ph", self._structs.Elf_Phdr, _PHDR_SIZE, MAX_PROGRAM_HEADERS)
        self.shdrs = self._table("sh", self._structs.Elf_Shdr, _SHDR_SIZE, MAX_SECTION_HEADERS)

    def image(self, kind: str, file_size: int) -> KernelImage:
        """Everything the file says, as a KernelImage."""
        segments = self._segments()
        return KernelImage(
            name=self.name,
            kind=kind,
            elf_class=self.elf_class,
            machine=self.machine,
            segments=segments,
            e_entry=int(self.ehdr["e_entry"]),
            notes=self._notes(segments),
            symbol_table=self._symbol_table(),
            elf_header=self.data[: _EHDR_SIZE[self.elf_class]],
            file_size=file_size,
            unpacked_size=len(self.data),
        )

    def _parse(self, struct: Any, at: int, size: int, what: str) -> Any:
        if at + size > len(self.data):
            raise ImageError(
                f"{self.name}: {what} ends at byte {at + size}, the file at byte {len(self.data)}; "
                "the file is truncated"
            )
        try:
            return struct_parse(struct, self._stream, at)
        except ELFError as cause:
            raise ImageError(f"{self.name}: {what} is damaged ({cause})") from cause

    def _table(self, kind: str, struct: Any, sizes: dict[int, int], limit: int) -> list[Any]:
        """The program headers ("ph") or section headers ("sh")."""
        what = {"ph": "program", "sh": "section"}[kind]
        at, count = int(self.ehdr[f"e_{kind}off"]), int(self.ehdr[f"e_{kind}num"])
        entry, size = int(self.ehdr[f"e_{kind}entsize"]), sizes[self.elf_class]
        if at == 0 or count == 0:
            return []
        if count > limit:
            raise ImageError(f"{self.name}: has {count} {what} headers, more than any kernel; it is damaged")
        if entry != size:
            raise ImageError(f"{self.name}: its {what} headers have {entry} bytes instead of {size}")
        # The last one first: a truncated file is told by where its table should end.
        self._parse(struct, at + (count - 1) * size, size, f"the table of {what} headers")
        return [self._parse(struct, at + i * size, size, f"{what} header {i}") for i in range(count)]

    def _slice(self, at: int, size: int, what: str) -> bytes:
        if at + size > len(self.data):
            raise ImageError(
                f"{self.name}: {what} ends at byte {at + size} of the image, which has {len(self.data)}; "
                "the file is truncated or damaged"
            )
        return self.data[at : at + size]

    def _segments(self) -> tuple[Segment, ...]:
        segments = []
        for number, phdr in enumerate(self.phdrs):
            memsz, flags = int(phdr["p_memsz"]), int(phdr["p_flags"])
            if phdr["p_type"] != "PT_LOAD" or not flags & _PF_RWX or memsz == 0:
                continue
            what = f"segment {number}"
            paddr, filesz = int(phdr["p_paddr"]), int(phdr["p_filesz"])
            if filesz > memsz:
                raise ImageError(f"{self.name}: {what} is larger in the file than in memory; it is damaged")
            if memsz > MAX_EXTENT or paddr + memsz > 1 << self.elf_class:
                raise ImageError(
                    f"{self.name}: {what} takes {memsz} bytes at {paddr:#x}, more than a kernel can; "
                    "it is damaged"
                )
            data = self._slice(int(phdr["p_offset"]), filesz, what)
            segments.append(Segment(paddr, int(phdr["p_vaddr"]), filesz, memsz, data, flags))
        if not segments:
            raise ImageError(f"{self.name}: has no loadable segment, so it is not a kernel image")
        self._refuse_overlap(segments)
        return tuple(segments)

    def _refuse_overlap(self, segments: Sequence[Segment]) -> None:
        ordered = sorted(segments, key=lambda segment: segment.paddr)
        for low, high in itertools.pairwise(ordered):
            if low.paddr + low.memsz > high.paddr:
                raise ImageError(
                    f"{self.name}: two segments overlap at physical address {high.paddr:#x}; it is damaged"
                )

    def _notes(self, segments: Sequence[Segment]) -> XenNotes:
        """The notes from the first place that has any: segments, sections, then `__xen_guest`."""
        in_segments = [
            record
            for phdr in self.phdrs
            if phdr["p_type"] == "PT_NOTE" and phdr["p_offset"]
            for record in self._records(int(phdr["p_offset"]), int(phdr["p_filesz"]), "a note segment")
        ]
        if in_segments:
            return notes.from_records(in_segments, NoteSource.PT_NOTE, self.name)
        in_sections = [
            record
            for shdr in self.shdrs
            if shdr["sh_type"] == "SHT_NOTE"
            for record in self._records(int(shdr["sh_offset"]), int(shdr["sh_size"]), "a note section")
        ]
        if in_sections:
            return notes.from_records(in_sections, NoteSource.SHT_NOTE, self.name)
        text = self._guest_section()
        if text is None:
            text = next(filter(None, (notes.find_guest_string(s.data) for s in segments)), None)
        return XenNotes() if text is None else notes.from_guest_string(text, self.name)

    def _records(self, at: int, size: int, what: str) -> list[tuple[int, bytes]]:
        return list(notes.records(self._slice(at, size, what), self.name))

    def _guest_section(self) -> bytes | None:
        """The contents of the section named `__xen_guest`."""
        index = int(self.ehdr["e_shstrndx"])
        if index >= len(self.shdrs):
            return None
        table = self.shdrs[index]
        start, end = int(table["sh_offset"]), int(table["sh_offset"]) + int(table["sh_size"])
        wanted = b"__xen_guest\0"
        for shdr in self.shdrs:
            at = start + int(shdr["sh_name"])
            if at + len(wanted) <= end and self.data[at : at + len(wanted)] == wanted:
                size = min(int(shdr["sh_size"]), notes.MAX_NOTE_BYTES)
                return self._slice(int(shdr["sh_offset"]), size, "the section __xen_guest")
        return None

    def _symbol_table(self) -> SymbolTable | None:
        for shdr in self.shdrs:
            if shdr["sh_type"] != "SHT_SYMTAB":
                continue
            link = int(shdr["sh_link"])
            if link >= len(self.shdrs):
                raise ImageError(f"{self.name}: its symbol table links to section {link}, which is not there")
            strings = self.shdrs[link]
            if max(int(shdr["sh_size"]), int(strings["sh_size"])) > MAX_SYMTAB:
                return None
            return SymbolTable(
                entries=self._slice(int(shdr["sh_offset"]), int(shdr["sh_size"]), "the symbol table"),
                strings=self._slice(int(strings["sh_offset"]), int(strings["sh_size"]), "the string table"),
                elf_class=self.elf_class,
            )
        return None
