# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv build`: an assembly source becomes a kernel image. How is `pyhv.guests.build`'s."""

from pathlib import Path
from typing import Final

import click

from pyhv.cli.messages import say, verbose_option
from pyhv.errors import EnvironmentProblem

EPILOG: Final = """\b
Examples:
  pyhv build mykernel.S -o mykernel.img && pyhv boot mykernel.img --memory 16
  pyhv build mykernel.S --listing mykernel.lst && pyhv boot mykernel.img --coverage pages

The sources of pyhv's own guests, in pyhv/guests/, are meant to be copied and changed.
"""


@click.command(epilog=EPILOG)
@click.argument("source", type=click.Path(path_type=Path))
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The image to write (default: SOURCE's name with .img, in this directory).",
)
@click.option(
    "--listing",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Write addresses, bytes and lines there. As the image's name with .lst, --coverage will find it.",
)
@verbose_option
def build(source: Path, output: Path | None, listing: Path | None) -> None:
    """Build a bootable kernel image from one assembly SOURCE.

    The same source always gives the same bytes. A mistake is told with its file and line.
    """
    from pyhv.guests import build as builder

    target = output or Path(source.name).with_suffix(".img")
    if listing is None:
        image = builder.build(source)
    else:
        from pyhv.guests.listing import written

        image, lines = builder.build_listed(source)
        _write(listing, written(lines).encode(), "listing")
    _write(target, image, "image")
    say(f"{target}: {len(image)} bytes")


def _write(target: Path, data: bytes, what: str) -> None:
    try:
        target.write_bytes(data)
    except (OSError, ValueError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise EnvironmentProblem(f"{target}: the {what} cannot be written ({reason})") from cause
