# SPDX-License-Identifier: GPL-2.0-only
"""Whole guests: memory is sound at any moment, the dead leave nothing, neighbours notice nothing."""

from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import MemoryOp, Mmuext, VcpuOp
from pyhv.abi.structs import (
    GnttabMapGrantRef,
    GnttabUnmapGrantRef,
    MemoryExchange,
    MemoryReservation,
    MmuextOp,
    MmuUpdate,
    VcpuRegisterVcpuInfo,
)
from pyhv.abi.x86 import PTE_A, PTE_D, PTE_NX, PTE_P, PTE_RW, PTE_US
from pyhv.cpu.exits import ExitRecord
from pyhv.domain.config import DomainConfig
from pyhv.domain.lifecycle import Lifecycle
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.loader.image import KernelImage
from pyhv.machine import Machine, MachineConfig
from pyhv.mmu.frames import L1, SEGDESC, WRITABLE
from pyhv.testing.guest_machine import HEADER, START, TRAPS, Paused, Sink, image_of, paused
from pyhv.until import AllEnded, Outcome, When
from pyhv.xenstore.peers import introduce_peers

PAGES = 1024
SECOND = 1_000_000_000
READ_ONLY = PTE_P | PTE_A
READ_WRITE = PTE_P | PTE_RW | PTE_A | PTE_D

# A kernel that runs wild: after saying so it jumps into nothing, with no handler for what follows.
CRASHER = (
    HEADER
    + START
    + """
    print "crasher: here I go\\n"
    xor eax, eax
    mov rbx, 0x7000000000
    jmp rbx
"""
)

# A kernel to which the merged arrangement gives supervisor rights: it tries the windows on its GDT.
MERGED = (
    HEADER
    + START
    + TRAPS
    + """
    mov rsi, [rip + start_info]
    mov rsi, [rsi + START_INFO_pt_base]
    lea rdi, [rip + user_l4]
    mov ecx, 256
    rep movsq                                   # the same lower half as the kernel's L4
    lea rdi, [rip + user_l4]
    mov esi, PTE_P | PTE_A
    call remap
    must_succeed "mapping the user L4 read-only"
    lea rdi, [rip + user_l4]
    call va_to_mfn
    mov rbx, rax
    mov edi, MMUEXT_PIN_L4_TABLE
    mov rsi, rbx
    call mmuext
    must_succeed "pinning the user L4"
    mov edi, MMUEXT_NEW_USER_BASEPTR
    mov rsi, rbx
    call mmuext
    must_succeed "installing the user L4"
    lea rdi, [rip + gdt]
    mov esi, PTE_P | PTE_A
    call remap
    must_succeed "mapping the GDT read-only"
    lea rdi, [rip + gdt]
    call va_to_mfn
    mov [rip + gdt_list], rax
    lea rdi, [rip + gdt_list]
    mov esi, 512
    hypercall set_gdt
    must_succeed "set_gdt"
    mov eax, 8                                  # a data segment without its accessed bit loads all the same
    mov ds, eax
    mov rbx, 0xffff820000000000
    trap_begin .own
    mov qword ptr [rbx + 16], 0
.own:
    trap_check TRAP_page_fault, "writing the GDT through its window"
    add rbx, 0xe000
    trap_begin .xen
    mov qword ptr [rbx + 0x68], 0
.xen:
    trap_check TRAP_page_fault, "writing the hypervisor's descriptors"
    mov rbx, MACH2PHYS_VIRT_START
    trap_begin .m2p
    mov qword ptr [rbx + 8], 0
.m2p:
    trap_check TRAP_page_fault, "writing the M2P"
    succeed
.data
.balign 8
gdt_list: .quad 0
.balign PAGE_SIZE
gdt:    .quad 0, 0x00cff2000000ffff, 0
        .zero PAGE_SIZE - 24
.bss
.balign PAGE_SIZE
user_l4: .zero PAGE_SIZE
"""
)


def image(name: str) -> KernelImage:
    """A built-in kernel, or one of the above."""
    own = {"crasher": CRASHER, "merged": MERGED}
    return load_image(image_of(own[name]) if name in own else build_builtin(name), name)


class Auditor:
    """Audits the machine at every `interval`th exit."""

    def __init__(self, machine: Machine, interval: int) -> None:
        self._machine = machine
        self._interval = interval
        self._exits = 0
        self.audits = 0

    def exit(self, record: ExitRecord) -> None:
        self._exits += 1
        if self._exits % self._interval == 0:
            self.audits += 1
            assert self._machine.audit() == [], record


class House:
    """Guests on one machine, in virtual time."""

    def __init__(self, *names: str) -> None:
        self.machine = Machine(MachineConfig(PAGES * len(names), virtual_time=True))
        self.free = self.machine.frames.free_count
        self.sinks = [Sink() for _ in names]
        for name, sink in zip(names, self.sinks, strict=True):
            self.machine.create(image(name), DomainConfig(name, PAGES), console=sink)
        introduce_peers(self.machine.store, self.machine.residents.domids())

    def output(self, number: int) -> str:
        return self.sinks[number].data.decode("latin-1")


@contextmanager
def house(*names: str) -> Iterator[House]:
    made = House(*names)
    try:
        yield made
    finally:
        made.machine.close()


@pytest.mark.promise("I-3")
@pytest.mark.parametrize(
    "name", ["hello", "pages", "usermode", "ticker", "grants", "intruder", "crasher", "merged"]
)
def test_memory_is_sound_all_the_time(name: str) -> None:
    with house(name) as home:
        machine = home.machine
        domain = machine.residents[1].domain
        assert machine.audit() == []
        auditor = Auditor(machine, 7)
        machine.observe(auditor)
        assert machine.run(timeout_ns=10 * SECOND) is Outcome.ENDED
        assert auditor.audits or name in ("hello", "crasher")
        assert domain.life.crashed == (name == "crasher")
        assert domain.life.stage is Lifecycle.DEAD
        assert ("SUCCESS\n" in home.output(0)) == (name != "crasher")
        assert machine.audit() == []
        assert machine.frames.free_count == home.free
        assert not machine.frames.owned_by(1).size


@pytest.mark.promise("I-3")
def test_grants_and_channels_between_two_guests() -> None:
    with house("ping", "pong") as home:
        auditor = Auditor(home.machine, 97)
        home.machine.observe(auditor)
        assert home.machine.run(timeout_ns=10 * SECOND) is Outcome.ENDED
        assert auditor.audits
        assert ["SUCCESS\n" in home.output(number) for number in (0, 1)] == [True, True]
        assert home.machine.audit() == []
        assert home.machine.frames.free_count == home.free


@pytest.mark.promise("I-10")
def test_the_dead_leave_nothing_while_others_live() -> None:
    with house("crasher", "hello", "ticker") as home:
        machine = home.machine
        gone: list[int] = []

        def stop() -> bool:
            for domid in (1, 2):
                if domid not in gone and machine.residents.get(domid) is None:
                    gone.append(domid)
                    assert machine.audit() == []
                    assert not machine.frames.owned_by(domid).size
            return False

        assert machine.run(AllEnded() | When(stop), timeout_ns=10 * SECOND) is Outcome.ENDED
        assert gone == [1, 2]
        free = machine.frames.free_list()
        assert not machine.ram.tables[free].any()  # nothing that one guest knew reaches the next
        assert machine.frames.free_count == home.free


@pytest.mark.promise("I-13")
def test_a_neighbour_notices_nothing() -> None:
    """Ticker between a hostile and a crashing guest: its tick lines aside from their times, as alone."""

    def said(*names: str) -> list[str]:
        with house(*names) as home:
            assert home.machine.run(timeout_ns=20 * SECOND) is Outcome.ENDED
            text = home.output(names.index("ticker"))
        return [line.split(" after ")[0] for line in text.splitlines()]

    alone = said("ticker")
    assert alone[-1] == "SUCCESS"
    assert said("intruder", "ticker", "crasher", "merged") == alone


# -- attacks, call by call ---------------------------------------------------------------------------------


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused() as made:
        yield made
        assert made.machine.audit() == []


def mmuext(guest: Paused, command: int, argument: int, second: int = 0) -> int:
    """One mmuext_op."""
    return guest.mmuext(command, argument, second)


@pytest.mark.parametrize("ring", ["console", "store"])
def test_a_ring_cannot_become_a_page_table(guest: Paused, ring: str) -> None:
    """The back end writes into it, and would write page-table entries."""
    mfn = next(device.frames()[0] for device in guest.machine.dom0.devices(1) if device.kind == ring)
    va = int(guest.machine.frames.m2p_np[mfn]) << 12
    guest.domain.memory.write(va + 2064, bytes(16))
    assert guest.update_va_mapping(va, mfn << 12 | READ_ONLY, 2) == 0
    for command in (Mmuext.PIN_L1_TABLE, Mmuext.PIN_L4_TABLE):
        assert mmuext(guest, command, mfn) == -Errno.EINVAL
    frames = guest.put(mfn.to_bytes(8, "little"))
    assert guest.set_gdt(frames, 512) == -Errno.EINVAL


def test_a_ring_that_is_given_back_is_not_given_away(guest: Paused) -> None:
    frames = guest.machine.frames
    for mfn in guest.machine.dom0.frames(1):
        va = int(frames.m2p_np[mfn]) << 12
        listed = guest.put(mfn.to_bytes(8, "little"), 64)
        request = MemoryReservation(extent_start=listed, nr_extents=1, domid=DOMID_SELF).pack()
        assert guest.memory_op(MemoryOp.DECREASE_RESERVATION, guest.put(request)) == 1
        assert guest.update_va_mapping(va, 0, 2) == 0
        assert frames.owner[mfn] == 1
    assert guest.machine.audit() == []


@pytest.mark.promise("I-2")
def test_a_gdt_is_not_writable_and_a_writable_page_is_no_gdt(guest: Paused) -> None:
    va, mfn = guest.page(3), guest.mfn(guest.page(3))
    listed = guest.put(mfn.to_bytes(8, "little"))
    assert guest.set_gdt(listed, 512) == -Errno.EINVAL
    assert guest.remap(va, READ_ONLY) == 0
    assert guest.set_gdt(listed, 512) == 0
    frames = guest.machine.frames
    assert (frames.type[mfn], frames.type_count[mfn]) == (SEGDESC, 1)
    assert guest.remap(va, READ_WRITE) == -Errno.EBUSY
    assert mmuext(guest, Mmuext.PIN_L1_TABLE, mfn) == -Errno.EINVAL
    assert guest.update_descriptor(mfn << 12 | 8, 0x0000_8900_0000_0067) == -Errno.EINVAL  # a TSS
    assert guest.update_descriptor(mfn << 12 | 8, 0x00AF_9A00_0000_FFFF) == 0
    assert guest.machine.ram.q[mfn << 9 | 1] == 0x00AF_FB00_0000_FFFF  # ring 3 now, and accessed
    assert guest.machine.audit() == []
    assert guest.set_gdt(0, 0) == 0
    assert guest.remap(va, READ_WRITE) == 0


def test_a_vcpu_info_page_is_no_page_table(guest: Paused) -> None:
    va, mfn = guest.page(4), guest.mfn(guest.page(4))
    at = guest.put(VcpuRegisterVcpuInfo(mfn=mfn, offset=64).pack())
    assert guest.vcpu_op(VcpuOp.REGISTER_VCPU_INFO, 0, at) == 0
    assert guest.remap(va, READ_ONLY) == 0
    assert (guest.machine.frames.type[mfn], guest.machine.frames.type_count[mfn]) == (WRITABLE, 1)
    assert mmuext(guest, Mmuext.PIN_L1_TABLE, mfn) == -Errno.EINVAL


def test_senseless_sizes_cost_nothing(guest: Paused) -> None:
    for order in (10, 21, 64, 0xFFFF_FFFF):
        for given in (1, 1 << 53):
            request = MemoryExchange(
                in_nr_extents=given, out_nr_extents=given, in_extent_order=order, out_extent_order=order
            )
            assert guest.memory_op(MemoryOp.EXCHANGE, request) in (
                -Errno.EINVAL,
                -Errno.EPERM,
            )
            reservation = MemoryReservation(nr_extents=given, extent_order=order, domid=DOMID_SELF)
            for command in (0, 1, 6):
                assert guest.memory_op(command, reservation) == 0


@pytest.mark.promise("L-19")
def test_flushing_pages_without_end_takes_no_memory(guest: Paused) -> None:
    operations = b"".join(MmuextOp(cmd=Mmuext.INVLPG_LOCAL, arg1=n << 12).pack() for n in range(1000))
    assert guest.mmuext_op_list(guest.put(operations, 4096), 1000, 0, DOMID_SELF) == 0
    assert guest.domain.tables.flush
    assert len(guest.domain.tables.flush_pages) < 100


def test_unknown_mmu_update_commands(guest: Paused) -> None:
    mfn = guest.mfn(guest.page(5))
    for command in range(4, 8):
        assert guest.mmu_update(MmuUpdate(ptr=mfn << 12 | command)) == -Errno.ENOSYS


# -- two guests and a grant --------------------------------------------------------------------------------


class Lending:
    """A lender, a borrower, and page 2 of the lender granted as entry 8."""

    def __init__(self) -> None:
        self.machine = Machine(MachineConfig(2 * PAGES + 64, virtual_time=True))
        self.lender, self.borrower = Paused(self.machine), Paused(self.machine)
        self.mfn = self.lender.mfn(self.lender.page(2))
        self.window = self.borrower.page(6)
        table = self.lender.domain.grants.frames[0]
        self.machine.ram.writable.raw[(table << 12) + 64 : (table << 12) + 72] = (
            (1).to_bytes(2, "little") + (2).to_bytes(2, "little") + self.mfn.to_bytes(4, "little")
        )

    def map(self, flags: int) -> GnttabMapGrantRef:
        """map_grant_ref by the borrower."""
        request = GnttabMapGrantRef(host_addr=self.window, flags=flags, ref=8, dom=1)
        assert self.borrower.grant_table_op(request) == 0
        return request

    def unmap(self, handle: int, *, host: bool = True, device: int = 0) -> int:
        """unmap_grant_ref by the borrower; its status."""
        request = GnttabUnmapGrantRef(
            host_addr=self.window if host else 0, dev_bus_addr=device, handle=handle
        )
        assert self.borrower.grant_table_op(request) == 0
        return request.status

    def kill(self, guest: Paused) -> None:
        """Let a guest end and be buried."""
        guest.domain.life.shut_down(0)
        self.machine.settle()


@pytest.fixture
def lending() -> Iterator[Lending]:
    made = Lending()
    yield made
    assert made.machine.audit() == []
    made.machine.close()


@pytest.mark.promise("I-1")
def test_a_borrowed_frame(lending: Lending) -> None:
    frames = lending.machine.frames
    done = lending.map(2)
    assert (done.status, done.dev_bus_addr) == (0, lending.mfn << 12)
    assert lending.borrower.mfn(lending.window) == lending.mfn
    assert lending.machine.audit() == []
    # The lender cannot make a table of it, however it maps it itself.
    assert lending.lender.remap(lending.lender.page(2), READ_ONLY) == 0
    assert mmuext(lending.lender, Mmuext.PIN_L1_TABLE, lending.mfn) == -Errno.EINVAL
    # The borrower cannot pin it, map it once more, or give it back.
    assert mmuext(lending.borrower, Mmuext.PIN_L1_TABLE, lending.mfn) == -Errno.EINVAL
    again = lending.mfn << 12 | READ_WRITE
    assert lending.borrower.update_va_mapping(lending.borrower.page(7), again, 0) == -Errno.EBUSY
    lending.borrower.domain.tables.flushed()
    assert lending.unmap(done.handle) == 0
    assert lending.borrower.domain.tables.flush
    assert frames.type_count[lending.mfn] == 0
    assert mmuext(lending.lender, Mmuext.PIN_L1_TABLE, lending.mfn) == 0
    assert frames.type[lending.mfn] == L1


def test_a_borrower_that_unmaps_by_itself_is_flushed_too(lending: Lending) -> None:
    """Its TLB could otherwise still write what the lender makes a page table of."""
    done = lending.map(2)
    lending.borrower.domain.tables.flushed()
    assert lending.borrower.update_va_mapping(lending.window, 0, 0) == 0
    assert lending.borrower.domain.tables.flush
    assert lending.unmap(done.handle) == -1  # it is not there any more


def test_host_and_device_halves(lending: Lending) -> None:
    done = lending.map(3)
    count = lending.machine.frames.type_count
    before = count[lending.mfn]
    assert lending.machine.audit() == []
    assert lending.unmap(done.handle) == 0
    assert count[lending.mfn] == before - 1
    assert lending.lender.remap(lending.lender.page(2), READ_ONLY) == 0
    assert mmuext(lending.lender, Mmuext.PIN_L1_TABLE, lending.mfn) == -Errno.EINVAL
    assert lending.unmap(done.handle, host=False, device=lending.mfn << 12) == 0
    assert mmuext(lending.lender, Mmuext.PIN_L1_TABLE, lending.mfn) == 0


@pytest.mark.promise("I-7")
@pytest.mark.parametrize("flags", [2, 3, 6, 7])
@pytest.mark.parametrize("first", ["lender", "borrower"])
def test_death_in_either_order(flags: int, first: str) -> None:
    made = Lending()
    machine = made.machine
    try:
        assert made.map(flags).status == 0
        secret = b"the lender's secret"
        made.lender.domain.memory.write(made.lender.page(2), secret)
        order = [made.lender, made.borrower]
        if first == "borrower":
            order.reverse()
        made.kill(order[0])
        assert machine.audit() == []
        if first == "lender":
            assert made.borrower.domain.memory.read(made.window, len(secret)) == secret
            assert machine.frames.owned_by(1).tolist() == [made.mfn]
        else:
            assert not machine.frames.owned_by(2).size
        made.kill(order[1])
        assert machine.audit() == []
        assert not any(machine.frames.owned_by(domid).size for domid in (1, 2))
        assert not machine.ram.tables[made.mfn].any()
    finally:
        machine.close()


def test_what_a_granted_leaf_may_say(lending: Lending) -> None:
    """The borrower may set harmless bits of it, executable too; it counts and un-counts."""
    done = lending.map(2)
    entry = lending.mfn << 12 | READ_WRITE | PTE_US
    before = lending.machine.frames.exec_count[lending.mfn]

    def call(value: int) -> int:
        return lending.borrower.update_va_mapping(lending.window, value, 0)

    assert call(entry | PTE_NX) == 0
    assert call(entry) == 0
    assert lending.machine.frames.exec_count[lending.mfn] == before + 1
    assert lending.machine.audit() == []
    assert call(entry & ~PTE_RW) == -Errno.EBUSY
    assert lending.unmap(done.handle) == 0
    assert lending.machine.frames.exec_count[lending.mfn] == before
