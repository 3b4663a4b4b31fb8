# SPDX-License-Identifier: GPL-2.0-only
"""The layout against worked examples that genuine Xen gives real kernels, and its invariants."""

import itertools
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.address import PAGE_SIZE, pages_of
from pyhv.errors import ConfigError, ImageError
from pyhv.loader.image import KernelImage, LoadSegment
from pyhv.loader.layout import Layout, plan
from pyhv.loader.notes import NoteSource, Pae, XenNotes

LINUX_BASE = 0xFFFFFFFF80000000
MIB = 256


def image(kstart: int, kend: int, virt_base: int | None = None, width: int = 64, **notes: Any) -> KernelImage:
    base = virt_base or 0
    segment = LoadSegment(kstart - base, kstart, 0, kend - kstart, b"", 7)
    told = XenNotes(
        source=NoteSource.PT_NOTE,
        xen_version="xen-3.0",
        loader="generic",
        virt_base=virt_base,
        pae=Pae.EXTENDED_CR3 if width == 32 else Pae.NONE,
        **notes,
    )
    machine = "EM_X86_64" if width == 64 else "EM_386"
    return KernelImage("k", "ELF", width, machine, (segment,), kstart, told)


def linux(**notes: Any) -> KernelImage:
    wishes = {"init_p2m": 0x8000000000, "mod_start_pfn": 1} | notes
    return image(LINUX_BASE + 0x1000000, LINUX_BASE + 0x4A00000, LINUX_BASE, **wishes)


def tables(layout: Layout) -> dict[int, int]:
    return {run.level: run.count for run in layout.tables}


def test_xtf_128() -> None:
    layout = plan(image(0x100000, 0x111000), 128 * MIB)
    assert (layout.kernel.va, layout.kernel.pages) == (0x100000, 0x11)
    assert (layout.p2m.va, layout.p2m.pages) == (0x111000, 0x40)
    assert (layout.start_info.va, layout.xenstore.va, layout.console.va) == (0x151000, 0x152000, 0x153000)
    assert layout.page_tables.va == 0x154000
    assert tables(layout) == {4: 1, 3: 1, 2: 1, 1: 2}
    assert layout.boot_stack.va == 0x159000
    assert layout.stack_top == 0x15A000
    assert layout.region_end == 0x400000
    assert layout.p2m_tables is None


def test_xtf_pae_128() -> None:
    layout = plan(image(0x100000, 0x110000, width=32), 128 * MIB)
    assert (layout.width, layout.kernel.va, layout.kernel.pages) == (32, 0x100000, 0x10)
    assert (layout.p2m.va, layout.p2m.pages) == (0x110000, 0x20)
    assert (layout.start_info.va, layout.xenstore.va, layout.console.va) == (0x130000, 0x131000, 0x132000)
    assert layout.page_tables.va == 0x133000
    assert [(run.level, run.first, run.count) for run in layout.tables] == [(3, 0, 1), (2, 0, 4), (1, 0, 2)]
    assert layout.boot_stack.va == 0x13A000
    assert layout.region_end == 0x400000


def test_mini_os_32() -> None:
    layout = plan(image(0, 0x4F000, width=32), 64 * MIB)
    assert (layout.start_info.va, layout.xenstore.va, layout.console.va) == (0x5F000, 0x60000, 0x61000)
    assert (layout.page_tables.va, layout.region_end) == (0x62000, 0x400000)


def test_pv_grub_32_256() -> None:
    layout = plan(image(0, 0x5810C4, 0, width=32), 256 * MIB)
    assert (layout.start_info.va, layout.xenstore.va, layout.console.va) == (0x5C2000, 0x5C3000, 0x5C4000)
    assert layout.page_tables.va == 0x5C5000
    assert tables(layout) == {3: 1, 2: 4, 1: 4}
    assert layout.region_end == 0x800000


def test_gnu_mach_32_128() -> None:
    mach = image(0xC0000000, 0xC00A3870, 0xC0000000, width=32)
    layout = plan(mach, 128 * MIB)
    assert layout.start_info.va == 0xC00C4000
    assert [(run.level, run.first, run.count) for run in layout.tables] == [
        (3, 0, 1),
        (2, 3, 1),
        (1, 0x600, 2),
    ]


@pytest.mark.parametrize(
    ("base", "first", "count"),
    [(0x40000000, 1, 3), (0x80000000, 2, 2), (0xBFC00000, 2, 2), (0xC0000000, 3, 1)],
)
def test_pae_mapping_reaches_the_l2_of_the_last_gigabyte(base: int, first: int, count: int) -> None:
    layout = plan(image(base, base + 0x10000, base, width=32), 8 * MIB)
    assert [(run.first, run.count) for run in layout.tables if run.level == 2] == [(first, count)]


def test_pae_region_ends_below_the_hypervisor() -> None:
    last = image(0xF5000000, 0xF5010000, 0xF5000000, width=32)
    assert plan(last, 1024 * MIB).region_end == 0xF5400000
    with pytest.raises(ConfigError, match="does not fit between"):
        plan(last, 8000 * MIB)
    with pytest.raises(ImageError, match="not a guest's to use"):
        plan(image(0xF5800000, 0xF5801000, 0xF5800000, width=32), MIB)


def test_init_p2m_is_for_64_bit_only() -> None:
    layout = plan(image(0xC0000000, 0xC0010000, 0xC0000000, width=32, init_p2m=0x40000000), 16 * MIB)
    assert (layout.p2m.va, layout.p2m_tables) == (0xC0010000, None)


def test_ramdisk_by_pfn_in_32_bits() -> None:
    layout = plan(image(0, 0x10000, width=32, mod_start_pfn=1), 16 * MIB, 5000)
    assert layout.ramdisk is not None
    assert (layout.ramdisk.pfn, layout.ramdisk.va) == (0x400, None)


def test_mini_os_64() -> None:
    layout = plan(image(0, 0x70000), 64 * MIB)
    assert layout.p2m.va == 0x70000
    assert (layout.start_info.va, layout.xenstore.va, layout.console.va) == (0x90000, 0x91000, 0x92000)
    assert (layout.page_tables.va, layout.region_end) == (0x93000, 0x400000)


def test_pv_grub_256() -> None:
    layout = plan(image(0, 0x613DC8, 0), 256 * MIB)
    assert layout.p2m.va == 0x614000
    assert (layout.start_info.va, layout.xenstore.va, layout.console.va) == (0x694000, 0x695000, 0x696000)
    assert layout.page_tables.va == 0x697000
    assert tables(layout)[1] == 4
    assert layout.region_end == 0x800000


def test_linux_512() -> None:
    layout = plan(linux(), 512 * MIB, 20_000_000)
    assert (layout.kernel.pfn, layout.kernel.pages) == (0x1000, 0x3A00)
    assert layout.start_info.va == 0xFFFFFFFF84A00000
    assert layout.xenstore.va == 0xFFFFFFFF84A01000
    assert layout.console.va == 0xFFFFFFFF84A02000
    assert (layout.page_tables.va, layout.page_tables.pages) == (0xFFFFFFFF84A03000, 0x29)
    assert tables(layout)[1] == 38
    assert layout.boot_stack.va == 0xFFFFFFFF84A2C000
    assert layout.region_end == 0xFFFFFFFF84C00000
    assert layout.ramdisk is not None
    assert (layout.ramdisk.pfn, layout.ramdisk.va) == (0x4C00, None)
    assert (layout.p2m.pfn, layout.p2m.pages, layout.p2m.va) == (0x5F13, 0x100, 0x8000000000)
    assert layout.p2m_tables is not None
    assert (layout.p2m_tables.pfn, layout.p2m_tables.pages) == (0x6013, 3)
    assert [(run.level, run.count) for run in layout.p2m_table_runs] == [(3, 1), (2, 1), (1, 1)]


def test_mapped_ramdisk_lies_behind_the_kernel() -> None:
    layout = plan(linux(mod_start_pfn=0, init_p2m=0), 512 * MIB, 5000)
    assert layout.ramdisk is not None
    assert (layout.ramdisk.pfn, layout.ramdisk.pages) == (0x4A00, 2)
    assert layout.ramdisk.va == LINUX_BASE + 0x4A00000


def test_unaligned_or_high_init_p2m_is_ignored() -> None:
    for va in (0x8000000800, 0xFFFFFFFFFFF00000):
        layout = plan(linux(init_p2m=va), 512 * MIB)
        assert layout.p2m_tables is None
        assert layout.p2m.va == LINUX_BASE + 0x4A00000


def test_p2m_in_the_tables_of_the_main_mapping() -> None:
    shared = image(0x40100000, 0x40110000, 0x40100000, init_p2m=0x40000000, paddr_offset=0)
    layout = plan(shared, 16 * MIB)
    assert layout.p2m_tables is not None
    assert layout.p2m_tables.pages == 0
    apart = image(0x40200000, 0x40210000, 0x40200000, init_p2m=0x40000000, paddr_offset=0)
    assert [(run.level, run.first) for run in plan(apart, 16 * MIB).p2m_table_runs] == [(1, 0x200)]


def test_p2m_must_not_run_into_the_kernel() -> None:
    close = image(0x40003000, 0x40010000, 0x40003000, init_p2m=0x40000000)
    assert plan(close, 4 * MIB).p2m.va == 0x40000000
    with pytest.raises(ConfigError, match="no room for the 8 pages"):
        plan(close, 16 * MIB)


def test_tables_need_more_room_than_one_step() -> None:
    # The first guess of the region ends just below a boundary that the tables themselves cross.
    start = 0x400000 - 129 * PAGE_SIZE - 4 * PAGE_SIZE
    layout = plan(image(0, start - (3 + 1) * PAGE_SIZE), 16 * MIB, 0)
    end = layout.va_of(layout.boot_stack.end) + 512 * 1024
    assert layout.region_end >= end


def test_smallest_memory_is_told_and_is_the_smallest() -> None:
    for kernel, ramdisk in ((linux(), 20_000_000), (image(0, 0x613DC8), None), (linux(init_p2m=0), 1)):
        with pytest.raises(ConfigError, match="needs at least") as caught:
            plan(kernel, MIB, ramdisk)
        least = int(str(caught.value).split("needs at least ")[1].split(" MiB")[0])
        assert plan(kernel, least * MIB, ramdisk).nr_pages == least * MIB
        with pytest.raises(ConfigError):
            plan(kernel, (least - 1) * MIB, ramdisk)


@pytest.mark.parametrize(("pages", "width"), [(0, 64), (-1, 64), (1 << 40, 64), (0x2980001, 32)])
def test_impossible_sizes(pages: int, width: int) -> None:
    with pytest.raises(ConfigError, match="impossible"):
        plan(image(0, 0x1000, width=width), pages)


def test_end_of_the_address_space() -> None:
    for end in (1 << 64, 1 << 47):
        top = image(end - 0x200000, end - 0x100000, end - 0x200000)
        assert plan(top, 64 * MIB).region_end == end
        with pytest.raises(ConfigError, match="does not fit between"):
            plan(top, 1024 * MIB)


def test_unbootable_image() -> None:
    bare = KernelImage("k", "ELF", 64, "EM_X86_64", (LoadSegment(0, 0, 0, 1, b"", 7),), 0, XenNotes())
    with pytest.raises(ImageError, match="no Xen notes"):
        plan(bare, MIB)


@settings(max_examples=300, deadline=None)
@given(
    kstart=st.integers(0, 1 << 24),
    size=st.integers(1, 1 << 26),
    base=st.sampled_from([0, 0x40000000, 0xC0000000, 0x7FFFE00000, LINUX_BASE]),
    mib=st.integers(1, 4096),
    ramdisk=st.one_of(st.none(), st.integers(0, 1 << 26)),
    p2m=st.sampled_from([None, 0x8000000000, 0x3FE00000, 0]),
    by_pfn=st.integers(0, 1),
    width=st.sampled_from([64, 32]),
)
def test_invariants(
    kstart: int, size: int, base: int, mib: int, ramdisk: int | None, p2m: int | None, by_pfn: int, width: int
) -> None:
    wishes = {"mod_start_pfn": by_pfn} | ({} if p2m is None else {"init_p2m": p2m})
    try:
        layout = plan(image(base + kstart, base + kstart + size, base, width, **wishes), mib * MIB, ramdisk)
    except (ConfigError, ImageError):
        return
    extents = list(layout.extents())
    for low, high in itertools.pairwise(extents):
        assert low.end <= high.pfn
    assert extents[-1].end <= layout.used_pages <= layout.nr_pages
    assert layout.region_end % (4 << 20) == 0
    assert layout.region_end - layout.va_of(layout.boot_stack.end) >= 512 << 10
    assert layout.p2m.pages == pages_of(mib * MIB * width // 8)
    assert sum(run.count for run in layout.tables) == layout.page_tables.pages
    for run in layout.tables:
        shift = 12 + 9 * run.level
        low48 = base & ((1 << 48) - 1)
        assert run.first << shift <= low48
        assert (run.first + run.count) << shift >= low48 + layout.region_end - base
    for extent in extents:
        if extent.va is not None and extent.name != "p2m list":
            assert extent.va == layout.va_of(extent.pfn)
            assert extent.end <= layout.mapped_pages
