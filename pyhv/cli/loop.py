# SPDX-License-Identifier: GPL-2.0-only
"""The machine's loop for a person: it runs, and descriptors of the host are waited for meanwhile.

`pyhv.Machine.run` knows no host. Here the same loop is made of the hypervisor's public parts, with `select`
where there is nothing to run.
"""

import select
from typing import Final, Protocol

import pyhv
from pyhv.until import Outcome, Until

_LOOK_NS: Final = 5_000_000
"""Machine time after which a machine that is busy looks for input again."""


class InputSource(Protocol):
    """Something that brings input."""

    def fileno(self) -> int:
        """What to wait on."""

    def pump(self) -> bool:
        """It is readable: take what there is. False at its end: it is asked no more."""


class Outgoing(Protocol):
    """Output at its reader's pace."""

    @property
    def waits_for(self) -> int | None:
        """The descriptor that must become writable before more can go out; None: nothing waits."""


class Gate(InputSource, Protocol):
    """Somebody who decides whether the guests may run, such as a debugger."""

    @property
    def waits(self) -> bool:
        """Whether nobody may run now."""


def run(
    machine: pyhv.Machine,
    until: Until,
    sources: list[InputSource],
    outgoing: Outgoing | None = None,
    gate: Gate | None = None,
) -> Outcome:
    """Run until `until` says so, or nothing can ever happen again and there is no input to wait for.

    Sources that end are taken off the list. While the `gate` waits, input is taken and nobody runs.
    """
    if gate is not None:
        sources.append(gate)
    next_look, hypervisor = 0, machine.hypervisor
    until.begin(hypervisor)
    try:
        while True:
            hypervisor.settle()
            waits = gate is not None and gate.waits
            outcome = until.outcome(hypervisor)
            if outcome is not None and not (waits and outcome is Outcome.ENDED):
                return outcome
            if waits:
                _take_input(sources, [], None)
                continue
            now, limit = hypervisor.now(), until.limit()
            if sources and now >= next_look:
                next_look = now + _LOOK_NS
                _take_input(sources, [], 0.0)
            if not machine.step(limit) and not _wait(machine, limit, sources, outgoing):
                return Outcome.DEADLOCK
    finally:
        until.end(hypervisor)


def _wait(
    machine: pyhv.Machine, limit: int | None, sources: list[InputSource], outgoing: Outgoing | None
) -> bool:
    """Nobody can run: let time pass, or input come. False if nothing will ever happen again."""
    hypervisor = machine.hypervisor
    due = hypervisor.next_deadline()
    busy = outgoing.waits_for if outgoing is not None else None
    writers = [] if busy is None else [busy]
    if due is None and not sources and not writers:
        return False
    now = hypervisor.now()
    until = min((when for when in (due, limit) if when is not None), default=None)
    if hypervisor.clock.deterministic and until is not None:
        if sources:
            # While somebody is outside, time in which nobody can run passes as the host's does.
            patience = max(until - now, 0) / 1e9 if machine.wires.connected else 0.0
            _take_input(sources, [], patience)
        if hypervisor.door.settled:  # else something has come in, and somebody may run
            hypervisor.advance_to(max(until, now))
    elif sources or writers:
        _take_input(sources, writers, None if until is None else max(until - now, 0) / 1e9)
    elif until is not None:
        hypervisor.advance_to(until)
    return True


def _take_input(sources: list[InputSource], writers: list[int], wait: float | None) -> None:
    """Let readable sources feed their guests; `wait` in seconds, None for as long as it takes.

    If one of `writers` becomes writable, the wait is over.
    """
    ready, _, _ = select.select(sources, writers, [], wait)
    for source in ready:
        if not source.pump():
            sources.remove(source)
