# SPDX-License-Identifier: GPL-2.0-only
"""memory_op's frames: giving them back, getting them again, and exchanging them."""

import struct

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import MEMOP_EXTENT_SHIFT, MemoryOp
from pyhv.abi.structs import MemoryExchange, MemoryReservation
from pyhv.hypercalls.context import Again
from pyhv.testing.guest_machine import UNMAPPED, Paused

INCREASE, DECREASE, POPULATE = (
    MemoryOp.INCREASE_RESERVATION,
    MemoryOp.DECREASE_RESERVATION,
    MemoryOp.POPULATE_PHYSMAP,
)
BITS_44, NODE_0, POPULATE_ON_DEMAND, EXACT_NODE, VNODE = 44, 1 << 8, 1 << 16, 1 << 17, 1 << 18
LIST, WANTED = 0x2000, 0x3000
"""Where lists stand in the scratch pages."""


def listed(guest: Paused, frames: list[int], at: int = LIST) -> int:
    """A list of frames or PFNs in memory; its address."""
    return guest.put(struct.pack(f"<{len(frames)}{'Q' if guest.width == 64 else 'I'}", *frames), at)


def first(guest: Paused, at: int = LIST) -> int:
    """The first element of a list."""
    return int.from_bytes(guest.get(guest.width // 8, at), "little")


def reservation(
    guest: Paused,
    command: MemoryOp,
    frames: list[int],
    *,
    order: int = 0,
    flags: int = 0,
    domid: int = DOMID_SELF,
    at: int | None = None,
    count: int | None = None,
    start: int = 0,
) -> int:
    """memory_op on extents of a list, which stands in memory if it does not stand at `at`."""
    array = listed(guest, frames) if at is None else at
    request = MemoryReservation(
        extent_start=array, nr_extents=len(frames) if count is None else count, extent_order=order,
        mem_flags=flags, domid=domid,
    )  # fmt: skip
    return guest.memory_op(command, request, start)


@pytest.mark.promise("L-17")
def test_giving_frames_back_and_getting_them_again(guest: Paused) -> None:
    frames, domain = guest.machine.frames, guest.domain
    assert frames.m2p is not None
    mfn, before = guest.mfn(guest.page(3)), domain.tot_pages
    pfn = frames.m2p[mfn]
    assert guest.unmap(guest.page(3)) == 0
    assert reservation(guest, DECREASE, [mfn]) == 1
    assert domain.tot_pages == before - 1
    assert frames.m2p[mfn] == (1 << 64) - 1
    assert frames.owner[mfn] != domain.domid
    assert reservation(guest, POPULATE, [pfn]) == 1
    new = first(guest)
    assert frames.m2p[new] == pfn
    assert frames.owner[new] == domain.domid
    assert domain.tot_pages == before
    assert reservation(guest, POPULATE, [pfn]) == 0, "not more than the reservation"


def test_a_frame_that_is_mapped_lives_on_until_it_is_not(guest: Paused) -> None:
    frames, mfn = guest.machine.frames, guest.mfn(guest.page(3))
    assert reservation(guest, DECREASE, [mfn]) == 1
    assert frames.owner[mfn] == guest.domain.domid
    tot_pages = guest.domain.tot_pages
    assert reservation(guest, DECREASE, [mfn]) == 1, "once more changes nothing"
    assert guest.domain.tot_pages == tot_pages
    assert guest.unmap(guest.page(3)) == 0
    assert frames.owner[mfn] != guest.domain.domid


def test_decreasing_stops_at_the_first_bad_frame(guest: Paused) -> None:
    good = [guest.mfn(guest.page(number)) for number in (3, 4)]
    assert reservation(guest, DECREASE, [good[0], guest.machine.board.zero_frame, good[1]]) == 1
    assert reservation(guest, DECREASE, [1 << 50]) == 0
    assert reservation(guest, DECREASE, [guest.domain.shared_info.mfn]) == 0


@pytest.mark.promise("L-18")
@pytest.mark.parametrize("command", [INCREASE, DECREASE, POPULATE])
@pytest.mark.parametrize(
    "other",
    [{"order": 10}, {"order": 0xFFFFFFFF}, {"domid": 0}, {"domid": 77}, {"at": UNMAPPED}, {"count": 0}],
)
def test_reservations_never_return_an_error(guest: Paused, command: MemoryOp, other: dict[str, int]) -> None:
    assert reservation(guest, command, [5], **other) == 0
    assert guest.memory_op(command, UNMAPPED) == 0
    assert reservation(guest, command, [5], start=7) == 7, "the number of extents that were done before"


@pytest.mark.parametrize(
    ("flags", "done"),
    [
        (0, 1), (64, 1), (BITS_44, 1), (13, 0), (12, 0), (1, 0), (POPULATE_ON_DEMAND, 0), (EXACT_NODE, 1),
        (NODE_0, 1), (NODE_0 | EXACT_NODE, 0), (NODE_0 | EXACT_NODE | VNODE, 1), (VNODE, 1),
    ],
)  # fmt: skip
def test_where_memory_may_be(guest: Paused, flags: int, done: int) -> None:
    mfn = guest.mfn(guest.page(4))
    assert guest.unmap(guest.page(4)) == 0
    assert reservation(guest, DECREASE, [mfn]) == 1
    before = guest.domain.tot_pages
    assert reservation(guest, POPULATE, [5], flags=flags) == done
    assert guest.domain.tot_pages == before + done
    assert guest.machine.audit() == []


def spare(guest: Paused, count: int) -> list[int]:
    """Frames of the guest that nothing maps."""
    found = []
    for page in range(600, 1000):
        mfn = guest.mfn(page << 12)
        if guest.unmap(page << 12) == 0 and guest.machine.frames.refs[mfn] == 1:
            found.append(mfn)
    assert len(found) >= count
    return found[:count]


def interrupted(again: Again, command: MemoryOp, argument: int) -> int:
    """What a call that gave way asks for; the extent at which it goes on."""
    number, rest = again.arguments
    assert (number & (1 << MEMOP_EXTENT_SHIFT) - 1, rest) == (command, argument)
    return number >> MEMOP_EXTENT_SHIFT


@pytest.mark.promise("T-5")
@pytest.mark.parametrize("command", [INCREASE, DECREASE, POPULATE])
def test_long_reservations_give_way(
    guest: Paused, command: MemoryOp, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guest.dispatcher.call, "preempted", lambda _steps: True)
    count, domain = 200, guest.domain
    if command is DECREASE:
        frames = spare(guest, count)
    else:
        frames = list(range(2000, 2000 + count))
        domain.max_pages += count
    array = listed(guest, frames)
    request = guest.put(MemoryReservation(extent_start=array, nr_extents=count, domid=DOMID_SELF).pack())
    before, start, rounds = domain.tot_pages, 0, 0
    while True:
        try:
            assert guest.memory_op(command, request, start) == count
            break
        except Again as again:
            start = interrupted(again, command, request)
        rounds += 1
        assert start == 64 * rounds
        assert domain.tot_pages - before == (-start if command is DECREASE else start)
    assert rounds == 3
    assert guest.machine.audit() == []


# -- exchange ----------------------------------------------------------------------------------------------


def exchange(guest: Paused, given: list[int], wanted: list[int], **other: int) -> tuple[int, int]:
    """memory_exchange; the result, and how far it came."""
    fields = {
        "in_extent_start": listed(guest, given),
        "in_nr_extents": len(given),
        "in_domid": DOMID_SELF,
        "out_extent_start": listed(guest, wanted, WANTED),
        "out_nr_extents": len(wanted),
        "out_domid": DOMID_SELF,
    }
    request = MemoryExchange(**(fields | other))
    result = guest.memory_op(MemoryOp.EXCHANGE, request)
    return result, request.nr_exchanged


def test_exchange(guest: Paused) -> None:
    frames = guest.machine.frames
    assert frames.m2p is not None
    mfn = guest.mfn(guest.page(5))
    pfn = frames.m2p[mfn]
    assert exchange(guest, [mfn], [pfn]) == (-Errno.EINVAL, 0), "it is mapped"
    assert guest.unmap(guest.page(5)) == 0
    assert exchange(guest, [mfn], [pfn]) == (0, 1)
    new = first(guest, WANTED)
    assert frames.m2p[new] == pfn
    assert frames.owner[new] == guest.domain.domid


def test_a_long_exchange_goes_on_where_it_was(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest.dispatcher.call, "preempted", lambda _steps: True)
    count = 150
    fields = {"in_nr_extents": count, "in_domid": DOMID_SELF}
    fields |= {"out_nr_extents": count, "out_domid": DOMID_SELF}
    fields |= {"in_extent_start": listed(guest, spare(guest, count))}
    fields |= {"out_extent_start": listed(guest, list(range(count)), WANTED)}
    request = guest.put(MemoryExchange(**fields).pack())
    how_far = MemoryExchange.layout64.offsets["nr_exchanged"]
    for done in (64, 128):
        with pytest.raises(Again) as again:
            guest.memory_op(MemoryOp.EXCHANGE, request)
        assert interrupted(again.value, MemoryOp.EXCHANGE, request) == 0
        assert guest.words(request + how_far, 1) == (done,)
    assert guest.memory_op(MemoryOp.EXCHANGE, request) == 0
    assert guest.words(request + how_far, 1) == (count,)
    assert guest.machine.audit() == []


def test_exchanges_that_are_refused(guest: Paused) -> None:
    mfn = guest.mfn(guest.page(5))
    assert exchange(guest, [mfn], [1, 2])[0] == -Errno.EINVAL
    assert exchange(guest, [mfn], [1], in_domid=0)[0] == -Errno.EINVAL
    assert exchange(guest, [mfn], [1], nr_exchanged=2)[0] == -Errno.EINVAL
    assert exchange(guest, [mfn], [1], nr_exchanged=1)[0] == 0
    assert exchange(guest, [mfn], [1], in_extent_order=10, out_extent_order=10)[0] == -Errno.EPERM
    assert exchange(guest, [mfn], [1], out_extent_start=0xFFFF800000000000)[0] == -Errno.EFAULT
    assert exchange(guest, [guest.machine.board.zero_frame], [1])[0] == -Errno.EINVAL
    for order in (63, 64, 0xFFFFFFFF):
        result, _ = exchange(guest, [mfn], [1], in_extent_order=order, out_extent_order=order)
        assert result in (-Errno.EINVAL, -Errno.EPERM)
    assert guest.memory_op(MemoryOp.EXCHANGE, UNMAPPED) == -Errno.EFAULT


# -- 32-bit guests: byte by byte ---------------------------------------------------------------------------


@pytest.mark.promise("C-7")
def test_memory_of_32_bit_guests(narrow: Paused) -> None:
    frames, (mfn, other) = narrow.machine.frames, spare(narrow, 2)
    assert frames.m2p is not None

    def call(command: MemoryOp, value: int) -> int:
        array = narrow.put(struct.pack("<I", value), 0x100)
        request = narrow.put(struct.pack("<IIIIHxx", array, 1, 0, 0, DOMID_SELF))
        return narrow.memory_op(command, request)

    def exchange(given: int, wanted: int, count: int = 1, order: int = 0) -> int:
        request = struct.pack(
            "<IIIIHxxIIIIHxxI",
            given, count, order, 0, DOMID_SELF, wanted, count, order, 0, DOMID_SELF, 0,
        )  # fmt: skip
        return narrow.memory_op(MemoryOp.EXCHANGE, narrow.put(request))

    assert call(DECREASE, mfn) == 1
    assert call(POPULATE, 0x123) == 1
    (new,) = struct.unpack("<I", narrow.get(4, 0x100))
    assert frames.m2p[new] == 0x123
    given = narrow.put(struct.pack("<I", other), 0x100)
    wanted = narrow.put(struct.pack("<I", 0x124), 0x200)
    assert exchange(given, wanted) == 0
    (new,) = struct.unpack("<I", narrow.get(4, 0x200))
    assert frames.m2p[new] == 0x124
    assert narrow.get(4, 40) == struct.pack("<I", 1)
    assert exchange(given, wanted, order=10) == -Errno.EPERM
    assert exchange(given, wanted, order=32) == -Errno.EINVAL
    assert exchange(given, wanted, count=1 << 24, order=9) == -Errno.EINVAL
    assert exchange(0xF5800000, wanted) == -Errno.EFAULT
