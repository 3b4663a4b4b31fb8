# SPDX-License-Identifier: GPL-2.0-only
"""pyhv's own guests are built once, and anew when anything that they are made of changes."""

from pathlib import Path

import pytest

from pyhv.guests import catalogue
from pyhv.guests.build import build_builtin
from pyhv.images import built


@pytest.fixture
def kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where the image of `hello` is kept, in a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pyhv" / "built" / "hello"


def refuse(_name: str) -> bytes:
    raise AssertionError("it is built again")


def test_an_image_is_kept_and_comes_back(kept: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert built.built_once("hello") == build_builtin("hello")
    assert kept.is_file()
    monkeypatch.setattr(built, "_build", refuse)
    assert built.built_once("hello") == build_builtin("hello")


@pytest.mark.parametrize("position", [0, 20, 60, 100, -1])
def test_an_image_that_was_changed_is_built_again(kept: Path, position: int) -> None:
    built.built_once("hello")
    whole = bytearray(kept.read_bytes())
    damaged = bytearray(whole)
    damaged[position] ^= 1
    kept.write_bytes(damaged)
    assert built.built_once("hello") == build_builtin("hello")
    assert kept.read_bytes() == whole


@pytest.mark.parametrize("left", [b"", b"\n", b"pyhv kept 1", b"\xff" * 200])
def test_what_is_no_image_is_built_again(kept: Path, left: bytes) -> None:
    kept.parent.mkdir(parents=True)
    kept.write_bytes(left)
    assert built.built_once("hello") == build_builtin("hello")


@pytest.mark.parametrize("changed", ["hello.S", "xen.inc", "build.py", "../cpu/assembler.py"])
def test_other_sources_are_built_again(kept: Path, monkeypatch: pytest.MonkeyPatch, changed: str) -> None:
    built.built_once("hello")
    before = kept.read_bytes()
    read, path = Path.read_bytes, (catalogue.FOLDER / changed).resolve()
    monkeypatch.setattr(
        Path, "read_bytes", lambda self: read(self) + b"# changed\n" * (self.resolve() == path)
    )
    monkeypatch.setattr(built, "_build", lambda _name: b"another")
    assert built.built_once("hello") == b"another"
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(kept.parents[2]))
    assert kept.read_bytes() != before


def test_without_a_place_to_keep_an_image_it_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pyhv").write_text("a file where the folder should be")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert built.built_once("hello") == build_builtin("hello")


def test_names_with_folders_have_files_of_their_own(kept: Path) -> None:
    name = next(iter(catalogue.HOSTILE))
    assert built.built_once(name) == build_builtin(name)
    assert (kept.parent / name.replace("/", "-")).is_file()
