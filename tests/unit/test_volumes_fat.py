# SPDX-License-Identifier: GPL-2.0-only
"""FAT: what mkfs.vfat and mtools have written is read, and whatever has been changed ends in a sentence."""

import random
from pathlib import Path

import pytest
from disk_maker import MIB, Memory, blank, run, window
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.errors import VolumeError
from pyhv.volumes.fat import BootSector, Fat, is_fat
from pyhv.volumes.filesystem import recognize
from pyhv.volumes.window import Window

KINDS = {"12": 2 * MIB, "16": 20 * MIB, "32": 40 * MIB}
FILES = {
    "README": b"short name",
    "lower.txt": b"lower case, short",
    "A long name with blanks, and \u00fcmlauts.conf": b"long",
    "large.bin": random.Random(1).randbytes(700_001),
    "empty": b"",
}


def fat(path: Path, bits: str, size: int) -> Path:
    """A file system with the files, in the root and in a directory."""
    run("mkfs.vfat", "-F", bits, "-n", "CIDATA", "-i", "12345678", blank(path, size))
    run("mmd", "-i", path, "::/Boot Files")
    for name, content in FILES.items():
        source = path.parent / "source"
        source.write_bytes(content)
        run("mcopy", "-i", path, source, f"::/{name}")
        run("mcopy", "-i", path, source, f"::/Boot Files/{name}")
    for number in range(40):
        run("mcopy", "-i", path, source, f"::/Boot Files/number {number}")
    return path


@pytest.fixture(scope="module", params=KINDS.items(), ids=lambda kind: f"FAT{kind[0]}")
def made(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    bits, size = request.param
    return fat(tmp_path_factory.mktemp("fat") / f"disk{bits}", bits, size)


def test_all_files_are_read(made: Path) -> None:
    files = Fat(window(made))
    assert files.names("/") == sorted([*FILES, "Boot Files"])
    assert len(files.names("/boot files/")) == len(FILES) + 40
    for place in ("", "/Boot Files", "/BOOTFI~1"):
        for name, content in FILES.items():
            assert files.read_file(f"{place}/{name}", MIB) == content
    assert files.read_file("/readme", MIB) == FILES["README"]
    assert files.names("/Boot Files/..") == files.names("/")


def test_the_boot_sector_is_as_blkid_reads_it(made: Path) -> None:
    told = BootSector(window(made))
    assert told.label == "CIDATA"
    assert told.serial == "1234-5678" == run("blkid", "-p", "-o", "value", "-s", "UUID", made).strip()
    assert f"FAT{told.bits}" == run("blkid", "-p", "-o", "value", "-s", "VERSION", made).strip()
    found = recognize(window(made))
    assert found is not None
    assert found.kind == f"vfat (FAT{told.bits})"


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/none", "there is no /none"),
        ("/", "is no regular file"),
        ("/Boot Files", "is no regular file"),
        ("/README/x", "there is a file where a directory should be"),
        ("/large.bin", "at most 1000 are read"),
    ],
)
def test_what_is_not_there(made: Path, path: str, why: str) -> None:
    with pytest.raises(VolumeError, match=why):
        Fat(window(made)).read_file(path, 1000)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return fat(tmp_path_factory.mktemp("fat") / "disk", "12", 2 * MIB).read_bytes()


def explore(part: Window) -> None:
    recognize(part)
    if not is_fat(part):
        return
    files = Fat(part)
    for act in (
        lambda: files.names("/"),
        lambda: files.names("/Boot Files"),
        lambda: files.read_file("/large.bin", MIB),
        lambda: files.read_file("/Boot Files/number 39", MIB),
    ):
        try:
            act()
        except VolumeError:
            continue


@settings(max_examples=100)
@given(
    damage=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 31), st.binary(min_size=1, max_size=8)), max_size=12
    )
)
def test_any_damage_ends_in_a_sentence(small: bytes, damage: list[tuple[float, int, bytes]]) -> None:
    data = bytearray(small)
    used = [at for at in range(0, 200 * 512, 32) if any(data[at : at + 32])]
    for place, within, new in damage:
        at = used[int(place * (len(used) - 1))] + within
        data[at : at + len(new)] = new
    memory = Memory(data)
    explore(Window(memory, "disk"))
    assert memory.bytes_read < 64 * MIB


def test_a_chain_that_goes_round_ends(small: bytes) -> None:
    """The first cluster of a large file follows itself."""
    data = bytearray(small)
    told = BootSector(window(small))
    files = Fat(window(small))
    whole = files.read_file("/large.bin", MIB)
    cluster = (small.index(whole[:64]) - told.data_at) // told.cluster_size + 2
    at = told.fat_at + cluster * 12 // 8
    pair = int.from_bytes(data[at : at + 2], "little")
    new = pair & 0xF | cluster << 4 if cluster & 1 else pair & 0xF000 | cluster
    data[at : at + 2] = new.to_bytes(2, "little")
    found = Fat(window(data)).read_file("/large.bin", MIB)
    assert len(found) == len(whole)
    assert found[: told.cluster_size] == found[told.cluster_size : 2 * told.cluster_size]
