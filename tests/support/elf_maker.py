# SPDX-License-Identifier: GPL-2.0-only
"""Makes small ELF files and bzImages for the loader's tests: nothing but `struct`, so that the loader is
tested against the specification and not against its own reader.
"""

import struct
from dataclasses import dataclass, field

PT_LOAD, PT_NOTE = 1, 4
SHT_PROGBITS, SHT_SYMTAB, SHT_STRTAB, SHT_NOTE = 1, 2, 3, 7
EM_386, EM_X86_64, EM_AARCH64 = 3, 62, 183
R, W, X = 4, 2, 1


def note(kind: int, desc: bytes | int | str, owner: bytes = b"Xen\0") -> bytes:
    if isinstance(desc, int):
        desc = struct.pack("<Q", desc)
    elif isinstance(desc, str):
        desc = desc.encode() + b"\0"
    return (
        struct.pack("<III", len(owner), len(desc), kind)
        + owner
        + bytes(-len(owner) % 4)
        + desc
        + bytes(-len(desc) % 4)
    )


def note32(kind: int, desc: int) -> bytes:
    """A number in four bytes, as 32-bit kernels write it."""
    return note(kind, struct.pack("<I", desc))


BOOTABLE = note(5, "xen-3.0") + note(6, "linux") + note(8, "generic")
"""The least that Xen's builder wants to read."""
BOOTABLE_PAE = BOOTABLE + note(9, "yes")
"""The same for a 32-bit kernel."""


@dataclass
class ElfMaker:
    """Collects segments and sections; `make` lays them out: headers, segments, sections, section headers."""

    bits: int = 64
    machine: int = EM_X86_64
    entry: int = 0x100000
    segments: list[tuple[int, int, int, bytes, int, int]] = field(default_factory=list)
    sections: list[tuple[str, int, bytes, int]] = field(default_factory=list)

    def load(
        self,
        paddr: int,
        data: bytes,
        memsz: int | None = None,
        flags: int = R | W | X,
        vaddr: int | None = None,
    ) -> "ElfMaker":
        size = len(data) if memsz is None else memsz
        self.segments.append((PT_LOAD, paddr, paddr if vaddr is None else vaddr, data, size, flags))
        return self

    def notes(self, raw: bytes) -> "ElfMaker":
        self.segments.append((PT_NOTE, 0, 0, raw, len(raw), R))
        return self

    def section(self, name: str, kind: int, data: bytes, link: int = 0) -> "ElfMaker":
        self.sections.append((name, kind, data, link))
        return self

    def symbols(self, symbols: list[tuple[str, int, int]], kind: int = 2) -> "ElfMaker":
        """Add .symtab (as the last section but two) and its .strtab; `symbols` are (name, va, size)."""
        strings = b"\0"
        entries = bytes(24 if self.bits == 64 else 16)
        for name, va, size in symbols:
            if self.bits == 64:
                entries += struct.pack("<IBBHQQ", len(strings), kind, 0, 1, va, size)
            else:
                entries += struct.pack("<IIIBBH", len(strings), va, size, kind, 0, 1)
            strings += name.encode() + b"\0"
        self.section(".symtab", SHT_SYMTAB, entries, link=len(self.sections) + 2)
        return self.section(".strtab", SHT_STRTAB, strings)

    def make(self) -> bytes:
        wide = self.bits == 64
        ehsize, phsize, shsize = (64, 56, 64) if wide else (52, 32, 40)
        body = b""
        at = ehsize + phsize * len(self.segments)
        headers = b""
        for kind, paddr, vaddr, data, memsz, flags in self.segments:
            if wide:
                headers += struct.pack("<IIQQQQQQ", kind, flags, at, vaddr, paddr, len(data), memsz, 4)
            else:
                headers += struct.pack("<IIIIIIII", kind, at, vaddr, paddr, len(data), memsz, flags, 4)
            body += data
            at += len(data)
        sections, table, count = self._sections(at, shsize) if self.sections else (b"", b"", 0)
        at += len(sections)
        ident = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
        form = "<HHIQQQIHHHHHH" if wide else "<HHIIIIIHHHHHH"
        shoff = at if count else 0
        header = ident + struct.pack(
            form, 2, self.machine, 1, self.entry, ehsize if self.segments else 0, shoff, 0, ehsize, phsize,
            len(self.segments), shsize, count, count - 1 if count else 0,
        )  # fmt: skip
        return header + headers + body + sections + table

    def _sections(self, at: int, shsize: int) -> tuple[bytes, bytes, int]:
        names = b"\0"
        body, table = b"", bytes(shsize)
        form = "<IIQQQQIIQQ" if self.bits == 64 else "<IIIIIIIIII"
        everything = [*self.sections, (".shstrtab", SHT_STRTAB, b"", 0)]
        for name, kind, data, link in everything:
            name_at = len(names)
            names += name.encode() + b"\0"
            if name == ".shstrtab":
                data = names
            table += struct.pack(form, name_at, kind, 0, 0, at + len(body), len(data), link, 0, 1, 0)
            body += data
        return body, table, len(everything) + 1


def kernel(
    notes: bytes = BOOTABLE, *, base: int = 0x100000, code: bytes = b"\xf4" * 64, memsz: int = 0x3000
) -> bytes:
    """A 64-bit kernel of one segment at `base` with `notes`, bootable by default."""
    return ElfMaker(entry=base).load(base, code, memsz).notes(notes).make()


def pae_kernel(
    notes: bytes = BOOTABLE_PAE, *, base: int = 0x100000, code: bytes = b"\xf4" * 64, memsz: int = 0x3000
) -> bytes:
    """A 32-bit kernel of one segment at `base` with `notes`, bootable by default."""
    return ElfMaker(bits=32, machine=EM_386, entry=base).load(base, code, memsz).notes(notes).make()


def bzimage(payload: bytes, version: int = 0x20F, trailer: bytes = b"\0\0\0\x01") -> bytes:
    """A bzImage of two setup sectors with `payload` 0x40 bytes into its protected-mode part."""
    image = bytearray(3 * 512 + 0x40)
    image[0x1F1] = 2
    image[0x1FE:0x200] = b"\x55\xaa"
    image[0x202:0x206] = b"HdrS"
    struct.pack_into("<H", image, 0x206, version)
    struct.pack_into("<II", image, 0x248, 0x40, len(payload) + len(trailer))
    return bytes(image) + payload + trailer + b"tail"
