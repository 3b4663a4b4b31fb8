# SPDX-License-Identifier: GPL-2.0-only
"""Xen itself, fetched from Debian's archive as an ordinary user and kept in the cache. Nothing is installed.

    apt-get download xen-hypervisor-4.17-amd64     into a temporary directory
    dpkg-deb -x                                    there, too
    gunzip boot/xen-4.17-amd64.gz                  $XDG_CACHE_HOME/pyhv/bench/xen-VERSION.elf

QEMU cannot be had this way (it depends on too much); see `peer.require_qemu`. The kernel and the initramfs
are those of `pyhv boot debian` (`pyhv.images.debian`).
"""

import gzip
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path

import click

from pyhv.cache import cache_directory
from pyhv.errors import EnvironmentProblem

PACKAGE = "xen-hypervisor-4.17-amd64"
_ELSEWHERE = "or give a Xen of your own: --xen FILE (an uncompressed or gzipped Xen 4.17, as in /boot)"


def xen() -> Path:
    """Xen as an ELF file that QEMU can load, from the cache or fetched. Raises EnvironmentProblem."""
    root = cache_directory() / "bench"
    cached = sorted(root.glob("xen-*.elf"))
    if cached:
        return cached[-1]
    for tool in ("apt-get", "dpkg-deb"):
        if shutil.which(tool) is None:
            raise EnvironmentProblem(
                f"{tool} is not installed, and Xen is fetched with it: use a Debian system, {_ELSEWHERE}"
            )
    click.echo(f"bench: downloading {PACKAGE}", err=True)
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=root) as name:
            scratch = Path(name)
            scratch.chmod(0o755)  # apt, if run by root, downloads as its own user
            return _fetch(scratch, root)
    except OSError as cause:
        raise EnvironmentProblem(f"{root}: the cache cannot be used ({cause.strerror or cause})") from cause


def unpacked(path: Path, directory: Path) -> Path:
    """A Xen that the user gave, gunzipped into `directory` if need be. Raises EnvironmentProblem."""
    try:
        data = path.read_bytes()
        if data[:2] != b"\x1f\x8b":
            return path
        target = directory / "xen.elf"
        target.write_bytes(gzip.decompress(data))
    except (OSError, EOFError) as cause:
        raise EnvironmentProblem(f"{path}: cannot be read ({cause})") from cause
    return target


def _fetch(scratch: Path, root: Path) -> Path:
    _run(["apt-get", "download", PACKAGE], scratch)
    packages = sorted(scratch.glob("*.deb"))
    if not packages:
        raise EnvironmentProblem(f"apt-get download left no {PACKAGE} behind; try again, {_ELSEWHERE}")
    _run(["dpkg-deb", "-x", packages[-1].name, "tree"], scratch)
    found = sorted(scratch.glob("tree/boot/xen-*-amd64.gz"))
    if not found:
        raise EnvironmentProblem(f"{packages[-1].name} holds no boot/xen-*-amd64.gz; {_ELSEWHERE}")
    version = re.sub(r"[^\w.+~-]", "-", packages[-1].name.split("_")[1].replace("%3a", ":"))
    ready = scratch / "xen.elf"
    ready.write_bytes(gzip.decompress(found[-1].read_bytes()))
    target = root / f"xen-{version}.elf"
    ready.replace(target)
    return target


def _run(command: list[str], directory: Path) -> None:
    done = subprocess.run(
        command, cwd=directory, env=os.environ | {"LC_ALL": "C"}, stdin=subprocess.DEVNULL,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        reason = done.stderr.strip().rpartition("\n")[2].removeprefix("E: ") or "no reason given"
        raise EnvironmentProblem(f"'{' '.join(command)}' failed: {reason}; 'apt-get update', {_ELSEWHERE}")
