# SPDX-License-Identifier: GPL-2.0-only
"""A source tree of a few lines, and what burning constants in makes of it."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

from native.burn import burnt
from native.constants import Constants

HEAD = "# SPDX-License-Identifier: GPL-2.0-only\n"


class Tree:
    """Modules under a folder."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def write(self, module: str, text: str) -> None:
        """Add a module."""
        path = self.root.joinpath(*module.split(".")).with_suffix(".py")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(HEAD + text, encoding="utf-8")

    def burnt(self, text: str, module: str = "pyhv.hot") -> str:
        """What becomes of a module, without its first line."""
        self.write(module, text)
        found = burnt(HEAD + text, module, Constants(self.root))
        first, _, rest = found.partition("\n")
        assert first == "import cython"
        return rest


def run(text: str) -> dict[str, Any]:
    """Names of a module whose casts do nothing, as they do in Python."""
    names: dict[str, Any] = {
        "cython": SimpleNamespace(cast=lambda _kind, value: value, longlong=0, ulonglong=0)
    }
    exec(compile(text, "burnt", "exec"), names)
    return names
