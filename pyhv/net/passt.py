# SPDX-License-Identifier: GPL-2.0-only
"""The way out without root: passt, a process that speaks Ethernet to us and plain sockets to the host.

It answers DHCP, ARP and DNS, and makes an ordinary connection of the host's of each that the guest makes;
ports of the host may lead to the guest's (`Forward`). The program is Debian's package `passt`. It gets one
end of a pair of sockets (QEMU's stream framing, `stream.py`) and ends when ours is closed, so that nothing
of it is left behind, however pyhv ends. When it is ready it does not say; but then it answers ARP.
"""

import re
import select
import shutil
import socket
import struct
import subprocess
import tempfile
import time
from typing import IO, Final

from pyhv.errors import EnvironmentProblem
from pyhv.net.frame import Frame
from pyhv.net.mac import BROADCAST
from pyhv.net.spec import Forward
from pyhv.net.stream import Wire

PROGRAM: Final = "passt"
_READY_S: Final = 2.0
"""How long its first answer is waited for; without IPv4 there is none, and then it is taken for ready."""
_END_S: Final = 5.0
_UNUSED: Final = bytes([192, 0, 2, 1]), bytes([198, 51, 100, 1])
"""Of nobody (RFC 5737). For the address of the host itself passt does not answer."""
_PORT: Final = re.compile(r"bind.*'-[tu] ([^']*):\d+'")


class Passt(Wire):
    """A wire to a passt of its own; it ends with the wire."""

    def __init__(self, ours: socket.socket, process: "subprocess.Popen[bytes]", name: str) -> None:
        """`name` is for messages. Use `start`."""
        super().__init__(None, ours, name)
        self.pid = process.pid
        self._process = process

    def close(self) -> None:
        """End it, and passt."""
        super().close()
        try:
            self._process.wait(_END_S)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def _lose(self, why: str) -> None:
        super()._lose(why)
        self.problem = self.problem or "passt has ended"


def start(forwards: tuple[Forward, ...], name: str, hardware: bytes) -> Passt:
    """A passt for the guest with this address. `name` is for messages.

    EnvironmentProblem: it is not installed, or a port is taken, or it finds no network.
    """
    program = shutil.which(PROGRAM)
    if program is None:
        raise EnvironmentProblem(
            "--net user needs passt, which is not there: install it as root (apt-get install passt)"
        )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    with tempfile.TemporaryFile() as said:
        with theirs:
            command = [program, *_arguments(forwards, theirs.fileno())]
            try:
                process = subprocess.Popen(
                    command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL,
                    stderr=said, start_new_session=True,
                )  # fmt: skip
            except OSError as cause:
                ours.close()
                raise EnvironmentProblem(f"passt cannot be started ({cause.strerror or cause})") from cause
        ours.setblocking(False)
        wire = Passt(ours, process, name)
        try:
            if not _is_ready(wire, hardware):
                raise _refusal(said)
        except BaseException:
            wire.close()
            raise
    return wire


def _arguments(forwards: tuple[Forward, ...], descriptor: int) -> list[str]:
    words = ["--foreground", "--quiet", "--fd", str(descriptor)]
    for option, protocol in (("--tcp-ports", "tcp"), ("--udp-ports", "udp")):
        chosen = [one for one in forwards if one.protocol == protocol]
        for one in chosen:
            address = f"{one.address}/" if one.address else ""
            words += [option, f"{address}{one.port}:{one.guest_port}"]
        if not chosen:
            words += [option, "none"]
    return words


def _is_ready(wire: Wire, hardware: bytes) -> bool:
    """Wait until it answers, or for as long as it might; False if it ends instead."""
    for address in _UNUSED:  # "who has it?", from somebody who has no address yet (RFC 5227)
        ask = struct.pack(">HHHBBH6s4x6x4s", 0x0806, 1, 0x0800, 6, 4, 1, hardware, address)
        wire.send(Frame(BROADCAST + hardware + ask))
    wire.flush()
    end = time.monotonic() + _READY_S
    while wire.connected and (left := end - time.monotonic()) > 0:
        select.select([wire], [], [], left)
        if wire.receive():
            return True
    return wire.connected


def _refusal(said: IO[bytes]) -> EnvironmentProblem:
    """Why it has ended at once, of what it has said."""
    said.seek(0)
    lines = said.read().decode(errors="replace").splitlines()
    words = [line.strip() for line in lines if line.strip() and "to syslog" not in line]
    last = words[-1] if words else "it has ended without a word"
    port = _PORT.search(last)
    if port is not None:
        address = port[1].replace("/", ":")
        return EnvironmentProblem(f"--net user: port {address} of hostfwd is taken, or not yours to use")
    return EnvironmentProblem(f"passt cannot serve --net user: {last.removesuffix(', exiting').rstrip('.')}")
