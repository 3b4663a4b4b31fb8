# SPDX-License-Identifier: GPL-2.0-only
"""Into the guest kernel: bounce frames of exceptions, interrupts and system calls."""

import struct
from collections.abc import Iterator

import pytest

from pyhv.abi.numbers import Hypercall
from pyhv.abi.x86 import ERROR_CODE_VECTORS
from pyhv.cpu import vmcb as v
from pyhv.domain.callbacks import CallbackEntry
from pyhv.testing.guest_machine import Paused, paused
from pyhv.testing.vectors import BP, DB, GP, IF, NM, NP, PF, RF, SS, UD

EVENT, SYSCALL, SYSENTER, FAILSAFE = 256, 257, 258, 259


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused() as made:
        made.handlers()
        vcpu = made.vcpu
        vcpu.callbacks.event = CallbackEntry(made.handler(EVENT), True)
        vcpu.callbacks.syscall = CallbackEntry(made.handler(SYSCALL), False)
        vcpu.callbacks.sysenter = CallbackEntry(made.handler(SYSENTER), False)
        yield made


# -- from the kernel -----------------------------------------------------------------------------------------


def test_frame_of_an_exception_from_the_kernel(guest: Paused) -> None:
    """rcx, r11, error, rip, cs, rflags, rsp, ss upwards; RPL 0 in CS, the event mask in CS' bit 32."""
    assert guest.execute("mov rcx, 0x11; mov r11, 0x22; stc; hlt") == GP
    frame = guest.frame(error=True)
    assert frame == {
        "rcx": 0x11, "r11": 0x22, "error": 0, "rip": guest.scratch + 0x8000 + 15, "cs": 0xE030 | 1 << 32,
        "rflags": RF | 0x2 | 1, "rsp": guest.stack, "ss": 0xE02B,
    }  # fmt: skip
    assert guest.q[v.RSP] == guest.stack - 64


def test_unmasked_events_show_as_the_interrupt_flag(guest: Paused) -> None:
    guest.unmask_events()
    assert guest.execute("hlt") == GP
    frame = guest.frame(error=True)
    assert frame["cs"] == 0xE030
    assert frame["rflags"] & IF
    assert not guest.vcpu.info.upcall_masked


def test_a_handler_may_want_events_masked(guest: Paused) -> None:
    guest.handlers(flags=4)
    guest.unmask_events()
    guest.execute("hlt")
    assert guest.frame(error=True)["cs"] == 0xE030
    assert guest.vcpu.info.upcall_masked


def test_the_stack_is_aligned_to_16(guest: Paused) -> None:
    guest.execute("sub rsp, 5; hlt")
    assert guest.frame(error=True)["rsp"] == guest.stack - 5
    assert guest.q[v.RSP] == guest.stack - 16 - 64


def test_a_frame_may_cross_a_page(guest: Paused) -> None:
    guest.execute("sub rsp, 0xfe0; hlt")
    assert guest.frame(error=True)["rsp"] == guest.stack - 0xFE0
    assert guest.q[v.RSP] == guest.stack - 0xFE0 - 64
    assert guest.q[v.RSP] & ~0xFFF != guest.stack - 0xFE0 & ~0xFFF


def test_processor_state_in_a_handler(guest: Paused) -> None:
    guest.execute("pushfq; or qword ptr [rsp], 0x244400; popfq; std; hlt")
    flags = guest.domain.engine.rflags()
    assert guest.frame(error=True)["rflags"] & 0x244400 == 0x244400
    assert flags & 0x44000 == 0, "NT and AC are clear in a handler"
    assert flags & 0x200400 == 0x200400, "DF and ID are as they were"
    assert guest.cpu.vmcb.selector(v.CS) == 0xE033
    assert guest.cpu.vmcb.selector(v.SS) == 0xE02B
    assert guest.q[v.RCX] == guest.handler(GP)


@pytest.mark.parametrize("vector", range(32))
def test_which_vectors_push_an_error_code(guest: Paused, vector: int) -> None:
    guest.q[v.RSP] = guest.stack
    guest.cpu.raise_exception(vector, 0x1234)
    size = guest.stack - guest.q[v.RSP]
    assert size == (64 if vector in ERROR_CODE_VECTORS else 56)
    if size == 64:
        assert guest.frame(error=True)["error"] == 0x1234


@pytest.mark.parametrize(
    ("code", "vector", "error"),
    [
        ("xor ecx, ecx; div ecx", 0, None),
        ("int3", BP, None),
        ("ud2", UD, None),
        ("hlt", GP, 0),
        ("mov rax, 0x800000000000; mov rax, [rax]", GP, 0),
        ("mov eax, 0x1234; mov ds, eax", GP, 0x1234 & ~3),
        ("mov eax, 0xe00b; mov ds, eax", GP, 0xE008),
        ("mov rax, 0x7fff00000000; mov rax, [rax]", PF, 0),
        ("mov rax, 0x7fff00000000; mov [rax], rax", PF, 2),
        ("mov rax, 0x7fff00000000; jmp rax", PF, 0x10),
        ("mov rax, 0xffff830000000000; mov rax, [rax]", PF, 0),
        ("mov rax, 0xffff800000000000; mov [rax], rax", PF, 3),
    ],
)
def test_exceptions_of_the_kernel(guest: Paused, code: str, vector: int, error: int | None) -> None:
    """A page fault's U bit is clear: it is the kernel's, although it runs in ring 3."""
    assert guest.execute(code) == vector
    if error is not None:
        assert guest.frame(error=True)["error"] == error


def test_the_address_of_a_page_fault_is_in_vcpu_info(guest: Paused) -> None:
    guest.execute("mov rax, 0x7fff00000123; mov rax, [rax]")
    assert guest.vcpu.info.cr2 == 0x7FFF00000123
    assert guest.domain.shared_info.read_u64(16) == 0x7FFF00000123
    assert guest.execute("mov rax, cr2") is None
    assert guest.q[v.RAX] == 0x7FFF00000123


def test_device_not_available_clears_task_switched(guest: Paused) -> None:
    assert guest.fpu_taskswitch(1) == 0
    assert guest.execute("fld1") == NM
    assert guest.execute("fld1") is None


def test_debug_exceptions_update_the_guests_dr6(guest: Paused) -> None:
    guest.execute("pushfq; or qword ptr [rsp], 0x100; popfq; nop; nop")
    assert guest.handled == DB
    assert guest.vcpu.debug.registers[6] == 0xFFFF4FF0
    frame = guest.frame()
    assert frame["rflags"] & 0x100
    assert not guest.domain.engine.rflags() & 0x100


# -- INT n ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dpl", "kernel", "user"), [(0, False, False), (1, True, False), (3, True, True)])
@pytest.mark.parametrize("number", [0x20, 0x21, 0x82, 0xFF])
def test_int_n_needs_the_privilege_of_its_entry(
    guest: Paused, number: int, dpl: int, kernel: bool, user: bool
) -> None:
    guest.allow_user_mode()
    guest.vcpu.traps.handlers[number] = (guest.handler(number), dpl)
    code = bytes([0x90, 0xCD, number])
    for run, allowed in ((guest.execute, kernel), (guest.user, user)):
        handler = run(code)
        if allowed:
            assert handler == number
            assert guest.frame()["rip"] == guest.scratch + 0x8000 + 3
        else:
            assert handler == GP
            frame = guest.frame(error=True)
            assert frame["error"] == number << 3 | 2
            assert frame["rip"] == guest.scratch + 0x8000 + 1


def test_int3_checks_no_privilege(guest: Paused) -> None:
    guest.allow_user_mode()
    assert guest.user("int3") == BP
    assert guest.frame()["rip"] == guest.scratch + 0x8000 + 1


@pytest.mark.parametrize("dpl", [0, 1, 3])
def test_int_80_goes_straight_to_its_handler(guest: Paused, dpl: int) -> None:
    guest.allow_user_mode()
    guest.vcpu.traps.handlers[0x80] = (guest.handler(0x80), dpl)
    assert guest.execute("int 0x80") == 0x80
    assert guest.user("int 0x80") == 0x80
    assert guest.frame()["rip"] == guest.scratch + 0x8000 + 2


def test_int_80_without_a_handler_is_a_protection_fault(guest: Paused) -> None:
    guest.vcpu.traps.handlers[0x80] = (0, 0)
    assert guest.execute("int 0x80") == GP
    frame = guest.frame(error=True)
    assert (frame["error"], frame["rip"]) == (0x402, guest.scratch + 0x8000)


@pytest.mark.xfail(strict=True, reason="a refused INT n is taken to be two bytes long")
def test_a_refused_int_n_with_a_prefix(guest: Paused) -> None:
    guest.vcpu.traps.handlers[0x20] = (0, 0)
    assert guest.execute(b"\x66\xcd\x20") == GP
    assert guest.frame(error=True)["rip"] == guest.scratch + 0x8000


# -- from user mode ------------------------------------------------------------------------------------------


def test_frame_of_an_exception_from_user_mode(guest: Paused) -> None:
    guest.allow_user_mode()
    guest.vcpu.other_gs_base = 0x1111  # user's
    guest.q[v.SEG_BASE[v.GS]] = 0x2222  # kernel's
    assert guest.user("mov rcx, 0x11; hlt", rflags=0x202) == GP
    frame = guest.frame(error=True)
    assert frame == {
        "rcx": 0x11, "r11": 0, "error": 0, "rip": guest.scratch + 0x8000 + 7, "cs": 0xE033,
        "rflags": RF | 0x202,
        "rsp": guest.stack, "ss": 0xE02B,
    }  # fmt: skip
    assert guest.q[v.RSP] == guest.kernel_stack - 64
    assert guest.vcpu.in_kernel
    assert (guest.q[v.SEG_BASE[v.GS]], guest.vcpu.other_gs_base) == (0x2222, 0x1111)


@pytest.mark.parametrize(
    ("code", "error"),
    [
        ("mov rax, 0x7fff00000000; mov rax, [rax]", 4),
        ("mov rax, 0x7fff00000000; mov [rax], rax", 6),
        ("mov rax, 0xffff800000000000; mov rax, [rax]", 4),
    ],
)
def test_page_faults_of_user_mode_have_the_u_bit(guest: Paused, code: str, error: int) -> None:
    guest.allow_user_mode()
    assert guest.user(code) == PF
    assert guest.frame(error=True)["error"] == error


def test_events_masked_in_user_mode_show_in_the_frame(guest: Paused) -> None:
    guest.allow_user_mode()
    assert guest.user("ud2", rflags=2) == UD
    frame = guest.frame()
    assert (frame["cs"], frame["rflags"]) == (0xE033 | 1 << 32, RF | 2)


def test_system_call(guest: Paused) -> None:
    """Return address and flags in RCX and R11, flat selectors, DF clear, no error code."""
    guest.allow_user_mode()
    assert guest.user("std; stc; syscall") == SYSCALL
    frame = guest.frame()
    after = guest.scratch + 0x8000 + 4
    assert frame == {
        "rcx": after, "r11": 0x603, "rip": after, "cs": 0xE033, "rflags": 0x603, "rsp": guest.stack,
        "ss": 0xE02B,
    }  # fmt: skip
    assert guest.q[v.RSP] == guest.kernel_stack - 56
    assert not guest.domain.engine.rflags() & 0x400


def test_system_call_without_a_callback_is_an_invalid_opcode(guest: Paused) -> None:
    guest.allow_user_mode()
    guest.vcpu.callbacks.syscall = CallbackEntry()
    assert guest.user("nop; syscall") == UD
    assert guest.frame()["rip"] == guest.scratch + 0x8000 + 1


@pytest.mark.parametrize("masks", [True, False])
def test_a_system_call_may_mask_events(guest: Paused, masks: bool) -> None:
    guest.allow_user_mode()
    guest.vcpu.callbacks.syscall = CallbackEntry(guest.handler(SYSCALL), masks)
    guest.user("syscall", rflags=0x202)
    assert guest.vcpu.info.upcall_masked is masks
    assert guest.frame()["cs"] == 0xE033


@pytest.mark.parametrize("from_user", [True, False])
def test_sysenter_loses_rip_and_rsp(guest: Paused, from_user: bool) -> None:
    guest.allow_user_mode()
    guest.unmask_events()
    run = guest.user if from_user else guest.execute
    assert run("sysenter") == SYSENTER
    frame = guest.frame()
    assert (frame["rip"], frame["cs"], frame["ss"], frame["rsp"]) == (0, 3, 0xE02B, 0)
    assert frame["rflags"] & IF


def test_sysenter_without_a_callback_is_a_protection_fault(guest: Paused) -> None:
    guest.allow_user_mode()
    guest.vcpu.callbacks.sysenter = CallbackEntry()
    assert guest.user("sysenter") == GP
    frame = guest.frame(error=True)
    assert (frame["error"], frame["rip"], frame["cs"] & 0xFFFF, frame["rsp"]) == (0, 0, 3, 0)


# -- RIP of system calls -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [b"", b"\x48", b"\x66", b"\x48\x66", b"\xf3\x2e" * 6], ids=bytes.hex)
def test_a_hypercall_goes_on_behind_its_instruction(guest: Paused, prefix: bytes) -> None:
    code = b"\xb8\x3f\x00\x00\x00" + prefix + b"\x0f\x05\xbb\x07\x00\x00\x00"
    assert guest.execute(code) is None
    assert guest.q[v.RBX] == 7
    assert guest.q[v.RAX] == (1 << 64) - 38
    assert guest.q[v.RCX] == guest.scratch + 0x8000 + 7 + len(prefix)


@pytest.mark.parametrize("prefix", [b"", b"\x48", b"\x66", b"\x48\x66", b"\xf3\x2e" * 6], ids=bytes.hex)
def test_a_system_call_enters_exactly_at_the_callback(guest: Paused, prefix: bytes) -> None:
    guest.allow_user_mode()
    assert guest.user(prefix + b"\x0f\x05") == SYSCALL
    assert guest.frame()["rip"] == guest.scratch + 0x8000 + 2 + len(prefix)


def test_code_that_changes_cannot_move_the_kernels_entry_point(guest: Paused) -> None:
    """A process that puts prefixes before a SYSCALL must not enter the kernel elsewhere for it."""
    guest.allow_user_mode()
    assert guest.user(b"\x0f\x05") == SYSCALL
    assert guest.user(b"\x66" * 8 + b"\x0f\x05") == SYSCALL
    assert guest.frame()["rip"] == guest.scratch + 0x8000 + 10


def test_a_system_call_at_the_end_of_the_address_space(guest: Paused) -> None:
    """The return address is not canonical: #GP there."""
    guest.q[v.RIP], guest.q[v.RSP] = 0x7FFFFFFFFFFE, guest.stack
    guest.hypercall(Hypercall.XEN_VERSION)
    assert guest.q[v.RIP] == 0x800000000000
    assert guest.go() == GP
    assert guest.frame(error=True)["rip"] == 0x800000000000


# -- which exception -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "vector"),
    [
        ("mov rbp, {bad}; mov rax, [rbp + 8]", SS),
        ("mov rbp, {bad}; mov [rbp + rcx], al", SS),
        ("mov rsp, {bad}; mov rax, [rsp]", SS),
        ("mov rsp, {bad}; pop rax", SS),
        ("mov rsp, {bad} + 8; push rax", SS),
        ("mov rsp, {bad} + 8; call rax", SS),
        ("mov rsp, {bad}; ret", SS),
        ("mov rbp, {bad}; leave", SS),
        ("mov rax, {bad}; mov rax, [rax]", GP),
        ("mov r13, {bad}; mov rax, [r13]", GP),
        ("mov r12, {bad}; mov rax, [r12]", GP),
        ("mov rax, {bad}; push [rax]", GP),
        ("mov rax, {bad}; mov rax, [rcx + rax]", GP),
        ("mov rbp, {bad}; mov rax, [rax + rbp]", GP),
        ("mov rbp, {bad}; mov rax, fs:[rbp]", GP),
        ("mov rbp, {bad}; lea rax, [rbp]; hlt", GP),
    ],
)
@pytest.mark.parametrize("user", [False, True])
def test_not_canonical_through_the_stack_segment(guest: Paused, code: str, vector: int, user: bool) -> None:
    """#SS, with every register as it was; through any other segment #GP."""
    guest.allow_user_mode()
    text = code.format(bad=1 << 47)
    if not user and "rsp" in text:
        guest.execute(text)
        assert guest.domain.life.crashed, "there is no place for the frame"
        return
    assert (guest.user if user else guest.execute)("xor eax, eax; xor ecx, ecx;" + text) == vector
    assert guest.frame(error=True)["error"] == 0


def test_iret_to_segments_that_are_absent(guest: Paused) -> None:
    """Absent code is #NP, an absent stack #SS; the wrong kind of segment stays #GP."""
    code, data, absent = 0x00AFFB000000FFFF, 0x00CFF3000000FFFF, ~(1 << 47)
    guest.put(struct.pack("<5Q", 0, code & absent, data & absent, code, data), 0x5000)
    guest.remap(guest.page(5), 0x61 & ~2 | 5)
    frames = guest.put(guest.mfn(guest.page(5)).to_bytes(8, "little"), 0x100)
    assert guest.set_gdt(frames, 512) == 0
    guest.allow_user_mode()
    for frame, vector, error in (
        ({"cs": 0x0B}, NP, 0x08),
        ({"cs": 0x13}, GP, 0x10),
        ({"cs": 0xE033, "ss": 0x13}, SS, 0x10),
        ({"cs": 0xE033, "ss": 0x0B}, GP, 0x08),
        ({"cs": 0x1B, "ss": 0x23}, None, 0),
    ):
        if not guest.vcpu.in_kernel:
            guest.cpu.raise_exception(3)
        guest.load("nop")
        guest.iret(**frame)
        assert guest.handled == vector, frame
        if vector is not None:
            assert guest.frame(error=True)["error"] == error


def test_floating_point_exceptions(guest: Paused) -> None:
    """#MF comes with the next instruction that waits, #XM at once, where the engine is tuned."""
    assert guest.execute("fninit; fldz; fld1; push 0x37b; fldcw [rsp]; .byte 0xd8, 0xf1; fwait") == 16
    vector = 19 if guest.domain.engine.tuned else None
    assert guest.execute("push 0; ldmxcsr [rsp]; xorps xmm0, xmm0; divss xmm0, xmm0") == vector


def test_alignment_is_never_checked(guest: Paused) -> None:
    """EFLAGS.AC changes without an exit, and nothing looks at every access."""
    guest.allow_user_mode()
    assert guest.user("pushfq; or dword ptr [rsp], 0x40000; popfq; mov eax, [rsp + 1]") is None
