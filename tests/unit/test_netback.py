# SPDX-License-Identifier: GPL-2.0-only
"""The network back end against front ends that are tests: what it carries, and what it is told wrong."""

import struct
from collections.abc import Callable, Iterator
from typing import ClassVar

import pytest
from frames import TCP, UDP, ethernet, packet, transport
from netfront import ABLE, BLANK, DATA, EXTRA, MORE, OFFER, RX, TX, NetFront, group, gso

from pyhv.abi.xenbus import XenbusState
from pyhv.address import Mfn
from pyhv.devices.borrowing import Borrowed
from pyhv.errors import ConfigError
from pyhv.machine import Machine
from pyhv.mmu.physical import FramePage
from pyhv.net.frame import Gso, Segmentation, completed, with_blank_checksum
from pyhv.net.mac import BROADCAST
from pyhv.net.spec import parse
from pyhv.testing.compat_machine import Paused32
from pyhv.testing.granting import GTF_READONLY, PERMIT, entry
from pyhv.testing.guest_machine import PAGES, SECOND, Paused, machine

CONNECTED, CLOSING = XenbusState.CONNECTED, XenbusState.CLOSING
HELLO = ethernet(b"hello, everybody", 0x88B5, to=BROADCAST)
OKAY, ERROR, NULL = 0, -1, 1


@pytest.fixture
def made() -> Iterator[Machine]:
    with machine(pages=8 * PAGES) as made:
        yield made


@pytest.fixture(params=[Paused, Paused32])
def pair(request: pytest.FixtureRequest, made: Machine) -> tuple[NetFront, NetFront]:
    """Two guests on a switch that can do everything; the second one has offered pages, and has 64 bits."""
    one, other = NetFront(made, guest=request.param(made)), NetFront(made)
    assert one.connect(ABLE) is other.connect(ABLE) is CONNECTED
    other.lend(64)
    return one, other


def sound(made: Machine) -> bool:
    return made.audit() == []


# -- the handshake -----------------------------------------------------------------------------------------


def test_what_is_there_before_the_guest_connects(made: Machine) -> None:
    front = NetFront(made, "switch=lan,rate=10Mb/s@20ms")
    assert front.theirs is XenbusState.INIT_WAIT
    for key, value in {
        "bridge": "lan", "rate": "25000,20000", "feature-rx-copy": "1", "feature-sg": "1", "handle": "0",
        "feature-gso-tcpv4": "1", "feature-split-event-channels": "1", "multi-queue-max-queues": "4",
    }.items():  # fmt: skip
        assert front.read(key) == value, key
    assert front.read("mac").startswith("00:16:3e:")
    assert made.store.read_text(f"{front.device.front}/mac") == front.read("mac")
    assert made.store.permissions(front.device.front) == [f"n{front.domid}", "r0"]
    assert sound(made)


@pytest.mark.parametrize(
    "nodes",
    [
        {"request-rx-copy": 0}, {"request-rx-copy": 2}, {"tx-ring-ref": 9999}, {"rx-ring-ref": -1},
        {"rx-ring-ref": "x"}, {"tx-ring-ref": DATA + 90}, {"event-channel": 0}, {"event-channel": 999},
        {"event-channel-tx": 999}, {"event-channel-tx": 5}, {"feature-sg": "maybe"},
        {"multi-queue-num-queues": 0}, {"multi-queue-num-queues": 5}, {"multi-queue-num-queues": 2},
        {"feature-gso-tcpv4": 7}, {"request-multicast-control": -1},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told_and_waited_for(made: Machine, nodes: dict[str, str | int]) -> None:
    front = NetFront(made)
    assert front.connect(nodes) is CLOSING
    assert "cannot connect" in front.device.trouble
    told = made.store.read_text(f"/local/domain/0/error/backend/vif/{front.domid}/0/error")
    assert told.startswith(f"vif 0 of domain {front.domid}: it cannot connect: ")
    assert len(made.dom0.borrower.maptrack) == 0
    assert sound(made)
    for key in nodes:
        made.store.remove(f"{front.device.front}/{key}")
    front.write("state", int(XenbusState.CLOSED))
    front.write("state", int(XenbusState.INITIALISING))
    assert front.theirs is XenbusState.INIT_WAIT
    assert front.connect() is CONNECTED
    assert front.send(HELLO) == [OKAY]


def test_devices_come_and_go(made: Machine) -> None:
    front = NetFront(made)
    second = NetFront(made, "switch=other", front.guest)
    assert second.device.name.handle == 1
    assert list(made.dom0.networks.switches) == ["xenbr0", "other"]
    made.detach_net(front.guest.domain, 1)
    made.settle()
    assert list(made.dom0.networks.switches) == ["xenbr0"]
    with pytest.raises(ConfigError, match="has no vif 1"):
        made.detach_net(front.guest.domain, 1)
    assert front.connect() is CONNECTED
    made.detach_net(front.guest.domain, 0)
    assert front.theirs is CLOSING
    front.write("state", int(XenbusState.CLOSED))
    made.settle()
    assert made.dom0.networks.switches == {}
    assert sound(made)


def test_two_devices_have_not_one_name_or_address(made: Machine) -> None:
    front = NetFront(made, "switch,mac=00:16:3e:00:00:01,vifname=web0")
    before = made.dom0.networks.state()
    for net, why in (
        ("switch,vifname=web0", "vifname=web0: another device"),
        ("switch=other,mac=00:16:3e:00:00:01", "mac=00:16:3e:00:00:01 of vif1.1 is that of web0"),
    ):
        with pytest.raises(ConfigError, match=why):
            made.attach_net(front.guest.domain, parse(net))
    assert made.dom0.networks.state() == before
    assert sound(made)


def test_a_guest_that_ends_leaves_nothing(pair: tuple[NetFront, NetFront], made: Machine) -> None:
    one, other = pair
    one.send(HELLO)
    made.destroy(other.guest.domain)
    made.settle()
    assert one.send(HELLO) == [OKAY]
    assert len(made.dom0.networks.switches["xenbr0"].ports) == 1
    made.destroy(one.guest.domain)
    made.settle()
    assert made.dom0.networks.switches == {}
    assert len(made.dom0.borrower.maptrack) == 0
    assert sound(made)


# -- what is carried ---------------------------------------------------------------------------------------


def test_a_frame_from_one_guest_to_another(pair: tuple[NetFront, NetFront], made: Machine) -> None:
    one, other = pair
    assert one.send(HELLO) == [OKAY]
    assert other.received() == [(HELLO, 0, b"")]
    assert one.send(HELLO, piece=5) == [OKAY] * 6
    assert one.send(HELLO, piece=7, offset=4089) == [OKAY] * 5
    assert [data for data, _, _ in other.received()] == [HELLO, HELLO]
    assert sound(made)


def test_large_frames_pass_between_guests_that_know_them(pair: tuple[NetFront, NetFront]) -> None:
    one, other = pair
    for version, kind in ((4, 1), (6, 2)):
        large = packet(version, TCP, transport(version, TCP, bytes(range(256)) * 200, checksum=0))
        frame = with_blank_checksum(large, Gso(Segmentation(kind), 1448))
        other.lend(20)
        assert one.send(large, BLANK, (gso(1448, kind),)) == [OKAY, NULL, *[OKAY] * (len(large) // 4096)]
        assert other.received() == [(frame.data, 1 | 2 | EXTRA, gso(1448, kind)[:8])], "blank and validated"


@pytest.mark.parametrize("nodes", [{}, {"feature-sg": 1}, {"feature-no-csum-offload": 1}])
def test_they_are_cut_and_summed_for_one_that_does_not(made: Machine, nodes: dict[str, str | int]) -> None:
    one, other = NetFront(made), NetFront(made)
    assert one.connect(ABLE) is other.connect(nodes) is CONNECTED
    for version, kind in ((4, 1), (6, 2)):
        other.lend(10)
        large = packet(version, TCP, transport(version, TCP, bytes(range(256)) * 40, checksum=0))
        frame = with_blank_checksum(large, Gso(Segmentation(kind), 1448))
        assert set(one.send(large, BLANK, (gso(1448, kind),))) == {OKAY, NULL}
        assert other.received() == [(piece.data, 0, b"") for piece in completed(frame)]


def test_a_blank_checksum_passes_to_one_that_takes_it(made: Machine) -> None:
    one, other = NetFront(made), NetFront(made)
    assert one.connect() is other.connect() is CONNECTED
    other.lend(4)
    for version, left in ((4, True), (6, False)):
        blank = packet(version, UDP, transport(version, UDP, b"question", checksum=0))
        frame = with_blank_checksum(blank)
        assert one.send(blank, BLANK) == [OKAY]
        whole = completed(frame)[0].data
        assert other.received() == [(frame.data, 3, b"")] if left else [(whole, 0, b"")]


@pytest.mark.promise("N-6")
def test_what_finds_no_room_waits_up_to_a_bound(made: Machine) -> None:
    one, other = NetFront(made), NetFront(made)
    assert one.connect(ABLE) is other.connect(ABLE) is CONNECTED
    for number in range(20):
        one.send(HELLO + bytes([number]))
    assert other.received() == []
    other.lend(5)
    assert [data[-1] for data, _, _ in other.received()] == [0, 1, 2, 3, 4]
    other.lend(32)
    assert [data[-1] for data, _, _ in other.received()] == list(range(5, 20))
    big = ethernet(bytes(60_000), 0x88B5, to=BROADCAST)
    other.lend(0)
    for _ in range(40):
        one.send(big)
    queue = other.device._queues[0].queue
    assert queue.dropped == 40 - 1 - (1 << 20) // len(big), "one has gone into the 17 pages that were left"
    assert sound(made)


def test_it_is_notified_only_if_it_wants_to_be(
    pair: tuple[NetFront, NetFront], made: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    rung: list[int] = []
    monkeypatch.setattr(made.dom0.channels, "send", rung.append)
    for wanted, frames in ((1, 3), (6, 3), (0x8000, 2)):
        other.guest.put(struct.pack("<I", wanted), RX * 4096 + 12)
        for _ in range(frames):
            one.send(HELLO)
    (port,) = other.device.ports
    assert rung.count(port) == 2, "of eight frames the first and the sixth"
    assert sound(made)


def test_groups_that_it_wants(made: Machine) -> None:
    one, other = NetFront(made), NetFront(made)
    assert one.connect() is CONNECTED
    assert other.connect({"request-multicast-control": 1}) is CONNECTED
    other.lend(16)
    first, second = b"\x01\x00\x5e\x00\x00\x01", b"\x33\x33\x00\x00\x00\x01"
    frames = [ethernet(b"to a group", 0x88B5, to=to) for to in (first, second, BROADCAST)]

    def heard() -> list[bytes]:
        for frame in frames:
            one.send(frame)
        return [data[:6] for data, _, _ in other.received()]

    assert heard() == [BROADCAST]
    assert other.send(b"", 0, (group(2, first, 1), group(2, second))) == [OKAY, NULL, NULL]
    assert heard() == [first, second, BROADCAST]
    assert other.send(b"", 0, (group(3, first),)) == [OKAY, NULL]
    assert heard() == [second, BROADCAST]
    assert other.send(b"", 0, (group(2, b"\0\x16\x3e\0\0\1"),)) == [ERROR, NULL], "no group"
    for number in range(63):
        assert other.send(b"", 0, (group(2, bytes([1, 0, 0, 0, 1, number])),)) == [OKAY, NULL]
    assert other.send(b"", 0, (group(2, first),)) == [ERROR, NULL], "too many"
    assert one.send(b"", 0, (group(2, first),)) == [ERROR, NULL], "it has not asked to choose"


def test_two_queues(made: Machine) -> None:
    one, first = NetFront(made), NetFront(made)
    second = first.another_queue()
    first.offer(ABLE | {"multi-queue-num-queues": 2}, below="queue-0/")
    second.offer(below="queue-1/", split=True)
    first.write("state", int(CONNECTED))
    assert first.theirs is one.connect(ABLE) is CONNECTED
    assert len(first.device.ports) == 3
    for queue in (first, second):
        assert queue.send(HELLO) == [OKAY]
        queue.lend(20)
    flows = [bytearray(packet(4, UDP, transport(4, UDP, bytes([n])))) for n in range(16)]
    for number, flow in enumerate(flows):
        flow[34:36] = number.to_bytes(2, "big")  # another port, another flow
        for _ in range(2):
            one.send(bytes(flow))
    came = [[data for data, _, _ in queue.received()] for queue in (first, second)]
    assert all(len(one) > 4 for one in came)
    assert sorted(came[0] + came[1]) == sorted(2 * [bytes(flow) for flow in flows])
    assert not set(came[0]) & set(came[1]), "a flow stays in its queue"
    assert sound(made)


def test_split_event_channels(made: Machine) -> None:
    one, other = NetFront(made), NetFront(made)
    assert one.connect(ABLE, split=True) is other.connect(ABLE, split=True) is CONNECTED
    other.lend(4)
    assert one.send(HELLO) == [OKAY]
    assert other.received() == [(HELLO, 0, b"")]
    assert len(one.device.ports) == 2


@pytest.mark.promise("N-6")
def test_who_may_send_so_much_waits(made: Machine) -> None:
    one, other = NetFront(made, "switch,rate=8Mb/s@10ms"), NetFront(made)
    assert one.connect(ABLE) is other.connect(ABLE) is CONNECTED
    other.lend(64)
    for _ in range(50):
        one.post(ethernet(bytes(1000), 0x88B5, to=BROADCAST))
    one.publish(TX)
    one.ring(TX)
    came: list[int] = []
    while len(came) < 50:
        came += [made.now()] * len(other.received())
        due = made.dom0.next_deadline()
        if due is None:
            break
        made.clock.advance_to(due)
        made.settle()
    assert len(came) == 50
    assert came == sorted(came)
    assert 0.045 * SECOND < came[-1] < 0.065 * SECOND, "50 kB at 1 MB/s"
    assert len(one.statuses()) == 50


# -- what is told wrong ------------------------------------------------------------------------------------


def request(ref: int = DATA, offset: int = 0, flags: int = 0, name: int = 1, size: int = 60) -> bytes:
    return struct.pack("<IHHHH", ref, offset, flags, name, size)


@pytest.mark.promise("N-3")
def test_a_packet_that_makes_no_sense_is_its_own_error(
    pair: tuple[NetFront, NetFront], made: Machine
) -> None:
    one, other = pair
    entry(one.guest, DATA + 1, 0, 0, one.frames[1])
    entry(one.guest, DATA + 2, PERMIT, 7, one.frames[2])
    entry(one.guest, DATA + 3, PERMIT, 0, 0)
    entry(one.guest, DATA + 4, PERMIT, 0, other.frames[0])
    entry(one.guest, DATA + 5, PERMIT, 0, 0xFFFFFFFF)
    table = int(one.guest.vcpu.paging.kernel_l4)
    entry(one.guest, DATA + 6, PERMIT, 0, table)
    for slots in (
        [request(size=13)],
        [request(size=0)],
        [request(ref=DATA + 1)],
        [request(ref=DATA + 2)],
        [request(ref=DATA + 3)],
        [request(ref=DATA + 4)],
        [request(ref=DATA + 5)],
        [request(ref=1 << 31)],
        [request(flags=MORE), request(ref=DATA + 1, size=10)],
        [request(flags=BLANK | EXTRA), gso(1448, 1)],
    ):
        for slot in slots:
            one.put(TX, slot)
        one.publish(TX)
        one.ring(TX)
        assert [status for status in one.statuses() if status != NULL] == [ERROR] * len(
            [slot for slot in slots if slot[0] != 1 or len(slots) == 1 or slot[4:8] != gso(1448, 1)[4:8]]
        ), slots
        assert one.theirs is CONNECTED
    assert other.received() == []
    assert one.send(HELLO) == [OKAY]
    assert other.received() == [(HELLO, 0, b"")]
    assert sound(made)


def put(front: NetFront, *slots: bytes) -> None:
    for slot in slots:
        front.put(TX, slot)


LIES: dict[str, Callable[[NetFront], object]] = {
    "a producer that runs away": lambda front: front.prod.update({TX: 257}),
    "a producer that goes back": lambda front: front.prod.update({TX: 0xFFFFFFFF}),
    "beyond the page": lambda front: front.put(TX, request(offset=4090, size=60)),
    "an offset of 65535": lambda front: front.put(TX, request(offset=65535)),
    "more to come that does not": lambda front: front.put(TX, request(flags=MORE)),
    "extra slots that do not come": lambda front: front.put(TX, request(flags=EXTRA)),
    "an endless chain": lambda front: put(front, request(flags=MORE), *[request(flags=MORE, size=0)] * 254),
    "endless extra slots": lambda front: put(front, request(flags=EXTRA), *[gso(100, 1, 1)] * 200),
    "fragments of more than the packet": lambda front: put(front, request(flags=MORE), request(size=61)),
    "an unknown extra slot": lambda front: put(front, request(flags=EXTRA), bytes([9, 0])),
    "segments of nothing": lambda front: put(front, request(flags=EXTRA), gso(0, 1)),
    "segments of no kind": lambda front: put(front, request(flags=EXTRA), gso(100, 3)),
}  # fmt: skip


@pytest.mark.promise("N-3")
@pytest.mark.parametrize("lie", LIES)
def test_a_ring_that_lies_ends_that_device(pair: tuple[NetFront, NetFront], made: Machine, lie: str) -> None:
    one, other = pair
    LIES[lie](one)
    one.publish(TX)
    one.ring(TX)
    assert one.theirs is CLOSING
    assert one.device.trouble
    assert other.theirs is CONNECTED
    assert other.send(HELLO) == [OKAY]
    assert sound(made)
    one.write("state", int(XenbusState.CLOSED))
    one.write("state", int(XenbusState.INITIALISING))
    assert one.connect(ABLE) is CONNECTED
    assert one.send(HELLO) == [OKAY]
    assert other.received()[-1] == (HELLO, 0, b"")


@pytest.mark.parametrize("claimed", [257, 0xFFFFFFFF, 0x80000000])
def test_a_receiver_that_lies_harms_no_sender(
    pair: tuple[NetFront, NetFront], made: Machine, claimed: int
) -> None:
    one, other = pair
    other.prod[RX] = claimed
    other.publish(RX)
    assert one.send(HELLO) == [OKAY]
    assert other.theirs is CLOSING
    assert one.theirs is CONNECTED
    assert one.send(HELLO) == [OKAY]
    assert sound(made)


def test_a_page_that_cannot_be_written_costs_that_frame(
    pair: tuple[NetFront, NetFront], made: Machine
) -> None:
    one, other = pair
    entry(other.guest, OFFER, PERMIT | GTF_READONLY, 0, other.frames[40])
    entry(other.guest, OFFER + 1, 0, 0, 0)
    entry(other.guest, OFFER + 2, PERMIT, 0, int(other.guest.vcpu.paging.kernel_l4))
    for _ in range(4):
        assert one.send(HELLO) == [OKAY]
    assert other.received() == [(b"", 1 << 15, b"")] * 3 + [(HELLO, 0, b"")]
    assert other.theirs is CONNECTED
    assert sound(made)


@pytest.mark.promise("N-3")
def test_what_changes_while_it_is_read_is_read_once(pair: tuple[NetFront, NetFront], made: Machine) -> None:
    """The size is looked at, and then it is another: whatever is copied is what was looked at."""
    one, other = pair

    class Racing(Borrowed):
        """A ring whose guest overwrites each slot as soon as it was read."""

        seen: ClassVar[list[int]] = []

        def read(self, offset: int, length: int) -> bytes:
            found = super().read(offset, length)
            self.seen.append(offset)
            self.write(offset, b"\xff" * length)
            return found

    one.device._queues[0].queue.tx.memory = Racing(
        [FramePage(made.physical, Mfn(one.guest.mfn(one.guest.page(TX))))]
    )
    assert one.send(HELLO, piece=10) == [OKAY] * 3
    assert Racing.seen == [64, 76, 88]
    assert other.received() == [(HELLO, 0, b"")]
