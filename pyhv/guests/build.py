# SPDX-License-Identifier: GPL-2.0-only
"""From an assembly source to a bootable kernel image: what `pyhv build` does.

The steps are `preprocess` (text to statements), the assembler (statements to bytes) and `write_elf` (bytes to
file). This module puts the sections side by side, finds out where the labels ended up, and turns `.xen_note`
lines into notes. It knows nothing about running a kernel.
"""

import functools
import struct
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Final

from pyhv.address import PAGE_SIZE
from pyhv.cpu.assembler import assemble
from pyhv.errors import ImageError
from pyhv.guests.catalogue import FOLDER, source_of
from pyhv.guests.elf import (
    STT_FUNC,
    STT_NOTYPE,
    STT_OBJECT,
    ElfLayout,
    ElfSymbol,
    note_record,
    write_elf,
)
from pyhv.guests.listing import Listed
from pyhv.guests.preprocess import Label, Note, Program, Section, Statement, preprocess

LOAD_ADDRESS: Final = 0x100000
"""Virtual and pseudo-physical address of the first byte of .text: 1 MiB, as in Xen's own test kernels."""

ENTRY: Final = "_start"
"""The label at which a kernel begins."""

MAX_IMAGE_BYTES: Final = 64 << 20
"""Largest kernel, .bss included; a slip in a `.zero` should not take the host's memory."""

_DATA, _BSS, _END = "__data_start", "__bss_start", "_end"
_MARK: Final = "_at.."


def build(source_path: Path | str) -> bytes:
    """Build the kernel image of one assembly source. The same sources always give the same bytes.

    Raises `ImageError` with file, line and cause for any mistake in the source.
    """
    path = Path(source_path)
    return _image(_read(path), path)[0]


def build_listed(source_path: Path | str) -> tuple[bytes, list[Listed]]:
    """The same image, and which bytes of its .text each statement has become. ImageError."""
    path = Path(source_path)
    program = _read(path)
    marked, marks = _with_marks(program)
    image, (at, text), addresses = _image(marked, path)
    if image != _image(program, path)[0]:
        raise ImageError(f"{path}: the assembler makes other code of it when it has to tell the addresses")
    starts = [addresses[f"{_MARK}{number}"] for number in range(len(marks) + 1)]
    return image, [
        Listed(start, text[start - at : end - at], statement.path.absolute(), statement.line, statement.text)
        for statement, (start, end) in zip(marks, pairwise(starts), strict=True)
        if statement.path is not None
    ]


def _read(path: Path) -> Program:
    program = preprocess(path, [FOLDER])
    if not any(label.name == ENTRY and label.section is Section.TEXT for label in program.labels):
        raise ImageError(f"{path}: no label {ENTRY} in .text, so nowhere to begin")
    return program


def _with_marks(program: Program) -> tuple[Program, list[Statement]]:
    """The program with a label before each statement of .text, and those statements.

    Keystone tells no addresses but those of labels; no source can have labels of these names.
    """
    statements: list[Statement] = []
    marked: list[Statement] = []
    for statement in program.statements:
        if statement.section is Section.TEXT and not statement.text.endswith(":"):
            statements.append(Statement(Section.TEXT, f"{_MARK}{len(marked)}:", statement.origin))
            marked.append(statement)
        statements.append(statement)
    statements.append(Statement(Section.TEXT, f"{_MARK}{len(marked)}:", "end of .text"))
    return replace(program, statements=statements), marked


def _image(program: Program, path: Path) -> tuple[bytes, tuple[int, bytes], dict[str, int]]:
    """The file, where .text begins and its bytes, and the address of every label."""
    blob, addresses = _assemble(program, path)
    data_at, bss_at, end = addresses[_DATA], addresses[_BSS], addresses[_END]
    bss = blob[bss_at - LOAD_ADDRESS :]
    if any(bss):
        raise ImageError(f"{path}: .bss may hold only zeros; put initial values in .data")
    layout = ElfLayout(
        text_at=LOAD_ADDRESS,
        text=blob[: data_at - LOAD_ADDRESS],
        data_at=data_at,
        data=blob[data_at - LOAD_ADDRESS : bss_at - LOAD_ADDRESS],
        bss_at=bss_at,
        bss_size=end - bss_at,
        entry=addresses[ENTRY],
    )
    notes = b"".join(_note(note, addresses, program.width) for note in program.notes)
    file = write_elf(layout, notes, _symbols(program.labels, addresses), width=program.width)
    return file, (LOAD_ADDRESS, layout.text), addresses


@functools.cache
def build_builtin(name: str) -> bytes:
    """Image of a kernel of `catalogue.py`, built once per process. Raises `ImageError` if unknown."""
    return build(source_of(name))


def _assemble(program: Program, path: Path) -> tuple[bytes, dict[str, int]]:
    """Assemble all sections as one; return the bytes of memory and every label's address.

    Keystone has no notion of sections and tells no addresses. So the sections go one behind the other,
    padded to pages, and after the last byte comes a table with one `.quad label` for each label: once
    assembled, the table tells the addresses.
    """
    statements: list[Statement] = []
    for section, label in ((Section.TEXT, ""), (Section.DATA, _DATA), (Section.BSS, _BSS)):
        if label:
            for text in (f".balign {PAGE_SIZE}, 0", f"{label}:"):
                statements.append(Statement(section, text, f"{path.name}: start of {section.value}"))
        statements += [statement for statement in program.statements if statement.section is section]
    marks = [one.text[:-1] for one in statements if one.text.startswith(_MARK) and one.text.endswith(":")]
    names = [label.name for label in program.labels] + [_DATA, _BSS, _END, *marks]
    tail = [f".balign {PAGE_SIZE}, 0", f"{_END}:", *(f".quad {name}" for name in names)]
    statements += [Statement(Section.BSS, text, f"{path.name}: end") for text in tail]
    blob = assemble(
        "\n".join(statement.text for statement in statements),
        LOAD_ADDRESS,
        [statement.origin for statement in statements],
        width=program.width,
    )
    size = len(blob) - 8 * len(names)
    if size < 0 or (LOAD_ADDRESS + size) % PAGE_SIZE:
        raise ImageError(f"{path}: the assembler lost a statement; look for an operand that is cut short")
    if size > MAX_IMAGE_BYTES:
        raise ImageError(f"{path}: {size >> 20} MiB of memory; a kernel may take {MAX_IMAGE_BYTES >> 20} MiB")
    table = struct.unpack(f"<{len(names)}Q", blob[size:])
    return blob[:size], dict(zip(names, table, strict=True))


def _note(note: Note, addresses: dict[str, int], width: int) -> bytes:
    """Encode one `.xen_note`; a name stands for its label's address, and a number takes a word."""
    if note.textual:
        return note_record(note.kind, f"{note.value}".encode() + b"\0")
    value = addresses.get(note.value) if isinstance(note.value, str) else note.value
    if value is None:
        raise ImageError(f"{note.origin}: there is no label {note.value}")
    return note_record(note.kind, (value & (1 << width) - 1).to_bytes(width // 8, "little"))


def _symbols(labels: list[Label], addresses: dict[str, int]) -> list[ElfSymbol]:
    """One symbol per label; an ordinary label's size reaches to the next one in its section."""
    ends = {Section.TEXT: addresses[_DATA], Section.DATA: addresses[_BSS], Section.BSS: addresses[_END]}
    symbols = []
    for section in Section:
        end = ends[section]
        own = [label for label in labels if label.section is section]
        for label in sorted(own, key=lambda label: (addresses[label.name], label.name), reverse=True):
            address = addresses[label.name]
            kind = STT_FUNC if section is Section.TEXT else STT_OBJECT
            if label.local:
                symbols.append(ElfSymbol(label.name, address, 0, STT_NOTYPE, section.value, True))
                continue
            symbols.append(ElfSymbol(label.name, address, end - address, kind, section.value, False))
            end = address
    return symbols
