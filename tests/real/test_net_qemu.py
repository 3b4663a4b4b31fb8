# SPDX-License-Identifier: GPL-2.0-only
"""A real QEMU on our switch, beside a real passt: its network card's own firmware (iPXE) downloads a file.

iPXE in QEMU ── -netdev stream ── Wire ── port "qemu" ┐
                                                      Switch ── capture
HTTP server on the host's loopback ── passt ── Wire ── port "user" ┘
"""

import hashlib
import http.server
import os
import select
import shutil
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing
from pathlib import Path

import pexpect
import pytest
from frames import FROM

from pyhv.net import passt, stream
from pyhv.net.frame import Frame
from pyhv.net.pcap import Capture
from pyhv.net.stream import Wire
from pyhv.net.switch import Port, Switch

pytestmark = [
    pytest.mark.debian,  # no kernel of Debian's, but as slow as one
    pytest.mark.skipif(
        not ((shutil.which("passt") and shutil.which("qemu-system-x86_64")) or "CI" in os.environ),
        reason="needs Debian's packages passt and qemu-system-x86",
    ),
]
BLOB = hashlib.shake_128(b"blob").digest(1 << 20)


class Pump(threading.Thread):
    """Lets frames go between links and their ports until it is stopped."""

    def __init__(self, links: dict[str, Wire], switch: Switch) -> None:
        super().__init__(daemon=True)
        self.wires = [(link, Port(name, link.send)) for name, link in links.items()]
        for _, port in self.wires:
            switch.attach(port)
        self.stopped = False

    def run(self) -> None:
        while not self.stopped:
            select.select([link for link, _ in self.wires if link.open], [], [], 0.1)
            for link, port in self.wires:
                for data in link.receive():
                    port.send(Frame(data))
            for link, _ in self.wires:
                link.flush()

    def stop(self) -> None:
        self.stopped = True
        self.join(10)


class Files(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BLOB)))
        self.end_headers()
        self.wfile.write(BLOB)

    def do_HEAD(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(len(BLOB)))
        self.end_headers()

    def log_message(self, *_words: object) -> None:
        pass


@pytest.fixture
def web() -> Iterator[int]:
    """The port of a web server on the host's loopback."""
    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Files) as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        yield server.server_port
        server.shutdown()


def test_firmware_in_qemu_downloads_through_the_switch(tmp_path: Path, web: int) -> None:
    path = tmp_path / "lan.sock"
    with ExitStack() as stack:
        links = {"qemu": stream.listen(path), "user": passt.start((), "user", FROM)}
        for link in links.values():
            stack.enter_context(closing(link))
        switch = Switch("lan", lambda: 0)
        capture = Capture(tmp_path / "lan.pcap", lambda: 0)
        switch.taps.append(capture.frame)
        pump = Pump(links, switch)
        pump.start()
        stack.callback(pump.stop)
        qemu = pexpect.spawn(
            "qemu-system-x86_64",
            ["-accel", "tcg", "-m", "64", "-nodefaults", "-display", "none", "-machine", "pc,graphics=off",
             "-serial", "stdio", "-boot", "n", "-device", "e1000,netdev=lan,mac=52:54:00:12:34:56",
             "-netdev", f"stream,id=lan,server=off,addr.type=unix,addr.path={path}"],
            timeout=60, encoding="latin-1",
        )  # fmt: skip
        stack.callback(qemu.close, force=True)
        qemu.expect("Press Ctrl-B")
        qemu.send("\x02")
        qemu.expect("iPXE>")
        qemu.send("dhcp\r")
        qemu.expect(r"\.\.\. ok")
        qemu.expect("iPXE>")
        qemu.send(f"imgfetch --name blob http://${{gateway}}:{web}/blob\r")
        qemu.expect(r"/blob\.\.\. .*ok")
        qemu.expect("iPXE>")
        qemu.send("imgstat\r")
        qemu.expect(f"blob : {len(BLOB)} bytes")
    assert capture.frames > len(BLOB) // 1500
    assert any(b"HTTP/1.0 200" in piece for piece in [(tmp_path / "lan.pcap").read_bytes()])
    assert not path.exists()
