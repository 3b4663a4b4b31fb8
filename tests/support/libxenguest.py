# SPDX-License-Identifier: GPL-2.0-only
"""Genuine libxenguest 4.17, Xen's domain builder, as a judge of images: what it takes and what comes of it.

    apt-get download libxenmisc4.17 ... libxen-dev      into a temporary directory
    dpkg-deb -x                                         into the cache; nothing is installed
    gcc libxenguest.c                                   the program that drives the library, beside them

The builder needs no hypervisor as long as somebody gives it memory; `libxenguest.c` does. It runs apart, so
that an image on which the library fails does not end the tests.
"""

import hashlib
import os
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Self

from pyhv.cache import cache_directory
from pyhv.errors import EnvironmentProblem
from pyhv.images import archive
from pyhv.images.progress import Progress

PACKAGES = (
    "libxenmisc4.17", "libxencall1", "libxendevicemodel1", "libxenevtchn1", "libxenforeignmemory1",
    "libxengnttab1", "libxentoolcore1", "libxentoollog1", "libxen-dev",
)  # fmt: skip
SUITE = "bookworm"
"""Where they are if the host's Debian has another Xen."""
SOURCE = Path(__file__).with_suffix(".c")
LIBRARIES = "usr/lib/x86_64-linux-gnu"
SHARED_INFO = 0x77 << 12
STORE_PORT, CONSOLE_PORT = 1, 2
COMMAND_LINE = b"console=hvc0"


def frame(pfn: int) -> int:
    """The machine frame behind a page, as the driver hands them out."""
    return 3 * pfn + 0x107


@dataclass(frozen=True)
class Built:
    """A domain that the library has built: its numbers by name, and the runs of pages that it has written."""

    guest_type: str
    numbers: dict[str, int]
    memory: dict[int, bytes]


@dataclass(frozen=True)
class Refused:
    """An image that the library does not take, or on which it has crashed."""

    reason: str


class Libxenguest:
    """The library in a process of its own; a context manager."""

    def __init__(self, scratch: Path) -> None:
        self._scratch = scratch
        root = tree()
        environment = os.environ | {"LD_LIBRARY_PATH": str(root / LIBRARIES)}
        self._process = subprocess.Popen(
            [driver(root)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
        )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.communicate()

    def build(self, kernel: bytes, mib: int, ramdisk: bytes | None = None) -> Built | Refused:
        """What becomes of a kernel in a domain of `mib` MiB."""
        files = {"kernel": kernel} if ramdisk is None else {"kernel": kernel, "ramdisk": ramdisk}
        for name, data in files.items():
            (self._scratch / name).write_bytes(data)
        dump = self._scratch / "memory"
        given = "-" if ramdisk is None else self._scratch / "ramdisk"
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(f"{self._scratch / 'kernel'}\t{given}\t{mib}\t{dump}\n")
        self._process.stdin.flush()
        verdict, _, rest = self._process.stdout.readline().rstrip("\n").partition(" ")
        if verdict != "built":
            return Refused(f"{verdict} {rest}")
        pairs = dict(word.split("=") for word in rest.split())
        guest_type = pairs.pop("guest_type")
        return Built(guest_type, {name: int(value, 16) for name, value in pairs.items()}, _read(dump))


def _read(dump: Path) -> dict[int, bytes]:
    raw = dump.read_bytes()
    runs, at = {}, 0
    while at < len(raw):
        first, count = (int.from_bytes(raw[at + 8 * i : at + 8 * i + 8], "little") for i in range(2))
        runs[first] = raw[at + 16 : at + 16 + count * 4096]
        at += 16 + count * 4096
    return runs


class _Silent:
    def step(self, text: str) -> None:
        """Nobody looks on."""

    def transferred(self, done: int, total: int) -> None:
        """Nobody looks on."""


def tree() -> Path:
    """Where the packages have been taken apart, in the cache."""
    target = cache_directory() / "libxenguest-4.17"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as name:
            scratch = Path(name)
            scratch.chmod(0o755)  # apt, if run by root, downloads as its own user
            _download(scratch, _Silent())
            ready = scratch / "ready"
            for package in sorted(scratch.glob("*.deb")):
                archive.run_tool(["dpkg-deb", "-x", str(package), str(ready)])
            archive.publish(ready, target, is_complete=False)
    return target


def _download(scratch: Path, progress: Progress) -> None:
    try:
        archive.Archive().download(list(PACKAGES), scratch, progress)
    except EnvironmentProblem:
        with archive.open_archive(SUITE, scratch, progress) as packages:
            packages.download(list(PACKAGES), scratch, progress)


def driver(root: Path) -> Path:
    """The compiled driver, kept under the hash of its source."""
    program = root / f"driver-{hashlib.blake2b(SOURCE.read_bytes(), digest_size=8).hexdigest()}"
    if not program.is_file():
        compiler = shutil.which("gcc")
        assert compiler is not None, "libxenguest's driver is compiled: apt install gcc libc6-dev"
        libraries = root / LIBRARIES
        with tempfile.TemporaryDirectory(prefix=".build-", dir=root) as name:
            ready = Path(name) / "driver"
            subprocess.run(
                [
                    compiler, "-std=gnu11", "-O1", "-Wall", "-Werror", "-rdynamic",
                    "-I", root / "usr/include", SOURCE, "-o", ready,
                    "-L", libraries, f"-Wl,-rpath-link,{libraries}",
                    "-lxenguest", "-lxenctrl", "-lxentoollog",
                ],
                check=True,
            )  # fmt: skip
            ready.replace(program)
    return program
