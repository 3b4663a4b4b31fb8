# SPDX-License-Identifier: GPL-2.0-only
"""Hypercalls about the domain as a whole: version, scheduling, event channels, memory, refused calls."""

import struct
from collections.abc import Iterator

import pytest
from guest_machine import HEADER, SECOND, START, Paused, paused, run

from pyhv.abi.domid import DOMID_SELF
from pyhv.abi.errno import Errno
from pyhv.abi.numbers import Hypercall, Memory, Physdev, Sched, Xenver
from pyhv.hypercalls.context import Again
from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.machine import Outcome

UNMAPPED = 0x7FFF00000000
DIRTY = b"\xaa" * 4096


@pytest.fixture
def guest() -> Iterator[Paused]:
    with paused() as made:
        yield made


# -- xen_version -------------------------------------------------------------------------------------------

FIXED = {1: 16, 2: 144, 3: 1024, 4: 64, 5: 8, 8: 16, 9: 1024}
"""Sub-operation: size of what it writes."""


def test_version_number_needs_no_argument(guest: Paused) -> None:
    assert guest.xen_version(Xenver.VERSION, 0) == 4 << 16 | 17
    assert guest.xen_version(Xenver.VERSION, UNMAPPED) == 4 << 16 | 17


@pytest.mark.parametrize(("command", "size"), FIXED.items())
def test_fixed_size_answers_are_padded_with_zeros_and_end_in_time(
    guest: Paused, command: int, size: int
) -> None:
    guest.put(DIRTY)
    assert guest.xen_version(command, guest.scratch) == 0
    answer = guest.get(size)
    assert guest.get(8, size) == DIRTY[:8], "nothing behind the structure is touched"
    assert guest.xen_version(command, UNMAPPED) == -Errno.EFAULT
    if command in (5, 8):
        return
    pieces = [answer] if command != 2 else [answer[:64], answer[64:80], answer[80:112], answer[112:]]
    for piece in pieces:
        text, nul, rest = piece.partition(b"\0")
        assert nul
        assert text.isascii()
        assert not rest.strip(b"\0")


def test_what_the_answers_say(guest: Paused) -> None:
    guest.xen_version(Xenver.CAPABILITIES, guest.scratch)
    assert guest.get(32) == b"xen-3.0-x86_64 xen-3.0-x86_32p \0"
    guest.xen_version(Xenver.PLATFORM_PARAMETERS, guest.scratch)
    assert guest.words(guest.scratch, 1) == (0xFFFF800000000000,)
    guest.xen_version(Xenver.COMMANDLINE, guest.scratch)
    assert guest.get(9) == b"<denied>\0"


def test_features(guest: Paused) -> None:
    assert guest.xen_version(Xenver.GET_FEATURES, guest.put(struct.pack("<II", 0, 0xFFFFFFFF))) == 0
    (features,) = struct.unpack("<I", guest.get(4, 4))
    assert features & 0xF == 0, "neither writable tables nor translation nor supervisor mode"
    assert features == 1 << 5 | 1 << 6 | 1 << 7 | 1 << 13 | 1 << 17
    assert not features >> 4 & 1
    assert guest.xen_version(Xenver.GET_FEATURES, guest.put(struct.pack("<II", 1, 0))) == -Errno.EINVAL
    assert guest.vm_assist(0, 3) == 0
    guest.xen_version(Xenver.GET_FEATURES, guest.put(struct.pack("<II", 0, 0)))
    assert struct.unpack("<I", guest.get(4, 4))[0] >> 4 & 1


def test_page_size_takes_no_argument(guest: Paused) -> None:
    assert guest.xen_version(Xenver.PAGESIZE, 0) == 4096
    assert guest.xen_version(Xenver.PAGESIZE, guest.scratch) == -Errno.EINVAL


def test_other_versions(guest: Paused) -> None:
    assert guest.xen_version(Xenver.BUILD_ID, guest.scratch) == -Errno.EPERM
    for command in (11, 14, 99, 0xFFFFFFFF):
        assert guest.xen_version(command, guest.scratch) == -Errno.ENOSYS


# -- calls that a plain domain is refused ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "errno"),
    [
        (27, -Errno.ENOSYS),
        (31, -Errno.ENOSYS),
        (34, -Errno.ENOSYS),
        (37, -Errno.EPERM),
        (38, -Errno.ENOSYS),
        (39, -Errno.ENOSYS),
        (40, -Errno.EOPNOTSUPP),
        (41, -Errno.ENOSYS),
        (42, -Errno.EPERM),
        (48, -Errno.EPERM),
    ],
)
def test_refused_calls(guest: Paused, number: int, errno: int) -> None:
    assert guest.call(number, 0, guest.scratch) == errno
    assert guest.call(number, -1, UNMAPPED, -1, -1, -1) == errno


@pytest.mark.parametrize(
    ("number", "words", "errno"),
    [
        (7, (0x03000001, 9), -Errno.EACCES),
        (7, (9, 0x03000000), -Errno.EACCES),
        (7, (9, 0x03000001), -Errno.EPERM),
        (35, (0x15, 1), -Errno.EACCES),
        (35, (1, 0x14), -Errno.EACCES),
        (35, (1, 0x16), -Errno.EACCES),
        (35, (1, 0x15), -Errno.EPERM),
        (36, (0x15, 2, 1), -Errno.EACCES),
        (36, (2, 0x16, 1), -Errno.EACCES),
        (36, (2, 0x15, 1), -Errno.EPERM),
        (36, (2, 0x15, 0), -Errno.EPERM),
        (36, (2, 0x15, 77), -Errno.ESRCH),
        (36, (2, 0x15, DOMID_SELF), -Errno.ESRCH),
        (36, (1, 0x15, 77), -Errno.EPERM),
        (36, (5, 0x15, 77), -Errno.EPERM),
    ],
)
def test_control_calls_look_at_the_version_first(
    guest: Paused, number: int, words: tuple[int, ...], errno: int
) -> None:
    assert guest.call(number, guest.put(struct.pack(f"<{len(words)}I", *words).ljust(144, b"\0"))) == errno
    assert guest.call(number, UNMAPPED) == -Errno.EFAULT


@pytest.mark.parametrize(
    ("command", "errno"),
    [
        (4, 0),
        (5, -Errno.EINVAL),
        (8, -Errno.EPERM),
        (9, -Errno.EPERM),
        (10, -Errno.EPERM),
        (12, -Errno.EINVAL),
        (13, -Errno.EPERM),
        (14, -Errno.EPERM),
        (15, -Errno.EPERM),
        (16, -Errno.EPERM),
        (19, -Errno.ENODEV),
        (20, -Errno.EPERM),
        (21, -Errno.EPERM),
        (24, -Errno.EPERM),
        (25, -Errno.EPERM),
        (26, -Errno.EPERM),
        (27, -Errno.ENODEV),
        (30, -Errno.EPERM),
        (31, -Errno.EPERM),
        (17, -Errno.ENOSYS),
        (28, -Errno.ENOSYS),
        (23, -Errno.ENOSYS),
        (0, -Errno.ENOSYS),
        (32, -Errno.ENOSYS),
    ],
)
def test_physical_devices_are_others(guest: Paused, command: int, errno: int) -> None:
    at = guest.put(struct.pack("<H", DOMID_SELF).ljust(64, b"\0"))
    assert guest.physdev_op(command, at) == errno
    unread = errno in (0, -Errno.ENOSYS) or command == 24
    assert guest.physdev_op(command, UNMAPPED) == (errno if unread else -Errno.EFAULT)
    if command in (13, 14):
        assert guest.physdev_op(command, guest.put(struct.pack("<H", 77))) == -Errno.ESRCH


@pytest.mark.parametrize("number", [11, 43, 47, 49, 55, 63, 64, 1000, 0xFFFFFFFF])
def test_numbers_that_do_not_exist(guest: Paused, number: int) -> None:
    assert guest.hypercall(number) == (1 << 64) - Errno.ENOSYS


def test_console_io(guest: Paused) -> None:
    heard: list[bytes] = []
    guest.machine.services.debug_sink = lambda _domain, text: heard.append(text)
    assert guest.console_io(0, 5, guest.put(b"hello")) == 0
    assert b"".join(heard) == b"hello"
    assert guest.console_io(0, 5, UNMAPPED) == -Errno.EFAULT
    assert guest.console_io(1, 5, guest.scratch) == -Errno.EPERM
    assert guest.console_io(2, 0, 0) == -Errno.EPERM


# -- sched_op ----------------------------------------------------------------------------------------------


def poll(guest: Paused, ports: list[int], timeout: int = 0, count: int | None = None, at: int = 0) -> int:
    array = guest.put(struct.pack(f"<{len(ports)}I", *ports), 0x800)
    request = struct.pack("<QI4xQ", at or array, len(ports) if count is None else count, timeout)
    return guest.sched_op(Sched.POLL, guest.put(request))


def new_port(guest: Paused) -> int:
    """A port of the domain, bound to itself (an IPI)."""
    request = guest.put(struct.pack("<II", 0, 0), 0x700)
    assert guest.call(Hypercall.EVENT_CHANNEL_OP, 7, request) == 0
    port: int = struct.unpack("<I", guest.get(4, 0x704))[0]
    return port


def test_poll_returns_at_once_when_there_is_something(guest: Paused) -> None:
    port = new_port(guest)
    assert guest.call(Hypercall.EVENT_CHANNEL_OP, 4, guest.put(struct.pack("<I", port))) == 0
    assert poll(guest, [port]) == 0
    assert not guest.vcpu.blocked
    guest.vcpu.info.upcall_masked = False
    assert poll(guest, [1]) == 0
    assert not guest.vcpu.blocked, "an unmasked upcall"


def test_poll_sleeps_without_touching_the_mask(guest: Paused) -> None:
    port = new_port(guest)
    guest.vcpu.info.upcall_masked = True
    assert poll(guest, [port]) == 0
    assert guest.vcpu.blocked
    assert guest.dispatcher.call.reschedule
    assert guest.vcpu.info.upcall_masked
    assert guest.vcpu.polling == frozenset({port})


def test_polls_that_are_refused(guest: Paused) -> None:
    assert poll(guest, [1], count=129) == -Errno.EINVAL
    assert poll(guest, [1], at=UNMAPPED) == -Errno.EFAULT
    assert poll(guest, [0]) == -Errno.EINVAL
    assert poll(guest, [1 << 20]) == -Errno.EINVAL
    assert poll(guest, [0xFFFFFFFF]) == -Errno.EINVAL
    assert guest.sched_op(Sched.POLL, UNMAPPED) == -Errno.EFAULT
    assert not guest.vcpu.blocked


SLEEPER = """
    mov edi, SCHEDOP_poll
    lea rsi, [rip + request]
    hypercall sched_op
    check e, "never"
.data
.balign 8
request: .quad 0, 0, {timeout}
.text
"""


@pytest.mark.parametrize("timeout", [1, 5_000_000])
def test_a_poll_ends_at_its_time(timeout: int) -> None:
    done = run(HEADER + START + SLEEPER.format(timeout=timeout).replace('check e, "never"', "succeed"))
    assert done.passed


@pytest.mark.parametrize("timeout", [0, 1 << 62, 1 << 63, (1 << 64) - 1])
@pytest.mark.parametrize("virtual", [True, False])
def test_a_poll_without_a_near_end_sleeps_until_the_machine_gives_up(timeout: int, virtual: bool) -> None:
    done = run(
        HEADER + START + SLEEPER.format(timeout=timeout), timeout_ns=SECOND // 50, virtual_time=virtual
    )
    assert done.outcome in (Outcome.TIMEOUT, Outcome.DEADLOCK)


def test_block(guest: Paused) -> None:
    guest.vcpu.info.upcall_masked = True
    guest.vcpu.info.mark_pending()
    assert guest.sched_op(Sched.BLOCK, 0) == 0
    assert not guest.vcpu.info.upcall_masked
    assert not guest.vcpu.blocked, "the upcall is taken on the way out"
    guest.vcpu.info.page.write_u8(guest.vcpu.info.offset, 0)
    assert guest.sched_op(Sched.BLOCK, 0) == 0
    assert guest.vcpu.blocked


def test_the_old_form_takes_its_arguments_by_value(guest: Paused) -> None:
    assert guest.sched_op_compat(0, 0) == 0
    assert guest.sched_op_compat(1, 0) == 0
    assert guest.vcpu.blocked
    assert guest.sched_op_compat(3, 0) == -Errno.ENOSYS
    assert guest.sched_op_compat(2, 0xFFFF880000000164) == 0
    assert guest.domain.shutdown_reason == 0x64


def watchdog(guest: Paused, number: int, timeout: int) -> int:
    return guest.sched_op(Sched.WATCHDOG, guest.put(struct.pack("<II", number, timeout)))


def test_watchdogs(guest: Paused) -> None:
    assert watchdog(guest, 1, 5) == -Errno.EINVAL, "not in use"
    assert watchdog(guest, 0, 5) == 1
    assert watchdog(guest, 0, 0xFFFFFFFF) == 2
    assert watchdog(guest, 0, 5) == -Errno.ENOSPC
    assert watchdog(guest, 3, 5) == -Errno.EINVAL
    assert watchdog(guest, 0xFFFFFFFF, 5) == -Errno.EINVAL
    assert watchdog(guest, 1, 9) == 0
    assert watchdog(guest, 1, 0) == 0
    assert watchdog(guest, 0, 5) == 1


def test_a_watchdog_bites() -> None:
    body = """
    mov edi, 6
    lea rsi, [rip + request]
    hypercall sched_op
    mov edi, SCHEDOP_block
    hypercall sched_op
    fail "woken up"
.data
request: .long 0, 1
.text
"""
    done = run(HEADER + START + body)
    assert done.outcome is Outcome.ENDED
    assert done.domain.shutdown_reason == 4


def test_other_scheduling_operations(guest: Paused) -> None:
    assert guest.sched_op(Sched.YIELD, 0) == 0
    assert guest.sched_op(Sched.SHUTDOWN_CODE, guest.put(struct.pack("<I", 1))) == 0
    assert guest.domain.shutdown_code == 1
    assert guest.domain.alive
    assert guest.sched_op(Sched.REMOTE_SHUTDOWN, guest.put(struct.pack("<HI", 0, 0))) == -Errno.EPERM
    assert guest.sched_op(Sched.REMOTE_SHUTDOWN, guest.put(struct.pack("<HI", 77, 0))) == -Errno.ESRCH
    assert guest.sched_op(Sched.PIN_OVERRIDE, guest.scratch) == -Errno.EPERM
    assert guest.sched_op(8, guest.scratch) == -Errno.ENOSYS
    assert guest.sched_op(Sched.SHUTDOWN, UNMAPPED) == -Errno.EFAULT
    assert guest.domain.alive


@pytest.mark.parametrize("deadline", [1, 1 << 63, (1 << 64) - 1, 1 << 62, 1 << 51])
def test_timers_never_fail(guest: Paused, deadline: int) -> None:
    assert guest.set_timer_op(deadline) == 0
    assert guest.set_timer_op(0) == 0


# -- event channels ----------------------------------------------------------------------------------------


def event(guest: Paused, command: int, layout: str, *values: int) -> tuple[int, tuple[int, ...]]:
    """An event_channel_op with its structure; the result and what the structure then holds."""
    at = guest.put(struct.pack("<" + layout, *values), 0x700)
    result = guest.call(Hypercall.EVENT_CHANNEL_OP, command, at)
    return result, struct.unpack("<" + layout, guest.get(struct.calcsize("<" + layout), 0x700))


def test_ports_are_given_from_below(guest: Paused) -> None:
    ports = [event(guest, 6, "HHI", DOMID_SELF, 0, 0)[1][2] for _ in range(3)]
    assert ports == [3, 4, 5], "1 and 2 are the toolstack's"
    assert event(guest, 3, "I", 4)[0] == 0
    assert event(guest, 6, "HHI", DOMID_SELF, 0, 0)[1][2] == 4


def test_a_domain_learns_its_number_from_a_port(guest: Paused) -> None:
    _, (_, _, port) = event(guest, 6, "HHI", DOMID_SELF, DOMID_SELF, 0)
    result, (_, _, status, vcpu, owner, _) = event(guest, 5, "HxxIIIII", DOMID_SELF, port, 9, 9, 9, 9)
    assert (result, status, vcpu, owner & 0xFFFF) == (0, 1, 0, guest.domain.domid)


def test_status_of_each_kind(guest: Paused) -> None:
    _, (_, _, virq) = event(guest, 1, "III", 0, 0, 0)
    _, (_, ipi) = event(guest, 7, "II", 0, 0)
    console = 2
    found = {
        port: event(guest, 5, "HxxIIIII", DOMID_SELF, port, 0, 0, 0, 0)[1][2:]
        for port in (virq, ipi, console, 77)
    }
    assert found[virq] == (4, 0, 0, 0)
    assert found[ipi][0] == 5
    assert found[console][0] == 2
    assert found[console][2] & 0xFFFF == 0
    assert found[77][0] == 0


@pytest.mark.parametrize(
    ("command", "layout", "values", "errno"),
    [
        (6, "HHI", (0, 0, 0), -Errno.EPERM),
        (6, "HHI", (77, 0, 0), -Errno.ESRCH),
        (0, "HxxII", (77, 1, 0), -Errno.ESRCH),
        (0, "HxxII", (0, 99, 0), -Errno.EINVAL),
        (1, "III", (24, 0, 0), -Errno.EINVAL),
        (1, "III", (0, 1, 0), -Errno.ENOENT),
        (1, "III", (2, 0, 0), -Errno.EBUSY),
        (1, "III", (2, 1, 0), -Errno.EINVAL),
        (7, "II", (1, 0), -Errno.ENOENT),
        (2, "III", (0, 0, 0), -Errno.EPERM),
        (2, "III", (9999, 0, 0), -Errno.EINVAL),
        (3, "I", (0,), -Errno.EINVAL),
        (3, "I", (77,), -Errno.EINVAL),
        (3, "I", (1 << 31,), -Errno.EINVAL),
        (4, "I", (77,), -Errno.EINVAL),
        (5, "HxxIIIII", (0, 1, 0, 0, 0, 0), -Errno.EPERM),
        (5, "HxxIIIII", (77, 1, 0, 0, 0, 0), -Errno.ESRCH),
        (5, "HxxIIIII", (DOMID_SELF, 0, 0, 0, 0, 0), -Errno.EINVAL),
        (8, "II", (1, 1), -Errno.ENOENT),
        (8, "II", (77, 0), -Errno.EINVAL),
        (9, "I", (0,), -Errno.EINVAL),
        (9, "I", (5000,), -Errno.EINVAL),
        (10, "H", (77,), -Errno.ESRCH),
        (10, "H", (0,), -Errno.EPERM),
        (11, "QIIB7x", (0xFFFFFFFFFFFFFFFE, 0, 0, 0), -Errno.EINVAL),
        (11, "QIIB7x", (0, 0, 1, 0), -Errno.ENOENT),
        (12, "Q", (0,), -Errno.EOPNOTSUPP),
        (13, "II", (77777, 0), -Errno.EINVAL),
        (13, "II", (0, 3), -Errno.EINVAL),
        (13, "II", (1, 16), -Errno.ENOSYS),
        (13, "II", (1, 3), -Errno.ENOSYS),
        (14, "H", (77,), -Errno.ESRCH),
        (14, "H", (0,), -Errno.EPERM),
        (14, "H", (DOMID_SELF,), -Errno.EBUSY),
        (15, "I", (0,), -Errno.ENOSYS),
    ],
)
def test_event_operations_that_are_refused(
    guest: Paused, command: int, layout: str, values: tuple[int, ...], errno: int
) -> None:
    assert event(guest, command, layout, *values)[0] == errno


def test_a_virq_is_bound_once(guest: Paused) -> None:
    assert event(guest, 1, "III", 0, 0, 0)[0] == 0
    assert event(guest, 1, "III", 0, 0, 0)[0] == -Errno.EEXIST


def test_sending(guest: Paused) -> None:
    port = new_port(guest)
    unbound = event(guest, 6, "HHI", DOMID_SELF, 0, 0)[1][2]
    virq = event(guest, 1, "III", 0, 0, 0)[1][2]
    assert event(guest, 4, "I", unbound)[0] == 0
    assert event(guest, 4, "I", virq)[0] == -Errno.EINVAL
    assert event(guest, 4, "I", port)[0] == 0
    assert guest.vcpu.info.upcall_pending
    assert guest.domain.shared_info.read_u64(2048) >> port & 1
    assert guest.domain.shared_info.read_u64(8) & 1


def test_a_masked_port_waits_for_unmask(guest: Paused) -> None:
    port = new_port(guest)
    shared = guest.domain.shared_info
    shared.write_u64(2560, 1 << port)
    assert event(guest, 4, "I", port)[0] == 0
    assert not guest.vcpu.info.upcall_pending
    assert event(guest, 9, "I", port)[0] == 0
    assert guest.vcpu.info.upcall_pending
    assert not shared.read_u64(2560) >> port & 1


def test_an_unreadable_argument(guest: Paused) -> None:
    for command in (*range(12), 13, 14):
        assert guest.call(Hypercall.EVENT_CHANNEL_OP, command, UNMAPPED) == -Errno.EFAULT


def test_the_old_form_of_event_operations(guest: Paused) -> None:
    at = guest.put(struct.pack("<IHHI", 6, DOMID_SELF, 0, 0))
    assert guest.event_channel_op_compat(at) == 0
    assert guest.get(4, 8) == struct.pack("<I", 3)
    assert guest.event_channel_op_compat(guest.put(struct.pack("<IHHI", 6, 77, 0, 0))) == -Errno.ESRCH
    assert guest.event_channel_op_compat(guest.put(struct.pack("<II", 99, 0))) == -Errno.ENOSYS


@pytest.mark.parametrize("command", range(10, 15))
def test_event_operations_that_are_younger_than_the_old_form(guest: Paused, command: int) -> None:
    assert (
        guest.event_channel_op_compat(guest.put(struct.pack("<IH", command, DOMID_SELF).ljust(28, b"\0")))
        == -Errno.ENOSYS
    )


@pytest.mark.parametrize(("number", "size"), [(16, 28), (19, 24)])
def test_old_forms_are_read_whole(guest: Paused, number: int, size: int) -> None:
    """A structure whose union reaches into a page that is not mapped is EFAULT."""
    at = guest.page(1) - size
    guest.put(struct.pack("<IHHI", 6, DOMID_SELF, 0, 0), 0x1000 - size)
    assert guest.update_va_mapping(guest.page(1), 0, 2) == 0
    assert guest.call(number, at) == 0
    guest.put(struct.pack("<IHHI", 6, DOMID_SELF, 0, 0), 0x1004 - size)
    assert guest.call(number, at + 4) == -Errno.EFAULT


# -- memory_op ---------------------------------------------------------------------------------------------


def reservation(guest: Paused, command: int, frames: list[int], order: int = 0, **other: int) -> int:
    array = guest.put(struct.pack(f"<{len(frames)}Q", *frames), 0x2000)
    request = struct.pack(
        "<QQIIHxxxxxx", other.get("start", array), other.get("count", len(frames)), order,
        other.get("flags", 0), other.get("domid", DOMID_SELF),
    )  # fmt: skip
    return guest.memory_op(command, guest.put(request))


def test_giving_frames_back_and_getting_them_again(guest: Paused) -> None:
    frames, domain = guest.machine.frames, guest.domain
    assert frames.m2p is not None
    mfn, before = guest.mfn(guest.page(3)), domain.tot_pages
    pfn = frames.m2p[mfn]
    assert guest.update_va_mapping(guest.page(3), 0, 2) == 0
    assert reservation(guest, 1, [mfn]) == 1
    assert domain.tot_pages == before - 1
    assert frames.m2p[mfn] == (1 << 64) - 1
    assert frames.owner[mfn] != domain.domid
    assert reservation(guest, 6, [pfn]) == 1
    (new,) = struct.unpack("<Q", guest.get(8, 0x2000))
    assert frames.m2p[new] == pfn
    assert frames.owner[new] == domain.domid
    assert domain.tot_pages == before
    assert reservation(guest, 6, [pfn]) == 0, "not more than the reservation"


def test_a_frame_that_is_mapped_lives_on_until_it_is_not(guest: Paused) -> None:
    frames, mfn = guest.machine.frames, guest.mfn(guest.page(3))
    assert reservation(guest, 1, [mfn]) == 1
    assert frames.owner[mfn] == guest.domain.domid
    tot_pages = guest.domain.tot_pages
    assert reservation(guest, 1, [mfn]) == 1, "once more changes nothing"
    assert guest.domain.tot_pages == tot_pages
    assert guest.update_va_mapping(guest.page(3), 0, 2) == 0
    assert frames.owner[mfn] != guest.domain.domid


def test_decreasing_stops_at_the_first_bad_frame(guest: Paused) -> None:
    good = [guest.mfn(guest.page(number)) for number in (3, 4)]
    assert reservation(guest, 1, [good[0], guest.machine.board.zero_frame, good[1]]) == 1
    assert reservation(guest, 1, [1 << 50]) == 0
    assert reservation(guest, 1, [guest.domain.shared_info.mfn]) == 0


@pytest.mark.parametrize("command", [0, 1, 6])
@pytest.mark.parametrize(
    "other",
    [{"order": 10}, {"order": 0xFFFFFFFF}, {"domid": 0}, {"domid": 77}, {"start": UNMAPPED}, {"count": 0}],
)
def test_reservations_never_return_an_error(guest: Paused, command: int, other: dict[str, int]) -> None:
    assert reservation(guest, command, [5], **other) == 0
    assert guest.memory_op(command, UNMAPPED) == 0
    assert reservation(guest, command | 7 << 6, [5]) == 7, "the number of extents that were done before"


def test_asking_about_memory(guest: Paused) -> None:
    domid = guest.put(struct.pack("<H", DOMID_SELF))
    assert guest.memory_op(Memory.MAXIMUM_RAM_PAGE, 0) == guest.machine.frames.count
    assert guest.memory_op(Memory.CURRENT_RESERVATION, domid) == 1024
    assert guest.memory_op(Memory.MAXIMUM_RESERVATION, domid) == 1024
    for command in (3, 4, 14):
        assert guest.memory_op(command, guest.put(struct.pack("<H", 0))) == -Errno.EPERM
        assert guest.memory_op(command, guest.put(struct.pack("<H", 77))) == -Errno.ESRCH
        assert guest.memory_op(command, UNMAPPED) == -Errno.EFAULT
    assert (
        guest.memory_op(Memory.CURRENT_RESERVATION, guest.put(struct.pack("<H", guest.domain.domid))) == 1024
    )


def test_where_the_m2p_is(guest: Paused) -> None:
    assert guest.memory_op(Memory.MACHPHYS_MAPPING, guest.scratch) == 0
    start, end, highest = guest.words(guest.scratch, 3)
    assert (start, end) == (0xFFFF800000000000, 0xFFFF804000000000)
    assert highest == guest.machine.frames.count - 1


def test_memory_map(guest: Paused) -> None:
    assert (
        guest.memory_op(Memory.MEMORY_MAP, guest.put(struct.pack("<IxxxxQ", 8, guest.scratch + 0x100))) == 0
    )
    assert guest.get(4) == struct.pack("<I", 1)
    assert guest.get(20, 0x100) == struct.pack("<QQI", 0, 1024 * 4096, 1)
    assert guest.memory_op(Memory.MEMORY_MAP, guest.put(struct.pack("<IxxxxQ", 0, UNMAPPED))) in (
        0,
        -Errno.EFAULT,
    )


PHYSMAP, BATCH, REMOVE, CLAIM, VNUMA, RESOURCE = (
    "HHIQQ",
    "HHHHQQQ",
    "HxxxxxxQ",
    "QQIIHxxxxxx",
    "HHIII8xQQQ",
    "HHIIIQQ",
)
SELF = DOMID_SELF


@pytest.mark.parametrize(
    ("command", "layout", "values", "errno"),
    [
        (7, PHYSMAP, (SELF, 1, 1, 0, 0), -Errno.EACCES),
        (7, PHYSMAP, (0, 1, 1, 0, 0), -Errno.EACCES),
        (7, PHYSMAP, (77, 1, 1, 0, 0), -Errno.ESRCH),
        (7, PHYSMAP, (SELF, 1, 4, 0, 0), -Errno.ENOSYS),
        (7 | 9 << 6, PHYSMAP, (SELF, 1, 1, 0, 0), -Errno.EACCES),
        (7 | 1 << 22, PHYSMAP, (SELF, 1, 1, 0, 0), -Errno.EDOM),
        (23, BATCH, (SELF, 1, 1, 0, 0, 0, 0), -Errno.EACCES),
        (23, BATCH, (77, 1, 1, 0, 0, 0, 0), -Errno.ESRCH),
        (23, BATCH, (SELF, 3, 1, 0, 0, 0, 0), -Errno.EOPNOTSUPP),
        (23 | 1 << 22, BATCH, (SELF, 1, 1, 0, 0, 0, 0), -Errno.EDOM),
        (15, REMOVE, (SELF, 0), -Errno.EACCES),
        (15, REMOVE, (77, 0), -Errno.ESRCH),
        (15 | 1 << 6, REMOVE, (SELF, 0), -Errno.EINVAL),
        (24, CLAIM, (0, 1, 0, 0, 1), -Errno.EPERM),
        (24, CLAIM, (0, 1, 0, 0, SELF), -Errno.EINVAL),
        (24, CLAIM, (0, 1, 0, 0, 77), -Errno.EINVAL),
        (24, CLAIM, (8, 1, 0, 0, 1), -Errno.EINVAL),
        (24, CLAIM, (0, 1, 1, 0, 1), -Errno.EINVAL),
        (24, CLAIM, (0, 1, 0, 1, 1), -Errno.EINVAL),
        (24 | 1 << 6, CLAIM, (0, 1, 0, 0, 1), -Errno.EINVAL),
        (26, VNUMA, (SELF, 0, 0, 0, 0, 0, 0, 0), -Errno.EOPNOTSUPP),
        (26, VNUMA, (SELF, 1, 0, 0, 0, 0, 0, 0), -Errno.EINVAL),
        (26, VNUMA, (77, 0, 0, 0, 0, 0, 0, 0), -Errno.ESRCH),
        (26, VNUMA, (0, 0, 0, 0, 0, 0, 0, 0), -Errno.EPERM),
        (28, RESOURCE, (0, 1, 0, 1, 0, 0, 0), -Errno.EPERM),
        (28, RESOURCE, (1, 1, 0, 1, 0, 0, 0), -Errno.EPERM),
        (28, RESOURCE, (SELF, 1, 0, 1, 0, 0, 0), -Errno.ESRCH),
        (28, RESOURCE, (0, 1, 0, 1, 1, 0, 0), -Errno.EINVAL),
        (28, RESOURCE, (0, 1, 0, 1, 0, 0xFFFFFFFF, 0), -Errno.EINVAL),
        (28, RESOURCE, (0, 1, 0, 1, 0, 1 << 63, 0), -Errno.EINVAL),
    ],
)
def test_memory_operations_that_are_refused(
    guest: Paused, command: int, layout: str, values: tuple[int, ...], errno: int
) -> None:
    assert guest.memory_op(command, guest.put(struct.pack("<" + layout, *values))) == errno
    if errno != -Errno.EDOM and command < 64:
        assert guest.memory_op(command, UNMAPPED) == -Errno.EFAULT


@pytest.mark.parametrize(
    ("command", "result"),
    [
        (8, -Errno.ENOSYS),
        (10, -Errno.EPERM),
        (16, -Errno.EINVAL),
        (17, -Errno.EINVAL),
        (18, 0),
        (19, 0),
        (20, -Errno.ENOSYS),
        (21, -Errno.ENOSYS),
        (22, -Errno.ENOSYS),
        (27, -Errno.ENOSYS),
        (29, -Errno.ENOSYS),
        (63, -Errno.ENOSYS),
    ],
)
def test_memory_operations_without_a_structure(guest: Paused, command: int, result: int) -> None:
    assert guest.memory_op(command, guest.scratch) == result


def test_what_is_never_continued(guest: Paused) -> None:
    for command in (2, 3, 4, 11, 14, 15, 24, 26):
        assert guest.memory_op(command | 1 << 6, guest.scratch) == -Errno.EINVAL
    for command in (5, 9, 10, 12, 13, 18, 25):
        assert guest.memory_op(command | 1 << 6, guest.scratch) == -Errno.ENOSYS


def test_the_guests_own_memory_map(guest: Paused) -> None:
    entries = struct.pack("<QQIQQI", 0, 0x1000, 1, 0x1000, 0x2000, 2)
    buffer = guest.put(entries, 0x100)
    for domid, errno in ((0, -Errno.EPERM), (77, -Errno.ESRCH)):
        assert (
            guest.memory_op(Memory.SET_MEMORY_MAP, guest.put(struct.pack("<HxxxxxxIxxxxQ", domid, 2, buffer)))
            == errno
        )
    assert (
        guest.memory_op(Memory.SET_MEMORY_MAP, guest.put(struct.pack("<HxxxxxxIxxxxQ", SELF, 1025, buffer)))
        == -Errno.EINVAL
    )
    assert (
        guest.memory_op(Memory.SET_MEMORY_MAP, guest.put(struct.pack("<HxxxxxxIxxxxQ", SELF, 2, UNMAPPED)))
        == -Errno.EFAULT
    )
    assert (
        guest.memory_op(Memory.SET_MEMORY_MAP, guest.put(struct.pack("<HxxxxxxIxxxxQ", SELF, 2, buffer))) == 0
    )
    guest.put(bytes(60), 0x200)
    assert (
        guest.memory_op(Memory.MEMORY_MAP, guest.put(struct.pack("<IxxxxQ", 9, guest.scratch + 0x200))) == 0
    )
    assert (guest.get(4), guest.get(40, 0x200)) == (struct.pack("<I", 2), entries)
    assert (
        guest.memory_op(Memory.MEMORY_MAP, guest.put(struct.pack("<IxxxxQ", 1, guest.scratch + 0x300))) == 0
    )
    assert (guest.get(4), guest.get(24, 0x300)) == (struct.pack("<I", 1), entries[:20] + bytes(4))
    assert guest.memory_op(Memory.SET_MEMORY_MAP, guest.put(struct.pack("<HxxxxxxIxxxxQ", SELF, 0, 0))) == 0
    assert (
        guest.memory_op(Memory.MEMORY_MAP, guest.put(struct.pack("<IxxxxQ", 9, guest.scratch + 0x200)))
        == -Errno.ENOSYS
    )


@pytest.mark.parametrize(("command", "entry_size"), [(5, 8), (25, 4)])
def test_the_frames_of_the_m2p(guest: Paused, command: int, entry_size: int) -> None:
    machine = guest.machine
    request = struct.pack("<IxxxxQIxxxx", 9, guest.scratch + 0x100, 99)
    assert guest.memory_op(command, guest.put(request)) == 0
    assert guest.get(4, 16) == struct.pack("<I", 1)
    first = (machine.board.m2p.frames if entry_size == 8 else machine.board.m2p.compat_frames)[0]
    assert guest.words(guest.scratch + 0x100, 1) == (first,)
    assert guest.memory_op(command, guest.put(struct.pack("<IxxxxQIxxxx", 0, UNMAPPED, 99))) == 0
    assert guest.get(4, 16) == bytes(4)


def test_maximum_gpfn_is_what_the_guest_says(guest: Paused) -> None:
    page, at = guest.domain.shared_info, guest.domain.layout.max_pfn
    domid = guest.put(struct.pack("<H", SELF))
    for said, answer in ((0, 0), (1, 0), (512, 511)):
        page.write_u64(at, said)
        assert guest.memory_op(Memory.MAXIMUM_GPFN, domid) == answer


@pytest.mark.parametrize(
    ("flags", "done"),
    [
        (0, 1), (64, 1), (44, 1), (13, 0), (12, 0), (1, 0), (1 << 16, 0), (1 << 17, 1), (1 << 8, 1),
        (1 << 8 | 1 << 17, 0), (1 << 8 | 1 << 17 | 1 << 18, 1), (1 << 18, 1),
    ],
)  # fmt: skip
def test_where_memory_may_be(guest: Paused, flags: int, done: int) -> None:
    mfn = guest.mfn(guest.page(4))
    assert guest.update_va_mapping(guest.page(4), 0, 2) == 0
    assert reservation(guest, 1, [mfn]) == 1
    before = guest.domain.tot_pages
    assert reservation(guest, 6, [5], flags=flags) == done
    assert guest.domain.tot_pages == before + done
    assert guest.machine.audit() == []


def spare(guest: Paused, count: int) -> list[int]:
    """Frames of the guest that nothing maps."""
    found = []
    for page in range(600, 1000):
        mfn = guest.mfn(page << 12)
        if guest.update_va_mapping(page << 12, 0, 2) == 0 and guest.machine.frames.refs[mfn] == 1:
            found.append(mfn)
    assert len(found) >= count
    return found[:count]


def interrupted(again: Again, command: int, argument: int) -> int:
    """What a call that gave way asks for; the extent at which it goes on."""
    number, rest = again.arguments
    assert (number & 63, rest) == (command, argument)
    return number >> 6


@pytest.mark.parametrize("command", [0, 1, 6])
def test_long_reservations_give_way(guest: Paused, command: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest.dispatcher.call, "preempted", lambda _steps: True)
    count = 200
    listed = spare(guest, count) if command == 1 else range(2000, 2000 + count)
    domain = guest.domain
    if command != 1:
        domain.max_pages += count
    array = guest.put(struct.pack(f"<{count}Q", *listed), 0x2000)
    request = guest.put(struct.pack("<QQIIHxxxxxx", array, count, 0, 0, SELF))
    before, start, rounds = domain.tot_pages, 0, 0
    while True:
        try:
            assert guest.memory_op(command | start << 6, request) == count
            break
        except Again as again:
            start = interrupted(again, command, request)
        rounds += 1
        assert start == 64 * rounds
        assert domain.tot_pages - before == (-start if command == 1 else start)
    assert rounds == 3
    assert guest.machine.audit() == []


def exchange(guest: Paused, given: list[int], wanted: list[int], **other: int) -> int:
    first = guest.put(struct.pack(f"<{len(given)}Q", *given), 0x2000)
    second = guest.put(struct.pack(f"<{len(wanted)}Q", *wanted), 0x3000)
    request = struct.pack(
        "<QQIIHxxxxxxQQIIHxxxxxxQ",
        first, len(given), other.get("in_order", 0), 0, other.get("in_domid", DOMID_SELF),
        other.get("out", second), len(wanted), other.get("out_order", 0), 0, DOMID_SELF, other.get("done", 0),
    )  # fmt: skip
    return guest.memory_op(Memory.EXCHANGE, guest.put(request))


def test_exchange(guest: Paused) -> None:
    frames = guest.machine.frames
    assert frames.m2p is not None
    mfn = guest.mfn(guest.page(5))
    pfn = frames.m2p[mfn]
    assert exchange(guest, [mfn], [pfn]) == -Errno.EINVAL, "it is mapped"
    assert guest.update_va_mapping(guest.page(5), 0, 2) == 0
    assert exchange(guest, [mfn], [pfn]) == 0
    (new,) = struct.unpack("<Q", guest.get(8, 0x3000))
    assert frames.m2p[new] == pfn
    assert frames.owner[new] == guest.domain.domid
    assert guest.get(8, 64) == struct.pack("<Q", 1)


def test_a_long_exchange_goes_on_where_it_was(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(guest.dispatcher.call, "preempted", lambda _steps: True)
    count = 150
    given = spare(guest, count)
    with pytest.raises(Again):
        exchange(guest, given, list(range(count)))
    done = 64
    while True:
        assert guest.words(guest.scratch + 64, 1) == (done,)
        try:
            assert guest.memory_op(Memory.EXCHANGE, guest.scratch) == 0
            break
        except Again as again:
            interrupted(again, 11, guest.scratch)
        done += 64
    assert done == 128
    assert guest.words(guest.scratch + 64, 1) == (count,)
    assert guest.machine.audit() == []


def test_exchanges_that_are_refused(guest: Paused) -> None:
    mfn = guest.mfn(guest.page(5))
    assert exchange(guest, [mfn], [1, 2]) == -Errno.EINVAL
    assert exchange(guest, [mfn], [1], in_domid=0) == -Errno.EINVAL
    assert exchange(guest, [mfn], [1], done=2) == -Errno.EINVAL
    assert exchange(guest, [mfn], [1], done=1) == 0
    assert exchange(guest, [mfn], [1], in_order=10, out_order=10) == -Errno.EPERM
    assert exchange(guest, [mfn], [1], out=0xFFFF800000000000) == -Errno.EFAULT
    assert exchange(guest, [guest.machine.board.zero_frame], [1]) == -Errno.EINVAL
    for order in (63, 64, 0xFFFFFFFF):
        assert exchange(guest, [mfn], [1], in_order=order, out_order=order) in (-Errno.EINVAL, -Errno.EPERM)
    assert guest.memory_op(Memory.EXCHANGE, UNMAPPED) == -Errno.EFAULT


# -- grants of the toolstack -------------------------------------------------------------------------------


def test_domain_0_exists_and_has_granted_nothing(guest: Paused) -> None:
    request = guest.put(struct.pack("<QIIHhIQ", guest.page(3), 2, 8, 0, 0, 0, 0))
    assert guest.call(Hypercall.GRANT_TABLE_OP, 0, request, 1) == 0
    assert struct.unpack("<h", guest.get(2, 18)) == (-1,)
    request = guest.put(struct.pack("<QIIHhIQ", guest.page(3), 2, 8, 77, 0, 0, 0))
    assert guest.call(Hypercall.GRANT_TABLE_OP, 0, request, 1) == 0
    assert struct.unpack("<h", guest.get(2, 18)) == (-2,)
    request = guest.put(struct.pack("<HxxIIhxx", 0, 0, 0, 0))
    assert guest.call(Hypercall.GRANT_TABLE_OP, 6, request, 1) == 0
    assert struct.unpack("<h", guest.get(2, 12)) == (-8,)


def test_grant_copy_within_the_domain(guest: Paused) -> None:
    """The layout of gnttab_copy: two structures with their own padding, then length and flags."""
    guest.put(b"copied bytes", 0x3010)
    source, target = guest.mfn(guest.page(3)), guest.mfn(guest.page(4))
    request = struct.pack(
        "<QHHxxxxQHHxxxxHHhxx", source, DOMID_SELF, 0x10, target, DOMID_SELF, 0x20, 12, 0, 99
    )
    assert len(request) == 40
    assert guest.call(Hypercall.GRANT_TABLE_OP, 5, guest.put(request), 1) == 0
    assert struct.unpack("<h", guest.get(2, 36)) == (0,)
    assert guest.get(12, 0x4020) == b"copied bytes"
    assert guest.get(4, 0x402C) == bytes(4)
    too_long = struct.pack("<QHHxxxxQHHxxxxHHhxx", source, DOMID_SELF, 0xFF8, target, DOMID_SELF, 0, 12, 0, 0)
    assert guest.call(Hypercall.GRANT_TABLE_OP, 5, guest.put(too_long), 1) == 0
    assert struct.unpack("<h", guest.get(2, 36)) == (-10,)


# -- all of them -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("number", [entry.number for entry in HYPERCALLS if entry is not None])
def test_no_number_in_any_register_raises_anything(guest: Paused, number: int) -> None:
    """Hostile values in every argument give an errno, a result, or the end of the domain."""
    if number in (23, 29, 6):
        return  # these leave the processor; they have tests of their own
    hostile = [0, 1, 3, 6, 9, 13, 63, 1 << 31, (1 << 32) - 1, UNMAPPED, 1 << 47, 1 << 63, (1 << 64) - 1]
    hostile += [guest.scratch, guest.vcpu.kernel_l4, 0xFFFF800000000000, (1 << 64) - 8, guest.page(16) - 1]
    count_of = {1: 1, 13: 1, 18: 1, 20: 2, 26: 1}
    for first in hostile:
        for second in hostile:
            for rest in (0, 1, (1 << 64) - 1, guest.scratch):
                arguments = (first, second, rest, rest, rest)
                if number in count_of and arguments[count_of[number]] & 0xFFFFFFFF > 100:
                    continue  # long lists are merely slow
                assert -200 < guest.call(number, *arguments) < 1 << 64


# -- the layouts of 32-bit guests --------------------------------------------------------------------------


@pytest.fixture
def narrow(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> Paused:
    """A guest that passes structures as a 32-bit guest does."""
    monkeypatch.setattr(guest.dispatcher.call, "width", 32)
    monkeypatch.setattr(guest.dispatcher.call, "word", 4)
    return guest


def test_version_of_32_bit_guests(narrow: Paused) -> None:
    narrow.put(DIRTY)
    assert narrow.xen_version(Xenver.PLATFORM_PARAMETERS, narrow.scratch) == 0
    assert narrow.get(8) == struct.pack("<I", 0xF5800000) + DIRTY[:4]
    assert narrow.physdev_op(Physdev.SET_IOPL, narrow.put(struct.pack("<I", 2))) == 0
    assert narrow.physdev_op_compat(narrow.put(struct.pack("<II", 6, 3))) == 0
    assert narrow.vcpu.iopl == 3


def test_the_m2p_of_32_bit_guests(narrow: Paused) -> None:
    assert narrow.memory_op(Memory.MACHPHYS_MAPPING, narrow.put(DIRTY)) == 0
    assert narrow.get(16) == struct.pack(
        "<III", 0xF5800000, 0xFFE00000, narrow.machine.frames.count - 1
    ) + DIRTY[:4]  # fmt: skip
    for command in (5, 25):
        assert narrow.memory_op(command, narrow.put(struct.pack("<III", 9, narrow.scratch + 64, 0))) == 0
        assert narrow.get(4, 8) == struct.pack("<I", 1)
        assert narrow.get(4, 64) == struct.pack("<I", narrow.machine.board.m2p.compat_frames[0])


def test_memory_of_32_bit_guests(narrow: Paused) -> None:
    frames, (mfn, other) = narrow.machine.frames, spare(narrow, 2)
    assert frames.m2p is not None

    def call(command: int, value: int, *, flags: int = 0) -> int:
        array = narrow.put(struct.pack("<I", value), 0x100)
        request = narrow.put(struct.pack("<IIIIHxx", array, 1, 0, flags, SELF))
        return narrow.memory_op(command, request)

    assert call(1, mfn) == 1
    assert call(6, 0x123) == 1
    (new,) = struct.unpack("<I", narrow.get(4, 0x100))
    assert frames.m2p[new] == 0x123
    first = narrow.put(struct.pack("<I", other), 0x100)
    second = narrow.put(struct.pack("<I", 0x124), 0x200)
    request = struct.pack("<IIIIHxxIIIIHxxI", first, 1, 0, 0, SELF, second, 1, 0, 0, SELF, 0)
    assert narrow.memory_op(Memory.EXCHANGE, narrow.put(request)) == 0
    (new,) = struct.unpack("<I", narrow.get(4, 0x200))
    assert frames.m2p[new] == 0x124
    assert narrow.get(4, 40) == struct.pack("<I", 1)
    for orders, count, errno in (
        ((10, 10), 1, -Errno.EPERM),
        ((32, 32), 1, -Errno.EINVAL),
        ((9, 9), 1 << 24, -Errno.EINVAL),
    ):
        request = struct.pack(
            "<IIIIHxxIIIIHxxI", first, count, orders[0], 0, SELF, second, count, orders[1], 0, SELF, 0
        )
        assert narrow.memory_op(Memory.EXCHANGE, narrow.put(request)) == errno
    request = struct.pack("<IIIIHxxIIIIHxxI", 0xF5800000, 1, 0, 0, SELF, second, 1, 0, 0, SELF, 0)
    assert narrow.memory_op(Memory.EXCHANGE, narrow.put(request)) == -Errno.EFAULT


def test_the_memory_map_of_32_bit_guests(narrow: Paused) -> None:
    entries = narrow.put(struct.pack("<QQI", 0, 0x5000, 1), 0x100)
    assert narrow.memory_op(Memory.SET_MEMORY_MAP, narrow.put(struct.pack("<HxxII", SELF, 1, entries))) == 0
    assert narrow.memory_op(Memory.MEMORY_MAP, narrow.put(struct.pack("<II", 4, narrow.scratch + 0x200))) == 0
    assert narrow.get(4) == struct.pack("<I", 1)
    assert narrow.get(20, 0x200) == struct.pack("<QQI", 0, 0x5000, 1)
