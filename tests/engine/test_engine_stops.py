# SPDX-License-Identifier: GPL-2.0-only
"""The two exact ways to take the processor back: a byte budget, and stops that repeat nothing."""

import struct
import threading
import time
from collections.abc import Iterator

import pytest
from bare_engine import CODE, DATA, Bare, Exit, at

from pyhv.cpu import clockwork
from pyhv.cpu import vmcb as v

pytestmark = pytest.mark.usefixtures("both_engines")

START = at(CODE)


@pytest.fixture
def bare() -> Iterator[Bare]:
    made = Bare()
    yield made
    made.close()


@pytest.fixture
def counting() -> Iterator[Bare]:
    made = Bare(count_blocks=True)
    yield made
    made.close()


# -- stopping ----------------------------------------------------------------------------------------------


def _loop(rounds: int) -> str:
    return f"mov ecx, {rounds}; again:; lock inc qword ptr [rbx]; push rcx; pop rdx; dec ecx; jnz again; ud2"


def _finish(bare: Bare) -> int:
    """Run until the code's own end; how often the engine came back before."""
    stops = 0
    while not bare.sink.exits:
        stops += 1
        bare.engine.run()
    return stops


@pytest.mark.promise("T-3")
@pytest.mark.parametrize("native", [True, False], ids=["native", "python"])
def test_a_spent_budget_never_repeats_an_instruction(native: bool) -> None:
    bare = Bare(count_blocks=True, native=native)
    assert bare.engine.budget is not None
    assert bare.engine.budget.native is native
    try:
        rounds = 20_000
        bare.write(_loop(rounds))
        bare.q[v.RIP], bare.q[v.RBX], bare.q[v.RSP] = START, at(DATA), at(DATA, 0x800)
        stops = 0
        while not bare.sink.exits:
            bare.engine.budget.left[0] = 70
            bare.engine.run()
            stops += 1
        assert bare.data() == rounds
        assert stops > 2000
        assert bare.q[v.RSP] == at(DATA, 0x800)
    finally:
        bare.close()


@pytest.mark.promise("T-2")
def test_both_budgets_count_the_same_bytes() -> None:
    """The bytes of all blocks entered, the last one included although it is not executed."""
    spent = []
    for native in (True, False):
        bare = Bare(count_blocks=True, native=native)
        assert bare.engine.budget is not None
        bare.write(_loop(500))
        bare.q[v.RIP], bare.q[v.RBX], bare.q[v.RSP] = START, at(DATA), at(DATA, 0x800)
        trail = []
        while not bare.sink.exits:
            bare.engine.budget.left[0] = 997
            bare.engine.run()
            trail.append((bare.engine.budget.left[0], bare.q[v.RIP], bare.q[v.RCX]))
        spent.append(trail)
        bare.close()
    assert spent[0] == spent[1]
    assert len(spent[0]) > 5


@pytest.mark.promise("T-2")
def test_the_budget_counts_bytes_of_executed_code(counting: Bare) -> None:
    assert counting.engine.budget is not None
    code = counting.write("nop; nop; mov eax, 1; ud2")
    counting.q[v.RIP] = START
    counting.engine.budget.left[0] = 1000
    counting.engine.run()
    assert 1000 - counting.engine.budget.left[0] == len(code)


def test_a_budget_that_lasts_does_not_stop(counting: Bare) -> None:
    counting.set_data(0)
    assert counting.run(_loop(1000)).kind == "invalid"
    assert counting.data() == 1000


def _stop_in_the_middle_of_a_block(bare: Bare) -> int:
    """Ask for a stop between two instructions of a block; where in the code the engine stopped."""
    bare.sink.answer = bare.engine.stop
    bare.set_data(0)
    bare.write("cpuid; lock inc qword ptr [rbx]; inc r8; jmp over; over: ud2")
    bare.q[v.RIP], bare.q[v.RBX], bare.q[v.R8] = START, at(DATA), 0
    bare.engine.run()
    return bare.vmcb.rip - START


def test_a_stop_in_the_middle_of_a_block_waits_for_its_end(bare: Bare) -> None:
    assert bare.engine.async_stop_safe
    assert _stop_in_the_middle_of_a_block(bare) == 11
    assert (bare.data(), bare.q[v.R8]) == (1, 1)
    assert bare.go() == Exit("invalid", START + 11)
    assert bare.data() == 1


def test_without_the_switch_a_stop_is_felt_in_the_middle_of_a_block(monkeypatch: pytest.MonkeyPatch) -> None:
    """The reason for the switch: the emulator also looks after memory accesses, and then repeats them."""
    monkeypatch.setattr("pyhv.cpu.engine.find_no_exit_request", lambda: None)
    bare = Bare()
    assert not bare.engine.async_stop_safe
    try:
        assert _stop_in_the_middle_of_a_block(bare) == 2
    finally:
        bare.close()


@pytest.mark.promise("T-3")
def test_asynchronous_stops_never_repeat_an_instruction(bare: Bare) -> None:
    rounds, done = 5_000_000, threading.Event()
    bare.set_data(0)
    bare.write(_loop(rounds))
    bare.q[v.RIP], bare.q[v.RBX], bare.q[v.RSP] = START, at(DATA), at(DATA, 0x800)

    def pester() -> None:
        while not done.wait(0.00002):
            bare.engine.stop()

    thread = threading.Thread(target=pester)
    thread.start()
    try:
        stops = _finish(bare)
    finally:
        done.set()
        thread.join()
    assert bare.data() == rounds
    assert bare.q[v.RSP] == at(DATA, 0x800)
    assert stops > 100


def test_the_ticker_stops_at_its_deadline_and_leaves_a_released_engine_alone(bare: Bare) -> None:
    ticker = clockwork.Ticker()
    ticker.start()
    try:
        bare.write("again: jmp again")
        bare.q[v.RIP] = START
        ticker.deadline = time.monotonic_ns() + 3_000_000
        ticker.running = bare.engine.stop
        began = time.monotonic_ns()
        bare.engine.run()
        assert 2_900_000 < time.monotonic_ns() - began < 2_000_000_000
        ticker.running = None
        assert ticker.running is None
    finally:
        ticker.close()


def test_native_hook_code() -> None:
    assert (clockwork.native_hook_code("x86_64") or b"").startswith(bytes.fromhex("89d0 482901 7808"))
    words = struct.unpack("<7I", clockwork.native_hook_code("aarch64") or b"")
    assert words == (
        0xF9400064,  # ldr x4, [x3]
        0xCB224084,  # sub x4, x4, w2, uxtw
        0xF9000064,  # str x4, [x3]
        0xB7F80044,  # tbnz x4, #63, +8
        0xD65F03C0,  # ret
        0xF9400465,  # ldr x5, [x3, #8]
        0xD61F00A0,  # br x5
    )
    assert clockwork.native_hook_code("riscv64") is None


def test_a_host_without_writable_code_gets_the_python_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_arguments: object, **_options: object) -> None:
        raise PermissionError("W^X")

    monkeypatch.setattr("pyhv.cpu.clockwork.mmap.mmap", refuse)
    assert clockwork.make_budget().native is False


def test_the_budget_is_counted_alike_with_and_without_a_call() -> None:
    """Every budget up to some rounds of a program with all kinds of blocks: same place, same rest."""
    program = (
        "again: inc dword ptr [rbx]; lock inc dword ptr [rbx + 8]; jmp second; second: call third;"
        "loop again; syscall; third: push rcx; cmp ecx, 3; je fourth; rep stosb; fourth: pop rcx; ret"
    )
    seen: dict[bool, list[tuple[int, ...]]] = {}
    for tuned in (True, False):
        bare = Bare(count_blocks=True, tuned=tuned)
        bare.write(program.replace(": ", ":;"))
        assert bare.engine.budget is not None
        left, results = bare.engine.budget.left, seen.setdefault(tuned, [])
        bare.sink.handle = lambda _exit: False
        for budget in range(150):
            bare.set_data(0)
            bare.set_data(0, 1)
            bare.q[v.RIP], bare.q[v.RBX], bare.q[v.RSP], bare.q[v.RCX] = START, at(DATA), at(DATA, 0x800), 5
            bare.q[v.RDI] = at(DATA, 0xA00)
            left[0] = budget
            bare.engine.run()
            results.append((bare.q[v.RIP], left[0], bare.q[v.RCX], bare.data(), bare.data(1)))
        bare.close()
    assert seen[True] == seen[False]
    assert len({result[0] for result in seen[True]}) > 5
