# SPDX-License-Identifier: GPL-2.0-only
"""Files that are disks, told from those that are kernels, and opened for looking at them."""

import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyhv.errors import ImageError, VolumeError
from pyhv.frozen import frozen
from pyhv.loader.packed import sniff
from pyhv.loader.ramdisk import MAX_RAMDISK
from pyhv.storage.open import format_of, open_image
from pyhv.volumes.filesystem import open_files, recognize
from pyhv.volumes.partitions import read_table
from pyhv.volumes.window import Window

if TYPE_CHECKING:
    from pyhv.loader.describe import Description

PV_GRUB: Final = "pv-grub"
PV_GRUB_32: Final = "pv-grub-32"
QCOW2: Final = b"QFI\xfb"
_LEAST: Final = 1 << 16
"""No disk that anybody boots is smaller (bytes)."""


@frozen
class InstalledKernel:
    """What a boot loader would start of a disk."""

    title: str
    kernel: bytes
    ramdisk: bytes | None
    command_line: str


def installed_kernel(path: Path) -> InstalledKernel:
    """The kernel that starts when nobody chooses, with its ramdisk. PyhvError: there is none, or damaged."""
    from pyhv.images.survey import MAX_KERNEL, survey

    with opened(path) as disk:
        first = survey(disk, judging=False).first_entry()
        if first is None:
            raise ImageError(f"{path}: there is no /boot/grub/grub.cfg on it that names a kernel")
        volume, _config, entry = first
        files = open_files(volume.part)
        ramdisk = files.read_file(entry.ramdisk, MAX_RAMDISK) if entry.ramdisk else None
        return InstalledKernel(
            entry.title, files.read_file(entry.kernel, MAX_KERNEL), ramdisk, entry.command_line
        )


def loader_for(path: Path) -> str | None:
    """Which PV-GRUB boots a disk, of `kernels.KERNELS`; None: none of them can unpack the kernel on it."""
    from pyhv.images.survey import MAX_KERNEL, header_of, survey

    with opened(path) as disk:
        first = survey(disk, judging=False).first_entry()
        if first is None:
            return PV_GRUB
        volume, _config, entry = first
        try:
            data = open_files(volume.part).read_file(entry.kernel, MAX_KERNEL)
        except VolumeError:  # its name is one that only GRUB knows; it will say what it thinks of it
            return PV_GRUB
    header = header_of(data)
    if not header.suits_grub:
        return None
    return PV_GRUB if header.width == 64 else PV_GRUB_32


def describe(path: Path) -> "Description":
    """What is on a disk, in words. PyhvError: the image cannot be read."""
    from pyhv.images.survey import describe_disk, survey

    with open_image(path, writable=False) as disk:
        told = f"{format_of(disk)}" + (f", of {files} files" if (files := len(disk.identity())) > 1 else "")
        return describe_disk(survey(Window(disk, str(path))), str(path), told)


@contextmanager
def opened(path: Path) -> Iterator[Window]:
    """What a disk image holds, for reading. PyhvError: it cannot be opened."""
    with open_image(path, writable=False) as disk:
        yield Window(disk, str(path))


def is_disk(path: Path) -> bool:
    """Whether a file is a disk and no kernel: qcow2, or with partitions or a file system."""
    try:
        about = path.stat()
        regular = stat.S_ISREG(about.st_mode) and about.st_size >= _LEAST
        if not regular and not stat.S_ISBLK(about.st_mode):
            return False
        with path.open("rb") as file:
            start = file.read(1024)
    except (OSError, ValueError):
        return False
    if start.startswith(QCOW2):
        return True
    if start.startswith(b"\x7fELF") or start[0x202:0x206] == b"HdrS" or sniff(start) is not None:
        return False
    with opened(path) as disk:
        try:
            return recognize(disk) is not None or read_table(disk) is not None
        except VolumeError:  # a table, and a damaged one
            return True
