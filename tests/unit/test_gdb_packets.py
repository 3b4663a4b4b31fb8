# SPDX-License-Identifier: GPL-2.0-only
"""gdb's packets: what comes in as bytes, in whatever pieces, and what goes out."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.gdb.packets import MOST_BYTES, Mark, PacketReader, ProtocolError, escaped, packet, unescaped


def read(data: bytes, reader: PacketReader | None = None) -> list[bytes | Mark]:
    return list((reader or PacketReader()).feed(data))


def test_a_packet() -> None:
    assert packet(b"OK") == b"$OK#9a"
    assert read(b"+$g#67") == [Mark.ACK, b"g"]
    assert read(b"$m0,4#fd\x03$?#3f-") == [b"m0,4", Mark.INTERRUPT, b"?", Mark.NAK]


def test_a_damaged_packet() -> None:
    assert read(b"$g#66$g#xx$g#67") == [Mark.DAMAGED, Mark.DAMAGED, b"g"]
    reader = PacketReader()
    reader.checks = False
    assert read(b"$g#00", reader) == [b"g"]


def test_binary_data() -> None:
    assert escaped(b"a#b$c}d*e") == b"a}\x03b}\x04c}]d}\ne"
    with pytest.raises(ProtocolError, match="middle of an escape"):
        unescaped(b"a}")


@given(st.binary(max_size=200), st.lists(st.integers(1, 50)))
def test_whatever_is_sent_arrives_in_whatever_pieces(data: bytes, cuts: list[int]) -> None:
    wire, reader, found = packet(data), PacketReader(), []
    for cut in cuts:
        found += read(wire[:cut], reader)
        wire = wire[cut:]
    assert found + read(wire, reader) == [data]


def test_what_never_ends_is_refused() -> None:
    assert read(b"$" + b"x" * MOST_BYTES) == []
    reader = PacketReader()
    with pytest.raises(ProtocolError, match="longer than"):
        read(b"$" + b"x" * (MOST_BYTES + 1), reader)
    assert read(packet(b"g"), reader) == [b"g"]
    with pytest.raises(ProtocolError, match="longer than"):
        read(b"$" + b"x" * (MOST_BYTES + 1) + b"#00")


@given(st.lists(st.binary(max_size=40)))
def test_any_bytes_at_all(pieces: list[bytes]) -> None:
    reader = PacketReader()
    for piece in pieces:
        try:
            for item in reader.feed(piece):
                assert isinstance(item, (bytes, Mark))
        except ProtocolError:
            pass
