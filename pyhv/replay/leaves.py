# SPDX-License-Identifier: GPL-2.0-only
"""A checkpoint: what a machine's state is at a moment, leaf by leaf, so short that many fit into a log.

The state that `snapshot/whole.py` says is a tree. Each leaf - a register, a port, a node of the store, a
column of the frame table - is kept as it is if it is short, else as a digest; and of the leaves only those
are written that have changed since the checkpoint before. So a replay that is not the same can say which
field of which object differs, and often what it was.

Memory is not in that tree. Of it a checkpoint has the digest of one slice, the next one in turn.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Final

import msgpack
import numpy as np

from pyhv.address import PAGE_SHIFT
from pyhv.machine import Machine
from pyhv.snapshot.whole import say
from pyhv.state import Plain

SLICES: Final = 64
"""Memory is looked at in so many pieces, one at each checkpoint."""
_LONGEST: Final = 24
"""Bytes of a leaf that is kept as it is."""
_DIGEST: Final = 8
_HASHED: Final = b"\xc1"
"""What no msgpack begins with."""
_NOT_COMPARED: Final = frozenset({"broken", "wall"})
"""Fields that may differ: what was wrong with a ring at the last attempt to type into it, of which those that
took nothing are not in a log; and the date, which a log keeps once."""

Leaves = dict[str, bytes]
"""By path, from the outermost object on, with dots between."""


def leaves(machine: Machine, number: int) -> Leaves:
    """Checkpoint `number` of a machine that does not run."""
    found = {path: _short(value) for path, value in _walk(say(machine), "")}
    first, count = _slice(machine.ram.frames, number)
    found["memory"] = b"slice %d: " % (number % SLICES) + _memory(machine, first, count)
    return found


def changes(before: Mapping[str, bytes], now: Mapping[str, bytes]) -> tuple[Leaves, list[str]]:
    """What is new or other now, and what is gone."""
    new = {path: leaf for path, leaf in now.items() if before.get(path) != leaf}
    return new, [path for path in before if path not in now]


def difference(recorded: Mapping[str, bytes], found: Mapping[str, bytes]) -> str:
    """In a sentence what differs first; empty: nothing does."""
    for path in [*recorded, *(path for path in found if path not in recorded)]:
        one, other = recorded.get(path), found.get(path)
        if one != other:
            return f"{path} {_told(other)}, and in the recording {_told(one)}"
    return ""


def _walk(tree: Plain, path: str) -> Iterator[tuple[str, Plain]]:
    if isinstance(tree, dict):
        for name, value in tree.items():
            if name not in _NOT_COMPARED:
                yield from _walk(value, f"{path}.{name}" if path else name)
    elif isinstance(tree, list) and any(isinstance(item, (dict, list)) for item in tree):
        for number, item in enumerate(tree):
            yield from _walk(item, f"{path}.{number}")
        yield f"{path}.length", len(tree)
    else:
        yield path, tree


def _short(value: Plain) -> bytes:
    packed: bytes = msgpack.packb(value)
    if len(packed) <= _LONGEST:
        return packed
    return _HASHED + hashlib.blake2b(packed, digest_size=_DIGEST).digest()


def _told(leaf: bytes | None) -> str:
    if leaf is None:
        return "is not there"
    if leaf.startswith(_HASHED):
        return f"has the digest {leaf[1:].hex()}"
    if leaf.startswith(b"slice"):
        return f"({leaf[: leaf.index(b':')].decode()}) has the digest {leaf[leaf.index(b': ') + 2 :].hex()}"
    try:
        value = msgpack.unpackb(leaf, strict_map_key=False)
    except ValueError:
        return f"is {leaf.hex()}"
    return f"is {value:#x}" if isinstance(value, int) and value > 9 else f"is {value!r}"


def _slice(frames: int, number: int) -> tuple[int, int]:
    size = -(-frames // SLICES)
    first = min(number % SLICES * size, frames)
    return first, min(size, frames - first)


def _memory(machine: Machine, first: int, count: int) -> bytes:
    """Digest of some frames; those that are all zeros, which the host need not provide, do not count."""
    digest = hashlib.blake2b(digest_size=_DIGEST)
    ram = machine.ram
    for mfn in ram.provided(first, count).tolist():
        page = ram.tables[mfn]
        if np.any(page):
            digest.update(mfn.to_bytes(4, "little"))
            digest.update(ram.raw[mfn << PAGE_SHIFT : mfn + 1 << PAGE_SHIFT])
    return digest.digest()
