# SPDX-License-Identifier: GPL-2.0-only
"""A computer of a few lines at the end of a wire: DHCP, answers to ARP, and just enough UDP and TCP."""

import select
import struct
import time
from collections.abc import Callable
from typing import Final

from frames import FROM, internet_checksum

from pyhv.net.frame import Frame
from pyhv.net.stream import Wire

BROADCAST: Final = b"\xff" * 6
TCP, UDP = 6, 17
FIN, SYN, RST, PSH, ACK = 1, 2, 4, 8, 16
PATIENCE: Final = 10.0


class Station:
    """`link` is its wire; `address` and `gateway` are what DHCP has given it."""

    def __init__(self, link: Wire, hardware: bytes = FROM) -> None:
        self.link = link
        self.hardware = hardware
        self.address = bytes(4)
        self.gateway = bytes(4)
        self.mtu = 0
        self.router = BROADCAST
        self.waiting: list[bytes] = []

    # -- frames

    def put(self, data: bytes) -> None:
        self.link.send(Frame(data))
        self.link.flush()

    def get(self, wanted: Callable[[bytes], bool], patience: float = PATIENCE) -> bytes:
        """The next frame that is wanted; requests for its hardware address are answered meanwhile."""
        end = time.monotonic() + patience
        while True:
            while self.waiting:
                frame = self.waiting.pop(0)
                self.answer(frame)
                if wanted(frame):
                    return frame
            left = end - time.monotonic()
            assert left > 0, "nothing came"
            select.select([self.link], [], [], left)
            self.waiting += self.link.receive()
            assert self.link.connected, "the other side has gone"

    def answer(self, frame: bytes) -> None:
        if frame[12:22] == b"\x08\x06\x00\x01\x08\x00\x06\x04\x00\x01" and frame[38:42] == self.address:
            reply = frame[12:20] + b"\0\2" + self.hardware + self.address + frame[22:32]
            self.put(frame[6:12] + self.hardware + reply)

    def arp(self, address: bytes) -> bytes:
        """Who has an address of the network."""
        ask = struct.pack(">HHHBBH6s4s", 0x806, 1, 0x800, 6, 4, 1, self.hardware, self.address)
        self.put(BROADCAST + self.hardware + ask + bytes(6) + address)
        return self.get(lambda frame: frame[12:14] == b"\x08\x06" and frame[28:32] == address)[22:28]

    def ip(self, protocol: int, to: bytes, payload: bytes) -> None:
        """`payload` has its checksum blank."""
        at = 16 if protocol == TCP else 6
        pseudo = self.address + to + struct.pack(">BBH", 0, protocol, len(payload))
        total = internet_checksum(pseudo + payload)
        payload = payload[:at] + total.to_bytes(2, "big") + payload[at + 2 :]
        size = 20 + len(payload)
        header = struct.pack(">BBHHHBBH", 0x45, 0, size, 1, 0, 64, protocol, 0) + self.address + to
        header = header[:10] + internet_checksum(header).to_bytes(2, "big") + header[12:]
        router = self.router if to != b"\xff" * 4 else BROADCAST
        self.put(router + self.hardware + b"\x08\x00" + header + payload)

    def receive(self, protocol: int, port: int) -> tuple[bytes, int, bytes]:
        """The next datagram or segment for a port: sender's address and port, and the whole of it."""

        def wanted(frame: bytes) -> bool:
            return (
                frame[12:14] == b"\x08\x00"
                and frame[23] == protocol
                and frame[30:34] == self.address
                and frame[36:38] == port.to_bytes(2, "big")
            )

        frame = self.get(wanted)
        length = int.from_bytes(frame[16:18], "big")
        payload = frame[34 : 14 + length]
        pseudo = frame[26:34] + struct.pack(">BBH", 0, protocol, len(payload))
        none = protocol == UDP and payload[6:8] == bytes(2)
        assert none or internet_checksum(pseudo + payload) == 0, "its checksum is right, or it has none"
        return frame[26:30], int.from_bytes(payload[:2], "big"), payload

    # -- protocols

    def dhcp(self) -> None:
        """Get an address."""
        offer = self._dhcp(b"\x35\x01\x01")
        server = offer[54]
        self._dhcp(b"\x35\x01\x03\x32\x04" + self.offered + b"\x36\x04" + server)
        self.address, self.gateway = self.offered, offer[3]
        self.mtu = int.from_bytes(offer.get(26, b"\0\0"), "big")
        self.router = self.arp(self.gateway)

    def _dhcp(self, options: bytes) -> dict[int, bytes]:
        message = struct.pack(">BBBBIHH16s6s10s192sI", 1, 1, 6, 0, 77, 0, 0x8000, bytes(16), self.hardware,
                              bytes(10), bytes(192), 0x63825363) + options + b"\xff"  # fmt: skip
        self.udp(68, b"\xff" * 4, 67, message)
        frame = self.get(lambda frame: frame[23:24] == b"\x11" and frame[34:38] == b"\0\x43\0\x44")
        reply = frame[42:]
        assert reply[4:8] == (77).to_bytes(4, "big")
        self.offered = reply[16:20]
        found, at = {}, 240
        while at < len(reply) and reply[at] != 255:
            found[reply[at]] = reply[at + 2 : at + 2 + reply[at + 1]]
            at += 2 + reply[at + 1]
        return found

    def udp(self, port: int, to: bytes, to_port: int, data: bytes) -> None:
        self.ip(UDP, to, struct.pack(">HHHH", port, to_port, 8 + len(data), 0) + data)

    def tcp(self, port: int, to: bytes, to_port: int) -> "Stream":
        """Connect."""
        stream = Stream(self, port, to, to_port)
        stream.put(SYN, options=b"\x02\x04\x05\xb4")
        flags, _ = stream.get()
        assert flags & (SYN | ACK | RST) == SYN | ACK
        stream.put(ACK)
        return stream

    def accept(self, port: int) -> "Stream":
        """Be connected to."""
        peer, peer_port, segment = self.receive(TCP, port)
        assert segment[13] & (SYN | ACK) == SYN
        stream = Stream(self, port, peer, peer_port)
        stream.expected = int.from_bytes(segment[4:8], "big") + 1
        stream.put(SYN | ACK, options=b"\x02\x04\x05\xb4")
        return stream


class Stream:
    """One TCP connection, of a wire that loses nothing."""

    def __init__(self, station: Station, port: int, peer: bytes, peer_port: int) -> None:
        self.station, self.port, self.peer, self.peer_port = station, port, peer, peer_port
        self.sequence, self.expected = 1000, 0
        self.data = b""
        self.closed = False

    def put(self, flags: int, data: bytes = b"", options: bytes = b"") -> None:
        header = struct.pack(">HHIIBBHHH", self.port, self.peer_port, self.sequence, self.expected,
                             5 + len(options) // 4 << 4, flags, 0xFFFF, 0, 0)  # fmt: skip
        self.station.ip(TCP, self.peer, header + options + data)
        self.sequence += len(data) + bool(flags & SYN) + bool(flags & FIN)

    def get(self) -> tuple[int, bytes]:
        """The next segment, acknowledged unless it is empty: its flags, and data."""
        _, _, segment = self.station.receive(TCP, self.port)
        flags, data = segment[13], segment[(segment[12] >> 4) * 4 :]
        sequence = int.from_bytes(segment[4:8], "big")
        if flags & SYN:
            self.expected = sequence + 1
        elif sequence == self.expected and (data or flags & FIN):
            self.expected += len(data) + bool(flags & FIN)
            self.data += data
            self.closed = self.closed or bool(flags & FIN)
            self.put(ACK)
        return flags, data

    def send(self, data: bytes) -> None:
        self.put(ACK | PSH, data)

    def read(self, count: int) -> bytes:
        """So many bytes of what comes."""
        while len(self.data) < count and not self.closed:
            self.get()
        data, self.data = self.data[:count], self.data[count:]
        return data
