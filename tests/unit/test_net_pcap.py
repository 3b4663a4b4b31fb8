# SPDX-License-Identifier: GPL-2.0-only
"""Captures: their bytes, Wireshark's own reader, and hosts that take no more."""

import os
import resource
import shutil
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from frames import TCP, packet, transport

from pyhv.errors import EnvironmentProblem
from pyhv.net.frame import Frame
from pyhv.net.pcap import Capture

FRAMES = [packet(4, TCP, transport(4, TCP, bytes(size))) for size in (0, 1, 1400, 60000)]
TIMES = [0, 999_999_999, 1_000_000_000, 4_294_967_296_000_000_123]


def records(data: bytes) -> Iterator[tuple[int, bytes]]:
    """(ns, bytes) of each frame of a file as the format's description has it."""
    assert struct.unpack("<IHHiIII", data[:24]) == (0xA1B23C4D, 2, 4, 0, 0, 262144, 1)
    at = 24
    while at < len(data):
        seconds, nanoseconds, here, in_all = struct.unpack_from("<4I", data, at)
        assert here == in_all
        yield seconds * 10**9 + nanoseconds, data[at + 16 : at + 16 + here]
        at += 16 + here


def captured(path: Path) -> Capture:
    times = iter(TIMES)
    capture = Capture(path, lambda: next(times))
    for data in FRAMES:
        capture.frame(Frame(data))
    return capture


def test_a_file_is_whole_at_any_moment(tmp_path: Path) -> None:
    """Nothing is held back: who is killed leaves what has gone by."""
    path = tmp_path / "lan.pcap"
    capture = captured(path)
    found = list(records(path.read_bytes()))
    assert [data for _, data in found] == FRAMES
    assert [time for time, _ in found] == [TIMES[0], TIMES[1], TIMES[2], 123], "seconds have 32 bits"
    capture.close()
    capture.close()
    capture.frame(Frame(FRAMES[0]))
    assert (capture.frames, capture.problem) == (4, "")


@pytest.mark.promise("N-8")
def test_a_killed_run_leaves_what_it_saw(tmp_path: Path) -> None:
    path = tmp_path / "lan.pcap"
    code = (
        "import os, sys\nfrom pathlib import Path\n"
        "from pyhv.net.pcap import Capture\nfrom pyhv.net.frame import Frame\n"
        "capture = Capture(Path(sys.argv[1]), lambda: 5)\n"
        "for size in range(14, 114): capture.frame(Frame(bytes(size)))\n"
        "os.kill(os.getpid(), 9)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(path)])
    assert killed.returncode == -signal.SIGKILL
    assert [len(data) for _, data in records(path.read_bytes())] == list(range(14, 114))


@pytest.mark.promise("N-8")
@pytest.mark.skipif(not (shutil.which("capinfos") or "CI" in os.environ), reason="needs wireshark-common")
def test_wireshark_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "lan.pcap"
    captured(path).close()
    table = subprocess.run(
        ["capinfos", "-M", "-t", "-E", "-c", "-d", path], capture_output=True, text=True, check=True
    ).stdout
    assert "nsecpcap" in table
    assert "ether" in table
    assert f"Number of packets:   {len(FRAMES)}\n" in table
    assert f"{sum(map(len, FRAMES))} bytes" in table


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_device_refuses_it_at_once() -> None:
    with pytest.raises(EnvironmentProblem, match="No space left"):
        Capture(Path("/dev/full"), lambda: 0)


def test_a_place_that_cannot_be_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"cannot be created for the capture \(No such file"):
        Capture(tmp_path / "nowhere" / "lan.pcap", lambda: 0)


def test_a_host_that_takes_no_more_ends_it_with_a_whole_frame(tmp_path: Path) -> None:
    path = tmp_path / "lan.pcap"
    capture = Capture(path, lambda: 0)
    capture.frame(Frame(bytes(100)))
    whole = path.stat().st_size
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    ignored = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (whole + 50, before[1]))
        capture.frame(Frame(bytes(100)))
        capture.frame(Frame(bytes(100)))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, ignored)
    assert capture.problem == f"{path}: the capture ends after 1 frames (no space is left)"
    assert path.stat().st_size == whole
    assert len(list(records(path.read_bytes()))) == 1
