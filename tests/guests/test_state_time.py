# SPDX-License-Identifier: GPL-2.0-only
"""What a guest sees of real time when its machine was saved, and goes on later or elsewhere."""

import re
import struct
import time

import pytest

from pyhv.abi.shared import VI_TIME
from pyhv.clock import RealClock
from pyhv.domain.config import DomainConfig
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.snapshot.snapshot import take
from pyhv.state import restore
from pyhv.testing.guest_machine import Paused, Sink, machine
from pyhv.testing.saving import packed
from pyhv.until import When

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
    return int(system + (scaled * multiply >> 32))


def wallclock(guest: Paused) -> int:
    """UTC, ns, as the guest works it out."""
    page, layout = guest.domain.shared_info, guest.domain.layout
    seconds = page.read_u32(layout.wc_sec) | page.read_u32(layout.wc_sec_hi) << 32
    return seconds * SECOND + page.read_u32(layout.wc_nsec) + pvclock(guest)


@pytest.mark.promise("T-13", "S-7")
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
        guest.domain.renew_time(guest.vcpu)
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
        guest.domain.renew_time(guest.vcpu)
        assert clock.traps_tsc
        assert clock.tsc() >= counter
        assert 0 <= pvclock(guest) - before <= time.monotonic_ns() - began + SLACK


def test_virtual_time_needs_nothing() -> None:
    with machine() as made:
        guest = Paused(made)
        before = bytes(guest.vcpu.info.record)
        guest.domain.renew_time(guest.vcpu)
        assert bytes(guest.vcpu.info.record) == before


@pytest.mark.parametrize("in_place", [True, False])
def test_a_guest_that_goes_on_from_a_snapshot_does_not_measure_the_time_between(in_place: bool) -> None:
    """It takes the time from start to end by its pvclock record, and the machine is away in between."""
    with machine(virtual_time=False) as made:
        sink = Sink()
        made.create(load_image(build_builtin("ticker"), "ticker"), DomainConfig("ticker", 1024), console=sink)
        made.run(When(lambda: b"tick 2" in sink.data), timeout_ns=30 * SECOND)
        snapshot = take(made)
        left = time.monotonic_ns()
        time.sleep(1)
        away = time.monotonic_ns() - left
        if in_place:
            snapshot.put_back(made, lambda *_: sink)
            made.run(timeout_ns=30 * SECOND)
        else:
            other = snapshot.rebuild(lambda *_: sink)
            try:
                other.run(timeout_ns=30 * SECOND)
            finally:
                other.close()
        measured = int(re.findall(rb"tick 5 after (\d+) us", sink.data)[0]) * 1000
        assert 0 < measured < away, "five ticks of 10 ms"
