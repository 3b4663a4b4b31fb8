# SPDX-License-Identifier: GPL-2.0-only
"""Xen's pygrub as a judge: of the same disk it finds the same entries, kernel, ramdisk and command line."""

import os
import re
import subprocess
from pathlib import Path

import libxenguest
import pytest
import xenstored
from disk_maker import MIB, blank, ext, run, window

from pyhv.images import disks
from pyhv.volumes.bootconfig import BootEntry, find_configs
from pyhv.volumes.filesystem import open_files

pytestmark = pytest.mark.debian

GRUB_CFG = """\
set default="1"
menuentry 'Debian, one' --class debian {
\tset root='hd0,msdos1'
\tlinux\t/boot/vmlinuz-1 root=/dev/xvda1 ro
\tinitrd\t/boot/initrd-1
}
submenu 'Advanced' {
menuentry "Debian, two" {
\tlinux /vmlinuz root=UUID=6f1d ro quiet
\tinitrd /boot/initrd-2
}
}
"""
EXTLINUX_CONF = """\
default b
label a
kernel /boot/vmlinuz-1
append initrd=/boot/initrd-1 x=1
label b
kernel /vmlinuz
append initrd=/boot/initrd-2 x=1 y
"""


def pygrub(*arguments: str | Path) -> str:
    """The genuine program, of the packages that are taken apart in the cache."""
    libraries = libxenguest.tree() / "usr/lib/xen-4.17/lib/x86_64-linux-gnu"
    done = subprocess.run(
        ["/usr/bin/python3", xenstored.tree() / "usr/lib/xen-4.17/bin/pygrub", *map(str, arguments)],
        env=os.environ | {
            "LD_LIBRARY_PATH": str(libraries), "XEN_FSIMAGE_FSDIR": str(libraries / "xenfsimage"),
            "PYTHONDONTWRITEBYTECODE": "1",
        },
        capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(params=["grub/grub.cfg", "extlinux/extlinux.conf"])
def root(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """A directory with two kernels, a link to one, and a configuration."""
    config = tmp_path / "root" / "boot" / request.param
    config.parent.mkdir(parents=True)
    config.write_text(GRUB_CFG if request.param.startswith("grub") else EXTLINUX_CONF)
    for number in (1, 2):
        (tmp_path / "root" / "boot" / f"vmlinuz-{number}").write_bytes(b"kernel %d" % number * 70_000)
        (tmp_path / "root" / "boot" / f"initrd-{number}").write_bytes(b"ramdisk %d" % number * 9_000)
    (tmp_path / "root" / "vmlinuz").symlink_to("boot/vmlinuz-2")
    return tmp_path / "root"


@pytest.fixture(params=["whole", "MBR", "GPT"])
def disk(request: pytest.FixtureRequest, root: Path, tmp_path: Path) -> tuple[Path, int]:
    """A disk with these files, and where their file system begins."""
    path = tmp_path / "disk"
    if request.param == "whole":
        return ext(path, 32 * MIB, root, "-t", "ext4"), 0
    script = f"label: {'dos' if request.param == 'MBR' else 'gpt'}\nstart=2048,size=65536,bootable\n"
    run("sfdisk", "-q", blank(path, 40 * MIB), text=script)
    return ext(path, 32 * MIB, root, "-t", "ext4", start=MIB), MIB


def listed(text: str) -> list[BootEntry]:
    """The entries as pygrub lists them."""
    found = []
    for block in re.split(r"(?m)^title: ", text)[1:]:
        fields = dict(line.strip().partition(": ")[::2] for line in block.splitlines()[1:])
        words = [fields.get(key, "None").replace("None", "") for key in ("kernel", "initrd", "args")]
        found.append(BootEntry(block.splitlines()[0], *words))
    return found


def test_the_same_entries(disk: tuple[Path, int]) -> None:
    path, start = disk
    part = window(path).part("part", start, 32 * MIB)
    ours = list(find_configs(open_files(part))[0].entries)
    theirs = listed(pygrub("-l", path))
    assert len(theirs) == 2
    assert [(one.title, one.kernel, one.ramdisk) for one in ours] == [
        (one.title, one.kernel, one.ramdisk) for one in theirs
    ]
    assert [one.command_line.split() for one in ours] == [one.command_line.split() for one in theirs]


@pytest.mark.parametrize("root", ["grub/grub.cfg"], indirect=True)
def test_the_same_kernel(disk: tuple[Path, int], tmp_path: Path) -> None:
    told = pygrub("-q", "--output-format=simple", f"--output-directory={tmp_path}", disk[0])
    theirs = dict(line.split(" ", 1) for line in told.splitlines() if line)
    ours = disks.installed_kernel(disk[0])
    assert ours.kernel == Path(theirs["kernel"]).read_bytes()
    assert ours.ramdisk == Path(theirs["ramdisk"]).read_bytes()
    assert ours.command_line.split() == theirs["args"].split()
