# SPDX-License-Identifier: GPL-2.0-only
"""Debian's stock kernel and busybox, fetched as an ordinary user and kept in the cache.

    apt-cache depends linux-image-amd64          which kernel is the newest
    apt-get download KERNEL busybox-static       two packages into a temporary directory
    dpkg-deb --fsys-tarfile | two members        /boot/vmlinuz-* and /bin/busybox, nothing is installed

The cache is $XDG_CACHE_HOME/pyhv/debian, one directory for each kernel version. What is in it appears by
renaming, so it is complete or absent; with a complete one no tool and no network is needed.
"""

import contextlib
import os
import re
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Protocol

from pyhv.cli import initramfs
from pyhv.errors import EnvironmentProblem

COMMAND_LINE = "console=hvc0"
MEMORY_MIB = 128

_KERNEL = re.compile(r"linux-image-(\d[\w.+~-]*-amd64)")
_VMLINUZ = re.compile(r"\./(boot|usr/lib/.*)/vmlinuz[^/]*")
_BUSYBOX = re.compile(r"\./(usr/)?bin/busybox")
_ELSEWHERE = (
    "with files of your own: pyhv boot VMLINUZ --ramdisk INITRAMFS --append console=hvc0 --memory 128"
)
_POLL_SECONDS = 0.1


class Progress(Protocol):
    """Somebody who wants to know how far it is."""

    def step(self, text: str) -> None:
        """A new stage has begun."""

    def transferred(self, done: int, total: int) -> None:
        """Bytes downloaded so far, of `total` (0: unknown)."""


@dataclass(frozen=True)
class DebianFiles:
    """What boots Debian's kernel. `vmlinux` is what `vmlinuz` unpacks to; it saves half a second a boot."""

    vmlinuz: Path
    vmlinux: Path
    initramfs: Path
    version: str


def cache_directory() -> Path:
    """Where pyhv keeps what it fetched; it need not exist."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):  # the XDG specification: relative paths are to be ignored
        return Path(configured) / "pyhv"
    try:
        return Path.home() / ".cache" / "pyhv"
    except RuntimeError as cause:
        raise EnvironmentProblem("no home directory is known: set XDG_CACHE_HOME or HOME") from cause


def ensure(progress: Progress, *, update: bool = False) -> DebianFiles:
    """The files, from the cache if it has them, else fetched; `update` looks for a newer kernel first.

    Raises EnvironmentProblem if a tool is missing, the download fails, or the cache cannot be written.
    """
    root = cache_directory() / "debian"
    try:
        cached = _newest_cached(root)
        if cached is None or update:
            package = newest_kernel()
            version = package.removeprefix("linux-image-")
            if not _complete(root / version):
                _fetch(root, version, package, progress)
            cached = root / version
        return _finish(cached, progress)
    except OSError as cause:
        raise EnvironmentProblem(f"{root}: the cache cannot be used ({cause.strerror or cause})") from cause


def newest_kernel() -> str:
    """The package name of Debian's newest kernel for amd64, as apt knows it."""
    answer = _apt(["apt-cache", "depends", "linux-image-amd64"])
    names = [found[0] for line in answer.splitlines() if (found := _KERNEL.search(line))]
    if not names:
        raise EnvironmentProblem(
            "apt knows no package linux-image-amd64: run 'apt-get update' as root with Debian's archive in"
            f" its sources, or boot {_ELSEWHERE}"
        )
    return names[-1]


def _complete(directory: Path) -> bool:
    return (directory / "vmlinuz").is_file() and (directory / "busybox").is_file()


def _newest_cached(root: Path) -> Path | None:
    found = [path for path in root.glob("*-amd64") if _complete(path)]
    return max(found, key=lambda path: _version_key(path.name), default=None)


def _version_key(version: str) -> list[int]:
    return [int(digits) for digits in re.findall(r"\d+", version)]


def _apt(command: list[str], cwd: Path | None = None) -> str:
    """Run one of apt's tools and return what it printed; its own message is part of ours if it fails."""
    _require(command[0])
    environment = os.environ | {"LC_ALL": "C"}
    done = subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise EnvironmentProblem(_failure(command, done.stderr))
    return done.stdout


def _require(tool: str) -> None:
    if shutil.which(tool) is None:
        raise EnvironmentProblem(
            f"{tool} is not installed, and Debian's kernel is fetched with it: use a Debian system, or boot"
            f" {_ELSEWHERE}"
        )


def _failure(command: list[str], stderr: str) -> str:
    lines = [line.removeprefix("E: ") for line in stderr.splitlines() if line.startswith("E: ")]
    reason = lines[0] if lines else stderr.strip().rpartition("\n")[2] or "no reason given"
    hint = ""
    if "Unable to locate package" in reason or "No packages found" in reason:
        hint = "; run 'apt-get update' as root first"
    elif command[:2] == ["apt-get", "download"]:
        hint = "; check the network, or boot " + _ELSEWHERE
    return f"'{' '.join(command[:3])}' failed: {reason.rstrip('.')}{hint}"


def _fetch(root: Path, version: str, package: str, progress: Progress) -> None:
    """Download both packages and put the two files that matter into the cache."""
    for tool in ("apt-get", "dpkg-deb"):
        _require(tool)
    root.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as scratch_name:
        scratch = Path(scratch_name)
        scratch.chmod(0o755)  # apt, if run by root, downloads as its own user
        packages = [package, "busybox-static:amd64"]
        progress.step(f"downloading {package} and busybox-static")
        _download(packages, scratch, progress)
        ready = scratch / "ready"
        ready.mkdir()
        progress.step("unpacking")
        _extract(_only(scratch, "linux-image-"), _VMLINUZ, ready / "vmlinuz")
        _extract(_only(scratch, "busybox-static_"), _BUSYBOX, ready / "busybox")
        (ready / "busybox").chmod(0o755)
        target = root / version
        if target.exists():  # left incomplete by hand
            shutil.rmtree(target)
        try:
            ready.rename(target)
        except OSError:
            if not _complete(target):  # else another pyhv was faster, and what it fetched is as good
                raise


def _download(packages: list[str], directory: Path, progress: Progress) -> None:
    """`apt-get download`, watched by the size of its files."""
    command = ["apt-get", "download", *packages]
    uris = _apt([*command, "--print-uris"], directory)
    total = sum(int(line.split()[2]) for line in uris.splitlines() if len(line.split()) > 3)
    environment = os.environ | {"LC_ALL": "C"}
    with tempfile.TemporaryFile("w+") as errors:
        process = subprocess.Popen(
            command, cwd=directory, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
            stderr=errors,
        )  # fmt: skip
        try:
            while process.poll() is None:
                progress.transferred(_size_of(directory), total)
                time.sleep(_POLL_SECONDS)
        finally:
            if process.poll() is None:  # interrupted: do not leave it behind
                process.terminate()
                process.wait()
        errors.seek(0)
        if process.returncode:
            raise EnvironmentProblem(_failure(command, errors.read()))
    progress.transferred(total, total)


def _size_of(directory: Path) -> int:
    total = 0
    for path in directory.rglob("*"):
        with contextlib.suppress(OSError):  # apt renames its files meanwhile
            total += path.lstat().st_size if path.is_file() else 0
    return total


def _only(directory: Path, prefix: str) -> Path:
    found = sorted(directory.glob(f"{prefix}*.deb"))
    if not found:
        raise EnvironmentProblem(f"apt-get download left no {prefix}*.deb behind; try again")
    return found[-1]


def _extract(package: Path, member: re.Pattern[str], target: Path) -> None:
    """Copy the one regular file that matches `member` out of a .deb."""
    with _file_tree(package) as stream:
        try:
            with tarfile.open(fileobj=stream, mode="r|") as archive:
                for entry in archive:
                    source = archive.extractfile(entry) if entry.isreg() else None
                    if source is not None and member.fullmatch(entry.name):
                        with target.open("wb") as file:
                            shutil.copyfileobj(source, file)
                        return
        except tarfile.TarError as cause:
            raise EnvironmentProblem(f"{package.name}: dpkg-deb cannot unpack it ({cause})") from cause
    raise EnvironmentProblem(f"{package.name}: holds no file like {member.pattern}, so it is of no use")


@contextlib.contextmanager
def _file_tree(package: Path) -> Iterator[IO[bytes]]:
    """The package's files as a tar stream; dpkg-deb is stopped once nobody reads on."""
    process = subprocess.Popen(
        ["dpkg-deb", "--fsys-tarfile", str(package)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
    )
    assert process.stdout is not None
    try:
        yield process.stdout
    finally:
        process.stdout.close()
        process.terminate()
        process.wait()


def _finish(directory: Path, progress: Progress) -> DebianFiles:
    """Make what is made from the fetched files, if it is not there yet."""
    archive = directory / f"initramfs-{initramfs.recipe()}.cpio.gz"
    if not archive.is_file():
        progress.step("building the initramfs")
        busybox = directory / "busybox"
        store_whole(archive, initramfs.build(busybox.read_bytes(), initramfs.applets(busybox)))
    vmlinuz, vmlinux = directory / "vmlinuz", directory / "vmlinux"
    if not vmlinux.is_file():
        from pyhv.loader.bzimage import unpack

        progress.step("unpacking the kernel")
        store_whole(vmlinux, unpack(vmlinuz.read_bytes(), str(vmlinuz)).elf)
    return DebianFiles(vmlinuz, vmlinux, archive, directory.name)


def store_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    handle, name = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
