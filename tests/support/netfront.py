# SPDX-License-Identifier: GPL-2.0-only
"""A network front end in Python: a paused guest whose driver is the test, with rings as a guest has them."""

import copy
import struct
from typing import Final

from pyhv.abi.xenbus import XenbusState
from pyhv.address import MASK32
from pyhv.devices.netback import NetBackend
from pyhv.machine import Machine
from pyhv.mmu.frames import NONE, WRITABLE
from pyhv.net.spec import parse
from pyhv.testing.granting import PERMIT, entry
from pyhv.testing.guest_machine import Paused

TX, RX = 0, 1
"""Pages, and grant 8 and 9, of the rings."""
DATA: Final = 32
"""Grants from there on lend pages: 40 for what is sent, and 40 for what comes."""
OFFER: Final = DATA + 40
PAGES: Final = 80
BLANK, VALIDATED, MORE, EXTRA = 1, 2, 4, 8
"""Flags of what is sent; of what comes, the first two are the other way round."""
ABLE: Final[dict[str, str | int]] = {
    "feature-sg": 1,
    "feature-gso-tcpv4": 1,
    "feature-gso-tcpv6": 1,
    "feature-ipv6-csum-offload": 1,
}


class NetFront:
    """One device's driver. Where it has several queues, this one."""

    def __init__(self, machine: Machine, net: str = "switch", guest: Paused | None = None) -> None:
        self.machine = machine
        self.guest = Paused(machine) if guest is None else guest
        number = machine.attach_net(self.guest.domain, parse(net))
        self.device = next(
            one
            for one in machine.dom0.devices(self.domid)
            if isinstance(one, NetBackend) and one.name.handle == number
        )
        frames = machine.frames
        owned = [int(mfn) for mfn in frames.owned_by(self.domid)]
        plain = [mfn for mfn in owned if frames.type[mfn] in (NONE, WRITABLE) and not frames.xen_heap[mfn]]
        self.frames = plain[-PAGES:]
        """Where the data are."""
        for at, mfn in enumerate(self.frames):
            entry(self.guest, DATA + at, PERMIT, 0, mfn)
        self.base = 0
        """The page of the first ring."""
        self._begin()

    def _begin(self) -> None:
        for ring in (TX, RX):
            page = self.guest.page(self.base + ring)
            entry(self.guest, 8 + self.base + ring, PERMIT, 0, self.guest.mfn(page))
        self.prod = {TX: 0, RX: 0}
        self.seen = {TX: 0, RX: 0}
        self.offered: list[int] = []
        self.ports: dict[int, int] = {}

    def another_queue(self) -> "NetFront":
        """The driver of the device's second pair of rings."""
        other = copy.copy(self)
        other.base = 2
        other._begin()
        return other

    @property
    def domid(self) -> int:
        return self.guest.domain.domid

    # -- the store ---------------------------------------------------------------------------------------

    def write(self, key: str, value: str | int) -> None:
        """As the guest writes a node of its own."""
        self.machine.store.write(f"{self.device.front}/{key}", value)

    def read(self, key: str) -> str:
        """A node of the back end's."""
        return self.machine.store.read_text(f"{self.device.back}/{key}")

    @property
    def theirs(self) -> XenbusState:
        """The back end's state."""
        return XenbusState(int(self.read("state")))

    def port(self) -> int:
        return self.guest.domain.events.alloc_unbound(0x7FF0, 0)

    def offer(
        self, nodes: dict[str, str | int] | None = None, *, split: bool = False, below: str = ""
    ) -> None:
        """Write what it takes to connect, or something else in its place."""
        for ring in (TX, RX):
            self.guest.put(struct.pack("<4I", 0, 1, 0, 1).ljust(64, b"\0"), (self.base + ring) * 4096)
        self.prod, self.seen, self.offered = {TX: 0, RX: 0}, {TX: 0, RX: 0}, []
        said: dict[str, str | int] = {
            f"{below}tx-ring-ref": 8 + self.base,
            f"{below}rx-ring-ref": 9 + self.base,
            "request-rx-copy": 1,
        }
        if split:
            self.ports = {TX: self.port(), RX: self.port()}
            said |= {f"{below}event-channel-tx": self.ports[TX], f"{below}event-channel-rx": self.ports[RX]}
        else:
            self.ports = dict.fromkeys((TX, RX), self.port())
            said |= {f"{below}event-channel": self.ports[TX]}
        for key, value in (said | (nodes or {})).items():
            self.write(key, value)

    def connect(self, nodes: dict[str, str | int] | None = None, *, split: bool = False) -> XenbusState:
        """The whole handshake; the back end's state after it."""
        self.offer(nodes, split=split)
        self.write("state", int(XenbusState.CONNECTED))
        return self.theirs

    # -- rings -------------------------------------------------------------------------------------------

    def put(self, ring: int, slot: bytes) -> None:
        """A slot into a ring, not yet told."""
        size = 12 if ring == TX else 8
        self.guest.put(slot, (self.base + ring) * 4096 + 64 + self.prod[ring] % 256 * size)
        self.prod[ring] = (self.prod[ring] + 1) & MASK32

    def publish(self, ring: int) -> None:
        self.guest.put(struct.pack("<I", self.prod[ring]), (self.base + ring) * 4096)

    def ring(self, ring: int = TX) -> None:
        """Notify the back end, as the guest does."""
        self.guest.domain.events.send(self.ports[ring])

    def answers(self, ring: int) -> list[bytes]:
        """What has come into a ring since."""
        produced = int.from_bytes(self.guest.get(4, (self.base + ring) * 4096 + 8), "little")
        size, found = (12 if ring == TX else 8), []
        while self.seen[ring] != produced:
            found.append(self.guest.get(size, (self.base + ring) * 4096 + 64 + self.seen[ring] % 256 * size))
            self.seen[ring] = (self.seen[ring] + 1) & MASK32
        return found

    # -- sending -----------------------------------------------------------------------------------------

    def send(
        self, data: bytes, flags: int = 0, extras: tuple[bytes, ...] = (), piece: int = 4096, offset: int = 0
    ) -> list[int]:
        """Send a packet in pieces; the statuses of its slots."""
        self.post(data, flags, extras, piece, offset)
        self.publish(TX)
        self.ring(TX)
        return self.statuses()

    def post(
        self, data: bytes, flags: int = 0, extras: tuple[bytes, ...] = (), piece: int = 4096, offset: int = 0
    ) -> None:
        """Put a packet into the ring."""
        pieces = [data[at : at + piece] for at in range(0, len(data), piece)] or [b""]
        for number, part in enumerate(pieces):
            self.machine.physical.write((self.frames[number] << 12) + offset, part)
            size = len(data) if number == 0 else len(part)
            marks = (flags | (EXTRA if extras else 0)) if number == 0 else 0
            marks |= MORE if number + 1 < len(pieces) else 0
            self.put(TX, struct.pack("<IHHHH", DATA + number, offset, marks, 100 + number, size))
            for extra in extras if number == 0 else ():
                self.put(TX, extra)

    def statuses(self) -> list[int]:
        return [int.from_bytes(slot[2:4], "little", signed=True) for slot in self.answers(TX)]

    # -- receiving ---------------------------------------------------------------------------------------

    def lend(self, count: int = 32) -> None:
        """Offer pages for what comes."""
        for _ in range(count):
            number = len(self.offered) % 40 if not self.base else 20 + len(self.offered) % 20
            self.offered.append(number)
            self.put(RX, struct.pack("<HHI", self.prod[RX] % 256, 0, OFFER + number))
        self.publish(RX)
        self.ring(RX)

    def received(self) -> list[tuple[bytes, int, bytes]]:
        """Frames that have come since: bytes, flags, and the extra slot's bytes or none."""
        found: list[tuple[bytes, int, bytes]] = []
        first = self.seen[RX]
        slots = list(enumerate(self.answers(RX), first))
        while slots:
            data, marks, extra = b"", 0, b""
            while True:
                at, slot = slots.pop(0)
                name, offset, flags, status = struct.unpack("<HHHh", slot)
                assert name == at % 256, "answers are in the order of the offers"
                marks = marks or flags & ~MORE
                if status >= 0:
                    frame = self.frames[40 + self.offered[at]]
                    data += self.machine.physical.read((frame << 12) + offset, status)
                else:
                    marks |= 1 << 15
                if flags & EXTRA:
                    extra = slots.pop(0)[1]
                if not flags & MORE:
                    break
            found.append((data, marks, extra))
        return found


def gso(size: int, kind: int, more: int = 0) -> bytes:
    """The extra slot that asks for segments."""
    return struct.pack("<BBHBBH", 1, more, size, kind, 0, 0).ljust(12, b"\0")


def group(kind: int, address: bytes, more: int = 0) -> bytes:
    """The extra slot that asks to hear of a group, or no longer."""
    return (bytes([kind, more]) + address).ljust(12, b"\0")
