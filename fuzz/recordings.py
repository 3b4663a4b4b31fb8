# SPDX-License-Identifier: GPL-2.0-only
"""Target `recordings`: recordings that were changed on purpose, with checksums that are right.

Genuine recordings of pyhv's own guests, to which everything has come in that can, are taken apart into their
records, and an input says what is changed in them: a value anywhere in a record, or in a checkpoint, becomes
another one; records change places, come twice, or are gone. Then the file is put together again; now and then
bytes of the whole are changed after that.

Only ReplayError and Diverged may come out of reading and replaying it. Whatever came in, the machine must be
sound, and lose its guests.
"""

from contextlib import suppress
from dataclasses import replace
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import msgpack
import zstandard

import pyhv
from fuzz.plain import replaced, scratch
from fuzz.source import Source
from fuzz.target import Finding, Target, arm
from pyhv.errors import Diverged, ReplayError
from pyhv.replay import log
from pyhv.replay.entries import Kind, understood

_MEMORY = 4 << 20
_SEEDS = (("usermode",), ("ping", "pong"), ("pages32",), ("ticker", "hello32"))
_EXITS, _SECONDS = 200, 0.05
_MOST_PAGES = 1 << 14
"""Machines that are larger are somebody's own business, and take long."""
_PACKED: dict[int, int] = {Kind.CHECKPOINT: 2}
"""Where in a record something is packed."""


@cache
def _seeds() -> list[bytes]:
    """The records of each, packed."""
    with TemporaryDirectory() as directory:
        return [_take(names, Path(directory) / "seed") for names in _SEEDS]


def _take(names: tuple[str, ...], path: Path) -> bytes:
    """Let in what can come in, at various moments."""
    with pyhv.Machine(_MEMORY * len(names), virtual_time=True, record=path) as machine:
        guests = [machine.boot(name, memory=_MEMORY) for name in names]
        hypervisor = machine.hypervisor
        machine.introduce_peers()
        machine.run(exits=7)
        first = hypervisor.residents[guests[0].domid].domain
        guests[0].pause()
        machine.run(seconds=0.000_01)
        guests[0].unpause()
        hypervisor.adjust(first, weight=512, cap=50)
        hypervisor.write_store("/tool/seed", b"sown")
        hypervisor.poke(0, bytes(8))
        guests[0].send("typed\n")
        hypervisor.stop_at(first, [first.vcpus[0].context.registers.rip], lambda _address: None)
        machine.run(exits=3)
        hypervisor.set_registers(first, 0, replace(first.vcpus[0].context.registers))
        guests[-1].shutdown()
        machine.run(seconds=0.01)
    return bytes(msgpack.packb([_opened(record) for record in log.read(path).records]))


def _opened(record: list[Any]) -> list[Any]:
    """With what is packed in it unpacked."""
    at = _PACKED.get(record[0])
    if at is None:
        return record
    return [*record[:at], msgpack.unpackb(zstandard.decompress(record[at])), *record[at + 1 :]]


def _closed(record: Any) -> Any:
    """The other way round, as far as it can be."""
    if not isinstance(record, list) or not record or not isinstance(record[0], int):
        return record
    at = _PACKED.get(record[0])
    if at is None or at >= len(record):
        return record
    return [*record[:at], zstandard.compress(msgpack.packb(record[at]), 1), *record[at + 1 :]]


def _made(source: Source, path: Path) -> None:
    """Write a recording that was changed as an input says."""
    records: list[Any] = msgpack.unpackb(source.pick(_seeds()))
    for _ in range(1 + (source.u8() & 3 if source.chance(64) else 0)):
        at = source.u8() % len(records)
        how = source.u8()
        if how < 200:
            records[at] = replaced(source, records[at])
        elif how < 220:
            records.insert(source.u8() % (len(records) + 1), records[at])
        elif how < 240:
            records.insert(source.u8() % len(records), records.pop(at))
        elif len(records) > 1:
            del records[at]
    writer = log.LogWriter(path)
    for record in records:
        writer.add(_closed(record))
    writer.close()
    data = bytearray(path.read_bytes())
    if source.chance(12):
        scratch(source, data, 1 + source.below(4))
    if source.chance(12):
        del data[source.number(3) % len(data) :]
    path.write_bytes(data)


class Recordings(Target):
    """Replays a recording that was changed, as far as it goes."""

    name = "recordings"
    unit = "recordings"
    max_length = 128

    def __init__(self) -> None:
        super().__init__()
        self.replayed = 0
        """Files that were not refused."""

    def run(self, data: bytes) -> bytes:
        """One file."""
        source = Source(data)
        self.calls += 1
        self.steps = [0]
        self.started = True
        with TemporaryDirectory() as directory:
            path = Path(directory) / "changed"
            _made(source, path)
            verify = bool(source.u8() & 1)
            with suppress(ReplayError, Diverged):
                self._replay(path, verify=verify)
        return source.used()

    def _replay(self, path: Path, *, verify: bool) -> None:
        arm()
        if understood(log.read(path)).head.config.memory_pages > _MOST_PAGES:
            return
        with pyhv.Replay(path, verify=verify) as replay:
            self.replayed += 1
            machine = replay.machine
            try:
                arm()
                here = machine.hypervisor.position
                replay.run(to=here.seconds + _SECONDS, to_exit=here.exits + _EXITS)
            finally:
                _sound(machine, "has run")
                arm()
                machine.hypervisor.settle()
                for resident in list(machine.hypervisor.residents):
                    machine.hypervisor.destroy(resident.domain)
                machine.hypervisor.settle()
                _sound(machine, "has lost its guests")

    def finish(self) -> None:
        """Nothing is kept."""

    def abandon(self) -> None:
        """Nothing is kept."""
        self.started = True


def _sound(machine: pyhv.Machine, when: str) -> None:
    damage = machine.audit()
    if damage:
        raise Finding("audit", f"a machine that {when}: {damage[0]}")
