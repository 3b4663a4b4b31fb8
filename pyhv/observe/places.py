# SPDX-License-Identifier: GPL-2.0-only
"""Which places an image's code has: its symbols, and the lines of its sources.

Symbols come from the ELF symbol table; an image without one has its pages instead. Lines come from a listing
(`pyhv/guests/listing.py`), or from the DWARF line table of an image that has it.
"""

from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, Final

from elftools.common.exceptions import DWARFError, ELFError
from elftools.elf.elffile import ELFFile

from pyhv.address import PAGE_MASK, PAGE_SIZE
from pyhv.errors import ImageError
from pyhv.frozen import frozen
from pyhv.guests.listing import Listed
from pyhv.loader.image import KernelImage, LoadSegment, Symbol

_PF_X: Final = 1
_DWARF_5: Final = 5


@frozen
class SourceLine:
    """A place that begins an instruction: its address, and the source's file and line."""

    address: int
    path: Path
    number: int


def routines(image: KernelImage) -> list[Symbol]:
    """What the code of an image is divided into, by address: its symbols, or pages where it has none.

    A symbol without a size reaches to the next one; within one that has a size it is a place, and no routine.
    Several names of one place are the first of them.
    """
    segments = [segment for segment in image.segments if segment.flags & _PF_X] or list(image.segments)
    found: list[Symbol] = []
    symbols = [one for one in image.symbols if any(_holds(segment, one.va) for segment in segments)]
    for number, symbol in enumerate(symbols):
        if found and symbol.va < found[-1].va + found[-1].size:
            continue
        following = symbols[number + 1].va if number + 1 < len(symbols) and not symbol.size else None
        if following == symbol.va:
            continue
        end = next(_end(segment) for segment in segments if _holds(segment, symbol.va))
        size = symbol.size or (end if following is None else following) - symbol.va
        found.append(symbol._replace(size=min(size, end - symbol.va)))
    return found or [page for segment in segments for page in _pages(segment)]


def _holds(segment: LoadSegment, va: int) -> bool:
    return segment.vaddr <= va < _end(segment)


def _end(segment: LoadSegment) -> int:
    return segment.vaddr + segment.memsz


def _pages(segment: LoadSegment) -> Iterator[Symbol]:
    end = _end(segment)
    for start in range(segment.vaddr & ~PAGE_MASK, end, PAGE_SIZE):
        first = max(start, segment.vaddr)
        yield Symbol(first, min(start + PAGE_SIZE, end) - first, f"page_{start:x}")


def lines_of_listing(listing: Iterable[Listed], image: KernelImage, file: str) -> list[SourceLine]:
    """The lines of a listing. ImageError: it is not of this image, but has other code."""
    found = []
    for one in listing:
        if not one.executable:
            continue
        if _bytes_at(image, one.address, len(one.code)) != one.code:
            raise ImageError(
                f"{file}: at {one.address:#x} it has `{one.text}`, and {image.name} has something else;"
                f" build both again, or remove it"
            )
        found.append(SourceLine(one.address, one.path, one.line))
    return found


def _bytes_at(image: KernelImage, va: int, size: int) -> bytes:
    for segment in image.segments:
        if _holds(segment, va):
            return segment.data[va - segment.vaddr : va - segment.vaddr + size]
    return b""


def lines_of_dwarf(file: Path) -> list[SourceLine]:
    """The line table of an ELF file; nothing if it has none. ImageError: it is damaged."""
    try:
        with file.open("rb") as stream:
            elf = ELFFile(stream)
            if not elf.has_dwarf_info(strict=True):
                return []
            dwarf = elf.get_dwarf_info()
            return [line for unit in dwarf.iter_CUs() for line in _lines_of_unit(dwarf, unit)]
    except OSError as cause:
        raise ImageError(f"{file}: cannot be read ({cause.strerror})") from cause
    except (
        ELFError,
        DWARFError,
        ArithmeticError,
        AttributeError,
        LookupError,
        TypeError,
        ValueError,
    ) as cause:
        # What pyelftools raises for tables that contradict themselves.
        raise ImageError(f"{file}: its DWARF line table is damaged ({cause})") from cause


def _lines_of_unit(dwarf: Any, unit: Any) -> Iterator[SourceLine]:
    program = dwarf.line_program_for_CU(unit)
    if program is None:
        return
    named = unit.get_top_DIE().attributes.get("DW_AT_comp_dir")
    directory = Path("/" if named is None else named.value.decode("utf-8", "replace"))
    files: dict[int, Path] = {}
    for entry in program.get_entries():
        state = entry.state
        if state is None or state.end_sequence or not state.is_stmt or not state.line:
            continue
        if state.file not in files:
            files[state.file] = directory / _path(program.header, state.file)
        yield SourceLine(state.address, files[state.file], state.line)


def _path(header: Any, number: int) -> Path:
    """A file's name; before DWARF 5 files and directories count from 1, and directory 0 is the unit's."""
    new = header["version"] >= _DWARF_5
    entry = header["file_entry"][number if new else number - 1]
    within = entry.dir_index
    folder = b""
    if new:
        folder = header["include_directory"][within]
    elif within:
        folder = header["include_directory"][within - 1]
    names: list[bytes] = [folder, entry.name]
    return Path(*(name.decode("utf-8", "replace") for name in names))
