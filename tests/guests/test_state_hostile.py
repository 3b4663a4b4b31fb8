# SPDX-License-Identifier: GPL-2.0-only
"""Saved state may come from anybody: what is not refused, and not found by the audit, does no harm."""

import random
from collections.abc import Iterator
from typing import Any

import pytest
from test_state_running import PAGES, parts

from pyhv.domain.config import DomainConfig
from pyhv.errors import StateError
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.machine import Machine
from pyhv.state import restore, state
from pyhv.testing.guest_machine import SECOND, Sink, machine
from pyhv.until import Exits
from pyhv.xenstore.peers import introduce_peers

NAMES = ("ping", "pong", "fifo", "grants32")
NUMBERS = (
    -1,
    0,
    1,
    2,
    7,
    63,
    64,
    255,
    1023,
    4095,
    0x7FF0,
    0xFFFF,
    1 << 17,
    1 << 32,
    (1 << 63) - 1,
    (1 << 64) - 1,
)


def leaves(said: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Ways to everything that can be changed."""
    if isinstance(said, dict | list):
        yield path
        for key, value in said.items() if isinstance(said, dict) else enumerate(said):
            yield from leaves(value, (*path, key))
    else:
        yield path


def change(said: Any, path: tuple[Any, ...], chance: random.Random) -> Any:
    if not path:
        return strange(said, chance)
    at = said
    for key in path[:-1]:
        at = at[key]
    at[path[-1]] = strange(at[path[-1]], chance)
    return said


def strange(value: Any, chance: random.Random) -> Any:
    """Something of the same kind, or of another."""
    if chance.random() < 0.05:
        return chance.choice([None, True, 3, "x", b"y", [], {}])
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        return chance.choice([*NUMBERS, value + 1, value - 1, value ^ 1 << chance.randrange(16)])
    if isinstance(value, bytes) and value:
        at = chance.randrange(len(value))
        return value[:at] + bytes([chance.choice([0, 1, value[at] ^ 1, 255])]) + value[at + 1 :]
    if isinstance(value, str):
        return chance.choice(["", "/", "@", "n0", "x" * 3000, value + "/a", value[:-1], "\0"])
    if isinstance(value, list) and value:
        at = chance.randrange(len(value))
        return chance.choice([value[:at] + value[at + 1 :], [*value, value[at]], value[::-1], []])
    return chance.choice([None, [], {}, 0])


def running(made: Machine) -> None:
    for name in NAMES:
        made.create(load_image(build_builtin(name), name), DomainConfig(name, PAGES), console=Sink())
    introduce_peers(made.store, made.residents.domids())
    made.run(Exits(300), timeout_ns=60 * SECOND)


@pytest.mark.promise("I-17")
@pytest.mark.parametrize("seed", range(6))
def test_whatever_state_says_the_machine_survives_it(seed: int) -> None:
    """Each round changes one thing in one object; what neither restoring nor the audit minds, runs on."""
    chance = random.Random(seed)
    with machine(pages=len(NAMES) * PAGES) as made:
        running(made)
        sound = [(part, state(part)) for part in parts(made)]
        ran = 0
        for _ in range(80):
            part, said = chance.choice(sound)
            changed = change(state(part), chance.choice(list(leaves(said))), chance)
            try:
                restore(part, changed)
            except StateError:
                restore(part, said)
                continue
            if made.audit():
                restore(part, said)
                assert made.audit() == []
                continue
            ran += 1
            made.run(Exits(20), timeout_ns=SECOND)
            assert made.audit() == []
            sound = [(part, state(part)) for part in parts(made)]
        assert ran > 5
