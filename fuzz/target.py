# SPDX-License-Identifier: GPL-2.0-only
"""What a fuzz target is: something that performs inputs and complains by raising.

A target may keep state from one input to the next, which is cheaper than building a machine for each. It then
says with `started` when its state was fresh, and whoever drives it joins the inputs since then into one that
can be replayed from nothing.
"""

import signal
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

LONGEST_SECONDS = 4.0
"""CPU time that one step (a hypercall, an exit, a kick, an image) may take."""


class Finding(Exception):
    """An oracle says no: one sentence. `kind` groups findings of one cause."""

    def __init__(self, kind: str, what: str) -> None:
        super().__init__(f"{kind}: {what}")
        self.kind = kind


class TooLong(Exception):
    """A step used more CPU time than any may."""


class Target(ABC):
    """One fuzz target."""

    name = ""
    unit = "hypercalls"
    """What `calls` counts."""
    max_length = 1024
    """Longest input that is worth generating, in bytes."""

    def __init__(self) -> None:
        self.calls = 0
        """Steps performed in all."""
        self.started = True
        """The next input meets fresh state."""
        self.steps: list[int] = []
        """Where the steps of the latest input began, for the minimiser."""

    @abstractmethod
    def run(self, data: bytes) -> bytes:
        """Perform an input on the present state; the bytes that it used. Raises whatever is wrong."""

    @abstractmethod
    def finish(self) -> None:
        """Check what can be checked only at an end, and forget the state."""

    @abstractmethod
    def abandon(self) -> None:
        """Forget the state, which may be broken, without looking at it."""

    def replay(self, data: bytes) -> None:
        """Perform an input from nothing to its end."""
        self.abandon()
        self.run(data)
        self.finish()


def _alarm(_number: int, _frame: FrameType | None) -> None:
    raise TooLong(f"a step took more than {LONGEST_SECONDS:g} s of CPU time")


@contextmanager
def watched() -> Iterator[None]:
    """Within the block, `arm` bounds each step."""
    before = signal.signal(signal.SIGVTALRM, _alarm)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


def arm() -> None:
    """A new step begins. Outside `watched` nobody would take the signal, and it would end the process."""
    if signal.getsignal(signal.SIGVTALRM) is _alarm:
        signal.setitimer(signal.ITIMER_VIRTUAL, LONGEST_SECONDS)
