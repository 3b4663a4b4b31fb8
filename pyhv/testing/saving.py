# SPDX-License-Identifier: GPL-2.0-only
"""What tests of saved state have in common: a container, and the walk over an object graph."""

import enum
import types
from collections import deque
from collections.abc import Iterator
from typing import Any

import msgpack

from pyhv.state import Plain, restore, state, unexplained


def packed(thing: object) -> Plain:
    """An object's state as it comes out of a file."""
    found: Plain = msgpack.unpackb(msgpack.packb(state(thing)), strict_map_key=False)
    return found


def assert_restored(original: object, rebuilt: object) -> None:
    """Give `rebuilt` the state of `original`, and see that this is what it says then."""
    saved = packed(original)
    restore(rebuilt, saved)
    assert packed(rebuilt) == saved


def unexplained_from(*roots: object, beyond: tuple[type, ...] = ()) -> list[str]:
    """Attributes without a role in all objects of pyhv's that can be reached, except through `beyond`."""
    found: set[str] = set()
    seen: dict[int, object] = {}
    pending = list(roots)
    while pending:
        thing = pending.pop()
        if id(thing) in seen or isinstance(thing, (type, enum.Enum, types.FunctionType, *beyond)):
            continue
        seen[id(thing)] = thing
        if isinstance(thing, list | tuple | set | frozenset | deque):
            pending.extend(thing)
        elif isinstance(thing, dict):
            pending.extend([*thing.keys(), *thing.values()])
        if type(thing).__module__.partition(".")[0] == "pyhv":
            found.update(f"{type(thing).__qualname__}.{name}" for name in unexplained(thing))
            pending.extend(attributes(thing))
    return sorted(found)


def attributes(thing: object) -> Iterator[Any]:
    """Values of all attributes of an object, those in slots included."""
    yield from getattr(thing, "__dict__", {}).values()
    for kind in type(thing).__mro__:
        slots = kind.__dict__.get("__slots__", ())
        for name in [slots] if isinstance(slots, str) else slots:
            if hasattr(thing, name):
                yield getattr(thing, name)
