# SPDX-License-Identifier: GPL-2.0-only
"""NBD: with qemu-nbd and nbdkit, and with servers that die, lie and are slow."""

import contextlib
import errno
import socket
import struct
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from qemu_tools import tool

from pyhv.errors import ConfigError
from pyhv.storage.disk import DiskError
from pyhv.storage.nbd import Address, NbdDisk, parse_uri
from pyhv.storage.open import open_disk
from pyhv.storage.spec import DiskSpec, parse

MIB = 1 << 20


@contextlib.contextmanager
def serving(command: list[str], address: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A server that has begun to listen."""
    server = subprocess.Popen(command, stderr=subprocess.PIPE)
    try:
        until = time.monotonic() + 20
        while not address.exists():
            assert server.poll() is None, server.stderr and server.stderr.read()
            assert time.monotonic() < until
            time.sleep(0.01)
        yield server
    finally:
        server.kill()
        server.communicate()


def qemu_nbd(image: Path, address: Path, *options: str) -> list[str]:
    return [
        tool("qemu-nbd"),
        "-f",
        "raw",
        "-t",
        "-e",
        "8",
        "-x",
        "disk",
        "-k",
        str(address),
        *options,
        str(image),
    ]


def nbdkit(address: Path, *plugin: str, options: tuple[str, ...] = ()) -> list[str]:
    return [tool("nbdkit"), "-f", "-U", str(address), *options, *plugin]


def use(uri: str, image: Path) -> None:
    """Everything that a disk does."""
    with open_disk(parse(f"target={uri}")) as disk:
        assert disk.size == 2 * MIB
        assert not disk.read_only
        disk.write(1000, b"hello")
        disk.write_through(MIB - 3, b"x" * 70000)
        disk.flush()
        assert disk.read(998, 9) == b"\0\0hello\0\0"
        assert disk.read(0, 2 * MIB) == image.read_bytes()
        disk.discard(MIB, 65536)
        disk.zero(MIB - 4096, 4096)
        assert disk.read(MIB - 4096, 4096) == bytes(4096)
        assert disk.identity() == []
        with pytest.raises(DiskError):
            disk.read(2 * MIB, 1)
    assert image.read_bytes()[1000:1005] == b"hello"


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(bytes(2 * MIB))
    return path


def test_qemu_nbd(image: Path, tmp_path: Path) -> None:
    address = tmp_path / "a socket, with spaces"
    with serving(qemu_nbd(image, address), address):
        use(f"nbd+unix:///disk?socket={str(address).replace(' ', '%20')}", image)
        with pytest.raises(DiskError, match="it has no such export"):
            open_disk(parse(f"target=nbd+unix:///other?socket={str(address).replace(' ', '%20')}"))


def test_nbdkit(image: Path, tmp_path: Path) -> None:
    address = tmp_path / "s"
    with serving(nbdkit(address, "file", f"file={image}"), address):
        use(f"nbd+unix:///?socket={address}", image)


def test_a_disk_that_its_server_does_not_let_be_written(image: Path, tmp_path: Path) -> None:
    address = tmp_path / "s"
    with serving(qemu_nbd(image, address, "-r"), address):
        spec = DiskSpec(f"nbd+unix:///disk?socket={address}", "nbd")
        with pytest.raises(DiskError, match="does not let it be written") as caught:
            open_disk(spec)
        assert caught.value.errno == errno.EROFS
        with open_disk(DiskSpec(spec.target, "nbd", access="ro")) as disk:
            assert disk.read(0, 5) == bytes(5)
        with open_disk(DiskSpec(spec.target, "nbd", overlay="")) as disk:
            disk.write(0, b"mine")
            assert disk.read(0, 5) == b"mine\0"
            with pytest.raises(ConfigError, match="needs a file as its base"):
                open_disk(DiskSpec(spec.target, "nbd", overlay="kept"))


def test_several_threads_have_requests_under_way(image: Path, tmp_path: Path) -> None:
    """Each is delayed by the server, all of them together by little more than one."""
    address = tmp_path / "s"
    command = nbdkit(address, "file", f"file={image}", "rdelay=400ms", options=("--filter=delay", "-t", "8"))
    with serving(command, address), NbdDisk(Address(str(address), ""), read_only=False) as disk:
        for number in range(8):
            disk.write(number * 4096, bytes([number + 1]) * 4096)
        found: dict[int, bytes] = {}
        threads = [
            threading.Thread(target=lambda n=n: found.update({n: disk.read(n * 4096, 4096)}))
            for n in range(8)
        ]
        begun = time.monotonic()
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert time.monotonic() - begun < 2.4
        assert found == {number: bytes([number + 1]) * 4096 for number in range(8)}


@pytest.mark.promise("B-8")
def test_an_error_of_the_server_is_that_requests(tmp_path: Path) -> None:
    address = tmp_path / "s"
    fails = "pwrite=cat >/dev/null; echo ENOSPC the disk is full >&2; exit 1"
    reads = "pread=echo EIO bad sector >&2; exit 1"
    plugin = (
        "eval",
        "get_size=echo 1M",
        reads,
        fails,
        "can_write=exit 0",
        "flush=exit 0",
        "can_flush=exit 0",
    )
    with (
        serving(nbdkit(address, *plugin), address),
        NbdDisk(Address(str(address), ""), read_only=False) as disk,
    ):
        for act, number in (
            (lambda: disk.write(0, b"x"), errno.ENOSPC),
            (lambda: disk.read(0, 512), errno.EIO),
        ):
            with pytest.raises(DiskError, match="the server answers") as caught:
                act()
            assert caught.value.errno == number
        disk.flush()


@pytest.mark.promise("B-8")
def test_a_server_that_is_killed_costs_its_requests_and_no_more(image: Path, tmp_path: Path) -> None:
    address = tmp_path / "s"
    command = nbdkit(address, "file", f"file={image}", "rdelay=20", options=("--filter=delay",))
    errors: list[DiskError] = []

    def read(disk: NbdDisk) -> None:
        try:
            disk.read(0, 512)
        except DiskError as error:
            errors.append(error)

    with serving(command, address) as server, NbdDisk(Address(str(address), ""), read_only=True) as disk:
        threads = [threading.Thread(target=read, args=(disk,)) for _ in range(4)]
        for thread in threads:
            thread.start()
        time.sleep(0.1)
        assert errors == []
        server.kill()
        for thread in threads:
            thread.join(10)
            assert not thread.is_alive()
        assert len(errors) == 4
        assert all(
            "the server is lost: the server has closed the connection" in str(error) for error in errors
        )
        with pytest.raises(DiskError, match="the server is lost"):
            disk.read(0, 1)


# -- servers that are none -----------------------------------------------------------------------------------

HELLO = b"NBDMAGICIHAVEOPT" + struct.pack(">H", 3)


def option_reply(kind: int, data: bytes = b"", magic: int = 0x3E889045565A9, option: int = 7) -> bytes:
    return struct.pack(">QIII", magic, option, kind, len(data)) + data


def export(size: int = MIB, flags: int = 5) -> bytes:
    return option_reply(3, struct.pack(">HQH", 0, size, flags))


ACK = option_reply(1)
SIZES = struct.pack(">HIII", 3, 4096, 4096, MIB)


@contextlib.contextmanager
def saying(path: Path, act: Callable[[socket.socket], None]) -> Iterator[Address]:
    """Somebody who is told what to say to the first who comes."""
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen()

    def serve() -> None:
        with contextlib.suppress(OSError):
            stream, _ = listener.accept()
            with stream:
                act(stream)

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield Address(str(path), "x")
    finally:
        listener.close()
        thread.join(10)


@pytest.mark.parametrize(
    ("said", "why"),
    [
        (b"", "has closed the connection"),
        (b"HTTP/1.1 400 Bad Request\r\n\r\n", "does not speak NBD"),
        (b"NBDMAGIC\0\0\x42\x02\x81\x86\x12\x53\0\0", "does not speak NBD, or only an old form"),
        (b"NBDMAGICIHAVEOPT\0\0", "does not speak NBD"),
        (HELLO, "has closed the connection"),
        (HELLO + ACK, "does not say what its disk is"),
        (HELLO + option_reply(1 << 31 | 1), "it does not know NBD_OPT_GO"),
        (HELLO + option_reply(1 << 31 | 6, b"no \x1b[31m"), "it has no such export$"),
        (HELLO + option_reply(1 << 31 | 2, b"ask your administrator"),
         "its policy forbids it .ask your admin"),
        (HELLO + option_reply(1, magic=5), "as no NBD server does"),
        (HELLO + option_reply(1, option=1), "as no NBD server does"),
        (HELLO + struct.pack(">QIII", 0x3E889045565A9, 7, 3, 1 << 31), "as no NBD server does"),
        (HELLO + export(0) + ACK, "has 0 bytes"),
        (HELLO + export(511) + ACK, "has 511 bytes"),
        (HELLO + export((1 << 64) - 1) + ACK, "is too large"),
        (HELLO + export(flags=0) + ACK, "does not say what its disk is"),
        (HELLO + export(flags=7) + ACK, "does not let it be written"),
        (HELLO + option_reply(3, SIZES) + export() + ACK,"at least 4096 bytes"),
        (HELLO + option_reply(3, b"\0") * 70, "does not come to an end"),
    ],
)  # fmt: skip
def test_a_server_that_says_what_it_must_not(tmp_path: Path, said: bytes, why: str) -> None:
    def act(stream: socket.socket) -> None:
        stream.sendall(said)
        stream.shutdown(socket.SHUT_WR)
        while stream.recv(4096):
            pass

    with saying(tmp_path / "s", act) as address, pytest.raises(DiskError, match=why):
        NbdDisk(address, read_only=False)


@pytest.mark.promise("B-8")
@pytest.mark.parametrize(
    ("answer", "why"),
    [
        (lambda cookie: struct.pack(">IIQ", 0x67446698, 0, cookie + 1), "which nobody has asked"),
        (lambda cookie: struct.pack(">IIQ", 0x12345678, 0, cookie), "0x12345678 instead of an answer"),
        (lambda cookie: struct.pack(">IIQ", 0x67446698, 0, cookie) + b"short", "has closed the connection"),
        (lambda cookie: b"", "has closed the connection"),
        (lambda cookie: struct.pack(">IIQ", 0x67446698, 12345, cookie), "the server answers"),
    ],
)
def test_an_answer_that_is_none(tmp_path: Path, answer: Callable[[int], bytes], why: str) -> None:
    def act(stream: socket.socket) -> None:
        stream.sendall(HELLO + export() + ACK)
        greeting = 4 + 16 + 4 + 1 + 2 + 2
        asked = b""
        while len(asked) < greeting + 28:
            asked += stream.recv(4096)
        magic, _, command, cookie, offset, length = struct.unpack(">IHHQQI", asked[greeting:][:28])
        assert (magic, command, offset, length) == (0x25609513, 0, 512, 1024)
        stream.sendall(answer(cookie))

    with saying(tmp_path / "s", act) as address, NbdDisk(address, read_only=True) as disk:
        with pytest.raises(DiskError, match=why) as caught:
            disk.read(512, 1024)
        assert caught.value.errno == errno.EIO


def test_nobody_is_there(tmp_path: Path) -> None:
    with pytest.raises(DiskError, match=f"{tmp_path}/s: no NBD server answers there .No such file"):
        NbdDisk(Address(str(tmp_path / "s"), ""), read_only=True)
    with pytest.raises(DiskError, match="no NBD server answers there"):
        NbdDisk(Address("/" + "x" * 200, ""), read_only=True)


@pytest.mark.parametrize(
    "uri",
    ["nbd+unix:///", "nbd+unix:///x?socket=", "nbd+unix://host/x?socket=a", "nbd://x", "nbd+unix:///x?socket=a&b=c",
     "nbd+unix:///x?socket=a&socket=b", "nbd+unix:///x?socket=a#b", "nbd+unix:///x?socket=%00", "nbd+unix:///x?&",
     f"nbd+unix:///{'x' * 5000}?socket=a", "nbd+unix://[/?socket=a"],
)  # fmt: skip
def test_addresses_that_are_none(uri: str) -> None:
    with pytest.raises(ConfigError):
        parse_uri(uri)
