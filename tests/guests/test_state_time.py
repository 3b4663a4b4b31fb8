# SPDX-License-Identifier: GPL-2.0-only
"""What a guest sees of real time when its machine was saved, and goes on later or elsewhere."""

import struct
import time

import pytest
from guest_machine import Paused, machine
from saving import packed

from pyhv.abi.shared import VI_TIME
from pyhv.clock import RealClock
from pyhv.state import restore

RECORD = struct.Struct("<IIQQIbBxx")
SECOND = 1_000_000_000
SLACK = 2_000_000
"""What the guest's clocks may differ from the host's: they are set a little slow (ns)."""


def pvclock(guest: Paused) -> int:
    """System time as the guest works it out, from its record and its TSC."""
    version, _, stamp, system, multiply, shift, _ = RECORD.unpack_from(guest.vcpu.info.record, VI_TIME)
    assert version % 2 == 0
    ticks = guest.machine.clock.tsc() - stamp
    scaled = ticks << shift if shift >= 0 else ticks >> -shift
    return system + (scaled * multiply >> 32)


def wallclock(guest: Paused) -> int:
    """UTC, ns, as the guest works it out."""
    page, layout = guest.domain.shared_info, guest.domain.layout
    seconds = page.read_u32(layout.wc_sec) | page.read_u32(layout.wc_sec_hi) << 32
    return seconds * SECOND + page.read_u32(layout.wc_nsec) + pvclock(guest)


def test_the_time_that_the_machine_was_away_is_not_felt_but_in_utc() -> None:
    with machine(virtual_time=False) as made:
        guest = Paused(made)
        guest.vcpu.update_time()
        began = time.monotonic_ns()
        before, saved = pvclock(guest), packed(made.clock)
        left = time.monotonic_ns()
        time.sleep(0.3)
        back = time.monotonic_ns()
        restore(made.clock, saved)
        guest.domain.renew_time()
        passed = pvclock(guest) - before
        assert 0 <= passed <= time.monotonic_ns() - began - (back - left) + SLACK
        earliest, utc, latest = time.time_ns(), wallclock(guest), time.time_ns()
        assert earliest - SLACK <= utc <= latest + SLACK
        assert guest.vcpu.areas.written > 0


def test_a_guest_whose_counter_is_emulated_from_now_on_sees_no_jump(monkeypatch: pytest.MonkeyPatch) -> None:
    """As on a host whose counter has not come as far."""
    with machine(virtual_time=False) as made:
        guest, clock = Paused(made), made.clock
        assert isinstance(clock, RealClock)
        guest.vcpu.update_time()
        began, before, counter = time.monotonic_ns(), pvclock(guest), clock.tsc()
        saved = packed(clock)
        monkeypatch.setattr(clock, "_host", None)
        restore(clock, saved)
        guest.domain.renew_time()
        assert clock.traps_tsc
        assert clock.tsc() >= counter
        assert 0 <= pvclock(guest) - before <= time.monotonic_ns() - began + SLACK


def test_virtual_time_needs_nothing() -> None:
    with machine() as made:
        guest = Paused(made)
        before = bytes(guest.vcpu.info.record)
        guest.domain.renew_time()
        assert bytes(guest.vcpu.info.record) == before
