# SPDX-License-Identifier: GPL-2.0-only
"""What a kernel says about itself to Xen: ELF notes named "Xen", or the older `__xen_guest` text.

Specified by Xen's public header `elfnote.h`; the note record's format by the ELF gABI; what is made of odd
records is what Xen's own reader, libelf, makes of them (`tests/real/test_libxenguest.py` compares). This
module reads bytes and returns one typed `XenNotes`. It does not know where in a file notes lie (`elf.py`
does) nor whether what they say makes the image bootable (`accept.py` does).

A note record, all numbers little endian:

    +--------+--------+------+----------------------+----------------------+
    | namesz | descsz | type | name, padded to 4    | desc, padded to 4    |
    | u32    | u32    | u32  | "Xen\\0"              | number or string     |
    +--------+--------+------+----------------------+----------------------+

A number has 1, 2, 4 or 8 bytes; one of another size reads as 0. A string ends at its NUL, wherever that is:
descsz is not asked.
"""

import enum
import re
import struct
from collections.abc import Iterable, Iterator
from typing import Any, Final, NamedTuple

from pyhv.address import MASK32, MASK64, PAGE_SHIFT
from pyhv.frozen import frozen

MAX_NOTES: Final = 65536
"""Records that are read of one file, of whatever owner; what follows them is not seen."""
MAX_STRING: Final = 4096
"""Longest string in bytes, without its NUL; a longer one counts as not said."""
MAX_GUEST_STRING: Final = 64 * 1024
"""Bytes of `__xen_guest` that are read; real ones have a few hundred."""
UNSET: Final = MASK64
"""The number that says nothing: libelf cannot tell it from the absence of the note."""

_HEADER: Final = 12
_FEATURE_PIECE: Final = 63  # libelf reads FEATURES in pieces of at most that many characters
_KEY, _VALUE = 31, 127  # and __xen_guest in such


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


XENFEATURES: Final = {
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
"""XENFEAT bit numbers by name (public header `features.h`)."""

BUILDER_FEATURES: Final = frozenset(
    {
        "writable_page_tables",
        "writable_descriptor_tables",
        "auto_translated_physmap",
        "supervisor_mode_kernel",
        "pae_pgdir_above_4gb",
        "hvm_callback_vector",
        "dom0",
    }
)
"""The names that a FEATURES note may use; Xen's builder knows no others."""


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


class Record(NamedTuple):
    """One note of owner "Xen"."""

    kind: int
    size: int
    """Its descsz."""
    desc: bytes
    """As many bytes, if the file has them, and 4096 at most."""
    text: bytes | None
    """What stands there as a string, without its NUL; None if it is too long or the file ends in it."""


class FeatureWish(NamedTuple):
    """One name of a FEATURES string; `required` if the kernel put `!` before it."""

    name: str
    required: bool

    @property
    def known(self) -> bool:
        """Whether Xen's builder knows the name."""
        return self.name in BUILDER_FEATURES


@frozen
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
    pae: Pae = Pae.NONE
    """What `pae_mode` means; the two formats of notes spell it differently."""
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


_STRINGS: Final = {
    Elfnote.INFO: "info",
    Elfnote.XEN_VERSION: "xen_version",
    Elfnote.GUEST_OS: "guest_os",
    Elfnote.GUEST_VERSION: "guest_version",
    Elfnote.LOADER: "loader",
    Elfnote.PAE_MODE: "pae_mode",
}
_NUMBERS: Final = {
    Elfnote.ENTRY: "entry",
    Elfnote.HYPERCALL_PAGE: "hypercall_page",
    Elfnote.VIRT_BASE: "virt_base",
    Elfnote.PADDR_OFFSET: "paddr_offset",
    Elfnote.HV_START_LOW: "hv_start_low",
    Elfnote.SUSPEND_CANCEL: "suspend_cancel",
    Elfnote.INIT_P2M: "init_p2m",
    Elfnote.MOD_START_PFN: "mod_start_pfn",
    Elfnote.PHYS32_ENTRY: "phys32_entry",
}
_ADDRESSES: Final = frozenset(
    {
        Elfnote.ENTRY,
        Elfnote.HYPERCALL_PAGE,
        Elfnote.VIRT_BASE,
        Elfnote.PADDR_OFFSET,
        Elfnote.HV_START_LOW,
        Elfnote.INIT_P2M,
    }
)
"""The notes of which `UNSET` is no value."""


def records(data: bytes, at: int, size: int) -> Iterator[Record | None]:
    """Walk the note records in `data[at : at + size]`: a Record for each of Xen's, None for each other.

    A record may reach past the end of that area, as one of PV-GRUB for i386 does, and a string anywhere.
    """
    end = min(at + size, len(data))
    while at < end:
        namesz, descsz, kind = (_u32(data, at + 4 * field) for field in range(3))
        desc = at + _HEADER + _padded(namesz)
        if data[at + _HEADER : at + _HEADER + 4] == b"Xen\0":
            yield Record(kind, descsz, data[desc : desc + min(descsz, MAX_STRING)], string_at(data, desc))
        else:
            yield None
        at = desc + _padded(descsz)


def string_at(data: bytes, at: int) -> bytes | None:
    """The string at `at` up to its NUL; None if there is none within `MAX_STRING` bytes."""
    end = data.find(b"\0", at, at + MAX_STRING + 1)
    return None if end < 0 else data[at:end]


def from_records(found: Iterable[Record], source: NoteSource) -> XenNotes:
    """Build `XenNotes` from Xen's records. Of two notes of one type the later counts; wishes add up."""
    said: dict[str, Any] = {}
    unknown: list[int] = []
    features: list[FeatureWish] = []
    for number, size, desc, text in found:
        try:
            kind = Elfnote(number)
        except ValueError:
            unknown.append(number)
            continue
        if kind in _NUMBERS:
            value = _number(size, desc)
            said[_NUMBERS[kind]] = None if kind in _ADDRESSES and value == UNSET else value
        elif kind is Elfnote.SUPPORTED_FEATURES:
            said["supported_features"] = said.get("supported_features", 0) | _bitmap(size, desc)
        elif kind is Elfnote.L1_MFN_VALID:
            said["l1_mfn_valid"] = tuple(struct.iter_unpack("<QQ", desc[: len(desc) & ~15]))
        elif text is None:
            continue
        elif kind in _STRINGS:
            said[_STRINGS[kind]] = _printable(text)
        elif kind is Elfnote.FEATURES:
            features += parse_features(text)
        elif kind is Elfnote.BSD_SYMTAB and text == b"yes":
            said["bsd_symtab"] = True
        if kind is Elfnote.PAE_MODE and text is not None and (text == b"yes" or b"bimodal" in text):
            said["pae"] = Pae.EXTENDED_CR3
    return XenNotes(source=source, unknown=tuple(unknown), features=tuple(features), **said)


def from_guest_string(text: bytes) -> XenNotes:
    """Build `XenNotes` from `__xen_guest`: `KEY=VALUE,KEY=VALUE...`, without its NUL.

    A feature that is required and not known ends the reading, without further harm.
    """
    said: dict[str, Any] = {}
    features: list[FeatureWish] = []
    page = None
    for key, value in _pairs(text):
        if key in _GUEST_STRINGS:
            said[_GUEST_STRINGS[key]] = _printable(value)
        elif key in _GUEST_NUMBERS:
            number = _strtoull(value)
            said[_GUEST_NUMBERS[key]] = None if number == UNSET else number
        elif key == b"HYPERCALL_PAGE":
            page = _strtoull(value)
        elif key == b"BSD_SYMTAB":
            said["bsd_symtab"] = True
        elif key == b"FEATURES":
            wishes = parse_features(value)
            features += (wish for wish in wishes if wish.known or not wish.required)
            if not all(wish.known for wish in wishes if wish.required):
                break
        if key == b"PAE" and value == b"yes[extended-cr3]":
            said["pae"] = Pae.EXTENDED_CR3
        elif key == b"PAE" and value.startswith(b"yes"):
            said["pae"] = Pae.LOW_L3
    if page is not None:
        # A page number relative to VIRT_BASE, unlike the note of the same name.
        said["hypercall_page"] = ((page << PAGE_SHIFT) + (said.get("virt_base") or 0)) & MASK64
    if said.get("paddr_offset") is None:
        # This format's default differs from that of the notes: physical addresses are virtual ones.
        said["paddr_offset"] = said.get("virt_base")
    return XenNotes(source=NoteSource.XEN_GUEST, features=tuple(features), **said)


_GUEST_STRINGS: Final = {
    b"LOADER": "loader",
    b"GUEST_OS": "guest_os",
    b"GUEST_VER": "guest_version",
    b"XEN_VER": "xen_version",
    b"PAE": "pae_mode",
}
_GUEST_NUMBERS: Final = {
    b"VIRT_BASE": "virt_base",
    b"VIRT_ENTRY": "entry",
    b"ELF_PADDR_OFFSET": "paddr_offset",
}


def _pairs(text: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Keys and values of `__xen_guest`. What is longer than libelf's buffers goes on as the next key."""
    at = 0
    while at < len(text):
        key = re.split(b"[,=]", text[at : at + _KEY], maxsplit=1)[0]
        at += len(key)
        value = b""
        if len(key) < _KEY and at < len(text):
            at += 1
            if text[at - 1] == ord("="):
                value = text[at : at + _VALUE].split(b",", 1)[0]
                at += len(value) + (len(value) < _VALUE)
        yield key, value


def parse_features(text: bytes) -> tuple[FeatureWish, ...]:
    """Split a FEATURES string: names separated by `|`, a `!` before those the kernel insists on."""
    wishes = []
    while text:
        piece, bar, _ = text[:_FEATURE_PIECE].partition(b"|")
        text = text[len(piece) + len(bar) :]
        if piece:
            wishes.append(FeatureWish(_printable(piece.removeprefix(b"!")), piece.startswith(b"!")))
    return tuple(wishes)


def feature_names(bitmap: int) -> list[str]:
    """Names of the XENFEAT bits set in `bitmap`; a bit without a name is told by its number."""
    by_bit = {bit: feature for feature, bit in XENFEATURES.items()}
    return [by_bit.get(bit, f"bit {bit}") for bit in range(64) if bitmap >> bit & 1]


def _u32(data: bytes, at: int) -> int:
    """A number in the file; 0 behind its end."""
    return int.from_bytes(data[at : at + 4], "little") if at + 4 <= len(data) else 0


def _padded(size: int) -> int:
    return (size + 3) & ~3 & MASK32


def _number(size: int, desc: bytes) -> int:
    return int.from_bytes(desc, "little") if size in (1, 2, 4, 8) and len(desc) == size else 0


def _bitmap(size: int, desc: bytes) -> int:
    """The first 32 bits of a bitmap, which is an array of such words."""
    return int.from_bytes(desc[:4], "little") if size % 4 == 0 and len(desc) >= 4 else 0


def _printable(text: bytes) -> str:
    """A string, safe to print: a stranger's control characters are escaped."""
    return "".join(chr(byte) if 0x20 <= byte < 0x7F else f"\\x{byte:02x}" for byte in text)


_C_NUMBER: Final = re.compile(
    rb"[ \t\n\v\f\r]*(?P<sign>[+-]?)"
    rb"(?:0[xX](?P<hex>[0-9a-fA-F]+)|(?P<octal>0[0-7]*)|(?P<decimal>[1-9][0-9]*))"
)


def _strtoull(value: bytes) -> int:
    """C's `strtoull(value, NULL, 0)`: as much of it as is a number, 0 if nothing is."""
    match = _C_NUMBER.match(value)
    if match is None:
        return 0
    if match["hex"]:
        number = int(match["hex"], 16)
    else:
        number = int(match["octal"], 8) if match["octal"] else int(match["decimal"])
    if number > MASK64:
        return MASK64
    return -number & MASK64 if match["sign"] == b"-" else number
