# SPDX-License-Identifier: GPL-2.0-only
"""The FIFO hypercalls on a real machine: whose frames, how many references, and what wakes whom."""

import struct
from collections.abc import Iterator

import pytest

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Evtchn, MemoryOp, Sched, Shutdown, VcpuOp
from pyhv.abi.shared import FIFO_LINK_BITS
from pyhv.abi.structs import (
    EvtchnBindIpi,
    EvtchnExpandArray,
    EvtchnInitControl,
    EvtchnReset,
    EvtchnSend,
    EvtchnSetPriority,
    EvtchnUnmask,
    MemoryReservation,
    SchedPoll,
    VcpuRegisterVcpuInfo,
)
from pyhv.domain.config import DomainConfig
from pyhv.errors import ConfigError
from pyhv.hypercalls.context import Again
from pyhv.loader.elf import load_image
from pyhv.testing.guest_machine import Paused, image_of, paused

NO_FRAME = 0xFFFFFFFFFFFFFFFE


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused(vcpus=2) as made:
        yield made


def init_control(guest: Paused, mfn: int, vcpu: int = 0, offset: int = 0) -> int:
    """EVTCHNOP_init_control."""
    return guest.event_channel_op(EvtchnInitControl(control_gfn=mfn, offset=offset, vcpu=vcpu))


def expand(guest: Paused, mfn: int) -> int:
    """EVTCHNOP_expand_array."""
    return guest.event_channel_op(EvtchnExpandArray(array_gfn=mfn))


def ipi(guest: Paused, vcpu: int) -> int:
    """A new port by which the domain notifies a vCPU."""
    bound = EvtchnBindIpi(vcpu=vcpu)
    assert guest.event_channel_op(bound) == 0
    return bound.port


def send(guest: Paused, port: int) -> int:
    """EVTCHNOP_send."""
    return guest.event_channel_op(EvtchnSend(port=port))


def set_priority(guest: Paused, port: int, priority: int) -> int:
    """EVTCHNOP_set_priority."""
    return guest.event_channel_op(EvtchnSetPriority(port=port, priority=priority))


def reset(guest: Paused) -> int:
    """EVTCHNOP_reset of all ports."""
    return guest.event_channel_op(EvtchnReset(dom=DOMID_SELF), Evtchn.RESET)


def test_control_blocks_and_pages_are_held(guest: Paused) -> None:
    frames = guest.machine.frames
    control, array = guest.mfn(guest.page(2)), guest.mfn(guest.page(3))
    before = [(frames.refs[mfn], frames.type_count[mfn]) for mfn in (control, array)]
    first = EvtchnInitControl(control_gfn=control, offset=64, vcpu=0)
    assert (guest.event_channel_op(first), first.link_bits) == (0, FIFO_LINK_BITS)
    assert init_control(guest, control, vcpu=1, offset=4096 - 72) == 0, "two blocks in one page"
    assert init_control(guest, array, vcpu=0) == -Errno.EINVAL, "it has one"
    assert expand(guest, array) == 0
    held = [(frames.refs[mfn], frames.type_count[mfn]) for mfn in (control, array)]
    assert held == [(refs + more, count + more) for (refs, count), more in zip(before, (2, 1), strict=True)]
    assert guest.machine.audit() == []
    assert reset(guest) == 0
    assert before == [(frames.refs[mfn], frames.type_count[mfn]) for mfn in (control, array)]
    assert expand(guest, array) == -Errno.EOPNOTSUPP
    assert guest.machine.audit() == []


def test_frames_that_are_not_the_guests_to_write(guest: Paused) -> None:
    frames = guest.machine.frames
    bad = [0, NO_FRAME, 1 << 40, frames.count, guest.machine.board.zero_frame, guest.vcpu.paging.kernel_l4]
    for mfn in bad:
        assert init_control(guest, mfn) == -Errno.EINVAL
        assert expand(guest, mfn) == -Errno.EOPNOTSUPP, "a failed attempt leaves 2-level delivery"
    assert init_control(guest, guest.mfn(guest.page(2))) == 0
    for mfn in bad:
        assert init_control(guest, mfn, vcpu=1) == -Errno.EINVAL
        assert expand(guest, mfn) == -Errno.EINVAL
    assert guest.machine.audit() == []


def test_one_page_may_be_everything(guest: Paused) -> None:
    """Even shared_info. What the words mean is the guest's own confusion."""
    shared = guest.domain.shared_info.mfn
    for vcpu in range(2):
        assert init_control(guest, shared, vcpu) == 0
    for _ in range(128):
        assert expand(guest, shared) == 0
    assert expand(guest, shared) == -Errno.ENOSPC
    port = ipi(guest, 1)
    for _ in range(3):
        assert send(guest, port) == 0
        assert guest.event_channel_op(EvtchnUnmask(port=port)) == 0
    assert guest.machine.audit() == []


def test_pages_given_away_are_freed_with_the_last_reference(guest: Paused) -> None:
    frames = guest.machine.frames
    va = guest.page(3)
    mfn = guest.mfn(va)
    assert init_control(guest, mfn) == 0
    assert guest.unmap(va) == 0
    extents = guest.put(struct.pack("<Q", mfn), 0x900)
    request = MemoryReservation(extent_start=extents, nr_extents=1, domid=DOMID_SELF)
    assert guest.memory_op(MemoryOp.DECREASE_RESERVATION, request) == 1
    assert frames.owner[mfn] == guest.domain.domid, "Xen still writes there"
    assert guest.machine.audit() == []
    assert reset(guest) == 0
    assert mfn in frames.free_list()
    assert guest.machine.audit() == []


def test_pages_die_with_the_domain(guest: Paused) -> None:
    for vcpu in range(2):
        assert init_control(guest, guest.mfn(guest.page(2)), vcpu, 128 * vcpu) == 0
    assert expand(guest, guest.mfn(guest.page(3))) == 0
    guest.machine.services.end_domain(guest.domain, Shutdown.POWEROFF)
    guest.machine.run()
    assert guest.machine.audit() == []
    assert guest.machine.frames.owned_by(guest.domain.domid).size == 0


def test_an_event_goes_through_the_queue_to_the_upcall(guest: Paused) -> None:
    assert init_control(guest, guest.mfn(guest.page(2))) == 0
    assert expand(guest, guest.mfn(guest.page(3))) == 0
    port = ipi(guest, 0)
    assert set_priority(guest, port, 2) == 0
    assert set_priority(guest, port, 16) == -Errno.EINVAL
    assert set_priority(guest, port + 1, 2) == -Errno.EACCES
    assert send(guest, port) == 0
    assert guest.vcpu.info.upcall_pending
    assert struct.unpack_from("<I", guest.get(72, 0x2000), 0) == (1 << 2,)
    assert struct.unpack_from("<I", guest.get(72, 0x2000), 8 + 4 * 2) == (port,)
    assert struct.unpack_from("<I", guest.get(4096, 0x3000), 4 * port) == (0xA0000000,)


@pytest.mark.promise("T-5")
def test_a_long_reset_gives_way(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    for _ in range(200):
        guest.domain.events.bind_ipi(0)
    monkeypatch.setattr(guest.dispatcher.call, "preempted", lambda _steps: True)
    for _ in range(3):
        with pytest.raises(Again) as again:
            reset(guest)
        assert again.value.arguments == ()
    assert reset(guest) == 0
    assert guest.domain.events.ports() == {}


@pytest.mark.parametrize("ports", [1, 1 << 17])
def test_an_impossible_number_of_ports(guest: Paused, ports: int) -> None:
    image = load_image(image_of(Paused.SOURCE), "guest")
    with pytest.raises(ConfigError, match="event channels"):
        guest.machine.create(image, DomainConfig("other", 1024, max_event_channels=ports), console=guest.sink)


# -- what wakes --------------------------------------------------------------------------------------------


def test_polls_end_at_the_first_answer(guest: Paused) -> None:
    def poll(*ports: int) -> int:
        array = guest.put(struct.pack(f"<{len(ports)}I", *ports), 0x800)
        return guest.sched_op(Sched.POLL, SchedPoll(ports=array, nr_ports=len(ports)))

    port = ipi(guest, 1)
    assert poll(port, 9999) == -Errno.EINVAL
    assert poll(9999, port) == -Errno.EINVAL
    assert poll(port + 1) == -Errno.EINVAL, "a free port"
    assert send(guest, port) == 0
    assert poll(port, 9999) == 0, "what comes behind it is not looked at"
    assert poll(9999, port) == -Errno.EINVAL
    assert not guest.vcpu.blocked


def register(guest: Paused, vcpu: int, offset: int) -> int:
    return guest.vcpu_op(
        VcpuOp.REGISTER_VCPU_INFO, vcpu, VcpuRegisterVcpuInfo(mfn=guest.mfn(guest.page(3)), offset=offset)
    )


def test_a_sleeper_wakes_when_its_vcpu_info_moves(guest: Paused) -> None:
    sleeper = guest.domain.vcpus[1]
    sleeper.online = sleeper.blocked = True
    assert register(guest, 1, 4) == -Errno.ENXIO
    assert sleeper.blocked
    assert register(guest, 1, 64) == 0
    assert not sleeper.blocked


def test_an_nmi_wakes_and_takes_no_argument(guest: Paused) -> None:
    sleeper = guest.domain.vcpus[1]
    sleeper.online = sleeper.blocked = True
    assert guest.vcpu_op(VcpuOp.SEND_NMI, 1, guest.scratch) == -Errno.EINVAL
    assert sleeper.blocked
    assert guest.vcpu_op(VcpuOp.SEND_NMI, 1, 0) == 0
    assert not sleeper.blocked
