# SPDX-License-Identifier: GPL-2.0-only
"""setuptools' `build_ext` for the native lane, which is optional: pyhv goes without it where it must.

All modules are built, or none: they share types. A build that fails leaves a file that says why, for
`pyhv doctor`. At an installation the environment variable PYHV_NATIVE may say

    required    to fail without the native lane
    abi3        the same, and build for every Python from 3.11 on: one wheel for an architecture
    off         to go without
"""

import os
import shutil
import sys
import sysconfig
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import ClassVar, Final

from setuptools import Extension
from setuptools.command.build_ext import build_ext
from setuptools.errors import BaseError, CCompilerError

from native.generate import ROOT, generate
from native.problem import BuildProblem
from pyhv.lane import (
    CHECKED,
    HOT,
    NATIVE,
    REBUILD,
    STAMP,
    WHY_NOT,
    Stamp,
    changed_source,
    file_name,
    folder_of,
    why_not,
)

SWITCH: Final = "PYHV_NATIVE"
CFLAGS: Final = ("-O2", "-g1", "-w", "-fno-strict-aliasing", "-fwrapv")
LIMITED_API: Final = ("Py_LIMITED_API", "0x030b0000")
"""Python 3.11, the oldest that pyhv runs on: one build is for all that came after it. It costs 15 to 25 % of
an exit (a system call 4.2 us instead of 3.5, a page fault 7.0 instead of 5.7), since Cython gets at
Python's objects by calls then. So who compiles for himself has a build for his own Python."""


def wanted() -> str:
    """What PYHV_NATIVE says."""
    value = os.environ.get(SWITCH, "")
    if value not in ("", "required", "abi3", "off"):
        raise SystemExit(f"pyhv: {SWITCH} is '{value}', but it may only be required, abi3 or off")
    return value


def extensions(lane: str = NATIVE) -> list[Extension]:
    """The extension modules of a lane, whose sources do not exist yet."""
    for_all = wanted() == "abi3"
    return [
        Extension(
            f"pyhv.{folder_of(lane).name}.{file_name(module, '')}",
            sources=[],
            define_macros=[LIMITED_API] if for_all else [],
            py_limited_api=for_all,
            extra_compile_args=list(CFLAGS),
            language="c++" if lane == CHECKED else "c",
        )
        for module in HOT
    ]


class BuildNative(build_ext):
    """To C, to extension modules, and a stamp."""

    lane: ClassVar[str] = NATIVE

    def finalize_options(self) -> None:
        """Compile in parallel, if nobody says otherwise."""
        super().finalize_options()
        if self.parallel is None:
            self.parallel = os.cpu_count() or 1

    def run(self) -> None:
        """Build the lane, or say why not."""
        if wanted() == "off":
            self._give_up(f"{SWITCH}=off was set at installation", warn=False)
            return
        if self.inplace and not self.force and not why_not(self.lane):
            return  # an editable installation over one, and nothing has changed
        try:
            self._build()
        except BuildProblem as problem:
            self._give_up(str(problem))
        except (BaseError, CCompilerError):
            self._give_up(f"the C compiler ({_compiler()}) failed; what it says is above, under pip with -v")

    def _build(self) -> None:
        include = Path(sysconfig.get_path("include"), "Python.h")
        if not include.is_file():
            raise BuildProblem(f"Python's headers are not installed ({include}): apt install python3-dev")
        _require_compiler()
        generated = generate(Path(self.build_temp).resolve() / self.lane, checked=self.lane == CHECKED)
        for extension, module in zip(self.extensions, HOT, strict=True):
            extension.sources = [str(generated.texts[module])]
        self._clear()
        super().run()
        suffix = "".join(Path(self.get_outputs()[0]).suffixes)
        if suffix not in EXTENSION_SUFFIXES:
            raise BuildProblem(
                f"setuptools gives extension modules the suffix {suffix}, which Python does not load"
            )
        if changed := changed_source(generated.sources, ROOT):
            raise BuildProblem(f"{changed} was edited meanwhile: run {REBUILD[self.lane]} again")
        stamp = Stamp(suffix, os.uname().machine, HOT, generated.sources)
        for folder in self._folders():
            (folder / STAMP).write_text(stamp.text(), encoding="utf-8")

    def _folders(self) -> list[Path]:
        """Where the build goes: what is to be installed, and for an editable installation the sources."""
        folders = [Path(self.build_lib) / folder_of(self.lane).relative_to(ROOT)]
        if self.inplace:
            folders.append(folder_of(self.lane))
        for folder in folders:
            folder.mkdir(parents=True, exist_ok=True)
        return folders

    def _clear(self) -> None:
        """Nothing of another build stays, but where the compiler made it, what it need not make again.

        In the sources all goes: a file that was overwritten would change under processes that have loaded it.
        """
        hot = {file_name(module, "") for module in HOT}
        for folder in self._folders():
            for file in folder.iterdir():
                if folder == folder_of(self.lane) or file.name.partition(".")[0] not in hot:
                    file.unlink()

    def _give_up(self, why: str, *, warn: bool = True) -> None:
        if wanted() in ("required", "abi3"):
            raise SystemExit(f"pyhv: the {self.lane} lane cannot be built: {why}")
        for folder in self._folders():
            shutil.rmtree(folder)
            folder.mkdir()
            (folder / WHY_NOT).write_text(why + "\n", encoding="utf-8")
        if warn:
            print(f"pyhv: warning: it is installed without the {self.lane} lane: {why}", file=sys.stderr)


def _compiler() -> str:
    """The command's name, as setuptools finds it."""
    return str(os.environ.get("CC") or sysconfig.get_config_var("CC") or "cc").split()[0]


def _require_compiler() -> None:
    command = _compiler()
    if shutil.which(command) is None:
        raise BuildProblem(f"there is no C compiler ({command}): apt install gcc, then {REBUILD[NATIVE]}")


class BuildChecked(BuildNative):
    """The same for the checked lane."""

    lane = CHECKED
