# SPDX-License-Identifier: GPL-2.0-only
"""pyhv as it is installed: without a compiler, and from the wheel that `make wheel` builds."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest

from pyhv.lane import PACKAGE, SWITCH

ROOT = PACKAGE.parent
pytestmark = pytest.mark.installation

PARTS = ("pyhv", "native", "setup.py", "pyproject.toml", "README.md", "LICENSE")
DEPENDENCIES = Path(np.__file__).parents[1]


def run(*command: str | Path, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {name: value for name, value in os.environ.items() if name not in (SWITCH, "PYTHONPATH")}
    words = [str(word) for word in command]
    return subprocess.run(words, cwd=cwd, env={**inherited, **environment}, capture_output=True, text=True)


@pytest.fixture
def sources(tmp_path: Path) -> Path:
    """A copy of what is needed to build, without anything that was built."""
    tree = tmp_path / "sources"
    tree.mkdir()
    for part in PARTS:
        if (ROOT / part).is_dir():
            ignored = shutil.ignore_patterns("*-lane", "__pycache__")
            shutil.copytree(ROOT / part, tree / part, ignore=ignored)
        else:
            shutil.copy(ROOT / part, tree)
    return tree


def wheel(sources: Path, **environment: str) -> tuple[subprocess.CompletedProcess[str], list[Path]]:
    """Build a wheel from a copy."""
    made = sources.parent / "wheels"
    done = run(
        sys.executable, "-m", "pip", "wheel", ".", "--no-deps", "--no-build-isolation", "-v", "-w", made,
        cwd=sources, **environment,
    )  # fmt: skip
    return done, sorted(made.glob("*.whl"))


def tools_without_a_compiler(folder: Path) -> str:
    """A PATH that has a shell and little else."""
    folder.mkdir()
    for name in ("sh", "env", "uname"):
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    return str(folder)


@pytest.mark.promise("P-6")
@pytest.mark.parametrize("how", ["no compiler", "a broken compiler"])
def test_without_a_compiler_it_is_installed_all_the_same(sources: Path, how: str) -> None:
    if how == "no compiler":
        environment = {"PATH": tools_without_a_compiler(sources.parent / "bin"), "CC": "gcc"}
        why = "there is no C compiler (gcc): apt install gcc, then make native"
    else:
        environment = {"CC": "false"}
        why = "the C compiler (false) failed; what it says is above, under pip with -v"
    done, made = wheel(sources, **environment)
    assert done.returncode == 0, done.stderr
    assert f"pyhv: warning: it is installed without the native lane: {why}" in done.stdout + done.stderr
    with zipfile.ZipFile(made[0]) as archive:
        built = [name for name in archive.namelist() if "-lane/" in name]
        assert built == ["pyhv/native-lane/why-not"]
        assert archive.read(built[0]).decode() == why + "\n"


def test_who_requires_the_native_lane_is_told_that_there_is_none(sources: Path) -> None:
    done, made = wheel(sources, CC="false", PYHV_NATIVE="required")
    assert done.returncode != 0
    assert made == []
    assert "pyhv: the native lane cannot be built: the C compiler (false) failed" in done.stdout + done.stderr
    done, made = wheel(sources, PYHV_NATIVE="perhaps")
    assert done.returncode != 0
    assert "PYHV_NATIVE is 'perhaps', but it may only be required, abi3 or off" in done.stdout + done.stderr


def test_the_wheel_runs_in_the_native_lane_outside_its_sources(sources: Path) -> None:
    done, made = wheel(sources, PYHV_NATIVE="abi3")
    assert done.returncode == 0, done.stderr
    assert "-cp311-abi3-" in made[0].name
    venv = sources.parent / "venv"
    shutil.rmtree(sources)
    assert run(sys.executable, "-m", "venv", venv, cwd=venv.parent).returncode == 0
    (packages,) = venv.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(f"{DEPENDENCIES}\n", encoding="utf-8")
    done = run(venv / "bin/python", "-m", "pip", "install", "--no-deps", made[0], cwd=venv)
    assert done.returncode == 0, done.stderr
    done = run(venv / "bin/python", "-c", "import pyhv; print(pyhv.__file__)", cwd=venv)
    assert Path(done.stdout.strip()).is_relative_to(venv)
    assert [file.name for file in packages.glob("pyhv/**/*") if file.suffix in (".pxd", ".pxi")] == []
    assert run(venv / "bin/python", "-c", "import native", cwd=venv).returncode == 1

    done = run(venv / "bin/pyhv", "boot", "hello", cwd=venv, PYHV_LANE="native")
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "SUCCESS"), done.stderr

    address = packages / "pyhv" / "address.py"
    address.write_text(address.read_text(encoding="utf-8") + "# other\n", encoding="utf-8")
    done = run(venv / "bin/pyhv", "boot", "hello", cwd=venv, PYHV_LANE="native")
    assert done.returncode == 4
    assert "built from other sources (pyhv/address.py)" in done.stderr
    done = run(venv / "bin/pyhv", "boot", "hello", cwd=venv)
    assert (done.returncode, done.stdout.splitlines()[-1]) == (0, "SUCCESS"), done.stderr
