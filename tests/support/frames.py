# SPDX-License-Identifier: GPL-2.0-only
"""Ethernet frames written field by field, and Internet checksums as RFC 1071 has them: word after word."""

import struct
from typing import Final

FROM, TO = bytes.fromhex("00163e000001"), bytes.fromhex("00163e000002")
V4: Final = (bytes([10, 0, 0, 1]), bytes([10, 0, 0, 2]))
V6: Final = (bytes.fromhex("fd00" + "0" * 27 + "1"), bytes.fromhex("fd00" + "0" * 27 + "2"))
TCP, UDP = 6, 17
FIN, PSH, ACK, CWR = 1, 8, 16, 128


def internet_checksum(data: bytes) -> int:
    """RFC 1071, with the carry added at each word."""
    total = 0
    for at in range(0, len(data), 2):
        total += int.from_bytes(data[at : at + 2].ljust(2, b"\0"), "big")
        total = (total & 0xFFFF) + (total >> 16)
    return total ^ 0xFFFF


def pseudo_header(version: int, protocol: int, length: int) -> bytes:
    if version == 4:
        return b"".join(V4) + struct.pack(">BBH", 0, protocol, length)
    return b"".join(V6) + struct.pack(">I3xB", length, protocol)


def ethernet(payload: bytes, kind: int, tags: bytes = b"", to: bytes = TO, source: bytes = FROM) -> bytes:
    return to + source + tags + kind.to_bytes(2, "big") + payload


def tag(vlan: int, kind: int = 0x8100) -> bytes:
    return struct.pack(">HH", kind, vlan)


def packet(
    version: int,
    protocol: int,
    segment: bytes,
    *,
    tags: bytes = b"",
    options: bytes = b"",
    fragment: int = 0,
    identification: int = 0x1234,
) -> bytes:
    """A frame with an IP packet. `options` are IPv4's, or whole extension headers of type 60."""
    if version == 4:
        header = bytearray(
            struct.pack(
                ">BBHHHBBH4s4s", 0x40 | 5 + len(options) // 4, 0, 20 + len(options) + len(segment),
                identification, fragment, 64, protocol, 0, *V4,
            )
            + options
        )  # fmt: skip
        header[10:12] = internet_checksum(bytes(header)).to_bytes(2, "big")
        return ethernet(bytes(header) + segment, 0x0800, tags)
    first = 60 if options else protocol
    fixed = struct.pack(">IHBB16s16s", 6 << 28, len(options) + len(segment), first, 64, *V6)
    return ethernet(fixed + options + segment, 0x86DD, tags)


def transport(
    version: int,
    protocol: int,
    payload: bytes,
    *,
    sequence: int = 1000,
    flags: int = ACK,
    options: bytes = b"",
    checksum: int | None = None,
) -> bytes:
    """A TCP or UDP header with what follows it; with the right checksum, or with that one."""
    if protocol == UDP:
        head, at = struct.pack(">HHHH", 68, 67, 8 + len(payload), 0), 6
    else:
        words = 5 + len(options) // 4
        head = struct.pack(">HHIIBBHHH", 1025, 80, sequence, 7, words << 4, flags, 512, 0, 0) + options
        at = 16
    if checksum is None:
        whole = pseudo_header(version, protocol, len(head) + len(payload)) + head + payload
        checksum = internet_checksum(whole)
        if protocol == UDP and checksum == 0:
            checksum = 0xFFFF
    return head[:at] + checksum.to_bytes(2, "big") + head[at + 2 :] + payload


def extension(next_protocol: int, size: int = 1, *, routing_left: int = 0) -> bytes:
    """A destination-options header of `size` times 8 bytes, before that protocol."""
    return bytes([next_protocol, size - 1, 0, routing_left]) + bytes(size * 8 - 4)
