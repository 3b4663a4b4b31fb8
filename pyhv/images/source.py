# SPDX-License-Identifier: GPL-2.0-only
"""From what a person typed as IMAGE to something that can be booted.

A word is the name of a guest that comes with pyhv, or of a kernel that Debian packages, or of an image in
the cache, or a file; `./hello` is a file in any case. A file that is a disk is booted as on a Xen host: by
PV-GRUB, which finds a kernel on it.
"""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Final

from pyhv.cache import cache_directory
from pyhv.errors import ImageError
from pyhv.frozen import frozen
from pyhv.guests.catalogue import BUILTIN, HOSTILE
from pyhv.images import debian, kernels
from pyhv.images.built import built_file, built_once
from pyhv.images.progress import Progress, SilentProgress
from pyhv.images.unpacked import unpack_once
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage
from pyhv.loader.origin import NOWHERE, Origin
from pyhv.loader.ramdisk import MAX_RAMDISK, Ramdisk, prepare

DEBIAN: Final = "debian"
ALL_BUILTIN: Final = frozenset((*BUILTIN, *HOSTILE))
"""What pyhv brings itself: small, and not packed."""
DEMONSTRATION: Final = (
    "hello", "hello32", "ticker", "pages", "pages32", "usermode", "usermode32", "ping", "pong", "intruder",
)  # fmt: skip
"""What `pyhv boot` shows when it is not told what to boot; ping and pong need each other."""
ELF_MAGIC: Final = b"\x7fELF"
BUILTIN_MIB: Final = 16
FILE_MIB: Final = 128
DISK_MIB: Final = 512
"""What a server needs to start, and to install packages."""


@frozen
class Source:
    """A kernel with what it needs by default. `memory` in MiB."""

    name: str
    image: KernelImage
    ramdisk: Ramdisk | None = None
    command_line: str = ""
    memory: int = FILE_MIB
    builtin: bool = False
    origin: Origin = NOWHERE
    """In which words it can be found again."""
    disk: Path | None = None
    """What it boots from: its first disk, xvda."""


def resolve(
    word: str,
    progress: Callable[[], Progress],
    *,
    bootable: bool = True,
    with_ramdisk: bool = True,
    raw_ramdisk: bool = False,
    drivers: bool = False,
    flavour: str = debian.STOCK,
    suite: str | None = None,
) -> Source:
    """Find and read an image; `progress` is asked for only if something has to be fetched.

    With `bootable=False` an image that cannot boot is read too; with `with_ramdisk=False` the caller brings a
    ramdisk of its own, with `raw_ramdisk` it is not unpacked. `drivers` are for disks and networks, where the
    ramdisk is pyhv's. `flavour` and `suite` say which of Debian's kernels is meant. Raises ImageError or
    EnvironmentProblem.
    """
    if word in ALL_BUILTIN:
        image, origin = load_image(built_once(word), word), Origin(word)
        return Source(word, image, memory=BUILTIN_MIB, builtin=True, origin=origin)
    if word == DEBIAN:
        files = debian.ensure(progress(), flavour=flavour, suite=suite)
        image = load_image(files.vmlinux, f"Debian's {files.version}", bootable=bootable)
        found = ramdisk(files.initramfs, raw=raw_ramdisk) if with_ramdisk else None
        drivers = drivers and found is not None
        if drivers and found is not None:
            from pyhv.images import modules  # for guests with devices alone

            found = _with_drivers(found, modules.ensure(files, progress(), suite=suite))
        origin = Origin(word, flavour, suite, raw_ramdisk=raw_ramdisk, drivers=drivers)
        return Source(DEBIAN, image, found, debian.COMMAND_LINE, debian.MEMORY_MIB, origin=origin)
    if word in kernels.KERNELS:
        packaged = kernels.KERNELS[word]
        if suite is not None:
            packaged = replace(packaged, suite=suite)
        kernel = kernels.ensure(word, packaged, progress())
        image = load_image(kernel.path, kernel.version, bootable=bootable)
        return Source(word, image, origin=Origin(word, suite=suite))
    from pyhv.images import disks  # with the readers of images, which no small guest needs

    path = _image_in_cache(word) or Path(word)
    if disks.is_disk(path):
        return _from_disk(path, progress, suite)
    if ("/" not in word or word.startswith("hostile/")) and not path.exists():
        there = HOSTILE if word.startswith("hostile/") else [*BUILTIN, "hostile/NAME", *kernels.KERNELS]
        raise ImageError(
            f"{word}: there is no such file, and no guest of that name; there are {', '.join(there)}"
            f" and {DEBIAN}"
        )
    image = load_image(path, word, bootable=bootable, unpacker=unpack_once)
    return Source(path.stem, image, origin=Origin(str(path.absolute())))


def _with_drivers(found: Ramdisk, archive: Path) -> Ramdisk:
    """The ramdisk with an archive behind it: Linux unpacks one after the other, from a multiple of 4 on."""
    data = found.data + bytes(-len(found.data) % 4)
    try:
        return Ramdisk(data + archive.read_bytes(), f"{found.told}, with drivers")
    except OSError as cause:
        raise ImageError(f"{archive}: the drivers cannot be read ({cause.strerror})") from cause


def _image_in_cache(word: str) -> Path | None:
    """An image that `pyhv image create` has put into the cache; a file of that name comes first."""
    if "/" in word or Path(word).exists():
        return None
    path = cache_directory() / "images" / f"{word}.img"
    return path if path.is_file() else None


def _from_disk(path: Path, progress: Callable[[], Progress], suite: str | None) -> Source:
    """A disk with its boot loader; a kernel that PV-GRUB cannot unpack is started as pygrub does it."""
    from pyhv.images import disks

    loader = disks.loader_for(path)
    if loader is None:
        return directly(path)
    found = resolve(loader, progress, suite=suite)
    return replace(found, name=path.stem, memory=DISK_MIB, disk=path.absolute())


def directly(path: Path, kernel: Path | None = None) -> Source:
    """A disk with a kernel that pyhv starts itself: one from outside, or what PV-GRUB would start.

    ImageError, VolumeError: there is none.
    """
    given, command_line, origin = None, "", NOWHERE
    if kernel is not None:
        image = load_image(kernel, str(kernel), unpacker=unpack_once)
        origin = Origin(str(kernel.absolute()))
    else:
        from pyhv.images import disks

        installed = disks.installed_kernel(path)
        name = f"{path}: {installed.title}"
        image = load_image(installed.kernel, name, unpacker=unpack_once)
        if installed.ramdisk is not None:
            given = prepare(installed.ramdisk, f"{name}, its ramdisk")
        command_line = installed.command_line
    return Source(path.stem, image, given, command_line, DISK_MIB, origin=origin, disk=path.absolute())


def symbol_file(origin: Origin) -> Path | None:
    """An ELF file with the symbols of an image that came from there, for debuggers; None: there is none.

    That of a guest that comes with pyhv is written into the cache.
    """
    word = origin.image
    if word in BUILTIN or word in HOSTILE:
        return built_file(word)
    if word == DEBIAN:
        flavour = origin.flavour or debian.STOCK
        path = debian.ensure(SilentProgress(), flavour=flavour, suite=origin.suite).vmlinux
    elif "/" in word:
        path = Path(word)
    else:
        return None
    try:
        with path.open("rb") as file:
            return path if file.read(len(ELF_MAGIC)) == ELF_MAGIC else None
    except OSError:
        return None


def ramdisk(path: Path, *, raw: bool = False) -> Ramdisk:
    """The ramdisk in a file as a guest gets it; `raw` leaves unpacking to the guest. Raises ImageError."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_RAMDISK + 1)
    except (OSError, ValueError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise ImageError(f"{path}: the ramdisk cannot be read ({reason})") from cause
    return prepare(data, str(path), raw=raw)
