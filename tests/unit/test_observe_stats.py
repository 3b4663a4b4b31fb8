# SPDX-License-Identifier: GPL-2.0-only
"""Statistics of a run."""

import io
from types import SimpleNamespace
from typing import Any, cast

from rich.console import Console

from pyhv.clock import VirtualClock
from pyhv.cpu.exits import ExitKind
from pyhv.machine import Machine
from pyhv.observe.stats import Statistics, collect, render
from pyhv.resident import Counts, Residents


def counts(exits: dict[ExitKind, int], calls: dict[int, int], **more: Any) -> Counts:
    made = Counts(**more)
    for kind, count in exits.items():
        made.exits[kind] = count
    for number, count in calls.items():
        made.hypercalls[number] = count
    return made


def statistics() -> Statistics:
    clock = VirtualClock()
    clock.advance_to(2_000_000_000)
    clock.code_bytes = 12345
    residents = Residents(lambda _domid: False)
    residents.past.add(
        counts({ExitKind.HYPERCALL: 5, ExitKind.PAGE_FAULT: 9}, {1: 2, 17: 3}, emulated=4, table_updates=1)
    )
    residents.past.add(
        counts({ExitKind.HYPERCALL: 1}, {1: 1, 23: 3}, unknown_hypercalls=7, events=6, table_updates=2)
    )
    machine = SimpleNamespace(
        clock=clock,
        guest_ns=500,
        stopwatch=SimpleNamespace(spent_ns=300),
        residents=residents,
    )
    return collect(cast(Machine, machine), real_ns=1000)


def test_collect_adds_domains_up_and_ranks() -> None:
    s = statistics()
    assert (s.machine_ns, s.virtual_time, s.real_ns, s.code_bytes) == (2_000_000_000, True, 1000, 12345)
    assert list(s.exits.items()) == [("page_fault", 9), ("hypercall", 6)]
    assert list(s.hypercalls.items()) == [("iret", 3), ("mmu_update", 3), ("xen_version", 3)]
    assert (s.unknown_hypercalls, s.table_updates, s.emulated, s.events) == (7, 3, 4, 6)


def test_shares() -> None:
    s = statistics()
    assert (s.share(s.guest_ns), s.share(s.handler_ns)) == (0.5, 0.3)
    assert s.share(5000) == 1.0


def test_the_table_shows_it_all() -> None:
    text = io.StringIO()
    Console(file=text, width=80).print(render(statistics()))
    lines = [line.split("│") for line in text.getvalue().splitlines() if "│" in line]
    shown = {(line[1].strip(), line[2].strip()) for line in lines}
    for row in [
        ("machine time (virtual)", "2.000 s"),
        ("guest code", "50.0%"),
        ("hypervisor: exits", "30.0%"),
        ("hypervisor: scheduling, and idle", "20.0%"),
        ("guest code executed", "12,345 bytes"),
        ("exits", "15"),
        ("page_fault", "9"),
        ("mmu_update", "3"),
        ("unknown numbers", "7"),
        ("page-table updates", "3"),
        ("events delivered", "6"),
    ]:
        assert row in shown
