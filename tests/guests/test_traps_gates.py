# SPDX-License-Identifier: GPL-2.0-only
"""Call gates of 32-bit guests."""

import struct
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.cpu import vmcb as v
from pyhv.testing.compat_machine import (
    CODE1,
    CODE3,
    CONFORMING1,
    DATA1,
    DATA3,
    PRESENT,
    READ_ONLY,
    RING1_CS,
    RING1_DS,
    RING3_CS,
    RING3_DS,
    Paused32,
    gate,
    paused32,
    with_base,
    with_limit,
)
from pyhv.testing.guest_machine import paused
from pyhv.testing.vectors import DB, GP, NP, PF, TS

K_CODE, U_CODE, CONF, K_LIMITED, K_DATA, U_BASED, ABSENT_CODE, GATE = range(8, 72, 8)
TARGET = 0x9000
"""Offset in the scratch pages of the code behind the gate."""


@pytest.fixture
def guest() -> Iterator[Paused32]:
    with paused32() as made:
        made.handlers()
        yield made


def install(guest: Paused32, *, target: int = K_CODE, at: int | None = None, **options: Any) -> None:
    """A GDT with the segments above, and a gate to `target` at the code in scratch page 9."""
    guest.load(b"", TARGET)
    address = guest.scratch + TARGET if at is None else at
    guest.gdt(
        CODE1, CODE3, CONFORMING1, with_limit(CODE1, 0xFFF), DATA1, with_base(DATA3, 0x1000),
        CODE1 & ~PRESENT, gate(target, address, **options),
    )  # fmt: skip


def at_target(guest: Paused32) -> bool:
    return guest.q[v.RIP] == guest.scratch + TARGET


def kernel(guest: Paused32, code: str | bytes) -> int | None:
    """Run code in ring 1 until it is behind the gate, or in a handler."""
    return guest.execute(code, guest.scratch + TARGET)


def user(guest: Paused32, code: str | bytes, **frame: int) -> int | None:
    """The same in ring 3."""
    return guest.user(code, guest.scratch + TARGET, **frame)


def direct(opcode: int, selector: int, prefix: bytes = b"") -> bytes:
    """A far CALL (0x9a) or JMP (0xea) with an immediate selector; the offset means nothing to a gate."""
    offset = b"\x11\x22" if b"\x66" in prefix else b"\x11\x22\x33\x44"
    return prefix + bytes([opcode]) + offset + struct.pack("<H", selector)


CALL, JMP = 0x9A, 0xEA


def test_a_call_into_the_kernel_changes_stacks(guest: Paused32) -> None:
    install(guest)
    assert user(guest, direct(CALL, GATE | 3)) is None
    assert at_target(guest)
    assert guest.vcpu.in_kernel
    vmcb = guest.cpu.vmcb
    assert (vmcb.cpl, vmcb.selector(v.CS), vmcb.selector(v.SS)) == (1, K_CODE | 1, RING1_DS)
    assert guest.q[v.RSP] == guest.kernel_stack - 16
    assert guest.words(guest.q[v.RSP], 4) == (guest.code + 7, RING3_CS, guest.user_stack, RING3_DS)


@pytest.mark.parametrize("count", [1, 2, 31])
def test_parameters_are_copied(guest: Paused32, count: int) -> None:
    install(guest, parameters=count)
    pushes = "".join(f"push {number}; " for number in range(count))
    code = guest.load(pushes) - guest.code
    guest.load(pushes)
    raw = guest.domain.memory.read(guest.code, code) + direct(CALL, GATE | 3)
    assert user(guest, raw) is None
    assert at_target(guest)
    words = guest.words(guest.q[v.RSP], 4 + count)
    assert words[:2] == (guest.code + len(raw), RING3_CS)
    assert words[2:-2] == tuple(reversed(range(count)))
    assert words[-2:] == (guest.user_stack - 4 * count, RING3_DS)
    assert guest.q[v.RSP] == guest.kernel_stack - 16 - 4 * count


def test_a_far_return_goes_back(guest: Paused32) -> None:
    """RETF with the parameters' size frees both stacks."""
    install(guest, parameters=2)
    guest.load("mov esi, 77; retf 8", TARGET)
    assert guest.user("push 1; push 2; .byte 0x9a, 0, 0, 0, 0, 0x43, 0; mov edi, esp") is None
    vmcb = guest.cpu.vmcb
    assert (guest.q[v.RSI], guest.q[v.RDI]) == (77, guest.user_stack)
    assert (vmcb.cpl, vmcb.selector(v.CS), vmcb.selector(v.SS)) == (3, RING3_CS, RING3_DS)


def test_a_call_in_the_kernel_stays_on_its_stack(guest: Paused32) -> None:
    install(guest, dpl=1, parameters=3)
    assert kernel(guest, direct(CALL, GATE | 1)) is None
    assert at_target(guest)
    assert guest.q[v.RSP] == guest.stack - 8
    assert guest.words(guest.q[v.RSP], 2) == (guest.code + 7, RING1_CS)
    assert guest.cpu.vmcb.selector(v.CS) == K_CODE | 1


def test_a_call_in_ring_3_to_ring_3(guest: Paused32) -> None:
    install(guest, target=U_CODE)
    assert user(guest, direct(CALL, GATE | 3)) is None
    assert at_target(guest)
    assert guest.q[v.RSP] == guest.user_stack - 8
    assert guest.cpu.vmcb.selector(v.CS) == U_CODE | 3
    assert not guest.vcpu.in_kernel


@pytest.mark.parametrize(("target", "cs"), [(U_CODE, U_CODE | 3), (CONF, CONF | 3)])
def test_a_jump_pushes_nothing(guest: Paused32, target: int, cs: int) -> None:
    install(guest, target=target)
    assert user(guest, direct(JMP, GATE | 3)) is None
    assert at_target(guest)
    assert guest.q[v.RSP] == guest.user_stack
    assert guest.cpu.vmcb.selector(v.CS) == cs
    assert not guest.vcpu.in_kernel


def test_a_jump_does_not_go_inwards(guest: Paused32) -> None:
    install(guest)
    assert user(guest, direct(JMP, GATE | 3)) == GP
    assert guest.frame(error=True)["error"] == K_CODE


def test_a_call_does_not_go_outwards(guest: Paused32) -> None:
    install(guest, target=U_CODE)
    assert kernel(guest, direct(CALL, GATE)) == GP
    assert guest.frame(error=True)["error"] == U_CODE


@pytest.mark.parametrize(
    "code",
    [
        "sub esp, 8; mov word ptr [esp + 4], 0x43; lcall [esp]",
        "mov word ptr [ebx + 4], 0x43; lcall [ebx]",
        "mov word ptr [ebx + 12], 0x43; mov ecx, 2; lcall [ebx + ecx * 4]",
        "mov word ptr [ebx + 4], 0x43; mov gs:[ebx + 8], eax; lcall gs:[ebx]",
        "mov word ptr [ebx + 2], 0x43; .byte 0x66; .byte 0xff, 0x1b",
        "mov eax, 0x33; mov es, eax; sub ebx, 0x1000; mov word ptr es:[ebx + 4], 0x43; lcall es:[ebx]",
        "mov word ptr [ebx + 4], 0x43; mov ebp, ebx; lcall [ebp]",
        ".byte 0x66, 0x9a, 0, 0, 0x43, 0",
        ".byte 0x3e, 0x9a, 0, 0, 0, 0, 0x43, 0",
    ],
)
def test_every_form_of_the_instruction(guest: Paused32, code: str) -> None:
    install(guest)
    assert user(guest, code) is None
    assert at_target(guest)
    eip = guest.words(guest.q[v.RSP], 1)[0]
    assert eip == guest.load(code)


def test_an_indirect_jump(guest: Paused32) -> None:
    install(guest, target=U_CODE)
    assert user(guest, "mov word ptr [ebx + 4], 0x43; ljmp [ebx]") is None
    assert at_target(guest)


def test_through_the_ldt(guest: Paused32) -> None:
    install(guest)
    guest.ldt(0, gate(K_CODE, guest.scratch + TARGET))
    assert user(guest, direct(CALL, 8 | 7)) is None
    assert at_target(guest)


def test_beyond_the_limit_of_the_ldt(guest: Paused32) -> None:
    install(guest)
    guest.ldt(0, gate(K_CODE, guest.scratch + TARGET))
    guest.set_ldt(guest.page(1), 1)
    assert user(guest, direct(CALL, 8 | 7)) == GP
    assert guest.frame(error=True)["error"] == 8 | 4


def test_beyond_the_entries_of_the_gdt(guest: Paused32) -> None:
    """The page holds a gate, but the kernel said that its GDT ends before."""
    install(guest)
    frames = guest.put(struct.pack("<I", guest.mfn(guest.page(0))), 0xC000)
    assert guest.set_gdt(frames, GATE // 8) == 0
    assert user(guest, direct(CALL, GATE | 3)) == GP
    assert guest.frame(error=True)["error"] == GATE


@pytest.mark.parametrize(
    ("options", "selector", "vector", "error"),
    [
        ({"dpl": 1}, GATE | 3, GP, GATE),
        ({"dpl": 2}, GATE | 2, GP, GATE),
        ({"target": ABSENT_CODE}, GATE | 3, NP, ABSENT_CODE),
        ({"target": K_DATA}, GATE | 3, GP, K_DATA),
        ({"target": 0}, GATE | 3, GP, 0),
        ({"target": 0x200}, GATE | 3, GP, 0x200),
        ({"target": K_LIMITED}, GATE | 3, GP, 0),
        ({"present": False}, GATE | 3, NP, GATE),
    ],
)
def test_what_is_refused(
    guest: Paused32, options: dict[str, int], selector: int, vector: int, error: int
) -> None:
    install(guest, **options)
    assert user(guest, direct(CALL, selector)) == vector
    frame = guest.frame(error=True)
    assert (frame["error"], frame["eip"], frame["cs"] & 0xFFFF) == (error, guest.code, RING3_CS)
    assert guest.q[v.RSP] == guest.kernel_stack - 24


def test_the_rpl_counts(guest: Paused32) -> None:
    """The kernel, asked by ring 3 to call something, weakens the selector."""
    install(guest, dpl=1)
    assert kernel(guest, direct(CALL, GATE | 3)) == GP
    assert guest.frame(error=True)["error"] == GATE
    assert kernel(guest, direct(CALL, GATE)) is None
    assert at_target(guest)


def test_other_uses_of_a_gate_are_faults(guest: Paused32) -> None:
    install(guest)
    assert user(guest, f"mov eax, {GATE | 3}; mov ds, eax") == GP
    assert guest.frame(error=True)["error"] == GATE
    assert user(guest, f"push {GATE | 3}; push 0; retf") == GP
    assert guest.frame(error=True)["error"] == GATE


@pytest.mark.parametrize(
    ("selector", "vector"),
    [(RING3_DS, TS), (RING1_CS, TS), (0x201, TS), (K_DATA | 1, None), (U_BASED | 1, TS)],
)
def test_the_kernels_stack_segment(guest: Paused32, selector: int, vector: int | None) -> None:
    install(guest)
    guest.vcpu.kernel_stack.ss = selector
    guest.q[v.RSP] = guest.stack
    if vector is None:
        assert user(guest, direct(CALL, GATE | 3)) is None
        assert guest.cpu.vmcb.selector(v.SS) == selector
    else:
        # The exception itself needs that stack: the domain is lost, as on Xen.
        user(guest, direct(CALL, GATE | 3))
        assert guest.domain.life.crashed


def test_a_stack_that_cannot_be_written(guest: Paused32) -> None:
    """#PF of the push, which the kernel cannot take on that stack either."""
    install(guest)
    assert guest.remap(guest.page(7), READ_ONLY) == 0
    guest.vcpu.kernel_stack.sp = guest.page(7) + 0x100
    user(guest, direct(CALL, GATE | 3))
    assert guest.domain.life.crashed
    assert "no kernel stack" in str(guest.domain.life.cause)


def test_parameters_on_a_missing_page(guest: Paused32) -> None:
    install(guest, parameters=3)
    assert guest.unmap(guest.page(6)) == 0
    assert user(guest, direct(CALL, GATE | 3), esp=guest.page(6) - 4) == PF
    frame = guest.frame(error=True)
    assert (frame["error"], frame["eip"], frame["esp"]) == (4, guest.code, guest.page(6) - 4)
    assert guest.vcpu.info.cr2 == guest.page(6)


def test_a_far_pointer_by_a_null_segment(guest: Paused32) -> None:
    install(guest)
    code = f"mov word ptr [ebx + 4], {GATE | 3}; xor eax, eax; mov es, eax; lcall es:[ebx]"
    assert user(guest, code) == GP
    assert guest.frame(error=True)["error"] == GATE


def test_a_push_on_a_missing_page_in_the_kernel(guest: Paused32) -> None:
    install(guest, dpl=1)
    assert guest.remap(guest.page(7), READ_ONLY) == 0
    code = f"mov esp, {guest.page(8)}; .byte 0x9a, 0, 0, 0, 0, 0x40, 0"
    guest.vcpu.traps.handlers[PF] = (0, 0)
    guest.vcpu.traps.selectors[PF] = 0
    kernel(guest, code)
    assert guest.domain.life.crashed
    assert "without a handler" in str(guest.domain.life.cause)


def test_a_step_through_a_gate_traps(guest: Paused32) -> None:
    install(guest)
    code = guest.load("pushfd; or dword ptr [esp], 0x100; popfd") - guest.code
    raw = guest.domain.memory.read(guest.code, code) + direct(CALL, GATE | 3)
    assert user(guest, raw) == DB
    frame = guest.frame()
    assert (frame["eip"], frame["cs"] & 0xFFFF) == (guest.scratch + TARGET, K_CODE | 1)


@pytest.mark.parametrize("in_kernel", [True, False])
@pytest.mark.parametrize("code", [b"\xff\x1b", b"\x48\xff\x1b", b"\xff\x2b"])
def test_gates_of_64_bit_guests_always_fault(in_kernel: bool, code: bytes) -> None:
    with paused() as wide:
        wide.handlers()
        wide.allow_user_mode()
        low = wide.scratch >> 16 << 48 | 0xEC00 << 32 | 0xE030 << 16 | wide.scratch & 0xFFFF
        wide.put(struct.pack("<3Q", 0, low, wide.scratch >> 32))
        frame = wide.mfn(wide.page(0))
        assert wide.remap(wide.page(0), 0x25) == 0
        assert wide.set_gdt(wide.put(struct.pack("<Q", frame), 0xC000), 3) == 0
        assert wide.words(wide.page(0), 2)[1] == low & ~(3 << 45) | 3 << 16
        wide.put(struct.pack("<QH" if code[0] == 0x48 else "<IH", 0, 8 | 3), 0x2000)
        raw = b"\x48\x8d\x1d" + struct.pack("<i", -0x6000 - 7) + code
        assert (wide.execute(raw) if in_kernel else wide.user(raw)) == GP
        assert wide.frame(error=True)["error"] == 8


def test_a_gate_beyond_the_ldt_of_a_64_bit_guest() -> None:
    with paused() as wide:
        wide.handlers()
        wide.put(struct.pack("<IH", 0, 0x1007), 0xC000)
        assert wide.execute(b"\xff\x1b") == GP
        assert wide.frame(error=True)["error"] == 0x1004


def _descriptors() -> st.SearchStrategy[int]:
    gates = st.builds(
        gate,
        st.sampled_from([*range(0, 96, 8), 0xE018, 0xE028]),
        st.integers(0, 0xFFFF_FFFF),
        dpl=st.integers(0, 3),
        parameters=st.integers(0, 31),
        present=st.booleans(),
    )
    kinds = st.sampled_from([CODE1, CODE3, CONFORMING1, DATA1, DATA3, DATA1 | 4 << 40])
    shaped = st.builds(with_base, kinds, st.integers(0, 0xFFFF_FFFF))
    limited = st.builds(with_limit, shaped, st.integers(0, 0xF_FFFF))
    return st.one_of(gates, gates, kinds, shaped, limited, kinds.map(lambda value: value & ~PRESENT))


@settings(max_examples=60, deadline=None)
@given(
    table=st.lists(_descriptors(), min_size=11, max_size=11),
    used=st.integers(1, 11),
    rpl=st.integers(0, 3),
    in_kernel=st.booleans(),
    opcode=st.sampled_from([CALL, JMP]),
    stack=st.sampled_from([RING1_DS, 0, *(8 * n | 1 for n in range(1, 12))]),
    kernel_sp=st.one_of(st.integers(0, 0xFFFF_FFFF), st.just(0x10F800)),
)
def test_no_gate_surprises_the_hypervisor(
    table: list[int], used: int, rpl: int, in_kernel: bool, opcode: int, stack: int, kernel_sp: int
) -> None:
    """Whatever the descriptors: the guest goes on in its own rings, or its domain ends as a crash."""
    with paused32() as guest:
        guest.handlers()
        guest.gdt(*table)
        guest.vcpu.kernel_stack.ss, guest.vcpu.kernel_stack.sp = stack, kernel_sp
        run = guest.execute if in_kernel else guest.user
        try:
            run(direct(opcode, 8 * used | rpl))
        except AssertionError as busy:  # somewhere in its memory
            if "still busy" not in str(busy):
                raise
        assert guest.cpu.vmcb.cpl in (1, 2, 3)
        assert guest.domain.life.crashed or guest.cpu.vmcb.selector(v.CS) & 3 == guest.cpu.vmcb.cpl
        assert guest.machine.audit() == []
