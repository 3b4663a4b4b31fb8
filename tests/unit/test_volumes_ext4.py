# SPDX-License-Identifier: GPL-2.0-only
"""ext2, ext3 and ext4: what mke2fs has written is read, and whatever has been changed ends in a sentence."""

import functools
import os
import random
import struct
import time
from pathlib import Path

import pytest
from disk_maker import MIB, UUID, Memory, ext, run, window
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.errors import VolumeError
from pyhv.volumes.ext4 import Ext, Superblock
from pyhv.volumes.filesystem import recognize
from pyhv.volumes.window import Window

KINDS = {
    "ext2-1k": ("-t", "ext2", "-b", "1024"),
    "ext2-old": ("-t", "ext2", "-r", "0", "-b", "1024"),
    "ext2-4k": ("-t", "ext2", "-b", "4096"),
    "ext3": ("-t", "ext3", "-b", "1024"),
    "ext4": ("-t", "ext4"),
    "ext4-1k": ("-t", "ext4", "-b", "1024"),
    "ext4-32bit": ("-t", "ext4", "-O", "^64bit"),
    "ext4-inline": ("-t", "ext4", "-O", "inline_data"),
    "ext4-meta_bg": ("-t", "ext4", "-b", "1024", "-O", "meta_bg,^resize_inode", "-g", "256"),
    "ext4-bigalloc": ("-t", "ext4", "-O", "bigalloc", "-C", "16384"),
    "ext4-64k": ("-t", "ext4", "-b", "65536"),
    "ext4-128": ("-t", "ext4", "-I", "128"),
}
SIZE = 32 * MIB


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files of all kinds: empty, small, sparse, large; long directories; links."""
    root = tmp_path_factory.mktemp("tree")
    chance = random.Random(1)
    (root / "boot" / "grub").mkdir(parents=True)
    (root / "boot" / "grub" / "grub.cfg").write_text("menuentry 'a' {\n}\n")
    (root / "empty").touch()
    (root / "tiny").write_bytes(b"tiny")
    (root / "short").write_bytes(chance.randbytes(100))
    (root / "block").write_bytes(chance.randbytes(4096))
    (root / "large").write_bytes(chance.randbytes(3 * MIB + 17))
    with (root / "sparse").open("wb") as file:
        for at in range(0, 6 * MIB, 300_000):
            file.seek(at)
            file.write(chance.randbytes(5))
    many = root / "many"
    many.mkdir()
    for number in range(400):
        (many / f"a-file-with-a-rather-long-name-{number:04}").touch()
    (root / "few").mkdir()
    for number in range(6):
        (root / "few" / f"file-{number}").touch()
    (root / "link").symlink_to("boot/grub/grub.cfg")
    (root / "absolute").symlink_to("/boot/../boot/grub")
    (root / "long-link").symlink_to("./" * 60 + "tiny")
    (root / "loop").symlink_to("loop")
    (root / "unicode-\u00e4").write_bytes(b"name")
    return root


@pytest.fixture(scope="module", params=KINDS.values(), ids=list(KINDS))
def made(request: pytest.FixtureRequest, tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("ext") / "disk"
    return ext(path, SIZE, tree, "-L", "a label", "-m", "0", *request.param)


def test_all_files_are_read(made: Path, tree: Path) -> None:
    files = Ext(window(made))
    seen = 0
    for directory, names, regular in os.walk(tree):
        place = "/" + str(Path(directory).relative_to(tree)).removeprefix(".")
        extra = ["lost+found"] if place == "/" else []
        assert files.names(place) == sorted(names + regular + extra)
        for name in regular:
            original = Path(directory, name)
            if original.is_file():
                assert files.read_file(f"{place}/{name}", SIZE) == original.read_bytes(), name
                seen += 1
    assert seen == 416
    assert files.read_file("/absolute/grub.cfg", 100) == b"menuentry 'a' {\n}\n"
    assert files.names("/absolute") == ["grub.cfg"]


def test_the_superblock_is_as_dumpe2fs_reads_it(made: Path) -> None:
    told = dict(line.partition(":")[::2] for line in run("dumpe2fs", "-h", made).splitlines() if ":" in line)
    superblock = Superblock(window(made))
    assert superblock.label == told["Filesystem volume name"].strip() == "a label"
    assert superblock.uuid == told["Filesystem UUID"].strip() == UUID
    assert superblock.blocks == int(told["Block count"])
    assert superblock.block_size == int(told["Block size"])
    words = told["Filesystem features"].split()
    assert sorted(superblock.features) == ([] if words == ["(none)"] else sorted(words))
    assert superblock.clean
    found = recognize(window(made))
    assert found is not None
    assert found.kind == run("blkid", "-p", "-o", "value", "-s", "TYPE", made).strip()
    assert found.remarks == ()


def test_the_journal_of_a_file_system_in_use_is_told(tree: Path, tmp_path: Path) -> None:
    path = ext(tmp_path / "disk", SIZE, tree, "-t", "ext4")
    run("debugfs", "-w", "-R", "feature needs_recovery", path)
    found = recognize(window(path))
    assert found is not None
    assert found.remarks == ("was not unmounted; its journal has to be replayed",)


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("/none", "there is no /none"),
        ("/boot", "is no regular file"),
        ("/tiny/x", "there is a file where a directory should be"),
        ("/loop", "more than 16 symbolic links"),
        ("/large", "at most 1048576 are read"),
    ],
)
def test_what_is_not_there(tree: Path, tmp_path: Path, path: str, why: str) -> None:
    files = Ext(window(ext(tmp_path / "disk", SIZE, tree, "-t", "ext4")))
    with pytest.raises(VolumeError, match=why):
        files.read_file(path, MIB)
    with pytest.raises(VolumeError):
        files.names("/tiny")


def test_what_is_cut_off(tree: Path, tmp_path: Path) -> None:
    path = ext(tmp_path / "disk", SIZE, tree, "-t", "ext4")
    found = recognize(window(path.read_bytes()[: MIB // 2]))
    assert found is not None
    assert f"says that it is {SIZE} bytes long" in found.remarks[0]
    with pytest.raises(VolumeError, match="behind its end"):
        Ext(window(path.read_bytes()[: MIB // 2])).read_file("/large", SIZE)


@pytest.fixture(scope="module", params=["ext2-1k", "ext4-1k", "ext4-inline", "ext4-meta_bg"])
def small(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A small file system, to be damaged."""
    root = tmp_path_factory.mktemp("small")
    (root / "boot").mkdir()
    (root / "boot" / "kernel").write_bytes(bytes(range(256)) * 400)
    (root / "link").symlink_to("boot/kernel")
    for number in range(60):
        (root / f"file-{number}").write_text(str(number))
    return ext(root.parent / f"{root.name}.img", 2 * MIB, root, *KINDS[request.param]).read_bytes()


def explore(part: Window) -> None:
    """Do all that can be done; VolumeErrors are as they should be."""
    recognize(part)
    try:
        files = Ext(part)
    except VolumeError:
        return
    for act in (
        lambda: files.names("/"),
        lambda: files.names("/boot"),
        lambda: files.read_file("/link", MIB),
        lambda: files.read_file("/boot/kernel", MIB),
        lambda: files.read_file("/file-7", MIB),
    ):
        try:
            act()
        except VolumeError:
            continue


@functools.cache
def places(data: bytes) -> list[int]:
    """Where there is something: superblock, descriptors, inode tables, directories, trees, contents."""
    return [at for at in range(1024, len(data), 64) if any(data[at : at + 64])]


@settings(max_examples=60)
@given(damage=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 3), st.binary(min_size=1, max_size=8))))
def test_any_damage_ends_in_a_sentence(small: bytes, damage: list[tuple[float, int, bytes]]) -> None:
    data = bytearray(small)
    used = places(small)
    for place, within, new in damage:
        at = used[int(place * (len(used) - 1))] + within * 16
        data[at : at + len(new)] = new
    memory = Memory(data)
    explore(Window(memory, "disk"))
    assert memory.bytes_read < 64 * MIB


def node(depth: int, entries: list[bytes], room: int = 340) -> bytes:
    return struct.pack("<HHHHI", 0xF30A, len(entries), room, depth, 0) + b"".join(entries)


def test_a_tree_of_extents_that_leads_back_into_itself_ends(tree: Path, tmp_path: Path) -> None:
    """Each node names one block again and again, four levels deep: 84 to the fourth ways, if all are gone."""
    path = ext(tmp_path / "disk", 4 * MIB, None, "-t", "ext4", "-b", "1024", "-O", "^metadata_csum")
    run("debugfs", "-w", "-R", f"write {tree / 'block'} victim", path)
    at = int(run("debugfs", "-R", "imap victim", path).split("located at block ")[1].split(",")[0])
    offset = int(run("debugfs", "-R", "imap victim", path).split("offset ")[1], 16)
    data = bytearray(path.read_bytes())
    inode = at * 1024 + offset
    first = 3000  # a free block, and the ones behind it
    index = [struct.pack("<IIHH", number, first, 0, 0) for number in range(4)]
    data[inode + 0x28 : inode + 0x64] = node(4, index, 4)
    data[inode + 4 : inode + 8] = struct.pack("<I", 1 << 26)
    for depth in (3, 2, 1):
        below = first + 4 - depth
        entries = [struct.pack("<IIHH", number, below, 0, 0) for number in range(84)]
        here = (first + 3 - depth) * 1024
        data[here : here + 1024] = node(depth, entries, 84).ljust(1024, b"\0")
    leaf = node(0, [struct.pack("<IHHI", number, 1, 0, 100) for number in range(84)], 84)
    data[(first + 3) * 1024 : (first + 4) * 1024] = leaf.ljust(1024, b"\0")
    memory = Memory(data)
    begun = time.process_time()
    with pytest.raises(VolumeError, match=r"out of order|overlap"):
        Ext(Window(memory, "disk")).read_file("/victim", 1 << 26)
    assert memory.bytes_read < MIB
    assert time.process_time() - begun < 5
