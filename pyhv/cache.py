# SPDX-License-Identifier: GPL-2.0-only
"""The cache: a directory of what was fetched or made before, and that pyhv does without where it must.

What is made again and again is kept under a heading that says of what it was made:

    pyhv kept 1 DIGEST-OF-ALL-THAT-WENT-IN DIGEST-OF-WHAT-FOLLOWS
    what follows

so that it is believed only if it is whole and of the same ingredients. A file's time says nothing.
"""

import hashlib
import os
import stat
from pathlib import Path
from typing import Final

from pyhv.errors import EnvironmentProblem

_FORMAT: Final = "pyhv kept 1"
_SIZE: Final = 16


def cache_directory() -> Path:
    """Where pyhv keeps what it fetched and made; it need not exist. EnvironmentProblem: nobody knows."""
    configured = os.environ.get("XDG_CACHE_HOME", "")
    if os.path.isabs(configured):  # the XDG specification: relative paths are to be ignored
        return Path(configured) / "pyhv"
    try:
        return Path.home() / ".cache" / "pyhv"
    except RuntimeError as cause:
        raise EnvironmentProblem("no home directory is known: set XDG_CACHE_HOME or HOME") from cause


def store_whole(path: Path, data: bytes) -> None:
    """Write a file that is there whole or not at all."""
    import tempfile  # seldom needed, and not light

    handle, name = tempfile.mkstemp(prefix=".", dir=path.parent)
    try:
        with open(handle, "wb") as file:
            file.write(data)
        os.chmod(name, 0o644)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise


def digest(*parts: bytes) -> str:
    """Of everything that goes into what is kept, each part with its length."""
    total = hashlib.blake2b(digest_size=_SIZE)
    for part in parts:
        total.update(b"%d\n" % len(part) + part)
    return total.hexdigest()


def recall(path: Path, made_of: str) -> bytes | None:
    """What `remember` has kept, if it is whole and made of the same; else None.

    Only a file that this user alone can have written is looked at: some of what is kept is executed.
    """
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW | os.O_NONBLOCK)
        with open(descriptor, "rb") as file:
            about = os.fstat(descriptor)
            if not stat.S_ISREG(about.st_mode) or about.st_uid != os.geteuid() or about.st_mode & 0o022:
                return None
            heading, _, kept = file.read().partition(b"\n")
    except OSError:
        return None
    return kept if heading == _heading(made_of, kept) else None


def remember(path: Path, made_of: str, kept: bytes) -> None:
    """Keep it for others, who will ask with the same `made_of`."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store_whole(path, _heading(made_of, kept) + b"\n" + kept)
    except OSError:
        return  # a full or read-only disk: it is made again next time


def _heading(made_of: str, kept: bytes) -> bytes:
    return f"{_FORMAT} {made_of} {hashlib.blake2b(kept, digest_size=_SIZE).hexdigest()}".encode()
