# SPDX-License-Identifier: GPL-2.0-only
"""The description of an image in words."""

import gzip

from elf_maker import BOOTABLE, ElfMaker, kernel, note, note32, pae_kernel

from pyhv.loader.describe import describe, size_text
from pyhv.loader.elf import load_image
from pyhv.loader.ramdisk import prepare


def sections(data: bytes, mib: int = 16, ramdisk: bytes | None = None) -> dict[str, dict[str, str]]:
    image = load_image(data, "k", bootable=False)
    found = None if ramdisk is None else prepare(ramdisk, "r")
    return {title: dict(rows) for title, rows in describe(image, mib * 256, found)}


def test_bootable_kernel() -> None:
    told = sections(
        gzip.compress(kernel(BOOTABLE + note(10, "!writable_page_tables|x") + note(2, 0x101234))),
        16,
        bytes(100),
    )
    assert list(told) == [
        "Image",
        "Xen notes (from ELF note segments)",
        "Segments",
        "Ramdisk",
        "Layout in 16 MiB",
        "Can it boot?",
    ]
    assert told["Image"]["format"] == "ELF (gzip)"
    assert "unpacked" in told["Image"]
    notes = told["Xen notes (from ELF note segments)"]
    assert notes["LOADER"] == "generic"
    assert notes["FEATURES"] == "writable_page_tables (required), x (possible, unknown to Xen)"
    assert notes["HYPERCALL_PAGE"].startswith("0x101234")
    assert "BSD_SYMTAB" not in notes
    assert told["Segments"]["0 rwx"].startswith("paddr 0x100000")
    layout = told["Layout in 16 MiB"]
    assert layout["kernel"] == "pfn 0x100..0x103, 3 pages, va 0x100000..0x103000"
    assert layout["ramdisk"] == "pfn 0x103..0x104, 1 page, va 0x103000..0x104000"
    assert layout["hypercall page"] == "pfn 0x101, va 0x101000"
    assert layout["tables"] == "1 L4, 1 L3, 1 L2, 2 L1"
    assert "yes" in told["Can it boot?"]


def test_every_reason_is_given() -> None:
    image = load_image(kernel(note(3, 0) + note(10, "!unheard")), "k", bootable=False)
    [title, rows] = describe(image, 4096)[-1]
    assert title == "Can it boot?"
    assert [label for label, _ in rows] == ["no"] * 3


def test_too_small() -> None:
    told = sections(kernel(), 1)
    assert "needs at least 4 MiB" in told["Layout in 1 MiB"]["does not fit"]


def test_32_bit_kernel() -> None:
    wishes = note(9, "yes") + note32(2, 0x101000) + note32(16, 1) + note32(12, 0xF5800000)
    told = sections(pae_kernel(BOOTABLE + wishes), 16, bytes(100))
    assert told["Image"]["machine"] == "ELF32 EM_386, guest class xen-3.0-x86_32p"
    notes = told["Xen notes (from ELF note segments)"]
    assert notes["PAE_MODE"] == "yes: PAE, its L3 anywhere"
    assert notes["HV_START_LOW"].startswith("0xf5800000")
    layout = told["Layout in 16 MiB"]
    assert layout["p2m list"] == "pfn 0x103..0x107, 4 pages, va 0x103000..0x107000"
    assert layout["tables"] == "1 L3, 4 L2, 2 L1"
    assert layout["ramdisk"].endswith("not mapped")
    assert told["Can it boot?"]["yes"].startswith("as a 32-bit PV domain with PAE (xen-3.0-x86_32p); it has")


def test_ramdisks() -> None:
    packed = gzip.compress(bytes(5000))
    told = sections(kernel(), ramdisk=packed)
    assert told["Ramdisk"] == {"contents": "gzip, unpacked for the guest", "size": "4.9 KiB for the guest"}
    assert "2 pages" in told["Layout in 16 MiB"]["ramdisk"]
    told = sections(kernel(), ramdisk=b"cpio")
    assert told["Ramdisk"] == {"contents": "the file as it is", "size": "4 bytes for the guest"}


def test_symbol_tables() -> None:
    wants = BOOTABLE + note(11, "yes")
    elf = ElfMaker().load(0x100000, b"x" * 16).notes(wants).symbols([("main", 0x100008, 4)])
    told = sections(elf.make())
    assert told["Xen notes (from ELF note segments)"]["BSD_SYMTAB"].endswith("behind the image")
    assert told["Layout in 16 MiB"]["BSD symbol table"] == "in the kernel, va 0x100010..0x10014e"
    told = sections(kernel(wants))
    assert told["Xen notes (from ELF note segments)"]["BSD_SYMTAB"].endswith("but has none")
    assert "BSD symbol table" not in told["Layout in 16 MiB"]


def test_kernels_without_pae_or_notes() -> None:
    told = sections(pae_kernel(BOOTABLE))
    assert "without PAE" in told["Can it boot?"]["no"]
    told = sections(ElfMaker().load(0x1000, b"x").make())
    assert "none" in told["Xen notes (from nowhere)"]
    assert not [title for title in told if title.startswith("Layout")]


def test_sizes() -> None:
    assert [size_text(n) for n in (0, 1023, 1024, 1 << 20)] == ["0 bytes", "1023 bytes", "1.0 KiB", "1.0 MiB"]
