# SPDX-License-Identifier: GPL-2.0-only
"""The block back end against a front end that is a test: what it does right, and what it is told wrong."""

import copy
import struct
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from blkfront import DATA_PAGE, DATA_REF, RING_PAGE, RING_REF, BlkFront, other_spec, raw_disk

from pyhv.abi.blkif import Operation
from pyhv.abi.xenbus import XenbusState
from pyhv.errors import ConfigError, SnapshotError, StateError
from pyhv.machine import Machine
from pyhv.snapshot.snapshot import take
from pyhv.state import restore, state
from pyhv.storage.disk import DiskError
from pyhv.storage.open import open_image
from pyhv.testing.guest_machine import Sink, machine

READ, WRITE, FLUSH, BARRIER = (
    Operation.READ,
    Operation.WRITE,
    Operation.FLUSH_DISKCACHE,
    Operation.WRITE_BARRIER,
)
OKAY, ERROR, UNSUPPORTED = 0, -1, -2


@pytest.fixture
def made() -> Iterator[Machine]:
    with machine(pages=4096) as made:
        yield made


@pytest.fixture(params=[64, 32])
def front(request: pytest.FixtureRequest, made: Machine, tmp_path: Path) -> BlkFront:
    front = BlkFront(made, str(raw_disk(tmp_path / "disk.img")), width=request.param)
    assert front.connect() is XenbusState.CONNECTED
    return front


def sector(number: int) -> bytes:
    return struct.pack("<I", number) * 128


def sound(front: BlkFront) -> bool:
    return front.machine.audit() == []


# -- the handshake -----------------------------------------------------------------------------------------


def test_features_are_there_before_the_state(made: Machine, tmp_path: Path) -> None:
    front = BlkFront(made, str(raw_disk(tmp_path / "disk.img")))
    assert front.theirs is XenbusState.INIT_WAIT
    assert front.read("feature-flush-cache") == "1"
    assert front.read("mode") == "w"
    assert made.store.read_text(f"{front.device.front}/virtual-device") == "51712"
    assert made.store.permissions(front.device.front) == [f"n{front.domid}", "r0"]
    assert made.store.permissions(front.device.back) == ["n0", f"r{front.domid}"]


def test_a_connected_disk_says_its_size(front: BlkFront) -> None:
    assert front.read("sectors") == "64"
    assert front.read("sector-size") == "512"
    assert front.read("info") == "0"
    assert sound(front)


@pytest.mark.parametrize(
    "nodes",
    [
        {"ring_ref": 9999}, {"ring_ref": -1}, {"ring_ref": "x"}, {"ring_ref": DATA_REF + 40},
        {"event_channel": 0}, {"event_channel": 999}, {"event_channel": 1 << 40}, {"event_channel": ""},
        {"protocol": "arm-abi"}, {"protocol": "\udcff".encode("utf-8", "surrogateescape").decode("latin-1")},
        {"ring_page_order": 5}, {"ring_page_order": 1}, {"multi_queue_num_queues": 0},
        {"multi_queue_num_queues": 2},
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_told_and_waited_for(
    made: Machine, tmp_path: Path, nodes: dict[str, str | int]
) -> None:
    front = BlkFront(made, str(raw_disk(tmp_path / "disk.img")))
    assert front.connect(**nodes) is XenbusState.CLOSING
    assert "cannot connect" in front.device.trouble
    error = made.store.read_text(f"/local/domain/0/error/backend/vbd/{front.domid}/51712/error")
    assert error.startswith(f"vbd 51712 of domain {front.domid}: it cannot connect: ")
    assert sound(front)
    assert len(made.dom0.borrower.maptrack) == 0
    for key in ("ring-page-order", "multi-queue-num-queues"):
        made.store.remove(f"{front.device.front}/{key}")
    front.say(XenbusState.CLOSED)
    front.say(XenbusState.INITIALISING)
    assert front.theirs is XenbusState.INIT_WAIT
    assert front.connect() is XenbusState.CONNECTED
    assert front.do(front.request(READ)) == [OKAY]


def test_another_kernel_takes_over(front: BlkFront) -> None:
    assert front.do(front.request(READ)) == [OKAY]
    front.say(XenbusState.CLOSING)
    assert front.state() == "CLOSING"
    assert len(front.machine.dom0.borrower.maptrack) == 0
    front.say(XenbusState.CLOSED)
    assert front.state() == "CLOSED"
    front.say(XenbusState.INITIALISING)
    assert front.state() == "INIT_WAIT"
    front.width = 96 - front.width  # 64 <-> 32
    from pyhv.abi.blkif import BlkifRequest
    from pyhv.devices.sharedring import entries_in

    front.size = entries_in(4096, BlkifRequest.size(front.width))
    assert front.connect() is XenbusState.CONNECTED
    assert front.do(front.request(READ, 8)) == [OKAY]
    assert front.data()[:512] == sector(8)
    assert sound(front)


def test_a_disk_is_unplugged(front: BlkFront) -> None:
    front.machine.detach_disk(front.guest.domain, "xvda")
    assert front.theirs is XenbusState.CLOSING
    assert front.read("online") == "0"
    front.say(XenbusState.CLOSED)
    front.machine.settle()
    assert not front.machine.store.exists(front.device.back)
    assert not front.machine.store.exists(front.device.front)
    assert front.machine.dom0.disks(front.domid) == []
    assert sound(front)


def test_death_gives_everything_back(front: BlkFront) -> None:
    free = front.machine.frames.free_count
    front.put(front.request(READ))
    front.ring()
    front.guest.domain.life.shut_down(0)
    front.machine.settle()
    assert len(front.machine.dom0.borrower.maptrack) == 0
    assert front.machine.dom0.channels.devices() == {}
    assert front.machine.frames.free_count > free
    assert front.machine.audit() == []


# -- requests ----------------------------------------------------------------------------------------------


def test_sectors_are_read_into_parts_of_pages(front: BlkFront) -> None:
    parts = [(DATA_REF, 6, 7), (DATA_REF + 1, 0, 0), (DATA_REF + 2, 3, 3)]
    assert front.do(front.request(READ, 5, parts)) == [OKAY]
    assert front.data(0)[6 * 512 :] == sector(5) + sector(6)
    assert front.data(1)[:512] == sector(7)
    assert front.data(2)[3 * 512 : 4 * 512] == sector(8)
    assert front.data(0)[: 6 * 512] == bytes(6 * 512)


def test_what_is_written_is_in_the_image(front: BlkFront, tmp_path: Path) -> None:
    front.fill(b"w" * 4096)
    assert front.do(front.request(WRITE, 3, [(DATA_REF, 1, 2)]), front.request(FLUSH, segments=[])) == [
        OKAY,
        OKAY,
    ]
    image = (tmp_path / "disk.img").read_bytes()
    assert image[3 * 512 : 5 * 512] == b"w" * 1024
    assert image[: 3 * 512] == sector(0) + sector(1) + sector(2)
    assert image[5 * 512 : 6 * 512] == sector(5)


def test_a_barrier_writes_and_flushes(front: BlkFront, tmp_path: Path) -> None:
    front.fill(b"b" * 4096)
    assert front.do(front.request(BARRIER, 8)) == [OKAY]
    assert (tmp_path / "disk.img").read_bytes()[4096:8192] == b"b" * 4096


def test_many_segments_are_listed_elsewhere(front: BlkFront) -> None:
    listed = [(DATA_REF + number % 4, number // 4, number // 4) for number in range(20)]
    front.guest.put(b"".join(struct.pack("<IBBxx", *part) for part in listed), 6 * 4096)
    front.lend(50, 6)
    assert front.do(front.indirect(READ, 1, 20, [50])) == [OKAY]
    for number, (ref, first, _) in enumerate(listed):
        assert front.data(ref - DATA_REF)[first * 512 : first * 512 + 512] == sector(1 + number)


def test_responses_name_request_and_operation(front: BlkFront) -> None:
    front.put(front.request(READ, identity=0xDEAD_BEEF_0000_0001))
    front.put(front.discard(0, 8, identity=3))
    front.ring()
    assert sorted(front.settle()) == [(3, Operation.DISCARD, OKAY), (0xDEAD_BEEF_0000_0001, READ, OKAY)]


def test_an_indirect_request_is_answered_as_what_it_stands_for(front: BlkFront) -> None:
    front.guest.put(struct.pack("<IBBxx", DATA_REF, 0, 7), 6 * 4096)
    front.lend(50, 6)
    front.put(front.indirect(READ, 0, 1, [50], identity=1))
    front.put(front.indirect(WRITE, 0, 1, [50], identity=2))
    front.put(front.indirect(WRITE, 0, 0, [50], identity=3))
    front.ring()
    assert sorted(front.settle()) == [(1, READ, OKAY), (2, WRITE, OKAY), (3, WRITE, ERROR)]


def test_the_ring_goes_round(front: BlkFront) -> None:
    for number in range(3 * front.size):
        assert front.do(front.request(READ, number % 57, identity=number)) == [OKAY]
        assert front.data()[:512] == sector(number % 57)


def test_a_full_ring_is_answered(front: BlkFront) -> None:
    requests = [front.request(READ, 0, identity=number) for number in range(front.size)]
    assert front.do(*requests) == [OKAY] * front.size


def test_a_ring_of_several_pages(made: Machine, tmp_path: Path) -> None:
    front = BlkFront(made, str(raw_disk(tmp_path / "disk.img")), pages=2)
    assert front.connect() is XenbusState.CONNECTED
    assert front.size == 64
    for number in range(70):
        assert front.do(front.request(READ, number % 57, identity=number)) == [OKAY]
        assert front.data()[:512] == sector(number % 57)


def test_the_guest_is_notified_when_it_wants_to_be(front: BlkFront) -> None:
    events = front.guest.domain.events
    assert not events.pending.is_pending(front.port)
    front.do(front.request(READ))
    assert events.pending.is_pending(front.port)


# -- requests that lie -------------------------------------------------------------------------------------


def bad_requests(front: BlkFront) -> dict[str, tuple[bytes, int]]:
    far = (1 << 64) - 1
    return {
        "an operation": (front.request(4), UNSUPPORTED),
        "another": (front.request(255), UNSUPPORTED),
        "no segments": (front.request(READ, segments=[]), ERROR),
        "too many": (front.request(READ, count=12), ERROR),
        "very many": (front.request(WRITE, count=255), ERROR),
        "past the end": (front.request(READ, 57), ERROR),
        "far past the end": (front.request(READ, far), ERROR),
        "past the end, written": (front.request(WRITE, 64), ERROR),
        "beyond the page": (front.request(READ, 0, [(DATA_REF, 0, 8)]), ERROR),
        "backwards": (front.request(READ, 0, [(DATA_REF, 5, 4)]), ERROR),
        "no grant": (front.request(READ, 0, [(DATA_REF + 9, 0, 0)]), ERROR),
        "no grant, written": (front.request(WRITE, 0, [(DATA_REF + 9, 0, 0)]), ERROR),
        "no table": (front.request(READ, 0, [(0xFFFF_FFFF, 0, 0)]), ERROR),
        "discard far": (front.discard(far, far), ERROR),
        "discard too much": (front.discard(60, 5), ERROR),
        "indirect what": (front.indirect(FLUSH, 0, 1, [DATA_REF]), ERROR),
        "indirect nothing": (front.indirect(READ, 0, 0, [DATA_REF]), ERROR),
        "indirect much": (front.indirect(READ, 0, 0xFFFF, [DATA_REF]), ERROR),
        "indirect nowhere": (front.indirect(READ, 0, 1, [0xFFFF_FFFF]), ERROR),
        "flush with data": (front.request(FLUSH), ERROR),
    }


def test_lies_end_in_their_own_error(front: BlkFront) -> None:
    for what, (raw, status) in bad_requests(front).items():
        assert front.do(raw) == [status], what
        assert front.theirs is XenbusState.CONNECTED, what
    assert front.do(front.request(READ)) == [OKAY]
    assert sound(front)


def test_read_only_grants_and_foreign_ones_are_errors(front: BlkFront) -> None:
    front.lend(60, DATA_PAGE, flags=5)  # permit_access | readonly
    front.lend(61, DATA_PAGE, domid=5)
    assert front.do(front.request(READ, 0, [(60, 0, 7)])) == [ERROR]
    assert front.do(front.request(WRITE, 0, [(60, 0, 7)])) == [OKAY]
    assert front.do(front.request(READ, 0, [(61, 0, 7)])) == [ERROR]
    assert sound(front)


def test_a_write_protected_disk(made: Machine, tmp_path: Path) -> None:
    front = BlkFront(made, f"{raw_disk(tmp_path / 'disk.img')},ro")
    assert front.connect() is XenbusState.CONNECTED
    assert front.read("info") == "4"
    assert front.read("mode") == "r"
    before = (tmp_path / "disk.img").read_bytes()
    assert front.do(front.request(WRITE), front.request(BARRIER), front.discard(0, 8)) == [ERROR] * 3
    assert front.do(front.request(READ)) == [OKAY]
    assert (tmp_path / "disk.img").read_bytes() == before


@pytest.mark.parametrize("ahead", [33, 1000, 1 << 31, (1 << 32) - 1])
def test_a_ring_that_cannot_be_disconnects(front: BlkFront, ahead: int) -> None:
    front.do(front.request(READ))
    front.guest.put(struct.pack("<I", front.prod + ahead & 0xFFFF_FFFF), RING_PAGE * 4096)
    front.ring()
    assert front.theirs is XenbusState.CLOSING
    assert "requests ever" in front.device.trouble
    assert len(front.machine.dom0.borrower.maptrack) == 0
    assert sound(front)
    front.say(XenbusState.CLOSED)
    front.say(XenbusState.INITIALISING)
    assert front.connect() is XenbusState.CONNECTED
    assert front.do(front.request(READ)) == [OKAY]


def test_our_own_indices_are_not_read_back(front: BlkFront) -> None:
    front.do(front.request(READ))
    front.guest.put(struct.pack("<I", 0x1234), RING_PAGE * 4096 + 8)  # rsp_prod, which is ours
    front.put(front.request(READ, 8))
    front.ring()
    front.settle()
    assert int.from_bytes(front.guest.get(4, RING_PAGE * 4096 + 8), "little") == 2
    assert front.data()[:512] == sector(8)


def test_a_ring_that_becomes_a_page_table_cannot(front: BlkFront) -> None:
    """While the back end has it mapped, the page is a writable one."""
    assert front.guest.machine.frames.type_count[front.guest.mfn(front.guest.page(RING_PAGE))] >= 1
    assert RING_REF in dict(front.guest.domain.grants.active_mappings())


def test_an_image_that_shrinks_is_an_error_of_requests(front: BlkFront, tmp_path: Path) -> None:
    with (tmp_path / "disk.img").open("r+b") as file:
        file.truncate(4096)
    assert front.do(front.request(READ, 32)) == [ERROR]
    assert front.do(front.request(READ, 0)) == [OKAY]
    assert front.theirs is XenbusState.CONNECTED


# -- time, and state ---------------------------------------------------------------------------------------


def test_answers_come_after_a_modelled_time(front: BlkFront) -> None:
    clock = front.machine.clock
    before = clock.now()
    front.put(front.request(READ))
    front.put(front.request(READ, 8))
    front.ring()
    assert front.responses() == []
    due = front.machine.dom0.next_deadline()
    assert due is not None
    assert 60_000 < due - before < 100_000
    clock.advance_to(due)
    front.machine.settle()
    assert len(front.responses()) == 1
    assert len(front.settle()) == 1


def test_a_device_says_its_state_with_requests_in_the_works(front: BlkFront) -> None:
    front.fill(b"x" * 4096)
    front.do(front.request(READ, 8))
    front.put(front.request(READ, 16))
    front.ring()
    said = state(front.device)
    assert len(said["pending"]) == 1  # type: ignore[arg-type]
    restore(front.device, said, "disk")
    assert state(front.device) == said
    assert [status for _, _, status in front.settle()] == [OKAY]
    assert front.data()[:512] == sector(16)
    assert sound(front)


# -- what cannot be leaves nothing open --------------------------------------------------------------------


def is_free(image: Path) -> bool:
    try:
        open_image(image, "raw", writable=True).close()
    except DiskError:
        return False
    return True


def test_a_name_that_is_taken_leaves_the_other_disk_closed(front: BlkFront, tmp_path: Path) -> None:
    other = raw_disk(tmp_path / "other.img")
    with pytest.raises(ConfigError, match="has vbd 51712 already"):
        front.machine.attach_disk(front.guest.domain, replace(front.spec, target=str(other)))
    assert is_free(other)
    assert front.do(front.request(READ)) == [OKAY]


@pytest.mark.parametrize("wrong", ["this disk", "another device", "channels"])
def test_a_machine_that_cannot_be_put_back_leaves_its_disks_closed(
    front: BlkFront, tmp_path: Path, wrong: str
) -> None:
    front.machine.attach_disk(front.guest.domain, other_spec(front, str(raw_disk(tmp_path / "b.img"))))
    taken = take(front.machine)
    changed: Any = copy.deepcopy(taken.state)
    dom0 = changed["dom0"]
    if wrong == "this disk":
        next(one for one in dom0["devices"] if one["kind"] == "vbd")["state"]["width"] = 16
    elif wrong == "another device":
        dom0["devices"][-1]["state"]["spec"]["vdev"] = "nothing"
    else:
        dom0["channels"] = {}
    saved = tuple(replace(one, moment=None) for one in taken.disks)
    broken = replace(taken, state=changed, disks=saved, trusted=False)
    del taken, saved
    front.machine.close()
    assert is_free(tmp_path / "disk.img")
    with pytest.raises(SnapshotError):
        broken.rebuild(lambda _domid: Sink())
    assert is_free(tmp_path / "disk.img")
    assert is_free(tmp_path / "b.img")


def _of_no_queue(said: Any) -> None:
    said["pending"][0]["queue"] = 1


def _beyond_a_page(said: Any) -> None:
    said["pending"][0]["segments"][0][2] = 8


def _too_little(said: Any) -> None:
    said["pending"][0]["data"] = b"x"


def _unknown_handle(said: Any) -> None:
    said["queues"][0]["handles"] = said["xenbus"]["borrowed"] = [7]


def _no_page(said: Any) -> None:
    said["queues"][0]["handles"] = said["xenbus"]["borrowed"] = []


def _three_pages(said: Any) -> None:
    said["queues"][0]["handles"] = said["xenbus"]["borrowed"] = said["xenbus"]["borrowed"] * 3


def _another_page(said: Any) -> None:
    said["queues"][0]["handles"] = [1]


def _no_protocol(said: Any) -> None:
    said["width"] = 16


@pytest.mark.parametrize(
    "change",
    [
        _of_no_queue, _beyond_a_page, _too_little, _unknown_handle, _no_page, _three_pages, _another_page,
        _no_protocol,
    ],
)  # fmt: skip
def test_state_that_cannot_be_is_refused(front: BlkFront, change: Callable[[Any], None]) -> None:
    front.put(front.request(READ, 16))
    front.ring()
    said = state(front.device)
    changed = copy.deepcopy(said)
    change(changed)
    with pytest.raises(StateError):
        restore(front.device, changed, "disk")
    restore(front.device, said, "disk")
    assert [status for _, _, status in front.settle()] == [OKAY]


@pytest.mark.parametrize("shared", [True, False], ids=["by two", "by none"])
def test_what_domain_0_has_borrowed_is_some_devices_once(front: BlkFront, shared: bool) -> None:
    taken = take(front.machine)
    changed: Any = copy.deepcopy(taken.state)
    borrowed = changed["dom0"]["borrower"]["maptrack"]
    if shared:
        device = next(one for one in changed["dom0"]["devices"] if one["kind"] == "vbd")["state"]
        device["queues"][0]["handles"] = device["xenbus"]["borrowed"] = device["xenbus"]["borrowed"] * 2
    else:
        borrowed["mappings"].append([1, copy.deepcopy(borrowed["mappings"][0][1])])
        borrowed["unused"] = 2
    with pytest.raises(SnapshotError, match="borrowed"):
        replace(taken, state=changed, trusted=True).rebuild(lambda _domid: Sink())
