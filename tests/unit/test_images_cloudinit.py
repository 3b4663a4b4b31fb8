# SPDX-License-Identifier: GPL-2.0-only
"""The seed disk for cloud-init."""

import os
import time
from pathlib import Path

import pytest
from disk_maker import run, tool, window

from pyhv.errors import ConfigError, EnvironmentProblem
from pyhv.images import cloudinit
from pyhv.volumes.fat import Fat
from pyhv.volumes.filesystem import recognize

USER_DATA = b"#cloud-config\npassword: x\n"


@pytest.fixture
def given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory with user-data, and a cache that is empty."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    directory = tmp_path / "seed"
    directory.mkdir()
    (directory / "user-data").write_bytes(USER_DATA)
    return directory


def test_meta_data_is_made_where_it_is_missing(given: Path) -> None:
    tool("mkfs.vfat")
    disk = cloudinit.seed(given, "guest")
    found = recognize(window(disk))
    assert found is not None
    assert (found.kind, found.label) == ("vfat (FAT12)", "CIDATA")
    assert run("blkid", "-p", "-o", "value", "-s", "LABEL", disk).strip() == "CIDATA"
    files = Fat(window(disk))
    assert files.names("/") == ["meta-data", "user-data"]
    assert files.read_file("/user-data", 1000) == USER_DATA
    lines = files.read_file("/meta-data", 1000).decode().splitlines()
    assert lines[0].startswith("instance-id: pyhv-")
    assert lines[1] == "local-hostname: guest"


def test_all_files_are_taken_along(given: Path) -> None:
    tool("mkfs.vfat")
    (given / "meta-data").write_text("instance-id: mine\n")
    (given / "network-config").write_text("version: 2\n")
    (given / "other").write_text("not for cloud-init")
    (given / "vendor-data").write_bytes(b"v" * 100_000)
    files = Fat(window(cloudinit.seed(given, "guest")))
    assert files.names("/") == ["meta-data", "network-config", "user-data", "vendor-data"]
    assert files.read_file("/meta-data", 1000) == b"instance-id: mine\n"
    assert files.read_file("/vendor-data", 1 << 20) == b"v" * 100_000


def test_the_same_files_are_the_same_disk(given: Path) -> None:
    tool("mkfs.vfat")
    first = cloudinit.seed(given, "guest")
    data, made = first.read_bytes(), first.stat().st_mtime_ns
    assert cloudinit.seed(given, "guest") == first
    assert first.stat().st_mtime_ns == made
    first.unlink()
    time.sleep(2.1)  # a FAT counts in steps of two seconds
    assert cloudinit.seed(given, "guest").read_bytes() == data
    (given / "user-data").write_bytes(USER_DATA + b"x")
    assert cloudinit.seed(given, "guest") != first


def test_what_is_no_directory_for_cloud_init(given: Path) -> None:
    (given / "user-data").unlink()
    with pytest.raises(ConfigError, match="there is no user-data in it"):
        cloudinit.seed(given, "guest")
    with pytest.raises(ConfigError, match="there is no user-data in it"):
        cloudinit.seed(given / "none", "guest")
    (given / "user-data").mkdir()
    with pytest.raises(ConfigError, match="cannot be read"):
        cloudinit.seed(given, "guest")
    (given / "user-data").rmdir()
    (given / "user-data").write_bytes(bytes(cloudinit.MAX_FILE + 1))
    with pytest.raises(ConfigError, match="is larger than 8 MiB"):
        cloudinit.seed(given, "guest")


def test_a_missing_tool_is_told(given: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.which", lambda name, path: None)
    with pytest.raises(EnvironmentProblem, match=r"mkfs\.vfat is not installed.*apt install dosfstools"):
        cloudinit.seed(given, "guest")
    assert os.listdir(given.parent / "cache" / "pyhv" / "seeds") == []
