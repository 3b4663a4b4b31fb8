# SPDX-License-Identifier: GPL-2.0-only
"""qcow2 images that anybody may have made: each number that cannot be is a refusal, and no harm is done."""

import errno
import re
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
from disk_images import filled, refusal, set_at
from qemu_tools import qemu_img

from pyhv.storage.disk import DiskError
from pyhv.storage.open import open_image
from pyhv.storage.qcow2.header import parse

KIB = 1 << 10


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return filled(tmp_path / "disk.qcow2")


@pytest.mark.promise("B-5")
@pytest.mark.parametrize(
    ("offset", "form", "value", "why"),
    [
        (0, ">I", 0, "is no qcow2 image"),
        (4, ">I", 1, "version 1"),
        (4, ">I", 4, "version 4"),
        (8, ">QI", (60, 5), "has the name of its base at 60"),
        (8, ">QI", (1 << 63, 5), "has the name of its base"),
        (8, ">QI", (65530, 100), "has the name of its base"),
        (8, ">QI", (200, 1024), "has the name of its base at 200, of 1024 bytes"),
        (8, ">QI", (200, 9), "byte 0"),
        (20, ">I", 8, r"clusters of 2\^8"),
        (20, ">I", 22, r"clusters of 2\^22"),
        (20, ">I", 1 << 31, "clusters of"),
        (24, ">Q", 1000, "no number of sectors"),
        (24, ">Q", 0, "no number of sectors"),
        (24, ">Q", 1 << 63, "too large"),
        (24, ">Q", 1 << 40, "too few for"),
        (32, ">I", 1, "is encrypted"),
        (32, ">I", 2, "is encrypted"),
        (36, ">I", 0, "L1 table of 0 entries, too few"),
        (36, ">I", 0xFFFFFFFF, "L1 table of 4294967295 entries"),
        (36, ">I", 1 << 20, "which is not within"),
        (40, ">Q", 0, "has its L1 table at 0"),
        (40, ">Q", 0x30001, "has its L1 table at"),
        (40, ">Q", 1 << 62, "has its L1 table at"),
        (48, ">Q", 512, "has its refcount table at 512"),
        (48, ">Q", (1 << 64) - (1 << 16), "has its refcount table at"),
        (56, ">I", 0, "no refcount table"),
        (56, ">I", 100, "has its refcount table at"),
        (56, ">I", 1 << 31, "refcount table of 2147483648 clusters"),
        (60, ">I", 70000, "70000 internal snapshots"),
        (72, ">Q", 1 << 5, "has the feature number 5"),
        (72, ">Q", 1 << 63, "has the feature number 63"),
        (72, ">Q", 1 << 3, "compression of type 0, and its features say otherwise"),
        (96, ">I", 7, r"refcounts of 2\^7 bits"),
        (100, ">I", 72, "header of 72 bytes"),
        (100, ">I", 105, "header of 105 bytes"),
        (100, ">I", 1 << 31, "first cluster does not hold"),
        (104, ">II", (0x12345, 1 << 30), "an extension 0x00012345 of 1073741824 bytes"),
    ],
)  # fmt: skip
def test_a_header_with_a_number_that_cannot_be(
    image: Path, offset: int, form: str, value: int | tuple[int, ...], why: str
) -> None:
    set_at(image, offset, form, *(value if isinstance(value, tuple) else (value,)))
    said = refusal(image)
    assert re.search(why, said), said
    assert refusal(image, writable=True) == said


def test_a_header_that_is_cut_off(image: Path) -> None:
    whole = image.read_bytes()
    for length in (4, 20, 71, 72, 103):
        image.write_bytes(whole[:length])
        assert "is truncated" in refusal(image)
    image.write_bytes(whole[:104])
    assert "not within its 104 bytes" in refusal(image)


def test_every_bit_of_a_header(image: Path) -> None:
    """None of them makes anything but a disk or a refusal."""
    head = bytearray(image.read_bytes()[:512])
    taken = 0
    for bit in range(112 * 8):
        head[bit // 8] ^= 1 << bit % 8
        try:
            parse(bytes(head), image.stat().st_size, "image")
            taken += 1
        except DiskError:
            pass
        head[bit // 8] ^= 1 << bit % 8
    assert 0 < taken < 500


def test_an_unknown_feature_is_called_as_the_image_calls_it(image: Path) -> None:
    table = struct.pack(">BB46s", 0, 9, b"time travel\x1b[31m") + struct.pack(">BB46s", 1, 9, b"harmless")
    head = image.read_bytes()[:104]
    with image.open("r+b") as file:
        file.write(head + struct.pack(">II", 0x6803F857, len(table)) + table + bytes(8))
    set_at(image, 72, ">Q", 1 << 9)
    assert "has the feature time travel?[31m, which pyhv does not know" in refusal(image)


def l1_of(path: Path) -> int:
    return int(struct.unpack(">Q", path.read_bytes()[40:48])[0])


def l2_of(path: Path) -> int:
    at = l1_of(path)
    return int(struct.unpack(">Q", path.read_bytes()[at : at + 8])[0]) & 0xFF_FFFF_FFFF_FE00


def reads_nothing(path: Path) -> str:
    with open_image(path, "qcow2", writable=False) as disk, pytest.raises(DiskError) as caught:
        disk.read(64 * KIB, 64 * KIB)
    assert caught.value.errno == errno.EIO
    return str(caught.value)


@pytest.mark.promise("B-5")
@pytest.mark.parametrize(
    "entry", [1, 1 << 56, 1 << 62, 0x10001, 1 << 50, (1 << 56) - (1 << 16), 1 << 63 | 1 << 40]
)
def test_an_entry_of_l1_that_cannot_be(image: Path, entry: int) -> None:
    set_at(image, l1_of(image), ">Q", entry)
    assert "in L1, which cannot be" in reads_nothing(image)
    assert "in L1, which cannot be" in refusal(image, writable=True)


@pytest.mark.promise("B-5")
@pytest.mark.parametrize("entry", [2, 0x200, 1 << 56, 1 << 61, 0x50200, 1 << 50, 1 << 63 | 1 << 40])
def test_an_entry_of_l2_that_cannot_be(image: Path, entry: int) -> None:
    set_at(image, l2_of(image) + 8, ">Q", entry)
    assert "in L2, which cannot be" in reads_nothing(image)
    with open_image(image, "qcow2", writable=True) as disk:
        with pytest.raises(DiskError):
            disk.write(64 * KIB, b"x")
        disk.write(0, b"others are well")
        assert disk.read(0, 15) == b"others are well"


@pytest.mark.parametrize("place", [0, 512, 0x40000, (1 << 54) - 1, (1 << 62) - 1])
def test_a_compressed_cluster_that_cannot_be(image: Path, place: int) -> None:
    set_at(image, l2_of(image) + 8, ">Q", 1 << 62 | place)
    assert "damaged" in reads_nothing(image)


@pytest.mark.promise("B-5")
@pytest.mark.parametrize("kind", ["zlib", "zstd"])
def test_a_compressed_cluster_is_damaged_or_makes_too_much(tmp_path: Path, kind: str) -> None:
    raw, path = tmp_path / "raw", tmp_path / "q"
    raw.write_bytes(b"abcdefgh" * 8192 * 4)
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", f"compression_type={kind}", raw, path)
    whole = path.read_bytes()
    entry = struct.unpack(">Q", whole[l2_of(path) : l2_of(path) + 8])[0]
    place = entry & (1 << 54) - 1
    for damage in range(64):
        changed = bytearray(whole)
        changed[place + damage % 40] ^= 1 << damage % 8
        path.write_bytes(changed)
        with open_image(path, "qcow2", writable=False) as disk:
            try:
                assert len(disk.read(0, 64 * KIB)) == 64 * KIB
            except DiskError as error:
                assert "compressed cluster that is damaged" in str(error)  # noqa: PT017


@pytest.mark.parametrize(
    ("offset", "why"),
    [(lambda path: 0x10000, "lie on top"), (l1_of, "lie on top"), (lambda path: 0, None)],
)
def test_tables_on_top_of_each_other_are_not_written(
    image: Path, offset: Callable[[Path], int], why: str | None
) -> None:
    set_at(image, l1_of(image), ">Q", 1 << 63 | offset(image))
    if why:
        assert why in refusal(image, writable=True)
    else:
        open_image(image, "qcow2", writable=True).close()


def test_a_guests_cluster_is_no_table(image: Path) -> None:
    """Otherwise the guest would write tables."""
    set_at(image, l2_of(image), ">Q", 1 << 63 | l1_of(image))
    before = image.read_bytes()
    with open_image(image, "qcow2", writable=True) as disk:
        for act in (
            lambda: disk.write(0, b"x"),
            lambda: disk.read(0, 1),
            lambda: disk.write(200 * KIB, b"x"),
        ):
            with pytest.raises(DiskError, match="what holds a table is called a guest's"):
                act()
    assert image.read_bytes() == before


def test_refcounts_that_call_a_table_free_do_not_harm_it(image: Path) -> None:
    table = struct.unpack(">Q", image.read_bytes()[48:56])[0]
    block = struct.unpack(">Q", image.read_bytes()[table : table + 8])[0]
    set_at(image, block, ">4H", 0, 0, 0, 0)
    before = image.read_bytes()
    with open_image(image, "qcow2", writable=True) as disk:
        with pytest.raises(DiskError, match="what its refcounts call free holds a table"):
            disk.write(0, b"x")
        assert disk.read(100 * KIB, 5) == b"hello"
    assert image.read_bytes() == before


@pytest.mark.parametrize("entry", [1, 0x10200, 1 << 60])
def test_a_refcount_block_that_cannot_be(image: Path, entry: int) -> None:
    table = struct.unpack(">Q", image.read_bytes()[48:56])[0]
    set_at(image, table, ">Q", entry)
    assert "has a refcount block at" in refusal(image, writable=True)
