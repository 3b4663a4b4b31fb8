# SPDX-License-Identifier: GPL-2.0-only
"""What a recording consists of, and its records in the log's file.

    0  [0, head]                          how the machine began
    1  [1, fingerprint, content]          an image or ramdisk that cannot be found again, compressed
    2  [2, moment, verb, arguments, answer]
    3  [3, moment, leaves]                what is new or other, and what is gone; compressed
    4  [4, moment, outcome, exit code]    the last one, if the run came to an end
    5  [5, topic, data]                   what whoever records wants to find again

A moment is [turns, flags, ticks, exits] and, while somebody is told of a domain's end, its domid: all but the
flags as differences to the moment before. A checkpoint's paths are written out where they come first and are
numbers from then on.
"""

import enum
from collections.abc import Iterator
from dataclasses import field
from typing import Annotated, Any, Final

import msgpack
import zstandard

from pyhv.abi.layout import u8, u16, u32
from pyhv.errors import ReplayError, SnapshotError, StateError
from pyhv.frozen import frozen
from pyhv.outside import Position, Where
from pyhv.replay.commands import VERBS, checked
from pyhv.replay.leaves import Leaves
from pyhv.replay.log import LogContent, unpack
from pyhv.snapshot.compression import expand
from pyhv.snapshot.whole import ConfigRecord
from pyhv.state import Nanoseconds, Plain, construct, items, refusal, state, typed


class Kind(enum.IntEnum):
    """Of a record."""

    HEAD = 0
    CONTENT = 1
    COMMAND = 2
    CHECKPOINT = 3
    END = 4
    NOTE = 5


_OVER, _SETTLED, _WHERE = 1, 2, 4
_Step = Annotated[int, range(-(1 << 63), 1 << 63)]
_MOST_LEAVES: Final = 1 << 20
_MOST_SAID: Final = 1 << 26
"""Bytes of a checkpoint, decompressed."""


@frozen
class Base:
    """The snapshot from which the recorded machine began; its file lies beside the recording's."""

    file: str
    digest: bytes


@frozen
class Head:
    """How a recorded machine began; `config` is what `snapshot/whole.py` says."""

    pyhv: str
    config: ConfigRecord
    wall_ns: Nanoseconds
    """The date at machine time 0."""
    paced: bool
    """It kept pace with the host's clock."""
    turns: u32
    ticks: Annotated[int, range(1 << 64)]
    exits: Annotated[int, range(1 << 62)]
    base: Base | None


@frozen
class Moment:
    """A position, and what was going on besides."""

    position: Position
    settled: bool
    """Whether all that was due had been done."""
    ending: int | None = None
    """The domain of whose end somebody was being told."""

    def goes_with(self, other: "Moment") -> bool:
        """Whether both are moments of one exit, or of one domain's end."""
        mine, others = self.position, other.position
        same = mine.where is others.where is not Where.RESTING and self.ending == other.ending
        return same and (mine.turns, mine.exits) == (others.turns, others.exits)


@frozen
class Taken:
    """A command that came in."""

    moment: Moment
    verb: str
    arguments: Plain
    answer: Plain


@frozen
class Checkpoint:
    """The machine's state, leaf by leaf: what has changed since the one before."""

    moment: Moment
    new: Leaves = field(repr=False)
    gone: list[str] = field(repr=False)


@frozen
class Finish:
    """The run came to an end."""

    moment: Moment
    outcome: str
    exit_code: u8 | None


Entry = Taken | Checkpoint | Finish


# -- writing -----------------------------------------------------------------------------------------------


class Encoder:
    """Entries as records, one after the other."""

    def __init__(self, start: Position) -> None:
        self._last = start
        self._paths: dict[str, int] = {}

    def taken(self, entry: Taken) -> list[Any]:
        """A command's record."""
        verb = VERBS.index(entry.verb)
        return [Kind.COMMAND, self._moment(entry.moment), verb, entry.arguments, entry.answer]

    def checkpoint(self, entry: Checkpoint) -> list[Any]:
        """A checkpoint's record."""
        moment = self._moment(entry.moment)
        said = [part for path, leaf in entry.new.items() for part in (self._path(path), leaf)]
        packed = msgpack.packb([said, [self._path(path) for path in entry.gone]])
        return [Kind.CHECKPOINT, moment, zstandard.ZstdCompressor().compress(packed)]

    def finish(self, entry: Finish) -> list[Any]:
        """The end's record."""
        return [Kind.END, self._moment(entry.moment), entry.outcome, entry.exit_code]

    def _moment(self, moment: Moment) -> list[Any]:
        now, last = moment.position, self._last
        flags = now.over * _OVER | moment.settled * _SETTLED | now.where * _WHERE
        self._last = now
        said = [now.turns - last.turns, flags, now.ticks - last.ticks, now.exits - last.exits]
        return said if moment.ending is None else [*said, moment.ending]

    def _path(self, path: str) -> int | str:
        number = self._paths.get(path)
        if number is None:
            self._paths[path] = len(self._paths)
            return path
        return number


def head_record(head: Head) -> list[Any]:
    """The first record."""
    return [Kind.HEAD, state(head)]


# -- reading -----------------------------------------------------------------------------------------------


@frozen
class RecordedRun:
    """A recording that was read and understood."""

    head: Head
    entries: list[Entry]
    contents: dict[bytes, bytes]
    """Images and ramdisks that are kept in it, compressed, by fingerprint."""
    notes: list[tuple[str, Plain]]
    cut: bool
    """It has no end: the process that recorded was ended, or the file was cut off."""

    @property
    def start(self) -> Position:
        """Where it begins."""
        return Position(self.head.turns, True, self.head.ticks, self.head.exits, Where.RESTING)

    @property
    def finish(self) -> Finish | None:
        """How it ended."""
        last = self.entries[-1] if self.entries else None
        return last if isinstance(last, Finish) else None


def understood(content: LogContent) -> RecordedRun:
    """What a file's records stand for. ReplayError, without naming a file."""
    try:
        return _EntryDecoder(content).recording
    except StateError as error:
        why = f"{error.where or 'its root'} {error.why}"
        raise ReplayError(f"is no recording that pyhv writes: {why}") from error
    except SnapshotError as error:
        raise ReplayError(str(error)) from error


class _EntryDecoder:
    def __init__(self, content: LogContent) -> None:
        first = _parts(content.records[0], "the head")
        if len(first) != 2 or first[0] != Kind.HEAD:
            raise refusal("the first record", "is not a head")
        self._head = construct(Head, first[1], "head")
        self._contents: dict[bytes, bytes] = {}
        self._notes: list[tuple[str, Plain]] = []
        self._last = Position(self._head.turns, True, self._head.ticks, self._head.exits, Where.RESTING)
        self._paths: list[str] = []
        found = [entry for record in content.records[1:] for entry in self._entries(record)]
        if any(isinstance(entry, Finish) for entry in found[:-1]):
            raise refusal("a record", "comes after the end")
        ends = bool(found) and isinstance(found[-1], Finish)
        self.recording = RecordedRun(self._head, found, self._contents, self._notes, cut=not ends)

    def _entries(self, record: Any) -> Iterator[Entry]:
        parts = _parts(record, "a record")
        match parts:
            case [Kind.CONTENT, bytes(fingerprint), bytes(content)]:
                self._contents[fingerprint] = content
            case [Kind.COMMAND, moment, int(verb), arguments, answer] if 0 <= verb < len(VERBS):
                if not (answer is None or isinstance(answer, int)):
                    raise refusal("an answer", "is not a number")
                checked(VERBS[verb], arguments)
                yield Taken(self._moment(moment), VERBS[verb], arguments, answer)
            case [Kind.CHECKPOINT, moment, bytes(packed)]:
                yield self._checkpoint(self._moment(moment), packed)
            case [Kind.END, moment, str(outcome), code]:
                yield Finish(self._moment(moment), outcome, None if code is None else typed(u8, code, "code"))
            case [Kind.NOTE, str(topic), data]:
                self._notes.append((topic, data))
            case _:
                raise refusal("a record", "is of no kind that there is")

    def _moment(self, saved: Any) -> Moment:
        parts = items(saved, "a moment")
        if len(parts) not in (4, 5):
            raise refusal("a moment", "is not a list of 4 or 5")
        turns, flags, ticks, exits = (typed(_Step, part, "a moment") for part in parts[:4])
        last = self._last
        if not 0 <= flags < 3 * _WHERE:
            raise refusal("a moment", f"has the flags {flags}, which do not exist")
        where = Where(flags // _WHERE)
        now = Position(last.turns + turns, bool(flags & _OVER), last.ticks + ticks, last.exits + exits, where)
        if turns < 0 or exits < 0 or not 0 <= now.ticks < 1 << 64 or (now.turns, now.over) < last[:2]:
            raise refusal("a moment", "lies before the one before it, or after the end of all time")
        ending = typed(u16, parts[4], "a moment") if len(parts) == 5 else None
        if (ending is not None) != (where is Where.ENDING):
            raise refusal("a moment", "is that of a domain's end, or not")
        self._last = now
        return Moment(now, bool(flags & _SETTLED), ending)

    def _checkpoint(self, moment: Moment, packed: bytes) -> Checkpoint:
        said = unpack(expand(packed, "a checkpoint", at_most=_MOST_SAID))
        new, gone = (items(part, "a checkpoint") for part in items(said, "a checkpoint", 2))
        return Checkpoint(moment, self._new(new), [self._path(path) for path in gone])

    def _new(self, saved: list[Any]) -> Leaves:
        if len(saved) % 2:
            raise refusal("a checkpoint", "has a leaf without a path")
        pairs = zip(saved[::2], saved[1::2], strict=True)
        return {self._path(path): typed(bytes, leaf, "a checkpoint's leaf") for path, leaf in pairs}

    def _path(self, saved: Any) -> str:
        if isinstance(saved, str) and len(self._paths) < _MOST_LEAVES:
            self._paths.append(saved)
            return saved
        if isinstance(saved, int) and 0 <= saved < len(self._paths):
            return self._paths[saved]
        raise refusal("a checkpoint", "has a path that was not written out")


def _parts(record: Any, what: str) -> list[Any]:
    found: list[Any] = items(record, what)
    return found
