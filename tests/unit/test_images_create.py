# SPDX-License-Identifier: GPL-2.0-only
"""Making a Debian image: what needs no network, above all that the same files give the same bytes."""

import io
import os
import subprocess
import tarfile
import time
from pathlib import Path

import pytest
from disk_maker import MIB, UUID, run, tool, window

from pyhv.errors import EnvironmentProblem, PyhvError
from pyhv.images import archive, create, debian_root
from pyhv.images.create import DebianImage
from pyhv.volumes.ext4 import Ext
from pyhv.volumes.filesystem import open_files, recognize

BORN = 1_700_000_000


class Told:
    """Progress that is kept."""

    def __init__(self) -> None:
        self.steps: list[str] = []

    def step(self, text: str) -> None:
        self.steps.append(text)

    def transferred(self, done: int, total: int) -> None:
        """Not kept."""


def tree(root: Path, *, backwards: bool) -> Path:
    """The same files, made in another order and at another time."""
    names = [f"directory-{one}/file-{other}" for one in range(9) for other in range(9)]
    for name in reversed(names) if backwards else names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(f"content of {name}")
    (root / "link").symlink_to("directory-1/file-1")
    (root / "large").write_bytes(bytes(range(256)) * 9000)
    os.link(root / "large", root / "other-name")
    (root / "run").mkdir()
    for path in (root, *root.rglob("*")):
        os.utime(path, (BORN - 5, BORN - 100), follow_symlinks=False)
    return root


def test_the_same_files_give_the_same_bytes(tmp_path: Path) -> None:
    tool("mke2fs")
    images = []
    for number, backwards in enumerate((False, True)):
        root = tmp_path / f"root-{number}"
        root.mkdir()
        image = tmp_path / f"image-{number}"
        create.make_ext4(tree(root, backwards=backwards), image, 64 * MIB, UUID, "debian", BORN)
        images.append(image.read_bytes())
        time.sleep(1.1)  # so that all times of making differ
    assert images[0] == images[1]
    subprocess.run([tool("e2fsck"), "-fn", tmp_path / "image-0"], check=True, capture_output=True)
    stat = run("debugfs", "-R", "stat /directory-1/file-1", tmp_path / "image-0")
    times = {line.split(":", 1)[0].strip(): line for line in stat.splitlines() if "time:" in line}
    expected = f"{BORN - 100:#x}"
    for name in ("ctime", "atime", "mtime"):
        assert expected in times[name], times[name]
    assert f"{BORN:#x}" in times["crtime"]


def test_what_the_file_system_is(tmp_path: Path) -> None:
    """GRUB 2.06 reads it: none of the features that it does not know; 4096 to a block, 256 to an inode."""
    tool("mke2fs")
    root = tmp_path / "root"
    root.mkdir()
    image = tmp_path / "image"
    create.make_ext4(tree(root, backwards=False), image, 64 * MIB, UUID, "debian", BORN)
    found = recognize(window(image))
    assert found is not None
    assert (found.kind, found.label, found.uuid, found.block) == ("ext4", "debian", UUID, 4096)
    assert not set(found.features) & {"metadata_csum_seed", "csum_seed", "orphan_file", "inline_data"}
    assert found.remarks == ()
    assert Ext(window(image)).read_file("/link", 100) == b"content of directory-1/file-1"
    assert image.stat().st_blocks * 512 < 40 * MIB


def test_files_that_do_not_fit_are_told(tmp_path: Path) -> None:
    tool("mke2fs")
    root = tmp_path / "root"
    root.mkdir()
    (root / "large").write_bytes(b"x" * 40 * MIB)
    with pytest.raises(EnvironmentProblem, match=r"do not fit into 32M"):
        create.make_ext4(root, tmp_path / "image", 32 * MIB, UUID, "debian", BORN)


@pytest.mark.parametrize(
    ("wrong", "why"),
    [
        ({"size": 1 << 20}, "from 512M on"),
        ({"size": (1 << 30) + 1}, "whole blocks"),
        ({"hostname": "Not a name"}, "no host name"),
        ({"hostname": "-x"}, "no host name"),
        ({"packages": ("-o", "x")}, "name of a package"),
        ({"packages": ("vim", "a b")}, "name of a package"),
        ({"suite": "../x"}, "cannot be a suite"),
    ],
)
def test_what_cannot_be_made(wrong: dict[str, object], why: str) -> None:
    with pytest.raises(PyhvError, match=why):
        DebianImage(**wrong).check()  # type: ignore[arg-type]


def test_recipes_differ_where_anything_does() -> None:
    base = DebianImage()
    others = [
        DebianImage(suite="trixie"), DebianImage(flavour="cloud"), DebianImage(size=1 << 30),
        DebianImage(packages=("vim",)), DebianImage(hostname="x"), DebianImage(root_password="x"),
        DebianImage(ssh_key="x"), DebianImage(packages=("vim", "nano")),
    ]  # fmt: skip
    names = [one.recipe(BORN) for one in (base, *others)] + [base.recipe(BORN + 1)]
    assert len(set(names)) == len(names)
    assert DebianImage(packages=("a1", "b1")).recipe(1) == DebianImage(packages=("b1", "a1")).recipe(1)


@pytest.mark.parametrize("missing", ["mmdebstrap", "mke2fs", "tar"])
def test_a_missing_tool_is_told(missing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: None if name == missing else f"/bin/{name}")
    with pytest.raises(EnvironmentProblem, match=rf"{missing} is not installed.*apt install"):
        create.create(DebianImage(), tmp_path / "image", Told())
    assert not list(tmp_path.iterdir())


def test_too_little_room_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(create, "_require", lambda tool, package: None)
    monkeypatch.setattr(create, "_NEEDED", 1 << 60)
    with pytest.raises(EnvironmentProblem, match="MiB are free there"):
        create.create(DebianImage(), tmp_path / "image", Told())
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("told", ["soon", "-1", "99999999999", "1.5"])
def test_an_impossible_epoch(told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SOURCE_DATE_EPOCH", told)
    with pytest.raises(EnvironmentProblem, match="no number of seconds"):
        create.published("bookworm", tmp_path)


def test_what_mmdebstrap_says_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that fails as the real one does where there is no network."""
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "mmdebstrap").write_text(
        "#!/bin/sh\necho 'I: running apt-get update...' >&2\necho 'E: apt-get update failed' >&2\nexit 25\n"
    )
    (tools / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(BORN))
    monkeypatch.setattr(archive, "source_lines", lambda suite: ["deb http://example.org/ x main"])
    progress = Told()
    with pytest.raises(EnvironmentProblem, match="mmdebstrap failed: apt-get update failed"):
        create.create(DebianImage(), tmp_path / "out" / "image", progress)
    assert progress.steps[-1] == "mmdebstrap: running apt-get update"
    assert not list((tmp_path / "out").iterdir())


def test_what_mmdebstrap_gives_becomes_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stand-in that gives a few files, and what it was asked for."""
    tool("mke2fs")
    given = tmp_path / "given"
    (given / "etc").mkdir(parents=True)
    (given / "etc" / "hostname").write_text("host")
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "mmdebstrap").write_text(
        f'#!/bin/sh\nprintf "%s\\n" "$@" > {tmp_path}/asked\n'
        f"tar --create --sort=name --owner=0 --group=0 --mtime=@{BORN} -C {given} .\n"
    )
    (tools / "mmdebstrap").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", str(BORN))
    monkeypatch.setattr(archive, "source_lines", lambda suite: ["deb http://example.org/ x main"])
    wanted = DebianImage(size=512 * MIB, packages=("vim", "curl"), flavour="cloud", suite="trixie")
    images = []
    for name in ("one", "two"):
        create.create(wanted, tmp_path / "out" / name, Told())
        images.append((tmp_path / "out" / name).read_bytes())
        time.sleep(1.1)
    assert images[0] == images[1]
    assert sorted(os.listdir(tmp_path / "out")) == ["one", "two"]
    files = Ext(window(images[0]))
    assert files.names("/") == ["dev", "etc", "lost+found"]
    assert files.read_file("/etc/hostname", 100) == b"host"
    asked = (tmp_path / "asked").read_text().splitlines()
    included = next(word for word in asked if word.startswith("--include="))
    assert included.startswith("--include=linux-image-cloud-amd64,")
    assert included.endswith(",vim,curl")
    assert asked[-3:] == ["trixie", "-", "deb http://example.org/ x main"]


def test_a_password_is_hashed_with_the_image_s_salt() -> None:
    tool("perl")
    hashed = create._password_hash("secret", UUID)
    assert hashed.startswith("$6$6f1d1c2e3a4b4c5d$")
    assert hashed == create._password_hash("secret", UUID)
    assert hashed != create._password_hash("other", UUID)
    assert create._password_hash(None, UUID) == ""


def test_the_files_of_the_system() -> None:
    files = debian_root.after_packages("host", UUID, "ssh-ed25519 AAAA me\n")
    packed = debian_root.archive_of(files, BORN)
    assert packed == debian_root.archive_of(files, BORN)
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        entries = {entry.name: entry for entry in archive}
        assert all(entry.uid == entry.gid == 0 and entry.mtime == BORN for entry in entries.values())
        assert entries["./root/.ssh"].mode == 0o700
        assert entries["./root/.ssh/authorized_keys"].mode == 0o600
        assert entries["./etc/resolv.conf"].issym()
        grub = archive.extractfile("./boot/grub/grub.cfg")
        assert grub is not None
        assert f"linux /vmlinuz root=UUID={UUID} ro console=hvc0" in grub.read().decode()
    assert "./root/.ssh" not in [file.path for file in debian_root.after_packages("host", UUID, None)]


def test_open_files_of_what_cannot_be_read() -> None:
    with pytest.raises(PyhvError, match="neither ext2"):
        open_files(window(bytes(MIB)))
