# SPDX-License-Identifier: GPL-2.0-only
"""An Ethernet frame on its way, and what its sender has left to do for whoever carries it.

A guest's kernel saves work: it leaves the checksum of TCP or UDP to be filled in, and hands over 64 KiB of a
TCP stream as one frame, to be cut where a wire needs it. Two guests that both know this never cut or sum at
all; for a receiver that does not, `completed` makes plain frames of it.

        0              12/16      l3                start              start + offset
        | to, from | tags | type | IPv4 or IPv6 header | TCP or UDP header ... checksum ... payload |

A frame comes from a guest or from outside, so that nothing in it is believed: what cannot be understood is
passed on as it is, and what can neither be understood nor passed on, a large frame that cannot be cut, is
dropped. Figures: RFC 791, 8200, 9293, 768, 1071; IEEE 802.1Q.
"""

import enum
from typing import Final, NamedTuple

from pyhv.abi.layout import u16
from pyhv.frozen import frozen

HEADER: Final = 14
"""Bytes of an Ethernet header without tags; a frame has at least these."""
MAX_FRAME: Final = 65535 + HEADER + 8
"""Bytes of the largest frame: an IP packet with its header and two tags."""
MIN_SEGMENT: Final = 48
"""The smallest segment that a stream is cut into, as for Linux: a frame becomes 1366 others at most."""

_IPV4, _IPV6 = b"\x08\x00", b"\x86\xdd"
_TAGS: Final = (b"\x81\x00", b"\x88\xa8")
_MOST_TAGS: Final = 2
_TCP, _UDP = 6, 17
_CHECKSUM_AT: Final = {_TCP: 16, _UDP: 6}
_TRANSPORT_HEADER: Final = {_TCP: 20, _UDP: 8}
_HOP_BY_HOP, _ROUTING, _DESTINATION = 0, 43, 60
_MOST_EXTENSIONS: Final = 8
_FIN, _PSH, _CWR = 0x01, 0x08, 0x80


class Segmentation(enum.IntEnum):
    """What a large frame is to be cut into; the numbers are those of Xen's netif.h (XEN_NETIF_GSO_TYPE)."""

    TCPV4 = 1
    TCPV6 = 2


class Checksum(NamedTuple):
    """A checksum that is still to be filled in: the field holds the sum of the pseudo-header."""

    start: u16
    """Where the bytes begin that are summed up, to the end of the frame."""
    offset: u16
    """Where the field is, from there."""


class Gso(NamedTuple):
    """A frame that stands for several."""

    kind: Segmentation
    size: u16
    """Bytes of payload in each of them but the last."""


@frozen
class Frame:
    """An Ethernet frame without its frame check sequence."""

    data: bytes
    checksum: Checksum | None = None
    gso: Gso | None = None

    @property
    def destination(self) -> bytes:
        """The address that it is for, 6 bytes."""
        return self.data[:6]

    @property
    def source(self) -> bytes:
        """The address that it says it is from, 6 bytes."""
        return self.data[6:12]

    @property
    def vlan(self) -> int:
        """The VLAN of its outer tag; 0: it has none, or one that only says a priority."""
        if self.data[12:14] != _TAGS[0] or len(self.data) < HEADER + 4:
            return 0
        return int.from_bytes(self.data[14:16], "big") & 0xFFF

    @property
    def version(self) -> int:
        """Of the IP packet in it, 4 or 6; 0: there is none."""
        _, kind = _network_header(self.data)
        return 4 if kind == _IPV4 else 6 if kind == _IPV6 else 0

    def tagged(self, vlan: int) -> "Frame":
        """The same with a tag of that VLAN outside."""
        tag = _TAGS[0] + vlan.to_bytes(2, "big")
        return self._moved(self.data[:12] + tag + self.data[12:], 4)

    def untagged(self) -> "Frame":
        """The same without its outer tag, which it has."""
        return self._moved(self.data[:12] + self.data[16:], -4)

    def _moved(self, data: bytes, by: int) -> "Frame":
        checksum = self.checksum
        return Frame(data, checksum and Checksum(checksum.start + by, checksum.offset), self.gso)


class _Packet(NamedTuple):
    """Where things are in a frame with TCP or UDP in it."""

    l3: int
    version: int
    protocol: int
    start: int
    end: int
    """Behind the IP packet; a short frame is padded."""


def _network_header(data: bytes) -> tuple[int, bytes]:
    """Where the header behind Ethernet's is, and which it is."""
    at = 12
    for _ in range(_MOST_TAGS):
        if data[at : at + 2] not in _TAGS:
            break
        at += 4
    return at + 2, data[at : at + 2]


def _packet(data: bytes) -> _Packet | None:
    """TCP or UDP in a whole IP packet that is all here; None: it is something else."""
    l3, kind = _network_header(data)
    if kind == _IPV4:
        found = _ipv4(data, l3)
    elif kind == _IPV6:
        found = _ipv6(data, l3)
    else:
        return None
    if found is None or found.protocol not in _CHECKSUM_AT:
        return None
    return found if found.start + _TRANSPORT_HEADER[found.protocol] <= found.end <= len(data) else None


def _ipv4(data: bytes, l3: int) -> _Packet | None:
    if len(data) < l3 + 20 or data[l3] >> 4 != 4:
        return None
    header, total = (data[l3] & 15) * 4, int.from_bytes(data[l3 + 2 : l3 + 4], "big")
    fragment = int.from_bytes(data[l3 + 6 : l3 + 8], "big") & 0x3FFF
    if header < 20 or header > total or fragment:
        return None
    return _Packet(l3, 4, data[l3 + 9], l3 + header, l3 + total)


def _ipv6(data: bytes, l3: int) -> _Packet | None:
    if len(data) < l3 + 40 or data[l3] >> 4 != 6:
        return None
    protocol, at = data[l3 + 6], l3 + 40
    end = at + int.from_bytes(data[l3 + 4 : l3 + 6], "big")
    for _ in range(_MOST_EXTENSIONS):
        if protocol not in (_HOP_BY_HOP, _ROUTING, _DESTINATION):
            break
        if at + 8 > min(end, len(data)):
            return None
        if protocol == _ROUTING and data[at + 3]:
            return None  # the pseudo-header would have the address of the last hop
        protocol, at = data[at], at + (data[at + 1] + 1) * 8
    return _Packet(l3, 6, protocol, at, end)


def _residue(data: bytes) -> int:
    """The one's complement sum of all 16-bit words: arithmetic modulo 2**16 - 1, where 0 and 65535 are one.

    65536 is 1 there, so that a number's words may be added without taking it apart first.
    """
    value = int.from_bytes(data, "big")
    return (value << 8 if len(data) & 1 else value) % 0xFFFF


def _pseudo(data: bytes, packet: _Packet, length: int) -> int:
    """The sum of a pseudo-header, for that many bytes of TCP or UDP."""
    first, size = (12, 8) if packet.version == 4 else (8, 32)
    addresses = data[packet.l3 + first : packet.l3 + first + size]
    return (_residue(addresses) + packet.protocol + length) % 0xFFFF


def _field(residue: int, protocol: int) -> bytes:
    """A sum as it stands in the field: complemented, and for UDP never 0, which says that there is none."""
    value = -residue % 0xFFFF
    return (value or 0xFFFF if protocol == _UDP else value).to_bytes(2, "big")


def with_blank_checksum(data: bytes, gso: Gso | None = None) -> Frame:
    """A frame whose sender says that the checksum of its TCP or UDP is still to be filled in.

    Where it is, and what stands in the field meanwhile, is found out here: not all senders sum up the
    pseudo-header. A frame without TCP or UDP is complete as it is, whatever its sender says.
    """
    packet = _packet(data)
    if packet is None:
        return Frame(data, gso=gso)
    offset = _CHECKSUM_AT[packet.protocol]
    at = packet.start + offset
    pseudo = _pseudo(data, packet, packet.end - packet.start).to_bytes(2, "big")
    whole = b"".join((data[:at], pseudo, data[at + 2 : packet.end]))
    return Frame(whole, Checksum(packet.start, offset), gso)


def completed(frame: Frame) -> list[Frame]:
    """The same as frames for somebody who expects all of them summed up, and none larger than others."""
    return segmented(frame) if frame.gso is not None else [summed(frame)]


def summed(frame: Frame) -> Frame:
    """The same with its checksum filled in; what is to be cut stays so."""
    if frame.checksum is None:
        return frame
    data, (start, offset) = frame.data, frame.checksum
    at = start + offset
    if not 0 < start <= at <= len(data) - 2:
        return Frame(data, gso=frame.gso)
    protocol = _UDP if offset == _CHECKSUM_AT[_UDP] else _TCP
    return Frame(data[:at] + _field(_residue(data[start:]), protocol) + data[at + 2 :], gso=frame.gso)


def segmented(frame: Frame) -> list[Frame]:
    """A large frame cut into those that it stands for, each summed up. None at all: it cannot be cut."""
    gso, data = frame.gso, frame.data
    if gso is None:
        return [summed(frame)]
    packet = _packet(data)
    version = 4 if gso.kind is Segmentation.TCPV4 else 6
    if packet is None or packet.protocol != _TCP or packet.version != version or gso.size < MIN_SEGMENT:
        return []
    payload = packet.start + (data[packet.start + 12] >> 4) * 4
    if not packet.start + _TRANSPORT_HEADER[_TCP] <= payload <= packet.end:
        return []
    pieces = [data[at : min(at + gso.size, packet.end)] for at in range(payload, packet.end, gso.size)]
    headers = _Headers(data[:payload], packet)
    last = len(pieces) - 1
    return [
        Frame(headers.of(number, number * gso.size, piece, last=number == last) + piece)
        for number, piece in enumerate(pieces)
    ] or [summed(with_blank_checksum(data))]


class _Headers:
    """What stands before each segment of a stream: the large frame's headers, but for a few fields."""

    def __init__(self, template: bytes, packet: _Packet) -> None:
        self._template = template
        self._packet = packet
        self._tcp = packet.start
        self._sequence = int.from_bytes(template[self._tcp + 4 : self._tcp + 8], "big")
        self._flags = template[self._tcp + 13]

    def of(self, number: int, offset: int, payload: bytes, *, last: bool) -> bytes:
        """The headers of segment `number`, whose payload begins at `offset` of the stream's."""
        packet, tcp = self._packet, self._tcp
        made = bytearray(self._template)
        length = len(made) - tcp + len(payload)
        if packet.version == 4:
            self._ipv4(made, number, tcp - packet.l3 + length)
        else:
            made[packet.l3 + 4 : packet.l3 + 6] = (tcp - packet.l3 - 40 + length).to_bytes(2, "big")
        made[tcp + 4 : tcp + 8] = (self._sequence + offset & 0xFFFFFFFF).to_bytes(4, "big")
        cleared = (0 if last else _FIN | _PSH) | (_CWR if number else 0)
        made[tcp + 13] = self._flags & ~cleared
        made[tcp + 16 : tcp + 18] = bytes(2)
        header = bytes(made)
        residue = _pseudo(header, packet, length) + _residue(header[tcp:]) + _residue(payload)
        made[tcp + 16 : tcp + 18] = _field(residue, _TCP)
        return bytes(made)

    def _ipv4(self, made: bytearray, number: int, total: int) -> None:
        l3 = self._packet.l3
        identification = int.from_bytes(made[l3 + 4 : l3 + 6], "big") + number
        made[l3 + 2 : l3 + 4] = total.to_bytes(2, "big")
        made[l3 + 4 : l3 + 6] = (identification & 0xFFFF).to_bytes(2, "big")
        made[l3 + 10 : l3 + 12] = bytes(2)
        made[l3 + 10 : l3 + 12] = _field(_residue(bytes(made[l3 : self._tcp])), 0)
