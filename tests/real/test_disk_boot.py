# SPDX-License-Identifier: GPL-2.0-only
"""A Debian of its own: made, booted from its disk by PV-GRUB, used, shut down; and without PV-GRUB."""

import hashlib
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pexpect
import pytest
from disk_maker import MIB, run, tool, window

from pyhv.cache import cache_directory
from pyhv.images import create, disks
from pyhv.images.create import DebianImage
from pyhv.images.progress import SilentProgress
from pyhv.volumes.ext4 import Ext

pytestmark = pytest.mark.debian

WANTED = DebianImage(size=2 << 30, hostname="from-disk")
PROMPT = r"root@from-disk:~# "
PATIENCE_S = 400
"""For the whole start of a system, on a busy host too."""


@pytest.fixture(scope="session")
def debian() -> Path:
    """A Debian that is made once, as the archive is that day, and kept; nobody writes it."""
    scratch = cache_directory() / "test-images"
    scratch.mkdir(parents=True, exist_ok=True)
    kept = sorted(scratch.glob(f"debian-{WANTED.recipe(0)}-*.img"))
    if kept:
        return kept[-1]
    path = scratch / f"debian-{WANTED.recipe(0)}-{create.published(WANTED.suite, scratch)}.img"
    create.create(WANTED, path, SilentProgress())
    return path


@contextmanager
def booted(*arguments: str | Path) -> Iterator["pexpect.spawn[str]"]:
    """`pyhv boot` at a terminal."""
    child: pexpect.spawn[str] = pexpect.spawn(
        sys.executable, ["-m", "pyhv.cli.main", "boot", *map(str, arguments), "--timeout", str(PATIENCE_S)],
        timeout=PATIENCE_S, encoding="utf-8", codec_errors="replace", dimensions=(50, 160),
    )  # fmt: skip
    try:
        yield child
    finally:
        child.close(force=True)


def told(child: "pexpect.spawn[str]", command: str) -> str:
    """What a command prints."""
    child.sendline(f"{command}; echo END-''OF-IT")
    child.expect(r"END-OF-IT[\r\n]+")
    printed = re.sub(r"\x1b\[\?2004[hl]|\r", "", str(child.before))  # what bash tells a terminal
    child.expect(PROMPT)
    return printed.partition("\n")[2]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def made_key(directory: Path) -> str:
    """A new pair in `key` and `key.pub`; the public one."""
    run("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", directory / "key")
    return (directory / "key.pub").read_text().strip()


def over_ssh(child: "pexpect.spawn[str]", port: int, key: Path, command: str) -> list[str]:
    """The words that a command prints which comes in from the host."""
    options = [
        f"-oIdentityFile={key}", "-oIdentitiesOnly=yes", "-oStrictHostKeyChecking=no",
        "-oUserKnownHostsFile=/dev/null", "-oBatchMode=yes", "-oConnectTimeout=60",
    ]  # fmt: skip
    process = subprocess.Popen(
        [tool("ssh"), "-F", "none", *options, "-p", str(port), "root@127.0.0.1", command],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    deadline = time.monotonic() + PATIENCE_S
    while process.poll() is None and time.monotonic() < deadline:
        child.expect([pexpect.TIMEOUT, "never printed"], timeout=0.5)  # what it prints meanwhile is taken
    process.kill()
    output, wrong = process.communicate()
    assert process.returncode == 0, wrong
    return output.split()


def digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def test_debian_starts_from_its_disk_and_shuts_down(debian: Path, tmp_path: Path) -> None:
    """By PV-GRUB; with a seed for cloud-init as its second disk, and a network through which ssh comes in."""
    disk = tmp_path / "disk.img"
    run("cp", "--sparse=always", debian, disk)
    seed = tmp_path / "seed"
    seed.mkdir()
    (seed / "user-data").write_text("#cloud-config\n")
    assert disks.loader_for(disk) == disks.PV_GRUB
    port = free_port()
    with booted(disk, "--cloud-init", seed, "--net", f"user,hostfwd=tcp:127.0.0.1:{port}-:22") as child:
        child.expect("Booting `Debian GNU/Linux'")
        child.expect("from-disk login: ")
        child.sendline("root")
        child.expect(PROMPT)
        assert told(child, "systemctl is-system-running --wait").strip() == "running"
        assert told(child, "findmnt -no SOURCE,FSTYPE,OPTIONS /").split()[:2] == ["/dev/xvda", "ext4"]
        assert "rw" in told(child, "findmnt -no OPTIONS /")
        assert told(child, "cat /sys/block/xvdb/ro").strip() == "1"
        assert told(child, "blkid -o value -s LABEL /dev/xvdb").strip() == "CIDATA"
        assert "instance-id: pyhv-" in told(
            child, "mount -r /dev/xvdb /mnt && cat /mnt/meta-data; umount /mnt"
        )
        written = told(child, "dd if=/dev/urandom bs=1M count=5 2>/dev/null | tee /root/file | sha256sum")
        assert "Permission denied" not in written
        assert told(child, "systemctl is-active ssh").strip() == "active"
        told(child, f"mkdir -m 700 -p .ssh; echo '{made_key(tmp_path)}' > .ssh/authorized_keys")
        assert over_ssh(child, port, tmp_path / "key", "hostname; ip -br address show eth0")[:3] == [
            "from-disk", "eth0", "UP",
        ]  # fmt: skip
        child.sendline("poweroff")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0
    assert re.search(r"clean|\d+/\d+ files", run("e2fsck", "-fn", disk))
    content = Ext(window(disk)).read_file("/root/file", 8 * MIB)
    assert hashlib.sha256(content).hexdigest() == written.split()[0]
    key = Ext(window(disk)).read_file("/etc/ssh/ssh_host_ed25519_key.pub", 1000)
    assert key.startswith(b"ssh-ed25519 ")


def test_its_kernel_without_pv_grub_on_a_disk_that_is_kept(debian: Path) -> None:
    """What is appended is for the kernel that PV-GRUB would have started; what it writes is thrown away."""
    before = digest(debian)
    with booted(debian, "--overlay", "--append", "init=/bin/bash") as child:
        child.expect(r"# ")
        child.sendline(
            "mount -o remount,rw / && rm -rf /boot /root && cat /proc/cmdline; ls /; echo END-''OF-IT"
        )
        child.expect(r"END-OF-IT[\r\n]+")
        assert child.before is not None
        assert re.search(r"root=UUID=\S+ ro .*init=/bin/bash", child.before)
        assert "boot" not in child.before.rpartition("init=/bin/bash")[2].split()
        child.sendline("exec /sbin/poweroff -ff")
        child.expect(pexpect.EOF)
    assert child.exitstatus == 0
    assert digest(debian) == before
