# SPDX-License-Identifier: GPL-2.0-only
"""Which lane a process runs on: the modules of `HOT` interpreted, or the same modules compiled.

The compiled ones are beside the package's modules, never in their place: in a folder whose name is the hash
of the sources that they were made of. If that is not the sources' hash now, nobody finds them. The
environment variable PYHV_LANE=plain leaves them alone too.
"""

import hashlib
import importlib.machinery
import importlib.util
import os
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ExtensionFileLoader, ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Final

ROOT: Final = Path(__file__).resolve().parent.parent
HOT: Final = (
    "pyhv.cpu.vmcb",
    "pyhv.shared_page",
    "pyhv.mmu.physical",
    "pyhv.mmu.memory",
    "pyhv.events.vcpu_info",
    "pyhv.domain.fields",
    "pyhv.traps.guestcpu",
    "pyhv.traps.longmode",
    "pyhv.traps.compat",
    "pyhv.cpu.sysentry",
    "pyhv.traps.dispatch",
)
"""The modules that exist in both lanes, in an order in which they can be compiled."""


def source_hash() -> str:
    """Of all that decides what the compiled modules are: 1 ms."""
    digest = hashlib.blake2b(sys.version.encode(), digest_size=12)
    for file in sorted((ROOT / "native").glob("*.py")):
        digest.update(file.read_bytes())
    for module in (*HOT, "pyhv.cpu.words"):
        path = ROOT.joinpath(*module.split("."))
        for suffix in (".py", ".pxd"):
            digest.update(path.with_suffix(suffix).read_bytes())
    return digest.hexdigest()


def built_in(digest: str) -> Path:
    """Where the compiled modules of such sources are."""
    return ROOT / "pyhv" / "native" / digest


class _Finder:
    """Finds the compiled modules before Python's own finders find the interpreted ones."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._suffix = sysconfig.get_config_var("EXT_SUFFIX")

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of a compiled module, None for any other."""
        if name not in HOT:
            return None
        file = str(self._folder / (name + self._suffix))
        return importlib.util.spec_from_file_location(name, file, loader=ExtensionFileLoader(name, file))


def choose() -> bool:
    """Have this process import the compiled modules if they are those of the sources; whether it does."""
    if os.environ.get("PYHV_LANE") == "plain":
        return False
    folder = ROOT / "pyhv" / "native"
    if not folder.is_dir():
        return False
    folder = built_in(source_hash())
    if not folder.is_dir():
        return False
    sys.meta_path.insert(0, _Finder(folder))
    return True
