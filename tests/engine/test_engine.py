# SPDX-License-Identifier: GPL-2.0-only
"""What pyhv relies on in the emulator, fact by fact: the guard against another version of it.

Each test runs a few instructions on an engine without a hypervisor. If one fails after an upgrade, the place
in `pyhv/cpu/` that depends on the fact must be looked at before the test is changed.
"""

from collections.abc import Iterator

import pytest
from bare_engine import (
    ABSENT,
    ALIAS,
    CODE,
    CODE_2,
    DATA,
    HOLE,
    L1,
    NO_EXECUTE,
    READ_ONLY,
    SUPERVISOR,
    USER,
    Bare,
    Exit,
    at,
)
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.cpu import binding, decode
from pyhv.cpu import vmcb as v
from pyhv.cpu.assembler import assemble

pytestmark = pytest.mark.usefixtures("both_engines")

START = at(CODE)
BOTH_RINGS = pytest.mark.parametrize("ring", [1, 3])


@pytest.fixture
def bare() -> Iterator[Bare]:
    made = Bare()
    yield made
    made.close()


# -- exceptions --------------------------------------------------------------------------------------------


@BOTH_RINGS
@pytest.mark.parametrize(
    ("code", "vector", "where"),
    [
        ("nop; xor ecx, ecx; div ecx", 0, 3),
        ("nop; cli", 13, 1),
        ("nop; sti", 13, 1),
        ("nop; hlt", 13, 1),
        ("nop; clts", 13, 1),
        ("nop; swapgs", 13, 1),
        ("nop; rdmsr", 13, 1),
        ("nop; wrmsr", 13, 1),
        ("nop; mov rax, cr0", 13, 1),
        ("nop; mov cr3, rax", 13, 1),
        ("nop; mov rax, dr7", 13, 1),
        ("nop; mov dr0, rax", 13, 1),
        ("nop; invlpg [rbx]", 13, 1),
        ("nop; lgdt [rbx]", 13, 1),
        ("nop; lidt [rbx]", 13, 1),
        ("nop; ltr ax", 13, 1),
        ("nop; lldt ax", 13, 1),
        ("nop; lmsw ax", 13, 1),
        ("nop; sysretq", 13, 1),
        ("nop; wbinvd", 13, 1),
    ],
)
def test_faults_leave_rip_at_the_instruction(
    bare: Bare, ring: int, code: str, vector: int, where: int
) -> None:
    if code.endswith("lldt ax"):
        code = b"\x90\x0f\x00\xd0"  # type: ignore[assignment]
    elif code.endswith("sysretq"):
        code = b"\x90\x48\x0f\x07"  # type: ignore[assignment]
    bare.ring(ring)
    assert bare.run(code) == Exit("exception", START + where, vector, 0)


READ, WRITE = "mov rax, [rcx]", "mov [rcx], rax"


@pytest.mark.parametrize(
    ("ring", "frame", "access", "error"),
    [
        (3, SUPERVISOR, READ, 0b101),
        (3, SUPERVISOR, WRITE, 0b111),
        (3, READ_ONLY, WRITE, 0b111),
        (3, ABSENT, READ, 0b100),
        (3, ABSENT, WRITE, 0b110),
        (1, READ_ONLY, WRITE, 0b011),
        (1, ABSENT, READ, 0b000),
        (1, ABSENT, WRITE, 0b010),
    ],
)
def test_page_faults(bare: Bare, ring: int, frame: int, access: str, error: int) -> None:
    """The U bit tells ring 3 from ring 1; CR2 is the address, RIP the instruction."""
    bare.ring(ring)
    code = assemble(f"mov rcx, {at(frame, 0x123)}", START)
    seen = bare.run(f"mov rcx, {at(frame, 0x123)}; {access}")
    assert seen == Exit("exception", START + len(code), 14, error)
    assert bare.vmcb.cr2 == at(frame, 0x123)


@pytest.mark.parametrize("access", [READ, WRITE])
def test_ring_1_uses_supervisor_pages(bare: Bare, access: str) -> None:
    bare.ring(1)
    assert bare.run(f"mov rcx, {at(SUPERVISOR)}; {access}; ud2").kind == "invalid"


@BOTH_RINGS
def test_no_execute(bare: Bare, ring: int) -> None:
    bare.ring(ring)
    seen = bare.run(f"mov rax, {at(NO_EXECUTE, 4)}; jmp rax")
    assert seen == Exit("exception", at(NO_EXECUTE, 4), 14, 0x11 | (4 if ring == 3 else 0))
    assert bare.vmcb.cr2 == at(NO_EXECUTE, 4)


def test_an_empty_table_faults_at_the_first_fetch(bare: Bare) -> None:
    bare.q[v.CR + 3] = at(HOLE)
    assert bare.run("nop") == Exit("exception", START, 14, 0x14)


def test_accessed_and_dirty_bits_are_set(bare: Bare) -> None:
    entry = L1 << 9 | DATA
    bare.ram.writable.q[entry] &= ~0x60
    bare.run("mov rax, [rbx]; ud2")
    assert bare.ram.q[entry] & 0x60 == 0x20
    bare.run("mov [rbx], rax; ud2")
    assert bare.ram.q[entry] & 0x60 == 0x60


@pytest.mark.parametrize("code", ["mov rax, [rcx]", "push qword ptr [rcx]", "jmp rcx"])
def test_non_canonical_addresses_are_general_protection_faults(bare: Bare, code: str) -> None:
    seen = bare.run(f"mov rcx, 0x800000000000; {code}")
    assert (seen.kind, seen.vector, seen.error) == ("exception", 13, 0)
    assert seen.rip == (0x800000000000 if code == "jmp rcx" else START + 10)


def test_faults_in_a_row_do_not_become_a_double_fault(bare: Bare) -> None:
    for frame in (SUPERVISOR, READ_ONLY, SUPERVISOR, ABSENT):
        seen = bare.run(f"mov rcx, {at(frame)}; mov [rcx], rax")
        assert (seen.kind, seen.vector) == ("exception", 14)
    assert [bare.run("cli").vector for _ in range(3)] == [13, 13, 13]


def test_faults_in_a_row_inside_one_run(bare: Bare) -> None:
    """The same when the sink deals with each without leaving the engine."""

    def skip(seen: Exit) -> bool:
        bare.q[v.RIP] += 1
        return seen.kind == "exception"

    bare.sink.handle = skip
    bare.run("cli; cli; cli; cli; ud2")
    assert [seen.vector for seen in bare.sink.exits] == [13, 13, 13, 13, -1]


@BOTH_RINGS
@pytest.mark.parametrize("number", [0x03, 0x20, 0x80, 0x82, 0xFF])
def test_int_n_leaves_rip_behind_and_checks_no_privilege(bare: Bare, ring: int, number: int) -> None:
    bare.ring(ring)
    seen = bare.run(bytes([0x90, 0xCD, number]))
    assert (seen.kind, seen.vector, seen.rip) == ("interrupt", number, START + 3)


def test_int3(bare: Bare) -> None:
    seen = bare.run("int3")
    assert (seen.kind, seen.vector, seen.rip) == ("interrupt", 3, START + 1)


def test_an_exception_after_an_interrupt_is_told_from_it(bare: Bare) -> None:
    assert bare.run("int 0x21").kind == "interrupt"
    assert bare.run("cli").kind == "exception"
    assert bare.run("int 13").kind == "interrupt"


@BOTH_RINGS
@pytest.mark.parametrize(
    "code",
    [
        b"\x0f\x0b",
        b"\x0f\x0bxen\x0f\xa2",
        b"\x06",
        b"\x0f\x01\xc1",  # VMCALL
        b"\x0f\x01\xd9",  # VMMCALL
        b"\x0f\x01\xc9",  # MWAIT
        b"\x0f\x01\xd0",  # XGETBV
        b"\x0f\xaa",  # RSM
        b"\xf3\x48\x0f\xae\xc0",  # RDFSBASE
        b"\xf0\x90",  # LOCK NOP
        b"\x0f\xc7\xf0",  # RDRAND: a run would not be repeatable
        b"\x0f\xc7\xf8",  # RDSEED
        b"\x66\x0f\x38\xf6\xc1",  # ADCX, which CPUID does not offer either
        b"\x0f\x01\xca",  # CLAC
    ],
    ids=bytes.hex,
)
def test_invalid_opcodes_arrive_at_their_address(bare: Bare, ring: int, code: bytes) -> None:
    bare.ring(ring)
    assert bare.run(b"\x90" + code) == Exit("invalid", START + 1)


def test_single_step(bare: Bare) -> None:
    bare.run("ud2")
    bare.vmcb.set_rflags(0x302)
    seen = bare.run("nop; nop")
    assert (seen.kind, seen.vector, seen.rip) == ("exception", 1, START + 1)
    assert bare.q[v.DR + 6] & 0x4000


@pytest.mark.parametrize("code", ["fld1", "movaps xmm0, xmm1", "fwait"])
def test_task_switched_makes_fpu_instructions_fault(bare: Bare, code: str) -> None:
    bare.run("ud2")
    bare.vmcb.task_switched = True
    bare.write(code)
    bare.engine.invalidate_code(CODE)
    bare.q[v.RIP] = START
    assert bare.go() == Exit("exception", START, 7, 0)
    bare.vmcb.task_switched = False
    assert bare.go().vector != 7


def test_a_sinks_exception_comes_out_of_run(bare: Bare) -> None:
    def fail(_exit: Exit) -> bool:
        raise LookupError("from the sink")

    bare.sink.handle = fail
    with pytest.raises(LookupError, match="from the sink"):
        bare.run("cli; jmp rbx")
    assert len(bare.sink.exits) == 1


# -- system calls ------------------------------------------------------------------------------------------


@BOTH_RINGS
@pytest.mark.parametrize("prefixes", [b"", b"\x48", b"\x66", b"\x2e\x48", b"\x66" * 13], ids=bytes.hex)
@pytest.mark.parametrize("kind", ["syscall", "sysenter"])
def test_syscall_is_seen_at_its_address_and_goes_on_where_it_is_told(
    bare: Bare, ring: int, prefixes: bytes, kind: str
) -> None:
    """The emulator adds the instruction's length to RIP after the hook, whatever the hook stored."""
    bare.ring(ring)
    code = prefixes + (b"\x0f\x05" if kind == "syscall" else b"\x0f\x34")
    bare.engine.instruction_length = lambda rip: decode.length(bytes(bare.ram.raw[rip : rip + 15]))
    seen = bare.run(b"\x90" + code + b"\x0f\x0b")
    assert seen == Exit(kind, START + 1, detail=len(code))
    assert bare.go() == Exit("invalid", START + 1 + len(code))


def test_syscall_can_be_sent_anywhere_without_leaving_the_engine(bare: Bare) -> None:
    def enter(seen: Exit) -> bool:
        if seen.kind == "syscall":
            bare.q[v.RIP] = at(CODE_2, 8)
            return True
        return False

    bare.write("ud2", at(CODE_2, 8))
    bare.sink.handle = enter
    assert bare.run("syscall") == Exit("invalid", at(CODE_2, 8))


def test_the_privilege_level_can_change_in_an_exit(bare: Bare) -> None:
    """CPL lives in hflags: written in the hook, it holds from the next instruction on."""

    def change(seen: Exit) -> bool:
        if seen.kind == "syscall":
            bare.vmcb.cpl = 1 if bare.vmcb.cpl == 3 else 3
            return True
        return False

    bare.sink.handle = change
    code = f"mov edx, {at(SUPERVISOR)}; syscall; mov rax, [rdx]; syscall; mov rax, [rdx]"
    seen = bare.run(code)
    assert (seen.vector, seen.error) == (14, 5)
    assert [one.kind for one in bare.sink.exits] == ["syscall", "syscall", "exception"]


def test_cpuid_is_answered_by_the_sink(bare: Bare) -> None:
    def answer() -> None:
        bare.q[v.RAX], bare.q[v.RBX], bare.q[v.RCX], bare.q[v.RDX] = 1, 2, 3, 4

    bare.sink.answer = answer
    bare.run("xor eax, eax; cpuid; ud2")
    assert tuple(bare.q[0:4]) == (1, 3, 4, 2)


@BOTH_RINGS
def test_the_clock_is_read_from_the_sink(bare: Bare, ring: int) -> None:
    def answer() -> None:
        bare.q[v.RAX], bare.q[v.RDX] = 5, 7

    bare.ring(ring)
    bare.sink.answer = answer
    bare.run("cmp eax, eax; rdtsc; setz sil; mov edi, eax; xor eax, eax; rdtscp; mov r8d, edx; ud2")
    assert [(one.kind, one.rip - START) for one in bare.sink.exits[:2]] == [("rdtsc", 2), ("rdtscp", 12)]
    assert (bare.q[v.RDI], bare.q[v.RSI] & 0xFF, bare.q[v.RAX], bare.q[v.R8]) == (5, 1, 5, 7)


@BOTH_RINGS
@pytest.mark.parametrize("code", ["nop; rdtsc", "nop; rdtscp"])
def test_the_clock_may_fault_instead(bare: Bare, ring: int, code: str) -> None:
    bare.ring(ring)
    bare.engine.trap_user_time(True)
    assert bare.run(code) == Exit("exception", START + 1, 13, 0)
    bare.engine.trap_user_time(False)
    bare.run(code + "; ud2")
    assert [one.kind for one in bare.sink.exits] == [code[5:], "invalid"]


# -- flags -------------------------------------------------------------------------------------------------

SETTABLE = 0x8D5 | 0x400 | 0x4000 | 1 << 18 | 1 << 21
"""CF PF AF ZF SF OF DF NT AC ID: what ring 3 can change."""


@settings(max_examples=60)
@given(st.integers(0, 1 << 22))
def test_flags_survive_the_way_in_and_out(value: int) -> None:
    bare = _shared()
    bare.run("cld; ud2")
    wanted = value & SETTABLE | 0x202
    bare.vmcb.set_rflags(wanted)
    assert bare.engine.rflags() == wanted
    bare.run("pushfq; pop qword ptr [rbx]; ud2")
    assert bare.data() & ~0x10000 == wanted
    assert bare.engine.rflags() == wanted
    bare.vmcb.set_rflags(0x202)


@settings(max_examples=60)
@given(
    st.integers(0, MASK := (1 << 64) - 1), st.integers(0, MASK), st.sampled_from(["add", "sub", "and", "cmp"])
)
def test_computed_flags_are_what_pushf_says(a: int, b: int, operation: str) -> None:
    bare = _shared()
    code = f"mov rax, {a:#x}; mov rcx, {b:#x}; {operation} rax, rcx"
    bare.run(f"{code}; pushfq; pop qword ptr [rbx]; ud2")
    pushed = bare.data()
    bare.run(f"{code}; ud2")
    assert bare.engine.rflags() == pushed
    bare.run(f"{code}; cli")
    assert bare.engine.rflags() == pushed
    bare.run(f"{code}; syscall")
    assert bare.engine.rflags() == pushed


_one: list[Bare] = []


def _shared() -> Bare:
    if not _one:
        _one.append(Bare())
    return _one[0]


def test_interrupt_and_io_flags_cannot_be_changed_by_the_guest(bare: Bare) -> None:
    bare.ring(1)
    bare.run("pushfq; or qword ptr [rsp], 0x3000; and qword ptr [rsp], -0x201; popfq; ud2")
    assert bare.engine.rflags() & 0x3200 == 0x200


# -- ports -------------------------------------------------------------------------------------------------

REFUSED = {
    "in al, 0x80": 2,
    "in eax, dx": 1,
    "out 0x80, al": 2,
    "out dx, eax": 1,
    "insb": 1,
    "rep insd": 2,
    "outsb": 1,
    "rep outsb": 2,
}
AFTER = [
    "mov [rbx], rax; mov eax, 1; mov ecx, 2; ud2",
    "push rax; push rcx; mov rsp, rax",
    "syscall",
    "sysenter",
    "cpuid; mov ebx, 5",
    "rdtsc; rdtscp",
    "in al, 0x80; out 0x80, al",
    "int3",
    "hlt",
    "lock inc qword ptr [rbx]; jmp rax",
    "fld1; movaps xmm0, xmm1; std",
    "xchg rax, [rbx]; rep stosq",
]


@pytest.mark.promise("I-9")
@BOTH_RINGS
@pytest.mark.parametrize("after", AFTER)
@pytest.mark.parametrize("instruction", REFUSED)
def test_a_refused_port_has_no_side_effects(bare: Bare, ring: int, instruction: str, after: str) -> None:
    """Although the emulator executes the rest of the block, the guest is as it was; nobody hears of it."""
    bare.ring(ring)
    bare.set_data(0x1111)
    before = f"mov edx, 0x80; mov esi, {at(DATA)}; mov edi, {at(DATA, 8)};"
    before += "mov eax, 0x12345678; mov ecx, 3; cmp ecx, ecx; "
    where = START + len(assemble(before.replace(";", "\n"), START))
    memory = bytes(bare.ram.raw[at(DATA) : at(DATA + 1)])
    seen = bare.run(before + instruction + "; " + after)
    assert seen == Exit("port fault", where)
    assert [one.kind for one in bare.sink.exits][1:] == ["port fault"]
    assert bare.sink.exits[0].detail == 0x80
    assert bytes(bare.ram.raw[at(DATA) : at(DATA + 1)]) == memory
    assert tuple(bare.q[0:8]) == (
        0x12345678, 3, 0x80, at(DATA), at(DATA, 0x800), 0, at(DATA), at(DATA, 8)
    )  # fmt: skip
    assert bare.engine.rflags() == 0x202 | 0x40 | 0x4
    assert bare.vmcb.cpl == ring
    assert bare.q[v.CR + 3] == at(L1 - 3)


def test_the_guest_goes_on_after_a_refused_port(bare: Bare) -> None:
    def skip(seen: Exit) -> bool:
        if seen.kind == "port fault":
            bare.q[v.RIP] += 2
        return seen.kind == "port fault"

    bare.sink.handle = skip
    bare.set_data(0)
    bare.run("mov eax, 7; in al, 0x80; inc qword ptr [rbx]; out 0x81, al; inc qword ptr [rbx]; ud2")
    while bare.sink.exits[-1].kind != "invalid":
        bare.engine.run()
    assert [one.kind for one in bare.sink.exits] == ["in", "port fault", "out", "port fault", "invalid"]
    assert bare.data() == 2
    assert bare.q[v.RAX] == 7


def test_permitted_ports(bare: Bare) -> None:
    bare.sink.ports = {0x80: 0xAABBCCDD}
    bare.run("mov rax, -1; in al, 0x80; mov [rbx], rax; in eax, 0x80; mov [rbx + 8], rax; out 0x80, ax; ud2")
    assert bare.data(0) == MASK & ~0xFF | 0xDD
    assert bare.data(1) == 0xAABBCCDD
    assert bare.sink.written == [(0x80, 2, 0xCCDD)]
    bare.run(f"mov edx, 0x80; mov edi, {at(DATA)}; mov ecx, 3; rep insb; ud2")
    assert bare.data(0) & 0xFFFFFF == 0xDDDDDD


# -- code that changes -------------------------------------------------------------------------------------


@pytest.mark.parametrize("by_range", [True, False], ids=["by range", "all"])
def test_the_hypervisors_writes_to_code_are_seen_after_invalidation(
    monkeypatch: pytest.MonkeyPatch, by_range: bool
) -> None:
    if not by_range:
        monkeypatch.setattr(binding, "tb_invalidate_phys_range", None)
    bare = Bare()
    try:
        for where in (START, at(ALIAS)):
            bare.run("mov eax, 1; ud2")
            bare.q[v.RIP] = where
            bare.go()
            for value in (2, 3):
                bare.write(f"mov eax, {value}; ud2")
                bare.engine.invalidate_code(CODE)
                bare.q[v.RIP] = where
                bare.go()
                assert bare.q[v.RAX] == value
    finally:
        bare.close()


def test_invalidation_reaches_code_that_begins_in_the_frame_before(bare: Bare) -> None:
    bare.run("nop", at(CODE_2, 0x100))
    tail = assemble("mov eax, 5\nud2", at(CODE_2) - 2)
    bare.write(tail, at(CODE_2) - 2)
    bare.q[v.RIP] = at(CODE_2) - 2
    bare.go()
    assert bare.q[v.RAX] == 5
    bare.ram.writable.raw[at(CODE_2)] = 1  # the second byte of the immediate
    bare.engine.invalidate_code(CODE_2)
    bare.q[v.RIP] = at(CODE_2) - 2
    bare.go()
    assert bare.q[v.RAX] == 0x105


def test_the_guests_own_writes_to_code_are_seen(bare: Bare) -> None:
    """Through another virtual address, in the block that is running."""
    bare.run("ud2")
    head = assemble(f"mov ecx, {at(ALIAS)}\nmov byte ptr [rcx + 31], 7", START)
    seen = bare.run(head.ljust(30, b"\x90") + b"\xb8\x01\x00\x00\x00\x0f\x0b")  # ...; mov eax, 1; ud2
    assert seen.kind == "invalid"
    assert bare.q[v.RAX] == 7


def test_flushing_the_tlb_makes_a_narrowed_entry_felt(bare: Bare) -> None:
    entry = L1 << 9 | DATA
    bare.run("mov [rbx], rax; ud2")
    bare.ram.writable.q[entry] &= ~2
    bare.engine.flush_tlb()
    assert bare.run("mov [rbx], rax; ud2").vector == 14
    bare.ram.writable.q[entry] |= 2
    bare.engine.flush_tlb()
    bare.run("mov [rbx], rax; ud2")
    bare.ram.writable.q[entry] &= ~2
    bare.engine.flush_page(at(DATA, 0x10))
    assert bare.run("mov [rbx], rax; ud2").vector == 14


def test_engines_share_memory(bare: Bare) -> None:
    other = Bare(ram=bare.ram)
    try:
        bare.run("mov qword ptr [rbx], 77; ud2")
        other.run("mov rax, [rbx]; ud2", at(CODE_2))
        assert other.q[v.RAX] == 77
    finally:
        other.close()


def test_user_pages_are_mapped_as_the_tests_believe(bare: Bare) -> None:
    assert bare.ram.q[L1 << 9 | CODE] & 0xFFF == USER
