# SPDX-License-Identifier: GPL-2.0-only
"""The saved state of event channels: two domains that were rebuilt go on as those that were saved."""

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.numbers import Virq
from pyhv.address import Mfn
from pyhv.errors import StateError, XenError
from pyhv.events.channels import EventChannels
from pyhv.events.delivery import TwoLevel, Unshared
from pyhv.events.vcpu_info import VcpuInfo
from pyhv.state import restore
from pyhv.testing.saving import assert_restored, packed, unexplained_from
from pyhv.testing.shared_pages import BytesPage

VCPUS = 2
DOMIDS = (1, 2)
FRAMES = 12
"""Of each domain: 0 is its shared_info."""


class Page(BytesPage):
    """A frame among others."""

    def __init__(self, mfn: int, memory: "dict[int, Page]") -> None:
        super().__init__(mfn)
        self.memory = memory

    def elsewhere(self, mfn: Mfn) -> "Page | None":
        return self.memory.get(mfn)


class Domain:
    def __init__(self, world: "World", domid: int, width: int) -> None:
        self.world, self.domid = world, domid
        self.first = domid * 100
        self.log: list[tuple[str, int]] = []
        shared = world.memory[self.first]
        self.infos = [VcpuInfo(shared, vcpu, width) for vcpu in range(VCPUS)]
        self.channels = EventChannels(
            domid,
            VCPUS,
            lookup=lambda domid: world.domains[domid].channels if domid in world.domains else None,
            pending=TwoLevel(shared, self.infos, width),
            wake=lambda vcpu: self.log.append(("wake", vcpu)),
            port_became_pending=lambda port: self.log.append(("pending", port)),
            max_port=3000,
            width=width,
            drop_page=lambda page: self.log.append(("drop", page.mfn)),
            find_page=world.memory.get,
        )

    def page(self, number: int) -> Page:
        return self.world.memory[self.first + 1 + number % (FRAMES - 1)]

    def perform(self, what: str, port: int, vcpu: int, number: int) -> object:
        channels = self.channels
        calls: dict[str, Any] = {
            "offer": lambda: channels.alloc_unbound(DOMID_SELF, DOMIDS[number % 2]),
            "bind": lambda: channels.bind_interdomain(DOMIDS[number % 2], port),
            "virq": lambda: channels.bind_virq((Virq.TIMER, Virq.DEBUG, Virq.ARGO)[number % 3], vcpu),
            "ipi": lambda: channels.bind_ipi(vcpu),
            "close": lambda: channels.close(port),
            "reset": lambda: channels.reset(DOMID_SELF) if number == 0 else None,
            "send": lambda: channels.send(port),
            "raise": lambda: channels.raise_virq((Virq.TIMER, Virq.DEBUG, Virq.ARGO)[number % 3], vcpu),
            "unmask": lambda: channels.unmask(port),
            "move": lambda: channels.bind_vcpu(port, vcpu),
            "priority": lambda: channels.set_priority(port, number % 20),
            "control": lambda: self.control(vcpu, number),
            "expand": lambda: self.expand(number),
            "status": lambda: (channels.status(DOMID_SELF, port), channels.is_pending(port)),
            "place": lambda: self.infos[vcpu].move(self.page(number), 64 * (number % 64)),
            "consume": lambda: self.consume(number),
        }
        self.log.clear()
        try:
            answer = calls[what]()
        except XenError as error:
            answer = str(error)
        return answer, list(self.log), list(self.world.domains[3 - self.domid].log)

    def control(self, vcpu: int, number: int) -> None:
        self.channels.check_control(vcpu, 0)
        self.channels.init_control(vcpu, self.page(number), 0)

    def expand(self, number: int) -> None:
        self.channels.check_expansion()
        self.channels.expand_array(self.page(number))

    def consume(self, number: int) -> None:
        """A guest that clears, with a sweep, whatever somebody has told it in one of its pages."""
        page = self.page(number)
        page.write(0, bytes(len(page.bytes)))
        self.world.memory[self.first].write(0, bytes(64 * VCPUS))


class World:
    def __init__(self, width: int) -> None:
        self.width = width
        self.memory: dict[int, Page] = {}
        for mfn in (domid * 100 + number for domid in DOMIDS for number in range(FRAMES)):
            self.memory[mfn] = Page(mfn, self.memory)
        self.domains: dict[int, Domain] = {}
        for domid in DOMIDS:
            self.domains[domid] = Domain(self, domid, width)

    def saved(self) -> list[Any]:
        return [packed(thing) for each in self.domains.values() for thing in (each.channels, *each.infos)]

    def rebuild(self) -> "World":
        other = World(self.width)
        for mfn, page in self.memory.items():
            other.memory[mfn].bytes[:] = page.bytes
        for domid in DOMIDS[::-1]:
            mine, its = self.domains[domid], other.domains[domid]
            for one, two in zip((mine.channels, *mine.infos), (its.channels, *its.infos), strict=True):
                assert_restored(one, two)
            its.log[:] = mine.log
        for domain in other.domains.values():
            assert domain.channels.unmatched() == []
        return other


WHAT = [
    *("offer", "bind", "bind", "virq", "ipi", "close", "close", "reset", "send", "send", "send", "raise"),
    *("unmask", "move", "priority", "control", "expand", "status", "place", "consume"),
]
STEPS = st.lists(
    st.tuples(
        st.sampled_from(DOMIDS),
        st.sampled_from(WHAT),
        st.integers(1, 4),
        st.integers(0, VCPUS - 1),
        st.integers(0, 70),
    ),
    max_size=50,
)


@settings(deadline=None)
@given(st.sampled_from([64, 32]), STEPS, STEPS, st.booleans())
def test_rebuilt_channels_go_on_as_the_saved_ones(
    width: int, before: list[Any], after: list[Any], fifo: bool
) -> None:
    world = World(width)
    for domain in world.domains.values():
        for step in (("ipi", 0, 0, 0), ("ipi", 0, 1, 0), ("offer", 0, 0, 0), ("virq", 0, 1, 0)):
            domain.perform(*step)
        for step in (("control", 0, 0, 0), ("control", 0, 1, 1), ("expand", 0, 0, 2)) if fifo else ():
            domain.perform(*step)
    for domid, *step in before:
        world.domains[domid].perform(*step)
    other = world.rebuild()
    assert unexplained_from(world.domains[1].channels, world.domains[1].infos) == []
    for domid, *step in after:
        assert other.domains[domid].perform(*step) == world.domains[domid].perform(*step)
    assert other.saved() == world.saved()
    assert {mfn: page.bytes for mfn, page in other.memory.items()} == {
        mfn: page.bytes for mfn, page in world.memory.items()
    }


def test_channels_are_put_back_in_place_from_fifo_to_two_level() -> None:
    world = World(64)
    one, two = world.domains[1], world.domains[2]
    one.perform("offer", 0, 0, 1)
    then = world.saved()
    two.perform("bind", 1, 0, 0)
    one.perform("control", 0, 0, 0)
    one.perform("place", 0, 1, 5)
    assert one.channels.fifo is not None
    things = [thing for each in world.domains.values() for thing in (each.channels, *each.infos)]
    for thing, saved in zip(things, then, strict=True):
        restore(thing, saved)
    assert world.saved() == then
    assert one.channels.fifo is None
    assert not one.infos[1].moved
    assert two.channels.bind_interdomain(1, 1) == 1


def busy() -> World:
    world = World(64)
    one, two = world.domains[1], world.domains[2]
    for step in (("offer", 0, 0, 1), ("virq", 0, 0, 0), ("control", 0, 0, 0), ("expand", 0, 0, 1)):
        one.perform(*step)
    two.perform("bind", 1, 0, 0)
    return world


def restore_and_check(channels: EventChannels, saved: Any) -> None:
    restore(channels, saved)
    if channels.unmatched():
        raise StateError("ports", f"has peers that do not match: {channels.unmatched()}")


@pytest.mark.parametrize(
    ("path", "value", "told"),
    [
        (("unused",), 1, "unused is 1"),
        (("unused",), 1 << 20, "unused is 1048576"),
        (("ports", 0, 0), 0, "unused is 3"),
        (("ports", 0, 1, "vcpu"), 2, "ports.1 is for a vCPU"),
        (("ports", 0, 1, "state"), 0, "ports.1 is FREE"),
        (("ports", 0, 1, "state"), 9, "ports.0.1.state is no PortState"),
        (("ports", 0, 1, "remote_dom"), 7, "ports.1 is connected to domain 7"),
        (("ports", 0, 1, "peer_port"), 2, "do not match: [1]"),
        (("ports", 1, 1, "virq"), 200, "ports.2 is for a vCPU or a VIRQ"),
        (("ports", 1, 1, "state"), 2, "do not match: [2]"),
        (("fifo", "array"), [999], "fifo.array has frame 999"),
        (("fifo", "array"), [101] * 129, "fifo.array or blocks"),
        (("fifo", "blocks"), [], "fifo.array or blocks"),
        (("fifo", "blocks"), [[101, 4090], None], "fifo.blocks has one at offset 4090"),
        (("fifo", "blocks"), [[999, 0], None], "fifo.blocks has frame 999"),
        (("fifo", "tails", 0), 1024, "fifo.tails has ports that are not in the array"),
        (("fifo", "tails"), [], "fifo.tails has ports"),
        (("fifo", "queue_of"), [[1, 32]], "fifo.queue_of has a queue"),
        (("fifo", "priorities"), [[1, 16]], "fifo.priorities has one"),
        (("fifo", "early"), [1 << 17], "fifo.early priorities or queue_of"),
    ],
)
def test_what_no_channels_can_have_been_is_refused(path: tuple[Any, ...], value: Any, told: str) -> None:
    saved: Any = packed(busy().domains[1].channels)
    at = saved
    for key in path[:-1]:
        at = at[key]
    if path == ("ports", 1, 1, "state"):
        at.update(remote_dom=2, peer_port=1)
    at[path[-1]] = value
    with pytest.raises(StateError) as refused:
        restore_and_check(busy().domains[1].channels, saved)
    assert told in str(refused.value)


def test_one_virq_cannot_have_two_ports() -> None:
    saved: Any = packed(busy().domains[1].channels)
    saved["ports"].append([3, dict(saved["ports"][1][1])])
    saved["unused"] = 4
    with pytest.raises(StateError, match=r"ports\.3 is bound to VIRQ 0, as another one is"):
        restore(busy().domains[1].channels, saved)


@pytest.mark.parametrize("place", [[100, 4040], [100, 4], [999, 0], [100, 70000]])
def test_what_no_vcpu_info_can_have_been_is_refused(place: Any) -> None:
    with pytest.raises(StateError, match="moved"):
        restore(World(64).domains[1].infos[0], {"moved": place})


def test_events_that_nobody_takes_are_remembered() -> None:
    bits, other = Unshared(), Unshared()
    bits.set_pending(7, 0)
    bits.set_pending(3, 0)
    assert_restored(bits, other)
    assert other.is_pending(7)
    assert unexplained_from(bits) == []


def test_a_port_that_was_closed_is_free_again() -> None:
    world = World(64)
    one = world.domains[1].channels
    assert [one.bind_ipi(0) for _ in range(3)] == [1, 2, 3]
    one.close(2)
    other = world.rebuild().domains[1].channels
    assert [other.bind_ipi(0) for _ in range(2)] == [one.bind_ipi(0) for _ in range(2)] == [2, 4]


def test_what_is_known_of_a_queue_survives() -> None:
    world = busy()
    one = world.domains[1]
    for step in (
        ("ipi", 0, 0, 0),
        ("ipi", 0, 0, 0),
        ("priority", 3, 0, 5),
        ("send", 3, 0, 0),
        ("send", 4, 0, 0),
    ):
        one.perform(*step)
    saved: Any = packed(one.channels)
    assert saved["fifo"]["queue_of"]
    assert saved["fifo"]["priorities"] == [[3, 5]]
    assert any(saved["fifo"]["tails"])
    world.rebuild()
