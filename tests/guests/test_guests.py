# SPDX-License-Identifier: GPL-2.0-only
"""Our own kernels, each proving what it teaches, alone and together, in both kinds of time."""

import pytest
from conftest import BenchMaker

from pyhv.abi.numbers import Shutdown
from pyhv.guests.catalogue import BUILTIN
from pyhv.sched import SCHEDULERS
from pyhv.until import Outcome

PAIRS = {"ping": "pong", "pong": "ping", "net": "net"}
VCPUS = {"smp32": 2}


def lines_of(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines()]


@pytest.mark.promise("C-14", "C-16")
@pytest.mark.parametrize("virtual", [True, False], ids=["virtual", "real"])
@pytest.mark.parametrize("guest", [name for name in BUILTIN if name != "pong"])
def test_each_succeeds(bench: BenchMaker, guest: str, virtual: bool) -> None:
    machine = bench(virtual=virtual)
    names = [guest] + ([PAIRS[guest]] if guest in PAIRS else [])
    for name in names:
        machine.add(name, vcpus=VCPUS.get(name, 1))
    assert machine.run() is Outcome.ENDED
    for domain, console in zip(machine.domains, machine.consoles, strict=True):
        assert "SUCCESS" in lines_of(console.text), console.text
        assert "FAILURE" not in console.text
        assert domain.life.reason == Shutdown.POWEROFF


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_fifo_on_two_vcpus(bench: BenchMaker, scheduler: str) -> None:
    machine = bench(scheduler=scheduler)
    machine.add("fifo", vcpus=2)
    assert machine.run() is Outcome.ENDED
    lines = lines_of(machine.consoles[0].text)
    assert lines[-2:] == ["from vcpu to vcpu, 10 rounds", "SUCCESS"]
    assert machine.machine.audit() == []


@pytest.mark.parametrize("scheduler", list(SCHEDULERS))
def test_all_side_by_side(bench: BenchMaker, scheduler: str) -> None:
    machine = bench(scheduler=scheduler)
    for name in ("hello", "ticker", "pages", "usermode", "ping", "pong", "intruder", "pages32", "usermode32"):
        machine.add(name)
    assert machine.run() is Outcome.ENDED
    for console in machine.consoles:
        assert "SUCCESS" in lines_of(console.text), console.text


@pytest.mark.promise("T-1")
def test_the_same_run_twice(bench: BenchMaker) -> None:
    outputs = []
    for _ in range(2):
        machine = bench()
        for name in ("ticker", "usermode", "ping", "pong"):
            machine.add(name)
        assert machine.run() is Outcome.ENDED
        counts = [resident.dispatcher.counts for resident in machine.residents]
        outputs.append(([console.data for console in machine.consoles], counts))
    assert outputs[0] == outputs[1]


def test_intruder_tries_what_it_says(bench: BenchMaker) -> None:
    machine = bench()
    machine.add("intruder")
    machine.run()
    attempts = [line for line in lines_of(machine.consoles[0].text) if line.startswith("refused: ")]
    assert len(set(attempts)) >= 100


DEADLOCKED = """
# sleeper - waits for an event that nobody can send
.include "xen.inc"
.include "kernel.inc"
.text
_start:
    kernel_entry
    print "asleep\\n"
    mov edi, VCPUOP_stop_periodic_timer
    xor esi, esi
    xor edx, edx
    hypercall vcpu_op
.again:
    mov edi, SCHEDOP_poll
    lea rsi, [rip + request]
    hypercall sched_op
    jmp .again
.data
.balign 8
request:
    .quad 0
    .quad 0
    .quad 0
"""


@pytest.mark.promise("T-12")
def test_a_deadlock_is_told(bench: BenchMaker) -> None:
    machine = bench()
    machine.add(DEADLOCKED)
    assert machine.run() is Outcome.DEADLOCK


@pytest.mark.promise("T-12")
def test_the_time_budget_ends(bench: BenchMaker) -> None:
    machine = bench()
    machine.add("ticker")
    assert machine.run(seconds=0.01) is Outcome.TIMEOUT
    assert machine.run() is Outcome.ENDED
