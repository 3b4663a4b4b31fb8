# SPDX-License-Identifier: GPL-2.0-only
"""Reading kernels: what is understood, what is refused and in which words, and that no input does worse."""

import gzip
import lzma
import struct
from pathlib import Path
from typing import Any

import pytest
import zstandard
from elf_maker import (
    BOOTABLE,
    BOOTABLE_PAE,
    EM_386,
    EM_AARCH64,
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
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.errors import ImageError
from pyhv.loader.describe import describe
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage, Symbol
from pyhv.loader.notes import NoteSource
from pyhv.loader.ramdisk import Ramdisk

LINUX_BASE = 0xFFFFFFFF80000000
GUEST_STRING = (
    b"GUEST_OS=GNU Mach,GUEST_VER=1.3,XEN_VER=xen-3.0,VIRT_BASE=0x40000000,ELF_PADDR_OFFSET=0x40000000,"
    b"HYPERCALL_PAGE=0x2,LOADER=generic,FEATURES=pae_pgdir_above_4gb,PAE=yes[extended-cr3]\0"
)


def refused(data: bytes, **options: Any) -> str:
    with pytest.raises(ImageError) as caught:
        load_image(data, "k", **options)
    message = str(caught.value)
    assert message.startswith("k: ")
    assert "\n" not in message
    return message


def test_least_kernel() -> None:
    image = load_image(kernel(), "k")
    assert (image.kind, image.elf_class, image.machine) == ("ELF", 64, "EM_X86_64")
    assert (image.virt_base, image.kstart, image.kend, image.entry) == (0, 0x100000, 0x103000, 0x100000)
    assert image.notes.source is NoteSource.PT_NOTE
    assert image.hypercall_page is None
    assert image.init_p2m is None
    [segment] = image.segments
    assert (segment.paddr, segment.filesz, segment.memsz) == (0x100000, 64, 0x3000)
    assert segment.data == b"\xf4" * 64


def test_addresses_follow_the_physical_ones() -> None:
    raw = BOOTABLE + note(3, LINUX_BASE) + note(4, 0) + note(1, LINUX_BASE + 0x1000010)
    image = load_image(ElfMaker(entry=1).load(0x1000000, b"x" * 32, 0x2000, vaddr=0).notes(raw).make(), "k")
    assert image.kstart == LINUX_BASE + 0x1000000
    assert image.kend == LINUX_BASE + 0x1002000
    assert image.entry == LINUX_BASE + 0x1000010


def test_notes_only_in_sections() -> None:
    data = ElfMaker().load(0x100000, b"x" * 16).section(".note", SHT_NOTE, BOOTABLE).make()
    assert load_image(data, "k").notes.source is NoteSource.SHT_NOTE


def test_note_segments_win_over_sections() -> None:
    other = note(8, "other") + note(5, "xen-9")
    data = ElfMaker().load(0x100000, b"x" * 16).notes(BOOTABLE).section(".note", SHT_NOTE, other).make()
    assert load_image(data, "k").notes.loader == "generic"


def test_guest_section() -> None:
    elf = ElfMaker(entry=0x40000000).load(0x40000000, b"x" * 16, 0x8000)
    image = load_image(elf.section("__xen_guest", SHT_PROGBITS, GUEST_STRING).make(), "k")
    assert image.notes.source is NoteSource.XEN_GUEST
    assert (image.virt_base, image.paddr_offset, image.kstart) == (0x40000000,) * 3
    assert image.hypercall_page == 0x40002000


def test_a_guest_string_needs_its_section() -> None:
    data = b"code\0" + GUEST_STRING + bytes(16)
    assert "no Xen notes" in refused(ElfMaker(entry=0x40000000).load(0x40000000, data, 0x8000).make())


def test_segments_without_rights_are_not_loaded() -> None:
    elf = ElfMaker().load(0x100000, b"x" * 16).load(0x900000, b"y" * 16, flags=0)
    image = load_image(elf.notes(BOOTABLE).make(), "k")
    assert [segment.paddr for segment in image.segments] == [0x100000]


def test_segments_without_size_count_for_the_extent() -> None:
    elf = ElfMaker().load(0x100000, b"x" * 16).load(0x80000, b"", 0).load(0x180000, b"", 0)
    image = load_image(elf.notes(BOOTABLE).make(), "k")
    assert (image.kstart, image.kend) == (0x80000, 0x180000)
    assert "nothing to load" in refused(ElfMaker().load(0x100000, b"", 0).notes(BOOTABLE).make())


def test_symbols() -> None:
    elf = ElfMaker().load(0x100000, b"x" * 16).notes(BOOTABLE)
    image = load_image(elf.symbols([("main", 0x100008, 4), ("_start", 0x100000, 8)]).make(), "k")
    assert image.symbols == (Symbol(0x100000, 8, "_start"), Symbol(0x100008, 4, "main"))
    assert load_image(kernel(), "k").symbols == ()
    hostile = ElfMaker().load(0x100000, b"x").notes(BOOTABLE).symbols([("a\x1b[2J", 1, 1), ("é" * 999, 2, 2)])
    assert [symbol.name for symbol in load_image(hostile.make(), "k").symbols] == ["a\\x1b[2J", "é" * 256]


def with_symbols(bits: int, size: int = 16) -> KernelImage:
    machine, told = (EM_X86_64, BOOTABLE) if bits == 64 else (EM_386, BOOTABLE_PAE)
    elf = ElfMaker(bits=bits, machine=machine).load(0x100000, b"x" * 16, size).notes(told + note(11, "yes"))
    return load_image(elf.symbols([("main", 0x100008, 4)]).make(), "k")


@pytest.mark.parametrize(("bits", "room"), [(64, 0x140), (32, 0xE8)])
def test_bsd_symtab(bits: int, room: int) -> None:
    image = with_symbols(bits)
    assert (image.symtab_start, image.kend) == (0x100010, 0x100010 + room)
    blob = image.bsd_symtab
    assert struct.unpack_from("<I", blob) == (len(blob) - 4,)
    header = blob[4:]
    assert header[:5] == b"\x7fELF" + bytes([bits // 32])
    address, sizes = ("<Q", 52) if bits == 64 else ("<I", 40)
    assert struct.unpack_from(address, header, 32 if bits == 64 else 28) == (0,)
    assert struct.unpack_from(address, header, 40 if bits == 64 else 32) == (64,)
    own = (64, 64) if bits == 64 else (52, 40)
    assert struct.unpack_from("<HHHHHH", header, sizes) == (own[0], 0, 0, own[1], 3, 0)
    form = "<IIQQQQIIQQ" if bits == 64 else "<10I"
    none, symtab, strtab = (struct.unpack_from(form, header, 64 + own[1] * number) for number in range(3))
    assert symtab[4] >= 256
    assert not any(none)
    assert (symtab[1], symtab[6]) == (2, 2)
    assert (strtab[1], strtab[6]) == (3, 0)
    assert (symtab[4] + 4) % (bits // 8) == 0
    value = symtab[4] + (24 + 8 if bits == 64 else 16 + 4)
    assert struct.unpack_from(address, header, value) == (0x100008,)
    assert header[strtab[4] :] == b"\0main\0"
    assert len(header) == strtab[4] + strtab[5]


def test_a_32_bit_symtab_takes_more_than_its_room() -> None:
    image = with_symbols(32)
    assert image.memory_end == image.symtab_start + len(image.bsd_symtab) > image.kend
    image = with_symbols(64)
    assert image.memory_end == image.kend >= image.symtab_start + len(image.bsd_symtab)


def test_symbols_that_are_not_there() -> None:
    def kernel_with(link: int, kind: int = SHT_STRTAB, told: bytes = note(11, "yes")) -> bytes:
        elf = ElfMaker().load(0x100000, b"x" * 16).notes(BOOTABLE + told)
        elf.section(".symtab", SHT_SYMTAB, bytes(24), link).section(".strtab", kind, b"\0")
        return elf.make()

    assert load_image(kernel_with(2), "k").bsd_symtab
    for data in (kernel_with(0), kernel_with(9), kernel_with(2, SHT_PROGBITS), kernel_with(2, told=b"")):
        image = load_image(data, "k")
        assert (image.bsd_symtab, image.kend, image.memory_end) == (b"", 0x100010, 0x100010)
    for told in (b"", note(11, "yes")):
        far = bytearray(kernel_with(2, told=told))
        (shoff,) = struct.unpack_from("<Q", far, 40)
        struct.pack_into("<Q", far, shoff + 64 + 32, 1 << 20)
        if told:
            assert "symbols" in refused(bytes(far))
        else:
            assert load_image(bytes(far), "k").symbols == ()


def test_the_entry_may_lie_in_the_symtab() -> None:
    elf = ElfMaker(entry=0x100020).load(0x100000, b"x" * 16).notes(BOOTABLE + note(11, "yes"))
    assert load_image(elf.symbols([("main", 0x100008, 4)]).make(), "k").entry == 0x100020


def test_path(tmp_path: Path) -> None:
    path = tmp_path / "vmlinux"
    path.write_bytes(kernel())
    assert load_image(path).name == str(path)
    assert load_image(str(path), "short").name == "short"


def test_unreadable_paths(tmp_path: Path) -> None:
    for source in (tmp_path / "absent", tmp_path, "a\0b"):
        with pytest.raises(ImageError):
            load_image(source)


def test_32_bit() -> None:
    elf = ElfMaker(bits=32, machine=EM_386).load(0x100000, b"x" * 16).notes(BOOTABLE + note(9, "yes"))
    image = load_image(elf.symbols([("main", 0x100004, 4)]).make(), "k")
    assert (image.elf_class, image.width, image.guest_class) == (32, 32, "xen-3.0-x86_32p")
    assert image.symbols == (Symbol(0x100004, 4, "main"),)


def test_addresses_of_32_bit_kernels() -> None:
    raw = BOOTABLE_PAE + note32(3, 0xC0000000) + note32(4, 0) + note32(1, 0xC0100010) + note32(2, 0xC0101000)
    image = load_image(pae_kernel(raw), "k")
    assert (image.virt_base, image.kstart, image.kend) == (0xC0000000, 0xC0100000, 0xC0103000)
    assert (image.entry, image.hypercall_page) == (0xC0100010, 0xC0101000)
    assert image.l3_anywhere
    data = ElfMaker(bits=32, machine=EM_386).load(0x100000, b"x").section(".note", SHT_NOTE, BOOTABLE_PAE)
    assert load_image(data.make(), "k").notes.source is NoteSource.SHT_NOTE


def test_32_bit_guest_section() -> None:
    text = GUEST_STRING.replace(b"0x40000000", b"0xC0000000")

    def mach(told: bytes) -> ElfMaker:
        elf = ElfMaker(bits=32, machine=EM_386, entry=0xC0000000).load(0xC0000000, b"x" * 16, 0x8000)
        return elf.section("__xen_guest", SHT_PROGBITS, told)

    image = load_image(mach(text).make(), "k")
    assert (image.virt_base, image.paddr_offset, image.kstart) == (0xC0000000,) * 3
    assert (image.hypercall_page, image.l3_anywhere) == (0xC0002000, True)
    # The physical addresses of this format are virtual ones unless it says otherwise.
    image = load_image(mach(text.replace(b"ELF_PADDR_OFFSET=0xC0000000,", b"")).make(), "k")
    assert image.paddr_offset == 0xC0000000
    assert not load_image(mach(text.replace(b"[extended-cr3]", b"")).make(), "k").l3_anywhere
    assert "without PAE" in refused(mach(text.replace(b"PAE=yes[extended-cr3]", b"PAE=no")).make())


def test_unacceptable_32_bit_kernels() -> None:
    assert "without PAE (its PAE_MODE does not say 'yes')" in refused(pae_kernel(BOOTABLE))
    assert "without PAE (its PAE_MODE says 'no')" in refused(pae_kernel(BOOTABLE + note(9, "no")))
    assert "no Xen notes" in refused(ElfMaker(bits=32, machine=EM_386).load(0x100000, b"x").make())
    high = BOOTABLE_PAE + note32(3, 0xF5800000) + note32(4, 0)
    assert "guest's to use" in refused(pae_kernel(high + note32(1, 0xF5900000)))
    wide = BOOTABLE_PAE + note(3, LINUX_BASE) + note(4, 0) + note(1, LINUX_BASE + 0x100000)
    assert "guest's to use" in refused(pae_kernel(wide))
    assert "HYPERCALL_PAGE" in refused(
        pae_kernel(
            BOOTABLE_PAE + note32(3, 0xC0000000) + note32(4, 0) + note32(1, 0xC0100000) + note32(2, 4096)
        )
    )


def test_other_files() -> None:
    assert "is empty" in refused(b"")
    assert "neither an ELF file" in refused(b"#!/bin/sh\n" * 100)
    assert "no Xen notes" in refused(ElfMaker().load(0x100000, b"x" * 16).make())
    assert "PVH" in refused(kernel(note(18, 0x1000)))
    assert "EM_AARCH64" in refused(ElfMaker(machine=EM_AARCH64).load(0, b"x").make())
    assert "no loadable segment" in refused(ElfMaker().notes(BOOTABLE).make())
    big_endian = bytearray(kernel())
    big_endian[5] = 2
    assert "big-endian" in refused(bytes(big_endian))


def test_unacceptable_notes() -> None:
    assert "XEN_VERSION" in refused(kernel(note(8, "generic")))
    assert "'generic'" in refused(kernel(note(5, "xen-3.0") + note(6, "Linux")))
    for name in ("telepathy", "mmu_pt_update_preserve_ad", "highmem_assist", "x" * 70, " dom0", ""):
        assert f"{name[:62]!r}" in refused(kernel(BOOTABLE + note(10, f"!writable_page_tables|x|!{name}")))
    assert "'!dom0'" in refused(kernel(BOOTABLE + note(10, "x|!dom0|supervisor_mode_kernel")))
    assert "'auto_translated_physmap'" in refused(kernel(BOOTABLE + note(10, "!auto_translated_physmap")))
    for name in (
        "writable_descriptor_tables",
        "supervisor_mode_kernel",
        "pae_pgdir_above_4gb",
        "hvm_callback_vector",
    ):
        assert load_image(kernel(BOOTABLE + note(10, f"dom0|!{name}")), "k")
    assert "PADDR_OFFSET" in refused(kernel(BOOTABLE + note(4, 0)))
    assert "entry point" in refused(kernel(BOOTABLE + note(1, 0x103001)))
    assert "below its VIRT_BASE" in refused(kernel(BOOTABLE + note(3, 0x100000) + note(4, 0x200000)))
    assert "page aligned" in refused(kernel(BOOTABLE + note(3, 0x10)))
    assert "GiB above" in refused(kernel(BOOTABLE + note(3, 0x1000) + note(1, 0x2000), base=1 << 43))
    assert "first of a page" in refused(kernel(base=0x100010))
    assert "guest's to use" in refused(kernel(BOOTABLE + note(3, 0xFFFF800000000000)))
    assert "HYPERCALL_PAGE" in refused(kernel(BOOTABLE + note(2, (1 << 64) - 4096)))
    assert "HYPERCALL_PAGE" in refused(kernel(BOOTABLE + note(3, 4096) + note(2, 0) + note(1, 0x101000)))
    assert "INIT_P2M" in refused(kernel(BOOTABLE + note(15, 0x101000)))
    assert "INIT_P2M" in refused(
        kernel(BOOTABLE + note(3, LINUX_BASE) + note(1, LINUX_BASE + 0x100000) + note(15, 1 << 63))
    )


def test_damaged_headers() -> None:
    good = kernel()

    def patched(at: int, form: str, value: int) -> bytes:
        data = bytearray(good)
        struct.pack_into(form, data, at, value)
        return bytes(data)

    first = 64
    assert "larger in the file" in refused(patched(first + 40, "<Q", 8))
    assert "GiB above" in refused(patched(first + 40, "<Q", 1 << 43))
    assert "damaged" in refused(patched(first + 24, "<Q", (1 << 64) - 16))
    assert "truncated" in refused(patched(first + 8, "<Q", 1 << 63))
    assert "program headers" in refused(patched(56, "<H", 0xFFFF))
    assert "truncated" in refused(patched(54, "<H", 0x8000))
    heap = ElfMaker(entry=0).load(0, b"", 4096).load(0, b"", 4096)
    assert load_image(heap.notes(BOOTABLE).make(), "k").kend == 4096
    assert "on top of each other" in refused(heap.load(0, b"", 1).make())


def test_program_headers_may_be_further_apart() -> None:
    near = ElfMaker(entry=0x100000).load(0x100000, b"x" * 64, 0x3000).notes(BOOTABLE).make()
    first, second = near[64:120], near[120:176]
    wide = bytearray(near[:64] + first + bytes(8) + second + near[176:])
    struct.pack_into("<H", wide, 54, 64)
    for at, offset in ((64, 184), (128, 248)):
        struct.pack_into("<Q", wide, at + 8, offset)
    image = load_image(bytes(wide), "k")
    assert (image.kstart, image.kend, image.segments[0].data) == (0x100000, 0x103000, b"x" * 64)


def test_the_machine_decides_on_the_width() -> None:
    for bits, machine, width in ((64, EM_386, 32), (32, EM_X86_64, 64)):
        elf = ElfMaker(bits=bits, machine=machine).load(0x100000, b"x" * 64).notes(BOOTABLE_PAE)
        image = load_image(elf.make(), "k")
        assert (image.elf_class, image.width) == (bits, width)


ORIGINALS = {
    "elf": ElfMaker(entry=0x100000)
    .load(0x100000, b"code" * 8, 0x3000)
    .notes(BOOTABLE + note(3, 0) + note(10, "!writable_page_tables") + note(13, struct.pack("<QQ", 1, 1)))
    .symbols([("main", 0x100000, 8)])
    .make(),
    "sections": ElfMaker().load(0x100000, b"x").section(".note", SHT_NOTE, BOOTABLE).make(),
    "guest string": ElfMaker(entry=0x40000000)
    .load(0x40000000, b"x" * 64, 0x8000)
    .section("__xen_guest", SHT_PROGBITS, GUEST_STRING)
    .make(),
    "gzip": gzip.compress(kernel(), mtime=0),
    "bzimage": bzimage(lzma.compress(kernel())),
    "zstd": bzimage(zstandard.compress(kernel())),
    "i386": ElfMaker(bits=32, machine=EM_386)
    .load(0x100000, b"x")
    .notes(BOOTABLE_PAE + note32(3, 0) + note(11, "yes"))
    .symbols([("main", 0x100000, 8)])
    .make(),
}


def read_and_describe(data: bytes) -> None:
    try:
        image = load_image(data, "k", bootable=False)
    except ImageError:
        return
    assert describe(image, 4096, Ramdisk(bytes(1000), "nothing"))


@pytest.mark.parametrize("which", ORIGINALS)
def test_originals_are_sound(which: str) -> None:
    assert load_image(ORIGINALS[which], "k", bootable=False)


@pytest.mark.parametrize("which", ORIGINALS)
def test_every_truncation_of_the_content_is_refused(which: str) -> None:
    data = ORIGINALS[which]
    for size in range(0, len(data) - 16, 7):
        with pytest.raises(ImageError):
            load_image(data[:size], "k")


@pytest.mark.promise("I-12")
@settings(max_examples=300, deadline=None)
@given(
    which=st.sampled_from(sorted(ORIGINALS)),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), max_size=6),
    keep=st.floats(0, 1),
    tail=st.binary(max_size=8),
)
def test_mutated_images_raise_nothing_but_image_errors(
    which: str, flips: list[tuple[float, int]], keep: float, tail: bytes
) -> None:
    data = bytearray(ORIGINALS[which])
    for where, bit in flips:
        data[int(where * len(data))] ^= 1 << bit
    read_and_describe(bytes(data[: int(keep * len(data))] if keep < 0.5 else data) + tail)


@settings(max_examples=300, deadline=None)
@given(
    at=st.integers(0, 63 + 2 * 56),
    value=st.sampled_from(
        [0, 1, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 1 << 47, (1 << 63) - 1, (1 << 64) - 1]
    ),
    width=st.sampled_from(["<B", "<H", "<I", "<Q"]),
)
def test_extreme_numbers_in_headers(at: int, value: int, width: str) -> None:
    data = bytearray(ORIGINALS["elf"])
    struct.pack_into(width, data, at, value & ((1 << 8 * struct.calcsize(width)) - 1))
    read_and_describe(bytes(data))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=300))
def test_random_notes(raw: bytes) -> None:
    read_and_describe(kernel(raw))
    read_and_describe(kernel(BOOTABLE + note(int.from_bytes(raw[:1], "little") % 24, raw[1:])))
