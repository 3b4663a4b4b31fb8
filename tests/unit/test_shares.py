# SPDX-License-Identifier: GPL-2.0-only
"""Directories for guests by 9P2000.L: what a client can do, and that nothing leads out of the directory."""

import errno
import os
import stat
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pyhv.errors import ConfigError
from pyhv.shares.server import MAX_OPEN, Server
from pyhv.shares.tree import SharedTree
from pyhv.shares.wire import HEADER, Ask, message, text

RDONLY, WRONLY, RDWR, CREAT, TRUNC = 0, 1, 2, 0o100, 0o1000


class Client:
    """What a guest's kernel says."""

    def __init__(self, server: Server) -> None:
        self.server = server
        self.call(Ask.VERSION, struct.pack("<I", 65536) + text(b"9P2000.L"))
        self.call(Ask.ATTACH, struct.pack("<II", 0, 0xFFFFFFFF) + text(b"root") + text(b"") + bytes(4))
        self._next = 1

    def call(self, kind: int, body: bytes) -> bytes:
        """The answer's body; OSError: it is an error."""
        answer = self.server.answer(message(kind, 7, body))
        size, answered, tag = HEADER.unpack_from(answer)
        assert (size, tag) == (len(answer), 7)
        if answered == Ask.LERROR + 1:
            number = int.from_bytes(answer[7:], "little")
            raise OSError(number, os.strerror(number))
        assert answered == kind + 1
        return answer[HEADER.size :]

    def walk(self, *names: bytes, start: int = 0) -> int:
        """A fid for a path."""
        number, self._next = self._next, self._next + 1
        body = struct.pack("<IIH", start, number, len(names)) + b"".join(map(text, names))
        found = self.call(Ask.WALK, body)
        if int.from_bytes(found[:2], "little") != len(names):
            raise OSError(errno.ENOENT, "partly")
        return number

    def open(self, flags: int, *names: bytes) -> int:
        fid = self.walk(*names)
        self.call(Ask.LOPEN, struct.pack("<II", fid, flags))
        return fid

    def create(self, name: bytes, *directory: bytes, flags: int = RDWR, mode: int = 0o644) -> int:
        fid = self.walk(*directory)
        self.call(Ask.LCREATE, struct.pack("<I", fid) + text(name) + struct.pack("<III", flags, mode, 0))
        return fid

    def read(self, fid: int, offset: int = 0, count: int = 60000) -> bytes:
        answer = self.call(Ask.READ, struct.pack("<IQI", fid, offset, count))
        assert int.from_bytes(answer[:4], "little") == len(answer) - 4
        return answer[4:]

    def write(self, fid: int, data: bytes, offset: int = 0) -> int:
        body = struct.pack("<IQI", fid, offset, len(data)) + data
        return int.from_bytes(self.call(Ask.WRITE, body), "little")

    def names(self, *directory: bytes, count: int = 60000) -> list[bytes]:
        fid, offset, found = self.open(RDONLY, *directory), 0, []
        while data := self.call(Ask.READDIR, struct.pack("<IQI", fid, offset, count))[4:]:
            at = 0
            while at < len(data):
                offset, _kind, length = struct.unpack_from("<QBH", data, at + 13)
                found.append(data[at + 24 : at + 24 + length])
                at += 24 + length
        return found

    def attributes(self, *names: bytes) -> tuple[int, ...]:
        answer = self.call(Ask.GETATTR, struct.pack("<IQ", self.walk(*names), 0x7FF))
        assert len(answer) == 8 + 13 + 12 + 120
        return struct.unpack_from("<III15Q", answer, 21)


@pytest.fixture
def outside(tmp_path: Path) -> Path:
    secret = tmp_path / "secret"
    secret.mkdir()
    (secret / "file").write_text("secret")
    return secret


@pytest.fixture
def shared(tmp_path: Path, outside: Path) -> Path:
    """A directory with files, and links that lead out of it."""
    top = tmp_path / "shared"
    (top / "sub" / "deep").mkdir(parents=True)
    (top / "file").write_bytes(b"content")
    (top / "sub" / "other").write_bytes(bytes(range(256)) * 500)
    (top / "out").symlink_to(outside)
    (top / "out-file").symlink_to(outside / "file")
    (top / "up").symlink_to("..")
    os.mkfifo(top / "fifo")
    return top


@pytest.fixture
def client(shared: Path) -> Iterator[Client]:
    server = Server(SharedTree(shared))
    yield Client(server)
    server.close()


@pytest.fixture
def reader(shared: Path) -> Iterator[Client]:
    server = Server(SharedTree(shared), read_only=True)
    yield Client(server)
    server.close()


def refused(*numbers: int) -> "pytest.RaisesExc[OSError]":
    return pytest.raises(OSError, check=lambda error: error.errno in numbers)


def test_files_are_read(client: Client, shared: Path) -> None:
    assert client.read(client.open(RDONLY, b"file")) == b"content"
    fid = client.open(RDONLY, b"sub", b"other")
    whole = (shared / "sub" / "other").read_bytes()
    assert client.read(fid, 0, 1 << 30) == whole[: 65536 - 11]
    assert client.read(fid, 127_990) == whole[127_990:]
    assert client.read(fid, 1 << 40) == b""


@pytest.mark.parametrize("count", [60000, 80])
def test_directories_are_read(client: Client, count: int) -> None:
    assert client.names(count=count) == [
        b".", b"..", b"fifo", b"file", b"out", b"out-file", b"sub", b"up",
    ]  # fmt: skip


def test_files_are_made_changed_and_removed(client: Client, shared: Path) -> None:
    fid = client.create(b"new", b"sub", mode=0o6751)
    assert client.write(fid, b"some text", 3) == 9
    client.call(Ask.FSYNC, struct.pack("<II", fid, 0))
    made = shared / "sub" / "new"
    assert made.read_bytes() == b"\0\0\0some text"
    assert made.stat().st_mode & 0o7777 & ~0o777 == 0  # no set-user-id
    client.call(
        Ask.MKDIR, struct.pack("<I", client.walk(b"sub")) + text(b"more") + struct.pack("<II", 0o755, 0)
    )
    client.call(Ask.RENAMEAT, struct.pack("<I", client.walk(b"sub")) + text(b"new")
                + struct.pack("<I", client.walk(b"sub", b"more")) + text(b"moved"))  # fmt: skip
    assert client.write(fid, b"x", 0) == 1
    assert (shared / "sub" / "more" / "moved").read_bytes() == b"x\0\0some text"
    assert client.attributes(b"sub", b"more", b"moved")[5] == 12
    client.call(Ask.LINK, struct.pack("<II", 0, client.walk(b"file")) + text(b"second"))
    assert (shared / "second").stat().st_nlink == 2
    client.call(Ask.UNLINKAT, struct.pack("<I", 0) + text(b"second") + struct.pack("<I", 0))
    client.call(Ask.REMOVE, struct.pack("<I", client.walk(b"sub", b"more", b"moved")))
    client.call(
        Ask.UNLINKAT, struct.pack("<I", client.walk(b"sub")) + text(b"more") + struct.pack("<I", 0x200)
    )
    assert sorted(os.listdir(shared / "sub")) == ["deep", "other"]


def test_a_fid_goes_where_its_directory_is_moved(client: Client, shared: Path) -> None:
    fid = client.walk(b"sub", b"other")
    client.call(Ask.RENAMEAT, struct.pack("<I", 0) + text(b"sub") + struct.pack("<I", 0) + text(b"new"))
    client.call(Ask.LOPEN, struct.pack("<II", fid, RDONLY))
    assert client.read(fid, 0, 4) == bytes(range(4))
    assert (shared / "new").is_dir()


def setattr_body(fid: int, valid: int, *, mode: int = 0, size: int = 0, mtime: int = 0) -> bytes:
    return struct.pack("<IIIIIQQQQQ", fid, valid, mode, 0, 0, size, 0, 0, mtime, 5)


def test_attributes_are_set(client: Client, shared: Path) -> None:
    client.call(Ask.SETATTR, setattr_body(client.walk(b"file"), 1 | 8, mode=0o4600, size=3))
    client.call(Ask.SETATTR, setattr_body(client.walk(b"file"), 0x20 | 0x100, mtime=1234))
    found = (shared / "file").stat()
    assert (stat.S_IMODE(found.st_mode), found.st_size, found.st_mtime_ns) == (0o600, 3, 1234 * 10**9 + 5)
    assert client.attributes(b"file")[10:12] == (1234, 5)
    os.utime(shared / "file", ns=(-(10**9), -(10**9)))
    assert client.attributes(b"file")[8] == (1 << 64) - 1


def test_links_are_the_guest_s_to_follow(client: Client, shared: Path, outside: Path) -> None:
    assert client.call(Ask.READLINK, struct.pack("<I", client.walk(b"out"))) == text(bytes(outside))
    client.call(Ask.SYMLINK, struct.pack("<I", 0) + text(b"mine") + text(b"/etc") + bytes(4))
    assert os.readlink(shared / "mine") == "/etc"


@pytest.mark.parametrize("way", [(b"out", b"file"), (b"up", b"secret"), (b"up", b"secret", b"file")])
def test_no_link_leads_out(client: Client, way: tuple[bytes, ...]) -> None:
    with refused(errno.ENOTDIR, errno.ENOENT, errno.ELOOP):
        client.walk(*way)


def test_a_link_is_not_opened(client: Client, outside: Path) -> None:
    with refused(errno.ELOOP):
        client.open(RDONLY, b"out-file")
    with refused(errno.ELOOP):
        client.open(WRONLY | TRUNC, b"out-file")
    with refused(errno.EEXIST):  # made anew, it would be written through
        client.create(b"out-file", flags=RDWR | CREAT | 0o200)
    with refused(errno.ELOOP):
        client.create(b"out-file", flags=RDWR | CREAT | TRUNC)
    with refused(errno.EOPNOTSUPP):
        client.call(Ask.SETATTR, setattr_body(client.walk(b"out-file"), 1, mode=0o777))
    with refused(errno.ELOOP):
        client.call(Ask.SETATTR, setattr_body(client.walk(b"out-file"), 8, size=0))
    assert (outside / "file").read_text() == "secret"


def test_up_from_the_top_is_the_top(client: Client) -> None:
    assert client.attributes(b"..", b"..", b"file") == client.attributes(b"file")
    assert client.attributes(b"sub", b"..") == client.attributes()


@pytest.mark.parametrize("name", [b"", b".", b"..", b"a/b", b"/etc/passwd", b"a\0b"])
def test_names_that_are_none(client: Client, shared: Path, name: bytes) -> None:
    for act in (
        lambda: client.create(name),
        lambda: client.call(Ask.MKDIR, struct.pack("<I", 0) + text(name) + bytes(8)),
        lambda: client.call(Ask.UNLINKAT, struct.pack("<I", 0) + text(name) + bytes(4)),
        lambda: client.call(Ask.SYMLINK, struct.pack("<I", 0) + text(name) + text(b"x") + bytes(4)),
    ):
        with refused(errno.EINVAL):
            act()
    if name != b"..":
        with refused(errno.EINVAL):
            client.walk(name)


def test_a_directory_that_becomes_a_link_does_not_lead_out(
    client: Client, shared: Path, outside: Path
) -> None:
    """The guest holds names in a directory; somebody puts a link in its place."""
    fid = client.walk(b"sub")
    os.rename(shared / "sub", shared / "sub-was")
    (shared / "sub").symlink_to(outside)
    with refused(errno.ENOTDIR):
        client.walk(b"file", start=fid)
    with refused(errno.ENOTDIR):
        client.call(Ask.LCREATE, struct.pack("<I", fid) + text(b"made") + struct.pack("<III", 2, 0o644, 0))
    assert os.listdir(outside) == ["file"]


def test_what_is_no_file_is_not_opened(client: Client, shared: Path) -> None:
    with refused(errno.ENXIO):
        client.open(RDONLY, b"fifo")
    with refused(errno.EOPNOTSUPP):
        client.call(Ask.MKNOD, struct.pack("<I", 0) + text(b"x") + struct.pack("<IIII", 0o20666, 1, 3, 0))
    assert not (shared / "x").exists()


def test_read_only(reader: Client, shared: Path) -> None:
    assert reader.read(reader.open(RDONLY, b"file")) == b"content"
    for act in (
        lambda: reader.open(WRONLY, b"file"),
        lambda: reader.open(RDONLY | TRUNC, b"file"),
        lambda: reader.create(b"x"),
        lambda: reader.call(Ask.MKDIR, struct.pack("<I", 0) + text(b"x") + bytes(8)),
        lambda: reader.call(Ask.REMOVE, struct.pack("<I", reader.walk(b"file"))),
        lambda: reader.call(Ask.SETATTR, setattr_body(reader.walk(b"file"), 8)),
    ):
        with refused(errno.EROFS):
            act()
    assert (shared / "file").read_bytes() == b"content"


def test_open_files_are_bounded(client: Client) -> None:
    before = len(os.listdir("/proc/self/fd"))
    fids = [client.open(RDONLY, b"file") for _ in range(MAX_OPEN)]
    with refused(errno.EMFILE):
        client.open(RDONLY, b"file")
    for fid in fids:
        client.call(Ask.CLUNK, struct.pack("<I", fid))
    for _ in range(5000):
        client.walk(b"sub", b"other")
    assert len(os.listdir("/proc/self/fd")) == before
    client.call(Ask.VERSION, struct.pack("<I", 8192) + text(b"9P2000.L"))
    with refused(errno.EBADF):
        client.walk(b"sub")


def test_what_cannot_be_shared(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    for name in ("none", "file"):
        with pytest.raises(ConfigError, match="cannot be shared"):
            SharedTree(tmp_path / name)


KINDS = sorted(Ask)
NAMES = st.sampled_from([b"file", b"sub", b"other", b"deep", b"out", b"up", b"..", b".", b"", b"a/b", b"new"])
FIELDS = st.one_of(
    st.integers(0, 4).map(lambda number: struct.pack("<I", number)),
    st.sampled_from([0, 1, 2, 5, 0xFF, 1 << 31, 1 << 32, 1 << 63, (1 << 64) - 1]).map(
        lambda number: struct.pack("<Q", number)
    ),
    st.integers(0, 0xFFFF).map(lambda number: struct.pack("<H", number)),
    NAMES.map(text),
    st.binary(max_size=9),
)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(st.sampled_from(KINDS) | st.integers(0, 255), st.lists(FIELDS, max_size=8)), max_size=30
    )
)
def test_any_requests_are_answered_and_leave_all_else_alone(
    client: Client, outside: Path, requests: list[tuple[int, list[bytes]]]
) -> None:
    client.server.answer(message(Ask.VERSION, 0, struct.pack("<I", 8192) + text(b"9P2000.L")))
    client.server.answer(message(Ask.ATTACH, 0, struct.pack("<II", 0, 0) + text(b"") + text(b"") + bytes(4)))
    for kind, fields in requests:
        answer = client.server.answer(message(kind, 3, b"".join(fields)))
        assert HEADER.unpack_from(answer)[0] == len(answer) <= 8192
        assert b"secret" not in answer or kind == Ask.READLINK
    assert (outside / "file").read_text() == "secret"
    assert os.listdir(outside) == ["file"]
