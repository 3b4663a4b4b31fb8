# SPDX-License-Identifier: GPL-2.0-only
"""Genuine xenstored 4.17, Xen's store, as a judge of ours: the same requests to both, as the same domain.

    apt-get download xen-utils-4.17         taken apart in the cache, never installed
    gcc xenstored.c                         stand-ins for the hypervisor's libraries, beside it

The daemon runs without a hypervisor: domain 0 speaks to it through its socket, and the domain under test
through a ring page in a file and a FIFO for its events.
"""

import mmap
import os
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pyhv.abi.xs_wire import Message
from pyhv.cache import cache_directory
from pyhv.errors import EnvironmentProblem
from pyhv.images import archive

PACKAGES = ("xen-utils-4.17",)
SUITE = "bookworm"
SOURCE = Path(__file__).with_suffix(".c")
LIBRARIES = ("libxenevtchn.so.1", "libxengnttab.so.1", "libxenctrl.so.4.17")
DAEMON = "usr/lib/xen-4.17/bin/xenstored"
DOMID = 5
HOME = f"/local/domain/{DOMID}"
REQ_CONS, REQ_PROD, RSP_CONS, RSP_PROD = 2048, 2052, 2056, 2060
PATIENCE_S = 20
_HEADER = struct.Struct("<4I")


class _Silent:
    def step(self, text: str) -> None:
        """Nobody looks on."""

    def transferred(self, done: int, total: int) -> None:
        """Nobody looks on."""


def tree() -> Path:
    """Where the package has been taken apart, in the cache."""
    target = cache_directory() / "xenstored-4.17"
    if not target.is_dir():
        target.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(prefix=".fetch-", dir=target.parent) as name:
            scratch = Path(name)
            scratch.chmod(0o755)  # apt, if run by root, downloads as its own user
            try:
                archive.Archive().download(list(PACKAGES), scratch, _Silent())
            except EnvironmentProblem:
                with archive.open_archive(SUITE, scratch, _Silent()) as packages:
                    packages.download(list(PACKAGES), scratch, _Silent())
            ready = scratch / "ready"
            for package in sorted(scratch.glob("*.deb")):
                archive.run_tool(["dpkg-deb", "-x", str(package), str(ready)])
            archive.publish(ready, target, is_complete=False)
    return target


def _stand_ins(directory: Path) -> None:
    compiler = shutil.which("gcc")
    assert compiler is not None, "xenstored's stand-ins are compiled: apt install gcc libc6-dev"
    for library in LIBRARIES:
        command = [compiler, "-std=gnu11", "-O1", "-Wall", "-Werror", "-shared", "-fPIC"]
        subprocess.run(
            [*command, f"-Wl,-soname,{library}", SOURCE, "-o", directory / library, "-ldl"], check=True
        )


class Xenstored:
    """The daemon, and domain `DOMID`'s connection to it."""

    def __init__(self, scratch: Path) -> None:
        _stand_ins(scratch)
        for name, content in (("ring", bytes(4096)), ("dom0-ring", bytes(4096)), ("dom0-port", b"1")):
            (scratch / name).write_bytes(content)
        os.mkfifo(scratch / "doorbell")
        environment = os.environ | {
            "LD_LIBRARY_PATH": str(scratch), "LD_PRELOAD": str(scratch / LIBRARIES[0]),
            "XENSTORED_RING": str(scratch / "ring"), "XENSTORED_DOORBELL": str(scratch / "doorbell"),
            "XENSTORED_DOM0_RING": str(scratch / "dom0-ring"),
            "XENSTORED_DOM0_PORT": str(scratch / "dom0-port"), "XENSTORED_RUNDIR": str(scratch),
            "XENSTORED_ROOTDIR": str(scratch),
        }  # fmt: skip
        self._doorbell = os.open(scratch / "doorbell", os.O_RDWR)
        with (scratch / "ring").open("r+b") as file:
            self._ring = mmap.mmap(file.fileno(), 4096)
        arguments = ["--no-fork", "--no-recovery", "--internal-db", "--pid-file", str(scratch / "pid")]
        self._daemon = subprocess.Popen(
            [tree() / DAEMON, *arguments], env=environment, stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        self._dom0 = socket.socket(socket.AF_UNIX)
        try:
            self._connect(scratch / "socket")
            self.as_dom0(Message.MKDIR, f"{HOME}\0")
            self.as_dom0(Message.SET_PERMS, f"{HOME}\0n{DOMID}\0")
            self.as_dom0(Message.INTRODUCE, f"{DOMID}\x001\x001\0")
        except BaseException:
            self.close()
            raise

    def _connect(self, path: Path) -> None:
        until = time.monotonic() + PATIENCE_S
        while True:
            try:
                self._dom0.connect(str(path))
            except OSError:
                if time.monotonic() > until:
                    raise
                time.sleep(0.01)
            else:
                self._dom0.settimeout(PATIENCE_S)
                return

    def as_dom0(self, kind: Message, text: str) -> bytes:
        """A request of domain 0's, which must succeed."""
        self._dom0.sendall(_HEADER.pack(kind, 1, 0, len(text)) + text.encode())
        answer = self._dom0.recv(_HEADER.size, socket.MSG_WAITALL)
        found, _, _, length = _HEADER.unpack(answer)
        payload = self._dom0.recv(length, socket.MSG_WAITALL) if length else b""
        assert found == kind, (kind, text, payload)
        return payload

    def request(self, kind: Message, payload: bytes, tx: int = 0) -> tuple[Message, bytes]:
        """A request of the domain's: the kind and payload of the reply. Watch events are passed over."""
        self._send(_HEADER.pack(kind, 1, tx, len(payload)) + payload)
        while True:
            found, _, _, length = _HEADER.unpack(self._receive(_HEADER.size))
            answer = self._receive(length)
            if found != Message.WATCH_EVENT:
                return Message(found), answer

    def _word(self, at: int) -> int:
        return int.from_bytes(self._ring[at : at + 4], "little")

    def _store(self, at: int, value: int) -> None:
        self._ring[at : at + 4] = (value & 0xFFFF_FFFF).to_bytes(4, "little")
        os.write(self._doorbell, b"!")

    def _send(self, data: bytes) -> None:
        until = time.monotonic() + PATIENCE_S
        while data:
            at = self._word(REQ_PROD)
            room = 1024 - (at - self._word(REQ_CONS) & 0xFFFF_FFFF)
            for offset, byte in enumerate(data[:room]):
                self._ring[at + offset & 1023] = byte
            if room:
                self._store(REQ_PROD, at + len(data[:room]))
            data = data[room:]
            assert time.monotonic() < until, "xenstored does not read"

    def _receive(self, length: int) -> bytes:
        until, data = time.monotonic() + PATIENCE_S, bytearray()
        while len(data) < length:
            at = self._word(RSP_CONS)
            there = min(self._word(RSP_PROD) - at & 0xFFFF_FFFF, length - len(data))
            data += bytes(self._ring[1024 + (at + offset & 1023)] for offset in range(there))
            if there:
                self._store(RSP_CONS, at + there)
            assert time.monotonic() < until, "xenstored does not answer"
        return bytes(data)

    def close(self) -> None:
        """End the daemon."""
        self._dom0.close()
        self._daemon.kill()
        self._daemon.wait()
        self._ring.close()
        os.close(self._doorbell)


@contextmanager
def xenstored() -> Iterator[Xenstored]:
    """A daemon of its own."""
    with tempfile.TemporaryDirectory(prefix="xenstored-") as name:
        daemon = Xenstored(Path(name))
        try:
            yield daemon
        finally:
            daemon.close()
