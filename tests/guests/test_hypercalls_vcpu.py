# SPDX-License-Identifier: GPL-2.0-only
"""vcpu_op: up and down, timers, areas, NMIs."""

import struct
from collections.abc import Iterator

import pytest

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall, Sched, VcpuOp, VcpuState
from pyhv.abi.structs import (
    SchedShutdown,
    VcpuRegisterArea,
    VcpuRegisterVcpuInfo,
    VcpuRunstateInfo,
    VcpuSetPeriodicTimer,
    VcpuSetSingleshotTimer,
)
from pyhv.domain.config import DomainConfig
from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.loader.elf import load_image
from pyhv.testing.compat_machine import HEADER as HEADER32
from pyhv.testing.guest_machine import (
    HEADER,
    START,
    UNMAPPED,
    Paused,
    Sink,
    image_of,
    machine,
    passes,
    paused,
    run,
)
from pyhv.until import Outcome


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused(vcpus=2) as made:
        made.handlers()
        yield made


@pytest.mark.promise("L-16")
def test_vcpus_that_do_not_exist(guest: Paused) -> None:
    for command in range(14):
        assert guest.vcpu_op(command, 2, guest.scratch) == -Errno.ENOENT
        assert guest.vcpu_op(command, 0xFFFFFFFF, guest.scratch) == -Errno.ENOENT
    assert guest.vcpu_op(14, 0, guest.scratch) == -Errno.ENOSYS
    assert guest.vcpu_op(99, 0, guest.scratch) == -Errno.ENOSYS


def test_up_and_down(guest: Paused) -> None:
    assert guest.vcpu_op(VcpuOp.IS_UP) == 1
    assert guest.vcpu_op(VcpuOp.IS_UP, 1) == 0
    assert guest.vcpu_op(VcpuOp.UP, 1) == -Errno.EINVAL, "not initialised"
    assert guest.vcpu_op(VcpuOp.UP, 0) == 0
    assert guest.vcpu_op(VcpuOp.DOWN, 1) == 0
    assert guest.domain.alive
    assert guest.vcpu_op(VcpuOp.DOWN, 0) == 0
    assert guest.domain.life.reason == 0, "the last one down powers off"


def test_a_domain_whose_last_vcpu_goes_down_has_halted(guest: Paused) -> None:
    """Unless it has announced how it would end."""
    assert guest.vcpu_op(VcpuOp.DOWN, 0) == 0
    assert guest.domain.life.halted
    report = guest.machine.residents[guest.domain.domid].report
    assert report is not None
    assert report.cause.startswith("it halted for good")


@pytest.mark.parametrize("code", [0, 1])
def test_a_domain_that_has_announced_its_end_may_go_down(guest: Paused, code: int) -> None:
    assert guest.sched_op(Sched.SHUTDOWN_CODE, SchedShutdown(reason=code)) == 0
    assert guest.vcpu_op(VcpuOp.DOWN, 0) == 0
    assert guest.domain.life.reason == code
    assert not guest.domain.life.halted


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
    found = VcpuRunstateInfo()
    assert guest.vcpu_op(VcpuOp.GET_RUNSTATE_INFO, 0, found) == 0
    assert found.state in (VcpuState.RUNNABLE, VcpuState.RUNNING)
    assert found.time0 + found.time1 + found.time2 + found.time3 <= guest.machine.clock.now()
    assert guest.vcpu_op(VcpuOp.GET_RUNSTATE_INFO, 1, found) == 0
    assert found.state == VcpuState.OFFLINE
    assert guest.vcpu_op(VcpuOp.GET_RUNSTATE_INFO, 0, UNMAPPED) == -Errno.EFAULT


def test_runstate_area(guest: Paused) -> None:
    area = guest.page(2)
    assert guest.vcpu_op(VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA, 0, VcpuRegisterArea(address=area)) == 0
    assert guest.vcpu.areas.runstate == area
    assert guest.get(48, 0x2000) != bytes(48)
    assert guest.vcpu_op(VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA, 0, VcpuRegisterArea(address=UNMAPPED)) == 0, (
        "written another time"
    )
    assert (
        guest.vcpu_op(VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA, 0, VcpuRegisterArea(address=0xFFFF800000000000))
        == -Errno.EFAULT
    )
    assert guest.vcpu_op(VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA, 0, UNMAPPED) == -Errno.EFAULT


def test_areas_of_another_vcpu_are_written_at_once(guest: Paused) -> None:
    assert (
        guest.vcpu_op(VcpuOp.REGISTER_RUNSTATE_MEMORY_AREA, 1, VcpuRegisterArea(address=guest.page(2))) == 0
    )
    assert struct.unpack_from("<i", guest.get(48, 0x2000)) == (VcpuState.OFFLINE,)
    assert (
        guest.vcpu_op(VcpuOp.REGISTER_VCPU_TIME_MEMORY_AREA, 1, VcpuRegisterArea(address=guest.page(3))) == 0
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


@pytest.mark.promise("L-15")
def test_timers(guest: Paused) -> None:
    def periodic(period: int) -> int:
        return guest.vcpu_op(VcpuOp.SET_PERIODIC_TIMER, 0, VcpuSetPeriodicTimer(period_ns=period))

    assert periodic(999_999) == -Errno.EINVAL
    assert periodic(1_000_000) == 0
    assert periodic(1 << 63) == -Errno.EINVAL
    assert guest.vcpu_op(VcpuOp.STOP_PERIODIC_TIMER, 0) == 0
    assert guest.vcpu.periodic.period == 0
    single = VcpuSetSingleshotTimer(timeout_abs_ns=1 << 63)
    assert guest.vcpu_op(VcpuOp.SET_SINGLESHOT_TIMER, 0, single) == 0
    assert guest.vcpu_op(VcpuOp.SET_SINGLESHOT_TIMER, 1, single) == -Errno.EINVAL
    assert guest.vcpu_op(VcpuOp.STOP_SINGLESHOT_TIMER, 1) == -Errno.EINVAL
    assert guest.vcpu_op(VcpuOp.STOP_SINGLESHOT_TIMER, 0) == 0
    assert (
        guest.vcpu_op(VcpuOp.SET_SINGLESHOT_TIMER, 0, VcpuSetSingleshotTimer(timeout_abs_ns=0, flags=1)) == 0
    ), "past deadlines fire at once"


def register_info(guest: Paused, mfn: int, offset: int, vcpu: int = 0) -> int:
    return guest.vcpu_op(VcpuOp.REGISTER_VCPU_INFO, vcpu, VcpuRegisterVcpuInfo(mfn=mfn, offset=offset))


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
    for mfn in (0, guest.machine.board.zero_frame, guest.vcpu.paging.kernel_l4, 1 << 50, (1 << 64) - 1):
        assert register_info(guest, mfn, 0) in (-Errno.EINVAL, -Errno.ENXIO)
    assert register_info(guest, guest.mfn(guest.page(3)), 0) == 0


def test_time_area(guest: Paused) -> None:
    assert (
        guest.vcpu_op(VcpuOp.REGISTER_VCPU_TIME_MEMORY_AREA, 0, VcpuRegisterArea(address=guest.page(2))) == 0
    )
    version, _, _, _, mul = struct.unpack_from("<IIQQI", guest.get(32, 0x2000))
    assert version % 2 == 0
    assert mul


def test_physical_id_is_not_told(guest: Paused) -> None:
    assert guest.vcpu_op(VcpuOp.GET_PHYSID, 0, guest.scratch) == -Errno.EINVAL


# -- NMIs --------------------------------------------------------------------------------------------------


@pytest.mark.promise("C-11")
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
        entry = HYPERCALLS[Hypercall.VCPU_OP]
        assert entry is not None
        call = made.residents[domain.domid].dispatcher.call
        assert entry.wide.invoke(call, VcpuOp.SEND_NMI, 0, 0, 0, 0, 0) == 0
        assert made.run(timeout_ns=10**9) is Outcome.ENDED
        assert sink.data == b"SUCCESS\n"


def test_an_nmi_does_not_start_a_vcpu(guest: Paused) -> None:
    assert guest.vcpu_op(VcpuOp.SEND_NMI, 1) == 0
    assert guest.domain.vcpus[1].nmi.pending
    assert not guest.domain.vcpus[1].online
    assert guest.vcpu_op(VcpuOp.IS_UP, 1) == 0
    assert guest.vcpu_op(VcpuOp.SEND_NMI, 1, guest.scratch) == -Errno.EINVAL
