# SPDX-License-Identifier: GPL-2.0-only
"""Where everything lies when a PV domain starts: the domain builder's plan, as a pure function.

The order and the padding are part of the ABI: Xen's public header `xen.h` ("start-of-day memory layout")
promises them to the guest. This module knows page numbers and sizes; it touches no memory, no frame, no MFN.

    VIRT_BASE                                                              region end
    | pad | kernel | [ramdisk] | [p2m] | start_info | xenstore | console | page tables | stack | pad |
    '------------------------------ all mapped, pfn = (va - VIRT_BASE) / 4096 -----------------------'
    then, by pfn alone: [ramdisk, if MOD_START_PFN] [p2m and its own page tables, if INIT_P2M]

Page tables are numbered and counted alike in both guest classes; a 32-bit (PAE) guest just has no L4.
"""

from collections.abc import Iterator
from typing import Final, NamedTuple

from pyhv.address import ENTRIES, MASK32, MASK64, PAGE_SHIFT, PAGE_SIZE, Pfn, Va, guest_may_use, pages_of
from pyhv.errors import ConfigError, ImageError
from pyhv.frozen import frozen
from pyhv.loader.accept import objections
from pyhv.loader.image import KernelImage

MAX_PAGES: Final = {64: 1 << 30, 32: 0x298_0000}
"""Largest domain, in pages, that is planned for: 4 TiB, or what a 32-bit guest's M2P can name."""
PAGES_PER_MIB: Final = 256

_STACK_PAGES: Final = 1
_SLACK_PAGES: Final = 128  # 512 KiB that the ABI promises behind the boot stack
_REGION_MASK: Final = (4 << 20) - 1  # the mapped region ends at a multiple of 4 MiB
_COMPAT_L2S_FROM: Final = (
    0xC000_0000  # the L3's last entry, which Xen needs, is about the addresses from here on
)
_INDEX_BITS: Final = ENTRIES.bit_length() - 1
_TRANSLATED: Final = (1 << 48) - 1


class Extent(NamedTuple):
    """A run of pages: `va` is None if the boot page tables do not map it."""

    name: str
    pfn: Pfn
    pages: int
    va: Va | None

    @property
    def end(self) -> Pfn:
        """The first pfn behind it."""
        return Pfn(self.pfn + self.pages)


@frozen
class TableRun:
    """Neighbouring page tables of one level, in neighbouring pages from `pfn` on.

    `first` numbers the table among all of its level, as `table_number` does.
    """

    level: int
    first: int
    count: int
    pfn: Pfn


@frozen
class Layout:
    """A plan for one image in a domain of `nr_pages` pages; `used_pages` of them are spoken for."""

    width: int
    """Bits of the guest: 64 or 32."""
    nr_pages: int
    virt_base: Va
    region_end: Va
    """First address behind the boot mapping; 2**64 if that reaches the very top."""
    kernel: Extent
    ramdisk: Extent | None
    ramdisk_len: int
    """Bytes; 0 without a ramdisk."""
    p2m: Extent
    start_info: Extent
    xenstore: Extent
    console: Extent
    page_tables: Extent
    boot_stack: Extent
    tables: tuple[TableRun, ...]
    """The main mapping's tables, top level first."""
    p2m_tables: Extent | None
    """Further tables that map the p2m at INIT_P2M; None if it lies in the main mapping."""
    p2m_table_runs: tuple[TableRun, ...]
    used_pages: int

    @property
    def mapped_pages(self) -> int:
        """Pages that the main mapping covers, from pfn 0."""
        return (self.region_end - self.virt_base) >> PAGE_SHIFT

    @property
    def stack_top(self) -> Va:
        """The boot vCPU's initial stack pointer."""
        return self.va_of(self.boot_stack.end)

    def va_of(self, pfn: int) -> Va:
        """Where the main mapping shows `pfn`."""
        return Va(self.virt_base + (pfn << PAGE_SHIFT))

    def extents(self) -> Iterator[Extent]:
        """All extents by ascending pfn, without the padding between them."""
        tail = (self.boot_stack,)
        found = [self.kernel, self.p2m, self.start_info, self.xenstore, self.console, self.page_tables, *tail]
        found += [extent for extent in (self.ramdisk, self.p2m_tables) if extent is not None]
        return iter(sorted(found, key=lambda extent: extent.pfn))


def plan(image: KernelImage, nr_pages: int, ramdisk_len: int | None = None) -> Layout:
    """Place `image` and a ramdisk of `ramdisk_len` bytes (None or 0: none) in `nr_pages` pages of 4 KiB.

    Raises ConfigError, with the smallest memory that would do, if they do not fit, and ImageError if the
    image is not one that can boot.
    """
    if reasons := objections(image):
        raise ImageError(f"{image.name}: {reasons[0]}")
    most = MAX_PAGES[image.width]
    if not 0 < nr_pages <= most:
        raise ConfigError(
            f"a {image.width}-bit domain of {nr_pages} pages is impossible; give 1 to {most} (4 KiB each)"
        )
    length = ramdisk_len or 0
    if length < 0:
        raise ConfigError(f"a ramdisk of {length} bytes is impossible")
    layout = _place(image, nr_pages, length)
    if layout.used_pages > nr_pages:
        what = f"{image.name} with its ramdisk of {length} bytes" if length else image.name
        raise ConfigError(
            f"{what} needs at least {_least_mib(image, layout, length)} MiB of memory; "
            f"the domain has {nr_pages / PAGES_PER_MIB:g} MiB"
        )
    _check_hypercall_page(image, layout)
    return layout


def _check_hypercall_page(image: KernelImage, layout: Layout) -> None:
    """Xen fills any page of the domain with stubs; among page tables that would be the end of them."""
    page = image.hypercall_page
    if page is None:
        return
    pfn = (page - layout.virt_base) >> PAGE_SHIFT
    tables = (layout.page_tables, layout.p2m_tables)
    if pfn >= layout.nr_pages or any(run and run.pfn <= pfn < run.end for run in tables):
        where = "beyond the end of" if pfn >= layout.nr_pages else "among the page tables in"
        raise ConfigError(
            f"{image.name} wants its hypercall page at {page:#x}, which lies {where} a memory of "
            f"{layout.nr_pages / PAGES_PER_MIB:g} MiB"
        )


def _least_mib(image: KernelImage, layout: Layout, ramdisk_len: int) -> int:
    """The smallest sufficient memory in MiB, from a layout that did not fit.

    More memory needs a longer p2m list, so what is needed grows with what is given, 512 times slower: going
    up from an insufficient size, the first that suffices is the least.
    """
    while layout.used_pages > layout.nr_pages:
        mib = -(-layout.used_pages // PAGES_PER_MIB)
        layout = _place(image, mib * PAGES_PER_MIB, ramdisk_len)
    return layout.nr_pages // PAGES_PER_MIB


class _Cursor:
    """Hands out pages in ascending order."""

    def __init__(self, virt_base: Va) -> None:
        self._base = virt_base
        self.pfn = Pfn(0)

    def take(self, name: str, pages: int, mapped: bool = True) -> Extent:
        va = Va(self._base + (self.pfn << PAGE_SHIFT)) if mapped else None
        extent = Extent(name, self.pfn, pages, va)
        self.pfn = extent.end
        return extent


def _place(image: KernelImage, nr_pages: int, ramdisk_len: int) -> Layout:
    """The plan, whether or not it fits in `nr_pages`."""
    base, init_p2m, width = image.virt_base, image.init_p2m, image.width
    p2m_pages = pages_of(nr_pages * p2m_entry(width))
    at = _Cursor(base)
    at.pfn = Pfn((image.kstart - base) >> PAGE_SHIFT)
    kernel = at.take("kernel", pages_of(image.memory_end - base) - at.pfn)
    ramdisk = p2m_tables = None
    p2m: Extent
    if ramdisk_len and not image.mod_start_pfn:
        ramdisk = at.take("ramdisk", pages_of(ramdisk_len))
    if init_p2m is None:
        p2m = at.take("p2m list", p2m_pages)
    start_info = at.take("start_info", 1)
    xenstore = at.take("xenstore ring", 1)
    console = at.take("console ring", 1)
    last, count = _region(base, base + (at.pfn << PAGE_SHIFT), width)
    if last > MASK64 or not guest_may_use(last, width) or (base ^ last) >> 63:
        raise ConfigError(
            f"{image.name} in a domain of {nr_pages} pages does not fit between its VIRT_BASE {base:#x} and "
            "the end of the addresses that a guest may use"
        )
    page_tables = at.take("page tables", count)
    boot_stack = at.take("boot stack", _STACK_PAGES)
    tables = _runs(_spans(base, last, width), page_tables.pfn)

    at.pfn = Pfn((last + 1 - base) >> PAGE_SHIFT)
    if ramdisk_len and image.mod_start_pfn:
        ramdisk = at.take("ramdisk", pages_of(ramdisk_len), mapped=False)
    p2m_runs: tuple[TableRun, ...] = ()
    if init_p2m is not None:
        end = init_p2m + p2m_pages * PAGE_SIZE
        if end > base or not guest_may_use(end - 1) or (init_p2m ^ (end - 1)) >> 63:
            raise ConfigError(
                f"{image.name} wants its p2m list at {init_p2m:#x}, where there is no room for the "
                f"{p2m_pages} pages of it that a domain of {nr_pages} pages has"
            )
        p2m = Extent("p2m list", at.take("p2m list", p2m_pages).pfn, p2m_pages, init_p2m)
        p2m_runs = _runs(_new_spans(_spans(init_p2m, end - 1, width), _spans(base, last, width)), at.pfn)
        p2m_tables = at.take("p2m page tables", sum(run.count for run in p2m_runs), mapped=False)
    return Layout(
        width=width,
        nr_pages=nr_pages,
        virt_base=base,
        region_end=Va(last + 1),
        kernel=kernel,
        ramdisk=ramdisk,
        ramdisk_len=ramdisk_len,
        p2m=p2m,
        start_info=start_info,
        xenstore=xenstore,
        console=console,
        page_tables=page_tables,
        boot_stack=boot_stack,
        tables=tables,
        p2m_tables=p2m_tables,
        p2m_table_runs=p2m_runs,
        used_pages=at.pfn,
    )


def p2m_entry(width: int) -> int:
    """Bytes of one p2m entry in a guest of `width` bits."""
    return width // 8


def top_level(width: int) -> int:
    """The level of the one page table from which a guest of `width` bits is translated."""
    return 4 if width == 64 else 3


def table_number(va: int, level: int) -> int:
    """The number, among all tables of `level`, of the one that `va` is translated by; level 0 is a page.

    Counted in the 48 bits of an address that are translated: the one L4 (in 32 bits, L3) is number 0, and
    entry n of the tables of a level is about table n of the level below.
    """
    return (va & _TRANSLATED) >> (PAGE_SHIFT + _INDEX_BITS * level)


def _region(base: int, start: int, width: int) -> tuple[int, int]:
    """The last address of the boot mapping and the number of tables that map it.

    `start` is where the tables begin. They map themselves, so their number and the region's end depend on
    each other; both only grow, so the search ends.
    """
    extra = _STACK_PAGES + _SLACK_PAGES
    pages = extra
    while True:
        last = (start + pages * PAGE_SIZE) | _REGION_MASK
        count = sum(span[2] for span in _spans(base, last, width))
        pages = count + extra
        if start + pages * PAGE_SIZE <= last + 1:
            return last, count


def _spans(first: int, last: int, width: int) -> list[tuple[int, int, int]]:
    """(level, number of the first table, count) of the tables that map `first`..`last`, top level first."""
    spans = []
    for level in range(top_level(width), 0, -1):
        shift = PAGE_SHIFT + _INDEX_BITS * level
        end = last
        if width == 32 and level == 2 and last < _COMPAT_L2S_FROM:
            # The hypervisor's own part of the address space hangs from the L2 of the last gigabyte, so there
            # must be one; the builder fills the gap up to it.
            end = MASK32
        spans.append((level, table_number(first, level), (end >> shift) - (first >> shift) + 1))
    return spans


def _new_spans(
    wanted: list[tuple[int, int, int]], present: list[tuple[int, int, int]]
) -> list[tuple[int, int, int]]:
    """The tables of `wanted` that `present`, a mapping above it, does not already have; never a top one."""
    spans = []
    for (level, first, count), (_, taken, _) in zip(wanted[1:], present[1:], strict=True):
        fresh = min(count, taken - first)
        if fresh > 0:
            spans.append((level, first, fresh))
    return spans


def _runs(spans: list[tuple[int, int, int]], pfn: Pfn) -> tuple[TableRun, ...]:
    runs = []
    for level, first, count in spans:
        runs.append(TableRun(level, first, count, pfn))
        pfn = Pfn(pfn + count)
    return tuple(runs)
