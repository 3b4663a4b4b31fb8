# SPDX-License-Identifier: GPL-2.0-only
"""Compiles the modules of `HOT` into pyhv/native/<hash>/, from where `pyhv.lane` has them imported."""

import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path

from native.burn import Constants, burnt
from pyhv.lane import HOT, ROOT, built_in, source_hash

_DIRECTIVES = {
    "language_level": "3",
    "infer_types": "True",
    "annotation_typing": "False",  # types are said in the .pxd alone
    "wraparound": "False",
    "cdivision": "True",
    "initializedcheck": "False",
    "binding": "False",
    "always_allow_keywords": "True",
    "auto_pickle": "False",
}
_COMPILER = ("gcc", "-O2", "-g1", "-shared", "-fPIC", "-fno-strict-aliasing", "-fwrapv", "-w")


def build() -> Path:
    """Build for this interpreter; the folder."""
    digest = source_hash()
    target = built_in(digest)
    constants = Constants(ROOT)
    suffix = sysconfig.get_config_var("EXT_SUFFIX")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        for pxd in ROOT.joinpath("pyhv").rglob("*.pxd"):
            copy = work / pxd.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(pxd, copy)
        for package in {parent for path in work.rglob("*.pxd") for parent in path.relative_to(work).parents}:
            if package != Path():
                (work / package / "__init__.py").touch()
        jobs = []
        for module in HOT:
            path = ROOT.joinpath(*module.split(".")).with_suffix(".py")
            copy = work / path.relative_to(ROOT)
            copy.parent.mkdir(parents=True, exist_ok=True)
            copy.write_text(burnt(path.read_text(encoding="utf-8"), module, constants), encoding="utf-8")
        for module in HOT:
            copy = work.joinpath(*module.split(".")).with_suffix(".py")
            options = [f"-X{name}={value}" for name, value in _DIRECTIVES.items()]
            subprocess.run(
                [sys.executable, "-m", "cython", *options, "--module-name", module, str(copy)],
                check=True,
                cwd=work,
            )
            made = work / "out" / (module + suffix)
            made.parent.mkdir(exist_ok=True)
            include = "-I" + sysconfig.get_path("include")
            jobs.append(subprocess.Popen([*_COMPILER, include, str(copy.with_suffix(".c")), "-o", str(made)]))
        if any(job.wait() for job in jobs):
            raise SystemExit("the C compiler failed")
        shutil.rmtree(target.parent, ignore_errors=True)
        target.mkdir(parents=True)
        for made in (work / "out").iterdir():
            shutil.copy(made, target)
    return target


if __name__ == "__main__":
    print(build())
