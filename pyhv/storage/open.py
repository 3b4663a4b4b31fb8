# SPDX-License-Identifier: GPL-2.0-only
"""From what a person says of a disk to one that is open, locked and of the right format.

Whoever writes an image has it alone, whoever reads one has it unchanged (`locks.py`), so a base is shared by
any number of readers and their overlays, and by no writer. A format that nobody has said is found by the
first bytes and told (`formats.py`).

An image may come from anybody, and so may the name of its base in it. The chain of bases is followed as far
as each says the format of the next; where one does not, and the bytes of the next say that it has a base in
turn, they may be those that a guest wrote into a raw image, and the chain is refused.
"""

import errno
import os
import re
from collections.abc import Callable
from typing import Final

from pyhv.errors import ConfigError
from pyhv.storage.disk import Disk, DiskError
from pyhv.storage.formats import HEAD, NBD, QCOW2, RAW, detect
from pyhv.storage.hostfile import HostFile, absolute, sync_directory
from pyhv.storage.nbd import NbdDisk, parse_uri
from pyhv.storage.qcow2.create import create
from pyhv.storage.qcow2.disk import Qcow2Disk, read_header
from pyhv.storage.qcow2.header import Header
from pyhv.storage.raw import RawDisk
from pyhv.storage.spec import TEMPORARY, DiskSpec

Tell = Callable[[str], None]
"""Takes a sentence that a person should read."""
DEEPEST: Final = 64
"""Images in a chain of bases."""
_PROTOCOL: Final = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:", re.ASCII)
_Key = tuple[int, int]


def _nobody(_sentence: str) -> None:
    """Nobody reads it."""


NOBODY: Final[Tell] = _nobody


def open_disk(spec: DiskSpec, tell: Tell = NOBODY) -> Disk:
    """Open a disk as it was wanted; DiskError, ConfigError say in one sentence why not. Its owner closes it.

    `tell` gets a sentence where something was found out that nobody has said.
    """
    if spec.overlay is None or (spec.overlay == TEMPORARY and not spec.may_write):
        return _open_target(spec, writable=spec.may_write, tell=tell)
    if not spec.may_write:
        raise ConfigError(
            f"{spec.target}: is read-only for its guest, so that the overlay {spec.overlay} makes no sense"
        )
    if spec.overlay == TEMPORARY:
        return _temporary_overlay(_open_target(spec, writable=False, tell=tell))
    if spec.format == NBD:
        raise ConfigError(
            f"{spec.target}: an overlay that is kept needs a file as its base; write --overlay alone"
        )
    if os.path.lexists(spec.overlay):
        return _known_overlay(spec, spec.overlay)
    return _new_overlay(_open_target(spec, writable=False, tell=tell), spec.overlay)


def _open_target(spec: DiskSpec, *, writable: bool, tell: Tell) -> Disk:
    if spec.format == NBD:
        return NbdDisk(parse_uri(spec.target), read_only=not writable)
    return open_image(spec.target, spec.format, writable=writable, tell=tell)


def open_image(
    path: str | os.PathLike[str], form: str | None = None, *, writable: bool, tell: Tell = NOBODY
) -> Disk:
    """Open an image, with all its bases; without a format it is found by the first bytes. DiskError."""
    return _open(os.fspath(path), form, writable=writable, tell=tell, above=())


def guessed(spec: DiskSpec) -> str | None:
    """The sentence that `tell` will get for a disk whose format nobody has said; None: there is none.

    Whoever cannot be told while the disk is opened asks before. What cannot be read is told then.
    """
    if spec.format is not None:
        return None
    told: list[str] = []
    try:
        file = HostFile.open(spec.target, writable=False)
        try:
            _format_of(file, told.append)
        finally:
            file.close()
    except DiskError:
        return None
    return told[0] if told else None


def format_of(disk: Disk) -> str:
    """One of RAW, QCOW2, NBD."""
    return QCOW2 if isinstance(disk, Qcow2Disk) else RAW if isinstance(disk, RawDisk) else NBD


# -- images and their bases ----------------------------------------------------------------------------------


def _open(path: str, form: str | None, *, writable: bool, tell: Tell, above: tuple[_Key, ...]) -> Disk:
    _check_chain(path, above)
    file = HostFile.open(path, writable=writable)
    try:
        found = form or _format_of(file, tell)
        if found == RAW:
            return RawDisk(file, guessed=form is None)
        header = read_header(file)
        _check_guess(path, header, guessed=form is None and bool(above))
        return with_base(file, header, lambda: _open_base(file, header, tell, above))
    except BaseException:
        file.close()
        raise


def with_base(file: HostFile, header: Header, open_base: Callable[[], Disk | None]) -> Qcow2Disk:
    """The disk of an image that is open; its base is closed again if that cannot be. DiskError."""
    base = open_base()
    try:
        return Qcow2Disk(file, header, base)
    except BaseException:
        if base is not None:
            base.close()
        raise


def base_path(path: str, header: Header) -> str | None:
    """Where the base of an image is, seen from here; DiskError: it is no file."""
    if header.backing is None:
        return None
    if _PROTOCOL.match(header.backing):
        shown = "".join(c if c.isprintable() else "?" for c in header.backing[:80])
        raise DiskError(f"{path}: has the base {shown!r}, and pyhv opens only files as bases", errno.ENOTSUP)
    return absolute(header.backing, beside=path)


def _open_base(file: HostFile, header: Header, tell: Tell, above: tuple[_Key, ...]) -> Disk | None:
    path = base_path(file.path, header)
    if path is None:
        return None
    if header.backing_format not in (None, RAW, QCOW2):
        raise DiskError(
            f"{file.path}: has a base in the format {header.backing_format}, which pyhv does not read",
            errno.ENOTSUP,
        )
    try:
        return _open(path, header.backing_format, writable=False, tell=tell, above=(*above, file.key()))
    except DiskError as error:
        raise DiskError(f"{file.path}: its base cannot be opened: {error}", error.errno) from error


def _check_chain(path: str, above: tuple[_Key, ...]) -> None:
    """That a chain of bases has an end."""
    if len(above) >= DEEPEST:
        raise DiskError(f"{path}: more than {DEEPEST} images are on top of each other", errno.ELOOP)
    try:
        about = os.stat(path)
    except (OSError, ValueError):
        return  # it cannot be opened either, and that will be told
    if (about.st_dev, about.st_ino) in above:
        raise DiskError(f"{path}: is its own base, by way of others or directly", errno.ELOOP)


def _check_guess(path: str, header: Header, *, guessed: bool) -> None:
    if guessed and header.backing is not None:
        raise DiskError(
            f"{path}: looks like a qcow2 image with a base, but the image on top of it does not say that it "
            "is one; if "
            "you trust it, say so: qemu-img rebase -u -F qcow2 -b BASE IMAGE",
            errno.EPERM,
        )


def _format_of(file: HostFile, tell: Tell) -> str:
    """By the first bytes; DiskError: one that pyhv does not read."""
    found = detect(file.read(0, HEAD))
    if found not in (RAW, QCOW2):
        raise DiskError(
            f"{file.path}: is an image in the format {found}, which pyhv does not read: let qemu-nbd serve "
            "it and give "
            "nbd+unix:///?socket=PATH, or say format=raw if its guest has written that",
            errno.ENOTSUP,
        )
    if found != RAW:
        tell(f"{file.path}: the format is {found}, by its first bytes; format={found} says so for sure")
    return found


# -- overlays ------------------------------------------------------------------------------------------------


def _temporary_overlay(base: Disk) -> Disk:
    """A layer that is gone when it is closed, or when its process dies."""
    try:
        file = HostFile.temporary(f"temporary overlay of {base.name}")
    except BaseException:
        base.close()
        raise
    return _layer(file, base, None)


def _new_overlay(base: Disk, path: str) -> Disk:
    """A layer in a new file."""
    try:
        file = HostFile.create(path)
    except BaseException:
        base.close()
        raise
    try:
        disk = _layer(file, base, os.path.abspath(base.name))
    except BaseException:
        os.unlink(path)
        raise
    try:
        sync_directory(path)
    except BaseException:
        disk.close()
        raise
    return disk


def _layer(file: HostFile, base: Disk, base_name: str | None) -> Disk:
    """An empty image on a base; both are closed if that fails."""
    try:
        header = create(file, base.size, base=base_name, base_format=format_of(base) if base_name else None)
        return Qcow2Disk(file, header, base)
    except BaseException:
        file.close()
        base.close()
        raise


def _known_overlay(spec: DiskSpec, path: str) -> Disk:
    """A layer that was kept, if it is one of this base."""
    disk = open_image(path, QCOW2, writable=True)
    try:
        assert isinstance(disk, Qcow2Disk)
        if disk.base is None:
            raise DiskError(f"{path}: is no overlay: it has no base", errno.EINVAL)
        if not os.path.exists(spec.target) or not os.path.samefile(disk.base.name, spec.target):
            raise DiskError(f"{path}: is an overlay of {disk.base.name}, not of {spec.target}", errno.EINVAL)
        if spec.format not in (None, format_of(disk.base)):
            raise DiskError(
                f"{path}: takes its base for an image in the format {format_of(disk.base)}, not "
                f"{spec.format}",
                errno.EINVAL,
            )
    except BaseException:
        disk.close()
        raise
    return disk
