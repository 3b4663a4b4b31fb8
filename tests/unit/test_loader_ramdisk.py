# SPDX-License-Identifier: GPL-2.0-only
"""What a guest gets for a ramdisk: unpacked gzip, or the file. (tests/real/test_libxenguest.py asks Xen.)"""

import bz2
import gzip
import lzma
import struct
from collections.abc import Callable

import pytest
import zstandard

from pyhv.errors import ImageError
from pyhv.loader import ramdisk
from pyhv.loader.ramdisk import prepare

CPIO = b"070701" + bytes(range(256)) * 20000
PACKED = gzip.compress(CPIO)


def test_gzip_is_unpacked() -> None:
    data, told = prepare(PACKED, "r")
    assert data == CPIO + bytes(16)
    assert told == "gzip, unpacked for the guest"
    assert prepare(gzip.compress(b""), "r").data == bytes(20)  # no less than the file has


def test_gzip_is_left_alone_if_asked_for() -> None:
    assert prepare(PACKED, "r", raw=True) == (PACKED, "gzip, left to the guest as asked for")
    assert prepare(CPIO, "r", raw=True) == prepare(CPIO, "r")


@pytest.mark.parametrize("pack", [bytes, bz2.compress, lzma.compress, zstandard.compress])
def test_everything_else_is_left_to_the_guest(pack: Callable[[bytes], bytes]) -> None:
    assert prepare(pack(CPIO), "r") == (pack(CPIO), "the file as it is")


@pytest.mark.parametrize(
    "data",
    [
        PACKED[:-20],
        PACKED[:1000] + bytes([PACKED[1000] ^ 1]) + PACKED[1001:],
        PACKED + gzip.compress(b"more"),
        PACKED + bytes(512),
        PACKED[:-4] + struct.pack("<I", 10),
        PACKED[:-4] + struct.pack("<I", len(CPIO) - 1),
        PACKED[:-4] + struct.pack("<I", len(CPIO) + 1),
        PACKED[:-4] + struct.pack("<I", (1 << 30) - 15),
    ],
)
def test_gzip_that_is_more_or_less_than_one_stream(data: bytes) -> None:
    # Nothing that was in the file is lost.
    given, told = prepare(data, "r")
    assert given.startswith(data)
    assert not given[len(data) :].strip(b"\0")
    assert "left to the guest" in told


@pytest.mark.promise("L-24")
def test_a_bomb_unpacks_to_no_more_than_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ramdisk, "MAX_RAMDISK", 1 << 20)
    bomb = gzip.compress(bytes(64 << 20))
    assert prepare(bomb, "r").data == bomb
    lie = bomb[:-4] + struct.pack("<I", 1000)
    assert prepare(lie, "r").data == lie


def test_bad_files(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="r: the ramdisk is empty"):
        prepare(b"", "r")
    monkeypatch.setattr(ramdisk, "MAX_RAMDISK", 1 << 20)
    with pytest.raises(ImageError, match="larger than 1 MiB"):
        prepare(bytes((1 << 20) + 1), "r")
