# SPDX-License-Identifier: GPL-2.0-only
"""How a person names a disk (xl-disk-configuration(5)), and the numbers of its names."""

import pytest

from pyhv.errors import ConfigError
from pyhv.storage.spec import TEMPORARY, DiskSpec, parse, with_vdevs
from pyhv.storage.vdev import disk_name, vdev_number

NBD_URI = "nbd+unix:///export?socket=/run/a,b.sock"


@pytest.mark.parametrize(
    ("text", "spec"),
    [
        ("disk.img", DiskSpec("disk.img")),
        ("disk.img,ro", DiskSpec("disk.img", access="ro")),
        ("disk.img,xvdb,ro", DiskSpec("disk.img", vdev="xvdb", access="ro")),
        ("/dev/vg/guest,raw,xvda,rw", DiskSpec("/dev/vg/guest", "raw", "xvda", "rw")),
        ("/dev/vg/guest,,hda", DiskSpec("/dev/vg/guest", vdev="hda")),
        ("/dev/vg/guest,,xvda,w", DiskSpec("/dev/vg/guest", vdev="xvda", access="rw")),
        (" a.qcow2 , qcow2 , XVDA , R ", DiskSpec("a.qcow2", "qcow2", "xvda", "ro")),
        ("format=raw, vdev=hdc, access=ro, devtype=cdrom, target=/root/image.iso",
         DiskSpec("/root/image.iso", "raw", "hdc", "ro", devtype="cdrom")),
        ("/root/image.iso,hdc,cdrom", DiskSpec("/root/image.iso", vdev="hdc", devtype="cdrom")),
        ("vdev=xvda,access=rw,target=a,ro", DiskSpec("a,ro", vdev="xvda", access="rw")),
        ("target=format=raw", DiskSpec("format=raw")),
        ("FORMAT=QCOW2,Target=x", DiskSpec("x", "qcow2")),
        ("x,vdev=/dev/xvdc", DiskSpec("x", vdev="xvdc")),
        ("x,backendtype=qdisk,direct-io-safe,no-discard,backend=0", DiskSpec("x")),
        ("x,overlay", DiskSpec("x", overlay=TEMPORARY)),
        ("x,overlay=mine.qcow2,ro", DiskSpec("x", access="ro", overlay="mine.qcow2")),
        ("nbd+unix:///?socket=/run/x.sock,xvdb", DiskSpec("nbd+unix:///?socket=/run/x.sock", "nbd", "xvdb")),
        (f"vdev=xvda,target={NBD_URI}", DiskSpec(NBD_URI, "nbd", "xvda")),
        ("/tmp/a=b.img", DiskSpec("/tmp/a=b.img")),
    ],
)  # fmt: skip
def test_what_is_said_is_understood(text: str, spec: DiskSpec) -> None:
    assert parse(text) == spec


def test_a_spec_is_said_as_it_is_read() -> None:
    for text in (
        "x",
        "x,ro",
        "x,qcow2,xvdb1,w",
        "a.iso,cdrom",
        "x,overlay",
        "x,overlay=y",
        f"target={NBD_URI}",
    ):
        spec = parse(text)
        again = parse(str(spec))
        assert again == DiskSpec(
            spec.target, spec.format, spec.vdev, "rw" if spec.may_write else "ro", spec.devtype, spec.overlay
        )


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it names no file"),
        (",raw,xvda", "it names no file"),
        ("x,frob", "'frob' is no format, device, access or flag"),
        ("x,frob=1", "'frob' is no parameter"),
        ("x,raw,qcow2", "format is said twice"),
        ("x,xvda,vdev=xvdb", "vdev is said twice"),
        ("x,vhd", "the format 'vhd' is not among raw, qcow2, nbd; let qemu-nbd serve it"),
        ("x,format=zip", "the format 'zip' is not among raw, qcow2, nbd$"),
        ("x,access=maybe", "access=maybe is neither rw nor ro"),
        ("x,devtype=tape", "devtype=tape is not cdrom"),
        ("x,cdrom,rw", "a CD-ROM cannot be written"),
        ("x,script=block-drbd", "pyhv runs no scripts"),
        ("x,backend=storage", "the back end of all disks is pyhv"),
        ("x,backendtype=magic", "backendtype=magic is none of"),
        ("x,nbd", "format=nbd and a target that begins with"),
        ("nbd+unix:///?socket=a,raw", "format=nbd and a target that begins with"),
        ("x\0y", "no byte 0"),
        ("x,vdev=nvme0", "no name of a virtual disk"),
        ("x,sdq", "beyond what Xen numbers: sd has 16 disks"),
    ],
)
def test_what_cannot_be_is_refused_in_a_sentence(text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why) as caught:
        parse(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "number"),
    [
        ("xvda", 202 << 8), ("xvda1", 202 << 8 | 1), ("xvdp15", 202 << 8 | 15 << 4 | 15),
        ("xvda16", 1 << 28 | 16), ("xvdq", 1 << 28 | 16 << 8), ("xvdaa255", 1 << 28 | 26 << 8 | 255),
        ("sda", 8 << 8), ("sdp15", 8 << 8 | 15 << 4 | 15),
        ("hda", 3 << 8), ("hdb63", 3 << 8 | 1 << 6 | 63), ("hdc", 22 << 8), ("hdd1", 22 << 8 | 1 << 6 | 1),
    ],
)  # fmt: skip
def test_numbers_of_virtual_devices(name: str, number: int) -> None:
    assert vdev_number(name) == number


@pytest.mark.parametrize(
    "name",
            ["", "xvd", "xvda0", "xvda01", "xvdA", "xvda256", "sda16", "sdq", "hde", "hda64",
             "vda", "xvdzzzzz", "xvda\n"]
)  # fmt: skip
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(ConfigError):
        vdev_number(name)


def test_disks_have_names_and_each_its_own_number() -> None:
    names = [disk_name(disk) for disk in range(800)]
    assert names[:2] == ["xvda", "xvdb"]
    assert names[701:703] == ["xvdzz", "xvdaaa"]
    assert len({vdev_number(name) for name in names}) == 800


def test_disks_without_a_name_get_the_first_that_is_free() -> None:
    specs = with_vdevs([parse("a"), parse("b,xvda"), parse("c"), parse("d,sda")])
    assert [spec.vdev for spec in specs] == ["xvdb", "xvda", "xvdc", "sda"]
    with pytest.raises(ConfigError, match="two disks are xvda: a and b"):
        with_vdevs([parse("a,xvda"), parse("b,xvda")])
