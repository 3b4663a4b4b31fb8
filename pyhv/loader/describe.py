# SPDX-License-Identifier: GPL-2.0-only
"""A kernel image in words, for `pyhv inspect`: what it is, what it tells Xen, where it would lie, and whether
it can boot. The terms are those of Xen's public headers `elfnote.h` and `xen.h`.

Pure data (titles with rows of two texts); how it looks on a screen is the command line's concern.
"""

from pyhv.address import PAGE_MASK, PAGE_SHIFT
from pyhv.errors import ConfigError
from pyhv.loader.accept import objections
from pyhv.loader.image import KernelImage
from pyhv.loader.layout import PAGES_PER_MIB, Extent, Layout, plan
from pyhv.loader.notes import FeatureWish, feature_names
from pyhv.loader.ramdisk import Ramdisk

Rows = list[tuple[str, str]]
Description = list[tuple[str, Rows]]
"""Sections in reading order: (title, [(label, text), ...])."""


def describe(image: KernelImage, nr_pages: int, ramdisk: Ramdisk | None = None) -> Description:
    """Describe `image`, and how a domain of `nr_pages` pages would start with it and a ramdisk.

    Load the image with `bootable=False`, so that one that cannot boot is described too. Never raises for
    what is in the image: a layout that does not fit is told in its section.
    """
    reasons = objections(image)
    sections: Description = [
        ("Image", _image_rows(image)),
        (f"Xen notes (from {image.notes.source.value})", _note_rows(image)),
        ("Segments", _segment_rows(image)),
    ]
    if ramdisk is not None:
        size = f"{size_text(len(ramdisk.data))} for the guest"
        sections.append(("Ramdisk", [("contents", ramdisk.told), ("size", size)]))
    if not reasons:
        title = f"Layout in {nr_pages / PAGES_PER_MIB:g} MiB"
        try:
            rows = _layout_rows(plan(image, nr_pages, len(ramdisk.data) if ramdisk else None), image)
        except ConfigError as cause:
            rows = [("does not fit", str(cause))]
        sections.append((title, rows))
    sections.append(("Can it boot?", [("no", reason) for reason in reasons] or [("yes", _how(image))]))
    return sections


def size_text(size: int) -> str:
    """A number of bytes for a person: "512 bytes", "20.0 KiB", "7.9 MiB"."""
    if size < 1024:
        return f"{size} bytes"
    return f"{size / 1024:.1f} KiB" if size < 1 << 20 else f"{size / (1 << 20):.1f} MiB"


def _image_rows(image: KernelImage) -> Rows:
    rows = [
        ("file", image.name),
        ("format", image.kind),
        ("size", size_text(image.file_size)),
    ]
    if image.unpacked_size != image.file_size:
        rows.append(("unpacked", size_text(image.unpacked_size)))
    rows += [
        ("machine", f"ELF{image.elf_class} {image.machine}, guest class {image.guest_class}"),
        ("addresses", f"{image.kstart:#x}..{image.kend:#x}"),
        (
            "entry",
            f"{image.entry:#x}" + (" (ENTRY note)" if image.notes.entry is not None else " (ELF header)"),
        ),
        ("symbols", f"{len(image.symbols)}" if image.symbols else "none (stripped)"),
    ]
    return rows


def _note_rows(image: KernelImage) -> Rows:
    notes = image.notes
    told: list[tuple[str, str | None]] = [
        ("GUEST_OS", notes.guest_os),
        ("GUEST_VERSION", notes.guest_version),
        ("XEN_VERSION", notes.xen_version),
        ("LOADER", notes.loader),
        ("INFO", notes.info),
        ("VIRT_BASE", _address(notes.virt_base, "the virtual address of the domain's first page")),
        ("PADDR_OFFSET", _address(notes.paddr_offset, "the ELF physical address of the domain's first page")),
        ("ENTRY", _address(notes.entry, "where the first vCPU starts")),
        ("HYPERCALL_PAGE", _address(notes.hypercall_page, "the page that the hypervisor fills with stubs")),
        ("INIT_P2M", _address(notes.init_p2m, "where the p2m list is to be mapped")),
        ("MOD_START_PFN", "the ramdisk need not be mapped" if notes.mod_start_pfn else None),
        ("HV_START_LOW", _address(notes.hv_start_low, "the lowest start of the hypervisor's hole")),
        ("PAE_MODE", None if notes.pae_mode is None else f"{notes.pae_mode}: {notes.pae.value}"),
        ("FEATURES", ", ".join(map(_wish, notes.features)) or None),
        ("SUPPORTED_FEATURES", _bitmap(notes.supported_features)),
        ("SUSPEND_CANCEL", "suspend may be cancelled" if notes.suspend_cancel else None),
        ("L1_MFN_VALID", ", ".join(f"entry & {m:#x} = {v:#x}" for m, v in notes.l1_mfn_valid) or None),
        ("BSD_SYMTAB", _symtab(image) if notes.bsd_symtab else None),
        ("PHYS32_ENTRY", _address(notes.phys32_entry, "the PVH entry, not used")),
        ("unknown types", ", ".join(map(str, notes.unknown)) or None),
    ]
    return [(label, text) for label, text in told if text is not None] or [("none", "it tells Xen nothing")]


def _symtab(image: KernelImage) -> str:
    there = "" if image.bsd_symbols else ", but has none"
    return f"wants its symbol table behind the image{there}"


def _address(value: int | None, meaning: str) -> str | None:
    return None if value is None else f"{value:#x}: {meaning}"


def _wish(wish: FeatureWish) -> str:
    known = "" if wish.known else ", unknown to Xen"
    return f"{wish.name} ({'required' if wish.required else 'possible'}{known})"


def _bitmap(bits: int | None) -> str | None:
    return None if bits is None else f"{bits:#x}: {', '.join(feature_names(bits)) or 'none'}"


def _segment_rows(image: KernelImage) -> Rows:
    rows = []
    for number, segment in enumerate(image.segments):
        rights = "".join(
            letter if segment.flags & bit else "-" for letter, bit in (("r", 4), ("w", 2), ("x", 1))
        )
        rows.append(
            (
                f"{number} {rights}",
                f"paddr {segment.paddr:#x} vaddr {segment.vaddr:#x}, "
                f"{size_text(segment.filesz)} in the file, {size_text(segment.memsz)} in memory",
            )
        )
    return rows


def _layout_rows(layout: Layout, image: KernelImage) -> Rows:
    rows = [(extent.name, _extent(extent)) for extent in layout.extents()]
    if image.bsd_symtab:
        start, size = image.symtab_start, len(image.bsd_symtab)
        rows.append(("BSD symbol table", f"in the kernel, va {start:#x}..{start + size:#x}"))
    if image.hypercall_page is not None:
        page = image.hypercall_page & ~PAGE_MASK
        rows.append(("hypercall page", f"pfn {(page - layout.virt_base) >> PAGE_SHIFT:#x}, va {page:#x}"))
    counts = ", ".join(f"{run.count} L{run.level}" for run in layout.tables)
    return [
        *rows,
        ("tables", counts),
        ("mapped", f"{layout.virt_base:#x}..{layout.region_end:#x} ({layout.mapped_pages} pages)"),
        ("used", f"{layout.used_pages} of {layout.nr_pages} pages"),
    ]


def _extent(extent: Extent) -> str:
    place = f"pfn {extent.pfn:#x}..{extent.end:#x}, {extent.pages} page{'s' if extent.pages != 1 else ''}"
    if extent.va is None:
        return f"{place}, not mapped"
    return f"{place}, va {extent.va:#x}..{extent.va + (extent.pages << PAGE_SHIFT):#x}"


def _how(image: KernelImage) -> str:
    stubs = (
        "has its hypercall page filled in"
        if image.hypercall_page is not None
        else "brings its own hypercall stubs"
    )
    kind = "a 64-bit PV domain" if image.width == 64 else "a 32-bit PV domain with PAE"
    return f"as {kind} ({image.guest_class}); it {stubs}"
