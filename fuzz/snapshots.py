# SPDX-License-Identifier: GPL-2.0-only
"""Target `snapshots`: files of machines that were changed on purpose, with a digest that is right.

Genuine snapshots of pyhv's own guests are taken apart - head, state, table of frames, pages - and an input
says what is changed in them: a value anywhere in the state becomes another one, or that of another place;
words of pages, page tables among them; rows of the table; blocks; bytes of what is packed; the order of
sections. Then the file is put together again; now and then bytes of the whole are changed after that.

Only SnapshotError may come out of reading it. What is not refused runs on for a while, is copied by a
snapshot of its own, and loses its guests; it must be sound all the time.
"""

import hashlib
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import msgpack
import numpy as np
import zstandard

import pyhv
from fuzz.plain import number, replaced, scratch
from fuzz.source import Source
from fuzz.target import Finding, Target, arm
from pyhv.address import PAGE_SIZE
from pyhv.errors import SnapshotError
from pyhv.snapshot import container
from pyhv.snapshot.snapshot import understood

_MEMORY = 4 << 20
_SEEDS = (
    (("hello",), 1, 5),
    (("usermode",), 1, 30),
    (("ping", "pong"), 1, 90),
    (("fifo",), 2, 50),
    (("grants32",), 1, 30),
    (("pages32", "ticker"), 1, 80),
    (("smp32", "grants"), 2, 60),
)
"""Guests, vCPUs of each, and after how many exits they are saved."""
_EXITS, _SECONDS = 50, 0.02
_SECTIONS = (b"HEAD", b"STAT", b"PAGE", b"TABL", b"END\0", b"junk")


@dataclass(frozen=True)
class _Seed:
    """A genuine file, taken apart as far as it can be."""

    head: bytes
    state: bytes
    frames: list[int]
    pages: list[int]
    blocks: list[bytes]


@cache
def _seeds() -> list[_Seed]:
    return [_take(*seed) for seed in _SEEDS]


def _take(names: tuple[str, ...], vcpus: int, exits: int) -> _Seed:
    with TemporaryDirectory() as directory, pyhv.Machine(_MEMORY * len(names), virtual_time=True) as machine:
        for name in names:
            machine.boot(name, memory=_MEMORY, vcpus=vcpus)
        machine.introduce_peers()
        machine.run(exits=exits)
        path = Path(directory) / "seed"
        machine.snapshot().save(path)
        content = container.read(path)
    frames, pages = np.frombuffer(zstandard.decompress(content.table), dtype="<u4").reshape(2, -1).tolist()
    blocks = [zstandard.decompress(block) for block in content.blocks]
    head = {**content.head, "written": "2026-01-01T00:00:00+00:00"}
    return _Seed(msgpack.packb(head), msgpack.packb(content.state), frames, pages, blocks)


class _File:
    """A file that is being changed as an input says."""

    def __init__(self, source: Source) -> None:
        self.source = source
        seed = source.pick(_seeds())
        self.head = msgpack.unpackb(seed.head)
        self.state = msgpack.unpackb(seed.state)
        self.columns = np.array([seed.frames, seed.pages], dtype="<u4")
        self.blocks = [bytearray(block) for block in seed.blocks]
        self.order = [b"HEAD", b"STAT", *[b"PAGE"] * len(self.blocks), b"TABL"]
        self.packed_changes: dict[bytes, int] = {}

    def make(self) -> bytes:
        """The file."""
        source = self.source
        for _ in range(1 + (source.u8() & 3 if source.chance(64) else 0)):
            self._change()
        body = struct.pack("<8sII", container.MAGIC, container.VERSION, 0) + self._sections()
        data = bytearray(body + _section(b"END\0", hashlib.blake2b(body, digest_size=32).digest()))
        if source.chance(12):
            scratch(source, data, 1 + source.below(4))
        if source.chance(6):
            del data[source.number(3) % len(data) :]
        return bytes(data)

    def _change(self) -> None:
        source = self.source
        how = source.u8()
        if how < 150:
            self.state = replaced(source, self.state)
        elif how < 160:
            self.head = replaced(source, self.head)
        elif how < 215 and self.blocks:
            self._change_page()
        elif how < 230 and self.columns.size:
            column, row = source.u8() & 1, source.number(2) % self.columns.shape[1]
            self.columns[column, row] = (int(self.columns[column, row]) + number(source)) & 0xFFFF_FFFF
        elif how < 236 and self.columns.size:
            row = source.number(2) % self.columns.shape[1]
            self.columns = np.delete(self.columns, row, axis=1)
        elif how < 240 and self.blocks:
            self.blocks.insert(
                source.below(len(self.blocks) + 1), self.blocks[source.below(len(self.blocks))]
            )
        elif how < 250:
            self.packed_changes[source.pick((b"HEAD", b"STAT", b"TABL"))] = source.u8() & 3
        else:
            at = source.below(len(self.order))
            if source.chance(128):
                self.order[at] = source.pick(_SECTIONS)
            else:
                self.order.insert(at, self.order.pop())

    def _change_page(self) -> None:
        """A word of a page: some bits, another value, or that of another place."""
        source = self.source
        block = self.blocks[source.below(len(self.blocks))]
        at = (source.number(2) % (len(block) // PAGE_SIZE) * 512 + source.number(2) % 512) * 8
        how = source.u8()
        word = int.from_bytes(block[at : at + 8], "little")
        if how < 100:
            word ^= 1 << source.below(64)
        elif how < 160:
            word = number(source) & (1 << 64) - 1
        elif how < 220:
            word += source.u8() - 128 << 12
        else:
            other = source.number(3) % (len(block) // 8) * 8
            word = int.from_bytes(block[other : other + 8], "little")
        block[at : at + 8] = (word & (1 << 64) - 1).to_bytes(8, "little")

    def _sections(self) -> bytes:
        blocks = iter(self.blocks)
        found = b""
        for name in self.order:
            if name == b"PAGE":
                found += _section(name, zstandard.compress(next(blocks, bytearray(PAGE_SIZE)), 1))
            elif name == b"HEAD":
                found += _section(name, self._scratched(name, msgpack.packb(self.head)))
            elif name == b"STAT":
                found += _section(
                    name, zstandard.compress(self._scratched(name, msgpack.packb(self.state)), 1)
                )
            elif name == b"TABL":
                found += _section(name, zstandard.compress(self._scratched(name, self.columns.tobytes()), 1))
            else:
                found += _section(name, self.source.raw(self.source.u8() & 31))
        return found

    def _scratched(self, name: bytes, data: bytes) -> bytes:
        changed = bytearray(data)
        scratch(self.source, changed, self.packed_changes.get(name, 0))
        return bytes(changed)


def _section(name: bytes, data: bytes) -> bytes:
    return struct.pack("<4sQ", name, len(data)) + data


class Snapshots(Target):
    """Reads a snapshot that was changed, and runs what is not refused."""

    name = "snapshots"
    unit = "snapshots"
    max_length = 128

    def __init__(self) -> None:
        super().__init__()
        self.restored = 0
        """Files that were not refused."""

    def run(self, data: bytes) -> bytes:
        """One file."""
        source = Source(data)
        self.calls += 1
        self.steps = [0]
        self.started = True
        raw = _File(source).make()
        arm()
        try:
            machine = pyhv.Machine.of(understood(container.parse(raw)))
        except SnapshotError:
            return source.used()
        self.restored += 1
        try:
            self._use(machine)
        finally:
            machine.close()
        return source.used()

    def _use(self, machine: pyhv.Machine) -> None:
        """What its owner would do with it."""
        arm()
        machine.run(exits=_EXITS, seconds=_SECONDS)
        _sound(machine, "has run")
        machine.fork().close()
        arm()
        for guest in list(machine.domains.values()):
            guest.destroy()
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
