# SPDX-License-Identifier: GPL-2.0-only
"""The network back end: a guest's network device, plugged into a switch (public header `io/netif.h`).

    the guest rings   serve     packets of its tx rings become frames (`netqueue.py`), and go to its port
    a frame comes     deliver   into its rx ring, while somebody else's hypercall, or nobody's, is under way

A packet that makes no sense, or whose pages are not lent, is answered with an error. A ring whose indices,
chains or offsets cannot be disconnects the device (`xenbus.py`), and the guest lives on without it. In
counted time a frame arrives when it is sent: what a run does follows from the guests alone.
"""

import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, ClassVar, Final, Self

from pyhv.abi.layout import u32
from pyhv.devices.backend import Link
from pyhv.devices.borrowing import Borrowed
from pyhv.devices.console_log import ConsoleSink
from pyhv.devices.netif import RX_SIZE, TX_SIZE, Extra, NetifStatus, Packet
from pyhv.devices.netqueue import Abilities, NetQueue
from pyhv.devices.networks import uplink_of
from pyhv.devices.ring import RingBroken
from pyhv.devices.sharedring import BackRing
from pyhv.devices.xenbus import MOST_QUEUES, DeviceRefused, XenbusBackend
from pyhv.errors import ConfigError
from pyhv.events.channels import DeviceName
from pyhv.frozen import frozen
from pyhv.net import mac
from pyhv.net.frame import Frame, Segmentation
from pyhv.net.limit import Bucket
from pyhv.net.spec import NetSpec, check
from pyhv.net.switch import MAX_GROUPS, Port
from pyhv.state import Nanoseconds, Plain, Said, construct, entries, refusal, restore, state
from pyhv.xenstore.store import Value

_FLAG: Final = range(2)
_PACKET_NS: Final = 2_000
_BYTES_PER_NS: Final = 4
"""What a packet costs its sender in counted time, and its bytes: it is copied in his hypercall."""


@dataclass(slots=True)
class _SavedPair:
    handles: Annotated[list[u32], 2]
    ports: list[u32]
    """One for both rings, or one each."""
    queue: Said


@dataclass(slots=True)
class _Saved:
    spec: NetSpec
    xenbus: Said
    abilities: Abilities
    queues: list[_SavedPair]
    credit: Said
    due: Nanoseconds | None


@frozen
class _Connected:
    """A pair of rings that the guest has offered."""

    queue: NetQueue
    handles: list[int]
    tx_port: int
    rx_port: int


class NetBackend(XenbusBackend):
    """One network device of one guest, which `spec` speaks of."""

    kind: ClassVar[str] = "vif"
    NOT_STATE: ClassVar[Mapping[str, str]] = {
        **XenbusBackend.NOT_STATE,
        **dict.fromkeys(("address", "socket"), "follow from `spec`; the switch says what it knows"),
        **dict.fromkeys(("sent", "received"), "statistics"),
        "_bucket": "said as `credit`",
        "_cost": "paid when the guest's call is over",
    }

    def __init__(self, link: Link, domid: int, handle: int, spec: NetSpec) -> None:
        """ConfigError: another device has its name, or its address."""
        super().__init__(link, domid, handle)
        self.sent = self.received = 0
        """Frames, of the guest's and for it."""
        self._abilities = Abilities(False, frozenset(), frozenset())
        self._queues: list[_Connected] = []
        self._due: int | None = None
        """When the guest may send again."""
        self._cost = 0
        self.socket: Port | None = None
        """Where it is plugged in."""
        self._plug_in(spec)

    def _plug_in(self, spec: NetSpec) -> None:
        networks = self.link.networks
        name = spec.vifname or f"{self.kind}{self.name.domid}.{self.name.handle}"
        self.spec = spec
        self.address = networks.address(spec, self.name.domid, self.name.handle)
        self.socket = networks.plug(name, self.address, spec, self._deliver)
        self.socket.crowded = lambda: any(each.queue.crowded for each in self._queues)
        self._bucket = None if spec.rate is None else Bucket(spec.rate)

    @property
    def uplink(self) -> str:
        """The name of the uplink that it wants; empty: none."""
        assert self.socket is not None
        return uplink_of(self.socket.name, self.spec)

    def _pull_out(self) -> None:
        if self.socket is not None:
            self.link.networks.unplug(self.socket, self.spec)
            self.socket = None

    @classmethod
    def made_again(
        cls, link: Link, name: DeviceName, _sink_for: Callable[[int], ConsoleSink], saved: Plain
    ) -> Self:
        """`Backend.made_again`: it is plugged in again."""
        try:
            return cls(link, name.domid, name.handle, _spec(entries(saved, "").get("spec")))
        except ConfigError as error:
            raise refusal("spec", f"cannot be: {error}") from error

    # -- the handshake -----------------------------------------------------------------------------------

    def features(self) -> dict[str, Value]:
        """`XenbusBackend.features`."""
        rate = self.spec.rate
        limited = {} if rate is None else {"rate": f"{rate.bytes_each},{rate.interval_ns // 1000}"}
        return {
            "mac": mac.shown(self.address),
            "handle": self.name.handle,
            "bridge": self.spec.switch,
            "type": "vif",
            **limited,
            "feature-rx-copy": 1,
            "feature-rx-flip": 0,
            "feature-sg": 1,
            "feature-gso-tcpv4": 1,
            "feature-gso-tcpv6": 1,
            "feature-ipv6-csum-offload": 1,
            "feature-multicast-control": 1,
            "feature-split-event-channels": 1,
            "multi-queue-max-queues": MOST_QUEUES,
            "hotplug-status": "connected",
        }

    def front_nodes(self) -> dict[str, Value]:
        """`XenbusBackend.front_nodes`."""
        return {"mac": mac.shown(self.address), "handle": self.name.handle}

    def connect(self) -> dict[str, Value]:
        """`XenbusBackend.connect`: a pair of rings, or one for each queue."""
        if not self._says("request-rx-copy"):
            raise DeviceRefused("request-rx-copy is not 1, and pages are copied here")
        versions = frozenset(
            version
            for version, able in (
                (4, not self._says("feature-no-csum-offload")),
                (6, self._says("feature-ipv6-csum-offload")),
            )
            if able
        )
        kinds = [one for one in Segmentation if self._says(f"feature-gso-{one.name.lower()}")]
        self._abilities = Abilities(self._says("feature-sg"), versions, frozenset(kinds))
        for below in self.front_queues():
            self._connect_queue(below)
        assert self.socket is not None
        self.socket.groups = set() if self._says("request-multicast-control") else None
        return {}

    def _says(self, key: str) -> bool:
        return bool(self.front_int(key, _FLAG, 0))

    def _connect_queue(self, below: str) -> None:
        refs = [self.front_ref(f"{below}{ring}-ring-ref") for ring in ("tx", "rx")]
        (tx, tx_memory), (rx, rx_memory) = self.borrow(refs[:1]), self.borrow(refs[1:])
        of_tx = self.front_port(f"{below}event-channel-tx", 0)
        if of_tx:
            tx_port = self.bind(of_tx)
            rx_port = self.bind(self.front_port(f"{below}event-channel-rx"))
        else:
            tx_port = rx_port = self.bind(self.front_port(f"{below}event-channel"))
        queue = self._queue(tx_memory, rx_memory)
        self._queues.append(_Connected(queue, [*tx, *rx], tx_port, rx_port))

    def _queue(self, tx: Borrowed, rx: Borrowed) -> NetQueue:
        rings = BackRing(tx, TX_SIZE), BackRing(rx, RX_SIZE)
        return NetQueue(self.link.borrower, self.name.domid, *rings, self._abilities)

    def disconnect(self) -> None:
        """`XenbusBackend.disconnect`: what waits for the guest is dropped."""
        self._queues.clear()
        self._due = None
        if self.socket is not None:
            self.socket.groups = None

    def detach(self) -> None:
        """`Backend.detach`."""
        super().detach()
        self._pull_out()

    def let_go(self) -> None:
        """`Backend.let_go`."""
        super().let_go()
        self._pull_out()

    # -- frames ------------------------------------------------------------------------------------------

    def event(self) -> None:
        """`Backend.event`: the guest pays for what is copied."""
        self._cost = 0
        super().event()
        self.link.clock.work(self._cost)

    def serve(self) -> None:
        """`XenbusBackend.serve`: send all that the guest may send, and use the pages that it offers."""
        for each in self._queues:
            self._transmit(each)
            each.queue.flush()
            self._tell(each)

    def _transmit(self, each: _Connected) -> None:
        queue, ring = each.queue, each.queue.tx
        self._due = None
        while True:
            while (available := ring.unread()) > 0:
                if self._bucket is not None:
                    self._due = self._bucket.wait(self.link.clock.now())
                    if self._due is not None:
                        return
                self._send(queue, queue.take(available))
            if not ring.listen():
                return

    def _send(self, queue: NetQueue, packet: Packet) -> None:
        self._cost += _PACKET_NS + packet.size // _BYTES_PER_NS
        if self._bucket is not None:
            self._bucket.spend(packet.size)
        if packet.groups:
            queue.answer(packet, NetifStatus.OKAY if self._join(packet) else NetifStatus.ERROR)
            return
        frame = queue.gather(packet)
        queue.answer(packet, NetifStatus.ERROR if frame is None else NetifStatus.OKAY)
        if frame is not None and self.socket is not None:
            self.sent += 1
            self.socket.send(frame)

    def _join(self, packet: Packet) -> bool:
        """Hear of the groups that the guest names, or no longer; False if it may not, or of too many."""
        groups = None if self.socket is None else self.socket.groups
        if groups is None:
            return False
        for what, group in packet.groups:
            if what is Extra.MCAST_DEL:
                groups.discard(group)
            elif len(groups) < MAX_GROUPS and mac.is_group(group):
                groups.add(group)
            else:
                return group in groups
        return True

    def _deliver(self, frame: Frame) -> None:
        """A frame comes out of the switch. Whatever is wrong is this guest's, and not its sender's."""
        if not self._queues:
            return
        self.received += 1
        chosen = self._queues[_flow(frame) % len(self._queues) if len(self._queues) > 1 else 0]
        chosen.queue.receive(frame)
        try:
            chosen.queue.flush()
        except RingBroken as broken:
            self.fail(str(broken))
            return
        self._tell(chosen)

    def _tell(self, each: _Connected) -> None:
        tx, rx = each.queue.tx.publish(), each.queue.rx.publish()
        if tx:
            self.link.channels.send(each.tx_port)
        if rx and not (tx and each.rx_port == each.tx_port):
            self.link.channels.send(each.rx_port)

    def next_deadline(self) -> int | None:
        """`Backend.next_deadline`."""
        return self._due

    def expire(self, _now: int) -> None:
        """`Backend.expire`: the guest may send again."""
        super().event()

    # -- state -------------------------------------------------------------------------------------------

    def state(self) -> dict[str, Plain]:
        """The connection, what waits for the guest, and what it may send."""
        queues = [
            _SavedPair(one.handles, list(dict.fromkeys((one.tx_port, one.rx_port))), one.queue.state())
            for one in self._queues
        ]
        credit = None if self._bucket is None else state(self._bucket)
        return state(_Saved(self.spec, super().state(), self._abilities, queues, credit, self._due))

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved. StateError."""
        found = construct(_Saved, dict(saved))
        super().restore(found.xenbus)
        if found.spec != self.spec or self.socket is None:
            self._pull_out()
            try:
                check(found.spec)
                self._plug_in(found.spec)
            except ConfigError as error:
                raise refusal("spec", f"cannot be: {error}") from error
        if (self._bucket is None) != (found.credit is None):
            raise refusal("credit", "does not go with the rate")
        if self._bucket is not None:
            restore(self._bucket, found.credit, "credit")
        ports = [port for one in found.queues for port in one.ports]
        self.check_rings(ports, [[handle] for one in found.queues for handle in one.handles], {1})
        if len(found.queues) > MOST_QUEUES or any(len(one.ports) not in (1, 2) for one in found.queues):
            raise refusal("queues", "are too many, or have none or too many ports")
        self._abilities, self._due = found.abilities, found.due
        self._queues = []
        for one in found.queues:
            queue = self._queue(*(self.borrowed([handle]) for handle in one.handles))
            restore(queue, one.queue, "queue")
            self._queues.append(_Connected(queue, one.handles, one.ports[0], one.ports[-1]))


def _flow(frame: Frame) -> int:
    """The same number for all frames of one connection: of addresses and ports, where IPv4 has them."""
    return zlib.crc32(frame.data[:12] + frame.data[26:38])


def _spec(saved: Plain) -> NetSpec:
    """What was saved of a device. StateError, ConfigError: it cannot be."""
    spec = construct(NetSpec, saved, "spec")
    check(spec)
    return spec
