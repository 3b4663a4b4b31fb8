# SPDX-License-Identifier: GPL-2.0-only
"""event_channel_op with 2-level delivery: ports, who may bind them, and what a notification does."""

import struct

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.layout import AbiStruct
from pyhv.abi.numbers import Evtchn, Hypercall, Physdev, PortState, Virq
from pyhv.abi.shared import SHARED_LAYOUT, SI_EVTCHN_PENDING
from pyhv.abi.structs import (
    EvtchnAllocUnbound,
    EvtchnBindInterdomain,
    EvtchnBindIpi,
    EvtchnBindPirq,
    EvtchnBindVcpu,
    EvtchnBindVirq,
    EvtchnClose,
    EvtchnExpandArray,
    EvtchnInitControl,
    EvtchnOp,
    EvtchnReset,
    EvtchnSend,
    EvtchnSetPriority,
    EvtchnStatus,
    EvtchnUnmask,
)
from pyhv.testing.guest_machine import UNMAPPED, Paused

CONSOLE = 2
"""The port of the console; 1 and 2 are the toolstack's."""


def unbound(guest: Paused, remote: int = 0) -> int:
    """A new port that another domain may bind."""
    request = EvtchnAllocUnbound(dom=DOMID_SELF, remote_dom=remote)
    assert guest.event_channel_op(request) == 0
    return request.port


def ipi(guest: Paused) -> int:
    """A new port of the domain, bound to itself."""
    bound = EvtchnBindIpi(vcpu=0)
    assert guest.event_channel_op(bound) == 0
    return bound.port


def virq(guest: Paused) -> int:
    """A new port on which the timer's VIRQ comes."""
    bound = EvtchnBindVirq(virq=Virq.TIMER, vcpu=0)
    assert guest.event_channel_op(bound) == 0
    return bound.port


def status(guest: Paused, port: int) -> EvtchnStatus:
    """What a port is."""
    found = EvtchnStatus(dom=DOMID_SELF, port=port, status=9, vcpu=9)
    assert guest.event_channel_op(found) == 0
    return found


def test_ports_are_given_from_below(guest: Paused) -> None:
    assert [unbound(guest) for _ in range(3)] == [3, 4, 5], "1 and 2 are the toolstack's"
    assert guest.event_channel_op(EvtchnClose(port=4)) == 0
    assert unbound(guest) == 4


def test_a_domain_learns_its_number_from_a_port(guest: Paused) -> None:
    found = status(guest, unbound(guest, remote=DOMID_SELF))
    assert (found.status, found.vcpu) == (PortState.UNBOUND, 0)
    assert found.u0 & 0xFFFF == guest.domain.domid


def test_status_of_each_kind(guest: Paused) -> None:
    timer = status(guest, virq(guest))
    assert (timer.status, timer.vcpu, timer.u0, timer.u1) == (PortState.VIRQ, 0, Virq.TIMER, 0)
    assert status(guest, ipi(guest)).status == PortState.IPI
    console = status(guest, CONSOLE)
    assert (console.status, console.u0 & 0xFFFF) == (PortState.INTERDOMAIN, 0)
    assert status(guest, 77).status == PortState.FREE


@pytest.mark.parametrize(
    ("request_", "errno"),
    [
        (EvtchnAllocUnbound(dom=0), Errno.EPERM),
        (EvtchnAllocUnbound(dom=77), Errno.ESRCH),
        (EvtchnBindInterdomain(remote_dom=77, remote_port=1), Errno.ESRCH),
        (EvtchnBindInterdomain(remote_dom=0, remote_port=99), Errno.EINVAL),
        (EvtchnBindVirq(virq=24), Errno.EINVAL),
        (EvtchnBindVirq(virq=Virq.TIMER, vcpu=1), Errno.ENOENT),
        (EvtchnBindVirq(virq=Virq.CONSOLE), Errno.EBUSY),
        (EvtchnBindVirq(virq=Virq.CONSOLE, vcpu=1), Errno.EINVAL),
        (EvtchnBindIpi(vcpu=1), Errno.ENOENT),
        (EvtchnBindPirq(pirq=0), Errno.EPERM),
        (EvtchnBindPirq(pirq=9999), Errno.EINVAL),
        (EvtchnClose(port=0), Errno.EINVAL),
        (EvtchnClose(port=77), Errno.EINVAL),
        (EvtchnClose(port=1 << 31), Errno.EINVAL),
        (EvtchnSend(port=77), Errno.EINVAL),
        (EvtchnStatus(dom=0, port=1), Errno.EPERM),
        (EvtchnStatus(dom=77, port=1), Errno.ESRCH),
        (EvtchnStatus(dom=DOMID_SELF, port=0), Errno.EINVAL),
        (EvtchnBindVcpu(port=1, vcpu=1), Errno.ENOENT),
        (EvtchnBindVcpu(port=77, vcpu=0), Errno.EINVAL),
        (EvtchnUnmask(port=0), Errno.EINVAL),
        (EvtchnUnmask(port=5000), Errno.EINVAL),
        (EvtchnInitControl(control_gfn=0xFFFFFFFFFFFFFFFE), Errno.EINVAL),
        (EvtchnInitControl(vcpu=1), Errno.ENOENT),
        (EvtchnExpandArray(), Errno.EOPNOTSUPP),
        (EvtchnSetPriority(port=77777, priority=0), Errno.EINVAL),
        (EvtchnSetPriority(port=0, priority=3), Errno.EINVAL),
        (EvtchnSetPriority(port=1, priority=16), Errno.ENOSYS),
        (EvtchnSetPriority(port=1, priority=3), Errno.ENOSYS),
    ],
    ids=repr,
)
def test_event_operations_that_are_refused(guest: Paused, request_: AbiStruct, errno: Errno) -> None:
    assert guest.event_channel_op(request_) == -errno


@pytest.mark.parametrize(
    ("command", "domid", "errno"),
    [
        (Evtchn.RESET, 77, Errno.ESRCH),
        (Evtchn.RESET, 0, Errno.EPERM),
        (Evtchn.RESET_CONT, 77, Errno.ESRCH),
        (Evtchn.RESET_CONT, 0, Errno.EPERM),
        (Evtchn.RESET_CONT, DOMID_SELF, Errno.EBUSY),
        (15, DOMID_SELF, Errno.ENOSYS),
    ],
)
def test_resets_that_are_refused(guest: Paused, command: Evtchn, domid: int, errno: Errno) -> None:
    assert guest.event_channel_op(EvtchnReset(dom=domid), command) == -errno


def test_a_virq_is_bound_once(guest: Paused) -> None:
    virq(guest)
    assert guest.event_channel_op(EvtchnBindVirq(virq=Virq.TIMER, vcpu=0)) == -Errno.EEXIST


def test_sending(guest: Paused) -> None:
    port, offered, timer = ipi(guest), unbound(guest), virq(guest)
    assert guest.event_channel_op(EvtchnSend(port=offered)) == 0
    assert guest.event_channel_op(EvtchnSend(port=timer)) == -Errno.EINVAL
    assert guest.event_channel_op(EvtchnSend(port=port)) == 0
    assert guest.vcpu.info.upcall_pending
    assert guest.domain.shared_info.read_u64(SI_EVTCHN_PENDING) >> port & 1
    assert guest.domain.shared_info.read_u64(SHARED_LAYOUT[64].pending_sel) & 1


def test_a_masked_port_waits_for_unmask(guest: Paused) -> None:
    port, shared = ipi(guest), guest.domain.shared_info
    mask = SHARED_LAYOUT[64].evtchn_mask
    shared.write_u64(mask, 1 << port)
    assert guest.event_channel_op(EvtchnSend(port=port)) == 0
    assert not guest.vcpu.info.upcall_pending
    assert guest.event_channel_op(EvtchnUnmask(port=port)) == 0
    assert guest.vcpu.info.upcall_pending
    assert not shared.read_u64(mask) >> port & 1


@pytest.mark.parametrize("command", list(Evtchn))
def test_an_unreadable_argument(guest: Paused, command: Evtchn) -> None:
    assert guest.call(Hypercall.EVENT_CHANNEL_OP, command, UNMAPPED) == -Errno.EFAULT


# -- the old form ------------------------------------------------------------------------------------------


def old(command: int, request: AbiStruct) -> bytes:
    """A command and its structure in one."""
    return EvtchnOp(cmd=command, u=request.pack()).pack()


def test_the_old_form_of_event_operations(guest: Paused) -> None:
    request = EvtchnAllocUnbound(dom=DOMID_SELF)
    assert guest.event_channel_op_compat(guest.put(old(Evtchn.ALLOC_UNBOUND, request))) == 0
    assert guest.get(4, 8) == struct.pack("<I", 3)
    elsewhere = EvtchnAllocUnbound(dom=77)
    assert guest.event_channel_op_compat(guest.put(old(Evtchn.ALLOC_UNBOUND, elsewhere))) == -Errno.ESRCH
    assert guest.event_channel_op_compat(guest.put(old(99, request))) == -Errno.ENOSYS


@pytest.mark.parametrize("command", [command for command in Evtchn if command > Evtchn.UNMASK])
def test_event_operations_that_are_younger_than_the_old_form(guest: Paused, command: Evtchn) -> None:
    at = guest.put(old(command, EvtchnReset(dom=DOMID_SELF)))
    assert guest.event_channel_op_compat(at) == -Errno.ENOSYS


@pytest.mark.parametrize(
    ("number", "size", "command"),
    [
        (Hypercall.EVENT_CHANNEL_OP_COMPAT, 28, Evtchn.ALLOC_UNBOUND),
        (Hypercall.PHYSDEV_OP_COMPAT, 24, Physdev.SET_IOPL),
    ],
)
def test_old_forms_are_read_whole(guest: Paused, number: Hypercall, size: int, command: int) -> None:
    """A structure whose union reaches into a page that is not mapped is EFAULT."""
    at = guest.page(1) - size
    raw = struct.pack("<IHHI", command, DOMID_SELF if size == 28 else 0, 0, 0)
    guest.put(raw, 0x1000 - size)
    assert guest.unmap(guest.page(1)) == 0
    assert guest.call(number, at) == 0
    guest.put(raw, 0x1004 - size)
    assert guest.call(number, at + 4) == -Errno.EFAULT
