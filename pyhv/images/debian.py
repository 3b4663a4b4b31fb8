# SPDX-License-Identifier: GPL-2.0-only
"""Debian's Linux kernels and busybox, fetched as an ordinary user and kept in the cache.

    linux-image-amd64                    which kernel is the newest (linux-image-cloud-amd64, -rt-amd64)
    linux-image-VERSION-amd64            its vmlinuz; since Linux 7, linux-binary-VERSION-amd64
    busybox-static                       what the initramfs is made of

The cache is $XDG_CACHE_HOME/pyhv/debian, one directory for each kernel version; what was asked for by suite
is in a directory of that suite. What is in it appears by renaming, so it is complete or absent; with a
complete one no tool and no network is needed. How packages are fetched is `archive.py`'s.
"""

import re
from pathlib import Path
from typing import TYPE_CHECKING, Final

from pyhv.cache import cache_directory, store_whole
from pyhv.errors import EnvironmentProblem
from pyhv.frozen import frozen
from pyhv.images.progress import Progress

if TYPE_CHECKING:
    from pyhv.images.archive import Archive

COMMAND_LINE: Final = "console=hvc0"
MEMORY_MIB: Final = 128
STOCK: Final = "stock"
FLAVOURS: Final = (STOCK, "cloud", "rt")
"""Debian's builds of a kernel for amd64: for everything, for virtual machines, fully preemptible."""

_VERSION: Final = r"\d[a-z0-9.+~]*(-\d+)?"
"""6.1.0-56, 6.12.117+deb13: no flavour is part of it."""
_VMLINUZ: Final = re.compile(r"\./(boot|usr/lib/.*)/vmlinuz[^/]*")
_BUSYBOX: Final = re.compile(r"\./(usr/)?bin/busybox")


@frozen
class DebianFiles:
    """What boots Debian's kernel. `vmlinux` is what `vmlinuz` unpacks to; it saves half a second a boot."""

    vmlinuz: Path
    vmlinux: Path
    initramfs: Path
    version: str


def ensure(
    progress: Progress, *, flavour: str = STOCK, suite: str | None = None, update: bool = False
) -> DebianFiles:
    """The files, from the cache if it has them, else fetched; `update` looks for a newer kernel first.

    `suite` None is the Debian that the host's apt is set up with. Raises EnvironmentProblem if a tool is
    missing, there is no such suite or kernel, the download fails, or the cache cannot be written.
    """
    top = cache_directory() / "debian"
    root = top
    if suite is not None:
        from pyhv.images import archive

        archive.check_suite(suite)
        root /= suite
    try:
        cached = _newest_cached(root, flavour)
        if cached is None or update:
            from pyhv.images import archive  # with what starts processes and reads packages

            top.mkdir(parents=True, exist_ok=True)
            with archive.open_archive(suite, top, progress) as packages:
                image = newest_kernel(packages, flavour)
                cached = root / image.removeprefix("linux-image-")
                if not _is_complete(cached):
                    _fetch(packages, image, cached, progress)
        return _finish(cached, progress)
    except OSError as cause:
        raise EnvironmentProblem(f"{root}: the cache cannot be used ({cause.strerror or cause})") from cause


def newest_kernel(packages: "Archive", flavour: str = STOCK) -> str:
    """The package name of Debian's newest kernel of a flavour for amd64. Raises EnvironmentProblem."""
    from pyhv.images.archive import ELSEWHERE

    suffix = _suffix(flavour)
    found = packages.depends(f"linux-image-{suffix}", re.compile(f"linux-image-{_VERSION}-{suffix}"))
    if found is None:
        raise EnvironmentProblem(
            f"apt knows no package linux-image-{suffix} of Debian: run 'apt-get update' as root with Debian's"
            f" archive in its sources, or boot {ELSEWHERE}"
        )
    return found


def _suffix(flavour: str) -> str:
    return "amd64" if flavour == STOCK else f"{flavour}-amd64"


def _is_complete(directory: Path) -> bool:
    return (directory / "vmlinuz").is_file() and (directory / "busybox").is_file()


def _newest_cached(root: Path, flavour: str) -> Path | None:
    pattern = re.compile(f"{_VERSION}-{_suffix(flavour)}")
    found = [path for path in root.glob("*-amd64") if pattern.fullmatch(path.name) and _is_complete(path)]
    return max(found, key=lambda path: _version_key(path.name), default=None)


def _version_key(version: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", version)]


def _fetch(packages: "Archive", image: str, target: Path, progress: Progress) -> None:
    """Download both packages and put the two files that matter into the cache."""
    import tempfile

    from pyhv.images import archive

    target.parent.mkdir(exist_ok=True)
    holder = packages.depends(image, re.compile(image.replace("image", "binary", 1).replace("+", r"\+")))
    kernel = holder or image  # where the image's package is an empty one, the kernel is in what it names
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as scratch_name:
        scratch = Path(scratch_name)
        scratch.chmod(0o755)  # apt, if run by root, downloads as its own user
        progress.step(f"downloading {kernel} and busybox-static")
        packages.download([f"{kernel}:amd64", "busybox-static:amd64"], scratch, progress)
        ready = scratch / "ready"
        ready.mkdir()
        progress.step("unpacking")
        archive.extract(archive.only_package(scratch, "linux-"), _VMLINUZ, ready / "vmlinuz")
        archive.extract(archive.only_package(scratch, "busybox-static_"), _BUSYBOX, ready / "busybox")
        (ready / "busybox").chmod(0o755)
        archive.publish(ready, target, is_complete=_is_complete(target))


def _finish(directory: Path, progress: Progress) -> DebianFiles:
    """Make what is made from the fetched files, if it is not there yet."""
    from pyhv.images import initramfs

    ramdisk = directory / f"initramfs-{initramfs.recipe()}.cpio.gz"
    if not ramdisk.is_file():
        progress.step("building the initramfs")
        busybox = directory / "busybox"
        store_whole(ramdisk, initramfs.build(busybox.read_bytes(), initramfs.applets(busybox)))
    vmlinuz, vmlinux = directory / "vmlinuz", directory / "vmlinux"
    if not vmlinux.is_file():
        from pyhv.loader.bzimage import unpack

        progress.step("unpacking the kernel")
        store_whole(vmlinux, unpack(vmlinuz.read_bytes(), str(vmlinuz)).elf)
    return DebianFiles(vmlinuz, vmlinux, ramdisk, directory.name)
