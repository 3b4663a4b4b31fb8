# SPDX-License-Identifier: GPL-2.0-only
"""Translated code is bounded: when its memory is used up, all is dropped, and the guest notices nothing."""

import pytest

from pyhv.cpu import engine, vmcb
from pyhv.cpu.changed import EngineTuning
from pyhv.cpu.trial import DATA, FRAMES, Trial
from pyhv.cpu.tuning.gate import tuning

FIRST, LAST = 20, FRAMES - 4
STEP = b"\xf0\x48\xff\x03\xeb\x00"  # lock inc qword [rbx]; jmp to the next one
STEPS = ((LAST - FIRST) << 12) // len(STEP)
UD2 = b"\x0f\x0b"


def count(tuned: EngineTuning | None, rounds: int) -> tuple[list[int], int]:
    """What a long row of blocks leaves behind each time that it is executed, and the bytes that it took."""
    with Trial(tuned) as trial:
        at = FIRST << 12
        code = STEP * STEPS + UD2
        trial.ram.writable.raw[at : at + len(code)] = code
        counts = []
        before = trial.budget[0] = 1 << 40
        for _ in range(rounds):
            trial.enter(at)
            trial.sink.events.clear()
            trial.engine.run()
            assert trial.sink.events == [("invalid opcode", at + STEPS * len(STEP), 0)]
            assert trial.engine.vmcb.q[vmcb.RBX] == DATA << 12
            counts.append(trial.ram.q[DATA << 9])
        return counts, before - trial.budget[0]


@pytest.mark.promise("L-22")
@pytest.mark.parametrize("tuned", [False, True])
def test_nothing_is_lost_when_translations_are_dropped(monkeypatch: pytest.MonkeyPatch, tuned: bool) -> None:
    tuned_so = tuning() if tuned else None
    plenty = count(tuned_so, 3)
    monkeypatch.setattr(engine, "_TRANSLATIONS", 1 << 20)  # they need several times as much
    assert count(tuned_so, 3) == plenty
    assert plenty[0] == [STEPS, 2 * STEPS, 3 * STEPS]
