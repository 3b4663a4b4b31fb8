# SPDX-License-Identifier: GPL-2.0-only
"""Xen PV kernels other than Linux that Debian packages: fetched by name and kept in the cache.

    pv-grub, pv-grub-32     GRUB as a PV guest, to its prompt (grub-xen-host has both widths)
    gnumach, gnumach-32     GNU Mach's Xen flavour of Debian 12, the last one that Xen can load

The cache is $XDG_CACHE_HOME/pyhv/packaged, one directory for each kernel and suite, complete or absent.
"""

import re
from pathlib import Path
from typing import Final

from pyhv.cache import cache_directory
from pyhv.errors import EnvironmentProblem
from pyhv.frozen import frozen
from pyhv.images.progress import Progress


@frozen
class Packaged:
    """Where a kernel is: the package, the file in it (a pattern), the suite if the host's will not do."""

    package: str
    member: str
    suite: str | None = None
    architecture: str = "amd64"


@frozen
class PackagedFile:
    """A kernel in the cache, and its package with the version."""

    path: Path
    version: str


_MACH: Final = r"\./boot/gnumach-.*\.gz"
KERNELS: Final = {
    "pv-grub": Packaged("grub-xen-host", r"\./usr/lib/grub-xen/grub-x86_64-xen\.bin"),
    "pv-grub-32": Packaged("grub-xen-host", r"\./usr/lib/grub-xen/grub-i386-xen\.bin"),
    "gnumach": Packaged("gnumach-image-1.8-xen-486", _MACH, "bookworm"),
    "gnumach-32": Packaged("gnumach-image-1.8-xen-486", _MACH, "bookworm", "i386"),
}


def ensure(name: str, packaged: Packaged, progress: Progress, *, update: bool = False) -> PackagedFile:
    """The kernel, from the cache or fetched; `name` is its place in the cache. Raises EnvironmentProblem."""
    if packaged.suite is not None:
        from pyhv.images import archive

        archive.check_suite(packaged.suite)
    target = location(name, packaged).parent
    root = target.parent
    try:
        if update or not _is_complete(target):
            root.mkdir(parents=True, exist_ok=True)
            _fetch(packaged, target, progress)
        return PackagedFile(target / "kernel", (target / "version").read_text(encoding="utf-8").strip())
    except OSError as cause:
        raise EnvironmentProblem(f"{root}: the cache cannot be used ({cause.strerror or cause})") from cause


def location(name: str, packaged: Packaged) -> Path:
    """Where the kernel is in the cache once it has been fetched."""
    place = name if packaged.suite is None else f"{name}-{packaged.suite}"
    return cache_directory() / "packaged" / place / "kernel"


def _is_complete(directory: Path) -> bool:
    return (directory / "kernel").is_file() and (directory / "version").is_file()


def _fetch(packaged: Packaged, target: Path, progress: Progress) -> None:
    import tempfile

    from pyhv.images import archive  # with what starts processes and reads packages

    root, suite, architecture = target.parent, packaged.suite, packaged.architecture
    with (
        tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as name,
        archive.open_archive(suite, root, progress, architecture) as packages,
    ):
        scratch = Path(name)
        scratch.chmod(0o755)  # apt, if run by root, downloads as its own user
        progress.step(f"downloading {packaged.package}")
        packages.download([f"{packaged.package}:{architecture}"], scratch, progress)
        package = archive.only_package(scratch, f"{packaged.package}_")
        ready = scratch / "ready"
        ready.mkdir()
        archive.extract(package, re.compile(packaged.member), ready / "kernel")
        from urllib.parse import unquote  # 3 ms that only this needs

        version = " ".join(unquote(part) for part in package.stem.split("_"))
        (ready / "version").write_text(f"{version}\n", encoding="utf-8")
        archive.publish(ready, target, is_complete=False)
