# SPDX-License-Identifier: GPL-2.0-only
"""Packets of gdb's remote serial protocol: bytes to packets, and packets to bytes (GDB manual, E.1).

    $ payload # two hexadecimal digits: the payload's bytes added up, modulo 256
    in a payload, `}` and a byte stand for that byte XOR 0x20        + and - acknowledge       0x03 interrupts

Whoever sends the bytes may be broken, or hostile: no payload is kept that is longer than was agreed on, and
what is outside of packets is passed over. Replies are never run-length encoded.
"""

import enum
from collections.abc import Iterator
from typing import Final

from pyhv.errors import PyhvError

MOST_BYTES: Final = 0x4000
"""Longest payload that is received, as it is on the wire; gdb is told."""
_ESCAPE, _FLIP = 0x7D, 0x20
_NEEDS_ESCAPE: Final = frozenset(b"#$}*")
_HEX: Final = frozenset(b"0123456789abcdefABCDEF")


class ProtocolError(PyhvError):
    """The other side does not speak the protocol: its session is over."""


class Mark(enum.Enum):
    """What comes outside of packets, or instead of one."""

    INTERRUPT = "the client wants the guests to stop"
    ACK = "the last packet has arrived"
    NAK = "the last packet has arrived damaged, and is to be sent again"
    DAMAGED = "a packet has arrived damaged"


def checksum(payload: bytes) -> int:
    """Of a payload as it is on the wire."""
    return sum(payload) & 0xFF


def escaped(data: bytes) -> bytes:
    """Binary data as it is on the wire."""
    if not _NEEDS_ESCAPE.intersection(data):
        return data
    return b"".join(
        bytes((_ESCAPE, byte ^ _FLIP)) if byte in _NEEDS_ESCAPE else bytes((byte,)) for byte in data
    )


def unescaped(payload: bytes) -> bytes:
    """What a payload says. ProtocolError: it ends in the middle of an escape."""
    if _ESCAPE not in payload:
        return payload
    found, at = bytearray(), 0
    while at < len(payload):
        byte = payload[at]
        if byte == _ESCAPE:
            at += 1
            if at == len(payload):
                raise ProtocolError("a packet ends in the middle of an escape")
            byte = payload[at] ^ _FLIP
        found.append(byte)
        at += 1
    return bytes(found)


def packet(data: bytes) -> bytes:
    """A packet as it is on the wire."""
    payload = escaped(data)
    return b"$%b#%02x" % (payload, checksum(payload))


class PacketReader:
    """Makes packets of a stream of bytes."""

    def __init__(self) -> None:
        self._waiting = bytearray()
        self.checks = True
        """Whether checksums count; both sides can agree that they do not."""

    def feed(self, data: bytes) -> Iterator[bytes | Mark]:
        """More bytes have come; the packets and marks that are complete. ProtocolError: too long a packet."""
        self._waiting += data
        while self._waiting:
            first = self._waiting[0]
            if first == ord("$"):
                end = self._waiting.find(b"#", 1)
                if end < 0 and len(self._waiting) <= MOST_BYTES + 1:
                    return
                if end < 0 or end > MOST_BYTES + 1:
                    self._waiting.clear()
                    raise ProtocolError(f"a packet is longer than {MOST_BYTES} bytes")
                if len(self._waiting) < end + 3:
                    return
                payload, digits = bytes(self._waiting[1:end]), bytes(self._waiting[end + 1 : end + 3])
                del self._waiting[: end + 3]
                yield self._checked(payload, digits)
                continue
            del self._waiting[0]
            if first == 0x03:
                yield Mark.INTERRUPT
            elif first == ord("+"):
                yield Mark.ACK
            elif first == ord("-"):
                yield Mark.NAK

    def _checked(self, payload: bytes, digits: bytes) -> bytes | Mark:
        right = _HEX.issuperset(digits) and int(digits, 16) == checksum(payload)
        if self.checks and not right:
            return Mark.DAMAGED
        return unescaped(payload)
