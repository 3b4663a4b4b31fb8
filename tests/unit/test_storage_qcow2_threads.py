# SPDX-License-Identifier: GPL-2.0-only
"""qcow2 used by several threads: what one looks up stays where it is until it has it; tables are not lost."""

import struct
import threading
from pathlib import Path

import pytest
from disk_images import MIB, filled, make, on, set_at
from qemu_tools import checked, contents

from pyhv.storage.hostfile import HostFile
from pyhv.storage.images import check
from pyhv.storage.open import open_image
from pyhv.storage.qcow2 import tables
from pyhv.storage.qcow2.disk import Qcow2Disk
from pyhv.storage.qcow2.refcounts import Refcounts

KIB = 1 << 10


def opened(path: Path) -> Qcow2Disk:
    disk = open_image(path, "qcow2", writable=True)
    assert isinstance(disk, Qcow2Disk)
    return disk


def l2_of(path: Path) -> int:
    raw = path.read_bytes()
    l1 = struct.unpack_from(">Q", raw, 40)[0]
    return int(struct.unpack_from(">Q", raw, l1)[0]) & 0xFF_FFFF_FFFF_FE00


def test_a_cluster_is_not_given_away_while_somebody_is_on_the_way_to_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = filled(tmp_path / "q")
    looked_up, go_on = threading.Event(), threading.Event()
    genuine = HostFile.read
    found: list[bytes] = []

    def slow(self: HostFile, offset: int, length: int) -> bytes:
        if threading.current_thread() is reader:
            looked_up.set()
            assert go_on.wait(10)
        return genuine(self, offset, length)

    with opened(path) as disk:
        assert disk.read(128 * KIB, 5) == b"llohe", "its table is in memory"
        reader = threading.Thread(target=lambda: found.append(disk.read(128 * KIB, 64)))
        monkeypatch.setattr(HostFile, "read", slow)
        reader.start()
        assert looked_up.wait(10)
        disk.discard(128 * KIB, 64 * KIB)
        flusher = threading.Thread(target=lambda: (disk.flush(), disk.write(512 * KIB, b"other" * 20_000)))
        flusher.start()
        flusher.join(0.1)
        assert flusher.is_alive()
        go_on.set()
        reader.join(10)
        flusher.join(10)
        assert found == [(b"hello" * 20)[2:66]]


def test_a_table_that_was_forgotten_meanwhile_is_not_lost(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between looking up a table and changing it, readers elsewhere may push it out of memory."""
    monkeypatch.setattr(tables, "_CACHED", 0)
    path = make(tmp_path / "q", MIB, cluster_bits=9)
    genuine = Refcounts.allocate

    def crowded(self: Refcounts, most: int) -> tuple[int, int]:
        for at in range(256 * KIB, MIB, 32 * KIB):
            assert disk.read(at, 1) == b"x"
        return genuine(self, most)

    with opened(path) as disk:
        disk.write(0, b"x" * MIB)
        disk.discard(0, 128 * KIB)
        disk.flush()
        monkeypatch.setattr(Refcounts, "allocate", crowded)
        for at in range(0, 128 * KIB, 5 * KIB):
            disk.write(at, b"y" * 700)
            assert disk.read(at, 700) == b"y" * 700
        expected = disk.read(0, MIB)
    assert check(path).sound
    with opened(path) as disk:
        assert disk.read(0, MIB) == expected


def test_what_others_refer_to_is_not_written_in_place(tmp_path: Path) -> None:
    path = filled(tmp_path / "q")
    at = l2_of(path) + 16
    entry = struct.unpack_from(">Q", path.read_bytes(), at)[0]
    place = entry & 0xFF_FFFF_FFFF_FE00
    set_at(path, at, ">Q", place)  # it does not say that it is this image's alone
    before = path.read_bytes()[place : place + 64 * KIB]
    with opened(path) as disk:
        disk.write(128 * KIB, b"changed")
        assert disk.read(128 * KIB, 64 * KIB) == b"changed" + before[7:]
    assert path.read_bytes()[place : place + 64 * KIB] == before
    checked(path)


def test_many_threads_write_one_image(tmp_path: Path) -> None:
    """Each its own sectors, of clusters that they share; some flush, one discards what is nobody's."""
    (tmp_path / "base").write_bytes(b"b" * MIB)
    path = on(tmp_path / "q", "base", "raw", 2 * MIB)
    errors: list[BaseException] = []

    def work(disk: Qcow2Disk, number: int) -> None:
        try:
            for sector in range(number, MIB // 512, 8):
                data = bytes([number + 1]) * 512
                disk.write(sector * 512, data)
                if sector % 64 == number:
                    disk.flush()
                if sector % 16 == number:
                    disk.write(MIB + number * 128 * KIB, b"d" * 128 * KIB)
                    disk.discard(MIB + number * 128 * KIB, 128 * KIB)
                assert disk.read(sector * 512, 512) == data
        except BaseException as error:
            errors.append(error)

    with open_image(path, "qcow2", writable=True) as disk:
        assert isinstance(disk, Qcow2Disk)
        threads = [threading.Thread(target=work, args=(disk, number)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert errors == []
        expected = b"".join(bytes([number + 1]) * 512 for number in range(8)) * (MIB // 4096) + bytes(MIB)
        assert disk.read(0, 2 * MIB) == expected
    checked(path)
    assert contents(path, tmp_path) == expected
