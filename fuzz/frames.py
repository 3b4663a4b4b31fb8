# SPDX-License-Identifier: GPL-2.0-only
"""Target `frames`: what the network back end reads of rings that guests write.

Two guests are on one switch, each with rings and sixteen pages that it lends. An input is a sequence of
acts: packets with plausible and odd headers, raw slots, producer indices set to anything, offers of pages,
kicks. Checked: no exception but that a ring lies, which only ends its own guest's connection; all that is
taken is answered; copies stay within pages that are lent; what waits for a guest is bounded; what a guest
gets is as it said that it can take it.
"""

import struct
from typing import Final

from fuzz.rings import Page
from fuzz.source import Source
from fuzz.target import Finding, Target, arm
from pyhv.abi.grants import GrantStatus
from pyhv.devices.borrowing import Borrowed
from pyhv.devices.netif import RX_SIZE, TX_SIZE, NetifStatus
from pyhv.devices.netqueue import MAX_WAITING, Abilities, NetQueue
from pyhv.devices.ring import RingBroken
from pyhv.devices.sharedring import BackRing
from pyhv.grants.status import GrantError
from pyhv.net.frame import MAX_FRAME, Frame, Segmentation
from pyhv.net.switch import Port, Switch, Vlans
from pyhv.state import restore, state

LENT: Final = 16
LIFETIME: Final = 4000
_ETHERNET: Final = (
    bytes.fromhex("ffffffffffff00163e0000010800"), bytes.fromhex("00163e00000200163e00000186dd"),
    bytes.fromhex("00163e00000200163e000001810000640800"),
    bytes.fromhex("01005e00000100163e00000188a80064810000c80800"),
    bytes.fromhex("00163e00000200163e0000010806"), bytes.fromhex("00163e00000200163e0000018100"),
)  # fmt: skip
_IP: Final = (
    struct.pack(">BBHHHBBH8x", 0x45, 0, 4000, 7, 0, 64, 6, 0),
    struct.pack(">BBHHHBBH8x", 0x4F, 0, 900, 7, 0x2000, 64, 17, 0),
    struct.pack(">IHBB32x", 6 << 28, 3000, 6, 64),
    struct.pack(">IHBB32xBB6x", 6 << 28, 300, 60, 64, 17, 0),
    b"",
)  # fmt: skip
_TCP: Final = (struct.pack(">HHIIBBHHH", 1, 2, 3, 4, 0x50, 0xFF, 5, 0, 0), b"\x50" * 20, b"")


class Guest:
    """One guest's rings and pages, and the back end's view of them."""

    def __init__(self, switch: Switch, number: int, abilities: Abilities) -> None:
        self.number = number
        self.abilities = abilities
        self.tx_page, self.rx_page = Page(), Page()
        self.pages = [Page() for _ in range(LENT)]
        self.port = Port(f"vif{number}.0", self.deliver, Vlans(0, frozenset({100})) if number else Vlans())
        switch.attach(self.port)
        self.connect()

    def connect(self) -> None:
        """Be as in the beginning."""
        for page in (self.tx_page, self.rx_page):
            page.write(0, struct.pack("<4I", 0, 1, 0, 1))
        self.produced = [0, 0]
        tx, rx = BackRing(Borrowed([self.tx_page]), TX_SIZE), BackRing(Borrowed([self.rx_page]), RX_SIZE)
        self.queue = NetQueue(self, 0, tx, rx, self.abilities)
        self.there = True

    def read(self, _domid: int, ref: int, offset: int, length: int) -> bytes:
        """`netqueue.Pages`."""
        return self._page(ref).read(offset, length)

    def write(self, _domid: int, ref: int, offset: int, data: bytes | memoryview) -> None:
        """`netqueue.Pages`."""
        self._page(ref).write(offset, bytes(data))

    def _page(self, ref: int) -> Page:
        if ref >= LENT:
            raise GrantError(GrantStatus.BAD_GNTREF, "not lent")
        return self.pages[ref]

    def put(self, ring: int, slot: bytes) -> None:
        """A slot, and that it is there."""
        page, size = (self.tx_page, TX_SIZE) if ring == 0 else (self.rx_page, RX_SIZE)
        page.write(64 + self.produced[ring] % 256 * size, slot[:size])
        self.produced[ring] = self.produced[ring] + 1 & 0xFFFFFFFF
        page.write_u32(0, self.produced[ring])

    def kick(self) -> None:
        """What `NetBackend.serve` does."""
        if not self.there:
            return
        queue = self.queue
        try:
            while True:
                while (available := queue.tx.unread()) > 0:
                    packet = queue.take(available)
                    frame = queue.gather(packet)
                    queue.answer(packet, NetifStatus.ERROR if frame is None else NetifStatus.OKAY)
                    if frame is not None:
                        self.port.send(frame)
                if not queue.tx.listen():
                    break
            queue.flush()
        except RingBroken:
            self.there = False
            return
        self.settled()

    def deliver(self, frame: Frame) -> None:
        """What `NetBackend` does with a frame for its guest."""
        if not self.there:
            return
        for one in self.abilities.fitted(frame):
            if not one.data or len(one.data) > (MAX_FRAME if self.abilities.scattered else 4096):
                raise Finding("frame", f"{len(one.data)} bytes for a guest that takes less")
            if one.gso is not None and one.gso.kind not in self.abilities.cuts:
                raise Finding("frame", "segments for a guest that does not know them")
            if one.checksum is not None and one.version not in self.abilities.sums:
                raise Finding("frame", "no checksum for a guest that wants one")
        try:
            self.queue.receive(frame)
            self.queue.flush()
        except RingBroken:
            self.there = False

    def settled(self) -> None:
        """What must hold after a kick."""
        queue = self.queue
        if queue.tx.in_the_works or queue.rx.in_the_works:
            raise Finding("ring", "something that was taken has no answer")
        queue.tx.publish(), queue.rx.publish()
        said = state(queue)
        if queue.size > MAX_WAITING:
            raise Finding("waiting", "more waits than may")
        restore(queue, said)
        if state(queue) != said:
            raise Finding("state", "what was said is not what was restored")


class Frames(Target):
    """Runs inputs on two guests' rings."""

    name = "frames"
    unit = "kicks"

    def __init__(self) -> None:
        super().__init__()
        self._guests: list[Guest] = []
        self._age = 0

    def _fresh(self) -> list[Guest]:
        if not self._guests:
            switch = Switch("lan", lambda: self._age * 10**9)
            able = Abilities(True, frozenset({4, 6}), frozenset(Segmentation))
            self._guests = [
                Guest(switch, 0, able),
                Guest(switch, 1, Abilities(False, frozenset({4}), frozenset())),
            ]
            self._age = 0
        return self._guests

    def run(self, data: bytes) -> bytes:
        """Let the guests act."""
        guests, source = self._fresh(), Source(data)
        self.started = False
        self.steps.clear()
        while source.more:
            self.steps.append(source.at)
            arm()
            how = source.u8()
            self._act(guests[how >> 7], how & 127, source)
            self.calls += 1
            self._age += 1
        if self._age > LIFETIME:
            self.finish()
        return source.used()

    def _act(self, guest: Guest, how: int, source: Source) -> None:
        if how < 64:
            self._packet(guest, source)
        elif how < 80:
            guest.put(source.u8() & 1, source.raw(TX_SIZE))
        elif how < 88:
            page = guest.rx_page if how & 1 else guest.tx_page
            page.write_u32(
                source.pick((0, 4, 8, 12)), source.u8() if source.chance(128) else source.number(4)
            )
        elif how < 112:
            for _ in range(source.u8() % 40):
                guest.put(1, struct.pack("<HHI", source.u8(), 0, source.u8() % (LENT + 1)))
        elif how < 116 or not guest.there:
            guest.connect()
        guest.kick()

    def _packet(self, guest: Guest, source: Source) -> None:
        """A packet of some pages, with headers that make sense, or nearly."""
        header = source.pick(_ETHERNET) + source.pick(_IP) + source.pick(_TCP) + source.raw(source.u8() & 7)
        first = source.below(LENT)
        offset = source.number(2) & 4095 if source.chance(64) else 0
        guest.pages[first].write(min(offset, 4096 - len(header)), header)
        fragments = [(source.below(LENT + 1), source.number(2) & 4095) for _ in range(source.u8() & 3)]
        size = min(4096 - offset, source.number(2)) + sum(length for _, length in fragments)
        flags = source.u8() & 3 | (4 if fragments else 0)
        extra = source.chance(96)
        guest.put(0, struct.pack("<IHHHH", first, offset, flags | (8 if extra else 0), 1, size & 0xFFFF))
        if extra:
            kind, mss = source.pick((1, 1, 1, 2, 3, 4, 0, 9)), source.number(2)
            guest.put(0, struct.pack("<BBHBBHI", kind, source.u8() & 1, mss, source.pick((1, 2, 3)), 0, 0, 0))
        for number, (ref, length) in enumerate(fragments):
            more = 4 if number + 1 < len(fragments) else 0
            guest.put(0, struct.pack("<IHHHH", ref, 0, more, 2, length))

    def finish(self) -> None:
        """Both guests go."""
        self.abandon()

    def abandon(self) -> None:
        """Forget them."""
        self._guests = []
        self.started = True
