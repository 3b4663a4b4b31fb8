# SPDX-License-Identifier: GPL-2.0-only
"""Page-table updates of a guest: each rule and error code, and that a refusal leaves no trace."""

import pytest
from mmu_bench import LINEAR, RO, RW, RX, UPPER, BareDomain, Bench, refused

from pyhv.abi.errno import Errno
from pyhv.abi.x86 import (
    PTE_A,
    PTE_AVAIL,
    PTE_D,
    PTE_G,
    PTE_GUEST_KERNEL,
    PTE_MFN_MASK,
    PTE_NX,
    PTE_P,
    PTE_PAT,
    PTE_PCD,
    PTE_PSE,
    PTE_PWT,
    PTE_RW,
    PTE_SOFT_HIGH,
    PTE_US,
)
from pyhv.address import Mfn
from pyhv.mmu.frames import L1, L2, L3, L4, WRITABLE
from pyhv.mmu.tables import MOST_FLUSH_PAGES


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.fixture
def guest(bench: Bench) -> BareDomain:
    return bench.domains[0]


def pinned_l1(guest: BareDomain) -> int:
    """An empty, pinned L1."""
    l1 = guest.table()
    guest.tables.pin(l1, L1)
    return l1


# -- leaf entries ------------------------------------------------------------------------------------------


def test_a_writable_leaf_holds_a_writable_reference(bench: Bench, guest: BareDomain) -> None:
    l1, page = pinned_l1(guest), guest.one()
    guest.tables.update_l1(l1 << 12, page << 12 | RW)
    frames = bench.frames
    assert (frames.type[page], frames.type_count[page], frames.refs[page]) == (WRITABLE, 1, 2)
    assert bench.audit() == []
    guest.tables.update_l1(l1 << 12, 0)
    assert (frames.type_count[page], frames.refs[page]) == (0, 1)


@pytest.mark.promise("I-2")
def test_a_table_may_be_looked_at_but_not_written(bench: Bench, guest: BareDomain) -> None:
    l1 = pinned_l1(guest)
    guest.tables.update_l1(l1 << 12, l1 << 12 | RO)
    with refused(Errno.EBUSY, bench):
        guest.tables.update_l1(l1 << 12 | 8, l1 << 12 | RW)
    assert bench.q(l1, 1) == 0


def test_making_a_read_only_leaf_writable_is_approved_anew(bench: Bench, guest: BareDomain) -> None:
    l1, table = pinned_l1(guest), pinned_l1(guest)
    guest.tables.update_l1(l1 << 12, table << 12 | RO)
    with refused(Errno.EBUSY, bench):
        guest.tables.update_l1(l1 << 12, table << 12 | RW)


@pytest.mark.parametrize("bit", [PTE_PWT, PTE_PCD, PTE_PAT])
def test_cache_attributes_are_refused(bench: Bench, guest: BareDomain, bit: int) -> None:
    l1, page = pinned_l1(guest), guest.one()
    with refused(Errno.EINVAL, bench):
        guest.tables.update_l1(l1 << 12, page << 12 | RW | bit)
    loose = guest.table((3, page << 12 | RW | bit))
    with refused(Errno.EINVAL, bench):
        guest.tables.pin(loose, L1)


def outside(bench: Bench) -> dict[str, tuple[int, Errno]]:
    """Frame numbers that no leaf may have, and what each is refused with."""
    return {
        "frame 0": (0, Errno.EPERM),
        "beyond RAM": (bench.frames.count, Errno.EPERM),
        "far beyond RAM": (PTE_MFN_MASK >> 13, Errno.EPERM),
        "all ones": (PTE_MFN_MASK >> 12, Errno.EINVAL),
        "another guest's": (bench.domains[1].one(), Errno.EBUSY),
        "another guest's shared_info": (bench.domains[1].shared_info.mfn, Errno.EBUSY),
        "the hypervisor's": (bench.m2p.frames[0], Errno.EBUSY),
        "nobody's": (int(bench.frames.free_list()[0]), Errno.EBUSY),
    }


@pytest.mark.promise("I-1")
@pytest.mark.parametrize("flags", [RO, RW])
@pytest.mark.parametrize("which", list(outside(Bench())))
def test_a_leaf_points_to_own_memory_only(bench: Bench, guest: BareDomain, which: str, flags: int) -> None:
    l1 = pinned_l1(guest)
    mfn, errno = outside(bench)[which]
    with refused(errno, bench):
        guest.tables.update_l1(l1 << 12, mfn << 12 | flags)
    loose = guest.table((9, guest.one() << 12 | RW), (10, mfn << 12 | flags))
    with refused(errno, bench):
        guest.tables.pin(loose, L1)
    guest.tables.update_l1(l1 << 12, mfn << 12 | flags & ~PTE_P)  # not present: anything goes
    assert bench.q(l1, 0) == mfn << 12 | flags & ~PTE_P


def test_the_own_shared_info_can_be_mapped_writable(bench: Bench, guest: BareDomain) -> None:
    l1 = pinned_l1(guest)
    guest.tables.update_l1(l1 << 12, guest.shared_info.mfn << 12 | RW)
    assert bench.audit() == []


def test_a_refused_update_keeps_the_old_entry(bench: Bench, guest: BareDomain) -> None:
    l1, page = pinned_l1(guest), guest.one()
    guest.tables.update_l1(l1 << 12, page << 12 | RW)
    old = bench.q(l1, 0)
    with refused(Errno.EBUSY, bench):
        guest.tables.update_l1(l1 << 12, l1 << 12 | RW)
    assert bench.q(l1, 0) == old


def test_leaves_are_adjusted(bench: Bench, guest: BareDomain) -> None:
    page = guest.one()
    kernel, user = page << 12 | PTE_P | PTE_NX, page << 12 | PTE_P | PTE_US | PTE_NX
    both = page << 12 | PTE_P | PTE_US | PTE_NX | PTE_GUEST_KERNEL
    wanted = [kernel | PTE_US | PTE_GUEST_KERNEL, user | PTE_G, both]
    l1 = pinned_l1(guest)
    for slot, entry in enumerate((kernel, user, both)):
        guest.tables.update_l1(l1 << 12 | slot << 3, entry)
    assert [bench.q(l1, slot) for slot in range(3)] == wanted
    loose = guest.table((0, kernel), (1, user), (2, both), (3, kernel & ~PTE_P))
    guest.tables.pin(loose, L1)
    assert [bench.q(loose, slot) for slot in range(4)] == [*wanted, kernel & ~PTE_P]


@pytest.mark.parametrize(
    "bits",
    [PTE_A, PTE_D, PTE_G, PTE_AVAIL, PTE_NX, PTE_SOFT_HIGH & ~PTE_GUEST_KERNEL, PTE_A | PTE_D | PTE_NX],
)
def test_harmless_bits_change_without_new_approval(bench: Bench, guest: BareDomain, bits: int) -> None:
    l1, page = pinned_l1(guest), guest.one()
    guest.tables.update_l1(l1 << 12, page << 12 | RW)
    for entry in (page << 12 | RW ^ bits, page << 12 | RW):
        guest.tables.update_l1(l1 << 12, entry)
        assert bench.q(l1, 0) & ~PTE_G == entry & ~PTE_G
        assert bench.frames.type_count[page] == 1
        assert bench.audit() == []


def test_preserve_ad_keeps_what_the_processor_set(bench: Bench, guest: BareDomain) -> None:
    l1, page, other = pinned_l1(guest), guest.one(), guest.one()
    clean = PTE_P | PTE_RW | PTE_US | PTE_NX
    for target in (page, other):
        guest.tables.update_l1(l1 << 12, page << 12 | clean)
        bench.ram.writable.q[l1 << 9] |= PTE_A | PTE_D
        guest.tables.update_l1(l1 << 12, target << 12 | clean, preserve_ad=True)
        assert bench.q(l1, 0) & (PTE_A | PTE_D) == PTE_A | PTE_D
        guest.tables.update_l1(l1 << 12, target << 12 | clean)
        assert bench.q(l1, 0) & (PTE_A | PTE_D) == 0


def test_executable_mappings_are_counted(bench: Bench, guest: BareDomain) -> None:
    l1, page = pinned_l1(guest), guest.one()
    frames = bench.frames
    guest.tables.update_l1(l1 << 12, page << 12 | RX)
    guest.tables.update_l1(l1 << 12 | 8, page << 12 | RX)
    assert (frames.exec_count[page], frames.code[page]) == (2, 1)
    guest.tables.update_l1(l1 << 12, page << 12 | RO)
    assert (frames.exec_count[page], frames.code[page]) == (1, 1)
    guest.tables.update_l1(l1 << 12, page << 12 | RX)
    assert frames.exec_count[page] == 2
    guest.tables.unpin(l1)
    assert (frames.exec_count[page], frames.code[page]) == (0, 1)  # translations may still be there
    assert bench.audit() == []


def test_writing_a_table_that_holds_code_drops_its_translations(bench: Bench, guest: BareDomain) -> None:
    l1, page = pinned_l1(guest), guest.one()
    guest.tables.update_l1(l1 << 12, l1 << 12 | RX)
    bench.dropped.clear()
    guest.tables.update_l1(l1 << 12 | 8, page << 12 | RO)
    assert bench.dropped == [l1]


# -- upper entries -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [L2, L3, L4])
@pytest.mark.parametrize("bit", [PTE_PWT, PTE_PCD, PTE_PSE, PTE_G])
def test_upper_entries_have_no_special_bits(bench: Bench, guest: BareDomain, level: int, bit: int) -> None:
    child, table = guest.table(), guest.table()
    guest.tables.pin(table, level)
    with refused(Errno.EINVAL, bench):
        guest.tables.update_upper(table << 12, level, child << 12 | UPPER | bit)
    loose = guest.table((0, child << 12 | UPPER | bit))
    with refused(Errno.EINVAL, bench):
        guest.tables.pin(loose, level)


@pytest.mark.parametrize("level", [L2, L3, L4])
def test_upper_entries_link_own_tables(bench: Bench, guest: BareDomain, level: int) -> None:
    child, table = guest.table(), guest.table()
    guest.tables.pin(table, level)
    guest.tables.update_upper(table << 12, level, child << 12 | PTE_P | PTE_RW)
    frames = bench.frames
    assert (frames.type[child], frames.type_count[child]) == (level - 1, 1)
    adjusted = PTE_US | PTE_A if level == L4 else PTE_US
    assert bench.q(table, 0) == child << 12 | PTE_P | PTE_RW | adjusted
    assert bench.audit() == []
    guest.tables.update_upper(table << 12, level, 0)
    assert frames.type_count[child] == 0


@pytest.mark.promise("I-1")
@pytest.mark.parametrize("level", [L2, L3, L4])
@pytest.mark.parametrize("which", list(outside(Bench())))
def test_upper_entries_point_to_own_memory_only(
    bench: Bench, guest: BareDomain, level: int, which: str
) -> None:
    table = guest.table()
    guest.tables.pin(table, level)
    mfn, _ = outside(bench)[which]
    with refused(Errno.EINVAL, bench):
        guest.tables.update_upper(table << 12, level, mfn << 12 | UPPER)


@pytest.mark.promise("I-2")
def test_a_page_that_is_mapped_writable_is_no_table(bench: Bench, guest: BareDomain) -> None:
    l1, page, l2 = pinned_l1(guest), guest.one(), guest.table()
    guest.tables.update_l1(l1 << 12, page << 12 | RW)
    guest.tables.pin(l2, L2)
    with refused(Errno.EINVAL, bench):
        guest.tables.update_upper(l2 << 12, L2, page << 12 | UPPER)
    with refused(Errno.EINVAL, bench):
        guest.tables.pin(page, L1)
    with refused(Errno.EINVAL, bench):
        guest.tables.pin(guest.shared_info.mfn, L1)


def test_a_childs_refusal_is_the_answer(bench: Bench, guest: BareDomain) -> None:
    """PIN_L4 returns EBUSY because of a leaf three levels below."""
    l4, l3, l2, l1 = guest.chain(0)
    bench.ram.writable.q[l1 << 9 | 7] = l2 << 12 | RW
    with refused(Errno.EBUSY, bench):
        guest.tables.pin(l4, L4)
    bench.ram.writable.q[l1 << 9 | 7] = l2 << 12 | RO
    guest.tables.pin(l4, L4)
    assert [bench.frames.type[mfn] for mfn in (l4, l3, l2, l1)] == [L4, L3, L2, L1]
    assert bench.audit() == []


def test_a_frame_is_a_table_of_one_level(bench: Bench, guest: BareDomain) -> None:
    l2, other = guest.table(), guest.table()
    guest.tables.pin(l2, L2)
    guest.tables.pin(other, L3)
    with refused(Errno.EINVAL, bench):
        guest.tables.update_upper(l2 << 12, L2, other << 12 | UPPER)
    for level in (L1, L3, L4):
        with refused(Errno.EINVAL, bench):
            guest.tables.pin(l2, level)


def test_one_l1_under_several_l2s(bench: Bench, guest: BareDomain) -> None:
    page = guest.one()
    l1 = guest.table((0, page << 12 | RW))
    l2s = [guest.table((slot, l1 << 12 | UPPER)) for slot in range(3)]
    for l2 in l2s:
        guest.tables.pin(l2, L2)
    assert (bench.frames.type_count[l1], bench.frames.type_count[page]) == (3, 1)
    for l2 in l2s:
        guest.tables.unpin(l2)
    assert bench.frames.type_count[page] == 0
    assert bench.audit() == []


@pytest.mark.promise("I-4")
def test_the_hypervisors_slots(bench: Bench, guest: BareDomain) -> None:
    l4 = guest.table((256, 0xDEAD << 12 | UPPER), (271, UPPER), (272, 0))
    guest.tables.pin(l4, L4)  # ignored at validation, and wiped
    assert [bench.q(l4, slot) for slot in (256, 271)] == [0, 0]
    for slot in (256, 260, 271):
        for entry in (0, guest.table() << 12 | UPPER):
            with refused(Errno.EINVAL, bench):
                guest.tables.update_upper(l4 << 12 | slot << 3, L4, entry)
    for slot in (255, 272, 511):
        guest.tables.update_upper(l4 << 12 | slot << 3, L4, guest.table() << 12 | UPPER)
    l3 = guest.table()
    guest.tables.pin(l3, L3)
    guest.tables.update_upper(l3 << 12 | 260 << 3, L3, guest.table() << 12 | UPPER)
    assert bench.audit() == []


# -- linear entries ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("level", [L2, L3, L4])
def test_a_table_may_map_itself_read_only(bench: Bench, guest: BareDomain, level: int) -> None:
    table = guest.table()
    bench.ram.writable.q[table << 9 | 1] = table << 12 | LINEAR
    guest.tables.pin(table, level)
    assert bench.frames.type_count[table] == 1
    assert bench.audit() == []
    with refused(Errno.EINVAL, bench):
        guest.tables.update_upper(table << 12 | 8, level, table << 12 | LINEAR | PTE_RW)
    with refused(Errno.EINVAL, bench):
        guest.tables.update_upper(table << 12 | 16, level, table << 12 | LINEAR | PTE_RW)
    guest.tables.update_upper(table << 12 | 8, level, 0)
    guest.tables.unpin(table)
    bench.ram.writable.q[table << 9 | 1] = table << 12 | LINEAR | PTE_RW
    with refused(Errno.EINVAL, bench):
        guest.tables.pin(table, level)


@pytest.mark.parametrize("level", [L2, L3, L4])
def test_linear_entries_go_one_step(bench: Bench, guest: BareDomain, level: int) -> None:
    a, b, c = (guest.table() for _ in range(3))
    for table in (a, b, c):
        guest.tables.pin(table, level)
    update = guest.tables.update_upper
    with refused(Errno.EINVAL, bench):
        update(a << 12, level, b << 12 | LINEAR | PTE_RW)
    update(a << 12, level, b << 12 | LINEAR)
    assert bench.frames.type_count[b] == 2
    with refused(Errno.EINVAL, bench):
        update(b << 12, level, c << 12 | LINEAR)  # a -> b -> c
    with refused(Errno.EINVAL, bench):
        update(c << 12, level, a << 12 | LINEAR)  # c -> a -> b
    update(c << 12, level, b << 12 | LINEAR)
    assert bench.audit() == []
    update(a << 12, level, 0)
    update(c << 12, level, 0)
    update(b << 12, level, c << 12 | LINEAR)
    assert bench.audit() == []


def test_a_linear_entry_keeps_its_target_a_table(bench: Bench, guest: BareDomain) -> None:
    a, b, l1 = guest.table(), guest.table(), pinned_l1(guest)
    guest.tables.pin(b, L2)
    bench.ram.writable.q[a << 9] = b << 12 | LINEAR
    guest.tables.pin(a, L2)
    guest.tables.unpin(b)
    with refused(Errno.EBUSY, bench):
        guest.tables.update_l1(l1 << 12, b << 12 | RW)
    guest.tables.unpin(a)
    guest.tables.update_l1(l1 << 12, b << 12 | RW)
    assert bench.audit() == []


def test_a_failed_validation_forgets_its_linear_entries(bench: Bench, guest: BareDomain) -> None:
    a, b = guest.table(), guest.table()
    guest.tables.pin(b, L2)
    bench.ram.writable.q[a << 9] = b << 12 | LINEAR
    bench.ram.writable.q[a << 9 | 1] = bench.domains[1].one() << 12 | UPPER
    with refused(Errno.EINVAL, bench):
        guest.tables.pin(a, L2)


# -- promotion, demotion, pins -----------------------------------------------------------------------------


def test_a_failed_validation_leaves_no_trace(bench: Bench, guest: BareDomain) -> None:
    """Whatever was taken before the bad entry is dropped again, through all levels."""
    page, code = guest.one(), guest.one()
    l1 = guest.table((0, page << 12 | RW), (1, code << 12 | RX))
    good = guest.table((0, l1 << 12 | UPPER), (5, l1 << 12 | UPPER))
    bad_l1 = guest.table((0, page << 12 | RW), (511, guest.one() << 12 | RW | PTE_PCD))
    bad = guest.table((0, l1 << 12 | UPPER), (1, bad_l1 << 12 | UPPER))
    l3 = guest.table((0, good << 12 | UPPER), (1, bad << 12 | UPPER))
    l4 = guest.table((0, l3 << 12 | UPPER))
    with refused(Errno.EINVAL, bench):
        guest.tables.pin(l4, L4)
    assert bench.frames.type_count[page] == 0


def test_pins(bench: Bench, guest: BareDomain) -> None:
    l1 = pinned_l1(guest)
    with refused(Errno.EINVAL, bench):
        guest.tables.pin(l1, L1)
    guest.tables.unpin(l1)
    with refused(Errno.EINVAL, bench):
        guest.tables.unpin(l1)
    for mfn in (0, (1 << 64) - 1, bench.frames.count, 1 << 52, bench.domains[1].one(), bench.m2p.frames[0]):
        with refused(Errno.EINVAL, bench):
            guest.tables.pin(mfn, L1)
        with refused(Errno.EINVAL, bench):
            guest.tables.unpin(mfn)
    theirs = bench.domains[1].table()
    bench.domains[1].tables.pin(theirs, L1)
    with refused(Errno.EINVAL, bench):
        guest.tables.unpin(theirs)


def test_a_pinned_table_outlives_its_last_link(bench: Bench, guest: BareDomain) -> None:
    l4, l3, _, _ = guest.chain(0)
    guest.use(l4)
    guest.tables.pin(l3, L3)
    guest.tables.update_upper(l4 << 12, L4, 0)
    assert bench.frames.type_count[l3] == 1
    guest.tables.unpin(l3)
    assert bench.frames.type_count[l3] == 0
    assert bench.audit() == []


def test_an_unlinked_table_can_be_written_at_once(bench: Bench, guest: BareDomain) -> None:
    """What Linux does with the builder's tables: unpin, switch, map writable."""
    page = guest.one()
    old, new = guest.chain(page << 12 | RO), guest.chain(page << 12 | RO)
    guest.tables.pin(old[0], L4)
    guest.use(old[0])
    guest.tables.pin(new[0], L4)
    guest.tables.unpin(old[0])
    guest.use(new[0])
    for slot, mfn in enumerate(old):
        guest.tables.update_l1(new[3] << 12 | slot + 1 << 3, mfn << 12 | RW)
    assert bench.audit() == []


def test_a_frame_given_back_stays_until_it_is_unused(bench: Bench, guest: BareDomain) -> None:
    l1, page = pinned_l1(guest), guest.one()
    guest.tables.update_l1(l1 << 12, page << 12 | RW)
    before = bench.frames.free_count
    bench.frames.deallocate(Mfn(page))
    bench.frames.deallocate(Mfn(l1))
    assert bench.frames.free_count == before
    assert bench.audit() == []
    guest.tables.unpin(l1)
    assert bench.frames.free_count == before + 2
    assert bench.audit() == []


def test_many_leaves_of_one_frame_in_one_table(bench: Bench, guest: BareDomain) -> None:
    page = guest.one()
    l1 = guest.table(*((slot, page << 12 | (RW if slot % 2 else RX)) for slot in range(512)))
    guest.tables.pin(l1, L1)
    frames = bench.frames
    assert (frames.type_count[page], frames.refs[page], frames.exec_count[page]) == (256, 513, 256)
    frames.deallocate(Mfn(page))
    guest.tables.unpin(l1)
    assert frames.owner[page] != guest.domid
    assert bench.audit() == []


# -- flushes -----------------------------------------------------------------------------------------------


@pytest.mark.promise("I-2")
def test_narrowing_a_leaf_is_remembered_until_a_flush(bench: Bench, guest: BareDomain) -> None:
    l1, page = pinned_l1(guest), guest.one()
    tables = guest.tables
    tables.flushed()
    tables.update_l1(l1 << 12, page << 12 | RW)
    assert not tables.stale
    tables.update_l1(l1 << 12, page << 12 | RO)
    assert tables.stale
    assert not tables.flush
    tables.pin(guest.table(), L1)  # a new table: a stale writable mapping of it must go first
    assert tables.flush
    tables.flushed()
    assert not tables.stale


@pytest.mark.parametrize("bit", [PTE_A, PTE_D])
def test_what_the_processor_notes_is_noted_anew_once_it_is_cleared(guest: BareDomain, bit: int) -> None:
    l1, entry = pinned_l1(guest), guest.one() << 12 | RW | PTE_A | PTE_D
    tables = guest.tables
    tables.update_l1(l1 << 12, entry)
    tables.flushed()
    tables.update_l1(l1 << 12, entry & ~bit, preserve_ad=True)
    assert not tables.flush
    tables.update_l1(l1 << 12, entry & ~bit)
    assert tables.flush


@pytest.mark.parametrize(("old", "new"), [(RX, RO), (RW, RW & ~PTE_D), (RW, RW & ~PTE_A)])
def test_narrowing_harmless_bits_too(bench: Bench, guest: BareDomain, old: int, new: int) -> None:
    l1, page = pinned_l1(guest), guest.one()
    guest.tables.update_l1(l1 << 12, page << 12 | old)
    guest.tables.flushed()
    guest.tables.update_l1(l1 << 12, page << 12 | new)
    assert guest.tables.stale


def test_upper_changes_and_demotions_flush(bench: Bench, guest: BareDomain) -> None:
    l4, l3, _, _ = guest.chain(guest.one() << 12 | RW)
    guest.use(l4)
    guest.tables.flushed()
    guest.tables.update_upper(l4 << 12 | 8, L4, l3 << 12 | UPPER)
    assert guest.tables.flush
    table = pinned_l1(guest)
    guest.tables.flushed()
    guest.tables.unpin(table)
    assert guest.tables.flush


def test_a_foreign_leaf_is_flushed_when_it_goes(bench: Bench, guest: BareDomain) -> None:
    """Its owner may free or retype the frame and knows nothing of our TLB."""
    theirs, page, l1 = bench.domains[1].one(), guest.one(), pinned_l1(guest)
    bench.frames.take_writable(Mfn(theirs))
    guest.tables.map_granted(l1 << 12, theirs << 12 | RW)
    guest.tables.flushed()
    guest.tables.update_l1(l1 << 12, page << 12 | RW)
    assert guest.tables.flush
    assert bench.frames.type_count[theirs] == 0


def test_single_pages_become_a_full_flush(guest: BareDomain) -> None:
    for page in range(MOST_FLUSH_PAGES):
        guest.tables.flush_page(page << 12)
    assert not guest.tables.flush
    for page in range(1000):
        guest.tables.flush_page(page << 12)
    assert guest.tables.flush
    assert len(guest.tables.flush_pages) == MOST_FLUSH_PAGES
    guest.tables.flushed()
    assert not guest.tables.flush_pages


# -- plain stores and granted leaves -----------------------------------------------------------------------


def test_an_untyped_frame_can_be_prepared(bench: Bench, guest: BareDomain) -> None:
    mfn = guest.one()
    guest.tables.write_plain(mfn << 12 | 8, 0x1234)
    assert bench.q(mfn, 1) == 0x1234
    assert (bench.frames.type_count[mfn], bench.frames.refs[mfn]) == (0, 1)
    guest.tables.pin(mfn, L1)
    with refused(Errno.EINVAL, bench):
        guest.tables.write_plain(mfn << 12 | 8, 0x5678)
    assert bench.q(mfn, 1) == 0x1234


def test_replacing_a_leaf_drops_the_old_one(bench: Bench, guest: BareDomain) -> None:
    l1, page, theirs = pinned_l1(guest), guest.one(), bench.domains[1].one()
    guest.tables.update_l1(l1 << 12, page << 12 | RW)
    bench.frames.take(Mfn(theirs))
    guest.tables.map_granted(l1 << 12, theirs << 12 | RO)
    assert (bench.frames.type_count[page], bench.frames.refs[theirs]) == (0, 2)
    with refused(Errno.EBUSY):  # the guest cannot widen what was granted
        guest.tables.update_l1(l1 << 12, theirs << 12 | RW)
    guest.tables.replace_leaf(l1 << 12, 0)
    assert bench.frames.refs[theirs] == 1
