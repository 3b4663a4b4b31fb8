# SPDX-License-Identifier: GPL-2.0-only
"""What somebody wants a guest to have, as objects: image, ramdisk, disks, network devices."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from pyhv.guests import catalogue
from pyhv.images import source as images
from pyhv.images.progress import SilentProgress
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage
from pyhv.loader.ramdisk import Ramdisk, prepare
from pyhv.net.spec import NetSpec
from pyhv.net.spec import parse as parse_net

if TYPE_CHECKING:
    from pyhv.storage.spec import DiskSpec

Bootable: TypeAlias = str | Path | bytes | KernelImage | images.Source
"""What can be booted."""


def source_of(image: Bootable, *, with_ramdisk: bool, drivers: bool = False) -> images.Source:
    """What is to be booted, with what it needs by default. ImageError, EnvironmentProblem."""
    if isinstance(image, images.Source):
        return image
    if isinstance(image, KernelImage):
        return images.Source(Path(image.name).stem or "guest", image)
    if isinstance(image, bytes):
        return images.Source("guest", load_image(image, "guest"))
    word = image if isinstance(image, str) else str(image.absolute())
    return images.resolve(word, SilentProgress, with_ramdisk=with_ramdisk, drivers=drivers)


def ramdisk_of(given: str | Path | bytes) -> Ramdisk:
    """A ramdisk, from a file or as it is. ImageError."""
    if isinstance(given, bytes):
        return prepare(given, "the ramdisk", raw=False)
    return images.ramdisk(Path(given))


def nets_of(wanted: "Sequence[str | NetSpec] | None", source: images.Source) -> "list[NetSpec]":
    """The network devices of a guest; None: those that it cannot do without. ConfigError."""
    if wanted is None:
        return catalogue.nets_of(source.name) if source.builtin else []
    return [one if isinstance(one, NetSpec) else parse_net(one) for one in wanted]


def disks_of(wanted: "Sequence[str | Path | DiskSpec]") -> "list[DiskSpec]":
    """The disks of a guest, each with a name. ConfigError."""
    if not wanted:
        return []
    from pyhv.storage.spec import DiskSpec, parse, with_vdevs

    specs = [
        one if isinstance(one, DiskSpec) else DiskSpec(str(one)) if isinstance(one, Path) else parse(one)
        for one in wanted
    ]
    return with_vdevs(specs)
