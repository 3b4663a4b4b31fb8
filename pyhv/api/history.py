# SPDX-License-Identifier: GPL-2.0-only
"""Going back: a machine that remembers its run, by moments that are kept as it runs and by what came in.

    moments    *  *  *    *     *         *              *  now      the older, the fewer
    came in      ^   ^           ^     ^      ^        ^

To be at an earlier moment again, the machine is put back to the last one kept before it, and goes through the
run from there: what came in comes in again. Guests notice nothing; nor do listeners and sinks hear again what
they have heard.

Whoever lets a machine run on from an earlier moment has the same run again, until he lets something else in:
from then on it is another run, and what came in later is forgotten.
"""

import bisect
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Final, Literal, Protocol

from pyhv.api.console import Console
from pyhv.api.looking_back import SeesStores, Written
from pyhv.devices.console_log import ConsoleSink
from pyhv.domain.domain import Domain
from pyhv.errors import ConfigError, ReplayError
from pyhv.frozen import frozen
from pyhv.loader.image import KernelImage, SymbolTable
from pyhv.machine import Machine
from pyhv.outside import Command, Position, Where
from pyhv.replay.commands import CREATE, CreateRecord, Scribe, answered
from pyhv.replay.entries import Finish, Moment, Taken
from pyhv.replay.player import Player
from pyhv.resident import Ended
from pyhv.until import Exits, Forever, Outcome, Runnable, Until

if TYPE_CHECKING:
    from pyhv.api.guest import Guest
    from pyhv.cpu.exits import ExitRecord
    from pyhv.snapshot.snapshot import Snapshot

Granularity = Literal["exit", "turn", "instruction"]
MOST_KEPT: Final = 48
"""Moments."""
USUAL_MEGABYTES: Final = 512
_LEAST_NS: Final = 200_000_000
"""Of the host's time between two moments, at least."""
_MOST_NS: Final = 500_000_000
_SHARE: Final = 12
"""A moment is kept when so many times the time has passed that the last one took, within these bounds."""
_LAST: Final = "moment"


class Rememberer(Protocol):
    """What a history needs of its machine (`pyhv.Machine`)."""

    hypervisor: Machine

    def snapshot(self) -> "Snapshot":
        """The machine as it is now."""

    def put_back(self, snapshot: "Snapshot") -> None:
        """Be what it was."""

    def take_in(self, domain: Domain, console: Console, named: SymbolTable | None) -> "Guest":
        """A handle for a domain that was just created."""

    def has_ended(self, ended: Ended) -> None:
        """A guest has ended."""

    def take_sinks(self) -> "dict[Guest, ConsoleSink | None]":
        """Have guests print to their consoles alone."""

    def give_sinks(self, sinks: "dict[Guest, ConsoleSink | None]") -> None:
        """Have them print there again."""


@frozen
class _Kept:
    """A moment that the machine can be put back to; `index` entries had come in before."""

    moment: Moment
    snapshot: "Snapshot"
    index: int


class History:
    """A machine's memory of its run, from when it begins."""

    def __init__(self, machine: "Rememberer", megabytes: int = USUAL_MEGABYTES) -> None:
        """ConfigError: time is not counted, so that no moment can be come back to."""
        if not machine.hypervisor.clock.counted:
            raise ConfigError("Only a machine whose time is counted can go back: make it with virtual time.")
        self._machine = machine
        self._hypervisor = machine.hypervisor
        self._most_bytes = megabytes << 20
        self._entries: list[Taken] = []
        self._scribe = Scribe()
        self._cast = _Recreation(machine)
        self._kept: list[_Kept] = []
        self._player: Player | None = None
        """Goes through what had come in later, while the machine is at an earlier moment."""
        self._busy = False
        self._arriving: tuple[Moment, object] | None = None
        self._due = 0
        self._hypervisor.door.listeners.append(self)
        self.keep()

    # -- remembering: DoorListener -----------------------------------------------------------------------

    def arrives(self, command: Command) -> None:
        """`DoorListener.arrives`."""
        if not self._replays:
            self._arriving = self._now(), self._scribe.say(command)
            if command.verb == CREATE:
                self._cast.remember(command)

    def taken(self, command: Command, answer: object) -> None:
        """`DoorListener.taken`: what would have come in later is forgotten."""
        if self._replays or self._arriving is None:
            return
        self._forget_future()
        (moment, said), self._arriving = self._arriving, None
        self._entries.append(Taken(moment, command.verb, said, answered(command.verb, answer)))  # type: ignore[arg-type]

    def at_rest(self) -> None:
        """`DoorListener.at_rest`: a moment is kept now and then, and none twice."""
        if self._busy or time.monotonic_ns() < self._due:
            return
        if self._hypervisor.position > self._kept[-1].moment.position:
            self.keep()

    def keep(self) -> None:
        """Keep this moment."""
        began = time.monotonic_ns()
        self._insert()
        now = time.monotonic_ns()
        self._due = now + min(max((now - began) * _SHARE, _LEAST_NS), _MOST_NS)

    def _insert(self) -> None:
        kept = _Kept(self._now(), self._machine.snapshot(), self._applied)
        bisect.insort(self._kept, kept, key=lambda one: one.moment.position)
        self._thin()

    def close(self) -> None:
        """Remember no more."""
        self._hypervisor.door.listeners.remove(self)
        self._kept.clear()
        self._entries.clear()

    @property
    def _replays(self) -> bool:
        """Whether what comes in has come in before."""
        return self._busy or (self._player is not None and self._player.acting)

    @property
    def beginning(self) -> Position:
        """The earliest moment that can be come back to."""
        return self._kept[0].moment.position

    @property
    def kept(self) -> list[Position]:
        """The moments that are kept."""
        return [kept.moment.position for kept in self._kept]

    def _now(self) -> Moment:
        machine = self._hypervisor
        return Moment(machine.position, machine.door.settled, machine.ending)

    def _thin(self) -> None:
        """Keep fewer of the older moments: the gap between two grows with their age."""
        while len(self._kept) > 3 and (len(self._kept) > MOST_KEPT or self._bytes() > self._most_bytes):
            ticks = [kept.moment.position.ticks for kept in self._kept]
            gaps = [
                (ticks[at + 1] - ticks[at - 1]) / (ticks[-1] - ticks[at - 1] + 1)
                for at in range(1, len(ticks) - 1)
            ]
            del self._kept[1 + gaps.index(min(gaps))]

    def _bytes(self) -> int:
        """What the host provides for the memory of all moments."""
        layers = {layer.fd for kept in self._kept for layer in kept.snapshot.image.layers}
        return sum(os.fstat(fd).st_blocks * 512 for fd in layers)

    # -- going back --------------------------------------------------------------------------------------

    def step_back(self, granularity: Literal["exit", "turn"] = "exit") -> Position:
        """Be where the last exit, or turn, before this moment was over. ReplayError: it is forgotten."""
        now, index = self._resting(), self._applied
        return self._after_turn(now) if granularity == "turn" else self._after_exit(now, index)

    def go_to(self, target: Position) -> Position:
        """Be at a moment of the run up to now again. ReplayError: it is none, or not remembered."""
        now = self._resting()
        if not self.beginning <= target <= now or target.where is not Where.RESTING:
            raise ReplayError(f"{target} is no moment between {self.beginning} and {now}")
        self._replay(self._before(target), target)
        return self._hypervisor.position

    def near(self, target: Position) -> Position:
        """Be at the start of the last block of code of a turn that does not begin later than `target`.

        Or behind an exit that takes longer. ReplayError: it is not remembered.
        """
        if target < self.beginning:
            raise ReplayError(f"{target} is before {self.beginning}, and nothing is remembered of that")
        self._replay(self._before(target), target, near=True)
        return self._hypervisor.position

    def end_of_turn(self, number: int) -> Position:
        """Be where a turn up to this moment was over, or at this moment. ReplayError: it is not
        remembered."""
        now = self._resting()
        earlier = [kept for kept in self._kept if kept.moment.position.turns < number]
        if not earlier:
            raise ReplayError(f"nothing is remembered of what was before {self.beginning}")
        self._replay(earlier[-1], now, _TurnOver(number))
        return self._hypervisor.position

    def run_back(self, holds: Callable[[], bool]) -> Position:
        """Be at the last moment before this one at which `holds` is true, asked when an exit is over.

        ReplayError: there is none that is remembered; then the machine is where it was.
        """
        found = self.search(lambda now: _EachExit(holds, now))
        if found is None:
            raise ReplayError(f"at no moment since {self.beginning} was that so")
        return found

    def to_first_guest(self) -> Position:
        """Be where the history begins, with the guests that were created there. ReplayError."""
        first = self._kept[0]
        index = sum(entry.moment.position <= first.moment.position for entry in self._entries)
        self._replay(first, first.moment.position, index=max(index, first.index))
        return self._hypervisor.position

    def search(self, ask: "Callable[[Position], Search]") -> Position | None:
        """Be at the last moment before this one that a search finds; None: where it was, and none is found.

        `ask` makes a search, given this moment.
        """
        now, index = self._resting(), self._applied
        ends = [*self._kept[1:], None]
        for kept, following in reversed(list(zip(self._kept, ends, strict=True))):
            if kept.moment.position >= now:
                continue
            end = now if following is None else min(following.moment.position, now)
            asking = ask(now)
            self._replay(kept, end, asking)
            asking.outcome(self._hypervisor)  # an exit may be over just there
            if asking.last is not None:
                self._replay(self._before(asking.last), asking.last)
                return asking.last
        self._replay(self._before(now), now, index=index)
        return None

    def who_wrote(self, domid: int, va: int, length: int) -> Written | None:
        """Who stored last to some bytes of a domain before this moment; None: nobody that is remembered.

        The machine is where it was, afterwards.
        """
        now, index = self._resting(), self._applied
        self._approach(now, index)
        last: Written | None = None
        for start in reversed([kept for kept in self._kept if kept.moment.position < now]):
            end = min([now, *(one for one in self.kept if one > start.moment.position)])
            seen = SeesStores(self._hypervisor, domid, va, length, end)
            self._replay(start, end, seen, index if end == now else None)
            last = seen.last
            if last is not None:
                break
        self._replay(self._before(now), now, index=index)
        return last

    def _approach(self, now: Position, index: int) -> None:
        """Keep the moment at which the turn before this one was over: whoever goes back a step goes on."""
        start = self._before(now)
        if start.moment.position.turns + 1 < now.turns:
            self._replay(start, now, _TurnOver(now.turns - 1), index)
            self._insert()

    def _after_exit(self, now: Position, index: int) -> Position:
        self._approach(now, index)
        for exits in (now.exits, now.exits - 1):
            earlier = [kept for kept in self._kept if kept.moment.position.exits < exits]
            if not earlier:
                break
            start = earlier[-1]
            self._replay(start, now, Exits(exits - start.moment.position.exits), index)
            if self._hypervisor.position < now:
                return self._hypervisor.position
        return self._to_the_beginning(now)

    def _after_turn(self, now: Position) -> Position:
        turns = now.turns - now.over
        earlier = [kept for kept in self._kept if kept.moment.position.turns < turns]
        if not earlier:
            return self._to_the_beginning(now)
        self._replay(earlier[-1], now, _TurnOver(turns))
        return self._hypervisor.position

    def _to_the_beginning(self, now: Position) -> Position:
        first = self._kept[0]
        if first.moment.position >= now:
            raise ReplayError(f"nothing is remembered of what was before {first.moment.position}")
        self._replay(first, first.moment.position, index=first.index)
        return first.moment.position

    def _resting(self) -> Position:
        now = self._hypervisor.position
        if now.where is not Where.RESTING:
            raise ReplayError("a machine that runs cannot go back: ask for it between two turns")
        return now

    def _before(self, target: Position) -> _Kept:
        return [kept for kept in self._kept if kept.moment.position <= target][-1]

    def _replay(
        self,
        kept: _Kept,
        target: Position,
        until: Until | None = None,
        index: int | None = None,
        *,
        near: bool = False,
    ) -> None:
        """Go through the run from a moment kept to `target`, or to where `until` says.

        `index`: how many entries have come in at `target`; None: those before it.
        """
        if index is None:
            index = max(kept.index, sum(entry.moment.position < target for entry in self._entries))
        self._player = None
        with self._quietly():
            self._machine.put_back(kept.snapshot)
            self._hypervisor.pcpu.turns = kept.moment.position.turns
            self._hypervisor.door.settled = kept.moment.settled
            end = Finish(Moment(target, False), _LAST, None)
            player = Player(self._hypervisor, [*self._entries[kept.index : index], end], self._cast)
            self._cast.player = player
            player.driver.near = near
            player.driver.drifts = isinstance(until, SeesStores)
            player.run(until or Forever())
            done = kept.index + min(player.at, index - kept.index)
        self._hypervisor.keep_pace(done == len(self._entries))
        if done < len(self._entries):
            self._player = Player(self._hypervisor, self._entries[done:], self._cast)
            self._cast.player = self._player

    @property
    def _applied(self) -> int:
        """How many entries have come in up to this moment."""
        player = self.future
        return len(self._entries) - (0 if player is None else len(player.entries) - player.at)

    # -- and forward again -------------------------------------------------------------------------------

    @property
    def future(self) -> Player | None:
        """Who lets in what had come in later, while the machine is at an earlier moment."""
        if self._player is not None and self._player.next_entry is None:
            self._player = None
            self._hypervisor.keep_pace(True)
        return self._player

    def run_on(self, until: Until) -> Outcome:
        """Run the machine, and let in what had come in."""
        player = self.future
        assert player is not None
        outcome = player.run(until, beyond=True)
        assert outcome is not None
        return outcome

    def advance(self, limit: int | None) -> bool:
        """One turn, as `Machine.step`, with what had come in before it."""
        player = self.future
        assert player is not None
        return player.advance(limit)

    def _forget_future(self) -> None:
        """Something else has come in: it is another run from now on."""
        del self._entries[self._applied :]
        if self._player is not None:
            self._player.end()
            self._player = None
            self._hypervisor.keep_pace(True)
        now = self._hypervisor.position
        self._kept = [kept for kept in self._kept if kept.moment.position <= now]

    @contextmanager
    def _quietly(self) -> Iterator[None]:
        """Nobody hears again what he has heard."""
        observers, sinks = self._hypervisor.take_observers(), self._machine.take_sinks()
        debugger = self._hypervisor.put_debugger(None)
        networks = self._hypervisor.dom0.networks
        self._busy = networks.silent = True
        self._hypervisor.keep_pace(False)
        try:
            yield
        finally:
            self._busy = networks.silent = False
            self._hypervisor.put_debugger(debugger)
            self._hypervisor.give_observers(observers)
            self._machine.give_sinks(sinks)


class _Recreation:
    """Images and handles of guests that are created again."""

    player: Player

    def __init__(self, machine: "Rememberer") -> None:
        self._machine = machine
        self._images: dict[bytes, tuple[KernelImage, bytes]] = {}
        self._scribe = Scribe()
        self._console = Console()
        self._image: KernelImage | None = None

    def remember(self, command: Command) -> None:
        """A domain is about to be created."""
        image, ramdisk = command.arguments["image"], command.arguments["ramdisk"]
        record = self._scribe.say(command)
        assert isinstance(record, dict)
        key = record["image"], record["ramdisk"]
        assert isinstance(key[0], bytes)
        assert isinstance(key[1], bytes)
        self._images[key[0] + key[1]] = image, ramdisk

    def find(self, record: CreateRecord) -> tuple[KernelImage, bytes]:
        """`Cast.find`."""
        self._image, ramdisk = self._images[record.image + record.ramdisk]
        return self._image, ramdisk

    def console(self, _record: CreateRecord) -> Console:
        """`Cast.console`."""
        self._console = Console()
        return self._console

    def created(self, domain: Domain, _record: CreateRecord) -> None:
        """`Cast.created`."""
        assert self._image is not None
        self._machine.take_in(domain, self._console, self._image.symbol_table)

    def ended(self, ended: Ended) -> None:
        """`Cast.ended`."""
        self._machine.has_ended(ended)
        self.player.ended(ended.domid)


class Search(Until):
    """Looks on while the run is gone through again."""

    last: Position | None = None
    """The last moment that was found."""


class _EachExit(Search):
    """Never stops; remembers the last moment before `end`, with an exit over, at which something held."""

    def __init__(self, holds: Callable[[], bool], end: Position) -> None:
        self._holds = holds
        self._end = end
        self._machine: Runnable | None = None
        self._over = False

    def begin(self, machine: Runnable) -> None:
        """`Until.begin`."""
        self._machine = machine
        machine.observe(self)

    def end(self, machine: Runnable) -> None:
        """`Until.end`."""
        machine.unobserve(self)

    def exit(self, _record: "ExitRecord") -> None:
        """`Observer`: come back when it is over."""
        assert self._machine is not None
        self._over = True
        self._machine.interrupt()

    def outcome(self, machine: Runnable) -> Outcome | None:
        """`Until.outcome`."""
        if self._over:
            self._over = False
            here = machine.position
            if here < self._end and self._holds():
                self.last = here
        return None


class _TurnOver(Until):
    """Until a turn is over."""

    def __init__(self, turns: int) -> None:
        self._turns = turns

    def outcome(self, machine: Runnable) -> Outcome | None:
        """`Until.outcome`."""
        here = machine.position
        return Outcome.STOPPED if here.over and here.turns >= self._turns else None
