# SPDX-License-Identifier: GPL-2.0-only
"""Which disks and networks guests have: what they boot from, cloud-init's seed, and what was asked for."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import click

from pyhv.cli.messages import say

if TYPE_CHECKING:
    from pyhv.net.spec import NetSpec
    from pyhv.storage.spec import DiskSpec

SEED_DEVICE: Final = "xvdb"


def seeds(directory: Path | None, names: Sequence[str]) -> list[Path | None]:
    """The disk for cloud-init of each guest, its name a host name. ConfigError, EnvironmentProblem."""
    if directory is None:
        return [None] * len(names)
    from pyhv.images.cloudinit import seed

    return [seed(directory, name) for name in names]


def disks_of_guests(
    boot: Sequence[Path | None], words: tuple[str, ...], overlay: str | None, seed: Sequence[Path | None]
) -> "list[list[DiskSpec]]":
    """The disks of each guest: `boot` is what it boots from, `seed` is cloud-init's, `words` are for all.

    ConfigError, click.UsageError.
    """
    if not words and overlay is None and not any(boot) and not any(seed):
        return [[] for _ in boot]
    from pyhv.storage.open import guessed
    from pyhv.storage.spec import DiskSpec, parse

    common = [parse(word) for word in words]
    found = []
    for path, given in zip(boot, seed, strict=True):
        own = [] if path is None else [DiskSpec(str(path))]
        if given is not None:
            own.append(DiskSpec(str(given), format="raw", vdev=SEED_DEVICE, access="ro"))
        found.append(own + common)
    for sentence in filter(None, map(guessed, dict.fromkeys(disk for disks in found for disk in disks))):
        say(sentence)
    return found if overlay is None else [_on_overlays(disks, overlay, len(found)) for disks in found]


def _on_overlays(disks: "list[DiskSpec]", overlay: str, guests: int) -> "list[DiskSpec]":
    """What a guest may write goes to a file of its own, or is thrown away. click.UsageError."""
    written = [spec for spec in disks if spec.may_write and spec.overlay is None]
    if not disks:
        raise click.UsageError("--overlay needs a disk: --disk, or an IMAGE that is one.")
    if overlay and (guests > 1 or len(written) != 1):
        raise click.UsageError(
            f"--overlay {overlay}: one file is for one guest with one disk that it may write;"
            " say --overlay alone, or overlay=FILE in each --disk."
        )
    return [replace(spec, overlay=overlay) if spec in written else spec for spec in disks]


def net_specs(words: tuple[str, ...]) -> "list[NetSpec]":
    """The network devices that each guest has. ConfigError."""
    if not words:
        return []
    from pyhv.net.spec import parse

    return [parse(word) for word in words]


def capture_of(word: str) -> tuple[str, Path]:
    """What is to be captured, and where to; without a name, everything."""
    name, equals, path = word.partition("=")
    return (name, Path(path)) if equals else ("", Path(word))
