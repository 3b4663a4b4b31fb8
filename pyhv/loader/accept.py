# SPDX-License-Identifier: GPL-2.0-only
"""Whether an image can boot as a PV domain, and if not, every reason why.

The rules are those of Xen's domain builder (public header `elfnote.h` and the builder's documented
behaviour), plus a few that keep a hostile image from naming addresses outside its own memory. A pure
function of the image; how much memory the domain has is `layout.py`'s concern.
"""

from typing import Final

from pyhv.address import PAGE_MASK, guest_may_use
from pyhv.loader.image import KernelImage
from pyhv.loader.notes import NoteSource, Pae

MAX_SPAN: Final = 4 << 40
"""Largest distance in bytes from VIRT_BASE to the image's end: what the largest domain has."""


def objections(image: KernelImage) -> list[str]:
    """Say why `image` cannot boot, one sentence each without the file's name; empty if it can."""
    if image.notes.source is NoteSource.NONE:
        return [
            "it carries no Xen notes, so it is not a Xen PV kernel "
            "(a Linux kernel has them when built with CONFIG_XEN_PV)"
        ]
    return _identity(image) + _paging(image) + _features(image) + _addresses(image)


def _paging(image: KernelImage) -> list[str]:
    if image.width == 64 or image.notes.pae is not Pae.NONE:
        return []
    told = "says" if image.notes.pae_mode else "does not say"
    value = f" {image.notes.pae_mode!r}" if image.notes.pae_mode else " 'yes'"
    return [
        f"it is a 32-bit kernel without PAE (its PAE_MODE {told}{value}), and Xen's interface has no such "
        "guests any more; build it with PAE"
    ]


def _identity(image: KernelImage) -> list[str]:
    notes = image.notes
    loader, guest_os = notes.loader or "", notes.guest_os or ""
    if notes.phys32_entry is not None and notes.xen_version is None and notes.loader is None:
        return [
            "its Xen notes only name a PVH entry (PHYS32_ENTRY), so it boots as a PVH guest but not as a PV "
            "one (Linux needs CONFIG_XEN_PV for that)"
        ]
    reasons = []
    if not loader.startswith("generic") and not guest_os.startswith("linux"):
        reasons.append(
            f"it asks for the loader {loader!r} and names itself {guest_os!r}: only images for the loader "
            "'generic' or of the system 'linux' are accepted"
        )
    if not (notes.xen_version or "").startswith("xen-3.0"):
        told = f"is {notes.xen_version!r}" if notes.xen_version else "is missing"
        reasons.append(f"its XEN_VERSION note {told}, where 'xen-3.0' is the only accepted interface")
    return reasons


def _features(image: KernelImage) -> list[str]:
    wanted = [wish for wish in image.notes.features if wish.required]
    reasons = [
        f"it requires the feature {wish.name!r}, which Xen 4.17's builder does not know"
        for wish in wanted
        if not wish.known
    ]
    names = {wish.name for wish in wanted}
    if "dom0" in names:
        reasons.append("it requires to be the privileged domain ('!dom0'), and a guest is never that")
    if "auto_translated_physmap" in names:
        reasons.append(
            "it requires the feature 'auto_translated_physmap', which no PV domain has in Xen 4.17 any more"
        )
    return reasons


def _addresses(image: KernelImage) -> list[str]:
    notes, base, kstart, kend = image.notes, image.virt_base, image.kstart, image.kend
    if notes.paddr_offset is not None and notes.virt_base is None:
        return ["it has a PADDR_OFFSET note but no VIRT_BASE note"]
    if base & PAGE_MASK:
        return [f"its VIRT_BASE {base:#x} is not page aligned"]
    if kend <= kstart:
        return ["its segments take no memory, so there is nothing to load"]
    if kstart < base:
        return [f"its first byte, at {kstart:#x}, lies below its VIRT_BASE {base:#x}"]
    if kstart & PAGE_MASK:
        return [f"its first byte, at {kstart:#x}, is not the first of a page"]
    if kend - base > MAX_SPAN:
        distance = (kstart if kstart - base > MAX_SPAN else kend) - base
        return [
            f"it reaches {distance >> 30} GiB above its VIRT_BASE {base:#x}, which no domain's memory does; "
            "Xen's domain builder cannot load it either"
        ]
    if not (guest_may_use(base, image.width) and guest_may_use(kend - 1, image.width)):
        return [f"its addresses {base:#x}..{kend:#x} are not a guest's to use"]
    reasons = []
    if not kstart <= image.entry <= kend:
        reasons.append(f"its entry point {image.entry:#x} lies outside the image {kstart:#x}..{kend:#x}")
    page = notes.hypercall_page
    if page is not None and not base <= page < base + MAX_SPAN:
        reasons.append(f"its HYPERCALL_PAGE {page:#x} lies outside the domain, which begins at {base:#x}")
    p2m = notes.init_p2m
    if p2m is not None:
        if kstart <= p2m < kend:
            reasons.append(f"its INIT_P2M address {p2m:#x} lies inside the image {kstart:#x}..{kend:#x}")
        elif image.width == 64 and not guest_may_use(p2m):
            reasons.append(f"its INIT_P2M address {p2m:#x} is not a guest's to use")
    return reasons
