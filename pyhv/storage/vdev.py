# SPDX-License-Identifier: GPL-2.0-only
"""Names of virtual block devices - xvda, sdb3, hdc - and the numbers that they have on xenbus.

Source: Xen's xen-vbd-interface(7). In a number, from its low end, are a partition, a disk and a kind:

    1 << 28 | disk << 8 | partition        xvd, disks 0..2^20-1, partitions 0..255, if the next has no room
      202 << 8 | disk << 4 | partition     xvd, disks 0..15, partitions 0..15
        8 << 8 | disk << 4 | partition     sd,  disks 0..15, partitions 0..15
        3 << 8 | disk << 6 | partition     hd,  disks 0..1,  partitions 0..63
       22 << 8 | disk - 2 << 6 | partition hd,  disks 2..3,  partitions 0..63

Partition 0 is the whole disk.
"""

import re
from typing import Final

from pyhv.errors import ConfigError

_NAME: Final = re.compile(
    r"(?P<kind>xvd|sd|hd)(?P<letters>[a-z]{1,5})(?P<partition>[1-9][0-9]{0,3})?", re.ASCII
)
_MOST: Final = {"xvd": (1 << 20, 256), "sd": (16, 16), "hd": (4, 64)}
"""Disks of a kind, and partitions of each."""


def looks_like_vdev(text: str) -> bool:
    """Whether this is how a virtual device is called, possible or not."""
    return _NAME.fullmatch(text) is not None


def vdev_number(name: str) -> int:
    """The number of a virtual device on xenbus; ConfigError.

    >>> vdev_number("xvda"), vdev_number("xvdb2"), vdev_number("sda1"), vdev_number("hdc")
    (51712, 51730, 2049, 5632)
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ConfigError(f"{name!r} is no name of a virtual disk: use xvda, xvdb, ... (or sda ..., hda ...)")
    kind, partition = found["kind"], int(found["partition"] or 0)
    disk = _position(found["letters"])
    disks, partitions = _MOST[kind]
    if disk >= disks or partition >= partitions:
        raise ConfigError(
            f"{name!r} is beyond what Xen numbers: {kind} has {disks} disks with up to {partitions - 1} "
            "partitions"
        )
    if kind == "hd":
        return ((3 << 8) | (disk << 6) if disk < 2 else (22 << 8) | (disk - 2 << 6)) | partition
    if kind == "sd" or (disk < 16 and partition < 16):
        return (8 if kind == "sd" else 202) << 8 | disk << 4 | partition
    return 1 << 28 | disk << 8 | partition


def disk_name(disk: int) -> str:
    """The xvd device of the disk with this number, from 0 on.

    >>> disk_name(0), disk_name(25), disk_name(26)
    ('xvda', 'xvdz', 'xvdaa')
    """
    letters = ""
    left = disk + 1
    while left:
        left, last = divmod(left - 1, 26)
        letters = chr(ord("a") + last) + letters
    return f"xvd{letters}"


def _position(letters: str) -> int:
    """a is 0, z is 25, aa is 26."""
    number = 0
    for letter in letters:
        number = number * 26 + ord(letter) - ord("a") + 1
    return number - 1
