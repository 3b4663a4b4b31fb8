# SPDX-License-Identifier: GPL-2.0-only
"""Images as a whole: checked as QEMU checks them, converted and committed as QEMU does it."""

import errno
import json
import os
from pathlib import Path

import pytest
from disk_images import MIB, filled, make, on, set_at
from qemu_tools import checked, contents, qemu_img, qemu_io

from pyhv.errors import ConfigError
from pyhv.storage import images
from pyhv.storage.disk import DiskError
from pyhv.storage.images import check, commit, convert, create_image
from pyhv.storage.open import open_image
from pyhv.storage.spec import DiskSpec

KIB = 1 << 10


@pytest.fixture
def image(tmp_path: Path) -> Path:
    return filled(tmp_path / "disk.qcow2")


# -- check ---------------------------------------------------------------------------------------------------


def test_a_sound_image(image: Path, tmp_path: Path) -> None:
    found = check(image)
    assert (found.format, found.size, found.base, found.errors, found.leaks) == ("qcow2", MIB, None, 0, 0)
    assert found.sound
    assert found.allocated == image.stat().st_blocks * 512
    (tmp_path / "raw").write_bytes(bytes(700))
    assert (check(tmp_path / "raw").format, check(tmp_path / "raw").size) == ("raw", 1024)
    create_image(tmp_path / "over", base=image)
    over = check(tmp_path / "over")
    assert (over.base, over.base_format, over.size) == (str(image), "qcow2", MIB)
    with open_image(image, "qcow2", writable=True), pytest.raises(DiskError, match="is being written"):
        check(image)


def blocks_of(path: Path) -> tuple[int, int, int]:
    """Where L1, the first L2 and the first refcount block are."""
    raw = path.read_bytes()

    def number(at: int) -> int:
        return int.from_bytes(raw[at : at + 8], "big") & 0xFF_FFFF_FFFF_FE00

    return number(40), number(number(40)), number(number(48))


def test_what_qemu_calls_errors_and_leaks_is_called_so(image: Path) -> None:
    """Each kind of damage, with the same number of each."""
    l1, l2, counts = blocks_of(image)
    whole = image.read_bytes()
    entry = int.from_bytes(whole[l2 + 8 : l2 + 16], "big")
    damages: list[list[tuple[int, str, int]]] = [
        [(counts + 2 * 5, ">H", 0)],
        [(counts + 2 * 6, ">H", 7)],
        [(counts + 2 * 40, ">H", 1), (counts + 2 * 41, ">H", 1)],
        [(l2 + 8, ">Q", 0)],
        [(l2 + 16, ">Q", entry)],
        [(l2 + 8, ">Q", entry & ~(1 << 63))],
        [(l2 + 8, ">Q", entry | 1)],
        [(l1, ">Q", 0)],
        [(l2 + 24, ">Q", 1 << 63 | 1 << 40)],
    ]
    for damage in damages:
        image.write_bytes(whole)
        for at, form, value in damage:
            set_at(image, at, form, value)
        said = json.loads(qemu_img("check", "--output=json", "-f", "qcow2", image, ok=(0, 1, 2, 3)))
        found = check(image)
        assert bool(found.errors) == bool(said.get("corruptions", 0) + said["check-errors"]), (
            damage,
            said,
            found,
        )
        if not found.errors:
            assert found.leaks == said.get("leaks", 0), (damage, said, found)
        assert len(found.told) == found.errors


@pytest.mark.parametrize("bits", [9, 16])
@pytest.mark.parametrize("refcount_bits", [1, 4, 16, 64])
def test_images_of_qemu_are_sound(tmp_path: Path, bits: int, refcount_bits: int) -> None:
    path = tmp_path / "q"
    options = f"cluster_size={1 << bits},refcount_bits={refcount_bits}"
    qemu_img("create", "-q", "-f", "qcow2", "-o", options, path, "3M")
    qemu_io(path, "write 5k 1M", "write -z 2M 64k", "discard 64k 64k", options=("-f", "qcow2"))
    found = check(path)
    assert (found.errors, found.leaks, found.told) == (0, 0, ())
    if refcount_bits > 4:
        compressed = tmp_path / "c"
        qemu_img("convert", "-c", "-f", "qcow2", "-O", "qcow2", "-o", options, path, compressed)
        found = check(compressed)
        assert (found.errors, found.leaks, found.told) == (0, 0, ())


def test_what_cannot_be_checked(tmp_path: Path) -> None:
    path = tmp_path / "q"
    qemu_img("create", "-q", "-f", "qcow2", path, "1M")
    qemu_img("snapshot", "-c", "one", path)
    with pytest.raises(DiskError, match="use qemu-img check"):
        check(path)
    path.write_bytes(b"KDMV".ljust(512, b"\0"))
    with pytest.raises(DiskError, match="format vmdk"):
        check(path)


def test_an_image_that_must_not_be_written_says_why(image: Path) -> None:
    set_at(image, 72, ">Q", 1)
    assert check(image).told == ("was not closed by who wrote it last: qemu-img check -r all repairs it",)


# -- making and converting ----------------------------------------------------------------------------------


def test_new_images(tmp_path: Path) -> None:
    create_image(tmp_path / "raw", 1000, "raw")
    assert (tmp_path / "raw").read_bytes() == bytes(1024)
    create_image(tmp_path / "q", 5 * MIB)
    checked(tmp_path / "q")
    with pytest.raises(DiskError, match="there is such a file already"):
        create_image(tmp_path / "q", MIB)
    for how in ({"form": "vmdk", "size": 5}, {"form": "raw", "base": "q"}, {"size": None}, {"size": 0}):
        with pytest.raises(ConfigError):
            create_image(tmp_path / "no", **how)
    with pytest.raises(DiskError, match="there is no such file"):
        create_image(tmp_path / "no", base=tmp_path / "gone")
    assert sorted(os.listdir(tmp_path)) == ["q", "raw"]


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_converted_images_are_those_of_qemu(image: Path, tmp_path: Path, form: str) -> None:
    create_image(tmp_path / "over", 3 * MIB, base=image)
    with open_image(tmp_path / "over", "qcow2", writable=True) as disk:
        disk.write(2 * MIB + 5, b"over")
        disk.zero(128 * KIB, 64 * KIB)
    seen: list[tuple[int, int]] = []
    convert(DiskSpec(str(tmp_path / "over")), tmp_path / "made", form, lambda *done: seen.append(done))
    assert seen[-1] == (3 * MIB, 3 * MIB)
    assert seen == sorted(seen)
    qemu_img("compare", "-f", "qcow2", "-F", form, tmp_path / "over", tmp_path / "made")
    assert (tmp_path / "made").stat().st_blocks * 512 < MIB
    if form == "qcow2":
        checked(tmp_path / "made")
    with pytest.raises(DiskError, match="there is such a file already"):
        convert(DiskSpec(str(image)), tmp_path / "made", form)
    assert sorted(os.listdir(tmp_path)) == ["disk.qcow2", "made", "over"]


def test_a_conversion_that_fails_leaves_nothing(
    image: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise DiskError("no", errno.ENOSPC)

    monkeypatch.setattr(images, "_copy", fail)
    with pytest.raises(DiskError, match=r"^no$"):
        convert(DiskSpec(str(image)), tmp_path / "made")
    assert os.listdir(tmp_path) == ["disk.qcow2"]
    open_image(image, "qcow2", writable=True).close()


# -- overlays into bases ------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_committed_overlay_is_in_its_base_as_by_qemu(tmp_path: Path, form: str) -> None:
    base, twin = tmp_path / "base", tmp_path / "twin"
    create_image(base, 2 * MIB, form)
    with open_image(base, form, writable=True) as disk:
        disk.write(0, b"base" * 100_000)
    create_image(tmp_path / "over", base=base, base_format=form)
    with open_image(tmp_path / "over", "qcow2", writable=True) as disk:
        disk.write(100_000, b"over" * 50_000)
        disk.zero(64 * KIB, 64 * KIB)
        disk.write(2 * MIB - 1, b"!")
        expected = disk.read(0, 2 * MIB)
    twin.write_bytes(base.read_bytes())
    (tmp_path / "over-twin").write_bytes((tmp_path / "over").read_bytes())
    assert commit(tmp_path / "over") == str(base)
    with open_image(base, form, writable=False) as disk:
        assert disk.read(0, 2 * MIB) == expected
    with open_image(tmp_path / "over", "qcow2", writable=False) as disk:
        assert disk.read(0, 2 * MIB) == expected
    if form == "qcow2":
        checked(base)
    qemu_img("rebase", "-u", "-F", form, "-b", twin, tmp_path / "over-twin")
    qemu_img("commit", "-q", "-f", "qcow2", tmp_path / "over-twin")
    assert contents(twin, tmp_path, form) == expected


def test_our_overlays_are_committed_by_qemu(image: Path, tmp_path: Path) -> None:
    create_image(tmp_path / "over", base=image)
    with open_image(tmp_path / "over", "qcow2", writable=True) as disk:
        disk.write(5, b"x" * 200_000)
        expected = disk.read(0, MIB)
    qemu_img("commit", "-q", "-f", "qcow2", tmp_path / "over")
    with open_image(image, "qcow2", writable=False) as disk:
        assert disk.read(0, MIB) == expected


def test_what_is_not_committed(image: Path, tmp_path: Path) -> None:
    with pytest.raises(DiskError, match="has no base"):
        commit(image)
    create_image(tmp_path / "over", base=image)
    with open_image(image, "qcow2", writable=False), pytest.raises(DiskError, match="is in use by others"):
        commit(tmp_path / "over")
    create_image(tmp_path / "large", 2 * MIB, base=image)
    with pytest.raises(DiskError, match="it would have to grow first"):
        commit(tmp_path / "large")
    make(tmp_path / "plain")
    on(tmp_path / "unsaid", "plain", None)
    with pytest.raises(DiskError, match="does not say which format its base has"):
        commit(tmp_path / "unsaid")
    for path in (image, tmp_path / "over", tmp_path / "plain", tmp_path / "unsaid"):
        open_image(path, "qcow2", writable=True).close()
