# SPDX-License-Identifier: GPL-2.0-only
"""Fetching Debian's kernel, with stand-ins for apt and dpkg-deb; and the initramfs."""

import gzip
import io
import subprocess
import tarfile
from pathlib import Path

import pytest

from pyhv.cache import cache_directory
from pyhv.errors import EnvironmentProblem
from pyhv.images import debian, initramfs, kernels
from pyhv.images.kernels import KERNELS

APT_GET = """#!/bin/sh
while [ "$1" = -o ]; do
    case "$2" in Dir::Etc::SourceList=*) /bin/cat "${2#*=}" >"$FAKE/sources" ;; esac
    shift 2
done
case "$*" in
    indextargets*)
        [ -e "$FAKE/nodebian" ] && { echo "Ubuntu|Ubuntu|http://u/"; exit 0; }
        echo "Debian|Debian|http://x/debian/"
        echo "Debian|Debian-Security|http://x/security/" ;;
    update*)
        echo "update" >>"$FAKE/log"
        if [ -e "$FAKE/nosecurity" ] && /bin/grep -q security "$FAKE/sources"; then
            echo "E: The repository 'http://x/security' is broken" >&2; exit 100
        fi
        [ -e "$FAKE/nosuite" ] && { echo "E: The repository does not have a Release file" >&2; exit 100; }
        exit 0 ;;
    *--print-uris*)
        echo "'http://x/k.deb' linux-image-6.1.0-9-amd64_1_amd64.deb 100 SHA256:0"
        echo "'http://x/b.deb' busybox-static_1_amd64.deb 50 SHA256:0" ;;
    *)
        echo "download $*" >>"$FAKE/log"
        [ -e "$FAKE/offline" ] && { echo "E: Failed to fetch http://x  Could not resolve 'x'" >&2; exit 100; }
        for package in $2 $3; do
            echo k >"${package%:*}_1%3a1_amd64.deb"
        done
        echo b >busybox-static_1%3a1_amd64.deb ;;
esac
"""
APT_CACHE = """#!/bin/sh
for package; do :; done
case "$package" in
    linux-image-rt-amd64)
        echo "$package"
        echo "  Depends: linux-base"
        echo "  Depends: linux-image-7.3.4+deb13-rt-amd64"
        exit 0 ;;
    linux-image-7.3.4+deb13-rt-amd64)
        printf '%s\\n' "$package" "  Depends: linux-binary-7.3.4+deb13-rt-amd64"; exit 0 ;;
    linux-image-[0-9]*) echo "$package"; exit 0 ;;
esac
[ -e "$FAKE/nolists" ] && { echo "E: No packages found" >&2; exit 100; }
[ -e "$FAKE/foreign" ] && { echo linux-image-amd64; echo "  Depends: linux-image-virtual"; exit 0; }
cat <<.
linux-image-amd64
  Depends: linux-image-6.1.0-9-amd64
.
"""
DPKG_DEB = """#!/bin/sh
[ -e "$FAKE/corrupt" ] && { echo garbage; exit 2; }
case "$2" in
    */linux-* | */grub*) cat "$FAKE/kernel.tar" ;;
    *) cat "$FAKE/busybox.tar" ;;
esac
"""
BUSYBOX = b"#!/bin/sh\necho cat; echo sh; echo busybox\n"


def tiny_elf() -> bytes:
    """The smallest thing that passes for an ELF file when it is unpacked."""
    return b"\x7fELF\x02\x01\x01" + bytes(57)


def cpio_entries(archive: bytes) -> dict[str, tuple[int, bytes]]:
    """Name to (mode, data) of a newc archive."""
    entries: dict[str, tuple[int, bytes]] = {}
    at = 0
    while True:
        fields = [int(archive[at + 6 + 8 * n : at + 14 + 8 * n], 16) for n in range(13)]
        mode, size, name_size = fields[1], fields[6], fields[11]
        name = archive[at + 110 : at + 110 + name_size - 1].decode()
        data_at = at + 110 + name_size + 3 & ~3
        if name == "TRAILER!!!":
            return entries
        entries[name] = (mode, archive[data_at : data_at + size])
        at = data_at + size + 3 & ~3


class Recorder:
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.last: tuple[int, int | None] = (0, 0)

    def step(self, text: str) -> None:
        self.steps.append(text)

    def transferred(self, done: int, total: int | None) -> None:
        self.last = (done, total)


def tar(path: Path, files: dict[str, bytes]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, data in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))


@pytest.fixture
def fake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A host on which apt is a shell script; files in the directory steer it."""
    tools = tmp_path / "tools"
    tools.mkdir()
    for name, text in (("apt-get", APT_GET), ("apt-cache", APT_CACHE), ("dpkg-deb", DPKG_DEB)):
        (tools / name).write_text(text)
        (tools / name).chmod(0o755)
    kernel = {"./boot/System.map-6": b"no", "./boot/vmlinuz-6.1.0-9-amd64": tiny_elf()}
    tar(tools / "kernel.tar", kernel)
    tar(tools / "busybox.tar", {"./bin/busybox.txt": b"no", "./bin/busybox": BUSYBOX})
    monkeypatch.setenv("FAKE", str(tools))
    monkeypatch.setenv("PATH", f"{tools}:/usr/bin:/bin")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tools


def test_fetches_once_and_is_then_independent_of_apt(
    fake: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    progress = Recorder()
    files = debian.ensure(progress)
    assert files.version == "6.1.0-9-amd64"
    assert files.vmlinuz.read_bytes() == files.vmlinux.read_bytes() == tiny_elf()
    assert files.vmlinuz.parent == tmp_path / "cache/pyhv/debian/6.1.0-9-amd64"
    entries = cpio_entries(gzip.decompress(files.initramfs.read_bytes()))
    assert entries["bin/busybox"][1] == BUSYBOX
    assert progress.steps[0] == "downloading linux-image-6.1.0-9-amd64 and busybox-static"
    assert progress.last == (150, 150)
    assert sorted(path.name for path in files.vmlinuz.parent.parent.iterdir()) == [files.version]

    monkeypatch.setenv("PATH", "/nonexistent")
    again = Recorder()
    assert debian.ensure(again) == files
    assert again.steps == []


def test_a_new_recipe_rebuilds_only_the_initramfs(fake: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = debian.ensure(Recorder())
    monkeypatch.setattr(initramfs, "recipe", lambda: "changed")
    progress = Recorder()
    second = debian.ensure(progress)
    assert second.initramfs != first.initramfs
    assert progress.steps == ["building the initramfs"]


def test_update_looks_for_a_newer_kernel(fake: Path) -> None:
    debian.ensure(Recorder())
    (fake / "apt-cache").write_text(APT_CACHE.replace("6.1.0-9", "6.1.0-10"))
    (fake / "apt-get").write_text(APT_GET.replace("6.1.0-9", "6.1.0-10"))
    assert debian.ensure(Recorder()).version == "6.1.0-9-amd64"
    assert debian.ensure(Recorder(), update=True).version == "6.1.0-10-amd64"
    assert debian.ensure(Recorder()).version == "6.1.0-10-amd64"  # the newer one by number, not by text
    calls = (fake / "log").read_text().splitlines()
    debian.ensure(Recorder(), update=True)
    assert (fake / "log").read_text().splitlines() == calls


@pytest.mark.promise("E-3")
@pytest.mark.parametrize(
    ("steer", "message"),
    [
        ("offline", "Could not resolve 'x'.*check the network"),
        ("nolists", "No packages found.*apt-get update"),
        ("foreign", "apt knows no package linux-image-amd64"),
        ("corrupt", "dpkg-deb cannot unpack it"),
    ],
)
def test_failures_are_told_in_one_line_and_leave_nothing(
    fake: Path, tmp_path: Path, steer: str, message: str
) -> None:
    (fake / steer).touch()
    with pytest.raises(EnvironmentProblem, match=message) as failure:
        debian.ensure(Recorder())
    assert "\n" not in str(failure.value)
    root = tmp_path / "cache/pyhv/debian"
    assert not root.exists() or list(root.iterdir()) == []
    (fake / steer).unlink()
    debian.ensure(Recorder())


def test_a_suite_has_lists_of_its_own(fake: Path, tmp_path: Path) -> None:
    progress = Recorder()
    files = debian.ensure(progress, flavour="rt", suite="trixie-backports")
    assert files.version == "7.3.4+deb13-rt-amd64"
    assert files.vmlinuz.parent.parent == tmp_path / "cache/pyhv/debian/trixie-backports"
    sources = [line.rpartition("]")[2].split() for line in (fake / "sources").read_text().splitlines()]
    assert sources == [
        ["http://x/debian/", "trixie-backports", "main"],
        ["http://x/debian/", "trixie", "main"],
        ["http://x/security/", "trixie-security", "main"],
    ]
    assert progress.steps[:2] == [
        "reading the package lists of trixie-backports",
        "downloading linux-binary-7.3.4+deb13-rt-amd64 and busybox-static",
    ]
    again = Recorder()
    assert debian.ensure(again, flavour="rt", suite="trixie-backports") == files
    assert again.steps == []
    root = tmp_path / "cache/pyhv/debian"
    assert [path.name for path in root.iterdir()] == ["trixie-backports"]  # nothing of the lists is left
    assert (
        debian.ensure(Recorder()).version == "6.1.0-9-amd64"
    )  # the host's own, and not the suite's newer one


def test_flavours_are_told_apart_in_the_cache(fake: Path) -> None:
    stock = debian.ensure(Recorder())
    rt = debian.ensure(Recorder(), flavour="rt")
    assert (stock.version, rt.version) == ("6.1.0-9-amd64", "7.3.4+deb13-rt-amd64")
    assert debian.ensure(Recorder()) == stock
    assert debian.ensure(Recorder(), flavour="rt") == rt


def test_a_broken_security_archive_is_told_and_done_without(fake: Path) -> None:
    (fake / "nosecurity").touch()
    progress = Recorder()
    debian.ensure(progress, suite="trixie")
    assert any("trixie without its security updates" in step for step in progress.steps)
    assert "security" not in (fake / "sources").read_text()


@pytest.mark.parametrize(
    ("steer", "suite", "message"),
    [
        ("nosuite", "nosuch", "no package lists of nosuch: .* does not have a Release file"),
        ("nodebian", "trixie", "apt has no archive of Debian"),
        ("other", "../x", "cannot be a suite"),
        ("other", "trixie main\ndeb", "cannot be a suite"),
    ],
)
def test_what_is_wrong_with_a_suite(fake: Path, tmp_path: Path, steer: str, suite: str, message: str) -> None:
    (fake / steer).touch()
    with pytest.raises(EnvironmentProblem, match=message):
        debian.ensure(Recorder(), suite=suite)
    root = tmp_path / "cache/pyhv/debian"
    assert not root.exists() or list(root.iterdir()) == []


def test_other_kernels_are_kept_with_their_version(
    fake: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tar(fake / "kernel.tar", {"./usr/lib/grub-xen/grub-x86_64-xen.bin": b"GRUB"})
    progress = Recorder()
    found = kernels.ensure("pv-grub", KERNELS["pv-grub"], progress)
    assert found.path == tmp_path / "cache/pyhv/packaged/pv-grub/kernel"
    assert found.path.read_bytes() == b"GRUB"
    assert found.version == "grub-xen-host 1:1 amd64"
    assert progress.steps == ["downloading grub-xen-host"]
    monkeypatch.setenv("PATH", "/nonexistent")
    assert kernels.ensure("pv-grub", KERNELS["pv-grub"], Recorder()) == found


@pytest.mark.parametrize("tool", ["apt-get", "apt-cache", "dpkg-deb"])
def test_a_missing_tool_is_named(fake: Path, monkeypatch: pytest.MonkeyPatch, tool: str) -> None:
    monkeypatch.setenv("PATH", str(fake))
    (fake / "apt-cache").write_text(APT_CACHE.replace("cat <<.", "/bin/cat <<."))
    (fake / tool).unlink()
    with pytest.raises(EnvironmentProblem, match=f"{tool} is not installed"):
        debian.ensure(Recorder())


def test_a_package_without_the_file_is_refused(fake: Path) -> None:
    tar(fake / "kernel.tar", {"./boot/config": b""})
    with pytest.raises(EnvironmentProblem, match="holds no file like"):
        debian.ensure(Recorder())


def test_an_unusable_cache(fake: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(EnvironmentProblem, match="cache cannot be used"):
        debian.ensure(Recorder())


def test_a_relative_cache_home_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", "here")
    monkeypatch.setenv("HOME", "/home/somebody")
    assert cache_directory() == Path("/home/somebody/.cache/pyhv")


class TestInitramfs:
    def test_contents(self) -> None:
        archive = initramfs.build(b"ELF", ["sh", "busybox", "mount", "/odd"])
        entries = cpio_entries(gzip.decompress(archive))
        assert entries["bin/busybox"] == (0o100755, b"ELF")
        assert entries["bin/sh"] == (0o120777, b"busybox")
        assert entries["dev/console"][0] == 0o020600
        assert entries["init"] == (0o100755, initramfs.INIT.encode())
        assert {"proc", "sys", "dev", "bin/mount"} < set(entries)
        assert "bin/odd" not in entries

    def test_the_same_input_gives_the_same_bytes(self) -> None:
        assert initramfs.build(b"x", ["a"]) == initramfs.build(b"x", ["a"])

    def test_applets_are_asked_of_busybox(self, tmp_path: Path) -> None:
        busybox = tmp_path / "busybox"
        busybox.write_bytes(BUSYBOX)
        busybox.chmod(0o755)
        assert initramfs.applets(busybox) in (["busybox", "cat", "sh"], initramfs._APPLETS.split())
        busybox.chmod(0o644)
        assert "mount" in initramfs.applets(busybox)

    def test_the_list_has_all_that_init_uses(self) -> None:
        needed = {
            "sh",
            "mount",
            "awk",
            "md5sum",
            "sha256sum",
            "dd",
            "seq",
            "true",
            "setsid",
            "rm",
            "poweroff",
        }
        assert needed <= set(initramfs._APPLETS.split())

    def test_the_script_is_a_script(self, tmp_path: Path) -> None:
        (tmp_path / "init").write_text(initramfs.INIT)
        subprocess.run(["sh", "-n", str(tmp_path / "init")], check=True)
