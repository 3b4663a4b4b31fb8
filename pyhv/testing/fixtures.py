# SPDX-License-Identifier: GPL-2.0-only
"""The plugin's fixtures.

    pyhv_machine       the machine of the test, without guests unless others of these are used too
    guest, guests      what the markers want, freshly booted (`marker.py`)
    booted_guest,      the same, booted once for the session (and each worker of pytest-xdist) and put back to
    booted_guests      that moment before each test
    inject             has things go wrong for them, until the test is over (`injection.py`)

What they give is closed when the test is over, also after Ctrl-C. pyhv itself is imported when the first of
them is used.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Final

import pytest

from pyhv.testing import marker
from pyhv.testing.options import SETTINGS, Settings
from pyhv.testing.recording import RECORDINGS

if TYPE_CHECKING:
    from pyhv.testing.injection import Injector
    from pyhv.testing.machines import Booted
    from pyhv.testing.under_test import GuestUnderTest, MachineUnderTest, Patience

USED: Final = pytest.StashKey["list[MachineUnderTest]"]()
"""The machines of a test, for its report."""
INJECTOR: Final = pytest.StashKey["Injector"]()
"""Of a test, for its report."""
PATIENCE: Final = pytest.StashKey["Patience"]()
"""The session's, once pyhv has been imported."""
_BOOTED: Final = frozenset({"booted_guest", "booted_guests"})
_FRESH: Final = frozenset({"guest", "guests"})


@pytest.fixture
def pyhv_machine(request: pytest.FixtureRequest) -> "Iterator[MachineUnderTest]":
    """A machine in virtual time (`pyhv.Machine`), as `@pytest.mark.pyhv_machine(...)` says; it is the one of
    the fixtures `guest` or `booted_guest` if the test uses them."""
    recordings = request.config.stash[RECORDINGS]
    if _BOOTED & set(request.fixturenames):
        if _FRESH & set(request.fixturenames):
            marker.refuse("a test uses either guest or booted_guest: they are on different machines")
        wanted = _some(request)
        if any(one.ready is None for one in wanted.guests):
            marker.refuse("booted_guest needs to know when it has booted: @pytest.mark.guest(..., ready=...)")
        booted: Booted = request.getfixturevalue("_pyhv_booted")
        show = used(request.node).append
        with told():
            machine, snapshot = booted.get(wanted, show, **options(request.config))
            recordings.begin(request.node, machine, snapshot)
        yield machine
        recordings.end(machine, failed=False)
        return
    from pyhv.testing import machines

    with told():
        file = recordings.file_for(request.node)
        machine = machines.fresh(marker.wanted(request.node), record=file, **options(request.config))
    used(request.node).append(machine)
    try:
        with told():
            recordings.begin(request.node, machine)
        yield machine
        recordings.end(machine, failed=False)
    finally:
        machine.close()


@pytest.fixture
def guests(request: pytest.FixtureRequest, pyhv_machine: "MachineUnderTest") -> "list[GuestUnderTest]":
    """The guests of the test's markers, in their order, freshly booted, each up to its `ready`."""
    from pyhv.testing import machines

    with told():
        return machines.boot(pyhv_machine, _some(request))


@pytest.fixture
def guest(guests: "list[GuestUnderTest]") -> "GuestUnderTest":
    """The guest of the test's marker, freshly booted; of several the first one."""
    return guests[0]


@pytest.fixture
def booted_guests(pyhv_machine: "MachineUnderTest") -> "list[GuestUnderTest]":
    """The guests of the test's markers, as they were when they had booted: once, for all tests that want the
    same."""
    return list(pyhv_machine.had)  # type: ignore[arg-type]


@pytest.fixture
def booted_guest(booted_guests: "list[GuestUnderTest]") -> "GuestUnderTest":
    """The guest of the test's marker, as it was when it had booted; of several the first one."""
    return booted_guests[0]


@pytest.fixture
def inject(request: pytest.FixtureRequest, pyhv_machine: "MachineUnderTest") -> "Iterator[Injector]":
    """Has things go wrong for the guests of the test's machine: hypercalls, events, grants, the store, the
    console."""
    from pyhv.testing.injection import Injector

    injector = request.node.stash[INJECTOR] = Injector(pyhv_machine)
    try:
        yield injector
    finally:
        injector.end()


@pytest.fixture(scope="session")
def _pyhv_booted() -> "Iterator[Booted]":
    from pyhv.testing.machines import Booted

    booted = Booted()
    yield booted
    booted.close()


def used(item: pytest.Item) -> "list[MachineUnderTest]":
    """The machines of a test."""
    return item.stash.setdefault(USED, [])


@contextmanager
def told() -> Iterator[None]:
    """What is wrong with what a test wants is told in a sentence; a guest that fails is a failure."""
    from pyhv.errors import PyhvError

    try:
        yield
    except PyhvError as error:
        raise pytest.fail.Exception(str(error), pytrace=False) from None


def patience(config: pytest.Config) -> "Patience":
    """The session's patience with guests."""
    from pyhv.testing.under_test import Patience

    if PATIENCE not in config.stash:
        config.stash[PATIENCE] = Patience(settings(config).timeout)
    return config.stash[PATIENCE]


def settings(config: pytest.Config) -> Settings:
    """The session's settings."""
    return config.stash[SETTINGS]


def options(config: pytest.Config) -> dict[str, Any]:
    """What the session has to say of a machine, as `machines.fresh` takes it."""
    said = settings(config)
    return {"seed": said.seed, "patience": patience(config), "streams": said.streams}


def _some(request: pytest.FixtureRequest) -> marker.Wanted:
    wanted = marker.wanted(request.node)
    if not wanted.guests:
        marker.refuse('the test has no @pytest.mark.guest(...) that says what to boot: "debian", a path, ...')
    return wanted


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    """A phase begins."""
    _begin_anew(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_call(item: pytest.Item) -> None:
    """A phase begins."""
    _begin_anew(item)


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_teardown(item: pytest.Item) -> None:
    """A phase begins."""
    _begin_anew(item)


def _begin_anew(item: pytest.Item) -> None:
    if PATIENCE in item.config.stash:
        item.config.stash[PATIENCE].begin_anew()
