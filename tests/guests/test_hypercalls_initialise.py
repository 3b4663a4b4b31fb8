# SPDX-License-Identifier: GPL-2.0-only
"""VCPUOP_initialise: the state in which a vCPU starts."""

import struct
from collections.abc import Iterator

import pytest

from pyhv.abi import shared
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import VcpuOp
from pyhv.cpu import vmcb as v
from pyhv.hypercalls.guest_context import GuestContext
from pyhv.testing.guest_machine import UNMAPPED, Paused, paused


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused(vcpus=2) as made:
        made.handlers()
        yield made


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
        "cr3": guest.vcpu.paging.kernel_l4 << 12,
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
    first.traps.selectors = [0xE033] * 256
    guest.allow_user_mode()
    code = "fninit; fldpi; mov r9, 77; cvtsi2sd xmm3, r9; mov eax, 0x80000000; add eax, eax"
    assert guest.execute(code) is None
    for which, base in enumerate((0x1234_5000, 0x2345_6000, 0x3456_7000)):
        assert guest.set_segment_base(which, base) == 0
    assert guest.set_debugreg(0, 0x9000) == guest.set_debugreg(7, 0x3) == 0
    told = GuestContext.of(first)
    assert (told.registers.r9, told.registers.fpu.ftw, told.registers.rflags & 0x8D5) == (77, 0x80, 0x845)
    bases = told.registers.fs.base, told.gs_base_user, told.registers.gs.base
    assert bases == (0x1234_5000, 0x2345_6000, 0x3456_7000)
    assert guest.vcpu_op(VcpuOp.INITIALISE, 1, guest.put(told.pack())) == 0
    assert guest.vcpu_op(VcpuOp.UP, 1) == 0
    guest.dispatcher.load(second)
    again = GuestContext.of(second)
    assert again.pack() == told.pack()
    assert second.context.registers.cs == first.context.registers.cs


def test_initialise_once(guest: Paused) -> None:
    frames, l4 = guest.machine.frames, guest.vcpu.paging.kernel_l4
    before = frames.type_count[l4]
    assert initialise(guest, 0) == -Errno.EEXIST
    assert initialise(guest, trap14=0x5000, event=0x6000, syscall=0x7000, gs_user=0x8000) == 0
    second = guest.domain.vcpus[1]
    assert second.initialised
    assert not second.online
    assert second.traps.handlers[14] == (0x5000, 0)
    assert second.callbacks.event.address == 0x6000
    assert second.callbacks.syscall.address == 0x7000
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
    frames, l4 = guest.machine.frames, guest.vcpu.paging.kernel_l4
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
    assert guest.vcpu_op(VcpuOp.UP, 1) == 0
    guest.dispatcher.load(guest.domain.vcpus[1])
    q = guest.q
    assert (q[v.RAX], q[v.R15], q[v.RSP]) == (1, 2, guest.kernel_stack)
    assert guest.domain.engine.rflags() == 0x246
    assert (q[v.SEG_BASE[v.FS]], q[v.SEG_BASE[v.GS]]) == (0x1000, 0x2000)
    assert guest.domain.vcpus[1].other_gs_base == 0x3000
