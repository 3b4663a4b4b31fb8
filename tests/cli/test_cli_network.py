# SPDX-License-Identifier: GPL-2.0-only
"""`pyhv boot --net` and `--pcap`, and `pyhv restore` of guests with networks, as processes of their own."""

import socket
import struct
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from frames import ethernet

from pyhv.net import stream
from pyhv.net.frame import Frame
from pyhv.net.mac import BROADCAST

PYHV = str(Path(sys.executable).with_name("pyhv"))


def pyhv(*words: object, status: int = 0) -> tuple[str, str]:
    """Standard output and error of a run that ends with `status`."""
    done = subprocess.run(
        [PYHV, *map(str, words)], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60
    )
    assert done.returncode == status, done.stderr
    return done.stdout, done.stderr


def frames_in(path: Path) -> int:
    data, at, found = path.read_bytes(), 24, 0
    while at < len(data):
        at, found = at + 16 + struct.unpack_from("<I", data, at + 8)[0], found + 1
    return found


def test_the_same_run_each_time(tmp_path: Path) -> None:
    for number in (1, 2):
        files = [f"--pcap={name}={tmp_path}/{number}-{name}.pcap" for name in ("xenbr0", "vif1.0")]
        words = ["--virtual-time", "--seed", 3, "--digest", tmp_path / f"{number}.txt"]
        printed, _ = pyhv("boot", "net", "--count", 2, *words, f"--pcap={tmp_path}/{number}.pcap", *files)
        assert printed.count("counted to 20") == 2
    for name in (".txt", ".pcap", "-xenbr0.pcap", "-vif1.0.pcap"):
        assert (tmp_path / f"1{name}").read_bytes() == (tmp_path / f"2{name}").read_bytes()
    assert frames_in(tmp_path / "1.pcap") == frames_in(tmp_path / "1-xenbr0.pcap") >= 20
    assert (tmp_path / "1.pcap").read_bytes() == (tmp_path / "1-vif1.0.pcap").read_bytes(), "there are two"


@pytest.mark.parametrize(
    ("words", "why"),
    [
        (["--net", "switch=a b"], "names no switch"),
        (["--net", "user,hostfwd=22"], "not of the form"),
        (["--net", "switch,rate=fast"], "bits or bytes"),
        (["--net", "switch,mac=1"], "six bytes"),
        (["--net", "switch,mac=00:16:3e:00:00:01", "--count", "2"], "is that of vif1.0"),
        (["--net", "socket:/nowhere/at/all", "--count", "2"], "No such file"),
        (["--net", "switch", "--pcap", "lan=x.pcap"], "no switch and no device 'lan'"),
        (["--net", "switch", "--pcap", "/nowhere/lan.pcap"], "cannot be created for the capture"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_sentence(tmp_path: Path, words: list[str], why: str) -> None:
    done = subprocess.run(
        [PYHV, "boot", "net", *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=60,
        cwd=tmp_path,
    )  # fmt: skip
    assert done.returncode == 4, done.stderr
    assert why in done.stderr
    assert done.stderr.startswith("pyhv: ")
    assert len(done.stderr.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


def connected(path: Path) -> stream.Wire:
    end = time.monotonic() + 30
    while True:
        with socket.socket(socket.AF_UNIX) as probe:
            if path.exists() and probe.connect_ex(str(path)) == 0:
                break
        assert time.monotonic() < end
        time.sleep(0.02)
    return stream.connect(path)


def test_a_restored_guest_has_its_socket_again(tmp_path: Path) -> None:
    """It has said 1, and waits; what it hears then comes from outside, after it was restored."""
    snapshot, path = tmp_path / "net.snap", tmp_path / "lan.sock"
    words = ["--save", snapshot, "--save-after", "0.5"]
    pyhv("boot", "net", "--net", f"socket:{path}", *words)
    assert not path.exists()
    done: list[tuple[str, str]] = []
    thread = threading.Thread(target=lambda: done.append(pyhv("restore", snapshot)))
    thread.start()
    wire = connected(path)
    while thread.is_alive():
        number = (19).to_bytes(4, "little")
        wire.send(Frame(ethernet(number + bytes(42), 0x88B5, to=BROADCAST)))
        wire.flush()
        thread.join(0.05)
    wire.close()
    assert "counted to 20\nSUCCESS\n" in done[0][0]
