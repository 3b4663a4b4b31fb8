# SPDX-License-Identifier: GPL-2.0-only
"""A recording's file: usable wherever it ends, and refused in one sentence whatever else is wrong with it."""

import random
import struct
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgpack
import pytest
import zstandard

from pyhv.errors import ReplayError
from pyhv.outside import Position, Where
from pyhv.replay import log
from pyhv.replay.commands import VERBS
from pyhv.replay.entries import (
    Checkpoint,
    Encoder,
    Finish,
    Head,
    Kind,
    Moment,
    RecordedRun,
    Taken,
    head_record,
    understood,
)
from pyhv.replay.log import LogWriter
from pyhv.snapshot.whole import ConfigRecord

pytestmark = pytest.mark.promise("T-16")

START = Position(0, True, 0, 0, Where.RESTING)
HEAD = Head("0.1.0", ConfigRecord(4096, 64, "credit", True, "0"), 0, False, 0, 0, 0, None)
MOMENTS = [
    Moment(START, False),
    Moment(Position(1, False, 1001, 7, Where.RESTING), True),
    Moment(Position(1, False, 1002, 8, Where.INSIDE), False),
    Moment(Position(1, True, 1000, 8, Where.RESTING), True),
    Moment(Position(3, True, 5000, 9, Where.ENDING), True, 2),
]


def records() -> list[Any]:
    encoder = Encoder(START)
    taken = [encoder.taken(Taken(one, "input", [1, b"typed"], 5)) for one in MOMENTS]
    last = Moment(MOMENTS[-1].position._replace(where=Where.RESTING), True)
    checkpoints = [
        encoder.checkpoint(Checkpoint(last, {"clock.base": b"\x01", "gone": b"\x02"}, [])),
        encoder.checkpoint(Checkpoint(last, {"clock.base": b"\x03"}, ["gone"])),
    ]
    return [
        head_record(HEAD), [Kind.CONTENT, b"key", b"content"], [Kind.NOTE, "verdict", [1, "xtf"]], *taken,
        *checkpoints, encoder.finish(Finish(last, "ENDED", 0)),
    ]  # fmt: skip


def written(parts: list[Any]) -> bytes:
    writer = LogWriter(None)
    for part in parts:
        writer.add(part)
    return bytes(writer._kept)


def read(data: bytes) -> RecordedRun:
    return understood(log.parse(data))


def test_what_was_written_is_read(tmp_path: Path) -> None:
    found = read(written(records()))
    assert found.head == HEAD
    assert [entry.moment for entry in found.entries[: len(MOMENTS)]] == MOMENTS
    assert found.entries[0] == Taken(MOMENTS[0], "input", [1, b"typed"], 5)
    first, second = found.entries[-3:-1]
    assert isinstance(first, Checkpoint)
    assert isinstance(second, Checkpoint)
    assert (first.new, first.gone) == ({"clock.base": b"\x01", "gone": b"\x02"}, [])
    assert (second.new, second.gone) == ({"clock.base": b"\x03"}, ["gone"])
    assert found.finish is not None
    assert (found.finish.outcome, found.finish.exit_code) == ("ENDED", 0)
    assert (found.contents, found.notes, found.cut) == (
        {b"key": b"content"},
        [("verdict", [1, "xtf"])],
        False,
    )
    file = tmp_path / "run.rec"
    writer = LogWriter(file)
    for part in records():
        writer.add(part)
    assert file.read_bytes() == written(records()), "each record is in the file when it is added"
    assert writer.size == file.stat().st_size
    writer.save(tmp_path / "copy")
    assert (tmp_path / "copy").read_bytes() == file.read_bytes()
    writer.close()


def test_a_file_may_end_anywhere() -> None:
    """Behind its head it is a recording of what was whole, and says that it has no end."""
    data = written(records())
    whole = read(data)
    first = len(written(records()[:1]))
    for end in range(len(data)):
        if end < first:
            with pytest.raises(ReplayError, match=r"is truncated|no recording"):
                read(data[:end])
            continue
        found = read(data[:end])
        assert found.cut
        assert found.entries == whole.entries[: len(found.entries)]
    assert not whole.cut


def test_every_changed_byte_is_found_or_cuts_the_file() -> None:
    data = written(records())
    whole = read(data)
    for at in range(len(data)):
        damaged = bytearray(data)
        damaged[at] ^= 0x10
        try:
            found = read(bytes(damaged))
        except ReplayError:
            continue
        assert found.cut, "a length was changed so that its record seems to go on"
        assert found.entries == whole.entries[: len(found.entries)]


def headed(magic: bytes = log.MAGIC, version: int = log.VERSION, reserved: int = 0) -> bytes:
    return struct.pack("<8sII", magic, version, reserved) + written(records())[16:]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "is truncated"),
        (b"PYHVSNAP" + bytes(100), "is no recording of pyhv"),
        (headed(version=log.VERSION + 1), "written by a newer pyhv"),
        (headed(version=0), "written by an older pyhv"),
        (headed(reserved=1), "its head is not possible"),
        (headed()[:16], "ends before it says"),
        (headed()[:16] + b"\xff" * 5 + bytes(50), "impossible length"),
        (headed()[:16] + b"\xff\xff\xff\xff\x7f" + bytes(50), "impossible length"),
    ],
)
def test_what_is_no_recording_is_refused(data: bytes, why: str) -> None:
    with pytest.raises(ReplayError, match=why):
        read(data)


def changed(number: int, change: Callable[[Any], Any]) -> list[Any]:
    parts = records()
    parts[number] = change(parts[number])
    return parts


def moment(*saved: object) -> list[Any]:
    return changed(4, lambda record: [record[0], list(saved), *record[2:]])


def packed(new: object, gone: object) -> list[Any]:
    body = zstandard.ZstdCompressor().compress(msgpack.packb([new, gone]))
    return changed(8, lambda record: [*record[:2], body])


def hostile() -> Iterator[Any]:
    """Recordings whose checksums are right."""
    head = records()[0]
    yield "a head", [records()[1]]
    yield "no table", changed(0, lambda record: [Kind.HEAD, 5])
    yield "a head's field", changed(0, lambda record: [Kind.HEAD, {**record[1], "turns": -1}])
    yield "a head's name", changed(0, lambda record: [Kind.HEAD, {**record[1], "more": 1}])
    yield "two heads", [head, head]
    yield "no list", [head, 17]
    yield "an unknown kind", [head, [99]]
    yield "too short", [head, [Kind.COMMAND]]
    yield "a verb", changed(4, lambda record: [record[0], record[1], len(VERBS), *record[3:]])
    yield "a verb before all", changed(4, lambda record: [record[0], record[1], -1, *record[3:]])
    yield "an answer", changed(4, lambda record: [*record[:4], "yes"])
    yield "a creation", changed(4, lambda record: [record[0], record[1], VERBS.index("create"), [1], 1])
    yield "back in time", moment(-1, 0, 0, 0)
    yield "fewer exits", moment(0, 0, 0, -1)
    yield "beyond time", moment(0, 0, 1 << 63, 0)
    yield "before time", moment(0, 0, -5000, 0)
    yield "flags", moment(1, 99, 0, 0)
    yield "no numbers", moment("a", 0, 0, 0)
    yield "too few", moment(1, 0)
    yield "an end", moment(1, 0, 0, 0, 3)
    yield "no end", moment(1, 8, 0, 0)
    yield "an end's domain", moment(1, 8, 0, 0, -3)
    yield "after the end", [*records(), records()[4]]
    yield "no zstd", changed(8, lambda record: [*record[:2], b"nothing"])
    yield "a bomb", changed(8, lambda record: [*record[:2], zstandard.compress(bytes(1 << 27))])
    yield "a path", packed([7, b"\0"], [])
    yield "a leaf", packed(["path", 5], [])
    yield "half a leaf", packed(["path"], [])
    yield "no lists", packed({}, 5)
    yield "a path that is gone", packed([], [99])
    yield "an outcome", changed(-1, lambda record: [record[0], record[1], 5, 0])
    yield "a code", changed(-1, lambda record: [record[0], record[1], "ENDED", 1000])


HOSTILE = dict(hostile())


@pytest.mark.parametrize("what", HOSTILE)
def test_what_nobody_has_recorded_is_refused(what: str) -> None:
    with pytest.raises(ReplayError) as refused:
        read(written(HOSTILE[what]))
    assert "\n" not in str(refused.value)


def test_deep_and_wide_values_are_refused() -> None:
    deep = b"\x91" * 5000 + b"\xc0"
    for payload in (deep, b"\xdd\x7f\xff\xff\xff", b"\xc1", b"\x81\x90\x00"):
        head = struct.pack("<8sII", log.MAGIC, log.VERSION, 0)
        body = log._length(len(payload)) + payload
        with pytest.raises(ReplayError, match="no msgpack"):
            read(head + body + struct.pack("<I", zlib.crc32(head + body)))


def test_random_bytes_are_refused() -> None:
    chance = random.Random(1)
    for _ in range(300):
        data = headed()[:16] + chance.randbytes(chance.randrange(200))
        with pytest.raises(ReplayError):
            read(data)


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ReplayError, match=r"cannot be read \(No such file"):
        log.read(tmp_path / "none")
    with pytest.raises(ReplayError, match="cannot be created"):
        LogWriter(tmp_path / "none" / "run.rec")
