# SPDX-License-Identifier: GPL-2.0-only
"""Writable page tables: stores into L1 tables that the hypervisor does for the kernel, and others."""

from collections.abc import Iterator

import pytest

from pyhv.abi.numbers import Assist
from pyhv.abi.x86 import PTE_AVAIL, PTE_MFN_MASK, PTE_NX, PTE_P, PTE_RW
from pyhv.cpu import vmcb as v
from pyhv.testing.guest_machine import Paused, paused
from pyhv.testing.vectors import PF

REGISTERS = (v.RAX, v.RCX, v.RDX, v.RBX, v.RSI, v.RDI, v.R8)


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused() as made:
        made.handlers()
        assert made.vm_assist(0, Assist.WRITABLE_PAGETABLES) == 0
        yield made


def table_va(guest: Paused, address: int) -> int:
    """Where the guest sees the word at a machine address in one of its page tables."""
    m2p = guest.machine.frames.m2p
    assert m2p is not None
    return m2p[address >> 12] << 12 | address & 0xFFF


def entry_va(guest: Paused, page: int) -> int:
    """Virtual address of the L1 entry that maps a scratch page."""
    return table_va(guest, guest.entry(guest.page(page)))


def entry(guest: Paused, page: int) -> int:
    return guest.domain.ram.q[guest.entry(guest.page(page)) >> 3]


# Only software bits and NX change, which an approved entry may have in any combination.
SOFT = PTE_AVAIL
STORES = [
    "mov [rbx], rcx",
    "mov [rbx + 4], edx",
    "mov byte ptr [rbx + 7], 0x80",
    "mov word ptr [rbx + 6], 0x10",
    "mov [rsi + 8], rcx",
    "mov [rdi + r8 * 2], rcx",
    "movnti [rbx], rcx",
    "xchg [rbx], rcx",
    "xchg rcx, [rbx]",
    "lock bts qword ptr [rbx], 9",
    "lock btr qword ptr [rbx], 63",
    "btc qword ptr [rbx], 10",
    "lock btc dword ptr [rbx], 11",
    "lock and qword ptr [rbx], -0x201",
    "or qword ptr [rbx], 0xe00",
    "xor dword ptr [rbx], 0x600",
    "and byte ptr [rbx + 7], 0",
    "lock cmpxchg [rbx], rcx",
    "cmpxchg [rbx], rdx",
    "lock cmpxchg dword ptr [rbx + 4], edx",
    "lock cmpxchg8b [rbx]",
    "cmpxchg8b [rbx]",
    "add qword ptr [rbx], 0x200",
    "sub byte ptr [rbx + 7], 0x80",
    "lock xadd [rbx], rdx",
    "inc byte ptr [rbx + 7]",
    "lock dec byte ptr [rbx + 7]",
]


CASES = [
    (store, equal)
    for store in STORES
    for equal in (True, False)
    if not (equal and "8b" in store)  # the new value would be the test's own address, in EBX
]


@pytest.mark.parametrize(("store", "equal"), CASES)
def test_a_store_does_what_it_would_do_to_memory(guest: Paused, store: str, equal: bool) -> None:
    """The same instruction on an ordinary page and on an L1: memory, registers and flags end alike.

    `equal` is whether a compare-and-exchange finds what it compares with.
    """
    target = entry_va(guest, 3)
    before = entry(guest, 3) | PTE_NX | 1 << 9
    address = guest.entry(guest.page(3))
    ordinary = guest.scratch + 0x1000 | target & 0xFFF
    outcome = []
    for where, home in ((ordinary, guest.domain.memory.for_write(ordinary)), (target, address)):
        guest.domain.ram.writable.q[home >> 3] = before
        compared = before if equal else before ^ 1
        wanted = before ^ 1 << 10
        q, end = guest.q, guest.load(store)
        q[v.RIP], q[v.RSP] = guest.scratch + 0x8000, guest.stack
        q[v.RAX], q[v.RCX], q[v.RDX], q[v.RBX] = compared, wanted, 0x200, where
        q[v.RSI], q[v.RDI], q[v.R8] = where - 8, where - 0x20, 0x10
        if "xadd" not in store and "edx" in store:
            q[v.RDX] = before >> 32 & ~0x80000000
        if "dword ptr [rbx + 4]" in store:
            q[v.RAX] = (before >> 32) if equal else 1
        if "cmpxchg [rbx], rdx" in store:
            q[v.RDX] = wanted
        if "8b" in store:
            # EDX:EAX is compared, ECX:EBX stored; EBX is the address too, so the new value must allow that.
            q[v.RAX], q[v.RDX] = compared & 0xFFFFFFFF, compared >> 32
        guest.cpu.vmcb.set_rflags(0x202)
        assert guest.go(end) is None, f"{store} at {where:#x} raised {guest.handled}"
        addresses = (v.RBX, v.RSI, v.RDI)
        registers = [q[number] - where if number in addresses else q[number] for number in REGISTERS]
        flags = guest.domain.engine.rflags()
        outcome.append((guest.domain.ram.q[home >> 3] & ~0x20, registers, flags))
        assert q[v.RIP] == end
    assert outcome[0] == outcome[1]


def test_a_store_can_change_the_mapping(guest: Paused) -> None:
    guest.put(b"four", 0x4000)
    guest.execute("mov rax, [rbx]")
    old = entry(guest, 3)
    new = old & ~PTE_MFN_MASK | guest.mfn(guest.page(4)) << 12
    assert guest.execute(f"mov rcx, {entry_va(guest, 3)}; mov rax, {new}; mov [rcx], rax") is None
    code = f"mov rcx, {guest.page(3)}; invlpg_by_hand: mov eax, [rcx]"
    guest.domain.engine.flush_tlb()
    assert guest.execute(code) is None
    assert guest.q[v.RAX].to_bytes(4, "little") == b"four"
    frames = guest.machine.frames
    assert frames.type_count[guest.mfn(guest.page(4))] == 2


def test_the_new_value_is_adjusted(guest: Paused) -> None:
    """A leaf without US becomes a kernel's leaf: US and bit 52."""
    wanted = guest.mfn(guest.page(4)) << 12 | 0x63
    code = f"mov rcx, {entry_va(guest, 3)}; mov rax, {wanted}; mov [rcx], rax; mov rax, [rcx]"
    assert guest.execute(code) is None
    assert guest.q[v.RAX] == wanted | 4 | 1 << 52


def refused(guest: Paused, code: str, address: int) -> None:
    """The code's store gives its page fault: a write to a present page, at its address."""
    assert guest.execute(code) == PF
    assert guest.frame(error=True)["error"] == 3
    assert guest.vcpu.info.cr2 == address


def test_refused_values_are_the_page_fault_that_they_were(guest: Paused) -> None:
    where, old = entry_va(guest, 3), entry(guest, 3)
    foreign = guest.machine.board.zero_frame << 12 | 0x67
    table = guest.entry(guest.page(3)) & ~0xFFF | 0x67
    for value in (foreign, table, old | 1 << 3, old | 1 << 4, old | 1 << 7, 0x7FFFFFFF << 12 | 0x67):
        refused(guest, f"mov rcx, {where}; mov rax, {value}; mov [rcx], rax", where)
        assert entry(guest, 3) == old


def test_not_present_values_are_always_accepted(guest: Paused) -> None:
    frames, mfn = guest.machine.frames, guest.mfn(guest.page(3))
    assert guest.execute(f"mov rcx, {entry_va(guest, 3)}; mov rax, -2; mov [rcx], rax") is None
    assert frames.type_count[mfn] == 0
    assert guest.domain.ram.q[guest.entry(guest.page(3)) >> 3] == (1 << 64) - 2


def test_a_store_across_two_entries_is_refused(guest: Paused) -> None:
    where = entry_va(guest, 3)
    refused(guest, f"mov rcx, {where + 4}; xor eax, eax; mov [rcx], rax", where + 4)


@pytest.mark.parametrize(
    "code", ["movaps [rcx], xmm0", "lock cmpxchg16b [rcx]", "mov rdi, rcx; stosq", "pop qword ptr [rcx]"]
)
def test_other_stores_are_refused(guest: Paused, code: str) -> None:
    where = entry_va(guest, 2) & ~15
    refused(guest, f"mov rcx, {where}; {code}", where)


def test_a_page_table_is_no_stack(guest: Paused) -> None:
    """Neither is the push performed, nor is there a place for its exception's frame."""
    guest.execute(f"mov rsp, {entry_va(guest, 3)}; push rax")
    assert guest.domain.life.crashed


def test_without_the_assist_nothing_is_done(guest: Paused) -> None:
    assert guest.vm_assist(1, Assist.WRITABLE_PAGETABLES) == 0
    where = entry_va(guest, 3)
    refused(guest, f"mov rcx, {where}; mov rax, [rcx]; mov [rcx], rax", where)


def test_upper_tables_are_never_written(guest: Paused) -> None:
    for address in (
        guest.vcpu.paging.kernel_l4 << 12,
        guest.domain.ram.q[guest.vcpu.paging.kernel_l4 << 9] & PTE_MFN_MASK,
    ):
        where = table_va(guest, address)
        refused(guest, f"mov rcx, {where}; mov rax, [rcx]; mov [rcx], rax", where)


def test_other_read_only_pages_are_not_written(guest: Paused) -> None:
    assert guest.remap(guest.page(3), 0x25) == 0
    refused(guest, f"mov rcx, {guest.page(3)}; mov [rcx], rax", guest.page(3))


@pytest.mark.promise("I-5")
def test_user_mode_cannot_write_page_tables(guest: Paused) -> None:
    guest.allow_user_mode()
    where = entry_va(guest, 3)
    assert guest.user(f"mov rcx, {where}; mov rax, [rcx]; mov [rcx], rax") == PF
    assert guest.frame(error=True)["error"] == 7


def test_a_narrowed_mapping_counts_less(guest: Paused) -> None:
    frames, mfn = guest.machine.frames, guest.mfn(guest.page(3))
    assert frames.type_count[mfn] == 1
    assert guest.execute(f"mov rcx, {entry_va(guest, 3)}; lock btr qword ptr [rcx], 1") is None
    assert frames.type_count[mfn] == 0
    assert entry(guest, 3) & (PTE_P | PTE_RW) == PTE_P
