# SPDX-License-Identifier: GPL-2.0-only
"""Kernels and ramdisks for tests/real/test_libxenguest.py: small ones that each have one odd thing, and
others made from them by chance, always by the same.
"""

import bz2
import gzip
import lzma
import random
import struct
from collections.abc import Callable, Iterator

import zstandard
from elf_maker import (
    BOOTABLE,
    BOOTABLE_PAE,
    EM_386,
    EM_X86_64,
    SHT_NOTE,
    SHT_PROGBITS,
    SHT_STRTAB,
    SHT_SYMTAB,
    ElfMaker,
    bzimage,
    kernel,
    note,
    note32,
    pae_kernel,
)

LINUX_BASE = 0xFFFFFFFF80000000
CPIO = b"070701" + bytes(range(256)) * 40
GUEST_STRING = (
    b"GUEST_OS=GNU Mach,GUEST_VER=1.3,XEN_VER=xen-3.0,VIRT_BASE=0x40000000,ELF_PADDR_OFFSET=0x40000000,"
    b"HYPERCALL_PAGE=0x2,LOADER=generic,FEATURES=pae_pgdir_above_4gb,PAE=yes[extended-cr3]\0"
)


def elf(bits: int = 64, told: bytes = b"", entry: int = 0x100000) -> ElfMaker:
    """A kernel in the making that has what is needed, and `told`, in a note segment."""
    needed = BOOTABLE if bits == 64 else BOOTABLE_PAE
    return ElfMaker(bits=bits, machine=EM_X86_64 if bits == 64 else EM_386, entry=entry).notes(needed + told)


def code(maker: ElfMaker, size: int = 0x3000) -> ElfMaker:
    """With a segment at 1 MiB."""
    return maker.load(0x100000, b"\xf4" * 64, size)


def with_symtab(bits: int, size: int = 0x10, link: int = 2, symbols: int = 3) -> bytes:
    """A kernel that wants its symbol table behind it."""
    maker = elf(bits, note(11, "yes")).load(0x100000, b"\xf4" * 16, size)
    table = bytes(range(24 * symbols))[: (24 if bits == 64 else 16) * symbols]
    return (
        maker.section(".symtab", SHT_SYMTAB, table, link).section(".strtab", SHT_STRTAB, b"\0main\0").make()
    )


def linux_like() -> bytes:
    """What distinguishes Linux: high addresses, a p2m of its own, an unmapped ramdisk, several segments."""
    told = (
        note(3, LINUX_BASE)
        + note(4, 0)
        + note(1, LINUX_BASE + 0x200000)
        + note(15, 0x8000000000)
        + note(16, 1)
    )
    maker = elf(told=told + note(10, b"!writable_page_tables|pae_pgdir_above_4gb") + note(17, 0x8801))
    return maker.load(0x200000, b"text" * 1500, 0x3000).load(0x204123, b"data", 0x2000).make()


def mach_like(bits: int = 64, text: bytes = GUEST_STRING) -> bytes:
    """A kernel with the older format of notes."""
    maker = ElfMaker(bits=bits, machine=EM_X86_64 if bits == 64 else EM_386, entry=0x40000000)
    return maker.load(0x40000000, b"x" * 64, 0x8000).section("__xen_guest", SHT_PROGBITS, text).make()


def sized(data: bytes) -> bytes:
    """What Linux appends to the payload of a bzImage."""
    return struct.pack("<I", len(data))


def handmade() -> Iterator[tuple[str, bytes]]:
    """Kernels, each with its name."""
    yield from plain()
    yield from features()
    yield from placed()
    yield from numbers()
    yield from packed()


def plain() -> Iterator[tuple[str, bytes]]:
    yield "least", kernel()
    yield "least of 32 bits", pae_kernel()
    yield "like Linux", linux_like()
    yield "like Mach", mach_like()
    yield "like Mach of 32 bits", mach_like(32)
    yield "notes in sections", ElfMaker().load(0x100000, b"x").section(".note", SHT_NOTE, BOOTABLE).make()
    yield "32 bits in 64", ElfMaker(machine=EM_386).load(0x100000, b"x").notes(BOOTABLE_PAE).make()
    yield "64 bits in 32", ElfMaker(bits=32).load(0x100000, b"x").notes(BOOTABLE).make()
    for bits in (64, 32):
        yield f"symtab of {bits} bits", with_symtab(bits)
        yield f"symtab of {bits} bits, odd end", with_symtab(bits, 0x123)
        yield f"symtab of {bits} bits, second page", with_symtab(bits, 0xE00)
        yield f"empty symtab of {bits} bits", with_symtab(bits, symbols=0)
        yield f"symtab of {bits} bits, end of the page", with_symtab(bits, 0xF00)
        yield f"bad link of {bits} bits", with_symtab(bits, link=1)
        yield f"far link of {bits} bits", with_symtab(bits, link=77)
    yield (
        "entry in the symtab",
        with_symtab(64).replace(struct.pack("<Q", 0x100000), struct.pack("<Q", 0x100020), 1),
    )
    for name, data in (("Mach", mach_like()), ("symtab", with_symtab(64))):
        # The first section header is nobody's, whatever it says.
        yield (
            f"{name}, first section",
            _patched(data, struct.unpack_from("<Q", data, 40)[0], "<II", 1, SHT_SYMTAB),
        )
    yield "many program headers", _patched(elf().load(0x100000, b"x" * (300 * 56)).make(), 56, "<H", 300)
    yield "big-endian", _patched(kernel(), 5, "<B", 2)
    yield "of no class", _patched(pae_kernel(), 4, "<B", 7)
    yield "truncated", linux_like()[:-2]
    yield "text in the data only", ElfMaker().load(0x100000, b"\0" + GUEST_STRING).make()


def _patched(data: bytes, at: int, form: str, *values: int) -> bytes:
    changed = bytearray(data)
    struct.pack_into(form, changed, at, *values)
    return bytes(changed)


def features() -> Iterator[tuple[str, bytes]]:
    names = (
        "writable_page_tables", "writable_descriptor_tables", "auto_translated_physmap",
        "supervisor_mode_kernel", "pae_pgdir_above_4gb", "mmu_pt_update_preserve_ad", "highmem_assist",
        "hvm_callback_vector",
        "dom0", "telepathy", "", " dom0",
        "x" * 70, "x" * 63 + "|!dom0", "x" * 62 + "|!telepathy",
    )  # fmt: skip
    for name in names:
        yield f"requires {name[:30]}", kernel(BOOTABLE + note(10, f"!{name}"))
        yield f"can use {name[:30]}", kernel(BOOTABLE + note(10, name))
    yield "a bitmap too long", kernel(BOOTABLE + struct.pack("<III", 4, 0x8008, 17) + b"Xen\0\1\0\0\0")
    yield "two lists", kernel(BOOTABLE + note(10, "!writable_page_tables") + note(10, "!dom0"))
    yield "a bitmap", kernel(BOOTABLE + note(17, struct.pack("<II", 0x8801, 7)) + note(17, b"\2\0\0\0"))
    for text in (
        b"FEATURES=!telepathy,VIRT_BASE=0x1",
        b"FEATURES=!dom0",
        b"PAE=yes",
        b"PAE=no",
        b"XEN_VER=4",
    ):
        yield f"a string with {text[:12]!r}", mach_like(32, GUEST_STRING.rstrip(b"\0") + b"," + text + b"\0")
    for value in (b"12z", b"", b"-4096", b" 0x40000000", b"0x1" + b"0" * 20, b"010000000000"):
        yield (
            f"a base of {value[:12]!r}",
            mach_like(64, GUEST_STRING.replace(b"VIRT_BASE=0x4000000", b"VIRT_BASE=" + value)),
        )
    yield "a long value", mach_like(64, b"GUEST_VER=" + b"x" * 127 + GUEST_STRING)
    yield "a long key", mach_like(64, b"x" * 31 + GUEST_STRING)


def placed() -> Iterator[tuple[str, bytes]]:
    yield "overlapping", code(elf()).load(0x100800, b"y" * 16, 0x400).load(0x1007F8, b"z" * 16, 16).make()
    yield (
        "overlapping, later zeros",
        elf().load(0x100000, b"x" * 4096).load(0x100100, b"y" * 16, 0x400).make(),
    )
    yield "nothing below", code(elf()).load(0x80000, b"", 0).make()
    yield "nothing above", code(elf()).load(0x180000, b"", 0).make()
    yield "nothing at all", elf().load(0x100000, b"", 0).make()
    yield "three on one page", code(code(code(elf(), 4096), 4096), 4096).make()
    yield "unaligned", elf(entry=0x100010).load(0x100010, b"x" * 64, 0x3000).make()
    yield (
        "unaligned in the file only",
        elf(told=note(3, 0) + note(4, 0x10)).load(0x100010, b"x" * 64, 0x3000).make(),
    )
    yield "symtab, unaligned in the file only", (
        elf(told=note(3, 0) + note(4, 0xC) + note(11, "yes")).load(0x10000C, b"x" * 64)
        .section(".symtab", SHT_SYMTAB, bytes(24), 2).section(".strtab", SHT_STRTAB, b"\0main\0").make()
    )  # fmt: skip
    yield "unaligned base", kernel(BOOTABLE + note(3, 0x10))
    yield "unaligned base, aligned kernel", kernel(BOOTABLE + note(3, 0x10) + note(4, 0x10))
    yield "above its base", kernel(BOOTABLE + note(3, 0x80000) + note(4, 0))
    yield "below its base", kernel(BOOTABLE + note(3, 0x100000) + note(4, 0x200000))
    yield "offset without base", kernel(BOOTABLE + note(4, 0))
    yield "far", kernel(BOOTABLE + note(3, 0) + note(1, 1 << 40), base=1 << 40)
    yield "far beyond", kernel(BOOTABLE + note(3, 0x1000), base=1 << 43)
    yield (
        "in the hypervisor's hole",
        kernel(BOOTABLE + note(3, 0xFFFF800000000000) + note(1, 0xFFFF800000100000)),
    )
    yield "more than the memory", kernel(memsz=64 << 20)
    yield "more in the file than in memory", kernel(memsz=8)
    yield "at the end of all addresses", code(elf()).load((1 << 64) - 16, b"", 32).make()
    for base in (0, 0xC0000000, 0xF5800000, 0xF5300000):
        yield (
            f"32 bits at {base:#x}",
            pae_kernel(BOOTABLE_PAE + note32(3, base) + note32(4, 0) + note32(1, base + 0x100000)),
        )
    for page in (0, 0x101000, 0x101010, 0x103000, 0x10E000, 0xFFF000, 0x1000000, 0xFFFFFFFFFFFFF000):
        yield f"hypercall page {page:#x}", kernel(BOOTABLE + note(2, page))
    linux = note(3, LINUX_BASE) + note(4, 0) + note(1, LINUX_BASE + 0x100000)
    for p2m in (
        0,
        1 << 39,
        (1 << 39) + 8,
        LINUX_BASE - 0x2000,
        LINUX_BASE - 0x100000,
        LINUX_BASE + 0x101000,
        1 << 63,
    ):
        yield f"p2m at {p2m:#x}", kernel(BOOTABLE + linux + note(15, p2m))


def numbers() -> Iterator[tuple[str, bytes]]:
    for size in (0, 1, 2, 3, 4, 5, 8, 12, 16):
        desc = b"\0\0\x08\0".ljust(max(size, 4), b"\0")[:size]
        yield f"entry of {size} bytes", kernel(BOOTABLE + note(1, desc))
        yield f"base of {size} bytes", kernel(BOOTABLE + note(3, desc) + note(4, 0))
    for kind in (1, 2, 3, 4, 15, 16):
        yield f"note {kind} says nothing", kernel(BOOTABLE + note(kind, (1 << 64) - 1))
    for entry in (0xFFFFF, 0x102FFF, 0x103000, 0x103001):
        yield f"entry {entry:#x}", kernel(BOOTABLE + note(1, entry))
    yield "said twice", kernel(BOOTABLE + note(8, "other") + note(6, "other") + note(6, "linux"))
    yield "PAE said twice", pae_kernel(BOOTABLE_PAE + note(9, "no"))
    yield "bimodal", pae_kernel(BOOTABLE + note(9, "not bimodal"))
    yield "no PAE", pae_kernel(BOOTABLE + note(9, "yes[extended-cr3]"))
    yield "no version", kernel(note(8, "generic"))
    yield "neither", kernel(note(5, "xen-3.0") + note(6, "Linux"))
    yield "the owner's name is longer", kernel(note(5, "xen-3.0", b"Xen\0more") + note(8, "generic"))
    yield "another owner", kernel(note(5, "xen-3.0", b"Xenia\0") + note(8, "generic"))
    yield "a string without end", kernel(note(5, "xen-3.0") + note(8, b"generic!"))
    yield "a long string", kernel(note(5, "xen-3.0") + note(8, "generic") + note(6, b"x" * 5000 + b"\0"))
    yield "a note too long", kernel(BOOTABLE + struct.pack("<III", 4, 1 << 31, 8) + b"Xen\0")
    yield "a tail", kernel(BOOTABLE + b"\1" * 7)


def packed() -> Iterator[tuple[str, bytes]]:
    raw = kernel()
    end = sized(raw)
    yield "gzip", gzip.compress(raw, mtime=0)
    yield "gzip of a bzImage", gzip.compress(bzimage(gzip.compress(raw, mtime=0), trailer=b""), mtime=0)
    yield "bzImage, gzip", bzimage(gzip.compress(raw, mtime=0), trailer=b"")
    yield "bzImage, xz", bzimage(lzma.compress(raw, check=lzma.CHECK_CRC32), trailer=end)
    yield (
        "bzImage, xz without its footer",
        bzimage(lzma.compress(raw, check=lzma.CHECK_CRC32)[:-12], trailer=end),
    )
    yield "bzImage, lzma", bzimage(lzma.compress(raw, lzma.FORMAT_ALONE), trailer=end)
    yield "bzImage, zstd", bzimage(zstandard.compress(raw), trailer=end)
    yield (
        "bzImage, zstd, two frames",
        bzimage(zstandard.compress(raw[:99]) + zstandard.compress(raw[99:]), trailer=end),
    )
    yield "bzImage, not compressed", bzimage(raw, trailer=b"")
    yield "bzImage, too old", bzimage(gzip.compress(raw, mtime=0), version=0x207, trailer=b"")
    yield "bzImage, truncated", bzimage(gzip.compress(raw, mtime=0), trailer=b"")[:-40]
    yield "bzImage without its other mark", _unmarked(bzimage(gzip.compress(raw, mtime=0), trailer=b""))
    yield "gzip, truncated", gzip.compress(raw, mtime=0)[:-9]
    yield "gzip, damaged", gzip.compress(raw, mtime=0)[:-6] + bytes(6)
    yield "gzip of nothing", gzip.compress(b"", mtime=0)
    yield "gzip in gzip", gzip.compress(gzip.compress(raw, mtime=0), mtime=0)
    yield "text", b"#!/bin/sh\n" * 100
    yield "nothing", b""
    # What pyhv takes besides.
    yield "xz", lzma.compress(raw)
    yield "bzImage, bzip2", bzimage(bz2.compress(raw), trailer=end)
    yield "bzImage, xz, another size", bzimage(lzma.compress(raw, check=lzma.CHECK_CRC32))
    yield "gzip, two members", gzip.compress(raw[:99], mtime=0) + gzip.compress(raw[99:], mtime=0)


def _unmarked(image: bytes) -> bytes:
    return image[:0x1FE] + bytes(2) + image[0x200:]


def ramdisks() -> Iterator[tuple[str, bytes]]:
    """Ramdisks, each with its name."""
    member = gzip.compress(CPIO, mtime=0)
    yield "raw", CPIO
    yield "gzip", member
    yield "gzip of what fills its page", gzip.compress(CPIO[:4080], mtime=0)
    yield "gzip of a byte more", gzip.compress(CPIO[:4081], mtime=0)
    yield "gzip of nothing", gzip.compress(b"", mtime=0)
    yield "gzip in gzip", gzip.compress(member, mtime=0)
    yield "gzip, damaged", member[:100] + bytes([member[100] ^ 0xFF]) + member[101:]
    yield "gzip, truncated", member[:-20]
    yield "gzip that lies about its size", member[:-4] + struct.pack("<I", 100)
    yield "gzip that claims too much", member[:-4] + struct.pack("<I", (1 << 30) + 1)
    yield "gzip, then zeros", member + bytes(512)
    yield "gzip, then an archive", member + CPIO
    yield "two members", gzip.compress(CPIO[:5000], mtime=0) + member
    yield "two members, the greater first", member + gzip.compress(CPIO[:50], mtime=0)
    yield "xz", lzma.compress(CPIO)
    yield "zstd", zstandard.compress(CPIO)
    yield "bzip2", bz2.compress(CPIO)
    yield "one byte", b"x"
    yield "five bytes", member[:5]
    yield "nothing", b""


INTERESTING = (
    0, 1, 2, 3, 4, 7, 8, 16, 0x7F, 0xFF, 0x100, 0xFFF, 0x1000, 0x1001, 0x3000, 0x100000, 0x101000, 0x400000,
    0x1000000, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, 1 << 40, LINUX_BASE, 1 << 63, (1 << 64) - 1,
)  # fmt: skip
MUTANTS = (
    "least", "least of 32 bits", "like Linux", "like Mach", "like Mach of 32 bits", "notes in sections",
    "symtab of 64 bits", "symtab of 32 bits", "overlapping", "gzip of a bzImage", "bzImage, xz",
    "bzImage, zstd",
)  # fmt: skip


def mutants(seed: int, count: int, originals: dict[str, bytes] | None = None) -> Iterator[tuple[str, bytes]]:
    """Images that are almost right: a few fields, bytes or bits of a (handmade) one are something else."""
    chance = random.Random(seed)
    if originals is None:
        made = dict(handmade())
        originals = {name: made[name] for name in MUTANTS}
    names = list(originals)
    ways: tuple[Callable[[random.Random, bytearray], None], ...] = (
        _field,
        _field,
        _field,
        _byte,
        _bit,
        _cut,
        _swap,
    )
    for number in range(count):
        name = names[number % len(names)]
        data = bytearray(originals[name])
        for _ in range(chance.choice((1, 1, 1, 2, 3))):
            chance.choice(ways)(chance, data)
        yield f"{name}, mutant {number}", bytes(data)


def _field(chance: random.Random, data: bytearray) -> None:
    """An aligned number, most likely in the headers, becomes an interesting one, or a bit more or less."""
    size = chance.choice((1, 2, 4, 8))
    at = (
        chance.randrange(0, max(len(data) - size, 1)) // size * size
        if chance.random() < 0.4
        else (chance.randrange(0, min(len(data) - size, 0x200)) // size * size)
    )
    old = int.from_bytes(data[at : at + size], "little")
    new = (
        chance.choice(INTERESTING)
        if chance.random() < 0.6
        else old + chance.choice((-1, 1, 4, -4, 0x1000, -0x1000))
    )
    data[at : at + size] = (new & (1 << 8 * size) - 1).to_bytes(size, "little")


def _byte(chance: random.Random, data: bytearray) -> None:
    data[chance.randrange(len(data))] = chance.randrange(256)


def _bit(chance: random.Random, data: bytearray) -> None:
    data[chance.randrange(len(data))] ^= 1 << chance.randrange(8)


def _cut(chance: random.Random, data: bytearray) -> None:
    del data[len(data) - chance.randrange(1, 40) :]


def _swap(chance: random.Random, data: bytearray) -> None:
    """Eight bytes change places with others."""
    one, other = (chance.randrange(0, len(data) // 8) * 8 for _ in range(2))
    data[one : one + 8], data[other : other + 8] = data[other : other + 8], data[one : one + 8]
