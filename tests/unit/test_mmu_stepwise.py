# SPDX-License-Identifier: GPL-2.0-only
"""Large trees of page tables in steps: the same answers and the same counts as at once."""

from collections.abc import Iterator

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from mmu_bench import UPPER, Bench

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall
from pyhv.abi.structs import MmuextOp
from pyhv.abi.x86 import PTE_P, PTE_RW
from pyhv.errors import XenError
from pyhv.hypercalls.context import Again
from pyhv.mmu import stepwise
from pyhv.mmu.budget import IN_STEPS, UNBOUNDED, Budget, TooMuch
from pyhv.mmu.frames import L1, L2, L3, L4
from pyhv.testing.guest_machine import Paused, paused

PIN_L2, PIN_L3, UNPIN = 1, 2, 4
EINVAL = -Errno.EINVAL
POOL = 9


# -- random graphs, at once and in steps -------------------------------------------------------------------


def outcome(bench: Bench, mfn: int, level: int, pauses: list[bool] | None) -> int:
    """The errno of pinning, 0 for none; in steps if it is said where to pause."""
    owner = bench.domains[0].tables
    try:
        if pauses is None:
            owner.pin(mfn, level)
            return 0
        with owner.within(IN_STEPS):
            _pin_in_steps(bench, mfn, level, pauses)
    except XenError as error:
        return error.errno
    finally:
        with owner.within(IN_STEPS):
            stepwise.settle(owner)
        assert owner.budget == UNBOUNDED
    return 0


def _pin_in_steps(bench: Bench, mfn: int, level: int, pauses: list[bool]) -> None:
    owner, left = bench.domains[0].tables, iter(pauses)
    owner.take_work()
    try:
        with owner.within(Budget(approve=1, in_steps=True)):
            owner.pin(mfn, level)
        return
    except TooMuch as big:
        root = big.root
    while not stepwise.approve(owner, *root, lambda: next(left, False)):
        assert bench.audit() == []
    try:
        owner.pin(mfn, level)
    finally:
        stepwise.drop_ahead(owner)


ENTRIES = st.lists(
    st.tuples(
        st.integers(0, POOL - 1), st.integers(0, 3), st.integers(0, POOL),
        st.sampled_from([UPPER, UPPER, PTE_P, PTE_P | PTE_RW, UPPER | 1 << 7]),
    ),
    max_size=25,
)  # fmt: skip


@pytest.mark.parametrize("width", [64, 32])
@given(
    entries=ENTRIES, at=st.integers(0, POOL - 1), level=st.sampled_from([L1, L2, L3, L4]),
    first=st.integers(0, POOL - 1), pauses=st.lists(st.booleans(), max_size=30),
)  # fmt: skip
@settings(max_examples=120, deadline=None)
def test_steps_change_nothing(
    width: int,
    entries: list[tuple[int, int, int, int]],
    at: int,
    level: int,
    first: int,
    pauses: list[bool],
) -> None:
    """A tree that is bad in several ways may be refused for another of them: deep tables come first."""
    if width == 32 and level == L4:
        return
    found = []
    for how in (None, pauses):
        bench = Bench(160, domains=2, width=width)
        mine = bench.domains[0].take(POOL)
        pool = [*mine, bench.domains[1].one()]
        for table, slot, target, bits in entries:
            bench.ram.writable.q[pool[table] << 9 | slot] = pool[target] << 12 | bits
        one = outcome(bench, pool[first], L1, how)
        two = outcome(bench, pool[at], level, how)
        assert bench.audit() == []
        found.append((one, two == 0, bench.counts()))
    assert found[0] == found[1]


# -- hypercalls --------------------------------------------------------------------------------------------


@pytest.fixture
def guest(monkeypatch: pytest.MonkeyPatch) -> Iterator[Paused]:
    with paused(pages=4096) as made:
        yield made


def tree(guest: Paused, *, bad: bool = False) -> tuple[int, int]:
    """An L2 over 512 empty L1s, none of them a table yet, and one more frame."""
    frames = guest.machine.frames
    own = frames.owned_by(guest.domain.domid)
    free = [int(mfn) for mfn in own if frames.refs[mfn] == 1 and not frames.xen_heap[mfn]]
    l2, spare, *l1s = free[:514]
    for slot, l1 in enumerate(l1s):
        guest.domain.ram.writable.q[l2 << 9 | slot] = l1 << 12 | UPPER
    if bad:
        guest.domain.ram.writable.q[l2 << 9 | 511] = guest.machine.board.zero_frame << 12 | UPPER
    return l2, spare


def operation(guest: Paused, command: int, mfn: int) -> tuple[int, ...]:
    raw = MmuextOp(cmd=command, arg1=mfn).pack()
    return (guest.put(raw, 0x4000), 1, guest.put(bytes(4), 0x4100), DOMID_SELF)


def persevere(
    guest: Paused, arguments: tuple[int, ...], number: int = Hypercall.MMUEXT_OP
) -> tuple[int, int]:
    """Make a call until it is done; its result and how often it was interrupted. Sound all the time."""
    interrupted = 0
    while True:
        try:
            return guest.call(number, *arguments), interrupted
        except Again as again:
            arguments = again.arguments
            interrupted += 1
            if interrupted % 97 == 0:
                assert guest.machine.audit() == []


@pytest.mark.promise("T-5")
def test_pin_and_unpin_give_way(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest.machine.clock, "work", lambda _ns: True)
    l2, _ = tree(guest)
    frames = guest.machine.frames
    before = frames.type_count_np.copy()
    result, interrupted = persevere(guest, operation(guest, PIN_L2, l2))
    assert result == 0
    assert interrupted > 400
    assert frames.pinned[l2]
    assert guest.domain.memory.read_u32(guest.scratch + 0x4100) == 1
    assert guest.domain.tables.held_tables() == []
    result, interrupted = persevere(guest, operation(guest, UNPIN, l2))
    assert result == 0
    assert interrupted > 400
    assert (frames.type_count_np == before).all()


def test_with_time_left_it_is_one_call(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest.machine.clock, "work", lambda _ns: False)
    l2, _ = tree(guest)
    assert persevere(guest, operation(guest, PIN_L2, l2)) == (0, 0)
    assert persevere(guest, operation(guest, UNPIN, l2)) == (0, 0)


def test_an_entry_that_brings_a_tree(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    """mmu_update of one L3 entry approves it in steps, and drops it in steps."""
    monkeypatch.setattr(guest.machine.clock, "work", lambda _ns: True)
    l2, l3 = tree(guest)
    assert persevere(guest, operation(guest, PIN_L3, l3)) == (0, 0)
    for value, kind in ((l2 << 12 | UPPER, L2), (0, 0)):
        request = (l3 << 12 | 8).to_bytes(8, "little") + value.to_bytes(8, "little")
        arguments = (guest.put(request, 0x4000), 1, guest.put(bytes(4), 0x4100), DOMID_SELF)
        result, interrupted = persevere(guest, arguments, Hypercall.MMU_UPDATE)
        assert result == 0
        assert interrupted > 400
        frames = guest.machine.frames
        assert (frames.type[l2] if frames.type_count[l2] else 0) == kind


def test_a_tree_that_is_refused_in_the_end(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest.machine.clock, "work", lambda _ns: True)
    l2, _ = tree(guest, bad=True)
    before = guest.machine.frames.type_count_np.copy()
    assert persevere(guest, operation(guest, PIN_L2, l2))[0] == EINVAL
    assert guest.machine.audit() == []
    # What is left of it goes with the next list.
    assert persevere(guest, operation(guest, UNPIN, l2))[0] == EINVAL
    assert (guest.machine.frames.type_count_np == before).all()


@pytest.mark.parametrize("command", [PIN_L2, UNPIN])
def test_who_never_comes_back_leaves_nothing(
    guest: Paused, monkeypatch: pytest.MonkeyPatch, command: int
) -> None:
    l2, _ = tree(guest)
    monkeypatch.setattr(guest.machine.clock, "work", lambda _ns: False)
    if command == UNPIN:
        assert persevere(guest, operation(guest, PIN_L2, l2)) == (0, 0)
    monkeypatch.setattr(guest.machine.clock, "work", lambda _ns: True)
    arguments = operation(guest, command, l2)
    for _ in range(5):
        with pytest.raises(Again) as caught:
            guest.call(Hypercall.MMUEXT_OP, *arguments)
        arguments = caught.value.arguments
    assert guest.domain.tables.held_tables()
    guest.machine.services.crash(guest.domain, "it went away")
    guest.machine.run()
    assert guest.machine.audit() == []
    assert not (guest.machine.frames.owner_np == guest.domain.domid).any()
