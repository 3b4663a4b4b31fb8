# SPDX-License-Identifier: GPL-2.0-only
"""Guests that attack: every attack refused, neighbours undisturbed, memory sound, nothing left behind.

`test_hostile_mutants.py` is the other way round: with a check of pyhv taken out, they notice.
"""

import fnmatch
import tomllib
from pathlib import Path

import pytest

from docgen.hostile import document, read
from pyhv.abi.numbers import Hypercall, Sched, Shutdown
from pyhv.cpu.exits import ExitKind, ExitRecord
from pyhv.cpu.vmcb import RBX, RDI
from pyhv.domain.config import DomainConfig
from pyhv.errors import ImageError
from pyhv.guests.build import build_builtin
from pyhv.guests.catalogue import HOSTILE, nets_of, source_of
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig
from pyhv.testing.bench import Bench
from pyhv.testing.guest_machine import Sink
from pyhv.until import Outcome
from pyhv.xenstore.peers import introduce_peers

ROOT = Path(__file__).parents[2]
PAGES = 4096
SECOND = 1_000_000_000
INTERVAL = 997


class Auditor:
    """Counts everything anew at every so many exits, and when a guest is about to end."""

    def __init__(self, machine: Machine) -> None:
        self._machine = machine
        self._exits = 0
        self.endings = 0

    def exit(self, record: ExitRecord) -> None:
        self._exits += 1
        first = record.registers[RDI if self._machine.residents[record.domid].domain.width == 64 else RBX]
        ending = (
            record.kind is ExitKind.HYPERCALL
            and record.detail == Hypercall.SCHED_OP
            and first == Sched.SHUTDOWN
        )
        if ending or self._exits % INTERVAL == 0:
            self.endings += ending
            assert self._machine.audit() == [], record


@pytest.mark.promise("I-1", "I-14", "L-1", "L-3", "L-17")
@pytest.mark.parametrize("virtual", [True, False], ids=["virtual", "real"])
@pytest.mark.parametrize("name", HOSTILE)
def test_every_attack_is_refused(name: str, virtual: bool) -> None:
    """Beside ping and pong, which share a page and a port meanwhile."""
    machine = Machine(MachineConfig(3 * PAGES, virtual_time=virtual))
    try:
        free = machine.frames.free_count
        sinks, domains = {}, []
        for guest in ("ping", "pong", name):
            sinks[guest] = Sink()
            config = DomainConfig(guest, PAGES, vcpus=2 if guest == name else 1, nets=nets_of(guest))
            image = load_image(build_builtin(guest), guest)
            domains.append(machine.create(image, config, console=sinks[guest]))
        introduce_peers(machine.store, machine.residents.domids())
        auditor = Auditor(machine)
        machine.observe(auditor)
        outcome = machine.run(timeout_ns=60 * SECOND)
        said = {guest: sink.data.decode("latin-1") for guest, sink in sinks.items()}
        assert outcome is Outcome.ENDED, said
        for guest, domain in zip(sinks, domains, strict=True):
            assert "SUCCESS\n" in said[guest], said[guest][-600:]
            assert "FAIL" not in said[guest]
            assert domain.life.reason == Shutdown.POWEROFF
        assert "  10 rounds\n" in said["ping"]
        assert auditor.endings >= 3
        assert machine.audit() == []
        assert machine.frames.free_count == free
        assert all(not machine.frames.owned_by(domid).size for domid in range(1, len(domains) + 1))
    finally:
        machine.close()


@pytest.mark.parametrize("name", HOSTILE)
def test_every_attack_is_refused_by_restored_machines(name: str) -> None:
    """What an attacker has prepared is in a snapshot, and what refuses it is in force again."""
    with Bench(restored=True, seed=len(name)) as bench:
        free = bench.machine.frames.free_count
        for guest in ("ping", "pong", name):
            bench.add(guest, vcpus=2 if guest == name else 1)
        assert bench.run() is Outcome.ENDED
        assert bench.machines > 1
        for console in bench.consoles:
            assert "SUCCESS\n" in console.text, console.text[-600:]
            assert "FAIL" not in console.text
        assert all(domain.life.reason == Shutdown.POWEROFF for domain in bench.domains)
        assert bench.machine.audit() == []
        assert bench.machine.frames.free_count == free


@pytest.mark.promise("I-14")
def test_all_at_once() -> None:
    """They attack each other, too: their neighbours' frames, ports and grants are among what they name."""
    machine = Machine(MachineConfig(len(HOSTILE) * PAGES, virtual_time=True))
    try:
        free = machine.frames.free_count
        sinks = {name: Sink() for name in HOSTILE}
        for name, sink in sinks.items():
            image = load_image(build_builtin(name), name)
            machine.create(image, DomainConfig(name, PAGES, vcpus=2, nets=nets_of(name)), console=sink)
        introduce_peers(machine.store, machine.residents.domids())
        assert machine.run(timeout_ns=60 * SECOND) is Outcome.ENDED
        for name, sink in sinks.items():
            assert b"SUCCESS\n" in sink.data, (name, sink.data[-300:])
        assert machine.audit() == []
        assert machine.frames.free_count == free
    finally:
        machine.close()


# -- names, page, package ----------------------------------------------------------------------------------


def test_the_page_is_up_to_date() -> None:
    page = (ROOT / "docs" / "hostile.md").read_text(encoding="utf-8")
    assert page == document(), "run: python -m docgen.hostile > docs/hostile.md"


@pytest.mark.promise("I-14")
def test_every_source_is_listed_and_described() -> None:
    sources = sorted(path.stem for path in (ROOT / "pyhv" / "guests" / "hostile").glob("*.S"))
    assert sorted(f"hostile/{name}" for name in sources) == sorted(HOSTILE)
    assert len(sources) >= 19
    assert len({read(name).flaw for name in HOSTILE}) == len(HOSTILE)


@pytest.mark.parametrize("name", HOSTILE)
def test_an_attack_says_what_it_tries_once(name: str) -> None:
    """Attacks are told apart: no text of a list is used for two of them without saying so."""
    text = source_of(name).read_text(encoding="utf-8")
    assert text.count('hostile_entry "') == 1
    assert f'hostile_entry "{name.removeprefix("hostile/")}"' in text
    assert text.count("hostile_end") == 1


def test_unknown_hostile_guest() -> None:
    with pytest.raises(ImageError, match="no built-in guest named hostile/nobody"):
        build_builtin("hostile/nobody")


def test_the_wheel_takes_all_sources_along() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    patterns = settings["tool"]["setuptools"]["package-data"]["pyhv"]
    sources = [path for ending in ("*.S", "*.inc") for path in (ROOT / "pyhv").rglob(ending)]
    assert len(sources) > 30
    for path in sources:
        inside = path.relative_to(ROOT / "pyhv").as_posix()
        depth = inside.count("/")
        assert any(
            fnmatch.fnmatch(inside, pattern) and pattern.count("/") == depth for pattern in patterns
        ), inside
