# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv inspect`: what an image is, and whether it can boot; what is on a disk; or what a snapshot holds.

The words on images are those of `pyhv.loader.describe`, those on disks `pyhv.images.survey`'s.
"""

from pathlib import Path
from typing import TYPE_CHECKING, Final, NoReturn

import click

import pyhv
from pyhv.cli.messages import printable, progress, verbose_option
from pyhv.errors import ExitCode

if TYPE_CHECKING:
    from rich.console import RenderableType

    from pyhv.loader.describe import Description

PAGES_PER_MIB: Final = 256
PLAIN_WIDTH: Final = 160
"""Columns when the output is not a terminal."""

EPILOG: Final = """\b
Examples:
  pyhv inspect vmlinuz
  pyhv inspect vmlinuz --memory 64 --ramdisk initramfs.cpio.gz
  pyhv inspect hello
  pyhv inspect disk.img
  pyhv inspect debian.snap

Exit code 0: it can boot; 4: it cannot, or is neither kernel image nor disk.
"""


@click.command(epilog=EPILOG)
@click.argument("image", metavar="IMAGE")
@click.option(
    "--memory", type=click.IntRange(1, 1 << 20), metavar="MIB", help="Show the layout in that much memory."
)
@click.option(
    "--ramdisk", type=click.Path(dir_okay=False, path_type=Path), metavar="FILE", help="Ramdisk to place."
)
@click.option("--ramdisk-raw", is_flag=True, help="Do not unpack a ramdisk that is gzip; the guest will.")
@verbose_option
def inspect(image: str, memory: int | None, ramdisk: Path | None, ramdisk_raw: bool) -> None:
    """Say what a kernel image is: its format, its Xen notes, its segments, and how a domain starts with it.

    IMAGE is what `pyhv boot` takes. Of a disk: partitions, file systems, what a boot loader would start, and
    kernels. Of a snapshot that was saved: what is in it.
    """
    from pyhv.images import disks
    from pyhv.images import source as images
    from pyhv.loader.describe import describe
    from pyhv.snapshot import container

    if container.is_snapshot(Path(image)):
        _show(describe_snapshot(Path(image)))
        return
    if disks.is_disk(Path(image)):
        _end(disks.describe(Path(image)))
    source = images.resolve(
        image, progress, bootable=False, with_ramdisk=ramdisk is None, raw_ramdisk=ramdisk_raw
    )
    found = source.ramdisk if ramdisk is None else images.ramdisk(ramdisk, raw=ramdisk_raw)
    _end(describe(source.image, (memory or source.memory) * PAGES_PER_MIB, found))


def _end(description: "Description") -> NoReturn:
    """Show it, and end with what it says on booting."""
    _show(description)
    click.get_current_context().exit(ExitCode.OK if can_boot(description) else ExitCode.ENVIRONMENT)


def _show(description: "Description") -> None:
    from rich.console import Console

    console = Console(highlight=False)
    if not console.is_terminal:
        console = Console(highlight=False, width=PLAIN_WIDTH)
    with console.capture() as capture:
        for renderable in render(description):
            console.print(renderable)
    for line in capture.get().splitlines():
        click.echo(line.rstrip())


def describe_snapshot(path: Path) -> "Description":
    """What a snapshot's file holds. SnapshotError: it is damaged, or of another pyhv."""
    snapshot = pyhv.Snapshot.load(path)
    about, memory = snapshot.about, snapshot.image.existing().size
    size = path.stat().st_size
    rows = [
        ("pyhv", f"written by {about.pyhv} on {about.written}"),
        ("time", f"{about.time_ns / 1e9:.6f} s of {'virtual' if about.virtual_time else 'real'} time"),
        (
            "memory",
            f"{about.frames >> 8} MiB, of which {memory >> 8} MiB are in the file's {size >> 20} MiB",
        ),
    ]
    guests = [
        (
            f"domain {guest.domid}",
            f"{guest.name}, {guest.stage}: {guest.width} bits, {guest.vcpus} vCPU(s),"
            f" {guest.memory_pages >> 8} MiB",
        )
        for guest in about.guests
    ]
    return [("Snapshot", rows), ("Guests", guests), ("To go on", [("command", f"pyhv restore {path}")])]


def can_boot(description: "Description") -> bool:
    """Whether the description ends well: no objection, and the layout fits."""
    labels = [label for _, rows in description for label, _ in rows]
    return "no" not in labels and "does not fit" not in labels


def render(description: "Description") -> "list[RenderableType]":
    """A title and an aligned grid for each section."""
    from rich.padding import Padding
    from rich.table import Table
    from rich.text import Text

    width = max((len(label) for _, rows in description for label, _ in rows), default=0)
    parts: list[RenderableType] = []
    for title, rows in description:
        grid = Table.grid(padding=(0, 2))
        grid.add_column(min_width=width, style="cyan", no_wrap=True)
        grid.add_column(overflow="fold")
        for label, text in rows:
            grid.add_row(Text(label), Text(printable(text)))
        parts += [Text(title, style="bold"), Padding(grid, (0, 0, 1, 2))]
    return parts
