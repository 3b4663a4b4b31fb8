# SPDX-License-Identifier: GPL-2.0-only
"""The kernels that come with pyhv, by name: the `*.S` files beside this module, and those in `hostile/`,
which attack it. What they do is told in their own first lines. This module does not build them.
"""

from pathlib import Path
from typing import Final

from pyhv.errors import ImageError
from pyhv.net.spec import NetSpec

FOLDER: Final = Path(__file__).parent
"""Where the sources are, and what they include."""


def source_of(name: str) -> Path:
    """Path of a built-in kernel's source, to read or to copy. Raises `ImageError` if unknown."""
    if name not in BUILTIN and name not in HOSTILE:
        raise ImageError(f"no built-in guest named {name}; there are: {', '.join([*BUILTIN, *HOSTILE])}")
    return FOLDER / f"{name}.S"


def description_of(name: str) -> str:
    """What a built-in kernel does: its source's first comment line of the form `# name - what it does`.

    Empty if there is none.
    """
    path = source_of(name)
    with path.open(encoding="utf-8") as source:
        for line in source:
            called, dash, text = line.lstrip("# ").rstrip().partition(" - ")
            if dash and called == path.stem:
                return text
    return ""


def _names(directory: str = "") -> tuple[str, ...]:
    return tuple(f"{directory}{path.stem}" for path in sorted((FOLDER / directory).glob("*.S")))


BUILTIN: Final = _names()
"""Kernels that come with pyhv."""
HOSTILE: Final = _names("hostile/")
"""Kernels that attack the hypervisor, each in one way: `hostile/name`."""

BUILTIN_32: Final = frozenset(name for name in BUILTIN if name.endswith("32"))
"""Which of them are 32-bit PAE kernels."""

NETWORKED: Final = frozenset({"net", "hostile/netfront"})
"""Which of them want a network device."""


def nets_of(name: str) -> list[NetSpec]:
    """The network devices that a kernel wants of which nothing is said."""
    return [NetSpec()] if name in NETWORKED else []
