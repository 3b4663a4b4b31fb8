# SPDX-License-Identifier: GPL-2.0-only
"""Whose memory it was does not show, and what nobody touched costs the host nothing."""

import ctypes
import resource

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from mmu_bench import Bench

from pyhv.address import Mfn
from pyhv.cpu.ram import Ram
from pyhv.domain.config import DomainConfig
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig
from pyhv.testing.guest_machine import HEADER, START, TRAPS, Sink, run
from pyhv.until import Outcome

_libc = ctypes.CDLL(None, use_errno=True)
MIB = 256
"""Frames."""


def resident(ram: Ram) -> int:
    """Frames that the host has provided."""
    present = (ctypes.c_ubyte * ram.frames)()
    assert _libc.mincore(ctypes.c_void_p(ram.address), ctypes.c_size_t(ram.size), present) == 0
    return int((np.frombuffer(bytes(present), dtype=np.uint8) & 1).sum())


# -- the host's memory -------------------------------------------------------------------------------------


@pytest.mark.promise("L-25")
@pytest.mark.parametrize("name", ["hello", "hello32"])
def test_memory_that_no_guest_touched_costs_nothing(name: str) -> None:
    pages = 4096 * MIB
    machine = Machine(MachineConfig(pages, virtual_time=True))
    try:
        for _ in range(2):
            sink = Sink()
            machine.create(load_image(build_builtin(name), name), DomainConfig(name, pages), console=sink)
            assert resident(machine.ram) < 40 * MIB  # the M2P, 12 bytes a frame, and the guest's p2m list
            assert machine.run() is Outcome.ENDED
            assert b"SUCCESS\n" in sink.data
            assert resident(machine.ram) < 16 * MIB
    finally:
        machine.close()


def test_what_a_guest_gives_back_the_host_gets_back() -> None:
    ram = Ram(64)
    ram.writable.tables[:] = 7
    ram.clear(np.array([3, 4, 5, 9, 63], dtype=np.int64))
    assert resident(ram) == 64 - 5
    assert np.flatnonzero(~ram.tables.any(axis=1)).tolist() == [3, 4, 5, 9, 63]
    assert (ram.tables[[2, 6, 8, 10, 62]] == 7).all()
    ram.clear(np.array([], dtype=np.int64))
    ram.clear_run(2)
    assert not ram.tables[2].any()


def test_memory_that_the_process_has_locked_is_zeroed_all_the_same() -> None:
    ram = Ram(16)
    if resource.getrlimit(resource.RLIMIT_MEMLOCK)[0] in range(ram.size):
        pytest.skip("this process may not lock memory")
    assert _libc.mlock(ctypes.c_void_p(ram.address), ctypes.c_size_t(ram.size)) == 0
    ram.writable.tables[:] = 7
    ram.clear(np.array([3, 4, 9], dtype=np.int64))
    assert np.flatnonzero(~ram.tables.any(axis=1)).tolist() == [3, 4, 9]


# -- what the next owner finds -----------------------------------------------------------------------------

_SECRET = 0x5EC2E7


@pytest.mark.promise("I-11")
@given(st.lists(st.tuples(st.sampled_from(["take", "extent", "shared", "give", "die"]), st.integers(0, 63))))
def test_whoever_is_given_a_frame_finds_zeros(steps: list[tuple[str, int]]) -> None:
    bench = Bench(256, domains=0)
    frames, ram = bench.frames, bench.ram
    shared: list[int] = []
    for step, number in steps:
        owner = 1 + number % 2
        mine = np.flatnonzero((frames.owner_np == owner) & (frames.allocated_np == 1))
        taken: list[int] = []
        if step == "take" and frames.free_count > number:
            taken = list(frames.allocate(owner, number))
        elif step == "extent" and frames.free_count > 128:
            taken = list(frames.allocate_extent(owner, number % 5))
        elif step == "shared" and frames.free_count:
            taken = [frames.allocate_shared(owner)]
            shared += taken
        elif step == "give" and mine.size:
            frames.deallocate(Mfn(int(mine[number % mine.size])))
        elif step == "give" and shared:
            frames.drop_shared(Mfn(shared.pop()))
        elif step == "die":
            frames.free_allocated(owner)
        assert not ram.tables[taken].any()
        ram.writable.tables[taken] = _SECRET
        for mfn in taken[: number & 3]:
            frames.code[mfn] = 1
        assert not ram.tables[frames.free_list()].any()
        assert not frames.code_np[frames.free_list()].any()
        free = set(frames.free_list().tolist())
        assert len(free) == frames.free_count
        assert not free & set(taken)


def test_an_extent_is_the_lowest_that_is_free_and_aligned() -> None:
    bench = Bench(256, domains=0)
    frames = bench.frames
    blocker = frames.allocate(1, frames.free_count)
    for mfn in (*range(65, 80), *range(100, 140), *range(160, 176)):
        frames.deallocate(mfn)
    assert frames.allocate_extent(1, 4) == list(range(112, 128))
    assert frames.allocate_extent(1, 4) == list(range(160, 176))
    assert frames.free_count == 15 + 24
    assert set(frames.free_list().tolist()) < set(blocker)


CODE_COMES_BACK = (
    HEADER
    + START
    + TRAPS
    + """
    lea rdi, [rip + page]
    call va_to_mfn
    mov [rip + frame], rax
    lea rax, [rip + page]
    mov dword ptr [rax], 0x2ab8                 # mov eax, 42; ret
    mov word ptr [rax + 4], 0xc300
    call rax
    cmp eax, 42
    check e, "the code did not run"
    lea rdi, [rip + page]
    xor esi, esi
    xor edx, edx
    hypercall update_va_mapping
    must_succeed "unmapping the page"
    mov edi, XENMEM_decrease_reservation
    lea rsi, [rip + give]
    hypercall memory_op
    cmp rax, 1
    check e, "giving the frame back"
    mov edi, XENMEM_populate_physmap
    lea rsi, [rip + take]
    hypercall memory_op
    cmp rax, 1
    check e, "getting a frame"
    mov rsi, [rip + other]
    cmp rsi, [rip + frame]
    check e, "another frame came back"
    lea rdi, [rip + page]
    shl rsi, 12
    or rsi, PTE_P | PTE_RW | PTE_A | PTE_D
    mov edx, UVMF_INVLPG
    hypercall update_va_mapping
    must_succeed "mapping the page"
    lea rbx, [rip + page]
    mov rax, 0x7000000000
    trap_begin .zeros
    call rbx                                    # add [rax], al
.zeros:
    trap_check TRAP_page_fault, "running zeros"
    succeed
.data
.balign 8
give:   .quad frame, 1, 0, DOMID_SELF
take:   .quad other, 1, 0, DOMID_SELF
frame:  .quad 0
other:  .quad 0                                 # the PFN wanted, then the frame got
.bss
.balign PAGE_SIZE
page:   .zero PAGE_SIZE
"""
)


@pytest.mark.promise("I-11")
def test_a_frame_that_comes_back_does_not_run_its_old_code() -> None:
    made = run(CODE_COMES_BACK)
    assert made.passed, made.output
