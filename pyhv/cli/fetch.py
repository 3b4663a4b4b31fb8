# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv fetch`: get the files of a known system into the cache and say where they are."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Final

import click

from pyhv.cli.messages import Command, progress, verbose_option
from pyhv.images import debian, kernels
from pyhv.images.debian import FLAVOURS, STOCK
from pyhv.images.kernels import KERNELS

DEBIAN: Final = "debian"

EPILOG: Final = """\b
Examples:
  pyhv fetch debian
  pyhv fetch debian --suite trixie-backports --flavour rt
  pyhv boot $(pyhv fetch debian | head -1) --ramdisk $(pyhv fetch debian | tail -1) \\
      --append console=hvc0 --memory 128
"""


def kernel_options(command: Command) -> Command:
    """`--flavour` and `--suite`, for commands that fetch."""
    flavour = click.option(
        "--flavour",
        type=click.Choice(FLAVOURS),
        help="Which of Debian's builds of Linux (default: stock).",
    )
    suite = click.option(
        "--suite",
        metavar="NAME",
        help="Fetch from that suite of Debian: bookworm, trixie-backports, sid, ... (default: the host's).",
    )
    return flavour(suite(command))


def check_kernel_options(words: Sequence[str], flavour: str | None, suite: str | None) -> None:
    """Refuse options that none of the images asks for; raises click.UsageError."""
    if flavour is not None and DEBIAN not in words:
        raise click.UsageError(f"--flavour is for {DEBIAN}: it says which build of Linux to fetch.")
    if suite is not None and not {DEBIAN, *KERNELS} & set(words):
        raise click.UsageError(f"--suite is for kernels that are fetched: {DEBIAN}, {', '.join(KERNELS)}.")


@click.command(epilog=EPILOG)
@click.argument("system", type=click.Choice([DEBIAN, *KERNELS]))
@kernel_options
@click.option("--update", is_flag=True, help="Look for a newer kernel although there is one in the cache.")
@verbose_option
def fetch(system: str, flavour: str | None, suite: str | None, update: bool) -> None:
    """Fetch a system's kernel and print its path; for debian, make its initramfs and print that path too.

    debian: Debian's Linux and busybox for amd64. pv-grub, gnumach (and -32): GRUB and GNU Mach as Xen PV
    guests. Packages are downloaded with apt-get as an ordinary user; nothing is installed. Once fetched, they
    are used without a network.
    """
    check_kernel_options([system], flavour, suite)
    if system == DEBIAN:
        files = debian.ensure(progress(), flavour=flavour or STOCK, suite=suite, update=update)
        click.echo(files.vmlinuz)
        click.echo(files.initramfs)
        return
    packaged = KERNELS[system]
    chosen = packaged if suite is None else replace(packaged, suite=suite)
    click.echo(kernels.ensure(system, chosen, progress(), update=update).path)
