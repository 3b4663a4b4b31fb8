# SPDX-License-Identifier: GPL-2.0-only
"""The cache of unpacked kernels: the same answer, faster, and never in the way."""

import gzip
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pyhv.images import unpacked
from pyhv.loader import bzimage

ELF = bzimage.ELF_MAGIC + random.Random(1).randbytes(2 << 20)
PACKED = gzip.compress(ELF, 1)


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "pyhv" / "unpacked"


def forbid(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_data: bytes, _name: str) -> bzimage.Unpacked:
        raise AssertionError("unpacked again")

    monkeypatch.setattr(unpacked, "unpack", fail)


def test_the_second_time_nothing_is_unpacked(monkeypatch: pytest.MonkeyPatch) -> None:
    first = unpacked.unpack_once(PACKED, "x")
    forbid(monkeypatch)
    assert unpacked.unpack_once(PACKED, "x") == first == bzimage.unpack(PACKED, "x")


@pytest.mark.parametrize("damage", [lambda data: data[:-1], lambda data: b"x" + data[1:], lambda data: b""])
def test_a_damaged_entry_is_not_believed(cache: Path, damage: Callable[..., Any]) -> None:
    first = unpacked.unpack_once(PACKED, "x")
    (entry,) = cache.iterdir()
    entry.write_bytes(damage(entry.read_bytes()))
    assert unpacked.unpack_once(PACKED, "x") == first


def test_an_unwritable_cache_is_no_problem(cache: Path) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text("a file where the directory should be")
    assert unpacked.unpack_once(PACKED, "x").elf == ELF


def test_only_a_few_are_kept(cache: Path) -> None:
    for number in range(unpacked.KEPT + 2):
        unpacked.unpack_once(gzip.compress(ELF + bytes([number]), 1), "x")
    assert len(list(cache.iterdir())) == unpacked.KEPT


def test_plain_images_leave_no_trace(cache: Path) -> None:
    assert unpacked.unpack_once(ELF, "x").elf is ELF
    assert not cache.exists()
