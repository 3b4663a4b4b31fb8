# SPDX-License-Identifier: GPL-2.0-only
"""How a person names a disk: the syntax of xl-disk-configuration(5), and its short forms.

    format=qcow2,vdev=xvda,access=rw,target=PATH      by names; PATH goes on to the end, commas and all
    PATH,qcow2,xvda,rw                                by position, with nothing where nothing is meant
    PATH    PATH,ro    PATH,xvdb,ro                   short: each word says itself what it is

Spaces around parts do not count, nor does the case of names. Of what xl knows besides, `devtype=cdrom`
(or `cdrom`) makes a CD-ROM, `backendtype=`, `direct-io-safe`, `discard` and `no-discard` are taken and change
nothing, and what would need another domain or a script of Xen's host is refused. Two parameters are pyhv's
own: `overlay` gives the guest a writable layer that is thrown away, `overlay=FILE` one that is kept.
"""

import re
from collections.abc import Iterable
from dataclasses import replace
from typing import Final

from pyhv.errors import ConfigError
from pyhv.frozen import frozen
from pyhv.storage.formats import NBD, QCOW2, RAW
from pyhv.storage.vdev import disk_name, looks_like_vdev, vdev_number

TEMPORARY: Final = ""
"""As a disk's overlay: one that is thrown away."""
FORMATS: Final = (RAW, QCOW2, NBD)
_KNOWN_TO_XL: Final = ("qcow", "vhd", "vdi", "vmdk", "qed")
_ACCESS: Final = {"rw": "rw", "w": "rw", "ro": "ro", "r": "ro"}
_HARMLESS: Final = {"backendtype", "direct-io-safe", "discard", "no-discard"}
"""What changes nothing here: there is one back end, and it discards what a guest discards."""
_BACKENDS: Final = ("phy", "tap", "qdisk", "standalone")
_NAMED: Final = re.compile(r"\s*(?P<key>[A-Za-z][A-Za-z-]*)\s*=\s*(?P<value>.*)", re.DOTALL)
_URI: Final = "nbd+unix:"


@frozen
class DiskSpec:
    """A disk as a person wants it."""

    target: str
    """A path, or `nbd+unix:///EXPORT?socket=PATH`."""
    format: str | None = None
    """One of FORMATS; None: by the first bytes."""
    vdev: str | None = None
    """Its name for the guest; None: the first that is free."""
    access: str | None = None
    """`rw` or `ro`: whether the guest may write; None: unsaid, which is `rw`, but `ro` for a CD-ROM."""
    devtype: str = "disk"
    """`disk` or `cdrom`."""
    overlay: str | None = None
    """A file for what the guest writes, or TEMPORARY; None: into the target."""

    @property
    def may_write(self) -> bool:
        """Whether the guest finds a disk that it can write."""
        return self.access == "rw" or (self.access is None and not self.cdrom)

    @property
    def cdrom(self) -> bool:
        """Whether the guest finds a CD-ROM."""
        return self.devtype == "cdrom"

    def __str__(self) -> str:
        parts = [
            f"format={self.format}" if self.format else "",
            f"vdev={self.vdev}" if self.vdev else "",
            f"access={'rw' if self.may_write else 'ro'}",
            "devtype=cdrom" if self.cdrom else "",
            "" if self.overlay is None else f"overlay={self.overlay}" if self.overlay else "overlay",
            f"target={self.target}",
        ]
        return ",".join(part for part in parts if part)


def parse(text: str) -> DiskSpec:
    """A disk of what was written; ConfigError says what cannot be understood.

    >>> parse("debian.img,ro")
    DiskSpec(target='debian.img', format=None, vdev=None, access='ro', devtype='disk', overlay=None)
    >>> str(parse("format=qcow2, vdev=xvda, access=rw, target=a disk, with a comma.qcow2"))
    'format=qcow2,vdev=xvda,access=rw,target=a disk, with a comma.qcow2'
    """
    said = _Said(text)
    rest: str | None = text
    first = True
    while rest is not None:
        named = _NAMED.match(rest)
        if named is not None and named["key"].lower() == "target":  # all that is left, as in xl
            said.take("target", named["value"].strip())
            break
        word, comma, after = rest.partition(",")
        said.part(word.strip(), first=first)
        first = False
        rest = after if comma else None
    return said.spec()


def with_vdevs(specs: Iterable[DiskSpec]) -> list[DiskSpec]:
    """All disks of a guest with a device's name each, those without one in order; ConfigError: one twice."""
    wanted = list(specs)
    taken: dict[int, str] = {}
    for spec in wanted:
        if spec.vdev is not None:
            number = vdev_number(spec.vdev)
            if number in taken:
                raise ConfigError(f"two disks are {spec.vdev}: {taken[number]} and {spec.target}")
            taken[number] = spec.target
    found = []
    disk = 0
    for spec in wanted:
        if spec.vdev is None:
            while vdev_number(disk_name(disk)) in taken:
                disk += 1
            spec = replace(spec, vdev=disk_name(disk))
            taken[vdev_number(disk_name(disk))] = spec.target
        found.append(spec)
    return found


class _Said:
    """What has been said of a disk so far."""

    def __init__(self, text: str) -> None:
        self._text = text
        self._found: dict[str, str] = {}

    def part(self, word: str, *, first: bool) -> None:
        """One of the parts between commas."""
        named = _NAMED.fullmatch(word)
        if named is not None and "/" not in word.partition("=")[0]:
            self.take(named["key"].lower(), named["value"].strip())
        elif first:
            if word:
                self.take("target", word)
        elif word:
            self._self_explaining(word)

    def _self_explaining(self, word: str) -> None:
        lower = word.lower()
        if lower in FORMATS or lower in _KNOWN_TO_XL:
            self.take("format", lower)
        elif lower in _ACCESS:
            self.take("access", lower)
        elif lower == "cdrom":
            self.take("devtype", lower)
        elif lower == "overlay":
            self.take("overlay", TEMPORARY)
        elif looks_like_vdev(lower):
            self.take("vdev", lower)
        elif lower not in _HARMLESS:
            raise self._refused(
                f"{word!r} is no format, device, access or flag (a path with a comma comes last, behind "
                "target=)"
            )

    def take(self, key: str, value: str) -> None:
        """A parameter with a name."""
        if key == "backend" and value.lower() not in ("", "0", "domain-0"):
            raise self._refused(f"the back end of all disks is pyhv itself, and not {value!r}")
        if key == "backendtype" and value.lower() not in _BACKENDS:
            raise self._refused(f"backendtype={value} is none of {', '.join(_BACKENDS)}")
        if key == "script":
            raise self._refused("pyhv runs no scripts for disks: open the device first and give its path")
        if key in _HARMLESS or key == "backend":
            return
        if key not in ("target", "format", "vdev", "access", "devtype", "overlay"):
            raise self._refused(f"{key!r} is no parameter of a disk (a path with = comes behind target=)")
        if key in self._found:
            raise self._refused(f"{key} is said twice")
        self._found[key] = value

    def spec(self) -> DiskSpec:
        """All of it, if it fits."""
        found = self._found
        target = found.get("target", "")
        if not target:
            raise self._refused("it names no file: write PATH or target=PATH")
        if "\0" in target:
            raise self._refused("a path has no byte 0")
        form = found.get("format", "").lower() or (NBD if target.startswith(_URI) else None)
        vdev = found.get("vdev", "").lower().removeprefix("/dev/") or None
        if vdev is not None:
            vdev_number(vdev)
        access = found.get("access", "").lower()
        if access and access not in _ACCESS:
            raise self._refused(f"access={access} is neither rw nor ro")
        devtype = found.get("devtype", "").lower() or "disk"
        if devtype not in ("disk", "cdrom"):
            raise self._refused(f"devtype={devtype} is not cdrom")
        self._check_format(form, target)
        if devtype == "cdrom" and _ACCESS.get(access) == "rw":
            raise self._refused("a CD-ROM cannot be written: leave access=rw out")
        return DiskSpec(target, form, vdev, _ACCESS.get(access), devtype, found.get("overlay"))

    def _check_format(self, form: str | None, target: str) -> None:
        if form is not None and form not in FORMATS:
            more = (
                "; let qemu-nbd serve it, and give nbd+unix:///?socket=PATH" if form in _KNOWN_TO_XL else ""
            )
            raise self._refused(f"the format {form!r} is not among {', '.join(FORMATS)}{more}")
        if (form == NBD) != target.startswith(_URI):
            raise self._refused(f"format=nbd and a target that begins with {_URI} go together")

    def _refused(self, why: str) -> ConfigError:
        return ConfigError(f"the disk {self._text!r} cannot be understood: {why}")
