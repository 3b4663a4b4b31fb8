# SPDX-License-Identifier: GPL-2.0-only
"""Console bytes on their way out and in."""

import contextlib
import io
import os
import select
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.cli import consoles
from pyhv.errors import ConfigError, EnvironmentProblem


class Memory:
    def __init__(self) -> None:
        self.data = b""

    def output(self, data: bytes) -> None:
        self.data += data


class Guest:
    """A console ring with `room` bytes."""

    def __init__(self, room: int = 0) -> None:
        self.room = room
        self.got = b""

    def feed(self, data: bytes) -> int:
        taken = data[: self.room]
        self.room -= len(taken)
        self.got += taken
        return len(taken)


def nothing() -> None:
    pass


def test_prefixed_lines() -> None:
    target = Memory()
    console = consoles.Prefixed(target, "ping")
    console.output(b"one\r\ntw")
    assert target.data == b"ping| one\n"
    console.output(b"o\n\nthree")
    console.finish()
    console.finish()
    assert target.data == b"ping| one\nping| two\nping| \nping| three\n"


@pytest.mark.promise("I-16")
def test_a_guest_cannot_leave_its_line() -> None:
    target = Memory()
    consoles.Prefixed(target, "a").output(b"x\rb| forged\x08\x00\x0b\t\x1b[1mbold\n")
    assert target.data == b"a| xb| forged\t\x1b[1mbold\n"


@pytest.mark.promise("L-12")
def test_an_endless_line_is_broken() -> None:
    target = Memory()
    console = consoles.Prefixed(target, "a")
    console.output(b"x" * (3 * consoles.MAX_PARTIAL))
    lines = target.data.split(b"\n")
    assert len(lines) == 3
    assert len(console._partial) == consoles.MAX_PARTIAL


def test_colour_surrounds_the_prefix_only() -> None:
    target = Memory()
    consoles.Prefixed(target, "a", 0).output(b"x\n")
    assert target.data == b"\x1b[36ma| \x1b[0mx\n"


@given(st.lists(st.text("ab\n", max_size=20).map(str.encode), max_size=8))
def test_prefixed_output_is_the_same_however_it_is_cut(pieces: list[bytes]) -> None:
    whole, cut = Memory(), Memory()
    one, many = consoles.Prefixed(whole, "n"), consoles.Prefixed(cut, "n")
    one.output(b"".join(pieces))
    for piece in pieces:
        many.output(piece)
    one.finish()
    many.finish()
    assert whole.data == cut.data
    assert b"".join(pieces).count(b"\n") <= whole.data.count(b"n| ")


@pytest.mark.promise("L-12")
def test_tail_keeps_the_end() -> None:
    tail = consoles.Tail()
    tail.output(b"old\n" * 5000)
    tail.output(b"a\r\n\nb")
    assert tail.lines(2) == [b"a", b"b"]
    assert len(tail._bytes) == consoles.TAIL_BYTES


def test_fan_reaches_everybody() -> None:
    one, two = Memory(), Memory()
    consoles.Tee(one, two).output(b"x")
    assert one.data == two.data == b"x"


def test_stream_writes_to_a_descriptor_whole_even_if_non_blocking() -> None:
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    got = bytearray()
    payload = bytes(range(256)) * 1024  # more than a pipe holds
    if os.fork() == 0:
        os.close(writer)
        while data := os.read(reader, 1 << 16):
            got += data
        os._exit(0 if got == payload else 1)
    os.close(reader)
    with open(writer, "wb", buffering=0) as file:
        consoles.Stream(file, "x").output(payload)
    assert os.wait()[1] == 0


def test_stream_notices_that_nobody_reads() -> None:
    reader, writer = os.pipe()
    os.close(reader)
    with open(writer, "wb", buffering=0) as file, pytest.raises(consoles.OutputClosed):
        consoles.Stream(file, "x").output(b"y")


def test_stream_without_a_descriptor() -> None:
    stream = io.BytesIO()
    consoles.Stream(stream, "x").output(b"y")
    assert stream.getvalue() == b"y"


def test_full_device_is_the_environments_problem() -> None:
    with open("/dev/full", "wb", buffering=0) as full, pytest.raises(EnvironmentProblem, match="the trace"):
        consoles.Stream(full, "the trace").output(b"y")


def test_open_console(tmp_path: Path) -> None:
    out = io.BytesIO()
    consoles.open_console("stdio", out).output(b"a")
    assert out.getvalue() == b"a"
    consoles.open_console("none", out).output(b"b")
    log = consoles.open_console(f"file:{tmp_path}/log", out)
    assert isinstance(log, consoles.Stream)
    log.output(b"c")
    log._stream.close()  # which the process does when it ends
    assert (tmp_path / "log").read_bytes() == b"c"
    assert out.getvalue() == b"a"
    with pytest.raises(ConfigError, match="stdio, none"):
        consoles.open_console("serial", out)
    with pytest.raises(EnvironmentProblem, match="/nowhere/log"):
        consoles.open_console("file:/nowhere/log", out)


class TestInput:
    @pytest.fixture
    def pipe(self) -> Iterator[tuple[int, int]]:
        reader, writer = os.pipe()
        yield reader, writer
        for fd in (reader, writer):
            with contextlib.suppress(OSError):
                os.close(fd)

    def test_what_does_not_fit_waits_and_holds_the_pipe_back(self, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        guest = Guest(room=3)
        source = consoles.ConsoleInput(reader, guest.feed, nothing)
        os.write(writer, b"abcdef")
        assert source.pump()
        assert guest.got == b"abc"
        os.write(writer, b"ghi")
        assert source.pump()
        assert source.waiting == b"def"  # not read further
        assert select.select([source], [], [], 0)[0] == []  # and no busy loop
        guest.room = 100
        assert source.retry()
        assert select.select([source], [], [], 0)[0] == [source]
        assert source.pump()
        assert guest.got == b"abcdefghi"
        source.close()

    def test_the_end_comes_after_the_last_byte_was_taken(self, pipe: tuple[int, int]) -> None:
        reader, writer = pipe
        guest, ends = Guest(room=0), []
        source = consoles.ConsoleInput(reader, guest.feed, lambda: ends.append(1))
        os.write(writer, b"ab")
        os.close(writer)
        assert source.pump()
        assert source.pump()
        assert not ends
        guest.room = 1
        assert source.pump()
        guest.room = 1
        assert not source.pump()
        assert guest.got == b"ab"
        assert ends == [1]
        source.close()

    @given(st.binary(min_size=1, max_size=300), st.lists(st.integers(0, 20), min_size=1))
    def test_nothing_is_lost_or_doubled(self, data: bytes, rooms: list[int]) -> None:
        reader, writer = os.pipe()
        os.write(writer, data)
        os.close(writer)
        guest = Guest()
        source = consoles.ConsoleInput(reader, guest.feed, nothing)
        for room in rooms:
            guest.room = room
            source.pump()
            assert data.startswith(guest.got)
        guest.room = 1000
        while source.pump():
            pass
        assert guest.got == data
        source.close()
        os.close(reader)
