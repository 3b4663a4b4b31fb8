# SPDX-License-Identifier: GPL-2.0-only
"""Debian's own driver, and its file systems, on disks of ours: what is written is on them."""

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyhv
from pyhv.errors import PyhvError, ReplayError, SnapshotError
from pyhv.storage.images import create_image

MIB = 1 << 20


@pytest.fixture
def image(tmp_path: Path) -> Path:
    """A file system in a raw image."""
    path = tmp_path / "disk.img"
    with path.open("wb") as file:
        file.truncate(32 * MIB)
    subprocess.run(["mkfs.ext4", "-q", "-F", str(path)], check=True)
    return path


def is_clean(image: Path) -> bool:
    done = subprocess.run(["e2fsck", "-fn", str(image)], capture_output=True, text=True, check=False)
    return done.returncode == 0


@pytest.fixture(params=["virtual", "real"])
def machine(request: pytest.FixtureRequest) -> Iterator[pyhv.Machine]:
    with pyhv.Machine(memory="384M", virtual_time=request.param == "virtual") as machine:
        yield machine


def with_disks(machine: pyhv.Machine, *disks: str, vcpus: int = 1) -> pyhv.Guest:
    guest = machine.boot("debian", memory="128M", vcpus=vcpus, disks=disks)
    guest.expect(r"/ # ")
    return guest


@pytest.mark.debian
def test_a_file_system_is_written_and_read_again(machine: pyhv.Machine, image: Path) -> None:
    vcpus = 1 if machine.hypervisor.clock.counted else 2  # two have two queues
    guest = with_disks(machine, str(image), vcpus=vcpus)
    guest.run("mkdir /mnt; mount -t ext4 /dev/xvda /mnt")
    written = guest.run("dd if=/dev/urandom of=/mnt/r bs=1M count=6 2>/dev/null; sync; md5sum /mnt/r").output
    assert guest.run("echo 3 >/proc/sys/vm/drop_caches; md5sum /mnt/r").output.splitlines()[-1] in written
    guest.run("umount /mnt")
    assert machine.audit() == []
    guest.send("poweroff -f\n")
    assert guest.wait().reason == "poweroff"
    assert is_clean(image)


@pytest.mark.debian
def test_moments_have_what_was_on_the_disk(image: Path, tmp_path: Path) -> None:
    with pyhv.Machine(memory="256M", virtual_time=True) as machine:
        guest = with_disks(machine, str(image))
        guest.run("mkdir /mnt; mount -t ext4 /dev/xvda /mnt; echo first >/mnt/a; sync")
        moment = machine.snapshot()
        guest.run("echo second >/mnt/a; dd if=/dev/zero of=/mnt/z bs=1M count=4 2>/dev/null; sync")
        guest.send("umount /mnt; poweroff -f\n")
        assert guest.wait().reason == "poweroff"
        machine.revert(moment)
        assert guest.run("cat /mnt/a; ls /mnt").output.split() == ["first", "a", "lost+found"]
        with machine.fork() as fork:
            twin = fork.domains["debian"]
            twin.run("echo twin >/mnt/a; sync; echo 3 >/proc/sys/vm/drop_caches")
            guest.run("echo 3 >/proc/sys/vm/drop_caches")
            assert [each.run("cat /mnt/a").output.strip() for each in (guest, twin)] == ["first", "twin"]
        assert machine.audit() == []
        guest.run("umount /mnt")
        machine.snapshot().save(tmp_path / "saved")
        del moment
    assert is_clean(image)
    with pyhv.load(tmp_path / "saved") as machine:
        again = machine.domains["debian"]
        assert "first" in again.run("mount -t ext4 /dev/xvda /mnt && cat /mnt/a; umount /mnt").output
    with pytest.raises(SnapshotError, match=r"was taken when .*disk\.img held something else"):
        pyhv.load(tmp_path / "saved")


@pytest.mark.debian
@pytest.mark.parametrize("virtual", [True, False], ids=["virtual", "real"])
def test_a_recorded_run_with_a_disk_comes_again(image: Path, tmp_path: Path, virtual: bool) -> None:
    path = tmp_path / "run"
    disk = f"access=rw,overlay,target={image}"
    before = image.read_bytes()
    with pyhv.Machine(memory="256M", virtual_time=virtual, record=path) as machine:
        guest = with_disks(machine, disk)
        guest.run(
            "mkdir /mnt; mount -t ext4 /dev/xvda /mnt; dd if=/dev/urandom of=/mnt/r bs=64k count=20; sync"
        )
        guest.run("echo 3 >/proc/sys/vm/drop_caches; md5sum /mnt/r")
        printed, position = guest.console.text, machine.hypervisor.position
    assert image.read_bytes() == before
    with pyhv.Replay(path, verify=True) as replay:
        replay.run()
        assert replay.machine.domains["debian"].console.text == printed
        assert replay.machine.hypervisor.position == position
    shutil.copy(image, tmp_path / "other")
    shutil.copy(tmp_path / "other", image)
    with (
        pytest.raises(ReplayError, match=r"disk\.img has changed since it was recorded"),
        pyhv.Replay(path) as replay,
    ):
        replay.run()


@pytest.mark.debian
def test_guests_share_a_base(image: Path) -> None:
    before, many = image.read_bytes(), 10 if os.environ.get("PYHV_DEEP") else 4
    with pyhv.Machine(memory="1024M", virtual_time=True) as machine:
        guests = [
            machine.boot("debian", memory="96M", disks=[f"access=rw,overlay,target={image}"])
            for _ in range(many)
        ]
        for number, guest in enumerate(guests):
            guest.expect(r"/ # ")
            guest.run(f"mkdir /mnt; mount -t ext4 /dev/xvda /mnt; echo {number} >/mnt/me; sync")
        assert [guest.run("cat /mnt/me").output.strip() for guest in guests] == [str(n) for n in range(many)]
        with pytest.raises(PyhvError, match="perhaps as the base of an overlay"):
            guests[0].attach_disk(str(image))
    assert image.read_bytes() == before


@pytest.mark.debian
def test_disks_come_and_go(machine: pyhv.Machine, image: Path, tmp_path: Path) -> None:
    create_image(tmp_path / "more.qcow2", 16 * MIB)
    guest = with_disks(machine, f"{image},ro")
    assert (
        "Read-only" in guest.run("mkdir /mnt; mount -t ext4 /dev/xvda /mnt; touch /mnt/x 2>&1 || true").output
    )
    guest.attach_disk(f"format=qcow2,vdev=xvdb,target={tmp_path / 'more.qcow2'}")
    guest.run("while ! [ -b /dev/xvdb ]; do sleep 0.1; done; echo here | dd of=/dev/xvdb 2>/dev/null; sync")
    assert guest.run("dd if=/dev/xvdb bs=4 count=1 2>/dev/null").output.strip() == "here"
    guest.detach_disk("xvdb")
    guest.run("while [ -b /dev/xvdb ]; do sleep 0.1; done")
    assert machine.audit() == []
    assert subprocess.run(["qemu-img", "check", "-q", tmp_path / "more.qcow2"], check=False).returncode == 0


@pytest.mark.debian
def test_code_that_was_in_a_page_is_not_run_when_a_disk_has_been_read_into_it(
    machine: pyhv.Machine, image: Path
) -> None:
    """Programs are run from the page cache, thrown out of it, written anew elsewhere, and run again."""
    guest = with_disks(machine, str(image))
    guest.run("mkdir /mnt; mount -t ext4 /dev/xvda /mnt")
    for turn in range(3):
        guest.run(
            "cp /bin/busybox /mnt/true; cp /bin/busybox /mnt/echo; sync; echo 3 >/proc/sys/vm/drop_caches"
        )
        assert guest.run(f"/mnt/true && /mnt/echo ran {turn}").output.strip() == f"ran {turn}"
        guest.run("rm /mnt/true /mnt/echo; dd if=/dev/zero of=/mnt/z bs=1M count=4 2>/dev/null; rm /mnt/z")
