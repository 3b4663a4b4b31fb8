# SPDX-License-Identifier: GPL-2.0-only
"""State on a machine that runs: to be put back to what they are changes nothing, and nothing is forgotten."""

import random
from collections.abc import Iterator
from typing import Any

import pytest

from pyhv.cpu.engine import Engine
from pyhv.cpu.ram import Ram
from pyhv.domain.config import DomainConfig
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.machine import Machine
from pyhv.observe.digest import Digest
from pyhv.state import restore
from pyhv.testing.guest_machine import SECOND, Sink, machine
from pyhv.testing.saving import packed, unexplained_from
from pyhv.until import Exits, Outcome
from pyhv.xenstore.peers import introduce_peers

PAGES = 1024


def parts(made: Machine) -> Iterator[Any]:
    """Everything that says its state and is not a vCPU's or an engine's."""
    yield from (made.clock, made.scheduler, made.store, made.services.timers)
    yield from (made.frames, made.physical, made.board.m2p, made.dom0.channels)
    for resident in made.residents:
        domain = resident.domain
        devices = made.dom0.devices(domain.domid)
        yield from (domain.events, domain.grants, domain.maptrack)
        yield from (vcpu.info for vcpu in domain.vcpus)
        yield from (domain.memory, domain.tables, domain.area, domain.cache)
        yield from devices


def put_back(made: Machine) -> None:
    """Give each part the state that it has, which drops all its caches."""
    for part in parts(made):
        restore(part, packed(part))


COUPLES = [("ping", "pong"), ("fifo", "ticker"), ("code", "pages32"), ("smp32", "grants")]


def digest_of(names: tuple[str, ...], scheduler: str, stops: list[int]) -> tuple[str, bytes, int]:
    with machine(pages=len(names) * PAGES, scheduler=scheduler) as made:
        digest, sink = Digest(), Sink()
        made.observe(digest)
        for name in names:
            made.create(load_image(build_builtin(name), name), DomainConfig(name, PAGES), console=sink)
        introduce_peers(made.store, made.residents.domids())
        for stop in stops:
            if made.run(Exits(stop), timeout_ns=60 * SECOND) is not Outcome.STOPPED:
                break
            put_back(made)
            assert made.audit() == []
        assert made.run(timeout_ns=60 * SECOND) is Outcome.ENDED
        return digest.summary(), sink.data, made.now()


@pytest.mark.promise("T-13")
@pytest.mark.parametrize("scheduler", ["credit", "rr"])
@pytest.mark.parametrize(
    "names", [("ping", "pong"), ("fifo", "ticker"), ("code", "pages32"), ("smp32", "grants")]
)
def test_a_machine_put_back_to_where_it_is_goes_on_as_if_it_had_not(
    names: tuple[str, ...], scheduler: str
) -> None:
    chance = random.Random(repr((names, scheduler)))
    stops = [chance.randrange(1, 60) for _ in range(12)]
    assert digest_of(names, scheduler, stops) == digest_of(names, scheduler, [])


def test_no_attribute_is_forgotten() -> None:
    """Of the packages whose objects say their state here."""
    with machine(pages=3 * PAGES) as made:
        for name in ("ping", "pong", "fifo"):
            made.create(load_image(build_builtin(name), name), DomainConfig(name, PAGES), console=Sink())
        introduce_peers(made.store, made.residents.domids())
        made.run(Exits(400), timeout_ns=60 * SECOND)
        assert unexplained_from(*parts(made), beyond=(Engine, Ram)) == []
