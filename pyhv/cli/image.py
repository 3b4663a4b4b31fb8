# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv image`: disk images are made and looked after. How is `pyhv.images.create`'s and `pyhv.storage`'s."""

import sys
from pathlib import Path
from typing import Final

import click

from pyhv.cli.messages import progress, say, verbose_option
from pyhv.errors import ConfigError, EnvironmentProblem, ExitCode
from pyhv.images.debian import FLAVOURS, STOCK

CREATE_EPILOG: Final = """\b
Examples:
  pyhv image create debian.img
  pyhv image create server.img --suite trixie --size 4G --packages nginx,curl --ssh-key ~/.ssh/id_ed25519.pub
  pyhv image create && pyhv image list
"""

GROUP_EPILOG: Final = """\b
Examples:
  pyhv image create debian.img    a Debian of its own
  pyhv image list                 those in the cache
  pyhv image check debian.qcow2
"""
_FILE: Final = click.Path(dir_okay=False, path_type=Path)


@click.group(epilog=GROUP_EPILOG)
def image() -> None:
    """Make disk images, and look after them."""


@image.command(epilog=CREATE_EPILOG)
@click.argument("target", required=False, type=_FILE, metavar="[FILE]")
@click.option("--suite", default="bookworm", show_default=True, metavar="NAME", help="Which Debian.")
@click.option(
    "--flavour", type=click.Choice(FLAVOURS), default=STOCK, show_default=True, help="Which kernel."
)
@click.option("--size", default="2G", show_default=True, metavar="SIZE", help="Of the disk; 2G, 800M.")
@click.option("--packages", multiple=True, metavar="NAME,...", help="Packages to install besides.")
@click.option("--hostname", default="debian", show_default=True, metavar="NAME", help="Its name.")
@click.option("--root-password", metavar="TEXT", help="root's password; - reads it from standard input.")
@click.option(
    "--ssh-key", type=_FILE, metavar="FILE", help="Public key with which root may log in by ssh."
)  # fmt: skip
@click.option("--force", is_flag=True, help="Replace FILE if it is there.")
@verbose_option
def create(
    target: Path | None,
    suite: str,
    flavour: str,
    size: str,
    packages: tuple[str, ...],
    hostname: str,
    root_password: str | None,
    ssh_key: Path | None,
    force: bool,
) -> None:
    """Make a disk with a complete Debian: kernel, systemd, a login on the console, DHCP and sshd.

    Without FILE it goes into the cache, as debian-SUITE, where `pyhv boot debian-SUITE` finds it. Without a
    password root logs in on the console with none, and by ssh not at all.

    It takes some minutes, mmdebstrap, and a mirror of Debian, which is that of the host's apt; no root.
    """
    from pyhv.images import create as creating

    chosen = target or creating.default_path(f"debian-{suite}")
    if chosen.exists() and not force:
        raise ConfigError(f"{chosen} is there already; --force replaces it.")
    wanted = creating.DebianImage(
        suite=suite,
        flavour=flavour,
        size=_size(size),
        packages=tuple(name for word in packages for name in word.split(",") if name),
        hostname=hostname,
        root_password=_password(root_password),
        ssh_key=None if ssh_key is None else _public_key(ssh_key),
    )
    creating.create(wanted, chosen, progress())
    say(f"{chosen}: {chosen.stat().st_size >> 20} MiB, of which {chosen.stat().st_blocks >> 11} are used")
    click.echo(chosen)


def _size(text: str) -> int:
    from pyhv.api.words import pages

    return pages(text) << 12


def _password(said: str | None) -> str | None:
    """The password, from where it was to come. ConfigError: it is none."""
    password = sys.stdin.readline().rstrip("\n") if said == "-" else said
    if password is not None and (not password or not password.isprintable()):
        raise ConfigError("--root-password: a password has at least one character, and printable ones.")
    return password


def _public_key(path: Path) -> str:
    """Lines of authorized_keys. EnvironmentProblem, ConfigError: it is no public key."""
    try:
        text = path.expanduser().read_text(encoding="utf-8")
    except (OSError, ValueError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else "it is no text"
        raise EnvironmentProblem(f"{path}: the key cannot be read ({reason})") from cause
    if "PRIVATE KEY" in text or not any(line.split()[1:] for line in text.splitlines()):
        raise ConfigError(f"{path} is no public key of ssh; it is mostly called id_ed25519.pub.")
    return text if text.endswith("\n") else f"{text}\n"


@image.command(name="list")
def list_images() -> None:
    """Print the images in the cache, with their sizes: of the disk, and used of it, in MiB."""
    from pyhv.images.create import default_path

    for path in sorted(default_path("x").parent.glob("*.img")):
        about = path.stat()
        click.echo(f"{path.stem:24} {about.st_size >> 20:>8} {about.st_blocks >> 11:>8}  {path}")


CHECK_EPILOG: Final = """\b
Examples:
  pyhv image check mine.qcow2

Exit code 0: it is sound; 5: it is damaged; 4: it is no image, or cannot be read.
"""


@image.command(epilog=CHECK_EPILOG)
@click.argument("file", type=_FILE)
@click.option("--format", "form", metavar="NAME", help="raw or qcow2 (default: by its first bytes).")
@verbose_option
def check(file: Path, form: str | None) -> None:
    """Say what an image is, on which base it lies, and whether it is sound. Nothing is changed."""
    from pyhv.storage import images

    found = images.check(file, form)
    click.echo(
        f"{found.path}: {found.format}, {found.size >> 20} MiB, of which {found.allocated >> 20} are used"
    )
    if found.base is not None:
        click.echo(f"base: {found.base} ({found.base_format or 'it does not say in which format'})")
    for sentence in found.told:
        click.echo(sentence)
    if found.leaks:
        click.echo(f"{found.leaks} clusters are lost: room, and nothing else")
    click.echo("sound" if found.sound else f"{found.errors} errors")
    click.get_current_context().exit(ExitCode.OK if found.sound else ExitCode.FAILURE)


CONVERT_EPILOG: Final = """\b
Examples:
  pyhv image convert debian.img debian.qcow2
  pyhv image convert overlay.qcow2 whole.img --format raw
"""


@image.command(epilog=CONVERT_EPILOG)
@click.argument("source", metavar="DISK")
@click.argument("target", type=_FILE, metavar="FILE")
@click.option(
    "--format", "form", type=click.Choice(["qcow2", "raw"]), default="qcow2", show_default=True,
    help="What the new image is to be.",
)  # fmt: skip
@verbose_option
def convert(source: str, target: Path, form: str) -> None:
    """Copy a disk, with all that it lies on, into a new image. DISK is what `pyhv boot --disk` takes."""
    from pyhv.storage import images
    from pyhv.storage.spec import parse

    shown = progress()
    shown.step(f"copying {source}")
    images.convert(parse(source), target, form, shown.transferred)


COMMIT_EPILOG: Final = """\b
Examples:
  pyhv image commit overlay.qcow2
"""


@image.command(epilog=COMMIT_EPILOG)
@click.argument("overlay", type=_FILE, metavar="FILE")
@verbose_option
def commit(overlay: Path) -> None:
    """Write what an overlay has into its base, and print the base's path."""
    from pyhv.storage import images

    shown = progress()
    shown.step(f"writing {overlay} into its base")
    click.echo(images.commit(overlay, shown.transferred))
