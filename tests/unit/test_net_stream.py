# SPDX-License-Identifier: GPL-2.0-only
"""QEMU's framing over UNIX sockets: pieces of any size, peers that lie, read slowly, go and come."""

import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest
from frames import TCP, packet, transport
from hypothesis import given
from hypothesis import strategies as st

from pyhv.errors import EnvironmentProblem
from pyhv.net import stream
from pyhv.net.frame import HEADER, MAX_FRAME, Frame, Gso, Segmentation, with_blank_checksum
from pyhv.net.stream import LONGEST, MAX_WAITING, Assembler, StreamBroken, Wire, framed


@given(st.lists(st.binary(min_size=1, max_size=60), max_size=8), st.data())
def test_frames_come_out_whatever_the_pieces(frames: list[bytes], data: st.DataObject) -> None:
    sent = b"".join(map(framed, frames))
    cuts = sorted(data.draw(st.lists(st.integers(0, len(sent)), max_size=10)))
    assembler, found = Assembler(), []
    for start, end in zip([0, *cuts], [*cuts, len(sent)], strict=True):
        found += assembler.feed(sent[start:end])
    assert found == [frame for frame in frames if len(frame) >= HEADER]


@pytest.mark.parametrize("size", [0, LONGEST + 1, 1 << 31, (1 << 32) - 1])
def test_a_length_that_cannot_be_ends_the_stream(size: int) -> None:
    with pytest.raises(StreamBroken, match=f"frame of {size} bytes"):
        Assembler().feed(size.to_bytes(4, "big"))


def test_a_frame_that_is_too_long_is_left_out() -> None:
    assembler = Assembler()
    assert assembler.feed(framed(bytes(LONGEST)) + framed(bytes(MAX_FRAME))) == [bytes(MAX_FRAME)]


@pytest.fixture
def couple(tmp_path: Path) -> Iterator[tuple[Wire, Wire]]:
    server = stream.listen(tmp_path / "lan.sock")
    client = stream.connect(tmp_path / "lan.sock")
    assert server.receive() == []
    assert server.connected
    yield server, client
    server.close()
    client.close()


def test_both_ways(couple: tuple[Wire, Wire]) -> None:
    for one, other in (couple, couple[::-1]):
        one.send(Frame(bytes(range(60))))
        one.send(Frame(bytes(100)))
        one.flush()
        assert other.receive() == [bytes(range(60)), bytes(100)]
        assert other.receive() == []


def test_what_goes_out_is_cut_and_summed(couple: tuple[Wire, Wire]) -> None:
    server, client = couple
    large = with_blank_checksum(packet(4, TCP, transport(4, TCP, bytes(5000), checksum=0)))
    server.send(Frame(large.data, large.checksum, Gso(Segmentation.TCPV4, 1000)))
    server.flush()
    assert client.receive() == [
        packet(4, TCP, transport(4, TCP, bytes(1000), sequence=1000 + 1000 * n), identification=0x1234 + n)
        for n in range(5)
    ]


@pytest.mark.promise("N-6", "N-7")
def test_a_peer_that_does_not_read_costs_a_bounded_amount(couple: tuple[Wire, Wire]) -> None:
    server, client = couple
    sent = 0
    while not server.dropped:
        server.send(Frame(sent.to_bytes(4, "big") + bytes(60_000)))
        server.flush()
        sent += 1
    assert sent < 2 + (MAX_WAITING + (4 << 20)) // 60_000
    assert server.waits
    taken: list[bytes] = []
    while len(taken) < sent - 1:
        taken += client.receive()
        server.flush()
    numbers = [int.from_bytes(frame[:4], "big") for frame in taken]
    assert numbers == list(range(sent - 1)), "whole, and in order"
    assert not server.waits


def test_a_server_waits_for_the_next_peer(couple: tuple[Wire, Wire], tmp_path: Path) -> None:
    server, client = couple
    client._peer.send(b"\0\0")  # type: ignore[union-attr]
    client.close()
    assert server.receive() == server.receive() == []
    assert server.open
    assert not server.connected
    server.send(Frame(bytes(60)))
    server.flush()
    assert server.dropped == 1
    again = stream.connect(tmp_path / "lan.sock")
    assert server.receive() == []
    again.send(Frame(bytes(61)))
    again.flush()
    assert server.receive() == [bytes(61)], "and nothing is left of what the first one had begun"
    again.close()


def test_a_client_is_over_with_its_server(couple: tuple[Wire, Wire]) -> None:
    server, client = couple
    server.close()
    client.send(Frame(bytes(60)))
    client.flush()
    client.receive()
    assert not client.open
    assert client.fileno() == -1
    assert client.receive() == []
    client.send(Frame(bytes(60)))
    client.flush()


@pytest.mark.promise("N-7")
def test_a_peer_that_lies_is_sent_away(couple: tuple[Wire, Wire]) -> None:
    server, client = couple
    client._peer.send(b"\xff\xff\xff\xff" + bytes(100))  # type: ignore[union-attr]
    assert server.receive() == []
    assert not server.connected
    assert "4294967295 bytes" in server.problem


def test_the_sockets_name_is_taken_away(tmp_path: Path) -> None:
    path = tmp_path / "lan.sock"
    link = stream.listen(path)
    assert stat.S_ISSOCK(path.stat().st_mode)
    link.close()
    assert not path.exists()


def test_a_name_that_was_left_behind_is_used(tmp_path: Path) -> None:
    path = tmp_path / "lan.sock"
    with socket.socket(socket.AF_UNIX) as left:
        left.bind(str(path))
    stream.listen(path).close()


def test_a_name_that_somebody_has_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "lan.sock"
    link = stream.listen(path)
    with pytest.raises(EnvironmentProblem, match="the name is taken"):
        stream.listen(path)
    link.close()
    path.write_text("precious")
    with pytest.raises(EnvironmentProblem, match="the name is taken"):
        stream.listen(path)
    assert path.read_text() == "precious"


def test_where_nobody_is(tmp_path: Path) -> None:
    with pytest.raises(EnvironmentProblem, match=r"nobody serves a network there \(No such file"):
        stream.connect(tmp_path / "lan.sock")
    with pytest.raises(EnvironmentProblem, match="No such file"):
        stream.listen(tmp_path / "nowhere" / "lan.sock")
    with pytest.raises(EnvironmentProblem, match="at most 107 bytes"):
        stream.listen(tmp_path / ("x" * 108))


def test_no_descriptor_is_left(tmp_path: Path) -> None:
    before = os.listdir("/proc/self/fd")
    path = tmp_path / "lan.sock"
    server = stream.listen(path)
    client = stream.connect(path)
    server.receive()
    with pytest.raises(EnvironmentProblem):
        stream.listen(path)
    client.close()
    server.close()
    assert len(os.listdir("/proc/self/fd")) == len(before)
