# SPDX-License-Identifier: GPL-2.0-only
"""The way back as a guest sees it: SYSRET after hypercalls and some irets, IRET after all else; and single
steps over the ways in.
"""

import struct
from collections.abc import Iterator

import pytest

from pyhv.abi.numbers import Hypercall
from pyhv.cpu import vmcb as v
from pyhv.cpu.exits import ExitKind, ExitRecord
from pyhv.domain.callbacks import CallbackEntry
from pyhv.testing.compat_machine import SYSENTER as SYSENTER32
from pyhv.testing.compat_machine import Paused32, paused32
from pyhv.testing.guest_machine import Paused, paused
from pyhv.testing.vectors import BP, DB, GP, IF, PF, RF, TF, UD

EVENT, SYSCALL, SYSENTER = 256, 257, 258
FLAT_CS, FLAT_CS32, FLAT_SS = 0xE033, 0xE023, 0xE02B
OWN_CS, OWN_SS, OWN_CS32 = 0x0B, 0x13, 0x1B
IN_SYSCALL = 0x100
CODE64, DATA, CODE32 = 0x00AFFB000000FFFF, 0x00CFF3000000FFFF, 0x00CFFB000000FFFF
STEP = "pushfq; or dword ptr [rsp], 0x100; popfq;"


@pytest.fixture
def guest() -> Iterator[Paused]:
    """A guest with handlers, a user table, and flat segments of its own in its GDT."""
    with paused() as made:
        made.handlers()
        vcpu = made.vcpu
        vcpu.callbacks.event = CallbackEntry(made.handler(EVENT), True)
        vcpu.callbacks.syscall = CallbackEntry(made.handler(SYSCALL), False)
        vcpu.callbacks.sysenter = CallbackEntry(made.handler(SYSENTER), False)
        made.put(struct.pack("<4Q", 0, CODE64, DATA, CODE32), 0x5000)
        assert made.remap(made.page(5), 0x65) == 0
        frames = made.put(made.mfn(made.page(5)).to_bytes(8, "little"), 0x100)
        assert made.set_gdt(frames, 512) == 0
        made.allow_user_mode()
        yield made


def selectors(guest: Paused) -> tuple[int, int]:
    return guest.cpu.vmcb.selector(v.CS), guest.cpu.vmcb.selector(v.SS)


def use_own_segments(guest: Paused) -> None:
    guest.load("nop")
    guest.iret(cs=OWN_CS & ~3, ss=OWN_SS)
    assert selectors(guest) == (OWN_CS, OWN_SS)


def pend(guest: Paused) -> None:
    """An event waits, masked."""
    guest.vcpu.info.mark_pending()
    guest.vcpu.info.upcall_masked = True


# -- hypercalls --------------------------------------------------------------------------------------------


@pytest.mark.promise("C-10")
def test_a_hypercall_comes_back_with_flat_segments(guest: Paused) -> None:
    use_own_segments(guest)
    guest.q[v.RDI] = 0
    assert guest.hypercall(Hypercall.XEN_VERSION) == 4 << 16 | 17
    assert selectors(guest) == (FLAT_CS, FLAT_SS)
    assert guest.execute("mov eax, ss; mov ecx, cs; mov [rbx], eax") is None, "they work, too"
    assert (guest.q[v.RAX], guest.q[v.RCX]) == (FLAT_SS, FLAT_CS)


def test_a_hypercall_that_does_not_exist_does_so_too(guest: Paused) -> None:
    use_own_segments(guest)
    guest.hypercall(63)
    assert selectors(guest) == (FLAT_CS, FLAT_SS)


def test_an_event_after_a_hypercall_shows_flat_segments(guest: Paused) -> None:
    use_own_segments(guest)
    pend(guest)
    guest.vcpu.info.upcall_masked = False
    guest.hypercall(Hypercall.XEN_VERSION)
    assert guest.handled == EVENT
    assert guest.frame()["cs"] == FLAT_CS & ~3
    assert guest.frame()["ss"] == FLAT_SS


def test_other_exits_leave_segments_alone(guest: Paused) -> None:
    use_own_segments(guest)
    guest.vcpu.ports.iopl = 1
    end = guest.load("cli; mov rax, cr0; .byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2; cpuid; in al, 0x80")
    guest.q[v.RIP] = guest.scratch + 0x8000
    assert guest.go(end) is None
    assert selectors(guest) == (OWN_CS, OWN_SS)


def test_syscall_in_32_bit_code_of_the_kernel_is_undefined(guest: Paused) -> None:
    """As on an Intel processor; it is no hypercall."""
    end = guest.load(b"\x0f\x05")
    guest.iret(cs=OWN_CS32 & ~3, rip=guest.scratch + 0x8000, rax=Hypercall.XEN_VERSION)
    assert guest.go(end) == UD
    assert guest.frame()["rip"] == guest.scratch + 0x8000
    assert guest.frame()["rcx"] == 0


# -- the iret hypercall ------------------------------------------------------------------------------------


@pytest.mark.promise("C-10")
@pytest.mark.parametrize("to_user", [True, False])
def test_iret_in_a_system_call_ignores_the_selectors(guest: Paused, to_user: bool) -> None:
    """SYSRET sets its own, and RCX and R11; RF cannot come back that way."""
    guest.load("nop")
    cs = OWN_CS if to_user else OWN_CS & ~3
    flags = 0x202 | RF | 1
    guest.iret(cs=cs, ss=OWN_SS, flags=IN_SYSCALL, rcx=7, r11=8, rax=9, rflags=flags)
    assert selectors(guest) == (FLAT_CS, FLAT_SS)
    assert guest.q[v.RCX] == guest.q[v.RIP] == guest.scratch + 0x8000
    assert (guest.q[v.R11], guest.q[v.RAX]) == (flags, 9)
    assert guest.domain.engine.rflags() & ~IF == 3
    assert guest.vcpu.in_kernel is not to_user


def test_selectors_that_do_not_exist_are_not_looked_at(guest: Paused) -> None:
    guest.load("nop")
    guest.iret(cs=0xFFFB, ss=0, flags=IN_SYSCALL)
    assert guest.handled is None
    assert selectors(guest) == (FLAT_CS, FLAT_SS)


def test_sysret_to_32_bit_code(guest: Paused) -> None:
    """Only Xen's own selector leads there; RIP is cut to 32 bits."""
    guest.load("nop")
    guest.iret(cs=FLAT_CS32, ss=0, flags=IN_SYSCALL, rip=0x7FFF_0000_0000 | guest.scratch + 0x8000)
    assert selectors(guest) == (FLAT_CS32, FLAT_SS)
    assert guest.q[v.RIP] == guest.scratch + 0x8000
    assert not guest.cpu.vmcb.d[v.HFLAGS] & v.HF_CS64


def test_sysret_to_nowhere_is_an_iret(guest: Paused) -> None:
    """A RIP that is not canonical faults with the frame's own selectors, as Hypercall.IRET raises it."""
    guest.iret(cs=OWN_CS, ss=OWN_SS, flags=IN_SYSCALL, rip=1 << 47)
    assert guest.handled == GP
    frame = guest.frame(error=True)
    assert (frame["error"], frame["rip"], frame["cs"], frame["ss"]) == (0, 1 << 47, OWN_CS, OWN_SS)
    assert frame["rcx"] == 1 << 47


def test_an_event_that_iret_unmasks_shows_what_iret_was_given(guest: Paused) -> None:
    """There was no SYSRET yet: the frame has the selectors that were asked for, RCX and R11 are SYSCALL's."""
    pend(guest)
    guest.load("nop")
    guest.q[v.RIP] = guest.scratch + 0x4000
    guest.iret(cs=OWN_CS, ss=OWN_SS, flags=IN_SYSCALL, rflags=0x202, rcx=7, r11=8)
    assert guest.handled == EVENT
    frame = guest.frame()
    assert (frame["rip"], frame["cs"], frame["ss"]) == (guest.scratch + 0x8000, OWN_CS, OWN_SS)
    assert frame["rcx"] == guest.scratch + 0x4002
    assert frame["r11"] & ~IF == 2


@pytest.mark.parametrize(("flags", "passed"), [(IN_SYSCALL, 0), (0, 1)])
def test_sysret_with_tf_traps_at_once(guest: Paused, flags: int, passed: int) -> None:
    """Before the first instruction; Hypercall.IRET lets one pass."""
    target = guest.scratch + 0x9000
    guest.load("nop; nop", 0x9000)
    frame = struct.pack("<9Q", 0, 0, 0, flags, target, FLAT_CS, 0x302, guest.stack, FLAT_SS)
    at = guest.put(frame, 0xC000)
    assert guest.execute(f"mov rsp, {at}; mov eax, {Hypercall.IRET}; syscall") == DB
    assert guest.frame()["rip"] == target + passed


def test_iret_in_a_multicall_is_a_sysret_too(guest: Paused) -> None:
    guest.load("nop")
    frame = struct.pack(
        "<9Q", 1, 2, 3, IN_SYSCALL, guest.scratch + 0x8000, OWN_CS, 0x202, guest.stack, OWN_SS
    )
    guest.q[v.RSP] = guest.put(frame, 0xC000)
    guest.q[v.RDI], guest.q[v.RSI] = guest.put(struct.pack("<8Q", Hypercall.IRET, *[0] * 7), 0x200), 1
    guest.hypercall(Hypercall.MULTICALL)
    assert selectors(guest) == (FLAT_CS, FLAT_SS)
    assert guest.q[v.RCX] == guest.scratch + 0x8000


# -- system calls ------------------------------------------------------------------------------------------


def test_a_system_call_without_a_callback(guest: Paused) -> None:
    """#UD two bytes back, with all that SYSCALL did before it was found out: RCX, R11, flat selectors."""
    guest.vcpu.callbacks.syscall = CallbackEntry()
    assert guest.user("std; syscall", cs=OWN_CS, ss=OWN_SS) == UD
    frame = guest.frame()
    at = guest.scratch + 0x8001
    assert (frame["rip"], frame["rcx"], frame["cs"], frame["ss"]) == (at, at + 2, FLAT_CS, FLAT_SS)
    assert frame["r11"] == frame["rflags"] & ~RF | IF
    assert frame["rflags"] & 0x400
    assert guest.domain.engine.rflags() & 0x400, "DF is cleared for the callback only"


def test_a_system_call_of_32_bit_code_is_undefined(guest: Paused) -> None:
    """On an Intel processor the instruction itself is."""
    assert guest.user(b"\x0f\x05", cs=OWN_CS32, ss=OWN_SS) == UD
    frame = guest.frame()
    assert (frame["rip"], frame["cs"], frame["ss"]) == (guest.scratch + 0x8000, OWN_CS32, OWN_SS)
    assert frame["rcx"] == 0


# -- with TF set -------------------------------------------------------------------------------------------


@pytest.mark.promise("C-10")
@pytest.mark.parametrize(
    ("code", "handler"),
    [
        ("sysenter", SYSENTER),
        ("syscall", SYSCALL),
        ("int 0x80", 0x80),
        ("int3", BP),
        ("hlt", GP),
        ("ud2", UD),
        ("mov rax, [0x7fff0000]", PF),
    ],
)
def test_the_kernel_is_entered_without_a_single_step(guest: Paused, code: str, handler: int) -> None:
    """TF is in the frame, and gone from the processor; the handler's own instructions do not trap."""
    guest.put(b"\x90\x90\xeb\xfe", guest.handler(handler) - guest.scratch)
    guest.load(STEP + code)
    guest.iret(cs=FLAT_CS)
    assert guest.go(guest.handler(handler) + 2) is None
    assert guest.cpu.vmcb.rip == guest.handler(handler) + 2
    assert guest.frame(error=handler in (GP, PF))["rflags"] & TF
    assert not guest.domain.engine.rflags() & TF


def test_sysenter_without_a_callback_does_not_step_either(guest: Paused) -> None:
    guest.vcpu.callbacks.sysenter = CallbackEntry()
    assert guest.user(STEP + "sysenter") == GP
    assert guest.frame(error=True)["rflags"] & TF


def test_an_event_right_after_sysenter_does_not_bring_the_step_back(guest: Paused) -> None:
    vcpu = guest.vcpu

    class Raise:
        def exit(self, record: ExitRecord) -> None:
            if record.kind is ExitKind.SYSENTER:
                vcpu.info.mark_pending()
                vcpu.info.upcall_masked = False

    guest.dispatcher.observers.append(Raise())
    assert guest.user(STEP + "sysenter") == EVENT
    assert guest.frame()["rip"] == guest.handler(SYSENTER)
    assert not guest.frame()["rflags"] & TF


@pytest.mark.parametrize("stepping", [False, True])
def test_steps_after_sysenter_are_not_lost(guest: Paused, stepping: bool) -> None:
    """What is swallowed is the one trap of the entry, whether the hypervisor steps itself or not."""
    if stepping:
        assert guest.set_debugreg(0, guest.page(7)) == 0
        assert guest.set_debugreg(7, 0x401) == 0
    assert guest.user(STEP + "sysenter") == SYSENTER
    assert guest.execute(STEP + "nop; nop") == DB


def test_a_step_over_a_hypercall_traps_behind_it(guest: Paused) -> None:
    code = f"mov eax, {Hypercall.XEN_VERSION}; xor edi, edi; {STEP} syscall; nop"
    assert guest.execute(code) == DB
    assert guest.frame()["rip"] == guest.load(code) - 1
    assert guest.vcpu.debug.registers[6] & 1 << 14


def test_a_step_over_cpuid_by_prefix_traps_behind_it(guest: Paused) -> None:
    code = f"xor eax, eax; {STEP} .byte 0x0f, 0x0b, 0x78, 0x65, 0x6e, 0x0f, 0xa2; nop; nop"
    assert guest.execute(code) == DB
    assert guest.frame()["rip"] == guest.load(code) - 2


@pytest.fixture
def narrow() -> Iterator[Paused32]:
    with paused32() as made:
        made.handlers()
        made.vcpu.callbacks.sysenter = CallbackEntry(made.handler(SYSENTER32), False, 0xE019)
        yield made


STEP32 = "pushfd; or dword ptr [esp], 0x100; popfd;"


@pytest.mark.parametrize(
    ("code", "handler"),
    [
        ("sysenter", SYSENTER32),
        ("int 0x80", 0x80),
        ("int3", BP),
        ("hlt", GP),
        ("syscall", UD),
        ("int 0x82", GP),
    ],
)
def test_a_32_bit_kernel_is_entered_without_a_single_step(narrow: Paused32, code: str, handler: int) -> None:
    narrow.put(b"\x90\x90\xeb\xfe", narrow.handler(handler) - narrow.scratch)
    assert narrow.user(STEP32 + code, stop=narrow.handler(handler) + 2) is None
    assert narrow.cpu.vmcb.rip == narrow.handler(handler) + 2
    assert narrow.frame(error=handler == GP)["eflags"] & TF


def test_a_step_over_a_32_bit_hypercall_traps_an_instruction_later(narrow: Paused32) -> None:
    """It comes back by Hypercall.IRET, which lets one instruction pass."""
    code = f"mov eax, 17; xor ebx, ebx; {STEP32} int 0x82; nop; nop"
    assert narrow.execute(code) == DB
    assert narrow.frame()["eip"] == narrow.load(code) - 1
    assert narrow.frame()["eflags"] & TF
