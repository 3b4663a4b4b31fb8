# SPDX-License-Identifier: GPL-2.0-only
"""The saved state of clocks: virtual time is what it was; real time goes on, and none is set back."""

from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.clock import RealClock, VirtualClock
from pyhv.cpu.tsc import TscRate, rate
from pyhv.errors import StateError
from pyhv.state import restore
from pyhv.testing.saving import assert_restored, packed, unexplained_from

SECOND = 1_000_000_000


class Engine:
    """Counts what it executes."""

    def __init__(self) -> None:
        self.budget = SimpleNamespace(left=memoryview(array("q", [0])))


TURNS = st.lists(
    st.tuples(
        st.integers(0, 10**7),  # how long the turn may be
        st.lists(
            st.tuples(st.sampled_from(["execute", "work", "tsc", "shorten"]), st.integers(0, 10**6)),
            max_size=5,
        ),
        st.integers(0, 10**6),  # how long all are idle then
    ),
    max_size=8,
)


def live(clock: Any, turns: list[tuple[int, list[tuple[str, int]], int]]) -> list[object]:
    seen: list[object] = []
    engine: Any = Engine()
    for longest, steps, idle in turns:
        clock.begin(engine, clock.now() + longest)
        for what, amount in steps:
            if what == "execute":
                engine.budget.left[0] -= amount
            elif what == "work":
                seen.append(clock.work(amount))
            elif what == "tsc":
                seen.append(clock.tsc())
            else:
                clock.shorten(clock.now() + amount)
            seen.append(clock.now())
        clock.end()
        clock.advance_to(clock.now() + idle)
        seen += [clock.now(), clock.code_bytes, clock.time_record(), clock.wall_ns()]
    return seen


@given(TURNS, TURNS)
def test_virtual_time_is_exactly_what_it_was(before: list[Any], after: list[Any]) -> None:
    clock, other = VirtualClock(), VirtualClock(wall_ns=5)
    live(clock, before)
    assert_restored(clock, other)
    assert unexplained_from(clock) == []
    assert live(other, after) == live(clock, after)
    assert packed(other) == packed(clock)


class HostTsc:
    """A host's counter that a test turns."""

    def __init__(self, ticks: int, hz: int) -> None:
        self.ticks = ticks
        self.rate: TscRate = rate(hz)

    def read(self) -> int:
        return self.ticks

    def sample(self) -> tuple[int, int]:
        raise NotImplementedError


class Host:
    """What time it is on the host, by all its clocks."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monotonic, self.utc = 100 * SECOND, 1_700_000_000 * SECOND
        monkeypatch.setattr("pyhv.clock.time.monotonic_ns", lambda: self.monotonic)
        monkeypatch.setattr("pyhv.clock.time.time_ns", lambda: self.utc)

    def pass_by(self, ns: int) -> None:
        self.monotonic += ns
        self.utc += ns

    def other(self, monotonic: int, utc: int) -> None:
        """Another host, or this one at another time."""
        self.monotonic, self.utc = monotonic, utc


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    return Host(monkeypatch)


@contextmanager
def real(tsc: HostTsc | None = None) -> Iterator[RealClock]:
    clock = RealClock(tsc)  # type: ignore[arg-type]
    try:
        yield clock
    finally:
        clock.close()


@pytest.mark.parametrize("monotonic", [1 * SECOND, 10**6 * SECOND])
def test_system_time_goes_on_wherever_the_host_is(host: Any, monotonic: int) -> None:
    with real() as clock:
        host.pass_by(7 * SECOND)
        saved = packed(clock)
        assert unexplained_from(clock) == []
    host.other(monotonic, host.utc + 3600 * SECOND)
    with real() as clock:
        host.pass_by(SECOND)
        restore(clock, saved)
        assert clock.now() == 7 * SECOND
        assert clock.wall_ns() + clock.now() == host.utc, "the wall clock is the host's, an hour later"
        host.pass_by(SECOND)
        assert clock.now() == 8 * SECOND
        assert clock.time_record() == (8 * SECOND, 8 * SECOND, True)


def test_the_wall_clock_is_not_set_back(host: Any) -> None:
    with real() as clock:
        host.pass_by(7 * SECOND)
        before, saved = clock.wall_ns(), packed(clock)
        host.other(host.monotonic, host.utc - 86400 * SECOND)
        restore(clock, saved)
        assert clock.wall_ns() == before


def test_the_hosts_counter_is_kept_at_the_new_hosts_rate(host: Any) -> None:
    with real(HostTsc(5_000, 2 * 10**9)) as clock:
        saved = packed(clock)
    with real(HostTsc(6_000, 3 * 10**9)) as clock:
        restore(clock, saved)
        assert not clock.traps_tsc
        assert clock.tsc_rate == rate(3 * 10**9)
        assert clock.tsc() == 6_000


@pytest.mark.promise("T-13")
@pytest.mark.parametrize("new", [None, HostTsc(4_000, 3 * 10**9)])
def test_a_counter_that_would_be_set_back_is_emulated_at_the_old_rate(host: Any, new: Any) -> None:
    with real(HostTsc(5_000, 2 * 10**9)) as clock:
        host.pass_by(SECOND)
        saved = packed(clock)
    with real(new) as clock:
        restore(clock, saved)
        assert clock.traps_tsc
        assert clock.tsc_rate == rate(2 * 10**9)
        assert clock.tsc() == 5_000
        host.pass_by(SECOND)
        record = clock.time_record()
        assert record == (5_000 + 2 * 10**9, 2 * SECOND, False)
        with real(new) as again:
            host.pass_by(SECOND)
            now = packed(clock)
            restore(again, now)
            assert packed(again) == now
            assert again.tsc() == 5_000 + 4 * 10**9


def test_who_had_system_time_for_a_counter_keeps_it(host: Any) -> None:
    with real() as clock:
        host.pass_by(SECOND)
        saved = packed(clock)
    with real(HostTsc(10**15, 3 * 10**9)) as clock:
        restore(clock, saved)
        assert clock.traps_tsc
        assert clock.tsc() == clock.now() == SECOND
        assert clock.time_record().stable


def test_a_guest_never_sees_its_emulated_pvclock_go_back(host: Any) -> None:
    with real(HostTsc(5_000, 2_345_678_901)) as clock:
        saved = packed(clock)
    with real() as clock:
        restore(clock, saved)
        last, multiply, shift = 0, clock.tsc_rate.mul, clock.tsc_rate.shift
        record = clock.time_record()
        for step in range(300):
            host.pass_by(1 + step * 7919)
            ticks = clock.tsc() - record.tsc
            scaled = ticks << shift if shift >= 0 else ticks >> -shift
            seen = record.now + (scaled * multiply >> 32)
            assert last <= seen <= clock.now()
            record = clock.time_record()
            last = seen


@pytest.mark.parametrize(
    ("field", "value"),
    [("now", -1), ("now", 1 << 62), ("wall", -1), ("tsc", 1 << 64), ("tsc_hz", 0), ("traps_tsc", 1)],
)
def test_what_no_clock_can_have_been_is_refused(field: str, value: Any) -> None:
    with real() as clock, pytest.raises(StateError, match=field):
        restore(clock, {**clock.state(), field: value})
    with pytest.raises(StateError, match="lacks"):
        restore(VirtualClock(), {})
