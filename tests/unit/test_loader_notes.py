# SPDX-License-Identifier: GPL-2.0-only
"""Xen notes and the `__xen_guest` string: every kind of value, and the limits."""

import struct

import pytest
from elf_maker import note

from pyhv.loader.notes import (
    BUILDER_FEATURES,
    MAX_STRING,
    XENFEATURES,
    FeatureWish,
    NoteSource,
    Pae,
    Record,
    XenNotes,
    feature_names,
    from_guest_string,
    from_records,
    parse_features,
    records,
)


def read(raw: bytes, size: int | None = None) -> XenNotes:
    found = records(raw, 0, len(raw) if size is None else size)
    return from_records((record for record in found if record), NoteSource.PT_NOTE)


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
        pae=Pae.EXTENDED_CR3,
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


def test_strings_end_at_their_nul() -> None:
    # Wherever that is: descsz is not asked. Linux' FEATURES has its NUL in the padding.
    raw = struct.pack("<III", 4, 5, 8) + b"Xen\0" + b"abcde" + b"fgh" + b"i\0"
    assert read(raw, 24).loader == "abcdefghi"
    assert read(note(8, b"ab\0cd")).loader == "ab"
    assert read(note(8, b"\xff\n\x1b[m\0")).loader == "\\xff\\x0a\\x1b[m"
    assert read(note(5, "xen-3.0") + note(8, b"endless!")).loader is None
    assert read(note(8, b"a" * MAX_STRING + b"\0")).loader == "a" * MAX_STRING
    assert read(note(8, b"a" * (MAX_STRING + 1) + b"\0")).loader is None


def test_other_owners_are_skipped() -> None:
    raw = note(3, b"1234567", owner=b"GNU\0") + note(8, "x") + note(5, "y", b"Xenia\0")
    assert list(records(raw, 0, len(raw))) == [None, Record(8, 2, b"x\0", b"x"), None]
    # The name is a string, however much room namesz gives it.
    assert read(note(8, "x", owner=b"Xen\0more")).loader == "x"


def test_the_later_note_counts() -> None:
    assert read(note(8, "first") + note(8, "second")).loader == "second"
    assert read(note(3, 4096) + note(3, (1 << 64) - 1)).virt_base is None


def test_wishes_add_up() -> None:
    told = read(
        note(10, "a|!b") + note(10, "c") + note(17, 1) + note(17, 2) + note(11, "yes") + note(11, "no")
    )
    assert told.features == (FeatureWish("a", False), FeatureWish("b", True), FeatureWish("c", False))
    assert told.supported_features == 3
    assert told.bsd_symtab
    assert read(note(9, "yes") + note(9, "no")).pae is Pae.EXTENDED_CR3


@pytest.mark.parametrize(
    ("desc", "value"),
    [(b"", 0), (b"\x05", 5), (b"\0\1", 256), (b"abc", 0), (b"\0\0\1\0", 1 << 16), (bytes(7) + b"\1", 1 << 56)]
    + [(b"\1" * size, 0) for size in (5, 6, 7, 9, 16)],
)  # fmt: skip
def test_numbers_have_1_2_4_or_8_bytes(desc: bytes, value: int) -> None:
    assert read(note(3, desc)).virt_base == value


def test_a_number_that_says_nothing() -> None:
    for kind, name in (
        (1, "entry"),
        (2, "hypercall_page"),
        (3, "virt_base"),
        (4, "paddr_offset"),
        (15, "init_p2m"),
    ):
        assert getattr(read(note(kind, (1 << 64) - 1)), name) is None
        assert getattr(read(note(kind, 0)), name) == 0


def test_records_that_reach_too_far() -> None:
    number = struct.pack("<III", 4, 8, 3) + b"Xen\0" + bytes(4)
    assert read(note(8, "x") + number) == read(note(8, "x") + note(3, 0))
    bitmap = struct.pack("<III", 4, 0x8008, 17) + b"Xen\0" + struct.pack("<I", 7)
    assert read(bitmap).supported_features == 7
    assert read(bitmap[:-1]).supported_features == 0
    cut = note(9, "yes" + "\0" * 8)[:-8]
    assert read(note(8, "generic") + cut).pae_mode == "yes"
    for namesz in (0xFFFFFFFC, 1 << 31):
        assert read(struct.pack("<III", namesz, 0, 8) + b"Xen\0" + bytes(64)).loader is None
    # Rounded up in 32 bits that is nothing, and the name serves as the string too.
    assert read(struct.pack("<III", 0xFFFFFFFF, 0, 8) + b"Xen\0" + bytes(64)).loader == "Xen"
    assert read(note(8, "x") + bytes(11)).loader == "x"


def test_features() -> None:
    assert parse_features(b"a|!b||c") == (
        FeatureWish("a", False),
        FeatureWish("b", True),
        FeatureWish("c", False),
    )
    assert parse_features(b"") == ()
    assert parse_features(b"! dom0") == (FeatureWish(" dom0", True),)
    # Longer names are read in pieces.
    assert [wish.name for wish in parse_features(b"x" * 63 + b"!dom0")] == ["x" * 63, "dom0"]
    assert {name for name in XENFEATURES if FeatureWish(name, True).known} == BUILDER_FEATURES
    assert feature_names(0x8801) == ["writable_page_tables", "dom0", "linux_rsdp_unrestricted"]
    assert feature_names(1 << 40) == ["bit 40"]
    assert len(set(XENFEATURES.values())) == len(XENFEATURES)


def test_guest_string_defaults() -> None:
    notes = from_guest_string(b"XEN_VER=xen-3.0,VIRT_BASE=0xC0000000,HYPERCALL_PAGE=2,BSD_SYMTAB")
    assert notes.paddr_offset == notes.virt_base == 0xC0000000
    assert notes.hypercall_page == 0xC0002000
    assert notes.bsd_symtab
    assert notes.entry is None
    assert from_guest_string(b"XEN_VER=xen-3.0").paddr_offset is None
    assert from_guest_string(b"VIRT_BASE=4096,ELF_PADDR_OFFSET=0x0").paddr_offset == 0


def test_long_keys_and_values_go_on_as_keys() -> None:
    assert from_guest_string(b"x" * 31 + b"LOADER=generic").loader == "generic"
    assert from_guest_string(b"GUEST_VER=" + b"x" * 127 + b"LOADER=generic").loader == "generic"
    assert from_guest_string(b"GUEST_VER=" + b"x" * 126 + b",LOADER=generic").loader == "generic"


def test_an_unknown_required_feature_ends_the_guest_string() -> None:
    notes = from_guest_string(b"LOADER=generic,FEATURES=!dom0|!telepathy,GUEST_OS=late")
    assert (notes.loader, notes.guest_os) == ("generic", None)
    assert notes.features == (FeatureWish("dom0", True),)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("0", 0), ("0x10", 16), ("010", 8), ("12", 12), ("0XfF", 255), ("", 0), ("x", 0), ("0x", 0),
        ("-4096", -4096),
        ("09", 0), ("1_0", 1), (" \t1", 1), ("+1", 1), ("12abc", 12), ("-1", None), ("9" * 120, None),
        ("0x10000000000000000", None), ("-0x10000000000000000", None),
    ],
)  # fmt: skip
def test_guest_string_numbers(text: str, value: int | None) -> None:
    told = from_guest_string(f"VIRT_ENTRY={text}".encode()).entry
    assert told == (None if value is None else value & (1 << 64) - 1)


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
    assert from_guest_string(f"LOADER=generic,PAE={told}".encode()).pae is expected
