# SPDX-License-Identifier: GPL-2.0-only
"""Domains that come and go on one machine, and that somebody else pauses, destroys, or steps through."""

import gc
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyhv.abi.numbers import Shutdown
from pyhv.domain.config import DomainConfig
from pyhv.domain.domain import Domain
from pyhv.domain.lifecycle import Lifecycle
from pyhv.errors import ConfigError
from pyhv.guests.build import build_builtin
from pyhv.loader.elf import load_image
from pyhv.machine import Machine
from pyhv.observe.digest import Digest
from pyhv.resident import Ended
from pyhv.testing.guest_machine import HEADER, SECOND, START, TRAPS, Sink, image_of, machine
from pyhv.traps import privileged
from pyhv.until import AllEnded, Exits, Forever, Outcome, Seconds, When

PAGES = 1024
COUNTER = (
    HEADER
    + START
    + """
again:
    inc rax
    jmp again
"""
)
"""Never ends."""


def resident_bytes() -> int:
    """What the process has in the host's memory."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.fixture
def made() -> Iterator[Machine]:
    with machine(pages=4 * PAGES) as built:
        yield built


def counter(made: Machine, **how: Any) -> Domain:
    return made.create(
        load_image(image_of(COUNTER), "counter"), DomainConfig("counter", PAGES), console=Sink(), **how
    )


def hello(made: Machine, ends: list[Ended]) -> Domain:
    image = load_image(build_builtin("hello"), "hello")
    return made.create(image, DomainConfig("hello", PAGES), console=Sink(), on_end=ends.append)


@pytest.mark.promise("D-1")
def test_what_is_left_of_a_domain(made: Machine) -> None:
    free = made.frames.free_count
    ends: list[Ended] = []
    domain = hello(made, ends)
    stages = [domain.life.stage]
    assert made.run() is Outcome.ENDED
    stages.append(domain.life.stage)
    assert stages == [Lifecycle.RUNNING, Lifecycle.DEAD]
    (end,) = ends
    assert (end.domid, end.name, end.reason, end.cause, end.report) == (1, "hello", 0, None, None)
    assert end.counts.hypercalls[29] >= 1, "it has shut itself down by sched_op"
    assert made.residents.counts() == end.counts
    assert len(made.residents) == 0
    assert made.frames.free_count == free
    assert made.audit() == []


@pytest.mark.promise("D-1")
def test_many_come_and_go_in_flat_memory(made: Machine) -> None:
    """Half of them shut down, half are destroyed; what grows would be seen after a few hundred."""
    free, ports = made.frames.free_count, len(made.dom0.channels.ports())
    ends: list[Ended] = []
    image = load_image(build_builtin("hello"), "hello")

    def generation(number: int) -> None:
        for index in range(number):
            domain = made.create(
                image, DomainConfig("hello", PAGES), console=Sink(), on_end=ends.append, paused=index % 2 == 1
            )
            if index % 2:
                made.destroy(domain)
            assert made.run() is Outcome.ENDED

    generation(60)
    gc.collect()
    objects, resident = len(gc.get_objects()), resident_bytes()
    store, timers = made.store.dump(), len(made.services.timers)
    generation(240)
    ends.clear()
    gc.collect()
    assert len(gc.get_objects()) - objects < 240, "less than one object for each"
    assert resident_bytes() - resident < 24 << 20
    assert (made.store.dump(), len(made.services.timers)) == (store, timers)
    assert (made.frames.free_count, len(made.dom0.channels.ports())) == (free, ports)
    assert made.audit() == []


def test_created_paused_and_let_go(made: Machine) -> None:
    domain = counter(made, paused=True)
    assert domain.life.stage is Lifecycle.PAUSED
    assert made.run(timeout_ns=SECOND) is Outcome.DEADLOCK, "nothing will happen by itself"
    made.unpause(domain)
    assert made.run(timeout_ns=SECOND // 1000) is Outcome.TIMEOUT
    ran = domain.vcpus[0].runstate.snapshot(made.now()).time[0]
    assert ran > 0
    made.pause(domain)
    assert made.run(timeout_ns=SECOND) is Outcome.DEADLOCK
    assert domain.vcpus[0].runstate.snapshot(made.now()).time[0] == ran
    made.unpause(domain)
    assert made.run(timeout_ns=SECOND // 1000) is Outcome.TIMEOUT
    assert domain.vcpus[0].runstate.snapshot(made.now()).time[0] > ran


@pytest.mark.promise("D-4")
def test_what_a_stage_does_not_allow(made: Machine) -> None:
    domain = counter(made)
    for refused, why in (
        (made.unpause, "is running, so it cannot be unpaused"),
        (lambda it: made.resume(it, cancelled=True), "is running, so it cannot be resumed"),
    ):
        with pytest.raises(ConfigError, match=why):
            refused(domain)
    made.destroy(domain)
    for refused, verb in ((made.pause, "paused"), (made.unpause, "unpaused"), (made.destroy, "destroyed")):
        with pytest.raises(ConfigError, match=f"is dying, so it cannot be {verb}"):
            refused(domain)
    made.settle()
    with pytest.raises(ConfigError, match="is dead"):
        made.pause(domain)


@pytest.mark.parametrize("verb", ["pause", "destroy"])
def test_somebody_interferes_in_the_midst_of_a_turn(made: Machine, verb: str) -> None:
    """An observer does, so inside an exit of the domain itself."""
    domain = made.create(
        load_image(build_builtin("ticker"), "ticker"), DomainConfig("ticker", PAGES), console=Sink()
    )

    class Interferer:
        exits = 0

        def exit(self, _record: object) -> None:
            self.exits += 1
            if self.exits == 20:
                getattr(made, verb)(domain)

    interferer = Interferer()
    made.observe(interferer)
    outcome = made.run(timeout_ns=10 * SECOND)
    assert interferer.exits == 20, "the exit was done, and no other came"
    assert made.audit() == []
    if verb == "pause":
        assert outcome is Outcome.DEADLOCK
        made.unpause(domain)
        assert made.run(timeout_ns=10 * SECOND) is Outcome.ENDED
        assert domain.life.reason == Shutdown.POWEROFF
    else:
        assert outcome is Outcome.ENDED
        assert (domain.life.stage, domain.life.reason) == (Lifecycle.DEAD, None)


def test_a_paused_guest_finds_its_timer_when_it_goes_on(made: Machine) -> None:
    sink = Sink()
    image = load_image(build_builtin("ticker"), "ticker")
    domain = made.create(image, DomainConfig("ticker", PAGES), console=sink)
    made.run(When(lambda: domain.vcpus[0].blocked), timeout_ns=SECOND)
    made.pause(domain)
    made.run(timeout_ns=5 * SECOND)
    assert b"SUCCESS" not in sink.data
    made.unpause(domain)
    assert made.run(timeout_ns=5 * SECOND) is Outcome.ENDED
    assert b"SUCCESS" in sink.data


def test_policies(made: Machine) -> None:
    assert made.run() is Outcome.ENDED, "there is nobody"
    assert made.run(Forever()) is Outcome.DEADLOCK
    counter(made)
    began = made.now()
    assert made.run(Forever() | Seconds(0.002)) is Outcome.TIMEOUT
    assert 0 <= 2_000_000 - (made.now() - began) < 100, "or the next block would reach beyond it"
    asked: list[int] = []
    assert made.run(When(lambda: len(asked) == 2 or bool(asked.append(1)))) is Outcome.STOPPED
    assert made.run(Seconds(0.001) | AllEnded()) is Outcome.TIMEOUT
    assert made.run(AllEnded(), timeout_ns=1000) is Outcome.TIMEOUT


def test_the_loop_made_by_hand(made: Machine) -> None:
    """`step`, `next_deadline` and `advance_to` are all that it takes."""
    ends: list[Ended] = []
    image = load_image(build_builtin("ticker"), "ticker")
    made.create(image, DomainConfig("ticker", PAGES), console=Sink(), on_end=ends.append)
    turns = waits = 0
    while not ends:
        if made.step():
            turns += 1
        elif (due := made.next_deadline()) is not None:
            made.advance_to(due)
            waits += 1
        else:
            assert ends, "else it would wait for ever"
    assert turns > waits > 3
    assert ends[0].reason == Shutdown.POWEROFF


def digest_of(names: tuple[str, ...], stops: list[int]) -> tuple[str, bytes, int]:
    """Run guests to their end, interrupted after so many exits each."""
    with machine(pages=len(names) * PAGES) as made:
        digest, sink = Digest(), Sink()
        made.observe(digest)
        for name in names:
            made.create(load_image(build_builtin(name), name), DomainConfig(name, PAGES), console=sink)
        for stop in stops:
            before = sum(made.residents.counts().exits)
            assert made.run(Exits(stop), timeout_ns=60 * SECOND) is Outcome.STOPPED
            exits = sum(made.residents.counts().exits) - before
            assert exits == stop
            assert made.audit() == []
        assert made.run(timeout_ns=60 * SECOND) is Outcome.ENDED
        return digest.summary(), sink.data, made.now()


@pytest.mark.promise("T-14")
@pytest.mark.parametrize("names", [("usermode",), ("ticker", "pages"), ("events32",)])
def test_an_interrupted_run_is_the_same_run(names: tuple[str, ...]) -> None:
    """To the byte, to the exit, and to the nanosecond."""
    whole = digest_of(names, [])
    chance = random.Random(8)
    assert digest_of(names, [chance.randrange(1, 9) for _ in range(6)]) == whole
    assert digest_of(names, [1] * 12) == whole


def test_a_bug_in_a_handler_leaves_a_machine_that_goes_on(
    made: Machine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An exception travels up to whoever runs the machine; its domain can be destroyed, others go on."""
    ends: list[Ended] = []
    source = HEADER + START + TRAPS + "    ud2\n"
    domain = made.create(load_image(image_of(source), "guest"), DomainConfig("guest", PAGES), console=Sink())
    hello(made, ends)
    monkeypatch.setattr(privileged, "icebp", lambda _cpu: 1 // 0)
    with pytest.raises(ZeroDivisionError):
        made.run(timeout_ns=SECOND)
    assert made.pcpu.running is None
    made.destroy(domain)
    assert made.run(timeout_ns=SECOND) is Outcome.ENDED
    assert [end.name for end in ends] == ["hello"]
    assert made.audit() == []
