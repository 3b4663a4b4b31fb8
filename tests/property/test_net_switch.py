# SPDX-License-Identifier: GPL-2.0-only
"""The switch against a model that remembers all frames and asks them where an address was last."""

import pytest
from frames import ethernet, tag
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from pyhv.errors import StateError
from pyhv.net.frame import Frame
from pyhv.net.mac import BROADCAST
from pyhv.net.switch import AGE_NS, EVERYTHING, MAX_LEARNED, Port, Switch, Vlans

ADDRESSES = [bytes([0, 0x16, 0x3E, 0, 0, number]) for number in range(1, 6)]
GROUPS = [b"\x01\x00\x5e\x00\x00\x01", b"\x33\x33\x00\x00\x00\x01"]
ACCESS, TRUNK, HYBRID = Vlans(10, frozenset()), Vlans(0, frozenset({10, 20})), Vlans(20, frozenset({10}))
MEMBERSHIPS = [EVERYTHING, EVERYTHING, ACCESS, TRUNK, HYBRID]
PORTS = len(MEMBERSHIPS)


class Modelled(RuleBasedStateMachine):
    """Ports of all kinds send what they like; ports go and come."""

    @initialize()
    def plug_in(self) -> None:
        self.now = 0
        self.received: list[tuple[str, Frame]] = []
        self.switch = Switch("lan", lambda: self.now)
        self.ports = [self.made(number) for number in range(PORTS)]
        for port in self.ports:
            self.switch.attach(port)
        self.order = list(self.ports)
        self.sent: list[tuple[int, bytes, Port, int]] = []
        """(VLAN, sender, port, when)"""

    def made(self, number: int) -> Port:
        name = f"port{number}"
        return Port(name, lambda frame: self.received.append((name, frame)), MEMBERSHIPS[number])

    def inside(self, port: Port, tagged: int) -> int | None:
        """The VLAN that a frame is in, or None."""
        if tagged == 0:
            return port.vlans.native
        allowed = port.vlans.trunks is None or tagged in port.vlans.trunks
        return tagged if allowed and tagged != port.vlans.native else None

    def outside(self, port: Port, vlan: int) -> int | None:
        """The tag with which a VLAN's frames go out, or None: they do not."""
        if vlan == port.vlans.native:
            return 0
        return vlan if port.vlans.trunks is None or vlan in port.vlans.trunks else None

    @rule(
        number=st.integers(0, PORTS - 1),
        source=st.sampled_from(ADDRESSES + GROUPS[:1]),
        to=st.sampled_from([*ADDRESSES, *GROUPS, BROADCAST]),
        tagged=st.sampled_from((0, 0, 10, 20, 30)),
    )
    def send(self, number: int, source: bytes, to: bytes, tagged: int) -> None:
        sender = self.ports[number]

        def frame(vlan: int) -> Frame:
            return Frame(ethernet(b"payload", 0x0800, tag(vlan) if vlan else b"", to, source))

        self.received.clear()
        sender.send(frame(tagged))
        vlan = self.inside(sender, tagged) if sender in self.order else None
        if vlan is None:
            assert self.received == []
            return
        if not source[0] & 1:
            self.sent.append((vlan, source, sender, self.now))
        last = [(port, when) for at, address, port, when in self.sent if (at, address) == (vlan, to)]
        known = last[-1][0] if last and self.now - last[-1][1] <= AGE_NS else None
        wanted = self.order if known is None else [known]
        expected = []
        for port in wanted:
            went = self.outside(port, vlan)
            if port is sender or went is None:
                continue
            if to[0] & 1 and to != BROADCAST and port.groups is not None and to not in port.groups:
                continue
            expected.append((port.name, frame(went)))
        assert self.received == expected

    @rule(seconds=st.sampled_from((1, 100, 299, 301)))
    def wait(self, seconds: int) -> None:
        self.now += seconds * 10**9

    @rule(number=st.integers(0, PORTS - 1), groups=st.one_of(st.none(), st.sets(st.sampled_from(GROUPS))))
    def want(self, number: int, groups: set[bytes] | None) -> None:
        self.ports[number].groups = groups

    @precondition(lambda self: len(self.order) > 2)
    @rule(number=st.integers(0, PORTS - 1))
    def unplug(self, number: int) -> None:
        port = self.ports[number]
        if port in self.order:
            self.switch.detach(port)
            self.order.remove(port)
            last = {(vlan, address): there for vlan, address, there, _ in self.sent}
            self.sent = [entry for entry in self.sent if last[entry[:2]] is not port]

    @rule(number=st.integers(0, PORTS - 1))
    def plug(self, number: int) -> None:
        port = self.ports[number]
        if port not in self.order:
            self.switch.attach(port)
            self.order.append(port)

    @rule()
    def save_and_restore(self) -> None:
        """Into a new switch whose ports came in another order."""
        saved = self.switch.state()
        switch = Switch("lan", lambda: self.now)
        groups = {port.name: port.groups for port in self.order}
        for port in reversed(self.order):
            self.switch.detach(port)
            port.groups = set()
            switch.attach(port)
        switch.restore(saved)
        assert switch.state() == saved
        assert {port.name: port.groups for port in self.order} == groups
        self.switch = switch

    @invariant()
    def in_order(self) -> None:
        if hasattr(self, "switch"):
            assert self.switch.ports == self.order


TestModelled = pytest.mark.promise("N-1")(Modelled.TestCase)


def invented(number: int) -> bytes:
    return b"\x02\x00" + number.to_bytes(4, "big")


def lan(count: int = 3) -> tuple[Switch, list[Port], list[tuple[int, bytes]]]:
    received: list[tuple[int, bytes]] = []
    switch = Switch("lan", lambda: 0)

    def port(number: int) -> Port:
        made = Port(f"vif{number}.0", lambda frame: received.append((number, frame.data)))
        switch.attach(made)
        return made

    return switch, [port(number) for number in range(count)], received


@pytest.mark.promise("N-1")
def test_who_invents_senders_makes_nobody_forget_his_neighbours() -> None:
    _, (one, two, liar), received = lan()
    one.send(Frame(ethernet(b"", 0x0800, to=BROADCAST, source=ADDRESSES[0])))
    for number in range(3 * MAX_LEARNED):
        liar.send(Frame(ethernet(b"", 0x0800, to=ADDRESSES[0], source=invented(number))))
    received.clear()
    two.send(Frame(ethernet(b"secret", 0x0800, to=ADDRESSES[0], source=ADDRESSES[1])))
    assert [number for number, _ in received] == [0]


@pytest.mark.promise("N-1")
def test_what_is_remembered_is_bounded() -> None:
    switch, (_, _, liar), _ = lan()
    for number in range(MAX_LEARNED + 10):
        liar.send(Frame(ethernet(b"", 0x0800, source=invented(number))))
    saved = switch.state()
    assert isinstance(saved["learned"], list)
    assert len(saved["learned"]) == MAX_LEARNED
    switch.restore(saved)


def test_a_short_frame_goes_nowhere() -> None:
    _, (one, _, _), received = lan()
    one.send(Frame(bytes(13)))
    one.send(Frame(b""))
    assert received == []


def test_a_name_is_one_ports() -> None:
    switch, (one, _, _), _ = lan()
    with pytest.raises(ValueError, match="plugged in"):
        switch.attach(one)
    with pytest.raises(ValueError, match="plugged in"):
        switch.attach(Port(one.name, lambda _frame: None))


def test_taps_see_each_frame_once() -> None:
    switch, (one, two, _), _ = lan()
    seen: list[str] = []
    switch.taps.append(lambda _frame: seen.append("switch"))
    one.taps.append(lambda _frame: seen.append("one"))
    two.taps.append(lambda _frame: seen.append("two"))
    one.send(Frame(ethernet(b"", 0x0800, to=BROADCAST)))
    assert seen == ["one", "switch", "two"]


DAMAGES = {
    "another port": lambda saved: saved["ports"][0].__setitem__(0, "vif9.9"),
    "a port twice": lambda saved: saved["ports"].append(saved["ports"][0]),
    "a group of 5 bytes": lambda saved: saved["ports"][0].__setitem__(1, [b"12345"]),
    "too many groups": lambda saved: saved["ports"][0].__setitem__(1, [invented(n) for n in range(99)]),
    "learned behind nobody": lambda saved: saved["learned"][0].__setitem__("port", "vif9.9"),
    "learned twice": lambda saved: saved["learned"].append(saved["learned"][0]),
    "an address of 7 bytes": lambda saved: saved["learned"][0].__setitem__("address", bytes(7)),
    "a VLAN that there is not": lambda saved: saved["learned"][0].__setitem__("vlan", 4095),
    "too many": lambda saved: saved["learned"].extend(
        {**saved["learned"][0], "address": invented(n)} for n in range(MAX_LEARNED)
    ),
    "no table": lambda saved: saved.pop("learned"),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_state_that_cannot_be_is_refused(damage: str) -> None:
    switch, (one, _, _), _ = lan()
    one.send(Frame(ethernet(b"", 0x0800)))
    saved = switch.state()
    DAMAGES[damage](saved)
    with pytest.raises(StateError):
        switch.restore(saved)


@given(st.integers(0, 4095))
def test_what_was_learned_can_be_restored_whatever_the_tag(vlan: int) -> None:
    switch, (one, _, _), _ = lan()
    one.send(Frame(ethernet(b"", 0x0800, tag(vlan))))
    switch.restore(switch.state())
