# SPDX-License-Identifier: GPL-2.0-only
"""PAE page tables: the L3 of four entries, the hypervisor's part of the last L2, and what differs below."""

import contextlib
from collections.abc import Callable

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule
from mmu_bench import LINEAR, RO, RW, UPPER, BareDomain, Bench, refused

from pyhv.abi.errno import Errno
from pyhv.abi.x86 import PTE_A, PTE_G, PTE_GUEST_KERNEL, PTE_NX, PTE_P, PTE_PCD, PTE_PSE, PTE_RW, PTE_US
from pyhv.address import Mfn
from pyhv.errors import XenError
from pyhv.mmu.frames import L1, L2, L3
from pyhv.mmu.memory import walk
from pyhv.mmu.pae import PaePageTables
from pyhv.mmu.paging import COMPAT, COMPAT_FIRST_SLOT

M2P = 0xF580_0000
FRAMES = 700


@pytest.fixture
def bench() -> Bench:
    return Bench(FRAMES, width=32)


@pytest.fixture
def guest(bench: Bench) -> BareDomain:
    return bench.domains[0]


def entry(table: int, slot: int) -> int:
    return table << 12 | slot << 3


class TestTheTop:
    def test_a_good_one(self, bench: Bench, guest: BareDomain) -> None:
        data = guest.one()
        top, last, first, l1 = guest.pae(data << 12 | RW)
        guest.tables.pin(top, L3)
        frames = bench.frames
        assert [frames.type[mfn] for mfn in (top, last, first, l1)] == [L3, L2, L2, L1]
        assert (frames.last_l2[last], frames.last_l2[first]) == (1, 0)
        assert bench.audit() == []

    def test_reading_back(self, bench: Bench, guest: BareDomain) -> None:
        """An L3 entry gets all rights; L2 and L1 stay as they were written."""
        leaf = guest.one() << 12 | PTE_P | PTE_RW | PTE_NX
        top, _, first, l1 = guest.pae(leaf)
        guest.tables.pin(top, L3)
        assert bench.q(top, 0) == first << 12 | PTE_P | PTE_RW | PTE_US
        assert bench.q(l1, 0) == leaf
        supervisor = guest.one() << 12 | PTE_P | PTE_RW
        guest.tables.update_l1(entry(l1, 1), supervisor)
        assert bench.q(l1, 1) == supervisor
        guest.tables.update_upper(entry(first, 1), L2, l1 << 12 | PTE_P)
        assert bench.q(first, 1) == l1 << 12 | PTE_P

    def test_the_rest_of_the_page_is_cleared(self, bench: Bench, guest: BareDomain) -> None:
        top, *_ = guest.pae(guest.one() << 12 | RO)
        bench.ram.writable.q[top << 9 | 4] = bench.ram.writable.q[top << 9 | 511] = 0xDEAD_F00D_0000_0067
        guest.tables.pin(top, L3)
        assert not bench.ram.tables[top][4:].any()

    def test_slot_3_must_be_there(self, bench: Bench, guest: BareDomain) -> None:
        top, last, *_ = guest.pae(guest.one() << 12 | RO)
        bench.ram.writable.q[top << 9 | 3] = 0
        before = bench.counts()
        with refused(Errno.EINVAL):
            guest.tables.pin(top, L3)
        assert bench.counts() == before
        assert not bench.frames.last_l2[last]

    @pytest.mark.parametrize("bit", [PTE_NX, PTE_GUEST_KERNEL, 1 << 62, PTE_PSE, PTE_PCD, PTE_G])
    @pytest.mark.parametrize("slot", [0, 3])
    def test_bits_that_an_l3_entry_may_not_have(
        self, bench: Bench, guest: BareDomain, slot: int, bit: int
    ) -> None:
        top, *_ = guest.pae(guest.one() << 12 | RO)
        bench.ram.writable.q[top << 9 | slot] |= bit
        before = bench.counts()
        with refused(Errno.EINVAL):
            guest.tables.pin(top, L3)
        assert bench.counts() == before

    def test_no_linear_entry(self, bench: Bench, guest: BareDomain) -> None:
        top, *_ = guest.pae(guest.one() << 12 | RO)
        bench.ram.writable.q[top << 9 | 1] = top << 12 | PTE_P
        with refused(Errno.EINVAL):
            guest.tables.pin(top, L3)
        assert bench.audit() == []

    def test_above_4_gib(self, guest: BareDomain) -> None:
        """An L3 that CR3 of a kernel without extended CR3 could not name."""
        tables = guest.tables
        assert isinstance(tables, PaePageTables)
        tables.l3_anywhere = False
        with refused(Errno.ERANGE):
            tables.prepare(Mfn(1 << 20), L3)


@pytest.mark.promise("I-4")
class TestTheLastL2:
    def test_it_has_the_hypervisors_entries(self, bench: Bench, guest: BareDomain) -> None:
        top, last, *_ = guest.pae(guest.one() << 12 | RO)
        bench.ram.writable.q[last << 9 | 500] = 0xBAD
        guest.tables.pin(top, L3)
        assert list(bench.ram.tables[last][COMPAT_FIRST_SLOT:]) == list(bench.m2p.compat_entries)

    def test_the_m2p_is_there(self, bench: Bench, guest: BareDomain) -> None:
        """One 32-bit word for each frame, read-only, for user mode too."""
        data = guest.one()
        bench.m2p.table[data] = 0x1234
        top, *_ = guest.pae(data << 12 | RO)
        guest.use(top)
        found = walk(bench.ram, top, M2P + 4 * data, 32)
        assert found is not None
        assert bench.ram.d[found.address >> 2] == 0x1234
        assert found.flags & (PTE_US | PTE_RW) == PTE_US

    def test_invalid_in_32_bits(self, bench: Bench, guest: BareDomain) -> None:
        data = guest.one()
        bench.frames.deallocate(Mfn(data))
        assert bench.m2p.table.narrow_np[data] == 0xFFFF_FFFF

    def test_hypercall_pointers_stop_below_it(self, guest: BareDomain) -> None:
        top, *_ = guest.pae(guest.one() << 12 | RW)
        guest.use(top)
        guest.memory.read(0xFFF, 1)
        for address in (M2P, M2P + 4096, 0xFFFF_FFFC, 1 << 32):
            with refused(Errno.EFAULT):
                guest.memory.read(address, 4)

    def test_shared_between_two_l3s(self, bench: Bench, guest: BareDomain) -> None:
        top, last, *_ = guest.pae(guest.one() << 12 | RO)
        guest.tables.pin(top, L3)
        other = guest.table((3, last << 12 | PTE_P))
        before = bench.counts()
        with refused(Errno.EINVAL):
            guest.tables.pin(other, L3)
        assert bench.counts() == before

    def test_in_another_slot_too(self, bench: Bench, guest: BareDomain) -> None:
        top, last, *_ = guest.pae(guest.one() << 12 | RO)
        for slot in (0, 1, 2):
            bench.ram.writable.q[top << 9 | slot] = last << 12 | PTE_P
            with refused(Errno.EINVAL):
                guest.tables.pin(top, L3)
        assert bench.audit() == []

    def test_pinned_as_an_l2(self, bench: Bench, guest: BareDomain) -> None:
        top, last, *_ = guest.pae(guest.one() << 12 | RO)
        guest.tables.pin(last, L2)
        with refused(Errno.EINVAL):
            guest.tables.pin(top, L3)
        guest.tables.unpin(last)
        guest.tables.pin(top, L3)
        with refused(Errno.EINVAL):
            guest.tables.pin(last, L2)
        assert bench.audit() == []

    @pytest.mark.parametrize("slot", [COMPAT_FIRST_SLOT, 500, 511])
    def test_its_slots_are_the_hypervisors(self, bench: Bench, guest: BareDomain, slot: int) -> None:
        top, last, _, l1 = guest.pae(guest.one() << 12 | RO)
        guest.tables.pin(top, L3)
        for value in (0, l1 << 12 | UPPER):
            with refused(Errno.EPERM):
                guest.tables.update_upper(entry(last, slot), L2, value)
        guest.tables.update_upper(entry(last, COMPAT_FIRST_SLOT - 1), L2, l1 << 12 | UPPER)
        assert bench.audit() == []

    def test_another_l2_has_all_its_slots(self, bench: Bench, guest: BareDomain) -> None:
        top, _, first, l1 = guest.pae(guest.one() << 12 | RO)
        guest.tables.pin(top, L3)
        guest.tables.update_upper(entry(first, 511), L2, l1 << 12 | UPPER)
        assert bench.audit() == []

    def test_it_becomes_an_ordinary_frame_again(self, bench: Bench, guest: BareDomain) -> None:
        top, last, *_ = guest.pae(guest.one() << 12 | RO)
        guest.tables.pin(top, L3)
        guest.tables.unpin(top)
        assert not bench.frames.last_l2[last]
        assert not bench.ram.tables[last][COMPAT_FIRST_SLOT:].any()
        guest.tables.pin(last, L2)
        assert bench.audit() == []

    def test_a_bad_one(self, bench: Bench, guest: BareDomain) -> None:
        """Its entries are checked like any L2's, and a refusal leaves nothing behind."""
        top, last, *_ = guest.pae(guest.one() << 12 | RO)
        bench.ram.writable.q[last << 9 | 7] = bench.m2p.frames[0] << 12 | UPPER
        before = bench.counts()
        with refused(Errno.EINVAL):
            guest.tables.pin(top, L3)
        assert bench.counts() == before
        assert not bench.frames.last_l2[last]


class TestUpdates:
    @pytest.mark.parametrize("slot", [3, 4, 511])
    def test_slots_of_a_validated_l3(self, guest: BareDomain, slot: int) -> None:
        top, last, *_ = guest.pae(guest.one() << 12 | RO)
        guest.tables.pin(top, L3)
        for value in (0, last << 12 | PTE_P):
            with refused(Errno.EINVAL):
                guest.tables.update_upper(entry(top, slot), L3, value)

    def test_other_slots(self, bench: Bench, guest: BareDomain) -> None:
        top, _, first, _ = guest.pae(guest.one() << 12 | RO)
        guest.tables.pin(top, L3)
        guest.tables.update_upper(entry(top, 1), L3, first << 12 | PTE_P)
        assert bench.q(top, 1) == first << 12 | PTE_P | PTE_RW | PTE_US
        guest.tables.update_upper(entry(top, 0), L3, 0)
        guest.tables.update_upper(entry(top, 1), L3, 0)
        assert bench.frames.type_count[first] == 0
        assert bench.audit() == []

    def test_linear_l2(self, bench: Bench, guest: BareDomain) -> None:
        """An L2 may look at itself, read-only."""
        top, _, first, _ = guest.pae(guest.one() << 12 | RO)
        guest.tables.pin(top, L3)
        guest.tables.update_upper(entry(first, 9), L2, first << 12 | LINEAR)
        with refused(Errno.EINVAL):
            guest.tables.update_upper(entry(first, 9), L2, first << 12 | UPPER)
        assert bench.audit() == []

    def test_tables_are_never_writable(self, guest: BareDomain) -> None:
        top, last, first, l1 = guest.pae(guest.one() << 12 | RO)
        guest.tables.pin(top, L3)
        for table in (top, last, first, l1):
            with refused(Errno.EBUSY):
                guest.tables.update_l1(entry(l1, 1), table << 12 | RW)
            guest.tables.update_l1(entry(l1, 1), table << 12 | RO)


def test_hardware_table(bench: Bench, guest: BareDomain) -> None:
    """The processor's L4 holds the guest's L3 in slot 0, the hypervisor's area, and nothing else."""
    top, *_ = guest.pae(guest.one() << 12 | RO)
    guest.use(top)
    copy = guest.cache.hardware_l4(top, COMPAT)
    present = [slot for slot in range(512) if bench.q(copy, slot) & PTE_P]
    assert present == [0, 260]
    assert bench.audit() == []
    bench.ram.writable.q[copy << 9 | 1] = bench.q(copy, 0)
    assert bench.audit() != []


def test_the_audit_sees_changed_hypervisor_slots(bench: Bench, guest: BareDomain) -> None:
    top, last, *_ = guest.pae(guest.one() << 12 | RO)
    guest.tables.pin(top, L3)
    bench.ram.writable.q[last << 9 | COMPAT_FIRST_SLOT] ^= PTE_RW
    assert any("hypervisor's slots" in finding for finding in bench.audit())


def test_death(bench: Bench, guest: BareDomain) -> None:
    top, *_ = guest.pae(guest.one() << 12 | RW)
    guest.use(top)
    guest.tables.pin(top, L3)
    guest.cache.hardware_l4(top, COMPAT)
    for domain in list(bench.domains):
        domain.die()
    assert bench.audit() == []
    assert bench.frames.free_count == bench.empty


class PaeMachine(RuleBasedStateMachine):
    """Random operations on few frames: whatever is refused or done, the recount agrees."""

    def __init__(self) -> None:
        super().__init__()
        self.bench = Bench(FRAMES, domains=2, width=32)
        self.guest, self.other = self.bench.domains
        data = self.guest.one()
        self.first_top, *rest = self.guest.pae(data << 12 | RO)
        self.pool = [self.first_top, *rest, data, *self.guest.take(5), self.other.one()]
        self.guest.use(self.first_top)

    targets = st.integers(0, 10)
    bits = st.sampled_from([PTE_P, PTE_P | PTE_RW, UPPER, LINEAR, RO, RW, PTE_P | PTE_PSE, 0])
    slots = st.sampled_from([0, 1, 2, 3, 4, 427, 428, 511])

    @rule(at=targets, level=st.integers(1, 4))
    def pin(self, at: int, level: int) -> None:
        self._try(lambda: self.guest.tables.pin(self.pool[at], level) if level < 4 else None)

    @rule(at=targets)
    def unpin(self, at: int) -> None:
        self._try(lambda: self.guest.tables.unpin(self.pool[at]))

    @rule(at=targets)
    def new_base(self, at: int) -> None:
        self._try(lambda: self.guest.use(self.pool[at]))

    @rule(at=targets, slot=slots, to=targets, bits=bits)
    def update(self, at: int, slot: int, to: int, bits: int) -> None:
        frames, table = self.bench.frames, self.pool[at]
        if frames.owner[table] != self.guest.domid:
            return
        kind = frames.type[table] if frames.type_count[table] else 0
        value = self.pool[to] << 12 | bits
        if kind == L1:
            self._try(lambda: self.guest.tables.update_l1(entry(table, slot), value))
        elif kind in (L2, L3):
            self._try(lambda: self.guest.tables.update_upper(entry(table, slot), kind, value))
        else:
            self._try(lambda: self.guest.tables.write_plain(entry(table, slot), value))

    @precondition(lambda self: self.guest.vcpus[0].kernel_l4)
    @rule()
    def run(self) -> None:
        """The processor uses the base pointer, and sets accessed bits."""
        top = self.guest.vcpus[0].kernel_l4
        self.guest.cache.hardware_l4(top, COMPAT)
        self.bench.ram.writable.q[top << 9 | 3] |= PTE_A

    @staticmethod
    def _try(operation: Callable[[], None]) -> None:
        with contextlib.suppress(XenError):
            operation()

    @invariant()
    def sound(self) -> None:
        assert self.bench.audit() == []


TestPaeMachine = PaeMachine.TestCase
TestPaeMachine.settings = settings(max_examples=40, stateful_step_count=40, deadline=None)
