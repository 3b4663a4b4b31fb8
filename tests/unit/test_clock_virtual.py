# SPDX-License-Identifier: GPL-2.0-only
"""Virtual time: what is granted, what is taken, and a turn that pauses as if it had not."""

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
    """As much of an engine as a clock knows: blocks take their bytes before they run."""

    budget: Budget = field(default_factory=Budget)

    def run(self, size: int) -> None:
        self.budget.left[0] -= size


def begun(deadline: int = 1000) -> tuple[VirtualClock, Any]:
    clock, engine = VirtualClock(), Processor()
    clock.begin(engine, deadline)  # type: ignore[arg-type]
    return clock, engine


def test_time_is_code() -> None:
    clock, engine = begun()
    engine.run(40)
    assert clock.now() == 40 // BYTES_PER_NS
    assert not clock.charge_exit()
    assert clock.now() == 40 // BYTES_PER_NS + EXIT_NS
    clock.end()
    assert clock.code_bytes == 40


@given(
    st.lists(st.tuples(st.sampled_from(["block", "exit", "shorten"]), st.integers(1, 90)), max_size=30),
    st.integers(0, 30),
    st.booleans(),
    st.booleans(),
)
def test_a_turn_that_pauses_goes_on_as_if_it_had_not(
    steps: list[tuple[str, int]], at: int, counted: bool, rebuilt: bool
) -> None:
    """Whether the engine stopped before it counted the next block, or after; and in a new process too."""

    def play(pauses: bool) -> list[tuple[int, int]]:
        clock, engine = begun()
        seen = []
        for number, (step, size) in enumerate(steps):
            if step == "block":
                engine.run(size)
            elif step == "exit":
                clock.work(size)
            else:
                clock.shorten(clock.now() + size)
            seen.append((clock.now(), engine.budget.left[0]))
            if pauses and number == at:
                clock.interrupt()
                clock.work(0)
                if counted:
                    engine.run(33)
                clock.pause()
                assert clock.now() == seen[-1][0]
                if rebuilt:
                    saved, clock, engine = clock.state(), VirtualClock(), Processor()
                    clock.restore(saved)
                clock.resume(engine, 1000)
        clock.end()
        return [*seen, (clock.now(), clock.code_bytes)]

    assert play(pauses=True) == play(pauses=False)


def test_a_paused_turn_can_be_shortened_and_ended() -> None:
    clock, engine = begun()
    engine.run(40)
    clock.interrupt()
    clock.pause()
    clock.shorten(clock.now())
    clock.resume(engine, 1000)
    assert engine.budget.left[0] <= 0
    clock.interrupt()
    clock.pause()
    clock.end()
    assert clock.now() == 10
    assert clock.state()["turn"] is None


@pytest.mark.parametrize("turn", [1, [1, 2], [1, 2, "3"], [1 << 70, 0, 0]])
def test_a_turn_that_is_none(turn: Any) -> None:
    with pytest.raises(StateError):
        VirtualClock().restore({**VirtualClock().state(), "turn": turn})
