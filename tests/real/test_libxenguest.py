# SPDX-License-Identifier: GPL-2.0-only
"""The loader against genuine libxenguest 4.17: the same images are taken and refused, and those that are
taken lie in memory byte for byte alike. Where that is not so, it is meant, and docs/differences.md has it.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import pytest
from image_corpus import CPIO, elf, handmade, linux_like, mutants, ramdisks
from libxenguest import (
    COMMAND_LINE,
    CONSOLE_PORT,
    SHARED_INFO,
    STORE_PORT,
    Built,
    Libxenguest,
    Refused,
    frame,
)

from pyhv.abi.shared import CONSOLE_CONNECTION
from pyhv.address import MASK64, PAGE_SHIFT, PAGE_SIZE, MachineAddress, Pfn
from pyhv.errors import ConfigError, ImageError
from pyhv.guests.build import build_builtin
from pyhv.guests.catalogue import BUILTIN
from pyhv.images import debian, kernels
from pyhv.loader.builder import build
from pyhv.loader.bzimage import unpack
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage
from pyhv.loader.layout import Layout, plan
from pyhv.loader.notes import XENFEATURES
from pyhv.loader.ramdisk import prepare

pytestmark = pytest.mark.debian

MIB = 16
SEED = 20261127
MUTANTS = 900

REFUSED_ONLY_HERE = {
    "bytes that are not in the file": r"ends at byte \d+ of the image",
    "a damaged compressed stream": r"stream (ends too early|is damaged)",
    "a segment larger in the file than in memory": r"larger in the file than in memory",
    "a segment beyond the end of all addresses": r"beyond the end of all addresses",
    "segments on top of each other": r"on top of each other",
    "very many headers": r"\d+ (program|section) headers, more than any kernel",
    "an odd ELF identification": r"ELF identification|big-endian",
    "a VIRT_BASE within a page": r"VIRT_BASE 0x[0-9a-f]+ is not page aligned",
    "addresses of the hypervisor": r"not a guest's to use|the end of the addresses that a guest may use",
    "no room for INIT_P2M": r"wants its p2m list at",
    "a hypercall page among page tables": r"among the page tables",
}
"""What pyhv refuses though libxenguest does not: the name of the difference, pyhv's words for it."""
COMPRESSION = "compressed kernels"
SYMTAB = "a symbol table of 32 bits that leaves its page"
MEMBERS = "a ramdisk of several gzip members"
TAKEN_ONLY_HERE = (COMPRESSION, SYMTAB, MEMBERS)


class Memory:
    """A domain's pages, of the frames that libxenguest's driver gives."""

    def __init__(self, nr_pages: int) -> None:
        self.p2m: npt.NDArray[np.uint64] = np.fromiter(map(frame, range(nr_pages)), np.uint64, nr_pages)
        self.pages = np.zeros(nr_pages * PAGE_SIZE, np.uint8)

    def write(self, pfn: Pfn, offset: int, data: bytes) -> None:
        start = (pfn << PAGE_SHIFT) + offset
        self.pages[start : start + len(data)] = np.frombuffer(data, np.uint8)


Loaded = tuple[KernelImage, Layout, Memory]


def ours(kernel: bytes, mib: int, ramdisk: bytes | None) -> Loaded | str:
    """What pyhv makes of a kernel: a domain, or a reason to refuse it."""
    try:
        image = load_image(kernel, "kernel")
        unpacked = b"" if ramdisk is None else prepare(ramdisk, "ramdisk").data
        layout = plan(image, mib * 256, len(unpacked))
    except (ImageError, ConfigError) as refusal:
        return str(refusal)
    memory = Memory(layout.nr_pages)
    build(
        memory, image, layout, shared_info=MachineAddress(SHARED_INFO), store_evtchn=STORE_PORT,
        console_evtchn=CONSOLE_PORT, ramdisk=unpacked, cmdline=COMMAND_LINE,
    )  # fmt: skip
    return image, layout, memory


def numbers(image: KernelImage, layout: Layout) -> dict[str, int]:
    """What libxenguest's driver tells, from pyhv's layout."""
    absent = (Pfn(0), 0)
    ramdisk = absent if layout.ramdisk is None else (layout.ramdisk.pfn, layout.ramdisk.pages)
    p2m_tables = 0 if layout.p2m_tables is None else layout.p2m_tables.pages
    bits = {True: 0, False: 0}
    for wish in image.notes.features:
        if wish.known:
            bits[False] |= 1 << XENFEATURES[wish.name]
            bits[True] |= wish.required << XENFEATURES[wish.name]
    return {
        "virt_base": image.virt_base,
        "entry": image.entry,
        "hypercall_page": MASK64 if image.hypercall_page is None else image.hypercall_page,
        "kstart": image.kstart,
        "kend": image.kend,
        "kernel": layout.kernel.pfn,
        "kernel_pages": layout.kernel.pages,
        "p2m": layout.p2m.pfn,
        "p2m_pages": layout.p2m.pages + p2m_tables,
        "page_tables": layout.page_tables.pfn,
        "page_tables_pages": layout.page_tables.pages,
        "ramdisk": ramdisk[0],
        "ramdisk_pages": ramdisk[1],
        "start_info": layout.start_info.pfn,
        "xenstore": layout.xenstore.pfn,
        "console": layout.console.pfn,
        "boot_stack": layout.boot_stack.pfn,
        "mapped_end": layout.region_end & MASK64,
        "used_pages": layout.used_pages,
        "required": bits[True],
        "supported": bits[False] | (image.notes.supported_features or 0),
    }


def differences(mine: Loaded, theirs: Built) -> list[str]:
    """Where two domains of one kernel differ."""
    image, layout, memory = mine
    found = [] if image.guest_class == theirs.guest_type else [f"guest type {theirs.guest_type}"]
    for name, value in numbers(image, layout).items():
        if value != theirs.numbers[name]:
            found.append(f"{name} is {value:#x} and not {theirs.numbers[name]:#x}")
    left = memory.pages.copy()
    if image.hypercall_page is not None:  # which Xen writes, and not the library
        stubs = (image.hypercall_page - image.virt_base) >> PAGE_SHIFT << PAGE_SHIFT
        left[stubs : stubs + PAGE_SIZE] = 0
    for first, data in theirs.memory.items():
        start = first << PAGE_SHIFT
        here, there = left[start : start + len(data)], np.frombuffer(data, np.uint8)
        if image.hypercall_page is not None and start <= stubs < start + len(data):
            there = there.copy()
            there[stubs - start : stubs - start + PAGE_SIZE] = 0
        if unequal := np.flatnonzero(here != there).tolist():
            found.append(f"{len(unequal)} bytes of pfn {first:#x} on, the first {unequal[0]:#x}")
        here[:] = 0
    # The console back end, which is not the library, says that it is not there yet.
    left[(layout.console.pfn << PAGE_SHIFT) + CONSOLE_CONNECTION] ^= 1
    if left.any():
        found.append(f"something at {int(np.flatnonzero(left)[0]):#x} where the library has nothing")
    return found


class Verdict(NamedTuple):
    """What a comparison came to: a difference that is meant, by name, or one that is not, in words."""

    meant: str = ""
    wrong: str = ""
    taken: bool = False
    """Whether both have built the domain."""


def compare(library: Libxenguest, kernel: bytes, mib: int = MIB, ramdisk: bytes | None = None) -> Verdict:
    """Build a domain with both."""
    mine, theirs = ours(kernel, mib, ramdisk), library.build(kernel, mib, ramdisk)
    if isinstance(mine, str):
        if isinstance(theirs, Refused):
            return Verdict()
        meant = (name for name, words in REFUSED_ONLY_HERE.items() if re.search(words, mine))
        return next(map(Verdict, meant), Verdict(wrong=f"refused alone: {mine}"))
    if isinstance(theirs, Built):
        wrong = "; ".join(differences(mine, theirs))
        return Verdict(SYMTAB) if wrong and leaves_its_page(mine[0]) else Verdict("", wrong, True)
    if theirs.reason.startswith("crashed") and leaves_its_page(mine[0]):
        return Verdict(SYMTAB)
    inside = unpack(kernel, "kernel").elf
    if inside is kernel:
        return Verdict(wrong=f"taken alone, and not: {theirs.reason}")
    verdict = compare(library, inside, mib, ramdisk)  # is it the wrapping that the library does not take?
    return verdict._replace(meant=verdict.meant or COMPRESSION)


def leaves_its_page(image: KernelImage) -> bool:
    """Whether the symbol table goes on behind the pages that libelf has for it."""
    return image.memory_end > image.kend + -image.kend % PAGE_SIZE


@pytest.fixture(scope="module")
def library(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Libxenguest]:
    with Libxenguest(tmp_path_factory.mktemp("libxenguest")) as process:
        yield process


@pytest.mark.promise("C-9")
def test_handmade_kernels(library: Libxenguest) -> None:
    verdicts = {name: compare(library, kernel) for name, kernel in handmade()}
    assert wrong_ones(verdicts) == ""
    # No difference stays in the list that is none any more.
    met = {verdict.meant for verdict in verdicts.values()}
    assert met - {""} == {*REFUSED_ONLY_HERE, COMPRESSION, SYMTAB}


@pytest.mark.promise("C-9")
def test_mutants(library: Libxenguest) -> None:
    verdicts = {name: compare(library, kernel) for name, kernel in mutants(SEED, MUTANTS)}
    assert wrong_ones(verdicts) == ""
    assert sum(verdict.taken for verdict in verdicts.values()) > MUTANTS // 3


def wrong_ones(verdicts: dict[str, Verdict]) -> str:
    return "\n".join(f"{name}: {verdict.wrong}" for name, verdict in verdicts.items() if verdict.wrong)


@pytest.mark.promise("C-9")
@pytest.mark.parametrize("kernel", ["mapped", "by pfn", "32 bits"])
def test_ramdisks(library: Libxenguest, kernel: str) -> None:
    makers = {"mapped": elf().load(0x100000, b"x"), "32 bits": elf(32).load(0x100000, b"x")}
    image = linux_like() if kernel == "by pfn" else makers[kernel].make()
    verdicts = {name: compare(library, image, MIB, ramdisk) for name, ramdisk in ramdisks()}
    # MEMBERS: where the first one fits into the room that the last one asks for, the others are lost there.
    lost = "two members"
    assert [name for name, verdict in verdicts.items() if verdict.wrong] == [lost]
    theirs = library.build(image, MIB, dict(ramdisks())[lost])
    assert isinstance(theirs, Built)
    assert theirs.memory[theirs.numbers["ramdisk"]].rstrip(b"\0") == CPIO[:5000].rstrip(b"\0")


def test_our_own_guests(library: Libxenguest) -> None:
    for name in BUILTIN:
        assert compare(library, build_builtin(name)) == Verdict(taken=True), name


@pytest.mark.promise("C-9")
@pytest.mark.parametrize("name", kernels.KERNELS)
def test_packaged_kernels(library: Libxenguest, name: str) -> None:
    kernel = kernels.ensure(name, kernels.KERNELS[name], _Silent()).path.read_bytes()
    assert compare(library, kernel, 32) == Verdict(taken=True)
    inside = unpack(kernel, name).elf
    verdicts = {called: compare(library, mutant, 32) for called, mutant in mutants(SEED, 40, {name: inside})}
    assert wrong_ones(verdicts) == ""


@pytest.mark.promise("C-9")
def test_debian(library: Libxenguest) -> None:
    files = debian.ensure(_Silent())
    ramdisk = files.initramfs.read_bytes()
    assert compare(library, files.vmlinuz.read_bytes(), 128, ramdisk) == Verdict(taken=True)


@pytest.mark.promise("C-9")
def test_the_differences_are_documented() -> None:
    text = (Path(__file__).parents[2] / "docs" / "differences.md").read_text(encoding="utf-8")
    table = text.partition("## Images: where libxenguest does otherwise")[2].partition("\n#")[0]
    rows = re.findall(r"^\| ([^|]+?) \|", table, re.MULTILINE)[2:]
    assert rows == [*REFUSED_ONLY_HERE, *TAKEN_ONLY_HERE]


class _Silent:
    def step(self, text: str) -> None:
        """Nobody looks on."""

    def transferred(self, done: int, total: int) -> None:
        """Nobody looks on."""
