# SPDX-License-Identifier: GPL-2.0-only
"""qcow2: images of QEMU's are read, ours are what QEMU calls sound, and what anybody may have made does no
harm."""

import errno
import os
from pathlib import Path

import pytest
from disk_images import filled, make, on, refusal, set_at
from qemu_tools import checked, contents, qemu_img, qemu_io

from pyhv.cli.attaching import disks_of_guests
from pyhv.storage.disk import DiskError
from pyhv.storage.hostfile import HostFile
from pyhv.storage.open import open_disk, open_image
from pyhv.storage.qcow2.disk import Qcow2Disk, read_header
from pyhv.storage.spec import DiskSpec

KIB, MIB, GIB = 1 << 10, 1 << 20, 1 << 30


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return filled(tmp_path / "disk.qcow2")


# -- with QEMU -----------------------------------------------------------------------------------------------


@pytest.mark.promise("B-4")
@pytest.mark.parametrize("bits", range(9, 22))
def test_images_of_qemu_with_every_size_of_clusters(tmp_path: Path, bits: int) -> None:
    path, raw = tmp_path / "q", tmp_path / "raw"
    version = "0.10" if bits % 3 == 0 else "1.1"
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"cluster_size={1 << bits},compat={version}", path, "9M")
    zeros = ["write -z 7M 300k"] if version == "1.1" else []
    qemu_io(
        path,
        "write -P 65 1M 1234k",
        "write -P 66 512 512",
        "discard 1200k 200k",
        *zeros,
        options=("-f", "qcow2"),
    )
    qemu_img("convert", "-f", "qcow2", "-O", "raw", path, raw)
    with open_image(path, "qcow2", writable=True) as disk:
        expected = bytearray(raw.read_bytes())
        assert disk.read(0, disk.size) == expected
        disk.write(3 * MIB - 700, b"ours" * 999)
        expected[3 * MIB - 700 : 3 * MIB - 700 + 3996] = b"ours" * 999
    checked(path)
    assert contents(path, tmp_path) == expected


@pytest.mark.promise("B-4")
@pytest.mark.parametrize("kind", ["zlib", "zstd"])
@pytest.mark.parametrize("bits", [9, 12, 16, 21])
def test_compressed_clusters_are_read_and_replaced(tmp_path: Path, kind: str, bits: int) -> None:
    raw, path = tmp_path / "raw", tmp_path / "q"
    content = bytearray(bytes(n & 0xFF for n in range(64 * KIB)) * 16 + os.urandom(64 * KIB) + bytes(2 * MIB))
    raw.write_bytes(content)
    options = f"cluster_size={1 << bits},compression_type={kind}"
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", "-o", options, raw, path)
    with open_image(path, "qcow2", writable=True) as disk:
        assert disk.read(0, disk.size) == content
        assert disk.read(MIB - 1, 4) == content[MIB - 1 : MIB + 3]
        disk.write(777, b"replaced")
        content[777:785] = b"replaced"
        disk.write(MIB + 5, b"x" * 100 * KIB)
        content[MIB + 5 : MIB + 5 + 100 * KIB] = b"x" * 100 * KIB
        assert disk.read(0, disk.size) == content
    checked(path)
    assert contents(path, tmp_path) == content


def test_preallocated_clusters_are_used(tmp_path: Path) -> None:
    path = tmp_path / "q"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "preallocation=metadata", path, "4M")
    with open_image(path, "qcow2", writable=True) as disk:
        assert disk.read(0, disk.size) == bytes(4 * MIB)
        size = path.stat().st_size
        disk.write(MIB, b"x" * MIB)
        disk.flush()
        assert path.stat().st_size == size
    checked(path)
    assert contents(path, tmp_path) == bytes(MIB) + b"x" * MIB + bytes(2 * MIB)


@pytest.mark.parametrize("refcount_bits", [1, 2, 8, 16, 64])
def test_a_refcount_table_grows(tmp_path: Path, refcount_bits: int) -> None:
    """With the smallest clusters one of 64-bit counts is full at 2 MiB."""
    path = tmp_path / "q"
    size = 6 * MIB
    qemu_img(
        "create",
        "-q",
        "-f",
        "qcow2",
        "-o",
        f"cluster_size=512,refcount_bits={refcount_bits}",
        path,
        str(size),
    )
    content = bytearray(size)
    with open_image(path, "qcow2", writable=True) as disk:
        for at in range(0, size - 99_000, 99_001):
            disk.write(at, bytes([at % 255 + 1]) * 98_000)
            content[at : at + 98_000] = bytes([at % 255 + 1]) * 98_000
            if at % 5 == 0:
                disk.flush()
        assert disk.read(0, size) == content
    checked(path)
    assert contents(path, tmp_path) == content


def test_what_is_discarded_is_used_again(image: Path, tmp_path: Path) -> None:
    with open_image(image, "qcow2", writable=True) as disk:
        for turn in range(20):
            disk.write(0, bytes([turn + 1]) * MIB)
            disk.flush()
            disk.discard(0, MIB)
            disk.flush()
            assert disk.read(0, MIB) == bytes(MIB)
    checked(image)
    assert image.stat().st_size < 3 * MIB + 512 * KIB
    assert contents(image, tmp_path) == bytes(MIB)


@pytest.mark.promise("B-4")
def test_our_images_are_what_qemu_says(tmp_path: Path) -> None:
    for bits, size in ((9, GIB), (16, 3 * GIB + 512), (16, 1 << 45), (21, 1 << 50), (16, 512)):
        path = make(tmp_path / f"{bits}-{size}", size, cluster_bits=bits)
        said = qemu_img("info", "--output=json", "-f", "qcow2", path)
        assert f'"virtual-size": {size}' in said
        assert f'"cluster-size": {1 << bits}' in said
        checked(path)
        with open_image(path, "qcow2", writable=True) as disk:
            disk.write(size - 512, b"e" * 512)
        checked(path)
        assert path.stat().st_blocks * 512 < 8 * MIB
    with pytest.raises(DiskError, match="needs larger clusters"):
        make(tmp_path / "too-large", 1 << 45, cluster_bits=9)
    with pytest.raises(DiskError, match="whole sectors"):
        make(tmp_path / "odd", 1000)


# -- features ------------------------------------------------------------------------------------------------


def test_what_is_not_read_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "q"
    qemu_img("create", "-q", "-f", "qcow2", "-o", "extended_l2=on,cluster_size=128k", path, "1M")
    assert "has extended L2 entries (subclusters)" in refusal(path)
    qemu_img("create", "-q", "-f", "qcow2", "-o", f"data_file={tmp_path}/data", path, "1M")
    assert "has an external data file" in refusal(path)


def test_what_is_not_kept_is_read_but_not_written(tmp_path: Path) -> None:
    path = tmp_path / "q"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_io(path, "write -P 1 0 64k", options=("-f", "qcow2"))
    qemu_img("snapshot", "-c", "one", path)
    qemu_io(path, "write -P 2 0 64k", options=("-f", "qcow2"))
    assert "has 1 internal snapshots" in refusal(path, writable=True)
    with open_image(path, "qcow2", writable=False) as disk:
        assert disk.read(0, 64 * KIB) == b"\2" * 64 * KIB
    qemu_img("snapshot", "-d", "one", path)
    with open_image(path, "qcow2", writable=True) as disk:
        disk.write(0, b"\3")
    checked(path)
    qemu_img("bitmap", "--add", path, "changes")
    assert "has persistent bitmaps" in refusal(path, writable=True)
    open_image(path, "qcow2", writable=False).close()


def test_images_that_were_not_closed_or_are_damaged_are_not_written(image: Path) -> None:
    set_at(image, 72, ">Q", 1)
    assert "was not closed" in refusal(image, writable=True)
    set_at(image, 72, ">Q", 2)
    assert "is marked as damaged" in refusal(image, writable=True)
    with open_image(image, "qcow2", writable=False) as disk:
        assert disk.read(100 * KIB, 5) == b"hello"


def test_features_that_a_writer_must_clear_are_cleared(image: Path) -> None:
    set_at(image, 88, ">Q", 0xF0)
    open_image(image, "qcow2", writable=False).close()
    assert image.read_bytes()[88:96] == b"\0\0\0\0\0\0\0\xf0"
    open_image(image, "qcow2", writable=True).close()
    assert image.read_bytes()[88:96] == bytes(8)


# -- bases ---------------------------------------------------------------------------------------------------


def test_a_base_that_is_shorter_or_longer(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"s" * 5000)
    (tmp_path / "long").write_bytes(b"l" * 2 * MIB)
    with open_image(on(tmp_path / "a", "short"), "qcow2", writable=True) as disk:
        disk.write(8000, b"x")
        assert disk.read(0, MIB) == (b"s" * 5000).ljust(8000, b"\0") + b"x" + bytes(MIB - 8001)
    with open_image(on(tmp_path / "b", str(tmp_path / "long")), "qcow2", writable=True) as disk:
        assert disk.read(MIB - 4, 4) == b"llll"
        disk.discard(0, MIB)
        assert disk.read(0, MIB) == bytes(MIB)
        assert list(disk.extents(0, MIB)) == []
    checked(tmp_path / "a")
    checked(tmp_path / "b")


@pytest.mark.promise("B-5")
def test_chains_that_have_no_end_or_no_beginning(tmp_path: Path) -> None:
    on(tmp_path / "self", "self", "qcow2")
    assert "is its own base" in refusal(tmp_path / "self")
    assert "is its own base" in refusal(tmp_path / "self", writable=True)
    on(tmp_path / "one", "two", "qcow2")
    on(tmp_path / "two", "one", "qcow2")
    assert "its base cannot be opened" in refusal(tmp_path / "one")
    on(tmp_path / "lost", "gone/away")
    assert refusal(tmp_path / "lost").endswith(f"{tmp_path}/gone/away: its directory is missing")
    on(tmp_path / "0", "end")
    (tmp_path / "end").write_bytes(b"e" * 512)
    for number in range(1, 70):
        on(tmp_path / str(number), str(number - 1), "qcow2")
    with open_image(tmp_path / "60", "qcow2", writable=False) as disk:
        assert disk.read(511, 2) == b"e\0"
    assert "more than 64 images are on top of each other" in refusal(tmp_path / "69")


@pytest.mark.parametrize("base", ["nbd://host/x", "json:{}", "file:/etc/passwd", "http://x", "fat:rw:/"])
def test_a_base_is_a_file_of_this_host_and_nothing_else(tmp_path: Path, base: str) -> None:
    assert "pyhv opens only files as bases" in refusal(on(tmp_path / "q", base))


def test_a_base_in_a_foreign_format(tmp_path: Path) -> None:
    assert "a base in the format vmdk" in refusal(on(tmp_path / "q", "x", "vmdk"))


@pytest.mark.promise("B-6")
def test_a_raw_base_that_a_guest_has_dressed_up_leads_nowhere(tmp_path: Path) -> None:
    """With its format said, its bytes are bytes; else it is not followed to the file that the guest names."""
    (tmp_path / "secret").write_bytes(b"secret" * 1000)
    on(tmp_path / "base", str(tmp_path / "secret"))
    with open_image(on(tmp_path / "said", "base", "raw"), "qcow2", writable=False) as disk:
        assert disk.read(0, 4) == b"QFI\xfb"
    assert "does not say that it is one" in refusal(on(tmp_path / "unsaid", "base", None))
    told: list[str] = []
    make(tmp_path / "plain")
    open_image(on(tmp_path / "guessed", "plain", None), "qcow2", writable=False, tell=told.append).close()
    assert told == [
        f"{tmp_path}/plain: the format is qcow2, by its first bytes; format=qcow2 says so for sure"
    ]


def test_a_guess_is_told_before_a_guest_boots(image: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (image.parent / "raw").write_bytes(bytes(512))
    words = (str(image), f"{image},qcow2", str(image.parent / "raw"), str(image.parent / "gone"))
    with open_image(image, "qcow2", writable=False):
        assert len(disks_of_guests([None], words, None, [None])[0]) == 4
    said = f"pyhv: {image}: the format is qcow2, by its first bytes; format=qcow2 says so for sure\n"
    assert capsys.readouterr().err == said


def test_a_guess_is_told(image: Path) -> None:
    told: list[str] = []
    with open_disk(DiskSpec(str(image)), told.append) as disk:
        assert isinstance(disk, Qcow2Disk)
    assert told == [f"{image}: the format is qcow2, by its first bytes; format=qcow2 says so for sure"]
    assert "is no qcow2 image" in refusal_of_raw(image.parent)


def refusal_of_raw(here: Path) -> str:
    (here / "raw").write_bytes(bytes(4096))
    return refusal(here / "raw")


# -- overlays ------------------------------------------------------------------------------------------------


@pytest.mark.promise("B-1")
def test_any_number_of_temporary_overlays_on_one_base(image: Path) -> None:
    before = image.read_bytes()
    names = set(os.listdir(image.parent))
    disks = [open_disk(DiskSpec(str(image), "qcow2", overlay="")) for _ in range(10)]
    for number, disk in enumerate(disks):
        disk.write(100 * KIB, b"guest %d" % number)
        disk.flush()
    for number, disk in enumerate(disks):
        assert disk.read(100 * KIB, 9) == b"guest %dll" % number
        assert [about.path for about in disk.identity()] == [str(image)]
    assert "is in use by others who read it" in refusal(image, writable=True)
    for disk in disks:
        disk.close()
    assert image.read_bytes() == before
    assert set(os.listdir(image.parent)) == names
    with open_disk(DiskSpec(str(image), "qcow2")), pytest.raises(DiskError, match="is being written"):
        open_disk(DiskSpec(str(image), "qcow2", overlay=""))


@pytest.mark.promise("B-1")
def test_an_overlay_that_is_kept(image: Path, tmp_path: Path) -> None:
    before = image.read_bytes()
    path = tmp_path / "mine.qcow2"
    spec = DiskSpec(str(image), overlay=str(path))
    with open_disk(spec) as disk:
        disk.write(0, b"kept")
        assert [about.path for about in disk.identity()] == [str(path), str(image)]
        with pytest.raises(DiskError, match="is being written"):
            open_disk(spec)
    with open_disk(spec) as disk:
        assert disk.read(0, 4) == b"kept"
    assert image.read_bytes() == before
    checked(path)
    assert contents(path, tmp_path)[:4] == b"kept"
    make(tmp_path / "other")
    with pytest.raises(DiskError, match=rf"mine.qcow2: is an overlay of {image}, not of {tmp_path}/other"):
        open_disk(DiskSpec(str(tmp_path / "other"), overlay=str(path)))
    with pytest.raises(DiskError, match="is no overlay"):
        open_disk(DiskSpec(str(image), overlay=str(tmp_path / "other")))
    assert open_image(path, "qcow2", writable=True).close() is None, "all locks have gone"


# -- threads and failures ------------------------------------------------------------------------------------


def test_a_full_host_disk_costs_that_write_and_nothing_else(
    image: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    genuine = os.pwrite

    def full(_descriptor: int, _data: bytes, _offset: int) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with open_image(image, "qcow2", writable=True) as disk:
        for _ in range(3):
            monkeypatch.setattr(os, "pwrite", full)
            with pytest.raises(DiskError, match="No space left") as caught:
                disk.write(700 * KIB, b"x" * 70 * KIB)
            assert caught.value.errno == errno.ENOSPC
            monkeypatch.setattr(os, "pwrite", genuine)
            assert disk.read(100 * KIB, 5) == b"hello"
            assert disk.read(700 * KIB, 70 * KIB) == bytes(70 * KIB)
        disk.write(700 * KIB, b"x" * 70 * KIB)
    checked(image)


def test_a_header_is_read_as_written(image: Path) -> None:
    file = HostFile.open(image, writable=False)
    header = read_header(file)
    assert (header.version, header.cluster_bits, header.size, header.refcount_bits) == (3, 16, MIB, 16)
    assert (header.backing, header.backing_format, header.obstacle) == (None, None, None)
    file.close()
