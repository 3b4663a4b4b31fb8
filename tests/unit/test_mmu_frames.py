# SPDX-License-Identifier: GPL-2.0-only
"""The frame table: allocation, references, one use at a time, and the end of a domain."""

import pytest
from mmu_bench import Bench

from pyhv.abi.domid import DOMID_INVALID, DOMID_XEN
from pyhv.address import Mfn
from pyhv.cpu.ram import Ram
from pyhv.mmu.frames import INVALID_M2P, L1, NONE, SEGDESC, WRITABLE, FrameTable, NoFrames


@pytest.fixture
def frames() -> FrameTable:
    return FrameTable(Ram(64))


def test_frame_zero_is_never_given_out(frames: FrameTable) -> None:
    taken = frames.allocate(1, frames.free_count)
    assert sorted(taken) == list(range(1, 64))
    assert frames.free_count == 0


def test_an_allocated_frame_has_one_reference_and_no_type(frames: FrameTable) -> None:
    (mfn,) = frames.allocate(7)
    assert (frames.owner[mfn], frames.refs[mfn], frames.type_count[mfn]) == (7, 1, 0)
    assert frames.allocated[mfn]
    assert not frames.xen_heap[mfn]
    assert frames.owned_by(7).tolist() == [mfn]


def test_more_than_there_is_cannot_be_had(frames: FrameTable) -> None:
    before = frames.free_count
    with pytest.raises(NoFrames, match="63 free page frames and 64 are wanted"):
        frames.allocate(1, 64)
    assert frames.free_count == before


@pytest.mark.promise("I-11")
def test_a_frame_is_zeroed_and_nobodys_when_its_last_reference_goes(frames: FrameTable) -> None:
    (mfn,) = frames.allocate(1)
    frames.ram.writable.q[mfn << 9] = 0x5EC2E7
    freed: list[tuple[int, int]] = []
    frames.on_free = lambda mfn, owner: freed.append((mfn, owner))
    frames.take(mfn)
    frames.deallocate(mfn)
    assert frames.owner[mfn] == 1
    assert freed == []
    frames.drop(mfn)
    assert frames.owner[mfn] == DOMID_INVALID
    assert freed == [(mfn, 1)]
    assert frames.ram.q[mfn << 9] == 0
    assert frames.allocate(2) == [mfn]


def test_a_frame_has_one_use_at_a_time(frames: FrameTable) -> None:
    (mfn,) = frames.allocate(1)
    assert frames.take_writable(mfn)
    assert frames.take_writable(mfn)
    assert (frames.type[mfn], frames.type_count[mfn], frames.refs[mfn]) == (WRITABLE, 2, 3)
    frames.drop_writable(mfn)
    frames.drop_writable(mfn)
    for other in (L1, SEGDESC):
        frames.type[mfn], frames.type_count[mfn] = other, 1
        assert not frames.take_writable(mfn)
        assert (frames.type_count[mfn], frames.refs[mfn]) == (1, 1)


def test_a_type_without_count_does_not_matter(frames: FrameTable) -> None:
    (mfn,) = frames.allocate(1)
    frames.type[mfn] = L1
    assert frames.take_writable(mfn)


def test_freeing_a_frame_in_use_is_caught(frames: FrameTable) -> None:
    (mfn,) = frames.allocate(1)
    frames.type[mfn], frames.type_count[mfn] = L1, 1
    with pytest.raises(AssertionError, match="used as L1"):
        frames.drop(mfn)


def test_shared_pages_cannot_be_given_back(frames: FrameTable) -> None:
    before = frames.free_count
    mfn = frames.allocate_shared(3)
    assert frames.xen_heap[mfn]
    assert not frames.allocated[mfn]
    assert (frames.type[mfn], frames.type_count[mfn], frames.refs[mfn]) == (WRITABLE, 1, 1)
    assert frames.take_writable(mfn)  # the guest maps it
    frames.drop_writable(mfn)
    frames.drop_shared(mfn)
    assert frames.free_count == before


@pytest.mark.promise("I-10")
def test_a_shared_page_that_is_still_mapped_outlives_its_domain(frames: FrameTable) -> None:
    mfn = frames.allocate_shared(3)
    assert frames.take_writable(mfn)
    frames.drop_shared(mfn)
    assert frames.owner[mfn] == 3
    frames.drop_writable(mfn)
    assert frames.owner[mfn] == DOMID_INVALID


def test_a_dead_domains_frames_are_free_but_for_those_that_others_map() -> None:
    bench = Bench()
    frames, first = bench.frames, bench.domains[0]
    kept, code, *rest = first.take(20)
    frames.take_writable(Mfn(kept))
    frames.code[code] = 1
    for mfn in (kept, code, *rest):
        bench.ram.writable.q[mfn << 9 | 5] = 0x5EC2E7
    before = frames.free_count
    bench.dropped.clear()
    frames.free_allocated(first.domid)
    assert bench.dropped == [code]  # another domain's engine may have run it
    assert not frames.code[code]
    assert frames.free_count == before + 19
    assert frames.owner[kept] == first.domid
    assert not frames.allocated[kept]
    for mfn in (code, *rest):
        assert frames.owner[mfn] == DOMID_INVALID
        assert bench.ram.q[mfn << 9 | 5] == 0
        assert bench.m2p.table[mfn] == INVALID_M2P
    assert frames.refs[kept] == 1
    frames.drop_writable(Mfn(kept))
    assert frames.free_count == before + 20
    assert len(set(frames.free_list().tolist())) == frames.free_count


def test_the_hypervisors_frames_are_no_guests(frames: FrameTable) -> None:
    mfns = frames.allocate_xen(3)
    assert [frames.owner[mfn] for mfn in mfns] == [DOMID_XEN] * 3
    assert all(frames.xen_heap[mfn] for mfn in mfns)


def test_frames_are_described_for_people(frames: FrameTable) -> None:
    (mfn,) = frames.allocate(9)
    assert frames.describe(mfn) == f"mfn {mfn:#x} (owner d9, untyped x0, refs 1)"
    frames.take_writable(mfn)
    assert "writable x1" in frames.describe(mfn)
    frames.pinned[mfn] = 1
    assert "pinned" in frames.describe(mfn)
    for nowhere in (-1, 0, 64, 1 << 70):
        assert "no such frame" in frames.describe(nowhere)


def test_both_views_of_a_column_are_the_same_bytes(frames: FrameTable) -> None:
    frames.refs[5] = 77
    frames.type_count_np[6] = 88
    frames.owner_np[7] = 99
    assert (frames.refs_np[5], frames.type_count[6], frames.owner[7]) == (77, 88, 99)
    assert frames.type[5] == NONE
