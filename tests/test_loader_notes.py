# SPDX-License-Identifier: GPL-2.0-only
"""Xen notes and the `__xen_guest` string: every kind of value, and the limits."""

import struct

import pytest
from elf_maker import note

from pyhv.errors import ImageError
from pyhv.loader.notes import (
    MAX_NOTE_BYTES,
    XENFEATURES,
    FeatureWish,
    NoteSource,
    Pae,
    XenNotes,
    feature_names,
    find_guest_string,
    from_guest_string,
    from_records,
    parse_features,
    records,
)


def read(raw: bytes) -> XenNotes:
    return from_records(records(raw, "k"), NoteSource.PT_NOTE, "k")


def test_every_type() -> None:
    raw = b"".join(
        (
            note(0, "info"),
            note(1, 0x1000),
            note(2, struct.pack("<I", 0x2000)),
            note(3, 0xFFFFFFFF80000000),
            note(4, 0),
            note(5, "xen-3.0"),
            note(6, "linux"),
            note(7, "2.6"),
            note(8, "generic"),
            note(9, "yes"),
            note(10, b"!writable_page_tables|pae_pgdir_above_4gb"),
            note(11, "yes"),
            note(12, 0xFFFF800000000000),
            note(13, struct.pack("<QQQQ", 1, 1, 3, 2)),
            note(14, 1),
            note(15, 0x8000000000),
            note(16, 1),
            note(17, struct.pack("<I", 0x8801)),
            note(18, 0x1000850),
            note(19, struct.pack("<III", 1, 2, 3)),
            note(77, b""),
        )
    )
    assert read(raw) == XenNotes(
        source=NoteSource.PT_NOTE,
        info="info",
        entry=0x1000,
        hypercall_page=0x2000,
        virt_base=0xFFFFFFFF80000000,
        paddr_offset=0,
        xen_version="xen-3.0",
        guest_os="linux",
        guest_version="2.6",
        loader="generic",
        pae_mode="yes",
        features=(FeatureWish("writable_page_tables", True), FeatureWish("pae_pgdir_above_4gb", False)),
        bsd_symtab=True,
        hv_start_low=0xFFFF800000000000,
        l1_mfn_valid=((1, 1), (3, 2)),
        suspend_cancel=1,
        init_p2m=0x8000000000,
        mod_start_pfn=1,
        supported_features=0x8801,
        phys32_entry=0x1000850,
        unknown=(77,),
    )


def test_strings_end_at_descsz_or_nul() -> None:
    # Padding bytes behind descsz are not part of the string.
    raw = struct.pack("<III", 4, 5, 8) + b"Xen\0" + b"abcde" + b"fgh"
    assert read(raw).loader == "abcde"
    assert read(note(8, b"ab\0cd")).loader == "ab"
    assert read(note(8, b"\xff\n\x1b[m")).loader == "\\xff\\x0a\\x1b[m"


def test_other_owners_are_skipped() -> None:
    assert list(
        records(note(3, b"1234567", owner=b"GNU\0") + note(8, "x") + note(5, "y", b"Xenia\0"), "k")
    ) == [(8, b"x\0")]


def test_the_later_note_counts() -> None:
    assert read(note(8, "first") + note(8, "second")).loader == "second"


@pytest.mark.parametrize("desc", [b"", b"abc", bytes(16)])
def test_numbers_have_4_or_8_bytes(desc: bytes) -> None:
    with pytest.raises(ImageError, match="VIRT_BASE"):
        read(note(3, desc))


def test_limits() -> None:
    with pytest.raises(ImageError, match="damaged"):
        list(records(bytes(MAX_NOTE_BYTES + 1), "k"))
    with pytest.raises(ImageError, match="past the end"):
        list(records(struct.pack("<III", 0xFFFFFFFF, 0, 0) + bytes(64), "k"))
    assert list(records(note(8, "x") + bytes(3), "k")) == [(8, b"x\0")]


def test_features() -> None:
    assert parse_features("a|!b||c") == (
        FeatureWish("a", False),
        FeatureWish("b", True),
        FeatureWish("c", False),
    )
    assert parse_features("") == ()
    assert feature_names(0x8801) == ["writable_page_tables", "dom0", "linux_rsdp_unrestricted"]
    assert feature_names(1 << 40) == ["bit 40"]
    assert len(set(XENFEATURES.values())) == len(XENFEATURES)


def test_guest_string_defaults() -> None:
    notes = from_guest_string(b"XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,HYPERCALL_PAGE=2,BSD_SYMTAB\0junk", "k")
    assert notes.paddr_offset == notes.virt_base == 0xC0000000
    assert notes.hypercall_page == 0xC0002000
    assert notes.bsd_symtab
    assert notes.entry is None
    assert from_guest_string(b"XEN_VER=xen-3.0", "k").paddr_offset is None
    assert from_guest_string(b"VIRT_BASE=4096,ELF_PADDR_OFFSET=0x0", "k").paddr_offset == 0


@pytest.mark.parametrize(("text", "value"), [("0", 0), ("0x10", 16), ("010", 8), ("12", 12), ("0XfF", 255)])
def test_guest_string_numbers(text: str, value: int) -> None:
    assert from_guest_string(f"VIRT_ENTRY={text}".encode(), "k").entry == value


@pytest.mark.parametrize(
    "text", ["", "x", "0x", "-1", "09", "1_0", " 1", "0x10000000000000000", "9" * 5000, "+1"]
)
def test_guest_string_bad_numbers(text: str) -> None:
    with pytest.raises(ImageError, match="VIRT_ENTRY"):
        from_guest_string(f"VIRT_ENTRY={text}".encode(), "k")


def test_guest_string_search() -> None:
    text = b"LOADER=generic,XEN_VER=xen-3.0"
    assert find_guest_string(b"abc\0" + text + b"\0def") == text
    assert find_guest_string(text + b"\0") == text
    assert find_guest_string(b"abcBOOT" + text + b"\0") is None
    assert find_guest_string(b"\0LOADER=grub\0") is None
    assert find_guest_string(b"\0" + text) is None


def test_a_last_string_may_claim_too_much() -> None:
    cut = note(9, "yes" + "\0" * 8)[:-8]
    assert read(note(8, "generic") + cut).pae_mode == "yes"
    for bad in (cut[:-1], struct.pack("<III", 4, 8, 3) + b"Xen\0" + bytes(4)):
        with pytest.raises(ImageError, match="past the end"):
            read(bad)


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("yes", Pae.EXTENDED_CR3),
        ("bimodal", Pae.EXTENDED_CR3),
        ("yes[extended-cr3]", Pae.NONE),
        ("no", Pae.NONE),
        (None, Pae.NONE),
    ],
)
def test_pae_mode_of_notes(told: str | None, expected: Pae) -> None:
    assert read(b"" if told is None else note(9, told)).pae is expected


@pytest.mark.parametrize(
    ("told", "expected"),
    [
        ("yes[extended-cr3]", Pae.EXTENDED_CR3),
        ("yes", Pae.LOW_L3),
        ("yesterday", Pae.LOW_L3),
        ("no", Pae.NONE),
    ],
)
def test_pae_of_the_guest_string(told: str, expected: Pae) -> None:
    assert from_guest_string(f"LOADER=generic,PAE={told}\0".encode(), "k").pae is expected
