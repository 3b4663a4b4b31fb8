# SPDX-License-Identifier: GPL-2.0-only
"""What is on a disk, in words, and what of it boots."""

from pathlib import Path

import pytest
from disk_maker import MIB, UUID, blank, ext, run, window
from elf_maker import BOOTABLE, bzimage, kernel

from pyhv.images import disks
from pyhv.images.survey import describe_disk, header_of, survey
from pyhv.loader.describe import Description

GRUB_CFG = (
    "set default=0\nmenuentry 'ours' {\n\tlinux /boot/vmlinuz root=/dev/xvda1 ro\n\tinitrd /boot/initrd\n}\n"
)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A directory with a kernel that boots and one that does not, and a grub.cfg."""
    boot = tmp_path / "root" / "boot"
    (boot / "grub").mkdir(parents=True)
    (boot / "vmlinuz").write_bytes(kernel(BOOTABLE))
    (boot / "vmlinuz-other").write_bytes(kernel(b""))
    (boot / "vmlinuz-none").write_text("no kernel")
    (boot / "initrd").write_bytes(b"the ramdisk")
    (boot / "grub" / "grub.cfg").write_text(GRUB_CFG)
    return tmp_path / "root"


def told(path: Path) -> dict[str, dict[str, str]]:
    found: Description = describe_disk(survey(window(path)), "disk.img", "raw")
    return {title: dict(rows) for title, rows in found}


def test_a_whole_disk(root: Path, tmp_path: Path) -> None:
    found = told(ext(tmp_path / "disk", 16 * MIB, root, "-t", "ext4", "-L", "root"))
    assert list(found) == [
        "Disk", "File systems", "GRUB 2: xvda:/boot/grub/grub.cfg", "Kernels on xvda", "Can it boot?",
    ]  # fmt: skip
    assert found["Disk"] == {"file": "disk.img", "format": "raw", "size": "16.0 MiB"}
    assert found["File systems"]["xvda"] == f"ext4, label 'root', UUID {UUID}, 16.0 MiB, blocks of 1024"
    assert "metadata_csum" in found["File systems"]["features"]
    assert found["GRUB 2: xvda:/boot/grub/grub.cfg"] == {
        "default": "ours", "kernel": "/boot/vmlinuz root=/dev/xvda1 ro", "ramdisk": "/boot/initrd",
    }  # fmt: skip
    kernels = found["Kernels on xvda"]
    assert kernels["/boot/vmlinuz"].endswith(": boots")
    assert "does not boot: it carries no Xen notes" in kernels["/boot/vmlinuz-other"]
    assert "does not boot: " in kernels["/boot/vmlinuz-none"]
    assert found["Can it boot?"] == {"yes": "by PV-GRUB, which starts 'ours' of xvda:/boot/grub/grub.cfg"}


def partitioned(root: Path, tmp_path: Path) -> Path:
    """An MBR with swap, and ext4 in a logical partition."""
    path = blank(tmp_path / "disk", 40 * MIB)
    run("sfdisk", "-q", path, text="label: dos\n,4M,S\n,,E\n,20M,L\n")
    start = survey(window(path)).volumes[2].part
    assert start.name == "xvda5"
    ext(path, 20 * MIB, root, "-t", "ext4", start=6 * MIB)
    return path


def test_partitions(root: Path, tmp_path: Path) -> None:
    path = partitioned(root, tmp_path)
    found = told(path)
    assert list(found["Partitions (MBR)"]) == ["xvda1", "xvda2", "xvda5"]
    assert found["File systems"]["xvda5"].startswith("ext4")
    assert found["Can it boot?"]["yes"].endswith("of xvda5:/boot/grub/grub.cfg")
    assert disks.is_disk(path)


@pytest.mark.parametrize(
    ("name", "content", "verdict"),
    [
        ("boot/grub/grub.cfg", "menuentry x {\nlinux /none\n}", ("no", "/none, which")),
        ("boot/grub/grub.cfg", "menuentry x {\nlinux /boot/vmlinuz-other\n}", ("no", "no Xen notes")),
        ("boot/grub/grub.cfg", "menuentry x {\nlinux $somewhere/vmlinuz\n}", ("perhaps", "only GRUB")),
        ("boot/grub/grub.cfg", "menuentry x {\n}", ("no", "--kernel VMLINUZ")),
        ("boot/grub/menu.lst", "title x\nkernel /boot/vmlinuz", ("no", "here is only xvda:/boot/grub/menu")),
    ],
)
def test_what_does_not_boot(
    root: Path, tmp_path: Path, name: str, content: str, verdict: tuple[str, str]
) -> None:
    (root / "boot" / "grub" / "grub.cfg").unlink()
    (root / name).write_text(content)
    found = told(ext(tmp_path / "disk", 16 * MIB, root, "-t", "ext4"))["Can it boot?"]
    assert verdict[1] in found[verdict[0]]


def test_other_file_systems_are_known_by_name(tmp_path: Path) -> None:
    path = blank(tmp_path / "swap", 4 * MIB)
    run("mkswap", "-q", "-L", "name", "-U", UUID, path)
    assert told(path)["File systems"]["xvda"] == f"swap, label 'name', UUID {UUID}, 4.0 MiB, blocks of 4096"
    btrfs = bytearray(MIB)
    btrfs[0x10040:0x10048] = b"_BHRfS_M"
    (tmp_path / "btrfs").write_bytes(btrfs)
    assert "pyhv does not" in told(tmp_path / "btrfs")["Can it boot?"]["perhaps"]


def test_the_kernel_that_grub_would_start(root: Path, tmp_path: Path) -> None:
    found = disks.installed_kernel(partitioned(root, tmp_path))
    assert found.title == "ours"
    assert found.kernel == (root / "boot" / "vmlinuz").read_bytes()
    assert found.ramdisk == b"the ramdisk"
    assert found.command_line == "root=/dev/xvda1 ro"


def test_files_that_are_no_disks(root: Path, tmp_path: Path) -> None:
    big = (root / "boot" / "vmlinuz").read_bytes().ljust(MIB, b"\0")
    (tmp_path / "elf").write_bytes(big)
    (tmp_path / "bzimage").write_bytes(bytes(510) + b"\x55\xaa\xeb\x66HdrS" + bytes(MIB))
    (tmp_path / "zeros").write_bytes(bytes(MIB))
    (tmp_path / "small").write_bytes(b"QFI\xfb")
    for name in ("elf", "bzimage", "zeros", "small", "none", "root"):
        assert not disks.is_disk(tmp_path / name), name
    (tmp_path / "qcow2").write_bytes(b"QFI\xfb" + bytes(MIB))
    assert disks.is_disk(tmp_path / "qcow2")


@pytest.mark.parametrize(
    ("packed", "suits"), [("xz", True), ("gzip", True), ("zstd", False), ("lz4", False), (None, True)]
)
def test_a_kernel_s_header_without_unpacking_it(packed: str | None, suits: bool) -> None:
    magic = {
        "xz": b"\xfd7zXZ\0",
        "gzip": b"\x1f\x8b",
        "zstd": b"\x28\xb5\x2f\xfd",
        "lz4": b"\x02\x21\x4c\x18",
    }
    data = bytearray(bzimage(magic.get(packed or "", b"\x7fELF").ljust(64, b"\0")))
    found = header_of(bytes(data))
    assert (found.packed, found.suits_grub) == (packed, suits)
    data[0x236] = 0x3F
    assert header_of(bytes(data)).width == 64
    data[0x236] = 0
    assert header_of(bytes(data)).width == 32


def test_headers_of_other_kernels() -> None:
    assert header_of(b"\x7fELF\x01").width == 32
    assert header_of(b"\x7fELF\x02").width == 64
    assert header_of(b"").width == 64
    assert header_of(bytes(0x202) + b"HdrS").packed is None
