# SPDX-License-Identifier: GPL-2.0-only
"""Has a machine go through a run again: what came in comes in again, and checkpoints are compared."""

from collections.abc import Sequence

from pyhv.errors import Diverged, ReplayError, StateError
from pyhv.machine import Machine
from pyhv.replay.commands import Cast, perform
from pyhv.replay.driver import Driver
from pyhv.replay.entries import Checkpoint, Entry, Taken
from pyhv.replay.leaves import Leaves, difference, leaves
from pyhv.until import Outcome, Until


class Player:
    """One pass through `entries`. `machine` is as it was before the first; `cast` has what they lack."""

    def __init__(
        self, machine: Machine, entries: Sequence[Entry], cast: Cast, *, verify: bool = False
    ) -> None:
        self.machine = machine
        self.entries = entries
        self.acting = False
        """Whether what comes in right now comes in again."""
        self.verify = verify
        self.driver = Driver(machine)
        self._cast = cast
        self.at = 0
        """How many have had their moment."""
        self._leaves: Leaves = {}
        self._checkpoints = 0
        self.compared = 0
        """Checkpoints that were the same."""

    @property
    def next_entry(self) -> Entry | None:
        """What is to come in next; None: that was all."""
        return self.entries[self.at] if self.at < len(self.entries) else None

    def begin(self) -> None:
        """Let in what came in before anything ran. Diverged, ReplayError."""
        while isinstance(self.next_entry, Taken) and self.driver.has_reached(self.next_entry.moment):
            self._do(self.next_entry)

    def run(self, until: Until, *, beyond: bool = False) -> Outcome | None:
        """Run until `until` says so, or (None) all entries have had their moment. Diverged, ReplayError.

        `beyond`: then the machine runs on by itself. STOPPED: a debugger says so.
        """
        until.begin(self.machine)
        try:
            while True:
                entry = self._do_what_is_reached()
                if entry is None and not beyond:
                    return None
                if entry is None:
                    self.machine.settle()
                outcome = until.outcome(self.machine)
                if outcome is not None:
                    return outcome
                if self.driver.stopped:  # and whoever asks for this run has not let it go on
                    return Outcome.STOPPED
                if not self.advance(until.limit()):
                    return Outcome.DEADLOCK
        finally:
            until.end(self.machine)

    def advance(self, limit: int | None = None) -> bool:
        """What is to come in now, and one turn, or idle time. False: nothing will ever happen again."""
        entry = self._do_what_is_reached()
        if entry is not None:
            self.machine.settle()  # by which a turn of the dead is over
            if self.next_entry is not entry or self.driver.has_reached(entry.moment):
                return True
        goes_on = self.driver.advance(None if entry is None else entry.moment, limit)
        if not goes_on and entry is not None:
            raise Diverged(
                f"at {self.machine.position} nothing will ever happen again, and the recorded run went on"
                f" to {entry.moment.position}"
            )
        return goes_on

    def ended(self, domid: int) -> None:
        """Somebody is told of a domain's end: what came in just then comes in now."""
        entry = self.next_entry
        if isinstance(entry, Taken) and entry.moment.ending == domid:
            self.at += 1
            self._take_all(entry)

    def end(self) -> None:
        """Something else has come in: what is left never will."""
        self.entries = self.entries[: self.at]

    def _do_what_is_reached(self) -> Entry | None:
        """Let in what is to come in now; what comes next, or cannot yet since a debugger says so."""
        while (entry := self.next_entry) is not None and self.driver.has_reached(entry.moment):
            if not self._do(entry):
                break
        return entry

    def _do(self, entry: Entry) -> bool:
        self.at += 1
        if isinstance(entry, Taken):
            if not self.driver.perform(entry.moment, lambda: self._take_all(entry)):
                self.at -= 1
                return False
        elif isinstance(entry, Checkpoint):
            self._count(entry)
            if self.verify:
                self.driver.perform(entry.moment, lambda: self._compare(entry))
            self._checkpoints += 1
        return True

    def _take_all(self, entry: Taken) -> None:
        """A command, and those that came in inside the same exit, or at the same domain's end."""
        self._take(entry)
        following = self.next_entry
        while isinstance(following, Taken) and following.moment.goes_with(entry.moment):
            self.at += 1
            self._take(following)
            following = self.next_entry

    def _take(self, entry: Taken) -> None:
        self.acting = True
        try:
            answer = perform(self.machine, entry.verb, entry.arguments, self._cast)
        except StateError as error:
            raise ReplayError(f"the recording cannot be replayed: {error.where} {error.why}") from error
        finally:
            self.acting = False
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
