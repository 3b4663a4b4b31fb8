# SPDX-License-Identifier: GPL-2.0-only
"""Which disks each guest of a run has."""

from pathlib import Path

import click
import pytest

from pyhv.cli.attaching import disks_of_guests, seeds
from pyhv.errors import ConfigError
from pyhv.storage.spec import TEMPORARY, DiskSpec, with_vdevs

BOOT, OTHER, SEED = Path("/boot.img"), Path("/other.img"), Path("/seed.img")


def named(disks: list[DiskSpec]) -> list[tuple[str, str | None, bool]]:
    return [(disk.target, disk.vdev, disk.may_write) for disk in with_vdevs(disks)]


def test_none() -> None:
    assert disks_of_guests([None, None], (), None, [None, None]) == [[], []]


def test_what_is_booted_comes_first_then_the_seed() -> None:
    found = disks_of_guests([BOOT, OTHER], ("data.img", "more.img,ro"), None, [SEED, SEED])
    assert named(found[0]) == [
        ("/boot.img", "xvda", True),
        ("/seed.img", "xvdb", False),
        ("data.img", "xvdc", True),
        ("more.img", "xvdd", False),
    ]
    assert named(found[1])[0] == ("/other.img", "xvda", True)


def test_a_guest_without_a_disk_of_its_own_has_the_others() -> None:
    found = disks_of_guests([None, BOOT], ("data.img",), None, [None, None])
    assert named(found[0]) == [("data.img", "xvda", True)]
    assert named(found[1]) == [("/boot.img", "xvda", True), ("data.img", "xvdb", True)]


def test_overlays_that_are_thrown_away() -> None:
    found = disks_of_guests([BOOT] * 3, (), TEMPORARY, [SEED] * 3)
    assert [[disk.overlay for disk in disks] for disks in found] == [[TEMPORARY, None]] * 3


def test_an_overlay_that_is_kept_is_for_one_disk() -> None:
    found = disks_of_guests([BOOT], ("data.img,ro",), "mine.qcow2", [None])
    assert [disk.overlay for disk in found[0]] == ["mine.qcow2", None]
    for boot, words in (([BOOT, BOOT], ()), ([BOOT], ("data.img",))):
        with pytest.raises(click.UsageError, match="one file is for one guest"):
            disks_of_guests(boot, words, "mine.qcow2", [None] * len(boot))


def test_an_overlay_needs_a_disk() -> None:
    with pytest.raises(click.UsageError, match="--overlay needs a disk"):
        disks_of_guests([None], (), TEMPORARY, [None])


def test_a_device_twice_is_told() -> None:
    disks = disks_of_guests([BOOT], ("data.img,xvdb",), None, [SEED])[0]
    with pytest.raises(ConfigError, match="two disks are xvdb"):
        with_vdevs(disks)


def test_a_seed_for_each_guest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhv.images.cloudinit.seed", lambda directory, name: directory / name)
    assert seeds(None, ["a", "b"]) == [None, None]
    assert seeds(tmp_path, ["a", "b"]) == [tmp_path / "a", tmp_path / "b"]
