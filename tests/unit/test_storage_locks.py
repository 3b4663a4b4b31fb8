# SPDX-License-Identifier: GPL-2.0-only
"""Locks on images: within a process, between processes, and with QEMU's tools, which have the same
protocol."""

import errno
import fcntl
import os
import subprocess
import sys
from pathlib import Path

import pytest
from disk_images import filled
from qemu_tools import tool

from pyhv.storage import locks
from pyhv.storage.disk import DiskError
from pyhv.storage.hostfile import HostFile
from pyhv.storage.open import open_disk, open_image
from pyhv.storage.spec import DiskSpec

ROOT = Path(__file__).parents[2]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return filled(tmp_path / "disk.qcow2")


def qemu_io_refuses(image: Path, *options: str) -> bool:
    """Whether QEMU says that another process has it."""
    command = [tool("qemu-io"), *options, "-f", "qcow2", "-c", "read 0 512", str(image)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0 or "lock" in done.stderr, done.stderr
    return done.returncode != 0


@pytest.mark.promise("B-2")
def test_qemu_respects_our_locks(image: Path) -> None:
    with open_image(image, "qcow2", writable=True):
        assert qemu_io_refuses(image)
        assert qemu_io_refuses(image, "-r")
    with open_image(image, "qcow2", writable=False):
        assert qemu_io_refuses(image)
        assert not qemu_io_refuses(image, "-r")
    with open_disk(DiskSpec(str(image), "qcow2", overlay="")):
        assert qemu_io_refuses(image)
    assert not qemu_io_refuses(image)


@pytest.mark.promise("B-2")
@pytest.mark.parametrize(("options", "readers"), [((), False), (("-r",), True)])
def test_we_respect_locks_of_qemu(image: Path, options: tuple[str, ...], readers: bool) -> None:
    command = [tool("qemu-io"), *options, "-f", "qcow2", str(image)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as qemu:
        assert qemu.stdin is not None
        assert qemu.stdout is not None
        qemu.stdin.write(b"read 0 512\n")
        qemu.stdin.flush()
        while b"read 512" not in qemu.stdout.readline():
            pass
        with pytest.raises(DiskError, match=f"^{image}: ") as caught:
            open_image(image, "qcow2", writable=True)
        assert caught.value.errno == errno.EBUSY
        if readers:
            open_image(image, "qcow2", writable=False).close()
        else:
            with pytest.raises(DiskError, match="is being written by another guest or program"):
                open_disk(DiskSpec(str(image), "qcow2", overlay=""))
    open_image(image, "qcow2", writable=True).close()


@pytest.mark.promise("B-2")
def test_locks_go_with_their_process(image: Path) -> None:
    script = (
        "import sys\nfrom pyhv.storage.open import open_image\n"
        "disk = open_image(sys.argv[1], 'qcow2', writable=True)\n"
        "print('ready', flush=True)\nsys.stdin.read()\n"
    )
    command = [sys.executable, "-c", script, str(image)]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    ) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == b"ready\n"
        with pytest.raises(DiskError, match="is being written"):
            open_image(image, "qcow2", writable=False)
        other.kill()
        other.wait()
        open_image(image, "qcow2", writable=True).close()


def test_a_link_is_the_file_that_it_leads_to(image: Path, tmp_path: Path) -> None:
    (tmp_path / "soft").symlink_to(image)
    (tmp_path / "hard").hardlink_to(image)
    with open_image(image, "qcow2", writable=True):
        for name in ("soft", "hard"):
            with pytest.raises(DiskError, match=f"{name}: is being written"):
                open_image(tmp_path / name, "qcow2", writable=False)


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_only_read(
    image: Path, number: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "fcntl", fail)
    HostFile.open(image, writable=False).close()
    with pytest.raises(DiskError, match="its file system has no locks") as caught:
        HostFile.open(image, writable=True)
    assert caught.value.errno == number


def test_what_else_is_said_of_a_lock_is_told(image: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(fcntl, "fcntl", fail)
    with pytest.raises(DiskError, match=r"cannot be locked .Input/output error"):
        HostFile.open(image, writable=False)


def test_who_steps_back_leaves_no_lock(image: Path) -> None:
    with open_image(image, "qcow2", writable=False):
        descriptor = os.open(image, os.O_RDWR)
        with pytest.raises(DiskError):
            locks.lock(descriptor, str(image), writing=True)
        open_image(image, "qcow2", writable=False).close()
        os.close(descriptor)
