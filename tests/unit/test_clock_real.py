# SPDX-License-Identifier: GPL-2.0-only
"""Real time where the engine may not be stopped at any moment: it must stop itself, exactly and in time."""

import pytest

from pyhv.cpu.tuning.gate import tuning
from pyhv.testing.guest_machine import HEADER, SECOND, START, run

COUNT = """
    mov ebx, 400000
.more:
    lock inc qword ptr [rip + counter]
    push rbx
    pop rax
    dec ebx
    jnz .more
    cmp qword ptr [rip + counter], 400000
    check e, "an instruction ran twice"
    succeed
.data
.balign 8
counter: .quad 0
.text
"""


@pytest.fixture(autouse=True)
def decided() -> None:
    """What is decided once in a process is decided before a test pretends something of its library."""
    tuning()


def test_without_the_switch_turns_are_bounded_by_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhv.cpu.engine.find_no_exit_request", lambda: None)
    done = run(HEADER + START + COUNT, virtual_time=False, timeout_ns=SECOND)
    assert done.passed, (done.outcome, done.output)


def test_without_posted_stops_turns_are_bounded_by_code(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pyhv.cpu.engine.posted_stops", lambda: None)
    done = run(HEADER + START + COUNT, virtual_time=False, timeout_ns=SECOND)
    assert done.passed, (done.outcome, done.output)


def test_with_the_switch() -> None:
    assert run(HEADER + START + COUNT, virtual_time=False, timeout_ns=5 * SECOND).passed
