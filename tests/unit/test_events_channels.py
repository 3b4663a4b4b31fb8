# SPDX-License-Identifier: GPL-2.0-only
"""Event channels: every operation's effect, and every refusal in its order."""

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import PortState, Virq
from pyhv.errors import XenError
from pyhv.events.channels import DeviceName, EventChannels
from pyhv.events.delivery import Effect, Unshared


class Bits(Unshared):
    """Pending bits that always ask for an upcall when an unmasked event is new."""

    def __init__(self) -> None:
        super().__init__()
        self.masked: set[int] = set()

    def set_pending(self, port: int, vcpu: int) -> Effect:
        effect = super().set_pending(port, vcpu)
        if effect and port not in self.masked:
            effect |= Effect.UPCALL
        return effect

    def unmask(self, port: int, vcpu: int) -> Effect:
        if port in self.masked:
            self.masked.remove(port)
            if self.is_pending(port):
                return Effect.UPCALL
        return Effect.NOTHING


class World:
    """Some domains and what happened to them."""

    def __init__(self) -> None:
        self.domains: dict[int, EventChannels] = {}
        self.bits: dict[int, Bits] = {}
        self.log: list[tuple[int, str, int]] = []
        self.heard: list[DeviceName] = []

    def domain(self, domid: int, vcpus: int = 2, max_port: int = 1023, width: int = 64) -> EventChannels:
        self.bits[domid] = Bits()
        self.domains[domid] = EventChannels(
            domid,
            vcpus,
            lookup=self.domains.get,
            pending=self.bits[domid],
            wake=lambda vcpu: self.log.append((domid, "wake", vcpu)),
            port_became_pending=lambda port: self.log.append((domid, "pending", port)),
            max_port=max_port,
            width=width,
            privileged=domid == 0,
            device_event=self.heard.append,
        )
        return self.domains[domid]


@pytest.fixture
def world() -> World:
    world = World()
    for domid in range(3):
        world.domain(domid)
    return world


def errno_of(action: Callable[[], object]) -> Errno:
    with pytest.raises(XenError) as refusal:
        action()
    return Errno(refusal.value.errno)


def test_alloc_unbound(world: World) -> None:
    d1 = world.domains[1]
    assert d1.alloc_unbound(DOMID_SELF, 2) == 1
    assert d1.alloc_unbound(1, DOMID_SELF) == 2
    status = d1.status(DOMID_SELF, 1)
    assert (status.state, status.vcpu, status.remote_dom) == (PortState.UNBOUND, 0, 2)
    assert d1.status(1, 2).remote_dom == 1, "a guest learns its domid this way"
    assert errno_of(lambda: d1.alloc_unbound(77, 1)) == Errno.ESRCH
    assert errno_of(lambda: d1.alloc_unbound(2, 1)) == Errno.EPERM
    assert world.domains[0].alloc_unbound(2, 1) == 1, "the privileged domain may act for others"
    assert world.domains[2].status(DOMID_SELF, 1).remote_dom == 1


def test_ports_are_dealt_lowest_first(world: World) -> None:
    d1 = world.domains[1]
    assert [d1.bind_ipi(0) for _ in range(5)] == [1, 2, 3, 4, 5]
    d1.close(4)
    d1.close(2)
    assert [d1.bind_ipi(0) for _ in range(3)] == [2, 4, 6]


@pytest.mark.promise("L-1")
@pytest.mark.parametrize(("width", "max_port", "highest"), [(64, 3, 3), (32, 4096, 1023), (64, 99999, 4095)])
def test_the_number_of_ports(world: World, width: int, max_port: int, highest: int) -> None:
    domain = world.domain(9, max_port=max_port, width=width)
    for _ in range(highest):
        domain.bind_ipi(0)
    offered = world.domains[1].alloc_unbound(DOMID_SELF, 9)
    assert errno_of(lambda: domain.bind_ipi(0)) == Errno.ENOSPC
    assert errno_of(lambda: domain.alloc_unbound(DOMID_SELF, 0)) == Errno.ENOSPC
    assert errno_of(lambda: domain.bind_virq(Virq.TIMER, 0)) == Errno.ENOSPC
    assert errno_of(lambda: domain.bind_interdomain(1, offered)) == Errno.ENOSPC
    assert errno_of(lambda: domain.bind_interdomain(1, 5000)) == Errno.ENOSPC, "space comes first"
    assert errno_of(lambda: domain.bind_interdomain(77, 1)) == Errno.ESRCH, "the domain comes before it"
    assert errno_of(lambda: domain.status(DOMID_SELF, highest + 1)) == Errno.EINVAL
    domain.close(highest)
    assert domain.bind_interdomain(1, offered) == highest


@pytest.mark.promise("I-6")
def test_bind_interdomain(world: World) -> None:
    d1, d2 = world.domains[1], world.domains[2]
    offered = d1.alloc_unbound(DOMID_SELF, 2)
    assert errno_of(lambda: world.domains[0].bind_interdomain(1, offered)) == Errno.EINVAL, "not for it"
    d2.bind_ipi(0)
    port = d2.bind_interdomain(1, offered)
    assert port == 2
    assert world.log == [(2, "wake", 0), (2, "pending", 2)], "the local port is pending at once"
    assert not d1.is_pending(offered)
    mine, theirs = d2.status(2, port), d1.status(1, offered)
    assert (mine.state, mine.remote_dom, mine.remote_port) == (PortState.INTERDOMAIN, 1, offered)
    assert (theirs.state, theirs.remote_dom, theirs.remote_port) == (PortState.INTERDOMAIN, 2, port)
    assert errno_of(lambda: d2.bind_interdomain(1, offered)) == Errno.EINVAL, "taken"
    for bad in (0, 50, 1 << 31):
        assert errno_of(partial(d2.bind_interdomain, 1, bad)) == Errno.EINVAL


def test_send_between_domains(world: World) -> None:
    d1, d2 = world.domains[1], world.domains[2]
    offered = d1.alloc_unbound(DOMID_SELF, 2)
    port = d2.bind_interdomain(1, offered)
    d1.bind_vcpu(offered, 1)
    world.log.clear()
    d2.send(port)
    d2.send(port)
    assert world.log == [(1, "wake", 1), (1, "pending", offered)], "once, while it stays pending"
    d1.close(offered)
    assert not world.bits[1].is_pending(offered), "closing forgets the event"
    assert errno_of(lambda: d1.is_pending(offered)) == Errno.EINVAL, "nobody polls a free port"


def test_a_domain_may_connect_to_itself(world: World) -> None:
    d1 = world.domains[1]
    a = d1.alloc_unbound(DOMID_SELF, DOMID_SELF)
    b = d1.bind_interdomain(DOMID_SELF, a)
    world.log.clear()
    d1.send(b)
    assert world.log == [(1, "wake", 0), (1, "pending", a)]
    d1.close(a)
    assert d1.status(1, b).state == PortState.UNBOUND
    assert d1.status(1, b).remote_dom == 1


@pytest.mark.promise("I-6")
def test_send_refusals(world: World) -> None:
    d1 = world.domains[1]
    d1.send(d1.alloc_unbound(DOMID_SELF, 2))
    assert world.log == []
    timer = d1.bind_virq(Virq.TIMER, 0)
    for port in (0, timer, 9, 1024, 1 << 31):
        assert errno_of(partial(d1.send, port)) == Errno.EINVAL
    ipi = d1.bind_ipi(1)
    d1.send(ipi)
    assert world.log == [(1, "wake", 1), (1, "pending", ipi)]


def test_bind_virq(world: World) -> None:
    d1 = world.domains[1]
    port = d1.bind_virq(Virq.TIMER, 1)
    status = d1.status(1, port)
    assert (status.state, status.virq, status.vcpu) == (PortState.VIRQ, Virq.TIMER, 1)
    assert errno_of(lambda: d1.bind_virq(24, 0)) == Errno.EINVAL
    assert errno_of(lambda: d1.bind_virq(24, 9)) == Errno.EINVAL
    assert errno_of(lambda: d1.bind_virq(Virq.CONSOLE, 1)) == Errno.EINVAL
    assert errno_of(lambda: d1.bind_virq(Virq.ARGO, 9)) == Errno.EINVAL
    assert errno_of(lambda: d1.bind_virq(Virq.DEBUG, 2)) == Errno.ENOENT
    assert errno_of(lambda: d1.bind_virq(Virq.CONSOLE, 0)) == Errno.EBUSY
    assert errno_of(lambda: d1.bind_virq(Virq.TIMER, 1)) == Errno.EEXIST
    d1.bind_virq(Virq.TIMER, 0)
    d1.bind_virq(Virq.ARGO, 0)
    world.domains[0].bind_virq(Virq.CONSOLE, 0)
    d1.close(port)
    assert d1.bind_virq(Virq.TIMER, 1) == port


def test_raise_virq(world: World) -> None:
    d1 = world.domains[1]
    assert not d1.raise_virq(Virq.TIMER, 1), "dropped while unbound"
    port = d1.bind_virq(Virq.TIMER, 1)
    argo = d1.bind_virq(Virq.ARGO, 0)
    assert not d1.raise_virq(Virq.TIMER, 0)
    assert d1.raise_virq(Virq.TIMER, 1)
    assert world.log == [(1, "wake", 1), (1, "pending", port)]
    world.log.clear()
    d1.bind_vcpu(argo, 1)
    assert d1.raise_virq(Virq.ARGO, 1)
    assert world.log == [(1, "wake", 1), (1, "pending", argo)]
    d1.close(argo)
    assert not d1.raise_virq(Virq.ARGO)


def test_bind_vcpu(world: World) -> None:
    d1 = world.domains[1]
    port = d1.alloc_unbound(DOMID_SELF, 0)
    assert errno_of(lambda: d1.bind_vcpu(99999, 2)) == Errno.ENOENT
    assert errno_of(lambda: d1.bind_vcpu(99999, 1)) == Errno.EINVAL
    assert errno_of(lambda: d1.bind_vcpu(d1.bind_ipi(0), 1)) == Errno.EINVAL
    assert errno_of(lambda: d1.bind_vcpu(d1.bind_virq(Virq.TIMER, 0), 1)) == Errno.EINVAL
    d1.bind_vcpu(port, 1)
    assert d1.status(1, port).vcpu == 1
    d1.close(port)
    assert d1.status(1, port).vcpu == 0


def test_other_refusals(world: World) -> None:
    d1 = world.domains[1]
    assert errno_of(lambda: d1.bind_ipi(2)) == Errno.ENOENT
    assert errno_of(lambda: d1.bind_pirq(1)) == Errno.EPERM
    assert errno_of(lambda: d1.bind_pirq(1 << 31)) == Errno.EINVAL
    assert errno_of(lambda: d1.close(0)) == Errno.EINVAL
    assert errno_of(lambda: d1.close(1)) == Errno.EINVAL
    assert errno_of(lambda: d1.unmask(0)) == Errno.EINVAL
    assert errno_of(lambda: d1.unmask(1024)) == Errno.EINVAL
    assert errno_of(lambda: d1.is_pending(1024)) == Errno.EINVAL
    assert errno_of(lambda: d1.status(DOMID_SELF, 0)) == Errno.EINVAL
    assert errno_of(lambda: d1.status(2, 1)) == Errno.EPERM
    assert errno_of(lambda: d1.status(77, 1)) == Errno.ESRCH
    assert errno_of(lambda: d1.reset(2)) == Errno.EPERM
    assert errno_of(lambda: d1.reset(77)) == Errno.ESRCH
    assert d1.status(DOMID_SELF, 1).state == PortState.FREE


def test_unmask_delivers_to_the_ports_vcpu(world: World) -> None:
    d1 = world.domains[1]
    port = d1.bind_ipi(1)
    world.bits[1].masked.add(port)
    d1.send(port)
    assert world.log == [(1, "pending", port)], "pollers see masked events too"
    d1.unmask(port)
    assert world.log[1:] == [(1, "wake", 1)]
    d1.unmask(port)
    d1.unmask(77)
    assert len(world.log) == 2


def test_a_back_end_hears_by_its_name(world: World) -> None:
    dom0, d1 = world.domains[0], world.domains[1]
    front = d1.alloc_unbound(DOMID_SELF, 0)
    name = DeviceName("toy", 1)
    back = dom0.bind_device(name, front)
    assert world.heard == []
    d1.send(front)
    d1.send(front)
    assert world.heard == [name, name]
    assert world.log == []
    dom0.send(back)
    assert world.log == [(1, "wake", 0), (1, "pending", front)]
    d1.close(front)
    assert dom0.status(0, back).state == PortState.UNBOUND
    dom0.send(back)
    again = d1.bind_interdomain(0, back)
    d1.send(again)
    assert world.heard == [name] * 3
    assert errno_of(lambda: dom0.bind_device(name, again)) == Errno.EINVAL


def test_reset_and_destroy(world: World) -> None:
    d1, d2 = world.domains[1], world.domains[2]
    port = d2.bind_interdomain(1, d1.alloc_unbound(DOMID_SELF, 2))
    d1.bind_virq(Virq.TIMER, 0)
    d1.reset(DOMID_SELF)
    assert d1.ports() == {}
    status = d2.status(2, port)
    assert (status.state, status.remote_dom, status.remote_port) == (PortState.UNBOUND, 1, 0)
    assert d1.bind_interdomain(2, port) == 1
    d1.destroy()
    assert d1.ports() == {}
    assert d2.status(2, port).state == PortState.UNBOUND
    assert errno_of(lambda: d1.bind_ipi(0)) == Errno.EINVAL


OPERATION = st.tuples(
    st.sampled_from(["alloc", "bind", "virq", "ipi", "close", "send", "vcpu", "unmask", "reset", "status"]),
    st.integers(1, 2),
    st.sampled_from([0, 1, 2, 3, DOMID_SELF]),
    st.integers(0, 12) | st.integers(0, (1 << 32) - 1),
)


@pytest.mark.promise("I-6")
@given(st.lists(OPERATION, max_size=60))
@settings(deadline=None)
def test_any_sequence_keeps_peers_matched(steps: list[tuple[str, int, int, int]]) -> None:
    world = World()
    for domid in range(3):
        world.domain(domid, max_port=8)
    for what, domid, dom, number in steps:
        domain = world.domains[domid]
        actions: dict[str, Callable[[], object]] = {
            "alloc": partial(domain.alloc_unbound, DOMID_SELF, dom),
            "bind": partial(domain.bind_interdomain, dom, number),
            "virq": partial(domain.bind_virq, number, dom),
            "ipi": partial(domain.bind_ipi, number),
            "close": partial(domain.close, number),
            "send": partial(domain.send, number),
            "vcpu": partial(domain.bind_vcpu, number, dom),
            "unmask": partial(domain.unmask, number),
            "reset": partial(domain.reset, dom),
            "status": partial(domain.status, dom, number),
        }
        before = {i: d.ports() for i, d in world.domains.items()}
        try:
            actions[what]()
        except XenError:
            assert before == {i: d.ports() for i, d in world.domains.items()}, "a refusal changes nothing"
        for i, d in world.domains.items():
            for port, status in d.ports().items():
                assert 1 <= port <= 8
                assert 0 <= status.vcpu < 2
                if status.state == PortState.INTERDOMAIN:
                    peer = world.domains[status.remote_dom].status(DOMID_SELF, status.remote_port)
                    assert (peer.state, peer.remote_dom, peer.remote_port) == (PortState.INTERDOMAIN, i, port)
