# SPDX-License-Identifier: GPL-2.0-only
"""Raw images: files whose bytes are the disk's, the format that nobody has said, and what the host
refuses."""

import errno
import os
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from pyhv.storage.disk import Disk, DiskError
from pyhv.storage.hostfile import HostFile
from pyhv.storage.open import open_disk, open_image
from pyhv.storage.raw import RawDisk
from pyhv.storage.spec import DiskSpec, parse

KIB, MIB = 1 << 10, 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk.img"
    path.write_bytes(bytes(range(256)) * 4 * 64)
    return path


def test_bytes_are_those_of_the_file(image: Path) -> None:
    with open_disk(DiskSpec(str(image))) as disk:
        assert disk.size == 64 * KIB
        assert not disk.read_only
        assert disk.read(250, 12) == bytes([250, 251, 252, 253, 254, 255, 0, 1, 2, 3, 4, 5])
        disk.write(1000, b"hello")
        disk.flush()
        disk.write_through(1005, memoryview(b" again"))
        assert disk.read(0, disk.size) == image.read_bytes()
    assert image.read_bytes()[1000:1011] == b"hello again"


def test_identity_tells_that_a_file_has_changed(image: Path) -> None:
    with open_disk(DiskSpec(str(image), access="ro")) as disk:
        before = disk.identity()
        assert [(about.path, about.size) for about in before] == [(str(image), 64 * KIB)]
        assert disk.identity() == before
        os.utime(image, ns=(0, 12345))
        assert disk.identity() != before


@pytest.mark.parametrize(
    ("offset", "length"), [(-1, 1), (0, 64 * KIB + 1), (64 * KIB, 1), (1 << 70, 1), (0, -1)]
)
def test_what_is_not_within_is_refused(image: Path, offset: int, length: int) -> None:
    with open_disk(DiskSpec(str(image))) as disk:
        with pytest.raises(DiskError, match="not within its 65536 bytes") as caught:
            disk.read(offset, length)
        assert caught.value.errno == errno.EINVAL
        with pytest.raises(DiskError):
            disk.discard(offset, length)
        if length > 0:
            with pytest.raises(DiskError):
                disk.write(offset, bytes(length))
        assert disk.read(64 * KIB, 0) == b""


def test_a_read_only_disk_is_not_written(image: Path) -> None:
    before = image.read_bytes()
    with open_disk(parse(f"{image},ro")) as disk:
        acts: list[Callable[[], None]] = [
            lambda: disk.write(0, b"x"),
            lambda: disk.discard(0, 4096),
            lambda: disk.zero(0, 4096),
        ]
        for act in acts:
            with pytest.raises(DiskError, match="read-only") as caught:
                act()
            assert caught.value.errno == errno.EROFS
        disk.flush()
    assert image.read_bytes() == before


def test_a_file_that_ends_within_a_sector_gets_a_whole_one(tmp_path: Path) -> None:
    path = tmp_path / "odd"
    path.write_bytes(b"x" * 700)
    with open_disk(DiskSpec(str(path))) as disk:
        assert disk.size == 1024
        assert disk.read(690, 334) == b"x" * 10 + bytes(324)
        disk.write(1020, b"tail")
        assert disk.read(690, 334) == b"x" * 10 + bytes(320) + b"tail"
    assert path.stat().st_size == 1024


def test_a_file_that_shrinks_under_us_is_an_error_and_no_zeros(image: Path) -> None:
    with open_disk(DiskSpec(str(image))) as disk:
        os.truncate(image, 32 * KIB)
        assert len(disk.read(0, 32 * KIB)) == 32 * KIB
        with pytest.raises(DiskError, match="has become shorter"):
            disk.read(31 * KIB, 2 * KIB)


def test_discarded_pages_become_holes(tmp_path: Path) -> None:
    path = tmp_path / "full"
    path.write_bytes(b"x" * MIB)
    with open_disk(parse(f"{path},raw")) as disk:
        disk.discard(100, 64 * KIB)
        assert disk.read(0, 4096) == b"x" * 4096, "less than a page is kept"
        disk.zero(MIB - 100, 100)
        assert disk.read(MIB - 101, 101) == b"x" + bytes(100)
        if path.stat().st_blocks * 512 < MIB:  # the file system has holes
            assert disk.read(4096, 60 * KIB) == bytes(60 * KIB)
            assert next(iter(disk.extents(8192, 128 * KIB))) == (64 * KIB, 72 * KIB)


def test_zeroing_works_where_there_are_no_holes(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(HostFile, "punch", lambda *_: False)
    with open_disk(DiskSpec(str(image))) as disk:
        disk.discard(0, 64 * KIB)
        assert disk.read(1, 1) == b"\1"
        disk.zero(1, 64 * KIB - 2)
        assert disk.read(0, 64 * KIB) == bytes(64 * KIB - 1) + b"\xff"


# -- formats -------------------------------------------------------------------------------------------------


@pytest.mark.promise("B-6")
def test_a_guest_cannot_turn_a_guessed_raw_image_into_another_format(image: Path) -> None:
    with open_disk(DiskSpec(str(image))) as disk:
        for offset, data in ((0, b"QFI\xfb\0\0\0\3"), (0, b"KDMV" + bytes(600)), (64, b"\x7f\x10\xda\xbe")):
            with pytest.raises(DiskError, match="say format=raw") as caught:
                disk.write(offset, data)
            assert caught.value.errno == errno.EPERM
        disk.write(0, b"QFI")  # in pieces neither
        with pytest.raises(DiskError):
            disk.write(3, b"\xfb")
        disk.write(4, b"anything else")
        disk.write(0, b"QEDx")
        with pytest.raises(DiskError, match="in the format qed"):
            disk.zero(3, 1)
        disk.discard(0, disk.size)
        assert disk.read(0, 4) in (bytes(4), b"QEDx")


@pytest.mark.promise("B-6")
def test_a_guest_may_write_anything_where_raw_was_said(image: Path) -> None:
    with open_disk(parse(f"format=raw,target={image}")) as disk:
        disk.write(0, b"QFI\xfb\0\0\0\3")
    with open_disk(parse(f"format=raw,target={image}")) as disk:
        assert disk.size == 64 * KIB
        assert disk.read(0, 8) == b"QFI\xfb\0\0\0\3"


@pytest.mark.parametrize(
    ("head", "name"),
    [(b"KDMV", "vmdk"), (b"vhdxfile", "vhdx"), (b"conectix", "vhd"), (b"QED\0", "qed"),
     (b"QFI\xfb\0\0\0\1", "qcow"),
     (bytes(64) + b"\x7f\x10\xda\xbe", "vdi")],
)  # fmt: skip
def test_other_formats_are_refused_and_told_how_to_be_had(tmp_path: Path, head: bytes, name: str) -> None:
    path = tmp_path / "foreign"
    path.write_bytes(head.ljust(4096, b"\0"))
    with pytest.raises(DiskError, match=f"in the format {name}, .* qemu-nbd"):
        open_disk(DiskSpec(str(path)))
    open_disk(DiskSpec(str(path), "raw")).close()


# -- what the host refuses -----------------------------------------------------------------------------------


def refusal(path: Path | str, **how: str) -> str:
    with pytest.raises(DiskError) as caught:
        open_disk(DiskSpec(str(path), **how))
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_files_that_are_no_disks(tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    assert refusal(tmp_path / "gone") == f"{tmp_path}/gone: there is no such file"
    assert "its directory is missing" in refusal(tmp_path / "no" / "gone")
    assert "is a directory" in refusal(tmp_path)
    assert "is a directory" in refusal(tmp_path, access="ro")
    assert "neither a file nor a block device" in refusal(tmp_path / "pipe", access="ro")
    assert "neither a file nor a block device" in refusal("/dev/null")
    assert "leads to itself" in refusal(tmp_path / "loop")
    assert "is empty" in refusal(tmp_path / "empty")
    assert "File name too long" in refusal(tmp_path / ("x" * 300))


@pytest.mark.promise("B-3")
def test_a_failed_sync_is_never_forgotten(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host tells it once: a later success would say nothing about what was lost."""
    disk = RawDisk(HostFile.open(image, writable=True))
    genuine = os.fdatasync

    def fail(_descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "fdatasync", fail)
    with pytest.raises(DiskError, match="could not be brought to the disk"):
        disk.flush()
    monkeypatch.setattr(os, "fdatasync", genuine)
    with pytest.raises(DiskError, match="could not be brought to the disk"):
        disk.flush()
    with pytest.raises(DiskError):
        disk.close()
    disk.close()


def test_short_writes_go_on_and_a_full_disk_is_told(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    genuine = os.pwrite
    room = [3, 5, 0]

    def short(descriptor: int, data: bytes | memoryview, offset: int) -> int:
        if room[0] == 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return genuine(descriptor, data[: room.pop(0)], offset)

    with open_disk(DiskSpec(str(image))) as disk:
        monkeypatch.setattr(os, "pwrite", short)
        disk.write(4096, b"12345678")
        with pytest.raises(DiskError, match="No space left") as caught:
            disk.write(8192, b"x")
        assert caught.value.errno == errno.ENOSPC
        monkeypatch.undo()
        assert disk.read(4096, 9) == b"12345678\x08"


# -- closing -------------------------------------------------------------------------------------------------


class Slow(Disk):
    """Reads until it is told to go on."""

    def __init__(self) -> None:
        super().__init__("slow", 4096, read_only=False)
        self.begun, self.go_on = threading.Event(), threading.Event()
        self.closed = False

    def _read(self, offset: int, length: int) -> bytes:
        self.begun.set()
        assert self.go_on.wait(10)
        assert not self.closed
        return bytes(length)

    def _write(self, offset: int, data: memoryview) -> None: ...
    def _flush(self) -> None: ...

    def _close(self) -> None:
        self.closed = True


def test_closing_waits_for_what_is_under_way() -> None:
    disk = Slow()
    found: list[bytes] = []
    reader = threading.Thread(target=lambda: found.append(disk.read(0, 8)))
    reader.start()
    assert disk.begun.wait(10)
    closer = threading.Thread(target=disk.close)
    closer.start()
    closer.join(0.05)
    assert closer.is_alive()
    disk.go_on.set()
    reader.join(10)
    closer.join(10)
    assert disk.closed
    assert found == [bytes(8)]
    with pytest.raises(DiskError, match="has been closed") as caught:
        disk.read(0, 1)
    assert caught.value.errno == errno.ENODEV
    disk.close()


# -- locks ---------------------------------------------------------------------------------------------------


@pytest.mark.promise("B-2")
def test_a_writer_has_an_image_alone_and_readers_have_it_unchanged(image: Path) -> None:
    with open_image(image, writable=False), open_image(image, writable=False):
        with pytest.raises(DiskError, match=f"{image}: is in use by others who read it") as caught:
            open_image(image, writable=True)
        assert caught.value.errno == errno.EBUSY
    with open_image(image, writable=True):
        with pytest.raises(DiskError, match="being written by another guest or program, and would change"):
            open_image(image, writable=False)
        with pytest.raises(DiskError, match="being written by another guest or program; end that one"):
            open_image(image, writable=True)
    open_image(image, writable=True).close()


def test_of_two_who_begin_at_once_never_both_get_it(image: Path) -> None:
    for _ in range(5):
        barrier = threading.Barrier(2)
        disks: list[Disk] = []
        errors: list[DiskError] = []

        def begin() -> None:
            barrier.wait()  # noqa: B023
            try:
                disks.append(open_image(image, writable=True))  # noqa: B023
            except DiskError as error:
                errors.append(error)  # noqa: B023

        threads = [threading.Thread(target=begin) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len(disks) <= 1
        for disk in disks:
            disk.close()
        assert len(disks) + len(errors) == 2
