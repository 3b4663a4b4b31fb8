# SPDX-License-Identifier: GPL-2.0-only
"""From what a person typed as IMAGE to something that can be booted.

A word is the name of a guest that comes with pyhv, or `debian`, or a file; `./hello` is a file in any case.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from pyhv.cli import debian
from pyhv.cli.unpacked import unpack_once
from pyhv.errors import ImageError
from pyhv.guests.build import BUILTIN, HOSTILE, build_builtin
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage

DEBIAN = "debian"
DEMONSTRATION = ("hello", "ticker", "pages", "usermode", "ping", "pong", "intruder")
"""What `pyhv boot` shows when it is not told what to boot; ping and pong need each other."""
BUILTIN_MIB = 16
FILE_MIB = 128


@dataclass(frozen=True, slots=True)
class Source:
    """A kernel with what it needs by default. `memory` in MiB."""

    name: str
    image: KernelImage
    ramdisk: bytes = b""
    command_line: str = ""
    memory: int = FILE_MIB
    is_builtin: bool = False


def resolve(
    word: str, progress: Callable[[], debian.Progress], *, bootable: bool = True, with_ramdisk: bool = True
) -> Source:
    """Find and read an image; `progress` is asked for only if something has to be fetched.

    With `bootable=False` an image that cannot boot is read too; with `with_ramdisk=False` the caller brings
    a ramdisk of its own. Raises ImageError or EnvironmentProblem.
    """
    if word in BUILTIN or word in HOSTILE:
        return Source(word, load_image(build_builtin(word), word), memory=BUILTIN_MIB, is_builtin=True)
    if word == DEBIAN:
        files = debian.ensure(progress())
        image = load_image(files.vmlinux, f"Debian's {files.version}", bootable=bootable)
        ramdisk = read(files.initramfs, "ramdisk") if with_ramdisk else b""
        return Source(DEBIAN, image, ramdisk, debian.COMMAND_LINE, debian.MEMORY_MIB)
    path = Path(word)
    if ("/" not in word or word.startswith("hostile/")) and not path.exists():
        there = HOSTILE if word.startswith("hostile/") else [*BUILTIN, "hostile/NAME"]
        raise ImageError(
            f"{word}: there is no such file, and no guest of that name; there are {', '.join(there)}"
            f" and {DEBIAN}"
        )
    return Source(path.stem, load_image(path, word, bootable=bootable, unpacker=unpack_once))


def read(path: Path, what: str) -> bytes:
    """The bytes of a file; `what` it is goes into the message if it cannot be read."""
    try:
        return path.read_bytes()
    except (OSError, ValueError) as cause:
        reason = cause.strerror if isinstance(cause, OSError) else str(cause)
        raise ImageError(f"{path}: the {what} cannot be read ({reason})") from cause
