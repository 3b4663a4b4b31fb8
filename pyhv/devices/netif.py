# SPDX-License-Identifier: GPL-2.0-only
"""What is in the slots of a network device's rings, as pure data (public header `io/netif.h`).

    tx, 12 bytes   a packet is one request, extra slots if its flags say so, and the rest of its fragments:
                   | request: all of the packet's size | extra ... | request: its own size | request ...
    rx, 8 bytes    an offer of the guest's is answered in place; extra slots come second here as well

The size in a packet's first request is that of the whole packet, so that the bytes in its own page are what
the others leave. Each slot is read once, since the guest may change it at any time. What cannot
be is a `RingBroken`: the two sides no longer agree on where a packet begins, and the device ends. A packet
that only makes no sense by itself is answered with an error.
"""

import enum
import struct
from collections.abc import Callable
from typing import Final, NamedTuple

from pyhv.address import PAGE_SIZE
from pyhv.devices.ring import RingBroken
from pyhv.frozen import frozen
from pyhv.net.frame import HEADER, Gso, Segmentation

TX_SIZE, RX_SIZE = 12, 8
"""Bytes of a slot."""
MAX_SLOTS: Final = 20
"""Requests of one packet, at most; 18 is what a guest may count on (XEN_NETIF_NR_SLOTS_MIN)."""
_EXTRA_MORE: Final = 1
_MAX_EXTRAS: Final = 5

_TX_REQUEST: Final = struct.Struct("<IHHHH")
_TX_RESPONSE: Final = struct.Struct("<Hh")
_RX_REQUEST: Final = struct.Struct("<HxxI")
_RX_RESPONSE: Final = struct.Struct("<HHHh")
_EXTRA: Final = struct.Struct("<BB6s")
_GSO: Final = struct.Struct("<HBxH")


class Flag(enum.IntFlag):
    """XEN_NETTXF_*, of a request of the guest's. Those of answers in the other ring are `RxFlag`."""

    CSUM_BLANK = 1
    DATA_VALIDATED = 2
    MORE_DATA = 4
    EXTRA_INFO = 8


_CSUM_BLANK: Final = int(Flag.CSUM_BLANK)
_MORE_DATA: Final = int(Flag.MORE_DATA)
_EXTRA_INFO: Final = int(Flag.EXTRA_INFO)


class RxFlag(enum.IntFlag):
    """XEN_NETRXF_*."""

    DATA_VALIDATED = 1
    CSUM_BLANK = 2
    MORE_DATA = 4
    EXTRA_INFO = 8


class NetifStatus(enum.IntEnum):
    """XEN_NETIF_RSP_*."""

    DROPPED = -2
    ERROR = -1
    OKAY = 0
    NULL = 1
    """Of an extra slot: no answer."""


class Extra(enum.IntEnum):
    """XEN_NETIF_EXTRA_TYPE_*."""

    GSO = 1
    MCAST_ADD = 2
    MCAST_DEL = 3
    HASH = 4
    XDP = 5


class Fragment(NamedTuple):
    """Some bytes of a packet: `size` of them, from `offset` on, in a page that is lent as `ref`."""

    id: int
    ref: int
    offset: int
    size: int


@frozen
class Packet:
    """What a guest wants to be sent."""

    fragments: tuple[Fragment, ...]
    extras: int
    """How many slots come after the first request that are none."""
    blank: bool
    """Its checksum is to be filled in."""
    size: int
    gso: Gso | None
    groups: tuple[tuple[Extra, bytes], ...]
    """It is no packet: groups that the guest wants to hear of, or no longer."""

    @property
    def slots(self) -> int:
        """How many it takes in the ring."""
        return len(self.fragments) + self.extras

    @property
    def has_frame(self) -> bool:
        """Whether it can be sent: it is neither too short nor about groups."""
        return self.size >= HEADER and not self.groups


def take_packet(take: Callable[[], bytes], available: int) -> Packet:
    """The next packet; `take` gives one slot after the other, of which so many are there. RingBroken."""
    ref, offset, flags, number, total = _TX_REQUEST.unpack(take())
    blank, used = bool(flags & _CSUM_BLANK), 1
    gso, groups = None, []
    more = bool(flags & _EXTRA_INFO)
    while more:
        if used >= available or used > _MAX_EXTRAS:
            raise RingBroken(f"a packet of which {used - 1} extra slots are here says that there are more")
        kind, marks, content = _EXTRA.unpack(take()[: _EXTRA.size])
        used += 1
        more = bool(marks & _EXTRA_MORE)
        if kind == Extra.GSO:
            gso = _segmentation(content)
        elif kind in (Extra.MCAST_ADD, Extra.MCAST_DEL):
            groups.append((Extra(kind), content))
        elif kind not in (Extra.HASH, Extra.XDP):
            raise RingBroken(f"an extra slot of type {kind}, which there is not")
    extras, left = used - 1, total
    rest: list[Fragment] = []
    while flags & _MORE_DATA:
        if used >= available or len(rest) + 1 >= MAX_SLOTS:
            raise RingBroken(f"a packet of {len(rest) + 1} requests says that there are more")
        other, at, flags, name, size = _TX_REQUEST.unpack(take())
        used += 1
        if size > left:
            raise RingBroken(f"a packet of {total} bytes has fragments of more")
        left -= size
        rest.append(_fragment(name, other, at, size))
    first = _fragment(number, ref, offset, left)
    return Packet((first, *rest), extras, blank, total, gso, tuple(groups))


def _fragment(number: int, ref: int, offset: int, size: int) -> Fragment:
    if offset + size > PAGE_SIZE:
        raise RingBroken(f"{size} bytes from {offset} on are more than a page")
    return Fragment(number, ref, offset, size)


def _segmentation(content: bytes) -> Gso:
    size, kind, _features = _GSO.unpack(content)
    if size == 0 or kind not in (Segmentation.TCPV4, Segmentation.TCPV6):
        raise RingBroken(f"segments of type {kind} and of {size} bytes")
    return Gso(Segmentation(kind), size)


def tx_response(number: int, status: int) -> bytes:
    """The answer to a request."""
    return _TX_RESPONSE.pack(number, status)


def rx_request(slot: bytes) -> tuple[int, int]:
    """The id and the grant reference of a page that the guest offers."""
    number, ref = _RX_REQUEST.unpack(slot)
    return number, ref


def rx_response(number: int, flags: int, status: int) -> bytes:
    """The answer to an offer: so many bytes from the page's beginning on, or an error."""
    return _RX_RESPONSE.pack(number, 0, flags, status)


def rx_segmentation(gso: Gso) -> bytes:
    """The extra slot for a large frame."""
    return _EXTRA.pack(Extra.GSO, 0, _GSO.pack(gso.size, gso.kind, 0))
