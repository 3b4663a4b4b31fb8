# SPDX-License-Identifier: GPL-2.0-only
"""What the builder writes, read back the way a kernel would: through its page tables and start_info."""

import struct
import time
from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from elf_maker import BOOTABLE, BOOTABLE_PAE, EM_386, ElfMaker, note, note32

from pyhv.abi.hypercall_page import HYPERCALL_PAGE32, HYPERCALL_PAGE64
from pyhv.abi.structs import StartInfo
from pyhv.address import MachineAddress, Pfn
from pyhv.errors import ConfigError
from pyhv.loader.builder import BootState, build, lower_l3
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage
from pyhv.loader.layout import Layout, plan

LINUX_BASE = 0xFFFFFFFF80000000
P, RW, US, A, D = 1, 2, 4, 0x20, 0x40


class Memory:
    """A domain's pages on scattered frames; remembers what was written."""

    def __init__(self, nr_pages: int) -> None:
        order = np.random.default_rng(7).permutation(nr_pages)
        self.p2m: npt.NDArray[np.uint64] = (order + 0x100).astype(np.uint64)
        self.pfn_of = {int(mfn): pfn for pfn, mfn in enumerate(self.p2m)}
        self.pages = bytearray(nr_pages * 4096)
        self.levels = 4

    def write(self, pfn: Pfn, offset: int, data: bytes) -> None:
        assert 0 <= offset < 4096
        start = pfn * 4096 + offset
        assert start + len(data) <= len(self.pages)
        self.pages[start : start + len(data)] = data

    def read(self, pfn: int, offset: int, size: int) -> bytes:
        return bytes(self.pages[pfn * 4096 + offset : pfn * 4096 + offset + size])

    def entry(self, table: int, index: int) -> int:
        return int.from_bytes(self.read(self.pfn_of[table], index * 8, 8), "little")

    def walk(self, top: int, va: int) -> tuple[int, int] | None:
        """(pfn, flags of the leaf) behind `va`, checking the upper levels' flags; None if not mapped."""
        table = top
        for level in range(self.levels, 0, -1):
            entry = self.entry(table, va >> (3 + 9 * level) & 511)
            if not entry & P:
                assert entry == 0
                return None
            if level > 1:
                assert entry & 0xFFF == P | RW | US | A | D
            table = entry >> 12
        return self.pfn_of[table], entry & 0xFFF

    def mapped(self, top: int) -> Iterator[int]:
        """Every virtual page that the tables under `top` map."""

        def below(table: int, level: int, prefix: int) -> Iterator[int]:
            raw = np.frombuffer(self.read(self.pfn_of[table], 0, 4096), dtype="<u8")
            for index in np.flatnonzero(raw):
                at = prefix << 9 | int(index)
                if level == 1:
                    yield (at << 12) | (0xFFFF000000000000 if at >> 35 else 0)
                else:
                    yield from below(int(raw[index]) >> 12, level - 1, at)

        return below(top, self.levels, 0)


def linux_like(extra: bytes = b"") -> KernelImage:
    raw = BOOTABLE + note(3, LINUX_BASE) + note(4, 0) + note(1, LINUX_BASE + 0x200000)
    elf = ElfMaker().load(0x200000, b"text" * 1500, 0x3000).load(0x204123, b"data", 0x2000)
    return load_image(elf.notes(raw + note(15, 0x8000000000) + note(16, 1) + extra).make(), "k")


def classic(extra: bytes = b"") -> KernelImage:
    elf = ElfMaker().load(0x100000, b"text" * 4, 0x4000)
    return load_image(elf.notes(BOOTABLE + extra).make(), "k")


def pae(base: int = 0, extra: bytes = b"") -> KernelImage:
    raw = BOOTABLE_PAE + note32(3, base) + note32(4, 0) + note32(1, base + 0x100000)
    elf = ElfMaker(bits=32, machine=EM_386).load(0x100000, b"text" * 4, 0x4000)
    return load_image(elf.notes(raw + extra).make(), "k")


def built(
    image: KernelImage, mib: int, ramdisk: bytes = b"", cmdline: bytes = b""
) -> tuple[Memory, BootState]:
    memory = Memory(mib * 256)
    memory.levels = 4 if image.width == 64 else 3
    layout = plan(image, mib * 256, len(ramdisk))
    state = build(
        memory,
        image,
        layout,
        shared_info=MachineAddress(0x77000),
        store_evtchn=1,
        console_evtchn=2,
        ramdisk=ramdisk,
        cmdline=cmdline,
    )
    return memory, state


def start_info(memory: Memory, state: BootState) -> bytes:
    found = memory.walk(state.top, state.start_info)
    assert found is not None
    return memory.read(found[0], 0, 1168)


def check_main_mapping(memory: Memory, layout: Layout, top: int) -> None:
    tables = range(layout.page_tables.pfn, layout.page_tables.end)
    for pfn in range(layout.mapped_pages):
        flags = P | A if pfn in tables else P | RW | A
        assert memory.walk(top, layout.va_of(pfn)) == (pfn, flags)


def test_classic_domain() -> None:
    memory, state = built(classic(), 16, b"ramdisk" * 1000, b"console=hvc0")
    layout = state.layout
    check_main_mapping(memory, layout, state.top)
    assert len(list(memory.mapped(state.top))) == layout.mapped_pages

    info = start_info(memory, state)
    assert info[:15] == b"xen-3.0-x86_64\0"
    u64 = {at: struct.unpack_from("<Q", info, at)[0] for at in range(0, 1168, 8)}
    u32 = {at: struct.unpack_from("<I", info, at)[0] for at in range(0, 1168, 4)}
    assert u64[32] == 4096
    assert u64[40] == 0x77000
    assert u32[48] == 16
    assert u64[56] == memory.p2m[state.xenstore_pfn]
    assert u32[64] == 1
    assert u64[72] == memory.p2m[state.console_pfn]
    assert u32[80] == 2
    assert memory.walk(state.top, u64[88]) == (memory.pfn_of[state.top], P | A)
    assert u64[96] == layout.page_tables.pages
    assert info[128:141] == b"console=hvc0\0"
    assert (u64[1152], u64[1160]) == (0, 0)

    p2m = memory.walk(state.top, u64[104])
    assert p2m is not None
    assert memory.read(p2m[0], 0, 4096 * 8) == memory.p2m.astype("<u8").tobytes()
    ramdisk = memory.walk(state.top, u64[112])
    assert ramdisk is not None
    assert u64[120] == 7000
    assert memory.read(ramdisk[0], 0, 7000) == b"ramdisk" * 1000


@pytest.mark.parametrize("base", [0, 0x40000000, 0xC0000000])
def test_pae_domain(base: int) -> None:
    memory, state = built(pae(base), 16, b"ramdisk" * 1000, b"console=hvc0")
    layout = state.layout
    check_main_mapping(memory, layout, state.top)
    assert len(list(memory.mapped(state.top))) == layout.mapped_pages
    # The L2 that Xen completes with its own entries is there, and nobody else's.
    l3 = [memory.entry(state.top, slot) for slot in range(512)]
    present = [slot for slot, entry in enumerate(l3) if entry]
    assert present == list(range(base >> 30, 4))
    assert {l3[slot] & 0xFFF for slot in present} == {P | RW | US | A | D}
    assert len({l3[slot] for slot in present}) == len(present)
    assert layout.page_tables.pages == 1 + len(present) + 2

    found = memory.walk(state.top, state.start_info)
    assert found is not None
    raw = memory.read(found[0], 0, 4096)
    assert raw[:17] == b"xen-3.0-x86_32p\0\0"
    u32 = {at: struct.unpack_from("<I", raw, at)[0] for at in range(0, 1112, 4)}
    assert (u32[32], u32[36], u32[40]) == (4096, 0x77000, 16)
    assert (u32[44], u32[48]) == (memory.p2m[state.xenstore_pfn], 1)
    assert (u32[52], u32[56]) == (memory.p2m[state.console_pfn], 2)
    assert memory.walk(state.top, u32[60]) == (memory.pfn_of[state.top], P | A)
    assert u32[64] == layout.page_tables.pages
    assert raw[80:93] == b"console=hvc0\0"
    assert raw[1104:] == bytes(4096 - 1104)

    p2m = memory.walk(state.top, u32[68])
    assert p2m is not None
    assert memory.read(p2m[0], 0, 4096 * 4) == memory.p2m.astype("<u4").tobytes()
    ramdisk = memory.walk(state.top, u32[72])
    assert ramdisk is not None
    assert u32[76] == 7000
    assert memory.read(ramdisk[0], 0, 7000) == b"ramdisk" * 1000
    assert (state.entry, state.stack_top) == (base + 0x100000, base + (layout.boot_stack.end << 12))


def test_pae_ramdisk_by_pfn() -> None:
    memory, state = built(pae(extra=note32(16, 1)), 16, b"R" * 5000)
    found = memory.walk(state.top, state.start_info)
    assert found is not None
    info = StartInfo.unpack(memory.read(found[0], 0, 1112), 32)
    assert (info.flags, info.mod_len) == (16 | 8, 8192)
    assert memory.read(info.mod_start, 0, 5001) == b"R" * 5000 + b"\0"


def test_pae_hypercall_page() -> None:
    memory, _ = built(pae(extra=note32(2, 0x102000)), 16)
    assert memory.read(0x102, 0, 4096) == HYPERCALL_PAGE32


def test_pae_bsd_symtab() -> None:
    elf = ElfMaker(bits=32, machine=EM_386).load(0x100000, b"x", 0x1001).notes(BOOTABLE_PAE + note(11, "yes"))
    image = load_image(elf.symbols([("main", 0x100000, 1)]).make(), "k")
    memory, _ = built(image, 16)
    assert memory.read(0x101, 4, len(image.bsd_symtab)) == image.bsd_symtab


def test_shared_info_of_a_32_bit_guest_is_below_4_gib() -> None:
    image = pae()
    layout = plan(image, 4096)
    with pytest.raises(ConfigError, match="above 4 GiB"):
        build(
            Memory(4096), image, layout, shared_info=MachineAddress(1 << 32), store_evtchn=1, console_evtchn=2
        )


def test_l3_is_lowered_for_kernels_that_ask_for_it() -> None:
    text = b"LOADER=generic,XEN_VER=xen-3.0,PAE=yes\0"
    elf = ElfMaker(bits=32, machine=EM_386).load(0x100000, b"x", 0x4000)
    old = load_image(elf.section("__xen_guest", 1, text).make(), "k")
    layout = plan(old, 1024)
    high = np.arange(1 << 20, (1 << 20) + 1024, dtype=np.uint64)
    p2m = high.copy()
    assert lower_l3(p2m, pae(), layout)
    assert (p2m == high).all()
    assert not lower_l3(p2m.copy(), old, layout)
    p2m[77] = 0xFFFFF
    assert lower_l3(p2m, old, layout)
    assert p2m[layout.page_tables.pfn] == 0xFFFFF
    assert p2m[77] == high[layout.page_tables.pfn]
    assert len(set(p2m.tolist())) == 1024


def test_linux_like_domain() -> None:
    memory, state = built(linux_like(), 32, b"R" * 5000)
    layout = state.layout
    check_main_mapping(memory, layout, state.top)
    assert state.entry == LINUX_BASE + 0x200000

    info = start_info(memory, state)
    (flags,) = struct.unpack_from("<I", info, 48)
    mfn_list, mod_start, mod_len = struct.unpack_from("<QQQ", info, 104)
    first, count = struct.unpack_from("<QQ", info, 1152)
    assert flags == 16 | 8
    assert mfn_list == 0x8000000000
    assert mod_len == 8192
    assert memory.read(mod_start, 0, 5001) == b"R" * 5000 + b"\0"
    assert layout.p2m_tables is not None
    assert (first, first + count) == (layout.p2m.pfn, layout.p2m_tables.end)

    raw = b""
    for page in range(layout.p2m.pages):
        found = memory.walk(state.top, mfn_list + page * 4096)
        assert found == (layout.p2m.pfn + page, P | RW | A)
        raw += memory.read(found[0], 0, 4096)
    assert raw == memory.p2m.astype("<u8").tobytes()
    assert len(list(memory.mapped(state.top))) == layout.mapped_pages + layout.p2m.pages


def test_no_page_table_is_mapped_writable() -> None:
    for image in (classic(), linux_like()):
        memory, state = built(image, 32)
        layout = state.layout
        tables = {*range(layout.page_tables.pfn, layout.page_tables.end)}
        if layout.p2m_tables is not None:
            tables |= {*range(layout.p2m_tables.pfn, layout.p2m_tables.end)}
        for va in memory.mapped(state.top):
            found = memory.walk(state.top, va)
            assert found is not None
            assert found[0] not in tables or not found[1] & RW


def test_init_p2m_in_shared_tables() -> None:
    for base in (0x40100000, 0x40200000):
        raw = BOOTABLE + note(3, base) + note(4, 0) + note(1, base) + note(15, 0x40000000)
        image = load_image(ElfMaker().load(0, b"x", 0x3000).notes(raw).make(), "k")
        memory, state = built(image, 16)
        check_main_mapping(memory, state.layout, state.top)
        for page in range(8):
            expected = (state.layout.p2m.pfn + page, P | RW | A)
            assert memory.walk(state.top, 0x40000000 + page * 4096) == expected


def test_segments_lie_where_the_kernel_expects_them() -> None:
    memory, state = built(linux_like(), 32)
    found = memory.walk(state.top, LINUX_BASE + 0x204123)
    assert found is not None
    assert memory.read(found[0], 0x123, 6) == b"data\0\0"
    assert memory.read(0x200, 0, 6002) == b"text" * 1500 + b"\0\0"


def test_rings() -> None:
    memory, state = built(classic(), 16)
    assert memory.read(state.console_pfn, 0, 4096) == bytes(3088) + b"\1" + bytes(4096 - 3089)
    assert memory.read(state.xenstore_pfn, 0, 4096) == bytes(4096)


def test_stack() -> None:
    memory, state = built(classic(), 16)
    assert state.stack_top % 4096 == 0
    assert memory.walk(state.top, state.stack_top - 8) == (state.layout.boot_stack.pfn, P | RW | A)


def test_hypercall_page_is_written_only_where_asked() -> None:
    memory, _ = built(classic(note(2, 0x102000)), 16)
    assert memory.read(0x102, 0, 4096) == HYPERCALL_PAGE64
    memory, _ = built(classic(), 16)
    assert memory.read(0x102, 0, 4096) == bytes(4096)


def test_hypercall_stubs() -> None:
    page = HYPERCALL_PAGE64
    assert len(page) == 4096
    assert page[0:14] == bytes.fromhex("51 41 53 b8 00 00 00 00 0f 05 41 5b 59 c3")
    assert page[127 * 32 : 127 * 32 + 14] == bytes.fromhex("51 41 53 b8 7f 00 00 00 0f 05 41 5b 59 c3")
    assert page[23 * 32 : 24 * 32] == bytes.fromhex("51 41 53 50 b8 17 00 00 00 0f 05").ljust(32, b"\xcc")


def test_bsd_symtab() -> None:
    elf = ElfMaker().load(0x100000, b"x", 0x1001).notes(BOOTABLE + note(11, "yes"))
    image = load_image(elf.symbols([("main", 0x100000, 1)]).make(), "k")
    assert image.bsd_symtab
    memory, state = built(image, 16)
    assert memory.read(0x101, 0, 8) == bytes(8)
    assert memory.read(0x101, 8, len(image.bsd_symtab)) == image.bsd_symtab
    assert state.layout.kernel.pages == 2


def test_command_line_limits() -> None:
    memory, state = built(classic(), 16, cmdline=b"x" * 1023)
    assert start_info(memory, state)[128:1152] == b"x" * 1023 + b"\0"
    for bad in (b"x" * 1024, b"a\0b"):
        with pytest.raises(ConfigError, match="command line"):
            built(classic(), 16, cmdline=bad)


def test_plan_and_contents_must_agree() -> None:
    image = classic()
    layout = plan(image, 4096, 100)
    numbers: dict[str, Any] = {"shared_info": MachineAddress(0), "store_evtchn": 1, "console_evtchn": 2}
    with pytest.raises(ConfigError, match="planned"):
        build(Memory(4096), image, layout, ramdisk=b"short", **numbers)
    with pytest.raises(ConfigError, match="planned"):
        build(Memory(1024), image, layout, ramdisk=bytes(100), **numbers)


def test_building_is_fast() -> None:
    memory, image = Memory(512 * 256), linux_like()
    layout = plan(image, 512 * 256)
    best = 1.0
    for _ in range(3):
        start = time.perf_counter()
        build(memory, image, layout, shared_info=MachineAddress(0), store_evtchn=1, console_evtchn=2)
        best = min(best, time.perf_counter() - start)
    assert best < 0.1
