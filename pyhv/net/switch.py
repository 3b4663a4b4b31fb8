# SPDX-License-Identifier: GPL-2.0-only
"""A learning switch: a frame goes to the port behind which its receiver was last heard of, or to all others.

    port A ──send──► where from?  learn         where to?  known: that port
                     which VLAN?  or drop                  unknown, a group: all others, in their order

Whoever owns a port gives it `deliver`, which is called while the sender sends: it must neither send nor
wait. All that a switch does follows from the frames and from the clock that it is given, so that a run
repeats.

A port is a guest's, and guests are hostile: what a port has taught is bounded for each port, so that nobody
makes the switch forget his neighbours by inventing senders. That somebody takes another's address is not
prevented, as it is not on a bridge of Xen's.

VLANs are those of IEEE 802.1Q, in the terms of Open vSwitch, whose words xl takes as well
(`bridge=NAME.10:20:30`). A port has one VLAN for frames without a tag, and carries others with their tag;
a port of which nothing is said carries all, and its untagged frames are VLAN 0.
"""

from collections.abc import Callable, Mapping
from typing import Annotated, Any, ClassVar, Final

from pyhv.frozen import frozen
from pyhv.net.frame import HEADER, Frame
from pyhv.net.mac import BROADCAST, is_group
from pyhv.state import Nanoseconds, Plain, entries, refusal, say, typed

MAX_LEARNED: Final = 1024
"""Addresses that are remembered behind one port, at most."""
MAX_GROUPS: Final = 64
"""Groups that a port may name, as in Linux' back end (XEN_NETBK_MCAST_MAX)."""
AGE_NS: Final = 300 * 10**9
"""After that time without a frame from it, an address is forgotten; IEEE 802.1Q's default."""
MAX_VLAN: Final = 4094
_Vlan = Annotated[int, range(MAX_VLAN + 1)]


@frozen
class Vlans:
    """What a port carries: VLAN `native` without a tag, those of `trunks` (None: all) with theirs."""

    native: _Vlan = 0
    trunks: frozenset[_Vlan] | None = None

    def carries(self, vlan: int) -> bool:
        """Whether frames of a VLAN go through the port."""
        return vlan == self.native or self.trunks is None or vlan in self.trunks


EVERYTHING: Final = Vlans()


class Port:
    """One socket of a switch, and who is plugged in."""

    def __init__(self, name: str, deliver: Callable[[Frame], None], vlans: Vlans = EVERYTHING) -> None:
        self.name = name
        """Nobody else's on this switch."""
        self.deliver = deliver
        self.vlans = vlans
        self.groups: set[bytes] | None = None
        """The groups whose frames it wants; None: all of them. Broadcasts it gets in any case."""
        self.crowded: Callable[[], bool] = lambda: False
        """Whether what is delivered has to wait already."""
        self.taps: list[Callable[[Frame], None]] = []
        """Who sees each frame that goes in or out here."""
        self.switch: Switch | None = None

    def send(self, frame: Frame) -> None:
        """A frame from whoever is plugged in. Without a switch it goes nowhere."""
        if self.switch is not None:
            self.switch.forward(self, frame)

    def wants(self, destination: bytes) -> bool:
        """Whether a frame for a group is to go out here."""
        return self.groups is None or destination in self.groups or destination == BROADCAST

    def put_out(self, frame: Frame) -> None:
        """Give a frame to whoever is plugged in."""
        for tap in self.taps:
            tap(frame)
        self.deliver(frame)


@frozen
class _Learned:
    """Where an address of a VLAN was last heard of, and when."""

    vlan: _Vlan
    address: Annotated[bytes, 6]
    port: str
    seen: Nanoseconds


_Key = tuple[int, bytes]
_Groups: Any = list[tuple[str, set[Annotated[bytes, 6]] | None]]


class Switch:
    """One switch. Frames that go through it are shown to `taps` once each."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "name": "its owner's",
        "taps": "whoever looks on",
        "_now": "given: the machine's time",
        "_where": "said in the order in which it was learned",
        "_behind": "the same, by port",
    }

    def __init__(self, name: str, now: Callable[[], int]) -> None:
        """`now` tells the time in ns; it never goes back, but when state is restored."""
        self.name = name
        self.taps: list[Callable[[Frame], None]] = []
        self._now = now
        self._ports: dict[str, Port] = {}
        self._where: dict[_Key, tuple[Port, int]] = {}
        self._behind: dict[str, dict[_Key, None]] = {}
        """By port, those heard of longest ago first."""

    @property
    def ports(self) -> list[Port]:
        """Who is plugged in, in the order in which they came."""
        return list(self._ports.values())

    def attach(self, port: Port) -> None:
        """Plug a port in. ValueError: it is plugged in somewhere, or another one has its name."""
        if port.switch is not None or port.name in self._ports:
            raise ValueError(f"port {port.name} is plugged in already")
        self._ports[port.name] = port
        self._behind[port.name] = {}
        port.switch = self

    def detach(self, port: Port) -> None:
        """Unplug a port that is plugged in, and forget what is behind it."""
        assert port.switch is self
        del self._ports[port.name]
        for key in self._behind.pop(port.name):
            del self._where[key]
        port.switch = None

    def forward(self, sender: Port, frame: Frame) -> None:
        """A frame has come in at a port."""
        if len(frame.data) < HEADER:
            return
        for tap in sender.taps:
            tap(frame)
        for tap in self.taps:
            tap(frame)
        tag, vlans = frame.vlan, sender.vlans
        vlan = tag or vlans.native
        if tag and (tag > MAX_VLAN or tag == vlans.native or not vlans.carries(tag)):
            return  # an access port takes no tags, and its own VLAN's are not told by one
        now = self._now()
        if not is_group(frame.source):
            self._learn((vlan, frame.source), sender, now)
        sent = _Forms(vlan, frame, tagged=bool(tag))
        destination = frame.destination
        known = None if is_group(destination) else self._find((vlan, destination), now)
        if known is not None:
            if known is not sender and known.vlans.carries(vlan):
                known.put_out(sent.for_port(known))
            return
        group = is_group(destination)
        for port in self.ports:
            if port is not sender and port.vlans.carries(vlan) and (not group or port.wants(destination)):
                port.put_out(sent.for_port(port))

    def _learn(self, key: _Key, port: Port, now: int) -> None:
        known = self._where.get(key)
        if known is not None:
            del self._behind[known[0].name][key]
        behind = self._behind[port.name]
        if len(behind) >= MAX_LEARNED:
            oldest = next(iter(behind))
            del behind[oldest], self._where[oldest]
        behind[key] = None
        self._where[key] = port, now

    def _find(self, key: _Key, now: int) -> Port | None:
        known = self._where.get(key)
        return None if known is None or now - known[1] > AGE_NS else known[0]

    def state(self) -> dict[str, Plain]:
        """The ports' names in order, their groups, and what was learned."""
        learned = [
            _Learned(*key, port.name, self._where[key][1])
            for port in self._ports.values()
            for key in self._behind[port.name]
        ]
        groups = [(port.name, port.groups) for port in self.ports]
        return {"ports": say(_Groups, groups), "learned": say(list[_Learned], learned)}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Be what was saved; the ports are plugged in already. StateError."""
        found = entries(dict(saved), "", {"ports": None, "learned": None})
        ports: list[tuple[str, set[bytes] | None]] = typed(_Groups, found["ports"], "ports")
        if {name for name, _ in ports} != set(self._ports) or len(ports) != len(self._ports):
            raise refusal("ports", f"of switch {self.name} are not those that are plugged in")
        self._ports = {name: self._ports[name] for name, _ in ports}
        for name, groups in ports:
            if groups is not None and len(groups) > MAX_GROUPS:
                raise refusal("ports", f"has more than {MAX_GROUPS} groups of {name}")
            self._ports[name].groups = groups
        self._where, self._behind = {}, {name: {} for name in self._ports}
        for entry in typed(list[_Learned], found["learned"], "learned"):
            self._restore(entry)

    def _restore(self, entry: _Learned) -> None:
        key, port = (entry.vlan, entry.address), self._ports.get(entry.port)
        if port is None or key in self._where:
            raise refusal("learned", f"has an address behind {entry.port!r} that cannot be")
        behind = self._behind[entry.port]
        if len(behind) >= MAX_LEARNED:
            raise refusal("learned", f"has more than {MAX_LEARNED} addresses behind {entry.port!r}")
        behind[key] = None
        self._where[key] = port, entry.seen


class _Forms:
    """A frame of a VLAN as it came in, with or without a tag, and as each port wants it."""

    def __init__(self, vlan: int, frame: Frame, *, tagged: bool) -> None:
        self._vlan = vlan
        self._forms: dict[bool, Frame] = {tagged: frame}
        self._came = tagged

    def for_port(self, port: Port) -> Frame:
        """The frame with a tag, or without, as its VLAN goes out at that port."""
        tagged = port.vlans.native != self._vlan
        found = self._forms.get(tagged)
        if found is None:
            one = self._forms[self._came]
            found = self._forms[tagged] = one.untagged() if self._came else one.tagged(self._vlan)
        return found
