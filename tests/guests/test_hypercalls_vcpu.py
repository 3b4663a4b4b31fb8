# SPDX-License-Identifier: GPL-2.0-only
"""vcpu_op, second vCPUs that run, and multicall."""

import struct
from collections.abc import Iterator

import pytest
from compat_machine import HEADER as HEADER32
from guest_machine import HEADER, START, Paused, Sink, image_of, machine, passes, paused, run

from pyhv.abi import shared
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall, Sched, VcpuOp, VcpuState
from pyhv.cpu import vmcb as v
from pyhv.domain.config import DomainConfig
from pyhv.hypercalls.context import Again
from pyhv.hypercalls.guest_context import GuestContext
from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.loader.elf import load_image
from pyhv.until import Outcome

UNMAPPED = 0x7FFF00000000


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused(vcpus=2) as made:
        made.handlers()
        yield made


# -- vcpu_op -----------------------------------------------------------------------------------------------


def test_vcpus_that_do_not_exist(guest: Paused) -> None:
    for command in range(14):
        assert guest.vcpu_op(command, 2, guest.scratch) == -Errno.ENOENT
        assert guest.vcpu_op(command, 0xFFFFFFFF, guest.scratch) == -Errno.ENOENT
    assert guest.vcpu_op(14, 0, guest.scratch) == -Errno.ENOSYS
    assert guest.vcpu_op(99, 0, guest.scratch) == -Errno.ENOSYS


def test_up_and_down(guest: Paused) -> None:
    assert guest.vcpu_op(VcpuOp.IS_UP, 0, 0) == 1
    assert guest.vcpu_op(VcpuOp.IS_UP, 1, 0) == 0
    assert guest.vcpu_op(VcpuOp.UP, 1, 0) == -Errno.EINVAL, "not initialised"
    assert guest.vcpu_op(VcpuOp.UP, 0, 0) == 0
    assert guest.vcpu_op(VcpuOp.DOWN, 1, 0) == 0
    assert guest.domain.alive
    assert guest.vcpu_op(VcpuOp.DOWN, 0, 0) == 0
    assert guest.domain.shutdown_reason == 0, "the last one down powers off"


def test_a_domain_whose_last_vcpu_goes_down_has_halted(guest: Paused) -> None:
    """Unless it has announced how it would end."""
    assert guest.vcpu_op(VcpuOp.DOWN, 0, 0) == 0
    assert guest.domain.halted
    assert guest.machine.residents[guest.domain.domid].report.cause.startswith("it halted for good")


@pytest.mark.parametrize("code", [0, 1])
def test_a_domain_that_has_announced_its_end_may_go_down(guest: Paused, code: int) -> None:
    assert guest.sched_op(Sched.SHUTDOWN_CODE, guest.put(struct.pack("<I", code))) == 0
    assert guest.vcpu_op(VcpuOp.DOWN, 0, 0) == 0
    assert guest.domain.shutdown_reason == code
    assert not guest.domain.halted


def test_a_32_bit_kernel_registers_its_runstate() -> None:
    """As Linux does early, which dies if it cannot: the upper half of the union is anything."""
    body = """
.text
_start:
    kernel_entry
    mov eax, area
    push 0x5eadbeef
    push eax
    mov edx, esp
    mov ebx, 5                                  # VCPUOP_register_runstate_memory_area
    xor ecx, ecx
    hypercall vcpu_op
    must_succeed "register_runstate_memory_area"
    cmp dword ptr [area + 40], 0                # upper half of the time spent offline
    check e, "44 bytes, with words aligned to 4"
    cmp dword ptr [area + 44], 0x7e57
    check e, "nothing behind them is touched"
    succeed
.data
.balign 8
area: .zero 44
    .long 0x7e57
"""
    done = run(HEADER32 + body)
    assert done.passed, done.output


def test_runstate(guest: Paused) -> None:
    assert guest.vcpu_op(VcpuOp.GET_RUNSTATE_INFO, 0, guest.scratch) == 0
    state, _, *times = struct.unpack("<i4xQ4Q", guest.get(48))
    assert state == VcpuState.RUNNABLE or state == VcpuState.RUNNING
    assert sum(times) <= guest.machine.clock.now()
    assert guest.vcpu_op(VcpuOp.GET_RUNSTATE_INFO, 1, guest.scratch) == 0
    assert struct.unpack("<i", guest.get(4)) == (VcpuState.OFFLINE,)
    assert guest.vcpu_op(VcpuOp.GET_RUNSTATE_INFO, 0, UNMAPPED) == -Errno.EFAULT


def test_runstate_area(guest: Paused) -> None:
    area = guest.page(2)
    assert guest.vcpu_op(VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA, 0, guest.put(struct.pack("<Q", area))) == 0
    assert guest.vcpu.runstate_area == area
    assert guest.get(48, 0x2000) != bytes(48)
    assert (
        guest.vcpu_op(VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA, 0, guest.put(struct.pack("<Q", UNMAPPED))) == 0
    ), "written another time"
    assert (
        guest.vcpu_op(
            VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA, 0, guest.put(struct.pack("<Q", 0xFFFF800000000000))
        )
        == -Errno.EFAULT
    )
    assert guest.vcpu_op(VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA, 0, UNMAPPED) == -Errno.EFAULT


def test_areas_of_another_vcpu_are_written_at_once(guest: Paused) -> None:
    assert (
        guest.vcpu_op(VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA, 1, guest.put(struct.pack("<Q", guest.page(2))))
        == 0
    )
    assert struct.unpack_from("<i", guest.get(48, 0x2000)) == (VcpuState.OFFLINE,)
    assert (
        guest.vcpu_op(VcpuOp.REGISTER_VCPU_TIME_MEMORY_AREA, 1, guest.put(struct.pack("<Q", guest.page(3))))
        == 0
    )
    assert guest.get(32, 0x3000) != bytes(32)


def test_an_area_that_is_not_mapped_does_not_stop_the_other() -> None:
    """The time of a process may be unmapped while the kernel's runstate is not."""
    passes(
        f"""
    mov rax, {UNMAPPED:#x}
    mov [rip + area], rax
    lea rdx, [rip + area]
    mov edi, 13                                 # VCPUOP_register_vcpu_time_memory_area
    xor esi, esi
    hypercall vcpu_op
    must_succeed "the time"
    lea rax, [rip + runstate]
    mov [rip + area], rax
    lea rdx, [rip + area]
    mov edi, 5                                  # VCPUOP_register_runstate_memory_area
    xor esi, esi
    hypercall vcpu_op
    must_succeed "the runstate"
    mov rbx, [rip + runstate + 16]              # ns spent running
    xor edi, edi
    xor esi, esi
    hypercall sched_op
    cmp rbx, [rip + runstate + 16]
    check b, "the runstate is an old one"
    succeed
.data
.balign 8
area: .quad 0
runstate: .zero 48
"""
    )


def test_timers(guest: Paused) -> None:
    def periodic(period: int) -> int:
        return guest.vcpu_op(VcpuOp.SET_PERIODIC_TIMER, 0, guest.put(struct.pack("<Q", period)))

    assert periodic(999_999) == -Errno.EINVAL
    assert periodic(1_000_000) == 0
    assert periodic(1 << 63) == -Errno.EINVAL
    assert guest.vcpu_op(VcpuOp.STOP_PERIODIC_TIMER, 0, 0) == 0
    assert guest.vcpu.periodic.period == 0
    single = guest.put(struct.pack("<QI4x", 1 << 63, 0))
    assert guest.vcpu_op(VcpuOp.SET_SINGLESHOT_TIMER, 0, single) == 0
    assert guest.vcpu_op(VcpuOp.SET_SINGLESHOT_TIMER, 1, single) == -Errno.EINVAL
    assert guest.vcpu_op(VcpuOp.STOP_SINGLESHOT_TIMER, 1, 0) == -Errno.EINVAL
    assert guest.vcpu_op(VcpuOp.STOP_SINGLESHOT_TIMER, 0, 0) == 0
    assert guest.vcpu_op(VcpuOp.SET_SINGLESHOT_TIMER, 0, guest.put(struct.pack("<QI4x", 0, 1))) == 0, (
        "past deadlines fire at once"
    )


def register_info(guest: Paused, mfn: int, offset: int, vcpu: int = 0) -> int:
    return guest.vcpu_op(VcpuOp.REGISTER_VCPU_INFO, vcpu, guest.put(struct.pack("<QII", mfn, offset, 0)))


def test_vcpu_info_moves_once_with_its_contents(guest: Paused) -> None:
    old = guest.domain.shared_info
    old.write_u64(16, 0x1234)
    mfn = guest.mfn(guest.page(3))
    assert register_info(guest, mfn, 0x40) == 0
    raw = guest.get(64, 0x3040)
    assert raw[0] == 1, "upcall pending"
    assert raw[1] == 1, "and still masked"
    assert raw[8:16] == b"\xff" * 8
    assert raw[16:24] == struct.pack("<Q", 0x1234)
    assert struct.unpack_from("<I", raw, 32)[0] % 2 == 0
    assert struct.unpack_from("<I", raw, 56)[0] > 0
    assert register_info(guest, mfn, 0x80) == -Errno.EBUSY
    guest.cpu.raise_page_fault(0x5678, 0)
    assert guest.words(guest.page(3) + 0x50, 1) == (0x5678,)
    assert guest.machine.frames.type_count[mfn] == 2


@pytest.mark.parametrize("offset", [4096 - 63, 4096, 0xFFFFFFFF])
def test_vcpu_info_stays_within_a_page(guest: Paused, offset: int) -> None:
    assert register_info(guest, guest.mfn(guest.page(3)), offset) in (-Errno.ENXIO, -Errno.EINVAL)


def test_vcpu_info_needs_an_own_writable_frame(guest: Paused) -> None:
    for mfn in (0, guest.machine.board.zero_frame, guest.vcpu.kernel_l4, 1 << 50, (1 << 64) - 1):
        assert register_info(guest, mfn, 0) in (-Errno.EINVAL, -Errno.ENXIO)
    assert register_info(guest, guest.mfn(guest.page(3)), 0) == 0


def test_time_area(guest: Paused) -> None:
    assert (
        guest.vcpu_op(VcpuOp.REGISTER_VCPU_TIME_MEMORY_AREA, 0, guest.put(struct.pack("<Q", guest.page(2))))
        == 0
    )
    version, _, _, _, mul = struct.unpack_from("<IIQQI", guest.get(32, 0x2000))
    assert version % 2 == 0
    assert mul


def test_physical_id_is_not_told(guest: Paused) -> None:
    assert guest.vcpu_op(VcpuOp.GET_PHYSID, 0, guest.scratch) == -Errno.EINVAL


# -- initialise --------------------------------------------------------------------------------------------


def context(guest: Paused, **fields: int) -> int:
    """A vcpu_guest_context that starts at the code page in kernel mode; fields by offset name."""
    raw = bytearray(shared.GC_SIZE)

    def put(offset: int, value: int) -> None:
        struct.pack_into("<Q", raw, offset, value)

    registers = {"rip": guest.scratch + 0x8000, "rsp": guest.kernel_stack, "rflags": 0x202}
    registers |= {"cs": 0xE033, "ss": 0xE02B}
    for name in [name for name in fields if name in shared.USER_REGS]:
        registers[name] = fields.pop(name)
    for name, value in registers.items():
        put(shared.GC_USER_REGS + shared.USER_REGS[name], value)
    named = {
        "flags": shared.VGCF_IN_KERNEL,
        "cr3": guest.vcpu.kernel_l4 << 12,
        "user": 0,
        "kernel_sp": guest.kernel_stack,
        "kernel_ss": 0xE02B,
    } | fields
    offsets = {
        "flags": shared.GC_FLAGS, "cr3": shared.GC_CTRLREG + 24, "user": shared.GC_CTRLREG + 8,
        "kernel_sp": shared.GC_KERNEL_SP, "kernel_ss": shared.GC_KERNEL_SS, "event": shared.GC_EVENT_CALLBACK,
        "syscall": shared.GC_SYSCALL_CALLBACK, "failsafe": shared.GC_FAILSAFE_CALLBACK,
        "fs_base": shared.GC_FS_BASE, "gs_kernel": shared.GC_GS_BASE_KERNEL,
        "gs_user": shared.GC_GS_BASE_USER,
        "ldt_base": shared.GC_LDT_BASE, "ldt_ents": shared.GC_LDT_ENTS, "gdt_ents": shared.GC_GDT_ENTS,
        "gdt": shared.GC_GDT_FRAMES, "trap14": shared.GC_TRAP_CTXT + 14 * 16 + 8,
        "dr6": shared.GC_DEBUGREG + 48, "dr7": shared.GC_DEBUGREG + 56,
    }  # fmt: skip
    for name, value in named.items():
        put(offsets[name], value)
    return guest.put(bytes(raw), 0x4000)


def initialise(guest: Paused, vcpu: int = 1, **fields: int) -> int:
    return guest.vcpu_op(VcpuOp.INITIALISE, vcpu, context(guest, **fields))


def test_a_vcpus_context_starts_another(guest: Paused) -> None:
    """What is told of a vCPU that has run is a state that VCPUOP_initialise takes."""
    first, second = guest.domain.vcpus
    first.trap_selectors = [0xE033] * 256
    guest.allow_user_mode()
    code = "fninit; fldpi; mov r9, 77; cvtsi2sd xmm3, r9; mov eax, 0x80000000; add eax, eax"
    assert guest.execute(code) is None
    for which, base in enumerate((0x1234_5000, 0x2345_6000, 0x3456_7000)):
        assert guest.call(25, which, base) == 0
    assert guest.call(8, 0, 0x9000) == guest.call(8, 7, 0x3) == 0
    told = GuestContext.of(first)
    assert (told.registers.r9, told.registers.fpu.ftw, told.registers.rflags & 0x8D5) == (77, 0x80, 0x845)
    bases = told.registers.fs.base, told.gs_base_user, told.registers.gs.base
    assert bases == (0x1234_5000, 0x2345_6000, 0x3456_7000)
    assert guest.call(24, 0, 1, guest.put(told.pack())) == 0
    assert guest.call(24, 1, 1, 0) == 0
    guest.dispatcher.load(second)
    again = GuestContext.of(second)
    assert again.pack() == told.pack()
    assert second.context.registers.cs == first.context.registers.cs


def test_initialise_once(guest: Paused) -> None:
    frames, l4 = guest.machine.frames, guest.vcpu.kernel_l4
    before = frames.type_count[l4]
    assert initialise(guest, 0) == -Errno.EEXIST
    assert initialise(guest, trap14=0x5000, event=0x6000, syscall=0x7000, gs_user=0x8000) == 0
    second = guest.domain.vcpus[1]
    assert second.initialised
    assert not second.online
    assert second.traps[14] == (0x5000, 0)
    assert second.event_callback.address == 0x6000
    assert second.syscall_callback.address == 0x7000
    assert second.other_gs_base == 0x8000
    assert frames.type_count[l4] == before + 1
    assert initialise(guest) == -Errno.EEXIST


@pytest.mark.parametrize(
    "fields",
    [
        {"rip": 0x800000000000},
        {"event": 0x800000000000},
        {"syscall": 0xFFFF7FFFFFFFFFFF},
        {"failsafe": 1 << 63},
        {"fs_base": 1 << 63},
        {"gs_kernel": 1 << 63},
        {"gs_user": 1 << 63},
        {"trap14": 1 << 63},
        {"ldt_base": 1, "ldt_ents": 1},
        {"ldt_ents": 8193},
        {"gdt_ents": 7169},
        {"gdt_ents": 512, "gdt": 1},
        {"cr3": 0},
        {"cr3": 1 << 51},
        {"user": 1 << 51},
        {"dr6": 1 << 32},
        {"dr7": 1 << 32},
        {"flags": 0},
    ],
    ids=str,
)
def test_contexts_that_are_refused_take_nothing(guest: Paused, fields: dict[str, int]) -> None:
    frames, l4 = guest.machine.frames, guest.vcpu.kernel_l4
    before = (frames.type_count[l4], frames.refs[l4])
    assert initialise(guest, **fields) == -Errno.EINVAL
    assert (frames.type_count[l4], frames.refs[l4]) == before
    assert not guest.domain.vcpus[1].initialised
    assert initialise(guest) == 0


def test_an_unreadable_context(guest: Paused) -> None:
    assert guest.vcpu_op(VcpuOp.INITIALISE, 1, UNMAPPED) == -Errno.EFAULT


def test_the_registers_with_which_a_vcpu_starts(guest: Paused) -> None:
    assert (
        initialise(guest, rax=1, r15=2, rflags=0x3246, fs_base=0x1000, gs_kernel=0x2000, gs_user=0x3000) == 0
    )
    assert guest.vcpu_op(VcpuOp.UP, 1, 0) == 0
    guest.dispatcher.load(guest.domain.vcpus[1])
    q = guest.q
    assert (q[v.RAX], q[v.R15], q[v.RSP]) == (1, 2, guest.kernel_stack)
    assert guest.domain.engine.rflags() == 0x246
    assert (q[v.SEG_BASE[v.FS]], q[v.SEG_BASE[v.GS]]) == (0x1000, 0x2000)
    assert guest.domain.vcpus[1].other_gs_base == 0x3000


SECOND_VCPU = """
    lea rdi, [rip + context + 520 + 128]        # rip
    lea rax, [rip + second]
    mov [rdi], rax
    lea rax, [rip + second_stack_top]
    mov [rip + context + 520 + 152], rax        # rsp
    mov [rip + context + 4976], rax             # kernel_sp
    mov rdi, [rip + start_info]
    mov rdi, [rdi + START_INFO_pt_base]
    call va_to_mfn
    shl rax, 12
    mov [rip + context + 4984 + 24], rax        # cr3
    mov qword ptr [rip + context + 512], 4      # in kernel
    mov qword ptr [rip + context + 520 + 136], 0xe033
    mov qword ptr [rip + context + 520 + 160], 0xe02b
    mov qword ptr [rip + context + 520 + 144], 0x202
    mov edi, 0
    mov esi, 1
    lea rdx, [rip + context]
    hypercall vcpu_op
    must_succeed "VCPUOP_initialise"
    mov edi, VCPUOP_up
    mov esi, 1
    xor edx, edx
    hypercall vcpu_op
    must_succeed "VCPUOP_up"
"""
SECOND_DATA = """
.bss
.balign PAGE_SIZE
context: .zero 2 * PAGE_SIZE
second_stack: .zero PAGE_SIZE
second_stack_top:
.data
.balign 8
shared_word: .quad 0
.text
"""


def test_two_vcpus_take_turns_and_see_each_others_memory() -> None:
    passes(
        SECOND_VCPU
        + """
.wait:
    mov edi, SCHEDOP_yield
    xor esi, esi
    hypercall sched_op
    cmp qword ptr [rip + shared_word], 1000
    jb .wait
    succeed
second:
    mov ecx, 1000
.more:
    lock inc qword ptr [rip + shared_word]
    dec ecx
    jnz .more
    mov edi, 2                                  # VCPUOP_down
    mov esi, 1
    hypercall vcpu_op
    fail "it is still running"
"""
        + SECOND_DATA,
        vcpus=2,
    )


@pytest.mark.parametrize("rounds", [30_000])
def test_preemption_between_two_vcpus_repeats_nothing(rounds: int) -> None:
    """Both count as fast as they can, until both have counted enough."""
    passes(
        SECOND_VCPU
        + f"""
    mov ebx, {rounds}
.more:
    lock inc qword ptr [rip + shared_word]
    pushfq
    pop rax
    dec ebx
    jnz .more
    mov qword ptr [rip + first_done], 1
.wait:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    cmp qword ptr [rip + second_done], 1
    jne .wait
    cmp qword ptr [rip + shared_word], {2 * rounds}
    check e, "the count is wrong"
    succeed
second:
    mov ebx, {rounds}
.more:
    lock inc qword ptr [rip + shared_word]
    pushfq
    pop rax
    dec ebx
    jnz .more
    mov qword ptr [rip + second_done], 1
.idle:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    jmp .idle
"""
        + SECOND_DATA
        + ".data\nfirst_done: .quad 0\nsecond_done: .quad 0\n.text\n",
        vcpus=2,
    )


def test_code_written_by_one_vcpu_is_seen_by_the_other() -> None:
    passes(
        SECOND_VCPU
        + """
.wait:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    cmp qword ptr [rip + shared_word], 1
    jne .wait
    mov byte ptr [rip + patched + 1], 7
    mov qword ptr [rip + shared_word], 2
.again:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    cmp qword ptr [rip + shared_word], 9
    jne .again
    succeed
second:
    call patched
    cmp eax, 1
    check e, "the first value"
    mov qword ptr [rip + shared_word], 1
.see:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    cmp qword ptr [rip + shared_word], 2
    jne .see
    call patched
    cmp eax, 7
    check e, "the patched value"
    mov qword ptr [rip + shared_word], 9
.idle:
    mov edi, SCHEDOP_block
    hypercall sched_op
    jmp .idle
patched:
    mov eax, 1
    ret
"""
        + SECOND_DATA,
        vcpus=2,
    )


def test_an_ipi_wakes_a_blocked_vcpu() -> None:
    passes(
        SECOND_VCPU
        + """
    mov edi, SCHEDOP_yield
    hypercall sched_op
    mov dword ptr [rip + ipi], 1
    mov edi, EVTCHNOP_bind_ipi
    lea rsi, [rip + ipi]
    hypercall event_channel_op
    must_succeed "bind_ipi"
    mov edi, EVTCHNOP_send
    lea rsi, [rip + ipi + 4]
    hypercall event_channel_op
    must_succeed "send"
.wait:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    cmp qword ptr [rip + shared_word], 1
    jne .wait
    succeed
second:
    mov edi, 0
    lea rsi, [rip + callback]
    hypercall callback_op
    must_succeed "callback"
    mov edi, SCHEDOP_block
    hypercall sched_op
    fail "the callback comes first"
upcall:
    mov qword ptr [rip + shared_word], 1
.idle:
    mov edi, SCHEDOP_yield
    hypercall sched_op
    jmp .idle
.data
.balign 8
ipi: .long 0, 0
callback:
    .short 0, 0
    .long 0
    .quad upcall
.text
"""
        + SECOND_DATA,
        vcpus=2,
    )


def test_the_last_vcpu_that_goes_down_ends_the_domain() -> None:
    body = """
    mov edi, 2
    xor esi, esi
    xor edx, edx
    hypercall vcpu_op
    fail "still up"
"""
    done = run(HEADER + START + body)
    assert done.outcome is Outcome.ENDED
    assert done.domain.shutdown_reason == 0
    assert "FAILURE" not in done.output


# -- multicall ---------------------------------------------------------------------------------------------


def multicall(guest: Paused, *calls: tuple[int, ...], count: int | None = None) -> tuple[int, list[int]]:
    """Perform (number, arguments...) entries: the result and each entry's result field (99 if untouched)."""
    raw = b"".join(struct.pack("<Qq6Q", one[0], 99, *(*one[1:], 0, 0, 0, 0, 0, 0)[:6]) for one in calls)
    at = guest.put(raw, 0x1000)
    result = guest.call(Hypercall.MULTICALL, at, len(calls) if count is None else count)
    return result, list(struct.unpack("<" + "8xq48x" * len(calls), guest.get(64 * len(calls), 0x1000)))


def test_each_call_has_its_result(guest: Paused) -> None:
    result, results = multicall(guest, (17, 0, 0), (5, 1), (60,), (25, 9, 0), (17, 7, 0))
    assert (result, results) == (0, [4 << 16 | 17, 0, -Errno.ENOSYS, -Errno.EINVAL, 4096])
    assert guest.cpu.vmcb.task_switched


def test_a_multicall_in_a_multicall_is_refused(guest: Paused) -> None:
    assert multicall(guest, (13, 0, 0), (17, 7, 0)) == (0, [-Errno.EINVAL, 4096])


def test_a_list_that_cannot_be_read_or_written(guest: Paused) -> None:
    assert guest.call(Hypercall.MULTICALL, UNMAPPED, 1) == -Errno.EFAULT
    assert guest.call(Hypercall.MULTICALL, UNMAPPED, 0) == 0
    entry = struct.pack("<8Q", 17, 0, 7, 0, 0, 0, 0, 0)
    guest.put(entry * 64, 0x3000)
    assert guest.remap(guest.page(3), 0x21) == 0
    assert guest.call(Hypercall.MULTICALL, guest.page(3), 1) == -Errno.EFAULT


def test_upper_halves_of_numbers_are_ignored(guest: Paused) -> None:
    assert multicall(guest, (1 << 32 | 17, 1 << 32 | 7, 0)) == (0, [4096])


def test_iret_ends_the_list(guest: Paused) -> None:
    """Only the result of its own entry is written, and the caller's registers are those of the frame."""
    frame = struct.pack(
        "<9Q", 0x11, 0x22, 0x33, 0, guest.scratch + 0x8000, 0xE030, 0x202, guest.stack, 0xE02B
    )
    guest.q[v.RSP] = guest.put(frame, 0xC000)
    calls = struct.pack("<Qq6Q", 23, 99, *[0] * 6) + struct.pack("<Qq6Q", 17, 99, 7, *[0] * 5)
    guest.q[v.RDI], guest.q[v.RSI] = guest.put(calls, 0x1000), 2
    guest.hypercall(13)
    assert (guest.q[v.RAX], guest.q[v.RIP], guest.q[v.RSP]) == (0x11, guest.scratch + 0x8000, guest.stack)
    first, second = struct.unpack("<8xq56xq48x", guest.get(128, 0x1000))
    assert first != 99
    assert second == 99


def test_a_shutdown_in_a_list(guest: Paused) -> None:
    reason = guest.put(struct.pack("<I", 1))
    multicall(guest, (29, 2, reason), (17, 7, 0))
    assert guest.domain.shutdown_reason == 1


def test_long_lists_are_continued_and_lose_nothing(guest: Paused) -> None:
    """A list too long for one turn is performed in several, each entry once."""
    entries = [(0, 0)] * 1000
    guest.vcpu.traps[5] = (1, 0)
    at, left, turns = guest.page(0), len(entries), 0
    guest.put(struct.pack("<Qq6Q", 17, 99, 7, 0, 0, 0, 0, 0) * len(entries))
    clock = guest.machine.clock
    clock.begin(guest.domain.engine, clock.now() + 20_000)
    while left:
        try:
            assert guest.call(Hypercall.MULTICALL, at, left) == 0
            left = 0
        except Again as again:
            at, left = again.arguments
            clock.end()
            clock.begin(guest.domain.engine, clock.now() + 20_000)
        turns += 1
    clock.end()
    assert turns > 3
    results = struct.unpack("<" + "8xq48x" * len(entries), guest.get(64 * len(entries)))
    assert set(results) == {4096}


@pytest.mark.parametrize("how", ["block", "poll"])
def test_an_nmi_wakes_a_vcpu_that_sleeps(how: str) -> None:
    """Its handler runs although events are masked, and the call that slept returns."""
    sleep = {
        "block": "mov edi, 1; xor esi, esi; hypercall sched_op",
        "poll": "mov edi, 3; lea rsi, [rip + nothing]; hypercall sched_op",
    }[how].replace("; ", "\n    ")
    source = f"""
    lea rax, [rip + on_nmi]
    mov [rip + callback], rax
    xor edi, edi                                # XENNMI_register_callback
    lea rsi, [rip + callback]
    hypercall nmi_op
    must_succeed "nmi_op"
    {sleep}
    cmp dword ptr [rip + seen], 1
    check e, "no NMI came"
    succeed
on_nmi:
    inc dword ptr [rip + seen]
    pop rcx
    pop r11
    push 0                                      # flags of the iret frame: RCX and R11 count
    push rcx
    push r11
    push rax
    hypercall iret
.data
.balign 8
nothing: .zero 24                               # sched_poll: no ports, no timeout
callback: .zero 16
seen: .long 0
"""
    with machine(pages=1024) as made:
        sink = Sink()
        image = load_image(image_of(HEADER + START + source), "guest")
        domain = made.create(image, DomainConfig("guest", 1024), console=sink)
        made.residents[domain.domid].dispatcher.call.host.set_periodic(domain.vcpus[0], 0)
        assert made.run(timeout_ns=10**8) is Outcome.DEADLOCK
        entry = HYPERCALLS[24]
        assert entry is not None
        assert entry.wide.invoke(made.residents[domain.domid].dispatcher.call, (11, 0, 0, 0, 0)) == 0
        assert made.run(timeout_ns=10**9) is Outcome.ENDED
        assert sink.data == b"SUCCESS\n"


def test_an_nmi_does_not_start_a_vcpu(guest: Paused) -> None:
    assert guest.vcpu_op(VcpuOp.SEND_NMI, 1, 0) == 0
    assert guest.domain.vcpus[1].nmi_pending
    assert not guest.domain.vcpus[1].online
    assert guest.vcpu_op(VcpuOp.IS_UP, 1, 0) == 0
    assert guest.vcpu_op(VcpuOp.SEND_NMI, 1, guest.scratch) == -Errno.EINVAL
