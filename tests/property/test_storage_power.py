# SPDX-License-Identifier: GPL-2.0-only
"""The host loses its power: of what was written since the last sync anything may be on the disk, or nothing.

A `HostFile` that keeps a record of all writes and syncs stands in for the disk. After random use, each moment
of the record is a moment at which the power may go: the file is then what had been synced, and any of the
later sectors. Such an image must be sound, but for leaks, and hold what a flush had acknowledged by then.
"""

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pyhv.storage.hostfile import HostFile
from pyhv.storage.images import check
from pyhv.storage.open import open_image
from pyhv.storage.qcow2.create import create
from pyhv.storage.qcow2.disk import Qcow2Disk, read_header

DEEP = bool(os.environ.get("PYHV_DEEP"))
SECTOR = 512
SIZE = 40 << 10
BLOCK = 1024
Event = tuple[str, Any]

_block = st.integers(0, SIZE // BLOCK - 1)
_acts = st.lists(
    st.one_of(
        st.tuples(st.just("write"), st.tuples(_block, st.integers(1, 9))),
        st.tuples(st.just("write"), st.tuples(_block, st.integers(1, 9))),
        st.tuples(st.just("discard"), st.tuples(_block, st.integers(1, 9))),
        st.tuples(st.just("flush"), st.none()),
    ),
    min_size=8,
    max_size=40,
)


FULL = [("write", (block, 8)) for block in range(0, SIZE // BLOCK, 8)]
"""Needs more than one refcount block, where these are small."""


class Recorder(HostFile):
    """Tells `events` what happens to the file."""

    events: list[Event]

    def write(self, offset: int, data: bytes | memoryview) -> None:
        self.events.append(("write", (offset, bytes(data))))
        super().write(offset, data)

    def extend(self, size: int) -> None:
        self.events.append(("extend", size))
        super().extend(size)

    def punch(self, offset: int, length: int) -> bool:
        raise AssertionError("an image has no holes punched into it")

    def sync(self) -> None:
        self.events.append(("sync", None))


def record(path: Path, acts: list[tuple[str, Any]]) -> tuple[bytes, list[Event]]:
    """Use an image; what it was before, and what happened to its file, with what was acknowledged."""
    before = path.read_bytes()
    file = Recorder(os.open(path, os.O_RDWR), str(path), writable=True)
    events: list[Event] = []
    file.events = events
    disk = Qcow2Disk(file, read_header(file), None)
    for number, (act, how) in enumerate(acts, 1):
        if act == "flush":
            disk.flush()
            events.append(("acknowledged", None))
            continue
        block, count = how
        start, end = block * BLOCK, min((block + count) * BLOCK, SIZE)
        if act == "write":
            events.append(("asked", (start, bytes([number]) * (end - start))))
            disk.write(start, bytes([number]) * (end - start))
        else:
            events.append(("asked", (start, bytes(end - start))))
            disk.discard(start, end - start)
    disk.close()
    events.append(("acknowledged", None))
    return before, events


class Host:
    """The disk of a host: what is on it for sure, and what may be."""

    def __init__(self, before: bytes) -> None:
        self._sure = bytearray(before)
        self._unsure: list[Event] = []
        self._asked: list[tuple[int, bytes]] = []
        self.may_hold = [{0} for _ in range(SIZE // BLOCK)]
        """Of each of the guest's blocks: what its bytes may be."""

    def happens(self, event: Event) -> None:
        name, how = event
        if name == "sync":
            for unsure in self._unsure:
                _apply(self._sure, unsure)
            self._unsure.clear()
        elif name == "asked":
            self._asked.append(how)
            for block, byte in _blocks(*how):
                self.may_hold[block].add(byte)
        elif name == "acknowledged":
            for asked in self._asked:
                for block, byte in _blocks(*asked):
                    if byte:  # a discard may change nothing
                        self.may_hold[block] = {byte}
                    else:
                        self.may_hold[block].add(0)
            self._asked.clear()
        else:
            self._unsure.append(event)

    def without_power(self, chance: random.Random) -> bytes:
        """What may be found: each sector of what was not synced is there or not, also of one write."""
        found = bytearray(self._sure)
        keep = chance.choice((0.0, 0.1, 0.5, 0.9, 1.0))
        for event in self._sectors():
            if chance.random() < keep:
                _apply(found, event)
        return bytes(found)

    def without_one(self) -> Iterator[bytes]:
        """What may be found: all but what has become of a single sector."""
        events = list(self._sectors())
        for lost in sorted({how[0] // SECTOR for name, how in events if name == "write"}):
            found = bytearray(self._sure)
            for event in events:
                if event[0] == "extend" or event[1][0] // SECTOR != lost:
                    _apply(found, event)
            yield bytes(found)

    def _sectors(self) -> Iterator[Event]:
        for name, how in self._unsure:
            if name == "extend":
                yield name, how
                continue
            offset, data = how
            at = 0
            while at < len(data):
                span = min(SECTOR - (offset + at) % SECTOR, len(data) - at)
                yield "write", (offset + at, data[at : at + span])
                at += span


def _blocks(start: int, data: bytes) -> list[tuple[int, int]]:
    return [((start + at) // BLOCK, data[at]) for at in range(0, len(data), BLOCK)]


def _apply(disk: bytearray, event: Event) -> None:
    name, how = event
    if name == "extend":
        disk.extend(bytes(max(how - len(disk), 0)))
        return
    offset, data = how
    disk.extend(bytes(max(offset + len(data) - len(disk), 0)))
    disk[offset : offset + len(data)] = data


def verify(path: Path, image: bytes, may_hold: list[set[int]], when: str) -> None:
    path.write_bytes(image)
    found = check(path, "qcow2")
    assert found.sound, f"{when}: {found.told}"
    with open_image(path, "qcow2", writable=True) as disk:
        content = disk.read(0, SIZE)
        for block, allowed in enumerate(may_hold):
            held = set(content[block * BLOCK : (block + 1) * BLOCK])
            assert held <= allowed, f"{when}: block {block} has {held}, not {allowed}"
        disk.write(0, b"x" * SIZE)  # it can be gone on with
    assert check(path, "qcow2").sound


@pytest.mark.promise("B-3")
@pytest.mark.parametrize(("bits", "refcount_order"), [(9, 6), (9, 4), (12, 4)])
def test_an_image_is_sound_whenever_the_power_goes(bits: int, refcount_order: int, tmp_path: Path) -> None:
    @settings(max_examples=60 if DEEP else 6, deadline=None)
    @given(acts=_acts, seed=st.integers(0, 1 << 30))
    def run(acts: list[tuple[str, Any]], seed: int) -> None:
        path = tmp_path / "disk"
        path.unlink(missing_ok=True)
        file = HostFile.create(path)
        create(file, SIZE, cluster_bits=bits, refcount_order=refcount_order)
        file.close()
        chance = random.Random(seed)
        before, events = record(path, acts)
        host = Host(before)
        critical = [
            at for at in range(len(events) - 1) if events[at + 1][0] == "sync"
        ]  # the most is unsure there
        moments = set(chance.sample(critical, min(len(critical), 20)) + chance.sample(range(len(events)), 5))
        for moment, event in enumerate(events):
            host.happens(event)
            if moment in moments:
                verify(
                    path,
                    host.without_power(chance),
                    host.may_hold,
                    f"after {moment} of {len(events)} {event[0]}",
                )

    run()


@pytest.mark.promise("B-3")
def test_no_single_sector_is_missed_when_refcount_blocks_are_added(tmp_path: Path) -> None:
    path = tmp_path / "disk"
    file = HostFile.create(path)
    create(file, SIZE, cluster_bits=9, refcount_order=6)
    file.close()
    before, events = record(path, FULL)
    host = Host(before)
    for moment, event in enumerate(events):
        if event[0] == "sync":
            for image in host.without_one():
                verify(path, image, host.may_hold, f"before {moment} of {len(events)}")
        host.happens(event)
