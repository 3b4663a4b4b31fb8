# SPDX-License-Identifier: GPL-2.0-only
"""Boot configurations: what a boot loader would start, as grub.cfg, menu.lst or extlinux.conf say it.

Read as pygrub reads them: entries and their lines, without running GRUB's script. A name with a variable that
only a running GRUB knows stays as it is written.
"""

import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Final

from pyhv.errors import VolumeError
from pyhv.frozen import frozen
from pyhv.volumes.filesystem import Files

MAX_CONFIG: Final = 1 << 20
"""Bytes of a configuration that is read."""
MAX_ENTRIES: Final = 256
MAX_LINE: Final = 1 << 16


@dataclass(slots=True)
class BootEntry:
    """One entry of the menu. Paths are those of the file system that the entry means by its root."""

    title: str
    kernel: str = ""
    ramdisk: str = ""
    command_line: str = ""


@frozen
class BootConfig:
    """A configuration file. `default` is the entry that is started when nobody chooses; None: it has none."""

    path: str
    kind: str
    entries: tuple[BootEntry, ...] = ()
    default: int | None = None


@dataclass(slots=True)
class _Reading:
    entries: list[BootEntry] = field(default_factory=list)
    default: str = "0"

    def begin(self, title: str) -> None:
        """A new entry; of those that are too many only the first are kept."""
        if len(self.entries) < MAX_ENTRIES:
            self.entries.append(BootEntry(title))

    @property
    def here(self) -> BootEntry | None:
        return self.entries[-1] if self.entries else None


def find_configs(files: Files) -> list[BootConfig]:
    """The configurations that are there, those that PV-GRUB looks for first."""
    found = []
    for path, kind, parse in _KNOWN:
        try:
            raw = files.read_file(path, MAX_CONFIG)
        except VolumeError:
            continue
        found.append(parse_config(raw, path, kind, parse))
    return found


def parse_config(raw: bytes, path: str, kind: str, parse: "_Parser | None" = None) -> BootConfig:
    """One configuration; `kind` is "GRUB 2", "GRUB legacy" or "extlinux"."""
    if parse is None:
        parse = next(known[2] for known in _KNOWN if known[1] == kind)
    reading = _Reading()
    for line in raw.decode("utf-8", "replace").splitlines():
        line = line.strip()
        if line and not line.startswith("#") and len(line) <= MAX_LINE:
            parse(line, reading)
    entries = [entry for entry in reading.entries if entry.kernel]
    return BootConfig(path, kind, tuple(entries), _default(reading, entries))


def _default(reading: _Reading, entries: list[BootEntry]) -> int | None:
    """Which of the entries with a kernel the default names: by its number among all, or by its title."""
    if not entries:
        return None
    wanted = reading.default.rpartition(">")[2].strip()
    for entry in reading.entries:
        if entry.title == wanted and entry in entries:
            return entries.index(entry)
    number = int(wanted) if wanted.isascii() and wanted.isdigit() and len(wanted) < 6 else 0
    chosen = reading.entries[number] if number < len(reading.entries) else entries[0]
    return entries.index(chosen) if chosen in entries else 0


_DEVICE: Final = re.compile(r"\([^)]*\)")


def _on_root(path: str) -> str:
    """A path without the device before it."""
    path = _DEVICE.sub("", path, count=1) if path.startswith("(") else path
    return path if path.startswith(("/", "$")) else f"/{path}"


def _words(line: str) -> list[str]:
    """A line's words, as a shell would cut them; one with an open quote is cut at blanks."""
    try:
        return shlex.split(line, comments=False)
    except ValueError:
        return line.split()


def _grub2(line: str, reading: _Reading) -> None:
    words = _words(line.rstrip("{").replace("\t", " "))
    word, rest = (words[0], words[1:]) if words else ("", [])
    if word == "menuentry" and rest:
        reading.begin(rest[0])
    elif word == "set" and rest and rest[0].startswith("default="):
        value = rest[0].removeprefix("default=")
        if "$" not in value:  # of several, those with a variable are for one boot only
            reading.default = value
    elif reading.here is None or not rest:
        return
    elif word in ("linux", "linux16", "linuxefi", "xen_hypervisor", "multiboot", "multiboot2"):
        reading.here.kernel, reading.here.command_line = _on_root(rest[0]), " ".join(rest[1:])
    elif word in ("initrd", "initrd16", "initrdefi"):
        reading.here.ramdisk = _on_root(rest[-1])


def _legacy(line: str, reading: _Reading) -> None:
    word, _, rest = line.replace("=", " ", 1 if line.startswith("default") else 0).partition(" ")
    rest = rest.strip()
    if word == "title":
        reading.begin(rest)
    elif word == "default":
        reading.default = rest
    elif reading.here is None or not rest:
        return
    elif word == "kernel" or (word == "module" and not reading.here.ramdisk and _is_kernel(rest)):
        path, _, line = rest.partition(" ")
        reading.here.kernel, reading.here.command_line = _on_root(path), line.strip()
    elif word in ("initrd", "module"):
        reading.here.ramdisk = _on_root(rest.split()[0])


def _is_kernel(rest: str) -> bool:
    return "vmlinu" in rest.partition(" ")[0]


def _extlinux(line: str, reading: _Reading) -> None:
    word, _, rest = line.replace("\t", " ").partition(" ")
    word, rest = word.lower(), rest.strip()
    if word == "label":
        reading.begin(rest)
    elif word == "default":
        reading.default = rest
    elif reading.here is None or not rest:
        return
    elif word in ("kernel", "linux"):
        reading.here.kernel = _on_root(rest.split()[0])
    elif word == "initrd":
        reading.here.ramdisk = _on_root(rest.split(",")[0])
    elif word == "append":
        words = rest.split()
        for ramdisk in (one for one in words if one.startswith("initrd=")):
            reading.here.ramdisk = _on_root(ramdisk.removeprefix("initrd="))
        reading.here.command_line = " ".join(one for one in words if not one.startswith("initrd="))


_Parser = Callable[[str, _Reading], None]
GRUB2: Final = "GRUB 2"
LEGACY: Final = "GRUB legacy"
EXTLINUX: Final = "extlinux"
_KNOWN: Final[tuple[tuple[str, str, _Parser], ...]] = (
    ("/boot/grub/grub.cfg", GRUB2, _grub2),
    ("/grub/grub.cfg", GRUB2, _grub2),
    ("/boot/grub/menu.lst", LEGACY, _legacy),
    ("/grub/menu.lst", LEGACY, _legacy),
    ("/boot/extlinux/extlinux.conf", EXTLINUX, _extlinux),
    ("/extlinux/extlinux.conf", EXTLINUX, _extlinux),
    ("/extlinux.conf", EXTLINUX, _extlinux),
)
