# SPDX-License-Identifier: GPL-2.0-only
"""Disks in drives: open as long as a device or a moment has them, and moments that are gone cost nothing."""

import gc
from pathlib import Path

import pytest

from pyhv.devices.drive import Drive, DriveMoment
from pyhv.storage.disk import DiskError
from pyhv.storage.history import GRAIN
from pyhv.storage.open import open_image


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(b"before" * 20_000)
    return path


def drive_of(image: Path) -> Drive:
    return Drive(open_image(image, "raw", writable=True))


def free(image: Path) -> bool:
    try:
        open_image(image, "raw", writable=True).close()
    except DiskError:
        return False
    return True


def test_a_moment_keeps_the_disk_open_and_puts_it_back(image: Path) -> None:
    before = image.read_bytes()
    drive = drive_of(image)
    moment = drive.moment()
    drive.disk.write(0, b"after")
    drive.let_go()
    assert not free(image)
    back = moment.put_back()
    assert image.read_bytes() == before
    del moment
    gc.collect()
    assert not free(image)
    back.let_go()
    assert free(image)


def test_moments_that_are_gone_cost_nothing_although_an_older_one_stays(image: Path) -> None:
    drive = drive_of(image)
    first = drive.moment()
    for number in range(40):
        moment = drive.moment()
        drive.disk.write(0, bytes([number]) * 100)
        del moment
        gc.collect()
    assert drive.disk.moments() == [first.number]
    assert drive.disk.copied == GRAIN
    drive.let_go()


def test_a_view_outlives_its_drive(image: Path) -> None:
    drive = drive_of(image)
    moment = drive.moment()
    view = moment.view()
    drive.disk.write(0, b"after")
    drive.let_go()
    del moment
    gc.collect()
    assert view.disk.read(0, 6) == b"before"
    view.disk.write(0, b"mine")
    view.let_go()
    assert image.read_bytes()[:6] == b"aftere"
    assert free(image)


class Ring:
    """Garbage that only a collector finds."""

    def __init__(self, moment: DriveMoment) -> None:
        self.moment = moment
        self.itself = self


def test_garbage_is_collected_in_the_middle_of_anything(image: Path) -> None:
    """By the thread that has a lock of the drive or of its disk."""
    drive = drive_of(image)
    gc.disable()
    try:
        Ring(drive.moment())
        with drive._lock, drive.disk._lock:
            gc.collect()
        Ring(drive.moment())
        drive.disk.write(0, b"x")
        with drive.disk._lock:
            gc.collect()
    finally:
        gc.enable()
    assert drive.disk.moments() == []
    drive.let_go()
    assert free(image)
