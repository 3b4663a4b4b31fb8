# SPDX-License-Identifier: GPL-2.0-only
"""Into the kernel of a 32-bit guest: frames, stacks, exceptions, INT n, SYSENTER, what a handler needs."""

import pytest

from pyhv.abi.numbers import Assist
from pyhv.abi.x86 import ERROR_CODE_VECTORS
from pyhv.cpu import vmcb as v
from pyhv.domain.callbacks import CallbackEntry
from pyhv.testing.compat_machine import (
    CODE1,
    DATA1,
    G_ABSENT_CODE,
    G_ABSENT_DATA,
    G_READ_ONLY,
    GDT,
    RING1_CS,
    RING1_DS,
    RING3_CS,
    RING3_DS,
    SYSENTER,
    Paused32,
    with_base,
)
from pyhv.testing.vectors import BP, BR, DE, GP, IF, NM, OF, PF, RF, UD


@pytest.fixture
def guest(guest32: Paused32) -> Paused32:
    return guest32


# -- frames --------------------------------------------------------------------------------------------------


def test_a_frame_from_the_kernel(guest: Paused32) -> None:
    """Error code, eip, cs with the event mask above it, eflags; no stack, no alignment."""
    assert guest.execute("lea esp, [esp - 3]; xor eax, eax; inc eax; stc; hlt") == GP
    assert guest.words(guest.q[v.RSP], 4) == (0, guest.code + 8, RING1_CS | 1 << 16, RF | 3)
    assert guest.q[v.RSP] == guest.stack - 3 - 16
    assert guest.cpu.vmcb.selector(v.SS) == RING1_DS


def test_a_frame_from_ring_3(guest: Paused32) -> None:
    assert guest.user("lea esp, [esp - 3]; xor eax, eax; inc eax; stc; hlt") == GP
    words = guest.words(guest.q[v.RSP], 6)
    assert words == (0, guest.code + 8, RING3_CS, IF | RF | 3, guest.user_stack - 3, RING3_DS)
    assert guest.q[v.RSP] == guest.kernel_stack - 24
    vmcb = guest.cpu.vmcb
    assert (vmcb.cpl, vmcb.selector(v.CS), vmcb.selector(v.SS)) == (1, RING1_CS, RING1_DS)
    assert guest.vcpu.in_kernel


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("masks", [True, False])
def test_the_event_mask_in_frames(guest: Paused32, kernel: bool, masks: bool) -> None:
    guest.handlers(flags=4 if masks else 0)
    guest.unmask_events()
    assert (guest.execute("hlt") if kernel else guest.user("hlt")) == GP
    frame = guest.frame(error=True)
    assert frame["cs"] == (RING1_CS if kernel else RING3_CS)
    assert frame["eflags"] & IF
    assert guest.vcpu.info.upcall_masked is masks


def test_the_mask_byte_is_saved_as_it_is(guest: Paused32) -> None:
    guest.vcpu.info.page.write_u8(guest.vcpu.info.offset + 1, 0x5A)
    assert guest.execute("hlt") == GP
    assert guest.frame(error=True)["cs"] == RING1_CS | 0x5A << 16


@pytest.mark.parametrize("vector", range(32))
def test_which_vectors_push_an_error_code(guest: Paused32, vector: int) -> None:
    guest.q[v.RSP] = guest.stack
    guest.cpu.raise_exception(vector, 0x1234)
    size = guest.stack - guest.q[v.RSP]
    assert size == (16 if vector in ERROR_CODE_VECTORS else 12)
    if size == 16:
        assert guest.frame(error=True)["error"] == 0x1234


def test_flags_of_a_handler(guest: Paused32) -> None:
    """NT, TF, RF go; AC stays, unlike in a 64-bit guest."""
    assert guest.execute("pushfd; or dword ptr [esp], 0x244400; popfd; std; hlt") == GP
    assert guest.frame(error=True)["eflags"] & 0x244400 == 0x244400
    assert guest.rflags & 0x4000 == 0
    assert guest.rflags & 0x240400 == 0x240400


def test_architectural_iopl_shows_in_frames(guest: Paused32) -> None:
    guest.vcpu.ports.iopl = 3
    assert guest.execute("hlt") == GP
    assert guest.frame(error=True)["eflags"] & 0x3000 == 0
    guest.domain.assists.enabled.add(Assist.ARCHITECTURAL_IOPL)
    assert guest.execute("hlt") == GP
    assert guest.frame(error=True)["eflags"] & 0x3000 == 0x3000


# -- exceptions ----------------------------------------------------------------------------------------------


BOTH = [
    ("xor ecx, ecx; div ecx", DE, None),
    ("mov al, 0x7f; add al, 1; into", OF, None),
    ("mov dword ptr [ebx], 1; mov dword ptr [ebx + 4], 5; mov eax, 6; bound eax, [ebx]", BR, None),
    ("int3", BP, None),
    ("ud2", UD, None),
    ("syscall", UD, None),
    (".byte 0x0f, 0x07", UD, None),  # SYSRET
    (".byte 0x0f, 0x01, 0xf8", UD, None),  # SWAPGS
    ("hlt", GP, 0),
    ("sysexit", GP, 0),
    ("invlpg [ebx]", GP, 0),
    ("lgdt [ebx]", GP, 0),
    ("lidt [ebx]", GP, 0),
    ("xor eax, eax; lldt ax", GP, 0),
    ("xor eax, eax; ltr ax", GP, 0),
    ("mov eax, 0xe040; ltr ax", GP, 0),
    ("mov eax, 0x33; lmsw ax", GP, 0),
    ("invd", GP, 0),
    ("xor ecx, ecx; rdpmc", GP, 0),
    ("mov eax, 0x1234; mov ds, eax", GP, 0x1234),
    ("mov eax, 0xe008; mov ds, eax", GP, 0xE008),
    ("mov eax, 0xe040; mov ds, eax", GP, 0xE040),
    ("xor eax, eax; mov ss, eax", GP, 0),
    ("xor eax, eax; mov cs, eax", UD, None),
    ("mov eax, 0xfffffffc; mov eax, [eax]", PF, None),
    ("mov eax, 0xf5800000; mov [eax], eax", PF, None),
    ("push 0; push 0; retf", GP, 0),
    ("push 0xe009; push 0; retf", GP, 0xE008),
    (".byte 0x9a, 0, 0, 0, 0, 0x40, 0xe0", GP, 0xE040),  # the TSS
    (".byte 0xea, 0, 0, 0, 0, 0, 0", GP, 0),
]


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize(("code", "vector", "error"), BOTH)
def test_exceptions_of_either_ring(
    guest: Paused32, kernel: bool, code: str, vector: int, error: int | None
) -> None:
    assert (guest.execute(code) if kernel else guest.user(code)) == vector
    if error is not None:
        assert guest.frame(error=True)["error"] == error
    assert guest.domain.alive


@pytest.mark.parametrize("code", ["clts", "mov eax, cr0", "mov cr3, eax", "rdmsr", "mov eax, dr7", "wbinvd"])
def test_what_only_the_kernel_may(guest: Paused32, code: str) -> None:
    assert guest.user(f"mov ecx, 0xc0000080; {code}") == GP
    assert guest.frame(error=True)["error"] == 0
    if code != "mov cr3, eax":
        assert guest.execute(f"mov ecx, 0xc0000080; {code}") is None


def test_iretd_of_a_nested_task_is_refused(guest: Paused32) -> None:
    """NT asks for a task switch, which long mode has not."""
    assert guest.execute("pushfd; or dword ptr [esp], 0x4000; popfd; iretd") == GP
    assert guest.frame(error=True)["error"] == 0


def test_arpl(guest: Paused32) -> None:
    code = "mov eax, 8; mov ecx, 3; arpl ax, cx; setz dl; arpl ax, cx; setz dh"
    assert guest.user(code) is None
    assert (guest.q[v.RAX], guest.q[v.RDX] & 0xFFFF) == (0xB, 1)


def test_device_not_available(guest: Paused32) -> None:
    """The hypervisor clears TS before it tells the kernel, whichever ring it was."""
    for run in (guest.execute, guest.user):
        guest.vcpu.in_kernel or guest.into_kernel()
        assert guest.fpu_taskswitch(1) == 0
        assert run("fld1") == NM
        assert guest.frame()["eip"] == guest.code
        assert run(b"\xd9\xe8\xdd\xd8") is None


# -- INT n ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dpl", "kernel", "user"), [(0, False, False), (1, True, False), (3, True, True)])
@pytest.mark.parametrize("number", [0x20, 0x81, 0xFF])
def test_int_n_needs_the_privilege_of_its_entry(
    guest: Paused32, number: int, dpl: int, kernel: bool, user: bool
) -> None:
    guest.vcpu.traps.handlers[number] = (guest.handler(number), dpl)
    code = bytes([0x90, 0xCD, number])
    for run, allowed in ((guest.execute, kernel), (guest.user, user)):
        assert run(code) == (number if allowed else GP)
        if allowed:
            assert guest.frame()["eip"] == guest.code + 3
        else:
            frame = guest.frame(error=True)
            assert (frame["error"], frame["eip"]) == (number << 3 | 2, guest.code + 1)


@pytest.mark.parametrize("dpl", [0, 1, 3])
def test_int_80_goes_straight_to_its_handler(guest: Paused32, dpl: int) -> None:
    guest.vcpu.traps.handlers[0x80] = (guest.handler(0x80), dpl)
    for run in (guest.execute, guest.user):
        assert run("int 0x80") == 0x80
        assert guest.frame()["eip"] == guest.code + 2


@pytest.mark.parametrize("selector", [0, 3])
def test_int_80_without_a_handler(guest: Paused32, selector: int) -> None:
    """What has no code segment is no handler, whatever its address."""
    guest.vcpu.traps.selectors[0x80] = selector
    assert guest.user("int 0x80") == GP
    frame = guest.frame(error=True)
    assert (frame["error"], frame["eip"]) == (0x402, guest.code)


@pytest.mark.promise("I-5")
def test_int_82_from_ring_3_is_no_hypercall(guest: Paused32) -> None:
    guest.vcpu.traps.handlers[0x82] = (guest.handler(0x82), 3)
    assert guest.user("mov eax, 17; int 0x82") == GP
    assert guest.frame(error=True)["error"] == 0x82 << 3 | 2


# -- SYSENTER ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("masks", [True, False])
def test_sysenter_loses_where_it_came_from(guest: Paused32, kernel: bool, masks: bool) -> None:
    guest.vcpu.callbacks.sysenter.mask_events = masks
    guest.unmask_events()
    code = "mov esi, 7; sysenter"
    assert (guest.execute(code) if kernel else guest.user(code)) == SYSENTER
    frame = guest.frame()
    assert (frame["eip"], frame["cs"], frame["esp"], frame["ss"]) == (0, 3, 0, RING3_DS)
    assert frame["eflags"] & IF
    assert guest.q[v.RSP] == guest.kernel_stack - 20
    assert guest.vcpu.info.upcall_masked is masks
    assert guest.q[v.RSI] == 7


@pytest.mark.parametrize("kernel", [True, False])
def test_sysenter_without_a_callback(guest: Paused32, kernel: bool) -> None:
    guest.vcpu.callbacks.sysenter = CallbackEntry()
    assert (guest.execute("sysenter") if kernel else guest.user("sysenter")) == GP
    frame = guest.frame(error=True)
    assert (frame["error"], frame["eip"], frame["cs"]) == (0, 0, 3 | 1 << 16 if kernel else 3)


# -- bad selectors of handlers and stacks --------------------------------------------------------------------


@pytest.mark.parametrize("selector", [0, 1, 0x201, RING1_DS, RING3_CS, 0xE009, G_ABSENT_CODE | 1])
@pytest.mark.parametrize("kernel", [True, False])
def test_a_handler_in_a_bad_code_segment_is_fatal(guest: Paused32, selector: int, kernel: bool) -> None:
    guest.gdt(*GDT)
    guest.vcpu.traps.selectors[UD] = selector
    guest.execute("ud2") if kernel else guest.user("ud2")
    assert guest.domain.life.crashed


@pytest.mark.parametrize("selector", [0, 1, 0x201, RING1_CS, RING3_DS, G_ABSENT_DATA | 1, G_READ_ONLY | 1])
def test_a_bad_kernel_stack_segment_is_fatal(guest: Paused32, selector: int) -> None:
    guest.gdt(*GDT)
    guest.vcpu.kernel_stack.ss = selector
    guest.user("ud2")
    assert guest.domain.life.crashed


@pytest.mark.parametrize("sp", [0, 8, 0xF5800010])
def test_a_kernel_stack_that_is_not_there_is_fatal(guest: Paused32, sp: int) -> None:
    guest.vcpu.kernel_stack.sp = sp
    guest.user("ud2")
    assert guest.domain.life.crashed


def test_a_kernel_stack_with_a_base(guest: Paused32) -> None:
    guest.gdt(with_base(DATA1, 0x2000))
    guest.vcpu.kernel_stack.ss = 8 | 1
    guest.vcpu.kernel_stack.sp = guest.kernel_stack - 0x2000
    assert guest.user("ud2") == UD
    assert guest.q[v.RSP] == guest.kernel_stack - 0x2000 - 20
    assert guest.words(guest.kernel_stack - 20, 5)[1] == RING3_CS
    assert guest.cpu.vmcb.selector(v.SS) == 8 | 1


def test_a_handler_in_a_segment_with_a_base(guest: Paused32) -> None:
    guest.gdt(with_base(CODE1, 0x3000))
    guest.vcpu.traps.selectors[UD] = 8 | 1
    guest.vcpu.traps.handlers[UD] = (guest.handler(UD) - 0x3000, 0)
    guest.user("ud2", guest.handler(UD) - 0x3000)
    assert guest.cpu.vmcb.rip == guest.handler(UD) - 0x3000
    assert guest.cpu.linear_rip() == guest.handler(UD)
