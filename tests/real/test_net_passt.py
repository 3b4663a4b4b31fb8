# SPDX-License-Identifier: GPL-2.0-only
"""The real passt at the end of a wire, with services on the host's loopback."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from frames import FROM
from station import PSH, Station

from pyhv.errors import EnvironmentProblem, ExitCode
from pyhv.net import passt
from pyhv.net.passt import Passt
from pyhv.net.spec import Forward

pytestmark = pytest.mark.skipif(
    not (shutil.which("passt") or "CI" in os.environ), reason="needs Debian's package passt"
)


def running() -> set[int]:
    """Processes that are passt's."""
    found = subprocess.run(["pgrep", "-x", "passt|passt.avx2"], capture_output=True, text=True).stdout
    return {int(word) for word in found.split()}


def gone(pids: set[int]) -> bool:
    """Whether these processes end, soon."""
    end = time.monotonic() + 10
    while pids & running():
        if time.monotonic() > end:
            return False
        time.sleep(0.02)
    return True


@pytest.fixture
def started() -> Iterator[set[int]]:
    """Processes that the test has started; none of them outlives it."""
    before = running()
    found: set[int] = set()
    yield found
    assert gone(running() - before)


def wire(*forwards: Forward) -> "closing[Passt]":
    return closing(passt.start(forwards, "user", FROM))


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def echo(server: socket.socket) -> None:
    """Answer the first client with what it sends, in capitals, until it has sent all."""
    client, _ = server.accept()
    with client:
        while data := client.recv(65536):
            client.sendall(data.upper())


@pytest.mark.usefixtures("started")
def test_dhcp_udp_and_tcp_to_the_hosts_loopback() -> None:
    with wire() as link:
        station = Station(link)
        station.dhcp()
        assert any(station.address)
        assert station.mtu > 1500, "and so frames are large"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as server:
            server.bind(("127.0.0.1", 0))
            server.settimeout(10)
            port = server.getsockname()[1]
            station.udp(4000, station.gateway, port, b"ping")
            data, client = server.recvfrom(100)
            server.sendto(data.upper(), client)
            assert station.receive(17, 4000)[2][8:] == b"PING"
        with socket.create_server(("127.0.0.1", 0)) as server:
            thread = threading.Thread(target=echo, args=(server,), daemon=True)
            thread.start()
            stream = station.tcp(4001, station.gateway, server.getsockname()[1])
            for number in range(20):
                stream.send(b"line %d\n" % number * 100)
                assert stream.read(len(b"line %d\n" % number * 100)) == b"LINE %d\n" % number * 100
            stream.put(17)
            thread.join(10)
            assert not thread.is_alive()


@pytest.mark.usefixtures("started")
def test_a_port_of_the_host_leads_to_the_guest() -> None:
    tcp, udp = free_port(), free_port(socket.SOCK_DGRAM)
    with wire(Forward("tcp", "127.0.0.1", tcp, 22), Forward("udp", "127.0.0.1", udp, 53)) as link:
        station = Station(link)
        station.dhcp()
        station.udp(9, station.gateway, 9, b"here I am")
        with socket.create_connection(("127.0.0.1", tcp), timeout=10) as client:
            stream = station.accept(22)
            client.sendall(b"hello")
            assert stream.read(5) == b"hello"
            stream.put(16 | PSH, b"SSH-2.0")
            assert client.recv(100) == b"SSH-2.0"
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as client:
            client.settimeout(10)
            client.connect(("127.0.0.1", udp))
            client.send(b"question")
            peer, port, datagram = station.receive(17, 53)
            assert datagram[8:] == b"question"
            station.udp(53, peer, port, b"answer")
            assert client.recv(100) == b"answer"


@pytest.mark.usefixtures("started")
def test_a_port_that_is_taken_is_one_sentence() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        with pytest.raises(EnvironmentProblem) as refused:
            passt.start((Forward("tcp", "127.0.0.1", port, 22),), "user", FROM)
    assert refused.value.exit_code is ExitCode.ENVIRONMENT
    assert str(refused.value) == f"--net user: port 127.0.0.1:{port} of hostfwd is taken, or not yours to use"


def test_without_passt_one_is_told_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(EnvironmentProblem, match="apt-get install passt"):
        passt.start((), "user", FROM)


@pytest.mark.promise("N-7")
@pytest.mark.usefixtures("started")
def test_its_death_is_noticed() -> None:
    before = running()
    with wire() as link:
        station = Station(link)
        station.dhcp()
        (pid,) = running() - before
        assert pid == link.pid
        os.kill(pid, signal.SIGKILL)
        deadline = time.monotonic() + 10
        while link.connected:
            link.receive()
            assert time.monotonic() < deadline
        assert not link.open
        assert link.problem == "passt has ended"


@pytest.mark.promise("N-7")
def test_it_ends_with_a_process_that_is_killed() -> None:
    before = running()
    code = (
        "import os\nfrom pyhv.net import passt\n"
        "passt.start((), 'user', bytes.fromhex('00163e000001'))\nos.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code], capture_output=True)
    assert killed.returncode == -signal.SIGKILL
    assert gone(running() - before)
