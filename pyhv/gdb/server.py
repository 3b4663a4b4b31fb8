# SPDX-License-Identifier: GPL-2.0-only
"""The stub's socket: it waits for a gdb, reads what it sends, and writes what its session answers.

One client at a time; others wait until it has gone. A client that breaks the protocol, sends what never ends,
or does not read what it is told, loses its session, and nothing else is lost. Who has the machine's loop asks
here between two turns: `waits` says that nobody may run now, and `fileno` becomes readable when there is
something to `pump`.
"""

import os
import selectors
import socket
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Final

from pyhv.debugger import Debugger
from pyhv.errors import ConfigError, EnvironmentProblem
from pyhv.gdb.packets import Mark, PacketReader, ProtocolError, packet
from pyhv.gdb.session import Backwards, GdbSession
from pyhv.machine import Machine

LOCAL: Final = "127.0.0.1:0"
"""The address if none is named: loopback, and a port that is free."""
_CHUNK: Final = 1 << 16
_MOST_UNREAD: Final = 1 << 20
"""Bytes that a client may leave unread."""


def parse_address(text: str) -> tuple[str, int] | Path:
    """`HOST:PORT`, `:PORT`, a port alone, or `unix:PATH`. ConfigError."""
    if text.startswith("unix:") and len(text) > len("unix:"):
        return Path(text.removeprefix("unix:"))
    host, colon, port = text.rpartition(":")
    if not port.isdecimal() or int(port) > 0xFFFF or (colon and host.startswith("unix")):
        raise ConfigError(f"{text!r} is no address for gdb: say HOST:PORT, a port, or unix:PATH.")
    return host.strip("[]") or "127.0.0.1", int(port)


class GdbServer:
    """Serves gdb for the guests of a machine. The guests stand still until a client lets them go.

    `backwards` makes who takes the machine back; `keep_pace` is told whether time may go with the host's.
    `guest` is the domid of the one to whom a client is attached that has just come. EnvironmentProblem: the
    address cannot be had. ConfigError: it is none, or the machine has a debugger.
    """

    def __init__(
        self,
        machine: Machine,
        guest: int,
        address: str = "",
        backwards: Callable[[Debugger], Backwards | None] = lambda _debugger: None,
        keep_pace: Callable[[bool], None] = lambda _on: None,
    ) -> None:
        self._machine, self._guest = machine, guest
        self._keep_pace = keep_pace
        self._unix: Path | None = None
        where = parse_address(address or LOCAL)
        self._debugger: Debugger = machine.debug()
        try:
            self._listener = self._listen(where)
        except EnvironmentProblem:
            machine.end_debugging()
            raise
        self._selector = selectors.DefaultSelector()
        self._backwards = backwards(self._debugger)
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._client: _Client | None = None
        self._is_held = False
        self._hold(True)

    def _hold(self, on: bool) -> None:
        """Nobody runs, or (false) all run: the guests wait for a client, or for the one that there is."""
        if on is not self._is_held:
            self._is_held = on
            self._keep_pace(not on)

    def _listen(self, address: tuple[str, int] | Path) -> socket.socket:
        try:
            if isinstance(address, Path):
                _remove_stale(address)
                listener = _listen_at(address)
                self._unix = address
            else:
                family = socket.getaddrinfo(*address, type=socket.SOCK_STREAM)[0][0]
                listener = socket.create_server(address, family=family)
        except OSError as cause:
            where = f"unix:{address}" if isinstance(address, Path) else f"{address[0]}:{address[1]}"
            raise EnvironmentProblem(
                f"gdb cannot be served at {where}: {cause.strerror or cause}."
            ) from cause
        listener.setblocking(False)
        return listener

    @property
    def address(self) -> str:
        """What `target remote` takes."""
        if self._unix is not None:
            return str(self._unix.absolute())
        host, port = self._listener.getsockname()[:2]
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"

    def command(self, symbols: Path | None) -> str:
        """The command line that starts gdb, with the kernel's symbols if there are any."""
        files = f" -ex 'file {symbols}'" if symbols is not None else ""
        return f"gdb{files} -ex 'target remote {self.address}'"

    # -- between two turns -------------------------------------------------------------------------------

    @property
    def waits(self) -> bool:
        """Whether nobody may run now. First of all, the client is told what has happened."""
        client = self._client
        if client is not None:
            reply = client.session.look()
            if reply is not None:
                client.send(reply)
            self._hold(client.session.stopped and bool(client.session.attached))
        elif self._debugger.stop is not None:  # nobody is there to be told
            self._debugger.go()
        return self._is_held and bool(self._machine.residents)

    @property
    def connected(self) -> bool:
        """Whether a client is there."""
        return self._client is not None

    @property
    def detached(self) -> bool:
        """Whether a client has been there, and has let the guests go."""
        return self._client is None and not self._is_held

    def fileno(self) -> int:
        """Readable when there is something to `pump`."""
        return self._selector.fileno()

    def pump(self, timeout: float | None = 0) -> bool:
        """Serve what has come, waiting for it up to `timeout` seconds (None: for as long as it takes).
        True."""
        for key, events in self._selector.select(timeout):
            if key.fileobj is self._listener:
                self._accept()
            elif self._client is not None:
                self._serve(self._client, events)
        return True

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has gone again
        connection.setblocking(False)
        if connection.family != socket.AF_UNIX:
            connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        there = self._machine.residents.domids()
        guest = self._guest if self._guest in there else next(iter(there), None)
        self._client = _Client(connection, GdbSession(self._machine, self._debugger, guest, self._backwards))
        self._hold(True)
        self._selector.unregister(self._listener)
        self._selector.register(connection, selectors.EVENT_READ)

    def _serve(self, client: "_Client", events: int) -> None:
        try:
            if events & selectors.EVENT_READ:
                client.receive()
            client.flush()
        except (ConnectionClosed, ProtocolError):
            client.gone = True
        if client.gone or (client.session.over and not client.unsent):
            self._let_go(client)
            return
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if client.unsent else 0)
        self._selector.modify(client.connection, wanted)

    def _let_go(self, client: "_Client") -> None:
        """The client has gone. If it has detached, or the guests ran, they run on; else they wait for
        another."""
        client.session.leave()
        if client.session.over or not client.session.stopped:
            self._debugger.go()
            self._hold(False)
        self._selector.unregister(client.connection)
        client.connection.close()
        self._client = None
        self._selector.register(self._listener, selectors.EVENT_READ)

    def close(self) -> None:
        """Serve no more; the guests are let go."""
        if self._client is not None:
            self._let_go(self._client)
        self._selector.close()
        self._listener.close()
        if self._unix is not None:
            self._unix.unlink(missing_ok=True)
        self._machine.end_debugging()


class ConnectionClosed(Exception):
    """The client has gone."""


class _Client:
    """A connection and its session."""

    def __init__(self, connection: socket.socket, session: GdbSession) -> None:
        self.connection, self.session = connection, session
        self.unsent = bytearray()
        self.gone = False
        self._reader = PacketReader()
        self._last = b""
        """The packet that was sent last, should it have to be sent again."""

    def receive(self) -> None:
        """Handle what has come. ConnectionClosed, ProtocolError."""
        try:
            data = self.connection.recv(_CHUNK)
        except BlockingIOError:
            return
        except OSError as cause:
            raise ConnectionClosed from cause
        if not data:
            raise ConnectionClosed
        for item in self._reader.feed(data):
            self._handle(item)

    def _handle(self, item: bytes | Mark) -> None:
        session = self.session
        if item is Mark.INTERRUPT:
            reply = session.interrupt()
        elif item is Mark.NAK:
            self._write(self._last)
            return
        elif item is Mark.ACK:
            return
        elif item is Mark.DAMAGED:
            self._write(b"-")
            return
        else:
            assert isinstance(item, bytes)
            if self._reader.checks:
                self._write(b"+")
            reply = session.handle(item)
            if session.without_acks:
                self._reader.checks = False
        if reply is not None:
            self.send(reply)

    def send(self, reply: bytes) -> None:
        """Send a packet, as soon as the client takes it."""
        self._last = packet(reply)
        self._write(self._last)

    def _write(self, data: bytes) -> None:
        self.unsent += data
        self.flush()

    def flush(self) -> None:
        """Write what the client takes. A client that is gone is found out when it is read from."""
        while self.unsent:
            try:
                count = self.connection.send(self.unsent)
            except BlockingIOError:
                break
            except OSError:
                self.unsent.clear()
                self.gone = True
                break
            del self.unsent[:count]
        if len(self.unsent) > _MOST_UNREAD:
            raise ProtocolError("the client does not read what it is told")


def _listen_at(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    try:
        listener.bind(str(path))
        listener.listen()
    except BaseException:
        listener.close()
        raise
    return listener


def _remove_stale(path: Path) -> None:
    """Remove a socket that nobody listens at any more."""
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            return
    except OSError:
        return
    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(str(path))
        except ConnectionRefusedError:
            path.unlink(missing_ok=True)
