# SPDX-License-Identifier: GPL-2.0-only
"""Disks for tests: partition tables and file systems by the tools that everybody makes them with."""

import os
import shutil
import subprocess
from pathlib import Path
from typing import Final

import pytest

from pyhv.errors import ImageError
from pyhv.volumes.window import Window

MIB: Final = 1 << 20
_PLACES: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
UUID: Final = "6f1d1c2e-3a4b-4c5d-8e6f-708192a3b4c5"


def tool(name: str) -> str:
    """Where a program is; without it the test is skipped, but never in CI, which installs it."""
    found = shutil.which(name, path=f"{os.environ.get('PATH', '')}:{_PLACES}")
    if found is None:
        assert not os.environ.get("CI"), f"{name} is not installed"
        pytest.skip(f"{name} is not installed")
    return found


def run(name: str, *arguments: str | Path, text: str = "") -> str:
    """Run a tool and return what it printed."""
    done = subprocess.run(
        [tool(name), *map(str, arguments)], input=text, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == 0, f"{name}: {done.stdout}{done.stderr}"
    return done.stdout


def blank(path: Path, size: int) -> Path:
    """A file of zeros."""
    with path.open("wb") as file:
        file.truncate(size)
    return path


def ext(path: Path, size: int, files: Path | None, *options: str, start: int = 0) -> Path:
    """A file system of mke2fs's with the files of a directory, made at `start` of a new or an old file."""
    if not path.exists():
        blank(path, start + size)
    copied = () if files is None else ("-d", str(files))
    placed = ("-E", f"offset={start}") if start else ()
    run("mke2fs", "-q", "-F", "-U", UUID, *options, *copied, *placed, path, f"{size // 1024}k")
    return path


class Memory:
    """Bytes in memory as something readable; reads are counted."""

    def __init__(self, data: bytes | bytearray) -> None:
        self.data = data
        self.size = len(data)
        self.bytes_read = 0

    def read(self, offset: int, length: int) -> bytes:
        if offset < 0 or offset + length > self.size:
            raise ImageError("read outside of the disk")
        self.bytes_read += length
        return bytes(self.data[offset : offset + length])


def window(source: Path | bytes | bytearray, name: str = "disk") -> Window:
    """All of a file or of some bytes."""
    return Window(Memory(source.read_bytes() if isinstance(source, Path) else source), name)
