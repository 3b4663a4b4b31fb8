# SPDX-License-Identifier: GPL-2.0-only
"""Whole machines on tuned engines and on plain ones: the same run, exit for exit; and both in one process."""

import threading
from collections.abc import Callable
from pathlib import Path

import pytest

import pyhv.guests
from pyhv.cpu.tuning import gate
from pyhv.domain.config import DomainConfig
from pyhv.guests.build import build_builtin
from pyhv.guests.catalogue import BUILTIN, nets_of
from pyhv.loader.elf import load_image
from pyhv.machine import Machine, MachineConfig
from pyhv.observe.digest import Digest
from pyhv.testing.guest_machine import Sink, image_of
from pyhv.xenstore.peers import introduce_peers

SOURCES = Path(pyhv.guests.__file__).parent
PAGES = 4096
SECOND = 1_000_000_000
VCPUS = {"smp32": 4}
PEERS = {"ping": ("ping", "pong")}
REFUSED = ("opcodes", "opcodes32")
"""Guests that execute what the processor refuses; also operands that only a tuned engine wants aligned."""
BREAKPOINTS = ("debug",)
"""Guests with breakpoints: what is an exit on the way to one differs."""
GUESTS = [name for name in BUILTIN if name not in ("pong", *REFUSED, *BREAKPOINTS)]


def run(*names: str, tuned: bool) -> str:
    """Run built-in guests in virtual time: the digest of all their exits, the outcome, their consoles."""
    machine = Machine(MachineConfig(PAGES * len(names), virtual_time=True, seed=1, tuned=tuned))
    digest = Digest()
    machine.observe(digest)
    consoles = []
    try:
        for name in names:
            consoles.append(Sink())
            config = DomainConfig(name, PAGES, vcpus=VCPUS.get(name, 1), nets=nets_of(name))
            domain = machine.create(load_image(build_builtin(name), name), config, console=consoles[-1])
            assert domain.engine.tuned == tuned
        introduce_peers(machine.store, machine.residents.domids())
        outcome = machine.run(timeout_ns=20 * SECOND)
        return f"{digest.summary()}{outcome}\n" + "".join(
            console.data.decode(errors="replace") for console in consoles
        )
    finally:
        machine.close()


@pytest.mark.promise("P-4")
@pytest.mark.parametrize("name", GUESTS)
def test_the_same_run_tuned_and_plain(name: str) -> None:
    names = PEERS.get(name, (name,))
    assert run(*names, tuned=True) == run(*names, tuned=False)


@pytest.mark.parametrize("name", BREAKPOINTS)
def test_only_exits_tell_how_breakpoints_are_met(name: str) -> None:
    (exits, console), (steps, same_console) = (
        run(name, tuned=tuned).split("Outcome.ENDED\n") for tuned in (True, False)
    )
    assert exits != steps
    assert console == same_console
    assert "\nSUCCESS\n" in console


@pytest.mark.promise("P-4")
@pytest.mark.parametrize("name", REFUSED)
def test_the_same_is_refused_tuned_and_plain(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but misaligned operands, exit for exit."""
    source = (SOURCES / f"{name}.S").read_text()
    listed = (SOURCES / "opcodes.inc").read_text()
    kept = "\n".join(line for line in listed.splitlines() if "misaligned" not in line)
    assert kept.count("    refused ") > 30
    image = image_of(source.replace('.include "opcodes.inc"', kept))
    monkeypatch.setitem(globals(), "build_builtin", lambda _name: image)
    tuned, plain = (run(name, tuned=tuned) for tuned in (True, False))
    assert "\nSUCCESS\n" in tuned
    assert tuned == plain


@pytest.mark.promise("P-4")
@pytest.mark.parametrize("name", REFUSED)
def test_only_a_tuned_engine_wants_operands_aligned(name: str) -> None:
    assert "\nSUCCESS\n" in run(name, tuned=True)
    assert "\nFAILURE: MOVAPS, misaligned: no exception\n" in run(name, tuned=False)


def test_machines_in_two_threads() -> None:
    """One tuned, one plain, at the same time and again: each computes what it computes alone."""
    names = ("usermode", "pages32", "ticker")
    alone = run(*names, tuned=True)
    seen: dict[tuple[bool, int], str] = {}

    def work(tuned: bool, number: int) -> Callable[[], None]:
        def body() -> None:
            seen[tuned, number] = run(*names, tuned=tuned)

        return body

    for turn in range(2):
        threads = [threading.Thread(target=work(tuned, turn)) for tuned in (True, False)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert seen == {(tuned, turn): alone for tuned in (True, False) for turn in range(2)}


def test_the_variable_makes_machines_plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(gate.SWITCH, "0")
    monkeypatch.setattr("pyhv.board.tuning", lambda: gate.make_tuning(()))
    machine = Machine(MachineConfig(PAGES))
    domain = machine.create(
        load_image(build_builtin("hello"), "hello"), DomainConfig("hello", PAGES), console=Sink()
    )
    assert not domain.engine.tuned
    machine.close()
