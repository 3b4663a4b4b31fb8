# SPDX-License-Identifier: GPL-2.0-only
"""Block devices of the host as disks; needs a loop device, which only root can make."""

import errno
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from disk_images import MIB
from qemu_tools import checked, qemu_img

from pyhv.storage.disk import DiskError
from pyhv.storage.open import open_disk, open_image
from pyhv.storage.spec import DiskSpec


@pytest.fixture
def device(tmp_path: Path) -> Iterator[str]:
    (tmp_path / "backing").write_bytes(bytes(8 * MIB))
    try:
        made = subprocess.run(
            ["losetup", "-f", "--show", tmp_path / "backing"], capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError) as cause:
        pytest.skip(f"no loop device can be made here, which takes a privileged user ({cause})")
    name = made.stdout.strip()
    yield name
    subprocess.run(["losetup", "-d", name], check=True)


def test_a_device_is_a_raw_disk(device: str) -> None:
    with open_disk(DiskSpec(device, "raw")) as disk:
        assert disk.size == 8 * MIB
        disk.write(1000, b"hello")
        disk.write(4096, b"x" * 8192)
        disk.flush()
        disk.discard(4096, 4096)
        assert disk.read(4096, 4096) in (bytes(4096), b"x" * 4096)
        disk.zero(8191, 514)
        assert disk.read(8190, 516) == disk.read(8190, 1) + bytes(514) + b"x"
        assert list(disk.extents(0, disk.size)) == [(0, 8 * MIB)]
        assert [(about.path, about.size) for about in disk.identity()] == [(device, 8 * MIB)]
        with pytest.raises(DiskError, match="is in use") as caught:
            open_disk(DiskSpec(device, "raw"))
        assert caught.value.errno == errno.EBUSY
        with pytest.raises(DiskError):
            open_disk(DiskSpec(device, "raw", access="ro"))
    with open_disk(DiskSpec(device, "raw", access="ro")) as disk:
        assert disk.read(998, 9) == b"\0\0hello\0\0"


def test_an_image_on_a_device_that_becomes_full(device: str) -> None:
    qemu_img("create", "-q", "-f", "qcow2", device, "20M")
    with open_image(device, "qcow2", writable=True) as disk:
        for number in range(6):
            disk.write(number * MIB, bytes([number + 1]) * MIB)
        with pytest.raises(DiskError, match="No space left") as caught:
            disk.write(6 * MIB, b"x" * 4 * MIB)
        assert caught.value.errno == errno.ENOSPC
        disk.flush()
        for number in range(6):
            assert disk.read(number * MIB, MIB) == bytes([number + 1]) * MIB
    checked(Path(device))
