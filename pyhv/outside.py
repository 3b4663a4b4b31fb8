# SPDX-License-Identifier: GPL-2.0-only
"""The door of a machine: what comes in from outside, and at which moment of the run.

In virtual time a run follows from how it began and from what comes in. All that comes in is a call of a
method of `pyhv.machine.Machine` that is marked `@from_outside`; whoever listens at the machine's `Door` hears
of each, with the exact moment, before it takes effect. So the same calls at the same moments make the same
run.

A moment is a `Position`. It is counted, not measured, and the same in every lane and on every engine. A guest
does not notice that its turn is paused, so a moment in the middle of a turn can be come back to.
"""

import enum
import functools
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any, ClassVar, Concatenate, Final, NamedTuple, ParamSpec, Protocol, TypeVar

from pyhv.errors import ConfigError, PyhvError
from pyhv.state import Tally
from pyhv.xenstore.limits import StoreError

_P = ParamSpec("_P")
_R = TypeVar("_R")
_Ticks = Annotated[int, range(1 << 64)]
TICKS_PER_SECOND: Final = 4_000_000_000
"""A tick is the time that a byte of executed code takes (`pyhv.clock.BYTES_PER_NS`)."""


class Where(enum.IntEnum):
    """What the machine is doing at a moment."""

    RESTING = 0
    """No code runs: between two turns, or in one that is paused."""
    INSIDE = 1
    """A guest's exit is shown to observers, and has not been handled yet."""
    ENDING = 2
    """Somebody is told that a domain has ended."""


class Position(NamedTuple):
    """A moment of a run; those of one run are in order."""

    turns: Tally
    """How many turns vCPUs have begun."""
    over: bool
    """Whether the last of them is over."""
    ticks: _Ticks
    """Virtual time, TICKS_PER_SECOND."""
    exits: Tally
    """What guests have made, with those of guests that are gone."""
    where: Where

    def __str__(self) -> str:
        return f"{self.seconds:.9f} s, exit {self.exits}"

    @property
    def seconds(self) -> float:
        """Virtual time in seconds."""
        return self.ticks / TICKS_PER_SECOND


class Command(NamedTuple):
    """A call from outside: the method's name, and its arguments by name."""

    verb: str
    arguments: Mapping[str, Any]


class DoorListener(Protocol):
    """Who hears of everything that comes in."""

    def arrives(self, command: Command) -> None:
        """It is about to take effect. PyhvError: it may not come in."""

    def taken(self, command: Command, answer: object) -> None:
        """It has taken effect; `answer` is what it returned, or the exception that refused it."""

    def at_rest(self) -> None:
        """Between two turns, or in one that is paused, all that is due has been done."""


class Door:
    """One machine's door. What a command does by way of other commands is not told."""

    NOT_STATE: ClassVar[Mapping[str, str]] = {
        "listeners": "whoever listens",
        **dict.fromkeys(("settled", "_busy", "_closed"), "of what comes in next"),
    }

    def __init__(self) -> None:
        self.listeners: list[DoorListener] = []
        self.settled = False
        """Whether all that is due has been done since the last turn, or command."""
        self._busy = False
        self._closed = ""

    def enter(self, command: Command, act: Callable[[], _R]) -> _R:
        """Let a command in."""
        if self._busy:
            return act()
        if self._closed:
            raise ConfigError(
                f"{self._closed} asks for {command.verb!r}, which cannot be recorded there:"
                " ask for it between two turns"
            )
        listeners, self._busy = tuple(self.listeners), True
        answer: object = None
        try:
            for listener in listeners:
                listener.arrives(command)
            try:
                result = act()
                answer = result
                return result
            except (PyhvError, StoreError) as refusal:
                answer = refusal
                raise
            finally:
                for listener in listeners:
                    listener.taken(command, answer)
        finally:
            self._busy = self.settled = False

    @contextmanager
    def closed(self, where: str) -> Iterator[None]:
        """Meanwhile nothing may come in while somebody listens: the moment could not be come back to."""
        self._closed = where
        try:
            yield
        finally:
            self._closed = ""

    def rest(self) -> None:
        """All that is due has been done."""
        self.settled = True
        for listener in tuple(self.listeners):
            listener.at_rest()


class HasDoor(Protocol):
    """What commands are methods of."""

    door: Door

    def came_in(self) -> None:
        """A command has taken effect."""


_M = TypeVar("_M", bound=HasDoor)


def from_outside(method: Callable[Concatenate[_M, _P], _R]) -> Callable[Concatenate[_M, _P], _R]:
    """A method by which something comes in from outside: whoever listens at the door hears of it."""
    signature = inspect.signature(method)

    def entered(machine: _M, /, *args: _P.args, **kwargs: _P.kwargs) -> _R:
        if not machine.door.listeners:
            machine.door.settled = False
            result = method(machine, *args, **kwargs)
            machine.came_in()
            return result
        bound = signature.bind(machine, *args, **kwargs)
        bound.apply_defaults()
        arguments = dict(bound.arguments)
        del arguments["self"]
        command = Command(method.__name__, arguments)
        result = machine.door.enter(command, lambda: method(machine, *args, **kwargs))
        machine.came_in()
        return result

    functools.update_wrapper(entered, method)
    return entered
