# SPDX-License-Identifier: GPL-2.0-only
"""cloud-init's NoCloud seed: a small disk by whose files a stock cloud image configures itself.

    user-data                          has to be there: what is to be configured
    meta-data                          made where it is missing: a name, and a number for this configuration
    network-config, vendor-data        are taken along

cloud-init looks for a FAT file system labelled CIDATA. It is made by mkfs.vfat and mtools, and kept in the
cache under a digest of what is in it: the same files are the same disk, byte for byte, also for a run that is
repeated.
"""

import os
import shutil
import stat
import subprocess
import tempfile
from pathlib import Path
from typing import Final

from pyhv.cache import cache_directory, digest
from pyhv.errors import ConfigError, EnvironmentProblem

USER_DATA, META_DATA = "user-data", "meta-data"
_OTHERS: Final = ("network-config", "vendor-data")
MAX_FILE: Final = 8 << 20
"""Bytes of one of the files."""
_SYSTEM_PATHS: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_SERIAL: Final = "50594856"
_MADE: Final = "315532800"
"""The first second that a FAT knows, of 1980: as good as any, and always the same."""


def seed(directory: Path, hostname: str) -> Path:
    """The disk for a directory with these files, made if it is not in the cache.

    ConfigError: the files are not there, or no files; EnvironmentProblem: a tool lacks, or room.
    """
    files = _files(directory, hostname)
    name = digest(*(part for key in sorted(files) for part in (key.encode(), files[key])))
    target = cache_directory() / "seeds" / f"{name}.img"
    try:
        if not target.is_file():
            target.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(prefix=".seed-", dir=target.parent) as scratch:
                os.replace(_make(files, Path(scratch)), target)
    except OSError as cause:
        raise EnvironmentProblem(f"{target}: cannot be made ({cause.strerror or cause})") from cause
    return target


def _files(directory: Path, hostname: str) -> dict[str, bytes]:
    """What goes onto the disk."""
    found = {}
    for name in (USER_DATA, META_DATA, *_OTHERS):
        data = _read(directory / name)
        if data is not None:
            found[name] = data
    if USER_DATA not in found:
        raise ConfigError(
            f"{directory}: there is no user-data in it, so it is no directory for cloud-init; write one that"
            " begins with '#cloud-config'"
        )
    if META_DATA not in found:
        instance = digest(*(part for key in sorted(found) for part in (key.encode(), found[key])))[:16]
        found[META_DATA] = f"instance-id: pyhv-{instance}\nlocal-hostname: {hostname}\n".encode()
    return found


def _read(path: Path) -> bytes | None:
    """A file's content; None: there is none."""
    try:
        with path.open("rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ConfigError(f"{path}: is no regular file")
            data = file.read(MAX_FILE + 1)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise ConfigError(f"{path}: cannot be read ({reason})") from cause
    if len(data) > MAX_FILE:
        raise ConfigError(f"{path}: is larger than {MAX_FILE >> 20} MiB")
    return data


def _make(files: dict[str, bytes], scratch: Path) -> Path:
    image = scratch / "image"
    room = sum(-(-len(data) // 4096) * 4096 for data in files.values()) + (1 << 20)
    with image.open("wb") as made:
        made.truncate(-(-room // 4096) * 4096)
    _run("dosfstools", "mkfs.vfat", "--invariant", "-F", "12" if room < 8 << 20 else "16", "-s", "8",
         "-i", _SERIAL, "-n", "CIDATA", str(image))  # fmt: skip
    for name, data in files.items():
        source = scratch / name
        source.write_bytes(data)
        _run("mtools", "mcopy", "-i", str(image), str(source), f"::/{name}")
    return image


def _run(package: str, tool: str, *arguments: str) -> None:
    path = f"{os.environ.get('PATH', '')}:{_SYSTEM_PATHS}"
    if shutil.which(tool, path=path) is None:
        raise EnvironmentProblem(
            f"{tool} is not installed, and the disk for cloud-init is made with it: 'apt install {package}'"
        )
    environment = os.environ | {
        "LC_ALL": "C", "PATH": path, "SOURCE_DATE_EPOCH": _MADE, "MTOOLS_SKIP_CHECK": "1", "TZ": "UTC",
    }  # fmt: skip
    done = subprocess.run(
        [tool, *arguments], env=environment, stdin=subprocess.DEVNULL, capture_output=True, text=True,
        check=False,
    )  # fmt: skip
    if done.returncode:
        raise EnvironmentProblem(
            f"{tool} failed: {done.stderr.strip().rpartition(chr(10))[2] or 'no reason'}"
        )
