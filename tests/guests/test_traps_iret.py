# SPDX-License-Identifier: GPL-2.0-only
"""Out of the guest kernel, and back for events: the iret hypercall, callbacks, event upcalls."""

from collections.abc import Iterator

import pytest

from pyhv.abi.numbers import Assist, VcpuOp
from pyhv.cpu import vmcb as v
from pyhv.domain.callbacks import CallbackEntry
from pyhv.testing.guest_machine import Paused, paused
from pyhv.testing.vectors import DB, GP, IF, RF, UD

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


# -- the iret hypercall --------------------------------------------------------------------------------------


def test_iret_to_the_kernel_loads_all_registers(guest: Paused) -> None:
    guest.load("nop")
    guest.iret(rax=1, r11=2, rcx=3, rflags=0x246)
    assert (guest.q[v.RAX], guest.q[v.R11], guest.q[v.RCX]) == (1, 2, 3)
    assert (guest.q[v.RIP], guest.q[v.RSP]) == (guest.scratch + 0x8000, guest.stack)
    assert guest.domain.engine.rflags() == 0x246
    assert guest.vcpu.in_kernel
    assert not guest.vcpu.info.upcall_masked


def test_iret_like_sysret_leaves_return_address_and_flags_in_rcx_and_r11(guest: Paused) -> None:
    guest.load("nop")
    guest.iret(rax=1, r11=2, rcx=3, flags=0x100, rflags=0x287)
    assert (guest.q[v.RAX], guest.q[v.R11], guest.q[v.RCX]) == (1, 0x287, guest.scratch + 0x8000)


@pytest.mark.parametrize(("rflags", "masked"), [(0x2, True), (0x202, False)])
def test_iret_sets_the_event_mask_from_the_interrupt_flag(guest: Paused, rflags: int, masked: bool) -> None:
    guest.vcpu.info.upcall_masked = not masked
    guest.iret(rflags=rflags)
    assert guest.vcpu.info.upcall_masked is masked
    assert guest.domain.engine.rflags() & IF, "the real flag is always set"


def test_iret_drops_iopl_and_virtual_8086(guest: Paused) -> None:
    guest.iret(rflags=0xFFFFFFFFFFFFFFFF)
    assert guest.domain.engine.rflags() & ~0x200 == 0x3D4DD5 & ~0x200 & ~RF | 2


def test_iret_to_user_mode_and_back_swaps_gs(guest: Paused) -> None:
    guest.allow_user_mode()
    guest.q[v.SEG_BASE[v.GS]], guest.vcpu.other_gs_base = 0x100, 0x200
    guest.iret(cs=0xE033)
    assert not guest.vcpu.in_kernel
    assert (guest.q[v.SEG_BASE[v.GS]], guest.vcpu.other_gs_base) == (0x200, 0x100)


@pytest.mark.parametrize(
    ("frame", "error"),
    [
        ({"cs": 0xE030 | 8}, 0xE038),
        ({"cs": 0xE008}, 0xE008),
        ({"cs": 0xE02B}, 0xE028),
        ({"cs": 0x33}, 0x30),
        ({"ss": 0xE033}, 0xE030),
        ({"ss": 0xE010}, 0xE010),
        ({"ss": 0}, 0),
        ({"rip": 0x800000000000}, 0),
        ({"rip": 0xFFFF7FFFFFFFFFFF}, 0),
    ],
)
@pytest.mark.parametrize("to_user", [True, False])
def test_a_bad_iret_faults_as_if_at_its_target(
    guest: Paused, frame: dict[str, int], error: int, to_user: bool
) -> None:
    guest.allow_user_mode()
    wanted = {"cs": 0xE030, "rip": guest.scratch + 0x8000} | frame
    wanted["cs"] |= 3 if to_user else 0
    if not to_user:
        wanted["cs"] &= ~3
    guest.iret(**wanted, rflags=0x246)
    assert guest.handled == GP
    seen = guest.frame(error=True)
    assert seen["error"] == error
    assert seen["rip"] == wanted["rip"]
    assert seen["cs"] & 0xFFFF == (wanted["cs"] | 3 if to_user else wanted["cs"])
    assert seen["rsp"] == guest.stack
    assert seen["rflags"] == 0x246
    assert guest.q[v.RSP] == (guest.kernel_stack if to_user else guest.stack) - 64


def test_iret_to_compatibility_mode(guest: Paused) -> None:
    guest.allow_user_mode()
    # mov eax, -1; inc eax (0x40 is REX in 64-bit mode); int 0x20
    guest.vcpu.traps.handlers[0x20] = (guest.handler(0x20), 3)
    assert guest.user(b"\xb8\xff\xff\xff\xff\x40\xcd\x20", cs=0xE023) == 0x20
    assert guest.q[v.RAX] == 0
    assert guest.frame()["cs"] == 0xE023


def test_syscall_from_compatibility_mode_is_an_invalid_opcode(guest: Paused) -> None:
    """As on an Intel processor, which CPUID says that this is."""
    guest.allow_user_mode()
    assert guest.user("syscall", cs=0xE023) == UD
    frame = guest.frame()
    assert (frame["rip"], frame["cs"]) == (guest.scratch + 0x8000, 0xE023)


def iret_code(flags: int, rflags: int) -> str:
    """Go on at `there` through the iret hypercall, made as a kernel makes it."""
    return f"""
        mov rcx, rsp; push 0xe02b; push rcx; push {rflags:#x}; push 0xe030; lea rax, [rip + there]; push rax
        push {flags:#x}; push 0; push 0; push 0; mov eax, 23; syscall; there: nop; nop"""


@pytest.mark.parametrize(("flags", "executed"), [(0, 1), (0x100, 0)])
@pytest.mark.parametrize("slice_ns", [20_000, 20])
def test_iret_restores_the_trap_flag(guest: Paused, flags: int, executed: int, slice_ns: int) -> None:
    """As IRET, it traps after the first instruction; as SYSRET, before it."""
    guest.slice_ns = slice_ns
    assert guest.execute(iret_code(flags, 0x302)) == DB
    assert guest.frame()["rip"] == guest.load(iret_code(flags, 0x302)) - 2 + executed
    assert guest.frame()["rflags"] & 0x100


def test_an_event_comes_before_the_first_stepped_instruction(guest: Paused) -> None:
    raise_event(guest, masked=True)
    assert guest.execute(iret_code(0, 0x302)) == EVENT
    frame = guest.frame()
    assert frame["rflags"] & 0x100
    # the handler returns natively: now exactly one instruction is executed
    names = ("rip", "cs", "rflags", "rsp", "ss")
    frame["cs"] |= 3
    for place, name in enumerate(names):
        guest.domain.memory.write_u64(guest.stack - 0x100 + 8 * place, frame[name])
    guest.q[v.RSP] = guest.stack - 0x100
    guest.put(b"\x90\x48\xcf", 0x7000)
    guest.q[v.RIP] = guest.scratch + 0x7001
    assert guest.go() == DB
    assert guest.frame()["rip"] == frame["rip"] + 1


def test_iret_with_virtual_iopl(guest: Paused) -> None:
    guest.domain.assists.enabled.add(Assist.ARCHITECTURAL_IOPL)
    guest.load("hlt")
    guest.iret(rflags=0x2202)
    assert guest.vcpu.ports.iopl == 2
    guest.go()
    assert guest.frame(error=True)["rflags"] & 0x3000 == 0x2000


def test_a_native_iret_stays_in_the_kernel_and_leaves_the_mask_alone(guest: Paused) -> None:
    code = f"""
        mov rax, {guest.stack}; push 0xe02b; push rax; push 0x202; push 0xe033
        lea rax, [rip + over]; push rax; iretq; over: mov eax, 77"""
    assert guest.execute(code) is None
    assert guest.q[v.RAX] == 77
    assert guest.vcpu.info.upcall_masked


# -- events --------------------------------------------------------------------------------------------------


def raise_event(guest: Paused, *, masked: bool) -> None:
    guest.vcpu.info.upcall_masked = masked
    guest.vcpu.info.mark_pending()


def test_an_upcall_masks_events_and_leaves_them_pending(guest: Paused) -> None:
    raise_event(guest, masked=False)
    assert guest.execute("nop") == EVENT
    frame = guest.frame()
    assert frame["cs"] == 0xE030
    assert frame["rflags"] & IF
    assert guest.vcpu.info.upcall_masked
    assert guest.vcpu.info.upcall_pending


def test_masked_events_wait(guest: Paused) -> None:
    raise_event(guest, masked=True)
    assert guest.execute("nop") is None


def test_events_are_delivered_when_a_hypercall_returns(guest: Paused) -> None:
    """The guest unmasks by a plain store and then makes any hypercall."""
    mask = guest.scratch + 0x3001
    info = guest.scratch + 0x3000
    code = f"mov byte ptr [{mask:#x}], 0; mov eax, 17; xor edi, edi; xor esi, esi; syscall; nop"
    guest.put(guest.mfn(guest.page(3)).to_bytes(8, "little") + bytes(8), 0xC000)
    assert guest.vcpu_op(VcpuOp.REGISTER_VCPU_INFO, 0, guest.scratch + 0xC000) == 0
    raise_event(guest, masked=True)
    record = guest.vcpu.info
    assert record.page.mfn << 12 | record.offset == guest.domain.memory.for_read(info)
    assert guest.execute(code) == EVENT
    assert guest.frame()["rip"] == guest.scratch + 0x8000 + len_of(code, guest) - 1


def len_of(code: str, guest: Paused) -> int:
    return guest.load(code) - guest.scratch - 0x8000


def test_an_event_goes_on_top_of_an_exception(guest: Paused) -> None:
    """The exception's frame is built first; the upcall interrupts its handler before it begins."""
    guest.unmask_events()
    guest.load("hlt")
    guest.q[v.RIP], guest.q[v.RSP] = guest.scratch + 0x8000, guest.stack

    class Raise:
        def exit(self, _record: object) -> None:
            raise_event(guest, masked=False)

    guest.dispatcher.observers.append(Raise())
    assert guest.go() == EVENT
    assert guest.frame()["rip"] == guest.handler(GP)


def test_iret_delivers_what_it_unmasks(guest: Paused) -> None:
    raise_event(guest, masked=True)
    guest.load("nop")
    guest.iret(rflags=0x202)
    assert guest.handled == EVENT
    assert guest.frame()["rip"] == guest.scratch + 0x8000


def test_events_interrupt_user_mode(guest: Paused) -> None:
    guest.allow_user_mode()
    raise_event(guest, masked=True)
    guest.load("nop")
    guest.iret(cs=0xE033, rflags=0x202)
    assert guest.handled == EVENT
    assert guest.frame()["cs"] == 0xE033
    assert guest.q[v.RSP] == guest.kernel_stack - 56


@pytest.mark.promise("C-11")
def test_an_nmi_waits_for_the_iret_of_the_one_before(guest: Paused) -> None:
    """Only the hypercall ends an NMI; IRET itself does not."""
    guest.vcpu.traps.handlers[2] = (guest.handler(2), 0)
    assert guest.vcpu_op(VcpuOp.SEND_NMI, 0, 0) == 0
    assert guest.execute("nop") == 2
    assert guest.vcpu_op(VcpuOp.SEND_NMI, 0, 0) == 0
    code = "mov rax, rsp; push 0xe02b; push rax; push 0x202; push 0xe033; lea rcx, [rip + 3]; push rcx; iretq"
    assert guest.execute(code) is None, "the second one waits"
    assert guest.vcpu.nmi.pending
    guest.load("nop")
    guest.iret()
    assert guest.handled == 2
    assert not guest.vcpu.nmi.pending
    guest.iret()
    assert guest.handled is None


def test_an_nmi_comes_before_an_event_and_does_not_mask_it(guest: Paused) -> None:
    guest.vcpu.traps.handlers[2] = (guest.handler(2), 0)
    raise_event(guest, masked=False)
    guest.vcpu.nmi.pending = True
    guest.load("nop")
    guest.iret()
    assert guest.handled == EVENT
    assert guest.frame()["rip"] == guest.handler(2)


def test_an_nmi_without_a_handler_is_lost(guest: Paused) -> None:
    guest.vcpu.traps.handlers[2] = (0, 0)
    assert guest.vcpu_op(VcpuOp.SEND_NMI, 0, 0) == 0
    assert guest.execute("nop") is None
    assert not guest.vcpu.nmi.pending
    guest.vcpu.traps.handlers[2] = (guest.handler(2), 0)
    assert guest.vcpu_op(VcpuOp.SEND_NMI, 0, 0) == 0
    assert guest.execute("nop") == 2, "none is being handled"


@pytest.mark.promise("C-11")
def test_an_nmi_to_a_process_enters_the_kernel(guest: Paused) -> None:
    guest.allow_user_mode()
    guest.vcpu.traps.handlers[2] = (guest.handler(2), 4)
    assert guest.vcpu_op(VcpuOp.SEND_NMI, 0, 0) == 0
    assert guest.user("nop", rflags=2) == 2
    assert guest.frame()["cs"] == 0xE033 | 1 << 32
    assert guest.q[v.RSP] == guest.kernel_stack - 56


def test_an_nmi_ignores_the_event_mask(guest: Paused) -> None:
    guest.vcpu.traps.handlers[2] = (guest.handler(2), 4)
    guest.vcpu.info.upcall_masked = True
    assert guest.vcpu_op(VcpuOp.SEND_NMI, 0, 0) == 0
    assert guest.execute("nop") == 2
    assert not guest.vcpu.nmi.pending
