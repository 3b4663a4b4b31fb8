# SPDX-License-Identifier: GPL-2.0-only
"""Debian's Linux with xen-netfront: two guests on a switch, and one that reaches the host through passt."""

import hashlib
import http.server
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

import pyhv
from pyhv.net.frame import Frame
from pyhv.observe.digest import Digest

pytestmark = pytest.mark.debian
needs_passt = pytest.mark.skipif(
    not (shutil.which("passt") or "CI" in os.environ), reason="needs Debian's package passt"
)
BLOB = hashlib.shake_128(b"blob").digest(4 << 20)
PROMPT = r"/ # "
HERE, THERE = "10.0.0.1", "10.0.0.2"


def up(guest: pyhv.Guest, address: str) -> None:
    assert guest.run(f"ip addr add {address}/24 dev eth0 && ip link set eth0 up")


@pytest.fixture(scope="module")
def booted() -> Iterator[tuple[pyhv.Machine, "pyhv.Snapshot"]]:
    """Two guests on a switch, with addresses, at their prompts."""
    with pyhv.Machine(memory="288M", virtual_time=True, seed=1) as machine:
        for name, address in (("here", HERE), ("there", THERE)):
            guest = machine.boot("debian", name=name, nets=["switch"], append="quiet")
            guest.expect(PROMPT, timeout=60)
            up(guest, address)
        yield machine, machine.snapshot()


def download(machine: pyhv.Machine) -> str:
    """One guest serves a megabyte of noise, and the other one fetches it; the digest of the run."""
    digest = Digest()
    cancel = machine.on("exit", digest.exit)
    here, there = (machine.domains[name] for name in ("here", "there"))
    served = there.run("head -c 1000000 /dev/urandom >/tmp/noise && httpd -h /tmp && md5sum </tmp/noise")
    fetched = here.run(f"wget -q -O - http://{THERE}/noise | md5sum", timeout=60)
    assert fetched.output == served.output
    cancel()
    return digest.summary()


@pytest.mark.promise("N-4")
def test_two_guests(booted: tuple[pyhv.Machine, "pyhv.Snapshot"]) -> None:
    machine, snapshot = booted
    machine.revert(snapshot)
    here, there = (machine.domains[name] for name in ("here", "there"))
    assert "3 packets received" in here.run(f"ping -c 3 {THERE}").output
    assert "2 packets received" in there.run(f"ping -c 2 -s 9000 {HERE}").output, "in fragments"
    assert not here.run(f"ping -c 1 -w 3 {THERE[:-1]}9")
    digest = download(machine)
    assert machine.audit() == []
    machine.revert(snapshot)
    assert "3 packets received" in machine.domains["here"].run(f"ping -c 3 {THERE}").output
    assert "2 packets received" in machine.domains["there"].run(f"ping -c 2 -s 9000 {HERE}").output
    assert machine.domains["here"].run(f"ping -c 1 -w 3 {THERE[:-1]}9").status != 0
    assert download(machine) == digest, "to the byte"


def test_large_frames_and_checksums_go_through_whole(
    booted: tuple[pyhv.Machine, "pyhv.Snapshot"], tmp_path: Path
) -> None:
    machine, snapshot = booted
    machine.revert(snapshot)
    seen: list[Frame] = []
    machine.hypervisor.dom0.networks.watch(seen.append)
    download(machine)
    assert max(len(frame.data) for frame in seen) > 10_000
    assert any(frame.checksum is not None for frame in seen)


def test_devices_come_and_go(booted: tuple[pyhv.Machine, "pyhv.Snapshot"]) -> None:
    machine, snapshot = booted
    machine.revert(snapshot)
    here = machine.domains["here"]
    number = here.attach_net("switch=other,mac=00:16:3e:aa:bb:cc")
    machine.run(seconds=0.5)
    assert "00:16:3e:aa:bb:cc" in here.run("ip link show eth1").output
    here.detach_net(number)
    machine.run(seconds=0.5)
    assert not here.run("ip link show eth1")
    assert list(machine.hypervisor.dom0.networks.switches) == ["xenbr0"]
    assert "1 packets received" in here.run(f"ping -c 1 {THERE}").output


# -- to the host -------------------------------------------------------------------------------------------


class Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BLOB)))
        self.end_headers()
        self.wfile.write(BLOB)

    def log_message(self, *_words: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[int]:
    """The port of a web server on the host's loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server.server_port
        server.shutdown()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@needs_passt
@pytest.mark.parametrize("virtual", [True, False])
def test_a_guest_reaches_the_host_and_is_reached(web: int, virtual: bool) -> None:
    port = free_port()
    with pyhv.Machine(memory="160M", virtual_time=virtual) as machine:
        net = f"user,hostfwd=tcp:127.0.0.1:{port}-:7"
        guest = machine.boot("debian", nets=[net], append="quiet")
        guest.expect(PROMPT, timeout=120)
        assert guest.run("ip link set eth0 up && udhcpc -n -q -O mtu", timeout=60)
        route = re.search(r"default via (\S+)", guest.run("ip route").output)
        assert route is not None
        fetched = guest.run(f"wget -q -O - http://{route[1]}:{web}/blob | md5sum", timeout=120)
        assert fetched.output.startswith(hashlib.md5(BLOB).hexdigest())
        guest.run("(echo hello from the guest | nc -l -p 7 >/tmp/heard) & sleep 1")
        answers: list[bytes] = []

        def ask() -> None:
            with socket.create_connection(("127.0.0.1", port), timeout=20) as client:
                client.sendall(b"hello from the host\n")
                client.shutdown(socket.SHUT_WR)
                while piece := client.recv(100):
                    answers.append(piece)

        thread = threading.Thread(target=ask)
        thread.start()
        machine.run(lambda: not thread.is_alive(), seconds=60)
        thread.join(1)
        assert b"".join(answers) == b"hello from the guest\n"
        assert guest.run("cat /tmp/heard").output == "hello from the host\n"
        assert machine.audit() == []


@pytest.mark.promise("N-7")
@needs_passt
def test_passt_dies_and_the_guest_lives_on() -> None:
    with pyhv.Machine(memory="160M") as machine:
        guest = machine.boot("debian", nets=["user"], append="quiet")
        guest.expect(PROMPT, timeout=120)
        assert guest.run("ip link show eth0")
        (wire,) = machine.wires._wires.values()
        os.kill(wire.pid, signal.SIGKILL)  # type: ignore[attr-defined]
        machine.run(seconds=1)
        assert machine.wires.take_lost() == ["vif1.0:user leads nowhere any more: passt has ended"]
        assert not guest.run("ip link show eth0")
        assert guest.run("echo well").output == "well\n"


def pyhv_boot(*words: str, typed: str, path: str | None = None) -> "subprocess.CompletedProcess[str]":
    code = "from pyhv.cli.main import main; main()"
    environment = os.environ if path is None else {**os.environ, "PATH": path}
    return subprocess.run(
        [sys.executable, "-c", code, "boot", "debian", "--append", "quiet", *words],
        input=typed, capture_output=True, text=True, timeout=180, env=environment,
    )  # fmt: skip


@needs_passt
def test_from_the_command_line(tmp_path: Path, web: int) -> None:
    port, capture = free_port(), tmp_path / "lan.pcap"
    typed = (
        "ip link set eth0 up; udhcpc -n -q; set -- $(ip route)\n"
        f"wget -q -O - http://$3:{web}/blob | md5sum; poweroff -f\n"
    )
    net = f"user,hostfwd=tcp:127.0.0.1:{port}-:22"
    ran = pyhv_boot("--net", net, "--pcap", str(capture), "--timeout", "100", typed=typed)
    assert ran.returncode == 0, ran.stderr + ran.stdout
    assert hashlib.md5(BLOB).hexdigest() in ran.stdout
    assert capture.stat().st_size > len(BLOB)


@needs_passt
def test_what_is_not_to_be_had_is_one_sentence(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        for words, path, why in (
            (["--net", "user"], str(tmp_path), "apt-get install passt"),
            (
                ["--net", f"user,hostfwd=tcp:127.0.0.1:{taken}-:22"],
                None,
                f"port 127.0.0.1:{taken} of",
            ),
            (["--net", f"socket:{tmp_path}/none,server=off"], None, "nobody serves a network there"),
            (["--net", "switch", "--pcap", f"{tmp_path}/none/lan.pcap"], None, "cannot be created"),
            (["--net", "switch=a b"], None, "names no switch"),
        ):
            ran = pyhv_boot(*words, typed="", path=path)
            assert ran.returncode == 4, ran.stderr
            assert why in ran.stderr
            assert len(ran.stderr.strip().splitlines()) == 1
