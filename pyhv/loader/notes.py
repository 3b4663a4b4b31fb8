# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel says about itself to Xen: ELF notes named "Xen", or the older `__xen_guest` text.

Specified by Xen's public header `elfnote.h`; the note record's format by the ELF gABI. This module reads
bytes and returns one typed `XenNotes`. It does not know where in a file the bytes lie (`elf.py` does) nor
whether what they say makes the image bootable (`accept.py` does).

A note record, all numbers little endian:

    +--------+--------+------+----------------------+----------------------+
    | namesz | descsz | type | name, padded to 4    | desc, padded to 4    |
    | u32    | u32    | u32  | "Xen\\0"              | u32, u64 or string   |
    +--------+--------+------+----------------------+----------------------+
"""

import enum
import re
import struct
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from pyhv.address import PAGE_SHIFT
from pyhv.errors import ImageError

MAX_NOTE_BYTES = 64 * 1024
"""Largest note segment or section that is read; real ones hold a few hundred bytes."""

_RECORD = struct.Struct("<III")


class Elfnote(enum.IntEnum):
    """Types of the notes named "Xen" (`XEN_ELFNOTE_*`)."""

    INFO = 0
    ENTRY = 1
    HYPERCALL_PAGE = 2
    VIRT_BASE = 3
    PADDR_OFFSET = 4
    XEN_VERSION = 5
    GUEST_OS = 6
    GUEST_VERSION = 7
    LOADER = 8
    PAE_MODE = 9
    FEATURES = 10
    BSD_SYMTAB = 11
    HV_START_LOW = 12
    L1_MFN_VALID = 13
    SUSPEND_CANCEL = 14
    INIT_P2M = 15
    MOD_START_PFN = 16
    SUPPORTED_FEATURES = 17
    PHYS32_ENTRY = 18
    PHYS32_RELOC = 19


XENFEATURES = {
    "writable_page_tables": 0,
    "writable_descriptor_tables": 1,
    "auto_translated_physmap": 2,
    "supervisor_mode_kernel": 3,
    "pae_pgdir_above_4gb": 4,
    "mmu_pt_update_preserve_ad": 5,
    "highmem_assist": 6,
    "gnttab_map_avail_bits": 7,
    "hvm_callback_vector": 8,
    "hvm_safe_pvclock": 9,
    "hvm_pirqs": 10,
    "dom0": 11,
    "grant_map_identity": 12,
    "memory_op_vnode_supported": 13,
    "linux_rsdp_unrestricted": 15,
    "not_direct_mapped": 16,
    "direct_mapped": 17,
    "runstate_phys_area": 18,
    "vcpu_time_phys_area": 19,
    "dm_msix_all_writes": 20,
}
"""XENFEAT bit numbers by the names that a FEATURES note uses (public header `features.h`)."""


class NoteSource(enum.Enum):
    """Where the notes were found; the value is how a person would say it."""

    NONE = "nowhere"
    PT_NOTE = "ELF note segments"
    SHT_NOTE = "ELF note sections"
    XEN_GUEST = "the __xen_guest string"


class Pae(enum.Enum):
    """What a 32-bit kernel says about physical address extension; the value is how a person would say it."""

    NONE = "no PAE"
    LOW_L3 = "PAE, its L3 below 4 GiB"
    EXTENDED_CR3 = "PAE, its L3 anywhere"


class FeatureWish(NamedTuple):
    """One name of a FEATURES string; `required` if the kernel put `!` before it."""

    name: str
    required: bool


@dataclass(frozen=True)
class XenNotes:
    """Everything an image told Xen; `None` (or empty) where it said nothing. Addresses are virtual."""

    source: NoteSource = NoteSource.NONE
    info: str | None = None
    entry: int | None = None
    hypercall_page: int | None = None
    virt_base: int | None = None
    paddr_offset: int | None = None
    xen_version: str | None = None
    guest_os: str | None = None
    guest_version: str | None = None
    loader: str | None = None
    pae_mode: str | None = None
    features: tuple[FeatureWish, ...] = ()
    bsd_symtab: bool = False
    hv_start_low: int | None = None
    l1_mfn_valid: tuple[tuple[int, int], ...] = ()
    """Pairs (mask, value): an L1 entry is valid if `entry & mask == value`."""
    suspend_cancel: int | None = None
    init_p2m: int | None = None
    mod_start_pfn: int | None = None
    supported_features: int | None = None
    """Bitmap of XENFEAT numbers 0..31."""
    phys32_entry: int | None = None
    unknown: tuple[int, ...] = ()
    """Types of "Xen" notes that `elfnote.h` does not name."""

    @property
    def pae(self) -> Pae:
        """What `pae_mode` means; the two formats of notes spell it differently."""
        told = self.pae_mode or ""
        if self.source is NoteSource.XEN_GUEST:
            if told == "yes[extended-cr3]":
                return Pae.EXTENDED_CR3
            return Pae.LOW_L3 if told.startswith("yes") else Pae.NONE
        return Pae.EXTENDED_CR3 if told == "yes" or "bimodal" in told else Pae.NONE


_STRINGS = {
    Elfnote.INFO: "info",
    Elfnote.XEN_VERSION: "xen_version",
    Elfnote.GUEST_OS: "guest_os",
    Elfnote.GUEST_VERSION: "guest_version",
    Elfnote.LOADER: "loader",
    Elfnote.PAE_MODE: "pae_mode",
}
_TEXTS = frozenset({*_STRINGS, Elfnote.FEATURES, Elfnote.BSD_SYMTAB})
_NUMBERS = {
    Elfnote.ENTRY: "entry",
    Elfnote.HYPERCALL_PAGE: "hypercall_page",
    Elfnote.VIRT_BASE: "virt_base",
    Elfnote.PADDR_OFFSET: "paddr_offset",
    Elfnote.HV_START_LOW: "hv_start_low",
    Elfnote.SUSPEND_CANCEL: "suspend_cancel",
    Elfnote.INIT_P2M: "init_p2m",
    Elfnote.MOD_START_PFN: "mod_start_pfn",
    Elfnote.SUPPORTED_FEATURES: "supported_features",
    Elfnote.PHYS32_ENTRY: "phys32_entry",
}


def records(raw: bytes, name: str) -> Iterator[tuple[int, bytes]]:
    """Walk the note records in `raw` and yield (type, desc) of those whose name is "Xen".

    `name` is the file's, for the ImageError raised when a record runs past the end. A last string may claim
    more bytes than there are if it ends before: PV-GRUB for i386 is built so, and Xen reads up to the NUL.
    """
    if len(raw) > MAX_NOTE_BYTES:
        raise ImageError(f"{name}: its ELF notes take {len(raw)} bytes; the file is damaged or hostile")
    at = 0
    # Up to three bytes of alignment may follow the last record.
    while at + _RECORD.size <= len(raw):
        namesz, descsz, kind = _RECORD.unpack_from(raw, at)
        desc_at = at + _RECORD.size + _padded(namesz)
        mine = namesz == 4 and raw[at + _RECORD.size : desc_at] == b"Xen\0"
        if desc_at + descsz > len(raw):
            if mine and kind in _TEXTS and b"\0" in raw[desc_at:]:
                yield kind, raw[desc_at:]
                return
            raise ImageError(f"{name}: an ELF note runs past the end of its segment; the file is damaged")
        if mine:
            yield kind, raw[desc_at : desc_at + descsz]
        at = desc_at + _padded(descsz)


def from_records(found: Iterable[tuple[int, bytes]], source: NoteSource, name: str) -> XenNotes:
    """Build `XenNotes` from (type, desc) pairs; of two notes of one type the later counts."""
    said: dict[str, Any] = {}
    unknown: list[int] = []
    for number, desc in found:
        try:
            kind = Elfnote(number)
        except ValueError:
            unknown.append(number)
            continue
        if kind in _STRINGS:
            said[_STRINGS[kind]] = _text(desc)
        elif kind in _NUMBERS:
            said[_NUMBERS[kind]] = _number(kind, desc, name)
        elif kind is Elfnote.FEATURES:
            said["features"] = parse_features(_text(desc))
        elif kind is Elfnote.BSD_SYMTAB:
            said["bsd_symtab"] = _text(desc) == "yes"
        elif kind is Elfnote.L1_MFN_VALID:
            said["l1_mfn_valid"] = tuple(struct.iter_unpack("<QQ", desc[: len(desc) & ~15]))
    return XenNotes(source=source, unknown=tuple(unknown), **said)


def from_guest_string(raw: bytes, name: str) -> XenNotes:
    """Build `XenNotes` from `__xen_guest`: NUL-terminated `KEY=VALUE,KEY=VALUE...`."""
    pairs: dict[str, str] = {}
    for item in _text(raw).split(","):
        key, _, value = item.strip().partition("=")
        pairs[key] = value
    virt_base = _strtoull(pairs, "VIRT_BASE", name)
    paddr_offset = _strtoull(pairs, "ELF_PADDR_OFFSET", name)
    page = _strtoull(pairs, "HYPERCALL_PAGE", name)
    return XenNotes(
        source=NoteSource.XEN_GUEST,
        entry=_strtoull(pairs, "VIRT_ENTRY", name),
        # A page number relative to VIRT_BASE, unlike the note of the same name.
        hypercall_page=None if page is None else (page << PAGE_SHIFT) + (virt_base or 0),
        virt_base=virt_base,
        # This format's default differs from that of the notes: physical addresses are virtual ones.
        paddr_offset=virt_base if paddr_offset is None else paddr_offset,
        xen_version=pairs.get("XEN_VER"),
        guest_os=pairs.get("GUEST_OS"),
        guest_version=pairs.get("GUEST_VER"),
        loader=pairs.get("LOADER"),
        pae_mode=pairs.get("PAE"),
        features=parse_features(pairs.get("FEATURES", "")),
        bsd_symtab="BSD_SYMTAB" in pairs,
    )


_LEGACY = re.compile(rb"(?:^|\0)((?:GUEST_OS|LOADER)=[\x20-\x7e]{0,1000}XEN_VER=[\x20-\x7e]{1,1000})\0")


_C_NUMBER = re.compile("0[xX][0-9a-fA-F]{1,16}|0[0-7]{0,22}|[1-9][0-9]{0,19}")


def find_guest_string(data: bytes) -> bytes | None:
    """Find a `__xen_guest` text without its section: the oldest images only have it in their data.

    It must stand alone between NULs and name a Xen version, so that no ordinary string passes for it.
    """
    if b"XEN_VER=" not in data:
        return None
    match = _LEGACY.search(data)
    return match[1] if match else None


def parse_features(text: str) -> tuple[FeatureWish, ...]:
    """Split a FEATURES string: names separated by `|`, a `!` before those the kernel insists on."""
    names = (part.strip() for part in text.split("|"))
    return tuple(FeatureWish(part.removeprefix("!"), part.startswith("!")) for part in names if part)


def feature_names(bitmap: int) -> list[str]:
    """Names of the XENFEAT bits set in `bitmap`; a bit without a name is told by its number."""
    by_bit = {bit: feature for feature, bit in XENFEATURES.items()}
    return [by_bit.get(bit, f"bit {bit}") for bit in range(64) if bitmap >> bit & 1]


def _padded(size: int) -> int:
    return (size + 3) & ~3


def _text(desc: bytes) -> str:
    """A string up to its NUL or the end, safe to print: a stranger's control characters are escaped."""
    raw = desc.split(b"\0", 1)[0]
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in raw)


def _number(kind: Elfnote, desc: bytes, name: str) -> int:
    if len(desc) not in (4, 8):
        raise ImageError(f"{name}: its Xen note {kind.name} has {len(desc)} bytes where a number has 4 or 8")
    return int.from_bytes(desc, "little")


def _strtoull(pairs: dict[str, str], key: str, name: str) -> int | None:
    """C's `strtoull(value, NULL, 0)`, but a value that is no 64-bit number is an error."""
    value = pairs.get(key)
    if value is None:
        return None
    if not _C_NUMBER.fullmatch(value):
        number = -1
    elif value.startswith("0") and value.isdigit():
        number = int(value, 8)
    else:
        number = int(value, 0)
    if not 0 <= number < 1 << 64:
        raise ImageError(f"{name}: __xen_guest says {key}={value[:40]!r}, which is not a 64-bit number")
    return number
