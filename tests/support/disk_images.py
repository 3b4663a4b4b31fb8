# SPDX-License-Identifier: GPL-2.0-only
"""Images that tests make, and how they are refused."""

import struct
from pathlib import Path

import pytest

from pyhv.storage.disk import DiskError
from pyhv.storage.hostfile import HostFile
from pyhv.storage.open import open_image
from pyhv.storage.qcow2.create import create

MIB = 1 << 20


def make(path: Path, size: int = MIB, **how: int) -> Path:
    file = HostFile.create(path)
    create(file, size, **how)  # type: ignore[arg-type]
    file.close()
    return path


def on(path: Path, base: str, form: str | None = "raw", size: int = MIB) -> Path:
    file = HostFile.create(path)
    create(file, size, base=base, base_format=form)
    file.close()
    return path


def filled(path: Path) -> Path:
    """A qcow2 image of 1 MiB with something in it."""
    make(path)
    with open_image(path, "qcow2", writable=True) as disk:
        disk.write(100 << 10, b"hello" * 20000)
    return path


def refusal(path: Path, *, writable: bool = False, form: str | None = "qcow2") -> str:
    with pytest.raises(DiskError) as caught:
        open_image(path, form, writable=writable)
    assert "\n" not in str(caught.value)
    assert str(caught.value).startswith(str(path))
    return str(caught.value)


def set_at(path: Path, offset: int, form: str, *values: int) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(struct.pack(form, *values))
