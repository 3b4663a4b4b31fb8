# SPDX-License-Identifier: GPL-2.0-only
"""From a disk to what boots it: PV-GRUB of the right width, or the kernel itself if that cannot unpack it."""

from pathlib import Path

import pytest
from disk_maker import MIB, ext
from elf_maker import bzimage, kernel

from pyhv.errors import ImageError
from pyhv.images import disks, kernels
from pyhv.images.progress import SilentProgress
from pyhv.images.source import DISK_MIB, Source, directly, resolve
from pyhv.loader.origin import Origin

GRUB_CFG = "menuentry 'ours' {\n\tlinux /vmlinuz root=/dev/xvda ro\n\tinitrd /initrd\n}\n"
ZSTD = b"\x28\xb5\x2f\xfd"


def disk(tmp_path: Path, image: bytes, config: str = GRUB_CFG) -> Path:
    """A disk with that as its kernel."""
    root = tmp_path / "root"
    (root / "boot" / "grub").mkdir(parents=True)
    (root / "vmlinuz").write_bytes(image)
    (root / "initrd").write_bytes(b"the ramdisk")
    (root / "boot" / "grub" / "grub.cfg").write_text(config)
    return ext(tmp_path / "server.img", 16 * MIB, root, "-t", "ext4")


@pytest.fixture
def grub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A stand-in for what Debian packages: which of them were wanted."""
    wanted: list[str] = []
    (tmp_path / "grub").write_bytes(kernel())

    def ensure(name: str, _packaged: object, _progress: object, *, update: bool = False) -> object:
        wanted.append(name)
        return kernels.PackagedFile(tmp_path / "grub", "grub 2.06")

    monkeypatch.setattr(kernels, "ensure", ensure)
    return wanted


def bz(width: int, packed: bytes) -> bytes:
    data = bytearray(bzimage(packed.ljust(64, b"\0")))
    data[0x236] = width == 64
    return bytes(data)


@pytest.mark.parametrize(
    ("image", "loader"),
    [
        (bz(64, b"\xfd7zXZ\0"), "pv-grub"),
        (bz(32, b"\xfd7zXZ\0"), "pv-grub-32"),
        (bz(64, b"\x1f\x8b"), "pv-grub"),
        (kernel(), "pv-grub"),
        (bz(64, ZSTD), None),
        (b"nobody knows", "pv-grub"),
    ],
    ids=["xz", "xz-32", "gzip", "ELF", "zstd", "unknown"],
)
def test_the_loader_for_a_kernel(tmp_path: Path, image: bytes, loader: str | None) -> None:
    assert disks.loader_for(disk(tmp_path, image)) == loader


@pytest.mark.parametrize("config", ["", "menuentry x {\nlinux /none\n}", "menuentry x {\nlinux $a/b\n}"])
def test_without_a_kernel_pv_grub_shows_its_prompt(tmp_path: Path, config: str) -> None:
    assert disks.loader_for(disk(tmp_path, b"", config)) == "pv-grub"


def test_a_disk_is_booted_by_pv_grub(tmp_path: Path, grub: list[str]) -> None:
    path = disk(tmp_path, bz(64, b"\xfd7zXZ\0"))
    found = resolve(str(path), SilentProgress)
    assert grub == ["pv-grub"]
    assert (found.name, found.disk, found.memory) == ("server", path, DISK_MIB)
    assert found.origin == Origin("pv-grub")
    assert (found.ramdisk, found.command_line) == (None, "")


def test_a_kernel_that_pv_grub_cannot_unpack_is_started_at_once(tmp_path: Path, grub: list[str]) -> None:
    with pytest.raises(ImageError, match="ours"):  # a zstd frame with nothing in it
        resolve(str(disk(tmp_path, bz(64, ZSTD))), SilentProgress)
    assert grub == []


def started(found: Source) -> tuple[bytes | None, str, int]:
    return None if found.ramdisk is None else found.ramdisk.data, found.command_line, found.memory


def test_the_kernel_on_it_without_pv_grub(tmp_path: Path) -> None:
    path = disk(tmp_path, kernel())
    found = directly(path)
    assert started(found) == (b"the ramdisk", "root=/dev/xvda ro", DISK_MIB)
    assert (found.name, found.disk) == ("server", path)
    assert found.origin == Origin()


def test_a_kernel_from_outside(tmp_path: Path) -> None:
    path = disk(tmp_path, b"")
    (tmp_path / "mine").write_bytes(kernel())
    found = directly(path, tmp_path / "mine")
    assert started(found) == (None, "", DISK_MIB)
    assert found.origin == Origin(str(tmp_path / "mine"))
    assert found.disk == path


def test_there_has_to_be_a_kernel(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"no /boot/grub/grub\.cfg on it that names a kernel"):
        directly(disk(tmp_path, b"", ""))


def test_an_image_in_the_cache_by_its_name(
    tmp_path: Path, grub: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    images = tmp_path / "cache" / "pyhv" / "images"
    images.mkdir(parents=True)
    disk(tmp_path, kernel()).rename(images / "mine.img")
    assert resolve("mine", SilentProgress).disk == images / "mine.img"
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine").write_bytes(kernel())
    assert resolve("mine", SilentProgress).disk is None  # a file of that name comes first
