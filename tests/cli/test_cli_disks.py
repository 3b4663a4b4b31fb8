# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv inspect` of disks."""

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from disk_maker import MIB, blank, ext, run
from elf_maker import kernel

from pyhv.cli.main import main
from pyhv.errors import ExitCode

GRUB_CFG = "menuentry 'ours' {\n\tlinux /vmlinuz root=/dev/xvda ro\n}\n"


def inspect(path: Path) -> Result:
    return CliRunner().invoke(main, ["inspect", str(path)])


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    """A disk with a kernel that boots."""
    root = tmp_path / "root"
    (root / "boot" / "grub").mkdir(parents=True)
    (root / "vmlinuz").write_bytes(kernel())
    (root / "boot" / "grub" / "grub.cfg").write_text(GRUB_CFG)
    return ext(tmp_path / "disk.img", 16 * MIB, root, "-t", "ext4", "-L", "\x1b[31mred")


def test_a_disk_that_boots(disk: Path) -> None:
    result = inspect(disk)
    assert result.exit_code == ExitCode.OK, result.output
    assert "by PV-GRUB, which starts 'ours' of xvda:/boot/grub/grub.cfg" in result.stdout
    assert "\x1b" not in result.stdout
    assert "\\x1b[31mred" in result.stdout


def test_the_same_in_qcow2(disk: Path, tmp_path: Path) -> None:
    plain = inspect(disk).stdout.splitlines()
    run("qemu-img", "convert", "-O", "qcow2", disk, tmp_path / "base.qcow2")
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "qcow2", "-b", tmp_path / "base.qcow2",
        tmp_path / "top.qcow2")  # fmt: skip
    result = inspect(tmp_path / "top.qcow2")
    assert result.exit_code == ExitCode.OK, result.output
    assert result.stdout.splitlines()[2].split() == ["format", "qcow2,", "of", "2", "files"]
    assert result.stdout.splitlines()[3:] == plain[3:]


def test_a_disk_without_a_kernel(tmp_path: Path) -> None:
    result = inspect(ext(tmp_path / "disk", 4 * MIB, None, "-t", "ext2"))
    assert result.exit_code == ExitCode.ENVIRONMENT
    assert "there is no /boot/grub/grub.cfg on it" in result.stdout
    assert result.stderr == ""


def test_a_damaged_gpt_is_told(tmp_path: Path) -> None:
    path = blank(tmp_path / "disk", 4 * MIB)
    run("sfdisk", "-q", path, text="label: gpt\n,2M,L\n")
    with path.open("r+b") as file:
        for at in (512 + 20, 4 * MIB - 512 + 20):
            file.seek(at)
            file.write(b"damage")
    result = inspect(path)
    assert result.exit_code == ExitCode.ENVIRONMENT
    assert "its checksum is wrong" in result.stdout


def test_a_damaged_image_is_told_in_one_sentence(disk: Path, tmp_path: Path) -> None:
    run("qemu-img", "convert", "-O", "qcow2", disk, tmp_path / "disk.qcow2")
    (tmp_path / "short.qcow2").write_bytes((tmp_path / "disk.qcow2").read_bytes()[: 1 << 16])
    result = inspect(tmp_path / "short.qcow2")
    assert result.exit_code == ExitCode.ENVIRONMENT
    assert result.stderr.startswith("pyhv: ")
    assert result.stderr.count("\n") == 1
