# SPDX-License-Identifier: GPL-2.0-only
"""Checksums and segmentation against frames written field by field; and frames that mean nothing, or harm."""

import struct
from typing import Any

import pytest
from frames import ACK, CWR, FIN, PSH, TCP, UDP, extension, internet_checksum, packet, tag, transport
from hypothesis import example, given
from hypothesis import strategies as st

from pyhv.net.frame import (
    HEADER,
    MIN_SEGMENT,
    Checksum,
    Frame,
    Gso,
    Segmentation,
    completed,
    segmented,
    summed,
    with_blank_checksum,
)

VERSIONS, PROTOCOLS = st.sampled_from((4, 6)), st.sampled_from((TCP, UDP))
TAGS = st.sampled_from((b"", tag(7), tag(0x6001), tag(5, 0x88A8) + tag(7)))
PAYLOAD = st.binary(max_size=300)


@st.composite
def surroundings(draw: st.DrawFn, version: int, protocol: int) -> dict[str, Any]:
    """Tags, and IPv4 options or IPv6 extension headers."""
    if version == 4:
        options = bytes(4 * draw(st.integers(0, 10)))
    else:
        options = draw(st.sampled_from((b"", extension(protocol), extension(protocol, 3))))
    return {"tags": draw(TAGS), "options": options}


@pytest.mark.promise("N-2")
@given(st.data(), VERSIONS, PROTOCOLS, PAYLOAD, st.integers(0, 0xFFFF), st.binary(max_size=20))
def test_a_blank_checksum_is_filled_in(
    data: st.DataObject, version: int, protocol: int, payload: bytes, there: int, padding: bytes
) -> None:
    around = data.draw(surroundings(version, protocol))
    right = packet(version, protocol, transport(version, protocol, payload), **around)
    blank = packet(version, protocol, transport(version, protocol, payload, checksum=there), **around)
    frame = with_blank_checksum(blank + padding)
    assert frame.checksum is not None
    assert completed(frame) == [Frame(right)], "whatever stood in the field, and without the padding"


def test_a_sum_of_zero_is_not_sent_by_udp() -> None:
    payload = transport(4, UDP, b"\0\0")
    value = int.from_bytes(payload[6:8], "big")
    zero = transport(4, UDP, value.to_bytes(2, "big"))
    assert zero[6:8] == b"\xff\xff"
    assert summed(with_blank_checksum(packet(4, UDP, zero))).data == packet(4, UDP, zero)


@pytest.mark.promise("N-2")
@given(
    st.data(),
    VERSIONS,
    st.binary(max_size=900),
    st.integers(MIN_SEGMENT, 400),
    st.integers(0, 0xFFFFFFFF),
    st.integers(0, 0xFFFF),
    st.sampled_from((b"", bytes(12))),
    st.integers(0, 255),
)
def test_a_stream_is_cut_into_what_its_sender_would_have_sent(
    data: st.DataObject,
    version: int,
    payload: bytes,
    size: int,
    sequence: int,
    identification: int,
    options: bytes,
    flags: int,
) -> None:
    around = data.draw(surroundings(version, TCP))
    kind = Segmentation.TCPV4 if version == 4 else Segmentation.TCPV6

    def one(part: bytes, offset: int, number: int, flags: int) -> bytes:
        at = sequence + offset & 0xFFFFFFFF
        segment = transport(version, TCP, part, sequence=at, flags=flags, options=options)
        return packet(version, TCP, segment, identification=identification + number & 0xFFFF, **around)

    expected = []
    offsets = range(0, len(payload), size) or range(1)
    for number, offset in enumerate(offsets):
        last = offset + size >= len(payload)
        mask = (0xFF if last else ~(FIN | PSH)) & (0xFF if number == 0 else ~CWR)
        expected.append(Frame(one(payload[offset : offset + size], offset, number, flags & mask)))
    large = one(payload, 0, 0, flags)
    assert completed(with_blank_checksum(large, Gso(kind, size))) == expected
    assert segmented(Frame(large, gso=Gso(kind, size))) == expected, "also if its sum was right already"


@pytest.mark.promise("N-2")
@given(
    st.binary(max_size=200),
    st.integers(0, 6),
    st.one_of(st.none(), st.builds(Checksum, st.integers(0, 300), st.integers(0, 300))),
    st.one_of(st.none(), st.builds(Gso, st.sampled_from(Segmentation), st.integers(0, 0xFFFF))),
)
def test_no_frame_is_an_exception(
    noise: bytes, kind: int, checksum: Checksum | None, gso: Gso | None
) -> None:
    """Noise where a header is expected, behind whatever type and tags lead there."""
    types = (
        b"", b"\x08\x00", b"\x86\xdd", b"\x81\x00\x00\x01\x08\x00", b"\x81\x00", b"\x08\x00\x45",
        b"\x88\xa8\x00\x01\x81\x00\x00\x02\x86\xdd",
    )  # fmt: skip
    data = bytes(12) + types[kind] + noise
    for frame in (Frame(data, checksum, gso), with_blank_checksum(data, gso)):
        assert all(plain.checksum is None and plain.gso is None for plain in completed(frame))
        assert 0 <= frame.vlan < 4096


@given(st.data(), VERSIONS, st.integers(0, 150), st.integers(0, 255))
def test_a_damaged_stream_is_cut_into_no_more_than_it_holds(
    data: st.DataObject, version: int, at: int, value: int
) -> None:
    good = packet(version, TCP, transport(version, TCP, bytes(1000)), **data.draw(surroundings(version, TCP)))
    damaged = bytearray(good)
    damaged[min(at, len(good) - 1)] = value
    kind = Segmentation.TCPV4 if version == 4 else Segmentation.TCPV6
    pieces = completed(with_blank_checksum(bytes(damaged), Gso(kind, 100)))
    assert len(pieces) <= 11
    assert all(HEADER <= len(piece.data) <= len(good) for piece in pieces)


@pytest.mark.promise("N-2")
@pytest.mark.parametrize("size", [0, 1, MIN_SEGMENT - 1])
def test_nobody_makes_thousands_of_frames_of_one(size: int) -> None:
    large = packet(4, TCP, transport(4, TCP, bytes(60000)))
    assert completed(with_blank_checksum(large, Gso(Segmentation.TCPV4, size))) == []


@pytest.mark.parametrize("fragment", [0x2000, 0x0001])
def test_a_fragment_is_left_alone(fragment: int) -> None:
    piece = packet(4, UDP, transport(4, UDP, b"abc", checksum=5), fragment=fragment)
    assert completed(with_blank_checksum(piece)) == [Frame(piece)]
    stream = packet(4, TCP, transport(4, TCP, bytes(500)), fragment=fragment)
    assert completed(Frame(stream, gso=Gso(Segmentation.TCPV4, 100))) == []


def test_a_stream_of_the_other_version_is_not_cut() -> None:
    stream = packet(6, TCP, transport(6, TCP, bytes(500)))
    assert completed(Frame(stream, gso=Gso(Segmentation.TCPV4, 100))) == []


def test_a_source_route_leaves_the_sum_to_its_sender() -> None:
    """The pseudo-header has the last hop's address, which is in the route."""
    route = bytes([TCP, 2, 0, 1]) + bytes(20)
    segment = transport(6, TCP, b"abc", checksum=9)
    fixed = struct.pack(">IHBB", 6 << 28, len(route) + len(segment), 43, 64) + bytes(32)
    data = bytes(12) + b"\x86\xdd" + fixed + route + segment
    assert with_blank_checksum(data) == Frame(data)


@given(st.binary(min_size=12, max_size=100), st.integers(1, 4094))
def test_a_tag_goes_on_and_off(data: bytes, vlan: int) -> None:
    data = data[:12] + b"\x08\x00" + data[12:]
    frame = Frame(data, Checksum(34, 6), Gso(Segmentation.TCPV6, 99))
    tagged = frame.tagged(vlan)
    assert tagged.vlan == vlan
    assert tagged.checksum == Checksum(38, 6)
    assert (tagged.destination, tagged.source) == (frame.destination, frame.source)
    assert tagged.untagged() == frame


@example(b"\xff\xff")
@given(st.binary(min_size=1, max_size=64))
def test_sums_of_any_length(payload: bytes) -> None:
    """Odd lengths, and sums that are 0 in one of their two forms."""
    segment = transport(4, TCP, payload, flags=ACK)
    whole = bytes.fromhex("0a0000010a000002") + struct.pack(">BBH", 0, TCP, len(segment)) + segment
    assert internet_checksum(whole) == 0
    assert summed(with_blank_checksum(packet(4, TCP, segment))).data[-len(segment) :] == segment
