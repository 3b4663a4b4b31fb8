# SPDX-License-Identifier: GPL-2.0-only
"""Into the kernel of a 32-bit guest and out of it: frames, stacks, segments, hypercalls."""

import struct
from collections.abc import Iterator

import pytest
from compat_machine import (
    CODE1,
    CODE3,
    CONFORMING1,
    DATA1,
    DATA3,
    EVENT,
    KERNEL_RW,
    PRESENT,
    READ_ONLY,
    RING1_CS,
    RING1_DS,
    RING3_CS,
    RING3_DS,
    SYSENTER,
    USER_RW,
    Paused32,
    paused32,
    with_base,
    with_limit,
)

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Assist, Hypercall
from pyhv.abi.x86 import ERROR_CODE_VECTORS
from pyhv.address import MASK32
from pyhv.cpu import vmcb as v
from pyhv.domain.callbacks import CallbackEntry

DE, DB, BP, OF, BR, UD, NM, TS, NP, SS, GP, PF = 0, 1, 3, 4, 5, 6, 7, 10, 11, 12, 13, 14
IF, RF, TF = 0x200, 1 << 16, 0x100


@pytest.fixture
def guest() -> Iterator[Paused32]:
    with paused32() as made:
        made.handlers()
        made.vcpu.callbacks.sysenter = CallbackEntry(made.handler(SYSENTER), False, RING1_CS)
        yield made


def unmask(guest: Paused32) -> None:
    guest.vcpu.info.upcall_masked = False


def live_flags(guest: Paused32) -> int:
    return guest.domain.engine.rflags()


# -- frames ------------------------------------------------------------------------------------------------


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
    unmask(guest)
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
    assert live_flags(guest) & 0x4000 == 0
    assert live_flags(guest) & 0x240400 == 0x240400


def test_architectural_iopl_shows_in_frames(guest: Paused32) -> None:
    guest.vcpu.ports.iopl = 3
    assert guest.execute("hlt") == GP
    assert guest.frame(error=True)["eflags"] & 0x3000 == 0
    guest.domain.assists.enabled.add(Assist.ARCHITECTURAL_IOPL)
    assert guest.execute("hlt") == GP
    assert guest.frame(error=True)["eflags"] & 0x3000 == 0x3000


# -- exceptions --------------------------------------------------------------------------------------------

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


def test_int_82_from_ring_3_is_no_hypercall(guest: Paused32) -> None:
    guest.vcpu.traps.handlers[0x82] = (guest.handler(0x82), 3)
    assert guest.user("mov eax, 17; int 0x82") == GP
    assert guest.frame(error=True)["error"] == 0x82 << 3 | 2


# -- SYSENTER ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kernel", [True, False])
@pytest.mark.parametrize("masks", [True, False])
def test_sysenter_loses_where_it_came_from(guest: Paused32, kernel: bool, masks: bool) -> None:
    guest.vcpu.callbacks.sysenter.mask_events = masks
    unmask(guest)
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


# -- the iret hypercall ----------------------------------------------------------------------------------


def test_iret_to_ring_3(guest: Paused32) -> None:
    assert guest.iret(eax=0x1234, eflags=0x3202 | 1) == 0x1234
    vmcb = guest.cpu.vmcb
    assert (vmcb.rip, vmcb.rsp) == (guest.code, guest.user_stack)
    assert (vmcb.cpl, vmcb.selector(v.CS), vmcb.selector(v.SS)) == (3, RING3_CS, RING3_DS)
    assert live_flags(guest) & 0x3201 == 0x201
    assert not guest.vcpu.info.upcall_masked
    assert not guest.vcpu.in_kernel


def test_iret_within_the_kernel_keeps_the_stack_segment(guest: Paused32) -> None:
    """esp and ss are not in the frame; what lies there is not looked at."""
    guest.iret(cs=RING1_CS, eflags=2, esp=0x1111, ss=0x2222)
    vmcb = guest.cpu.vmcb
    assert vmcb.rsp == guest.scratch + 0xC000 + 16
    assert (vmcb.cpl, vmcb.selector(v.CS), vmcb.selector(v.SS)) == (1, RING1_CS, RING1_DS)
    assert guest.vcpu.info.upcall_masked
    assert guest.vcpu.in_kernel


def test_iret_ignores_the_upper_halves_of_selectors(guest: Paused32) -> None:
    guest.iret(cs=RING3_CS | 0x5A5A0000, ss=RING3_DS | 0xA5A50000)
    assert guest.cpu.vmcb.selector(v.CS) == RING3_CS
    assert guest.cpu.vmcb.selector(v.SS) == RING3_DS


def test_iret_with_tf_traps_after_an_instruction(guest: Paused32) -> None:
    assert guest.user("nop; nop", eflags=0x302) == DB
    assert guest.frame()["eip"] == guest.code + 1
    assert guest.frame()["eflags"] & TF


def test_iret_sets_the_iopl_only_with_the_assist(guest: Paused32) -> None:
    guest.iret(eflags=0x3202)
    assert guest.vcpu.ports.iopl == 0
    guest.into_kernel()
    guest.domain.assists.enabled.add(Assist.ARCHITECTURAL_IOPL)
    guest.iret(eflags=0x2202)
    assert guest.vcpu.ports.iopl == 2


def test_iret_delivers_what_is_pending(guest: Paused32) -> None:
    guest.vcpu.info.mark_pending()
    guest.iret()
    assert guest.handled == EVENT
    frame = guest.frame()
    assert (frame["eip"], frame["cs"], frame["esp"]) == (guest.code, RING3_CS, guest.user_stack)
    assert guest.vcpu.info.upcall_masked


def test_iret_reads_its_frame_at_esp_whatever_the_base_of_ss(guest: Paused32) -> None:
    guest.cpu.vmcb.q[v.SEG_BASE[v.SS]] = 0x1000
    guest.iret()
    assert guest.cpu.vmcb.rip == guest.code


@pytest.mark.parametrize("selector", [0, 0x10, 0xE018, 0xE008])
def test_iret_to_ring_0_is_fatal(guest: Paused32, selector: int) -> None:
    guest.iret(cs=selector)
    assert guest.domain.crashed
    assert "ring 0" in guest.domain.crash_cause


@pytest.mark.parametrize("esp", [0xF57F0000, 0xF5800000, 0xFFFFFFFC])
def test_iret_with_an_unreadable_frame_is_fatal(guest: Paused32, esp: int) -> None:
    guest.q[v.RSP] = esp
    guest.hypercall(Hypercall.IRET)
    assert guest.domain.crashed


GDT = [CODE3, DATA3, CODE3 & ~PRESENT, DATA3 & ~PRESENT, CODE1, DATA1, DATA3 & ~(2 << 40), CONFORMING1]
G_CODE3, G_DATA3, G_ABSENT_CODE, G_ABSENT_DATA, G_CODE1, G_DATA1, G_READ_ONLY, G_CONFORMING = range(8, 72, 8)


@pytest.mark.parametrize(
    ("cs", "ss", "vector", "error"),
    [
        (G_CODE3 | 3, G_DATA3 | 3, None, 0),
        (G_CONFORMING | 3, G_DATA3 | 3, None, 0),
        (3, G_DATA3 | 3, GP, 0),
        (G_CODE3 | 3, 3, GP, 0),
        (G_CODE3 | 3, 0, GP, 0),
        (G_CODE3 | 3, G_DATA3 | 1, GP, G_DATA3),
        (G_DATA3 | 3, G_DATA3 | 3, GP, G_DATA3),
        (G_CODE3 | 3, G_CODE3 | 3, GP, G_CODE3),
        (G_CODE3 | 3, G_READ_ONLY | 3, GP, G_READ_ONLY),
        (G_CODE1 | 3, G_DATA3 | 3, GP, G_CODE1),
        (G_CODE3 | 3, G_DATA1 | 3, GP, G_DATA1),
        (G_ABSENT_CODE | 3, G_DATA3 | 3, NP, G_ABSENT_CODE),
        (G_CODE3 | 3, G_ABSENT_DATA | 3, SS, G_ABSENT_DATA),
        (G_CODE3 | 3, G_ABSENT_DATA | 1, GP, G_ABSENT_DATA),
        (0x203, G_DATA3 | 3, GP, 0x200),
        (G_CODE3 | 3, 0x1007, GP, 0x1004),
        (0xE00B, G_DATA3 | 3, GP, 0xE008),
        (G_CODE3 | 2, G_DATA3 | 2, GP, G_CODE3),
    ],
)
def test_iret_to_selectors_that_cannot_be_loaded(
    guest: Paused32, cs: int, ss: int, vector: int | None, error: int
) -> None:
    """It faults as if at the target: the frame shows the target's registers."""
    guest.gdt(*GDT)
    guest.iret(cs=cs, ss=ss)
    assert guest.handled == vector
    if vector is not None:
        words = guest.words(guest.q[v.RSP], 6)
        assert words == (error, guest.code, cs, 0x202, guest.user_stack, ss)


def test_iret_within_the_kernel_to_a_bad_code_segment(guest: Paused32) -> None:
    guest.iret(cs=0x201)
    assert guest.handled == GP
    assert guest.words(guest.q[v.RSP], 3) == (0x200, guest.code, 0x201)


def test_iret_within_the_kernel_on_a_lost_stack_segment_is_fatal(guest: Paused32) -> None:
    guest.gdt(*GDT)
    assert guest.execute(f"mov eax, {G_DATA1 | 1}; mov ss, eax") is None
    address = guest.mfn(guest.page(0)) << 12 | G_DATA1
    assert guest.update_descriptor(address, 0) == 0
    guest.iret(cs=RING1_CS)
    assert guest.domain.crashed


def test_ring_2_is_neither_kernel_nor_user(guest: Paused32) -> None:
    guest.gdt(CODE1 & ~(3 << 45) | 2 << 45, DATA1 & ~(3 << 45) | 2 << 45)
    assert guest.user("ud2", cs=8 | 2, ss=16 | 2) == UD
    assert guest.words(guest.q[v.RSP], 5)[1:] == (8 | 2, 0x202 | RF, guest.user_stack, 16 | 2)


@pytest.mark.parametrize("to_user", [True, False])
def test_a_return_outwards_empties_inner_segments(guest: Paused32, to_user: bool) -> None:
    guest.gdt(*GDT)
    es, fs = G_DATA3 | 3, G_CONFORMING | 1
    code = f"mov eax, {es}; mov es, eax; mov eax, {fs}; mov fs, eax; xor eax, eax; mov gs, eax"
    assert guest.execute(code) is None
    guest.iret(cs=RING3_CS if to_user else RING1_CS)
    selectors = [guest.cpu.vmcb.selector(segment) for segment in (v.DS, v.ES, v.FS, v.GS)]
    assert selectors == [0 if to_user else RING1_DS, G_DATA3 | 3, G_CONFORMING | 1, 0]


@pytest.mark.parametrize("to_user", [True, False])
def test_a_return_clears_null_selectors(guest: Paused32, to_user: bool) -> None:
    assert guest.execute("mov eax, 3; mov es, eax; mov eax, 1; mov gs, eax") is None
    guest.iret(cs=RING3_CS if to_user else RING1_CS)
    assert [guest.cpu.vmcb.selector(segment) for segment in (v.ES, v.GS)] == [0, 0]


def test_native_iret_empties_them_too(guest: Paused32) -> None:
    frame = f"push {RING3_DS}; push {guest.user_stack}; push 0x202; push {RING3_CS}"
    assert guest.execute(f"{frame}; mov eax, there; push eax; iretd; there: ud2") == UD
    assert guest.frame()["cs"] & 0xFFFF == RING3_CS
    assert guest.cpu.vmcb.selector(v.DS) == 0


# -- virtual-8086 mode -----------------------------------------------------------------------------------


def vm86(guest: Paused32, eflags: int) -> tuple[int, ...]:
    """An iret frame for virtual-8086 mode, of ten words."""
    frame = (7, 0x1234, 0xF000, 0x20000 | eflags, 0xFFF0, 0x2000, 0x11, 0x22, 0x33, 0x44)
    guest.q[v.RSP] = guest.put(struct.pack("<10I", *frame), 0xC000)
    assert guest.hypercall(Hypercall.IRET) == 7
    return frame


@pytest.mark.parametrize("eflags", [0x3202, 0x7102, 0x10003])
@pytest.mark.parametrize("masks", [0, 4])
def test_virtual_8086_mode_is_a_protection_fault(guest: Paused32, eflags: int, masks: int) -> None:
    """The kernel finds the frame that it gave, moved to its stack, with the error code in place of eax."""
    guest.handlers(flags=masks)
    guest.vcpu.info.upcall_masked = not eflags & IF
    frame = vm86(guest, eflags)
    assert guest.handled == GP
    assert guest.q[v.RSP] == guest.kernel_stack - 40
    assert guest.words(guest.q[v.RSP], 10) == (0, *frame[1:])
    assert live_flags(guest) & 0x37000 == 0
    assert live_flags(guest) & (TF | IF) == IF
    assert guest.vcpu.info.upcall_masked is (masks == 4 or not eflags & IF)
    assert guest.cpu.vmcb.selector(v.SS) == guest.vcpu.kernel_stack.ss
    assert guest.vcpu.in_kernel


def test_virtual_8086_mode_over_overlapping_frames(guest: Paused32) -> None:
    guest.vcpu.kernel_stack.sp = guest.scratch + 0xC000 + 48
    frame = vm86(guest, IF)
    assert guest.words(guest.scratch + 0xC008, 10) == (0, *frame[1:])


@pytest.mark.parametrize("ruined", ["handler", "stack segment", "stack"])
def test_virtual_8086_mode_without_a_way_to_say_so_is_fatal(guest: Paused32, ruined: str) -> None:
    if ruined == "handler":
        guest.vcpu.traps.selectors[GP] = 0
    elif ruined == "stack segment":
        guest.vcpu.kernel_stack.ss = RING3_DS
    else:
        guest.vcpu.kernel_stack.sp = 0xF57FFFFF
    vm86(guest, IF)
    assert guest.domain.crashed


# -- bad selectors of handlers and stacks -------------------------------------------------------------------


@pytest.mark.parametrize("selector", [0, 1, 0x201, RING1_DS, RING3_CS, 0xE009, G_ABSENT_CODE | 1])
@pytest.mark.parametrize("kernel", [True, False])
def test_a_handler_in_a_bad_code_segment_is_fatal(guest: Paused32, selector: int, kernel: bool) -> None:
    guest.gdt(*GDT)
    guest.vcpu.traps.selectors[UD] = selector
    guest.execute("ud2") if kernel else guest.user("ud2")
    assert guest.domain.crashed


@pytest.mark.parametrize("selector", [0, 1, 0x201, RING1_CS, RING3_DS, G_ABSENT_DATA | 1, G_READ_ONLY | 1])
def test_a_bad_kernel_stack_segment_is_fatal(guest: Paused32, selector: int) -> None:
    guest.gdt(*GDT)
    guest.vcpu.kernel_stack.ss = selector
    guest.user("ud2")
    assert guest.domain.crashed


@pytest.mark.parametrize("sp", [0, 8, 0xF5800010])
def test_a_kernel_stack_that_is_not_there_is_fatal(guest: Paused32, sp: int) -> None:
    guest.vcpu.kernel_stack.sp = sp
    guest.user("ud2")
    assert guest.domain.crashed


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


# -- writable page tables ----------------------------------------------------------------------------------


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


# -- descriptors -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("selector", "kernel", "user"),
    [
        # (LAR's access rights, LSL's limit, VERR, VERW)
        (0, None, None),
        (G_CODE3 | 3, (0xC0FB00, MASK32, 1, 0), (0xC0FB00, MASK32, 1, 0)),
        (G_DATA3, (0xC0F300, MASK32, 1, 1), (0xC0F300, MASK32, 1, 1)),
        (G_DATA1, (0xC0B300, MASK32, 1, 1), None),
        (G_DATA1 | 3, None, None),
        (G_READ_ONLY | 3, (0xC0F100, MASK32, 1, 0), (0xC0F100, MASK32, 1, 0)),
        (G_CONFORMING, (0xC0BF00, MASK32, 1, 0), (0xC0BF00, MASK32, 1, 0)),
        (G_ABSENT_DATA | 3, (0xC07300, MASK32, 1, 1), (0xC07300, MASK32, 1, 1)),
        (RING1_CS, (0xC0BB00, MASK32, 1, 0), None),
        (RING3_DS, (0xC0F300, MASK32, 1, 1), (0xC0F300, MASK32, 1, 1)),
        (0xE008, None, None),
        (0xE040, None, None),
        (0x1007, None, None),
    ],
)
def test_what_descriptors_look_like(
    guest: Paused32, selector: int, kernel: tuple[int, ...] | None, user: tuple[int, ...] | None
) -> None:
    guest.gdt(*GDT)
    code = (
        f"mov ecx, {selector}; xor eax, eax; lar eax, ecx; setz dl; lsl esi, ecx; setz dh; "
        "verr cx; setz bl; verw cx; setz bh"
    )
    for run, wanted in ((guest.execute, kernel), (guest.user, user)):
        assert run(code) is None
        q = guest.q
        if wanted is None:
            assert (q[v.RDX] & 0xFFFF, q[v.RBX] & 0xFFFF) == (0, 0)
        else:
            assert q[v.RDX] & 0xFFFF == 0x101
            seen = (q[v.RAX], q[v.RSI], q[v.RBX] & 1, q[v.RBX] >> 8 & 1)
            assert seen == wanted


@pytest.mark.parametrize("register", ["ds", "es", "fs", "gs"])
@pytest.mark.parametrize(
    ("selector", "vector"),
    [
        (G_DATA3 | 3, None),
        (G_READ_ONLY | 3, None),
        (G_CODE3 | 3, None),
        (G_CONFORMING | 3, None),
        (3, None),
        (G_DATA1 | 1, GP),
        (G_ABSENT_DATA | 3, NP),
        (0x203, GP),
        (0xE008, GP),
        (0x1007, GP),
    ],
)
def test_loading_segments_in_ring_3(
    guest: Paused32, register: str, selector: int, vector: int | None
) -> None:
    guest.gdt(*GDT)
    assert guest.user(f"mov eax, {selector}; mov {register}, eax") == vector
    if vector is not None:
        assert guest.frame(error=True)["error"] == selector & 0xFFFC


@pytest.mark.parametrize(
    ("selector", "vector"),
    [
        (G_DATA1 | 1, None),
        (RING1_DS, None),
        (G_DATA1, GP),
        (G_DATA3 | 3, GP),
        (G_DATA3 | 1, GP),
        (G_CODE1 | 1, GP),
        (G_ABSENT_DATA | 1, GP),
        (0, GP),
    ],
)
def test_loading_the_stack_segment_in_ring_1(guest: Paused32, selector: int, vector: int | None) -> None:
    guest.gdt(*GDT)
    assert guest.execute(f"mov eax, {selector}; mov ss, eax") == vector
    if vector is not None:
        assert guest.frame(error=True)["error"] == selector & 0xFFFC


def test_the_ldt_comes_page_by_page(guest: Paused32) -> None:
    assert guest.remap(guest.page(2), READ_ONLY) == 0
    guest.ldt(0, DATA3)
    guest.set_ldt(guest.page(1), 1024)
    assert guest.vcpu.descriptors.ldt_mapped == {}
    assert guest.user("mov eax, 0xf; mov fs, eax; lsl ecx, eax") is None
    assert set(guest.vcpu.descriptors.ldt_mapped) == {0}
    assert guest.q[v.RCX] == MASK32
    assert guest.user("mov eax, 0x1007; mov gs, eax") == GP
    assert guest.frame(error=True)["error"] == 0x1004
    assert set(guest.vcpu.descriptors.ldt_mapped) == {0, 1}
    guest.into_kernel()
    guest.set_ldt(0, 0)
    assert guest.vcpu.descriptors.ldt_mapped == {}
    assert guest.user("mov eax, 0xf; mov fs, eax") == GP
    assert guest.frame(error=True)["error"] == 0xC


def test_the_ldt_may_be_written_until_it_is_used(guest: Paused32) -> None:
    guest.ldt(0, DATA3)
    guest.into_kernel()
    assert guest.remap(guest.page(1), KERNEL_RW) == 0
    assert guest.user("mov eax, 0xf; mov fs, eax") == PF
    frame = guest.frame(error=True)
    assert (frame["error"], guest.vcpu.info.cr2) == (4, guest.page(1) + 8)


def test_an_update_of_the_ldt_is_seen(guest: Paused32) -> None:
    guest.ldt(0, with_base(DATA3, guest.page(6)))
    code = "mov eax, 0xf; mov fs, eax; mov ecx, fs:[0]"
    assert guest.user(code) is None
    guest.into_kernel()
    guest.put(struct.pack("<I", 0x600D), 0x5000)
    value = with_base(DATA3, guest.page(5))
    address = guest.mfn(guest.page(1)) << 12 | 8
    assert guest.update_descriptor(address, value) == 0
    assert guest.user(code) is None
    assert guest.q[v.RCX] == 0x600D


def test_gs_with_a_negative_offset(guest: Paused32) -> None:
    """What thread-local storage does: addresses wrap around at 4 GiB."""
    guest.gdt(with_base(DATA3, guest.page(5) + 16))
    guest.put(struct.pack("<I", 0x600D), 0x5000)
    assert guest.user("mov eax, 11; mov gs, eax; mov ecx, gs:[0xfffffff0]") is None
    assert guest.q[v.RCX] == 0x600D


# -- vCPUs -------------------------------------------------------------------------------------------------


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


# -- limits --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("limit", "fits"), [(0xFFFF, True), (0xF7FF, True), (0xF7FE, False), (0xFF, False)])
@pytest.mark.parametrize("code", ["ud2", "int 0x80"])
def test_a_bounce_frame_stays_within_the_stack_segment(
    guest: Paused32, limit: int, fits: bool, code: str
) -> None:
    guest.gdt(with_base(with_limit(DATA1, limit), guest.scratch))
    guest.vcpu.kernel_stack.ss, guest.vcpu.kernel_stack.sp = 8 | 1, 0xF800
    assert (guest.user(code) is not None) is fits
    assert guest.domain.crashed is not fits


@pytest.mark.parametrize(("limit", "fits"), [(0xF7EB, True), (0xF7EC, False)])
def test_a_bounce_frame_in_an_expand_down_segment(guest: Paused32, limit: int, fits: bool) -> None:
    guest.gdt(with_base(with_limit(DATA1 | 4 << 40, limit), guest.scratch))
    guest.vcpu.kernel_stack.ss, guest.vcpu.kernel_stack.sp = 8 | 1, 0xF800
    assert (guest.user("ud2") == UD) is fits
    assert guest.domain.crashed is not fits


def test_iret_beyond_the_limit_of_a_code_segment(guest: Paused32) -> None:
    guest.gdt(with_limit(CODE3, 0xFFF))
    guest.iret(cs=8 | 3, eip=0x1000)
    assert guest.handled == GP
    assert guest.words(guest.q[v.RSP], 3) == (0, 0x1000, 8 | 3)
    guest.into_kernel()
    guest.iret(cs=8 | 3, eip=0xFFF)
    assert guest.handled is None
    assert guest.cpu.vmcb.rip == 0xFFF
