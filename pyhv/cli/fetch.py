# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv fetch`: get the files of a known system into the cache and say where they are."""

import click

from pyhv.cli import debian
from pyhv.cli.messages import progress, verbose_option

EPILOG = """\b
Examples:
  pyhv fetch debian
  pyhv boot $(pyhv fetch debian | head -1) --ramdisk $(pyhv fetch debian | tail -1) \\
      --append console=hvc0 --memory 128
"""


@click.command(epilog=EPILOG)
@click.argument("system", type=click.Choice(["debian"]))
@click.option("--update", is_flag=True, help="Look for a newer kernel although there is one in the cache.")
@verbose_option
def fetch(system: str, update: bool) -> None:
    """Fetch a system's kernel and make its initramfs; print the two paths.

    debian: the stock kernel and busybox of Debian for amd64, downloaded with apt-get as an ordinary user.
    Nothing is installed. Once fetched, they are used without a network.
    """
    files = debian.ensure(progress(), update=update)
    click.echo(files.vmlinuz)
    click.echo(files.initramfs)
