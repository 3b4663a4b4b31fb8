# SPDX-License-Identifier: GPL-2.0-only
"""What is done with images as a whole: made, checked, copied into another format, their overlays merged."""

import errno
import os
from collections.abc import Callable
from dataclasses import replace
from typing import Final

from pyhv.errors import ConfigError
from pyhv.frozen import frozen
from pyhv.storage.disk import SECTOR, Disk, DiskError
from pyhv.storage.formats import HEAD, QCOW2, RAW, detect
from pyhv.storage.hostfile import HostFile, sync_directory
from pyhv.storage.open import base_path, format_of, open_disk, open_image, with_base
from pyhv.storage.qcow2 import check as qcow2_check
from pyhv.storage.qcow2.create import create
from pyhv.storage.qcow2.disk import Qcow2Disk, read_header
from pyhv.storage.raw import RawDisk
from pyhv.storage.spec import DiskSpec

Progress = Callable[[int, int], None]
"""Gets how many bytes have been looked at, and how many there are."""
_PIECE: Final = 1 << 20
"""Bytes that are copied at once."""
_GRAIN: Final = 1 << 16
"""Bytes that are left out if they are zeros."""


def _nobody(_done: int, _of: int) -> None:
    """Nobody looks on."""


@frozen
class Checked:
    """What is known of an image, and whether it is sound."""

    path: str
    format: str
    size: int
    """Bytes of its disk."""
    allocated: int
    """Bytes that the file takes on the host."""
    base: str | None
    base_format: str | None
    errors: int
    leaks: int
    """Clusters that are counted and not used: room that is lost, and no harm."""
    told: tuple[str, ...]
    """The first errors and what speaks against writing it, a sentence each."""

    @property
    def sound(self) -> bool:
        """Whether there are no errors."""
        return not self.errors


def check(path: str | os.PathLike[str], form: str | None = None) -> Checked:
    """Look at an image without changing it; DiskError: it cannot be read, or is none."""
    file = HostFile.open(path, writable=False)
    try:
        found = form or detect(file.read(0, HEAD))
        allocated = os.fstat(file.descriptor).st_blocks * 512
        if found == RAW:
            return Checked(file.path, RAW, RawDisk(file).size, allocated, None, None, 0, 0, ())
        if found != QCOW2:
            raise DiskError(
                f"{file.path}: is an image in the format {found}, which pyhv does not read", errno.ENOTSUP
            )
        header = read_header(file)
        result = qcow2_check.check(file, header)
        told = result.told if header.obstacle is None else (*result.told, header.obstacle)
        return Checked(
            file.path, QCOW2, header.size, allocated, base_path(file.path, header), header.backing_format,
            result.errors, result.leaks, told,
        )  # fmt: skip
    finally:
        file.close()


def create_image(
    path: str | os.PathLike[str],
    size: int | None = None,
    form: str = QCOW2,
    *,
    base: str | os.PathLike[str] | None = None,
    base_format: str | None = None,
) -> None:
    """Make a new image of zeros, or one on a base, whose size it has if no other is given; DiskError,
    ConfigError."""
    if form not in (RAW, QCOW2) or (base is not None and form != QCOW2):
        raise ConfigError(
            f"{os.fspath(path)}: no image in the format {form} can be made, or none with a base"
        )
    name = None
    if base is not None:
        with open_image(base, base_format, writable=False) as below:
            size = below.size if size is None else size
            name, base_format = os.path.abspath(base), format_of(below)
    if size is None or size <= 0:
        raise ConfigError(f"{os.fspath(path)}: a new image needs a size")
    size = -(-size // SECTOR) * SECTOR
    file = HostFile.create(path)
    try:
        if form == RAW:
            file.extend(size)
        else:
            create(file, size, base=name, base_format=base_format)
        file.sync()
        sync_directory(file.path)
    except BaseException:
        os.unlink(file.path)
        raise
    finally:
        file.close()


def convert(
    source: DiskSpec, target: str | os.PathLike[str], form: str = QCOW2, progress: Progress = _nobody
) -> None:
    """Copy a disk, with all its bases, into one new image, which is there whole or not at all; DiskError."""
    path = os.fspath(target)
    if os.path.lexists(path):
        raise DiskError(f"{path}: there is such a file already, and it is kept", errno.EEXIST)
    unfinished = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.unfinished-{os.getpid()}")
    with open_disk(replace(source, access="ro", overlay=None)) as disk:
        create_image(unfinished, disk.size, form)
        try:
            with open_image(unfinished, form, writable=True) as made:
                _copy(disk, made, progress)
            os.link(unfinished, path)
        except OSError as error:
            raise DiskError.of(path, "cannot be made", error) from error
        finally:
            os.unlink(unfinished)
    sync_directory(path)


def _copy(disk: Disk, made: Disk, progress: Progress) -> None:
    """All that is no zeros, into an image that has none but zeros."""
    for offset, length in disk.extents(0, disk.size):
        for at in range(offset, offset + length, _PIECE):
            span = min(_PIECE, offset + length - at)
            data = memoryview(disk.read(at, span))
            for inner in range(0, span, _GRAIN):
                part = data[inner : inner + _GRAIN]
                if part != bytes(len(part)):
                    made.write(at + inner, part)
            progress(at + span, disk.size)
    progress(disk.size, disk.size)


def commit(overlay: str | os.PathLike[str], progress: Progress = _nobody) -> str:
    """Write what an overlay has into its base; the base's path. The overlay stays and shows the same;
    DiskError.

    Nobody else may use either. If it fails half-way, it can be done again.
    """
    file = HostFile.open(overlay, writable=True)
    try:
        header = read_header(file)
        path = base_path(file.path, header)
        if path is None:
            raise DiskError(f"{file.path}: has no base into which it could be written", errno.EINVAL)
        if header.backing_format is None:
            raise DiskError(
                f"{file.path}: does not say which format its base has, so that it is not written; say it "
                "with qemu-img "
                "rebase -u -F FORMAT -b BASE IMAGE",
                errno.EINVAL,
            )
        disk = with_base(file, header, lambda: open_image(path, header.backing_format, writable=True))
    except BaseException:
        file.close()
        raise
    with disk:
        assert disk.base is not None
        if disk.size > disk.base.size:
            raise DiskError(
                f"{path}: has {disk.base.size} bytes, and its overlay {disk.size}: it would have to grow "
                "first"
            )
        _commit(disk, disk.base, progress)
    return path


def _commit(disk: Qcow2Disk, base: Disk, progress: Progress) -> None:
    for offset, length, filled in disk.own_parts():
        if not filled:
            base.zero(offset, length)
        for at in range(offset, offset + length if filled else offset, _PIECE):
            base.write(at, disk.read(at, min(_PIECE, offset + length - at)))
        progress(offset + length, disk.size)
    base.flush()
    progress(disk.size, disk.size)
