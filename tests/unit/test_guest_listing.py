# SPDX-License-Identifier: GPL-2.0-only
"""Listings of kernels: every byte at its address, with its line; and read again."""

from pathlib import Path

import pytest

from pyhv.errors import ImageError
from pyhv.guests.build import build, build_listed
from pyhv.guests.catalogue import source_of
from pyhv.guests.listing import read_listing, written
from pyhv.loader.elf import load_image


@pytest.mark.parametrize("name", ["hello", "pages32", "hostile/pointers"])
def test_a_listing_has_every_byte_and_changes_none(tmp_path: Path, name: str) -> None:
    image, lines = build_listed(source_of(name))
    assert image == build(source_of(name))
    text = load_image(image, name).segments[0]
    listed = b"".join(line.code for line in lines)
    assert text.data == listed + bytes(-len(listed) % 4096)
    assert [line.address for line in lines] == sorted(line.address for line in lines)
    file = tmp_path / "listing"
    file.write_text(written(lines))
    code = [line for line in lines if line.executable]
    assert len(code) > 50
    assert [line for line in read_listing(file) if line.executable] == code


def test_a_macros_code_is_where_it_is_used(tmp_path: Path) -> None:
    source = tmp_path / "k.S"
    source.write_text(".macro two\n  nop\n  hlt\n.endm\n.text\n_start: nop\n  two\n\n  two\n  ret\n")
    lines = build_listed(source)[1]
    assert [(line.line, line.code.hex()) for line in lines] == [
        (6, "90"), (7, "90"), (7, "f4"), (9, "90"), (9, "f4"), (10, "c3"),
    ]  # fmt: skip
    assert {line.path for line in lines} == {source}


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("/a.S:\n  0000000000100000  90    1  nop\nwhat?\n", "line 3 is not as"),
        ("  0000000000100000  90    1  nop\n", "line 1 is not as"),
        ("/a.S:\n  0000000000100000  9    1  nop\n", "line 2 is not as"),
        ("\xff", "it is no text"),
    ],
)
def test_what_is_no_listing_is_refused(tmp_path: Path, text: str, why: str) -> None:
    file = tmp_path / "k.lst"
    file.write_bytes(text.encode("latin-1"))
    with pytest.raises(ImageError, match=why):
        read_listing(file)
