# SPDX-License-Identifier: GPL-2.0-only
"""A process that dies in the middle of a load of writes: the image is sound, and holds what was
acknowledged."""

import os
import random
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from disk_writer import BLOCK, Expectation, sector_of
from qemu_tools import checked, qemu_img

from pyhv.storage.hostfile import HostFile
from pyhv.storage.images import check
from pyhv.storage.open import open_image
from pyhv.storage.qcow2.create import create

ROOT = Path(__file__).parents[2]
TIMES = 100 if os.environ.get("PYHV_DEEP") else 4
"""How often each kind of image loses its writer."""
SIZE = 3 << 20


def raw(here: Path) -> Path:
    path = here / "disk"
    path.write_bytes(bytes(SIZE))
    return path


def small_clusters(here: Path) -> Path:
    path = here / "disk"
    file = HostFile.create(path)
    create(file, SIZE, cluster_bits=9)
    file.close()
    return path


def on_a_base(here: Path) -> Path:
    """With clusters that are compressed, in the base and in the image."""
    (here / "content").write_bytes(b"base" * (SIZE // 4))
    qemu_img("convert", "-c", "-f", "raw", "-O", "qcow2", here / "content", here / "base")
    path = here / "disk"
    options = "cluster_size=4k,refcount_bits=64"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, "-b", "base", "-F", "qcow2", path)
    return path


def killed(path: Path, form: str, seed: int) -> list[str]:
    """What the writer said until it was killed; its image has not been closed."""
    writer = subprocess.Popen(
        [sys.executable, str(ROOT / "tests/support/disk_writer.py"), str(path), form, str(seed)],
        stdout=subprocess.PIPE, bufsize=0, env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert writer.stdout is not None
    try:
        assert writer.stdout.readline() == b"ready\n"
        os.set_blocking(writer.stdout.fileno(), False)
        said = b""
        until = time.monotonic() + random.Random(seed).uniform(0.02, 0.4)
        while time.monotonic() < until or b"f " not in said:
            said += os.read(writer.stdout.fileno(), 1 << 16) if _readable(writer.stdout.fileno()) else b""
            assert writer.poll() is None
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        while more := os.read(writer.stdout.fileno(), 1 << 16):
            said += more
    finally:
        writer.kill()
        writer.wait()
        writer.stdout.close()
    return said.decode().rpartition("\n")[0].splitlines()


def _readable(descriptor: int) -> bool:
    """Whether something is there, within a moment."""
    return bool(select.select([descriptor], [], [], 0.01)[0])


@pytest.mark.promise("B-3")
@pytest.mark.parametrize("make", [raw, small_clusters, on_a_base])
def test_what_was_acknowledged_is_there(make: Callable[[Path], Path], tmp_path: Path) -> None:
    path = make(tmp_path)
    form = "raw" if make is raw else "qcow2"
    flushes = 0
    for turn in range(TIMES):
        with open_image(path, form, writable=False) as disk:
            before = disk.read(0, SIZE)
        expected = Expectation(killed(path, form, turn), before)
        flushes += expected.flushed > 0
        if form == "qcow2":
            checked(path, leaks=True)
            assert check(path, form).sound
        with open_image(path, form, writable=True) as disk:  # and its lock has gone with it
            assert expected.wrong(disk.read(0, SIZE)) == []
    assert flushes == TIMES


def test_the_expectation_notices_what_is_lost() -> None:
    lines = ["w 1 0", "f 1", "w 2 0", "w 3 1", "f 3", "w 4 1", "d 5 2"]
    expected = Expectation(lines, bytes(3 * BLOCK))
    second, third, fourth = sector_of(2, 0) * 8, sector_of(3, 1) * 8, sector_of(4, 1) * 8
    assert expected.wrong(second + third + bytes(BLOCK)) == []
    assert expected.wrong(second + fourth[:1024] + third[1024:] + bytes(BLOCK)) == []
    assert expected.wrong(sector_of(1, 0) * 8 + third + bytes(BLOCK)) == [0]
    assert expected.wrong(second + bytes(BLOCK) + b"x" * BLOCK) == [1, 2]
