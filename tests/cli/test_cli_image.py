# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv image`: what it refuses, and what is done with images that are there."""

from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from disk_maker import MIB, run

from pyhv.cli.main import main
from pyhv.errors import ExitCode
from pyhv.images.create import DebianImage

Invoke = Callable[..., Result]


@pytest.fixture
def image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invoke:
    """`pyhv image ...` with a cache of its own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def invoke(*arguments: object, text: str = "") -> Result:
        return CliRunner().invoke(main, ["image", *map(str, arguments)], input=text)

    return invoke


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> list[DebianImage]:
    """What was to be made; it is not made."""
    wanted: list[DebianImage] = []

    def stand_in(image: DebianImage, target: Path, _progress: object) -> None:
        image.check()
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(bytes(MIB))
        wanted.append(image)

    monkeypatch.setattr("pyhv.images.create.create", stand_in)
    return wanted


@pytest.mark.parametrize("command", [(), ("create",), ("check",), ("convert",), ("commit",)])
def test_help_has_examples(image: Invoke, command: tuple[str, ...]) -> None:
    assert "Examples:" in image(*command, "--help").stdout


def test_create_with_all_that_can_be_said(image: Invoke, made: list[DebianImage], tmp_path: Path) -> None:
    key = tmp_path / "key.pub"
    key.write_text("ssh-ed25519 AAAA me")
    result = image(
        "create", tmp_path / "d.img", "--suite", "trixie", "--size", "3G", "--packages", "vim,curl",
        "--packages", "nginx", "--hostname", "web", "--root-password", "-", "--ssh-key", key,
        "--flavour", "cloud", text="secret\n",
    )  # fmt: skip
    assert result.exit_code == ExitCode.OK, result.output
    assert result.stdout == f"{tmp_path / 'd.img'}\n"
    assert made == [
        DebianImage(
            suite="trixie", flavour="cloud", size=3 << 30, packages=("vim", "curl", "nginx"), hostname="web",
            root_password="secret", ssh_key="ssh-ed25519 AAAA me\n",
        )
    ]  # fmt: skip


def test_without_a_file_it_goes_into_the_cache_and_is_listed(
    image: Invoke, made: list[DebianImage], tmp_path: Path
) -> None:
    assert image("list").stdout == ""
    result = image("create")
    where = tmp_path / "cache" / "pyhv" / "images" / "debian-bookworm.img"
    assert result.stdout == f"{where}\n"
    assert made == [DebianImage()]
    assert image("list").stdout.split()[:2] == ["debian-bookworm", "1"]
    assert image("list").stdout.split()[3:] == [str(where)]
    again = image("create")
    assert again.exit_code == ExitCode.ENVIRONMENT
    assert "is there already; --force replaces it" in again.stderr
    assert image("create", "--force").exit_code == ExitCode.OK


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (("--size", "much"), "is no amount"),
        (("--size", "10M"), "from 512M on"),
        (("--hostname", "a b"), "is no host name"),
        (("--packages", "a;b"), "cannot be the name of a package"),
        (("--suite", "no/suite"), "cannot be a suite"),
        (("--root-password", ""), "a password has at least one character"),
        (("--ssh-key", "none"), "the key cannot be read"),
    ],
)
def test_what_cannot_be_made_is_told(
    image: Invoke, made: list[DebianImage], tmp_path: Path, arguments: tuple[str, ...], why: str
) -> None:
    result = image("create", tmp_path / "d.img", *arguments)
    assert result.exit_code == ExitCode.ENVIRONMENT, result.output
    assert why in result.stderr
    assert result.stderr.count("\n") == 1
    assert made == []


def test_a_private_key_is_not_taken(image: Invoke, made: list[DebianImage], tmp_path: Path) -> None:
    key = tmp_path / "key"
    key.write_text("-----BEGIN OPENSSH PRIVATE KEY-----\nb3Bl bnNz\n")
    result = image("create", tmp_path / "d.img", "--ssh-key", key)
    assert "is no public key" in result.stderr
    assert "b3Bl" not in result.output


def test_check_convert_and_commit(image: Invoke, tmp_path: Path) -> None:
    base, overlay, copy = tmp_path / "base.img", tmp_path / "overlay.qcow2", tmp_path / "copy.qcow2"
    base.write_bytes(b"base" * (MIB // 4))
    run("qemu-img", "create", "-q", "-f", "qcow2", "-F", "raw", "-b", base, overlay)
    run("qemu-io", "-c", "write -P 0x61 64k 64k", overlay)
    checked = image("check", overlay)
    assert checked.exit_code == ExitCode.OK, checked.output
    assert checked.stdout.splitlines()[1:] == [f"base: {base} (raw)", "sound"]
    assert image("convert", overlay, copy).exit_code == ExitCode.OK
    run("qemu-img", "compare", overlay, copy)
    committed = image("commit", overlay)
    assert committed.exit_code == ExitCode.OK, committed.output
    assert committed.stdout == f"{base}\n"
    assert base.read_bytes()[1 << 16 : 1 << 17] == b"a" * (1 << 16)
    run("qemu-img", "compare", base, copy)


def test_what_is_no_image_is_told(image: Invoke, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    missing, empty = tmp_path / "none", tmp_path / "empty"
    for arguments in (("check", missing), ("check", empty), ("commit", empty), ("convert", missing, "x")):
        result = image(*arguments)
        assert result.exit_code == ExitCode.ENVIRONMENT, result.output
        assert result.stderr.splitlines()[-1].startswith("pyhv: ")
    damaged = tmp_path / "damaged.qcow2"
    run("qemu-img", "create", "-q", "-f", "qcow2", damaged, "8M")
    run("qemu-io", "-c", "write -P 1 0 1M", damaged)
    with damaged.open("r+b") as file:
        file.seek(0x20000)  # the first block of refcounts
        file.write(bytes(64))
    result = image("check", damaged)
    assert result.exit_code == ExitCode.FAILURE, result.output
    assert "errors" in result.stdout.splitlines()[-1]
