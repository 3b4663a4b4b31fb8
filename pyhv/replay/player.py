# SPDX-License-Identifier: GPL-2.0-only
"""Has a machine go through a recorded run: what came in comes in again, and checkpoints are compared."""

from pyhv.errors import Diverged, ReplayError, StateError
from pyhv.machine import Machine
from pyhv.replay.commands import Cast, perform
from pyhv.replay.driver import Driver
from pyhv.replay.entries import Checkpoint, Entry, Finish, RecordedRun, Taken
from pyhv.replay.leaves import Leaves, difference, leaves
from pyhv.until import Outcome, Until


class Player:
    """One replay. `machine` is as the recorded one was when it began; `cast` has what a log cannot hold."""

    def __init__(self, machine: Machine, recording: RecordedRun, cast: Cast, *, verify: bool) -> None:
        self.machine = machine
        self.recording = recording
        self.verify = verify
        self.driver = Driver(machine)
        self._cast = cast
        self._at = 0
        self._leaves: Leaves = {}
        self._checkpoints = 0
        self.compared = 0
        """Checkpoints that were the same."""
        machine.pcpu.turns = recording.head.turns

    @property
    def next_entry(self) -> Entry | None:
        """What is to come in next; None: that was all."""
        entries = self.recording.entries
        return entries[self._at] if self._at < len(entries) else None

    @property
    def finished(self) -> Finish | None:
        """How the recorded run ended, once that moment has come."""
        return self.recording.finish if self.next_entry is None else None

    def begin(self) -> None:
        """Let in what came in before anything ran. Diverged, ReplayError."""
        while isinstance(self.next_entry, Taken) and self.driver.has_reached(self.next_entry.moment):
            self._do(self.next_entry)

    def run(self, until: Until) -> Outcome | None:
        """Run until `until` says so, or (None) to the end of the recording. Diverged, ReplayError."""
        machine, driver = self.machine, self.driver
        until.begin(machine)
        try:
            while True:
                entry = self.next_entry
                if entry is None:
                    return None
                if driver.has_reached(entry.moment):
                    self._do(entry)
                    continue
                outcome = until.outcome(machine)
                if outcome is not None:
                    return outcome
                if not driver.advance(entry.moment, until.limit()):
                    raise Diverged(
                        f"at {machine.position} nothing will ever happen again, and the recorded run went on"
                        f" to {entry.moment.position}"
                    )
        finally:
            until.end(machine)

    def _do(self, entry: Entry) -> None:
        self._at += 1
        if isinstance(entry, Taken):
            self.driver.perform(entry.moment, lambda: self._take_all(entry))
        elif isinstance(entry, Checkpoint):
            self._count(entry)
            if self.verify:
                self.driver.perform(entry.moment, lambda: self._compare(entry))
            self._checkpoints += 1

    def _take_all(self, entry: Taken) -> None:
        """A command, and those that came in inside the same exit, or at the same domain's end."""
        self._take(entry)
        following = self.next_entry
        while isinstance(following, Taken) and following.moment.goes_with(entry.moment):
            self._at += 1
            self._take(following)
            following = self.next_entry

    def _take(self, entry: Taken) -> None:
        try:
            answer = perform(self.machine, entry.verb, entry.arguments, self._cast)
        except StateError as error:
            raise ReplayError(f"the recording cannot be replayed: {error.where} {error.why}") from error
        if answer != entry.answer:
            raise Diverged(
                f"at {entry.moment.position} {entry.verb!r} is answered with {_told(answer)},"
                f" and was with {_told(entry.answer)}"
            )

    def _count(self, entry: Checkpoint) -> None:
        self._leaves.update(entry.new)
        for path in entry.gone:
            self._leaves.pop(path, None)

    def _compare(self, entry: Checkpoint) -> None:
        position = self.machine.position
        found = leaves(self.machine, self._checkpoints)
        wrong = difference(self._leaves, found)
        if position != entry.moment.position and not wrong:
            wrong = f"the moment is {position}, and in the recording {entry.moment.position}"
        if wrong:
            raise Diverged(f"the run differs at checkpoint {self._checkpoints + 1}, at {position}: {wrong}")
        self.compared += 1


def _told(answer: object) -> str:
    return "nothing" if answer is None else "a refusal" if answer is False else str(answer)
