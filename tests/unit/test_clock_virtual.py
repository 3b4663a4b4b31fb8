# SPDX-License-Identifier: GPL-2.0-only
"""Virtual time: what is granted, what is taken, and a turn that pauses as if it had not."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pyhv.clock import BYTES_PER_NS, EXIT_NS, VirtualClock
from pyhv.errors import StateError


@dataclass
class Budget:
    left: list[int] = field(default_factory=lambda: [0])


@dataclass
class Processor:
    """As much of an engine as a clock knows: blocks take their bytes before they run, or stop it."""

    blocks: list[int] = field(default_factory=list)
    stops: set[int] = field(default_factory=set)
    """Blocks at whose end an exit asks for an interruption."""
    counts_before: bool = True
    """Whether it has counted the block at whose start it sees that it was stopped."""
    on_stop: Callable[[], None] = lambda: None
    at: int = 0
    budget: Budget = field(default_factory=Budget)

    def run(self) -> None:
        stopped = False
        while self.at < len(self.blocks):
            if stopped and not self.counts_before:
                return
            self.budget.left[0] -= self.blocks[self.at]
            if stopped or self.budget.left[0] < 0:
                return
            self.at += 1
            if self.at - 1 in self.stops:
                self.stops.discard(self.at - 1)
                self.on_stop()
                stopped = True


def begun(deadline: int = 1000, limit: int | None = None, **how: Any) -> tuple[VirtualClock, Any]:
    clock, engine = VirtualClock(), Processor(**how)
    engine.on_stop = clock.interrupt
    clock.begin(engine, deadline, limit)  # type: ignore[arg-type]
    return clock, engine


def test_time_is_code() -> None:
    clock, engine = begun(blocks=[40])
    engine.run()
    assert clock.now() == 40 // BYTES_PER_NS
    assert not clock.charge_exit()
    assert clock.now() == 40 // BYTES_PER_NS + EXIT_NS
    clock.end()
    assert clock.code_bytes == 40


_blocks = st.lists(st.integers(1, 90), max_size=60)


@pytest.mark.promise("T-14")
@given(_blocks, st.integers(1, 500), st.sets(st.integers(0, 60)), st.lists(st.integers(1, 60)), st.booleans())
def test_a_turn_that_pauses_goes_on_as_if_it_had_not(
    blocks: list[int], deadline: int, stops: set[int], limits: list[int], counts_before: bool
) -> None:
    """Interrupted in exits, and at limits; and each time in a new process."""
    clock, engine = begun(deadline, blocks=blocks)
    engine.run()
    assert not clock.pause(engine)
    clock.end()

    other, unit = begun(deadline, limit=0, blocks=blocks, stops=stops, counts_before=counts_before)
    unit.run()
    while other.pause(unit):
        now = other.now()
        assert unit.budget.left is not other._left
        saved, renewed = other.state(), VirtualClock()
        renewed.restore(saved)
        other, unit.budget, unit.on_stop = renewed, Budget(), renewed.interrupt
        assert other.now() == now
        other.resume(unit, deadline, now + limits.pop() if limits else None)
        unit.run()
    other.end()
    assert (other.now(), other.code_bytes, unit.at) == (clock.now(), clock.code_bytes, engine.at)


@pytest.mark.promise("T-14")
def test_a_limit_ends_no_turn() -> None:
    clock, engine = begun(1000, limit=10, blocks=[30] * 50)
    engine.run()
    assert clock.pause(engine)
    assert (clock.now(), engine.at) == (7, 1)
    clock.resume(engine, 1000, limit=20)
    engine.run()
    assert clock.pause(engine)
    assert (clock.now(), engine.at) == (15, 2)


def test_a_paused_turn_can_be_shortened_and_ended() -> None:
    clock, engine = begun(limit=10, blocks=[30] * 50)
    engine.run()
    assert clock.pause(engine)
    clock.shorten(clock.now())
    clock.resume(engine, 1000)
    engine.run()
    assert not clock.pause(engine)
    clock.end()
    assert clock.state()["turn"] is None


def test_what_is_kept_back_is_shortened_too() -> None:
    clock, engine = begun(1000, limit=10, blocks=[30] * 50)
    clock.shorten(20)
    engine.run()
    assert clock.pause(engine)
    clock.resume(engine, 1000)
    engine.run()
    assert not clock.pause(engine)
    clock.end()
    assert clock.now() == 22


@pytest.mark.parametrize("turn", [1, [1, 2], [1, 2, "3"], [1 << 70, 0, 0]])
def test_a_turn_that_is_none(turn: Any) -> None:
    with pytest.raises(StateError):
        VirtualClock().restore({**VirtualClock().state(), "turn": turn})
