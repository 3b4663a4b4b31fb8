# SPDX-License-Identifier: GPL-2.0-only
"""The newc writer, read back by a few lines written from the format's description."""

from collections.abc import Callable
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.errors import ConfigError
from pyhv.loader.cpio import CpioWriter


class Entry(NamedTuple):
    name: str
    mode: int
    nlink: int
    rdev: tuple[int, int]
    data: bytes


def read(archive: bytes) -> list[Entry]:
    entries: list[Entry] = []
    at, inodes = 0, set[int]()
    assert len(archive) % 512 == 0
    while True:
        assert archive[at : at + 6] == b"070701"
        fields = [int(archive[at + 6 + i * 8 : at + 14 + i * 8], 16) for i in range(13)]
        ino, mode, uid, gid, nlink, mtime, size, _, _, major, minor, namesize, check = fields
        assert uid == gid == mtime == check == 0
        name = archive[at + 110 : at + 110 + namesize]
        assert name.endswith(b"\0")
        at += (110 + namesize + 3) & ~3
        data = archive[at : at + size]
        at += (size + 3) & ~3
        if name == b"TRAILER!!!\0":
            assert not archive[at:].strip(b"\0")
            return entries
        assert ino not in inodes
        inodes.add(ino)
        entries.append(Entry(name[:-1].decode(), mode, nlink, (major, minor), data))


def test_every_kind() -> None:
    writer = CpioWriter()
    writer.directory("/dev")
    writer.node("/dev/console", "c", 5, 1)
    writer.node("dev/xvda", "b", 202, 0, 0o660)
    writer.file("/init", b"#!/bin/sh\n", 0o755)
    writer.symlink("/bin/sh", "busybox")
    assert read(writer.finish()) == [
        Entry("dev", 0o40755, 2, (0, 0), b""),
        Entry("dev/console", 0o20600, 1, (5, 1), b""),
        Entry("dev/xvda", 0o60660, 1, (202, 0), b""),
        Entry("init", 0o100755, 1, (0, 0), b"#!/bin/sh\n"),
        Entry("bin", 0o40755, 2, (0, 0), b""),
        Entry("bin/sh", 0o120777, 1, (0, 0), b"busybox"),
    ]


def test_parents_are_made_once() -> None:
    writer = CpioWriter()
    writer.file("/a/b/c", b"")
    writer.directory("/a/b")
    writer.file("/a/b/d", b"")
    assert [entry.name for entry in read(writer.finish())] == ["a", "a/b", "a/b/c", "a/b/d"]


def test_empty_archive() -> None:
    assert read(CpioWriter().finish()) == []


def test_same_calls_same_bytes() -> None:
    def archive() -> bytes:
        writer = CpioWriter()
        writer.file("a", b"1")
        return writer.finish()

    assert archive() == archive()


@pytest.mark.parametrize(
    "path", ["", "/", "a//b", "../x", "a/./b", "a\0b", "TRAILER!!!", "x" * 5000, "\ud800"]
)
def test_impossible_names(path: str) -> None:
    with pytest.raises(ConfigError):
        CpioWriter().file(path, b"")


def test_conflicts() -> None:
    writer = CpioWriter()
    writer.file("f", b"")
    writer.directory("d", 0o700)
    attempts: list[Callable[[], object]] = [
        lambda: writer.file("f", b""),
        lambda: writer.directory("f"),
        lambda: writer.directory("d", 0o755),
        lambda: writer.file("f/below", b""),
        lambda: writer.node("n", "p", 0, 0),
        lambda: writer.node("n", "c", 4096, 0),
        lambda: writer.symlink("s", ""),
        lambda: writer.file("m", b"", 1 << 20),
    ]
    for attempt in attempts:
        with pytest.raises(ConfigError):
            attempt()
    assert [entry.name for entry in read(writer.finish())] == ["f", "d"]


@given(
    st.lists(
        st.tuples(st.text("abcdé.", min_size=1, max_size=9), st.binary(max_size=9)), unique_by=lambda e: e[0]
    )
)
def test_contents_survive(files: list[tuple[str, bytes]]) -> None:
    writer = CpioWriter()
    wanted = [(name, data) for name, data in files if name.strip(".") or len(name) > 2]
    for name, data in wanted:
        writer.file(name, data)
    assert [(entry.name, entry.data) for entry in read(writer.finish())] == wanted
