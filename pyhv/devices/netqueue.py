# SPDX-License-Identifier: GPL-2.0-only
"""One pair of rings of a network device: packets out of one, frames into the other.

    tx   guest ──► packets (`netif.py`), copied out of its pages ──► frames
    rx   frames ──► as the guest can take them: cut, summed, or as they are ──► its pages, 4096 bytes a slot

A guest offers pages for what comes. While it has too few, frames wait here up to a bound; what is more is
dropped, as on any wire. What it lends and cannot be read or written costs it that packet alone.
"""

from collections import deque
from collections.abc import Mapping
from typing import Annotated, ClassVar, Final, Protocol

from pyhv.address import PAGE_SIZE
from pyhv.devices import netif
from pyhv.devices.netif import NetifStatus, Packet, RxFlag
from pyhv.devices.sharedring import BackRing
from pyhv.frozen import frozen
from pyhv.grants.status import GrantError
from pyhv.net.frame import MAX_FRAME, Frame, Segmentation, segmented, summed, with_blank_checksum
from pyhv.state import Plain, entries, refusal, restore, say, typed

MAX_WAITING: Final = 1 << 20
"""Bytes of frames that wait for the guest's pages, at most."""
# Members of a flag are objects, and each operation on them costs as much as a copy of a small frame.
_UNSUMMED: Final = int(RxFlag.CSUM_BLANK | RxFlag.DATA_VALIDATED)
_EXTRA_INFO: Final = int(RxFlag.EXTRA_INFO)
_MORE_DATA: Final = int(RxFlag.MORE_DATA)


@frozen
class Abilities:
    """What a guest's driver can do with what it receives."""

    scattered: bool
    """Frames in several pages."""
    sums: frozenset[Annotated[int, range(4, 7)]]
    """Versions of IP whose TCP and UDP it takes without their checksum."""
    cuts: frozenset[Segmentation]
    """Large frames that it takes in one piece."""

    def fitted(self, frame: Frame) -> list[Frame]:
        """A frame as frames that the guest can take; those that it cannot are left out."""
        gso = frame.gso
        if gso is not None and not (self.scattered and gso.kind in self.cuts and self._leaves_sum(frame)):
            fitted = segmented(frame)
        elif gso is None and frame.checksum is not None and not self._leaves_sum(frame):
            fitted = [summed(frame)]
        else:
            fitted = [frame]
        longest = MAX_FRAME if self.scattered else PAGE_SIZE
        return [one for one in fitted if len(one.data) <= longest]

    def _leaves_sum(self, frame: Frame) -> bool:
        return frame.checksum is not None and frame.version in self.sums


class Pages(Protocol):
    """How pages are reached that the guest lends. GrantError."""

    def read(self, domid: int, ref: int, offset: int, length: int) -> bytes:
        """Copy bytes out."""

    def write(self, domid: int, ref: int, offset: int, data: bytes | memoryview) -> None:
        """Copy bytes in."""


class NetQueue:
    """The rings, and what waits for the guest."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("tx", "rx"), "say their own"),
        **dict.fromkeys(("_pages", "_domid", "_abilities"), "given"),
        "size": "follows from what waits",
        "dropped": "a statistic",
    }

    def __init__(self, pages: Pages, domid: int, tx: BackRing, rx: BackRing, abilities: Abilities) -> None:
        self.tx, self.rx = tx, rx
        self.dropped = 0
        """Frames that the guest had no room for."""
        self._pages, self._domid, self._abilities = pages, domid, abilities
        self._waiting: deque[Frame] = deque()
        self.size = 0
        """Bytes that wait."""

    @property
    def crowded(self) -> bool:
        """Whether more had better not come."""
        return self.size > MAX_WAITING // 4

    # -- from the guest ----------------------------------------------------------------------------------

    def take(self, available: int) -> Packet:
        """The next packet that it wants to send; so many slots are there, one at least. RingBroken."""
        return netif.take_packet(lambda: self.tx.take(netif.TX_SIZE), available)

    def gather(self, packet: Packet) -> Frame | None:
        """The frame that it is, copied. None: it makes no sense, or is not lent."""
        if not packet.has_frame:
            return None
        read, domid = self._pages.read, self._domid
        try:
            data = b"".join([read(domid, one.ref, one.offset, one.size) for one in packet.fragments])
        except GrantError:
            return None
        if packet.gso is None:
            return with_blank_checksum(data) if packet.blank else Frame(data)
        frame = with_blank_checksum(data, packet.gso)
        return None if frame.checksum is None else frame

    def answer(self, packet: Packet, status: NetifStatus) -> None:
        """Answer all of a packet's slots."""
        first, *rest = packet.fragments
        put = self.tx.put
        put(netif.tx_response(first.id, status))
        for _ in range(packet.extras):
            put(netif.tx_response(0, NetifStatus.NULL))
        for one in rest:
            put(netif.tx_response(one.id, status))

    # -- to the guest ------------------------------------------------------------------------------------

    def receive(self, frame: Frame) -> None:
        """A frame for the guest, which goes into its pages with `flush`."""
        for one in self._abilities.fitted(frame):
            if self.size + len(one.data) > MAX_WAITING:
                self.dropped += 1
                continue
            self._waiting.append(one)
            self.size += len(one.data)

    def flush(self) -> None:
        """Put what waits into the pages that there are. RingBroken."""
        ring = self.rx
        ring.unread()  # a ring that cannot be is noticed also while nothing waits
        while self._waiting:
            frame = self._waiting[0]
            pages = -(-len(frame.data) // PAGE_SIZE)
            slots = pages + (frame.gso is not None)
            while (unread := ring.unread()) < slots:
                if not ring.listen(unread):
                    return
            self._waiting.popleft()
            self.size -= len(frame.data)
            self._put(frame, pages)

    def _put(self, frame: Frame, pages: int) -> None:
        """Fill the next pages, one at least, with a frame."""
        flags = 0 if frame.checksum is None else _UNSUMMED
        if frame.gso is not None:
            flags |= _EXTRA_INFO
        view, ring = memoryview(frame.data), self.rx
        for number in range(pages):
            piece = view[number * PAGE_SIZE : (number + 1) * PAGE_SIZE]
            more = _MORE_DATA if number + 1 < pages else 0
            name, ref = netif.rx_request(ring.take(netif.RX_SIZE))
            status = len(piece)
            try:
                self._pages.write(self._domid, ref, 0, piece)
            except GrantError:
                status = NetifStatus.ERROR
            ring.put(netif.rx_response(name, flags | more, status))
            flags = 0
            if number == 0 and frame.gso is not None:
                ring.take(netif.RX_SIZE)
                ring.put(netif.rx_segmentation(frame.gso))

    # -- state -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Plain]:
        """The rings' places, and what waits."""
        return {
            "tx": self.tx.state(), "rx": self.rx.state(), "waiting": say(list[Frame], self._waiting),
        }  # fmt: skip

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved. StateError."""
        found = entries(dict(saved), "", dict.fromkeys(("tx", "rx", "waiting")))
        restore(self.tx, found["tx"], "tx")
        restore(self.rx, found["rx"], "rx")
        if self.tx.in_the_works or self.rx.in_the_works:
            raise refusal("rings", "have something in the works, and all is answered at once")
        waiting = typed(list[Frame], found["waiting"], "waiting")
        if any(one not in self._abilities.fitted(one) for one in waiting):
            raise refusal("waiting", "has a frame that the guest cannot take")
        self._waiting = deque(waiting)
        self.size = sum(len(one.data) for one in waiting)
        if self.size > MAX_WAITING:
            raise refusal("waiting", f"has more than {MAX_WAITING} bytes")
