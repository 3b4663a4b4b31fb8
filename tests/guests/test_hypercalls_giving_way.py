# SPDX-License-Identifier: GPL-2.0-only
"""Lists that do not end: hypercalls over them give way, wherever the list lies."""

import struct
from collections.abc import Iterator

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.numbers import Hypercall, MemoryOp, Mmuext
from pyhv.abi.structs import MemoryExchange, MemoryReservation, MmuextOp, MmuUpdate, MulticallEntry
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_P, PTE_RW, PTE_US
from pyhv.address import MASK64
from pyhv.cpu import vmcb as v
from pyhv.hypercalls.context import Again
from pyhv.mmu.budget import MOST_AT_ONCE
from pyhv.testing.guest_machine import Paused, paused

TABLE = PTE_P | PTE_RW | PTE_US | PTE_A
READ_ONLY, READ_WRITE = PTE_P | PTE_A, PTE_P | PTE_A | PTE_RW | PTE_D
ALIAS = 3 << 39
TOP = 0xFFFF_FFFF_FFFF_F000
TURN_NS = 10_000


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused() as made:
        yield made
        assert made.machine.audit() == []


def alias(guest: Paused, slot: int, fill: int) -> int:
    """Scratch page 0, by three tables in the pages behind it with `fill` entries from the end."""
    target = guest.page(0)
    for page in (1, 2, 3):
        flags = READ_WRITE | PTE_US if page == 1 else TABLE
        entry = struct.pack("<Q", guest.mfn(target) << 12 | flags)
        guest.domain.memory.write(guest.page(page), (entry * fill).rjust(4096, b"\0"))
        assert guest.remap(guest.page(page), READ_ONLY) == 0
        target = guest.page(page)
    top = guest.vcpu.paging.kernel_l4 << 12 | slot << 3
    assert guest.mmu_update(MmuUpdate(ptr=top, val=guest.mfn(target) << 12 | TABLE)) == 0
    guest.domain.tables.take_work()  # to approve them is not to be charged to what comes next
    return guest.page(0)


TABLE_NS = 16 * 250
"""What a table that is approved costs."""


def in_a_turn(guest: Paused, number: int, *arguments: int) -> bool:
    """Call through SYSCALL in a short turn; whether it gave way, to be made again."""
    clock, q = guest.machine.clock, guest.q
    q[v.RIP] = rip = guest.page(5)
    q[v.RDI], q[v.RSI], q[v.RDX], q[v.R10], q[v.R8] = (*arguments, 0, 0, 0, 0, 0)[:5]
    clock.begin(guest.domain.engine, clock.now() + TURN_NS)
    try:
        guest.hypercall(number)
    finally:
        clock.end()
    return q[v.RIP] == rip


def test_an_exchange_that_feeds_itself_gives_way(guest: Paused) -> None:
    """Its lists are one page all over the address space: what it gets is what it gives next."""
    alias(guest, 3, 512)
    page = guest.page(6)
    mfn = guest.mfn(page)
    assert guest.update_va_mapping(page, 0, 2) == 0
    guest.put(struct.pack("<Q", mfn) * 512)
    request = MemoryExchange(
        in_extent_start=ALIAS, in_nr_extents=1 << 40, in_domid=DOMID_SELF,
        out_extent_start=ALIAS + 8, out_nr_extents=1 << 40, out_domid=DOMID_SELF,
    )  # fmt: skip
    at = guest.put(request.pack(), 7 << 12)
    assert in_a_turn(guest, Hypercall.MEMORY_OP, MemoryOp.EXCHANGE, at)
    done = MemoryExchange.unpack(guest.get(MemoryExchange.size(), 7 << 12)).nr_exchanged
    assert 0 < done < 1000
    assert in_a_turn(guest, Hypercall.MEMORY_OP, guest.q[v.RDI], guest.q[v.RSI])
    assert MemoryExchange.unpack(guest.get(MemoryExchange.size(), 7 << 12)).nr_exchanged > done


def test_a_large_tree_is_approved_once(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    """A turn goes on where the last one stopped: to begin with the top each time would take it all."""
    frames = guest.machine.frames
    *leaves, top = frames.owned_by(guest.domain.domid)[-300:-99].tolist()
    for mfn in (*leaves, top):
        if frames.refs[mfn] > 1:  # still mapped by the builder's tables
            assert guest.update_va_mapping(int(frames.m2p_np[mfn]) << 12, 0, 2) == 0
    guest.machine.ram.writable.tables[top][: len(leaves)] = [mfn << 12 | TABLE for mfn in leaves]
    charged = 0
    work = guest.machine.clock.work

    def counting(nanoseconds: int) -> bool:
        nonlocal charged
        charged += nanoseconds
        return work(nanoseconds)

    monkeypatch.setattr(guest.machine.clock, "work", counting)
    operation = guest.put(MmuextOp(cmd=Mmuext.PIN_L2_TABLE, arg1=top).pack())
    arguments: tuple[int, ...] = (operation, 1, 0, DOMID_SELF)
    turns = 1
    while in_a_turn(guest, Hypercall.MMUEXT_OP, *arguments):
        arguments = tuple(guest.q[register] for register in (v.RDI, v.RSI, v.RDX, v.R10))
        turns += 1
    assert guest.q[v.RAX] == 0
    assert frames.pinned[top]
    assert turns > 10
    assert charged <= (len(leaves) + 2 * MOST_AT_ONCE + turns) * TABLE_NS
    assert (
        guest.call(
            Hypercall.MMUEXT_OP,
            guest.put(MmuextOp(cmd=Mmuext.UNPIN_TABLE, arg1=top).pack()),
            1,
            0,
            DOMID_SELF,
        )
        == 0
    )


@pytest.mark.parametrize("command", [MemoryOp.INCREASE_RESERVATION, MemoryOp.POPULATE_PHYSMAP])
def test_reservations_give_way_and_go_on(guest: Paused, command: int) -> None:
    pages = 100
    frames = guest.machine.frames
    mfns = frames.owned_by(guest.domain.domid)[-300 : -300 + pages].tolist()
    for number in (MemoryOp.DECREASE_RESERVATION, command):
        listed = guest.put(struct.pack(f"<{pages}Q", *mfns))
        request = MemoryReservation(extent_start=listed, nr_extents=pages, domid=DOMID_SELF)
        before = guest.domain.tot_pages
        at = guest.put(request.pack(), 4096)
        left = [mfn for mfn in mfns if frames.refs[mfn] > 1]
        for mfn in left:  # still mapped by the builder's tables
            assert guest.update_va_mapping(int(frames.m2p_np[mfn]) << 12, 0, 2) == 0
        assert in_a_turn(guest, Hypercall.MEMORY_OP, number, at)
        q = guest.q
        assert q[v.RDI] == number | 64 << 6
        assert abs(guest.domain.tot_pages - before) == 64
        assert not in_a_turn(guest, Hypercall.MEMORY_OP, q[v.RDI], q[v.RSI])
        assert q[v.RAX] == pages
        assert abs(guest.domain.tot_pages - before) == pages
    assert guest.domain.tot_pages == guest.domain.max_pages


@pytest.mark.parametrize("inside", [False, True], ids=["alone", "in a multicall"])
def test_a_list_at_the_end_of_the_address_space(guest: Paused, inside: bool) -> None:
    """What comes after its last entry is no address; giving way there is no mistake of ours."""
    alias(guest, 511, 1)
    entry = guest.vcpu.paging.kernel_l4 << 12 | 2040  # an entry below the hypervisor's that is not there
    guest.domain.memory.write(TOP, struct.pack("<2Q", guest.mfn(guest.page(6)) << 12, entry) * 256)
    arguments = (MASK64 - 1023, 70, 0, DOMID_SELF)
    if inside:
        fields = dict(zip(("arg0", "arg1", "arg2", "arg3"), arguments, strict=True))
        at = guest.put(MulticallEntry(op=Hypercall.MMU_UPDATE, **fields).pack(), 7 << 12)
        assert in_a_turn(guest, Hypercall.MULTICALL, at, 1)
        assert MulticallEntry.unpack(guest.get(MulticallEntry.size(), 7 << 12)).arg0 == 0
    else:
        assert in_a_turn(guest, Hypercall.MMU_UPDATE, *arguments)
        assert guest.q[v.RDI] == 0
    assert Again(1 << 64).arguments == (0,)


@pytest.mark.promise("L-22")
def test_returning_to_ever_new_selectors_takes_no_memory(guest: Paused) -> None:
    """Each iret names another pair of a large GDT; only so many are remembered."""
    page = guest.page(6)
    guest.put(
        struct.pack("<Q", 0x00AF_FB00_0000_FFFF) * 256 + struct.pack("<Q", 0x00CF_F300_0000_FFFF) * 256,
        6 << 12,
    )
    assert guest.remap(page, READ_ONLY) == 0
    assert guest.set_gdt(guest.put(struct.pack("<Q", guest.mfn(page))), 512) == 0
    guest.handlers()
    for number in range(3000):
        guest.iret(cs=(number & 63) << 3, ss=(256 + (number >> 6)) << 3)
    assert guest.cpu.vmcb.d[v.SEG_SEL[v.CS]] == (2999 & 63) << 3 | 3
    assert 0 < len(guest.vcpu.descriptors.return_segments) <= 1024
