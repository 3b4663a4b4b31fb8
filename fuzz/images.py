# SPDX-License-Identifier: GPL-2.0-only
"""Target `images`: files that strangers bring - ELF kernels, bzImages, their notes - and the cpio writer.

An input describes a small kernel, field by field, with odd values where it says so; then perhaps it is
compressed, into a bzImage, in several streams, or twice, and then bytes are changed anywhere. Or it is the
file itself. Only ImageError and ConfigError may come out. What was packed and not changed must come out as it
went in; what loads must lie in memory as a plain model has it. It is described, built into a domain with a
ramdisk and run for a moment, and after that the machine must be sound and give everything back.
"""

import bz2
import contextlib
import gzip
import lzma
import struct
from collections.abc import Callable

import lz4.block
import numpy as np
import zstandard

from fuzz.source import Source
from fuzz.target import Finding, Target, arm
from pyhv.address import MASK32, MASK64, PAGE_SHIFT, PAGE_SIZE, MachineAddress, Pfn
from pyhv.domain.config import DomainConfig
from pyhv.errors import ConfigError, ImageError
from pyhv.loader.builder import build
from pyhv.loader.bzimage import unpack
from pyhv.loader.cpio import CpioWriter
from pyhv.loader.describe import describe
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage
from pyhv.loader.layout import plan
from pyhv.loader.ramdisk import Ramdisk, prepare
from pyhv.machine import Machine, MachineConfig

PAGES = 1536
_RUN_NS = 50_000
BASES = (
    0,
    0,
    0xFFFF_FFFF_8000_0000,
    0xFFFF_8000_0000_0000,
    0xFFFF_8800_0000_0000,
    1,
    0x7FFF_FFFF_F000,
    MASK64 - 0xFFF,
)
ODD = (
    0,
    1,
    7,
    8,
    0xFFF,
    0x1000,
    0x1001,
    0x2000,
    0x10_0000,
    0x40_0000,
    1 << 31,
    MASK32,
    1 << 32,
    1 << 40,
    1 << 63,
    MASK64,
)
NOTE_TEXT = (
    b"xen-3.0\0", b"generic\0", b"linux\0", b"yes\0", b"no\0", b"bimodal\0", b"", b"xen-3.0", b"\xff\xfe\0",
    b"!writable_page_tables|pae_pgdir_above_4gb\0", b"!unknown\0", b"supervisor_mode_kernel|!",
    b"!dom0\0", b"dom0|!hvm_callback_vector\0", b"!auto_translated_physmap\0", b"x" * 63 + b"!dom0\0",
    b"a" * 300 + b"\0",
)  # fmt: skip
CODE = bytes.fromhex("0f05ebfe") + b"\xf4" * 12
NUMBER_SIZES = (8, 8, 8, 4, 4, 2, 1, 3, 0)
GUEST_STRING = b"GUEST_OS=linux,XEN_VER=xen-3.0,VIRT_BASE=0x0,ELF_PADDR_OFFSET=0x0,LOADER=generic,PAE=yes\0"


def _legacy_lz4(raw: bytes) -> bytes:
    """LZ4 as Linux's build makes it: a magic number and one block behind its size."""
    block: bytes = lz4.block.compress(raw, store_size=False)
    return b"\x02\x21\x4c\x18" + struct.pack("<I", len(block)) + block


PACKERS: tuple[Callable[[bytes], bytes], ...] = (
    gzip.compress, bz2.compress, lzma.compress, lambda raw: lzma.compress(raw, lzma.FORMAT_ALONE),
    _legacy_lz4, zstandard.compress, bytes,
)  # fmt: skip
CONCATENABLE = (gzip.compress, bz2.compress, lzma.compress, _legacy_lz4, zstandard.compress)


def real_mode_header(sectors: int, version: int, offset: int, length: int) -> bytes:
    """What a bzImage begins with."""
    head = bytearray(1024)
    head[0x1F1] = sectors
    struct.pack_into("<H", head, 0x1FE, 0xAA55)
    struct.pack_into("<4sH", head, 0x202, b"HdrS", version)
    struct.pack_into("<II", head, 0x248, offset, length)
    return bytes(head)


class Image:
    """A kernel file in the making."""

    def __init__(self, source: Source) -> None:
        self.source = source

    def odd(self, usual: int, bits: int = 64) -> int:
        """`usual`, or now and then something else."""
        how = self.source.u8()
        if how < 232:
            return usual
        value = ODD[how % len(ODD)] if how < 250 else self.source.number(8)
        return value & (1 << bits) - 1

    def notes(self, base: int) -> bytes:
        """Xen's notes."""
        source, found = self.source, b""
        wanted: list[tuple[int, bytes]] = [
            (5, b"xen-3.0\0"), (6, b"linux\0"), (8, b"generic\0"), (3, struct.pack("<Q", self.odd(base))),
            (1, struct.pack("<Q", self.odd(base + 0x10_1000 & MASK64))),
            (2, struct.pack("<Q", self.odd(base + 0x10_2000 & MASK64))),
        ]  # fmt: skip
        for _ in range(source.u8() & 3):
            kind = source.u8() % 24
            number = struct.pack("<Q", source.pick(ODD))
            value = source.pick(NOTE_TEXT) if source.chance(128) else number[: source.pick(NUMBER_SIZES)]
            wanted.append((kind, value))
        if source.chance(16):
            del wanted[source.below(6)]
        for kind, value in wanted:
            owner = b"Xen\0" if not source.chance(4) else source.raw(4)
            header = struct.pack("<III", self.odd(4, 32), self.odd(len(value), 32), kind)
            found += header + owner + value + bytes(-len(value) % 4)
        return found

    def elf(self) -> bytes:
        """An ELF file with a code and a note segment, perhaps others on top, perhaps symbols."""
        source = self.source
        wide = not source.chance(32)
        base = source.pick(BASES) if source.chance(64) else 0
        notes = self.notes(base)
        text = CODE + source.raw(source.u8() & 15)
        if source.chance(16):
            text += GUEST_STRING
        body_at = 0x200
        segments = [
            (1, 7, body_at + len(notes), base + 0x10_1000, 0x10_1000, len(text), 0x2000),
            (4, 4, body_at, 0, 0, len(notes), len(notes)),
        ]
        for _ in range(source.u8() & 3 if source.chance(64) else 0):  # on top of the code
            at, size = 0x10_1000 + source.u8() * 16, source.u8()
            segments.append((1, 7, body_at, base + at, at, size & 0x3F, size))
        for _ in range(source.u8() & 1):
            segments.append((1, source.u8() & 7, body_at, base + 0x20_0000, 0x20_0000, 64, source.pick(ODD)))
        headers = b""
        for kind, flags, offset, vaddr, paddr, filesz, memsz in segments:
            fields = [
                self.odd(offset),
                self.odd(vaddr & MASK64),
                self.odd(paddr),
                self.odd(filesz),
                self.odd(memsz),
            ]
            if wide:
                headers += struct.pack("<IIQQQQQQ", self.odd(kind, 32), flags, *fields, 4096)
            else:
                low = [value & MASK32 for value in fields]
                headers += struct.pack("<8I", self.odd(kind, 32), *low, flags, 4096)
        body = notes + text
        sections = self.sections(wide, body_at + len(body)) if source.chance(48) else b""
        tables = body_at + len(body) + len(sections) - 3 * (64 if wide else 40) if sections else 0
        entry, machine = self.odd(base + 0x10_1000 & MASK64), self.odd(62 if wide else 3, 16)
        count, size = self.odd(len(segments), 16), self.odd(56 if wide else 32, 16)
        identity = b"\x7fELF" + bytes([2 if wide else 1, 1, 1]) + bytes(9)
        if wide:
            header = struct.pack(
                "<HHIQQQIHHHHHH",
                2,
                machine,
                1,
                entry,
                self.odd(64),
                self.odd(tables),
                0,
                64,
                size,
                count,
                64,
                self.odd(3 if sections else 0, 16),
                0,
            )
        else:
            header = struct.pack(
                "<HHIIIIIHHHHHH",
                2,
                machine,
                1,
                entry & MASK32,
                self.odd(52, 32),
                self.odd(tables, 32),
                0,
                52,
                size,
                count,
                40,
                self.odd(3 if sections else 0, 16),
                0,
            )
        return (identity + header + headers).ljust(body_at, b"\0") + body + sections

    def sections(self, wide: bool, at: int) -> bytes:
        """A symbol table, its strings, and at the end three section headers: none and those two."""
        symtab = self.source.raw(self.source.u8() & 127)
        strtab = self.source.raw(self.source.u8() & 31)
        form, empty = ("<IIQQQQIIQQ", bytes(64)) if wide else ("<10I", bytes(40))
        bits = 64 if wide else 32
        headers = [
            struct.pack(
                form,
                number,
                self.odd(kind, 32),
                0,
                0,
                self.odd(start, bits),
                self.odd(size, bits),
                self.odd(link, 32),
                0,
                1,
                0,
            )
            for number, kind, start, size, link in (
                (1, 2, at, len(symtab), 2),
                (2, 3, at + len(symtab), len(strtab), 0),
            )
        ]
        return symtab + strtab + empty + b"".join(headers)

    def bzimage(self, payload: bytes) -> bytes:
        """A kernel behind a real-mode header, compressed."""
        packed = self.packed(payload) + struct.pack("<I", self.odd(len(payload), 32))
        head = real_mode_header(
            self.odd(1, 8), self.odd(0x20F, 16), self.odd(0, 32), self.odd(len(packed), 32)
        )
        return head + packed

    def packed(self, raw: bytes) -> bytes:
        """Compressed, now and then in two streams."""
        pack = self.source.pick(PACKERS)
        if pack in CONCATENABLE and self.source.chance(64):
            cut = self.source.u8() * len(raw) >> 8
            return pack(raw[:cut]) + pack(raw[cut:])
        return pack(raw)

    def check_wrapping(self) -> None:
        """What goes in must come out, whatever is around it."""
        elf = b"\x7fELF" + self.source.raw(self.source.u8())
        wrapped = self.packed(elf)
        if self.source.chance(128):
            wrapped = real_mode_header(1, 0x208, 0, len(wrapped)) + wrapped
            if self.source.chance(128):
                wrapped = self.packed(wrapped)
        found = unpack(wrapped, "input").elf
        if found != elf:
            raise Finding("wrapping", f"{len(elf)} bytes went in and {len(found)} came out")

    def ramdisk(self) -> bytes:
        """A ramdisk, perhaps gzip, perhaps changed; Finding if it has lost something."""
        source = self.source
        content = source.raw(source.u8() * 32)
        packed = bytearray(gzip.compress(content, 1, mtime=0) if source.chance(200) else content)
        if changed := source.chance(64) and bool(packed):
            packed[source.number(2) % len(packed)] = source.u8()
        packed += source.raw(source.u8() & 15) if source.chance(32) else b""
        try:
            found = prepare(bytes(packed), "input", raw=source.chance(32)).data
        except ImageError:
            return b""
        if not (found.startswith(packed) or changed or found.rstrip(b"\0") == content.rstrip(b"\0")):
            raise Finding("ramdisk", f"{len(packed)} bytes became {len(found)} others")
        return found

    def make(self) -> bytes:
        """The file."""
        source = self.source
        how = source.u8()
        if how >= 240:
            return source.raw(min(4 * source.u8(), 768))
        data = self.elf()
        if how >= 160:
            data = self.bzimage(data)
        if how >= 220 or 150 <= how < 160:
            data = gzip.compress(data, 1, mtime=0)
        changed = bytearray(data)
        for _ in range(source.u8() & 3 if source.chance(96) else 0):
            changed[source.number(2) % len(changed)] = source.u8()
        if source.chance(12):
            del changed[source.number(2) % len(changed) :]
        return bytes(changed)


class _Memory:
    """The pages of a domain that has no machine."""

    def __init__(self) -> None:
        self.p2m = np.arange(PAGES, dtype=np.uint64)
        self.pages = bytearray(PAGES << PAGE_SHIFT)

    def write(self, pfn: Pfn, offset: int, data: bytes) -> None:
        start = (pfn << PAGE_SHIFT) + offset
        if start + len(data) > len(self.pages):
            raise Finding("memory", f"{len(data)} bytes at {start:#x} leave the domain")
        self.pages[start : start + len(data)] = data


def check_memory(image: KernelImage, ramdisk: bytes) -> None:
    """Build a domain and compare kernel and ramdisk with a model: segments one after the other."""
    memory = _Memory()
    try:
        layout = plan(image, PAGES, len(ramdisk))
    except (ImageError, ConfigError):
        return
    address = MachineAddress(0)
    build(memory, image, layout, shared_info=address, store_evtchn=1, console_evtchn=2, ramdisk=ramdisk)
    lowest = min(segment.paddr for segment in image.segments)
    model = bytearray(layout.kernel.pages << PAGE_SHIFT)
    for segment in image.segments:
        at = segment.paddr - lowest
        model[at : at + segment.memsz] = segment.data.ljust(segment.memsz, b"\0")
    at = image.symtab_start - image.kstart
    model[at : at + len(image.bsd_symtab)] = image.bsd_symtab
    places = [(layout.kernel.pfn, bytes(model))]
    if layout.ramdisk is not None:
        places.append((layout.ramdisk.pfn, ramdisk))
    for pfn, expected in places:
        start = pfn << PAGE_SHIFT
        found = bytearray(memory.pages[start : start + len(expected)])
        if image.hypercall_page is not None:  # which may lie anywhere
            stubs = ((image.hypercall_page - image.virt_base) >> PAGE_SHIFT << PAGE_SHIFT) - start
            if 0 <= stubs < len(found):
                found[stubs : stubs + PAGE_SIZE] = expected[stubs : stubs + PAGE_SIZE]
        if found != expected:
            raise Finding("memory", f"{len(expected)} bytes at pfn {pfn:#x} are not those of the file")


class Images(Target):
    """Loads, describes, builds and runs what an input describes."""

    name = "images"
    unit = "images"
    max_length = 320

    def __init__(self) -> None:
        super().__init__()
        self.booted = 0
        """Images that were accepted and ran."""

    def run(self, data: bytes) -> bytes:
        """One image, or one archive."""
        source = Source(data)
        arm()
        self.calls += 1
        self.steps = [0]
        if source.chance(24):
            self._archive(source)
        else:
            image = Image(source)
            self._image(image.make(), image)
        self.started = True
        return source.used()

    def _archive(self, source: Source) -> None:
        writer = CpioWriter()
        try:
            for _ in range(source.u8() & 7):
                path = source.raw(source.u8() & 15).decode("latin-1") if source.chance(128) else "a/b"
                if source.chance(128):
                    writer.directory(path)
                else:
                    writer.file(path, source.raw(source.u8()), source.number(2))
            writer.finish()
        except (ImageError, ConfigError):
            return

    def _image(self, raw: bytes, maker: Image) -> None:
        maker.check_wrapping()
        try:
            image = load_image(raw, "input", bootable=False)
        except ImageError:
            return
        _ = image.symbols, image.bsd_symtab
        ramdisk = maker.ramdisk()
        with contextlib.suppress(ImageError, ConfigError):
            describe(image, PAGES, Ramdisk(ramdisk, "made up"))
        try:
            image = load_image(raw, "input")
        except ImageError:
            return
        check_memory(image, ramdisk)
        self._boot(image, ramdisk)

    def _boot(self, image: KernelImage, ramdisk: bytes) -> None:
        machine = Machine(MachineConfig(PAGES, virtual_time=True))
        free = machine.frames.free_count
        try:
            domain = machine.create(image, DomainConfig("input", PAGES), ramdisk=ramdisk, console=_Nobody())
        except (ImageError, ConfigError):
            domain = None
        else:
            self.booted += 1
            machine.run(timeout_ns=_RUN_NS)
        try:
            damage = machine.audit()
            if damage:
                raise Finding("audit", damage[0])
            if domain is not None:
                domain.life.shut_down(0)
                machine.settle()
            if machine.frames.free_count != free:
                raise Finding("leak", f"{free - machine.frames.free_count} frames are lost")
        finally:
            machine.close()

    def finish(self) -> None:
        """Nothing is kept."""

    def abandon(self) -> None:
        """Nothing is kept."""
        self.started = True


class _Nobody:
    def output(self, data: bytes) -> None:
        """Nobody reads it."""
