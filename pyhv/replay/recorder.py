# SPDX-License-Identifier: GPL-2.0-only
"""Writes down what a run depends on while it happens: how it begins, and what comes in.

Now and then it adds a checkpoint. How often follows from what one costs, so that they take little of the
time; a replay finds them at their positions, whenever they were taken.
"""

import time
from typing import Final

from pyhv.errors import ReplayError
from pyhv.machine import Machine
from pyhv.outside import Command, Where
from pyhv.replay.commands import CREATE, Scribe, answered
from pyhv.replay.entries import (
    Base,
    Checkpoint,
    Encoder,
    Finish,
    Head,
    Kind,
    Moment,
    Taken,
    head_record,
)
from pyhv.replay.leaves import Leaves, changes, leaves
from pyhv.replay.log import LogWriter
from pyhv.snapshot.whole import configuration
from pyhv.state import Plain
from pyhv.version import VERSION

_SHARE: Final = 80
"""A checkpoint is due when so many times the processor time has passed that the last one took."""
_LEAST_NS: Final = 1_000_000_000
"""Of the host's time between two checkpoints, at least."""


class Recorder:
    """Listens at a machine's door. Not while it runs: `begin` and `end`."""

    def __init__(self, machine: Machine, log: LogWriter, base: Base | None = None) -> None:
        """ReplayError: not now. `base` is the snapshot that the machine is at; its time is counted."""
        start = machine.position
        if start.where is not Where.RESTING or not start.over:
            raise ReplayError("a recording cannot begin in the middle of a turn")
        self._machine = machine
        self.log = log
        self._encoder = Encoder(start)
        self._scribe = Scribe()
        self._moment: Moment | None = None
        self._said: Plain = None
        self._leaves: Leaves = {}
        self.checkpoints = 0
        """How many were taken."""
        self._due = 0
        clock = machine.clock
        head = Head(
            VERSION, configuration(machine), clock.wall_ns(), not clock.deterministic,
            start.turns, start.ticks, start.exits, base,
        )  # fmt: skip
        log.add(head_record(head))
        machine.door.listeners.append(self)

    # -- DoorListener ------------------------------------------------------------------------------------

    def arrives(self, command: Command) -> None:
        """`DoorListener.arrives`."""
        self._moment = self._now()
        self._said = self._scribe.say(command)

    def taken(self, command: Command, answer: object) -> None:
        """`DoorListener.taken`."""
        assert self._moment is not None
        said = answered(command.verb, answer)
        if command.verb == "input" and not said:  # there was no room
            return
        if command.verb == "input":
            assert isinstance(self._said, list)
            self._said[1] = command.arguments["data"][:said]
        if command.verb == CREATE:
            self._due = 0  # a new domain is looked at soon
        self.log.add(self._encoder.taken(Taken(self._moment, command.verb, self._said, said)))

    def at_rest(self) -> None:
        """`DoorListener.at_rest`."""
        if time.monotonic_ns() >= self._due:
            self.check()

    # ----------------------------------------------------------------------------------------------------

    def check(self) -> None:
        """Take a checkpoint."""
        began, processor = time.monotonic_ns(), time.thread_time_ns()
        moment, found = self._now(), leaves(self._machine, self.checkpoints)
        new, gone = changes(self._leaves, found)
        self._leaves = found
        self.log.add(self._encoder.checkpoint(Checkpoint(moment, new, gone)))
        self.checkpoints += 1
        spent = time.thread_time_ns() - processor
        self._due = began + max(spent * _SHARE, _LEAST_NS)

    def keep(self, fingerprint: bytes, compressed: bytes) -> None:
        """Keep an image or a ramdisk that cannot be found again."""
        self.log.add([Kind.CONTENT, fingerprint, compressed])

    def note(self, topic: str, data: Plain) -> None:
        """Something that whoever replays wants to know."""
        self.log.add([Kind.NOTE, topic, data])

    def end(self, outcome: str = "", exit_code: int | None = None) -> None:
        """No more comes in. With an `outcome`, that is where the run ended, and a last checkpoint there."""
        self._machine.door.listeners.remove(self)
        if outcome and self._machine.position.where is Where.RESTING:
            self.check()
            self.log.add(self._encoder.finish(Finish(self._now(), outcome, exit_code)))
        self.log.close()

    def _now(self) -> Moment:
        machine = self._machine
        return Moment(machine.position, machine.door.settled, machine.ending)
