# SPDX-License-Identifier: GPL-2.0-only
"""pyhv's own guests that were built before: to assemble one takes longer than to run it.

The image of each is kept in the cache directory, behind digests of itself and of all that it was built of:
its source, whatever it might include, the builder and the assembler. What is kept is as little trusted as any
image is, and as harmless: a guest's code. The cache is a convenience: where it cannot be read or written, or
what it has is of other sources, the guest is built.
"""

import importlib.util
from pathlib import Path
from typing import Final

from pyhv.cache import cache_directory, digest, recall, remember, store_whole
from pyhv.errors import EnvironmentProblem
from pyhv.guests import catalogue

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
    known = recall(path, made_of)
    if known is not None:
        return known
    fresh = _build(name)
    remember(path, made_of, fresh)
    return fresh


def built_file(name: str) -> Path | None:
    """A file with a guest's image alone, in the cache; None: nothing can be written there."""
    image = built_once(name)
    try:
        path = cache_directory() / "built" / f"{name.replace('/', '-')}.elf"
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists() or path.read_bytes() != image:
            store_whole(path, image)
    except (EnvironmentProblem, OSError):
        return None
    return path


def _build(name: str) -> bytes:
    from pyhv.guests.build import build_builtin  # seldom needed: it is what takes the time

    return build_builtin(name)


def _digest(source: Path) -> str:
    """Of everything that may change what is built."""
    package = catalogue.FOLDER.parent
    parts = []
    for path in (source, *(path for pattern in _BUILDER for path in sorted(package.glob(pattern)))):
        parts += [str(path.relative_to(package)).encode(), path.read_bytes()]
    keystone = importlib.util.find_spec("keystone")
    if keystone is not None and keystone.origin is not None:
        parts.append(b"%d" % Path(keystone.origin).stat().st_mtime_ns)  # another one is installed later
    return digest(*parts)
