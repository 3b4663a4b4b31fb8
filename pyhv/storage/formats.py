# SPDX-License-Identifier: GPL-2.0-only
"""Which format a file has, by its first bytes, and what follows when nobody has said it.

A raw image has no mark of its own: whatever its guest writes into its first sector is what the file begins
with. A hostile guest writes what an image with a base begins with, and at the next start its disk would be a
view of any file of the host. So a person says `format=raw`, and no byte of the image is asked; or nobody
does, the first bytes decide, and as long as that disk is open its guest cannot write a beginning that would
decide otherwise (`RawDisk`).
"""

from typing import Final

RAW: Final = "raw"
QCOW2: Final = "qcow2"
NBD: Final = "nbd"
HEAD: Final = 512
"""Bytes that `detect` looks at."""
_MARKS: Final = (
    (0, b"QFI\xfb\0\0\0\1", "qcow"),
    (0, b"QFI\xfb", QCOW2),
    (0, b"KDMV", "vmdk"),
    (0, b"COWD", "vmdk"),
    (0, b"# Disk DescriptorFile", "vmdk"),
    (0, b"vhdxfile", "vhdx"),
    (0, b"conectix", "vhd"),
    (0, b"QED\0", "qed"),
    (0, b"WithoutFreeSpace", "parallels"),
    (0, b"WithouFreSpacExt", "parallels"),
    (64, b"\x7f\x10\xda\xbe", "vdi"),
)


def detect(head: bytes) -> str:
    """The format whose images begin like this; `raw` if it is none that is known."""
    for offset, mark, name in _MARKS:
        if head[offset : offset + len(mark)] == mark:
            return name
    return RAW
