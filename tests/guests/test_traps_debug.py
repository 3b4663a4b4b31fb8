# SPDX-License-Identifier: GPL-2.0-only
"""Debug registers at work: instruction, data and port breakpoints, single steps, and who sees them."""

from collections.abc import Callable, Iterator

import pytest

from pyhv.cpu import vmcb as v
from pyhv.cpu.assembler import assemble
from pyhv.testing.guest_machine import Paused, paused
from pyhv.testing.vectors import DB, GP, PF, RF, TF, UD

pytestmark = pytest.mark.usefixtures("engines")
CODE, FREE = 0x8000, 0xC000
IDLE, BS = 0xFFFF0FF0, 1 << 14
EXECUTE, WRITE, PORT, ACCESS = range(4)
LENGTH = {1: 0, 2: 1, 4: 3, 8: 2}


@pytest.fixture
def guest(engines: None) -> Iterator[Paused]:
    with paused() as made:
        made.handlers()
        yield made


def arm(guest: Paused, number: int, address: int, kind: int, length: int = 1, *, enable: int = 1) -> None:
    """Set one breakpoint by hypercall, leaving the others as they are."""
    assert guest.set_debugreg(number, address) == 0
    control = guest.vcpu.debug.registers[7] & ~(3 << 2 * number | 15 << 16 + 4 * number)
    control |= enable << 2 * number | (kind | LENGTH[length] << 2) << 16 + 4 * number
    assert guest.set_debugreg(7, control) == 0
    guest.cpu.rearrange = True  # as after a hypercall of the guest


def disarm(guest: Paused) -> None:
    assert guest.set_debugreg(7, 0) == 0
    guest.cpu.rearrange = True


def offset(guest: Paused) -> int:
    """RIP in the frame, from the beginning of the code."""
    return guest.frame()["rip"] - guest.scratch - CODE


def status(guest: Paused) -> int:
    """The guest's DR6, which is idle afterwards."""
    value = guest.vcpu.debug.registers[6]
    guest.vcpu.debug.registers[6] = IDLE
    return value ^ IDLE


def resume(guest: Paused, *, flags: int = 0) -> int | None:
    """Go on behind the exception as its handler would; `flags` are added to RFLAGS."""
    frame = guest.frame()
    guest.q[v.RIP], guest.q[v.RSP] = frame["rip"], frame["rsp"]
    guest.q[v.RCX], guest.q[v.R11] = frame["rcx"], frame["r11"]
    guest.cpu.vmcb.set_rflags(frame["rflags"] | flags | 0x200)
    guest.cpu.rearrange = True
    return guest.go(guest.end)


Execute = Callable[[str | bytes], int | None]


@pytest.fixture
def run(guest: Paused) -> Execute:
    """Execute code, which ends at `guest.end`."""
    return guest.execute


# -- instruction breakpoints -------------------------------------------------------------------------------


@pytest.mark.parametrize("number", range(4))
@pytest.mark.parametrize("enable", [1, 2, 3], ids=["local", "global", "both"])
def test_an_instruction_breakpoint_is_a_fault(guest: Paused, run: Execute, number: int, enable: int) -> None:
    arm(guest, number, guest.scratch + CODE + 5, EXECUTE, enable=enable)
    assert run("mov eax, 1; mov eax, 2; nop") == DB
    assert offset(guest) == 5
    assert guest.q[v.RAX] == 1
    assert status(guest) == 1 << number
    assert guest.frame()["rflags"] & (TF | RF) == 0
    assert resume(guest, flags=RF) is None
    assert guest.q[v.RAX] == 2


LOCK_MOV = b"\xf0\x89\xc0"


def test_a_breakpoint_comes_before_a_refusal(guest: Paused, run: Execute) -> None:
    arm(guest, 0, guest.scratch + CODE + 1, EXECUTE)
    assert run(b"\x90" + LOCK_MOV) == DB
    assert (offset(guest), status(guest)) == (1, 1)
    assert resume(guest, flags=RF) == UD
    assert (offset(guest), guest.vcpu.debug.registers[6]) == (1, IDLE)
    assert guest.frame()["rflags"] & RF


def test_a_step_ends_before_a_refusal(guest: Paused, run: Execute) -> None:
    code = "pushfq; or qword ptr [rsp], 0x100; popfq; nop; .byte 0xf0, 0x89, 0xc0"
    assert run(code) == DB
    assert guest.frame()["rip"] == guest.end - 3
    assert resume(guest) == UD
    assert guest.frame()["rip"] == guest.end - 3
    assert guest.frame()["rflags"] & TF


def test_without_the_resume_flag_it_comes_again(guest: Paused, run: Execute) -> None:
    arm(guest, 0, guest.scratch + CODE, EXECUTE)
    assert run("nop; nop") == DB
    assert resume(guest) == DB
    assert offset(guest) == 0


def test_the_resume_flag_is_for_one_instruction(guest: Paused, run: Execute) -> None:
    arm(guest, 0, guest.scratch + CODE + 1, EXECUTE)
    assert run(b"\x90\x48\xff\xc9\xeb\xfb") == DB  # nop; dec rcx; back to dec
    for _ in range(3):
        assert offset(guest) == 1
        assert resume(guest, flags=RF) == DB


def test_a_breakpoint_that_is_not_enabled_does_nothing(guest: Paused, run: Execute) -> None:
    arm(guest, 0, guest.scratch + CODE, EXECUTE, enable=0)
    assert run("nop; nop") is None
    assert not guest.cpu.stepping


def test_only_the_first_byte_of_an_instruction_counts(guest: Paused, run: Execute) -> None:
    arm(guest, 0, guest.scratch + CODE + 1, EXECUTE)
    assert run("mov eax, 1; nop") is None
    arm(guest, 0, guest.scratch + CODE, EXECUTE)
    assert run(b"\x66\x90\x90") == DB


def test_an_instruction_that_faults_is_not_stopped_again(guest: Paused, run: Execute) -> None:
    """The fault's frame has RF set, so that its restart goes through."""
    arm(guest, 0, guest.scratch + CODE + 10, EXECUTE)
    assert run("mov rcx, 0x7fff00000000; mov rax, [rcx]") == DB
    assert resume(guest, flags=RF) == PF
    frame = guest.frame(error=True)
    assert frame["rflags"] & RF
    assert frame["rip"] == guest.scratch + CODE + 10


def test_a_repeated_string_instruction_is_stopped_once(guest: Paused, run: Execute) -> None:
    code = f"mov ecx, 4; mov rdi, {guest.scratch + FREE}; rep stosb; nop"
    arm(guest, 0, guest.scratch + CODE + 5 + len(assemble(f"mov rdi, {guest.scratch + FREE}", 0)), EXECUTE)
    assert run(code) == DB
    assert guest.q[v.RCX] == guest.handler(DB)
    assert guest.frame()["rcx"] == 4
    assert resume(guest, flags=RF) is None
    assert guest.q[v.RCX] == 0


def test_a_jump_to_itself_is_stopped_each_time(guest: Paused, run: Execute) -> None:
    arm(guest, 0, guest.scratch + CODE, EXECUTE)
    assert run(b"\xeb\xfe") == DB
    assert resume(guest, flags=RF) == DB


def test_behind_a_hypercall(guest: Paused, run: Execute) -> None:
    code = "mov eax, 17; xor edi, edi; xor esi, esi; syscall; nop; nop"
    arm(guest, 0, guest.load(code) - 2, EXECUTE)
    assert run(code) == DB
    assert guest.frame()["rip"] == guest.end - 2
    assert guest.q[v.RAX] == 4 << 16 | 17


def test_behind_an_emulated_instruction(guest: Paused, run: Execute) -> None:
    arm(guest, 0, guest.scratch + CODE + 3, EXECUTE)
    assert run("mov rax, cr0; nop") == DB
    assert guest.q[v.RAX] == 0x80050033


def test_at_the_first_instruction_of_another_handler(guest: Paused, run: Execute) -> None:
    arm(guest, 0, guest.handler(GP), EXECUTE)
    assert run("hlt") == DB
    assert guest.frame()["rip"] == guest.handler(GP)


def test_at_its_own_handler_it_ends_the_domain(guest: Paused, run: Execute) -> None:
    """On hardware it recurs until the stack is gone."""
    arm(guest, 0, guest.handler(DB), EXECUTE)
    guest.vcpu.debug.registers[7] |= 1 << 2
    guest.vcpu.debug.registers[1] = guest.scratch + CODE
    run("nop")
    assert guest.domain.life.crashed


def test_in_user_mode(guest: Paused) -> None:
    guest.allow_user_mode()
    arm(guest, 0, guest.scratch + CODE + 5, EXECUTE)
    assert guest.user("mov eax, 1; mov eax, 2") == DB
    assert guest.frame()["cs"] & 3 == 3
    assert guest.frame()["rip"] == guest.scratch + CODE + 5


# -- data breakpoints --------------------------------------------------------------------------------------


def touched(guest: Paused, run: Execute, code: str) -> bool:
    """Whether the instruction traps; if so, right behind it."""
    code = f"mov rdx, {guest.scratch + FREE}; {code}; one: nop; nop"
    handled = run(code)
    if handled is None:
        return False
    assert handled == DB
    assert guest.frame()["rip"] == guest.end - 2, hex(guest.frame()["rip"])
    assert status(guest) == 1
    return True


@pytest.mark.parametrize("length", [1, 2, 4, 8])
def test_which_stores_reach_a_watched_place(guest: Paused, run: Execute, length: int) -> None:
    arm(guest, 0, guest.scratch + FREE + 16, WRITE, length)
    for size, register in ((1, "al"), (2, "ax"), (4, "eax"), (8, "rax")):
        for at in range(16 - size - 1, 16 + length + 2):
            hit = at < 16 + length and at + size > 16
            assert touched(guest, run, f"mov [rdx + {at}], {register}") is hit, (size, at)
    assert not touched(guest, run, "mov rax, [rdx + 16]")


@pytest.mark.parametrize("length", [1, 4, 8])
def test_which_loads_reach_a_watched_place(guest: Paused, run: Execute, length: int) -> None:
    arm(guest, 0, guest.scratch + FREE + 8, ACCESS, length)
    for size, register in ((1, "al"), (4, "eax"), (8, "rax")):
        for at in (8 - size, 9 - size, 8, 8 + length - 1, 8 + length):
            hit = at < 8 + length and at + size > 8
            assert touched(guest, run, f"mov {register}, [rdx + {at}]") is hit, (size, at)


@pytest.mark.parametrize(
    ("code", "write", "access"),
    [
        ("mov [rdx], al", True, True),
        ("mov eax, [rdx]", False, True),
        ("inc qword ptr [rdx]", True, True),
        ("lock xadd [rdx], eax", True, True),
        ("cmp byte ptr [rdx], 0", False, True),
        ("lea rax, [rdx]", False, False),
        ("mov rdi, rdx; stosq", True, True),
        ("mov rsi, rdx; lodsb", False, True),
        ("mov rdi, rdx; mov rsi, rdx; add rsi, 64; movsq", True, True),
        ("mov rsi, rdx; mov rdi, rdx; add rdi, 64; movsq", False, True),
        ("mov rdi, rsp; lea rsp, [rdx + 8]; push rax", True, True),
        ("mov rdi, rsp; mov rsp, rdx; pop rax", False, True),
        ("mov rdi, rsp; lea rsp, [rdx + 16]; push rax; mov rsp, rdi", False, False),
        ("movaps [rdx], xmm0", True, True),
        ("movups xmm0, [rdx - 15]", False, True),
        ("fxsave [rdx]", True, True),
        ("bts qword ptr [rdx - 8], rcx", True, True),
        ("mov rax, ds:[rdx + rcx - 64]", False, True),
    ],
)
@pytest.mark.parametrize("kind", [WRITE, ACCESS])
def test_instructions_and_data_breakpoints(
    guest: Paused, run: Execute, code: str, write: bool, access: bool, kind: int
) -> None:
    arm(guest, 0, guest.scratch + FREE, kind, 1)
    handled = run(f"mov ecx, 64; mov rdx, {guest.scratch + FREE}; {code}; nop; nop")
    assert handled == (DB if (write if kind == WRITE else access) else None)


def test_a_load_across_a_page_boundary(guest: Paused, run: Execute) -> None:
    """Only the bytes that it loads count, on either page."""
    edge = guest.scratch + FREE
    for place, at, hit in ((-4, -4, True), (-5, -4, False), (3, -4, True), (4, -4, False), (0, -1, True)):
        arm(guest, 0, edge + place, ACCESS, 1)
        assert touched(guest, run, f"mov rax, [rdx + {at}]") is hit, (place, at)
        assert touched(guest, run, f"mov [rdx + {at}], rax") is hit, (place, at)


def test_it_is_the_linear_address_that_is_watched(guest: Paused, run: Execute) -> None:
    """Another mapping of the same frame is not."""
    assert guest.update_va_mapping(guest.page(3), guest.mfn(guest.scratch + FREE) << 12 | 0x67, 2) == 0
    arm(guest, 0, guest.scratch + FREE, ACCESS, 8)
    assert not touched(guest, run, f"mov rax, {guest.page(3)}; mov [rax], rax")
    assert touched(guest, run, "mov [rdx], rax")
    arm(guest, 0, guest.page(3), ACCESS, 8)
    assert not touched(guest, run, "mov [rdx], rax")


def test_a_repeated_string_instruction_traps_in_its_middle(guest: Paused, run: Execute) -> None:
    place = guest.scratch + FREE
    arm(guest, 0, place + 2, WRITE, 1)
    assert run(f"mov ecx, 5; mov rdi, {place}; rep stosb; nop; nop") == DB
    frame = guest.frame()
    assert frame["rcx"] == 2
    assert frame["rip"] == guest.end - 4
    assert frame["rflags"] & RF
    assert resume(guest) is None
    assert guest.q[v.RCX] == 0


def test_a_store_that_faults_is_no_hit(guest: Paused, run: Execute) -> None:
    place = guest.scratch + FREE
    arm(guest, 0, place, ACCESS, 8)
    assert run(f"mov rsi, {place}; mov rdi, 0x7fff00000000; movsq") == PF
    assert guest.vcpu.debug.registers[6] == IDLE


def test_several_breakpoints_and_a_step_are_one_exception(guest: Paused, run: Execute) -> None:
    place = guest.scratch + FREE
    arm(guest, 0, place, WRITE, 1)
    arm(guest, 2, place + 4, ACCESS, 4)
    arm(guest, 3, place + 8, ACCESS, 8)
    code = f"mov rdx, {place}; pushfq; or qword ptr [rsp], 0x100; popfq; mov [rdx], rax; nop"
    assert run(code) == DB
    assert status(guest) == 1 | 4 | BS
    assert guest.frame()["rflags"] & TF


def test_the_hypervisors_accesses_are_not_the_guests(guest: Paused, run: Execute) -> None:
    """A hypercall that writes there, and a frame that is built there."""
    place = guest.scratch + FREE
    arm(guest, 0, place, ACCESS, 8)
    assert run(f"mov eax, 17; mov edi, 6; mov rsi, {place}; syscall; nop") is None
    arm(guest, 0, guest.stack - 8, ACCESS, 8)
    assert run("hlt") == GP


def test_data_breakpoints_in_user_mode(guest: Paused) -> None:
    guest.allow_user_mode()
    place = guest.scratch + FREE + 64
    arm(guest, 1, place, WRITE, 4)
    assert guest.user(f"mov rdx, {place}; mov eax, [rdx]; mov [rdx], eax; nop") == DB
    assert guest.frame()["cs"] & 3 == 3
    assert status(guest) == 2


def test_the_hook_goes_with_the_last_breakpoint(guest: Paused, run: Execute) -> None:
    engine = guest.domain.engine
    arm(guest, 0, guest.scratch + FREE, WRITE, 1)
    assert run("nop") is None
    unit = engine.debug_unit
    assert engine.watches_memory is (unit is None)
    assert unit is None or unit.watching
    disarm(guest)
    turns = 1 if unit is None or unit.tells_linear else 70  # somebody may set it again soon
    for _ in range(turns):
        guest.dispatcher.load(guest.vcpu)
        assert run("nop") is None
    assert not engine.watches_memory
    assert unit is None or not unit.watching
    assert not guest.cpu.stepping
    assert not guest.cpu.rearrange
    assert not guest.cpu.vmcb.d[v.HFLAGS] & v.HF_TF


# -- single steps ------------------------------------------------------------------------------------------


def test_the_guest_cannot_see_that_it_is_stepped(guest: Paused, run: Execute) -> None:
    arm(guest, 0, guest.scratch, EXECUTE)
    assert run("pushfq; pop rax; nop") is None
    assert not guest.q[v.RAX] & TF
    assert guest.cpu.stepping is (guest.domain.engine.debug_unit is None)


@pytest.mark.parametrize("armed", [False, True])
def test_a_guest_may_step_itself_and_stop_that(guest: Paused, run: Execute, armed: bool) -> None:
    if armed:
        arm(guest, 0, guest.scratch, EXECUTE)
    code = "pushfq; or qword ptr [rsp], 0x100; popfq; nop; pushfq; pop rax; nop"
    assert run(code) == DB
    for step in (1, 2, 3):
        assert guest.frame()["rip"] == guest.end - 4 + step
        assert status(guest) == BS
        if step < 3:
            assert resume(guest) == DB
    assert guest.q[v.RAX] & TF
    frame = guest.frame()
    frame["rflags"] &= ~TF
    guest.domain.memory.write_u64(guest.q[v.RSP] + 32, frame["rflags"])
    assert resume(guest) is None


@pytest.mark.parametrize("armed", [False, True])
def test_popf_ends_stepping_after_itself(guest: Paused, run: Execute, armed: bool) -> None:
    if armed:
        arm(guest, 0, guest.scratch, EXECUTE)
    code = "pushfq; mov rax, [rsp]; or rax, 0x100; push rax; popfq; popfq; nop; nop"
    assert run(code) == DB
    assert guest.frame()["rip"] == guest.end - 2
    assert status(guest) == BS
    assert not guest.frame()["rflags"] & TF
    assert resume(guest) is None


def test_an_emulated_instruction_is_a_step(guest: Paused, run: Execute) -> None:
    for code in ("mov rax, cr0", "rdtsc", "cpuid", "in al, 0x80"):
        guest.vcpu.ports.iopl = 1
        whole = f"pushfq; or qword ptr [rsp], 0x100; popfq; {code}; nop; nop"
        assert run(whole) == DB
        assert guest.frame()["rip"] == guest.end - 2, code
        assert status(guest) == BS


def test_the_instruction_behind_mov_ss_is_not_stopped_at(guest: Paused, run: Execute) -> None:
    code = "mov eax, ss; mov ss, eax; nop; nop"
    arm(guest, 0, guest.load(code) - 2, EXECUTE)
    assert run(code) is None
    arm(guest, 0, guest.load(code) - 1, EXECUTE)
    assert run(code) == DB


# -- other ways to #DB -------------------------------------------------------------------------------------


@pytest.mark.parametrize("prefix", [b"", b"\x66", b"\x48", b"\xf2\x66"], ids=bytes.hex)
@pytest.mark.parametrize("armed", [False, True])
def test_icebp_is_a_debug_exception(guest: Paused, run: Execute, prefix: bytes, armed: bool) -> None:
    if armed:
        arm(guest, 0, guest.scratch, EXECUTE)
    assert run(b"\x90" + prefix + b"\xf1\x90") == DB
    assert offset(guest) == 2 + len(prefix)
    assert status(guest) == 0
    assert not guest.frame()["rflags"] & RF


def test_port_breakpoints_need_debugging_extensions(guest: Paused, run: Execute) -> None:
    guest.vcpu.ports.iopl = 1
    guest.vcpu.cr4 |= 8
    arm(guest, 0, 0x82, PORT, 2)
    for code, hit in (("in al, 0x81", 0), ("in ax, 0x81", 1), ("out 0x83, al", 1), ("in al, 0x84", 0)):
        assert run(f"{code}; nop; nop") == (DB if hit else None), code
        if hit:
            assert offset(guest) == guest.end - 2 - guest.scratch - CODE
            assert status(guest) == 1
    guest.vcpu.cr4 &= ~8
    guest.cpu.rearrange = True
    assert run("in ax, 0x82; nop") is None


# -- by the guest itself, and beside others ----------------------------------------------------------------


@pytest.mark.parametrize("slice_ns", [20, 300, 20_000])
def test_leaving_the_processor_changes_nothing(guest: Paused, run: Execute, slice_ns: int) -> None:
    """The vCPU is taken off at every exit, or never."""
    guest.slice_ns = slice_ns
    place = guest.scratch + FREE
    arm(guest, 0, place + 2, WRITE, 1)
    arm(guest, 1, guest.scratch + CODE, EXECUTE)
    assert run(f"mov ecx, 5; mov rdi, {place}; lock inc qword ptr [rdi + 8]; rep stosb; nop; nop") == DB
    assert offset(guest) == 0
    assert resume(guest, flags=RF) == DB
    assert guest.frame()["rcx"] == 2
    assert resume(guest) is None
    assert guest.domain.memory.read_u64(place + 8) == 1


@pytest.mark.parametrize("by_call", [False, True])
def test_arming_takes_effect_at_once(guest: Paused, run: Execute, by_call: bool) -> None:
    place = guest.scratch + FREE
    control = 1 | (WRITE | LENGTH[4] << 2) << 16
    if by_call:
        code = f"""mov eax, 8; xor edi, edi; mov rsi, {place}; syscall
            mov eax, 8; mov edi, 7; mov esi, {control}; syscall"""
    else:
        code = f"mov rax, {place}; mov dr0, rax; mov eax, {control}; mov dr7, rax"
    assert run(f"mov rdx, {place}; {code}; mov [rdx], eax; nop") == DB
    assert guest.frame()["rip"] == guest.end - 1
    assert status(guest) == 1


def test_disarming_takes_effect_at_once(guest: Paused, run: Execute) -> None:
    place = guest.scratch + FREE
    arm(guest, 0, place, ACCESS, 8)
    assert run(f"mov rdx, {place}; xor eax, eax; mov dr7, rax; mov [rdx], rax; nop") is None


def test_breakpoints_belong_to_their_vcpu() -> None:
    with paused(vcpus=2) as guest:
        guest.handlers()
        arm(guest, 0, guest.scratch + FREE, WRITE, 8)
        first, second = guest.domain.vcpus
        second.context.registers = first.context.registers
        second.paging.kernel_l4, second.traps.handlers = first.paging.kernel_l4, first.traps.handlers
        code = f"mov rdx, {guest.scratch + FREE}; mov [rdx], rax; nop"
        assert guest.execute(code) == DB
        guest.dispatcher.load(second)
        assert guest.execute(code) is None
        assert not guest.cpu.stepping
        guest.dispatcher.load(first)
        assert guest.execute(code) == DB
