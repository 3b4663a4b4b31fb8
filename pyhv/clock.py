# SPDX-License-Identifier: GPL-2.0-only
"""What time it is: the machine's one source of time, in nanoseconds since the machine was built.

`VirtualClock` counts the guest code that ran: a fixed number of bytes of executed code is a nanosecond, every
exit costs a fixed time, and when all is idle it jumps to the next timer. The same run gives the same times,
instruction for instruction. `RealClock` is the host's monotonic clock.

The guests' TSC is system time in nanoseconds, or, in real time where that spares exits, the host's own.
"""

import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from typing import Annotated, ClassVar, Final, NamedTuple

from pyhv.abi.layout import u64
from pyhv.address import MASK64
from pyhv.cpu.clockwork import Ticker
from pyhv.cpu.engine import Engine
from pyhv.cpu.tsc import HostTsc, TscRate, rate
from pyhv.state import Nanoseconds, Plain, entries, refusal, typed

BYTES_PER_NS: Final = 4
EXIT_NS: Final = 250
"""Virtual time: executed bytes that make a nanosecond, and what an exit costs."""

BIRTHDAY: Final = 1_136_073_600_000_000_000
"""Virtual time: UTC at its beginning, in ns since 1970; 2006-01-01, so that runs are alike."""

TSC_READ_NS: Final = 2_000
"""Virtual time: what a read of the TSC costs that exits.

Where Xen emulates the TSC, a read is a fault, its decoding and a way back: one to two microseconds. This is
the upper end, because a guest that waits reads the clock again and again until a time has come, and each
read costs the host's processor about a microsecond.
"""

STEPS_A_LOOK: Final = 64
"""Steps of a long hypercall between two looks at the clock."""

TSC_IS_SYSTEM_TIME: Final = rate(1_000_000_000)
"""The rate of a TSC that counts nanoseconds."""


_Bytes = Annotated[int, range(1 << 62)]
_Hertz = Annotated[int, range(1_000_000, 1 << 40)]


class TimeRecord(NamedTuple):
    """At TSC value `tsc`, system time was `now` ns. `stable`: equal on all vCPUs and never set back."""

    tsc: int
    now: int
    stable: bool


_LEAST_TURN_NS, _LONGEST_TURN_NS = 20_000, 1_000_000
"""Real time without asynchronous stops: the bounds of a turn, as code worth that many ns."""


class Clock(ABC):
    """How the machine measures time and bounds a guest's turn on the processor."""

    NOT_STATE: ClassVar[Mapping[str, str]]
    """See `pyhv.state`."""

    deterministic: bool
    counted: ClassVar[bool] = False
    """Whether time is counted, so that a moment of a run can be come back to."""
    traps_tsc: bool
    """Whether RDTSC must exit, so that `tsc` can answer."""
    tsc_rate: TscRate
    """The guests' TSC as they are told."""
    pause_at: int | None = None
    """Ticks at which a turn that begins or goes on pauses: a limit, to the very block of counted code."""

    @abstractmethod
    def time_record(self) -> TimeRecord:
        """A moment in both measures, TSC and system time, for the guests' pvclock."""

    @abstractmethod
    def tsc(self) -> int:
        """What RDTSC returns when it exits; it takes the time that it takes."""

    @abstractmethod
    def now(self) -> int:
        """Nanoseconds since the machine was built."""

    @abstractmethod
    def begin(self, engine: Engine, deadline: int, limit: int | None = None) -> None:
        """`engine` is about to run; stop it at `deadline` (ns), which ends its turn.

        Or at `limit` (ns), which does not: then, and when it was interrupted, it can be paused.
        """

    @abstractmethod
    def end(self) -> None:
        """The engine has come back, or the turn that was paused will not go on."""

    @abstractmethod
    def interrupt(self) -> None:
        """In an exit: the engine is about to be stopped, and its turn will go on as if it had not been."""

    @abstractmethod
    def pause(self, engine: Engine) -> bool:
        """The engine has come back: if it was interrupted, or reached its limit, time stands still now.

        False: neither, or its turn is over all the same.
        """

    @abstractmethod
    def resume(self, engine: Engine, deadline: int, limit: int | None = None) -> None:
        """`engine` is about to go on with a turn that was paused; as `begin`."""

    @abstractmethod
    def hold(self) -> None:
        """All that has run since `begin` or `resume` is accounted for: time stands still, the turn paused."""

    @abstractmethod
    def halt(self, counted: int | None) -> bool:
        """The engine has come back at the start of a block of `counted` bytes, for somebody who looks on.

        None: in an exit that is none, and since `interrupt`. That block is not begun, and time stands still.
        False: the turn is over all the same.
        """

    @abstractmethod
    def measure(self, run: Callable[[], None]) -> int | None:
        """While a turn is resumed: bytes of the block that comes next, which is not executed.

        `run` runs the engine. None: there was an exit first, which has been handled.
        """

    @abstractmethod
    def count(self, size: int) -> bool:
        """A block of `size` bytes begins, as if the engine had counted it; True if the turn is over."""

    @abstractmethod
    def step(self, run: Callable[[], None], size: int) -> bool:
        """Run the engine for one block of `size` bytes, which are part of a block that has been counted.

        False: there was an exit.
        """

    @abstractmethod
    def shorten(self, deadline: int) -> None:
        """While an engine runs: stop it at `deadline` if that is earlier than what was asked."""

    @abstractmethod
    def work(self, ns: int) -> bool:
        """A handler has done work worth `ns`; True if the turn it works in is over."""

    @abstractmethod
    def advance_to(self, when: int) -> None:
        """Everything is idle until `when`; deterministic clocks jump there."""

    @abstractmethod
    def wall_ns(self) -> int:
        """UTC, in ns since 1970, at machine time 0."""

    def ticks(self) -> int:
        """`now`, as finely as it is counted: there are `BYTES_PER_NS` in a nanosecond."""
        return self.now() * BYTES_PER_NS

    def agrees(self, paused: bool) -> bool:
        """Whether its state goes with a turn that is `paused`, or with none."""
        return True

    @abstractmethod
    def close(self) -> None:
        """The machine is no longer used."""

    @abstractmethod
    def state(self) -> dict[str, Plain]:
        """What time it is, while no engine runs."""

    @abstractmethod
    def restore(self, saved: Mapping[str, Plain]) -> None:
        """Go on from that time, before any engine is built: `traps_tsc` may become another.

        While a clock that is not deterministic goes on from there, the host's counters are elsewhere: its
        users renew what the guests have of it, the pvclock records and the wall clock. StateError.
        """


class VirtualClock(Clock):
    """Deterministic time from executed guest code. The TSC is system time, at 1 GHz."""

    deterministic = True
    counted = True
    traps_tsc = True
    tsc_rate = TSC_IS_SYSTEM_TIME
    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "_granted": "said of a turn that is paused",
        "_left": "the same",
        "_charged": "the same",
        "_withheld": "0 while no engine runs",
        "_interrupted": "means something only while an engine runs",
        "pause_at": "whoever runs the machine",
    }

    def __init__(self, wall_ns: int = BIRTHDAY) -> None:
        self._wall = wall_ns
        self._base = 0
        self._granted = 0
        self._left: memoryview | list[int] | None = None
        """Of `_granted`, in its only item: the engine's budget while that runs; None between turns."""
        self._charged = 0
        self._withheld = 0
        """What of the budget lies beyond the limit up to which the engine may run now."""
        self._interrupted: int | None = None
        """What code had taken when an exit asked for an interruption, if one has."""
        self.code_bytes = 0
        """Bytes of guest code executed so far, as of the last `end`."""

    def now(self) -> int:
        left = self._left
        if left is None:
            return self._base
        return self._base + (self._granted - left[0]) // BYTES_PER_NS

    def ticks(self) -> int:
        taken = 0 if self._left is None else self._granted - self._left[0]
        return self._base * BYTES_PER_NS + taken

    def begin(self, engine: Engine, deadline: int, limit: int | None = None) -> None:
        assert engine.budget is not None, "virtual time needs an engine that counts blocks"
        self._left = engine.budget.left
        self._granted = max(deadline - self._base, 1) * BYTES_PER_NS
        self._left[0] = self._granted
        self._withhold(limit)

    def _withhold(self, limit: int | None) -> None:
        """Keep back what lies beyond `limit`, and beyond `pause_at`."""
        assert self._left is not None
        self._interrupted = None
        end = None if limit is None else limit * BYTES_PER_NS
        if self.pause_at is not None:
            end = self.pause_at if end is None else min(end, self.pause_at)
        if end is not None:
            self._withheld = max(self._granted - max(end - self._base * BYTES_PER_NS, 0), 0)
            self._granted -= self._withheld
            self._left[0] -= self._withheld

    def end(self) -> None:
        if self._left is not None:
            self.code_bytes += self._taken_by_code
        self._charged = self._withheld = 0
        self._base = self.now()
        self._left = None

    def interrupt(self) -> None:
        if self._left is not None:
            self._interrupted = self._taken_by_code

    @property
    def _taken_by_code(self) -> int:
        """Bytes that blocks of code have taken from the budget in this turn."""
        assert self._left is not None
        return self._granted - self._left[0] - self._charged

    def pause(self, engine: Engine) -> bool:
        assert self._left is not None
        # At 0 an exit has used up what there was, and no block has been counted that was not executed.
        reached_limit = self._left[0] <= 0 and self._withheld > 0
        left = self._left[0] + self._withheld
        if left < 0 or not (reached_limit or self._interrupted is not None):
            self._left[0] = left
            self._granted, self._withheld = self._granted + self._withheld, 0
            return False
        # The engine may have counted the block at whose start it stopped, and will count it again.
        if self._interrupted is not None:
            again = self._taken_by_code - self._interrupted
        elif self._left[0] == 0:
            again = 0
        else:
            self._left[0] = 0
            engine.run()  # which counts that block once more, and stops there once more
            again = -self._left[0]
        self._granted, self._withheld = self._granted + self._withheld, 0
        self._left = [left + again]
        return True

    def hold(self) -> None:
        assert self._left is not None
        self._give_back()
        self._left = [self._left[0]]

    def halt(self, counted: int | None) -> bool:
        assert self._left is not None
        if counted is None:
            assert self._interrupted is not None, "nobody has interrupted the turn"
            counted = self._taken_by_code - self._interrupted
        elif self._left[0] < 0:
            return False
        self._left[0] += counted
        self.hold()
        return True

    def _give_back(self) -> None:
        assert self._left is not None
        self._granted += self._withheld
        self._left[0] += self._withheld
        self._withheld = 0

    def measure(self, run: Callable[[], None]) -> int | None:
        assert self._left is not None
        charged = self._charged
        counted = self._run_for(run, 0)
        return counted if self._charged == charged else None

    def _run_for(self, run: Callable[[], None], size: int) -> int:
        """Run the engine for blocks of so many bytes; what it has counted, which is then undone."""
        assert self._left is not None
        self._give_back()
        taken = self._taken_by_code
        self._withheld = self._left[0] - size
        self._granted -= self._withheld
        self._left[0] = size
        run()
        self._give_back()
        counted = self._taken_by_code - taken
        self._left[0] += counted
        return counted

    def count(self, size: int) -> bool:
        assert self._left is not None
        self._left[0] -= size
        return self._left[0] < 0

    def step(self, run: Callable[[], None], size: int) -> bool:
        assert self._left is not None
        charged = self._charged
        self._left[0] += size  # what exits see of time is right when the engine has counted the block
        self._run_for(run, size)
        self._left[0] -= size
        return self._charged == charged

    def resume(self, engine: Engine, deadline: int, limit: int | None = None) -> None:
        assert self._left is not None
        assert engine.budget is not None
        engine.budget.left[0] = self._left[0]
        self._left = engine.budget.left
        self._withhold(limit)

    def shorten(self, deadline: int) -> None:
        left = self._left
        if left is not None:
            wanted = max(deadline - self._base, 0) * BYTES_PER_NS
            self._withheld = max(min(self._withheld, wanted - self._granted), 0)
            if wanted < self._granted:
                left[0] -= self._granted - wanted
                self._granted = wanted

    def time_record(self) -> TimeRecord:
        now = self.now()
        return TimeRecord(now, now, True)

    def tsc(self) -> int:
        self.work(TSC_READ_NS)
        return self.now()

    def work(self, ns: int) -> bool:
        view = self._left
        if view is None:
            return False
        charged = ns * BYTES_PER_NS
        self._charged += charged
        view[0] = left = view[0] - charged
        return left + self._withheld < 0

    def charge_exit(self) -> bool:
        """Let an exit take its fixed time; True if the turn is over.

        The block hook sees that by itself, but a guest whose every fetch faults executes no block.
        """
        return self.work(EXIT_NS)

    def advance_to(self, when: int) -> None:
        self._base = max(self._base, when)

    def wall_ns(self) -> int:
        return self._wall

    def agrees(self, paused: bool) -> bool:
        return paused == (self._left is not None)

    def close(self) -> None:
        pass

    def state(self) -> dict[str, Plain]:
        turn: Plain = None
        if self._left is not None:
            assert isinstance(self._left, list), "an engine runs"
            turn = [self._granted, self._left[0], self._charged]
        return {"base": self._base, "wall": self._wall, "code_bytes": self.code_bytes, "turn": turn}

    def restore(self, saved: Mapping[str, Plain]) -> None:
        found = entries(dict(saved), "", dict.fromkeys(("base", "wall", "code_bytes", "turn")))
        self._base, self._wall, self.code_bytes = (
            typed(Nanoseconds, found[name], name) for name in ("base", "wall", "code_bytes")
        )
        self._left, self._granted, self._charged = None, 0, 0
        if found["turn"] is not None:
            self._granted, left, self._charged = typed(tuple[_Bytes, _Bytes, _Bytes], found["turn"], "turn")
            self._left = [left]
            if not 0 <= self._charged <= self._granted - left <= self._granted:
                raise refusal("turn", "has not had what it has spent")


class RealClock(Clock):
    """The host's time; a ticker thread ends a guest's turn.

    The guests' TSC is the host's where that is possible without exits (`cpu/tsc.py`), else system time.
    Guests that were saved with the host's keep it, at the rate that this host has. But no counter is ever set
    back: where this host's has not come as far, reads exit, and the guests' goes on from where it was, at its
    rate.
    """

    deterministic = False
    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "tsc_rate": "said by its frequency",
        "_host": "the host's counter, given",
        "_start": "said as the time that has passed since",
        "_tsc_start": "said as what the TSC is now",
        "_tsc_from": "the same",
        "_ticker": "a thread",
        "_deadline": "means something only while an engine runs",
        "_left": "None while no engine runs",
        "_interrupted": "means something only while an engine runs",
    }

    def __init__(self, host: HostTsc | None = None) -> None:
        self._host = host
        self.traps_tsc = host is None
        self.tsc_rate = TSC_IS_SYSTEM_TIME if host is None else host.rate
        self._start = time.monotonic_ns()
        self._wall = time.time_ns()
        self._tsc_start = self._tsc_from = 0
        """Where reads exit: what the TSC was at which system time."""
        self._ticker = Ticker()
        self._ticker.start()
        self._deadline = 0
        self._left: memoryview | None = None
        self._interrupted = False

    def now(self) -> int:
        return time.monotonic_ns() - self._start

    def begin(self, engine: Engine, deadline: int, limit: int | None = None) -> None:
        self._interrupted = False
        self._deadline = self._start + (deadline if limit is None else min(deadline, limit))
        if engine.async_stop_safe:
            self._ticker.deadline = self._deadline
            self._ticker.running = engine.stop
            return
        # An engine that may not be stopped at any moment stops itself, after about that much code.
        assert engine.budget is not None
        self._left = engine.budget.left
        left = min(max(self._deadline - time.monotonic_ns(), _LEAST_TURN_NS), _LONGEST_TURN_NS)
        self._left[0] = left * BYTES_PER_NS

    def end(self) -> None:
        self._ticker.running = None
        self._left = None

    def interrupt(self) -> None:
        self._interrupted = True

    def pause(self, engine: Engine) -> bool:
        self._ticker.running = None
        return self._interrupted and not self.work(0)

    resume = begin

    def hold(self) -> None:
        self._ticker.running = None

    def halt(self, _counted: int | None) -> bool:
        self.hold()
        return True

    def measure(self, _run: Callable[[], None]) -> int | None:
        return 0  # nobody counts

    def count(self, _size: int) -> bool:
        return False

    def step(self, run: Callable[[], None], _size: int) -> bool:
        self.hold()
        run()
        return False  # nobody knows

    def shorten(self, deadline: int) -> None:
        deadline += self._start
        if deadline < self._deadline:
            self._deadline = self._ticker.deadline = deadline
            self._ticker.expedite()
            left = deadline - time.monotonic_ns()
            stop = self._ticker.running
            if stop is not None and left <= 0:
                stop()
            elif self._left is not None:
                self._left[0] = min(self._left[0], max(left, 0) * BYTES_PER_NS)

    def advance_to(self, when: int) -> None:
        delay = when - self.now()
        if delay > 0:
            time.sleep(delay / 1e9)

    def work(self, ns: int) -> bool:
        return time.monotonic_ns() >= self._deadline

    def time_record(self) -> TimeRecord:
        if self._host is None or self.traps_tsc:
            now = self.now()
            return TimeRecord(self._tsc_at(now), now, self.tsc_rate is TSC_IS_SYSTEM_TIME)
        ticks, moment = self._host.sample()
        return TimeRecord(ticks, moment - self._start, False)

    def tsc(self) -> int:
        return self._tsc_at(self.now()) if self._host is None or self.traps_tsc else self._host.read()

    def _tsc_at(self, now: int) -> int:
        """Where reads exit: the TSC when system time is `now`."""
        if self.tsc_rate is TSC_IS_SYSTEM_TIME:
            return now
        return self._tsc_start + (now - self._tsc_from) * self.tsc_rate.hz // 1_000_000_000 & MASK64

    def wall_ns(self) -> int:
        return self._wall

    def close(self) -> None:
        self._ticker.close()

    def state(self) -> dict[str, Plain]:
        assert self._ticker.running is None, "an engine runs"
        now = self.now()
        trapped = self._host is None or self.traps_tsc
        return {
            "now": now,
            "wall": self._wall,
            "traps_tsc": trapped,
            "tsc": self._tsc_at(now) if self._host is None or trapped else self._host.read(),
            "tsc_hz": self.tsc_rate.hz,
        }

    def restore(self, saved: Mapping[str, Plain]) -> None:
        found = entries(dict(saved), "", self.state())
        now = typed(Nanoseconds, found["now"], "now")
        wall = typed(Nanoseconds, found["wall"], "wall")
        tsc, hz = typed(u64, found["tsc"], "tsc"), typed(_Hertz, found["tsc_hz"], "tsc_hz")
        trapped = typed(bool, found["traps_tsc"], "traps_tsc")
        self._start = time.monotonic_ns() - now
        self._wall = max(wall, time.time_ns() - now)
        self.traps_tsc = trapped or self._host is None or self._host.read() < tsc
        if self._host is not None and not self.traps_tsc:
            self.tsc_rate = self._host.rate
        elif hz == TSC_IS_SYSTEM_TIME.hz and tsc == now:
            self.tsc_rate = TSC_IS_SYSTEM_TIME
        else:
            self.tsc_rate, self._tsc_start, self._tsc_from = rate(hz), tsc, now
