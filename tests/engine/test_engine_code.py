# SPDX-License-Identifier: GPL-2.0-only
"""Code that is overwritten is new when it runs, on a tuned engine: by every kind of store, through every page
that leads to its frame, whatever happened to TLB and translations before (`pyhv/cpu/tuning/stores.py`).
"""

import os
import struct
from collections.abc import Iterator

import pytest
import tlb
from bare_engine import ALIAS, CODE, CODE_2, DATA, L1, USER, Bare, at
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from pyhv.abi.x86 import PTE_NX
from pyhv.cpu import vmcb as v
from pyhv.cpu.assembler import assemble
from pyhv.cpu.ram import Ram
from pyhv.cpu.tuning.stores import COUNT, LEVEL, MOST_DOUBLINGS, PATIENCE

DEEP = "PYHV_DEEP" in os.environ
DRIVER, DRIVER_2 = 40, 41
"""Frames for the code that calls and stores."""
RETURN_OLD = bytes.fromhex("48b8") + struct.pack("<Q", 0x1111) + b"\xc3"  # movabs rax, 0x1111; ret
NEW = 0x2222_3333_4444_5555


@pytest.fixture
def bare() -> Iterator[Bare]:
    made = Bare(tuned=True)
    yield made
    made.close()


def call(bare: Bare, address: int) -> int:
    """What the function at an address returns in RAX."""
    bare.q[13] = address
    assert bare.run("call r13; ud2", at(DRIVER)).kind == "invalid"
    return bare.q[v.RAX]


def place(bare: Bare, address: int, code: bytes = RETURN_OLD) -> None:
    """Put code into RAM as the hypervisor does it."""
    bare.ram.writable.raw[address : address + len(code)] = code
    for frame in {address >> 12, address + len(code) - 1 >> 12}:
        bare.engine.invalidate_code(frame)


def function_value(bare: Bare, address: int) -> int:
    """The number in a function that `place` put there, as RAM has it now."""
    raw = bare.ram.raw[address : address + 11]
    assert raw[:2] == RETURN_OLD[:2]
    assert raw[10] == 0xC3
    return int.from_bytes(raw[2:10], "little")


# -- every kind of store -----------------------------------------------------------------------------------

REPAIR = "mov word ptr [r12 - 2], 0xb848; mov byte ptr [r12 + 8], 0xc3"
"""Put back the instructions around the number, for stores that are longer than it."""

STORES = {
    "1 byte": "mov byte ptr [r12 + 1], 0x22",
    "2 bytes": "mov word ptr [r12], 0x2222",
    "4 bytes": "mov dword ptr [r12 + 4], 0x2222",
    "8 bytes": "mov [r12], r14",
    "unaligned 4 bytes": "mov dword ptr [r12 + 1], 0x2222",
    "high byte": "mov rdi, r12; mov ah, 0x77; mov [rdi + 1], ah",
    "read, change, write": "add [r12], r14",
    "locked": "lock add [r12], r14",
    "locked, unaligned": "lock add dword ptr [r12 + 1], 0x2222",
    "exchange": "xchg [r12], r14",
    "compare and exchange": "mov eax, 0x1111; cmpxchg [r12], r14",
    "compare and exchange, locked": "mov eax, 0x1111; lock cmpxchg [r12], r14",
    "compare and exchange 8": "mov eax, 0x1111; xor edx, edx; mov ebx, 34; mov ecx, 1; lock cmpxchg8b [r12]",
    "exchange and add": "lock xadd [r12], r14",
    "bit": "lock bts qword ptr [r12], 20",
    "bit far away": "lea rsi, [r12 - 64]; mov eax, 532; bts [rsi], rax",
    "set on condition": "xor eax, eax; setz byte ptr [r12 + 3]",
    "push": "lea rsp, [r12 + 8]; push r14",
    "call": "lea rsp, [r12 + 8]; call over; over: mov rsp, r15",
    "flags": "lea rsp, [r12 + 8]; pushfq",
    "pop": "push r14; pop qword ptr [r12]",
    "enter": "mov rbp, r14; lea rsp, [r12 + 8]; enter 0, 0; mov rsp, r15",
    "stosq": "mov rax, r14; mov rdi, r12; stosq",
    "rep stosb": "mov al, 0x22; mov rdi, r12; mov ecx, 8; rep stosb",
    "rep stosb downwards": "mov al, 0x22; lea rdi, [r12 + 7]; mov ecx, 8; std; rep stosb; cld",
    "rep movsb": "mov [rbx], r14; mov rsi, rbx; mov rdi, r12; mov ecx, 8; rep movsb",
    "not temporal": "movnti [r12], r14",
    "half of a vector": "movq xmm0, r14; movq [r12], xmm0",
    "a vector": "movq xmm0, r14; movlhps xmm0, xmm0; movups [r12 - 8], xmm0;" + REPAIR,
    "upper half": "movq xmm0, r14; movlhps xmm0, xmm0; movhps [r12], xmm0",
    "float": "movq xmm0, r14; movss [r12], xmm0",
    "fst": "mov [rbx], r14; fild qword ptr [rbx]; fistp qword ptr [r12]",
    "fstp of 10 bytes": "fldpi; .byte 0x41, 0xdb, 0x7c, 0x24, 0xfe;" + REPAIR,
    "masked": "movq xmm0, r14; mov rax, 0x80808080; movq xmm1, rax; mov rdi, r12; maskmovdqu xmm0, xmm1",
    "fxsave": "lea rdi, [r12 - 0x110]; and rdi, -16; fxsave [rdi];" + REPAIR,
}  # fmt: skip


@pytest.mark.promise("C-8")
@pytest.mark.parametrize("alias", ["itself", "executable", "no-execute"])
@pytest.mark.parametrize("ring", [3, 1])
@pytest.mark.parametrize("store", STORES.values(), ids=list(STORES))
def test_code_that_is_overwritten_is_new(bare: Bare, store: str, ring: int, alias: str) -> None:
    page = CODE if alias == "itself" else ALIAS
    bare.ram.writable.q[L1 << 9 | ALIAS] = at(CODE) | USER | (PTE_NX if alias == "no-execute" else 0)
    for offset in (0x23E, 0x202):  # the number is aligned; it is not
        place(bare, at(CODE, offset))
        bare.ring(ring)
        assert call(bare, at(CODE, offset)) == 0x1111
        tlb.check(bare)
        bare.q[12], bare.q[14], bare.q[15] = at(page, offset + 2), NEW, at(DATA, 0x800)
        bare.ring(ring)
        assert bare.run(store.replace(": ", ":;") + "; ud2", at(DRIVER_2)).kind == "invalid"
        assert function_value(bare, at(CODE, offset)) != 0x1111
        bare.ring(ring)
        assert call(bare, at(CODE, offset)) == function_value(bare, at(CODE, offset))
        tlb.check(bare)


@pytest.mark.promise("C-8")
@pytest.mark.parametrize("size", [2, 4, 8])
@pytest.mark.parametrize("before", [False, True])
def test_a_store_across_two_pages(bare: Bare, size: int, before: bool) -> None:
    """Code on the second page only, on the first only; the pages' frames lie elsewhere and apart."""
    first, second = at(CODE), at(CODE_2 + 4)
    bare.ram.writable.q[L1 << 9 | 44] = first | USER | PTE_NX
    bare.ram.writable.q[L1 << 9 | 45] = second | USER | PTE_NX
    address = first + 4096 - 11 if before else at(47) - 2
    if before:
        place(bare, address)
    else:  # the function's opcode lies on the page before
        bare.ram.writable.q[L1 << 9 | 46], bare.ram.writable.q[L1 << 9 | 47] = at(50) | USER, second | USER
        bare.ram.writable.raw[at(50, 4094) : at(51)] = RETURN_OLD[:2]
        bare.ram.writable.raw[second : second + 9] = RETURN_OLD[2:]
    assert call(bare, address) == 0x1111
    reg = {2: "r14w", 4: "r14d", 8: "r14"}[size]
    bare.q[12], bare.q[14] = at(45) - size // 2, int.from_bytes(b"\xc3" * 8, "little")
    assert bare.run(f"mov [r12], {reg}; ud2", at(DRIVER_2)).kind == "invalid"
    tlb.check(bare)
    if before:
        assert bare.ram.raw[first + 4095] == 0xC3
    else:
        assert call(bare, address) == 0x1111 & -1 << 4 * size | bare.q[14] & (1 << 4 * size) - 1


def test_a_block_that_changes_its_own_next_instruction(bare: Bare) -> None:
    for page in (CODE, ALIAS):
        source = f"mov byte ptr [{at(page)} + rcx], 2; mov eax, 1; ud2"
        length = len(assemble(source.split(";", maxsplit=1)[0], at(CODE)))
        bare.q[v.RCX] = length + 1
        bare.run(source)
        assert bare.q[v.RAX] == 2


def test_a_page_that_means_different_frames_in_user_and_kernel_mode(bare: Bare) -> None:
    """As after a change of the entry without a flush: what one mode learns must not unmark the other's."""
    touch = "test byte ptr [r12], 1; ud2"
    place(bare, at(CODE, 0x23E))
    call(bare, at(CODE, 0x23E))
    bare.q[12] = at(44, 0x240)
    bare.ram.writable.q[L1 << 9 | 44] = at(CODE) | USER | PTE_NX
    bare.ring(1)
    bare.run(touch, at(DRIVER_2))
    bare.ram.writable.q[L1 << 9 | 44] = at(CODE_2) | USER | PTE_NX
    bare.ring(3)
    bare.run(touch, at(DRIVER_2))
    frames = {(entry.mode, entry.frame) for entry in tlb.entries(bare) if entry.read == at(44)}
    assert len(frames) == 2
    assert {frame for _, frame in frames} == {CODE, CODE_2}
    assert tlb.is_fast(bare, 44)
    tlb.check(bare)
    bare.ring(1)
    bare.q[14] = NEW
    bare.run("mov [r12], r14; ud2", at(DRIVER_2))
    assert function_value(bare, at(CODE, 0x23E)) == NEW
    assert call(bare, at(CODE, 0x23E)) == NEW


# -- how long a frame is watched ---------------------------------------------------------------------------


@pytest.mark.promise("C-8")
def test_a_frame_is_watched_while_it_has_translations(bare: Bare) -> None:
    place(bare, at(CODE))
    assert not tlb.is_watched(bare, CODE)
    call(bare, at(CODE))
    assert tlb.is_watched(bare, CODE)
    assert tlb.is_watched(bare, DRIVER)
    assert not tlb.is_watched(bare, DATA)
    bare.engine.invalidate_code(CODE)
    assert not tlb.is_watched(bare, CODE)
    call(bare, at(CODE))
    assert tlb.is_watched(bare, CODE)
    bare.q[12] = at(CODE)
    bare.run("mov byte ptr [r12], 0x48; ud2", at(DRIVER_2))  # the only block of the frame
    assert not tlb.is_watched(bare, CODE)


def test_the_library_is_asked_to_drop_translations_only_where_there_are_some(
    bare: Bare, monkeypatch: pytest.MonkeyPatch
) -> None:
    drop, dropped = bare.engine._invalidate, []

    def dropping(handle: int, start: int, end: int) -> None:
        dropped.append(start >> 12)
        drop(handle, start, end)

    monkeypatch.setattr(bare.engine, "_invalidate", dropping)
    for frame in (CODE, CODE_2, DATA):
        bare.engine.invalidate_code(frame)
    assert dropped == []
    place(bare, at(CODE_2) - 5)
    call(bare, at(CODE_2) - 5)
    for frame in (CODE, CODE_2, DATA):
        bare.engine.invalidate_code(frame)
    assert dropped[0] == CODE
    assert DATA not in dropped
    assert not tlb.is_watched(bare, CODE)


def test_both_frames_of_a_block_are_watched(bare: Bare) -> None:
    place(bare, at(CODE_2) - 5)
    assert call(bare, at(CODE_2) - 5) == 0x1111
    assert tlb.is_watched(bare, CODE)
    assert tlb.is_watched(bare, CODE_2)
    tlb.check(bare)


def test_stores_are_slow_only_while_a_frame_is_watched(bare: Bare) -> None:
    store = "mov [r12], r14; ud2"
    bare.q[12] = at(CODE_2, 0x800)
    bare.run(store, at(DRIVER_2))
    assert tlb.is_fast(bare, CODE_2)  # although it is executable
    place(bare, at(CODE_2))
    call(bare, at(CODE_2))
    assert not tlb.is_fast(bare, CODE_2)
    bare.run(store, at(DRIVER_2))
    assert not tlb.is_fast(bare, CODE_2)
    bare.engine.invalidate_code(CODE_2)
    bare.run(store, at(DRIVER_2))
    assert tlb.is_fast(bare, CODE_2)


def test_a_frame_that_becomes_data_heals_and_may_have_code_again(bare: Bare) -> None:
    """The number of slow stores that it takes doubles each time, up to a limit."""
    loop = "again:; mov [r12], ecx; dec ecx; jnz again; ud2"
    for round_number in range(MOST_DOUBLINGS + 3):
        place(bare, at(CODE))
        call(bare, at(CODE))
        patience = PATIENCE << min(round_number, MOST_DOUBLINGS)
        assert tlb.word(bare, CODE) & COUNT == patience
        bare.q[12], bare.q[v.RCX] = at(CODE, 0x800), patience - 1
        bare.run(loop, at(DRIVER_2))
        assert tlb.word(bare, CODE) & COUNT == 1
        bare.q[v.RCX] = 2
        bare.run(loop, at(DRIVER_2))
        assert tlb.word(bare, CODE) == LEVEL * min(round_number + 1, MOST_DOUBLINGS)
        assert tlb.is_fast(bare, CODE)
        tlb.check(bare)


@pytest.mark.promise("C-8")
@pytest.mark.parametrize("page", [CODE, ALIAS])
def test_a_block_that_stores_to_its_own_frame_very_often_stays_watched(bare: Bare, page: int) -> None:
    """All in one block, the last store changes the instruction behind it."""
    many = PATIENCE + 20
    stores = "".join(f"mov byte ptr [r12 + {0xE00 + n}], 7\n" for n in range(many))
    source = f"{stores}mov byte ptr [r12 + r15], 2\nmov eax, 1\nud2"
    bare.q[12], bare.q[15] = at(page), len(assemble(source, at(CODE))) - 6
    bare.run(source.replace("\n", ";"))
    assert bare.q[v.RAX] == 2
    tlb.check(bare)


def test_dropping_all_translations_clears_all_frames(bare: Bare) -> None:
    place(bare, at(CODE))
    call(bare, at(CODE))
    bare.engine.watch_memory(None)
    assert not any(tlb.word(bare, frame) for frame in range(bare.ram.frames))
    call(bare, at(CODE))
    assert tlb.is_watched(bare, CODE)
    tlb.check(bare)


def test_code_stays_right_when_the_translation_buffer_overflows(monkeypatch: pytest.MonkeyPatch) -> None:
    """More blocks than the smallest buffer holds, again and again, and each frame is overwritten between."""
    monkeypatch.setattr("pyhv.cpu.engine._TRANSLATIONS", 1 << 20)
    bare = Bare(tuned=True)
    frames = range(24, 36)
    try:
        for frame in frames:
            source = "".join(f"add rax, {n}\njmp l{n}\nl{n}:\n" for n in range(500)) + "ret"
            place(bare, at(frame), assemble(source, at(frame)))
        for turn in range(4):
            for frame in frames:
                bare.q[v.RAX] = 0
                assert call(bare, at(frame)) == sum(range(500)) + turn
                bare.q[12] = at(frame, 3)
                bare.run("inc byte ptr [r12]; ud2", at(DRIVER_2))
                tlb.check(bare)
            assert {tlb.is_watched(bare, frame) for frame in frames} == {False, True}
    finally:
        bare.close()


# -- machines of other sizes -------------------------------------------------------------------------------


def test_memory_beyond_4_gib() -> None:
    frames = (4 << 30 >> 12) + 64
    bare = Bare(ram=Ram(frames), tuned=True)
    try:
        high = frames - 1
        bare.ram.writable.q[L1 << 9 | 44] = at(high) | USER
        bare.ram.writable.q[L1 << 9 | 45] = at(high) | USER | PTE_NX
        place(bare, at(high, 0x23E))
        assert call(bare, at(44, 0x23E)) == 0x1111
        assert tlb.is_watched(bare, high)
        assert not tlb.is_watched(bare, high - (4 << 30 >> 12))
        bare.q[12], bare.q[14] = at(45, 0x240), NEW
        bare.run("mov [r12], r14; ud2", at(DRIVER_2))
        assert call(bare, at(44, 0x23E)) == NEW
    finally:
        bare.close()


# -- anything, in any order --------------------------------------------------------------------------------

FRAMES = (CODE, CODE_2)
PAGES = tuple(range(48, 56)) + tuple(range(48 + 256, 56 + 256))
"""Pages of the second group fall on the same entries of the TLB as those of the first."""
SPOTS = (0x23E, 0x400, 0x7FB, 0xA01)


class Programs(RuleBasedStateMachine):
    """Functions in two frames, pages that lead to them, calls and stores; the model is RAM itself."""

    def __init__(self) -> None:
        super().__init__()
        self.bare = Bare(tuned=True)
        self.pages: dict[int, tuple[int, bool]] = {}

    def teardown(self) -> None:
        self.bare.close()

    @initialize()
    def set_up(self) -> None:
        for frame in FRAMES:
            for spot in SPOTS:
                place(self.bare, at(frame, spot))
        for page in PAGES:
            self._map(page, FRAMES[page & 1], page & 2 != 0)
        self.bare.engine.flush_tlb()

    def _map(self, page: int, frame: int, executable: bool) -> None:
        self.bare.ram.writable.q[L1 << 9 | page] = at(frame) | USER | (0 if executable else PTE_NX)
        self.pages[page] = frame, executable

    @rule(page=st.sampled_from(PAGES), frame=st.sampled_from(FRAMES), executable=st.booleans())
    def map(self, page: int, frame: int, executable: bool) -> None:
        self._map(page, frame, executable)
        self.bare.engine.flush_page(at(page))

    @rule(page=st.sampled_from(PAGES), spot=st.sampled_from(SPOTS), ring=st.sampled_from((3, 1)))
    def call(self, page: int, spot: int, ring: int) -> None:
        frame, executable = self.pages[page]
        if executable:
            self.bare.ring(ring)
            assert call(self.bare, at(page, spot)) == function_value(self.bare, at(frame, spot))

    @rule(
        page=st.sampled_from(PAGES), spot=st.sampled_from(SPOTS), ring=st.sampled_from((3, 1)),
        value=st.integers(0, (1 << 64) - 1), offset=st.integers(0, 7), times=st.sampled_from((1, 1, 40, 300)),
        how=st.sampled_from(("mov [r12], {r}", "xchg [r12], {r}", "lock add [r12], {r}", "xor [r12], {r}")),
    )  # fmt: skip
    def store(self, page: int, spot: int, ring: int, value: int, offset: int, times: int, how: str) -> None:
        size = next(size for size in (8, 4, 2, 1) if offset + size <= 8)
        register = {8: "r14", 4: "r14d", 2: "r14w", 1: "r14b"}[size]
        bare = self.bare
        bare.ring(ring)
        bare.q[12], bare.q[14], bare.q[v.RCX] = at(page, spot + 2 + offset), value, times
        bare.run(f"again:; {how.format(r=register)}; dec ecx; jnz again; ud2", at(DRIVER_2))

    @rule(page=st.sampled_from(PAGES), offset=st.integers(0xB00, 0xFF0), times=st.sampled_from((1, 10, 300)))
    def store_data(self, page: int, offset: int, times: int) -> None:
        self.bare.q[12], self.bare.q[v.RCX] = at(page, offset), times
        self.bare.run("again:; mov [r12], rcx; dec ecx; jnz again; ud2", at(DRIVER_2))

    @rule(frame=st.sampled_from(FRAMES), spot=st.sampled_from(SPOTS), value=st.integers(0, (1 << 64) - 1))
    def store_by_hypervisor(self, frame: int, spot: int, value: int) -> None:
        place(self.bare, at(frame, spot), RETURN_OLD[:2] + struct.pack("<Q", value) + b"\xc3")

    @rule()
    def flush_tlb(self) -> None:
        self.bare.engine.flush_tlb()

    @rule(page=st.sampled_from(PAGES))
    def flush_page(self, page: int) -> None:
        self.bare.engine.flush_page(at(page))

    @rule(watching=st.booleans())
    def watch(self, watching: bool) -> None:
        self.bare.engine.watch_memory((lambda _address, _size, _store: None) if watching else None)

    @rule(first=st.sampled_from((0, 100, 200, 300, 400)))
    def touch_many_pages(self, first: int) -> None:
        """Fill the TLB, so that entries are evicted and it changes its size at the next flush."""
        self.bare.q[12], self.bare.q[v.RCX] = at(first), 100
        self.bare.run("again:; test byte ptr [r12], 1; add r12, 4096; dec ecx; jnz again; ud2", at(DRIVER_2))

    @invariant()
    def nothing_passes_unseen(self) -> None:
        tlb.check(self.bare)


Programs.TestCase.settings = settings(
    max_examples=1000 if DEEP else 12, stateful_step_count=40, suppress_health_check=list(HealthCheck)
)
TestPrograms = pytest.mark.promise("C-8")(Programs.TestCase)
