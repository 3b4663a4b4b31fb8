# SPDX-License-Identifier: GPL-2.0-only
"""FIFO delivery: the protocol word by word, a guest that consumes as Linux does, and guests that lie."""

from collections.abc import Callable
from functools import partial

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import PortState, Virq
from pyhv.errors import XenError
from pyhv.events.channels import EventChannels
from pyhv.events.delivery import TwoLevel
from pyhv.events.fifo import DEFAULT_PRIORITY
from pyhv.events.vcpu_info import VcpuInfo
from pyhv.testing.shared_pages import BytesPage

PENDING, MASKED, LINKED, BUSY = 1 << 31, 1 << 30, 1 << 29, 1 << 28
LINK = (1 << 17) - 1
VCPUS = 2


class Guest:
    """A domain that uses FIFO delivery, and its side of the protocol."""

    def __init__(self, *, max_port: int = 1023, width: int = 64, fifo: bool = True) -> None:
        self.shared = BytesPage()
        self.log: list[tuple[str, int]] = []
        self.released: list[int] = []
        infos = [VcpuInfo(self.shared, vcpu, width) for vcpu in range(VCPUS)]
        self.channels = EventChannels(
            1,
            VCPUS,
            lookup=lambda _domid: None,
            pending=TwoLevel(self.shared, infos, width),
            wake=lambda vcpu: self.log.append(("wake", vcpu)),
            port_became_pending=lambda port: self.log.append(("pending", port)),
            max_port=max_port,
            width=width,
            drop_page=lambda page: self.released.append(page.mfn),
        )
        self.blocks = [BytesPage(100), BytesPage(101)]
        self.array: list[BytesPage] = []
        if fifo:
            for vcpu in range(VCPUS):
                self.control(vcpu)
            self.expand()

    def control(self, vcpu: int, offset: int = 0) -> None:
        self.channels.check_control(vcpu, offset)
        self.channels.init_control(vcpu, self.blocks[vcpu], offset)

    def expand(self) -> None:
        self.channels.check_expansion()
        page = BytesPage(200 + len(self.array))
        self.array.append(page)
        self.channels.expand_array(page)

    def word(self, port: int) -> int:
        return self.array[port // 1024].read_u32(port % 1024 * 4)

    def set_word(self, port: int, value: int) -> None:
        self.array[port // 1024].write_u32(port % 1024 * 4, value)

    def ready(self, vcpu: int) -> int:
        return self.blocks[vcpu].read_u32(0)

    def head(self, vcpu: int, priority: int = DEFAULT_PRIORITY) -> int:
        return self.blocks[vcpu].read_u32(8 + 4 * priority)

    def ipi(self, vcpu: int = 0) -> int:
        return self.channels.bind_ipi(vcpu)

    def movable(self) -> int:
        """A port that can change its vCPU and be sent to: one half of a loop."""
        offered = self.channels.alloc_unbound(DOMID_SELF, DOMID_SELF)
        self.channels.bind_interdomain(DOMID_SELF, offered)
        return offered

    def mask(self, port: int) -> None:
        self.set_word(port, self.word(port) | MASKED)

    def unmask(self, port: int) -> None:
        """As a guest does: by itself unless the port is busy or pending, else it asks."""
        word = self.word(port)
        if word & BUSY:
            self.channels.unmask(port)
            return
        self.set_word(port, word & ~MASKED)
        if word & PENDING:
            self.channels.unmask(port)

    def take_head(self, vcpu: int, priority: int, heads: dict[tuple[int, int], int]) -> int | None:
        """Take one port off a queue, as Linux does; `heads` remembers where each queue goes on."""
        key = (vcpu, priority)
        port = heads.get(key, 0) or self.head(vcpu, priority)
        if not port:
            return None
        word = self.word(port)
        self.set_word(port, word & ~(LINKED | LINK))
        heads[key] = word & LINK
        if not heads[key]:
            self.blocks[vcpu].write_u32(0, self.ready(vcpu) & ~(1 << priority))
        return port

    def consume(self, vcpu: int) -> list[int]:
        """The upcall: ports whose handlers run, in order."""
        self.shared.write_u8(64 * vcpu, 0)
        handled: list[int] = []
        heads: dict[tuple[int, int], int] = {}
        ready = self.ready(vcpu)
        self.blocks[vcpu].write_u32(0, 0)
        while ready:
            priority = (ready & -ready).bit_length() - 1
            port = self.take_head(vcpu, priority, heads)
            if port is not None:
                word = self.word(port)
                if word & PENDING and not word & MASKED:
                    self.set_word(port, word & ~PENDING)
                    handled.append(port)
            if not heads.get((vcpu, priority)):
                ready &= ~(1 << priority)
            ready |= self.ready(vcpu)
            self.blocks[vcpu].write_u32(0, 0)
        return handled


@pytest.fixture
def guest() -> Guest:
    return Guest()


def errno_of(action: Callable[[], object]) -> Errno:
    with pytest.raises(XenError) as refusal:
        action()
    return Errno(refusal.value.errno)


# -- setting up --------------------------------------------------------------------------------------------


def test_refusals_before_fifo() -> None:
    channels = Guest(fifo=False).channels
    assert errno_of(lambda: channels.check_control(VCPUS, 4025)) == Errno.ENOENT
    for offset in (4025, 4028, 4096, 1 << 31, 4):
        assert errno_of(partial(channels.check_control, 0, offset)) == Errno.EINVAL
    channels.check_control(0, 4024)
    assert channels.fifo is None, "checking is not doing"
    assert errno_of(channels.check_expansion) == Errno.EOPNOTSUPP
    assert errno_of(lambda: channels.set_priority(0, 0)) == Errno.EINVAL
    assert errno_of(lambda: channels.set_priority(1, 16)) == Errno.ENOSYS


@pytest.mark.promise("L-2")
def test_refusals_in_fifo(guest: Guest) -> None:
    channels, port = guest.channels, guest.ipi()
    assert errno_of(lambda: channels.check_control(1, 0)) == Errno.EINVAL, "it has one"
    assert errno_of(lambda: channels.set_priority(0, 0)) == Errno.EINVAL
    assert errno_of(lambda: channels.set_priority(1024, 0)) == Errno.EINVAL
    assert errno_of(lambda: channels.set_priority(port, 16)) == Errno.EINVAL
    assert errno_of(lambda: channels.set_priority(port + 1, 16)) == Errno.EACCES
    channels.set_priority(port, 15)
    for _ in range(127):
        guest.expand()
    assert errno_of(channels.check_expansion) == Errno.ENOSPC


@pytest.mark.promise("L-1")
@pytest.mark.parametrize(("width", "two_level"), [(32, 1023), (64, 4095)])
def test_the_number_of_ports(width: int, two_level: int) -> None:
    guest = Guest(max_port=200_000, width=width, fifo=False)
    assert guest.channels.limit == two_level + 1
    guest.control(0)
    assert guest.channels.limit == 131072
    assert Guest(max_port=1023, width=width).channels.limit == 1024, "the toolstack's limit stays"


def test_what_is_pending_is_carried_over() -> None:
    guest = Guest(fifo=False)
    quiet, early = guest.ipi(0), guest.ipi(1)
    guest.channels.send(early)
    guest.control(1, offset=4024)
    guest.log.clear()
    guest.channels.send(quiet)
    assert guest.log == []
    assert not guest.channels.is_pending(early), "until there is a word to show it"
    guest.shared.bytes[:] = bytes(4096)
    guest.expand()
    assert guest.word(early) == PENDING | LINKED
    assert guest.blocks[1].read_u32(4024) == 1 << DEFAULT_PRIORITY
    assert guest.word(quiet) == PENDING, "vCPU 0 has no control block"
    assert guest.log == [("pending", quiet), ("wake", 1), ("pending", early)]
    assert guest.shared.bytes[64] == 1


def test_ports_beyond_the_array_wait_for_it() -> None:
    guest = Guest(max_port=3000)
    ports = [guest.ipi() for _ in range(2200)]
    for port in (1500, 2100, 1024, 1600):
        guest.channels.send(port)
    guest.channels.close(1600)
    assert not guest.channels.is_pending(1500)
    assert guest.channels.pending.is_masked(1500)
    guest.log.clear()
    guest.expand()
    assert guest.consume(0) == [1024, 1500]
    guest.expand()
    assert guest.consume(0) == [2100]
    assert ports[-1] == 2200


def test_pages_are_released_when_the_domain_resets_and_dies(guest: Guest) -> None:
    guest.expand()
    assert guest.channels.shared_frames() == [200, 201, 100, 101]
    port = guest.ipi()
    guest.channels.send(port)
    assert guest.channels.reset(DOMID_SELF)
    assert guest.released == [200, 201, 100, 101]
    assert guest.channels.shared_frames() == []
    assert errno_of(guest.channels.check_expansion) == Errno.EOPNOTSUPP
    assert guest.ipi() == port
    guest.channels.send(port)
    assert guest.shared.bytes[2048] == 1 << port, "2-level again"
    guest.control(0)
    guest.channels.destroy()
    assert guest.released == [200, 201, 100, 101, 100]


def test_a_reset_gives_way_and_goes_on() -> None:
    guest = Guest()
    for _ in range(200):
        guest.ipi()
    assert not guest.channels.reset(DOMID_SELF, lambda _steps: True)
    assert len(guest.channels.ports()) == 136
    assert guest.channels.fifo is not None
    assert guest.channels.reset(DOMID_SELF, lambda _steps: False)
    assert guest.channels.ports() == {}
    assert guest.channels.fifo is None


# -- the protocol ------------------------------------------------------------------------------------------


def test_an_event_makes_a_queue(guest: Guest) -> None:
    first, second = guest.ipi(1), guest.ipi(1)
    guest.channels.send(first)
    assert guest.log == [("wake", 1), ("pending", first)]
    assert (guest.ready(1), guest.head(1)) == (1 << 7, first)
    assert guest.word(first) == PENDING | LINKED
    assert guest.shared.bytes[64] == 1
    guest.channels.send(first)
    guest.channels.send(second)
    assert guest.log[2:] == [("pending", second)], "the vCPU has its upcall already"
    assert guest.head(1) == first
    assert guest.word(first) == PENDING | LINKED | second
    assert guest.consume(1) == [first, second]
    assert (guest.word(first), guest.word(second)) == (0, 0)


def test_the_tails_link_is_replaced_and_its_lock_dropped(guest: Guest) -> None:
    first, second = guest.ipi(), guest.ipi()
    guest.channels.send(first)
    guest.set_word(first, LINKED | MASKED | BUSY | 0x155)
    guest.channels.send(second)
    assert guest.word(first) == LINKED | MASKED | second


def test_priorities_come_in_order(guest: Guest) -> None:
    ports = [guest.ipi() for _ in range(4)]
    for port, priority in zip(ports, (15, 0, 7, 0), strict=True):
        guest.channels.set_priority(port, priority)
    for port in ports:
        guest.channels.send(port)
    assert guest.ready(0) == 1 << 15 | 1 << 7 | 1
    assert guest.consume(0) == [ports[1], ports[3], ports[2], ports[0]]


def test_a_masked_event_is_linked_by_unmask(guest: Guest) -> None:
    port = guest.ipi()
    guest.mask(port)
    guest.channels.send(port)
    assert guest.word(port) == PENDING | MASKED
    assert guest.log == [("pending", port)], "those who poll see it"
    assert guest.channels.is_pending(port)
    guest.channels.unmask(port)
    assert guest.word(port) == PENDING | LINKED
    assert guest.log[1:] == [("wake", 0)]
    guest.channels.unmask(port)
    assert guest.log[2:] == []


def test_a_port_that_moves_does_not_drag_the_old_queue_along(guest: Guest) -> None:
    """The tail of an emptied queue, linked anew on another one, is no tail of the first any more."""
    mover, stays = guest.movable(), guest.ipi(0)
    guest.consume(0)
    assert guest.channels.status(1, mover).state is PortState.INTERDOMAIN
    peer = guest.channels.status(1, mover).remote_port
    guest.channels.send(peer)
    assert guest.consume(0) == [mover]
    guest.channels.bind_vcpu(mover, 1)
    guest.channels.send(peer)
    guest.channels.send(stays)
    assert guest.word(mover) & LINK == 0, "queue 0 does not go on behind queue 1"
    assert guest.head(0) == stays
    assert guest.consume(0) == [stays]
    assert guest.consume(1) == [mover]


def test_a_linked_port_changes_its_queue_with_the_next_event(guest: Guest) -> None:
    mover = guest.movable()
    guest.consume(0)
    peer = guest.channels.status(1, mover).remote_port
    guest.channels.send(peer)
    guest.channels.bind_vcpu(mover, 1)
    guest.channels.set_priority(mover, 3)
    guest.channels.send(peer)
    assert guest.ready(1) == 0, "still where it was linked"
    assert guest.consume(0) == [mover]
    guest.channels.send(peer)
    assert guest.head(1, 3) == mover
    assert guest.consume(1) == [mover]


def test_a_closed_port_is_free_when_the_guest_has_unlinked_it(guest: Guest) -> None:
    first, second = guest.ipi(), guest.ipi()
    guest.channels.set_priority(first, 1)
    guest.channels.send(first)
    guest.channels.close(first)
    assert guest.word(first) == LINKED, "the event is forgotten, the link is the guest's"
    assert guest.ipi() == second + 1
    guest.set_word(second + 2, LINKED)
    assert guest.ipi() == second + 3, "also one that was never used"
    assert guest.consume(0) == []
    assert guest.ipi() == first
    guest.set_word(second + 2, 0)
    assert guest.ipi() == second + 2
    guest.channels.send(first)
    assert guest.head(0) == first, "at the default priority again"


@pytest.mark.promise("L-2")
def test_a_guest_can_only_starve_itself_of_ports(guest: Guest) -> None:
    for port in range(1024):
        guest.set_word(port, 0xFFFFFFFF)
    assert errno_of(guest.ipi) == Errno.ENOSPC
    guest.set_word(77, 0)
    assert guest.ipi() == 77
    assert guest.channels.reset(DOMID_SELF)
    assert guest.ipi() == 1


# -- a guest that behaves ----------------------------------------------------------------------------------


class Consumer(RuleBasedStateMachine):
    """Random events, masks, priorities and targets against the guest's side: nothing is lost or doubled.

    `owed` is the model: the ports that were sent to since their handler ran last.
    """

    @initialize(width=st.sampled_from([64, 32]))
    def begin(self, width: int) -> None:
        self.guest = Guest(max_port=40, width=width)
        self.channels = self.guest.channels
        self.owed: set[int] = set()
        self.masked: set[int] = set()
        self.senders: dict[int, int] = {}
        for number in range(6):
            port = self.guest.ipi(number % VCPUS)
            self.senders[port] = port
        for _ in range(3):
            port = self.guest.movable()
            peer = self.channels.status(1, port).remote_port
            self.senders[port] = peer
            self.senders[peer] = port
            self.owed.add(peer)

    def port(self, number: int) -> int:
        return sorted(self.senders)[number % len(self.senders)]

    @rule(number=st.integers(0, 15))
    def send(self, number: int) -> None:
        port = self.port(number)
        self.channels.send(self.senders[port])
        self.owed.add(port)

    @rule(number=st.integers(0, 15))
    def mask(self, number: int) -> None:
        self.guest.mask(self.port(number))
        self.masked.add(self.port(number))

    @rule(number=st.integers(0, 15), ask=st.booleans())
    def unmask(self, number: int, ask: bool) -> None:
        port = self.port(number)
        if ask:
            self.channels.unmask(port)
        else:
            self.guest.unmask(port)
        self.masked.discard(port)

    @rule(number=st.integers(0, 15), priority=st.integers(0, 15))
    def set_priority(self, number: int, priority: int) -> None:
        self.channels.set_priority(self.port(number), priority)

    @rule(number=st.integers(0, 15), vcpu=st.integers(0, VCPUS - 1))
    def bind_vcpu(self, number: int, vcpu: int) -> None:
        port = self.port(number)
        if self.senders[port] != port:
            self.channels.bind_vcpu(port, vcpu)

    @rule(number=st.integers(0, 15), vcpu=st.integers(0, VCPUS - 1))
    def replace(self, number: int, vcpu: int) -> None:
        """Close an IPI port, and open one: another one while the old one is linked."""
        port = self.port(number)
        if self.senders[port] != port:
            return
        self.channels.close(port)
        del self.senders[port]
        linked = self.guest.word(port) & LINKED
        new = self.guest.ipi(vcpu)
        assert not (linked and new == port)
        self.senders[new] = new
        self.owed.discard(port)
        if new in self.masked:
            self.guest.unmask(new)
        self.masked -= {port, new}
        if self.guest.word(port) & MASKED:
            self.masked.add(port)

    @rule(vcpu=st.integers(0, VCPUS - 1))
    def consume(self, vcpu: int) -> None:
        if not self.guest.shared.bytes[64 * vcpu]:
            return
        for port in self.guest.consume(vcpu):
            assert port in self.owed, f"port {port} was handled without an event"
            assert port not in self.masked
            self.owed.remove(port)

    @invariant()
    def everything_owed_is_in_sight(self) -> None:
        guest = self.guest
        reachable: set[int] = set()
        for vcpu in range(VCPUS):
            for priority in range(16):
                if not guest.ready(vcpu) >> priority & 1:
                    continue
                port, chain = guest.head(vcpu, priority), []
                while port:
                    assert port not in chain, "a queue runs in a circle"
                    assert port not in reachable, "a port is on two queues"
                    chain.append(port)
                    port = guest.word(port) & LINK
                reachable.update(chain)
                assert guest.shared.bytes[64 * vcpu] == 1, "a ready queue without an upcall"
        for port in self.owed & set(self.senders):
            assert guest.word(port) & PENDING
            assert port in self.masked or port in reachable, f"the event of port {port} is lost"
        for port in set(self.senders) - self.owed:
            assert not guest.word(port) & PENDING, f"port {port} is pending without an event"


Consumer.TestCase.settings = settings(max_examples=150, stateful_step_count=40, deadline=None)
TestConsumer = Consumer.TestCase


# -- guests that lie ---------------------------------------------------------------------------------------

WORD = st.integers(0, (1 << 32) - 1) | st.sampled_from([0, LINKED, LINKED | 3, PENDING | LINKED | LINK, BUSY])
SCRIBBLE = st.tuples(st.just("scribble"), st.integers(0, 40), WORD)
CONTROL = st.tuples(st.just("control"), st.integers(0, 17), WORD)
CALL = st.tuples(
    st.sampled_from(["send", "unmask", "close", "ipi", "vcpu", "priority", "expand", "reset", "switch"]),
    st.integers(0, 40),
    st.integers(0, 15),
)


@pytest.mark.promise("I-12")
@given(st.lists(SCRIBBLE | CONTROL | CALL, max_size=80))
def test_no_lie_leads_anywhere_else(steps: list[tuple[str, int, int]]) -> None:
    """Whatever stands in the words: no exception but a refusal, and nothing written but words and flags."""
    guest = Guest(max_port=40)
    channels = guest.channels
    for what, number, value in steps:
        try:
            if what == "scribble" and guest.array:
                guest.set_word(number, value)
            elif what == "control":
                guest.blocks[number % VCPUS].write_u32(number * 4, value)
            elif what == "send":
                channels.send(number)
            elif what == "unmask":
                channels.unmask(number)
            elif what == "close":
                channels.close(number)
            elif what == "ipi":
                channels.bind_ipi(number % VCPUS)
            elif what == "vcpu":
                channels.bind_vcpu(number, value % VCPUS)
            elif what == "priority":
                channels.set_priority(number, value)
            elif what == "expand":
                guest.expand()
            elif what == "reset":
                channels.reset(DOMID_SELF)
                guest.array.clear()
            elif what == "switch":
                guest.control(number % VCPUS)
            channels.raise_virq(Virq.TIMER, number % VCPUS)
        except XenError:
            pass
        used = {id(page) for page in channels.fifo.pages()} if channels.fifo else set()
        assert used <= {id(page) for page in (*guest.array, *guest.blocks)}
        for port, status in channels.ports().items():
            assert 1 <= port <= 40
            assert status.state is PortState.IPI
        for page in guest.array:
            assert not any(page.bytes[41 * 4 :]), "a port that does not exist"
        for block in guest.blocks:
            assert not any(block.bytes[72:])
