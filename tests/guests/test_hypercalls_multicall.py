# SPDX-License-Identifier: GPL-2.0-only
"""multicall: lists of hypercalls, in one turn or in several."""

import struct
from collections.abc import Iterator

import pytest

from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall, Sched, Shutdown, Xenver
from pyhv.abi.structs import (
    MulticallEntry,
    SchedShutdown,
)
from pyhv.cpu import vmcb as v
from pyhv.hypercalls.context import Again
from pyhv.testing.guest_machine import UNMAPPED, Paused, paused


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused(vcpus=2) as made:
        made.handlers()
        yield made


def listed(number: int, *arguments: int) -> MulticallEntry:
    """An entry of a list; its result is 99 until it has another."""
    named = {f"arg{index}": value for index, value in enumerate(arguments)}
    return MulticallEntry(op=number, result=99, **named)


def multicall(guest: Paused, *calls: MulticallEntry) -> tuple[int, list[int]]:
    """Perform a list: the result, and that of each entry."""
    result = guest.multicall(*calls)
    return result, [signed(call.result) for call in calls]


def signed(word: int) -> int:
    """A word as the number that it stands for."""
    return word - (1 << 64) if word >> 63 else word


def pagesize() -> MulticallEntry:
    """A call whose result is 4096."""
    return listed(Hypercall.XEN_VERSION, Xenver.PAGESIZE)


def test_each_call_has_its_result(guest: Paused) -> None:
    result, results = multicall(
        guest, listed(Hypercall.XEN_VERSION, Xenver.VERSION), listed(Hypercall.FPU_TASKSWITCH, 1), listed(60),
        listed(Hypercall.SET_SEGMENT_BASE, 9), pagesize(),
    )  # fmt: skip
    assert (result, results) == (0, [4 << 16 | 17, 0, -Errno.ENOSYS, -Errno.EINVAL, 4096])
    assert guest.cpu.vmcb.task_switched


def test_a_multicall_in_a_multicall_is_refused(guest: Paused) -> None:
    assert multicall(guest, listed(Hypercall.MULTICALL), pagesize()) == (0, [-Errno.EINVAL, 4096])


def test_a_list_that_cannot_be_read_or_written(guest: Paused) -> None:
    assert guest.multicall_list(UNMAPPED, 1) == -Errno.EFAULT
    assert guest.multicall_list(UNMAPPED, 0) == 0
    guest.put(pagesize().pack() * 64, 0x3000)
    assert guest.remap(guest.page(3), 0x21) == 0
    assert guest.multicall_list(guest.page(3), 1) == -Errno.EFAULT


def test_upper_halves_of_numbers_are_ignored(guest: Paused) -> None:
    assert multicall(guest, listed(1 << 32 | Hypercall.XEN_VERSION, 1 << 32 | Xenver.PAGESIZE)) == (0, [4096])


def test_iret_ends_the_list(guest: Paused) -> None:
    """Only the result of its own entry is written, and the caller's registers are those of the frame."""
    frame = struct.pack(
        "<9Q", 0x11, 0x22, 0x33, 0, guest.scratch + 0x8000, 0xE030, 0x202, guest.stack, 0xE02B
    )
    guest.q[v.RSP] = guest.put(frame, 0xC000)
    calls = listed(Hypercall.IRET).pack() + pagesize().pack()
    guest.q[v.RDI], guest.q[v.RSI] = guest.put(calls, 0x1000), 2
    guest.hypercall(Hypercall.MULTICALL)
    assert (guest.q[v.RAX], guest.q[v.RIP], guest.q[v.RSP]) == (0x11, guest.scratch + 0x8000, guest.stack)
    first, second = struct.unpack("<8xq56xq48x", guest.get(128, 0x1000))
    assert first != 99
    assert second == 99


def test_a_shutdown_in_a_list(guest: Paused) -> None:
    request = guest.put(SchedShutdown(reason=Shutdown.REBOOT).pack())
    multicall(guest, listed(Hypercall.SCHED_OP, Sched.SHUTDOWN, request), pagesize())
    assert guest.domain.life.reason == Shutdown.REBOOT


@pytest.mark.promise("T-5")
def test_long_lists_are_continued_and_lose_nothing(guest: Paused) -> None:
    """A list too long for one turn is performed in several, each entry once."""
    count = 1000
    at, left, turns = guest.put(pagesize().pack() * count), count, 0
    clock = guest.machine.clock
    clock.begin(guest.domain.engine, clock.now() + 20_000)
    while left:
        try:
            assert guest.multicall_list(at, left) == 0
            left = 0
        except Again as again:
            at, left = again.arguments
            clock.end()
            clock.begin(guest.domain.engine, clock.now() + 20_000)
        turns += 1
    clock.end()
    assert turns > 3
    results = struct.unpack("<" + "8xq48x" * count, guest.get(64 * count))
    assert set(results) == {4096}
