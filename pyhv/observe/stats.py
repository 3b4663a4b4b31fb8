# SPDX-License-Identifier: GPL-2.0-only
"""Where a run's time went and what its guests asked for: counters collected into one value and one table.

The machine counts as it goes; this module only reads it, when the run is over.
"""

from typing import TYPE_CHECKING

from pyhv.clock import VirtualClock
from pyhv.cpu.exits import ExitKind
from pyhv.frozen import frozen
from pyhv.machine import Machine
from pyhv.observe.trace import hypercall_name

if TYPE_CHECKING:
    from rich.table import Table


@frozen
class Statistics:
    """Totals over all domains; times in ns. `exits` and `hypercalls` have no zero entries, largest first."""

    machine_ns: int
    """The guests' time."""
    virtual_time: bool
    real_ns: int
    guest_ns: int
    """Real time in guest code."""
    handler_ns: int
    """Real time in the handlers of exits."""
    code_bytes: int | None
    """Bytes of guest code executed; known only in virtual time."""
    exits: dict[str, int]
    hypercalls: dict[str, int]
    unknown_hypercalls: int
    table_updates: int
    emulated: int
    events: int

    def share(self, ns: int) -> float:
        """`ns` as a part of the real time, 0..1."""
        return min(ns / self.real_ns, 1.0) if self.real_ns > 0 else 0.0


def collect(machine: Machine, real_ns: int) -> Statistics:
    """Read the counters of a machine that is not running but was built to `measure`.

    `real_ns` is how long it ran.
    """
    counts = machine.residents.counts()
    clock = machine.clock
    return Statistics(
        machine_ns=clock.now(),
        virtual_time=clock.deterministic,
        real_ns=real_ns,
        guest_ns=machine.guest_ns,
        handler_ns=machine.stopwatch.spent_ns,
        code_bytes=clock.code_bytes if isinstance(clock, VirtualClock) else None,
        exits=_ranked({kind.name.lower(): counts.exits[kind] for kind in ExitKind}),
        hypercalls=_ranked({hypercall_name(number): count for number, count in enumerate(counts.hypercalls)}),
        unknown_hypercalls=counts.unknown_hypercalls,
        table_updates=counts.table_updates,
        emulated=counts.emulated,
        events=counts.events,
    )


def _ranked(counts: dict[str, int]) -> dict[str, int]:
    found = [(name, count) for name, count in counts.items() if count]
    return dict(sorted(found, key=lambda item: (-item[1], item[0])))


def render(statistics: Statistics) -> "Table":
    """The table for a person."""
    from rich.table import Table

    table = Table(title="pyhv statistics", title_justify="left", show_header=False)
    table.add_column()
    table.add_column(justify="right")
    for number, section in enumerate(_sections(statistics)):
        if number:
            table.add_section()
        for label, value in section:
            table.add_row(label, value)
    return table


Rows = list[tuple[str, str]]


def _sections(s: Statistics) -> list[Rows]:
    times: Rows = [
        (f"machine time ({'virtual' if s.virtual_time else 'real'})", _seconds(s.machine_ns)),
        ("real time", _seconds(s.real_ns)),
        ("  guest code", f"{s.share(s.guest_ns):.1%}"),
        ("  hypervisor: exits", f"{s.share(s.handler_ns):.1%}"),
        ("  hypervisor: scheduling, and idle", f"{s.share(s.real_ns - s.guest_ns - s.handler_ns):.1%}"),
    ]
    if s.code_bytes is not None:
        times.append(("guest code executed", f"{s.code_bytes:,} bytes"))
    exits = [("exits", f"{sum(s.exits.values()):,}"), *_counts(s.exits)]
    hypercalls = [("hypercalls (with those in multicalls)", f"{sum(s.hypercalls.values()):,}")]
    hypercalls += _counts(s.hypercalls)
    if s.unknown_hypercalls:
        hypercalls.append(("  unknown numbers", f"{s.unknown_hypercalls:,}"))
    rest: Rows = [
        ("page-table updates", f"{s.table_updates:,}"),
        ("instructions emulated", f"{s.emulated:,}"),
        ("events delivered", f"{s.events:,}"),
    ]
    return [times, exits, hypercalls, rest]


def _counts(counts: dict[str, int]) -> Rows:
    return [(f"  {name}", f"{count:,}") for name, count in counts.items()]


def _seconds(ns: int) -> str:
    return f"{ns / 1e9:.3f} s"
