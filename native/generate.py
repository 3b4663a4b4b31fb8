# SPDX-License-Identifier: GPL-2.0-only
"""From the sources to C: a tree of its own, in which the constants are burnt in, given to Cython."""

import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Final

from native.burn import WORDS, burnt
from native.constants import Constants
from native.declared import check
from native.problem import BuildProblem
from pyhv.lane import HOT, PACKAGE, hash_of

ROOT: Final = PACKAGE.parent
DIRECTIVES: Final = {
    "language_level": "3",
    "annotation_typing": "False",  # types are said in the .pxd alone
    "initializedcheck": "False",
    "binding": "True",  # a handler's signature and notes are read
    "always_allow_keywords": "True",
    "auto_pickle": "False",
}
CHECKED_WORDS: Final = ROOT / "native" / "checked_words.pxi"
"""In the checked lane it stands for `words.pxi`."""
_DECISIVE: Final = ("burn.py", "command.py", "constants.py", "generate.py", CHECKED_WORDS.name)
"""What of this package decides how a build turns out."""


@dataclass(frozen=True)
class Generated:
    """What there is to compile, and what it was made of."""

    texts: dict[str, Path]
    """C, or in the checked lane C++, by module."""
    sources: dict[str, str]
    """Hashes by path below `ROOT`, as they were before anything was read."""


def generate(work: Path, *, checked: bool = False, modules: Sequence[str] | None = None) -> Generated:
    """Write the C of all modules, or of some, below `work`; what is there and right is left. BuildProblem."""
    before = {file: hash_of(file) for file in _all_sources()}
    constants = Constants(ROOT)
    declarations = _declarations(work, checked)
    jobs = [_job(work, module, constants, declarations, checked) for module in modules or HOT]
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        list(pool.map(_translate, jobs))
    sources = {ROOT.joinpath(*module.split(".")).with_suffix(".py") for module in (*HOT, WORDS)}
    sources |= constants.used | set(_declaring()) | {ROOT / "native" / name for name in _DECISIVE}
    hashes = {str(file.relative_to(ROOT)): before[file] for file in sources}
    return Generated({job.module: job.made for job in jobs}, hashes)


@dataclass(frozen=True)
class _Job:
    """One module: its burnt text, where that and the C go, and a hash of all that decides what the C is."""

    work: Path
    module: str
    text: str
    made: Path
    key: str

    @property
    def copy(self) -> Path:
        return self.made.with_suffix(".py")

    @property
    def key_file(self) -> Path:
        return self.made.with_suffix(".key")


def _job(work: Path, module: str, constants: Constants, declarations: str, checked: bool) -> _Job:
    """Look whether module and .pxd fit each other. BuildProblem."""
    source = ROOT.joinpath(*module.split("."))
    try:
        text = source.with_suffix(".py").read_text(encoding="utf-8")
    except FileNotFoundError as missing:
        raise BuildProblem(f"{module} is in HOT, but there is no {missing.filename}") from missing
    if source.with_suffix(".pxd").is_file():  # else all of it are objects, and still it is faster
        declared = source.with_suffix(".pxd").read_text(encoding="utf-8")
        check(text, declared, str(source.with_suffix(".pxd").relative_to(ROOT)))
    text = burnt(text, module, constants)
    made = work.joinpath(*module.split(".")).with_suffix(".cpp" if checked else ".c")
    return _Job(work, module, text, made, declarations + hashlib.blake2b(text.encode()).hexdigest())


def _all_sources() -> Iterable[Path]:
    """All that might decide something."""
    return [*PACKAGE.rglob("*.py"), *_declaring(), *(ROOT / "native" / name for name in _DECISIVE)]


def _declaring() -> Iterable[Path]:
    return sorted(PACKAGE.rglob("*.px[di]"))


def _declarations(work: Path, checked: bool) -> str:
    """Copy the .pxd and .pxi files, in folders that are packages to Cython; a hash of them all."""
    digest = hashlib.blake2b(repr((DIRECTIVES, checked, _cython())).encode())
    for file in _declaring():
        copy = work / file.relative_to(ROOT)
        copy.parent.mkdir(parents=True, exist_ok=True)
        is_words = copy == work.joinpath(*WORDS.split(".")).with_suffix(".pxi")
        shutil.copyfile(CHECKED_WORDS if checked and is_words else file, copy)
        digest.update(copy.read_bytes())
        for folder in copy.relative_to(work).parents[:-1]:
            (work / folder / "__init__.py").touch()
    return digest.hexdigest()


def _cython() -> str:
    try:
        return version("cython")
    except PackageNotFoundError as missing:
        raise BuildProblem("Cython is not installed: pip install '.[dev]'") from missing


def _translate(job: _Job) -> None:
    """One module to C, unless that is there already. BuildProblem."""
    if job.made.is_file() and job.key_file.is_file() and job.key_file.read_text(encoding="utf-8") == job.key:
        return
    job.copy.parent.mkdir(parents=True, exist_ok=True)
    job.copy.write_text(job.text, encoding="utf-8")
    options = [f"-X{name}={value}" for name, value in DIRECTIVES.items()]
    if job.made.suffix == ".cpp":
        options.append("--cplus")
    copy = str(job.copy.relative_to(job.work))  # as tracebacks name the file
    done = subprocess.run(
        [sys.executable, "-m", "cython", *options, "--module-name", job.module, "-o", str(job.made), copy],
        cwd=job.work, capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        log = job.made.with_suffix(".log")
        log.write_text(done.stdout + done.stderr, encoding="utf-8")
        first = next(
            (line for line in done.stderr.splitlines() if line.startswith(copy)), "it does not say where"
        )
        raise BuildProblem(f"Cython refuses {job.module} ({first}); all that it says is in {log}")
    job.key_file.write_text(job.key, encoding="utf-8")
