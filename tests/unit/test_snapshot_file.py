# SPDX-License-Identifier: GPL-2.0-only
"""The file of a snapshot: what is written is read, and what was changed, cut or made up is refused."""

import hashlib
import os
import struct
from pathlib import Path

import msgpack
import numpy as np
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.cpu.layers import Image
from pyhv.cpu.ram import Ram
from pyhv.errors import SnapshotError
from pyhv.snapshot import container, pages
from pyhv.snapshot.container import MAGIC, VERSION, Content
from pyhv.snapshot.pages import PAGES_PER_BLOCK, PageWriter, read_pages

FRAMES = 2000


def image_of(values: dict[int, int]) -> Image:
    """Memory whose frames hold what `values` says, all words alike."""
    ram = Ram(FRAMES)
    for mfn, value in values.items():
        ram.writable.tables[mfn] = value
    return ram.freeze()


def words(image: Image) -> list[int]:
    return [int(value) for value in Ram.of(image).tables[:, 0]]


def written(values: dict[int, int], path: Path) -> Content:
    container.write(path, {"pyhv": "1"}, {"a": [1, b"2", None, -3]}, PageWriter(image_of(values)))
    return container.read(path)


@given(st.dictionaries(st.integers(0, FRAMES - 1), st.integers(0, 400), max_size=600))
@settings(max_examples=30)
def test_memory_comes_back(values: dict[int, int]) -> None:
    writer = PageWriter(image_of(values))
    blocks = list(writer.blocks())
    assert len(blocks) == -(-writer.differing // PAGES_PER_BLOCK)
    assert writer.differing == len(set(values.values()) - {0})
    read = read_pages(FRAMES, writer.table(), blocks)
    assert read.existing().size <= len(values)
    assert words(read) == [values.get(mfn, 0) for mfn in range(FRAMES)]


def test_a_file_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "machine.snap"
    values = {mfn: mfn for mfn in range(1, 700)}
    content = written(values, path)
    assert content.head == {"pyhv": "1"}
    assert content.state == {"a": [1, b"2", None, -3]}
    assert words(read_pages(FRAMES, content.table, content.blocks)) == [
        values.get(mfn, 0) for mfn in range(FRAMES)
    ]
    assert container.is_snapshot(path)
    assert not container.is_snapshot(tmp_path / "none")
    assert [entry.name for entry in tmp_path.iterdir()] == ["machine.snap"]


@pytest.mark.promise("S-5")
def test_a_file_is_replaced_whole_or_not_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "machine.snap"
    written({1: 1}, path)
    before = path.read_bytes()

    def full(_fd: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(SnapshotError, match=r"machine\.snap: .* cannot be written \(No space left"):
        written({2: 2}, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in tmp_path.iterdir()] == ["machine.snap"]


def test_a_directory_that_is_not_there(tmp_path: Path) -> None:
    path = tmp_path / "missing" / "machine.snap"
    with pytest.raises(SnapshotError, match="cannot be written"):
        written({}, path)
    with pytest.raises(SnapshotError, match="cannot be read"):
        container.read(path)


# -- files that are wrong ----------------------------------------------------------------------------------


def sealed(body: bytes) -> bytes:
    """A file with a right digest, whatever is in it."""
    digest = hashlib.blake2b(body, digest_size=32).digest()
    return body + struct.pack("<4sQ", b"END\0", 32) + digest


def section(name: bytes, data: bytes) -> bytes:
    return struct.pack("<4sQ", name, len(data)) + data


HEAD = struct.pack("<8sII", MAGIC, VERSION, 0)
GOOD_HEAD = section(b"HEAD", msgpack.packb({}))
GOOD_STATE = section(b"STAT", zstandard.compress(msgpack.packb({})))
GOOD_TABLE = section(b"TABL", zstandard.compress(b""))
DEEP = section(b"STAT", zstandard.compress(b"\x91" * 5000 + b"\xc0"))
LIST_AS_KEY = section(b"HEAD", b"\x81\x90\xc0")
MANY = zstandard.compress(b"\x94" + 4 * (b"\xdc" + struct.pack(">H", 300) + b"\x90" * 300))
TOO_MANY = zstandard.compress(b"\xdc" + struct.pack(">H", 1001) + b"\xc0" * 1001)
UNKNOWN_SIZE = zstandard.ZstdCompressor(write_content_size=False).compress(msgpack.packb({}))


@pytest.mark.promise("S-4")
@pytest.mark.parametrize(
    ("data", "sentence"),
    [
        (b"", "no snapshot of pyhv"),
        (b"\x7fELF" + bytes(100), "no snapshot of pyhv"),
        (struct.pack("<8sII", MAGIC, VERSION + 1, 0), "newer pyhv"),
        (struct.pack("<8sII", MAGIC, 0, 0), "older pyhv"),
        (struct.pack("<8sII", MAGIC, VERSION, 7), "head is not possible"),
        (HEAD, "truncated"),
        (HEAD + b"HE", "truncated"),
        (HEAD + section(b"HEAD", bytes(9))[:-1], "truncated"),
        (sealed(HEAD), "not in their order"),
        (sealed(HEAD + GOOD_HEAD + GOOD_TABLE + GOOD_STATE), "not in their order"),
        (sealed(HEAD + section(b"HEAD", b"\x01") + GOOD_STATE + GOOD_TABLE), "no table"),
        (sealed(HEAD + section(b"HEAD", b"\xc1") + GOOD_STATE + GOOD_TABLE), "no msgpack"),
        (sealed(HEAD + GOOD_HEAD + section(b"STAT", b"junk") + GOOD_TABLE), "state"),
        (sealed(HEAD + GOOD_HEAD + section(b"STAT", UNKNOWN_SIZE) + GOOD_TABLE), "size that is not"),
        (sealed(HEAD + GOOD_HEAD + DEEP + GOOD_TABLE), "no msgpack"),
        (sealed(HEAD + LIST_AS_KEY + GOOD_STATE + GOOD_TABLE), "no msgpack"),
        (
            sealed(HEAD + GOOD_HEAD + section(b"STAT", zstandard.compress(b"\x01\x02")) + GOOD_TABLE),
            "msgpack",
        ),
    ],
)
def test_a_file_that_is_none(data: bytes, sentence: str) -> None:
    with pytest.raises(SnapshotError, match=sentence):
        container.parse(data)


@pytest.mark.promise("S-4")
@pytest.mark.parametrize(("state", "sentence"), [(MANY, "more values"), (TOO_MANY, "no msgpack")])
def test_values_are_counted(state: bytes, sentence: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also lists of nothing, of which a small file may have very many."""
    data = sealed(HEAD + GOOD_HEAD + section(b"STAT", state) + GOOD_TABLE)
    assert container.parse(data).state
    monkeypatch.setattr(container, "_MOST_VALUES", 1000)
    with pytest.raises(SnapshotError, match=sentence):
        container.parse(data)


def table(frames: list[int], pages: list[int]) -> bytes:
    return zstandard.compress(np.array([frames, pages], dtype="<u4").tobytes())


PAGE = zstandard.compress(bytes([1]) * 4096)


@pytest.mark.promise("S-4")
@pytest.mark.parametrize(
    ("raw", "blocks", "sentence"),
    [
        (table([1, 1], [0, 0]), [PAGE], "do not ascend"),
        (table([FRAMES], [0]), [PAGE], "beyond memory"),
        (table([1], [1]), [PAGE], "leaves out pages"),
        (table([1, 2], [0, 0xFFFF_FFFF]), [PAGE], "leaves out pages"),
        (table([1], [0]), [], "fewer blocks"),
        (table([1], [0]), [PAGE, PAGE], "more blocks"),
        (table([], []), [PAGE], "more blocks"),
        (table([1], [0]), [zstandard.compress(bytes(4095))], "wrong size"),
        (table([1], [0]), [zstandard.compress(bytes(1 << 28))], "wrong size"),
        (table([1], [0]), [b"junk"], "decompressed"),
        (zstandard.compress(bytes(7)), [], "length is not possible"),
        (table(list(range(FRAMES + 1)), [0] * (FRAMES + 1)), [PAGE], "wrong size"),
        (b"", [], "decompressed"),
    ],
)
def test_memory_that_is_none(raw: bytes, blocks: list[bytes], sentence: str) -> None:
    with pytest.raises(SnapshotError, match=sentence):
        read_pages(FRAMES, raw, blocks)


@pytest.mark.promise("S-4")
def test_more_memory_than_the_host_has(monkeypatch: pytest.MonkeyPatch) -> None:
    """A small file may say that very many frames have one page."""
    alike = table(list(range(1, 1025)), [0] * 1024)
    assert words(read_pages(FRAMES, alike, [PAGE])).count(0x0101010101010101) == 1024
    monkeypatch.setattr(pages, "_host_pages", lambda: 1023)
    with pytest.raises(SnapshotError, match="has 4 MiB of memory, more than this host"):
        read_pages(FRAMES, alike, [PAGE])


@pytest.fixture(scope="module")
def genuine(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("snapshot") / "machine.snap"
    written({mfn: mfn * 3 for mfn in range(300)}, path)
    return path.read_bytes()


@pytest.mark.promise("S-4")
@given(st.data())
def test_any_change_is_noticed(genuine: bytes, data: st.DataObject) -> None:
    at = data.draw(st.integers(0, len(genuine) - 1))
    changed = bytearray(genuine)
    changed[at] ^= data.draw(st.integers(1, 255))
    with pytest.raises(SnapshotError):
        container.parse(bytes(changed))
    with pytest.raises(SnapshotError):
        container.parse(genuine[:at])


@pytest.mark.promise("S-4")
@given(st.binary(max_size=200), st.binary(max_size=200))
def test_whatever_is_in_a_section(state: bytes, raw: bytes) -> None:
    """With a right digest: a machine that was changed on purpose."""
    body = HEAD + GOOD_HEAD + section(b"STAT", zstandard.compress(state)) + section(b"TABL", raw)
    try:
        content = container.parse(sealed(body))
        read_pages(FRAMES, content.table, content.blocks)
    except SnapshotError:
        pass
