# SPDX-License-Identifier: GPL-2.0-only
"""Which lane this process runs on: the modules of `HOT` interpreted, or the same modules compiled.

    plain      Python's own: each module's .py
    native     the same .py, compiled by `native/` of the source tree: pyhv/native-lane/
    checked    the same again, with every index into memory checked: pyhv/checked-lane/

A build is a folder of extension modules and a *stamp*: the hashes of the sources that they were made of. A
build whose sources have changed is never used: the hashes decide, and not the files' times. Nothing of a
build can be imported by its own name: a finder of this module gives it out under the names of `HOT`.

Which lane it is, is decided once, when `pyhv` is imported: the native one if there is a build and it is of
these sources, else the plain one. The environment variable PYHV_LANE chooses otherwise; what it asks for and
cannot have, the first machine refuses.
"""

import hashlib
import importlib.util
import os
import sys
from collections.abc import Iterable, Sequence
from importlib.machinery import EXTENSION_SUFFIXES, ExtensionFileLoader, ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Final, NamedTuple

HOT: Final = (
    "pyhv.cpu.vmcb",
    "pyhv.shared_page",
    "pyhv.mmu.counts",
    "pyhv.mmu.physical",
    "pyhv.mmu.memory",
    "pyhv.mmu.paging",
    "pyhv.mmu.tables",
    "pyhv.mmu.pae",
    "pyhv.hypercalls.mmulists",
    "pyhv.hypercalls.mmuentries",
    "pyhv.hypercalls.mmu",
    "pyhv.hypercalls.mmuext",
    "pyhv.hypercalls.multicalls",
    "pyhv.events.vcpu_info",
    "pyhv.domain.fields",
    "pyhv.traps.guestcpu",
    "pyhv.traps.longmode",
    "pyhv.traps.compat",
    "pyhv.cpu.exithooks",
    "pyhv.hypercalls.context",
    "pyhv.hypercalls.signature",
    "pyhv.hypercalls.cpustate",
    "pyhv.hypercalls.events",
    "pyhv.events.delivery",
    "pyhv.events.channels",
    "pyhv.domain.mailbox",
    "pyhv.devices.ring",
    "pyhv.devices.console",
    "pyhv.devices.console_log",
    "pyhv.devices.console_backend",
    "pyhv.devices.toolstack",
    "pyhv.traps.pagefault",
    "pyhv.traps.services",
    "pyhv.traps.dispatch",
)
"""The modules that exist in every lane."""
PLAIN, NATIVE, CHECKED = LANES = ("plain", "native", "checked")
SWITCH: Final = "PYHV_LANE"
"""Environment variable: the lane that is wanted."""
PACKAGE: Final = Path(__file__).resolve().parent
STAMP: Final = "stamp"
WHY_NOT: Final = "why-not"
"""Files of a build's folder: what it was made of, or why it could not be made."""
REBUILD: Final = {NATIVE: "make native", CHECKED: "make native CHECKED=1"}


class Lane(NamedTuple):
    """The process's answer."""

    name: str
    why: str = ""
    """A clause: why it is the plain lane."""
    refused: str = ""
    """A sentence: why PYHV_LANE cannot be obeyed."""


def folder_of(lane: str) -> Path:
    """Where a lane's build is."""
    return PACKAGE / f"{lane}-lane"


def file_name(module: str, suffix: str) -> str:
    """An extension module's file: `cpu_vmcb.abi3.so` for `pyhv.cpu.vmcb`."""
    return module.removeprefix("pyhv.").replace(".", "_") + suffix


class Stamp(NamedTuple):
    """What a build says of itself; a word and a value in each line of its file."""

    suffix: str
    """Of its files: which Pythons can load them."""
    machine: str
    hot: tuple[str, ...]
    sources: dict[str, str]
    """Hashes by path below the folder that `pyhv/` is in. What is not installed with pyhv - `native/`, and
    the .pxd files - may be missing; what is in `pyhv/` and ends in .py may not."""

    def text(self) -> str:
        """The file's text."""
        hot = [f"hot {name}\n" for name in self.hot]
        sources = [f"source {digest} {path}\n" for path, digest in sorted(self.sources.items())]
        return "".join([f"suffix {self.suffix}\n", f"machine {self.machine}\n", *hot, *sources])

    @classmethod
    def read(cls, text: str) -> "Stamp":
        """From such text. ValueError."""
        found: dict[str, list[str]] = {"suffix": [], "machine": [], "hot": [], "source": []}
        for line in text.splitlines():
            word, _, value = line.partition(" ")
            if word not in found:
                raise ValueError(line)
            found[word].append(value)
        (suffix,), (machine,) = found["suffix"], found["machine"]
        sources = {path: digest for digest, path in (line.split(" ", 1) for line in found["source"])}
        return cls(suffix, machine, tuple(found["hot"]), sources)


def hash_of(file: Path) -> str:
    """Of a source file."""
    return hashlib.blake2b(file.read_bytes(), digest_size=12).hexdigest()


def why_not(lane: str) -> str:
    """Why a lane's build cannot be used, as a clause; empty if it can."""
    folder, remedy = folder_of(lane), REBUILD[lane]
    try:
        stamp = Stamp.read((folder / STAMP).read_text(encoding="utf-8"))
    except FileNotFoundError:
        return _why_not_built(folder, remedy)
    except (OSError, ValueError):
        return f"its stamp cannot be read: run {remedy}"
    if stamp.machine != os.uname().machine or stamp.suffix not in EXTENSION_SUFFIXES:
        return f"built for another Python or processor ({stamp.suffix}, {stamp.machine}): run {remedy}"
    changed = "" if stamp.hot == HOT else "the list of its modules"
    changed = changed or changed_source(stamp.sources, PACKAGE.parent)
    if changed:
        return f"built from other sources ({changed}): run {remedy}"
    here = set(os.listdir(folder))
    missing = [name for module in HOT if (name := file_name(module, stamp.suffix)) not in here]
    return f"{missing[0]} is missing: run {remedy}" if missing else ""


def _why_not_built(folder: Path, remedy: str) -> str:
    try:
        return "not built: " + (folder / WHY_NOT).read_text(encoding="utf-8").strip()
    except OSError:
        return f"not built: run {remedy}"


def changed_source(sources: dict[str, str], root: Path) -> str:
    """The first source below `root` that is not as it was, empty if there is none."""
    for path, digest in sources.items():
        try:
            if hash_of(root / path) != digest:
                return path
        except FileNotFoundError:
            if path.startswith("pyhv/") and path.endswith(".py"):
                return path
    return ""


class Finder:
    """Finds the compiled modules before Python's own finders find the interpreted ones."""

    def __init__(self, folder: Path, suffix: str, modules: Iterable[str]) -> None:
        self._files = {name: str(folder / file_name(name, suffix)) for name in modules}

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The specification of a compiled module, None for any other."""
        file = self._files.get(name)
        if file is None:
            return None
        return importlib.util.spec_from_file_location(name, file, loader=ExtensionFileLoader(name, file))


def choose() -> Lane:
    """Decide: by PYHV_LANE, and by what there is."""
    wanted = os.environ.get(SWITCH, "")
    if wanted == PLAIN:
        return Lane(PLAIN, f"{SWITCH}={PLAIN} is set")
    if wanted not in ("", *LANES):
        refused = f"{SWITCH} is '{wanted}', but there are only the lanes {', '.join(LANES)}."
        return Lane(PLAIN, f"{SWITCH} names none", refused)
    lane = wanted or NATIVE
    why = why_not(lane)
    if not why:
        return Lane(lane)
    return Lane(PLAIN, why, f"{SWITCH}={wanted} asks for a lane that is not there: {why}." if wanted else "")


def use(lane: Lane) -> Lane:
    """Have this process import that lane's modules."""
    if lane.name != PLAIN:
        folder = folder_of(lane.name)
        stamp = Stamp.read((folder / STAMP).read_text(encoding="utf-8"))
        sys.meta_path.insert(0, Finder(folder, stamp.suffix, HOT))
    return lane


ACTIVE: Final = use(choose())
"""This process's lane."""


def require() -> None:
    """EnvironmentProblem if PYHV_LANE asks for what there is not."""
    from pyhv.errors import EnvironmentProblem

    if ACTIVE.refused:
        raise EnvironmentProblem(ACTIVE.refused)


def mixed() -> list[str]:
    """Hot modules that were imported and are not the lane's: somebody's finder came before this one."""
    specs = {name: sys.modules[name].__spec__ for name in HOT if name in sys.modules}
    compiled = {name for name, spec in specs.items() if spec and isinstance(spec.loader, ExtensionFileLoader)}
    return sorted(set(specs) - compiled if ACTIVE.name != PLAIN else compiled)


def describe(lane: Lane = ACTIVE) -> str:
    """A line for people."""
    return f"{lane.name} lane ({lane.why})" if lane.why else f"{lane.name} lane"
