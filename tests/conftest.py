# SPDX-License-Identifier: GPL-2.0-only
"""What several tests use: guests from source or by name, on a machine, with their console kept."""

from collections.abc import Iterator
from contextlib import ExitStack
from typing import Protocol

import bare_engine
import pytest
from hypothesis import settings
from linux_guest import Setup

from pyhv import lane
from pyhv.domain.callbacks import CallbackEntry
from pyhv.hypercalls.registry import HYPERCALLS
from pyhv.testing import guest_machine
from pyhv.testing.bench import Bench
from pyhv.testing.compat_machine import RING1_CS, SYSENTER, Paused32, paused32
from pyhv.testing.granting import Trio
from pyhv.testing.guest_machine import Paused, paused

settings.register_profile("default", deadline=None)
settings.load_profile("default")


def pytest_sessionstart(session: pytest.Session) -> None:
    """Say which lane is tested; `pytest_report_header` is silent with -q."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter.write_line(f"pyhv: {lane.describe()}")


FOLDERS = ("unit", "property", "docs", "engine", "guests", "cli", "real")
"""In the order in which they run: what is fast and small fails first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Fast tests first; within a module, those that share a booted Linux guest one after the other."""
    modules: dict[object, int] = {}
    setups: dict[object, int] = {None: 0}

    def place(item: pytest.Item) -> tuple[int, int, int]:
        setup = item.callspec.params.get("setup") if hasattr(item, "callspec") else None
        setup = setup if isinstance(setup, Setup) else None
        module = modules.setdefault(item.path, len(modules))
        return FOLDERS.index(item.path.parent.name), module, setups.setdefault(setup, len(setups))

    items.sort(key=place)


class BenchMaker(Protocol):
    """Makes benches, of the kind that a test is run with."""

    def __call__(self, *, virtual: bool = True, scheduler: str = "credit") -> Bench: ...


@pytest.fixture(params=["booted", "restored"])
def bench(request: pytest.FixtureRequest) -> Iterator[BenchMaker]:
    """Run a test twice: guests go straight through, or go on from snapshots on other machines."""
    restored = request.param == "restored"
    with ExitStack() as closing:
        made: list[Bench] = []

        def make(*, virtual: bool = True, scheduler: str = "credit") -> Bench:
            made.append(Bench(virtual=virtual, scheduler=scheduler, restored=restored))
            return closing.enter_context(made[-1])

        yield make
        assert all((one.machines > 1) is restored for one in made)


@pytest.fixture(params=["tuned", "plain"])
def both_engines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a test twice: with the emulator's hot paths changed, and with the emulator as it is."""
    for module in (bare_engine, guest_machine):
        monkeypatch.setattr(module, "TUNED", request.param == "tuned")


@pytest.fixture(params=["tuned", "plain", "steps"])
def engines(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A tuned engine meets breakpoints by itself, a plain one by hooks or, without native code, by steps."""
    monkeypatch.setattr(guest_machine, "TUNED", request.param == "tuned")
    if request.param == "steps":
        monkeypatch.setattr("pyhv.cpu.engine.native_hook", lambda: None)


# -- paused guests, for tests of single hypercalls; modules that need others have their own ---------------


@pytest.fixture
def guest() -> Iterator[Paused]:
    """A 64-bit guest that has not run yet."""
    with paused() as made:
        yield made


@pytest.fixture
def narrow(guest: Paused, monkeypatch: pytest.MonkeyPatch) -> Paused:
    """The same guest, which makes its calls and lays out its structures as a 32-bit guest does."""
    monkeypatch.setattr(guest.dispatcher.call, "width", 32)
    monkeypatch.setattr(guest.dispatcher.call, "word", 4)
    forms = [None if entry is None else entry.form(32) for entry in HYPERCALLS]
    monkeypatch.setattr(guest.dispatcher.call, "forms", forms)
    return guest


@pytest.fixture
def guest32() -> Iterator[Paused32]:
    """A 32-bit guest with a handler for everything."""
    with paused32() as made:
        made.handlers()
        made.vcpu.callbacks.sysenter = CallbackEntry(made.handler(SYSENTER), False, RING1_CS)
        yield made


@pytest.fixture
def trio() -> Iterator[Trio]:
    """Three guests; afterwards nothing may be left of them."""
    made = Trio()
    yield made
    assert made.machine.audit() == []
    for guest in (made.a, made.b, made.c):
        if guest.domain.alive:
            made.kill(guest)
        assert made.machine.audit() == []
    assert made.machine.frames.free_count == made.free
    made.machine.close()
