# SPDX-License-Identifier: GPL-2.0-only
"""A machine and guests as tests get them: `pyhv.Machine` and `pyhv.Guest`, a little less forgiving.

a command that fails           fails the test, with its status and its output
a guest that hangs             fails the test when its time on the wall is up (`Patience`)
Ctrl-C                         comes between two turns, where the machine is whole
what guests print              is streamed under `pytest -s`
"""

import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, ClassVar, Final

from pyhv.api.guest import EXPECT_SECONDS, Guest, GuestFailed, Pattern, Ran
from pyhv.api.machine import Machine
from pyhv.api.wanted import Bootable
from pyhv.cli.messages import printable
from pyhv.until import Outcome, Runnable, Until

__tracebackhide__ = True  # pytest shows the line of the test, and not ours

_LOOK_NS: Final = 100_000_000
"""How long a machine in real time sleeps at most before it looks at the clock and for Ctrl-C."""


class GuestHung(GuestFailed):
    """The time that a test has on the wall is up, and its guests are still busy."""


class GuestUnderTest(Guest):
    """A guest whose commands are to succeed."""

    def run(self, command: str, timeout: float = EXPECT_SECONDS, *, check: bool = True) -> Ran:
        """`Guest.run`; a status other than 0 is GuestFailed too, unless `check` is off."""
        ran = super().run(command, timeout)
        if check and not ran:
            output = "".join(f"\n  {line}" for line in ran.output.splitlines()) or " nothing"
            failed = f"the command {command!r} has failed with status {ran.status}"
            raise GuestFailed(f"{self.name}: {failed}; it printed:{output}")
        return ran


class Patience(Until):
    """How long runs may take on the wall, all that are made until it begins anew; and whether Ctrl-C was
    pressed.

    In virtual time it only looks, between two turns: what guests do does not depend on it.
    """

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds
        """0: for ever."""
        self.begun = time.monotonic()
        self.interrupted = False

    def begin_anew(self) -> None:
        """A test, or a phase of one, begins."""
        self.begun = time.monotonic()

    @property
    def spent(self) -> bool:
        """Whether the time is up."""
        return bool(self.seconds) and time.monotonic() - self.begun >= self.seconds

    def outcome(self, _machine: Runnable) -> Outcome | None:
        """`Until.outcome`."""
        if self.interrupted:
            return Outcome.STOPPED
        return Outcome.TIMEOUT if self.spent else None

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """Ctrl-C is only noted meanwhile, for `outcome`: raised anywhere it could be lost in the emulator."""
        main = threading.current_thread() is threading.main_thread()
        if not main or signal.getsignal(signal.SIGINT) is not signal.default_int_handler:
            yield
            return

        def note(_number: int, _frame: FrameType | None) -> None:
            self.interrupted = True

        signal.signal(signal.SIGINT, note)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.default_int_handler)
            if self.interrupted:
                self.interrupted = False
                raise KeyboardInterrupt


class _OnTheWall(Until):
    """`Patience` for a machine in real time, which would sleep until its next timer."""

    def __init__(self, patience: Patience, now: Callable[[], int]) -> None:
        self._patience = patience
        self._now = now

    def limit(self) -> int | None:
        """`Until.limit`."""
        return self._now() + _LOOK_NS

    def outcome(self, machine: Runnable) -> Outcome | None:
        """`Until.outcome`."""
        return self._patience.outcome(machine)


class MachineUnderTest(Machine):
    """A machine that remembers its guests, for the report of a test that fails."""

    guest_type: ClassVar[type[Guest]] = GuestUnderTest

    def __init__(self, *, patience: Patience, streams: bool = False, **options: Any) -> None:
        super().__init__(**options)
        self.seed: int = options.get("seed", 0)
        self.virtual_time: bool = options.get("virtual_time", False)
        self._patience = patience
        self._streams = streams
        self.had: list[Guest] = []
        """All guests that it has had, in their order."""

    def boot(self, image: Bootable, **options: Any) -> GuestUnderTest:
        """`Machine.boot`."""
        guest = super().boot(image, **options)
        assert isinstance(guest, GuestUnderTest)
        self.had.append(guest)
        if self._streams:
            guest.console.sink = Streamed(guest.name)
        return guest

    def run(
        self,
        until: Until | Pattern | Callable[[], bool] | None = None,
        *,
        seconds: float | None = None,
        exits: int | None = None,
    ) -> Outcome:
        """`Machine.run`; GuestHung if the test's time on the wall is up first."""
        patience = self._patience
        policy: Until = patience if self.virtual_time else _OnTheWall(patience, self.hypervisor.now)
        if until is not None:
            policy = self._policy(until) | policy
        with patience.interruptible():
            outcome = super().run(policy, seconds=seconds, exits=exits)
        if outcome is Outcome.TIMEOUT and patience.spent:
            names = ", ".join(guest.name for guest in self.guests)
            raise GuestHung(f"{names}: still busy after {patience.seconds:g} s on the wall (--pyhv-timeout)")
        return outcome


class Streamed:
    """What a guest prints, line by line on standard output, behind its name. It cannot steer the terminal."""

    def __init__(self, name: str) -> None:
        self._prefix = f"{name}| "
        self._at_start = True

    def output(self, data: bytes) -> None:
        """More of it."""
        for line in data.decode("utf-8", "replace").replace("\r", "").splitlines(keepends=True):
            sys.stdout.write((self._prefix if self._at_start else "") + printable(line, but="\n\t"))
            self._at_start = line.endswith("\n")
        sys.stdout.flush()
