# SPDX-License-Identifier: GPL-2.0-only
"""Which lane a process takes: a build of just these sources, or none."""

import importlib
import os
import shutil
from importlib.machinery import EXTENSION_SUFFIXES
from pathlib import Path
from typing import Any

import pytest
from lanes import require_native

from pyhv import lane
from pyhv.errors import EnvironmentProblem
from pyhv.lane import CHECKED, HOT, NATIVE, PLAIN, SWITCH, Lane, Stamp, choose, hash_of, why_not

SUFFIX = EXTENSION_SUFFIXES[0]


@pytest.fixture(autouse=True)
def unset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(SWITCH, raising=False)


@pytest.fixture
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A tree with one source of each sort, and builds of it, of empty files."""
    for name in ("pyhv/hot.py", "pyhv/hot.pxd", "native/burn.py"):
        file = tmp_path / name
        file.parent.mkdir(exist_ok=True)
        file.write_text(name, encoding="utf-8")
    monkeypatch.setattr(lane, "PACKAGE", tmp_path / "pyhv")
    for kind in (NATIVE, CHECKED):
        folder = lane.folder_of(kind)
        folder.mkdir()
        for module in HOT:
            (folder / lane.file_name(module, SUFFIX)).touch()
        stamp(folder)
    return tmp_path


def stamp(folder: Path, **changes: Any) -> None:
    root = folder.parents[1]
    names = ("pyhv/hot.py", "pyhv/hot.pxd", "native/burn.py")
    made = Stamp(SUFFIX, os.uname().machine, HOT, {name: hash_of(root / name) for name in names})
    (folder / lane.STAMP).write_text(made._replace(**changes).text(), encoding="utf-8")


def test_a_build_of_these_sources_is_taken(root: Path) -> None:
    assert choose() == Lane(NATIVE)


@pytest.mark.promise("P-6")
@pytest.mark.parametrize("name", ["pyhv/hot.py", "pyhv/hot.pxd", "native/burn.py"])
def test_a_build_of_other_sources_is_not(root: Path, name: str) -> None:
    times = (root / name).stat()
    (root / name).write_text("other", encoding="utf-8")
    os.utime(root / name, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert choose() == Lane(PLAIN, f"built from other sources ({name}): run make native")
    (root / name).write_text(name, encoding="utf-8")
    assert choose() == Lane(NATIVE)


def test_an_installed_pyhv_has_its_modules_and_neither_pxd_nor_native(root: Path) -> None:
    (root / "pyhv" / "hot.pxd").unlink()
    shutil.rmtree(root / "native")
    assert choose() == Lane(NATIVE)
    (root / "pyhv" / "hot.py").unlink()
    assert "built from other sources (pyhv/hot.py)" in choose().why


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"hot": HOT[1:]}, "the list of its modules"),
        ({"suffix": ".cpython-310-x86_64-linux-gnu.so"}, "built for another Python"),
        ({"machine": "s390x"}, "built for another Python or processor"),
    ],
)
def test_a_build_of_other_modules_or_for_others_is_not_taken(
    root: Path, changes: dict[str, Any], why: str
) -> None:
    stamp(lane.folder_of(NATIVE), **changes)
    assert why in choose().why
    assert choose().why.endswith(": run make native")


@pytest.mark.parametrize(
    "text", ["", "nonsense\n", "suffix .so\n", "suffix a\nsuffix b\nmachine x\n", "source x\n"]
)
def test_a_damaged_stamp_is_no_stamp(root: Path, text: str) -> None:
    (lane.folder_of(NATIVE) / lane.STAMP).write_text(text, encoding="utf-8")
    assert choose() == Lane(PLAIN, "its stamp cannot be read: run make native")


def test_a_file_that_is_missing(root: Path) -> None:
    name = lane.file_name(HOT[0], SUFFIX)
    (lane.folder_of(NATIVE) / name).unlink()
    assert choose() == Lane(PLAIN, f"{name} is missing: run make native")


def test_not_built_and_why(root: Path) -> None:
    folder = lane.folder_of(NATIVE)
    shutil.rmtree(folder)
    assert choose() == Lane(PLAIN, "not built: run make native")
    folder.mkdir()
    (folder / lane.WHY_NOT).write_text("there is no C compiler\n", encoding="utf-8")
    assert choose() == Lane(PLAIN, "not built: there is no C compiler")


def test_a_stamp_reads_as_it_was_written() -> None:
    made = Stamp(".so", "x86_64", ("pyhv.a", "pyhv.b"), {"pyhv/a b.py": "12", "c": "34"})
    assert Stamp.read(made.text()) == made


def test_the_switch(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (NATIVE, CHECKED):
        monkeypatch.setenv(SWITCH, name)
        assert choose() == Lane(name)
        shutil.rmtree(lane.folder_of(name))
        remedy = lane.REBUILD[name]
        refused = f"PYHV_LANE={name} asks for a lane that is not there: not built: run {remedy}."
        assert choose() == Lane(PLAIN, f"not built: run {remedy}", refused)
    monkeypatch.setenv(SWITCH, PLAIN)
    assert choose() == Lane(PLAIN, "PYHV_LANE=plain is set")
    monkeypatch.setenv(SWITCH, "fast")
    assert choose().refused == "PYHV_LANE is 'fast', but there are only the lanes plain, native, checked."


def test_what_is_refused_stops_the_first_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    from pyhv.machine import Machine, MachineConfig

    monkeypatch.setattr(lane, "ACTIVE", Lane(PLAIN, "", "No such lane."))
    with pytest.raises(EnvironmentProblem, match=r"^No such lane\.$"):
        Machine(MachineConfig(memory_pages=64))


def test_this_process_has_each_module_from_its_lane() -> None:
    """Nothing gets in before the finder: neither pytest nor a tool that instruments imports."""
    if lane.ACTIVE.name == PLAIN and not lane.ACTIVE.why.startswith(SWITCH):
        require_native()
    for module in HOT:
        importlib.import_module(module)
    assert lane.mixed() == []


def test_a_module_that_came_from_elsewhere_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    other = NATIVE if lane.ACTIVE.name == PLAIN else PLAIN
    for module in HOT:
        importlib.import_module(module)
    monkeypatch.setattr(lane, "ACTIVE", Lane(other))
    assert lane.mixed() == sorted(HOT)


def test_nothing_of_a_build_can_be_imported_by_its_own_name() -> None:
    assert not lane.folder_of(NATIVE).name.isidentifier()
    assert not lane.folder_of(CHECKED).name.isidentifier()


def test_the_builds_of_this_tree_are_of_these_sources_or_say_that_they_are_not() -> None:
    require_native()
    assert why_not(NATIVE) == ""


def test_a_source_that_was_edited_is_named(root: Path) -> None:
    """While it is built, too: what is read first is hashed first."""
    sources = {name: hash_of(root / name) for name in ("native/burn.py", "pyhv/hot.py")}
    assert lane.changed_source(sources, root) == ""
    (root / "pyhv" / "hot.py").write_text("edited", encoding="utf-8")
    assert lane.changed_source(sources, root) == "pyhv/hot.py"
