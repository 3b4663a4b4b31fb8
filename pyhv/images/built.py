# SPDX-License-Identifier: GPL-2.0-only
"""pyhv's own guests that were built before: to assemble one takes longer than to run it.

The image of each is kept in the cache directory, behind digests of itself and of all that it was built of:
its source, whatever it might include, the builder and the assembler. What is kept is as little trusted as any
image is, and as harmless: a guest's code. The cache is a convenience: where it cannot be read or written, or
what it has is of other sources, the guest is built.
"""

import hashlib
import importlib.util
from pathlib import Path
from typing import Final

from pyhv.errors import EnvironmentProblem
from pyhv.guests import catalogue
from pyhv.images.debian import cache_directory, store_whole

_FORMAT: Final = "pyhv built 1"
_SIZE: Final = 16
_BUILDER: Final = ("guests/*.py", "guests/*.inc", "guests/hostile/*.inc", "cpu/assembl*.py")
"""What guests are built by and of, besides their own source."""


def built_once(name: str) -> bytes:
    """As `pyhv.guests.build.build_builtin`, remembering the answer. ImageError."""
    source = catalogue.source_of(name)
    try:
        path = cache_directory() / "built" / name.replace("/", "-")
    except EnvironmentProblem:
        return _build(name)
    made_of = _digest(source)
    known = _recall(path, made_of)
    if known is not None:
        return known
    fresh = _build(name)
    _remember(path, made_of, fresh)
    return fresh


def _build(name: str) -> bytes:
    from pyhv.guests.build import build_builtin  # seldom needed: it is what takes the time

    return build_builtin(name)


def _digest(source: Path) -> str:
    """Of everything that may change what is built."""
    sum_ = hashlib.blake2b(digest_size=_SIZE)
    package = catalogue.FOLDER.parent
    for path in (source, *(path for pattern in _BUILDER for path in sorted(package.glob(pattern)))):
        text = path.read_bytes()
        sum_.update(b"%s %d\n" % (str(path.relative_to(package)).encode(), len(text)) + text)
    keystone = importlib.util.find_spec("keystone")
    if keystone is not None and keystone.origin is not None:
        sum_.update(b"%d" % Path(keystone.origin).stat().st_mtime_ns)  # another one is installed later
    return sum_.hexdigest()


def _heading(made_of: str, image: bytes) -> bytes:
    return f"{_FORMAT} {made_of} {hashlib.blake2b(image, digest_size=_SIZE).hexdigest()}\n".encode()


def _recall(path: Path, made_of: str) -> bytes | None:
    """What an earlier run has kept, if it is whole and of the same sources."""
    try:
        heading, _, image = path.read_bytes().partition(b"\n")
    except OSError:
        return None
    return image if heading + b"\n" == _heading(made_of, image) else None


def _remember(path: Path, made_of: str, image: bytes) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        store_whole(path, _heading(made_of, image) + image)
    except OSError:
        return  # a full or read-only disk: build again next time
