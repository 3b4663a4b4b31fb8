# SPDX-License-Identifier: GPL-2.0-only
"""Hypercalls that shape a vCPU: trap table, callbacks, stacks, segment bases, assists, ports."""

import struct
from collections.abc import Iterator

import pytest

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import (
    Assist,
    AssistCommand,
    Callback,
    CallbackOp,
    NmiOp,
    Physdev,
    SegmentBase,
)
from pyhv.abi.physdev import PhysdevSetIobitmap, PhysdevSetIopl
from pyhv.abi.structs import CallbackRegister, CallbackUnregister, TrapInfo, XennmiCallback
from pyhv.abi.x86 import FLAT_RING3_CS64
from pyhv.cpu import vmcb as v
from pyhv.testing.guest_machine import UNMAPPED, Paused, paused

HOLE = 0xFFFF800000000000
BASES = (SegmentBase.FS, SegmentBase.GS_USER, SegmentBase.GS_KERNEL)


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused() as made:
        made.handlers()
        yield made


# -- trap table --------------------------------------------------------------------------------------------


def trap(vector: int, address: int, flags: int = 0) -> bytes:
    return TrapInfo(vector=vector, flags=flags, cs=FLAT_RING3_CS64, address=address).pack()


def test_trap_table_replaces_what_it_names_and_null_clears_all(guest: Paused) -> None:
    guest.vcpu.traps.handlers = [(0, 0)] * 256
    table = guest.put(trap(3, 0x1000, 3) + trap(14, 0x2000, 4) + bytes(16))
    assert guest.set_trap_table(table) == 0
    assert guest.vcpu.traps.handlers[3] == (0x1000, 3)
    assert guest.vcpu.traps.handlers[14] == (0x2000, 4)
    table = guest.put(trap(3, 0x3000) + bytes(16))
    assert guest.set_trap_table(table) == 0
    assert guest.vcpu.traps.handlers[3] == (0x3000, 0)
    assert guest.vcpu.traps.handlers[14] == (0x2000, 4)
    assert guest.set_trap_table(0) == 0
    assert set(guest.vcpu.traps.handlers) == {(0, 0)}


def test_trap_table_refuses_non_canonical_handlers(guest: Paused) -> None:
    for address in (0x800000000000, 0xFFFF7FFFFFFFFFFF):
        assert guest.set_trap_table(guest.put(trap(3, address) + bytes(16))) == -Errno.EINVAL


def test_an_unreadable_trap_table(guest: Paused) -> None:
    assert guest.set_trap_table(UNMAPPED) == -Errno.EFAULT
    assert guest.set_trap_table(HOLE) == -Errno.EFAULT


def test_a_trap_table_without_an_end_stops_at_the_end_of_its_mapping(guest: Paused) -> None:
    assert guest.unmap(guest.page(3)) == 0
    assert guest.set_trap_table(guest.put(trap(9, 0x1000) * 256, 0x2000)) == -Errno.EFAULT
    assert guest.vcpu.traps.handlers[9] == (0x1000, 0)


# -- callbacks ---------------------------------------------------------------------------------------------


def callback(guest: Paused, kind: int, address: int, flags: int = 0) -> int:
    request = CallbackRegister(type=kind, flags=flags, address=address)
    return guest.callback_op(CallbackOp.REGISTER, request)


def unregister(guest: Paused, kind: int) -> int:
    return guest.callback_op(CallbackOp.UNREGISTER, CallbackUnregister(type=kind))


@pytest.mark.parametrize(
    ("kind", "name"),
    [
        (Callback.EVENT, "event"),
        (Callback.FAILSAFE, "failsafe"),
        (Callback.SYSCALL, "syscall"),
        (Callback.SYSENTER, "sysenter"),
        (Callback.SYSCALL32, "syscall32"),
    ],
)
@pytest.mark.parametrize("flags", [0, 1])
def test_callbacks_are_registered(guest: Paused, kind: Callback, name: str, flags: int) -> None:
    assert callback(guest, kind, 0x123000, flags) == 0
    found = getattr(guest.vcpu.callbacks, name)
    assert found.address == 0x123000
    assert found.mask_events is (kind is Callback.EVENT or bool(flags))


def test_the_nmi_callback_is_an_entry_of_the_trap_table(guest: Paused) -> None:
    assert callback(guest, Callback.NMI, 0x4000) == 0
    assert guest.vcpu.traps.handlers[2][0] == 0x4000
    assert unregister(guest, Callback.NMI) == 0
    assert guest.vcpu.traps.handlers[2] == (0, 0)
    assert guest.nmi_op(NmiOp.REGISTER_CALLBACK, XennmiCallback(handler_address=0x5000)) == 0
    assert guest.vcpu.traps.handlers[2][0] == 0x5000
    assert guest.nmi_op(NmiOp.UNREGISTER_CALLBACK) == 0
    assert guest.vcpu.traps.handlers[2] == (0, 0)
    assert guest.nmi_op(2) == -Errno.ENOSYS


def test_callbacks_that_are_refused(guest: Paused) -> None:
    assert callback(guest, Callback.EVENT, 0x800000000000) == -Errno.EINVAL
    assert callback(guest, 3, 0x1000) == -Errno.ENOSYS
    assert callback(guest, 6, 0x1000) == -Errno.ENOSYS
    assert callback(guest, 8, 0x1000) == -Errno.ENOSYS
    assert guest.callback_op(CallbackOp.REGISTER, UNMAPPED) == -Errno.EFAULT
    assert guest.callback_op(2, guest.scratch) == -Errno.ENOSYS
    for kind in (Callback.EVENT, Callback.FAILSAFE, Callback.SYSCALL, Callback.SYSENTER, Callback.SYSCALL32):
        assert unregister(guest, kind) == -Errno.EINVAL
    assert unregister(guest, 3) == -Errno.ENOSYS


def test_set_callbacks_clears_their_flags_and_never_fails(guest: Paused) -> None:
    callback(guest, Callback.SYSCALL, 0x1000, 1)
    assert guest.set_callbacks(0x2000, 0x3000, 0x4000) == 0
    vcpu = guest.vcpu
    assert vcpu.callbacks.event.address == 0x2000
    assert vcpu.callbacks.event.mask_events
    assert (vcpu.callbacks.failsafe.address, vcpu.callbacks.failsafe.mask_events) == (0x3000, False)
    assert (vcpu.callbacks.syscall.address, vcpu.callbacks.syscall.mask_events) == (0x4000, False)
    assert guest.set_callbacks(0, 0, 0) == 0


# -- stack, FPU, segment bases -----------------------------------------------------------------------------


def test_stack_switch(guest: Paused) -> None:
    assert guest.stack_switch(0x28, 0x123456) == 0
    assert (guest.vcpu.kernel_stack.ss, guest.vcpu.kernel_stack.sp) == (0x2B, 0x123456)
    assert guest.stack_switch(0xE02B, 1 << 63) == 0


def test_fpu_taskswitch(guest: Paused) -> None:
    assert guest.fpu_taskswitch(1) == 0
    assert guest.cpu.vmcb.task_switched
    assert guest.fpu_taskswitch(1 << 32) == 0, "an unsigned int"
    assert not guest.cpu.vmcb.task_switched


def test_segment_bases(guest: Paused) -> None:
    assert [guest.set_segment_base(which, 0x1000 * (which + 1)) for which in BASES] == [0, 0, 0]
    assert guest.q[v.SEG_BASE[v.FS]] == 0x1000
    assert guest.vcpu.other_gs_base == 0x2000
    assert guest.q[v.SEG_BASE[v.GS]] == 0x3000
    for which in BASES:
        assert guest.set_segment_base(which, 0x800000000000) == -Errno.EINVAL
    assert guest.set_segment_base(4, 0) == -Errno.EINVAL


# -- vm_assist ---------------------------------------------------------------------------------------------


def test_vm_assist(guest: Paused) -> None:
    for kind in Assist:
        assert guest.vm_assist(AssistCommand.ENABLE, kind) == 0
        assert kind in guest.domain.assists
        assert guest.vm_assist(AssistCommand.DISABLE, kind) == 0
        assert kind not in guest.domain.assists
    for unknown in (6, 7, 31, 33, 63, 64, 0xFFFFFFFF):
        assert guest.vm_assist(AssistCommand.ENABLE, unknown) == -Errno.EINVAL
    assert guest.vm_assist(2, Assist.WRITABLE_PAGETABLES) == -Errno.ENOSYS


# -- ports -------------------------------------------------------------------------------------------------


def test_set_iopl(guest: Paused) -> None:
    for iopl in range(4):
        assert guest.physdev_op(Physdev.SET_IOPL, PhysdevSetIopl(iopl=iopl)) == 0
        assert guest.vcpu.ports.iopl == iopl
    assert guest.physdev_op(Physdev.SET_IOPL, PhysdevSetIopl(iopl=4)) == -Errno.EINVAL
    assert guest.physdev_op(Physdev.SET_IOPL, UNMAPPED) == -Errno.EFAULT
    assert guest.vcpu.ports.iopl == 3


def test_set_iobitmap(guest: Paused) -> None:
    assert guest.physdev_op(Physdev.SET_IOBITMAP, PhysdevSetIobitmap(bitmap=0, nr_ports=0)) == 0
    assert guest.physdev_op(Physdev.SET_IOBITMAP, PhysdevSetIobitmap(bitmap=0x1000, nr_ports=65536)) == 0
    assert (guest.vcpu.ports.bitmap, guest.vcpu.ports.bitmap_ports) == (0x1000, 65536)
    assert (
        guest.physdev_op(Physdev.SET_IOBITMAP, PhysdevSetIobitmap(bitmap=0x1000, nr_ports=65537))
        == -Errno.EINVAL
    )
    assert guest.physdev_op(17, guest.scratch) == -Errno.ENOSYS


def test_physdev_compat(guest: Paused) -> None:
    assert guest.physdev_op_compat(guest.put(struct.pack("<IIQ", Physdev.SET_IOPL, 0, 2))) == 0
    assert guest.vcpu.ports.iopl == 2
