# SPDX-License-Identifier: GPL-2.0-only
"""Frames over a UNIX socket, as QEMU's `-netdev stream` and `-netdev socket` have them, and passt.

    | length, 4 bytes, the highest first | that many bytes of a frame | length | ...

The other side is a process of the same host, and is not believed either: a length that no frame has ends
the connection, since nothing after it has a meaning. It may send a frame in pieces, and read slowly or
never; nobody waits for it. What it does not take is kept up to a bound, and beyond that dropped, as on
any wire.

A `Wire` is one end of such a wire. It connects, or listens and has one peer at a time. If the peer goes,
one that listens waits for the next one, and one that had connected is over.
"""

import errno
import os
import socket
import stat
from collections import deque
from pathlib import Path
from typing import Final

from pyhv.errors import EnvironmentProblem
from pyhv.net.frame import HEADER, MAX_FRAME, Frame, completed

LONGEST: Final = 68 << 10
"""Bytes of a frame as its peer may announce it: what QEMU's own buffer holds. Longer ones are no frames."""
MAX_WAITING: Final = 4 << 20
"""Bytes that wait for a peer, at most."""
_PIECE: Final = 256 << 10
_LENGTH: Final = 4


class StreamBroken(Exception):
    """A peer has sent what is no stream of frames; the message says what."""


class Assembler:
    """Makes frames of pieces of a stream."""

    def __init__(self) -> None:
        self._held = bytearray()

    def feed(self, piece: bytes) -> list[bytes]:
        """The frames that are complete with this piece; what is none for its length is left out.

        StreamBroken: a length that cannot be; nothing of the stream is understood from there on.
        """
        held = self._held
        held += piece
        frames, at = [], 0
        while len(held) - at >= _LENGTH:
            size = int.from_bytes(held[at : at + _LENGTH], "big")
            if not 0 < size <= LONGEST:
                raise StreamBroken(f"a frame of {size} bytes was announced, and {LONGEST} are the most")
            if len(held) - at - _LENGTH < size:
                break
            at += _LENGTH
            if HEADER <= size <= MAX_FRAME:
                frames.append(bytes(held[at : at + size]))
            at += size
        del held[:at]
        return frames


def framed(data: bytes) -> bytes:
    """A frame as it is sent."""
    return len(data).to_bytes(_LENGTH, "big") + data


class Wire:
    """One end of a stream of frames. No method waits."""

    def __init__(self, listening: socket.socket | None, peer: socket.socket | None, name: str) -> None:
        """`name` is for messages. Use `listen` or `connect`."""
        self.name = name
        self.problem = ""
        """Why the last peer is gone, if not by its own will; a sentence's end."""
        self.dropped = 0
        """Frames that the peer was too slow for, or that nobody was there to take."""
        self._listening = listening
        self._peer = peer
        self._assembler = Assembler()
        self._waiting: deque[bytes] = deque()
        self._size = 0

    @property
    def open(self) -> bool:
        """Whether there is a peer, or may be one again."""
        return self._peer is not None or self._listening is not None

    @property
    def connected(self) -> bool:
        """Whether there is a peer."""
        return self._peer is not None

    @property
    def waits(self) -> bool:
        """Whether something waits for the peer to read."""
        return bool(self._waiting)

    def fileno(self) -> int:
        """What to wait on, for reading: the peer, or until there is one the socket that it will come to."""
        one = self._peer or self._listening
        return -1 if one is None else one.fileno()

    def receive(self) -> list[bytes]:
        """Frames that have come; empty: there are none for now, or the peer has come or gone."""
        if self._peer is None:
            self._accept()
            return []
        try:
            piece = self._peer.recv(_PIECE)
        except (BlockingIOError, InterruptedError):
            return []
        except OSError as cause:
            self._lose(cause.strerror or str(cause))
            return []
        if not piece:
            self._lose("")
            return []
        try:
            return self._assembler.feed(piece)
        except StreamBroken as broken:
            self._lose(str(broken))
            return []

    def send(self, frame: Frame) -> None:
        """Send a frame, or keep it for when the peer reads; it is no longer cut or summed there."""
        for plain in completed(frame):
            data = framed(plain.data)
            if self._peer is None or self._size + len(data) > MAX_WAITING:
                self.dropped += 1
                continue
            self._waiting.append(data)
            self._size += len(data)

    def flush(self) -> None:
        """Give the peer what it takes."""
        while self._waiting and self._peer is not None:
            data = self._waiting[0]
            try:
                count = self._peer.send(data)
            except (BlockingIOError, InterruptedError):
                return
            except OSError as cause:
                self._lose("" if cause.errno == errno.EPIPE else cause.strerror or str(cause))
                return
            self._size -= count
            if count < len(data):
                self._waiting[0] = data[count:]
            else:
                self._waiting.popleft()

    def close(self) -> None:
        """End it. Of one that listens the socket's name is taken away."""
        if self._peer is not None:
            self._peer.close()
        if self._listening is not None:
            path = self._listening.getsockname()
            self._listening.close()
            if path and os.path.exists(path):
                os.unlink(path)
        self._peer = self._listening = None
        self._waiting.clear()
        self._size = 0

    def _accept(self) -> None:
        if self._listening is None:
            return
        try:
            self._peer, _ = self._listening.accept()
        except OSError:  # it has come and gone, or there are no descriptors: it may try again
            return
        self._peer.setblocking(False)
        self._assembler, self.problem = Assembler(), ""

    def _lose(self, why: str) -> None:
        assert self._peer is not None
        self._peer.close()
        self._peer, self.problem = None, why
        self.dropped += len(self._waiting)
        self._waiting.clear()
        self._size = 0


def listen(path: Path) -> Wire:
    """Wait for a peer at a socket of that name. EnvironmentProblem: it cannot be made, or somebody has it."""
    made = _socket(path)
    try:
        if _is_socket(path) and _nobody_listens(path):
            path.unlink()
        made.bind(str(path))
        made.listen(1)
    except OSError as cause:
        made.close()
        taken = cause.errno == errno.EADDRINUSE
        reason = "the name is taken" if taken else cause.strerror or str(cause)
        raise EnvironmentProblem(f"{path}: no socket for a network can be made there ({reason})") from cause
    made.setblocking(False)
    return Wire(made, None, str(path))


def connect(path: Path) -> Wire:
    """Go to the socket of that name. EnvironmentProblem: nobody is there."""
    made = _socket(path)
    try:
        made.connect(str(path))
    except OSError as cause:
        made.close()
        reason = cause.strerror or str(cause)
        raise EnvironmentProblem(f"{path}: nobody serves a network there ({reason})") from cause
    made.setblocking(False)
    return Wire(None, made, str(path))


def _socket(path: Path) -> socket.socket:
    if len(os.fsencode(path)) > 107:
        raise EnvironmentProblem(f"{path}: a socket's path has at most 107 bytes; choose a shorter one")
    return socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)


def _is_socket(path: Path) -> bool:
    return path.exists() and stat.S_ISSOCK(path.stat().st_mode)


def _nobody_listens(path: Path) -> bool:
    """Whether a socket's name is what a process has left behind."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        return probe.connect_ex(str(path)) == errno.ECONNREFUSED
