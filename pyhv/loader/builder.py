# SPDX-License-Identifier: GPL-2.0-only
"""Writing a domain's first memory: kernel, ramdisk, p2m list, start_info, page tables, as `layout` says.

`start_info` is specified by Xen's public header `xen.h` (its layouts are `pyhv.abi.structs.StartInfo`), the
console ring by `io/console.h`, the hypercall page by `arch-x86/xen-x86_64.h` and `xen-x86_32.h`; page-table
entries by the Intel SDM. Memory is reached through `GuestPages` alone. This module does not know who owns a
frame, what type it has, or that there is a CPU: pinning the tables and loading the registers is the machine's
part.
"""

from collections.abc import Iterable
from typing import Final, Protocol

import numpy as np
import numpy.typing as npt

from pyhv.abi.hypercall_page import hypercall_page
from pyhv.abi.shared import CONSOLE_CONNECTION
from pyhv.abi.structs import StartInfo
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_P, PTE_RW, PTE_US
from pyhv.address import ENTRIES, MASK32, PAGE_MASK, PAGE_SHIFT, PAGE_SIZE, MachineAddress, Mfn, Pfn, Va
from pyhv.errors import ConfigError
from pyhv.frozen import frozen
from pyhv.loader.image import KernelImage, LoadSegment
from pyhv.loader.layout import Layout, TableRun, p2m_entry, table_number, top_level

SIF_MOD_START_PFN: Final = 1 << 3
"""start_info flag: mod_start is a pfn and the ramdisk is not mapped."""
SIF_VIRT_P2M_4TOOLS: Final = 1 << 4
"""start_info flag: the toolstack can follow a p2m list that the kernel keeps in virtual addresses."""
MAX_CMDLINE: Final = 1023
"""Bytes of a command line, without its NUL."""

FRAMES_BELOW_4G: Final = 1 << 20
"""Frames with a smaller number lie where 32 bits reach."""

PTE_DATA: Final = PTE_P | PTE_RW | PTE_A
PTE_TABLE_PAGE: Final = PTE_P | PTE_A
PTE_UPPER: Final = PTE_P | PTE_RW | PTE_US | PTE_A | PTE_D

_CLEAR_STEP: Final = 1 << 20
_INDEX_BITS: Final = ENTRIES.bit_length() - 1

U64Array = npt.NDArray[np.uint64]


class GuestPages(Protocol):
    """The one door to a domain's memory; everything it holds is zero before `build`."""

    @property
    def p2m(self) -> U64Array:
        """The MFN behind each PFN."""

    def write(self, pfn: Pfn, offset: int, data: bytes) -> None:
        """Store `data` from byte `offset` (below 4096) of page `pfn` on; it may run into later pages."""


@frozen
class BootState:
    """What the machine needs to start vCPU 0 and to connect the rings."""

    entry: Va
    """Initial rip or eip."""
    start_info: Va
    """Initial rsi or esi."""
    stack_top: Va
    """Initial rsp or esp."""
    top: Mfn
    """The top-level table (an L4, in 32 bits an L3), to be pinned and loaded."""
    start_info_pfn: Pfn
    console_pfn: Pfn
    xenstore_pfn: Pfn
    layout: Layout


def build(
    guest: GuestPages,
    image: KernelImage,
    layout: Layout,
    *,
    shared_info: MachineAddress,
    store_evtchn: int,
    console_evtchn: int,
    ramdisk: bytes = b"",
    cmdline: bytes = b"",
    flags: int = SIF_VIRT_P2M_4TOOLS,
) -> BootState:
    """Write everything that `layout` places into `guest` and say how to start it.

    `shared_info` is the machine address of the domain's shared_info page; `flags` are start_info's, to which
    the builder adds SIF_MOD_START_PFN as needed. Raises ConfigError for a command line that does not fit.
    """
    check_cmdline(cmdline)
    if layout.width == 32 and shared_info > MASK32:
        raise ConfigError("a 32-bit guest cannot name a shared_info page above 4 GiB")
    if len(ramdisk) != layout.ramdisk_len or len(guest.p2m) < layout.nr_pages:
        raise ConfigError("the ramdisk or the memory is not the one that the layout was planned for")
    p2m = guest.p2m[: layout.nr_pages]

    _write_image(guest, image)
    if layout.ramdisk is not None:
        guest.write(layout.ramdisk.pfn, 0, ramdisk)
    guest.write(layout.p2m.pfn, 0, p2m.astype(f"<u{p2m_entry(layout.width)}").tobytes())
    guest.write(layout.console.pfn, CONSOLE_CONNECTION, b"\x01")
    _write_tables(guest, layout, p2m)

    info = _start_info(image, layout, p2m, shared_info, store_evtchn, console_evtchn, cmdline, flags)
    guest.write(layout.start_info.pfn, 0, info.pack(layout.width))
    if image.hypercall_page is not None:  # the last, as it is Xen that writes it: it may lie anywhere
        page = Pfn((image.hypercall_page - image.virt_base) >> PAGE_SHIFT)
        guest.write(page, 0, hypercall_page(image.width))
    return BootState(
        entry=image.entry,
        start_info=layout.va_of(layout.start_info.pfn),
        stack_top=layout.stack_top,
        top=Mfn(int(p2m[layout.page_tables.pfn])),
        start_info_pfn=layout.start_info.pfn,
        console_pfn=layout.console.pfn,
        xenstore_pfn=layout.xenstore.pfn,
        layout=layout,
    )


def lower_l3(p2m: U64Array, image: KernelImage, layout: Layout) -> bool:
    """Exchange two frames of a domain so that its boot L3 lies below 4 GiB, if the kernel insists on that.

    To be called before `build`, and before anybody else knows of `p2m`. False if no frame lies there.
    """
    l3 = layout.page_tables.pfn
    lowest = int(p2m.argmin())
    if image.l3_anywhere or p2m[l3] < FRAMES_BELOW_4G:
        return True
    p2m[[l3, lowest]] = p2m[[lowest, l3]]
    return bool(p2m[l3] < FRAMES_BELOW_4G)


def check_cmdline(cmdline: bytes) -> None:
    """Refuse a kernel command line that does not fit into start_info. ConfigError."""
    if len(cmdline) > MAX_CMDLINE or b"\0" in cmdline:
        fault = "contains a NUL" if b"\0" in cmdline else f"has {len(cmdline)} bytes"
        raise ConfigError(f"the kernel command line {fault}; at most {MAX_CMDLINE} bytes without NUL fit")


def _write_image(guest: GuestPages, image: KernelImage) -> None:
    """Load the segments in their order: of two that overlap, the later one's bytes and zeros stay."""
    for number, segment in enumerate(image.segments):
        _write_at(guest, segment.paddr - image.paddr_offset, segment.data)
        _clear(guest, image, segment, image.segments[:number])
    if image.bsd_symtab:
        _write_at(guest, image.symtab_start - image.virt_base, image.bsd_symtab)


def _clear(
    guest: GuestPages, image: KernelImage, segment: LoadSegment, earlier: tuple[LoadSegment, ...]
) -> None:
    """Write the zeros that end a segment, as far as an earlier one may have left something there."""
    start = max(segment.paddr + segment.filesz, min((s.paddr for s in earlier), default=0))
    end = min(segment.paddr + segment.memsz, max((s.paddr + s.filesz for s in earlier), default=0))
    for at in range(start, end, _CLEAR_STEP):
        _write_at(guest, at - image.paddr_offset, bytes(min(_CLEAR_STEP, end - at)))


def _write_at(guest: GuestPages, at: int, data: bytes) -> None:
    guest.write(Pfn(at >> PAGE_SHIFT), at & PAGE_MASK, data)


def _start_info(
    image: KernelImage,
    layout: Layout,
    p2m: U64Array,
    shared_info: MachineAddress,
    store_evtchn: int,
    console_evtchn: int,
    cmdline: bytes,
    flags: int,
) -> StartInfo:
    mod_start = mod_len = 0
    if layout.ramdisk is not None and layout.ramdisk.va is None:
        # Handed over by pfn, and then in whole pages.
        mod_start, mod_len = layout.ramdisk.pfn, layout.ramdisk.pages * PAGE_SIZE
        flags |= SIF_MOD_START_PFN
    elif layout.ramdisk is not None:
        mod_start, mod_len = layout.va_of(layout.ramdisk.pfn), layout.ramdisk_len
    apart = layout.p2m_tables
    return StartInfo(
        magic=image.guest_class.encode("ascii"),
        nr_pages=layout.nr_pages,
        shared_info=shared_info,
        flags=flags,
        store_mfn=Mfn(int(p2m[layout.xenstore.pfn])),
        store_evtchn=store_evtchn,
        console_mfn=Mfn(int(p2m[layout.console.pfn])),
        console_evtchn=console_evtchn,
        pt_base=layout.va_of(layout.page_tables.pfn),
        nr_pt_frames=layout.page_tables.pages,
        mfn_list=layout.va_of(layout.p2m.pfn) if layout.p2m.va is None else layout.p2m.va,
        mod_start=mod_start,
        mod_len=mod_len,
        cmd_line=cmdline,
        first_p2m_pfn=Pfn(0) if apart is None else layout.p2m.pfn,
        nr_p2m_frames=0 if apart is None else layout.p2m.pages + apart.pages,
    )


def _write_tables(guest: GuestPages, layout: Layout, p2m: U64Array) -> None:
    tables = _Tables((*layout.tables, *layout.p2m_table_runs))
    own = layout.page_tables
    leaves = (p2m[: layout.mapped_pages] << np.uint64(PAGE_SHIFT)) | np.uint64(PTE_DATA)
    # Page tables may not be writable to the guest, or Xen would refuse to take them as such.
    leaves[own.pfn : own.end] ^= np.uint64(PTE_DATA ^ PTE_TABLE_PAGE)
    tables.fill(1, table_number(layout.virt_base, 0), leaves)
    if layout.p2m_tables is not None and layout.p2m.va is not None:
        mfns = p2m[layout.p2m.pfn : layout.p2m.end]
        tables.fill(1, table_number(layout.p2m.va, 0), (mfns << np.uint64(PAGE_SHIFT)) | np.uint64(PTE_DATA))
    for run in tables.runs:
        if run.level < top_level(layout.width):
            mfns = p2m[run.pfn : run.pfn + run.count]
            entries = (mfns << np.uint64(PAGE_SHIFT)) | np.uint64(PTE_UPPER)
            tables.fill(run.level + 1, run.first, entries)
    for run in tables.runs:
        guest.write(run.pfn, 0, tables.bytes_of(run))


class _Tables:
    """All page tables of a domain's start, as arrays of entries, addressed by level and entry number."""

    def __init__(self, runs: Iterable[TableRun]) -> None:
        self.runs = tuple(runs)
        self._entries = {run: np.zeros(run.count * ENTRIES, dtype=np.uint64) for run in self.runs}

    def fill(self, level: int, first: int, entries: U64Array) -> None:
        """Store `entries` from entry number `first` on; entry n lies in table n >> 9 of that level.

        They may spread over several runs, as an INIT_P2M mapping shares tables with the main one.
        """
        for run in self.runs:
            start = run.first << _INDEX_BITS
            low, high = max(first, start), min(first + len(entries), start + run.count * ENTRIES)
            if run.level == level and low < high:
                self._entries[run][low - start : high - start] = entries[low - first : high - first]

    def bytes_of(self, run: TableRun) -> bytes:
        """The run's pages, one after the other."""
        return self._entries[run].astype("<u8").tobytes()
