# SPDX-License-Identifier: GPL-2.0-only
"""Hypercalls, writable page tables and second vCPUs of a 32-bit guest."""

import struct

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Assist, Hypercall
from pyhv.address import MASK32
from pyhv.cpu import vmcb as v
from pyhv.testing.compat_machine import (
    DATA1,
    DATA3,
    G_DATA1,
    GDT,
    RING3_CS,
    RING3_DS,
    USER_RW,
    Paused32,
    paused32,
    with_base,
)
from pyhv.testing.vectors import DB, PF


@pytest.fixture
def guest(guest32: Paused32) -> Paused32:
    return guest32


# -- hypercalls ----------------------------------------------------------------------------------------------


GARBAGE = 0xDEAD_BEEF << 32


def test_a_hypercall_from_code(guest: Paused32) -> None:
    """INT 0x82: the number in EAX, and only the result changes."""
    code = "mov eax, 17; xor ebx, ebx; xor ecx, ecx; mov edx, 5; mov esi, 6; mov ebp, 7; int 0x82"
    assert guest.execute(code) is None
    q = guest.q
    assert q[v.RAX] == 0x00040011
    assert (q[v.RBX], q[v.RCX], q[v.RDX], q[v.RSI], q[v.RBP]) == (0, 0, 5, 6, 7)


@pytest.mark.parametrize("number", [63, 64, 0x7FFFFFFF, 0xFFFFFFFF, GARBAGE | 63])
def test_hypercalls_that_do_not_exist(guest: Paused32, number: int) -> None:
    guest.q[v.RAX] = number
    guest.cpu.vmcb.d[v.EXCEPTION_IS_INT] = 1
    guest.dispatcher.exception(0x82)
    assert guest.q[v.RAX] == 0xFFFFFFDA


@pytest.mark.promise("C-7")
def test_64_bit_arguments_are_pairs_of_words(guest: Paused32, monkeypatch: pytest.MonkeyPatch) -> None:
    armed: list[int] = []
    monkeypatch.setattr(guest.machine.services, "set_timer", lambda _vcpu, deadline: armed.append(deadline))
    assert guest.hypercall(Hypercall.SET_TIMER_OP, GARBAGE | 0x9234_5678, GARBAGE | 3) == 0
    assert armed == [0x3_9234_5678]


def test_an_entry_and_its_flags_are_four_words(guest: Paused32) -> None:
    page = guest.page(3)
    before = guest.mfn(page)
    entry = guest.mfn(guest.page(4)) << 12 | USER_RW | 1 << 63
    arguments = (GARBAGE | page, GARBAGE | entry & MASK32, GARBAGE | entry >> 32, GARBAGE | 2)
    assert guest.hypercall(Hypercall.UPDATE_VA_MAPPING, *arguments) == 0
    assert guest.mfn(page) == entry >> 12 & 0xFFFFF != before
    assert guest.domain.ram.q[guest.entry(page) >> 3] & ~0x60 == entry & ~0x60


def test_a_descriptor_and_its_address_are_four_words(guest: Paused32) -> None:
    guest.gdt(*GDT)
    address = guest.mfn(guest.page(0)) << 12 | G_DATA1
    value = with_base(DATA1, 0x12345678)
    halves = (address & MASK32, address >> 32, value & MASK32, value >> 32)
    assert guest.hypercall(Hypercall.UPDATE_DESCRIPTOR, *(GARBAGE | half for half in halves)) == 0
    assert guest.domain.ram.q[address >> 3] == value


@pytest.mark.promise("C-7")
def test_results_are_words(guest: Paused32) -> None:
    assert guest.hypercall(Hypercall.UPDATE_DESCRIPTOR, 1, 0, 0, 0) == -Errno.EINVAL & MASK32
    assert guest.hypercall(Hypercall.MMU_UPDATE, 0xF5800000, 1, 0, DOMID_SELF) == -Errno.EFAULT & MASK32


@pytest.mark.parametrize("pointer", [0xF5800000, 0xFFFFFFFC, 0xF57FFFFF, 0x3FF000])
def test_pointers_that_lead_nowhere(guest: Paused32, pointer: int) -> None:
    if pointer == 0x3FF000:
        assert guest.unmap(pointer) == 0
    assert guest.hypercall(Hypercall.MULTICALL, pointer, 1) == -Errno.EFAULT & MASK32


STRUCTURES = {
    "set_trap_table": (0, (-8,), 8),
    "multicall": (13, (-32, 1), 32),
    "mmuext_op": (26, (-12, 1, 0, DOMID_SELF), 12),
    "machphys_mapping": (12, (12, -12), 12),
    "memory_map": (12, (9, -8), 8),
    "acquire_resource": (12, (28, -28), 28),
    "setup_table": (20, (2, -16, 1), 16),
    "get_status_frames": (20, (9, -12, 1), 12),
    "grant copy": (20, (5, -24, 1), 24),
    "poll": (29, (3, -16), 16),
    "runstate": (24, (4, 0, -44), 44),
    "runstate area": (24, (5, 0, -4), 4),
    "one-shot timer": (24, (8, 0, -12), 12),
    "time area": (24, (13, 0, -4), 4),
    "callback_op": (30, (0, -12), 12),
    "nmi_op": (28, (0, -8), 8),
    "set_iobitmap": (33, (7, -8), 8),
    "apic_read": (33, (8, -12), 12),
    "map_pirq": (33, (13, -36), 36),
    "physdev_op_compat": (19, (-16,), 16),
    "event_channel_op_compat": (16, (-28,), 28),
    "platform_op": (7, (-136,), 136),
    "sysctl": (35, (-136,), 136),
    "domctl": (36, (-144,), 144),
}
"""Hypercall, its arguments, and the size of the structure at the argument that is minus that size."""


@pytest.mark.parametrize("name", STRUCTURES)
def test_structures_have_the_size_that_the_guest_gives_them(guest: Paused32, name: str) -> None:
    """One that ends with the last mapped page can be read; one that ends a word later cannot."""
    number, arguments, size = STRUCTURES[name]
    assert guest.unmap(guest.page(8)) == 0
    guest.put(bytes(4096), 0x7000)

    def at(end: int) -> int:
        words = [end - size if argument == -size else argument for argument in arguments]
        return guest.hypercall(number, *words)

    assert at(guest.page(8)) != 0xFFFFFFF2
    assert at(guest.page(8) + 4) == -Errno.EFAULT & MASK32


@pytest.mark.parametrize(("command", "size"), [(5, 44), (13, 32)])
def test_areas_are_registered_with_32_bits_of_address(guest: Paused32, command: int, size: int) -> None:
    """The structure is a union with a 64-bit word, whose upper half a 32-bit kernel need not set."""
    at = guest.put(struct.pack("<II", guest.page(2), 0x5EADBEEF))
    assert guest.hypercall(Hypercall.VCPU_OP, command, 0, at) == 0
    assert guest.get(size, 0x2000) != bytes(size)
    assert guest.get(8, 0x2000 + size) == bytes(8)
    assert (
        guest.hypercall(Hypercall.VCPU_OP, command, 0, guest.put(struct.pack("<I", 0xF5800000)))
        == -Errno.EFAULT & MASK32
    )


def test_a_long_call_is_made_again_with_what_is_left(guest: Paused32) -> None:
    """EIP goes back over INT 0x82, and the arguments are words again."""
    entry = guest.entry(guest.page(3))
    value = guest.domain.ram.q[entry >> 3]
    guest.put(struct.pack("<2Q", entry, value) * 1024, 0x2000)
    clock, q = guest.machine.clock, guest.q
    q[v.RIP] = guest.page(8) + 2
    turns = 0
    arguments: tuple[int, ...] = (guest.page(2), 1024, 0, DOMID_SELF)
    while q[v.RIP] == guest.page(8) + 2:
        q[v.RIP] = guest.page(8) + 2
        clock.begin(guest.domain.engine, clock.now() + 10_000)
        try:
            guest.hypercall(Hypercall.MMU_UPDATE, *arguments)
        finally:
            clock.end()
        if q[v.RIP] == guest.page(8) + 2:
            break
        assert q[v.RIP] == guest.page(8)
        arguments = (q[v.RBX], q[v.RCX], q[v.RDX], q[v.RSI])
        assert max(arguments) <= MASK32
        q[v.RIP] += 2
        turns += 1
    assert turns > 1
    assert q[v.RAX] == 0


def test_iret_in_a_multicall_leaves_it(guest: Paused32) -> None:
    calls = struct.pack("<8I", 23, 0x5A, *[0] * 6) + struct.pack("<8I", 17, 0x5A, *[0] * 6)
    at = guest.put(calls, 0x2000)
    frame = struct.pack("<6I", 9, guest.code, RING3_CS, 0x202, guest.user_stack, RING3_DS)
    guest.q[v.RSP] = guest.put(frame, 0xC000)
    guest.hypercall(Hypercall.MULTICALL, at, 2)
    assert guest.cpu.vmcb.cpl == 3
    assert guest.cpu.vmcb.rip == guest.code
    assert guest.words(at + 32 + 4, 1) == (0x5A,)


# -- writable page tables ------------------------------------------------------------------------------------


def table_va(guest: Paused32, address: int) -> int:
    """Where the guest sees the word at a machine address in one of its page tables."""
    m2p = guest.machine.frames.m2p
    assert m2p is not None
    return m2p[address >> 12] << 12 | address & 0xFFF


@pytest.fixture
def tables(guest: Paused32) -> Paused32:
    assert guest.vm_assist(0, Assist.WRITABLE_PAGETABLES) == 0
    return guest


def test_a_store_to_a_page_table_is_done(tables: Paused32) -> None:
    address = tables.entry(tables.page(3))
    va = table_va(tables, address)
    wanted = tables.mfn(tables.page(4)) << 12 | USER_RW
    assert tables.execute(f"mov ebx, {va}; mov dword ptr [ebx], {wanted}") is None
    assert tables.domain.ram.q[address >> 3] & ~0x60 == wanted & ~0x60
    assert tables.execute(f"mov ebx, {va}; lock btr dword ptr [ebx], 1; setc al") is None
    assert tables.q[v.RAX] & 0xFF == 1
    assert tables.domain.ram.q[address >> 3] & 2 == 0


def test_the_upper_half_first_waits_for_the_lower_one(tables: Paused32) -> None:
    """A kernel that writes the halves in the wrong order gets an entry that is not present in between."""
    address = tables.entry(tables.page(3))
    va = table_va(tables, address)
    before = tables.domain.ram.q[address >> 3]
    assert tables.execute(f"mov dword ptr [{va + 4}], 0x7") is None
    assert tables.domain.ram.q[address >> 3] & ~0x60 == (before & MASK32 | 7 << 32) & ~0x61
    low = before & MASK32
    assert tables.execute(f"mov dword ptr [{va + 4}], 0; mov dword ptr [{va}], {low}") is None
    assert tables.domain.ram.q[address >> 3] & ~0x60 == before & ~0x60


@pytest.mark.parametrize("store", ["lock or dword ptr [ebx + 4], 7", "mov [ebx], ecx", "movq [ebx], mm0"])
def test_other_stores_that_are_refused_are_page_faults(tables: Paused32, store: str) -> None:
    address = tables.entry(tables.page(3))
    va = table_va(tables, address)
    before = tables.domain.ram.q[address >> 3]
    assert tables.execute(f"mov ebx, {va}; mov ecx, 0x7fffff63; {store}") == PF
    assert tables.frame(error=True)["error"] == 3
    assert tables.domain.ram.q[address >> 3] & ~0x60 == before & ~0x60


def test_ring_3_does_not_write_page_tables(tables: Paused32) -> None:
    va = table_va(tables, tables.entry(tables.page(3)))
    assert tables.user(f"mov dword ptr [{va}], 0") == PF
    assert tables.frame(error=True)["error"] == 7
    assert tables.vcpu.info.cr2 == va


def test_a_step_over_a_page_table_store_traps(tables: Paused32) -> None:
    va = table_va(tables, tables.entry(tables.page(3)))
    code = f"mov ebx, {va}; mov ecx, [ebx]; pushfd; or dword ptr [esp], 0x100; popfd; mov [ebx], ecx; nop"
    assert tables.execute(code) == DB
    assert tables.frame()["eip"] == tables.load(code) - 1


# -- vCPUs ---------------------------------------------------------------------------------------------------


def test_segments_are_kept_when_vcpus_take_turns() -> None:
    with paused32(vcpus=2) as guest:
        guest.handlers()
        guest.gdt(with_base(DATA3, 0x5000), with_base(DATA3, 0x7000))
        code = "mov eax, 11; mov fs, eax; mov eax, 19; mov gs, eax; mov ecx, ds; fld1"
        assert guest.user(code.replace("fld1", "nop")) is None
        other = guest.domain.vcpus[1]
        other.paging.kernel_l4 = guest.vcpu.paging.kernel_l4
        guest.dispatcher.load(other)
        vmcb = guest.cpu.vmcb
        for segment in (v.ES, v.DS, v.FS, v.GS):
            vmcb.set_segment(segment, 0, 0, 0, 0)
        guest.dispatcher.load(guest.vcpu)
        assert [vmcb.selector(segment) for segment in (v.DS, v.ES, v.FS, v.GS)] == [
            RING3_DS,
            RING3_DS,
            11,
            19,
        ]
        assert (guest.q[v.SEG_BASE[v.FS]], guest.q[v.SEG_BASE[v.GS]]) == (0x5000, 0x7000)
        assert vmcb.cpl == 3
        other.paging.kernel_l4 = type(other.paging.kernel_l4)(0)
